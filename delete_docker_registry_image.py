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
from types import SimpleNamespace
from typing import (IO, AbstractSet, Any, Callable, Dict, Iterable, Iterator, List, Mapping,
                    NamedTuple, Optional, Sequence, Set, Tuple, TypeVar)

__version__ = '2.0.0'

PROGRAM = 'delete_docker_registry_image'
log = logging.getLogger(PROGRAM)
Item = TypeVar('Item')
Result = TypeVar('Result')


# == What both parts read with: names, records, files; changes nothing ==

ALGORITHMS = ('sha256', 'sha384', 'sha512')  # of six letters
DIGEST = '(?:sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})'
PATH = DIGEST.replace(':[', '/[')  # of a digest's folder
is_digest = re.compile(DIGEST).fullmatch  # `alg:hex` of the right length; else it is no path
TAG = r'[A-Za-z0-9_][A-Za-z0-9._-]{0,127}'
is_tag = re.compile(TAG).fullmatch
is_pattern = re.compile(r'/[^/].*/|(?!/)[^*?[]*[*?[](?s:.*)').fullmatch  # shell's, or /regular/
REFERRER_TAG = r'(%s)(?:\.(.+))?' % DIGEST.replace(':[', '-[')
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
    read = sys.stdin and '-' in arguments.images + arguments.excluded
    text = os.fsdecode(sys.stdin.buffer.read()) if read else ''
    lines = [line.strip(' \t\r') for line in text.split('\n')]
    lines = [line for line in lines if line and line[0] != '#']
    if '-' in arguments.excluded and not lines:
        raise ValueError('there is no line on standard input for -x: that would protect nothing',
                         '')

    def images(words: List[str]) -> Tuple[Image, ...]:
        return tuple(parse_image(one) for word in words
                     for one in (lines if word == '-' else [word]))

    named = images(arguments.images)
    return Request(named, images(arguments.excluded),
                   arguments.untagged and bool(named or not arguments.images),  # no empty list
                   arguments.garbage, arguments.prune, arguments.keep_last, arguments.older_than,
                   arguments.by, arguments.allow_remove_all,
                   arguments.dry_run or arguments.list or arguments.check,
                   arguments.read_only_registry)


def begun(request: Request, dry_run: bool = False) -> Request:
    """Return `request` as that of a run that begins now, a dry run if either of both says so."""
    return request._replace(now=time.time(), dry_run=request.dry_run or dry_run)


def request_for(*words: str) -> Request:
    """Return the request to delete a repository, or a tag.  Raises for a pattern or no name."""
    with contextlib.suppress(ValueError, TypeError):
        image = parse_image(':'.join(words))
        if image == Image(*words) and not any(map(is_pattern, words)):
            return Request((image,))
    raise RegistryCleanerError(f'{words} is no valid image name. Nothing was deleted')


def request_for_tag(repo: str, tag: str) -> Request:
    """Return the request to delete a tag.  Raises as the former."""
    return request_for(repo, tag)


def request_for_untagged(repo: str) -> Request:
    """Return the request to delete what no tag of a repository reaches.  Raises likewise."""
    return request_for(repo)._replace(untagged=True)


def parse_image(word: str) -> Image:
    """Return what `word` names: NAME, NAME:TAG, NAME@DIGEST or NAME:TAG@DIGEST.

    Raises ValueError for anything else.  A name may be outside the registry's grammar, since
    folders may have such names, but none leads out of `repositories`.
    """
    match: Any = re.fullmatch(
        r'(?s)(?:docker://)?(?:(.*?):(/.*)|(.*?)(?::([^/@]*))?(?:@(.*))?)', word)
    named, regular, name, tag, digest = match.groups()
    name, tag = (name, tag) if regular is None else (named, regular)
    wrong = ''
    if '\0' in name or not {'', '.', '..'}.isdisjoint(name.split('/')) or (
            is_digest(f'{name}:{tag}')):
        wrong = 'is no valid image name'
    elif digest is not None and not is_digest(digest):
        wrong = "has no valid digest after the '@'"
    elif tag is not None and not (is_tag(tag) or is_pattern(tag)):
        wrong = "has no valid tag after the ':'" + ' (a regular expression stands between ' \
            'slashes)' * (tag[:1] == '/' and '://' not in word)
    try:
        expression(name), expression(tag or '')
    except (re.error, OverflowError, RecursionError) as error:
        wrong = wrong or f'is no valid pattern: {error}'
    if wrong:
        raise ValueError(f"'{word}' {wrong}", word)
    return Image(name, tag or '', digest or '')


@lru_cache(maxsize=None)
def expression(pattern: str) -> Any:
    """Return a pattern, /a regular expression/ or a shell's, compiled.  Raises re.error."""
    return re.compile(pattern[1:-1] if pattern[:1] == '/' else fnmatch.translate(pattern))


def matching(wanted: str, names: Iterable[str], excluding: bool = False) -> List[str]:
    """Return those of `names` that `wanted` is, else (`excluding`: also) those that it matches."""
    found = [wanted] if wanted in names else []
    if is_pattern(wanted) and (excluding or not found):  # a name may hold brackets
        found += filter(expression(wanted).fullmatch, names)
    return found


def words_for(images: Iterable[Image], names: Set[str], excluding: bool = False
              ) -> Dict[str, List[Image]]:
    """Return for each repository the `images` that name it or anything in it."""
    found: Dict[str, List[Image]] = {name: [] for name in names}
    for image in images:
        image = image._replace(name=spelled(image.name, names, excluding))
        for name in matching(image.name, names, excluding):
            found[name].append(image)
    return found


def spelled(name: str, names: Set[str], excluding: bool = False) -> str:
    """Return `name` as the repositories `names` spell it: without a host copied in front.

    A host without a port goes only from an exclusion, and if what remains exists.
    """
    host, _, rest = name.partition('/')
    copied = re.fullmatch(HOST, host) and (':' in host or not is_pattern(rest)) or (
        excluding and re.fullmatch(r'.*\..*|localhost', host) and matching(rest, names))
    return rest if rest and copied and not matching(name, names) else name


def named_tags(images: Iterable[Image], repository: 'Repository', excluding: bool = False
               ) -> Set[str]:
    """Return the tags of `repository` that `images`, words for it, name.

    A pattern passes over referrer tags, unless `excluding`; but one that begins with an algorithm
    selects those whose image is none of the repository's manifests.
    """
    tags, referrers = repository.tags, repository.referrers
    named: Set[str] = set()
    for image in images:
        found = matching(image.tag, tags) if image.tag else list(tags)
        if is_pattern(image.tag) and not excluding:
            orphans = re.match('/?sha(256|384|512)-', image.tag)
            found = [tag for tag in found if tag not in referrers
                     or orphans and referrers[tag] not in repository.manifests]
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
        self.final = False  # nothing can be put back any more
        self.begun = False  # something may be gone of what had no way back
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
    'leftover': Kind('{item}', f'_manifests/tags/{TAG}|(_layers|_manifests/revisions)/{PATH}',
                     'folder without a link {repository}/{item}'),
    'upload': Kind('_uploads/{item}', r'(?!\.{1,2}\Z)[^/\0]+', 'upload {repository}/{item}'),
    'repository': Kind('', '', 'repository {repository}'),
}


# A folder of one reference, wherever its repository was moved to.
LEAF = f"(?s).*/(_uploads/[^/]+|{KINDS['leftover'].item})"


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


def by_repository(references: Iterable[Reference]) -> Dict[str, List[Reference]]:
    """Return the references of each repository that has any, in the order of removal."""
    rank = list(KINDS).index
    found: Dict[str, List[Reference]] = {}
    for reference in sorted(references, key=lambda one: rank(one.kind)):
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


def referrers_of(tags: Mapping[str, Tag], manifests: Mapping[str, Manifest]) -> Dict[str, str]:
    """Return which of a repository's `tags` are referrer tags, with the digest of their image.

    A tag whose manifest is or names that image is an ordinary one (imgpkg makes such).
    """
    found = {}
    for tag in tags:
        match, digest = re.fullmatch(REFERRER_TAG, tag), tags[tag].digest
        if match:
            image, manifest = match.group(1).replace('-', ':'), manifests.get(digest, Manifest())
            if match.group(2) in ('sig', 'att', 'sbom') or (
                    image in manifests and digest not in ('', image)
                    and image not in manifest.names and not manifest.fault):
                found[tag] = image
    return found


DECODER = json.JSONDecoder(object_pairs_hook=tuple, parse_int=float)


