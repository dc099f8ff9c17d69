#!/usr/bin/env python3
"""Times of the script beside those of tools that do a like job, as one table of ratios.

    python3 tests/benchmark.py            all of it, in about ten minutes on an idle machine
    python3 tests/benchmark.py --quick    small trees, to see that it works; misses some goals

It needs docker-registry, find, rm and gcc of Debian, and takes its python3 for the script where it
is there.  The trees are built in a temporary folder: in memory (/dev/shm) where there is room, else
where temporary files go; `--folder` overrules that.
Each time is the best of several, taken in turn with the peer's.  Exits 1 if a goal is missed.
"""

import argparse
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
ROOM = 6 << 30    # bytes that the trees and a copy take at most,
ENTRIES = 1500000    # and files and folders
LATENCY = 1000    # microseconds
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


class Builder:
    """Writes a tree of this shape with as few calls as it takes: some have a million files."""

    def __init__(self, root, shape):
        self.root, self.shape = root, shape
        self.tree = Tree(root)

    def build(self):
        """Write the tree, with a process for each processor; none of that memory is ours."""
        for number in range(256):
            os.makedirs('%s/blobs/sha256/%02x' % (self.tree.v2, number))
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
            os.makedirs(self.tree.repo(self.name, folder))
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
        if not os.path.exists(folder):
            for part in ('', '/current', '/index', '/index/sha256'):
                os.mkdir(folder + part)
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
        if make(path):
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
    memory: int    # KiB at the peak, of the largest of its processes


