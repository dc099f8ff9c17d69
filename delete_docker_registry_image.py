#!/usr/bin/env python3
"""Delete images from the disk of a stopped Docker registry, and free their space.

A private registry (CNCF Distribution: registry:2, registry:3, Debian's docker-registry) never
frees disk by itself.  Stop it, run this file, start it again:

    delete_docker_registry_image -i team/app:1.0

Data flows one way, and the file reads in that order:

    request -> scan -> plan -> apply -> report

Nothing is removed until the plan is complete.  A dry run prints the plan; a real run applies it.
What cannot be understood is kept, and what a kept image may need is never removed.
"""

import argparse
import errno
import fnmatch
import hashlib
import json
import logging
import os
import re
import stat
import sys
import time
from typing import (AbstractSet, Any, Callable, Dict, FrozenSet, Iterable, Iterator, List, Mapping,
                    NamedTuple, Optional, Sequence, Set, Tuple)

__version__ = '1.0.0'

PROGRAM = 'delete_docker_registry_image'
DEFAULT_DATA_DIRS = ('/var/lib/registry', '/var/lib/docker-registry', '/opt/registry_data',
                     '/root/data/registry')
MANIFEST_LIMIT = 4 << 20  # bytes; no registry reads a larger manifest
UPLOAD_AGE = 24 * 3600  # seconds without a write after which an upload counts as given up
LISTING_CALLS = 5  # what listing a folder costs: open, fstat, getdents twice, close

log = logging.getLogger(PROGRAM)


class RegistryCleanerError(Exception):
    """Why nothing was deleted, in words for the operator."""


def cannot_read(error: OSError) -> str:
    """Return the message for something that exists and cannot be read."""
    return "Cannot read '{}': {}".format(error.filename, error.strerror)


# -- Digests, names and images --------------------------------------------------------------------

HEX_LENGTH = {'sha256': 64, 'sha384': 96, 'sha512': 128}
ONE_DIGEST = '(?:' + '|'.join('%s:[0-9a-f]{%d}' % pair for pair in HEX_LENGTH.items()) + ')'
DIGEST = re.compile(ONE_DIGEST)
COMPONENT = re.compile(r'[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*')
TAG = re.compile(r'[A-Za-z0-9_][A-Za-z0-9._-]{0,127}')
REFERRER_TAG = re.compile('(' + ONE_DIGEST.replace(':[', '-[') + r')(?:\..*)?', re.DOTALL)
HOST_WITH_PORT = re.compile(r'(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]+/')


def is_digest(text: str) -> bool:
    """Tell whether `text` is `alg:hex` of the right length; only such a text becomes a path."""
    return DIGEST.fullmatch(text) is not None


def is_pattern(text: str) -> bool:
    """Tell whether `text` is a shell pattern, and not one name."""
    return any(character in text for character in '*?[')


class Image(NamedTuple):
    """What one `-i` names: a repository, one of its tags, or one of its manifests."""

    name: str
    tag: Optional[str] = None
    digest: Optional[str] = None

    @property
    def pattern(self) -> bool:
        """Whether it may name any number of images, none included."""
        return is_pattern(self.name) or is_pattern(self.tag or '')

    def __str__(self) -> str:
        return self.name + (':' + self.tag if self.tag else '') + (
            '@' + self.digest if self.digest else '')


def parse_image(text: str) -> Image:
    """Return the image that `text` names: `NAME`, `NAME:TAG` or `NAME@DIGEST`.

    A host with a port in front, as `docker push` prints it, is dropped: no repository's name holds
    a colon.  Raises ValueError for whatever the registry's reference grammar does not allow.
    """
    host = HOST_WITH_PORT.match(text)
    rest = text[host.end():] if host else text
    name, at, digest = rest.partition('@')
    slash = name.rfind('/') + 1
    last, colon, tag = name[slash:].partition(':')
    name = name[:slash] + last
    if at and colon:
        raise ValueError("'{}' names a tag and a digest: give one of them".format(text))
    if at and not is_digest(digest):
        raise ValueError("'{}' has no valid digest after the '@'".format(text))
    if colon and not (is_pattern(tag) or TAG.fullmatch(tag)):
        raise ValueError("'{}' has no valid tag after the ':'".format(text))
    for component in name.split('/'):
        if not (is_pattern(component) or COMPONENT.fullmatch(component)) or len(name) > 255:
            raise ValueError("'{}' is no valid image name".format(text))
    for part in (name, tag):
        try:
            re.compile(fnmatch.translate(part))
        except re.error:
            raise ValueError("'{}' is no valid pattern".format(text))
    return Image(name, tag or None, digest or None)


def matching(wanted: str, names: Iterable[str]) -> List[str]:
    """Return those of `names` that `wanted`, a name or a pattern, selects (`*` matches `/` too)."""
    if is_pattern(wanted):
        match = re.compile(fnmatch.translate(wanted)).match
        return [name for name in names if match(name)]
    return [wanted] if wanted in names else []


# -- Manifests ------------------------------------------------------------------------------------

MANIFEST_TYPES = frozenset((
    'application/vnd.docker.distribution.manifest.v1+json',
    'application/vnd.docker.distribution.manifest.v1+prettyjws',
    'application/vnd.docker.distribution.manifest.v2+json',
    'application/vnd.docker.distribution.manifest.list.v2+json',
    'application/vnd.oci.image.manifest.v1+json',
    'application/vnd.oci.image.index.v1+json',
    'application/vnd.oci.artifact.manifest.v1+json',
))


class Manifest(NamedTuple):
    """What one manifest names: nothing if it is missing, nobody knows what if it is unreadable."""

    blobs: Tuple[str, ...] = ()  # config and layers
    children: Tuple[str, ...] = ()  # entries of an index: manifests, or plain blobs (BuildKit)
    typed: Tuple[str, ...] = ()  # those entries that the index calls manifests
    subject: Optional[str] = None
    fault: Optional[str] = None  # why it is unreadable
    kind: str = ''  # the keys that make it a manifest; empty if none do

    @property
    def names(self) -> Tuple[str, ...]:
        """Every digest of which it needs the content."""
        return self.blobs + self.children


