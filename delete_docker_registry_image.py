#!/usr/bin/env python3
"""Delete images from the disk of a stopped Docker registry, and free their space.

A private registry (CNCF Distribution: registry:2, registry:3, Debian's docker-registry) never
frees disk by itself.  Stop it, run this file, start it again:

    delete_docker_registry_image -i team/app:1.0

Data flows one way:

    request -> scan -> plan -> guard -> set aside -> commit -> free -> report

Part 1 holds all that changes the disk, and the guard, which looks at every plan again before
anything moves.  Read it before you run this as root.  Part 2 only decides: a fault in it can make
the program refuse, or delete too little.
"""

import argparse
import contextlib
import errno
import fcntl
import fnmatch
import gc
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import signal
import stat
import sys
import threading
import time
from collections import Counter, deque
from functools import lru_cache, partial
from typing import (IO, AbstractSet, Any, Callable, Dict, Iterable, Iterator, List, Mapping,
                    NamedTuple, Optional, Sequence, Set, Tuple, TypeVar)

__version__ = '2.0.0'

PROGRAM = 'delete_docker_registry_image'
log = logging.getLogger(PROGRAM)
Item = TypeVar('Item')
Result = TypeVar('Result')


# == What both parts read with: names, records, files; changes nothing ==

ALGORITHMS = {'sha256': 64, 'sha384': 96, 'sha512': 128}  # of six letters -> hex digits
DIGEST = '(?:%s)' % '|'.join('%s:[0-9a-f]{%d}' % pair for pair in ALGORITHMS.items())
is_digest = re.compile(DIGEST).fullmatch  # `alg:hex` of the right length; else it is no path
TAG = r'[A-Za-z0-9_][A-Za-z0-9._-]{0,127}'
is_tag = re.compile(TAG).fullmatch
HOST = r'localhost|(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]+'
PARTS = ('_manifests', '_layers', '_uploads')  # any makes a folder a repository; as they go
COPIES = ('.snapshot', '.zfs', '#snapshot', '@eaDir')  # of their own, by storage systems
OWN = '_' + PROGRAM + '.'  # begins the names of our own folders in `repositories`
MANIFEST_LIMIT = 4 << 20  # bytes; no registry reads a larger manifest
REGISTRIES = ('registry', 'docker-registry', 'dockerregistry')  # before 2.4, and OpenShift's
FEW = 48  # to look for so many names costs about as much as to list a folder
NO_WAY_BACK = (errno.ENOSPC, errno.EDQUOT, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP)
PUSHED = 'somebody pushes into it; stop the registry first'


class RegistryCleanerError(Exception):
    """Why nothing was deleted, in words for the operator."""


# -- What the operator named ----------------------------------------------------------------------

class Image(NamedTuple):
    """One word of the operator: a repository, tags of it or a manifest; each may be a pattern."""

    name: str
    tag: str = ''  # a name, a shell pattern, or a regular expression between slashes
    digest: str = ''

    @property
    def whole(self) -> bool:
        """Whether it is whole repositories."""
        return not (self.tag or self.digest)

    def __str__(self) -> str:
        return self.name + (self.tag and ':' + self.tag) + (self.digest and '@' + self.digest)


class Request(NamedTuple):
    """What the operator asks of a run, as it was typed."""

    images: Tuple[Image, ...] = ()
    excluded: Tuple[Image, ...] = ()  # never delete what these name
    untagged: bool = False  # of the images, whole repositories (none: of all), what no tag reaches
    garbage: bool = False  # in the whole registry, what nothing uses
    prune: bool = False  # empty folders
    keep_last: Optional[int] = None  # of the tags that each image selects in a repository
    older_than: Optional[float] = None  # seconds
    by: str = 'pushed'  # what these two go by: pushed, created, version
    remove_all: bool = False  # patterns may leave the registry without any tag
    dry_run: bool = False
    read_only: bool = False  # the registry is up, in read-only mode
    now: float = 0  # when the run began, in seconds


def read_request(arguments: argparse.Namespace) -> Request:
    """Return the request of a command line.  Raises ValueError, with a text and the word."""
    text = os.fsdecode(sys.stdin.buffer.read()) if sys.stdin and (
        '-' in arguments.images + arguments.excluded) else ''
    lines = [line.strip(' \t\r') for line in text.split('\n')]
    lines = [line for line in lines if line and line[0] != '#']
    if '-' in arguments.excluded and not lines:
        raise ValueError('there is no line on standard input for -x: that would protect nothing',
                         '')
    images, excluded = (tuple(parse_image(one) for word in words for one in (
        lines if word == '-' else [word])) for words in (arguments.images, arguments.excluded))
    untagged = arguments.untagged and bool(images or not arguments.images)  # an empty list is none
    return Request(images, excluded, untagged, arguments.garbage, arguments.prune,
                   arguments.keep_last, arguments.older_than, arguments.by,
                   arguments.allow_remove_all,
                   arguments.dry_run or arguments.list or arguments.check,
                   arguments.read_only_registry)


def begun(request: Request, dry_run: bool = False, read_only: bool = False) -> Request:
    """Return `request` as that of a run that begins now, a dry run if either of both says so."""
    return request._replace(now=time.time(), dry_run=request.dry_run or dry_run,
                            read_only=request.read_only or read_only)


def literal(*words: str) -> Image:
    """Return what a repository's name, or that and a tag, name: never a pattern or a path."""
    with contextlib.suppress(ValueError, TypeError):
        image = parse_image(':'.join(words))
        if image == Image(*words) and not any(map(is_pattern, words)):
            return image
    raise RegistryCleanerError(f'{words} is no valid image name. Nothing was deleted')


def request_for(repo: str) -> Request:
    """Return the request to delete a repository.  Raises RegistryCleanerError for no name."""
    return Request((literal(repo),))


def request_for_tag(repo: str, tag: str) -> Request:
    """Return the request to delete a tag.  Raises RegistryCleanerError for no name."""
    return Request((literal(repo, tag),))


def request_for_untagged(repo: str) -> Request:
    """Return the request to delete what no tag of a repository reaches.  Raises as the others."""
    return Request((literal(repo),), untagged=True)


def parse_image(word: str) -> Image:
    """Return what `word` names: NAME, NAME:TAG, NAME@DIGEST or NAME:TAG@DIGEST.

    Raises ValueError for anything else.  A name may be outside the registry's grammar, since
    folders may have such names, but none leads out of `repositories`.
    """
    text = word[len('docker://'):] if word.startswith('docker://') else word
    name, colon, tag = text.partition(':/')
    at, digest = '', ''
    if colon:  # a regular expression, which may hold anything
        tag = '/' + tag
    else:
        rest, at, digest = text.partition('@')
        above, slash, last = rest.rpartition('/')
        last, colon, tag = last.partition(':')
        name = above + slash + last
    if '\0' in name or not {'', '.', '..'}.isdisjoint(name.split('/')) or is_digest(text):
        raise ValueError(f"'{word}' is no valid image name", word)
    if at and not is_digest(digest):
        raise ValueError(f"'{word}' has no valid digest after the '@'", word)
    if colon and not (re.fullmatch('/[^/].*/', tag) if tag[:1] == '/' else (
            is_tag(tag) or is_pattern(tag))):
        more = ' (a regular expression stands between slashes)' if tag[:1] == '/' else ''
        raise ValueError(f"'{word}' has no valid tag after the ':'{more}", word)
    try:
        expression(name), expression(tag)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"'{word}' is no valid pattern: {error}", word)
    return Image(name, tag, digest)


def is_pattern(text: str) -> bool:
    """Tell whether `text` may match more than one name."""
    return re.fullmatch('/.+/', text) is not None or not set('*?[').isdisjoint(text)


@lru_cache(maxsize=None)
def expression(pattern: str) -> Any:
    """Return a pattern, /a regular expression/ or a shell's, compiled.  Raises re.error."""
    return re.compile(pattern[1:-1] if pattern[:1] == '/' else fnmatch.translate(pattern))


def matching(wanted: str, names: Iterable[str]) -> List[str]:
    """Return those of `names` that `wanted`, a name or a pattern, names."""
    if is_pattern(wanted):
        return list(filter(expression(wanted).fullmatch, names))
    return [wanted] if wanted in names else []


class Words:
    """The images of a request, or its exclusions, by the repositories that they name."""

    def __init__(self, images: Iterable[Image], names: Set[str], excluding: bool = False) -> None:
        self.literal: Dict[str, List[Image]] = {}
        self.patterns: List[Image] = []
        for image in images:
            name = spelled(image.name, names, excluding)
            if name in names or not is_pattern(name):  # so a name's own brackets are no pattern
                self.literal.setdefault(name, []).append(image._replace(name=name))
            else:
                self.patterns.append(image._replace(name=name))

    def of(self, name: str) -> List[Image]:
        """Return the images that name the repository `name` or anything in it."""
        return self.literal.get(name, []) + [
            image for image in self.patterns if expression(image.name).fullmatch(name)]


def spelled(name: str, names: Set[str], excluding: bool = False) -> str:
    """Return `name` as the repositories `names` spell it: without a host copied in front.

    A host without a port goes only from an exclusion, and if what remains exists.
    """
    host, _, rest = name.partition('/')
    copied = re.fullmatch(HOST, host) and (':' in host or not is_pattern(rest)) or (
        excluding and re.fullmatch(r'.*\..*|localhost', host) and matching(rest, names))
    return rest if rest and copied and not matching(name, names) and name not in names else name


def named_tags(images: Iterable[Image], repository: 'Repository', excluding: bool = False
               ) -> Set[str]:
    """Return the tags of `repository` that `images`, words for it, name.

    A pattern passes over referrer tags, unless `excluding`; but one that begins with an algorithm
    selects those whose image is none of the repository's manifests.
    """
    tags, named = repository.tags, set()  # type: Mapping[str, Tag], Set[str]
    for image in images:
        found: Iterable[str] = matching(image.tag, tags) if image.tag else tags
        if is_pattern(image.tag) and not excluding:
            orphans = re.match('/?(%s)-' % '|'.join(ALGORITHMS), image.tag)
            found = [tag for tag in found if tag not in repository.referrers
                     or orphans and repository.referrers[tag] not in repository.manifests]
        named.update(tag for tag in found if image.digest in ('', tags[tag].digest))
    return named


# -- What comes of a run --------------------------------------------------------------------------

class Signals:
    """SIGINT and SIGTERM end at once what only reads, and are asked for where anything changes."""

    number = 0
    at_once = True

    def catch(self, number: int, frame: Any) -> None:
        """Handle a signal."""
        self.number = number
        if self.at_once:
            raise KeyboardInterrupt


class Account:
    """What a removal has done."""

    def __init__(self) -> None:
        self.skipped: Dict[str, str] = {}  # repository -> why it was left as it was
        self.failed: List[Tuple[str, str]] = []  # path, and why it could not be removed
        self.blobs: Dict[str, int] = {}  # those deleted, with the bytes that this freed
        self.folders: List[str] = []  # empty ones that are gone
        self.left: Set[Any] = set()  # references that could not be removed
        self.put_back = False  # it ended before anything was final
        self.unfinished = False  # it was interrupted later

    def fail(self, error: BaseException, path: str) -> None:
        """Note that something could not be removed."""
        named = os.path.join(path, getattr(error, 'filename', None) or '')
        self.failed.append((named if os.path.lexists(named) else path,  # rmtree's are relative
                            getattr(error, 'strerror', None) or str(error)))


# -- What is on the disk --------------------------------------------------------------------------

def is_own(name: str, what: str = '(aside|gone|kept|probe)') -> bool:
    """Tell whether a folder in `repositories` is called as runs call theirs for `what`."""
    return name.startswith(OWN) and bool(re.fullmatch(what + '([.][0-9]+)?', name[len(OWN):]))


class Kind(NamedTuple):
    """Where a kind of reference lies in its repository, what it is, and how a line calls it."""

    place: str
    item: str
    line: str


# In the order of removal, which keeps every tag that resolves complete at every moment.
KINDS = {
    'tag': Kind('_manifests/tags/{item}', TAG, 'tag {repository}:{item}'),
    'entry': Kind('_manifests/tags/{tag}/index/{path}', DIGEST,
                  'entry of {item} in the history of {repository}:{tag}'),
    'manifest': Kind('_manifests/revisions/{path}', DIGEST, 'manifest {repository}@{item}'),
    'layer': Kind('_layers/{path}', DIGEST, 'layer link {repository}@{item}'),
    'leftover': Kind('{item}', '_manifests/tags/%s|(_layers|_manifests/revisions)/%s' % (
        TAG, DIGEST.replace(':[', '/[')), 'folder without a link {repository}/{item}'),
    'upload': Kind('_uploads/{item}', r'(?!\.{1,2}\Z)[^/\0]+', 'upload {repository}/{item}'),
    'repository': Kind('', '', 'repository {repository}'),
}


# A folder of one reference, wherever its repository was moved to.
is_leaf = re.compile('(?s).*/(?:(?:_manifests/tags|_uploads)/[^/]+|(?:_layers|_manifests/revisions)'
                     '/%s)' % DIGEST.replace(':[', '/[')).fullmatch


class Reference(NamedTuple):
    """One thing to remove: of the kind repository, whatever is left of one."""

    kind: str
    repository: str
    item: str = ''  # the tag, the digest, the upload, or the leftover's folder
    tag: str = ''  # which has the entry in its history

    @property
    def place(self) -> str:
        """Where it lies in its repository."""
        return KINDS[self.kind].place.format(path=self.item.replace(':', '/'), **self._asdict())

    @property
    def line(self) -> str:
        """How a line calls it."""
        return KINDS[self.kind].line.format(**self._asdict())


def in_order(references: Iterable[Reference]) -> List[Reference]:
    """Return references in the order of removal."""
    rank = {kind: number for number, kind in enumerate(KINDS)}
    return sorted(references, key=lambda one: rank[one.kind])


def by_repository(references: Iterable[Reference]) -> Dict[str, List[Reference]]:
    """Return the references of each repository that has any."""
    found: Dict[str, List[Reference]] = {}
    for reference in references:
        found.setdefault(reference.repository, []).append(reference)
    return found


class Plan(NamedTuple):
    """What is to be removed."""

    references: List[Reference]
    blobs: Dict[str, int] = {}  # digest -> size in bytes
    folders: List[str] = []  # empty ones, each before the one that holds it


class Manifest(NamedTuple):
    """What a manifest names, or why nobody knows."""

    names: Dict[str, float] = {}  # digest -> the size in bytes that it says, negative if none
    subjects: Tuple[str, ...] = ()  # what it refers to
    is_index: bool = False  # it calls what it names manifests, or some of that
    foreign: Tuple[str, ...] = ()  # of the names, layers that have `urls`
    signed: bool = False  # schema 1, whose signatures old registries stored
    fault: str = ''


class Tag(NamedTuple):
    """One tag; it is broken when its link is missing, empty or no digest."""

    digest: str  # '': broken
    history: Tuple[str, ...] = ()  # the digests that its index has a link to
    entries: Tuple[str, ...] = ()  # these, and those whose folder has lost its link
    pushed: Optional[float] = None  # seconds; the last write to its link
    fault: str = ''  # why it cannot be read


class Repository(NamedTuple):
    """A repository as it is on the disk.  Links are digest -> blob: '' unknown, None no link."""

    name: str
    tags: Dict[str, Tag]
    no_tags: List[str]  # folders of tags that are gone
    revisions: Dict[str, Optional[str]]
    layers: Dict[str, Optional[str]]
    manifests: Dict[str, Manifest]  # linked revisions, and what only has a layer link (2.1.0)
    uploads: List[str]
    referrers: Dict[str, str]  # OCI's fallback tags and cosign's -> digest of their image

    def going(self, references: Iterable[Reference], *kinds: str) -> Set[str]:
        """Return the items of these kinds in `references`, which are all of this repository."""
        return {reference.item for reference in references if reference.kind in kinds}


def referrers_of(tags: Mapping[str, Tag], manifests: Mapping[str, Manifest]) -> Dict[str, str]:
    """Return which of a repository's `tags` are referrer tags, with the digest of their image.

    A tag whose manifest is or names that image is an ordinary one (imgpkg makes such).
    """
    found = {}
    for tag in tags:
        begin, dot, suffix = tag.partition('.')
        image, digest = begin.replace('-', ':', 1), tags[tag].digest
        if is_digest(image) and bool(dot) == bool(suffix):
            manifest = manifests.get(digest, Manifest())
            if suffix in ('sig', 'att', 'sbom') or (
                    image in manifests and digest not in ('', image)
                    and image not in manifest.names and not manifest.fault):
                found[tag] = image
    return found


DECODER = json.JSONDecoder(object_pairs_hook=tuple, parse_int=float)


def parse_manifest(content: bytes) -> Manifest:
    """Return what a manifest with this content names.

    Every digest under a key `digest` or `blobSum` counts, but for those below `subject` and
    `annotations`.  The registry (Go) ignores the case of keys, and of a key that stands twice may
    use either, or mix them: all spellings and both are seen, and one entry with a manifest's
    media type makes an index of the whole.  No list of the kinds of manifest is needed.
    """
    try:
        document = DECODER.decode(content.decode('utf-8', 'replace'))
    except RecursionError:
        return Manifest(fault='it is nested too deeply')
    except ValueError:
        document = None
    if type(document) is not tuple:
        return Manifest(fault='it is no JSON object')
    names: Dict[str, float] = {}
    foreign: List[str] = []
    is_index = False
    todo: List[Any] = [document]
    while todo:
        part = todo.pop()
        if type(part) is list:
            todo += [value for value in part if type(value) in (tuple, list)]
            continue
        digests, size, is_manifest, elsewhere = [], -1.0, False, False  # type: Any, Any, Any, Any
        for key, value in part:
            key, kind = key.casefold(), type(value)
            if kind is str:
                if key in ('digest', 'blobsum') and is_digest(value):
                    digests.append(sys.intern(value))
                elif key == 'mediatype':
                    is_manifest = is_manifest or '.manifest.' in value or '.index.' in value
            elif kind is float:
                size = value if key == 'size' else size
            elif (kind is tuple or kind is list) and key not in ('subject', 'annotations'):
                todo.append(value)
                elsewhere = elsewhere or key == 'urls' and value != []
        for digest in digests:
            names[digest] = size
            is_index = is_index or is_manifest
            if elsewhere:
                foreign.append(digest)
    top = [(key.casefold(), value) for key, value in document]
    subjects = {text for key, value in top if key == 'subject' and type(value) is tuple
                for name, text in value if name.casefold() == 'digest' and type(text) is str}
    return Manifest(names, tuple(subjects), is_index, tuple(foreign), 'fslayers' in dict(top))


