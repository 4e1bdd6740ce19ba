/* graph_sources.c: in which order the writes of a prompt's sources go. */
#include <string.h>

#include "graph/graph.h"

asp_status asp_graph_sources_count(int64_t *n_writes, const asp_graph_found *f, asp_error *err) {
    const int64_t fixed = f->n_layer + 2;
    if (f->n_layer < 1 || f->n_tokens < 0 || !asp_multiply(fixed, f->n_tokens, n_writes))
        return asp_fail(err, ASP_BAD_ARGUMENT, "a graph of %lld layers and %lld tokens cannot be",
                        (long long)f->n_layer, (long long)f->n_tokens);
    for (int64_t l = 0; l < f->n_layer; l++)
        if (f->n_outputs[l] < 0 || f->n_outputs[l] > f->n_layer - l)
            return asp_fail(err, ASP_BAD_ARGUMENT, "features of layer %lld write to 0 to %lld layers, got %lld",
                            (long long)l, (long long)(f->n_layer - l), (long long)f->n_outputs[l]);
    for (int64_t i = 0; i < f->n_features; i++) {
        if (f->layer[i] < 0 || f->layer[i] >= f->n_layer || f->position[i] < 0 || f->position[i] >= f->n_tokens)
            return asp_fail(err, ASP_BAD_INDEX, "feature %lld (layer %d, position %d) is out of range", (long long)i,
                            f->layer[i], f->position[i]);
        if (i && f->layer[i] < f->layer[i - 1])
            return asp_fail(err, ASP_BAD_ARGUMENT, "features must be in order of layer, feature %lld is not",
                            (long long)i);
        *n_writes += f->n_outputs[f->layer[i]];
    }
    return ASP_OK;
}

typedef struct {
    const asp_graph_found *found;
    int32_t *layer, *position, *source;
    int64_t *rows;
    int64_t *next;  /* ((L+1) T) by layer and position: row of the next write there */
    int64_t *first; /* (L+1) of each layer's features: the first of their writes in the order found; then the end */
} ordering;

/* next: where the writes of each layer and position begin. */
static void count(ordering *o) {
    const asp_graph_found *f = o->found;
    const int64_t t = f->n_tokens, n_places = (f->n_layer + 1) * t;
    for (int64_t i = 0; i < n_places; i++) o->next[i] = i < t ? 2 : 1;
    for (int64_t i = 0; i < f->n_features; i++)
        for (int64_t w = 0; w < f->n_outputs[f->layer[i]]; w++) o->next[(f->layer[i] + w + 1) * t + f->position[i]]++;
    int64_t row = 0;
    for (int64_t i = 0; i < n_places; i++) {
        const int64_t n = o->next[i];
        o->next[i] = row;
        row += n;
    }
}

/* The write `found` of a source goes to the next row of its layer and position; sources come rising. */
static void put_write(ordering *o, int64_t found, int64_t layer, int64_t position, int64_t source) {
    const int64_t row = o->next[layer * o->found->n_tokens + position]++;
    o->rows[found] = row;
    o->layer[row] = (int32_t)layer;
    o->position[row] = (int32_t)position;
    o->source[row] = (int32_t)source;
}

static void put_all(ordering *o) {
    const asp_graph_found *f = o->found;
    const int64_t t = f->n_tokens, n = f->n_features;
    for (int64_t begin = 0, end; begin < n; begin = end) {
        const int64_t layer = f->layer[begin];
        for (end = begin + 1; end < n && f->layer[end] == layer;) end++;
        for (int64_t i = begin; i < end; i++)
            for (int64_t w = 0; w < f->n_outputs[layer]; w++)
                put_write(o, o->first[layer] + w * (end - begin) + i - begin, layer + w + 1, f->position[i], i);
    }
    for (int64_t l = 0; l < f->n_layer; l++)
        for (int64_t p = 0; p < t; p++) put_write(o, (2 + l) * t + p, l + 1, p, n + l * t + p);
    for (int64_t which = 0; which < 2; which++)
        for (int64_t p = 0; p < t; p++) put_write(o, which * t + p, 0, p, n + (f->n_layer + which) * t + p);
}

asp_status asp_graph_sources_order(int32_t *layer, int32_t *position, int32_t *source, int64_t *rows,
                                   const asp_graph_found *found, asp_error *err) {
    int64_t n_writes;
    const asp_status status = asp_graph_sources_count(&n_writes, found, err);
    if (status) return status;
    ordering o = {.found = found, .layer = layer, .position = position, .source = source, .rows = rows};
    asp_arena arena = {0};
    asp_arena_part parts[] = {ASP_PART(o.next, found->n_layer + 1, found->n_tokens),
                              ASP_PART(o.first, found->n_layer + 1, 1)};
    asp_arena_lay_out(&arena, parts, 2);
    if (!asp_arena_commit(&arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "no memory to put %lld writes in order", (long long)n_writes);
    asp_arena_wire(&arena, parts, 2);
    o.first[0] = (found->n_layer + 2) * found->n_tokens;
    for (int64_t i = 0; i < found->n_features; i++) o.first[found->layer[i] + 1] += found->n_outputs[found->layer[i]];
    for (int64_t l = 0; l < found->n_layer; l++) o.first[l + 1] += o.first[l];
    count(&o);
    put_all(&o);
    asp_arena_free(&arena);
    return ASP_OK;
}
