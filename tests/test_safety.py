"""Unsafe ground: what an interrupted run left, second runs, mounts, links, pushes in between.

What is killed or fails at each single call is in test_faults.py; whether a registry is at work is
in test_running.py.
"""

import errno
import fcntl
import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import faults
import model
from faults import ASIDE, GONE, KEPT, OWN, left_behind
from registry import Layout, Registry
from test_command import (
    AS_ROOT, SCRIPT, call, current, has_blob, run, run_as_other, small_registry, tags,
)
from test_faults import read_files, served
from test_running import folder, tree
from tree import Tree, digest_of, encode, snapshot, write

__all__ = ['folder', 'tree']    # fixtures
DELETE = ['-i', 'app:1.0']
OTHER = ['-i', 'team/other:1.0']
MOVE, REMOVE, SYNC = ' rename ', ' unlink ', ' syncfs sync fsync '
# The moves of DELETE: a tag, a revision, two layers. Those of another repository come after.
APP_MOVES = {'calls': MOVE, 'part': '/repositories/app/'}
BLOBS = {'calls': REMOVE, 'part': '/blobs/'}    # go when all is final


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
    """A function: kill a run when one folder is set aside, or as soon as it is `final`."""
    def interrupt(tree, *arguments, final=False):
        moment = dict(BLOBS, at=1) if final else dict(APP_MOVES, at=2)
        result = disturbed(tree, *arguments, do='kill', **moment)
        assert result.status == faults.KILLED, result
        assert left_behind(tree.v2) == [GONE if final else ASIDE]
    return interrupt


def own(tree, name, *below):
    """A path in one of the script's own folders."""
    return os.path.join(tree.v2, 'repositories', name, *below)


def files(tree):
    return {path: content for path, (content, _) in read_files(tree.root).items()}


def files_after(folder, *commands):
    """The files of the small registry after these commands, one after the other."""
    tree = small_registry(os.path.join(folder, 'undisturbed'))
    for command in commands:
        assert call('-d', tree.root, *command).status == 0
    left = files(tree)
    shutil.rmtree(tree.root)
    return left


def anew(tree):
    """The small registry again, in place of what became of it."""
    shutil.rmtree(tree.root)
    return small_registry(tree.root)


def refused(tree, *arguments, run=call, statuses=(1,), **options):
    """A run that has to fail and to leave everything as it is; what it said."""
    above = os.path.dirname(tree.root)
    before = snapshot(above)
    result = run('-d', tree.root, *arguments, **options)
    assert result.status in statuses, result
    assert snapshot(above) == before
    assert 'ERROR' in result.said, result
    return result.said


def check_all_served(tree):
    """Assert that every tag is whole."""
    for image, (_, whole) in served(tree.v2).items():
        assert whole, image


# --- what an interrupted run left -----------------------------------------------------------------

def test_what_was_not_final_comes_back(tree, folder, interrupt):
    interrupt(tree, *DELETE)
    for looking in [['-n'] + DELETE, ['-n', '-p'], ['-l'], ['-l', '-i', 'app:*']]:
        said = refused(tree, *looking)
        assert 'interrupted' in said
    result = call('-d', tree.root, *OTHER)
    assert result.status == 0 and 'WARNING' in result.said and 'interrupted' in result.said
    assert files(tree) == files_after(folder, OTHER) and left_behind(tree.v2) == []


def test_what_was_final_is_finished(tree, folder, interrupt):
    interrupt(tree, *DELETE, final=True)
    before = snapshot(tree.root)
    for looking in [['-n'] + OTHER, ['-n', '-g'], ['-l'], ['-l', '-q'], ['-l', '-i', '*:*'],
                    ['-l', '-u'], ['-l', '--json']]:
        result = call('-d', tree.root, *looking)
        assert result.status == 0 and snapshot(tree.root) == before, result
        assert OWN not in result.out, result
    result = call('-d', tree.root, *OTHER)
    assert result.status == 0 and 'WARNING' in result.said and 'interrupted' in result.said
    assert files(tree) == files_after(folder, DELETE, OTHER) and left_behind(tree.v2) == []


@pytest.mark.parametrize('request_', [
    ['-i', 'x'], ['-i', 'app:3.0'], DELETE + ['-i', 'x'], ['-i', 'team:1.0'], ['-i', 'nothing*']],
    ids=' '.join)
