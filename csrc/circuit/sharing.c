/* sharing.c: which rows of the residual stream are a variant's own, and which are those of another one.
 *
 * The row before layer l at position t depends on the items of the layers below l at queries up to t.  Two variants of
 * one sequence that differ in few items therefore have the same rows up to the lowest layer of these items, and before
 * the first of their queries; only the others are computed twice. */
#include "circuit/circuit.h"

enum { RANGES = 4 };

/* The ranks of items that one of two variants ablates and the other keeps: ranges of `n` ranks from `begin` on. */
typedef struct {
    struct {
        uint32_t begin, n;
    } range[RANGES];
    int n_ranges;
} difference;

static void add_range(difference *d, int64_t a, int64_t b) {
    const int64_t most = (int64_t)INT32_MAX + 1;
    const int64_t begin = asp_min(asp_max(asp_min(a, b), 0), most), end = asp_min(asp_max(asp_max(a, b), 0), most);
    if (begin < end) {
        d->range[d->n_ranges].begin = (uint32_t)begin;
        d->range[d->n_ranges++].n = (uint32_t)(end - begin);
    }
}

static difference difference_of(const asp_variant *v, const asp_variant *other) {
    difference d = {0};
    add_range(&d, v->keep_begin, other->keep_begin);
    add_range(&d, v->keep_end, other->keep_end);
    if (v->dropped == other->dropped) return d;
    const int64_t dropped[2] = {v->dropped, other->dropped};
    for (int i = 0; i < 2; i++)
        if (dropped[i] >= 0 && dropped[i] <= INT32_MAX) add_range(&d, dropped[i], dropped[i] + 1);
    return d;
}

/* Whether one of n ranks is in the difference; negative ones, which no variant ablates, are in none of its ranges. */
static int differs(const difference *d, const int32_t *rank, int64_t n) {
    uint32_t any = 0;
    for (int i = 0; i < d->n_ranges; i++) {
        const uint32_t begin = d->range[i].begin, size = d->range[i].n;
        for (int64_t k = 0; k < n; k++) any |= (uint32_t)rank[k] - begin < size;
    }
    return any != 0;
}

/* Whether an item of the layer at this query is in the difference. */
static int differs_at(const asp_variants *vs, const difference *d, int64_t layer, int64_t query, int64_t t) {
    const int64_t n_head = vs->config->n_head;
    const int32_t *order = vs->order;
    if (vs->unit == ASP_UNIT_HEAD) return differs(d, order + layer * n_head, n_head);
    for (int64_t h = layer * n_head; h < (layer + 1) * n_head; h++)
        if (vs->unit == ASP_UNIT_POSITION ? differs(d, order + h * t + query, 1)
                                          : differs(d, order + (h * t + query) * t, query + 1))
            return 1;
    return 0;
}

/* lowest (t) written: the first layer in which an item of each query is in the difference, L if there is none. */
static void lowest_layers(int32_t *lowest, const asp_variants *vs, const asp_variant *v, const asp_variant *parent,
                          int64_t t) {
    const difference d = difference_of(v, parent);
    const int64_t n_layer = vs->config->n_layer;
    for (int64_t q = 0; q < t; q++) {
        int64_t l = q < v->first_position || !d.n_ranges ? n_layer : v->start_layer;
        while (l < n_layer && !differs_at(vs, &d, l, q, t)) l++;
        lowest[q] = (int32_t)l;
    }
}

/* The same against the clean run, from which a variant differs wherever it says it may. */
static void lowest_of_clean(int32_t *lowest, const asp_variants *vs, const asp_variant *v, int64_t t) {
    const int32_t none = (int32_t)vs->config->n_layer;
    for (int64_t q = 0; q < t; q++)
        lowest[q] = q < v->first_position || (v->scope && q > v->first_position) ? none : (int32_t)v->start_layer;
}

int asp_sharing_follows(const asp_variant *v, const asp_variant *before) {
    return v->sequence == before->sequence && v->start_layer == before->start_layer &&
           v->first_position == before->first_position && !v->scope && !before->scope;
}

int64_t asp_sharing_own_rows(int32_t *own, const asp_variants *vs, const asp_variant *v, const asp_variant *parent) {
    const int64_t t = asp_variant_length(vs, v), n_layer = vs->config->n_layer;
    if (parent) lowest_layers(own, vs, v, parent, t);
    else lowest_of_clean(own, vs, v, t);
    int64_t n = 0, reached = n_layer + 1; /* the first layer before which a row at or before this position is own */
    for (int64_t q = 0; q < t; q++) {
        const int64_t first = asp_min(own[q] + 1, reached + 1);
        own[q] = (int32_t)asp_min(first, n_layer + 1);
        reached = asp_min(reached, first);
        n += own[q] < n_layer || (q == t - 1 && own[q] == n_layer);
    }
    return n;
}
