"""Random registry trees, random requests: what the script leaves is what model.py expects.

Few layers and few names, so that sharing is common. `check` says what holds after every run; the
tests at the end are ways to ask. A failure prints the tree and the request.
"""

import contextlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, event, given, note, settings, strategies as st

import model
import tree
from faults import fast_folder
from tree import DAY, GARBAGE, Tree, digest_of, set_age, snapshot, write

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPT = os.path.join(os.path.dirname(HERE), 'delete_docker_registry_image.py')
sys.path.insert(0, os.path.dirname(HERE))
import delete_docker_registry_image as script  # noqa: E402

settings.register_profile('trees', deadline=None, max_examples=50, print_blob=True,
                          phases=[phase for phase in Phase if phase.name != 'explain'],
                          suppress_health_check=list(HealthCheck))
settings.load_profile('trees')
logging.getLogger('delete_docker_registry_image').propagate = False

NAMES = ['a', 'a/b', 'c/d']
PARKED = ['_a-disabled', 'web (copy)', 'a/App_OLD']
TAGS = ['1', '2', 'latest']
SUFFIXES = ['', '.sig', '.att', '.sbom', '.other']
FOREIGN = ['@eaDir', '#recycle', '.stfolder', 'lost+found']
UPLOADS = ['%08x-0000-4000-8000-000000000000' % number for number in range(2)]
LAYERS = [b'layer %d' % number for number in range(5)]
ABSENT = digest_of(b'never pushed')
# A registry takes all of these, or finds them so on a disk that has failed.
ODD_MANIFESTS = [
    b'[]', b'{ }', b'', b'\x00\xff', b'{"schemaVersion": 2}', b'{"config": {}}', b'{"layers": 7}',
    b'{"layers": [7]}', b'{"layers": [{"digest": 7}]}', b'{"subject": "x", "blobs": "x"}',
    b'{"manifests": [{"digest": "sha256:../../../../etc"}]}', b'{"fsLayers": [{"blobSum": ""}]}',
    b'{"subject": {"digest": "x"}, "layers": null}', b'[' * 100000]
# How the registry's JSON reader takes a key: in any case, and U+017F for an s.
SPELLINGS = {'"digest"': ['"Digest"', '"DIGEST"', '"dige\u017ft"'],
             '"layers"': ['"Layers"', '"LAYERS"', '"layer\u017f"'],
             '"config"': ['"Config"', '"CONFIG"']}


# Trees

