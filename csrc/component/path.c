/* path.c: path patching: the outputs of some senders in the other prompt of the pair go straight into some receivers,
 * each of which has its own copy of the residual stream; everything behind them is computed anew.
 *
 * Every receiver of a patch reads the residual stream plus one sum, by how much the senders before it differ from what
 * they give now.  The sum grows from layer to layer.  So a patch is a forward pass with a second input for LayerNorms
 * that feed receivers, and begins at the first layer that has one behind a sender.  Many patches of many prompts go
 * through the layers together, in the order in which they begin. */
#include <string.h>

#include "component/component.h"

enum { BLOCK_ROWS = 2048 };

/* A patch of one prompt. */
typedef struct {
    int64_t patch, prompt; /* in the block of prompts */
    int64_t start;         /* the layer before which it begins; L: the final LayerNorm */
} item;

typedef struct {
    asp_component_setting setting;
    const asp_path_patches *patches;
    double *values;
    int64_t max_rows, max_items;
    asp_arena arena;
    int64_t *start;                         /* (n) of each patch, L + 1 if no sender comes before a receiver */
    int64_t *order;                         /* (n) by start */
    asp_real *x, *mid, *ln, *qkv, *z, *mlp; /* of the pass */
    asp_real *sum;                          /* (rows,E) what receivers read besides */
    asp_real *input, *mixed; /* (rows,E) receivers' inputs; (rows,H D) their q, k or v; differences of z */
    item *items;             /* (max_items) */
    int64_t *offsets;        /* (max_items + 1) */
    const uint8_t **held;    /* (max_items) */
    double *found;           /* (max_items) */
    double *gate_bias;       /* (L) */
    int64_t n_items, n_live; /* n_live: those that have begun */
    asp_last_rows last;
    asp_scratch scratch;
} paths;

/* ---- patches ---------------------------------------------------------------------------------------------- */

static int sends(const paths *p, const item *it, int64_t sender) {
    return p->patches->senders[it->patch * asp_nodes_n_senders(&p->setting.model->config) + sender] != 0;
}
static int receives(const paths *p, const item *it, int64_t receiver) {
    return p->patches->receivers[it->patch * asp_nodes_n_receivers(&p->setting.model->config) + receiver] != 0;
}

/* Whether a patch takes place at a row of the block of prompts. */
static int is_at(const paths *p, int64_t row) {
    const uint8_t *positions = p->patches->positions;
    return !positions || positions[p->setting.task->clean.offsets[p->setting.first] + row];
}

static int64_t start_of(const paths *p, int64_t patch) {
    const asp_config *c = &p->setting.model->config;
    const item it = {.patch = patch};
    int64_t first = 0;
    while (first < asp_nodes_n_senders(c) && !sends(p, &it, first)) first++;
    for (int64_t r = 0; r < asp_nodes_n_receivers(c); r++)
        if (receives(p, &it, r) && first < asp_nodes_n_before(c, r)) return r / (3 * c->n_head + 1);
    return c->n_layer + 1;
}

static void sort_patches(paths *p) {
    int64_t n = 0;
    for (int64_t i = 0; i < p->patches->n; i++) p->start[i] = start_of(p, i);
    for (int64_t l = 0; l <= p->setting.model->config.n_layer + 1; l++)
        for (int64_t i = 0; i < p->patches->n; i++)
            if (p->start[i] == l) p->order[n++] = i;
}

/* ---- memory ------------------------------------------------------------------------------------------------ */

enum { PARTS = 19 };

