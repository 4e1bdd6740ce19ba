/* component_exact.c: every component edge replaced alone, and what that does to the metric.
 *
 * Only what comes behind a receiver is computed: its head or MLP, then the layers above, in which many component edges
 * are sequences of one pass: replay.c. */
#include <string.h>

#include "component/component.h"

enum { BLOCK_ROWS = 2048 };

typedef struct {
    asp_replay pass;
    asp_component_setting *setting;
    double *scores;       /* (S,R) added to */
    double *before;       /* (n) the metric of the prompts as they are */
    int64_t begin, end;   /* component edges that are asked */
    int64_t edge, n_done; /* the next one of this block; how many times prompts are done */
    asp_arena arena;      /* of a block */
} exact;

/* ---- memory ------------------------------------------------------------------------------------------- */

enum { PARTS = 19 };

static int64_t lay_out_exact(exact *x, asp_arena_part parts[PARTS], const asp_component_setting *s, int64_t n,
                             int n_threads) {
    const asp_config *c = &s->model->config;
    const int64_t e = c->d_model, width = c->n_head * c->d_head, t = s->longest;
    const int64_t block = asp_shape_rows(s->model, s->offsets[n], 0);
    x->pass.max_rows = asp_max(asp_min(BLOCK_ROWS, 3 * c->n_head * asp_nodes_n_senders(c) * s->offsets[n]), t);
    const int64_t rows = asp_shape_rows(s->model, x->pass.max_rows, 0);
    x->pass.logit_rows = asp_shape_logit_rows(s->model, ASP_LOSS_CHUNK);
    x->pass.scratch.per_thread = asp_attention_scratch(c, t, 0);
    const int64_t logits = asp_metric_needs_all(s->task->metric.kind) ? x->pass.logit_rows : 0;
    /* Skinny products read rows in fours, from any row on. */
    const asp_arena_part list[PARTS] = {ASP_PART(x->pass.changes, asp_nodes_n_senders(c) * block, e),
                                        ASP_PART(x->before, n, 1),
                                        ASP_PART(x->pass.first, n, 1),
                                        ASP_PART(x->pass.variants, x->pass.max_rows, 1),
                                        ASP_PART(x->pass.offsets, x->pass.max_rows + 1, 1),
                                        ASP_PART(x->pass.prompts, x->pass.max_rows, 1),
                                        ASP_PART(x->pass.values, x->pass.max_rows, 1),
                                        ASP_PART(x->pass.x, rows + x->pass.logit_rows, e),
                                        ASP_PART(x->pass.ln, rows + 4, e),
                                        ASP_PART(x->pass.qkv, rows, 3 * width),
                                        ASP_PART(x->pass.z, asp_max(rows, block) + 4, width),
                                        ASP_PART(x->pass.mlp, rows, c->d_mlp),
                                        ASP_PART(x->pass.logits, logits, c->n_vocab),
                                        ASP_PART(x->pass.gate_bias, c->n_layer, 1),
                                        ASP_PART(x->pass.scratch.data, n_threads, x->pass.scratch.per_thread),
                                        ASP_PART(x->pass.rows, n_threads, t),
                                        ASP_PART(x->pass.keys_held, n_threads, t),
                                        ASP_PART(x->pass.z_rows, n_threads, t),
                                        ASP_PART(x->pass.queries, n_threads, t)};
    memcpy(parts, list, sizeof list);
    return asp_arena_lay_out(&x->arena, parts, PARTS);
}

static int64_t exact_bytes(const void *own, const asp_component_setting *s, int64_t n, int n_threads) {
    (void)own;
    exact x = {0};
    asp_arena_part parts[PARTS];
    return lay_out_exact(&x, parts, s, n, n_threads);
}

static asp_status open_exact(exact *x, int n_threads, asp_error *err) {
    const asp_component_setting *s = x->setting;
    asp_arena_part parts[PARTS];
    const int64_t bytes = lay_out_exact(x, parts, s, s->n, n_threads);
    if (!asp_arena_commit(&x->arena, 0))
        return asp_fail(err, ASP_NO_MEMORY,
                        "exact scores of %lld prompts at once need %s, which could not be allocated", (long long)s->n,
                        asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&x->arena, parts, PARTS);
    for (int64_t l = 0; l < s->model->config.n_layer; l++) x->pass.gate_bias[l] = s->model->config.gate_bias;
    return ASP_OK;
}

/* ---- what replaces senders ------------------------------------------------------------------------------- */

typedef struct {
    const exact *x;
    int64_t layer; /* of z and the MLP's output; -1: the input */
} change_job;

static void subtract(asp_real *out, const asp_real *a, const asp_real *b, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = a[i] - b[i];
}

