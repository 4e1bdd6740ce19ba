/* first_weights.c: first weights of transcoders: features that represent tokens of the text, chosen far from each
 * other.
 *
 * A row of the text gives a feature what it reads (the input, centred) and what it writes (the output, centred).  Rows
 * are drawn as in k-means++ (Arthur & Vassilvitskii 2007): the probability of a row is its squared distance from the
 * nearest one that was drawn before, so that rare tokens get features too.  A feature begins to be active where the
 * input points nearly as its own row does: one that is active everywhere soon loses to others and dies.  No product is
 * left to BLAS. */
#include <math.h>
#include <string.h>

#include "transcoder/transcoder.h"

static const double NEAR = 0.6;   /* a feature is active where the input reaches this share of its own row, along it */
static const double TINY = 1e-30; /* nothing is divided by less */
enum { SAMPLE = 512, ROWS = 64 }; /* about so many rows get activations; rows of one item of work */

/* ---- sums ------------------------------------------------------------------------------------ */

static double dot(const double *a, const double *b, int64_t n) {
    enum { COLUMNS = 8 };
    double sums[COLUMNS] = {0}, rest = 0;
    int64_t i = 0;
    for (; i + COLUMNS <= n; i += COLUMNS)
        for (int j = 0; j < COLUMNS; j++) sums[j] += a[i + j] * b[i + j];
    for (; i < n; i++) rest += a[i] * b[i];
    for (int j = 0; j < COLUMNS; j++) rest += sums[j];
    return rest;
}

static float squared_distance(const float *a, const float *b, int64_t n) {
    enum { COLUMNS = 16 };
    float sums[COLUMNS] = {0}, rest = 0;
    int64_t i = 0;
    for (; i + COLUMNS <= n; i += COLUMNS)
        for (int j = 0; j < COLUMNS; j++) sums[j] += (a[i + j] - b[i + j]) * (a[i + j] - b[i + j]);
    for (; i < n; i++) rest += (a[i] - b[i]) * (a[i] - b[i]);
    for (int j = 0; j < COLUMNS; j++) rest += sums[j];
    return rest;
}

/* centred (N,E) = values / scale less the mean (E) of each column. */
static void centre(double *centred, double *mean, const asp_real *values, double scale, int64_t n, int64_t e) {
    memset(mean, 0, (size_t)e * sizeof *mean);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < e; j++) mean[j] += centred[i * e + j] = (double)values[i * e + j] / scale;
    for (int64_t j = 0; j < e; j++) mean[j] /= (double)n;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < e; j++) centred[i * e + j] -= mean[j];
}

static double length_of(const double *row, int64_t e) { return sqrt(asp_sum_squares(row, e)); }

/* ---- rows far from each other ------------------------------------------------------------------- */

typedef struct {
    const asp_first_weights_out *out;
    const asp_first_weights_text *text;
    int64_t n, e, f;
    double *mean_x;     /* (E) */
    double *x, *y;      /* (N,E) centred */
    float *pairs;       /* (N,2E) both, each of mean square 1 */
    float *origin;      /* (2E) 0 */
    double *nearest;    /* (N) squared distance from the nearest row that was drawn, or from 0 */
    const float *drawn; /* (2E) the row drawn last */
    int64_t stride, n_sample;
    double *active;       /* (n_threads,F) scratch */
    double *sample;       /* (n_threads,E) scratch */
    double *found;        /* (n_sample,E) what all features together write */
    const double *random; /* (2,F,E) */
    asp_arena arena;
} start_job;

static void nearest_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const start_job *job = arg;
    const int64_t width = 2 * job->e, end = asp_min((item + 1) * ROWS, job->n);
    for (int64_t i = item * ROWS; i < end; i++) {
        const double distance = (double)squared_distance(job->pairs + i * width, job->drawn, width);
        if (!(distance >= job->nearest[i])) job->nearest[i] = distance; /* NaN too */
    }
}