class Builder:
    """Pushes what `draw` chooses into a tree."""

    def __init__(self, draw, folder):
        self.draw, self.tree = draw, Tree(folder)
        self.pushed = {name: [] for name in NAMES}     # the manifests of each repository
        self.count = 0

    def pick(self, *choices):
        return self.draw(st.sampled_from(choices))

    def some(self, choices, most=3):
        if not choices:
            return []
        return self.draw(st.lists(st.sampled_from(choices), max_size=most, unique=True))

    def note(self):
        """Makes a manifest unlike the others; now and then two are the same."""
        self.count += 1
        return {'annotations': {'number': str(self.pick(self.count, self.count, 0)),
                                'digest': digest_of(LAYERS[0])}}

    def subject(self, repo):
        return self.pick(None, None, *self.pushed[repo][-3:] + [ABSENT])

    def build(self, steps):
        for _ in range(self.draw(st.integers(1, steps))):
            repo = self.pick(*NAMES)
            action = self.pick(self.image, self.image, self.tagged, self.tagged, self.tagged,
                               self.index, self.index, self.referrer, self.referrer_tag,
                               self.referrer_tag, self.schema1, self.sha512, self.cache,
                               self.artifact, self.legacy, self.legacy_index, self.nulls,
                               self.spelled, self.copy, self.retag, self.upload, self.park,
                               self.empty_tag)
            digest = action(repo)
            if digest:
                self.pushed[repo].append(digest)

    def tag(self, repo, digest):
        self.tree.tag(repo, self.pick(*TAGS), digest)

    def maybe_tag(self, repo, digest):
        if self.pick(True, False):
            self.tag(repo, digest)
        return digest

    def image(self, repo):
        return self.tree.image(
            repo, self.some(LAYERS), config=self.pick(b'{}', b'{"os": "linux"}'),
            kind=self.pick(tree.OCI_IMAGE, tree.SCHEMA2), subject=self.subject(repo),
            foreign=self.some([ABSENT], 1), **self.note())

    def tagged(self, repo):
        digest = self.image(repo)
        self.tag(repo, digest)
        return digest

    def schema1(self, repo):
        digest = self.tree.schema1(repo, self.some(LAYERS), tag=str(self.pick(0, self.count)),
                                   signatures=self.pick(0, 1, 2))
        other = self.pick(None, *NAMES)
        if other:
            self.pushed[other].append(self.push_again(other, digest))
            self.tag(other, digest)
        return digest

    def sha512(self, repo):
        layers = [self.tree.layer(repo, data, 'sha512') for data in self.some(LAYERS)]
        return self.maybe_tag(
            repo, self.tree.image(repo, layers + self.some(LAYERS, 1), **self.note()))

    def index(self, repo):
        here = self.pushed[repo]
        elsewhere = [one for name in NAMES for one in self.pushed[name]] + [ABSENT]
        return self.maybe_tag(repo, self.tree.index(
            repo, self.some(here[-4:]) + self.some(elsewhere, 1), subject=self.subject(repo),
            kind=self.pick(tree.OCI_INDEX, tree.DOCKER_LIST), **self.note()))

    def cache(self, repo):
        return self.maybe_tag(repo, self.tree.cache(repo, self.some(LAYERS)))

    def artifact(self, repo):
        return self.tree.artifact(repo, self.some(LAYERS), self.subject(repo), **self.note())

    def legacy(self, repo):
        push = self.pick(self.tree.image, self.tree.schema1)
        return self.maybe_tag(repo, push(repo, self.some(LAYERS), legacy=True))

    def legacy_index(self, repo):
        return self.tree.index(repo, self.some(self.pushed[repo][-4:]), legacy=True)

    def nulls(self, repo):
        push = self.pick(self.tree.image, self.tree.index, self.tree.artifact, self.tree.schema1)
        return push(repo, None)

    def spelled(self, repo):
        """A manifest that the registry reads as any other, written by somebody with an aim."""
        text = model.blob(self.tree.v2, self.image(repo)).decode()
        for key, spellings in SPELLINGS.items():
            text = text.replace(key, self.pick(key, *spellings))
        text = text.rstrip('}') + self.pick(
            '', ', "config": null', ', "LAYERS": null', ', "layers": []',
            ', "x": [[{"y": {"digest": "%s"}}]]' % self.tree.layer(repo, b'deep')) + '}'
        text = text.replace('"number": "', '"number": "spelled ')
        digest = self.tree.manifest(repo, text.encode())
        self.tag(repo, digest)
        return digest

    def referrer(self, repo):
        if self.pushed[repo]:
            return self.tree.image(repo, self.some(LAYERS, 1), subject=self.pick(
                *self.pushed[repo][-4:]), **self.note())

    def referrer_tag(self, repo):
        if self.pushed[repo]:
            owner = self.pick(*self.pushed[repo][-4:] + [ABSENT])
            digest = self.pick(self.image, self.index)(repo)
            name = owner.replace(':', '-') + self.pick(*SUFFIXES)
            self.tree.tag(repo, name, self.pick(digest, digest, *self.pushed[repo][-2:]))
            return digest

    def retag(self, repo):
        if self.pushed[repo]:
            self.tag(repo, self.pick(*self.pushed[repo] + [ABSENT]))

    def empty_tag(self, repo):
        """What a push that was cut short or a tool leaves: it stands for nothing."""
        if self.pushed[repo]:
            tags = self.tree.repo(repo, '_manifests', 'tags')
            os.makedirs(os.path.join(tags, self.pick('empty', 'empty/current')), exist_ok=True)

    def copy(self, repo):
        source = self.pick(*NAMES)
        if self.pushed[source]:
            return self.push_again(repo, self.pick(*self.pushed[source]))

    def push_again(self, repo, digest):
        """Push to `repo` a manifest that was pushed before, with what it names."""
        for name in model.manifest(self.tree.v2, digest).names:
            data = model.blob(self.tree.v2, name)
            if data is not None:
                self.tree.layer(repo, data)
        data = model.blob(self.tree.v2, digest)
        if b'fsLayers' in data:
            self.tree.sign(repo, digest, self.pick(0, 1, 2))
        return self.tree.manifest(repo, data)

    def upload(self, repo):
        self.tree.upload(repo, self.pick(*UPLOADS), age=self.pick(0, 3 * DAY))

    # What else lies on a disk

    def park(self, repo):
        """An operator copies a repository, or moves it aside."""
        parked = self.tree.repo(self.pick(*PARKED))
        here = [part for part in model.PARTS if os.path.isdir(self.tree.repo(repo, part))]
        if not here or os.path.exists(parked):
            return
        for part in here:
            shutil.copytree(self.tree.repo(repo, part), os.path.join(parked, part))
        if self.pick(True, False):
            for part in here:
                shutil.rmtree(self.tree.repo(repo, part))
            self.pushed[repo] = []

    def foreign(self):
        """What a NAS puts anywhere, with something in it or without."""
        folders = [path for path in self.paths('/$') if not any(
            name in path for name in FOREIGN)]
        path = os.path.join(self.tree.v2, self.pick(*folders), self.pick(*FOREIGN))
        os.makedirs(path, exist_ok=True)
        if self.pick(True, False):
            write(os.path.join(path, 'SYNOINDEX'), b'')

    def empty_folder(self):
        """What was deleted over the API, or by a registry's own collector, leaves such."""
        paths = self.paths('/link$', '^blobs/.*/data$')
        if paths:
            kind = os.path.dirname(os.path.dirname(self.pick(*paths)))
            os.makedirs(os.path.join(self.tree.v2, kind, self.pick('f' * 64, 'no-digest')),
                        exist_ok=True)

    # Damage

    def damage(self, most):
        for _ in range(self.draw(st.integers(0, most))):
            self.pick(self.hurt_link, self.hurt_link, self.hurt_tag, self.hurt_blob,
                      self.hurt_manifest, self.hurt_manifest, self.hurt_manifest,
                      self.odd_manifest, self.odd_manifest, self.lose_folder, self.lose_folder,
                      *[self.database] * (most > 3))()

    def paths(self, *kinds):
        return sorted(path for path in model.every_path(self.tree.v2)
                      if re.search('|'.join(kinds), path))

    def hurt_link(self, *kinds):
        kind = self.pick(*kinds or ('/revisions/[^/]*/[^/]*/link$', '_layers/.*/link$',
                                    '/index/.*/link$', '/signatures/.*/link$'))
        paths = self.paths(kind)
        if paths:
            path = os.path.join(self.tree.v2, self.pick(*paths))
            self.pick(lambda: write(path, b''), lambda: write(path, GARBAGE),
                      lambda: os.remove(path))()
            return path

    def hurt_tag(self):
        path = self.hurt_link('/current/link$')
        if path and self.pick(True, False):
            index = os.path.join(os.path.dirname(os.path.dirname(path)), 'index')
            shutil.rmtree(index, ignore_errors=True)

    def hurt_blob(self, among=()):
        stored = set(model.stored_blobs(self.tree.v2))
        stored = sorted(stored & set(among) or stored)
        if stored:
            self.pick(self.tree.remove_blob, self.tree.corrupt_blob)(self.pick(*stored))

    def hurt_manifest(self):
        """One that stays, mostly."""
        store = model.repositories(self.tree.v2).values()
        self.hurt_blob(digest for repo in store for digest in repo.reached_by(set(repo.tags)))

    def odd_manifest(self):
        repo = self.pick(*NAMES)
        digest = self.tree.manifest(repo, self.pick(*ODD_MANIFESTS))
        self.maybe_tag(repo, digest)
        self.pushed[repo].append(digest)

    def lose_folder(self):
        """What an operator's own rm -r leaves, or a disk that is not mounted."""
        paths = self.paths('/_layers/$', '/tags/$', '/revisions/$', '/index/$', '/current/$',
                           '^blobs/$', '^blobs/sha256/$', '^blobs/sha256/../$')
        if paths:
            shutil.rmtree(os.path.join(self.tree.v2, self.pick(*paths)))

    def database(self):
        """The mark of GitLab's registry: its tags are elsewhere."""
        write(os.path.join(os.path.dirname(self.tree.v2), 'lockfiles', 'database-in-use'), b'')

    # Age

    def grow_old(self):
        """Everything was written three days ago, but for a few links, their blobs, and others."""
        links = self.paths('/link$')
        for path in links + self.paths('^blobs/.*/data$'):
            set_age(os.path.join(self.tree.v2, path), 3 * DAY)
        for path in self.some([path for path in links if '/tags/' not in path]):
            path = os.path.join(self.tree.v2, path)
            set_age(path, 0)
            digest = model.link(os.path.dirname(path))
            if digest and os.path.exists(self.tree.blob_path(digest)):
                set_age(self.tree.blob_path(digest), 0)
        if self.pick(True, False):
            self.tree.blob(b'a young orphan')


