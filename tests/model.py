"""What a registry serves and what a run has to do, worked out a second time, from the rules alone.

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
TAG = re.compile('[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}')
REFERRER_TAG = re.compile(r'(sha256|sha384|sha512)-([0-9a-f]+)(\..*)?')
COSIGN = ('.sig', '.att', '.sbom')
MANIFEST_TYPES = re.compile(r'application/vnd\.(docker\.distribution\.manifest\.'
                            r'|oci\.(image\.(manifest|index)|artifact\.manifest)\.).*json')
IMAGE = re.compile('((?:localhost|[^/]*:[0-9]+)/)?([^:]*):?(.*)')
PATTERN = re.compile(r'[*?[]')
PARTS = ('_manifests', '_layers', '_uploads')
COMPONENT = re.compile('[a-z0-9]+(?:(?:[.]|__?|-+)[a-z0-9]+)*')
COPIES = ('.snapshot', '.zfs', '#snapshot', '@eaDir')
OWN = '_delete_docker_registry_image.'   # begins the folders that a run sets things aside in
NOT_A_NAME = ('subject', 'annotations')
WHOLE = ''
MISSING, UNREADABLE = 'missing', 'unreadable'
LARGEST_MANIFEST = 4 << 20
DAY = 24 * 3600


class Refused(Exception):
    """Nothing may be deleted."""


# Reading

def is_digest(text):
    alg, _, digits = text.partition(':')
    return alg in DIGITS and re.fullmatch('[0-9a-f]{%d}' % DIGITS[alg], digits) is not None


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
    except (FileNotFoundError, NotADirectoryError):
        return None
    return text if is_digest(text) else ''


def digests(*folder):
    """The digests that the folders <alg>/<hex> below `folder` are named after."""
    return {alg + ':' + digits for alg in listing(*folder)
            for digits in listing(*folder + (alg,)) if is_digest(alg + ':' + digits)}


def links(*folder):
    """digest in the folders' names -> link, of every <alg>/<hex>/link below `folder`."""
    found = {digest: link(*folder + tuple(digest.split(':'))) for digest in digests(*folder)}
    return {digest: content for digest, content in found.items() if content is not None}


def age(*path):
    """How many seconds ago something was written."""
    return time.time() - os.stat(os.path.join(*path)).st_mtime


def age_of_upload(folder):
    """How long ago the newest file of an upload was written."""
    files = [os.path.join(base, name) for base, _, names in os.walk(folder) for name in names]
    return min(age(path) for path in files or [folder])


def stored_under(digest, content):
    """The blob that a link stands for. For sha256 its name says it, whatever the link holds."""
    return digest if digest.startswith('sha256:') else content


def folder_of(digest):
    return digest.replace(':', '/')


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


def intact(digest, data):
    alg, digits = digest.split(':')
    return data is not None and hashlib.new(alg, data).hexdigest() == digits


# Manifests

class Pairs(tuple):
    """A JSON object: every (key, value), of keys that stand twice too. The case of keys is lost,
    as in the registry, whose language takes U+017F for an s."""

    def __new__(cls, pairs):
        return super().__new__(cls, ((key.casefold(), value) for key, value in pairs))

    def values(self, name):
        return [value for key, value in self if key == name]


def objects(value):
    """Every JSON object in `value`, at any depth, but for those below what names nothing."""
    if isinstance(value, Pairs):
        yield value
        for key, one in value:
            if key not in NOT_A_NAME:
                yield from objects(one)
    elif isinstance(value, list):
        for one in value:
            yield from objects(one)


def digests_in(one):
    """The digests that stand right in a JSON object."""
    return {value for key in ('digest', 'blobsum') for value in one.values(key)
            if isinstance(value, str) and is_digest(value)}


class Manifest:
    """`names` every digest that it names; `subjects` what it says it belongs to; `manifests` what
    it names under the media type of a manifest; `elsewhere` what has an address outside."""

    def __init__(self, text):
        document = json.loads(text, object_pairs_hook=Pairs)
        if not isinstance(document, Pairs):
            raise ValueError('no JSON object')
        self.names, self.manifests, self.elsewhere = set(), set(), set()
        for one in objects(document):
            found = digests_in(one)
            self.names |= found
            if any(isinstance(kind, str) and MANIFEST_TYPES.fullmatch(kind)
                   for kind in one.values('mediatype')):
                self.manifests |= found
            if any(one.values('urls')):
                self.elsewhere |= found
        if self.manifests:    # Go reads the second of two lists into the elements of the first
            self.manifests = set(self.names)
        self.subjects = set().union(*(digests_in(one) for one in document.values('subject')
                                      if isinstance(one, Pairs)))


