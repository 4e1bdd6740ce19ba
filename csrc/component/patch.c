/* patch.c: one pass over a block of prompts in which every receiver has an input of its own.
 *
 * A receiver's input is the residual stream with every sender ablated plus, for each component edge that carries a
 * current output, the change of that sender: its current output minus its ablated one.  So only senders matter that
 * change and from which a path of such component edges reaches the logits: a circuit of few component edges is computed
 * in little more than its own size. */
#include <string.h>

#include "component/component.h"

enum { ROWS_PER_ITEM = 4 };

/* ---- what must be computed ---------------------------------------------------------------------------- */

static int carries(const uint8_t *mask, int except, int64_t n_receivers, int64_t sender, int64_t receiver) {
    return (mask[sender * n_receivers + receiver] != 0) != except;
}

typedef struct {
    asp_patch_plan *plan;
    const asp_config *config;
    const uint8_t *mask;
    int except;
    int64_t n_receivers;
} planning;

/* Whether the current output of a sender flows into the logits or a node that is needed (slot >= 0). */
static int is_read(const planning *p, int64_t sender) {
    const asp_config *c = p->config;
    const int64_t n_senders = asp_nodes_n_senders(c);
    if (carries(p->mask, p->except, p->n_receivers, sender, p->n_receivers - 1)) return 1;
    for (int64_t node = sender + 1; node < n_senders; node++) {
        const asp_node_inputs in = asp_nodes_inputs(c, node);
        if (p->plan->slot[node] < 0 || sender >= asp_nodes_n_before(c, in.first)) continue;
        for (int64_t i = 0; i < in.count; i++)
            if (carries(p->mask, p->except, p->n_receivers, sender, in.first + i * in.step)) return 1;
    }
    return 0;
}

/* Whether anything current flows into a node. */
static int is_reached(const planning *p, int64_t node) {
    const asp_node_inputs in = asp_nodes_inputs(p->config, node);
    for (int64_t i = 0; i < in.count; i++)
        for (int64_t s = 0; s < asp_nodes_n_before(p->config, in.first); s++)
            if (p->plan->slot[s] >= 0 && carries(p->mask, p->except, p->n_receivers, s, in.first + i * in.step))
                return 1;
    return 0;
}

void asp_patch_make_plan(asp_patch_plan *plan, const asp_config *c, const uint8_t *mask, int except,
                         const asp_component_setting *s) {
    const planning p = {plan, c, mask, except, asp_nodes_n_receivers(c)};
    const int64_t n_senders = asp_nodes_n_senders(c);
    const int paired = s->options.ablation == ASP_COMPONENT_COUNTERFACTUAL, held = s->options.held_gate && c->gated;
    for (int64_t i = n_senders - 1; i >= 0; i--) plan->slot[i] = is_read(&p, i) ? 0 : ASP_PATCH_UNREAD;
    plan->n_slots = plan->most_inputs = 0;
    for (int64_t i = 0, in_layer = 0; i < n_senders; i++) {
        const int is_mlp = i && (i - 1) % (c->n_head + 1) == c->n_head;
        /* With nothing current flowing in, a node of the paired run gives what it gave there. */
        const int constant = i && paired && (is_mlp || !held);
        if (plan->slot[i] >= 0 && constant && !is_reached(&p, i)) plan->slot[i] = ASP_PATCH_UNREAD;
        if (plan->slot[i] >= 0) plan->slot[i] = (int32_t)plan->n_slots++;
        in_layer = is_mlp ? 0 : in_layer + (i && plan->slot[i] >= 0);
        plan->most_inputs = asp_max(plan->most_inputs, 3 * in_layer);
    }
    plan->most_inputs = asp_max(1, plan->most_inputs);
}

void asp_patch_plan_behind(asp_patch_plan *plan, const asp_config *c, const uint8_t *mask, int64_t node) {
    const planning p = {plan, c, mask, 0, asp_nodes_n_receivers(c)};
    const int64_t n_senders = asp_nodes_n_senders(c);
    const int64_t first = asp_max(0, node);
    for (int64_t i = n_senders - 1; i >= first; i--) plan->slot[i] = is_read(&p, i) ? 0 : ASP_PATCH_UNREAD;
    for (int64_t i = 0; i < first; i++) plan->slot[i] = ASP_PATCH_GIVEN;
    plan->n_slots = 0;
    for (int64_t i = first; i < n_senders; i++) {
        if (node >= 0 && plan->slot[i] >= 0 && i > node && !is_reached(&p, i)) plan->slot[i] = ASP_PATCH_GIVEN;
        if (plan->slot[i] >= 0) plan->slot[i] = (int32_t)plan->n_slots++;
    }
}

