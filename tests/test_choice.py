"""What to delete, seen and chosen: -l, --json, -x, --keep-last, --older-than, -i -, and progress.

What the list promises is compared with what a deletion on a copy of the store really frees, and
what is selected by rule with the same rule, said once more in plain words.
"""

import contextlib
import fcntl
import fnmatch
import json
import os
import pty
import re
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

import delete_docker_registry_image as script
import model
from registry import Registry
from test_command import (
    NOBODY, SCRIPT, call, current, others_tree, run, run_as_other, small_registry, tags,
)
from test_garbage import a_copy, an_exclusion, check, litter
from test_trees import ABSENT, NAMES, a_tree, an_image, describe, served
from tree import DAY, GARBAGE, Tree, digest_of, encode, set_age, snapshot, write

HOUR = 3600
HERE = os.path.dirname(os.path.abspath(__file__))
MISSING = 'sha256:' + '0' * 64
__all__ = ['others_tree']       # a fixture


@pytest.fixture
def tree(tmp_path):
    return small_registry(tmp_path / 'registry')


def the_json(*arguments, status=0, run=call, **options):
    """Run with --json; the one object on standard output."""
    result = run(*arguments, '--json', **options)
    assert result.status == status, result.said
    return json.loads(result.out)


def listed(tree, *arguments, status=0):
    return the_json('-d', tree.v2, '-l', *arguments, status=status)


def names(listing):
    return ['%s:%s' % (image['repository'], image['tag']) for image in listing['images']]


# --- what the list promises -----------------------------------------------------------------------

def check_promises(v2):
    """Each number of the list, against the model and against real deletions on copies."""
    before, stored, store = snapshot(v2), model.stored_blobs(v2), model.repositories(v2)
    try:
        listing = the_json('-d', v2, '-l')
        assert snapshot(v2) == before, 'the list changed something'
        assert {(image['repository'], image['tag']) for image in listing['images']} == {
            (name, tag) for name, repo in store.items() for tag in repo.tags}
        for image in listing['images']:
            name, tag = image['repository'], image['tag']
            assert image['digest'] == (store[name].tags[tag] or None)
            assert image['size'] == model.size(v2, store[name], tag), (name, tag)
            assert image['frees'] == really_freed(v2, '-i', '%s:%s' % (name, tag)), (name, tag)
        order = [-image['frees'] for image in listing['images']]
        assert order == sorted(order)
        total = listing['total']
        assert total == {
            'repositories': len(store), 'tags': len(listing['images']),
            'manifests': sum(len(repo.revisions) for repo in store.values()),
            'blobs': len(stored), 'size': sum(stored.values()),
            'untagged': really_freed(v2, '-u', '-i', '*', refused=None),
            'garbage': really_freed(v2, '-g', refused=None)}
        event('%d listed' % len(listing['images']))
    except AssertionError:
        note('\n'.join(describe(before)))
        raise


def really_freed(v2, *arguments, refused=0):
    """The bytes that a run frees, on a copy; `refused` where it frees nothing for a reason."""
    with a_copy(v2) as copy:
        before = sum(model.stored_blobs(copy).values())
        result = call('-d', copy, '--json', *arguments)
        freed = before - sum(model.stored_blobs(copy).values())
        if result.status == 1:
            assert freed == 0 and list(json.loads(result.out)) == ['error']
            return refused
        assert result.status == 0, result.said
        assert json.loads(result.out)['freed'] == freed
        return freed


@given(st.data())
@settings(max_examples=80)
def test_the_list_promises_what_a_deletion_frees(data):
    with a_tree(data, steps=12) as builder:
        litter(builder, 3)
        check_promises(builder.tree.v2)


@given(st.data())
@settings(max_examples=60)
def test_the_list_of_a_damaged_store(data):
    with a_tree(data, damage=3) as builder:
        check_promises(builder.tree.v2)


def test_a_blob_that_two_tags_share_is_freed_by_neither(tree):
    sizes = model.stored_blobs(tree.v2)
    listing = listed(tree)
    for image in listing['images']:
        own = '%s:%s' % (image['repository'], image['tag'])
        assert image['frees'] == sum(sizes[digest] for digest in [
            image['digest'], digest_of(own.encode()), digest_of(encode({'for': own}))])
        assert image['size'] == image['frees'] + len(b'base')


def test_the_size_counts_a_layer_that_was_pushed_under_sha512(tree):
    layer = tree.layer('app', b'pushed as sha512', 'sha512')
    tree.tag('app', 'wide', tree.image('app', [layer]))
    wide = listed(tree, '-i', 'app:wide')['images'][0]
    manifest = len(model.blob(tree.v2, wide['digest']))
    assert wide['size'] == wide['frees'] == len(b'pushed as sha512') + len(b'{}') + manifest


def test_the_size_of_a_broken_tag_is_that_of_all_it_may_stand_for(tree):
    size = listed(tree, '-i', 'app:1.0')['images'][0]['size']
    write(tree.tag_link('app', '1.0'), b'')
    broken = listed(tree, '-i', 'app:1.0')['images'][0]
    assert (broken['digest'], broken['size']) == (None, size)


# --- selected by rule -----------------------------------------------------------------------------

AGES = [hours * HOUR for hours in (0.5, 0.5, 5.5, 5.5, 23.5, 24.5, 47.5, 24 * 7.5, -1.5)]
OLDER = {None: None, '1h': HOUR, '6h': 6 * HOUR, '1d': DAY, '2d': 2 * DAY, '1w': 7 * DAY}


