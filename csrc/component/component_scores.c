/* component_scores.c: scores of component edges, nodes and neurons over a task, one block of prompts after the other.
 *
 * A block is run plainly (its prompts, the corrupted ones, as the method asks), which gives the differences of all
 * senders, (S,R,E); then several runs of it, the points of the method, go forward and backward together, and
 * receivers.c adds up the scores.  Nothing of the size component edges x prompts x width is kept. */
#include <string.h>

#include "component/component.h"

static const char *const STAGE = "component scores";
enum { MOST_POINTS = 8, MOST_TOKENS = 4096, MOST_STEPS = 1000000 }; /* of one backward pass; of a method */

typedef struct {
    const asp_model *model;
    const asp_task *task;
    const asp_component_options *o;
    double *scores;
    const asp_prompts *base, *other; /* clean and corrupted ones; the other way round for denoising */
    int64_t n_points, chunk;         /* of a method, of one backward pass */
    int64_t most_tokens, *offsets;   /* (P+1) of the block */
    asp_means means;
    /* The block. */
    int64_t first, n, n_tokens, n_rows;
    asp_run *plain, *paired, *whole; /* of the base, of the other prompts, of the clean ones for KL */
    asp_metric metric;
    asp_tape tape;
    asp_arena arena;
    asp_receiver_point points[MOST_POINTS];
    asp_node_reference reference;
    int64_t *reference_row;                           /* (N) */
    asp_real *differences, *gradients, *dout, *parts; /* see asp_receivers; differences (S,R,E) */
    asp_real *embed;                                  /* (chunk N,E) */
    asp_real *copies;                                 /* see asp_loss_metric */
    int32_t *tokens;                                  /* (chunk N) */
    int64_t *point_offsets;                           /* (chunk n + 1) */
    const uint8_t **held;                             /* (chunk n) */
    double *bias;                                     /* (L) */
    double *shares;                                   /* (N,S) */
} scoring;

/* ---- what a method is ---------------------------------------------------------------------------------- */

static int64_t count_points(const asp_component_options *o, int64_t n_layer) {
    switch (o->method) {
    case ASP_COMPONENT_IG_INPUTS: return o->steps;
    case ASP_COMPONENT_IG_ACTIVATIONS: return o->steps * (1 + 2 * n_layer);
    case ASP_COMPONENT_CLEAN_CORRUPTED: return 2;
    default: return 1;
    }
}

static asp_receiver_point point_of(const asp_component_options *o, int64_t i) {
    asp_receiver_point point = {.group = -1};
    if (o->method == ASP_COMPONENT_CLEAN_CORRUPTED) point.replaced = i == 1;
    if (o->method == ASP_COMPONENT_IG_INPUTS) {
        const int64_t k = o->level == ASP_COMPONENT_EDGE ? i : i + 1;
        point.replaced = k == 0;
        point.group = k == 0 || k == o->steps ? -1 : 0;
        point.share = 1 - (double)k / (double)o->steps;
    }
    if (o->method == ASP_COMPONENT_IG_ACTIVATIONS) {
        point.group = i / o->steps;
        point.share = 1 - (double)(i % o->steps + 1) / (double)o->steps;
    }
    return point;
}

static int is_mean(asp_component_ablation ablation) { return ablation >= ASP_COMPONENT_MEAN; }
static int is_routes(const scoring *s) { return s->o->method == ASP_COMPONENT_ROUTES; }
/* Whether gates of the plain run are held in others. */
static int holds_gate(const scoring *s) { return s->o->held_gate && s->model->config.gated && s->n_points > 1; }

/* Whether the block is run plainly, because no point at which all outputs are as they are comes first. */
static int runs_plainly(const scoring *s) {
    return s->o->method == ASP_COMPONENT_IG_INPUTS || s->o->method == ASP_COMPONENT_IG_ACTIVATIONS || is_routes(s) ||
           holds_gate(s);
}

static asp_status refuse_scores(asp_error *err, const char *text) {
    return asp_fail(err, ASP_BAD_ARGUMENT, "%s: %s", STAGE, text);
}

