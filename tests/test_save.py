"""--save: what goes is first written to an archive, and plain tar brings all of it back.

In the end of a saved deletion and `tar -xf FILE -C V2` every file is as it was. Whatever keeps the
archive from being complete, nothing is deleted.
"""

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tarfile

import pytest
from hypothesis import event, given, note, settings, strategies as st

import delete_docker_registry_image as script
import model
from faults import PROBE, Faults
from test_choice import on_terminal
from test_command import (
    AS_ROOT, NOBODY, call, current, others_tree, run, run_as_other, small_registry, tags,
)
from test_garbage import litter
from test_trees import NAMES, a_tree, an_image, describe
from tree import DAY, digest_of, snapshot, write

SCRIPT = os.path.abspath(script.__file__)
MIB = 1 << 20
__all__ = ['others_tree']       # a fixture


@pytest.fixture
def tree(tmp_path):
    return small_registry(tmp_path / 'registry')


@pytest.fixture
def archive(tmp_path):
    os.mkdir(tmp_path / 'archives')
    return str(tmp_path / 'archives' / 'saved.tar')


def restore(v2, archive):
    subprocess.check_output(['tar', '-xf', archive, '-C', v2], stderr=subprocess.STDOUT)


# --- there and back -------------------------------------------------------------------------------

def attributes(v2):
    """path -> (kind and mode, owner, content, time in ns) of what is no empty folder."""
    found = {}
    for base, folders, files in os.walk(v2, topdown=False):
        for path in [os.path.join(base, name) for name in folders + files]:
            name, status = os.path.relpath(path, v2), os.lstat(path)
            content = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                with open(path, 'rb') as file:
                    content = file.read()
            elif not any(os.path.dirname(other) == name for other in found):
                continue
            found[name] = (status.st_mode, status.st_uid, status.st_gid, content,
                           status.st_mtime_ns)
    return found


def without_times_of(seen, folders):
    """A folder that stays gets a new time with each deletion in it."""
    return {name: what[:4] if name in folders and stat.S_ISDIR(what[0]) else what
            for name, what in seen.items()}


def scatter_attributes(v2, seed):
    """Give what is in the store modes, owners and times of all kinds, to the nanosecond."""
    pick = random.Random(seed).choice
    for base, folders, files in os.walk(v2, topdown=False):
        for name in files + ['']:
            path = os.path.join(base, name)
            os.chmod(path, pick([0o600, 0o640, 0o666, 0o444] if name else
                                [0o700, 0o750, 0o775, 0o777]))
            if AS_ROOT:
                os.chown(path, pick([0, 1000, NOBODY]), pick([0, 1000]))
            then = os.stat(path).st_mtime_ns - pick([1, 123456789, 987654321])
            os.utime(path, ns=(then, then))


def a_request(builder):
    """What may be asked of a deletion, as arguments."""
    arguments = ['-g'] * builder.pick(0, 1)
    if builder.pick(True, False, False):
        arguments += ['-u']
    else:
        arguments += ['-i', builder.pick(an_image(builder), *NAMES)]
        arguments += ['-i', '*:1'] * builder.pick(0, 1)
    return arguments + ['--allow-remove-all'] + ['-p'] * builder.pick(0, 1)


@given(st.data())
@settings(max_examples=40)
def test_tar_brings_back_what_was_saved(data):
    with a_tree(data, steps=10) as builder:
        litter(builder, 3)
        v2, archive = builder.tree.v2, os.path.join(builder.tree.root, 'saved.tar')
        scatter_attributes(v2, data.draw(st.integers(0, 9)))
        before, arguments = attributes(v2), a_request(builder)
        result = call('-d', v2, '--save', archive, *arguments)
        after, stayed = attributes(v2), {os.path.normpath(path) for path in model.every_path(v2)}
        try:
            if result.status:
                assert result.status in (1, 2) and after == before
                assert not os.path.lexists(archive), 'half an archive'
                return
            event('something went' if set(before) != set(after) else 'nothing went')
            if os.path.exists(archive):
                restore(v2, archive)
            assert without_times_of(attributes(v2), stayed) == without_times_of(before, stayed)
            assert set(before) == set(after) or os.path.exists(archive)
        except AssertionError:
            note('\n'.join(describe(snapshot(v2)) + [' '.join(arguments)]))
            raise


