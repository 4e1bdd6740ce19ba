/* asp_component.h: the part of the public C API about component edges: from the output of the embedding, a head or an
 * MLP into the q, k or v of a later head, a later MLP or the logits; asp.h includes it.
 *
 * Numbers, with L layers of H heads
 *   senders, S = 1 + L(H+1): 0 the token embedding; 1 + l(H+1) + h the head h of layer l, z W_O without bias;
 *     1 + l(H+1) + H the MLP of layer l with its bias.  Position embeddings and the biases of W_O belong to no sender.
 *   receivers, R = L(3H+1) + 1: l(3H+1) + c H + h the q, k or v (c = 0, 1, 2) of head h of layer l;
 *     l(3H+1) + 3H the MLP of layer l; L(3H+1) the logits.  A receiver's input is the residual stream before its
 *     LayerNorm, one copy for each receiver.
 * There is a component edge from each sender into each receiver that comes after it: q, k, v and the MLP of layer l
 * come after what is in lower layers, the MLP also after the heads of its own layer, the logits after everything.
 * Scores and masks are matrices (S,R), 0 where there is no component edge. */
#ifndef ASP_COMPONENT_H
#define ASP_COMPONENT_H

#include "asp.h"

/* ---- numbers ------------------------------------------------------------------- */

int64_t asp_nodes_n_senders(const asp_config *config);
int64_t asp_nodes_n_receivers(const asp_config *config);
/* How many senders come before a receiver: those with the numbers 0 .. n-1. */
int64_t asp_nodes_n_before(const asp_config *config, int64_t receiver);
int64_t asp_nodes_n_edges(const asp_config *config);

#endif
