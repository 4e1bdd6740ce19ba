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

/* Activations from which the outputs of senders follow, of R rows, of which the first may be tokens and the rest
 * padding. */
typedef struct {
    const asp_real *embed; /* (R,E) read: token embedding */
    asp_slot z;            /* L times (R,H,D), read */
    asp_slot post;         /* L times (R,M), read */
} asp_node_activations;
/* What a run must record for them. */
static const uint64_t ASP_NODES_RECORDS = (uint64_t)1 << ASP_EMBED | (uint64_t)1 << ASP_Z | (uint64_t)1 << ASP_MLP_POST;
asp_node_activations asp_nodes_of_run(const asp_run *run);

/* Outputs of the senders of one layer: heads, and the MLP.
 *   out (H+1,R,E) written    z (R,H,D), post (R,M) read    n_rows: R, at least asp_shape_rows
 *   bias: add that of the MLP's output (not to a difference of activations) */
asp_status asp_nodes_layer_outputs(asp_real *out, const asp_model *model, int64_t layer, const asp_real *z,
                                   const asp_real *post, int64_t n_rows, int bias, const asp_context *context);
/* Outputs of all senders.  out (S,R,E) written */
asp_status asp_nodes_outputs(asp_real *out, const asp_model *model, const asp_node_activations *activations,
                             int64_t n_rows, const asp_context *context);

#endif
