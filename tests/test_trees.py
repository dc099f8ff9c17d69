"""Random registry trees, random requests: what the script leaves is what model.py expects.

Few layers and few names, so that sharing is common. `check` says what holds after every run; the
tests at the end are ways to ask. A failure prints the tree and the request.
"""

import contextlib
import io
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile

from hypothesis import HealthCheck, Phase, event, given, note, settings, strategies as st

import model
import tree
from tree import DAY, GARBAGE, Tree, digest_of, snapshot, write

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPT = os.path.join(os.path.dirname(HERE), 'delete_docker_registry_image.py')
sys.path.insert(0, os.path.dirname(HERE))
import delete_docker_registry_image as script  # noqa: E402

settings.register_profile('trees', deadline=None, max_examples=150, print_blob=True,
                          phases=[phase for phase in Phase if phase.name != 'explain'],
                          suppress_health_check=list(HealthCheck))
settings.load_profile('trees')
logging.getLogger('delete_docker_registry_image').propagate = False

NAMES = ['a', 'a/b', 'c/d']
TAGS = ['1', '2', 'latest']
SUFFIXES = ['', '.sig', '.att', '.sbom']
LAYERS = [b'layer %d' % number for number in range(5)]
ABSENT = digest_of(b'never pushed')
BAD_MANIFESTS = [
    b'[]', b'{}', b'', b'\x00\xff', b'{"config": {}}', b'{"layers": 7}', b'{"layers": [7]}',
    b'{"layers": [{"digest": 7}]}', b'{"manifests": [{"digest": "sha256:../../../../etc"}]}',
    b'{"fsLayers": [{"blobSum": ""}]}', b'{"subject": {"digest": "x"}, "layers": null}',
    b'[' * 100000]


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
        return {'annotations': {'number': str(self.pick(self.count, self.count, 0))}}

    def subject(self, repo):
        return self.pick(None, None, *self.pushed[repo][-3:] + [ABSENT])

    def build(self, steps):
        for _ in range(self.draw(st.integers(1, steps))):
            repo = self.pick(*NAMES)
            action = self.pick(self.image, self.image, self.tagged, self.tagged, self.tagged,
                               self.index, self.index, self.referrer, self.referrer_tag,
                               self.schema1, self.sha512, self.cache, self.artifact, self.legacy,
                               self.legacy_index, self.nulls, self.copy, self.retag, self.upload)
            digest = action(repo)
            if digest:
                self.pushed[repo].append(digest)

    def image(self, repo):
        return self.tree.image(
            repo, self.some(LAYERS), config=self.pick(b'{}', b'{"os": "linux"}'),
            kind=self.pick(tree.OCI_IMAGE, tree.SCHEMA2), subject=self.subject(repo),
            foreign=self.some([ABSENT], 1), **self.note())

    def tagged(self, repo):
        digest = self.image(repo)
        self.tree.tag(repo, self.pick(*TAGS), digest)
        return digest

    def schema1(self, repo):
        digest = self.tree.schema1(repo, self.some(LAYERS), tag=str(self.pick(0, self.count)),
                                   signatures=self.pick(0, 1, 2))
        other = self.pick(None, *NAMES)
        if other:
            self.pushed[other].append(self.push_again(other, digest))
            self.tree.tag(other, self.pick(*TAGS), digest)
        return digest

    def sha512(self, repo):
        layers = [self.tree.layer(repo, data, 'sha512') for data in self.some(LAYERS)]
        return self.tree.image(repo, layers + self.some(LAYERS, 1), **self.note())

    def index(self, repo):
        here = self.pushed[repo]
        elsewhere = [one for name in NAMES for one in self.pushed[name]] + [ABSENT]
        digest = self.tree.index(
            repo, self.some(here[-4:]) + self.some(elsewhere, 1), subject=self.subject(repo),
            kind=self.pick(tree.OCI_INDEX, tree.DOCKER_LIST), **self.note())
        if self.pick(True, False):
            self.tree.tag(repo, self.pick(*TAGS), digest)
        return digest

    def cache(self, repo):
        return self.tree.cache(repo, self.some(LAYERS))

    def artifact(self, repo):
        return self.tree.artifact(repo, self.some(LAYERS), self.subject(repo), **self.note())

    def legacy(self, repo):
        push = self.pick(self.tree.image, self.tree.schema1)
        digest = push(repo, self.some(LAYERS), legacy=True)
        if self.pick(True, False):
            self.tree.tag(repo, self.pick(*TAGS), digest)
        return digest

    def legacy_index(self, repo):
        return self.tree.index(repo, self.some(self.pushed[repo][-4:]), legacy=True)

    def nulls(self, repo):
        push = self.pick(self.tree.image, self.tree.index, self.tree.artifact, self.tree.schema1)
        return push(repo, None)

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
            self.tree.tag(repo, self.pick(*TAGS), self.pick(*self.pushed[repo] + [ABSENT]))

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
        self.tree.upload(repo, 'upload-%d' % self.pick(1, 2), age=self.pick(0, 3 * DAY))

    # Damage

    def damage(self, most):
        for _ in range(self.draw(st.integers(0, most))):
            self.pick(self.hurt_link, self.hurt_link, self.hurt_tag, self.hurt_blob,
                      self.bad_manifest, self.bad_manifest, self.lose_folder,
                      self.database)()

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

    def hurt_blob(self):
        paths = self.paths('^blobs/.*/data$')
        if paths:
            digest = ':'.join(self.pick(*paths).split('/')[1:4:2])
            self.pick(self.tree.remove_blob, self.tree.corrupt_blob)(digest)

    def bad_manifest(self):
        repo = self.pick(*NAMES)
        digest = self.tree.manifest(repo, self.pick(*BAD_MANIFESTS))
        self.tree.tag(repo, self.pick(*TAGS), digest)
        self.pushed[repo].append(digest)

    def lose_folder(self):
        """What an operator's own rm -r leaves."""
        paths = self.paths('/_layers/$', '/tags/$', '/revisions/$', '/index/$', '/current/$',
                           '^blobs/$', '^blobs/sha256/$', '^blobs/sha256/../$')
        if paths:
            shutil.rmtree(os.path.join(self.tree.v2, self.pick(*paths)))

    def database(self):
        """The mark of GitLab's registry: its tags are elsewhere."""
        write(os.path.join(os.path.dirname(self.tree.v2), 'lockfiles', 'database-in-use'), b'')


