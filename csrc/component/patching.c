/* patching.c: the metric of every prompt when one activation of a layer or a head takes its value in the other prompt
 * of the pair, for all layers, heads and positions.
 *
 * A variant is one activation of one prompt replaced.  It has a row of its own for a position from the layer on before
 * which that position first differs from the base run, and reads the base run's rows elsewhere.  A block of variants, in
 * the order of their layers, goes through the layers once, and a variant enters where its activation is.  In the last
 * layer only the last position is computed. */
#include <string.h>

#include "component/component.h"

enum { BLOCK_ROWS = 2048 };

typedef struct {
    int64_t layer, head, position, at; /* position -1: all; at: of its value */
} place;

typedef struct {
    asp_component_setting setting;
    const asp_patching_options *options;
    asp_patching_kind kind;
    asp_patching_shape shape;
    double *values;
    asp_slot output;         /* what attention or MLPs give in the other run */
    const asp_real *pattern; /* of the other run */
    int64_t max_rows, max_variants;
    asp_arena arena;
    asp_real *x, *ln, *wide, *z, *mlp;
    asp_last_rows last;
    asp_real *mixed;                     /* (n_threads,longest,3,D) q, k and v of a head, of which one is replaced */
    asp_real *rows;                      /* the residual stream of the pass: x; behind the last attention ln */
    int64_t n_rows, n_variants, n_begun; /* n_begun: variants that are in the pass */
    place *places;                       /* (max_variants) of the block */
    asp_variant *ends;                   /* (max_variants) the same for attention */
    double *found;                       /* (max_variants) */
    double *gate_bias;                   /* (L) */
    asp_variants view;
    asp_scratch scratch;
} patching;

static int of_heads(asp_patching_kind kind) { return kind >= ASP_PATCHING_Z; }

/* ---- memory ------------------------------------------------------------------------------------------- */

asp_patching_shape asp_patching_places(const asp_config *c, const asp_prompts *clean, const asp_patching_options *o) {
    const int64_t longest = asp_shape_longest(clean->offsets, clean->n_prompts);
    return (asp_patching_shape){o->layers ? o->n_layers : c->n_layer, of_heads(o->kind) ? c->n_head : 1,
                                !o->by_position ? 1
                                : o->positions  ? o->n_positions
                                                : longest};
}

/* Whether numbers ascend in 0..end-1. */
static asp_status check_places(const int64_t *x, int64_t n, int64_t end, const char *what, asp_error *err) {
    for (int64_t i = 0; x && i < asp_max(1, n); i++)
        if (n < 1 || x[i] < (i ? x[i - 1] + 1 : 0) || x[i] >= end)
            return asp_fail(err, ASP_BAD_ARGUMENT, "patching: %s must ascend in 0..%lld, number %lld does not", what,
                            (long long)end - 1, (long long)i);
    return ASP_OK;
}

enum { PARTS = 22 };