def field(document: Any, key: str, kind: type) -> Any:
    """Return the value of `key` in a JSON object, None when it is null or absent.

    The registry (Go) ignores the case of keys, so this does.  Raises ValueError for a wrong type.
    """
    if not isinstance(document, dict):
        raise ValueError('no JSON object')
    values = [value for name, value in document.items() if name.casefold() == key]
    if len(values) > 1:
        raise ValueError("'{}' stands twice".format(key))
    if values and values[0] is not None and not isinstance(values[0], kind):
        raise ValueError("'{}' has a wrong type".format(key))
    return values[0] if values else None


def digest_in(descriptor: Any, key: str = 'digest') -> str:
    """Return the digest of a descriptor.  Raises ValueError for one outside the grammar."""
    digest = field(descriptor, key, str)
    if digest is None or not is_digest(digest):
        raise ValueError('no valid digest')
    return str(digest)


def parse_manifest(digest: str, content: Optional[bytes]) -> Manifest:
    """Return what the manifest `digest` with this content (None: missing) names.

    Its kind is told by its keys; with keys of several kinds it counts as all of them.
    """
    if content is None:
        return Manifest()
    if len(content) > MANIFEST_LIMIT:
        return Manifest(fault='it is larger than 4 MiB')
    algorithm, _, name = digest.partition(':')
    if getattr(hashlib, algorithm)(content).hexdigest() != name:
        return Manifest(fault='its content does not match its digest')
    try:
        # Numbers mean nothing here, and reading a huge integer would take quadratic time.
        document = json.loads(content.decode('utf-8', 'replace'), parse_int=float)
        return Manifest(**parse_document(document))
    except (ValueError, RecursionError) as error:
        return Manifest(fault='it is no valid manifest ({})'.format(error))


def parse_document(document: Any) -> Dict[str, Any]:
    """Return the fields of the Manifest that a JSON document is.  Raises ValueError if it is none.
    """
    def entries(key: str) -> List[Any]:
        return field(document, key, list) or []

    config, subject = field(document, 'config', dict), field(document, 'subject', dict)
    kind = {'fslayers', 'config', 'layers', 'manifests', 'blobs'}.intersection(
        key.casefold() for key in document)
    if not kind:
        raise ValueError('it has none of the keys of a manifest')
    blobs = [digest_in(blob) for blob in entries('layers') + entries('blobs')]
    blobs += [digest_in(layer, 'blobsum') for layer in entries('fslayers')]
    blobs += [digest_in(config)] if config is not None else []
    return {'blobs': tuple(blobs),
            'children': tuple(digest_in(entry) for entry in entries('manifests')),
            'typed': tuple(digest_in(entry) for entry in entries('manifests')
                           if field(entry, 'mediatype', str) in MANIFEST_TYPES),
            'subject': digest_in(subject) if subject is not None else None,
            'kind': ' '.join(sorted(kind))}


# -- The store as it is on the disk ---------------------------------------------------------------

class Tag(NamedTuple):
    """One tag.  It is broken when its link is missing, empty or no digest."""

    digest: Optional[str]  # None: broken
    history: Tuple[str, ...]  # every digest in its index
    fault: Optional[str] = None  # why its link cannot be read


class Repository(NamedTuple):
    """One repository as it is on the disk."""

    name: str
    tags: Dict[str, Tag]
    revisions: Dict[str, str]  # revision link -> digest of the blob that it stands for
    layers: Dict[str, str]  # layer link, or a folder that lost it -> digest of its blob
    manifests: Dict[str, Manifest]  # revisions, and manifests that have only a layer link
    signatures: Dict[str, Tuple[str, ...]]  # revision -> its signature blobs (schema 1)
    uploads: Dict[str, float]  # upload -> time of the last write to it


