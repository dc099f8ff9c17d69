#!/usr/bin/env python3
"""Times of the script beside those of tools that do a like job, as one table of ratios.

    python3 tests/benchmark.py            all of it, in about eight minutes on an idle machine
    python3 tests/benchmark.py --quick    small trees, to see that it works; misses some goals

It needs docker-registry, find, rm, sha256sum and gcc of Debian, and takes its python3 for the
script where it is there.  The trees are built on a disk: where temporary files go, or beside this
file where those are kept in memory.  Root makes a new ext4 for them, in a file there: an old file
system measures its history, and to sync it writes what others wrote.  `--folder` takes a folder
just as it is.  What is read was written or read before, so it is in the system's cache, for the
peer as well.
Each time is the best of several, taken in turn with the peer's.  Exits 1 if a goal is missed.
"""

import argparse
import contextlib
import glob
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

sys.dont_write_bytecode = True
from tree import (  # noqa: E402
    DAY, OCI_CONFIG, OCI_IMAGE, OCI_INDEX, OCI_LAYER, SCHEMA2, Tree, encode)

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPT = os.path.join(os.path.dirname(HERE), 'delete_docker_registry_image.py')
PYTHON = '/usr/bin/python3' if os.path.exists('/usr/bin/python3') else sys.executable
PROGRAM = [PYTHON, SCRIPT]
PROCESSORS = sorted(map(str, os.sched_getaffinity(0)))
LATENCY = 1000    # microseconds
SPACE, ENTRIES = 16 << 30, 3000000    # bytes of a new file system, files and folders
DRY = '-n -u -g -i *'
GARBAGE = '-u -g -i *'
EVERYTHING = '-g -p -i * --allow-remove-all'
ONE_TAG = '-n -i group00/app0001:v5'
CONFIGURATION = """\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}
"""


# --- the trees -----------------------------------------------------------------------------------

class Shape(NamedTuple):
    """How much a tree holds.

    Of the eight layers of an image one is a base image's, which many repositories have, five are in
    the other three repositories of its team too, and two are its own.
    """

    repositories: int
    tags: int
    layers: int = 8
    multi: float = 0.2    # the part of the tags that are an index over three images
    replaced: float = 0.1    # the part of the tags that were pushed twice
    unused: float = 0.6    # unused layer links, for each tag
    orphans: float = 0.1    # blobs without a link, for each tag
    size: int = 0    # bytes of a layer; else as few as tell it from others