def manifest(v2, digest):
    """A Manifest, or MISSING or UNREADABLE."""
    data = blob(v2, digest)
    if data is None:
        return MISSING
    if not intact(digest, data) or len(data) > LARGEST_MANIFEST:
        return UNREADABLE
    try:
        return Manifest(data.decode())
    except (ValueError, RecursionError):
        return UNREADABLE


# A repository

class Repository:
    def __init__(self, v2, name):
        self.name = name
        self.base = 'repositories/' + name
        folder = os.path.join(v2, self.base)
        tags = os.path.join(folder, '_manifests', 'tags')
        revisions = os.path.join(folder, '_manifests', 'revisions')
        # tag -> the digest that it points at, '' or None when it is broken
        self.tags, self.history, self.history_folders, self.empty_tags = {}, {}, {}, set()
        for tag in listing(tags):
            if not TAG.fullmatch(tag) or not os.path.isdir(os.path.join(tags, tag)):
                continue
            current, index = link(tags, tag, 'current'), set(links(tags, tag, 'index'))
            if current is None and not index:
                self.empty_tags.add(tag)
                continue
            self.tags[tag], self.history[tag] = current, index
            self.history_folders[tag] = digests(tags, tag, 'index')
        self.layers = links(folder, '_layers')
        self.revisions = links(revisions)
        self.signatures = {
            revision: links(revisions, *revision.split(':') + ['signatures'])
            for revision in self.revisions}
        # Every folder where a link belongs, be there one or not.
        self.layer_folders = digests(folder, '_layers')
        self.revision_folders = digests(revisions)
        # How old they are
        self.uploads = {upload: age_of_upload(os.path.join(folder, '_uploads', upload))
                        for upload in listing(folder, '_uploads')}
        self.ages = {digest: age(revisions, folder_of(digest), 'link')
                     for digest in self.revisions}
        self.layer_ages = {digest: age(folder, '_layers', folder_of(digest), 'link')
                           for digest in self.layers}

        self.manifests = {digest: manifest(v2, digest) for digest in self.revisions}
        self.add_manifests_linked_as_layers(v2)
        self.contents = {digest: one for digest, one in self.manifests.items()
                         if isinstance(one, Manifest)}

    def add_manifests_linked_as_layers(self, v2):
        """Registry 2.1.0 linked manifests as layers, and every 2.x serves them."""
        more = True
        while more:
            named = {digest for digest in self.tags.values() if digest}
            named.update(*self.history.values())
            for one in self.manifests.values():
                if isinstance(one, Manifest):
                    named |= one.manifests
            more = {digest: manifest(v2, digest)
                    for digest in named - set(self.manifests) if digest in self.layers}
            # What is whole and no manifest is a layer; what is not there is not known to be one.
            more = {digest: one for digest, one in more.items()
                    if isinstance(one, Manifest) or not intact(digest, blob(v2, digest))}
            self.manifests.update(more)

    def names(self, digest):
        """Every digest that a manifest names. What an unreadable one names is unknown."""
        return self.contents[digest].names if digest in self.contents else set()

    def uses(self, manifests):
        """Every layer link that `manifests` need: their own, what they name, and what a link under
        another algorithm stands for."""
        found = set(manifests).union(*(self.names(digest) for digest in manifests))
        return found | {self.layers[name] for name in found if self.layers.get(name)}

    def is_damaged(self, manifests):
        """Whether what `manifests` and their layer links need is not all known."""
        return any(digest not in self.contents for digest in manifests) or any(
            not stored_under(digest, content) for digest, content in self.layers.items())

    # What reaches what

    def stands_for(self, tag):
        """What a tag reaches first. A broken one may have stood for anything in its history."""
        if tag in self.empty_tags:
            return set()
        if self.tags[tag]:
            return {self.tags[tag]}
        return self.history[tag] or set(self.manifests)

    def pointing_at(self, digests):
        return {tag for tag, digest in self.tags.items() if digest in digests}

    def reach(self, digests, tags=(), without=()):
        """Everything that `digests` reach, never through `without`; `tags` are the referrer tags
        that count on the way."""
        seen, todo = set(), list(digests)
        while todo:
            digest = todo.pop()
            if digest in seen or digest in without or digest not in self.manifests:
                continue
            seen.add(digest)
            todo.extend(self.names(digest))
            todo.extend(name for name, one in self.contents.items() if digest in one.subjects)
            for tag in tags:
                if self.owner(tag) == digest:
                    todo.extend(self.stands_for(tag))
        return seen

    def is_referrer_tag(self, tag):
        match = REFERRER_TAG.fullmatch(tag)
        digest = match and '%s:%s' % match.groups()[:2]
        if not digest or not is_digest(digest):
            return False
        if match.group(3) in COSIGN:
            return True
        return digest in self.manifests and not any(
            one == digest or digest in self.names(one) for one in self.stands_for(tag))

    def owner(self, tag):
        """The manifest of this repository that a referrer tag belongs to, or None."""
        if not self.is_referrer_tag(tag):
            return None
        digest = '%s:%s' % REFERRER_TAG.fullmatch(tag).groups()[:2]
        return digest if digest in self.manifests else None

    def owned_tags(self, manifests=None):
        """The referrer tags that belong to `manifests`, or to any."""
        return {tag for tag in self.tags
                if self.owner(tag) in (self.manifests if manifests is None else manifests)}

    def ordinary_tags(self):
        return {tag for tag in self.tags if not self.is_referrer_tag(tag)}

    def orphans(self):
        """Referrer tags whose image is not here; they stay until they are named."""
        return set(self.tags) - self.ordinary_tags() - self.owned_tags()

    def reached_by(self, tags, manifests=(), without=()):
        """What stays because `tags` or `manifests` stay and `without` does not."""
        owned = self.owned_tags()
        roots = set(manifests).union(*(self.stands_for(tag) for tag in tags - owned))
        return self.reach(roots, tags & owned, without)


