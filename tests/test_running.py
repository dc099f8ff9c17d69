"""Is a registry at work on the data? Asked of real processes that are called as registries are.

Any local user can start a process called so, with anything as its configuration: that can neither
stop nor hang a run.
"""

import contextlib
import glob
import os
import re
import shutil
import socket
import subprocess
import time

import pytest

import faults
from registry import Registry
from test_command import (
    AS_ROOT, call, others_tree, refused, run, run_as_other, small_registry, tags,
)
from tree import Tree, snapshot, write

__all__ = ['others_tree']       # a fixture
DELETE = ['-i', 'app:1.0']
READ_ONLY = ['--read-only-registry'] + DELETE
ROOT = 'REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY'
ONLY_READING = 'REGISTRY_STORAGE_MAINTENANCE_READONLY'
LOCAL = 'storage:\n  filesystem:\n    rootdirectory: %s\n'
SOON = 20       # seconds in which every run has ended, whatever the others do

# Says that it is there, and waits until its standard input ends.
STAND_IN = """
#include <unistd.h>
int main(void) { char byte; return write(1, "ready\\n", 6) != 6 || read(0, &byte, 1) < 0; }
"""


@pytest.fixture(scope='session')
def program(tmp_path_factory):
    """A program that does nothing, to be copied under the name of another."""
    folder = tmp_path_factory.mktemp('stand-in')
    (folder / 'source.c').write_text(STAND_IN)
    subprocess.check_call(['gcc', '-O1', '-o', str(folder / 'program'), str(folder / 'source.c')])
    return str(folder / 'program')


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


@pytest.fixture
def running(program, folder):
    """A function, to be used with `with`: a process called with `words`, as its id."""
    @contextlib.contextmanager
    def running(*words, environment=(), inside=()):
        place = os.path.join(folder, 'bin', words[0])
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if not os.path.exists(place):
            shutil.copy(program, place)
        clean = {name: value for name, value in os.environ.items()
                 if not name.startswith('REGISTRY_')}
        process = subprocess.Popen(
            list(inside) + [place] + list(words[1:]), cwd=folder, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=dict(clean, **dict(environment)))
        try:
            assert process.stdout.readline() == b'ready\n'
            yield process.pid
        finally:
            process.communicate(b'')
    return running


def configure(folder, text, name='config.yml'):
    write(os.path.join(folder, name), text if isinstance(text, bytes) else text.encode())


def at(tree, environment):
    """Variables with the tree's root in place of %s."""
    return {name: text.replace('%s', tree.root) for name, text in environment.items()}


def refused_for(tree, pid, *arguments):
    """The same, because of this process."""
    said = refused(tree, *arguments)
    assert re.search(r'\b%d\b' % pid, said), said
    return said


def done(tree, *arguments):
    """A run that has to delete the image, and soon."""
    result = run('-d', tree.root, *arguments, timeout=SOON)
    assert result.status == 0, result
    assert tags(tree, 'app') == ['2.0']


# --- what is a registry at work here --------------------------------------------------------------

def test_a_running_registry_is_refused_in_words_that_help(tree, folder, running):
    configure(folder, LOCAL % tree.root)
    with running('docker-registry', 'serve', 'config.yml') as pid:
        for request in [DELETE, ['-p'], ['-g'], ['-u'], ['-u', '-i', '*'], ['-q'] + DELETE]:
            said = refused_for(tree, pid, *request)
            assert 'serve config.yml' in said
            assert 'top it' in said and '--read-only-registry' in said
        # What changes nothing is allowed at any time.
        before = snapshot(tree.root)
        for request in [['-n'] + DELETE, ['-l'], ['-n', '-g', '-u', '-p']]:
            assert call('-d', tree.root, *request).status == 0
        assert snapshot(tree.root) == before
    done(tree, *DELETE)


