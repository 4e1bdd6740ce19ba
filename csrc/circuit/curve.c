/* curve.c: what the n best items of a circuit explain, how many of them reach a fraction of it, and how both vary with
 * the choice of prompts.  Means over prompts are taken before dividing.  There is no model here, only numbers.
 *
 * Sums are in the order of NumPy's mean and einsum, and quantiles are interpolated as np.quantile does: the same bits. */
#include <math.h>
#include <string.h>

#include "circuit/circuit.h"

/* ---- sums ---------------------------------------------------------------------------- */

double asp_curve_mean(const double *x, int64_t n) { return asp_sum_numbers(x, n) / (double)n; }

/* Sum of a b (n) as einsum adds: in two lanes, and within eight numbers the last first. */
static double product_sum(const double *a, const double *b, int64_t n) {
    double even = 0, odd = 0;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int64_t j = i + 6; j >= i; j -= 2) {
            even += a[j] * b[j];
            odd += a[j + 1] * b[j + 1];
        }
    for (; i < n; i += 2) {
        even += a[i] * b[i];
        if (i + 1 < n) odd += a[i + 1] * b[i + 1];
    }
    return even + odd;
}

static double normalized(double mean, double full, double empty, asp_normalization normalization) {
    if (normalization == ASP_NORMALIZE_NONE) return mean;
    const double base = normalization == ASP_NORMALIZE_MIB ? empty : 0;
    return (mean - base) / (full - base);
}

void asp_curve_effect(double *effect, const asp_curve *curve) {
    ASP_ENVIRONMENT;
    const int64_t p = curve->n_prompts;
    const double full = asp_curve_mean(curve->full, p), empty = asp_curve_mean(curve->empty, p);
    for (int64_t s = 0; s < curve->n_sizes; s++)
        effect[s] = normalized(asp_curve_mean(curve->values + s * p, p), full, empty, curve->normalization);
}

/* ---- resamples ------------------------------------------------------------------------ */

/* weights (n) written: the share of each prompt in resample b. */
static void draw(double *weights, int64_t n, uint64_t seed, int64_t b) {
    uint64_t raw[64];
    memset(weights, 0, (size_t)n * sizeof *weights);
    for (int64_t i = 0; i < n; i += 64) {
        const int64_t more = asp_min(64, n - i);
        asp_random_raw(raw, b * n + i, more, seed, ASP_RANDOM_CIRCUITS, ASP_RANDOM_RESAMPLES, 0);
        for (int64_t j = 0; j < more; j++) weights[raw[j] % (uint64_t)n] += 1;
    }
    for (int64_t i = 0; i < n; i++) weights[i] /= (double)n;
}

/* Effects of resample b; 0 if one is not finite.
 *   effect (S) written    weights (P) scratch */
static int resample_curve(double *effect, double *weights, const asp_curve *c, uint64_t seed, int64_t b) {
    const int64_t p = c->n_prompts;
    draw(weights, p, seed, b);
    const double full = product_sum(weights, c->full, p), empty = product_sum(weights, c->empty, p);
    int finite = 1;
    for (int64_t s = 0; s < c->n_sizes; s++) {
        effect[s] = normalized(product_sum(weights, c->values + s * p, p), full, empty, c->normalization);
        finite &= isfinite(effect[s]) != 0;
    }
    return finite;
}

static asp_status check_curve(const asp_curve *c, int64_t n_resamples, asp_error *err) {
    int64_t n;
    if (c->n_prompts < 1 || c->n_sizes < 0)
        return asp_fail(err, ASP_BAD_ARGUMENT, "a curve needs prompts, got %lld prompts and %lld sizes",
                        (long long)c->n_prompts, (long long)c->n_sizes);
    if (!asp_multiply(n_resamples, c->n_prompts, &n))
        return asp_fail(err, ASP_BAD_ARGUMENT, "%lld resamples of %lld prompts cannot be drawn", (long long)n_resamples,
                        (long long)c->n_prompts);
    return ASP_OK;
}

