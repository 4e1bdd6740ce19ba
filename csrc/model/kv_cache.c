/* kv_cache.c: keys and values of sequences that grow, in the layout of the attention kernel. */
#include <string.h>

#include "model/model.h"

int64_t asp_kv_cache_lay_out(asp_kv_cache *cache, const asp_config *config, int64_t n_sequences) {
    const int64_t heads = config->n_layer * config->n_head;
    cache->n_layer = config->n_layer;
    cache->n_head = config->n_head;
    cache->n_sequences = n_sequences;
    cache->start[0] = 0;
    for (int64_t b = 0; b < n_sequences; b++) {
        int64_t size;
        if (!asp_multiply(heads, asp_attention_cache(config, cache->room[b]), &size) ||
            __builtin_add_overflow(cache->start[b], size, &cache->start[b + 1]))
            return INT64_MAX;
    }
    return cache->start[n_sequences];
}

asp_real *asp_kv_cache_at(const asp_kv_cache *cache, int64_t layer, int64_t sequence, int64_t head) {
    const int64_t begin = cache->start[sequence], heads = cache->n_layer * cache->n_head;
    return cache->data + begin + (cache->start[sequence + 1] - begin) / heads * (layer * cache->n_head + head);
}

void asp_kv_cache_copy(asp_kv_cache *cache, int64_t to, int64_t from) {
    const int64_t n = cache->start[from + 1] - cache->start[from];
    memcpy(cache->data + cache->start[to], cache->data + cache->start[from], (size_t)n * sizeof *cache->data);
}
