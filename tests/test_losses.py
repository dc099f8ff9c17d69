"""What a second reader of the script broke it with, each kind once."""

import errno
import json
import os
import shutil
import subprocess

import pytest

import delete_docker_registry_image as script
import model
from faults import ASIDE, GONE, KEPT, left_behind
from test_command import call, current, delete, has_blob, refused, tags
from test_running import folder, tree
from test_safety import MOVE, disturbed, interrupt, mount, shim
from tree import digest_of, write

__all__ = ['disturbed', 'folder', 'interrupt', 'mount', 'shim', 'tree']    # fixtures
OTHER = ['-i', 'team/other:1.0']


def own(tree, name, *below):
    return os.path.join(tree.v2, 'repositories', name, *below)


# --- what is not to be seen is not absent --------------------------------------------------------

@pytest.mark.parametrize('many', [False, True])
@pytest.mark.parametrize('part', [
    '_layers', '_layers/sha256', '_layers/sha256/HEX', '_manifests', '_manifests/revisions',
    '_manifests/revisions/sha256'])
def test_links_on_a_disk_that_is_away(tree, folder, part, many):
    """A layer that only another repository's links hold, and those cannot be read."""
    layers = [b'base'] + [b'%d' % number for number in range(60 if many else 0)]
    tree.tag('last', '1.0', tree.image('last', layers))
    tree.tag('last', '2.0', tree.image('last', [b'more']))
    tree.tag('away', '1.0', tree.image('away', layers))
    place = tree.repo('away', *part.replace('HEX', digest_of(b'base')[7:]).split('/'))
    disk = os.path.join(folder, 'disk')
    shutil.move(place, disk)
    os.symlink(disk, place)
    os.rename(disk, disk + ' away')
    said = refused(tree, '-i', 'last:1.0')
    assert place in said and 'mount it' in said
    refused(tree, '-g')
    os.rename(disk + ' away', disk)
    delete(tree, '-i', 'last:1.0')
    assert has_blob(tree, b'base') and has_blob(tree, current(tree, 'away', '1.0'))


@pytest.mark.parametrize('part', ['_layers/sha256', '_manifests/revisions'])
def test_a_file_where_links_belong(tree, folder, part):
    place = tree.repo('team/other', *part.split('/'))
    shutil.move(place, os.path.join(folder, 'parked'))
    write(place, b'')
    for request in (['-i', 'app:1.0'], ['-g'], ['-u']):
        assert 'Not a directory' in refused(tree, *request)


# --- what could not be put back ------------------------------------------------------------------

def test_what_is_kept_protects_its_blobs(tree, disturbed):
    """A crash left all of app aside, and the disk fails when it is put back."""
    for part in ('_manifests', '_layers'):
        os.makedirs(own(tree, ASIDE, 'app'), exist_ok=True)
        os.rename(tree.repo('app', part), own(tree, ASIDE, 'app', part))
    tree.tag('third', '1.0', tree.image('third', [b'third']))
    before = set(model.stored_blobs(tree.v2))
    result = disturbed(tree, *OTHER, calls=MOVE, at=1, do=errno.EIO)
    assert result.status == 3 and left_behind(tree.v2) == [KEPT], result
    gone = before - set(model.stored_blobs(tree.v2))
    assert digest_of(b'base') not in gone and digest_of(b'team/other:1.0') in gone
    listing = call('-d', tree.root, '-l')
    assert '-g would free 0 bytes' in listing.out
    delete(tree, '-g', '-p')
    assert has_blob(tree, b'base') and has_blob(tree, b'app:1.0')


def test_a_link_is_not_dropped_for_one_that_leads_nowhere(tree):
    """What is aside is the only copy of the link."""
    os.makedirs(own(tree, ASIDE, 'app', '_manifests', 'tags', '1.0', 'current'))
    link = tree.tag_link('app', '1.0')
    os.rename(link, own(tree, ASIDE, 'app', '_manifests', 'tags', '1.0', 'current', 'link'))
    os.symlink('/nowhere', link)
    assert call('-d', tree.root, *OTHER).status == 3
    kept = own(tree, KEPT, 'app', '_manifests', 'tags', '1.0', 'current', 'link')
    assert os.path.isfile(kept) and left_behind(tree.v2) == [KEPT]


