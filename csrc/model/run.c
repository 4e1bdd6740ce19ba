/* run.c: what a forward pass keeps.  One arena holds all recorded arrays; what is not recorded lives in a
 * second arena that is freed before the call returns. */
#include <string.h>

#include "model/hooks.h"

struct asp_run {
    asp_config config;
    int64_t n_sequences, n_tokens, n_rows, stop_at;
    int64_t *offsets;      /* (B+1) */
    int64_t *square_start; /* (B+1) of pattern, scores and gate */
    int32_t *tokens;       /* (N) */
    asp_arena arena;
    asp_array arrays[ASP_N_RECORDS];
    int64_t layer_strides[ASP_N_RECORDS];
    asp_edge_builder *edges;
};

static const char *const record_names[ASP_N_RECORDS] = {
    "embed",     "pos_embed",      "resid",   "resid_mid", "ln1_scale", "ln1_normalized", "qkv",
    "scores",    "pattern",        "gate",    "lse",       "z",         "result",         "attn_out",
    "ln2_scale", "ln2_normalized", "mlp_pre", "mlp_post",  "mlp_out",   "ln_final_scale", "ln_final_normalized",
    "logits",    "token_loss"};

const char *asp_run_record_name(asp_record record) { return record_names[record]; }

void asp_run_free(asp_run *run) {
    if (!run) return;
    asp_edges_free(run->edges);
    asp_arena_free(&run->arena);
    asp_release(run->offsets);
    asp_release(run->square_start);
    asp_release(run->tokens);
    asp_release(run);
}

asp_array asp_run_array(const asp_run *run, asp_record record) { return run->arrays[record]; }
const int64_t *asp_run_offsets(const asp_run *run) { return run->offsets; }
const int64_t *asp_run_square_start(const asp_run *run) { return run->square_start; }
int64_t asp_run_n_sequences(const asp_run *run) { return run->n_sequences; }
int64_t asp_run_stop_at(const asp_run *run) { return run->stop_at; }
int64_t asp_run_bytes(const asp_run *run) { return run->arena.bytes; }
asp_edges asp_run_edges(const asp_run *run) { return run->edges ? run->edges->edges : (asp_edges){0}; }

/* Buffers of a pass that are not recorded. */
typedef struct {
    asp_arena arena;
    asp_real *resid, *ln, *qkv, *z, *mlp, *mlp_out, *hidden, *logits;
    asp_scratch attention;
    int64_t logit_rows, loss_rows; /* padded rows of the LM head and of its chunks */
    asp_visit_scratch seen;
} run_scratch;

enum { SCRATCH_PARTS = 9, ALL_PARTS = SCRATCH_PARTS + ASP_VISIT_PARTS };

static void list_scratch(asp_arena_part parts[ALL_PARTS], run_scratch *s, const asp_model *model, const asp_run *run,
                         const asp_run_options *options, int n_threads) {
    const asp_config *c = &run->config;
    const int64_t rows = run->n_rows, e = c->d_model, width = c->n_head * c->d_head;
    const int64_t n_logits = options->logits == ASP_LOGITS_ALL ? run->n_tokens : run->n_sequences;
    const int losses = (int)(options->records >> ASP_TOKEN_LOSS & 1), replaced = options->substitute != NULL;
    const int64_t squares = asp_shape_squares_size(c, run->offsets, run->n_sequences);
    s->seen.places = asp_visit_places(options->visitors, options->n_visitors, c->n_layer);
    s->logit_rows = asp_shape_logit_rows(model, n_logits);
    s->loss_rows = asp_shape_logit_rows(model, asp_min(run->n_tokens, ASP_LOSS_CHUNK));
    s->attention.per_thread = asp_attention_scratch(c, asp_shape_longest(run->offsets, run->n_sequences), 0);
    const asp_arena_part list[SCRATCH_PARTS] = {ASP_PART(s->resid, rows, e),
                                                ASP_PART(s->ln, rows, e),
                                                ASP_PART(s->qkv, rows, 3 * width),
                                                ASP_PART(s->z, rows, width),
                                                ASP_PART(s->mlp, rows,
                                                         replaced && !options->substitute->kept ? 1 : c->d_mlp),
                                                ASP_PART(s->mlp_out, rows, replaced ? e : 0),
                                                ASP_PART(s->hidden, asp_max(s->logit_rows, s->loss_rows), e),
                                                ASP_PART(s->logits, losses ? s->loss_rows : 0, c->n_vocab),
                                                ASP_PART(s->attention.data, n_threads, s->attention.per_thread)};
    memcpy(parts, list, sizeof list);
    asp_visit_list(parts + SCRATCH_PARTS, &s->seen, c, rows, squares < 0 ? -1 : squares / c->n_layer);
}

