/* component_exact.c: every component edge replaced alone, and what that does to the metric.
 *
 * Only what comes behind a receiver is computed: its head or MLP, then the layers above, in which many component edges
 * are sequences of one pass.  Rows before the first position at which anything is replaced are those of the run of the
 * prompts as they are; in the last layer only the last position is computed. */
#include <string.h>

#include "component/component.h"

enum { BLOCK_ROWS = 2048 };

typedef enum { INTO_HEADS, INTO_MLP, INTO_LOGITS } receiver_kind;

/* One component edge replaced in one prompt. */
typedef struct {
    int64_t receiver, sender, prompt;
} variant;

typedef struct {
    asp_component_setting *setting;
    double *scores;    /* (S,R) added to */
    double *before;    /* (n) the metric of the prompts as they are */
    int64_t n_done;    /* of all component edges times prompts */
    asp_arena arena;   /* of a block */
    asp_real *changes; /* (S,R,E) what replaces a sender minus its output */
    int64_t *first;    /* (n) first position of a prompt at which anything is replaced */
    int64_t max_rows, logit_rows;
    /* The pass of a chunk of variants. */
    int64_t layer, n, n_rows;
    variant *variants; /* (max_rows) */
    int64_t *offsets;  /* (max_rows+1) rows */
    int64_t *prompts;  /* (max_rows) */
    double *values;    /* (max_rows) */
    asp_real *x, *ln, *qkv, *z, *mlp, *logits;
    double *gate_bias; /* (L) */
    asp_scratch scratch;
    const asp_real **rows, **keys_held; /* (n_threads,longest) */
    asp_real **z_rows;
    int64_t *queries;
} exact;

/* ---- memory ------------------------------------------------------------------------------------------- */

enum { PARTS = 19 };

static int64_t lay_out(exact *x, asp_arena_part parts[PARTS], const asp_component_setting *s, int64_t n,
                       int n_threads) {
    const asp_config *c = &s->model->config;
    const int64_t e = c->d_model, width = c->n_head * c->d_head, t = s->longest;
    const int64_t block = asp_shape_rows(s->model, s->offsets[n], 1);
    x->max_rows = asp_max(BLOCK_ROWS, t);
    const int64_t rows = asp_shape_rows(s->model, x->max_rows, 1);
    x->logit_rows = asp_shape_logit_rows(s->model, ASP_LOSS_CHUNK);
    x->scratch.per_thread = asp_attention_scratch(c, t, 0);
    const int64_t logits = asp_metric_needs_all(s->task->metric.kind) ? x->logit_rows : 0;
    /* Skinny products read rows in fours, from any row on. */
    const asp_arena_part list[PARTS] = {ASP_PART(x->changes, asp_nodes_n_senders(c) * block, e),
                                        ASP_PART(x->before, n, 1),
                                        ASP_PART(x->first, n, 1),
                                        ASP_PART(x->variants, x->max_rows, 1),
                                        ASP_PART(x->offsets, x->max_rows + 1, 1),
                                        ASP_PART(x->prompts, x->max_rows, 1),
                                        ASP_PART(x->values, x->max_rows, 1),
                                        ASP_PART(x->x, rows + x->logit_rows, e),
                                        ASP_PART(x->ln, rows + 4, e),
                                        ASP_PART(x->qkv, rows, 3 * width),
                                        ASP_PART(x->z, asp_max(rows, block) + 4, width),
                                        ASP_PART(x->mlp, rows, c->d_mlp),
                                        ASP_PART(x->logits, logits, c->n_vocab),
                                        ASP_PART(x->gate_bias, c->n_layer, 1),
                                        ASP_PART(x->scratch.data, n_threads, x->scratch.per_thread),
                                        ASP_PART(x->rows, n_threads, t),
                                        ASP_PART(x->keys_held, n_threads, t),
                                        ASP_PART(x->z_rows, n_threads, t),
                                        ASP_PART(x->queries, n_threads, t)};
    memcpy(parts, list, sizeof list);
    return asp_arena_lay_out(&x->arena, parts, PARTS);
}