CONFIGURATIONS = {
    'block': 'version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: %s\n  delete:\n',
    'quoted': 'storage:\n  filesystem:\n    "rootdirectory": "%s"   # here\nhttp:\n',
    'single quotes': "storage:\n  filesystem:\n    rootdirectory:    '%s'\n",
    'flow': 'storage: {filesystem: {rootdirectory: %s, maxthreads: 100}, delete: {enabled: true}}',
    'flow at the end': 'storage: {filesystem: {maxthreads: 100, rootdirectory: %s}}',
    'flow on lines of its own': 'storage: {\n  filesystem: {\n    rootdirectory: %s\n  }\n}\n',
    'JSON': '{"storage": {"filesystem": {"rootdirectory": "%s"}}}',
    'JSON without spaces': '{"storage":{"filesystem":{"rootdirectory":"%s"}}}',
    'comment before': '# rootdirectory: /nowhere\nstorage:\n  filesystem:\n'
                      '    # rootdirectory: /x\n    rootdirectory: %s',
    'value on the next line': 'storage:\n  filesystem:\n    rootdirectory:\n      %s\n',
    'value after a comment': 'storage:\n  filesystem:\n    rootdirectory: # data\n      %s\n',
    'value after a line of comment':
        'storage:\n  filesystem:\n    rootdirectory:\n\n      # data\n      %s\n',
    'folded': 'storage:\n  filesystem:\n    rootdirectory: >-\n      %s\n',
    'lines of Windows': 'storage:\r\n  filesystem:\r\n    rootdirectory: %s\r\n  delete:\r\n',
    'space before the colon': 'storage:\n  filesystem:\n    rootdirectory : %s\n',
    'slash at the end': 'storage:\n  filesystem:\n    rootdirectory: %s/\n',
}


@pytest.mark.parametrize('name', list(CONFIGURATIONS))
def test_its_root_directory_stands_in_its_configuration(tree, folder, running, name):
    configure(folder, CONFIGURATIONS[name] % tree.root)
    with running('registry', 'serve', 'config.yml') as pid:
        refused_for(tree, pid, *DELETE)


@pytest.mark.parametrize('environment', [
    {ROOT: '%s'},
    {'REGISTRY_STORAGE': 'filesystem: {rootdirectory: %s}'},
    {'REGISTRY_STORAGE': 'filesystem:\n  rootdirectory: %s\n'},
    {'REGISTRY_STORAGE': '{"filesystem": {"rootdirectory": "%s"}}'},
    {'REGISTRY_STORAGE_FILESYSTEM': 'rootdirectory: %s'},
    {'REGISTRY_STORAGE_FILESYSTEM': '{"rootdirectory": "%s", "maxthreads": 100}'},
    {ROOT: '%s', 'REGISTRY_STORAGE': 'filesystem: {rootdirectory: /nowhere}'},
], ids=str)
def test_its_root_directory_stands_in_its_environment(tree, folder, running, environment):
    environment = at(tree, environment)
    configure(folder, LOCAL % '/nowhere')       # which the environment overrules
    for words in [['serve', 'config.yml'], ['serve', 'missing.yml'], ['serve']]:
        with running('registry', *words, environment=environment) as pid:
            refused_for(tree, pid, *DELETE)


def test_its_configuration_is_named_by_its_environment(tree, folder, running):
    configure(folder, LOCAL % tree.root + 'proxy:\n  remoteurl: https://example.com\n')
    configure(folder, LOCAL % '/nowhere', 'other.yml')
    named = {'REGISTRY_CONFIGURATION_PATH': 'config.yml'}
    with running('registry', 'serve', environment=named) as pid:
        refused_for(tree, pid, *DELETE)
        assert 'cache' in refused_for(tree, pid, *READ_ONLY)
    with running('registry', 'serve', 'other.yml', environment=named):  # an argument goes first
        done(tree, *DELETE)


@pytest.mark.parametrize('words', [
    ['docker-registry', 'serve', 'config.yml'], ['anything', 'serve', 'config.yml'],
    ['registry', 'garbage-collect', 'config.yml'],
    ['registry', 'garbage-collect', '--delete-untagged', 'config.yml'],
    ['registry', 'garbage-collect', 'config.yml', '-m'],
    # Before 2.4 there was no word `serve`; OpenShift's has none.
    ['registry', 'config.yml'], ['docker-registry', 'config.yml'], ['dockerregistry', 'config.yml'],
], ids=' '.join)
def test_how_it_is_called(tree, folder, running, words):
    configure(folder, LOCAL % tree.root)
    with running(*words) as pid:
        assert ' '.join(words[1:]) in refused_for(tree, pid, *DELETE)


