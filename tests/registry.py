"""A real registry (Debian's `docker-registry`) over a folder, and what clients do with it.

    with Registry(folder) as registry:           # started, and stopped at the end
        registry.push_image("app", "1.0", [b"a layer"])
        registry.pull("app", "1.0")      # everything, every digest verified, or PullError

skopeo pushes as users' clients do; over HTTP the tests make what skopeo cannot.
"""
import gzip
import io
import json
import os
import re
import subprocess
import tarfile
import time
import urllib.error
import urllib.request

from tree import (
    DOCKER_LIST, OCI_ARTIFACT, OCI_CONFIG, OCI_IMAGE, OCI_INDEX, OCI_LAYER, SCHEMA2,
    digest_of, encode,
)

MANIFEST_TYPES = (OCI_IMAGE, OCI_INDEX, OCI_ARTIFACT, SCHEMA2, DOCKER_LIST,
                  'application/vnd.docker.distribution.manifest.v1+prettyjws')

CONFIGURATION = """\
version: 0.1
log: {{level: info, accesslog: {{disabled: true}}}}
storage:
  {storage}
  delete: {{enabled: true}}
  redirect: {{disable: true}}
http: {{addr: "127.0.0.1:0", secret: none}}
validation: {{manifests: {{urls: {{allow: [".*"]}}}}}}
"""


class PullError(Exception):
    """The image is not there, or is not whole."""


# --- content: what images are made of ------------------------------------------------------------