@pytest.mark.parametrize('final', [False, True])
def test_a_request_that_is_refused_deals_with_it_all_the_same(
        tree, folder, interrupt, request_, final):
    interrupt(tree, *DELETE, final=final)
    result = call('-d', tree.root, *request_)
    assert result.status == (0 if 'nothing*' in request_ else 1), result
    assert files(tree) == files_after(folder, *[DELETE] * final)
    assert left_behind(tree.v2) == []


def test_a_pattern_never_selects_what_is_aside(tree, folder, interrupt, disturbed):
    """What cannot be finished stays for a later run, and is neither listed nor deleted."""
    for command in [['-i', '*:*', '--allow-remove-all'], ['-i', '*', '--allow-remove-all'],
                    ['-u', '-g', '-p'], ['-i', OWN + '*', '--allow-remove-all']]:
        tree = anew(tree)
        interrupt(tree, *DELETE, final=True)
        result = disturbed(tree, '-v', *command, calls=REMOVE, at='1+', do=errno.EIO)
        assert result.status == 3 and os.strerror(errno.EIO) in result.said, result
        assert not re.search('repository .*%s|tag .*%s' % (OWN, OWN), result.said), result
        assert GONE in left_behind(tree.v2) and ASIDE not in left_behind(tree.v2)
        result = call('-d', tree.root, '-p')
        assert result.status == 0 and left_behind(tree.v2) == [], result
        assert not has_blob(tree, b'app:1.0')


def test_unreadable_links_of_another_repository_keep_the_blobs(tree, interrupt):
    interrupt(tree, *DELETE, final=True)
    layers = tree.repo('team/other', '_layers')
    os.rename(layers, layers + '.away')
    os.symlink('_layers', layers)
    result = call('-d', tree.root, '-p')
    assert result.status in (1, 3) and layers in result.said, result
    assert has_blob(tree, b'app:1.0') and left_behind(tree.v2) == [GONE]
    os.remove(layers)
    os.rename(layers + '.away', layers)
    assert call('-d', tree.root, '-p').status == 0
    assert not has_blob(tree, b'app:1.0') and left_behind(tree.v2) == []


def test_a_disk_that_is_not_mounted_any_more(tree, folder, interrupt):
    interrupt(tree, *DELETE)
    blobs = os.path.join(tree.v2, 'blobs')
    os.rename(blobs, blobs + '.away')
    os.mkdir(blobs)
    result = call('-d', tree.root, *OTHER)
    assert result.status == 1 and 'mounted' in result.said, result
    os.rmdir(blobs)
    os.rename(blobs + '.away', blobs)
    assert call('-d', tree.root, *OTHER).status == 0
    assert files(tree) == files_after(folder, OTHER) and left_behind(tree.v2) == []


def test_a_manifest_that_is_linked_as_a_layer_is_finished(tree, interrupt):
    digest = tree.image('app', [b'old'], legacy=True)
    tree.tag('app', 'old', digest)
    interrupt(tree, '-i', 'app:old', final=True)
    assert call('-d', tree.root, *OTHER).status == 0
    assert tags(tree, 'app') == ['1.0', '2.0']
    assert not has_blob(tree, digest) and not has_blob(tree, b'old')


@pytest.mark.parametrize('in_place, aside', [
    ('tags/1.0', 'tags/1.0/current/link'),      # a file where a folder was
    ('tags/1.0/current/link/file', 'tags/1.0/current/link')])
