"""--check: every byte of what is selected is read, once, and the damage that is there is named.

Damage is planted in known blobs; which images have a part in them is worked out by model.py.
"""

import json
import os
import re
import sys

import pytest
from hypothesis import event, given, note, settings, strategies as st

import delete_docker_registry_image as script
import model
from test_command import (
    AS_ROOT, call, current, others_tree, run, run_as_other, small_registry,
)
from test_list import by_word, damages, image_of_size, listed, the_json, whole_images, word
from test_trees import ABSENT, a_tree, describe
from tree import Tree, digest_of, snapshot, write

__all__ = ['others_tree']       # a fixture


@pytest.fixture
def tree(tmp_path):
    return small_registry(tmp_path / 'registry')


def checked(tree, *arguments, status=3):
    return the_json('-d', tree.v2, '--check', *arguments, status=status)


def damaged(listing):
    """word -> what is wrong with it, as one text."""
    return {word(line): json.dumps(line['damage']) for line in listing['images']
            if line['damage']}


# --- exactly the damage that was planted ----------------------------------------------------------

def flip(path, draw):
    """Change one bit of one byte."""
    with open(path, 'r+b') as file:
        data = bytearray(file.read())
        place = draw(st.integers(0, len(data) - 1))
        data[place] ^= 1 << draw(st.integers(0, 7))
        file.seek(0)
        file.write(data)


def cut(path, draw):
    os.truncate(path, draw(st.integers(0, os.path.getsize(path) - 1)))


def lengthen(path, draw):
    with open(path, 'ab') as file:
        file.write(b'\0' * draw(st.integers(1, 3)))


def remove(path, draw):
    os.remove(path)


def parts_of(repo, digests):
    """The blobs that a registry reads to serve these manifests whole, signatures aside."""
    found = set()
    for digest in repo.reach(digests, repo.owned_tags()):
        found |= {digest} | {model.stored_under(name, repo.layers.get(name))
                             for name in repo.names(digest)
                             if name in repo.layers or name in repo.manifests}
    return found


def images(v2):
    """word -> the blobs of each repository's images."""
    return {name: parts_of(repo, set(repo.revisions))
            for name, repo in model.repositories(v2).items()}


def tag_images(v2):
    """word -> the blobs of each tag."""
    return {'%s:%s' % (name, tag): parts_of(repo, {digest})
            for name, repo in model.repositories(v2).items()
            for tag, digest in repo.tags.items() if tag in repo.ordinary_tags()}


def linked(v2, word):
    """The blobs that a repository links: what else may be found damaged of it."""
    repo = model.repositories(v2).get(word)
    return {blob for _, blob, _ in model.repo_links(repo)} if repo else set()


@pytest.mark.parametrize('request_of, parts', [([], images), (['-i', '*:*'], tag_images)])
@given(data=st.data())
@settings(max_examples=20)
def test_check_finds_exactly_the_damage_planted(request_of, parts, data):
    with a_tree(data, steps=10) as builder:
        tree = builder.tree
        before = damaged(the_json('-d', tree.v2, '-l', *request_of))
        blobs = sorted({digest for found in parts(tree.v2).values() for digest in found
                        if digest and os.path.exists(tree.blob_path(digest))
                        and os.path.getsize(tree.blob_path(digest))})
        assert damaged(checked(tree, *request_of, status=3 if before else 0)) == before
        planted = set(builder.some(blobs, 3))
        for digest in sorted(planted):
            builder.pick(flip, flip, cut, lengthen, remove)(tree.blob_path(digest), builder.draw)
        # What a manifest that is damaged now has named, nobody can know any more: a tag that was a
        # referrer's may have become an ordinary one, with a line of its own.
        of, store = parts(tree.v2), snapshot(tree.v2)
        owned = set() if parts is images else {
            '%s:%s' % (name, tag) for name, repo in model.repositories(tree.v2).items()
            for tag in repo.owned_tags()}
        event('%d planted' % len(planted))
        try:
            result = call('-d', tree.v2, '--check', '--json', *request_of)
            found = damaged(json.loads(result.out))
            assert result.status == (3 if found else 0)
            assert snapshot(tree.v2) == store, 'the check changed something'
            for name in of:
                for digest in of[name] & planted:
                    assert any(digest in found.get(word, '')
                               for word in {name} | owned), 'not found'
                if name in found and name not in before:
                    assert (of[name] | linked(tree.v2, name)) & planted, 'found, and is whole'
            assert set(before) <= set(found) <= of.keys() | owned
        except (AssertionError, KeyError):
            note('\n'.join(describe(store) + ['planted %s' % planted]))
            raise


