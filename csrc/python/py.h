/* py.h: what the py_*.c files share: module state, the object structs, status -> exception. */
#ifndef ASP_PY_H
#define ASP_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdatomic.h>

#include "asp.h"

#define ASP_STRING_(x) #x
#define ASP_STRING(x) ASP_STRING_(x)
#define ASP_MODULE "attnsparse." ASP_STRING(ASP_MODULE_NAME)

typedef struct {
    PyTypeObject *model_type, *run_type, *circuit_type, *gradients_type, *trainer_type, *features_type,
        *coder_trainer_type, *reading_type, *contexts_type, *graph_type;
    atomic_int n_threads;
} py_state;

extern struct PyModuleDef asp_module_def;

/* Owner of the weights.  users: readers (runs), or -1 while one writer (assign, training) works. */
typedef struct {
    PyObject_HEAD asp_model *model;
    atomic_llong version; /* + 1 at every change of the weights */
    atomic_int users;
    atomic_int sharing; /* one thread looks after the memory in which the weights lie */
} py_model;

typedef struct {
    PyObject_HEAD asp_run *run;
    py_model *model;
    long long version; /* of the model at the run */
} py_run;

typedef struct {
    PyObject_HEAD asp_gradients *gradients;
    py_model *model;
} py_gradients;

/* Calls of one thread at a time; `what` names the object in messages. */
typedef struct {
    const char *what;
    atomic_int busy;
} py_step;

/* Does not change once it is made. */
typedef struct {
    PyObject_HEAD asp_graph *graph;
} py_graph;

typedef struct {
    PyObject_HEAD asp_trainer *trainer;
    py_model *model;
    py_step step;  /* a whole one, or one that is taken in pieces */
    py_step piece; /* a call about a piece of it */
    int64_t rank, n_ranks;
    int64_t n_parts;  /* of the step that is taken in pieces */
    int threads;      /* of that step */
    atomic_int stage; /* ASP_PY_TRAINER_* */
} py_trainer;
enum { ASP_PY_TRAINER_IDLE, ASP_PY_TRAINER_GRADIENTS, ASP_PY_TRAINER_COMBINED, ASP_PY_TRAINER_UPDATED };

typedef struct {
    PyObject_HEAD asp_transcoder_trainer *coder;
    py_step step;
} py_coder_trainer;

/* Filled by one call, of one thread; its arrays are lent when it is complete. */
typedef struct {
    PyObject_HEAD asp_features *features;
    py_model *model;
    int64_t n_tokens;
    int from_mid;
    atomic_int stage; /* ASP_PY_FEATURES_* */
} py_features;
enum { ASP_PY_FEATURES_NEW, ASP_PY_FEATURES_BUSY, ASP_PY_FEATURES_COMPLETE };

extern PyType_Spec asp_py_find_spec, asp_py_features_spec, asp_py_coder_trainer_spec, asp_py_call_reading_spec;
extern PyType_Spec asp_py_graph_object_spec, asp_py_contexts_spec;
extern PyType_Spec asp_py_model_spec, asp_py_run_spec, asp_py_gradients_spec, asp_py_trainer_spec;

/* ---- py_module.c ---------------------------------------------------------------- */

py_state *asp_py_module_state(PyTypeObject *defining_type);

/* ---- py_call.c -------------------------------------------------------------------- */

