"""The command line as the user meets it: messages, exit status, and bad input of every kind.

Whatever comes in, there is a message and never a traceback, and nothing is lost.
"""

import contextlib
import fcntl
import io
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from typing import NamedTuple

import pytest

import delete_docker_registry_image as script
import model
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


def refused(tree, *arguments, status=1, run=call):
    """A run that has to fail and to leave everything as it is; returns what was said."""
    before = snapshot(tree.root)
    result = run('-d', tree.root, *arguments)
    assert result.status == status, result.said
    assert snapshot(tree.root) == before
    if status == 1:
        assert 'ERROR' in result.said and 'Nothing was deleted' in result.said, result.said
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
    assert 'Deleted tag app:1.0' in said
    assert 'sha256' not in said  # -v names manifests and blobs
    check_summary(said, 'Deleted 1 tag, 1 manifest, 3 blobs', tree)


def check_summary(said, counted, tree):
    """The last line says what went, how much it was, and of which registry."""
    last = said.splitlines()[-1]
    assert counted in last and tree.root in last
    assert '%d bytes freed' % freed_by_one_tag() in last or '1 tag' not in counted, last


def freed_by_one_tag():
    """The bytes of app:1.0 that no other image of the small registry uses."""
    with tempfile.TemporaryDirectory() as folder:
        tree = small_registry(folder)
        sizes = [os.path.getsize(tree.blob_path(current(tree, 'app', '1.0')))]
        return sum(sizes) + len(b'app:1.0') + len(encode({'for': 'app:1.0'}))


def test_a_dry_run_says_what_would_go(tree):
    said = refused(tree, '-n', '-i', 'app:1.0', status=0)
    assert 'Would delete tag app:1.0' in said and 'Deleted' not in said
    last = said.splitlines()[-1]
    assert 'Would delete 1 tag, 1 manifest, 3 blobs' in last and tree.root in last


def test_a_dry_run_and_a_run_name_the_same_things_in_the_same_words(tree):
    tree.tag('app', '1.0', tree.image('app', [b'pushed again']))
    tree.upload('team/other', 'upload')
    request = ['-v', '-p', '-i', 'app:1.0', '-i', 'team/other']
    dry = refused(tree, '-n', *request, status=0)
    done = delete(tree, *request)

    def named(said):
        return sorted(line.split(']  ')[1].replace('Would delete', 'Deleted')
                      for line in said.splitlines() if re.search('Would delete|Deleted', line))

    assert len(named(dry)) > 5
    assert [re.sub(r': [^:]* (would be )?freed.*', '', line) for line in named(dry)] == [
        re.sub(r': [^:]* freed.*', '', line) for line in named(done)]


def test_a_whole_repository_is_one_line(tree):
    said = delete(tree, '-i', 'app')
    assert 'Deleted repository app' in said and 'Deleted tag' not in said
    check_summary(said, 'Deleted 1 repository, 2 tags, 2 manifests, 6 blobs', tree)
    assert not os.path.exists(tree.repo('app'))
    assert tags(tree, 'team/other') == ['1.0']


def test_what_lies_everywhere_is_not_said_to_be_of_one_repository(tree):
    # Beside two folders of uploads.
    for folder in [tree.repo('one/two'), tree.repo('app', '_layers', 'sha512'),
                   os.path.join(tree.v2, 'blobs', 'sha256', 'zz')]:
        os.makedirs(folder)
    tree.blob(b'orphan')
    tree.layer('app', b'unused')
    for request, counted in [(['-p'], ['6 empty folders']), (['-g'], ['1 layer link', '2 blobs'])]:
        last = delete(tree, *request).splitlines()[-1]
        assert all(number in last for number in counted) and ' of app' not in last, last


def test_verbose_names_each_blob_and_its_size(tree):
    said = delete(tree, '-v', '-i', 'app:1.0')
    assert 'Deleted blob %s (7 bytes)' % digest_of(b'app:1.0') in said
    assert digest_of(b'base') not in said


def test_quiet_says_nothing_when_all_is_well(tree):
    """Warnings neither: cron sends no mail for a night without work."""
    assert delete(tree, '-q', '-n', '-i', 'app:1.0') == ''
    assert delete(tree, '-q', '-f', '-u', '-g', '-p', '-i', 'nothing*', '-x', 'none*') == ''
    assert delete(tree, '-q', '-i', 'app:1.0') == ''
    assert tags(tree, 'app') == ['2.0']


def test_quiet_prints_errors_alone(tree):
    said = refused(tree, '-q', '-f', '-i', 'nothing', '-i', 'no*')
    assert 'No repository' in said
    assert all(line.startswith('ERROR') for line in said.splitlines()), said


def test_nothing_to_delete(tree):
    said = delete(tree, '-u', '-i', 'app')
    assert 'Nothing to delete' in said.splitlines()[-1]


def test_force_is_accepted_and_has_no_effect(tree):
    said = delete(tree, '-f', '-i', 'app:1.0')
    assert 'WARNING' in said and 'no effect' in said
    assert tags(tree, 'app') == ['2.0']


OPTIONS = ['-i', '-x', '-u', '-g', '-p', '-l', '-n', '-d', '-j', '-v', '-q', '-V', '-h', '-f',
           '--keep-last', '--older-than', '--by', '--allow-remove-all', '--save', '--check',
           '--read-only-registry', '--json']