/* ---- memory ------------------------------------------------------------------------------------------- */

enum { PARTS = 14 };

/* Rows of copies of n prompts. */
static int64_t rows_of_copies(const asp_component_setting *s, int64_t n, int64_t n_copies) {
    return asp_shape_rows(s->model, n_copies * s->offsets[n], 0);
}

static int64_t lay_out_patch(asp_patch *p, asp_arena_part parts[PARTS], int64_t n, const asp_patch_size *size,
                             int n_threads) {
    const asp_component_setting *s = p->setting;
    const asp_config *c = &s->model->config;
    const int64_t e = c->d_model, width = c->n_head * c->d_head, n_senders = asp_nodes_n_senders(c);
    const int64_t rows = rows_of_copies(s, n, size->n_copies), most_inputs = size->most_inputs;
    const int64_t sequences = size->n_copies * n;
    p->logit_rows = asp_shape_logit_rows(s->model, asp_min(sequences, ASP_LOSS_CHUNK));
    p->scratch.per_thread = asp_attention_scratch(c, s->longest, 0);
    const int64_t logits = asp_metric_needs_all(s->task->metric.kind) ? p->logit_rows : 0;
    const asp_arena_part list[PARTS] = {ASP_PART(p->changes, size->n_slots * rows_of_copies(s, n, 1), e),
                                        ASP_PART(p->inputs, most_inputs * rows + p->logit_rows, e),
                                        ASP_PART(p->qkv, rows, 3 * width),
                                        ASP_PART(p->z, rows, width),
                                        ASP_PART(p->mlp, rows, c->d_mlp),
                                        ASP_PART(p->logits, logits, c->n_vocab),
                                        ASP_PART(p->senders, most_inputs, n_senders),
                                        ASP_PART(p->n_senders, most_inputs, 1),
                                        ASP_PART(p->heads, c->n_head, 1),
                                        ASP_PART(p->offsets, sequences + 1, 1),
                                        ASP_PART(p->prompts, sequences, 1),
                                        ASP_PART(p->held, s->options.held_gate && c->gated ? sequences : 0, 1),
                                        ASP_PART(p->gate_bias, c->n_layer, 1),
                                        ASP_PART(p->scratch.data, n_threads, p->scratch.per_thread)};
    memcpy(parts, list, sizeof list);
    return asp_arena_lay_out(&p->arena, parts, PARTS);
}

int64_t asp_patch_needed(const asp_component_setting *setting, int64_t n, const asp_patch_size *size, int n_threads) {
    asp_patch p = {.setting = setting};
    asp_arena_part parts[PARTS];
    return lay_out_patch(&p, parts, n, size, n_threads);
}

int64_t asp_patch_most_copies(const asp_component_setting *s, const asp_patch_size *size, int64_t n_slots) {
    const int64_t rows = size->n_slots * rows_of_copies(s, s->n, 1) / asp_max(1, n_slots);
    int64_t most = asp_min(size->n_copies, asp_max(1, rows / asp_max(1, s->offsets[s->n])));
    while (most > 1 && rows_of_copies(s, s->n, most) > rows) most--;
    return most;
}

