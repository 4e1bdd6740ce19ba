/* routes.c: information flow routes: which share of a receiver's input each sender makes up, by how much nearer to it
 * in the L1 norm the input is than zero. */
#include <math.h>

#include "component/component.h"

typedef struct {
    const asp_real *x;       /* (R,E) */
    const asp_real *outputs; /* (S,R,E) */
    double *shares;          /* (N,S) */
    int64_t n_before, n_senders, n_rows, width;
} route_job;

/* shares of the senders before the receiver, at one position. */
static void route_item(void *arg, int64_t row, int thread) {
    (void)thread;
    const route_job *job = arg;
    const asp_real *x = job->x + row * job->width;
    double *shares = job->shares + row * job->n_senders, norm = 0, sum = 0;
    for (int64_t j = 0; j < job->width; j++) norm += fabs((double)x[j]);
    for (int64_t s = 0; s < job->n_before; s++) {
        const asp_real *o = job->outputs + (s * job->n_rows + row) * job->width;
        double distance = 0;
        for (int64_t j = 0; j < job->width; j++) distance += fabs((double)x[j] - (double)o[j]);
        shares[s] = norm > distance ? norm - distance : 0;
        sum += shares[s];
    }
    for (int64_t s = 0; sum > 0 && s < job->n_before; s++) shares[s] /= sum;
}

/* Adds to n columns of the scores, from the one of a receiver on. */
static void add_shares(double *scores, const route_job *job, const asp_run *run, int64_t receiver, int64_t n,
                       int64_t n_receivers) {
    const int64_t *offsets = asp_run_offsets(run);
    for (int64_t s = 0; s < job->n_before; s++) {
        double all = 0;
        for (int64_t b = 0; b < asp_run_n_sequences(run); b++) {
            double sum = 0;
            for (int64_t r = offsets[b]; r < offsets[b + 1]; r++) sum += job->shares[r * job->n_senders + s];
            all += sum / (double)(offsets[b + 1] - offsets[b]);
        }
        for (int64_t i = 0; i < n; i++) scores[s * n_receivers + receiver + i] += all;
    }
}

asp_status asp_routes_add(double *scores, const asp_model *model, const asp_run *run, const asp_real *outputs,
                          int64_t n_rows, double *shares, const asp_context *context) {
    const asp_config *c = &model->config;
    const asp_array pre = asp_run_array(run, ASP_RESID), mid = asp_run_array(run, ASP_RESID_MID);
    route_job job = {.outputs = outputs,
                     .shares = shares,
                     .n_senders = asp_nodes_n_senders(c),
                     .n_rows = n_rows,
                     .width = c->d_model};
    asp_status status = ASP_OK;
    for (int64_t i = 0; !status && i <= 2 * c->n_layer; i++) {
        const int64_t layer = i / 2, first = i % 2 ? asp_nodes_mlp_input(c, layer) : asp_nodes_qkv(c, layer);
        const asp_array from = i % 2 ? mid : pre;
        job.x = (const asp_real *)from.data + layer * from.strides[0];
        job.n_before = asp_nodes_n_before(c, first);
        status = asp_parallel_for(context, pre.dims[1], route_item, &job);
        if (!status)
            add_shares(scores, &job, run, first, i % 2 || layer == c->n_layer ? 1 : 3 * c->n_head,
                       asp_nodes_n_receivers(c));
    }
    return status;
}
