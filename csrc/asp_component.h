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

#include "asp_circuit.h"

/* ---- numbers ------------------------------------------------------------------- */

int64_t asp_nodes_n_senders(const asp_config *config);
int64_t asp_nodes_n_receivers(const asp_config *config);
/* How many senders come before a receiver: those with the numbers 0 .. n-1. */
int64_t asp_nodes_n_before(const asp_config *config, int64_t receiver);
int64_t asp_nodes_n_edges(const asp_config *config);

/* ---- scores -------------------------------------------------------------------- */

/* With o the output of a sender, r what it is replaced by and x the input of a receiver, the score of a component edge
 * is the sum over positions of (r - o) . d loss / d x, summed over prompts; loss is minus the metric. */
typedef enum {
    ASP_COMPONENT_EAP,       /* the gradient in the clean run */
    ASP_COMPONENT_IG_INPUTS, /* its mean over runs whose input is r + k/m (o - r), k = 0..m-1; for nodes and neurons
                                    * k = 1..m */
    ASP_COMPONENT_IG_ACTIVATIONS,  /* its mean over runs in which one of 1 + 2L groups (the input, the heads of a layer,
                                    * an MLP) is r + k/m (o - r), k = 1..m, through which no gradient goes */
    ASP_COMPONENT_CLEAN_CORRUPTED, /* its mean over the clean and the corrupted run */
    ASP_COMPONENT_ROUTES           /* no gradient: max(0, |x| - |x - o|) in the L1 norm as a share of the sum over the
                                    * senders before x, averaged over positions (information flow routes) */
} asp_component_method;

/* What r is: 0; what o is in the corrupted prompt; its mean over the positions of each reference prompt and over these
 * prompts; its mean over those that have the position; its mean over all positions of all of them. */
typedef enum {
    ASP_COMPONENT_ZERO,
    ASP_COMPONENT_COUNTERFACTUAL,
    ASP_COMPONENT_MEAN,
    ASP_COMPONENT_MEAN_POSITIONAL,
    ASP_COMPONENT_MEAN_ALL
} asp_component_ablation;

/* Of what scores are: component edges (S,R); senders (S), with the gradient of their output; each coordinate of the
 * output (S,E). */
typedef enum { ASP_COMPONENT_EDGE, ASP_COMPONENT_NODE, ASP_COMPONENT_NEURON } asp_component_level;

typedef struct {
    asp_component_method method;
    asp_component_level level;
    asp_component_ablation ablation;
    int64_t steps;                /* m of the IG methods */
    int denoising;                /* clean and corrupted exchanged, and the sign; with COUNTERFACTUAL */
    int held_gate;                /* runs that differ from the clean (denoising: corrupted) one have its gates */
    int smaller_is_better;        /* the metric: loss is the metric itself */
    int mlp_input;                /* of nodes and neurons MLPs are scored with the gradient of their input */
    const asp_prompts *reference; /* of means: what is averaged over; NULL: the clean prompts */
    int64_t max_bytes;            /* fail with NO_MEMORY before allocating more than this */
} asp_component_options;

/* Scores of everything at once.  scores (S,R), (S) or (S,E) written
 * Errors: BAD_INDEX for tokens, BAD_ARGUMENT for options and what an ablation lacks, NO_MEMORY, STOPPED.
 * Stage of progress: "component scores" (prompts). */
asp_status asp_component_scores(double *scores, const asp_model *model, const asp_task *task,
                                const asp_component_options *options, const asp_context *context, asp_error *err);
/* Numbers of scores (rows, columns). */
void asp_component_scores_shape(int64_t dims[2], const asp_config *config, asp_component_level level);

/* ---- circuits ---------------------------------------------------------------------- */

/* The metric of circuits: every receiver reads its constants (position embeddings, biases of W_O), the current output of
 * each sender whose component edge into it is in the circuit, and the ablated output of each other one before it.
 * Denoising: the clean output over component edges in the circuit, the current one over the others.
 *   values (n,P) written    masks (n,S,R) read: not 0 for a component edge in the circuit; read nowhere else
 * Errors: BAD_INDEX for tokens, BAD_ARGUMENT for lengths, metrics and what an ablation lacks, NO_MEMORY, STOPPED.
 * Stage of progress: "circuits" (circuits times prompts). */
