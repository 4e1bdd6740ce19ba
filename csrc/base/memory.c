/* memory.c: the only allocator.  Every block is 64-byte aligned and counted, so that a test can ask whether
 * a call gave back all it took, and can make the n-th allocation fail.  A few large blocks that were given
 * back are kept for the next run: pages that the system hands out must be cleared first, which costs more
 * than a run's own writes. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "base/base.h"

enum { LARGE = 1 << 20, KEPT_BLOCKS = 8 };
static const int64_t KEPT_BYTES = (int64_t)1 << 30;

typedef struct {
    void *start;    /* what the system gave */
    int64_t bytes;  /* what was asked for */
    int64_t mapped; /* bytes mapped, 0 for the heap */
    int replaced;   /* its pages may be other memory: nothing to keep */
} block_header;

/* Blocks given back and kept; a caller that finds the lock taken skips the cache. */
static struct {
    atomic_flag lock;
    int64_t bytes;
    struct {
        char *start;
        int64_t mapped;
    } blocks[KEPT_BLOCKS];
} kept = {.lock = ATOMIC_FLAG_INIT};

static atomic_llong live_bytes, live_blocks, n_allocations, fail_at;

asp_memory_stats asp_memory_get_stats(void) {
    return (asp_memory_stats){atomic_load(&live_bytes), atomic_load(&live_blocks), atomic_load(&n_allocations)};
}

void asp_memory_fail_at(int64_t n) { atomic_store(&fail_at, n); }

int asp_multiply(int64_t a, int64_t b, int64_t *out) {
    int64_t product;
    if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product)) return 0;
    *out = product;
    return 1;
}

#if defined(__linux__)
/* The smallest kept block of at least this size and at most twice it; NULL if there is none. */
static char *take_kept(int64_t bytes, int64_t *mapped) {
    if (atomic_flag_test_and_set(&kept.lock)) return NULL;
    int best = -1;
    for (int i = 0; i < KEPT_BLOCKS; i++) {
        const int64_t size = kept.blocks[i].mapped;
        if (size >= bytes && size / 2 <= bytes && (best < 0 || size < kept.blocks[best].mapped)) best = i;
    }
    char *start = NULL;
    if (best >= 0) {
        start = kept.blocks[best].start;
        *mapped = kept.blocks[best].mapped;
        kept.bytes -= *mapped;
        kept.blocks[best].mapped = 0;
    }
    atomic_flag_clear(&kept.lock);
    return start;
}

/* Gives the system all that is kept. */
static void drop_kept(void) {
    if (atomic_flag_test_and_set(&kept.lock)) return;
    for (int i = 0; i < KEPT_BLOCKS; i++) {
        if (kept.blocks[i].mapped) munmap(kept.blocks[i].start, (size_t)kept.blocks[i].mapped);
        kept.blocks[i].mapped = 0;
    }
    kept.bytes = 0;
    atomic_flag_clear(&kept.lock);
}

static char *map(int64_t bytes) {
    char *start = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return start == MAP_FAILED ? NULL : start;
}

/* 1 if the block was kept, 0 if the system should have it back. */
static int keep(char *start, int64_t mapped) {
    if (atomic_flag_test_and_set(&kept.lock)) return 0;
    int i = 0;
    while (i < KEPT_BLOCKS && kept.blocks[i].mapped) i++;
    const int room = i < KEPT_BLOCKS && kept.bytes + mapped <= KEPT_BYTES;
    if (room) {
        kept.blocks[i].start = start;
        kept.blocks[i].mapped = mapped;
        kept.bytes += mapped;
    }
    atomic_flag_clear(&kept.lock);
    return room;
}

/* A fork waits until no thread is changing the blocks that are kept, so that a child finds them whole. */
static void memory_before_fork(void) {
    while (atomic_flag_test_and_set(&kept.lock)) sched_yield();
}
static void memory_after_fork(void) { atomic_flag_clear(&kept.lock); }
__attribute__((constructor)) static void watch_forks(void) {
    pthread_atfork(memory_before_fork, memory_after_fork, memory_after_fork);
}
#endif

void *asp_memory_hold_space(size_t bytes) {
#if defined(__linux__)
    char *start = map((int64_t)bytes);
    if (start) return start;
    drop_kept();
    return map((int64_t)bytes);
#else
    return malloc(bytes);
#endif
}

void asp_memory_give_space(void *start, size_t bytes) {
#if defined(__linux__)
    munmap(start, bytes);
#else
    (void)bytes;
    free(start);
#endif
}

/* Large blocks are mapped: zero pages come free, huge pages spare page faults, and the system gets them back. */
static char *system_allocate(int64_t bytes, int zeroed, int64_t *mapped) {
    *mapped = 0;
#if defined(__linux__)
    if (bytes >= LARGE) {
        char *again = zeroed ? NULL : take_kept(bytes, mapped);
        if (again) return again;
        char *start = asp_memory_hold_space((size_t)bytes);
        if (!start) return NULL;
        madvise(start, (size_t)bytes, MADV_HUGEPAGE);
        *mapped = bytes;
        return start;
    }
#endif
    return calloc(1, (size_t)bytes);
}

void *asp_memory_take(int64_t n, size_t size, int zeroed) {
    int64_t bytes, total;
    if (!asp_multiply(n, (int64_t)size, &bytes)) return NULL;
    if (__builtin_add_overflow(bytes, (int64_t)(sizeof(block_header) + ASP_ALIGNMENT), &total)) return NULL;
    atomic_fetch_add(&n_allocations, 1);
    if (atomic_load(&fail_at) > 0 && atomic_fetch_sub(&fail_at, 1) == 1) return NULL;
    int64_t mapped;
    char *start = system_allocate(total, zeroed, &mapped);
    if (!start) return NULL;
    const uintptr_t first = (uintptr_t)start + sizeof(block_header);
    char *block = start + ((first + ASP_ALIGNMENT - 1) / ASP_ALIGNMENT * ASP_ALIGNMENT - (uintptr_t)start);
    const block_header header = {start, bytes, mapped, 0};
    memcpy(block - sizeof header, &header, sizeof header);
    atomic_fetch_add(&live_bytes, bytes);
    atomic_fetch_add(&live_blocks, 1);
    return block;
}

#if defined(__linux__)
char *asp_memory_pages(void *block, int64_t *bytes) {
    block_header header;
    memcpy(&header, (char *)block - sizeof header, sizeof header);
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t before = asp_round_up((int64_t)(uintptr_t)block, page) - (int64_t)(uintptr_t)block;
    *bytes = (header.bytes - before) / page * page;
    if (!header.mapped || *bytes <= 0) return NULL;
    header.replaced = 1;
    memcpy((char *)block - sizeof header, &header, sizeof header);
    return (char *)block + before;
}
#endif

void *asp_allocate(int64_t n, size_t size) { return asp_memory_take(n, size, 1); }

void asp_release(void *block) {
    if (!block) return;
    block_header header;
    memcpy(&header, (char *)block - sizeof header, sizeof header);
    atomic_fetch_sub(&live_bytes, header.bytes);
    atomic_fetch_sub(&live_blocks, 1);
#if defined(__linux__)
    if (header.mapped) {
        if (header.replaced || !keep(header.start, header.mapped)) munmap(header.start, (size_t)header.mapped);
        return;
    }
#endif
    free(header.start);
}