# --- what is read ---------------------------------------------------------------------------------

# What a process has read, by the kernel's account, at the end of a check.
MEASURED = """
import sys
sys.path.insert(0, %r)
import delete_docker_registry_image as script
def read_so_far():
    with open('/proc/self/io') as file:
        return int(file.readline().split()[1])
before = read_so_far()
status = script.main(sys.argv[1:])
print('read', read_so_far() - before)
sys.exit(status)
""" % os.path.dirname(script.__file__)


def bytes_read(tree, *arguments, status=0):
    result = run('-d', tree.root, *arguments, command=[sys.executable, '-c', MEASURED])
    assert result.status == status, result.said
    return int(re.search(r'(?m)^read (\d+)$', result.out).group(1))


MIB = 1 << 20


@pytest.mark.skipif(not os.path.exists('/proc/self/io'), reason='the kernel keeps no account')
def test_each_blob_is_read_once_and_whole(tmp_path):
    """Ten images in two repositories over the same 4 MiB, and 1 MiB that another one has."""
    tree = Tree(tmp_path)
    for number in range(10):
        repo = 'app' if number % 2 else 'team/app'
        tree.tag(repo, str(number), tree.image(repo, [b'\1' * 4 * MIB, b'%d' % number]))
    tree.tag('other', '1.0', tree.image('other', [b'\2' * MIB]))
    room = MIB // 2         # links, manifests, and what else a run reads
    assert 5 * MIB <= bytes_read(tree, '--check') < 5 * MIB + room
    assert 4 * MIB <= bytes_read(tree, '--check', '-i', 'app', '-i', 'team/*') < 4 * MIB + room
    assert MIB <= bytes_read(tree, '--check', '-x', 'app', '-x', 'team/app') < MIB + room
    assert bytes_read(tree, '-l') < room, 'the list tells damage from names and sizes'
    tree.corrupt_blob(digest_of(b'\1' * 4 * MIB))
    assert 5 * MIB <= bytes_read(tree, '--check', status=3) < 5 * MIB + room


def test_only_what_is_selected_is_read(tree):
    tree.corrupt_blob(digest_of(b'app:1.0'))
    assert list(damaged(checked(tree, '-i', 'app:*'))) == ['app:1.0']
    assert damaged(checked(tree, '-i', 'app:2.0', status=0)) == {}
    assert damaged(checked(tree, '-i', 'app:*', '-x', 'app:1.0', status=0)) == {}
    assert damaged(checked(tree, '-i', 'team/*', status=0)) == {}
    tree.image('app', [b'no tag'])
    tree.corrupt_blob(digest_of(b'no tag'))
    assert len(damaged(checked(tree, '-u'))) == 1


# --- kinds of damage ------------------------------------------------------------------------------

def test_each_kind_of_damage(tree):
    damages(tree)
    whole_images(tree)
    flipped = tree.image('bad', [b'a byte of this will differ'])
    tree.tag('bad', 'flipped', flipped)
    tree.corrupt_blob(digest_of(b'a byte of this will differ'))
    manifest = tree.image('bad', [b'a byte of its manifest will differ'])
    tree.tag('bad', 'manifest', manifest)
    tree.corrupt_blob(manifest)
    seen = damaged(listed(tree, '-i', '*:*'))
    assert 'bad:flipped' not in seen, 'names and sizes do not tell'
    found = damaged(checked(tree, '-i', '*:*'))
    assert set(found) == set(seen) | {'bad:flipped', 'bad:manifest'}
    assert digest_of(b'a byte of this will differ')[7:19] in found['bad:flipped']
    assert all(name.startswith('bad:') for name in found)