class Workers:
    """Does things side by side, in threads: worth it where storage is slow to answer.

    `jobs` at once; with 0, the time that listing a folder takes decides.  `step`, `done` and
    `total` say how far the work is.
    """

    def __init__(self, jobs: int = 0) -> None:
        self.jobs = jobs
        self.times: Any = deque(maxlen=15)  # seconds that listing a folder took, lately
        self.step, self.done, self.total = '', 0, 0
        self.busy = False  # the threads are at work

    def threads(self) -> int:
        """Return how many things to do at once."""
        slow = self.times and sorted(self.times)[len(self.times) // 2] > 0.001
        return self.jobs or (32 if slow else 1)

    def each(self, function: Callable[[Item], Result], items: Iterable[Item], step: str = '',
             large: bool = False) -> List[Result]:
        """Return function(item) of each item, in their order; raise what the first failure raised.

        A few `large` items, whose function calls each() itself, come one by one, and each has all
        the threads.  Otherwise an each() within another does one thing after the other.
        """
        items = list(items)
        if step:
            self.step, self.done, self.total = step, 0, len(items)
        few = len(items) < (8 if large else 2)
        threads = 1 if self.busy or few else min(self.threads(), len(items))
        results: List[Result] = []
        if threads < 2:
            for item in items:
                results.append(function(item))
                if step:
                    self.done += 1
            return results
        numbers, found = deque(range(len(items))), {}  # type: Any, Dict[int, Result]
        failures: List[BaseException] = []

        def work() -> None:
            with contextlib.suppress(IndexError):
                while not failures:
                    number = numbers.popleft()
                    try:
                        found[number] = function(items[number])
                    except BaseException as error:
                        failures.append(error)
                    self.done += bool(step)

        helpers = [threading.Thread(target=work, daemon=True) for _ in range(threads - 1)]
        self.busy = True
        with contextlib.suppress(RuntimeError):  # where no more threads may be had, fewer do
            for helper in helpers:
                helper.start()
        work()
        for helper in helpers:
            if helper.ident:
                helper.join()
        self.busy = False
        for failure in failures:
            raise failure
        return [found[number] for number in range(len(items))]


class Store:
    """The files of a registry.  Changes nothing; raises OSError for what cannot be read."""

    def __init__(self, v2: str, workers: Workers) -> None:
        self.v2, self.workers = v2, workers
        self.repositories, self.blobs = v2 + '/repositories', v2 + '/blobs'
        self.links: Set[str] = set()  # symbolic links met

    def place(self, name: str, *below: str) -> str:
        """Return the path of the repository `name`, or of something in it."""
        return '/'.join((self.repositories, name) + below)

    def revision(self, name: str, digest: str) -> str:
        """Return the path of a revision's folder."""
        return self.place(name, '_manifests/revisions', digest.replace(':', '/'))

    def blob(self, digest: str) -> str:
        """Return the path of a blob's folder."""
        algorithm, _, digits = digest.partition(':')
        return f'{self.blobs}/{algorithm}/{digits[:2]}/{digits}'

    def exists(self, folder: str) -> bool:
        """Tell whether `folder` is there, and take note if it is a symbolic link.

        Raises OSError where that leads nowhere, or where a file is in the way: is a disk away?
        """
        try:
            is_link = stat.S_ISLNK(os.lstat(folder).st_mode)
        except FileNotFoundError:
            return False
        if is_link:
            self.links.add(folder)
            self.require_missing(folder)
        return True

    def has_link(self, folder: str) -> bool:
        """Tell whether a `link` is in `folder`.  Raises OSError as exists() does."""
        try:
            if stat.S_ISLNK(os.lstat(folder + '/link').st_mode):
                self.links.add(folder + '/link')
            return True
        except FileNotFoundError:
            self.require_missing(folder)
            return False

    def require_missing(self, path: str) -> None:
        """Raise OSError if `path` is only missing because a symbolic link leads nowhere."""
        while not os.path.lexists(path):
            path = path.rpartition('/')[0]
        if not os.path.exists(path):
            raise OSError(errno.ENOENT, f"a symbolic link to '{os.readlink(path)}', which is not "
                          'there: mount it, or remove the link', path)

    def entries(self, path: str) -> List['os.DirEntry[str]']:
        """Return what the folder `path` holds; nothing if there is none."""
        begun = time.perf_counter()
        try:
            with os.scandir(path) as found:
                entries = list(found)
        except FileNotFoundError:
            self.require_missing(path)
            return []
        self.workers.times.append(time.perf_counter() - begun)
        for entry in entries:
            if entry.is_symlink():
                self.links.add(entry.path)
        return entries

    def folders(self, path: str) -> List[str]:
        """Return the names of the folders in `path`, and of links to folders."""
        entries = self.entries(path)
        for entry in entries:
            if entry.is_symlink():
                self.require_missing(entry.path)
        return [entry.name for entry in entries if entry.is_dir()]

    def read(self, path: str, limit: int) -> Optional[Tuple[bytes, float]]:
        """Return the content of a file, up to `limit` bytes, and its mtime; None if missing."""
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno == errno.ELOOP:
                self.links.add(path)
                descriptor = os.open(path, flags)
            elif error.errno in (errno.ENOENT, errno.ENOTDIR):
                self.require_missing(path)
                return None
            else:
                raise
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, 'it is no regular file', path)
            return os.read(descriptor, min(limit, status.st_size + 1)), status.st_mtime
        finally:
            os.close(descriptor)

    def read_link(self, folder: str) -> Tuple[Optional[str], Optional[float]]:
        """Return the digest in `folder`/link and its mtime: '' for no digest, None if missing."""
        content, pushed = self.read(folder + '/link', 200) or (None, None)
        text = content.decode('ascii', 'replace') if content is not None else None
        return (text if text is None or is_digest(text) else ''), pushed

    def links_in(self, top: str, sought: Optional[Set[str]] = None, known: Optional[str] = None
                 ) -> Dict[str, Optional[str]]:
        """Return the digests that have a folder `<alg>/<hex>` in `top`, each with its link's blob.

        Blobs lie under their sha256.  A sha256 link is named after its blob and never opened; one
        of another algorithm holds the name.  With `sought`, of the former only these blobs.  The
        link of a `known` one is not looked for.
        """
        found: Dict[str, Optional[str]] = {}
        for algorithm in ALGORITHMS if self.exists(top) else ():
            folder, wanted = f'{top}/{algorithm}', sought if algorithm == 'sha256' else None
            if not self.exists(folder):
                continue
            if wanted is not None and len(wanted) <= FEW:
                places = {digest: f'{folder}/{digest[7:]}' for digest in wanted
                          if self.exists(f'{folder}/{digest[7:]}')}
            else:
                listed = [(f'{algorithm}:{entry.name}', entry) for entry in self.entries(folder)]
                places = {sys.intern(digest): entry.path for digest, entry in listed
                          if is_digest(digest) and (wanted is None or digest in wanted)}
            if known and known in places:
                found[known] = known
                del places[known]
            there = self.workers.each(self.has_link, places.values())
            for (digest, path), linked in zip(places.items(), there):
                found[digest] = None if not linked else digest if algorithm == 'sha256' else (
                    self.read_link(path)[0])
        return found

    def signatures(self, name: str, digest: str) -> Set[str]:
        """Return the blobs that a schema 1 manifest's signature links reference."""
        links = self.links_in(self.revision(name, digest) + '/signatures')
        return {blob for blob, link in links.items() if link is not None}

    def manifest(self, blob: Optional[str]) -> Manifest:
        """Return what the manifest that is stored as `blob` names."""
        try:
            found = self.read(self.blob(blob) + '/data', MANIFEST_LIMIT + 1) if blob else None
        except OSError as error:
            return Manifest(fault=f'it cannot be read: {error.strerror}')
        if not blob or not found:
            return Manifest(fault='it is missing' if blob else 'its link is empty or no digest')
        if len(found[0]) > MANIFEST_LIMIT:
            return Manifest(fault='it is larger than 4 MiB')
        algorithm, _, digits = blob.partition(':')
        if not found[0]:
            return Manifest(fault='it is empty')
        if getattr(hashlib, algorithm)(found[0]).hexdigest() != digits:
            return Manifest(fault='its content does not match its digest')
        return parse_manifest(found[0])

    def repository_names(self, tops: Sequence[str] = ('',)) -> List[str]:
        """Return the names of all repositories, sorted: folders that hold what one holds."""
        found, todo = [], list(tops)
        while todo:
            listed = self.workers.each(lambda name: self.folders(self.repositories + name), todo,
                                       'Looking for repositories')
            found += [name[1:] for name, folders in zip(todo, listed)
                      if name and not set(PARTS).isdisjoint(folders)]
            todo = [name + '/' + folder for name, folders in zip(todo, listed) for folder in folders
                    if folder not in PARTS + COPIES and (name or not is_own(folder))
                    and not self.is_own_ancestor(name + '/' + folder)]
        return sorted(found)

    def is_own_ancestor(self, name: str) -> bool:
        """Tell whether the folder `name` below `repositories` is one of those that it lies in."""
        path, above = self.repositories + name, name
        while path in self.links and above:
            above = above.rpartition('/')[0]
            if os.path.samefile(path, self.repositories + above):
                return True
        return False

    def read_tag(self, name: str, tag: str) -> Optional[Tag]:
        """Return a tag; None for a folder with neither a link nor a history, which is none."""
        folder = self.place(name, '_manifests/tags', tag)
        try:
            self.exists(folder + '/current')
            digest, pushed = self.read_link(folder + '/current')
            entries = self.links_in(folder + '/index', known=digest)
        except OSError as error:
            return Tag('', fault=f'it cannot be read: {error.strerror}')
        history = tuple(entry for entry in entries if entries[entry] is not None)
        if digest is None and not history:
            return None
        return Tag(digest or '', history, tuple(entries), pushed)

    def repository(self, name: str) -> Repository:
        """Return the repository `name`, with all of its manifests."""
        self.exists(self.place(name, '_manifests'))
        top = self.place(name, '_manifests/tags')
        folders = [tag for tag in self.folders(top) if is_tag(tag)] if (
            self.exists(top)) else []
        tags = dict(zip(folders, self.workers.each(lambda tag: self.read_tag(name, tag), folders)))
        revisions = self.links_in(self.place(name, '_manifests/revisions'))
        layers = self.links_in(self.place(name, '_layers'))
        linked = [digest for digest, blob in revisions.items() if blob is not None]
        manifests = dict(zip(linked, self.workers.each(
            lambda digest: self.manifest(revisions[digest]), linked)))
        # Registry 2.1.0 linked manifests as layers, and every 2.x still serves them from there.
        todo = {digest for tag in tags.values() if tag for digest in tag.history + (tag.digest,)}
        todo.update(*(manifest.names for manifest in manifests.values() if manifest.is_index))
        while todo:
            digest = todo.pop()
            if digest not in manifests and layers.get(digest) is not None:
                manifest = self.manifest(layers[digest])
                if manifest.fault not in ('it is no JSON object', 'it is larger than 4 MiB'):
                    manifests[digest] = manifest
                    todo.update(manifest.names if manifest.is_index else ())
        real = {tag: read for tag, read in tags.items() if read}
        return Repository(
            name, real, [tag for tag, read in tags.items() if not read], revisions, layers,
            manifests, self.folders(self.place(name, '_uploads')), referrers_of(real, manifests))

    def linked(self, blobs: Iterable[str], going: Mapping[str, List[Reference]] = {}) -> Set[str]:
        """Return those of `blobs` that a repository links, other than by a link that is `going`."""
        sought = set(blobs)

        def links(name: str) -> Set[str]:
            self.exists(self.place(name, '_manifests/tags'))  # which may lead to those of another
            gone = {(kind, item) for kind, _, item, _ in going.get(name, ())}
            return set() if ('repository', '') in gone else {
                blob for kind, top in (('layer', '_layers'), ('manifest', '_manifests/revisions'))
                for digest, blob in self.links_in(self.place(name, top), sought).items()
                if blob in sought and (kind, digest) not in gone}

        if not sought:
            return set()
        return set().union(sought & self.kept_links(), *self.workers.each(
            links, self.repository_names(), 'Looking for links'))

    def kept_links(self) -> Set[str]:
        """Return the blobs of the links that no run could put back: those count like others."""
        tops = [entry.path for entry in self.entries(self.repositories)
                if is_own(entry.name, 'kept') and entry.is_dir()]
        kept = Store(self.v2, self.workers)  # whose symbolic links are no matter
        return kept.blobs_of(filter(is_leaf, kept.folders_below(tops)))

    def folders_below(self, tops: List[str]) -> List[str]:
        """Return all folders below `tops`, but for what tags, links and uploads hold."""
        found: List[str] = []
        while tops:
            listed = [entry.path for entries in self.workers.each(self.entries, tops)
                      for entry in entries if entry.is_dir(follow_symlinks=False)]
            found += listed
            tops = [path for path in listed if not is_leaf(path)]
        return found

    def blobs_of(self, folders: Iterable[str]) -> Set[str]:
        """Return the blobs of the links in these folders of layers and revisions."""
        digests = {path: ':'.join(path.split('/')[-2:]) for path in folders}
        return {digest if digest[:6] == 'sha256' else self.read_link(path)[0] or digest
                for path, digest in digests.items()
                if is_digest(digest) and os.path.lexists(path + '/link')}

    def size(self, digest: str) -> Optional[int]:
        """Return the bytes that removing the blob frees, None when it is not stored."""
        path = self.blob(digest)
        try:
            status = os.lstat(path)
            if not stat.S_ISLNK(status.st_mode):
                status = os.lstat(path + '/data')
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0

    def has_links(self, name: str, below: str) -> bool:
        """Tell whether a repository has a link in `below`, _layers or _manifests/revisions."""
        return any(is_digest(f'{algorithm}:{entry.name}') and self.has_link(entry.path)
                   for algorithm in ALGORITHMS
                   for entry in self.entries(self.place(name, below, algorithm)))

    def holds_a_blob(self) -> bool:
        """Tell whether any blob is stored at all.  Refuses the disk of a MinIO server."""
        for folder in self.blob_folders():
            for digits in self.folders(f'{self.blobs}/{folder}'):
                path = f'{self.blobs}/{folder}/{digits}/data'
                if os.path.lexists(path + '/xl.meta'):
                    raise RegistryCleanerError(
                        f"'{path}' is a folder with 'xl.meta': this is the disk of a MinIO "
                        'server. Nothing was deleted. Mount its bucket (rclone mount), and '
                        'work on that')
                if os.path.lexists(path):
                    return True
        return False

    def blob_folders(self) -> Iterator[str]:
        """Yield the folders that hold blobs, as '<alg>/<first 2 hex>'."""
        for algorithm in filter(ALGORITHMS.__contains__, self.folders(self.blobs)):
            for two in self.folders(f'{self.blobs}/{algorithm}'):
                yield f'{algorithm}/{two}'


# -- What other processes are ---------------------------------------------------------------------

def settings(proc: str, words: List[str]) -> List[str]:
    """Return what a registry's environment says, and what its configuration file says, as YAML."""
    lines = [line.partition('=')[::2] for line in peek(proc + '/environ').split('\0')]
    told = '\n'.join(': '.join(name.lower().split('_')[1:]) + ': ' + value
                     for name, value in lines if name.startswith('REGISTRY_'))
    files = [word for word in words if not word.startswith('-')]
    files += [value for name, value in lines if name == 'REGISTRY_CONFIGURATION_PATH']
    text = re.sub(r'(?m)(^|\s)#.*', '', peek(seen(proc, files[0])) if files else '')
    if not {'REGISTRY_STORAGE', 'REGISTRY_STORAGE_MAINTENANCE'}.isdisjoint(dict(lines)):
        text = text.replace('maintenance', '')  # such a variable replaces the whole section
    return [told, text]


def seen(proc: str, path: str) -> str:
    """Return where we see the `path` of another process, which may be in a container.

    There, a symbolic link that is absolute begins at the root of the container.
    """
    at = f'{proc}/root' if path.startswith('/') else f'{proc}/cwd'
    todo, links = path.split('/')[::-1], 0
    while todo and links < 40:
        at += '/' + todo.pop()
        if os.path.islink(at):
            target, links = os.readlink(at), links + 1
            todo += target.split('/')[::-1]
            at = f'{proc}/root' if target.startswith('/') else os.path.dirname(at)
    return at


