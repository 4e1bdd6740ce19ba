/* visit.c: activations that are shown to visitors while a pass computes them. */
#include <string.h>

#include "model/hooks.h"

/* ---- memory ------------------------------------------------------------------------ */

/* Embeddings are added up again where one of them is seen; the heads' results are where attention's output is. */
static uint32_t seen_embeddings(void) { return asp_visit_bit(ASP_AT_EMBED) | asp_visit_bit(ASP_AT_POS_EMBED); }
static uint32_t seen_attention(void) { return asp_visit_bit(ASP_AT_RESULT) | asp_visit_bit(ASP_AT_ATTN_OUT); }
static uint32_t seen_scales(void) {
    return asp_visit_bit(ASP_AT_LN1_SCALE) | asp_visit_bit(ASP_AT_LN2_SCALE) | asp_visit_bit(ASP_AT_LN_FINAL_SCALE);
}
static uint32_t seen_normalized(void) {
    return asp_visit_bit(ASP_AT_LN1_NORMALIZED) | asp_visit_bit(ASP_AT_LN2_NORMALIZED) |
           asp_visit_bit(ASP_AT_LN_FINAL_NORMALIZED);
}

void asp_visit_list(asp_arena_part parts[ASP_VISIT_PARTS], asp_visit_scratch *s, const asp_config *c, int64_t rows,
                    int64_t squares) {
    const int64_t e = c->d_model, heads = c->n_head * e;
#define SEEN(pointer, wanted, n, m) ASP_PART(pointer, s->places &(wanted) ? (n) : 0, m)
    const asp_arena_part list[ASP_VISIT_PARTS] = {
        SEEN(s->embed, seen_embeddings(), rows, e),
        SEEN(s->pos_embed, seen_embeddings(), rows, e),
        SEEN(s->scale, seen_scales(), rows, 1),
        SEEN(s->normalized, seen_normalized(), rows, e),
        SEEN(s->scores, asp_visit_bit(ASP_AT_SCORES), squares, 1),
        SEEN(s->gate, asp_visit_bit(ASP_AT_GATE), squares, 1),
        SEEN(s->pattern, asp_visit_bit(ASP_AT_PATTERN), squares, 1),
        SEEN(s->result, asp_visit_bit(ASP_AT_RESULT), rows, heads),
        SEEN(s->attn_out, seen_attention(), rows, e),
        SEEN(s->mlp_pre, asp_visit_bit(ASP_AT_MLP_PRE), rows, c->d_mlp),
        SEEN(s->mlp_out, asp_visit_bit(ASP_AT_MLP_OUT), rows, e),
        SEEN(s->seen_result, asp_visit_bit(ASP_AT_RESULT), rows, heads),
        SEEN(s->seen_out, seen_attention() | asp_visit_bit(ASP_AT_MLP_OUT), rows, e),
        SEEN(s->added_to, seen_attention() | asp_visit_bit(ASP_AT_MLP_OUT), rows, e),
    };
#undef SEEN
    memcpy(parts, list, sizeof list);
}

/* The scratch, if the pass keeps nothing there and visitors want it. */
static asp_slot slot_seen(const asp_visit_scratch *s, asp_slot kept, uint32_t wanted, asp_real *scratch) {
    return kept.data || !(s->places & wanted) ? kept : (asp_slot){scratch, 0};
}
static asp_real *array_seen(const asp_visit_scratch *s, asp_real *kept, uint32_t wanted, asp_real *scratch) {
    return slot_seen(s, (asp_slot){kept, 0}, wanted, scratch).data;
}

void asp_visit_wire(asp_activations *a, const asp_visit_scratch *s) {
    a->ln1_scale = slot_seen(s, a->ln1_scale, seen_scales(), s->scale);
    a->ln2_scale = slot_seen(s, a->ln2_scale, seen_scales(), s->scale);
    a->ln1_normalized = slot_seen(s, a->ln1_normalized, seen_normalized(), s->normalized);
    a->ln2_normalized = slot_seen(s, a->ln2_normalized, seen_normalized(), s->normalized);
    a->ln_final_scale = array_seen(s, a->ln_final_scale, seen_scales(), s->scale);
    a->ln_final_normalized = array_seen(s, a->ln_final_normalized, seen_normalized(), s->normalized);
    a->embed = array_seen(s, a->embed, seen_embeddings(), s->embed);
    a->pos_embed = array_seen(s, a->pos_embed, seen_embeddings(), s->pos_embed);
    a->result = slot_seen(s, a->result, asp_visit_bit(ASP_AT_RESULT), s->result);
    a->attn_out = slot_seen(s, a->attn_out, seen_attention(), s->attn_out);
    a->mlp_pre = slot_seen(s, a->mlp_pre, asp_visit_bit(ASP_AT_MLP_PRE), s->mlp_pre);
    a->mlp_out = slot_seen(s, a->mlp_out, asp_visit_bit(ASP_AT_MLP_OUT), s->mlp_out);
    a->seen_result = s->seen_result;
    a->seen_out = s->seen_out;
    a->added_to = s->added_to;
    const uint32_t squares = asp_visit_bit(ASP_AT_SCORES) | asp_visit_bit(ASP_AT_GATE) | asp_visit_bit(ASP_AT_PATTERN);
    const uint32_t kept = (a->scores ? asp_visit_bit(ASP_AT_SCORES) : 0) | (a->gate ? asp_visit_bit(ASP_AT_GATE) : 0) |
                          (a->pattern ? asp_visit_bit(ASP_AT_PATTERN) : 0);
    a->layer_squares = s->places & squares & ~kept;
    if (a->layer_squares & asp_visit_bit(ASP_AT_SCORES)) a->scores = s->scores;
    if (a->layer_squares & asp_visit_bit(ASP_AT_GATE)) a->gate = s->gate;
    if (a->layer_squares & asp_visit_bit(ASP_AT_PATTERN)) a->pattern = s->pattern;
}

/* ---- showing ----------------------------------------------------------------------- */

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
    visit->first = acts->first;
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