def names_in(archive):
    with tarfile.open(archive) as file:
        return [member.name for member in file]


def test_only_what_goes_is_in_the_archive(tree, archive):
    """A layer that another image has stays, so it is not saved."""
    before = set(attributes(tree.v2))
    assert call('-d', tree.root, '-i', 'app:1.0', '--save', archive).status == 0
    after = attributes(tree.v2)
    with tarfile.open(archive) as file:
        files = {member.name for member in file if not member.isdir()}
        assert {member.name for member in file} <= before
    assert files == {name for name in before - set(after)
                     if name.endswith(('/link', '/data'))}
    assert any(digest_of(b'app:1.0')[7:] in name for name in files)
    assert not any(digest_of(b'base')[7:] in name and name.startswith('blobs') for name in files)


@pytest.mark.parametrize('name', [b'sch\xf6n', 'schön'.encode(), b'n' * 250, b'a\nb', b' x ',
                                  b'--checkpoint-action=exec=false'])
def test_names_of_all_kinds_come_back(tree, archive, name):
    """Below a repository that goes whole, files of other tools go too."""
    folder = os.fsencode(tree.repo('app', '_manifests'))
    os.makedirs(os.path.join(folder, name, name))
    with open(os.path.join(folder, name, name, name), 'wb') as file:
        file.write(b'foreign')
    os.symlink(b'/nowhere/' + name, os.path.join(folder, b'symlink'))
    before = attributes(tree.v2)
    assert call('-d', tree.root, '-i', 'app', '--save', archive).status == 0
    assert not os.path.exists(folder)
    restore(tree.v2, archive)
    missing = {path for path in before if before[path] != attributes(tree.v2).get(path)}
    assert all(stat.S_ISDIR(before[path][0]) for path in missing), missing


def test_a_deep_repository_and_an_upload_come_back(tree, archive):
    deep = 'a/' * 100 + 'z'
    tree.tag(deep, 't' * 128, tree.image(deep, [b'deep'] * 2))
    tree.upload(deep, 'begun', b'half a layer')
    before = attributes(tree.v2)
    assert call('-d', tree.root, '-i', deep, '--save', archive).status == 0
    assert not os.path.exists(tree.repo(deep, '_manifests'))
    restore(tree.v2, archive)
    after = attributes(tree.v2)
    assert without_times_of(after, before) == without_times_of(before, before)


def test_a_hard_linked_blob_comes_back(tree, archive):
    path = tree.blob_path(digest_of(b'app:1.0'))
    os.link(path, os.path.join(tree.root, 'another name'))
    assert call('-d', tree.root, '-i', 'app:1.0', '--save', archive).status == 0
    restore(tree.v2, archive)
    with open(path, 'rb') as file:
        assert file.read() == b'app:1.0'


# --- when it cannot be saved, nothing is deleted --------------------------------------------------

def refused(tree, archive, *arguments, status=1, run=call, **options):
    """A run that has to fail and to leave everything as it is; what it said."""
    before, beside = snapshot(tree.root), os.listdir(os.path.dirname(archive) or '.')
    result = run('-d', tree.root, '--save', archive, *arguments or ['-i', 'app'], **options)
    assert result.status == status, result.said
    assert snapshot(tree.root) == before
    assert os.listdir(os.path.dirname(archive) or '.') == beside, 'half an archive'
    return result.said


def test_an_existing_file_is_never_overwritten(tree, archive):
    write(archive, b'of last week')
    assert archive in refused(tree, archive)
    with open(archive, 'rb') as file:
        assert file.read() == b'of last week'


@pytest.mark.parametrize('target', ['file', 'nothing', '/dev/null'])
def test_a_symbolic_link_is_not_followed(tree, archive, target):
    write(os.path.join(os.path.dirname(archive), 'file'), b'kept')
    os.symlink(target, archive)
    refused(tree, archive)
    with open(os.path.join(os.path.dirname(archive), 'file'), 'rb') as file:
        assert file.read() == b'kept'


@pytest.mark.parametrize('make', [os.mkdir, os.mkfifo])
def test_what_is_no_file(tree, archive, make):
    make(archive)
    refused(tree, archive)


