/* reference.c: what ablated heads are replaced by, the same in sweeps and in attribution. */
#include <string.h>

#include "circuit/circuit.h"

asp_status asp_reference_open(asp_reference_view *r, const asp_reference *given, const asp_config *config,
                              const int64_t *offsets, int64_t n_sequences, int alike, const char *caller,
                              asp_error *err) {
    *r = (asp_reference_view){.given = given, .config = config, .offsets = offsets};
    for (int64_t b = 0; alike && b < n_sequences; b++)
        if (offsets[b + 1] - offsets[b] != offsets[1])
            return asp_fail(err, ASP_BAD_ARGUMENT,
                            "%s: prompt %lld has %lld tokens, prompt 0 has %lld; items with positions and means need "
                            "prompts of one length",
                            caller, (long long)b, (long long)(offsets[b + 1] - offsets[b]), (long long)offsets[1]);
    if (!given->run) return ASP_OK;
    if (asp_run_n_sequences(given->run) != n_sequences ||
        memcmp(asp_run_offsets(given->run), offsets, (size_t)(n_sequences + 1) * sizeof *offsets) != 0)
        return asp_fail(err, ASP_BAD_ARGUMENT, "%s: the reference run must have prompts of the same lengths", caller);
    r->z = asp_run_array(given->run, ASP_Z);
    r->pattern = asp_run_array(given->run, ASP_PATTERN);
    r->qkv = asp_run_array(given->run, ASP_QKV);
    r->square_start = asp_run_square_start(given->run);
    return ASP_OK;
}

const asp_real *asp_reference_z(const asp_reference_view *r, int64_t layer, int64_t sequence, int64_t head,
                                int64_t position) {
    const asp_config *c = r->config;
    const int64_t row = r->offsets[sequence], t = r->offsets[sequence + 1] - row;
    if (r->z.data)
        return (const asp_real *)r->z.data + layer * r->z.strides[0] + (row + position) * r->z.strides[1] +
               head * c->d_head;
    return r->given->z ? r->given->z + ((layer * t + position) * c->n_head + head) * c->d_head : NULL;
}

/* ---- means ------------------------------------------------------------------------------------------ */

typedef struct {
    asp_real *entries;
    asp_array pattern, qkv;
    const int64_t *offsets;
    int64_t n_sequences, n_layer, n_head, d_head;
} mean_job;

/* One (layer, head): sums in double, in the order of the sequences. */
static void mean_item(void *arg, int64_t head_index, int thread) {
    (void)thread;
    const mean_job *job = arg;
    const int64_t t = job->offsets[1], d = job->d_head, layer = head_index / job->n_head,
                  head = head_index % job->n_head;
    const int64_t block = job->n_layer * job->n_head * t * t;
    for (int64_t q = 0; q < t; q++)
        for (int64_t k = 0; k <= q; k++)
            for (int64_t j = 0; j < d; j++) {
                double sum = 0;
                for (int64_t b = 0; b < job->n_sequences; b++) {
                    const asp_real *v = (const asp_real *)job->qkv.data + layer * job->qkv.strides[0] +
                                        (job->offsets[b] + k) * job->qkv.strides[1] + 2 * job->qkv.strides[2] +
                                        head * d;
                    sum += (double)((const asp_real *)job->pattern.data)[b * block + (head_index * t + q) * t + k] *
                           (double)v[j];
                }
                job->entries[((head_index * t + q) * t + k) * d + j] = (asp_real)(sum / (double)job->n_sequences);
            }
}

asp_status asp_reference_mean_entries(asp_real *entries, const asp_run *run, const asp_context *context,
                                      asp_error *err) {
    ASP_ENVIRONMENT;
    mean_job job = {.entries = entries,
                    .pattern = asp_run_array(run, ASP_PATTERN),
                    .qkv = asp_run_array(run, ASP_QKV),
                    .offsets = asp_run_offsets(run),
                    .n_sequences = asp_run_n_sequences(run)};
    if (!job.pattern.data || !job.qkv.data)
        return asp_fail(err, ASP_BAD_STATE, "means of entries need a run that recorded pattern and v");
    for (int64_t b = 0; b < job.n_sequences; b++)
        if (job.offsets[b + 1] - job.offsets[b] != job.offsets[1])
            return asp_fail(
                err, ASP_BAD_ARGUMENT,
                "means of entries need prompts of one length: prompt %lld has %lld tokens, prompt 0 has %lld",
                (long long)b, (long long)(job.offsets[b + 1] - job.offsets[b]), (long long)job.offsets[1]);
    job.n_layer = job.qkv.dims[0];
    job.n_head = job.qkv.dims[3];
    job.d_head = job.qkv.dims[4];
    return asp_parallel_for(context, job.n_layer * job.n_head, mean_item, &job);
}