static int64_t own_bytes(const void *own, const asp_component_setting *s, int64_t n, int n_threads) {
    (void)own;
    exact x = {0};
    asp_arena_part parts[PARTS];
    return lay_out(&x, parts, s, n, n_threads);
}

static asp_status open_exact(exact *x, int n_threads, asp_error *err) {
    const asp_component_setting *s = x->setting;
    asp_arena_part parts[PARTS];
    const int64_t bytes = lay_out(x, parts, s, s->n, n_threads);
    if (!asp_arena_commit(&x->arena, 0))
        return asp_fail(err, ASP_NO_MEMORY,
                        "exact scores of %lld prompts at once need %s, which could not be allocated", (long long)s->n,
                        asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&x->arena, parts, PARTS);
    for (int64_t l = 0; l < s->model->config.n_layer; l++) x->gate_bias[l] = s->model->config.gate_bias;
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

/* The change of the input, or of z (in x->z) and of the MLP's output of a layer, in one prompt. */
static void change_item(void *arg, int64_t b, int thread) {
    (void)thread;
    const change_job *job = arg;
    const asp_component_setting *s = job->x->setting;
    const asp_config *c = &s->model->config;
    const int64_t e = c->d_model, width = c->n_head * c->d_head, first = s->offsets[b], n = s->offsets[b + 1] - first;
    const asp_component_rows *r = &s->replaced, *p = &s->plain;
    if (job->layer < 0) {
        subtract(job->x->changes + first * e, r->resid.data + first * e, p->resid.data + first * e, n * e);
        return;
    }
    const int64_t l = job->layer;
    asp_real *out = job->x->changes + (asp_nodes_mlp(c, l) * s->n_rows + first) * e;
    subtract(job->x->z + first * width, asp_slot_at(r->z, l) + first * width, asp_slot_at(p->z, l) + first * width,
             n * width);
    subtract(out, asp_slot_at(r->resid, l + 1) + first * e, asp_slot_at(r->mid, l) + first * e, n * e);
    const asp_real *behind = asp_slot_at(p->resid, l + 1) + first * e, *mid = asp_slot_at(p->mid, l) + first * e;
    for (int64_t i = 0; i < n * e; i++) out[i] -= behind[i] - mid[i];
}

/* C (rows,E) = z (rows,D) of one head W_O, added to C or not; rows of z are the model's width apart. */
static asp_status head_output(const asp_model *m, int64_t layer, int64_t head, asp_real *out, const asp_real *z,
                              int64_t rows, int accumulate, const asp_context *context) {
    const asp_config *c = &m->config;
    const asp_gemm g = {.m = rows,
                        .n = c->d_model,
                        .k = c->d_head,
                        .a = z + head * c->d_head,
                        .lda = c->n_head * c->d_head,
                        .b = m->data + m->layers[layer].proj_w + head * c->d_head * c->d_model,
                        .ldb = c->d_model,
                        .c = out,
                        .ldc = c->d_model,
                        .accumulate = accumulate,
                        .n_rows = rows,
                        .k_block = m->k_block.head};
    return asp_gemm_run(&g, context);
}

static asp_status make_changes(exact *x, const asp_context *context) {
    const asp_component_setting *s = x->setting;
    const asp_config *c = &s->model->config;
    change_job job = {x, -1};
    asp_status status = asp_parallel_for(context, s->n, change_item, &job);
    for (job.layer = 0; !status && job.layer < c->n_layer; job.layer++) {
        status = asp_parallel_for(context, s->n, change_item, &job);
        for (int64_t h = 0; !status && h < c->n_head; h++)
            status = head_output(s->model, job.layer, h,
                                 x->changes + (asp_nodes_head(c, job.layer) + h) * s->n_rows * c->d_model, x->z,
                                 s->offsets[s->n], 0, context);
    }
    return status;
}

/* Pairs of prompts begin alike. */
static void find_first(exact *x) {
    const asp_component_setting *s = x->setting;
    const asp_prompts *clean = &s->task->clean, *corrupted = &s->task->corrupted;
    for (int64_t b = 0; b < s->n; b++) {
        const int64_t start = clean->offsets[s->first + b], t = s->offsets[b + 1] - s->offsets[b];
        x->first[b] = 0;
        if (s->options.ablation != ASP_COMPONENT_COUNTERFACTUAL) continue;
        while (x->first[b] < t - 1 && clean->tokens[start + x->first[b]] == corrupted->tokens[start + x->first[b]])
            x->first[b]++;
    }
}

/* ---- rows of variants ------------------------------------------------------------------------------------- */

/* Where a pass begins: rows of the plain residual stream, and LayerNorms of the receivers' inputs. */
typedef struct {
    const exact *x;
    const asp_real *plain; /* (R,E) */
    int last_only;         /* a variant has one row, its last */
    asp_layernorm ln;
} begin_job;

static void begin_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const begin_job *job = arg;
    const exact *x = job->x;
    const asp_component_setting *s = x->setting;
    const variant *v = &x->variants[i];
    const int64_t e = job->ln.width, end = s->offsets[v->prompt + 1];
    const int64_t begin = job->last_only ? end - 1 : s->offsets[v->prompt] + x->first[v->prompt];
    for (int64_t from = begin, to = x->offsets[i]; from < end; from++, to++) {
        const asp_real *change = x->changes + (v->sender * s->n_rows + from) * e, *plain = job->plain + from * e;
        for (int64_t j = 0; j < e; j++) x->ln[to * e + j] = plain[j] + change[j];
        asp_isa_kernels()->layernorm_row(&job->ln, to);
    }
}

