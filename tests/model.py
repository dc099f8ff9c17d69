"""What a registry serves and what a deletion has to remove, worked out a second time.

Nothing here comes from the script. It reads the whole store into plain dictionaries and asks every
question of everything: slow, and meant to be read next to the rules that it states.

    pull(v2, repo, digest)      what a client gets
    expect(v2, images, ...)     what a run has to do: an Outcome, or it raises Refused
"""

import fnmatch
import hashlib
import json
import os
import re
import time

DIGITS = {'sha256': 64, 'sha384': 96, 'sha512': 128}
LISTS = ('fsLayers', 'layers', 'manifests', 'blobs')
MANIFEST_TYPES = re.compile(r'application/vnd\.(docker\.distribution\.manifest\.'
                            r'|oci\.(image\.(manifest|index)|artifact\.manifest)\.).*json$')
REFERRER_TAG = re.compile(r'(sha256|sha384|sha512)-([0-9a-f]+)')
IMAGE = re.compile('((?:localhost|[^/]*:[0-9]+)/)?([^:]*):?(.*)')
PATTERN = re.compile(r'[*?[]')
WHOLE = ''
MISSING, UNREADABLE = 'missing', 'unreadable'
DAY = 24 * 3600


class Refused(Exception):
    """Nothing may be deleted."""


# Reading

def is_digest(text):
    alg, _, digits = text.partition(':')
    return re.fullmatch('[0-9a-f]{%d}' % DIGITS.get(alg, 0), digits) is not None and alg in DIGITS


def listing(*path):
    try:
        return sorted(os.listdir(os.path.join(*path)))
    except (FileNotFoundError, NotADirectoryError):
        return []


def link(*folder):
    """The digest in a link file; '' where it holds none; None where there is no link file."""
    try:
        with open(os.path.join(*folder + ('link',)), 'rb') as stream:
            text = stream.read().decode('latin-1')
    except FileNotFoundError:
        return None
    return text if is_digest(text) else ''


def links(*folder):
    """digest in the folders' names -> link, of every <alg>/<hex>/link below `folder`."""
    found = {}
    for alg in listing(*folder):
        for digits in listing(*folder + (alg,)):
            content = link(*folder + (alg, digits))
            if content is not None and is_digest(alg + ':' + digits):
                found[alg + ':' + digits] = content
    return found


def digests(*folder):
    """The digests that the folders <alg>/<hex> below `folder` are named after."""
    return {alg + ':' + digits for alg in listing(*folder)
            for digits in listing(*folder + (alg,)) if is_digest(alg + ':' + digits)}


def last_write(folder):
    """The newest time of a folder and everything in it."""
    return max(os.stat(path).st_mtime for base, _, files in os.walk(folder)
               for path in [base] + [os.path.join(base, name) for name in files])


def targets(found):
    """The blobs that links stand for. For sha256 the name says it, whatever the link holds."""
    return {name if name.startswith('sha256:') else content for name, content in found.items()}


def blob_folder(digest):
    alg, digits = digest.split(':')
    return 'blobs/%s/%s/%s' % (alg, digits[:2], digits)


def blob(v2, digest):
    """A blob's content, or None."""
    try:
        with open(os.path.join(v2, blob_folder(digest), 'data'), 'rb') as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def intact(digest, data):
    alg, digits = digest.split(':')
    return data is not None and hashlib.new(alg, data).hexdigest() == digits


class Manifest:
    """`names` every blob that it names, `children` digest -> media type, `subject` or None."""

    def __init__(self, document):
        self.names, self.children = set(), {}
        self.urls = set()
        for key in LISTS:
            for entry in document.get(key) or ():
                digest = entry['blobSum' if key == 'fsLayers' else 'digest']
                self.names.add(digest)
                if entry.get('urls'):
                    self.urls.add(digest)
                if key == 'manifests':
                    self.children[digest] = entry.get('mediaType')
        if 'config' in document:
            self.names.add(document['config']['digest'])
        self.subject = document['subject']['digest'] if 'subject' in document else None
        digests = self.names | ({self.subject} if self.subject else set())
        if not all(is_digest(digest) for digest in digests):
            raise ValueError('a digest outside the grammar')


def manifest(v2, digest):
    """A Manifest, or MISSING or UNREADABLE."""
    data = blob(v2, digest)
    if data is None:
        return MISSING
    try:
        document = json.loads(data.decode())
        if not intact(digest, data) or len(data) > 4 << 20:
            return UNREADABLE
        if not any(key in document for key in LISTS + ('config',)):
            return UNREADABLE
        return Manifest(document)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return UNREADABLE


