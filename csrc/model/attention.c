/* attention.c: gated causal attention of one layer: one unit of work per head and sequence.
 * The arithmetic is in kernels_attention.h. */
#include <math.h>
#include <string.h>

#include "model/hooks.h"

typedef struct {
    const asp_model *model;
    const asp_activations *acts;
    const asp_activation_gradients *grads;
    const asp_gate *gate;
    const asp_scratch *scratch;
    int64_t layer;
    int fill_edges;
    int early;      /* for visitors: z is not wanted yet */
    uint32_t given; /* bits of the places that they have seen, which are read and not computed any more */
} attention_job;

int64_t asp_attention_scratch(const asp_config *config, int64_t max_length, int backward) {
    const int64_t keys = asp_round_up(max_length + 4, ASP_LANES), width = asp_round_up(config->d_head, ASP_LANES);
    const int64_t forward = config->d_head * keys + max_length * width + 4 * keys + 4 * width;
    const int64_t more = config->d_head * keys + 3 * max_length * width + 4 * keys + 4 * width;
    return asp_round_up(forward + (backward ? more : 0), 16) + 64;
}

int64_t asp_attention_cache(const asp_config *config, int64_t room) {
    const int64_t keys = asp_round_up(room + 4, ASP_LANES), width = asp_round_up(config->d_head, ASP_LANES);
    return asp_round_up(config->d_head * keys + room * width, 16);
}

static asp_real score_scale(const asp_config *c, int64_t layer) {
    double scale = c->scale_attn ? 1.0 / sqrt((double)c->d_head) : 1.0;
    if (c->scale_by_inverse_layer) scale /= (double)(layer + 1);
    return (asp_real)scale;
}

/* What forward and backward share: the inputs, the gate and the square blocks of one head. */
static asp_attention_task describe_head(const attention_job *job, int64_t sequence, int64_t head, int thread) {
    const asp_config *c = &job->model->config;
    const asp_activations *acts = job->acts;
    const asp_gate *gate = job->gate;
    const int64_t width = c->n_head * c->d_head, row = acts->offsets[sequence], layer = job->layer;
    const int64_t first = acts->first ? acts->first[sequence] : 0;
    const int64_t t = first + acts->offsets[sequence + 1] - row;
    const asp_real *qkv = acts->qkv.data + layer * acts->qkv.stride + row * 3 * width + head * c->d_head;
    asp_attention_task u = {.q = qkv,
                            .k = qkv + width,
                            .v = qkv + 2 * width,
                            .stride = 3 * width,
                            .n_tokens = t,
                            .d_head = c->d_head,
                            .first = first,
                            .scale = score_scale(c, layer),
                            .cut = c->window || c->top_k || c->min_weight > 0,
                            .window = c->window,
                            .top_k = c->top_k,
                            .min_weight = (asp_real)c->min_weight,
                            .gated = gate->gated,
                            .noisy = gate->noisy,
                            .straight_through = gate->straight_through,
                            .self_closed = c->self_closed,
                            .gate_bias = (asp_real)gate->bias[layer],
                            .z_stride = width};
    u.z = acts->z.data + layer * acts->z.stride + row * width + head * c->d_head;
    if (acts->cache) {
        u.cache = asp_kv_cache_at(acts->cache, layer, sequence, head);
        u.room = acts->cache->room[sequence];
    }
    if (acts->lse.data) u.lse = acts->lse.data + layer * acts->lse.stride + head * acts->n_tokens + row;
    if (gate->noisy) {
        const uint64_t words[] = {gate->step, gate->first_sequence + (uint64_t)sequence, (uint64_t)layer,
                                  (uint64_t)head};
        u.noise_key = asp_noise_key(gate->seed, words, 4);
    }
    if (acts->dropout) asp_dropout_attention(acts->dropout, sequence, layer, head, &u);
    if (gate->held) u.held_gate = gate->held[sequence] + (layer * c->n_head + head) * t * t;
    u.scratch = job->scratch->data + thread * job->scratch->per_thread;
    return u;
}

asp_attention_task asp_attention_describe(const asp_model *model, const asp_activations *acts, int64_t layer,
                                          const asp_gate *gate, const asp_scratch *scratch, int64_t sequence,
                                          int64_t head, int thread) {
    const attention_job job = {.model = model, .acts = acts, .gate = gate, .scratch = scratch, .layer = layer};
    return describe_head(&job, sequence, head, thread);
}

/* Entries of the rows that a sequence has in this pass, of one head. */
static int64_t square_size(const asp_activations *acts, int64_t sequence) {
    const int64_t t = acts->offsets[sequence + 1] - acts->offsets[sequence];
    return t * (t + (acts->first ? acts->first[sequence] : 0));
}

static int64_t square_at(const attention_job *job, int64_t sequence, int64_t head) {
    const int64_t unit = job->layer * job->model->config.n_head + head;
    return job->acts->square_start[sequence] + unit * square_size(job->acts, sequence);
}

