"""What a second reader of the script broke it with, each kind once."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest

import delete_docker_registry_image as script
import model
from faults import ASIDE, GONE, KEPT, left_behind
from test_command import call, current, delete, has_blob, refused, run, tags
from test_running import folder, tree
from test_safety import DELETE, MOVE, disturbed, interrupt, mount, newcomer, shim
from tree import DAY, OCI_CONFIG, OCI_IMAGE, OCI_INDEX, OCI_LAYER, digest_of, encode, write

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


# --- what a registry reads in a manifest, and Python does not ------------------------------------

def image_as_blob(tree, repo, layer, more=''):
    """An image manifest that was pushed as a blob, which registry 2.8.2 serves as a manifest."""
    document = encode({
        'schemaVersion': 2, 'mediaType': OCI_IMAGE,
        'config': tree.descriptor(OCI_CONFIG, tree.layer(repo, b'{"of": "%s"}' % layer)),
        'layers': [tree.descriptor(OCI_LAYER, tree.layer(repo, layer))]}).decode()
    return tree.manifest(repo, (document.rstrip()[:-1] + more + '}').encode(), legacy=True)


@pytest.mark.parametrize('depth', [100, 3000, 9000])
def test_a_child_that_is_nested_deeply_keeps_its_layers(tree, depth):
    """It is only linked as a layer; Go reads such a document, Python none of 1,000 arrays."""
    child = image_as_blob(tree, 'app', b'of the child', ',"x":' + '[' * depth + ']' * depth)
    tree.tag('app', 'multi', tree.manifest('app', encode({
        'schemaVersion': 2, 'mediaType': OCI_INDEX,
        'manifests': [tree.descriptor(OCI_IMAGE, child)]})))
    tree.tag('app', '3.0', tree.image('app', [b'three']))
    for request in (['-g'], ['-u', '-i', 'app'], ['-i', 'app:3.0']):
        result = call('-d', tree.root, *request)
        assert result.status in (0, 1), result
        assert has_blob(tree, b'of the child') and has_blob(tree, b'{"of": "of the child"}')
    assert ('nested too deeply' in result.said) == (depth > 100)


def test_children_of_a_key_that_stands_twice(tree):
    """Go reads the second list into the elements of the first, media types and all."""
    first, second = (image_as_blob(tree, 'app', layer) for layer in (b'first', b'second'))
    tree.tag('app', 'multi', tree.manifest('app', (
        '{"schemaVersion":2,"mediaType":"%s","manifests":[%s],"manifests":[{"digest":"%s"}]}' % (
            OCI_INDEX, encode(tree.descriptor(OCI_IMAGE, first)).decode(), second)).encode()))
    delete(tree, '-g')
    for layer in (b'first', b'second'):
        assert has_blob(tree, layer)
        assert os.path.exists(tree.layer_link('app', digest_of(layer)))


# --- what no word named --------------------------------------------------------------------------

@pytest.mark.parametrize('excluded', [True, False])
def test_the_history_of_a_tag_that_only_points_at_the_digest(tree, excluded):
    old, new = (tree.image('app', [layer]) for layer in (b'old', b'new'))
    for digest in (old, new):
        tree.tag('app', 'other', digest)
    tree.tag('app', 'keep', new)
    call('-d', tree.root, '-i', 'app@' + new, *(['-x', 'app:keep'] if excluded else []))
    assert has_blob(tree, old) and has_blob(tree, b'old')
    assert has_blob(tree, new) == excluded == ('other' in tags(tree, 'app'))


def test_a_tag_and_its_digest_take_the_history_too(tree):
    old, new = (tree.image('app', [layer]) for layer in (b'old', b'new'))
    for digest in (old, new):
        tree.tag('app', '3.0', digest)
    delete(tree, '-i', 'app:3.0', '-i', 'app@' + new)
    assert not has_blob(tree, old) and not has_blob(tree, new)


def test_a_signature_that_was_made_again_goes_with_its_image(tree):
    image = tree.image('signed', [b'signed'])
    tree.tag('signed', '1.0', image)
    for signature in (b'first', b'second'):
        tree.tag('signed', image.replace(':', '-') + '.sig', tree.image('signed', [signature]))
    delete(tree, '-i', 'signed:1.0')
    assert not os.path.exists(tree.repo('signed')) and not has_blob(tree, b'first')


@pytest.mark.parametrize('folder_name', ['@eaDir', 'gone'])
def test_a_folder_that_is_no_tag_is_no_tag_that_stays(tree, folder_name):
    os.makedirs(tree.repo('zero', '_manifests', 'tags', folder_name, 'current'))
    assert '--allow-remove-all' in refused(tree, '-i', 'app*', '-i', 'team/*')


def test_a_repository_with_nothing_but_a_folder_that_is_no_tag(tree):
    os.makedirs(tree.repo('zero', '_manifests', 'tags', 'gone', 'current'))
    delete(tree, '-i', 'zero:gone')
    assert not os.path.exists(tree.repo('zero'))


def test_prune_leaves_folders_that_no_registry_makes(tree):
    os.makedirs(tree.repo('Backup_2020', 'Old'))
    delete(tree, '-p')
    assert os.path.isdir(tree.repo('Backup_2020', 'Old'))


# --- what an exclusion, or a rule, means to keep --------------------------------------------------

@pytest.mark.parametrize('word', [
    'localhost/app', 'localhost/a*', 'localhost/*', 'localhost:5000/a*', 'reg.example.com/a*'])
def test_an_excluded_pattern_with_a_host_in_front(tree, word):
    assert call('-d', tree.root, '-n', '--json', '-i', 'app', '-x', word).status in (0, 1)
    delete(tree, '-i', 'app', '-i', 'team/other', '-x', word)
    assert tags(tree, 'app') == ['1.0', '2.0']


@pytest.mark.parametrize('what', [b'app:1.0', b'base'])
def test_an_excluded_layer_is_no_fault_of_the_program(tree, what):
    request = ['-i', 'app:1.0', '-x', '*@' + digest_of(what)]
    dry = call('-d', tree.root, '-n', *request)
    assert dry.status == 0 and 'Nothing matches' in dry.said
    delete(tree, *request)
    assert tags(tree, 'app') == ['2.0']


@pytest.mark.parametrize('text', ['', '\n', '# none today\n\n'])
def test_an_empty_list_of_exclusions_stops_the_run(tree, text):
    result = run('-d', tree.root, '-u', '-x', '-', input=text.encode(), stdin=None)
    assert result.status == 2 and 'that would protect nothing' in result.said


@pytest.mark.parametrize('option', ['-i', '-x'])
@pytest.mark.parametrize('word', [
    'https://reg.example.com/app/', 'http://reg:5000/v2/app/', 'docker://', 'app:/[/', 'app://x/'])
def test_an_address_is_no_regular_expression(tree, option, word):
    result = call('-d', tree.root, '-i', 'app', option, word)
    assert result.status == 2 and "-i ''" not in result.said and "/'" not in result.said[-3:]


@pytest.mark.parametrize('dangling', [True, False])
def test_what_cannot_be_pulled_takes_the_place_of_nothing_that_can(tree, dangling):
    for number in range(4):
        tree.tag('ci', 'b%d' % number, tree.image('ci', [b'b%d' % number]), age=number * DAY)
    write(tree.tag_link('ci', 'b0'), digest_of(b'gone').encode() if dangling else b'')
    shutil.rmtree(os.path.join(os.path.dirname(tree.tag_link('ci', 'b0')), '..', 'index'))
    call('-d', tree.root, '-i', 'ci:*', '--keep-last', '1')
    assert 'b1' in tags(tree, 'ci') and has_blob(tree, b'b1')


def test_a_registry_without_a_tag_is_not_emptied_by_a_pattern(tree):
    for repo in ('app', 'team/other'):
        shutil.rmtree(tree.repo(repo, '_manifests', 'tags'))
        os.mkdir(tree.repo(repo, '_manifests', 'tags'))
    assert '--allow-remove-all' in refused(tree, '-i', '*')


def test_a_repository_that_is_called_like_a_pattern(tree):
    for repo in ('app', 'team/other'):
        shutil.rmtree(tree.repo(repo))
    tree.tag('app[1]', '1.0', tree.image('app[1]', [b'only']))
    delete(tree, '-i', 'app[1]')
    assert not os.path.exists(tree.repo('app[1]'))


def test_a_folder_of_a_tag_that_is_gone_can_be_excluded(tree):
    place = os.path.dirname(os.path.dirname(tree.tag_link('app', 'gone')))
    os.makedirs(place)
    delete(tree, '-g', '-x', 'app:go*')
    assert os.path.isdir(place)
    delete(tree, '-g')
    assert not os.path.exists(place)


# --- what else has two names, or looks like the script's own -------------------------------------

@pytest.mark.parametrize('part', ['_layers', '_manifests', '_manifests/tags',
                                  '_manifests/revisions'])
def test_two_repositories_that_share_a_folder_elsewhere(tree, folder, part):
    place = os.path.join(folder, 'elsewhere')
    shutil.copytree(tree.repo('app', part), place)
    for repo in ('app', 'team/other'):
        shutil.rmtree(tree.repo(repo, part))
        os.symlink(place, tree.repo(repo, part))
    assert 'the same by a symbolic link' in refused(tree, '-i', 'app:1.0')


def test_a_folder_within_what_a_link_of_another_repository_leads_to(tree, folder):
    place = os.path.join(folder, 'elsewhere')
    shutil.move(tree.repo('team/other'), place)
    os.symlink(place, tree.repo('team/other'))
    shutil.rmtree(tree.repo('app', '_layers'))
    os.symlink(os.path.join(place, '_layers'), tree.repo('app', '_layers'))
    assert 'the same by a symbolic link' in refused(tree, '-i', 'app:1.0')


@pytest.mark.parametrize('name', [
    '_delete_docker_registry_image.aside.bak', '_delete_docker_registry_image.gone.bak',
    '_delete_docker_registry_image.kept.old', 'attic/_delete_docker_registry_image.kept'])
def test_folders_that_are_nearly_the_own_ones_protect_their_blobs(tree, name):
    os.makedirs(tree.repo(name))
    os.rename(tree.repo('team/other'), tree.repo(name, 'other'))
    assert call('-d', tree.root, '-g', '-p').status == 0
    assert has_blob(tree, b'team/other:1.0') and os.path.isdir(tree.repo(name, 'other'))


def test_what_is_gone_waits_for_the_disk_with_the_blobs(tree, interrupt, folder):
    interrupt(tree, *DELETE, final=True)
    os.rename(tree.v2 + '/blobs', folder + '/blobs')
    os.mkdir(tree.v2 + '/blobs')
    for request in (['-p'], ['-g'], OTHER):
        assert 'is a disk not mounted?' in refused(tree, *request)
    assert left_behind(tree.v2) == [GONE]
    os.rmdir(tree.v2 + '/blobs')
    os.rename(folder + '/blobs', tree.v2 + '/blobs')
    delete(tree, '-p')
    assert not has_blob(tree, b'app:1.0') and left_behind(tree.v2) == []


def test_a_push_where_nothing_can_be_set_aside(tree, folder, disturbed):
    """On a mounted bucket, between the guard's look and the removal."""
    digest, push = newcomer(folder, tree, 'app', [b'app:1.0', b'new'])
    result = disturbed(tree, *DELETE, merge=1, calls=' rename ', part='.probe', at=1, do='hook',
                       hook=push)
    assert result.status == 1 and 'somebody pushes into it' in result.said, result
    assert model.pull(tree.v2, 'app', digest)[1] and tags(tree, 'app') == ['1.0', '2.0']


