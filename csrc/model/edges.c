/* edges.c: the open edges of a run in CSR, without ever holding a T x T array. */
#include <string.h>

#include "model/model.h"

static asp_status no_memory_for_edges(asp_error *err) {
    return asp_fail(err, ASP_NO_MEMORY, "no memory for the open edges of a run; raise edge_threshold to keep fewer");
}

/* left: bytes of max_bytes that the arrays of the run do not take. */
static asp_status no_room_for_edges(int64_t left, asp_error *err) {
    char size[32];
    return asp_fail(
        err, ASP_NO_MEMORY,
        "the open edges of this run need more than the %s that max_bytes leaves; raise max_bytes or edge_threshold",
        asp_fail_size(size, (double)left));
}

asp_status asp_edges_new(asp_edge_builder **builder, const asp_config *config, const int64_t *offsets,
                         int64_t n_sequences, double threshold, int64_t max_bytes, asp_error *err) {
    *builder = NULL;
    asp_edge_builder *b = asp_allocate(1, sizeof *b);
    if (!b) return no_memory_for_edges(err);
    b->threshold = threshold;
    b->n_layer = config->n_layer;
    b->n_head = config->n_head;
    b->n_sequences = n_sequences;
    b->n_tokens = offsets[n_sequences];
    const int64_t rows = b->n_head * b->n_tokens + 1; /* and as many for all layers at the end */
    b->asked = max_bytes;
    b->max_bytes = max_bytes - 2 * b->n_layer * (rows + 16) * (int64_t)sizeof(int64_t);
    b->offsets = offsets;
    b->layers = asp_allocate(b->n_layer, sizeof *b->layers);
    int complete = b->layers != NULL && b->max_bytes >= 0;
    for (int64_t l = 0; complete && l < b->n_layer; l++) {
        b->layers[l].start = asp_allocate(b->n_head * b->n_tokens + 1, sizeof(int64_t));
        complete = b->layers[l].start != NULL;
    }
    if (!complete) {
        const asp_status status = b->max_bytes < 0 ? no_room_for_edges(max_bytes, err) : no_memory_for_edges(err);
        asp_edges_free(b);
        return status;
    }
    *builder = b;
    return ASP_OK;
}

static void free_layer_edges(asp_layer_edges *layer) {
    asp_release(layer->start);
    asp_release(layer->key);
    asp_release(layer->weight);
    *layer = (asp_layer_edges){0};
}

void asp_edges_free(asp_edge_builder *b) {
    if (!b) return;
    for (int64_t l = 0; b->layers && l < b->n_layer; l++) free_layer_edges(&b->layers[l]);
    asp_release(b->layers);
    asp_release(b->start);
    asp_release(b->key);
    asp_release(b->weight);
    asp_release(b);
}

asp_status asp_edges_count_done(asp_edge_builder *b, int64_t layer, asp_error *err) {
    asp_layer_edges *edges = &b->layers[layer];
    const int64_t rows = b->n_head * b->n_tokens;
    for (int64_t r = 0; r < rows; r++) edges->start[r + 1] += edges->start[r];
    const int64_t n = edges->start[rows];
    b->edges.n_edges += n;
    if (b->edges.n_edges > b->max_bytes / (int64_t)(2 * (sizeof(int32_t) + sizeof(asp_real))))
        return no_room_for_edges(b->asked, err);
    edges->key = asp_allocate(n > 0 ? n : 1, sizeof *edges->key);
    edges->weight = asp_allocate(n > 0 ? n : 1, sizeof *edges->weight);
    return edges->key && edges->weight ? ASP_OK : no_memory_for_edges(err);
}

asp_status asp_edges_finish(asp_edge_builder *b, asp_error *err) {
    const int64_t n_rows = b->n_layer * b->n_head * b->n_tokens;
    const int64_t room = b->edges.n_edges > 0 ? b->edges.n_edges : 1;
    b->start = asp_allocate(n_rows + 1, sizeof *b->start);
    b->key = asp_allocate(room, sizeof *b->key);
    b->weight = asp_allocate(room, sizeof *b->weight);
    if (!b->start || !b->key || !b->weight) return no_memory_for_edges(err);
    int64_t row = 0, at = 0;
    for (int64_t s = 0; s < b->n_sequences; s++) {
        const int64_t rows = b->n_head * (b->offsets[s + 1] - b->offsets[s]), first = b->n_head * b->offsets[s];
        for (int64_t l = 0; l < b->n_layer; l++) {
            const asp_layer_edges *layer = &b->layers[l];
            const int64_t from = layer->start[first], n = layer->start[first + rows] - from;
            for (int64_t r = 0; r < rows; r++) b->start[row++] = at + layer->start[first + r] - from;
            memcpy(b->key + at, layer->key + from, (size_t)n * sizeof *b->key);
            memcpy(b->weight + at, layer->weight + from, (size_t)n * sizeof *b->weight);
            at += n;
        }
    }
    b->start[row] = at;
    for (int64_t l = 0; l < b->n_layer; l++) free_layer_edges(&b->layers[l]);
    b->edges = (asp_edges){n_rows, at, b->start, b->key, b->weight};
    return ASP_OK;
}