/* x->ln (rows,E) written: the normalised inputs. */
static asp_status begin_rows(const exact *x, const asp_real *plain, int last_only, int64_t weight, int64_t bias,
                             const asp_context *context) {
    const asp_model *m = x->setting->model;
    begin_job job = {x, plain, last_only, {0}};
    job.ln = (asp_layernorm){.x = x->ln,
                             .weight = m->data + weight,
                             .bias = asp_at_const(m->data, bias),
                             .out = x->ln,
                             .width = m->config.d_model,
                             .eps = m->config.ln_eps};
    return asp_parallel_for(context, x->n, begin_item, &job);
}

/* Rows of the plain residual stream, of all rows of the variants or the last one of each. */
static void copy_plain(const exact *x, asp_real *to, const asp_real *plain, int last_only) {
    const asp_component_setting *s = x->setting;
    const int64_t e = s->model->config.d_model;
    for (int64_t i = 0; i < x->n; i++) {
        const int64_t b = x->variants[i].prompt, end = s->offsets[b + 1];
        const int64_t begin = last_only ? end - 1 : s->offsets[b] + x->first[b];
        memcpy(to + (last_only ? i : x->offsets[i]) * e, plain + begin * e, (size_t)((end - begin) * e) * sizeof *to);
    }
}

/* ---- attention -------------------------------------------------------------------------------------------- */

typedef struct {
    const exact *x;
    const asp_activations *acts;
    const asp_gate *gate;
    int64_t layer, begin, end; /* variants */
    int64_t first_head, n_heads, per_item;
    int last_only; /* z of the last position, in row i of the z of variant i */
    int change;    /* z minus the plain z */
} attention_job;

/* One head of one variant. */
static void attend(const attention_job *job, asp_attention_task *u, int64_t i, int64_t head, int thread) {
    const exact *x = job->x;
    const asp_component_setting *s = x->setting;
    const asp_config *c = &s->model->config;
    const int64_t b = x->variants[i].prompt, width = c->n_head * c->d_head, at = thread * s->longest;
    const int64_t first = x->first[b], t = s->offsets[b + 1] - s->offsets[b];
    const asp_real *plain = asp_slot_at(s->plain.qkv, job->layer) + s->offsets[b] * 3 * width + head * c->d_head;
    const asp_real *plain_z = asp_slot_at(s->plain.z, job->layer) + s->offsets[b] * width + head * c->d_head;
    u->n_tokens = t;
    u->rows = x->rows + at;
    u->held = x->keys_held + at;
    u->z_rows = x->z_rows + at;
    u->queries = x->queries + at;
    u->n_queries = 0;
    if (s->held) u->held_gate = s->held[b] + (job->layer * c->n_head + head) * t * t;
    for (int64_t p = 0; p < t; p++)
        x->rows[at + p] = p < first ? plain + p * 3 * width : u->q + (x->offsets[i] + p - first) * u->stride;
    for (int64_t p = job->last_only ? t - 1 : first; p < t; p++) {
        x->queries[at + u->n_queries++] = p;
        x->z_rows[at + p] = u->z + (job->last_only ? i : x->offsets[i] + p - first) * u->z_stride;
    }
    asp_isa_kernels()->attention_rows(u);
    for (int64_t q = 0; job->change && q < u->n_queries; q++) {
        const int64_t p = u->queries[q];
        for (int64_t j = 0; j < c->d_head; j++) u->z_rows[p][j] -= plain_z[p * width + j];
    }
}

