"""The list: what -l says, in a table, as names and as JSON, and that each figure is the truth.

What a line promises is compared with what really deleting it on a copy of the store frees.
"""

import contextlib
import fcntl
import io
import json
import os
import re
import shutil
import sys

import pytest
from hypothesis import event, given, note, settings, strategies as st

import delete_docker_registry_image as script
import model
from faults import ASIDE, GONE, fast_folder
from test_choice import on_terminal
from test_command import (
    AS_ROOT, NOBODY, call, current, others_tree, run, run_as_other, small_registry,
)
from test_garbage import litter
from test_trees import ABSENT, a_tree, describe
from tree import (
    DAY, GARBAGE, OCI_CONFIG, OCI_IMAGE, OCI_LAYER, Tree, digest_of, encode, snapshot, write,
)

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


def word(image, untagged=False):
    """What -i takes for a line of the list."""
    if image['tag'] is not None and not untagged:
        return '%s:%s' % (image['repository'], image['tag'])
    if image['digest'] is not None:
        return '%s@%s' % (image['repository'], image['digest'])
    return image['repository']


def words(listing, *arguments):
    return [word(image, '-u' in arguments) for image in listing['images']]


def by_word(listing):
    return dict(zip(words(listing), listing['images']))


@contextlib.contextmanager
def standard_input(text):
    """What this process reads from standard input."""
    former, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(text.encode()), 'utf-8')
    try:
        yield
    finally:
        sys.stdin = former


# --- what the list promises -----------------------------------------------------------------------

def bytes_stored(v2):
    """The bytes of every blob and every upload on the disk."""
    return sum(os.path.getsize(os.path.join(base, name)) for base, _, files in os.walk(v2)
               for name in files if '/_uploads/' in base or base.startswith(v2 + '/blobs/'))


@contextlib.contextmanager
def a_copy(v2):
    """A copy of the store, and of what lies beside it, times included."""
    folder = fast_folder()
    try:
        copy = os.path.join(folder, 'docker', 'registry')
        shutil.copytree(os.path.dirname(v2), copy, symlinks=True)
        yield os.path.join(copy, 'v2')
    finally:
        shutil.rmtree(folder)


def really_freed(v2, *arguments, lines=(), refused=0):
    """The bytes that a run frees on a copy; `refused` where nothing at all may be deleted."""
    with a_copy(v2) as copy, standard_input('\n'.join(lines)):
        before = bytes_stored(copy)
        result = call('-d', copy, '--json', '--allow-remove-all', *arguments)
        freed = before - bytes_stored(copy)
        said = json.loads(result.out)
        if result.status == 1:
            assert freed == 0 and said['error'], result.said
            return 0 if said['skipped'] else refused
        assert result.status in (0, 3), result.said
        assert said['freed'] == freed, arguments
        return freed


REQUESTS = {'repositories': [], 'tags': ['-i', '*:*'], 'untagged': ['-u'],
            'old and untagged': ['-u', '--older-than', '1d'],
            'some': ['-i', 'a:*', '-i', 'c/*', '-x', 'a*:1']}


def check_promises(v2, request, pick):
    """Each figure of the list against real deletions on copies; the lines are those of -q."""
    before = snapshot(v2)
    try:
        listing = the_json('-d', v2, '-l', *request)
        names = call('-d', v2, '-l', '-q', *request)
        assert snapshot(v2) == before, 'the list changed something'
        assert names.said == '' and names.out.splitlines() == words(listing, *request)
        event('%d listed' % len(listing['images']))
        for image in pick(listing['images']):
            line = word(image, '-u' in request)
            assert image['frees'] == really_freed(v2, '-i', '-', lines=[line]), line
        total = listing['total']
        request = request or ['-i', '*']
        assert total['selected'] == really_freed(v2, *request)
        assert total['untagged'] == really_freed(v2, '-u', refused=None)
        assert total['garbage'] == really_freed(v2, '-g', refused=None)
        assert total['size'] + total['uploads'] == bytes_stored(v2)
    except AssertionError:
        note('\n'.join(describe(before) + ['-l ' + ' '.join(request)]))
        raise