/* One call: what its threads work in, and what they fill. */
typedef struct {
    const asp_curve *curve;
    const asp_measured *pair[2];
    uint64_t seed;
    double fraction;
    int stays;
    int64_t n_prompts, n_sizes; /* P, S: of a pair the larger ones */
    double *curves;             /* (n_resamples,S) of the caller */
    asp_arena arena;
    double *weights; /* (n_threads,P) */
    double *effects; /* (n_threads,S) */
    int64_t *counts; /* (n_threads,2,S+1): resamples by index at which they reach the fraction, and stay */
    double *ratios;  /* (n_resamples) */
} resampling;

/* What each thread needs besides weights: n_effects, n_counts; and n_ratios for all. */
static asp_status allocate_resamples(resampling *r, int n_threads, int64_t n_effects, int64_t n_counts,
                                     int64_t n_ratios, asp_error *err) {
    asp_arena_part parts[] = {ASP_PART(r->weights, n_threads, r->n_prompts), ASP_PART(r->effects, n_threads, n_effects),
                              ASP_PART(r->counts, n_threads, n_counts), ASP_PART(r->ratios, n_ratios, 1)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    const int64_t bytes = asp_arena_lay_out(&r->arena, parts, PARTS);
    if (!asp_arena_commit(&r->arena, 1))
        return asp_fail(err, ASP_NO_MEMORY,
                        "resampling %lld prompts at %lld sizes needs %s, which could not be allocated",
                        (long long)r->n_prompts, (long long)r->n_sizes, asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&r->arena, parts, PARTS);
    return ASP_OK;
}

static void curve_item(void *arg, int64_t b, int thread) {
    const resampling *r = arg;
    resample_curve(r->curves + b * r->n_sizes, r->weights + thread * r->n_prompts, r->curve, r->seed, b);
}

static int is_finite_row(const double *row, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(row[i])) return 0;
    return 1;
}

asp_status asp_curve_bootstrap(double *curves, int64_t *n_valid, const asp_curve *curve, int64_t n_resamples,
                               uint64_t seed, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const int64_t n = curve->n_sizes;
    resampling r = {.curve = curve, .seed = seed, .n_prompts = curve->n_prompts, .n_sizes = n, .curves = curves};
    *n_valid = 0;
    asp_status status = check_curve(curve, n_resamples, err);
    if (!status) status = allocate_resamples(&r, context->n_threads, 0, 0, 0, err);
    if (status) return status;
    status = asp_parallel_for(context, n_resamples, curve_item, &r);
    for (int64_t b = 0; !status && b < n_resamples; b++) {
        if (!is_finite_row(curves + b * n, n)) continue;
        if (*n_valid < b) memcpy(curves + *n_valid * n, curves + b * n, (size_t)n * sizeof *curves);
        ++*n_valid;
    }
    asp_arena_free(&r.arena);
    return status;
}

/* ---- quantiles ------------------------------------------------------------------------- */

/* Numbers in ascending order have keys in ascending order. */
static uint64_t key_of(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits >> 63 ? ~bits : bits | (uint64_t)1 << 63;
}

static double number_of(uint64_t key) {
    const uint64_t bits = key >> 63 ? key & ~((uint64_t)1 << 63) : ~key;
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Number `rank` (0..n-1) of x (n) in ascending order, found byte by byte of its key. */
static double number_at(const double *x, int64_t n, int64_t rank) {
    uint64_t known = 0, mask = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        int64_t counts[256] = {0};
        for (int64_t i = 0; i < n; i++) {
            const uint64_t key = key_of(x[i]);
            if ((key & mask) == known) counts[key >> shift & 255]++;
        }
        uint64_t byte = 0;
        while (rank >= counts[byte]) rank -= counts[byte++];
        known |= byte << shift;
        mask |= (uint64_t)255 << shift;
    }
    return number_of(known);
}

static double low_tail(double confidence) { return (1 - confidence) / 2; }
static double high_tail(double confidence) { return (1 + confidence) / 2; }

/* Ranks among n at the ends of the interval, rounded outwards. */
static int64_t low_rank(int64_t n, double confidence) { return (int64_t)floor((double)(n - 1) * low_tail(confidence)); }
static int64_t high_rank(int64_t n, double confidence) {
    return (int64_t)ceil((double)(n - 1) * high_tail(confidence));
}

/* A product that no compiler joins with the sum it goes into: NumPy rounds both. */
static double rounded_product(double a, double b) {
    volatile double product = a * b;
    return product;
}

