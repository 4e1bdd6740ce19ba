/* sweep.c: many variants of clean sequences, each with other items ablated, computed together.
 *
 * Variants are sorted by the first layer that differs from the clean run and taken in blocks.  A block goes through
 * the layers once.  A variant has a row of its own for a position from the layer on before which it differs there from
 * the variant before it, or from the clean run if there is none; until then it reads that one's (sharing.c).  So every
 * layer is one large product over the rows that differ.  In the last layer only the last position is computed. */
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
    int64_t n_rows;          /* of the pass so far */
    int64_t work, work_done; /* layers that variants pass, of all blocks */
    asp_arena arena;
    asp_real *x, *ln, *qkv, *z, *mlp, *logits;
    asp_variant *variants; /* (max_variants) of the block */
    int64_t *last;         /* (max_variants) variants whose last row is their own */
    int64_t n_last;
    double *gate_bias; /* (L) */
    asp_variants view;
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
static asp_status prepare_sweep(sweep *s, const asp_variant *variants, int64_t n, asp_error *err) {
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

/* ---- memory ------------------------------------------------------------------------------- */

/* No block has more rows or variants than this, whatever is shared. */
static void largest_sweep_block(sweep *s, const asp_variant *variants, int64_t n) {
    int64_t rows = 0;
    for (int64_t i = 0; i < n && rows < BLOCK_ROWS; i++)
        rows += asp_variant_length(&s->view, &variants[i]) - variants[i].first_position;
    s->max_rows = asp_min(rows, asp_max(BLOCK_ROWS, s->view.longest));
    s->max_variants = asp_min(n, BLOCK_ROWS);
}

enum { PARTS = 19 };

/* The arrays of a sweep: the one list of them.  Returns the bytes of the arena. */
static int64_t lay_out_sweep(sweep *s, asp_arena_part parts[PARTS], int n_threads) {
    const asp_config *c = &s->model->config;
    const int64_t width = c->n_head * c->d_head, e = c->d_model, longest = s->view.longest;
    const int64_t rows = asp_shape_rows(s->model, s->max_rows, 0);
    asp_variant_scratch *scratch = &s->view.scratch;
    s->logit_rows = asp_shape_logit_rows(s->model, asp_min(s->max_variants, ASP_LOSS_CHUNK));
    s->scratch.per_thread = asp_attention_scratch(c, longest, 0);
    const int64_t logits = asp_metric_needs_all(s->options->metric.kind) ? s->logit_rows : 0;
    const asp_arena_part list[PARTS] = {ASP_PART(s->x, rows + s->logit_rows, e),
                                        ASP_PART(s->ln, rows, e),
                                        ASP_PART(s->qkv, rows, 3 * width),
                                        ASP_PART(s->z, rows, width),
                                        ASP_PART(s->mlp, rows, c->d_mlp),
                                        ASP_PART(s->logits, logits, c->n_vocab),
                                        ASP_PART(s->scratch.data, n_threads, s->scratch.per_thread),
                                        ASP_PART(s->variants, s->max_variants, 1),
                                        ASP_PART(s->last, s->max_variants, 1),
                                        ASP_PART(s->gate_bias, c->n_layer, 1),
                                        ASP_PART(s->view.own, s->max_variants, longest),
                                        ASP_PART(s->view.before, s->max_variants, longest),
                                        ASP_PART(s->view.after, s->max_variants, longest),
                                        ASP_PART(scratch->rows, n_threads, longest),
                                        ASP_PART(scratch->held, n_threads, longest),
                                        ASP_PART(scratch->z_rows, n_threads, longest),
                                        ASP_PART(scratch->queries, n_threads, longest),
                                        ASP_PART(scratch->attending, n_threads, longest),
                                        ASP_PART(scratch->mask, n_threads * longest, longest)};
    memcpy(parts, list, sizeof list);
    return asp_arena_lay_out(&s->arena, parts, PARTS);
}

int64_t asp_sweep_needed(const asp_model *model, int64_t longest, int64_t n_variants, asp_metric_kind kind,
                         int n_threads) {
    const asp_sweep_options options = {.metric.kind = kind};
    sweep s = {.model = model, .options = &options, .view.longest = longest};
    asp_arena_part parts[PARTS];
    s.max_rows = asp_max(BLOCK_ROWS, longest);
    s.max_variants = asp_min(n_variants, BLOCK_ROWS);
    const int64_t bytes = lay_out_sweep(&s, parts, n_threads);
    return bytes == INT64_MAX ? bytes : bytes + n_variants * (int64_t)sizeof *s.sorted;
}

static asp_status allocate_sweep(sweep *s, int n_threads, asp_error *err) {
    asp_arena_part parts[PARTS];
    lay_out_sweep(s, parts, n_threads);
    if (!asp_arena_commit(&s->arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "no memory for a sweep over %lld rows", (long long)s->max_rows);
    asp_arena_wire(&s->arena, parts, PARTS);
    for (int64_t l = 0; l < s->model->config.n_layer; l++) s->gate_bias[l] = s->model->config.gate_bias;
    s->view.variants = s->variants;
    return ASP_OK;
}

static void release(sweep *s) {
    asp_arena_free(&s->arena);
    asp_release(s->sorted);
}

/* ---- one block ------------------------------------------------------------------------------- */

/* Takes variants from block_begin on until the rows or the places are full, one at least; sets block_end. */
static asp_status open_block(sweep *s, const asp_variant *variants, int64_t n, const asp_context *context) {
    int64_t rows = 0;
    for (s->block_end = s->block_begin; s->block_end < n; s->block_end++) {
        const int64_t i = s->block_end - s->block_begin;
        if (i == s->max_variants) break;
        if (asp_parallel_stopped(context)) return ASP_STOPPED;
        s->variants[i] = variants[s->sorted[s->block_end]];
        const asp_variant *parent =
            i && asp_sharing_follows(&s->variants[i], &s->variants[i - 1]) ? &s->variants[i - 1] : NULL;
        const int64_t more = asp_sharing_own_rows(s->view.own + i * s->view.longest, &s->view, &s->variants[i], parent);
        if (i && rows + more > BLOCK_ROWS) break;
        rows += more;
        for (int64_t t = 0; t < s->view.longest; t++) s->view.before[i * s->view.longest + t] = -1;
    }
    s->n_rows = 0;
    return ASP_OK;
}

/* Appends a row to the pass: that of a position before this layer, wherever it is now. */
static int32_t append_row(sweep *s, const asp_variant *v, int64_t layer, int64_t position, int32_t now) {
    const int64_t e = s->model->config.d_model;
    const asp_real *clean = (const asp_real *)s->resid.data + layer * s->resid.strides[0] +
                            (s->offsets[v->sequence] + position) * s->resid.strides[1];
    memcpy(s->x + s->n_rows * e, now < 0 ? clean : s->x + now * e, (size_t)e * sizeof *s->x);
    return (int32_t)s->n_rows++;
}

/* Where the variants' rows are behind this layer: own ones, new ones among them, or those of the variant before. */
static void place_rows(sweep *s, int64_t n, int64_t layer) {
    const int64_t longest = s->view.longest;
    for (int64_t i = 0; i < n; i++) {
        const asp_variant *v = &s->variants[i];
        const int64_t t = asp_variant_length(&s->view, v);
        const int32_t *own = s->view.own + i * longest, *before = s->view.before + i * longest;
        const int follows = i && asp_sharing_follows(v, v - 1);
        int32_t *after = s->view.after + i * longest;
        for (int64_t q = s->view.last_only ? t - 1 : 0; q < t; q++)
            after[q] = own[q] <= layer       ? before[q]
                       : own[q] == layer + 1 ? append_row(s, v, layer, q, before[q])
                       : follows             ? (after - longest)[q]
                                             : -1;
    }
}

/* The first rows of the pass, without a sequence; rows of z that hold tokens beyond them do not matter. */
static asp_activations pass_over(const sweep *s, int64_t rows) {
    static const int64_t offsets[2] = {0, 0};
    return (asp_activations){.n_tokens = rows,
                             .n_rows = asp_shape_rows(s->model, rows, 0),
                             .offsets = offsets,
                             .resid = {s->x, 0},
                             .mid = {s->x, 0},
                             .ln1 = {s->ln, 0},
                             .ln2 = {s->ln, 0},
                             .qkv = {s->qkv, 0},
                             .z = {s->z, 0},
                             .mlp_post = {s->mlp, 0}};
}

/* From z of the last positions to the final LayerNorm, in s->x.  Nothing else is read any more, so that the residual
 * stream moves to s->ln and z to s->qkv. */
static asp_status finish_last(sweep *s, int64_t n, const asp_context *context) {
    const asp_config *c = &s->model->config;
    const int64_t e = c->d_model, width = c->n_head * c->d_head, layer = c->n_layer - 1, longest = s->view.longest;
    s->n_last = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t at = i * longest + asp_variant_length(&s->view, &s->variants[i]) - 1, row = s->view.after[at];
        if (s->view.own[at] > c->n_layer) continue;
        memcpy(s->ln + s->n_last * e, s->x + row * e, (size_t)e * sizeof *s->x);
        memcpy(s->qkv + s->n_last * width, s->z + row * width, (size_t)width * sizeof *s->z);
        s->last[s->n_last++] = i;
    }
    const asp_activations acts = {.n_tokens = s->n_last,
                                  .n_rows = asp_shape_rows(s->model, s->n_last, 0),
                                  .resid = {s->ln, 0},
                                  .mid = {s->ln, 0},
                                  .ln2 = {s->x, 0},
                                  .z = {s->qkv, 0},
                                  .mlp_post = {s->mlp, 0},
                                  .ln_final = s->x};
    asp_status status = asp_forward_output(s->model, &acts, layer, context);
    if (!status) status = asp_forward_mlp(s->model, &acts, layer, context);
    return status ? status : asp_forward_final(s->model, &acts, context);
}

/* Adds to what the caller counts, behind a layer in which so many rows were computed. */
static void count_rows(const sweep *s, int64_t layer, int64_t n_begun, int64_t computed) {
    int64_t *rows = s->options->rows;
    if (!rows) return;
    rows[0] += computed;
    for (int64_t i = 0; i < n_begun; i++) {
        const asp_variant *v = &s->variants[i];
        const int one = s->view.last_only || (v->scope && v->start_layer == layer);
        rows[1] += one ? 1 : asp_variant_length(&s->view, v) - v->first_position;
    }
}

static asp_status run_layers(sweep *s, int64_t n, const asp_context *context) {
    const asp_config *c = &s->model->config;
    const asp_gate gate = {.gated = c->gated, .bias = s->gate_bias};
    asp_status status = ASP_OK;
    int64_t begun = 0;
    for (int64_t l = s->variants[0].start_layer; !status && l < c->n_layer; l++) {
        while (begun < n && s->variants[begun].start_layer == l) begun++;
        asp_activations acts = pass_over(s, s->n_rows);
        s->view.last_only = l == c->n_layer - 1;
        place_rows(s, n, l);
        if (acts.n_tokens) status = asp_forward_qkv(s->model, &acts, l, context);
        if (!status) status = asp_variants_attention(&s->view, s->model, &acts, l, begun, &gate, &s->scratch, context);
        if (status || s->view.last_only) break;
        acts = pass_over(s, s->n_rows);
        status = asp_forward_output(s->model, &acts, l, context);
        if (!status) status = asp_forward_mlp(s->model, &acts, l, context);
        count_rows(s, l, begun, s->n_rows);
        s->work_done += begun;
        if (!status) status = asp_context_share(context, (double)s->work_done / (double)s->work);
        int32_t *after = s->view.after;
        s->view.after = s->view.before;
        s->view.before = after;
    }
    s->work_done += begun; /* in the last layer */
    if (!status) status = finish_last(s, n, context);
    if (!status) count_rows(s, c->n_layer - 1, n, s->n_last);
    return status;
}

typedef struct {
    const sweep *s;
    double *values;
} value_job;

/* The value of the variant of one last row from its final LayerNorm alone. */
static void sweep_value_item(void *arg, int64_t row, int thread) {
    (void)thread;
    const value_job *job = arg;
    const sweep *s = job->s;
    const int64_t i = s->last[row];
    job->values[s->sorted[s->block_begin + i]] =
        asp_metric_from_hidden(&s->options->metric, s->variants[i].sequence, s->model,
                               s->x + row * s->model->config.d_model);
}

/* The same of last rows first .. first + n - 1 from all their logits. */
static asp_status values_from_logits(sweep *s, double *values, int64_t first, int64_t n, const asp_context *context) {
    const asp_config *c = &s->model->config;
    int64_t sequence[ASP_LOSS_CHUNK];
    double found[ASP_LOSS_CHUNK];
    for (int64_t i = 0; i < n; i++) sequence[i] = s->variants[s->last[first + i]].sequence;
    asp_status status = asp_unembed(s->model, s->logits, s->x + first * c->d_model, n, s->logit_rows, context);
    if (!status) status = asp_metric_rows(found, &s->options->metric, sequence, n, s->logits, c->n_vocab, context);
    for (int64_t i = 0; !status && i < n; i++) values[s->sorted[s->block_begin + s->last[first + i]]] = found[i];
    return status;
}

static asp_status last_values(sweep *s, double *values, const asp_context *context) {
    value_job job = {s, values};
    if (!asp_metric_needs_all(s->options->metric.kind))
        return asp_parallel_for(context, s->n_last, sweep_value_item, &job);
    asp_status status = ASP_OK;
    for (int64_t first = 0; !status && first < s->n_last; first += ASP_LOSS_CHUNK)
        status = values_from_logits(s, values, first, asp_min(ASP_LOSS_CHUNK, s->n_last - first), context);
    return status;
}

/* A variant whose last row is another one's has its value. */
static asp_status block_values(sweep *s, double *values, int64_t n, const asp_context *context) {
    const asp_status status = last_values(s, values, context);
    const int64_t *sorted = s->sorted + s->block_begin;
    for (int64_t i = 0, next = 0; !status && i < n; i++)
        if (next < s->n_last && s->last[next] == i) next++;
        else values[sorted[i]] = values[sorted[i - 1]];
    return status;
}

asp_status asp_sweep(double *values, const asp_model *model, const asp_run *clean, const asp_variant *variants,
                     int64_t n_variants, const asp_sweep_options *options, const asp_context *context, asp_error *err) {
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
    s.view.longest = asp_shape_longest(s.offsets, asp_run_n_sequences(clean));
    asp_status status = prepare_sweep(&s, variants, n_variants, err);
    if (status) return status;
    s.sorted = asp_allocate(n_variants + 1, sizeof *s.sorted);
    if (!s.sorted) return asp_fail(err, ASP_NO_MEMORY, "no memory for %lld variants", (long long)n_variants);
    for (int64_t i = 0; i < n_variants; i++) s.work += model->config.n_layer - variants[i].start_layer;
    sort_by_start(&s, variants, n_variants);
    largest_sweep_block(&s, variants, n_variants);
    status = allocate_sweep(&s, context->n_threads, err);
    if (!status) status = asp_blas_enter(context, err);
    const int entered = !status;
    for (; !status && s.block_begin < n_variants; s.block_begin = s.block_end) {
        status = open_block(&s, variants, n_variants, context);
        const int64_t n = s.block_end - s.block_begin;
        if (!status) status = run_layers(&s, n, context);
        if (!status) status = block_values(&s, values, n, context);
    }
    if (entered) asp_blas_leave();
    release(&s);
    return status;
}
