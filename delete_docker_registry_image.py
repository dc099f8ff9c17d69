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

import gc

if __name__ == '__main__':
    gc.disable()  # a run makes a million objects, and no cycles among them to look for

import argparse
import contextlib
import errno
import logging
import os
import re
import stat
import sys
import threading
import time
from collections import Counter
from functools import lru_cache
from itertools import chain, compress, groupby
# Where an annotation would be worked out at each start, and cost time, it is in quotes.
from typing import (IO, AbstractSet, Any, Callable, Dict, Iterable, Iterator, List, Mapping,
                    NamedTuple, Optional, Sequence, Set, Tuple, TypeVar)

__version__ = '1.0.0'

PROGRAM = 'delete_docker_registry_image'
DEFAULT_DATA_DIRS = ('/var/lib/registry', '/var/lib/docker-registry', '/opt/registry_data',
                     '/root/data/registry')
MANIFEST_LIMIT = 4 << 20  # bytes; no registry reads a larger manifest
JOURNAL = '.delete_docker_registry_image.journal'
JOURNAL_VERSION = 1
UPLOAD_AGE = 24 * 3600  # seconds without a write after which an upload counts as given up
SLOW_LISTING = 0.001  # seconds that listing a folder takes on storage that wants parallel work
JOBS = 32  # operations at once on such storage
FEW = 4  # repositories that are read one after the other, each with all the threads
PROCESSES = 4  # at most
WORTH_A_PROCESS = 64  # repositories, or folders of blobs
LISTING_COST = 48  # listing a folder of links costs about as much as looking for so many names

Item = TypeVar('Item')
Result = TypeVar('Result')
Step = Callable[[], str]  # says what is going on

log = logging.getLogger(PROGRAM)


class RegistryCleanerError(Exception):
    """Why nothing was deleted, in words for the operator."""


def cannot_read(error: OSError) -> str:
    """Return the message for something that exists and cannot be read."""
    return "Cannot read '{}': {}".format(error.filename, error.strerror)


# -- Digests, names and images --------------------------------------------------------------------

# Expressions; `re` compiles each when it is first used, and keeps it.
DIGEST = '(?:sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})'
LEFTOVER = '(?:_layers|_manifests/revisions)/' + DIGEST.replace(':[', '/[')
COMPONENT = r'[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*'
TAG = r'[A-Za-z0-9_][A-Za-z0-9._-]{0,127}'
REFERRER_TAG = '(' + DIGEST.replace(':[', '-[') + r')(?:\.[\s\S]*)?'
HOST_WITH_PORT = r'(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]+/'


def is_digest(text: str) -> bool:
    """Tell whether `text` is `alg:hex` of the right length; only such a text becomes a path."""
    return re.fullmatch(DIGEST, text) is not None


def all_hex(names: 'List[str]', length: int) -> bool:
    """Tell whether all of `names` are so many hexadecimal digits.

    To look at all of them together takes a quarter of the time that one after the other takes.
    """
    return set(map(len, names)) == {length} and not (
        ''.join(names).encode('ascii', 'replace').translate(None, b'0123456789abcdef'))


def is_pattern(text: str) -> bool:
    """Tell whether `text` is a shell pattern, and not one name."""
    return not set('*?[').isdisjoint(text)


class Image(NamedTuple):
    """What one `-i` names: a repository, one of its tags, or one of its manifests."""

    name: str
    tag: Optional[str] = None
    digest: Optional[str] = None

    @property
    def pattern(self) -> bool:
        """Whether it may name any number of images, none included."""
        return is_pattern(self.name + (self.tag or ''))

    @property
    def whole(self) -> bool:
        """Whether it is whole repositories."""
        return not (self.tag or self.digest)

    def __str__(self) -> str:
        return self.name + (':' + self.tag if self.tag else '') + (
            '@' + self.digest if self.digest else '')


def names_whole(images: 'Iterable[Image]') -> bool:
    """Tell whether any of `images` is a whole repository."""
    return any(image.whole for image in images)


def parse_image(text: str) -> Image:
    """Return the image that `text` names: `NAME`, `NAME:TAG` or `NAME@DIGEST`.

    A host with a port in front, as `docker push` prints it, is dropped: no repository's name holds
    a colon.  Raises ValueError for whatever the registry's reference grammar does not allow.
    """
    host = re.match(HOST_WITH_PORT, text)
    rest = text[host.end():] if host else text
    name, at, digest = rest.partition('@')
    slash = name.rfind('/') + 1
    last, colon, tag = name[slash:].partition(':')
    name = name[:slash] + last
    if at and colon:
        raise ValueError("'{}' names a tag and a digest: give one of them".format(text))
    if at and not is_digest(digest):
        raise ValueError("'{}' has no valid digest after the '@'".format(text))
    if colon and not (is_pattern(tag) or re.fullmatch(TAG, tag)):
        raise ValueError("'{}' has no valid tag after the ':'".format(text))
    for component in name.split('/'):
        if not (is_pattern(component) or re.fullmatch(COMPONENT, component)) or len(name) > 255:
            raise ValueError("'{}' is no valid image name".format(text))
    try:
        for part in (name, tag):
            matching(part, ())  # compiles a pattern
    except re.error:
        raise ValueError("'{}' is no valid pattern".format(text))
    return Image(name, tag or None, digest or None)


def matching(wanted: str, names: 'Iterable[str]') -> 'List[str]':
    """Return those of `names` that `wanted`, a name or a pattern, selects.  Raises re.error."""
    if not is_pattern(wanted):
        return [wanted] if wanted in names else []
    import fnmatch
    return fnmatch.filter(names, wanted)  # `*` matches `/` too


# -- Manifests ------------------------------------------------------------------------------------

# What manifests and descriptors hold; case-folded key -> key.
KEYS = {key.casefold(): key for key in (
    'schemaVersion mediaType artifactType config layers manifests blobs subject digest size urls '
    'platform annotations data fsLayers blobSum name tag architecture history signatures').split()}
USUAL_KEYS = frozenset(KEYS.values())
MANIFEST_KEYS = frozenset(('fsLayers', 'config', 'layers', 'manifests', 'blobs'))  # it has some
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
    foreign: Tuple[str, ...] = ()  # layers that are stored elsewhere
    fault: Optional[str] = None  # why it is unreadable
    kind: str = ''  # the keys that make it a manifest; empty if none do

    @property
    def names(self) -> 'Tuple[str, ...]':
        """Every digest of which it needs the content."""
        return self.blobs + self.children


def plain(document: Any) -> 'Dict[str, Any]':
    """Return a JSON object with its keys as they are usually spelled.

    The registry (Go) ignores the case of keys, so this does.  Raises ValueError if it is no object,
    or if a key stands in it twice.
    """
    if not isinstance(document, dict):
        raise ValueError('no JSON object')
    if document.keys() <= USUAL_KEYS:
        return document
    known = [(KEYS[key.casefold()], document[key]) for key in document if key.casefold() in KEYS]
    if len(dict(known)) < len(known):
        raise ValueError('a key stands twice')
    return dict(known)


def field(document: 'Dict[str, Any]', key: str, kind: type) -> Any:
    """Return the value of `key`, None if null or absent.  Raises ValueError for a wrong type."""
    value = document.get(key)
    if value is not None and not isinstance(value, kind):
        raise ValueError("'{}' has a wrong type".format(key))
    return value


def descriptors(document: 'Dict[str, Any]', key: str) -> 'List[Dict[str, Any]]':
    """Return the list `key`, empty if null or absent.  Raises ValueError for a wrong type."""
    items = field(document, key, list) or ()
    return [item if type(item) is dict and USUAL_KEYS.issuperset(item) else plain(item)
            for item in items]


def digests_in(found: 'List[Dict[str, Any]]', key: str = 'digest') -> 'Tuple[str, ...]':
    """Return the digests of descriptors.  Raises ValueError for one outside the grammar."""
    if not found:
        return ()
    try:
        digests = [sys.intern(descriptor[key]) for descriptor in found]
    except (KeyError, TypeError):
        raise ValueError('no digest')
    if not all(map(re.compile(DIGEST).fullmatch, digests)):
        raise ValueError('no valid digest')
    return tuple(digests)


# These two modules take the longest to import, and a run may do without.

@lru_cache(maxsize=None)
def hash_function(algorithm: str) -> Any:
    import hashlib
    return getattr(hashlib, algorithm)


@lru_cache(maxsize=None)
def json_decoder() -> Any:
    import json
    # Numbers mean nothing here, and reading a huge integer would take quadratic time.
    return json.JSONDecoder(parse_int=float)


def parse_manifest(digest: str, content: 'Optional[bytes]') -> Manifest:
    """Return what the manifest `digest` with this content (None: missing) names.

    Its kind is told by its keys; with keys of several kinds it counts as all of them.
    """
    if content is None:
        return Manifest()
    if len(content) > MANIFEST_LIMIT:
        return Manifest(fault='it is larger than 4 MiB')
    algorithm, _, name = digest.partition(':')
    if hash_function(algorithm)(content).hexdigest() != name:
        return Manifest(fault='its content does not match its digest')
    try:
        return parse_document(plain(json_decoder().decode(content.decode('utf-8', 'replace'))))
    except (ValueError, RecursionError) as error:
        return Manifest(fault='it is no valid manifest ({})'.format(error))


def parse_document(document: 'Dict[str, Any]') -> Manifest:
    """Return the manifest that a JSON object is.  Raises ValueError if it is none."""
    kind = MANIFEST_KEYS & document.keys()
    if not kind:
        raise ValueError('it has none of the keys of a manifest')
    layers, blobs, old_layers, entries = [
        descriptors(document, key) if key in kind else []
        for key in ('layers', 'blobs', 'fsLayers', 'manifests')]
    config, subject = [[] if document.get(key) is None else [plain(document[key])]
                       for key in ('config', 'subject')]
    typed = [entry for entry in entries if field(entry, 'mediaType', str) in MANIFEST_TYPES]
    foreign = [layer for layer in layers if 'urls' in layer and field(layer, 'urls', list)]
    return Manifest(digests_in(layers + blobs + config) + digests_in(old_layers, 'blobSum'),
                    digests_in(entries), digests_in(typed), (digests_in(subject) or (None,))[0],
                    digests_in(foreign), None, ' '.join(sorted(kind)))


# -- The store as it is on the disk ---------------------------------------------------------------

class Tag(NamedTuple):
    """One tag.  It is broken when its link is missing, empty or no digest."""

    digest: Optional[str]  # None: broken
    history: Tuple[str, ...] = ()  # the digests that its index has a link to
    entries: Tuple[str, ...] = ()  # these, and those whose folder has lost its link
    pushed: Optional[float] = None  # time of the last write to its link, in seconds, if `dated`
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
    leftovers: Tuple[str, ...]  # folders of revisions that have lost their link