class Store:
    """A registry's v2 folder: makes every path in it, and reads what lies there.

    What is missing reads as empty.  What exists and cannot be read raises OSError.
    """

    def __init__(self, v2: str) -> None:
        self.v2 = v2
        self.repositories = v2 + '/repositories'
        self.blobs = v2 + '/blobs'
        self.links: Dict[str, str] = {}  # symbolic links met while reading -> where they lead
        self._parsed: Dict[str, Manifest] = {}

    # Paths.

    def repository(self, name: str) -> str:
        return self.repositories + '/' + name

    def tags(self, name: str) -> str:
        return self.repository(name) + '/_manifests/tags'

    def tag(self, name: str, tag: str) -> str:
        return self.tags(name) + '/' + tag

    def entry(self, name: str, digest: str, tag: str) -> str:
        return self.tag(name, tag) + '/index/' + digest.replace(':', '/')

    def revisions(self, name: str) -> str:
        return self.repository(name) + '/_manifests/revisions'

    def manifest(self, name: str, digest: str) -> str:
        return self.revisions(name) + '/' + digest.replace(':', '/')

    def layers(self, name: str) -> str:
        return self.repository(name) + '/_layers'

    def layer(self, name: str, digest: str) -> str:
        return self.layers(name) + '/' + digest.replace(':', '/')

    def upload(self, name: str, upload: str) -> str:
        return self.repository(name) + '/_uploads/' + upload

    def blob(self, digest: str) -> str:
        algorithm, _, name = digest.partition(':')
        return '/'.join((self.blobs, algorithm, name[:2], name))

    def paths(self, reference: 'Reference') -> List[str]:
        """Return what to remove for `reference`: of a repository all that is no other one's."""
        kind, *names = reference
        if kind == 'repository':
            return [self.repository(reference.repository) + part
                    for part in ('/_manifests', '/_layers', '/_uploads')]
        return [getattr(self, kind)(*filter(None, names))]

    # Reading, from single entries to whole repositories.

    def require_missing(self, path: str) -> None:
        """Raise OSError when `path` is not there because a link on the way leads nowhere."""
        while not os.path.lexists(path):
            path = os.path.dirname(path)
        if not os.path.exists(path):
            raise OSError(errno.ELOOP, "symbolic link to '{}', which is not there; mount it, or "
                          'remove the link'.format(os.readlink(path)), path)

    def entries(self, path: str) -> List['os.DirEntry[str]']:
        """Return what the folder `path` holds, sorted by name."""
        try:
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except FileNotFoundError:
            self.require_missing(path)
            return []
        for entry in entries:
            if entry.is_symlink():
                self.links[entry.path] = os.path.realpath(entry.path)
        return entries

    def folders(self, path: str) -> List[str]:
        """Return the names of the folders in `path`.

        Symbolic links to folders count, and so do those to nothing: who enters one will learn it.
        """
        return [entry.name for entry in self.entries(path)
                if entry.is_dir() or entry.is_symlink() and not os.path.exists(entry.path)]

    def digests(self, path: str) -> List[str]:
        """Return the digests that the folders `path`/<alg>/<hex> stand for."""
        return [digest for algorithm in self.folders(path)
                for digest in (algorithm + ':' + entry.name
                               for entry in self.entries(path + '/' + algorithm))
                if is_digest(digest)]

    def exists(self, path: str) -> bool:
        """Tell whether `path` is there; take note when it is a symbolic link."""
        try:
            if stat.S_ISLNK(os.lstat(path).st_mode):
                self.links[path] = os.path.realpath(path)
                os.stat(path)
        except FileNotFoundError:
            self.require_missing(path)
            return False
        return True

    def has_link(self, folder: str) -> bool:
        """Tell whether `folder`, which lies in a folder that is there, exists and holds a link."""
        try:
            os.lstat(folder)
        except FileNotFoundError:
            return False
        return self.exists(folder + '/link')

    def read(self, path: str, limit: int) -> Optional[bytes]:
        """Return at most `limit` + 1 bytes of the file `path`, None when it is missing."""
        try:
            # Never wait for the other end of a pipe that lies where a file belongs.
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 'rb', 0) as file:
                return file.read(limit + 1)
        except FileNotFoundError:
            self.require_missing(path)
            return None

    def read_link(self, folder: str) -> Optional[str]:
        """Return the digest in `folder`/link, None when it is missing, empty or no digest."""
        content = (self.read(folder + '/link', 200) or b'').decode('ascii', 'replace')
        return content if is_digest(content) else None

    def target(self, folder: str, digest: str) -> str:
        """Return the digest of the blob that the link of `digest` in `folder` stands for.

        A sha256 link is named after its blob.  Another one holds the name: blobs are stored under
        their sha256.
        """
        return digest if digest.startswith('sha256:') else self.read_link(folder) or digest

    def read_manifest(self, digest: str) -> Manifest:
        """Return the manifest stored as the blob `digest`; each is read once."""
        if digest not in self._parsed:
            try:
                content = self.read(self.blob(digest) + '/data', MANIFEST_LIMIT)
                self._parsed[digest] = parse_manifest(digest, content)
            except OSError as error:
                self._parsed[digest] = Manifest(fault=cannot_read(error), kind='unknown')
        return self._parsed[digest]

    def repository_names(self) -> List[str]:
        """Return the names of all repositories, sorted: folders that hold what a repository holds.

        A folder reached through symbolic links counts, but none is entered below itself.
        """
        found = set()
        todo = [self.repositories]
        while todo:
            path = todo.pop()
            for folder in self.folders(path):
                below = path + '/' + folder
                if folder in ('_manifests', '_layers', '_uploads'):
                    found.add(path[len(self.repositories) + 1:])
                elif not folder.startswith('_') and not (
                        below in self.links and self.is_own_ancestor(below)):
                    todo.append(below)
        return sorted(found - {''})

    def is_own_ancestor(self, path: str) -> bool:
        """Tell whether `path`, a folder below `repositories`, is one of those that it lies in."""
        return any(os.path.samefile(path, above) for above in places_above(os.path.dirname(path))
                   if len(above) >= len(self.repositories))

    def read_tag(self, name: str, tag: str) -> Tag:
        """Return the tag `tag` of repository `name`."""
        folder = self.tag(name, tag)
        try:
            self.exists(folder + '/current')
            self.exists(folder + '/current/link')
            return Tag(self.read_link(folder + '/current'), tuple(self.digests(folder + '/index')))
        except OSError as error:
            return Tag(None, (), cannot_read(error))

    def read_repository(self, name: str) -> Repository:
        """Return the repository `name`, with all of its manifests."""
        tags = {tag: self.read_tag(name, tag) for tag in self.folders(self.tags(name))}
        layers = {digest: self.target(self.layer(name, digest), digest)
                  for digest in self.digests(self.layers(name))}
        revisions = {digest: self.target(self.manifest(name, digest), digest)
                     for digest in self.digests(self.revisions(name))
                     if self.exists(self.manifest(name, digest) + '/link')}
        manifests = {digest: self.read_manifest(blob) for digest, blob in revisions.items()}
        # Registry 2.1.0 linked manifests as layers, and every 2.x still serves them from there.
        todo = {digest for tag in tags.values() for digest in tag.history + (tag.digest or '',)}
        todo.update(child for manifest in manifests.values() for child in manifest.typed)
        while todo:
            digest = todo.pop()
            if (digest in layers and digest not in manifests
                    and self.has_link(self.layer(name, digest))):
                manifest = self.read_manifest(layers[digest])
                if manifest.kind:
                    manifests[digest] = manifest
                    todo.update(manifest.typed)
        signatures = {digest: tuple(self.digests(self.manifest(name, digest) + '/signatures'))
                      for digest in revisions}
        uploads = {upload: self.last_write(self.upload(name, upload))
                   for upload in self.folders(self.repository(name) + '/_uploads')}
        return Repository(name, tags, revisions, layers, manifests, signatures, uploads)

    def last_write(self, folder: str) -> float:
        """Return the time of the last write to anything in `folder`, in seconds."""
        times = [os.lstat(folder).st_mtime]
        for entry in self.entries(folder):
            times.append(self.last_write(entry.path) if entry.is_dir(follow_symlinks=False)
                         else entry.stat(follow_symlinks=False).st_mtime)
        return max(times)

    def links_to(self, name: str, blobs: Mapping[str, str]) -> Iterator[Tuple[str, str]]:
        """Yield (folder of the link, blob) for each link of repository `name` to one of `blobs`.

        `blobs` maps a blob to the manifest that it signs, or to ''.  No sha256 link is opened, and
        a folder is listed where that is fewer calls than looking for each blob.
        """
        for top in (self.layers(name), self.revisions(name)):
            for algorithm in self.folders(top):
                named = algorithm == 'sha256'  # its links are named after their blobs
                if named and len(blobs) <= LISTING_CALLS:
                    found = [blob for blob in blobs if blob.startswith('sha256:')]
                else:
                    found = [algorithm + ':' + entry.name
                             for entry in self.entries(top + '/' + algorithm)]
                for digest in found:
                    folder = top + '/' + digest.replace(':', '/')
                    if (digest in blobs if named else is_digest(digest)) and self.has_link(folder):
                        blob = self.target(folder, digest)
                        if blob in blobs:
                            yield folder, blob
        for blob, signed in blobs.items():
            folder = self.manifest(name, signed)
            if signed and self.exists(folder + '/signatures/' + blob.replace(':', '/') + '/link'):
                yield folder, blob

    def linked(self, names: Iterable[str], blobs: Mapping[str, str],
               gone: AbstractSet[str] = frozenset()) -> Set[str]:
        """Return those of `blobs` that a repository in `names` links, other than from `gone`."""
        left = dict(blobs)
        for name in names:
            if left and self.layers(name) not in gone:
                for folder, blob in list(self.links_to(name, left)):
                    if folder not in gone:
                        left.pop(blob, None)
        return blobs.keys() - left.keys()

    def holds_a_blob(self) -> bool:
        """Tell whether any blob is stored at all."""
        return any(self.exists(self.blob(algorithm + ':' + name) + '/data')
                   for algorithm in self.folders(self.blobs)
                   for prefix in self.folders(self.blobs + '/' + algorithm)
                   for name in self.folders('/'.join((self.blobs, algorithm, prefix))))

    def size(self, digest: str) -> Optional[int]:
        """Return the bytes that removing the blob frees, None when it is not stored."""
        path = self.blob(digest)
        if not self.exists(path + '/data'):
            return None
        if os.path.islink(path) or os.path.islink(path + '/data'):
            return 0  # the link goes, what it leads to stays
        return os.stat(path + '/data').st_size

    def empty_folders(self, gone: Set[str]) -> List[str]:
        """Return the folders that hold nothing once `gone` is gone, each before its parent.

        What the registry needs of a repository that has a tag or a manifest stays, empty or not.
        """
        walk = [self.v2] + [top for top in (self.repositories, self.blobs) if os.path.islink(top)]
        held: Dict[str, int] = {}
        for path in walk:  # grows as it goes
            entries = [entry for entry in self.entries(path) if entry.path not in gone]
            held[path] = len(entries)
            walk += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        for path in reversed(walk[1:]):
            if not held[path]:
                held[os.path.dirname(path)] -= 1
        stay = {self.v2, self.repositories, self.blobs}
        for path in walk:
            if path.endswith('/_manifests') and held[path]:
                stay.update((path + '/tags', path + '/revisions', path[:-10] + '_layers'))
        return [path for path in reversed(walk) if not held[path] and path not in stay]


