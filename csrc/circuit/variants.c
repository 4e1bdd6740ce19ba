/* variants.c: attention of one head of a variant: which of its items are ablated, and what replaces them. */
#include <string.h>

#include "circuit/circuit.h"

static int is_ablated(const asp_variant *v, int32_t rank) {
    return rank >= 0 && (rank < v->keep_begin || rank >= v->keep_end || rank == v->dropped);
}

/* Tokens of the whole sequence; a narrow variant's unit ends at its first position. */
static int64_t length_of(const asp_variants *vs, const asp_variant *v) {
    return vs->replacement.offsets[v->sequence + 1] - vs->replacement.offsets[v->sequence];
}

static void replace_row(asp_real *z, const asp_real *reference, int64_t d) {
    if (reference) memcpy(z, reference, (size_t)d * sizeof *z);
    else memset(z, 0, (size_t)d * sizeof *z);
}

/* Rows of z of an ablated head, or of the positions at which it is ablated. */
static void replace_heads(const asp_variants *vs, const asp_variant *v, const asp_attention_task *u, int64_t layer,
                          int64_t head) {
    const int64_t head_index = layer * vs->config->n_head + head, t = length_of(vs, v);
    for (int64_t q = asp_max(u->n_prefix, u->first_query); q < u->n_tokens; q++) {
        const int32_t rank = vs->order[vs->unit == ASP_UNIT_HEAD ? head_index : head_index * t + q];
        if (is_ablated(v, rank))
            replace_row(u->z + (q - u->n_prefix) * u->z_stride,
                        asp_reference_z(&vs->replacement, layer, v->sequence, head, q), u->d_head);
    }
}

enum { KEPT = 0, REPLACED = 1, CLOSED = 2 };

/* Marks the ablated entries of one head in a mask of the unit's size; returns whether there is one.
 *   order (t,t) read, t that of the whole sequence */
static int mark_ablated(const asp_variant *v, const asp_attention_task *u, const int32_t *order, int64_t t,
                        uint8_t *mask) {
    int any = 0;
    const int64_t n = u->n_tokens;
    for (int64_t q = asp_max(u->n_prefix, u->first_query); q < n; q++)
        for (int64_t k = 0; k <= q; k++) {
            const int32_t rank = order[q * t + k];
            const uint8_t mark = rank == ASP_RANK_CLOSED ? CLOSED : is_ablated(v, rank) ? REPLACED : KEPT;
            any |= mask[q * n + k] = mark;
        }
    return any;
}

/* z += what the ablated entries contribute in the paired run, or on average. */
static void add_references(const asp_variants *vs, const asp_variant *v, const asp_attention_task *u, int64_t layer,
                           int64_t head, const uint8_t *mask) {
    const asp_config *c = vs->config;
    const asp_reference_view *r = &vs->replacement;
    const int64_t t = length_of(vs, v), n = u->n_tokens, d = c->d_head, square = (layer * c->n_head + head) * t * t;
    const asp_real *pattern = NULL, *values = NULL, *entries = NULL;
    if (r->given->entries) entries = r->given->entries + square * d;
    else if (r->pattern.data) {
        pattern = (const asp_real *)r->pattern.data + r->square_start[v->sequence] + square;
        values = (const asp_real *)r->qkv.data + layer * r->qkv.strides[0] +
                 r->offsets[v->sequence] * r->qkv.strides[1] + 2 * r->qkv.strides[2] + head * d;
    } else {
        return;
    }
    for (int64_t q = asp_max(u->n_prefix, u->first_query); q < n; q++) {
        asp_real *z = u->z + (q - u->n_prefix) * u->z_stride;
        for (int64_t k = 0; k <= q; k++) {
            if (mask[q * n + k] != REPLACED) continue;
            const asp_real weight = pattern ? pattern[q * t + k] : 1;
            const asp_real *x = pattern ? values + k * r->qkv.strides[1] : entries + (q * t + k) * d;
            for (int64_t j = 0; j < d; j++) z[j] += weight * x[j];
        }
    }
}

/* Attention of one head of one variant; the task's rows are those of the variant. */
static void attention(void *state, asp_attention_task *u, int64_t layer, int64_t sequence, int64_t head, int thread) {
    const asp_variants *vs = state;
    const asp_variant *v = &vs->variants[sequence];
    const int64_t head_index = layer * vs->config->n_head + head;
    u->n_prefix = v->first_position;
    u->n_tokens += v->first_position;
    const asp_real *clean = (const asp_real *)vs->clean_qkv.data + layer * vs->clean_qkv.strides[0] +
                            vs->replacement.offsets[v->sequence] * vs->clean_qkv.strides[1] + head * u->d_head;
    u->prefix_k = clean + vs->clean_qkv.strides[2];
    u->prefix_v = clean + 2 * vs->clean_qkv.strides[2];
    u->first_query = vs->last_only ? u->n_tokens - 1 : v->first_position;
    if (v->scope == ASP_SCOPE_POINT && layer > v->start_layer) {
        asp_isa_kernels()->attention_forward(u);
        return;
    }
    if (vs->unit != ASP_UNIT_EDGE) {
        if (vs->unit != ASP_UNIT_HEAD || !is_ablated(v, vs->order[head_index])) asp_isa_kernels()->attention_forward(u);
        replace_heads(vs, v, u, layer, head);
        return;
    }
    uint8_t *mask = vs->masks + thread * vs->longest * vs->longest;
    const int64_t t = length_of(vs, v);
    const int any = mark_ablated(v, u, vs->order + head_index * t * t, t, mask);
    if (any) u->dropped = mask;
    asp_isa_kernels()->attention_forward(u);
    if (any) add_references(vs, v, u, layer, head, mask);
}

asp_hooks asp_variants_hooks(asp_variants *variants) { return (asp_hooks){.state = variants, .attention = attention}; }