static void reserve_records(asp_run *run, const asp_run_options *options, int64_t logit_rows, int64_t *positions) {
    const asp_config *c = &run->config;
    for (int r = 0; r < ASP_N_RECORDS; r++) {
        positions[r] = -1;
        const int wanted = r == ASP_LOGITS ? options->logits != ASP_LOGITS_NONE : (int)(options->records >> r & 1);
        if (!wanted) continue;
        asp_record_shape s = asp_shape_of_record(c, (asp_record)r, run->offsets, run->n_sequences,
                                                 r == ASP_LOGITS ? logit_rows : run->n_rows);
        if (r == ASP_LOGITS && options->logits == ASP_LOGITS_LAST) s.array.dims[0] = run->n_sequences;
        positions[r] = asp_arena_reserve(&run->arena, s.items, s.array.is_byte ? 1 : (int64_t)sizeof(asp_real));
        run->arrays[r] = s.array;
        run->layer_strides[r] = s.layer_stride;
    }
}

static asp_status no_room_for_run(const asp_run *run, int64_t needed, int64_t limit, asp_error *err) {
    const int64_t entries = run->square_start[run->n_sequences];
    const double square = (double)(entries < 0 ? INT64_MAX : entries) * sizeof(asp_real);
    if (needed <= limit)
        return asp_fail(err, ASP_NO_MEMORY, "this run needs %s, which could not be allocated",
                        asp_fail_size((char[32]){0}, (double)needed));
    return asp_fail(err, ASP_NO_MEMORY,
                    "this run needs %s (one pattern or score array: %s), above max_bytes=%lld; record fewer "
                    "arrays, record=\"edges\", fewer logits, or a larger max_bytes",
                    asp_fail_size((char[32]){0}, (double)needed), asp_fail_size((char[32]){0}, square),
                    (long long)limit);
}

static asp_real *recorded(const asp_run *run, asp_record record) { return run->arrays[record].data; }

static asp_slot slot_of(const asp_run *run, asp_record record, asp_real *otherwise) {
    asp_real *data = recorded(run, record);
    return data ? (asp_slot){data, run->layer_strides[record]} : (asp_slot){otherwise, 0};
}

static asp_activations wire_activations(const asp_run *run, const run_scratch *s, const asp_hooks *hooks) {
    asp_activations a = {.n_tokens = run->n_tokens,
                         .n_rows = run->n_rows,
                         .n_sequences = run->n_sequences,
                         .stop_at = run->stop_at,
                         .tokens = run->tokens,
                         .offsets = run->offsets,
                         .square_start = run->square_start};
    a.resid = slot_of(run, ASP_RESID, s->resid);
    /* Not recorded, the middle of a layer is written where the layer's end will be. */
    a.mid = slot_of(run, ASP_RESID_MID, a.resid.data + a.resid.stride);
    if (!recorded(run, ASP_RESID_MID)) a.mid.stride = a.resid.stride;
    a.ln1 = a.ln2 = (asp_slot){s->ln, 0};
    a.ln_final = s->ln;
    a.qkv = slot_of(run, ASP_QKV, s->qkv);
    a.z = slot_of(run, ASP_Z, s->z);
    a.lse = slot_of(run, ASP_LSE, NULL);
    a.mlp_post = slot_of(run, ASP_MLP_POST, s->mlp);
    a.mlp_out = slot_of(run, ASP_MLP_OUT, hooks->mlp.layer ? s->mlp_out : NULL);
    a.hooks = hooks;
    a.edges = run->edges;
    a.ln1_scale = slot_of(run, ASP_LN1_SCALE, NULL);
    a.ln2_scale = slot_of(run, ASP_LN2_SCALE, NULL);
    a.ln1_normalized = slot_of(run, ASP_LN1_NORMALIZED, NULL);
    a.ln2_normalized = slot_of(run, ASP_LN2_NORMALIZED, NULL);
    a.ln_final_scale = recorded(run, ASP_LN_FINAL_SCALE);
    a.ln_final_normalized = recorded(run, ASP_LN_FINAL_NORMALIZED);
    a.embed = recorded(run, ASP_EMBED);
    a.pos_embed = recorded(run, ASP_POS_EMBED);
    a.result = slot_of(run, ASP_RESULT, NULL);
    a.attn_out = slot_of(run, ASP_ATTN_OUT, NULL);
    a.mlp_pre = slot_of(run, ASP_MLP_PRE, NULL);
    a.scores = recorded(run, ASP_SCORES);
    a.pattern = recorded(run, ASP_PATTERN);
    a.gate = (uint8_t *)run->arrays[ASP_GATE].data;
    asp_visit_wire(&a, &s->seen);
    return a;
}