def layer_of(text):
    """A layer as a builder makes it: a compressed tar with one file."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode='w') as archive:
        content = text.encode()
        member = tarfile.TarInfo('file.txt')
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), mtime=0)


def config_of(layers, **fields):
    """An image configuration over the compressed `layers`."""
    document = {'architecture': 'amd64', 'os': 'linux', 'config': {},
                'rootfs': {'type': 'layers',
                           'diff_ids': [digest_of(gzip.decompress(layer)) for layer in layers]}}
    document.update(fields)
    return encode(document)


def descriptor(data, media_type, algorithm='sha256', **fields):
    """How a manifest names `data`."""
    return dict(mediaType=media_type, digest=digest_of(data, algorithm), size=len(data), **fields)


def image_manifest(config, layers, **fields):
    """An OCI image manifest; `layers` are bytes, or descriptors made by hand."""
    described = [layer if isinstance(layer, dict) else descriptor(layer, OCI_LAYER)
                 for layer in layers]
    return encode(dict({'schemaVersion': 2, 'mediaType': OCI_IMAGE,
                        'config': descriptor(config, OCI_CONFIG), 'layers': described}, **fields))


def index_manifest(manifests, media_type=OCI_INDEX, child_type=OCI_IMAGE, **fields):
    """An OCI index, or a Docker manifest list; `manifests` are bytes or descriptors."""
    described = [child if isinstance(child, dict)
                 else descriptor(child, child_type, platform={'os': 'linux', 'architecture': name})
                 for name, child in zip(['amd64', 'arm64', 'riscv64', 's390x'] * len(manifests),
                                        manifests)]
    return encode(dict({'schemaVersion': 2, 'mediaType': media_type, 'manifests': described},
                       **fields))


class Layout:
    """An OCI layout in a folder, from which skopeo copies images."""

    def __init__(self, folder):
        self.folder = str(folder)
        self.entries = []
        os.makedirs(os.path.join(self.folder, 'blobs', 'sha256'))
        self._write('oci-layout', encode({'imageLayoutVersion': '1.0.0'}))

    def _write(self, path, data):
        with open(os.path.join(self.folder, path), 'wb') as file:
            file.write(data)

    def blob(self, data):
        self._write('blobs/' + digest_of(data).replace(':', '/'), data)
        return data

    def image(self, *texts, **fields):
        """Add an image with one layer for each text; return its manifest."""
        layers = [self.blob(layer_of(text)) for text in texts]
        return self.blob(image_manifest(self.blob(config_of(layers, **fields)), layers))

    def index(self, *manifests):
        return self.blob(index_manifest(manifests))

    def tag(self, tag, manifest):
        """Let `tag` name the manifest, and return the tag as skopeo wants it."""
        media_type = json.loads(manifest.decode())['mediaType']
        self.entries.append(descriptor(
            manifest, media_type, annotations={'org.opencontainers.image.ref.name': tag}))
        self._write('index.json', encode({'schemaVersion': 2, 'manifests': self.entries}))
        return 'oci:%s:%s' % (self.folder, tag)


# --- the registry --------------------------------------------------------------------------------

class Registry:
    """`docker-registry` over the folder `root`; each start takes a free loopback port.

    `storage` configures another driver; then `root` is the folder where its bucket is mounted.
    """

    def __init__(self, root, storage=None):
        self.root = str(root)
        self.v2 = os.path.join(self.root, 'docker', 'registry', 'v2')
        self.configuration = self.root + '.yml'
        self.log = self.root + '.log'
        self.host = None
        self._process = None
        os.makedirs(self.root, exist_ok=True)
        with open(self.configuration, 'w') as file:
            file.write(CONFIGURATION.format(
                storage=storage or 'filesystem: {rootdirectory: %s}' % self.root))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self, seconds=20):
        assert self._process is None, 'the registry runs already'
        # With AWS_CA_BUNDLE its s3 driver panics.
        environment = {name: value for name, value in os.environ.items() if name != 'AWS_CA_BUNDLE'}
        with open(self.log, 'wb') as log:
            self._process = subprocess.Popen(
                ['docker-registry', 'serve', self.configuration],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            with open(self.log, errors='replace') as log:
                listening = re.search(r"listening on [^ \"]*:(\d+)", log.read())
            if listening:
                self.host = '127.0.0.1:' + listening.group(1)
                if self.request('/v2/')[0] == 200:
                    return
            time.sleep(0.01)
        self.stop()
        with open(self.log, errors='replace') as log:
            raise RuntimeError('docker-registry does not start:\n' + log.read())

    def stop(self):
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = self.host = None

    def garbage_collect(self, *options):
        """Run the registry's own collector; return its output."""
        return _run('docker-registry', 'garbage-collect', *options, self.configuration)

    # -- on disk

    def path(self, *parts):
        """A path below V2; digests become `sha256/<hex>`."""
        return os.path.join(self.v2, *(part.replace(':', '/') for part in parts))

    def blob_path(self, digest):
        algorithm, hexadecimal = digest.split(':')
        return os.path.join(self.v2, 'blobs', algorithm, hexadecimal[:2], hexadecimal)

    def stored(self, *digests):
        """Those of `digests` whose blobs are on disk, in any form."""
        return {digest for digest in digests if os.path.lexists(self.blob_path(digest))}

    # -- HTTP

    def request(self, path, method='GET', data=None, headers=None):
        """One request; returns (status, headers, body) whatever the status is."""
        url = path if path.startswith('http:') else 'http://%s%s' % (self.host, path)
        request = urllib.request.Request(url, data=data, headers=headers or {}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()
        except urllib.error.URLError as error:
            return 0, {}, str(error).encode()

    def _change(self, expected, path, method, data=None, headers=None):
        status, answer, body = self.request(path, method, data, headers)
        if status != expected:
            raise RuntimeError('%s %s: %d %s' % (method, path, status, body.decode()))
        return answer

    def push_blob(self, repo, data, algorithm='sha256'):
        digest = digest_of(data, algorithm)
        location = self._change(202, '/v2/%s/blobs/uploads/' % repo, 'POST', b'')['Location']
        separator = '&' if '?' in location else '?'
        self._change(201, '%s%sdigest=%s' % (location, separator, digest), 'PUT', data,
                     {'Content-Type': 'application/octet-stream'})
        return digest

    def mount_blob(self, repo, digest, source):
        """Link a blob of the repository `source`, as clients do instead of sending it."""
        self._change(201, '/v2/%s/blobs/uploads/?mount=%s&from=%s' % (repo, digest, source),
                     'POST', b'')

    def begin_upload(self, repo, data=b'half of a layer'):
        """Send a part of a blob; what is returned goes to `finish_upload`."""
        location = self._change(202, '/v2/%s/blobs/uploads/' % repo, 'POST', b'')['Location']
        return self._change(202, location, 'PATCH', data,
                            {'Content-Type': 'application/octet-stream'})['Location']

    def finish_upload(self, location, data, whole):
        """Send the rest of a blob, to a registry that was restarted in between."""
        path = '/v2/' + location.split('/v2/')[1]
        self._change(201, '%s&digest=%s' % (path, digest_of(whole)), 'PUT', data,
                     {'Content-Type': 'application/octet-stream'})

    def push_manifest(self, repo, manifest, reference=None, media_type=None):
        """Put a manifest under a tag, or without `reference` by digest alone; return its digest."""
        digest = digest_of(manifest)
        media_type = media_type or json.loads(manifest.decode())['mediaType']
        self._change(201, '/v2/%s/manifests/%s' % (repo, reference or digest), 'PUT', manifest,
                     {'Content-Type': media_type})
        return digest

    def push_image(self, repo, reference, layers, **fields):
        """Push layers, a configuration of their own, and an image manifest; return its digest."""
        config = encode({'created for': [repo, reference] + [digest_of(data) for data in layers]})
        for data in [config] + list(layers):
            self.push_blob(repo, data)
        return self.push_manifest(repo, image_manifest(config, layers, **fields), reference)

    def delete_manifest(self, repo, digest):
        """DELETE over the API, as web front ends do."""
        self._change(202, '/v2/%s/manifests/%s' % (repo, digest), 'DELETE')

    def catalog(self):
        return self._json('/v2/_catalog?n=1000')['repositories']

    def tags(self, repo):
        """The repository's tags; PullError when the registry does not know it."""
        return sorted(self._json('/v2/%s/tags/list' % repo)['tags'] or [])

    def _json(self, path):
        status, _, body = self.request(path)
        if status != 200:
            raise PullError('%s: %d %s' % (path, status, body.decode()))
        return json.loads(body.decode())

    def pull(self, repo, reference, absent=()):
        """Pull an image with everything in it and verify every digest; return the set of digests.

        Raises PullError when something is missing or wrong. Digests in `absent` are those that a
        sparse index or a foreign layer names and that must answer 404.
        """
        status, headers, body = self.request(
            '/v2/%s/manifests/%s' % (repo, reference),
            headers={'Accept': ', '.join(MANIFEST_TYPES)})
        if status != 200:
            raise PullError('%s %s: %d %s' % (repo, reference, status, body.decode()))
        digest = reference if ':' in reference else headers['Docker-Content-Digest']
        self._verify(body, digest)
        pulled = {digest}
        manifest = json.loads(body.decode())
        for child in manifest.get('manifests') or []:
            if child['mediaType'] in MANIFEST_TYPES:
                if child['digest'] in absent:
                    self._must_be_absent('/v2/%s/manifests/%s' % (repo, child['digest']))
                else:
                    pulled |= self.pull(repo, child['digest'], absent)
            else:
                pulled |= self._pull_blob(repo, child['digest'], absent)
        named = [manifest.get('config')] + (manifest.get('layers') or []) \
            + (manifest.get('blobs') or [])
        blobs = [entry['digest'] for entry in named if entry]
        blobs += [layer['blobSum'] for layer in manifest.get('fsLayers') or []]
        for blob in blobs:
            pulled |= self._pull_blob(repo, blob, absent)
        return pulled

    def _pull_blob(self, repo, digest, absent):
        path = '/v2/%s/blobs/%s' % (repo, digest)
        if digest in absent:
            self._must_be_absent(path)
            return set()
        status, _, body = self.request(path)
        if status != 200:
            raise PullError('%s: %d %s' % (path, status, body.decode()))
        self._verify(body, digest)
        return {digest}

    def _must_be_absent(self, path):
        status = self.request(path)[0]
        if status != 404:
            raise PullError('%s: %d, not 404' % (path, status))

    @staticmethod
    def _verify(data, digest):
        if digest_of(data, digest.split(':')[0]) != digest:
            raise PullError('%s has other content' % digest)

    def missing(self, repo, reference):
        """Whether the registry answers 404 for this tag or manifest."""
        return self.request('/v2/%s/manifests/%s' % (repo, reference),
                            headers={'Accept': ', '.join(MANIFEST_TYPES)})[0] == 404

    # -- skopeo

    def skopeo_copy(self, source, repo_and_tag, *options):
        """Push `source` (what Layout.tag() returned) as skopeo does."""
        _run('skopeo', '--insecure-policy', 'copy', '--quiet', '--dest-tls-verify=false', *options,
             source, 'docker://%s/%s' % (self.host, repo_and_tag))

    def skopeo_pull(self, repo_and_tag, folder, *options):
        """Pull into a folder, with every platform."""
        _run('skopeo', '--insecure-policy', 'copy', '--quiet', '--all', '--src-tls-verify=false',
             *options, 'docker://%s/%s' % (self.host, repo_and_tag), 'dir:%s' % folder)


def _run(*command):
    """Run a program; its output, or an error that shows it."""
    # A proxy in the environment is no way to the loopback interface.
    environment = dict(os.environ, no_proxy='127.0.0.1', NO_PROXY='127.0.0.1')
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env=environment)
    output = done.stdout.decode(errors='replace')
    if done.returncode != 0:
        raise RuntimeError('%s: exit %d\n%s' % (' '.join(command), done.returncode, output))
    return output
