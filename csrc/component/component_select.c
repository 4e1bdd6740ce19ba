/* component_select.c: component edges in the order in which circuits take them, circuits of some sizes without dangling
 * nodes. */
#include <math.h>
#include <string.h>

#include "component/component.h"

/* ---- the best first ------------------------------------------------------------------------------------ */

/* Component edges that wait to be taken, the best on top of a heap; of equal ones the first in the matrix. */
typedef struct {
    const asp_config *config;
    const double *scores; /* (S,R) */
    int absolute;
    int64_t n_receivers, n;
    int64_t *heap; /* (edges) places in the matrix */
    uint8_t *open; /* (S) senders whose inputs wait already, or have waited */
} waiting;

static double score_key(const waiting *w, int64_t place) {
    return w->absolute ? fabs(w->scores[place]) : w->scores[place];
}

static int is_better(const waiting *w, int64_t a, int64_t b) {
    const double x = score_key(w, a), y = score_key(w, b);
    return x > y || (x == y && a < b);
}

static void push(waiting *w, int64_t place) {
    int64_t at = w->n++;
    for (; at && is_better(w, place, w->heap[(at - 1) / 2]); at = (at - 1) / 2) w->heap[at] = w->heap[(at - 1) / 2];
    w->heap[at] = place;
}

static int64_t pop(waiting *w) {
    const int64_t best = w->heap[0], last = w->heap[--w->n];
    int64_t at = 0;
    for (int64_t child = 1; child < w->n; child = 2 * at + 1) {
        if (child + 1 < w->n && is_better(w, w->heap[child + 1], w->heap[child])) child++;
        if (!is_better(w, w->heap[child], last)) break;
        w->heap[at] = w->heap[child];
        at = child;
    }
    w->heap[at] = last;
    return best;
}

static void push_receiver(waiting *w, int64_t receiver) {
    for (int64_t s = 0; s < asp_nodes_n_before(w->config, receiver); s++) push(w, s * w->n_receivers + receiver);
}

/* All component edges into a sender's node, the first time it is reached. */
static void push_node(waiting *w, int64_t sender) {
    if (w->open[sender] || !sender) return;
    w->open[sender] = 1;
    const asp_node_inputs in = asp_nodes_inputs(w->config, sender);
    for (int64_t i = 0; i < in.count; i++) push_receiver(w, in.first + i * in.step);
}

static asp_status check_scores(const asp_config *c, const double *scores, asp_error *err) {
    const int64_t n_receivers = asp_nodes_n_receivers(c);
    for (int64_t r = 0; r < n_receivers; r++)
        for (int64_t s = 0; s < asp_nodes_n_before(c, r); s++)
            if (!isfinite(scores[s * n_receivers + r]))
                return asp_fail(err, ASP_BAD_ARGUMENT,
                                "the score of the component edge from sender %lld into receiver %lld is not finite",
                                (long long)s, (long long)r);
    return ASP_OK;
}

