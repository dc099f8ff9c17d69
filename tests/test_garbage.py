"""Garbage, -g: on random trees against model.py, kind by kind, and against a real registry.

The trees are those of test_trees.py, with what other tools and broken pushes leave.
"""

import json
import os
import re
import shutil
import tempfile
import time

import pytest
from hypothesis import given, settings, strategies as st

import model
import test_trees
from faults import KILLED, Faults, fast_folder
from registry import Registry
from test_registry import pull, script, stored_blobs
from test_trees import (
    ABSENT, LAYERS, NAMES, UPLOADS, a_tree, an_exclusion, an_image, run, served, unharmed,
)
from tree import DAY, GARBAGE, OCI_IMAGE, OCI_LAYER, Tree, digest_of, set_age, snapshot, write

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
        builder.tree.upload(repo, builder.pick(*UPLOADS), age=builder.pick(0, 2 * DAY))

    def empty_repository():
        builder.tree.upload('c/empty', UPLOADS[0], age=builder.pick(0, 2 * DAY))
        if builder.pick(True, False):
            os.makedirs(builder.tree.repo('c/empty', '_manifests', 'tags'), exist_ok=True)

    for _ in range(builder.draw(st.integers(0, most))):
        litter_one = builder.pick(orphan, empty_repository, unused_layer, deleted_over_the_api,
                                  history_of_a_manifest_that_is_gone, upload)
        litter_one(*() if litter_one in (orphan, empty_repository) else (builder.pick(*NAMES),))


def check(v2, *args, **request):
    """What test_trees.check() says of every run, for one with -g."""
    test_trees.check(v2, *args, garbage=True, **request)


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


@settings(max_examples=40)
@given(st.data())
def test_garbage_alone(data):
    with a_tree(data, steps=12) as builder:
        litter(builder)
        if builder.pick(True, False):
            builder.grow_old()
        check(builder.tree.v2, prune=True, days=builder.pick(None, 1))


@settings(max_examples=40)
@given(st.data())
def test_garbage_and_images(data):
    with a_tree(data) as builder:
        litter(builder, 3)
        images = [an_image(builder) for _ in range(data.draw(st.integers(1, 2)))]
        check(builder.tree.v2, images, prune=data.draw(st.booleans()))


@settings(max_examples=40)
@given(st.data())
def test_garbage_and_untagged(data):
    with a_tree(data) as builder:
        litter(builder, 3)
        builder.grow_old()
        names = [name for name in NAMES if builder.pushed[name]] + ['*']
        check(builder.tree.v2, builder.some(names, 1), untagged=True, days=builder.pick(None, 1),
              prune=data.draw(st.booleans()))


@settings(max_examples=40)
@given(st.data())
def test_garbage_and_exclusions(data):
    with a_tree(data) as builder:
        litter(builder, 3)
        untagged = builder.pick(False, False, True)
        images = ['*'] if untagged else [an_image(builder)] if builder.pick(True, False) else []
        excluded = [an_exclusion(builder) for _ in range(data.draw(st.integers(1, 2)))]
        check(builder.tree.v2, images, untagged, excluded=excluded)


@settings(max_examples=40)
@given(st.data())
def test_garbage_in_a_damaged_store(data):
    with a_tree(data, steps=14, damage=3) as builder:
        litter(builder)
        check(builder.tree.v2, [an_image(builder)] if builder.pick(True, False) else [],
              prune=data.draw(st.booleans()))


@settings(max_examples=3)
@given(st.data())
def test_garbage_in_a_process(data):
    with a_tree(data, damage=1) as builder:
        litter(builder)
        check(builder.tree.v2, prune=True, run=test_trees.run_in_a_process)


@settings(max_examples=15)
@given(st.data())
def test_the_number_of_jobs_changes_nothing(data):
    with a_tree(data, damage=1) as builder:
        litter(builder)
        with a_copy(builder.tree.v2) as copy:
            one = run(builder.tree.v2, '-j', '1', '--json', '-g', '-p')
            many = run(copy, '-j', '16', '--json', '-g', '-p')
            done = json.dumps(many.done).replace(copy, builder.tree.v2)
            assert json.loads(done) == one.done
            assert many.status == one.status
            assert contents(copy) == contents(builder.tree.v2)


# --- one at a time --------------------------------------------------------------------------------

