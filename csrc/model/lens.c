/* lens.c: the residual stream through the final LayerNorm and W_U (logit lens), and what each part of a run adds to a
 * logit.  Refuses runs that did not record what it reads.  Sums are in float64. */
#include <math.h>
#include <string.h>

#include "model/model.h"

enum { LENS_LANES = 8 };

/* Sum of x[i] y[i] in float64, in one order. */
static double lens_dot(const asp_real *x, const double *y, int64_t n) {
    double sums[LENS_LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LENS_LANES <= n; i += LENS_LANES)
        for (int j = 0; j < LENS_LANES; j++) sums[j] += (double)x[i + j] * y[i + j];
    for (; i < n; i++) sum += (double)x[i] * y[i];
    for (int j = 0; j < LENS_LANES; j++) sum += sums[j];
    return sum;
}

static double row_mean(const asp_real *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i];
    return sum / (double)n;
}

static asp_status check_lens_tokens(const int32_t *tokens, int64_t n, int64_t n_vocab, asp_error *err) {
    for (int64_t i = 0; tokens && i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= n_vocab)
            return asp_fail(err, ASP_BAD_INDEX, "token id %d is out of range 0..%lld", (int)tokens[i],
                            (long long)n_vocab - 1);
    return ASP_OK;
}

static asp_status check_lens_rows(const int64_t *row, int64_t n, const asp_run *run, asp_error *err) {
    const int64_t n_tokens = asp_run_offsets(run)[asp_run_n_sequences(run)];
    for (int64_t i = 0; i < n; i++)
        if (row[i] < 0 || row[i] >= n_tokens)
            return asp_fail(err, ASP_BAD_INDEX, "token row %lld is out of range: the run has %lld", (long long)row[i],
                            (long long)n_tokens);
    return ASP_OK;
}

/* ---- what rows of logits say ------------------------------------------------------------ */

typedef struct {
    const asp_lens_readout *out;
    const asp_real *logits;
    int64_t first, n_vocab; /* the first row of out */
} read_job;

/* Keeps the n_top largest of a row in order: each new one moves the smaller ones along. */
static int64_t keep_largest(int32_t *token, double *logit, int64_t n, int64_t n_top, int32_t v, double x) {
    if (n == n_top && !(x > logit[n - 1])) return n;
    int64_t at = n < n_top ? n : n_top - 1;
    for (; at > 0 && x > logit[at - 1]; at--) token[at] = token[at - 1], logit[at] = logit[at - 1];
    token[at] = v;
    logit[at] = x;
    return n < n_top ? n + 1 : n;
}

static void read_logit_row(void *arg, int64_t item, int thread) {
    (void)thread;
    const read_job *job = arg;
    const asp_lens_readout *o = job->out;
    const asp_real *x = job->logits + item * job->n_vocab;
    const int64_t r = job->first + item, top = r * o->n_top, asked = r * o->n_asked;
    double most = (double)x[0], sum = 0;
    int64_t n = 0;
    for (int64_t v = 0; v < job->n_vocab; v++) most = (double)x[v] > most ? (double)x[v] : most;
    for (int64_t v = 0; v < job->n_vocab; v++) sum += exp((double)x[v] - most);
    for (int64_t v = 0; o->n_top && v < job->n_vocab; v++)
        n = keep_largest(o->token + top, o->logit + top, n, o->n_top, (int32_t)v, (double)x[v]);
    for (int64_t i = 0; i < n; i++) o->probability[top + i] = exp(o->logit[top + i] - most) / sum;
    for (int64_t i = asked; i < asked + o->n_asked; i++) {
        const int32_t token = o->asked[i];
        o->asked_logit[i] = (double)x[token];
        o->asked_probability[i] = exp((double)x[token] - most) / sum;
        o->asked_place[i] = 0;
        for (int64_t v = 0; v < job->n_vocab; v++)
            o->asked_place[i] += x[v] > x[token] || (x[v] == x[token] && v < token);
    }
}

