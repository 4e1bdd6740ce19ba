/* shared.c: the pages of a large block as memory that other processes of the machine map: sealed, so that nobody
 * can write it or cut it off, and gone with the last process that has it.  Every process maps it copy-on-write, at
 * the place that the block has: pointers into the block stay right, and a page that is written becomes its own.
 * Whatever stands in the way (another system, a small block, limits), the block stays memory of this process. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "base/base.h"

void asp_shared_close(int descriptor) {
    if (descriptor >= 0) close(descriptor);
}

#if defined(__linux__)
enum { SHARED_STEP = 16 << 20, SHARED_SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE };

/* Puts `bytes` of the file, from `offset`, in place of the pages at `to`, which hold the same; 0 if it fails.  They are
 * mapped elsewhere first, because a mapping that fails at its place may leave a hole there. */
static int replace_pages(char *to, int64_t bytes, int descriptor, int64_t offset) {
    void *map = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, descriptor, offset);
    if (map == MAP_FAILED) return 0;
    if (mremap(map, (size_t)bytes, (size_t)bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) != MAP_FAILED) return 1;
    munmap(map, (size_t)bytes);
    return 0;
}

static int write_pages(int descriptor, const char *from, int64_t bytes) {
    while (bytes > 0) {
        const ssize_t n = write(descriptor, from, (size_t)bytes);
        if (n <= 0 && !(n < 0 && errno == EINTR)) return 0;
        if (n > 0) from += n, bytes -= n;
    }
    return 1;
}

/* Step by step, so that the block is never there twice. */
static asp_status move_pages(char *pages, int64_t bytes, int descriptor, int *moved, const asp_context *context) {
    for (int64_t at = 0; at < bytes; at += SHARED_STEP) {
        const int64_t n = asp_min(SHARED_STEP, bytes - at);
        if (asp_parallel_stopped(context)) return ASP_STOPPED;
        if (!write_pages(descriptor, pages + at, n) || !replace_pages(pages + at, n, descriptor, at)) return ASP_OK;
    }
    *moved = fcntl(descriptor, F_ADD_SEALS, SHARED_SEALS) == 0;
    return ASP_OK;
}

asp_status asp_shared_offer(void *block, int *descriptor, const asp_context *context) {
    int64_t bytes;
    char *pages = asp_memory_pages(block, &bytes);
    *descriptor = -1;
    const int file = pages ? memfd_create("attnsparse", MFD_CLOEXEC | MFD_ALLOW_SEALING) : -1;
    if (file < 0) return ASP_OK;
    int moved = 0;
    const asp_status status = move_pages(pages, bytes, file, &moved, context);
    if (moved) *descriptor = file;
    else close(file);
    return status;
}

static asp_status compare_pages(const char *pages, const char *with, int64_t bytes, int *same,
                                const asp_context *context) {
    *same = 1;
    for (int64_t at = 0; *same && at < bytes; at += SHARED_STEP) {
        if (asp_parallel_stopped(context)) return ASP_STOPPED;
        *same = memcmp(pages + at, with + at, (size_t)asp_min(SHARED_STEP, bytes - at)) == 0;
    }
    return ASP_OK;
}

asp_status asp_shared_take(void *block, int descriptor, int *taken, const asp_context *context) {
    int64_t bytes;
    char *pages = asp_memory_pages(block, &bytes);
    struct stat file;
    *taken = 0;
    if (!pages || fcntl(descriptor, F_GET_SEALS) != SHARED_SEALS) return ASP_OK;
    if (fstat(descriptor, &file) || file.st_size != bytes) return ASP_OK;
    char *map = mmap(NULL, (size_t)bytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (map == MAP_FAILED) return ASP_OK;
    int same;
    const asp_status status = compare_pages(pages, map, bytes, &same, context);
    munmap(map, (size_t)bytes);
    if (!status && same) *taken = replace_pages(pages, bytes, descriptor, 0);
    return status;
}

#else
asp_status asp_shared_offer(void *block, int *descriptor, const asp_context *context) {
    (void)block;
    (void)context;
    *descriptor = -1;
    return ASP_OK;
}

asp_status asp_shared_take(void *block, int descriptor, int *taken, const asp_context *context) {
    (void)block;
    (void)descriptor;
    (void)context;
    *taken = 0;
    return ASP_OK;
}
#endif
