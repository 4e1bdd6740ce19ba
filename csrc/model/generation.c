/* generation.c: continues prompts token by token.
 *
 * A pass computes some positions of some texts: first whole prompts, a block of them at a time, then the newest token
 * of every text that has not ended.  Its attention is that of a run (attention.c), with keys and values of earlier
 * positions from the cache; so logits are those of a run of the whole text. */
#include <math.h>
#include <string.h>

#include "model/hooks.h"

enum { BLOCK_ROWS = 2048 };

typedef struct {
    const asp_model *model;
    const asp_generation_options *options;
    asp_hooks hooks; /* those of the options, with the visitors */
    asp_generated *out;
    const int32_t *prompt_tokens;
    const int64_t *prompt_offsets;
    int64_t n_prompts, n_texts;
    int64_t rows, logit_rows; /* of the largest pass, and of logits at once */
    int64_t squares;          /* entries of one head in the pass with most of them */
    asp_arena arena, cache_arena;
    asp_real *resid, *ln, *qkv, *z, *mlp, *mlp_out, *hidden, *logits;
    asp_scratch attention;
    asp_visit_scratch seen;
    asp_sampling_scratch sampling; /* (n_threads, V) */
    double *gate_bias;             /* (L) */
    int64_t *text_offsets;         /* (B+1) of the texts at full length */
    uint64_t *digest;              /* (n_prompts) */
    int32_t *tokens;               /* (rows) of the pass */
    int64_t *offsets, *first;      /* (B+1), (B): of the pass */
    int64_t *square_start;         /* (B+1) of the pass */
    int64_t *chosen;               /* (B) texts whose logits are at hand */
    uint8_t *ended;                /* (B) */
    asp_kv_cache cache;
} generation;

/* ---- checks ----------------------------------------------------------------------------------- */

static asp_status check_generation(const generation *g, asp_error *err) {
    const asp_generation_options *o = g->options;
    const asp_config *c = &g->model->config;
    if (o->max_new_tokens < 1 || o->n_samples < 1)
        return asp_fail(err, ASP_BAD_ARGUMENT, "max_new_tokens and n_samples must be at least 1, got %lld and %lld",
                        (long long)o->max_new_tokens, (long long)o->n_samples);
    if (!(o->temperature >= 0) || o->temperature == INFINITY)
        return asp_fail(err, ASP_BAD_ARGUMENT, "temperature must be finite and at least 0, got %g", o->temperature);
    if (o->top_k < 0 || !(o->top_p > 0 && o->top_p <= 1))
        return asp_fail(err, ASP_BAD_ARGUMENT, "top_k must be at least 0 and top_p in (0, 1], got %lld and %g",
                        (long long)o->top_k, o->top_p);
    for (int64_t p = 0; p < g->n_prompts; p++) {
        const int64_t t = g->prompt_offsets[p + 1] - g->prompt_offsets[p];
        if (o->max_new_tokens > c->n_ctx - t)
            return asp_fail(err, ASP_BAD_ARGUMENT,
                            "prompt %lld has %lld tokens, to which this model (n_ctx %lld) can add %lld at most, got "
                            "max_new_tokens=%lld",
                            (long long)p, (long long)t, (long long)c->n_ctx, (long long)(c->n_ctx - t),
                            (long long)o->max_new_tokens);
    }
    return ASP_OK;
}

/* ---- memory ------------------------------------------------------------------------------------ */

static int64_t length_of_prompt(const generation *g, int64_t prompt) {
    return g->prompt_offsets[prompt + 1] - g->prompt_offsets[prompt];
}

/* End of the block of prompts that begins at `first`: one at least, and more up to a number of rows. */
static int64_t end_of_block(const generation *g, int64_t first) {
    int64_t end = first + 1;
    while (end < g->n_prompts && g->prompt_offsets[end + 1] - g->prompt_offsets[first] <= BLOCK_ROWS) end++;
    return end;
}

