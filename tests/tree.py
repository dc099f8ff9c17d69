"""Writes a registry's folders and files as the registry itself does, for the tests and the demo.

    tree = Tree(folder)
    digest = tree.image('team/app', [b'layer one', b'layer two'])
    tree.tag('team/app', '1.0', digest)

Layers are given as bytes, which are pushed, or as a digest, which is only named.
"""

import hashlib
import json
import os
import shutil
import stat
import time

DOCKER = 'application/vnd.docker.'
OCI = 'application/vnd.oci.'
SCHEMA1 = DOCKER + 'distribution.manifest.v1+json'
SCHEMA2 = DOCKER + 'distribution.manifest.v2+json'
DOCKER_LIST = DOCKER + 'distribution.manifest.list.v2+json'
OCI_IMAGE = OCI + 'image.manifest.v1+json'
OCI_INDEX = OCI + 'image.index.v1+json'
OCI_ARTIFACT = OCI + 'artifact.manifest.v1+json'
OCI_LAYER = OCI + 'image.layer.v1.tar+gzip'
OCI_CONFIG = OCI + 'image.config.v1+json'
FOREIGN_LAYER = DOCKER + 'image.rootfs.foreign.diff.tar.gzip'
CACHE_CONFIG = 'application/vnd.buildkit.cacheconfig.v0'

DAY = 24 * 3600
GARBAGE = b'\x00\xffsha256:../../../../etc'


def digest_of(data, alg='sha256'):
    return '%s:%s' % (alg, hashlib.new(alg, data).hexdigest())


def encode(document):
    return json.dumps(document, indent=3).encode()