/* The quantile of x (n), linear between neighbours. */
static double quantile(const double *x, int64_t n, double share) {
    const double at = (double)(n - 1) * share, before = floor(at), t = at - before;
    if (at >= (double)(n - 1)) return number_at(x, n, n - 1);
    const double a = number_at(x, n, (int64_t)before), b = number_at(x, n, (int64_t)before + 1);
    return t >= 0.5 ? b - rounded_product(b - a, 1 - t) : a + rounded_product(b - a, t);
}

typedef struct {
    const double *curves;
    int64_t n_curves, n_sizes;
    double confidence, *low, *high;
    double *columns; /* (n_threads,n_curves) */
} band_job;

static void band_item(void *arg, int64_t s, int thread) {
    const band_job *job = arg;
    double *column = job->columns + thread * job->n_curves;
    for (int64_t b = 0; b < job->n_curves; b++) column[b] = job->curves[b * job->n_sizes + s];
    job->low[s] = quantile(column, job->n_curves, low_tail(job->confidence));
    job->high[s] = quantile(column, job->n_curves, high_tail(job->confidence));
}

asp_status asp_curve_band(double *low, double *high, const double *curves, int64_t n_curves, int64_t n_sizes,
                          double confidence, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    if (n_curves == 0) {
        for (int64_t s = 0; s < n_sizes; s++) low[s] = high[s] = NAN;
        return ASP_OK;
    }
    band_job job = {curves, n_curves, n_sizes, confidence, low, high, NULL};
    job.columns = asp_allocate(n_curves, (size_t)context->n_threads * sizeof *job.columns);
    if (!job.columns)
        return asp_fail(err, ASP_NO_MEMORY, "no memory for the intervals of %lld resamples", (long long)n_curves);
    const asp_status status = asp_parallel_for(context, n_sizes, band_item, &job);
    asp_release(job.columns);
    return status;
}

/* ---- how many are needed ------------------------------------------------------------------ */

static int64_t first_index(const double *effect, int64_t n, double fraction) {
    int64_t i = 0;
    while (i < n && !(effect[i] >= fraction)) i++;
    return i;
}

static int64_t stays_index(const double *effect, int64_t n, double fraction) {
    while (n > 0 && effect[n - 1] >= fraction) n--;
    return n;
}

void asp_curve_needed(int64_t *first, int64_t *stays, const double *curves, int64_t n_curves, int64_t n_sizes,
                      double fraction) {
    ASP_ENVIRONMENT;
    for (int64_t b = 0; b < n_curves; b++) {
        first[b] = first_index(curves + b * n_sizes, n_sizes, fraction);
        stays[b] = stays_index(curves + b * n_sizes, n_sizes, fraction);
    }
}

void asp_curve_shares(double *shares, const double *effect, int64_t n) {
    ASP_ENVIRONMENT;
    double *positive = shares + 1, sum = 0;
    shares[0] = 0;
    for (int64_t i = 0; i < n; i++) positive[i] = effect[i] < 0 ? 0 : effect[i];
    const double total = asp_sum_numbers(positive, n);
    for (int64_t i = 0; i < n; i++) {
        sum += positive[i];
        positive[i] = sum / (total == 0 ? 1 : total);
    }
}

static void needed_item(void *arg, int64_t b, int thread) {
    const resampling *r = arg;
    const int64_t n = r->n_sizes;
    double *effect = r->effects + thread * n;
    if (!resample_curve(effect, r->weights + thread * r->n_prompts, r->curve, r->seed, b)) return;
    int64_t *counts = r->counts + 2 * (n + 1) * thread;
    counts[first_index(effect, n, r->fraction)]++;
    counts[n + 1 + stays_index(effect, n, r->fraction)]++;
}

/* Percentile interval of indices, of which there are counts (n+1) for 0..n; both n if there is none. */
static void index_interval(int64_t *low, int64_t *high, const int64_t *counts, int64_t n, double confidence) {
    int64_t total = 0, below = 0;
    *low = *high = n;
    for (int64_t i = 0; i <= n; i++) total += counts[i];
    if (!total) return;
    const int64_t low_at = low_rank(total, confidence), high_at = high_rank(total, confidence);
    for (int64_t i = 0; i <= n; i++) {
        if (below <= low_at && low_at < below + counts[i]) *low = i;
        if (below <= high_at && high_at < below + counts[i]) *high = i;
        below += counts[i];
    }
}

