"""The script on every Python from 3.6 on that this machine has, with each warning an error."""

import glob
import json
import os
import re
import subprocess

import pytest

from tree import Tree, snapshot

SCRIPT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                      'delete_docker_registry_image.py')
OLDEST = (3, 6)


def pythons():
    """{version: interpreter} of all that pyenv or PATH has, one of each version."""
    candidates = sorted(glob.glob(os.path.expanduser('~/.pyenv/versions/*/bin/python3')))
    for folder in os.get_exec_path():
        candidates += [path for path in sorted(glob.glob(os.path.join(folder, 'python3*')))
                       if re.fullmatch(r'python3(\.\d+)?', os.path.basename(path))]
    found = {}
    for path in candidates:
        try:
            version = subprocess.check_output(
                [path, '-c', 'import sys; print("%d.%d.%d" % sys.version_info[:3])'],
                stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=30).decode().strip()
        except (OSError, subprocess.SubprocessError):
            continue  # a shim of a version that is not installed
        if tuple(map(int, version.split('.'))) >= OLDEST:
            found.setdefault(version, path)
    return found


PYTHONS = pythons()


def test_there_is_a_python():
    assert PYTHONS


@pytest.fixture
def tree(tmp_path):
    """A shared layer, an image for two platforms, a tag that moved, and a nested repository."""
    tree = Tree(tmp_path / 'registry')
    for platform in ['1.0', '2.0']:
        children = [tree.image('team/app', [b'base', ('%s %s' % (platform, cpu)).encode()])
                    for cpu in ['amd64', 'arm64']]
        tree.tag('team/app', platform, tree.index('team/app', children))
    for build in [b'first', b'second']:
        tree.tag('team/app', 'nightly', tree.image('team/app', [b'base', build]))
    tree.tag('team/app/debug', '1.0', tree.image('team/app/debug', [b'base', b'symbols']))
    tree.tag('old', '1.0', tree.schema1('old', [b'base', b'old'], signatures=1))
    tree.image('team/app', [b'sha512'])
    return tree


@pytest.mark.parametrize('python', list(PYTHONS.values()), ids=list(PYTHONS))
def test_the_script_runs(python, tree, tmp_path):
    def run(*arguments, status=0):
        # The Python of a virtual environment must not load what was installed for another one.
        environment = {name: value for name, value in os.environ.items()
                       if not name.startswith(('PYTHON', 'REGISTRY_', 'COVERAGE_'))}
        done = subprocess.run([python, '-W', 'error', '-bb', SCRIPT] + list(arguments),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, env=environment)
        said = done.stderr.decode()
        assert done.returncode == status, said
        assert 'Warning' not in said and 'Traceback' not in said
        return done.stdout.decode() or said

    def delete(*arguments, status=0):
        return run('-d', tree.root, *arguments, status=status)

    def tags(repo):
        return sorted(os.listdir(tree.repo(repo, '_manifests', 'tags')))

    assert '--dry-run' in run('--help')
    assert 'usage:' in run('-i', '../app', status=2)
    assert "No repository 'x'" in delete('-i', 'x', status=1)

    before = snapshot(tree.root)
    listing = json.loads(delete('-l', '--json', '-i', 'team/*'))
    assert {line['repository'] for line in listing['images']} == {'team/app', 'team/app/debug'}
    assert 'team/app' in delete('-l') and delete('-l', '-q', '-i', 'old:*') == 'old:1.0\n'
    delete('--check')
    for rule in (['--by', 'created', '--keep-last', '2'], ['--by', 'version', '--keep-last', '1'],
                 ['--older-than', '30d', '-x', r'team/app:/\d+\.\d+/']):
        delete('-n', '-i', 'team/app:*', *rule)
    would = delete('-n', '-v', '-i', 'team/app:1.0', '-p')
    assert 'Would delete tag team/app:1.0' in would
    assert snapshot(tree.root) == before

    saved = str(tmp_path / 'saved.tar')
    assert 'Deleted tag team/app:1.0' in delete('-v', '-i', 'team/app:1.0', '-p', '--save', saved)
    assert tags('team/app') == ['2.0', 'nightly']
    assert 'Deleted 2 manifests' in delete('-u', '-i', 'team/app')
    delete('-i', 'old:*')
    delete('-i', 'team/app', '-p')
    assert tags('team/app/debug') == ['1.0']
    assert delete('-u', '-i', '*').endswith('Nothing to delete\n')
    # Signatures of the image that went before are left to -g.
    delete('-i', 'team/*', '-g', '-p', '--allow-remove-all')
    left = [path for path in snapshot(tree.v2) if path not in ('.', 'blobs', 'repositories')]
    assert left == []

    subprocess.check_call(['tar', '-xf', saved, '-C', tree.v2])
    assert tags('team/app') == ['1.0']