def set_times(builder, now):
    """Give every tag a push time; some are the same. (One is in the future: clocks differ.)"""
    for name in NAMES:
        folder = builder.tree.repo(name, '_manifests', 'tags')
        for tag in model.listing(folder):
            path = os.path.join(folder, tag, 'current', 'link')
            if os.path.exists(path):
                then = now - builder.pick(*AGES)
                os.utime(path, (then, then))


def plainly_chosen(v2, images, excluded, keep_last, older_than, now):
    """The rule: of the tags that match, first those that -x names are left out, then the
    --keep-last newest; of the rest, those --older-than AGE go; a tie at the cut is kept."""
    chosen = set()
    for name, repo in model.repositories(v2).items():
        def matching(image):
            wanted_name, _, wanted = image.partition(':')
            if not fnmatch.fnmatchcase(name, wanted_name) or '@' in image:
                return set()
            if not wanted:
                return set(repo.tags)
            literal = not re.search(r'[*?[]', wanted)
            return {tag for tag in repo.tags if fnmatch.fnmatchcase(tag, wanted)
                    and (literal or tag in repo.ordinary_tags())}

        pushed = {}
        for tag in repo.tags:
            with contextlib.suppress(FileNotFoundError):
                pushed[tag] = os.stat(os.path.join(
                    v2, 'repositories', name, '_manifests/tags', tag, 'current/link')).st_mtime
        for image in images:
            left = matching(image).difference(*map(matching, excluded))
            for tag in left:
                if keep_last is not None or older_than is not None:
                    if tag not in pushed:
                        continue        # nobody knows its age
                    newer = [other for other in left if pushed.get(other, 0) > pushed[tag]]
                    if keep_last is not None and len(newer) < keep_last:
                        continue
                    if older_than is not None and pushed[tag] >= now - older_than:
                        continue
                chosen.add('%s:%s' % (name, tag))
    return chosen


@given(st.data())
@settings(max_examples=150)
def test_the_rule(data):
    with a_tree(data, steps=8, damage=1) as builder:
        now, v2 = time.time(), builder.tree.v2
        for name in NAMES:
            for number in range(data.draw(st.integers(0, 5)) if builder.pushed[name] else 0):
                builder.tree.tag(name, 'pr-%d' % number, builder.pick(*builder.pushed[name]))
        set_times(builder, now)
        found = model.listing(builder.tree.repo('a'), '_manifests', 'tags')
        images = [builder.pick('a:*', '*:*', '*:pr-*', 'a*:?', '*:*-[1-4]', '*:sha256-*',
                               'a:' + builder.pick(*found or ['*']))
                  for _ in range(builder.pick(1, 1, 2))]
        excluded = builder.some(['a', '*:pr-1', 'a:latest', '*:*[23]', 'c/*', 'nothing:*',
                                 'a:' + builder.pick(*found or ['*'])], 2)
        keep_last = builder.pick(None, None, 0, 1, 2, 3)
        older = builder.pick(*OLDER)
        args = [arg for image in images for arg in ('-i', image)]
        args += [arg for image in excluded for arg in ('-x', image)]
        args += [] if keep_last is None else ['--keep-last', str(keep_last)]
        args += [] if older is None else ['--older-than', older]
        expected = plainly_chosen(v2, images, excluded, keep_last, OLDER[older], now)
        event('some' if expected else 'none')
        try:
            assert set(names(the_json('-d', v2, '-l', *args))) == expected
            result = call('-d', v2, '-n', '--json', *args)
            if result.status == 1:      # something unreadable would stay
                return
            deleted = set(json.loads(result.out)['tags'])
            # Referrer tags go with the image that they belong to.
            belonging = {'%s:%s' % (name, tag) for name, repo in model.repositories(v2).items()
                         for tag in repo.referrer_tags()}
            assert deleted >= expected and deleted - expected <= belonging
        except AssertionError:
            note('\n'.join(describe(snapshot(v2)) + [' '.join(args)] + [
                '%s %s' % (os.path.getmtime(path) - now, path) for name in NAMES
                for path in [builder.tree.tag_link(name, tag) for tag in model.listing(
                    builder.tree.repo(name), '_manifests', 'tags')] if os.path.exists(path)]))
            raise


@pytest.fixture
def builds(tmp_path):
    """Five builds, one a day; 3 and 4 at the same moment. The oldest is signed."""
    tree = Tree(tmp_path)
    now = time.time()
    for number, days in enumerate([5, 4, 3, 3, 1], 1):
        tree.tag('app', 'pr-%d' % number, tree.image('app', [b'base', b'%d' % number]))
        then = now - days * DAY - HOUR
        os.utime(tree.tag_link('app', 'pr-%d' % number), (then, then))
    signature = current(tree, 'app', 'pr-1').replace(':', '-') + '.sig'
    tree.tag('app', signature, tree.image('app', [b'signature']))
    tree.signature = signature
    return tree