def test_help_fits_in_80_columns():
    for columns in ['80', '200']:
        help = run('--help', environment={'COLUMNS': columns})
        assert help.status == 0 and help.said == ''
        for option in OPTIONS:
            assert re.search(r'^  %s\b' % option, help.out, re.MULTILINE), option
        # Whose images cannot be deleted from here.
        assert 'Harbor' in help.out and 'GitLab' in help.out and 'OpenShift' in help.out
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
        assert message in refused(tree, '-i', image)
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


@pytest.mark.parametrize('image, nearest', [
    ('ap', 'app'), ('apps:1.0', 'app'), ('team/othre', 'team/other'), ('team-other', 'team/other'),
    ('localhost:5000/team/othr', 'team/other'), ('app:1.00', '1.0'), ('app:v2.0', '2.0')])
def test_a_mistyped_name_is_answered_with_the_nearest(tree, image, nearest):
    for option in ['-i', '-x']:
        said = refused(tree, '-i', 'app', option, image)
        assert re.search(r"(?<![\w./])%s(?![\w/]|\.\w)" % re.escape(nearest),
                         said.replace("'%s'" % image, '')), said


def test_a_prefix_is_answered_with_what_lies_below_it(tree):
    for image in ['team', 'team:1.0']:
        assert 'team/other' in refused(tree, '-i', image)
    for number in range(300):
        os.makedirs(tree.repo('team/%d' % number, '_layers'))
    assert len(refused(tree, '-i', 'team')) < 2000


def test_names_are_lower_case(tree):
    for image, exists in [('App', 'app'), ('Team/Other:1.0', 'team/other'),
                          ('LOCALHOST:5000/APP', 'app')]:
        said = refused(tree, '-i', image, status=2)
        assert 'lower case' in said and re.search(r'\b%s\b' % exists, said)


def test_images_follow_their_option_and_patterns_are_quoted(tree):
    """What a shell makes of `-i *`."""
    for arguments in [['-i', 'app', 'team', 'setup.cfg'], ['app'], ['-n', 'app:1.0']]:
        said = refused(tree, *arguments, status=2)
        assert 'follow -i' in said and 'quote' in said


def test_a_bare_digest(tree):
    digest = current(tree, 'app', '1.0')
    before = snapshot(tree.root)
    for image in [digest, '@' + digest]:
        result = call('-d', tree.root, '-i', image)
        assert result.status in (1, 2) and "-i '*@%s'" % digest in result.said
    assert snapshot(tree.root) == before
    delete(tree, '-i', '*@' + digest)
    assert tags(tree, 'app') == ['2.0']


# --- usage errors ---------------------------------------------------------------------------------

@pytest.mark.parametrize('image', [
    '', ' ', '/', '.', '..', '../..', 'app/..', '../app', 'app/../team/other', './app', 'app/.',
    '/app', '/etc/passwd', 'app/', 'app//b', '//app', 'app\n', '\napp', 'app\n/b', 'app:1.0\n',
    'App', '_app', '-app', 'app-', 'app..b', 'app b', 'app/_manifests', '_layers', 'a' * 256,
    ':', ':1.0', 'app:', 'app:/', 'app:..', 'app:.hidden', 'app:-x', 'app:a b', 'app:a/../b',
    'app:' + 'x' * 129, 'app:1.0:2.0', 'app\u00e9', 'app:\u00e9', 'app:@eaDir', 'app:#recycle',
    '@', '@' + ABSENT, 'app@', 'app@sha256', 'app@sha256:', 'app@sha256:../../..',
    'app@sha256:' + '0' * 63, 'app@sha256:' + '0' * 65, 'app@sha256:' + 'A' * 64,
    'app@sha512:' + '0' * 64, 'app@md5:' + '0' * 32, 'app@' + ABSENT + '\n',
    'app@../../../etc', 'app@%s:1.0' % ABSENT, 'app@*', 'app:@' + ABSENT, 'app:1.0@',
    'app:1.0@sha256', 'app:1.0@sha256:../../..', 'app:../..@' + ABSENT,
])
def test_what_is_no_image_is_a_usage_error(tree, image):
    # Also when it comes second, after one that is right.
    for option in ['-i', '-x']:
        said = refused(tree, '-i', 'app:1.0', option, image, status=2)
        assert 'usage:' in said and len(said.splitlines()[-1]) > 30


@pytest.mark.parametrize('pattern', ['[z-a]', 'app:[z-a]', '*\n', '[', '[]', '../*', '/*', '*/..',
                                     '*:', '*@', 'a[!', 'app:[[:x:]]', '[\\', '*' * 300])
def test_strange_patterns_select_nothing(tree, pattern):
    before = snapshot(tree.root)
    result = call('-d', tree.root, '-i', pattern)
    assert result.status in (0, 1, 2) and result.said
    assert snapshot(tree.root) == before


def test_arguments_that_are_not_utf8(tree):
    before = snapshot(tree.root)
    for image, status in [(b'app\xff', 2), (b'app:\xff', 2), (b'app@\xff', 2), (b'*\xff', 0)]:
        for locale in ['C', 'C.UTF-8']:
            result = run('-d', tree.root, '-i', image, environment={'LC_ALL': locale})
            assert result.status == status and result.said
    assert snapshot(tree.root) == before


