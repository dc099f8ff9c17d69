"""Garbage, -g: on random trees against model.py, kind by kind, and against a real registry.

The trees are those of test_trees.py, with what other tools and broken pushes leave.
"""

import os
import re
import shutil
import tempfile
import time

import pytest
from hypothesis import event, given, note, settings, strategies as st

import model
import test_trees
from faults import KILLED, Faults, fast_folder
from registry import Registry
from test_registry import pull, script, stored_blobs
from test_trees import (
    ABSENT, LAYERS, NAMES, a_tree, an_image, describe, left_as_expected, run, served,
    unharmed_and_as_promised,
)
from tree import DAY, GARBAGE, Tree, digest_of, set_age, snapshot, write

JOURNAL = '.delete_docker_registry_image.journal'
SUMMARY = re.compile(r'\d[\d,.]* (bytes?|[KMGT]iB) freed')


# --- random trees ---------------------------------------------------------------------------------

def litter(builder, most=5):
    """Leave what a registry's disk gathers that no tag names."""
    def orphan():
        builder.tree.blob(builder.pick(b'orphan', *LAYERS))

    def unused_layer(repo):
        builder.tree.layer(repo, builder.pick(b'unused', *LAYERS),
                           builder.pick('sha256', 'sha512'))

    def deleted_over_the_api(repo):
        """Takes link files, and leaves their folders."""
        kind = builder.pick('_layers/', '_manifests/revisions/')
        paths = builder.paths('^repositories/%s/%s[^/]*/[^/]*/link$' % (repo, kind))
        if paths:
            os.remove(os.path.join(builder.tree.v2, builder.pick(*paths)))

    def history_of_a_manifest_that_is_gone(repo):
        tags = model.listing(builder.tree.repo(repo), '_manifests', 'tags')
        if tags:
            write(builder.tree.history_link(repo, builder.pick(*tags), ABSENT), ABSENT.encode())

    def upload(repo):
        builder.tree.upload(repo, builder.pick('one', 'two'), age=builder.pick(0, 2 * DAY))

    def empty_repository():
        builder.tree.upload('c/empty', 'one', age=builder.pick(0, 2 * DAY))
        if builder.pick(True, False):
            os.makedirs(builder.tree.repo('c/empty', '_manifests', 'tags'), exist_ok=True)

    for _ in range(builder.draw(st.integers(0, most))):
        litter_one = builder.pick(orphan, empty_repository, unused_layer, deleted_over_the_api,
                                  history_of_a_manifest_that_is_gone, upload)
        litter_one(*() if litter_one in (orphan, empty_repository) else (builder.pick(*NAMES),))


def an_exclusion(builder):
    """What -x may be given; now and then it matches nothing."""
    if builder.pick(True, False, False, False):
        return builder.pick('nothing', 'a:nothing', 'no*', 'a@' + ABSENT)
    image = an_image(builder)
    return image if not image.startswith('localhost') else 'a'


def check(v2, images=(), untagged=False, prune=False, excluded=(), garbage=True, run=run):
    """What test_trees.check() says of every run, for one with -g; and that -j changes nothing."""
    args = ['-g'] * garbage + ['-u'] * untagged + ['-p'] * prune
    args += [arg for image in images for arg in ('-i', image)]
    args += [arg for image in excluded for arg in ('-x', image)]
    before, served_before = snapshot(v2), served(v2)
    try:
        expected = model.expect(v2, images, untagged, prune, garbage, excluded)
    except model.Refused as refused:
        expected, why = None, str(refused)
    event('decided' if expected else 'refused')
    try:
        dry_status, dry = run(v2, '-n', '-j', '1', *args)
        assert run(v2, '-n', '-j', '16', *args) == (dry_status, dry), 'depends on -j'
        assert snapshot(v2) == before, 'a dry run changed something'
        with a_copy(v2) as other:
            other_status, other_messages = run(other, '-j', '16', *args)
            other_after = contents(other)
        status, messages = run(v2, '-j', '1', *args)
        after = snapshot(v2)
        assert other_status == status
        assert steps(other_messages, other) == steps(messages, v2), 'depends on -j'
        assert other_after == contents(v2), 'depends on -j'

        unharmed_and_as_promised(v2, served_before, (dry_status, dry), (status, messages))
        if expected is None:
            assert status in (1, 2), 'not refused: ' + why
            assert after == before, 'refused, and changed something'
            return
        assert status == 0, messages
        left_as_expected(after, expected)
        assert after.items() >= {path: what for path, what in before.items()
                                 if what[0] == 'file' and path in after}.items()
        assert {' '.join(found) for line in messages for found in re.findall(
            r'^\w+ Deleted (tag|manifest|repository|blob) (\S+)', line)} == expected.named
        assert not expected.warned or any(line.startswith('WARNING') for line in messages)
    except AssertionError:
        note('\n'.join(describe(before) + ['delete_docker_registry_image ' + ' '.join(args)]))
        raise