static void largest_pass(generation *g) {
    int64_t rows = g->n_texts, squares = 0;
    for (int64_t p = 0; p < g->n_prompts; p++)
        squares += g->options->n_samples * (length_of_prompt(g, p) + g->options->max_new_tokens);
    for (int64_t p = 0, end; p < g->n_prompts; p = end) {
        int64_t entries = 0;
        end = end_of_block(g, p);
        rows = asp_max(rows, g->prompt_offsets[end] - g->prompt_offsets[p]);
        for (int64_t i = p; i < end; i++) entries += length_of_prompt(g, i) * length_of_prompt(g, i);
        squares = asp_max(squares, entries);
    }
    g->rows = rows;
    g->squares = squares;
    g->logit_rows = asp_shape_logit_rows(g->model, asp_min(g->n_texts, ASP_LOSS_CHUNK));
}

enum { OWN_PARTS = 22, PARTS = OWN_PARTS + ASP_VISIT_PARTS };

static int shows_results(const generation *g) { return (g->seen.places & asp_visit_bit(ASP_AT_RESULT)) != 0; }

/* The arrays of a generation: the one list of them.  Returns the bytes of the arena. */
static int64_t lay_out_generation(generation *g, asp_arena_part parts[PARTS], int n_threads) {
    const asp_config *c = &g->model->config;
    const int64_t e = c->d_model, width = c->n_head * c->d_head, v = c->n_vocab, b = g->n_texts;
    const int64_t drawn = g->options->temperature > 0 ? n_threads : 0;
    int64_t longest = 0;
    g->seen.places = asp_visit_places(g->hooks.visitors, g->hooks.n_visitors, c->n_layer);
    const int64_t rows = asp_shape_rows(g->model, g->rows, shows_results(g));
    for (int64_t p = 0; p < g->n_prompts; p++)
        longest = asp_max(longest, length_of_prompt(g, p) + g->options->max_new_tokens);
    g->attention.per_thread = asp_attention_scratch(c, longest, 0);
    const asp_arena_part list[OWN_PARTS] = {ASP_PART(g->resid, rows, e),
                                            ASP_PART(g->ln, rows, e),
                                            ASP_PART(g->qkv, rows, 3 * width),
                                            ASP_PART(g->z, rows, width),
                                            ASP_PART(g->mlp, rows, c->d_mlp),
                                            ASP_PART(g->mlp_out, rows, g->hooks.mlp.layer ? e : 0),
                                            ASP_PART(g->hidden, g->logit_rows, e),
                                            ASP_PART(g->logits, g->logit_rows, v),
                                            ASP_PART(g->attention.data, n_threads, g->attention.per_thread),
                                            ASP_PART(g->sampling.weights, drawn, v),
                                            ASP_PART(g->sampling.ids, drawn, v),
                                            ASP_PART(g->gate_bias, c->n_layer, 1),
                                            ASP_PART(g->text_offsets, b + 1, 1),
                                            ASP_PART(g->digest, g->n_prompts, 1),
                                            ASP_PART(g->tokens, rows, 1),
                                            ASP_PART(g->offsets, b + 1, 1),
                                            ASP_PART(g->first, b, 1),
                                            ASP_PART(g->square_start, b + 1, 1),
                                            ASP_PART(g->chosen, b, 1),
                                            ASP_PART(g->ended, b, 1),
                                            ASP_PART(g->cache.room, b, 1),
                                            ASP_PART(g->cache.start, b + 1, 1)};
    memcpy(parts, list, sizeof list);
    int64_t squares;
    if (!asp_multiply(g->squares, c->n_head, &squares)) squares = -1;
    asp_visit_list(parts + OWN_PARTS, &g->seen, c, rows, squares);
    return asp_arena_lay_out(&g->arena, parts, PARTS);
}

static asp_status no_room_to_generate(const generation *g, int64_t needed, int64_t limit, asp_error *err) {
    char size[32];
    const char *plural = g->n_texts == 1 ? "" : "s";
    asp_fail_size(size, (double)needed);
    if (needed <= limit)
        return asp_fail(err, ASP_NO_MEMORY, "generating %lld text%s needs %s, which could not be allocated",
                        (long long)g->n_texts, plural, size);
    return asp_fail(
        err, ASP_NO_MEMORY,
        "generating %lld text%s needs %s, above max_bytes=%lld; give fewer prompts at a time, fewer samples "
        "or new tokens, or a larger max_bytes",
        (long long)g->n_texts, plural, size, (long long)limit);
}

