/* contexts.c: where features are most active in many prompts, and which tokens they promote.
 *
 * A table of fixed size keeps the strongest contexts of each feature of a layer; prompts are added one after the other
 * and not kept.  Owns the table, in one arena; borrows prompts and features for the call. */
#include <string.h>

#include "transcoder/transcoder.h"

static const int64_t LOGIT_BYTES = (int64_t)64 << 20; /* of logits looked at together */

struct asp_contexts {
    int64_t n, n_features, top, before, after, width;
    int32_t *place;              /* (n_features) of each feature in the table; -1: not wanted */
    int32_t *prompt, *position;  /* (n,top) */
    float *activation;           /* (n,top) */
    int32_t *tokens;             /* (n,top,width) */
    float *activations;          /* (n,top,width) */
    int64_t *count;              /* (n) */
    int64_t *best;               /* (n) strongest entry of the prompt at work; -1: none */
    int64_t *touched, n_touched; /* (n) places that have one */
    asp_arena arena;
};

/* ---- life ---------------------------------------------------------------------------------- */

static asp_status check_options(const asp_contexts_options *o, asp_error *err) {
    if (o->n_features < 0 || o->n_features > INT32_MAX)
        return asp_fail(err, ASP_BAD_ARGUMENT, "contexts are of 0..%d features, got %lld", INT32_MAX,
                        (long long)o->n_features);
    if (o->top < 1) return asp_fail(err, ASP_BAD_ARGUMENT, "top must be at least 1, got %lld", (long long)o->top);
    if (o->before < 0 || o->after < 0 || o->before > INT32_MAX || o->after > INT32_MAX)
        return asp_fail(err, ASP_BAD_ARGUMENT, "before and after must be in 0..%d, got %lld and %lld", INT32_MAX,
                        (long long)o->before, (long long)o->after);
    for (int64_t i = 0; o->wanted && i < o->n_wanted; i++)
        if (o->wanted[i] < 0 || o->wanted[i] >= o->n_features || (i && o->wanted[i] <= o->wanted[i - 1]))
            return asp_fail(err, ASP_BAD_INDEX, "wanted features must rise within 0..%lld, number %lld is %lld",
                            (long long)o->n_features - 1, (long long)i, (long long)o->wanted[i]);
    return ASP_OK;
}