@pytest.mark.parametrize('rules, gone', [
    (['--keep-last', '1'], [1, 2, 3, 4]),
    (['--keep-last', '2'], [1, 2]),             # 3 and 4 are the same age: both are kept
    (['--keep-last', '3'], [1, 2]),
    (['--keep-last', '9'], []),
    (['--keep-last', '0'], [1, 2, 3, 4, 5]),
    (['--older-than', '72h'], [1, 2, 3, 4]),
    (['--older-than', '4d'], [1, 2]),
    (['--older-than', '1w'], []),
    (['--keep-last', '4', '--older-than', '3d'], [1]),
    (['--keep-last', '1', '--older-than', '5d'], [1]),
    (['-x', 'app:pr-5', '--keep-last', '1'], [1, 2]),   # what is excluded is not counted
    (['-x', 'app:pr-[12]', '--older-than', '1d'], [3, 4, 5]),
    (['-x', 'app', '--older-than', '1d'], []),
    (['-x', 'other:*', '--older-than', '4d'], [1, 2]),
])
def test_rules(builds, rules, gone):
    assert call('-d', builds.root, '-i', 'app:pr-*', *rules).status == 0
    left = ['pr-%d' % number for number in range(1, 6) if number not in gone]
    # The signature goes with its image, and is never counted.
    left += [builds.signature] if 1 not in gone else []
    assert tags(builds, 'app') == sorted(left)


def test_each_image_keeps_its_own(builds):
    call('-d', builds.root, '-i', 'app:pr-[12]', '-i', 'app:pr-[345]', '--keep-last', '1')
    assert tags(builds, 'app') == ['pr-2', 'pr-5']


def test_each_repository_keeps_its_own(builds):
    for tag, age in [('pr-1', 9 * DAY), ('pr-2', 8 * DAY)]:
        builds.tag('team/app', tag, builds.image('team/app', [tag.encode()]), age)
    call('-d', builds.root, '-i', '*:pr-*', '--keep-last', '1')
    assert tags(builds, 'app') == ['pr-5'] and tags(builds, 'team/app') == ['pr-2']


def test_a_tag_of_unknown_age_is_kept_by_a_rule(builds):
    os.remove(builds.tag_link('app', 'pr-1'))
    call('-d', builds.root, '-i', 'app:pr-*', '--keep-last', '1', '--older-than', '1h')
    assert tags(builds, 'app')[:2] == ['pr-1', 'pr-5']