static asp_status draw_rows(start_job *job, int64_t *chosen, int64_t *n_chosen, const asp_context *context) {
    job->drawn = job->origin;
    for (int64_t i = 0; i < job->n; i++) job->nearest[i] = INFINITY;
    for (*n_chosen = 0; *n_chosen < job->f; ++*n_chosen) {
        const asp_status status = asp_parallel_for(context, (job->n + ROWS - 1) / ROWS, nearest_item, job);
        if (status) return status;
        double total = 0, running = 0;
        for (int64_t i = 0; i < job->n; i++) total += job->nearest[i];
        if (!(total > 0) || !isfinite(total)) return ASP_OK;
        const double wanted = job->text->draws[*n_chosen] * total;
        int64_t row = 0;
        for (; row < job->n - 1; row++)
            if ((running += job->nearest[row]) > wanted) break;
        chosen[*n_chosen] = row;
        job->drawn = job->pairs + row * 2 * job->e;
    }
    return ASP_OK;
}

static void fill_pairs(start_job *job) {
    const double *halves[] = {job->x, job->y};
    const int64_t size = job->n * job->e;
    for (int half = 0; half < 2; half++) {
        const double root = fmax(sqrt(asp_sum_squares(halves[half], size) / (double)size), TINY);
        for (int64_t i = 0; i < job->n; i++)
            for (int64_t j = 0; j < job->e; j++)
                job->pairs[(2 * i + half) * job->e + j] = (float)(halves[half][i * job->e + j] / root);
    }
}

/* ---- weights ---------------------------------------------------------------------------------------- */

typedef struct {
    const double *a, *b;
} product;

static double product_term(const void *arg, int64_t i) {
    const product *p = arg;
    return p->a[i] * p->b[i];
}

/* What feature i reads and writes: those of a row, or of random directions for row -1. */
static void fill_feature(const start_job *job, int64_t i, int64_t row) {
    const int64_t e = job->e;
    double *read = job->out->w_enc + i * e, *written = job->out->w_dec + i * e, beyond = 0;
    if (row < 0) {
        const double *random[] = {job->random + i * e, job->random + (job->f + i) * e};
        const double lengths[] = {length_of(random[0], e), length_of(random[1], e)};
        for (int64_t j = 0; j < e; j++) read[j] = random[0][j] / lengths[0], written[j] = random[1][j] / lengths[1];
    } else {
        const double *x = job->x + row * e, *y = job->y + row * e;
        const double size = fmax(length_of(x, e), TINY), length = fmax(length_of(y, e), TINY);
        for (int64_t j = 0; j < e; j++) {
            read[j] = x[j] / (size * size) * length / (1 - NEAR);
            written[j] = y[j] / length;
        }
        beyond = length * NEAR / (1 - NEAR);
    }
    job->out->b_enc[i] = -asp_sum(product_term, &(product){read, job->mean_x}, e) - beyond;
}

static void found_item(void *arg, int64_t item, int thread) {
    const start_job *job = arg;
    const int64_t e = job->e, f = job->f;
    double *found = job->found + item * e, *active = job->active + thread * f, *x = job->sample + thread * e;
    for (int64_t j = 0; j < e; j++) x[j] = job->x[item * job->stride * e + j] + job->mean_x[j];
    for (int64_t i = 0; i < f; i++) active[i] = fmax(dot(x, job->out->w_enc + i * e, e) + job->out->b_enc[i], 0);
    for (int64_t i = 0; i < f; i++)
        for (int64_t j = 0; active[i] > 0 && j < e; j++) found[j] += active[i] * job->out->w_dec[i * e + j];
}

typedef struct {
    const start_job *job;
    const double *y;
} sampled;

static double sampled_term(const void *arg, int64_t i) {
    const sampled *s = arg;
    const int64_t e = s->job->e;
    return s->job->found[i] * s->y[i / e * s->job->stride * e + i % e];
}

/* What activations are multiplied by so that all features together, which were made to serve alone, come nearest to the
 * centred outputs. */
static asp_status apply_gain(start_job *job, const asp_context *context) {
    const asp_status status = asp_parallel_for(context, job->n_sample, found_item, job);
    if (status) return status;
    const int64_t size = job->n_sample * job->e;
    const double along = asp_sum(sampled_term, &(sampled){job, job->y}, size);
    const double gain = fmin(fmax(along / fmax(asp_sum_squares(job->found, size), TINY), 1e-3), 1);
    for (int64_t i = 0; i < job->f * job->e; i++) job->out->w_enc[i] *= gain;
    for (int64_t i = 0; i < job->f; i++) job->out->b_enc[i] *= gain;
    return ASP_OK;
}