static int64_t lay_out_patching(patching *p, asp_arena_part parts[PARTS], int n_threads) {
    const asp_model *m = p->setting.model;
    const asp_config *c = &m->config;
    const int64_t e = c->d_model, width = c->n_head * c->d_head, longest = p->setting.longest;
    const int64_t rows = asp_shape_rows(m, p->max_rows, 0), n = p->max_variants;
    asp_variant_scratch *scratch = &p->view.scratch;
    p->last.logit_rows = asp_shape_logit_rows(m, asp_min(n, ASP_LOSS_CHUNK));
    p->scratch.per_thread = asp_attention_scratch(c, longest, 0);
    const int64_t logits = asp_metric_needs_all(p->setting.task->metric.kind) ? p->last.logit_rows : 0;
    const asp_arena_part list[PARTS] = {ASP_PART(p->x, rows + p->last.logit_rows, e),
                                        ASP_PART(p->ln, rows, e),
                                        ASP_PART(p->wide, rows, 3 * width),
                                        ASP_PART(p->z, rows, width),
                                        ASP_PART(p->mlp, rows, c->d_mlp),
                                        ASP_PART(p->last.logits, logits, c->n_vocab),
                                        ASP_PART(p->scratch.data, n_threads, p->scratch.per_thread),
                                        ASP_PART(p->mixed, n_threads * longest, 3 * c->d_head),
                                        ASP_PART(p->places, n, 1),
                                        ASP_PART(p->ends, n, 1),
                                        ASP_PART(p->last.sequence, n, 1),
                                        ASP_PART(p->found, n, 1),
                                        ASP_PART(p->gate_bias, c->n_layer, 1),
                                        ASP_PART(p->view.own, n, longest),
                                        ASP_PART(p->view.before, n, longest),
                                        ASP_PART(p->view.after, n, longest),
                                        ASP_PART(scratch->rows, n_threads, longest),
                                        ASP_PART(scratch->held, n_threads, longest),
                                        ASP_PART(scratch->z_rows, n_threads, longest),
                                        ASP_PART(scratch->queries, n_threads, longest),
                                        ASP_PART(scratch->attending, n_threads, longest),
                                        ASP_PART(scratch->mask, n_threads * longest, longest)};
    memcpy(parts, list, sizeof list);
    return asp_arena_lay_out(&p->arena, parts, PARTS);
}

/* Nothing that is allocated here grows with a block of prompts. */
static int64_t patching_bytes(const void *own, const asp_component_setting *s, int64_t n, int n_threads) {
    (void)own, (void)s, (void)n, (void)n_threads;
    return 0;
}