static int64_t lay_out_path(paths *p, asp_arena_part parts[PARTS], int n_threads) {
    const asp_model *m = p->setting.model;
    const asp_config *c = &m->config;
    const int64_t e = c->d_model, width = c->n_head * c->d_head, rows = asp_shape_rows(m, p->max_rows, 0),
                  n = p->max_items;
    p->last.logit_rows = asp_shape_logit_rows(m, asp_min(n, ASP_LOSS_CHUNK));
    p->scratch.per_thread = asp_attention_scratch(c, p->setting.longest, 0);
    const int64_t logits = asp_metric_needs_all(p->setting.task->metric.kind) ? p->last.logit_rows : 0;
    const asp_arena_part list[PARTS] = {ASP_PART(p->start, p->patches->n, 1),
                                        ASP_PART(p->order, p->patches->n, 1),
                                        ASP_PART(p->x, rows, e),
                                        ASP_PART(p->mid, rows, e),
                                        ASP_PART(p->ln, rows + p->last.logit_rows, e),
                                        ASP_PART(p->qkv, rows, 3 * width),
                                        ASP_PART(p->z, rows, width),
                                        ASP_PART(p->mlp, rows, c->d_mlp),
                                        ASP_PART(p->sum, rows, e),
                                        ASP_PART(p->input, rows, e),
                                        ASP_PART(p->mixed, rows, width),
                                        ASP_PART(p->items, n, 1),
                                        ASP_PART(p->offsets, n + 1, 1),
                                        ASP_PART(p->held, n, 1),
                                        ASP_PART(p->found, n, 1),
                                        ASP_PART(p->gate_bias, c->n_layer, 1),
                                        ASP_PART(p->last.logits, logits, c->n_vocab),
                                        ASP_PART(p->last.sequence, n, 1),
                                        ASP_PART(p->scratch.data, n_threads, p->scratch.per_thread)};
    memcpy(parts, list, sizeof list);
    return asp_arena_lay_out(&p->arena, parts, PARTS);
}

/* Nothing that is allocated here grows with a block of prompts. */
static int64_t path_bytes(const void *own, const asp_component_setting *s, int64_t n, int n_threads) {
    (void)own, (void)s, (void)n, (void)n_threads;
    return 0;
}

static asp_status allocate_path(paths *p, int n_threads, asp_error *err) {
    asp_arena_part parts[PARTS];
    const int64_t bytes = lay_out_path(p, parts, n_threads);
    if (!asp_arena_commit(&p->arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "path patching: no memory for %lld rows, which take %s",
                        (long long)p->max_rows, asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&p->arena, parts, PARTS);
    for (int64_t l = 0; l < p->setting.model->config.n_layer; l++) p->gate_bias[l] = p->setting.model->config.gate_bias;
    p->last.rows = p->input;
    p->last.hidden = p->ln;
    p->last.capacity = p->max_items;
    return ASP_OK;
}

/* ---- rows by patch ------------------------------------------------------------------------------------------ */

typedef struct {
    paths *p;
    int64_t layer; /* -1: the embedding */
    int64_t which; /* letter 0..2, or 3: the MLP */
    const asp_real *from;
} rows_job;

/* First row of an item in the block of prompts, and how many. */
static int64_t path_rows(const paths *p, int64_t i, int64_t *n) {
    const int64_t *at = p->setting.offsets + p->items[i].prompt;
    *n = at[1] - at[0];
    return at[0];
}

static asp_status each_item(paths *p, int64_t n, void (*body)(void *, int64_t, int), rows_job job,
                            const asp_context *context) {
    job.p = p;
    return n ? asp_parallel_for(context, n, body, &job) : ASP_OK;
}

/* x of an item that begins: the base run's. */
static void path_begin_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const rows_job *job = arg;
    const paths *p = job->p;
    const int64_t e = p->setting.model->config.d_model;
    int64_t n;
    if (p->items[i].start != job->layer) return;
    const int64_t row = path_rows(p, i, &n);
    memcpy(p->x + p->offsets[i] * e, asp_slot_at(p->setting.plain.resid, job->layer) + row * e,
           (size_t)(n * e) * sizeof *p->x);
}