/* One head of some variants: neighbours share the keys and values of the rows before those that differ. */
static void attention_item(void *arg, int64_t item, int thread) {
    const attention_job *job = arg;
    const exact *x = job->x;
    const int64_t head = job->first_head + item % job->n_heads;
    const int64_t begin = job->begin + item / job->n_heads * job->per_item;
    asp_attention_task u =
        asp_attention_describe(x->setting->model, job->acts, job->layer, job->gate, &x->scratch, 0, head, thread);
    for (int64_t i = begin; i < asp_min(begin + job->per_item, job->end); i++) {
        if (i == begin || x->variants[i].prompt != x->variants[i - 1].prompt)
            memset(x->keys_held + thread * x->setting->longest, 0, (size_t)x->setting->longest * sizeof *x->keys_held);
        attend(job, &u, i, head, thread);
    }
}

static asp_status run_attention(const exact *x, attention_job *job, const asp_context *context) {
    static const int64_t offsets[2] = {0, 0};
    const asp_config *c = &x->setting->model->config;
    const asp_activations acts = {.n_tokens = x->n_rows, .offsets = offsets, .qkv = {x->qkv, 0}, .z = {x->z, 0}};
    const asp_gate gate = {.gated = c->gated, .bias = x->gate_bias};
    job->x = x;
    job->acts = &acts;
    job->gate = &gate;
    job->per_item = asp_max(1, 256 / x->setting->longest);
    const int64_t items = (job->end - job->begin + job->per_item - 1) / job->per_item;
    return asp_parallel_for(context, items * job->n_heads, attention_item, job);
}

/* ---- the receiver's own layer --------------------------------------------------------------------------------- */

/* q, k and v of one head in the rows of some variants, of which one was patched: x->qkv written. */
static asp_status patched_qkv(const exact *x, int64_t begin, int64_t end, int64_t receiver,
                              const asp_context *context) {
    const asp_component_setting *s = x->setting;
    const asp_model *m = s->model;
    const asp_config *c = &m->config;
    const int64_t e = c->d_model, d = c->d_head, width = c->n_head * d, l = x->layer;
    const int64_t letter = (receiver - asp_nodes_qkv(c, l)) / c->n_head;
    const int64_t head = (receiver - asp_nodes_qkv(c, l)) % c->n_head, column = letter * width + head * d;
    const asp_real *bias = asp_at_const(m->data, m->layers[l].qkv_b);
    for (int64_t i = begin; i < end; i++) {
        const int64_t b = x->variants[i].prompt;
        const asp_real *plain = asp_slot_at(s->plain.qkv, l) + (s->offsets[b] + x->first[b]) * 3 * width + head * d;
        for (int64_t r = x->offsets[i]; r < x->offsets[i + 1]; r++, plain += 3 * width)
            for (int64_t other = 0; other < 3; other++)
                if (other != letter)
                    memcpy(x->qkv + (r * 3 + other) * width + head * d, plain + other * width,
                           (size_t)d * sizeof *plain);
    }
    const int64_t first = x->offsets[begin], rows = x->offsets[end] - first;
    const asp_gemm g = {.m = rows,
                        .n = d,
                        .k = e,
                        .a = x->ln + first * e,
                        .lda = e,
                        .b = m->data + m->layers[l].qkv_w + column,
                        .ldb = 3 * width,
                        .c = x->qkv + first * 3 * width + column,
                        .ldc = 3 * width,
                        .epilogue = ASP_EPILOGUE_BIAS,
                        .bias = bias ? bias + column : NULL,
                        .n_rows = rows,
                        .k_block = m->k_block.model};
    return asp_gemm_run(&g, context);
}