def test_an_orphan_that_a_repository_which_is_put_back_names(tree, disturbed):
    """Its manifest was to go, so -g wanted the blob, which has no link any more."""
    shutil.rmtree(os.path.dirname(tree.layer_link('app', digest_of(b'app:1.0'))))
    result = disturbed(tree, '-g', *DELETE, *OTHER, calls=MOVE, part='/repositories/app/', at=2,
                       do=errno.EIO)
    assert result.status == 3 and tags(tree, 'app') == ['1.0', '2.0'], result
    assert has_blob(tree, b'app:1.0') and not has_blob(tree, b'team/other:1.0')


# --- what is advised -----------------------------------------------------------------------------

def test_the_advice_for_a_damaged_child_works(tree):
    child = tree.image('app', [b'child'])
    tree.tag('app', 'multi', tree.index('app', [tree.index('app', [child])]))
    tree.corrupt_blob(child)
    said = refused(tree, '-i', 'app:1.0')
    advised = said.split('or delete it: delete_docker_registry_image ')[1].split('\n')[0]
    delete(tree, *advised.split())
    assert tags(tree, 'app') == ['1.0', '2.0'] and not has_blob(tree, child)


def test_what_is_advised_can_be_pasted_into_a_shell(tree):
    name = 'a;touch oops (copy)'
    tree.tag(name, '1.0', tree.image(name, [b'here']))
    tree.tag(name, '2.0', tree.image(name, [b'there']))
    tree.corrupt_blob(current(tree, name, '2.0'))
    said = refused(tree, '-i', name + ':1.0')
    advised = said.split('or delete it: ')[1].split('\n')[0]
    words = subprocess.check_output(['sh', '-c', 'printf "%s\\n" ' + advised]).decode().split('\n')
    assert words[2] == '%s@%s' % (name, current(tree, name, '2.0'))