/* The sum begins with the embedding's difference. */
static void path_embedding_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const rows_job *job = arg;
    const paths *p = job->p;
    const asp_component_setting *s = &p->setting;
    const int64_t e = s->model->config.d_model;
    int64_t n;
    const int64_t row = path_rows(p, i, &n);
    for (int64_t r = 0; r < n; r++) {
        asp_real *out = p->sum + (p->offsets[i] + r) * e;
        const asp_real *now = s->plain.resid.data + (row + r) * e, *other = s->replaced.resid.data + (row + r) * e;
        const int wanted = sends(p, &p->items[i], 0) && is_at(p, row + r);
        for (int64_t j = 0; j < e; j++) out[j] = wanted ? other[j] - now[j] : 0;
    }
}

/* By how much z of senders of the layer differs, 0 for other heads. */
static void heads_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const rows_job *job = arg;
    const paths *p = job->p;
    const asp_component_setting *s = &p->setting;
    const asp_config *c = &s->model->config;
    const int64_t d = c->d_head, width = c->n_head * d, first = asp_nodes_head(c, job->layer);
    int64_t n;
    const int64_t row = path_rows(p, i, &n);
    const asp_real *now =
        i < p->n_live ? p->z + p->offsets[i] * width : asp_slot_at(s->plain.z, job->layer) + row * width;
    const asp_real *other = asp_slot_at(s->replaced.z, job->layer) + row * width;
    asp_real *out = p->mixed + p->offsets[i] * width;
    for (int64_t r = 0; r < n; r++)
        for (int64_t h = 0; h < c->n_head; h++) {
            const int wanted = sends(p, &p->items[i], first + h) && is_at(p, row + r);
            const int64_t at = r * width + h * d;
            for (int64_t j = at; j < at + d; j++) out[j] = wanted ? other[j] - now[j] : 0;
        }
}

/* sum += by how much the output of the layer's MLP differs, if it is a sender; x and mid are now behind and before it. */
static void mlp_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const rows_job *job = arg;
    const paths *p = job->p;
    const asp_component_setting *s = &p->setting;
    const int64_t e = s->model->config.d_model, l = job->layer;
    int64_t n;
    const int64_t row = path_rows(p, i, &n);
    if (!sends(p, &p->items[i], asp_nodes_mlp(&s->model->config, l))) return;
    const int live = i < p->n_live;
    const asp_real *before = live ? p->mid + p->offsets[i] * e : asp_slot_at(s->plain.mid, l) + row * e,
                   *behind = live ? p->x + p->offsets[i] * e : asp_slot_at(s->plain.resid, l + 1) + row * e,
                   *other_before = asp_slot_at(s->replaced.mid, l) + row * e,
                   *other_behind = asp_slot_at(s->replaced.resid, l + 1) + row * e;
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = r * e; is_at(p, row + r) && j < (r + 1) * e; j++)
            p->sum[p->offsets[i] * e + j] += (other_behind[j] - other_before[j]) - (behind[j] - before[j]);
}

/* ---- receivers ------------------------------------------------------------------------------------------------- */

/* Whether an item's receivers of a letter in a layer, or its MLP, are among the patched ones. */
static int any_receives(const paths *p, const item *it, int64_t layer, int64_t which) {
    const asp_config *c = &p->setting.model->config;
    if (which == 3) return receives(p, it, asp_nodes_mlp_input(c, layer));
    for (int64_t h = 0; h < c->n_head; h++)
        if (receives(p, it, asp_nodes_qkv(c, layer) + which * c->n_head + h)) return 1;
    return 0;
}

/* input = from, plus the sum for items in which the receivers are patched. */
static void path_input_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const rows_job *job = arg;
    const paths *p = job->p;
    const int64_t e = p->setting.model->config.d_model, at = p->offsets[i] * e,
                  n = (p->offsets[i + 1] - p->offsets[i]) * e;
    memcpy(p->input + at, job->from + at, (size_t)n * sizeof *p->x);
    if (any_receives(p, &p->items[i], job->layer, job->which)) asp_isa_kernels()->add(p->input + at, p->sum + at, n);
}