def some_lines(builder):
    """A choice of lines, since each is a deletion on a copy."""
    return lambda images: [images[place] for place in builder.some(list(range(len(images))), 4)]


@pytest.mark.parametrize('request_of', list(REQUESTS))
@given(data=st.data())
@settings(max_examples=14)
def test_the_list_promises_what_a_deletion_frees(request_of, data):
    with a_tree(data, steps=12) as builder:
        litter(builder, 3)
        if 'old' in request_of:
            builder.grow_old()
        check_promises(builder.tree.v2, REQUESTS[request_of], some_lines(builder))


@given(st.data())
@settings(max_examples=25)
def test_the_list_of_a_damaged_store(data):
    with a_tree(data, damage=3) as builder:
        request = REQUESTS[builder.pick(*REQUESTS)]
        check_promises(builder.tree.v2, request, some_lines(builder))


@given(st.data())
@settings(max_examples=30)
def test_counts_and_sizes(data):
    """What is there, as model.py reads it."""
    with a_tree(data, steps=12) as builder:
        v2 = builder.tree.v2
        stored, store = model.stored_blobs(v2), model.repositories(v2)
        listing, tags = listed(builder.tree), listed(builder.tree, '-i', '*:*')
        try:
            assert sorted(words(listing)) == sorted(store)
            assert set(words(tags)) == {'%s:%s' % (name, tag) for name, repo in store.items()
                                        for tag in repo.ordinary_tags()}
            for line in tags['images']:
                repo = store[line['repository']]
                assert line['digest'] == (repo.tags[line['tag']] or None)
                assert line['size'] == model.size(v2, repo, line['tag']), word(line)
            for line in listing['images']:
                repo = store[line['repository']]
                assert line['tags'] == len(repo.ordinary_tags())
                assert line['untagged'] == len(untagged(repo))
            assert listing['total'] == tags['total'] or listing['images'] != tags['images']
            assert listing['total']['repositories'] == len(store)
            assert listing['total']['blobs'] == len(stored)
            assert listing['total']['size'] == sum(stored.values())
            assert listing['total']['manifests'] == sum(
                len(repo.revisions) for repo in store.values())
        except AssertionError:
            note('\n'.join(describe(snapshot(v2))))
            raise


def untagged(repo):
    return set(repo.revisions) - repo.reached_by(set(repo.tags))


def test_a_blob_that_two_tags_share_is_freed_by_neither(tree):
    sizes = model.stored_blobs(tree.v2)
    lines = listed(tree, '-i', '*:*')['images']
    assert len(lines) == 3
    for line in lines:
        own = [line['digest'], digest_of(word(line).encode()),
               digest_of(encode({'for': word(line)}))]
        assert line['frees'] == sum(sizes[digest] for digest in own)
        assert line['size'] == line['frees'] + len(b'base')


def test_a_repository_is_what_its_tags_and_uploads_are(tree):
    tree.upload('app', 'begun', b'x' * 1000)
    blobs, stored = model.stored_blobs(tree.v2), bytes_stored(tree.v2)
    app = by_word(listed(tree))['app']
    assert (app['tags'], app['untagged'], app['tag'], app['digest']) == (2, 0, None, None)
    assert app['frees'] >= 1000 + sum(
        blobs[current(tree, 'app', tag)] for tag in ('1.0', '2.0'))
    assert call('-d', tree.root, '-i', 'app').status == 0
    assert app['frees'] == stored - bytes_stored(tree.v2)


def test_a_repository_without_tags_has_its_line(tree):
    digest = tree.image('ci/cache', [b'by digest only'])
    line = by_word(listed(tree))['ci/cache']
    assert (line['tags'], line['untagged']) == (0, 1)
    assert line['frees'] == sum(len(model.blob(tree.v2, one)) for one in [
        digest, digest_of(b'by digest only'), digest_of(b'{}')])
    assert words(listed(tree, '-i', 'ci/cache:*')) == []