def peek(path: str) -> str:
    """Return the text of another process's file: 1 MiB at most, '' if it is no regular file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ''
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 'rb') as file:
            return os.fsdecode(file.read(1 << 20) or b'')
    except PermissionError:
        raise
    except (OSError, ValueError):  # it has ended, or there is no such file
        return ''


def values(key: str, told: Iterable[str]) -> List[str]:
    """Return the values that `key` may have in the first of the texts that names it."""
    for text in [told] if isinstance(told, str) else told:
        lines = re.findall(key + r'[\'"]?\s*:\s*(?:[>|]-?\s*)?(\S.*)', text)
        if lines:
            return [value.strip('\'" \t\r') for line in lines
                    for value in (line, re.split('[,}]', line)[0])]
    return []


def read_only_mode(text: str) -> Optional[bool]:
    """Tell whether a configuration turns read-only mode on or off; None if it says nothing."""
    end = r'[\'"]?\s*:\s*\{?\s*[\'"]?'
    found = re.search(
        r'(?m)(^[ \t]*|)[\'"]?maintenance[\'"]?\s*?:(?:[ \t]*\n(?:\1[ \t]+\S.*\n)*?\1[ \t]+|'
        r'\s*\{?\s*)[\'"]?readonly' + end + 'enabled' + end + r'(\w+)', text[:1 << 16])
    return found.group(2).lower() in ('true', 'yes', 'on') if found else None


def same_folder(path: str, folder: str) -> bool:
    """Tell whether `path` is this very folder.  Raises PermissionError."""
    try:
        return os.path.samefile(path, folder)
    except PermissionError:
        raise
    except (OSError, ValueError):
        return False


# == Part 1: all that can harm an image ==

# -- The guard: a second look at every plan -------------------------------------------------------

class Fault(RegistryCleanerError):
    """What the guard found in a plan."""

    def __init__(self, what: str) -> None:
        super().__init__(f'This is a fault in this program: {what}. Nothing was deleted. Please '
                         'report it, with the command and the output of the same with -n -v')


def guard(store: Store, request: Request, plan: Plan) -> Dict[str, List[Set[Tuple[str, str]]]]:
    """Look at the disk again, and raise RegistryCleanerError unless `plan` harms nothing there.

    Returns what stays of each repository in the plan, and what there is: tags with their digests,
    and manifests.
    """
    names = set(store.repository_names())
    refuse_unsafe_ground(store, names, request.garbage)
    for reference in plan.references:
        kind = KINDS.get(reference.kind)
        if not (kind and re.fullmatch(kind.item, reference.item) and reference.repository in names
                and (reference.kind == 'entry') == bool(is_tag(reference.tag))):
            raise Fault(f"'{reference}' is no place in the store")
    for path in plan.folders:
        if not path.startswith((store.repositories + '/', store.blobs + '/')) or (
                path != os.path.normpath(path)):
            raise Fault(f"'{path}' is no folder of the store")
    if not all(map(is_digest, plan.blobs)):
        raise Fault('what is no digest would go as a blob')
    images, excluded = Words(request.images, names), Words(request.excluded, names, True)
    going = by_repository(plan.references)
    require_one_name(store, names, going)

    def look_again(name: str) -> List[Set[Tuple[str, str]]]:
        repository = store.repository(name)
        words = images.of(name)
        if repository.going(going[name], 'manifest') and not words and (
                request.images or not request.untagged):
            raise Fault(f'a manifest of {name} would go, and no word names it')
        require_named(repository, going[name], () if request.untagged else words, excluded.of(name))
        return [require_unneeded(repository, going[name], plan.blobs),
                standing(repository, repository.manifests)]

    staying = dict(zip(going, store.workers.each(
        look_again, list(going), 'Looking again', large=True)))
    links = [one.item for one in plan.references if one.kind in ('layer', 'manifest')]
    for blob in store.linked([*plan.blobs, *links], going) & plan.blobs.keys():
        raise Fault(f'{blob} would go, and a repository has a link to it')
    refuse_second_names(store, going)
    return staying


def require_named(repository: Repository, going: List[Reference], images: Sequence[Image],
                  excluded: Sequence[Image]) -> None:
    """Rule 1: only what was named goes.  `images` and `excluded` are words for the repository."""
    tags, referrers = repository.tags, repository.referrers
    named = named_tags(images, repository)
    kept = named_tags(excluded, repository, excluding=True)
    manifests = repository.going(going, 'manifest', 'layer') & repository.manifests.keys()
    leaving = repository.going(going, 'tag')
    whole = bool(repository.going(going, 'repository'))
    left = (tags.keys() - leaving, repository.manifests.keys() - manifests,
            set(repository.uploads) - repository.going(going, 'upload'))
    for tag in tags if whole else leaving & tags.keys():
        if tag in kept or tag not in named and referrers.get(tag) not in manifests:
            raise Fault(f'tag {repository.name}:{tag} would go, and no word names it')
    if whole and any(left) and (excluded or not any(image.whole for image in images)):
        raise Fault(f'repository {repository.name} would go, and no word names it')
    if any(not image.tag and image.digest in {'', *manifests} for image in excluded):
        raise Fault(f'something of {repository.name} would go, and it is excluded')


def require_unneeded(repository: Repository, going: List[Reference],
                     blobs: Mapping[str, int]) -> Set[Tuple[str, str]]:
    """Rule 2: what stays names nothing that goes, link or blob.  Returns what stays."""
    name, tags = repository.name, repository.tags
    whole = bool(repository.going(going, 'repository'))
    leaving, layers = repository.going(going, 'tag'), repository.going(going, 'layer')
    manifests = repository.going(going, 'manifest')
    losing = {one.tag for one in going if one.kind == 'entry' and one.item in repository.manifests}
    gone = manifests | layers
    staying = set() if whole else {digest for digest in repository.manifests if digest not in (
        manifests if repository.revisions.get(digest) is not None else layers)}
    faults = [f'manifest {digest}: {repository.manifests[digest].fault}' for digest in staying
              if repository.manifests[digest].fault]
    for digest in staying:
        needed = {digest, *repository.manifests[digest].names}
        behind = {links.get(one) for links in (repository.revisions, repository.layers)
                  for one in needed}
        if not (needed - {digest}).isdisjoint(gone) or not blobs.keys().isdisjoint(behind):
            raise Fault(f'{name}@{digest} stays, and would lose what it names')
    for tag in [] if whole else tags.keys() - leaving:
        digest, history = tags[tag].digest, tags[tag].history
        faults += [f'tag {tag}: {tags[tag].fault}'] if tags[tag].fault else []
        reached = {digest} if digest else set(history) or repository.manifests.keys()
        if reached & gone & repository.manifests.keys() or not digest and tag in losing:
            raise Fault(f'tag {name}:{tag} stays, and would lose its manifest')
    for digest, blob in {} if whole else repository.layers.items():
        if digest not in layers and blob is not None and (not blob or blob in layers):
            faults.append(f'layer link {digest} needs another one')
    if faults and going:
        raise Fault(f'{name} stays as it is, since nobody knows what it needs ({faults[0]})')
    for item in repository.going(going, 'leftover'):
        links = repository.layers if item.startswith('_layers') else repository.revisions
        is_tag = item.startswith('_manifests/tags/')
        if is_tag and item[16:] in tags or links.get(':'.join(item.split('/')[-2:])) is not None:
            raise Fault(f'{name}/{item} would go, and has a link')
    return standing(repository, staying, tags if whole else leaving)


def standing(repository: Repository, manifests: Iterable[str], leaving: Iterable[str] = ()
             ) -> Set[Tuple[str, str]]:
    """Return these manifests, and the tags with their digests that are not `leaving`."""
    return {(digest, '') for digest in manifests} | {
        (tag, read.digest) for tag, read in repository.tags.items() if tag not in leaving}


def require_one_name(store: Store, names: Iterable[str], touched: Iterable[str]) -> None:
    """Refuse when a repository that the plan touches has a second name, by a link or a mount."""
    places: Dict[Tuple[int, int], str] = {}
    for name, status in zip(names, store.workers.each(os.stat, map(store.place, names))):
        other = places.setdefault((status.st_dev, status.st_ino), name)
        if other != name and not {name, other}.isdisjoint(touched):
            raise RegistryCleanerError(
                f"'{store.place(other)}' and '{store.place(name)}' are the same folder. Nothing "
                'was deleted. Replace one by a copy, or remove it')


def refuse_second_names(store: Store, touched: Iterable[str]) -> None:
    """Refuse when a symbolic link, met on the way, leads to a place that has another name too."""
    names = {path: path for top in (store.v2, store.repositories, store.blobs)
             for path in (top, os.path.realpath(top))}
    inner = {link for link in store.links if set(PARTS) & set(link[len(store.v2):].split('/'))}
    places = tuple(store.place(name) + '/' for name in touched)
    names.update((os.path.realpath(link), link) for link in sorted(store.links)
                 if link not in inner or link.startswith(places))
    for link in sorted(inner):
        first = os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(link)))
        for target in (first, os.path.realpath(link)):
            above = target
            while above and names.get(above, link) == link:
                above = above.rpartition('/')[0]
            if above:
                other = names[above] + target[len(above):]
                raise RegistryCleanerError(
                    f"'{link}' and '{other}' are the same by a symbolic link. Nothing was deleted. "
                    'Replace the link by a copy, or remove it')


# -- The removal: set aside, put back, commit, free -----------------------------------------------

class Removal:
    """Removes references and blobs: the one place that changes the store."""

    def __init__(self, store: Store, signals: Signals) -> None:
        self.store, self.signals = store, signals
        self.aside, self.gone, self.kept, self.probe = (
            f'{store.repositories}/{OWN}{end}' for end in ('aside', 'gone', 'kept', 'probe'))
        self.kept = free_name(self.kept)
        self.account = Account()

    def recover(self) -> None:
        """Put back what an interrupted run had set aside, or finish what it had committed."""
        self.signals.at_once = False
        remove(self.probe)
        if os.path.lexists(self.aside):
            log.warning('An earlier run was interrupted before anything was final. What it had set '
                        'aside is put back')
            self.put_back_all()
        gone = [one.path for one in self.store.entries(self.store.repositories)
                if is_own(one.name, 'gone') and not one.is_symlink()]
        if gone:
            refuse_unsafe_ground(self.store, self.store.repository_names(), garbage=False)
            log.warning('An earlier run was interrupted. What it had decided is finished first')
            self.free(gone)
        self.store.links.clear()
        self.signals.at_once = True

    def carry_out(self, request: Request, plan: Plan) -> None:
        """Remove what `plan` names.  Raises RegistryCleanerError if the guard refuses it."""
        if request.dry_run or os.path.lexists(self.aside):
            raise Fault('this is a dry run, or an earlier run has not been put back')
        staying = guard(self.store, request, plan)
        real = self.renames_are_moves() if staying else True
        self.signals.at_once = False
        parts = by_repository(in_order(plan.references))
        try:
            done = self.store.workers.each(
                lambda name: real and self.set_aside(name, parts[name], *staying[name]), parts,
                'Setting aside')
        except OSError:
            self.account.put_back = True
            self.put_back_all()
            raise
        if os.path.lexists(self.aside):
            sync(self.store.repositories)
        if self.signals.number:
            self.account.put_back = True
            return self.put_back_all()
        final = [self.commit()] if os.path.lexists(self.aside) else []
        left = [name for name, aside in zip(parts, done) if not aside]
        if left:
            log.warning('There is no room or no way to set %d repositories aside: what goes of '
                        'them is removed at once, without a way back', len(left))
            self.store.workers.each(
                lambda name: self.remove_now(name, parts[name], staying[name][1]), left)
            sync(self.store.repositories)
        self.free(final, plan.blobs)
        self.prune(plan.folders)

    def set_aside(self, name: str, references: List[Reference],
                  staying: Set[Tuple[str, str]], seen: Set[Tuple[str, str]]) -> bool:
        """Move what goes of a repository aside, all or nothing; False if only removing does it."""
        reason, way_back = '', True
        try:
            whole = references[-1].kind == 'repository'
            for place in PARTS if whole else [one.place for one in references]:
                if self.signals.number:
                    return True
                source = self.store.place(name, place)
                if os.path.lexists(source):
                    move(source, f'{self.aside}/{name}/{place}')
            if not (self.standing(self.store.place(name)) <= staying
                    and self.standing(f'{self.aside}/{name}') <= seen):
                reason = PUSHED
        except OSError as error:
            way_back = error.errno not in NO_WAY_BACK
            reason = f"cannot set aside '{error.filename}': {error.strerror}"
        if reason and not self.put_back_repository(name):
            for source, part in [(f'{self.aside}/{name}/{part}', part) for part in PARTS]:
                if os.path.lexists(source):
                    move(source, f'{self.kept}/{name}/{part}')  # which is never committed
            self.account.skipped[name] = reason + '. What could not be put back is kept'
            return True
        if reason and way_back:
            self.account.skipped[name] = reason + '. It was left as it was'
        return way_back

    def standing(self, folder: str) -> Set[Tuple[str, str]]:
        """Return the tags in a repository's folder with their digests, and its manifests.

        A symbolic link that was moved may lead nowhere: nothing can be pushed to what is there.
        """
        def digest_of(folder: str) -> Optional[str]:
            with contextlib.suppress(OSError):
                return self.store.read_link(folder + '/current')[0]
            return ''

        tags, revisions = folder + '/_manifests/tags', folder + '/_manifests/revisions'
        links = self.store.links_in(revisions) if os.path.exists(revisions) else {}
        found = {(digest, '') for digest, blob in links.items() if blob is not None}
        for entry in self.store.entries(tags) if os.path.exists(tags) else ():
            digest = digest_of(entry.path) if is_tag(entry.name) else None
            if digest is not None and entry.is_dir():
                found.add((entry.name, digest))
        return found

    def put_back_all(self) -> None:
        """Put back all that is aside; what cannot go back is kept, and protects its blobs."""
        self.put_back(self.aside, self.store.repositories)
        if os.path.lexists(self.aside):
            os.rename(self.aside, free_name(self.kept))

    def put_back_repository(self, name: str) -> bool:
        """Put back what is aside of a repository."""
        return all(self.put_back(f'{self.aside}/{name}/{part}', self.store.place(name, part))
                   for part in sorted(PARTS))

    def put_back(self, source: str, place: str) -> bool:
        """Move `source` back to `place`.  What is there by now stays, and nothing is overwritten.

        In a repository, layers come first and tags last: after a failure, nothing that needs it.
        """
        done = True
        try:
            if not os.path.lexists(source):
                return True
            if not os.path.lexists(place):
                move(source, place)
            elif os.path.isdir(source) and not os.path.islink(source) and os.path.isdir(place):
                for name in sorted(os.listdir(source)):
                    if done or set(PARTS).isdisjoint(
                            [*source[len(self.aside):].split('/'), name]):
                        done = self.put_back(f'{source}/{name}', f'{place}/{name}') and done
                with contextlib.suppress(OSError):
                    os.rmdir(source)
            elif os.path.isdir(source) or not os.path.isfile(place):
                raise OSError(errno.EEXIST, 'something else has this name', place)
            else:
                os.unlink(source)
            return done
        except (OSError, RecursionError) as error:
            self.account.fail(error, place)
            return False

    def commit(self) -> str:
        """Make the deletion final: from here on what is aside is gone; return where it is."""
        gone = free_name(self.gone)
        try:
            os.rename(self.aside, gone)
        except OSError as error:
            self.put_back_all()
            raise RegistryCleanerError(
                f"Cannot rename '{self.aside}': {error.strerror}. Nothing was deleted")
        sync(self.store.repositories, only_itself=True)
        return gone

    def renames_are_moves(self) -> bool:
        """Tell whether a folder can be set aside: on a mounted bucket, renames copy and merge."""
        try:
            remove(self.probe)
            os.makedirs(self.probe + '/full/folder')
            os.mkdir(self.probe + '/empty')
            os.rename(self.probe + '/empty', self.probe + '/full')
            return False
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, *NO_WAY_BACK):
                raise
            return error.errno in (errno.ENOTEMPTY, errno.EEXIST)
        finally:
            with contextlib.suppress(OSError):
                remove(self.probe)

    def remove_now(self, name: str, going: List[Reference], seen: Set[Tuple[str, str]]) -> None:
        """Remove what goes of a repository, in order, and stop where something cannot be."""
        whole = going[-1].kind == 'repository'
        if not self.standing(self.store.place(name)) <= seen:
            going, self.account.skipped[name] = [], PUSHED + '. It was left as it was'
        for number, one in enumerate(going):
            for place in PARTS if one.kind == 'repository' else [one.place]:
                if not self.attempt(self.store.place(name, place), remove):
                    return self.account.left.update(going[number:])
        if whole:
            with contextlib.suppress(OSError):
                os.rmdir(self.store.place(name))

    def free(self, folders: List[str], blobs: Optional[Iterable[str]] = None) -> None:
        """Delete the `blobs`, by default those of the links in `folders`, that nothing links.

        Then these folders, what an interrupted run has left among them.
        """
        failed, below = len(self.account.failed), self.store.folders_below(folders)
        leaves = list(filter(is_leaf, below))
        candidates = self.store.blobs_of(leaves) if blobs is None else set(blobs)
        for name in {*self.account.skipped, *(one.repository for one in self.account.left)}:
            for digest, manifest in self.store.repository(name).manifests.items():
                candidates -= self.store.signatures(name, digest) | manifest.names.keys()
        unlinked = sorted(candidates - self.store.linked(candidates))
        self.store.workers.each(self.delete_blob, unlinked, 'Deleting blobs')
        if self.account.unfinished or len(self.account.failed) > failed:
            return  # the next run finds what is left by the links
        self.store.workers.each(lambda path: self.attempt(path, remove), leaves, 'Removing links')
        for folder in folders:
            self.attempt(folder, shutil.rmtree)
        emptied = {os.path.dirname(path) for path in below if os.path.basename(path) in PARTS}
        for path in sorted(emptied.difference(folders), reverse=True):
            name = path[len(self.store.repositories) + 1:].partition('/')[2]
            with contextlib.suppress(OSError):  # others lie below it, or it is a mount point
                os.rmdir(self.store.place(name))

    def attempt(self, path: str, change: Callable[[str], Any]) -> bool:
        """Do change(path), unless interrupted; tell whether that went well, and note it if not."""
        try:
            if self.signals.number:
                self.account.unfinished = True
                return False
            change(path)
            return True
        except (OSError, RecursionError) as error:
            self.account.fail(error, path)
            return False

    def delete_blob(self, digest: str) -> None:
        """Delete a blob that nothing links."""
        def change(path: str) -> None:
            size = self.store.size(digest)
            if size is not None:
                remove(path, 'data')
                self.account.blobs[digest] = size

        self.attempt(self.store.blob(digest), change)

    def prune(self, folders: List[str]) -> None:
        """Remove empty folders, but for those that a repository with a tag or manifest needs."""
        for path in folders:
            above, _, name = path.rpartition('/')
            if above.endswith('/_manifests') or name == '_layers':
                manifests = above if name != '_layers' else above + '/_manifests'
                if any(self.store.entries(f'{manifests}/{part}') for part in (
                        'tags', 'revisions')):
                    continue
            try:
                if self.signals.number:
                    self.account.unfinished = True
                    return
                os.rmdir(path)
                self.account.folders.append(path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                    self.account.fail(error, path)


def move(source: str, target: str) -> None:
    """Rename a folder, or a file, to a place whose parents are made."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.rename(source, target)


def remove(path: str, file: str = 'link') -> None:
    """Remove a folder for good, which most often holds one `file`; a symbolic link, not entered."""
    if os.path.islink(path):
        return os.unlink(path)
    try:
        os.unlink(f'{path}/{file}')
        os.rmdir(path)
    except OSError:
        if os.path.lexists(path):
            shutil.rmtree(path)


def drop_archive(path: str) -> None:
    """Remove an archive of this run that is of no use."""
    os.unlink(path)


def free_name(path: str) -> str:
    """Return `path`, or with the next number that nothing is called by."""
    number = 1
    while os.path.lexists(path if number == 1 else f'{path}.{number}'):
        number += 1
    return path if number == 1 else f'{path}.{number}'


