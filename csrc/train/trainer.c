/* trainer.c: one optimiser step: forward and backward over the micro-batches, clipping, AdamW and the
 * multiplier of the constraint.  Until the optimiser starts, a step can fail or be stopped and leaves
 * weights, moments and multiplier as they were.  The weights are updated in slices, one for each process that
 * takes part; this file knows nothing of how the processes talk. */
#include <math.h>
#include <string.h>

#include "train/train.h"

enum { EDGE_SUMS = 2 * ASP_N_ENTRY_KINDS, CROSS_ENTROPY = 0, HARD = 1, EDGES = 2 };

/* Of all micro-batches of a step. */
typedef struct {
    double weight, pairs, lambda;
    int64_t n_tokens, n_sequences, n_parts;
} step_size;

struct asp_trainer {
    asp_model *model;
    asp_trainer_state state;
    asp_adamw_weights weights; /* gradients (size of the model's arena) and moments (of the slice) */
    asp_trainer_slice slice;
    int64_t n_ranks;
    double *gate_bias;   /* (L) */
    double *prices;      /* (L,ASP_N_ENTRY_KINDS): gradient of the loss per unit of sigmoid(g) */
    asp_edge_sum *edges; /* (L,ASP_N_ENTRY_KINDS): sums of a part, then of the step */
    asp_tape tape;
    step_size size;                       /* of the step whose gradients were computed */
    asp_part_sums sums;                   /* of its parts */
    asp_real *spare[ASP_PARTS_MOST_SUMS]; /* (size of the arena) for those after the first; NULL: not needed so far */
};

void asp_trainer_free(asp_trainer *t) {
    if (!t) return;
    asp_tape_free(&t->tape);
    for (int i = 0; i < ASP_PARTS_MOST_SUMS; i++) asp_release(t->spare[i]);
    asp_release(t->weights.gradients);
    asp_release(t->weights.m);
    asp_release(t->weights.v);
    asp_release(t->weights.chunks);
    asp_release(t->weights.squares);
    asp_release(t->gate_bias);
    asp_release(t->prices);
    asp_release(t->edges);
    asp_release(t);
}

/* Weight decay is for matrices only. */
static void list_parameter_chunks(asp_trainer *t) {
    t->weights.n_chunks = 0;
    for (int64_t i = 0; i < t->model->n_parameters; i++) {
        const asp_parameter *p = &t->model->parameters[i];
        for (int64_t at = 0; at < p->size; at += ASP_PARTS_CHUNK) {
            if (t->weights.chunks)
                t->weights.chunks[t->weights.n_chunks] =
                    (asp_adamw_chunk){p->offset + at, asp_min(ASP_PARTS_CHUNK, p->size - at), p->n_dims == 2};
            t->weights.n_chunks++;
        }
    }
}

/* The first chunk that process `rank` of n_ranks updates. */
static int64_t first_chunk_of(const asp_trainer *t, int64_t rank) {
    const asp_adamw_weights *w = &t->weights;
    const double wanted = (double)t->model->size * (double)rank / (double)t->n_ranks;
    int64_t chunk = 0;
    while (chunk < w->n_chunks && (double)w->chunks[chunk].offset < wanted) chunk++;
    return rank < t->n_ranks ? chunk : w->n_chunks;
}

asp_trainer_slice asp_trainer_slice_of(const asp_trainer *t, int64_t rank) {
    asp_trainer_slice s = {.first_chunk = first_chunk_of(t, rank), .end_chunk = first_chunk_of(t, rank + 1)};
    const asp_adamw_chunk *chunks = t->weights.chunks;
    const int64_t n = t->weights.n_chunks, size = t->model->size;
    s.begin = s.first_chunk == 0 ? 0 : s.first_chunk < n ? chunks[s.first_chunk].offset : size;
    s.end = s.end_chunk < n ? chunks[s.end_chunk].offset : size;
    return s;
}

