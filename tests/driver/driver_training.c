/* driver_training.c: optimiser steps, whole and in pieces, as processes take them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"

enum { PARTS = 3, RANKS = 2, MOST_CHUNKS = 64, NUMBERS = 64 };

static const double bias[] = {0.5, 0.2}, edge_weight[] = {1, 2}, rates[] = {0.2, 0.3};

static asp_step_options step_options(void) {
    return (asp_step_options){.lr = 1e-3,
                              .gate_noise = 1,
                              .beta1 = 0.9,
                              .beta2 = 0.99,
                              .eps = 1e-8,
                              .weight_decay = 0.1,
                              .clip = 1,
                              .seed = 5,
                              .gate_bias = bias,
                              .edge_weight = {[ASP_ENTRY_SELF] = bias, [ASP_ENTRY_OTHER] = edge_weight},
                              .dropout = {rates, rates, rates, rates},
                              .tau = 1,
                              .geco_rate = 0.1,
                              .geco_clip = 1,
                              .geco_ema = 0.9,
                              .lambda_max = 1e9};
}

static asp_status train(const fixture *f, int kind, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_batch micro[] = {{f->tokens, f->offsets, N_SEQUENCES, f->targets, f->weights},
                               {f->tokens, f->ragged, N_SEQUENCES, f->targets, f->weights}};
    asp_step_options options = step_options();
    asp_model *model = NULL;
    asp_trainer *trainer = NULL;
    asp_step_result result = {0};
    asp_status status = small_model(&model, kind, err);
    if (!status) status = asp_trainer_new(&trainer, model, 0, 1, err);
    for (int step = 0; !status && step < 2; step++) {
        options.constraint = kind == 1 && step ? ASP_CONSTRAINT_HARD : ASP_CONSTRAINT_TRAINING;
        status = asp_trainer_step(trainer, micro + step, 2 - step, 1 + step * PARTS, &options, context, &result, err);
        add_bytes(digest, &result.loss, sizeof result.loss);
    }
    if (!status) {
        add_reals(digest, asp_model_data(model), asp_model_size(model));
        add_reals(digest, asp_trainer_first_moment(trainer), asp_model_size(model));
        add_reals(digest, asp_trainer_second_moment(trainer), asp_model_size(model));
        add_bytes(digest, &asp_trainer_get_state(trainer)->multiplier, sizeof(double));
    }
    asp_trainer_free(trainer);
    asp_model_free(model);
    return status;
}

asp_status use_training(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    asp_status status = train(f, 1, context, digest, err);
    if (!status) status = train(f, 0, context, digest, err);
    return status ? status : train(f, 2, context, digest, err);
}

/* ---- two processes ------------------------------------------------------------------------------- */

/* Two trainers, and what they pass to each other. */
typedef struct {
    asp_model *models[RANKS];
    asp_trainer *trainers[RANKS];
    double numbers[PARTS * NUMBERS], squares[MOST_CHUNKS];
    asp_real *received[RANKS]; /* (PARTS, slice) */
    asp_real *weights;         /* (arena) */
    asp_part_sum sums[RANKS][PARTS];
    int64_t n_sums;
} processes;

static void close_processes(processes *p) {
    for (int rank = 0; rank < RANKS; rank++) {
        asp_trainer_free(p->trainers[rank]);
        asp_model_free(p->models[rank]);
        free(p->received[rank]);
    }
    free(p->weights);
}

static asp_status open_processes(processes *p, asp_error *err) {
    asp_status status = ASP_OK;
    *p = (processes){0};
    for (int rank = 0; !status && rank < RANKS; rank++) {
        status = small_model(&p->models[rank], 1, err);
        if (!status) status = asp_trainer_new(&p->trainers[rank], p->models[rank], rank, RANKS, err);
        if (status) break;
        const asp_trainer_slice s = asp_trainer_slice_of(p->trainers[rank], rank);
        p->received[rank] = malloc((size_t)(PARTS * (s.end - s.begin)) * sizeof(asp_real));
        if (asp_trainer_n_numbers(p->trainers[rank]) > NUMBERS || s.end_chunk > MOST_CHUNKS) return ASP_BAD_STATE;
    }
    if (!status) p->weights = malloc((size_t)asp_model_size(p->models[0]) * sizeof(asp_real));
    return status;
}

/* The sums of process `from`, copied to all. */
static void pass_sums(processes *p, int from) {
    const asp_part_sum *sums;
    const int64_t n = asp_trainer_sums(p->trainers[from], &sums);
    for (int64_t i = 0; i < n; i++, p->n_sums++)
        for (int rank = 0; rank < RANKS; rank++) {
            const asp_trainer_slice s = asp_trainer_slice_of(p->trainers[rank], rank);
            asp_real *to = p->received[rank] + p->n_sums * (s.end - s.begin);
            memcpy(to, sums[i].data + s.begin, (size_t)(s.end - s.begin) * sizeof *to);
            p->sums[rank][p->n_sums] = (asp_part_sum){sums[i].first, sums[i].n, to};
        }
}