def steps(messages, v2):
    """All but the empty folders, whose order is that of the disk."""
    return [line.replace(os.path.dirname(v2), 'HERE') for line in messages
            if "empty folder '" not in line]


class a_copy(tempfile.TemporaryDirectory):
    """A folder with a copy of the store, times included."""

    def __init__(self, v2):
        super().__init__()
        self.v2 = v2

    def __enter__(self):
        copy = os.path.join(super().__enter__(), 'docker', 'registry', 'v2')
        shutil.copytree(self.v2, copy, symlinks=True)
        mark = os.path.join(os.path.dirname(self.v2), 'lockfiles')
        if os.path.exists(mark):
            shutil.copytree(mark, os.path.join(os.path.dirname(copy), 'lockfiles'))
        return copy


def contents(v2):
    return {path: what[:2] for path, what in snapshot(v2).items()}


@settings(max_examples=100)
@given(st.data())
def test_garbage_alone(data):
    with a_tree(data, steps=12) as builder:
        litter(builder)
        check(builder.tree.v2, prune=True)
        status, messages = run(builder.tree.v2, '-g', '-p')
        assert status == 1 or messages == ['INFO Nothing to delete'], 'not all at once'


@settings(max_examples=100)
@given(st.data())
def test_garbage_and_images(data):
    with a_tree(data) as builder:
        litter(builder, 3)
        images = [an_image(builder) for _ in range(data.draw(st.integers(1, 2)))]
        check(builder.tree.v2, images, prune=data.draw(st.booleans()))


@settings(max_examples=100)
@given(st.data())
def test_garbage_and_untagged(data):
    with a_tree(data) as builder:
        litter(builder, 3)
        names = [name for name in NAMES if builder.pushed[name]] + ['*']
        check(builder.tree.v2, [builder.pick(*names)], untagged=True,
              prune=data.draw(st.booleans()))


@settings(max_examples=100)
@given(st.data())
def test_garbage_and_exclusions(data):
    with a_tree(data) as builder:
        litter(builder, 3)
        untagged = builder.pick(False, False, True)
        images = ['*'] if untagged else [an_image(builder)] if builder.pick(True, False) else []
        excluded = [an_exclusion(builder) for _ in range(data.draw(st.integers(1, 2)))]
        check(builder.tree.v2, images, untagged, excluded=excluded)


@settings(max_examples=100)
@given(st.data())
def test_garbage_in_a_damaged_store(data):
    with a_tree(data, damage=3) as builder:
        litter(builder, 3)
        check(builder.tree.v2, prune=data.draw(st.booleans()))


@settings(max_examples=4)
@given(st.data())
def test_garbage_in_a_process(data):
    with a_tree(data, damage=1) as builder:
        litter(builder)
        check(builder.tree.v2, prune=True, run=test_trees.run_in_a_process)


# --- one at a time --------------------------------------------------------------------------------

@pytest.fixture
def tree(tmp_path):
    """One tagged image in a repository."""
    tree = Tree(tmp_path)
    tree.tag('app', '1.0', tree.image('app', [b'base', b'one']))
    return tree


def collect(tree, *args, status=0):
    """Run -g; what it said."""
    done, said = run(tree.v2, '-g', *args)
    assert done == status, said
    return '\n'.join(said)


def refused(tree, *args):
    before = snapshot(tree.root)
    said = collect(tree, *args, status=1)
    assert snapshot(tree.root) == before
    assert collect(tree, '-n', *args, status=1) == said
    return said


def exists(tree, digest):
    return os.path.exists(tree.blob_path(digest))


def test_no_garbage(tree):
    before = snapshot(tree.root)
    assert collect(tree) == 'INFO Nothing to delete'
    assert snapshot(tree.root) == before


def test_an_orphan_blob(tree):
    orphan = tree.blob(b'orphan')
    assert '1 blob: 6 bytes freed' in collect(tree)
    assert not exists(tree, orphan)