/* The change of the input, or of z (in x->pass.z) and of the MLP's output of a layer, in one prompt. */
static void exact_change_item(void *arg, int64_t b, int thread) {
    (void)thread;
    const change_job *job = arg;
    const asp_component_setting *s = job->x->setting;
    const asp_config *c = &s->model->config;
    const int64_t e = c->d_model, width = c->n_head * c->d_head, first = s->offsets[b], n = s->offsets[b + 1] - first;
    const asp_component_rows *r = &s->replaced, *p = &s->plain;
    if (job->layer < 0) {
        subtract(job->x->pass.changes + first * e, r->resid.data + first * e, p->resid.data + first * e, n * e);
        return;
    }
    const int64_t l = job->layer;
    asp_real *out = job->x->pass.changes + (asp_nodes_mlp(c, l) * s->n_rows + first) * e;
    subtract(job->x->pass.z + first * width, asp_slot_at(r->z, l) + first * width, asp_slot_at(p->z, l) + first * width,
             n * width);
    subtract(out, asp_slot_at(r->resid, l + 1) + first * e, asp_slot_at(r->mid, l) + first * e, n * e);
    const asp_real *behind = asp_slot_at(p->resid, l + 1) + first * e, *mid = asp_slot_at(p->mid, l) + first * e;
    for (int64_t i = 0; i < n * e; i++) out[i] -= behind[i] - mid[i];
}

static asp_status make_changes(exact *x, const asp_context *context) {
    const asp_component_setting *s = x->setting;
    const asp_config *c = &s->model->config;
    change_job job = {x, -1};
    asp_status status = asp_parallel_for(context, s->n, exact_change_item, &job);
    for (job.layer = 0; !status && job.layer < c->n_layer; job.layer++) {
        status = asp_parallel_for(context, s->n, exact_change_item, &job);
        for (int64_t h = 0; !status && h < c->n_head; h++)
            status =
                asp_replay_head_output(s->model, job.layer, h,
                                       x->pass.changes + (asp_nodes_head(c, job.layer) + h) * s->n_rows * c->d_model,
                                       x->pass.z, s->offsets[s->n], 0, context);
    }
    return status;
}

/* Pairs of prompts begin alike. */
static void find_first(exact *x) {
    const asp_component_setting *s = x->setting;
    const asp_prompts *clean = &s->task->clean, *corrupted = &s->task->corrupted;
    for (int64_t b = 0; b < s->n; b++) {
        const int64_t start = clean->offsets[s->first + b], t = s->offsets[b + 1] - s->offsets[b];
        x->pass.first[b] = 0;
        if (s->options.ablation != ASP_COMPONENT_COUNTERFACTUAL) continue;
        while (x->pass.first[b] < t - 1 &&
               clean->tokens[start + x->pass.first[b]] == corrupted->tokens[start + x->pass.first[b]])
            x->pass.first[b]++;
    }
}

/* ---- chunks ----------------------------------------------------------------------------------------------------- */

static asp_status run_chunk(exact *x, asp_replay_kind kind, const asp_context *context) {
    const asp_component_setting *s = x->setting;
    const int64_t n_receivers = asp_nodes_n_receivers(&s->model->config);
    const double sign = s->options.smaller_is_better != s->options.denoising ? 1 : -1;
    if (!x->pass.n) return ASP_OK;
    asp_status status = asp_replay_run(&x->pass, kind, context);
    for (int64_t i = 0; i < x->pass.n; i++) x->pass.prompts[i] = x->pass.variants[i].prompt;
    const asp_hidden_rows rows = {x->pass.x, x->pass.logits, x->pass.logit_rows, &s->metric, x->pass.prompts};
    if (!status) status = asp_component_setting_metric(x->pass.values, s->model, &rows, x->pass.n, context);
    for (int64_t i = 0; !status && i < x->pass.n; i++) {
        const asp_replay_variant *v = &x->pass.variants[i];
        x->scores[v->sender * n_receivers + v->receiver] += sign * (x->pass.values[i] - x->before[v->prompt]);
    }
    if (status) return status;
    x->n_done += x->pass.n;
    x->pass.n = x->pass.n_rows = 0;
    return asp_context_progress(context, s->stage, x->n_done, (x->end - x->begin) * s->task->clean.n_prompts);
}