# -- The plan: pure decisions ---------------------------------------------------------------------

class Wish(NamedTuple):
    """What a request asks of one repository."""

    whole: bool = False
    untagged: bool = False
    tags: FrozenSet[str] = frozenset()  # names and patterns
    digests: FrozenSet[str] = frozenset()


class Reference(NamedTuple):
    """One thing to remove from a repository."""

    kind: str  # one of KINDS
    repository: str
    name: str = ''  # the tag, the digest or the upload
    tag: str = ''  # of a history entry


# In the order of removal, which keeps every tag that resolves complete at every moment.
KINDS = ('tag', 'entry', 'manifest', 'layer', 'upload', 'repository')


class Plan(NamedTuple):
    """What a run removes, in this order.  The account of what it has removed is a plan too."""

    references: List[Reference] = []
    blobs: Dict[str, int] = {}  # digest -> size in bytes
    folders: List[str] = []  # empty folders, each before the one that holds it
    signed: Dict[str, str] = {}  # blob -> the manifest that it signs, or ''
    warnings: List[str] = []
    failed: List[Tuple[str, str]] = []  # path, and why it could not be removed

    def named(self, kind: str) -> List[str]:
        """Return the names of all that is removed of one kind."""
        return [reference.name for reference in self.references if reference.kind == kind]


def reach(start: Iterable[str], edges: Mapping[str, Iterable[str]],
          avoid: FrozenSet[str] = frozenset()) -> Set[str]:
    """Return all nodes that a walk along `edges` from `start` meets, never entering `avoid`."""
    met: Set[str] = set()
    todo = list(start)
    while todo:
        node = todo.pop()
        if node not in met and node not in avoid:
            met.add(node)
            todo.extend(edges.get(node, ()))
    return met


def tag_node(tag: str) -> str:
    """Return the node that stands for a tag among the digests of its repository."""
    return ':' + tag


class Graph(NamedTuple):
    """What reaches what in one repository.  Nodes are digests, and tags as tag_node() writes."""

    edges: Dict[str, List[str]]
    referrer_tags: FrozenSet[str]


def what_reaches_what(repository: Repository) -> Graph:
    """Return what each tag and each manifest of `repository` reaches in one step.

    A tag reaches its manifest, a broken one whatever it may have stood for.  A manifest reaches its
    children, whatever names it as subject, and its referrer tags.
    """
    manifests, tags = repository.manifests, repository.tags
    everything = list(manifests)
    edges = {digest: [child for child in manifest.children if child in manifests]
             for digest, manifest in manifests.items()}
    for digest, manifest in manifests.items():
        if manifest.subject in edges:
            edges[manifest.subject].append(digest)
    for tag, (current, history, _) in tags.items():
        named = (current,) if current else history
        edges[tag_node(tag)] = [d for d in named if d in manifests] if named else everything
    owners: Dict[str, str] = {}
    reached: Dict[str, Set[str]] = {}  # many tags of one manifest are one walk
    for tag in tags:
        match = REFERRER_TAG.fullmatch(tag)
        owner = match.group(1).replace('-', ':') if match else ''
        if owner in manifests:
            start = tags[tag].digest or tag_node(tag)
            if start not in reached:
                reached[start] = reach([start], edges)
            if owner not in reached[start]:
                owners[tag] = owner
    for tag, owner in owners.items():
        edges[owner].append(tag_node(tag))
    return Graph(edges, frozenset(owners))