def test_a_folder_has_many_names(tree, folder, running):
    os.symlink(tree.root, os.path.join(folder, 'alias'))
    configure(folder, LOCAL % 'alias')
    for words, environment in [(['serve'], {ROOT: 'alias'}), (['serve', 'config.yml'], {}),
                               (['serve'], {ROOT: folder + '/./alias/../registry'})]:
        with running('registry', *words, environment=environment) as pid:
            refused_for(tree, pid, *DELETE)


def test_a_folder_whose_name_is_not_utf8(folder, running):
    tree = small_registry(os.path.join(folder, os.fsdecode(b'data \xff')))
    configure(folder, os.fsencode(LOCAL % tree.root))
    for words, environment in [(['serve', 'config.yml'], {}), (['serve'], {ROOT: tree.root})]:
        with running('registry', *words, environment=environment) as pid:
            refused_for(tree, pid, *DELETE)


def test_a_registry_in_an_emulator(tree, folder, running):
    configure(folder, LOCAL % tree.root)
    with running('qemu-aarch64', 'registry', 'serve', 'config.yml') as pid:
        refused_for(tree, pid, *DELETE)


@pytest.mark.parametrize('make', [
    'mkdir /var/lib/registry && mount --bind %s /var/lib/registry',
    'mkdir /var/lib/d && mount --bind %s /var/lib/d && ln -s /var/lib/d /var/lib/registry'])