def test_a_blob_that_is_named_without_a_link_is_no_garbage(tree):
    """Here it has a link that nothing uses, there a manifest that names it."""
    child = tree.manifest('spare', {'manifests': []}, legacy=True)
    tree.tag('named', '1.0', tree.index('named', [child]))
    garbage = listed(tree)['total']['garbage']
    assert garbage == really_freed(tree.v2, '-g') == 0


def test_a_hard_linked_blob_frees_nothing(tree):
    path = tree.blob_path(digest_of(b'app:1.0'))
    frees = by_word(listed(tree, '-i', 'app:1.0'))['app:1.0']['frees']
    os.link(path, os.path.join(tree.root, 'another name'))
    assert by_word(listed(tree, '-i', 'app:1.0'))['app:1.0']['frees'] == frees - len(b'app:1.0')


def test_the_size_of_a_broken_tag_is_that_of_all_it_may_stand_for(tree):
    size = listed(tree, '-i', 'app:1.0')['images'][0]['size']
    write(tree.tag_link('app', '1.0'), b'')
    broken = listed(tree, '-i', 'app:1.0')['images'][0]
    assert (broken['digest'], broken['size']) == (None, size)


def test_the_size_counts_a_layer_that_was_pushed_under_sha512(tree):
    layer = tree.layer('app', b'pushed as sha512', 'sha512')
    tree.tag('app', 'wide', tree.image('app', [layer]))
    wide = listed(tree, '-i', 'app:wide')['images'][0]
    manifest = len(model.blob(tree.v2, wide['digest']))
    assert wide['size'] == wide['frees'] == len(b'pushed as sha512') + len(b'{}') + manifest


# --- what is selected -----------------------------------------------------------------------------

@pytest.fixture
def signed(tree):
    """app:1.0 is signed, and was another image before; team/other has a signature of nothing."""
    former, image = tree.image('app', [b'former']), current(tree, 'app', '1.0')
    tree.tag('app', '1.0', former)
    tree.tag('app', '1.0', image)
    tree.former, tree.signature = former, image.replace(':', '-') + '.sig'
    tree.orphan = ABSENT.replace(':', '-') + '.sig'
    tree.tag('app', tree.signature, tree.image('app', [b'signature']))
    tree.tag('team/other', tree.orphan, tree.image('team/other', [b'of nothing']))
    return tree


@pytest.mark.parametrize('request_of, expected', [
    ('', 'app team/other'), ('-i *', 'app team/other'), ('-i app', 'app'), ('-x app', 'team/other'),
    ('-i app:1.0', 'app:1.0'), ('-i *:*', 'app:1.0 app:2.0 team/other:1.0'),
    ('-i *:1.0 -x app', 'team/other:1.0'), ('-i no*', ''), ('-i *:* --older-than 1h', ''),
    ('-i app:/[12][.]0/', 'app:1.0 app:2.0'), ('-i *:* -x *:1.0', 'app:2.0'),
    ('-i app -i team/other:1.0', 'app team/other:1.0'),
    ('-u', 'app@{former}'), ('-u -i app', 'app@{former}'), ('-u -x app', ''),
    ('-u -i team/*', ''), ('-i app@{former}', 'app@{former}'), ('-u --older-than 1d', ''),
    ('-i team/other:sha256-*', 'team/other:{orphan}')])
def test_a_line_for_each_thing_that_the_same_words_would_delete(signed, request_of, expected):
    found = vars(signed)
    listing = listed(signed, *request_of.format(**found).split())
    assert sorted(words(listing, *request_of.split())) == expected.format(**found).split()
    names = call('-d', signed.root, '-lq', *request_of.format(**found).split())
    assert sorted(names.out.splitlines()) == expected.format(**found).split()
    assert listing['total']['repositories'] == 2, 'the total is that of the whole store'


def test_an_untagged_manifest_and_the_tag_that_it_was(signed):
    out = call('-d', signed.root, '-l', '-u').out
    line = next(line for line in out.splitlines() if signed.former[7:19] in line)
    assert '1.0' in line


def test_a_missing_image_is_an_error(tree):
    found = listed(tree, '-i', 'app:nothing', status=1)
    assert 'nothing' in found['error']