/* Takes the q, k or v of patched receivers. */
static void letter_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const rows_job *job = arg;
    const paths *p = job->p;
    const asp_config *c = &p->setting.model->config;
    const int64_t d = c->d_head, width = c->n_head * d;
    for (int64_t h = 0; h < c->n_head; h++) {
        if (!receives(p, &p->items[i], asp_nodes_qkv(c, job->layer) + job->which * c->n_head + h)) continue;
        for (int64_t r = p->offsets[i]; r < p->offsets[i + 1]; r++)
            memcpy(p->qkv + (r * 3 + job->which) * width + h * d, p->mixed + r * width + h * d,
                   (size_t)d * sizeof *p->qkv);
    }
}

/* q, k or v of all heads from the patched inputs, where an item needs them. */
static asp_status run_letter(paths *p, int64_t layer, int64_t letter, const asp_activations *acts,
                             const asp_context *context) {
    const asp_model *m = p->setting.model;
    const asp_layer_offsets *o = &m->layers[layer];
    const int64_t e = m->config.d_model, width = m->config.n_head * m->config.d_head;
    const asp_real *bias = asp_at_const(m->data, o->qkv_b);
    const rows_job job = {.layer = layer, .which = letter, .from = p->x};
    const asp_layernorm ln = {.x = p->input,
                              .weight = m->data + o->ln1_w,
                              .bias = asp_at_const(m->data, o->ln1_b),
                              .out = p->ln,
                              .n = acts->n_tokens,
                              .width = e,
                              .eps = m->config.ln_eps};
    const asp_gemm g = {.m = acts->n_rows,
                        .n = width,
                        .k = e,
                        .a = p->ln,
                        .lda = e,
                        .b = m->data + o->qkv_w + letter * width,
                        .ldb = 3 * width,
                        .c = p->mixed,
                        .ldc = width,
                        .epilogue = ASP_EPILOGUE_BIAS,
                        .bias = bias ? bias + letter * width : NULL,
                        .n_rows = acts->n_tokens,
                        .k_block = m->k_block.model};
    int wanted = 0;
    for (int64_t i = 0; i < p->n_live; i++) wanted |= any_receives(p, &p->items[i], layer, letter);
    if (!wanted) return ASP_OK;
    asp_status status = each_item(p, p->n_live, path_input_item, job, context);
    if (!status) status = asp_layernorm_forward(&ln, context);
    if (!status) status = asp_gemm_run(&g, context);
    return status ? status : each_item(p, p->n_live, letter_item, job, context);
}

/* Takes the sum away again from the residual stream behind an MLP that read it. */
static void output_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const rows_job *job = arg;
    const paths *p = job->p;
    const int64_t e = p->setting.model->config.d_model;
    if (!any_receives(p, &p->items[i], job->layer, 3)) return;
    for (int64_t j = p->offsets[i] * e; j < p->offsets[i + 1] * e; j++) p->x[j] += p->mid[j] - p->input[j];
}

/* ---- layers ----------------------------------------------------------------------------------------------------- */

/* The first n items. */
static asp_activations path_pass_over(const paths *p, int64_t n) {
    return (asp_activations){.n_tokens = p->offsets[n],
                             .n_rows = asp_shape_rows(p->setting.model, p->offsets[n], 0),
                             .n_sequences = n,
                             .offsets = p->offsets,
                             .resid = {p->x, 0},
                             .mid = {p->mid, 0},
                             .ln1 = {p->ln, 0},
                             .ln2 = {p->ln, 0},
                             .qkv = {p->qkv, 0},
                             .z = {p->z, 0},
                             .mlp_post = {p->mlp, 0}};
}