def sync(folder: str, only_itself: bool = False) -> None:
    """Let the file system of `folder` write down what was changed; say if it cannot."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            import ctypes  # takes longer than many a run
            if only_itself:
                os.fsync(descriptor)
            elif ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            os.close(descriptor)
    except (ImportError, AttributeError):
        os.sync()
    except OSError as error:
        log.warning("Cannot sync '%s': %s", folder, error.strerror)


# -- The ground: a store of its own, at rest ------------------------------------------------------

@contextlib.contextmanager
def safe_ground(v2: str, workers: Workers, request: Request, signals: Signals
                ) -> Iterator[Removal]:
    """Yield what removes, while no other run and no registry here is at work on the store."""
    descriptor = os.open(v2, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RegistryCleanerError(
            f"Another run is at work on '{v2}'. Nothing was deleted. Wait for its end")
    except OSError as error:  # a network file system may be unable to
        log.warning("Cannot lock '%s': %s. Make sure that no other run is at work on it", v2,
                    error.strerror)
    try:
        refuse_running_registry(v2, request.read_only)
        yield Removal(Store(v2, workers), signals)
    finally:
        os.close(descriptor)


def refuse_unsafe_ground(store: Store, names: Iterable[str], garbage: bool) -> None:
    """Refuse a store whose tags are elsewhere, or which is only half there."""
    mark = os.path.dirname(store.v2) + '/lockfiles/database-in-use'
    if os.path.lexists(mark):
        raise RegistryCleanerError(
            f"'{mark}' says that this registry (GitLab) keeps its tags in a database: the disk "
            'does not tell what is in use. Nothing was deleted. Delete images with that registry')
    some = store.holds_a_blob()
    if not some and any(store.has_links(name, '_manifests/revisions') for name in names):
        raise RegistryCleanerError(
            f"There are images in '{store.repositories}', but '{store.blobs}' holds no blob at "
            'all: is a disk not mounted? Nothing was deleted. If the blobs are really lost, delete '
            f'the folders in {store.repositories} by hand')
    if garbage and some and not any(store.has_links(name, below) for name in names
                                    for below in ('_manifests/revisions', '_layers')):
        raise RegistryCleanerError(
            f"'{store.blobs}' holds blobs, but no repository in '{store.repositories}' links to "
            'any: is a disk not mounted? Nothing was deleted. If they are really garbage, delete '
            f'the folders in {store.blobs} by hand')


def refuse_running_registry(v2: str, read_only: bool) -> None:
    """Refuse when a registry on this machine works on the store, unless in read-only mode."""
    processes = filter(str.isdigit, os.listdir('/proc') if os.path.isdir('/proc') else ())
    for proc in map('/proc/{}'.format, processes):
        try:
            words = peek(proc + '/cmdline').rstrip('\0').split('\0')
            if os.path.basename((words[1:2] or [''])[0]) in REGISTRIES:
                del words[0]  # of an emulator
            command = words[1:2] in (['serve'], ['garbage-collect'])
            if not (command or os.path.basename(words[0]) in REGISTRIES and any(
                    word.endswith(('.yml', '.yaml')) for word in words[1:])):
                continue
            told = settings(proc, words[2 if command else 1:])
            if not any(same_folder(seen(proc, root) + '/docker/registry/v2', v2)
                       for root in values('rootdirectory', told) or ['/var/lib/registry']):
                continue
        except PermissionError:
            raise RegistryCleanerError(
                f"Process {proc[6:]} ({' '.join(words)}) looks like a registry, and cannot be "
                'looked into. Nothing was deleted. Run as root')
        text = (f"Process {proc[6:]} ({' '.join(words)}) is a registry at work on this data. "
                'Nothing was deleted. Stop it first')
        if any(any(values('remoteurl', one)) for one in told):
            raise RegistryCleanerError(text + ': it is a cache, which writes on every pull')
        if not read_only or words[1:2] == ['garbage-collect']:
            raise RegistryCleanerError(
                text + ', or restart it in read-only mode and pass --read-only-registry')
        modes = [mode for mode in map(read_only_mode, told) if mode is not None]
        if not modes or not modes[0]:
            raise RegistryCleanerError(text + ': it does not run in read-only mode (storage: '
                                       'maintenance: readonly: enabled: true)')


# == Part 2: all that only decides ==

# -- Rules: which of the named tags go ------------------------------------------------------------

VERSION = r'v?([0-9]+(?:\.[0-9]+){1,3})(?:-([0-9A-Za-z.-]+))?'
FIRST_IMAGE = 1356998400.0  # 2013, before which there were no images: older dates mean nothing
WORTH_A_PROCESS = 64  # repositories
UPLOAD_AGE = 24 * 3600  # seconds without a write after which an upload counts as given up
COPIED = 600  # seconds within which all tags are pushed where a store was copied


def version_of(tag: str) -> Optional[Tuple[Any, ...]]:
    """Return what puts `tag` in the order of semantic versioning, None if it is no version."""
    match = re.fullmatch(VERSION, tag)
    if not match:
        return None
    numbers = tuple(map(int, match.group(1).split('.')))
    prerelease = [(0, int(part), '') if part.isdigit() else (1, 0, part)
                  for part in (match.group(2) or '').split('.')]
    return numbers + (0,) * (4 - len(numbers)), match.group(2) is None, prerelease


def parse_date(text: str) -> Optional[float]:
    """Return the seconds of an ISO 8601 date, None if it is none or from before all images.

    Raises ValueError for one that no calendar has.
    """
    match = re.fullmatch(r'(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(?:Z|([+-]\d\d):(\d\d))', text)
    if not match:
        return None
    from datetime import datetime  # few runs go by such dates
    zone = (match.group(3) or '+00') + (match.group(4) or '00')
    when = datetime.strptime(match.group(1) + zone, '%Y-%m-%dT%H:%M:%S%z').timestamp()
    return when + float(match.group(2) or 0) if when >= FIRST_IMAGE else None


def made(store: Store, repository: Repository, digest: str) -> Optional[float]:
    """Return when a manifest's image was made, in seconds; None if unknown.

    The image's config says it, or the history of schema 1.
    """
    def document(digest: str) -> Any:
        blob = blob_of(repository, digest) or digest
        found = store.read(store.blob(blob) + '/data', MANIFEST_LIMIT) if is_digest(blob) else None
        return json.loads(found[0].decode('utf-8', 'replace')) if found else {}

    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        manifest = document(digest)
        config = document(manifest['config']['digest']) if 'fsLayers' not in manifest else (
            json.loads(manifest['history'][0]['v1Compatibility']))
        return parse_date(config['created'])
    return None


def created(store: Store, repository: Repository, digests: Set[str]
            ) -> Dict[str, Optional[float]]:
    """Return when each image was made, in seconds: an index with its newest child."""
    manifests, known = repository.manifests, {}  # type: Any, Dict[str, Optional[float]]
    names = {digest: manifest.names for digest, manifest in manifests.items()}
    dates = {}
    for digest in digests:
        reached = walk([digest], names) & manifests.keys()
        known.update((one, made(store, repository, one)) for one in reached - known.keys())
        dates[digest] = max((date for date in map(known.get, reached) if date is not None),
                            default=None)
    return dates


def blob_of(repository: Repository, digest: str) -> Optional[str]:
    """Return the blob that the repository's link of `digest` stands for."""
    return repository.revisions.get(digest) or repository.layers.get(digest)


