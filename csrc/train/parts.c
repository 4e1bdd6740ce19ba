/* parts.c: a step cut into parts by its sequences, and the sum over parts in an order of its own: halves of halves,
 * whoever computes which part.  A step of one part is its own sum. */
#include "train/train.h"

void asp_parts_range(int64_t n, int64_t n_parts, int64_t part, int64_t *begin, int64_t *end) {
    const int64_t each = n / n_parts, more = n % n_parts;
    *begin = part * each + asp_min(part, more);
    *end = *begin + each + (part < more);
}

asp_batch asp_parts_batch(const asp_batch *batch, int64_t begin, int64_t end, int64_t *offsets) {
    const int64_t first = batch->offsets[begin];
    for (int64_t s = begin; s <= end; s++) offsets[s - begin] = batch->offsets[s] - first;
    return (asp_batch){.tokens = batch->tokens + first,
                       .offsets = offsets,
                       .n_sequences = end - begin,
                       .targets = batch->targets + first,
                       .weights = batch->weights + first};
}

typedef struct {
    asp_real *sum;         /* (size) added to */
    const asp_real *other; /* (size) read */
    int64_t size;
} addition_job;

static void addition_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const addition_job *job = arg;
    const int64_t at = item * ASP_PARTS_CHUNK;
    asp_isa_kernels()->add(job->sum + at, job->other + at, asp_min(ASP_PARTS_CHUNK, job->size - at));
}

/* The last sum into the one before it. */
static asp_status join_last_sums(asp_part_sums *sums, const asp_context *context) {
    asp_part_sum *into = &sums->sums[sums->n - 2];
    const asp_part_sum *last = &sums->sums[sums->n - 1];
    addition_job job = {into->data, last->data, sums->size};
    const asp_status status =
        asp_parallel_for(context, (sums->size + ASP_PARTS_CHUNK - 1) / ASP_PARTS_CHUNK, addition_item, &job);
    into->n += last->n;
    sums->n--;
    return status;
}

asp_status asp_parts_append(asp_part_sums *sums, asp_part_sum sum, const asp_context *context) {
    asp_status status = ASP_OK;
    sums->sums[sums->n++] = sum;
    while (!status && sums->n > 1) {
        const asp_part_sum *last = &sums->sums[sums->n - 1], *before = last - 1;
        if (before->n != last->n || before->first % (2 * last->n) != 0) break;
        status = join_last_sums(sums, context);
    }
    return status;
}

asp_status asp_parts_fold(asp_part_sums *sums, const asp_context *context) {
    asp_status status = ASP_OK;
    while (!status && sums->n > 1) status = join_last_sums(sums, context);
    return status;
}
