"""A fault in the part of the script that only decides harms no image: faults are planted there.

Each planted fault is a copy of the script with one thing wrong in its Part 2. It runs what an
operator may ask for on small stores in which most of what can be shared is shared. Whatever the
fault makes of the plan: each tag that stays is as complete as before, and no tag goes that no word
of the request names. What a run may take is said beside its words, in CASES, and what an image
needs is found out here: nothing of either comes from the script.

To plant more faults than the test does, from the seed 7 on, and see each that did harm:

    python3 tests/test_guard.py delete_docker_registry_image.py 7 500
"""

import ast
import collections
import concurrent.futures
import fnmatch
import io
import json
import multiprocessing
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types

from faults import fast_folder
from mutants import faults
from tree import DAY, DOCKER_LIST, GARBAGE, Tree, digest_of, encode, set_age, write

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPT = os.path.join(os.path.dirname(HERE), 'delete_docker_registry_image.py')
PART_2 = '# == Part 2: all that only decides =='
END_OF_PLANNING = '\nclass RegistryCleaner:'
REFUSAL = 'fault in this program'
ABSENT = digest_of(b'an image of another registry')
CPU_SECONDS, SECONDS = 4, 60    # that a case may take
MEMORY = 1 << 30
LEFT_THE_STORE = 77     # exit status
REFUSED, CRASHED, STOPPED, OUTSIDE, OTHER, LESS = (
    'refused by the guard', 'crashed', 'stopped for taking too long',
    'stopped at a change outside the store', 'deleted other things', 'deleted the same or less')


# Stores

class Shop:
    """A tree, and the digests in it that requests name; `all_stays` if none may be cleaned."""

    all_stays = False

    def __init__(self, folder):
        self.tree = Tree(folder)
        self.digests = {'absent': ABSENT}

    def image(self, repo, *layers, **more):
        return self.tree.image(repo, layers, config=encode({'for': [repo, len(layers)]}), **more)

    def referrer_tag(self, repo, image, suffix, digest):
        self.tree.tag(repo, image.replace(':', '-') + suffix, digest)