@pytest.mark.parametrize('arguments, reason', [
    (['-i', 'app', '--keep-last', '3'], 'tags'),
    (['-i', 'app', '--older-than', '3d'], 'tags'),
    (['-i', 'app:*', '-i', 'team/other', '--keep-last', '3'], 'tags'),
    (['-i', 'app@' + MISSING, '--keep-last', '3'], 'tags'),
    (['-i', 'app@' + MISSING, '--older-than', '3d'], 'tags'),
    (['-u', '-i', 'app', '--keep-last', '3'], '-u'),
    (['-u', '-i', 'app', '--older-than', '3d'], '-u'),
    (['-u', '-i', 'app:1.0'], '-u'),
    (['-g', '--keep-last', '3'], 'image is required'),
    (['-p', '--older-than', '3d'], 'image is required'),
    (['--keep-last', '3'], 'image is required'),
    (['-x', 'app'], 'image is required'),
    (['-i', 'app:*', '--keep-last', '-1'], 'negative'),
    (['-i', 'app:*', '--keep-last', 'x'], '--keep-last'),
    (['-i', 'app:*', '--older-than', '3'], '12h, 30d'),
    (['-i', 'app:*', '--older-than', '3m'], '12h, 30d'),
    (['-i', 'app:*', '--older-than', '-3d'], ''),
    (['-i', 'app:*', '--older-than', ''], '12h, 30d'),
    (['-i', 'app:*', '-x', ''], "''"),
    (['-i', 'app:*', '-x', 'app:'], 'tag'),
    (['-i', 'app:*', '-x', '../app'], '../app'),
    (['-i', 'app:*', '-x', 'app@sha256:1'], 'digest'),
    (['-l', '-u', '-i', 'app'], '-l'),
    (['-l', '--keep-last', '3'], 'tags'),
    (['-l', '--older-than', '3d'], 'tags'),
    (['-l', '-g'], '-l'),
    (['-l', '-p'], '-l'),
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
@settings(max_examples=100)
def test_exclusions(data):
    """Exactly what model.py expects goes, and nothing else."""
    with a_tree(data, steps=12) as builder:
        untagged = builder.pick(False, False, True)
        images = [builder.pick('*', *NAMES)] if untagged else [an_image(builder)]
        excluded = [an_exclusion(builder) for _ in range(data.draw(st.integers(1, 2)))]
        check(builder.tree.v2, images, untagged, excluded=excluded, garbage=False)


@given(st.data())
@settings(max_examples=100)
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
        args = ['-u'] * untagged + ['-g'] * builder.pick(0, 1)
        args += [arg for image in images for arg in ('-i', image)]
        args += [arg for image in excluded for arg in ('-x', image)]
        before, served_before = snapshot(v2), served(v2)
        status = call('-d', v2, *args).status
        after, served_after = snapshot(v2), served(v2)
        event('exit %s' % status)
        try:
            assert status in (0, 1)
            for name, part in spared:
                folder = os.path.join('repositories', name, '_')
                if ':' in part:     # by digest it is served without a tag, too
                    assert model.pull(v2, name, part) == served_before[name, part]
                elif part:
                    assert served_after[name, part] == served_before[name, part]
                for path in [] if part else before:
                    if path.startswith(folder):
                        assert after[path] == before[path]
                for key in [] if part else served_before:
                    if key[0] == name:
                        assert served_after[key] == served_before[key]
        except (AssertionError, KeyError):
            note('\n'.join(describe(before) + ['delete_docker_registry_image ' + ' '.join(args)]))
            raise


@pytest.fixture
def signed(tree):
    """app:1.0 is signed, and had another image before."""
    former = tree.image('app', [b'former'])
    image = current(tree, 'app', '1.0')
    tree.tag('app', '1.0', former)
    tree.tag('app', '1.0', image)
    tree.former, tree.image_1 = former, image
    tree.signature = image.replace(':', '-') + '.sig'
    tree.tag('app', tree.signature, tree.image('app', [b'signature']))
    tree.child = tree.image('app', [b'child'])
    tree.index_1 = tree.index('app', [tree.child])
    tree.tag('app', 'multi', tree.index_1)
    return tree


def kept(tree, *arguments):
    """Run; the tags of app that are left, and that all of them are whole."""
    result = call('-d', tree.root, *arguments)
    assert result.status == 0, result.said
    left = tags(tree, 'app')
    for tag in left:
        assert model.pull(tree.v2, 'app', current(tree, 'app', tag))[1], tag
    return left


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


def test_a_tag_whose_manifest_is_excluded_by_digest(signed):
    """The tag goes, what was to be kept stays."""
    assert '1.0' not in kept(signed, '-i', 'app:1.0', '-x', 'app@' + signed.image_1)
    assert model.pull(signed.v2, 'app', signed.image_1)[1]


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


@pytest.mark.parametrize('image', ['nothing', 'nothing:1.0', 'no*', 'app:nothing', 'app:no*',
                                   'app@' + MISSING])
def test_an_exclusion_that_matches_nothing_is_a_warning(tree, image):
    for request in [['-i', 'app:1.0'], ['-g'], ['-l'], ['-u', '-i', 'app']]:
        result = call('-d', tree.root, '-x', image, *request)
        assert result.status == 0
        assert re.search('WARNING.*' + re.escape(image), result.said), result.said
    assert tags(tree, 'app') == ['2.0']


def contents(tree, repo=''):
    """Every file of the store, or of one repository and its blobs."""
    return {path: what for path, what in snapshot(tree.v2).items() if what[0] == 'file'
            and path.startswith('repositories/' + repo if repo else '')}


# --- images from standard input -------------------------------------------------------------------

def from_stdin(tree, text, *arguments):
    with open(os.path.join(os.path.dirname(tree.root), 'input'), 'wb+') as file:
        file.write(text)
        file.seek(0)
        return run('-d', tree.root, '-i', '-', *arguments, stdin=file)


def test_images_from_standard_input(tree):
    result = from_stdin(tree, b'app:1.0\r\n\n  team/oth*:*\n')
    assert result.status == 0, result.said
    assert tags(tree, 'app') == ['2.0'] and tags(tree, 'team/other') == []


def test_images_from_both(tree):
    assert from_stdin(tree, b'app:1.0', '-i', 'team/other:1.0').status == 0
    assert tags(tree, 'app') == ['2.0'] and tags(tree, 'team/other') == []


@pytest.mark.parametrize('text', [b'', b'\n', b' \n\t\n'])
@pytest.mark.parametrize('arguments', [
    [], ['-u'], ['-n'], ['--keep-last', '0'], ['-x', 'app'], ['--older-than', '1h'], ['-l'],
    ['-l', '--keep-last', '0']])
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
                         (b'app:1.0\n-\n', 2), (b'app:1.0\0\n', 2), (b'app:1.0 app:2.0\n', 2)]:
        assert from_stdin(tree, text).status == status, text
        assert snapshot(tree.root) == before


@pytest.mark.parametrize('errors', ['strict', 'surrogateescape'])
def test_standard_input_that_is_not_utf8(tree, errors):
    before = snapshot(tree.root)
    with open(os.path.join(os.path.dirname(tree.root), 'input'), 'wb+') as file:
        file.write(b'app:1.0\nsch\xf6n:1.0\n')
        file.seek(0)
        result = run('-d', tree.root, '-i', '-', stdin=file,
                     environment={'PYTHONIOENCODING': 'utf-8:' + errors})
    assert result.status == 2
    assert snapshot(tree.root) == before


def test_closed_standard_input_is_nothing_to_do(tree):
    before = snapshot(tree.root)
    result = run('-d', tree.root, '-i', '-', command=[
        'bash', '-c', '"$@" <&-', 'bash', sys.executable, SCRIPT])
    assert result.status in (0, 2)
    assert snapshot(tree.root) == before


# --- one JSON object ------------------------------------------------------------------------------

DELETION = {'registry': str, 'dry_run': bool, 'repositories': list, 'tags': list,
            'manifests': list, 'layers': int, 'uploads': int, 'blobs': list, 'freed': int,
            'warnings': list, 'failed': list}
LISTING = {'registry': str, 'images': list, 'total': dict}
IMAGE = {'repository': str, 'tag': str, 'digest': str, 'pushed': str, 'size': int, 'frees': int}
TOTAL = dict.fromkeys(['repositories', 'tags', 'manifests', 'blobs', 'size', 'untagged',
                       'garbage'], int)


def has_types(found, types):
    """Whether an object has just these keys, in this order, with values of these types."""
    return list(found) == list(types) and all(
        type(found[key]) is kind for key, kind in types.items())


@pytest.fixture
def rich(tree):
    """A history, an upload, and a repository that goes altogether."""
    tree.tag('app', '1.0', tree.image('app', [b'base', b'one more']))
    tree.upload('team/other', 'old', age=2 * DAY)
    return tree


def test_the_json_of_a_deletion(rich):
    expected = model.expect(rich.v2, ['app:1.0', 'team/other'])
    sizes = model.stored_blobs(rich.v2)
    links = len(links_of(rich))
    dry = the_json('-d', rich.root, '-n', '-i', 'app:1.0', '-i', 'team/other', run=run)
    done = the_json('-d', rich.root, '-i', 'app:1.0', '-i', 'team/other', run=run)
    assert (dry.pop('dry_run'), done.pop('dry_run')) == (True, False)
    assert dry == done
    done = dict(list(done.items())[:1] + [('dry_run', False)] + list(done.items())[1:])
    assert has_types(done, DELETION)
    assert done['registry'] == rich.v2
    assert done['repositories'] == ['team/other']
    assert sorted(done['tags']) == ['app:1.0', 'team/other:1.0']
    assert sorted(done['manifests']) == sorted('%s@%s' % one for one in expected.manifests)
    assert done['layers'] == links - len(links_of(rich))
    assert done['uploads'] == 1
    assert sorted((blob['digest'], blob['size']) for blob in done['blobs']) == sorted(
        (digest, sizes[digest]) for digest in expected.blobs)
    assert done['freed'] == sum(blob['size'] for blob in done['blobs'])
    assert done['freed'] == sum(sizes.values()) - sum(model.stored_blobs(rich.v2).values())
    assert done['warnings'] == done['failed'] == []


def links_of(tree):
    return [path for path in model.every_path(tree.v2) if re.search('/_layers/.*/link$', path)]


def test_the_json_of_nothing_to_do(tree):
    found = the_json('-d', tree.root, '-g')
    assert has_types(found, DELETION)
    assert found['blobs'] == [] and found['freed'] == 0 and not found['dry_run']


def test_the_json_of_a_warning(tree):
    found = the_json('-d', tree.root, '-i', 'app:1.0', '-x', 'nothing')
    assert len(found['warnings']) == 1 and 'nothing' in found['warnings'][0]


@pytest.mark.parametrize('arguments', [
    ['-i', 'nothing'], ['-n', '-i', 'app:nothing'], ['-l', '-i', 'nothing']])
def test_the_json_of_a_refusal(tree, arguments):
    found = the_json('-d', tree.root, *arguments, status=1, run=run)
    assert has_types(found, {'error': str}) and 'nothing' in found['error']


def test_the_json_of_no_registry(tmp_path):
    for arguments in [['-l'], ['-i', 'app']]:
        found = the_json('-d', str(tmp_path), *arguments, status=1)
        assert has_types(found, {'error': str})


def test_the_json_of_something_that_may_not_be_deleted(others_tree):
    locked = others_tree.repo('app', '_manifests', 'tags')
    os.chmod(locked, 0o500)
    result = run_as_other(others_tree, '--json', '-i', 'app:1.0', '-i', 'team/other:1.0')
    assert result.status == 3
    found = json.loads(result.out)
    assert has_types(found, DELETION)
    assert [has_types(one, {'path': str, 'error': str}) for one in found['failed']] == [True]
    assert found['failed'][0]['path'].startswith(locked)
    # Only what is really gone is said to be gone.
    assert found['tags'] == ['team/other:1.0'] and found['repositories'] == ['team/other']
    assert not any(name.startswith('app@') for name in found['manifests'])


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


@pytest.mark.parametrize('arguments', [['-l'], ['-l', '--json'], ['-n', '--json', '-i', '*']])
def test_an_interruption_while_the_result_is_written(tree, arguments):
    status, out, said = interrupted_while_writing(tree, 'stdout', *arguments)
    assert status == 130 and len(out) > 1000


def test_an_interruption_after_all_is_deleted(tree):
    """The report and the result still say what is gone."""
    status, out, said = interrupted_while_writing(tree, 'stderr', '-v', '--json', '-i', 'app')
    assert status == 130 and 'Interrupted' in said
    assert 'next run' not in said
    assert json.loads(out)['repositories'] == ['app'] and not os.path.exists(tree.repo('app'))


def test_the_json_of_the_list(tree):
    write(tree.tag_link('app', 'broken'), b'')
    os.makedirs(tree.repo('app', '_manifests/tags/lost'))
    set_age(tree.tag_link('app', '2.0'), 0)
    os.utime(tree.tag_link('app', '1.0'), (1700000000, 1700000000.5))
    os.utime(tree.tag_link('team/other', '1.0'), (0, 0))
    listing = the_json('-d', tree.root, '-l', run=run)
    assert has_types(listing, LISTING) and has_types(listing['total'], TOTAL)
    assert listing['registry'] == tree.v2
    found = dict(zip(names(listing), listing['images']))
    assert sorted(found) == ['app:1.0', 'app:2.0', 'app:broken', 'app:lost', 'team/other:1.0']
    for name in ['app:1.0', 'app:2.0', 'team/other:1.0']:
        assert has_types(found[name], IMAGE)
        assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ', found[name]['pushed'])
    assert found['app:1.0']['pushed'] == '2023-11-14T22:13:20Z'
    assert found['team/other:1.0']['pushed'] == '1970-01-01T00:00:00Z'
    assert found['app:broken']['digest'] is None and found['app:broken']['pushed']
    assert found['app:lost']['digest'] is found['app:lost']['pushed'] is None


@pytest.mark.parametrize('option', ['-q', '-v'])
def test_json_and_messages_keep_apart(tree, option):
    assert has_types(the_json('-d', tree.root, '-n', option, '-i', 'app', run=run), DELETION)
    assert has_types(the_json('-d', tree.root, '-l', option, run=run), LISTING)


# --- the list -------------------------------------------------------------------------------------

def test_the_list_selects_as_a_deletion_does(tree):
    assert sorted(names(listed(tree))) == ['app:1.0', 'app:2.0', 'team/other:1.0']
    for arguments, expected in [
            (['-i', 'app'], ['app:1.0', 'app:2.0']), (['-i', 'app:1.0'], ['app:1.0']),
            (['-i', '*:1.0'], ['app:1.0', 'team/other:1.0']),
            (['-x', 'app'], ['team/other:1.0']),
            (['-x', '*:1.0'], ['app:2.0']), (['-i', 'app', '-x', 'app:2.0'], ['app:1.0']),
            (['-i', 'no*'], []), (['-i', '*:*', '--older-than', '1h'], [])]:
        listing = listed(tree, *arguments)
        assert sorted(names(listing)) == expected
        # The total is that of the whole store.
        assert listing['total']['tags'] == 3


def test_the_list_of_a_digest(tree):
    """The tags that point at the manifest, which `-i NAME@DIGEST` deletes with it."""
    digest = current(tree, 'app', '1.0')
    assert names(listed(tree, '-i', 'app@' + digest)) == ['app:1.0']


def test_the_list_of_a_new_registry(tmp_path):
    tree = Tree(tmp_path)
    assert listed(tree)['images'] == []
    shutil.rmtree(tree.v2 + '/blobs')
    shutil.rmtree(tree.v2 + '/repositories')
    assert listed(tree)['images'] == []
    assert call('-l', '-d', tree.root).status == 0


def test_the_table(tree):
    set_age(tree.tag_link('app', '1.0'), 3 * DAY)
    result = run('-d', tree.root, '-l')
    assert (result.status, result.said) == (0, '')
    lines = result.out.splitlines()
    assert lines[0].split() == ['IMAGE', 'DIGEST', 'PUSHED', 'SIZE', 'FREES']
    row = next(line for line in lines if line.startswith('app:1.0 '))
    assert ' %s ' % current(tree, 'app', '1.0')[7:19] in row
    assert time.strftime('%Y-%m-%d', time.localtime(time.time() - 3 * DAY)) in row
    assert len(lines) == 6      # three tags and two lines of totals
    assert '-u' in lines[-1] and '-g' in lines[-1]


def test_the_list_as_an_ordinary_user(others_tree):
    """Who may only read, in a folder where nothing can be made."""
    for base, folders, files in os.walk(others_tree.root):
        for name in files:
            os.chmod(os.path.join(base, name), 0o444)
        os.chmod(base, 0o555)
        os.chown(base, 0, 0) if os.geteuid() == 0 and NOBODY else None
    before = snapshot(others_tree.root)
    result = run_as_other(others_tree, '-l', '--json')
    assert result.status == 0, result.said
    assert len(json.loads(result.out)['images']) == 3
    assert snapshot(others_tree.root) == before


def test_the_list_while_another_run_holds_the_lock(tree):
    folder = os.open(tree.v2, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        result = run('-d', tree.root, '-l')
        assert result.status == 0 and 'app:1.0' in result.out
    finally:
        os.close(folder)


def test_the_list_while_a_journal_is_there(tree):
    """It is left to the run that finishes."""
    write(tree.v2 + '/.delete_docker_registry_image.journal', b'{}')
    before = snapshot(tree.root)
    assert len(listed(tree)['images']) == 3
    assert snapshot(tree.root) == before


def test_the_list_while_the_registry_runs(tmp_path):
    with Registry(tmp_path / 'registry') as registry:
        registry.push_image('app', '1.0', [b'base', b'one'])
        registry.push_image('app', '2.0', [b'base', b'two'])
        pulled = registry.pull('app', '1.0')
        before = snapshot(registry.v2)
        listing = the_json('-d', registry.root, '-l', run=run)
        assert sorted(names(listing)) == ['app:1.0', 'app:2.0']
        assert snapshot(registry.v2) == before
        assert registry.pull('app', '1.0') == pulled
        sizes = model.stored_blobs(registry.v2)
        promised = {image['tag']: image for image in listing['images']}['1.0']
        assert promised['size'] == sum(sizes[digest] for digest in pulled)
        registry.stop()
        done = the_json('-d', registry.root, '-i', 'app:1.0', run=run)
        assert done['freed'] == promised['frees'] == sum(sizes.values()) - sum(
            model.stored_blobs(registry.v2).values())


def damages(tree):
    """Images that cannot be pulled whole, by tag."""
    write(tree.tag_link('bad', 'empty'), b'')
    write(tree.tag_link('bad', 'garbage'), GARBAGE)
    os.makedirs(tree.repo('bad', '_manifests/tags/lost'))
    tree.tag('bad', 'unreadable', tree.manifest('bad', b'{}'))
    corrupt = tree.image('bad', [b'corrupt'])
    tree.tag('bad', 'corrupt', corrupt)
    tree.corrupt_blob(corrupt)
    gone = tree.image('bad', [b'gone'])
    tree.tag('bad', 'gone', gone)
    tree.remove_blob(gone)
    tree.tag('bad', 'absent', ABSENT)
    tree.tag('bad', 'layer', tree.image('bad', [b'a layer that is gone']))
    tree.remove_blob(digest_of(b'a layer that is gone'))
    tree.tag('bad', 'link', tree.image('bad', [b'a layer that lost its link']))
    os.remove(tree.layer_link('bad', digest_of(b'a layer that lost its link')))
    tree.tag('bad', 'child', tree.index('bad', [tree.image('bad', [b'gone from a child'])]))
    tree.remove_blob(digest_of(b'gone from a child'))


def test_damage_is_shown(tree):
    damages(tree)
    # None of these is damaged: the layer and the child are stored elsewhere.
    tree.tag('good', 'foreign', tree.image('good', [b'here'], foreign=[ABSENT]))
    tree.tag('good', 'sparse', tree.index('good', [tree.image('good', [b'one']), ABSENT]))
    tree.tag('good', 'cache', tree.cache('good', [b'cached']))
    tree.tag('good', 'legacy', tree.schema1('good', [b'old'], signatures=1))
    tree.tag('good', 'wide', tree.image('good', [tree.layer('good', b'wide', 'sha512')]))
    before = snapshot(tree.root)
    result = run('-d', tree.root, '-l')
    assert result.status == 0, result.said
    assert snapshot(tree.root) == before
    lines = {line.split()[0]: line for line in result.out.splitlines()}
    for name, line in lines.items():
        digest = re.search(r' [0-9a-f]{12}  ', line)
        if name.startswith('bad:'):
            assert not digest and re.search('broken|unreadable|incomplete|no manifest', line), line
        if name.startswith('good:'):
            assert digest, line
    assert len([name for name in lines if name.startswith('bad:')]) == 10
    digests = {image['tag']: image['digest'] for image in listed(tree, '-i', 'bad')['images']}
    assert {tag for tag in digests if digests[tag] is None} == {'empty', 'garbage', 'lost'}
    assert digests['absent'] == ABSENT


@pytest.mark.parametrize('locale', ['C', 'C.UTF-8'])
def test_the_list_with_names_that_are_not_utf8(tree, locale):
    write(os.fsencode(tree.repo('app')) + b'/_manifests/tags/\xff\xfe/current/link', b'')
    for more in [[], ['--json']]:
        result = run('-d', tree.root, '-l', *more, environment={'LC_ALL': locale})
        assert result.status == 0 and 'app:1.0' in result.out or more
        assert not more or len(json.loads(result.out)['images']) == 4


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


@pytest.fixture
def many(tmp_path):
    """Names of all lengths, sizes of all sizes, and damage."""
    tree = Tree(tmp_path)
    for number in range(1, 12):
        repo = '/'.join(['team', 'some-product', 'a-component-with-a-long-name'][:number % 3 + 1])
        layer = bytes([number]) * 4 ** number
        tree.tag(repo, 'build-%d' % 10 ** number, tree.image(repo, [layer]), age=3 ** number * 60)
    damages(tree)
    return tree


def rows(text):
    """The table without its totals: a list of lines, header first."""
    return [line for line in text.splitlines()
            if re.match(r'IMAGE |[a-z./-]+(:|\.\.)', line)]


@pytest.mark.parametrize('width', [60, 80, 120])
@pytest.mark.parametrize('verbose', [[], ['-v']])
def test_the_table_fits_the_terminal(many, width, verbose):
    status, out, _ = on_terminal(width, '-l', '-d', many.root, *verbose, said=False)
    assert status == 0
    assert [line for line in out.splitlines() if len(line) > width] == []
    check_columns(out.splitlines()[:22])


def test_the_table_in_a_pipe_is_as_wide_as_it_has_to_be(many):
    for environment in [(), {'COLUMNS': '40'}]:
        out = on_terminal(60, '-l', '-d', many.root, out=False, environment=environment)[1]
        assert 'team/some-product/a-component-with-a-long-name:build-100000000 ' in out
        check_columns(out.splitlines()[:22])
        assert '##' not in out


def check_columns(lines):
    """Every cell begins, or for numbers ends, where its heading does."""
    heading = lines[0]
    assert heading.split()[:5] == ['IMAGE', 'DIGEST', 'PUSHED', 'SIZE', 'FREES']
    assert len(lines) == 22
    size, frees = heading.index('SIZE') + 4, heading.index('FREES') + 5
    for line in lines[1:]:
        for column in ['DIGEST', 'PUSHED']:
            start = heading.index(column)
            assert line[start - 2:start] == '  ' and line[start] != ' ', line
        for end in [size, frees]:
            assert line[end - 1] != ' ' and line[end:end + 2] in ('  ', ''), line


def test_bars_are_for_terminals(many):
    out = on_terminal(160, '-l', '-d', many.root)[1]
    assert max(map(len, out.splitlines())) <= 160
    lengths = [len(re.search('#*$', line).group()) for line in out.splitlines()[1:22]]
    # In order, since the list is sorted by what the bars show.
    assert lengths[0] > 3 and lengths == sorted(lengths, reverse=True) and lengths[-1] == 0


@pytest.mark.parametrize('colour', [{}, {'NO_COLOR': '1'}, {'TERM': 'dumb'}])
def test_no_colour_without_a_terminal_or_against_the_users_will(many, colour):
    out = on_terminal(120, '-l', '-d', many.root, out=bool(colour), environment=colour)[1]
    assert '\x1b' not in out


def test_ages_on_a_terminal_and_dates_elsewhere(many):
    line = 'team/some-product:build-10 '        # pushed three minutes ago
    for verbose, out, pushed in [([], True, '3 minutes ago'), (['-v'], True, r'20\d\d-\d\d-\d\d '),
                                 ([], False, r'20\d\d-\d\d-\d\d ')]:
        text = on_terminal(120, '-l', '-d', many.root, *verbose, out=out)[1]
        assert re.search('(?m)^%s.*  %s' % (line, pushed), text)


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
    lines, screen, _ = drawn(slow, '-i', '*')
    assert any(re.match(r'Reading repositories \d+ of 25$', line) for line in lines), lines
    assert any(re.search(r'Deleting .*\d (bytes|KiB) freed.* \d+ of \d+', line)
               for line in lines), lines
    assert max(map(len, lines)) < 100
    # Log lines are whole, and nothing else is left.
    for line in screen.splitlines():
        assert re.match(r'[A-Z]+ +\[.*?\]  \S', line), line
    assert 'Deleted repository app/24' in screen
    assert not any('Reading repositories' in line for line in screen.splitlines())


def test_a_terminal_that_is_closed_during_the_run(slow):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, SCRIPT, '-j', '1', '-d', slow.root, '-p', '-i', '*'], stderr=slave,
        stdin=subprocess.DEVNULL, env=dict(os.environ, **slow.environment))
    os.close(slave)
    assert os.read(master, 5)  # of the first progress line
    os.close(master)
    assert process.wait(timeout=60) == 0
    assert snapshot(slow.v2).keys() == {'.', 'blobs', 'repositories'}