def span(seconds: float) -> str:
    """Return a length of time in words."""
    for unit, length in (('day', 86400), ('hour', 3600), ('minute', 60)):
        if seconds >= length:
            return count(int(seconds // length), unit)
    return 'a moment'


def chosen_tags(store: Store, repository: Repository, images: Iterable[Image], spared: Set[str],
                request: Request) -> Tuple[Set[str], Dict[str, str]]:
    """Return the tags that `images` select, and those that the rules keep, each with the reason.

    The `spared` ones, which are excluded, take no place.  A tie at the cut is kept.
    """
    chosen: Set[str] = set()
    kept: Dict[str, str] = {}
    tags, selected = repository.tags, [named_tags([image], repository) - spared for image in images]
    if (request.keep_last, request.older_than) == (None, None):
        return chosen.union(*selected), kept
    every = set().union(*selected)
    dates = created(store, repository, {tags[tag].digest for tag in every}) if (
        request.by == 'created') else {}
    times: Dict[str, Any] = {
        tag: version_of(tag) if request.by == 'version' else tags[tag].pushed if (
            request.by == 'pushed') else dates[tags[tag].digest] for tag in every}
    for found in selected:
        # What cannot be pulled takes the place of nothing that can.
        dated = sorted((times[tag], tag) for tag in found if times[tag] is not None)
        ranked = [pair for pair in dated if tags[pair[1]].digest in repository.manifests] or dated
        keep = request.keep_last or 0
        last = (ranked[-keep:] if len(ranked) >= keep else dated)[:1] if keep else []
        for tag in found:
            when = times[tag]
            said = '' if request.by == 'version' or when is None else (
                f'{request.by} {span(request.now - when)} ago: ')
            if when is None:
                kept[tag] = 'it has no ' + ('version' if request.by == 'version' else 'date')
            elif last and when >= last[0][0]:
                kept[tag] = f'{said}one of the last {request.keep_last}'
            elif request.older_than is not None and when >= request.now - request.older_than:
                kept[tag] = f'{said}not older than {span(request.older_than)}'
            else:
                chosen.add(tag)
    return chosen, {tag: why for tag, why in kept.items() if tag not in chosen}


# -- What reaches what in a repository ------------------------------------------------------------

ANYTHING = '*'  # the node of whatever a broken tag without a history may have stood for


def node(tag: str) -> str:
    """Return the node that stands for a tag among the digests of its repository."""
    return '/' + tag


def walk(start: Iterable[str], edges: Mapping[str, Iterable[str]],
         within: Optional[AbstractSet[str]] = None) -> Set[str]:
    """Return all nodes that a walk along `edges` meets, not leaving those `within`."""
    met: Set[str] = set()
    todo = list(start)
    while todo:
        one = todo.pop()
        if one not in met and (within is None or one in within):
            met.add(one)
            todo.extend(edges.get(one, ()))
    return met


class Graph:
    """What each tag and manifest of a repository reaches, and which manifests need its layers."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        manifests, tags, referrers = repository.manifests, repository.tags, repository.referrers
        self.edges: Dict[str, List[str]] = {
            digest: [child for child in manifest.names if child in manifests]
            for digest, manifest in manifests.items()}
        for digest, manifest in manifests.items():
            for subject in manifest.subjects:
                if subject in manifests:
                    self.edges[subject].append(digest)
        for tag, (digest, history, *_) in tags.items():
            named = [d for d in ([digest] if digest else history) if d in manifests]
            self.edges[node(tag)] = named if named or digest else [ANYTHING]
            if referrers.get(tag) in manifests:
                self.edges[referrers[tag]].append(node(tag))
        if any(ANYTHING in self.edges[node(tag)] for tag in tags):
            self.edges[ANYTHING] = list(manifests)
        self.reached_by: Dict[str, List[str]] = {}
        for one, reached in self.edges.items():
            for other in reached:
                self.reached_by.setdefault(other, []).append(one)
        self.roots = {node(tag) for tag in tags if referrers.get(tag) not in manifests}
        self.users = Counter(layer for digest in manifests for layer in self.layers_of(digest))

    def layers_of(self, digest: str) -> Set[str]:
        """Return the layer links that a manifest needs.

        A link under another algorithm needs the one under sha256, which no manifest names.
        """
        layers = self.repository.layers
        links = [link for link in (digest, *self.repository.manifests[digest].names)
                 if layers.get(link) is not None]
        return {*links, *[layers[link] or link for link in links]}

    def loss(self, named: Set[str], seeds: Iterable[str], spared: AbstractSet[str] = frozenset()
             ) -> Set[str]:
        """Return the nodes that go with the `named` ones: those that only these reach, or `seeds`.

        `seeds` are what the named ones reach or reached.  Where something that stays reaches a
        node it is not looked any further, so the cost is that of what goes.
        """
        inside, met = set(named), set()  # type: Set[str], Set[str]
        todo = [*named, *seeds]
        while todo:
            one = todo.pop()
            if one in met:
                continue
            met.add(one)
            if one in named or not (one in spared or one in self.roots or any(
                    parent in spared or parent in self.roots and parent not in named
                    for parent in self.reached_by.get(one, ()))):
                inside.add(one)
                todo.extend(self.edges.get(one, ()) if one != ANYTHING else ())  # nobody knows it
        entered = [one for one in inside - named
                   if not inside.issuperset(self.reached_by.get(one, ()))]
        return inside - walk(entered, self.edges, inside - named)

    def lost_layers(self, lost: Set[str]) -> Set[str]:
        """Return the layer links that no manifest needs but those in `lost`."""
        users = Counter(layer for digest in lost & self.repository.manifests.keys()
                        for layer in self.layers_of(digest))
        return {layer for layer, number in users.items() if number == self.users[layer]
                and self.repository.layers.get(layer) is not None}

    def parents_first(self, lost: Set[str]) -> List[str]:
        """Return the manifests in `lost` in an order that puts each index before its children."""
        manifests = self.repository.manifests
        ordered: List[str] = []
        met: Set[str] = set()
        todo = [(digest, False) for digest in sorted(lost & manifests.keys(), reverse=True)]
        while todo:
            digest, children_done = todo.pop()
            if children_done:
                ordered.append(digest)
            elif digest not in met:
                met.add(digest)
                todo.append((digest, True))
                todo.extend((child, False) for child in manifests[digest].names
                            if child in lost and child in manifests)
        return ordered[::-1]


# -- What one repository loses --------------------------------------------------------------------

def delete_command(*images: str) -> str:
    """Return the command that deletes these images."""
    return ' '.join([PROGRAM, *(f'-i {shlex.quote(image)}' for image in images)])


class Wish(NamedTuple):
    """What is asked of one repository."""

    name: str
    images: List[Image]
    excluded: List[Image]
    request: Request  # without its words

    @property
    def bare(self) -> bool:
        """Whether it is the whole repository, if only to look for what is untagged in it."""
        return any(image.whole for image in self.images)


class Sum:
    """What is found out of one repository, or of several added up."""

    def add(self, other: 'Sum') -> None:
        """Add what is found out of another repository."""
        for name, found in vars(other).items():
            mine = getattr(self, name)
            (mine.extend if isinstance(mine, list) else mine.update)(found)


class Verdict(Sum):
    """What is decided."""

    def __init__(self) -> None:
        self.references: List[Reference] = []
        self.unlinked: List[str] = []  # the blob of each link that goes
        self.used: Set[str] = set()  # with -g: blobs that stay linked or named
        self.matched: Set[Image] = set()  # words that name something
        self.tags_left: Dict[str, int] = {}  # repository -> number of its tags that stay
        self.warnings: List[str] = []
        self.kept: List[Tuple[str, str]] = []  # tags that rules keep, and why
        self.skipped: Dict[str, str] = {}  # repository -> why it is left as it is, with commands
        self.owners: Dict[str, str] = {}  # repository that goes with its last tag -> this, or ''
        self.uploads: Dict[str, int] = {}  # repository -> bytes of the uploads that go


def written(path: str) -> float:
    """Return the mtime of a link or a blob, in seconds; now if it is gone."""
    try:
        return os.lstat(path).st_mtime
    except FileNotFoundError:
        return time.time()


def is_young(path: str, request: Request) -> bool:
    """Tell whether --older-than spares a link or a blob."""
    return request.older_than is not None and written(path) > request.now - request.older_than


def measure_upload(store: Store, folder: str) -> Tuple[float, int]:
    """Return the time of the last write to an upload, in seconds, and its bytes.

    The mtime of a folder is nothing to go by on a mounted bucket, so it counts only without files.
    """
    times, size, todo = [], 0, [folder]
    for path in todo:  # grows as it goes
        for entry in store.entries(path):
            if entry.is_dir(follow_symlinks=False):
                todo.append(entry.path)
            else:
                status = entry.stat(follow_symlinks=False)
                times.append(status.st_mtime)
                size += status.st_size if status.st_nlink == 1 and not entry.is_symlink() else 0
    return max(times, default=written(folder)), size


def names_something(repository: Repository, image: Image) -> bool:
    """Tell whether `image`, a word for the repository, names anything in it."""
    if not image.tag:
        return image.whole or image.digest in repository.manifests
    if image.tag in repository.tags or is_pattern(image.tag):
        return bool(named_tags([image], repository, excluding=True))
    return image.tag in repository.no_tags and not image.digest


class Judge:
    """Decides what a repository loses.  May be asked again: that costs what goes, no more."""

    def __init__(self, store: Store, repository: Repository) -> None:
        self.store, self.repository = store, repository
        self.name, self.graph = repository.name, Graph(repository)
        self.tags, self.manifests, self.layers = (
            repository.tags, repository.manifests, repository.layers)
        self.linked = {digest for digest, blob in self.layers.items() if blob is not None}
        self.aliases: Dict[str, List[str]] = {}  # blob ('': unknown) -> other algorithms' links
        for digest, blob in self.layers.items():
            if blob not in (None, digest):
                self.aliases.setdefault(blob or '', []).append(digest)
        self.pointing: Dict[str, List[str]] = {}  # digest -> the tags that point at it
        self.entered: Dict[str, List[str]] = {}  # digest -> the tags that have it in their history
        for tag in sorted(self.tags):
            self.pointing.setdefault(self.tags[tag].digest, []).append(tag)
            for digest in self.tags[tag].entries:
                self.entered.setdefault(digest, []).append(tag)
        self.faults = sorted((digest, f'{self.name}@{digest}', manifest.fault)
                             for digest, manifest in self.manifests.items() if manifest.fault)
        self.faults += sorted((node(tag), f'{self.name}:{tag}', read.fault)
                              for tag, read in self.tags.items() if read.fault)
        self.ordinary = len(self.tags.keys() - repository.referrers.keys())

    def decide(self, wish: Wish, terse: bool = False) -> Verdict:
        """Return what goes, if `terse` without words on it.

        Raises RegistryCleanerError for what must not be.
        """
        verdict = Verdict()
        verdict.tags_left[self.name] = self.ordinary
        verdict.matched.update(image for image in wish.images + wish.excluded
                               if names_something(self.repository, image))
        if not any(image.whole for image in wish.excluded):
            self.choose(wish, verdict, terse)
        links = {'layer': self.layers, 'manifest': self.repository.revisions}
        going = [(one.kind, one.item) for one in verdict.references if one.kind in links]
        verdict.unlinked = list(filter(None, (links[kind].get(item) for kind, item in going)))
        if wish.request.garbage:
            self.find_used(set(going), verdict)
        return verdict

    def spared_by(self, wish: Wish) -> Set[str]:
        """Return the nodes that exclusions name."""
        tags = named_tags(wish.excluded, self.repository, excluding=True)
        return {image.digest for image in wish.excluded
                if image.digest in self.manifests and not image.tag}.union(map(node, tags))

    def choose(self, wish: Wish, verdict: Verdict, terse: bool) -> None:
        """Add to `verdict` what goes of a repository that is not excluded."""
        bare, request, spared = wish.bare, wish.request, self.spared_by(wish)
        if request.untagged and bare and self.manifests and not self.ordinary:
            verdict.warnings.append(
                f"Repository '{self.name}' has manifests and no tag, and -u leaves it alone: its "
                'images may be used by digest, or their tags kept in a database. To delete it: '
                + delete_command(self.name))
            bare = False
        whole = bare and not request.untagged and not spared
        asked, wanted = self.asked(wish, spared, verdict, bare)
        pointing = [tag for digest in wanted for tag in self.pointing.get(digest, ())]
        if request.untagged:
            spared.update(digest for digest in self.manifests if is_young(
                self.store.revision(self.name, digest) + '/link', request))
        named = wanted.union(map(node, asked), map(node, pointing))
        seeds = list(self.manifests) if bare else [
            digest for tag in asked for digest in (self.tags[tag].digest, *self.tags[tag].history)
            if digest in self.manifests]
        lost = self.graph.loss(named, seeds, spared)
        former = [digest for one in lost - named if one[0] == '/'  # a signature's tag, signed again
                  for digest in self.tags[one[1:]].history if digest in self.manifests]
        lost = self.graph.loss(named, seeds + former, spared) if former else lost
        self.refuse_kept_index(wanted, lost)
        self.refer(wish, lost, whole, bare, verdict)
        if not terse:
            self.warn_of_broken_tags(named, seeds, spared, lost, verdict)
        self.skip_if_damaged(lost, verdict, terse)

    def asked(self, wish: Wish, spared: Set[str], verdict: Verdict, bare: bool
              ) -> Tuple[Set[str], Set[str]]:
        """Return the tags and the manifests that words ask to delete, not what is `spared`."""
        wanted = {image.digest for image in wish.images
                  if image.digest in self.manifests and not image.tag}
        kept_tags = {one[1:] for one in spared if one[0] == '/'}
        if wish.request.untagged:
            return set(), set()
        if bare:
            owned = {tag for tag, image in self.repository.referrers.items()
                     if image in self.manifests}
            asked = self.tags.keys() - kept_tags - (owned if spared else set())
        else:
            by_tag = [image for image in wish.images if image.tag]
            asked, kept = chosen_tags(self.store, self.repository, by_tag, kept_tags, wish.request)
            verdict.kept = [(f'{self.name}:{tag}', why) for tag, why in sorted(kept.items())]
            if by_tag and self.may_be_copied(wish.request):
                verdict.warnings.append(
                    f'The tags of {self.name} were all pushed within ten minutes: was the store '
                    'copied? --by created goes by the date of the images')
        return asked, wanted - walk(spared, self.graph.edges)

    def may_be_copied(self, request: Request) -> bool:
        """Tell whether a rule by push time is asked of tags that look copied."""
        if request.by != 'pushed' or (request.keep_last, request.older_than) == (None, None):
            return False
        times = [tag.pushed for tag in self.tags.values() if tag.pushed is not None]
        return len(times) >= 5 and max(times) - min(times) <= COPIED

    def refuse_kept_index(self, wanted: Set[str], lost: Set[str]) -> None:
        """Refuse to delete a manifest of its own when an index that stays contains it."""
        for tag in self.pointing.get('', ()) if wanted else ():
            held = set(self.tags[tag].history) & self.manifests.keys() or self.manifests.keys()
            if node(tag) not in lost and not held.isdisjoint(wanted & lost):
                raise RegistryCleanerError(
                    f'The broken tag {self.name}:{tag}, which stays, may have stood for what would '
                    f'be deleted. Nothing was deleted. Delete the tag too: -i {self.name}:{tag}')
        for digest in sorted(wanted):
            for parent in sorted(self.graph.reached_by.get(digest, ())):
                if parent in self.manifests and parent not in lost and (
                        digest in self.manifests[parent].names):
                    above = walk([parent], self.graph.reached_by)
                    tags = sorted(f'{self.name}:{one[1:]}' for one in above if one[0] == '/')
                    raise RegistryCleanerError(
                        f'{self.name}@{digest} is part of the index {self.name}@{parent} ('
                        f'{", ".join(tags) or "which has no tag"}), which stays. Nothing was '
                        'deleted. Delete the index too, or leave this manifest')

    def refer(self, wish: Wish, lost: Set[str], whole: bool, bare: bool, verdict: Verdict) -> None:
        """Add what goes with the nodes `lost`, and with -g what nothing uses."""
        request, name, repository = wish.request, self.name, self.repository
        leaving = {one[1:] for one in lost if one[0] == '/'}
        verdict.tags_left[name] = self.ordinary - len(leaving - repository.referrers.keys())
        nothing_left = len(leaving) == len(self.tags) and lost >= self.manifests.keys()
        uploads = {upload: measure_upload(self.store, self.store.place(name, '_uploads', upload))
                   for upload in (repository.uploads if request.garbage or nothing_left else ())}
        old = [upload for upload, (last, _) in sorted(uploads.items())
               if whole or last <= request.now - UPLOAD_AGE]
        layers = self.graph.lost_layers(lost) | (self.unused(request) if request.garbage else set())
        layers -= {blob for blob in layers & self.aliases.keys()
                   if not layers.issuperset(self.aliases[blob])}
        begun = request.garbage and request.older_than is not None and not layers >= self.linked
        leftovers = list(self.leftovers(wish))
        gone = nothing_left and len(old) == len(repository.uploads) and (whole or not begun) and (
            bool(lost or leftovers) or request.garbage or bare and not request.untagged)
        if gone:
            layers = self.linked
            verdict.owners[name] = '' if bare else max(self.tags, default='')
        entries = {(tag, digest) for digest in lost for tag in self.entered.get(digest, ())}
        if request.garbage:
            entries.update((tag, digest) for tag, read in self.tags.items() if read.digest
                           for digest in read.entries if digest not in self.manifests)

        def add(kind: str, items: Iterable[str]) -> None:
            verdict.references += [Reference(kind, name, item) for item in items]

        add('tag', sorted(leaving))
        verdict.references += [Reference('entry', name, digest, tag)
                               for tag, digest in sorted(entries) if tag not in leaving]
        add('manifest', (digest for digest in self.graph.parents_first(lost)
                         if repository.revisions.get(digest) is not None))
        add('layer', sorted(layers, key=lambda digest: (digest[:6] == 'sha256', digest)))
        if not gone:
            add('leftover', leftovers)
        if request.garbage or gone:
            add('upload', old)
            verdict.uploads[name] = sum(uploads[upload][1] for upload in old)
        if gone:
            add('repository', [''])

    def unused(self, request: Request) -> Set[str]:
        """Return the layer links that no manifest uses, and that are not too young."""
        return {digest for digest in self.linked - self.graph.users.keys() if not is_young(
            self.store.place(self.name, '_layers', digest.replace(':', '/'), 'link'), request)}

    def leftovers(self, wish: Wish) -> Iterator[str]:
        """Yield the folders whose link is gone: with -g all, else those of named tags."""
        garbage, repository = wish.request.garbage, self.repository
        gone = set(repository.no_tags)
        named, kept = (
            {tag for image in images for tag in matching(image.tag, gone)}
            for images in ([one for one in wish.images if not is_pattern(one.tag)], wish.excluded))
        for tag in repository.no_tags:
            if tag not in kept and (garbage or tag in named):
                yield f'_manifests/tags/{tag}'
        for top, links in (('_layers', self.layers),
                           ('_manifests/revisions', repository.revisions)):
            for digest in links if garbage else ():
                if links[digest] is None:
                    yield f'{top}/{digest}'.replace(':', '/')

    def warn_of_broken_tags(self, named: Set[str], seeds: List[str], spared: Set[str],
                            lost: Set[str], verdict: Verdict) -> None:
        """Say when something is kept only because nobody knows what a broken tag stood for."""
        broken = {node(tag) for tag in self.pointing.get('', ())} - lost - spared
        more = self.graph.loss(named | broken, seeds, spared) - lost - broken - {ANYTHING} if (
            broken and seeds) else ()
        if more:
            verdict.warnings.append(
                f'{len(more)} of {self.name} stay only since its tag {min(broken)[1:]} is broken, '
                'and nobody knows what it stood for. To delete the tag: '
                + delete_command(*(f'{self.name}:{one[1:]}' for one in sorted(broken))))

    def skip_if_damaged(self, lost: Set[str], verdict: Verdict, terse: bool) -> None:
        """Leave a repository that would lose something as it is, if it keeps what is unreadable."""
        if not verdict.references or verdict.owners:
            return
        going = {one.item for one in verdict.references if one.kind == 'layer'}
        aliases = [digest for digest in self.aliases.get('', ()) if digest not in going]
        if aliases or any(fault[0] not in lost for fault in self.faults):
            verdict.skipped[self.name] = '' if terse else self.damage(lost, aliases)
            verdict.tags_left[self.name] = self.ordinary
            verdict.references.clear()
            verdict.uploads.clear()
        else:
            verdict.warnings += [
                f'What the unreadable manifest {image} needed is unknown: its layers stay until -g'
                for one, image, _ in self.faults if one[0] != '/']

    def damage(self, lost: Set[str], aliases: List[str]) -> str:
        """Return why the repository is left as it is, and what to do."""
        faults = [fault for fault in self.faults if fault[0] not in lost]
        text = ''.join(f'\n  {image}: {fault}' for _, image, fault in faults) + ''.join(
            f'\n  layer link {digest} cannot be read' for digest in aliases)
        held: Dict[str, List[str]] = {}  # manifest -> the indexes with it, which go first
        for digest, manifest in self.manifests.items():
            for child in manifest.names:
                held.setdefault(child, []).append(digest)
        tops = {top for one, _, _ in faults for top in walk([one], held) if top not in held}
        images = [self.name + (':' + top[1:] if top[0] == '/' else '@' + top)
                  for top in sorted(tops)]
        return ('it is damaged, and was left as it is, since nobody knows what it needs:'
                f'{text}\n  Restore that, or delete it: {delete_command(*images or [self.name])}\n'
                f'  or leave it out of the run: -x {shlex.quote(self.name)}')

    def find_used(self, going: Set[Tuple[str, str]], verdict: Verdict) -> None:
        """Add the blobs that stay linked, or that what stays names."""
        revisions = self.repository.revisions
        for kind, links in (('layer', self.layers), ('manifest', revisions)):
            verdict.used.update(blob for digest, blob in links.items()
                                if blob and (kind, digest) not in going)
        for digest, manifest in self.manifests.items():
            if going.isdisjoint((('manifest', digest), ('layer', digest))):
                verdict.used.update(manifest.names)
                if manifest.signed or manifest.fault:
                    verdict.used.update(self.store.signatures(self.name, digest))


# -- The plan -------------------------------------------------------------------------------------

class Outcome(Verdict):
    """What a run deletes: what is planned at first, and what came of it in the end."""

    def __init__(self, v2: str, dry_run: bool) -> None:
        super().__init__()
        self.v2, self.dry_run, self.plan = v2, dry_run, Plan([])
        self.failed: List[Tuple[str, str]] = []  # path, and why it could not be deleted
        self.earlier: Dict[str, int] = {}  # blobs that an interrupted run had left -> bytes freed
        self.saved = 0  # bytes of the archive
        self.unfinished = ''  # what frees the rest, if it was interrupted after it was final
        self.left = False  # what an earlier run had left could not be mended

    @property
    def nothing(self) -> bool:
        """Whether all is as it was: nothing was deleted, nor left aside."""
        return not (any(self.plan) or self.earlier or self.left or any(
            f'/{OWN}' in path for path, _ in self.failed))


def judge(store: Store, wish: Wish) -> Verdict:
    """Return what is decided of the repository that `wish` names."""
    return Judge(store, store.repository(wish.name)).decide(wish)


def each_repository(store: Store, function: Callable[[Store, Item], Result],
                    items: Sequence[Item]) -> Iterator[Result]:
    """Yield function(store, item) of each item, each of which speaks of one repository.

    On fast storage there is more to work out than to wait for, and processes share that.
    """
    workers, processors, done = store.workers, min(os.cpu_count() or 1, 4), 0
    if workers.threads() < 2 and len(items) >= WORTH_A_PROCESS and processors > 1 and (
            sys.version_info >= (3, 7)):
        workers.step, workers.total = 'Reading repositories', len(items)
        with contextlib.suppress(OSError, RuntimeError, ImportError, AttributeError):
            from concurrent.futures import ProcessPoolExecutor  # takes longer than many a run
            from multiprocessing import get_context
            with ProcessPoolExecutor(processors, get_context('fork'), become_helper,
                                     (os.getpid(),)) as pool:
                found: Any = pool.map(partial(function, Store(store.v2, Workers(1))), items,
                                      chunksize=4)
                with contextlib.closing(found):  # at a signal nobody waits for the rest
                    for result in found:
                        workers.done = done = done + 1
                        yield result
    yield from workers.each(lambda item: function(store, item), items[done:],
                            'Reading repositories', large=True)


def become_helper(parent: int) -> None:
    """Let this process end with its `parent`, whose lock it holds too, and leave Ctrl-C to it."""
    import ctypes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)


def wishes_of(request: Request, names: Iterable[str]) -> Dict[str, Wish]:
    """Return what `request` asks of each repository."""
    known, everything = set(names), (Image('*'),) if request.untagged else ()
    images = Words(request.images or everything, known)
    excluded, bare = Words(request.excluded, known, True), request._replace(images=(), excluded=())
    return {name: Wish(name, images.of(name), excluded.of(name), bare) for name in names}


def choose(store: Store, request: Request) -> Outcome:
    """Return what `request` removes.  Reads, and changes nothing.

    Raises RegistryCleanerError when nothing may be deleted, and OSError for what cannot be read.
    """
    names = store.repository_names()
    refuse_unsafe_ground(store, names, request.garbage)
    wishes = wishes_of(request, names)
    outcome = Outcome(store.v2, request.dry_run)
    for verdict in each_repository(store, judge, [
            wish for wish in wishes.values() if request.garbage or wish.images]):
        outcome.add(verdict)
    outcome.warnings[:0] = find_missing(store, request, wishes, outcome.matched,
                                        outcome.tags_left.keys())
    refuse_remove_all(store, request, outcome, names)
    unlinked = set(outcome.unlinked)
    if request.garbage:
        blobs = stored(store, outcome.used | store.kept_links(), request, unlinked)
    else:
        free = sorted(unlinked - store.linked(unlinked, by_repository(outcome.references)))
        sizes = zip(free, store.workers.each(store.size, free, 'Measuring blobs'))
        blobs = {digest: size for digest, size in sizes if size is not None}
    outcome.plan = Plan(in_order(outcome.references), blobs)
    if request.prune:
        outcome.plan = outcome.plan._replace(folders=empty_folders(store, outcome.plan))
    return outcome


def stored(store: Store, used: Set[str], request: Request,
           unlinked: AbstractSet[str] = frozenset()) -> Dict[str, int]:
    """Return the bytes that each blob frees that is stored and not `used`.

    A young one is left out, unless it is `unlinked`.
    """
    def sizes(folder: str) -> Dict[str, int]:
        algorithm, two = folder.split('/')
        found = {}
        for entry in store.entries(f'{store.blobs}/{folder}'):
            digest = f'{algorithm}:{entry.name}'
            size = store.size(digest) if digest not in used and is_digest(digest) and (
                entry.name.startswith(two)) else None
            if size is not None and (
                    digest in unlinked or not is_young(entry.path + '/data', request)):
                found[digest] = size
        return found

    found = store.workers.each(sizes, store.blob_folders(), 'Measuring blobs')
    return dict(sorted(pair for sizes_of in found for pair in sizes_of.items()))


def find_missing(store: Store, request: Request, wishes: Mapping[str, Wish], matched: Set[Image],
                 read: AbstractSet[str]) -> List[str]:
    """Return a warning for each pattern that names nothing; refuse when another word does not.

    Those `matched` name something in the repositories that were read; more may do so in others.
    """
    for name in wishes.keys() - read:
        excluded = wishes[name].excluded
        matched.update(image for image in excluded if image.whole)
        if not matched.issuperset(excluded):
            repository = store.repository(name)
            matched.update(image for image in excluded if names_something(repository, image))
    known, missing, warnings = set(wishes), [], []
    for images, excluding in ((request.images, False), (request.excluded, True)):
        for image in images:
            spelling = image._replace(name=spelled(image.name, known, excluding))
            literal = spelling.name in known or not is_pattern(spelling.name)
            if spelling not in matched and literal and not is_pattern(image.tag):
                missing.append(spelling)
            elif spelling not in matched:
                warnings.append(f"Nothing matches '{image}'")
    if missing:
        more = [f'and {len(missing) - 20} more'] * (len(missing) > 20)
        raise RegistryCleanerError('\n'.join(
            [missing_text(store, image, list(wishes)) for image in missing[:20]]
            + more + ['Nothing was deleted']))
    return warnings


def refuse_remove_all(store: Store, request: Request, verdict: Verdict, names: Iterable[str]
                      ) -> None:
    """Refuse when patterns would leave the registry without any tag."""
    if request.remove_all or request.untagged or not (
            Words(request.images, set(names)).patterns
            or any(is_pattern(image.tag) for image in request.images)):
        return
    removed = Counter(one.kind for one in verdict.references)
    if (removed['tag'] or removed['manifest']) and not any(verdict.tags_left.values()) and not any(
            is_tag(tag) and store.read_tag(name, tag)
            for name in names if name not in verdict.tags_left
            for tag in store.folders(store.place(name, '_manifests/tags'))):
        what = f'all {removed["tag"]} tags of the registry' if removed['tag'] else (
            'images of a registry without any tag')
        raise RegistryCleanerError(f'This would delete {what}. Nothing was deleted. If that is '
                                   'meant, add --allow-remove-all')


def empty_folders(store: Store, plan: Plan) -> List[str]:
    """Return the registry's folders that hold nothing once `plan` is done, each before its parent.

    What lives of a repository needs some of its folders, empty or not.
    """
    gone = {store.place(one.repository, one.place)
            for one in plan.references} | set(map(store.blob, plan.blobs))
    whole = {store.place(one.repository) for one in plan.references if one.kind == 'repository'}
    ours = re.compile(f'{COMPONENT}|_layers|_manifests|_uploads|{TAG}').fullmatch
    is_component = re.compile(COMPONENT).fullmatch
    level = [store.repositories, store.blobs]
    held: Dict[str, int] = {}  # what each folder holds, in the order from the top
    while level:
        listed = list(zip(level, store.workers.each(store.entries, level)))
        level = []
        for path, entries in listed:
            left = [entry for entry in entries if entry.path not in gone and not (
                path in whole and entry.name in PARTS)]
            held[path] = len(left)
            level += [entry.path for entry in left if ours(entry.name) and not (
                entry.name.startswith(OWN)) and entry.is_dir(follow_symlinks=False)]
    empty: List[str] = []
    holding: Set[str] = set()  # folders of which something is named
    for path in list(held)[:1:-1]:  # what a folder holds before the folder
        above, _, name = path.rpartition('/')
        manifests = above if above.endswith('/_manifests') else f'{above}/_manifests'
        part = name == '_layers' or above == manifests
        below = path[len(store.v2):].split('/')[2:]
        named = not set(PARTS).isdisjoint(below) or all(map(is_component, below))
        if named and not held[path] and not (part and any(
                held.get(f'{manifests}/{one}') for one in ('tags', 'revisions'))):
            if path not in whole or path in holding:  # else it goes anyway
                empty.append(path)
                holding.add(above)
            held[above] -= 1
    return empty


# -- Words that name nothing ----------------------------------------------------------------------

COMPONENT = r'[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*'
NAME = f'{COMPONENT}(?:/{COMPONENT})*'  # what a registry calls a repository
SITE = rf'(?:{HOST}|[^/]*\.[^/]*)/'


class UsageError(RegistryCleanerError):
    """A word that no repository can be called by."""


def advice(word: str) -> str:
    """Return what to write instead of a `word` copied from elsewhere, '' for any other word."""
    path = re.sub('^[a-z+.-]+://', '', word)
    if is_digest(path.lstrip('@')):
        return f". For a manifest of any repository: -i '*@{path.lstrip('@')}'"
    alone = re.sub('^' + SITE, '', path).rstrip('/')
    match = re.fullmatch(rf'(?:(?:.*/)?v2/|{SITE}|/)?([^/].*?)/(manifests|blobs|tags)/(.+)', path)
    if match:
        name, kind, item = match.groups()
        alone = name + f'{"@" if is_digest(item) else ":"}{item}' * (kind == 'manifests')
    return f". Leave out the address, and give NAME or NAME:TAG: -i '{alone}'" if alone and (
        match or path != word) else ''


def missing_text(store: Store, image: Image, names: Sequence[str]) -> str:
    """Return the message for an `image` that is not there, with what may have been meant.

    `names` are all repositories.  Raises UsageError if no repository can have such a name.
    """
    name, what = image.name, ''
    if name in names:
        tag = store.read_tag(name, image.tag) if image.tag and image.digest else None
        hint = f'. That tag is {tag.digest or "broken"} now' if tag else nearest(
            image.tag, store.folders(store.place(name, '_manifests/tags')))
        what = f" tag '{image.tag}'" if image.tag else f" manifest '{image.digest}'"
    else:
        hint = repository_hint(image, names)
        if len(name) > 255 or not re.fullmatch(NAME, name):
            raise UsageError(f"'{image}' is no valid image name{hint}")
        hint = hint if image.whole else f", for '{image}'{hint}"
    return (f"No repository '{name}'{what} found in repositories directory {store.repositories}"
            + hint)


def repository_hint(image: Image, names: Sequence[str]) -> str:
    """Return what may have been meant by `image`, whose repository is none of `names`."""
    host, _, rest = image.name.partition('/')
    below = [name for name in names if name.startswith(image.name + '/')]
    if image.name != image.name.lower():
        return '. Names are lower case' + nearest(image.name.lower(), names)
    if rest in names:
        return f". If '{host}' is a host, leave it out: -i '{image._replace(name=rest)}'"
    if below:
        return f". Below it: {', '.join(below[:9])}{', …' * (len(below) > 9)}"
    if os.path.lexists(image.name):
        return ". A file here is called so: quote patterns, as in -i '*'"
    return advice(str(image)) or nearest(image.name, names)


def nearest(word: str, words: Sequence[str]) -> str:
    """Return the question whether one of `words` like `word` was meant; '' if there is none."""
    import difflib  # few runs end here
    found = ', '.join(difflib.get_close_matches(word, words))
    return f'. Did you mean {found}?' if found else ''


# -- The data folder ------------------------------------------------------------------------------

DEFAULT_DATA_DIRS = ('/var/lib/registry', '/var/lib/docker-registry', '/opt/registry_data',
                     '/root/data/registry')


def cannot_read(error: OSError) -> RegistryCleanerError:
    """Return what to raise where something is there and cannot be read."""
    advised = '; run as root' if isinstance(error, PermissionError) and os.geteuid() else ''
    verb = 'write' if f'/{OWN}' in str(error.filename) else 'read'
    what = f"Cannot {verb} '{error.filename}'" if error.filename else 'Cannot go on'
    return RegistryCleanerError(f'{what}: {error.strerror}{advised}. Nothing was deleted')


def find_data_dir(given: Optional[str]) -> str:
    """Return the folder to look for a registry in: the given one, else as --help says."""
    for directory in (given, os.environ.get('REGISTRY_DATA_DIR') or None,
                      os.environ.get('REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY') or None):
        if directory is not None:
            return directory
    found = [path for path in DEFAULT_DATA_DIRS if os.path.isdir(path + '/docker/registry/v2')]
    if len(found) == 1:
        return found[0]
    raise RegistryCleanerError(
        (f"There is more than one registry here: {', '.join(found)}" if found else
         f"No registry data found in {', '.join(DEFAULT_DATA_DIRS)}"
         + ', as far as this user may see; run as root' * bool(os.geteuid()))
        + '. Nothing was deleted. Name the folder to work on with -d')


def find_v2(directory: str) -> str:
    """Return the V2 folder that `directory` holds or is: by where it is, or by what it holds.

    Raises RegistryCleanerError if there is none.
    """
    top, why = directory, 'is no folder that exists'
    try:
        top = os.path.abspath(directory).rstrip('/') if directory else ''
        for below in ('/docker/registry/v2', '/registry/v2', '/v2', '') if directory else ():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                held = set(os.listdir(top + below or '/')) - {*COPIES, 'lost+found'}
                if (top + below).endswith('/docker/registry/v2') or held and (
                        held <= {'blobs', 'repositories'}):
                    return top + below
                why = why if below else "holds no 'docker/registry/v2'"
    except OSError as error:
        raise cannot_read(error)
    raise RegistryCleanerError(
        f"No registry found: '{top or directory}' {why}. Nothing was deleted. Name the folder that "
        'the registry keeps its data in with -d')


# -- The archive of what goes ---------------------------------------------------------------------

class Output:
    """What tarfile writes to: tells how far it is, and stops at a signal."""

    def __init__(self, stream: IO[bytes], workers: Workers, signals: Signals) -> None:
        self.stream, self.workers, self.signals, self.written = stream, workers, signals, 0

    def tell(self) -> int:
        return self.written

    def write(self, data: bytes) -> int:
        if self.signals.number:
            raise KeyboardInterrupt
        self.written += len(data)
        self.workers.done = self.written >> 20
        return self.stream.write(data)


def save(store: Store, plan: Plan, target: str, signals: Signals, dry_run: bool) -> int:
    """Write all that `plan` removes to a new tar archive, synced; return its size in bytes.

    `target` is a file, or `-` for standard output.  A dry run only says how large it would be.
    Raises RegistryCleanerError, and leaves no half archive.
    """
    try:
        if target != '-':
            refuse_place(store, target)
        found = dict(saved_paths(store, plan))
        total = sum(1536 + stat.S_ISREG(status.st_mode) * (status.st_size + 511) // 512 * 512
                    for status in found.values())  # a header of three blocks, and whole blocks
        total += bool(found) * (1024 + -(total + 1024) % 10240)  # what ends an archive
        if dry_run or not found:
            return total
        workers = store.workers
        workers.step, workers.done, workers.total = 'Saving, in MiB:', 0, total >> 20
        with new_file(target, signals) as stream:
            return write_archive(store, found, stream, signals)
    except OSError as error:
        where = f"'{error.filename}': " if error.filename not in (None, target) else ''
        raise RegistryCleanerError(
            f"Cannot save to '{target}': {where}{error.strerror}. Nothing was deleted")


def refuse_place(store: Store, target: str) -> None:
    """Refuse an archive that exists, or that would lie in the store, or nowhere."""
    folder = os.path.realpath(os.path.dirname(target) or '.')
    for top in map(os.path.realpath, (store.v2, store.repositories, store.blobs)):
        if (folder + '/').startswith(top + '/'):
            raise OSError(errno.EINVAL, f"it would lie in the registry, '{top}'", target)
    if os.path.lexists(target):
        raise OSError(errno.EEXIST, 'it exists, and is not overwritten', target)
    os.stat(folder)


@contextlib.contextmanager
def new_file(target: str, signals: Signals) -> Iterator[IO[bytes]]:
    """Yield the new file `target`, or standard output; in the end it is synced, or dropped."""
    if target == '-':
        if sys.stdout is None:
            raise OSError(errno.EBADF, 'standard output is closed')
        yield sys.stdout.buffer
        return
    signals.at_once = False  # rather a moment later than with half an archive left
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, 'wb') as file:
                yield file
                os.fsync(descriptor)
            folder = os.open(os.path.dirname(target) or '.', os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            if signals.number:
                raise KeyboardInterrupt
        except BaseException:
            drop_archive(target)
            raise
    finally:
        signals.at_once = True


def write_archive(store: Store, paths: Iterable[str], stream: IO[bytes], signals: Signals) -> int:
    """Write what is at `paths`, below V2, as a tar archive; return its size."""
    import tarfile  # takes longer than many a run
    output: Any = Output(stream, store.workers, signals)
    with tarfile.TarFile(fileobj=output, mode='w', format=tarfile.PAX_FORMAT, encoding='utf-8',
                         errors='surrogateescape') as archive:
        for path in paths:
            info: Any = archive.gettarinfo(path, path[len(store.v2) + 1:])
            if info is None:  # a socket, which lives with its process
                continue
            seconds, rest = divmod(os.lstat(path).st_mtime_ns, 10 ** 9)
            info.uname = info.gname = ''  # numbers mean the same in a container
            info.mtime, info.pax_headers = seconds, {'mtime': f'{seconds}.{rest:09}'}
            with open(path if info.isreg() else os.devnull, 'rb') as file:
                archive.addfile(info, file)
    stream.flush()
    return int(output.written)


def saved_paths(store: Store, plan: Plan) -> Iterator[Tuple[str, os.stat_result]]:
    """Yield the path of all that `plan` removes, after the folders above it, which may go too."""
    whole = {one.repository for one in plan.references if one.kind == 'repository'}
    tops = {store.place(name, part) for name in whole for part in PARTS}
    tops.update(store.place(one.repository, one.place)
                for one in plan.references if one.repository not in whole)
    tops.update(map(store.blob, plan.blobs), plan.folders)
    met = {store.v2, store.repositories, store.blobs}
    for top in filter(os.path.lexists, sorted(tops)):
        above = [top]
        while above[-1] not in met:
            met.add(above[-1])
            above.append(os.path.dirname(above[-1]))
        # Of those above, a link stays, and tar would put a folder in its place.
        yield from ((path, os.lstat(path)) for path in above[-2:0:-1] if not os.path.islink(path))
        todo = above[:1] * (len(above) > 1)
        while todo:
            path = todo.pop()
            status = os.lstat(path)
            met.add(path)
            yield path, status
            if stat.S_ISDIR(status.st_mode):
                todo += [entry.path for entry in store.entries(path)]


# -- The cleaner: request, plan, removal, outcome -------------------------------------------------

def unfinished(v2: str, what: str = 'aside') -> bool:
    """Tell whether a run has left something aside, which the next one puts back, or gone."""
    return os.path.lexists(f'{v2}/repositories/{OWN}{what}')


class RegistryCleaner:
    """Deletes images from the V2 folder that `registry_data_dir` is or holds.

    Each method is one run, and returns its Outcome or Listing.  Raises RegistryCleanerError when
    nothing was deleted.
    """

    def __init__(self, registry_data_dir: str, dry_run: bool = False,
                 read_only_registry: bool = False, workers: Optional[Workers] = None,
                 signals: Optional[Signals] = None) -> None:
        self.v2 = find_v2(registry_data_dir)
        self.dry_run, self.read_only = dry_run, read_only_registry
        self.workers, self.signals = workers or Workers(), signals or Signals()
        self.outcome = Outcome(self.v2, dry_run)  # of the last run, refused or not

    def delete_entire_repository(self, repo: str) -> Outcome:
        """Delete the repository `repo`; repositories below it stay."""
        return self.run(request_for(repo))

    def delete_repository_tag(self, repo: str, tag: str) -> Outcome:
        """Delete the tag `tag` of `repo`, and what only it reaches."""
        return self.run(request_for_tag(repo, tag))

    def delete_untagged(self, repo: str) -> Outcome:
        """Delete the manifests of `repo` that no tag reaches."""
        return self.run(request_for_untagged(repo))

    def prune(self) -> Outcome:
        """Delete empty folders."""
        return self.run(Request(prune=True))

    def list(self, request: Request) -> 'Listing':
        """Return what `request` selects, and what deleting it would free."""
        with self.look() as store:
            return list_images(survey_all(store, begun(request)))

    def check(self, request: Request) -> 'Listing':
        """Read all that `request` selects, and return it with its damage."""
        with self.look() as store:
            return check_images(store, begun(request))

    @contextlib.contextmanager
    def look(self) -> Iterator[Store]:
        """Yield the store to look at only, unless what an interrupted run left makes that vain."""
        if unfinished(self.v2):
            raise RegistryCleanerError(
                'An earlier run was interrupted before anything was final, and what it has set '
                'aside is not to be seen. Nothing was deleted. The next run that deletes puts it '
                f'back: {PROGRAM} -p')
        try:
            yield Store(self.v2, self.workers)
        except OSError as error:
            raise cannot_read(error)

    def run(self, request: Request, save_to: str = '') -> Outcome:
        """Carry out `request`, after what an interrupted run left; save what goes to an archive."""
        request = begun(request, self.dry_run, self.read_only)
        self.outcome = Outcome(self.v2, request.dry_run)
        self.signals.at_once = True
        asked = request.images or request.untagged or request.garbage or request.prune
        if asked and request.dry_run:
            with self.look() as store:
                self.outcome = choose(store, request)
                if save_to:
                    self.outcome.saved = save(
                        store, self.outcome.plan, save_to, self.signals, True)
        elif asked:
            try:
                with safe_ground(self.v2, self.workers, request, self.signals) as removal:
                    removal.recover()
                    self.remove(removal, request, save_to)
            except OSError as error:
                raise cannot_read(error)
        return self.outcome

    def remove(self, removal: Removal, request: Request, save_to: str) -> None:
        """Carry out `request`; the archive of a run that deletes nothing is removed again."""
        account, earlier = removal.account, dict(removal.account.blobs)
        begun, left = self.outcome, bool(account.failed)
        begun.failed, begun.earlier, begun.left = account.failed, earlier, left
        begun.unfinished = 'The next run' * account.unfinished
        if earlier:
            log.info('Deleted %s of the earlier run: %s freed', count(len(earlier), 'blob'),
                     human_size(sum(earlier.values())))
        if self.signals.number:
            return
        store = Store(self.v2, self.workers)
        outcome = choose(store, request)
        with contextlib.ExitStack() as undo:
            saved = save(store, outcome.plan, save_to, self.signals, False) if save_to else 0
            if saved and save_to != '-':
                undo.callback(drop_archive, save_to)
            try:
                if any(outcome.plan):
                    removal.carry_out(request, outcome.plan)
            except OSError as error:
                if self.signals.at_once:
                    raise
                account.fail(error, self.v2)
            final = not (account.put_back or unfinished(self.v2))
            outcome.plan = Plan([one for one in outcome.plan.references
                                 if final and one.repository not in account.skipped
                                 and one not in account.left],
                                {digest: size for digest, size in sorted(account.blobs.items())
                                 if digest not in earlier}, account.folders)
            if any(outcome.plan):
                undo.pop_all()
                outcome.saved = saved
        outcome.uploads = {name: size for name, size in outcome.uploads.items()
                           if final and name not in account.skipped}
        outcome.skipped.update(account.skipped)
        outcome.failed, outcome.earlier, outcome.left = account.failed, earlier, left
        if account.unfinished:
            outcome.unfinished = 'The next run' + ' with -g' * (not unfinished(self.v2, 'gone'))
        self.outcome = outcome


# -- The list: what is there, and what deleting it would free -------------------------------------

TOTALS = ('repositories', 'tags', 'manifests', 'blobs', 'size', 'uploads', 'selected', 'untagged',
          'garbage')
FIGURES = ('selected', 'untagged', 'garbage')  # what would be free if all of these were deleted


class Row(NamedTuple):
    """One line of the list; None where it has no such thing.  Sizes are in bytes."""

    repository: str
    tag: Optional[str] = None
    digest: Optional[str] = None
    tags: Optional[int] = None
    untagged: Optional[int] = None  # manifests that no tag reaches
    pushed: Optional[float] = None  # in seconds
    size: int = 0  # of the distinct blobs that it reaches
    frees: int = 0  # what deleting it, and nothing else, would free now
    damage: str = ''  # 'what: digest', with a semicolon between
    was: str = ''  # the tag that an untagged manifest was

    @property
    def image(self) -> Image:
        """What names it."""
        return Image(self.repository, self.tag or '', '' if self.tag else self.digest or '')


class Listing(NamedTuple):
    """What a request selects, and the whole store."""

    rows: List[Row]  # those that free most first
    totals: Dict[str, Optional[int]]  # None: cannot be told, and a warning says why
    warnings: List[str]


class Survey(Sum):
    """What the list tells.  Only blobs that are stored count."""

    def __init__(self) -> None:
        self.lines: List[Tuple[Row, List[str], int]] = []  # with the blobs and uploads that go
        self.sizes: Dict[str, int] = {}  # blob -> bytes
        self.shared: Set[str] = set()  # blobs that free nothing: their files have other names, too
        self.links: Any = Counter()  # blob -> number of links
        self.selected: Any = Counter()  # the same of those that go with all lines
        self.untagged: Any = Counter()  # with -u
        self.garbage: Any = Counter()  # with -g
        self.named: Set[str] = set()  # blobs that manifests name without a link
        self.counts: Any = Counter()
        self.matched: Set[Image] = set()  # words that name something
        self.refused: Dict[str, str] = {}  # figure -> why it cannot be told
        self.warnings: List[str] = []
        self.reads: Set[str] = set()  # what a check has to read

    def freed(self, going: Mapping[str, int]) -> int:
        """Return the bytes that are free when so many links to each blob are gone."""
        return sum(self.sizes[blob] for blob, number in going.items()
                   if number == self.links[blob] and blob not in self.shared)

    def stored(self, blobs: Iterable[str]) -> List[str]:
        """Return those of `blobs` that are stored."""
        return [blob for blob in blobs if blob in self.sizes]


class View:
    """One repository, as the list shows it; `bad` is what a check found wrong with which blob."""

    def __init__(self, judge: Judge, plain: Request, bad: Mapping[str, str]) -> None:
        self.judge, self.graph, self.plain = judge, judge.graph, plain
        self.bad, self.told = bad, Survey()
        self.repository = repository = judge.repository
        self.parts = {digest: {blob_of(repository, name) or name
                               for name in (digest, *manifest.names)}
                      for digest, manifest in repository.manifests.items()}
        links = [blob for held in (repository.layers, repository.revisions)
                 for blob in held.values() if blob]
        for blob in set(links).union(*self.parts.values()):
            self.measure(blob, judge.store.blob(blob) + '/data')
        self.told.links.update(self.told.stored(links))
        found = ((one, list(self.faults_of(one))) for one in self.graph.edges if one != ANYTHING)
        self.faults = {one: faults for one, faults in found if faults}
        self.seen: Dict[str, Tuple[int, List[str]]] = {}

    def measure(self, blob: str, path: str) -> None:
        """Take note of the size of a blob, which is at `path`."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                self.told.shared.add(blob)
                status = os.stat(path)
            self.told.sizes[blob] = status.st_size if stat.S_ISREG(status.st_mode) else 0

    def size(self, blobs: Iterable[str]) -> int:
        """Return the bytes of those of `blobs` that are stored."""
        return sum(self.told.sizes.get(blob, 0) for blob in blobs)

    def faults_of(self, one: str) -> Iterator[str]:
        """Yield what is wrong with a tag or a manifest itself, told from names and sizes.

        What may be stored elsewhere is no damage: layers with `urls`, children of a sparse index.
        """
        repository, sizes, bad = self.repository, self.told.sizes, self.bad
        if one[0] == '/':
            tag = repository.tags[one[1:]]
            if tag.fault:
                yield f'unreadable: tag {one[1:]} ({tag.fault})'
            elif tag.digest not in repository.manifests:
                yield f'no manifest: {tag.digest}' if tag.digest else f'broken link: tag {one[1:]}'
            return
        manifest = repository.manifests[one]
        if manifest.fault:
            yield f'unreadable: {one} ({manifest.fault})'
        for name, size in manifest.names.items():
            child, blob = name in repository.manifests, blob_of(repository, name)
            if not blob or blob not in sizes:
                if repository.layers.get(name) == '':
                    yield f'broken link: layer {name}'
                elif not (child or name in manifest.foreign or not blob and manifest.is_index):
                    yield f'layer missing: {blob or name}'
            elif blob in bad and not child:
                yield f'{bad[blob]}: {blob}'
            elif 0 <= size != sizes[blob]:
                yield f'{"manifest" if child else "layer"} of wrong size: {blob}'

    def see(self, start: str) -> Tuple[int, List[str]]:
        """Return the bytes and the damage of all that a tag or a manifest reaches."""
        edges = self.graph.edges[start]
        if start[0] == '/' and len(edges) == 1:  # so many tags of one manifest cost little
            size, faults = self.see(edges[0])
            return size, self.faults.get(start, []) + faults
        if start not in self.seen:
            nodes = walk([start], self.graph.edges)
            blobs = set().union(*(self.parts.get(one, ()) for one in nodes))
            self.told.reads.update(self.told.stored(blobs))
            self.seen[start] = self.size(blobs), sorted({
                fault for one in nodes if one in self.faults for fault in self.faults[one]})
        return self.seen[start]

    def whole(self) -> Row:
        """Return the row of the repository; what it frees is not known yet."""
        bad, tags, name = self.bad, self.repository.tags, self.repository.name
        damage = sorted({f'{fault} in {self.images_with(one)}'
                         for one, faults in self.faults.items() for fault in faults})
        damage += [f'{bad[blob]}: {blob}, which no manifest here names' for blob in sorted(
            bad.keys() & self.told.links.keys() - set().union(*self.parts.values()))]
        linked = {digest for digest, blob in self.repository.revisions.items() if blob is not None}
        self.told.reads.update(self.told.sizes)
        times = [tag.pushed for tag in tags.values() if tag.pushed is not None]
        return Row(name, None, None, self.judge.ordinary,
                   len(linked - walk(self.graph.roots, self.graph.edges)), max(times, default=None),
                   self.size(self.told.links), 0, '; '.join(damage))

    def images_with(self, one: str) -> str:
        """Return the first few of the images that a tag or a manifest is part of."""
        tags = sorted(f'{self.repository.name}:{other[1:]}'
                      for other in walk([one], self.graph.reached_by) & self.graph.roots)
        more = f' and {len(tags) - 5} more' if len(tags) > 5 else ''
        return ', '.join(tags[:5]) + more if tags else f'{self.repository.name}@{one}'

    def row(self, one: str, former: Mapping[str, str]) -> Row:
        """Return the row of a tag, or of a manifest, which had a `former` tag."""
        (size, faults), name = self.see(one), self.repository.name
        tag = self.repository.tags[one[1:]] if one[0] == '/' else None
        pushed = tag.pushed if tag else written(self.judge.store.revision(name, one) + '/link')
        return Row(name, one[1:] if tag else None, (tag.digest or None) if tag else one, None, None,
                   pushed, size, 0, '; '.join(faults), former.get(one, ''))

    def select(self, wish: Wish) -> Verdict:
        """Add a line for each thing that `wish` selects; return what goes with all of them."""
        tags, judge = self.repository.tags, self.judge
        try:
            verdict = judge.decide(wish)
        except RegistryCleanerError as error:
            self.told.refused['selected'] = str(error)
            verdict = judge.decide(wish._replace(request=self.plain, images=[]))
            verdict.matched.update(one for one in wish.images
                                   if names_something(self.repository, one))
        spared = judge.spared_by(wish)
        if any(image.whole for image in wish.excluded):
            return verdict
        if wish.bare and not (wish.request.untagged or spared):
            self.add_line(self.whole(), verdict)
            return verdict
        asked, wanted = judge.asked(wish, spared, Verdict(), wish.bare)
        if wish.bare:
            wanted = wanted | self.tops(verdict)
        former = {digest: tag for tag in tags for digest in tags[tag].history} if (
            wish.request.untagged) else {}
        for one in [node(tag) for tag in asked if tags[tag].digest not in wanted] + [*wanted]:
            self.add_line(self.row(one, former))
        return verdict

    def tops(self, verdict: Verdict) -> Set[str]:
        """Return the manifests that go and that nothing else that goes reaches."""
        going = {node(one.item) if one.kind == 'tag' else one.item for one in verdict.references
                 if one.kind in ('tag', 'manifest')}
        tops = {one for one in going if going.isdisjoint(self.graph.reached_by.get(one, ()))}
        tops |= going - walk(tops, self.graph.edges)
        return {one for one in tops if one[0] != '/'}

    def add_line(self, row: Row, verdict: Optional[Verdict] = None) -> None:
        """Add the line of `row`, with what goes if only that is deleted."""
        try:
            verdict = verdict or self.judge.decide(
                Wish(row.repository, [row.image], [], self.plain), terse=True)
        except RegistryCleanerError:
            verdict = Verdict()
        self.told.lines.append((row, self.told.stored(verdict.unlinked),
                                sum(verdict.uploads.values())))


def survey(store: Store, wish: Wish, bad: Mapping[str, str]) -> Survey:
    """Return what is told of the repository that `wish` names, which is read once."""
    name, plain, repository = wish.name, Request(now=wish.request.now), store.repository(wish.name)
    view = View(Judge(store, repository), plain, bad)
    told, counts = view.told, view.told.counts
    selected = view.select(wish)
    untagged = view.judge.decide(Wish(name, [Image(name)], [], plain._replace(untagged=True)))
    garbage = view.judge.decide(Wish(name, [], [], plain._replace(garbage=True)))
    for figure, verdict in zip(FIGURES, (selected, untagged, garbage)):
        getattr(told, figure).update(told.stored(verdict.unlinked))
        counts[figure] = sum(verdict.uploads.values())
    told.named = garbage.used - told.links.keys()
    told.matched, told.warnings = selected.matched, selected.warnings
    told.reads.difference_update(repository.revisions.values())  # which were hashed when read
    counts.update(repositories=1, tags=len(repository.tags), manifests=sum(
        blob is not None for blob in repository.revisions.values()))
    for upload in repository.uploads:
        last, size = measure_upload(store, store.place(name, '_uploads', upload))
        counts['uploads'] += size
        counts['old uploads'] += size * (last <= plain.now - UPLOAD_AGE)
    return told


def survey_all(store: Store, request: Request, bad: Mapping[str, str] = {}) -> Survey:
    """Return what is told of all repositories, with a line for each thing that is selected.

    That is each repository if the request names no image.  `bad` are blobs with what a check found.
    Raises RegistryCleanerError for a word that names nothing, and OSError.
    """
    names = store.repository_names()
    if names and not (request.images or request.untagged):
        request = request._replace(images=(Image('*'),))
    wishes, total = wishes_of(request, names), Survey()
    for told in each_repository(store, partial(survey, bad=bad), list(wishes.values())):
        total.add(told)
    total.warnings[:0] = find_missing(store, request, wishes, total.matched, wishes.keys())
    for figure in FIGURES:
        try:
            refuse_unsafe_ground(store, names, figure == 'garbage')
        except RegistryCleanerError as error:
            total.refused[figure] = str(error)
    total.links.update(store.kept_links())
    orphans = stored(store, set(total.sizes), Request())
    total.sizes.update(orphans)
    total.garbage.update(dict.fromkeys(orphans, 0))
    for blob in total.named:
        total.garbage.pop(blob, None)
    total.shared.update(blob for blob in total.sizes
                        if store.links and store.blob(blob) in store.links)
    return total


def list_images(total: Survey) -> Listing:
    """Return the list of what is selected, of which `total` tells."""
    totals: Any = {name: total.counts[name] for name in TOTALS + ('old uploads',)}
    totals.update(blobs=len(total.sizes), size=sum(total.sizes.values()))
    for figure in FIGURES:
        totals[figure] += total.freed(getattr(total, figure))
        if figure in total.refused:
            totals[figure] = 0 if figure == 'selected' else None
    rows = [row._replace(frees=0 if 'untagged' in total.refused else (
        uploads + total.freed(Counter(blobs)))) for row, blobs, uploads in total.lines]
    rows.sort(key=lambda row: (-row.frees, row.repository, row.tag or '', row.digest or ''))
    return Listing(rows, totals, total.warnings + sorted(set(total.refused.values())))


# -- The check: every byte ------------------------------------------------------------------------

def check_images(store: Store, request: Request) -> Listing:
    """Return what `request` selects, with the damage that reading every byte of it shows."""
    told = survey_all(store, request)
    workers, jobs = store.workers, store.workers.jobs
    workers.jobs = max(workers.threads(), os.cpu_count() or 1)
    blobs = sorted(told.reads, key=lambda blob: -told.sizes[blob])
    faults = workers.each(lambda blob: fault_of(store, blob, told.sizes[blob]), blobs,
                          'Reading blobs')
    workers.jobs = jobs
    bad = {blob: fault for blob, fault in zip(blobs, faults) if fault}
    listing = list_images(survey_all(store, request, bad))
    listing.totals['read'] = sum(map(told.sizes.__getitem__, blobs))
    return listing


def fault_of(store: Store, blob: str, size: int) -> str:
    """Read a blob, of about `size` bytes; return what is wrong with it, '' if nothing is."""
    algorithm, _, digits = blob.partition(':')
    try:
        descriptor = os.open(store.blob(blob) + '/data', os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, 'rb', buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return 'it is no regular file'
            found, view = hashlib.new(algorithm), memoryview(bytearray(min(size + 1, 1 << 20)))
            for read in iter(lambda: file.readinto(view), 0):
                found.update(view[:read])
    except OSError as error:
        return f'it cannot be read ({error.strerror})'
    return '' if found.hexdigest() == digits else 'its content does not match its digest'


# -- The table ------------------------------------------------------------------------------------

NUMBERS = ('TAGS', 'UNTAGGED', 'SIZE', 'FREES')  # they end where their headings do
COLUMNS = ('WAS', 'DIGEST', 'TAGS', 'UNTAGGED', 'PUSHED', 'SIZE', 'FREES', 'DAMAGE', 'BAR')
DISPENSABLE = ('DIGEST', 'UNTAGGED', 'WAS', 'TAGS', 'PUSHED', 'BAR', 'DAMAGE')  # the first first


def count(number: int, singular: str, plural: str = '') -> str:
    """Return '1 tag', '2 tags'."""
    return f'{number:,} {singular if number == 1 else plural or singular + "s"}'


def human_size(size: Optional[float]) -> str:
    """Return a number of bytes as a reader takes it in: '1.4 GiB'."""
    if size is None or size < 1024:
        return 'unknown' if size is None else count(int(size), 'byte')
    for unit in ('KiB', 'MiB', 'GiB', 'TiB'):
        size /= 1024
        if size < 1024:
            break
    return f'{size:.1f} {unit}'


def shortened(text: str, width: int) -> str:
    """Return `text` in at most `width` columns, its middle left out if need be."""
    half = (width - 1) // 2
    return text if len(text) <= width else text[:width - 1 - half] + '…' + text[len(text) - half:]


def date_of(zone: Callable[[float], Any], when: Optional[float], form: str) -> Optional[str]:
    """Return a time in seconds as a date; None for none, and for one that no calendar has."""
    try:
        return None if when is None else time.strftime(form, zone(when))
    except (OverflowError, ValueError, OSError):
        return None


def cells(row: Row, ages: bool) -> Dict[str, str]:
    """Return what each column shows of a row, the first under ''; push times are ages or dates."""
    pushed = '' if row.pushed is None else span(time.time() - row.pushed) + ' ago' if ages else (
        date_of(time.localtime, row.pushed, '%Y-%m-%d %H:%M') or '')
    return {'': str(row.image._replace(digest='')), 'PUSHED': pushed, 'BAR': '', 'WAS': row.was,
            'DIGEST': (row.digest or '').partition(':')[2][:12],
            'TAGS': '' if row.tags is None else f'{row.tags:,}',
            'UNTAGGED': '' if row.untagged is None else f'{row.untagged:,}',
            'SIZE': human_size(row.size), 'FREES': human_size(row.frees),
            'DAMAGE': ', '.join(dict.fromkeys(re.findall('(?:^|; )([^:]+)', row.damage)))}


def table(rows: Sequence[Row], width: int, verbose: bool) -> Iterator[str]:
    """Yield the lines of the list.

    With a `width`, that of a terminal, they fit it: long names are shortened, and columns left
    out.  Bars show what each line frees beside the others.
    """
    lines = [cells(row, bool(width) and not verbose) for row in rows]
    most = max([row.frees for row in rows] + [1])
    for row, line in zip(rows, lines if width else ()):
        line.update(DAMAGE=shortened(line['DAMAGE'], 24), BAR='#' * (
            row.frees * (width // 10) // most))
    heading = {name: name for name in COLUMNS}
    heading.update({'BAR': '', '': 'IMAGE' if any(row.tag or row.digest for row in rows) else (
        'REPOSITORY')})
    columns = [name for name in COLUMNS if name in ('SIZE', 'FREES')
               or any(line[name] for line in lines)]
    widths = {name: max(len(line[name]) for line in [heading] + lines) for name in heading}
    for name in DISPENSABLE + ('',):
        room = width - sum(widths[column] + 2 for column in columns)
        if width and name in columns and room < min(widths[''], max(10, width // 4)):
            columns.remove(name)
    widths[''] = max(min(widths[''], room), 1) if width else widths['']
    for line in [heading] + lines:
        text = f'{shortened(line[""], widths[""]):{widths[""]}}'
        for place, name in enumerate(columns):
            right = name in NUMBERS and (place or widths[name] == len(name))
            text += f'  {line[name]:{">" if right else "<"}{widths[name]}}'
        yield text.rstrip()


def list_text(listing: Listing, v2: str, width: int, verbose: bool) -> Iterator[str]:
    """Yield the lines of the list for a terminal of this width; 0 for no terminal."""
    totals = {name: human_size(total) for name, total in listing.totals.items()}
    repositories, tags, blobs = (listing.totals[name] or 0 for name in (
        'repositories', 'tags', 'blobs'))
    disk = shutil.disk_usage(v2)
    yield from table(listing.rows, width, verbose)
    for text in (
            '', f'All of these together free {totals["selected"]}',
            f'Stored: {totals["size"]} in {count(blobs, "blob")}',
            f'{count(repositories, "repository", "repositories")}, {count(tags, "tag")}',
            f'Uploads: {totals["uploads"]}',
            f'Of these, over a day old: {totals["old uploads"]}',
            f'-u would free {totals["untagged"]}', f'-g would free {totals["garbage"]}',
            f'Disk: {human_size(disk.used)} of {human_size(disk.total)} used', v2):
        yield shortened(text, width or len(text))


def check_text(listing: Listing, v2: str) -> Iterator[str]:
    """Yield what a check found: each damaged image, what is wrong with it, and what to do."""
    damaged = [row for row in listing.rows if row.damage]
    for row in damaged:
        yield f'{row.image} is damaged:'
        yield from ('  ' + part for part in row.damage.split('; '))
    found = f'{len(damaged):,} of {len(listing.rows):,} damaged' if damaged else 'No damage found'
    yield f'{found}: {human_size(listing.totals["read"])} of blobs read in {v2}'
    if damaged:
        yield ('To repair an image, remove the folder of each damaged blob below '
               f"'{v2}/blobs', restart the registry and push the image again")
        yield f'To delete it: {delete_command(str(damaged[0].image))}'


def listing_names(listing: Listing) -> Iterator[str]:
    """Yield the names of the lines, as `-i -` takes them; of a check, of what is damaged.

    What no word can name is left out, with a warning.
    """
    for row in listing.rows:
        word = str(row.image)
        try:
            known = parse_image(word) == row.image and re.fullmatch(r'[^#\s](.*\S)?', word)
        except ValueError:
            known = None
        if not known:
            log.warning("No word can name '%s': it is left out", word)
        elif row.damage or 'read' not in listing.totals:
            yield word


def listing_json(listing: Listing, v2: str) -> Dict[str, Any]:
    """Return the list, or what a check found, as `--json` prints it."""
    images = []
    for row in listing.rows:
        pushed = date_of(time.gmtime, row.pushed, '%Y-%m-%dT%H:%M:%SZ')
        images.append(dict(row._asdict(), pushed=pushed, damage=row.damage or None))
        del images[-1]['was']  # no word names it by that tag
    return {'registry': v2, 'images': images,
            'total': {name: listing.totals[name] for name in TOTALS}}


# -- The report -----------------------------------------------------------------------------------

def report(outcome: Outcome, save_to: str) -> None:
    """Say what was, or would be, deleted; the summary comes last."""
    plan, dry_run = outcome.plan, outcome.dry_run
    verb = 'Would delete' if dry_run else 'Deleted'
    for text in outcome.warnings:
        log.warning('%s', text)
    for name, reason in outcome.kept:
        log.log(logging.INFO if dry_run else logging.DEBUG, 'Keeps %s, %s', name, reason)
    if outcome.saved:
        file = save_to if save_to == '-' else os.path.abspath(save_to)  # tar takes a:b for a host
        log.info("%s what goes (%s) to '%s'. To bring it back: tar -xf %s -C %s",
                 'Would save' if dry_run else 'Saved', human_size(outcome.saved), save_to,
                 shlex.quote(file), shlex.quote(outcome.v2))
    whole = {one.repository for one in plan.references if one.kind == 'repository'}
    named = {name for name in whole if not outcome.owners.get(name)}  # not by a tag
    tagged = {one.repository for one in plan.references if one.kind == 'tag'} | whole
    for one in plan.references:
        owner = outcome.owners.get(one.repository) if one.kind == 'repository' else ''
        level = logging.INFO if (
            one.kind == 'repository' or one.kind == 'manifest' and one.repository not in tagged
            or one.kind in ('tag', 'upload') and one.repository not in named) else logging.DEBUG
        if log.isEnabledFor(level):
            log.log(level, '%s %s%s', verb, one.line,
                    f', with its last tag {owner}' if owner else '')
    for digest, size in plan.blobs.items():
        log.debug('%s blob %s (%s)', verb, digest, human_size(size))
    for folder in plan.folders:
        log.debug("%s empty folder '%s'", verb, folder)
    for name, reason in outcome.skipped.items():
        log.error('Repository %s: %s', name, reason)
    for path, reason in outcome.failed:
        log.error("Cannot delete '%s': %s", path, reason)
    if not (outcome.nothing and (outcome.skipped or outcome.failed)):
        log.info('%s', summary(outcome, verb))


def summary(outcome: Outcome, verb: str) -> str:
    """Return the line that says what went, from where, and how many bytes that freed."""
    plan, kinds = outcome.plan, Counter(one.kind for one in outcome.plan.references)
    counts = [(kinds['repository'], 'repository', 'repositories'), (kinds['tag'], 'tag'),
              (kinds['manifest'], 'manifest'), (kinds['upload'], 'upload')]  # type: List[Any]
    if not (kinds['repository'] or kinds['tag'] or kinds['manifest']):
        counts += [(kinds['layer'], 'layer link'), (kinds['entry'] + kinds['leftover'], 'leftover')]
    counts += [(len(plan.blobs), 'blob'), (len(plan.folders), 'empty folder')]
    what = ', '.join(count(*item) for item in counts if item[0])
    freed = human_size(sum(plan.blobs.values()) + sum(outcome.uploads.values()))
    return f'{verb} {what} of {outcome.v2}: {freed} freed' if what else 'Nothing to delete'


def plan_json(outcome: Outcome) -> Dict[str, Any]:
    """Return what was, or would be, deleted, as `--json` prints it."""
    blobs, upload_bytes = {**outcome.earlier, **outcome.plan.blobs}, sum(outcome.uploads.values())

    def named(kind: str, separator: str = '') -> List[str]:
        return [one.repository + separator + one.item for one in outcome.plan.references
                if one.kind == kind]

    return {'registry': outcome.v2, 'dry_run': outcome.dry_run,
            'repositories': named('repository'), 'tags': named('tag', ':'),
            'manifests': named('manifest', '@'), 'layers': len(named('layer')),
            'uploads': len(named('upload')), 'upload_bytes': upload_bytes,
            'blobs': [{'digest': digest, 'size': size} for digest, size in blobs.items()],
            'freed': sum(blobs.values()) + upload_bytes, 'warnings': outcome.warnings,
            'failed': [{'path': path, 'error': reason} for path, reason in outcome.failed],
            'skipped': [{'repository': name, 'error': reason}
                        for name, reason in outcome.skipped.items()]}


# -- The terminal ---------------------------------------------------------------------------------

def columns(stream: Optional[IO[str]]) -> int:
    """Return the width of the terminal that `stream` is, 0 if it is none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80 if (
            stream and stream.isatty()) else 0
    except (ValueError, OSError):
        return 80


class Terminal(logging.StreamHandler):  # type: ignore[type-arg]
    """Logs to standard error; on a terminal without time stamps, with progress in the last line."""

    def __init__(self, workers: Workers, progress: bool) -> None:
        super().__init__()
        self.workers, self.width = workers, columns(sys.stderr)
        self.drawn = ''  # the progress line
        self.ended = threading.Event()
        if self.width and progress:
            threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        """Show the progress of a longer run until the end."""
        pause = 0.5
        while not self.ended.wait(pause):
            pause = 0.1
            if self.workers.step:
                self.draw(f'{self.workers.step} {self.workers.done:,} of {self.workers.total:,}')

    def draw(self, text: str) -> None:
        """Show `text` in the last line, instead of what is there."""
        self.acquire()
        with contextlib.suppress(OSError):  # the terminal may be gone, and the work goes on
            if text != self.drawn and not (text and self.ended.is_set()):
                self.drawn = text
                print('\r\x1b[K' + text[:self.width - 1], end='', file=sys.stderr, flush=True)
        self.release()

    def end(self) -> None:
        """Take the progress line away for good."""
        self.ended.set()
        self.draw('')

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if self.width:
            return f'{record.levelname.capitalize()}: ' * (record.levelno > logging.INFO) + text
        stamp = f'{record.levelname:8} [{logging.Formatter().formatTime(record)}]  '
        return stamp + text.replace('\n', '\n' + stamp)

    def emit(self, record: logging.LogRecord) -> None:
        self.draw('')
        super().emit(record)


def put(text: str) -> bool:
    """Write `text`, unless empty, to standard output; tell whether that worked."""
    encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
    try:
        if text and sys.stdout is None:
            raise OSError(errno.EBADF, 'it is closed')
        if text:  # a name need not be valid text
            print(text.encode(encoding, 'backslashreplace').decode(encoding), flush=True)
    except BrokenPipeError:
        pass  # whoever reads has seen enough
    except OSError as error:
        log.error('Cannot write to standard output: %s', error.strerror)
        return False
    return True


# -- The command line -----------------------------------------------------------------------------

EXAMPLES = """\
examples:
  delete_docker_registry_image -l           what is there, what would I gain?
  delete_docker_registry_image -n -i team/app:1.0      what would be deleted?
  delete_docker_registry_image -i 'team/*:pr-*' -x team/app:pr-7 --keep-last 3
  delete_docker_registry_image -u -g -p --older-than 1d      clean everything
  delete_docker_registry_image -i app:1.0 --save FILE      and to undo that:
  tar -xf FILE -C V2

Stop the registry first and start it again afterwards: it caches what it has
seen. Images of Harbor, of a GitLab registry with a metadata database, and of
OpenShift are deleted there, not here: their tags are not on this disk.

exit status: 0 done, or nothing to do; 1 refused or failed, nothing was
deleted; 2 usage; 3 some things could not be deleted, or are damaged (each is
named); 130 and 143 interrupted
"""


class Parser(argparse.ArgumentParser):
    """Takes no option but in full; allow_abbrev=False would take `-nv` apart before Python 3.8."""

    def _get_option_tuples(self, option_string: str) -> List[Any]:
        return [] if option_string[:2] == '--' else super()._get_option_tuples(option_string)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog=PROGRAM, add_help=False, epilog=EXAMPLES, usage='%(prog)s [options] -i IMAGE ...',
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=26, width=79),
        description='Delete images from the disk of a stopped Docker registry, and free their '
                    'space.')
    add_choices(parser)
    how = parser.add_argument_group('how').add_argument
    how('-l', '--list', action='store_true',
        help='show what is selected (default: each repository), its size, and what deleting it '
             'would free; deletes nothing')
    how('--check', action='store_true',
        help='read everything that is selected (default: all) and name each image that is damaged; '
             'deletes nothing')
    how('-n', '--dry-run', action='store_true', help='say what would be deleted; touches nothing')
    how('--save', metavar='FILE', help='first copy all that goes to a new tar archive (- is '
                                       "standard output); 'tar -xf FILE -C V2' brings it back")
    how('-d', '--registry-data-dir', metavar='DIR',
        help='V2, which is DIR/docker/registry/v2, or a folder above it. Default: '
             '$REGISTRY_DATA_DIR, else $REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY, else the one of '
             + ', '.join(DEFAULT_DATA_DIRS) + ' that holds a registry')
    how('-j', '--jobs', metavar='N', type=int, default=0,
        help='parallel file operations, for slow storage; the default suits the storage at hand')
    how('--read-only-registry', action='store_true', help='the registry is up, in read-only mode')
    how('-f', '--force', action='store_true', help='accepted for old scripts; has no effect')
    output = parser.add_argument_group('output').add_argument
    output('--json', action='store_true', help='the result as one JSON object on standard output')
    output('-v', '--verbose', action='store_true', help='name every blob and folder')
    output('-q', '--quiet', action='store_true', help='errors only; of a list, names only')
    output('-V', '--version', action='version', version='%(prog)s ' + __version__)
    output('-h', '--help', action='help', help='show this help')
    return parser


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what goes and what stays."""
    what = parser.add_argument_group('what to delete').add_argument
    what('-i', '--image', metavar='IMAGE', action='append', default=[], dest='images',
         help='NAME (the whole repository, all its tags), NAME:TAG or NAME@DIGEST; repeatable. '
              'NAME and TAG may be patterns (* ? [...]; * also matches /), and TAG a regular '
              'expression between slashes, matched whole. - reads one a line from standard input')
    what('-u', '--untagged', action='store_true',
         help='in the named repositories (default: all) delete only what no tag reaches')
    what('-g', '--garbage', action='store_true', help='whole registry: delete what nothing uses')
    what('-p', '--prune', action='store_true', help='delete empty folders')
    keep = parser.add_argument_group('what to keep').add_argument
    keep('-x', '--exclude', metavar='IMAGE', action='append', default=[], dest='excluded',
         help='never delete what this names; same forms; repeatable')
    keep('--keep-last', metavar='N', type=int,
         help='of the tags that each -i NAME:TAG selects in a repository, keep the N newest')
    keep('--older-than', metavar='AGE', type=age,
         help='select only tags (-u, -g: manifests, layer links, blobs) older than 12h, 30d, 8w, '
              '1y')
    keep('--by', choices=('pushed', 'created', 'version'), default='pushed',
         help="what newest and older go by: pushed (default), created (the image's own date), "
              'version')
    keep('--allow-remove-all', action='store_true',
         help='let patterns delete every tag of the registry')


def age(text: str) -> float:
    """Return the seconds that `text`, like 12h, 30d, 8w or 1y, stands for."""
    match = re.fullmatch('([0-9]{1,9})([hdwy])', text)
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is no age like 12h, 30d, 8w or 1y")
    return float(match.group(1)) * 3600 * {'h': 1, 'd': 24, 'w': 168, 'y': 8760}[match.group(2)]


def request_of(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Request:
    """Return the request of the command line; exit with a usage error if it makes no sense."""
    if (arguments.images + arguments.excluded).count('-') > 1:
        parser.error("standard input can be read once: give one '-'")
    try:
        request = read_request(arguments)
    except OSError as error:
        parser.error(f'standard input cannot be read: {error.strerror}')
    except ValueError as error:
        parser.error(error.args[0] + advice(error.args[1]))
    for wrong, text in problems(arguments, request):
        if wrong:
            parser.error(text)
    return request


def problems(arguments: argparse.Namespace, request: Request) -> List[Tuple[Any, str]]:
    """Return what may be wrong with the command line: whether it is, and what to say."""
    looks, given, save_to = arguments.list or arguments.check, arguments.images, arguments.save
    old, last = request.older_than is not None, request.keep_last is not None
    tags = given and all(image.tag for image in request.images) and not request.untagged
    return [
        (not (given or request.untagged or request.garbage or request.prune or looks),
         'an image is required: -i NAME, -i NAME:TAG or -i NAME@DIGEST'),
        (request.untagged and not all(image.whole for image in request.images),
         '-u takes whole repositories: -i NAME, without a tag or a digest'),
        (last and not tags or old and not (tags or request.untagged or request.garbage and
                                           not given),
         "--keep-last and --older-than choose among tags: name them, as in -i 'NAME:*' (and "
         '--older-than goes with -u or -g)'),
        (old and request.by == 'version',
         'a version has no age: --older-than goes with --by pushed or --by created'),
        (request.by != 'pushed' and not (tags and (old or last)),
         f"--by {request.by} is for --keep-last or --older-than of tags, as in -i 'NAME:*'"),
        ((request.keep_last or 0) < 0 or arguments.jobs < 0,
         '--keep-last and --jobs take a number that is not negative'),
        (arguments.list and arguments.check, 'give one of -l and --check'),
        (looks and (request.garbage or request.prune or save_to is not None),
         '-l and --check delete nothing: leave out -g, -p and --save'),
        (save_to is not None and (not save_to or '\0' in save_to),
         '--save takes the name of a file'),
        (save_to == '-' and (arguments.json or columns(sys.stdout)),
         '--save - writes an archive to standard output, which is not for --json or a terminal')]


# -- The start ------------------------------------------------------------------------------------

def look(cleaner: RegistryCleaner, arguments: argparse.Namespace, request: Request
         ) -> Tuple[int, Dict[str, Any], Iterable[str]]:
    """List or check what `request` selects; return the exit status, the JSON and the text."""
    if arguments.images and not request.images:  # an empty list, which is never everything
        return 0, {'registry': cleaner.v2, 'images': [], 'total': dict.fromkeys(TOTALS)}, ()
    listing = (cleaner.check if arguments.check else cleaner.list)(request)
    for text in listing.warnings:
        log.warning('%s', text)
    lines = listing_names(listing) if arguments.quiet else check_text(listing, cleaner.v2) if (
        arguments.check) else list_text(
            listing, cleaner.v2, columns(sys.stdout), arguments.verbose)
    damaged = any(row.damage for row in listing.rows)
    return 3 * (arguments.check and damaged), listing_json(listing, cleaner.v2), lines


def delete(cleaner: RegistryCleaner, request: Request, save_to: str) -> Tuple[int, str]:
    """Carry out `request` and say so; return the exit status, and what went wrong."""
    outcome = cleaner.run(request, save_to)
    bad, nothing = bool(outcome.failed or outcome.skipped), outcome.nothing
    if bad or not (cleaner.signals.number and nothing):
        report(outcome, save_to)
    stopped = ['Interrupted'] if cleaner.signals.number else []  # if only since all was done
    if nothing and (bad or stopped):
        stopped.append('Nothing was deleted')
    elif stopped and outcome.unfinished:
        stopped.append(f'{outcome.unfinished} frees the rest')
    return (1 if nothing else 3) if bad else 0, '. '.join(stopped)


def run(argv: Optional[Sequence[str]], signals: Signals) -> int:
    """Do what the command line `argv` says; return the exit status."""
    parser = make_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}" + (
            ' (images follow -i; quote patterns)' if any(word[:1] != '-' for word in rest) else ''))
    request = request_of(parser, arguments)
    workers, looks = Workers(arguments.jobs), arguments.list or arguments.check
    terminal = Terminal(workers, progress=not arguments.quiet)
    log.handlers, log.propagate = [terminal], False
    log.setLevel(logging.DEBUG if arguments.verbose else
                 logging.ERROR if arguments.quiet else logging.INFO)
    if arguments.force:
        log.warning('-f, --force has no effect')
    lines, error = [], ''  # type: Iterable[str], str
    result: Dict[str, Any] = dict(plan_json(Outcome('', request.dry_run)), registry=None)
    if looks:
        result = {'registry': None, 'images': [], 'total': dict.fromkeys(TOTALS)}
    cleaner: Optional[RegistryCleaner] = None
    try:
        cleaner = RegistryCleaner(find_data_dir(arguments.registry_data_dir), workers=workers,
                                  signals=signals)
        if looks:
            result['registry'] = cleaner.v2
            status, result, lines = look(cleaner, arguments, request)
        else:
            status, error = delete(cleaner, request, arguments.save or '')
    except UsageError as usage:
        terminal.end()
        parser.error(str(usage))
    except RegistryCleanerError as refusal:
        status, error = 1, str(refusal)
        error += '' if 'othing was deleted' in error else '. Nothing was deleted'
    except KeyboardInterrupt:
        signals.at_once = False
        signals.number = signals.number or signal.SIGINT
        status, error = 0, 'Interrupted. Nothing was deleted'
    terminal.end()
    if cleaner and not looks:
        result = plan_json(cleaner.outcome)
        if cleaner.outcome.earlier:
            error = error.replace('othing was', 'othing else was')
    if error:
        log.error('%s', error)
        result['error'] = error
    written = put(json.dumps(result, indent=2) if arguments.json else '\n'.join(lines))
    return 128 + signals.number if signals.number else status if written or not looks else 1


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line `argv`, the process's own by default; return the exit status."""
    logging.raiseExceptions = False  # nobody may be reading, and the work goes on
    gc.disable()  # looking for circles, of which there are few, takes a tenth of a run
    signals = Signals()
    try:
        with contextlib.suppress(ValueError):  # not in the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signals.catch)
        return run(argv, signals)
    except KeyboardInterrupt:  # before the run began, or while the result is written
        signals.at_once = False
        return 128 + (signals.number or 2)
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
