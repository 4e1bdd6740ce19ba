/* soft.c: one pass over a block of prompts, forward and backward, in which component edges carry shares.
 *
 * A receiver's input is the residual stream with every sender ablated plus, for each sender before it, the share times
 * the change of that sender: its current output minus its ablated one.  So the inputs of a layer's receivers are one
 * product of shares and changes; backwards, what flows into the changes is the same product with the gradients of the
 * inputs, and the gradient of a share is that of the input times the change, added up over positions: one product for
 * each prompt, whose results are added in float64 in the order of the prompts.  No gradient goes through a gate. */
#include <string.h>

#include "component/component.h"

enum { ROWS_PER_ITEM = 16 };

asp_status asp_soft_check(asp_component_setting *s, asp_error *err) {
    const asp_metric *metric = &s->task->metric;
    const asp_status status = asp_component_setting_check(s, err);
    if (status || metric->kind != ASP_CUSTOM || metric->custom->gradient) return status;
    return asp_fail(err, ASP_BAD_ARGUMENT, "%s: the gradient of the metric is needed, and this one has none", s->stage);
}

/* ---- memory ------------------------------------------------------------------------------------------- */

enum { PARTS = 21 };

static int64_t lay_out_soft(asp_soft *p, asp_arena_part parts[PARTS], int64_t n, int n_threads) {
    const asp_component_setting *s = p->setting;
    const asp_config *c = &s->model->config;
    const int64_t e = c->d_model, width = c->n_head * c->d_head, l = c->n_layer, n_tokens = s->offsets[n];
    const int64_t senders = asp_nodes_n_senders(c), rows = asp_shape_rows(s->model, n_tokens, 0);
    p->logit_rows = asp_shape_logit_rows(s->model, asp_min(n, ASP_LOSS_CHUNK));
    p->scratch.per_thread = asp_attention_scratch(c, s->longest, 1);
    const asp_arena_part list[PARTS] = {ASP_PART(p->shares, senders, asp_nodes_n_receivers(c)),
                                        ASP_PART(p->changes, senders * e, rows),
                                        ASP_PART(p->dchanges, senders * e, rows),
                                        ASP_PART(p->inputs, 3 * c->n_head * e, rows),
                                        ASP_PART(p->dinputs, 3 * c->n_head * e, rows),
                                        ASP_PART(p->scale, 3 * c->n_head, rows),
                                        ASP_PART(p->dout, e, rows),
                                        ASP_PART(p->qkv, l * 3 * width, rows),
                                        ASP_PART(p->z, l * width, rows),
                                        ASP_PART(p->lse, l * c->n_head, n_tokens),
                                        ASP_PART(p->pre, l * c->d_mlp, rows),
                                        ASP_PART(p->mlp, c->d_mlp, rows),
                                        ASP_PART(p->dqkv, 3 * width, rows),
                                        ASP_PART(p->heads, width, rows),
                                        ASP_PART(p->last, 4 * p->logit_rows, e),
                                        ASP_PART(p->logits, p->logit_rows, c->n_vocab),
                                        ASP_PART(p->dlogits, p->logit_rows, c->n_vocab),
                                        ASP_PART(p->partial, (int64_t)2 * ASP_LN_CHUNKS, e),
                                        ASP_PART(p->parts, senders, 3 * c->n_head),
                                        ASP_PART(p->gate_bias, l, 1),
                                        ASP_PART(p->scratch.data, n_threads, p->scratch.per_thread)};
    memcpy(parts, list, sizeof list);
    p->arena = (asp_arena){0};
    return asp_arena_lay_out(&p->arena, parts, PARTS);
}

int64_t asp_soft_needed(const asp_component_setting *setting, int64_t n, int n_threads) {
    asp_soft p = {.setting = setting};
    asp_arena_part parts[PARTS];
    return lay_out_soft(&p, parts, n, n_threads);
}