def shared(folder):
    """Nested repositories that share layers and manifests; indexes in indexes; referrers."""
    shop = Shop(folder)
    tree, image = shop.tree, shop.image

    old = image('app', b'os', b'old')
    for digest in (old, image('app', b'os', b'libs', b'one')):
        tree.tag('app', '1.0', digest, age=30 * DAY)
    amd, arm = image('app', b'os', b'libs', b'amd'), image('app', b'os', b'arm')
    several = tree.index('app', [amd, arm], kind=DOCKER_LIST)
    tree.tag('app', '1.1', several, age=20 * DAY)
    tree.tag('app', '1.1-amd64', amd, age=20 * DAY)
    nested = tree.index('app', [several, image('app', b'os', b'riscv')])
    tree.tag('app', '2.0', nested, age=10 * DAY)
    tree.tag('app', 'latest', several, age=9 * DAY)
    tree.tag('app', 'latest', nested, age=9 * DAY)
    shop.referrer_tag('app', several, '.sig', image('app', b'signature'))
    shop.referrer_tag('app', several, '.att', image('app', b'attestation', b'libs'))
    statement = image('app', b'statement', subject=old)
    shop.referrer_tag('app', old, '', tree.index('app', [statement]))
    shop.referrer_tag('app', ABSENT, '.sig', image('app', b'orphan'))
    untagged = image('app', b'os', b'untagged')
    image('app', b'statement on what has no tag', subject=untagged)
    tree.upload('app', 'begun')

    for data in (b'os', b'libs', b'one'):
        tree.layer('app/base', data)
    tree.layer('app/base', encode({'for': ['app', 3]}))
    again = tree.manifest('app/base', content(tree, 'app', '1.0'))
    tree.tag('app/base', '1.0', again, age=3 * DAY)
    tree.tag('app/base', '2.0', image('app/base', b'os', b'libs', b'two'), age=2 * DAY)
    for number in range(1, 6):
        build = image('app/base/ci', b'os', b'build %d' % (number // 2))
        tree.tag('app/base/ci', 'build-%d' % number, build, age=(10 - number) * DAY)
    shop.referrer_tag('app/base/ci', build, '.sbom', image('app/base/ci', b'sbom', b'os'))
    image('app/base/ci', b'os', b'untagged')

    for number, tag in enumerate(('v1.0.0', 'v1.1.0', 'v2.0.0-rc1', 'v2.0.0')):
        web = image('team/web', b'os', b'web %d' % number, b'assets')
        tree.tag('team/web', tag, web, age=(8 - number) * DAY)
        if tag == 'v1.1.0':
            tree.tag('team/web', 'prod', web, age=DAY)
            shop.digests['prod'] = web
    bundle = image('bundle', b'os', b'bundle')
    tree.tag('bundle', '1.0', bundle, age=9 * DAY)
    shop.referrer_tag('bundle', bundle, '.imgpkg', bundle)
    part = image('bundle', b'os', b'part')
    shop.referrer_tag('bundle', part, '', tree.index('bundle', [part]))
    tree.tag('bundle', 'part', part, age=9 * DAY)
    tree.tag('team/web-old', 'v1.0.0', image('team/web-old', b'os', b'assets'), age=90 * DAY)
    tree.tag('team/web-old', 'kept', image('team/web-old', b'assets', b'libs'), age=90 * DAY)
    tree.tag('other', '1.0', image('other', b'os'), age=DAY)
    image('store/untagged', b'os', b'by digest')
    shop.digests.update(old=old, several=several, nested=nested, untagged=untagged, arm=arm,
                        part=part)
    return shop


def database(folder):
    """The same with its tags in a database, so that the disk does not tell what is in use."""
    shop = shared(folder)
    write(os.path.join(os.path.dirname(shop.tree.v2), 'lockfiles', 'database-in-use'), b'')
    shop.all_stays = True
    return shop


def no_blobs(folder):
    """The same with the disk of its blobs not mounted."""
    shop = shared(folder)
    shutil.rmtree(os.path.join(shop.tree.v2, 'blobs', 'sha256'))
    shop.all_stays = True
    return shop


def no_links(folder):
    """The same with the disk of its repositories not mounted."""
    shop = shared(folder)
    for name in os.listdir(shop.tree.repo('')):
        shutil.rmtree(shop.tree.repo(name))
    shop.all_stays = True
    return shop


def odd(folder):
    """What old registries, other algorithms, damage and interrupted pushes leave."""
    shop = Shop(folder)
    tree, image = shop.tree, shop.image

    first, second = (image('legacy', b'os', b'legacy %d' % n, legacy=True) for n in (1, 2))
    tree.tag('legacy', '1.0', first)
    tree.tag('legacy', '2.0', tree.index('legacy', [second, image('legacy', b'os', b'three')]))
    third = image('legacy', b'os', b'legacy 4', legacy=True)
    tree.tag('legacy', '3.0', tree.index('legacy', [third], legacy=True))
    tree.layer('legacy', b'of no manifest')

    tree.tag('signed', '1.0', tree.schema1('signed', [b'os', b'signed'], signatures=2))
    tree.tag('signed', '2.0', tree.schema1('signed', [b'os', b'again'], signatures=1, tag='2.0'))

    wide = tree.layer('wide', b'wide', 'sha512')
    tree.tag('wide', '1.0', image('wide', b'os', wide))
    tree.tag('wide', '2.0', image('wide', b'second', wide))
    lone = tree.layer('wide', b'lone', 'sha512')
    os.remove(tree.layer_link('wide', digest_of(b'lone')))
    tree.tag('wide', '3.0', image('wide', lone))
    tree.layer('wide/borrower', b'lone')
    tree.tag('wide/borrower', '1.0', image('wide/borrower', digest_of(b'lone'), b'wide'))

    tree.tag('broken', 'good', image('broken', b'os', b'good'))
    for tag, what in (('empty', b''), ('garbage', GARBAGE)):
        tree.tag('broken', tag, image('broken', b'os', tag.encode()))
        write(tree.tag_link('broken', tag), what)
    tree.tag('broken', 'lost', image('broken', b'lost'))
    os.remove(tree.tag_link('broken', 'lost'))
    image('broken', b'os', b'untagged')
    tree.tag('broken/all', 'good', image('broken/all', b'os', b'good'))
    image('broken/all', b'may be what it stood for')
    write(tree.tag_link('broken/all', 'bare'), b'')

    tree.tag('cache', 'build', tree.cache('cache', [b'os', b'cached']))
    tree.tag('cache', 'sparse', tree.index('cache', [ABSENT, image('cache', b'here')]))
    tree.tag('cache', 'foreign', image('cache', b'os', foreign=[ABSENT]))
    tree.tag('hollow', '1.0', tree.index('hollow', [ABSENT]))
    tree.tag('cache', 'artifact', tree.artifact('cache', [b'text', b'cached']))

    tree.tag('damaged', 'good', image('damaged', b'os', b'good'))
    tree.tag('damaged', 'other', image('damaged', b'os', b'other'))
    lost = image('damaged', b'unreadable')
    tree.tag('damaged', 'bad', lost)
    tree.remove_blob(lost)
    image('damaged', b'os', b'untagged')

    spell(shop)
    leftovers(shop)
    tree.blob(b'linked nowhere')
    tree.blob(encode({'config': {'digest': ABSENT}}))
    shop.digests.update(first=first, second=second, lost=lost)
    return shop


def spell(shop):
    """A manifest whose keys stand twice, or in capital letters."""
    tree = shop.tree
    config, one, two = (tree.layer('spelled', data) for data in (b'{"a": 1}', b'one', b'two'))
    text = ('{"schemaVersion": 2, "CONFIG": {"Digest": "%s"}, "config": null, '
            '"layers": [{"digest": "%s"}], "Layers": [{"digest": "%s"}]}' % (config, one, two))
    tree.tag('spelled', '1.0', tree.manifest('spelled', text.encode()), age=9 * DAY)
    tree.tag('spelled', '2.0', shop.image('spelled', b'one', b'os'), age=8 * DAY)
    tree.tag('spelled', '3.0', shop.image('spelled', b'two', b'three'), age=7 * DAY)


def leftovers(shop):
    """What deletions over the API, and pushes that were cut short, leave in `rest`."""
    tree, image = shop.tree, shop.image
    gone, former = image('rest', b'gone', b'os'), image('rest', b'former')
    stays = image('rest', b'stays', b'os')
    for digest in (gone, former, stays):
        tree.tag('rest', '1.0', digest, age=5 * DAY)
    tree.tag('rest', '2.0', image('rest', b'os', b'second'), age=4 * DAY)
    tree.tag('rest', 'dangling', former)
    os.remove(tree.revision_link('rest', gone))
    os.remove(tree.revision_link('rest', former))
    unused = tree.layer('rest', b'unused')
    os.remove(tree.layer_link('rest', tree.layer('rest', b'linkless')))
    os.makedirs(tree.repo('rest', '_manifests', 'tags', 'removed', 'index'))
    tree.upload('rest', 'old', age=2 * DAY)
    tree.upload('rest', 'new')
    for link in (tree.layer_link('rest', unused), tree.revision_link('rest', stays)):
        set_age(link, 9 * DAY)
    tree.upload('begun/only', 'upload', age=3 * DAY)
    os.makedirs(tree.repo('empty', '_layers', 'sha256'))


def content(tree, repo, tag):
    with open(tree.tag_link(repo, tag)) as link:
        digest = link.read()
    with open(tree.blob_path(digest), 'rb') as blob:
        return blob.read()


# Requests

class Case:
    """Words of a command line, or a method with its arguments, and what they name: `NAME`, whole,
    or `NAME:TAG`, both may be patterns. `kept`, also `NAME@DIGEST`, wins over `named`."""

    def __init__(self, store, words, named='', kept='', stdin=''):
        self.store, self.words, self.stdin = store, words, stdin
        self.named, self.kept = named.split(), kept.split()

    def names(self, repo, tag, is_referrer, is_orphan):
        def matches(text):
            name, colon, pattern = text.partition(':')
            if not fnmatch.fnmatchcase(repo, name):
                return False
            if is_referrer and colon and pattern != tag:
                return is_orphan and pattern.startswith('sha256-')
            return not colon or fnmatch.fnmatchcase(tag, pattern)

        return any(map(matches, self.named)) and not any(map(matches, self.kept))

    def call(self, module, box):
        """Make the run; return its exit status."""
        words = shlex.split(self.words.format(save=box.root + '/saved.tar', **box.shop.digests))
        if words[0].startswith('-'):
            return module.main(['-d', box.tree.v2] + words)
        dry_run = words[0] == 'dry_run'
        method, *arguments = words[dry_run:]
        try:
            getattr(module.RegistryCleaner(box.tree.v2, dry_run), method)(*arguments)
            return 0
        except module.RegistryCleanerError as error:
            print(error)
            return 1


STORES = (shared, odd, database, no_blobs, no_links)
TAKING = [
    Case(shared, '-i app:1.0', 'app:1.0'),
    Case(shared, '-i app:1.1 -i team/web:prod -i other:1.0', 'app:1.1 team/web:prod other:1.0'),
    Case(shared, '-i app', 'app'),
    Case(shared, '-i app -x app:1.1-amd64 -x app@{nested}', 'app',
         'app:1.1-amd64 app:2.0 app:latest app@{nested}'),
    Case(shared, '-i app/base/ci:* --keep-last 2 -x app/base/ci:build-1', 'app/base/ci:*',
         'app/base/ci:build-1'),
    Case(shared, '-i *:* --older-than 4d -x team/*:v1.0.0 -x app:1.0 -g', '*:*',
         'team/*:v1.0.0 app:1.0'),
    Case(shared, '-i *web*:/v[0-9]+.*/ --keep-last 1 --by version -p', '*web*:v[0-9]*'),
    Case(shared, '-i app@{nested} -i team/web@{prod} -x team/web:prod',
         'app:2.0 app:latest team/web:v1.1.0', 'team/web:prod'),
    Case(shared, '-i app@{untagged} -i app:sha256-*', 'app:sha256-*'),
    Case(shared, '-u -i app -i store/untagged'),
    Case(shared, '-u -x app/base/ci'),
    Case(shared, '-u -i bundle -i other -i app* -x app/base'),
    Case(shared, '-u -g -p -i *'),
    Case(shared, '-i - -x team/web:prod -p', 'app/base team/web:v*', 'team/web:prod',
         stdin='app/base\n# what follows is old\n\nteam/web:v*\n'),
    Case(shared, '-i localhost:5000/app:2.0 -i app:latest -g', 'app:2.0 app:latest'),
    Case(shared, '-i app:* -x registry.example/app:2.0 -x app:/1[.]1.*/', 'app:*',
         'app:2.0 app:1.1*'),
    Case(shared, '-i app:1.1@{several} -i bundle:1.0 -i bundle:part --save {save}',
         'app:1.1 bundle:1.0 bundle:part'),
    Case(shared, '-i *:* --allow-remove-all -g -x bundle:sha256-*', '*:*', 'bundle:sha256-*'),
    Case(shared, '-i app -i bundle -x -', 'app bundle', 'app:2.0 app:latest bundle@{part}',
         stdin='app@{nested}\n\n# and\nbundle@{part}\n'),
    Case(shared, 'delete_entire_repository app', 'app'),
    Case(shared, 'delete_repository_tag app 1.1', 'app:1.1'),
    Case(shared, 'delete_untagged app'),
    Case(odd, '-i legacy:1.0 -i wide:1.0 -i signed:1.0 -i cache:build',
         'legacy:1.0 wide:1.0 signed:1.0 cache:build'),
    Case(odd, '-i legacy:2.0 -i wide:2.0 -i broken:empty -i spelled:2.0 -g',
         'legacy:2.0 wide:2.0 broken:empty spelled:2.0'),
    Case(odd, '-g -p'),
    Case(odd, '-g -u -p --older-than 1d -x cache'),
    Case(odd, '-u -g -p -i *'),
    Case(odd, '-i broken:good -i damaged:good -i rest:1.0', 'broken:good damaged:good rest:1.0'),
    Case(odd, '-i *:[23].0 -i wide -x legacy:3.0 -x spelled:3.0 -g -p', '*:[23].0 wide',
         'legacy:3.0 spelled:3.0'),
    Case(odd, '-i damaged@{lost} -i spelled:3.0', 'damaged:bad spelled:3.0'),
    Case(odd, '-i rest:* -i spelled:* --keep-last 1 --older-than 1d -g -p --json',
         'rest:* spelled:*'),
]
IDLE = [
    Case(shared, "delete_repository_tag app ''"),
    Case(shared, 'dry_run delete_entire_repository app'),
    Case(database, '-u -g -i *'),
    Case(database, '-i app', 'app'),
    Case(no_blobs, '-g -i app:1.0 -p', 'app:1.0'),
    Case(no_blobs, '-u'),
    Case(no_links, '-g -p'),
    Case(shared, '-i app:latest@{several} -i app:1.0', 'app:1.0'),
    Case(shared, '-n -g -p -i app:*'),
    Case(shared, '-l -i app'),
]
CASES = TAKING + IDLE


# What an image needs, and whether it has it

class Pairs(list):
    """A JSON object, in which a key may stand twice."""


def named_in(part):
    """Every digest that a document names, but for those below its subject and annotations."""
    found = set()
    for one in part:
        key, value = one if isinstance(part, Pairs) else ('', one)
        if key.lower() in ('digest', 'blobsum') and isinstance(value, str):
            found.add(value)
        elif key.lower() not in ('subject', 'annotations') and isinstance(value, list):
            found |= named_in(value)
    return found


def document(path):
    """The JSON object in a file, empty if there is none."""
    try:
        with open(path, 'rb') as file:
            found = json.loads(file.read().decode(), object_pairs_hook=Pairs)
    except (OSError, ValueError):
        found = None
    return found if isinstance(found, Pairs) else Pairs()


class Sandbox:
    """One of the stores, which can be looked at and made again as it was.

    `before` is what it holds: the paths below `root`, with a slash behind those of folders.
    """

    def __init__(self, build, root):
        self.root = root
        self.shop = build(root)
        self.tree = self.shop.tree
        self.before = self.paths()
        self.stored = {path: self.remember(path) for path in self.before}
        self.tags, self.manifests, self.owners = {}, {}, {}
        for repo in sorted({path[len('docker/registry/v2/repositories/'):-len('/_manifests/')]
                            for path in self.before if path.endswith('/_manifests/')}):
            self.study(repo)

    # Making it again

    def paths(self):
        found, todo = set(), [self.root]
        while todo:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    found.add(self.relative(entry.path) + '/' * is_folder)
                    todo += [entry.path] * is_folder
        return found

    def relative(self, path):
        return path[len(self.root) + 1:]

    def remember(self, path):
        full = os.path.join(self.root, path)
        data = None
        if not path.endswith('/'):
            with open(full, 'rb') as file:
                data = file.read()
        return data, os.stat(full).st_mtime_ns

    def restore(self, after):
        for path in sorted(after - self.before, reverse=True):
            (os.rmdir if path.endswith('/') else os.remove)(os.path.join(self.root, path))
        missing = sorted(self.before - after)
        for path in missing:
            full, data = os.path.join(self.root, path), self.stored[path][0]
            if data is None:
                os.mkdir(full)
            else:
                write(full, data)
        for path in reversed(missing):
            os.utime(os.path.join(self.root, path), ns=(self.stored[path][1],) * 2)

    # Looking at it

    def study(self, repo):
        """Learn what makes each tag and each manifest of `repo` one, and what a pull of it needs.

        So does the registry need the folders to know the repository.
        """
        tags, revisions, layers = (self.relative(self.tree.repo(repo, folder)) + '/' for folder in (
            '_manifests/tags', '_manifests/revisions', '_layers'))
        folders = {tags, revisions, layers} & self.before
        links = {path for path in self.before if path.endswith('/link')}
        for link in links:
            if link.startswith(revisions) and link.count('/') == revisions.count('/') + 2:
                digest = ':'.join(link.split('/')[-3:-1])
                self.manifests[repo, digest] = link, folders | self.needs(repo, digest)
        for tag in {link[len(tags):].split('/')[0] for link in links if link.startswith(tags)}:
            current = self.relative(self.tree.tag_link(repo, tag))
            history = {link for link in links if link.startswith(tags + tag + '/')}
            digest = self.digest_in(current)
            self.tags[repo, tag] = {current} & links or history, folders | self.needs(repo, digest)
            self.owners[repo, tag] = self.owner(repo, tag, digest)

    def digest_in(self, link):
        """What a link holds, '' where that is no digest."""
        text = (self.stored.get(link) or [b''])[0].decode('latin-1')
        return text if re.fullmatch('sha(256:[0-9a-f]{64}|512:[0-9a-f]{128})', text) else ''

    def needs(self, repo, digest):
        """The files that a pull of `digest`, and of whatever that names, finds in the store: links
        in `repo` and the blobs that they stand for."""
        found, todo = set(), [digest] if digest else []
        for digest in todo:     # grows as it goes
            for link in map(self.relative, (self.tree.revision_link(repo, digest),
                                            self.tree.layer_link(repo, digest))):
                if link in self.before:
                    stored = self.digest_in(link) or digest
                    blob = self.tree.blob_path(stored)
                    found |= {link, self.relative(blob)} & self.before
                    todo += ({stored} | named_in(document(blob))).difference(todo)
        return found

    def owner(self, repo, tag, digest):
        """The image that a referrer tag, which points at `digest`, belongs to.

        None for an ordinary tag, be it called by the digest of an image of its own.
        """
        match = re.fullmatch(r'sha256-([0-9a-f]{64})(\..*)?', tag)
        if not match:
            return None
        owner = 'sha256:' + match.group(1)
        if match.group(2) in ('.sig', '.att', '.sbom'):
            return owner
        is_its_own = digest and owner in {digest} | named_in(document(self.tree.blob_path(digest)))
        return owner if (repo, owner) in self.manifests and not is_its_own else None

    def harm(self, case, after):
        """What of `after` breaks the promise, given what `case` names."""
        found = []
        for (repo, tag), (marks, needed) in self.tags.items():
            if marks & after:
                found += ['%s:%s lacks %s' % (repo, tag, path) for path in needed - after]
            elif not (self.is_named(case, repo, tag) or self.went_with_its_image(repo, tag, after)):
                found.append('%s:%s is gone' % (repo, tag))
        for (repo, digest), (link, needed) in self.manifests.items():
            if link in after:
                found += ['%s@%s lacks %s' % (repo, digest, path) for path in needed - after]
        stays = {self.relative(self.tree.v2) + '/' + top for top in ('blobs/', 'repositories/')}
        stays = self.before if self.shop.all_stays else stays | self.excluded(case)
        return sorted(found) + ['%s is gone' % path for path in sorted(stays - after)]

    def excluded(self, case):
        """The links of the manifests that are excluded by their digest."""
        images = [text.format(**self.shop.digests).partition('@') for text in case.kept]
        return self.before & {self.relative(link(repo, digest)) for repo, at, digest in images if at
                              for link in (self.tree.revision_link, self.tree.layer_link)}

    def is_named(self, case, repo, tag):
        owner = self.owners[repo, tag]
        return case.names(repo, tag, owner is not None, (repo, owner) not in self.manifests)

    def went_with_its_image(self, repo, tag, after):
        """Whether a referrer tag went with the image that it belonged to."""
        image = self.manifests.get((repo, self.owners[repo, tag]))
        return image is not None and image[0] not in after


# Running

class Program:
    """The script, in which faults can be planted."""

    def __init__(self, path):
        with open(path) as file:
            source = file.read()
        self.path = path
        self.statements = ast.parse(source).body
        self.codes = [self.compiled(statement) for statement in self.statements]
        first_line, self.last_line = (
            source[:source.index(mark)].count('\n') + 1 for mark in (PART_2, END_OF_PLANNING))
        self.faults = faults(self.statements, first_line)

    def weight(self, number):
        """How likely a fault is to be chosen: one in the planning five times as likely."""
        return 5 if self.faults[number].lines[0] < self.last_line else 1

    def compiled(self, statement):
        return compile(ast.Module([statement], []), self.path, 'exec')

    def plant(self, fault):
        fault.plant()
        self.codes[fault.statement] = self.compiled(self.statements[fault.statement])

    def load(self, guarded=True):
        """The script as a module."""
        module = types.ModuleType('delete_docker_registry_image')
        sys.modules[module.__name__] = module
        for code in self.codes:
            exec(code, vars(module))
        if not guarded:
            switch_off_the_guard(module)
        return module


class Anything(set):
    """Contains whatever is asked for."""

    def __ge__(self, other):
        return True


def switch_off_the_guard(module):
    """Let every plan pass. The guard says what stays in each repository: anything may."""
    module.guard = lambda store, request, plan: {
        reference.repository: [Anything(), Anything()] for reference in plan.references}


def run(module, case, box):
    """(what became of a run, all that it said)."""
    text = io.TextIOWrapper(io.BytesIO(), write_through=True)
    stdin = io.TextIOWrapper(io.BytesIO(case.stdin.format(**box.shop.digests).encode()))
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = stdin, text, text
    try:
        status = case.call(module, box)
    except SystemExit as error:
        status = error.code
    except BaseException:
        status = traceback.format_exc()
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
    said = text.buffer.getvalue().decode()
    if status not in (0, 1, 2, 3):
        return CRASHED, '%s\n%s' % (said, status)
    return REFUSED if status == 1 and REFUSAL in said else 'exit %d' % status, said


def limit_time():
    """Let the system end this process if it is busy for too long, or waits for ever."""
    resource.setrlimit(resource.RLIMIT_CPU, (
        int(time.process_time()) + CPU_SECONDS, resource.RLIM_INFINITY))
    signal.alarm(SECONDS)


class Trial:
    """Runs cases on stores of its own, in processes that may come to any end."""

    def __init__(self, program, folder):
        self.program = program
        self.boxes = {build: Sandbox(build, tempfile.mkdtemp(dir=folder)) for build in STORES}

    def result(self, case, outcome, said=''):
        box = self.boxes[case.store]
        after = box.paths()
        harm = box.harm(case, after)
        box.restore(after)
        return [outcome, harm, sorted(box.before - after), said]

    def run_all(self, number, chosen):
        """Yield (case, guarded, outcome, harm, what is gone, what was said) of the fault `number`
        in the cases `chosen`; where the guard refused, also without it."""
        left = list(chosen)
        while left:
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                os.close(reader)
                try:
                    self.become_the_runs(number, left, writer)
                finally:
                    os._exit(0)
            os.close(writer)
            begun, before = None, left
            with open(reader) as lines:
                for line in map(json.loads, lines):
                    if len(line) > 2:
                        yield line
                        begun = None
                    else:
                        begun = line
                        left = left[left.index(line[0]) + 1:] if line[0] in left else left
            status = os.waitpid(child, 0)[1]
            assert left is not before, 'fault %s cannot be planted' % number
            if begun:
                outside = os.WIFEXITED(status) and os.WEXITSTATUS(status) == LEFT_THE_STORE
                yield begun + self.result(CASES[begun[0]], OUTSIDE if outside else STOPPED)

    def become_the_runs(self, number, chosen, writer):
        """Plant the fault, run the cases, and tell of each when it begins and what came of it."""
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        def tell(*what):
            os.write(writer, json.dumps(what).encode() + b'\n')

        if number is not None:
            self.program.plant(self.program.faults[number])
        for case in chosen:
            limit_time()
            for guarded in (True, False):
                tell(case, guarded)
                try:
                    outcome, said = run(self.program.load(guarded), CASES[case],
                                        self.boxes[CASES[case].store])
                except BaseException:
                    outcome, said = CRASHED, traceback.format_exc()
                tell(case, guarded, *self.result(CASES[case], outcome, said))
                if outcome == CRASHED:
                    return
                if outcome != REFUSED:
                    break


def lines_run(program, trial):
    """For each case the lines of the script that run in it, each time with the script as it is."""
    found = []
    for case in CASES:
        lines = set()

        def trace(frame, event, argument):
            if frame.f_code.co_filename != program.path:
                return None
            lines.add(frame.f_lineno)
            return trace

        sys.settrace(trace)
        try:
            module = program.load()
            run(module, case, trial.boxes[case.store])
        finally:
            sys.settrace(None)
        trial.result(case, '')
        found.append(lines)
    return found


def choose(program, lines, seed, count, most):
    """`count` of the faults that some case runs, of all kinds alike and rather in the planning,
    each with such cases."""
    chance = random.Random(seed)
    kinds = collections.defaultdict(list)
    for number, fault in enumerate(program.faults):
        cases = [case for case in range(len(CASES)) if lines[case].intersection(fault.lines)]
        if cases:
            kinds[fault.kind].append((number, chance.sample(cases, min(most, len(cases)))))
    for places in kinds.values():
        places.sort(key=lambda place: chance.random() ** (1 / program.weight(place[0])))
    chosen = []
    while len(chosen) < count and kinds:
        for kind in sorted(kinds):
            chosen.append(kinds[kind].pop())
            if not kinds[kind]:
                del kinds[kind]
    return chosen[:count]


WRITING = {'os.rename': 2, 'os.link': 2, 'os.symlink': 2, 'os.remove': 1, 'os.rmdir': 1,
           'os.mkdir': 1, 'os.truncate': 1, 'os.chmod': 1, 'os.chown': 1, 'shutil.rmtree': 1}


def stay_inside(folder):
    """From now on end the process rather than change anything outside `folder`: a fault may make
    the script take up another registry than the one that it is given."""
    def watch(event, arguments):
        paths = arguments[:WRITING.get(event, 0)]
        if event == 'open' and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            paths = arguments[:1]
        for path in paths:
            path = '' if isinstance(path, int) else os.fsdecode(path)
            if os.path.isabs(path) and path != os.devnull and (
                    os.path.commonpath([os.path.abspath(path), folder]) != folder):
                os._exit(LEFT_THE_STORE)

    sys.dont_write_bytecode = True
    os.chdir(folder)
    sys.addaudithook(watch)


worker = []     # of a process of the pool: its Trial


def set_up(program, folder):
    worker.append(Trial(program, folder))


def attempt(task):
    return task, list(worker[0].run_all(*task))


def campaign(script, seed, count, most, folder):
    """Plant `count` faults; return figures, and what was harmed: without any fault, with each
    under the guard, with each without the guard."""
    program = Program(script)
    trial = Trial(program, folder)
    plain = [result[2:] for result in trial.run_all(None, range(len(CASES)))]
    chosen = choose(program, lines_run(program, trial), seed, count, most)
    figures = collections.Counter(planted=len(chosen))
    harmed = {True: [], False: []}
    context = multiprocessing.get_context('fork')
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), context, set_up,
                                                (program, folder)) as pool:
        for (number, _), results in pool.map(attempt, chosen):
            figures['runs'] += len(results)
            figures[verdict([result for result in results if result[1]], plain)] += 1
            for guarded in (True, False):
                found = [
                    '%s\n%s: %s\n%s' % (program.faults[number], CASES[case].words, harm, said)
                    for case, guard, _, harm, _, said in results if harm and guard == guarded]
                figures[HARMED[guarded]] += bool(found)
                harmed[guarded] += found
    return {'figures': figures, 'plain': plain, 'harm': harmed[True], 'without': harmed[False]}