static asp_status allocate_contexts(asp_contexts *c, asp_error *err) {
    int64_t kept = 0, all = -1;
    if (asp_multiply(c->n, c->top, &kept)) asp_multiply(kept, c->width, &all);
    asp_arena_part parts[] = {ASP_PART(c->place, c->n_features, 1), ASP_PART(c->prompt, c->n, c->top),
                              ASP_PART(c->position, c->n, c->top),  ASP_PART(c->activation, c->n, c->top),
                              ASP_PART(c->tokens, all, 1),          ASP_PART(c->activations, all, 1),
                              ASP_PART(c->count, c->n, 1),          ASP_PART(c->best, c->n, 1),
                              ASP_PART(c->touched, c->n, 1)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    const int64_t bytes = asp_arena_lay_out(&c->arena, parts, PARTS);
    if (!asp_arena_commit(&c->arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "the contexts of %lld features need %s, which could not be allocated",
                        (long long)c->n, asp_fail_size((char[32]){0}, (double)asp_max(bytes, 1)));
    asp_arena_wire(&c->arena, parts, PARTS);
    memset(c->prompt, 0xff, (size_t)kept * sizeof *c->prompt); /* all -1 */
    memset(c->position, 0xff, (size_t)kept * sizeof *c->position);
    memset(c->tokens, 0xff, (size_t)all * sizeof *c->tokens);
    memset(c->best, 0xff, (size_t)c->n * sizeof *c->best);
    return ASP_OK;
}

asp_status asp_contexts_new(asp_contexts **contexts, const asp_contexts_options *options, asp_error *err) {
    *contexts = NULL;
    asp_status status = check_options(options, err);
    if (status) return status;
    asp_contexts *c = asp_allocate(1, sizeof *c);
    if (!c) return asp_fail(err, ASP_NO_MEMORY, "no memory for contexts");
    c->n = options->wanted ? options->n_wanted : options->n_features;
    c->n_features = options->n_features;
    c->top = options->top;
    c->before = options->before;
    c->after = options->after;
    c->width = c->before + 1 + c->after;
    status = allocate_contexts(c, err);
    if (status) {
        asp_contexts_free(c);
        return status;
    }
    for (int64_t i = 0; i < c->n_features; i++) c->place[i] = options->wanted ? -1 : (int32_t)i;
    for (int64_t i = 0; options->wanted && i < c->n; i++) c->place[options->wanted[i]] = (int32_t)i;
    *contexts = c;
    return ASP_OK;
}

void asp_contexts_free(asp_contexts *c) {
    if (!c) return;
    asp_arena_free(&c->arena);
    asp_release(c);
}

asp_contexts_table asp_contexts_read(const asp_contexts *c) {
    return (asp_contexts_table){c->n,          c->top,    c->width,       c->prompt, c->position,
                                c->activation, c->tokens, c->activations, c->count};
}

/* ---- one batch of prompts ------------------------------------------------------------------------ */

typedef struct {
    asp_contexts *c;
    const asp_feature_list *active;
    const asp_contexts_prompts *prompts;
    int64_t begin, end; /* the layer's entries in active */
} addition;

static asp_status check_active_entries(const addition *a, asp_error *err) {
    const int64_t n_tokens = a->prompts->offsets[a->prompts->n_prompts];
    const int32_t *position = a->active->position, *feature = a->active->feature;
    for (int64_t i = a->begin; i < a->end; i++) {
        if (i > a->begin &&
            (position[i] < position[i - 1] || (position[i] == position[i - 1] && feature[i] <= feature[i - 1])))
            return asp_fail(err, ASP_BAD_ARGUMENT,
                            "active features must be sorted by position and feature, row %lld is not",
                            (long long)(i - a->begin));
        if (a->active->feature[i] < 0 || a->active->feature[i] >= a->c->n_features || a->active->position[i] < 0 ||
            a->active->position[i] >= n_tokens)
            return asp_fail(err, ASP_BAD_INDEX, "feature %d at token %d is out of range: %lld features, %lld tokens",
                            a->active->feature[i], a->active->position[i], (long long)a->c->n_features,
                            (long long)n_tokens);
    }
    return ASP_OK;
}

/* Counts the entries from `i` on that lie before row `stop`, and notes the strongest of each feature, of equal ones
 * the first.  Returns the entry after them. */
static int64_t find_best(const addition *a, int64_t i, int64_t stop) {
    asp_contexts *c = a->c;
    c->n_touched = 0;
    for (; i < a->end && a->active->position[i] < stop; i++) {
        const int32_t place = c->place[a->active->feature[i]];
        if (place < 0) continue;
        c->count[place]++;
        if (c->best[place] < 0) c->touched[c->n_touched++] = place;
        if (c->best[place] < 0 || a->active->activation[i] > a->active->activation[c->best[place]]) c->best[place] = i;
    }
    return i;
}

/* The activation of a feature at a token: 0 where it is not active. */
static float activation_at(const addition *a, int64_t row, int32_t feature) {
    int64_t low = a->begin, high = a->end;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        const int32_t position = a->active->position[middle];
        if (position < row || (position == row && a->active->feature[middle] < feature)) low = middle + 1;
        else high = middle;
    }
    const int found = low < a->end && a->active->position[low] == row && a->active->feature[low] == feature;
    return found ? (float)a->active->activation[low] : 0;
}

/* Moves the items from `at` on of a list of `top` one place down; the last one is lost. */
static void move_down(void *list, int64_t at, int64_t top, size_t size) {
    char *start = (char *)list + (size_t)at * size;
    memmove(start + size, start, (size_t)(top - 1 - at) * size);
}

/* Puts the strongest entry of a prompt among those of its feature, behind equal ones. */
static void insert(const addition *a, int64_t prompt, int64_t place) {
    asp_contexts *c = a->c;
    const int64_t entry = c->best[place], row = a->active->position[entry], first = place * c->top;
    const float value = (float)a->active->activation[entry];
    int64_t at = c->top;
    c->best[place] = -1;
    while (at > 0 && value > c->activation[first + at - 1]) at--;
    if (at == c->top) return;
    move_down(c->prompt + first, at, c->top, sizeof *c->prompt);
    move_down(c->position + first, at, c->top, sizeof *c->position);
    move_down(c->activation + first, at, c->top, sizeof *c->activation);
    move_down(c->tokens + first * c->width, at, c->top, (size_t)c->width * sizeof *c->tokens);
    move_down(c->activations + first * c->width, at, c->top, (size_t)c->width * sizeof *c->activations);
    const int64_t begin = a->prompts->offsets[prompt], end = a->prompts->offsets[prompt + 1];
    c->prompt[first + at] = (int32_t)(a->prompts->first + prompt);
    c->position[first + at] = (int32_t)(row - begin);
    c->activation[first + at] = value;
    for (int64_t w = 0; w < c->width; w++) {
        const int64_t there = row - c->before + w, to = (first + at) * c->width + w;
        const int inside = there >= begin && there < end;
        c->tokens[to] = inside ? a->prompts->tokens[there] : -1;
        c->activations[to] = inside ? activation_at(a, there, a->active->feature[entry]) : 0;
    }
}

asp_status asp_contexts_add(asp_contexts *c, const asp_feature_list *active, int64_t layer,
                            const asp_contexts_prompts *prompts, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    if (!c->n) return ASP_OK;
    const addition a = {c, active, prompts, active->start[layer], active->start[layer + 1]};
    const asp_status status = check_active_entries(&a, err);
    if (status) return status;
    int64_t entry = a.begin;
    for (int64_t p = 0; p < prompts->n_prompts; p++) {
        entry = find_best(&a, entry, prompts->offsets[p + 1]);
        for (int64_t i = 0; i < c->n_touched; i++) insert(&a, p, c->touched[i]);
        if (asp_parallel_stopped(context)) return ASP_STOPPED;
    }
    return ASP_OK;
}

/* ---- promoted tokens ------------------------------------------------------------------------------- */

typedef struct {
    const asp_model *model;
    const double *rows;            /* (n,W,E) */
    int64_t n_writes, k, n, first; /* of all features; the first one of this block */
    double *sums;                  /* (n_threads,E) scratch */
    asp_real *written;             /* (padded rows,E) */
    asp_real *logits;              /* (padded rows,V) */
    int32_t *tokens;               /* (2,n,k) */
    float *effects;                /* (2,n,k) */
    asp_arena arena;
} promotion;

static double own_term(const void *arg, int64_t i) { return ((const double *)arg)[i]; }
static double logit_term(const void *arg, int64_t i) { return (double)((const asp_real *)arg)[i]; }

/* What a feature writes, less its mean, times the final LayerNorm's weight. */
static void written_item(void *arg, int64_t item, int thread) {
    const promotion *p = arg;
    const int64_t e = p->model->config.d_model;
    const double *rows = p->rows + (p->first + item) * p->n_writes * e;
    const asp_real *weight = p->model->data + p->model->lnf_w;
    double *sums = p->sums + thread * e;
    memcpy(sums, rows, (size_t)e * sizeof *sums);
    for (int64_t w = 1; w < p->n_writes; w++)
        for (int64_t j = 0; j < e; j++) sums[j] += rows[w * e + j];
    const double mean = asp_sum(own_term, sums, e) / (double)e;
    for (int64_t j = 0; j < e; j++) p->written[item * e + j] = (asp_real)((sums[j] - mean) * (double)weight[j]);
}

/* Whether token a comes after b in the list: by falling logit if sign is 1, by rising if -1, then by number. */
static int is_after(const asp_real *logits, int sign, int32_t a, int32_t b) {
    const asp_real x = logits[a], y = logits[b];
    return x == y ? a > b : sign > 0 ? x < y : x > y;
}

/* Restores a heap, the token that comes last on top, whose top may be wrong. */
static void sift_contexts(int32_t *heap, int64_t n, const asp_real *logits, int sign) {
    const int32_t token = heap[0];
    int64_t at = 0;
    for (int64_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && is_after(logits, sign, heap[child + 1], heap[child])) child++;
        if (!is_after(logits, sign, heap[child], token)) break;
        heap[at] = heap[child];
    }
    heap[at] = token;
}