def repositories(v2):
    found = {}
    top = os.path.join(v2, 'repositories')
    for base, folders, _ in os.walk(top):
        if set(PARTS) & set(folders):
            name = os.path.relpath(base, top)
            found[name] = Repository(v2, name)
        folders[:] = [name for name in folders
                      if name not in PARTS + COPIES and not name.startswith(OWN)]
    return found


def pull(v2, repo, digest):
    """(what a client that pulls `digest` gets, whether that is all of it)."""
    folder = os.path.join(v2, 'repositories', repo)
    revision = link(folder, '_manifests', 'revisions', *digest.split(':'))
    target = revision or link(folder, '_layers', *digest.split(':'))
    if not target or not intact(target, blob(v2, target)):
        return set(), False
    document = manifest(v2, target)
    if not isinstance(document, Manifest):
        # The registry answers 500. What has only a layer link is a layer then, and may be garbage.
        return {target} if revision else set(), False
    got, whole = {target}, True
    for name in document.names:
        stored = link(folder, '_layers', *name.split(':'))
        linked = link(folder, '_manifests', 'revisions', *name.split(':')) is not None
        if stored and intact(stored, blob(v2, stored)):
            got.add(stored)
        elif not linked and name not in document.manifests | document.elsewhere:
            whole = False
        if linked or name in document.manifests:
            more, all_of_it = pull(v2, repo, name)
            got |= more
            whole = whole and (all_of_it or not linked)
    return got, whole


def size(v2, repo, tag):
    """The bytes of the distinct blobs that a tag reaches, and of those that are stored."""
    stored, blobs = stored_blobs(v2), set()
    for digest in repo.reach(repo.stands_for(tag), repo.owned_tags()):
        # Under another algorithm than sha256 the link says what is stored.
        blobs |= {digest} | {stored_under(name, repo.layers.get(name))
                             for name in repo.names(digest)}
    return sum(stored.get(digest, 0) for digest in blobs)


# Deciding

class Outcome:
    """What a run has to do, and `left`: every path below V2 that is there afterwards."""

    def __init__(self):
        self.tags, self.manifests = set(), set()        # (repository, tag), (repository, digest)
        self.repositories, self.blobs = set(), set()
        self.uploads = set()                            # (repository, upload)
        self.skipped = set()                            # repositories that damage keeps as they are
        self.alone = set()                              # repositories that -u leaves alone
        self.left = set()
        self.status = 0