static asp_status check_score_options(const asp_task *task, const asp_component_options *o, asp_error *err) {
    const int paired = o->ablation == ASP_COMPONENT_COUNTERFACTUAL, routes = o->method == ASP_COMPONENT_ROUTES;
    if (o->steps < 1 || o->steps > MOST_STEPS)
        return refuse_scores(err, "steps must be at least 1 and at most a million");
    if (routes && (o->level != ASP_COMPONENT_EDGE || o->denoising))
        return refuse_scores(err, "information flow routes are of the edges of clean prompts");
    if (routes) return ASP_OK;
    if (!paired && (o->method == ASP_COMPONENT_IG_INPUTS || o->method == ASP_COMPONENT_CLEAN_CORRUPTED))
        return refuse_scores(err, "this method runs the corrupted prompts, so the ablation must be counterfactual");
    if (!paired && o->denoising) return refuse_scores(err, "denoising needs the counterfactual ablation");
    if (paired && !task->corrupted.n_prompts)
        return refuse_scores(err, "the task has no corrupted prompts to take values from");
    if (o->reference && !is_mean(o->ablation)) return refuse_scores(err, "reference prompts are for means alone");
    if (task->metric.kind == ASP_CUSTOM && task->metric.custom && !task->metric.custom->gradient)
        return refuse_scores(err, "the gradient of the metric is needed, and this one has none");
    return ASP_OK;
}

static const asp_prompts *scored_reference(const scoring *s) {
    return s->o->reference ? s->o->reference : &s->task->clean;
}

static asp_status check_scoring(scoring *s, asp_error *err) {
    const asp_prompts *reference = s->o->reference;
    asp_status status = asp_task_check(s->model, s->task, err);
    if (!status) status = check_score_options(s->task, s->o, err);
    if (!status && reference)
        status =
            asp_shape_check_batch(&s->model->config, reference->tokens, reference->offsets, reference->n_prompts, err);
    return status;
}

/* ---- memory -------------------------------------------------------------------------------------------- */

static uint64_t plain_records(const scoring *s) {
    uint64_t records = ASP_NODES_RECORDS;
    if (is_routes(s)) records |= (uint64_t)1 << ASP_RESID | (uint64_t)1 << ASP_RESID_MID;
    return holds_gate(s) ? records | (uint64_t)1 << ASP_GATE : records;
}

static int needs_paired(const scoring *s) { return !is_routes(s) && s->o->ablation == ASP_COMPONENT_COUNTERFACTUAL; }
static int needs_whole(const scoring *s) { return !is_routes(s) && s->task->metric.kind == ASP_KL; }

enum { PARTS = 14 };

/* Arrays of the block besides the tape's, whose sizes are known. */
static int64_t lay_out_scoring(scoring *s, asp_arena_part parts[PARTS], int n_threads) {
    const asp_config *c = &s->model->config;
    const int64_t e = c->d_model, senders = asp_nodes_n_senders(c), rows = s->n_rows, l = c->n_layer;
    const int64_t edges = s->o->level == ASP_COMPONENT_EDGE, routes = is_routes(s), points = routes ? 0 : s->chunk;
    const int64_t copies = s->task->metric.kind == ASP_CUSTOM ? s->tape.loss_rows : n_threads;
    const asp_arena_part list[PARTS] = {
        ASP_PART(s->differences, senders * e, rows),
        ASP_PART(s->reference.z, c->n_head * c->d_head, rows),
        ASP_PART(s->reference.post, c->d_mlp, rows),
        ASP_PART(s->gradients, routes ? 0 : (edges ? 3 * c->n_head : 1) * e, rows),
        ASP_PART(s->dout, edges ? points * e : 0, s->n_tokens),
        ASP_PART(s->parts, edges ? senders : 0, 3 * c->n_head),
        ASP_PART(s->embed, runs_plainly(s) ? 0 : points * e, s->n_tokens),
        ASP_PART(s->copies, routes ? 0 : copies, c->n_vocab),
        ASP_PART(s->tokens, points, s->n_tokens),
        ASP_PART(s->point_offsets, points * s->n + 1, 1),
        ASP_PART(s->held, points, s->n),
        ASP_PART(s->reference_row, s->n_tokens, 1),
        ASP_PART(s->bias, l, 1),
        ASP_PART(s->shares, routes ? senders : 0, s->n_tokens),
    };
    memcpy(parts, list, sizeof list);
    s->arena = (asp_arena){0};
    return asp_arena_lay_out(&s->arena, parts, PARTS);
}

/* Sum of sizes, INT64_MAX if it does not fit. */
static int64_t bytes_sum(int64_t a, int64_t b) {
    int64_t both;
    return __builtin_add_overflow(a, b, &both) ? INT64_MAX : both;
}

static int64_t score_run_needed(const scoring *s, uint64_t records, int logits, int n_threads) {
    const asp_run_options options = {.records = records, .logits = logits};
    return asp_run_needed(s->model, s->offsets, s->n, &options, n_threads);
}

/* Goes to the block of prompts [first, end). */
static void set_score_block(scoring *s, int64_t first, int64_t end) {
    asp_task_block(s->offsets, s->base, first, end);
    s->first = first;
    s->n = end - first;
    s->n_tokens = s->offsets[s->n];
    s->n_rows = asp_round_up(s->n_tokens, 4); /* skinny products read rows in fours */
}