def test_one_repository_is_read_by_all_threads(tree, monkeypatch):
    together = threading.Barrier(2, timeout=20)
    read_tag = script.Store.read_tag

    def read_with_another(*arguments):
        together.wait()
        return read_tag(*arguments)

    monkeypatch.setattr(script.Store, 'read_tag', read_with_another)
    assert script.main(['-d', tree.root, '-q', '-j', '2', '-n', '-i', 'app:1.0']) == 0


@pytest.mark.parametrize('arguments', [['-n', '-i', '*'], ['-l'], ['-l', '--json'],
                                       ['-n', '-g', '--json']])
def test_progress_of_a_slow_look(slow, arguments):
    lines, screen, out = drawn(slow, *arguments, out=False)
    assert any(re.match(r'Reading repositories \d+ of 25$', line) for line in lines), lines
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
    assert screen[0].startswith('IMAGE ') and len(screen) == 28
    assert not any('Reading' in line for line in screen)


def test_progress_vanishes_before_an_error(slow):
    slow.manifest('app/7', b'[]')
    status, _, said = on_terminal(100, '-j', '1', '-d', slow.root, '-g',
                                  environment=slow.environment)
    assert status == 1 and progress_lines(said)
    assert all(re.match(r'ERROR +\[', line) for line in Terminal.screen(said).splitlines())


