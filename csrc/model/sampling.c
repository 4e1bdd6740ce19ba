/* sampling.c: which token comes next, from its logits: the most probable one, or one drawn among the most probable. */
#include <math.h>

#include "model/model.h"

/* All tokens as a heap, whose first one has the highest logit (of equal ones: the lowest id); those taken out lie behind
 * it, the first one last. */
typedef struct {
    const asp_real *logits;
    int32_t *ids; /* (V) */
    int64_t n, left;
} token_heap;

static int comes_before(const token_heap *h, int32_t a, int32_t b) {
    return h->logits[a] > h->logits[b] || (h->logits[a] == h->logits[b] && a < b);
}

static void sift_down(token_heap *h, int64_t at) {
    const int32_t id = h->ids[at];
    for (int64_t child; (child = 2 * at + 1) < h->left; at = child) {
        if (child + 1 < h->left && comes_before(h, h->ids[child + 1], h->ids[child])) child++;
        if (!comes_before(h, h->ids[child], id)) break;
        h->ids[at] = h->ids[child];
    }
    h->ids[at] = id;
}

static void make_heap(token_heap *h) {
    h->left = h->n;
    for (int64_t i = 0; i < h->n; i++) h->ids[i] = (int32_t)i;
    for (int64_t i = h->n / 2; i-- > 0;) sift_down(h, i);
}

/* The token at place i of the order, where all before it have been asked for. */
static int32_t token_at(token_heap *h, int64_t i) {
    if (i == h->n - h->left) {
        const int32_t best = h->ids[0];
        h->ids[0] = h->ids[--h->left];
        if (h->left) sift_down(h, 0);
        h->ids[h->left] = best;
    }
    return h->ids[h->n - 1 - i];
}

static double sum_weights(const double *weights, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += weights[i];
    return sum;
}

/* weights (V): those of all tokens but the first n of the order become 0. */
static void keep_first(double *weights, token_heap *h, int64_t n) {
    for (int64_t i = 0; i < n; i++) token_at(h, i);
    for (int64_t i = 0; i < h->n - n; i++) weights[h->ids[i]] = 0;
}

/* Takes out of weights (V) what top_k and top_p leave out. */
static void keep_likely(double *weights, const asp_real *logits, int64_t n, int64_t top_k, double top_p, int32_t *ids) {
    token_heap h = {.logits = logits, .ids = ids, .n = n};
    const int64_t most = top_k ? asp_min(top_k, n) : n;
    if (most == n && top_p >= 1) return;
    make_heap(&h);
    if (most < n) keep_first(weights, &h, most);
    if (top_p >= 1) return;
    const double wanted = top_p * sum_weights(weights, n);
    double sum = 0;
    int64_t kept = 0;
    while (kept < most && (kept == 0 || sum < wanted)) sum += weights[token_at(&h, kept++)];
    keep_first(weights, &h, kept);
}

int32_t asp_sampling_best(const asp_real *logits, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

int32_t asp_sampling_draw(const asp_real *logits, int64_t n, double temperature, int64_t top_k, double top_p,
                          double uniform, const asp_sampling_scratch *scratch) {
    double *weights = scratch->weights;
    const double best = (double)logits[asp_sampling_best(logits, n)];
    for (int64_t i = 0; i < n; i++) weights[i] = exp(((double)logits[i] - best) / temperature);
    keep_likely(weights, logits, n, top_k, top_p, scratch->ids);
    const double wanted = uniform * sum_weights(weights, n);
    double sum = 0;
    int64_t last = 0;
    for (int64_t i = 0; i < n; i++) {
        if (weights[i] == 0) continue;
        last = i;
        sum += weights[i];
        if (sum > wanted) break;
    }
    return (int32_t)last;
}