/* tokens (k) written: the first k of n_vocab in the order of is_after. */
static void first_tokens(int32_t *tokens, int64_t k, const asp_real *logits, int64_t n_vocab, int sign) {
    int64_t n = 0;
    for (; n < k; n++) { /* from the bottom upwards */
        int64_t at = n;
        for (; at > 0 && is_after(logits, sign, (int32_t)n, tokens[(at - 1) / 2]); at = (at - 1) / 2)
            tokens[at] = tokens[(at - 1) / 2];
        tokens[at] = (int32_t)n;
    }
    for (int64_t v = k; v < n_vocab; v++)
        if (is_after(logits, sign, tokens[0], (int32_t)v)) {
            tokens[0] = (int32_t)v;
            sift_contexts(tokens, k, logits, sign);
        }
    for (n = k - 1; n > 0; n--) {
        const int32_t last = tokens[0];
        tokens[0] = tokens[n];
        tokens[n] = last;
        sift_contexts(tokens, n, logits, sign);
    }
}

static void promoted_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const promotion *p = arg;
    const int64_t v = p->model->config.n_vocab;
    asp_real *logits = p->logits + item * v;
    const asp_real mean = (asp_real)(asp_sum(logit_term, logits, v) / (double)v);
    for (int64_t i = 0; i < v; i++) logits[i] -= mean;
    for (int side = 0; side < 2; side++) {
        const int64_t at = (side * p->n + p->first + item) * p->k;
        first_tokens(p->tokens + at, p->k, logits, v, side ? -1 : 1);
        for (int64_t i = 0; i < p->k; i++) p->effects[at + i] = (float)logits[p->tokens[at + i]];
    }
}