asp_status asp_patch_open(asp_patch *p, const asp_patch_size *size, int n_threads, asp_error *err) {
    asp_arena_part parts[PARTS];
    const int64_t bytes = lay_out_patch(p, parts, p->setting->n, size, n_threads);
    if (!asp_arena_commit(&p->arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "%s: no memory for %lld senders in %lld prompts, which takes %s",
                        p->setting->stage, (long long)size->n_slots, (long long)p->setting->n,
                        asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&p->arena, parts, PARTS);
    for (int64_t l = 0; l < p->setting->model->config.n_layer; l++)
        p->gate_bias[l] = p->setting->model->config.gate_bias;
    return ASP_OK;
}

/* Sequences of a pass. */
static void set_copies(asp_patch *p) {
    const asp_component_setting *s = p->setting;
    const int64_t n_tokens = s->offsets[s->n];
    p->n = p->n_copies * s->n;
    p->n_rows = rows_of_copies(s, s->n, p->n_copies);
    if (!s->held) p->held = NULL;
    for (int64_t i = 0; i < p->n; i++) {
        p->prompts[i] = i % s->n;
        p->offsets[i] = i / s->n * n_tokens + s->offsets[p->prompts[i]];
        if (p->held) p->held[i] = s->held[p->prompts[i]];
    }
    p->offsets[p->n] = p->n_copies * n_tokens;
}

/* ---- inputs of receivers -------------------------------------------------------------------------------- */

/* Lists the changes that a receiver reads, as number i of those that are computed together. */
static void list_senders(asp_patch *p, int64_t i, int64_t receiver) {
    const asp_config *c = &p->setting->model->config;
    const int64_t n_receivers = asp_nodes_n_receivers(c), before = asp_nodes_n_before(c, receiver);
    int32_t *senders = p->senders + i * asp_nodes_n_senders(c);
    p->n_senders[i] = 0;
    for (int64_t s = 0; s < before; s++)
        if (p->plan.slot[s] != ASP_PATCH_UNREAD && carries(p->mask, p->except, n_receivers, s, receiver))
            senders[p->n_senders[i]++] = p->plan.slot[s] >= 0 ? p->plan.slot[s] : (int32_t)(-1 - s);
}

typedef struct {
    const asp_patch *patch;
    const asp_real *ablated; /* (setting->n_rows,E) the residual stream with every sender ablated */
    int64_t n_inputs, n_items;
    int64_t lacking;     /* which input lacks senders in copies; -1: none */
    const int64_t *ends; /* of the logits: input row b is of the last token before ends[b]; NULL: of row b */
    asp_layernorm ln;
} input_job;

/* Inputs of all receivers at a few rows, normalised. */
static void input_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const input_job *job = arg;
    const asp_patch *p = job->patch;
    const asp_kernels *kernels = asp_isa_kernels();
    const asp_component_setting *s = p->setting;
    const int64_t e = job->ln.width, n_senders = asp_nodes_n_senders(&s->model->config), n_tokens = s->offsets[s->n];
    for (int64_t r = item * ROWS_PER_ITEM; r < asp_min(job->n_items, (item + 1) * ROWS_PER_ITEM); r++) {
        const int64_t from = job->ends ? job->ends[r] - 1 : r, copy = from / n_tokens, one = from % n_tokens;
        for (int64_t i = 0; i < job->n_inputs; i++) {
            asp_real *out = p->inputs + (i * p->n_rows + r) * e;
            memcpy(out, job->ablated + one * e, (size_t)e * sizeof *out);
            for (int64_t j = 0; j < p->n_senders[i]; j++) {
                const int64_t sender = p->senders[i * n_senders + j];
                if (i == job->lacking && j >= p->sender - copy && j <= p->sender) continue;
                kernels->add(out,
                             sender >= 0 ? p->changes + (sender * p->n_rows + from) * e
                                         : p->given + ((-1 - sender) * s->n_rows + one) * e,
                             e);
            }
            kernels->layernorm_row(&job->ln, i * p->n_rows + r);
        }
    }
}