@pytest.fixture
def tree(tmp_path):
    """One tagged image in a repository."""
    tree = Tree(tmp_path)
    tree.tag('app', '1.0', tree.image('app', [b'base', b'one']))
    return tree


def collect(tree, *args, status=0):
    """Run -g; what it said."""
    done = run(tree.v2, '-g', *args)
    assert done.status == status, done.said
    return '\n'.join(done.said)


def refused(tree, *args):
    before = snapshot(tree.root)
    said = collect(tree, *args, status=1)
    assert snapshot(tree.root) == before
    assert collect(tree, '-n', *args, status=1) == said
    return said


def nothing_to_do(tree, *args):
    before = snapshot(tree.root)
    assert 'Nothing to delete' in collect(tree, *args)
    assert snapshot(tree.root) == before


def exists(tree, digest):
    return os.path.exists(tree.blob_path(digest))


def is_linked(tree, repo, digest):
    return os.path.exists(os.path.dirname(tree.layer_link(repo, digest)))


def pulls(tree, repo, tag):
    return model.pull(tree.v2, repo, model.link(os.path.dirname(tree.tag_link(repo, tag))))[1]


def test_no_garbage(tree):
    nothing_to_do(tree)


def test_an_orphan_blob(tree):
    orphan = tree.blob(b'orphan')
    said = collect(tree)
    assert 'Deleted 1 blob of ' in said and said.endswith(': 6 bytes freed')
    assert not exists(tree, orphan)


def test_a_blob_that_only_a_manifest_names_stays(tree):
    """The link was lost; a manifest needs the blob all the same."""
    shutil.rmtree(os.path.dirname(tree.layer_link('app', digest_of(b'one'))))
    nothing_to_do(tree)
    assert exists(tree, digest_of(b'one'))


def test_a_layer_link_that_no_manifest_uses(tree):
    tree.layer('app', b'unused')
    tree.layer('team/other', b'unused')
    tree.tag('team/other', '1.0', tree.image('team/other', [b'unused']))
    assert 'layer link app@' + digest_of(b'unused') in collect(tree)
    assert not is_linked(tree, 'app', digest_of(b'unused'))
    # There it is used.
    assert is_linked(tree, 'team/other', digest_of(b'unused'))
    assert exists(tree, digest_of(b'unused'))


def test_a_layer_under_sha512_keeps_both_links(tree):
    used = tree.layer('app', b'used', 'sha512')
    tree.tag('app', '2.0', tree.image('app', [used]))
    unused = tree.layer('app', b'unused', 'sha512')
    collect(tree)
    for digest in [used, digest_of(b'used')]:
        assert os.path.exists(tree.layer_link('app', digest))
    for digest in [unused, digest_of(b'unused')]:
        assert not is_linked(tree, 'app', digest)
    assert exists(tree, digest_of(b'used')) and not exists(tree, digest_of(b'unused'))


def test_a_build_cache_keeps_its_layers(tree):
    """An index over plain layers."""
    tree.tag('app', 'cache', tree.cache('app', [b'cached'], b'{"records": []}'))
    nothing_to_do(tree)
    for data in [b'cached', b'{"records": []}']:
        assert is_linked(tree, 'app', digest_of(data)) and exists(tree, digest_of(data))


def test_manifests_linked_as_layers(tree):
    """Registry 2.1.0 did so, and every 2.x serves them: by a tag, or by an index over them."""
    tagged = tree.image('app', [b'tagged'], legacy=True)
    tree.tag('app', 'old', tagged)
    child = tree.image('app', [b'child'], legacy=True)
    tree.tag('app', 'wide', tree.index('app', [child], legacy=True))
    nothing_to_do(tree)
    assert pulls(tree, 'app', 'old') and pulls(tree, 'app', 'wide')
    unnamed = tree.image('app', [b'unnamed'], legacy=True)
    collect(tree)
    assert not exists(tree, unnamed) and not exists(tree, digest_of(b'unnamed'))
    assert pulls(tree, 'app', 'old') and pulls(tree, 'app', 'wide')


def test_a_layer_that_looks_like_a_manifest_keeps_nothing(tree):
    """A manifest that is named as a layer is one: what it names is not used for that."""
    inner = tree.image('app', [b'inner'], legacy=True)
    tree.tag('app', 'outer', tree.manifest('app', {
        'schemaVersion': 2, 'mediaType': OCI_IMAGE,
        'layers': [tree.descriptor(OCI_LAYER, inner)]}))
    collect(tree)
    assert exists(tree, inner) and is_linked(tree, 'app', inner)
    assert not exists(tree, digest_of(b'inner'))