HARMED = {True: 'harmed', False: 'harmed without the guard'}


def verdict(results, plain):
    """What became of a fault in all of its runs under the guard."""
    outcomes = {outcome for _, _, outcome, *_ in results}
    for outcome in (REFUSED, OUTSIDE, STOPPED, CRASHED):
        if outcome in outcomes:
            return outcome
    more = any(set(gone) - set(plain[case][2]) for case, _, _, _, gone, _ in results)
    return OTHER if more else LESS


def main(script, seed, count, most=len(CASES)):
    """Print what campaign() returns, with cases up to `most` for each fault."""
    script, folder = os.path.abspath(script), fast_folder()
    try:
        stay_inside(folder)
        print(json.dumps(campaign(script, int(seed), int(count), int(most), folder), indent=1))
    finally:
        shutil.rmtree(folder)


# Tests

def test_no_fault_in_planning_harms_an_image(record_property):
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith(('REGISTRY_', 'COVERAGE_'))}
    done = json.loads(subprocess.check_output(
        [sys.executable, os.path.abspath(__file__), SCRIPT, '1', '200', '5'], env=clean))
    for case, (outcome, harm, gone, said) in zip(CASES, done['plain']):
        assert outcome in ('exit 0', 'exit 1', 'exit 3') and not harm, (case.words, harm, said)
        assert bool(gone) == (case in TAKING), (case.words, said)
    figures = done['figures']
    record_property('figure', 'faults ' + ', '.join('%s: %d' % one for one in figures.items()))
    assert not done['harm'], '\n'.join(done['harm'])
    assert figures['planted'] >= 150
    assert figures[HARMED[False]] >= 3