/* Normalised inputs (n_inputs,R,E) of the receivers that are listed. */
static asp_status make_inputs(asp_patch *p, const asp_real *ablated, int64_t n_inputs, int64_t lacking, int64_t weight,
                              int64_t bias, const int64_t *ends, const asp_context *context) {
    const asp_model *m = p->setting->model;
    input_job job = {p, ablated, n_inputs, ends ? p->n : p->offsets[p->n], lacking, ends, {0}};
    job.ln = (asp_layernorm){.x = p->inputs,
                             .weight = m->data + weight,
                             .bias = asp_at_const(m->data, bias),
                             .out = p->inputs,
                             .width = m->config.d_model,
                             .eps = m->config.ln_eps};
    return asp_parallel_for(context, (job.n_items + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM, input_item, &job);
}

/* ---- attention ------------------------------------------------------------------------------------------- */

/* q, k and v of the heads that are computed. */
static asp_status run_qkv(asp_patch *p, int64_t layer, const int64_t *heads, int64_t n, const asp_context *context) {
    const asp_model *m = p->setting->model;
    const asp_config *c = &m->config;
    const int64_t e = c->d_model, width = c->n_head * c->d_head;
    asp_status status = ASP_OK;
    for (int64_t i = 0; !status && i < 3 * n; i++) {
        const int64_t column = i % 3 * width + heads[i / 3] * c->d_head;
        const asp_real *bias = asp_at_const(m->data, m->layers[layer].qkv_b);
        const asp_gemm g = {.m = p->n_rows,
                            .n = c->d_head,
                            .k = e,
                            .a = p->inputs + i * p->n_rows * e,
                            .lda = e,
                            .b = m->data + m->layers[layer].qkv_w + column,
                            .ldb = 3 * width,
                            .c = p->qkv + column,
                            .ldc = 3 * width,
                            .epilogue = ASP_EPILOGUE_BIAS,
                            .bias = bias ? bias + column : NULL,
                            .n_rows = p->offsets[p->n],
                            .k_block = m->k_block.model};
        status = asp_gemm_run(&g, context);
    }
    return status;
}

typedef struct {
    const asp_patch *patch;
    const asp_activations *acts;
    const asp_gate *gate;
    int64_t layer, n_heads;
    const int64_t *heads;
} attention_job;

/* z of one head in one prompt, minus its ablated z. */
static void attention_item(void *arg, int64_t item, int thread) {
    const attention_job *job = arg;
    const asp_patch *p = job->patch;
    const asp_component_setting *s = p->setting;
    const int64_t b = item / job->n_heads, head = job->heads[item % job->n_heads], d = s->model->config.d_head;
    const asp_attention_task task =
        asp_attention_describe(s->model, job->acts, job->layer, job->gate, &p->scratch, b, head, thread);
    asp_isa_kernels()->attention_forward(&task);
    const asp_real *ablated =
        asp_slot_at(s->replaced.z, job->layer) + s->offsets[p->prompts[b]] * task.z_stride + head * d;
    for (int64_t t = 0; t < task.n_tokens; t++)
        for (int64_t j = 0; j < d; j++) task.z[t * task.z_stride + j] -= ablated[t * task.z_stride + j];
}

static asp_status run_attention(asp_patch *p, int64_t layer, const int64_t *heads, int64_t n,
                                const asp_context *context) {
    const asp_config *c = &p->setting->model->config;
    const asp_activations acts = {.n_tokens = p->offsets[p->n],
                                  .n_rows = p->n_rows,
                                  .n_sequences = p->n,
                                  .offsets = p->offsets,
                                  .qkv = {p->qkv, 0},
                                  .z = {p->z, 0}};
    const asp_gate gate = {.gated = c->gated, .bias = p->gate_bias, .held = p->held};
    attention_job job = {p, &acts, &gate, layer, n, heads};
    return asp_parallel_for(context, p->n * n, attention_item, &job);
}

/* ---- neurons -------------------------------------------------------------------------------------------------- */

typedef struct {
    const asp_patch *patch;
    const uint8_t *inside; /* (E) */
    asp_real *change;
} cut_job;

static void cut_item(void *arg, int64_t b, int thread) {
    (void)thread;
    const cut_job *job = arg;
    const asp_patch *p = job->patch;
    const int64_t e = p->setting->model->config.d_model;
    for (int64_t r = p->offsets[b]; r < p->offsets[b + 1]; r++)
        for (int64_t i = 0; i < e; i++)
            if ((job->inside[i] != 0) == p->except) job->change[r * e + i] = 0;
}

/* Takes away the coordinates of a sender's change that do not flow. */
static asp_status cut_neurons(const asp_patch *p, int64_t sender, int32_t slot, const asp_context *context) {
    const int64_t e = p->setting->model->config.d_model;
    if (!p->neurons) return ASP_OK;
    cut_job job = {p, p->neurons + sender * e, p->changes + slot * p->n_rows * e};
    return asp_parallel_for(context, p->n, cut_item, &job);
}

/* ---- heads ---------------------------------------------------------------------------------------------------- */

/* Changes of the heads that are computed. */
static asp_status run_heads(asp_patch *p, int64_t layer, const asp_context *context) {
    const asp_component_setting *s = p->setting;
    const asp_model *m = s->model;
    const asp_config *c = &m->config;
    const int64_t e = c->d_model, width = c->n_head * c->d_head, first = asp_nodes_head(c, layer);
    int64_t n = 0, lacking = -1;
    for (int64_t h = 0; h < c->n_head; h++) {
        if (p->plan.slot[first + h] < 0) continue;
        for (int64_t letter = 0; letter < 3; letter++) {
            const int64_t receiver = asp_nodes_qkv(c, layer) + letter * c->n_head + h;
            list_senders(p, 3 * n + letter, receiver);
            if (receiver == p->receiver) lacking = 3 * n + letter;
        }
        p->heads[n++] = h;
    }
    if (!n) return ASP_OK;
    asp_status status = make_inputs(p, asp_slot_at(s->replaced.resid, layer), 3 * n, lacking, m->layers[layer].ln1_w,
                                    m->layers[layer].ln1_b, NULL, context);
    if (!status) status = run_qkv(p, layer, p->heads, n, context);
    if (!status) status = run_attention(p, layer, p->heads, n, context);
    for (int64_t i = 0; !status && i < n; i++) {
        const int64_t h = p->heads[i];
        const asp_gemm g = {.m = p->n_rows,
                            .n = e,
                            .k = c->d_head,
                            .a = p->z + h * c->d_head,
                            .lda = width,
                            .b = m->data + m->layers[layer].proj_w + h * c->d_head * e,
                            .ldb = e,
                            .c = p->changes + p->plan.slot[first + h] * p->n_rows * e,
                            .ldc = e,
                            .n_rows = p->offsets[p->n],
                            .k_block = m->k_block.head};
        status = asp_gemm_run(&g, context);
        if (!status) status = cut_neurons(p, first + h, p->plan.slot[first + h], context);
    }
    return status;
}

/* ---- input, MLPs, logits ----------------------------------------------------------------------------------- */

typedef struct {
    const asp_patch *patch;
    int64_t layer; /* -1: the input */
    asp_real *change;
} change_job;

/* Takes the ablated output away from that of an MLP, or writes the input's change. */
static void change_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const change_job *job = arg;
    const asp_patch *p = job->patch;
    const asp_component_setting *s = p->setting;
    const asp_model *m = s->model;
    const int64_t e = m->config.d_model, prompt = p->prompts[item];
    asp_real *out = job->change + p->offsets[item] * e;
    for (int64_t r = s->offsets[prompt]; r < s->offsets[prompt + 1]; r++, out += e) {
        if (job->layer < 0) {
            const asp_real *token = m->data + m->wte + s->tokens[r] * e,
                           *place = m->data + m->wpe + (r - s->offsets[prompt]) * e,
                           *ablated = s->replaced.resid.data + r * e;
            for (int64_t i = 0; i < e; i++) out[i] = token[i] + place[i] - ablated[i];
            continue;
        }
        const asp_real *before = asp_slot_at(s->replaced.mid, job->layer) + r * e,
                       *behind = asp_slot_at(s->replaced.resid, job->layer + 1) + r * e;
        for (int64_t i = 0; i < e; i++) out[i] -= behind[i] - before[i];
    }
}