/* Bytes of the block.  offsets (chunk n + 1) scratch */
static int64_t score_block_needed(scoring *s, int64_t *offsets, int n_threads) {
    asp_arena_part parts[PARTS];
    int64_t bytes = 0;
    if (!is_routes(s)) {
        for (int64_t i = 0; i <= s->chunk * s->n; i++) offsets[i] = i / s->n * s->n_tokens + s->offsets[i % s->n];
        const asp_batch batch = {.offsets = offsets, .n_sequences = s->chunk * s->n};
        bytes = asp_tape_needed(&s->tape, s->model, &batch, n_threads);
    }
    bytes = bytes_sum(bytes, lay_out_scoring(s, parts, n_threads));
    if (runs_plainly(s)) bytes = bytes_sum(bytes, score_run_needed(s, plain_records(s), ASP_LOGITS_NONE, n_threads));
    if (needs_paired(s)) bytes = bytes_sum(bytes, score_run_needed(s, ASP_NODES_RECORDS, ASP_LOGITS_NONE, n_threads));
    if (needs_whole(s)) bytes = bytes_sum(bytes, score_run_needed(s, 0, ASP_LOGITS_LAST, n_threads));
    return bytes;
}

/* Bytes of the largest block; what stops the call is seen later. */
static int64_t largest_score_block(scoring *s, int64_t *offsets, int n_threads) {
    int64_t bytes = 0;
    for (int64_t first = 0, end; first < s->base->n_prompts; first = end) {
        end = asp_task_block_end(s->base, first, s->most_tokens);
        set_score_block(s, first, end);
        bytes = asp_max(bytes, score_block_needed(s, offsets, n_threads));
    }
    return bytes;
}

/* Sizes of the blocks, so that all fits in max_bytes; with one prompt at a time, fewer points of the method at once. */
static asp_status plan_scoring(scoring *s, int64_t *offsets, const int64_t means[2], int n_threads, asp_error *err) {
    const asp_config *c = &s->model->config;
    const int64_t item = (int64_t)sizeof(asp_real), width = c->n_head * c->d_head;
    const int64_t of_point = c->n_layer * (4 * c->d_model + 4 * width + 2 * c->d_mlp);
    const int64_t per_token = (s->chunk * of_point + (asp_nodes_n_senders(c) + 3 * c->n_head) * c->d_model) * item;
    s->most_tokens = asp_max(1, asp_min(MOST_TOKENS / s->chunk, ASP_TASK_BLOCK_BYTES / per_token));
    for (;;) {
        const int64_t bytes = bytes_sum(means[0], asp_max(means[1], largest_score_block(s, offsets, n_threads)));
        if (bytes <= s->o->max_bytes) return ASP_OK;
        if (s->most_tokens) s->most_tokens /= 2;
        else if (s->chunk > 1) s->chunk /= 2;
        else
            return asp_fail(err, ASP_NO_MEMORY,
                            "%s of %lld prompts need %s even one prompt at a time, above max_bytes=%lld; use shorter "
                            "prompts, fewer threads, or a larger max_bytes",
                            STAGE, (long long)s->base->n_prompts, asp_fail_size((char[32]){0}, (double)bytes),
                            (long long)s->o->max_bytes);
    }
}

/* ---- a block ------------------------------------------------------------------------------------------- */

static void close_score_block(scoring *s) {
    asp_run_free(s->plain);
    asp_run_free(s->paired);
    asp_run_free(s->whole);
    s->plain = s->paired = s->whole = NULL;
    asp_arena_free(&s->arena);
}

static asp_status run_score_block(asp_run **run, const scoring *s, const asp_prompts *prompts, uint64_t records,
                                  int logits, const asp_context *context, asp_error *err) {
    const asp_run_options options = {.records = records, .logits = logits, .max_bytes = INT64_MAX};
    return asp_run_new(run, s->model, prompts->tokens + prompts->offsets[s->first], s->offsets, s->n, &options, context,
                       err);
}