def test_a_folder_too_deep_to_be_put_back(tree):
    os.makedirs(own(tree, ASIDE))
    folders, here = ['d'] * 1100 + ['_layers'], os.getcwd()
    os.chdir(own(tree, ASIDE))
    for name in folders:
        os.mkdir(name)
        os.chdir(name)
    os.chdir(here)
    write(tree.repo('d'), b'')
    result = call('-d', tree.root, *OTHER)
    assert result.status == 3 and ASIDE not in left_behind(tree.v2), result.said[:2000]
    subprocess.check_call(['rm', '-rf', tree.root])     # which Python cannot


# --- what is gone --------------------------------------------------------------------------------

def test_a_blob_that_could_not_be_deleted_is_deleted_later(tree, mount):
    blob = tree.blob_path(digest_of(b'app:1.0'))
    mount(blob, '--bind', blob)
    assert call('-d', tree.root, '-i', 'app:1.0').status == 3
    assert left_behind(tree.v2) == [GONE]
    assert call('-d', tree.root, *OTHER).status == 3
    assert GONE in left_behind(tree.v2)
    subprocess.check_call(['umount', blob])
    delete(tree, '-p')
    assert left_behind(tree.v2) == [] and not has_blob(tree, b'app:1.0')


def test_a_repository_named_like_a_digest_leaves_no_blobs(tree):
    name = 'cache/sha256/' + 64 * 'a'
    tree.tag(name, '1', tree.image(name, [b'only here']))
    os.makedirs(own(tree, GONE, name))
    for part in ('_manifests', '_layers'):
        os.rename(tree.repo(name, part), own(tree, GONE, name, part))
    delete(tree, *OTHER)
    assert not has_blob(tree, b'only here') and left_behind(tree.v2) == []


def test_what_finishing_freed_is_said_though_the_request_is_refused(tree, interrupt):
    interrupt(tree, '-i', 'app:1.0', final=True)
    sizes = model.stored_blobs(tree.v2)
    result = call('-d', tree.root, '--json', '-i', 'nosuch:1.0')
    done = json.loads(result.out)
    gone = {digest: sizes[digest] for digest in sizes.keys() - model.stored_blobs(tree.v2).keys()}
    assert result.status == 1 and "'nosuch'" in done['error'] and done['tags'] == []
    assert {blob['digest']: blob['size'] for blob in done['blobs']} == gone
    assert done['freed'] == sum(gone.values()) > 0
    assert 'of the earlier run' in result.said


def test_a_signature_without_its_link_is_garbage(tree):
    digest = tree.schema1('old', [b'of schema 1'], signatures=2)
    first, second = sorted(os.listdir(os.path.join(
        os.path.dirname(tree.revision_link('old', digest)), 'signatures', 'sha256')))
    os.remove(tree.signature_link('old', digest, 'sha256:' + first))
    delete(tree, '-g')
    assert not has_blob(tree, 'sha256:' + first) and has_blob(tree, 'sha256:' + second)


# --- words ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('word', ['app:/v[0-9]+', 'app:/.*', '*:/v1[.]0', 'app:/x'])
def test_a_regular_expression_without_its_end(tree, word):
    for option in ('-i', '-x'):
        said = refused(tree, '-i', 'app:1.0', option, word, status=2)
        assert 'between slashes' in said


def test_a_mistyped_exclusion_with_a_pattern_is_said(tree):
    said = delete(tree, '-i', 'app:1.0', '-x', 'ap:*')
    assert 'WARNING' in said and "Nothing matches 'ap:*'" in said


def test_an_exclusion_by_tag_and_digest_that_fits_nothing(tree):
    digest = current(tree, 'app', '1.0')
    delete(tree, '-i', 'app:1.0', '-x', 'app:2*@' + digest)
    assert tags(tree, 'app') == ['2.0']


def test_localhost_before_a_pattern_is_a_name(tree):
    tree.tag('localhost/app', '1.0', tree.image('localhost/app', [b'local']))
    delete(tree, '-i', 'localhost/*:1.0')
    delete(tree, '-i', 'localhost/*:1.0')
    assert tags(tree, 'app') == ['1.0', '2.0'] and tags(tree, 'localhost/app') == []


def test_a_broken_tag_without_a_history_takes_nothing_with_it(tree):
    """It may have stood for anything, so nothing is known to be only its own."""
    digest = tree.image('app', [b'used by digest'])
    write(tree.tag_link('app', 'broken'), b'')
    delete(tree, '-i', 'app:broken')
    assert tags(tree, 'app') == ['1.0', '2.0'] and has_blob(tree, digest)
    write(tree.tag_link('app', 'broken'), b'')
    delete(tree, '-i', 'app:broken', '-i', 'app:1.0')
    assert tags(tree, 'app') == ['2.0'] and not has_blob(tree, b'app:1.0')
    assert has_blob(tree, digest) and has_blob(tree, b'used by digest')