class Request:
    """The words of a run, and for how long something must have been there to go."""

    def __init__(self, images=(), untagged=False, prune=False, garbage=False, excluded=(),
                 older_than=None, allow_remove_all=False):
        self.images, self.excluded = list(images), list(excluded)
        self.untagged, self.prune, self.garbage = untagged, prune, garbage
        self.older_than, self.allow_remove_all = older_than, allow_remove_all

    def is_young(self, age):
        return self.older_than is not None and age < self.older_than

    def parts(self, store):
        """repository -> what of it the words name, and the same for what they spare."""
        wanted = {name: set() for name in store} if self.garbage else {}
        if self.untagged and not self.images:
            wanted = {name: {WHOLE} for name in store}
        spared = {name: set() for name in store}
        for words, found in [(self.images, wanted), (self.excluded, spared)]:
            for image in words:
                for name, part in select(store, image, excluding=words is self.excluded):
                    found.setdefault(name, set()).add(part)
        for name, parts in spared.items():
            parts |= store[name].pointing_at({part for part in parts if is_digest(part)})
        return wanted, spared


class Loss:
    """What a repository loses. `folders` go with all that is in them."""

    def __init__(self, repo, tags=(), manifests=(), whole=False):
        self.repo, self.whole = repo, whole
        self.tags, self.manifests = set(tags), set(manifests)
        self.folders, self.uploads = set(), set()

    def everything(self):
        """Nothing is left by which the repository could be known."""
        self.whole = True
        self.tags, self.manifests = set(self.repo.tags), set(self.repo.manifests)
        self.uploads = set(self.repo.uploads)
        self.folders = {self.repo.base + '/' + part for part in PARTS}

    def kept_manifests(self):
        return set() if self.whole else set(self.repo.manifests) - self.manifests


def expect(v2, images=(), untagged=False, prune=False, garbage=False, excluded=(),
           older_than=None, allow_remove_all=False):
    request = Request(images, untagged, prune, garbage, excluded, older_than, allow_remove_all)
    store = repositories(v2)
    refuse_unsafe_ground(v2, store, garbage)
    outcome = Outcome()
    wanted, spared = request.parts(store)
    losses = {}
    for name, parts in wanted.items():
        loss = decide(store[name], parts, spared[name], request, outcome)
        if not os.path.isdir(os.path.join(v2, store[name].base)) or not any(
                os.path.lexists(os.path.join(v2, folder)) for folder in loss.folders):
            continue
        if store[name].is_damaged(loss.kept_manifests()) and not loss.whole:
            outcome.skipped.add(name)
        else:
            losses[name] = loss

    gone = set()
    for name, loss in losses.items():
        gone |= loss.folders
        # A folder that is no tag, and a manifest that is linked as a layer, go as what they are.
        outcome.tags |= {(name, tag) for tag in loss.tags & set(loss.repo.tags)}
        outcome.manifests |= {(name, one) for one in loss.manifests & set(loss.repo.revisions)}
        outcome.uploads |= {(name, upload) for upload in loss.uploads}
        if loss.whole:
            outcome.repositories.add(name)
    refuse_to_remove_all(store, wanted, request, outcome)

    outcome.blobs = unneeded_blobs(v2, store, losses, gone, request)
    gone |= {blob_folder(digest) for digest in outcome.blobs}
    before = every_path(v2)
    outcome.left = {path for path in before if not any(is_below(path, folder) for folder in gone)}
    for name in sorted(outcome.repositories, reverse=True):
        remove_empty('repositories/' + name, outcome.left)
    if prune:
        prune_empty(store, outcome)
    if outcome.skipped:
        outcome.status = 3 if outcome.left != before else 1
    return outcome


def select(store, image, excluding=False):
    """(repository, WHOLE, a tag or a digest) for all that one -i or -x names."""
    image, _, digest = image.partition('@')
    host, name, tag = IMAGE.match(image).groups()
    if host and host + name not in store:
        host = ''
    name = (host or '') + name
    found = set()
    for repo in store.values():
        if name == repo.name or fnmatch.fnmatchcase(repo.name, name):
            parts = {digest} & set(repo.manifests) if digest else {WHOLE}
            if tag:
                parts = {one for one in selectable_tags(repo, tag, excluding)
                         if fnmatch.fnmatchcase(one, tag)}
            found |= {(repo.name, part) for part in parts}
    if not found and not PATTERN.search(image):
        raise Refused('%s does not exist' % (digest or image))
    return found


def selectable_tags(repo, tag, excluding):
    """The tags that a pattern may choose from. An exclusion errs towards keeping."""
    if not PATTERN.search(tag):
        return set(repo.tags) | repo.empty_tags
    if excluding:
        return set(repo.tags)
    return repo.ordinary_tags() | (repo.orphans() if tag.startswith(tuple(DIGITS)) else set())


