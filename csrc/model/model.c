/* model.c: the parameter table and the model's one arena of weights.
 * The table is the single list: it sizes the arena, names the arrays in Python and matches checkpoints. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/model.h"
#include "kernels/skinny.h"

static asp_status check_range(const char *name, int64_t value, int64_t most, asp_error *err) {
    if (value >= 1 && value <= most) return ASP_OK;
    return asp_fail(err, ASP_BAD_ARGUMENT, "%s must be an integer in 1..%lld, got %lld", name, (long long)most,
                    (long long)value);
}

static asp_status check_attention(const asp_config *c, asp_error *err) {
    const int64_t least = asp_min(c->window, c->top_k), most = asp_max(c->window, c->top_k);
    if (least < 0 || most > 1048576)
        return asp_fail(err, ASP_BAD_ARGUMENT, "window and top_k must be integers in 0..1048576, got %lld and %lld",
                        (long long)c->window, (long long)c->top_k);
    if (!(c->min_weight >= 0 && c->min_weight < 1))
        return asp_fail(err, ASP_BAD_ARGUMENT, "min_weight must be at least 0 and below 1, got %g", c->min_weight);
    if (c->self_closed && !c->gated)
        return asp_fail(err, ASP_BAD_ARGUMENT, "self_closed is for gated models, this one is dense");
    if (c->gated && (most || c->min_weight > 0))
        return asp_fail(err, ASP_BAD_ARGUMENT,
                        "window, top_k and min_weight are for dense models; the gate chooses a gated model's entries");
    return ASP_OK;
}

/* The largest sizes are chosen so that no product of two of them passes 2^53. */
static asp_status check_config(const asp_config *c, asp_error *err) {
    const struct {
        const char *name;
        int64_t value, most;
    } fields[] = {{"n_layer", c->n_layer, 512},    {"n_head", c->n_head, 1024},  {"d_model", c->d_model, 65536},
                  {"d_head", c->d_head, 65536},    {"d_mlp", c->d_mlp, 1048576}, {"n_ctx", c->n_ctx, 1048576},
                  {"n_vocab", c->n_vocab, 4194304}};
    asp_status status = ASP_OK;
    for (size_t i = 0; !status && i < sizeof fields / sizeof fields[0]; i++)
        status = check_range(fields[i].name, fields[i].value, fields[i].most, err);
    if (!status) status = check_range("n_head * d_head", c->n_head * c->d_head, 1048576, err);
    if (status) return status;
    if (!(c->ln_eps >= 0) || !isfinite(c->ln_eps))
        return asp_fail(err, ASP_BAD_ARGUMENT, "ln_eps must be finite and not negative, got %g", c->ln_eps);
    if (!isfinite(c->gate_bias))
        return asp_fail(err, ASP_BAD_ARGUMENT, "gate_bias must be finite, got %g", c->gate_bias);
    return check_attention(c, err);
}

/* Appends one array to the table; rows 0 means a vector of `columns`.  Returns its offset. */
static int64_t add_parameter(asp_model *m, const char *name, int64_t rows, int64_t columns) {
    asp_parameter *p = &m->parameters[m->n_parameters++];
    snprintf(p->name, sizeof p->name, "%s", name);
    p->n_dims = rows ? 2 : 1;
    p->dims[0] = rows ? rows : columns;
    p->dims[1] = rows ? columns : 0;
    p->size = (rows ? rows : 1) * columns;
    p->offset = m->size;
    m->size += asp_round_up(p->size, 16);
    return p->offset;
}

static int64_t add_layer_parameter(asp_model *m, int64_t layer, const char *name, int64_t rows, int64_t columns) {
    char full[48];
    snprintf(full, sizeof full, "h.%lld.%s", (long long)layer, name);
    return add_parameter(m, full, rows, columns);
}