class Builder:
    """Writes a tree of this shape with as few calls as it takes: some have a million files.

    In a tree that is there it writes what is missing.
    """

    def __init__(self, root, shape):
        self.root, self.shape = root, shape
        self.tree = Tree(root)

    def build(self):
        """Write the tree, with a process for each processor; none of that memory is ours."""
        for number in range(256):
            os.makedirs('%s/blobs/sha256/%02x' % (self.tree.v2, number), exist_ok=True)
        workers = os.cpu_count() or 1
        children = []
        for worker in range(workers):
            child = os.fork()
            if not child:
                try:
                    for number in range(worker, self.shape.repositories, workers):
                        self.repository(number)
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(child)
        if any([os.waitpid(child, 0)[1] for child in children]):
            sys.exit('Could not build ' + self.root)

    def repository(self, number):
        shape = self.shape
        self.name = 'group%02d/app%04d' % (number // 20, number)
        self.number, self.images = number, 0
        for folder in ('_layers/sha256', '_manifests/revisions/sha256', '_manifests/tags',
                       '_uploads'):
            os.makedirs(self.tree.repo(self.name, folder), exist_ok=True)
        for tag in range(shape.tags):
            if tag % 10 < 10 * shape.replaced:
                self.tag(tag, self.image(SCHEMA2))
            self.tag(tag, self.index() if tag % 10 < 10 * shape.multi else self.image(SCHEMA2))
        for unused in range(int(shape.tags * shape.unused)):
            self.layer('unused %d of %s' % (unused, self.name))
        for orphan in range(int(shape.tags * shape.orphans)):
            self.blob(b'orphan %d of %s' % (orphan, self.name.encode()))
        if shape.unused:
            self.tree.upload(self.name, 'given-up', age=2 * DAY)

    def tag(self, tag, manifest):
        folder = self.tree.repo(self.name, '_manifests', 'tags', 'v%d' % tag)
        for part in ('', '/current', '/index', '/index/sha256'):
            make(folder + part)
        self.link(folder + '/index/sha256/', manifest['digest'])
        write(folder + '/current/link', manifest['digest'].encode())

    def index(self):
        children = [dict(self.image(OCI_IMAGE), platform={'os': 'linux', 'architecture': name})
                    for name in ('amd64', 'arm64', 's390x')]
        return self.manifest(OCI_INDEX, manifests=children)

    def image(self, kind):
        image, self.images = self.images, self.images + 1
        shared, team = self.shape.layers * 5 // 8, self.number // 4
        layers = ['base %d' % ((self.number + image) % 4 + 4 * (self.number // 10))]
        layers += ['layer %d.%d of team %d' % (image, n, team) for n in range(shared)]
        layers += ['layer %d.%d of %s' % (image, n, self.name)
                   for n in range(shared + 1, self.shape.layers)]
        return self.manifest(kind, config=self.layer('config %d of %s' % (image, self.name)),
                             layers=[self.layer(layer) for layer in layers])

    def manifest(self, kind, **content):
        data = encode(dict({'schemaVersion': 2, 'mediaType': kind}, **content))
        folder = self.tree.repo(self.name, '_manifests', 'revisions', 'sha256', '')
        return {'mediaType': kind, 'size': len(data), 'digest': self.link(folder, self.blob(data))}

    def layer(self, text):
        data = text.encode()
        if self.shape.size:
            data *= self.shape.size // len(data)
        folder = self.tree.repo(self.name, '_layers', 'sha256', '')
        return {'mediaType': OCI_CONFIG if text.startswith('config') else OCI_LAYER,
                'size': len(data), 'digest': self.link(folder, self.blob(data))}

    def blob(self, data):
        digits = hashlib.sha256(data).hexdigest()
        folder = '/'.join((self.tree.v2, 'blobs/sha256', digits[:2], digits))
        if make(folder):
            write(folder + '/data', data)
        return 'sha256:' + digits

    def link(self, folder, digest):
        path = folder + digest[7:]
        if make(path) or not os.path.exists(path + '/link'):
            write(path + '/link', digest.encode())
        return digest


def make(folder):
    """Make a folder, and tell whether it was not there."""
    try:
        os.mkdir(folder)
    except FileExistsError:
        return False
    return True


def write(path, data):
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(file, data)
    os.close(file)


# --- measuring -----------------------------------------------------------------------------------

class Cost(NamedTuple):
    """What a command took."""

    seconds: float
    memory: int = 0    # KiB that all its processes together had at most


def run(command, env=(), weigh=False):
    """Run a command, which must succeed, and return what it took; its memory if asked to weigh."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            env=dict(os.environ, **dict(env)), start_new_session=True)
        try:
            memory = heaviest(process) if weigh else 0
            status = process.wait()
        finally:
            process.kill()
        seconds = time.perf_counter() - start
        if status:
            errors.seek(0)
            sys.exit('%s failed:\n%s' % (command, errors.read()[-2000:].decode('utf-8', 'replace')))
    return Cost(seconds, memory)


def heaviest(process):
    """Wait for the end of a process group; return the most KiB that it had in memory at a time."""
    most = 0
    while process.poll() is None:
        most = max(most, resident(process.pid))
        time.sleep(0.02)
    return most


def resident(group):
    """KiB that the processes of a group have in memory; what they share counts once."""
    size = 0
    for process in filter(str.isdigit, os.listdir('/proc')):
        try:
            if os.getpgid(int(process)) == group:
                with open('/proc/%s/smaps_rollup' % process) as file:
                    size += sum(map(int, re.findall(r'\nPss: *(\d+)', file.read())))
        except OSError:
            pass  # it has ended
    return size


def best(times, *commands):
    """Run each of the commands so many times, in turn, and return the least that each took."""
    rounds = [[run(command) for command in commands] for _ in range(times)]
    return [Cost(*map(min, zip(*costs))) for costs in zip(*rounds)]


def best_of_changes(times, build, *commands):
    """Do the same with commands that change the tree; `build` mends it, and returns its root.

    Each is a function that takes the root and returns the arguments of run().  What the script
    leaves, the first of them, is checked once.
    """
    rounds = []
    for number in range(times):
        rounds.append([])
        for command in commands:
            root = build()
            rounds[-1].append(run(*command(root)))
            if (number, command) == (0, commands[0]) and '-n' not in command(root)[0]:
                check(root)
    return [Cost(*map(min, zip(*costs))) for costs in zip(*rounds)]


def configure(root):
    """Write the registry's configuration for the tree `root`."""
    with open(root + '.yml', 'w') as file:
        file.write(CONFIGURATION.format(root))


def check(root):
    """Exit unless the registry's own collector finds all that is left in use, and no blob gone."""
    output = subprocess.check_output(collector(root, '-d'))
    marked, blobs, manifests = map(int, re.search(
        rb'(\d+) blobs marked, (\d+) blobs and (\d+) manifests eligible', output).groups())
    stored = len(glob.glob(v2(root) + '/blobs/sha256/*/*/data'))
    if (blobs, manifests, marked) != (0, 0, stored):
        sys.exit('The script left %d blobs, of which %d and %d manifests are garbage; %d are in use'
                 % (stored, blobs, manifests, marked))


def v2(root):
    return root + '/docker/registry/v2'


def ours(root, options):
    """Return the command line of the script on the tree `root`."""
    return PROGRAM + ['-d', root] + options.split()


def collector(root, options):
    """Return the command line of the registry's own garbage collector."""
    return ['docker-registry', 'garbage-collect'] + options.split() + [root + '.yml']


# --- what is measured ----------------------------------------------------------------------------

# Reads what answers whether any repository has a blob: the names of the layer links of each.
LISTING = """
import os, sys
for group in os.listdir(sys.argv[1]):
    for name in os.listdir(sys.argv[1] + '/' + group):
        os.listdir('/'.join((sys.argv[1], group, name)))
        os.listdir('/'.join((sys.argv[1], group, name, '_layers/sha256')))
"""


class Benchmark:
    """The lines of the table, each from a tree in `folder`."""

    def __init__(self, folder, quick):
        self.folder, self.scale = folder, 5 if quick else 1
        self.rows = [('what', 'ours', 'peer', 'ratio', 'goal', 'met')]
        self.missed = []

    def build(self, name, repositories, tags, **more):
        """Build a tree, or what is missing of it, and return its root."""
        root = os.path.join(self.folder, name)
        if not os.path.exists(root):
            say('building %d repositories of %d tags' % (repositories, tags))
        Builder(root, Shape(repositories, tags, **more)).build()
        configure(root)
        os.sync()    # else what is measured next waits for the disk
        return root

    def row(self, what, mine, peer, peer_name, ratio=None, at_least=0, at_most=0, unit='s'):
        """Add a line; without a ratio, it is how many times as much the peer took."""
        ratio = peer / mine if ratio is None else ratio
        met = ratio >= at_least if at_least else ratio <= at_most
        if not met:
            self.missed.append(what)
        self.rows.append((what, number(mine, unit), number(peer, unit) + ', ' + peer_name,
                          '%.3g' % ratio, '>= %g' % at_least if at_least else '<= %g' % at_most,
                          'yes' if met else 'NO'))
        say('%s: %s' % (what, '  '.join(self.rows[-1][1:])))

    def run(self):
        self.start_up()
        self.whole_registry()
        self.changes()
        self.many_tags()
        self.growth()
        self.slow_storage()
        self.every_byte()

    def start_up(self):
        version, imports = best(40, PROGRAM + ['--version'], [
            PYTHON, '-c', 'import argparse, json, logging, os'])
        self.row('--version', version.seconds, imports.seconds, 'import of four modules',
                 version.seconds / imports.seconds, at_most=2.5)

    def whole_registry(self):
        root = self.build('registry', 200 // self.scale, 50)
        dry, listed, one, find = best(
            5, ours(root, DRY), ours(root, '-l'), ours(root, ONE_TAG),
            ['find', v2(root), '-name', 'nothing'])
        peer = run(collector(root, '-m -d'), weigh=True)
        self.row('all garbage, dry run', dry.seconds, peer.seconds, 'garbage-collect -m -d',
                 at_least=10)
        self.row('all garbage, dry run', dry.seconds, find.seconds, 'find', at_least=2)
        self.row('one tag, dry run', one.seconds, find.seconds, 'find', at_least=30)
        self.row('-l', listed.seconds, dry.seconds, 'all garbage, dry run',
                 listed.seconds / dry.seconds, at_most=1.5)
        dry, listed = (run(ours(root, options), weigh=True).memory / 1024
                       for options in (DRY, '-l'))
        self.row('all garbage, dry run: memory', dry, peer.memory / 1024, 'garbage-collect -m -d',
                 at_least=2, unit='MiB')
        self.row('-l: memory', listed, dry, 'all garbage, dry run', listed / dry, at_most=1.3,
                 unit='MiB')

    def changes(self):
        """What really deletes, in a smaller tree: it is built again for each run."""
        def build():
            return self.build('changed', 80 // self.scale, 50)

        mine, peer = best_of_changes(2, build, lambda root: (ours(root, GARBAGE),),
                                     lambda root: (collector(root, '-m'),))
        self.row('all garbage', mine.seconds, peer.seconds, 'garbage-collect -m', at_least=3)
        mine, peer = best_of_changes(2, build, lambda root: (ours(root, EVERYTHING),),
                                     lambda root: (['rm', '-rf', v2(root) + '/blobs',
                                                    v2(root) + '/repositories'],))
        self.row('everything', mine.seconds, peer.seconds, 'rm -rf', mine.seconds / peer.seconds,
                 at_most=1.5)

    def many_tags(self):
        """One repository, in whose tags the collector is quadratic."""
        root = self.build('tags', 1, 2000 // self.scale, layers=3, multi=0, replaced=0, unused=0,
                          orphans=0)
        mine, = best(10, ours(root, DRY))
        peer = run(collector(root, '-m -d'))
        self.row('all garbage of one repository of 2,000 tags, dry run', mine.seconds, peer.seconds,
                 'garbage-collect -m -d', at_least=300)

    def growth(self):
        """The same repositories, and ten times as many of them."""
        small, large = (self.build('growth%d' % count, count // self.scale, 10)
                        for count in (100, 1000))
        start, few, many = best(
            5, PROGRAM + ['--version'], ours(small, DRY), ours(large, DRY))
        few, many = few.seconds - start.seconds, (many.seconds - start.seconds) / 10
        self.row('a manifest of 1,000 repositories', many, few, 'of 100 repositories',
                 many / few, at_most=1.3)
        few, many, few_listed, many_listed = best(
            10, ours(small, ONE_TAG), ours(large, ONE_TAG),
            *([PYTHON, '-c', LISTING, v2(root) + '/repositories']
              for root in (small, large)))
        more, listing = many.seconds - few.seconds, many_listed.seconds - few_listed.seconds
        self.row('one tag, dry run, for 900 repositories more', more, listing,
                 'their layer links listed', more / listing, at_most=1.5)

    def slow_storage(self):
        """Each call takes a millisecond longer, as on a network disk."""
        library = os.path.join(self.folder, 'latency.so')
        subprocess.check_call(['gcc', '-O2', '-shared', '-fPIC', '-o', library,
                               os.path.join(HERE, 'latency.c'), '-ldl'])

        def slowly(options):
            return lambda root: (ours(root, options), {
                'LD_PRELOAD': library, 'LATENCY_ROOT': root, 'LATENCY_MICROSECONDS': str(LATENCY)})

        for what, tags, options in (('all garbage, dry run', 24, DRY), ('all garbage', 24, GARBAGE),
                                    ('everything', 6, EVERYTHING)):
            mine, peer = best_of_changes(
                1, lambda: self.build('slow%d' % tags, 12 // self.scale, tags),
                slowly(options), slowly(options + ' -j 1'))
            self.row(what + ', 1 ms a call', mine.seconds, peer.seconds, '-j 1', at_least=8)

    def every_byte(self):
        root = self.build('bytes', 10 // self.scale or 1, 5, size=1 << 20, unused=0, orphans=0)
        peer = ['find', v2(root) + '/blobs', '-name', 'data', '-exec', 'sha256sum', '{}', '+']
        for count, name, goal in ((1, 'one processor', 0.9), (2, 'two processors', 1.6)):
            if count > len(PROCESSORS):
                say('--check on %s: not measured, there are not so many' % name)
                continue
            on = ['taskset', '-c', ','.join(PROCESSORS[:count])]
            mine, other = best(3, on + ours(root, '--check'), on + peer)
            self.row('--check, ' + name, mine.seconds, other.seconds, 'sha256sum', at_least=goal)

    def table(self):
        widths = [max(map(len, column)) for column in zip(*self.rows)]
        lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
                 for row in self.rows]
        return '\n'.join(lines[:1] + ['  '.join('-' * width for width in widths)] + lines[1:])

    def verdict(self):
        goals = len(self.rows) - 1
        if not self.missed:
            return 'All %d goals met' % goals
        return '%d of %d goals met; missed: %s' % (
            goals - len(self.missed), goals, '; '.join(self.missed))


def number(value, unit):
    return '%.*f %s' % (3 if value < 1 else 1 if value < 1000 else 0, value, unit)


def say(text):
    print(text, file=sys.stderr, flush=True)


def file_system(folder):
    """What kind of file system a folder lies on."""
    return subprocess.check_output(
        ['df', '--output=fstype', folder], universal_newlines=True).split()[-1]


def on_a_disk():
    """A folder that is not kept in memory."""
    usual = tempfile.gettempdir()
    return HERE if file_system(usual) in ('tmpfs', 'ramfs') else usual


@contextlib.contextmanager
def new_folder(parent):
    folder = tempfile.mkdtemp(prefix='registry-benchmark-', dir=parent)
    try:
        yield folder
    finally:
        subprocess.check_call(['rm', '-rf', folder])


@contextlib.contextmanager
def new_file_system(folder):
    """Mount a new ext4, a file in `folder`, and return where; `folder` itself if that fails."""
    image, root = folder + '/image', folder + '/root'
    os.mkdir(root)
    with open(image, 'wb') as file:
        file.truncate(SPACE)
    try:
        subprocess.check_call(['mkfs.ext4', '-q', '-F', '-N', str(ENTRIES), image])
        subprocess.check_call(['mount', '-o', 'loop,noinit_itable', image, root])
    except (OSError, subprocess.CalledProcessError):
        say('No file system can be made: taking the one that is there')
        yield folder
    else:
        try:
            yield root
        finally:
            subprocess.check_call(['umount', root])


def main():
    parser = argparse.ArgumentParser(description='Times beside those of other tools, as ratios.')
    parser.add_argument('--quick', action='store_true', help='small trees; misses some goals')
    parser.add_argument('--folder', help='where to build the trees, in place of a new file system')
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(new_folder(arguments.folder or on_a_disk()))
        if not arguments.folder:
            folder = stack.enter_context(new_file_system(folder))
        where = file_system(folder)
        say('on %s, in %s' % (where, folder))
        benchmark = Benchmark(folder, arguments.quick)
        benchmark.run()
    python = subprocess.check_output([PYTHON, '--version'], universal_newlines=True).strip()
    print('%s, %d processors, %s on %s\n\n%s\n\n%s' % (
        python, len(PROCESSORS), 'small trees' if arguments.quick else 'trees', where,
        benchmark.table(), benchmark.verdict()))
    return 1 if benchmark.missed else 0


if __name__ == '__main__':
    sys.exit(main())
