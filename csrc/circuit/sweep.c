/* sweep.c: many variants of clean sequences, each with other items ablated, computed together.
 *
 * Variants are sorted by the first layer that differs from the clean run and packed into blocks.  A block goes
 * through the layers once; a variant joins at its first layer with the clean residual stream, from its first
 * position on (the keys and values before it are the clean ones), so that every layer is one large product over
 * all variants that have begun.  In the last layer only the last position is computed. */
#include <string.h>

#include "circuit/circuit.h"

enum { BLOCK_ROWS = 2048 };

typedef struct {
    const asp_model *model;
    const asp_run *clean;
    const asp_sweep_options *options;
    asp_array resid;
    const int64_t *offsets;         /* of the clean sequences */
    int64_t *sorted;                /* (n_variants) indices by start layer */
    int64_t block_begin, block_end; /* in sorted */
    int64_t max_rows, max_variants, logit_rows;
    asp_arena arena;
    asp_real *x, *ln, *qkv, *z, *mlp, *last_x, *last_z, *last_ln, *last_mlp, *logits;
    int64_t *packed;       /* (max_variants+1) offsets of the variants' rows */
    asp_variant *variants; /* (max_variants) of the block */
    double *gate_bias;     /* (L) */
    asp_variants view;
    asp_hooks hooks;
    asp_scratch scratch;
} sweep;

/* ---- checks and order ----------------------------------------------------------------- */

static asp_status check_variant(const sweep *s, const asp_variant *v, int64_t i, asp_error *err) {
    const int64_t n = asp_run_n_sequences(s->clean), n_layer = s->model->config.n_layer;
    if (v->sequence < 0 || v->sequence >= n || v->start_layer < 0 || v->start_layer >= n_layer ||
        v->first_position < 0 || v->first_position >= s->offsets[v->sequence + 1] - s->offsets[v->sequence] ||
        (v->scope && v->start_layer == n_layer - 1))
        return asp_fail(err, ASP_BAD_INDEX,
                        "sweep: variant %lld has prompt %lld, layer %lld, position %lld, which the clean run does not "
                        "have, or is narrow in the last layer",
                        (long long)i, (long long)v->sequence, (long long)v->start_layer, (long long)v->first_position);
    return ASP_OK;
}

/* Checks the call and opens what items are replaced by. */
static asp_status prepare(sweep *s, const asp_variant *variants, int64_t n, asp_error *err) {
    const asp_reference *given = &s->options->reference;
    const int64_t n_sequences = asp_run_n_sequences(s->clean);
    if (!s->resid.data || !s->view.clean_qkv.data)
        return asp_fail(err, ASP_BAD_STATE, "sweep: the clean run must have recorded resid_pre, q, k and v");
    if (s->options->metric.n_sequences != n_sequences)
        return asp_fail(err, ASP_BAD_ARGUMENT, "sweep: the metric has %lld prompts, the clean run %lld",
                        (long long)s->options->metric.n_sequences, (long long)n_sequences);
    const int alike = s->options->unit != ASP_UNIT_HEAD || given->z || given->entries;
    asp_status status = asp_reference_open(&s->view.replacement, given, &s->model->config, s->offsets, n_sequences,
                                           alike, "sweep", err);
    const asp_reference_view *r = &s->view.replacement;
    if (!status && given->run && (s->options->unit == ASP_UNIT_EDGE ? !r->pattern.data || !r->qkv.data : !r->z.data))
        return asp_fail(err, ASP_BAD_STATE,
                        "sweep: the reference run must have recorded z, or pattern and v for entries");
    if (!status) status = asp_metric_check(&s->options->metric, s->model->config.n_vocab, err);
    for (int64_t i = 0; !status && i < n; i++) status = check_variant(s, &variants[i], i, err);
    return status;
}

