"""kill -9, failing calls, a full disk and signals, at every call that changes a file.

Whatever happens, a tag that can still be resolved is as complete as before, what was not asked for
is untouched, and the next run leaves what a run that nothing happened to leaves. What is complete
is told by model.py, which shares no code with the script.
"""

import errno
import json
import os
import shutil
import tempfile

import pytest

import model
from faults import KILLED, Faults, fast_folder
from tree import DAY, DOCKER_LIST, Tree, digest_of, encode

SCRIPT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                      'delete_docker_registry_image.py')
JOURNAL = '.delete_docker_registry_image.journal'
REMOVALS = ('unlink', 'rmdir')

OPERATIONS = {
    'tag': ['-i', 'app:1.0'],
    'repository': ['-i', 'app'],
    'untagged': ['-u', '-i', 'app', '-i', 'app/nested', '-i', 'other'],
    'digest': ['-i', 'app@INDEX'],
    'prune': ['-p', '-i', 'other:legacy'],
    'several': ['-i', 'app:2.0', '-i', 'app/nested', '-i', 'other:1.0'],
}

# Requests that have nothing to do with the operation. Each finishes it all the same.
OTHERS = [['-i', 'bystander:spare'], ['-p'], ['-u', '-i', 'bystander']]


def build(folder):
    """A small store in which most of what can be shared is shared."""
    tree = Tree(folder)

    def image(repo, *layers):
        return tree.image(repo, layers, config=encode({'for': [repo, len(layers)]}))

    # app:1.0 had another image before, is an index, is signed, and shares a child with app:2.0.
    old = image('app', b'base', b'old')
    common = image('app', b'base', b'common')
    wide = tree.layer('app', b'pushed as sha512', 'sha512')
    index = tree.index('app', [common, image('app', b'base', wide, b'one')], kind=DOCKER_LIST)
    for digest in [old, index]:
        tree.tag('app', '1.0', digest, age=3 * DAY)
    tree.image('app', [b'statement'], subject=index)
    tree.tag('app', index.replace(':', '-') + '.sig', image('app', b'signature'), age=2 * DAY)
    tree.tag('app', '2.0', old, age=2 * DAY)
    tree.tag('app', '2.0', tree.index('app', [common, image('app', b'two')]), age=DAY)
    tree.untagged = image('app', b'untagged', b'base')
    tree.tag('app/nested', '1.0', image('app/nested', b'base', b'nested'))
    image('app/nested', b'common', b'nested untagged')
    tree.upload('app', 'upload')
    tree.upload('app/nested', 'upload', age=2 * DAY)
    tree.tag('other', '1.0', image('other', b'base', b'common', b'two', b'other'))
    tree.tag('other', '2.0', image('other', b'base', b'one'))
    tree.tag('other', 'legacy', tree.schema1('other', [b'base', b'schema 1'], signatures=2))
    tree.schema1('other', [b'schema 1', b'old schema 1'], signatures=1)
    tree.tag('bystander', '1.0', image('bystander', b'base', b'other', b'nested'))
    tree.tag('bystander', 'spare', image('bystander', b'spare', b'base'))
    os.makedirs(tree.repo('empty', 'folder'))
    return tree