/* sum += what the heads of the layer that are senders give besides. */
static asp_status add_heads(paths *p, int64_t layer, const asp_context *context) {
    const asp_model *m = p->setting.model;
    const int64_t e = m->config.d_model, width = m->config.n_head * m->config.d_head;
    int wanted = 0;
    for (int64_t i = 0; i < p->n_items; i++)
        for (int64_t h = 0; h < m->config.n_head; h++)
            wanted |= sends(p, &p->items[i], asp_nodes_head(&m->config, layer) + h);
    if (!wanted) return ASP_OK;
    const asp_activations all = path_pass_over(p, p->n_items);
    const asp_gemm g = {.m = all.n_rows,
                        .n = e,
                        .k = width,
                        .a = p->mixed,
                        .lda = width,
                        .b = m->data + m->layers[layer].proj_w,
                        .ldb = e,
                        .c = p->sum,
                        .ldc = e,
                        .epilogue = ASP_EPILOGUE_RESIDUAL,
                        .residual = p->sum,
                        .n_rows = all.n_tokens,
                        .k_block = m->k_block.heads};
    const asp_status status = each_item(p, p->n_items, heads_item, (rows_job){.layer = layer}, context);
    return status ? status : asp_gemm_run(&g, context);
}

static asp_status run_path_layer(paths *p, int64_t layer, const asp_context *context) {
    const asp_model *m = p->setting.model;
    const asp_gate gate = {.gated = m->config.gated, .bias = p->gate_bias, .held = p->setting.held ? p->held : NULL};
    const rows_job job = {.layer = layer, .which = 3, .from = p->mid};
    while (p->n_live < p->n_items && p->items[p->n_live].start == layer) p->n_live++;
    asp_activations acts = path_pass_over(p, p->n_live);
    asp_status status = each_item(p, p->n_live, path_begin_item, job, context);
    if (!status && p->n_live) status = asp_forward_qkv(m, &acts, layer, context);
    for (int64_t letter = 0; !status && letter < 3; letter++) status = run_letter(p, layer, letter, &acts, context);
    if (!status && p->n_live) status = asp_attention_forward(m, &acts, layer, &gate, &p->scratch, context);
    if (!status) status = add_heads(p, layer, context);
    if (!status && p->n_live) status = asp_forward_output(m, &acts, layer, context);
    if (!status) status = each_item(p, p->n_live, path_input_item, job, context);
    acts.mid.data = p->input;
    if (!status && p->n_live) status = asp_forward_mlp(m, &acts, layer, context);
    if (!status) status = each_item(p, p->n_live, output_item, job, context);
    return status ? status : each_item(p, p->n_items, mlp_item, job, context);
}

/* The last row of every item, with the sum if the logits are a receiver. */
static void take_last(paths *p) {
    const asp_config *c = &p->setting.model->config;
    const int64_t e = c->d_model;
    for (int64_t i = 0; i < p->n_items; i++) {
        const int64_t row = (p->offsets[i + 1] - 1) * e;
        memcpy(p->input + i * e, p->x + row, (size_t)e * sizeof *p->x);
        if (receives(p, &p->items[i], asp_nodes_n_receivers(c) - 1))
            asp_isa_kernels()->add(p->input + i * e, p->sum + row, e);
        p->last.sequence[i] = p->items[i].prompt;
    }
}

static asp_status run_path_items(paths *p, const asp_context *context) {
    const asp_component_setting *s = &p->setting;
    const int64_t n_layer = s->model->config.n_layer;
    if (!p->n_items) return ASP_OK;
    asp_status status = each_item(p, p->n_items, path_embedding_item, (rows_job){0}, context);
    p->n_live = 0;
    for (int64_t l = 0; !status && l < n_layer; l++) status = run_path_layer(p, l, context);
    if (!status) status = each_item(p, p->n_items, path_begin_item, (rows_job){.layer = n_layer}, context);
    if (status) return status;
    take_last(p);
    status = asp_last_values(p->found, s, &p->last, p->n_items, context);
    for (int64_t i = 0; !status && i < p->n_items; i++)
        p->values[p->items[i].patch * s->task->clean.n_prompts + s->first + p->items[i].prompt] = p->found[i];
    return status;
}