static asp_status unembed_run(const asp_model *m, asp_run *run, const run_scratch *s, const asp_activations *a,
                              const asp_run_options *options, const asp_context *context) {
    if (options->logits == ASP_LOGITS_NONE) return ASP_OK;
    const int64_t e = m->config.d_model, all = options->logits == ASP_LOGITS_ALL;
    const int64_t n = all ? run->n_tokens : run->n_sequences;
    asp_real *hidden = s->hidden;
    for (int64_t i = 0; i < n; i++) {
        const int64_t row = all ? i : run->offsets[i + 1] - 1;
        memcpy(hidden + i * e, a->ln_final + row * e, (size_t)e * sizeof *hidden);
    }
    return asp_unembed(m, recorded(run, ASP_LOGITS), hidden, n, s->logit_rows, context);
}

typedef struct {
    const asp_run *run;
    const asp_real *logits; /* of row `first` and on */
    asp_real *loss;
    int64_t first;
} loss_job;

static void loss_row(void *arg, int64_t item, int thread) {
    (void)thread;
    const loss_job *job = arg;
    const int64_t row = job->first + item, v = job->run->config.n_vocab;
    job->loss[row] =
        (asp_real)asp_isa_kernels()->cross_entropy_row(NULL, job->logits + item * v, v, job->run->tokens[row + 1], 1.0);
}

/* Cross-entropy of the next token at every row; 0 at the last of a sequence. */
static asp_status token_losses(const asp_model *m, asp_run *run, const run_scratch *s, const asp_activations *a,
                               const asp_context *context) {
    asp_real *loss = recorded(run, ASP_TOKEN_LOSS);
    if (!loss) return ASP_OK;
    const int64_t e = m->config.d_model, n = run->n_tokens - 1;
    asp_real *hidden = s->hidden, *logits = s->logits;
    asp_status status = ASP_OK;
    for (int64_t first = 0; !status && first < n; first += ASP_LOSS_CHUNK) {
        const int64_t rows = asp_min(ASP_LOSS_CHUNK, n - first);
        memcpy(hidden, a->ln_final + first * e, (size_t)(rows * e) * sizeof *hidden);
        status = asp_unembed(m, logits, hidden, rows, s->loss_rows, context);
        loss_job job = {run, logits, loss, first};
        if (!status) status = asp_parallel_for(context, rows, loss_row, &job);
    }
    for (int64_t b = 0; b < run->n_sequences; b++) loss[run->offsets[b + 1] - 1] = 0;
    return status;
}

static asp_status copy_batch(asp_run *run, const int32_t *tokens, const int64_t *offsets, int64_t n_sequences,
                             asp_error *err) {
    run->n_sequences = n_sequences;
    run->n_tokens = offsets[n_sequences];
    run->offsets = asp_allocate(n_sequences + 1, sizeof *run->offsets);
    run->square_start = asp_allocate(n_sequences + 1, sizeof *run->square_start);
    run->tokens = asp_allocate(run->n_tokens, sizeof *run->tokens);
    if (!run->offsets || !run->square_start || !run->tokens)
        return asp_fail(err, ASP_NO_MEMORY, "no memory for the tokens of a run");
    memcpy(run->offsets, offsets, (size_t)(n_sequences + 1) * sizeof *offsets);
    memcpy(run->tokens, tokens, (size_t)run->n_tokens * sizeof *tokens);
    asp_shape_squares_start(run->square_start, &run->config, offsets, n_sequences);
    return ASP_OK;
}

/* Lays out the records, whose places are written to positions, and the scratch.  Bytes of both. */
static int64_t lay_out(asp_run *run, run_scratch *s, asp_arena_part parts[ALL_PARTS], int64_t positions[ASP_N_RECORDS],
                       const asp_model *model, const asp_run_options *options, int n_threads) {
    int64_t needed;
    const uint32_t seen = asp_visit_places(options->visitors, options->n_visitors, run->config.n_layer);
    run->n_rows =
        asp_shape_rows(model, run->n_tokens, options->records >> ASP_RESULT & 1 || seen & asp_visit_bit(ASP_AT_RESULT));
    list_scratch(parts, s, model, run, options, n_threads);
    const int64_t scratch = asp_arena_lay_out(&s->arena, parts, ALL_PARTS);
    reserve_records(run, options, s->logit_rows, positions);
    if (run->arena.overflow || __builtin_add_overflow(run->arena.bytes, scratch, &needed)) return INT64_MAX;
    return needed;
}

