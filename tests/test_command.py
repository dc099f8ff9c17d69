"""The command line as the user meets it: messages, exit status, and bad input of every kind.

Whatever comes in, there is a message and never a traceback, and nothing is lost.
"""

import contextlib
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from typing import NamedTuple

import pytest

import delete_docker_registry_image as script
from tree import GARBAGE, Tree, digest_of, encode, snapshot, write

SCRIPT = os.path.abspath(script.__file__)
ABSENT = 'sha256:' + '0' * 64
NOBODY = 65534
AS_ROOT = os.geteuid() == 0


class Result(NamedTuple):
    status: int
    out: str
    said: str


def run(*arguments, command=(sys.executable, SCRIPT), environment=(), **options):
    """Run the script with `arguments`; whatever happens, it shall not be a traceback."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith('REGISTRY_')}
    clean.update(environment)
    options = dict(dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                        env=clean, timeout=60), **options)
    done = subprocess.run(list(command) + list(arguments), **options)
    said = done.stderr.decode(errors='replace')
    assert 'Traceback' not in said, said
    return Result(done.returncode, (done.stdout or b'').decode(errors='replace'), said)


def call(*arguments):
    """The same inside this process, which is faster; here a traceback fails the test as it is."""
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        try:
            status = script.main(arguments)
        except SystemExit as error:
            status = error.code
    return Result(status, out.getvalue(), said.getvalue())


@pytest.fixture
def tree(tmp_path):
    return small_registry(tmp_path / 'registry')


def small_registry(folder):
    """Two repositories whose images share a layer."""
    tree = Tree(folder)
    for repo, tag in [('app', '1.0'), ('app', '2.0'), ('team/other', '1.0')]:
        own = '%s:%s' % (repo, tag)
        image = tree.image(repo, [b'base', own.encode()], config=encode({'for': own}))
        tree.tag(repo, tag, image)
    return tree


def delete(tree, *arguments):
    """A run that has to succeed; returns what was said."""
    result = call('-d', tree.root, *arguments)
    assert result.status == 0, result.said
    assert result.out == ''
    return result.said


def refused(tree, *arguments, status=1):
    """A run that has to fail and to leave everything as it is; returns what was said."""
    before = snapshot(tree.root)
    result = call('-d', tree.root, *arguments)
    assert result.status == status, result.said
    assert snapshot(tree.root) == before
    return result.said


def tags(tree, repo):
    folder = tree.repo(repo, '_manifests', 'tags')
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def current(tree, repo, tag):
    """The digest that a tag stands for."""
    with open(tree.tag_link(repo, tag)) as file:
        return file.read()


def has_blob(tree, data):
    digest = data if isinstance(data, str) else digest_of(data)
    return os.path.exists(tree.blob_path(digest))


# --- what it says ---------------------------------------------------------------------------------

def test_messages_go_to_standard_error_as_they_always_did(tree):
    result = run('-d', tree.root, '-i', 'app:1.0')
    assert (result.status, result.out) == (0, '')
    said = result.said
    for line in said.splitlines():
        assert re.match(r'(INFO {4}|WARNING |ERROR {3}|DEBUG {3}) '
                        r'\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\]  \S', line), line
    assert 'Deleted tag app:1.0 (1 manifest, 3 blobs, 727 bytes)\n' in said
    assert 'sha256' not in said  # -v names manifests and blobs
    assert said.splitlines()[-1].endswith('  Deleted 1 tag, 1 manifest, 3 blobs of app: '
                                          '%d bytes freed' % freed_by_one_tag())


def freed_by_one_tag():
    """The bytes of app:1.0 that no other image of the small registry uses."""
    with tempfile.TemporaryDirectory() as folder:
        tree = small_registry(folder)
        sizes = [os.path.getsize(tree.blob_path(current(tree, 'app', '1.0')))]
        return sum(sizes) + len(b'app:1.0') + len(encode({'for': 'app:1.0'}))


def test_a_dry_run_says_what_would_go(tree):
    said = refused(tree, '-n', '-i', 'app:1.0', status=0)
    assert 'Would delete tag app:1.0 (1 manifest, 3 blobs, 727 bytes)\n' in said
    assert 'Would delete 1 tag, 1 manifest, 3 blobs of app: ' in said.splitlines()[-1]
    assert 'Deleted' not in said


def test_a_whole_repository_is_one_line(tree):
    said = delete(tree, '-i', 'app')
    assert 'Deleted repository app' in said and 'Deleted tag' not in said
    assert 'Deleted 1 repository, 2 tags, 2 manifests, 6 blobs of app: ' in said.splitlines()[-1]
    assert not os.path.exists(tree.repo('app'))
    assert tags(tree, 'team/other') == ['1.0']


def test_verbose_names_each_blob_and_its_size(tree):
    said = delete(tree, '-v', '-i', 'app:1.0')
    assert 'Deleted blob %s (7 bytes)' % digest_of(b'app:1.0') in said
    assert digest_of(b'base') not in said


def test_quiet_says_nothing_when_all_is_well(tree):
    assert delete(tree, '-q', '-i', 'app:1.0') == ''
    assert tags(tree, 'app') == ['2.0']
    assert 'No repository' in refused(tree, '-q', '-i', 'nothing')


def test_nothing_to_delete(tree):
    assert delete(tree, '-u', '-i', 'app').endswith('  Nothing to delete\n')


def test_force_is_accepted_and_has_no_effect(tree):
    said = delete(tree, '-f', '-i', 'app:1.0')
    assert 'WARNING' in said and 'no effect' in said
    assert tags(tree, 'app') == ['2.0']


def test_help_fits_in_80_columns():
    for columns in ['80', '200']:
        help = run('--help', environment={'COLUMNS': columns})
        assert help.status == 0 and help.said == ''
        for option in ['-i', '-u', '-p', '-n', '-d', '-v', '-q', '-V', '-h', '-f']:
            assert re.search(r'^  %s[, ]' % option, help.out, re.MULTILINE), option
        assert 'Harbor' in help.out  # whose images cannot be deleted from here
        if columns == '80':
            assert max(map(len, help.out.splitlines())) <= 80
        assert run('-h', environment={'COLUMNS': columns}).out == help.out


def test_version():
    result = run('-V')
    assert (result.status, result.out) == (
        0, 'delete_docker_registry_image %s\n' % script.__version__)
    assert run('--version').out == result.out


# --- what is not there ----------------------------------------------------------------------------

def test_a_missing_image(tree):
    folder = os.path.join(tree.v2, 'repositories')
    for image, message in [
            ('x', "No repository 'x' found in repositories directory %s" % folder),
            ('x:1.0', "No repository 'x' found in repositories directory %s" % folder),
            ('team', "No repository 'team' found in repositories directory %s" % folder),
            ('app:y', "No repository 'app' tag 'y' found in repositories directory %s" % folder),
            ('app@' + ABSENT, ABSENT)]:
        said = refused(tree, '-i', image)
        assert 'ERROR' in said and message in said
        assert message in refused(tree, '-n', '-i', image)


def test_with_one_image_missing_nothing_is_deleted(tree):
    said = refused(tree, '-i', 'app:1.0', '-i', 'app:3.0', '-i', 'x', '-i', 'team/other')
    # Each that is missing is named in one go.
    assert "'3.0'" in said and "'x'" in said


@pytest.mark.parametrize('image', ['x*', 'app:x*', 'x*:1.0', 'app:[x]', 'x?y/*:*', 'app['])
def test_a_pattern_that_matches_nothing_is_no_error(tree, image):
    said = refused(tree, '-i', image, status=0)
    assert 'WARNING' in said and image in said


def test_a_pattern_that_matches_nothing_does_not_stop_the_others(tree):
    delete(tree, '-i', 'x*', '-i', 'app:1.*')
    assert tags(tree, 'app') == ['2.0']


def test_a_literal_tag_under_a_pattern(tree):
    # The name is a pattern: it selects the repositories that have the tag.
    delete(tree, '-i', '*:2.0')
    assert tags(tree, 'app') == ['1.0'] and tags(tree, 'team/other') == ['1.0']


# --- usage errors ---------------------------------------------------------------------------------

@pytest.mark.parametrize('image', [
    '', ' ', '/', '.', '..', '../..', 'app/..', '../app', 'app/../team/other', './app', 'app/.',
    '/app', '/etc/passwd', 'app/', 'app//b', '//app', 'app\n', '\napp', 'app\n/b', 'app:1.0\n',
    'App', '_app', '-app', 'app-', 'app..b', 'app b', 'app/_manifests', '_layers', 'a' * 256,
    ':', ':1.0', 'app:', 'app:/', 'app:..', 'app:.hidden', 'app:-x', 'app:a b', 'app:a/../b',
    'app:' + 'x' * 129, 'app:1.0:2.0', 'app\u00e9', 'app:\u00e9',
    '@', '@' + ABSENT, 'app@', 'app@sha256', 'app@sha256:', 'app@sha256:../../..',
    'app@sha256:' + '0' * 63, 'app@sha256:' + '0' * 65, 'app@sha256:' + 'A' * 64,
    'app@sha512:' + '0' * 64, 'app@md5:' + '0' * 32, 'app@' + ABSENT + '\n',
    'app@../../../etc', 'app:1.0@' + ABSENT, 'app@%s:1.0' % ABSENT, 'app@*',
])
def test_what_is_no_image_is_a_usage_error(tree, image):
    # Also when it comes second, after one that is right.
    assert 'usage:' in refused(tree, '-i', 'app:1.0', '-i', image, status=2)


@pytest.mark.parametrize('pattern', ['[z-a]', 'app:[z-a]', '*\n', '[', '[]', '../*', '/*', '*/..',
                                     '*:', '*@', 'a[!', 'app:[[:x:]]', '[\\', '*' * 300])
def test_strange_patterns_select_nothing(tree, pattern):
    before = snapshot(tree.root)
    result = call('-d', tree.root, '-i', pattern)
    assert result.status in (0, 2) and result.said
    assert snapshot(tree.root) == before


def test_arguments_that_are_not_utf8(tree):
    before = snapshot(tree.root)
    for image, status in [(b'app\xff', 2), (b'app:\xff', 2), (b'app@\xff', 2), (b'*\xff', 0)]:
        for locale in ['C', 'C.UTF-8']:
            result = run('-d', tree.root, '-i', image, environment={'LC_ALL': locale})
            assert result.status == status and result.said
    assert snapshot(tree.root) == before


@pytest.mark.parametrize('arguments', [[], ['-v'], ['-n'], ['-u'], ['-u', '-p'], ['-f']])
def test_nothing_to_do_is_a_usage_error(tree, arguments):
    assert 'image is required' in refused(tree, *arguments, status=2)


@pytest.mark.parametrize('arguments', [
    ['-u', '-i', 'app:1.0'], ['-u', '-i', 'app@' + ABSENT], ['-u', '-i', 'app', '-i', 'app:2.0'],
    ['-u', '-i', 'app:*'], ['--unknown'], ['-i'], ['-i', 'app', 'stray'], ['-d'],
])
def test_other_usage_errors(tree, arguments):
    assert 'usage:' in refused(tree, *arguments, status=2)


# --- references pasted from elsewhere -------------------------------------------------------------

@pytest.mark.parametrize('host', [
    'localhost:5000', 'localhost', '127.0.0.1:5000', 'registry.example.com:443', 'registry:5000',
    '[::1]:5000'])
def test_a_host_in_front_is_dropped(tree, host):
    delete(tree, '-i', host + '/app:1.0', '-i', host + '/team/other')
    assert tags(tree, 'app') == ['2.0'] and not os.path.exists(tree.repo('team/other'))


@pytest.mark.parametrize('image', ['app', 'app:1.0', 'app@'])
def test_a_repository_that_is_named_like_a_host_comes_first(tree, image):
    other = tree.image('localhost/app', [b'base', b'local'])
    tree.tag('localhost/app', '1.0', other)
    if image.endswith('@'):
        image += other
    delete(tree, '-i', 'localhost/' + image)
    assert not os.path.exists(tree.repo('localhost/app'))
    assert tags(tree, 'app') == ['1.0', '2.0']


def test_the_tag_is_missing_in_the_repository_that_is_named_like_a_host(tree):
    tree.tag('localhost/app', 'other', tree.image('localhost/app', [b'local']))
    assert 'localhost/app' in refused(tree, '-i', 'localhost/app:1.0')


def test_a_component_with_a_dot_only_is_part_of_the_name(tree):
    # Mirrors keep repositories under the host that they come from.
    said = refused(tree, '-i', 'quay.io/app:1.0')
    assert "No repository 'quay.io/app' found" in said
    assert re.search(r"'app(:1\.0)?'", said)  # the shorter name exists, so it is suggested
    assert "'x'" not in refused(tree, '-i', 'quay.io/x:1.0')
    tree.tag('quay.io/app', '1.0', tree.image('quay.io/app', [b'mirrored']))
    delete(tree, '-i', 'quay.io/app:1.0')
    assert not os.path.exists(tree.repo('quay.io/app'))
    assert tags(tree, 'app') == ['1.0', '2.0']


# --- the data folder ------------------------------------------------------------------------------

@pytest.mark.parametrize('below', ['', 'docker', 'docker/registry', 'docker/registry/v2'])
def test_the_data_folder_may_be_given_at_each_level(tree, below):
    for folder in [os.path.join(tree.root, below), os.path.join(tree.root, below) + '/']:
        assert run('-n', '-d', folder, '-i', 'app:1.0').status == 0
    # From the current folder, and as the old script was told.
    assert run('-n', '-d', below or '.', '-i', 'app:1.0', cwd=tree.root).status == 0
    assert run('-i', 'app:1.0', environment={
        'REGISTRY_DATA_DIR': os.path.join(tree.root, below)}).status == 0
    assert tags(tree, 'app') == ['2.0']


def test_the_data_folder_in_order_of_precedence(tmp_path):
    trees = [small_registry(tmp_path / name) for name in ['option', 'variable', 'registry']]
    option, variable, registry = [tree.root for tree in trees]

    def left():
        return [tags(tree, 'app') for tree in trees]

    both = ['2.0']
    environment = {'REGISTRY_DATA_DIR': variable,
                   'REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY': registry}
    assert run('-d', option, '-i', 'app:1.0', environment=environment).status == 0
    assert left() == [both, ['1.0', '2.0'], ['1.0', '2.0']]
    assert run('-i', 'app:1.0', environment=environment).status == 0
    assert left() == [both, both, ['1.0', '2.0']]
    # An empty variable is as good as none.
    assert run('-i', 'app:1.0', environment=dict(environment, REGISTRY_DATA_DIR='')).status == 0
    assert left() == [both, both, both]


def test_an_empty_data_folder_option_is_not_taken_for_none(tree):
    # A script with -d "$DIR" and no DIR must not end up on another registry.
    before = snapshot(tree.root)
    result = run('-d', '', '-i', 'app:1.0', environment={'REGISTRY_DATA_DIR': tree.root})
    assert result.status in (1, 2)
    assert snapshot(tree.root) == before


def test_the_default_data_folders(tmp_path, monkeypatch, capfd):
    places = [str(tmp_path / name) for name in ['first', 'second', 'third']]
    monkeypatch.setattr(script, 'DEFAULT_DATA_DIRS', tuple(places))
    for name in ['REGISTRY_DATA_DIR', 'REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY']:
        monkeypatch.delenv(name, raising=False)

    assert script.main(['-i', 'app:1.0']) == 1
    said = capfd.readouterr().err
    assert all(place in said for place in places)

    os.mkdir(places[0])  # which holds no registry, so it is passed over
    second = small_registry(places[1])
    assert script.main(['-i', 'app:1.0']) == 0
    assert tags(second, 'app') == ['2.0']

    third = small_registry(places[2])
    capfd.readouterr()
    assert script.main(['-i', 'app:2.0']) == 1
    said = capfd.readouterr().err
    assert places[1] in said and places[2] in said and places[0] not in said
    assert tags(second, 'app') == ['2.0'] and tags(third, 'app') == ['1.0', '2.0']
    assert script.main(['-d', places[2], '-i', 'app:2.0']) == 0


def make_missing(folder):
    pass


def make_file(folder):
    folder.write_text('no folder')


def make_empty(folder):
    folder.mkdir()


def make_other(folder):
    (folder / 'etc' / 'blob').mkdir(parents=True)
    (folder / 'etc' / 'hosts').write_text('hosts')


def make_dangling(folder):
    folder.symlink_to('nowhere')


def make_v2_a_file(folder):
    (folder / 'docker' / 'registry').mkdir(parents=True)
    (folder / 'docker' / 'registry' / 'v2').write_text('no folder')


@pytest.mark.parametrize('make', [make_missing, make_file, make_empty, make_other, make_dangling,
                                  make_v2_a_file])
def test_what_is_no_data_folder(tmp_path, make):
    folder = tmp_path / 'data'
    make(folder)
    before = snapshot(tmp_path)
    for arguments in [['-i', 'app'], ['-p'], ['-u', '-i', '*'], ['-n', '-i', 'app:1.0']]:
        result = call('-d', str(folder), *arguments)
        assert result.status == 1
        assert 'ERROR' in result.said and str(folder) in result.said
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize('folders', [[], ['repositories'], ['blobs'], ['repositories', 'blobs']])
def test_a_new_registry_has_no_repository(tmp_path, folders):
    v2 = tmp_path / 'docker' / 'registry' / 'v2'
    v2.mkdir(parents=True)
    for folder in folders:
        (v2 / folder).mkdir()
    for image in ['app', 'app:1.0']:
        result = call('-d', str(tmp_path), '-i', image)
        assert result.status == 1
        assert "No repository 'app' found in repositories directory %s" % v2 in result.said
    assert call('-d', str(tmp_path), '-p', '-i', '*').status == 0
    assert sorted(os.listdir(str(v2))) == sorted(folders)


# --- bad content on the disk ----------------------------------------------------------------------

OUTSIDE = 'sha256:../../../../../../etc'
NOT_READABLE = {
    'a list': b'[]',
    'nothing known': b'{}',
    'null': b'null',
    'text': b'"layers"',
    'a number': b'5',
    'empty': b'',
    'no JSON': b'<html>',
    'nested lists': b'[' * 100000 + b']' * 100000,
    'a nested value': b'{"layers": [], "x": ' + b'[' * 100000 + b']' * 100000 + b'}',
    'nested objects': b'{"layers":' * 100000 + b'1' + b'}' * 100000,
    'layers are a number': encode({'layers': 5}),
    'layers are an object': encode({'layers': {'digest': ABSENT}}),
    'a layer is text': encode({'layers': [ABSENT]}),
    'a layer without a digest': encode({'layers': [{'size': 1}]}),
    'a digest is a number': encode({'layers': [{'digest': 5}]}),
    'a digest is null': encode({'layers': [{'digest': None}]}),
    'a digest leads outside': encode({'layers': [{'digest': OUTSIDE}]}),
    'a digest with a newline': encode({'layers': [{'digest': ABSENT + '\n'}]}),
    'the config is text': encode({'config': ABSENT, 'layers': []}),
    'the config leads outside': encode({'config': {'digest': OUTSIDE}, 'layers': []}),
    'a child leads outside': encode({'manifests': [{'digest': OUTSIDE}]}),
    'children are text': encode({'manifests': 'all'}),
    'a subject leads outside': encode({'layers': [], 'subject': {'digest': OUTSIDE}}),
    'an old layer leads outside': encode({'fsLayers': [{'blobSum': OUTSIDE}]}),
    'old layers are numbers': encode({'fsLayers': [1, 2]}),
    'an artifact leads outside': encode({'blobs': [{'digest': OUTSIDE}]}),
    'two kinds, one is bad': encode({'layers': [], 'manifests': 5}),
    'a byte too many': encode({'layers': []}).ljust(4 * 2 ** 20 + 1),
}


def all_unreadable(test):
    return pytest.mark.parametrize('content', list(NOT_READABLE.values()),
                                   ids=list(NOT_READABLE))(test)


def add_unreadable(tree, content):
    """Put a damaged image beside the others; its digest."""
    tree.layer('app', b'layer of the damaged image')
    digest = tree.manifest('app', content)
    tree.tag('app', 'damaged', digest)
    return digest


@all_unreadable
def test_an_unreadable_manifest_that_stays_stops_the_run(tree, content):
    digest = add_unreadable(tree, content)
    assert 'app@' + digest in refused(tree, '-i', 'app:1.0')


def test_an_unreadable_manifest_that_stays_stops_every_kind_of_run(tree):
    digest = add_unreadable(tree, b'[]')
    tree.image('app', [b'untagged'])
    for request in [['-i', 'app:[12].0'], ['-n', '-i', 'app:1.0'], ['-u', '-i', '*'],
                    ['-i', 'app@' + current(tree, 'app', '1.0')],
                    ['-i', 'team/other', '-i', 'app:2.0']]:
        assert 'app@' + digest in refused(tree, *request)


@all_unreadable
def test_an_unreadable_manifest_can_be_deleted(tree, content):
    digest = add_unreadable(tree, content)
    # The command that the message gives, as it is.
    command = re.search(r'delete_docker_registry_image( -i \S+)+',
                        refused(tree, '-i', 'app:1.0')).group()
    said = delete(tree, *command.split()[1:])
    assert digest in said
    assert tags(tree, 'app') == ['1.0', '2.0'] and not has_blob(tree, digest)
    # What layers it had nobody knows, so they are left.
    assert 'WARNING' in said and has_blob(tree, b'layer of the damaged image')
    delete(tree, '-i', 'app:1.0')
    assert tags(tree, 'app') == ['2.0']


@all_unreadable
def test_an_unreadable_manifest_elsewhere_does_not_matter(tree, content):
    digest = add_unreadable(tree, content)
    delete(tree, '-i', 'team/other:1.0')
    assert not os.path.exists(tree.repo('team/other')) and has_blob(tree, digest)


def make_wrong_hash(tree, digest):
    write(tree.blob_path(digest), encode({'layers': [], 'another': 'image'}))


def make_bad_sector(tree, digest):
    tree.corrupt_blob(digest)


def make_huge(tree, digest):
    with open(tree.blob_path(digest), 'r+b') as file:
        file.truncate(50 * 2 ** 20)


def make_folder(tree, digest):
    os.remove(tree.blob_path(digest))
    os.makedirs(os.path.join(tree.blob_path(digest), 'inside'))


def make_dangling_data(tree, digest):
    os.remove(tree.blob_path(digest))
    os.symlink('nowhere', tree.blob_path(digest))


def make_dangling_folder(tree, digest):
    tree.remove_blob(digest)
    os.symlink('nowhere', os.path.dirname(tree.blob_path(digest)))


@pytest.mark.parametrize('damage', [make_wrong_hash, make_bad_sector, make_huge, make_folder,
                                    make_dangling_data, make_dangling_folder])
def test_a_manifest_that_the_disk_does_not_give(tree, damage):
    digest = current(tree, 'app', '2.0')
    damage(tree, digest)
    assert digest in refused(tree, '-i', 'app:1.0')
    delete(tree, '-i', 'app:2.0')
    assert not os.path.lexists(os.path.dirname(tree.blob_path(digest)))
    delete(tree, '-i', 'app:1.0')
    assert not os.path.exists(tree.repo('app'))


def test_a_pipe_in_place_of_a_manifest(tree):
    digest = current(tree, 'app', '2.0')
    os.remove(tree.blob_path(digest))
    os.mkfifo(tree.blob_path(digest))
    result = run('-d', tree.root, '-i', 'app:1.0')
    assert result.status == 1 and digest in result.said
    assert tags(tree, 'app') == ['1.0', '2.0'] and has_blob(tree, b'app:1.0')
    assert run('-d', tree.root, '-i', 'app:2.0').status == 0
    assert not os.path.lexists(tree.blob_path(digest))


def test_a_manifest_of_the_largest_size(tree):
    tree.tag('app', 'large', tree.manifest('app', encode({'layers': []}).ljust(4 * 2 ** 20)))
    delete(tree, '-i', 'app:1.0')
    assert tags(tree, 'app') == ['2.0', 'large']


@pytest.mark.parametrize('content', [b'', GARBAGE, b'sha256:../../..', b'sha256:', b'5', b'\n',
                                     b'../../../../etc/passwd', b'x' * 100000])
def test_a_link_of_a_tag_that_is_no_digest(tree, content):
    former = tree.image('app', [b'base', b'former'])
    write(tree.history_link('app', '2.0', former), former.encode())
    write(tree.tag_link('app', '2.0'), content)
    # What the tag stood for is unknown: everything in its history stays.
    delete(tree, '-u', '-i', 'app')
    delete(tree, '-i', 'app:1.0')
    assert has_blob(tree, b'app:2.0') and has_blob(tree, b'former')
    delete(tree, '-i', 'app:2.0')
    assert not os.path.exists(tree.repo('app')) and not has_blob(tree, b'former')


@pytest.mark.parametrize('content', [b'', GARBAGE, b'sha256:../../..', ABSENT.encode()])
def test_a_sha256_link_counts_by_its_name(tree, content):
    digest = current(tree, 'app', '2.0')
    links = [tree.revision_link('app', digest), tree.layer_link('app', digest_of(b'base')),
             tree.layer_link('team/other', digest_of(b'team/other:1.0'))]
    for link in links:
        write(link, content)
    delete(tree, '-i', 'app:1.0')
    assert has_blob(tree, digest) and has_blob(tree, b'base')
    delete(tree, '-i', 'app')
    assert has_blob(tree, b'base') and not has_blob(tree, digest)


def test_file_names_that_mean_nothing(tree):
    """Stray files and folders stop no run, and stay where the repository stays."""
    strays = [
        'README', 'blobs/sha256/README', 'blobs/md5/aa/x/data', 'repositories/README',
        'repositories/app/README', 'repositories/app/_layers/README',
        'repositories/app/_layers/sha256/README', 'repositories/app/_layers/sha256/zz/link',
        'repositories/app/_manifests/revisions/sha256/..x/link',
        'repositories/app/_manifests/revisions/md5/zz/link',
        'repositories/app/_manifests/tags/README', 'repositories/app/_uploads/README']
    for stray in strays:
        write(os.path.join(tree.v2, stray), b'stray')
    delete(tree, '-i', 'app:1.0')
    assert tags(tree, 'app') == ['2.0', 'README']
    for stray in strays:
        assert os.path.exists(os.path.join(tree.v2, stray)), stray


@pytest.mark.parametrize('locale', ['C', 'C.UTF-8'])
def test_names_that_are_not_utf8(tree, locale):
    name = os.fsdecode(b'\xff\xfe')
    image = tree.image('odd' + name, [b'base', b'odd'])
    tree.tag('odd' + name, 'tag' + name, image)
    tree.tag('app', 'tag' + name, tree.image('app', [b'odd tag']))
    tree.upload('app', name)
    for folder in ['blobs', 'blobs/sha256', 'repositories/app/_layers/sha256',
                   'repositories/app/_manifests/revisions/sha256']:
        write(os.path.join(tree.v2, folder, name, 'link'), b'')

    def go(*arguments):
        result = run('-d', tree.root, *arguments, environment={'LC_ALL': locale})
        assert result.status == 0, result.said

    go('-v', '-i', 'app:1.0')
    assert tags(tree, 'app') == ['2.0', 'tag' + name]
    go('-n', '-v', '-i', '*:*', '-p')
    go('-v', '-i', 'app:tag*')
    assert tags(tree, 'app') == ['2.0'] and not has_blob(tree, b'odd tag')
    go('-v', '-i', 'odd*', '-p')
    assert not has_blob(tree, b'odd') and tags(tree, 'team/other') == ['1.0']


@pytest.mark.parametrize('locale', ['C', 'C.UTF-8'])
def test_a_data_folder_whose_name_is_not_utf8(tmp_path, locale):
    tree = small_registry(os.path.join(str(tmp_path), os.fsdecode(b'data \xff')))
    for arguments, status in [(['-v', '-i', 'app:1.0'], 0), (['-i', 'app:1.0'], 1)]:
        result = run('-d', tree.root, *arguments, environment={'LC_ALL': locale})
        assert result.status == status and result.said
    assert tags(tree, 'app') == ['2.0']


# --- symbolic links -------------------------------------------------------------------------------

def move_and_link(path, where):
    """Move a folder away and leave a link to it, as one does when a disk fills up."""
    shutil.move(path, str(where))
    os.symlink(str(where), path)
    return str(where)


@pytest.mark.parametrize('name', ['blobs', 'blobs/sha256', 'repositories', 'repositories/app',
                                  'repositories/app/_layers', 'repositories/app/_manifests',
                                  'repositories/app/_manifests/tags',
                                  'repositories/app/_manifests/revisions', '.'])
def test_a_folder_that_is_elsewhere_is_reached_by_its_link(tree, tmp_path, name):
    path = os.path.normpath(os.path.join(tree.v2, name))
    target = move_and_link(path, tmp_path / 'elsewhere')
    delete(tree, '-i', 'app:1.0')
    assert os.path.islink(path) and os.path.isdir(target)
    assert tags(tree, 'app') == ['2.0']
    assert not has_blob(tree, b'app:1.0') and has_blob(tree, b'app:2.0')
    delete(tree, '-i', 'team/other')
    assert has_blob(tree, b'base')


@pytest.mark.parametrize('name', ['_layers', '_manifests', '_uploads'])
def test_a_link_below_what_is_deleted_is_removed_and_not_entered(tree, tmp_path, name):
    tree.upload('app', 'upload')
    target = move_and_link(tree.repo('app', name), tmp_path / 'elsewhere')
    write(target + '/not of the registry', b'')
    delete(tree, '-i', 'app')
    assert not os.path.lexists(tree.repo('app', name))
    assert os.path.exists(target + '/not of the registry')


def test_a_linked_file_and_folder_inside_what_is_deleted(tree, tmp_path):
    precious = tmp_path / 'precious'
    write(str(precious / 'file'), b'precious')
    os.symlink(str(precious), tree.repo('app', '_uploads', 'link'))
    os.symlink(str(precious), tree.repo('app', '_manifests', 'tags', '1.0', 'link'))
    os.symlink(str(precious / 'file'), os.path.join(
        os.path.dirname(tree.blob_path(digest_of(b'app:1.0'))), 'other'))
    before = snapshot(precious)
    delete(tree, '-i', 'app:1.0')
    delete(tree, '-i', 'app', '-p')
    assert snapshot(precious) == before


def test_a_blob_that_is_elsewhere(tree, tmp_path):
    folder = os.path.dirname(tree.blob_path(digest_of(b'app:1.0')))
    target = move_and_link(folder, tmp_path / 'elsewhere')
    before = snapshot(target)
    delete(tree, '-i', 'app:1.0')
    assert not os.path.lexists(folder) and snapshot(target) == before


def test_a_tag_that_is_another_name_of_a_tag(tree):
    os.symlink('1.0', tree.repo('app', '_manifests', 'tags', 'latest'))
    said = refused(tree, '-i', 'app:1.0')
    assert 'latest' in said and '1.0' in said
    # The other name alone is only a link, and both together are no question.
    delete(tree, '-i', 'app:latest')
    assert tags(tree, 'app') == ['1.0', '2.0'] and has_blob(tree, b'app:1.0')
    os.symlink('1.0', tree.repo('app', '_manifests', 'tags', 'latest'))
    delete(tree, '-i', 'app:latest', '-i', 'app:1.0')
    assert tags(tree, 'app') == ['2.0'] and not has_blob(tree, b'app:1.0')


def test_a_link_that_leads_to_a_link(tree):
    for link, target in [('latest', '1.0'), ('stable', './latest'), ('far', '../tags/stable')]:
        os.symlink(target, tree.repo('app', '_manifests', 'tags', link))
    said = refused(tree, '-i', 'app:latest')
    assert "tags/latest' would" in said and re.search("tags/(stable|far)', which stays", said)
    assert 'far' in refused(tree, '-i', 'app:latest', '-i', 'app:stable')
    delete(tree, '-i', 'app:stable', '-i', 'app:far')
    assert tags(tree, 'app') == ['1.0', '2.0', 'latest']


def test_a_repository_that_is_another_name_of_a_repository(tree):
    os.symlink('app', tree.repo('alias'))
    for request in [['-i', 'app'], ['-i', 'app:1.0']]:
        said = refused(tree, *request)
        assert 'alias' in said and 'app' in said


def test_a_folder_that_is_its_own_ancestor_is_not_entered_twice(tree):
    os.symlink('.', tree.repo('team/here'))
    os.symlink('..', tree.repo('team/other/up'))
    delete(tree, '-i', 'app:1.0')
    assert tags(tree, 'app') == ['2.0']
    # It is another name of what it holds all the same.
    assert 'here' in refused(tree, '-i', 'team/other')


@pytest.mark.parametrize('name', ['team/other', 'team/other/_layers', 'team/other/_manifests'])
def test_a_repository_that_leads_nowhere_stops_the_run(tree, name):
    # What it links is unknown, so no blob can be said to be free.
    path = tree.repo(name)
    shutil.rmtree(path)
    os.symlink('/nowhere/at/all', path)
    assert path in refused(tree, '-i', 'app:1.0')


def test_blobs_that_lead_nowhere_stop_the_run(tree):
    shutil.rmtree(os.path.join(tree.v2, 'blobs'))
    os.symlink('/nowhere/at/all', os.path.join(tree.v2, 'blobs'))
    assert 'blobs' in refused(tree, '-i', 'app:1.0')
    assert 'blobs' in refused(tree, '-i', 'app')


# --- unsafe ground --------------------------------------------------------------------------------

def test_a_registry_that_keeps_its_tags_in_a_database(tree):
    write(os.path.join(tree.root, 'docker/registry/lockfiles/database-in-use'), b'')
    for request in [['-i', 'app:1.0'], ['-i', 'app'], ['-u', '-i', 'app'], ['-i', '*']]:
        assert 'database' in refused(tree, *request)


@pytest.mark.parametrize('left', [None, 'blobs', 'blobs/sha256', 'blobs/sha256/aa/empty'])
def test_half_a_store(tree, left):
    shutil.rmtree(os.path.join(tree.v2, 'blobs'))
    if left:
        os.makedirs(os.path.join(tree.v2, left))
    for request in [['-i', 'app:1.0'], ['-i', 'app'], ['-u', '-i', 'app'], ['-i', '*']]:
        assert 'mounted' in refused(tree, *request)


def test_a_store_without_a_revision_may_lack_blobs(tree):
    shutil.rmtree(os.path.join(tree.v2, 'blobs'))
    for repo in ['app', 'team/other']:
        shutil.rmtree(tree.repo(repo, '_manifests', 'revisions'))
    delete(tree, '-i', 'app')
    assert not os.path.exists(tree.repo('app'))


# --- what is not permitted ------------------------------------------------------------------------

@pytest.fixture
def others_tree():
    """A registry that belongs to the user that `run_as_other` runs as.

    It does not lie in pytest's own folder, which nobody else may enter.
    """
    folder = tempfile.mkdtemp()
    tree = small_registry(os.path.join(folder, 'registry'))
    for parent, folders, files in os.walk(folder):
        for name in ['.'] + files:
            if AS_ROOT:
                os.chown(os.path.join(parent, name), NOBODY, NOBODY)
    yield tree
    subprocess.check_call(['chmod', '-R', 'u+rwX', folder])
    shutil.rmtree(folder)


# Root may do everything, so the test takes another user's identity: after the imports, since that
# user may be unable to read the script or this Python.
AS_OTHER = """
import fcntl, fnmatch, gettext, hashlib, json, locale, os, signal, sys
sys.path.insert(0, %r)
import delete_docker_registry_image
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(%d)
    os.setuid(%d)