static int allocate_state(asp_trainer *t) {
    const int64_t l = t->model->config.n_layer;
    t->weights.squares = asp_allocate(t->weights.n_chunks, sizeof *t->weights.squares);
    t->gate_bias = asp_allocate(l, sizeof *t->gate_bias);
    t->prices = asp_allocate(l * ASP_N_ENTRY_KINDS, sizeof *t->prices);
    t->edges = asp_allocate(l * ASP_N_ENTRY_KINDS, sizeof *t->edges);
    t->weights.gradients = asp_allocate(t->model->size, sizeof(asp_real));
    t->weights.m = asp_allocate(t->slice.end - t->slice.begin, sizeof(asp_real));
    t->weights.v = asp_allocate(t->slice.end - t->slice.begin, sizeof(asp_real));
    return t->weights.squares && t->gate_bias && t->prices && t->edges && t->weights.gradients && t->weights.m &&
           t->weights.v;
}

asp_status asp_trainer_new(asp_trainer **trainer, asp_model *model, int64_t rank, int64_t n_ranks, asp_error *err) {
    *trainer = NULL;
    asp_trainer *t = asp_allocate(1, sizeof *t);
    if (!t) return asp_fail(err, ASP_NO_MEMORY, "no memory for a trainer");
    t->model = model;
    t->n_ranks = n_ranks;
    t->weights.data = model->data;
    t->state = (asp_trainer_state){0, 1.0, NAN};
    list_parameter_chunks(t);
    t->weights.chunks = asp_allocate(t->weights.n_chunks, sizeof *t->weights.chunks);
    int complete = t->weights.chunks != NULL;
    if (complete) {
        list_parameter_chunks(t);
        t->slice = asp_trainer_slice_of(t, rank);
        t->weights.moments_from = t->slice.begin;
        complete = allocate_state(t);
    }
    if (!complete) {
        const double n = (double)model->size + 2.0 * (double)(t->slice.end - t->slice.begin);
        asp_trainer_free(t);
        return asp_fail(err, ASP_NO_MEMORY, "training needs %s for gradients and moments, which could not be allocated",
                        asp_fail_size((char[32]){0}, n * (double)sizeof(asp_real)));
    }
    *trainer = t;
    return ASP_OK;
}

asp_trainer_state *asp_trainer_get_state(asp_trainer *t) { return &t->state; }
asp_real *asp_trainer_first_moment(asp_trainer *t) { return t->weights.m; }
asp_real *asp_trainer_second_moment(asp_trainer *t) { return t->weights.v; }
int64_t asp_trainer_n_numbers(const asp_trainer *t) { return EDGES + t->model->config.n_layer * EDGE_SUMS; }

/* ---- gradients ----------------------------------------------------------------------------- */

static asp_status measure_step(const asp_trainer *t, const asp_batch *micro, int64_t n_micro, step_size *size,
                               asp_error *err) {
    const asp_config *c = &t->model->config;
    double pairs = 0;
    for (int64_t i = 0; i < n_micro; i++) {
        const asp_batch *b = &micro[i];
        const asp_status status = asp_shape_check_batch(c, b->tokens, b->offsets, b->n_sequences, err);
        if (status) return status;
        const int64_t n = b->offsets[b->n_sequences];
        for (int64_t r = 0; r < n; r++) {
            if (b->weights[r] == 0) continue;
            if (b->targets[r] < 0 || b->targets[r] >= c->n_vocab)
                return asp_fail(err, ASP_BAD_INDEX, "target %lld at row %lld is out of range 0..%lld",
                                (long long)b->targets[r], (long long)r, (long long)c->n_vocab - 1);
            size->weight += (double)b->weights[r];
        }
        for (int64_t s = 0; s < b->n_sequences; s++) {
            const double length = (double)(b->offsets[s + 1] - b->offsets[s]);
            pairs += length * (length + 1) / 2;
        }
        size->n_tokens += n;
        size->n_sequences += b->n_sequences;
    }
    size->pairs = pairs * (double)(c->n_layer * c->n_head);
    if (!(size->weight > 0))
        return asp_fail(err, ASP_BAD_ARGUMENT,
                        "the loss weights of a step must sum to more than 0 (a target of -100 counts as 0), got %g",
                        size->weight);
    return ASP_OK;
}

typedef struct {
    const asp_adamw_weights *weights;
    asp_real *gradients; /* (size of the arena) written */
} clear_job;