# Requests

def an_image(builder):
    """What -i may be given: mostly something that exists."""
    store = sorted(os.listdir(os.path.join(builder.tree.v2, 'repositories')))
    repo = builder.pick(*[name for name in NAMES if name.split('/')[0] in store] or NAMES)
    tags = model.listing(builder.tree.repo(repo), '_manifests', 'tags')
    return builder.pick(
        lambda: repo, lambda: 'localhost:5000/' + repo, lambda: builder.pick('*', 'a*', '?/?'),
        lambda: repo + ':' + builder.pick(*tags or TAGS),
        lambda: repo + ':' + builder.pick(*tags or TAGS),
        lambda: repo + ':' + builder.pick(*TAGS),
        lambda: builder.pick(repo, '*') + ':' + builder.pick('*', '[12]', 'l*', 'sha256-*'),
        lambda: '*:' + builder.pick(*tags or TAGS),
        lambda: repo + '@' + builder.pick(*builder.pushed[repo] or [ABSENT]),
        lambda: repo + '@' + builder.pick(*builder.pushed[repo] or [ABSENT]))()


# Running

def run(v2, *args):
    """(exit status, the messages) of the script."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        try:
            status = script.main(['-v', '-d', v2] + list(args))
        except SystemExit as error:
            status = error.code
    return status, without_times(stderr.getvalue())


def run_in_a_process(v2, *args):
    done = subprocess.run([sys.executable, SCRIPT, '-v', '-d', v2] + list(args),
                          stderr=subprocess.PIPE, universal_newlines=True)
    return done.returncode, without_times(done.stderr)


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


def unharmed_and_as_promised(v2, served_before, dry, real):
    """What is still served is as it was; a run ended as its dry run, in the same words."""
    for key, got in served(v2).items():
        assert got == served_before[key], 'harmed: %s %s' % key
    assert [line.replace('Would delete', 'Deleted') for line in dry[1]] == real[1]
    assert dry[0] == real[0]


def left_as_expected(after, expected):
    """Exactly the expected paths are left."""
    left = {path if what[0] != 'folder' else path + '/'
            for path, what in after.items() if path != '.'}
    assert sorted(left - expected.left) == [], 'stayed'
    assert sorted(expected.left - left) == [], 'went'


def check(v2, images=(), untagged=False, prune=False, run=run):
    args = [arg for image in images for arg in ('-i', image)]
    args += ['-u'] * untagged + ['-p'] * prune
    before, served_before = snapshot(v2), served(v2)
    try:
        expected = model.expect(v2, images, untagged, prune)
    except model.Refused as refused:
        expected, why = None, str(refused)
    event('%d given' % len(images) if expected else 'refused')

    try:
        dry_status, dry = run(v2, '-n', *args)
        assert snapshot(v2) == before, 'a dry run changed something'
        status, messages = run(v2, *args)
        after = snapshot(v2)

        unharmed_and_as_promised(v2, served_before, (dry_status, dry), (status, messages))
        if expected is None:
            assert status in (1, 2), 'not refused: ' + why
            assert after == before, 'refused, and changed something'
            return
        assert status == 0, messages
        assert {' '.join(found) for line in messages for found in re.findall(
            r'^\w+ Deleted (tag|manifest|repository|blob) (\S+)', line)} == expected.named
        assert ('%d tag' % len(expected.tags) in messages[-1]) or not expected.tags
        assert ('%d blob' % len(expected.blobs) in messages[-1]) or not expected.blobs
        assert not expected.warned or any(line.startswith('WARNING') for line in messages)
        left_as_expected(after, expected)
        files = {path: what for path, what in after.items() if what[0] == 'file'}
        assert files.items() <= before.items(), 'a file was written'
    except AssertionError:
        note('\n'.join(describe(before) + ['delete_docker_registry_image ' + ' '.join(args)]))
        raise


def describe(seen):
    """A tree as one line for each file, without what is the same everywhere."""
    noise = rb'\s+|"(schemaVersion|size)":\s*\d+,?|"(mediaType|annotations)":\s*".*?",?'
    return ['%s %s' % (re.sub('([0-9a-f]{6})[0-9a-f]{26,}', r'\1', path),
                       re.sub(rb'([0-9a-f]{6})[0-9a-f]{26,}', rb'\1',
                              re.sub(noise, b'', what[1][:2000])).decode('latin-1'))
            for path, what in sorted(seen.items()) if what[0] == 'file']


@contextlib.contextmanager
def a_tree(data, steps=10, damage=0):
    with tempfile.TemporaryDirectory() as folder:
        builder = Builder(data.draw, folder)
        builder.build(steps)
        builder.damage(damage)
        yield builder


# Tests

@given(st.data())
def test_images(data):
    with a_tree(data) as builder:
        images = [an_image(builder) for _ in range(data.draw(st.integers(1, 3)))]
        check(builder.tree.v2, images, prune=data.draw(st.booleans()))


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
        names = [name for name in NAMES if builder.pushed[name]] + ['*']
        check(builder.tree.v2, builder.some(names, 2) or names[:1], untagged=True,
              prune=data.draw(st.booleans()))


@given(st.data())
def test_damaged(data):
    """Whatever is broken: refused, or nothing that is left is worse than before."""
    with a_tree(data, damage=4) as builder:
        untagged = builder.pick(False, False, True)
        images = [builder.pick(*NAMES)] if untagged else [an_image(builder)]
        check(builder.tree.v2, images, untagged, prune=data.draw(st.booleans()))


@settings(max_examples=60)
@given(st.data())
def test_prune_alone(data):
    with a_tree(data, damage=4) as builder:
        check(builder.tree.v2, prune=True)


@settings(max_examples=8)
@given(st.data())
def test_in_a_process(data):
    with a_tree(data, damage=1) as builder:
        check(builder.tree.v2, [an_image(builder)], prune=True, run=run_in_a_process)