asp_status asp_component_select_order(int64_t *order, const asp_config *config, const double *scores, int absolute,
                                      int greedy, asp_error *err) {
    waiting w = {config, scores, absolute, asp_nodes_n_receivers(config), 0, NULL, NULL};
    asp_arena arena = {0};
    const int64_t n = asp_nodes_n_edges(config);
    asp_arena_part parts[] = {ASP_PART(w.heap, n, 1), ASP_PART(w.open, asp_nodes_n_senders(config), 1)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    const asp_status status = check_scores(config, scores, err);
    if (status) return status;
    asp_arena_lay_out(&arena, parts, PARTS);
    if (!asp_arena_commit(&arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "no memory for the order of %lld component edges", (long long)n);
    asp_arena_wire(&arena, parts, PARTS);
    for (int64_t r = greedy ? w.n_receivers - 1 : 0; r < w.n_receivers; r++) push_receiver(&w, r);
    int64_t taken = 0;
    while (w.n) {
        const int64_t place = pop(&w);
        order[taken++] = place;
        if (greedy) push_node(&w, place / w.n_receivers);
    }
    asp_arena_free(&arena);
    return ASP_OK;
}

asp_status asp_component_select_best(int64_t *order, const double *scores, int64_t n, int absolute, asp_error *err) {
    waiting w = {.scores = scores, .absolute = absolute};
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(scores[i]))
            return asp_fail(err, ASP_BAD_ARGUMENT, "score %lld of %lld is not finite", (long long)i, (long long)n);
    w.heap = asp_allocate(n, sizeof *w.heap);
    if (!w.heap) return asp_fail(err, ASP_NO_MEMORY, "no memory for the order of %lld scores", (long long)n);
    for (int64_t i = 0; i < n; i++) push(&w, i);
    for (int64_t i = 0; i < n; i++) order[i] = pop(&w);
    asp_release(w.heap);
    return ASP_OK;
}

/* ---- dangling nodes -------------------------------------------------------------------------------------- */

static int is_fed(const asp_config *c, const uint8_t *mask, int64_t sender) {
    const int64_t n_receivers = asp_nodes_n_receivers(c);
    if (!sender) return 1;
    const asp_node_inputs in = asp_nodes_inputs(c, sender);
    for (int64_t i = 0; i < in.count; i++)
        for (int64_t s = 0; s < asp_nodes_n_before(c, in.first); s++)
            if (mask[s * n_receivers + in.first + i * in.step]) return 1;
    return 0;
}

static int is_sent(const asp_config *c, const uint8_t *mask, int64_t sender) {
    const int64_t n_receivers = asp_nodes_n_receivers(c);
    for (int64_t r = 0; r < n_receivers; r++)
        if (mask[sender * n_receivers + r]) return 1;
    return 0;
}

/* Takes all component edges of a node away; whether there was one. */
static int drop_node(const asp_config *c, uint8_t *mask, int64_t sender) {
    const int64_t n_receivers = asp_nodes_n_receivers(c);
    int changed = 0;
    for (int64_t r = 0; r < n_receivers; r++) {
        changed |= mask[sender * n_receivers + r];
        mask[sender * n_receivers + r] = 0;
    }
    const asp_node_inputs in = sender ? asp_nodes_inputs(c, sender) : (asp_node_inputs){0, 1, 0};
    for (int64_t i = 0; i < in.count; i++)
        for (int64_t s = 0; s < asp_nodes_n_before(c, in.first); s++) {
            uint8_t *edge = mask + s * n_receivers + in.first + i * in.step;
            changed |= *edge;
            *edge = 0;
        }
    return changed;
}

/* What nothing feeds goes forwards, what nothing reads goes backwards: until nothing changes. */
static void prune(const asp_config *c, uint8_t *mask) {
    const int64_t n_senders = asp_nodes_n_senders(c);
    int changed = 1;
    while (changed) {
        changed = 0;
        for (int64_t s = 0; s < n_senders; s++)
            if (!is_fed(c, mask, s)) changed |= drop_node(c, mask, s);
        for (int64_t s = n_senders - 1; s >= 0; s--)
            if (!is_sent(c, mask, s)) changed |= drop_node(c, mask, s);
    }
}

int64_t asp_component_select_prune(const asp_config *config, uint8_t *mask) {
    const int64_t n_receivers = asp_nodes_n_receivers(config);
    int64_t n = 0;
    for (int64_t s = 0; s < asp_nodes_n_senders(config); s++)
        for (int64_t r = 0; r < n_receivers; r++)
            if (s >= asp_nodes_n_before(config, r)) mask[s * n_receivers + r] = 0;
    prune(config, mask);
    for (int64_t i = 0; i < asp_nodes_n_senders(config) * n_receivers; i++) n += mask[i] != 0;
    return n;
}

asp_status asp_component_select(uint8_t *masks, int64_t *kept, const asp_config *config, const int64_t *order,
                                const int64_t *sizes, int64_t n_sizes, int pruned, asp_error *err) {
    const int64_t places = asp_nodes_n_senders(config) * asp_nodes_n_receivers(config);
    const int64_t n_edges = asp_nodes_n_edges(config);
    for (int64_t i = 0; i < n_edges; i++)
        if (order[i] < 0 || order[i] >= places)
            return asp_fail(err, ASP_BAD_INDEX, "place %lld of the order is %lld, out of range 0..%lld", (long long)i,
                            (long long)order[i], (long long)places - 1);
    for (int64_t i = 0; i < n_sizes; i++) {
        uint8_t *mask = masks + i * places;
        if (sizes[i] < 0 || sizes[i] > n_edges)
            return asp_fail(err, ASP_BAD_ARGUMENT, "sizes must be in 0..%lld, the number of component edges, got %lld",
                            (long long)n_edges, (long long)sizes[i]);
        memset(mask, 0, (size_t)places);
        for (int64_t j = 0; j < sizes[i]; j++) mask[order[j]] = 1;
        kept[i] = pruned ? asp_component_select_prune(config, mask) : sizes[i];
    }
    return ASP_OK;
}

/* Sets what is inside of one circuit; returns how many. */
static int64_t take_neurons(uint8_t *mask, int64_t places, int64_t width, const int64_t *order, int64_t size,
                            int pruned) {
    int with_input = 0;
    memset(mask, 0, (size_t)places);
    for (int64_t i = 0; i < size; i++) {
        mask[order[i]] = 1;
        with_input |= order[i] < width;
    }
    if (with_input || !pruned) return size;
    memset(mask, 0, (size_t)places);
    return 0;
}

asp_status asp_component_select_neurons(uint8_t *masks, int64_t *kept, const asp_config *config, int64_t width,
                                        const int64_t *order, const int64_t *sizes, int64_t n_sizes, int pruned,
                                        asp_error *err) {
    const int64_t places = asp_nodes_n_senders(config) * width;
    for (int64_t i = 0; i < places; i++)
        if (order[i] < 0 || order[i] >= places)
            return asp_fail(err, ASP_BAD_INDEX, "place %lld of the order is %lld, out of range 0..%lld", (long long)i,
                            (long long)order[i], (long long)places - 1);
    for (int64_t i = 0; i < n_sizes; i++) {
        if (sizes[i] < 0 || sizes[i] > places)
            return asp_fail(err, ASP_BAD_ARGUMENT, "sizes must be in 0..%lld, got %lld", (long long)places,
                            (long long)sizes[i]);
        kept[i] = take_neurons(masks + i * places, places, width, order, sizes[i], pruned);
    }
    return ASP_OK;
}