/* Indices of the variants by start layer, those of one layer in the order given. */
static void sort_by_start(sweep *s, const asp_variant *variants, int64_t n) {
    int64_t at = 0;
    for (int64_t l = 0; l < s->model->config.n_layer; l++)
        for (int64_t i = 0; i < n; i++)
            if (variants[i].start_layer == l) s->sorted[at++] = i;
}

/* End of the block that begins at `begin`: about BLOCK_ROWS rows, one variant at least. */
static int64_t block_end(const sweep *s, const asp_variant *variants, int64_t n, int64_t begin, int64_t *rows) {
    int64_t end = begin;
    *rows = 0;
    while (end < n) {
        const int64_t more = asp_variant_rows(&variants[s->sorted[end]], s->offsets);
        if (end > begin && *rows + more > BLOCK_ROWS) break;
        *rows += more;
        end++;
    }
    return end;
}

/* ---- memory ------------------------------------------------------------------------------- */

static void largest_block(sweep *s, const asp_variant *variants, int64_t n) {
    for (int64_t begin = 0, end; begin < n; begin = end) {
        int64_t rows;
        end = block_end(s, variants, n, begin, &rows);
        s->max_rows = asp_max(s->max_rows, rows);
        s->max_variants = asp_max(s->max_variants, end - begin);
    }
}