# --- one JSON object ------------------------------------------------------------------------------

DELETION = {'registry': str, 'dry_run': bool, 'repositories': list, 'tags': list,
            'manifests': list, 'layers': int, 'uploads': int, 'upload_bytes': int, 'blobs': list,
            'freed': int, 'warnings': list, 'failed': list, 'skipped': list}
LISTING = {'registry': str, 'images': list, 'total': dict}
NOTHING = type(None)
LINE = {'repository': str, 'tag': (str, NOTHING), 'digest': (str, NOTHING),
        'tags': (int, NOTHING), 'untagged': (int, NOTHING), 'pushed': (str, NOTHING), 'size': int,
        'frees': (int, NOTHING), 'damage': (str, list, NOTHING)}
TOTAL = dict.fromkeys(['repositories', 'tags', 'manifests', 'blobs', 'size', 'uploads',
                       'selected', 'untagged', 'garbage'], (int, NOTHING))


def has_types(found, types):
    """Whether an object has just these keys, in this order, with values of these types."""
    return list(found) == list(types) and all(
        isinstance(found[key], kind) for key, kind in types.items())


def test_the_json_of_the_list(signed):
    signed.tag('app', 'broken', current(signed, 'app', '1.0'))
    write(signed.tag_link('app', 'broken'), b'')
    os.utime(signed.tag_link('app', '1.0'), (1700000000, 1700000000.5))
    os.utime(signed.tag_link('team/other', '1.0'), (0, 0))
    for request_of in [], ['-i', '*:*'], ['-u']:
        listing = the_json('-d', signed.root, '-l', *request_of, run=run)
        assert has_types(listing, LISTING) and has_types(listing['total'], TOTAL)
        assert all(has_types(line, LINE) for line in listing['images']) and listing['images']
        assert listing['registry'] == signed.v2
    found = by_word(listed(signed, '-i', '*:*'))
    assert found['app:1.0']['pushed'] == '2023-11-14T22:13:20Z'
    assert found['team/other:1.0']['pushed'] == '1970-01-01T00:00:00Z'
    assert found['app:1.0']['digest'] == current(signed, 'app', '1.0')
    assert found['app:1.0']['tags'] is found['app:1.0']['untagged'] is None
    assert found['app:1.0']['damage'] is None
    assert found['app:broken']['digest'] is None and found['app:broken']['damage']
    assert by_word(listed(signed))['team/other']['pushed'] == max(
        (line['pushed'] for line in listed(signed, '-i', 'team/other:*', '-i',
                                           'team/other:' + signed.orphan)['images']))


def test_the_json_of_a_deletion(signed):
    signed.upload('team/other', 'old', b'x' * 100, age=2 * DAY)
    expected = model.expect(signed.v2, ['app:1.0', 'team/other'])
    sizes, stored, links = model.stored_blobs(signed.v2), bytes_stored(signed.v2), links_of(signed)
    request_of = ['-i', 'app:1.0', '-i', 'team/other']
    dry = the_json('-d', signed.root, '-n', *request_of, run=run)
    done = the_json('-d', signed.root, *request_of, run=run)
    assert has_types(done, DELETION)
    assert (dry.pop('dry_run'), done.pop('dry_run')) == (True, False)
    assert dry == done
    assert done['registry'] == signed.v2 and done['repositories'] == ['team/other']
    assert set(done['tags']) == {'%s:%s' % one for one in expected.tags}
    assert set(done['manifests']) == {'%s@%s' % one for one in expected.manifests}
    assert done['layers'] == len(links) - len(links_of(signed))
    assert done['uploads'] == 1
    assert {(blob['digest'], blob['size']) for blob in done['blobs']} == {
        (digest, sizes[digest]) for digest in expected.blobs}
    assert done['freed'] == done['upload_bytes'] + sum(blob['size'] for blob in done['blobs'])
    assert done['freed'] == stored - bytes_stored(signed.v2)
    assert done['warnings'] == done['failed'] == done['skipped'] == []


