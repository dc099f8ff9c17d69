"""kill -9, failing calls, full disks and signals, at every call that changes a file.

Whatever happens, a tag that can still be resolved is as complete as before and what was not asked
for is untouched; and the next run leaves each repository as it was before or as it is after a run
that nothing happens to. What is complete is told by model.py, which shares no code with the script.
"""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

import faults
import model
from faults import (
    ASIDE, GONE, KEPT, KILLED, OWN, PROBE, Faults, fast_folder, left_behind,
)
from tree import DAY, DOCKER_LIST, Tree, digest_of, encode, entries_below, write

SCRIPT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                      'delete_docker_registry_image.py')
V2 = 'docker/registry/v2'
SYNCS = ('sync', 'syncfs', 'fsync')

OPERATIONS = {
    'newest': ['-i', 'app:*', '--keep-last', '1'],  # the same as the next one, by another rule
    'tag': ['-i', 'app:1.0'],
    'repository': ['-i', 'app'],
    'digest': ['-i', 'app@INDEX'],
    'several': ['-i', 'app:2.0', '-i', 'app/nested', '-i', 'other:1.0'],
    'untagged': ['-u', '-i', 'app', '-i', 'app/nested', '-i', 'other'],
    'garbage': ['-g'],
    'prune': ['-p', '-i', 'other:legacy'],
    'all at once': ['-u', '-g', '-p'],
}

# Requests that have nothing to do with the operation. Each deals with what it left all the same.
OTHERS = [['-i', 'bystander:spare'], ['-p'], ['-u', '-i', 'bystander']]


def build(folder):
    """A small store in which most of what can be shared is shared, and with some of all litter."""
    tree = Tree(folder)

    def image(repo, *layers, **more):
        return tree.image(repo, layers, config=encode({'for': [repo, len(layers)]}), **more)

    # app:1.0 had another image before, is an index, is signed, and shares a child with app:2.0.
    old = image('app', b'base', b'old')
    common = image('app', b'base', b'common')
    wide = tree.layer('app', b'pushed as sha512', 'sha512')
    index = tree.index('app', [common, image('app', b'base', wide, b'one')], kind=DOCKER_LIST)
    for digest in [old, index]:
        tree.tag('app', '1.0', digest, age=3 * DAY)
    statement = image('app', b'statement', subject=index)
    signature = image('app', b'signature')
    tree.tag('app', signature_tag(index), signature, age=2 * DAY)
    tree.tag('app', '2.0', old, age=2 * DAY)
    tree.tag('app', '2.0', tree.index('app', [common, image('app', b'two')]), age=DAY)
    image('app', b'untagged', b'base')
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

    tree.layer('other', b'unused')
    tree.layer('app', b'unused', 'sha512')
    tree.blob(b'orphan')
    gone = tree.image('other', [b'deleted over the API'])
    os.remove(tree.revision_link('other', gone))
    write(tree.history_link('other', '2.0', gone), gone.encode())
    tree.upload('abandoned', 'upload', age=2 * DAY)
    os.makedirs(tree.repo('empty', 'folder'))

    tree.index_of_1, tree.signature, tree.statement = index, signature, statement
    return tree


def signature_tag(digest):
    return digest.replace(':', '-') + '.sig'


class Case:
    """One operation on fresh copies of the store: what it leads to when nothing happens."""

    def __init__(self, faults, master, name):
        self.faults, self.folder, self.master = faults, os.path.dirname(master.root), master
        self.before = read_files(master.root)
        self.files_before = contents(self.before)
        self.folders_before = folders_of(master.root)
        self.served_before = served(master.v2)
        self.orphans = unlinked({path: content for path, content in self.files_before.items()
                                 if '/signatures/' not in path})
        self.index = master.index_of_1
        # What is pushed as app:1.0 next: it shares a manifest and layers with what was there.
        with self.copy() as copy:
            child = sorted(model.Manifest(model.blob(copy.v2, self.index).decode()).manifests)[1]
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
        # This call makes it final: before it everything is put back, after it all is finished.
        self.commit = 1 + self.calls.index(('rename', '%s/repositories/%s' % (V2, ASIDE)))
        self.points = [number for number, (call, path) in enumerate(self.calls, 1)
                       if self.matters(number, call, path)]
        self.ends = {}

    def matters(self, number, call, path):
        """Whether it makes a difference to stop before this call, and not before the next one."""
        if PROBE in path or (call, path) in self.calls[:number - 1]:
            return number % 5 == 0      # a folder that is there already
        if GONE in path or call == 'rmdir':
            return number % 7 == 0      # what nobody needs any more
        return True

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

    def end_of_next(self, number, *steps):
        """The same after a run that was stopped before call `number`, and then these steps."""
        return self.end(*([self.command] if number > self.commit else []), *steps)