static asp_status allocate(sweep *s, int n_threads, asp_error *err) {
    const asp_config *c = &s->model->config;
    const int64_t width = c->n_head * c->d_head, e = c->d_model;
    const int64_t rows = asp_shape_rows(s->model, s->max_rows, 0), last = asp_shape_rows(s->model, s->max_variants, 0);
    s->logit_rows = asp_shape_logit_rows(s->model, asp_min(s->max_variants, ASP_LOSS_CHUNK));
    s->scratch.per_thread = asp_attention_scratch(c, s->view.longest, 0);
    const int64_t logits = asp_metric_needs_all(s->options->metric.kind) ? s->logit_rows : 0;
    asp_arena_part parts[] = {ASP_PART(s->x, rows, e),
                              ASP_PART(s->ln, rows, e),
                              ASP_PART(s->qkv, rows, 3 * width),
                              ASP_PART(s->z, rows, width),
                              ASP_PART(s->mlp, rows, c->d_mlp),
                              ASP_PART(s->last_x, last, e),
                              ASP_PART(s->last_z, last, width),
                              ASP_PART(s->last_ln, last + s->logit_rows, e),
                              ASP_PART(s->last_mlp, last, c->d_mlp),
                              ASP_PART(s->logits, logits, c->n_vocab),
                              ASP_PART(s->scratch.data, n_threads, s->scratch.per_thread),
                              ASP_PART(s->packed, s->max_variants + 1, 1),
                              ASP_PART(s->variants, s->max_variants, 1),
                              ASP_PART(s->gate_bias, c->n_layer, 1),
                              ASP_PART(s->view.masks, n_threads * s->view.longest, s->view.longest)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    asp_arena_lay_out(&s->arena, parts, PARTS);
    if (!asp_arena_commit(&s->arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "no memory for a sweep over %lld rows", (long long)s->max_rows);
    asp_arena_wire(&s->arena, parts, PARTS);
    s->packed[0] = 0;
    memset(s->view.masks, 0, (size_t)(n_threads * s->view.longest * s->view.longest));
    for (int64_t l = 0; l < c->n_layer; l++) s->gate_bias[l] = c->gate_bias;
    s->view.variants = s->variants;
    return ASP_OK;
}

static void release(sweep *s) {
    asp_arena_free(&s->arena);
    asp_release(s->sorted);
}

/* ---- one block ------------------------------------------------------------------------------- */

static void copy_clean(sweep *s, int64_t row, const asp_variant *v, int64_t layer, int64_t position, int64_t n) {
    const int64_t e = s->model->config.d_model;
    const asp_real *x = (const asp_real *)s->resid.data + layer * s->resid.strides[0] +
                        (s->offsets[v->sequence] + position) * s->resid.strides[1];
    memcpy(s->x + row * e, x, (size_t)(n * e) * sizeof *x);
}

/* Puts the variants [begin, end) of the block, which start at this layer, behind those that have begun. */
static void join(sweep *s, int64_t begin, int64_t end, int64_t layer) {
    for (int64_t i = begin; i < end; i++) {
        const asp_variant *v = &s->variants[i];
        const int64_t rows = v->scope ? 1 : asp_variant_rows(v, s->offsets);
        s->packed[i + 1] = s->packed[i] + rows;
        copy_clean(s, s->packed[i], v, layer, v->first_position, rows);
    }
}

/* After their first layer narrow variants get their other rows, which are still those of the clean run. */
static void widen(sweep *s, int64_t begin, int64_t end, int64_t layer) {
    const int64_t e = s->model->config.d_model;
    int64_t old = s->packed[end];
    for (int64_t i = begin; i < end; i++)
        s->packed[i + 1] = s->packed[i] + asp_variant_rows(&s->variants[i], s->offsets);
    for (int64_t i = end - 1; i >= begin; i--) {
        const asp_variant *v = &s->variants[i];
        const int64_t all = asp_variant_rows(v, s->offsets), rows = v->scope ? 1 : all;
        old -= rows;
        memmove(s->x + s->packed[i] * e, s->x + old * e, (size_t)(rows * e) * sizeof *s->x);
        copy_clean(s, s->packed[i] + rows, v, layer, v->first_position + rows, all - rows);
    }
}

/* The pass over the first n variants of the block; rows of z that hold tokens beyond them do not matter. */
static asp_activations pass_over(const sweep *s, int64_t n) {
    const int64_t rows = s->packed[n];
    return (asp_activations){.n_tokens = rows,
                             .n_rows = asp_shape_rows(s->model, rows, 0),
                             .n_sequences = n,
                             .offsets = s->packed,
                             .resid = {s->x, 0},
                             .mid = {s->x, 0},
                             .ln1 = {s->ln, 0},
                             .ln2 = {s->ln, 0},
                             .qkv = {s->qkv, 0},
                             .z = {s->z, 0},
                             .mlp_post = {s->mlp, 0},
                             .hooks = &s->hooks};
}

/* From z of the last positions to the final LayerNorm, in s->last_ln. */
static asp_status finish_last(sweep *s, int64_t n, const asp_context *context) {
    const asp_config *c = &s->model->config;
    const int64_t e = c->d_model, width = c->n_head * c->d_head, layer = c->n_layer - 1;
    for (int64_t i = 0; i < n; i++) {
        const int64_t row = s->packed[i + 1] - 1;
        memcpy(s->last_x + i * e, s->x + row * e, (size_t)e * sizeof *s->x);
        memcpy(s->last_z + i * width, s->z + row * width, (size_t)width * sizeof *s->z);
    }
    const asp_activations acts = {.n_tokens = n,
                                  .n_rows = asp_shape_rows(s->model, n, 0),
                                  .resid = {s->last_x, 0},
                                  .mid = {s->last_x, 0},
                                  .ln2 = {s->last_ln, 0},
                                  .z = {s->last_z, 0},
                                  .mlp_post = {s->last_mlp, 0},
                                  .ln_final = s->last_ln};
    asp_status status = asp_forward_output(s->model, &acts, layer, context);
    if (!status) status = asp_forward_mlp(s->model, &acts, layer, context);
    return status ? status : asp_forward_final(s->model, &acts, context);
}

static asp_status run_layers(sweep *s, int64_t n, const asp_context *context) {
    const asp_config *c = &s->model->config;
    const asp_gate gate = {.gated = c->gated, .bias = s->gate_bias};
    asp_status status = ASP_OK;
    int64_t active = 0;
    for (int64_t l = s->variants[0].start_layer; !status && l < c->n_layer; l++) {
        int64_t end = active;
        while (end < n && s->variants[end].start_layer == l) end++;
        join(s, active, end, l);
        const asp_activations acts = pass_over(s, end);
        s->view.last_only = l == c->n_layer - 1;
        status = asp_forward_attention(s->model, &acts, l, &gate, &s->scratch, context);
        if (status || s->view.last_only) break;
        status = asp_forward_output(s->model, &acts, l, context);
        if (!status) status = asp_forward_mlp(s->model, &acts, l, context);
        widen(s, active, end, l + 1);
        active = end;
    }
    return status ? status : finish_last(s, n, context);
}

typedef struct {
    const sweep *s;
    double *values;
} value_job;

/* The value of variant i of the block from its final LayerNorm alone. */
static void value_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const value_job *job = arg;
    const sweep *s = job->s;
    job->values[s->sorted[s->block_begin + i]] =
        asp_metric_from_hidden(&s->options->metric, s->variants[i].sequence, s->model,
                               s->last_ln + i * s->model->config.d_model);
}

/* The same of the variants first .. first + n - 1 from all their logits. */
static asp_status values_from_logits(sweep *s, double *values, int64_t first, int64_t n, const asp_context *context) {
    const asp_config *c = &s->model->config;
    int64_t sequence[ASP_LOSS_CHUNK];
    double found[ASP_LOSS_CHUNK];
    for (int64_t i = 0; i < n; i++) sequence[i] = s->variants[first + i].sequence;
    asp_status status = asp_unembed(s->model, s->logits, s->last_ln + first * c->d_model, n, s->logit_rows, context);
    if (!status) status = asp_metric_rows(found, &s->options->metric, sequence, n, s->logits, c->n_vocab, context);
    for (int64_t i = 0; !status && i < n; i++) values[s->sorted[s->block_begin + first + i]] = found[i];
    return status;
}

static asp_status block_values(sweep *s, double *values, int64_t n, const asp_context *context) {
    value_job job = {s, values};
    if (!asp_metric_needs_all(s->options->metric.kind)) return asp_parallel_for(context, n, value_item, &job);
    asp_status status = ASP_OK;
    for (int64_t first = 0; !status && first < n; first += ASP_LOSS_CHUNK)
        status = values_from_logits(s, values, first, asp_min(ASP_LOSS_CHUNK, n - first), context);
    return status;
}

asp_status asp_sweep(double *values, const asp_model *model, const asp_run *clean, const asp_variant *variants,
                     int64_t n_variants, const asp_sweep_options *options, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    context = &own;
    sweep s = {.model = model,
               .clean = clean,
               .options = options,
               .resid = asp_run_array(clean, ASP_RESID),
               .offsets = asp_run_offsets(clean)};
    s.view = (asp_variants){.config = &model->config,
                            .unit = options->unit,
                            .order = options->order,
                            .clean_qkv = asp_run_array(clean, ASP_QKV)};
    s.hooks = asp_variants_hooks(&s.view);
    s.view.longest = asp_shape_longest(s.offsets, asp_run_n_sequences(clean));
    asp_status status = prepare(&s, variants, n_variants, err);
    if (status) return status;
    s.sorted = asp_allocate(n_variants + 1, sizeof *s.sorted);
    if (!s.sorted) return asp_fail(err, ASP_NO_MEMORY, "no memory for %lld variants", (long long)n_variants);
    sort_by_start(&s, variants, n_variants);
    largest_block(&s, variants, n_variants);
    status = allocate(&s, context->n_threads, err);
    if (!status) status = asp_blas_enter(context, err);
    const int entered = !status;
    for (int64_t end; !status && s.block_begin < n_variants; s.block_begin = end) {
        int64_t rows;
        end = block_end(&s, variants, n_variants, s.block_begin, &rows);
        const int64_t n = end - s.block_begin;
        for (int64_t i = 0; i < n; i++) s.variants[i] = variants[s.sorted[s.block_begin + i]];
        status = run_layers(&s, n, context);
        if (!status) status = block_values(&s, values, n, context);
    }
    if (entered) asp_blas_leave();
    release(&s);
    return status;
}