static int64_t stride_of(int64_t n_rows) { return asp_max(1, n_rows / SAMPLE); }

static asp_status allocate_first_weights(start_job *job, int n_threads, asp_error *err) {
    asp_arena_part parts[] = {ASP_PART(job->mean_x, job->e, 1),           ASP_PART(job->x, job->n, job->e),
                              ASP_PART(job->y, job->n, job->e),           ASP_PART(job->pairs, job->n, 2 * job->e),
                              ASP_PART(job->origin, 2, job->e),           ASP_PART(job->nearest, job->n, 1),
                              ASP_PART(job->active, n_threads, job->f),   ASP_PART(job->sample, n_threads, job->e),
                              ASP_PART(job->found, job->n_sample, job->e)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    const int64_t bytes = asp_arena_lay_out(&job->arena, parts, PARTS);
    if (!asp_arena_commit(&job->arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "the first weights of a transcoder need %s of scratch",
                        asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&job->arena, parts, PARTS);
    return ASP_OK;
}

asp_status asp_first_weights_from_text(const asp_first_weights_out *out, int64_t *chosen, int64_t *n_chosen,
                                       const asp_first_weights_text *text, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    if (text->n_rows < 1 || text->width < 1 || !(text->scale > 0))
        return asp_fail(err, ASP_BAD_ARGUMENT,
                        "first weights need one row or more of one number or more, and scale > 0");
    start_job job = {.out = out,
                     .text = text,
                     .n = text->n_rows,
                     .e = text->width,
                     .f = text->n_features,
                     .random = text->random,
                     .stride = stride_of(text->n_rows)};
    job.n_sample = (job.n + job.stride - 1) / job.stride;
    asp_status status = allocate_first_weights(&job, context->n_threads, err);
    if (!status) {
        centre(job.x, job.mean_x, text->x, 1, job.n, job.e);
        centre(job.y, out->b_dec, text->y, text->scale, job.n, job.e);
        fill_pairs(&job);
        status = draw_rows(&job, chosen, n_chosen, context);
    }
    for (int64_t i = 0; !status && i < job.f; i++) fill_feature(&job, i, i < *n_chosen ? chosen[i] : -1);
    if (!status) status = apply_gain(&job, context);
    asp_arena_free(&job.arena);
    return status;
}

/* ---- from a set ------------------------------------------------------------------------------------- */

typedef struct {
    const asp_first_weights_out *out;
    const asp_first_weights_set *set;
} set_job;

static void set_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const set_job *job = arg;
    const asp_first_weights_set *set = job->set;
    const int64_t e = set->width, written = set->n_writes * e;
    const double *row = set->w_dec + i * written;
    double squares = 0;
    for (int64_t t = 0; t < set->n_writes; t++)
        squares += asp_sum_squares(row + t * e, e) / (set->scale[t] * set->scale[t]);
    const double factor = fmax(sqrt(squares), TINY / set->scale[0]); /* what moves to the activation */
    for (int64_t j = 0; j < e; j++) job->out->w_enc[i * e + j] = set->w_enc[i * e + j] * factor;
    for (int64_t j = 0; j < written; j++) job->out->w_dec[i * written + j] = row[j] / set->scale[j / e] / factor;
    job->out->b_enc[i] = set->b_enc[i] * factor;
    if (set->threshold) job->out->log_threshold[i] = log(fmax(set->threshold[i] * factor, 1e-9));
}

asp_status asp_first_weights_from_set(const asp_first_weights_out *out, const asp_first_weights_set *set,
                                      const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    if (set->n_writes < 1) return asp_fail(err, ASP_BAD_ARGUMENT, "features must write to one layer or more");
    for (int64_t t = 0; t < set->n_writes; t++)
        if (!(set->scale[t] > 0))
            return asp_fail(err, ASP_BAD_ARGUMENT, "scale must be above 0, got %g", set->scale[t]);
    set_job job = {out, set};
    for (int64_t j = 0; j < set->width; j++) out->b_dec[j] = set->b_dec[j] / set->scale[0];
    return asp_parallel_for(context, set->n_features, set_item, &job);
}

asp_status asp_first_weights_scale(double *scale, const asp_real *y, int64_t n_rows, int64_t width,
                                   const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    if (n_rows < 1 || width < 1) return asp_fail(err, ASP_BAD_ARGUMENT, "a scale needs one number or more");
    double *centred, *mean;
    asp_arena arena = {0};
    asp_arena_part parts[] = {ASP_PART(centred, n_rows, width), ASP_PART(mean, width, 1)};
    const int64_t bytes = asp_arena_lay_out(&arena, parts, 2);
    if (!asp_arena_commit(&arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "the scale of a transcoder's outputs needs %s of scratch",
                        asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&arena, parts, 2);
    centre(centred, mean, y, 1, n_rows, width);
    *scale = sqrt(fmax(asp_sum_squares(centred, n_rows * width) / (double)(n_rows * width), 1e-20));
    asp_arena_free(&arena);
    return asp_parallel_stopped(context) ? ASP_STOPPED : ASP_OK;
}

/* ---- a threshold for all ---------------------------------------------------------------------------- */

typedef struct {
    const double *w_enc, *b_enc; /* (F,E), (F) */
    const asp_real *x;           /* (N,E) */
    int64_t stride, e, f;
    double *wide; /* (n_threads,E) scratch */
    double *pre;  /* (n_sample,F) */
} threshold_job;

static void pre_item(void *arg, int64_t item, int thread) {
    const threshold_job *job = arg;
    double *x = job->wide + thread * job->e;
    for (int64_t j = 0; j < job->e; j++) x[j] = (double)job->x[item * job->stride * job->e + j];
    for (int64_t i = 0; i < job->f; i++)
        job->pre[item * job->f + i] = dot(x, job->w_enc + i * job->e, job->e) + job->b_enc[i];
}

/* Numbers whose order as integers is that of x: NaN above all. */
static uint64_t ordered(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits >> 63 ? ~bits : bits | (uint64_t)1 << 63;
}

/* The value (n) of this rank, 0 the lowest: digit after digit, by counting. */
static double of_rank(const double *values, int64_t n, int64_t rank) {
    enum { BITS = 8, DIGITS = 1 << BITS };
    uint64_t prefix = 0;
    for (int shift = 64 - BITS; shift >= 0; shift -= BITS) {
        int64_t counts[DIGITS] = {0};
        for (int64_t i = 0; i < n; i++) {
            const uint64_t key = ordered(values[i]);
            if (shift == 64 - BITS || key >> (shift + BITS) == prefix) counts[key >> shift & (DIGITS - 1)]++;
        }
        uint64_t digit = 0;
        for (; rank >= counts[digit]; digit++) rank -= counts[digit];
        prefix = prefix << BITS | digit;
    }
    const uint64_t bits = prefix >> 63 ? prefix & ~((uint64_t)1 << 63) : ~prefix;
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

asp_status asp_first_weights_threshold(double *threshold, const double *w_enc, const double *b_enc, int64_t n_features,
                                       const asp_real *x, int64_t n_rows, int64_t width, double l0,
                                       const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    if (n_rows < 1 || n_features < 1 || width < 1 || !(l0 >= 0))
        return asp_fail(err, ASP_BAD_ARGUMENT, "a threshold needs a row and a feature, and l0 of 0 or more, got %g",
                        l0);
    threshold_job job = {
        .w_enc = w_enc, .b_enc = b_enc, .x = x, .stride = stride_of(n_rows), .e = width, .f = n_features};
    const int64_t n_sample = (n_rows + job.stride - 1) / job.stride;
    asp_arena arena = {0};
    asp_arena_part parts[] = {ASP_PART(job.wide, context->n_threads, width), ASP_PART(job.pre, n_sample, n_features)};
    const int64_t bytes = asp_arena_lay_out(&arena, parts, 2);
    if (!asp_arena_commit(&arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "the threshold of a transcoder needs %s of scratch",
                        asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&arena, parts, 2);
    const asp_status status = asp_parallel_for(context, n_sample, pre_item, &job);
    const int64_t size = n_sample * n_features;
    const double wanted = nearbyint(fmin(l0, (double)n_features) * (double)n_sample);
    const int64_t kept = asp_min(asp_max((int64_t)wanted, 1), size);
    if (!status) *threshold = fmax(of_rank(job.pre, size, size - kept), 1e-3);
    asp_arena_free(&arena);
    return status;
}