REPO = {shared: 'app', odd: 'rest'}
HARM = [
    (shared, lambda tree, at: tree.blob_path(at['arm']),
     'app:1.1 app:2.0 app:latest'),
    (shared, lambda tree, at: tree.revision_link('app', at['several']),
     'app:1.1 app:2.0 app:latest'),
    (shared, lambda tree, at: tree.blob_path(digest_of(b'one')),
     'app:1.0 app/base:1.0'),
    (shared, lambda tree, at: tree.layer_link('app/base', digest_of(b'one')),
     'app/base:1.0'),
    (shared, lambda tree, at: tree.tag_link('other', '1.0'),
     'other:1.0'),
    (odd, lambda tree, at: tree.layer_link('legacy', at['second']),
     'legacy:2.0'),
    (odd, lambda tree, at: tree.layer_link('wide', digest_of(b'wide')),
     'wide:1.0 wide:2.0'),
    (odd, lambda tree, at: tree.blob_path(digest_of(b'lone')),
     'wide:3.0 wide/borrower:1.0'),
    (odd, lambda tree, at: tree.layer_link('spelled', digest_of(b'{"a": 1}')),
     'spelled:1.0'),
    (odd, lambda tree, at: tree.tag_link('broken', 'garbage'),
     'broken:garbage'),
    (odd, lambda tree, at: tree.repo('hollow', '_layers'),
     'hollow:1.0'),
]


def test_harm_is_seen(tmp_path):
    """Whatever a tag needs, in whatever way it needs it; and nothing is taken for harm that a word
    names."""
    nothing = Case(None, '')
    boxes = {build: Sandbox(build, str(tmp_path / build.__name__)) for build in REPO}
    for build, missing, tags in HARM:
        box = boxes[build]
        path = missing(box.tree, box.shop.digests)
        (os.rmdir if os.path.isdir(path) else os.remove)(path)
        harm = [line.split()[0] for line in box.harm(nothing, box.paths())]
        assert {one for one in harm if '@' not in one} == set(tags.split()), path
        box.restore(box.paths())
        assert box.harm(nothing, box.paths()) == []
        shutil.rmtree(box.tree.repo(REPO[build], '_manifests', 'tags', '1.0'))
        assert box.harm(Case(None, '', '*:1.0'), box.paths()) == []
        assert box.harm(Case(None, '', '*:1.0', REPO[build] + ':1.0'), box.paths()) == [
            '%s:1.0 is gone' % REPO[build]]
        box.restore(box.paths())


if __name__ == '__main__':
    main(*sys.argv[1:])
