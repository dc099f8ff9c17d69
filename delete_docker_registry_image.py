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
import contextlib
import errno
import fcntl
import fnmatch
import hashlib
import json
import logging
import os
import re
import signal
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
JOURNAL = '.delete_docker_registry_image.journal'
JOURNAL_VERSION = 1
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

    What is missing, or in `gone`, reads as empty.  What exists and cannot be read raises OSError.
    """

    def __init__(self, v2: str) -> None:
        self.v2 = v2
        self.gone: Set[str] = set()  # paths of what a plan removes: it reads as missing already
        self.repositories = v2 + '/repositories'
        self.blobs = v2 + '/blobs'
        self.links: Dict[str, str] = {}  # symbolic links met while reading -> where they lead
        self._names: Optional[List[str]] = None
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

    def signature(self, name: str, digest: str, signature: str) -> str:
        return self.manifest(name, digest) + '/signatures/' + signature.replace(':', '/')

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
        if path in self.gone:
            return []
        try:
            with os.scandir(path) as found:
                entries = sorted((entry for entry in found if entry.path not in self.gone),
                                 key=lambda entry: entry.name)
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
        if os.path.dirname(path) in self.gone:
            return False
        try:
            if stat.S_ISLNK(os.lstat(path).st_mode):
                self.links[path] = os.path.realpath(path)
                os.stat(path)
        except FileNotFoundError:
            self.require_missing(path)
            return False
        return True

    def has_link(self, folder: str) -> bool:
        """Tell whether `folder`, which lies in a folder that is there, is and holds a link."""
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
        if self._names is None:
            self._names = self._find_repositories()
        return [name for name in self._names if self.layers(name) not in self.gone]

    def _find_repositories(self) -> List[str]:
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

    def links_to(self, name: str, blobs: AbstractSet[str],
                 signed: Mapping[str, str]) -> Iterator[str]:
        """Yield those of `blobs` that repository `name` has a link to.

        `signed` maps those that are signatures to the manifest that they sign.  No sha256 link is
        opened, and a folder is listed where that is fewer calls than looking for each blob.
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
                        yield self.target(folder, digest)
        for blob, manifest in signed.items():
            if self.manifest(name, manifest) not in self.gone and self.has_link(
                    self.signature(name, manifest, blob)):
                yield blob

    def linked(self, blobs: Iterable[str], signed: Mapping[str, str]) -> Set[str]:
        """Return those of `blobs` that any repository has a link to."""
        left = set(blobs)
        linked: Set[str] = set()
        for name in self.repository_names():
            found = left.intersection(self.links_to(name, left, signed)) if left else set()
            linked |= found
            left -= found
        return linked

    def holds_a_blob(self) -> bool:
        """Tell whether any blob is stored at all."""
        return any(self.exists(self.blob(algorithm + ':' + name) + '/data')
                   for algorithm in self.folders(self.blobs)
                   for prefix in self.folders(self.blobs + '/' + algorithm)
                   for name in self.folders('/'.join((self.blobs, algorithm, prefix))))

    def size(self, digest: str) -> Optional[int]:
        """Return the bytes that removing the blob frees, None when it is not stored."""
        path = self.blob(digest)
        if os.path.islink(path) or os.path.islink(path + '/data'):
            return 0  # the link goes, what it leads to stays
        return os.stat(path + '/data').st_size if self.exists(path + '/data') else None

    def empty_folders(self) -> List[str]:
        """Return the folders that hold nothing, each before its parent.

        What the registry needs of a repository that has a tag or a manifest stays, empty or not.
        """
        walk = [self.v2] + [top for top in (self.repositories, self.blobs) if os.path.islink(top)]
        held: Dict[str, int] = {}
        for path in walk:  # grows as it goes
            entries = self.entries(path)
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
    signed: Dict[str, str] = {}  # blob that is a signature -> the manifest that it signs
    staying: Dict[str, AbstractSet[str]] = {}  # repository -> its revisions that stay
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