def parents_first(doomed: Set[str], manifests: Mapping[str, Manifest]) -> List[str]:
    """Return the manifests `doomed` in an order that puts each index before its children."""
    ordered: List[str] = []
    met: Set[str] = set()
    todo = [(digest, False) for digest in sorted(doomed, reverse=True)]
    while todo:
        digest, children_done = todo.pop()
        if children_done:
            ordered.append(digest)
        elif digest not in met:
            met.add(digest)
            todo.append((digest, True))
            todo.extend((child, False) for child in manifests[digest].children if child in doomed)
    return ordered[::-1]


def unused_layers(repository: Repository, doomed: Set[str], kept_tags: Iterable[str]) -> Set[str]:
    """Return the layer links that the manifests `doomed` name and nothing that stays uses.

    A layer pushed under another algorithm has a second link, under its sha256, that no manifest
    names: it is needed as long as the first one is.
    """
    named, needed = set(doomed), {''}
    needed.update(repository.tags[tag].digest or '' for tag in kept_tags)
    for digest, manifest in repository.manifests.items():
        if digest in doomed:
            named.update(manifest.names)
        else:
            needed.add(digest)
            needed.update(manifest.names)
    for group in (named, needed):
        group.update([repository.layers[digest] for digest in group if digest in repository.layers])
    return (named & repository.layers.keys()) - needed


def command_for(name: str, digests: Iterable[str]) -> str:
    """Return the command line that deletes these manifests."""
    return PROGRAM + ''.join(' -i {}@{}'.format(name, digest) for digest in digests)


def require_readable(repository: Repository, tags: Iterable[str], manifests: Iterable[str]) -> None:
    """Refuse when what `tags` and `manifests`, which stay, need is unknown."""
    for tag in tags:
        if repository.tags[tag].fault:
            raise RegistryCleanerError(
                'Tag {0}:{1} stays, and cannot be read: {2}. Nothing was deleted. Repair it, or '
                'delete it: {3} -i {0}:{1}'.format(
                    repository.name, tag, repository.tags[tag].fault, PROGRAM))
    faults = [(digest, repository.manifests[digest].fault) for digest in sorted(manifests)
              if repository.manifests[digest].fault]
    if faults:
        raise RegistryCleanerError(
            'What these manifests of {} need is unknown, so nothing was deleted:\n{}\n'
            'Restore them, or delete them: {}'.format(
                repository.name,
                '\n'.join('  {}: {}'.format(digest, fault) for digest, fault in faults),
                command_for(repository.name, [digest for digest, _ in faults])))


def refuse_kept_index(repository: Repository, graph: Graph, digests: Iterable[str],
                      kept: Set[str]) -> None:
    """Refuse to delete one of the manifests `digests` when an index in `kept` contains it."""
    for digest in digests:
        for parent in sorted(kept):
            if digest in repository.manifests[parent].children:
                tags = sorted('{}:{}'.format(repository.name, tag) for tag in repository.tags
                              if parent in reach([tag_node(tag)], graph.edges))
                raise RegistryCleanerError(
                    '{0}@{1} is part of the index {0}@{2} ({3}), which stays. Nothing was deleted. '
                    'Delete the index too, or leave this manifest'.format(
                        repository.name, digest, parent, ', '.join(tags) or 'which has no tag'))


def select_tags(tags: Mapping[str, Tag], graph: Graph, wanted: Iterable[str]) -> Set[str]:
    """Return the tags that `wanted`, names and patterns, selects; a pattern no referrer tag."""
    ordinary = [tag for tag in tags if tag not in graph.referrer_tags]
    return {tag for text in wanted
            for tag in matching(text, ordinary if is_pattern(text) else tags)}


def decide(repository: Repository, graph: Graph, wish: Wish, now: float) -> List[Reference]:
    """Return what `repository` loses when `wish` comes true; `now` is a time in seconds.

    What goes is what the wish touches, less what any other tag, or any manifest that it does not
    touch, still reaches.  Raises RegistryCleanerError when that cannot be known or must not be.
    """
    tags, manifests = repository.tags, repository.manifests
    selected = set(tags) if wish.whole else select_tags(tags, graph, wish.tags)
    named = wish.digests.union(tag_node(tag) for tag in tags if tag in selected
                               or tags[tag].digest in wish.digests)
    if wish.whole or wish.untagged:
        touched = set(manifests)
    else:
        history = [tags[tag].history + (tags[tag].digest or '',) for tag in selected]
        touched = reach(wish.digests.union(*history), graph.edges)
    roots = [tag_node(tag) for tag in tags if tag not in graph.referrer_tags]
    roots += [digest for digest in manifests if digest not in touched]
    kept = reach(roots, graph.edges, avoid=named)
    kept_tags = [tag for tag in tags if tag_node(tag) in kept]
    kept_manifests = kept & manifests.keys()
    doomed = manifests.keys() - kept_manifests

    refuse_kept_index(repository, graph, wish.digests, kept_manifests)
    if doomed or len(kept_tags) < len(tags):
        require_readable(repository, kept_tags, kept_manifests)
    whole = not kept_tags and not kept_manifests and (wish.whole or not any(
        written > now - UPLOAD_AGE for written in repository.uploads.values()))
    layers = repository.layers if whole else unused_layers(repository, doomed, kept_tags)
    revisions = [digest for digest in parents_first(doomed, manifests)
                 if digest in repository.revisions]
    name = repository.name
    return ([Reference('tag', name, tag) for tag in sorted(tags.keys() - kept_tags)]
            + [Reference('entry', name, digest, tag) for tag in kept_tags
               for digest in tags[tag].history if digest in doomed]
            + [Reference('manifest', name, digest) for digest in revisions]
            + [Reference('layer', name, digest) for digest in sorted(layers)]
            + [Reference('upload', name, upload) for upload in sorted(repository.uploads) if whole]
            + [Reference('repository', name)] * whole)


def refuse_other_names(store: Store, gone: Set[str]) -> None:
    """Refuse when something in `gone` has a name that stays, through a symbolic link in the store.

    `gone` holds the paths of all that is removed, be it a folder, a file or a link.
    """
    if not store.links:
        return
    leading: Dict[str, List[str]] = {}  # place -> links that lead to it or to something in it
    arriving: Dict[str, List[str]] = {}  # place -> links that lead just there
    for link, target in store.links.items():
        arriving.setdefault(target, []).append(link)
        for place in places_above(target):
            leading.setdefault(place, []).append(link)
    for top in (store.repositories, store.blobs):
        arriving.setdefault(os.path.realpath(top), []).append(top)
    for path in sorted(gone):
        real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        names = leading.get(real, []) + [link + real[len(place):] for place in places_above(real)
                                         for link in arriving.get(place, ())]
        for name in names:
            if not any(place in gone for place in places_above(name)):
                raise RegistryCleanerError(
                    "'{}' would be deleted, but '{}', which stays, is the same by a symbolic link."
                    " Nothing was deleted. Name both, or remove the link first".format(path, name))