def test_what_is_said_of_damage(tree):
    """Which image, which blob, what is wrong with it, and what to do."""
    layer = digest_of(b'app:1.0')
    tree.corrupt_blob(layer)
    result = run('-d', tree.root, '--check')
    said = result.out + result.said
    assert result.status == 3
    assert 'app:1.0' in said and layer[7:19] in said
    assert 'app:2.0' not in said and 'team/other' not in said
    assert re.search('push|pull|delete', said, re.IGNORECASE), said


def test_a_whole_registry(tree):
    result = run('-d', tree.root, '--check')
    assert result.status == 0 and 'damage' in (result.out + result.said).lower()
    assert run('-d', tree.root, '-q', '--check')[1:] == ('', '')


def test_a_blob_that_is_no_file(tree):
    """Neither a pipe nor a folder can hang it or stop it."""
    for data, make in [(b'app:1.0', os.mkfifo), (b'app:2.0', os.mkdir)]:
        os.remove(tree.blob_path(digest_of(data)))
        make(tree.blob_path(digest_of(data)))
    assert set(damaged(checked(tree, '-i', '*:*'))) == {'app:1.0', 'app:2.0'}


def test_a_bad_sector(tree):
    path = tree.blob_path(digest_of(b'app:1.0'))
    os.remove(path)
    os.symlink('/proc/self/mem', path)      # reading it is an I/O error
    found = damaged(checked(tree, '-i', '*:*'))
    assert list(found) == ['app:1.0']


@pytest.mark.skipif(not AS_ROOT, reason='takes a user whom the files do not obey')
def test_a_blob_that_may_not_be_read(others_tree):
    os.chmod(others_tree.blob_path(digest_of(b'app:1.0')), 0)
    result = run_as_other(others_tree, '--check', '--json', '-i', '*:*')
    assert result.status == 3, result.said
    assert list(damaged(json.loads(result.out))) == ['app:1.0']
    assert re.search('Permission denied', result.out + result.said)


def test_a_layer_of_another_size_than_its_manifest_says(tree):
    """The blob is what its digest says; the registry's clients refuse it all the same."""
    layer = tree.layer('app', b'ten bytes.')
    tree.tag('app', 'lie', image_of_size(tree, 'app', layer, 11))
    assert list(damaged(listed(tree, '-i', 'app:*'))) == ['app:lie']
    assert list(damaged(checked(tree, '-i', 'app:*'))) == ['app:lie']


def test_a_sha512_layer_is_read_under_the_name_that_it_is_stored_under(tree):
    layer = tree.layer('app', b'wide', 'sha512')
    tree.tag('app', 'wide', image_of_size(tree, 'app', layer, len(b'wide')))
    checked(tree, status=0)
    tree.corrupt_blob(digest_of(b'wide'))
    assert list(damaged(checked(tree, '-i', '*:*'))) == ['app:wide']


def test_damage_that_many_share_is_named_with_each(tree):
    tree.corrupt_blob(digest_of(b'base'))
    assert set(damaged(checked(tree, '-i', '*:*'))) == {'app:1.0', 'app:2.0', 'team/other:1.0'}
    assert set(damaged(checked(tree))) == {'app', 'team/other'}


def test_an_image_of_another_registry(tree):
    """A tag whose manifest was deleted over the API is no image; a child elsewhere no damage."""
    tree.tag('app', 'absent', ABSENT)
    tree.tag('app', 'sparse', tree.index('app', [current(tree, 'app', '1.0'), ABSENT]))
    assert set(damaged(checked(tree, '-i', 'app:*'))) == {'app:absent'}


# --- together with what ---------------------------------------------------------------------------

@pytest.mark.parametrize('arguments', [
    ['-l'], ['-n', '-p'], ['-g'], ['-p'], ['--save', 'FILE'], ['--keep-last', '2'],
    ['-i', 'app', '--keep-last', '2']])
def test_what_makes_no_sense_with_a_check(tree, arguments):
    before = snapshot(tree.root)
    assert call('-d', tree.root, '--check', *arguments).status == 2
    assert snapshot(tree.root) == before


def test_the_json_of_a_check(tree):
    write(tree.blob_path(digest_of(b'app:1.0')), b'')
    found = the_json('-d', tree.root, '--check', '-i', '*:*', status=3, run=run)
    assert list(found) == ['registry', 'images', 'total']
    assert by_word(found)['app:1.0']['damage']
    assert found['registry'] == tree.v2