/* The residual stream between attention and MLP, in x->x; in the last layer that of last positions, a row each. */
static asp_status run_heads(exact *x, const asp_context *context) {
    const asp_component_setting *s = x->setting;
    const asp_model *m = s->model;
    const asp_config *c = &m->config;
    const int64_t l = x->layer, e = c->d_model;
    const int last_only = l == c->n_layer - 1;
    asp_status status =
        begin_rows(x, asp_slot_at(s->plain.resid, l), 0, m->layers[l].ln1_w, m->layers[l].ln1_b, context);
    copy_plain(x, x->x, asp_slot_at(s->plain.mid, l), last_only);
    for (int64_t begin = 0, end; !status && begin < x->n; begin = end) {
        const int64_t receiver = x->variants[begin].receiver, head = (receiver - asp_nodes_qkv(c, l)) % c->n_head;
        for (end = begin + 1; end < x->n && x->variants[end].receiver == receiver;) end++;
        attention_job job = {.layer = l,
                             .begin = begin,
                             .end = end,
                             .first_head = head,
                             .n_heads = 1,
                             .last_only = last_only,
                             .change = 1};
        const int64_t first = last_only ? begin : x->offsets[begin];
        const int64_t rows = last_only ? end - begin : x->offsets[end] - first;
        status = patched_qkv(x, begin, end, receiver, context);
        if (!status) status = run_attention(x, &job, context);
        if (!status)
            status = head_output(m, l, head, x->x + first * e, x->z + first * c->n_head * c->d_head, rows, 1, context);
    }
    return status;
}

/* The residual stream behind an MLP whose input was patched, in x->x. */
static asp_status run_mlp(exact *x, int last_only, const asp_context *context) {
    const asp_component_setting *s = x->setting;
    const asp_model *m = s->model;
    const asp_config *c = &m->config;
    const asp_layer_offsets *o = &m->layers[x->layer];
    const asp_real *mid = asp_slot_at(s->plain.mid, x->layer);
    asp_status status = begin_rows(x, mid, last_only, o->ln2_w, o->ln2_b, context);
    copy_plain(x, x->x, mid, last_only);
    const asp_gemm in = {.m = x->n_rows,
                         .n = c->d_mlp,
                         .k = c->d_model,
                         .a = x->ln,
                         .lda = c->d_model,
                         .b = m->data + o->fc_w,
                         .ldb = c->d_mlp,
                         .c = x->mlp,
                         .ldc = c->d_mlp,
                         .epilogue = ASP_EPILOGUE_BIAS_ACT,
                         .bias = asp_at_const(m->data, o->fc_b),
                         .out2 = x->mlp,
                         .activation = c->activation,
                         .n_rows = x->n_rows,
                         .k_block = m->k_block.model};
    const asp_gemm out = {.m = x->n_rows,
                          .n = c->d_model,
                          .k = c->d_mlp,
                          .a = x->mlp,
                          .lda = c->d_mlp,
                          .b = m->data + o->out_w,
                          .ldb = c->d_model,
                          .c = x->x,
                          .ldc = c->d_model,
                          .epilogue = ASP_EPILOGUE_RESIDUAL,
                          .bias = asp_at_const(m->data, o->out_b),
                          .residual = x->x,
                          .n_rows = x->n_rows,
                          .k_block = m->k_block.mlp};
    if (!status) status = asp_gemm_run(&in, context);
    return status ? status : asp_gemm_run(&out, context);
}

/* ---- the layers above ---------------------------------------------------------------------------------------- */