static void clear_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const clear_job *job = arg;
    const asp_adamw_chunk *c = &job->weights->chunks[item];
    memset(job->gradients + c->offset, 0, (size_t)c->size * sizeof(asp_real));
}

/* Where the gradients of one part go, and what is found in it. */
typedef struct {
    asp_real *gradients; /* (size of the arena) added to */
    double cross_entropy, hard;
} part_result;

static asp_dropout dropout_of(const asp_trainer *t, const asp_step_options *options, uint64_t first_sequence) {
    asp_dropout dropout = {.seed = options->seed, .step = (uint64_t)t->state.step, .first_sequence = first_sequence};
    for (int i = 0; i < ASP_N_DROPS; i++) dropout.rates[i] = options->dropout[i];
    return dropout;
}

/* first: the number of the batch's first sequence in the step, by which noise and dropout are drawn. */
static asp_status accumulate_batch(asp_trainer *t, const asp_batch *batch, int64_t first,
                                   const asp_step_options *options, part_result *part, const asp_context *context) {
    const asp_config *c = &t->model->config;
    const asp_gate gate = {.gated = c->gated,
                           .noisy = c->gated && options->gate_noise,
                           .straight_through = c->gated,
                           .bias = t->gate_bias,
                           .seed = options->seed,
                           .step = (uint64_t)t->state.step,
                           .first_sequence = (uint64_t)first,
                           .edge_coefficient = t->prices};
    const asp_dropout dropout = dropout_of(t, options, gate.first_sequence);
    t->tape.drops_outputs = dropout.rates[ASP_DROP_ATTN_OUT] || dropout.rates[ASP_DROP_MLP_OUT];
    asp_status status = asp_tape_prepare(&t->tape, t->model, batch, context->n_threads, INT64_MAX, context->err);
    if (status) return status;
    t->tape.grads.parameters = part->gradients;
    t->tape.acts.dropout = &dropout;
    double ce = 0;
    status = asp_forward_layers(t->model, &t->tape.acts, &gate, &t->tape.scratch, context);
    if (!status)
        status = asp_loss_cross_entropy(t->model, &t->tape, batch, t->size.lambda / t->size.weight, &ce, context);
    if (!status) status = asp_backward_layers(t->model, &t->tape, &gate, t->edges, context);
    t->tape.acts.dropout = NULL;
    part->cross_entropy += ce;
    return status;
}

/* Adds the weighted cross-entropy of a batch with hard gates and nothing dropped.  A coefficient of 0 adds
 * nothing to the gradients. */
static asp_status add_hard_cross_entropy(asp_trainer *t, const asp_batch *batch, part_result *part,
                                         const asp_context *context) {
    const asp_gate gate = {.gated = t->model->config.gated, .bias = t->gate_bias};
    double ce = 0;
    asp_status status = asp_tape_prepare(&t->tape, t->model, batch, context->n_threads, INT64_MAX, context->err);
    if (status) return status;
    t->tape.grads.parameters = part->gradients;
    status = asp_forward_layers(t->model, &t->tape.acts, &gate, &t->tape.scratch, context);
    if (!status) status = asp_loss_cross_entropy(t->model, &t->tape, batch, 0, &ce, context);
    part->hard += ce;
    return status;
}

/* One pass over sequences begin..end of the step.  offsets (longest batch + 1) scratch. */
static asp_status pass_over_part(asp_trainer *t, const asp_batch *micro, int64_t n_micro, int64_t begin, int64_t end,
                                 int hard, const asp_step_options *options, part_result *part, int64_t *offsets,
                                 const asp_context *context) {
    asp_status status = ASP_OK;
    int64_t first = 0;
    for (int64_t i = 0; !status && i < n_micro; first += micro[i].n_sequences, i++) {
        const int64_t from = asp_max(begin - first, 0), to = asp_min(end - first, micro[i].n_sequences);
        if (from >= to) continue;
        const asp_batch batch = asp_parts_batch(&micro[i], from, to, offsets);
        status = hard ? add_hard_cross_entropy(t, &batch, part, context)
                      : accumulate_batch(t, &batch, first + from, options, part, context);
    }
    return status;
}

