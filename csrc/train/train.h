/* train.h: what optimiser steps share: clipping and AdamW over blocks of weights, and a step cut into parts. */
#ifndef ASP_TRAIN_INTERNAL_H
#define ASP_TRAIN_INTERNAL_H

#include "model/model.h"

/* ---- parts.c --------------------------------------------------------------------- */

enum { ASP_PARTS_MOST_SUMS = 64, ASP_PARTS_CHUNK = 32768 };

/* Sums of neighbouring parts, in order.  Two of 2^k parts become one of 2^(k+1) as soon as both are there and the
 * first begins at a multiple of 2^(k+1); so what is added to what does not depend on who adds. */
typedef struct {
    asp_part_sum sums[ASP_PARTS_MOST_SUMS];
    int n;
    int64_t size; /* elements of each */
} asp_part_sums;
void asp_parts_range(int64_t n, int64_t n_parts, int64_t part, int64_t *begin, int64_t *end);
/* Appends a sum, which is changed; STOPPED. */
asp_status asp_parts_append(asp_part_sums *sums, asp_part_sum sum, const asp_context *context);
/* All that are left into the first, the last ones first; STOPPED. */
asp_status asp_parts_fold(asp_part_sums *sums, const asp_context *context);
/* Sequences begin..end of a batch as a batch of their own; offsets (end - begin + 1) written. */
asp_batch asp_parts_batch(const asp_batch *batch, int64_t begin, int64_t end, int64_t *offsets);

#endif