/* A pass over so many rows whose residual stream is x and whose LayerNorms go to ln. */
static asp_activations pass_over(const exact *x, int64_t rows, asp_real *resid, asp_real *ln) {
    return (asp_activations){.n_tokens = rows,
                             .n_rows = asp_shape_rows(x->setting->model, rows, 0),
                             .resid = {resid, 0},
                             .mid = {resid, 0},
                             .ln1 = {ln, 0},
                             .ln2 = {ln, 0},
                             .qkv = {x->qkv, 0},
                             .z = {x->z, 0},
                             .mlp_post = {x->mlp, 0},
                             .ln_final = ln};
}

/* From the residual stream behind a layer, in x->x, to that behind the last one: of last positions, a row each, in
 * x->ln. */
static asp_status run_above(exact *x, const asp_context *context) {
    const asp_model *m = x->setting->model;
    const asp_config *c = &m->config;
    const int64_t e = c->d_model, last = c->n_layer - 1;
    const asp_activations acts = pass_over(x, x->n_rows, x->x, x->ln);
    asp_status status = ASP_OK;
    for (int64_t l = x->layer + 1; !status && l <= last; l++) {
        attention_job job = {.layer = l, .end = x->n, .n_heads = c->n_head, .last_only = l == last};
        status = asp_forward_qkv(m, &acts, l, context);
        if (!status) status = run_attention(x, &job, context);
        if (status || l == last) break;
        status = asp_forward_output(m, &acts, l, context);
        if (!status) status = asp_forward_mlp(m, &acts, l, context);
    }
    for (int64_t i = 0; i < x->n; i++)
        memcpy(x->ln + i * e, x->x + (x->offsets[i + 1] - 1) * e, (size_t)e * sizeof *x->x);
    const asp_activations ends = pass_over(x, x->n, x->ln, x->x);
    if (!status) status = asp_forward_output(m, &ends, last, context);
    return status ? status : asp_forward_mlp(m, &ends, last, context);
}

/* Final LayerNorms (n,E) of the variants, in x->x. */
static asp_status run_to_end(exact *x, receiver_kind kind, const asp_context *context) {
    const asp_component_setting *s = x->setting;
    const asp_model *m = s->model;
    const int64_t n_layer = m->config.n_layer, e = m->config.d_model;
    const int last = x->layer == n_layer - 1;
    if (kind == INTO_LOGITS) {
        const asp_status status = begin_rows(x, asp_slot_at(s->plain.resid, n_layer), 1, m->lnf_w, m->lnf_b, context);
        memcpy(x->x, x->ln, (size_t)(x->n * e) * sizeof *x->x);
        return status;
    }
    asp_status status = kind == INTO_HEADS ? run_heads(x, context) : run_mlp(x, last, context);
    asp_activations acts = pass_over(x, last ? x->n : x->n_rows, x->x, x->ln);
    if (!status && kind == INTO_HEADS) status = asp_forward_mlp(m, &acts, x->layer, context);
    if (status) return status;
    if (!last) {
        status = run_above(x, context);
        acts = pass_over(x, x->n, x->ln, x->x);
    } else acts.ln_final = x->x;
    return status ? status : asp_forward_final(m, &acts, context);
}

/* ---- chunks ----------------------------------------------------------------------------------------------------- */

static asp_status run_chunk(exact *x, receiver_kind kind, const asp_context *context) {
    const asp_component_setting *s = x->setting;
    const int64_t n_receivers = asp_nodes_n_receivers(&s->model->config), n_prompts = s->task->clean.n_prompts;
    const double sign = s->options.smaller_is_better != s->options.denoising ? 1 : -1;
    if (!x->n) return ASP_OK;
    asp_status status = run_to_end(x, kind, context);
    for (int64_t i = 0; i < x->n; i++) x->prompts[i] = x->variants[i].prompt;
    const asp_hidden_rows rows = {x->x, x->logits, x->logit_rows, &s->metric, x->prompts};
    if (!status) status = asp_component_setting_metric(x->values, s->model, &rows, x->n, context);
    for (int64_t i = 0; !status && i < x->n; i++) {
        const variant *v = &x->variants[i];
        x->scores[v->sender * n_receivers + v->receiver] +=
            sign * (x->values[i] - x->before[v->prompt]) / (double)n_prompts;
    }
    x->n_done += x->n;
    x->n = x->n_rows = 0;
    return status
               ? status
               : asp_context_progress(context, s->stage, x->n_done, asp_nodes_n_edges(&s->model->config) * n_prompts);
}