static asp_status allocate_patching(patching *p, int n_threads, asp_error *err) {
    asp_arena_part parts[PARTS];
    const int64_t bytes = lay_out_patching(p, parts, n_threads);
    if (!asp_arena_commit(&p->arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "patching: no memory for %lld rows, which take %s", (long long)p->max_rows,
                        asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&p->arena, parts, PARTS);
    for (int64_t l = 0; l < p->setting.model->config.n_layer; l++) p->gate_bias[l] = p->setting.model->config.gate_bias;
    p->view.variants = p->ends;
    p->last.rows = p->ln;
    p->last.hidden = p->x;
    p->last.capacity = p->max_variants;
    return ASP_OK;
}

/* ---- rows of variants ------------------------------------------------------------------------------------ */

static int64_t patched_length(const patching *p, int64_t i) { return asp_variant_length(&p->view, &p->ends[i]); }

/* The first position at which the tokens of a pair differ; their number if they do not. */
static int64_t first_difference(const patching *p, int64_t sequence) {
    const asp_task *task = p->setting.task;
    const int64_t begin = task->clean.offsets[p->setting.first + sequence],
                  end = task->clean.offsets[p->setting.first + sequence + 1];
    int64_t at = begin;
    while (at < end && task->clean.tokens[at] == task->corrupted.tokens[at]) at++;
    return at - begin;
}

/* own (T) written: the layer before which a row is first the variant's own, L + 1 at least for never.  Returns how many
 * rows become its own. */
static int64_t own_rows(int32_t *own, const patching *p, const place *v, int64_t sequence) {
    const int64_t n_layer = p->setting.model->config.n_layer, first = first_difference(p, sequence);
    const int64_t t = p->setting.offsets[sequence + 1] - p->setting.offsets[sequence];
    const int64_t at = v->position < 0 ? first : v->position, here = v->layer + (p->kind != ASP_PATCHING_RESID);
    const int later = v->position < 0 || p->kind == ASP_PATCHING_K || p->kind == ASP_PATCHING_V;
    int64_t n = 0;
    for (int64_t q = 0; q < t; q++) {
        const int64_t layer = at < first || q < at ? n_layer + 1 : q == at || later ? here : here + 1;
        own[q] = (int32_t)layer;
        n += layer <= n_layer;
    }
    return n;
}

/* Row (E) of an array of a run, for a position of a variant. */
static const asp_real *row_of(const patching *p, asp_slot slot, int64_t layer, int64_t i, int64_t position) {
    const int64_t row = p->setting.offsets[p->ends[i].sequence] + position;
    return asp_slot_at(slot, layer) + row * p->setting.model->config.d_model;
}

static int32_t append_patched_row(patching *p, const asp_real *row) {
    const int64_t e = p->setting.model->config.d_model;
    memcpy(p->rows + p->n_rows * e, row, (size_t)e * sizeof *row);
    return (int32_t)p->n_rows++;
}

/* Where the rows of the variants in the pass are behind the layer's attention. */
static void place_patched_rows(patching *p, int64_t layer) {
    for (int64_t i = 0; i < p->n_variants; i++) {
        const int64_t t = patched_length(p, i), from = i * p->setting.longest;
        for (int64_t q = 0; q < t; q++) {
            const int32_t own = p->view.own[from + q];
            const int wanted = i < p->n_begun && (!p->view.last_only || q == t - 1);
            p->view.after[from + q] = !wanted || own > layer + 1 ? -1
                                      : own <= layer
                                          ? p->view.before[from + q]
                                          : append_patched_row(p, row_of(p, p->setting.plain.resid, layer, i, q));
        }
    }
}

/* Appends a row with which a variant enters: as it is in the other run, or as it is in the base run before what is
 * replaced, which is added unless that is a head's. */
static int32_t enter_row(patching *p, int64_t layer, int64_t i, int64_t position) {
    const asp_component_setting *s = &p->setting;
    if (p->kind <= ASP_PATCHING_RESID_MID)
        return append_patched_row(p, row_of(p, p->kind == ASP_PATCHING_RESID ? s->replaced.resid : s->replaced.mid,
                                            layer, i, position));
    const int32_t row = append_patched_row(p, row_of(p, p->kind == ASP_PATCHING_MLP_OUT ? s->plain.mid : s->plain.resid,
                                                     layer, i, position));
    const int64_t e = s->model->config.d_model;
    if (!of_heads(p->kind)) asp_isa_kernels()->add(p->rows + row * e, row_of(p, p->output, layer, i, position), e);
    return row;
}

/* Lets the variants of a layer in, whose rows go to table (before or after). */
static void enter_variants(patching *p, int64_t layer, int32_t *table) {
    const int64_t own = layer + (p->kind != ASP_PATCHING_RESID);
    for (; p->n_begun < p->n_variants && p->places[p->n_begun].layer == layer; p->n_begun++) {
        const int64_t i = p->n_begun, t = patched_length(p, i), from = i * p->setting.longest;
        for (int64_t q = p->view.last_only ? t - 1 : 0; q < t; q++)
            if (p->view.own[from + q] == own) table[from + q] = enter_row(p, layer, i, q);
    }
}

/* ---- heads ------------------------------------------------------------------------------------------------ */

typedef struct {
    const patching *p;
    const asp_activations *acts;
    const asp_gate *gate;
    int64_t layer, first; /* variant of item 0 */
} head_job;

/* z of a head from the other run's pattern and the base run's v. */
static void apply_pattern(const patching *p, const place *v, int64_t sequence, int64_t query, asp_real *z) {
    const asp_config *c = &p->setting.model->config;
    const int64_t row = p->setting.offsets[sequence], t = p->setting.offsets[sequence + 1] - row, d = c->d_head,
                  width = c->n_head * d;
    const int64_t *start = asp_run_square_start(p->setting.paired);
    const asp_real *weights = p->pattern + start[sequence] + ((v->layer * c->n_head + v->head) * t + query) * t;
    const asp_real *values = asp_slot_at(p->setting.plain.qkv, v->layer) + row * 3 * width + 2 * width + v->head * d;
    memset(z, 0, (size_t)d * sizeof *z);
    for (int64_t k = 0; k <= query; k++)
        for (int64_t j = 0; j < d; j++) z[j] += weights[k] * values[k * 3 * width + j];
}

/* q, k and v of a head (T,3,D), of which one is the other run's at one position or at all. */
static void mix(const patching *p, const place *v, int64_t sequence, asp_real *mixed) {
    const asp_config *c = &p->setting.model->config;
    const int64_t begin = p->setting.offsets[sequence], t = p->setting.offsets[sequence + 1] - begin, d = c->d_head,
                  width = c->n_head * d;
    for (int64_t i = 0; i < t; i++)
        for (int64_t letter = 0; letter < 3; letter++) {
            const int other = letter == (int64_t)p->kind - ASP_PATCHING_Q && (v->position < 0 || v->position == i);
            const asp_real *from = asp_slot_at(other ? p->setting.replaced.qkv : p->setting.plain.qkv, v->layer) +
                                   ((begin + i) * 3 + letter) * width + v->head * d;
            memcpy(mixed + (i * 3 + letter) * d, from, (size_t)d * sizeof *mixed);
        }
}

/* Attention of one head of one variant, whose q, k and v are mixed, at n queries. */
static void attend_patched(const head_job *job, int64_t sequence, const place *v, int64_t n, int thread) {
    const patching *p = job->p;
    const int64_t longest = p->setting.longest, d = p->setting.model->config.d_head, at = thread * longest;
    const asp_variant_scratch *scratch = &p->view.scratch;
    asp_real *mixed = p->mixed + at * 3 * d;
    asp_attention_task u =
        asp_attention_describe(p->setting.model, job->acts, job->layer, job->gate, &p->scratch, 0, v->head, thread);
    mix(p, v, sequence, mixed);
    u.q = mixed;
    u.k = mixed + d;
    u.v = mixed + 2 * d;
    u.stride = 3 * d;
    u.n_tokens = p->setting.offsets[sequence + 1] - p->setting.offsets[sequence];
    for (int64_t t = 0; t < u.n_tokens; t++) {
        scratch->rows[at + t] = mixed + t * 3 * d;
        scratch->held[at + t] = NULL;
    }
    u.held_gate = asp_variants_gate(&p->view, sequence, v->layer, v->head);
    u.rows = scratch->rows + at;
    u.held = scratch->held + at;
    u.z_rows = scratch->z_rows + at;
    u.queries = scratch->queries + at;
    u.n_queries = n;
    asp_isa_kernels()->attention_rows(&u);
}

/* z of the rows with which a variant enters. */
static void patched_head_item(void *arg, int64_t item, int thread) {
    const head_job *job = arg;
    const patching *p = job->p;
    const int64_t i = job->first + item, sequence = p->ends[i].sequence, longest = p->setting.longest;
    const int64_t d = p->setting.model->config.d_head, width = p->setting.model->config.n_head * d;
    const int32_t *after = p->view.after + i * longest;
    const place *v = &p->places[i];
    int64_t n = 0;
    for (int64_t q = 0; q < patched_length(p, i); q++) {
        if (after[q] < 0) continue;
        const int64_t row = (p->setting.offsets[sequence] + q) * width;
        asp_real *z = p->z + after[q] * width;
        memcpy(z, asp_slot_at(p->setting.plain.z, v->layer) + row, (size_t)width * sizeof *z);
        z += v->head * d;
        if (p->kind == ASP_PATCHING_Z)
            memcpy(z, asp_slot_at(p->setting.replaced.z, v->layer) + row + v->head * d, (size_t)d * sizeof *z);
        if (p->kind == ASP_PATCHING_PATTERN) apply_pattern(p, v, sequence, q, z);
        p->view.scratch.z_rows[thread * longest + q] = z;
        p->view.scratch.queries[thread * longest + n++] = q;
    }
    if (n && p->kind >= ASP_PATCHING_Q && p->kind <= ASP_PATCHING_V) attend_patched(job, sequence, v, n, thread);
}

/* ---- one block ------------------------------------------------------------------------------------------------ */

/* The rows of the pass, without a sequence. */
static asp_activations patching_pass_over(const patching *p, int64_t rows) {
    static const int64_t offsets[2] = {0, 0};
    const int moved = p->rows == p->ln;
    return (asp_activations){.n_tokens = rows,
                             .n_rows = asp_shape_rows(p->setting.model, rows, 0),
                             .offsets = offsets,
                             .resid = {p->rows, 0},
                             .mid = {p->rows, 0},
                             .ln1 = {p->ln, 0},
                             .ln2 = {moved ? p->x : p->ln, 0},
                             .qkv = {p->wide, 0},
                             .z = {moved ? p->wide : p->z, 0},
                             .mlp_post = {p->mlp, 0},
                             .ln_final = p->x};
}

/* Keeps the rows of last positions alone, that of variant i as row i: from here on they are in ln, and z in wide. */
static void keep_last(patching *p) {
    const int64_t e = p->setting.model->config.d_model,
                  width = p->setting.model->config.n_head * p->setting.model->config.d_head;
    int64_t n = 0;
    for (int64_t i = 0; i < p->n_begun; i++, n++) {
        const int64_t row = p->view.after[i * p->setting.longest + patched_length(p, i) - 1];
        memcpy(p->ln + n * e, p->x + row * e, (size_t)e * sizeof *p->x);
        memcpy(p->wide + n * width, p->z + row * width, (size_t)width * sizeof *p->z);
    }
    p->rows = p->ln;
    p->n_rows = n;
}

/* From the residual stream before the layer to z, with the rows that are behind it. */
static asp_status run_patched_attention(patching *p, int64_t layer, const asp_context *context) {
    const asp_config *c = &p->setting.model->config;
    const asp_gate gate = {.gated = c->gated, .bias = p->gate_bias};
    asp_status status = ASP_OK;
    p->view.last_only = 0;
    if (p->kind == ASP_PATCHING_RESID) enter_variants(p, layer, p->view.before);
    const asp_activations acts = patching_pass_over(p, p->n_rows);
    p->view.last_only = layer == c->n_layer - 1;
    place_patched_rows(p, layer);
    if (acts.n_tokens) status = asp_forward_qkv(p->setting.model, &acts, layer, context);
    if (!status && p->n_begun)
        status =
            asp_variants_attention(&p->view, p->setting.model, &acts, layer, p->n_begun, &gate, &p->scratch, context);
    head_job job = {p, &acts, &gate, layer, p->n_begun};
    if (of_heads(p->kind)) enter_variants(p, layer, p->view.after);
    return status ? status : asp_parallel_for(context, p->n_begun - job.first, patched_head_item, &job);
}

static asp_status run_patched_layer(patching *p, int64_t layer, const asp_context *context) {
    const asp_model *m = p->setting.model;
    asp_status status = run_patched_attention(p, layer, context);
    if (status) return status;
    if (p->view.last_only) keep_last(p);
    asp_activations acts = patching_pass_over(p, p->n_rows);
    if (p->n_rows) status = asp_forward_output(m, &acts, layer, context);
    if (p->kind == ASP_PATCHING_RESID_MID || p->kind == ASP_PATCHING_ATTN_OUT) enter_variants(p, layer, p->view.after);
    acts = patching_pass_over(p, p->n_rows);
    if (!status && p->n_rows) status = asp_forward_mlp(m, &acts, layer, context);
    if (p->kind == ASP_PATCHING_MLP_OUT) enter_variants(p, layer, p->view.after);
    int32_t *after = p->view.after;
    p->view.after = p->view.before;
    p->view.before = after;
    return status ? status : asp_context_share(context, (double)(layer + 1) / (double)m->config.n_layer);
}

static asp_status run_variants(patching *p, const asp_context *context) {
    asp_status status = ASP_OK;
    if (!p->n_variants) return ASP_OK;
    p->rows = p->x;
    p->n_rows = p->n_begun = 0;
    for (int64_t l = p->places[0].layer; !status && l < p->setting.model->config.n_layer; l++)
        status = run_patched_layer(p, l, context);
    for (int64_t i = 0; i < p->n_variants; i++) p->last.sequence[i] = p->ends[i].sequence;
    if (!status) status = asp_last_values(p->found, &p->setting, &p->last, p->n_rows, context);
    for (int64_t i = 0; !status && i < p->n_variants; i++) p->values[p->places[i].at] = p->found[i];
    return status;
}

/* Item of the block's variants: by layer, prompt, head, position. */
static place place_of(const patching *p, int64_t item, int64_t *sequence) {
    const asp_patching_shape *s = &p->shape;
    const int64_t inner = s->heads * s->positions, n = p->setting.n, n_prompts = p->setting.task->clean.n_prompts;
    const int64_t layer = item / (n * inner), within = item % inner, position = within % s->positions;
    const asp_patching_options *o = p->options;
    *sequence = item / inner % n;
    return (place){.layer = o->layers ? o->layers[layer] : layer,
                   .head = within / s->positions,
                   .position = !o->by_position ? -1
                               : o->positions  ? o->positions[position]
                                               : position,
                   .at = (layer * inner + within) * n_prompts + p->setting.first + *sequence};
}

/* Takes items from *item on until the rows or the places are full; those that change nothing have the base value. */
static asp_status open_patched_block(patching *p, int64_t *item, int64_t n_items, const double *base,
                                     const asp_context *context) {
    int64_t rows = 0;
    p->n_variants = 0;
    for (; *item < n_items && p->n_variants < p->max_variants; ++*item) {
        const int64_t i = p->n_variants;
        int64_t sequence;
        int32_t *own = p->view.own + i * p->setting.longest;
        if (asp_parallel_stopped(context)) return ASP_STOPPED;
        p->places[i] = place_of(p, *item, &sequence);
        const int64_t more = own_rows(own, p, &p->places[i], sequence);
        if (i && rows + more > p->max_rows) break;
        rows += more;
        p->ends[i] = (asp_variant){.sequence = sequence, .start_layer = -1, .scope = ASP_SCOPE_POINT};
        for (int64_t q = 0; q < p->setting.longest; q++)
            p->view.before[i * p->setting.longest + q] = p->view.after[i * p->setting.longest + q] = -1;
        if (own[patched_length(p, i) - 1] <= p->setting.model->config.n_layer) p->n_variants++;
        else p->values[p->places[i].at] = base[p->setting.first + sequence];
    }
    return ASP_OK;
}

/* ---- the call -------------------------------------------------------------------------------------------------- */

/* What the other run records besides what every setting needs. */
static uint64_t also_of(asp_patching_kind kind) {
    if (kind >= ASP_PATCHING_Q && kind <= ASP_PATCHING_V) return (uint64_t)1 << ASP_QKV;
    return kind == ASP_PATCHING_ATTN_OUT  ? (uint64_t)1 << ASP_ATTN_OUT
           : kind == ASP_PATCHING_MLP_OUT ? (uint64_t)1 << ASP_MLP_OUT
           : kind == ASP_PATCHING_PATTERN ? (uint64_t)1 << ASP_PATTERN
                                          : 0;
}

/* Reads what the runs of a block of prompts recorded. */
static void open_runs(patching *p) {
    const asp_run *other = p->setting.paired;
    const asp_array output = asp_run_array(other, p->kind == ASP_PATCHING_MLP_OUT ? ASP_MLP_OUT : ASP_ATTN_OUT);
    p->output = (asp_slot){output.data, output.strides[0]};
    p->pattern = asp_run_array(other, ASP_PATTERN).data;
    p->view.replacement.offsets = p->setting.offsets;
    p->view.held_gates = p->setting.held;
    p->view.clean_qkv = asp_run_array(p->setting.base, ASP_QKV);
}

/* All activations of a block of prompts. */
static asp_status run_patched_prompts(patching *p, double *base, double *other, const asp_context *context,
                                      asp_error *err) {
    asp_component_setting *s = &p->setting;
    const int64_t inner = p->shape.layers * p->shape.heads * p->shape.positions, n_prompts = s->task->clean.n_prompts;
    open_runs(p);
    asp_status status = asp_blas_enter(context, err);
    if (status) return status;
    status = asp_last_of_run(base + s->first, s, &p->last, s->plain.resid, context);
    if (!status) status = asp_last_of_run(other + s->first, s, &p->last, s->replaced.resid, context);
    for (int64_t item = 0; !status && item < inner * s->n;) {
        const int64_t done = inner * s->first + item;
        status = open_patched_block(p, &item, inner * s->n, base, context);
        const int64_t next = inner * s->first + item, all = inner * n_prompts;
        const asp_context whole = asp_context_stage(context, s->stage, done, next, all);
        if (!status) status = run_variants(p, &whole);
        if (!status) status = asp_context_progress(context, s->stage, next, all);
    }
    asp_blas_leave();
    return status;
}

/* Sizes, and memory within max_bytes. */
static asp_status open_patching(patching *p, const asp_context *context, asp_error *err) {
    asp_component_setting *s = &p->setting;
    const int64_t n = p->shape.layers * p->shape.heads * p->shape.positions * s->task->clean.n_prompts;
    p->max_variants = asp_min(n, BLOCK_ROWS);
    p->max_rows = asp_min(asp_max(BLOCK_ROWS, s->longest), p->max_variants * s->longest);
    p->view = (asp_variants){.config = &s->model->config, .unit = ASP_UNIT_HEAD, .longest = s->longest};
    asp_arena_part parts[PARTS];
    s->stays = lay_out_patching(p, parts, context->n_threads);
    const asp_status status = asp_component_setting_open(s, context, err);
    p->arena = (asp_arena){0};
    return status ? status : allocate_patching(p, context->n_threads, err);
}

asp_status asp_patching_sweep(double *values, double *base, double *other, const asp_model *model, const asp_task *task,
                              const asp_patching_options *options, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    patching p = {.setting = {.model = model,
                              .task = task,
                              .stage = "patching",
                              .options = {.ablation = ASP_COMPONENT_COUNTERFACTUAL,
                                          .denoising = options->denoising,
                                          .held_gate = options->held_gate,
                                          .max_bytes = options->max_bytes},
                              .with_base = 1,
                              .also = also_of(options->kind),
                              .own_bytes = patching_bytes},
                  .options = options,
                  .kind = options->kind,
                  .shape = asp_patching_places(&model->config, &task->clean, options),
                  .values = values};
    asp_component_setting *s = &p.setting;
    asp_status status = asp_component_setting_check(s, err);
    if (!status && options->by_position) status = asp_task_check_lengths(&task->clean, "positions", err);
    if (!status) status = check_places(options->layers, options->n_layers, model->config.n_layer, "layers", err);
    if (!status) status = check_places(options->positions, options->n_positions, s->longest, "positions", err);
    if (!status) status = open_patching(&p, &own, err);
    const int64_t n = p.shape.layers * p.shape.heads * p.shape.positions * task->clean.n_prompts;
    if (!status) status = asp_context_progress(&own, s->stage, 0, n);
    if (!status) status = asp_component_setting_next(s, &own, err);
    while (!status && s->n) {
        status = run_patched_prompts(&p, base, other, &own, err);
        if (!status) status = asp_component_setting_next(s, &own, err);
    }
    asp_component_setting_close(s);
    asp_arena_free(&p.arena);
    return status;
}
