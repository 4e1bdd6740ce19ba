/* variants.c: attention of a layer of variants: which of its items are ablated, and what replaces them. */
#include <string.h>

#include "circuit/circuit.h"

static int is_ablated(const asp_variant *v, int32_t rank) {
    return rank >= 0 && (rank < v->keep_begin || rank >= v->keep_end || rank == v->dropped);
}

/* ---- rows -------------------------------------------------------------------------------------- */

/* The queries whose rows are the variant's own behind the layer, with the places of their z; how many there are. */
static int64_t own_queries(const asp_variants *vs, const asp_attention_task *u, int64_t layer, int64_t variant,
                           const asp_variant_scratch *scratch) {
    const int32_t *own = vs->own + variant * vs->longest, *after = vs->after + variant * vs->longest;
    const int64_t t = u->n_tokens;
    int64_t n = 0;
    for (int64_t q = vs->last_only ? t - 1 : 0; q < t; q++) {
        if (own[q] > layer + 1) continue;
        scratch->queries[n++] = q;
        scratch->z_rows[q] = u->z + after[q] * u->z_stride;
    }
    return n;
}

/* Attention of these queries, if there are any; their keys are those of the variant's rows before the layer. */
static void attend(const asp_variants *vs, asp_attention_task *u, int64_t layer, int64_t variant, int64_t head,
                   const asp_variant_scratch *scratch, const int64_t *queries, int64_t n) {
    if (!n) return;
    const int32_t *before = vs->before + variant * vs->longest;
    const asp_real *clean = (const asp_real *)vs->clean_qkv.data + layer * vs->clean_qkv.strides[0] +
                            vs->replacement.offsets[vs->variants[variant].sequence] * vs->clean_qkv.strides[1] +
                            head * u->d_head;
    for (int64_t t = 0; t <= queries[n - 1]; t++)
        scratch->rows[t] = before[t] < 0 ? clean + t * vs->clean_qkv.strides[1] : u->q + before[t] * u->stride;
    u->rows = scratch->rows;
    u->held = scratch->held;
    u->z_rows = scratch->z_rows;
    u->queries = queries;
    u->n_queries = n;
    asp_isa_kernels()->attention_rows(u);
}

/* ---- heads ------------------------------------------------------------------------------------- */

static void replace_row(asp_real *z, const asp_real *reference, int64_t d) {
    if (reference) memcpy(z, reference, (size_t)d * sizeof *z);
    else memset(z, 0, (size_t)d * sizeof *z);
}

/* Writes z of the queries at which the head is ablated; the others are moved to the front, their number returned. */
static int64_t replace_variant_heads(const asp_variants *vs, const asp_variant *v, const asp_attention_task *u,
                                     int64_t layer, int64_t head, const asp_variant_scratch *scratch, int64_t n) {
    const int64_t head_index = layer * vs->config->n_head + head;
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t q = scratch->queries[i];
        if (is_ablated(v, vs->order[vs->unit == ASP_UNIT_HEAD ? head_index : head_index * u->n_tokens + q]))
            replace_row(scratch->z_rows[q], asp_reference_z(&vs->replacement, layer, v->sequence, head, q), u->d_head);
        else scratch->queries[kept++] = q;
    }
    return kept;
}

/* ---- entries ----------------------------------------------------------------------------------- */

enum { KEPT = 0, REPLACED = 1, CLOSED = 2 };

/* Marks the ablated entries of one query's row (query + 1); returns how many are kept. */
static int64_t mark_row(const asp_variant *v, const int32_t *order, int64_t query, uint8_t *mask) {
    const int64_t most = (int64_t)INT32_MAX + 1, begin = asp_min(asp_max(v->keep_begin, 0), most);
    const uint32_t first = (uint32_t)begin, size = (uint32_t)(asp_min(asp_max(v->keep_end, begin), most) - begin);
    const int32_t dropped = v->dropped >= 0 && v->dropped <= INT32_MAX ? (int32_t)v->dropped : -1;
    uint32_t n = 0;
    for (int64_t k = 0; k <= query; k++) {
        const int32_t rank = order[k];
        const uint32_t kept = (rank < 0) | (((uint32_t)rank - first < size) & (rank != dropped)),
                       closed = rank == ASP_RANK_CLOSED;
        mask[k] = (uint8_t)(closed ? CLOSED : kept ? KEPT : REPLACED);
        n += kept & !closed;
    }
    return n;
}

/* z += what the ablated entries contribute in the paired run, or on average. */
static void add_references(const asp_variants *vs, const asp_variant *v, const asp_attention_task *u, int64_t layer,
                           int64_t head, const asp_variant_scratch *scratch, int64_t n_queries) {
    const asp_config *c = vs->config;
    const asp_reference_view *r = &vs->replacement;
    const int64_t t = u->n_tokens, d = c->d_head, square = (layer * c->n_head + head) * t * t;
    const asp_real *pattern = NULL, *values = NULL, *entries = NULL;
    if (r->given->entries) entries = r->given->entries + square * d;
    else if (r->pattern.data) {
        pattern = (const asp_real *)r->pattern.data + r->square_start[v->sequence] + square;
        values = (const asp_real *)r->qkv.data + layer * r->qkv.strides[0] +
                 r->offsets[v->sequence] * r->qkv.strides[1] + 2 * r->qkv.strides[2] + head * d;
    } else {
        return;
    }
    for (int64_t i = 0; i < n_queries; i++) {
        const int64_t q = scratch->queries[i];
        asp_real *z = scratch->z_rows[q];
        for (int64_t k = 0; k <= q; k++) {
            if (scratch->mask[q * t + k] != REPLACED) continue;
            const asp_real weight = pattern ? pattern[q * t + k] : 1;
            const asp_real *x = pattern ? values + k * r->qkv.strides[1] : entries + (q * t + k) * d;
            for (int64_t j = 0; j < d; j++) z[j] += weight * x[j];
        }
    }
}