static void lay_out_parameters(asp_model *m) {
    const asp_config *c = &m->config;
    const int64_t e = c->d_model, width = c->n_head * c->d_head, mlp = c->d_mlp;
    m->wte = add_parameter(m, "wte.weight", c->n_vocab, e);
    m->wpe = add_parameter(m, "wpe.weight", c->n_ctx, e);
    for (int64_t l = 0; l < c->n_layer; l++) {
        asp_layer_offsets *o = &m->layers[l];
        memset(o, -1, sizeof *o);
        o->ln1_w = add_layer_parameter(m, l, "ln_1.weight", 0, e);
        if (c->bias) o->ln1_b = add_layer_parameter(m, l, "ln_1.bias", 0, e);
        o->qkv_w = add_layer_parameter(m, l, "attn.c_attn.weight", e, 3 * width);
        if (c->bias) o->qkv_b = add_layer_parameter(m, l, "attn.c_attn.bias", 0, 3 * width);
        o->proj_w = add_layer_parameter(m, l, "attn.c_proj.weight", width, e);
        if (c->bias) o->proj_b = add_layer_parameter(m, l, "attn.c_proj.bias", 0, e);
        o->ln2_w = add_layer_parameter(m, l, "ln_2.weight", 0, e);
        if (c->bias) o->ln2_b = add_layer_parameter(m, l, "ln_2.bias", 0, e);
        o->fc_w = add_layer_parameter(m, l, "mlp.c_fc.weight", e, mlp);
        if (c->bias) o->fc_b = add_layer_parameter(m, l, "mlp.c_fc.bias", 0, mlp);
        o->out_w = add_layer_parameter(m, l, "mlp.c_proj.weight", mlp, e);
        if (c->bias) o->out_b = add_layer_parameter(m, l, "mlp.c_proj.bias", 0, e);
    }
    m->lnf_w = add_parameter(m, "ln_f.weight", 0, e);
    m->lnf_b = c->bias ? add_parameter(m, "ln_f.bias", 0, e) : -1;
    m->unembed_w = c->tied ? m->wte : add_parameter(m, "lm_head.weight", c->n_vocab, e);
    m->unembed_b = c->unembed_bias ? add_parameter(m, "lm_head.bias", 0, c->n_vocab) : -1;
}

asp_status asp_model_new(asp_model **model, const asp_config *config, asp_error *err) {
    ASP_ENVIRONMENT;
    *model = NULL;
    const asp_status status = check_config(config, err);
    if (status) return status;
    asp_model *m = asp_allocate(1, sizeof *m);
    if (!m) return asp_fail(err, ASP_NO_MEMORY, "no memory for a model");
    m->config = *config;
    m->shared = -1;
    m->parameters = asp_allocate(12 * config->n_layer + 6, sizeof *m->parameters);
    m->layers = asp_allocate(config->n_layer, sizeof *m->layers);
    if (!m->parameters || !m->layers) {
        asp_model_free(m);
        return asp_fail(err, ASP_NO_MEMORY, "no memory for a model");
    }
    lay_out_parameters(m);
    m->data = asp_allocate(m->size, sizeof *m->data);
    if (!m->data) {
        const double bytes = (double)m->size * (double)sizeof *m->data;
        asp_model_free(m);
        return asp_fail(err, ASP_NO_MEMORY, "the weights of this model need %s, which could not be allocated",
                        asp_fail_size((char[32]){0}, bytes));
    }
    m->k_block.model = asp_skinny_probe(config->d_model);
    m->k_block.heads = asp_skinny_probe(config->n_head * config->d_head);
    m->k_block.head = asp_skinny_probe(config->d_head);
    m->k_block.mlp = asp_skinny_probe(config->d_mlp);
    if (m->k_block.model < 0 || m->k_block.heads < 0 || m->k_block.head < 0 || m->k_block.mlp < 0) {
        asp_model_free(m);
        return asp_fail(err, ASP_NO_MEMORY, "no memory to choose how this model is computed");
    }
    *model = m;
    return ASP_OK;
}

void asp_model_free(asp_model *model) {
    if (!model) return;
    asp_shared_close(model->shared);
    asp_release(model->data);
    asp_release(model->layers);
    asp_release(model->parameters);
    asp_release(model);
}

const asp_config *asp_model_config(const asp_model *model) { return &model->config; }
int64_t asp_model_n_parameters(const asp_model *model) { return model->n_parameters; }
const asp_parameter *asp_model_parameter(const asp_model *model, int64_t index) { return &model->parameters[index]; }
asp_real *asp_model_data(asp_model *model) { return model->data; }
int64_t asp_model_size(const asp_model *model) { return model->size; }

asp_status asp_model_share(asp_model *model, int *descriptor, const asp_context *context) {
    ASP_ENVIRONMENT;
    asp_status status = ASP_OK;
    if (model->shared < 0) status = asp_shared_offer(model->data, &model->shared, context);
    *descriptor = model->shared;
    return status;
}

asp_status asp_model_take_shared(asp_model *model, int descriptor, int *taken, const asp_context *context) {
    ASP_ENVIRONMENT;
    const asp_status status = asp_shared_take(model->data, descriptor, taken, context);
    if (!status && *taken) {
        asp_shared_close(model->shared);
        model->shared = descriptor;
    }
    return status;
}

int64_t asp_model_count_nonfinite(const asp_real *data, int64_t n, int64_t *first) {
    ASP_ENVIRONMENT;
    int64_t count = 0;
    *first = -1;
    for (int64_t begin = 0; begin < n; begin += 4096) {
        const int64_t end = asp_min(begin + 4096, n);
        int64_t bad = 0;
        for (int64_t i = begin; i < end; i++) bad += !(data[i] - data[i] == 0);
        for (int64_t i = begin; bad && *first < 0 && i < end; i++)
            if (!(data[i] - data[i] == 0)) *first = i;
        count += bad;
    }
    return count;
}