static asp_status check_readout(const asp_lens_readout *out, int64_t n, int64_t n_vocab, asp_error *err) {
    if (out->n_top > n_vocab)
        return asp_fail(err, ASP_BAD_ARGUMENT, "n must be at most %lld, the size of the vocabulary, got %lld",
                        (long long)n_vocab, (long long)out->n_top);
    return check_lens_tokens(out->asked, n * out->n_asked, n_vocab, err);
}

asp_status asp_lens_read(const asp_lens_readout *out, const asp_real *logits, int64_t n, int64_t n_vocab,
                         const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_status status = check_readout(out, n, n_vocab, err);
    read_job job = {out, logits, 0, n_vocab};
    return status ? status : asp_parallel_for(context, n, read_logit_row, &job);
}

/* ---- logit lens --------------------------------------------------------------------- */

typedef struct {
    const asp_model *model;
    asp_array resid, mid, scale;
    const int64_t *point, *row;
    int held;
    int64_t begin, n_padded; /* the first row of this chunk */
    asp_arena arena;
    asp_real *x, *logits; /* (n_padded,E) and (n_padded,V) */
} lens_job;

/* The final LayerNorm of one row of the residual stream. */
static void lens_row(void *arg, int64_t item, int thread) {
    (void)thread;
    const lens_job *job = arg;
    const asp_model *m = job->model;
    const int64_t e = m->config.d_model, i = job->begin + item, point = job->point[i], row = job->row[i];
    const asp_array *from = point % 2 ? &job->mid : &job->resid;
    const asp_real *x = (const asp_real *)from->data + point / 2 * from->strides[0] + row * from->strides[1];
    const asp_real *weight = m->data + m->lnf_w, *bias = asp_at_const(m->data, m->lnf_b);
    asp_real *out = job->x + item * e;
    if (!job->held) {
        const asp_layernorm ln = {
            .x = x, .weight = weight, .bias = bias, .out = out, .n = 1, .width = e, .eps = m->config.ln_eps};
        asp_isa_kernels()->layernorm_row(&ln, 0);
        return;
    }
    const double mean = row_mean(x, e),
                 scale = (double)((const asp_real *)job->scale.data)[row * job->scale.strides[0]];
    for (int64_t j = 0; j < e; j++)
        out[j] = (asp_real)(((double)x[j] - mean) / scale * (double)weight[j] + (bias ? (double)bias[j] : 0));
}

static asp_status check_lens(const lens_job *job, int64_t n, asp_error *err) {
    const int64_t last = 2 * job->model->config.n_layer;
    for (int64_t i = 0; i < n; i++) {
        if (job->point[i] < 0 || job->point[i] > last)
            return asp_fail(err, ASP_BAD_INDEX, "point %lld is out of range 0..%lld", (long long)job->point[i],
                            (long long)last);
        if (!(job->point[i] % 2 ? job->mid.data : job->resid.data))
            return asp_fail(err, ASP_BAD_STATE, "this run did not record %s; run again with record=\"attribution\"",
                            job->point[i] % 2 ? "resid_mid" : "resid_pre and resid_post");
    }
    if (!job->held || job->scale.data) return ASP_OK;
    return asp_fail(err, ASP_BAD_STATE,
                    "this run did not record ln_final_scale; run again with record=\"attribution\"");
}

static asp_status lens_chunks(lens_job *job, const asp_lens_readout *out, int64_t n, const asp_context *context) {
    const int64_t e = job->model->config.d_model, vocabulary = job->model->config.n_vocab;
    asp_status status = ASP_OK;
    for (job->begin = 0; !status && job->begin < n; job->begin += ASP_LOSS_CHUNK) {
        const int64_t rows = asp_min(ASP_LOSS_CHUNK, n - job->begin);
        read_job read = {out, job->logits, job->begin, vocabulary};
        memset(job->x + rows * e, 0, (size_t)((job->n_padded - rows) * e) * sizeof *job->x);
        status = asp_parallel_for(context, rows, lens_row, job);
        if (!status) status = asp_unembed(job->model, job->logits, job->x, rows, job->n_padded, context);
        if (!status) status = asp_parallel_for(context, rows, read_logit_row, &read);
    }
    return status;
}

