/* A library for LD_PRELOAD that stands between a process and the file system: faults_start makes the n-th
 * call of one kind below one folder fail, and writes down all of them. What lies outside goes through.
 *
 * Kinds: 0 none, 1 open for writing or of a folder, 2 write, 3 a write that takes half and whose rest fails,
 * 4 a write that takes half (no failure), 5 fsync, 6 close, 7 rename, 8 link, 9 unlink.
 * The log is binary: one letter, two numbers of 8 bytes (length of name and of data), name, data. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { NONE, OPEN, WRITE, HALF_THEN_FAIL, HALF, FSYNC, CLOSE, RENAME, LINK, UNLINK, MAX_FDS = 4096, MAX_NAME = 1024 };

static char folder[MAX_NAME], names[MAX_FDS][MAX_NAME];
static int kind, number, fired, broken_fd = -1, log_fd = -1;
static long nth;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* ---- control ------------------------------------------------------------------------------------- */

void faults_start(const char *below, int what, long n, int error, int log) {
    snprintf(folder, sizeof folder, "%s", below);
    kind = what, nth = n, number = error, fired = 0, broken_fd = -1, log_fd = log;
}

/* Whether the fault has happened. */
int faults_stop(void) {
    folder[0] = 0, kind = NONE, log_fd = -1;
    return fired;
}

/* ---- what the calls below share ------------------------------------------------------------------ */

static int is_below(const char *path) {
    const size_t n = strlen(folder);
    return n && strncmp(path, folder, n) == 0 && (path[n] == 0 || path[n] == '/');
}

static const char *name_of(int fd) {
    return fd >= 0 && fd < MAX_FDS && names[fd][0] && is_below(names[fd]) ? names[fd] : NULL;
}

static void put(const void *data, size_t n) {
    const char *next = data;
    for (ssize_t done; n; next += done, n -= (size_t)done)
        if ((done = REAL(write)(log_fd, next, n)) <= 0) return;
}

static void note(char what, const char *name, const void *data, size_t n) {
    if (log_fd < 0) return;
    const uint64_t sizes[2] = {strlen(name), n};
    put(&what, 1), put(sizes, sizeof sizes), put(name, sizes[0]), put(data, n);
}

/* Counts a call of this kind; whether it is the one that fails, with errno set. */
static int fails(int what) {
    if (kind != what || nth <= 0 || --nth > 0) return 0;
    fired = 1;
    errno = number;
    return 1;
}

/* ---- the calls ----------------------------------------------------------------------------------- */

static int opened(int fd, const char *path, int flags) {
    if (fd >= 0 && fd < MAX_FDS) snprintf(names[fd], MAX_NAME, "%s", path);
    if (fd >= 0 && (flags & (O_WRONLY | O_RDWR)) && is_below(path)) note(flags & O_TRUNC ? 'T' : 'O', path, "", 0);
    return fd;
}

#define DEFINE_OPEN(function)                                                                           \
    int function(const char *path, int flags, ...) {                                                    \
        va_list rest;                                                                                   \
        va_start(rest, flags);                                                                          \
        const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                   \
        va_end(rest);                                                                                   \
        if (is_below(path) && ((flags & (O_WRONLY | O_RDWR)) || strcmp(path, folder) == 0) && fails(OPEN)) \
            return -1;                                                                                  \
        return opened(REAL(function)(path, flags, mode), path, flags);                                  \
    }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)

ssize_t write(int fd, const void *data, size_t n) {
    const char *name = name_of(fd);
    if (!name) return REAL(write)(fd, data, n);
    if (fd == broken_fd) return errno = number, -1;
    if (fails(WRITE)) return -1;
    if (fails(HALF_THEN_FAIL)) broken_fd = fd, n /= 2;
    if (fails(HALF)) n = (n + 1) / 2;
    const ssize_t done = REAL(write)(fd, data, n);
    if (done > 0) note('W', name, data, (size_t)done);
    return done;
}

static int synced(int fd, int (*real)(int)) {
    const char *name = name_of(fd);
    if (name && fails(FSYNC)) return -1;
    const int status = real(fd);
    if (name && status == 0) note('S', name, "", 0);
    return status;
}

int fsync(int fd) { return synced(fd, REAL(fsync)); }
int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }

int close(int fd) {
    const char *name = name_of(fd);
    const int failing = name && fails(CLOSE);
    if (fd >= 0 && fd < MAX_FDS) names[fd][0] = 0;
    if (fd == broken_fd) broken_fd = -1;
    const int status = REAL(close)(fd);
    return failing ? (errno = number, -1) : status;
}

int rename(const char *from, const char *to) {
    if (is_below(to) && fails(RENAME)) return -1;
    const int status = REAL(rename)(from, to);
    if (is_below(to) && status == 0) note('R', from, to, strlen(to));
    return status;
}

int link(const char *from, const char *to) {
    if (is_below(to) && fails(LINK)) return -1;
    const int status = REAL(link)(from, to);
    if (is_below(to) && status == 0) note('L', from, to, strlen(to));
    return status;
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    if (is_below(to) && fails(LINK)) return -1;
    const int status = REAL(linkat)(from_folder, from, to_folder, to, flags);
    if (is_below(to) && status == 0) note('L', from, to, strlen(to));
    return status;
}

int unlink(const char *path) {
    if (is_below(path) && fails(UNLINK)) return -1;
    const int status = REAL(unlink)(path);
    if (is_below(path) && status == 0) note('U', path, "", 0);
    return status;
}
