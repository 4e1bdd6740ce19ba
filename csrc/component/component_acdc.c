/* component_acdc.c: component edges taken away one after the other, as long as the metric bears it (ACDC).
 *
 * Receivers are asked from the logits down.  So whatever comes before a receiver still has all of its component edges:
 * the outputs of these senders are those of the prompts as they are, and only the receiver's own node and what it flows
 * into over component edges that are left is computed again.  Several senders of a receiver are asked in one pass: in
 * copy i of the prompts the first i + 1 of them are gone, as they are if all of the ones before went; what lies behind
 * the first that stays is asked again. */
#include <string.h>

#include "component/component.h"

enum { PASS_ROWS = 2048, SLOTS_OF_PASS = 8 };

typedef struct {
    asp_component_setting *setting;
    asp_patch patch;
    asp_patch_size size;
    double threshold;
    uint8_t *mask;     /* (S,R) */
    double *scores;    /* (S,R) */
    double now;        /* the loss of the circuit */
    int64_t n_done;    /* component edges */
    int64_t window;    /* how many senders to ask at once */
    asp_arena arena;   /* of the below */
    asp_real *current; /* (S,R,E) of the circuit: current minus ablated output of each sender */
    double *values;    /* (n_copies,n) */
} acdc;

/* ---- memory --------------------------------------------------------------------------------------------- */

enum { PARTS = 2 };

/* For all n prompts. */
static int64_t lay_out_acdc(acdc *a, asp_arena_part parts[PARTS], const asp_component_setting *s, int64_t n) {
    const asp_config *c = &s->model->config;
    const int64_t n_senders = asp_nodes_n_senders(c), rows = asp_shape_rows(s->model, s->offsets[n], 0);
    a->size = (asp_patch_size){.n_slots = asp_max(n_senders, (int64_t)SLOTS_OF_PASS * PASS_ROWS / rows),
                               .most_inputs = 3 * c->n_head,
                               .n_copies = asp_min(n_senders, asp_max(1, PASS_ROWS / asp_max(1, s->offsets[n])))};
    const asp_arena_part list[PARTS] = {ASP_PART(a->current, n_senders * rows, c->d_model),
                                        ASP_PART(a->values, a->size.n_copies, n)};
    memcpy(parts, list, sizeof list);
    return asp_arena_lay_out(&a->arena, parts, PARTS);
}

static int64_t acdc_bytes(const void *own, const asp_component_setting *s, int64_t n, int n_threads) {
    (void)own;
    acdc a = {.setting = NULL};
    asp_arena_part parts[PARTS];
    int64_t bytes = lay_out_acdc(&a, parts, s, n);
    if (__builtin_add_overflow(bytes, asp_patch_needed(s, n, &a.size, n_threads), &bytes)) return INT64_MAX;
    return bytes;
}