/* Sets the exception for a status other than OK and returns NULL. */
PyObject *asp_py_call_raise(asp_status status, const asp_error *err);
/* A call with the GIL released: poll checks for Ctrl-C. */
typedef struct {
    asp_context context;
    PyThreadState *thread;
    asp_environment *environment;
    PyObject *progress; /* borrowed: called with (stage, done, total); NULL: nobody is told */
    int failed;         /* it raised an exception, which stops the call */
} py_call;
void asp_py_call_begin(py_call *call, int n_threads);
/* After that: tells a callable how far the call is, unless it is None. */
void asp_py_call_report(py_call *call, PyObject *progress);
void asp_py_call_end(py_call *call);
/* From a callback of such a call: begin and end using Python, in the caller's floating-point environment. */
void asp_py_call_attach(py_call *call);
void asp_py_call_detach(py_call *call);
/* 0 and RuntimeError if the model is taken. */
int asp_py_call_read_begin(py_model *model);
int asp_py_call_read_begin_of(py_model *model, const py_run *run); /* also 0 if the weights are not those of its run */
void asp_py_call_read_end(py_model *model);
PyObject *asp_py_call_reading(PyObject *model, PyObject *unused); /* a Reading, which reads until it is let go */
int asp_py_call_write_begin(py_model *model);
void asp_py_call_write_end(py_model *model);
/* Threads of a call on a model: those asked for, or the module's number for 0. */
int asp_py_call_n_threads(PyObject *model, int asked);
int asp_py_call_module_threads(PyObject *module, int asked); /* the same for a function of the module */

/* Steps of training, one call at a time (py_call.c). */

/* Larger option values would only make inf of finite weights. */
#define ASP_PY_STEP_MOST 1e15

/* 0 and RuntimeError while another thread has it. */
int asp_py_call_step_take(py_step *step);
void asp_py_call_step_release(py_step *step);
/* 0 and ValueError, which names the option, unless all values are in least..most. */
typedef struct {
    const char *name;
    double value, least, most;
} py_step_range;
int asp_py_call_step_check(const py_step_range *ranges, size_t n);
int asp_py_call_step_check_adamw(double lr, double beta1, double beta2, double eps, double clip);
/* An option with a number for each layer, in least..most; None leaves *out NULL.  0 and an exception. */
typedef struct {
    const char *name;
    double least, most;
    const double **out;
    PyObject *given, *array; /* array holds what *out points into */
} py_step_layers;
int asp_py_call_step_layers(py_step_layers *option, int64_t n_layer);
/* Copies arrays in, with the GIL released; 0 and RuntimeError while another thread has it. */
typedef struct {
    void *to;         /* (bytes) written */
    const void *from; /* (bytes) read */
    int64_t bytes;
} py_step_copy;
int asp_py_call_step_copy(py_step *step, const py_step_copy *copies, size_t n);
/* The setter of step_count: 0, or -1 and an exception. */
int asp_py_call_step_set_count(py_step *step, int64_t *count, PyObject *value);

/* ---- py_features.c ------------------------------------------------------------------- */

/* The substitute for the MLPs of one run, from _core_types.Substitute; NULL and an exception if it
 * is not well formed for this model and number of tokens. */
typedef struct py_substitute py_substitute;
py_substitute *asp_py_features_substitute_new(PyObject *object, py_model *model, int64_t n_tokens);
/* What the run takes; call and err are those of the run. */
const asp_mlp_substitute *asp_py_features_substitute_given(py_substitute *substitute, py_call *call, asp_error *err);
/* After the run; its features may be lent if it ended well.  Accepts NULL. */
void asp_py_features_substitute_free(py_substitute *substitute, asp_status status);

/* The activation of this name, or 0 and an exception. */
int asp_py_features_activation(const char *name, asp_transcoder_activation *activation);

/* ---- py_steering.c ------------------------------------------------------------------- */

/* Features that are changed in a pass, from _core_types.Steering, with the arrays that they point to; NULL and an
 * exception if they are not well formed.  n_texts: sequences of each prompt. */
typedef struct py_steering py_steering;
py_steering *asp_py_steering_new(PyObject *object, py_model *model, int64_t n_texts);
asp_visitor asp_py_steering_given(const py_steering *steering);
void asp_py_steering_free(py_steering *steering);

/* ---- py_contexts.c ------------------------------------------------------------------- */

PyObject *asp_py_contexts_promoted(PyObject *model, PyObject *args, PyObject *kwargs);

/* ---- py_trainer.c -------------------------------------------------------------------- */