def what_needs_what(repository: Repository) -> Dict[str, List[str]]:
    """Return which manifests each tag and each manifest needs to be pulled.

    A manifest needs its children, a tag its manifest, a broken tag whatever it may have stood for.
    """
    manifests = repository.manifests
    edges = {digest: [child for child in manifest.children if child in manifests]
             for digest, manifest in manifests.items()}
    everything = list(manifests)
    for tag, (current, history, _) in repository.tags.items():
        named = (current,) if current else history
        edges[tag_node(tag)] = [d for d in named if d in manifests] if named else everything
    return edges


def what_reaches_what(repository: Repository) -> Graph:
    """Return what each tag and each manifest of `repository` reaches in one step.

    A tag and a manifest reach what they need.  A manifest reaches whatever names it as subject,
    too, and its referrer tags.
    """
    manifests, tags = repository.manifests, repository.tags
    edges = what_needs_what(repository)
    for digest, manifest in manifests.items():
        if manifest.subject in manifests:
            edges[str(manifest.subject)].append(digest)
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


def needed_layers(repository: Repository, tags: Iterable[str],
                  manifests: Iterable[str]) -> Set[str]:
    """Return the layer links that `tags` and `manifests` of `repository` need."""
    digests = {repository.tags[tag].digest or '' for tag in tags}
    for digest in manifests:
        digests.add(digest)
        digests.update(repository.manifests[digest].names)
    return with_second_links(repository, digests)


def with_second_links(repository: Repository, digests: Set[str]) -> Set[str]:
    """Return `digests` with the second link of each layer pushed under another algorithm.

    It is under the sha256 of the layer: no manifest names it, and the first link needs it.
    """
    return digests.union([repository.layers[digest] for digest in digests
                          if digest in repository.layers])


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
    named = frozenset(tag_node(tag) for tag in tags if tag in selected
                      or tags[tag].digest in wish.digests) | wish.digests
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
    loses = bool(doomed) or len(kept_tags) < len(tags)
    if loses:
        require_readable(repository, kept_tags, kept_manifests)
    in_use = any(written > now - UPLOAD_AGE for written in repository.uploads.values())
    whole = wish.whole or (not kept_tags and not kept_manifests and not in_use
                           and (loses or wish.untagged))
    layers: AbstractSet[str] = repository.layers.keys()
    if not whole:
        layers &= with_second_links(
            repository, doomed.union(*(manifests[digest].names for digest in doomed)))
        layers -= needed_layers(repository, kept_tags, kept_manifests)
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


def what_still_goes(repository: Repository, planned: List[Reference],
                    changed: AbstractSet[Reference]) -> List[Reference]:
    """Return what of `planned`, the plan of a run that was interrupted, may still be removed.

    `changed` are the tags and manifests in it that were pushed again since then.  They stay, and so
    does all that anything there needs now.  Raises RegistryCleanerError as decide() does.
    """
    tags, manifests = repository.tags, repository.manifests
    going = {kind: {reference.name for reference in planned
                    if reference.kind == kind and reference not in changed} for kind in KINDS}
    roots = [tag_node(tag) for tag in tags if tag not in going['tag']]
    roots += [digest for digest in manifests if digest not in going['manifest']]
    kept = reach(roots, what_needs_what(repository))
    kept_tags = [tag for tag in tags if tag_node(tag) in kept]
    kept_manifests = kept & manifests.keys()
    require_readable(repository, kept_tags, kept_manifests)
    stay = {'tag': set(kept_tags), 'entry': kept_manifests, 'manifest': kept_manifests,
            'layer': needed_layers(repository, kept_tags, kept_manifests), 'upload': set()}
    if (kept or repository.layers.keys() - going['layer']
            or repository.uploads.keys() - going['upload']):
        stay['repository'] = {''}
    return [reference for reference in planned if reference not in changed
            and reference.name not in stay.get(reference.kind, ())]