# Requests

def an_image(builder):
    """What -i may be given: mostly something that exists."""
    store = sorted(model.repositories(builder.tree.v2))
    repo = builder.pick(*store or NAMES)
    tags = model.listing(builder.tree.repo(repo), '_manifests', 'tags')
    tags = [tag for tag in tags if model.TAG.fullmatch(tag)] or TAGS
    pushed = builder.pushed.get(repo) or [ABSENT]
    return builder.pick(
        lambda: repo, lambda: 'localhost:5000/' + repo, lambda: builder.pick('*', 'a*', '?/?'),
        lambda: repo + ':' + builder.pick(*tags), lambda: repo + ':' + builder.pick(*tags),
        lambda: repo + ':' + builder.pick(*TAGS),
        lambda: builder.pick(repo, '*') + ':' + builder.pick('*', '[12]', 'l*', 'sha256-*'),
        lambda: '*:' + builder.pick(*tags),
        lambda: repo + '@' + builder.pick(*pushed),
        lambda: builder.pick(repo, '*') + '@' + builder.pick(*pushed))()


def an_exclusion(builder):
    """What -x may be given; now and then it names nothing, which a pattern may."""
    if builder.pick(True, *[False] * 9):
        return builder.pick('nothing', 'a:nothing', 'no*', 'a@' + ABSENT)
    store = model.repositories(builder.tree.v2)
    there = [name + part for name, repo in sorted(store.items())
             for part in [''] + sorted(':' + tag for tag in repo.tags)
             + sorted('@' + digest for digest in repo.manifests)]
    return builder.pick(*there or ['no*'], *['*:l*', 'a*:[12]', '*/*', '*:sha256-*'])