@pytest.mark.parametrize('below', [
    '{v2}/saved.tar', '{v2}/repositories/saved.tar', '{v2}/blobs/saved.tar',
    '{v2}/repositories/app/_manifests/saved.tar', '{v2}/../v2/saved.tar',
    '{v2}/repositories/../../../../../outside/link/saved.tar'])
def test_not_inside_the_registry(tree, below):
    outside = os.path.join(os.path.dirname(tree.root), 'outside')
    os.mkdir(outside)
    os.symlink(tree.v2, os.path.join(outside, 'link'))
    path = below.format(v2=tree.v2)
    path = path if 'outside' not in path else os.path.join(outside, 'link', 'saved.tar')
    assert 'nothing' in refused(tree, path).lower()


def test_blobs_on_a_disk_of_their_own_are_inside_too(tree, tmp_path):
    os.rename(tree.v2 + '/blobs', str(tmp_path / 'disk'))
    os.symlink(str(tmp_path / 'disk'), tree.v2 + '/blobs')
    refused(tree, str(tmp_path / 'disk' / 'saved.tar'))


@pytest.mark.parametrize('name', ['missing/saved.tar', 'saved.tar/', '', 'a\0b', 'n' * 300])
def test_a_place_where_no_file_can_be(tree, archive, name):
    before = snapshot(tree.root)
    result = call('-d', tree.root, '-i', 'app', '--save', name and os.path.join(
        os.path.dirname(archive), name))
    assert result.status in (1, 2), result.said
    assert snapshot(tree.root) == before and os.listdir(os.path.dirname(archive)) == []


def test_a_folder_where_nothing_may_be_written(others_tree):
    folder = os.path.join(os.path.dirname(others_tree.root), 'locked')
    os.mkdir(folder, 0o555)

    def as_other(*arguments, **options):
        return run_as_other(others_tree, *arguments[2:], **options)
    assert 'Permission denied' in refused(others_tree, folder + '/saved.tar', run=as_other)


@pytest.mark.skipif(not AS_ROOT, reason='takes a user whom the files do not obey')
def test_a_blob_that_may_not_be_read(others_tree):
    """The archive would not be complete."""
    folder = os.path.join(os.path.dirname(others_tree.root), 'archives')
    os.mkdir(folder)
    os.chown(folder, NOBODY, NOBODY)
    os.chmod(others_tree.blob_path(digest_of(b'app:2.0')), 0)

    def as_other(*arguments, **options):
        return run_as_other(others_tree, *arguments[2:], **options)
    os.chmod(others_tree.root, 0o777)
    before = attributes_as_listed(others_tree.v2)
    result = as_other('', '', '-i', 'app', '--save', folder + '/saved.tar')
    assert result.status == 1 and 'Permission denied' in result.said, result.said
    assert attributes_as_listed(others_tree.v2) == before and os.listdir(folder) == []


def attributes_as_listed(v2):
    return {os.path.join(base, name): os.lstat(os.path.join(base, name)).st_mtime_ns
            for base, folders, files in os.walk(v2) for name in folders + files}


def with_big_layers(tree):
    """What takes several writes to save."""
    for number in range(3):
        tree.tag('big', str(number), tree.image('big', [b'%d' % number * MIB]))
    return tree


