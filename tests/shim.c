/* Loaded with LD_PRELOAD: counts the calls that change something below a folder, writes each to a
 * log, and lets one of them come to grief, as a power cut or a failing disk does.
 *
 *   FAULT_ROOT   the folder; without it every call passes
 *   FAULT_LOG    a file to which a line "CALL PATH" is added for each call counted
 *   FAULT_CALLS  the calls that count, with a space on both sides of each, in place of those that
 *                change something: " flock " or " unlink rmdir "
 *   FAULT_PART   a part of the path of each call that counts, such as "/repositories/app/"
 *   FAULT_AT     the number of the call at which it happens, from 1; "5+" is the fifth and all later,
 *                "5-7" the fifth to the seventh
 *   FAULT_DO     what happens just before the call: "kill", "int" or "term" (signals), "hook", or a
 *                number: the call is not made and fails with that errno
 *   FAULT_HOOK   the shell command that "hook" runs, and waits for
 *   FAULT_FULL   set: there is no space to write or make anything below the folder
 *   FAULT_MERGE  set: a rename is a copy of each file, as on a bucket that is mounted. A folder
 *                merges into one that is there, of two files the moved one stays, and each is as
 *                new as its copy. Each copy counts, as " copy "
 *   FAULT_THREADS  how many threads may be started
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROOM (2 * PATH_MAX)

/* The next definition of the function that is being replaced: libc's. */
#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

static int counted, threads;

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

/* Whether a call takes up space. */
static int needs_space(const char *call)
{
    static const char *const calls[] = {"write", "make", "mkdir", "symlink", "link", NULL};
    int number = 0;

    while (calls[number] && strcmp(calls[number], call))
        number++;
    return calls[number] != NULL;
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
    const char *at = getenv("FAULT_AT"), *what = getenv("FAULT_DO"), *part = getenv("FAULT_PART");
    const char *name;
    char word[32], line[ROOM + 64], *rest;
    int number, log, full;
    long first, last;

    if (!root || !is_below(path, root))
        return 0;
    full = getenv("FAULT_FULL") && needs_space(call) ? ENOSPC : 0;
    snprintf(word, sizeof word, " %s ", call);
    if ((calls ? !strstr(calls, word) : !strcmp(call, "flock")) || (part && !strstr(path, part)))
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
    last = *rest == '+' ? LONG_MAX : *rest == '-' ? atol(rest + 1) : first;
    if (number < first || number > last)
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
WRAP(int, syncfs, (int fd), (fd), "syncfs", OPEN)
WRAP(int, flock, (int fd, int o), (fd, o), "flock", OPEN)

/* It has no folder, so it counts as one of the folder that is looked at. */
void sync(void)
{
    const char *root = getenv("FAULT_ROOT");

    if (root)
        fault("sync", root);
    REAL(sync)();
}

/* Move by copies, as a bucket does: see FAULT_MERGE. */
static int merge(const char *from, const char *to)
{
    char below[ROOM], target[ROOM];
    struct dirent *entry;
    struct stat status;
    int error;
    DIR *folder;

    if (lstat(from, &status))
        return -1;
    if (!S_ISDIR(status.st_mode)) {
        if ((error = fault("copy", from))) {
            errno = error;
            return -1;
        }
        return REAL(rename)(from, to) ? -1 : utimensat(AT_FDCWD, to, NULL, AT_SYMLINK_NOFOLLOW);
    }
    if ((REAL(mkdir)(to, 0777) && errno != EEXIST) || !(folder = opendir(from)))
        return -1;
    error = 0;
    while (!error && (entry = readdir(folder))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        snprintf(below, ROOM, "%s/%s", from, entry->d_name);
        snprintf(target, ROOM, "%s/%s", to, entry->d_name);
        error = merge(below, target);
    }
    closedir(folder);
    return error ? error : REAL(rmdir)(from);
}

static int move(int d, const char *p, int e, const char *q)
{
    const char *root = getenv("FAULT_ROOT");
    char from[ROOM], to[ROOM];
    int error = fault("rename", path_in(d, p, from));

    if (error) {
        errno = error;
        return -1;
    }
    if (root && getenv("FAULT_MERGE") && is_below(from, root))
        return merge(from, path_in(e, q, to));
    return REAL(renameat)(d, p, e, q);
}

int rename(const char *p, const char *q)
{
    return move(AT_FDCWD, p, AT_FDCWD, q);
}

int renameat(int d, const char *p, int e, const char *q)
{
    return move(d, p, e, q);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
                   void *argument)
{
    const char *most = getenv("FAULT_THREADS");

    if (most && __sync_add_and_fetch(&threads, 1) > atoi(most))
        return EAGAIN;
    return REAL(pthread_create)(thread, attributes, start, argument);
}

/* Opening counts when it may make or empty a file, and has a mode only when it may make one. */
#define CHANGES(flags) ((flags) & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR))

#define WRAP_OPEN(name, parameters, arguments, path)            \
    int name parameters                                         \
    {                                                           \
        char room[ROOM];                                        \
        int error = !CHANGES(f) ? 0 :                           \
            fault(f & O_CREAT ? "make" : "open", path);         \
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