# Running

class Result(NamedTuple):
    status: int
    said: list      # the messages, without their times
    done: dict      # what --json printed


def run(v2, *args):
    """What came of the script, in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            status = script.main(['-v', '-d', v2] + list(args))
        except SystemExit as error:
            status = error.code
    return result(status or 0, stdout.getvalue(), stderr.getvalue())


def run_in_a_process(v2, *args):
    done = subprocess.run([sys.executable, SCRIPT, '-v', '-d', v2] + list(args),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    return result(done.returncode, done.stdout, done.stderr)


def result(status, stdout, stderr):
    done = json.loads(stdout) if stdout else {}
    if 'blobs' in done:     # in whatever order they went
        done['blobs'].sort(key=lambda one: one['digest'])
    return Result(status, without_times(stderr), done)


def without_times(messages):
    return re.sub(r'(?m)^(\w+) +\[.*?\] +', r'\1 ', messages).splitlines()


def served(v2):
    """(repository, tag or digest) -> what a client that pulls it gets, and whether it is whole."""
    found = {}
    for name, repo in model.repositories(v2).items():
        for digest in repo.manifests:
            found[name, digest] = model.pull(v2, name, digest)
        for tag, digest in repo.tags.items():
            found[name, tag] = model.pull(v2, name, digest) if digest else (set(), False)
    return found


def unharmed(v2, served_before):
    """What is still served is as it was."""
    for key, got in served(v2).items():
        assert got == served_before[key], 'harmed: %s %s' % key


def left_as_expected(after, expected):
    """Exactly the expected paths are left."""
    left = {path if what[0] != 'folder' else path + '/'
            for path, what in after.items() if path != '.'}
    assert sorted(left - expected.left) == [], 'stayed'
    assert sorted(expected.left - left) == [], 'went'


def check(v2, images=(), untagged=False, prune=False, garbage=False, excluded=(), days=None,
          allow_remove_all=True, run=run):
    """Run it dry, for real, and again: it does what the model expects, once."""
    args = [arg for image in images for arg in ('-i', image)]
    args += [arg for image in excluded for arg in ('-x', image)]
    args += ['-u'] * untagged + ['-p'] * prune + ['-g'] * garbage
    args += ['--older-than', '%dd' % days] if days else []
    args += ['--allow-remove-all'] * allow_remove_all
    before, served_before = snapshot(v2), served(v2)
    try:
        expected, why = model.expect(v2, images, untagged, prune, garbage, excluded,
                                     days and days * DAY, allow_remove_all), None
    except model.Refused as refused:
        expected, why = None, str(refused)
    try:
        dry = run(v2, '-n', '--json', *args)
        assert snapshot(v2) == before, 'a dry run changed something'
        real = run(v2, '--json', *args)
        after = snapshot(v2)
        unharmed(v2, served_before)
        as_its_dry_run(real, dry)
        if expected is None:
            event('refused')
            assert real.status in (1, 2), 'not refused: ' + why
            assert after == before, 'refused, and changed something'
            return
        event('exit %d' % expected.status)
        assert real.status == expected.status, real.said
        left_as_expected(after, expected)
        says_what_it_did(real.done, expected, before, after)
        files = {path: what for path, what in after.items() if what[0] == 'file'}
        assert files.items() <= before.items(), 'a file was written'
        run(v2, *args)
        assert snapshot(v2) == after, 'not all at once'
    except AssertionError:
        note('\n'.join(describe(before) + ['delete_docker_registry_image ' + ' '.join(args)]))
        raise


def as_its_dry_run(real, dry):
    """A run ends as its dry run, names the same, in the same words."""
    assert dict(real.done, dry_run=True) == dict(dry.done, dry_run=True)
    assert [line.replace('Would delete', 'Deleted').replace('would be freed', 'freed')
            for line in dry.said] == real.said
    assert real.status == dry.status


def says_what_it_did(done, expected, before, after):
    """Every figure of --json, against the model and against the disk."""
    gone = {path: len(what[1]) for path, what in before.items()
            if what[0] == 'file' and path not in after}
    blobs = {'sha256:' + path.split('/')[3]: size for path, size in gone.items()
             if path.startswith('blobs/') and path.endswith('/data')}
    uploads = [size for path, size in gone.items() if '/_uploads/' in path]
    assert set(done['repositories']) == expected.repositories
    assert set(done['tags']) == {'%s:%s' % tag for tag in expected.tags}
    assert set(done['manifests']) == {'%s@%s' % one for one in expected.manifests}
    assert done['layers'] == len([path for path in gone if re.search('/_layers/.*/link$', path)])
    assert done['uploads'] == len(expected.uploads)
    assert {one['digest']: one['size'] for one in done['blobs']} == blobs
    assert set(blobs) == expected.blobs
    assert done['upload_bytes'] == sum(uploads)
    assert done['freed'] == sum(blobs.values()) + sum(uploads)
    assert done['failed'] == []
    assert {one['repository'] for one in done['skipped']} == expected.skipped
    for name in expected.alone:
        assert any(name in line for line in done['warnings'])


def describe(seen):
    """A tree as one line for each file, without what is the same everywhere."""
    noise = rb'\s+|"(schemaVersion|size)":\s*\d+,?|"(mediaType|annotations)":\s*".*?",?'
    return ['%s %s' % (re.sub('([0-9a-f]{6})[0-9a-f]{26,}', r'\1', path),
                       re.sub(rb'([0-9a-f]{6})[0-9a-f]{26,}', rb'\1',
                              re.sub(noise, b'', what[1][:2000])).decode('latin-1'))
            for path, what in sorted(seen.items()) if what[0] == 'file']


@contextlib.contextmanager
def a_tree(data, steps=10, damage=0):
    folder = fast_folder()
    try:
        builder = Builder(data.draw, folder)
        builder.build(steps)
        builder.damage(damage)
        yield builder
    finally:
        shutil.rmtree(folder)


# Tests

@given(st.data())
def test_images(data):
    with a_tree(data) as builder:
        images = [an_image(builder) for _ in range(data.draw(st.integers(1, 3)))]
        excluded = [an_exclusion(builder) for _ in range(data.draw(st.integers(0, 1)))]
        check(builder.tree.v2, images, prune=data.draw(st.booleans()), excluded=excluded,
              allow_remove_all=builder.pick(True, True, False))


@given(st.data())
def test_a_tag(data):
    """A tag is what is deleted most: a rich repository, and always one that exists."""
    with a_tree(data, steps=14) as builder:
        tags = [(name, tag) for name in NAMES
                for tag in model.listing(builder.tree.repo(name), '_manifests', 'tags')]
        if tags:
            check(builder.tree.v2, ['%s:%s' % builder.pick(*tags)])


@given(st.data())
def test_a_digest(data):
    with a_tree(data, steps=14) as builder:
        pushed = [(name, digest) for name in NAMES for digest in builder.pushed[name]]
        if pushed:
            check(builder.tree.v2, ['%s@%s' % builder.pick(*pushed)])


@given(st.data())
def test_untagged(data):
    with a_tree(data, steps=14) as builder:
        builder.grow_old()
        names = [name for name in NAMES if builder.pushed[name]] + ['*']
        check(builder.tree.v2, builder.some(names, 2), untagged=True, days=builder.pick(None, 1),
              prune=data.draw(st.booleans()))


@given(st.data())
def test_damaged(data):
    """Whatever is broken: refused, left as it is, or nothing that stays is worse than before."""
    with a_tree(data, steps=14, damage=4) as builder:
        untagged = builder.pick(False, False, True)
        images = builder.some(['*', '*:[12]', '*:*'], 1) + [an_image(builder)]
        if untagged:
            images = [image for image in images if not re.search('[:@]', image)]
        check(builder.tree.v2, images, untagged, prune=data.draw(st.booleans()))


@settings(max_examples=30)
@given(st.data())
def test_prune_alone(data):
    with a_tree(data, damage=4) as builder:
        for _ in range(data.draw(st.integers(0, 4))):
            builder.pick(builder.foreign, builder.empty_folder)()
        check(builder.tree.v2, prune=True)


@given(st.data())
def test_beside_foreign_folders(data):
    with a_tree(data) as builder:
        for _ in range(data.draw(st.integers(1, 4))):
            builder.pick(builder.foreign, builder.foreign, builder.empty_folder)()
        check(builder.tree.v2, [an_image(builder)], prune=True, garbage=data.draw(st.booleans()))


@settings(max_examples=3)
@given(st.data())
def test_in_a_process(data):
    with a_tree(data, damage=1) as builder:
        check(builder.tree.v2, [an_image(builder)], prune=True, run=run_in_a_process)


# Rules, one by one

@pytest.fixture
def app(tmp_path):
    """`app` with two tags, and `other` with one, which share a layer."""
    tree = Tree(tmp_path)
    for repo, tag in [('app', '1.0'), ('app', '2.0'), ('other', '1.0')]:
        tree.tag(repo, tag, tree.image(repo, [b'base', (repo + tag).encode()]))
    return tree


def delete(tree, *args, status=0):
    """Run it for real; what it said."""
    done = run(tree.v2, *args)
    assert done.status == status, done.said
    return '\n'.join(done.said)


def refused(tree, *args):
    before = snapshot(tree.root)
    said = delete(tree, *args, status=1)
    assert snapshot(tree.root) == before
    assert 'Nothing was deleted' in said
    return said


def tags(tree, repo):
    return model.listing(tree.repo(repo), '_manifests', 'tags')


def pulls(tree, repo, tag):
    """Whether a client gets all of what a tag points at."""
    digest = model.link(os.path.dirname(tree.tag_link(repo, tag)))
    return bool(digest) and model.pull(tree.v2, repo, digest)[1]


@pytest.mark.parametrize('before, after', [
    ('', ',"config":null'), ('"config":null,', ''), ('', ',"CONFIG":null'),
    ('', ',"layers":null'), ('"layers":[],', ''), ('', ',"lAyErS":[]')])
def test_of_a_key_that_stands_twice_either_may_be_in_use(app, before, after):
    """Both registries go on using the first where the second is null."""
    config, layer = app.layer('app', b'{"os": "its own"}'), app.layer('app', b'its own')
    text = '{%s"schemaVersion":2,"mediaType":"%s","config":{"digest":"%s"},' \
           '"layers":[{"digest":"%s"}]%s}' % (before, tree.OCI_IMAGE, config, layer, after)
    app.tag('app', 'odd', app.manifest('app', text.encode()))
    app.tag('app', 'same', app.image('app', [layer], config=b'{"os": "its own"}'))
    delete(app, '-g', '-i', 'app:same')
    assert all(os.path.exists(app.layer_link('app', one)) and os.path.exists(app.blob_path(one))
               for one in [config, layer])


@pytest.mark.parametrize('spelled', ['digest', 'DIGEST', 'dige\u017ft', 'blobSum', 'BLOB\u017fUM'])
def test_no_spelling_hides_what_a_manifest_names(app, spelled):
    layer = app.layer('app', b'its own')
    app.tag('app', 'odd', app.manifest('app', json.dumps(
        {'schemaVersion': 2, 'x': [[{'y': [{spelled: layer}]}]]}, ensure_ascii=False).encode()))
    app.tag('app', 'same', app.image('app', [layer]))
    delete(app, '-g', '-i', 'app:same')
    assert os.path.exists(app.layer_link('app', layer)) and os.path.exists(app.blob_path(layer))


@pytest.mark.parametrize('key', ['annotations', 'subject', 'Subject'])
def test_what_a_manifest_says_of_others_names_nothing(app, key):
    layer = app.layer('app', b'said')
    app.tag('app', 'odd', app.manifest('app', {
        'schemaVersion': 2, 'layers': [{key: {'x': {'digest': layer}}}], key: {'digest': layer}}))
    delete(app, '-g')
    assert not os.path.exists(app.blob_path(layer))


def test_a_subject_is_no_child_and_a_referrer_goes_with_it(app):
    image = app.image('app', [b'signed'])
    app.tag('app', '3.0', image)
    signature = app.image('app', [b'signature'], subject=image)
    of_it = app.image('app', [b'signature of the signature'], subject=signature)
    delete(app, '-u')
    assert all(os.path.exists(app.revision_link('app', one)) for one in [signature, of_it])
    delete(app, '-i', 'app:3.0')
    assert not any(os.path.exists(app.blob_path(one)) for one in [image, signature, of_it])


def signed(app, suffix='.sig'):
    """Sign app:1.0 and an image that is elsewhere, as cosign does; the two tags."""
    image = model.link(os.path.dirname(app.tag_link('app', '1.0')))
    names = [owner.replace(':', '-') + suffix for owner in (image, ABSENT)]
    for name in names:
        app.tag('app', name, app.image('app', [name.encode()]))
    return names


@pytest.mark.parametrize('suffix', ['.sig', '.att', '.sbom'])
def test_a_pattern_selects_no_referrer_tag(app, suffix):
    own, orphan = signed(app, suffix)
    delete(app, '-i', 'app:*[.]*')
    assert tags(app, 'app') == [orphan] and pulls(app, 'app', orphan)


def test_a_pattern_that_begins_with_an_algorithm_selects_orphans(app):
    own, orphan = signed(app)
    delete(app, '-i', 'app:sha256-*')
    assert tags(app, 'app') == ['1.0', '2.0', own] and pulls(app, 'app', own)
    delete(app, '-i', 'app:' + own)
    assert tags(app, 'app') == ['1.0', '2.0'] and pulls(app, 'app', '1.0')


def test_an_image_that_is_tagged_with_a_digest_of_its_own(app):
    """imgpkg does so: an ordinary tag."""
    image = app.image('app', [b'bundle'])
    index = app.index('app', [image])
    for digest in (image, index):
        app.tag('app', image.replace(':', '-') + ('.imgpkg' if digest == index else ''), digest)
    delete(app, '-u')
    delete(app, '-i', 'app:[0-9]*')
    assert len(tags(app, 'app')) == 2 and all(pulls(app, 'app', tag) for tag in tags(app, 'app'))
    delete(app, '-i', 'app:*', '-x', 'other')
    assert not os.path.exists(app.repo('app'))


def test_repositories_without_ordinary_tags_are_left_alone(app):
    """Their images may be used by digest."""
    by_digest = app.image('by/digest', [b'by digest'])
    untagged = app.image('app', [b'untagged'])
    app.tag('by/digest', by_digest.replace(':', '-') + '.sig', app.image('by/digest', [b'sig']))
    assert 'by/digest' in delete(app, '-u')
    assert model.pull(app.v2, 'by/digest', by_digest)[1]
    assert not os.path.exists(app.blob_path(untagged))
    assert 'by/digest' in delete(app, '-u', '-g')
    assert tags(app, 'by/digest')
    delete(app, '-i', 'by/digest')
    assert not os.path.exists(app.blob_path(by_digest))


def test_untagged_but_young(app):
    """A young one stays with all that it reaches."""
    child, old = app.image('app', [b'child']), app.image('app', [b'old'])
    young = app.index('app', [child])
    for digest in (child, old):
        set_age(app.revision_link('app', digest), 3 * DAY)
    delete(app, '-u', '--older-than', '1d')
    assert [os.path.exists(app.revision_link('app', one)) for one in (child, old, young)] == [
        True, False, True]
    delete(app, '-u')
    assert not os.path.exists(app.blob_path(digest_of(b'child')))


@pytest.mark.parametrize('index', [True, False])
def test_a_broken_tag_may_have_stood_for_anything(app, index):
    former, untagged = app.image('app', [b'former']), app.image('app', [b'untagged'])
    app.tag('app', 'broken', former)
    write(app.tag_link('app', 'broken'), b'')
    if not index:
        shutil.rmtree(os.path.dirname(os.path.dirname(os.path.dirname(
            app.history_link('app', 'broken', former)))))
    assert '-i app:broken' in delete(app, '-u')
    assert [os.path.exists(app.revision_link('app', one)) for one in (former, untagged)] == [
        True, not index]
    delete(app, '-i', 'app:broken')
    delete(app, '-u')
    assert not os.path.exists(app.blob_path(former)) and tags(app, 'app') == ['1.0', '2.0']


def test_a_broken_tag_whose_link_is_missing(app):
    """Its history has an entry: a push that was cut short there had a manifest."""
    former = app.image('app', [b'former'])
    app.tag('app', 'broken', former)
    os.remove(app.tag_link('app', 'broken'))
    delete(app, '-u')
    assert os.path.exists(app.revision_link('app', former))


def test_a_folder_that_is_no_tag_pins_nothing_and_can_be_named(app):
    untagged = app.image('app', [b'untagged'])
    folder = app.repo('app', '_manifests', 'tags')
    for name in ['empty', '@eaDir', '.stfolder', '#recycle', '.~tmp~']:
        os.makedirs(os.path.join(folder, name))
    delete(app, '-u')
    assert not os.path.exists(app.blob_path(untagged))
    delete(app, '-i', 'app:empty')
    assert not os.path.exists(os.path.join(folder, 'empty'))
    assert os.path.exists(os.path.join(folder, '@eaDir'))
    delete(app, '-i', 'app:*')
    assert not os.path.exists(app.repo('app'))


def test_an_excluded_digest_keeps_the_tags_that_point_at_it(app):
    kept = model.link(os.path.dirname(app.tag_link('app', '1.0')))
    app.tag('app', 'same', kept)
    delete(app, '-i', 'app', '-x', 'app@' + kept)
    assert tags(app, 'app') == ['1.0', 'same'] and pulls(app, 'app', 'same')
    delete(app, '-i', 'app@' + kept, '-x', 'app:same', status=0)
    assert pulls(app, 'app', 'same')


@pytest.mark.parametrize('args', [('-i', '*'), ('-i', '*:*'), ('-i', 'app', '-i', 'oth*')])
def test_patterns_that_leave_no_tag(app, args):
    assert '--allow-remove-all' in refused(app, *args)
    delete(app, '--allow-remove-all', *args)
    assert model.repositories(app.v2) == {}


@pytest.mark.parametrize('args', [('-i', 'app', '-i', 'other'), ('-i', 'app', '-i', 'none*'),
                                  ('-i', '*', '-x', 'app:1.0'), ('-u', '-i', '*'), ('-g',)])
def test_what_is_no_removal_of_all(app, args):
    delete(app, *args)


def test_a_kept_index_contains_it(app):
    child = app.image('app', [b'child'])
    app.tag('app', 'wide', app.index('app', [app.index('app', [child])]))
    assert 'wide' in refused(app, '-i', 'app@' + child, '-i', 'other')


def test_an_unreadable_manifest_keeps_its_repository_as_it_is(app):
    bad = app.image('app', [b'of the bad'])
    app.tag('app', 'bad', bad)
    app.remove_blob(bad)
    app.tag('more', '1.0', app.image('more', [b'base', b'more']))
    before = {path: what for path, what in snapshot(app.v2).items()
              if path.startswith('repositories/app')}
    said = delete(app, '-i', 'app:1.0', '-i', 'more', status=3)
    assert bad in said and '-x' in said
    assert before.items() <= snapshot(app.v2).items() and pulls(app, 'app', '1.0')
    assert not os.path.exists(app.repo('more'))
    assert bad in refused(app, '-i', 'app:1.0')
    # What nothing is asked of is no matter, and what goes is no obstacle.
    delete(app, '-i', 'other')
    delete(app, '-i', 'app:bad')
    assert tags(app, 'app') == ['1.0', '2.0'] and os.path.exists(
        app.layer_link('app', digest_of(b'of the bad')))


@pytest.mark.parametrize('linked', ['tag', 'current', 'repository', 'layers', 'revision'])
@pytest.mark.parametrize('asked', [('-i', 'app:1.0'), ('-i', 'app'), ('-i', 'other'), ('-g',)])
def test_two_names_for_one_thing(app, linked, asked):
    """A link of `other` leads into `app`, where deleting what it leads to would harm it, unseen."""
    digest = model.link(os.path.dirname(app.tag_link('app', '1.0')))
    app.layer('app', b'unused'), app.layer('other', b'unused')
    source, target = {
        'tag': (app.repo('other', '_manifests', 'tags', 'prod'),
                app.repo('app', '_manifests', 'tags', '1.0')),
        'current': (app.repo('other', '_manifests', 'tags', 'prod', 'current'),
                    app.repo('app', '_manifests', 'tags', '1.0', 'current')),
        'repository': (app.repo('alias'), app.repo('app')),
        'layers': (app.repo('alias', '_layers'), app.repo('app', '_layers')),
        'revision': (os.path.dirname(app.revision_link('other', digest)),
                     os.path.dirname(app.revision_link('app', digest)))}[linked]
    os.makedirs(os.path.dirname(source), exist_ok=True)
    os.symlink(os.path.relpath(target, os.path.dirname(source)), source)
    if asked == ('-i', 'other') and linked in ('repository', 'layers'):
        return      # it has no part in it
    if asked[1:] in (('app:1.0',), ('app',)) and linked != 'repository':
        # In a repository that is not touched, only the links to the blobs are looked at.
        before, done = served(app.v2), run(app.v2, *asked)
        assert done.status == 1 or served(app.v2).items() <= before.items()
        return
    said = refused(app, *asked)
    assert os.path.relpath(source, app.v2) in said or source in said
    assert os.path.relpath(target, app.v2) in said or target in said


def test_a_link_that_leads_outside_goes_and_its_target_stays(app, tmp_path):
    """It is removed, never entered."""
    outside = os.path.join(str(tmp_path), 'outside')
    write(os.path.join(outside, 'link'), b'precious')
    unused = os.path.dirname(app.layer_link('app', app.layer('app', b'unused')))
    shutil.rmtree(unused)
    os.symlink(outside, unused)
    delete(app, '-g', '-i', 'app:1.0')
    assert not os.path.lexists(unused)
    assert os.listdir(outside) == ['link']


# What a pusher can make costs its size

def cost(v2, *args):
    """(seconds of CPU, MB of memory) that a run took."""
    with open(os.devnull, 'wb') as null:
        process = subprocess.Popen([sys.executable, SCRIPT, '-d', v2] + list(args), stdout=null,
                                   stderr=subprocess.PIPE)
        said = process.stderr.read().decode()
        process.stderr.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.WEXITSTATUS(status)
    assert status == 0, said
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def chain(tree, size):
    """Indexes, each over the one before, which has a referrer tag that leads to the next."""
    digest = tree.image('app', [b'layer'])
    for number in range(size):
        above = tree.index('app', [digest], annotations={'number': str(number)})
        tree.tag('app', digest.replace(':', '-') + '.k', above)
        digest = above
    tree.tag('app', 'latest', digest)


def referrers(tree, size):
    """As many tags and referrers, and tags of those, on one manifest."""
    image = tree.image('app', [b'layer'])
    for number in range(size):
        tree.tag('app', 'v%d' % number, image)
        referrer = tree.image('app', [], subject=image, annotations={'number': str(number)})
        if number % 2:
            tree.tag('app', image.replace(':', '-') + '.k%d' % number, referrer)


def repeats(tree, size):
    """Indexes that name one child again and again."""
    for number in range(8):
        child = tree.image('app', [b'layer'], annotations={'number': str(number)})
        tree.tag('app', 'wide%d' % number, tree.index('app', [child] * size))


@pytest.mark.parametrize('build', [chain, referrers, repeats])
def test_no_pusher_can_make_it_cost_more_than_its_size(build):
    """Ten times as much takes ten times as long; what is quadratic takes a hundred times."""
    folder = fast_folder()
    try:
        few, many = Tree(os.path.join(folder, 'few')), Tree(os.path.join(folder, 'many'))
        build(few, 100)
        build(many, 1000)
        for args in [('-n', '-g', '-u'), ('-l', '-i', 'app:*'),
                     ('-i', 'app:*', '--allow-remove-all')]:
            small, large = cost(few.v2, *args), cost(many.v2, *args)
            assert large[0] < 25 * small[0], '%s: %.2f s, %.2f s' % (args, small[0], large[0])
            assert large[1] < small[1] + 25, '%s: %.0f MB, %.0f MB' % (args, small[1], large[1])
    finally:
        shutil.rmtree(folder)