def test_a_registry_in_a_container(tree, running, make):
    """It sees the folder as the images' default, which here is something else, or nothing."""
    inside = ['unshare', '-m', 'sh', '-c',
              'mount -t tmpfs none /var/lib && %s && exec "$@"' % (make % tree.root), 'sh']
    tried = subprocess.run(inside + ['true'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if tried.returncode != 0:
        pytest.skip('NOT TESTED, since nothing may be mounted here: %s'
                    % tried.stdout.decode().strip())
    with running('registry', 'serve', inside=inside) as pid:
        refused_for(tree, pid, *DELETE)


def test_what_is_no_registry_at_work_here(tree, folder, running):
    configure(folder, LOCAL % tree.root)
    elsewhere = shutil.copytree(tree.root, os.path.join(folder, 'copy'))
    configure(folder, LOCAL % elsewhere, 'elsewhere.yml')
    with contextlib.ExitStack() as stack:
        for words, root in [
                (['shell'], tree.root),                             # it exported the variable
                (['editor', 'config.yml'], tree.root),
                (['program', 'run', 'serve', 'config.yml'], tree.root),
                (['registry', '--version'], tree.root),
                (['registry', 'serve', 'config.yml'], elsewhere),   # goes before the file
                (['registry', 'serve', 'elsewhere.yml'], ''),
                (['dockerregistry', 'elsewhere.yml'], ''),
                (['registry', 'serve'], elsewhere)]:
            stack.enter_context(running(*words, environment={ROOT: root} if root else {}))
        done(tree, *DELETE)


# --- read-only ------------------------------------------------------------------------------------

# What is said of each was seen with registry 2.8.2: with those of the first table it takes no push.
MAINTENANCE = LOCAL + '  maintenance:\n'
PURGING = '{enabled: true, age: 168h, interval: 24h, dryrun: false}'
ENABLED = MAINTENANCE + '    readonly:\n      enabled: true\n'
READS_ONLY = {
    'variable, JSON': ({ONLY_READING: '{"enabled":true}'}, LOCAL),
    'variable, JSON with spaces': ({ONLY_READING: '{ "enabled" : true }'}, LOCAL),
    'variable, YAML': ({ONLY_READING: 'enabled: true'}, LOCAL),
    'variable, flow': ({ONLY_READING: '{enabled: true}'}, LOCAL),
    'variable above, YAML': ({'REGISTRY_STORAGE_MAINTENANCE': 'readonly: {enabled: true}'}, LOCAL),
    'variable above, JSON': (
        {'REGISTRY_STORAGE_MAINTENANCE': '{"readonly": {"enabled": true}}'}, LOCAL),
    'block': ({}, ENABLED),
    'variable of another key': ({'REGISTRY_STORAGE_FILESYSTEM': 'rootdirectory: %s'}, ENABLED),
    'block, with a comment': (
        {}, MAINTENANCE + '    readonly:   # while cleaning\n      enabled: true  # yes\n'),
    'block, after another': (
        {}, MAINTENANCE + '    uploadpurging:\n      enabled: false\n'
        '    readonly:\n      enabled: true\n'),
    'flow': ({}, MAINTENANCE + '    readonly: {enabled: true}\n'),
    'flow, further out': ({}, LOCAL + '  maintenance: {readonly: {enabled: true}}\n'),
    'quoted': ({}, MAINTENANCE + '    "readonly":\n      "enabled": true\n'),
    'JSON': ({}, '{"storage": {"filesystem": {"rootdirectory": "%s"}, '
                 '"maintenance": {"readonly": {"enabled": true}}}}'),
    'a cache of nothing': (
        {}, ENABLED + 'proxy:\n  remoteurl: ""\n'),
}
WRITES = {
    'nothing is said': ({}, LOCAL),
    'variable, JSON': ({ONLY_READING: '{"enabled":false}'}, LOCAL),
    'variable, YAML': ({ONLY_READING: 'enabled: false'}, LOCAL),
    'the variable goes before the file': ({ONLY_READING: '{"enabled":false}'}, ENABLED),
    'a variable above replaces it': (
        {'REGISTRY_STORAGE_MAINTENANCE': 'uploadpurging: {enabled: false}'}, ENABLED),
    'a variable further above replaces it': (
        {'REGISTRY_STORAGE': 'filesystem: {rootdirectory: %s}'}, ENABLED),
    'elsewhere': ({}, 'readonly:\n  enabled: true\n' + LOCAL),
    'block': ({}, MAINTENANCE + '    readonly:\n      enabled: false\n'),
    'in a comment': ({}, MAINTENANCE + '#   readonly:\n#     enabled: true\n'),
    'half in a comment': (
        {}, MAINTENANCE + '    readonly:\n      # enabled: true\n      enabled: false\n'),
    'another key is enabled': (
        {}, MAINTENANCE + '    uploadpurging:\n      enabled: true\n      age: 168h\n'
        '      interval: 24h\n      dryrun: false\n    readonly:\n      enabled: false\n'),
    'another key after it is enabled': (
        {}, MAINTENANCE + '    readonly:\n      enabled: false\n    uploadpurging:\n'
        '      enabled: true\n      age: 168h\n      interval: 24h\n      dryrun: false\n'),
    'flow, another key is enabled': (
        {}, LOCAL + '  maintenance: {readonly: {enabled: false}, uploadpurging: ' + PURGING + '}\n'
        '  delete: {enabled: true}\n'),
    'flow, another key before it is enabled': (
        {}, LOCAL + '  maintenance: {uploadpurging: ' + PURGING + ', readonly: {enabled: false}}'),
    'JSON': ({}, '{"storage": {"filesystem": {"rootdirectory": "%s"}, "delete": {"enabled": true},'
                 '"maintenance": {"readonly": {"enabled": false}}}}'),
}


@pytest.mark.parametrize('name', list(READS_ONLY))
def test_a_registry_that_only_reads(tree, folder, running, name):
    environment, text = READS_ONLY[name]
    configure(folder, text % tree.root)
    with running('registry', 'serve', 'config.yml', environment=at(tree, environment)) as pid:
        refused_for(tree, pid, *DELETE)     # who does not say so may not know it
        done(tree, *READ_ONLY)


@pytest.mark.parametrize('name', list(WRITES))
def test_a_registry_that_is_only_said_to_only_read(tree, folder, running, name):
    environment, text = WRITES[name]
    configure(folder, text % tree.root)
    with running('registry', 'serve', 'config.yml', environment=at(tree, environment)) as pid:
        said = refused_for(tree, pid, *READ_ONLY)
        assert re.search('(?i)read-?only', said.replace('--read-only-registry', '')), said


@pytest.mark.parametrize('text, environment', [
    ('proxy:\n  remoteurl: https://example.com\n', {}),
    ('proxy: {remoteurl: https://example.com}\n', {}),
    ('proxy:\n  remoteurl:\n    https://example.com\n', {}),
    ('', {'REGISTRY_PROXY_REMOTEURL': 'https://example.com'}),
    ('', {'REGISTRY_PROXY': '{"remoteurl": "https://example.com"}'}),
])
def test_a_cache_writes_even_when_it_only_reads(tree, folder, running, text, environment):
    configure(folder, ENABLED % tree.root + text)
    with running('registry', 'serve', 'config.yml', environment=environment) as pid:
        said = refused_for(tree, pid, *READ_ONLY)
        assert 'cache' in said and 'top it' in said
        # Nor is it told to use that mode.
        assert '--read-only-registry' not in refused_for(tree, pid, *DELETE)


def test_a_collector_never_only_reads(tree, folder, running):
    configure(folder, LOCAL % tree.root)
    with running('registry', 'garbage-collect', 'config.yml',
                 environment={ONLY_READING: '{"enabled":true}'}) as pid:
        refused_for(tree, pid, *READ_ONLY)


def test_one_that_reads_and_one_that_writes(tree, folder, running):
    configure(folder, LOCAL % tree.root)
    with running('registry', 'serve', 'config.yml', environment={
            ONLY_READING: '{"enabled":true}'}), running('registry', 'config.yml') as pid:
        refused_for(tree, pid, *READ_ONLY)


# --- what any user may start ----------------------------------------------------------------------

def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(path)


def make_loop(path):
    os.symlink(path, path)


def make_link_to(target):
    return lambda path: os.symlink(target, path)


def make_text(text):
    return lambda path: write(path, text)


def make_huge(path):
    write(path, b'\n')
    os.truncate(path, 1 << 40)


STRANGE = {
    'a pipe': make_pipe, 'a socket': make_socket, 'a loop': make_loop, 'a folder': os.mkdir,
    'nothing': lambda path: None, 'zeros without end': make_link_to('/dev/zero'),
    'the terminal': make_link_to('/dev/tty'), 'a full device': make_link_to('/dev/full'),
    'memory': make_link_to('/proc/self/mem'),
    'a huge file': make_huge,
    'NUL bytes': make_text(b'\0' * 5000),
    'a path with a NUL byte': make_text(b'storage:\n  filesystem:\n    rootdirectory: /a\0b\n'),
    'a quoted NUL byte': make_text(b'{"storage": {"filesystem": {"rootdirectory": "/a\\u0000b"}}}'),
    'a surrogate': make_text(b'{"storage": {"filesystem": {"rootdirectory": "\\ud800"}}}'),
    'no text': make_text(bytes(range(256)) * 100),
    'a long path': make_text(b'storage: {filesystem: {rootdirectory: ' + b'/a' * 9000 + b'}}'),
    'a list for a path': make_text(b'{"storage": {"filesystem": {"rootdirectory": [1, {}]}}}'),
    'no path': make_text(b'storage:\n  filesystem:\n    rootdirectory:\n'),
    'braces': make_text(b'{' * 900000), 'brackets': make_text(b'[' * 900000),
    'quotes': make_text(b'"' * 900000), 'spaces': make_text(b' ' * 900000 + b'x'),
    'colons': make_text(b': ' * 450000), 'lines': make_text(b'\n' * 900000),
    'comments': make_text(b' #' * 450000), 'nested keys': make_text(
        b''.join(b' ' * depth + b'readonly:\n' for depth in range(1300))),
    'many roots': make_text(b'rootdirectory: /\n' * 50000),
    'roots without an end': make_text(b'rootdirectory' * 70000),
    'roots without a value': make_text(b'rootdirectory:' + b' ' * 900000 + b'\n'),
    'proxies': make_text(b'remoteurl: ' * 80000), 'switches': make_text(b'readonly: ' * 90000),
}


@pytest.mark.parametrize('name', list(STRANGE))
def test_a_strange_configuration_neither_stops_nor_hangs_a_run(tree, folder, running, name):
    STRANGE[name](os.path.join(folder, 'config.yml'))
    with running('registry', 'serve', 'config.yml'), running('dockerregistry', 'config.yml'):
        done(tree, *DELETE)
    with running('registry', 'serve', 'config.yml', environment={ROOT: tree.root}) as pid:
        refused_for(tree, pid, *DELETE)
        refused_for(tree, pid, *READ_ONLY)


@pytest.mark.skipif(not os.access('/proc/kmsg', os.R_OK), reason='it may not be read')
def test_a_configuration_that_is_waited_for(tree, folder, running):
    """The kernel's log looks like a file, and reading it waits for the next message."""
    with running('registry', 'serve', '/proc/kmsg'):
        done(tree, *DELETE)


def test_a_configuration_that_goes_on_and_on_is_read_as_far_as_it_matters(tree, folder, running):
    path = os.path.join(folder, 'config.yml')
    configure(folder, LOCAL % tree.root)
    os.truncate(path, 1 << 40)
    with running('registry', 'serve', 'config.yml') as pid:
        said = run('-d', tree.root, *DELETE, timeout=SOON)
        assert said.status == 1 and re.search(r'\b%d\b' % pid, said.said)


@pytest.mark.parametrize('variable', [ROOT, 'REGISTRY_STORAGE', 'REGISTRY_STORAGE_FILESYSTEM',
                                      ONLY_READING, 'REGISTRY_PROXY_REMOTEURL'])
def test_a_strange_environment_neither_stops_nor_hangs_a_run(tree, folder, running, variable):
    configure(folder, LOCAL % os.path.join(folder, 'elsewhere'))
    for value in ['{' * 100000, '[' * 100000, '"', ':', '\n' * 100000, '/' * 100000, '\udcff',
                  'rootdirectory: ' * 8000, '&a [*a, *a]', '!!python/object:os.system x']:
        with running('registry', 'serve', 'config.yml', environment={variable: value}):
            done(tree, *DELETE)
        tree = small_registry(tree.root)


@pytest.mark.parametrize('words', [
    [''], ['', ''], ['serve', ''], ['serve', '-'], ['serve', '/'], ['serve', '.'],
    ['serve', '\n'], ['serve', '\udcff.yml'], ['serve', 'x' * 5000], ['serve', '../' * 2000],
    ['serve', '/proc/self/environ'], ['serve', '/dev/stdin'], ['serve'] + ['x.yml'] * 20000,
    ['x' * 100000 + '.yml'],
], ids=range(14))
def test_strange_arguments_neither_stop_nor_hang_a_run(tree, running, words):
    with running('registry', *words):
        done(tree, *DELETE)


# --- who may look ---------------------------------------------------------------------------------

@pytest.mark.skipif(not AS_ROOT, reason='it takes two users')
@pytest.mark.parametrize('words', [['registry', 'serve', 'config.yml'],
                                   ['registry', 'garbage-collect', 'config.yml'],
                                   ['dockerregistry', 'config.yml']], ids=' '.join)
def test_an_ordinary_user_beside_a_registry_of_root(others_tree, folder, running, words):
    """Nobody but root can tell where it works."""
    configure(folder, LOCAL % others_tree.root)
    with running(*words) as pid:
        def as_other(*arguments):
            return run_as_other(others_tree, *arguments[2:], look=True)

        for request in [DELETE, READ_ONLY, ['-g'], ['-p']]:
            assert 'un as root' in refused(others_tree, *request, run=as_other)
        assert as_other('-d', others_tree.root, '-n', *DELETE).status == 0
        assert as_other('-d', others_tree.root, '-l').status == 0
        # Root can.
        refused_for(others_tree, pid, *DELETE)


# --- the real one ---------------------------------------------------------------------------------

def test_a_real_registry(tmp_path, folder):
    with Registry(os.path.join(folder, 'registry')) as registry:
        registry.push_image('app', '1.0', [b'a layer'])
        registry.push_image('app', '2.0', [b'another layer'])
        tree = Tree(registry.root)
        for request in [DELETE, READ_ONLY]:     # it does not only read
            said = refused(tree, *request)
            assert 'docker-registry serve' in said and re.search(r'rocess \d+', said)
        shutil.copytree(tree.root, os.path.join(folder, 'copy'))
        result = call('-d', os.path.join(folder, 'copy'), *DELETE)
        assert result.status == 0, result
        assert registry.tags('app') == ['1.0', '2.0'] and registry.pull('app', '1.0')
        registry.stop()
        assert call('-d', tree.root, *DELETE).status == 0
        registry.start()
        assert registry.tags('app') == ['2.0'] and registry.pull('app', '2.0')


def test_a_real_registry_that_only_reads(folder, monkeypatch):
    with Registry(os.path.join(folder, 'registry')) as registry:
        registry.push_image('app', '1.0', [b'a layer'])
        registry.push_image('app', '2.0', [b'another layer'])
        registry.stop()
        monkeypatch.setenv(ONLY_READING, '{"enabled":true}')
        registry.start()
        assert registry.request('/v2/app/blobs/uploads/', 'POST', b'')[0] == 405
        tree = Tree(registry.root)
        assert '--read-only-registry' in refused(tree, *DELETE)
        done(tree, *READ_ONLY)
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