sys.exit(delete_docker_registry_image.main(sys.argv[1:]))
""" % (os.path.dirname(SCRIPT), NOBODY, NOBODY)


def run_as_other(tree, *arguments):
    return run('-d', tree.root, *arguments, command=[sys.executable, '-c', AS_OTHER], cwd='/')


def test_another_user_may_delete_what_is_theirs(others_tree):
    result = run_as_other(others_tree, '-i', 'app:1.0')
    assert result.status == 0, result.said
    assert tags(others_tree, 'app') == ['2.0']


@pytest.mark.parametrize('name, mode', [(name, 0) for name in [
    '.', 'repositories', 'repositories/app', 'repositories/app/_manifests',
    'repositories/app/_manifests/tags', 'repositories/app/_manifests/tags/2.0',
    'repositories/app/_manifests/tags/2.0/current', 'repositories/app/_manifests/revisions',
    'repositories/app/_manifests/revisions/sha256', 'repositories/app/_layers',
    'repositories/app/_layers/sha256', 'repositories/team', 'repositories/team/other/_layers',
    'repositories/team/other/_layers/sha256', 'repositories/team/other/_manifests/revisions',
    'blobs', 'blobs/sha256',
]] + [(name, stat.S_IRUSR) for name in [  # may be listed and not entered
    'repositories', 'repositories/app', 'repositories/team/other/_layers/sha256', 'blobs/sha256',
]])
def test_what_may_not_be_read_stops_the_run(others_tree, name, mode):
    path = os.path.normpath(os.path.join(others_tree.v2, name))
    before = snapshot(others_tree.root)
    os.chmod(path, mode)
    result = run_as_other(others_tree, '-i', 'app:1.0')
    os.chmod(path, 0o700)
    assert result.status == 1, result.said
    assert 'ERROR' in result.said
    assert snapshot(others_tree.root) == before


def test_a_manifest_that_may_not_be_read(others_tree):
    digest = current(others_tree, 'app', '2.0')
    os.chmod(others_tree.blob_path(digest), 0)
    result = run_as_other(others_tree, '-i', 'app:1.0')
    assert result.status == 1 and 'app@' + digest in result.said
    assert tags(others_tree, 'app') == ['1.0', '2.0']
    result = run_as_other(others_tree, '-i', 'app:2.0')
    assert result.status == 0, result.said
    assert tags(others_tree, 'app') == ['1.0'] and not has_blob(others_tree, digest)


def test_what_may_not_be_removed_is_named_and_its_repository_left(others_tree):
    digest = current(others_tree, 'app', '1.0')
    locked = others_tree.repo('app', '_manifests', 'tags')
    os.chmod(locked, 0o500)
    result = run_as_other(others_tree, '-i', 'app:1.0', '-i', 'team/other')
    assert result.status == 3
    assert os.path.join(locked, '1.0') in result.said and 'Permission denied' in result.said
    # The image is left as it stands, the other repository is gone.
    assert os.path.exists(others_tree.revision_link('app', digest))
    assert all(has_blob(others_tree, data) for data in [digest, b'base', b'app:1.0'])
    assert not os.path.exists(others_tree.repo('team/other'))
    assert not has_blob(others_tree, b'team/other:1.0')
    # The summary counts what really went.
    assert 'Deleted 1 repository, 1 tag, 1 manifest, ' in result.said.splitlines()[-1]
    # When the cause is gone, the rest can be deleted.
    os.chmod(locked, 0o700)
    for request in [['-i', 'app:1.0'], ['-u', '-i', 'app']]:
        result = run_as_other(others_tree, *request)
        assert result.status == 0, result.said
    assert tags(others_tree, 'app') == ['2.0'] and not has_blob(others_tree, b'app:1.0')


@pytest.mark.parametrize('what', ['_manifests/revisions/sha256', '_layers/sha256', 'blob'])
def test_a_removal_that_fails_later_is_named(others_tree, what):
    if what == 'blob':
        locked = os.path.dirname(os.path.dirname(others_tree.blob_path(digest_of(b'app:1.0'))))
    else:
        locked = others_tree.repo('app', *what.split('/'))
    os.chmod(locked, 0o500)
    result = run_as_other(others_tree, '-i', 'app:1.0')
    assert result.status == 3
    assert locked in result.said and 'Permission denied' in result.said
    assert tags(others_tree, 'app') == ['2.0']
    # Each layer that is linked still is stored still.
    layers = others_tree.repo('app', '_layers', 'sha256')
    for name in os.listdir(layers):
        if os.path.exists(os.path.join(layers, name, 'link')):
            assert has_blob(others_tree, 'sha256:' + name)


# --- closed ends ----------------------------------------------------------------------------------

@pytest.mark.parametrize('arguments', [['--help'], ['-V']])
def test_nobody_reads_standard_output(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = run(*arguments, stdout=writer)
    finally:
        os.close(writer)
    assert result.said == ''


@pytest.mark.parametrize('redirection', ['>&-', '2>&-', '<&- >&- 2>&-', '2>/dev/full',
                                         '2> >(true)'])
def test_nobody_reads_and_the_work_is_done_all_the_same(tree, redirection):
    result = run('-v', '-d', tree.root, '-i', 'app:1.0', command=[
        'bash', '-c', '"$@" ' + redirection, 'bash', sys.executable, SCRIPT])
    assert result.status == 0
    assert tags(tree, 'app') == ['2.0'] and not has_blob(tree, b'app:1.0')


# --- imported -------------------------------------------------------------------------------------

def test_importable_as_it_was(tree):
    for folder in [tree.root, tree.v2]:
        cleaner = script.RegistryCleaner(folder, dry_run=True)
        before = snapshot(tree.root)
        cleaner.delete_entire_repository('app')
        cleaner.delete_repository_tag('app', '1.0')
        cleaner.delete_untagged('app')
        cleaner.prune()
        assert snapshot(tree.root) == before

    cleaner = script.RegistryCleaner(tree.root)
    cleaner.delete_repository_tag('app', '1.0')
    assert tags(tree, 'app') == ['2.0'] and not has_blob(tree, b'app:1.0')
    tree.image('app', [b'untagged'])
    cleaner.delete_untagged('app')
    assert tags(tree, 'app') == ['2.0'] and not has_blob(tree, b'untagged')
    cleaner.delete_entire_repository('app')
    assert not os.path.exists(tree.repo('app'))
    os.makedirs(tree.repo('empty', 'folder'))
    cleaner.prune()
    assert not os.path.exists(tree.repo('empty'))
    assert tags(tree, 'team/other') == ['1.0']


def test_errors_of_the_imported_cleaner(tree):
    cleaner = script.RegistryCleaner(tree.root)
    before = snapshot(tree.root)
    for method, arguments in [
            (cleaner.delete_entire_repository, ['x']), (cleaner.delete_untagged, ['x']),
            (cleaner.delete_repository_tag, ['app', 'x']),
            (cleaner.delete_repository_tag, ['x', '1.0']),
            # What comes from a program is a name, and never a pattern or a path.
            (cleaner.delete_entire_repository, ['*']), (cleaner.delete_entire_repository, ['']),
            (cleaner.delete_entire_repository, ['../repositories/app']),
            (cleaner.delete_repository_tag, ['app', '*']),
            (cleaner.delete_repository_tag, ['app', '']),
            (cleaner.delete_repository_tag, ['app', '../tags/1.0']),
            (cleaner.delete_entire_repository, ['app:1.0']),
            (cleaner.delete_untagged, ['app:1.0'])]:
        with pytest.raises(script.RegistryCleanerError):
            method(*arguments)
    for folder in [tree.root + '/nowhere', os.path.dirname(tree.root)]:
        with pytest.raises(script.RegistryCleanerError):
            script.RegistryCleaner(folder)
    assert snapshot(tree.root) == before


# --- pruning --------------------------------------------------------------------------------------

def test_prune_alone_removes_empty_folders(tree):
    empty = [tree.repo('empty/deep'), os.path.join(tree.v2, 'blobs', 'sha256', 'zz'),
             tree.repo('app', '_manifests', 'tags', 'gone', 'index')]
    for folder in empty:
        os.makedirs(folder)
    images = [path for path in snapshot(tree.root) if path.endswith(('link', 'data'))]
    refused(tree, '-n', '-p', status=0)
    said = delete(tree, '-p')
    assert 'Deleted' in said.splitlines()[-1]
    assert not any(os.path.exists(folder) for folder in empty)
    assert not os.path.exists(tree.repo('empty'))
    assert [path for path in snapshot(tree.root) if path.endswith(('link', 'data'))] == images
    assert delete(tree, '-p').endswith('Nothing to delete\n')


def test_prune_keeps_what_the_registry_needs(tree):
    # A manifest that no tag names and that has no layers.
    tree.manifest('bare', encode({'manifests': []}))
    for folder in ['_layers', '_manifests/tags']:
        assert os.listdir(tree.repo('bare', folder)) == []
    delete(tree, '-p', '-i', 'app', '-i', 'team/other')
    for folder in ['_layers', '_manifests/tags', '_manifests/revisions']:
        assert os.path.isdir(tree.repo('bare', folder))
    delete(tree, '-p', '-i', 'bare')
    assert sorted(os.listdir(tree.v2)) == ['blobs', 'repositories']
    assert os.listdir(os.path.join(tree.v2, 'repositories')) == []


def test_an_upload_of_folders_in_folders(tree):
    """More of them than a function may call itself."""
    folder = tree.repo('app', '_uploads', 'deep')
    os.makedirs(folder)
    for _ in range(1200):
        folder += '/x'
        os.mkdir(folder)
    write(os.path.join(folder, 'data'), b'half a layer')
    delete(tree, '-i', 'app')
    assert not os.path.exists(tree.repo('app'))