asp_status asp_component_values(double *values, const asp_model *model, const asp_task *task, const uint8_t *masks,
                                int64_t n, const asp_component_options *options, const asp_context *context,
                                asp_error *err);

/* The metric of circuits of neurons, the coordinates of what senders give: every receiver reads, of each sender before
 * it, the current output in the coordinates that are in the circuit and the ablated one in the others; denoising: the
 * clean output in those in the circuit, the current one in the others.  A circuit of nodes has all or none of a sender.
 *   values (n,P) written    neurons (n,S,E) read: not 0 for one in the circuit
 * Errors and progress as asp_component_values. */
asp_status asp_component_values_of_neurons(double *values, const asp_model *model, const asp_task *task,
                                           const uint8_t *neurons, int64_t n, const asp_component_options *options,
                                           const asp_context *context, asp_error *err);

/* What component edges do alone: how much worse the metric becomes where the receiver reads the ablated output of the
 * sender, and all behind it is computed again; denoising: how much better with the clean output in the corrupted
 * prompts.  Sums over the prompts.
 *   scores (S,R) written: 0 for what is not asked
 *   begin, end: which ones, in the order of layers, in each of the queries, keys, values of its heads, then its MLP, at
 *   last the logits, and of a receiver in that of its senders: [begin, end) of asp_nodes_n_edges
 * Errors as asp_component_values, and BAD_INDEX.  Stage of progress: "exact" (component edges times prompts). */
asp_status asp_component_exact(double *scores, const asp_model *model, const asp_task *task, int64_t begin, int64_t end,
                               const asp_component_options *options, const asp_context *context, asp_error *err);

/* How far ACDC is: all 0 before it begins.  Together with the scores (and the mask) it is what the same call
 * continues from, to the same bits, whenever progress is told and after STOPPED and NO_MEMORY. */
typedef struct {
    int64_t n_done; /* component edges that were asked */
    int64_t size;   /* how many to ask at once */
    double loss;    /* of the circuit so far */
} asp_component_kept;

/* ACDC: from the logits to the first layer, and of each receiver from the last sender to the first, a component edge is
 * taken away for good if the loss, averaged over the prompts, then rises by less than the threshold.  Receivers are
 * asked in falling order of their numbers.
 *   mask (S,R) written: 1 for a component edge that is left; read if something is kept
 *   scores (S,R) written: by how much the loss rose when this one was asked; read if something is kept
 * Errors as asp_component_values, and BAD_ARGUMENT for denoising and a metric that is not finite.
 * Stage of progress: "acdc" (component edges). */
asp_status asp_component_acdc(uint8_t *mask, double *scores, asp_component_kept *kept, const asp_model *model,
                              const asp_task *task, double threshold, const asp_component_options *options,
                              const asp_context *context, asp_error *err);

/* The metric with masks between 0 and 1: every receiver reads the ablated output of each sender before it plus mask times
 * what the current one differs by; denoising: the clean output plus 1 - mask times what the current one differs by.  And
 * the gradient of its mean over the prompts.  No gradient goes through a gate.
 *   values (n,P), gradients (n,S,R) written    masks (n,S,R) read: read nowhere but at component edges
 * Errors: as asp_component_values, and BAD_ARGUMENT for a metric without a gradient.
 * Stage of progress: "mask gradients" (masks times prompts). */
asp_status asp_component_gradients(double *values, double *gradients, const asp_model *model, const asp_task *task,
                                   const double *masks, int64_t n, const asp_component_options *options,
                                   const asp_context *context, asp_error *err);

/* Training of masks.  The mask of a component edge is hard concrete (Louizos et al. 2018): z = min(1, max(0, 1.2 s - 0.1))
 * with s = sigmoid((log u - log(1 - u) + a) / beta), beta = 2/3, and u uniform in (0,1), drawn anew in each step, the same
 * for its prompts; a, the log alpha, is trained with AdamW.
 *   probing (Cao et al. 2021): the loss of the metric plus penalty times the density, which is the mean over the component
 *     edges of the probability that z is not 0, sigmoid(a - beta log(0.1/1.1))
 *   pruning (Bhaskar et al. 2024): plus l1 (sparsity - target) + l2 (sparsity - target)^2, where l1 and l2 ascend, sparsity
 *     is 1 minus the density, which is the mean of z, and the target goes from 0 in the first step to `sparsity` in step
 *     `sparsity_steps` in a line.  With nodes, the mask of each sender multiplies those of the component edges out of it,
 *     and the same term is added for them. */