/* All component edges into the receivers first .. first + n - 1, which are alike and of one layer. */
static asp_status run_receivers(exact *x, receiver_kind kind, int64_t first, int64_t n, const asp_context *context) {
    const asp_component_setting *s = x->setting;
    const asp_config *c = &s->model->config;
    const int one = kind == INTO_LOGITS || (kind == INTO_MLP && x->layer == c->n_layer - 1);
    asp_status status = ASP_OK;
    for (int64_t r = first; r < first + n; r++)
        for (int64_t sender = 0; sender < asp_nodes_n_before(c, r); sender++)
            for (int64_t b = 0; !status && b < s->n; b++) {
                const int64_t rows = one ? 1 : s->offsets[b + 1] - s->offsets[b] - x->first[b];
                if (x->n_rows + rows > x->max_rows) status = run_chunk(x, kind, context);
                x->variants[x->n] = (variant){r, sender, b};
                x->offsets[x->n++] = x->n_rows;
                x->n_rows += rows;
                x->offsets[x->n] = x->n_rows;
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
            x->prompts[i] = first + i;
            memcpy(x->x + i * e, resid + (s->offsets[first + i + 1] - 1) * e, (size_t)e * sizeof *resid);
        }
        const asp_activations acts = pass_over(x, n, x->x, x->x);
        const asp_hidden_rows rows = {x->x, x->logits, x->logit_rows, &s->metric, x->prompts};
        status = asp_forward_final(m, &acts, context);
        if (!status) status = asp_component_setting_metric(x->before + first, m, &rows, n, context);
    }
    return status;
}

static asp_status run_block(exact *x, const asp_context *context, asp_error *err) {
    const asp_config *c = &x->setting->model->config;
    asp_status status = open_exact(x, context->n_threads, err);
    if (!status) status = asp_blas_enter(context, err);
    const int entered = !status;
    x->n = x->n_rows = 0;
    if (entered) find_first(x);
    if (!status) status = make_changes(x, context);
    if (!status) status = measure_before(x, context);
    for (x->layer = 0; !status && x->layer < c->n_layer; x->layer++) {
        status = run_receivers(x, INTO_HEADS, asp_nodes_qkv(c, x->layer), 3 * c->n_head, context);
        if (!status) status = run_receivers(x, INTO_MLP, asp_nodes_mlp_input(c, x->layer), 1, context);
    }
    if (!status) status = run_receivers(x, INTO_LOGITS, asp_nodes_n_receivers(c) - 1, 1, context);
    if (entered) asp_blas_leave();
    asp_arena_free(&x->arena);
    return status;
}

asp_status asp_component_exact(double *scores, const asp_model *model, const asp_task *task,
                               const asp_component_options *options, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    const asp_config *c = &model->config;
    const int64_t places = asp_nodes_n_senders(c) * asp_nodes_n_receivers(c);
    asp_component_setting s = {.model = model,
                               .task = task,
                               .stage = "exact",
                               .options = *options,
                               .with_base = 1,
                               .n_sent = asp_nodes_n_senders(c),
                               .own_bytes = own_bytes};
    exact x = {.setting = &s, .scores = scores};
    asp_status status = asp_component_setting_check(&s, err);
    if (status) return status;
    memset(scores, 0, (size_t)places * sizeof *scores);
    status = asp_component_setting_open(&s, &own, err);
    if (!status) status = asp_context_progress(&own, s.stage, 0, asp_nodes_n_edges(c) * task->clean.n_prompts);
    if (!status) status = asp_component_setting_next(&s, &own, err);
    while (!status && s.n) {
        status = run_block(&x, &own, err);
        if (!status) status = asp_component_setting_next(&s, &own, err);
    }
    asp_component_setting_close(&s);
    return status;
}
