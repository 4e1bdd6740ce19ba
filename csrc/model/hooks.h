/* hooks.h: where an experiment steps into a pass.  Set by circuit/ and transcoder/, called by model/, which knows
 * no experiment.  A member that is NULL changes nothing. */
#ifndef ASP_HOOKS_H
#define ASP_HOOKS_H

#include "model/model.h"

/* The residual stream before layer l (l = L: before the final LayerNorm), between its attention and its MLP, and
 * after its MLP. */
typedef enum { ASP_POINT_PRE, ASP_POINT_MID, ASP_POINT_POST } asp_point;

/* The row of a position of a sequence; -1: it is not in this pass, which may have some positions only. */
static inline int64_t asp_hooks_row(const asp_activations *acts, int64_t sequence, int64_t position) {
    const int64_t at = position - (acts->first ? acts->first[sequence] : 0);
    const int64_t row = acts->offsets[sequence] + at;
    return at < 0 || row >= acts->offsets[sequence + 1] ? -1 : row;
}

struct asp_hooks {
    void *state;
    /* Once, before anything is computed, and at the end of a pass that began, whatever became of it.  What is generated
     * token by token is one pass over all positions that it may get (offsets), computed a few rows at a time. */
    asp_status (*begin)(void *state, const asp_model *model, const int64_t *offsets, int64_t n_sequences, int n_threads,
                        asp_error *err);
    void (*end)(void *state);
    /* Takes the place of attention_forward for one head of one sequence.  Called from several threads. */
    void (*attention)(void *state, asp_attention_task *task, int64_t layer, int64_t sequence, int64_t head, int thread);
    /* z (R,H,D) that W_O reads, in place of acts->z, which it may change. */
    const asp_real *(*output_input)(void *state, const asp_activations *acts, int64_t layer);
    /* x (R,E) read and written: the residual stream at a point. */
    void (*residual)(void *state, const asp_activations *acts, asp_point point, int64_t layer, asp_real *x);
    /* mid (R,E) read: what the MLP reads and its output is added to, as nothing changes it any more. */
    void (*mlp_input)(void *state, const asp_activations *acts, int64_t layer, const asp_real *mid);
    asp_mlp_substitute mlp; /* its `layer` NULL: the model's own MLPs; else acts->mlp_out is wanted */
    /* dz (R,H,D) read and written: the gradient of what output_input gave becomes that of z. */
    asp_status (*dz)(void *state, const asp_activations *acts, int64_t layer, asp_real *dz, const asp_context *context);
    /* dout (R,E) read and written: the gradient of a LayerNorm's output, before it goes back through it: of that before
     * the attention of a layer (PRE; the gradient of q, k and v is there too), before its MLP (MID), or the final one
     * (PRE of layer L).  dsum (R,E) read: the gradient of the residual stream behind what this LayerNorm feeds; 0 for
     * the final one. */
    asp_status (*dnorm)(void *state, const asp_activations *acts, asp_point point, int64_t layer, asp_real *dout,
                        const asp_real *dsum, const asp_context *context);
    const asp_visitor *visitors; /* (n_visitors) read: after the hooks above, at the same place */
    int n_visitors;
};

/* ---- visit.c ------------------------------------------------------------------- */

/* What visitors see and a pass does not keep: one layer of it at a time. */
typedef struct {
    uint32_t places; /* bits of those that they want */
    asp_real *embed, *pos_embed, *scale, *normalized, *scores, *pattern, *result, *attn_out, *mlp_pre, *mlp_out;
    uint8_t *gate;
    asp_real *seen_result, *seen_out, *added_to;
} asp_visit_scratch;
enum { ASP_VISIT_PARTS = 14 };
/* Lists its arrays, for so many rows and so many entries of the patterns of a layer; `places` is read. */
void asp_visit_list(asp_arena_part parts[ASP_VISIT_PARTS], asp_visit_scratch *scratch, const asp_config *config,
                    int64_t rows, int64_t squares);
/* Points what visitors want and acts does not have there. */
void asp_visit_wire(asp_activations *acts, const asp_visit_scratch *scratch);
static inline uint32_t asp_visit_bit(asp_place place) { return (uint32_t)1 << place; }

/* Bits of the places that visitors want in any layer. */
uint32_t asp_visit_places(const asp_visitor *visitors, int n_visitors, int64_t n_layer);
int asp_visit_wanted(const asp_activations *acts, asp_place place, int64_t layer);
/* Shows an activation to those who want it.  rows (N,width), `stride` apart, read and written. */
asp_status asp_visit_rows(const asp_activations *acts, asp_place place, int64_t layer, asp_real *rows, int64_t width,
                          int64_t stride, const asp_context *context);
/* The same for SCORES, GATE and PATTERN of acts. */
asp_status asp_visit_squares(const asp_activations *acts, asp_place place, int64_t layer, int64_t n_layer,
                             const asp_context *context);

#endif