def test_a_blob_that_only_a_manifest_names_stays(tree):
    """The link was lost; a manifest needs the blob all the same."""
    shutil.rmtree(os.path.dirname(tree.layer_link('app', digest_of(b'one'))))
    assert collect(tree) == 'INFO Nothing to delete'
    assert exists(tree, digest_of(b'one'))


def test_a_layer_link_that_no_manifest_uses(tree):
    tree.layer('app', b'unused')
    tree.layer('team/other', b'unused')
    tree.tag('team/other', '1.0', tree.image('team/other', [b'unused']))
    said = collect(tree)
    assert 'layer link %s of app' % digest_of(b'unused') in said
    assert not os.path.exists(os.path.dirname(tree.layer_link('app', digest_of(b'unused'))))
    # There it is used.
    assert os.path.exists(tree.layer_link('team/other', digest_of(b'unused')))
    assert exists(tree, digest_of(b'unused'))


def test_a_layer_under_sha512_keeps_both_links(tree):
    used = tree.layer('app', b'used', 'sha512')
    tree.tag('app', '2.0', tree.image('app', [used]))
    unused = tree.layer('app', b'unused', 'sha512')
    collect(tree)
    for digest in [used, digest_of(b'used')]:
        assert os.path.exists(tree.layer_link('app', digest))
    for digest in [unused, digest_of(b'unused')]:
        assert not os.path.exists(tree.layer_link('app', digest))
    assert exists(tree, digest_of(b'used')) and not exists(tree, digest_of(b'unused'))


def test_a_blob_deleted_over_the_api_goes_at_once(tree):
    """Its folder in `_layers` stays behind without a link, and is none."""
    unused = tree.layer('app', b'unused')
    os.remove(tree.layer_link('app', unused))
    collect(tree)
    assert not os.path.exists(os.path.dirname(tree.layer_link('app', unused)))
    assert not exists(tree, unused)


def test_a_manifest_deleted_over_the_api(tree):
    """Its revision lost the link, other tags have it in their history, its layers are linked."""
    former = tree.image('app', [b'base', b'former'])
    tree.tag('app', '2.0', former)
    tree.tag('app', '2.0', tree.image('app', [b'base', b'two']))
    os.remove(tree.revision_link('app', former))
    collect(tree)
    assert not os.path.exists(os.path.dirname(tree.revision_link('app', former)))
    assert not os.path.exists(os.path.dirname(tree.history_link('app', '2.0', former)))
    assert not exists(tree, former) and not exists(tree, digest_of(b'former'))
    assert model.pull(tree.v2, 'app', tree.image('app', [b'base', b'two']))[1]


def test_untagged_manifests_are_no_garbage(tree):
    untagged = tree.image('app', [b'untagged'])
    assert collect(tree) == 'INFO Nothing to delete'
    collect(tree, '-u', '-i', '*')
    assert not exists(tree, untagged)


def test_a_line_of_untagged_manifests_counts_their_blobs_only(tree):
    tree.image('app', [b'base', b'untagged'])
    tree.layer('app', b'unused')
    said = collect(tree, '-u', '-i', 'app')
    assert 'Deleted 1 untagged manifest of app (2 blobs, ' in said  # itself, and a layer
    assert 'Deleted 1 manifest, 3 blobs of app: ' in said.splitlines()[-1]


@pytest.mark.parametrize('newest', ['data', 'startedat', 'hashstates/sha256/12', '.'])
def test_uploads_by_their_newest_file(tree, newest):
    tree.upload('app', 'old', age=DAY + 60)
    tree.upload('app', 'fresh', age=2 * DAY)
    set_age(os.path.join(tree.repo('app', '_uploads', 'fresh'), newest), DAY - 60)
    assert 'Deleted upload old of app' in collect(tree)
    assert os.listdir(tree.repo('app', '_uploads')) == ['fresh']


def test_a_repository_with_an_old_upload_only_goes(tree):
    for repo, age in [('old', 2 * DAY), ('fresh', 0), ('old/below', 0)]:
        tree.upload(repo, 'one', age=age)
    assert 'Deleted repository old\n' in collect(tree)
    assert not os.path.exists(tree.repo('old', '_uploads'))
    assert os.listdir(tree.repo('fresh', '_uploads')) == ['one']
    assert os.listdir(tree.repo('old/below', '_uploads')) == ['one']