def links_of(tree):
    return [path for path in model.every_path(tree.v2) if re.search('/_layers/.*/link$', path)]


def test_the_json_of_nothing_to_do(tree):
    found = the_json('-d', tree.root, '-g')
    assert has_types(found, DELETION)
    assert found['blobs'] == [] and found['freed'] == 0 and not found['dry_run']


def test_the_json_of_a_damaged_repository(tree):
    """It is left as it is and named; the others go on."""
    tree.corrupt_blob(current(tree, 'app', '2.0'))
    found = the_json('-d', tree.root, '-i', '*:1.0', '--allow-remove-all', status=3)
    assert has_types(found, DELETION)
    assert found['tags'] == ['team/other:1.0']
    assert [has_types(one, {'repository': str, 'error': str}) for one in found['skipped']] == [True]
    assert found['skipped'][0]['repository'] == 'app'


@pytest.mark.parametrize('request_of', [
    ['-i', 'nothing'], ['-n', '-i', 'app:nothing'], ['-l', '-i', 'nothing'],
    ['--check', '-i', 'nothing'], ['-i', 'app:1.0', '-x', 'nothing']])
def test_the_json_of_a_refusal(tree, request_of):
    found = the_json('-d', tree.root, *request_of, status=1, run=run)
    assert 'nothing' in found['error'] and isinstance(found['error'], str)


def test_the_json_of_no_registry(tmp_path):
    for request_of in [['-l'], ['-i', 'app'], ['--check']]:
        assert isinstance(the_json('-d', str(tmp_path), *request_of, status=1)['error'], str)


def test_the_json_of_something_that_may_not_be_moved(others_tree):
    """All or nothing: its repository is as it was, the other is gone."""
    os.chmod(others_tree.repo('app', '_manifests', 'tags'), 0o500)
    before = snapshot(others_tree.repo('app'))
    result = run_as_other(others_tree, '--json', '--allow-remove-all', '-i', '*:1.0')
    assert result.status == 3, result.said
    assert snapshot(others_tree.repo('app')) == before
    found = json.loads(result.out)
    assert has_types(found, DELETION)
    assert found['tags'] == ['team/other:1.0'] and found['repositories'] == ['team/other']
    assert not any(name.startswith('app@') for name in found['manifests'])
    assert all(has_types(one, {'path': str, 'error': str}) for one in found['failed'])
    assert 'app' in json.dumps(found['failed'] + found['skipped'])


@pytest.mark.parametrize('option', ['-q', '-v'])
def test_json_and_messages_keep_apart(tree, option):
    assert has_types(the_json('-d', tree.root, '-n', option, '-i', 'app', run=run), DELETION)
    assert has_types(the_json('-d', tree.root, '-l', option, run=run), LISTING)


# --- damage ---------------------------------------------------------------------------------------

def damages(tree, repo='bad'):
    """Plant an image with each kind of damage, by tag."""
    tree.tag(repo, 'empty', tree.image(repo, [b'of an empty tag']))
    write(tree.tag_link(repo, 'empty'), b'')
    tree.tag(repo, 'garbage', tree.image(repo, [b'of a garbage tag']))
    write(tree.tag_link(repo, 'garbage'), GARBAGE)
    empty = tree.image(repo, [b'empty'])
    tree.tag(repo, 'nothing', empty)
    write(tree.blob_path(empty), b'')
    gone = tree.image(repo, [b'gone'])
    tree.tag(repo, 'gone', gone)
    tree.remove_blob(gone)
    tree.tag(repo, 'absent', ABSENT)
    tree.tag(repo, 'layer', tree.image(repo, [b'a layer that is gone']))
    tree.remove_blob(digest_of(b'a layer that is gone'))
    tree.tag(repo, 'short', tree.image(repo, [b'a layer that is cut']))
    write(tree.blob_path(digest_of(b'a layer that is cut')), b'a layer')
    tree.tag(repo, 'link', tree.image(repo, [b'a layer that lost its link']))
    os.remove(tree.layer_link(repo, digest_of(b'a layer that lost its link')))
    tree.tag(repo, 'child', tree.index(repo, [tree.image(repo, [b'gone from a child'])]))
    tree.remove_blob(digest_of(b'gone from a child'))