static asp_status open_score_block(scoring *s, const asp_context *context, asp_error *err) {
    asp_arena_part parts[PARTS];
    asp_status status = ASP_OK;
    s->metric = asp_metric_part(&s->task->metric, s->first, s->n, s->model->config.n_vocab);
    if (runs_plainly(s))
        status = run_score_block(&s->plain, s, s->base, plain_records(s), ASP_LOGITS_NONE, context, err);
    if (!status && needs_paired(s))
        status = run_score_block(&s->paired, s, s->other, ASP_NODES_RECORDS, ASP_LOGITS_NONE, context, err);
    if (!status && needs_whole(s)) {
        status = run_score_block(&s->whole, s, &s->task->clean, 0, ASP_LOGITS_LAST, context, err);
        if (!status) s->metric.reference = asp_run_array(s->whole, ASP_LOGITS).data;
    }
    if (status) return status;
    const int64_t bytes = lay_out_scoring(s, parts, context->n_threads);
    if (!asp_arena_commit(&s->arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "%s of %lld prompts need %s, which could not be allocated", STAGE,
                        (long long)s->n, asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&s->arena, parts, PARTS);
    for (int64_t l = 0; l < s->model->config.n_layer; l++) s->bias[l] = s->model->config.gate_bias;
    return ASP_OK;
}

/* What senders are replaced by in this block. */
static void set_reference(scoring *s) {
    const int positional = s->o->ablation == ASP_COMPONENT_MEAN_POSITIONAL;
    if (s->paired) s->reference.activations = asp_nodes_of_run(s->paired);
    else if (is_mean(s->o->ablation)) s->reference.activations = s->means.activations;
    else s->reference.activations = (asp_node_activations){0};
    for (int64_t b = 0; b < s->n; b++)
        for (int64_t r = s->offsets[b]; r < s->offsets[b + 1]; r++)
            s->reference_row[r] = s->paired ? r : positional ? r - s->offsets[b] : 0;
    s->reference.row = s->reference_row;
}

static asp_status take_differences(scoring *s, const asp_node_activations *given, const asp_context *context) {
    set_reference(s);
    return asp_nodes_differences(s->differences, s->model, &s->reference, given, s->n_tokens, s->n_rows, context);
}

/* Tokens, offsets and held gates of n_points runs of the block. */
static asp_batch fill_points(scoring *s, int64_t first_point, int64_t n_points) {
    for (int64_t p = 0; p < n_points; p++) {
        s->points[p] = point_of(s->o, first_point + p);
        const asp_prompts *from = s->points[p].replaced ? s->other : s->base;
        memcpy(s->tokens + p * s->n_tokens, from->tokens + from->offsets[s->first],
               (size_t)s->n_tokens * sizeof *s->tokens);
        for (int64_t b = 0; b < s->n; b++) {
            s->point_offsets[p * s->n + b] = p * s->n_tokens + s->offsets[b];
            if (holds_gate(s))
                s->held[p * s->n + b] =
                    (const uint8_t *)asp_run_array(s->plain, ASP_GATE).data + asp_run_square_start(s->plain)[b];
        }
    }
    s->point_offsets[n_points * s->n] = n_points * s->n_tokens;
    return (asp_batch){s->tokens, s->point_offsets, n_points * s->n, NULL, NULL};
}

/* Points [first, first + n) of the method: forward, backward, scores. */
static asp_status score_points(scoring *s, int64_t first, int64_t n, const asp_context *context) {
    const asp_model *m = s->model;
    const asp_batch batch = fill_points(s, first, n);
    const double sign = !s->o->smaller_is_better == !s->o->denoising ? -1 : 1;
    const asp_gate gate = {.gated = m->config.gated, .bias = s->bias, .held = holds_gate(s) ? s->held : NULL};
    double value;
    asp_receivers receivers = {.model = m,
                               .tape = &s->tape,
                               .points = s->points,
                               .differences = s->differences,
                               .n_rows = s->n_rows,
                               .offsets = s->offsets,
                               .n_prompts = s->n,
                               .n_points = n,
                               .level = s->o->level,
                               .mlp_input = s->o->mlp_input,
                               .weight = sign / (double)s->n_points,
                               .scores = s->scores,
                               .gradients = s->gradients,
                               .dout = s->dout,
                               .parts = s->parts};
    const asp_hooks hooks = asp_receivers_hooks(&receivers);
    asp_status status = asp_tape_prepare(&s->tape, m, &batch, context->n_threads, INT64_MAX, context->err);
    if (status) return status;
    s->tape.acts.hooks = &hooks;
    if (!runs_plainly(s)) s->tape.acts.embed = s->embed;
    const asp_context up = asp_context_part(context, 0, 1.0 / 3), down = asp_context_part(context, 1.0 / 3, 1);
    status = asp_forward_layers(m, &s->tape.acts, &gate, &s->tape.scratch, &up);
    if (!status && !first && !runs_plainly(s)) {
        const asp_node_activations given = {s->embed, s->tape.acts.z, s->tape.acts.mlp_post};
        status = take_differences(s, &given, context);
    }
    if (!status) status = asp_loss_metric(m, &s->tape, &s->metric, s->copies, &value, context);
    if (!status) status = asp_backward_layers(m, &s->tape, &gate, NULL, &down);
    return status ? status : asp_receivers_finish(&receivers, context);
}

static asp_status score_routes(scoring *s, const asp_context *context) {
    const asp_node_activations given = asp_nodes_of_run(s->plain);
    const asp_status status = asp_nodes_outputs(s->differences, s->model, &given, s->reference.z, s->reference.post,
                                                s->n_tokens, s->n_rows, context);
    return status ? status
                  : asp_routes_add(s->scores, s->model, s->plain, s->differences, s->n_rows, s->shares, context);
}

static asp_status score_block(scoring *s, const asp_context *context) {
    asp_status status = ASP_OK;
    if (is_routes(s)) return score_routes(s, context);
    if (runs_plainly(s)) {
        const asp_node_activations given = asp_nodes_of_run(s->plain);
        status = take_differences(s, &given, context);
    }
    for (int64_t first = 0, end; !status && first < s->n_points; first = end) {
        end = asp_min(first + s->chunk, s->n_points);
        const asp_context inner =
            asp_context_part(context, (double)first / (double)s->n_points, (double)end / (double)s->n_points);
        status = score_points(s, first, end - first, &inner);
    }
    return status;
}

/* ---- the call ------------------------------------------------------------------------------------------ */

void asp_component_scores_shape(int64_t dims[2], const asp_config *c, asp_component_level level) {
    dims[0] = asp_nodes_n_senders(c);
    dims[1] = level == ASP_COMPONENT_EDGE ? asp_nodes_n_receivers(c) : level == ASP_COMPONENT_NODE ? 1 : c->d_model;
}

static asp_status prepare_scoring(scoring *s, const asp_context *context, asp_error *err) {
    const int64_t longest = asp_shape_longest(s->base->offsets, s->base->n_prompts);
    const int means = !is_routes(s) && is_mean(s->o->ablation);
    int64_t bytes[2] = {0, 0};
    s->offsets = asp_allocate(s->base->n_prompts + 1, sizeof *s->offsets);
    int64_t *offsets = asp_allocate(MOST_POINTS * s->base->n_prompts + 1, sizeof *offsets);
    asp_status status = ASP_OK;
    if (!s->offsets || !offsets) status = asp_fail(err, ASP_NO_MEMORY, "%s: no memory for the prompts", STAGE);
    if (!status && means)
        asp_means_needed(bytes, s->model, scored_reference(s), longest, s->o->ablation, context->n_threads);
    if (!status) status = plan_scoring(s, offsets, bytes, context->n_threads, err);
    asp_release(offsets);
    if (!status && means)
        status = asp_means_new(&s->means, s->model, scored_reference(s), longest, s->o->ablation, context, err);
    return status;
}

static asp_status score_blocks(scoring *s, const asp_context *context, asp_error *err) {
    const int64_t n = s->base->n_prompts, runs = is_routes(s) ? 1 : s->n_points;
    asp_status status = asp_context_progress(context, STAGE, 0, runs * n);
    for (int64_t first = 0, end; !status && first < n; first = end) {
        end = asp_task_block_end(s->base, first, s->most_tokens);
        set_score_block(s, first, end);
        status = open_score_block(s, context, err);
        if (!status) status = asp_blas_enter(context, err);
        if (!status) {
            const asp_context inner = asp_context_stage(context, STAGE, runs * first, runs * end, runs * n);
            status = score_block(s, &inner);
            asp_blas_leave();
        }
        close_score_block(s);
        if (!status) status = asp_context_progress(context, STAGE, runs * end, runs * n);
    }
    return status;
}

asp_status asp_component_scores(double *scores, const asp_model *model, const asp_task *task,
                                const asp_component_options *options, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    scoring s = {.model = model,
                 .task = task,
                 .o = options,
                 .scores = scores,
                 .base = options->denoising ? &task->corrupted : &task->clean,
                 .other = options->denoising ? &task->clean : &task->corrupted};
    int64_t dims[2];
    asp_status status = check_scoring(&s, err);
    if (status) return status;
    s.n_points = count_points(options, model->config.n_layer);
    s.chunk = asp_min(MOST_POINTS, s.n_points);
    asp_component_scores_shape(dims, &model->config, options->level);
    memset(scores, 0, (size_t)(dims[0] * dims[1]) * sizeof *scores);
    status = prepare_scoring(&s, &own, err);
    if (!status) status = score_blocks(&s, &own, err);
    asp_tape_free(&s.tape);
    asp_means_free(&s.means);
    asp_release(s.offsets);
    return status;
}
