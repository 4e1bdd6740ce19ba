/* replay.c: what follows from one receiver whose input was changed: its own head or MLP, and the layers above, for many
 * variants of a few prompts in one pass.
 *
 * Rows before the first position at which anything is changed are those of the run of the prompts as they are; in the last
 * layer only the last position is computed. */
#include <string.h>

#include "component/component.h"

asp_status asp_replay_head_output(const asp_model *m, int64_t layer, int64_t head, asp_real *out, const asp_real *z,
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

/* ---- rows of variants ------------------------------------------------------------------------------------- */

/* Where a pass begins: rows of the plain residual stream, and LayerNorms of the receivers' inputs. */
typedef struct {
    const asp_replay *x;
    const asp_real *plain; /* (R,E) */
    int last_only;         /* a variant has one row, its last */
    asp_layernorm ln;
} begin_job;

static void begin_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const begin_job *job = arg;
    const asp_replay *x = job->x;
    const asp_component_setting *s = x->setting;
    const asp_replay_variant *v = &x->variants[i];
    const int64_t e = job->ln.width, end = s->offsets[v->prompt + 1];
    const int64_t begin = job->last_only ? end - 1 : s->offsets[v->prompt] + x->first[v->prompt];
    for (int64_t from = begin, to = x->offsets[i]; from < end; from++, to++) {
        const asp_real *change = x->changes + (v->sender * s->n_rows + from) * e, *plain = job->plain + from * e;
        for (int64_t j = 0; j < e; j++) x->ln[to * e + j] = plain[j] + change[j];
        asp_isa_kernels()->layernorm_row(&job->ln, to);
    }
}