def decide(repo, parts, spared, request, outcome):
    """The Loss of one repository, of which `parts` are asked for and `spared` excluded."""
    if WHOLE in spared:
        return Loss(repo)
    if WHOLE in parts and not request.untagged and not spared:
        loss = Loss(repo)
        loss.everything()
        return loss
    if WHOLE in parts and not request.untagged:
        loss = all_but(repo, spared)
    elif WHOLE in parts:
        loss = untagged_manifests(repo, spared, request, outcome)
    else:
        loss = with_tags(repo, {part for part in parts if not is_digest(part)},
                         {part for part in parts if is_digest(part)}, spared)
    add_folders(loss)
    if request.garbage:
        add_garbage(loss, request)
    if is_finished(loss, request):
        loss.everything()
    return loss


def is_finished(loss, request):
    """Whether neither tag, nor manifest, nor an upload under way is left."""
    repo = loss.repo
    young = any(digest for digest, age in repo.layer_ages.items() if request.is_young(age))
    return (request.garbage and not young or bool(loss.tags | loss.manifests)) \
        and loss.tags == set(repo.tags) and loss.manifests == set(repo.manifests) \
        and all(age >= DAY for age in repo.uploads.values())


def with_tags(repo, tags, digests, spared):
    """Delete `tags`, and `digests` with the tags that point at them; never what is `spared`."""
    owned, safe = repo.owned_tags(), roots(repo, spared)
    tags, digests = tags - spared, digests - repo.reach(safe, owned)
    doomed_tags = tags | repo.pointing_at(digests) - spared
    seeds = set(digests)
    for tag in tags - repo.empty_tags:
        seeds |= repo.history[tag] | {repo.tags[tag] or ''}
    for again in (False, True):  # a signature's tag that goes takes what it stood for with it
        doomed = repo.reach(seeds, owned)
        kept = repo.reached_by(set(repo.tags) - doomed_tags,
                               set(repo.manifests) - doomed | safe, without=digests)
        for tag in repo.owned_tags(doomed - kept) - spared - doomed_tags:
            seeds |= set() if again else repo.history[tag]
    for digest in digests:
        for one in kept:
            if digest in repo.names(one):
                raise Refused('%s contains %s' % (one, digest))
    for tag in set(repo.tags) - doomed_tags:
        if not repo.tags[tag] and repo.stands_for(tag) & digests:
            raise Refused('%s may have stood for it' % tag)
    lost = doomed - kept
    return Loss(repo, doomed_tags | repo.owned_tags(lost) - spared, lost)


def untagged_manifests(repo, spared, request, outcome):
    """Delete what no tag reaches, but for what is young."""
    if repo.manifests and not repo.ordinary_tags():
        outcome.alone.add(repo.name)
        return Loss(repo)
    young = {digest for digest in repo.manifests if request.is_young(repo.ages.get(digest, 0))}
    kept = repo.reached_by(set(repo.tags), roots(repo, spared) | young)
    lost = set(repo.manifests) - kept
    return Loss(repo, repo.owned_tags(lost) - spared, lost)


def all_but(repo, spared):
    """Delete everything but what is `spared`, and what belongs to that."""
    kept = repo.reach(roots(repo, spared), repo.owned_tags())
    lost = set(repo.manifests) - kept
    return Loss(repo, set(repo.tags) - repo.owned_tags(kept) - spared, lost)


def roots(repo, spared):
    """What tags and digests that are never to be deleted stand for."""
    return {part for part in spared if is_digest(part)}.union(
        *(repo.stands_for(part) for part in spared if not is_digest(part)))


def add_folders(loss):
    """The folders that go from a repository that loses these tags and manifests and lives on."""
    repo, base = loss.repo, loss.repo.base
    loss.folders |= {'%s/_manifests/tags/%s' % (base, tag) for tag in loss.tags}
    for digest in loss.manifests:
        loss.folders.add('%s/_manifests/revisions/%s' % (base, folder_of(digest)))
        loss.folders |= {'%s/_manifests/tags/%s/index/%s' % (base, tag, folder_of(digest))
                         for tag in repo.tags}
    unused = repo.uses(loss.manifests) - repo.uses(loss.kept_manifests())
    loss.folders |= {'%s/_layers/%s' % (base, folder_of(digest))
                     for digest in unused if digest in repo.layers}


