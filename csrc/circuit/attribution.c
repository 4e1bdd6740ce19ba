/* attribution.c: first-order effects of heads and attention entries.  All items are scaled by one m between their
 * reference and their value; the derivative with respect to each item's own m is read off the backward pass. */
#include <math.h>
#include <string.h>

#include "circuit/circuit.h"

/* z of all heads mixed with its reference, and what the backward pass collects: see asp_attribution. */
typedef struct {
    const asp_model *model;
    const asp_attribution_options *options;
    double m, share; /* 1 - m is the reference's part; share of the result: 1 / steps */
    asp_reference_view replacement;
    asp_real *mixed;  /* (R,H,D) of one layer */
    asp_real *open_z; /* (D) scratch */
    double *scores;
} scaling;

/* ---- references -------------------------------------------------------------------------- */

/* asp_reference_z without what closed entries contribute: the sum over the others, in mix->open_z (D). */
static const asp_real *open_z(const scaling *mix, const asp_activations *acts, int64_t layer, int64_t sequence,
                              int64_t head, int64_t position) {
    const asp_config *c = &mix->model->config;
    const int64_t first = acts->offsets[sequence], t = acts->offsets[sequence + 1] - first;
    const int64_t head_index = layer * c->n_head + head, at = (head_index * t + position) * t;
    const asp_real *pattern = (const asp_real *)mix->replacement.pattern.data + acts->square_start[sequence] + at;
    const asp_real *v = (const asp_real *)mix->replacement.qkv.data + layer * mix->replacement.qkv.strides[0] +
                        first * mix->replacement.qkv.strides[1] + 2 * mix->replacement.qkv.strides[2] +
                        head * c->d_head;
    memset(mix->open_z, 0, (size_t)c->d_head * sizeof *mix->open_z);
    for (int64_t k = 0; k <= position; k++)
        for (int64_t j = 0; !mix->options->closed[at + k] && j < c->d_head; j++)
            mix->open_z[j] += pattern[k] * v[k * mix->replacement.qkv.strides[1] + j];
    return mix->open_z;
}

/* Writes mix->mixed for one layer and returns it. */
static const asp_real *mix_forward(void *state, const asp_activations *acts, int64_t layer) {
    const scaling *mix = state;
    const asp_config *c = &mix->model->config;
    const asp_real m = (asp_real)mix->m, *z = acts->z.data + layer * acts->z.stride;
    for (int64_t b = 0; b < acts->n_sequences; b++)
        for (int64_t r = acts->offsets[b]; r < acts->offsets[b + 1]; r++)
            for (int64_t h = 0; h < c->n_head; h++) {
                const int64_t at = (r * c->n_head + h) * c->d_head;
                const asp_real *reference = mix->options->closed
                                                ? open_z(mix, acts, layer, b, h, r - acts->offsets[b])
                                                : asp_reference_z(&mix->replacement, layer, b, h, r - acts->offsets[b]);
                for (int64_t j = 0; j < c->d_head; j++)
                    mix->mixed[at + j] = m * z[at + j] + (reference ? (1 - m) * reference[j] : 0);
            }
    return mix->mixed;
}

/* ---- scores of one head --------------------------------------------------------------------- */

typedef struct {
    const scaling *mix;
    const asp_activations *acts;
    int64_t layer;
    asp_real *dz;
} layer_job;

