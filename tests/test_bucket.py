"""A registry whose storage is a bucket, and the script on `rclone mount`, as the README shows it.

The bucket is moto's, on this machine: nothing here talks to anything but the loopback interface.
"""

import os
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import xml.etree.ElementTree
from typing import NamedTuple

import pytest

import faults
from registry import Registry, image_manifest, index_manifest
from tree import DAY, encode, set_age

SCRIPT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                      'delete_docker_registry_image.py')
# A proxy in the environment is no way to the loopback interface; with AWS_CA_BUNDLE rclone fails.
ENVIRONMENT = {name: value for name, value in os.environ.items()
               if not name.startswith(('REGISTRY_', 'RCLONE_', 'AWS_'))
               and not name.lower().endswith('_proxy')}


def why_not():
    """The reason why nothing can be mounted here, or None."""
    try:
        os.close(os.open('/dev/fuse', os.O_RDWR))
    except OSError as error:
        return '/dev/fuse cannot be used: %s' % error.strerror


pytestmark = pytest.mark.skipif(bool(why_not()), reason=str(why_not()))


# --- a bucket, and its mount ---------------------------------------------------------------------

class S3:
    """moto's server on a free port. Buckets hold {key: bytes}."""

    def __init__(self, folder):
        log = os.path.join(str(folder), 's3.log')
        with open(log, 'wb') as output:
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p', '0'],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=ENVIRONMENT)
        self.url = wait_for(lambda: re.search(r'http://127[.0-9]+:\d+', read(log)), self.process,
                            log).group(0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def request(self, method, path, data=None):
        # moto wants to know who asks, and does not look at the signature.
        headers = {'Content-Type': 'application/octet-stream', 'Authorization':
                   'AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request'}
        request = urllib.request.Request(self.url + '/' + path, data, headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as answer:
            return answer.read()

    def fill(self, bucket, objects=()):
        """Make a bucket."""
        self.request('PUT', bucket)
        for key, data in dict(objects).items():
            self.request('PUT', bucket + '/' + urllib.parse.quote(key), data)

    def keys(self, bucket):
        listing = xml.etree.ElementTree.fromstring(self.request('GET', bucket + '?list-type=2'))
        assert listing.findtext('{*}IsTruncated') == 'false'
        return {key.text for key in listing.iterfind('{*}Contents/{*}Key')}

    def objects(self, bucket):
        return {key: self.request('GET', bucket + '/' + urllib.parse.quote(key))
                for key in self.keys(bucket)}


class Mount:
    """A bucket as a folder. Not while the registry runs: rclone remembers what it has listed."""

    def __init__(self, s3, bucket, folder, *options):
        self.folder = str(folder)
        os.makedirs(self.folder, exist_ok=True)
        log = self.folder + '.rclone.log'
        with open(log, 'wb') as output:
            self.process = subprocess.Popen(
                ['rclone', '--config', '', 'mount', ':s3:' + bucket, self.folder,
                 '--s3-provider', 'Other', '--s3-endpoint', s3.url, '--s3-region', 'us-east-1',
                 '--s3-access-key-id', 'key', '--s3-secret-access-key', 'secret',
                 '--cache-dir', self.folder + '.cache', *options],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=ENVIRONMENT)
        wait_for(lambda: os.path.ismount(self.folder), self.process, log)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # What was killed leaves a mount that answers nothing, and that only goes lazily.
        lazily = ['-z'] if self.process.poll() is not None else []
        subprocess.run(['fusermount3', '-u'] + lazily + [self.folder], check=True)
        self.process.wait(10)


def wait_for(what, process, log):
    """Return what `what()` returns as soon as it is true, unless the process ends before."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and process.poll() is None:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    process.kill()
    process.wait()
    said = read(log)
    if 'fusermount' in said:
        pytest.skip('/dev/fuse cannot be used: ' + said.strip())
    raise RuntimeError(said)


def read(path):
    with open(path, errors='replace') as file:
        return file.read()


class Store:
    """A registry over a bucket, and the folder where it is mounted while the registry is down."""

    def __init__(self, s3, bucket, folder, objects=()):
        self.s3, self.bucket = s3, bucket
        s3.fill(bucket, objects)
        self.registry = Registry(
            os.path.join(str(folder), bucket),
            's3: {accesskey: key, secretkey: secret, region: us-east-1, regionendpoint: "%s", '
            'bucket: %s, secure: false, v4auth: true, rootdirectory: /}' % (s3.url, bucket))

    def keys(self):
        return {key.split('/v2/')[1] for key in self.s3.keys(self.bucket)}

    def mount(self):
        assert self.registry.host is None, 'the registry is running'
        return Mount(self.s3, self.bucket, self.registry.root)

    def path(self, key):
        return os.path.join(self.registry.v2, key)

    def script(self, *arguments, status=0, library='', **fault):
        """Run the script on the mount; return what it says. `fault` is as in faults.py."""
        environment = dict(ENVIRONMENT, LD_PRELOAD=library,
                           **faults.environment(self.registry.root, **fault))
        done = subprocess.run([sys.executable, SCRIPT, '-d', self.registry.root] + list(arguments),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, env=environment, timeout=30)
        said = done.stdout.decode()
        assert 'Traceback' not in said, said
        assert done.returncode == status or status is None, said
        return said


@pytest.fixture(scope='module')
def s3(tmp_path_factory):
    with S3(tmp_path_factory.mktemp('s3')) as server:
        yield server


# --- what is in it -------------------------------------------------------------------------------

def push(registry, repo, tag, *layers):
    """Push a multi-arch image: an index over one image for each platform."""
    children = []
    for platform in ('amd64', 'arm64'):
        blobs = list(layers) + [b'%s for %s' % (layers[-1], platform.encode())]
        config = encode({'created for': [repo, tag, platform]})
        for blob in blobs + [config]:
            registry.push_blob(repo, blob)
        children.append(image_manifest(config, blobs))
        registry.push_manifest(repo, children[-1])
    return registry.push_manifest(repo, index_manifest(children), tag)


def fill(registry):
    """Push a small store in which most is shared; return {reference: digests} of all of it."""
    push(registry, 'app', '1.0', b'base', b'one')
    registry.push_image('app', '2.0', [b'base', b'two'])
    old = registry.push_image('app', 'latest', [b'base', b'old'])
    registry.push_image('app', 'latest', [b'base', b'new'])
    registry.push_image('app/nested', '1.0', [b'base', b'one', b'nested'])
    registry.push_image('other', '1.0', [b'base', b'other'])
    untagged = registry.push_image('other', None, [b'base', b'untagged'])
    registry.push_image('team/gone', '1.0', [b'base', b'two', b'gone'])
    registry.push_blob('other', b'nothing uses this')
    return {(repo, reference): registry.pull(repo, reference) for repo, reference in [
        ('app', '1.0'), ('app', '2.0'), ('app', old), ('app', 'latest'), ('app/nested', '1.0'),
        ('other', '1.0'), ('other', untagged), ('team/gone', '1.0')]}


def needed(keys, images):
    """Those of `keys` that these images, {reference: digests}, are made of."""
    digests = {}
    for (repo, _), found in images.items():
        digests.setdefault(repo, set()).update(found)

    def is_needed(key):
        blob = re.match(r'blobs/(sha256)/../([0-9a-f]+)/data$', key)
        if blob:
            return any(':'.join(blob.groups()) in found for found in digests.values())
        repo, kind, rest = re.match(r'repositories/(.*?)/_(layers|manifests|uploads)/(.*)$',
                                    key).groups()
        tag = re.match('tags/([^/]+)/', rest)
        link = re.search('(sha256)/([0-9a-f]+)/link$', rest)
        return ((not tag or (repo, tag.group(1)) in images)
                and (not link or ':'.join(link.groups()) in digests.get(repo, ()))
                and kind != 'uploads')

    return {key for key in keys if is_needed(key)}


def check(store, images):
    """Assert that the registry serves just these images, each whole, and stores nothing else."""
    assert store.keys() == needed(store.keys(), images)
    with store.registry as registry:
        for repo, reference in images:
            assert registry.pull(repo, reference) == images[repo, reference]
        assert registry.catalog() == sorted({repo for repo, _ in images})
        for repo in registry.catalog():
            assert registry.tags(repo) == sorted(tag for name, tag in images if name == repo)


# --- tests ---------------------------------------------------------------------------------------

def test_a_tag_goes_and_then_all_that_nothing_uses(s3, tmp_path):
    store = Store(s3, 'deleting', tmp_path)
    with store.registry as registry:
        images = fill(registry)
        registry.begin_upload('app')
    pushed = store.keys()
    with store.mount():
        listed = store.script('-l')
        for repo, _ in images:
            assert re.search('^%s ' % repo, listed, re.M), listed
        store.script('-n', '-i', 'app:1.0', '-g', '-p')
        store.script('-n', '-u', '-g', '-p')
        assert store.keys() == pushed

        store.script('-i', 'app:1.0', '-i', 'team/gone')
        deleted = {name: images.pop(name) for name in [('app', '1.0'), ('team/gone', '1.0')]}
        assert pushed - store.keys() == needed(pushed, deleted) - needed(pushed, images)

        # Someone began to push a day ago, and gave up.
        for key in pushed:
            if '/_uploads/' in key:
                set_age(store.path(key), 2 * DAY)
        store.script('-u', '-g', '-p')
        images = {(repo, tag): found for (repo, tag), found in images.items() if ':' not in tag}
    check(store, images)


def test_what_was_saved_comes_back(s3, tmp_path):
    store = Store(s3, 'saved', tmp_path)
    with store.registry as registry:
        images = fill(registry)
    pushed = store.s3.objects(store.bucket)
    archive = str(tmp_path / 'saved.tar')
    with store.mount():
        store.script('-i', 'app', '--save', archive)
        assert store.keys() == {key for key in store.keys() if 'repositories/app/_' not in key}
        subprocess.run(['tar', '-xf', archive, '-C', store.registry.v2], check=True)
    assert store.s3.objects(store.bucket) == pushed
    check_whole(store, images)


DELETION = ['-i', 'app:1.*', '-i', 'team/gon?', '-g', '-p']
ASKED_FOR = [('app', '1.0'), ('team/gone', '1.0')]
PARTS = 3    # of a run; something happens at the beginning of each


class Filled(NamedTuple):
    """What the runs begin with that something happens to."""

    images: dict
    objects: dict
    library: str    # lets calls come to grief
    calls: int    # how many that change something the deletion makes, if nothing happens to it


@pytest.fixture(scope='module')
def filled(s3, tmp_path_factory):
    folder = tmp_path_factory.mktemp('filled')
    store, log, library = Store(s3, 'filled', folder), str(folder / 'calls'), faults.build(folder)
    with store.registry as registry:
        images = fill(registry)
    objects = s3.objects(store.bucket)
    with store.mount():
        store.script(*DELETION, library=library, log=log)
    return Filled(images, objects, library, len(read(log).splitlines()))


def after_the_next_run(store, images):
    """Assert that what a run left behind is whole, and that the next ones do all that is left."""
    check_whole(store, images)
    with store.mount():
        store.script(*DELETION)
        store.script('-u', '-g', '-p')
    check(store, {(repo, tag): found for (repo, tag), found in images.items()
                  if ':' not in tag and (repo, tag) not in ASKED_FOR})


def check_whole(store, images):
    """Assert that whatever the registry serves of these images is complete."""
    with store.registry as registry:
        for repo, reference in images:
            if (repo, reference) not in ASKED_FOR or not registry.missing(repo, reference):
                assert registry.pull(repo, reference) == images[repo, reference]


@pytest.mark.parametrize('part', range(PARTS))
def test_kill_in_the_middle(s3, filled, part, tmp_path):
    at = 1 + filled.calls * part // PARTS
    store = Store(s3, 'killed-%d' % part, tmp_path, filled.objects)
    with store.mount():
        store.script(*DELETION, status=faults.KILLED, library=filled.library, at=at, do='kill')
    after_the_next_run(store, filled.images)


@pytest.mark.parametrize('part', range(PARTS))
def test_the_mount_dies_in_the_middle(s3, filled, part, tmp_path):
    at = 1 + filled.calls * part // PARTS
    store = Store(s3, 'unmounted-%d' % part, tmp_path, filled.objects)
    with store.mount() as mount:
        # A little later, that is in the middle of a call, some of which are many requests.
        hook = '(sleep 0.01; kill -9 %d) &' % mount.process.pid
        store.script(*DELETION, status=None, library=filled.library, at=at, do='hook', hook=hook)
        mount.process.wait()
    after_the_next_run(store, filled.images)