class Copy:
    """A copy of the store, and what can be done to it."""

    def __init__(self, case):
        self.case = case
        self.root = tempfile.mkdtemp(dir=case.folder)

    def __enter__(self):
        for path in self.case.folders_before:
            os.mkdir(os.path.join(self.root, path))
        self.restore()
        self.tree = Tree(self.root)
        self.v2 = self.tree.v2
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.root)

    def restore(self):
        """Bring a backup back, over what there is: each file as it was, and as old."""
        for path, (content, mtime) in self.case.before.items():
            path = os.path.join(self.root, path)
            write(path, content)
            os.utime(path, ns=(mtime, mtime))

    def take(self, step):
        """Do one step in full: a command, or a function of this Copy."""
        if callable(step):
            step(self)
        else:
            done = self.run(step)
            assert done.status == 0, str(done)

    def run(self, command, jobs=1, **faults):
        done = self.case.faults.run(
            self.v2, '-d', self.root, '-j', str(jobs), *command, **faults)
        assert 'Traceback' not in done.said, str(done)
        return done

    def kill(self, number, command=None, **faults):
        """Kill the operation, or another command, before its call `number`."""
        done = self.run(command or self.case.command, at=number, do='kill', **faults)
        assert done.status == KILLED, str(done)

    def files(self):
        """{path: content} of all files."""
        return contents(read_files(self.root))

    def left_behind(self):
        return left_behind(self.v2)

    def check_unharmed(self, after=None):
        """Assert what holds at any moment, however the run ended.

        `after` are the files that may not go; by default those that the operation leaves.
        """
        files = read_files(self.root)
        after = self.case.after if after is None else after
        assert sorted(set(after) - set(files)) == [], 'went, and was not asked for'
        for path in files:
            assert files[path] == self.case.before.get(path), 'changed: ' + path
        self.check_served(contents(files))

    def check_served(self, files=None):
        """Assert that every tag that resolves stands for what it stood for, and all of that."""
        for image, got in served(self.v2).items():
            assert got == self.case.served_before[image], 'harmed: %s:%s' % image
        files = files or self.files()
        for path, content in files.items():
            # Without the second link the registry answers 500, and no client can push it again.
            if '/_layers/sha512/' in path:
                repo, digits = path.partition('/_layers/')[0], content.decode().partition(':')[2]
                assert '%s/_layers/sha256/%s/link' % (repo, digits) in files, 'half of ' + path

    def check_halves(self, *ends, but=()):
        """Assert that each repository is as before or as in one of `ends`, whole or gone, and that
        a blob is there exactly if it is linked, or would be there without a link."""
        files, ends = self.files(), ends + (self.case.files_before,)
        for name, found in by_repository(files).items():
            assert any(found == by_repository(end).get(name) for end in ends), 'torn: ' + name
        stay = set().union(*map(unlinked, ends))
        assert sorted(unlinked(files) - stay - set(but)) == [], 'stayed'
        linked = {blob_of(digest) for digest in links(files)}
        assert sorted(linked & set(self.case.before) - set(files)) == [], 'linked, and went'

    def check_next(self, command, *ends, statuses=(0,), **faults):
        """Assert that a run of `command` leaves the files of one of `ends`, and nothing behind."""
        done = self.run(command, **faults)
        assert done.status in statuses, str(done)
        assert self.left_behind() == []
        files = self.files()
        # What only -g had found is left to the next -g.
        orphans = set() if '-g' in command else self.case.orphans
        if not any(end.items() <= files.items() and set(files) - set(end) <= orphans
                   for end in ends):
            assert sorted(set(files) - set(ends[0])) == [], 'stayed'
            assert sorted(set(ends[0]) - set(files)) == [], 'went'
            assert files == ends[0]
        return done

    def check_next_run(self, number, **faults):
        """Assert that a run that was stopped before call `number` is dealt with by the next one:
        for an even number the same command, else another one."""
        case, left = self.case, self.left_behind()
        if number % 2 == 0:
            # What it asks for may be gone; then that is what it says.
            statuses = (0, 1) if number > case.commit else (0,)
            done = self.check_next(case.command, case.after, statuses=statuses, **faults)
            assert done.status == 0 or 'No ' in done.said and 'found' in done.said, str(done)
        else:
            other = OTHERS[number // 2 % len(OTHERS)]
            done = self.check_next(other, case.end_of_next(number, other), **faults)
        assert not left or 'WARNING' in done.said and 'interrupted' in done.said, str(done)


def read_files(root):
    """{path: (content, time of the last change)}; the script's own folders are left out."""
    found = {}
    for entry in entries_below(root, lambda folder: not folder.name.startswith(OWN)):
        if not entry.is_dir(follow_symlinks=False):
            with open(entry.path, 'rb', buffering=0) as file:
                found[entry.path[len(root) + 1:]] = (
                    file.read(), os.fstat(file.fileno()).st_mtime_ns)
    return found


def contents(files):
    return {path: content for path, (content, _) in files.items()}


def folders_of(root):
    """Every folder, each after the one that it is in."""
    return [folder[len(root) + 1:] for folder, _, _ in os.walk(root) if folder != root]


def repository_of(path):
    """The repository that a path below the root lies in; '' for others."""
    return path.partition('v2/repositories/')[2].partition('/_')[0]


def by_repository(files):
    """The files of each repository, as a dictionary in a dictionary."""
    found = {}
    for path, content in files.items():
        if repository_of(path):
            found.setdefault(repository_of(path), {})[path] = content
    return found


def links(files):
    """The digests that links stand for. A tag is none."""
    return {content.decode() for path, content in files.items()
            if path.endswith('/link') and '/_manifests/tags/' not in path}


def blob_of(digest):
    return '%s/%s/data' % (V2, model.blob_folder(digest))


def unlinked(files):
    """The blobs that no link stands for."""
    return ({path for path in files if path.startswith(V2 + '/blobs/')}
            - {blob_of(digest) for digest in links(files)})


def served(v2):
    """(repository, tag) -> what a client gets that pulls it, and whether that is all of it."""
    found = {}
    for folder, below, _ in os.walk(os.path.join(v2, 'repositories')):
        below[:] = [name for name in below if not name.startswith(OWN)]
        name = os.path.relpath(folder, os.path.join(v2, 'repositories'))
        for tag in model.listing(folder, '_manifests', 'tags') if '/_' not in name else ():
            digest = model.link(folder, '_manifests', 'tags', tag, 'current')
            if digest:
                found[name, tag] = model.pull(v2, name, digest)
    return found


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

    def kills(self, numbers, check):
        for number in numbers:
            self.attempt('kill points tried', 'killed before %d' % number, check, number)

    def __exit__(self, *_):
        for pair in self.numbers.items():
            self.record(*pair)
        assert not self.wrong, '%d wrong. The first:\n%s' % (
            len(self.wrong), '\n\n'.join(self.wrong[:5]))


@pytest.fixture
def tally(record_property):
    return Tally(record_property)


every_operation = pytest.mark.parametrize('name', list(OPERATIONS)[1:])


def some(*names):
    return pytest.mark.parametrize('name', names)


@every_operation
def test_undisturbed(cases, name):
    """What everything below is compared with is what the model says."""
    case = cases(name)
    with case.copy() as copy:
        expected = model.expect(
            copy.v2, [word for word in case.command if word[0] != '-'],
            untagged='-u' in case.command, prune='-p' in case.command,
            garbage='-g' in case.command)
        left = {V2 + '/' + path for path in expected.left if path[-1] != '/'}
        assert set(case.after) == left
        assert len(case.after) < len(case.before) - 5


# --- kill -9 -------------------------------------------------------------------------------------

@every_operation
def test_killed_before_every_change(cases, tally, name):
    case = cases(name)

    def check(number):
        with case.copy() as copy:
            copy.kill(number)
            copy.check_unharmed()
            assert copy.left_behind() in ([], [ASIDE if number <= case.commit else GONE])
            copy.check_next_run(number)

    with tally:
        tally.kills(case.points, check)


@some('several', 'all at once')
def test_the_run_that_deals_with_it_is_stopped_too(cases, tally, name):
    """And what it is asked itself, which here is to delete another image."""
    case = cases(name)
    asked = OTHERS[0]

    def check(first, second, stop):
        with case.copy() as copy:
            copy.kill(first)
            status = copy.run(asked, at=second, do=stop).status
            assert status in (KILLED, 130), status
            copy.check_unharmed(case.end(case.command, asked))
            copy.check_next(['-p'], case.end_of_next(first), case.end_of_next(first, asked))

    with tally:
        for first in [case.commit // 2, case.commit, case.commit + 1, case.commit + 5]:
            with case.copy() as copy:
                copy.kill(first)
                calls = len(copy.run(asked).calls)
            for second in range(1, calls + 1, 8):
                stop = 'int' if second % 16 == 1 else 'kill'
                tally.attempt('kill points tried', 'killed before %d, then %s before %d' % (
                    first, stop, second), check, first, second, stop)


@some('repository', 'all at once')
def test_killed_while_threads_are_at_work(cases, tally, name):
    """Which call is the one before which it dies is chance then. It must not matter."""
    case = cases(name)

    def check(number):
        with case.copy() as copy:
            if copy.run(case.command, jobs=4, at=number, do='kill').status != KILLED:
                return  # it came to fewer calls this time
            copy.check_unharmed()
            other = OTHERS[number % len(OTHERS)]
            copy.check_next(other, case.end(other), case.end(case.command, other))

    with tally:
        tally.kills(range(1, len(case.calls), 9), check)


def test_an_image_that_is_excluded_after_a_kill_stays(cases, tally):
    case = cases('tag')
    request = ['-i', 'app:*', '-x', 'app:1.0']

    def check(number):
        with case.copy() as copy:
            copy.kill(number)
            copy.check_next(request, case.end(request))

    with tally:
        tally.kills(range(12, case.commit + 1, 6), check)


def test_a_manifest_that_became_unreadable_after_a_kill_is_no_dead_end(cases, tally):
    case = cases('tag')

    def damage(copy):
        digest = model.link(copy.tree.repo('app', '_manifests', 'tags', '2.0', 'current'))
        copy.tree.corrupt_blob(digest)
        return digest

    def check(number):
        other = OTHERS[number // 2 % 2]
        with case.copy() as copy:
            copy.kill(number)
            digest = damage(copy)
            if number % 2:
                copy.check_next(other, case.end_of_next(number, damage, other))
            elif number <= case.commit:
                # It has to leave the repository as it was, and says how to go on.
                left = case.end(damage)
                done = copy.check_next(case.command, left, statuses=(1, 3))
                assert digest in done.said, str(done)
                copy.check_next(other + ['-i', 'app:1.0', '-x', 'app'], case.end(damage, other))
                copy.check_next(['-i', 'app'], case.end(damage, other, ['-i', 'app']))

    with tally:
        tally.kills(case.points[::4] + case.points[1::8], check)


# --- pushed again, restored ----------------------------------------------------------------------

def push(copy, repo, digest, tag=None):
    """Push a manifest as clients do: they send nothing that is there, but the manifest itself.

    The registry writes its link anew, and those of the tag.
    """
    tree, contents = copy.tree, copy.case.contents
    document = model.Manifest(contents[digest].decode())
    for name in document.names:
        canonical = copy.case.canonical.get(name, name)
        if name in document.manifests:
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


def push_with_signature_and_referrer(copy):
    push(copy, 'app', copy.case.index, '1.0')
    push(copy, 'app', copy.case.master.signature, signature_tag(copy.case.index))
    push(copy, 'app', copy.case.master.statement)


PUSHES = {push_the_tag: ('app', '1.0'), push_by_digest: ('app', None),
          push_a_successor: ('app', '1.0'), push_elsewhere: ('fresh', '1.0'),
          push_with_signature_and_referrer: ('app', '1.0')}


@some('tag', 'repository', 'several')
def test_pushed_again_after_a_kill(cases, tally, name):
    """What was pushed stays, and what was not final comes back around it."""
    case = cases(name)

    def check(number, push):
        repo, tag = PUSHES[push]
        digest = case.successor if push is push_a_successor else case.index
        other = OTHERS[number % len(OTHERS)]
        with case.copy() as copy:
            copy.kill(number)
            push(copy)
            pushed = model.pull(copy.v2, repo, digest)
            assert pushed[1], 'this test pushes too little'
            written = tag and os.stat(copy.tree.tag_link(repo, tag)).st_mtime_ns
            copy.check_next(other, case.end_of_next(number, push, other))
            assert model.pull(copy.v2, repo, digest) == pushed, 'harmed'
            if tag:
                assert served(copy.v2).get((repo, tag)) == pushed, 'its tag is harmed'
                assert os.stat(copy.tree.tag_link(repo, tag)).st_mtime_ns == written

    with tally:
        for step, number in enumerate(case.points[::2]):
            push = list(PUSHES)[step % len(PUSHES)]
            what = '%s after a kill before %d' % (push.__name__, number)
            tally.attempt('kill points tried', what, check, number, push)


@some('repository', 'several')
def test_a_backup_that_is_restored_after_a_kill_stays(cases, tally, name):
    case = cases(name)

    def check(number):
        other = OTHERS[number % len(OTHERS)]
        with case.copy() as copy:
            copy.kill(number)
            copy.restore()
            copy.check_next(other, case.end(other))

    with tally:
        tally.kills(case.points[::3], check)


# --- calls that fail -----------------------------------------------------------------------------

ERRORS = [errno.EIO, errno.EACCES, errno.ENOSPC, errno.EXDEV, errno.EROFS, errno.EBUSY]
NO_WAY_BACK = (errno.ENOSPC, errno.EXDEV)


def check_failure(case, number, error):
    """Let the operation's call `number` fail, and assert what holds at once and after the next."""
    call, path = case.calls[number - 1]
    before, removal = number < case.commit, call in ('unlink', 'rmdir')
    with case.copy() as copy:
        # What cannot be unlinked as a single file is tried as a folder.
        at = '%d-%d' % (number, number + (call == 'unlink'))
        done = copy.run(case.command, at=at, do=error)
        copy.check_unharmed()
        files = copy.files()
        # An emptied folder that stays is no failure, and what syncfs cannot do sync may.
        no_way_back = PROBE in path or error in NO_WAY_BACK and call in ('mkdir', 'rename')
        told = 'without a way back' in done.said if no_way_back and done.status == 0 else (
            os.strerror(error) in done.said and ('WARNING' in done.said or 'ERROR' in done.said))
        assert told or done.status == 0 and (
            call == 'rmdir' or 'sync' in dict(done.calls)), str(done)
        if done.status == 0:
            assert files == case.after and copy.left_behind() == [], str(done)
            assert removal or call in SYNCS or no_way_back, str(done)
        elif done.status == 1:
            assert files == case.files_before and 'Nothing was deleted' in done.said, str(done)
            assert copy.left_behind() == []
        else:
            assert done.status == 3, str(done)
            copy.check_halves(case.after, but={path})
        if before and call in ('mkdir', 'rename') and error in NO_WAY_BACK:
            assert done.status == 0, str(done)
        elif before and not removal and done.status != 0:
            # All or nothing: the one repository that it happened in is as it was.
            name, found = repository_of(path.replace(ASIDE + '/', '')), by_repository(files)
            if name in found:
                assert found[name] == by_repository(case.files_before)[name] and name in done.said
                for other in set(found) - {name} if done.status == 3 else ():
                    assert found[other] == by_repository(case.after).get(other), other
            assert copy.left_behind() == []
        elif call == 'unlink':
            # Of what is final already, the folder will do.
            named = path.partition(GONE)[0] + GONE if GONE in path else path
            assert done.status == 3 and os.path.join(copy.root, named) in done.said, str(done)
        check_after_failure(copy, number)


def check_after_failure(copy, number):
    """Assert that the next run, the same command or another one, leaves nothing half done."""
    case, other = copy.case, OTHERS[number // 2 % len(OTHERS)]
    done = copy.run(case.command if number % 2 else other)
    assert done.status in ((0, 1) if number % 2 else (0,)), str(done)
    assert copy.left_behind() == []
    if number % 2 and done.status == 0:
        assert copy.files() == case.after, str(done)
    elif number % 2:    # some of what it names is gone, so it deletes nothing
        assert 'No repository' in done.said, str(done)
        copy.check_halves(case.after)
    else:
        copy.check_halves(case.after, case.end(other), case.end(case.command, other))


@every_operation
def test_every_call_fails(cases, tally, name):
    case = cases(name)
    with tally:
        for step, number in enumerate(case.points):
            call, path = case.calls[number - 1]
            if (call, path) in case.calls[:number - 1]:
                continue    # it fails anyway
            if name == 'several' and number <= case.commit:
                errors = ERRORS
            else:
                errors = ERRORS[step // 2 % len(ERRORS):][:1] if step % 2 else []
            for error in errors:
                if error != errno.EXDEV or call == 'rename':
                    what = '%d: %s %s: %s' % (number, call, path, os.strerror(error))
                    tally.attempt('failures injected', what, check_failure, case, number, error)


@some('several', 'all at once')
@pytest.mark.parametrize('error', [errno.EROFS, errno.EIO])
def test_every_call_fails_from_some_call_on(cases, tally, name, error):
    """As when the kernel makes a failing disk read-only: then nothing can be put back either."""
    case = cases(name)

    def check(number):
        with case.copy() as copy:
            done = copy.run(case.command, at='%d+' % number, do=error)
            assert done.status in (1, 3) and os.strerror(error) in done.said, str(done)
            copy.check_unharmed()
            if done.status == 1:
                assert copy.files() == case.files_before, str(done)
            copy.check_next_run(number)

    with tally:
        for number in case.points[::4]:
            tally.attempt('failures injected', 'all from %d on' % number, check, number)


@some('repository', 'several')
def test_what_cannot_be_put_back_is_kept(cases, tally, name):
    """It is named, nothing of it is lost, and no later run stumbles over it."""
    case = cases(name)
    other = OTHERS[0]

    def check(first, number, error):
        with case.copy() as copy:
            copy.kill(first)
            done = copy.run(other, calls=' rename mkdir ', at=number, do=error)
            copy.check_served()
            if done.status == 0:    # it was its own request that it happened to
                assert copy.left_behind() == []
                return
            assert done.status in (1, 3) and os.strerror(error) in done.said, str(done)
            assert set(copy.left_behind()) <= {KEPT}, str(done)
            kept = read_kept(copy)
            lost = set(case.files_before) - set(copy.files()) - set(kept)
            assert sorted(lost - (set(case.files_before) - set(case.end(other)))) == [], 'lost'
            assert copy.run(other).status in (0, 1)     # the image may be gone already
            assert read_kept(copy) == kept and set(copy.left_behind()) <= {KEPT}
            copy.check_served()

    with tally:
        for first in [number for number in case.points if number <= case.commit][8::6]:
            with case.copy() as copy:
                copy.kill(first)
                calls = len(copy.run(other, calls=' rename mkdir ').calls)
            for number in range(1, calls + 1, 5):
                error = [errno.EIO, errno.EACCES, errno.EXDEV][number % 3]
                tally.attempt('failures injected', '%s at %d after a kill before %d' % (
                    os.strerror(error), number, first), check, first, number, error)


def read_kept(copy):
    """{path: content} of what could not be put back, under the paths that it had."""
    folder = os.path.join(copy.v2, 'repositories', KEPT)
    return {'%s/repositories/%s' % (V2, path): content
            for path, content in contents(read_files(folder)).items()}


# --- no way back: full disks, other file systems, buckets ----------------------------------------

WITHOUT_WAY_BACK = {
    'a full disk': {'full': 1},
    'another file system': {'calls': ' rename ', 'at': '1+', 'do': errno.EXDEV},
    'a bucket': {'merge': 1},
}
place = pytest.mark.parametrize('place', list(WITHOUT_WAY_BACK))


@every_operation
@place
def test_without_a_way_back(cases, name, place):
    """It says so and goes on: to make space is what it is for."""
    case = cases(name)
    with case.copy() as copy:
        done = copy.run(case.command, **WITHOUT_WAY_BACK[place])
        assert done.status == 0 and 'WARNING' in done.said, str(done)
        assert copy.files() == case.after and copy.left_behind() == []


@some('repository', 'several')
@pytest.mark.parametrize('place', ['a full disk', 'a bucket'])
def test_stopped_without_a_way_back(cases, tally, name, place):
    """The next run cannot finish it, and nothing is harmed: what still resolves is complete."""
    case, setting = cases(name), WITHOUT_WAY_BACK[place]
    with case.copy() as copy:
        calls = len(copy.run(case.command, **setting).calls)

    def check(number):
        other = OTHERS[number % len(OTHERS)]
        with case.copy() as copy:
            if number % 3:
                copy.kill(number, **setting)
            else:
                done = copy.run(case.command, at=number, do='term', **setting)
                assert done.status == 143 and 'Interrupted' in done.said, str(done)
                assert 'Nothing was deleted' not in done.said \
                    or copy.files() == case.files_before, str(done)
            copy.check_unharmed()
            done = copy.run(other, **setting)
            assert done.status == 0, str(done)
            assert copy.left_behind() == []
            copy.check_unharmed(case.end(case.command, other))

    with tally:
        tally.kills(range(1, calls + 1, 7), check)


@place
def test_a_removal_fails_without_a_way_back(cases, tally, place):
    case = cases('several')

    def check(number, part):
        with case.copy() as copy:
            # What cannot be unlinked as a single file is tried as a folder. One failure can be
            # injected: in place of another file system, which is one, the disk is full.
            setting = dict(WITHOUT_WAY_BACK[place], calls=' unlink ', part=part,
                           at='%d-%d' % (number, number + 1), do=errno.EIO)
            if place == 'another file system':
                setting['full'] = 1
            done = copy.run(case.command, **setting)
            assert done.status == 3 and os.strerror(errno.EIO) in done.said, str(done)
            copy.check_unharmed()
            assert copy.run(case.command).status in (0, 1)
            copy.check_served()

    with tally:
        for number in range(1, 10, 2):
            for part in ['/repositories/app/', '/blobs/']:
                tally.attempt('failures injected', 'removal %d of %s' % (number, part), check,
                              number, part)


def test_the_newest_tags_stay_where_a_rename_is_a_copy(cases, tally):
    """A copy is new, so a tag that was moved and moved back would be the newest of all."""
    case = cases('newest')

    def check(number):
        with case.copy() as copy:
            if copy.run(case.command, merge=1, at=number, do='kill').status == KILLED:
                done = copy.run(case.command, merge=1)
                assert done.status == 0, str(done)
            tags = {tag for repo, tag in served(copy.v2) if repo == 'app'}
            assert '2.0' in tags, 'the newest went'
            copy.check_unharmed()

    with tally:
        tally.kills(range(1, 60, 6), check)


# --- signals -------------------------------------------------------------------------------------

@every_operation
def test_a_signal_puts_everything_back_until_it_is_final(cases, tally, name):
    case = cases(name)

    def check(number, signal, status):
        with case.copy() as copy:
            done = copy.run(case.command, at=number, do=signal)
            assert done.status == status and 'Interrupted' in done.said, str(done)
            copy.check_unharmed()
            if 'Nothing was deleted' in done.said:
                assert read_files(copy.root) == case.before, str(done)
                assert copy.left_behind() == [] and number <= case.commit, str(done)
            else:
                assert number >= case.commit, str(done)
                assert copy.left_behind() == [] or 'next run' in done.said, str(done)
                copy.check_halves(case.after, but=unlinked(copy.files()))
                copy.check_next_run(case.commit + 2 - number % 2)

    with tally:
        for step, number in enumerate(case.points[1::3]):
            signal, status = [('int', 130), ('term', 143)][step % 2]
            tally.attempt('signals', 'SIG%s before %d' % (signal.upper(), number),
                          check, number, signal, status)


@some('several', 'all at once')
def test_a_user_who_does_not_stop_pressing_ctrl_c(cases, tally, name):
    case = cases(name)

    def check(number):
        with case.copy() as copy:
            done = copy.run(case.command, at='%d+' % number, do='int')
            assert done.status == 130, str(done)
            copy.check_unharmed()
            if 'Nothing was deleted' in done.said:
                assert read_files(copy.root) == case.before and copy.left_behind() == [], str(done)
            copy.check_next_run(number if number != case.commit else number + 1)

    with tally:
        for number in case.points[::4]:
            tally.attempt('signals', 'SIGINT before %d and on' % number, check, number)


MANY = 1500


@pytest.fixture(scope='module')
def many():
    """A store of many repositories, each with something to delete."""
    folder = fast_folder()
    tree = Tree(os.path.join(folder, 'many'))
    for number in range(MANY):
        name = 'team%d/app' % (number % 40) + str(number)
        for tag in ['old', 'new']:
            tree.tag(name, tag, tree.image(name, [b'base'], config=encode([number, tag])))
    yield tree, faults.build(folder)
    shutil.rmtree(folder)


# The last is final, so it has to be the last.
MOMENTS = [('before it starts', ' flock ', 1), ('half set aside', ' rename ', MANY * 3 // 2),
           ('just before it is final', ' syncfs sync ', 1), ('final', ' unlink ', 300)]


@pytest.mark.parametrize('moment,calls,at', MOMENTS, ids=[moment[0] for moment in MOMENTS])
def test_a_signal_to_a_run_over_many_repositories(many, record_property, moment, calls, at):
    """Out at once: a service manager that stops it waits some seconds, then kills."""
    tree, shim = many
    final, before, stamp = moment == 'final', read_files(tree.root), tree.root + '.signalled'
    name, status = [('INT', 130), ('TERM', 143)][at % 2]
    hook = 'date +%%s.%%N >%s; kill -%s $PPID' % (stamp, name)
    done = subprocess.run(
        [sys.executable, SCRIPT, '-q', '-d', tree.root, '-i', 'team*:old'],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=120,
        env=dict(os.environ, LD_PRELOAD=shim, **faults.environment(
            tree.root, calls=calls, at=at, do='hook', hook=hook)))
    with open(stamp) as file:
        took = time.time() - float(file.read())
    record_property('figure', 'SIG%s to a run over %d repositories, %s: out after %.2f s' % (
        name, MANY, moment, took))
    assert done.returncode == status and 'Interrupted' in done.stdout, done.stdout
    assert 'Traceback' not in done.stdout and 'ould not' not in done.stdout, done.stdout
    assert took < 3
    if final:
        assert 'The next run frees the rest' in done.stdout
        assert left_behind(tree.v2) == [GONE]
        assert {tag for _, tag in served(tree.v2)} == {'new'}
    else:
        assert 'Interrupted. Nothing was deleted' in done.stdout
        assert read_files(tree.root) == before and left_behind(tree.v2) == []


# --- what is on disk when -------------------------------------------------------------------------

@every_operation
def test_what_is_synced_before_what(cases, name):
    """What was moved before it is final, and that before a blob goes."""
    case = cases(name)
    moves, rest = case.calls[:case.commit - 1], case.calls[case.commit:]
    syncs = [number for number, (call, _) in enumerate(moves) if call in SYNCS]
    renames = [number for number, (call, _) in enumerate(moves) if call == 'rename']
    assert renames and max(renames) < max(syncs)
    assert not any(call in ('unlink', 'rmdir') and PROBE not in path for call, path in moves)
    blobs = [number for number, (_, path) in enumerate(rest) if path.startswith(V2 + '/blobs/')]
    assert any(call in SYNCS for call, _ in rest[:blobs[0]])
    # Until they go, what stands for them is there, or the next run would not find them.
    links = [number for number, (call, path) in enumerate(rest)
             if call == 'unlink' and '/%s/' % GONE in path]
    assert max(number for number in blobs if rest[number][0] == 'unlink') < min(links)