def places_above(path: str) -> Iterator[str]:
    """Yield `path` and every folder that it lies in."""
    while path not in ('', '/'):
        yield path
        path = os.path.dirname(path)


# -- The removal ----------------------------------------------------------------------------------

def remove(path: str) -> bool:
    """Remove a file, a symbolic link, or a folder with all that is in it; return True.

    A link is never entered, and what is gone already is fine.  What comes first by name goes first:
    `current` before `index`, `link` before `signatures`.  Raises OSError.
    """
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            for name in sorted(os.listdir(path)):
                remove(path + '/' + name)
            os.rmdir(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass
    return True


def remove_empty(path: str) -> bool:
    """Remove a folder, or the symbolic link to it, if it is empty; tell whether it is gone."""
    try:
        if not os.path.islink(path):
            os.rmdir(path)
        elif not os.listdir(path):
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    return not os.path.lexists(path)


class Remover:
    """Applies a plan, and keeps account of what failed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.failed: List[Tuple[str, str]] = []
        self.given_up: Set[str] = set()  # repositories left as they stand since a removal failed

    def apply(self, plan: Plan) -> Plan:
        """Remove what `plan` names; return what is gone, and what failed."""
        references = [reference for reference in plan.references if self.remove(reference)]
        linked = self.store.linked(self.store.repository_names(), plan.signed)
        return plan._replace(
            references=references,
            blobs={digest: size for digest, size in plan.blobs.items()
                   if digest not in linked and self.attempt(remove, self.store.blob(digest))},
            folders=[folder for folder in plan.folders if self.attempt(remove_empty, folder)],
            failed=self.failed)

    def remove(self, reference: Reference) -> bool:
        """Remove what `reference` names, unless its repository is given up; tell if it is gone."""
        name = reference.repository
        if name not in self.given_up and not all(
                [self.attempt(remove, path) for path in self.store.paths(reference)]):
            self.given_up.add(name)
        if reference.kind == 'repository' and name not in self.given_up:
            self.attempt(remove_empty, self.store.repository(name))
        return name not in self.given_up

    def attempt(self, function: Callable[[str], bool], path: str) -> bool:
        """Tell whether `path` is gone after `function` tried to remove it."""
        try:
            return function(path)
        except OSError as error:
            log.error("Could not delete '%s': %s", error.filename, error.strerror)
            self.failed.append((str(error.filename), str(error.strerror)))
            return False


# -- The cleaner: request, scan, plan, apply ------------------------------------------------------

class Request(NamedTuple):
    """What the operator asks of one run."""

    images: Tuple[Image, ...] = ()
    untagged: bool = False  # of these images, which are repositories, only what no tag reaches
    prune: bool = False


def find_v2(directory: str) -> str:
    """Return the v2 folder that `directory` is or holds.

    Raises RegistryCleanerError when there is none.
    """
    directory = os.path.abspath(directory)
    if not os.path.isdir(directory):
        raise RegistryCleanerError("Registry data folder '{}' {}".format(
            directory, 'is not a folder' if os.path.lexists(directory) else 'does not exist'))
    for below in ('', '/v2', '/registry/v2', '/docker/registry/v2'):
        v2 = directory + below
        if os.path.isdir(v2) and (v2.endswith('/docker/registry/v2') or any(
                os.path.lexists(v2 + name) for name in ('/repositories', '/blobs'))):
            return v2
    raise RegistryCleanerError(
        "No registry found in '{}': it holds neither 'repositories' nor 'docker/registry/v2'. "
        'Pass the folder that the registry keeps its data in with -d'.format(directory))


class RegistryCleaner:
    """Deletes images from the v2 folder that `registry_data_dir` is or holds.

    Each method is one run: it plans, and unless `dry_run` is set removes, and returns the Plan that
    says what is, or would be, gone.  Raises RegistryCleanerError when nothing was deleted.
    """

    def __init__(self, registry_data_dir: str, dry_run: bool = False) -> None:
        self.v2 = find_v2(registry_data_dir)
        self.dry_run = dry_run

    def delete_entire_repository(self, repo: str) -> Plan:
        """Delete the repository `repo`; repositories below it stay."""
        return self.run(Request((literal(repo),)))

    def delete_repository_tag(self, repo: str, tag: str) -> Plan:
        """Delete the tag `tag` of `repo` with the images that only it reached."""
        return self.run(Request((literal(repo + ':' + tag),)))

    def delete_untagged(self, repo: str) -> Plan:
        """Delete the manifests of `repo` that no tag reaches."""
        return self.run(Request((literal(repo),), untagged=True))

    def prune(self) -> Plan:
        """Delete empty folders."""
        return self.run(Request(prune=True))

    def run(self, request: Request) -> Plan:
        """Carry out `request`."""
        store = Store(self.v2)
        try:
            plan = self.plan(store, request)
        except OSError as error:
            raise RegistryCleanerError(cannot_read(error) + '. Nothing was deleted')
        return plan if self.dry_run else Remover(store).apply(plan)

    def plan(self, store: Store, request: Request) -> Plan:
        """Return what `request` removes.  Reads each thing once, and changes nothing."""
        names = store.repository_names()
        refuse_unsafe_ground(store, names)
        found = {image: matching_repositories(image, names) for image in request.images}
        wishes = wishes_by_repository(request, found)
        repositories = {name: store.read_repository(name) for name in sorted(wishes)}
        missing = [missing_part(image, found[image], repositories) for image in request.images]
        if any(missing):
            raise RegistryCleanerError('\n'.join(
                'No {} found in repositories directory {}{}'.format(
                    part, store.repositories, shorter_name(image, found[image], names))
                for image, part in zip(request.images, missing) if part))

        references: List[Reference] = []
        warnings = ["Nothing matches '{}'".format(image) for image in found if not found[image]]
        signed: Dict[str, str] = {}
        for name, repository in repositories.items():
            graph = what_reaches_what(repository)
            if wishes[name].untagged and has_no_tag(repository, graph):
                warnings.append(
                    "Repository '{0}' has manifests and no tag, and was left alone: its images may "
                    'be used by digest, or their tags kept in a database. To delete all of it: '
                    '{1} -i {0}'.format(name, PROGRAM))
                continue
            lost = [reference for reference in decide(repository, graph, wishes[name], time.time())
                    if reference.kind != 'layer'
                    or store.has_link(store.layer(name, reference.name))]
            references += lost
            signed.update(blobs_of(repository, lost))
            warnings += unknown_layers(repository, lost)
        references.sort(key=lambda reference: KINDS.index(reference.kind))

        gone = {path for reference in references for path in store.paths(reference)}
        unlinked = sorted(signed.keys() - store.linked(names, signed, gone))
        sizes = {digest: store.size(digest) for digest in unlinked}
        blobs = {digest: size for digest, size in sizes.items() if size is not None}
        gone.update(map(store.blob, blobs))
        refuse_other_names(store, gone)
        folders = store.empty_folders(gone) if request.prune else []
        return Plan(references, blobs, folders, {digest: signed[digest] for digest in blobs},
                    warnings)


def literal(text: str) -> Image:
    """Return the one image that `text` names.  Raises RegistryCleanerError when it names none."""
    try:
        image = parse_image(text)
    except ValueError as error:
        raise RegistryCleanerError(str(error))
    if image.pattern:
        raise RegistryCleanerError("'{}' is a pattern".format(text))
    return image


def refuse_unsafe_ground(store: Store, names: Iterable[str]) -> None:
    """Refuse a store whose tags are elsewhere, or which is only half there."""
    mark = os.path.dirname(store.v2) + '/lockfiles/database-in-use'
    if os.path.lexists(mark):
        raise RegistryCleanerError(
            "'{}' says that this registry keeps its tags in a database, so the disk does not tell "
            'what is in use. Delete images with that registry (GitLab) instead'.format(mark))
    if not store.holds_a_blob():
        for name in names:
            if any(store.has_link(store.manifest(name, digest))
                   for digest in store.digests(store.revisions(name))):
                raise RegistryCleanerError(
                    "Repository '{}' has images, but '{}' holds no blob at all: is a disk not "
                    'mounted? Nothing was deleted. If the blobs are really lost, delete the '
                    'folders in {} by hand'.format(name, store.blobs, store.repositories))


def matching_repositories(image: Image, names: List[str]) -> List[str]:
    """Return those of the repositories `names` that `image` is or selects."""
    found = matching(image.name, names)
    if not found and image.name.startswith('localhost/'):
        found = matching(image.name.partition('/')[2], names)
    return found


def wishes_by_repository(request: Request, found: Mapping[Image, List[str]]) -> Dict[str, Wish]:
    """Return what `request` asks of each repository, given those that each image selects."""
    wishes: Dict[str, Wish] = {}
    for image in request.images:
        for name in found[image]:
            wish = wishes.get(name, Wish())
            whole = not (image.tag or image.digest or request.untagged)
            wishes[name] = Wish(whole or wish.whole, request.untagged,
                                wish.tags.union([image.tag] if image.tag else []),
                                wish.digests.union([image.digest] if image.digest else []))
    return wishes


def missing_part(image: Image, found: List[str],
                 repositories: Mapping[str, Repository]) -> Optional[str]:
    """Return what `image`, found in the repositories `found`, names that is not there."""
    if image.pattern:
        return None
    if not found:
        return "repository '{}'".format(image.name)
    repository = repositories[found[0]]
    if image.tag and image.tag not in repository.tags:
        return "repository '{}' tag '{}'".format(repository.name, image.tag)
    if image.digest and image.digest not in repository.manifests:
        return "repository '{}' manifest '{}'".format(repository.name, image.digest)
    return None


def shorter_name(image: Image, found: List[str], names: List[str]) -> str:
    """Return a hint when `image` would have been found without what looks like its host."""
    shorter = image.name.partition('/')[2]
    return ". Did you mean '{}'?".format(shorter) if not found and shorter in names else ''


def has_no_tag(repository: Repository, graph: Graph) -> bool:
    """Tell whether there are manifests and no tag but referrer tags: nobody knows their use."""
    return bool(repository.manifests) and repository.tags.keys() <= graph.referrer_tags


def blobs_of(repository: Repository, lost: Iterable[Reference]) -> Dict[str, str]:
    """Return the blobs that `lost` has links to, each with the manifest that it signs or ''."""
    blobs: Dict[str, str] = {}
    for kind, _, name, _ in lost:
        if kind == 'manifest':
            blobs.update((signature, name) for signature in repository.signatures[name])
            blobs[repository.revisions[name]] = ''
        elif kind == 'layer':
            blobs[repository.layers[name]] = ''
    return blobs


def unknown_layers(repository: Repository, lost: List[Reference]) -> List[str]:
    """Return a warning for each manifest in `lost` of which nobody knows the layers."""
    whole = any(reference.kind == 'repository' for reference in lost)
    return ['What the unreadable manifest {}@{} needed is unknown, so its layers stay'.format(
        name, digest) for kind, name, digest, _ in lost
        if kind == 'manifest' and repository.manifests[digest].fault and not whole]


# -- The report -----------------------------------------------------------------------------------

def count(number: int, singular: str, plural: str = '') -> str:
    """Return '1 tag', '2 tags'."""
    return '{:,} {}'.format(number, singular if number == 1 else plural or singular + 's')


def size_text(size: float) -> str:
    """Return a number of bytes as a reader takes it in: '1.4 GiB'."""
    if size < 1024:
        return count(int(size), 'byte')
    for unit in ('KiB', 'MiB', 'GiB', 'TiB'):
        size /= 1024
        if size < 1024:
            break
    return '{:.1f} {}'.format(size, unit)


def describe(plan: Plan, verb: str) -> Iterator[Tuple[int, str]]:
    """Yield (log level, line) for each thing that `plan` removes, and last the summary."""
    whole = {reference.repository for reference in plan.references
             if reference.kind == 'repository'}
    lines = {'tag': 'tag {0}:{1}', 'entry': 'history entry {1} of {0}:{2}',
             'manifest': 'manifest {0}@{1}', 'layer': 'layer link {1} of {0}',
             'upload': 'upload {1} of {0}', 'repository': 'repository {0}'}
    for kind, *names in plan.references:
        detail = kind in ('entry', 'layer') or kind != 'repository' and names[0] in whole
        yield (logging.DEBUG if detail else logging.INFO), verb + ' ' + lines[kind].format(*names)
    for digest, size in plan.blobs.items():
        yield logging.DEBUG, '{} blob {} ({})'.format(verb, digest, size_text(size))
    for folder in plan.folders:
        yield logging.DEBUG, "{} empty folder '{}'".format(verb, folder)
    yield logging.INFO, summary(plan, verb)


def summary(plan: Plan, verb: str) -> str:
    """Return the one line that says what went and how many bytes are free."""
    counts = [(len(plan.named(kind)), kind, '')
              for kind in ('tag', 'manifest', 'upload')]
    counts = ([(len(plan.named('repository')), 'repository', 'repositories')] + counts
              + [(len(plan.blobs), 'blob', ''), (len(plan.folders), 'empty folder', '')])
    what = ', '.join(count(*item) for item in counts if item[0])
    if not what:
        return 'Nothing to delete' if not plan.failed else 'Nothing was deleted'
    names = sorted({reference.repository for reference in plan.references})
    where = ' of ' + names[0] if len(names) == 1 else ' of {} repositories'.format(len(names))
    return '{} {}{}: {} freed'.format(
        verb, what, where if names else '', size_text(sum(plan.blobs.values())))


# -- The command line -----------------------------------------------------------------------------

EXAMPLES = """\
examples:
  delete_docker_registry_image -n -i team/app:1.0     what would go, and what stays?
  delete_docker_registry_image -i team/app:1.0 -i team/app:1.1
  delete_docker_registry_image -i 'team/*:pr-*'       quote patterns
  delete_docker_registry_image -u -p -i '*'           all that no tag reaches

Stop the registry first and start it again afterwards: it caches what it has
seen. Images of a Harbor, or of a GitLab registry with a metadata database, are
deleted there, not here: their tags are not on this disk.

exit status: 0 done, or nothing to do; 1 refused or failed, nothing was deleted;
2 usage; 3 some things could not be deleted (each is named)
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, add_help=False, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage='%(prog)s [options] -i IMAGE [-i IMAGE ...]',
        description="Delete images from the disk of a stopped Docker registry.")
    what = parser.add_argument_group('what to delete')
    what.add_argument('-i', '--image', metavar='IMAGE', action='append', default=[], dest='images',
                      help='NAME, NAME:TAG or NAME@DIGEST; repeatable. NAME and TAG may be '
                           'patterns (* ? [...]; * also matches /)')
    what.add_argument('-u', '--untagged', action='store_true',
                      help='in the named repositories delete only what no tag reaches')
    what.add_argument('-p', '--prune', action='store_true', help='delete empty folders')
    how = parser.add_argument_group('how')
    how.add_argument('-n', '--dry-run', action='store_true',
                     help='say what would be deleted; touch nothing')
    how.add_argument('-f', '--force', action='store_true',
                     help='accepted for old scripts; has no effect')
    where = parser.add_argument_group('where')
    where.add_argument('-d', '--registry-data-dir', metavar='DIR',
                       help='the folder that the registry keeps its data in, or one in it down to '
                            'docker/registry/v2. Default: $REGISTRY_DATA_DIR, else '
                            '$REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY, else the one of '
                            + ', '.join(DEFAULT_DATA_DIRS) + ' that holds a registry')
    output = parser.add_argument_group('output')
    output.add_argument('-v', '--verbose', action='store_true', help='name every blob and folder')
    output.add_argument('-q', '--quiet', action='store_true', help='only warnings and errors')
    output.add_argument('-V', '--version', action='version', version='%(prog)s ' + __version__)
    output.add_argument('-h', '--help', action='help', help='show this help')
    return parser