def whole_images(tree, repo='good'):
    """None of these is damaged: layers and children may be stored elsewhere."""
    tree.tag(repo, 'foreign', tree.image(repo, [b'here'], foreign=[ABSENT]))
    tree.tag(repo, 'sparse', tree.index(repo, [tree.image(repo, [b'one']), ABSENT]))
    tree.tag(repo, 'cache', tree.cache(repo, [b'cached']))
    tree.tag(repo, 'old', tree.schema1(repo, [b'old'], signatures=1))
    tree.tag(repo, 'wide', image_of_size(tree, repo, tree.layer(repo, b'wide', 'sha512'), 4))
    tree.tag(repo, 'null', tree.image(repo, None))


def image_of_size(tree, repo, layer, size):
    """An image with a layer that is so large by its own account."""
    document = {'schemaVersion': 2, 'mediaType': OCI_IMAGE,
                'config': tree.descriptor(OCI_CONFIG, tree.layer(repo, b'{}')),
                'layers': [dict(tree.descriptor(OCI_LAYER, layer), size=size)]}
    return tree.manifest(repo, document)


DAMAGES = {'empty': 'broken', 'garbage': 'broken', 'nothing': 'empty|unreadable',
           'gone': 'manifest|unreadable', 'absent': 'no manifest', 'layer': 'layer|missing',
           'short': 'size|layer', 'link': 'layer|missing', 'child': 'layer|missing'}


def test_damage_is_shown(tree):
    damages(tree)
    whole_images(tree)
    before = snapshot(tree.root)
    result = run('-d', tree.root, '-l', '-i', 'bad:*', '-i', 'good:*')
    assert result.status == 0, result.said
    assert snapshot(tree.root) == before
    lines = {line.split()[0]: line for line in result.out.splitlines() if line.split()}
    found = by_word(listed(tree, '-i', 'bad:*', '-i', 'good:*'))
    assert {name for name in found if name.startswith('bad:')} == {
        'bad:' + tag for tag in DAMAGES}
    for name, image in found.items():
        repo, _, tag = name.partition(':')
        if repo == 'good':
            assert image['damage'] is None, image
        else:
            assert re.search(DAMAGES[tag], json.dumps(image['damage'])), image
            assert re.search(DAMAGES[tag], lines[name]), lines[name]
    assert by_word(listed(tree))['bad']['damage'] and not by_word(listed(tree))['good']['damage']
    assert {tag for tag in DAMAGES if found['bad:' + tag]['digest'] is None} == {
        'empty', 'garbage'}


# --- the store as it is met -----------------------------------------------------------------------

def test_the_list_of_a_new_registry(tmp_path):
    tree = Tree(tmp_path)
    assert listed(tree)['images'] == []
    shutil.rmtree(tree.v2 + '/blobs')
    shutil.rmtree(tree.v2 + '/repositories')
    assert listed(tree)['images'] == []
    assert call('-l', '-d', tree.root).status == 0


@pytest.mark.parametrize('locale', ['C', 'C.UTF-8'])
def test_the_list_with_names_that_are_not_utf8(tree, locale):
    shutil.copytree(os.fsencode(tree.repo('app')), os.fsencode(tree.repo('team')) + b'/\xff')
    for more in [[], ['-q'], ['--json']]:
        result = run('-d', tree.root, '-l', *more, environment={'LC_ALL': locale})
        assert result.status == 0 and ('app' in result.out), result.said


def test_the_list_as_an_ordinary_user(others_tree):
    """Who may only read, in a folder where nothing can be made."""
    for base, folders, files in os.walk(others_tree.root):
        for name in files:
            os.chmod(os.path.join(base, name), 0o444)
        os.chmod(base, 0o555)
        os.chown(base, 0, 0) if AS_ROOT and NOBODY else None
    before = snapshot(others_tree.root)
    for more in ['-l'], ['--check']:
        result = run_as_other(others_tree, '--json', *more)
        assert result.status == 0, result.said
        assert len(json.loads(result.out)['images']) >= 2
        assert snapshot(others_tree.root) == before