class Repository:
    def __init__(self, v2, name):
        self.name = name
        folder = os.path.join(v2, 'repositories', name)
        tags = os.path.join(folder, '_manifests', 'tags')
        revisions = os.path.join(folder, '_manifests', 'revisions')
        # tag -> the digest that it points at, '' or None when it is broken
        self.tags = {tag: link(tags, tag, 'current') for tag in listing(tags)}
        self.history = {tag: set(links(tags, tag, 'index')) for tag in self.tags}
        self.layers = links(folder, '_layers')
        self.revisions = links(revisions)
        self.signatures = {
            revision: links(revisions, *revision.split(':') + ['signatures'])
            for revision in self.revisions}
        self.uploads = {upload: last_write(os.path.join(folder, '_uploads', upload))
                        for upload in listing(folder, '_uploads')}
        self.fresh = any(written > time.time() - DAY for written in self.uploads.values())
        # Every folder where a link belongs, be there one or not.
        self.layer_folders = digests(folder, '_layers')
        self.revision_folders = digests(revisions)
        self.history_folders = {tag: digests(tags, tag, 'index') for tag in self.tags}

        self.manifests = {digest: manifest(v2, digest) for digest in self.revisions}
        self.add_manifests_linked_as_layers(v2)

    def add_manifests_linked_as_layers(self, v2):
        """Registry 2.1.0 linked manifests as layers, and every 2.x serves them."""
        more = True
        while more:
            named = {digest for digest in self.tags.values() if digest}
            named.update(*self.history.values())
            for one in self.manifests.values():
                if isinstance(one, Manifest):
                    named.update(child for child, media_type in one.children.items()
                                 if MANIFEST_TYPES.match(media_type or ''))
            more = {digest: manifest(v2, digest)
                    for digest in named - set(self.manifests) if digest in self.layers}
            more = {digest: one for digest, one in more.items() if isinstance(one, Manifest)}
            self.manifests.update(more)
        self.contents = {digest: one for digest, one in self.manifests.items()
                         if isinstance(one, Manifest)}

    # What reaches what

    def stands_for(self, tag):
        """What a tag reaches first. A broken one may have stood for anything in its history."""
        if self.tags[tag]:
            return {self.tags[tag]}
        return self.history[tag] or set(self.manifests)

    def reach(self, digests, tags=(), without=()):
        """Everything that `digests` reach, never through `without`; `tags` are the referrer tags
        that count on the way."""
        seen, todo = set(), list(digests)
        while todo:
            digest = todo.pop()
            if digest in seen or digest in without or digest not in self.manifests:
                continue
            seen.add(digest)
            if digest in self.contents:
                todo.extend(self.contents[digest].children)
            todo.extend(name for name, one in self.contents.items() if one.subject == digest)
            for tag in tags:
                if self.owner(tag) == digest:
                    todo.extend(self.stands_for(tag))
        return seen

    def owner(self, tag):
        """The manifest that a referrer tag belongs to; None for an ordinary tag."""
        match = REFERRER_TAG.match(tag)
        digest = match and ':'.join(match.groups())
        if digest in self.manifests and digest not in self.reach(self.stands_for(tag)):
            return digest
        return None

    def referrer_tags(self):
        return {tag for tag in self.tags if self.owner(tag)}

    def ordinary_tags(self):
        return set(self.tags) - self.referrer_tags()

    def reached_by(self, tags, manifests=(), without=()):
        """What stays because `tags` or `manifests` stay and `without` does not."""
        roots = set(manifests)
        for tag in tags & self.ordinary_tags():
            roots |= self.stands_for(tag)
        return self.reach(roots, tags & self.referrer_tags(), without)


def repositories(v2):
    found = {}
    for base, folders, _ in os.walk(os.path.join(v2, 'repositories')):
        if {'_manifests', '_layers', '_uploads'} & set(folders):
            name = os.path.relpath(base, os.path.join(v2, 'repositories'))
            found[name] = Repository(v2, name)
        folders[:] = [name for name in folders
                      if name not in ('_manifests', '_layers', '_uploads')]
    return found