/* Memory for the sum after those that are there; NULL: none. */
static asp_real *next_sum(asp_trainer *t) {
    if (t->sums.n == 0) return t->weights.gradients;
    asp_real **spare = &t->spare[t->sums.n];
    if (!*spare) *spare = asp_allocate(t->model->size, sizeof(asp_real));
    return *spare;
}

/* numbers (n_numbers) written. */
static asp_status compute_part(asp_trainer *t, const asp_batch *micro, int64_t n_micro, int64_t number,
                               const asp_step_options *options, double *numbers, int64_t *offsets,
                               const asp_context *context) {
    part_result part = {.gradients = next_sum(t)};
    if (!part.gradients)
        return asp_fail(context->err, ASP_NO_MEMORY,
                        "the gradients of one more part of a step need %s, which could not be allocated",
                        asp_fail_size((char[32]){0}, (double)t->model->size * (double)sizeof(asp_real)));
    int64_t begin, end;
    asp_parts_range(t->size.n_sequences, t->size.n_parts, number, &begin, &end);
    const int64_t n_edges = t->model->config.n_layer * ASP_N_ENTRY_KINDS;
    for (int64_t i = 0; i < n_edges; i++) t->edges[i] = (asp_edge_sum){0};
    clear_job clear = {&t->weights, part.gradients};
    asp_status status = asp_parallel_for(context, t->weights.n_chunks, clear_item, &clear);
    for (int hard = options->constraint == ASP_CONSTRAINT_HARD; !status && hard >= 0; hard--)
        status = pass_over_part(t, micro, n_micro, begin, end, hard, options, &part, offsets, context);
    if (status) return status;
    numbers[CROSS_ENTROPY] = part.cross_entropy;
    numbers[HARD] = part.hard;
    for (int64_t i = 0; i < n_edges; i++) {
        numbers[EDGES + 2 * i] = t->edges[i].expected;
        numbers[EDGES + 2 * i + 1] = t->edges[i].open;
    }
    return asp_parts_append(&t->sums, (asp_part_sum){number, 1, part.gradients}, context);
}

static double edge_price(const asp_step_options *o, int64_t layer, int kind) {
    const double *price = o->edge_weight[kind] ? o->edge_weight[kind] : o->edge_weight[ASP_ENTRY_OTHER];
    return price ? price[layer] : 1;
}

static void prepare_layers(asp_trainer *t, const asp_step_options *o) {
    const asp_config *c = &t->model->config;
    for (int64_t l = 0; l < c->n_layer; l++) {
        t->gate_bias[l] = o->gate_bias ? o->gate_bias[l] : c->gate_bias;
        for (int kind = 0; kind < ASP_N_ENTRY_KINDS; kind++)
            t->prices[l * ASP_N_ENTRY_KINDS + kind] =
                edge_price(o, l, kind) / (t->size.pairs * (1 + t->state.multiplier));
    }
}

asp_status asp_trainer_gradients(asp_trainer *t, const asp_batch *micro, int64_t n_micro, int64_t n_parts,
                                 int64_t first, int64_t n, const asp_step_options *options, double *numbers,
                                 const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    context = &own;
    const double lambda = t->state.multiplier;
    t->size = (step_size){.n_parts = n_parts, .lambda = t->model->config.gated ? lambda / (1 + lambda) : 1};
    t->sums = (asp_part_sums){.size = t->model->size};
    asp_status status = measure_step(t, micro, n_micro, &t->size, err);
    if (status) return status;
    prepare_layers(t, options);
    int64_t longest = 0;
    for (int64_t i = 0; i < n_micro; i++) longest = asp_max(longest, micro[i].n_sequences);
    int64_t *offsets = asp_allocate(longest + 1, sizeof *offsets);
    if (!offsets) return asp_fail(err, ASP_NO_MEMORY, "no memory for the parts of a step");
    status = asp_blas_enter(context, err);
    if (!status) {
        for (int64_t i = 0; !status && i < n; i++)
            status = compute_part(t, micro, n_micro, first + i, options, numbers + i * asp_trainer_n_numbers(t),
                                  offsets, context);
        asp_blas_leave();
    }
    asp_release(offsets);
    return status;
}

