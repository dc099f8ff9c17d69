"""What to delete, chosen: -x, --allow-remove-all, signatures, odd folders, -i -; and terminals.

No slip of the operator costs an image.
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest
from hypothesis import event, given, note, settings, strategies as st

import model
from registry import Registry
from test_command import (
    FOREIGN, SCRIPT, call, current, delete, refused, run, small_registry, tags,
)
from test_garbage import litter
from test_trees import NAMES, a_tree, an_exclusion, an_image, check, describe, served
from tree import DAY, Tree, digest_of, snapshot, write

HERE = os.path.dirname(os.path.abspath(__file__))
MISSING = 'sha256:' + '0' * 64


@pytest.fixture
def tree(tmp_path):
    return small_registry(tmp_path / 'registry')


def whole(tree, repo):
    """The tags of a repository, all of which have to be pullable."""
    for tag in tags(tree, repo):
        if tag not in FOREIGN:
            assert model.pull(tree.v2, repo, current(tree, repo, tag))[1], tag
    return tags(tree, repo)


# --- what makes no sense --------------------------------------------------------------------------

@pytest.mark.parametrize('arguments, reason', [
    (['-i', 'app:*', '-i', 'team/other', '--keep-last', '3'], 'tags'),
    (['-u', '-i', 'app:1.0'], '-u'),
    (['-g', '--keep-last', '3'], ''),
    (['-p', '--older-than', '3d'], ''),
    (['--keep-last', '3'], ''),
    (['--older-than', '3d'], ''),
    (['-x', 'app'], 'image is required'),
    (['-i', 'app:*', '-x', ''], "''"),
    (['-i', 'app:*', '-x', 'app:'], 'tag'),
    (['-i', 'app:*', '-x', '../app'], '../app'),
    (['-i', 'app:*', '-x', 'app@sha256:1'], 'digest'),
])
def test_what_makes_no_sense_is_a_usage_error_that_says_why(tree, arguments, reason):
    before = snapshot(tree.root)
    for more in [[], ['--json']]:
        result = call('-d', tree.root, *arguments + more)
        assert (result.status, result.out) == (2, ''), result.said
        assert reason in result.said.splitlines()[-1]
    assert snapshot(tree.root) == before


# --- never delete ---------------------------------------------------------------------------------

@given(st.data())
@settings(max_examples=40)
def test_exclusions(data):
    """Exactly what model.py expects goes, and nothing else."""
    with a_tree(data, steps=12) as builder:
        untagged = builder.pick(False, False, True)
        images = [builder.pick('*', *NAMES)] if untagged else [an_image(builder)]
        excluded = [an_exclusion(builder) for _ in range(data.draw(st.integers(1, 2)))]
        check(builder.tree.v2, images, untagged, excluded=excluded)


@given(st.data())
@settings(max_examples=60)
def test_what_is_excluded_is_never_harmed(data):
    with a_tree(data, steps=12, damage=1) as builder:
        litter(builder, 2)
        v2 = builder.tree.v2
        untagged = builder.pick(False, False, True)
        images = [builder.pick('*', *NAMES)] if untagged else [
            builder.pick(an_image(builder), '*', '*:*') for _ in range(builder.pick(1, 2))]
        store = model.repositories(v2)
        spared = [(name, part) for name, repo in store.items()
                  for part in [''] + sorted(repo.tags) + sorted(repo.manifests)]
        spared = builder.some(spared, 2) or spared[:1]
        excluded = ['%s%s%s' % (name, '@' if ':' in part else ':' if part else '', part)
                    for name, part in spared]
        args = ['--allow-remove-all'] + ['-u'] * untagged + ['-g'] * builder.pick(0, 1)
        args += [arg for image in images for arg in ('-i', image)]
        args += [arg for image in excluded for arg in ('-x', image)]
        before, served_before = snapshot(v2), served(v2)
        status = call('-d', v2, *args).status
        event('exit %s' % status)
        try:
            assert status in (0, 1, 3)
            for name, part in spared:
                as_it_was(v2, name, part, before, served_before)
        except (AssertionError, KeyError):
            note('\n'.join(describe(before) + ['delete_docker_registry_image ' + ' '.join(args)]))
            raise


def as_it_was(v2, name, part, before, served_before):
    """A repository, or if `part` says so a tag or a digest of it, is served as before."""
    after, served_after = snapshot(v2), served(v2)
    if ':' in part:     # by digest it is served without a tag, too
        assert model.pull(v2, name, part) == served_before[name, part]
    elif part:
        assert served_after[name, part] == served_before[name, part]
    else:
        folder = os.path.join('repositories', name, '_')
        assert {path: what for path, what in after.items() if path.startswith(folder)} == {
            path: what for path, what in before.items() if path.startswith(folder)}
        assert {key: got for key, got in served_after.items() if key[0] == name} == {
            key: got for key, got in served_before.items() if key[0] == name}


@pytest.fixture
def signed(tree):
    """app:1.0 is signed, and had another image before."""
    former = tree.image('app', [b'former'])
    image = current(tree, 'app', '1.0')
    tree.tag('app', '1.0', former)
    tree.tag('app', '1.0', image)
    tree.former, tree.image_1 = former, image
    tree.signature = sign(tree, 'app', image)
    tree.child = tree.image('app', [b'child'])
    tree.index_1 = tree.index('app', [tree.child])
    tree.tag('app', 'multi', tree.index_1)
    return tree


def sign(tree, repo, image, suffix='.sig', age=0):
    """Sign an image as cosign does; the tag."""
    tag = image.replace(':', '-') + suffix
    tree.tag(repo, tag, tree.image(repo, [b'signature', tag.encode()]), age)
    return tag


def kept(tree, *arguments):
    """Run; the tags of app that are left, and that all of them are whole."""
    delete(tree, *arguments)
    return whole(tree, 'app')


def test_the_repository_but_for_a_tag(signed):
    """Its signature is a part of what is kept; its history is not, and `-i NAME` means that too."""
    assert kept(signed, '-i', 'app', '-x', 'app:1.0') == ['1.0', signed.signature]
    assert not os.path.exists(signed.revision_link('app', signed.former))
    assert not os.path.exists(signed.blob_path(signed.index_1))


def test_the_repository_but_for_a_digest(signed):
    assert kept(signed, '-i', 'app', '-x', 'app@' + signed.child) == []
    assert model.pull(signed.v2, 'app', signed.child)[1]
    assert not os.path.exists(signed.blob_path(signed.index_1))


def test_all_tags_but_one(signed):
    assert kept(signed, '-i', 'app:*', '-x', 'app:1.0') == ['1.0', signed.signature]


def test_untagged_but_for_a_digest(signed):
    """The history of 1.0 is untagged."""
    kept(signed, '-u', '-i', 'app', '-x', 'app@' + signed.former)
    assert model.pull(signed.v2, 'app', signed.former)[1]
    kept(signed, '-u', '-i', 'app')
    assert not os.path.exists(signed.revision_link('app', signed.former))


def test_a_digest_that_an_excluded_tag_stands_for(signed):
    before = contents(signed)
    assert '1.0' in kept(signed, '-i', 'app@' + signed.image_1, '-x', 'app:1.0')
    assert contents(signed) == before


def test_a_digest_that_an_excluded_index_contains(signed):
    before = contents(signed)
    kept(signed, '-i', 'app@' + signed.child, '-x', 'app:multi')
    assert contents(signed) == before


def test_a_digest_and_the_same_digest_excluded(signed):
    before = contents(signed)
    kept(signed, '-i', 'app@' + signed.image_1, '-x', 'app@' + signed.image_1)
    assert contents(signed) == before


def test_an_excluded_digest_keeps_the_tags_that_point_at_it(signed):
    for request in [['-i', 'app:1.0'], ['-i', 'app:*'], ['-i', 'app']]:
        assert '1.0' in kept(signed, *request, '-x', 'app@' + signed.image_1)
    assert tags(signed, 'app') == ['1.0', signed.signature]


def test_everything_but_a_repository(signed):
    before = contents(signed, 'app')
    kept(signed, '-i', '*', '-g', '-x', 'app')
    assert contents(signed, 'app') == before
    assert not os.path.exists(signed.repo('team/other', '_manifests'))


def test_garbage_everywhere_else(signed):
    """An exclusion holds in its own repository, and not in one that no -i names."""
    signed.layer('app', b'unused')
    signed.layer('team/other', b'unused too')
    call('-d', signed.root, '-g', '-x', 'app')
    assert os.path.exists(signed.blob_path(digest_of(b'unused')))
    assert not os.path.exists(signed.blob_path(digest_of(b'unused too')))


def contents(tree, repo=''):
    """Every file of the store, or of one repository and its blobs."""
    return {path: what for path, what in snapshot(tree.v2).items() if what[0] == 'file'
            and path.startswith('repositories/' + repo if repo else '')}


@pytest.mark.parametrize('image', ['nothing', 'nothing:1.0', 'app:nothing', 'app@' + MISSING,
                                   'quay.io/nothing', 'team', 'registry.example.com/app:3.0'])
def test_an_exclusion_that_names_nothing_stops_the_run(tree, image):
    for request in [['-i', 'app:1.0'], ['-g'], ['-u'], ['-n', '-i', 'app'], ['-g', '-i', '*']]:
        said = refused(tree, *request, '-x', 'app:2.0', '-x', image)
        assert image.split('@')[-1].split('/')[-1].split(':')[-1] in said


@pytest.mark.parametrize('image', ['no*', 'app:no*', 'no*:1.0', '*@' + MISSING, 'app:/no.*/'])
def test_a_pattern_may_exclude_nothing(tree, image):
    for request in [['-g'], ['-u', '-i', 'app'], ['-i', 'app:1.0']]:
        assert re.search('WARNING.*' + re.escape(image), delete(tree, '-x', image, *request))
    assert tags(tree, 'app') == ['2.0']


@pytest.mark.parametrize('host', ['registry.example.com', 'localhost:5000', 'localhost', '10.0.0.1',
                                  'registry.example.com:443'])
def test_an_exclusion_with_a_host_in_front(tree, host):
    """As people paste it."""
    digest = current(tree, 'app', '2.0')
    for image in ['/app:2.0', '/app@' + digest, '/app:2.0@' + digest]:
        delete(tree, '-i', 'app', '-x', host + image)
        assert whole(tree, 'app') == ['2.0']
    delete(tree, '-i', '*', '-x', host + '/team/other', '-x', host + '/app')
    assert whole(tree, 'app') == ['2.0'] and whole(tree, 'team/other') == ['1.0']


def test_an_exclusion_as_spelled_goes_first(tree):
    """Mirrors keep repositories under the host that they come from."""
    tree.tag('quay.io/app', '1.0', tree.image('quay.io/app', [b'mirrored']))
    delete(tree, '-i', '*:1.0', '-x', 'quay.io/app')
    assert whole(tree, 'quay.io/app') == ['1.0'] and tags(tree, 'app') == ['2.0']


def test_an_exclusion_by_a_tag_that_the_mirror_lacks(tree):
    """What is meant nobody knows, so it names nothing, or errs towards keeping."""
    tree.tag('quay.io/app', '3.0', tree.image('quay.io/app', [b'mirrored']))
    result = call('-d', tree.root, '-i', 'app', '-x', 'quay.io/app:1.0')
    assert '1.0' in whole(tree, 'app') and (result.status == 0 or tags(tree, 'app')[1:])


def test_a_host_in_front_of_a_pattern(tree):
    delete(tree, '-i', 'app', '-i', 'team/other', '-x', 'localhost:5000/a*:1.*')
    assert whole(tree, 'app') == ['1.0'] and tags(tree, 'team/other') == []


# --- everything at once ---------------------------------------------------------------------------

@pytest.mark.parametrize('arguments', [
    ['-i', '*'], ['-i', '*:*'], ['-i', '*:/.*/'], ['-i', '*', '-g', '-p'], ['-i', '*:[0-9]*'],
    ['-i', 'app:*', '-i', 'team/other'], ['-i', '*:*', '--keep-last', '0'], ['-i', '?*'],
    ['-i', '*:*', '--older-than', '0h'], ['-i', '*', '-x', 'none*'],
    ['-i', 'app', '-i', 'team/*']])
def test_patterns_do_not_empty_the_registry(tree, arguments):
    said = refused(tree, *arguments)
    assert '--allow-remove-all' in said
    delete(tree, '--allow-remove-all', *arguments)
    assert tags(tree, 'app') == tags(tree, 'team/other') == []


@pytest.mark.parametrize('arguments', [
    ['-i', 'app', '-i', 'team/other'], ['-i', '*', '-x', 'app:1.0'], ['-i', 'app:*', '-i', 'no*'],
    ['-i', '*:*', '--keep-last', '1'], ['-i', '*:1.0'], ['-u'], ['-u', '-i', '*'],
    ['-g', '-u', '-p'], ['-i', 'app:1.0', '-i', 'app:2.0', '-i', 'team/other:1.0']])
def test_who_names_all_means_it_and_who_leaves_some_may(tree, arguments):
    delete(tree, *arguments)


def test_untagged_needs_no_image(tree):
    for repo in ['app', 'team/other']:
        tree.image(repo, [b'untagged in ' + repo.encode()])
    by_digest = tree.image('by/digest', [b'used by digest'])
    said = delete(tree, '-u', '-x', 'team/other')
    assert 'by/digest' in said      # it has no tag at all, and is left alone
    stored = model.stored_blobs(tree.v2)
    assert digest_of(b'untagged in app') not in stored and by_digest in stored
    assert digest_of(b'untagged in team/other') in stored
    assert whole(tree, 'app') == ['1.0', '2.0']


# --- signatures -----------------------------------------------------------------------------------

@pytest.fixture
def cosigned(tmp_path):
    """Three signed images, and the signatures of two that are gone, which were pushed last."""
    tree = Tree(tmp_path / 'registry')
    tree.own, tree.orphans = [], []
    for number, suffix in enumerate(['.sig', '.att', '.sbom'], 1):
        image = tree.image('app', [b'base', b'%d' % number])
        tree.tag('app', 'v%d' % number, image, (9 - number) * DAY)
        tree.own.append(sign(tree, 'app', image, suffix))
        tree.orphans.append(sign(tree, 'app', digest_of(b'gone %d' % number), suffix))
    return tree


def test_signatures_take_no_place(cosigned):
    assert kept(cosigned, '-i', 'app:*', '--keep-last', '2') == sorted(
        cosigned.own[1:] + cosigned.orphans + ['v2', 'v3'])


@pytest.mark.parametrize('pattern', ['app:*', 'app:?ha256-*', 'app:*.sig', 'app:[s]*', '*:*.s*'])
def test_a_pattern_selects_no_signature(cosigned, pattern):
    cosigned.tag('other', 'x', cosigned.image('other', [b'other']))
    left = kept(cosigned, '-i', pattern, '-x', 'app:v3')
    assert left == sorted(cosigned.orphans + cosigned.own[2:] + ['v3']) or \
        left == sorted(cosigned.orphans + cosigned.own + ['v1', 'v2', 'v3'])


def test_signatures_of_images_of_another_repository(tmp_path):
    """As with COSIGN_REPOSITORY."""
    tree = Tree(tmp_path / 'registry')
    image = tree.image('team/app', [b'image'])
    tree.tag('team/app', '1.0', image)
    signature = sign(tree, 'team/signatures', image)
    tree.tag('team/web', '1.0', tree.image('team/web', [b'web']))
    for request in [['-i', 'team/*:*', '-x', 'team/app'], ['-u'], ['-g'],
                    ['-i', '*:*', '--keep-last', '0', '-x', 'team/app']]:
        delete(tree, *request)
        assert whole(tree, 'team/signatures') == [signature]
    assert tags(tree, 'team/web') == [] and whole(tree, 'team/app') == ['1.0']


def test_clearing_orphans(cosigned):
    everything = tags(cosigned, 'app')
    assert kept(cosigned, '-n', '-i', '*:sha256-*') == everything
    assert kept(cosigned, '-i', '*:sha256-*.att') == sorted(
        set(everything) - {cosigned.orphans[1]})
    assert kept(cosigned, '-i', '*:sha256-*') == sorted(cosigned.own + ['v1', 'v2', 'v3'])
    # Their images are here, so named in full they go all the same.
    assert kept(cosigned, '-i', 'app:' + cosigned.own[0]) == sorted(
        cosigned.own[1:] + ['v1', 'v2', 'v3'])
    assert kept(cosigned, '-i', 'app:v2') == sorted(cosigned.own[2:] + ['v1', 'v3'])


def test_an_orphan_that_is_named_in_full(cosigned):
    delete(cosigned, '-i', 'app:' + cosigned.orphans[0])
    assert cosigned.orphans[0] not in whole(cosigned, 'app')


def test_other_tags_that_begin_with_a_digest(tmp_path):
    """Referrers that any suffix may mark, and tags that are only called so."""
    tree = Tree(tmp_path / 'registry')
    image = tree.image('app', [b'base', b'image'])
    tree.tag('app', '1.0', image)
    referrers = [sign(tree, 'app', image, suffix) for suffix in ['', '.other']]
    ordinary = image.replace(':', '-') + '.imgpkg'
    tree.tag('app', ordinary, image)
    elsewhere = MISSING.replace(':', '-')
    tree.tag('app', elsewhere, tree.image('app', [b'called so']))
    delete(tree, '-n', '-u', '-i', 'app')
    assert kept(tree, '-i', 'app:*', '-x', 'app:1.0') == sorted(referrers + ['1.0'])
    delete(tree, '-i', 'app:1.0')
    assert not os.path.exists(tree.repo('app'))


# --- broken tags, and folders that are no tags ----------------------------------------------------

def the_command(said):
    """The arguments of the command that a message gives."""
    found = re.findall(r"delete_docker_registry_image((?: -[a-z] (?:'[^']*'|\S+))+)", said)
    assert found, said
    return [word.rstrip('.,)') for word in shlex.split(found[0])]


@pytest.mark.parametrize('request_of', [['-i', 'app:1.0'], ['-n', '-i', 'app:1.0']])
@pytest.mark.parametrize('content', [b'', b'garbage', None])
def test_a_broken_tag_that_keeps_something_is_said(tree, request_of, content):
    image = current(tree, 'app', '1.0')
    tree.tag('app', 'latest', image)
    if content is None:
        os.remove(tree.tag_link('app', 'latest'))
    else:
        write(tree.tag_link('app', 'latest'), content)
    said = delete(tree, *request_of)
    assert 'app:latest' in said
    if '-n' in request_of:
        return
    assert model.pull(tree.v2, 'app', image)[1]
    assert the_command(said) == ['-i', 'app:latest']
    delete(tree, *the_command(said))
    assert whole(tree, 'app') == ['2.0'] and image not in model.stored_blobs(tree.v2)


@pytest.mark.parametrize('request_of', [['-u'], ['-u', '-g', '-p'], ['-u', '-i', 'app']])
def test_a_broken_tag_that_keeps_what_is_untagged_is_said(tree, request_of):
    former = tree.image('app', [b'former'])
    tree.tag('app', 'latest', former)
    write(tree.tag_link('app', 'latest'), b'')
    for _ in range(2):      # until it is mended
        said = delete(tree, *request_of)
        assert the_command(said) == ['-i', 'app:latest']
        assert model.pull(tree.v2, 'app', former)[1]
    assert delete(tree, '-q', *request_of) == ''
    delete(tree, *the_command(said))
    assert former not in model.stored_blobs(tree.v2)


def test_a_broken_tag_that_keeps_nothing_is_no_matter(tree):
    tree.tag('app', 'latest', current(tree, 'app', '2.0'))
    write(tree.tag_link('app', 'latest'), b'')
    assert 'latest' not in delete(tree, '-i', 'app:1.0')
    assert 'latest' not in delete(tree, '-u', '-i', 'team/other')


@pytest.mark.parametrize('name', FOREIGN)
@pytest.mark.parametrize('content', [
    [], ['current/link'], ['current/link', 'index'], ['SYNO@.tag']])
def test_a_folder_below_tags_that_is_no_tag(tree, name, content):
    """Whatever is in it, it pins nothing, is not shown, and goes only with its repository."""
    image = tree.image('app', [b'untagged'])
    folder = tree.repo('app', '_manifests', 'tags', name)
    os.makedirs(folder)
    for path in content:
        write(os.path.join(folder, *path.split('/')) if path != 'index' else
              os.path.join(folder, 'index', *image.split(':') + ['link']), image.encode())
    before = snapshot(folder)
    delete(tree, '-u')
    assert image not in model.stored_blobs(tree.v2)
    said = refused(tree, '-n', '-v', '-i', 'app:*', status=0)
    assert name not in said and '2 tags' in said
    assert name not in call('-d', tree.root, '-l', '-i', 'app:*').out
    delete(tree, '-g', '-p', '-i', 'app:1.0')
    assert snapshot(folder) == before
    delete(tree, '-i', 'app:2.0')
    assert not os.path.exists(tree.repo('app'))


@pytest.mark.parametrize('below', ['', 'current', 'index', 'index/sha256',
                                   'index/sha256/' + MISSING[7:]])
def test_an_empty_tag_folder(tree, below):
    """All of it was removed, but for the folder: it is no tag, and can be named."""
    image = tree.image('app', [b'untagged'])
    folder = tree.repo('app', '_manifests', 'tags', 'gone')

    def make():
        os.makedirs(os.path.join(folder, below), exist_ok=True)

    make()
    assert 'gone' not in delete(tree, '-u')
    assert image not in model.stored_blobs(tree.v2)
    for request in [['-g'], ['-i', 'app:gone']]:
        make()
        delete(tree, *request)
        assert not os.path.exists(folder)
    make()
    delete(tree, '-i', 'app:1.0', '-i', 'app:2.0')
    assert not os.path.exists(tree.repo('app'))


# --- repositories that were moved aside by hand ---------------------------------------------------

PARKED = ['_app-disabled', 'App_OLD', 'web (copy)', 'team/_old/app', 'app.2024-01-01',
          '_layers.bak', 'team/App', 'Web \u00e4']
SPECIAL = ['app[old]', 'app*', '[ab]pp', ' app', 'app ', '#app', 'app:1.0', 'app@x', 'a\napp', '-',
           '-i', 'app\r', '\tapp', '"app"', 'localhost', '\udcff', '#recycle/app', 'team/ other']


@pytest.mark.parametrize('name', PARKED)
def test_a_parked_repository_protects_its_blobs_and_can_be_named(tree, name):
    shutil.copytree(tree.repo('app'), tree.repo(name))
    delete(tree, '-g', '-p', '-i', 'app')
    assert whole(tree, name) == ['1.0', '2.0']
    listed = call('-d', tree.root, '-l', '-q')
    assert sorted(listed.out.splitlines()) == sorted([name, 'team/other'])
    delete(tree, '-i', name + ':1.0')
    assert whole(tree, name) == ['2.0']
    delete(tree, '-i', '*:2.0', '-x', name)
    assert whole(tree, name) == ['2.0']
    delete(tree, '-i', name)
    assert not os.path.exists(tree.repo(name)) and whole(tree, 'team/other') == ['1.0']


@pytest.mark.parametrize('name', PARKED + SPECIAL)
def test_the_list_can_be_fed_back(tree, name):
    """It deletes what was listed, or less; never something else that is spelled so."""
    assert name not in ('app', 'team/other')
    tree.tag('appo', '1.0', tree.image('appo', [b'base', b'appo']))     # what app[old] matches
    shutil.copytree(tree.repo('app'), tree.repo(name))
    others = {repo: snapshot(tree.repo(*repo.split('/')))
              for repo in ['app', 'appo', 'team/other']}
    listed = run('-d', tree.root, '-l', '-q', environment={'LC_ALL': 'C.UTF-8'})
    assert listed.status == 0
    chosen = set(listed.out.split('\n')) - set(others) - {''}
    result = from_stdin(tree, '\n'.join(chosen).encode(errors='surrogateescape'))
    assert {repo: snapshot(tree.repo(*repo.split('/'))) for repo in others} == others, result
    assert whole(tree, 'app') and whole(tree, 'appo') and whole(tree, 'team/other')
    if name in PARKED:
        assert result.status == 0 and not os.path.exists(tree.repo(name))


def test_a_name_that_looks_like_a_pattern(tree):
    """What a listing holds exactly is meant."""
    for name in ['app[old]', 'appo', 'appd']:
        shutil.copytree(tree.repo('app'), tree.repo(name))
    delete(tree, '-i', 'app[old]')
    assert not os.path.exists(tree.repo('app[old]'))
    assert whole(tree, 'appo') == whole(tree, 'appd') == ['1.0', '2.0']
    delete(tree, '-i', 'app[old]')      # now it is one
    assert tags(tree, 'appo') == tags(tree, 'appd') == [] and whole(tree, 'app')


@pytest.mark.parametrize('folder', ['.snapshot', '.zfs', '#snapshot', '@eaDir'])
@pytest.mark.parametrize('place', ['', 'team', 'app'])
def test_copies_of_the_storage_itself_are_no_repositories(tree, folder, place):
    copy = tree.repo(place, folder, 'daily') if place else os.path.join(
        tree.v2, 'repositories', folder, 'daily')
    shutil.copytree(tree.repo('app'), copy + '/app')
    before = snapshot(copy)
    image = current(tree, 'app', '1.0')
    assert folder not in call('-d', tree.root, '-l').out
    delete(tree, '-g', '-p', '-i', 'app:1.0')
    assert snapshot(copy) == before and image not in model.stored_blobs(tree.v2)


# --- images from standard input -------------------------------------------------------------------

def from_stdin(tree, text, *arguments, image='-i', environment=()):
    with open(os.path.join(os.path.dirname(tree.root), 'input'), 'wb+') as file:
        file.write(text)
        file.seek(0)
        return run('-d', tree.root, image, '-', *arguments, stdin=file, environment=environment)


@pytest.mark.parametrize('text', [
    b'app:1.0\r\n\n  team/oth*:*\n', b'app:1.0\nteam/other',
    b'\n\n\tapp:1.0 \nteam/other:1.0\n\n', b'app:1.0\r\n#x\r\n\r\nteam/*\r\n',
    b'# old images\napp:1.0\n  # and\n#app:2.0\nteam/other\n#',
    b'app:/1.*/\nteam/other\nlocalhost:5000/app:1.0\n'])
def test_images_from_standard_input(tree, text):
    result = from_stdin(tree, text)
    assert result.status == 0, result.said
    assert tags(tree, 'app') == ['2.0'] and tags(tree, 'team/other') == []


def test_images_from_both(tree):
    assert from_stdin(tree, b'app:1.0', '-i', 'team/other:1.0').status == 0
    assert tags(tree, 'app') == ['2.0'] and tags(tree, 'team/other') == []


def test_exclusions_from_standard_input(tree):
    """What is in use, as a cluster says it."""
    image = current(tree, 'app', '2.0')
    result = from_stdin(tree, b'# in use\r\n\r\nregistry.example.com/app@%s\r\n  *:x\n'
                        % image.encode(), '-i', 'app', '-g', image='-x')
    assert result.status == 0, result.said
    assert whole(tree, 'app') == ['2.0']
    for text in [b'app:2.0\nnothing\n', b'nothing:1.0']:
        before = snapshot(tree.root)
        result = from_stdin(tree, text, '-i', 'app', image='-x')
        assert result.status == 1 and 'Nothing was deleted' in result.said
        assert snapshot(tree.root) == before


def test_standard_input_has_one_meaning(tree):
    before = snapshot(tree.root)
    for arguments in [['-x', '-'], ['-i', '-']]:
        result = from_stdin(tree, b'app:1.0\n', *arguments)
        assert result.status in (0, 2), result
        assert result.status == 2 or arguments[0] == '-i' or snapshot(tree.root) == before
    assert tags(tree, 'app')[-1] == '2.0' and tags(tree, 'team/other') == ['1.0']


@pytest.mark.parametrize('text', [b'', b'\n', b' \n\t\n', b'# nothing\n\n  # today'])
@pytest.mark.parametrize('arguments', [
    [], ['-u'], ['-n'], ['--keep-last', '0'], ['-x', 'app'], ['--older-than', '1h'], ['-l']])
def test_empty_standard_input_is_nothing_to_do(tree, text, arguments):
    before = snapshot(tree.root)
    result = from_stdin(tree, text, '--json', *arguments)
    assert result.status == 0, result.said
    found = json.loads(result.out)
    assert found.get('tags', []) == found.get('blobs', []) == found.get('images', []) == []
    assert snapshot(tree.root) == before


def test_standard_input_that_makes_no_sense(tree):
    before = snapshot(tree.root)
    for text, status in [(b'app:1.0\n../etc\n', 2), (b'app:1.0\napp:\n', 2),
                         (b'app:1.0\nnothing:1.0\n', 1), (b'app:1.0\n\xff\n', 2),
                         (b'app:1.0\n-\n', 2), (b'app:1.0\0\n', 2), (b'app:1.0 app:2.0\n', 2),
                         (b'app:1.0 # the old one\n', 2), (b'app:1.0\x0c\n\x85x\n', 2),
                         (b'\xef\xbb\xbfnothing\n', None), (b'a\xe2\x80\xa8app:1.0\n', 2)]:
        for image in ['-i', '-x']:
            result = from_stdin(tree, text, *['-i', 'app'] * (image == '-x'), image=image)
            assert result.status == status or status is None and result.status in (1, 2), text
            assert snapshot(tree.root) == before


@pytest.mark.parametrize('errors', ['strict', 'surrogateescape'])
def test_standard_input_that_is_not_utf8(tree, errors):
    before = snapshot(tree.root)
    result = from_stdin(tree, b'app:1.0\nsch\xf6n:1.0\n',
                        environment={'PYTHONIOENCODING': 'utf-8:' + errors})
    assert result.status == 2
    assert snapshot(tree.root) == before


def test_closed_standard_input_is_nothing_to_do(tree):
    before = snapshot(tree.root)
    result = run('-d', tree.root, '-i', '-', command=[
        'bash', '-c', '"$@" <&-', 'bash', sys.executable, SCRIPT])
    assert result.status in (0, 2)
    assert snapshot(tree.root) == before


# --- in the middle of what it writes --------------------------------------------------------------

def interrupted_while_writing(tree, stream, *arguments):
    """(exit status, standard output, the rest of standard error) of a run that gets SIGINT.

    It waits then, since the pipe that is its `stream` is full.
    """
    for number in range(1500):
        tree.tag('app', '%s-%d' % ('a' * 60, number), current(tree, 'app', '1.0'))
    process = subprocess.Popen([sys.executable, SCRIPT, '-d', tree.root] + list(arguments),
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    begun = {stream: getattr(process, stream).read(1000)}
    time.sleep(0.3)  # until it is
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert b'Traceback' not in said, said
    return process.returncode, (begun.get('stdout', b'') + out).decode(), said.decode()


@pytest.mark.parametrize('arguments', [
    ['-l', '-i', 'app:*'], ['-l', '--json', '-i', 'app:*'], ['-n', '-q', '--json', '-i', 'app:*']])
def test_an_interruption_while_the_result_is_written(tree, arguments):
    status, out, said = interrupted_while_writing(tree, 'stdout', *arguments)
    assert status == 130 and len(out) > 1000


def test_an_interruption_after_all_is_deleted(tree):
    """The report and the result still say what is gone."""
    status, out, said = interrupted_while_writing(tree, 'stderr', '-v', '--json', '-i', 'app')
    assert status == 130 and 'Interrupted' in said
    assert 'next run' not in said
    assert json.loads(out)['repositories'] == ['app'] and not os.path.exists(tree.repo('app'))


# --- while a registry runs ------------------------------------------------------------------------

def test_the_list_while_the_registry_runs(tmp_path):
    with Registry(tmp_path / 'registry') as registry:
        registry.push_image('app', '1.0', [b'base', b'one'])
        registry.push_image('app', '2.0', [b'base', b'two'])
        pulled = registry.pull('app', '1.0')
        before = snapshot(registry.v2)
        result = run('-d', registry.root, '-l', '-i', 'app:*', '--json')
        promised = {image['tag']: image for image in json.loads(result.out)['images']}
        assert result.status == 0 and sorted(promised) == ['1.0', '2.0']
        assert snapshot(registry.v2) == before
        assert registry.pull('app', '1.0') == pulled
        sizes = model.stored_blobs(registry.v2)
        assert promised['1.0']['size'] == sum(sizes[digest] for digest in pulled)
        registry.stop()
        result = run('-d', registry.root, '-i', 'app:1.0', '--json')
        assert json.loads(result.out)['freed'] == promised['1.0']['frees'] == sum(
            sizes.values()) - sum(model.stored_blobs(registry.v2).values())


# --- terminals ------------------------------------------------------------------------------------

class Terminal:
    """A pseudo-terminal that remembers everything written to it."""

    def __init__(self, columns):
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
        self.written = b''
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        with contextlib.suppress(OSError):      # that is how the end of a terminal reads
            while True:
                self.written += os.read(self.master, 65536)

    def text(self):
        """All that was written, after the end of the run."""
        os.close(self.slave)
        self.reader.join()
        os.close(self.master)
        return self.written.decode().replace('\r\n', '\n')

    @staticmethod
    def screen(text):
        """What is to be seen in the end, with each erased line gone."""
        return '\n'.join(line.split('\r\x1b[K')[-1] for line in text.split('\n'))


def on_terminal(columns, *arguments, out=True, said=True, environment=(), **options):
    """(exit status, standard output, standard error), each a terminal or a pipe."""
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith('REGISTRY_') and name not in ('COLUMNS', 'LINES', 'NO_COLOR')}
    clean.update({'TERM': 'xterm-256color', 'LC_ALL': 'C.UTF-8'})
    clean.update(environment)
    terminals = [Terminal(columns) if wanted else None for wanted in (out, said)]
    done = subprocess.Popen([sys.executable, SCRIPT] + list(arguments), env=clean,
                            stdin=subprocess.DEVNULL, **{
                                name: one.slave if one else subprocess.PIPE
                                for name, one in zip(['stdout', 'stderr'], terminals)})
    piped = done.communicate(timeout=60)
    texts = [one.text() if one else text.decode() for one, text in zip(terminals, piped)]
    assert 'Traceback' not in texts[1], texts[1]
    return [done.returncode] + texts


DATED = r'(?m)^[A-Z]+ +\[|\d{4}-\d\d-\d\d \d\d:\d\d'


def test_on_a_terminal_there_is_no_time_in_front(tree):
    status, out, said = on_terminal(100, '-d', tree.root, '-f', '-i', 'app:1.0', out=False)
    assert (status, out) == (0, '') and not re.search(DATED, said)
    assert re.search('(?m)^Deleted tag app:1.0', said)      # bare
    assert re.search('(?m)^(?!Deleted).*no effect', said)
    status, out, said = on_terminal(100, '-d', tree.root, '-i', 'nothing', out=False)
    assert status == 1 and not re.search(DATED, said) and 'No repository' in said


def test_in_a_file_there_is(tree):
    status, out, said = on_terminal(100, '-d', tree.root, '-i', 'app:1.0', said=False)
    assert status == 0 and all(re.match(DATED, line) for line in said.splitlines())


# --- progress -------------------------------------------------------------------------------------

@pytest.fixture(scope='session')
def latency(tmp_path_factory):
    """A library that makes every file call slow."""
    library = str(tmp_path_factory.mktemp('latency') / 'latency.so')
    subprocess.check_call(['gcc', '-O2', '-shared', '-fPIC', '-o', library,
                           os.path.join(HERE, 'latency.c'), '-ldl'])
    return library


@pytest.fixture
def slow(tmp_path, latency):
    """A store of 25 repositories, and the environment that makes it slow."""
    tree = Tree(tmp_path / 'slow')
    for number in range(25):
        repo = 'app/%d' % number
        tree.tag(repo, '1.0', tree.image(repo, [b'base', b'%d' % number * 1000]))
    tree.environment = {'LD_PRELOAD': latency, 'LATENCY_ROOT': tree.root,
                        'LATENCY_MICROSECONDS': '1200'}
    return tree


def progress_lines(said):
    """Every progress line that was drawn, each erased by what comes next."""
    return re.findall(r'\r\x1b\[K([^\r\n]+)(?=\r\x1b\[K)', said)


def drawn(slow, *arguments, columns=100, **options):
    """Run slowly on a terminal, one call at a time; the progress lines, and what is left to see."""
    status, out, said = on_terminal(columns, '-j', '1', '-d', slow.root, *arguments,
                                    environment=slow.environment, **options)
    assert status == 0, said
    return progress_lines(said), Terminal.screen(said), out


def test_progress_of_a_slow_run_appears_and_vanishes(slow):
    lines, screen, _ = drawn(slow, '--allow-remove-all', '-i', '*')
    assert any(re.match(r'Reading repositories \d+ of 25$', line) for line in lines), lines
    assert any(re.search(r'Deleting .*\d+ of \d+', line) for line in lines), lines
    assert max(map(len, lines)) < 100
    # Messages are whole, and nothing else is left.
    assert screen.count('Deleted repository app/') == 25
    for line in screen.splitlines():
        assert re.match(r'[A-Z][a-z]+ .*[^ ]$', line), line
    assert not any('Reading repositories' in line for line in screen.splitlines())


def test_a_terminal_that_is_closed_during_the_run(slow):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, SCRIPT, '-j', '1', '-d', slow.root, '-p', '-i', '*',
         '--allow-remove-all'], stderr=slave,
        stdin=subprocess.DEVNULL, env=dict(os.environ, **slow.environment))
    os.close(slave)
    assert os.read(master, 5)  # of the first progress line
    os.close(master)
    assert process.wait(timeout=60) == 0
    assert snapshot(slow.v2).keys() == {'.', 'blobs', 'repositories'}


@pytest.mark.parametrize('arguments', [['-n', '-i', 'app/?'], ['-l'], ['-l', '--json'],
                                       ['-n', '-g', '--json']])
def test_progress_of_a_slow_look(slow, arguments):
    lines, screen, out = drawn(slow, *arguments, out=False)
    assert any(re.match(r'Reading repositories \d+ of \d+$', line) for line in lines), lines
    assert 'Reading' not in screen and 'Reading' not in out and '\x1b' not in out
    if '--json' in arguments:
        json.loads(out)


def test_the_table_is_whole_on_the_same_terminal(slow):
    terminal = Terminal(100)
    subprocess.run([sys.executable, SCRIPT, '-l', '-j', '1', '-d', slow.root],
                   stdin=subprocess.DEVNULL, stdout=terminal.slave, stderr=terminal.slave,
                   env=dict(os.environ, **slow.environment), timeout=60)
    text = terminal.text()
    assert progress_lines(text)
    screen = Terminal.screen(text).splitlines()
    assert screen[0].startswith('IMAGE ') or screen[0].startswith('REPOSITORY ')
    assert len([line for line in screen if line.startswith('app/')]) == 25
    assert not any('Reading' in line for line in screen)


def test_progress_vanishes_before_a_message(slow):
    digest = slow.manifest('app/7', b'[]')
    slow.layer('app/7', b'unused')
    status, _, said = on_terminal(100, '-j', '1', '-d', slow.root, '-g',
                                  environment=slow.environment)
    assert status == 1 and progress_lines(said)
    assert digest in said and 'Reading' not in Terminal.screen(said)


def test_no_progress_when_quiet(slow):
    assert on_terminal(100, '-q', '-j', '1', '-d', slow.root, '-i', 'app/[01]',
                       environment=slow.environment) == [0, '', '']


def test_no_progress_in_a_pipe(slow):
    status, out, said = on_terminal(100, '-j', '1', '-d', slow.root, '-n', '-i', 'app/?',
                                    said=False, environment=slow.environment)
    assert (status, out) == (0, '')
    assert '\r' not in said and '\x1b' not in said and 'Reading' not in said


def test_no_progress_of_a_short_run(tree):
    status, _, said = on_terminal(100, '-d', tree.root, '-i', 'app:1.0')
    assert status == 0 and '\r' not in said and '\x1b' not in said


def test_the_progress_line_is_never_wider_than_its_terminal(slow):
    """Also where standard output is elsewhere: what wraps cannot be erased."""
    lines, screen, _ = drawn(slow, '-i', 'app/1*', columns=30, out=False)
    assert lines and max(map(len, lines)) < 30
    assert 'Reading' not in screen


# --- nobody reads, or nothing can be written ------------------------------------------------------

@pytest.mark.parametrize('redirection', ['| true', '> /dev/full'])
def test_a_result_that_nobody_gets(tree, redirection):
    shell = '"$0" "$1" -d "$2" -n --json -i app %s; exit ${PIPESTATUS[0]}' % redirection
    done = subprocess.run(['bash', '-c', shell, sys.executable, SCRIPT, tree.root],
                          stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0 and 'Traceback' not in done.stderr
    assert '/dev/full' not in redirection or (
        'Cannot write to standard output: No space left on device' in done.stderr)


def test_a_name_that_is_no_text(tree):
    shutil.copytree(os.fsencode(tree.repo('app')), os.fsencode(tree.repo('team')) + b'/\xff')
    done = subprocess.run([sys.executable, SCRIPT, '-d', tree.root, '-l'], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    assert done.returncode == 0 and b'team/\\udcff' in done.stdout