def pull(v2, repo, digest):
    """(what a client that pulls `digest` gets, whether that is all of it)."""
    folder = os.path.join(v2, 'repositories', repo)
    alg, digits = digest.split(':')
    revision = link(folder, '_manifests', 'revisions', alg, digits)
    target = revision or link(folder, '_layers', alg, digits)
    if not target or not intact(target, blob(v2, target)):
        return set(), False
    document = manifest(v2, target)
    if not isinstance(document, Manifest):
        # The registry answers 500. What has only a layer link is a layer then, and may be garbage.
        return {target} if revision else set(), False
    got, whole = {target}, True
    for name in document.names:
        stored = link(folder, '_layers', *name.split(':'))
        if stored and intact(stored, blob(v2, stored)):
            got.add(stored)
        elif name not in document.children and name not in document.urls:
            whole = False
        if name in document.children:
            linked = link(folder, '_manifests', 'revisions', *name.split(':')) is not None
            more, all_of_it = pull(v2, repo, name)
            got |= more
            whole = whole and (all_of_it or not linked)
    return got, whole


def size(v2, repo, tag):
    """The bytes of the distinct blobs that a tag reaches, and of those that are stored."""
    stored, blobs = stored_blobs(v2), set()
    for digest in repo.reach(repo.stands_for(tag), repo.referrer_tags()):
        blobs.add(digest)
        if digest in repo.contents:
            # Under another algorithm than sha256 the link says what is stored.
            blobs |= {name if name.startswith('sha256:') else repo.layers.get(name)
                      for name in repo.contents[digest].names}
    return sum(stored.get(digest, 0) for digest in blobs)


# Deciding

class Outcome:
    """What a run has to do, and `left`: every path below V2 that is there afterwards."""

    def __init__(self):
        self.tags, self.manifests = set(), set()        # (repository, tag), (repository, digest)
        self.repositories, self.blobs = set(), set()
        self.warned = False
        self.left = set()
        self.named = set()      # what the messages name, with -v

    def name_all(self, store):
        """A manifest that is linked as a layer goes as a layer link."""
        self.named = {'repository ' + name for name in self.repositories}
        self.named |= {'blob ' + digest for digest in self.blobs}
        self.named |= {'tag %s:%s' % tag for tag in self.tags}
        self.named |= {'manifest %s@%s' % (name, digest) for name, digest in self.manifests
                       if digest in store[name].revisions}


def expect(v2, images, untagged=False, prune=False, garbage=False, excluded=()):
    store = repositories(v2)
    refuse_unsafe_ground(v2, store)
    outcome = Outcome()
    wanted = {}     # repository -> what the images name of it
    if garbage:
        refuse_a_store_without_links(v2, store)
        wanted = {name: set() for name in store}
    for image in images:
        found = select(store, image)
        outcome.warned = outcome.warned or not found
        for name, part in found:
            wanted.setdefault(name, set()).add(part)
    spared = {name: set() for name in store}    # the same of what is excluded
    for image in excluded:
        found = select(store, image, must_exist=False)
        # Where nothing is asked of a repository, its tags need not be read.
        elsewhere = any(fnmatch.fnmatchcase(name, re.split('[:@]', image)[0])
                        for name in set(store) - set(wanted))
        outcome.warned = outcome.warned or not found and not elsewhere
        for name, part in found:
            spared[name].add(part)

    gone = set()    # folders, relative to V2
    for name, parts in sorted(wanted.items()):
        repo = store[name]
        if WHOLE in spared[name]:
            if garbage:     # which asks every repository
                refuse_unreadable(repo, repo.manifests)
            continue
        whole = WHOLE in parts and not untagged and not spared[name]
        if whole:
            lost = set(repo.tags), set(repo.manifests)
        elif WHOLE in parts and not untagged:
            lost = all_but(repo, spared[name])
        elif WHOLE in parts:
            lost = without_tags(repo, outcome, spared[name])
        else:
            lost = with_tags(repo, {part for part in parts if not is_digest(part)},
                             {part for part in parts if is_digest(part)}, spared[name])
        outcome.tags |= {(name, tag) for tag in lost[0]}
        outcome.manifests |= {(name, digest) for digest in lost[1]}
        if lost == (set(repo.tags), set(repo.manifests)) and (whole or not repo.fresh):
            outcome.repositories.add(name)
            gone |= {'repositories/%s/%s' % (name, part)
                     for part in ('_manifests', '_layers', '_uploads')}
        elif garbage:
            gone |= leave(repo, *lost)
            gone |= unused(repo, set(repo.manifests) - lost[1])
        elif lost != (set(), set()):
            gone |= leave(repo, *lost)

    lost_links, kept_links = set(), set()
    for repo in store.values():
        for folder, linked in repo_links(repo):
            inside = any(is_below(folder, path) for path in gone)
            (lost_links if inside else kept_links).add(linked)
    if garbage:
        lost_links = set(stored_blobs(v2))
        for name, repo in store.items():
            for digest in repo.contents:
                if (name, digest) not in outcome.manifests:
                    kept_links |= repo.contents[digest].names
    for digest in lost_links - kept_links - {''}:
        if blob(v2, digest) is not None:
            outcome.blobs.add(digest)
            gone.add(blob_folder(digest))

    outcome.name_all(store)
    outcome.left = {path for path in every_path(v2)
                    if not any(is_below(path, folder) for folder in gone)}
    for name in sorted(outcome.repositories, reverse=True):
        remove_empty('repositories/' + name, outcome.left)
    if prune:
        prune_empty(store, outcome.left)
    return outcome


