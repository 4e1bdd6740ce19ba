/* component_acdc.c: component edges taken away one after the other, as long as the metric bears it (ACDC).
 *
 * Receivers are asked from the logits down.  So whatever comes before a receiver still has all of its component edges:
 * the outputs of these senders are those of the prompts as they are, and only the receiver's own node and what it flows
 * into over component edges that are left is computed again.  Several senders of a receiver are asked in one pass: in
 * copy i of the prompts the first i + 1 of them are gone, as they are if all of the ones before went; what lies behind
 * the first that stays is asked again.
 *
 * If all prompts fit in max_bytes, the outputs of senders stay from one pass to the next.  Else every pass goes through
 * blocks of prompts, and computes the circuit's outputs in each block first. */
#include <string.h>

#include "component/component.h"

enum { PASS_ROWS = 2048, SLOTS_OF_PASS = 8 };

typedef struct {
    asp_component_setting *setting;
    asp_patch patch;
    double threshold;
    uint8_t *mask;            /* (S,R) */
    double *scores;           /* (S,R) */
    asp_component_kept *kept; /* how many are asked, how many to ask at once, the loss of the circuit */
    int is_whole;             /* all prompts are one block, which stays open */
    asp_arena stays;          /* patch.plan.slot and sums */
    double *sums;             /* (S) of the metric over all prompts, of each copy */
    asp_arena arena;          /* of a block: the below */
    asp_real *current;        /* (S,R,E) of the circuit: current minus ablated output of each sender */
    double *values;           /* (n_copies,n) */
} acdc;

/* ---- memory --------------------------------------------------------------------------------------------- */

/* A pass over a block of n prompts. */
static asp_patch_size pass_size(const asp_component_setting *s, int64_t n) {
    const asp_config *c = &s->model->config;
    const int64_t n_senders = asp_nodes_n_senders(c), rows = asp_shape_rows(s->model, s->offsets[n], 0);
    return (asp_patch_size){.n_slots = asp_max(n_senders, (int64_t)SLOTS_OF_PASS * PASS_ROWS / rows),
                            .most_inputs = 3 * c->n_head,
                            .n_copies = asp_min(n_senders, asp_max(1, PASS_ROWS / asp_max(1, s->offsets[n])))};
}

enum { PARTS = 2 };

static int64_t lay_out_acdc(acdc *a, asp_arena_part parts[PARTS], const asp_component_setting *s, int64_t n) {
    const int64_t rows = asp_shape_rows(s->model, s->offsets[n], 0);
    const asp_arena_part list[PARTS] = {ASP_PART(a->current, asp_nodes_n_senders(&s->model->config) * rows,
                                                 s->model->config.d_model),
                                        ASP_PART(a->values, pass_size(s, n).n_copies, n)};
    memcpy(parts, list, sizeof list);
    a->arena = (asp_arena){0};
    return asp_arena_lay_out(&a->arena, parts, PARTS);
}

static int64_t acdc_bytes(const void *own, const asp_component_setting *s, int64_t n, int n_threads) {
    (void)own;
    acdc a = {.setting = NULL};
    asp_arena_part parts[PARTS];
    const asp_patch_size size = pass_size(s, n);
    int64_t bytes = lay_out_acdc(&a, parts, s, n);
    if (__builtin_add_overflow(bytes, asp_patch_needed(s, n, &size, n_threads), &bytes)) return INT64_MAX;
    return bytes;
}

static void close_acdc_block(acdc *a) {
    asp_arena_free(&a->patch.arena);
    asp_arena_free(&a->arena);
}