/* The component edges that are asked into receivers first .. first + n - 1, which are alike and of one layer. */
static asp_status run_receivers(exact *x, asp_replay_kind kind, int64_t first, int64_t n, const asp_context *context) {
    const asp_component_setting *s = x->setting;
    const asp_config *c = &s->model->config;
    const int one = kind == ASP_REPLAY_LOGITS || (kind == ASP_REPLAY_MLP && x->pass.layer == c->n_layer - 1);
    asp_status status = ASP_OK;
    for (int64_t r = first; r < first + n; r++)
        for (int64_t sender = 0; sender < asp_nodes_n_before(c, r); sender++) {
            const int64_t edge = x->edge++;
            if (edge < x->begin || edge >= x->end) continue;
            for (int64_t b = 0; !status && b < s->n; b++) {
                const int64_t rows = one ? 1 : s->offsets[b + 1] - s->offsets[b] - x->pass.first[b];
                if (x->pass.n_rows + rows > x->pass.max_rows) status = run_chunk(x, kind, context);
                x->pass.variants[x->pass.n] = (asp_replay_variant){r, sender, b};
                x->pass.offsets[x->pass.n++] = x->pass.n_rows;
                x->pass.n_rows += rows;
                x->pass.offsets[x->pass.n] = x->pass.n_rows;
            }
        }
    return status ? status : run_chunk(x, kind, context);
}

/* The metric of the prompts as they are. */
static asp_status measure_before(exact *x, const asp_context *context) {
    const asp_component_setting *s = x->setting;
    const asp_model *m = s->model;
    const int64_t e = m->config.d_model;
    const asp_real *resid = asp_slot_at(s->plain.resid, m->config.n_layer);
    asp_status status = ASP_OK;
    for (int64_t first = 0; !status && first < s->n; first += BLOCK_ROWS) {
        const int64_t n = asp_min(BLOCK_ROWS, s->n - first);
        for (int64_t i = 0; i < n; i++) {
            x->pass.prompts[i] = first + i;
            memcpy(x->pass.x + i * e, resid + (s->offsets[first + i + 1] - 1) * e, (size_t)e * sizeof *resid);
        }
        const asp_activations acts = asp_replay_over(&x->pass, n, x->pass.x, x->pass.x);
        const asp_hidden_rows rows = {x->pass.x, x->pass.logits, x->pass.logit_rows, &s->metric, x->pass.prompts};
        status = asp_forward_final(m, &acts, context);
        if (!status) status = asp_component_setting_metric(x->before + first, m, &rows, n, context);
    }
    return status;
}

static asp_status run_exact_block(exact *x, const asp_context *context, asp_error *err) {
    const asp_config *c = &x->setting->model->config;
    asp_status status = open_exact(x, context->n_threads, err);
    if (!status) status = asp_blas_enter(context, err);
    const int entered = !status;
    x->pass.n = x->pass.n_rows = x->edge = 0;
    if (entered) find_first(x);
    if (!status) status = make_changes(x, context);
    if (!status) status = measure_before(x, context);
    for (x->pass.layer = 0; !status && x->pass.layer < c->n_layer; x->pass.layer++) {
        status = run_receivers(x, ASP_REPLAY_HEADS, asp_nodes_qkv(c, x->pass.layer), 3 * c->n_head, context);
        if (!status) status = run_receivers(x, ASP_REPLAY_MLP, asp_nodes_mlp_input(c, x->pass.layer), 1, context);
    }
    if (!status) status = run_receivers(x, ASP_REPLAY_LOGITS, asp_nodes_n_receivers(c) - 1, 1, context);
    if (entered) asp_blas_leave();
    asp_arena_free(&x->arena);
    return status;
}

/* All blocks of prompts. */
static asp_status run_exact(exact *x, const asp_context *context, asp_error *err) {
    asp_component_setting *s = x->setting;
    asp_status status = asp_context_progress(context, s->stage, 0, (x->end - x->begin) * s->task->clean.n_prompts);
    if (!status) status = asp_component_setting_next(s, context, err);
    while (!status && s->n) {
        status = run_exact_block(x, context, err);
        if (!status) status = asp_component_setting_next(s, context, err);
    }
    return status;
}

asp_status asp_component_exact(double *scores, const asp_model *model, const asp_task *task, int64_t begin, int64_t end,
                               const asp_component_options *options, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    const asp_config *c = &model->config;
    const int64_t n_edges = asp_nodes_n_edges(c), n_places = asp_nodes_n_senders(c) * asp_nodes_n_receivers(c);
    if (begin < 0 || begin > end || end > n_edges)
        return asp_fail(err, ASP_BAD_INDEX, "exact: component edges are 0..%lld, got %lld up to before %lld",
                        (long long)n_edges - 1, (long long)begin, (long long)end);
    asp_component_setting s = {.model = model,
                               .task = task,
                               .stage = "exact",
                               .options = *options,
                               .with_base = 1,
                               .n_sent = asp_nodes_n_senders(c),
                               .own_bytes = exact_bytes};
    exact x = {.pass = {.setting = &s}, .setting = &s, .scores = scores, .begin = begin, .end = end};
    asp_status status = asp_component_setting_check(&s, err);
    if (status) return status;
    memset(scores, 0, (size_t)n_places * sizeof *scores);
    status = asp_component_setting_open(&s, &own, err);
    if (!status) status = run_exact(&x, &own, err);
    asp_component_setting_close(&s);
    return status;
}