def select(store, image, must_exist=True):
    """(repository, WHOLE, a tag or a digest) for all that one -i or -x names."""
    image, _, digest = image.partition('@')
    host, name, tag = IMAGE.match(image).groups()
    if host and host + name not in store:
        host = ''
    name = (host or '') + name
    found = set()
    for repo in store.values():
        if fnmatch.fnmatchcase(repo.name, name):
            parts = {digest} & set(repo.manifests) if digest else {WHOLE}
            if tag:
                tags = repo.ordinary_tags() if PATTERN.search(tag) else repo.tags
                parts = {one for one in tags if fnmatch.fnmatchcase(one, tag)}
            found |= {(repo.name, part) for part in parts}
    if not found and must_exist and not PATTERN.search(image):
        raise Refused('%s does not exist' % (digest or image))
    return found


def with_tags(repo, tags, digests, spared=frozenset()):
    """Delete `tags`, and `digests` with the tags that point at them; never what is `spared`."""
    safe = roots(repo, spared)
    tags, digests = tags - spared, digests - repo.reach(safe, repo.referrer_tags())
    doomed_tags = (tags | {tag for tag in repo.tags if repo.tags[tag] in digests}) - spared
    seeds = set(digests)
    for tag in tags:
        seeds |= repo.history[tag] | {repo.tags[tag] or ''}
    doomed = repo.reach(seeds, repo.referrer_tags())
    untouched = set(repo.manifests) - doomed
    kept = repo.reached_by(set(repo.tags) - doomed_tags, untouched | safe, without=digests)
    for digest in digests:
        for one in kept:
            if one in repo.contents and digest in repo.contents[one].children:
                raise Refused('%s contains %s' % (one, digest))
    lost = doomed - kept
    return doomed_tags | tags_of_referrers(repo, lost) - spared, lost


def without_tags(repo, outcome, spared=frozenset()):
    """Delete what no tag reaches."""
    if repo.manifests and not repo.ordinary_tags():
        outcome.warned = True
        return set(), set()
    lost = set(repo.manifests) - repo.reached_by(set(repo.tags), roots(repo, spared))
    return tags_of_referrers(repo, lost) - spared, lost


def all_but(repo, spared):
    """Delete everything but what is `spared`, and what belongs to that."""
    lost = set(repo.manifests) - repo.reach(roots(repo, spared), repo.referrer_tags())
    return (repo.ordinary_tags() | tags_of_referrers(repo, lost)) - spared, lost


def roots(repo, spared):
    """What tags and digests that are never to be deleted stand for."""
    return {part for part in spared if is_digest(part)}.union(
        *(repo.stands_for(part) for part in spared if not is_digest(part)))


def tags_of_referrers(repo, lost):
    return {tag for tag in repo.referrer_tags() if repo.owner(tag) in lost}


def leave(repo, tags, manifests):
    """The folders that go from a repository that loses these tags and manifests and lives on."""
    base = 'repositories/' + repo.name
    left = set(repo.manifests) - manifests
    refuse_unreadable(repo, left)

    gone = {'%s/_manifests/tags/%s' % (base, tag) for tag in tags}
    for digest in manifests:
        alg, digits = digest.split(':')
        gone.add('%s/_manifests/revisions/%s/%s' % (base, alg, digits))
        gone |= {'%s/_manifests/tags/%s/index/%s/%s' % (base, tag, alg, digits)
                 for tag in repo.tags}
    for digest in named(repo, manifests) - named(repo, left):
        if digest in repo.layers:
            gone.add('%s/_layers/%s' % (base, digest.replace(':', '/')))
    return gone