enum { ASP_PY_LAYER_OPTIONS = 1 + ASP_N_ENTRY_KINDS + ASP_N_DROPS };
/* The arguments of a step: one by position, then options. */
typedef struct {
    PyObject *given;
    asp_step_options options;
    py_step_layers layers[ASP_PY_LAYER_OPTIONS];
    long long n_parts, first, count;
    int threads;
} py_step_arguments;

/* 0 and an exception; release them in any case. */
int asp_py_trainer_read_step(py_trainer *self, PyObject *args, PyObject *kwargs, py_step_arguments *arguments);
void asp_py_trainer_release_step(py_step_arguments *arguments);
PyObject *asp_py_trainer_result(py_trainer *self, const asp_step_result *result);
/* Takes trainer and model until it is left; 0 and RuntimeError. */
int asp_py_trainer_begin(py_trainer *self);
void asp_py_trainer_leave(py_trainer *self, int changed);

/* ---- py_pieces.c --------------------------------------------------------------------- */

PyObject *asp_py_pieces_gradients(PyObject *trainer, PyObject *args, PyObject *kwargs);
PyObject *asp_py_pieces_combine(PyObject *trainer, PyObject *args);
PyObject *asp_py_pieces_update(PyObject *trainer, PyObject *args, PyObject *kwargs);
PyObject *asp_py_pieces_adopt(PyObject *trainer, PyObject *weights);
PyObject *asp_py_pieces_abandon(PyObject *trainer, PyObject *unused);
PyObject *asp_py_pieces_slice(PyObject *trainer, PyObject *rank);
PyObject *asp_py_pieces_moments(PyObject *trainer, PyObject *unused);
void asp_py_pieces_end(py_trainer *self); /* a step that was begun and neither adopted nor abandoned */

/* ---- py_coder.c ---------------------------------------------------------------------- */