def parse_manifest(content: bytes) -> Manifest:
    """Return what a manifest with this content names.

    Every digest under a key `digest` or `blobSum` counts, but for those below `subject` and
    `annotations`: in all spellings of a key, and both where it stands twice, since the registry
    (Go) may use either.  One entry with a manifest's media type makes an index of the whole.
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
    for part in todo:  # grows as it goes
        if type(part) is list:
            todo += part
        if type(part) is not tuple:
            continue
        digests, size, is_manifest, elsewhere = [], -1.0, False, False  # type: Any, Any, Any, Any
        for key, value in part:
            key, kind = key.casefold(), type(value)
            if kind is str:
                if key in ('digest', 'blobsum') and is_digest(value):
                    digests.append(sys.intern(value))
                elif key == 'mediatype':
                    is_manifest = is_manifest or '.manifest.' in value or '.index.' in value
            elif key == 'size' and kind is float:
                size = value
            elif key not in ('subject', 'annotations'):
                todo.append(value)
                elsewhere = elsewhere or key == 'urls' and bool(value)
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
    """Does things side by side, in threads: worth it where storage is slow to answer."""

    def __init__(self, jobs: int = 0) -> None:
        self.jobs = jobs  # at once; with 0, the time that listing a folder takes decides
        self.times: Any = deque(maxlen=15)  # seconds that listing a folder took, lately
        self.step, self.done, self.total = '', 0, 0  # how far the work is
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
        alone = self.busy or len(items) < (8 if large else 2)
        threads = 1 if alone else min(self.threads(), len(items))

        def do(item: Item) -> Result:
            result = function(item)
            self.done += bool(step)
            return result

        if threads == 1:
            return list(map(do if step else function, items))
        todo: Any = deque(enumerate(items))
        results: List[Any] = [None] * len(items)
        failures: List[BaseException] = []

        def work() -> None:
            with contextlib.suppress(IndexError):
                while not failures:
                    number, item = todo.popleft()
                    try:
                        results[number] = do(item)
                    except BaseException as error:
                        failures.append(error)

        helpers = [threading.Thread(target=work, daemon=True) for _ in range(1, threads)]
        self.busy = True
        with contextlib.suppress(RuntimeError):  # where no more threads may be had, fewer do
            for helper in helpers:
                helper.start()
        work()
        for helper in filter(threading.Thread.is_alive, helpers):
            helper.join()
        self.busy = False
        for failure in failures:
            raise failure
        return results


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

    def layer(self, name: str, digest: str) -> str:
        """Return the path of a layer link's folder."""
        return self.place(name, '_layers', digest.replace(':', '/'))

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

    def require_missing(self, path: str) -> None:
        """Raise OSError if `path` is only missing because a symbolic link leads nowhere."""
        while not os.path.lexists(path):
            path = os.path.dirname(path)
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
        flags = os.O_RDONLY | os.O_NONBLOCK
        try:
            descriptor = os.open(path, flags | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            self.require_missing(path)
            return None
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            self.links.add(path)
            descriptor = os.open(path, flags)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, 'it is no regular file', path)
            return os.read(descriptor, min(limit, status.st_size + 1)), status.st_mtime
        finally:
            os.close(descriptor)

    def read_link(self, folder: str) -> Tuple[Optional[str], Optional[float]]:
        """Return the digest in `folder`/link and its mtime: '' for no digest, None if missing."""
        found = self.read(folder + '/link', 200)
        if not found:
            return None, None
        text = found[0].decode('ascii', 'replace')
        return text if is_digest(text) else '', found[1]

    def link(self, top: str, digest: str) -> Optional[str]:
        """Return the blob of a digest's link in `top`: '' for an unknown one, None for no link.

        A sha256 link is named after its blob and never opened; of another algorithm it holds that.
        """
        algorithm, _, digits = digest.partition(':')
        folder = f'{top}/{algorithm}/{digits}'
        try:
            if stat.S_ISLNK(os.lstat(folder + '/link').st_mode):
                self.links.add(folder + '/link')
        except FileNotFoundError:
            self.require_missing(folder)
            return None
        return digest if algorithm == 'sha256' else self.read_link(folder)[0]

    def digests_in(self, top: str, sought: Optional[Set[str]] = None) -> List[str]:
        """Return the digests with a folder `<alg>/<hex>` in `top`, of sha256 those `sought`."""
        found: List[str] = []
        for algorithm in ALGORITHMS if self.exists(top) else ():
            folder, wanted = f'{top}/{algorithm}', sought if algorithm == 'sha256' else None
            if not self.exists(folder):
                continue
            if wanted is not None and len(wanted) <= FEW:
                found += [one for one in wanted if self.exists(f'{folder}/{one[7:]}')]
            else:
                listed = [f'{algorithm}:{entry.name}' for entry in self.entries(folder)]
                found += [sys.intern(one) for one in listed
                          if is_digest(one) and (wanted is None or one in wanted)]
        return found

    def links_in(self, top: str, digests: Optional[List[str]] = None) -> Dict[str, Optional[str]]:
        """Return link() of digests in `top`, by default of all that have a folder there."""
        digests = self.digests_in(top) if digests is None else digests
        return dict(zip(digests, self.workers.each(partial(self.link, top), digests)))

    def signatures(self, name: str, digest: str) -> Set[str]:
        """Return the blobs that a schema 1 manifest's signature links reference."""
        links = self.links_in(self.revision(name, digest) + '/signatures')
        return {blob for blob, link in links.items() if link is not None}

    def manifest(self, blob: Optional[str]) -> Manifest:
        """Return what the manifest that is stored as `blob` names."""
        if not blob:
            return Manifest(fault='its link is empty or no digest')
        try:
            content, _ = self.read(self.blob(blob) + '/data', MANIFEST_LIMIT + 1) or (None, 0)
        except OSError as error:
            return Manifest(fault=f'it cannot be read: {error.strerror}')
        algorithm, _, digits = blob.partition(':')
        if not content:
            return Manifest(fault='it is missing' if content is None else 'it is empty')
        if len(content) > MANIFEST_LIMIT:
            return Manifest(fault='it is larger than 4 MiB')
        if hashlib.new(algorithm, content).hexdigest() != digits:
            return Manifest(fault='its content does not match its digest')
        return parse_manifest(content)

    def repository_names(self) -> List[str]:
        """Return the names of all repositories, sorted: folders that hold what one holds."""
        found, todo = [], ['']
        while todo:
            listed = self.workers.each(lambda name: self.folders(self.repositories + name), todo,
                                       'Looking for repositories')
            found += [name[1:] for name, folders in zip(todo, listed)
                      if name and not set(PARTS).isdisjoint(folders)]
            todo = [f'{name}/{folder}' for name, folders in zip(todo, listed) for folder in folders
                    if folder not in PARTS + COPIES and (name or not is_own(folder))
                    and not self.is_own_ancestor(f'{self.repositories}{name}/{folder}')]
        return sorted(found)

    def is_own_ancestor(self, path: str) -> bool:
        """Tell whether a folder below `repositories` is one of those that it lies in."""
        above = path
        while path in self.links and above != self.repositories:
            above = os.path.dirname(above)
            if os.path.samefile(path, above):
                return True
        return False

    def read_tag(self, name: str, tag: str) -> Optional[Tag]:
        """Return a tag; None for a folder with neither a link nor a history, which is none."""
        current, index = (self.place(name, '_manifests/tags', tag, part)
                          for part in ('current', 'index'))
        try:
            self.exists(current)
            digest, pushed = self.read_link(current)
            entries = self.digests_in(index)
            older = [entry for entry in entries if entry != digest]
            links = self.links_in(index, older) if older else {}
        except OSError as error:
            return Tag('', fault=f'it cannot be read: {error.strerror}')
        history = tuple(entry for entry in entries if links.get(entry, digest) is not None)
        if digest is None and not history:
            return None
        return Tag(digest or '', history, tuple(entries), pushed)

    def repository(self, name: str) -> Repository:
        """Return the repository `name`, with all of its manifests."""
        self.exists(self.place(name, '_manifests'))
        top = self.place(name, '_manifests/tags')
        folders = list(filter(is_tag, self.folders(top))) if self.exists(top) else []
        found = dict(zip(folders, self.workers.each(partial(self.read_tag, name), folders)))
        tags = {tag: read for tag, read in found.items() if read}
        revisions = self.links_in(self.place(name, '_manifests/revisions'))
        layers = self.links_in(self.place(name, '_layers'))
        linked = [digest for digest, blob in revisions.items() if blob is not None]
        manifests = dict(zip(linked, self.workers.each(self.manifest, map(revisions.get, linked))))
        # Registry 2.1.0 linked manifests as layers, and every 2.x still serves them from there.
        todo = [digest for tag in tags.values() for digest in (tag.digest, *tag.history)]
        for manifest in manifests.values():
            todo += manifest.names if manifest.is_index else ()
        met = set(manifests)
        for digest in todo:  # grows as it goes
            if digest not in met and layers.get(digest) is not None:
                met.add(digest)
                manifest = self.manifest(layers[digest])
                if manifest.fault not in ('it is no JSON object', 'it is larger than 4 MiB'):
                    manifests[digest] = manifest
                    todo += manifest.names if manifest.is_index else ()
        return Repository(name, tags, [tag for tag in found if tag not in tags], revisions, layers,
                          manifests, self.folders(self.place(name, '_uploads')),
                          referrers_of(tags, manifests))

    def linked(self, blobs: Iterable[str], going: Mapping[str, List[Reference]] = {}) -> Set[str]:
        """Return those of `blobs` that a repository links, other than by a link that is `going`."""
        sought = set(blobs)

        def links(name: str) -> Set[str]:
            self.exists(self.place(name, '_manifests/tags'))  # which may lead to those of another
            gone, found = set(going.get(name, ())), set()  # type: Set[Reference], Set[str]
            if Reference('repository', name) in gone:
                return found
            for kind, place in (('layer', '_layers'), ('manifest', '_manifests/revisions')):
                top = self.place(name, place)
                links = self.links_in(top, self.digests_in(top, sought))
                found.update(blob for digest, blob in links.items() if blob in sought
                             and Reference(kind, name, digest) not in gone)
            return found

        if not sought:
            return set()
        return set().union(sought & self.kept_links(), *self.workers.each(
            links, self.repository_names(), 'Looking for links'))

    def kept_links(self) -> Set[str]:
        """Return the blobs of the links that no run could put back: those count like others."""
        tops = [entry.path for entry in self.entries(self.repositories)
                if is_own(entry.name, 'kept') and entry.is_dir()]
        kept = Store(self.v2, self.workers)  # whose symbolic links are no matter
        places = [f'{folder}/{part}' for folder in kept.folders_below(tops)
                  for part in ('_layers', '_manifests/revisions')]
        return {blob for place in places for blob in kept.links_in(place).values() if blob}

    def folders_below(self, tops: List[str]) -> List[str]:
        """Return all folders below `tops`, but for what tags, links and uploads hold."""
        found: List[str] = []
        while tops:
            listed = [entry.path for entries in self.workers.each(self.entries, tops)
                      for entry in entries if entry.is_dir(follow_symlinks=False)]
            found += listed
            tops = [path for path in listed if not re.fullmatch(LEAF, path)]
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
        top = self.place(name, below)
        return any(self.link(top, digest) is not None for digest in self.digests_in(top))

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
    environment = dict(line.partition('=')[::2] for line in peek(proc + '/environ').split('\0'))
    told = '\n'.join(name.lower().replace('_', ': ') + ': ' + value
                     for name, value in environment.items() if name.startswith('REGISTRY_'))
    files = [word for word in words if not word.startswith('-')]
    file = files[0] if files else environment.get('REGISTRY_CONFIGURATION_PATH')
    text = re.sub(r'(?m)(^|\s)#.*', '', peek(seen(proc, file)) if file else '')
    if {'REGISTRY_STORAGE', 'REGISTRY_STORAGE_MAINTENANCE'} & environment.keys():
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
        with contextlib.suppress(OSError, ValueError):  # no symbolic link
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


def values(key: str, told: Iterable[str]) -> Set[str]:
    """Return the values that `key` may have in the first of the texts that names it."""
    for text in told:
        lines = re.findall(key + r'[\'"]?\s*:\s*(?:[>|]-?\s*)?(\S.*)', text)
        if lines:
            return {value.strip('\'" \t\r') for line in lines
                    for value in (line, re.split('[,}]', line)[0])}
    return set()


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

Standing = Set[Tuple[str, str]]  # tags with their digests, and manifests, each with ''


class Fault(RegistryCleanerError):
    """What the guard found in a plan."""

    def __init__(self, what: str) -> None:
        super().__init__(f'This is a fault in this program: {what}. Nothing was deleted. Please '
                         'report it, with the command and the output of the same with -n -v')


def guard(store: Store, request: Request, plan: Plan) -> Dict[str, List[Standing]]:
    """Look at the disk again, and raise RegistryCleanerError unless `plan` harms nothing there.

    Returns what stays of each repository in the plan, and what there is.
    """
    names = set(store.repository_names())
    refuse_unsafe_ground(store, names, request.garbage)
    for one in plan.references:
        kind = KINDS.get(one.kind)
        if not (kind and re.fullmatch(kind.item, one.item) and one.repository in names
                and (is_tag(one.tag) if one.kind == 'entry' else not one.tag)):
            raise Fault(f"'{one}' is no place in the store")
    for path in plan.folders:
        if path != os.path.normpath(path) or not path.startswith(
                (store.repositories + '/', store.blobs + '/')):
            raise Fault(f"'{path}' is no folder of the store")
    if not all(map(is_digest, plan.blobs)):
        raise Fault('what is no digest would go as a blob')
    images = words_for(request.images or (Image('*'),) * request.untagged, names)
    excluded = words_for(request.excluded, names, True)
    going = by_repository(plan.references)

    def look_again(name: str) -> List[Standing]:
        before, leaving = store.repository(name), set(going[name])
        after = what_stays(before, leaving, images[name], excluded[name], request.untagged)
        require_unneeded(before, after, leaving)
        return [standing(after), standing(before)]

    staying = dict(zip(going, store.workers.each(look_again, going, 'Looking again', large=True)))
    links = [one.item for one in plan.references if one.kind in ('layer', 'manifest')]
    linked = store.linked([*plan.blobs, *links], going)
    for path, other in second_names(store, names, going):
        raise RegistryCleanerError(
            f"'{path}' and '{other}' are the same by a symbolic link or a mount. Nothing was "
            'deleted. Replace one by a copy, or remove it')
    for blob in linked & plan.blobs.keys():
        raise Fault(f'{blob} would go, and a repository has a link to it')
    return staying


def what_stays(before: Repository, going: Set[Reference], images: Sequence[Image],
               excluded: Sequence[Image], untagged: bool) -> Repository:
    """Rule 1: only what was named goes.  Returns what stays.

    `images` and `excluded` are words for the repository; those of -u name what is `untagged`.
    """
    name = before.name
    tags = {tag: read for tag, read in before.tags.items() if ('tag', name, tag, '') not in going}
    layers = {digest: blob for digest, blob in before.layers.items()
              if ('layer', name, digest, '') not in going}
    manifests = {digest: manifest for digest, manifest in before.manifests.items() if (
        'layer' if before.revisions.get(digest) is None else 'manifest', name, digest, ''
    ) not in going}
    leaving = before.manifests.keys() - manifests.keys()
    spared = named_tags(excluded, before, excluding=True)
    named = set() if untagged else named_tags(images, before)
    for tag in before.tags.keys() - tags.keys():
        if tag in spared or tag not in named and before.referrers.get(tag) not in leaving:
            raise Fault(f'tag {name}:{tag} would go, and no word names it')
    if leaving and not images or any(
            image.whole or not image.tag and image.digest in leaving for image in excluded):
        raise Fault(f'something of {name} would go that no word names, or that is excluded')
    if ('repository', name, '', '') in going:
        uploads = [one for one in before.uploads if ('upload', name, one, '') not in going]
        if (tags or manifests or uploads) and (
                untagged or excluded or not any(image.whole for image in images)):
            raise Fault(f'repository {name} would go, and no word names it')
        return Repository(name, {}, [], {}, {}, {}, [], {})
    return before._replace(tags=tags, layers=layers, manifests=manifests)