@pytest.mark.parametrize('arguments', [[], ['-v'], ['-n'], ['-f'], ['-x', 'app'],
                                       ['--allow-remove-all']])
def test_nothing_to_do_is_a_usage_error(tree, arguments):
    assert 'image is required' in refused(tree, *arguments, status=2)


@pytest.mark.parametrize('arguments', [
    ['-u', '-i', 'app:1.0'], ['-u', '-i', 'app@' + ABSENT], ['-u', '-i', 'app', '-i', 'app:2.0'],
    ['-u', '-i', 'app:*'], ['-u', '-i', 'app:/1.0/'], ['--unknown'], ['-i'], ['-d'], ['-x'],
    ['-i', 'app', '-j', 'x'], ['-i', 'app', '-j', '-1'], ['-i', 'app:*', '--by', 'size'],
    ['-i', 'app', '--json=yes'],
])
def test_other_usage_errors(tree, arguments):
    assert 'usage:' in refused(tree, *arguments, status=2)


@pytest.mark.parametrize('arguments', [
    ['--untag', '-i', 'app'], ['--imag', 'app'], ['--exclud', 'app', '-i', 'app'],
    ['--dry', '-i', 'app'], ['--garb'], ['--prun'], ['--allow', '-i', '*'], ['--lis'],
    ['--keep', '1', '-i', 'app:*'], ['--older', '1h', '-i', 'app:*'], ['--read-only', '-i', 'app']])
def test_options_are_not_abbreviated(tree, arguments):
    refused(tree, *arguments, status=2)


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


@pytest.mark.parametrize('address', [
    'docker://localhost:5000/app:1.0', 'docker://registry.example.com/app:1.0', 'docker://app:1.0',
    'oci://localhost:5000/app:1.0', 'localhost:5000/v2/app/manifests/1.0',
    'http://localhost:5000/v2/app/manifests/1.0', '/v2/app/manifests/1.0',
    'https://registry.example.com/v2/app/tags/list', 'https://registry.example.com/app:1.0',
    'localhost:5000/app/manifests/1.0', 'http://localhost:5000/v2/_catalog'])
def test_an_address_is_understood_or_it_is_said_what_to_leave_out(tree, address):
    before = snapshot(tree.root)
    result = call('-d', tree.root, '-i', address)
    if result.status == 0:
        assert (tags(tree, 'app'), tags(tree, 'team/other')) == (['2.0'], ['1.0'])
    else:
        assert result.status in (1, 2) and snapshot(tree.root) == before
        assert re.search("leave out|without|-i 'app|-i app|NAME:TAG", result.said), result.said


def test_a_tag_and_its_digest(tree):
    """As tools print what they pulled."""
    digest, other = current(tree, 'app', '1.0'), current(tree, 'app', '2.0')
    for image in ['app:1.0@' + other, 'app:1.0@' + ABSENT]:
        said = refused(tree, '-i', image)
        assert 'app' in said and '1.0' in said and digest in said  # what it stands for now
        refused(tree, '-i', 'app', '-x', image)
    refused(tree, '-i', 'app:3.0@' + digest)
    delete(tree, '-i', 'app', '-x', 'app:2.0@' + other)
    assert tags(tree, 'app') == ['2.0']
    delete(tree, '-i', 'localhost:5000/app:2.0@' + other)
    assert not os.path.exists(tree.repo('app'))


# --- regular expressions --------------------------------------------------------------------------

@pytest.fixture
def versions(tmp_path):
    tree = Tree(tmp_path)
    for tag in ['v1.0', 'v1.10', 'v2.0', 'v2.0-rc1', 'xv1.0', 'latest', '1.0']:
        tree.tag('app', tag, tree.image('app', [b'base', tag.encode()]))
    tree.tag('web', 'v1.0', tree.image('web', [b'base', b'web']))
    return tree


@pytest.mark.parametrize('images, gone', [
    (['-i', r'app:/v[0-9]+\.[0-9]+/'], ['v1.0', 'v1.10', 'v2.0']),
    (['-i', 'app:/v1/'], []),                   # matched whole
    (['-i', 'app:/v1.*/'], ['v1.0', 'v1.10']),
    (['-i', 'app:/latest|v2.0/'], ['latest', 'v2.0']),      # and each of its branches
    (['-i', 'app:/(?:x)?v1[.]0/'], ['v1.0', 'xv1.0']),
    (['-i', 'localhost:5000/app:/v1.*/'], ['v1.0', 'v1.10']),
    (['-i', 'app:/.*/', '-x', r'*:/v[0-9]+\.[0-9]+/'], ['1.0', 'latest', 'v2.0-rc1', 'xv1.0']),
    (['-i', r'*:/v\d\.\d{2}/'], ['v1.10']),
    (['-i', 'app:/V1.0/'], []),
    (['-i', 'app:/(?i)LATEST/'], ['latest']),
    (['-i', 'app:/@|:/'], []),
    (['-i', 'ap?:/v2.0-rc\\d/'], ['v2.0-rc1']),
    (['-i', 'app:/$/'], []), (['-i', 'app:/x?/'], []), (['-i', 'app:/nothing/'], []),
])
def test_tags_by_a_regular_expression(versions, images, gone):
    everything = tags(versions, 'app')
    delete(versions, *images)
    assert tags(versions, 'app') == sorted(set(everything) - set(gone))
    assert tags(versions, 'web') == ['v1.0']