asp_status asp_lens_logits(const asp_lens_readout *out, const asp_model *model, const asp_run *run, int64_t n,
                           const int64_t *point, const int64_t *row, int held, const asp_context *context,
                           asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    const int64_t e = model->config.d_model, vocabulary = model->config.n_vocab;
    lens_job job = {.model = model,
                    .resid = asp_run_array(run, ASP_RESID),
                    .mid = asp_run_array(run, ASP_RESID_MID),
                    .scale = asp_run_array(run, ASP_LN_FINAL_SCALE),
                    .point = point,
                    .row = row,
                    .held = held,
                    .n_padded = asp_shape_logit_rows(model, asp_min(n, ASP_LOSS_CHUNK))};
    asp_status status = check_readout(out, n, vocabulary, err);
    if (!status) status = check_lens_rows(row, n, run, err);
    if (!status) status = check_lens(&job, n, err);
    if (status) return status;
    asp_arena_part parts[] = {ASP_PART(job.x, job.n_padded, e), ASP_PART(job.logits, job.n_padded, vocabulary)};
    const double bytes = (double)asp_arena_lay_out(&job.arena, parts, 2);
    if (!asp_arena_commit(&job.arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "the logits of a lens need %s, which could not be allocated",
                        asp_fail_size((char[32]){0}, bytes));
    asp_arena_wire(&job.arena, parts, 2);
    status = asp_blas_enter(&own, err);
    if (!status) {
        status = lens_chunks(&job, out, n, &own);
        asp_blas_leave();
    }
    asp_arena_free(&job.arena);
    return status;
}

/* ---- direct attribution ------------------------------------------------------------- */

/* d (E) written = gamma (W_U[right] - W_U[wrong]): a logit difference is d . (x - mean) / scale + constants. */
static void logit_direction(double *d, const asp_model *m, int32_t right, const int32_t *wrong) {
    const int64_t e = m->config.d_model;
    const asp_real *gamma = m->data + m->lnf_w, *a = m->data + m->unembed_w + right * e;
    const asp_real *b = wrong ? m->data + m->unembed_w + *wrong * e : NULL;
    for (int64_t j = 0; j < e; j++) d[j] = (double)gamma[j] * ((double)a[j] - (b ? (double)b[j] : 0));
}

/* The same for x itself: u = (d - mean(d)) / scale, so that u . x is what x adds. */
static void centre_direction(double *u, int64_t width, double scale) {
    double sum = 0;
    for (int64_t j = 0; j < width; j++) sum += u[j];
    for (int64_t j = 0; j < width; j++) u[j] = (u[j] - sum / (double)width) / scale;
}

typedef struct {
    const asp_lens_parts *parts;
    const asp_model *model;
    const asp_run *run;
    const asp_lens_targets *targets;
    asp_array scale, normalized, embed, pos_embed, z, pattern, mlp_out, qkv, mlp_post;
    int64_t longest;
    asp_arena arena;
    double *directions; /* (n,E) */
    double *seen;       /* (n_threads,C): what a head's z is multiplied with */
    double *keys;       /* (n,L,longest); none if parts->key is NULL */
} attribute_job;

/* Row `row` of a packed array; with layers in front if layer >= 0. */
static const asp_real *lens_at(const asp_array *array, int64_t layer, int64_t row) {
    const asp_real *data = array->data;
    return layer < 0 ? data + row * array->strides[0] : data + layer * array->strides[0] + row * array->strides[1];
}

/* The parts that belong to no layer. */
static void attribute_row(void *arg, int64_t item, int thread) {
    (void)thread;
    const attribute_job *job = arg;
    const asp_lens_parts *p = job->parts;
    const asp_model *m = job->model;
    const int64_t e = m->config.d_model, row = job->targets->row[item];
    const int32_t right = job->targets->right[item], *wrong = job->targets->wrong ? job->targets->wrong + item : NULL;
    const asp_real *beta = asp_at_const(m->data, m->lnf_b), *b_u = asp_at_const(m->data, m->unembed_b);
    const asp_real *a = m->data + m->unembed_w + right * e, *b = wrong ? m->data + m->unembed_w + *wrong * e : NULL;
    double *u = job->directions + item * e, from_bias = 0, from_unembed = 0;
    logit_direction(u, m, right, wrong);
    for (int64_t j = 0; beta && j < e; j++) from_bias += (double)beta[j] * ((double)a[j] - (b ? (double)b[j] : 0));
    if (b_u) from_unembed = (double)b_u[right] - (wrong ? (double)b_u[*wrong] : 0);
    if (p->value) p->value[item] = lens_dot(lens_at(&job->normalized, -1, row), u, e) + from_bias + from_unembed;
    if (p->ln_bias) p->ln_bias[item] = from_bias;
    if (p->unembed_bias) p->unembed_bias[item] = from_unembed;
    centre_direction(u, e, (double)*lens_at(&job->scale, -1, row));
    if (p->embed) p->embed[item] = lens_dot(lens_at(&job->embed, -1, row), u, e);
    if (p->pos_embed) p->pos_embed[item] = lens_dot(lens_at(&job->pos_embed, -1, row), u, e);
}

/* The row of the pattern of one head at a token row, and its number of keys. */
static const asp_real *lens_pattern_row(const attribute_job *job, int64_t layer, int64_t head, int64_t row,
                                        int64_t *n) {
    const asp_config *c = &job->model->config;
    const int64_t *offsets = asp_run_offsets(job->run), *start = asp_run_square_start(job->run);
    int64_t b = 0;
    while (offsets[b + 1] <= row) b++;
    const int64_t length = offsets[b + 1] - offsets[b], query = row - offsets[b];
    *n = query + 1;
    return (const asp_real *)job->pattern.data + start[b] + ((layer * c->n_head + head) * length + query) * length;
}

/* What the heads of a layer add, by head or by key; seen (C) read: W_O u. */
static void attribute_heads(const attribute_job *job, int64_t item, int64_t layer, const double *seen) {
    const asp_lens_parts *p = job->parts;
    const asp_config *c = &job->model->config;
    const int64_t d = c->d_head, width = c->n_head * d, row = job->targets->row[item], at = item * c->n_layer + layer;
    const asp_real *bias = asp_at_const(job->model->data, job->model->layers[layer].qkv_b);
    double from_bias = 0;
    for (int64_t h = 0; h < c->n_head; h++) {
        int64_t n_keys;
        const asp_real *a = lens_pattern_row(job, layer, h, row, &n_keys);
        const double b = bias ? lens_dot(bias + 2 * width + h * d, seen + h * d, d) : 0;
        double sum = 0;
        for (int64_t k = 0; k < n_keys; k++) sum += (double)a[k];
        from_bias += sum * b;
        if (p->head)
            p->head[at * c->n_head + h] = lens_dot(lens_at(&job->z, layer, row) + h * d, seen + h * d, d) - sum * b;
        for (int64_t k = 0; p->key && k < n_keys; k++) {
            if (a[k] == 0) continue;
            const asp_real *v = lens_at(&job->qkv, layer, row + 1 - n_keys + k) + 2 * width + h * d;
            job->keys[at * job->longest + k] += (double)a[k] * (lens_dot(v, seen + h * d, d) - b);
        }
    }
    if (p->value_bias) p->value_bias[at] = from_bias;
}

static void attribute_layer(void *arg, int64_t item, int thread) {
    const attribute_job *job = arg;
    const asp_lens_parts *p = job->parts;
    const asp_model *m = job->model;
    const asp_config *c = &m->config;
    const int64_t i = item / c->n_layer, layer = item % c->n_layer, e = c->d_model, width = c->n_head * c->d_head;
    const int64_t row = job->targets->row[i];
    const asp_layer_offsets *o = &m->layers[layer];
    const double *u = job->directions + i * e;
    const asp_real *b_o = asp_at_const(m->data, o->proj_b), *b_out = asp_at_const(m->data, o->out_b);
    if (p->head || p->value_bias || p->key) {
        double *seen = job->seen + thread * width;
        for (int64_t j = 0; j < width; j++) seen[j] = lens_dot(m->data + o->proj_w + j * e, u, e);
        attribute_heads(job, i, layer, seen);
    }
    if (p->attn_bias) p->attn_bias[item] = b_o ? lens_dot(b_o, u, e) : 0;
    if (p->mlp) p->mlp[item] = lens_dot(lens_at(&job->mlp_out, layer, row), u, e);
    if (p->mlp_bias) p->mlp_bias[item] = b_out ? lens_dot(b_out, u, e) : 0;
    for (int64_t j = 0; p->neuron && j < c->d_mlp; j++)
        p->neuron[item * c->d_mlp + j] =
            (double)lens_at(&job->mlp_post, layer, row)[j] * lens_dot(m->data + o->out_w + j * e, u, e);
}

static asp_status check_parts(const attribute_job *job, asp_error *err) {
    const asp_lens_parts *p = job->parts;
    const struct {
        const void *wanted, *data;
        const char *name;
    } needed[] = {{p, job->scale.data, "ln_final_scale"},
                  {p->value, job->normalized.data, "ln_final_normalized"},
                  {p->embed, job->embed.data, "embed"},
                  {p->pos_embed, job->pos_embed.data, "pos_embed"},
                  {p->head, job->z.data, "z"},
                  {p->head, job->pattern.data, "pattern"},
                  {p->value_bias, job->pattern.data, "pattern"},
                  {p->key, job->pattern.data, "pattern"},
                  {p->key, job->qkv.data, "v"},
                  {p->mlp, job->mlp_out.data, "mlp_out"},
                  {p->neuron, job->mlp_post.data, "mlp_post"}};
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++)
        if (needed[i].wanted && !needed[i].data)
            return asp_fail(err, ASP_BAD_STATE, "this run did not record %s; run again with record=\"attribution\"",
                            needed[i].name);
    return ASP_OK;
}

