/* Loaded with LD_PRELOAD: counts the calls that change something below a folder, writes each to a
 * log, and lets one of them come to grief, as a power cut or a failing disk does.
 *
 *   FAULT_ROOT   the folder; without it every call passes
 *   FAULT_LOG    a file to which a line "CALL PATH" is added for each call counted
 *   FAULT_CALLS  the calls that count, with a space on both sides of each, in place of those that
 *                change something: " flock " or " unlink rmdir "
 *   FAULT_AT     the number of the call at which it happens, from 1; "5+" is the fifth and all later
 *   FAULT_DO     what happens just before the call: "kill", "int" or "term" (signals), "hook", or a
 *                number: the call is not made and fails with that errno
 *   FAULT_HOOK   the shell command that "hook" runs, and waits for
 *   FAULT_FULL   set: there is no space to write anything below the folder
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROOM (2 * PATH_MAX)

/* The next definition of the function that is being replaced: libc's. */
#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

static int counted;

/* Write the path of a descriptor to `room`. */
static char *path_of(int descriptor, char *room)
{
    char link[64];
    ssize_t length;

    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, room, ROOM - 1);
    room[length < 0 ? 0 : length] = 0;
    return room;
}

/* Write the absolute form of `path`, which is relative to the folder `descriptor`, to `room`. */
static char *path_in(int descriptor, const char *path, char *room)
{
    size_t length;

    if (path[0] == '/') {
        snprintf(room, ROOM, "%s", path);
        return room;
    }
    if (descriptor != AT_FDCWD)
        path_of(descriptor, room);
    else if (!getcwd(room, ROOM))
        room[0] = 0;
    length = strlen(room);
    snprintf(room + length, ROOM - length, "/%s", path);
    return room;
}

static int is_below(const char *path, const char *root)
{
    size_t length = strlen(root);

    return strncmp(path, root, length) == 0 && (path[length] == '/' || path[length] == 0);
}

/* Run a shell command that is not counted itself. */
static void run(const char *command)
{
    pid_t child = fork();

    if (child == 0) {
        unsetenv("LD_PRELOAD");
        unsetenv("FAULT_ROOT");
        execl("/bin/sh", "sh", "-c", command, (char *) NULL);
        _exit(127);
    }
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
}

/* Count a call. Return 0 when it shall be made, else the errno to fail with. */
static int fault(const char *call, const char *path)
{
    const char *root = getenv("FAULT_ROOT"), *calls = getenv("FAULT_CALLS");
    const char *at = getenv("FAULT_AT"), *what = getenv("FAULT_DO"), *name;
    char word[32], line[ROOM + 64], *rest;
    int number, log, full;
    long first;

    if (!root || !is_below(path, root))
        return 0;
    full = getenv("FAULT_FULL") && !strcmp(call, "write") ? ENOSPC : 0;
    snprintf(word, sizeof word, " %s ", call);
    if (calls ? !strstr(calls, word) : !strcmp(call, "flock"))
        return full;
    number = __sync_add_and_fetch(&counted, 1);
    if ((name = getenv("FAULT_LOG"))) {
        log = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
        snprintf(line, sizeof line, "%s %s\n", call, path);
        syscall(SYS_write, log, line, strlen(line));
        close(log);
    }
    if (!at || !what)
        return full;
    first = strtol(at, &rest, 10);
    if (number != first && !(*rest == '+' && number > first))
        return full;
    if (!strcmp(what, "kill")) {
        kill(getpid(), SIGKILL);
        pause();
    } else if (!strcmp(what, "int") || !strcmp(what, "term")) {
        kill(getpid(), *what == 'i' ? SIGINT : SIGTERM);
    } else if (!strcmp(what, "hook")) {
        run(getenv("FAULT_HOOK"));
    } else {
        return atoi(what);
    }
    return full;
}

/* Define a function that calls libc's, unless a fault lets it fail. */
#define WRAP(type, name, parameters, arguments, call, path)     \
    type name parameters                                        \
    {                                                           \
        char room[ROOM];                                        \
        int error = fault(call, path);                          \
                                                                \
        if (error) {                                            \
            errno = error;                                      \
            return -1;                                          \
        }                                                       \
        return REAL(name) arguments;                            \
    }

#define HERE(path) path_in(AT_FDCWD, path, room)
#define IN(folder, path) path_in(folder, path, room)
#define OPEN path_of(fd, room)

WRAP(int, unlink, (const char *p), (p), "unlink", HERE(p))
WRAP(int, unlinkat, (int d, const char *p, int f), (d, p, f),
     f & AT_REMOVEDIR ? "rmdir" : "unlink", IN(d, p))
WRAP(int, rmdir, (const char *p), (p), "rmdir", HERE(p))
WRAP(int, remove, (const char *p), (p), "unlink", HERE(p))
WRAP(int, rename, (const char *p, const char *q), (p, q), "rename", HERE(p))
WRAP(int, renameat, (int d, const char *p, int e, const char *q), (d, p, e, q), "rename", IN(d, p))
WRAP(int, mkdir, (const char *p, mode_t m), (p, m), "mkdir", HERE(p))
WRAP(int, mkdirat, (int d, const char *p, mode_t m), (d, p, m), "mkdir", IN(d, p))
WRAP(int, symlink, (const char *t, const char *p), (t, p), "symlink", HERE(p))
WRAP(int, symlinkat, (const char *t, int d, const char *p), (t, d, p), "symlink", IN(d, p))
WRAP(int, link, (const char *t, const char *p), (t, p), "link", HERE(p))
WRAP(int, linkat, (int c, const char *t, int d, const char *p, int f), (c, t, d, p, f), "link",
     IN(d, p))
WRAP(int, truncate, (const char *p, off_t n), (p, n), "truncate", HERE(p))
WRAP(int, truncate64, (const char *p, off64_t n), (p, n), "truncate", HERE(p))
WRAP(int, ftruncate, (int fd, off_t n), (fd, n), "truncate", OPEN)
WRAP(int, ftruncate64, (int fd, off64_t n), (fd, n), "truncate", OPEN)
WRAP(ssize_t, write, (int fd, const void *b, size_t n), (fd, b, n), "write", OPEN)
WRAP(ssize_t, pwrite64, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o), "write", OPEN)
WRAP(int, fsync, (int fd), (fd), "fsync", OPEN)
WRAP(int, fdatasync, (int fd), (fd), "fsync", OPEN)
WRAP(int, flock, (int fd, int o), (fd, o), "flock", OPEN)

/* Opening counts when it may make or empty a file, and has a mode only when it may make one. */
#define CHANGES(flags) ((flags) & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR))

#define WRAP_OPEN(name, parameters, arguments, path)            \
    int name parameters                                         \
    {                                                           \
        char room[ROOM];                                        \
        int error = CHANGES(f) ? fault("open", path) : 0;       \
        mode_t mode = 0;                                        \
        va_list more;                                           \
                                                                \
        va_start(more, f);                                      \
        if (f & O_CREAT)                                        \
            mode = va_arg(more, mode_t);                        \
        va_end(more);                                           \
        if (error) {                                            \
            errno = error;                                      \
            return -1;                                          \
        }                                                       \
        return REAL(name) arguments;                            \
    }

WRAP_OPEN(open, (const char *p, int f, ...), (p, f, mode), HERE(p))
WRAP_OPEN(open64, (const char *p, int f, ...), (p, f, mode), HERE(p))
WRAP_OPEN(openat, (int d, const char *p, int f, ...), (d, p, f, mode), IN(d, p))
WRAP_OPEN(openat64, (int d, const char *p, int f, ...), (d, p, f, mode), IN(d, p))
