/* encode.c: one layer's inputs times its encoder, and what is active of the result.
 *
 * Pre-activations are computed for a block of rows and a block of features and never held beyond that (a TopK
 * keeps the k best of each row).  Blocks depend on shapes only, and so do the bits of what is found. */
#include <string.h>

#include "transcoder/transcoder.h"

enum { FEATURE_BLOCK = 4096, ROWS_PER_ITEM = 16 };

/* ---- products with a weight (n,E) ------------------------------------------------------------- */

static int64_t feature_block_count(int64_t n, int64_t most) { return (n + most - 1) / most; }
static int64_t feature_block_start(int64_t n, int64_t blocks, int64_t i) {
    return i == blocks ? n : n * i / blocks / 16 * 16;
}

/* Rows that a product needs for bits that do not depend on the other rows. */
static int64_t rows_needed(const asp_encoding *w, int64_t rows, int64_t columns) {
    const int64_t least = w->f->k_block ? 1 : asp_gemm_min_rows(columns, w->f->config.d_model);
    return asp_max(rows, least);
}

/* Columns of the widest block, and the most rows that any block needs, for n outputs. */
static void widen_encoding(asp_encoding *w, int64_t n, int64_t rows, int64_t *most_rows) {
    const int64_t blocks = feature_block_count(n, FEATURE_BLOCK);
    for (int64_t i = 0; i < blocks; i++) {
        const int64_t columns = feature_block_start(n, blocks, i + 1) - feature_block_start(n, blocks, i);
        w->width = asp_max(w->width, columns);
        *most_rows = asp_max(*most_rows, rows_needed(w, rows, columns));
    }
}

asp_status asp_encode_open(asp_encoding *w, int with_skip) {
    const asp_features *f = w->f;
    const int64_t e = f->config.d_model, rows = asp_min(ASP_ROW_BLOCK, f->n_tokens);
    int64_t most = rows, cells, padded;
    widen_encoding(w, w->encoder->n_features, rows, &most);
    if (with_skip) widen_encoding(w, e, rows, &most);
    if (f->coder.activation == ASP_TRANSCODER_TOPK) w->k = asp_min(f->coder.top_k, w->encoder->n_features);
    if (!asp_multiply(most, w->width, &cells) || !asp_multiply(most, e, &padded)) cells = -1;
    w->pre = asp_allocate(cells, sizeof *w->pre);
    w->offsets = asp_allocate(rows + 1, sizeof *w->offsets);
    w->bad = asp_allocate(rows, sizeof *w->bad);
    w->n_best = asp_allocate(rows, sizeof *w->n_best);
    int complete = w->pre && w->offsets && w->bad && w->n_best;
    if (most > rows) complete = complete && (w->padded = asp_allocate(padded, sizeof *w->padded));
    if (w->k) complete = complete && (w->best = asp_allocate(rows * w->k, sizeof *w->best));
    return complete ? ASP_OK
                    : asp_fail(w->err, ASP_NO_MEMORY, "no memory for the features of layer %lld", (long long)w->layer);
}

void asp_encode_close(asp_encoding *w) {
    asp_release(w->pre);
    asp_release(w->padded);
    asp_release(w->offsets);
    asp_release(w->bad);
    asp_release(w->n_best);
    asp_release(w->best);
    asp_features_give_back(w->f, w->pending, w->capacity, sizeof *w->pending);
}

/* pre (rows, columns) written, rows w->width apart: x W^T + bias, W being rows [first, first + columns) of weight. */
static asp_status encoder_product(asp_encoding *w, int64_t row, int64_t rows, const asp_real *weight,
                                  const asp_real *bias, int64_t first, int64_t columns) {
    const int64_t e = w->f->config.d_model, needed = rows_needed(w, rows, columns);
    const asp_real *x = w->x + row * e;
    if (needed > rows) {
        memcpy(w->padded, x, (size_t)(rows * e) * sizeof *x);
        x = w->padded;
    }
    const asp_gemm g = {.trans_b = 1,
                        .m = needed,
                        .n = columns,
                        .k = e,
                        .a = x,
                        .lda = e,
                        .b = weight + first * e,
                        .ldb = e,
                        .c = w->pre,
                        .ldc = w->width,
                        .epilogue = ASP_EPILOGUE_BIAS,
                        .bias = bias ? bias + first : NULL,
                        .n_rows = rows,
                        .k_block = w->f->k_block};
    return asp_gemm_run(&g, w->context);
}

/* ---- encoding ---------------------------------------------------------------------------------- */