class Case:
    """One operation on fresh copies of the store: what it leads to when nothing happens."""

    def __init__(self, faults, master, name):
        self.faults, self.folder = faults, os.path.dirname(master.root)
        self.name, self.untagged = name, master.untagged
        self.before = read_files(master.root)
        self.folders_before = folders_of(master.root)
        self.served_before = served(master.v2)
        self.contents = {digest: model.blob(master.v2, digest) for digest in stored(master.v2)}
        images = {'%s:%s' % (repo, tag): digest
                  for repo, one in model.repositories(master.v2).items()
                  for tag, digest in one.tags.items()}
        self.index = images['app:1.0']
        # What is pushed as app:1.0 next: it shares a manifest and layers with what was there.
        with self.copy() as copy:
            child = list(model.Manifest(json.loads(self.contents[self.index].decode())).children)[1]
            image = copy.tree.image('app', [b'base', b'old', b'successor'])
            self.successor = copy.tree.index('app', [child, image])
            self.contents = {digest: model.blob(copy.v2, digest) for digest in stored(copy.v2)}
        self.canonical = {digest_of(data, 'sha512'): digest
                          for digest, data in self.contents.items()}
        self.command = [word.replace('INDEX', self.index) for word in OPERATIONS[name]]
        with self.copy() as copy:
            done = copy.run(self.command)
            assert done.status == 0, str(done)
            self.calls = [(call, os.path.relpath(path, copy.root)) for call, path in done.calls]
            self.after = copy.files()
            self.folders = folders_of(copy.root)
        # Before this call nothing is removed, and the journal may not be complete.
        self.first = 1 + [call in REMOVALS for call, _ in self.calls].index(True)
        self.ends = {}

    def copy(self):
        return Copy(self)

    def end(self, *steps):
        """The files that these steps leave, each a command or a function of a Copy."""
        key = repr(steps)
        if key not in self.ends:
            with self.copy() as copy:
                for step in steps:
                    copy.take(step)
                self.ends[key] = copy.files()
        return self.ends[key]


