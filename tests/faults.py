"""Runs the script with one of its calls to the system coming to grief.

    with Faults(SCRIPT) as faults:
        done = faults.run(tree.v2, '-d', tree.v2, '-i', 'app:1.0', at=5, do='kill')

The calls really fail and the process really dies: shim.c, loaded with LD_PRELOAD, stands between
the script and the C library. What can happen, and to which calls, is said there.

Since there are thousands of runs, they do not start Python each time: this file is also the
program that imports the script once, and then forks a process of its own for each run.
"""

import hashlib  # noqa: F401  (the runs need it, and few should pay for it each)
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
KILLED = -signal.SIGKILL

# What a run moves first goes to the first of these, below `repositories`; the commit renames that
# to the second. What could not be put back is in the third. The last is empty: there it tries
# whether a rename moves.
OWN = '_delete_docker_registry_image.'
ASIDE, GONE, KEPT, PROBE = (OWN + name for name in ('aside', 'gone', 'kept', 'probe'))


def left_behind(v2):
    """The script's own folders that are there and hold something."""
    return sorted(name for name in os.listdir(os.path.join(v2, 'repositories'))
                  if name.startswith(OWN) and name != PROBE)


def build(folder):
    """Compile the shim into `folder`; return its path."""
    library = os.path.join(str(folder), 'shim.so')
    subprocess.check_call(['gcc', '-O1', '-Wall', '-Wextra', '-Werror', '-shared', '-fPIC',
                           '-o', library, os.path.join(HERE, 'shim.c'), '-ldl', '-pthread'])
    return library


def fast_folder():
    """A new folder in memory where there is one: to sync a disk takes long."""
    return tempfile.mkdtemp(dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else None)


def environment(root, **faults):
    """The variables that tell the shim what to do below `root`."""
    found = {'FAULT_ROOT': str(root)}
    found.update(('FAULT_' + name.upper(), str(value)) for name, value in faults.items()
                 if value is not None)
    return found


class Done:
    """What came of a run: exit status (negative: the signal that killed it), what it said, and
    [call, path] of each changing call that it came to, the one that failed included."""

    def __init__(self, status, said, calls):
        self.status, self.said, self.calls = status, said, calls

    def __str__(self):
        return 'exit %s\n%s' % (self.status, self.said)


class Faults:
    def __init__(self, script):
        self.folder = fast_folder()
        self.log = os.path.join(self.folder, 'calls')
        clean = {name: value for name, value in os.environ.items()
                 if not name.startswith(('REGISTRY_', 'FAULT_'))}
        clean['LD_PRELOAD'] = build(self.folder)
        self.server = subprocess.Popen(
            [sys.executable, '-I', '-S', os.path.abspath(__file__), str(script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean, universal_newlines=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()
        shutil.rmtree(self.folder)

    def run(self, root, *arguments, **faults):
        """Run the script; `faults` are the shim's variables without FAULT_, in small letters."""
        order = {'arguments': list(arguments),
                 'environment': environment(root, log=self.log, **faults)}
        self.server.stdin.write(json.dumps(order) + '\n')
        self.server.stdin.flush()
        status, said = json.loads(self.server.stdout.readline())
        calls = []
        if os.path.exists(self.log):
            with open(self.log) as file:
                calls = [line.split(' ', 1) for line in file.read().splitlines()]
            os.remove(self.log)
        return Done(status, said, calls)


# --- the program that forks ----------------------------------------------------------------------

def serve(script):
    """Answer each line on standard input, the order for one run, with a line."""
    sys.path.insert(0, os.path.dirname(script))
    main = __import__(os.path.splitext(os.path.basename(script))[0]).main
    for line in sys.stdin:
        order = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            become_the_run(main, order, writer)
        os.close(writer)
        with open(reader, errors='replace') as pipe:
            said = pipe.read()
        status = os.waitpid(child, 0)[1]
        status = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        print(json.dumps([status, said]), flush=True)


def become_the_run(main, order, output):
    """Run `main` as the interpreter does, and end the process as it does."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor, here in [(null, 0), (output, 1), (output, 2)]:
        os.dup2(descriptor, here)
    os.environ.update(order['environment'])
    status = 1
    try:
        status = main(order['arguments'])
    except SystemExit as error:
        status = error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status or 0)


if __name__ == '__main__':
    serve(sys.argv[1])