def test_an_upload_with_an_odd_name(tree):
    os.makedirs(tree.repo('app', '_uploads', '..\n'))
    delete(tree, '-i', 'app')
    assert not os.path.exists(tree.repo('app', '_uploads'))


def steps(tree, *arguments):
    """How many calls of functions, and steps of generators, a run takes."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event == 'call'

    sys.setprofile(profile)
    try:
        assert script.main(['-d', tree.root, '-q', '-j', '1', *arguments]) in (0, 1)
    finally:
        sys.setprofile(None)
    return count


def one_image(tree, number):
    tree.tag('many', 'x%d' % number, tree.image('many', [b'many']))


def broken_tags(tree, number):
    one_image(tree, number)
    if number % 2:
        write(tree.tag_link('many', 'x%d' % number), b'')


def children_of_one_index(tree, number):
    children = [tree.image('many', [b'%d' % child]) for child in range(number // 8 + 1)]
    tree.tag('many', 'x%d' % number, children[0])
    if number in (99, 399):
        index = tree.index('many', children)
        for tag in range(number + 1):
            tree.tag('many', 'x%d' % tag, index)


def other_algorithms(tree, number):
    tree.tag('many', 'x%d' % number, tree.image('many', [
        tree.layer('many', b'%d' % number, alg='sha512')]))


def missing_blobs(tree, number):
    digest = tree.image('many', [b'%d' % number])
    tree.tag('many', 'x%d' % number, digest)
    if number % 2:
        tree.remove_blob(digest)


@pytest.mark.parametrize('options', [
    ['-n', '-i', 'many:x*'], ['-l', '-i', 'many:x*'], ['-n', '-i', 'many:x*', '-x', 'many:x1'],
    ['-n', '-i', 'many:x*', '--keep-last', '2', '--by', 'created']])
@pytest.mark.parametrize('push', [
    one_image, broken_tags, children_of_one_index, other_algorithms, missing_blobs])
def test_many_tags_cost_their_number(tree, push, options, capsys):
    """Not their number squared."""
    counts = []
    for number in range(400):
        push(tree, number)
        if number in (99, 399):
            counts.append(steps(tree, *options))
    assert counts[1] < 6 * counts[0]


def test_many_patterns_cost_their_number(tree, capsys):
    """Each is compiled once, however many there are."""
    counts = [steps(tree, '-n', '-i', 'app:1.0', *(
        part for pattern in range(number) for part in ('-x', 'z%d*:1' % pattern)))
        for number in (300, 1200)]
    assert counts[1] < 6 * counts[0]


# --- what else is said ---------------------------------------------------------------------------

@pytest.mark.parametrize('options, key', [(['-i', 'app'], 'freed'), (['-l'], 'images')])
def test_the_json_of_a_refusal_has_all_keys(tree, options, key):
    done = [json.loads(call('--json', '-d', place, *options).out)
            for place in (tree.root, tree.root + '/nowhere')]
    assert done[0].keys() | {'error'} == done[1].keys() and key in done[1]
    assert done[1].get('total', {}).keys() == done[0].get('total', {}).keys()


def test_a_refusal_after_an_earlier_run_was_finished(tree, interrupt):
    interrupt(tree, *DELETE, final=True)
    result = call('-d', tree.root, '-i', 'nowhere')
    assert result.status == 1 and 'Nothing else was deleted' in result.said
    assert not has_blob(tree, b'app:1.0')


@pytest.mark.parametrize('width', [1, 5, 12, 20])
def test_a_very_narrow_terminal(tree, width):
    tree.tag('app', '3.0', tree.image('app', [b'x' * 1020000]))
    listing = script.RegistryCleaner(tree.root).list(script.Request())
    assert len(list(script.table(listing.rows, width, False))) == 3


@pytest.mark.parametrize('name', ['app:v1.tar', "it's.tar"])
def test_the_command_that_undoes_works_as_it_is_told(tree, folder, name):
    target = os.path.join(folder, name)
    result = run('-d', tree.root, *DELETE, '--save', name, cwd=folder)
    told = result.said.split('To bring it back: ')[1].split('\n')[0]
    subprocess.check_call(['sh', '-c', told], cwd='/')
    assert os.path.isfile(target) and tags(tree, 'app') == ['1.0', '2.0']


def test_an_archive_by_a_way_round(tree, folder):
    os.symlink(os.path.join(tree.v2, 'blobs'), os.path.join(folder, 'link'))
    assert 'it would lie in the registry' in refused(
        tree, *DELETE, '--save', os.path.join(folder, 'link', '..', 'x.tar'))


def test_a_closed_standard_output(tree):
    command = '"$0" "$1" -d "$2" -l >&-'
    status = subprocess.call(['sh', '-c', command, sys.executable, script.__file__, tree.root],
                             stderr=subprocess.DEVNULL)
    assert status == 1


# --- what a third reader found -------------------------------------------------------------------

def test_links_that_are_kept_behind_a_symbolic_link_count(tree, folder):
    """Half of app was aside when a run was killed, and app was pushed again meanwhile."""
    shutil.move(tree.repo('app', '_layers'), os.path.join(folder, 'disk'))
    os.makedirs(own(tree, ASIDE, 'app'))
    os.symlink(os.path.join(folder, 'disk'), own(tree, ASIDE, 'app', '_layers'))
    shutil.rmtree(tree.repo('app', '_manifests'))
    tree.tag('app', 'new', tree.image('app', [b'new']))
    assert call('-d', tree.root, '-p').status == 3 and KEPT in left_behind(tree.v2)
    delete(tree, '-g')
    assert has_blob(tree, b'app:1.0')


@pytest.mark.parametrize('child', ['1', 'z'])
def test_what_lies_below_a_repository_does_not_keep_it_from_going_back(tree, child):
    name = 'app/' + child
    tree.tag(name, '1.0', tree.image(name, [b'child']))
    os.mkdir(own(tree, ASIDE))
    os.rename(tree.repo('app'), own(tree, ASIDE, 'app'))
    write(tree.repo(name), b'in the way')
    assert call('-d', tree.root, *OTHER).status == 3
    assert '1.0' in tags(tree, 'app') and model.pull(tree.v2, 'app', current(tree, 'app', '1.0'))[1]


@pytest.mark.parametrize('tag', ['_layers', '_manifests', '_uploads'])
def test_a_tag_that_is_called_like_a_part_of_a_repository(tree, tag):
    tree.image('named', [b'untagged'])
    tree.tag('named', tag, tree.image('named', [b'tagged']))
    delete(tree, '-i', 'named:' + tag)
    assert os.path.isdir(tree.repo('named', '_manifests', 'tags'))


@pytest.mark.parametrize('request_of', [['-g'], ['-i', 'app:1.0']])
def test_a_blob_of_which_only_the_folder_stays_is_deleted(tree, folder, mount, request_of):
    digest = tree.blob(b'orphan') if request_of == ['-g'] else digest_of(b'app:1.0')
    place = os.path.dirname(tree.blob_path(digest))
    mount(place, '--bind', place)
    archive = os.path.join(folder, 'saved.tar')
    result = call('-d', tree.root, '--json', '--save', archive, *request_of)
    done = json.loads(result.out)
    assert result.status == 3 and os.path.exists(archive) and len(done['failed']) == 1
    assert digest in [blob['digest'] for blob in done['blobs']] and done['freed']
    assert 'Nothing was deleted' not in result.said


def test_what_is_half_removed_without_a_way_back_is_not_nothing(tree, folder, mount, disturbed):
    place = tree.repo('app', '_manifests', 'tags', '1.0')
    archive = os.path.join(folder, 'saved.tar')
    mount(place, '--bind', place)
    result = disturbed(tree, '--save', archive, '-i', 'app:1.0', calls=MOVE, at='1+',
                       do=errno.EXDEV)
    assert os.listdir(place) == []
    assert result.status == 3 and os.path.exists(archive), result
    assert 'othing' not in result.said


@pytest.mark.parametrize('name', ['app@old', 'app@' + 'a' * 9])
def test_an_expression_for_a_name_with_an_at_sign(tree, name):
    tree.tag(name, 'v1', tree.image(name, [b'at']))
    delete(tree, '-i', name + ':/v.*/')
    assert not os.path.exists(tree.repo(name))


def test_an_exclusion_is_a_pattern_though_a_folder_is_called_so(tree):
    tree.tag('*', '1.0', tree.image('*', [b'star']))
    before = tags(tree, 'app')
    assert call('-d', tree.root, '-i', 'app:1.0', '-x', '*').status == 0
    assert tags(tree, 'app') == before


def test_a_file_called_like_what_is_gone(tree):
    write(own(tree, GONE), b'')
    delete(tree, *OTHER)
    assert tags(tree, 'team/other') == []


def test_a_folder_too_deep_to_be_saved(tree, folder):
    os.makedirs(tree.repo('app', '_uploads', 'deep'))
    here = os.getcwd()
    os.chdir(tree.repo('app', '_uploads', 'deep'))
    for _ in range(1100):
        os.mkdir('d')
        os.chdir('d')
    os.chdir(here)
    archive = os.path.join(folder, 'saved.tar')
    said = refused(tree, '-i', 'app', '--save', archive)
    assert 'too deeply' in said and not os.path.exists(archive)
    subprocess.check_call(['rm', '-rf', tree.root])     # which Python cannot