/* Where the scores, gates or pattern of one head are in acts. */
static int64_t recorded_at(const attention_job *job, asp_place place, int64_t sequence, int64_t head) {
    if (!(job->acts->layer_squares >> place & 1)) return square_at(job, sequence, head);
    return job->acts->square_start[sequence] / asp_layers_of(job->model, job->acts) +
           head * square_size(job->acts, sequence);
}

/* What is recorded of one head, and what visitors have made of it. */
static void point_records(const attention_job *job, asp_attention_task *u, int64_t sequence, int64_t head) {
    const asp_activations *acts = job->acts;
    if (acts->scores) {
        asp_real *scores = acts->scores + recorded_at(job, ASP_AT_SCORES, sequence, head);
        if (job->given >> ASP_AT_SCORES & 1) u->given_scores = scores;
        else u->scores = scores;
    }
    if (acts->gate) {
        uint8_t *gate = acts->gate + recorded_at(job, ASP_AT_GATE, sequence, head);
        if (job->given >> ASP_AT_GATE & 1) {
            u->gated = 1;
            u->held_gate = gate;
        } else {
            u->gate = gate;
        }
    }
    if (acts->pattern) {
        asp_real *pattern = acts->pattern + recorded_at(job, ASP_AT_PATTERN, sequence, head);
        if (job->given >> ASP_AT_PATTERN & 1) u->given_pattern = pattern;
        u->pattern = pattern; /* dropped entries leave also what visitors made of it */
    }
}

static void forward_item(void *arg, int64_t item, int thread) {
    const attention_job *job = arg;
    const asp_activations *acts = job->acts;
    const int64_t n_head = job->model->config.n_head, sequence = item / n_head, head = item % n_head;
    if (acts->offsets[sequence] == acts->offsets[sequence + 1]) return; /* nothing of it is in this pass */
    asp_attention_task u = describe_head(job, sequence, head, thread);
    point_records(job, &u, sequence, head);
    if (job->early) {
        u.z = NULL;
    } else if (acts->edges) {
        asp_layer_edges *edges = &acts->edges->layers[job->layer];
        const int64_t row = n_head * acts->offsets[sequence] + head * u.n_tokens;
        u.edge_threshold = (asp_real)acts->edges->threshold;
        if (job->fill_edges) {
            u.edge_start = edges->start + row;
            u.edge_key = edges->key;
            u.edge_weight = edges->weight;
            u.z = NULL;
            u.lse = NULL;
            u.pattern = u.scores = NULL;
            u.gate = NULL;
        } else {
            u.edge_count = edges->start + row + 1;
        }
    }
    const asp_hooks *hooks = acts->hooks;
    if (hooks && hooks->attention) hooks->attention(hooks->state, &u, job->layer, sequence, head, thread);
    else asp_isa_kernels()->attention_forward(&u);
}

/* Computes what visitors want to see, one after the other, since each depends on what became of the one before. */
static asp_status show_squares(attention_job *job, const asp_context *context) {
    static const asp_place places[] = {ASP_AT_SCORES, ASP_AT_GATE, ASP_AT_PATTERN};
    const asp_config *c = &job->model->config;
    asp_status status = ASP_OK;
    for (int i = 0; !status && i < 3; i++) {
        if (!asp_visit_wanted(job->acts, places[i], job->layer)) continue;
        job->early = 1;
        status = asp_parallel_for(context, job->acts->n_sequences * c->n_head, forward_item, job);
        if (!status)
            status = asp_visit_squares(job->acts, places[i], job->layer, asp_layers_of(job->model, job->acts), context);
        job->given |= 1u << places[i];
    }
    job->early = 0;
    return status;
}

asp_status asp_attention_forward(const asp_model *model, const asp_activations *acts, int64_t layer,
                                 const asp_gate *gate, const asp_scratch *scratch, const asp_context *context) {
    attention_job job = {.model = model, .acts = acts, .gate = gate, .scratch = scratch, .layer = layer};
    const int64_t n = acts->n_sequences * model->config.n_head;
    asp_status status = show_squares(&job, context);
    if (!status) status = asp_parallel_for(context, n, forward_item, &job);
    if (status || !acts->edges) return status;
    status = asp_edges_count_done(acts->edges, layer, context->err);
    if (status) return status;
    job.fill_edges = 1;
    return asp_parallel_for(context, n, forward_item, &job);
}

