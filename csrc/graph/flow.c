/* flow.c: a run whose patterns, gates and LayerNorm scales are held, so that the residual stream is linear in what is
 * written into it. */
#include <string.h>

#include "graph/graph.h"

/* ---- a held run ------------------------------------------------------------------------------- */

asp_status asp_flow_open(asp_flow *flow, const asp_model *model, const asp_held_run *frozen, asp_error *err) {
    *flow = (asp_flow){.model = model,
                       .given = frozen,
                       .ln1_scale = asp_run_array(frozen->run, ASP_LN1_SCALE),
                       .ln2_scale = asp_run_array(frozen->run, ASP_LN2_SCALE),
                       .final_scale = asp_run_array(frozen->run, ASP_LN_FINAL_SCALE),
                       .pattern = asp_run_array(frozen->run, ASP_PATTERN).data};
    if (!flow->pattern || !flow->ln1_scale.data || !flow->ln2_scale.data || !flow->final_scale.data)
        return asp_fail(err, ASP_BAD_STATE,
                        "a graph needs a run that recorded pattern, ln1_scale, ln2_scale and ln_final_scale");
    if (asp_run_n_sequences(frozen->run) != 1)
        return asp_fail(err, ASP_BAD_ARGUMENT, "a graph is of one prompt, the run has %lld",
                        (long long)asp_run_n_sequences(frozen->run));
    flow->n_tokens = asp_run_offsets(frozen->run)[1];
    return ASP_OK;
}

asp_status asp_flow_check_writes(const asp_flow *flow, const asp_writes *w, asp_error *err) {
    for (int64_t i = 0; i < w->n_writes; i++) {
        if (w->layer[i] < 0 || w->layer[i] > flow->model->config.n_layer || w->position[i] < 0 ||
            w->position[i] >= flow->n_tokens || w->source[i] < 0 || w->source[i] >= w->n_sources)
            return asp_fail(err, ASP_BAD_INDEX, "write %lld (layer %d, position %d, source %d) is out of range",
                            (long long)i, w->layer[i], w->position[i], w->source[i]);
        if (i &&
            (w->layer[i] < w->layer[i - 1] || (w->layer[i] == w->layer[i - 1] && w->position[i] < w->position[i - 1])))
            return asp_fail(err, ASP_BAD_ARGUMENT, "writes must be in order of layer and position, write %lld is not",
                            (long long)i);
    }
    return ASP_OK;
}

asp_status asp_flow_check_reads(const asp_flow *flow, const asp_reads *r, int64_t *order, asp_error *err) {
    const int64_t n_points = 2 * flow->model->config.n_layer + 1;
    int64_t n = 0;
    for (int64_t i = 0; i < r->n_targets; i++)
        if (r->point[i] < 0 || r->point[i] >= n_points || r->position[i] < 0 || r->position[i] >= flow->n_tokens ||
            r->reading[i] > ASP_READ_LAYERNORM)
            return asp_fail(err, ASP_BAD_INDEX, "target %lld (point %d, position %d) is out of range", (long long)i,
                            r->point[i], r->position[i]);
    for (int64_t point = n_points - 1; point >= 0; point--)
        for (int64_t i = 0; i < r->n_targets; i++)
            if (r->point[i] == point) order[n++] = i;
    return ASP_OK;
}

asp_real asp_flow_scale(const asp_flow *flow, int64_t point, int64_t position) {
    const int64_t layer = point / 2;
    if (layer == flow->model->config.n_layer)
        return ((const asp_real *)flow->final_scale.data)[position * flow->final_scale.strides[0]];
    const asp_array *a = point % 2 ? &flow->ln2_scale : &flow->ln1_scale;
    return ((const asp_real *)a->data)[layer * a->strides[0] + position * a->strides[1]];
}

void asp_flow_normalize(asp_real *x, const asp_real *weight, asp_real scale, int64_t width) {
    double sum = 0;
    for (int64_t j = 0; j < width; j++) sum += (double)x[j];
    const asp_real mean = (asp_real)(sum / (double)width);
    for (int64_t j = 0; j < width; j++) x[j] = (x[j] - mean) / scale * (weight ? weight[j] : 1);
}

void asp_flow_normalize_back(asp_real *x, const asp_real *weight, asp_real scale, int64_t width) {
    for (int64_t j = 0; weight && j < width; j++) x[j] *= weight[j];
    asp_flow_normalize(x, NULL, scale, width);
}

double asp_flow_direction(const asp_flow *flow, const asp_reads *reads, int64_t target, asp_real *direction) {
    const asp_model *m = flow->model;
    const int64_t e = m->config.d_model, point = reads->point[target], layer = point / 2;
    double bias = 0;
    memcpy(direction, reads->vectors + target * e, (size_t)e * sizeof *direction);
    if (reads->reading[target] == ASP_READ_RESID) return 0;
    const asp_real *weight = NULL;
    if (reads->reading[target] == ASP_READ_LAYERNORM) {
        const int last = layer == m->config.n_layer;
        const int64_t b = last ? m->lnf_b : point % 2 ? m->layers[layer].ln2_b : m->layers[layer].ln1_b;
        weight = m->data + (last ? m->lnf_w : point % 2 ? m->layers[layer].ln2_w : m->layers[layer].ln1_w);
        for (int64_t j = 0; b >= 0 && j < e; j++) bias += (double)direction[j] * (double)m->data[b + j];
    }
    asp_flow_normalize_back(direction, weight, asp_flow_scale(flow, point, reads->position[target]), e);
    return bias;
}

asp_status asp_flow_multiply(const asp_flow_product *p, const asp_context *context) {
    if (!p->m || !p->n) return ASP_OK;
    const asp_gemm g = {.trans_b = p->transpose_b,
                        .m = p->m,
                        .n = p->n,
                        .k = p->k,
                        .a = p->a,
                        .lda = p->lda,
                        .b = p->b,
                        .ldb = p->ldb,
                        .c = p->out,
                        .ldc = p->ldc,
                        .accumulate = p->accumulate,
                        .n_rows = p->m};
    return asp_gemm_run(&g, context);
}
