/* visit.c: activations that are shown to visitors while a pass computes them. */
#include "model/hooks.h"

int64_t asp_visit_square(const asp_visit *visit, int64_t sequence) {
    const int64_t start = visit->square_start[sequence], size = visit->square_start[sequence + 1] - start;
    return visit->one_layer ? start / visit->n_layer : start + visit->layer * (size / visit->n_layer);
}

uint32_t asp_visit_places(const asp_visitor *visitors, int n_visitors, int64_t n_layer) {
    uint32_t places = 0;
    for (int i = 0; i < n_visitors; i++)
        for (int64_t l = 0; l <= n_layer; l++) places |= visitors[i].places[l];
    return places;
}

static int is_wanted(const asp_visitor *visitor, asp_place place, int64_t layer) {
    return (visitor->places[layer] >> place & 1) != 0;
}

int asp_visit_wanted(const asp_activations *acts, asp_place place, int64_t layer) {
    int wanted = 0;
    for (int i = 0; acts->hooks && i < acts->hooks->n_visitors; i++)
        wanted |= is_wanted(&acts->hooks->visitors[i], place, layer);
    return wanted;
}

static asp_status show_visit(const asp_activations *acts, asp_visit *visit, const asp_context *context) {
    asp_status status = ASP_OK;
    visit->offsets = acts->offsets;
    visit->n_sequences = acts->n_sequences;
    for (int i = 0; !status && acts->hooks && i < acts->hooks->n_visitors; i++) {
        const asp_visitor *visitor = &acts->hooks->visitors[i];
        if (is_wanted(visitor, visit->place, visit->layer)) status = visitor->visit(visitor->state, visit, context);
    }
    return status;
}

asp_status asp_visit_rows(const asp_activations *acts, asp_place place, int64_t layer, asp_real *rows, int64_t width,
                          int64_t stride, const asp_context *context) {
    asp_visit visit = {.place = place, .layer = layer, .rows = rows, .width = width, .stride = stride};
    return show_visit(acts, &visit, context);
}

asp_status asp_visit_squares(const asp_activations *acts, asp_place place, int64_t layer, int64_t n_layer,
                             const asp_context *context) {
    asp_visit visit = {.place = place,
                       .layer = layer,
                       .square_start = acts->square_start,
                       .n_layer = n_layer,
                       .one_layer = (acts->layer_squares >> place & 1) != 0};
    if (place == ASP_AT_GATE) visit.gates = acts->gate;
    else visit.squares = place == ASP_AT_SCORES ? acts->scores : acts->pattern;
    return show_visit(acts, &visit, context);
}