asp_status asp_curve_needed_interval(asp_needed *needed, const asp_curve *curve, const double *effect, double fraction,
                                     const asp_bootstrap *bootstrap, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const int64_t n = curve->n_sizes;
    resampling r = {
        .curve = curve, .seed = bootstrap->seed, .fraction = fraction, .n_prompts = curve->n_prompts, .n_sizes = n};
    asp_status status = check_curve(curve, bootstrap->n_resamples, err);
    if (!status) status = allocate_resamples(&r, context->n_threads, n, 2 * (n + 1), 0, err);
    if (status) return status;
    status = asp_parallel_for(context, bootstrap->n_resamples, needed_item, &r);
    for (int t = 1; t < context->n_threads; t++)
        for (int64_t i = 0; i < 2 * (n + 1); i++) r.counts[i] += r.counts[2 * (n + 1) * t + i];
    needed->first = first_index(effect, n, fraction);
    needed->stays = stays_index(effect, n, fraction);
    index_interval(&needed->first_low, &needed->first_high, r.counts, n, bootstrap->confidence);
    index_interval(&needed->stays_low, &needed->stays_high, r.counts + n + 1, n, bootstrap->confidence);
    asp_arena_free(&r.arena);
    return status;
}

/* ---- ratios ------------------------------------------------------------------------------- */

/* Items needed: infinite where the curve never reaches the fraction. */
static double needed_size(const asp_measured *m, const double *effect, double fraction, int stays) {
    const int64_t n = m->curve.n_sizes;
    const int64_t at = stays ? stays_index(effect, n, fraction) : first_index(effect, n, fraction);
    return at < n ? (double)m->sizes[at] : INFINITY;
}

static void ratio_item(void *arg, int64_t b, int thread) {
    const resampling *r = arg;
    double sizes[2];
    for (int i = 0; i < 2; i++) {
        double *effect = r->effects + thread * r->n_sizes;
        const int finite = resample_curve(effect, r->weights + thread * r->n_prompts, &r->pair[i]->curve, r->seed, b);
        sizes[i] = finite ? needed_size(r->pair[i], effect, r->fraction, r->stays) : NAN;
    }
    r->ratios[b] = sizes[0] / sizes[1];
}

asp_status asp_curve_ratio(asp_ratio *ratio, const asp_measured *circuit, const asp_measured *other, double fraction,
                           int stays, const asp_bootstrap *bootstrap, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const int64_t n_resamples = bootstrap->n_resamples;
    resampling r = {.pair = {circuit, other}, .seed = bootstrap->seed, .fraction = fraction, .stays = stays};
    r.n_prompts = asp_max(circuit->curve.n_prompts, other->curve.n_prompts);
    r.n_sizes = asp_max(circuit->curve.n_sizes, other->curve.n_sizes);
    *ratio = (asp_ratio){NAN, NAN, NAN};
    asp_status status = check_curve(&circuit->curve, n_resamples, err);
    if (!status) status = check_curve(&other->curve, n_resamples, err);
    if (!status) status = allocate_resamples(&r, context->n_threads, r.n_sizes, 0, n_resamples, err);
    if (status) return status;
    status = asp_parallel_for(context, n_resamples, ratio_item, &r);
    int64_t n = 0;
    for (int64_t b = 0; b < n_resamples; b++)
        if (!isnan(r.ratios[b])) r.ratios[n++] = r.ratios[b];
    double sizes[2];
    int reached = n > 0;
    for (int i = 0; i < 2; i++) {
        sizes[i] = needed_size(r.pair[i], r.pair[i]->effect, fraction, stays);
        reached &= isfinite(sizes[i]) && is_finite_row(r.pair[i]->effect, r.pair[i]->curve.n_sizes);
    }
    if (!status && reached)
        *ratio = (asp_ratio){sizes[0] / sizes[1], number_at(r.ratios, n, low_rank(n, bootstrap->confidence)),
                             number_at(r.ratios, n, high_rank(n, bootstrap->confidence))};
    asp_arena_free(&r.arena);
    return status;
}