# --- odd links -----------------------------------------------------------------------------------

def test_a_tag_whose_link_is_a_folder(tree):
    link = tree.tag_link('app', '1.0')
    os.remove(link)
    os.mkdir(link)
    said = refused(tree, '-i', 'app:2.0')
    assert '-i app:1.0' in said
    delete(tree, '-i', 'app:1.0')
    assert tags(tree, 'app') == ['2.0']


@pytest.mark.parametrize('part, request_', [
    ('_manifests', 'app'), ('_layers', 'app'), ('_manifests/tags/1.0', 'app:1.0')])
def test_a_relative_link_that_leads_outside(tree, folder, part, request_):
    place, disk = tree.repo('app', *part.split('/')), os.path.join(folder, 'disk')
    shutil.move(place, disk)
    os.symlink(os.path.relpath(disk, os.path.dirname(place)), place)
    delete(tree, '-i', request_)
    assert '1.0' not in tags(tree, 'app') and os.path.exists(disk)
    assert has_blob(tree, current(tree, 'team/other', '1.0'))


# --- plans that the guard must refuse ------------------------------------------------------------

def carry_out(tree, request, plan):
    with script.safe_ground(tree.v2, script.Workers(), request, script.Signals()) as removal:
        with pytest.raises(script.RegistryCleanerError, match='fault in this program'):
            removal.carry_out(request, plan)


def test_a_blob_by_a_way_round(tree):
    kept = digest_of(b'app:1.0')[7:]
    number = next(number for number in range(10000)
                  if digest_of(b'%d' % number)[7:9] == kept[:2])
    orphan = tree.blob(b'%d' % number)
    carry_out(tree, script.Request(garbage=True),
              script.Plan([], {'%s/../%s' % (orphan, kept): 1}))
    assert has_blob(tree, b'app:1.0')


def test_a_repository_without_tags_that_no_word_names(tree):
    digest = tree.image('by/digest', [b'by digest'])
    carry_out(tree, script.Request((script.Image('app', '1.0'),)), script.Plan(
        [script.Reference('manifest', 'by/digest', digest),
         script.Reference('repository', 'by/digest')], {digest: 1, digest_of(b'by digest'): 9}))
    assert has_blob(tree, digest)


def test_a_folder_by_a_way_round(tree, folder):
    victim = os.path.join(folder, 'victim')
    os.mkdir(victim)
    carry_out(tree, script.Request(prune=True), script.Plan(
        [], {}, [os.path.join(tree.v2, 'blobs', os.path.relpath(victim, tree.v2 + '/blobs'))]))
    assert os.path.isdir(victim)


# --- what is said --------------------------------------------------------------------------------

def test_without_a_way_back_only_what_is_gone_is_said_to_be(tree, disturbed, mount):
    """No folder can be moved, and the first layer link cannot be removed."""
    layers = sorted(os.listdir(tree.repo('app', '_layers', 'sha256')))
    own_layer = next(name for name in layers if name == digest_of(b'app:1.0')[7:])
    link = tree.repo('app', '_layers', 'sha256', own_layer, 'link')
    mount(link, '--bind', link)
    result = disturbed(tree, '--json', '-i', 'app:1.0', calls=MOVE, at='1+', do=errno.EXDEV)
    done = json.loads(result.out)
    assert result.status == 3 and done['tags'] == ['app:1.0'] and done['failed'], result
    left = sorted(os.listdir(tree.repo('app', '_layers', 'sha256')))
    assert done['layers'] == len(layers) - len(left) and own_layer in left
    assert has_blob(tree, b'app:1.0')


def test_a_failure_that_could_be_put_back_deletes_nothing(tree, disturbed):
    """The second move fails, and so does putting back the first."""
    result = disturbed(tree, '--json', '-i', 'app:1.0', calls=MOVE, at='2+', do=errno.EIO)
    done = json.loads(result.out)
    assert result.status in (1, 3) and 'Traceback' not in result.said
    assert done['tags'] == done['manifests'] == done['blobs'] == []
    assert has_blob(tree, b'app:1.0')