def test_no_progress_when_quiet(slow):
    assert on_terminal(100, '-q', '-j', '1', '-d', slow.root, '-i', '*',
                       environment=slow.environment) == [0, '', '']


def test_no_progress_in_a_pipe(slow):
    status, out, said = on_terminal(100, '-j', '1', '-d', slow.root, '-n', '-i', '*',
                                    said=False, environment=slow.environment)
    assert (status, out) == (0, '')
    assert '\r' not in said and '\x1b' not in said and 'Reading' not in said


def test_no_progress_of_a_short_run(tree):
    status, _, said = on_terminal(100, '-d', tree.root, '-i', 'app:1.0')
    assert status == 0 and '\r' not in said and '\x1b' not in said


def test_the_progress_line_is_never_wider_than_its_terminal(slow):
    """Also where standard output is elsewhere: what wraps cannot be erased."""
    lines, screen, _ = drawn(slow, '-i', '*', columns=30, out=False)
    assert lines and max(map(len, lines)) < 30
    assert 'Reading' not in screen


# --- nobody reads, or nothing can be written ------------------------------------------------------

@pytest.mark.parametrize('arguments', ['-l', '-l --json', '-n --json -i app'])
def test_a_reader_that_has_seen_enough(tree, arguments):
    shell = '"$0" "$1" -d "$2" %s | true; exit ${PIPESTATUS[0]}' % arguments
    done = subprocess.run(['bash', '-c', shell, sys.executable, SCRIPT, tree.root],
                          stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0 and 'Traceback' not in done.stderr


@pytest.mark.parametrize('arguments, status', [('-l', 1), ('-n --json -i app', 0)])
def test_standard_output_is_full(tree, arguments, status):
    shell = '"$0" "$1" -d "$2" %s > /dev/full' % arguments
    done = subprocess.run(['bash', '-c', shell, sys.executable, SCRIPT, tree.root],
                          stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == status and 'Traceback' not in done.stderr
    assert 'Cannot write to standard output: No space left on device' in done.stderr


def test_a_name_that_is_no_text(tree):
    shutil.copytree(os.fsencode(tree.repo('app')), os.fsencode(tree.repo('team')) + b'/\xff')
    done = subprocess.run([sys.executable, SCRIPT, '-d', tree.root, '-l'], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    assert done.returncode == 0 and b'team/\\udcff:1.0' in done.stdout
