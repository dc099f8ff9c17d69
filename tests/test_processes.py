"""Reading shared by processes: they tell what one process would, and none outlives its run.

A wrapper makes the script use processes on small trees, and lets some of them fail.
"""

import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings, strategies as st

from test_garbage import a_copy, contents, litter, steps
from test_trees import HERE, NAMES, a_tree, without_times
from tree import Tree, snapshot

WRAPPER = """
import os, signal, sys, time
sys.dont_write_bytecode = True
sys.path.insert(0, %r)
import delete_docker_registry_image as script

mode, fork = sys.argv.pop(1), os.fork
script.WORTH_A_PROCESS = 2
os.cpu_count = lambda: 3

def counted_fork():
    if mode == 'no room':
        print('no fork', file=sys.stderr)
        raise BlockingIOError(11, 'Resource temporarily unavailable')
    process = fork()
    if process:
        print('forked', process, file=sys.stderr, flush=True)
    elif mode == 'die':
        os.kill(os.getpid(), signal.SIGKILL)
    elif mode == 'sleep':
        script.judge = lambda *_: time.sleep(60)
    elif mode == 'break':
        script.judge = None
    elif mode == 'tear':
        os.write(max(map(int, os.listdir('/proc/self/fd'))) - 1, b'\\x80\\x04half of an answer')
        os._exit(0)
    return process

os.fork = counted_fork
sys.exit(script.main(sys.argv[1:]))
""" % os.path.dirname(HERE)


def start(mode, v2, *args):
    return subprocess.Popen([sys.executable, '-c', WRAPPER, mode, '-v', '-d', v2] + list(args),
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, universal_newlines=True)


def run(mode, v2, *args):
    return result(start(mode, v2, *args))


def result(process):
    """(exit status, the messages, how many processes were asked for)."""
    said = process.communicate(timeout=60)[1].splitlines(True)
    forks = [line for line in said if line.startswith(('forked', 'no fork'))]
    return (process.returncode, without_times(''.join(line for line in said if line not in forks)),
            len(forks))


@settings(max_examples=12)
@given(st.data())
def test_processes_change_nothing(data):
    with a_tree(data, damage=1) as builder:
        litter(builder)
        v2, names = builder.tree.v2, [name for name in NAMES if builder.pushed[name]]
        args = data.draw(st.sampled_from([
            ['-g'], ['-g', '-u', '-p', '-i', '*'], ['-i', '*:1*'],
            ['-g', '-x', (names or NAMES)[0]]]))
        before = snapshot(v2)
        status, messages, forks = run('', v2, '-n', *args)
        alone = run('', v2, '-n', '-j', '1', *args)
        assert (status, messages, 0) == alone
        assert snapshot(v2) == before
        if '-g' in args and status == 0 and len(names) > 1:
            assert forks
        with a_copy(v2) as other:
            status, messages, _ = run('', v2, *args)
            other_status, other_messages, _ = run('', other, '-j', '1', *args)
            assert (status, steps(messages, v2)) == (other_status, steps(other_messages, other))
            assert contents(v2) == contents(other)


@pytest.fixture
def tree(tmp_path):
    """Ten repositories, with something to delete in each."""
    tree = Tree(tmp_path)
    for number in range(10):
        name = 'team%d/app' % number
        for tag in ('1.0', '1.0', '2.0'):
            tree.tag(name, tag, tree.image(name, [b'base', os.urandom(8)]))
        tree.layer(name, b'unused in %d' % number)
    return tree


@pytest.mark.parametrize('mode', ['die', 'break', 'tear', 'no room'])
def test_what_a_process_does_not_tell_is_worked_out_again(tree, mode):
    status, messages, forks = run(mode, tree.v2, '-n', '-g', '-u', '-i', '*')
    assert forks and (status, messages, 0) == run(
        '', tree.v2, '-n', '-j', '1', '-g', '-u', '-i', '*')
    assert len([line for line in messages if 'layer link' in line]) >= 10


def test_a_parent_that_ignores_the_end_of_processes(tree):
    """Then there is none to wait for."""
    usual = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process = start('', tree.v2, '-n', '-g')
    finally:
        signal.signal(signal.SIGCHLD, usual)
    status, messages, forks = result(process)
    assert forks and (status, messages, 0) == run('', tree.v2, '-n', '-g', '-j', '1')
    assert status == 0


def test_an_error_in_another_process_is_told_once(tree):
    os.remove(tree.tag_link('team9/app', '2.0'))
    os.symlink('nowhere', tree.tag_link('team9/app', '2.0'))
    status, messages, forks = run('', tree.v2, '-g')
    assert forks and status == 1
    assert (status, messages, 0) == run('', tree.v2, '-g', '-j', '1')
    assert len([line for line in messages if 'team9/app:2.0' in line]) == 1


def children(tree):
    """A run with -g whose other processes sleep, and those."""
    process = start('sleep', tree.v2, '-g')
    found = [int(process.stderr.readline().split()[1]) for _ in range(2)]
    time.sleep(0.5)  # until all are at work
    return process, found


def alive(process):
    try:
        with open('/proc/%d/stat' % process) as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_of_them(tree, number):
    before = snapshot(tree.v2)
    process, others = children(tree)
    process.send_signal(number)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 128 + number
    assert 'Interrupted' in said and 'Traceback' not in said
    assert not any(map(alive, others))
    assert snapshot(tree.v2) == before


def test_a_killed_run_leaves_no_lock(tree):
    process, others = children(tree)
    try:
        process.kill()
        process.wait()
        assert any(map(alive, others))
        assert run('', tree.v2, '-g')[0] == 0
    finally:
        for other in filter(alive, others):
            os.kill(other, signal.SIGKILL)
        process.communicate()