def test_what_cannot_be_put_back_is_kept(tree, folder, in_place, aside):
    for number in range(2):     # the second time something is kept already
        tag = tree.repo('app', '_manifests', 'tags', '1.0')
        shutil.rmtree(tag) if os.path.isdir(tag) else os.remove(tag)
        write(tree.repo('app', '_manifests', in_place), b'in place')
        lost = own(tree, ASIDE, 'app', '_manifests', aside)
        write(lost, b'lost %d' % number)
        write(own(tree, ASIDE, 'app', '_layers', 'sha256', '0' * 64, 'link'), b'back')
        result = call('-d', tree.root, '-p')
        assert result.status == 3 and ASIDE not in left_behind(tree.v2), result
        assert os.path.join('app', '_manifests', 'tags', '1.0') in result.said, result
        with open(tree.repo('app', '_manifests', in_place), 'rb') as stream:
            assert stream.read() == b'in place'
        kept = snapshot(own(tree, ''))
        kept = {path: what for path, what in kept.items() if path.startswith(KEPT)}
        found = [what[1] for what in kept.values() if what[0] == 'file']
        assert {b'lost %d' % one for one in range(number + 1)} <= set(found)
    # No run reads it or deletes it, and it is no repository.
    result = call('-d', tree.root, '-l')
    assert result.status == 0 and OWN not in result.out, result
    for command in [OTHER, ['-g'], ['-u', '-p']]:
        assert call('-d', tree.root, *command).status in (0, 1, 3)
        after = snapshot(own(tree, ''))
        assert {path: what for path, what in after.items() if path.startswith(KEPT)} == kept


@pytest.mark.parametrize('name', [ASIDE, GONE, KEPT])
@pytest.mark.parametrize('place', ['link to a folder', 'file', 'pipe', 'folder with links',
                                   'empty folder'])