def find_data_dir(given: Optional[str]) -> str:
    """Return the folder to look for a registry in: the given one, else as the help says."""
    for directory in (given, os.environ.get('REGISTRY_DATA_DIR'),
                      os.environ.get('REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY')):
        if directory:
            return directory
    found = [path for path in DEFAULT_DATA_DIRS if os.path.isdir(path + '/docker/registry/v2')]
    if len(found) == 1:
        return found[0]
    raise RegistryCleanerError('{} Name the one to work on with -d'.format(
        'There is more than one registry here: ' + ', '.join(found) + '.' if found else
        'No registry data found in ' + ', '.join(DEFAULT_DATA_DIRS) + '.'))


def run(argv: Optional[Sequence[str]]) -> int:
    """Do what the command line `argv` says; return the exit status."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    try:
        images = tuple(map(parse_image, arguments.images))
    except ValueError as error:
        parser.error(str(error))
    if not images and (arguments.untagged or not arguments.prune):
        parser.error('an image is required: -i NAME, -i NAME:TAG or -i NAME@DIGEST')
    if arguments.untagged and any(image.tag or image.digest for image in images):
        parser.error('-u takes whole repositories: -i NAME, without a tag or a digest')

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter('%(levelname)-8s [%(asctime)s]  %(message)s'))
    log.handlers = [handler]
    log.setLevel(logging.DEBUG if arguments.verbose else
                 logging.WARNING if arguments.quiet else logging.INFO)
    if arguments.force:
        log.warning('-f, --force has no effect')
    try:
        cleaner = RegistryCleaner(find_data_dir(arguments.registry_data_dir), arguments.dry_run)
        done = cleaner.run(Request(images, arguments.untagged, arguments.prune))
    except RegistryCleanerError as error:
        for line in str(error).splitlines():
            log.error('%s', line)
        return 1
    for text in done.warnings:
        log.warning('%s', text)
    for level, line in describe(done, 'Would delete' if arguments.dry_run else 'Deleted'):
        log.log(level, '%s', line)
    return 3 if done.failed else 0


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line `argv`, the process's own by default; return the exit status."""
    logging.raiseExceptions = False  # nobody may be reading, and the work goes on
    try:
        return run(argv)
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == '__main__':
    sys.exit(main())