def refuse_other_names(store: Store) -> None:
    """Refuse when something that goes has a name that stays, by a symbolic link in the store."""
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
    for path in sorted(store.gone):
        real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        names = leading.get(real, []) + [link + real[len(place):] for place in places_above(real)
                                         for link in arriving.get(place, ())]
        for name in names:
            if store.gone.isdisjoint(places_above(name)):
                raise RegistryCleanerError(
                    "'{}' would be deleted, but '{}', which stays, is the same by a symbolic link."
                    ' Nothing was deleted. Name both, or remove the link first'.format(path, name))


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


class Journal:
    """What is being removed from the store in `v2`, on disk before the first removal.

    It lies beside the store's folders, a line of JSON for each plan: a line that is torn belongs to
    a plan of which nothing was removed.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.path = store.v2 + '/' + JOURNAL

    def stamp(self, reference: Reference) -> Optional[List[int]]:
        """Return what tells the link of a tag or a manifest from one pushed later, None if gone."""
        folder = self.store.paths(reference)[0] + {'tag': '/current'}.get(reference.kind, '')
        try:
            status = os.lstat(folder + '/link')
        except FileNotFoundError:
            return None
        return [status.st_mtime_ns, status.st_ino]

    def changed(self, reference: Reference, stamp: Optional[List[int]]) -> bool:
        """Tell whether the tag or manifest was pushed again since `stamp` was taken."""
        return reference.kind in ('tag', 'manifest') and self.stamp(reference) not in (None, stamp)

    def read(self) -> Tuple[Plan, Set[Reference]]:
        """Return what is left of interrupted runs, and which of it has been pushed again since.

        Raises RegistryCleanerError when it cannot be understood: nothing goes on its word.
        """
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with open(os.open(self.path, flags), 'rb') as file:
                content = file.read()
        except FileNotFoundError:
            return Plan(), set()
        except OSError as error:
            raise self.refusal(str(error.strerror))
        plan, changed = Plan([], {}, [], {}), set()  # type: Tuple[Plan, Set[Reference]]
        for line in content.split(b'\n'):
            try:
                record = json.loads(line.decode('ascii'))
            except (ValueError, RecursionError):
                if line or not content:
                    log.warning('The journal of an interrupted run is torn or empty: that run had '
                                'removed nothing yet')
                continue
            try:
                references = [(Reference(*names), stamp) for *names, stamp in record['references']]
                blobs, signed = record['blobs'], record['signed']
                valid = record['version'] == JOURNAL_VERSION and all(
                    is_reference(reference) for reference, _ in references) and all(
                    map(is_digest, [*blobs, *signed, *signed.values()]))
            except (TypeError, ValueError, KeyError, AttributeError):
                valid = False
            if not valid:
                raise self.refusal('it was written by another version, or not by this program')
            plan.references.extend(reference for reference, _ in references)
            plan.blobs.update(dict.fromkeys(blobs, 0))
            plan.signed.update(signed)
            changed.update(reference for reference, stamp in references
                           if self.changed(reference, stamp))
        return plan, changed

    def refusal(self, reason: str) -> RegistryCleanerError:
        return RegistryCleanerError(
            "The journal '{0}' of an interrupted run cannot be used: {1}. Nothing was deleted. "
            "To go on without it: rm '{0}'".format(self.path, reason))

    def write(self, plan: Plan) -> None:
        """Add `plan`, and return when it is on the disk.  Raises RegistryCleanerError.

        A full disk is what this program is for: then it goes on without.
        """
        record = {'version': JOURNAL_VERSION, 'blobs': sorted(plan.blobs), 'signed': plan.signed,
                  'references': [[*reference, self.stamp(reference) if reference.kind in (
                      'tag', 'manifest') else None] for reference in plan.references]}
        before = None
        try:
            with open(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW,
                              0o600), 'ab') as file:
                before = file.tell()
                file.write(json.dumps(record).encode('ascii') + b'\n')
                file.flush()
                os.fsync(file.fileno())
            sync([self.store.v2])
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise RegistryCleanerError("Cannot write the journal '{}': {}. Nothing was deleted"
                                           .format(self.path, error.strerror))
            log.warning("No space left for the journal '%s': going on without. Should this run be "
                        'interrupted, the next one cannot finish it', self.path)
            if before == 0:
                remove(self.path)
            elif before:
                os.truncate(self.path, before)


def is_reference(reference: Reference) -> bool:
    """Tell whether every name in a reference that was read is one that this program writes."""
    kind, repository, name, tag = reference
    if kind not in KINDS or not all(isinstance(text, str) for text in reference):
        return False
    parts = repository.split('/') + {'tag': [name], 'upload': [name], 'entry': [tag]}.get(kind, [])
    return (all(part not in ('', '.', '..') and '/' not in part and '\0' not in part
                for part in parts)
            and (is_digest(name) if kind in ('entry', 'manifest', 'layer') else True)
            and (kind != 'repository' or not name))


def sync(folders: Iterable[str]) -> None:
    """Return when what was made in or removed from these folders is so on the disk.

    Of a folder that is gone itself, the one that it was in counts.
    """
    for folder in sorted({next(filter(os.path.isdir, places_above(path))) for path in folders}):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            log.warning("Cannot sync the folder '%s': %s. Should the power fail during this run, "
                        'the next one may have to collect what it left', folder, error.strerror)
            return  # the others lie on the same storage
        finally:
            os.close(descriptor)


class Remover:
    """Applies a plan, and keeps account of what failed.

    `stop` is asked before each removal whether to leave it, and the rest, to the next run.
    """

    def __init__(self, v2: str, stop: Callable[[], bool]) -> None:
        self.v2 = v2
        self.stop = stop
        self.complete = True  # nothing failed, and nothing was left to the next run
        self.failed: List[Tuple[str, str]] = []
        self.given_up: Set[str] = set()  # repositories left as they stand since something failed
        self.changed: Set[str] = set()  # folders that something was removed from

    def apply(self, plan: Plan) -> Plan:
        """Remove what `plan` names; return what is gone, and what failed."""
        store = Store(self.v2)
        first = [reference for reference in plan.references
                 if reference.kind in ('tag', 'entry', 'manifest')]
        done = [reference for reference in first if self.remove(store, reference)]
        spared = self.needed_by_newcomers(store, plan)
        done += [reference for reference in plan.references[len(first):]
                 if reference not in spared and self.remove(store, reference)]
        sync(self.changed)
        try:
            linked = store.linked(plan.blobs, plan.signed)
        except OSError as error:
            self.fail(error)
            linked = set(plan.blobs)
        blobs = {digest: size for digest, size in plan.blobs.items()
                 if digest not in linked and self.attempt(remove, store.blob(digest))}
        folders = [folder for folder in plan.folders if self.attempt(remove_empty, folder)]
        return plan._replace(references=done, blobs=blobs, folders=folders, failed=self.failed)

    def needed_by_newcomers(self, store: Store, plan: Plan) -> Set[Reference]:
        """Return what `plan` removes and a manifest needs that appeared since the scan."""
        spared: Set[Reference] = set()
        for name, staying in plan.staying.items():
            try:
                if name not in self.given_up and any(
                        store.exists(store.manifest(name, digest) + '/link')
                        for digest in store.digests(store.revisions(name))
                        if digest not in staying):
                    repository = store.read_repository(name)
                    require_readable(repository, repository.tags, repository.manifests)
                    needed = needed_layers(repository, repository.tags, repository.manifests)
                    spared.update(reference for reference in plan.references
                                  if reference.repository == name and (
                                      reference.kind == 'repository' or reference.name in needed))
            except (OSError, RegistryCleanerError) as error:
                self.fail(error)
                self.given_up.add(name)
        return spared

    def remove(self, store: Store, reference: Reference) -> bool:
        """Remove what `reference` names, unless its repository is given up; tell if it is gone."""
        name = reference.repository
        for path in store.paths(reference):
            if name not in self.given_up and not self.attempt(remove, path):
                self.given_up.add(name)
        if reference.kind == 'repository' and name not in self.given_up:
            self.attempt(remove_empty, store.repository(name))
        return name not in self.given_up

    def attempt(self, function: Callable[[str], bool], path: str) -> bool:
        """Tell whether `path` is gone after `function` tried to remove it."""
        if self.stop():
            self.complete = False
            return False
        try:
            self.changed.add(os.path.dirname(path))
            return function(path)
        except OSError as error:
            self.fail(error)
            return False

    def fail(self, error: Exception) -> None:
        path, reason = ((str(error.filename), str(error.strerror)) if isinstance(error, OSError)
                        else (self.v2, str(error)))
        log.error("Could not delete '%s': %s", path, reason)
        self.failed.append((path, reason))
        self.complete = False


# -- Safe ground: one run at a time, and no registry at work --------------------------------------

@contextlib.contextmanager
def locked(v2: str) -> Iterator[None]:
    """Hold the lock on the store.  Raises RegistryCleanerError when another run holds it."""
    descriptor = os.open(v2, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RegistryCleanerError(
                "Another run is at work on '{}'. Nothing was deleted. Wait for its end".format(v2))
        except OSError as error:  # a network file system may be unable to
            log.warning("Cannot lock '%s': %s. Make sure that no other run is at work on it",
                        v2, error.strerror)
        yield
    finally:
        os.close(descriptor)


def refuse_running_registry(v2: str, read_only: bool) -> None:
    """Refuse when a registry on this machine works on the store.

    One that is `read_only` may, unless it is a cache of another registry: that writes on each pull.
    """
    try:
        processes = [name for name in os.listdir('/proc') if name.isdigit()]
    except OSError as error:
        log.debug('Cannot check whether a registry is running: %s', error.strerror)
        return
    for process in processes:
        try:
            with open('/proc/{}/cmdline'.format(process), 'rb') as file:
                command = os.fsdecode(file.read()).split('\0')
            if command[1:2] not in (['serve'], ['garbage-collect']):
                continue
            folders, cached = registry_settings(process, command)
            if not any(os.path.samefile(v2, folder) for folder in folders
                       if os.stat(os.path.dirname(folder)) and os.path.lexists(folder)):
                continue
        except OSError as error:
            if not isinstance(error, (FileNotFoundError, ProcessLookupError)):
                log.debug('Cannot check whether process %s is a registry at work on this data: %s',
                          process, error.strerror)
            continue
        text = 'Process {} ({}) is a registry at work on this data'.format(
            process, ' '.join(command).strip())
        if cached and read_only:
            raise RegistryCleanerError('{}, and a cache: it writes on every pull, read-only or not.'
                                       ' Nothing was deleted. Stop it first'.format(text))
        if not read_only or command[1] != 'serve':
            raise RegistryCleanerError(
                '{}. Nothing was deleted. Stop it, or restart it in read-only mode and pass '
                '--read-only-registry'.format(text))


def registry_settings(process: str, command: Sequence[str]) -> Tuple[List[str], bool]:
    """Return the v2 folders that a registry process may work on, and whether it is a cache.

    Its environment goes before its configuration file, and that before the images' default.  The
    paths lead through /proc, so that they are those that the process sees.
    """
    proc = '/proc/{}/'.format(process)

    def seen_by_process(path: str) -> str:
        return proc + ('root' if path.startswith('/') else 'cwd/') + path

    with open(proc + 'environ', 'rb') as file:
        environment = dict(text.partition('=')[::2]
                           for text in os.fsdecode(file.read()).split('\0'))
    configuration = ''
    for path in [word for word in command[2:] if word and not word.startswith('-')][:1]:
        with open(seen_by_process(path), errors='replace') as text:
            configuration = re.sub(r'(^|\s)#.*', '', text.read(1 << 20))

    def values(key: str, variable: str) -> List[str]:
        if environment.get(variable):
            return [environment[variable]]
        lines = re.findall(key + r'[\'"]?\s*:[ \t]*(\S.*)', configuration)
        return [value.strip('\'" \t') for line in lines
                for value in (line, re.split('[,}]', line)[0])]

    roots = values('rootdirectory', 'REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY')
    return ([seen_by_process(root) + '/docker/registry/v2'
             for root in roots or ['/var/lib/registry']],
            bool(values('remoteurl', 'REGISTRY_PROXY_REMOTEURL')))


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
    directory = os.path.abspath(directory) if directory else ''
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

    def __init__(self, registry_data_dir: str, dry_run: bool = False,
                 read_only_registry: bool = False) -> None:
        self.v2 = find_v2(registry_data_dir)
        self.dry_run = dry_run
        self.read_only_registry = read_only_registry
        self.complete = True  # all that the journal names is gone
        self.removing = False
        self.interrupted = 0  # set while removing: leave the rest to the next run

    def delete_entire_repository(self, repo: str) -> Plan:
        """Delete the repository `repo`; repositories below it stay."""
        return self.run(Request((literal(repo),)))

    def delete_repository_tag(self, repo: str, tag: str) -> Plan:
        """Delete the tag `tag` of `repo` with the images that only it reached."""
        return self.run(Request((literal(repo, tag),)))

    def delete_untagged(self, repo: str) -> Plan:
        """Delete the manifests of `repo` that no tag reaches."""
        return self.run(Request((literal(repo),), untagged=True))

    def prune(self) -> Plan:
        """Delete empty folders."""
        return self.run(Request(prune=True))

    def run(self, request: Request, report: Callable[[Plan], None] = lambda plan: None) -> Plan:
        """Finish what an interrupted run left, carry out `request`, and report on each."""
        try:
            with contextlib.ExitStack() as stack:
                if not self.dry_run:
                    stack.enter_context(locked(self.v2))
                    refuse_running_registry(self.v2, self.read_only_registry)
                return self._run(request, report)
        except OSError as error:
            raise RegistryCleanerError("Cannot go on: '{}': {}".format(
                error.filename, error.strerror))

    def _run(self, request: Request, report: Callable[[Plan], None]) -> Plan:
        store = Store(self.v2)
        journal = Journal(store)
        unfinished, pushed_again = journal.read()
        finished = Plan()
        if unfinished.references or unfinished.blobs:
            log.warning('An earlier run was interrupted. What it left is finished first')
            finished = self.carry_out(plan_rest(store, unfinished, pushed_again), journal)
            report(finished)
        elif not self.dry_run:
            remove(journal.path)
        if self.interrupted:
            return finished
        if not self.dry_run:
            store = Store(self.v2)
        plan = plan_request(store, request, unfinished.references)
        plan = self.carry_out(plan, journal, new=True)
        report(plan)
        return Plan(finished.references + plan.references, {**finished.blobs, **plan.blobs},
                    plan.folders, failed=finished.failed + plan.failed)

    def carry_out(self, plan: Plan, journal: Journal, new: bool = False) -> Plan:
        """Unless this is a dry run, remove what `plan` names and return what is gone.

        The journal holds a plan that is not `new` already.
        """
        if self.dry_run or not (plan.references or plan.blobs or plan.folders or not new):
            return plan
        self.removing = True  # from here on an interruption leaves the rest to the next run
        if new:
            journal.write(plan)
        remover = Remover(self.v2, lambda: bool(self.interrupted))
        plan = remover.apply(plan)
        self.complete = self.complete and remover.complete
        if self.complete:
            remover.attempt(remove, journal.path)
        self.removing = False
        return plan


def plan_request(store: Store, request: Request, finished: Iterable[Reference] = ()) -> Plan:
    """Return what `request` removes.  Reads each thing once, and changes nothing.

    What an interrupted run left, now `finished`, is not missing.  Raises RegistryCleanerError when
    nothing may be deleted, and OSError for what cannot be read.
    """
    names = store.repository_names()
    refuse_unsafe_ground(store, names)
    found = {image: matching_repositories(image, names) for image in request.images}
    wishes = wishes_by_repository(request, found)
    repositories = {name: store.read_repository(name) for name in sorted(wishes)}
    gone = {(repository, name) for _, repository, name, _ in finished}
    missing = [missing_part(image, found[image], repositories, gone) for image in request.images]
    if any(missing):
        raise RegistryCleanerError('\n'.join(
            'No {} found in repositories directory {}{}'.format(
                part, store.repositories, shorter_name(image, found[image], names))
            for image, part in zip(request.images, missing) if part))

    plan = Plan([], {}, [], {}, {}, ["Nothing matches '{}'".format(
        image) for image in found if image.pattern and not any(
            not image.tag or matching(image.tag, repositories[name].tags)
            for name in found[image])])
    blobs: Set[str] = set()
    for name, repository in repositories.items():
        graph = what_reaches_what(repository)
        if wishes[name].untagged and has_no_tag(repository, graph):
            plan.warnings.append(
                "Repository '{0}' has manifests and no tag, and was left alone: its images may be "
                'used by digest, or their tags kept in a database. To delete all of it: '
                '{1} -i {0}'.format(name, PROGRAM))
            continue
        lost = [reference for reference in decide(repository, graph, wishes[name], time.time())
                if reference.kind != 'layer' or store.has_link(store.layer(name, reference.name))]
        plan.references.extend(lost)
        plan.warnings.extend(unknown_layers(repository, lost))
        plan.signed.update((signature, digest) for _, _, digest, _ in lost
                           for signature in repository.signatures.get(digest, ()))
        blobs.update(blobs_of(repository, lost))
        plan.staying[name] = repository.revisions.keys() - {digest for _, _, digest, _ in lost}
    return with_blobs(store, plan, blobs.union(plan.signed), request.prune)


def plan_rest(store: Store, unfinished: Plan, pushed_again: AbstractSet[Reference]) -> Plan:
    """Return what of `unfinished`, the plan of an interrupted run, may still be removed.

    The store may have changed since then, so this decides again.  Raises as plan_request() does.
    """
    names = store.repository_names()
    refuse_unsafe_ground(store, names)
    plan = Plan([], {}, [], unfinished.signed, {})
    planned: Dict[str, List[Reference]] = {}
    for reference in unfinished.references:
        planned.setdefault(reference.repository, []).append(reference)
    for name, references in planned.items():
        if name in names:
            repository = store.read_repository(name)
            known = {reference.name for reference in references if reference.kind == 'layer'}
            repository = repository._replace(layers={
                digest: blob for digest, blob in repository.layers.items()
                if digest in known or store.has_link(store.layer(name, digest))})
            references = what_still_goes(repository, references, pushed_again)
            plan.staying[name] = repository.revisions.keys() - {
                reference.name for reference in references}
        plan.references.extend(reference for reference in references if any(
            map(os.path.lexists, store.paths(reference) + [store.repository(name)]
                if reference.kind == 'repository' else store.paths(reference))))
    return with_blobs(store, plan, set(unfinished.blobs), False)


def with_blobs(store: Store, plan: Plan, blobs: Set[str], prune: bool) -> Plan:
    """Return `plan` in the order of removal, with those of `blobs` to which it leaves no link.

    From here on what it removes reads as missing in `store`.
    """
    store.gone.update(path for reference in plan.references for path in store.paths(reference))
    for digest in sorted(blobs - store.linked(blobs, plan.signed)):
        size = store.size(digest)
        if size is not None:
            plan.blobs[digest] = size
    store.gone.update(map(store.blob, plan.blobs))
    refuse_other_names(store)
    return plan._replace(
        references=sorted(plan.references, key=lambda reference: KINDS.index(reference.kind)),
        signed={blob: plan.signed[blob] for blob in plan.blobs if blob in plan.signed},
        folders=store.empty_folders() if prune else [])


def literal(repo: str, tag: Optional[str] = None) -> Image:
    """Return the image of these names.  Raises RegistryCleanerError unless they are names."""
    image = Image(repo, tag)
    try:
        if parse_image(str(image)) == image and not image.pattern and tag != '':
            return image
    except ValueError:
        pass
    raise RegistryCleanerError("'{}' is no valid image name".format(image))


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


def missing_part(image: Image, found: List[str], repositories: Mapping[str, Repository],
                 gone: AbstractSet[Tuple[str, str]]) -> Optional[str]:
    """Return what `image`, found in the repositories `found`, names and is neither there nor gone.

    `gone` holds (repository, tag or digest), the latter '' for a whole repository.
    """
    name = found[0] if found else image.name
    part = image.tag or image.digest or ''
    if image.pattern or not gone.isdisjoint(((name, part), (name, ''))):
        return None
    if not found:
        return "repository '{}'".format(name)
    if image.tag and image.tag not in repositories[name].tags:
        return "repository '{}' tag '{}'".format(name, image.tag)
    if image.digest and image.digest not in repositories[name].manifests:
        return "repository '{}' manifest '{}'".format(name, image.digest)
    return None


def shorter_name(image: Image, found: List[str], names: List[str]) -> str:
    """Return a hint when `image` would have been found without what looks like its host."""
    shorter = image.name.partition('/')[2]
    return ". Did you mean '{}'?".format(shorter) if not found and shorter in names else ''


def has_no_tag(repository: Repository, graph: Graph) -> bool:
    """Tell whether there are manifests and no tag but referrer tags: nobody knows their use."""
    return bool(repository.manifests) and repository.tags.keys() <= graph.referrer_tags


def blobs_of(repository: Repository, lost: Iterable[Reference]) -> Set[str]:
    """Return the blobs that the links in `lost` stand for."""
    return {(repository.revisions if reference.kind == 'manifest' else repository.layers)
            [reference.name] for reference in lost if reference.kind in ('manifest', 'layer')}


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
  delete_docker_registry_image -n -i team/app:1.0     what would be deleted?
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
    how.add_argument('--read-only-registry', action='store_true',
                     help='the registry is running, in read-only mode')
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
    for directory in (given, os.environ.get('REGISTRY_DATA_DIR') or None,
                      os.environ.get('REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY') or None):
        if directory is not None:
            return directory
    found = [path for path in DEFAULT_DATA_DIRS if os.path.isdir(path + '/docker/registry/v2')]
    if len(found) == 1:
        return found[0]
    raise RegistryCleanerError('{} Name the one to work on with -d'.format(
        'There is more than one registry here: ' + ', '.join(found) + '.' if found else
        'No registry data found in ' + ', '.join(DEFAULT_DATA_DIRS) + '.'))


class Interrupted(BaseException):
    """A signal came while nothing was being removed."""


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
        cleaner = RegistryCleaner(find_data_dir(arguments.registry_data_dir), arguments.dry_run,
                                  arguments.read_only_registry)
        catch_signals(cleaner)
        done = cleaner.run(Request(images, arguments.untagged, arguments.prune),
                           lambda plan: report(plan, arguments.dry_run))
    except RegistryCleanerError as error:
        for line in str(error).splitlines():
            log.error('%s', line)
        return 1
    except Interrupted as interrupted:
        log.error('Interrupted')
        return 128 + int(interrupted.args[0])
    if cleaner.interrupted:
        log.warning('Interrupted.%s', '' if cleaner.complete else ' The next run finishes the rest')
        return 128 + cleaner.interrupted
    return 3 if done.failed else 0


def catch_signals(cleaner: RegistryCleaner) -> None:
    """Let SIGINT and SIGTERM end a run between two removals, and at once while it only reads."""
    def catch(number: int, frame: Any) -> None:
        if not cleaner.removing:
            raise Interrupted(number)
        cleaner.interrupted = number

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, catch)


def report(plan: Plan, dry_run: bool) -> None:
    """Log what was, or would be, removed."""
    for text in plan.warnings:
        log.warning('%s', text)
    for level, line in describe(plan, 'Would delete' if dry_run else 'Deleted'):
        log.log(level, '%s', line)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line `argv`, the process's own by default; return the exit status."""
    logging.raiseExceptions = False  # nobody may be reading, and the work goes on
    try:
        return run(argv)
    finally:
        try:
            print(end='', flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == '__main__':
    sys.exit(main())