static asp_status open_acdc_block(acdc *a, int n_threads, asp_error *err) {
    asp_arena_part parts[PARTS];
    const asp_patch_size size = pass_size(a->setting, a->setting->n);
    const int64_t bytes = lay_out_acdc(a, parts, a->setting, a->setting->n);
    if (!asp_arena_commit(&a->arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "%s: no memory for the outputs of senders in %lld prompts, which takes %s",
                        a->setting->stage, (long long)a->setting->n, asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&a->arena, parts, PARTS);
    a->patch.given = a->current;
    a->patch.arena = (asp_arena){0};
    return asp_patch_open(&a->patch, &size, n_threads, err);
}

/* What is allocated for all blocks. */
static asp_status allocate_acdc(acdc *a, asp_error *err) {
    const int64_t n_senders = asp_nodes_n_senders(&a->setting->model->config);
    asp_arena_part parts[] = {ASP_PART(a->patch.plan.slot, n_senders, 1), ASP_PART(a->sums, n_senders, 1)};
    a->setting->stays = asp_arena_lay_out(&a->stays, parts, 2);
    if (!asp_arena_commit(&a->stays, 0)) return asp_fail(err, ASP_NO_MEMORY, "acdc: no memory for a model's senders");
    asp_arena_wire(&a->stays, parts, 2);
    return ASP_OK;
}

/* ---- the circuit of a block ------------------------------------------------------------------------------- */

typedef struct {
    const acdc *a;
    int64_t copy;
} keep_job;

static void keep_item(void *arg, int64_t sender, int thread) {
    (void)thread;
    const keep_job *job = arg;
    const acdc *a = job->a;
    const asp_component_setting *s = a->setting;
    const int64_t e = s->model->config.d_model, n_tokens = s->offsets[s->n], slot = a->patch.plan.slot[sender];
    if (slot < 0) return;
    memcpy(a->current + sender * s->n_rows * e, a->patch.changes + (slot * a->patch.n_rows + job->copy * n_tokens) * e,
           (size_t)(n_tokens * e) * sizeof *a->current);
}

/* The circuit becomes that of a copy of the last pass. */
static asp_status keep_copy(const acdc *a, int64_t copy, const asp_context *context) {
    keep_job job = {a, copy};
    return asp_parallel_for(context, asp_nodes_n_senders(&a->setting->model->config), keep_item, &job);
}

/* Goes to the next block of prompts, and computes what the circuit's senders give there. */
static asp_status next_acdc_block(acdc *a, const asp_context *context) {
    asp_component_setting *s = a->setting;
    close_acdc_block(a);
    asp_status status = asp_component_setting_next(s, context, context->err);
    if (status || !s->n) return status;
    status = open_acdc_block(a, context->n_threads, context->err);
    if (!status) status = asp_blas_enter(context, context->err);
    if (status) return status;
    asp_patch_plan_behind(&a->patch.plan, &s->model->config, a->mask, -1);
    a->patch.n_copies = 1;
    a->patch.receiver = -1;
    status = asp_patch_run(&a->patch, a->values, context);
    if (!status) status = keep_copy(a, 0, context);
    asp_blas_leave();
    return status;
}

/* Goes before the first block; one that is whole stays. */
static void rewind_acdc(acdc *a) { a->setting->first = a->setting->n = 0; }

/* ---- losses ------------------------------------------------------------------------------------------------ */

static void add_values(const acdc *a, int64_t n_copies) {
    const int64_t n = a->setting->n;
    for (int64_t i = 0; i < n_copies; i++)
        for (int64_t b = 0; b < n; b++) a->sums[i] += a->values[i * n + b];
}

static asp_status loss_of(double *loss, const acdc *a, int64_t copy, const asp_context *context) {
    const asp_component_setting *s = a->setting;
    *loss = (s->options.smaller_is_better ? 1 : -1) * a->sums[copy] / (double)s->task->clean.n_prompts;
    if (*loss - *loss == 0) return ASP_OK;
    return asp_fail(context->err, ASP_BAD_ARGUMENT,
                    "%s: the metric of a circuit is not finite, so no threshold can be compared with it", s->stage);
}

/* Copies of the block that is open in which senders lack.  sums (n_copies) added to */
static asp_status run_copies(acdc *a, int64_t node, int64_t receiver, int64_t sender, int64_t n_copies,
                             const asp_context *context) {
    asp_patch_plan_behind(&a->patch.plan, &a->setting->model->config, a->mask, node);
    a->patch.n_copies = n_copies;
    a->patch.receiver = receiver;
    a->patch.sender = sender;
    asp_status status = asp_blas_enter(context, context->err);
    if (status) return status;
    status = asp_patch_run(&a->patch, a->values, context);
    asp_blas_leave();
    if (!status) add_values(a, n_copies);
    return status;
}

/* The same over all prompts.  sums (n_copies) written */
static asp_status run_all_copies(acdc *a, int64_t node, int64_t receiver, int64_t sender, int64_t n_copies,
                                 const asp_context *context) {
    memset(a->sums, 0, (size_t)n_copies * sizeof *a->sums);
    if (a->is_whole) return run_copies(a, node, receiver, sender, n_copies, context);
    rewind_acdc(a);
    asp_status status = next_acdc_block(a, context);
    while (!status && a->setting->n) {
        status = run_copies(a, node, receiver, sender, n_copies, context);
        if (!status) status = next_acdc_block(a, context);
    }
    return status;
}

/* ---- asking --------------------------------------------------------------------------------------------- */

/* How many copies a pass for a node may have, in every block.  The plan is the node's. */
static int64_t most_copies(acdc *a) {
    asp_component_setting *s = a->setting;
    const asp_prompts *clean = &s->task->clean;
    int64_t most = INT64_MAX;
    for (int64_t first = 0, end; first < clean->n_prompts; first = end) {
        end = asp_task_block_end(clean, first, s->most_tokens);
        asp_task_block(s->offsets, clean, first, end);
        s->n = end - first;
        const asp_patch_size size = pass_size(s, s->n);
        most = asp_min(most, asp_patch_most_copies(s, &size, a->patch.plan.n_slots));
    }
    return most;
}

/* Asks the sender and some before it. */
static asp_status ask_senders(acdc *a, int64_t receiver, int64_t node, int64_t sender, int64_t most,
                              const asp_context *context) {
    const int64_t n_receivers = asp_nodes_n_receivers(&a->setting->model->config);
    const int64_t n_copies = asp_min(asp_min(a->kept->size, most), sender + 1);
    int64_t removed = 0;
    double loss[2] = {0, a->kept->loss};
    asp_status status = run_all_copies(a, node, receiver, sender, n_copies, context);
    for (int64_t i = 0; !status && i < n_copies && i == removed; i++) {
        const int64_t at = (sender - i) * n_receivers + receiver;
        status = loss_of(&loss[0], a, i, context);
        if (status) break;
        a->scores[at] = loss[0] - loss[1];
        a->kept->n_done++;
        if (!(loss[0] - loss[1] < a->threshold)) continue;
        a->kept->loss = loss[1] = loss[0];
        a->mask[at] = 0;
        removed++;
    }
    if (status) return status;
    a->kept->size = removed == n_copies ? 2 * n_copies : removed + 1;
    return removed && a->is_whole ? keep_copy(a, removed - 1, context) : ASP_OK;
}

/* All senders before a receiver, but the last n_asked. */
static asp_status ask_receiver(acdc *a, int64_t receiver, int64_t node, int64_t n_asked, const asp_context *context) {
    const asp_component_setting *s = a->setting;
    const asp_config *c = &s->model->config;
    const int64_t before = asp_nodes_n_before(c, receiver), n_senders = asp_nodes_n_senders(c);
    const int64_t n_done = a->kept->n_done - n_asked;
    asp_patch_plan_behind(&a->patch.plan, c, a->mask, node);
    asp_status status = ASP_OK;
    if (node < n_senders && a->patch.plan.slot[node] < 0) { /* read by nothing: nothing can change */
        for (int64_t i = 0; i < before && a->threshold > 0; i++) a->mask[i * asp_nodes_n_receivers(c) + receiver] = 0;
        a->kept->n_done = n_done + before;
        return asp_context_progress(context, s->stage, a->kept->n_done, asp_nodes_n_edges(c));
    }
    const int64_t most = most_copies(a);
    while (!status && a->kept->n_done < n_done + before) {
        status = ask_senders(a, receiver, node, n_done + before - 1 - a->kept->n_done, most, context);
        if (!status) status = asp_context_progress(context, s->stage, a->kept->n_done, asp_nodes_n_edges(c));
    }
    return status;
}

/* The next receiver from one on, downwards, and its node; -1 after the last one. */
static int64_t receiver_before(int64_t *node, int64_t receiver, const asp_config *c) {
    if (--receiver < 0) return -1;
    const int64_t layer = receiver / (3 * c->n_head + 1), within = receiver % (3 * c->n_head + 1);
    *node = within == 3 * c->n_head ? asp_nodes_mlp(c, layer) : asp_nodes_head(c, layer) + within % c->n_head;
    return receiver;
}

/* The loss of the whole model. */
static asp_status begin_acdc(acdc *a, const asp_context *context) {
    const asp_status status = run_all_copies(a, -1, -1, 0, 1, context);
    a->kept->size = 1;
    return status ? status : loss_of(&a->kept->loss, a, 0, context);
}

static asp_status ask_all(acdc *a, const asp_context *context) {
    const asp_config *c = &a->setting->model->config;
    int64_t node = asp_nodes_n_senders(c), asked = a->kept->n_done;
    asp_status status = asked ? ASP_OK : begin_acdc(a, context);
    for (int64_t r = asp_nodes_n_receivers(c) - 1; !status && r >= 0; r = receiver_before(&node, r, c)) {
        const int64_t n_asked = asp_min(asked, asp_nodes_n_before(c, r));
        asked -= n_asked;
        if (n_asked < asp_nodes_n_before(c, r)) status = ask_receiver(a, r, node, n_asked, context);
    }
    return status;
}

/* ---- the call ------------------------------------------------------------------------------------------- */

/* Whether a mask holds component edges alone. */
static int is_mask(const uint8_t *mask, const asp_config *c) {
    const int64_t n_receivers = asp_nodes_n_receivers(c);
    for (int64_t r = 0; r < n_receivers; r++)
        for (int64_t i = 0; i < asp_nodes_n_senders(c); i++)
            if (mask[i * n_receivers + r] > (i < asp_nodes_n_before(c, r))) return 0;
    return 1;
}

/* Everything is in the circuit, unless something is kept. */
static asp_status begin_kept(acdc *a, asp_error *err) {
    const asp_config *c = &a->setting->model->config;
    const int64_t n_receivers = asp_nodes_n_receivers(c), places = asp_nodes_n_senders(c) * n_receivers;
    const asp_component_kept *kept = a->kept;
    if (kept->n_done) {
        const int good = kept->n_done > 0 && kept->n_done <= asp_nodes_n_edges(c) && kept->size > 0;
        if (good && kept->loss - kept->loss == 0 && is_mask(a->mask, c)) return ASP_OK;
        return asp_fail(err, ASP_BAD_ARGUMENT, "acdc: what is kept is no state that a search can have");
    }
    memset(a->scores, 0, (size_t)places * sizeof *a->scores);
    memset(a->mask, 0, (size_t)places);
    for (int64_t r = 0; r < n_receivers; r++)
        for (int64_t i = 0; i < asp_nodes_n_before(c, r); i++) a->mask[i * n_receivers + r] = 1;
    return ASP_OK;
}

static asp_status run_acdc(acdc *a, const asp_context *context, asp_error *err) {
    asp_component_setting *s = a->setting;
    const asp_prompts *clean = &s->task->clean;
    asp_status status = asp_component_setting_open(s, context, err);
    if (status) return status;
    a->is_whole = asp_task_block_end(clean, 0, s->most_tokens) == clean->n_prompts;
    status = asp_context_progress(context, s->stage, a->kept->n_done, asp_nodes_n_edges(&s->model->config));
    if (!status && a->is_whole) status = next_acdc_block(a, context);
    return status ? status : ask_all(a, context);
}

asp_status asp_component_acdc(uint8_t *mask, double *scores, asp_component_kept *kept, const asp_model *model,
                              const asp_task *task, double threshold, const asp_component_options *options,
                              const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    asp_component_setting s = {
        .model = model, .task = task, .stage = "acdc", .options = *options, .largest = 1, .own_bytes = acdc_bytes};
    acdc a = {.setting = &s, .threshold = threshold, .mask = mask, .scores = scores, .kept = kept};
    asp_status status = asp_component_setting_check(&s, err);
    if (status) return status;
    if (options->denoising)
        return asp_fail(err, ASP_BAD_ARGUMENT, "acdc ablates what it takes away, so there is no denoising");
    status = begin_kept(&a, err);
    if (status) return status;
    a.patch.setting = &s;
    a.patch.mask = mask;
    status = allocate_acdc(&a, err);
    if (!status) status = run_acdc(&a, &own, err);
    close_acdc_block(&a);
    asp_component_setting_close(&s);
    asp_arena_free(&a.stays);
    return status;
}