def test_a_blob_deleted_over_the_api_goes_at_once(tree):
    """Its folder in `_layers` stays behind without a link, and is none."""
    unused = tree.layer('app', b'unused')
    os.remove(tree.layer_link('app', unused))
    collect(tree)
    assert not is_linked(tree, 'app', unused)
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
    assert pulls(tree, 'app', '2.0')


def test_untagged_manifests_are_no_garbage(tree):
    untagged = tree.image('app', [b'untagged'])
    nothing_to_do(tree)
    collect(tree, '-u')
    assert not exists(tree, untagged)


@pytest.mark.parametrize('newest', ['data', 'startedat', 'hashstates/sha256/12'])
def test_uploads_by_their_newest_file(tree, newest):
    old, fresh = UPLOADS
    tree.upload('app', old, age=DAY + 60)
    tree.upload('app', fresh, age=2 * DAY)
    set_age(os.path.join(tree.repo('app', '_uploads', fresh), newest), DAY - 60)
    assert 'upload app/%s' % old in collect(tree)
    assert os.listdir(tree.repo('app', '_uploads')) == [fresh]


def test_a_repository_with_an_old_upload_only_goes(tree):
    for repo, age in [('old', 2 * DAY), ('fresh', 0), ('old/below', 0)]:
        tree.upload(repo, UPLOADS[0], age=age)
    assert 'Deleted repository old' in collect(tree)
    assert not os.path.exists(tree.repo('old', '_uploads'))
    assert os.listdir(tree.repo('fresh', '_uploads')) == UPLOADS[:1]
    assert os.listdir(tree.repo('old/below', '_uploads')) == UPLOADS[:1]


def test_a_tag_without_its_manifest_stays(tree):
    """It may say what is missing; it is deleted by its name."""
    lost = tree.image('lost', [b'lost'])
    tree.tag('lost', '1.0', lost)
    shutil.rmtree(tree.repo('lost', '_manifests', 'revisions'))
    collect(tree)
    assert os.path.exists(tree.tag_link('lost', '1.0'))
    assert not exists(tree, digest_of(b'lost'))


def test_a_folder_that_is_no_tag(tree):
    """A push writes the history first: where neither is, all of it was removed."""
    empty = tree.repo('app', '_manifests', 'tags', 'empty')
    foreign = tree.repo('app', '_manifests', 'tags', '@eaDir')
    for folder in [os.path.join(empty, 'index', 'sha256'), foreign]:
        os.makedirs(folder)
    unused = tree.layer('app', b'unused')
    collect(tree)
    assert not os.path.exists(empty) and os.path.exists(foreign)
    assert not exists(tree, unused)


def test_a_broken_tag_is_kept_with_its_history(tree):
    former = tree.image('app', [b'former'])
    tree.tag('app', 'broken', former)
    untagged = tree.image('app', [b'untagged'])
    write(tree.tag_link('app', 'broken'), b'')
    said = collect(tree, '-u')
    assert "-i app:broken" in said
    assert exists(tree, former) and exists(tree, digest_of(b'former'))
    assert not exists(tree, untagged)


def test_an_excluded_repository_keeps_its_garbage(tree):
    tree.layer('app', b'unused')
    tree.upload('app', UPLOADS[0], age=2 * DAY)
    tree.upload('empty', UPLOADS[0], age=2 * DAY)
    orphan = tree.blob(b'orphan')
    collect(tree, '-x', 'app', '-x', 'empty')
    assert is_linked(tree, 'app', digest_of(b'unused'))
    assert exists(tree, digest_of(b'unused')) and not exists(tree, orphan)
    assert os.listdir(tree.repo('app', '_uploads')) == UPLOADS[:1]
    assert os.listdir(tree.repo('empty', '_uploads')) == UPLOADS[:1]


def test_what_is_young_stays(tree):
    """A push that the stop cut short goes on where it was."""
    layers = [tree.layer(repo, data) for repo, data in [
        ('app', b'old'), ('app', b'young'), ('begun', b'first layer of all')]]
    orphans = [tree.blob(b'old orphan'), tree.blob(b'young orphan')]
    for path in [tree.layer_link('app', layers[0]), tree.blob_path(layers[0]),
                 tree.blob_path(orphans[0])]:
        set_age(path, 3 * DAY)
    collect(tree, '--older-than', '1d')
    assert [exists(tree, one) for one in layers + orphans] == [False, True, True, False, True]
    assert is_linked(tree, 'app', layers[1]) and is_linked(tree, 'begun', layers[2])
    nothing_to_do(tree, '--older-than', '1d')
    collect(tree)
    assert not any(exists(tree, one) for one in layers + orphans)