static uint64_t digest_of(const int32_t *tokens, int64_t n) {
    uint64_t digest = (uint64_t)n;
    for (int64_t i = 0; i < n; i++) digest = asp_splitmix64(digest ^ (uint64_t)tokens[i]);
    return digest;
}

static void describe_texts(generation *g) {
    const asp_config *c = &g->model->config;
    for (int64_t l = 0; l < c->n_layer; l++) g->gate_bias[l] = c->gate_bias;
    for (int64_t p = 0; p < g->n_prompts; p++)
        g->digest[p] = digest_of(g->prompt_tokens + g->prompt_offsets[p], length_of_prompt(g, p));
    g->text_offsets[0] = g->offsets[0] = g->square_start[0] = 0;
    for (int64_t b = 0; b < g->n_texts; b++) {
        g->cache.room[b] = length_of_prompt(g, b / g->options->n_samples) + g->options->max_new_tokens;
        g->text_offsets[b + 1] = g->text_offsets[b] + g->cache.room[b];
        g->ended[b] = 0;
    }
}

static asp_status allocate_generation(generation *g, int n_threads, asp_error *err) {
    const int64_t limit = g->options->max_bytes;
    asp_arena_part parts[PARTS];
    largest_pass(g);
    int64_t needed = lay_out_generation(g, parts, n_threads);
    if (needed > limit) return no_room_to_generate(g, needed, limit, err);
    if (!asp_arena_commit(&g->arena, 0)) return no_room_to_generate(g, needed, INT64_MAX, err);
    asp_arena_wire(&g->arena, parts, PARTS);
    describe_texts(g);
    asp_arena_part cache = ASP_PART(g->cache.data, asp_kv_cache_lay_out(&g->cache, &g->model->config, g->n_texts), 1);
    const int64_t more = asp_arena_lay_out(&g->cache_arena, &cache, 1);
    if (__builtin_add_overflow(needed, more, &needed)) needed = INT64_MAX;
    if (needed > limit || needed == INT64_MAX) return no_room_to_generate(g, needed, limit, err);
    if (!asp_arena_commit(&g->cache_arena, 1)) return no_room_to_generate(g, needed, INT64_MAX, err);
    asp_arena_wire(&g->cache_arena, &cache, 1);
    return ASP_OK;
}

/* ---- a pass ------------------------------------------------------------------------------------ */

/* Puts n tokens of a text, from this position on, behind those that the pass has. */
static void add_to_pass(generation *g, int64_t text, int64_t first, const int32_t *tokens, int64_t n) {
    g->first[text] = first;
    memcpy(g->tokens + g->offsets[text], tokens, (size_t)n * sizeof *tokens);
    g->offsets[text + 1] = g->offsets[text] + n;
    const asp_config *c = &g->model->config;
    g->square_start[text + 1] = g->square_start[text] + c->n_layer * c->n_head * n * (first + n);
}

/* Prompts [begin, end), each as its first text. */
static void prompts_to_pass(generation *g, int64_t begin, int64_t end) {
    const int64_t samples = g->options->n_samples;
    for (int64_t b = 0; b < g->n_texts; b++) {
        const int64_t p = b / samples;
        const int wanted = b % samples == 0 && p >= begin && p < end;
        add_to_pass(g, b, 0, g->prompt_tokens + g->prompt_offsets[p], wanted ? length_of_prompt(g, p) : 0);
    }
}

/* The newest token of every text that has not ended. */
static void texts_to_pass(generation *g) {
    const int64_t most = g->options->max_new_tokens;
    for (int64_t b = 0; b < g->n_texts; b++) {
        const int64_t n = g->out->n_new[b];
        add_to_pass(g, b, length_of_prompt(g, b / g->options->n_samples) + n - 1, g->out->tokens + b * most + n - 1,
                    g->ended[b] ? 0 : 1);
    }
}