typedef struct {
    asp_component_options measure; /* method, level and steps are not read */
    int64_t steps;                 /* of the whole training */
    int64_t batch;                 /* prompts of a step, in their order; the last step of a round may have fewer */
    double lr, beta1, beta2, eps, weight_decay;
    int64_t lr_steps; /* the rate rises in a line up to here */
    int lr_falls;     /* and then falls in a line to 0 at the end */
    double penalty;   /* of probing */
    int pruning, nodes;
    double sparsity, node_sparsity;
    int64_t sparsity_steps;
    double multiplier_lr;
    uint64_t seed;
} asp_component_masks_options;

/* How far a training is.  n = S R + S: the masks of component edges (S,R), then those of senders. */
typedef struct {
    int64_t step;          /* steps taken */
    asp_real *parameters;  /* (3,n) read and written: log alphas, 0 where there is no component edge; first and second
                            * moments of Adam */
    asp_real *multipliers; /* (3,4) read and written: l1, l2 and l1, l2 of senders, with their moments */
} asp_component_masks_state;

/* What a step writes: the mean loss of the metric over its prompts, the whole loss, density and target density (NaN in
 * probing), those of senders (NaN without nodes), l1 and l2. */
enum { ASP_COMPONENT_MASKS_HISTORY = 8 };

/* Takes steps up to number `end`; the state is that of the last one taken, also if the call fails.
 *   history (end - state->step,8) written    expected (n) written: probabilities that masks are not 0, at the end
 * Errors: as asp_component_gradients; BAD_ARGUMENT for options; DIVERGED for a loss or gradient that is not finite, before
 * the step is taken.  Stage of progress: "masks" (steps). */
asp_status asp_component_masks(asp_component_masks_state *state, double *history, double *expected, int64_t end,
                               const asp_model *model, const asp_task *task, const asp_component_masks_options *options,
                               const asp_context *context, asp_error *err);

/* ---- patching of activations ------------------------------------------------------- */

/* What takes its value in the other prompt of the pair.  Of a layer: the residual stream before it or between its
 * attention and its MLP; the output of its attention or of its MLP.  Of a head: z, q, k, v or a query's row of the
 * pattern. */
typedef enum {
    ASP_PATCHING_RESID,
    ASP_PATCHING_RESID_MID,
    ASP_PATCHING_ATTN_OUT,
    ASP_PATCHING_MLP_OUT,
    ASP_PATCHING_Z,
    ASP_PATCHING_Q,
    ASP_PATCHING_K,
    ASP_PATCHING_V,
    ASP_PATCHING_PATTERN
} asp_patching_kind;

typedef struct {
    asp_patching_kind kind;
    int by_position; /* each position by itself; else all at once.  Needs prompts of one length */
    int denoising;   /* the corrupted prompts get clean values; else the clean ones corrupted values */
    int held_gate;   /* gates are those of the prompts as they are; else they follow from the scores */
    const int64_t *layers,
        *positions; /* (n_layers), (n_positions) read: ascending; NULL: all.  Positions by position */
    int64_t n_layers, n_positions;
    int64_t max_bytes; /* fail with NO_MEMORY before allocating more than this */
} asp_patching_options;

/* L, or as many as are given; H of kinds of heads, else 1; T, or as many as are given, by position, else 1. */
typedef struct {
    int64_t layers, heads, positions;
} asp_patching_shape;
asp_patching_shape asp_patching_places(const asp_config *config, const asp_prompts *clean,
                                       const asp_patching_options *options);

/* The metric with each of these activations alone replaced, everything behind it computed anew.
 *   values (layers,heads,positions,P) written
 *   base, other (P) written: with nothing replaced, and of the prompts that the values come from
 * Errors: as of circuits.  Stage of progress: "patching" (replaced activations of prompts). */
asp_status asp_patching_sweep(double *values, double *base, double *other, const asp_model *model, const asp_task *task,
                              const asp_patching_options *options, const asp_context *context, asp_error *err);

/* Paths from senders straight into receivers: which of the (S) senders and of the (R) receivers. */
typedef struct {
    const uint8_t *senders;   /* (n,S) read */
    const uint8_t *receivers; /* (n,R) read */
    const uint8_t *positions; /* (N) read: at which positions of the prompts; NULL: at all */
    int64_t n;
} asp_path_patches;