int64_t asp_trainer_sums(const asp_trainer *t, const asp_part_sum **sums) {
    *sums = t->sums.sums;
    return t->sums.n;
}

asp_status asp_trainer_combine(asp_trainer *t, const asp_part_sum *sums, int64_t n, double *squares,
                               const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context quiet = {.n_threads = context->n_threads};
    const asp_trainer_slice *s = &t->slice;
    const int64_t size = s->end - s->begin, n_chunks = s->end_chunk - s->first_chunk;
    asp_part_sums all = {.size = size};
    int64_t following = 0;
    for (int64_t i = 0; i < n; i++) {
        if (sums[i].first != following || sums[i].n < 1)
            return asp_fail(err, ASP_BAD_ARGUMENT, "sums of parts must follow each other: part %lld was expected",
                            (long long)following);
        following += sums[i].n;
        asp_parts_append(&all, sums[i], &quiet);
    }
    if (following != t->size.n_parts)
        return asp_fail(err, ASP_BAD_ARGUMENT, "the sums are of %lld parts, the step has %lld", (long long)following,
                        (long long)t->size.n_parts);
    asp_parts_fold(&all, &quiet);
    memcpy(t->weights.gradients + s->begin, all.sums[0].data, (size_t)size * sizeof(asp_real));
    asp_adamw_weights own = t->weights;
    own.chunks += s->first_chunk;
    own.squares = squares;
    own.n_chunks = n_chunks;
    asp_adamw_squares(&own, &quiet);
    return ASP_OK;
}

/* ---- what was found ------------------------------------------------------------------------- */

/* Over all parts, in order. */
typedef struct {
    double cross_entropy, hard;
} step_sums;

static step_sums add_numbers(asp_trainer *t, const double *numbers) {
    step_sums sums = {0};
    const int64_t n_edges = t->model->config.n_layer * ASP_N_ENTRY_KINDS;
    for (int64_t i = 0; i < n_edges; i++) t->edges[i] = (asp_edge_sum){0};
    for (int64_t part = 0; part < t->size.n_parts; part++, numbers += asp_trainer_n_numbers(t)) {
        sums.cross_entropy += numbers[CROSS_ENTROPY];
        sums.hard += numbers[HARD];
        for (int64_t i = 0; i < n_edges; i++) {
            t->edges[i].expected += numbers[EDGES + 2 * i];
            t->edges[i].open += numbers[EDGES + 2 * i + 1];
        }
    }
    return sums;
}

static double constrained_value(const asp_step_options *o, double hard, const asp_step_result *result) {
    switch (o->constraint) {
    case ASP_CONSTRAINT_HARD: return hard;
    case ASP_CONSTRAINT_MEASURED: return o->measured;
    case ASP_CONSTRAINT_EDGES: return result->edges_per_token;
    default: return result->cross_entropy;
    }
}

/* How far the moving average is above its target: too many edges ask for a smaller multiplier, a cross-entropy that is
 * too large for a larger one. */
static double constraint_excess(const asp_step_options *o, double ema) {
    if (o->constraint == ASP_CONSTRAINT_EDGES) return 1 - ema / o->edges_per_token;
    return o->geco_relative ? ema / o->tau - 1 : ema;
}

/* lambda *= exp(rate * clip(excess)), the constraint averaged over steps (GECO, Rezende & Viola 2018). */
static void adapt_multiplier(asp_trainer_state *state, const asp_step_options *o, double constrained) {
    const int absolute = o->constraint != ASP_CONSTRAINT_EDGES && !o->geco_relative;
    const double value = absolute ? constrained - o->tau : constrained;
    if (!isnan(value)) {
        state->ema = isnan(state->ema) ? value : o->geco_ema * state->ema + (1 - o->geco_ema) * value;
        const double excess = fmax(-o->geco_clip, fmin(o->geco_clip, constraint_excess(o, state->ema)));
        if (o->geco_rate > 0) state->multiplier *= exp(o->geco_rate * excess);
    }
    state->multiplier = fmax(o->lambda_min, fmin(o->lambda_max, state->multiplier));
}