def run(command, env=()):
    """Run a command, which must succeed, and return what it took."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=errors, env=dict(os.environ, **dict(env)))
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = status
        if status:
            errors.seek(0)
            sys.exit('%s failed:\n%s' % (command, errors.read()[-2000:].decode('utf-8', 'replace')))
    return Cost(seconds, usage.ru_maxrss)


def best(times, *commands):
    """Run each of the commands so many times, in turn, and return the least that each took."""
    rounds = [[run(command) for command in commands] for _ in range(times)]
    return [Cost(*map(min, zip(*costs))) for costs in zip(*rounds)]


def best_on_copies(times, root, *commands):
    """Do the same with commands that change the tree `root`, each time on a fresh copy.

    Each is a function that takes the root of the copy and returns the arguments of run().  What the
    script leaves, the first of them, is checked.
    """
    copy = root + '-copy'
    rounds = []
    for _ in range(times):
        rounds.append([])
        for command in commands:
            subprocess.check_call(['cp', '-a', root, copy])
            configure(copy)
            os.sync()
            rounds[-1].append(run(*command(copy)))
            if command is commands[0] and '-n' not in command(copy)[0]:
                check(copy)
            erase(copy)
    return [Cost(*map(min, zip(*costs))) for costs in zip(*rounds)]


def erase(folder):
    subprocess.check_call(['rm', '-rf', folder])


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
        self.missed = 0

    def build(self, name, repositories, tags, **more):
        root = os.path.join(self.folder, name)
        say('building %d repositories of %d tags' % (repositories, tags))
        Builder(root, Shape(repositories, tags, **more)).build()
        configure(root)
        return root

    def row(self, what, mine, peer, peer_name, ratio=None, at_least=0, at_most=0, unit='s'):
        """Add a line; without a ratio, it is how many times as much the peer took."""
        ratio = peer / mine if ratio is None else ratio
        met = ratio >= at_least if at_least else ratio <= at_most if at_most else None
        self.missed += met is False
        goal = '>= %g' % at_least if at_least else '<= %g' % at_most if at_most else '-'
        self.rows.append((what, number(mine, unit), number(peer, unit) + ', ' + peer_name,
                          '%.3g' % ratio, goal, {True: 'yes', False: 'NO', None: '-'}[met]))
        say('%s: %s' % (what, '  '.join(self.rows[-1][1:])))

    def run(self):
        self.start_up()
        self.many_tags()
        self.slow_storage()
        self.growth()
        self.whole_registry()

    def start_up(self):
        version, imports = best(40, PROGRAM + ['--version'], [
            PYTHON, '-c', 'import argparse, json, logging, os'])
        self.row('--version', version.seconds, imports.seconds, 'import of four modules',
                 version.seconds / imports.seconds, at_most=2)

    def many_tags(self):
        """One repository, in whose tags the collector is quadratic."""
        root = self.build('tags', 1, 2000 // self.scale, layers=3, multi=0, replaced=0, unused=0,
                          orphans=0)
        mine, = best(5, ours(root, '-n -u -g -i *'))
        peer, = best(1, collector(root, '-m -d'))
        self.row('all garbage of one repository of 2,000 tags, dry run', mine.seconds, peer.seconds,
                 'garbage-collect -m -d', at_least=300)
        erase(root)

    def slow_storage(self):
        """Each call takes a millisecond longer, as on a network disk."""
        library = os.path.join(self.folder, 'latency.so')
        subprocess.check_call(['gcc', '-O2', '-shared', '-fPIC', '-o', library,
                               os.path.join(HERE, 'latency.c'), '-ldl'])
        root = self.build('slow', 12 // self.scale, 40)
        few = self.build('few', 12 // self.scale, 10)

        def slowly(options):
            return lambda copy: (ours(copy, options), {
                'LD_PRELOAD': library, 'LATENCY_ROOT': copy, 'LATENCY_MICROSECONDS': str(LATENCY)})

        for what, tree, options in (('all garbage, dry run', root, '-n -u -g -i *'),
                                    ('all garbage', root, '-u -g -i *'),
                                    ('everything', few, '-g -p -i *')):
            mine, peer = best_on_copies(1, tree, slowly(options), slowly(options + ' -j 1'))
            self.row(what + ', 1 ms a call', mine.seconds, peer.seconds, '-j 1', at_least=8)
        erase(root)
        erase(few)

    def growth(self):
        """The same repositories, and six times as many of them."""
        small, large = (self.build('growth%d' % count, count // self.scale, 20)
                        for count in (100, 600))
        start, few, many = best(5, PROGRAM + ['--version'], ours(small, '-n -u -g -i *'),
                                ours(large, '-n -u -g -i *'))
        few, many = few.seconds - start.seconds, (many.seconds - start.seconds) / 6
        self.row('a manifest of 600 repositories', many, few, 'of 100 repositories',
                 many / few, at_most=1.3)
        one = '-n -i group00/app0001:v5'
        few, many, few_listed, many_listed = best(
            10, ours(small, one), ours(large, one),
            *([PYTHON, '-c', LISTING, v2(root) + '/repositories']
              for root in (small, large)))
        more, listing = many.seconds - few.seconds, many_listed.seconds - few_listed.seconds
        self.row('one tag, dry run, for 500 repositories more', more, listing,
                 'their layer links listed', more / listing, at_most=1.5)
        for root in (small, large):
            erase(root)

    def whole_registry(self):
        root = self.build('registry', 200 // self.scale, 50)
        one, version, find, mine = best(
            7, ours(root, '-n -i group00/app0001:v5'), PROGRAM + ['--version'],
            ['find', v2(root), '-name', 'nothing'], ours(root, '-n -u -g -i *'))
        peer, = best(2, collector(root, '-m -d'))
        more = 1000 * (one.seconds - version.seconds)
        self.row('one tag, dry run: ms more', 1000 * one.seconds, 1000 * version.seconds,
                 '--version', more, at_most=60, unit='ms')
        self.row('one tag, dry run', one.seconds, find.seconds, 'find')
        self.row('all garbage, dry run', mine.seconds, find.seconds, 'find', at_least=2)
        self.row('all garbage, dry run', mine.seconds, peer.seconds, 'garbage-collect -m -d',
                 at_least=20)
        self.row('all garbage, dry run: memory', mine.memory / 1024, peer.memory / 1024,
                 'garbage-collect -m -d', at_least=2, unit='MiB')
        mine, peer = best_on_copies(2, root, lambda copy: (ours(copy, '-u -g -i *'),),
                                    lambda copy: (collector(copy, '-m'),))
        self.row('all garbage', mine.seconds, peer.seconds, 'garbage-collect -m', at_least=8)
        mine, peer = best_on_copies(2, root, lambda copy: (ours(copy, '-g -p -i *'),),
                                    lambda copy: (['rm', '-rf', v2(copy) + '/blobs',
                                                   v2(copy) + '/repositories'],))
        self.row('everything', mine.seconds, peer.seconds, 'rm -rf', mine.seconds / peer.seconds,
                 at_most=1.5)

    def table(self):
        widths = [max(map(len, column)) for column in zip(*self.rows)]
        lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
                 for row in self.rows]
        return '\n'.join(lines[:1] + ['  '.join('-' * width for width in widths)] + lines[1:])


def number(value, unit):
    return '%.*f %s' % (3 if value < 1 else 1 if value < 1000 else 0, value, unit)


def say(text):
    print(text, file=sys.stderr, flush=True)


def roomy(folder):
    """Tell whether the trees fit in `folder`, which lies in memory."""
    if not os.path.isdir(folder):
        return False
    room = os.statvfs(folder)
    memory = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return min(memory, room.f_bavail * room.f_frsize) > ROOM and room.f_favail > ENTRIES


def main():
    parser = argparse.ArgumentParser(description='Times beside those of other tools, as ratios.')
    parser.add_argument('--quick', action='store_true', help='small trees; misses some goals')
    parser.add_argument('--folder', default='/dev/shm' if roomy('/dev/shm') else None,
                        help='where to build the trees')
    arguments = parser.parse_args()
    folder = tempfile.mkdtemp(prefix='registry-benchmark-', dir=arguments.folder)
    try:
        benchmark = Benchmark(folder, arguments.quick)
        benchmark.run()
    finally:
        erase(folder)
    python = subprocess.check_output([PYTHON, '--version'], universal_newlines=True).strip()
    print('%s, %d processors, %s in %s\n\n%s' % (
        python, os.cpu_count() or 1,
        'small trees' if arguments.quick else 'trees', os.path.dirname(folder), benchmark.table()))
    return 1 if benchmark.missed else 0


if __name__ == '__main__':
    sys.exit(main())
