/* adamw.c: the optimiser over a block of weights, chunk by chunk: norm of the gradients, clipping, AdamW. */
#include <math.h>

#include "kernels/kernels.h"

static void square_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const asp_adamw_weights *w = arg;
    const asp_adamw_chunk *c = &w->chunks[item];
    w->squares[item] = asp_isa_kernels()->sum_squares(w->gradients + c->offset, c->size);
}

void asp_adamw_squares(const asp_adamw_weights *w, const asp_context *context) {
    const asp_context quiet = {.n_threads = context->n_threads};
    asp_parallel_for(&quiet, w->n_chunks, square_item, (void *)(uintptr_t)w);
}

double asp_adamw_norm(const asp_adamw_weights *w, const asp_context *context) {
    double sum = 0;
    asp_adamw_squares(w, context);
    for (int64_t i = 0; i < w->n_chunks; i++) sum += w->squares[i];
    return sqrt(sum);
}

typedef struct {
    const asp_adamw_weights *weights;
    asp_adamw decayed, plain;
} update_job;

static void update_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const update_job *job = arg;
    const asp_adamw_weights *w = job->weights;
    const asp_adamw_chunk *c = &w->chunks[item];
    const int64_t moment = c->offset - w->moments_from;
    asp_isa_kernels()->adamw(w->data + c->offset, w->m + moment, w->v + moment, w->gradients + c->offset, c->size,
                             c->decay ? &job->decayed : &job->plain);
}

void asp_adamw_update(const asp_adamw_weights *w, const asp_adamw_options *o, const asp_context *context) {
    update_job job = {.weights = w,
                      .plain = {.lr = o->lr,
                                .beta1 = o->beta1,
                                .beta2 = o->beta2,
                                .eps = o->eps,
                                .correction1 = 1 - pow(o->beta1, o->step),
                                .correction2 = 1 - pow(o->beta2, o->step),
                                .gradient_scale = o->clip > 0 && o->norm > o->clip ? o->clip / o->norm : 1}};
    job.decayed = job.plain;
    job.decayed.decay = o->weight_decay;
    const asp_context quiet = {.n_threads = context->n_threads};
    asp_parallel_for(&quiet, w->n_chunks, update_item, &job);
}
