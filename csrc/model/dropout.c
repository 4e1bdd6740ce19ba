/* dropout.c: what training drops at random: entries of the pattern, whole heads, values of attn_out and mlp_out.
 * Counter-based: a value is dropped or not by its place alone, so nothing is stored and the backward pass drops the
 * same ones.  Attention itself applies what asp_dropout_attention says (kernels_attention.h). */
#include "model/model.h"

double asp_dropout_rate(const asp_dropout *dropout, asp_drop what, int64_t layer) {
    return dropout && dropout->rates[what] ? dropout->rates[what][layer] : 0;
}

/* The words in the place of a head are above every head, so that no key is one of the gate's noise. */
static uint64_t dropout_key(const asp_dropout *dropout, asp_drop what, int64_t sequence, int64_t layer, int64_t at) {
    const uint64_t words[] = {dropout->step, dropout->first_sequence + (uint64_t)sequence, (uint64_t)layer,
                              ((uint64_t)1 << 32) + (uint64_t)what, (uint64_t)at};
    return asp_noise_key(dropout->seed, words, 5);
}

void asp_dropout_attention(const asp_dropout *dropout, int64_t sequence, int64_t layer, int64_t head,
                           asp_attention_task *task) {
    const double entries = asp_dropout_rate(dropout, ASP_DROP_ENTRIES, layer),
                 heads = asp_dropout_rate(dropout, ASP_DROP_HEADS, layer);
    if (entries == 0 && heads == 0) return;
    const uint64_t bits = dropout_key(dropout, ASP_DROP_HEADS, sequence, layer, head) >> 11;
    const double uniform = ((double)bits + 0.5) * 0x1p-53;
    task->thinned = 1;
    task->dropout_rate = (asp_real)entries;
    task->kept_scale = (asp_real)(uniform < heads ? 0 : 1 / ((1 - entries) * (1 - heads)));
    task->dropout_key = dropout_key(dropout, ASP_DROP_ENTRIES, sequence, layer, head);
}

typedef struct {
    const asp_activations *acts;
    asp_drop what;
    int64_t layer, width;
    asp_real *out;
    const asp_real *x, *residual;
} dropout_job;

/* All rows of one sequence. */
static void drop_sequence(void *arg, int64_t sequence, int thread) {
    (void)thread;
    const dropout_job *job = arg;
    const asp_activations *a = job->acts;
    const asp_real rate = (asp_real)asp_dropout_rate(a->dropout, job->what, job->layer);
    const asp_kernels *kernels = asp_isa_kernels();
    for (int64_t r = a->offsets[sequence]; r < a->offsets[sequence + 1]; r++) {
        const int64_t at = r * job->width, position = r - a->offsets[sequence];
        kernels->drop_row(job->out + at, job->x + at, job->width, rate,
                          dropout_key(a->dropout, job->what, sequence, job->layer, position));
        if (job->residual) kernels->add(job->out + at, job->residual + at, job->width);
    }
}

asp_status asp_dropout_rows(const asp_model *model, const asp_activations *acts, asp_drop what, int64_t layer,
                            asp_real *out, const asp_real *x, const asp_real *residual, const asp_context *context) {
    dropout_job job = {acts, what, layer, model->config.d_model, out, x, residual};
    return asp_parallel_for(context, acts->n_sequences, drop_sequence, &job);
}