def test_no_room_for_a_file_of_that_size(tree, archive):
    """A limit on the size of files stands for a quota."""
    with_big_layers(tree)
    limit = (2 * MIB, 2 * MIB)
    said = refused(tree, archive, '-i', 'big', run=run,
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert os.strerror(errno.EFBIG) in said


def test_no_room_on_the_disk(tree, tmp_path):
    disk = str(tmp_path / 'disk')
    os.mkdir(disk)
    if subprocess.call(['mount', '-t', 'tmpfs', '-o', 'size=2m', 'none', disk],
                       stderr=subprocess.DEVNULL):
        pytest.skip('no file system of our own can be mounted here')
    try:
        said = refused(with_big_layers(tree), disk + '/saved.tar', '-i', 'big')
        assert os.strerror(errno.ENOSPC) in said
        assert call('-d', tree.root, '-i', 'big:0', '--save', disk + '/saved.tar').status == 0
        assert tags(tree, 'big') == ['1', '2']
    finally:
        subprocess.check_call(['umount', disk])


# --- before anything is moved ---------------------------------------------------------------------

@pytest.fixture(scope='module')
def faults():
    with Faults(SCRIPT) as started:
        yield started


def saved_with(faults, tree, archive, root, **what):
    return faults.run(root, '-d', tree.root, '-i', 'app', '--save', archive, **what)


def test_the_archive_is_complete_and_synced_before_anything_is_moved(tree, archive, faults):
    """Also the folder that holds its name."""
    done = saved_with(faults, tree, archive, os.path.dirname(tree.root))
    assert done.status == 0, done
    folder = os.path.dirname(archive)
    saving = [place for place, (_, path) in enumerate(done.calls)
              if path == folder or path.startswith(folder + '/')]
    removing = [place for place, (what, path) in enumerate(done.calls)
                if path.startswith(tree.v2 + '/') and what in ('rename', 'unlink', 'rmdir')
                and PROBE not in path]
    assert saving and removing and max(saving) < min(removing)
    written = [place for place in saving if done.calls[place][0] in ('write', 'truncate')]
    synced = [place for place in saving if done.calls[place][0] == 'fsync']
    assert max(written) < max(place for place in synced if done.calls[place][1] != folder)
    assert folder in [done.calls[place][1] for place in synced]


def some_calls(faults, tree, archive):
    """Numbers of calls that change something in the archive's folder: first, last, and between."""
    copy = small_copy(tree)
    done = saved_with(faults, copy, archive, os.path.dirname(archive))
    assert done.status == 0, done
    os.remove(archive)
    shutil.rmtree(copy.root)
    calls = list(range(1, len(done.calls) + 1))
    return calls[:2] + calls[2:-4:6] + calls[-4:]


def small_copy(tree):
    return small_registry(tree.root + '.copy')


@pytest.mark.parametrize('error', [errno.EIO, errno.ENOSPC])
def test_a_failure_at_any_call(tree, archive, faults, error):
    before, calls = snapshot(tree.root), some_calls(faults, tree, archive)
    assert len(calls) >= 3
    for at in calls:
        done = saved_with(faults, tree, archive, os.path.dirname(archive), at=at, do=error)
        assert done.status == 1 and 'Traceback' not in done.said, done
        assert os.strerror(error) in done.said and 'othing was deleted' in done.said, done
        assert snapshot(tree.root) == before
        assert os.listdir(os.path.dirname(archive)) == [], 'half an archive'


@pytest.mark.parametrize('signal_name, status', [('int', 130), ('term', 143)])
def test_an_interruption_while_it_copies(tree, archive, faults, signal_name, status):
    before = attributes(tree.v2)
    for at in some_calls(faults, tree, archive):
        done = saved_with(faults, tree, archive, os.path.dirname(archive), at=at, do=signal_name)
        assert done.status == status and 'Traceback' not in done.said, done
        # What was moved already in the end has been put back.
        assert without_times_of(attributes(tree.v2), before) == without_times_of(before, before)
        assert os.listdir(os.path.dirname(archive)) == [], 'half an archive'


def test_a_kill_while_it_copies(tree, archive, faults):
    before = snapshot(tree.root)
    for at in some_calls(faults, tree, archive):
        done = saved_with(faults, tree, archive, os.path.dirname(archive), at=at, do='kill')
        assert done.status == -signal.SIGKILL
        assert snapshot(tree.root) == before
        for name in os.listdir(os.path.dirname(archive)):
            os.remove(os.path.join(os.path.dirname(archive), name))


# --- standard output ------------------------------------------------------------------------------

def test_an_archive_on_standard_output(tree, archive):
    before = attributes(tree.v2)
    with open(archive, 'wb') as file:
        assert run('-d', tree.root, '-i', 'app:1.0', '--save', '-', stdout=file).status == 0
    assert tags(tree, 'app') == ['2.0']
    restore(tree.v2, archive)
    assert without_times_of(attributes(tree.v2), before) == without_times_of(before, before)


@pytest.mark.parametrize('reader', ['true', 'head -c 1000'])
def test_a_reader_that_does_not_read_to_the_end(tree, reader):
    """Then nothing is saved, and nothing is deleted."""
    with_big_layers(tree)
    before = snapshot(tree.root)
    shell = '"$0" "$1" -d "$2" -i big --save - | %s >/dev/null; exit ${PIPESTATUS[0]}' % reader
    result = run(command=['bash', '-c', shell, sys.executable, SCRIPT, tree.root])
    assert result.status == 1, result.said
    assert snapshot(tree.root) == before


def test_a_full_standard_output(tree):
    before = snapshot(tree.root)
    with open('/dev/full', 'wb') as full:
        result = run('-d', tree.root, '-i', 'app', '--save', '-', stdout=full)
    assert result.status == 1 and os.strerror(errno.ENOSPC) in result.said
    assert snapshot(tree.root) == before


def test_not_both_on_standard_output(tree):
    before = snapshot(tree.root)
    for more in ['--json'], ['-l']:
        assert call('-d', tree.root, '-i', 'app', '--save', '-', *more).status == 2
    assert snapshot(tree.root) == before


def test_not_to_a_terminal(tree):
    """An archive on the screen is of no use to anybody, and the images would be gone."""
    before = snapshot(tree.root)
    status, _, said = on_terminal(80, '-d', tree.root, '-i', 'app', '--save', '-')
    assert status in (1, 2) and 'terminal' in said
    assert snapshot(tree.root) == before


# --- what is said, and what else is asked ---------------------------------------------------------

def test_a_dry_run_says_how_large_it_would_be(tree, archive):
    with_big_layers(tree)
    before = snapshot(tree.root)
    result = call('-d', tree.root, '-n', '-i', 'big', '--save', archive)
    assert result.status == 0 and not os.path.lexists(archive)
    assert snapshot(tree.root) == before
    line = next(line for line in result.said.splitlines() if archive in line)
    assert '3.0 MiB' in line or '3 MiB' in line or '3.1 MiB' in line, line
    said = call('-d', tree.root, '-i', 'big', '--save', archive).said
    assert 3 * MIB < os.path.getsize(archive) < 3.2 * MIB
    assert archive in said


def test_a_dry_run_refuses_what_the_run_would_refuse(tree, archive):
    write(archive, b'of last week')
    refused(tree, archive, '-n', '-i', 'app')


def test_nothing_to_save(tree, archive):
    """No archive of nothing, so that a cron job needs no clean-up."""
    result = call('-d', tree.root, '-g', '--save', archive)
    assert result.status == 0 and not os.path.exists(archive)


def test_what_makes_no_sense(tree, archive):
    before = snapshot(tree.root)
    for arguments in [['-l'], ['--check'], []]:
        assert call('-d', tree.root, '--save', archive, *arguments).status == 2
    assert snapshot(tree.root) == before and not os.path.exists(archive)


def test_a_saved_deletion_says_the_same_as_one_that_is_not(tree, archive):
    copy = small_copy(tree)
    found = [json.loads(call('-d', one.root, '--json', '-i', 'app:1.0', *more).out)
             for one, more in [(copy, []), (tree, ['--save', archive])]]
    assert found[0].pop('registry') != found[1].pop('registry')
    assert found[0] == found[1]


def test_untagged_garbage_and_uploads_are_saved(tree, archive):
    tree.image('app', [b'untagged'])
    tree.layer('app', b'unused')
    tree.blob(b'orphan')
    tree.upload('app', 'old', b'upload', age=2 * DAY)
    before = attributes(tree.v2)
    assert call('-d', tree.root, '-u', '-g', '--save', archive).status == 0
    gone = set(before) - set(attributes(tree.v2))
    for data in b'untagged', b'unused', b'orphan':
        assert any(digest_of(data)[7:] in path for path in gone)
    assert set(names_in(archive)) >= {path for path in gone
                                      if not stat.S_ISDIR(before[path][0])}
    restore(tree.v2, archive)
    assert without_times_of(attributes(tree.v2), before) == without_times_of(before, before)


def test_brought_back_and_deleted_again(tree, archive):
    image = current(tree, 'app', '1.0')
    for path in archive, archive + '.2':
        assert call('-d', tree.root, '-i', 'app:1.0', '--save', path).status == 0
        assert tags(tree, 'app') == ['2.0']
        restore(tree.v2, path)
        assert current(tree, 'app', '1.0') == image
    assert re.search('tar -xf', call('--help').out)