static asp_status run_pass(const generation *g, const asp_context *context) {
    const int64_t n = g->offsets[g->n_texts];
    const asp_gate gate = {.gated = g->model->config.gated, .bias = g->gate_bias};
    asp_activations acts = {.n_tokens = n,
                            .n_rows = asp_shape_rows(g->model, n, shows_results(g)),
                            .n_sequences = g->n_texts,
                            .by_row = 1,
                            .tokens = g->tokens,
                            .offsets = g->offsets,
                            .first = g->first,
                            .cache = &g->cache,
                            .square_start = g->square_start,
                            .resid = {g->resid, 0},
                            .mid = {g->resid, 0},
                            .ln1 = {g->ln, 0},
                            .ln2 = {g->ln, 0},
                            .qkv = {g->qkv, 0},
                            .z = {g->z, 0},
                            .mlp_post = {g->mlp, 0},
                            .mlp_out = {g->hooks.mlp.layer ? g->mlp_out : NULL, 0},
                            .ln_final = g->ln,
                            .hooks = &g->hooks};
    asp_visit_wire(&acts, &g->seen);
    return asp_forward_layers(g->model, &acts, &gate, &g->attention, context);
}

/* ---- the next tokens --------------------------------------------------------------------------- */

typedef struct {
    const generation *g;
    int64_t samples; /* texts for each row of logits */
} choice_job;

static double random_number(const generation *g, int64_t text, int64_t step) {
    const int64_t samples = g->options->n_samples;
    uint64_t raw;
    asp_random_raw(&raw, step, 1, g->options->seed, ASP_RANDOM_GENERATION, g->digest[text / samples],
                   (uint64_t)(text % samples));
    return (double)(raw >> 11) * 0x1p-53;
}

static void choose_token(void *arg, int64_t item, int thread) {
    const choice_job *job = arg;
    const generation *g = job->g;
    const asp_generation_options *o = g->options;
    const int64_t v = g->model->config.n_vocab, row = item / job->samples;
    const int64_t text = g->chosen[row] + item % job->samples, at = text * o->max_new_tokens + g->out->n_new[text];
    const asp_real *logits = g->logits + row * v;
    const asp_sampling_scratch scratch = {g->sampling.weights + thread * v, g->sampling.ids + thread * v};
    const int32_t token = o->temperature > 0 ? asp_sampling_draw(logits, v, o->temperature, o->top_k, o->top_p,
                                                                 random_number(g, text, g->out->n_new[text]), &scratch)
                                             : asp_sampling_best(logits, v);
    g->out->tokens[at] = token;
    g->out->logprobs[at] = -asp_isa_kernels()->cross_entropy_row(NULL, logits, v, token, 1.0);
    if (g->out->logits) memcpy(g->out->logits + at * v, logits, (size_t)v * sizeof *logits);
}

/* The text has one token more. */
static asp_status count_token(generation *g, int64_t text, const asp_context *context) {
    const asp_generation_options *o = g->options;
    const int64_t n = g->out->n_new[text], at = text * o->max_new_tokens + n;
    if (isnan(g->out->logprobs[at]))
        return asp_fail(context->err, ASP_BAD_STATE,
                        "the logits of prompt %lld after %lld new tokens are not numbers; look for weights or patched "
                        "values that are not finite",
                        (long long)(text / o->n_samples), (long long)n);
    g->out->n_new[text] = n + 1;
    g->ended[text] = n + 1 == o->max_new_tokens || (o->stop && o->stop[g->out->tokens[at]]);
    return ASP_OK;
}

/* From the final LayerNorm of the last rows of the pass to the next tokens, `samples` of them for each text in it. */
static asp_status choose_tokens(generation *g, int64_t samples, const asp_context *context) {
    const int64_t e = g->model->config.d_model;
    asp_status status = ASP_OK;
    for (int64_t b = 0; !status && b < g->n_texts;) {
        int64_t n = 0;
        for (; b < g->n_texts && n < ASP_LOSS_CHUNK; b++) {
            if (g->offsets[b] == g->offsets[b + 1]) continue;
            memcpy(g->hidden + n * e, g->ln + (g->offsets[b + 1] - 1) * e, (size_t)e * sizeof *g->hidden);
            g->chosen[n++] = b;
        }
        choice_job job = {g, samples};
        status = asp_unembed_by_row(g->model, g->logits, g->hidden, n, asp_shape_logit_rows(g->model, n), context);
        if (!status) status = asp_parallel_for(context, n * samples, choose_token, &job);
        for (int64_t i = 0; !status && i < n * samples; i++)
            status = count_token(g, g->chosen[i / samples] + i % samples, context);
    }
    return status;
}