def test_a_tag_without_its_manifest_stays(tree):
    """It may say what is missing; it is deleted by its name."""
    lost = tree.image('lost', [b'lost'])
    tree.tag('lost', '1.0', lost)
    shutil.rmtree(tree.repo('lost', '_manifests', 'revisions'))
    collect(tree)
    assert os.path.exists(tree.tag_link('lost', '1.0'))
    assert not exists(tree, digest_of(b'lost'))


def test_an_excluded_repository_keeps_its_garbage(tree):
    tree.layer('app', b'unused')
    tree.upload('app', 'old', age=2 * DAY)
    tree.upload('empty', 'old', age=2 * DAY)
    orphan = tree.blob(b'orphan')
    collect(tree, '-x', 'app', '-x', 'empty')
    assert os.path.exists(tree.layer_link('app', digest_of(b'unused')))
    assert exists(tree, digest_of(b'unused')) and not exists(tree, orphan)
    assert os.path.exists(tree.repo('app', '_uploads', 'old'))
    assert os.path.exists(tree.repo('empty', '_uploads', 'old'))


# --- refusals -------------------------------------------------------------------------------------

def test_unreadable_manifests_anywhere_are_all_named(tree):
    bad = [('team/one', tree.manifest('team/one', b'[]')),
           ('team/one', tree.manifest('team/one', b'{"no": "manifest"}')),
           ('two', tree.manifest('two', b'[7]'))]
    said = refused(tree)
    for repo, digest in bad:
        assert digest in said and '-i %s@%s' % (repo, digest) in said
    # Those that go with what is named are no obstacle.
    collect(tree, *[arg for repo, digest in bad for arg in ('-i', '%s@%s' % (repo, digest))])
    assert not any(exists(tree, digest) for _, digest in bad)


def test_an_unreadable_manifest_in_an_excluded_repository(tree):
    """What it needs is unknown, and may be a blob that nothing else names."""
    tree.manifest('team/one', b'[]')
    assert 'team/one' in refused(tree, '-x', 'team/one')


def test_blobs_and_no_link_anywhere(tree):
    shutil.rmtree(os.path.join(tree.v2, 'repositories'))
    os.makedirs(tree.repo('app', '_uploads'))
    said = refused(tree)
    assert tree.v2 + '/blobs' in said and 'mounted' in said and 'by hand' in said


def test_a_revision_and_no_blob(tree):
    shutil.rmtree(os.path.join(tree.v2, 'blobs', 'sha256'))
    assert 'mounted' in refused(tree)


def test_a_new_registry_has_no_garbage(tmp_path):
    assert collect(Tree(tmp_path)) == 'INFO Nothing to delete'


@pytest.mark.parametrize('content', [b'', GARBAGE])
def test_damaged_links_are_no_obstacle(tree, content):
    """Both collectors of the registry stop at one."""
    write(tree.layer_link('app', digest_of(b'one')), content)
    unused = tree.layer('app', b'unused')
    write(tree.layer_link('app', unused), content)
    collect(tree)
    assert exists(tree, digest_of(b'one')) and not exists(tree, unused)


def test_names_that_mean_nothing_stay(tree):
    for path in ['blobs/sha256/ab/no-digest/data', 'blobs/md5/ab/' + 'ab' * 16 + '/data',
                 'repositories/app/_layers/sha256/no-digest/link', 'blobs/sha256/README',
                 'repositories/app/_uploads/README']:
        write(os.path.join(tree.v2, path), b'?')
    before = snapshot(tree.root)
    assert collect(tree) == 'INFO Nothing to delete'
    assert snapshot(tree.root) == before


# --- kill -9 -------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def faults():
    with Faults(test_trees.SCRIPT) as running:
        yield running


def strewn(folder):
    """A small store with garbage of every kind."""
    tree = Tree(folder)
    wide = tree.layer('app', b'pushed as sha512', 'sha512')
    child = tree.image('app', [b'base', wide])
    tree.tag('app', '1.0', tree.image('app', [b'base', b'former']))
    tree.tag('app', '1.0', tree.index('app', [child]))
    tree.tag('app', '2.0', tree.schema1('app', [b'base'], signatures=1))
    tree.tag('app/nested', '1.0', tree.image('app/nested', [b'base', b'nested']))
    former = tree.image('app', [b'base', b'deleted over the API'])
    write(tree.history_link('app', '1.0', former), former.encode())
    os.remove(tree.revision_link('app', former))
    for repo, data in [('app', b'unused'), ('other', b'unused'), ('other', b'base')]:
        tree.layer(repo, data)
    tree.layer('app', b'unused, pushed as sha512', 'sha512')
    os.remove(tree.layer_link('app', tree.layer('app', b'blob deleted over the API')))
    for repo, age in [('app', 2 * DAY), ('app/nested', 0), ('other', 2 * DAY)]:
        tree.upload(repo, 'one', age=age)
    tree.blob(b'orphan')
    return tree