static void backward_item(void *arg, int64_t item, int thread) {
    const attention_job *job = arg;
    const asp_config *c = &job->model->config;
    const asp_activation_gradients *grads = job->grads;
    const int64_t sequence = item / c->n_head, head = item % c->n_head, width = c->n_head * c->d_head;
    const int64_t row = job->acts->offsets[sequence];
    asp_attention_task u = describe_head(job, sequence, head, thread);
    u.dz = grads->z.data + job->layer * grads->z.stride + row * width + head * c->d_head;
    u.dz_stride = width;
    u.dq = grads->qkv.data + job->layer * grads->qkv.stride + row * 3 * width + head * c->d_head;
    u.dk = u.dq + width;
    u.dv = u.dq + 2 * width;
    for (int kind = 0; job->gate->edge_coefficient && kind < ASP_N_ENTRY_KINDS; kind++) {
        u.edge_coefficient[kind] = (asp_real)job->gate->edge_coefficient[job->layer * ASP_N_ENTRY_KINDS + kind];
        u.priced |= u.edge_coefficient[kind] != 0;
    }
    if (grads->pattern || grads->scores) {
        const int64_t at = square_at(job, sequence, head);
        if (grads->pattern) u.dpattern = grads->pattern + at;
        if (grads->scores) u.dscores = grads->scores + at;
    }
    if (grads->edge_sums) {
        u.edge_sums = grads->edge_sums + ASP_N_ENTRY_KINDS * item;
        memset(u.edge_sums, 0, ASP_N_ENTRY_KINDS * sizeof *u.edge_sums);
    }
    asp_isa_kernels()->attention_backward(&u);
}

asp_status asp_attention_backward(const asp_model *model, const asp_activations *acts,
                                  const asp_activation_gradients *grads, int64_t layer, const asp_gate *gate,
                                  const asp_scratch *scratch, const asp_context *context) {
    attention_job job = {
        .model = model, .acts = acts, .grads = grads, .gate = gate, .scratch = scratch, .layer = layer};
    return asp_parallel_for(context, acts->n_sequences * model->config.n_head, backward_item, &job);
}

/* ---- scores of chosen entries ---------------------------------------------------------- */

typedef struct {
    const asp_config *config;
    asp_array qkv;
    const int64_t *layer, *head, *query, *key; /* (n) */
    int64_t n, per_thread;
    asp_real *scores, *scratch;
} entries_job;

enum { ENTRIES_PER_ITEM = 1024 };

/* Scores of the entry's 16-key block are computed as in the forward pass: a 16-token key block. */
static void entries_item(void *arg, int64_t item, int thread) {
    const entries_job *job = arg;
    const asp_config *c = job->config;
    const int64_t width = c->n_head * c->d_head, end = asp_min(job->n, (item + 1) * ENTRIES_PER_ITEM);
    asp_attention_task u = {.stride = 3 * width,
                            .d_head = c->d_head,
                            .n_tokens = 1,
                            .scratch = job->scratch + thread * job->per_thread};
    for (int64_t i = item * ENTRIES_PER_ITEM; i < end; i++) {
        const asp_real *at =
            (const asp_real *)job->qkv.data + job->layer[i] * job->qkv.strides[0] + job->head[i] * c->d_head;
        u.scale = score_scale(c, job->layer[i]);
        u.q = at + job->query[i] * 3 * width;
        u.k = at + job->key[i] * 3 * width + width;
        asp_isa_kernels()->score_row(&u, 0, job->scores + i);
    }
}

static asp_status check_entries(const entries_job *job, const asp_context *context, asp_error *err) {
    const struct {
        const char *name;
        const int64_t *index;
        int64_t limit;
    } lists[] = {{"layer", job->layer, job->config->n_layer},
                 {"head", job->head, job->config->n_head},
                 {"query", job->query, job->qkv.dims[1]},
                 {"key", job->key, job->qkv.dims[1]}};
    for (int64_t i = 0; i < job->n; i++) {
        if (i % ENTRIES_PER_ITEM == 0 && asp_parallel_stopped(context)) return ASP_STOPPED;
        for (int list = 0; list < 4; list++)
            if (lists[list].index[i] < 0 || lists[list].index[i] >= lists[list].limit)
                return asp_fail(err, ASP_BAD_INDEX, "%s %lld is out of range 0..%lld", lists[list].name,
                                (long long)lists[list].index[i], (long long)lists[list].limit - 1);
    }
    return ASP_OK;
}

asp_status asp_attention_entry_scores(const asp_model *model, const asp_run *run, int64_t n, const int64_t *layer,
                                      const int64_t *head, const int64_t *query, const int64_t *key, asp_real *scores,
                                      const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    entries_job job = {.config = &model->config,
                       .qkv = asp_run_array(run, ASP_QKV),
                       .layer = layer,
                       .head = head,
                       .query = query,
                       .key = key,
                       .n = n,
                       .scores = scores,
                       .per_thread = asp_attention_scratch(&model->config, 1, 0)};
    if (!job.qkv.data)
        return asp_fail(err, ASP_BAD_STATE, "this run did not record q, k and v; run again with record=\"attention\"");
    asp_status status = check_entries(&job, context, err);
    if (status) return status;
    job.scratch = asp_allocate(context->n_threads * job.per_thread, sizeof *job.scratch);
    if (!job.scratch) return asp_fail(err, ASP_NO_MEMORY, "no memory for %lld scores", (long long)n);
    status = asp_parallel_for(context, (n + ENTRIES_PER_ITEM - 1) / ENTRIES_PER_ITEM, entries_item, &job);
    asp_release(job.scratch);
    return status;
}