/* Columns [first, first + columns) of the features, rows [row, row + rows). */
typedef struct {
    asp_encoding *w;
    int64_t row, rows, first, columns;
} block;

static int64_t encoding_items(int64_t n) { return (n + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM; }

/* Makes activations of one row's pre-activations, 0 where a feature is not active, and counts them. */
static void activate_row(const block *b, int64_t r) {
    asp_encoding *w = b->w;
    asp_real *pre = w->pre + r * w->width;
    const asp_real *threshold = w->encoder->threshold ? w->encoder->threshold + b->first : NULL;
    int64_t n = 0, bad = 0;
    for (int64_t j = 0; j < b->columns; j++) bad += !(pre[j] - pre[j] == 0);
    for (int64_t j = 0; bad && w->bad[r] < 0 && j < b->columns; j++)
        if (!(pre[j] - pre[j] == 0)) w->bad[r] = b->first + j;
    if (threshold)
        for (int64_t j = 0; j < b->columns; j++) pre[j] = pre[j] > threshold[j] ? pre[j] : 0;
    else
        for (int64_t j = 0; j < b->columns; j++) pre[j] = pre[j] > 0 ? pre[j] : 0;
    for (int64_t j = 0; j < b->columns; j++) n += pre[j] != 0;
    w->offsets[r + 1] = n;
}

/* Whether a is kept rather than b: the larger value, of equal ones the lower feature. */
static int better(const asp_feature_entry *a, const asp_feature_entry *b, int by_feature) {
    if (by_feature) return a->feature < b->feature;
    return a->value > b->value || (a->value == b->value && a->feature < b->feature);
}

/* Restores a heap with its worst entry first, whose entry i may be too good for its place. */
static void sift(asp_feature_entry *heap, int64_t n, int64_t i, int by_feature) {
    for (;;) {
        int64_t worst = i;
        for (int64_t child = 2 * i + 1; child <= 2 * i + 2 && child < n; child++)
            if (better(&heap[worst], &heap[child], by_feature)) worst = child;
        if (worst == i) return;
        const asp_feature_entry kept = heap[i];
        heap[i] = heap[worst];
        heap[worst] = kept;
        i = worst;
    }
}

/* Best first. */
static void sort_heap(asp_feature_entry *heap, int64_t n, int by_feature) {
    for (int64_t i = n / 2 - 1; i >= 0; i--) sift(heap, n, i, by_feature);
    for (int64_t last = n - 1; last > 0; last--) {
        const asp_feature_entry worst = heap[0];
        heap[0] = heap[last];
        heap[last] = worst;
        sift(heap, last, 0, by_feature);
    }
}

/* The k best so far of one row, from one more block of its features. */
static void keep_best(const block *b, int64_t r) {
    asp_encoding *w = b->w;
    asp_feature_entry *heap = w->best + r * w->k;
    for (int64_t j = 0; j < b->columns; j++) {
        const asp_feature_entry found = {(int32_t)(b->row + r), (int32_t)(b->first + j), w->pre[r * w->width + j]};
        if (found.value == 0) continue;
        if (w->n_best[r] < w->k) {
            heap[w->n_best[r]++] = found;
            if (w->n_best[r] == w->k)
                for (int64_t i = w->k / 2 - 1; i >= 0; i--) sift(heap, w->k, i, 0);
        } else if (better(&found, &heap[0], 0)) {
            heap[0] = found;
            sift(heap, w->k, 0, 0);
        }
    }
}

static void activate_rows(void *arg, int64_t item, int thread) {
    (void)thread;
    const block *b = arg;
    for (int64_t r = item * ROWS_PER_ITEM; r < asp_min((item + 1) * ROWS_PER_ITEM, b->rows); r++) {
        activate_row(b, r);
        if (b->w->best) keep_best(b, r);
    }
}

static void collect_rows(void *arg, int64_t item, int thread) {
    (void)thread;
    const block *b = arg;
    const asp_encoding *w = b->w;
    for (int64_t r = item * ROWS_PER_ITEM; r < asp_min((item + 1) * ROWS_PER_ITEM, b->rows); r++) {
        asp_feature_entry *out = w->pending + w->n + w->offsets[r];
        const asp_real *value = w->pre + r * w->width;
        for (int64_t j = 0; j < b->columns; j++)
            if (value[j] != 0) *out++ = (asp_feature_entry){(int32_t)(b->row + r), (int32_t)(b->first + j), value[j]};
    }
}

static void collect_best(void *arg, int64_t item, int thread) {
    (void)thread;
    const block *b = arg;
    const asp_encoding *w = b->w;
    for (int64_t r = item * ROWS_PER_ITEM; r < asp_min((item + 1) * ROWS_PER_ITEM, b->rows); r++) {
        asp_feature_entry *heap = w->best + r * w->k;
        sort_heap(heap, w->n_best[r], 1);
        memcpy(w->pending + w->n + w->offsets[r], heap, (size_t)w->n_best[r] * sizeof *heap);
    }
}

/* Turns the counts in offsets[1..rows] into starts and appends as many entries, by `task`. */
static asp_status append(const block *b, asp_task task) {
    asp_encoding *w = b->w;
    w->offsets[0] = 0;
    for (int64_t r = 0; r < b->rows; r++) w->offsets[r + 1] += w->offsets[r];
    if (!w->offsets[b->rows]) return ASP_OK;
    const int64_t n = w->n + w->offsets[b->rows];
    if (n > w->capacity) {
        const int64_t capacity = asp_max(n, 2 * w->capacity);
        asp_feature_entry *more = asp_features_take(w->f, capacity, sizeof *more, ASP_FEATURES_ACTIVE, w->err);
        if (!more) return ASP_NO_MEMORY;
        if (w->n) memcpy(more, w->pending, (size_t)w->n * sizeof *more);
        asp_features_give_back(w->f, w->pending, w->capacity, sizeof *w->pending);
        w->pending = more;
        w->capacity = capacity;
    }
    const asp_status status = asp_parallel_for(w->context, encoding_items(b->rows), task, (void *)(uintptr_t)b);
    w->n = n;
    return status;
}

static asp_status check_finite(const block *b) {
    for (int64_t r = 0; r < b->rows; r++)
        if (b->w->bad[r] >= 0)
            return asp_fail(
                b->w->err, ASP_BAD_ARGUMENT,
                "the pre-activation of feature %lld of layer %lld at token %lld is not finite: the model or "
                "the transcoders hold NaN, infinity or very large numbers",
                (long long)b->w->bad[r], (long long)b->w->layer, (long long)b->row + r);
    return ASP_OK;
}

/* All features of some rows. */
static asp_status encode_rows(asp_encoding *w, int64_t row, int64_t rows) {
    const asp_encoder *encoder = w->encoder;
    const int64_t blocks = feature_block_count(encoder->n_features, FEATURE_BLOCK);
    asp_status status = ASP_OK;
    block b = {.w = w, .row = row, .rows = rows};
    for (int64_t r = 0; r < rows; r++) {
        w->bad[r] = -1;
        w->n_best[r] = 0;
    }
    for (int64_t i = 0; !status && i < blocks; i++) {
        b.first = feature_block_start(encoder->n_features, blocks, i);
        b.columns = feature_block_start(encoder->n_features, blocks, i + 1) - b.first;
        status = encoder_product(w, row, rows, encoder->weight, encoder->bias, b.first, b.columns);
        if (!status) status = asp_parallel_for(w->context, encoding_items(rows), activate_rows, &b);
        if (!status && !w->best) status = append(&b, collect_rows);
    }
    if (!status && w->best) {
        for (int64_t r = 0; r < rows; r++) w->offsets[r + 1] = w->n_best[r];
        status = append(&b, collect_best);
    }
    return status ? status : check_finite(&b);
}

asp_status asp_encode_layer(asp_encoding *w) {
    asp_status status = ASP_OK;
    for (int64_t row = 0; !status && row < w->f->n_tokens; row += ASP_ROW_BLOCK)
        status = encode_rows(w, row, asp_min(ASP_ROW_BLOCK, w->f->n_tokens - row));
    return status;
}

asp_status asp_encode_skip(asp_encoding *w, const asp_real *skip, asp_real *out) {
    const asp_features *f = w->f;
    const int64_t e = f->config.d_model, blocks = feature_block_count(e, FEATURE_BLOCK);
    asp_status status = ASP_OK;
    for (int64_t row = 0; !status && row < f->n_tokens; row += ASP_ROW_BLOCK) {
        const int64_t rows = asp_min(ASP_ROW_BLOCK, f->n_tokens - row);
        for (int64_t i = 0; !status && i < blocks; i++) {
            const int64_t first = feature_block_start(e, blocks, i),
                          columns = feature_block_start(e, blocks, i + 1) - first;
            status = encoder_product(w, row, rows, skip, NULL, first, columns);
            for (int64_t r = 0; !status && r < rows; r++)
                for (int64_t j = 0; j < columns; j++) out[(row + r) * e + first + j] += w->pre[r * w->width + j];
        }
    }
    return status;
}