PyObject *asp_py_coder_weights_from_text(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *asp_py_coder_weights_from_set(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *asp_py_coder_weights_scale(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *asp_py_coder_weights_threshold(PyObject *module, PyObject *args, PyObject *kwargs);

/* ---- py_lens.c ----------------------------------------------------------------------- */

PyObject *asp_py_lens_read(PyObject *module, PyObject *args);
PyObject *asp_py_lens_logits(PyObject *self, PyObject *args);
PyObject *asp_py_lens_attribute(PyObject *self, PyObject *args);
PyObject *asp_py_lens_project(PyObject *self, PyObject *args);
PyObject *asp_py_lens_normalize(PyObject *module, PyObject *args);
PyObject *asp_py_lens_detect(PyObject *self, PyObject *args);
PyObject *asp_py_lens_composition(PyObject *self, PyObject *unused);
PyObject *asp_py_lens_stacked(PyObject *self, PyObject *name);

/* ---- py_run.c -------------------------------------------------------------------- */

PyObject *asp_py_run_gradients(PyObject *model, PyObject *args, PyObject *kwargs);
/* 0 and an exception if the run stopped before the last layer. */
int asp_py_run_is_whole(const py_run *run);
/* 0 and an exception unless it is whole and the run is of this model with the weights that it had then. */
int asp_py_run_is_current(const py_run *run, const py_model *model);
PyObject *asp_py_run_token_losses(PyObject *module, PyObject *args, PyObject *kwargs);

/* ---- py_generation.c ------------------------------------------------------------------ */

PyObject *asp_py_generation_of_model(PyObject *model, PyObject *args, PyObject *kwargs);

/* ---- py_curve.c ------------------------------------------------------------------------- */

PyObject *asp_py_curve_effect(PyObject *module, PyObject *curve);
PyObject *asp_py_curve_bootstrap(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *asp_py_curve_band(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *asp_py_curve_shares(PyObject *module, PyObject *effect);
PyObject *asp_py_curve_needed(PyObject *module, PyObject *args);
PyObject *asp_py_curve_needed_interval(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *asp_py_curve_ratio(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *asp_py_curve_random_raw(PyObject *module, PyObject *args);
PyObject *asp_py_curve_random_permutation(PyObject *module, PyObject *args);
/* "mib", "ratio" or "none"; 0 and an exception for anything else. */
int asp_py_curve_normalization(PyObject *object, asp_normalization *out);

/* Copies of the tokens and offsets of a call, checked against each other. */
typedef struct {
    PyObject *token_array, *offset_array;
    int32_t *tokens;
    int64_t *offsets, n_sequences, n_tokens;
} py_batch;

/* ---- py_circuit.c -------------------------------------------------------------------- */

PyObject *asp_py_circuit_mean_entries(PyObject *self, PyObject *unused);
/* What an experiment does to a pass; read, let go and freed together. */
typedef struct py_interventions py_interventions;
typedef struct py_frozen py_frozen;
typedef struct py_functions py_functions;
typedef struct {
    py_interventions *interventions;
    py_frozen *frozen;
    py_steering *steering;
    py_functions *functions;
    asp_visitor visitors[3];
    int n_visitors;
} py_experiment;
/* From _core_types.Interventions, Frozen, Steering and Functions, or None. */
typedef struct {
    PyObject *interventions, *frozen, *steering, *functions;
} py_experiment_objects;
/* 0 and an exception if one of them is not well formed or does not fit.  n_texts: sequences of each prompt. */
int asp_py_circuit_experiment_read(py_experiment *experiment, const py_experiment_objects *objects, py_model *model,
                                   const py_batch *batch, int64_t n_texts);
/* The hooks of the pass, or NULL; and its visitors, which read the experiment and the call. */
const asp_hooks *asp_py_circuit_experiment_hooks(py_experiment *experiment, py_call *call);
void asp_py_circuit_experiment_free(py_experiment *experiment);

/* ---- py_graph.c -------------------------------------------------------------------- */

PyObject *asp_py_graph_edges(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *asp_py_graph_logits(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *asp_py_graph_build(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *asp_py_graph_loadings(PyObject *module, PyObject *args);
PyObject *asp_py_graph_factors(PyObject *module, PyObject *args);
PyObject *asp_py_graph_within(PyObject *module, PyObject *args);
PyObject *asp_py_graph_likely(PyObject *module, PyObject *args);
PyObject *asp_py_graph_writes(PyObject *module, PyObject *args);

/* ---- py_graph_object.c ---------------------------------------------------------------- */

/* The owner of a graph, which it takes, also where it fails. */
PyObject *asp_py_graph_object_new(PyTypeObject *type, asp_graph *graph);

/* ---- py_graph_pairs.c ------------------------------------------------------------- */

PyObject *asp_py_graph_pairs_total(PyObject *module, PyObject *args);
PyObject *asp_py_graph_pairs_between(PyObject *module, PyObject *args);
PyObject *asp_py_graph_pairs_shares(PyObject *module, PyObject *args);
PyObject *asp_py_graph_pairs_entries(PyObject *module, PyObject *args);
PyObject *asp_py_graph_pairs_moved(PyObject *module, PyObject *args);
PyObject *asp_py_graph_pairs_score(PyObject *module, PyObject *args);
PyObject *asp_py_graph_pairs_largest(PyObject *module, PyObject *args);

/* ---- py_arrays.c: the only file that calls NumPy ------------------------------------ */

enum { ASP_PY_REAL, ASP_PY_INT32, ASP_PY_INT64, ASP_PY_BYTE, ASP_PY_DOUBLE, ASP_PY_FLOAT };

int asp_py_arrays_import(void);
/* New array over memory of owner (which it keeps alive).  strides in elements, NULL: contiguous. */
PyObject *asp_py_arrays_lend(PyObject *owner, void *data, int kind, int n_dims, const int64_t *dims,
                             const int64_t *strides, int writable);
PyObject *asp_py_arrays_lend_array(PyObject *owner, asp_array array);
/* New zeroed array of its own. */
PyObject *asp_py_arrays_new(int kind, int n_dims, const int64_t *dims, void **data);
/* A C-contiguous array of exactly this kind and number of dimensions, borrowed for a call: an object that keeps its
 * memory where it is.  Its numbers may change while the GIL is released. */
PyObject *asp_py_arrays_borrow(PyObject *object, int kind, int n_dims, const char *name, void **data, int64_t *dims);
/* The same as a private copy, which no other thread can change while the GIL is released. */
PyObject *asp_py_arrays_copy(PyObject *object, int kind, int n_dims, const char *name, void **data, int64_t *dims);
/* The same after conversion of whatever numbers came; a copy too. */
PyObject *asp_py_arrays_convert(PyObject *object, int kind, int n_dims, const char *name, void **data, int64_t *dims);

/* Arrays of a call, let go together. */
typedef struct {
    PyObject *arrays[32];
    int n;
} py_held;
/* Data of a private copy, or of the array itself (its numbers may then change while the GIL is released, so it must
 * hold no indices); NULL and an exception if it is not of this kind.  dims (n_dims) written. */
void *asp_py_arrays_hold_copy(py_held *held, PyObject *object, int kind, int n_dims, const char *name, int64_t *dims);
void *asp_py_arrays_hold(py_held *held, PyObject *object, int kind, int n_dims, const char *name, int64_t *dims);
/* An array that the call writes. */
void *asp_py_arrays_hold_out(py_held *held, PyObject *object, int kind, int n_dims, const char *name, int64_t *dims);
/* A copy after conversion. */
void *asp_py_arrays_hold_convert(py_held *held, PyObject *object, int kind, int n_dims, const char *name,
                                 int64_t *dims);
void asp_py_arrays_let_go(py_held *held);

/* The arguments of graph_loadings, held; 0 and an exception if they do not fit each other. */
int asp_py_graph_read_loadings(py_held *held, PyObject *args, asp_loading_inputs *inputs);

/* A batch of copies; 0 and an exception if they do not fit each other. */
int asp_py_arrays_batch(py_batch *batch, PyObject *tokens, PyObject *offsets);
void asp_py_arrays_batch_clear(py_batch *batch);

/* Copies of the targets and weights of n tokens; a target of -100, which is to be ignored, gets the weight 0. */
int asp_py_arrays_targets(py_held *held, PyObject *targets, PyObject *weights, int64_t n, const int32_t **target,
                          const asp_real **weight);
/* The micro-batches of a training step, with the arrays that they point to, from a list of tuples (tokens, offsets,
 * targets, weights).  0 and an exception; clear it in any case. */
typedef struct {
    py_batch batch;
    py_held held;
} py_micro_held;
typedef struct {
    py_micro_held *held;
    asp_batch *batches;
    int64_t n;
} py_micro;
int asp_py_arrays_micro(py_micro *micro, PyObject *list);
void asp_py_arrays_micro_clear(py_micro *micro);

/* ---- py_metric.c ------------------------------------------------------------------------ */

/* The metric of a call, with the arrays and the object that it points to; so it stays where it is. */
typedef struct {
    py_held held;
    asp_metric metric;
    asp_custom_metric custom;
    PyObject *object; /* of a metric of the user's own: asked for row_values and row_gradients; in held */
    int64_t n_vocab;
    py_call *call; /* set by the caller before the core is called */
} py_metric;
/* From _core_types.Metric; 0 and an exception if it is not well formed.  clear accepts one that is not, or zeros. */
int asp_py_metric_read(py_metric *metric, PyObject *object, int64_t n_vocab);
void asp_py_metric_clear(py_metric *metric);
PyObject *asp_py_metric_names(PyObject *module, PyObject *unused);
PyObject *asp_py_metric_values(PyObject *module, PyObject *args);
PyObject *asp_py_metric_gradients(PyObject *module, PyObject *args);

/* ---- py_effects.c -------------------------------------------------------------------- */

/* A task of a call, with the arrays that it points to; see py_metric. */
typedef struct {
    py_held held;
    py_metric metric;
    asp_task task;
} py_task;
/* From _core_types.Task; 0 and an exception if it is not well formed.  clear accepts one that is not, or zeros. */
int asp_py_effects_read_task(py_task *task, PyObject *object, int64_t n_vocab);
void asp_py_effects_clear_task(py_task *task);
/* From _core_types.EffectOptions; arrays go to held, reference prompts to reference. */
int asp_py_effects_read_options(py_held *held, PyObject *object, asp_prompts *reference, asp_effect_options *options);

PyObject *asp_py_effects_candidates(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *asp_py_effects_whole(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *asp_py_effects_knock_out(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *asp_py_effects_keep_only(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *asp_py_effects_leave_one_out(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *asp_py_effects_attribution(PyObject *self, PyObject *args, PyObject *kwargs);

/* ---- py_component.c ------------------------------------------------------------------ */

/* What calls about component edges read from their arguments; see py_task. */
typedef struct {
    py_task task;
    py_batch reference_batch;
    asp_prompts reference;
    asp_component_options options;
    int threads;
} py_component_call;
/* From _core_types.Task and ComponentOptions; 0 and an exception if they are not well formed. */
int asp_py_component_read(py_component_call *c, PyObject *model, PyObject *task, PyObject *options, int threads);
/* Around the computation: 0 and an exception if the model is being changed; an exception for a bad status. */
int asp_py_component_begin(py_component_call *c, py_call *call, PyObject *model, PyObject *progress);
void asp_py_component_end(py_call *call, PyObject *model, asp_status status, const asp_error *err);
/* Lets go of the arguments, also of those that were not well formed: result, or NULL and an exception. */
PyObject *asp_py_component_clear(py_component_call *c, PyObject *result);

PyObject *asp_py_component_scores(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *asp_py_component_senders_before(PyObject *self, PyObject *unused);

/* ---- py_component_values.c --------------------------------------------------------------- */

PyObject *asp_py_component_values(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *asp_py_component_values_of_neurons(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *asp_py_component_values_acdc(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *asp_py_component_values_exact(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *asp_py_component_values_gradients(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *asp_py_component_values_masks(PyObject *self, PyObject *args, PyObject *kwargs);

PyObject *asp_py_component_select_order(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *asp_py_component_select(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *asp_py_component_select_prune(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *asp_py_component_select_best(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *asp_py_component_select_neurons(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *asp_py_component_select_roc(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *asp_py_component_select_areas(PyObject *module, PyObject *args, PyObject *kwargs);

/* ---- py_patching.c ---------------------------------------------------------------------- */

PyObject *asp_py_patching_sweep(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *asp_py_patching_paths(PyObject *self, PyObject *args, PyObject *kwargs);

/* ---- py_find.c ---------------------------------------------------------------------- */

PyObject *asp_py_find_circuit(PyObject *self, PyObject *args);

/* The items of a sequence, which nobody can change meanwhile; NULL and TypeError with this text if it is none. */
PyObject *asp_py_module_tuple(PyObject *object, const char *text);

/* Attributes of an object of _core_types, new references in fields (n); 0 and TypeError if it lacks one. */
int asp_py_module_fields(PyObject *object, const char *kind, const char *const *names, int n, PyObject **fields);
void asp_py_module_forget(PyObject **fields, int n);
/* UTF-8 of a name; NULL and TypeError if it is not a string. */
const char *asp_py_module_name(PyObject *object, const char *what);
/* Index of a name among n; -1 and an exception if it is none of them. */
int asp_py_module_index(PyObject *object, const char *what, const char *const *names, int n);
/* 1 if threads is 0 (the default) or in 1..64; else 0 and ValueError. */
int asp_py_call_check_threads(int threads);
/* Bit mask of record names in a tuple; 0 and ValueError for an unknown one. */
int asp_py_model_records(PyObject *names, uint64_t *records);

#endif