@pytest.mark.parametrize('expression', ['(', '[', 'v1)', '*', 'a{2,1}', '(?P<x', '\\', '(?<=a*)b'])
def test_an_expression_that_is_none(tree, expression):
    try:
        re.compile(expression)
    except re.error as error:
        position = error.pos
    for option in ['-i', '-x']:
        said = refused(tree, '-i', 'app:1.0', option, 'app:/%s/' % expression, status=2)
        assert expression in said
        if position is not None:
            assert re.search(r'\b(%d|%d)\b' % (position, position + 1), said) or '^' in said


@pytest.mark.parametrize('image', ['app:/1.0', 'app:1.0/', 'app://', 'app:/', '/app/:1.0',
                                   'app:/1.0/x', '/1.0/'])
def test_what_is_not_between_slashes(tree, image):
    refused(tree, '-i', image, status=2)


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
        assert 'Nothing was deleted' in result.said
    assert snapshot(tmp_path) == before


def others(tree):
    """Folders of other software beside `docker`: git, mail, and a registry v1; what they hold."""
    for name in ['repositories/library/app/_index_images', 'repositories/library/app/tag_1.0',
                 'images/0123/layer', 'blobs/pack']:
        write(os.path.join(tree.root, name), b'precious')
    for name in ['repositories/empty/_layers', 'repositories/team/_manifests/tags', 'images/empty',
                 'blobs/sha256/aa', 'mail/new']:
        os.makedirs(os.path.join(tree.root, name))
    return {path: what for path, what in snapshot(tree.root).items()
            if not path.startswith('docker') and path != '.'}


@pytest.mark.parametrize('below', ['', 'docker', 'docker/registry'])
def test_other_folders_beside_the_registry_are_not_its(tree, below):
    before = others(tree)
    for name in ['repositories', 'blobs']:      # the same one level further in
        os.makedirs(os.path.join(tree.root, 'docker', name, 'empty'))
    os.makedirs(tree.repo('empty', '_layers'))
    folder = os.path.join(tree.root, below)
    for request in [['-p'], ['-g', '-p'], ['-p', '-i', 'app:1.0']]:
        assert call('-d', folder, *request).status == 0
    assert tags(tree, 'app') == ['2.0'] and not os.path.exists(tree.repo('empty'))
    after = snapshot(tree.root)
    assert {path: after[path] for path in before} == before
    assert 'docker/repositories/empty' in after and 'docker/blobs/empty' in after


def test_other_folders_are_no_registry(tree):
    """Nothing is looked for in `repositories` that is a registry v1's, or somebody else's."""
    others(tree)
    shutil.rmtree(os.path.join(tree.root, 'docker'))
    for request in [['-p'], ['-g'], ['-g', '-p'], ['-i', 'library'], ['-i', '*'], ['-n', '-p']]:
        assert tree.root in refused(tree, *request)


@pytest.mark.parametrize('name', ['v2', 'moved'])
def test_the_folder_itself_when_it_holds_only_what_is_a_registrys(tree, name):
    moved = os.path.join(tree.root, name)
    os.rename(tree.v2, moved)
    shutil.rmtree(os.path.join(tree.root, 'docker'))
    assert call('-d', moved, '-i', 'app:1.0').status == 0
    assert os.listdir(os.path.join(moved, 'repositories/app/_manifests/tags')) == ['2.0']


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
    'null': b'null',
    'text': b'"layers"',
    'a number': b'5',
    'empty': b'',
    'no JSON': b'<html>',
    'half of it': b'{"layers": [',
    'more than one': b'{}{}',
    'no text': b'\xff\xfe{}',
    'nested lists': b'[' * 100000 + b']' * 100000,
    'a byte too many': encode({'layers': []}).ljust(4 * 2 ** 20 + 1),
}
# Registries accept documents that name nothing, and whoever may push chooses what stands in one.
NAMES_NOTHING = {
    'nothing known': b'{}',
    'only a version': encode({'schemaVersion': 2}),
    'layers are a number': encode({'layers': 5}),
    'layers are null': encode({'layers': None, 'config': None, 'manifests': None}),
    'layers are an object': encode({'layers': {'digest': ABSENT}}),
    'a layer is text': encode({'layers': [ABSENT]}),
    'a layer without a digest': encode({'layers': [{'size': 1}]}),
    'a digest is a number': encode({'layers': [{'digest': 5}]}),
    'a digest is null': encode({'layers': [{'digest': None}]}),
    'a digest is a list': encode({'layers': [{'digest': [ABSENT]}]}),
    'a digest leads outside': encode({'layers': [{'digest': OUTSIDE}]}),
    'a digest with a newline': encode({'layers': [{'digest': ABSENT + '\n'}]}),
    'a digest with half a character': b'{"layers": [{"digest": "sha256:\\ud800"}]}',
    'the config is text': encode({'config': ABSENT, 'layers': []}),
    'the config leads outside': encode({'config': {'digest': OUTSIDE}, 'layers': []}),
    'a child leads outside': encode({'manifests': [{'digest': OUTSIDE}]}),
    'children are text': encode({'manifests': 'all'}),
    'a subject is text': encode({'layers': [], 'subject': 'x'}),
    'a subject leads outside': encode({'layers': [], 'subject': {'digest': OUTSIDE}}),
    'a subject is a list': encode({'subject': [{'digest': ABSENT}]}),
    'an old layer leads outside': encode({'fsLayers': [{'blobSum': OUTSIDE}]}),
    'old layers are numbers': encode({'fsLayers': [1, 2]}),
    'an artifact leads outside': encode({'blobs': [{'digest': OUTSIDE}]}),
    'blobs are text': encode({'blobs': 'x'}),
    'two kinds': encode({'layers': [], 'manifests': 5}),
    'a large number': b'{"size": ' + b'9' * 10000 + b', "rate": 1e999, "none": NaN}',
}