static void report(asp_trainer *t, const asp_step_options *o, const double *numbers, double norm,
                   asp_step_result *result) {
    const asp_config *c = &t->model->config;
    const step_size *size = &t->size;
    const step_sums sums = add_numbers(t, numbers);
    double expected = 0, weighted = 0, open = 0, open_self = 0;
    for (int64_t l = 0; l < c->n_layer; l++)
        for (int kind = 0; kind < ASP_N_ENTRY_KINDS; kind++) {
            const asp_edge_sum *edges = &t->edges[l * ASP_N_ENTRY_KINDS + kind];
            expected += edges->expected;
            weighted += edges->expected * edge_price(o, l, kind);
            open += edges->open;
            if (kind == ASP_ENTRY_SELF) open_self += edges->open;
        }
    const double lambda = t->state.multiplier, ce = sums.cross_entropy / size->weight;
    *result = (asp_step_result){.cross_entropy = ce,
                                .expected_edges = expected / size->pairs,
                                .open_edges = open / size->pairs,
                                .open_self = open_self / size->pairs,
                                .edges_per_token = open / (double)size->n_tokens,
                                .self_per_token = open_self / (double)size->n_tokens,
                                .multiplier = lambda,
                                .grad_norm = norm,
                                .n_tokens = size->n_tokens};
    result->constrained = c->gated ? constrained_value(o, sums.hard / size->weight, result) : NAN;
    result->loss = c->gated ? (weighted / size->pairs + lambda * (ce - o->tau)) / (1 + lambda) : ce;
}

/* ---- the update --------------------------------------------------------------------------------- */

static double norm_of_squares(const double *squares, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += squares[i];
    return sqrt(sum);
}

asp_status asp_trainer_update(asp_trainer *t, const double *numbers, const double *squares,
                              const asp_step_options *options, asp_real *weights, const asp_context *context,
                              asp_step_result *result, asp_error *err) {
    ASP_ENVIRONMENT;
    const double norm = norm_of_squares(squares, t->weights.n_chunks);
    report(t, options, numbers, norm, result);
    if (!isfinite(norm) || !isfinite(result->loss))
        return asp_fail(err, ASP_DIVERGED, "step %lld: the loss is %g and the gradient norm %g; the step was not taken",
                        (long long)t->state.step, result->loss, norm);
    const asp_adamw_options update = {
        options->lr,           options->beta1, options->beta2, options->eps,
        options->weight_decay, options->clip,  norm,           (double)(t->state.step + 1)};
    asp_adamw_weights own = t->weights;
    own.chunks += t->slice.first_chunk;
    own.n_chunks = t->slice.end_chunk - t->slice.first_chunk;
    asp_adamw_update(&own, &update, context);
    if (weights)
        memcpy(weights + t->slice.begin, t->model->data + t->slice.begin,
               (size_t)(t->slice.end - t->slice.begin) * sizeof(asp_real));
    if (t->model->config.gated) adapt_multiplier(&t->state, options, result->constrained);
    result->ema = t->state.ema;
    t->state.step++;
    return ASP_OK;
}

void asp_trainer_adopt(asp_trainer *t, const asp_real *weights) {
    const asp_trainer_slice *s = &t->slice;
    memcpy(t->model->data, weights, (size_t)s->begin * sizeof(asp_real));
    memcpy(t->model->data + s->end, weights + s->end, (size_t)(t->model->size - s->end) * sizeof(asp_real));
}

asp_status asp_trainer_step(asp_trainer *t, const asp_batch *micro, int64_t n_micro, int64_t n_parts,
                            const asp_step_options *options, const asp_context *context, asp_step_result *result,
                            asp_error *err) {
    ASP_ENVIRONMENT;
    double *numbers = asp_allocate(asp_trainer_n_numbers(t), (size_t)n_parts * sizeof *numbers);
    if (!numbers) return asp_fail(err, ASP_NO_MEMORY, "no memory for the parts of a step");
    asp_status status = asp_trainer_gradients(t, micro, n_micro, n_parts, 0, n_parts, options, numbers, context, err);
    if (!status) status = asp_parts_fold(&t->sums, context);
    if (!status) {
        asp_adamw_squares(&t->weights, context);
        status = asp_trainer_update(t, numbers, t->weights.squares, options, NULL, context, result, err);
    }
    asp_release(numbers);
    return status;
}