/* Attention without the ablated entries, and what replaces them.  A query of which no entry is kept has z = 0. */
static void attend_to_entries(const asp_variants *vs, asp_attention_task *u, int64_t layer, int64_t variant,
                              int64_t head, const asp_variant_scratch *scratch, int64_t n) {
    const asp_variant *v = &vs->variants[variant];
    const int64_t t = u->n_tokens;
    const int32_t *order = vs->order + (layer * vs->config->n_head + head) * t * t;
    int64_t n_attending = 0, any = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t q = scratch->queries[i], kept = mark_row(v, order + q * t, q, scratch->mask + q * t);
        any |= kept <= q;
        if (kept) scratch->attending[n_attending++] = q;
        else replace_row(scratch->z_rows[q], NULL, u->d_head);
    }
    if (any) u->dropped = scratch->mask;
    attend(vs, u, layer, variant, head, scratch, scratch->attending, n_attending);
    if (any) add_references(vs, v, u, layer, head, scratch, n);
}

/* ---- a layer ----------------------------------------------------------------------------------- */

enum { ROWS_PER_ITEM = 256 };

typedef struct {
    const asp_variants *variants;
    const asp_model *model;
    const asp_activations *acts;
    const asp_gate *gate;
    const asp_scratch *scratch;
    int64_t layer, n, per_item; /* variants */
} layer_job;

static asp_variant_scratch scratch_of(const asp_variants *vs, int thread) {
    const int64_t at = thread * vs->longest;
    return (asp_variant_scratch){.rows = vs->scratch.rows + at,
                                 .held = vs->scratch.held + at,
                                 .z_rows = vs->scratch.z_rows + at,
                                 .queries = vs->scratch.queries + at,
                                 .attending = vs->scratch.attending + at,
                                 .mask = vs->scratch.mask + at * vs->longest};
}

/* Attention of one head of one variant; q, k, v and z of the task are those of row 0 of the pass. */
static void one_variant(const asp_variants *vs, asp_attention_task u, int64_t layer, int64_t variant, int64_t head,
                        const asp_variant_scratch *scratch) {
    const asp_variant *v = &vs->variants[variant];
    u.n_tokens = asp_variant_length(vs, v);
    u.held_gate = asp_variants_gate(vs, v->sequence, layer, head);
    int64_t n = own_queries(vs, &u, layer, variant, scratch);
    if (vs->unit == ASP_UNIT_EDGE && !(v->scope == ASP_SCOPE_POINT && layer > v->start_layer)) {
        attend_to_entries(vs, &u, layer, variant, head, scratch, n);
        return;
    }
    if (v->scope != ASP_SCOPE_POINT || layer == v->start_layer)
        n = replace_variant_heads(vs, v, &u, layer, head, scratch, n);
    attend(vs, &u, layer, variant, head, scratch, scratch->queries, n);
}

/* The kernel's scratch has no keys and values of this pass yet. */
static void hold_nothing(const asp_variants *vs, const asp_variant_scratch *scratch) {
    for (int64_t i = 0; i < vs->longest; i++) scratch->held[i] = NULL;
}

static void attention_of_sequence(void *state, asp_attention_task *u, int64_t layer, int64_t sequence, int64_t head,
                                  int thread) {
    const asp_variants *vs = state;
    const asp_variant_scratch scratch = scratch_of(vs, thread);
    hold_nothing(vs, &scratch);
    one_variant(vs, *u, layer, sequence, head, &scratch);
}

asp_hooks asp_variants_hooks(asp_variants *variants) {
    return (asp_hooks){.state = variants, .attention = attention_of_sequence};
}

/* One head of some variants: neighbours share most keys and values, which stay in the kernel's scratch. */
static void layer_item(void *arg, int64_t item, int thread) {
    const layer_job *job = arg;
    const asp_variants *vs = job->variants;
    const int64_t head = item % vs->config->n_head, begin = item / vs->config->n_head * job->per_item;
    const asp_variant_scratch scratch = scratch_of(vs, thread);
    const asp_attention_task task =
        asp_attention_describe(job->model, job->acts, job->layer, job->gate, job->scratch, 0, head, thread);
    for (int64_t i = begin; i < asp_min(begin + job->per_item, job->n); i++) {
        if (i == begin || vs->variants[i].sequence != vs->variants[i - 1].sequence) hold_nothing(vs, &scratch);
        one_variant(vs, task, job->layer, i, head, &scratch);
    }
}

asp_status asp_variants_attention(const asp_variants *vs, const asp_model *model, const asp_activations *acts,
                                  int64_t layer, int64_t n, const asp_gate *gate, const asp_scratch *scratch,
                                  const asp_context *context) {
    layer_job job = {.variants = vs,
                     .model = model,
                     .acts = acts,
                     .gate = gate,
                     .scratch = scratch,
                     .layer = layer,
                     .n = n,
                     .per_item = asp_max(1, ROWS_PER_ITEM / vs->longest)};
    const int64_t items = (n + job.per_item - 1) / job.per_item;
    return asp_parallel_for(context, items * vs->config->n_head, layer_item, &job);
}