def each_of(contents):
    return pytest.mark.parametrize('content', list(contents.values()), ids=list(contents))


def add_odd(tree, content):
    """Put an odd image beside the others; its digest."""
    tree.layer('app', b'layer of the odd image')
    digest = tree.manifest('app', content)
    tree.tag('app', 'odd', digest)
    return digest


@each_of(NOT_READABLE)
def test_a_repository_with_an_unreadable_manifest_is_left_as_it_is(tree, content):
    digest = add_odd(tree, content)
    said = refused(tree, '-i', 'app:1.0')
    assert 'app@' + digest in said and '-x' in said     # which leaves it out of the run
    assert 'app@' + digest in refused(tree, '-n', '-i', 'app:1.0')


def test_the_other_repositories_go_on(tree):
    digest = add_odd(tree, b'[]')
    tree.image('app', [b'untagged'])
    before = snapshot(tree.repo('app'))
    result = call('-d', tree.root, '-i', 'app:1.0', '-i', 'team/other', '--json')
    assert result.status == 3 and 'app@' + digest in result.said
    assert [one['repository'] for one in json.loads(result.out)['skipped']] == ['app']
    assert digest in json.loads(result.out)['skipped'][0]['error']
    assert not os.path.exists(tree.repo('team/other')) and not has_blob(tree, b'team/other:1.0')
    assert snapshot(tree.repo('app')) == before and has_blob(tree, b'untagged')
    # Left out by the user it is no reason for a complaint, and neither when it would lose nothing.
    tree.tag('web', '1.0', tree.image('web', [b'base', b'web']))
    assert digest not in delete(tree, '-u', '-i', '*', '-x', 'app')
    delete(tree, '-i', 'web:1.0')
    assert snapshot(tree.repo('app')) == before


def test_an_unreadable_manifest_that_stays_counts_in_every_kind_of_run(tree):
    digest = add_odd(tree, b'[]')
    tree.image('app', [b'untagged'])
    for request in [['-i', 'app:[12].0'], ['-u', '-i', '*'], ['-u'],
                    ['-i', 'app@' + current(tree, 'app', '1.0')]]:
        assert 'app@' + digest in refused(tree, *request)


@each_of(NOT_READABLE)
def test_an_unreadable_manifest_can_be_deleted(tree, content):
    digest = add_odd(tree, content)
    # The command that the message gives, as it is.
    command = re.search(r'delete_docker_registry_image( -i \S+)+',
                        refused(tree, '-i', 'app:1.0')).group()
    said = delete(tree, *shlex.split(command)[1:])
    assert digest in said
    assert tags(tree, 'app') == ['1.0', '2.0'] and not has_blob(tree, digest)
    # What layers it had nobody knows, so they are left.
    assert '-g' in said and has_blob(tree, b'layer of the odd image')
    delete(tree, '-i', 'app:1.0')
    assert tags(tree, 'app') == ['2.0']
    delete(tree, '-g')
    assert not has_blob(tree, b'layer of the odd image')


@each_of(dict(NOT_READABLE, **NAMES_NOTHING))
def test_an_odd_manifest_elsewhere_does_not_matter(tree, content):
    digest = add_odd(tree, content)
    delete(tree, '-i', 'team/other:1.0')
    assert not os.path.exists(tree.repo('team/other')) and has_blob(tree, digest)


@each_of(NAMES_NOTHING)
def test_a_manifest_that_names_nothing_stops_nothing(tree, content):
    digest = add_odd(tree, content)
    delete(tree, '-i', 'app:1.0')
    assert tags(tree, 'app') == ['2.0', 'odd'] and has_blob(tree, digest)
    assert model.pull(tree.v2, 'app', current(tree, 'app', '2.0'))[1]
    delete(tree, '-g')
    assert tags(tree, 'app') == ['2.0', 'odd'] and has_blob(tree, digest)
    delete(tree, '-i', 'app:odd')
    assert tags(tree, 'app') == ['2.0'] and not has_blob(tree, digest)


@pytest.mark.parametrize('depth', [900, 3000, 9000, 100000])
def test_a_deeply_nested_manifest_never_stops_the_others(tree, depth):
    """Registries read some thousand levels."""
    for opened, closed in [(b'[', b']'), (b'{"x":', b'}')]:
        digest = add_odd(tree, b'{"layers": [], "x": %s1%s}' % (opened * depth, closed * depth))
    tree.layer('team/other', b'unused')
    result = call('-d', tree.root, '-g', '-i', 'team/other:1.0')
    assert result.status in (0, 3), result
    assert not os.path.exists(tree.repo('team/other', '_manifests')) and has_blob(tree, digest)
    assert not has_blob(tree, b'unused')