int64_t asp_run_needed(const asp_model *model, const int64_t *offsets, int64_t n_sequences,
                       const asp_run_options *options, int n_threads) {
    asp_run run = {.config = model->config,
                   .n_sequences = n_sequences,
                   .n_tokens = offsets[n_sequences],
                   .offsets = (int64_t *)(uintptr_t)offsets};
    run_scratch s = {0};
    asp_arena_part parts[ALL_PARTS];
    int64_t positions[ASP_N_RECORDS];
    return lay_out(&run, &s, parts, positions, model, options, n_threads);
}

static asp_status allocate_run(const asp_model *model, asp_run *run, run_scratch *s, const asp_run_options *options,
                               const asp_context *context, asp_error *err) {
    int64_t positions[ASP_N_RECORDS];
    asp_arena_part parts[ALL_PARTS];
    const int64_t needed = lay_out(run, s, parts, positions, model, options, context->n_threads);
    if (needed > options->max_bytes || needed == INT64_MAX)
        return no_room_for_run(run, needed, options->max_bytes, err);
    if (!asp_arena_commit(&run->arena, 0) || !asp_arena_commit(&s->arena, 0))
        return no_room_for_run(run, needed, INT64_MAX, err);
    asp_arena_wire(&s->arena, parts, ALL_PARTS);
    for (int r = 0; r < ASP_N_RECORDS; r++)
        if (positions[r] >= 0) run->arrays[r].data = run->arena.base + positions[r];
    if (!options->edges) return ASP_OK;
    return asp_edges_new(&run->edges, &run->config, run->offsets, run->n_sequences, options->edge_threshold,
                         options->max_bytes - needed, err);
}

static asp_status compute_run(const asp_model *m, asp_run *run, const run_scratch *s, const asp_run_options *options,
                              const asp_hooks *hooks, const asp_context *context, asp_error *err) {
    double *bias = asp_allocate(m->config.n_layer, sizeof *bias);
    if (!bias) return asp_fail(err, ASP_NO_MEMORY, "no memory for a run");
    for (int64_t l = 0; l < m->config.n_layer; l++) bias[l] = m->config.gate_bias;
    const asp_gate gate = {.gated = m->config.gated, .bias = bias};
    const asp_activations acts = wire_activations(run, s, hooks);
    asp_status status = asp_blas_enter(context, err);
    if (!status) {
        status = asp_forward_layers(m, &acts, &gate, &s->attention, context);
        if (!status) status = unembed_run(m, run, s, &acts, options, context);
        if (!status) status = token_losses(m, run, s, &acts, context);
        asp_blas_leave();
    }
    if (!status && run->edges) status = asp_edges_finish(run->edges, err);
    asp_release(bias);
    return status;
}

/* Bits of the records that a run which stops does not have. */
static uint64_t after_layers(void) {
    return (uint64_t)1 << ASP_LN_FINAL_SCALE | (uint64_t)1 << ASP_LN_FINAL_NORMALIZED | (uint64_t)1 << ASP_LOGITS |
           (uint64_t)1 << ASP_TOKEN_LOSS;
}