def test_the_list_while_another_run_holds_the_lock(tree):
    folder = os.open(tree.v2, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        for option in '-l', '--check':
            result = run('-d', tree.root, option)
            assert result.status == 0, result.said
    finally:
        os.close(folder)


def test_the_list_beside_what_an_interrupted_run_left(tree):
    """What is set aside may go back; what is gone, is gone."""
    aside = os.path.join(tree.v2, 'repositories', ASIDE)
    os.makedirs(os.path.join(aside, 'repositories', 'app'))
    for option in '-l', '--check':
        before = snapshot(tree.root)
        found = the_json('-d', tree.root, option, status=1)
        assert found['error'] and snapshot(tree.root) == before
    os.rename(aside, os.path.join(tree.v2, 'repositories', GONE))
    assert words(listed(tree)) == ['app', 'team/other']


@pytest.mark.parametrize('request_of', ['-l', '-lq', '-l --json', '--check'])
def test_a_reader_that_has_seen_enough(tree, request_of):
    shell = '"$0" "$1" -d "$2" %s | true; exit ${PIPESTATUS[0]}' % request_of
    result = run(command=['bash', '-c', shell, sys.executable, script.__file__, tree.root])
    assert result.status == 0


@pytest.mark.parametrize('request_of', ['-l', '-lq', '-l --json', '--check --json'])
def test_standard_output_is_full(tree, request_of):
    shell = '"$0" "$1" -d "$2" %s > /dev/full' % request_of
    result = run(command=['bash', '-c', shell, sys.executable, script.__file__, tree.root])
    assert result.status == 1
    assert 'Cannot write to standard output: No space left on device' in result.said


# --- terminals ------------------------------------------------------------------------------------

WIDTHS = [40, 60, 80, 120, 200]
TABLES = {'repositories': [], 'tags': ['-i', '*:*', '-i', '*:sha256-*'], 'untagged': ['-u']}


@pytest.fixture(scope='module')
def many(tmp_path_factory):
    """Names of all lengths, sizes of all sizes, a cosign tag of an image elsewhere, and damage."""
    tree = Tree(tmp_path_factory.mktemp('many'))
    for number in range(1, 11):
        repo = '/'.join(['team', 'some-product', 'a-component-with-a-long-name'][:number % 3 + 1])
        tag = 'build-%d' % 10 ** number
        tree.tag(repo, tag, tree.image(repo, [b'before', tag.encode()]))
        image = tree.image(repo, [bytes([number]) * 4 ** number])
        tree.tag(repo, tag, image, age=3 ** number * 60)
    tree.tag('a/' * 100 + 'z', '1', tree.image('a/' * 100 + 'z', [b'deep']))
    tree.tag('web (copy)', 't' * 128, tree.image('web (copy)', [b'wide']))
    tree.tag('team', ABSENT.replace(':', '-') + '.sig', tree.image('team', [b'signature']))
    damages(tree)
    return tree


def table(width, tree, *arguments, **options):
    """The list on a terminal of this width, or in a pipe: (header, rows, what is below)."""
    status, out, said = on_terminal(width, '-l', '-d', tree.root, *arguments, said=False,
                                    **options)
    assert status == 0, said
    lines = re.sub(r'\x1b\[[0-9;]*m', '', out).splitlines()
    count = len(words(listed(tree, *[one for one in arguments if one != '-v'])))
    assert count > 3
    return lines[0], lines[1:count + 1], lines[count + 1:]


def is_short_for(shown, name):
    """Whether `shown` is `name`, whole or with its middle left out."""
    start, gap, end = re.match(r'(.*?)(\.{2,3}|…|$)(.*)', shown).groups()
    return shown == name or bool(start and gap and end) and (
        name.startswith(start) and name.endswith(end) and len(shown) < len(name))


@pytest.mark.parametrize('request_of', list(TABLES))
def test_the_table_fits_the_terminal(many, request_of):
    """The digest is left out first; each line has its name, whole or shortened in the middle."""
    arguments, columns = TABLES[request_of], set()
    names = words(listed(many, *arguments), *arguments)
    for width in WIDTHS:
        header, rows, below = table(width, many, *arguments)
        assert [line for line in [header] + rows + below if len(line) > width] == []
        assert columns <= set(header.split()), 'a column that only a narrower table has'
        columns = set(header.split())
        assert {'SIZE', 'FREES'} <= columns
        for row, name in zip(rows, names):
            assert is_short_for(row.split('  ')[0], name.partition('@')[0]), (row, name)
    assert request_of == 'repositories' or 'DIGEST' in columns
    for width in range(40, 120, 8):
        shown = set(table(width, many, *arguments)[0].split())
        assert shown == columns or 'DIGEST' not in shown, 'the digest column goes first'


def test_one_long_name_does_not_widen_a_narrow_table(many):
    header, rows, _ = table(60, many, *TABLES['tags'])
    short = [row for row in rows if row.startswith('bad:gone ')]
    assert short, rows


def test_the_table_in_a_pipe_is_as_wide_as_it_has_to_be(many):
    for environment in [(), {'COLUMNS': '40'}]:
        for request_of in TABLES.values():
            _, rows, _ = table(60, many, *request_of, out=False, environment=environment)
            for row, name in zip(rows, words(listed(many, *request_of), *request_of)):
                assert row.startswith(name.partition('@')[0] + ' '), row
                assert '##' not in row


@pytest.mark.parametrize('out', [True, False])
def test_numbers_end_where_their_headings_do(many, out):
    header, rows, _ = table(200, many, '-i', '*:*', out=out)
    for heading in 'SIZE', 'FREES':
        end = header.index(heading) + len(heading)
        for row in rows:
            assert row[end - 1] != ' ' and row[end:end + 2] in ('  ', ' ', ''), row


def test_bars_are_for_terminals(many):
    _, rows, _ = table(200, many, '-i', '*:*')
    lengths = [len(re.search('#*$', row).group()) for row in rows]
    # In order, since the list is sorted by what the bars show.
    assert lengths[0] > 3 and lengths == sorted(lengths, reverse=True) and lengths[-1] == 0


@pytest.mark.parametrize('colour', [{}, {'NO_COLOR': '1'}, {'TERM': 'dumb'}])
def test_no_colour_without_a_terminal_or_against_the_users_will(many, colour):
    out = on_terminal(120, '-l', '-d', many.root, out=bool(colour), environment=colour)[1]
    assert '\x1b' not in out


def test_ages_on_a_terminal_and_dates_elsewhere(many):
    name = 'team/some-product:build-10 '        # pushed three minutes ago
    for verbose, out, pushed in [([], True, '3 minutes ago'), (['-v'], True, r'20\d\d-\d\d-\d\d '),
                                 ([], False, r'20\d\d-\d\d-\d\d ')]:
        _, rows, _ = table(120, many, '-i', '*:*', *verbose, out=out)
        assert [row for row in rows if row.startswith(name) and re.search(pushed, row)], rows


def test_what_stands_below_the_lines(tree):
    """All that is on the disk is accounted for, and the folder is named."""
    tree.upload('app', 'new', b'n' * 3000)
    tree.upload('app', 'old', b'o' * 5000, age=2 * DAY)
    tree.blob(b'orphan' * 1000)
    tree.image('app', [b'untagged' * 1000])
    out = run('-d', tree.root, '-l').out
    below = '\n'.join(out.splitlines()[3:])
    assert tree.v2 in below
    assert '-u' in below and '-g' in below
    assert re.search(r'over a day old: %s\n' % shown(5000 + 20 + 5), below), below
    total = listed(tree)['total']
    for figure in 'selected', 'size', 'uploads', 'untagged', 'garbage':
        assert shown(total[figure]) in below, (figure, below)
    assert shown(shutil.disk_usage(tree.v2).total).split('.')[0] in below


def shown(number):
    """A number of bytes as the script says it."""
    return script.human_size(number)