def make_wrong_hash(tree, digest):
    write(tree.blob_path(digest), encode({'layers': [], 'another': 'image'}))


def make_empty_blob(tree, digest):
    write(tree.blob_path(digest), b'')


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


@pytest.mark.parametrize('damage', [make_wrong_hash, make_bad_sector, make_empty_blob,
                                    make_huge, make_folder, make_dangling_data,
                                    make_dangling_folder])
def test_a_manifest_that_the_disk_does_not_give(tree, damage):
    digest = current(tree, 'app', '2.0')
    damage(tree, digest)
    said = refused(tree, '-i', 'app:1.0')
    assert digest in said and '-x' in said
    assert 'empty' in said or damage is not make_empty_blob
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
    for request in [['-u', '-i', 'app'], ['-i', 'app:1.0']]:
        said = delete(tree, *request)
        assert 'app:2.0' in said
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
    delete(tree, '-g', '-p', '-i', 'app:1.0')
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
    go('-n', '-v', '-i', 'app:*', '-p')
    go('-v', '-i', 'app:tag*')      # such a folder is no tag
    assert tags(tree, 'app') == ['2.0', 'tag' + name]
    go('-v', '-u', '-i', 'app')
    assert not has_blob(tree, b'odd tag') and has_blob(tree, b'app:2.0')
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
    """Nobody knows which of the two is meant; the message says how to tell."""
    link = tree.repo('app', '_manifests', 'tags', 'latest')
    for target in ['1.0', './1.0', tree.repo('app', '_manifests', 'tags', '1.0')]:
        os.symlink(target, link)
        for request in [['-i', 'app:1.0'], ['-i', 'app:latest'], ['-i', 'app'], ['-i', 'app:2.0']]:
            said = refused(tree, *request)
            assert link in said and 'tags/1.0' in said and 'copy' in said
        os.remove(link)
    delete(tree, '-i', 'app:1.0')
    assert tags(tree, 'app') == ['2.0'] and not has_blob(tree, b'app:1.0')


def test_a_repository_that_is_another_name_of_a_repository(tree):
    os.symlink('app', tree.repo('alias'))
    for request in [['-i', 'app'], ['-i', 'app:1.0'], ['-i', 'alias'], ['-i', 'alias:1.0']]:
        said = refused(tree, *request)
        assert tree.repo('alias') in said and tree.repo('app') in said
    os.remove(tree.repo('alias'))
    delete(tree, '-i', 'app:1.0')


def test_a_folder_that_is_its_own_ancestor_is_not_entered_twice(tree):
    os.symlink('.', tree.repo('team/here'))
    os.symlink('..', tree.repo('team/other/up'))
    delete(tree, '-i', 'app:1.0')
    assert tags(tree, 'app') == ['2.0']


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

ALL_KINDS = [['-i', 'app:1.0'], ['-i', 'app'], ['-u', '-i', 'app'], ['-u'], ['-g'],
             ['-i', '*', '--allow-remove-all']]


def test_a_registry_that_keeps_its_tags_in_a_database(tree):
    write(os.path.join(tree.root, 'docker/registry/lockfiles/database-in-use'), b'')
    for request in ALL_KINDS:
        said = refused(tree, *request)
        assert 'database' in said and 'GitLab' in said


def on_minio(tree):
    """The disk of a MinIO server: what is an object there is a folder with a file of its own."""
    for path, (kind, content, _) in snapshot(tree.v2).items():
        if kind == 'file':
            os.remove(os.path.join(tree.v2, path))
            write(os.path.join(tree.v2, path, 'xl.meta'), b'XL2 1   ' + content)


def test_the_disk_of_a_minio_server(tree):
    on_minio(tree)
    for request in ALL_KINDS + [['-p'], ['-g', '-p'], ['-n', '-i', 'app:1.0']]:
        said = refused(tree, *request)
        assert 'MinIO' in said


@pytest.mark.parametrize('left', [None, 'blobs', 'blobs/sha256', 'blobs/sha256/aa/empty'])
def test_half_a_store(tree, left):
    shutil.rmtree(os.path.join(tree.v2, 'blobs'))
    if left:
        os.makedirs(os.path.join(tree.v2, left))
    for request in ALL_KINDS + [['-p']]:
        assert 'mounted' in refused(tree, *request)


def test_a_store_without_a_revision_may_lack_blobs(tree):
    shutil.rmtree(os.path.join(tree.v2, 'blobs'))
    for repo in ['app', 'team/other']:
        shutil.rmtree(tree.repo(repo, '_manifests', 'revisions'))
    delete(tree, '-i', 'app')
    assert not os.path.exists(tree.repo('app'))


def kept_index(tree):
    tree.tag('app', 'multi', tree.index('app', [current(tree, 'app', '1.0')]))
    return ['-i', 'app@' + current(tree, 'app', '1.0')]