static asp_status check_targets(const asp_lens_targets *targets, int64_t n_vocab, asp_error *err) {
    const asp_status status = check_lens_tokens(targets->right, targets->n, n_vocab, err);
    return status ? status : check_lens_tokens(targets->wrong, targets->n, n_vocab, err);
}

static asp_status compute_parts(const attribute_job *job, const asp_context *context) {
    const int64_t n = job->targets->n, n_layer = job->model->config.n_layer, longest = job->longest;
    asp_status status = asp_parallel_for(context, n, attribute_row, (void *)(uintptr_t)job);
    if (!status) status = asp_parallel_for(context, n * n_layer, attribute_layer, (void *)(uintptr_t)job);
    if (status || !job->parts->key) return status;
    for (int64_t i = 0; i < n * longest; i++) {
        job->parts->key[i] = 0;
        for (int64_t l = 0; l < n_layer; l++)
            job->parts->key[i] += job->keys[(i / longest * n_layer + l) * longest + i % longest];
    }
    return ASP_OK;
}

asp_status asp_lens_attribute(const asp_lens_parts *parts, const asp_model *model, const asp_run *run,
                              const asp_lens_targets *targets, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_config *c = &model->config;
    attribute_job job = {.parts = parts,
                         .model = model,
                         .run = run,
                         .targets = targets,
                         .scale = asp_run_array(run, ASP_LN_FINAL_SCALE),
                         .normalized = asp_run_array(run, ASP_LN_FINAL_NORMALIZED),
                         .embed = asp_run_array(run, ASP_EMBED),
                         .pos_embed = asp_run_array(run, ASP_POS_EMBED),
                         .z = asp_run_array(run, ASP_Z),
                         .pattern = asp_run_array(run, ASP_PATTERN),
                         .mlp_out = asp_run_array(run, ASP_MLP_OUT),
                         .qkv = asp_run_array(run, ASP_QKV),
                         .mlp_post = asp_run_array(run, ASP_MLP_POST),
                         .longest = asp_shape_longest(asp_run_offsets(run), asp_run_n_sequences(run))};
    asp_status status = check_parts(&job, err);
    if (!status) status = check_lens_rows(targets->row, targets->n, run, err);
    if (!status) status = check_targets(targets, c->n_vocab, err);
    if (status) return status;
    asp_arena_part list[] = {ASP_PART(job.directions, targets->n, c->d_model),
                             ASP_PART(job.seen, context->n_threads, c->n_head * c->d_head),
                             ASP_PART(job.keys, parts->key ? targets->n * c->n_layer : 0, job.longest)};
    const double bytes = (double)asp_arena_lay_out(&job.arena, list, 3);
    if (!asp_arena_commit(&job.arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "the attribution of %lld logits needs %s, which could not be allocated",
                        (long long)targets->n, asp_fail_size((char[32]){0}, bytes));
    asp_arena_wire(&job.arena, list, 3);
    status = compute_parts(&job, context);
    asp_arena_free(&job.arena);
    return status;
}

/* ---- vectors of the caller's ---------------------------------------------------------- */

typedef struct {
    double *out;
    const asp_model *model;
    const asp_real *x, *scale;
    const asp_lens_targets *targets;
    int64_t n_parts;
    double *direction; /* (n_threads,E) */
} project_job;

static void project_row(void *arg, int64_t item, int thread) {
    const project_job *job = arg;
    const asp_lens_targets *t = job->targets;
    const int64_t e = job->model->config.d_model;
    double *u = job->direction + thread * e;
    logit_direction(u, job->model, t->right[item], t->wrong ? t->wrong + item : NULL);
    centre_direction(u, e, (double)job->scale[item]);
    for (int64_t i = 0; i < job->n_parts; i++)
        job->out[i * t->n + item] = lens_dot(job->x + (i * t->n + item) * e, u, e);
}

asp_status asp_lens_project(double *out, const asp_model *model, const asp_real *x, int64_t n_parts,
                            const asp_real *scale, const asp_lens_targets *targets, const asp_context *context,
                            asp_error *err) {
    ASP_ENVIRONMENT;
    project_job job = {out, model, x, scale, targets, n_parts, NULL};
    asp_status status = check_targets(targets, model->config.n_vocab, err);
    if (status) return status;
    job.direction = asp_allocate(context->n_threads * model->config.d_model, sizeof *job.direction);
    if (!job.direction) return asp_fail(err, ASP_NO_MEMORY, "no memory for the direction of a logit");
    status = asp_parallel_for(context, targets->n, project_row, &job);
    asp_release(job.direction);
    return status;
}

typedef struct {
    asp_real *out;
    const asp_real *x, *scale;
    int64_t n, width;
    double eps;
} normalize_job;

static void normalize_row(void *arg, int64_t item, int thread) {
    (void)thread;
    const normalize_job *job = arg;
    const asp_real *x = job->x + item * job->width;
    asp_real *out = job->out + item * job->width;
    const double mean = row_mean(x, job->width);
    double variance = 0;
    for (int64_t j = 0; j < job->width; j++) variance += ((double)x[j] - mean) * ((double)x[j] - mean);
    const double scale =
        job->scale ? (double)job->scale[item % job->n] : sqrt(variance / (double)job->width + job->eps);
    for (int64_t j = 0; j < job->width; j++) out[j] = (asp_real)(((double)x[j] - mean) / scale);
}

asp_status asp_lens_normalize(asp_real *out, const asp_real *x, int64_t n_parts, int64_t n, int64_t width,
                              const asp_real *scale, double eps, const asp_context *context) {
    ASP_ENVIRONMENT;
    normalize_job job = {out, x, scale, n, width, eps};
    return asp_parallel_for(context, n_parts * n, normalize_row, &job);
}