static asp_status open_acdc(acdc *a, int n_threads, asp_error *err) {
    asp_arena_part parts[PARTS];
    const int64_t bytes = lay_out_acdc(a, parts, a->setting, a->setting->n);
    if (!asp_arena_commit(&a->arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "%s: no memory for the outputs of senders in %lld prompts, which takes %s",
                        a->setting->stage, (long long)a->setting->n, asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&a->arena, parts, PARTS);
    return asp_patch_open(&a->patch, &a->size, n_threads, err);
}

/* ---- what the circuit holds ------------------------------------------------------------------------------- */

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

static asp_status loss_of(double *loss, const acdc *a, int64_t copy, const asp_context *context) {
    const asp_component_setting *s = a->setting;
    double sum = 0;
    for (int64_t b = 0; b < s->n; b++) sum += a->values[copy * s->n + b];
    *loss = (s->options.smaller_is_better ? 1 : -1) * sum / (double)s->n;
    if (*loss - *loss == 0) return ASP_OK;
    return asp_fail(context->err, ASP_BAD_ARGUMENT,
                    "%s: the metric of a circuit is not finite, so no threshold can be compared with it", s->stage);
}

/* ---- asking --------------------------------------------------------------------------------------------- */

/* Asks the sender and some before it; *sender becomes the next one to ask. */
static asp_status ask_senders(acdc *a, int64_t receiver, int64_t *sender, int64_t most, const asp_context *context) {
    const int64_t n_receivers = asp_nodes_n_receivers(&a->setting->model->config), first = *sender;
    int64_t removed = 0;
    double loss = 0;
    a->patch.n_copies = asp_min(asp_min(a->window, most), first + 1);
    a->patch.receiver = receiver;
    a->patch.sender = first;
    asp_status status = asp_patch_run(&a->patch, a->values, context);
    for (int64_t i = 0; !status && i < a->patch.n_copies && i == removed; i++) {
        const int64_t at = (first - i) * n_receivers + receiver;
        status = loss_of(&loss, a, i, context);
        if (status) break;
        a->scores[at] = loss - a->now;
        --*sender;
        if (!(loss - a->now < a->threshold)) continue;
        a->now = loss;
        a->mask[at] = 0;
        removed++;
    }
    if (status) return status;
    a->window = removed == a->patch.n_copies ? 2 * a->patch.n_copies : removed + 1;
    return removed ? keep_copy(a, removed - 1, context) : ASP_OK;
}

/* All senders before a receiver. */
static asp_status ask_receiver(acdc *a, int64_t receiver, int64_t node, const asp_context *context) {
    const asp_component_setting *s = a->setting;
    const asp_config *c = &s->model->config;
    const int64_t before = asp_nodes_n_before(c, receiver), n_senders = asp_nodes_n_senders(c);
    asp_patch_plan_behind(&a->patch.plan, c, a->mask, node);
    asp_status status = ASP_OK;
    if (node < n_senders && a->patch.plan.slot[node] < 0) { /* read by nothing: nothing can change */
        for (int64_t i = 0; i < before && a->threshold > 0; i++) a->mask[i * asp_nodes_n_receivers(c) + receiver] = 0;
    } else {
        const int64_t most = asp_patch_most_copies(s, &a->size, a->patch.plan.n_slots);
        for (int64_t sender = before - 1; !status && sender >= 0;) {
            status = ask_senders(a, receiver, &sender, most, context);
            if (!status)
                status = asp_context_progress(context, s->stage, a->n_done + before - 1 - sender, asp_nodes_n_edges(c));
        }
    }
    a->n_done += before;
    return status ? status : asp_context_progress(context, s->stage, a->n_done, asp_nodes_n_edges(c));
}

/* The whole model: all outputs, and the loss. */
static asp_status begin_acdc(acdc *a, const asp_context *context) {
    const asp_config *c = &a->setting->model->config;
    asp_patch_plan_behind(&a->patch.plan, c, a->mask, 0);
    a->patch.n_copies = 1;
    a->patch.receiver = -1;
    asp_status status = asp_patch_run(&a->patch, a->values, context);
    if (!status) status = loss_of(&a->now, a, 0, context);
    return status ? status : keep_copy(a, 0, context);
}

static asp_status ask_all(acdc *a, const asp_context *context) {
    const asp_config *c = &a->setting->model->config;
    const int64_t n_receivers = asp_nodes_n_receivers(c), n_senders = asp_nodes_n_senders(c), h = c->n_head;
    asp_status status = begin_acdc(a, context);
    if (!status) status = ask_receiver(a, n_receivers - 1, n_senders, context);
    for (int64_t l = c->n_layer - 1; !status && l >= 0; l--) {
        status = ask_receiver(a, asp_nodes_mlp_input(c, l), asp_nodes_mlp(c, l), context);
        for (int64_t i = 3 * h - 1; !status && i >= 0; i--)
            status = ask_receiver(a, asp_nodes_qkv(c, l) + i, asp_nodes_head(c, l) + i % h, context);
    }
    return status;
}

static void put_all_senders(uint8_t *mask, const asp_config *c) {
    const int64_t n_receivers = asp_nodes_n_receivers(c), n_senders = asp_nodes_n_senders(c);
    memset(mask, 0, (size_t)(n_senders * n_receivers));
    for (int64_t r = 0; r < n_receivers; r++)
        for (int64_t i = 0; i < asp_nodes_n_before(c, r); i++) mask[i * n_receivers + r] = 1;
}

asp_status asp_component_acdc(uint8_t *mask, double *scores, const asp_model *model, const asp_task *task,
                              double threshold, const asp_component_options *options, const asp_context *context,
                              asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    const asp_config *c = &model->config;
    const int64_t n_senders = asp_nodes_n_senders(c), places = n_senders * asp_nodes_n_receivers(c);
    asp_component_setting s = {.model = model,
                               .task = task,
                               .stage = "acdc",
                               .options = *options,
                               .at_once = 1,
                               .own_bytes = acdc_bytes,
                               .stays = n_senders * (int64_t)sizeof(int32_t)};
    acdc a = {.setting = &s, .threshold = threshold, .mask = mask, .scores = scores, .window = 1};
    asp_status status = asp_component_setting_check(&s, err);
    if (status) return status;
    if (options->denoising)
        return asp_fail(err, ASP_BAD_ARGUMENT, "acdc ablates what it takes away, so there is no denoising");
    memset(scores, 0, (size_t)places * sizeof *scores);
    put_all_senders(mask, c);
    a.patch.setting = &s;
    a.patch.mask = mask;
    a.patch.plan.slot = asp_allocate(s.stays, 1);
    if (!a.patch.plan.slot) return asp_fail(err, ASP_NO_MEMORY, "acdc: no memory for the senders of a model");
    status = asp_component_setting_open(&s, &own, err);
    if (!status) status = asp_context_progress(&own, s.stage, 0, asp_nodes_n_edges(c));
    if (!status) status = asp_component_setting_next(&s, &own, err);
    if (!status) status = open_acdc(&a, own.n_threads, err);
    if (!status) status = asp_blas_enter(&own, err);
    if (!status) {
        a.patch.given = a.current;
        status = ask_all(&a, &own);
        asp_blas_leave();
    }
    asp_arena_free(&a.patch.arena);
    asp_arena_free(&a.arena);
    asp_component_setting_close(&s);
    asp_release(a.patch.plan.slot);
    return status;
}