def another_run(tree):
    descriptor = os.open(tree.v2, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    tree.lock = descriptor      # closed with the test's process, at the latest
    return ['-i', 'app:1.0']


def an_existing_archive(tree):
    write(tree.root + '.tar', b'precious')
    return ['-i', 'app:1.0', '--save', tree.root + '.tar']


def nothing_is_stored(tree):
    shutil.rmtree(os.path.join(tree.v2, 'blobs'))
    return ['-i', 'app:1.0']


def a_database(tree):
    write(os.path.join(tree.root, 'docker/registry/lockfiles/database-in-use'), b'')
    return ['-i', 'app:1.0']


def two_names(tree):
    os.symlink('app', tree.repo('alias'))
    return ['-i', 'app']


def damage(tree):
    add_odd(tree, b'')
    return ['-i', 'app:1.0']


def no_registry(tree):
    os.rename(os.path.join(tree.root, 'docker'), os.path.join(tree.root, 'elsewhere'))
    return ['-i', 'app:1.0']


REFUSALS = {
    'a missing repository': lambda tree: ['-i', 'nothing'],
    'a missing tag': lambda tree: ['-i', 'app:nothing'],
    'a missing digest': lambda tree: ['-i', 'app@' + ABSENT],
    'another digest': lambda tree: ['-i', 'app:1.0@' + ABSENT],
    'a missing exclusion': lambda tree: ['-i', 'app', '-x', 'ap'],
    'a missing exclusion with -g': lambda tree: ['-g', '-x', 'app:3.0'],
    'all at once': lambda tree: ['-i', '*'],
    'a kept index': kept_index, 'another run': another_run, 'an archive': an_existing_archive,
    'half a store': nothing_is_stored, 'a database': a_database, 'two names': two_names,
    'damage': damage, 'no registry': no_registry,
}


@pytest.mark.parametrize('name', list(REFUSALS))
def test_every_refusal_says_that_nothing_was_deleted(tree, name):
    request = REFUSALS[name](tree)
    said = refused(tree, *request)
    quiet = refused(tree, '-q', *request)
    assert 'Nothing was deleted' in quiet
    assert all(line.startswith('ERROR') for line in quiet.splitlines()), quiet
    result = call('-d', tree.root, '--json', *request)
    found = json.loads(result.out)
    assert result.status == 1 and found['error']
    assert 'Nothing was deleted' in found['error'] or 'Nothing was deleted' in result.said
    assert found['error'].splitlines()[0] in said
    if hasattr(tree, 'lock'):
        os.close(tree.lock)


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
# user may be unable to read the script or this Python. Registries that other tests run as root at
# this moment may not be looked into, which would be a refusal: so it looks only where asked to.
AS_OTHER = """
import concurrent.futures, ctypes, difflib, fcntl, fnmatch, gettext, hashlib, json, locale, os
import signal, sys, tarfile
sys.path.insert(0, %r)
import delete_docker_registry_image as script
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(%d)
    os.setuid(%d)
if not %r:
    script.refuse_running_registry = lambda *_: None
sys.exit(script.main(sys.argv[1:]))
"""


def run_as_other(tree, *arguments, look=False):
    code = AS_OTHER % (os.path.dirname(SCRIPT), NOBODY, NOBODY, look)
    return run('-d', tree.root, *arguments, command=[sys.executable, '-c', code], cwd='/')


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
    assert 'ERROR' in result.said and 'Nothing was deleted' in result.said
    assert snapshot(others_tree.root) == before


@pytest.mark.parametrize('name', ['', 'docker', 'docker/registry', 'docker/registry/v2'])
def test_a_folder_that_may_not_be_entered_is_not_said_to_be_missing(others_tree, name):
    path = os.path.join(others_tree.root, name)
    os.chmod(path, 0)
    for request in [['-i', 'app:1.0'], ['-n', '-i', 'app:1.0'], ['-l'], ['-g']]:
        result = run_as_other(others_tree, *request)
        assert result.status == 1, result
        assert 'Permission denied' in result.said and 'un as root' in result.said
        assert 'not exist' not in result.said and 'No registry' not in result.said
    os.chmod(path, 0o700)


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
    before = snapshot(others_tree.repo('app'))
    locked = others_tree.repo('app', '_manifests', 'tags')
    os.chmod(locked, 0o500)
    result = run_as_other(others_tree, '-i', 'app:1.0', '-i', 'team/other')
    assert result.status == 3
    assert os.path.join(locked, '1.0') in result.said and 'Permission denied' in result.said
    # The repository is exactly as it was, the other one is gone.
    assert {path: what[:2] for path, what in snapshot(others_tree.repo('app')).items()} == {
        path: what[:2] for path, what in before.items()}
    assert model.pull(others_tree.v2, 'app', current(others_tree, 'app', '1.0'))[1]
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


@pytest.mark.parametrize('what', ['_manifests/tags', '_manifests/revisions/sha256',
                                  '_layers/sha256'])
def test_a_repository_of_which_something_cannot_go_is_as_it_was(others_tree, what):
    locked = others_tree.repo('app', *what.split('/'))
    os.chmod(locked, 0o500)
    before = snapshot(others_tree.root)
    result = run_as_other(others_tree, '-i', 'app:1.0')
    assert result.status in (1, 3), result
    assert locked in result.said and 'Permission denied' in result.said
    assert 'Nothing was deleted' in result.said and 'Deleted tag' not in result.said
    assert {path: what[:2] for path, what in snapshot(others_tree.root).items()} == {
        path: what[:2] for path, what in before.items()}


def test_a_blob_that_cannot_go_is_named(others_tree):
    locked = os.path.dirname(others_tree.blob_path(digest_of(b'app:1.0')))
    os.chmod(locked, 0o500)
    result = run_as_other(others_tree, '-i', 'app:1.0')
    assert result.status == 3
    assert locked in result.said and 'Permission denied' in result.said
    assert tags(others_tree, 'app') == ['2.0'] and has_blob(others_tree, b'app:1.0')
    os.chmod(locked, 0o700)
    # The next run tries again.
    assert run_as_other(others_tree, '-i', 'app:2.0').status == 0
    assert not has_blob(others_tree, b'app:1.0') and not os.path.exists(others_tree.repo('app'))


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
            # A missing tag is never the whole repository.
            (cleaner.delete_repository_tag, ['app', None]),
            (cleaner.delete_repository_tag, ['app', '/.*/']),
            (cleaner.delete_repository_tag, [None, '1.0']),
            (cleaner.delete_entire_repository, [None]), (cleaner.delete_untagged, [None]),
            (cleaner.delete_untagged, ['']), (cleaner.delete_untagged, ['*']),
            (cleaner.delete_repository_tag, ['app', '../tags/1.0']),
            (cleaner.delete_entire_repository, ['app:1.0']),
            (cleaner.delete_untagged, ['app:1.0'])]:
        with pytest.raises(script.RegistryCleanerError):
            method(*arguments)
    for folder in [tree.root + '/nowhere', os.path.dirname(tree.root)]:
        with pytest.raises(script.RegistryCleanerError):
            script.RegistryCleaner(folder)
    assert snapshot(tree.root) == before