def unused(repo, manifests):
    """What garbage collection takes from a repository in which `manifests` stay."""
    base = 'repositories/' + repo.name
    used = named(repo, manifests)
    gone = {'%s/_layers/%s' % (base, digest.replace(':', '/'))
            for digest in repo.layer_folders - used}
    gone |= {'%s/_manifests/revisions/%s' % (base, digest.replace(':', '/'))
             for digest in repo.revision_folders - set(repo.revisions)}
    gone |= {'%s/_manifests/tags/%s/index/%s' % (base, tag, digest.replace(':', '/'))
             for tag in repo.tags for digest in repo.history_folders[tag] - set(repo.manifests)}
    gone |= {'%s/_uploads/%s' % (base, upload) for upload, written in repo.uploads.items()
             if written <= time.time() - DAY}
    return gone


def named(repo, manifests):
    """Every layer link that `manifests` need: their own, what they name, and what a sha512 link
    stands for."""
    names = set(manifests)
    for digest in manifests:
        if digest in repo.contents:
            names |= repo.contents[digest].names
    return names | {repo.layers[name] for name in names if repo.layers.get(name)}


def repo_links(repo):
    """(folder, the blob that its link stands for) of every link."""
    base = 'repositories/' + repo.name
    revisions = base + '/_manifests/revisions/'
    for name, content in repo.layers.items():
        yield base + '/_layers/' + name.replace(':', '/'), targets({name: content}).pop()
    for name, content in repo.revisions.items():
        yield revisions + name.replace(':', '/'), targets({name: content}).pop()
        for signature, content in repo.signatures[name].items():
            yield revisions + name.replace(':', '/'), targets({signature: content}).pop()


def stored_blobs(v2):
    """digest -> bytes of every blob."""
    found = {}
    for alg in listing(v2, 'blobs'):
        for start in listing(v2, 'blobs', alg):
            for digits in listing(v2, 'blobs', alg, start):
                path = os.path.join(v2, 'blobs', alg, start, digits, 'data')
                if digits.startswith(start) and is_digest(alg + ':' + digits) \
                        and os.path.exists(path):
                    found[alg + ':' + digits] = os.path.getsize(path)
    return found


def refuse_unreadable(repo, manifests):
    for digest in manifests:
        if repo.manifests[digest] == UNREADABLE:
            raise Refused('%s of %s is unreadable' % (digest, repo.name))


def refuse_a_store_without_links(v2, store):
    if stored_blobs(v2) and not any(True for repo in store.values() for _ in repo_links(repo)):
        raise Refused('no repository has any link')


def refuse_unsafe_ground(v2, store):
    if os.path.exists(os.path.join(os.path.dirname(v2), 'lockfiles', 'database-in-use')):
        raise Refused('the tags are in a database')
    stored = any('data' in files for _, _, files in os.walk(os.path.join(v2, 'blobs')))
    if not stored and any(repo.revisions for repo in store.values()):
        raise Refused('blobs holds nothing')


# Paths

def every_path(v2):
    """Every path below V2; folders end in a slash."""
    paths = set()
    for base, folders, files in os.walk(v2):
        for name in folders:
            paths.add(os.path.relpath(os.path.join(base, name), v2) + '/')
        for name in files:
            paths.add(os.path.relpath(os.path.join(base, name), v2))
    return paths


def is_below(path, folder):
    """Whether `path` is `folder` or in it."""
    return (path + '/').startswith(folder + '/')


def remove_empty(folder, left):
    if not any(path.startswith(folder + '/') and path != folder + '/' for path in left):
        left.discard(folder + '/')


def prune_empty(names, left):
    kept = {'repositories', 'blobs'}
    for name in names:
        base = 'repositories/' + name
        # Any file in _manifests is a tag or a manifest, or what damage left of one.
        if any(path.startswith(base + '/_manifests/') and path[-1] != '/' for path in left):
            kept |= {base + '/_layers', base + '/_manifests/tags', base + '/_manifests/revisions'}
    for path in sorted(left, key=len, reverse=True):
        if path.endswith('/') and path[:-1] not in kept:
            remove_empty(path[:-1], left)