def test_something_else_in_place_of_its_own_folders(tree, folder, name, place):
    """Whatever it is: what a link leads to is left alone, nothing hangs, and there is a way on."""
    path, precious = own(tree, name), os.path.join(folder, 'precious')
    layer = os.path.join('app', '_layers', 'sha256', '0' * 64, 'link')
    write(os.path.join(precious, layer), b'precious')
    write(os.path.join(precious, '_manifests', 'file'), b'precious')
    before = snapshot(precious)
    if place == 'link to a folder':
        os.symlink(precious, path)
    elif place == 'folder with links':
        os.makedirs(os.path.join(path, 'app'))
        for below in ['new', 'team', 'app/_layers', 'app/_manifests', 'blobs']:
            os.symlink(precious, os.path.join(path, below))
    elif place == 'empty folder':
        os.mkdir(path)
    elif place == 'pipe':
        os.mkfifo(path)
    else:
        write(path, b'')
    result = run('-d', tree.root, *OTHER, timeout=20)
    assert snapshot(precious) == before
    if result.status == 1:      # it says what is in its way
        assert path in result.said, result
        os.remove(path)
        result = run('-d', tree.root, *OTHER)
    # What is no folder of the script's is put away, which is told, or is no hindrance.
    assert result.status in (0, 3) and tags(tree, 'team/other') == [], result
    for command in [['-p'], DELETE]:
        result = run('-d', tree.root, *command, timeout=20)
        assert result.status == 0, result
        assert snapshot(precious) == before
    check_all_served(tree)


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
    result = disturbed(tree, *DELETE, **APP_MOVES, at=2, do='hook',
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


@pytest.mark.parametrize('error', [errno.EBADF, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_storage_that_cannot_sync(tree, folder, disturbed, error):
    result = disturbed(tree, *DELETE, calls=' fsync syncfs ', at='1+', do=error)
    assert result.status == 0, result
    assert files(tree) == files_after(folder, DELETE) and left_behind(tree.v2) == []


# --- what is not permitted, and what there is no room for -----------------------------------------

def test_an_ordinary_user_on_a_tree_that_is_not_theirs(tree, interrupt):
    def as_other(*arguments):
        return run_as_other(tree, *arguments[2:])

    tree.image('app', [b'untagged'])
    os.makedirs(tree.repo('empty'))
    if not AS_ROOT:
        subprocess.check_call(['chmod', '-R', 'a-w', tree.root])
    try:
        for command in [DELETE, ['-i', 'app'], ['-u', '-i', '*'], ['-p']]:
            said = refused(tree, *command, run=as_other, statuses=(1, 3))
            assert 'Permission denied' in said and tree.v2 in said
    finally:
        subprocess.check_call(['chmod', '-R', 'u+w', tree.root])
    for final in [False, True]:
        interrupt(tree, '-i', 'app:%d.0' % (1 + final), final=final)
        said = refused(tree, *OTHER, run=as_other, statuses=(1, 3))
        assert 'Permission denied' in said and tree.v2 in said
        assert call('-d', tree.root, '-p').status == 0


@pytest.fixture
def mount(folder):
    """A function: mount something until the end of the test, or skip it."""
    mounted = []

    def mount(path, *arguments):
        done = subprocess.run(['mount'] + list(arguments) + [path], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, universal_newlines=True)
        if done.returncode != 0:
            pytest.skip('NOT TESTED, since nothing may be mounted here: ' + done.stdout.strip())
        mounted.append(path)
    yield mount
    for path in reversed(mounted):
        subprocess.call(['umount', '-l', path], stderr=subprocess.DEVNULL)


@pytest.fixture
def small_disk(mount, folder):
    """A function: mount a file system of its own, with so many files at most; its folder."""
    def small_disk(most=10000):
        path = os.path.join(folder, 'disk')
        os.mkdir(path)
        mount(path, '-t', 'tmpfs', '-o', 'size=8m,nr_inodes=%d' % most, 'tmpfs')
        return path
    return small_disk


@pytest.mark.parametrize('left', [None, ASIDE, GONE])
def test_a_read_only_file_system(small_disk, interrupt, left):
    path = small_disk()
    tree = small_registry(os.path.join(path, 'registry'))
    if left:
        interrupt(tree, *DELETE, final=left == GONE)
    subprocess.check_call(['mount', '-o', 'remount,ro', path])
    said = refused(tree, *OTHER, statuses=(1, 3))
    assert os.strerror(errno.EROFS) in said and tree.v2 in said
    assert call('-d', tree.root, '-n', *OTHER).status == (1 if left == ASIDE else 0)
    subprocess.check_call(['mount', '-o', 'remount,rw', path])
    assert call('-d', tree.root, *OTHER).status == 0
    assert tags(tree, 'app') == (['2.0'] if left == GONE else ['1.0', '2.0'])
    assert left_behind(tree.v2) == []


@pytest.mark.parametrize('spare', [0, 1, 2, 3, 5, 8, 12])
def test_a_full_disk(small_disk, folder, spare):
    """There is room for so many folders, and for no more."""
    path = small_disk(600)
    tree = small_registry(os.path.join(path, 'registry'))
    status = os.statvfs(path)
    for number in range(status.f_ffree - spare):
        os.mkdir(os.path.join(path, str(number)))
    command = DELETE + OTHER
    result = call('-d', tree.root, *command)
    assert result.status == 0, result
    assert 'WARNING' in result.said and 'without a way back' in result.said or spare == 12, result
    assert files(tree) == files_after(folder, command) and left_behind(tree.v2) == []


def a_disk_of_its_own(mount, folder, path):
    """Make what is at `path` a mount point."""
    moved = os.path.join(folder, 'moved')
    os.rename(path, moved)
    os.mkdir(path)
    mount(path, '--bind', moved)


@pytest.mark.parametrize('command', [DELETE, ['-i', 'app'], ['-i', 'app', *OTHER]], ids=' '.join)
def test_a_repository_is_a_mount_point(tree, folder, mount, command):
    """It cannot be moved to another file system, nor be removed. It is emptied."""
    a_disk_of_its_own(mount, folder, tree.repo('app'))
    result = call('-d', tree.root, *command)
    assert result.status == 0 and 'WARNING' in result.said, result
    assert files(tree) == files_after(folder, command) and left_behind(tree.v2) == []
    with pytest.raises(OSError, match='busy'):      # ismount() knows no mount of the same disk
        os.rmdir(tree.repo('app'))
    result = call('-d', tree.root, '-v', '-p')
    assert result.status == 0 and not re.search('Deleted.* app', result.said), result
    result = call('-d', tree.root, *DELETE)
    assert result.status == 1 and 'No repository' in result.said, result
    check_all_served(tree)


@pytest.mark.parametrize('name', ['blobs', 'repositories'])
def test_a_part_of_the_store_is_a_mount_point(tree, folder, mount, interrupt, name):
    """Then there is a way back, as ever."""
    a_disk_of_its_own(mount, folder, os.path.join(tree.v2, name))
    before = files(tree)
    interrupt(tree, *DELETE)
    result = call('-d', tree.root, '-p')
    assert result.status == 0 and files(tree) == before, result
    interrupt(tree, *DELETE, final=True)
    result = call('-d', tree.root, *OTHER)
    assert result.status == 0, result
    assert files(tree) == files_after(folder, DELETE, OTHER) and left_behind(tree.v2) == []


def test_what_is_gone_and_cannot_be_emptied_is_no_hindrance(tree, folder, mount, interrupt):
    """What is mounted there hides links, so their blobs go when it no longer does."""
    interrupt(tree, *DELETE, final=True)
    busy = glob.glob(own(tree, GONE, 'app', '_layers', '*'))[0]
    mount(busy, '-t', 'tmpfs', 'tmpfs')
    for command in [['-i', 'app:2.0'], OTHER]:
        result = call('-d', tree.root, *command)
        assert result.status == 3 and own(tree, GONE) in result.said, result
        assert left_behind(tree.v2) == [GONE]
    after = files_after(folder, DELETE, ['-i', 'app:2.0'], OTHER)
    assert {path for path in files(tree) if GONE not in path and 'blobs' not in path} == {
        path for path in after if 'blobs' not in path}
    subprocess.check_call(['umount', busy])
    assert call('-d', tree.root, '-p').status == 0
    assert left_behind(tree.v2) == []
    assert files(tree) == after


# --- links ---------------------------------------------------------------------------------------

def replace_by_link(path, target):
    os.remove(path)
    os.symlink(target, path)


def test_link_files_that_are_links_to_each_other(tree):
    """As a tool makes them that stores equal files once."""
    tree.tag('app', 'latest', current(tree, 'app', '1.0'))
    one, two = tree.tag_link('app', 'latest'), tree.tag_link('app', '1.0')
    replace_by_link(one, two)
    for command in [DELETE, ['-i', 'app:latest'], ['-i', 'app:2.0']]:
        said = refused(tree, *command)
        assert one in said and two in said and 'copy' in said
    os.remove(one)
    shutil.copy(two, one)
    base = digest_of(b'base')
    one, two = tree.layer_link('team/other', base), tree.layer_link('app', base)
    replace_by_link(one, two)
    for command in [['-i', 'app'], OTHER]:
        said = refused(tree, *command)
        assert one in said and two in said


@pytest.mark.parametrize('kind', ['tags', 'revisions'])
def test_a_repository_that_has_its_tags_or_its_revisions_from_another_one(tree, kind):
    shutil.copytree(tree.repo('app'), tree.repo('copy'))
    path = tree.repo('copy', '_manifests', kind)
    shutil.rmtree(path)
    os.symlink('../../app/_manifests/' + kind, path)
    for command in [['-i', '*:1.0'], ['-i', 'copy:1.0'], ['-i', 'copy'], ['-g'] + DELETE]:
        assert path in refused(tree, *command)


@pytest.mark.parametrize('name, target', [
    ('alias', 'app'), ('team/alias', '../app'), ('alias', 'team')])
def test_a_repository_that_leads_to_another_one(tree, name, target):
    os.symlink(target, tree.repo(name))
    linked = 'team/other' if 'team' in target else 'app'
    alias = name + '/other' if 'team' in target else name
    for image in [linked, alias, linked + ':1.0']:
        for command in [['-i', image], ['-i', linked, '-i', alias]]:
            said = refused(tree, *command)
            assert tree.repo(name) in said and ('copy' in said or 'remove' in said), said
            assert re.search(r'\b%s\b' % linked, said.replace(alias, '')), said
    # Where neither is touched, it is no hindrance.
    other = ['-i', 'app:2.0' if 'team' in target else 'team/other:1.0']
    result = call('-d', tree.root, *other)
    assert result.status == 0 and os.path.islink(tree.repo(name)), result
    check_all_served(tree)
    os.remove(tree.repo(name))
    assert call('-d', tree.root, '-i', linked).status == 0


def test_two_repositories_that_lead_to_the_same_place(tree, folder):
    elsewhere = os.path.join(folder, 'elsewhere')
    os.rename(tree.repo('app'), elsewhere)
    for name in ['app', 'app2']:
        os.symlink(elsewhere, tree.repo(name))
    for command in [DELETE, ['-i', 'app'], ['-i', 'app', '-i', 'app2'], ['-i', 'app2:1.0']]:
        said = refused(tree, *command)
        assert tree.repo('app') in said and tree.repo('app2') in said
    assert call('-d', tree.root, *OTHER).status == 0
    check_all_served(tree)


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


@pytest.mark.parametrize('name', ['dangling', 'team/dangling'])
def test_a_repository_that_leads_nowhere(tree, name):
    """Perhaps a disk that is not mounted: its blobs could be in use."""
    os.symlink('/nowhere/at/all', tree.repo(name))
    for command in [DELETE, ['-g'], ['-i', name]]:
        said = refused(tree, *command)
        assert tree.repo(name) in said and '/nowhere/at/all' in said, said


@pytest.mark.parametrize('final', [False, True])
@pytest.mark.parametrize('link', ['blobs', 'blobs/sha256', 'repositories', 'repositories/app',
                                  'repositories/team'])
def test_a_folder_that_is_somewhere_else(tree, folder, interrupt, link, final):
    path, target = os.path.join(tree.v2, link), os.path.join(folder, 'elsewhere')
    os.rename(path, target)
    os.symlink(target, path)
    interrupt(tree, *DELETE, final=final)
    result = call('-d', tree.root, *OTHER)
    assert result.status == 0, result
    assert os.path.islink(path) or link == 'repositories/team'
    assert tags(tree, 'app') == (['2.0'] if final else ['1.0', '2.0'])
    assert has_blob(tree, b'app:1.0') != final and left_behind(tree.v2) == []
    check_all_served(tree)


def test_what_is_removed_and_leads_away_is_not_entered(tree, folder):
    precious = os.path.join(folder, 'precious')
    write(os.path.join(precious, 'file'), b'precious')
    before = snapshot(precious)
    os.symlink(precious, tree.repo('app', '_manifests', 'tags', '1.0', 'notes'))
    os.symlink(precious, tree.repo('team', 'other', '_uploads', 'upload'))
    result = call('-d', tree.root, *DELETE, '-i', 'team/other')
    assert result.status == 0, result
    assert tags(tree, 'app') == ['2.0'] and not os.path.exists(tree.repo('team', 'other'))
    assert snapshot(precious) == before


# --- what is pushed while a run is at work -------------------------------------------------------

def newcomer(folder, tree, repo, layers):
    """(digest of an image, the shell command that pushes it: it sends what is not there)."""
    other = Tree(os.path.join(folder, 'newcomer'))
    digest = other.image(repo, layers, config=encode({'new': 'comer'}))
    return digest, 'cp -rn %s/. %s' % (other.v2, tree.v2)


@pytest.mark.parametrize('image, move', [
    ('app:1.0', 1), ('app:1.0', 2), ('app:1.0', 3), ('app:1.0', 4),
    ('app', 1), ('app', 2), ('app:*', 1), ('app:*', 2)])
def test_an_image_that_is_pushed_meanwhile_puts_its_repository_back(
        tree, folder, disturbed, image, move):
    digest, push = newcomer(folder, tree, 'app', [b'app:1.0', b'base', b'new'])
    before = served(tree.v2)
    result = disturbed(tree, '-i', image, *OTHER, '--allow-remove-all', at=move, do='hook',
                       hook=push, **APP_MOVES)
    assert result.status == 3 and re.search(r'\bapp\b', result.said), result
    assert tags(tree, 'app') == ['1.0', '2.0'] and tags(tree, 'team/other') == []
    assert model.pull(tree.v2, 'app', digest)[1] and left_behind(tree.v2) == []
    assert all(before[name] == got for name, got in served(tree.v2).items())
    assert call('-d', tree.root, *DELETE).status == 0
    assert tags(tree, 'app') == ['2.0'] and model.pull(tree.v2, 'app', digest)[1]


def test_when_all_is_put_back_nothing_was_deleted(tree, folder, disturbed):
    digest, push = newcomer(folder, tree, 'app', [b'new'])
    result = disturbed(tree, *DELETE, at=2, do='hook', hook=push, **APP_MOVES)
    assert result.status in (1, 3) and re.search(r'\bapp\b', result.said), result
    assert 'Deleted' not in result.said, result
    assert tags(tree, 'app') == ['1.0', '2.0'] and left_behind(tree.v2) == []
    assert model.pull(tree.v2, 'app', digest)[1]
    check_all_served(tree)


@pytest.mark.parametrize('move', [2, 3, 4])
def test_an_image_that_goes_is_pushed_meanwhile(tree, folder, disturbed, move):
    """What it is made of is sent where it is missing; its own links are written anew."""
    shutil.copytree(tree.v2, os.path.join(folder, 'client'))
    digest = current(tree, 'app', '1.0')
    push = 'cp -rn {0}/client/. {1}; for tag in 1.0 fresh; do mkdir -p {2}/$tag/current; ' \
        'printf {3} >{2}/$tag/current/link; done'.format(
            folder, tree.v2, tree.repo('app', '_manifests', 'tags'), digest)
    result = disturbed(tree, *DELETE, at=move, do='hook', hook=push, **APP_MOVES)
    assert result.status in (1, 3), result
    assert tags(tree, 'app') == ['1.0', '2.0', 'fresh'] and left_behind(tree.v2) == []
    check_all_served(tree)


@pytest.mark.parametrize('move', [1, 2, 3])
def test_a_tag_is_put_on_an_image_that_goes_meanwhile(tree, disturbed, move):
    """All that it needs seems to be there, so nothing else is sent."""
    digest = current(tree, 'app', '1.0')
    push = 'mkdir -p {0} {1}/current; printf {2} | tee {0}/link >{1}/current/link'.format(
        os.path.dirname(tree.revision_link('app', digest)),
        tree.repo('app', '_manifests', 'tags', 'fresh'), digest)
    result = disturbed(tree, *DELETE, at=move, do='hook', hook=push, **APP_MOVES)
    assert result.status in (1, 3), result
    assert tags(tree, 'app') == ['1.0', '2.0', 'fresh'] and left_behind(tree.v2) == []
    check_all_served(tree)


def test_a_folder_that_has_lost_its_link_and_gets_a_new_one_stays(tree, folder, disturbed):
    digest, push = newcomer(folder, tree, 'app', [b'app:1.0', b'base', b'new'])
    tree.blob(b'new')
    for path in [tree.revision_link('app', digest), tree.layer_link('app', digest_of(b'new'))]:
        os.makedirs(os.path.dirname(path))
    result = disturbed(tree, '-g', *DELETE, at=1, do='hook', hook=push, **APP_MOVES)
    assert result.status in (0, 1, 3), result
    assert model.pull(tree.v2, 'app', digest)[1]
    assert left_behind(tree.v2) == []
    check_all_served(tree)


def test_a_layer_that_is_linked_elsewhere_meanwhile_stays(tree, folder, disturbed):
    digest, push = newcomer(folder, tree, 'elsewhere', [b'app:1.0'])
    for moment in [dict(APP_MOVES, at=move) for move in range(1, 5)] + [{'calls': SYNC, 'at': 1}]:
        tree = anew(tree)
        result = disturbed(tree, *DELETE, do='hook', hook=push, **moment)
        assert result.status == 0, result
        assert tags(tree, 'app') == ['2.0']
        assert model.pull(tree.v2, 'elsewhere', digest)[1]


# --- pushed again, by a real client to a real registry -------------------------------------------

@pytest.mark.parametrize('calls, at', [
    (APP_MOVES, 2), (APP_MOVES, 5), (APP_MOVES, 9), (BLOBS, 1), (BLOBS, 4)])
def test_pushed_again_by_skopeo_after_a_kill(tmp_path, folder, disturbed, calls, at):
    layout = Layout(tmp_path / 'layout')
    image = layout.tag('image', layout.index(layout.image('base', 'one'),
                                             layout.image('base', 'two', 'three')))
    signature = layout.tag('signature', layout.image('signature'))
    other = layout.tag('other', layout.image('base', 'other'))
    with Registry(os.path.join(folder, 'registry')) as registry:
        registry.skopeo_copy(image, 'app:1.0', '--all')
        digest = current(Tree(registry.root), 'app', '1.0')
        signed = 'app:%s.sig' % digest.replace(':', '-')
        registry.skopeo_copy(signature, signed)
        registry.skopeo_copy(other, 'app:2.0')
        names = ['1.0', '2.0', signed[4:]]
        whole = {name: registry.pull('app', name) for name in names}
        tree = Tree(registry.root)
        registry.stop()
        assert disturbed(tree, *DELETE, at=at, do='kill', **calls).status == faults.KILLED
        registry.start()
        # What is aside is no repository, and what is left is whole.
        assert registry.catalog() == ['app']
        for name in registry.tags('app'):
            assert registry.pull('app', name) == whole[name]
        registry.skopeo_copy(image, 'app:1.0', '--all')
        registry.skopeo_copy(signature, signed)
        registry.skopeo_copy(other, 'spare:1.0')
        registry.stop()
        result = run('-d', tree.root, '-i', 'spare')
        assert result.status == 0 and left_behind(tree.v2) == [], result
        registry.start()
        assert registry.catalog() == ['app']
        assert {name: registry.pull('app', name) for name in names} == whole
        registry.skopeo_pull('app:1.0', os.path.join(folder, 'pulled'))


# --- limits of the machine ------------------------------------------------------------------------

@pytest.mark.parametrize('threads', [0, 1])
def test_no_thread_can_be_started(tree, folder, disturbed, threads):
    """As under a limit on processes."""
    for command in [['-l'], ['--check'], ['-n', '-g'], ['-g', '-j', '8'] + DELETE, OTHER]:
        result = disturbed(tree, *command, threads=threads)
        assert result.status == 0, result
    assert files(tree) == files_after(folder, DELETE, OTHER)


@pytest.mark.parametrize('command', [DELETE, ['-g'], ['-p'], ['-l']], ids=' '.join)
def test_a_path_that_begins_with_two_slashes(tree, folder, command):
    """Where links are met, which makes a path be looked at part by part."""
    os.rename(tree.repo('app'), os.path.join(folder, 'elsewhere'))
    os.symlink(os.path.join(folder, 'elsewhere'), tree.repo('app'))
    assert run('-d', '/' + tree.root, *command, timeout=20).status == 0


@pytest.mark.parametrize('arguments, statuses', [
    (['-d', '.', '-i', 'app'], (1, 2)), (['-d', '.', '-l'], (1, 2)), (['-i', 'app'], (1, 2)),
    (['-d', 'registry', '-n', '-g'], (1, 2)), (['-d', 'HERE'] + DELETE, (0,))])
def test_a_working_folder_that_is_removed(tree, folder, arguments, statuses):
    away = os.path.join(folder, 'away')
    os.mkdir(away)
    result = run(*[word.replace('HERE', tree.root) for word in arguments], command=[
        'sh', '-c', 'cd "$1" && rmdir "$1" && shift && exec "$@"', 'sh', away, sys.executable,
        SCRIPT])
    assert result.status in statuses and result.said, result


@pytest.mark.parametrize('then', [2**62, 2**40, -2**40])
def test_times_that_no_calendar_has(tree, then):
    for repo, tag in [('app', '1.0'), ('team/other', '1.0')]:
        link = tree.tag_link(repo, tag)
        try:
            os.utime(link, (then, then))
            os.utime(tree.revision_link(repo, current(tree, repo, tag)), (then, then))
        except (OSError, OverflowError):
            pytest.skip('NOT TESTED, since the file system here has no such times')
    for command in [['-l'], ['-l', '-i', '*:*'], ['-l', '--json', '-i', '*:*'], ['-l', '-u'],
                    ['-n', '-i', 'app:*', '--keep-last', '1'],
                    ['-n', '-i', 'app:*', '--older-than', '1d'],
                    ['-n', '-u', '-g', '--older-than', '1d'], DELETE]:
        result = run('-d', tree.root, *command)
        assert result.status == 0, result


def test_a_blob_that_has_another_name_frees_nothing(tree, folder):
    digest = current(tree, 'app', '1.0')
    blobs = [digest, digest_of(b'app:1.0'), digest_of(encode({'for': 'app:1.0'}))]
    for number, blob in enumerate(blobs):
        os.link(tree.blob_path(blob), os.path.join(folder, 'copy%d' % number))
    for dry in [['-n'], []]:
        done = json.loads(call('-d', tree.root, '--json', *dry, *DELETE).out)
        assert done['freed'] == 0 and {blob['digest'] for blob in done['blobs']} == set(blobs)
    for number in range(3):
        assert os.path.exists(os.path.join(folder, 'copy%d' % number))