/* ---- the call ------------------------------------------------------------------------------------------------------ */

/* Takes items from *item on until the rows or the places are full; patches without a path have the base value. */
static void open_items(paths *p, int64_t *item_index, int64_t n, const double *base) {
    const asp_component_setting *s = &p->setting;
    p->n_items = 0;
    p->offsets[0] = 0;
    for (; *item_index < n && p->n_items < p->max_items; ++*item_index) {
        const int64_t patch = p->order[*item_index / s->n], prompt = *item_index % s->n, i = p->n_items;
        const int64_t t = s->offsets[prompt + 1] - s->offsets[prompt];
        if (p->start[patch] > s->model->config.n_layer) {
            p->values[patch * s->task->clean.n_prompts + s->first + prompt] = base[s->first + prompt];
            continue;
        }
        if (i && p->offsets[i] + t > p->max_rows) return;
        p->items[i] = (item){patch, prompt, p->start[patch]};
        p->offsets[i + 1] = p->offsets[i] + t;
        p->held[i] = s->held ? s->held[prompt] : NULL;
        p->n_items++;
    }
}

static asp_status run_path_prompts(paths *p, double *base, double *other, const asp_context *context, asp_error *err) {
    const asp_component_setting *s = &p->setting;
    const int64_t n = p->patches->n;
    asp_status status = asp_blas_enter(context, err);
    if (status) return status;
    status = asp_last_of_run(base + s->first, s, &p->last, s->plain.resid, context);
    if (!status) status = asp_last_of_run(other + s->first, s, &p->last, s->replaced.resid, context);
    for (int64_t i = 0; !status && i < n * s->n;) {
        open_items(p, &i, n * s->n, base);
        status = run_path_items(p, context);
        if (!status) status = asp_context_progress(context, s->stage, n * s->first + i, n * s->task->clean.n_prompts);
    }
    asp_blas_leave();
    return status;
}

static asp_status open_paths(paths *p, const asp_context *context, asp_error *err) {
    asp_component_setting *s = &p->setting;
    int64_t n;
    if (!asp_multiply(p->patches->n, s->task->clean.n_prompts, &n)) n = BLOCK_ROWS;
    p->max_items = asp_max(1, asp_min(n, BLOCK_ROWS));
    p->max_rows = asp_min(asp_max(BLOCK_ROWS, s->longest), p->max_items * s->longest);
    asp_arena_part parts[PARTS];
    s->stays = lay_out_path(p, parts, context->n_threads);
    p->arena = (asp_arena){0};
    asp_status status = asp_component_setting_open(s, context, err);
    if (!status) status = allocate_path(p, context->n_threads, err);
    if (!status) sort_patches(p);
    return status;
}

asp_status asp_path_values(double *values, double *base, double *other, const asp_model *model, const asp_task *task,
                           const asp_path_patches *patches, const asp_path_options *options, const asp_context *context,
                           asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    paths p = {.setting = {.model = model,
                           .task = task,
                           .stage = "path patching",
                           .options = {.ablation = ASP_COMPONENT_COUNTERFACTUAL,
                                       .denoising = options->denoising,
                                       .held_gate = options->held_gate,
                                       .max_bytes = options->max_bytes},
                           .with_base = 1,
                           .own_bytes = path_bytes},
               .patches = patches,
               .values = values};
    asp_component_setting *s = &p.setting;
    asp_status status = asp_component_setting_check(s, err);
    if (!status) status = open_paths(&p, &own, err);
    if (!status) status = asp_context_progress(&own, s->stage, 0, patches->n * task->clean.n_prompts);
    if (!status) status = asp_component_setting_next(s, &own, err);
    while (!status && s->n) {
        status = run_path_prompts(&p, base, other, &own, err);
        if (!status) status = asp_component_setting_next(s, &own, err);
    }
    asp_component_setting_close(s);
    asp_arena_free(&p.arena);
    return status;
}