def require_unneeded(before: Repository, after: Repository, going: Set[Reference]) -> None:
    """Rule 2: what stays of a repository names nothing that goes."""
    name, gone = before.name, {one.item for one in going if one.kind in ('manifest', 'layer')}
    lost = gone & before.manifests.keys()
    for digest, manifest in after.manifests.items():
        if manifest.fault or not gone.isdisjoint(manifest.names):
            raise Fault(f'{name}@{digest} stays, and would lose what it names')
    for tag, (digest, history, _, _, fault) in after.tags.items():
        reached = {digest} if digest else set(history) or before.manifests.keys()
        if fault or reached & lost or not digest and any(
                ('entry', name, entry, tag) in going for entry in history):
            raise Fault(f'tag {name}:{tag} stays, and would lose its manifest')
    for digest, blob in after.layers.items():
        if blob == '' or ('layer', name, blob, '') in going:
            raise Fault(f'{name}@{digest} stays, and would lose the link that it stands for')
    for item in [one.item for one in going if one.kind == 'leftover']:
        *_, above, last = item.split('/')
        links = before.layers if item.startswith('_layers') else before.revisions
        if above == 'tags' and last in before.tags or links.get(f'{above}:{last}') is not None:
            raise Fault(f'{name}/{item} would go, and has a link')


def standing(repository: Repository) -> Standing:
    """Return the tags and the manifests of a repository."""
    return {(tag, read.digest) for tag, read in repository.tags.items()}.union(
        (digest, '') for digest in repository.manifests)


def second_names(store: Store, names: Iterable[str], touched: Iterable[str]
                 ) -> Iterator[Tuple[str, str]]:
    """Yield paths of the same place, by a mount or by a symbolic link that was met on the way.

    Of two repositories that are the same, one is `touched`.
    """
    met: Dict[Tuple[int, int], str] = {}
    for name, status in zip(names, store.workers.each(os.stat, map(store.place, names))):
        other = met.setdefault((status.st_dev, status.st_ino), name)
        if other != name and not {name, other}.isdisjoint(touched):
            yield store.place(other), store.place(name)
    inner = {link for link in store.links if set(PARTS) & set(link[len(store.v2):].split('/'))}
    places = tuple(store.place(name) + '/' for name in touched)
    known = {path: path for top in (store.v2, store.repositories, store.blobs)
             for path in (top, os.path.realpath(top))}
    known.update((os.path.realpath(link), link) for link in sorted(store.links)
                 if link not in inner or link.startswith(places))
    for link in sorted(inner):
        first = os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(link)))
        for target in (first, os.path.realpath(link)):
            above = target
            while above and known.get(above, link) == link:
                above = above.rpartition('/')[0]
            if above:
                yield link, known[above] + target[len(above):]


# -- The removal: set aside, put back, commit, free -----------------------------------------------