asp_status asp_run_new(asp_run **out, const asp_model *model, const int32_t *tokens, const int64_t *offsets,
                       int64_t n_sequences, const asp_run_options *options, const asp_context *context,
                       asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    context = &own;
    *out = NULL;
    asp_status status = asp_shape_check_batch(&model->config, tokens, offsets, n_sequences, err);
    if (status) return status;
    if (options->substitute && options->records & ((uint64_t)1 << ASP_MLP_PRE | (uint64_t)1 << ASP_MLP_POST))
        return asp_fail(err, ASP_BAD_ARGUMENT, "a run with replaced MLPs has no mlp_pre and mlp_post");
    const uint32_t seen = asp_visit_places(options->visitors, options->n_visitors, model->config.n_layer);
    if (options->substitute && seen & (asp_visit_bit(ASP_AT_MLP_PRE) | asp_visit_bit(ASP_AT_MLP_POST)))
        return asp_fail(err, ASP_BAD_ARGUMENT, "a run with replaced MLPs has no neurons to show to visitors");
    if (options->stop_at < 0 || options->stop_at > model->config.n_layer)
        return asp_fail(err, ASP_BAD_ARGUMENT, "a run stops before a layer 1..%lld, got %lld",
                        (long long)model->config.n_layer, (long long)options->stop_at);
    if (options->stop_at && (options->logits != ASP_LOGITS_NONE || options->records & after_layers()))
        return asp_fail(err, ASP_BAD_ARGUMENT, "a run that stops has no final LayerNorm, logits and token_loss");
    asp_run *run = asp_allocate(1, sizeof *run);
    if (!run) return asp_fail(err, ASP_NO_MEMORY, "no memory for a run");
    run_scratch scratch = {0};
    asp_hooks hooks = options->hooks ? *options->hooks : (asp_hooks){0};
    if (options->substitute) hooks.mlp = *options->substitute;
    hooks.visitors = options->visitors;
    hooks.n_visitors = options->n_visitors;
    run->config = model->config;
    run->stop_at = options->stop_at;
    if (run->stop_at) run->config.n_layer = run->stop_at; /* of its records */
    status = copy_batch(run, tokens, offsets, n_sequences, err);
    const int began = !status && hooks.begin;
    if (began) status = hooks.begin(hooks.state, model, run->offsets, n_sequences, context->n_threads, err);
    if (!status) status = allocate_run(model, run, &scratch, options, context, err);
    if (!status) status = compute_run(model, run, &scratch, options, &hooks, context, err);
    if (began && hooks.end) hooks.end(hooks.state);
    asp_arena_free(&scratch.arena);
    if (status) {
        asp_run_free(run);
        return status;
    }
    *out = run;
    return ASP_OK;
}

/* ---- norms of what keys carry --------------------------------------------------------- */

typedef struct {
    const asp_model *model;
    asp_array qkv;
    const asp_real *direction;
    asp_real *value_norm, *output_norm, *projection, *scratch; /* scratch (n_threads, E) */
    int64_t first, n_tokens;
} norm_job;

static void norm_item(void *arg, int64_t item, int thread) {
    const norm_job *job = arg;
    const asp_config *c = &job->model->config;
    const int64_t layer = item / c->n_head, head = item % c->n_head, e = c->d_model, d = c->d_head;
    const asp_real *w = job->model->data + job->model->layers[layer].proj_w + head * d * e;
    const asp_real *v = (const asp_real *)job->qkv.data + layer * job->qkv.strides[0] +
                        job->first * job->qkv.strides[1] + 2 * c->n_head * d + head * d;
    asp_real *out = job->scratch + thread * e;
    for (int64_t t = 0; t < job->n_tokens; t++, v += job->qkv.strides[1]) {
        double value = 0, norm = 0, projection = 0;
        memset(out, 0, (size_t)e * sizeof *out);
        for (int64_t i = 0; i < d; i++) {
            value += (double)v[i] * (double)v[i];
            for (int64_t j = 0; j < e; j++) out[j] += v[i] * w[i * e + j];
        }
        for (int64_t j = 0; j < e; j++) norm += (double)out[j] * (double)out[j];
        for (int64_t j = 0; job->direction && j < e; j++) projection += (double)out[j] * (double)job->direction[j];
        job->value_norm[item * job->n_tokens + t] = (asp_real)__builtin_sqrt(value);
        job->output_norm[item * job->n_tokens + t] = (asp_real)__builtin_sqrt(norm);
        if (job->projection) job->projection[item * job->n_tokens + t] = (asp_real)projection;
    }
}

asp_status asp_run_value_norms(const asp_model *model, const asp_run *run, int64_t first, int64_t n_tokens,
                               const asp_real *direction, asp_real *value_norm, asp_real *output_norm,
                               asp_real *projection, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    norm_job job = {.model = model,
                    .qkv = asp_run_array(run, ASP_QKV),
                    .direction = direction,
                    .value_norm = value_norm,
                    .output_norm = output_norm,
                    .projection = direction ? projection : NULL,
                    .first = first,
                    .n_tokens = n_tokens};
    if (first < 0 || n_tokens < 0 || first > run->n_tokens - n_tokens)
        return asp_fail(err, ASP_BAD_INDEX, "tokens %lld.. are out of range: the run has %lld", (long long)first,
                        (long long)run->n_tokens);
    if (!job.qkv.data)
        return asp_fail(err, ASP_BAD_STATE, "this run did not record q, k and v; run again with record=\"attention\"");
    job.scratch = asp_allocate(context->n_threads * model->config.d_model, sizeof *job.scratch);
    if (!job.scratch) return asp_fail(err, ASP_NO_MEMORY, "no memory for the norms of a run");
    const asp_status status = asp_parallel_for(context, model->config.n_layer * model->config.n_head, norm_item, &job);
    asp_release(job.scratch);
    return status;
}