typedef struct {
    int denoising;     /* the corrupted prompts get clean outputs; else the clean ones corrupted outputs */
    int held_gate;     /* gates are those of the prompts as they are; else they follow from the scores */
    int64_t max_bytes; /* fail with NO_MEMORY before allocating more than this */
} asp_path_options;

/* The metric when each component edge from one of the senders into one of the receivers carries the sender's output in
 * the other prompt of the pair; everything behind it is computed anew.
 *   values (n,P) written    base, other (P) written: as of patching sweeps
 * Errors: as of circuits.  Stage of progress: "path patching" (patches times prompts). */
asp_status asp_path_values(double *values, double *base, double *other, const asp_model *model, const asp_task *task,
                           const asp_path_patches *patches, const asp_path_options *options, const asp_context *context,
                           asp_error *err);

/* ---- choosing circuits ----------------------------------------------------------------- */

/* All component edges, best first, as places sender R + receiver in the matrix; of equal ones the first in the matrix.
 * Greedy: each time the best one into the logits or into a node that something chosen comes from.
 *   order (asp_nodes_n_edges) written    scores (S,R) read
 * Errors: BAD_ARGUMENT for scores that are not finite, NO_MEMORY. */
asp_status asp_component_select_order(int64_t *order, const asp_config *config, const double *scores, int absolute,
                                      int greedy, asp_error *err);

/* Takes away the component edges of nodes that no component edge feeds (but the input) or from which none goes out,
 * until there is no such node, and what is no component edge.  Returns how many are left.
 *   mask (S,R) read and written */
int64_t asp_component_select_prune(const asp_config *config, uint8_t *mask);

/* Circuits of the first sizes[i] of an order, pruned or not, and how many component edges they have.
 *   masks (n_sizes,S,R), kept (n_sizes) written    order (asp_nodes_n_edges), sizes (n_sizes) read
 * Errors: BAD_INDEX, BAD_ARGUMENT. */
asp_status asp_component_select(uint8_t *masks, int64_t *kept, const asp_config *config, const int64_t *order,
                                const int64_t *sizes, int64_t n_sizes, int pruned, asp_error *err);

/* Nodes or neurons by falling score, or falling absolute score, as places in the array of scores; of equal ones the
 * first.  order (n) written    scores (n) read    Errors: BAD_ARGUMENT for scores that are not finite, NO_MEMORY. */
asp_status asp_component_select_best(int64_t *order, const double *scores, int64_t n, int absolute, asp_error *err);

/* Circuits of the first sizes[i] of an order of nodes (width 1) or neurons (width E), pruned or not, and how many they
 * have.  The input feeds every node: pruned, a circuit with any of it loses nothing, and without it nothing feeds the
 * first node, so that it goes, then the next, until none is left.
 *   masks (n_sizes,S,width), kept (n_sizes) written    order (S width), sizes (n_sizes) read
 * Errors: BAD_INDEX, BAD_ARGUMENT. */
asp_status asp_component_select_neurons(uint8_t *masks, int64_t *kept, const asp_config *config, int64_t width,
                                        const int64_t *order, const int64_t *sizes, int64_t n_sizes, int pruned,
                                        asp_error *err);

/* How a ranking agrees with a given circuit: shares of its component edges and of the others that score at least as much
 * as a threshold, for every threshold; equal scores are one step. */
typedef struct {
    double *false_rate, *true_rate; /* (asp_nodes_n_edges + 1) written, the first n of them: from (0,0) to (1,1) */
    int64_t n;
    double area;
} asp_component_roc;
/*   truth (S,R) read: not 0 in the circuit
 * Errors: BAD_ARGUMENT for scores that are not finite and circuits of nothing or of everything, NO_MEMORY. */
asp_status asp_component_curve_roc(asp_component_roc *roc, const asp_config *config, const double *scores,
                                   const uint8_t *truth, int absolute, const asp_context *context, asp_error *err);

/* Areas of curves of faithfulness over shares of the component edges, by trapezoids: of f (CPR) and of |1 - f| (CMD).
 *   areas (n_curves,2) written    curves (n_curves,n_sizes), shares (n_sizes) read */
asp_status asp_component_curve_areas(double *areas, const double *curves, int64_t n_curves, const double *shares,
                                     int64_t n_sizes, const asp_context *context, asp_error *err);

#endif