/* x->ln (rows,E) written: the normalised inputs. */
static asp_status begin_rows(const asp_replay *x, const asp_real *plain, int last_only, int64_t weight, int64_t bias,
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
static void copy_plain(const asp_replay *x, asp_real *to, const asp_real *plain, int last_only) {
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
    const asp_replay *x;
    const asp_activations *acts;
    const asp_gate *gate;
    int64_t layer, begin, end; /* variants */
    int64_t first_head, n_heads, per_item;
    int last_only; /* z of the last position, in row i of the z of variant i */
    int change;    /* z minus the plain z */
} attention_job;

/* One head of one variant. */
static void attend_replayed(const attention_job *job, asp_attention_task *u, int64_t i, int64_t head, int thread) {
    const asp_replay *x = job->x;
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
static void replay_attention_item(void *arg, int64_t item, int thread) {
    const attention_job *job = arg;
    const asp_replay *x = job->x;
    const int64_t head = job->first_head + item % job->n_heads;
    const int64_t begin = job->begin + item / job->n_heads * job->per_item;
    asp_attention_task u =
        asp_attention_describe(x->setting->model, job->acts, job->layer, job->gate, &x->scratch, 0, head, thread);
    for (int64_t i = begin; i < asp_min(begin + job->per_item, job->end); i++) {
        if (i == begin || x->variants[i].prompt != x->variants[i - 1].prompt)
            for (int64_t t = 0; t < x->setting->longest; t++) x->keys_held[thread * x->setting->longest + t] = NULL;
        attend_replayed(job, &u, i, head, thread);
    }
}

static asp_status replay_attention(const asp_replay *x, attention_job *job, const asp_context *context) {
    static const int64_t offsets[2] = {0, 0};
    const asp_config *c = &x->setting->model->config;
    const asp_activations acts = {.n_tokens = x->n_rows, .offsets = offsets, .qkv = {x->qkv, 0}, .z = {x->z, 0}};
    const asp_gate gate = {.gated = c->gated, .bias = x->gate_bias};
    job->x = x;
    job->acts = &acts;
    job->gate = &gate;
    job->per_item = asp_max(1, 256 / x->setting->longest);
    const int64_t items = (job->end - job->begin + job->per_item - 1) / job->per_item;
    return asp_parallel_for(context, items * job->n_heads, replay_attention_item, job);
}

/* ---- the receiver's own layer --------------------------------------------------------------------------------- */

/* q, k and v of one head in the rows of some variants, of which one was patched: x->qkv written. */
static asp_status patched_qkv(const asp_replay *x, int64_t begin, int64_t end, int64_t receiver,
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
static asp_status replay_heads(asp_replay *x, const asp_context *context) {
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
        if (!status) status = replay_attention(x, &job, context);
        if (!status)
            status = asp_replay_head_output(m, l, head, x->x + first * e, x->z + first * c->n_head * c->d_head, rows, 1,
                                            context);
    }
    return status;
}

/* The residual stream behind an MLP whose input was patched, in x->x. */
static asp_status replay_mlp(asp_replay *x, int last_only, const asp_context *context) {
    const asp_component_setting *s = x->setting;
    const asp_model *m = s->model;
    const asp_layer_offsets *o = &m->layers[x->layer];
    const asp_real *mid = asp_slot_at(s->plain.mid, x->layer);
    asp_status status = begin_rows(x, mid, last_only, o->ln2_w, o->ln2_b, context);
    copy_plain(x, x->x, mid, last_only);
    const asp_mlp_rows rows = {.model = m,
                               .layer = x->layer,
                               .n_tokens = x->n_rows,
                               .n_rows = x->n_rows,
                               .x = x->ln,
                               .pre = x->mlp,
                               .post = x->mlp,
                               .out = x->x,
                               .residual = x->x};
    return status ? status : asp_nodes_mlp_output(&rows, context);
}

/* ---- the layers above ---------------------------------------------------------------------------------------- */

asp_activations asp_replay_over(const asp_replay *x, int64_t rows, asp_real *resid, asp_real *ln) {
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
static asp_status run_above(asp_replay *x, const asp_context *context) {
    const asp_model *m = x->setting->model;
    const asp_config *c = &m->config;
    const int64_t e = c->d_model, last = c->n_layer - 1;
    const asp_activations acts = asp_replay_over(x, x->n_rows, x->x, x->ln);
    asp_status status = ASP_OK;
    for (int64_t l = x->layer + 1; !status && l <= last; l++) {
        attention_job job = {.layer = l, .end = x->n, .n_heads = c->n_head, .last_only = l == last};
        status = asp_forward_qkv(m, &acts, l, context);
        if (!status) status = replay_attention(x, &job, context);
        if (status || l == last) break;
        status = asp_forward_output(m, &acts, l, context);
        if (!status) status = asp_forward_mlp(m, &acts, l, context);
    }
    for (int64_t i = 0; i < x->n; i++)
        memcpy(x->ln + i * e, x->x + (x->offsets[i + 1] - 1) * e, (size_t)e * sizeof *x->x);
    const asp_activations ends = asp_replay_over(x, x->n, x->ln, x->x);
    if (!status) status = asp_forward_output(m, &ends, last, context);
    return status ? status : asp_forward_mlp(m, &ends, last, context);
}

asp_status asp_replay_run(asp_replay *x, asp_replay_kind kind, const asp_context *context) {
    const asp_component_setting *s = x->setting;
    const asp_model *m = s->model;
    const int64_t n_layer = m->config.n_layer, e = m->config.d_model;
    const int last = x->layer == n_layer - 1;
    if (kind == ASP_REPLAY_LOGITS) {
        const asp_status status = begin_rows(x, asp_slot_at(s->plain.resid, n_layer), 1, m->lnf_w, m->lnf_b, context);
        memcpy(x->x, x->ln, (size_t)(x->n * e) * sizeof *x->x);
        return status;
    }
    asp_status status = kind == ASP_REPLAY_HEADS ? replay_heads(x, context) : replay_mlp(x, last, context);
    asp_activations acts = asp_replay_over(x, last ? x->n : x->n_rows, x->x, x->ln);
    if (!status && kind == ASP_REPLAY_HEADS) status = asp_forward_mlp(m, &acts, x->layer, context);
    if (status) return status;
    if (!last) {
        status = run_above(x, context);
        acts = asp_replay_over(x, x->n, x->ln, x->x);
    } else acts.ln_final = x->x;
    return status ? status : asp_forward_final(m, &acts, context);
}