class Removal:
    """Removes references and blobs: the one place that changes the store."""

    def __init__(self, store: Store, signals: Signals) -> None:
        self.store, self.signals, self.account = store, signals, Account()
        self.own = f'{store.repositories}/{OWN}'  # begins the paths of the folders of its own
        self.aside, self.kept = self.own + 'aside', free_name(self.own + 'kept')

    def recover(self) -> None:
        """Put back what an interrupted run had set aside, or finish what it had committed."""
        self.signals.at_once = False
        remove(self.own + 'probe')
        if os.path.lexists(self.aside):
            log.warning('An earlier run was interrupted before anything was final. What it had set '
                        'aside is put back')
            self.put_back_all()
        gone = [one.path for one in self.store.entries(self.store.repositories)
                if is_own(one.name, 'gone') and one.is_dir(follow_symlinks=False)]
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
        going = by_repository(plan.references)
        real = bool(going) and self.renames_are_moves()
        self.signals.at_once = False
        try:
            moved = self.store.workers.each(
                lambda name: real and self.set_aside(name, going[name], *staying[name]), going,
                'Setting aside')
            gone = self.commit()
        finally:
            if not self.account.final:
                self.put_back_all()
        if not self.account.final:
            return
        left = [name for name, is_aside in zip(going, moved) if not is_aside]
        if left:
            log.warning('There is no room or no way to set %d repositories aside: what goes of '
                        'them is removed at once, without a way back', len(left))
            self.store.workers.each(
                lambda name: self.remove_now(name, going[name], staying[name][1]), left)
            sync(self.store.repositories)
        self.free(gone, plan.blobs)
        for path in plan.folders:
            self.attempt(self.prune, path)

    def set_aside(self, name: str, going: Sequence[Reference], staying: Standing, seen: Standing
                  ) -> bool:
        """Move what goes of a repository aside, all or nothing; False if only removing does it."""
        way_back, reason = True, PUSHED
        try:
            for place in PARTS if going[-1].kind == 'repository' else [one.place for one in going]:
                if self.signals.number:
                    return True
                source = self.store.place(name, place)
                if os.path.lexists(source):
                    move(source, f'{self.aside}/{name}/{place}')
            if (self.standing(self.store.place(name)) <= staying
                    and self.standing(f'{self.aside}/{name}') <= seen):
                return True
        except OSError as error:
            way_back = error.errno not in NO_WAY_BACK
            reason = f"cannot set aside '{error.filename}': {error.strerror}"
        is_back = self.put_back_repository(name)
        if way_back or not is_back:
            self.account.skipped[name] = reason + (
                '. It was left as it was' if is_back else '. What could not be put back is kept')
        return way_back or not is_back

    def standing(self, folder: str) -> Standing:
        """Return the tags and the manifests in a repository's folder.

        A symbolic link that was moved may lead nowhere: nothing can be pushed to what is there.
        """
        tags, revisions = folder + '/_manifests/tags', folder + '/_manifests/revisions'
        links = self.store.links_in(revisions) if os.path.exists(revisions) else {}
        found = {(digest, '') for digest, blob in links.items() if blob is not None}
        for entry in self.store.entries(tags) if os.path.exists(tags) else ():
            if is_tag(entry.name) and entry.is_dir():
                try:
                    digest = self.store.read_link(entry.path + '/current')[0]
                except OSError:
                    digest = ''
                if digest is not None:
                    found.add((entry.name, digest))
        return found

    def put_back_all(self) -> None:
        """Put back all that is aside; what cannot go back is kept, and protects its blobs."""
        self.put_back(self.aside, self.store.repositories)
        if os.path.lexists(self.aside):
            os.rename(self.aside, free_name(self.own + 'kept'))

    def put_back_repository(self, name: str) -> bool:
        """Put back what is aside of a repository; tell whether nothing had to be kept."""
        done = True
        for part in sorted(PARTS):
            source = f'{self.aside}/{name}/{part}'
            done = done and self.put_back(source, self.store.place(name, part))
            if not done and os.path.lexists(source):
                move(source, f'{self.kept}/{name}/{part}')  # which is never committed
        return done

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
            elif os.path.isfile(place) and not os.path.isdir(source):
                os.unlink(source)
            elif os.path.islink(source) or not (os.path.isdir(source) and os.path.isdir(place)):
                raise OSError(errno.EEXIST, 'something else has this name', place)
            else:
                # A repository before those that lie below it.
                listed = sorted(os.listdir(source))
                for name in sorted(listed, key=lambda name: name not in PARTS):
                    below = f'{source}/{name}'
                    if done or set(PARTS).isdisjoint(below[len(self.aside):].split('/')):
                        done = self.put_back(below, f'{place}/{name}') and done
                with contextlib.suppress(OSError):
                    os.rmdir(source)
            return done
        except (OSError, RecursionError) as error:
            self.account.fail(error, place)
            return False

    def commit(self) -> List[str]:
        """Make the deletion final, unless interrupted; return where what was aside is now."""
        moved, gone = os.path.lexists(self.aside), free_name(self.own + 'gone')
        if moved:
            sync(self.store.repositories)
        if self.signals.number:
            return []
        if moved:
            os.rename(self.aside, gone)
            sync(self.store.repositories, only_itself=True)
        self.account.final = True
        return [gone] * moved

    def renames_are_moves(self) -> bool:
        """Tell whether a folder can be set aside: on a mounted bucket, renames copy and merge."""
        probe = self.own + 'probe'
        try:
            os.makedirs(probe + '/full/folder')
            os.mkdir(probe + '/empty')
            os.rename(probe + '/empty', probe + '/full')
            return False
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, *NO_WAY_BACK):
                raise
            return error.errno not in NO_WAY_BACK
        finally:
            with contextlib.suppress(OSError):
                remove(probe)

    def remove_now(self, name: str, going: Sequence[Reference], seen: Standing) -> None:
        """Remove what goes of a repository, in order, and stop where something cannot be."""
        if not self.standing(self.store.place(name)) <= seen:
            self.account.skipped[name] = PUSHED + '. It was left as it was'
            return
        self.account.begun = True
        for number, one in enumerate(going):
            for place in PARTS if one.kind == 'repository' else [one.place]:
                if not self.attempt(remove, self.store.place(name, place)):
                    self.account.left.update(going[number:])
                    return
        with contextlib.suppress(OSError):  # most often it holds more
            os.rmdir(self.store.place(name))

    def free(self, folders: List[str], blobs: Optional[Iterable[str]] = None) -> None:
        """Delete the `blobs`, by default those of the links in `folders`, that nothing links.

        Then these folders, what an interrupted run has left among them.
        """
        below = self.store.folders_below(folders)
        leaves = [path for path in below if re.fullmatch(LEAF, path)]
        candidates = self.store.blobs_of(leaves) if blobs is None else set(blobs)
        for name in {*self.account.skipped, *(one.repository for one in self.account.left)}:
            for digest, manifest in self.store.repository(name).manifests.items():
                candidates -= self.store.signatures(name, digest) | manifest.names.keys()
        unlinked = sorted(candidates - self.store.linked(candidates))
        if not all(self.store.workers.each(partial(self.attempt, self.delete_blob),
                                           map(self.store.blob, unlinked), 'Deleting blobs')):
            return  # the next run finds what is left by the links
        self.store.workers.each(partial(self.attempt, remove), leaves, 'Removing links')
        for folder in folders:
            self.attempt(shutil.rmtree, folder)
        emptied = {os.path.dirname(path) for path in set(below).difference(leaves)
                   if os.path.basename(path) in PARTS}
        for path in sorted(emptied.difference(folders), reverse=True):
            name = path[len(self.own):].partition('/')[2]
            with contextlib.suppress(OSError):  # others lie below it, or it is a mount point
                os.rmdir(self.store.place(name))

    def attempt(self, change: Callable[[str], Any], path: str) -> bool:
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

    def delete_blob(self, path: str) -> None:
        """Delete a blob, if it is stored."""
        algorithm, _, digits = path.split('/')[-3:]
        digest = f'{algorithm}:{digits}'
        size = self.store.size(digest)
        try:
            if size is not None:
                remove(path, 'data')
        finally:
            if size is not None and not os.path.lexists(path + '/data'):
                self.account.blobs[digest] = size

    def prune(self, path: str) -> None:
        """Remove an empty folder, unless a repository with a tag or a manifest needs it."""
        part = re.fullmatch('(?s)(.*)/(_layers|_manifests/[^/]*)', path)
        if part and any(self.store.entries(f'{part.group(1)}/_manifests/{below}')
                        for below in ('tags', 'revisions')):
            return
        try:
            os.rmdir(path)
            self.account.folders.append(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                raise


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
    name, number = path, 1
    while os.path.lexists(name):
        number += 1
        name = f'{path}.{number}'
    return name


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
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RegistryCleanerError(
                f"Another run is at work on '{v2}'. Nothing was deleted. Wait for its end")
        except OSError as error:  # a network file system may be unable to
            log.warning("Cannot lock '%s': %s. Make sure that no other run is at work on it", v2,
                        error.strerror)
        refuse_running_registry(v2, request.read_only)
        yield Removal(Store(v2, workers), signals)
    finally:
        os.close(descriptor)


def refuse_unsafe_ground(store: Store, names: Iterable[str], garbage: bool) -> None:
    """Refuse a store whose tags are elsewhere, or which is only half there."""
    def linked(*tops: str) -> bool:
        return any(store.has_links(name, top) for name in names for top in tops)

    mark = os.path.dirname(store.v2) + '/lockfiles/database-in-use'
    if os.path.lexists(mark):
        raise RegistryCleanerError(
            f"'{mark}' says that this registry (GitLab) keeps its tags in a database: the disk "
            'does not tell what is in use. Nothing was deleted. Delete images with that registry')
    if not store.holds_a_blob():
        if linked('_manifests/revisions'):
            raise RegistryCleanerError(
                f"There are images in '{store.repositories}', but '{store.blobs}' holds no blob at "
                'all: is a disk not mounted? Nothing was deleted. If the blobs are really lost, '
                f'delete the folders in {store.repositories} by hand')
    elif garbage and not linked('_manifests/revisions', '_layers'):
        raise RegistryCleanerError(
            f"'{store.blobs}' holds blobs, but no repository in '{store.repositories}' links to "
            'any: is a disk not mounted? Nothing was deleted. If they are really garbage, delete '
            f'the folders in {store.blobs} by hand')


def refuse_running_registry(v2: str, read_only: bool) -> None:
    """Refuse when a registry on this machine works on the store, unless in read-only mode."""
    for number in filter(str.isdigit, os.listdir('/proc') if os.path.isdir('/proc') else ()):
        proc = '/proc/' + number
        words = peek(proc + '/cmdline').rstrip('\0').split('\0')
        if os.path.basename(''.join(words[1:2])) in REGISTRIES:
            del words[0]  # of an emulator
        command = words[1:2] in (['serve'], ['garbage-collect'])
        if not (command or os.path.basename(words[0]) in REGISTRIES and any(
                word.endswith(('.yml', '.yaml')) for word in words[1:])):
            continue
        process = f"Process {number} ({' '.join(words)})"
        try:
            told = settings(proc, words[2 if command else 1:])
            roots = values('rootdirectory', told) or ['/var/lib/registry']
            if not any(same_folder(seen(proc, one) + '/docker/registry/v2', v2) for one in roots):
                continue
        except PermissionError:
            raise RegistryCleanerError(f'{process} looks like a registry, and cannot be looked '
                                       'into. Nothing was deleted. Run as root')
        modes = [mode for mode in map(read_only_mode, told) if mode is not None]
        remedy = ''
        if any(any(values('remoteurl', [text])) for text in told):
            remedy = ': it is a cache, which writes on every pull'
        elif not read_only or words[1:2] == ['garbage-collect']:
            remedy = ', or restart it in read-only mode and pass --read-only-registry'
        elif modes[:1] != [True]:
            remedy = (': it does not run in read-only mode (storage: maintenance: readonly: '
                      'enabled: true)')
        if remedy:
            raise RegistryCleanerError(f'{process} is a registry at work on this data. Nothing '
                                       f'was deleted. Stop it first{remedy}')


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
    numbers, prerelease = match.groups()
    release = [int(number) for number in numbers.split('.')]
    parts = [(0, int(part), '') if part.isdigit() else (1, 0, part)
             for part in (prerelease or '').split('.')]
    return release + [0] * (4 - len(release)), prerelease is None, parts


def parse_date(text: str) -> Optional[float]:
    """Return the seconds of an ISO 8601 date, None if it is none or from before all images.

    Raises ValueError for one that no calendar has.
    """
    match = re.fullmatch(r'(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)', text)
    if not match:
        return None
    from datetime import datetime  # few runs go by such dates
    date, fraction, zone = match.groups()
    zone = zone.replace('Z', '+0000').replace(':', '')
    when = datetime.strptime(date + zone, '%Y-%m-%dT%H:%M:%S%z').timestamp()
    return when + float(fraction or 0) if when >= FIRST_IMAGE else None


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


def times_of(store: Store, repository: Repository, tags: Iterable[str], by: str) -> Dict[str, Any]:
    """Return the version of each tag, or its time (an index has its newest child's), or None."""
    read, manifests = repository.tags, repository.manifests
    if by != 'created':
        return {tag: version_of(tag) if by == 'version' else read[tag].pushed for tag in tags}
    names = {digest: manifest.names for digest, manifest in manifests.items()}
    known: Dict[str, Optional[float]] = {}
    dates: Dict[str, Optional[float]] = {}
    for digest in {read[tag].digest for tag in tags}:
        reached = walk([digest], names, manifests.keys())
        known.update((one, made(store, repository, one)) for one in reached - known.keys())
        dates[digest] = max(filter(None, map(known.get, reached)), default=None)
    return {tag: dates[read[tag].digest] for tag in tags}


def blob_of(repository: Repository, digest: str) -> Optional[str]:
    """Return the blob that the repository's link of `digest` stands for."""
    return repository.revisions.get(digest) or repository.layers.get(digest)


def span(seconds: float) -> str:
    """Return a length of time in words."""
    for unit, length in (('day', 86400), ('hour', 3600), ('minute', 60)):
        if seconds >= length:
            return count(int(seconds // length), unit)
    return 'a moment'


def why_kept(when: Any, newest: List[Any], request: Request) -> str:
    """Return why the rules keep a tag of the time or version `when`, '' if they do not.

    `newest` are the times of the tags beside which it has to be one of the last.
    """
    if when is None:
        return 'it has no ' + ('version' if request.by == 'version' else 'date')
    said = '' if request.by == 'version' else f'{request.by} {span(request.now - when)} ago: '
    last = request.keep_last
    if last and (len(newest) < last or when >= newest[last - 1]):
        return f'{said}one of the last {last}'
    if request.older_than is not None and when >= request.now - request.older_than:
        return f'{said}not older than {span(request.older_than)}'
    return ''


def judged_tags(store: Store, repository: Repository, selected: List[Set[str]], request: Request
                ) -> Dict[str, str]:
    """Return why the rules keep each tag that words have `selected`; '': it goes.

    A tie at the cut is kept, and what one word keeps may go by another.
    """
    judged: Dict[str, str] = {}
    times = times_of(store, repository, set().union(*selected), request.by)
    for found in selected:
        # What cannot be pulled takes the place of nothing that can.
        dated = [tag for tag in found if times[tag] is not None]
        ranked = [tag for tag in dated if repository.tags[tag].digest in repository.manifests]
        newest = sorted((times[tag] for tag in ranked or dated), reverse=True)
        for tag in found:
            if judged.get(tag) != '':
                judged[tag] = why_kept(times[tag], newest, request)
    return judged


# -- What reaches what in a repository ------------------------------------------------------------

ANYTHING = '*'  # the node of whatever a broken tag without a history may have stood for


def node(tag: str) -> str:
    """Return the node that stands for a tag among the digests of its repository."""
    return '/' + tag


def layer(digest: str) -> str:
    """Return the node that stands for a layer link."""
    return '+' + digest


def tags_in(nodes: Iterable[str]) -> Set[str]:
    """Return the tags that some of `nodes` stand for."""
    return {one[1:] for one in nodes if one[0] == '/'}


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


def inverse(edges: Mapping[str, Iterable[str]]) -> Dict[str, List[str]]:
    """Return the same edges the other way round."""
    found: Dict[str, List[str]] = {}
    for one, others in edges.items():
        for other in others:
            found.setdefault(other, []).append(one)
    return found


class Graph:
    """What each tag, manifest and layer link of a repository needs."""

    def __init__(self, repository: Repository) -> None:
        manifests, tags = repository.manifests, repository.tags
        self.layers = layers = {
            digest: blob for digest, blob in repository.layers.items() if blob is not None}
        self.edges: Dict[str, List[str]] = {
            digest: [child for child in manifest.names if child in manifests] + [
                layer(one) for one in (digest, *manifest.names) if one in layers]
            for digest, manifest in manifests.items()}
        # A link under another algorithm needs the one under sha256, which no manifest names.
        for digest, blob in layers.items():
            self.edges[layer(digest)] = [layer(blob)] if blob != digest and blob in layers else []
        belongs = [(subject, digest) for digest, manifest in manifests.items()
                   for subject in manifest.subjects]
        belongs += [(image, node(tag)) for tag, image in repository.referrers.items()]
        for image, one in belongs:
            if image in manifests:
                self.edges[image].append(one)
        for tag, (digest, history, *_) in tags.items():
            known = [one for one in ([digest] if digest else history) if one in manifests]
            self.edges[node(tag)] = known if known or digest else [ANYTHING]
        if [ANYTHING] in self.edges.values():
            self.edges[ANYTHING] = list(manifests)
        self.reached_by = inverse(self.edges)
        self.pointing = inverse({node(tag): [read.digest] for tag, read in tags.items()})
        self.roots = set(map(node, tags)) - self.reached_by.keys()  # no image's referrer tags

    def loss(self, named: Set[str], seeds: Iterable[str], spared: AbstractSet[str]) -> Set[str]:
        """Return the nodes that go with the `named` ones: those that only these reach, or `seeds`.

        `seeds` are what the named ones reach or reached.  Where a tag that stays points at a node
        it is not looked any further, so the cost is that of what goes.
        """
        inside, met = set(), set()  # type: Set[str], Set[str]
        todo = [*named, *seeds]
        while todo:
            one = todo.pop()
            if one not in met:
                met.add(one)
                if one in named or not (one in spared or any(
                        tag in self.roots and tag not in named
                        for tag in self.pointing.get(one, ()))):
                    inside.add(one)
                    todo.extend(self.edges[one] if one != ANYTHING else ())  # nobody knows it
        entered = [one for one in inside - named
                   if any(other not in inside for other in self.reached_by.get(one, ()))]
        return inside - walk(entered, self.edges, inside - named)


def parents_first(digests: Iterable[str], manifests: Mapping[str, Manifest]) -> List[str]:
    """Return these of the `manifests` in an order that puts each index before its children."""
    ordered: Dict[str, None] = {}  # children first
    todo = sorted(digests, reverse=True)
    going = set(todo)
    while todo:
        children = [] if todo[-1] in ordered else [
            child for child in manifests[todo[-1]].names if child in going and child not in ordered]
        if not children:
            ordered[todo.pop()] = None
        todo += children
    return list(ordered)[::-1]


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
    if image.tag in repository.no_tags and not image.digest:
        return True
    return bool(named_tags([image], repository, excluding=True))


class Judge:
    """Decides what a repository loses.  May be asked again: that costs what goes, no more."""

    def __init__(self, store: Store, repository: Repository) -> None:
        self.store, self.repository, self.name = store, repository, repository.name
        self.tags, self.manifests = repository.tags, repository.manifests
        self.links = {'layer': repository.layers, 'manifest': repository.revisions}
        self.graph = Graph(repository)
        self.linked = self.graph.layers
        self.entered = inverse({tag: read.entries for tag, read in self.tags.items()})
        self.faults = {digest: manifest.fault for digest, manifest in self.manifests.items()
                       if manifest.fault}
        self.faults.update((node(tag), read.fault) for tag, read in self.tags.items() if read.fault)
        self.faults.update((layer(digest), 'its layer link cannot be read')
                           for digest, blob in self.linked.items() if not blob)
        self.ordinary = len(self.tags.keys() - repository.referrers.keys())

    def image(self, one: str) -> str:
        """Return the word for what a node stands for."""
        return self.name + (f':{one[1:]}' if one[0] == '/' else '@' + one.lstrip('+'))

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
        if wish.request.garbage:
            self.find_used(verdict)
        return verdict

    def spared_by(self, wish: Wish) -> Set[str]:
        """Return the nodes that exclusions name."""
        tags = named_tags(wish.excluded, self.repository, excluding=True)
        return self.digests_in(wish.excluded).union(map(node, tags))

    def digests_in(self, images: Iterable[Image]) -> Set[str]:
        """Return the manifests that these words name by digest alone."""
        return {image.digest for image in images
                if image.digest in self.manifests and not image.tag}

    def stood_for(self, tags: Iterable[str]) -> List[str]:
        """Return the manifests that `tags` point at, or once did."""
        return [digest for tag in tags for digest in (self.tags[tag].digest,
                                                      *self.tags[tag].history)
                if digest in self.manifests]

    def choose(self, wish: Wish, verdict: Verdict, terse: bool) -> None:
        """Add to `verdict` what goes of a repository that is not excluded."""
        request, spared = wish.request, self.spared_by(wish)
        whole = wish.bare and not request.untagged and not spared
        asked, wanted = self.asked(wish, spared, verdict)
        named = wanted.union(map(node, asked), *(
            self.graph.pointing.get(digest, ()) for digest in wanted))
        seeds = list(self.manifests) if wish.bare else self.stood_for(asked)
        if request.untagged and seeds and not self.ordinary:
            seeds.clear()
            verdict.warnings.append(
                f"Repository '{self.name}' has manifests and no tag, and -u leaves it alone: its "
                'images may be used by digest, or their tags kept in a database. To delete it: '
                + delete_command(self.name))
        if request.untagged:
            spared.update(digest for digest in seeds if is_young(
                self.store.revision(self.name, digest) + '/link', request))
        unused: List[str] = []
        if request.garbage:
            unused = [one for one in map(layer, self.linked) if one not in self.graph.reached_by]
            spared.update(one for one in walk(unused, self.graph.edges) if is_young(
                f'{self.store.layer(self.name, one[1:])}/link', request))
        lost = self.graph.loss(named, seeds + unused, spared)
        former = set(self.stood_for(tags_in(lost - named))) - lost  # a signature's, signed again
        if former:
            seeds += former
            lost = self.graph.loss(named, seeds + unused, spared)
        self.refuse_kept_index(wanted, lost)
        if not terse:
            self.warn_of_broken_tags(named, seeds, spared, lost, verdict)
        self.refer(wish, lost, whole, verdict, terse)

    def asked(self, wish: Wish, spared: Set[str], verdict: Verdict) -> Tuple[Set[str], Set[str]]:
        """Return the tags and the manifests that words ask to delete, not what is `spared`."""
        request, kept = wish.request, tags_in(spared)
        if request.untagged:
            return set(), set()
        wanted = self.digests_in(wish.images) - walk(spared, self.graph.edges)
        if wish.bare:
            return tags_in(self.graph.roots) - kept, wanted
        selected = [named_tags([image], self.repository) - kept
                    for image in wish.images if image.tag]
        if (request.keep_last, request.older_than) == (None, None):
            return set().union(*selected), wanted
        judged = judged_tags(self.store, self.repository, selected, request)
        verdict.kept = [(f'{self.name}:{tag}', why) for tag, why in sorted(judged.items()) if why]
        times = [tag.pushed for tag in self.tags.values() if tag.pushed is not None]
        if judged and request.by == 'pushed' and (
                len(times) >= 5 and max(times) - min(times) <= COPIED):
            verdict.warnings.append(
                f'The tags of {self.name} were all pushed within ten minutes: was the store '
                'copied? --by created goes by the date of the images')
        return {tag for tag in judged if not judged[tag]}, wanted

    def refuse_kept_index(self, wanted: Set[str], lost: Set[str]) -> None:
        """Refuse to delete a manifest of its own when an index that stays contains it."""
        reached_by = self.graph.reached_by
        for digest in sorted(wanted):
            for parent in sorted(set(reached_by.get(digest, ())) - lost):
                if parent not in self.manifests:
                    tag = min(set(reached_by[parent]) - lost) if parent == ANYTHING else parent
                    raise RegistryCleanerError(
                        f'The broken tag {self.image(tag)}, which stays, may have stood for what '
                        'would be deleted. Nothing was deleted. Delete the tag too: '
                        f'-i {self.image(tag)}')
                if digest in self.manifests[parent].names:
                    tags = [f'{self.name}:{tag}'
                            for tag in sorted(tags_in(walk([parent], reached_by)))]
                    raise RegistryCleanerError(
                        f'{self.image(digest)} is part of the index {self.image(parent)} ('
                        f'{", ".join(tags) or "which has no tag"}), which stays. Nothing was '
                        'deleted. Delete the index too, or leave this manifest')

    def refer(self, wish: Wish, lost: Set[str], whole: bool, verdict: Verdict, terse: bool) -> None:
        """Add what goes with the nodes `lost`, and with -g what nothing uses.

        A repository that would lose something and keeps what is unreadable is left as it is.
        """
        garbage, name, repository = wish.request.garbage, self.name, self.repository
        leaving = tags_in(lost)
        layers = {one[1:] for one in lost if one[0] == '+'}
        nothing_left = len(leaving) == len(self.tags) and lost >= self.manifests.keys()
        uploads = {upload: measure_upload(self.store, self.store.place(name, '_uploads', upload))
                   for upload in (repository.uploads if garbage or nothing_left else ())}
        old = [upload for upload, (last, _) in sorted(uploads.items())
               if whole or last <= wish.request.now - UPLOAD_AGE]
        leftovers = self.leftovers(wish)
        gone = nothing_left and len(old) == len(repository.uploads) and bool(whole or (
            layers >= self.linked.keys() if garbage else lost or leftovers))
        entries = sorted(
            (tag, digest) for digest in {*lost, *(self.entered if garbage else ())}
            for tag in self.entered.get(digest, ()) if tag not in leaving and (
                digest in lost or self.tags[tag].digest and digest not in self.manifests))
        items: Dict[str, Iterable[str]] = {
            'tag': sorted(leaving),
            'manifest': [digest for digest in parents_first(
                lost & self.manifests.keys(), self.manifests)
                if repository.revisions.get(digest) is not None],
            'layer': sorted(self.linked if gone else layers,
                            key=lambda digest: (digest[:6] == 'sha256', digest)),
            'leftover': [] if gone else leftovers,
            'upload': old if garbage or gone else [],
            'repository': [''] * gone}
        references = [Reference(kind, name, item) for kind in items for item in items[kind]]
        references += [Reference('entry', name, digest, tag) for tag, digest in entries]
        faults = self.faults.keys() - lost
        if references and faults and not gone:
            verdict.skipped[name] = '' if terse else self.damage(sorted(faults))
        elif references:
            verdict.references = references
            verdict.unlinked = list(filter(None, (
                links.get(item) for kind, links in self.links.items() for item in items[kind])))
            verdict.uploads[name] = sum(uploads[upload][1] for upload in items['upload'])
            verdict.tags_left[name] = self.ordinary - len(leaving - repository.referrers.keys())
            if gone:
                verdict.owners[name] = '' if whole else max(self.tags, default='')
            else:
                verdict.warnings += [
                    f'What the unreadable manifest {self.image(one)} needed is unknown: its layers '
                    'stay until -g' for one in sorted(self.faults.keys() & self.manifests.keys())]

    def leftovers(self, wish: Wish) -> List[str]:
        """Return the folders whose link is gone: with -g all, else those of named tags."""
        garbage, no_tags = wish.request.garbage, self.repository.no_tags
        named = no_tags if garbage else [image.tag for image in wish.images]
        kept = {tag for image in wish.excluded for tag in matching(image.tag, no_tags)}
        gone = [('tag', tag) for tag in set(no_tags).intersection(named) - kept]
        gone += [(kind, digest) for kind, links in self.links.items() if garbage
                 for digest in links if links[digest] is None]
        return sorted(Reference(kind, self.name, item).place for kind, item in gone)

    def warn_of_broken_tags(self, named: Set[str], seeds: List[str], spared: Set[str],
                            lost: Set[str], verdict: Verdict) -> None:
        """Say when something is kept only because nobody knows what a broken tag stood for."""
        broken = set(self.graph.pointing.get('', ())) - lost - spared
        more = (self.graph.loss(named | broken, seeds, spared) - lost) & self.manifests.keys() if (
            broken and seeds) else ()
        if more:
            verdict.warnings.append(
                f'{len(more)} of {self.name} stay only since its tag {min(broken)[1:]} is broken, '
                'and nobody knows what it stood for. To delete the tag: '
                + delete_command(*map(self.image, sorted(broken))))

    def damage(self, faults: List[str]) -> str:
        """Return why the repository is left as it is: `faults`, nodes that stay; and what to do."""
        text = ''.join(f'\n  {self.image(one)}: {self.faults[one]}' for one in faults)
        # An index goes before what it contains.
        holders = inverse({digest: manifest.names for digest, manifest in self.manifests.items()})
        tops = [one for one in walk(faults, holders) if one not in holders and one[0] != '+']
        command = delete_command(*map(self.image, sorted(tops)) if tops else [self.name])
        return ('it is damaged, and was left as it is, since nobody knows what it needs:'
                f'{text}\n  Restore that, or delete it: {command}\n'
                f'  or leave it out of the run: -x {shlex.quote(self.name)}')

    def find_used(self, verdict: Verdict) -> None:
        """Add the blobs that stay linked, or that what stays names."""
        going = {(one.kind, one.item) for one in verdict.references}
        for kind, links in self.links.items():
            verdict.used.update(blob for digest, blob in links.items()
                                if blob and (kind, digest) not in going)
        for digest, manifest in self.manifests.items():
            if going.isdisjoint((kind, digest) for kind in self.links):
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
    images = words_for(request.images or everything, known)
    excluded, bare = words_for(request.excluded, known, True), request._replace(
        images=(), excluded=())
    return {name: Wish(name, images[name], excluded[name], bare) for name in names}


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
    free = stored(store, outcome.used | store.kept_links()) if request.garbage else (
        unlinked - store.linked(unlinked, by_repository(outcome.references)))
    blobs = {digest: size for digest, size in sizes_of(store, free).items()
             if digest in unlinked or not is_young(store.blob(digest) + '/data', request)}
    outcome.plan = Plan(outcome.references, blobs)
    if request.prune:
        outcome.plan = outcome.plan._replace(folders=empty_folders(store, outcome.plan))
    return outcome


def stored(store: Store, used: AbstractSet[str]) -> Set[str]:
    """Return the blobs that have a folder and are not `used`."""
    def blobs(folder: str) -> Set[str]:
        algorithm, two = folder.split('/')
        found = (f'{algorithm}:{entry.name}' for entry in store.entries(f'{store.blobs}/{folder}')
                 if entry.name.startswith(two))
        return {digest for digest in found if digest not in used and is_digest(digest)}

    return set().union(*store.workers.each(blobs, store.blob_folders(), 'Looking for blobs'))


def sizes_of(store: Store, blobs: Iterable[str]) -> Dict[str, int]:
    """Return the bytes that each of `blobs` frees, of those that are stored."""
    ordered = sorted(blobs)
    sizes = zip(ordered, store.workers.each(store.size, ordered, 'Measuring blobs'))
    return {digest: size for digest, size in sizes if size is not None}


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
    known = set(wishes)
    words = [image._replace(name=spelled(image.name, known, excluding))
             for images, excluding in ((request.images, False), (request.excluded, True))
             for image in images]
    unmatched = [word for word in words if word not in matched]
    missing = [word for word in unmatched if not is_pattern(word.tag) and (
        word.name in known or not is_pattern(word.name))]
    if missing:
        more = [f'and {len(missing) - 20} more'] * (len(missing) > 20)
        raise RegistryCleanerError('\n'.join(
            [missing_text(store, image, list(wishes)) for image in missing[:20]]
            + more + ['Nothing was deleted']))
    return [f"Nothing matches '{word}'" for word in unmatched]


def refuse_remove_all(store: Store, request: Request, verdict: Verdict, names: Iterable[str]
                      ) -> None:
    """Refuse when patterns would leave the registry without any tag."""
    known = set(names)
    patterns = any(is_pattern(image.tag) or spelled(image.name, known) not in known
                   for image in request.images)
    if request.remove_all or request.untagged or not patterns or any(
            verdict.tags_left.values()) or not any(
            one.kind in ('tag', 'manifest') for one in verdict.references):
        return
    unread = [name for name in names if name not in verdict.tags_left]
    if not any(is_tag(tag) and store.read_tag(name, tag) for name in unread
               for tag in store.folders(store.place(name, '_manifests/tags'))):
        number = sum(one.kind == 'tag' for one in verdict.references)
        what = count(number, 'tag') if number else 'images'
        raise RegistryCleanerError(
            f'This would delete {what} and leave the registry without any tag. Nothing was '
            'deleted. If that is meant, add --allow-remove-all')


def removed_paths(store: Store, plan: Plan) -> Set[str]:
    """Return the paths of all that `plan` removes, but for empty folders; none lies in another."""
    whole = {one.repository for one in plan.references if one.kind == 'repository'}
    paths = {store.place(name, part) for name in whole for part in PARTS}
    paths.update(store.place(one.repository, one.place)
                 for one in plan.references if one.repository not in whole)
    paths.update(map(store.blob, plan.blobs))
    return paths


def empty_folders(store: Store, plan: Plan) -> List[str]:
    """Return the registry's folders that hold nothing once `plan` is done, each before its parent.

    What lives of a repository needs some of its folders, empty or not.
    """
    whole = {store.place(one.repository) for one in plan.references if one.kind == 'repository'}
    gone = removed_paths(store, plan)
    is_ours = re.compile(f'{COMPONENT}|{TAG}').fullmatch
    # Parts of repository names, algorithms and digests; and whatever is in a repository.
    is_named = re.compile(f'/[a-z]+(/{COMPONENT})+|.*/({"|".join(PARTS)})(/.*)?').fullmatch
    held: Any = Counter()  # what each folder holds
    found: List[str] = []  # folders, from the top
    level = [store.repositories, store.blobs]
    while level:
        entries = [entry for listed in store.workers.each(store.entries, level)
                   for entry in listed if entry.path not in gone]
        held.update(entry.path.rpartition('/')[0] for entry in entries)
        level = [entry.path for entry in entries if is_ours(entry.name) and not (
            entry.name.startswith(OWN)) and entry.is_dir(follow_symlinks=False)]
        found += level
    empty: List[str] = []
    holding: Set[str] = set()  # folders of which something is named
    for path in found[::-1]:
        above = path.rpartition('/')[0]
        needed = re.fullmatch('(?s)(.*)/(_layers|_manifests/[^/]+)', path)
        if not held[path] and is_named(path[len(store.v2):]) and not (needed and any(
                held[f'{needed.group(1)}/_manifests/{one}'] for one in ('tags', 'revisions'))):
            held[above] -= 1
            if path not in whole or path in holding:  # else it goes anyway
                empty.append(path)
                holding.add(above)
    return empty


# -- Words that name nothing ----------------------------------------------------------------------

COMPONENT = r'[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*'
NAME = f'{COMPONENT}(?:/{COMPONENT})*'  # what a registry calls a repository


class UsageError(RegistryCleanerError):
    """A word that no repository can be called by."""


def advice(word: str) -> str:
    """Return what to write instead of a `word` copied from elsewhere, '' for any other word."""
    digest = word.lstrip('@')
    if is_digest(digest):
        return f". For a manifest of any repository: -i '*@{digest}'"
    api = re.search('(?:^|/)v2/(.+)/manifests/(.+)', word)
    if api:
        name, item = api.groups()
        return f". Leave out the address: -i '{name}{'@' if is_digest(item) else ':'}{item}'"
    return '. Leave out the address and the path of the API: give NAME or NAME:TAG' if (
        re.search('://|/(manifests|blobs|tags)/', word)) else ''


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


@contextlib.contextmanager
def refusing(what: str = 'Cannot go on') -> Iterator[None]:
    """Make a refusal of what cannot be read or written, with `what` that stops."""
    try:
        yield
    except OSError as error:
        path = str(error.filename or '')
        where = f"'{path}': " if path not in what else ''
        advised = '; run as root' if isinstance(error, PermissionError) and os.geteuid() else ''
        raise RegistryCleanerError(f'{what}: {where}{error.strerror}{advised}. Nothing was deleted')


def find_data_dir(given: Optional[str]) -> str:
    """Return the folder to look for a registry in: the given one, else as --help says."""
    named = given or os.environ.get('REGISTRY_DATA_DIR') or os.environ.get(
        'REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY')
    found = [named] if named else [
        path for path in DEFAULT_DATA_DIRS if os.path.isdir(path + '/docker/registry/v2')]
    if len(found) == 1:
        return found[0]
    what = 'More than one registry' if found else 'No registry data found'
    advised = '; run as root' if os.geteuid() and not found else ''
    raise RegistryCleanerError(f"{what} in {', '.join(found or DEFAULT_DATA_DIRS)}{advised}. "
                               'Nothing was deleted. Name the folder to work on with -d')


def find_v2(directory: str) -> str:
    """Return the V2 folder that `directory` holds or is: by where it is, or by what it holds.

    Raises RegistryCleanerError if there is none.
    """
    with refusing():
        top = os.path.abspath(directory).rstrip('/') if directory else ''
        for below in ('/docker/registry/v2', '/registry/v2', '/v2', '') if directory else ():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                held = set(os.listdir(top + below or '/')) - {*COPIES, 'lost+found'}
                if (top + below).endswith('/docker/registry/v2') or held and (
                        held <= {'blobs', 'repositories'}):
                    return top + below
    why = "holds no 'docker/registry/v2'" if os.path.isdir(top) else 'is no folder that exists'
    raise RegistryCleanerError(
        f"No registry found: '{directory}' {why}. Nothing was deleted. Name the folder that the "
        'registry keeps its data in with -d')


# -- The archive of what goes ---------------------------------------------------------------------

def save(store: Store, outcome: Outcome, target: str, signals: Signals) -> None:
    """Write all that `outcome` plans to remove to a new tar archive, synced, unless in a dry run.

    `target` is a file, `-` for standard output, or '' for no archive.  Raises RegistryCleanerError;
    then an archive that is `saved` may be half written.
    """
    plan, workers = outcome.plan, store.workers
    if not (target and any(plan)):
        return
    with refusing(f"Cannot save to '{target}'"):
        if target != '-':
            refuse_place(store, target)
        size = write_archive(store, plan, None, signals)
        if not outcome.dry_run:
            workers.step, workers.done, workers.total = 'Saving bytes:', 0, size
            signals.at_once = target == '-'  # rather a moment later than with half a file left
            with new_file(target) as stream:
                outcome.saved = size  # it is there, to be dropped if nothing goes
                write_archive(store, plan, stream, signals)
            signals.at_once = True
        outcome.saved = size


def refuse_place(store: Store, target: str) -> None:
    """Refuse an archive that exists, or that would lie in the store, or nowhere."""
    folder = os.path.realpath(os.path.dirname(target) or '.')
    for top in map(os.path.realpath, (store.v2, store.repositories, store.blobs)):
        if (folder + '/').startswith(top + '/'):
            raise OSError(errno.EINVAL, f"it would lie in the registry, '{top}'")
    if os.path.lexists(target):
        raise OSError(errno.EEXIST, 'it exists, and is not overwritten')
    os.stat(folder)


@contextlib.contextmanager
def new_file(target: str) -> Iterator[IO[bytes]]:
    """Yield the new file `target`, synced in the end, or standard output."""
    if target == '-':
        yield sys.stdout.buffer
        return
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, 'wb') as file:
        yield file
        os.fsync(descriptor)
    folder = os.open(os.path.dirname(target) or '.', os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_archive(store: Store, plan: Plan, stream: Optional[IO[bytes]], signals: Signals) -> int:
    """Write all that `plan` removes as a tar archive, and the folders above, which may go too.

    Returns its size in bytes.  Without a `stream` it reads and writes nothing.
    """
    import tarfile  # takes longer than many a run
    tops = removed_paths(store, plan)
    folders, level = set(plan.folders), tops.union(plan.folders)
    while level:
        level = set(map(os.path.dirname, level)) - folders - {
            store.v2, store.repositories, store.blobs}
        folders |= level

    def plain(info: Any) -> Any:
        seconds, rest = divmod(os.lstat(f'{store.v2}/{info.name}').st_mtime_ns, 10 ** 9)
        info.uname = info.gname = ''  # numbers mean the same in a container
        info.mtime, info.pax_headers = seconds, {'mtime': f'{seconds}.{rest:09}'}
        return info

    def write(data: bytes) -> int:
        if signals.number:
            raise KeyboardInterrupt
        if stream:
            store.workers.done += len(data)
            stream.write(data)
        return len(data)

    def measure(info: Any, file: Any = None) -> None:
        blocks = -(-info.size // 512) if info.isreg() else 0
        archive.offset += 1536 + 512 * blocks  # a header of three blocks, and whole ones

    output: Any = SimpleNamespace(write=write, tell=lambda: 0)  # a pipe cannot tell where it is
    archive: Any = tarfile.TarFile(fileobj=output, mode='w', format=tarfile.PAX_FORMAT,
                                   encoding='utf-8', errors='surrogateescape')
    if not stream:
        archive.addfile = measure
    with archive:
        for path in sorted(tops | folders):
            # Of those above, a link stays, and tar would put a folder in its place.
            if os.path.lexists(path) and (path in tops or not os.path.islink(path)):
                try:
                    archive.add(path, path[len(store.v2) + 1:], path in tops, filter=plain)
                except RecursionError:
                    raise OSError(errno.ENAMETOOLONG, 'it holds folders nested too deeply', path)
    if stream:
        stream.flush()
    return -(-int(archive.offset) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


# -- The cleaner: request, plan, removal, outcome -------------------------------------------------

class RegistryCleaner:
    """Deletes images from the V2 folder that `registry_data_dir` is or holds.

    Each method is one run, and returns its Outcome or Listing.  Raises RegistryCleanerError when
    nothing was deleted.
    """

    def __init__(self, registry_data_dir: str, dry_run: bool = False,
                 workers: Optional[Workers] = None, signals: Optional[Signals] = None) -> None:
        self.v2, self.dry_run = find_v2(registry_data_dir), dry_run
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

    def list(self, request: Request, check: bool = False) -> 'Listing':
        """Return what `request` selects, and what deleting it would free; to `check`, read it."""
        with refusing():
            store, request = self.store(), begun(request)
            return check_images(store, request) if check else list_images(store, request)

    def store(self) -> Store:
        """Return the store to look at only, unless what an interrupted run left makes that vain."""
        if os.path.lexists(f'{self.v2}/repositories/{OWN}aside'):
            raise RegistryCleanerError(
                'An earlier run was interrupted before anything was final, and what it has set '
                'aside is not to be seen. Nothing was deleted. The next run that deletes puts it '
                f'back: {PROGRAM} -p')
        return Store(self.v2, self.workers)

    def run(self, request: Request, save_to: str = '') -> Outcome:
        """Carry out `request`, after what an interrupted run left; save what goes to an archive."""
        request = begun(request, self.dry_run)
        self.outcome = Outcome(self.v2, request.dry_run)
        self.signals.at_once = True
        if not (request.images or request.untagged or request.garbage or request.prune):
            return self.outcome
        with refusing():
            if request.dry_run:
                self.plan(request, save_to)
            else:
                with safe_ground(self.v2, self.workers, request, self.signals) as removal:
                    removal.recover()
                    self.remove(removal, request, save_to)
        return self.outcome

    def plan(self, request: Request, save_to: str) -> None:
        """Let the outcome tell what is to be deleted, and save that."""
        store = self.store()
        self.outcome = choose(store, request)
        save(store, self.outcome, save_to, self.signals)
        if self.signals.number:
            raise KeyboardInterrupt

    def remove(self, removal: Removal, request: Request, save_to: str) -> None:
        """Carry out `request`; the archive of a run that deletes nothing is removed again."""
        account, earlier = removal.account, dict(removal.account.blobs)
        left = bool(account.failed)
        if earlier:
            log.info('Deleted %s of the earlier run: %s freed', count(len(earlier), 'blob'),
                     human_size(sum(earlier.values())))
        try:
            if not self.signals.number:
                self.plan(request, save_to)
                if any(self.outcome.plan):
                    removal.carry_out(request, self.outcome.plan)
        except OSError as error:
            if self.signals.at_once:
                raise
            account.fail(error, self.v2)
        finally:
            self.outcome.earlier, self.outcome.left = earlier, left or account.begun
            self.settle(account)
            if self.outcome.saved and not (any(self.outcome.plan) or account.begun):
                self.outcome.saved = 0
                if save_to != '-':
                    drop_archive(save_to)

    def settle(self, account: Account) -> None:
        """Let the outcome, which tells what was planned, tell what `account` says came of it."""
        outcome, references = self.outcome, self.outcome.plan.references
        done = {one.repository for one in references if account.final} - account.skipped.keys()
        outcome.plan = Plan([one for one in references
                             if one.repository in done and one not in account.left],
                            {digest: size for digest, size in sorted(account.blobs.items())
                             if digest not in outcome.earlier}, account.folders)
        outcome.uploads = {name: outcome.uploads[name] for name in outcome.uploads.keys() & done}
        outcome.skipped.update(account.skipped)
        outcome.failed = account.failed
        if account.unfinished:
            more = ' with -g' * (not os.path.lexists(f'{self.v2}/repositories/{OWN}gone'))
            outcome.unfinished = f'The next run{more} frees the rest'


# -- The list: what is there, and what deleting it would free -------------------------------------

TOTALS = ('repositories', 'tags', 'manifests', 'blobs', 'size', 'uploads', 'selected', 'untagged',
          'garbage')  # the last three: what would be free if all of these were deleted


class Row(NamedTuple):
    """One line of the list; None where it has no such thing.  Sizes are in bytes."""

    image: Image  # what names it
    digest: Optional[str] = None
    tags: Optional[int] = None
    untagged: Optional[int] = None  # manifests that no tag reaches
    pushed: Optional[float] = None  # in seconds
    size: int = 0  # of the distinct blobs that it reaches
    frees: int = 0  # what deleting it, and nothing else, would free now; at first of uploads
    unlinked: Sequence[str] = ()  # the blob of each link that goes with it
    damage: Sequence[str] = ()  # each 'what: digest'
    was: str = ''  # the tag that an untagged manifest was


class Listing(Verdict):
    """What is selected of one repository, or of all, with what is decided of it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: List[Row] = []  # in the end: those that free most first
        self.totals: Any = Counter({'old uploads': 0, **dict.fromkeys(TOTALS, 0)})  # None: unknown
        self.sizes: Dict[str, int] = {}  # blob that is stored -> bytes
        self.links: Any = Counter()  # blob -> number of links
        self.held: Set[str] = set()  # blobs that free nothing, as their files have other names
        self.untagged: List[str] = []  # with -u, the blob of each link that goes
        self.refused: Dict[str, str] = {}  # one of the totals -> why it cannot be told
        self.reads: Set[str] = set()  # what a check has to read

    def measure(self, blob: str, path: str) -> None:
        """Take note of the size of a blob, if it is stored at `path`."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                self.held.add(blob)
                status = os.stat(path)
            if stat.S_ISREG(status.st_mode):
                self.sizes[blob] = status.st_size

    def size(self, blobs: Iterable[str]) -> int:
        """Return the bytes of those of `blobs` that are stored."""
        return sum(self.sizes.get(blob, 0) for blob in blobs)

    def freed(self, unlinked: Iterable[str]) -> int:
        """Return the bytes that are free when so many links to each blob are gone."""
        return self.size(blob for blob, number in Counter(unlinked).items()
                         if number == self.links[blob] and blob not in self.held)


class View(Judge):
    """Judges a repository line by line; `bad` is what a check found wrong with which blob."""

    def __init__(self, store: Store, wish: Wish, bad: Mapping[str, str]) -> None:
        super().__init__(store, store.repository(wish.name))
        self.bad, self.told, self.plain = bad, Listing(), Request(now=wish.request.now)
        self.parts = {digest: {blob_of(self.repository, name) or name
                               for name in (digest, *manifest.names)}
                      for digest, manifest in self.manifests.items()}
        self.told.links.update(blob for links in (self.repository.layers, self.repository.revisions)
                               for blob in links.values() if blob)
        for blob in set(self.told.links).union(*self.parts.values()):
            self.told.measure(blob, store.blob(blob) + '/data')
        self.wrong = {digest: list(self.wrong_with(digest)) for digest in self.manifests}
        for tag, (digest, *_, fault) in self.tags.items():
            what = f'no manifest: {digest}' if digest else (
                f'broken link: tag {tag} ({fault or "it is empty or no digest"})')
            self.wrong[node(tag)] = [what] * (digest not in self.manifests)
        self.seen: Dict[Tuple[str, ...], Tuple[int, List[str]]] = {}

    def wrong_with(self, digest: str) -> Iterator[str]:
        """Yield what is wrong with a manifest itself, told from names and sizes.

        What may be stored elsewhere is no damage: layers with `urls`, children of a sparse index.
        """
        manifest, sizes = self.manifests[digest], self.told.sizes
        if manifest.fault:
            yield f'unreadable: {digest} ({manifest.fault})'
        for name, size in manifest.names.items():
            blob = blob_of(self.repository, name)
            if blob in sizes:
                what = self.bad.get(blob, 'wrong size' * (0 <= size != sizes[blob]))
            else:
                elsewhere = name in manifest.foreign or blob is None and manifest.is_index
                what = '' if elsewhere or name in self.manifests else 'layer missing'
            if what:
                yield f'{what}: {blob or name}'

    def see(self, *start: str) -> Tuple[int, List[str]]:
        """Return the bytes and the damage of all that these nodes reach."""
        if start not in self.seen:  # so many tags of one manifest cost little
            nodes = walk(start, self.graph.edges)
            blobs = set().union(*(self.parts.get(one, ()) for one in nodes))
            self.told.reads |= blobs & self.told.sizes.keys()
            wrong = {fault for one in nodes for fault in self.wrong.get(one, ())}
            self.seen[start] = self.told.size(blobs), sorted(wrong)
        return self.seen[start]

    def row(self, one: str) -> Row:
        """Return the row of a tag or a manifest."""
        if one[0] == '/':
            tag, (size, wrong) = self.tags[one[1:]], self.see(*self.graph.edges[one])
            return Row(Image(self.name, one[1:]), tag.digest or None, pushed=tag.pushed, size=size,
                       damage=self.wrong[one] + wrong)
        size, wrong = self.see(one)
        former = [tag for tag in self.entered.get(one, ()) if self.tags[tag].digest != one]
        pushed = written(self.store.revision(self.name, one) + '/link')
        return Row(Image(self.name, digest=one), one, pushed=pushed, size=size, damage=wrong,
                   was=''.join(former[-1:]))

    def whole(self) -> Row:
        """Return the row of the repository."""
        bad, told, graph = self.bad, self.told, self.graph
        told.reads.update(told.sizes)
        damage = sorted({f'{fault} in {self.images_with(one)}'
                         for one, wrong in self.wrong.items() for fault in wrong})
        damage += [f'{bad[blob]}: {blob}, which no manifest here names' for blob in sorted(
            bad.keys() & told.links.keys() - set().union(*self.parts.values()))]
        untagged = self.revisions - walk(graph.roots, graph.edges)
        times = [tag.pushed for tag in self.tags.values() if tag.pushed is not None]
        return Row(Image(self.name), None, self.ordinary, len(untagged), max(times, default=None),
                   told.size(told.links), damage=damage)

    @property
    def revisions(self) -> Set[str]:
        """The manifests that have a link of their own."""
        links = self.repository.revisions
        return {digest for digest in links if links[digest] is not None}

    def images_with(self, one: str) -> str:
        """Return the first few of the images that a tag or a manifest is part of."""
        tops = sorted(walk([one], self.graph.reached_by) & self.graph.roots) or [one]
        images = list(map(self.image, tops))
        return ', '.join(images[:5]) + f' and {len(images) - 5} more' * (len(images) > 5)

    def select(self, wish: Wish) -> None:
        """Add what goes with all that `wish` selects, and a line for each thing."""
        verdict = Verdict()
        try:
            verdict = self.decide(wish)
        except RegistryCleanerError as error:
            self.told.refused['selected'] = str(error)
            verdict.matched.update(image for image in wish.images + wish.excluded
                                   if names_something(self.repository, image))
        self.told.add(verdict)
        self.told.references.clear()  # of which there are many
        spared = self.spared_by(wish)
        if any(image.whole for image in wish.excluded):
            return
        if wish.bare and not (wish.request.untagged or spared):
            return self.add_row(self.whole(), verdict)
        asked, wanted = self.asked(wish, spared, Verdict())
        if wish.bare:
            wanted = wanted | self.tops(verdict)
        for one in wanted.union(node(tag) for tag in asked if self.tags[tag].digest not in wanted):
            row = self.row(one)
            self.add_row(row, self.loss(row.image))

    def tops(self, verdict: Verdict) -> Set[str]:
        """Return the manifests that go and that nothing else that goes reaches."""
        going = {node(one.item) if one.kind == 'tag' else one.item for one in verdict.references
                 if one.kind in ('tag', 'manifest')}
        tops = {one for one in going if going.isdisjoint(self.graph.reached_by.get(one, ()))}
        tops |= going - walk(tops, self.graph.edges)
        return tops & self.manifests.keys()

    def loss(self, *images: Image, **options: bool) -> Verdict:
        """Return what goes if only these are deleted, or with these options of a request."""
        request = self.plain._replace(**options)  # type: ignore[arg-type]
        with contextlib.suppress(RegistryCleanerError):
            return self.decide(Wish(self.name, list(images), [], request), terse=True)
        return Verdict()

    def add_row(self, row: Row, lost: Verdict) -> None:
        """Add the line of `row`, with what goes if only that is deleted."""
        self.told.rows.append(row._replace(
            frees=sum(lost.uploads.values()), unlinked=lost.unlinked))


def survey(store: Store, wish: Wish, bad: Mapping[str, str]) -> Listing:
    """Return what is told of the repository that `wish` names, which is read once."""
    view = View(store, wish, bad)
    view.select(wish)
    told, repository = view.told, view.repository
    untagged, garbage = view.loss(Image(wish.name), untagged=True), view.loss(garbage=True)
    told.untagged, told.used = untagged.unlinked, garbage.used
    told.reads.difference_update(repository.revisions.values())  # which were hashed when read
    for upload in repository.uploads:
        last, size = measure_upload(store, store.place(wish.name, '_uploads', upload))
        told.totals['uploads'] += size
        told.totals['old uploads'] += size * (last <= view.plain.now - UPLOAD_AGE)
    told.totals.update(
        repositories=1, tags=len(repository.tags), manifests=len(view.revisions),
        selected=sum(told.uploads.values()), untagged=sum(untagged.uploads.values()),
        garbage=sum(garbage.uploads.values()))
    return told


def list_images(store: Store, request: Request, bad: Mapping[str, str] = {}) -> Listing:
    """Return what `request` selects, with a line for each thing; by default each repository.

    `bad` are blobs with what a check found.  Raises RegistryCleanerError for a word that names
    nothing, and OSError.
    """
    names, listing = store.repository_names(), Listing()
    if names and not (request.images or request.untagged):
        request = request._replace(images=(Image('*'),))
    wishes, totals, sizes = wishes_of(request, names), listing.totals, listing.sizes
    for told in each_repository(store, partial(survey, bad=bad), list(wishes.values())):
        listing.add(told)
    listing.warnings[:0] = find_missing(store, request, wishes, listing.matched, wishes.keys())
    sizes.update(sizes_of(store, stored(store, sizes.keys())))
    listing.held |= store.kept_links()
    if store.links:
        listing.held.update(blob for blob in sizes if store.blob(blob) in store.links)
    totals.update(blobs=len(sizes), size=sum(sizes.values()),
                  selected=listing.freed(listing.unlinked),
                  untagged=listing.freed(listing.untagged),
                  garbage=listing.size(sizes.keys() - listing.used - listing.held))
    for figure in ('untagged', 'garbage'):
        try:
            refuse_unsafe_ground(store, names, figure == 'garbage')
        except RegistryCleanerError as error:
            listing.refused[figure] = str(error)
            totals[figure] = None
    safe = 'untagged' not in listing.refused
    totals['selected'] *= safe and 'selected' not in listing.refused
    listing.warnings += sorted(set(listing.refused.values()))
    listing.rows = sorted((row._replace(frees=safe * (row.frees + listing.freed(row.unlinked)))
                           for row in listing.rows), key=lambda row: (-row.frees, row.image))
    return listing


# -- The check: every byte ------------------------------------------------------------------------

def check_images(store: Store, request: Request) -> Listing:
    """Return what `request` selects, with the damage that reading every byte of it shows."""
    workers, jobs, listing = store.workers, store.workers.jobs, list_images(store, request)
    blobs = sorted(listing.reads, key=lambda blob: -listing.sizes[blob])
    workers.jobs = max(workers.threads(), os.cpu_count() or 1)
    faults = workers.each(partial(fault_of, store), blobs, 'Reading blobs')
    workers.jobs = jobs
    bad = {blob: fault for blob, fault in zip(blobs, faults) if fault}
    checked = list_images(store, request, bad)
    checked.totals['read'] = listing.size(blobs)
    return checked


def fault_of(store: Store, blob: str) -> str:
    """Read a blob, and return what is wrong with it, '' if nothing is."""
    algorithm, _, digits = blob.partition(':')
    found = hashlib.new(algorithm)
    try:
        with open(store.blob(blob) + '/data', 'rb', buffering=0) as file:
            for piece in iter(partial(file.read, 1 << 20), b''):
                found.update(piece)
    except OSError as error:
        return f'it cannot be read ({error.strerror})'
    return '' if found.hexdigest() == digits else 'its content does not match its digest'


# -- The table ------------------------------------------------------------------------------------

# Where there is no room, the first after the image go first, and the last two never.
COLUMNS = ('IMAGE', 'DIGEST', 'WAS', 'TAGS', 'UNTAGGED', 'PUSHED', 'DAMAGE', 'SIZE', 'FREES')
NUMBERS = ('TAGS', 'UNTAGGED', 'SIZE', 'FREES')  # they end where their headings do


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


def cells(row: Row, brief: bool) -> Tuple[str, ...]:
    """Return what each column shows of a row; if `brief`, ages, and the damage shortened."""
    damage = ', '.join(dict.fromkeys(fault.partition(':')[0] for fault in row.damage))
    pushed = date_of(time.localtime, row.pushed, '%Y-%m-%d %H:%M') or ''
    if brief and row.pushed is not None:
        pushed = span(time.time() - row.pushed) + ' ago'
    return (str(row.image._replace(digest='')), (row.digest or '').partition(':')[2][:12], row.was,
            *('' if number is None else f'{number:,}' for number in (row.tags, row.untagged)),
            pushed, shortened(damage, 24) if brief else damage,
            human_size(row.size), human_size(row.frees))


def padded(column: Sequence[str]) -> List[str]:
    """Return the cells of a column, whose heading is the first, all of the same width."""
    align, width = str.rjust if column[0] in NUMBERS else str.ljust, max(map(len, column))
    return [align(cell, width) for cell in column]


def table(rows: Sequence[Row], width: int, verbose: bool) -> Iterator[str]:
    """Yield the lines of the list.

    With a `width`, that of a terminal, they fit it: long names are shortened, and columns left
    out.  Bars show what each line frees beside the others.
    """
    brief, space = bool(width) and not verbose, width or sys.maxsize
    names, *others = zip(COLUMNS, *(cells(row, brief) for row in rows))
    columns = [padded(column) for column in others if any(column[1:])]
    longest = max(map(len, names))
    least = min(longest, max(10, width // 4))
    while columns[1:] and least + sum(len(column[0]) + 2 for column in columns) > space:
        del columns[0]
    space -= sum(len(column[0]) + 2 for column in columns)
    bar = max(min(space - least, width // 10), 0)
    images = padded([shortened(name, max(min(longest, space - bar), 1)) for name in names])
    most = max([1] + [row.frees for row in rows])
    bars = [''] + ['#' * (row.frees * (bar - 2) // most) for row in rows]
    for line in zip(images, *columns, bars):
        yield '  '.join(line).rstrip()


def list_text(listing: Listing, v2: str, width: int, verbose: bool) -> Iterator[str]:
    """Yield the lines of the list for a terminal of this width; 0 for no terminal."""
    number, disk = listing.totals, shutil.disk_usage(v2)
    size = {name: human_size(total) for name, total in number.items()}
    yield from table(listing.rows, width, verbose)
    for text in (
            '', f'All of these together free {size["selected"]}',
            f'Stored: {size["size"]} in {count(number["blobs"], "blob")}',
            f'{count(number["repositories"], "repository", "repositories")}, '
            + count(number['tags'], 'tag'),
            f'Uploads: {size["uploads"]}',
            f'Of these, over a day old: {size["old uploads"]}',
            f'-u would free {size["untagged"]}', f'-g would free {size["garbage"]}',
            f'Disk: {human_size(disk.used)} of {human_size(disk.total)} used', v2):
        yield shortened(text, width or len(text))


def check_text(listing: Listing, v2: str) -> Iterator[str]:
    """Yield what a check found: each damaged image, what is wrong with it, and what to do."""
    damaged = [row for row in listing.rows if row.damage]
    for row in damaged:
        yield f'{row.image} is damaged:'
        yield from ('  ' + fault for fault in row.damage)
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
        word, known = str(row.image), False
        with contextlib.suppress(ValueError):
            known = parse_image(word) == row.image and bool(re.fullmatch(r'[^#\s](.*\S)?', word))
        if not known:
            log.warning("No word can name '%s': it is left out", word)
        elif row.damage or 'read' not in listing.totals:
            yield word


def listing_json(listing: Listing, v2: str) -> Dict[str, Any]:
    """Return the list, or what a check found, as `--json` prints it."""
    images = [{'repository': row.image.name, 'tag': row.image.tag or None, 'digest': row.digest,
               'tags': row.tags, 'untagged': row.untagged,
               'pushed': date_of(time.gmtime, row.pushed, '%Y-%m-%dT%H:%M:%SZ'),
               'size': row.size, 'frees': row.frees, 'damage': '; '.join(row.damage) or None}
              for row in listing.rows]
    return {'registry': v2 or None, 'images': images,
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
    for name, references in sorted(by_repository(plan.references).items()):
        kinds, owner = {one.kind for one in references}, outcome.owners.get(name)
        named = {'repository', 'upload', 'tag' if 'tag' in kinds else 'manifest'}
        if 'repository' in kinds and not owner:
            named = {'repository'}
        for one in references:
            level = logging.INFO if one.kind in named else logging.DEBUG
            if log.isEnabledFor(level):
                more = f', with its last tag {owner}' * bool(owner and one.kind == 'repository')
                log.log(level, '%s %s%s', verb, one.line, more)
    for digest, size in plan.blobs.items():
        log.debug('%s blob %s (%s)', verb, digest, human_size(size))
    for folder in plan.folders:
        log.debug("%s empty folder '%s'", verb, folder)
    for name, reason in outcome.skipped.items():
        log.error('Repository %s: %s', name, reason)
    for path, reason in outcome.failed:
        log.error("Cannot delete '%s': %s", path, reason)
    if any(plan) or not (outcome.skipped or outcome.failed):
        log.info('%s', summary(outcome, verb))


def summary(outcome: Outcome, verb: str) -> str:
    """Return the line that says what went, from where, and how many bytes that freed."""
    plan, kinds = outcome.plan, Counter(one.kind for one in outcome.plan.references)
    small = not (kinds['repository'] or kinds['tag'] or kinds['manifest'])
    counts: List[Any] = [
        (kinds['repository'], 'repository', 'repositories'), (kinds['tag'], 'tag'),
        (kinds['manifest'], 'manifest'), (kinds['upload'], 'upload'),
        (small * kinds['layer'], 'layer link'),
        (small * (kinds['entry'] + kinds['leftover']), 'leftover'),
        (len(plan.blobs), 'blob'), (len(plan.folders), 'empty folder')]
    what = ', '.join(count(*item) for item in counts if item[0])
    freed = human_size(sum(plan.blobs.values()) + sum(outcome.uploads.values()))
    return f'{verb} {what} of {outcome.v2}: {freed} freed' if what else 'Nothing to delete'


def plan_json(outcome: Outcome) -> Dict[str, Any]:
    """Return what was, or would be, deleted, as `--json` prints it."""
    blobs, upload_bytes = {**outcome.earlier, **outcome.plan.blobs}, sum(outcome.uploads.values())

    def named(kind: str, separator: str = '') -> List[str]:
        return [one.repository + separator + one.item for one in outcome.plan.references
                if one.kind == kind]

    return {'registry': outcome.v2 or None, 'dry_run': outcome.dry_run,
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
        self.drawn, self.ended = '', False  # the progress line, and that there will be none
        if self.width and progress:
            threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        """Show the progress of a longer run until the end."""
        time.sleep(0.5)
        while not self.ended:
            if self.workers.step:
                self.draw(f'{self.workers.step} {self.workers.done:,} of {self.workers.total:,}')
            time.sleep(0.1)

    def draw(self, text: str) -> None:
        """Show `text` in the last line, instead of what is there."""
        self.acquire()
        with contextlib.suppress(OSError):  # the terminal may be gone, and the work goes on
            if text != self.drawn and not (text and self.ended):
                self.drawn = text
                print('\r\x1b[K' + text[:self.width - 1], end='', file=sys.stderr, flush=True)
        self.release()

    def end(self) -> None:
        """Take the progress line away for good."""
        self.ended = True
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
    try:
        if text and sys.stdout is None:
            raise OSError(errno.EBADF, 'it is closed')
        if text:  # a name need not be valid text
            encoding = sys.stdout.encoding or 'utf-8'
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
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=79),
        description='Delete images from the disk of a stopped Docker registry, and free their '
                    'space.')
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
    keep('--older-than', metavar='AGE', type=age, help='select only tags (-u, -g: manifests, layer '
         'links, blobs) older than 12h, 30d, 8w, 1y')
    keep('--by', choices=('pushed', 'created', 'version'), default='pushed', help='what newest and '
         "older go by: pushed (default), created (the image's own date), version")
    keep('--allow-remove-all', action='store_true',
         help='let patterns delete every tag of the registry')
    how = parser.add_argument_group('how').add_argument
    how('-l', '--list', action='store_true', help='show what is selected (default: each '
        'repository), its size, and what deleting it would free; deletes nothing')
    how('--check', action='store_true', help='read everything that is selected (default: all) and '
        'name each image that is damaged; deletes nothing')
    how('-n', '--dry-run', action='store_true', help='say what would be deleted; touches nothing')
    how('--save', metavar='FILE', help='first copy all that goes to a new tar archive '
        "(- is standard output); 'tar -xf FILE -C V2' brings it back")
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


def age(text: str) -> float:
    """Return the seconds that `text`, like 12h, 30d, 8w or 1y, stands for."""
    if not re.fullmatch('[0-9]{1,9}[hdwy]', text):
        raise argparse.ArgumentTypeError(f"'{text}' is no age like 12h, 30d, 8w or 1y")
    return float(text[:-1]) * 3600 * {'h': 1, 'd': 24, 'w': 168, 'y': 8760}[text[-1]]


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
    looks, given, save_to = arguments.list or arguments.check, arguments.images, arguments.save
    whole = request.untagged or request.garbage and not given
    tags = given and all(image.tag for image in request.images) and not request.untagged
    old, last, by = request.older_than is not None, request.keep_last, request.by
    for wrong, text in (
        (not (given or request.untagged or request.garbage or request.prune or looks),
         'an image is required: -i NAME, -i NAME:TAG or -i NAME@DIGEST'),
        (request.untagged and not all(image.whole for image in request.images),
         '-u takes whole repositories: -i NAME, without a tag or a digest'),
        (not tags and (last is not None or by != 'pushed' or old and not whole),
         '--keep-last, --older-than and --by choose among tags: name them, as in -i \'NAME:*\' '
         '(and --older-than goes with -u or -g)'),
        (by != 'pushed' and last is None and not old, '--by is for --keep-last or --older-than'),
        (by == 'version' and old,
         'a version has no age: --older-than goes with --by pushed or --by created'),
        ((last or 0) < 0 or arguments.jobs < 0,
         '--keep-last and --jobs take a number that is not negative'),
        (arguments.list and arguments.check, 'give one of -l and --check'),
        (looks and (request.garbage or request.prune or save_to),
         '-l and --check delete nothing: leave out -g, -p and --save'),
        (arguments.registry_data_dir == '', '-d takes the name of a folder'),
        (save_to == '' or '\0' in (save_to or ''), '--save takes the name of a file'),
        (save_to == '-' and (arguments.json or not sys.stdout or columns(sys.stdout)),
         '--save - takes a standard output that is no terminal and not closed, and no --json'),
    ):
        if wrong:
            parser.error(text)
    return request


# -- The start ------------------------------------------------------------------------------------

def look(cleaner: RegistryCleaner, arguments: argparse.Namespace, request: Request
         ) -> Tuple[Listing, Iterable[str]]:
    """List or check what `request` selects; return that, and the lines that tell it."""
    listing = cleaner.list(request, arguments.check)
    for text in listing.warnings:
        log.warning('%s', text)
    if arguments.quiet:
        return listing, listing_names(listing)
    if arguments.check:
        return listing, check_text(listing, cleaner.v2)
    return listing, list_text(listing, cleaner.v2, columns(sys.stdout), arguments.verbose)


def delete(cleaner: RegistryCleaner, request: Request, save_to: str) -> Tuple[int, str]:
    """Carry out `request` and say so; return the exit status, and what went wrong."""
    outcome = cleaner.run(request, save_to)
    bad, nothing = outcome.failed or outcome.skipped, outcome.nothing
    if bad or not (cleaner.signals.number and nothing):
        report(outcome, save_to)
    words = ['Interrupted'] if cleaner.signals.number else []  # if only since all was done
    if nothing and (bad or words):
        words.append('Nothing was deleted')
    elif words and outcome.unfinished:
        words.append(outcome.unfinished)
    return (1 if nothing else 3) if bad else 0, '. '.join(words)


def run(argv: Optional[Sequence[str]], signals: Signals) -> int:
    """Do what the command line `argv` says; return the exit status."""
    parser = make_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest:
        hint = ' (images follow -i; quote patterns)' if rest[0][:1] != '-' else ''
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    request = request_of(parser, arguments)
    workers, looks = Workers(arguments.jobs), arguments.list or arguments.check
    terminal = Terminal(workers, progress=not arguments.quiet)
    log.handlers, log.propagate = [terminal], False
    log.setLevel(logging.DEBUG if arguments.verbose else
                 logging.ERROR if arguments.quiet else logging.INFO)
    if arguments.force:
        log.warning('-f, --force has no effect')
    listing, lines = Listing(), ()  # type: Listing, Iterable[str]
    listing.totals = dict.fromkeys(TOTALS)  # nothing is known yet
    status, error, cleaner = 0, '', None  # type: int, str, Optional[RegistryCleaner]
    try:
        cleaner = RegistryCleaner(find_data_dir(arguments.registry_data_dir), False, workers,
                                  signals)
        if not looks:
            status, error = delete(cleaner, request, arguments.save or '')
        elif request.images or not arguments.images:  # an empty list is never everything
            listing, lines = look(cleaner, arguments, request)
            status = 3 * (arguments.check and any(row.damage for row in listing.rows))
    except UsageError as usage:
        terminal.end()
        parser.error(str(usage))
    except RegistryCleanerError as refusal:
        status, error = 1, str(refusal)
    except KeyboardInterrupt:
        signals.at_once = False
        status, error = 128 + signal.SIGINT, 'Interrupted. Nothing was deleted'
    terminal.end()
    outcome = cleaner.outcome if cleaner else Outcome('', request.dry_run)
    if outcome.earlier:
        error = error.replace('othing was', 'othing else was')
    if error:
        log.error('%s', error)
    if arguments.json:
        result = listing_json(listing, outcome.v2) if looks else plan_json(outcome)
        lines = [json.dumps(dict(result, error=error) if error else result, indent=2)]
    written = put('\n'.join(lines))
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
            with contextlib.suppress(OSError):
                print(end='', file=stream, flush=True)


if __name__ == '__main__':
    try:
        exit_status: Any = main()
    except SystemExit as error:  # the parser's, after --help or a usage error
        exit_status = error.code
    os._exit(exit_status)  # at once: nobody needs what a run holds freed piece by piece