asp_status asp_soft_open(asp_soft *p, int n_threads, asp_error *err) {
    const asp_component_setting *s = p->setting;
    asp_arena_part parts[PARTS];
    const int64_t bytes = lay_out_soft(p, parts, s->n, n_threads);
    if (!asp_arena_commit(&p->arena, 1))
        return asp_fail(err, ASP_NO_MEMORY,
                        "%s: no memory for the senders and receivers of %lld prompts, which take %s", s->stage,
                        (long long)s->n, asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&p->arena, parts, PARTS);
    p->n_tokens = s->offsets[s->n];
    p->n_rows = asp_shape_rows(s->model, p->n_tokens, 0);
    for (int64_t l = 0; l < s->model->config.n_layer; l++) p->gate_bias[l] = s->model->config.gate_bias;
    return ASP_OK;
}

/* ---- receivers ---------------------------------------------------------------------------------------- */

static asp_soft_group group_of_logits(const asp_soft *p) {
    const asp_component_setting *s = p->setting;
    const asp_model *m = s->model;
    const asp_config *c = &m->config;
    return (asp_soft_group){asp_nodes_n_receivers(c) - 1,
                            1,
                            asp_nodes_n_senders(c),
                            asp_slot_at(s->replaced.resid, c->n_layer),
                            m->lnf_w,
                            m->lnf_b};
}

typedef struct {
    const asp_soft *soft;
    const asp_soft_group *group;
    int64_t chunks; /* of rows */
} mix_job;

static void add_ablated(void *arg, int64_t item, int thread) {
    (void)thread;
    const mix_job *job = arg;
    const asp_soft *p = job->soft;
    const int64_t e = p->setting->model->config.d_model, receiver = item / job->chunks;
    const int64_t row = item % job->chunks * ROWS_PER_ITEM, rows = asp_min(ROWS_PER_ITEM, p->n_tokens - row);
    asp_isa_kernels()->add(p->inputs + (receiver * p->n_rows + row) * e, job->group->ablated + row * e, rows * e);
}