def test_a_young_layer_under_sha512_keeps_both_links(tree):
    digest = tree.layer('app', b'wide', 'sha512')
    set_age(tree.layer_link('app', digest_of(b'wide')), 3 * DAY)
    set_age(tree.blob_path(digest_of(b'wide')), 3 * DAY)
    nothing_to_do(tree, '--older-than', '1d')
    assert is_linked(tree, 'app', digest)


# --- damage ---------------------------------------------------------------------------------------

def unhurt(tree, *repos):
    """What these repositories hold, times included."""
    return {path: what for path, what in snapshot(tree.v2).items()
            if path.startswith(tuple('repositories/' + repo for repo in repos))}


@pytest.mark.parametrize('content', [b'[]', b'', b'[7]', b'{"cut', b'\x00\xff', b'"text"'])
def test_an_unreadable_manifest_keeps_its_repository_alone(tree, content):
    bad = tree.manifest('bad', content)
    unused = {repo: tree.layer(repo, b'unused of ' + repo.encode()) for repo in ['app', 'bad']}
    before = unhurt(tree, 'bad')
    said = collect(tree, status=3)
    assert bad in said and re.search("-i '?bad@?", said) and '-x' in said
    assert unhurt(tree, 'bad') == before and exists(tree, unused['bad'])
    assert not exists(tree, unused['app'])
    # When nothing else is left to do, nothing was done.
    assert bad in collect(tree, status=1)
    # What is left out of the run is no fault of it, and what goes is no obstacle.
    nothing_to_do(tree, '-x', 'bad')
    collect(tree, '-i', 'bad@' + bad)
    assert not exists(tree, unused['bad']) and not exists(tree, bad)


def test_an_unreadable_manifest_where_nothing_would_go(tree):
    tree.tag('bad', '1.0', tree.manifest('bad', b'[]'))
    orphan = tree.blob(b'orphan that only it could name')
    collect(tree)
    assert not exists(tree, orphan)


@pytest.mark.parametrize('content', [
    b'{"schemaVersion":2}', b'{"subject":"x"}', b'{"blobs":"x"}', b'{"layers":[[[7]]],"config":8}',
    b'{"a":' + b'[' * 3000 + b']' * 3000 + b'}', b'{"digest":{"digest":{"digest":null}}}',
    b'{"config":{"digest":"sha256:../../../../etc"}}', b'{"size":' + b'9' * 5000 + b'}',
    b'{"layers":[{"digest":"\\ud800"}]}', b'{"x":NaN}', b'{"size":1e999}'])
def test_whatever_is_pushed_the_others_are_cleaned(tree, content):
    """None of these is read as anything but a manifest that names nothing, or left as it is."""
    tree.tag('odd', '1.0', tree.manifest('odd', content))
    unused = [tree.layer(repo, repo.encode()) for repo in ['app', 'odd']]
    done = run(tree.v2, '-g')
    assert done.status in (0, 3) and exists(tree, unused[1]) == (done.status == 3), done.said
    assert not exists(tree, unused[0])
    assert os.path.exists(tree.tag_link('odd', '1.0')) and pulls(tree, 'app', '1.0')


def test_blobs_that_are_not_mounted_then_a_push_then_garbage(tree):
    """After the remount everything is as it was."""
    tree.tag('team/app', '1.0', tree.index('team/app', [tree.image('team/app', [b'other'])]))
    away = os.path.join(tree.root, 'blobs of the disk')
    os.rename(os.path.join(tree.v2, 'blobs'), away)
    os.makedirs(os.path.join(tree.v2, 'blobs'))
    tree.tag('app', '2.0', tree.image('app', [b'base', b'new']))
    tree.tag('new', '1.0', tree.image('new', [b'base', b'new']))
    tree.layer('new', b'unused')
    before = unhurt(tree, 'app', 'team')
    collect(tree, '-u', status=3)
    assert unhurt(tree, 'app', 'team') == before
    shutil.copytree(away, os.path.join(tree.v2, 'blobs'), dirs_exist_ok=True)
    assert all(pulls(tree, *one) for one in [
        ('app', '1.0'), ('app', '2.0'), ('team/app', '1.0'), ('new', '1.0')])