static asp_status take_step(processes *p, const asp_batch *micro, const asp_step_options *options,
                            const asp_context *context, asp_step_result *result, asp_error *err) {
    asp_status status = ASP_OK;
    p->n_sums = 0;
    for (int rank = 0; !status && rank < RANKS; rank++) {
        const int64_t first = rank, n = rank ? 2 : 1; /* part 0; parts 1 and 2, which do not become one sum */
        double *numbers = p->numbers + first * asp_trainer_n_numbers(p->trainers[rank]);
        status = asp_trainer_gradients(p->trainers[rank], micro, 1, PARTS, first, n, options, numbers, context, err);
        if (!status) pass_sums(p, rank);
    }
    for (int rank = 0; !status && rank < RANKS; rank++) {
        const asp_trainer_slice s = asp_trainer_slice_of(p->trainers[rank], rank);
        status =
            asp_trainer_combine(p->trainers[rank], p->sums[rank], p->n_sums, p->squares + s.first_chunk, context, err);
    }
    for (int rank = 0; !status && rank < RANKS; rank++)
        status =
            asp_trainer_update(p->trainers[rank], p->numbers, p->squares, options, p->weights, context, result, err);
    for (int rank = 0; !status && rank < RANKS; rank++) asp_trainer_adopt(p->trainers[rank], p->weights);
    return status;
}

/* Both models must be what one process makes of the same parts. */
static asp_status compare(const processes *p, const asp_batch *micro, const asp_step_options *options,
                          const asp_context *context, uint64_t *digest, asp_error *err) {
    asp_model *model = NULL;
    asp_trainer *trainer = NULL;
    asp_step_result result = {0};
    asp_status status = small_model(&model, 1, err);
    if (!status) status = asp_trainer_new(&trainer, model, 0, 1, err);
    for (int step = 0; !status && step < 2; step++)
        status = asp_trainer_step(trainer, micro, 1, PARTS, options, context, &result, err);
    const size_t bytes = status ? 0 : (size_t)asp_model_size(model) * sizeof(asp_real);
    for (int rank = 0; !status && rank < RANKS; rank++) {
        const asp_trainer_slice s = asp_trainer_slice_of(p->trainers[rank], rank);
        const size_t own = (size_t)(s.end - s.begin) * sizeof(asp_real);
        if (memcmp(asp_model_data(p->models[rank]), asp_model_data(model), bytes) != 0 ||
            memcmp(asp_trainer_first_moment(p->trainers[rank]), asp_trainer_first_moment(trainer) + s.begin, own) != 0)
            status = ASP_BAD_STATE;
    }
    if (!status) add_reals(digest, asp_model_data(model), asp_model_size(model));
    asp_trainer_free(trainer);
    asp_model_free(model);
    return status;
}

asp_status use_pieces(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_batch micro = {f->tokens, f->ragged, N_SEQUENCES, f->targets, f->weights};
    const asp_step_options options = step_options();
    asp_step_result result = {0};
    processes p;
    asp_status status = open_processes(&p, err);
    for (int step = 0; !status && step < 2; step++) status = take_step(&p, &micro, &options, context, &result, err);
    if (!status) status = compare(&p, &micro, &options, context, digest, err);
    close_processes(&p);
    return status;
}

asp_status use_wrong_pieces(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    (void)digest;
    const asp_batch micro = {f->tokens, f->ragged, N_SEQUENCES, f->targets, f->weights};
    const asp_step_options options = step_options();
    asp_step_result result = {0};
    processes p;
    asp_status status = open_processes(&p, err);
    if (!status) status = take_step(&p, &micro, &options, context, &result, err);
    if (!status) {
        const asp_part_sum too_few[] = {{0, 1, p.received[0]}}, gap[] = {{1, 2, p.received[0]}};
        if (asp_trainer_combine(p.trainers[0], too_few, 1, p.squares, context, err) != ASP_BAD_ARGUMENT ||
            asp_trainer_combine(p.trainers[0], gap, 1, p.squares, context, err) != ASP_BAD_ARGUMENT)
            status = ASP_BAD_STATE;
        p.squares[0] = NAN;
        if (!status && asp_trainer_update(p.trainers[0], p.numbers, p.squares, &options, p.weights, context, &result,
                                          err) != ASP_DIVERGED)
            status = ASP_BAD_STATE;
    }
    close_processes(&p);
    return status;
}