static asp_status run_change(asp_patch *p, int64_t layer, int32_t slot, const asp_context *context) {
    const asp_config *c = &p->setting->model->config;
    change_job job = {p, layer, p->changes + slot * p->n_rows * c->d_model};
    const asp_status status = asp_parallel_for(context, p->n, change_item, &job);
    return status ? status : cut_neurons(p, layer < 0 ? 0 : asp_nodes_mlp(c, layer), slot, context);
}

static asp_status run_mlp(asp_patch *p, int64_t layer, const asp_context *context) {
    const asp_component_setting *s = p->setting;
    const asp_model *m = s->model;
    const asp_config *c = &m->config;
    const asp_layer_offsets *o = &m->layers[layer];
    const int32_t slot = p->plan.slot[asp_nodes_mlp(c, layer)];
    if (slot < 0) return ASP_OK;
    const int64_t receiver = asp_nodes_mlp_input(c, layer), lacking = receiver == p->receiver ? 0 : -1;
    list_senders(p, 0, receiver);
    asp_status status =
        make_inputs(p, asp_slot_at(s->replaced.mid, layer), 1, lacking, o->ln2_w, o->ln2_b, NULL, context);
    const asp_mlp_rows rows = {.model = m,
                               .layer = layer,
                               .n_tokens = p->offsets[p->n],
                               .n_rows = p->n_rows,
                               .x = p->inputs,
                               .pre = p->mlp,
                               .post = p->mlp,
                               .out = p->changes + slot * p->n_rows * c->d_model};
    if (!status) status = asp_nodes_mlp_output(&rows, context);
    return status ? status : run_change(p, layer, slot, context);
}

asp_status asp_patch_run(asp_patch *p, double *values, const asp_context *context) {
    const asp_component_setting *s = p->setting;
    const asp_model *m = s->model;
    const int64_t n_layer = m->config.n_layer, logits = asp_nodes_n_receivers(&m->config) - 1;
    set_copies(p);
    asp_status status = p->plan.slot[0] < 0 ? ASP_OK : run_change(p, -1, p->plan.slot[0], context);
    for (int64_t l = 0; !status && l < n_layer; l++) {
        status = run_heads(p, l, context);
        if (!status) status = run_mlp(p, l, context);
    }
    if (status) return status;
    list_senders(p, 0, logits);
    status = make_inputs(p, asp_slot_at(s->replaced.resid, n_layer), 1, logits == p->receiver ? 0 : -1, m->lnf_w,
                         m->lnf_b, p->offsets + 1, context);
    const asp_hidden_rows rows = {p->inputs, p->logits, p->logit_rows, &s->metric, p->prompts};
    return status ? status : asp_component_setting_metric(values, s->model, &rows, p->n, context);
}
