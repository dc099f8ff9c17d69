#!/usr/bin/env python3
"""A small registry in a temporary folder, and the script at work on it.

    python3 tests/demo.py

It needs nothing but Python, writes nothing outside its folder, and removes that at the end.
"""

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap

sys.dont_write_bytecode = True
from tree import DAY, DOCKER_LIST, SCHEMA2, Tree  # noqa: E402

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir,
                      'delete_docker_registry_image.py')
MIB = 1024 * 1024
LAYERS = {'base': 3, 'python': 2, 'app-1.0': 4, 'app-old': 1.5, 'app-new': 1.5, 'docs': 0.5,
          'build-7': 1, 'build-8': 1, 'build-9': 1, 'amd64': 1, 'arm64': 1}    # name -> MiB


def main():
    folder = tempfile.mkdtemp(prefix='demo-')
    try:
        play(Demo(os.path.join(folder, 'registry'), os.path.join(folder, 'saved.tar')))
    finally:
        shutil.rmtree(folder)


def play(demo):
    say('The registry of a small team, and what each image in it is made of. A layer that several '
        'images share is on the disk once. "latest" was pushed twice: what it was before is still '
        'there, without a tag. team/multi:2.0 is one image for two architectures, and '
        'team/app/docs is a repository inside another.')
    demo.push()
    first = demo.show()
    say('The registry is stopped. (Below, times and digests are shortened.)')
    print('  $ export REGISTRY_DATA_DIR=' + demo.registry)

    say('Which repository takes the disk? FREES is what deleting that line alone would free: '
        'layers that others use too stay.')
    demo.run('-l')
    say('What would deleting team/app:1.0 free? A dry run says it and touches nothing. With -v it '
        'names the blobs too: the layer app-1.0, the image\'s configuration, and its manifest.')
    demo.run('-n -v -i team/app:1.0')
    say('The same without -n deletes it; --save first copies all that goes to an archive.')
    demo.run('-i team/app:1.0 --save ' + demo.archive)
    say('That was a mistake. tar brings it back.')
    demo.restore()
    demo.run('-l -i team/app:*')
    say('Retention: of the builds of team/app, keep the last two. A dry run says what stays and '
        'why.')
    demo.run('-n -i team/app:build-* --keep-last 2')
    demo.run('-i team/app:build-* --keep-last 2')
    say('Delete what no tag leads to, in all repositories: the former "latest".')
    demo.run('-u')
    say('An image for two architectures goes with both of them. team/multi holds nothing else, so '
        'the repository goes too.')
    demo.run('-i team/multi:2.0')
    say('Delete a whole repository. team/app/docs, inside it, stays.')
    demo.run('-i team/app')
    say('What is gone leaves empty folders. They can go too.')
    demo.run('-p')
    say('When one of the names does not exist, nothing is deleted.')
    demo.run('-i team/app/docs -i team/bsae', status=1)

    say('What is left is whole:')
    last = demo.show()
    say('%.1f MiB were freed. The registry can start again.' % (first - last))


def say(text):
    print('\n' + textwrap.fill(text, 79) + '\n', flush=True)


class Demo:
    def __init__(self, registry, archive):
        self.registry, self.archive, self.tree = registry, archive, Tree(registry)
        self.names = {}    # digest of a layer -> its name

    def push(self):
        for repo, tag, layers in [
                ('team/app', '1.0', ['base', 'python', 'app-1.0']),
                ('team/app', 'latest', ['base', 'python', 'app-old']),
                ('team/app', 'latest', ['base', 'python', 'app-new']),
                ('team/app', 'build-7', ['base', 'build-7']),
                ('team/app', 'build-8', ['base', 'build-8']),
                ('team/app', 'build-9', ['base', 'build-9']),
                ('team/app/docs', '1.0', ['base', 'docs']),
                ('team/base', '3', ['base'])]:
            age = 10 - int(tag[-1]) if tag.startswith('build') else 30
            self.tree.tag(repo, tag, self.image(repo, layers), age * DAY)
        both = [self.image('team/multi', [name]) for name in ('amd64', 'arm64')]
        self.tree.tag('team/multi', '2.0', self.tree.index('team/multi', both, kind=DOCKER_LIST))

    def image(self, repo, names):
        layers = []
        for name in names:
            size = int(LAYERS[name] * MIB)
            data = random.Random(name).getrandbits(8 * size).to_bytes(size, 'little')
            layers.append(self.tree.layer(repo, data))
            self.names[layers[-1]] = name
        return self.tree.image(repo, layers, config='-'.join(names).encode(), kind=SCHEMA2)

    def show(self):
        """Show each tag, and each manifest without one; return the MiB on the disk."""
        for folder, folders, _ in sorted(os.walk(self.tree.repo(''))):
            if '_manifests' not in folders:
                continue
            repo = os.path.relpath(folder, self.tree.repo(''))
            tags = {}
            for tag in sorted(os.listdir(os.path.join(folder, '_manifests', 'tags'))):
                with open(self.tree.tag_link(repo, tag)) as stream:
                    tags[repo + ':' + tag] = stream.read()
            seen = set()
            for name, digest in tags.items():
                self.line(name, digest, seen)
            revisions = os.path.join(folder, '_manifests', 'revisions', 'sha256')
            for digits in sorted(os.listdir(revisions)):
                if 'sha256:' + digits not in seen:
                    self.line(repo + ' (no tag)', 'sha256:' + digits, seen)
        print('\n  %.1f MiB on the disk' % self.used(), flush=True)
        return self.used()

    def line(self, name, digest, seen):
        layers = self.layers(digest, seen)
        print('  %-22s %4.1f MiB   %s' % (
            name, sum(LAYERS[layer] for layer in layers), ' + '.join(layers)))

    def layers(self, digest, seen):
        seen.add(digest)
        with open(self.tree.blob_path(digest)) as stream:
            manifest = json.load(stream)
        layers = [self.names[layer['digest']] for layer in manifest.get('layers', ())]
        for child in manifest.get('manifests', ()):
            layers += self.layers(child['digest'], seen)
        return layers

    def restore(self):
        """Do what `tar -xf` does, which a bare machine need not have."""
        print('  $ tar -xf %s -C %s\n' % (self.archive, self.tree.v2), flush=True)
        with tarfile.open(self.archive) as archive:
            archive.extractall(self.tree.v2)

    def run(self, options, status=0):
        """Run the script as an operator does, and show what they see."""
        before = self.used()
        print('  $ delete_docker_registry_image ' + options, flush=True)
        done = subprocess.run(
            [sys.executable, '-B', SCRIPT] + shlex.split(options),
            env=dict(os.environ, REGISTRY_DATA_DIR=self.registry),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
        for line in done.stdout.splitlines():
            line = re.sub(r'\[\S+ ([\d:]+),\d+\]', r'[\1]', line)
            line = re.sub('(sha256:[0-9a-f]{8})[0-9a-f]{56}', r'\1...', line)
            print(textwrap.fill(line, 79, initial_indent='  ', subsequent_indent=' ' * 23,
                                break_on_hyphens=False))
        if done.returncode != status:
            sys.exit('exit status %d, not %d' % (done.returncode, status))
        print('\n  exit status %d; on the disk: %.1f MiB before, %.1f MiB now' % (
            done.returncode, before, self.used()), flush=True)

    def used(self):
        """MiB in the files of the store."""
        return sum(os.path.getsize(os.path.join(folder, name))
                   for folder, _, names in os.walk(self.registry) for name in names) / MIB


if __name__ == '__main__':
    main()