asp_status asp_soft_mix(const asp_soft *p, const asp_soft_group *group, const asp_context *context) {
    const asp_config *c = &p->setting->model->config;
    const int64_t size = p->n_rows * c->d_model;
    const asp_gemm g = {.trans_a = 1,
                        .m = group->n,
                        .n = size,
                        .k = group->n_senders,
                        .a = p->shares + group->first,
                        .lda = asp_nodes_n_receivers(c),
                        .b = p->changes,
                        .ldb = size,
                        .c = p->inputs,
                        .ldc = size,
                        .n_rows = group->n};
    mix_job job = {p, group, (p->n_tokens + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM};
    const asp_status status = asp_gemm_run(&g, context);
    return status ? status : asp_parallel_for(context, group->n * job.chunks, add_ablated, &job);
}

asp_status asp_soft_norm(const asp_soft *p, const asp_soft_group *group, int in_place, const asp_context *context) {
    const asp_model *m = p->setting->model;
    const asp_layernorm ln = {.x = p->inputs,
                              .weight = m->data + group->weight,
                              .bias = asp_at_const(m->data, group->bias),
                              .out = in_place ? p->inputs : NULL,
                              .scale = in_place ? NULL : p->scale,
                              .n = group->n * p->n_rows,
                              .width = m->config.d_model,
                              .eps = m->config.ln_eps};
    return asp_layernorm_forward(&ln, context);
}

asp_status asp_soft_norm_backward(const asp_soft *p, const asp_soft_group *group, int64_t i,
                                  const asp_context *context) {
    const asp_model *m = p->setting->model;
    const int64_t size = p->n_rows * m->config.d_model;
    const asp_layernorm_backward_job job = {.dx = p->dinputs + i * size,
                                            .dout = p->dout,
                                            .x = p->inputs + i * size,
                                            .weight = m->data + group->weight,
                                            .scale = p->scale + i * p->n_rows,
                                            .partial = p->partial,
                                            .n = p->n_tokens,
                                            .width = m->config.d_model};
    memset(job.dx, 0, (size_t)size * sizeof *job.dx);
    return asp_layernorm_backward(&job, context);
}

asp_status asp_soft_add(const asp_soft *p, const asp_soft_group *group, double *gradient, double weight,
                        const asp_context *context) {
    const asp_component_setting *s = p->setting;
    const asp_config *c = &s->model->config;
    const int64_t e = c->d_model, n_receivers = asp_nodes_n_receivers(c), size = p->n_rows * e;
    for (int64_t b = 0; b < s->n; b++) {
        const asp_gemm g = {.trans_b = 1,
                            .m = group->n_senders,
                            .n = group->n,
                            .k = (s->offsets[b + 1] - s->offsets[b]) * e,
                            .a = p->changes + s->offsets[b] * e,
                            .lda = size,
                            .b = p->dinputs + s->offsets[b] * e,
                            .ldb = size,
                            .c = p->parts,
                            .ldc = group->n,
                            .n_rows = group->n_senders};
        const asp_status status = asp_gemm_run(&g, context);
        if (status) return status;
        for (int64_t u = 0; u < group->n_senders; u++)
            for (int64_t i = 0; i < group->n; i++)
                gradient[u * n_receivers + group->first + i] += weight * (double)p->parts[u * group->n + i];
    }
    const asp_gemm to_changes = {.m = group->n_senders,
                                 .n = size,
                                 .k = group->n,
                                 .a = p->shares + group->first,
                                 .lda = n_receivers,
                                 .b = p->dinputs,
                                 .ldb = size,
                                 .c = p->dchanges,
                                 .ldc = size,
                                 .accumulate = 1,
                                 .n_rows = group->n_senders};
    return asp_gemm_run(&to_changes, context);
}

/* ---- changes ------------------------------------------------------------------------------------------ */

typedef struct {
    const asp_soft *soft;
    int64_t layer; /* -1: the input */
} soft_change_job;

/* The change of the input, or of an MLP whose output is there: one prompt. */
static void soft_change_item(void *arg, int64_t b, int thread) {
    (void)thread;
    const soft_change_job *job = arg;
    const asp_soft *p = job->soft;
    const asp_component_setting *s = p->setting;
    const asp_model *m = s->model;
    const int64_t e = m->config.d_model, layer = job->layer;
    const int64_t sender = layer < 0 ? 0 : asp_nodes_mlp(&m->config, layer);
    for (int64_t r = s->offsets[b]; r < s->offsets[b + 1]; r++) {
        asp_real *out = p->changes + (sender * p->n_rows + r) * e;
        if (layer < 0) {
            const asp_real *token = m->data + m->wte + s->tokens[r] * e,
                           *place = m->data + m->wpe + (r - s->offsets[b]) * e,
                           *ablated = s->replaced.resid.data + r * e;
            for (int64_t i = 0; i < e; i++) out[i] = token[i] + place[i] - ablated[i];
            continue;
        }
        const asp_real *before = asp_slot_at(s->replaced.mid, layer) + r * e,
                       *behind = asp_slot_at(s->replaced.resid, layer + 1) + r * e;
        for (int64_t i = 0; i < e; i++) out[i] -= behind[i] - before[i];
    }
}

asp_status asp_soft_take_change(const asp_soft *p, int64_t layer, const asp_context *context) {
    soft_change_job job = {p, layer};
    return asp_parallel_for(context, p->setting->n, soft_change_item, &job);
}

/* ---- logits ------------------------------------------------------------------------------------------- */

/* Values and dinputs of the logits, of n prompts from `first` on; their inputs are there. */
static asp_status measure_last(const asp_soft *p, const asp_soft_group *group, int64_t first, int64_t n, double *values,
                               const asp_context *context) {
    const asp_component_setting *s = p->setting;
    const asp_model *m = s->model;
    const int64_t e = m->config.d_model, v = m->config.n_vocab, size = p->logit_rows * e;
    asp_real *x = p->last, *hidden = x + size, *dhidden = hidden + size, *dx = dhidden + size;
    const asp_metric part = asp_metric_part(&s->metric, first, n, v);
    const asp_layernorm ln = {.x = x,
                              .weight = m->data + group->weight,
                              .bias = asp_at_const(m->data, group->bias),
                              .out = hidden,
                              .scale = p->scale,
                              .n = n,
                              .width = e,
                              .eps = m->config.ln_eps};
    const asp_layernorm_backward_job back = {.dx = dx,
                                             .dout = dhidden,
                                             .x = x,
                                             .weight = ln.weight,
                                             .scale = p->scale,
                                             .partial = p->partial,
                                             .n = n,
                                             .width = e};
    const asp_gemm to_hidden = {.m = n,
                                .n = e,
                                .k = v,
                                .a = p->dlogits,
                                .lda = v,
                                .b = m->data + m->unembed_w,
                                .ldb = e,
                                .c = dhidden,
                                .ldc = e,
                                .n_rows = n};
    for (int64_t i = 0; i < n; i++)
        memcpy(x + i * e, p->inputs + (s->offsets[first + i + 1] - 1) * e, (size_t)e * sizeof *x);
    memset(dx, 0, (size_t)(n * e) * sizeof *dx);
    asp_status status = asp_layernorm_forward(&ln, context);
    if (!status) status = asp_unembed(m, p->logits, hidden, n, p->logit_rows, context);
    if (!status) status = asp_metric_rows(values + first, &part, NULL, n, p->logits, v, context);
    if (!status) status = asp_metric_gradients(p->dlogits, &part, p->logits, v, context, context->err);
    if (!status) status = asp_gemm_run(&to_hidden, context);
    if (!status) status = asp_layernorm_backward(&back, context);
    for (int64_t i = 0; !status && i < n; i++)
        memcpy(p->dinputs + (s->offsets[first + i + 1] - 1) * e, dx + i * e, (size_t)e * sizeof *dx);
    return status;
}

static asp_status soft_logits(const asp_soft *p, double *values, double *gradient, double weight,
                              const asp_context *context) {
    const asp_soft_group group = group_of_logits(p);
    const int64_t n = p->setting->n, size = p->n_rows * p->setting->model->config.d_model;
    asp_status status = asp_soft_mix(p, &group, context);
    memset(p->dinputs, 0, (size_t)size * sizeof *p->dinputs);
    for (int64_t first = 0; !status && first < n; first += ASP_LOSS_CHUNK)
        status = measure_last(p, &group, first, asp_min(ASP_LOSS_CHUNK, n - first), values, context);
    return status ? status : asp_soft_add(p, &group, gradient, weight, context);
}

/* ---- the pass ------------------------------------------------------------------------------------------ */

asp_status asp_soft_run(asp_soft *p, const double *mask, double *values, double *gradient, double weight,
                        const asp_context *context) {
    const asp_component_setting *s = p->setting;
    const asp_config *c = &s->model->config;
    const int64_t n_senders = asp_nodes_n_senders(c), places = n_senders * asp_nodes_n_receivers(c);
    const int denoising = s->options.denoising;
    const double to_share = denoising ? -weight : weight;
    for (int64_t i = 0; i < places; i++) p->shares[i] = (asp_real)(denoising ? 1 - mask[i] : mask[i]);
    memset(p->dchanges, 0, (size_t)(n_senders * p->n_rows * c->d_model) * sizeof *p->dchanges);
    asp_status status = asp_soft_take_change(p, -1, context);
    for (int64_t l = 0; !status && l < c->n_layer; l++) {
        status = asp_soft_nodes_heads(p, l, context);
        if (!status) status = asp_soft_nodes_mlp(p, l, context);
    }
    if (!status) status = soft_logits(p, values, gradient, to_share, context);
    for (int64_t l = c->n_layer - 1; !status && l >= 0; l--) {
        status = asp_soft_nodes_mlp_backward(p, l, gradient, to_share, context);
        if (!status) status = asp_soft_nodes_heads_backward(p, l, gradient, to_share, context);
    }
    return status;
}
