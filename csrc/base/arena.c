/* arena.c: many arrays in one block.  A table of parts says which arrays there are: it is laid out, the block is
 * allocated, and the parts' pointers are set. */
#include <string.h>

#include "base/base.h"

int64_t asp_arena_reserve(asp_arena *arena, int64_t n, int64_t item_bytes) {
    int64_t bytes, end;
    const int64_t offset = arena->bytes;
    if (!asp_multiply(n, item_bytes, &bytes) || __builtin_add_overflow(offset, bytes, &end) ||
        end > INT64_MAX - ASP_ALIGNMENT) {
        arena->overflow = 1;
        return 0;
    }
    arena->bytes = asp_round_up(end, ASP_ALIGNMENT);
    return offset;
}

int asp_arena_commit(asp_arena *arena, int zeroed) {
    if (arena->overflow) return 0;
    arena->base = asp_memory_take(arena->bytes > 0 ? arena->bytes : 1, 1, zeroed);
    return arena->base != NULL;
}

void asp_arena_free(asp_arena *arena) {
    asp_release(arena->base);
    *arena = (asp_arena){0};
}

int64_t asp_arena_lay_out(asp_arena *arena, asp_arena_part *parts, int n_parts) {
    for (int i = 0; i < n_parts; i++) {
        int64_t n;
        parts[i].offset =
            asp_arena_reserve(arena, asp_multiply(parts[i].n, parts[i].m, &n) ? n : -1, (int64_t)parts[i].size);
    }
    return arena->overflow ? INT64_MAX : arena->bytes;
}

void asp_arena_wire(const asp_arena *arena, const asp_arena_part *parts, int n_parts) {
    for (int i = 0; i < n_parts; i++) {
        const void *start = arena->base + parts[i].offset;
        memcpy(parts[i].at, (const void *)&start, sizeof start);
    }
}