class Copy:
    """A copy of the store, and what can be done to it."""

    def __init__(self, case):
        self.case = case
        self.root = tempfile.mkdtemp(dir=case.folder)

    def __enter__(self):
        # The files are as old as they were: a link that is new was pushed again.
        for path in self.case.folders_before:
            os.mkdir(os.path.join(self.root, path))
        for path, (content, mtime) in self.case.before.items():
            path = os.path.join(self.root, path)
            with open(path, 'wb') as file:
                file.write(content)
            os.utime(path, ns=(mtime, mtime))
        self.tree = Tree(self.root)
        self.v2 = self.tree.v2
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.root)

    def take(self, step):
        """Do one step in full: a command, or a function of this Copy."""
        if callable(step):
            step(self)
        else:
            done = self.run(step)
            assert done.status == 0, str(done)

    def run(self, command, **faults):
        return self.case.faults.run(self.v2, '-d', self.root, *command, **faults)

    def files(self):
        """{path: content} of all files."""
        return contents(read_files(self.root))

    def has_journal(self):
        return os.path.lexists(os.path.join(self.v2, JOURNAL))

    def check_unharmed(self, after=None):
        """Assert what holds at any moment, however the run ended.

        `after` are the files that may not go; by default those that the operation leaves.
        """
        files = read_files(self.root)
        after = self.case.after if after is None else after
        assert sorted(set(after) - set(files)) == [], 'went, and was not asked for'
        for path in files:
            assert files[path] == self.case.before.get(path), 'changed: ' + path
        for image, got in served(self.v2).items():
            assert got == self.case.served_before[image], 'harmed: %s:%s' % image
        for name, repo in model.repositories(self.v2).items():
            # Else the registry answers 500 for it, and no client can push it again.
            assert {target for target in repo.layers.values() if target} <= set(repo.layers), \
                'a layer link of %s lost its second link' % name

    def check_next(self, command, *ends):
        """Assert that a run of `command` leaves the files of one of `ends`, and no journal."""
        done = self.run(command)
        assert 'Traceback' not in done.said, str(done)
        assert done.status == 0, str(done)
        assert not self.has_journal(), 'the journal stayed'
        files = self.files()
        if files not in ends:
            assert sorted(set(files) - set(ends[0])) == [], 'stayed'
            assert sorted(set(ends[0]) - set(files)) == [], 'went'
            assert files == ends[0]
        return done

    def check_ends(self, number, removed=True):
        """Assert that the next run ends where a run to which nothing happened would have.

        The next run is the same command, or for an odd `number` another one. Unless something was
        `removed`, there may be nothing to finish.
        """
        case = self.case
        if not self.has_journal() and self.files() == case.after:
            return  # all was done, but for the end of the process
        if number % 2 == 0:
            self.check_next(case.command, case.after)
        else:
            other = OTHERS[number // 2 % len(OTHERS)]
            self.check_next(other, case.end(case.command, other),
                            *[] if removed else [case.end(other)])


def read_files(root):
    """{path: (content, time of the last change)}; the journal is none of the registry's files."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            if name != JOURNAL:
                path = os.path.join(folder, name)
                with open(path, 'rb') as file:
                    found[path[len(root) + 1:]] = file.read(), os.fstat(file.fileno()).st_mtime_ns
    return found


def contents(files):
    return {path: content for path, (content, _) in files.items()}


def folders_of(root):
    """Every folder, each after the one that it is in."""
    return [folder[len(root) + 1:] for folder, _, _ in os.walk(root) if folder != root]


def served(v2):
    """(repository, tag) -> what a client gets that pulls it, and whether that is all of it."""
    return {(name, tag): model.pull(v2, name, digest)
            for name, repo in model.repositories(v2).items()
            for tag, digest in repo.tags.items() if digest}


def stored(v2):
    """The digest of every blob."""
    return {'sha256:' + os.path.basename(folder)
            for folder, _, files in os.walk(os.path.join(v2, 'blobs')) if files}


@pytest.fixture(scope='module')
def cases():
    """name of an operation -> its Case."""
    folder = fast_folder()
    master = build(os.path.join(folder, 'master'))
    with Faults(SCRIPT) as faults:
        made = {}

        def case(name):
            if name not in made:
                made[name] = Case(faults, master, name)
            return made[name]
        yield case
    shutil.rmtree(folder)


class Tally:
    """Counts what was tried and what went wrong, and goes on after what went wrong.

    With `with`, it shows its numbers in the end, and fails the test if anything went wrong.
    """

    def __init__(self, record_property):
        self.record = record_property
        self.numbers = {'kill points tried': 0, 'failures injected': 0, 'signals': 0, 'harmed': 0}
        self.wrong = []

    def __enter__(self):
        return self

    def attempt(self, kind, what, check, *arguments):
        self.numbers[kind] += 1
        try:
            check(*arguments)
        except Exception as error:
            self.numbers['harmed'] += 1
            self.wrong.append('%s: %s: %s' % (what, type(error).__name__, str(error)[:3000]))

    def __exit__(self, *_):
        for pair in self.numbers.items():
            self.record(*pair)
        assert not self.wrong, '%d wrong. The first:\n%s' % (
            len(self.wrong), '\n\n'.join(self.wrong[:5]))


@pytest.fixture
def tally(record_property):
    return Tally(record_property)


every_operation = pytest.mark.parametrize('name', list(OPERATIONS))


@every_operation
def test_undisturbed(cases, name):
    """What everything below is compared with is what the model says."""
    case = cases(name)
    with case.copy() as copy:
        expected = model.expect(
            copy.v2, [word for word in case.command if word[0] != '-'],
            untagged='-u' in case.command, prune='-p' in case.command)
        left = {'docker/registry/v2/' + path for path in expected.left if path[-1] != '/'}
        assert set(case.after) == left
        assert len(case.after) < len(contents(case.before)) - 5


# --- kill -9 -------------------------------------------------------------------------------------

@every_operation
def test_killed_before_every_change(cases, tally, name):
    case = cases(name)

    def check(number):
        with case.copy() as copy:
            assert copy.run(case.command, at=number, do='kill').status == KILLED
            copy.check_unharmed()
            copy.check_ends(number, number > case.first)

    with tally:
        for number in range(1, len(case.calls) + 1):
            tally.attempt('kill points tried', 'killed before %d' % number, check, number)


@pytest.mark.parametrize('name', ['tag', 'repository', 'several'])
def test_the_run_that_finishes_is_killed_too(cases, tally, name):
    """And what it is asked itself, which here is to delete another image."""
    case = cases(name)
    asked = ['-i', 'bystander:spare']
    both, one = case.end(case.command, asked), case.after

    def check(first, second):
        with case.copy() as copy:
            copy.run(case.command, at=first, do='kill')
            status = copy.run(asked, at=second, do='kill').status
            copy.check_unharmed(both)
            assert status == KILLED
            # When the second run was killed before its journal was complete, it asked for nothing.
            copy.check_next(['-p'], both, one)

    with tally:
        for first in range(case.first + 1, len(case.calls), len(case.calls) // 3):
            with case.copy() as copy:
                copy.run(case.command, at=first, do='kill')
                calls = len(copy.run(asked).calls)
            for second in range(1, calls + 1, 7):
                tally.attempt('kill points tried', 'killed before %d and %d' % (first, second),
                              check, first, second)


@pytest.mark.parametrize('name', ['repository', 'several'])
def test_killed_while_it_removes_in_parallel(cases, tally, name):
    """Which call is the one before which it dies is chance then. It must not matter."""
    case = cases(name)

    def check(number):
        with case.copy() as copy:
            status = copy.run(['-j', '4'] + case.command, at=number, do='kill').status
            assert status == KILLED
            copy.check_unharmed()
            copy.check_ends(number)

    with tally:
        for number in range(case.first + 1, len(case.calls), 3):
            tally.attempt('kill points tried', 'killed before %d' % number, check, number)


def test_killed_without_a_journal(cases, tally):
    """On a full disk there is no journal. The next run cannot finish, and nothing is harmed."""
    case = cases('several')

    def check(number):
        with case.copy() as copy:
            assert copy.run(case.command, at=number, do='kill', full=1).status == KILLED
            copy.check_unharmed()
            done = copy.run(OTHERS[0])
            assert done.status == 0, str(done)
            assert not copy.has_journal()
            copy.check_unharmed(case.end(case.command, OTHERS[0]))

    with tally:
        for number in range(case.first, len(case.calls), 5):
            tally.attempt('kill points tried', 'killed before %d' % number, check, number)


# --- pushed again --------------------------------------------------------------------------------

def push(copy, repo, digest, tag=None):
    """Push a manifest as clients do: they send nothing that is there, but the manifest itself.

    The registry writes its link anew, and those of the tag.
    """
    tree, contents = copy.tree, copy.case.contents
    document = model.Manifest(json.loads(contents[digest].decode()))
    for name in document.names:
        canonical = copy.case.canonical.get(name, name)
        if name in document.children:
            if not os.path.exists(tree.revision_link(repo, name)):
                push(copy, repo, name)
        elif not all(map(os.path.exists, [tree.layer_link(repo, name), tree.blob_path(canonical),
                                          tree.layer_link(repo, canonical)])):
            tree.layer(repo, contents[canonical], name.split(':')[0])
    tree.manifest(repo, contents[digest])
    if tag:
        tree.tag(repo, tag, digest)


def push_the_tag(copy):
    push(copy, 'app', copy.case.index, '1.0')


def push_by_digest(copy):
    push(copy, 'app', copy.case.index)


def push_a_successor(copy):
    push(copy, 'app', copy.case.successor, '1.0')


def push_elsewhere(copy):
    push(copy, 'fresh', copy.case.index, '1.0')


PUSHES = {push_the_tag: ('app', '1.0'), push_by_digest: ('app', None),
          push_a_successor: ('app', '1.0'), push_elsewhere: ('fresh', '1.0')}


@pytest.mark.parametrize('name', ['tag', 'repository', 'several'])
def test_pushed_again_after_a_kill(cases, tally, name):
    case = cases(name)

    def check(number, push):
        repo, tag = PUSHES[push]
        digest = case.successor if push is push_a_successor else case.index
        other = OTHERS[number % len(OTHERS)]
        with case.copy() as copy:
            assert copy.run(case.command, at=number, do='kill').status == KILLED
            push(copy)
            pushed = model.pull(copy.v2, repo, digest)
            assert pushed[1], 'this test pushes too little'
            done = copy.run(other)
            assert done.status == 0, str(done)
            assert model.pull(copy.v2, repo, digest) == pushed, 'harmed'
            if tag:
                assert served(copy.v2).get((repo, tag)) == pushed, 'its tag is harmed'
            assert not copy.has_journal()
            if number > case.first:
                # In all, what was removed is the plan, without what the push needs. A tag that was
                # pushed again keeps the rest of its history, though the manifests are gone.
                files, expected = set(copy.files()), set(case.end(case.command, other, push))
                assert sorted(expected - files) == [], 'went'
                assert sorted(path for path in files - expected
                              if '/tags/1.0/index/' not in path) == [], 'stayed'

    with tally:
        for number in range(1, len(case.calls) + 1, 2):
            push = list(PUSHES)[number // 2 % len(PUSHES)]
            what = '%s after a kill before %d' % (push.__name__, number)
            tally.attempt('kill points tried', what, check, number, push)


# --- calls that fail -----------------------------------------------------------------------------

ERRORS = [errno.EIO, errno.EACCES, errno.EBUSY, errno.EROFS]


def repository_of(path):
    """The repository that a path below the root lies in; '' for blobs and the journal."""
    below = path.partition('v2/repositories/')[2]
    return below.partition('/_')[0]


@every_operation
def test_every_removal_fails(cases, tally, name):
    case = cases(name)

    def check(number, path, error):
        with case.copy() as copy:
            done = copy.run(case.command, at=number, do=error)
            assert done.status == 3, str(done)
            assert os.path.join(copy.root, path) in done.said, str(done)
            assert os.strerror(error) in done.said and 'Traceback' not in done.said, str(done)
            assert copy.has_journal(), 'the journal is gone'
            copy.check_unharmed()
            # Nothing stays but in the repository that it happened in, and what that links.
            left = copy.files()
            repo = repository_of(path)
            linked = {content for name, content in left.items() if repository_of(name) == repo}
            for name in set(left) - set(case.after) - {path}:
                digest = 'sha256:' + os.path.basename(os.path.dirname(name))
                assert repo and (repository_of(name) == repo or digest.encode() in linked), \
                    'left: ' + name
            copy.check_ends(number)

    with tally:
        for number, (call, path) in enumerate(case.calls, 1):
            if call == 'unlink' or call == 'rmdir' and number % 3 == 0:
                error = ERRORS[number % len(ERRORS)]
                what = '%s %s: %s' % (call, path, os.strerror(error))
                tally.attempt('failures injected', what, check, number, path, error)


def test_nothing_can_be_removed_from_some_call_on(cases, tally):
    """As when the kernel makes a failing disk read-only."""
    case = cases('several')

    def check(number):
        with case.copy() as copy:
            done = copy.run(case.command, at='%d+' % number, do=errno.EROFS)
            assert done.status == 3 and 'Traceback' not in done.said, str(done)
            copy.check_unharmed()
            copy.check_ends(number, number > case.first)

    with tally:
        for number in range(case.first, len(case.calls) + 1, 5):
            tally.attempt('failures injected', 'all from %d on' % number, check, number)


def test_the_journal_cannot_be_written(cases, tally):
    """Then nothing is deleted, not even by the next run: this one has said so."""
    case = cases('several')
    other = OTHERS[0]

    def check(number, error):
        with case.copy() as copy:
            done = copy.run(case.command, at=number, do=error)
            assert 'Traceback' not in done.said and os.strerror(error) in done.said, str(done)
            if done.status == 0:
                # It may do without the folder's part, if it says so.
                assert case.calls[number - 1][1].endswith('v2'), str(done)
                assert 'WARNING' in done.said, str(done)
                assert copy.files() == case.after
            else:
                assert done.status == 1 and 'Nothing was deleted' in done.said, str(done)
                assert copy.files() == contents(case.before)
                copy.check_next(other, case.end(other))

    with tally:
        for number in range(1, case.first):
            for error in ERRORS:
                tally.attempt('failures injected', '%s: %s' % (
                    case.calls[number - 1], os.strerror(error)), check, number, error)


@every_operation
def test_no_space_for_the_journal(cases, tally, name):
    """To make space is what it is for, so it goes on, and says so."""
    case = cases(name)

    def check(**faults):
        with case.copy() as copy:
            done = copy.run(case.command, **faults)
            assert done.status == 0 and 'Traceback' not in done.said, str(done)
            assert 'No space left' in done.said and 'WARNING' in done.said, str(done)
            assert copy.files() == case.after and not copy.has_journal()

    with tally:
        tally.attempt('failures injected', 'full disk', lambda: check(full=1))
        for number, (call, path) in enumerate(case.calls[:case.first - 1], 1):
            if path.endswith(JOURNAL):
                for error in (errno.ENOSPC, errno.EDQUOT):
                    tally.attempt('failures injected', '%s: %s' % (call, os.strerror(error)),
                                  lambda: check(at=number, do=error))


def test_what_cannot_be_synced(cases, tally):
    """The removal goes on: to stop would leave more undone."""
    case = cases('several')

    def check(number, error):
        with case.copy() as copy:
            done = copy.run(case.command, at=number, do=error)
            assert done.status in (0, 3) and 'Traceback' not in done.said, str(done)
            assert os.strerror(error) in done.said, str(done)
            copy.check_unharmed()
            copy.check_ends(number)

    with tally:
        for number, (call, path) in enumerate(case.calls, 1):
            if call == 'fsync' and number > case.first:
                for error in (errno.EIO, errno.EBADF, errno.EINVAL):
                    tally.attempt('failures injected', 'fsync %s: %s' % (
                        path, os.strerror(error)), check, number, error)


# --- signals -------------------------------------------------------------------------------------

@every_operation
def test_a_signal_ends_the_run_between_two_removals(cases, tally, name):
    case = cases(name)

    def check(number, signal, status):
        with case.copy() as copy:
            done = copy.run(case.command, at=number, do=signal)
            assert done.status == status, str(done)
            assert 'Traceback' not in done.said and 'Interrupted' in done.said, str(done)
            copy.check_unharmed()
            if number > case.first and copy.has_journal():
                assert 'next run' in done.said, str(done)
            copy.check_ends(number, number > case.first)

    with tally:
        for number in range(1, len(case.calls) + 1, 4):
            signal, status = [('int', 130), ('term', 143)][number // 4 % 2]
            tally.attempt('signals', 'SIG%s before %d' % (signal.upper(), number),
                          check, number, signal, status)


# --- what is on disk when -------------------------------------------------------------------------

@every_operation
def test_what_is_synced_before_what(cases, name):
    """The journal and its folder before the first removal, the references before a blob."""
    calls, folders = cases(name).calls, cases(name).folders
    v2 = 'docker/registry/v2'
    journal = v2 + '/' + JOURNAL
    removals = [number for number, (call, _) in enumerate(calls) if call in REMOVALS]
    blobs = [number for number in removals if calls[number][1].startswith(v2 + '/blobs/')]
    written = calls.index(('write', journal))
    assert written < calls.index(('fsync', journal)) < removals[0]
    assert calls.index(('open', journal)) < calls.index(('fsync', v2)) < removals[0]
    assert calls[removals[-1]] == ('unlink', journal) or name == 'prune'

    for number in removals:
        if calls[number][1] in folders:
            continue  # it was not empty
        folder = os.path.dirname(calls[number][1])
        while folder not in folders:  # of a folder that went, too, the one that it was in counts
            folder = os.path.dirname(folder)
        if number < blobs[0]:
            assert ('fsync', folder) in calls[number:blobs[0]], calls[number]
