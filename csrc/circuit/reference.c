/* reference.c: what ablated items are replaced by, the same in sweeps and in attribution; means over prompts. */
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

typedef struct {
    asp_real *mean;
    asp_array z;
    int64_t n_sequences, length, width;
} mean_z_job;

/* One (layer, position): sums in double, in the order of the sequences. */
static void mean_z_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const mean_z_job *job = arg;
    const int64_t layer = item / job->length, position = item % job->length;
    const asp_real *z = (const asp_real *)job->z.data + layer * job->z.strides[0] + position * job->z.strides[1];
    for (int64_t j = 0; j < job->width; j++) {
        double sum = 0;
        for (int64_t b = 0; b < job->n_sequences; b++) sum += (double)z[b * job->length * job->z.strides[1] + j];
        job->mean[item * job->width + j] = (asp_real)(sum / (double)job->n_sequences);
    }
}

asp_status asp_reference_mean_z(asp_real *mean, const asp_run *run, const asp_context *context) {
    mean_z_job job = {.mean = mean,
                      .z = asp_run_array(run, ASP_Z),
                      .n_sequences = asp_run_n_sequences(run),
                      .length = asp_run_offsets(run)[1]};
    job.width = job.z.dims[2] * job.z.dims[3];
    return asp_parallel_for(context, job.z.dims[0] * job.length, mean_z_item, &job);
}

typedef struct {
    asp_real *z, *entries;
    const uint8_t *open;
    int64_t n_head, length, d_head;
} close_job;

/* One (layer, head). */
static void close_item(void *arg, int64_t head_index, int thread) {
    (void)thread;
    const close_job *job = arg;
    const int64_t layer = head_index / job->n_head, head = head_index % job->n_head, t = job->length, d = job->d_head;
    for (int64_t q = 0; q < t; q++) {
        asp_real *z = job->z + ((layer * t + q) * job->n_head + head) * d;
        memset(z, 0, (size_t)d * sizeof *z);
        for (int64_t k = 0; k < t; k++) {
            const int64_t entry = (head_index * t + q) * t + k;
            asp_real *x = job->entries + entry * d;
            if (!job->open[entry]) memset(x, 0, (size_t)d * sizeof *x);
            for (int64_t j = 0; j < d; j++) z[j] += x[j];
        }
    }
}

asp_status asp_reference_close(asp_real *z, asp_real *entries, const uint8_t *open, const asp_config *config,
                               int64_t length, const asp_context *context) {
    close_job job = {z, entries, open, config->n_head, length, config->d_head};
    return asp_parallel_for(context, config->n_layer * config->n_head, close_item, &job);
}