@pytest.mark.parametrize('jobs', ['1', '16'])
def test_killed_before_every_change(faults, jobs, record_property):
    """What is served is as whole as ever, and the next run ends what this one began."""
    folder = fast_folder()
    command = ['-g', '-p', '-j', jobs]
    others = [command, ['-u', '-i', 'app/nested'], ['-p']]

    def killed(tree, at):
        return faults.run(tree.v2, '-d', tree.root, *command, at=at, do='kill' if at else None)

    try:
        tree = strewn(os.path.join(folder, 'undisturbed'))
        expected = {path for path in model.expect(tree.v2, [], prune=True, garbage=True).left
                    if not path.endswith('/')}
        before, calls = served(tree.v2), len(killed(tree, None).calls)
        assert files(tree) == expected and calls > 60
        for at in range(1, calls + 1, 1 if jobs == '1' else 5):
            tree = strewn(os.path.join(folder, str(at)))
            assert killed(tree, at).status == KILLED
            for key, got in served(tree.v2).items():
                assert got == before[key], 'killed before %d: harmed %s %s' % ((at,) + key)
            assert files(tree) >= expected, 'killed before %d' % at
            journal = os.path.join(tree.v2, JOURNAL)
            # Before the journal is complete nothing was removed, and any run starts anew.
            complete = os.path.exists(journal) and open(journal, 'rb').read().endswith(b'\n')
            other = others[at % 3] if complete else command
            done = faults.run(tree.v2, '-d', tree.root, *other)
            assert done.status == 0, done
            assert files(tree) == expected, 'killed before %d, then %s' % (at, other)
        record_property('kill points tried', len(range(1, calls + 1, 1 if jobs == '1' else 5)))
    finally:
        shutil.rmtree(folder)


def files(tree):
    return {path for path in model.every_path(tree.v2) if not path.endswith('/')}


# --- against a real registry ----------------------------------------------------------------------

def test_a_real_registry(tmp_path):
    with Registry(tmp_path / 'registry') as registry:
        registry.push_image('app', '1.0', [b'base', b'one'])
        registry.push_image('app', '1.0', [b'base', b'one, once more'])
        registry.push_image('team/app', 'latest', [b'base', b'two'])
        deleted = registry.push_image('app', '2.0', [b'base', b'deleted over the API'])
        unused = registry.push_blob('app', b'a push that ended before its manifest')
        gone = registry.push_blob('app', b'a blob deleted over the API')
        registry.begin_upload('app', b'given up')
        registry.begin_upload('half', b'given up')
        under_way = registry.begin_upload('team/app', b'first half, ')
        alive = pull(registry, 'app:1.0', 'team/app:latest')
        registry.delete_manifest('app', deleted)
        assert registry.request('/v2/app/blobs/' + gone, 'DELETE')[0] == 202
        registry.stop()
        orphan = Tree(registry.root).blob(b'linked nowhere')
        for repo in ['app', 'half']:
            make_old(registry.path('repositories', repo, '_uploads'))
        assert registry.stored(unused, gone, orphan, deleted) == {unused, gone, orphan, deleted}

        assert SUMMARY.search(script(registry, '-g'))

        assert os.listdir(registry.path('repositories/app/_uploads')) == []
        assert not os.path.exists(registry.path('repositories/half'))
        former = stored_blobs(registry) - set().union(*alive.values())
        # What the tag 1.0 stood for before is untagged, and no garbage.
        assert digest_of(b'one') in former and len(former) == 3
        assert script(registry, '-g').rstrip().endswith('Nothing to delete')
        said = registry.garbage_collect()
        assert '0 blobs and 0 manifests eligible for deletion' in said
        assert stored_blobs(registry) == former.union(*alive.values())

        registry.start()
        assert registry.catalog() == ['app', 'team/app']
        assert registry.tags('app') == ['1.0']
        assert pull(registry, *alive) == alive
        registry.finish_upload(under_way, b'second half', b'first half, second half')


def make_old(folder):
    days_ago = time.time() - 2 * DAY
    for base, _, files in os.walk(folder):
        for name in files + ['.']:
            os.utime(os.path.join(base, name), (days_ago, days_ago))
