/* transcoder_trainer.h: what the two files of the training of transcoders share. */
#ifndef ASP_TRANSCODER_TRAINER_H
#define ASP_TRANSCODER_TRAINER_H

#include "transcoder/transcoder.h"

enum { ASP_CODER_W_ENC, ASP_CODER_B_ENC, ASP_CODER_W_DEC, ASP_CODER_B_DEC, ASP_CODER_LOG_THRESHOLD };

/* One of the layers that are trained together: what it reads is its own, what it writes begins at its own output. */
typedef struct {
    int64_t n_features, n_written; /* F, and numbers of a row of W_dec: (L - layer) O */
    int64_t size;
    asp_transcoder_weight weights[ASP_TRANSCODER_N_WEIGHTS];
    asp_real *blocks[4];                           /* (size) weights, first and second moments, gradients */
    int64_t *silent;                               /* (F) */
    uint8_t *active, *dead;                        /* (F) in this step */
    double *threshold;                             /* (F) exp(log_threshold) in this step */
    asp_adamw_weights all;                         /* the blocks, in chunks */
    int64_t main_width, width, first_slot, n_dead; /* in this step; see coder_scratch */
} asp_coder_layer;

/* What a step needs beside the weights; made anew when it is too small.  A row of outputs is (L,O), so that what layer
 * l writes to is the end of the row from l O on. */
typedef struct {
    asp_arena arena;
    int64_t n, slots;   /* rows, and slots of a row in all layers, that it is made for */
    asp_real *pre;      /* (n,F) of the layer at work, F the largest */
    asp_real *residual; /* (2,n,L,O): output - y, and what is left of it after the dead features' output */
    int32_t *feature;   /* (slots of the layer: n,width) of all layers: feature of a slot, first the active ones, from
                           main_width the dead ones */
    asp_real *value, *dpre, *dlog; /* as feature: activation, gradients of pre and of log_threshold */
    int64_t *count;                /* (L,2,n) used slots of both parts */
    int64_t *start, *order;        /* (F+1), (n*width) of the layer at work: slots by feature */
    double *sums;                  /* (4,L,n): error, aux, penalty, number of active features of a row */
    asp_real *columns;             /* (L,O) */
} asp_coder_scratch;

struct asp_transcoder_trainer {
    int64_t n_in, n_out, n_layers, step;
    asp_coder_layer *layers; /* (L) */
    asp_coder_scratch scratch;
};

typedef struct {
    asp_transcoder_trainer *coder;
    const asp_transcoder_step_options *options;
    const asp_real *x, *y; /* (L,n,I), (L,n,O) read */
    int64_t n, n_dead;     /* rows, and dead features of all layers */
    double scale;          /* gradient of the error per unit of output - y: 2 / (n O) */
    int64_t layer;         /* at work */
} asp_coder_job;

static inline asp_real *asp_coder_weight(const asp_coder_layer *l, int which) {
    return l->blocks[0] + l->weights[which].offset;
}

/* Fills the scratch's sums and the gradients of all layers; the scratch fits.  Errors: STOPPED. */
asp_status asp_transcoder_gradients(asp_coder_job *job, const asp_context *context, asp_error *err);

#endif