class Tree:
    """The store below `root`, a registry's root directory. Pushing returns a digest."""

    def __init__(self, root):
        self.root = str(root)
        self.v2 = os.path.join(self.root, 'docker', 'registry', 'v2')
        os.makedirs(os.path.join(self.v2, 'blobs'), exist_ok=True)
        os.makedirs(os.path.join(self.v2, 'repositories'), exist_ok=True)

    # Paths

    def repo(self, name, *below):
        return os.path.join(self.v2, 'repositories', *name.split('/') + list(below))

    def blob_path(self, digest):
        alg, digits = digest.split(':')
        return os.path.join(self.v2, 'blobs', alg, digits[:2], digits, 'data')

    def layer_link(self, repo, digest):
        return self.repo(repo, '_layers', *digest.split(':') + ['link'])

    def revision_link(self, repo, digest):
        return self.repo(repo, '_manifests', 'revisions', *digest.split(':') + ['link'])

    def signature_link(self, repo, revision, digest):
        folder = os.path.dirname(self.revision_link(repo, revision))
        return os.path.join(folder, 'signatures', *digest.split(':') + ['link'])

    def tag_link(self, repo, tag):
        return self.repo(repo, '_manifests', 'tags', tag, 'current', 'link')

    def history_link(self, repo, tag, digest):
        return self.repo(repo, '_manifests', 'tags', tag, 'index', *digest.split(':') + ['link'])

    # Blobs and layers

    def blob(self, data):
        """Store `data`, linked nowhere."""
        digest = digest_of(data)
        write(self.blob_path(digest), data)
        return digest

    def layer(self, repo, data, alg='sha256'):
        """Push a layer. Under another algorithm it is stored under its sha256 and linked twice."""
        canonical = self.blob(data)
        digest = digest_of(data, alg)
        for name in {canonical, digest}:
            write(self.layer_link(repo, name), canonical.encode())
        os.makedirs(self.repo(repo, '_uploads'), exist_ok=True)
        return digest

    def layers(self, repo, layers):
        """The digests of `layers`, each bytes to push, or the digest of what is there already."""
        return [self.layer(repo, one) if isinstance(one, bytes) else one for one in layers or ()]

    def descriptor(self, media_type, digest, **more):
        """What a manifest says about another blob."""
        try:
            size = os.path.getsize(self.blob_path(digest))
        except OSError:
            size = 1234
        return dict(mediaType=media_type, digest=digest, size=size, **more)

    # Manifests

    def manifest(self, repo, document, legacy=False):
        """Push a manifest: bytes, or what becomes JSON."""
        data = document if isinstance(document, bytes) else encode(document)
        digest = self.blob(data)
        link = self.layer_link if legacy else self.revision_link
        write(link(repo, digest), digest.encode())
        for folder in ('_layers', '_manifests/tags', '_manifests/revisions'):
            os.makedirs(self.repo(repo, folder), exist_ok=True)
        return digest

    # `legacy` links a manifest as a layer, as registry 2.1.0 did. What is listed may be None, which
    # becomes null. `more` are further fields.

    def image(self, repo, layers, config=b'{}', kind=OCI_IMAGE, subject=None, foreign=(),
              legacy=False, **more):
        """Push an OCI or schema 2 image. `foreign` are digests of layers stored elsewhere."""
        described = [self.descriptor(OCI_LAYER, one) for one in self.layers(repo, layers)]
        described += [self.descriptor(FOREIGN_LAYER, one, urls=['https://example.com/layer'])
                      for one in foreign]
        document = {
            'schemaVersion': 2, 'mediaType': kind,
            'config': self.descriptor(OCI_CONFIG, self.layers(repo, [config])[0]),
            'layers': None if layers is None else described}
        return self.manifest(repo, self.with_subject(document, subject, more), legacy)

    def schema1(self, repo, layers, signatures=0, tag='1.0', legacy=False):
        """Push a schema 1 manifest, with as many signatures in blobs of their own."""
        document = {
            'schemaVersion': 1, 'name': repo, 'tag': tag, 'architecture': 'amd64',
            'fsLayers': None if layers is None else [
                {'blobSum': one} for one in self.layers(repo, layers)],
            'history': [{'v1Compatibility': '{}'} for one in layers or ()]}
        digest = self.manifest(repo, document, legacy)
        self.sign(repo, digest, signatures)
        return digest

    def sign(self, repo, digest, signatures):
        """Add signatures to a schema 1 manifest; the first are the same in every repository."""
        for number in range(signatures):
            stored = self.blob(('signature %d of %s' % (number, digest)).encode())
            write(self.signature_link(repo, digest, stored), stored.encode())

    def index(self, repo, children, kind=OCI_INDEX, subject=None, legacy=False, **more):
        """Push an index over manifests. A child that is not in the store makes it sparse."""
        document = {
            'schemaVersion': 2, 'mediaType': kind,
            'manifests': None if children is None else [
                self.descriptor(self.media_type(child), child,
                                platform={'os': 'linux', 'architecture': 'arch%d' % number})
                for number, child in enumerate(children)]}
        return self.manifest(repo, self.with_subject(document, subject, more), legacy)

    def cache(self, repo, layers, config=b'{"layers": []}'):
        """Push what BuildKit's registry cache pushes: an index over plain layers."""
        entries = [self.descriptor(OCI_LAYER, one) for one in self.layers(repo, layers)]
        entries.append(self.descriptor(CACHE_CONFIG, self.layer(repo, config)))
        return self.manifest(repo, {'schemaVersion': 2, 'mediaType': OCI_INDEX,
                                    'manifests': entries})

    def artifact(self, repo, blobs, subject=None, **more):
        """Push an OCI artifact manifest."""
        document = {
            'mediaType': OCI_ARTIFACT, 'artifactType': 'application/vnd.example.sbom',
            'blobs': None if blobs is None else [
                self.descriptor('text/plain', one) for one in self.layers(repo, blobs)]}
        return self.manifest(repo, self.with_subject(document, subject, more))

    def with_subject(self, document, subject, more):
        if subject:
            document['subject'] = self.descriptor(self.media_type(subject), subject)
        document.update(more)
        return document

    def media_type(self, digest):
        try:
            with open(self.blob_path(digest), 'rb') as stream:
                return json.loads(stream.read().decode())['mediaType']
        except (OSError, ValueError, KeyError, TypeError):
            return OCI_IMAGE

    # Tags and uploads

    def tag(self, repo, tag, digest, age=0):
        """Tag a manifest. A tag that exists keeps its former manifests in its history."""
        write(self.tag_link(repo, tag), digest.encode())
        write(self.history_link(repo, tag, digest), digest.encode())
        set_age(self.tag_link(repo, tag), age)

    def upload(self, repo, uuid, data=b'half a layer', age=0):
        """Leave an upload that was last written to `age` seconds ago."""
        folder = self.repo(repo, '_uploads', uuid)
        write(os.path.join(folder, 'startedat'), b'2024-01-01T00:00:00Z')
        write(os.path.join(folder, 'hashstates', 'sha256', str(len(data))), b'state')
        write(os.path.join(folder, 'data'), data)
        for base, folders, files in os.walk(folder, topdown=False):
            for name in files:
                set_age(os.path.join(base, name), age)
            set_age(base, age)

    # Damage. Links are damaged by write(link, b''), write(link, GARBAGE) or os.remove(link).

    def remove_blob(self, digest):
        shutil.rmtree(os.path.dirname(self.blob_path(digest)))

    def corrupt_blob(self, digest):
        """Flip a bit, as a bad disk does: same size, another digest."""
        with open(self.blob_path(digest), 'r+b') as stream:
            first = stream.read(1) or b'\0'
            stream.seek(0)
            stream.write(bytes([first[0] ^ 1]))


def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as stream:
        stream.write(data)


def set_age(path, age):
    then = time.time() - age
    os.utime(path, (then, then))


def snapshot(root):
    """Everything below `root`: path -> (kind, content or target, mtime in ns)."""
    root = str(root)
    seen = {'.': ('folder', '', os.lstat(root).st_mtime_ns)} if os.path.isdir(root) else {}
    for entry in entries_below(root):
        status = os.lstat(entry.path)
        if stat.S_ISLNK(status.st_mode):
            what = ('symlink', os.readlink(entry.path))
        elif stat.S_ISDIR(status.st_mode):
            what = ('folder', '')
        else:
            with open(entry.path, 'rb', buffering=0) as stream:
                what = ('file', stream.read())
        seen[os.path.relpath(entry.path, root)] = what + (status.st_mtime_ns,)
    return seen


def entries_below(root, enter=lambda folder: True):
    """Yield all that is below `root`, as os.scandir does; but for folders not to enter.

    There are thousands of such walks, and os.walk takes longer the deeper a tree is.
    """
    todo = [root] if os.path.isdir(root) else []
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    yield entry
                elif enter(entry):
                    yield entry
                    todo.append(entry.path)
