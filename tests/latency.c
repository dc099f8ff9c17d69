/* Makes every file call below one folder slow, as a network disk does.
 *
 *     gcc -O2 -shared -fPIC -o latency.so latency.c -ldl
 *     LD_PRELOAD=./latency.so LATENCY_ROOT=/folder LATENCY_MICROSECONDS=1000 python3 ...
 *
 * The calls are those that CPython makes.  A path counts when it begins with LATENCY_ROOT, a
 * descriptor when it was opened by such a path.  Reading a folder costs two calls: one to open it,
 * one for its first entries.  Closing costs nothing.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define DESCRIPTORS 65536

enum { ELSEWHERE, BELOW, UNREAD /* a folder of which no entry was read yet */ };

static char below[DESCRIPTORS];
static const char *root;
static size_t root_length;
static struct timespec latency;

__attribute__((constructor)) static void start(void)
{
    const char *microseconds = getenv("LATENCY_MICROSECONDS");
    long delay = microseconds ? atol(microseconds) : 0;

    latency.tv_sec = delay / 1000000;
    latency.tv_nsec = delay % 1000000 * 1000;
    root = getenv("LATENCY_ROOT");
    root_length = root ? strlen(root) : 0;
    prctl(PR_SET_TIMERSLACK, 1UL);
}

static int is_below(int descriptor, const char *path)
{
    if (path && path[0] == '/')
        return root_length && !strncmp(path, root, root_length)
            && (path[root_length] == '/' || !path[root_length]);
    return descriptor >= 0 && descriptor < DESCRIPTORS && below[descriptor];
}

static int wait_if(int slow)
{
    if (slow)
        nanosleep(&latency, NULL);
    return slow;
}

static int opened(int descriptor, int slow)
{
    if (descriptor >= 0 && descriptor < DESCRIPTORS)
        below[descriptor] = slow ? UNREAD : ELSEWHERE;
    return descriptor;
}