@pytest.mark.parametrize('legacy', [False, True])
def test_one_folder_of_blobs_is_gone(tree, legacy):
    """What is absent is not known to be unneeded."""
    lost = tree.image('team/app', [b'layer of the lost'], legacy=legacy)
    tree.tag('team/app', '1.0', lost)
    folder = os.path.dirname(os.path.dirname(tree.blob_path(lost)))
    os.rename(folder, folder + '.away')
    before = unhurt(tree, 'team')
    collect(tree, status=1)
    assert unhurt(tree, 'team') == before
    assert exists(tree, digest_of(b'layer of the lost'))


def test_blobs_and_no_link_anywhere(tree):
    shutil.rmtree(os.path.join(tree.v2, 'repositories'))
    os.makedirs(tree.repo('app', '_uploads'))
    said = refused(tree)
    assert tree.v2 + '/blobs' in said and 'mounted' in said and 'by hand' in said


@pytest.mark.parametrize('args', [(), ('-p',), ('-u',), ('-i', 'app')])
def test_a_revision_and_no_blob(tree, args):
    shutil.rmtree(os.path.join(tree.v2, 'blobs', 'sha256'))
    assert 'mounted' in refused(tree, *args)


def test_a_new_registry_has_no_garbage(tmp_path):
    nothing_to_do(Tree(tmp_path))


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
                 'repositories/app/_uploads/README', 'repositories/@eaDir/app/_layers/x/link',
                 'repositories/.snapshot/app/_manifests/tags/1.0/current/link']:
        write(os.path.join(tree.v2, path), b'?')
    nothing_to_do(tree)


def test_a_repository_that_was_moved_aside_protects_its_blobs(tree):
    for name in ['_app-disabled', 'App_OLD', 'web (copy)', 'team/_old/app']:
        layer = name.encode()
        digest = tree.image('moved', [layer])
        tree.tag('moved', '1.0', digest)
        os.makedirs(os.path.dirname(tree.repo(name)), exist_ok=True)
        os.rename(tree.repo('moved'), tree.repo(name))
        nothing_to_do(tree)
        assert pulls(tree, name, '1.0')


def test_a_copy_in_a_snapshot_protects_nothing(tree):
    tree.tag('gone', '1.0', tree.image('gone', [b'gone']))
    for name in ['.snapshot', '.zfs', '#snapshot', '@eaDir']:
        os.makedirs(tree.repo(name))
        shutil.copytree(tree.repo('gone'), tree.repo(name, 'gone'))
    shutil.rmtree(tree.repo('gone'))
    collect(tree)
    assert not exists(tree, digest_of(b'gone'))
    assert os.path.exists(tree.repo('.snapshot', 'gone', '_layers'))


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
        tree.upload(repo, UPLOADS[0], age=age)
    tree.blob(b'orphan')
    return tree


@pytest.mark.parametrize('jobs', ['1', '16'])
def test_killed_before_every_change(faults, jobs, record_property):
    """What is served is as whole as ever, and the next run ends what this one began."""
    folder = fast_folder()
    command = ['-g', '-p', '-j', jobs]

    def killed(tree, at):
        return faults.run(tree.v2, '-d', tree.root, *command, at=at, do='kill' if at else None)

    try:
        tree = strewn(os.path.join(folder, 'undisturbed'))
        expected = files(model.expect(tree.v2, prune=True, garbage=True).left)
        before, calls = served(tree.v2), len(killed(tree, None).calls)
        assert files(model.every_path(tree.v2)) == expected and calls > 30
        points = range(1, calls + 1, 2 if jobs == '1' else 7)
        for at in points:
            tree = strewn(os.path.join(folder, str(at)))
            assert killed(tree, at).status == KILLED
            unharmed(tree.v2, before)
            done = faults.run(tree.v2, '-d', tree.root, *command)
            assert done.status == 0, done
            assert files(model.every_path(tree.v2)) == expected, 'killed before %d' % at
        record_property('kill points tried', len(points))
    finally:
        shutil.rmtree(folder)


def files(paths):
    return {path for path in paths if not path.endswith('/')}


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
        assert 'Nothing to delete' in script(registry, '-g')
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
    for base, _, names in os.walk(folder):
        for name in names + ['.']:
            os.utime(os.path.join(base, name), (days_ago, days_ago))