static double dot_values(const asp_real *a, const asp_real *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

/* Heads, or heads at one position: dz . (z - reference). */
static void head_scores(const layer_job *job, int64_t sequence, int64_t head) {
    const scaling *mix = job->mix;
    const asp_activations *acts = job->acts;
    const asp_config *c = &mix->model->config;
    const int64_t d = c->d_head, head_index = job->layer * c->n_head + head, first = acts->offsets[sequence];
    const int64_t t = acts->offsets[sequence + 1] - first;
    for (int64_t q = 0; q < t; q++) {
        const int64_t at = ((first + q) * c->n_head + head) * d;
        const asp_real *reference = asp_reference_z(&mix->replacement, job->layer, sequence, head, q);
        double score = dot_values(job->dz + at, acts->z.data + job->layer * acts->z.stride + at, d);
        if (reference) score -= dot_values(job->dz + at, reference, d);
        mix->scores[mix->options->unit == ASP_UNIT_HEAD ? head_index : head_index * t + q] += mix->share * score;
    }
}

/* dz . (contribution of an entry in the reference). */
static double reference_score(const scaling *mix, const asp_real *dz, int64_t square, int64_t row, int64_t q, int64_t k,
                              int64_t t, int64_t layer, int64_t head) {
    const int64_t d = mix->model->config.d_head;
    if (mix->options->reference.entries)
        return dot_values(dz, mix->options->reference.entries + (square + q * t + k) * d, d);
    const int64_t head_index = layer * mix->model->config.n_head + head;
    if (!mix->replacement.pattern.data || (mix->options->closed && mix->options->closed[(head_index * t + q) * t + k]))
        return 0;
    const asp_real *v = (const asp_real *)mix->replacement.qkv.data + layer * mix->replacement.qkv.strides[0] +
                        (row + k) * mix->replacement.qkv.strides[1] + 2 * mix->replacement.qkv.strides[2] + head * d;
    return (double)((const asp_real *)mix->replacement.pattern.data)[square + q * t + k] * dot_values(dz, v, d);
}

/* Entries: dz . (A v - reference), or what moving the gate logit to 0 would do: g P (dz . v) sigma'(g). */
static void entry_scores(const layer_job *job, int64_t sequence, int64_t head) {
    const scaling *mix = job->mix;
    const asp_activations *acts = job->acts;
    const asp_config *c = &mix->model->config;
    const int64_t d = c->d_head, first = acts->offsets[sequence], t = acts->offsets[sequence + 1] - first;
    const int64_t head_index = job->layer * c->n_head + head, width = c->n_head * d;
    const int64_t packed = acts->square_start[sequence] + head_index * t * t;
    const int64_t reference = mix->options->reference.entries ? head_index * t * t : packed;
    const asp_real *v = acts->qkv.data + job->layer * acts->qkv.stride + first * 3 * width + 2 * width + head * d;
    for (int64_t q = 0; q < t; q++) {
        const asp_real *dz = job->dz + ((first + q) * c->n_head + head) * d;
        for (int64_t k = 0; k <= q; k++) {
            double score = dot_values(dz, v + k * 3 * width, d);
            if (mix->options->through_gate && c->self_closed && k == q) {
                score = 0; /* no score opens this gate */
            } else if (mix->options->through_gate) {
                const double s = (double)acts->scores[packed + q * t + k], g = s + c->gate_bias, w = 1 / (1 + exp(-g));
                const asp_real *lse = acts->lse.data + job->layer * acts->lse.stride + head * acts->n_tokens + first;
                score *= g * exp(s - (double)lse[q]) * w * (1 - w);
            } else {
                score = score * (double)acts->pattern[packed + q * t + k] -
                        reference_score(mix, dz, reference, first, q, k, t, job->layer, head);
            }
            mix->scores[(head_index * t + q) * t + k] += mix->share * score;
        }
    }
}

static void head_item(void *arg, int64_t head, int thread) {
    (void)thread;
    const layer_job *job = arg;
    for (int64_t b = 0; b < job->acts->n_sequences; b++) {
        if (job->mix->options->unit == ASP_UNIT_EDGE) entry_scores(job, b, head);
        else head_scores(job, b, head);
    }
}

/* Adds to the scores from dz (R,H,D) of the mixed z, and makes dz that of z itself. */
static asp_status mix_backward(void *state, const asp_activations *acts, int64_t layer, asp_real *dz,
                               const asp_context *context) {
    const scaling *mix = state;
    const asp_config *c = &mix->model->config;
    layer_job job = {mix, acts, layer, dz};
    const asp_status status = asp_parallel_for(context, c->n_head, head_item, &job);
    const int64_t n = acts->n_tokens * c->n_head * c->d_head;
    for (int64_t i = 0; i < n; i++) dz[i] *= (asp_real)mix->m;
    return status;
}

/* ---- the call ----------------------------------------------------------------------------------- */

typedef struct {
    asp_tape tape;
    asp_arena arena;
    scaling mix;
    asp_hooks hooks;
    double *bias; /* (L) of gates */
    asp_real *copies, *square;
} attribution;

/* Checks the call and opens what items are replaced by. */
static asp_status prepare_pass(asp_reference_view *r, const asp_attribution_options *o, const asp_model *model,
                               const int64_t *offsets, int64_t n_sequences, asp_error *err) {
    if (o->metric.n_sequences != n_sequences)
        return asp_fail(err, ASP_BAD_ARGUMENT, "attribution: the metric has %lld prompts, the batch %lld",
                        (long long)o->metric.n_sequences, (long long)n_sequences);
    if (o->steps < 1)
        return asp_fail(err, ASP_BAD_ARGUMENT, "attribution: steps must be at least 1, got %lld", (long long)o->steps);
    if (o->through_gate && (o->unit != ASP_UNIT_EDGE || !model->config.gated))
        return asp_fail(err, ASP_BAD_ARGUMENT, "attribution through the gate is for attention edges of a gated model");
    const int alike = o->unit != ASP_UNIT_HEAD || o->reference.z;
    const asp_status status =
        asp_reference_open(r, &o->reference, &model->config, offsets, n_sequences, alike, "attribution", err);
    if (status) return status;
    if (o->reference.run && (!r->z.data || (o->unit == ASP_UNIT_EDGE && (!r->pattern.data || !r->qkv.data))))
        return asp_fail(err, ASP_BAD_STATE,
                        "attribution: the reference run must have recorded z, and pattern and v for entries");
    const asp_metric *metric = &o->metric;
    if (metric->kind == ASP_CUSTOM && metric->custom && !metric->custom->gradient)
        return asp_fail(err, ASP_BAD_ARGUMENT, "attribution needs the gradient of the metric, and this one has none");
    return asp_metric_check(metric, model->config.n_vocab, err);
}

enum { PARTS = 4 };

/* Lays out what is needed besides the tape, whose acts are of this batch; squares: (L,H,T,T) of its sequences. */
static int64_t lay_out_passes(attribution *a, asp_arena_part parts[PARTS], const asp_model *m, int64_t squares,
                              int64_t copies) {
    const asp_config *c = &m->config;
    const asp_arena_part list[PARTS] = {ASP_PART(a->mix.mixed, a->tape.acts.n_rows, c->n_head * c->d_head),
                                        ASP_PART(a->copies, copies, c->n_vocab), ASP_PART(a->square, squares, 1),
                                        ASP_PART(a->mix.open_z, c->d_head, 1)};
    memcpy(parts, list, sizeof list);
    return asp_arena_lay_out(&a->arena, parts, PARTS);
}

/* Rows of the vocabulary's size that the metric works in. */
static int64_t copies_of(const attribution *a, asp_metric_kind kind, int n_threads) {
    return kind == ASP_CUSTOM ? a->tape.loss_rows : n_threads;
}

int64_t asp_attribution_needed(const asp_model *model, const int64_t *offsets, int64_t n_sequences, asp_unit unit,
                               asp_metric_kind kind, int n_threads) {
    attribution a = {0};
    asp_arena_part parts[PARTS];
    const asp_batch batch = {.offsets = offsets, .n_sequences = n_sequences};
    int64_t bytes;
    const int64_t tape = asp_tape_needed(&a.tape, model, &batch, n_threads);
    const int64_t squares = unit == ASP_UNIT_EDGE ? asp_shape_squares_size(&model->config, offsets, n_sequences) : 0;
    return __builtin_add_overflow(tape, lay_out_passes(&a, parts, model, squares, copies_of(&a, kind, n_threads)),
                                  &bytes)
               ? INT64_MAX
               : bytes;
}

static asp_status allocate_passes(attribution *a, const asp_model *m, const asp_attribution_options *o, int n_threads,
                                  asp_error *err) {
    asp_activations *acts = &a->tape.acts;
    asp_arena_part parts[PARTS];
    const int64_t squares = o->unit == ASP_UNIT_EDGE ? acts->square_start[acts->n_sequences] : 0;
    const int64_t bytes = lay_out_passes(a, parts, m, squares, copies_of(a, o->metric.kind, n_threads));
    a->bias = asp_allocate(m->config.n_layer, sizeof *a->bias);
    if (bytes > o->max_bytes || !asp_arena_commit(&a->arena, 1) || !a->bias)
        return asp_fail(err, ASP_NO_MEMORY, "attribution over %lld tokens needs %s; use fewer prompts at once",
                        (long long)acts->n_tokens, asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&a->arena, parts, PARTS);
    if (squares && o->through_gate) acts->scores = a->square;
    else if (squares) acts->pattern = a->square;
    return ASP_OK;
}

static asp_status compute(attribution *a, const asp_model *m, const asp_attribution_options *o,
                          const asp_context *context) {
    double sum;
    const asp_gate gate = {.gated = m->config.gated, .bias = a->bias};
    asp_status status = ASP_OK;
    for (int64_t l = 0; l < m->config.n_layer; l++) a->bias[l] = m->config.gate_bias;
    a->hooks = (asp_hooks){.state = &a->mix, .output_input = mix_forward, .dz = mix_backward};
    a->tape.acts.hooks = &a->hooks;
    a->mix.share = 1 / (double)o->steps;
    for (int64_t j = 1; !status && j <= o->steps; j++) {
        const double begin = (double)(j - 1) / (double)o->steps, end = (double)j / (double)o->steps;
        const double middle = (2 * begin + end) / 3; /* a backward pass takes twice as long as a forward pass */
        const asp_context up = asp_context_part(context, begin, middle), down = asp_context_part(context, middle, end);
        a->mix.m = o->steps == 1 ? 1 : ((double)j - 0.5) / (double)o->steps;
        status = asp_forward_layers(m, &a->tape.acts, &gate, &a->tape.scratch, &up);
        if (!status) status = asp_loss_metric(m, &a->tape, &o->metric, a->copies, &sum, context);
        if (!status) status = asp_backward_layers(m, &a->tape, &gate, NULL, &down);
    }
    return status;
}

asp_status asp_attribution(double *scores, const asp_model *model, const int32_t *tokens, const int64_t *offsets,
                           int64_t n_sequences, const asp_attribution_options *options, const asp_context *context,
                           asp_error *err) {
    const asp_context own = asp_context_of(context, err);
    context = &own;
    const asp_batch batch = {tokens, offsets, n_sequences, NULL, NULL};
    attribution a = {.mix = {.model = model, .options = options, .scores = scores}};
    asp_status status = asp_shape_check_batch(&model->config, tokens, offsets, n_sequences, err);
    if (!status) status = prepare_pass(&a.mix.replacement, options, model, offsets, n_sequences, err);
    if (status) return status;
    status = asp_tape_prepare(&a.tape, model, &batch, context->n_threads, options->max_bytes, err);
    if (!status) status = allocate_passes(&a, model, options, context->n_threads, err);
    if (!status) status = asp_blas_enter(context, err);
    if (!status) {
        status = compute(&a, model, options, context);
        asp_blas_leave();
    }
    asp_tape_free(&a.tape);
    asp_arena_free(&a.arena);
    asp_release(a.bias);
    return status;
}