#define NEXT(name) \
    static __typeof__(name) *next; \
    if (!next) \
        next = (__typeof__(name) *) dlsym(RTLD_NEXT, #name)

/* Calls on one path. */
#define PATH_CALL(name, parameters, path, arguments) \
    int name parameters { NEXT(name); wait_if(is_below(-1, path)); return next arguments; }

/* Calls on a path relative to a folder's descriptor. */
#define AT_CALL(name, parameters, path, arguments) \
    int name parameters { NEXT(name); wait_if(is_below(folder, path)); return next arguments; }

/* Calls on a descriptor. */
#define DESCRIPTOR_CALL(type, name, parameters, arguments) \
    type name parameters { NEXT(name); wait_if(is_below(file, NULL)); return next arguments; }

PATH_CALL(stat, (const char *path, struct stat *status), path, (path, status))
PATH_CALL(stat64, (const char *path, struct stat64 *status), path, (path, status))
PATH_CALL(lstat, (const char *path, struct stat *status), path, (path, status))
PATH_CALL(lstat64, (const char *path, struct stat64 *status), path, (path, status))
PATH_CALL(access, (const char *path, int mode), path, (path, mode))
PATH_CALL(unlink, (const char *path), path, (path))
PATH_CALL(rmdir, (const char *path), path, (path))
PATH_CALL(mkdir, (const char *path, mode_t mode), path, (path, mode))
PATH_CALL(rename, (const char *path, const char *to), path, (path, to))
PATH_CALL(truncate64, (const char *path, off64_t length), path, (path, length))

AT_CALL(fstatat, (int folder, const char *path, struct stat *status, int flags), path,
        (folder, path, status, flags))
AT_CALL(fstatat64, (int folder, const char *path, struct stat64 *status, int flags), path,
        (folder, path, status, flags))
AT_CALL(statx, (int folder, const char *path, int flags, unsigned mask, struct statx *status), path,
        (folder, path, flags, mask, status))
AT_CALL(faccessat, (int folder, const char *path, int mode, int flags), path,
        (folder, path, mode, flags))
AT_CALL(unlinkat, (int folder, const char *path, int flags), path, (folder, path, flags))
AT_CALL(mkdirat, (int folder, const char *path, mode_t mode), path, (folder, path, mode))
AT_CALL(renameat, (int folder, const char *path, int to_folder, const char *to), path,
        (folder, path, to_folder, to))

DESCRIPTOR_CALL(int, fstat, (int file, struct stat *status), (file, status))
DESCRIPTOR_CALL(int, fstat64, (int file, struct stat64 *status), (file, status))
DESCRIPTOR_CALL(int, fsync, (int file), (file))
DESCRIPTOR_CALL(int, fdatasync, (int file), (file))
DESCRIPTOR_CALL(int, syncfs, (int file), (file))
DESCRIPTOR_CALL(int, flock, (int file, int operation), (file, operation))
DESCRIPTOR_CALL(ssize_t, read, (int file, void *to, size_t size), (file, to, size))
DESCRIPTOR_CALL(ssize_t, pread64, (int file, void *to, size_t size, off64_t offset),
                (file, to, size, offset))
DESCRIPTOR_CALL(ssize_t, write, (int file, const void *from, size_t size), (file, from, size))

ssize_t readlink(const char *path, char *to, size_t size)
{
    NEXT(readlink);
    wait_if(is_below(-1, path));
    return next(path, to, size);
}

/* glibc before 2.33 has these instead of stat and its kin. */
int __xstat64(int version, const char *path, struct stat64 *status);
int __lxstat64(int version, const char *path, struct stat64 *status);
int __fxstat64(int version, int file, struct stat64 *status);
int __fxstatat64(int version, int folder, const char *path, struct stat64 *status, int flags);
PATH_CALL(__xstat64, (int version, const char *path, struct stat64 *status), path,
          (version, path, status))
PATH_CALL(__lxstat64, (int version, const char *path, struct stat64 *status), path,
          (version, path, status))
DESCRIPTOR_CALL(int, __fxstat64, (int version, int file, struct stat64 *status),
                (version, file, status))
AT_CALL(__fxstatat64, (int version, int folder, const char *path, struct stat64 *status, int flags),
        path, (version, folder, path, status, flags))

/* What opens. */
#define OPEN_CALL(name, parameters, folder, arguments) \
    int name parameters \
    { \
        NEXT(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        return opened(next arguments, wait_if(is_below(folder, path))); \
    }

OPEN_CALL(open, (const char *path, int flags, ...), -1, (path, flags, mode))
OPEN_CALL(open64, (const char *path, int flags, ...), -1, (path, flags, mode))
OPEN_CALL(openat, (int folder, const char *path, int flags, ...), folder,
          (folder, path, flags, mode))
OPEN_CALL(openat64, (int folder, const char *path, int flags, ...), folder,
          (folder, path, flags, mode))

DIR *opendir(const char *path)
{
    NEXT(opendir);
    int slow = wait_if(is_below(-1, path));
    DIR *folder = next(path);

    if (folder)
        opened(dirfd(folder), slow);
    return folder;
}

DIR *fdopendir(int descriptor)
{
    NEXT(fdopendir);
    char name[32], path[4096];

    /* CPython hands over a duplicate, so what it is a descriptor of has to be asked. */
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlinkat(AT_FDCWD, name, path, sizeof path - 1);
    path[length > 0 ? length : 0] = '\0';
    opened(descriptor, length > 0 && is_below(-1, path));
    return next(descriptor);
}

int close(int descriptor)
{
    NEXT(close);
    opened(descriptor, ELSEWHERE);
    return next(descriptor);
}

int closedir(DIR *folder)
{
    NEXT(closedir);
    opened(dirfd(folder), ELSEWHERE);
    return next(folder);
}

/* What reads a folder: the first entry brings many others with it. */
static void wait_for_entries(DIR *folder)
{
    int descriptor = dirfd(folder);

    if (descriptor >= 0 && descriptor < DESCRIPTORS && below[descriptor] == UNREAD) {
        below[descriptor] = BELOW;
        wait_if(1);
    }
}

struct dirent *readdir(DIR *folder)
{
    NEXT(readdir);
    wait_for_entries(folder);
    return next(folder);
}

struct dirent64 *readdir64(DIR *folder)
{
    NEXT(readdir64);
    wait_for_entries(folder);
    return next(folder);
}