def test_one_cleaner_serves_many_runs(tree):
    """Each sees what is on the disk by then, and an error ends only the one that it is of."""
    cleaner = script.RegistryCleaner(tree.root)
    for number in range(3):
        tree.tag('app', 'new', tree.image('app', [b'base', b'new %d' % number]))
        with pytest.raises(script.RegistryCleanerError):
            cleaner.delete_repository_tag('app', 'old')
        cleaner.delete_repository_tag('app', 'new')
        assert tags(tree, 'app') == ['1.0', '2.0'] and not has_blob(tree, b'new %d' % number)
    cleaner.delete_repository_tag('app', '1.0')
    cleaner.delete_repository_tag('app', '2.0')
    assert not os.path.exists(tree.repo('app')) and has_blob(tree, b'base')
    tree.tag('app', '1.0', tree.image('app', [b'base', b'again']))
    cleaner.delete_entire_repository('team/other')
    cleaner.prune()
    assert model.pull(tree.v2, 'app', current(tree, 'app', '1.0'))[1]
    # The store is free for the next process.
    assert run('-d', tree.root, '-i', 'app:1.0').status == 0


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


FOREIGN = ['@eaDir', '.~tmp~', '.stfolder', '#recycle', 'lost+found', '.snapshot', '.Trash-0']


def test_prune_leaves_the_folders_of_others(tree):
    """Those of NAS systems and copy tools lie everywhere, and are often empty."""
    places = ['', 'blobs', 'blobs/sha256', 'repositories', 'repositories/team', 'repositories/app',
              'repositories/app/_layers', 'repositories/app/_layers/sha256',
              'repositories/app/_manifests', 'repositories/app/_manifests/tags',
              'repositories/app/_manifests/tags/2.0', 'repositories/app/_uploads']
    theirs = [os.path.join(tree.v2, place, name) for place in places for name in FOREIGN]
    for folder in theirs:
        os.makedirs(folder)
    os.makedirs(tree.repo('empty/folder'))
    delete(tree, '-p', '-g', '-i', 'app:1.0')
    assert all(os.path.isdir(folder) for folder in theirs)
    assert tags(tree, 'app') == sorted(FOREIGN + ['2.0'])
    assert not os.path.exists(tree.repo('empty'))


@pytest.mark.parametrize('name', ['blobs', 'repositories', 'repositories/team', 'blobs/sha256/ff',
                                  'repositories/linked'])
def test_prune_leaves_the_empty_folder_that_a_link_leads_to(tmp_path, name):
    tree, elsewhere = Tree(tmp_path / 'registry'), tmp_path / 'elsewhere'
    path = os.path.join(tree.v2, name)
    elsewhere.mkdir()
    if os.path.isdir(path):
        os.rmdir(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.symlink(str(elsewhere), path)
    delete(tree, '-p')
    assert elsewhere.is_dir() and sorted(os.listdir(tree.v2)) == ['blobs', 'repositories']
    tree.tag('app', '1.0', tree.image('app', [b'base']))
    delete(tree, '-p', '-i', 'app')
    assert elsewhere.is_dir()


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


def test_folders_in_folders(tree):
    """More of them than a function may call itself: if they stay, that is said."""
    folder = tree.repo('app', '_uploads', 'deep')
    os.makedirs(folder)
    for _ in range(1200):
        folder += '/x'
        os.mkdir(folder)
    write(os.path.join(folder, 'data'), b'half a layer')
    result = run('-d', tree.root, '-i', 'app')
    gone = not os.path.exists(tree.repo('app'))
    subprocess.check_call(['rm', '-rf', tree.root])     # which pytest could not either
    assert (result.status, gone) == (0, True) or result.status == 3 and 'deep' in result.said
