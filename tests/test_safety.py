"""Unsafe ground: journals that lie, second runs, registries at work, links, pushes in between.

What is killed or fails at each single call is in test_faults.py.
"""

import contextlib
import errno
import fcntl
import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest

import faults
import model
from registry import Layout, Registry
from test_command import (
    AS_ROOT, SCRIPT, call, current, has_blob, run, run_as_other, small_registry, tags,
)
from test_faults import JOURNAL, read_files
from tree import Tree, digest_of, encode, snapshot, write


@pytest.fixture
def folder():
    """A folder in memory, which other users may enter."""
    folder = faults.fast_folder()
    os.chmod(folder, 0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def tree(folder):
    return small_registry(os.path.join(folder, 'registry'))


@pytest.fixture(scope='session')
def shim(tmp_path_factory):
    return faults.build(tmp_path_factory.mktemp('shim'))


@pytest.fixture
def disturbed(shim):
    """A function: run the script with a fault, as faults.environment() says."""
    def disturbed(tree, *arguments, **fault):
        variables = faults.environment(tree.v2, **fault)
        return run('-d', tree.v2, *arguments, environment=dict(variables, LD_PRELOAD=shim))
    return disturbed


@pytest.fixture
def interrupt(disturbed):
    """A function: kill a run before it removes its `file`-th file."""
    def interrupt(tree, *arguments, file=1):
        result = disturbed(tree, *arguments, calls=' unlink ', at=file, do='kill')
        assert result.status == faults.KILLED, result
        with open(journal_of(tree), 'rb') as stream:
            return stream.read()
    return interrupt


def journal_of(tree):
    return os.path.join(tree.v2, JOURNAL)


def files(tree):
    return set(read_files(tree.root))


def files_after(folder, *commands):
    """The files of the small registry after these commands, one after the other."""
    tree = small_registry(os.path.join(folder, 'undisturbed'))
    for command in commands:
        assert call('-d', tree.root, *command).status == 0
    left = files(tree)
    shutil.rmtree(tree.root)
    return left


def refused(tree, *arguments, run=call, status=1, **options):
    """A run that has to fail and to leave everything as it is; what it said."""
    above = os.path.dirname(tree.root)
    before = snapshot(above)
    result = run('-d', tree.root, *arguments, **options)
    assert result.status == status, result
    assert snapshot(above) == before
    assert 'ERROR' in result.said, result
    return result.said


DELETE = ['-i', 'app:1.0']
OTHER = ['-i', 'team/other:1.0']


# --- journals that cannot be trusted -------------------------------------------------------------

def test_a_torn_journal_means_that_nothing_was_removed(tree, folder, interrupt):
    journal = interrupt(tree, *DELETE)
    expected = files_after(folder, OTHER)
    for length in list(range(0, len(journal) - 1, 40)) + [len(journal) - 2]:
        tree = small_registry(tree.root)
        write(journal_of(tree), journal[:length])
        before = snapshot(tree.root)
        dry = call('-d', tree.root, '-n', *OTHER)
        assert dry.status == 0 and snapshot(tree.root) == before
        result = call('-d', tree.root, *OTHER)
        assert result.status == 0, result
        for said in [dry.said, result.said]:
            assert re.search('WARNING.*journal.* torn', said)
        assert files(tree) == expected and not os.path.exists(journal_of(tree))


def replace(old, new):
    return lambda journal: journal.replace(old, new)


DIGEST = re.compile(rb'sha256:[0-9a-f]{64}')
LIES = dict(
    {'version %s' % version.decode(): lambda journal, version=version: re.sub(
        rb'"version": *\d+', b'"version": ' + version, journal)
     for version in [b'0', b'2', b'99', b'null', b'"1"', b'[1]']},
    **{'repository %s' % name.decode(): replace(b'"app"', name)
       for name in [b'""', b'".."', b'"../app"', b'"app/.."', b'"/"', b'"/etc"', b'"app//x"',
                    b'"app/"', b'"."', b'"app/./x"', b'"app\\u0000"', b'null', b'1', b'["app"]',
                    b'{}']},
    **{'tag %s' % tag.decode(): replace(b'"1.0"', tag)
       for tag in [b'""', b'".."', b'"."', b'"../2.0"', b'"/etc"', b'"a/b"', b'"\\u0000"', b'null',
                   b'1', b'["1.0"]']},
    **{'digest %s' % digest.decode(): lambda journal, digest=digest: DIGEST.sub(digest, journal)
       for digest in [b'', b'..', b'sha256:', b'sha256:..', b'../../../repositories',
                      b'sha256:' + b'0' * 63, b'sha256:' + b'A' * 64, b'md5:' + b'0' * 32,
                      b'sha256:' + b'0' * 62 + b'/.']},
    **{'kind %s' % kind.decode(): replace(b'"tag"', kind)
       for kind in [b'"folder"', b'""', b'"__class__"', b'"blob"', b'"repositories"', b'null',
                    b'1']},
    **{'all of it %s' % content.decode(): lambda journal, content=content: content + b'\n'
       for content in [b'{}', b'[]', b'null', b'1', b'""', b'{"version": 1}', b'[[]]']})


@pytest.mark.parametrize('lie', list(LIES))
def test_a_journal_outside_the_grammar_stops_the_run(tree, folder, interrupt, lie):
    journal = interrupt(tree, *DELETE)
    changed = LIES[lie](journal)
    assert changed != journal
    write(journal_of(tree), changed)
    for command in [DELETE, OTHER, ['-p'], ['-n'] + OTHER]:
        said = refused(tree, *command)
        assert journal_of(tree) in said
    # The message says how to go on without it.
    way_out = re.search("rm '.*'", said).group()
    assert shlex.split(way_out) == ['rm', journal_of(tree)]
    subprocess.check_call(way_out, shell=True)
    assert call('-d', tree.root, *OTHER).status == 0
    assert files(tree) == files_after(folder, OTHER)


@pytest.mark.parametrize('place', ['link to a journal', 'link to nothing', 'link to a folder',
                                   'folder', 'pipe'])
def test_something_else_in_place_of_the_journal(tree, folder, interrupt, place):
    path, precious = journal_of(tree), os.path.join(folder, 'precious')
    interrupt(tree, *DELETE)
    os.rename(path, precious)
    if place == 'link to a journal':
        os.symlink(precious, path)
    elif place == 'link to nothing':
        os.symlink(precious + '.new', path)
    elif place == 'link to a folder':
        os.symlink(tree.v2, path)
    elif place == 'folder':
        write(os.path.join(path, 'file'), b'precious')
    if place != 'pipe':
        assert path in refused(tree, *OTHER, run=run)
        return
    os.mkfifo(path)
    with open(precious, 'rb') as stream:
        before = stream.read()
    # Nothing can be in a pipe, so it may be taken for an empty journal. It must not be waited for.
    result = run('-d', tree.root, *OTHER, timeout=20)
    assert result.status in (0, 1) and 'journal' in result.said
    assert tags(tree, 'app') == ['1.0', '2.0'] and has_blob(tree, b'app:1.0')
    with open(precious, 'rb') as stream:
        assert stream.read() == before


def test_a_link_that_is_put_in_place_of_the_journal_at_the_last_moment(tree, folder, disturbed):
    precious = os.path.join(folder, 'precious')
    write(precious, b'precious')
    before = files(tree)
    result = disturbed(tree, *DELETE, calls=' open ', at=1, do='hook',
                       hook='ln -s %s %s' % (precious, journal_of(tree)))
    assert result.status == 1 and journal_of(tree) in result.said, result
    assert files(tree) == before
    with open(precious, 'rb') as stream:
        assert stream.read() == b'precious'


# --- finishing -----------------------------------------------------------------------------------

def test_what_was_finished_is_not_missing(tree, folder, interrupt):
    digest = current(tree, 'app', '1.0')
    for first, then in [(DELETE, DELETE), (['-i', 'app'], ['-i', 'app']),
                        (['-i', 'app'], DELETE), (['-i', 'app'], ['-i', 'app@' + digest]),
                        (['-i', 'app@' + digest], ['-i', 'app@' + digest]),
                        (['-i', 'app@' + digest], DELETE),
                        (['-i', 'localhost/app'], ['-i', 'localhost/app']),
                        (['-i', 'app:*'], DELETE + ['-i', 'app:2.0'])]:
        expected = files_after(folder, first)
        for file in [2, 5]:
            tree = small_registry(tree.root)
            interrupt(tree, *first, file=file)
            result = call('-d', tree.root, *then)
            assert result.status == 0, result
            assert 'interrupted' in result.said and 'WARNING' in result.said
            # What went with which image is not known any more.
            assert ' 0 ' not in result.said and 'untagged' not in result.said, result.said
            assert files(tree) == expected and not os.path.exists(journal_of(tree))


def test_a_manifest_that_is_linked_as_a_layer_is_finished(tree, interrupt):
    digest = tree.image('app', [b'old'], legacy=True)
    tree.tag('app', 'old', digest)
    interrupt(tree, '-i', 'app:old', file=1)
    assert call('-d', tree.root, *OTHER).status == 0
    assert tags(tree, 'app') == ['1.0', '2.0']
    assert not has_blob(tree, digest) and not has_blob(tree, b'old')


def test_a_dry_run_plans_the_request_on_what_finishing_leaves(tree, folder, interrupt):
    """The last tag goes, and with it the repository, as in the real run."""
    interrupt(tree, *DELETE, file=2)
    said = [call('-d', tree.root, *dry, '-i', 'app:2.0').said for dry in (['-n'], [])]
    assert 'Would delete repository app ' in said[0]
    assert 'Deleted repository app ' in said[1]


def test_a_request_that_is_refused_finishes_all_the_same(tree, folder, interrupt):
    for request in [['-i', 'x'], ['-i', 'app:3.0'], DELETE + ['-i', 'x'], ['-i', 'team:1.0']]:
        tree = small_registry(tree.root)
        interrupt(tree, *DELETE, file=3)
        result = call('-d', tree.root, *request)
        assert result.status == 1 and 'No repository' in result.said, result
        assert "'1.0'" not in result.said or 'team' in result.said, result
        assert files(tree) == files_after(folder, DELETE) and not os.path.exists(journal_of(tree))


def test_a_dry_run_plans_the_finishing_too(tree, interrupt):
    interrupt(tree, *DELETE, file=3)
    before = snapshot(tree.root)
    dry = call('-d', tree.root, '-v', '-n', *OTHER)
    assert dry.status == 0 and snapshot(tree.root) == before
    done = call('-d', tree.root, '-v', *OTHER)

    def events(result):
        return [line.partition(']')[2] for line in result.said.splitlines()]
    assert [line.replace('Would delete', 'Deleted') for line in events(dry)] == events(done)
    assert any('manifest app@' in line for line in events(done))
    assert any('team/other' in line for line in events(done))


def test_what_refuses_a_run_refuses_to_finish(tree, interrupt):
    interrupt(tree, *DELETE)
    os.symlink('1.0', tree.repo('app', '_manifests', 'tags', 'latest'))
    said = refused(tree, *OTHER)
    assert 'latest' in said and '1.0' in said
    os.remove(tree.repo('app', '_manifests', 'tags', 'latest'))
    # A manifest that stays and cannot be read.
    path = tree.blob_path(current(tree, 'app', '2.0'))
    os.rename(path, path + '.away')
    write(path, b'garbage')
    said = refused(tree, *OTHER)
    assert 'app@' + current(tree, 'app', '2.0') in said and "rm '%s'" % journal_of(tree) in said
    os.rename(path + '.away', path)
    # A disk that is not mounted.
    blobs = os.path.join(tree.v2, 'blobs')
    os.rename(blobs, blobs + '.away')
    os.mkdir(blobs)
    assert 'mounted' in refused(tree, *OTHER)
    os.rename(blobs + '.away', blobs)
    assert call('-d', tree.root, *OTHER).status == 0
    assert tags(tree, 'app') == ['2.0'] and not has_blob(tree, b'app:1.0')


def test_finishing_fails_and_the_request_is_carried_out(tree, folder, interrupt, disturbed):
    interrupt(tree, *DELETE, file=3)
    result = disturbed(tree, *OTHER, calls=' unlink ', at=1, do=errno.EIO)
    assert result.status == 3 and os.strerror(errno.EIO) in result.said, result
    assert os.path.exists(journal_of(tree)) and not os.path.exists(tree.repo('team/other'))
    result = call('-d', tree.root, '-p')
    assert result.status == 0, result
    assert files(tree) == files_after(folder, DELETE, OTHER)


def test_a_link_that_is_the_same_but_for_its_file_was_pushed_again(tree, interrupt):
    """A storage may keep times coarsely, so the same time says nothing."""
    interrupt(tree, *DELETE)
    for path in [tree.tag_link('app', '1.0'),
                 tree.revision_link('app', current(tree, 'app', '1.0'))]:
        status = os.stat(path)
        shutil.copy(path, path + '.new')
        os.utime(path + '.new', ns=(status.st_mtime_ns, status.st_mtime_ns))
        os.rename(path + '.new', path)
    whole = model.pull(tree.v2, 'app', current(tree, 'app', '1.0'))
    assert whole[1]
    assert call('-d', tree.root, *OTHER).status == 0
    assert model.pull(tree.v2, 'app', current(tree, 'app', '1.0')) == whole


# --- one at a time -------------------------------------------------------------------------------

def test_another_process_holds_the_lock(tree):
    descriptor = os.open(tree.v2, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    for command in [DELETE, ['-p'], ['-u', '-i', '*']]:
        assert 'nother run' in refused(tree, *command)
    assert call('-d', tree.root, '-n', *DELETE).status == 0
    os.close(descriptor)
    assert call('-d', tree.root, *DELETE).status == 0


def test_two_runs_at_once(tree, folder, disturbed):
    said = os.path.join(folder, 'said')
    second = ' '.join(map(shlex.quote, [sys.executable, SCRIPT, '-d', tree.root] + OTHER))
    result = disturbed(tree, *DELETE, calls=' unlink ', at=2, do='hook',
                       hook='%s >%s 2>&1; echo exit $? >>%s' % (second, said, said))
    assert result.status == 0, result
    with open(said) as stream:
        text = stream.read()
    assert 'nother run' in text and text.endswith('exit 1\n'), text
    assert files(tree) == files_after(folder, DELETE)


@pytest.mark.parametrize('error', [errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_a_storage_that_cannot_lock(tree, folder, disturbed, error):
    result = disturbed(tree, *DELETE, calls=' flock ', at='1+', do=error)
    assert result.status == 0, result
    assert 'WARNING' in result.said and os.strerror(error) in result.said
    assert files(tree) == files_after(folder, DELETE)


@pytest.mark.parametrize('error', [errno.EBADF, errno.EINVAL, errno.ENOTSUP])
def test_a_storage_that_cannot_sync_folders(tree, folder, disturbed, error):
    # The first call is that for the journal itself.
    result = disturbed(tree, *DELETE, calls=' fsync ', at='2+', do=error)
    assert result.status == 0, result
    assert 'WARNING' in result.said and os.strerror(error) in result.said
    assert files(tree) == files_after(folder, DELETE) and not os.path.exists(journal_of(tree))


# --- what is not permitted -----------------------------------------------------------------------

def test_an_ordinary_user_on_a_tree_that_is_not_theirs(tree, interrupt):
    def as_other(*arguments):
        return run_as_other(tree, *arguments[2:])

    tree.image('app', [b'untagged'])
    os.makedirs(tree.repo('empty'))
    if not AS_ROOT:
        subprocess.check_call(['chmod', '-R', 'a-w', tree.root])
    try:
        for command, status in [(DELETE, 1), (['-i', 'app'], 1), (['-u', '-i', '*'], 1),
                                (['-p'], 3)]:  # which needs no journal, so it gets further
            said = refused(tree, *command, run=as_other, status=status)
            assert 'Permission denied' in said and tree.v2 in said
    finally:
        subprocess.check_call(['chmod', '-R', 'u+w', tree.root])
    interrupt(tree, *DELETE, file=3)
    assert tree.v2 in refused(tree, *DELETE, run=as_other)


@pytest.fixture
def mounted(folder):
    """A function: mount a small file system of its own; returns its folder."""
    path = os.path.join(folder, 'mounted')
    os.mkdir(path)

    def mount(*options):
        done = subprocess.run(['mount', '-t', 'tmpfs', '-o', ','.join(options), 'tmpfs', path],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            pytest.skip('NOT TESTED, since nothing may be mounted here: %s'
                        % done.stdout.decode().strip())
        return path
    yield mount
    subprocess.call(['umount', '-l', path], stderr=subprocess.DEVNULL)


def test_a_read_only_file_system(mounted, interrupt):
    path = mounted('size=8m')
    tree = small_registry(os.path.join(path, 'registry'))
    for prepare in [lambda: None, lambda: interrupt(tree, *DELETE, file=3)]:
        prepare()
        subprocess.check_call(['mount', '-o', 'remount,ro', path])
        said = refused(tree, *OTHER)
        assert os.strerror(errno.EROFS) in said and tree.v2 in said
        assert call('-d', tree.root, '-n', *OTHER).status == 0
        subprocess.check_call(['mount', '-o', 'remount,rw', path])
    assert call('-d', tree.root, *OTHER).status == 0
    assert tags(tree, 'app') == ['2.0'] and not os.path.exists(journal_of(tree))


def test_a_full_disk(mounted, folder):
    path = mounted('size=2m')
    tree = small_registry(os.path.join(path, 'registry'))
    with contextlib.suppress(OSError), open(os.path.join(path, 'full'), 'wb', 0) as stream:
        while stream.write(b'x' * 4096):
            pass
    result = call('-d', tree.root, *DELETE)
    assert result.status == 0 and 'No space left' in result.said, result
    assert files(tree) == files_after(folder, DELETE) and not os.path.exists(journal_of(tree))


# --- is a registry running? ----------------------------------------------------------------------

@contextlib.contextmanager
def process(folder, *words, environment=(), inside=()):
    """A process of Python whose arguments are `words`; the first names what it runs."""
    program = os.path.join(folder, words[0])
    write(program, b'import sys\nprint("ready", flush=True)\nsys.stdin.read()\n')
    clean = {name: value for name, value in os.environ.items() if not name.startswith('REGISTRY_')}
    running = subprocess.Popen(
        list(inside) + [sys.executable] + list(words), cwd=folder,
        env=dict(clean, **dict(environment)), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert running.stdout.readline() == b'ready\n'
        yield running.pid
    finally:
        running.communicate(b'')


ROOT = 'REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY'
CONFIGURATIONS = {
    'block': 'version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: %s\n  delete:\n',
    'quoted': 'storage:\n  filesystem:\n    "rootdirectory": "%s"   # here\nhttp:\n',
    'single quotes': "storage:\n  filesystem:\n    rootdirectory:    '%s'\n",
    'flow': 'storage: {filesystem: {rootdirectory: %s, maxthreads: 100}, delete: {enabled: true}}',
    'flow at the end': 'storage: {filesystem: {maxthreads: 100, rootdirectory: %s}}',
    'JSON': '{"storage": {"filesystem": {"rootdirectory": "%s"}}}',
    'comment before': '# rootdirectory: /nowhere\nstorage:\n  filesystem:\n'
                      '    # rootdirectory: /x\n    rootdirectory: %s',
}


def check_refused(tree, pid, *command):
    """Refused in words that help; a dry run is allowed, and so is --read-only-registry."""
    for request in [DELETE, ['-p'], ['-u', '-i', '*']]:
        said = refused(tree, *request)
        assert re.search(r'\b%d\b' % pid, said) and ' '.join(command) in said, said
        assert '--read-only-registry' in said and 'top it' in said
    assert call('-d', tree.root, '-n', *DELETE).status == 0
    assert call('-d', tree.root, '--read-only-registry', *DELETE).status == 0
    assert tags(tree, 'app') == ['2.0']


@pytest.mark.parametrize('name', list(CONFIGURATIONS))
def test_a_running_registry_is_found_by_its_configuration(tree, folder, name):
    write(os.path.join(folder, 'config.yml'), (CONFIGURATIONS[name] % tree.root).encode())
    with process(folder, 'serve', 'config.yml') as pid:
        check_refused(tree, pid, 'serve', 'config.yml')


def test_a_running_registry_is_found_by_its_environment(tree, folder):
    write(os.path.join(folder, 'config.yml'), (CONFIGURATIONS['block'] % '/nowhere').encode())
    with process(folder, 'serve', 'config.yml', environment={ROOT: tree.root}) as pid:
        check_refused(tree, pid, 'serve', 'config.yml')


def test_a_running_registry_is_found_by_the_configuration_that_its_environment_names(tree, folder):
    text = CONFIGURATIONS['block'] % tree.root + 'proxy:\n  remoteurl: https://example.com\n'
    write(os.path.join(folder, 'config.yml'), text.encode())
    write(os.path.join(folder, 'other.yml'), (CONFIGURATIONS['block'] % '/nowhere').encode())
    named = {'REGISTRY_CONFIGURATION_PATH': 'config.yml'}
    with process(folder, 'serve', environment=named) as pid:
        assert re.search(r'\b%d\b' % pid, refused(tree, *DELETE))
        assert 'cache' in refused(tree, '--read-only-registry', *DELETE)
    with process(folder, 'serve', 'other.yml', environment=named):  # an argument goes before it
        assert call('-d', tree.root, *DELETE).status == 0


def test_a_running_registry_is_found_under_another_name_of_its_folder(tree, folder):
    os.symlink(tree.root, os.path.join(folder, 'alias'))
    with process(folder, 'serve', environment={ROOT: 'alias'}) as pid:
        check_refused(tree, pid, 'serve')


def test_a_registry_in_a_container_is_found(tree, folder):
    """It sees the folder as the images' default, which here is something else, or nothing."""
    inside = ['unshare', '-m', 'sh', '-c',
              'mount -t tmpfs none /var/lib && mkdir /var/lib/registry && '
              'mount --bind %s /var/lib/registry && exec "$@"' % tree.root, 'sh']
    done = subprocess.run(inside + ['true'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        pytest.skip('NOT TESTED, since nothing may be mounted here: %s'
                    % done.stdout.decode().strip())
    with process(folder, 'serve', inside=inside) as pid:
        check_refused(tree, pid, 'serve')


def test_a_garbage_collection_at_work(tree, folder):
    with process(folder, 'garbage-collect', environment={ROOT: tree.root}) as pid:
        for request in [DELETE, ['--read-only-registry'] + DELETE]:
            assert re.search(r'\b%d\b' % pid, refused(tree, *request))


def test_a_cache_is_never_read_only(tree, folder):
    for text, environment in [('proxy:\n  remoteurl: https://example.com\n', {}),
                              ('', {'REGISTRY_PROXY_REMOTEURL': 'https://example.com'})]:
        configuration = CONFIGURATIONS['block'] % tree.root + text
        write(os.path.join(folder, 'config.yml'), configuration.encode())
        with process(folder, 'serve', 'config.yml', environment=environment) as pid:
            said = refused(tree, '--read-only-registry', *DELETE)
            assert re.search(r'\b%d\b' % pid, said) and 'cache' in said


def test_what_is_no_registry_at_work_here(tree, folder):
    write(os.path.join(folder, 'config.yml'), (CONFIGURATIONS['block'] % tree.root).encode())
    shutil.copytree(tree.root, os.path.join(folder, 'copy'))
    here = {ROOT: tree.root}
    elsewhere = {ROOT: os.path.join(folder, 'copy')}
    with contextlib.ExitStack() as stack:
        for words, environment in [
                (['shell'], here),                      # exported the variable
                (['config.yml.editor', 'config.yml'], {}),
                (['program', 'serve', 'config.yml'], here),
                (['serve', 'config.yml'], elsewhere),   # which goes before the file
                (['serve'], elsewhere)]:
            stack.enter_context(process(folder, *words, environment=environment))
        with subprocess.Popen(['tail', '-f', os.path.join(folder, 'config.yml')],
                              stdout=subprocess.DEVNULL) as viewer:
            result = call('-d', tree.root, *DELETE)
            viewer.kill()
    assert result.status == 0, result


def test_a_real_registry(tmp_path, folder):
    with Registry(os.path.join(folder, 'registry')) as registry:
        registry.push_image('app', '1.0', [b'a layer'])
        registry.push_image('app', '2.0', [b'another layer'])
        tree = Tree(registry.root)
        said = refused(tree, *DELETE)
        assert 'docker-registry serve' in said and re.search(r'rocess \d+', said)
        shutil.copytree(tree.root, os.path.join(folder, 'copy'))
        result = call('-d', os.path.join(folder, 'copy'), *DELETE)
        assert result.status == 0, result
        assert registry.tags('app') == ['1.0', '2.0'] and registry.pull('app', '1.0')
        registry.stop()
        assert call('-d', tree.root, *DELETE).status == 0
        registry.start()
        assert registry.tags('app') == ['2.0'] and registry.pull('app', '2.0')


def test_what_it_costs_to_look_for_a_registry(tree, record_property):
    """Only measured: how fast a machine is, is no matter of right or wrong."""
    def best():
        times = []
        for _ in range(5):
            start = time.perf_counter()
            assert call('-d', tree.root, '-q', '-p').status == 0
            times.append(time.perf_counter() - start)
        return 1000 * min(times)

    before, count = best(), len(glob.glob('/proc/[0-9]*'))
    sleepers = [subprocess.Popen(['sleep', '60'], close_fds=False) for _ in range(500)]
    after = best()
    for sleeper in sleepers:
        sleeper.kill()
    for sleeper in sleepers:
        sleeper.wait()
    record_property('figure', 'run with %d processes on the machine: %.0f ms, with %d: %.0f ms' % (
        count, before, count + 500, after))


# --- links ---------------------------------------------------------------------------------------

def replace_by_link(path, target):
    os.remove(path)
    os.symlink(target, path)


def test_link_files_that_are_links_to_each_other(tree):
    """As a tool makes them that stores equal files once."""
    tree.tag('app', 'latest', current(tree, 'app', '1.0'))
    replace_by_link(tree.tag_link('app', 'latest'), tree.tag_link('app', '1.0'))
    said = refused(tree, *DELETE)
    assert 'latest' in said and '1.0' in said
    base = digest_of(b'base')
    replace_by_link(tree.layer_link('team/other', base), tree.layer_link('app', base))
    said = refused(tree, '-i', 'app')
    assert 'team/other' in said
    # What only points away is removed, and what it points to stays.
    assert call('-d', tree.root, '-i', 'team/other', '-i', 'app:latest').status == 0
    assert tags(tree, 'app') == ['1.0', '2.0'] and not os.path.exists(tree.repo('team/other'))
    for tag in ['1.0', '2.0']:
        assert model.pull(tree.v2, 'app', current(tree, 'app', tag))[1]
    assert call('-d', tree.root, *DELETE).status == 0
    assert model.pull(tree.v2, 'app', current(tree, 'app', '2.0'))[1]


def test_link_files_of_two_repositories_that_are_links_to_each_other(tree):
    """Even where the repository that stays is none that this run has to look at otherwise."""
    digest = current(tree, 'app', '1.0')
    shutil.copytree(tree.repo('app'), tree.repo('copy'))
    replace_by_link(tree.tag_link('copy', '1.0'), tree.revision_link('app', digest))
    for command in [DELETE, ['-i', 'app']]:
        result = call('-d', tree.root, *command)
        assert model.link(tree.repo('copy', '_manifests', 'tags', '1.0', 'current')) == digest
        assert model.pull(tree.v2, 'copy', digest)[1]
        if result.status == 1:
            assert tree.tag_link('copy', '1.0') in result.said


@pytest.mark.parametrize('kind', ['tags', 'revisions'])
def test_a_repository_that_has_its_tags_or_its_revisions_from_another_one(tree, kind):
    shutil.copytree(tree.repo('app'), tree.repo('copy'))
    shutil.rmtree(tree.repo('copy', '_manifests', kind))
    os.symlink('../../app/_manifests/' + kind, tree.repo('copy', '_manifests', kind))
    for command in [DELETE, ['-i', 'app'], ['-g'] + DELETE]:
        assert tree.repo('copy', '_manifests', kind) in refused(tree, *command)


@pytest.mark.parametrize('kind', ['tag', 'layer', 'revision'])
def test_a_link_file_that_leads_nowhere(tree, kind):
    """What stays is not harmed by it; what goes may be what is broken."""
    digest = current(tree, 'team/other', '1.0')
    path = {'tag': tree.tag_link('team/other', '1.0'),
            'layer': tree.layer_link('team/other', digest_of(b'base')),
            'revision': tree.revision_link('team/other', digest)}[kind]
    replace_by_link(path, '/nowhere/at/all')
    result = call('-d', tree.root, *DELETE)
    assert result.status in (0, 1), result
    assert has_blob(tree, b'base') and has_blob(tree, b'team/other:1.0') and has_blob(tree, digest)
    if result.status == 1:
        assert path in result.said and tags(tree, 'app') == ['1.0', '2.0']


@pytest.mark.parametrize('link', ['blobs', 'blobs/sha256', 'repositories', 'repositories/app',
                                  'repositories/app/_manifests', 'repositories/team'])
def test_a_linked_folder_is_finished_too(tree, folder, interrupt, link):
    path, target = os.path.join(tree.v2, link), os.path.join(folder, 'elsewhere')
    os.rename(path, target)
    os.symlink(target, path)
    for file in [1, 3, 5, 7]:
        interrupt(tree, *DELETE, file=1 if file == 1 else 2)
    assert call('-d', tree.root, *OTHER).status == 0
    assert os.path.islink(path) or link == 'repositories/team'
    assert tags(tree, 'app') == ['2.0'] and not has_blob(tree, b'app:1.0')
    assert model.pull(tree.v2, 'app', current(tree, 'app', '2.0'))[1]


# --- what is pushed while a run is at work -------------------------------------------------------

def newcomer(folder, tree, repo, layers):
    """(digest of an image, the shell command that pushes it: it sends what is not there)."""
    other = Tree(os.path.join(folder, 'newcomer'))
    digest = other.image(repo, layers, config=encode({'new': 'comer'}))
    return digest, 'cp -rn %s/. %s' % (other.v2, tree.v2)


@pytest.mark.parametrize('file', [1, 2, 3])
@pytest.mark.parametrize('image', ['app:1.0', 'app', 'app:*'])
def test_an_image_that_appears_before_the_layers_go_keeps_them(
        tree, folder, disturbed, file, image):
    """The first files to go are the tag's two links and the revision's."""
    digest, push = newcomer(folder, tree, 'app', [b'app:1.0', b'base', b'new'])
    result = disturbed(tree, '-i', image, calls=' unlink ', at=file, do='hook', hook=push)
    assert result.status == 0, result
    assert model.pull(tree.v2, 'app', digest)[1]
    assert '1.0' not in tags(tree, 'app')


def test_a_folder_that_has_lost_its_link_and_gets_a_new_one_stays(tree, folder, disturbed):
    digest, push = newcomer(folder, tree, 'app', [b'app:1.0', b'base', b'new'])
    tree.blob(b'new')
    for path in [tree.revision_link('app', digest), tree.layer_link('app', digest_of(b'new'))]:
        os.makedirs(os.path.dirname(path))
    result = disturbed(tree, '-g', *DELETE, calls=' unlink ', at=1, do='hook', hook=push)
    assert result.status == 0, result
    assert model.pull(tree.v2, 'app', digest)[1]
    assert tags(tree, 'app') == ['2.0'] and not os.path.exists(journal_of(tree))


def test_a_layer_that_is_linked_elsewhere_meanwhile_stays(tree, folder, disturbed):
    digest, push = newcomer(folder, tree, 'elsewhere', [b'app:1.0'])
    for file in range(1, 6):  # then the blobs go
        tree = small_registry(tree.root)
        shutil.rmtree(tree.repo('elsewhere'), ignore_errors=True)
        result = disturbed(tree, *DELETE, calls=' unlink ', at=file, do='hook', hook=push)
        assert result.status == 0, result
        assert tags(tree, 'app') == ['2.0']
        assert model.pull(tree.v2, 'elsewhere', digest)[1]


def test_what_appears_and_cannot_be_read_keeps_everything(tree, folder, disturbed):
    digest, push = newcomer(folder, tree, 'app', [b'app:1.0'])
    damage = 'echo garbage >%s' % shlex.quote(tree.blob_path(digest))
    result = disturbed(tree, *DELETE, calls=' unlink ', at=1, do='hook',
                       hook=push + '; ' + damage)
    assert result.status == 3 and digest in result.said, result
    assert has_blob(tree, b'app:1.0') and os.path.exists(journal_of(tree))
    assert os.path.exists(tree.layer_link('app', digest_of(b'app:1.0')))


# --- pushed again, by a real client to a real registry -------------------------------------------

def test_pushed_again_by_skopeo_after_a_kill(tmp_path, folder, disturbed):
    layout = Layout(tmp_path / 'layout')
    image = layout.tag('image', layout.index(layout.image('base', 'one'),
                                             layout.image('base', 'two', 'three')))
    other = layout.tag('other', layout.image('base', 'other'))
    with Registry(os.path.join(folder, 'registry')) as registry:
        registry.skopeo_copy(image, 'app:1.0', '--all')
        registry.skopeo_copy(other, 'app:2.0')
        whole, second = registry.pull('app', '1.0'), registry.pull('app', '2.0')
        tree, file, status = Tree(registry.root), 0, faults.KILLED
        while status == faults.KILLED:
            registry.stop()
            file += 4
            status = disturbed(tree, *DELETE, calls=' unlink ', at=file, do='kill').status
            registry.start()
            assert registry.pull('app', '2.0') == second
            registry.skopeo_copy(image, 'app:1.0', '--all')
            registry.skopeo_copy(other, 'spare:1.0')
            registry.stop()
            result = run('-d', tree.root, '-i', 'spare')
            assert result.status == 0, result
            assert not os.path.exists(journal_of(tree))
            registry.start()
            assert registry.pull('app', '1.0') == whole
            assert registry.pull('app', '2.0') == second
            registry.skopeo_pull('app:1.0', os.path.join(folder, 'pulled%d' % file))
        assert file > 16 and status == 0