static asp_status allocate_promotion(promotion *p, int64_t rows, int n_threads, asp_error *err) {
    const asp_config *c = &p->model->config;
    asp_arena_part parts[] = {ASP_PART(p->sums, n_threads, c->d_model), ASP_PART(p->written, rows, c->d_model),
                              ASP_PART(p->logits, rows, c->n_vocab)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    const int64_t bytes = asp_arena_lay_out(&p->arena, parts, PARTS);
    if (!asp_arena_commit(&p->arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "the tokens that features promote need %s of scratch",
                        asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&p->arena, parts, PARTS);
    return ASP_OK;
}

asp_status asp_contexts_promoted(int32_t *tokens, float *effects, int64_t k, const asp_model *model, const double *rows,
                                 int64_t n, int64_t n_writes, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    context = &own;
    const int64_t e = model->config.d_model, v = model->config.n_vocab;
    if (k < 1 || k > v || n_writes < 1)
        return asp_fail(err, ASP_BAD_ARGUMENT, "1..%lld promoted tokens can be listed, of 1 or more rows, got %lld",
                        (long long)v, (long long)k);
    const int64_t most = asp_min(asp_max(1, LOGIT_BYTES / (v * (int64_t)sizeof(asp_real))), asp_max(1, n));
    const int64_t padded = asp_shape_logit_rows(model, most);
    promotion p = {
        .model = model, .rows = rows, .n_writes = n_writes, .k = k, .n = n, .tokens = tokens, .effects = effects};
    asp_status status = allocate_promotion(&p, padded, context->n_threads, err);
    if (!status) status = asp_blas_enter(context, err);
    const int entered = !status;
    for (; !status && p.first < n; p.first += most) {
        const int64_t here = asp_min(most, n - p.first);
        const asp_gemm to_logits = {.trans_b = 1,
                                    .m = padded,
                                    .n = v,
                                    .k = e,
                                    .a = p.written,
                                    .lda = e,
                                    .b = model->data + model->unembed_w,
                                    .ldb = e,
                                    .c = p.logits,
                                    .ldc = v,
                                    .n_rows = here,
                                    .k_block = model->k_block.model};
        status = asp_parallel_for(context, here, written_item, &p);
        if (!status) status = asp_gemm_run(&to_logits, context);
        if (!status) status = asp_parallel_for(context, here, promoted_item, &p);
    }
    if (entered) asp_blas_leave();
    asp_arena_free(&p.arena);
    return status;
}