/* ---- all passes --------------------------------------------------------------------------------- */

/* Tokens that are there, and those that texts which have ended will not get. */
static asp_status tell_progress(const generation *g, const asp_context *context) {
    const int64_t most = g->options->max_new_tokens;
    int64_t done = 0;
    for (int64_t b = 0; b < g->n_texts; b++) done += g->ended[b] ? most : g->out->n_new[b];
    return asp_context_progress(context, "generation", done, g->n_texts * most);
}

typedef struct {
    generation *g;
    int64_t first; /* text */
} copy_job;

/* Keys and values of a prompt from its first text to another one. */
static void copy_cache(void *arg, int64_t item, int thread) {
    (void)thread;
    const copy_job *job = arg;
    const int64_t text = job->first + item, sample = text % job->g->options->n_samples;
    if (sample) asp_kv_cache_copy(&job->g->cache, text, text - sample);
}

static asp_status compute_prompts(generation *g, const asp_context *context) {
    const int64_t samples = g->options->n_samples;
    asp_status status = tell_progress(g, context);
    for (int64_t begin = 0, end; !status && begin < g->n_prompts; begin = end) {
        end = end_of_block(g, begin);
        prompts_to_pass(g, begin, end);
        status = run_pass(g, context);
        if (!status) status = choose_tokens(g, samples, context);
        copy_job job = {g, begin * samples};
        if (!status && samples > 1) status = asp_parallel_for(context, (end - begin) * samples, copy_cache, &job);
        if (!status) status = tell_progress(g, context);
    }
    return status;
}

static asp_status continue_texts(generation *g, const asp_context *context) {
    asp_status status = ASP_OK;
    for (int64_t step = 1; !status && step < g->options->max_new_tokens; step++) {
        texts_to_pass(g);
        if (g->offsets[g->n_texts] == 0) break;
        status = run_pass(g, context);
        if (!status) status = choose_tokens(g, 1, context);
        if (!status) status = tell_progress(g, context);
    }
    return status;
}

static asp_status generate_texts(generation *g, const asp_context *context, asp_error *err) {
    const asp_hooks *hooks = &g->hooks;
    const int began = hooks->begin != NULL;
    asp_status status = ASP_OK;
    if (began) status = hooks->begin(hooks->state, g->model, g->text_offsets, g->n_texts, context->n_threads, err);
    if (!status) status = asp_blas_enter(context, err);
    if (!status) {
        status = compute_prompts(g, context);
        if (!status) status = continue_texts(g, context);
        asp_blas_leave();
    }
    if (began && hooks->end) hooks->end(hooks->state);
    return status;
}

asp_status asp_generation_run(asp_generated *generated, const asp_model *model, const int32_t *tokens,
                              const int64_t *offsets, int64_t n_prompts, const asp_generation_options *options,
                              const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    generation g = {.model = model,
                    .options = options,
                    .out = generated,
                    .prompt_tokens = tokens,
                    .prompt_offsets = offsets,
                    .n_prompts = n_prompts};
    if (options->hooks) g.hooks = *options->hooks;
    g.hooks.visitors = options->visitors;
    g.hooks.n_visitors = options->n_visitors;
    asp_status status = asp_shape_check_batch(&model->config, tokens, offsets, n_prompts, err);
    if (!status) status = check_generation(&g, err);
    if (!status && (!asp_multiply(n_prompts, options->n_samples, &g.n_texts) || g.n_texts > INT32_MAX))
        status = asp_fail(err, ASP_BAD_ARGUMENT,
                          "at most %d texts can be generated at once, got %lld prompts with "
                          "%lld samples each",
                          INT32_MAX, (long long)n_prompts, (long long)options->n_samples);
    if (status) return status;
    for (int64_t b = 0; b < g.n_texts; b++) generated->n_new[b] = 0;
    status = allocate_generation(&g, own.n_threads, err);
    if (!status) status = generate_texts(&g, &own, err);
    asp_arena_free(&g.arena);
    asp_arena_free(&g.cache_arena);
    return status;
}
