/* component.h: outputs of senders and inputs of receivers. */
#ifndef ASP_COMPONENT_INTERNAL_H
#define ASP_COMPONENT_INTERNAL_H

#include "circuit/circuit.h"

/* ---- nodes.c ------------------------------------------------------------------- */

/* Numbers of the senders of a layer: its heads from the first one on, and its MLP. */
static inline int64_t asp_nodes_head(const asp_config *c, int64_t layer) { return 1 + layer * (c->n_head + 1); }
static inline int64_t asp_nodes_mlp(const asp_config *c, int64_t layer) { return (layer + 1) * (c->n_head + 1); }
/* Numbers of the receivers of a layer: all q from the first one on, then all k and all v, and its MLP. */
static inline int64_t asp_nodes_qkv(const asp_config *c, int64_t layer) { return layer * (3 * c->n_head + 1); }
static inline int64_t asp_nodes_mlp_input(const asp_config *c, int64_t layer) {
    return (layer + 1) * (3 * c->n_head + 1) - 1;
}

/* Activations from which the outputs of senders follow, of N tokens.  Products read R rows, which a run may not have
 * reserved: they take copies. */
typedef struct {
    const asp_real *embed; /* (N,E) read: token embedding */
    asp_slot z;            /* L times (N,H,D), read */
    asp_slot post;         /* L times (N,M), read */
} asp_node_activations;
/* What a run must record for them. */
static const uint64_t ASP_NODES_RECORDS = (uint64_t)1 << ASP_EMBED | (uint64_t)1 << ASP_Z | (uint64_t)1 << ASP_MLP_POST;
asp_node_activations asp_nodes_of_run(const asp_run *run);

/* Outputs of the senders of one layer: heads, and the MLP.
 *   out (H+1,R,E) written    z (R,H,D), post (R,M) read    n_rows: R, a multiple of 4
 *   bias: add that of the MLP's output (not to a difference of activations) */
asp_status asp_nodes_layer_outputs(asp_real *out, const asp_model *model, int64_t layer, const asp_real *z,
                                   const asp_real *post, int64_t n_rows, int bias, const asp_context *context);
/* What a difference is taken with, and where it is computed. */
typedef struct {
    asp_node_activations activations; /* embed NULL: zeros, also for the outputs of MLPs */
    const int64_t *row;               /* (N) read: which row of them takes the place of each row */
    asp_real *z, *post;               /* (R,H,D), (R,M) scratch */
} asp_node_reference;
/* Outputs of the reference minus outputs of what is given, of all senders.  out (S,R,E) written, N rows of tokens first */
asp_status asp_nodes_differences(asp_real *out, const asp_model *model, const asp_node_reference *reference,
                                 const asp_node_activations *given, int64_t n_tokens, int64_t n_rows,
                                 const asp_context *context);
/* Outputs of all senders.  out (S,R,E) written, N rows of tokens first    z (R,H,D), post (R,M) scratch */
asp_status asp_nodes_outputs(asp_real *out, const asp_model *model, const asp_node_activations *activations,
                             asp_real *z, asp_real *post, int64_t n_tokens, int64_t n_rows, const asp_context *context);

/* ---- means.c ------------------------------------------------------------------- */

/* Mean activations over reference prompts. */
typedef struct {
    asp_arena arena;
    int64_t n_positions; /* rows: 1 if all positions share one mean */
    asp_node_activations activations;
} asp_means;
/* Takes the means.  Errors: BAD_ARGUMENT for positions that no reference prompt has, of `longest`; NO_MEMORY. */
asp_status asp_means_new(asp_means *means, const asp_model *model, const asp_prompts *reference, int64_t longest,
                         asp_component_ablation ablation, const asp_context *context, asp_error *err);
void asp_means_free(asp_means *means);
/* Bytes that stay, and bytes that it takes meanwhile besides. */
void asp_means_needed(int64_t bytes[2], const asp_model *model, const asp_prompts *reference, int64_t longest,
                      asp_component_ablation ablation, int n_threads);

/* ---- receivers.c --------------------------------------------------------------- */

/* One of several runs of the same prompts.  Group 0: the input is r + (1 - share) (o - r), 1 + 2l: all heads of layer
 * l are, 2 + 2l: its MLP is; through those but the input no gradient goes.  -1: none. */
typedef struct {
    int64_t group;
    double share;
    int replaced; /* the prompts are those that the reference is of */
} asp_receiver_point;

/* Collects scores from the backward pass of n_points runs of a block of prompts, which lie one after the other. */
typedef struct {
    const asp_model *model;
    asp_tape *tape;
    const asp_receiver_point *points;
    const asp_real *differences; /* (S,R,E) read: reference minus output, for the prompts of the block */
    int64_t n_rows;              /* R */
    const int64_t *offsets;      /* (B+1) of the block */
    int64_t n_prompts, n_points;
    asp_component_level level;
    double weight;       /* of every product */
    double *scores;      /* added to */
    asp_real *gradients; /* (3H,R,E) scratch; for nodes and neurons (R,E) */
    asp_real *dout;      /* (n_points N,E) scratch, for edges */
    asp_real *parts;     /* (S,3H) scratch, for edges */
} asp_receivers;
/* Hooks of these runs; the struct is read while they are used. */
asp_hooks asp_receivers_hooks(asp_receivers *receivers);
/* After the backward pass. */
asp_status asp_receivers_finish(asp_receivers *receivers, const asp_context *context);

/* ---- routes.c ------------------------------------------------------------------ */

/* Information flow routes of a run with ASP_NODES_RECORDS, RESID and RESID_MID.
 *   scores (S,R) added to: weight * the mean over the positions of each sequence
 *   outputs (S,R,E) read    shares (N,S) scratch */
asp_status asp_routes_add(double *scores, const asp_model *model, const asp_run *run, const asp_real *outputs,
                          int64_t n_rows, double weight, double *shares, const asp_context *context);

#endif