class Workers:
    """Runs operations side by side: all parallel work is in here.

    Slow storage is waited for by threads, `jobs` at once; 0 lets the time of the first listings
    decide.  On fast storage there is more to work out than to wait for, and processes share it.
    `progress` is told what is going on, how many operations are done, and of how many.
    """

    def __init__(self, jobs: int = 0,
                 progress: Callable[[Step, int, int], None] = lambda *_: None) -> None:
        self.jobs = jobs
        self.progress = progress
        self.listing_times: List[float] = []
        self._pool: Any = None

    def threads(self) -> int:
        """Return how many operations to run at once."""
        times = sorted(self.listing_times)
        return self.jobs or (JOBS if times and times[len(times) // 2] > SLOW_LISTING else 1)

    def each(self, function: 'Callable[[Item], Result]', items: 'Sequence[Item]',
             step: Optional[Step] = None, large: bool = False) -> 'Iterator[Result]':
        """Yield function(item) for each of `items`, in their order; `step` says what it does.

        For a `large` item, `function` calls each() itself: a few of those come one by one, and each
        has all the threads.
        """
        threads = self.threads()
        results = map(function, items)
        if (threads > 1 and len(items) > (FEW if large else 1)
                and threading.current_thread() is threading.main_thread()):
            if not self._pool:
                # Not at the top: it takes longer to import than most runs last.
                from concurrent.futures import ThreadPoolExecutor
                self._pool = ThreadPoolExecutor(threads)
            results = self._pool.map(function, items)
        return self._watched(results, len(items), step) if step else results

    def _watched(self, results: 'Iterable[Result]', total: int, step: Step) -> 'Iterator[Result]':
        for done, result in enumerate(results):
            self.progress(step, done + 1, total)
            yield result

    def parts(self, function: 'Callable[[Sequence[Item]], Result]',
              items: 'Sequence[Item]') -> 'Iterator[Result]':
        """Yield function(part) for parts that make up `items`, in their order: one, or some.

        Processes share them, so `function` must do no more than return something.
        """
        count = 1
        if (len(items) >= WORTH_A_PROCESS and not self.jobs and self.threads() == 1
                and threading.active_count() == 1):  # a process is forked with one thread only
            count = min(os.cpu_count() or 1, PROCESSES)
        size = max(1, -(-len(items) // count))
        with contextlib.ExitStack() as stack:
            answers = [stack.enter_context(self._elsewhere(function, items[start:start + size]))
                       for start in range(size, len(items), size)]
            yield function(items[:size])
            for answer in answers:
                yield answer()

    @contextlib.contextmanager
    def _elsewhere(self, function: 'Callable[[Sequence[Item]], Result]',
                   part: 'Sequence[Item]') -> 'Iterator[Callable[[], Result]]':
        """Call function(part) in a process of its own; give what waits for the result.

        What that process does not tell, for whatever reason, is worked out in this one.
        """
        import pickle
        import signal
        reading, writing = os.pipe()
        try:
            process = os.fork()
        except OSError:  # no room for another process
            os.close(reading)
            os.close(writing)
            yield lambda: function(part)
            return
        if not process:
            try:
                os.closerange(3, writing)  # the lock among them: it must not outlive a killed run
                self.progress = lambda *_: None
                with open(writing, 'wb') as file:
                    pickle.dump(function(part), file, pickle.HIGHEST_PROTOCOL)
            finally:
                os._exit(0)

        def answer() -> Any:
            try:
                return pickle.load(pipe)
            except (EOFError, pickle.UnpicklingError):
                return function(part)

        try:
            os.close(writing)
            with open(reading, 'rb') as pipe:
                yield answer
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            raise
        finally:
            with contextlib.suppress(ChildProcessError):  # where SIGCHLD is ignored, none is left
                os.waitpid(process, 0)


# Where things lie below `repositories`: {0} is the repository, {1} the name, {2} a tag.
PLACES = {
    'repository': '{0}', 'manifests': '{0}/_manifests', 'tags': '{0}/_manifests/tags',
    'tag': '{0}/_manifests/tags/{1}', 'entry': '{0}/_manifests/tags/{2}/index/{1}',
    'revisions': '{0}/_manifests/revisions', 'index': '{0}/_manifests/revisions/{1}',
    'manifest': '{0}/_manifests/revisions/{1}', 'layers': '{0}/_layers',
    'layer': '{0}/_layers/{1}', 'alias': '{0}/_layers/{1}', 'uploads': '{0}/_uploads',
    'upload': '{0}/_uploads/{1}',
    'leftover': '{0}/{1}'}
DIGEST_KINDS = ('entry', 'index', 'manifest', 'alias', 'layer')  # their name is a digest


def followed(link: str) -> 'List[str]':
    """Return the places that a symbolic link leads to: other links on the way, and its end."""
    places: List[str] = []
    folder, todo = os.path.realpath(os.path.dirname(link)), [os.path.basename(link)]
    while todo and len(places) <= 40:  # Linux follows no more
        path = os.path.normpath(os.path.join(folder, todo.pop()))
        if os.path.islink(path):
            places.append(path)
            todo += reversed(os.readlink(path).split('/'))
            folder = '/' if os.readlink(path).startswith('/') else folder
        else:
            folder = path
    return places[1:] + [folder]


def subfolders(entries: 'Iterable[os.DirEntry[str]]') -> 'List[str]':
    """Return the paths of those of `entries` that are folders, and no symbolic links to some."""
    return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def places_above(path: str) -> 'Iterator[str]':
    """Yield `path` and every folder that it lies in."""
    while path not in ('', '/'):
        yield path
        path = os.path.dirname(path)


class Store:
    """A registry's v2 folder: makes every path in it, and reads what lies there.

    What is missing, or in `gone`, reads as empty.  What exists and cannot be read raises OSError.
    """

    def __init__(self, v2: str, workers: Workers) -> None:
        self.v2 = v2
        self.each = workers.each
        self.parts = workers.parts
        self.listing_times = workers.listing_times
        self.dated = False  # whether to read when each tag was pushed
        self.gone: Set[str] = set()  # paths of what a plan removes: it reads as missing already
        self.repositories = v2 + '/repositories'
        self.blobs = v2 + '/blobs'
        self.links: Dict[str, List[str]] = {}  # symbolic links met while reading, as followed()
        self._names: Optional[List[str]] = None
        self.parsed: Dict[str, Manifest] = {}
        self.known: Dict[str, Repository] = {}  # repositories that need not be read again

    def path(self, kind: str, repository: str, name: str = '', tag: str = '') -> str:
        """Return the path of something in a repository: `kind` is a key of PLACES."""
        if kind in DIGEST_KINDS:
            name = name.replace(':', '/')
        return self.repositories + '/' + PLACES[kind].format(repository, name, tag)

    def blob(self, digest: str) -> str:
        algorithm, _, name = digest.partition(':')
        return '/'.join((self.blobs, algorithm, name[:2], name))

    def paths(self, reference: 'Reference') -> 'List[str]':
        """Return what to remove for `reference`: of a repository all that is no other one's."""
        if reference.kind == 'repository':
            return [self.path(kind, reference.repository)
                    for kind in ('manifests', 'layers', 'uploads')]
        return [self.path(*reference)]

    # Reading, from single entries to whole repositories.

    def require_missing(self, path: str) -> None:
        """Raise OSError when `path` is not there because a link on the way leads nowhere."""
        while not os.path.lexists(path):
            path = os.path.dirname(path)
        if not os.path.exists(path):
            raise OSError(errno.ELOOP, "symbolic link to '{}', which is not there; mount it, or "
                          'remove the link'.format(os.readlink(path)), path)

    def entries(self, path: str) -> 'List[os.DirEntry[str]]':
        """Return what the folder `path` holds, in any order."""
        if path in self.gone:
            return []
        start = time.perf_counter() if len(self.listing_times) < 20 else 0.0
        try:
            with os.scandir(path) as found:
                entries = list(found)
        except FileNotFoundError:
            self.require_missing(path)
            return []
        if start:
            self.listing_times.append(time.perf_counter() - start)
        if self.gone:
            entries = [entry for entry in entries if entry.path not in self.gone]
        for entry in entries:
            if entry.is_symlink():
                self.links[entry.path] = followed(entry.path)
        return entries

    def folders(self, path: str) -> 'List[str]':
        """Return the names of the folders in `path`, sorted.

        Symbolic links to folders count, and so do those to nothing: who enters one will learn it.
        """
        return sorted(entry.name for entry in self.entries(path)
                      if entry.is_dir() or entry.is_symlink() and not os.path.exists(entry.path))

    def digests(self, path: str) -> 'List[str]':
        """Return the digests that the folders `path`/<alg>/<hex> stand for, in any order."""
        return list(chain.from_iterable(self.digests_of(path + '/' + algorithm, algorithm)
                                        for algorithm in self.folders(path)))

    def digests_of(self, folder: str, algorithm: str) -> 'List[str]':
        """Return the digests of `algorithm` that the names in `folder` make, in any order."""
        if folder in self.gone:
            return []
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            self.require_missing(folder)
            return []
        if self.gone:
            names = [name for name in names if folder + '/' + name not in self.gone]
        digests = list(map((algorithm + ':').__add__, names))
        return digests if algorithm == 'sha256' and all_hex(names, 64) else (
            list(filter(is_digest, digests)))

    def status(self, path: str) -> 'Optional[os.stat_result]':
        """Return the status of `path`, None if missing; take note when it is a symbolic link."""
        if self.gone and os.path.dirname(path) in self.gone:
            return None
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                self.links[path] = followed(path)
                status = os.stat(path)
        except FileNotFoundError:
            self.require_missing(path)
            return None
        return status

    def exists(self, path: str) -> bool:
        return self.status(path) is not None

    def has_link(self, folder: str) -> bool:
        """Tell whether `folder`, which lies in a folder that is there, is and holds a link."""
        try:
            if stat.S_ISLNK(os.lstat(folder).st_mode):
                self.links[folder] = followed(folder)
        except FileNotFoundError:
            return False
        return self.exists(folder + '/link')

    def read(self, path: str, limit: int) -> 'Optional[bytes]':
        """Return at most `limit` + 1 bytes of the file `path`, None when it is missing."""
        flags = os.O_RDONLY | os.O_NONBLOCK  # never wait for the other end of a pipe
        try:
            descriptor = os.open(path, flags | os.O_NOFOLLOW)
        except FileNotFoundError:
            self.require_missing(path)
            return None
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            if not self.exists(path):  # takes note of the link
                return None
            descriptor = os.open(path, flags)
        try:
            wanted = min(limit + 1, 1 << 16)
            content = chunk = os.read(descriptor, wanted)
            while chunk and len(chunk) == wanted:  # a shorter one is the last one
                wanted = limit + 1 - len(content)
                chunk = os.read(descriptor, wanted)
                content += chunk
            return content
        except OSError as error:
            raise OSError(error.errno, error.strerror, path)
        finally:
            os.close(descriptor)

    def read_link(self, folder: str) -> 'Optional[str]':
        """Return the digest in `folder`/link, None when it is missing, empty or no digest."""
        content = (self.read(folder + '/link', 200) or b'').decode('ascii', 'replace')
        return content if is_digest(content) else None

    def target(self, top: str, digest: str) -> str:
        """Return the digest of the blob that the link of `digest` below `top` stands for.

        A sha256 link is named after its blob.  Another one holds the name: blobs are stored under
        their sha256.
        """
        if digest.startswith('sha256:'):
            return digest
        return self.read_link(top + '/' + digest.replace(':', '/')) or digest

    def targets(self, top: str, digests: 'Iterable[str]') -> 'Dict[str, str]':
        """Return the target() of each of these links below `top`."""
        return {digest: self.target(top, digest) for digest in digests}

    def read_manifest(self, digest: str) -> Manifest:
        """Return the manifest stored as the blob `digest`; each is read once."""
        if digest not in self.parsed:
            try:
                content = self.read(self.blob(digest) + '/data', MANIFEST_LIMIT)
                self.parsed[digest] = parse_manifest(digest, content)
            except OSError as error:
                self.parsed[digest] = Manifest(fault=cannot_read(error), kind='unknown')
        return self.parsed[digest]

    def repository_names(self) -> 'List[str]':
        """Return the names of all repositories, sorted: folders that hold what a repository holds.

        A folder reached through symbolic links counts, but none is entered below itself.
        """
        if self._names is None:
            self._names = self._find_repositories()
        return [name for name in self._names if self.path('layers', name) not in self.gone]

    def _find_repositories(self) -> 'List[str]':
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
        folder = self.path('tag', name, tag)
        try:
            self.status(folder + '/current')
            digest = self.read_link(folder + '/current')
            pushed = self.status(folder + '/current/link') if self.dated else None
            entries = tuple(self.digests(folder + '/index'))
            return Tag(digest, tuple([entry for entry in entries if entry == digest or self.exists(
                self.path('entry', name, entry, tag) + '/link')]),
                entries, pushed.st_mtime if pushed else None)
        except OSError as error:
            return Tag(None, fault=cannot_read(error))

    def read_repositories(self, names: 'Sequence[str]') -> 'Iterator[Repository]':
        """Yield these repositories."""
        return self.each(lambda name: self.known.get(name) or self.read_repository(name), names,
                         lambda: 'Reading repositories', large=True)

    def read_repository(self, name: str) -> Repository:
        """Return the repository `name`, with all of its manifests."""
        for kind in ('tags', 'revisions'):
            self.status(self.path(kind, name))  # takes note when it is a symbolic link
        names = self.folders(self.path('tags', name))
        tags = dict(zip(names, self.each(lambda tag: self.read_tag(name, tag), names)))
        top = self.path('layers', name)
        layers = self.targets(top, self.digests(top))
        top = self.path('revisions', name)
        folders = self.digests(top)
        present = self.each(
            lambda digest: self.exists(self.path('manifest', name, digest) + '/link'), folders)
        revisions = self.targets(top, compress(folders, present))
        manifests = dict(zip(revisions, self.each(self.read_manifest, list(revisions.values()))))
        # Registry 2.1.0 linked manifests as layers, and every 2.x still serves them from there.
        todo = {digest for tag in tags.values() for digest in tag.history + (tag.digest or '',)}
        todo.update(child for manifest in manifests.values() for child in manifest.typed)
        while todo:
            digest = todo.pop()
            if (digest in layers and digest not in manifests
                    and self.has_link(self.path('layer', name, digest))):
                manifest = self.read_manifest(layers[digest])
                if manifest.kind:
                    manifests[digest] = manifest
                    todo.update(manifest.typed)
        signatures = {}
        for digest in revisions:
            if 'fsLayers' in manifests[digest].kind or manifests[digest].kind in ('', 'unknown'):
                folder = self.path('manifest', name, digest) + '/signatures/'
                signatures[digest] = tuple(
                    signature for signature in self.digests(folder[:-1])
                    if self.exists(folder + signature.replace(':', '/') + '/link'))
        uploads = {upload: self.last_write(self.path('upload', name, upload))
                   for upload in self.folders(self.path('uploads', name))}
        return Repository(name, tags, revisions, layers, manifests, signatures, uploads, tuple(
            '_manifests/revisions/' + digest.replace(':', '/')
            for digest in folders if digest not in revisions))

    def last_write(self, folder: str) -> float:
        """Return the time of the last write to anything in `folder`, in seconds."""
        times = [os.lstat(folder).st_mtime]
        folders = [folder]
        for path in folders:  # grows as it goes
            entries = self.entries(path)
            times += [entry.stat(follow_symlinks=False).st_mtime for entry in entries]
            folders += subfolders(entries)
        return max(times)

    def links_to(self, name: str, blobs: 'AbstractSet[str]',
                 signatures: 'AbstractSet[str]') -> 'Iterator[str]':
        """Yield those of `blobs` that repository `name` has a link to.

        `signatures` are those that may be signatures of a manifest.  No sha256 link is opened, and
        a folder is listed where that is fewer calls than looking for each blob.
        """
        shares_manifest = False
        for kind in ('layers', 'revisions'):
            top = self.path(kind, name)
            self.status(top)  # takes note when it is a symbolic link
            for algorithm in self.folders(top):
                named = algorithm == 'sha256'  # its links are named after their blobs
                if named and len(blobs) <= LISTING_COST:
                    found = {blob for blob in blobs if blob.startswith('sha256:')}
                else:
                    found = set(self.digests_of(top + '/' + algorithm, algorithm))
                for digest in blobs & found if named else found:
                    folder = top + '/' + digest.replace(':', '/')
                    if self.has_link(folder):
                        shares_manifest = shares_manifest or kind == 'revisions'
                        yield self.target(top, digest)
        if shares_manifest:
            # A tool that makes links of equal files makes one of the tag of the same manifest too.
            self.status(self.path('tags', name))
            for tag in self.folders(self.path('tags', name)):
                self.status(self.path('tag', name, tag) + '/current/link')
        for digest in self.digests(self.path('revisions', name)) if signatures else ():
            folder = self.path('manifest', name, digest)
            for blob in signatures if self.has_link(folder) else ():
                if self.has_link(folder + '/signatures/' + blob.replace(':', '/')):
                    yield blob

    def linked(self, blobs: 'Iterable[str]', signatures: 'Iterable[str]') -> 'Set[str]':
        """Return those of `blobs` that any repository has a link to."""
        sought = frozenset(blobs)
        marked = sought.intersection(signatures)
        names = self.repository_names() if sought else []
        return set().union(*self.each(
            lambda name: sought.intersection(list(self.links_to(name, sought, marked))), names))

    def holds_a_blob(self) -> bool:
        """Tell whether any blob is stored at all."""
        return any(self.exists(self.blob(digest) + '/data')
                   for folder in self.blob_folders() for digest in self.blobs_in(folder))

    def blob_folders(self) -> 'List[str]':
        """Return the folders that hold blobs, as '<alg>/<first 2 hex>'."""
        return [algorithm + '/' + prefix for algorithm in self.folders(self.blobs)
                for prefix in self.folders(self.blobs + '/' + algorithm)]

    def stored_blobs(self, used: 'AbstractSet[str]' = frozenset()) -> 'Dict[str, int]':
        """Return the size of each blob that is stored and not `used`, in any order."""
        sizes: Dict[str, int] = {}
        for found in self.parts(lambda folders: self.sizes(
                [digest for digests in self.each(self.blobs_in, folders) for digest in digests
                 if digest not in used]), self.blob_folders()):
            sizes.update(found)
        return sizes

    def blobs_in(self, folder: str) -> 'List[str]':
        """Return the digests of the blobs in one of the blob_folders()."""
        digests = self.digests_of(self.blobs + '/' + folder, folder.partition('/')[0])
        start = folder.replace('/', ':')
        return [digest for digest in digests if digest.startswith(start)]

    def size(self, digest: str) -> 'Optional[int]':
        """Return the bytes that removing the blob frees, None when it is not stored."""
        path = self.blob(digest)
        try:
            for part in (path, path + '/data'):
                status = os.lstat(part)
                if stat.S_ISLNK(status.st_mode):
                    return 0  # the link goes, what it leads to stays
        except FileNotFoundError:
            return None
        return status.st_size if path not in self.gone else None

    def sizes(self, digests: 'List[str]') -> 'Dict[str, int]':
        """Return the size of each of these blobs that is stored."""
        found = zip(digests, self.each(self.size, digests, lambda: 'Measuring blobs'))
        return {digest: size for digest, size in found if size is not None}

    def empty_folders(self) -> 'List[str]':
        """Return the folders that hold nothing, each before its parent.

        What the registry needs of a repository that has a tag or a manifest stays, empty or not.
        """
        level = [self.v2] + [top for top in (self.repositories, self.blobs) if os.path.islink(top)]
        walk: List[str] = []
        held: Dict[str, int] = {}
        while level:
            walk += level
            listed = list(self.each(self.entries, level))
            held.update(zip(level, map(len, listed)))
            level = subfolders(chain.from_iterable(listed))
        for path in reversed(walk[1:]):
            if not held[path]:
                held[os.path.dirname(path)] -= 1
        stay = {self.v2, self.repositories, self.blobs}
        for path in walk:
            if path.endswith('/_manifests') and held[path]:
                stay.update((path + '/tags', path + '/revisions', path[:-10] + '_layers'))
        return [path for path in reversed(walk) if not held[path] and path not in stay]


# -- The plan: pure decisions ---------------------------------------------------------------------

class Request(NamedTuple):
    """What the operator asks of a run, or of one repository in it."""

    images: Tuple[Image, ...] = ()
    excluded: Tuple[Image, ...] = ()  # never delete what these name
    untagged: bool = False  # of the images, which are repositories, only what no tag reaches
    garbage: bool = False  # in the whole registry, what nothing uses
    prune: bool = False  # empty folders
    keep_last: Optional[int] = None  # of the tags that each image selects in a repository
    older_than: Optional[float] = None  # select only tags pushed so many seconds ago, or more


class Reference(NamedTuple):
    """One thing to remove from a repository."""

    kind: str  # one of KINDS
    repository: str
    name: str = ''  # the tag, the digest, the upload or the leftover's folder
    tag: str = ''  # of a history entry


# In the order of removal, which keeps every tag that resolves complete at every moment.
# An index goes before the manifests, its children among them; an alias, a layer link under another
# algorithm, before the sha256 link that it needs.  A leftover is a folder that has lost its link.
KINDS = ('tag', 'entry', 'index', 'manifest', 'alias', 'layer', 'leftover', 'upload', 'repository')
MANIFESTS = ('index', 'manifest')
LAYERS = ('alias', 'layer')


def names_in(references: 'Iterable[Reference]', *kinds: str) -> 'Set[str]':
    """Return the names in those of `references` that are of these kinds."""
    return {name for kind, _, name, _ in references if kind in kinds}


class Plan(NamedTuple):
    """What a run removes, in this order.  The account of what it has removed is a plan too."""

    references: List[Reference] = []
    blobs: Dict[str, int] = {}  # digest -> size in bytes
    folders: List[str] = []  # empty folders, each before the one that holds it
    signatures: List[str] = []  # those of the blobs that may be signatures of a manifest
    staying: Dict[str, AbstractSet[str]] = {}  # repository -> its revisions that stay
    owners: Dict[str, str] = {}  # manifest or blob -> the image that it is reported with
    warnings: List[str] = []
    failed: List[Tuple[str, str]] = []  # path, and why it could not be removed


def reach(start: 'Iterable[str]', edges: 'Mapping[str, Iterable[str]]',
          avoid: AbstractSet[str] = frozenset()) -> 'Set[str]':
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
    reached_by: Dict[str, List[str]]  # the same edges backwards
    referrer_tags: AbstractSet[str]
    users: Mapping[str, int]  # layer link -> how many manifests need it


def make_graph(repository: Repository, referrers: bool = True) -> Graph:
    """Return what each tag and each manifest of `repository` reaches in one step.

    A tag reaches its manifest, a broken one whatever it may have stood for, and a manifest its
    children: what a pull needs.  With `referrers` a manifest reaches whatever names it as subject,
    and its referrer tags, too.
    """
    manifests, tags = repository.manifests, repository.tags
    edges = {digest: [child for child in manifest.children if child in manifests]
             for digest, manifest in manifests.items()}
    everything = list(manifests)
    for tag in tags:
        named = (tags[tag].digest,) if tags[tag].digest else tags[tag].history
        edges[tag_node(tag)] = [d for d in named if d in manifests] if named else everything
    owners: Dict[str, str] = {}
    if referrers:
        for digest, manifest in manifests.items():
            if manifest.subject in manifests:
                edges[str(manifest.subject)].append(digest)
        owners = referrer_tags(repository, edges)
        for tag, owner in owners.items():
            edges[owner].append(tag_node(tag))
    reached_by: Dict[str, List[str]] = {}
    for node, reached in edges.items():
        for other in reached:
            reached_by.setdefault(other, []).append(node)
    return Graph(edges, reached_by, owners.keys(), count_users(repository, manifests))


def referrer_tags(repository: Repository, edges: 'Mapping[str, Iterable[str]]') -> 'Dict[str, str]':
    """Return the referrer tags of `repository`, each with the manifest that it belongs to."""
    owners: Dict[str, str] = {}
    reached: Dict[str, Set[str]] = {}  # many tags of one manifest are one walk
    for tag in repository.tags:
        match = re.fullmatch(REFERRER_TAG, tag)
        owner = match.group(1).replace('-', ':') if match else ''
        if owner in repository.manifests:
            start = repository.tags[tag].digest or tag_node(tag)
            if start not in reached:
                reached[start] = reach([start], edges)
            if owner not in reached[start]:
                owners[tag] = owner
    return owners


def layers_of(repository: Repository, digest: str) -> 'Set[str]':
    """Return the layer links that a manifest needs.

    A layer pushed under another algorithm has a second link, under its sha256, that no manifest
    names: it is needed as long as the first one is.
    """
    layers = repository.layers
    links = [link for link in (digest,) + repository.manifests[digest].names if link in layers]
    return {*links, *[layers[link] for link in links]}


def count_users(repository: Repository, digests: 'Iterable[str]') -> 'Mapping[str, int]':
    """Return how many of the manifests `digests` need each layer link."""
    return Counter(chain.from_iterable(layers_of(repository, digest) for digest in digests))


def lose(repository: Repository, graph: Graph, named: 'Set[str]', touched: 'Set[str]',
         spared: AbstractSet[str] = frozenset()) -> 'Tuple[Set[str], Set[str]]':
    """Return the nodes that go with the tags and manifests `named`, and the layer links.

    The nodes are what is `touched`, a set that holds all that it reaches, less what something else
    still reaches, be it `spared` or outside.  The layer links are those that only they need.
    """
    inside = named | touched
    entered = [node for node in touched - named
               if node in spared or not inside.issuperset(graph.reached_by.get(node, ()))]
    nodes = inside - reach(entered, graph.edges, avoid=named)
    lost = count_users(repository, nodes & repository.manifests.keys())
    return nodes, {digest for digest, users in lost.items()
                   if users == graph.users[digest] and digest in repository.layers}


def what_goes_with(repository: Repository, graph: Graph, tags: 'Iterable[str]',
                   digests: Iterable[str] = ()) -> 'Set[str]':
    """Return all that these tags, with their history, and these manifests reach."""
    named = set(digests).union(*(repository.tags[tag].history + (repository.tags[tag].digest or '',)
                                 for tag in tags))
    return reach(named & repository.manifests.keys(), graph.edges)


def parents_first(doomed: 'AbstractSet[str]', manifests: 'Mapping[str, Manifest]') -> 'List[str]':
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


def require_readable(repository: Repository, tags: 'Iterable[str]',
                     manifests: 'Iterable[str]') -> None:
    """Refuse when what `tags` and `manifests`, which stay, need is unknown."""
    for tag in tags:
        if repository.tags[tag].fault:
            raise RegistryCleanerError(
                'Tag {0}:{1} stays, and cannot be read: {2}. Nothing was deleted. Repair it, or '
                'delete it: {3} -i {0}:{1}'.format(
                    repository.name, tag, repository.tags[tag].fault, PROGRAM))
    faults, command = '', PROGRAM
    for digest in sorted(manifests):
        if repository.manifests[digest].fault:
            faults += '\n  {}: {}'.format(digest, repository.manifests[digest].fault)
            command += ' -i {}@{}'.format(repository.name, digest)
    if faults:
        raise RegistryCleanerError(
            'What these manifests of {} need is unknown, so nothing was deleted:{}\n'
            'Restore them, or delete them: {}'.format(repository.name, faults, command))


def refuse_kept_index(repository: Repository, graph: Graph, digests: 'Iterable[str]',
                      kept: 'Set[str]') -> None:
    """Refuse to delete one of the manifests `digests` when an index in `kept` contains it."""
    for digest in digests:
        for parent in sorted(kept.intersection(graph.reached_by.get(digest, ()))):
            if digest in repository.manifests[parent].children:
                tags = sorted('{}:{}'.format(repository.name, tag) for tag in repository.tags
                              if parent in reach([tag_node(tag)], graph.edges))
                raise RegistryCleanerError(
                    '{0}@{1} is part of the index {0}@{2} ({3}), which stays. Nothing was deleted. '
                    'Delete the index too, or leave this manifest'.format(
                        repository.name, digest, parent, ', '.join(tags) or 'which has no tag'))


def selected_tags(repository: Repository, graph: Graph, image: Image) -> 'Set[str]':
    """Return the tags that `image` names; a pattern never selects a referrer tag."""
    tags: AbstractSet[str] = repository.tags.keys()
    if not image.tag:
        return set()
    return set(matching(image.tag, tags - graph.referrer_tags if is_pattern(image.tag) else tags))


def chosen_tags(repository: Repository, graph: Graph, wish: Request, now: float) -> 'Set[str]':
    """Return the tags that the images of `wish` select, less those that its rules keep.

    First go those that are excluded, then the `keep_last` newest of each image; of the rest those
    stay that are not `older_than`.  A tie at the cut is kept, and so is a tag without a push time.
    """
    excluded = set().union(*(selected_tags(repository, graph, image) for image in wish.excluded))
    chosen: Set[str] = set()
    for image in wish.images:
        tags = selected_tags(repository, graph, image) - excluded
        if wish.keep_last is not None or wish.older_than is not None:
            pushed = {tag: repository.tags[tag].pushed for tag in tags}
            times = sorted(when for when in pushed.values() if when is not None)
            before = float('inf') if wish.older_than is None else now - wish.older_than
            if wish.keep_last:
                before = min([before] + times[-wish.keep_last:][:1])
            tags = {tag for tag, when in pushed.items() if when is not None and when < before}
        chosen |= tags
    return chosen


def decide(repository: Repository, graph: Graph, wish: Request, now: float) -> 'List[Reference]':
    """Return what `repository` loses when `wish` comes true; `now` is a time in seconds.

    Raises RegistryCleanerError when that cannot be known or must not be.
    """
    name, tags, manifests = repository.name, repository.tags, repository.manifests
    if names_whole(wish.excluded):
        require_readable(repository, (), manifests if wish.garbage else ())
        return []
    bare = names_whole(wish.images)
    spared = {tag_node(tag) for image in wish.excluded
              for tag in selected_tags(repository, graph, image)}
    spared.update(image.digest for image in wish.excluded if image.digest in manifests)
    whole = bare and not wish.untagged and not spared
    digests = {image.digest for image in wish.images if image.digest in manifests}
    digests -= reach(spared, graph.edges)
    chosen = chosen_tags(repository, graph, wish, now)
    if bare and not wish.untagged:
        chosen.update(tags if whole else tags.keys() - graph.referrer_tags)
    asked = {tag_node(tag) for tag in tags if tag in chosen or tags[tag].digest in digests}
    asked = (asked | digests) - spared
    touched = (reach(manifests, graph.edges) if bare else
               what_goes_with(repository, graph, chosen, digests)) | spared
    lost, layers = lose(repository, graph, asked, touched, spared)

    kept_tags = [tag for tag in tags if tag_node(tag) not in lost]
    kept = manifests.keys() - lost
    refuse_kept_index(repository, graph, digests, kept)
    if lost or wish.garbage:
        require_readable(repository, kept_tags, kept)
    old_uploads = [upload for upload, written in repository.uploads.items()
                   if whole or written <= now - UPLOAD_AGE]
    gone = (not kept_tags and not kept and len(old_uploads) == len(repository.uploads)
            and bool(lost or bare or wish.garbage))
    if gone:
        layers.update(repository.layers)
    elif wish.garbage:
        layers.update(repository.layers.keys() - graph.users.keys())
    return ([Reference('tag', name, tag) for tag in sorted(tags.keys() - kept_tags)]
            + [Reference('entry', name, digest, tag) for tag in kept_tags
               for digest in sorted(tags[tag].entries)
               if digest in lost or wish.garbage and digest not in manifests]
            + [Reference('index' if manifests[digest].children else 'manifest', name, digest)
               for digest in parents_first(manifests.keys() & lost, manifests)
               if digest in repository.revisions]
            + [Reference('layer' if digest.startswith('sha256:') else 'alias', name, digest)
               for digest in sorted(layers)]
            + [Reference('leftover', name, folder) for folder in sorted(repository.leftovers)
               if wish.garbage and not gone]
            + [Reference('upload', name, upload) for upload in sorted(old_uploads)
               if wish.garbage or gone]
            + [Reference('repository', name)] * gone)


def what_still_goes(repository: Repository, planned: 'List[Reference]',
                    changed: 'AbstractSet[Reference]') -> 'List[Reference]':
    """Return what of `planned`, the plan of a run that was interrupted, may still be removed.

    `changed` are the tags and manifests in it that were pushed again since then.  They stay, and so
    does all that anything there needs now.  Raises RegistryCleanerError as decide() does.
    """
    planned = [reference for reference in planned if reference not in changed]
    graph = make_graph(repository, referrers=False)
    tags = set(map(tag_node, repository.tags.keys() & names_in(planned, 'tag')))
    touched = repository.manifests.keys() & (
        names_in(planned, *MANIFESTS) | names_in(planned, *LAYERS) - repository.revisions.keys())
    lost, layers = lose(repository, graph, tags, touched)
    kept_tags = [tag for tag in repository.tags if tag_node(tag) not in lost]
    kept = repository.manifests.keys() - lost
    require_readable(repository, kept_tags, kept)
    stay = {'tag': set(kept_tags), 'index': kept, 'manifest': kept, 'entry': kept,
            **dict.fromkeys(LAYERS, graph.users.keys() - layers)}
    if (kept_tags or kept or repository.layers.keys() - names_in(planned, *LAYERS)
            or repository.uploads.keys() - names_in(planned, 'upload')):
        stay['repository'] = {''}
    return [reference for reference in planned
            if reference.name not in stay.get(reference.kind, ())]


def refuse_other_names(store: Store) -> None:
    """Refuse when something that goes has a name that stays, by a symbolic link in the store."""
    leading: Dict[str, List[str]] = {}  # place -> links that lead to it or to something in it
    arriving: Dict[str, List[str]] = {}  # place -> links that lead just there
    for link, target in [(link, target) for link in store.links for target in store.links[link]]:
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


# -- The removal ----------------------------------------------------------------------------------

def remove(path: str, file: str = '') -> bool:
    """Remove a file, a symbolic link, or a folder with all that is in it; return True.

    A link is never entered, and what is gone already is fine.  What comes first by name goes first:
    `current` before `index`, `link` before `signatures`.  A folder that holds nothing but `file` is
    not listed first.  Raises OSError.
    """
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return True
        try:
            if file:
                os.unlink(path + '/' + file)
                os.rmdir(path)
                return True
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
                raise
        folders = [path]
        for folder in folders:  # grows as it goes
            with os.scandir(folder) as found:
                entries = list(found)
            below = sorted(subfolders(entries))
            folders += below
            for other in sorted({entry.path for entry in entries}.difference(below)):
                os.unlink(other)
        for folder in reversed(folders):
            os.rmdir(folder)
    except FileNotFoundError:
        pass
    return True


def remove_empty(path: str) -> bool:
    """Remove a folder, or the symbolic link to it, if it is empty; tell whether it is gone."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except NotADirectoryError:  # a symbolic link to a folder
        if os.listdir(path):
            return False
        os.unlink(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


class Journal:
    """What is being removed from `store`, on disk before the first removal.

    It lies beside the store's folders, a line of JSON for each plan: a line that is torn belongs to
    a plan of which nothing was removed.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.path = store.v2 + '/' + JOURNAL

    def stamp(self, reference: Reference) -> 'Optional[List[int]]':
        """Return what tells the link of a tag or a manifest from one pushed later.

        None if it is gone, and for all else.
        """
        if reference.kind not in ('tag', 'index', 'manifest'):  # a push writes only these anew
            return None
        folder = self.store.path(*reference) + ('/current' if reference.kind == 'tag' else '')
        try:
            status = os.lstat(folder + '/link')
        except FileNotFoundError:
            return None
        return [status.st_mtime_ns, status.st_ino]

    def read(self) -> 'Tuple[Plan, Set[Reference]]':
        """Return what is left of interrupted runs, and which of it has been pushed again since.

        Raises RegistryCleanerError when it cannot be understood: nothing goes on its word.
        """
        import json
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with open(os.open(self.path, flags), 'rb') as file:
                content = file.read()
        except FileNotFoundError:
            return Plan(), set()
        except OSError as error:
            raise self.refusal(str(error.strerror))
        plan, changed = Plan([], {}, [], []), set()  # type: Tuple[Plan, Set[Reference]]
        for line in content.split(b'\n'):
            try:
                record = json.loads(line.decode('ascii'))
            except (ValueError, RecursionError):
                if line or not content:
                    log.warning('The journal of an interrupted run is torn or empty: that run had '
                                'removed nothing yet')
                continue
            try:
                stamps = {Reference(*names): stamp for *names, stamp in record['references']}
                blobs, signatures = record['blobs'], record['signatures']
                valid = (record['version'] == JOURNAL_VERSION and all(map(is_reference, stamps))
                         and all(map(is_digest, blobs + signatures)))
            except (TypeError, ValueError, KeyError, AttributeError):
                valid = False
            if not valid:
                raise self.refusal('it was written by another version, or not by this program')
            plan.references.extend(stamps)
            plan.blobs.update(dict.fromkeys(blobs, 0))
            plan.signatures.extend(signatures)
            changed.update(reference for reference, stamp in stamps.items()
                           if self.stamp(reference) not in (None, stamp))
        return plan, changed

    def refusal(self, reason: str) -> RegistryCleanerError:
        return RegistryCleanerError(
            "The journal '{0}' of an interrupted run cannot be used: {1}. Nothing was deleted. "
            "To go on without it: rm '{0}'".format(self.path, reason))

    def write(self, plan: Plan) -> None:
        """Add `plan`, and return when it is on the disk.  Raises RegistryCleanerError.

        A full disk is what this program is for: then it goes on without.
        """
        import json
        record = {'version': JOURNAL_VERSION, 'blobs': sorted(plan.blobs),
                  'signatures': plan.signatures,
                  'references': [[*reference, stamp] for reference, stamp in zip(
                      plan.references, self.store.each(self.stamp, plan.references))]}
        data = json.dumps(record).encode('ascii') + b'\n'
        before = None
        try:
            descriptor = os.open(
                self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            try:
                before = os.fstat(descriptor).st_size
                while data:
                    data = data[os.write(descriptor, data):]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync([self.store.v2])
        except OSError as error:
            if before is not None:  # the next run must not finish what this one did not begin
                remove(self.path) if before == 0 else os.truncate(self.path, before)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise RegistryCleanerError("Cannot write the journal '{}': {}. Nothing was deleted"
                                           .format(self.path, error.strerror))
            log.warning("No space left for the journal '%s': going on without. Should this run be "
                        'interrupted, the next one cannot finish it', self.path)


def is_reference(reference: Reference) -> bool:
    """Tell whether every name in a reference that was read is one that this program writes."""
    kind, repository, name, tag = reference
    if kind not in KINDS or set(map(type, reference)) != {str}:
        return False
    parts = repository.split('/') + {'tag': [name], 'upload': [name], 'entry': [tag]}.get(kind, [])
    return ({'', '.', '..'}.isdisjoint(parts) and not re.search('[/\0]', ''.join(parts))
            and (kind not in DIGEST_KINDS or is_digest(name))
            and (kind != 'leftover' or re.fullmatch(LEFTOVER, name) is not None)
            and (kind != 'repository' or not name))


def sync(folders: 'Iterable[str]') -> None:
    """Return when what was made in or removed from these folders is so on the disk.

    Of a folder that is gone itself, the one that it was in counts.
    """
    for folder in sorted({next(filter(os.path.isdir, places_above(path))) for path in folders}):
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("Cannot sync the folder '%s': %s. Should the power fail during this run, "
                        'more may be left than the next run finds', folder, error.strerror)
            return  # the others lie on the same storage


class Remover:
    """Applies a plan to the store in `v2`, and keeps account of what failed.

    `stop` is asked before each removal whether to leave it, and the rest, to the next run.
    """

    def __init__(self, v2: str, workers: Workers, stop: 'Callable[[], bool]') -> None:
        self.store = Store(v2, workers)
        self.each = workers.each
        self.stop = stop
        self.complete = True  # nothing failed, and nothing was left to the next run
        self.failed: List[Tuple[str, str]] = []
        self.given_up: Set[str] = set()  # repositories left as they stand since something failed

    def apply(self, plan: Plan) -> Plan:
        """Remove what `plan` names; return what is gone, and what failed."""
        store = self.store
        by_kind: Dict[str, List[Reference]] = {kind: [] for kind in KINDS}
        for reference in plan.references:
            by_kind[reference.kind].append(reference)
        done: List[Reference] = []
        spared: Set[Reference] = set()
        for kind in KINDS:
            if kind == 'alias':
                spared = self.needed_by_newcomers(plan)
            done += self.remove_references([
                reference for reference in by_kind[kind] if reference not in spared])
        emptied = [store.path(*reference) for reference in done if reference.kind == 'repository']
        for folder in sorted(emptied, reverse=True):  # one may lie in another
            self.account(self.attempt('', remove_empty, folder))
        sync({os.path.dirname(path) for reference in done for path in store.paths(reference)})
        try:
            linked = store.linked(plan.blobs, plan.signatures)
        except OSError as error:
            self.account(error)
            linked = set(plan.blobs)
        blobs: Dict[str, int] = {}
        unlinked = [digest for digest in plan.blobs if digest not in linked]
        for digest, gone in zip(unlinked, self.each(
                lambda digest: self.attempt('', remove, store.blob(digest), 'data'), unlinked,
                lambda: 'Deleting blobs, {} freed,'.format(size_text(sum(blobs.values()))))):
            if self.account(gone):
                blobs[digest] = plan.blobs[digest]
        folders: List[str] = []
        for _, level in groupby(plan.folders, lambda folder: folder.count('/')):
            paths = list(level)
            gone = self.each(lambda folder: self.attempt('', remove_empty, folder), paths)
            folders += compress(paths, map(self.account, gone))
        return plan._replace(references=done, blobs=blobs, folders=folders, failed=self.failed)

    def remove_references(self, references: 'List[Reference]') -> 'List[Reference]':
        """Remove `references`, all of one kind; return those that are gone."""
        # The indexes of a repository go in their order, all else may go side by side.
        groups = [list(group) for _, group in groupby(
            references, lambda one: one.repository if one.kind == 'index' else one)]
        outcomes = self.each(lambda group: [
            self.attempt(one.repository, self.remove_reference, one) for one in group], groups,
            lambda: 'Deleting references')
        return [reference for reference, outcome in zip(references, chain.from_iterable(outcomes))
                if self.account(outcome)]

    def remove_reference(self, reference: Reference) -> bool:
        """Remove what `reference` names; tell whether it is gone."""
        for path in self.store.paths(reference):
            if reference.kind == 'leftover' and self.store.exists(path + '/link'):
                return False  # pushed since the scan
            remove(path, 'link' if reference.kind in DIGEST_KINDS else '')
        return True

    def attempt(self, repository: str, function: 'Callable[..., bool]', *arguments: Any) -> Any:
        """Return whether `function`, which removes, did, or the OSError that it met."""
        if self.stop():
            self.complete = False
            return False
        if repository in self.given_up:
            return False
        try:
            return function(*arguments)
        except OSError as error:
            if repository:
                self.given_up.add(repository)
            return error

    def account(self, outcome: Any) -> bool:
        """Tell whether something is gone, given what attempt() returned; take note of errors."""
        if not isinstance(outcome, Exception):
            return bool(outcome)
        path, reason = ((str(outcome.filename), str(outcome.strerror))
                        if isinstance(outcome, OSError) else (self.store.v2, str(outcome)))
        log.error("Could not delete '%s': %s", path, reason)
        self.failed.append((path, reason))
        self.complete = False
        return False

    def needed_by_newcomers(self, plan: Plan) -> 'Set[Reference]':
        """Return what `plan` removes and a manifest needs that appeared since the scan."""
        spared: Set[Reference] = set()
        store = self.store
        for name, staying in plan.staying.items():
            try:
                if name not in self.given_up and any(
                        store.exists(store.path('manifest', name, digest) + '/link')
                        for digest in store.digests(store.path('revisions', name))
                        if digest not in staying):
                    repository = store.read_repository(name)
                    require_readable(repository, repository.tags, repository.manifests)
                    needed = count_users(repository, repository.manifests)
                    spared.update(reference for reference in plan.references
                                  if reference.repository == name and (
                                      reference.kind == 'repository' or reference.name in needed))
            except (OSError, RegistryCleanerError) as error:
                self.account(error)
                self.given_up.add(name)
        return spared


# -- Safe ground: one run at a time, and no registry at work --------------------------------------

@contextlib.contextmanager
def locked(v2: str) -> 'Iterator[None]':
    """Hold the lock on the store.  Raises RegistryCleanerError when another run holds it."""
    import fcntl
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
        processes = list(filter(str.isdigit, os.listdir('/proc')))
    except OSError as error:
        log.debug('Cannot check whether a registry is running: %s', error.strerror)
        return
    for process in processes:
        try:
            with open('/proc/{}/cmdline'.format(process), 'rb') as file:
                command = os.fsdecode(file.read()).split('\0')
            if command[1:2] not in (['serve'], ['garbage-collect']):
                continue
            folders, cached = registry_settings('/proc/{}/'.format(process), command[2:])
            if not any(is_folder(folder, v2) for folder in folders):
                continue
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        except OSError as error:
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


def registry_settings(proc: str, arguments: 'Sequence[str]') -> 'Tuple[List[str], bool]':
    """Return the v2 folders that a registry process may work on, and whether it is a cache.

    Its environment goes before its configuration file, and that before the images' default.  The
    folders lead through `proc`, its folder in /proc: they are those that the process sees.
    """
    def seen_by_process(path: str) -> str:
        return proc + ('root' if path.startswith('/') else 'cwd/') + path

    with open(proc + 'environ', 'rb') as file:
        environment = dict(text.partition('=')[::2]
                           for text in os.fsdecode(file.read()).split('\0'))
    configuration = ''
    named = [word for word in arguments if not word.startswith('-')]
    named.append(environment.get('REGISTRY_CONFIGURATION_PATH', ''))
    for path in list(filter(None, named))[:1]:
        with contextlib.suppress(FileNotFoundError):
            with open(seen_by_process(path), errors='replace') as text:
                configuration = re.sub(r'(^|\s)#.*', '', text.read(1 << 20))

    def values(key: str, variable: str) -> 'List[str]':
        if environment.get(variable):
            return [environment[variable]]
        lines = re.findall(key + r'[\'"]?\s*:[ \t]*(\S.*)', configuration)
        return [value.strip('\'" \t') for line in lines
                for value in (line, re.split('[,}]', line)[0])]

    roots = values('rootdirectory', 'REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY')
    return ([seen_by_process(root) + '/docker/registry/v2'
             for root in roots or ['/var/lib/registry']],
            bool(values('remoteurl', 'REGISTRY_PROXY_REMOTEURL')))


def refuse_unsafe_ground(store: Store, names: 'Iterable[str]') -> None:
    """Refuse a store whose tags are elsewhere, or which is only half there."""
    mark = os.path.dirname(store.v2) + '/lockfiles/database-in-use'
    if os.path.lexists(mark):
        raise RegistryCleanerError(
            "'{}' says that this registry keeps its tags in a database, so the disk does not tell "
            'what is in use. Delete images with that registry (GitLab) instead'.format(mark))
    if not store.holds_a_blob():
        for name in names:
            if any(store.has_link(store.path('manifest', name, digest))
                   for digest in store.digests(store.path('revisions', name))):
                raise RegistryCleanerError(
                    "Repository '{}' has images, but '{}' holds no blob at all: is a disk not "
                    'mounted? Nothing was deleted. If the blobs are really lost, delete the '
                    'folders in {} by hand'.format(name, store.blobs, store.repositories))


def is_folder(path: str, folder: str) -> bool:
    """Tell whether `path` is this very folder, by device and inode.  Raises OSError."""
    try:
        return os.path.samefile(path, folder)
    except (FileNotFoundError, NotADirectoryError):
        return False


# -- The cleaner: request, scan, plan, apply ------------------------------------------------------

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
                 read_only_registry: bool = False, workers: 'Optional[Workers]' = None) -> None:
        self.v2 = find_v2(registry_data_dir)
        self.dry_run = dry_run
        self.read_only_registry = read_only_registry
        self.workers = workers or Workers()
        self.complete = True  # all that the journal names is gone
        self.removing = False  # from then on an interruption leaves the rest to the next run
        self.interrupted = 0  # the signal

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

    def list(self, request: Request) -> 'Listing':
        """Return what `request` selects, and what deleting it would free."""
        try:
            return list_images(Store(self.v2, self.workers), request)
        except OSError as error:
            raise RegistryCleanerError(cannot_read(error))

    def run(self, request: Request, report: 'Callable[[Plan], None]' = lambda plan: None) -> Plan:
        """Finish what an interrupted run left, carry out `request`, and report on each."""
        try:
            if self.dry_run:
                return self._run(request, report)
            with locked(self.v2):
                refuse_running_registry(self.v2, self.read_only_registry)
                return self._run(request, report)
        except OSError as error:
            raise RegistryCleanerError("Cannot go on: '{}': {}".format(
                error.filename, error.strerror))

    def _run(self, request: Request, report: 'Callable[[Plan], None]') -> Plan:
        store = Store(self.v2, self.workers)
        journal = Journal(store)
        unfinished, pushed_again = journal.read()
        finished = Plan()
        if unfinished.references or unfinished.blobs:
            log.warning('An earlier run was interrupted. What it left is finished first')
            try:
                rest = plan_rest(store, unfinished, pushed_again)
            except RegistryCleanerError as error:
                raise RegistryCleanerError(
                    "{}\nThis came up while finishing an interrupted run. To leave what that one "
                    "left, and go on: rm '{}'".format(error, journal.path))
            finished = self.carry_out(rest, journal)
            report(finished)
        elif not self.dry_run:
            remove(journal.path)
        if self.interrupted:
            return finished
        self.removing = False
        if self.dry_run:
            take_away(store, finished, finished.blobs)
        else:
            store = Store(self.v2, self.workers)
        plan = plan_request(store, request, unfinished.references)
        plan = self.carry_out(plan, journal, new=True)
        report(plan)
        return plan._replace(references=finished.references + plan.references,
                             blobs={**finished.blobs, **plan.blobs},
                             failed=finished.failed + plan.failed)

    def carry_out(self, plan: Plan, journal: Journal, new: bool = False) -> Plan:
        """Unless this is a dry run, remove what `plan` names and return what is gone.

        The journal holds a plan that is not `new` already.
        """
        if self.dry_run or new and not (plan.references or plan.blobs or plan.folders):
            return plan
        self.removing = True
        if new and (plan.references or plan.blobs):
            journal.write(plan)
        remover = Remover(self.v2, self.workers, lambda: bool(self.interrupted))
        plan = remover.apply(plan)
        self.complete = self.complete and remover.complete
        if self.complete:
            try:
                remove(journal.path)
            except OSError as error:
                remover.account(error)
        return plan


class Verdict:
    """What is decided of some repositories, each on its own."""

    def __init__(self) -> None:
        self.references: List[Reference] = []
        self.unlinked: Set[str] = set()  # blobs that lose a link
        self.used: Set[str] = set()  # with -g: blobs that the repositories still need
        self.signatures: List[str] = []  # those of the manifests that go
        self.staying: Dict[str, AbstractSet[str]] = {}  # as in a Plan, and so the next two
        self.owners: Dict[str, str] = {}
        self.warnings: List[str] = []
        self.refusals: List[str] = []
        self.matched: Set[Image] = set()  # what of the images and the exclusions is there
        self.links: Dict[str, List[str]] = {}  # symbolic links met

    def add(self, other: 'Verdict') -> None:
        """Add what is decided of other repositories."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            (mine.extend if isinstance(value, list) else mine.update)(value)


def plan_request(store: Store, request: Request, finished: 'Iterable[Reference]' = ()) -> Plan:
    """Return what `request` removes.  Reads each thing once, and changes nothing.

    What an interrupted run left, now `finished`, is not missing.  Raises RegistryCleanerError when
    nothing may be deleted, and OSError for what cannot be read.
    """
    names = store.repository_names()
    refuse_unsafe_ground(store, names)
    found, wishes = by_repository(request, names)
    store.dated = request.keep_last is not None or request.older_than is not None
    verdict = Verdict()
    for judged in store.parts(lambda some: judge(store, some, wishes, time.time()), sorted(wishes)):
        verdict.add(judged)
    store.links.update(verdict.links)
    refuse_missing(store, request.images, found, verdict.matched, finished)
    if verdict.refusals:
        raise RegistryCleanerError('\n'.join(verdict.refusals))

    plan = Plan(verdict.references, {}, [], verdict.signatures, verdict.staying, verdict.owners,
                unmatched(request, found, wishes, verdict.matched) + verdict.warnings)
    candidates = verdict.unlinked.union(plan.signatures)
    if not request.garbage:
        return with_blobs(store, plan, store.sizes(sorted(without_links(store, plan, candidates))),
                          request.prune)
    # All repositories are read, and what they use is known but for the signatures.
    contested = candidates & verdict.used.union(plan.signatures)
    used = verdict.used | contested - without_links(store, plan, contested)
    blobs = store.stored_blobs(used)
    if blobs and not used and not verdict.unlinked:
        raise RegistryCleanerError(
            "'{0}' holds blobs, but no repository in '{1}' links to any: is a disk not mounted? "
            'Nothing was deleted. If they are really garbage, delete the folders in {0} by hand'
            .format(store.blobs, store.repositories))
    return with_blobs(store, plan, {digest: blobs[digest] for digest in sorted(blobs)},
                      request.prune)


def judge(store: Store, names: 'Sequence[str]', wishes: 'Mapping[str, Request]',
          now: float) -> Verdict:
    """Return what is decided of the repositories `names`; `now` is a time in seconds."""
    verdict = Verdict()
    for repository in store.read_repositories(names):
        wish = wishes[repository.name]
        graph = make_graph(repository)
        verdict.matched.update(matches(repository, graph, wish))
        try:
            judge_repository(store, repository, graph, wish, now, verdict)
        except RegistryCleanerError as error:
            verdict.refusals.append(str(error))
    verdict.links = store.links
    store.parsed.clear()  # each repository is judged once
    return verdict


def judge_repository(store: Store, repository: Repository, graph: Graph, wish: Request, now: float,
                     verdict: Verdict) -> None:
    """Add to `verdict` what `repository` loses when `wish` comes true."""
    name = repository.name
    if (wish.untagged and wish.images and repository.manifests
            and repository.tags.keys() <= graph.referrer_tags):
        verdict.warnings.append(
            "Repository '{0}' has manifests and no tag, and was left alone: its images may be used "
            'by digest, or their tags kept in a database. To delete all of it: {1} -i {0}'.format(
                name, PROGRAM))
        wish = wish._replace(images=())
    lost = decide(repository, graph, wish, now)
    layers = names_in(lost, *LAYERS)
    unused = repository.layers.keys() - graph.users.keys() if wish.garbage else set()
    linkless = linkless_layers(store, name, layers | unused)
    lost = [reference for reference in lost
            if reference.kind not in LAYERS or reference.name not in linkless]
    if wish.garbage:
        lost += [Reference('leftover', name, '_layers/' + digest.replace(':', '/'))
                 for digest in sorted(layers & linkless)]
    gone = names_in(lost, *MANIFESTS)
    verdict.references += lost
    verdict.unlinked |= blobs_of(repository, lost)
    if not names_in(lost, 'repository'):
        verdict.warnings += [
            'What the unreadable manifest {}@{} needed is unknown, so its layers stay'.format(
                name, digest) for digest in sorted(gone) if repository.manifests[digest].fault]
    verdict.owners.update(owners_of(repository, graph, lost))
    verdict.signatures += [signature for digest in gone & repository.signatures.keys()
                           for signature in repository.signatures[digest]]
    if lost:
        verdict.staying[name] = repository.revisions.keys() - gone
    if wish.garbage:
        verdict.used |= blobs_kept(repository, lost, linkless)


def matches(repository: Repository, graph: Graph, wish: Request) -> 'List[Image]':
    """Return those of the images and exclusions in `wish` that name anything in `repository`."""
    return [image for image in wish.images + wish.excluded
            if (image.digest in repository.manifests if image.digest else
                image.whole or selected_tags(repository, graph, image))]


def by_repository(request: Request, names: 'List[str]'
                  ) -> 'Tuple[Dict[Image, List[str]], Dict[str, Request]]':
    """Return the repositories that each image selects, and what is asked of each of those."""
    found = {image: matching_repositories(image, names)
             for image in request.images + request.excluded}
    wishes: Dict[str, Request] = {}
    nothing = request._replace(images=(), excluded=())
    if request.garbage:
        wishes = dict.fromkeys(names, nothing)
    for image in request.images:
        for name in found[image]:
            wish = wishes.get(name, nothing)
            wishes[name] = wish._replace(images=wish.images + (image,))
    for image in request.excluded:
        for name in found[image]:
            if name in wishes:
                wish = wishes[name]
                wishes[name] = wish._replace(excluded=wish.excluded + (image,))
    return found, wishes


def linkless_layers(store: Store, name: str, digests: 'Iterable[str]') -> 'Set[str]':
    """Return those of these layers of repository `name` whose folder has lost its link."""
    layers = sorted(digests)
    linked = store.each(
        lambda digest: store.exists(store.path('layer', name, digest) + '/link'), layers)
    return {digest for digest, there in zip(layers, linked) if not there}


def plan_rest(store: Store, unfinished: Plan, pushed_again: 'AbstractSet[Reference]') -> Plan:
    """Return what of `unfinished`, the plan of an interrupted run, may still be removed.

    The store may have changed since then, so this decides again.  Raises as plan_request() does.
    """
    names = store.repository_names()
    refuse_unsafe_ground(store, names)
    plan = Plan([], {}, [], unfinished.signatures, {})
    planned: Dict[str, List[Reference]] = {}
    for reference in unfinished.references:
        planned.setdefault(reference.repository, []).append(reference)
    repositories = {repository.name: repository for repository in store.read_repositories(
        [name for name in planned if name in names])}
    for name, references in planned.items():
        if name in repositories:
            repository = linked_layers_only(store, repositories[name],
                                            names_in(references, *LAYERS))
            references = [reference for reference in what_still_goes(
                repository, references, pushed_again) if reference.kind != 'leftover'
                or not store.has_link(store.path(*reference))]
            plan.staying[name] = repository.revisions.keys() - names_in(references, *MANIFESTS)
        plan.references.extend(reference for reference in references
                               if os.path.lexists(store.path(*reference)))
    blobs = without_links(store, plan, set(unfinished.blobs))
    return with_blobs(store, plan, store.sizes(sorted(blobs)), False)


def linked_layers_only(store: Store, repository: Repository,
                       known: 'AbstractSet[str]' = frozenset()) -> Repository:
    """Return `repository` without the layer folders that lost their link, `known` ones aside."""
    there = store.each(lambda digest: digest in known or store.has_link(
        store.path('layer', repository.name, digest)), list(repository.layers))
    return repository._replace(layers=dict(compress(repository.layers.items(), there)))


def take_away(store: Store, plan: Plan, blobs: 'Iterable[str]' = ()) -> None:
    """Let what `plan` removes, and these blobs, read as missing in `store` from here on."""
    store.gone.update(path for reference in plan.references for path in store.paths(reference))
    store.gone.update(map(store.blob, blobs))


def without_links(store: Store, plan: Plan, blobs: 'Set[str]') -> 'Set[str]':
    """Return those of `blobs` that no repository has a link to once the references are gone."""
    if blobs:
        take_away(store, plan)
    return blobs - store.linked(blobs, plan.signatures)


def with_blobs(store: Store, plan: Plan, blobs: 'Dict[str, int]', prune: bool) -> Plan:
    """Return `plan` in the order of removal, with these blobs and their sizes."""
    if prune or store.links:
        take_away(store, plan, blobs)
    if store.links:
        refuse_other_names(store)
    return plan._replace(
        blobs=blobs,
        references=sorted(plan.references, key=lambda reference: KINDS.index(reference.kind)),
        signatures=[blob for blob in plan.signatures if blob in blobs],
        folders=store.empty_folders() if prune else [])


def literal(repo: str, tag: 'Optional[str]' = None) -> Image:
    """Return the image of these names.  Raises RegistryCleanerError unless they are names."""
    image = Image(repo, tag)
    try:
        if parse_image(str(image)) == image and not image.pattern:
            return image
    except ValueError:
        pass
    raise RegistryCleanerError("'{}' is no valid image name".format(image))


def matching_repositories(image: Image, names: 'List[str]') -> 'List[str]':
    """Return those of the repositories `names` that `image` is or selects."""
    return next(filter(None, (matching(name, names) for name in spellings(image))), [])


def spellings(image: Image) -> 'List[str]':
    """Return what the repository that `image` names may be called: `localhost` may be its host."""
    host, _, rest = image.name.partition('/')
    return [image.name] + [rest] * (host == 'localhost' and rest != '')


def unmatched(request: Request, found: 'Mapping[Image, List[str]]', wishes: 'Mapping[str, Request]',
              matched: 'AbstractSet[Image]') -> 'List[str]':
    """Return a warning for each pattern and each exclusion that names nothing.

    `matched` are those that name something in the repositories of `wishes`.  Where nothing is asked
    of a repository, an exclusion of it counts as a match.
    """
    return ["Nothing matches '{}'".format(image) for image in found
            if (image.pattern or image in request.excluded) and image not in matched
            and wishes.keys() >= set(found[image])]


def refuse_missing(store: Store, images: 'Iterable[Image]', found: 'Mapping[Image, List[str]]',
                   matched: 'AbstractSet[Image]', finished: 'Iterable[Reference]') -> None:
    """Refuse when one of `images` is no pattern, and neither `matched` nor just `finished`."""
    gone = {(repository, name) for _, repository, name, _ in finished}
    missing = []
    for image in images:
        name = found[image][0] if found[image] else image.name
        part = image.tag or image.digest or ''
        if image.pattern or image in matched or not gone.isdisjoint(
                (spelling, one) for spelling in spellings(image) for one in (part, '')):
            continue
        what = "No repository '{}'".format(name)
        if found[image]:
            what += " {} '{}'".format('tag' if image.tag else 'manifest', part)
        shorter = image.name.partition('/')[2]
        hint = ". Did you mean '{}'?".format(shorter) if (
            not found[image] and shorter in store.repository_names()) else ''
        missing.append('{} found in repositories directory {}{}'.format(
            what, store.repositories, hint))
    if missing:
        raise RegistryCleanerError('\n'.join(missing))


def blobs_of(repository: Repository, lost: 'Iterable[Reference]') -> 'Set[str]':
    """Return the blobs that the links in `lost` stand for."""
    return {(repository.layers if reference.kind in LAYERS else repository.revisions)
            [reference.name] for reference in lost
            if reference.kind in MANIFESTS + LAYERS}


def blobs_kept(repository: Repository, lost: 'List[Reference]', linkless: 'Set[str]') -> 'Set[str]':
    """Return the blobs that `repository`, without `lost`, links to or names in a manifest."""
    if names_in(lost, 'repository'):
        return set()
    revisions = repository.revisions.keys() - names_in(lost, *MANIFESTS)
    layers = repository.layers.keys() - names_in(lost, *LAYERS) - linkless
    kept = set(map(repository.layers.__getitem__, layers))
    kept.update(map(repository.revisions.__getitem__, revisions))
    for digest, manifest in repository.manifests.items():
        if digest in revisions or digest not in repository.revisions and digest in layers:
            kept.update(manifest.names, repository.signatures.get(digest, ()))
    return kept


def owners_of(repository: Repository, graph: Graph, lost: 'List[Reference]') -> 'Dict[str, str]':
    """Return the image, 'name:tag' or 'name', that each manifest and each of its blobs go with."""
    name = repository.name
    whole = bool(names_in(lost, 'repository'))
    found = dict.fromkeys(blobs_of(repository, lost), name) if whole else {}
    left = names_in(lost, *MANIFESTS)
    tags = [] if whole else sorted(names_in(lost, 'tag'))
    for tag in tags + ['']:  # in the end what goes with no tag
        digests = left & what_goes_with(repository, graph, [tag]) if tag else left
        left = left - digests
        image = name + ':' + tag if tag else name
        for digest in digests:
            found[name + '@' + digest] = image
            for blob in chain([repository.revisions[digest]], layers_of(repository, digest),
                              repository.signatures.get(digest, ())):
                found.setdefault(repository.layers.get(blob, blob), image)
    return found


# -- The list: what is there, and what deleting it would free -------------------------------------

class Row(NamedTuple):
    """One tag in the list.  Sizes are in bytes."""

    repository: str
    tag: str
    digest: Optional[str]  # None: broken
    pushed: Optional[float]  # in seconds
    size: int  # of the distinct blobs that it reaches
    frees: int  # what deleting it, and nothing else, would free now
    damage: str  # why it cannot be pulled whole, if it cannot


class Listing(NamedTuple):
    """The tags that a request selects, and the whole store."""

    rows: List[Row]
    totals: Dict[str, Optional[int]]  # None: cannot be told, since something cannot be read
    warnings: List[str]


def list_images(store: Store, request: Request) -> Listing:
    """Return what `request` selects: all tags if it names no image.  Changes nothing."""
    names = store.repository_names()
    found, wishes = by_repository(request, names)
    store.dated = True
    repositories = {repository.name: linked_layers_only(store, repository)
                    for repository in store.read_repositories(names)}
    store.known = repositories
    graphs = {name: make_graph(repository) for name, repository in repositories.items()}
    matched = {image for name, wish in wishes.items()
               for image in matches(repositories[name], graphs[name], wish)}
    refuse_missing(store, request.images, found, matched, ())
    links: Mapping[str, int] = Counter(chain.from_iterable(map(all_links, repositories.values())))
    try:
        refuse_unsafe_ground(store, names)
    except RegistryCleanerError:
        links = {}  # every deletion is refused, so none would free anything
    sizes = store.stored_blobs()
    rows = [row for name, wish in sorted(wishes.items()) for row in list_tags(
        repositories[name], graphs[name], wish, sizes, links)]
    rows.sort(key=lambda row: (-row.frees, row.repository, row.tag))
    totals = {
        'repositories': len(repositories),
        'tags': sum(len(one.tags) for one in repositories.values()),
        'manifests': sum(len(one.revisions) for one in repositories.values()),
        'blobs': len(sizes), 'size': sum(sizes.values()),
        'untagged': freed_by(store, Request((Image('*'),), untagged=True)),
        'garbage': freed_by(store, Request(garbage=True))}
    return Listing(rows, totals, unmatched(request, found, wishes, matched) if names else [])


def all_links(repository: Repository) -> 'List[str]':
    """Return the blob of each link in `repository`."""
    return (list(repository.layers.values()) + list(repository.revisions.values())
            + [signature for digest in repository.revisions
               for signature in repository.signatures.get(digest, ())])


def freed_by(store: Store, request: Request) -> 'Optional[int]':
    """Return the bytes that `request` would free, None when it would be refused."""
    before = set(store.gone)
    try:
        return sum(plan_request(store, request).blobs.values())
    except RegistryCleanerError:
        return None
    finally:
        store.gone = before


def list_tags(repository: Repository, graph: Graph, wish: Request, sizes: 'Mapping[str, int]',
              links: 'Mapping[str, int]') -> 'Iterator[Row]':
    """Yield a row for each tag of `repository` that `wish` selects.

    `sizes` holds the size of each stored blob, `links` how many links to each there are, and
    nothing when every deletion is refused.
    """
    now = time.time()
    needs = make_graph(repository, referrers=False).edges
    tags = chosen_tags(repository, graph, wish, now)
    if names_whole(wish.images):
        tags = set(repository.tags)
    digests = {image.digest for image in wish.images if image.digest}
    tags.update(tag for tag in repository.tags if repository.tags[tag].digest in digests)
    for image in wish.excluded:
        tags -= tags if image.whole else selected_tags(repository, graph, image)
    unknown = {digest for digest, manifest in repository.manifests.items() if manifest.fault}
    unknown.update(tag_node(tag) for tag in repository.tags if repository.tags[tag].fault)
    in_use = any(written > now - UPLOAD_AGE for written in repository.uploads.values())
    for tag in sorted(tags):
        current = repository.tags[tag]
        reached = reach([tag_node(tag)], graph.edges) & repository.manifests.keys()
        blobs = {repository.revisions.get(digest, digest) for digest in reached}
        blobs.update(repository.layers.get(name, name) for digest in reached
                     for name in repository.manifests[digest].names)
        lost, layers = lose(repository, graph, {tag_node(tag)},
                            what_goes_with(repository, graph, [tag]))
        gone = repository if len(lost) == len(graph.edges) and not in_use else repository._replace(
            layers={digest: repository.layers[digest] for digest in layers},
            revisions={digest: repository.revisions[digest] for digest in lost
                       if digest in repository.revisions})
        counts = Counter(all_links(gone) if unknown <= lost else ())  # else that is refused
        yield Row(repository.name, tag, current.digest, current.pushed,
                  sum(sizes.get(blob, 0) for blob in blobs),
                  sum(sizes.get(blob, 0) for blob in counts if counts[blob] == links.get(blob)),
                  damage(repository, tag, needs, sizes))


def damage(repository: Repository, tag: str, needs: 'Mapping[str, Iterable[str]]',
           sizes: 'Mapping[str, int]') -> str:
    """Return why a tag cannot be pulled whole, '' if it can."""
    current = repository.tags[tag]
    if not current.digest:
        return 'broken link'
    if current.digest not in repository.manifests:
        return 'no manifest'
    for digest in reach([current.digest], needs):
        manifest = repository.manifests[digest]
        if manifest.fault:
            return 'unreadable'
        if not manifest.kind:
            return 'no manifest'
        for blob in set(manifest.blobs).difference(manifest.foreign):
            if blob not in repository.layers or repository.layers[blob] not in sizes:
                return 'incomplete'
    return ''


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


def table(listing: Listing, width: int, ages: bool) -> 'Iterator[str]':
    """Yield the lines of the list; push times are `ages` or dates.

    With a `width`, that of a terminal, they fit it, and bars show each line's share of the largest.
    """
    now = time.time()
    date = '%Y-%m-%d' if 0 < width < 80 else '%Y-%m-%d %H:%M'
    cells = [('IMAGE', 'DIGEST', 'PUSHED', 'SIZE', 'FREES')]
    for row in listing.rows:
        pushed = '?' if row.pushed is None else age_text(now - row.pushed) if ages else (
            time.strftime(date, time.localtime(row.pushed)))
        cells.append((row.repository + ':' + row.tag, row.damage or str(row.digest)[7:19], pushed,
                      size_text(row.size), size_text(row.frees)))
    widths = [max(map(len, column)) for column in zip(*cells)]
    room = width - sum(widths[1:]) - 8  # for the image
    bar = min(20, room - widths[0] - 2)
    if width:
        widths[0] = max(8, min(widths[0], room))
    largest = listing.rows[0].frees if listing.rows else 0
    for number, (image, *rest) in enumerate(cells):
        if len(image) > widths[0]:
            half = widths[0] // 2 - 1
            image = image[:half] + '..' + image[half + 2 - widths[0]:]
        line = '{:{}}  {:{}}  {:{}}  {:>{}}  {:>{}}'.format(
            *chain(*zip((image, *rest), widths)))
        if number and width and bar >= 4 and largest:
            line += '  ' + '#' * (listing.rows[number - 1].frees * bar // largest)
        yield line[:width or None].rstrip()
    totals = {name: 'unknown' if total is None else size_text(total)
              for name, total in listing.totals.items()}
    counts = [count(listing.totals[noun + 's'] or 0, noun) for noun in ('tag', 'manifest', 'blob')]
    yield '{} stored: {}, {}'.format(totals['size'], count(
        listing.totals['repositories'] or 0, 'repository', 'repositories'),
        ', '.join(counts))[:width or None]
    yield "Would be freed: {untagged} by -u -i '*', {garbage} by -g".format(**totals)


def age_text(seconds: float) -> str:
    """Return how long ago something was: '3 days ago'."""
    for unit, length in (('year', 365 * 86400), ('month', 30 * 86400), ('week', 7 * 86400),
                         ('day', 86400), ('hour', 3600), ('minute', 60)):
        if seconds >= 2 * length or seconds >= length and unit in ('day', 'hour', 'minute'):
            return count(int(seconds // length), unit) + ' ago'
    return 'just now'


LINES = {'tag': 'tag {0}:{1}', 'entry': 'history entry {1} of {0}:{2}', 'index': 'manifest {0}@{1}',
         'manifest': 'manifest {0}@{1}', 'layer': 'layer link {1} of {0}',
         'alias': 'layer link {1} of {0}',
         'leftover': 'empty link folder {1} of {0}', 'upload': 'upload {1} of {0}',
         'repository': 'repository {0}'}


def report(plan: Plan, dry_run: bool) -> None:
    """Log what was, or would be, removed; the summary last.

    What goes with an image is counted there, and has a line of its own at level DEBUG.
    """
    verb = 'Would delete' if dry_run else 'Deleted'
    for text in plan.warnings:
        log.warning('%s', text)
    whole = {name for kind, name, *_ in plan.references if kind == 'repository'}
    manifests = Counter(plan.owners.get(name + '@' + digest, '')  # how many go with each image
                        for kind, name, digest, _ in plan.references if kind in MANIFESTS)
    blobs = Counter(plan.owners.get(digest, '') for digest in plan.blobs)
    sizes: Counter[str] = Counter()
    for digest, size in plan.blobs.items():
        sizes[plan.owners.get(digest, '')] += size

    def freed(image: str) -> str:
        return count(blobs[image], 'blob') + ', ' + size_text(sizes[image])

    for kind, *names in plan.references:
        shown = kind == 'repository' or kind in ('tag', 'upload') and names[0] not in whole
        level = logging.INFO if shown else logging.DEBUG
        if log.isEnabledFor(level):
            line = verb + ' ' + LINES[kind].format(*names)
            if kind in ('tag', 'repository'):
                image = ':'.join(filter(None, names))
                if image in manifests or image in blobs:
                    line += ' ({}, {})'.format(count(manifests[image], 'manifest'), freed(image))
            log.log(level, '%s', line)
    for name in sorted(manifests.keys() - whole - {''}):
        if ':' not in name:
            log.info('%s %s of %s (%s)', verb, count(manifests[name], 'untagged manifest'), name,
                     freed(name))
    if log.isEnabledFor(logging.DEBUG):
        for digest, size in plan.blobs.items():
            log.debug('%s blob %s (%s)', verb, digest, size_text(size))
        for folder in plan.folders:
            log.debug("%s empty folder '%s'", verb, folder)
    log.info('%s', summary(plan, verb))


def summary(plan: Plan, verb: str) -> str:
    """Return the one line that says what went and how many bytes are free."""
    kinds = Counter(kind for kind, *_ in plan.references)
    counts: List[Any] = [
        (kinds['repository'], 'repository', 'repositories'), (kinds['tag'], 'tag'),
        (kinds['index'] + kinds['manifest'], 'manifest'), (kinds['upload'], 'upload'),
        (len(plan.blobs), 'blob'), (len(plan.folders), 'empty folder')]
    if not any(item[0] for item in counts):
        counts = [(kinds['alias'] + kinds['layer'], 'layer link'),
                  (kinds['entry'] + kinds['leftover'], 'leftover')]
    what = ', '.join(count(*item) for item in counts if item[0])
    if not what:
        return 'Nothing to delete' if not plan.failed else 'Nothing was deleted'
    names = list({reference.repository for reference in plan.references})
    where = ' of {} repositories'.format(len(names)) if names[1:] else ' of '.join(['', *names])
    return '{} {}{}: {} freed'.format(verb, what, where, size_text(sum(plan.blobs.values())))


def plan_json(plan: Plan, v2: str, dry_run: bool) -> 'Dict[str, Any]':
    """Return what was, or would be, removed, as `--json` prints it."""
    def named(separator: str, *kinds: str) -> 'List[str]':
        return [reference.repository + separator + reference.name
                for reference in plan.references if reference.kind in kinds]

    return {'registry': v2, 'dry_run': dry_run, 'repositories': named('', 'repository'),
            'tags': named(':', 'tag'), 'manifests': named('@', 'index', 'manifest'),
            'layers': len(named('', *LAYERS)), 'uploads': len(named('', 'upload')),
            'blobs': [{'digest': digest, 'size': size} for digest, size in plan.blobs.items()],
            'freed': sum(plan.blobs.values()), 'warnings': plan.warnings,
            'failed': [{'path': path, 'error': error} for path, error in plan.failed]}


def listing_json(listing: Listing, v2: str) -> 'Dict[str, Any]':
    """Return the list as `--json` prints it."""
    images = []
    for row in listing.rows:
        pushed = None if row.pushed is None else time.strftime('%Y-%m-%dT%H:%M:%SZ',
                                                               time.gmtime(row.pushed))
        images.append({'repository': row.repository, 'tag': row.tag, 'digest': row.digest,
                       'pushed': pushed, 'size': row.size, 'frees': row.frees})
    return {'registry': v2, 'images': images, 'total': listing.totals}


def columns(stream: 'IO[str]') -> int:
    """Return the width of the terminal that `stream` is."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (ValueError, OSError):
        return 80


class Terminal(logging.StreamHandler):  # type: ignore[type-arg]
    """Log to standard error; on a terminal, show the progress of a longer run in its last line."""

    def __init__(self, progress: bool) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter('%(levelname)-8s [%(asctime)s]  %(message)s'))
        self.next = time.monotonic() + 0.5 if (
            progress and sys.stderr is not None and sys.stderr.isatty()) else float('inf')
        self.shown = False

    def progress(self, step: Step, done: int, total: int) -> None:
        """Show that `done` of `total` operations of a step are done."""
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + 0.1
            text = '{} {:,} of {:,}'.format(step(), done, total)
            self.write(text[:columns(sys.stderr) - 1])
            self.shown = True

    def clear(self) -> None:
        """Take the progress line away."""
        if self.shown:
            self.shown = False
            self.write('')

    def write(self, text: str) -> None:
        """Show `text` in the last line, instead of what is there."""
        with contextlib.suppress(OSError):  # the terminal may be gone, and the work goes on
            print('\r\x1b[K' + text, end='', file=sys.stderr, flush=True)

    def emit(self, record: logging.LogRecord) -> None:
        self.clear()
        super().emit(record)


# -- The command line -----------------------------------------------------------------------------

EXAMPLES = """\
examples:
  delete_docker_registry_image -l             what is there, what would I gain?
  delete_docker_registry_image -n -i team/app:1.0        what would be deleted?
  delete_docker_registry_image -i 'team/*:pr-*' -x team/app:pr-7 --keep-last 3
  delete_docker_registry_image -u -g -p -i '*'    clean the whole registry

Stop the registry first and start it again afterwards: it caches what it has
seen. Images of a Harbor, or of a GitLab registry with a metadata database, are
deleted there, not here: their tags are not on this disk.

exit status: 0 done, or nothing to do; 1 refused or failed, nothing was
deleted; 2 usage; 3 some things could not be deleted (each is named);
130 and 143 interrupted
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, add_help=False, epilog=EXAMPLES,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=26, width=79),
        usage='%(prog)s [options] -i IMAGE [-i IMAGE ...]',
        description='Delete images from the disk of a stopped Docker registry.')
    what = parser.add_argument_group('what to delete')
    what.add_argument('-i', '--image', metavar='IMAGE', action='append', default=[], dest='images',
                      help='NAME, NAME:TAG or NAME@DIGEST; repeatable. NAME and TAG may be '
                           'patterns (* ? [...]; * also matches /). - reads one a line from '
                           'standard input')
    what.add_argument('-u', '--untagged', action='store_true',
                      help='in the named repositories delete only what no tag reaches')
    what.add_argument('-g', '--garbage', action='store_true',
                      help='whole registry: delete what nothing uses')
    what.add_argument('-p', '--prune', action='store_true', help='delete empty folders')
    keep = parser.add_argument_group('what to keep')
    keep.add_argument('-x', '--exclude', metavar='IMAGE', action='append', default=[],
                      dest='excluded', help='never delete what this names; repeatable')
    keep.add_argument('--keep-last', metavar='N', type=int,
                      help='of the tags that each -i NAME:TAG selects in a repository, keep the N '
                           'pushed last')
    keep.add_argument('--older-than', metavar='AGE', type=age,
                      help='select only tags pushed longer ago: 12h, 30d, 8w')
    how = parser.add_argument_group('how')
    how.add_argument('-l', '--list', action='store_true',
                     help='show what is selected (default: all), its size, and what deleting it '
                          'would free; delete nothing')
    how.add_argument('-n', '--dry-run', action='store_true',
                     help='say what would be deleted; touch nothing')
    how.add_argument('-j', '--jobs', metavar='N', type=int, default=0,
                     help='file operations at once, for slow storage; the default suits the '
                          'storage at hand')
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
    output.add_argument('--json', action='store_true',
                        help='the result as one JSON object on standard output')
    output.add_argument('-v', '--verbose', action='store_true', help='name every blob and folder')
    output.add_argument('-q', '--quiet', action='store_true', help='only warnings and errors')
    output.add_argument('-V', '--version', action='version', version='%(prog)s ' + __version__)
    output.add_argument('-h', '--help', action='help', help='show this help')
    return parser


def age(text: str) -> float:
    """Return the seconds that `text`, like 12h, 30d or 8w, stands for."""
    match = re.fullmatch(r'([0-9]+)([hdw])', text)
    if not match:
        raise argparse.ArgumentTypeError("'{}' is no age like 12h, 30d or 8w".format(text))
    return float(match.group(1)) * {'h': 3600, 'd': 86400, 'w': 7 * 86400}[match.group(2)]


def read_lines() -> 'List[str]':
    """Return the lines of standard input that hold anything, as file names are decoded."""
    if sys.stdin is None:
        return []
    lines = os.fsdecode(sys.stdin.buffer.read()).splitlines()
    return list(filter(None, map(str.strip, lines)))


def read_request(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Request:
    """Return the request that the command line makes; exit with a usage error if it makes none."""
    images: List[str] = []
    for text in arguments.images or ['*'] * arguments.list:
        images += read_lines() if text == '-' else [text]
    try:
        request = Request(tuple(map(parse_image, images)),
                          tuple(map(parse_image, arguments.excluded)),
                          arguments.untagged, arguments.garbage, arguments.prune,
                          arguments.keep_last, arguments.older_than)
    except ValueError as error:
        parser.error(str(error))
    rules = [name for name, value in (('--keep-last', request.keep_last),
                                      ('--older-than', request.older_than)) if value is not None]
    if not (arguments.images or arguments.list) and (
            request.untagged or rules or not (request.garbage or request.prune)):
        parser.error('an image is required: -i NAME, -i NAME:TAG or -i NAME@DIGEST')
    if request.untagged and not all(image.whole for image in request.images):
        parser.error('-u takes whole repositories: -i NAME, without a tag or a digest')
    if rules and request.untagged:
        parser.error('{} chooses among tags, and -u deletes none'.format(rules[0]))
    if rules and not all(image.tag for image in request.images):
        parser.error("{} chooses among tags: name them, as in -i 'NAME:*'".format(rules[0]))
    if (request.keep_last or 0) < 0 or arguments.jobs < 0:
        parser.error('--keep-last and --jobs take a number that is not negative')
    if arguments.list and (request.untagged or request.garbage or request.prune):
        parser.error('-l deletes nothing: leave out -u, -g and -p. Its last line says what -u and '
                     '-g would free')
    return request


def find_data_dir(given: 'Optional[str]') -> str:
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


def run(argv: 'Optional[Sequence[str]]') -> int:
    """Do what the command line `argv` says; return the exit status."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    request = read_request(parser, arguments)
    terminal = Terminal(progress=not arguments.quiet)
    log.handlers = [terminal]
    log.setLevel(logging.DEBUG if arguments.verbose else
                 logging.WARNING if arguments.quiet else logging.INFO)
    if arguments.force:
        log.warning('-f, --force has no effect')
    text = ''
    try:
        cleaner = RegistryCleaner(find_data_dir(arguments.registry_data_dir), arguments.dry_run,
                                  arguments.read_only_registry,
                                  Workers(arguments.jobs, terminal.progress))
        catch_signals(cleaner)
        if arguments.list:
            listing = cleaner.list(request)
            for warning in listing.warnings:
                log.warning('%s', warning)
            status, result = 0, listing_json(listing, cleaner.v2)
            width = columns(sys.stdout) if sys.stdout and sys.stdout.isatty() else 0
            text = '\n'.join(table(listing, width, ages=bool(width) and not arguments.verbose))
        else:
            done = cleaner.run(request, lambda plan: report(plan, arguments.dry_run))
            status, result = 3 * bool(done.failed), plan_json(done, cleaner.v2, arguments.dry_run)
            if cleaner.interrupted:
                status = 128 + cleaner.interrupted
                log.warning('Interrupted.%s',
                            '' if cleaner.complete else ' The next run finishes the rest')
    except RegistryCleanerError as error:
        status, result = 1, {'error': str(error)}
        for line in str(error).splitlines():
            log.error('%s', line)
    except Interrupted as interrupted:
        status, result = 128 + int(interrupted.args[0]), {'error': 'Interrupted'}
        log.error('Interrupted')
    terminal.clear()
    if arguments.json:
        import json
        text = json.dumps(result, indent=2)
    return status if put(text) or not arguments.list else 1


def put(text: str) -> bool:
    """Write `text`, unless empty, to standard output; tell whether that worked."""
    encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
    try:
        if text:  # a name need not be valid text
            print(text.encode(encoding, 'backslashreplace').decode(encoding), flush=True)
        return True
    except BrokenPipeError:
        return True  # whoever reads has seen enough
    except OSError as error:
        log.error('Cannot write to standard output: %s', error.strerror)
        return False


def catch_signals(cleaner: RegistryCleaner) -> None:
    """Let SIGINT and SIGTERM end a run between two removals, and at once while it only reads."""
    import signal

    def catch(number: int, frame: Any) -> None:
        if not cleaner.removing:
            raise Interrupted(number)
        cleaner.interrupted = number

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, catch)


def main(argv: 'Optional[Sequence[str]]' = None) -> int:
    """Run the command line `argv`, the process's own by default; return the exit status."""
    logging.raiseExceptions = False  # nobody may be reading, and the work goes on
    try:
        return run(argv)
    except Interrupted as interrupted:  # while the result was being written
        return 128 + int(interrupted.args[0])
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                print(end='', file=stream, flush=True)
            except OSError:  # what could not be written would be tried again at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == '__main__':
    try:
        exit_status: Any = main()
    except SystemExit as error:  # the parser's, after --help or a usage error
        exit_status = error.code
    os._exit(exit_status)  # at once: nobody needs what a run holds freed piece by piece