def add_garbage(loss, request):
    """What garbage collection takes from a repository that loses so much and lives on."""
    repo, base = loss.repo, loss.repo.base
    left = loss.kept_manifests()
    young = {digest for digest, age in repo.layer_ages.items() if request.is_young(age)}
    needed = repo.uses(left) | young | {repo.layers[digest] for digest in young}
    loss.folders |= {'%s/_layers/%s' % (base, folder_of(digest))
                     for digest in repo.layer_folders - (needed & set(repo.layers))}
    loss.folders |= {'%s/_manifests/revisions/%s' % (base, folder_of(digest))
                     for digest in repo.revision_folders - set(repo.revisions)}
    loss.folders |= {'%s/_manifests/tags/%s/index/%s' % (base, tag, folder_of(digest))
                     for tag, current in repo.tags.items() if current    # else it tells what was
                     for digest in repo.history_folders[tag] - set(repo.manifests)}
    loss.folders |= {'%s/_manifests/tags/%s' % (base, tag) for tag in repo.empty_tags}
    loss.uploads = {upload for upload, age in repo.uploads.items() if age >= DAY}
    loss.folders |= {'%s/_uploads/%s' % (base, upload) for upload in loss.uploads}


def unneeded_blobs(v2, store, losses, gone, request):
    """What no link stands for any more; with -g also what nothing ever linked or names."""
    stored, lost_links, kept_links, named = stored_blobs(v2), set(), set(), set()
    for name, repo in store.items():
        for folder, linked, counts in repo_links(repo):
            if not any(is_below(folder, path) for path in gone):
                kept_links.add(linked)
            elif counts:
                lost_links.add(linked)
        kept = losses[name].kept_manifests() if name in losses else repo.manifests
        named.update(*(repo.names(digest) for digest in kept))
    if request.garbage:
        lost_links |= {digest for digest in stored if not request.is_young(
            age(v2, blob_folder(digest), 'data'))}
        kept_links |= named
    return (lost_links - kept_links) & set(stored)


def repo_links(repo):
    """(folder, the blob that its link stands for, whether that goes with its last link)."""
    revisions = repo.base + '/_manifests/revisions/'
    for name, content in repo.layers.items():
        yield repo.base + '/_layers/' + folder_of(name), stored_under(name, content), True
    for name, content in repo.revisions.items():
        yield revisions + folder_of(name), stored_under(name, content), True
        for signature, content in repo.signatures[name].items():
            yield revisions + folder_of(name), stored_under(signature, content), False


def refuse_unsafe_ground(v2, store, garbage):
    if os.path.exists(os.path.join(os.path.dirname(v2), 'lockfiles', 'database-in-use')):
        raise Refused('the tags are in a database')
    stored = any('data' in files for _, _, files in os.walk(os.path.join(v2, 'blobs')))
    if not stored and any(repo.revisions for repo in store.values()):
        raise Refused('blobs holds nothing')
    if garbage and stored and not any(True for repo in store.values() for _ in repo_links(repo)):
        raise Refused('no repository has any link')


def refuse_to_remove_all(store, wanted, request, outcome):
    """Referrer tags that are left of what was asked of are no images."""
    left = {(name, tag) for name, repo in store.items()
            for tag in (repo.ordinary_tags() if name in wanted else repo.tags)} - outcome.tags
    if (outcome.tags or outcome.manifests) and not left \
            and not request.allow_remove_all and not request.untagged \
            and any(PATTERN.search(image) for image in request.images):
        raise Refused('patterns would leave no tag')


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


def prune_empty(store, outcome):
    """Remove the empty folders that are the registry's by name, where all above them are, too."""
    left = outcome.left
    bases = {repo.base for repo in store.values()}
    for path in sorted(left, key=lambda path: -path.count('/')):
        above, _, name = path[:-1].rpartition('/')
        if path[-1] != '/' or path in ('repositories/', 'blobs/') \
                or not all(TAG.fullmatch(part) for part in path[:-1].split('/')):
            continue
        names = path[:-1].split('/')[1:]
        if not set(PARTS) & set(names) and not all(COMPONENT.fullmatch(part) for part in names):
            continue    # no registry calls a repository so, and it is none
        base = above[:-len('/_manifests')] if above.endswith('/_manifests') else above
        if base in bases and name in ('_layers', 'tags', 'revisions') and any(
                is_below(one.rstrip('/'), '%s/_manifests/%s' % (base, part))
                and one != '%s/_manifests/%s/' % (base, part)
                for one in left for part in ('tags', 'revisions')):
            continue    # it has a tag or a manifest, or what damage left of one
        remove_empty(path[:-1], left)
