/* py_component_values.c: circuits of component edges and of neurons, evaluated; each component edge patched
 * alone; ACDC; masks, their gradients and their training. */
#include "python/py.h"

#include <string.h>

/* Circuits (n,S,columns), a private copy. */
static const uint8_t *read_circuits(py_held *held, PyObject *object, const char *name, int64_t dims[3], int64_t columns,
                                    const asp_config *c) {
    const uint8_t *masks = asp_py_arrays_hold_copy(held, object, ASP_PY_BYTE, 3, name, dims);
    if (!masks || (dims[1] == asp_nodes_n_senders(c) && dims[2] == columns)) return masks;
    PyErr_Format(PyExc_ValueError, "%s must be of the shape (n, %lld, %lld), got (%lld, %lld, %lld)", name,
                 (long long)asp_nodes_n_senders(c), (long long)columns, (long long)dims[0], (long long)dims[1],
                 (long long)dims[2]);
    return NULL;
}

typedef asp_status (*measure_circuits)(double *values, const asp_model *model, const asp_task *task,
                                       const uint8_t *masks, int64_t n, const asp_component_options *options,
                                       const asp_context *context, asp_error *err);

static PyObject *values_of(PyObject *self, PyObject *args, PyObject *kwargs, const char *format, char **names,
                           int64_t columns, measure_circuits measure) {
    PyObject *task, *object, *options, *progress = Py_None, *result = NULL;
    int threads = 0;
    py_component_call c;
    py_held held = {.n = 0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, format, names, &task, &object, &options, &threads, &progress))
        return NULL;
    const asp_model *model = ((py_model *)self)->model;
    int64_t dims[3] = {0, 0, 0};
    void *values;
    const uint8_t *masks = NULL;
    if (asp_py_component_read(&c, self, task, options, threads))
        masks = read_circuits(&held, object, names[1], dims, columns, asp_model_config(model));
    dims[1] = c.task.task.clean.n_prompts;
    if (masks) result = asp_py_arrays_new(ASP_PY_DOUBLE, 2, dims, &values);
    py_call call;
    if (result && asp_py_component_begin(&c, &call, self, progress)) {
        asp_error err = {0};
        const asp_status status = measure(values, model, &c.task.task, masks, dims[0], &c.options, &call.context, &err);
        asp_py_component_end(&call, self, status, &err);
    }
    asp_py_arrays_let_go(&held);
    return asp_py_component_clear(&c, result);
}

PyObject *asp_py_component_values(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"task", "masks", "options", "threads", "progress", NULL};
    const asp_config *c = asp_model_config(((py_model *)self)->model);
    return values_of(self, args, kwargs, "OOO|iO:component_values", names, asp_nodes_n_receivers(c),
                     asp_component_values);
}

PyObject *asp_py_component_values_of_neurons(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"task", "neurons", "options", "threads", "progress", NULL};
    const asp_config *c = asp_model_config(((py_model *)self)->model);
    return values_of(self, args, kwargs, "OOO|iO:component_neuron_values", names, c->d_model,
                     asp_component_values_of_neurons);
}

/* ---- each component edge patched alone -------------------------------------------------------------------- */

PyObject *asp_py_component_values_exact(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"task", "edges", "options", "threads", "progress", NULL};
    PyObject *task, *options, *progress = Py_None, *result = NULL;
    long long begin, end;
    int threads = 0;
    void *scores;
    py_component_call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O(LL)O|iO:component_exact", names, &task, &begin, &end, &options,
                                     &threads, &progress))
        return NULL;
    const asp_model *model = ((py_model *)self)->model;
    const asp_config *config = asp_model_config(model);
    const int64_t dims[2] = {asp_nodes_n_senders(config), asp_nodes_n_receivers(config)};
    if (asp_py_component_read(&c, self, task, options, threads))
        result = asp_py_arrays_new(ASP_PY_DOUBLE, 2, dims, &scores);
    py_call call;
    if (result && asp_py_component_begin(&c, &call, self, progress)) {
        asp_error err = {0};
        const asp_status status =
            asp_component_exact(scores, model, &c.task.task, begin, end, &c.options, &call.context, &err);
        asp_py_component_end(&call, self, status, &err);
    }
    return asp_py_component_clear(&c, result);
}

/* ---- ACDC ------------------------------------------------------------------------------------------------- */

/* What it has found can be kept. */
typedef struct {
    py_call call;
    asp_component_kept kept;
    PyObject *keep; /* borrowed: its due() says whether write(state) is to be called; None: nothing is kept */
    int (*progress)(void *state, const char *stage, int64_t done, int64_t total); /* what else is told */
    int64_t places;                                                               /* S R */
    PyObject *scores_array, *mask_array;
    void *scores, *mask;
} kept_call;

enum { HEAD = 3 }; /* numbers of the state before the scores: asp_component_kept */

/* ---- the state ----------------------------------------------------------------------------------------- */

static int64_t n_state(const kept_call *c) {
    const int64_t item = (int64_t)sizeof(int64_t);
    return HEAD + c->places + (c->places + item - 1) / item;
}

static PyObject *kept_state(const kept_call *c) {
    const int64_t n = n_state(c);
    void *data;
    PyObject *state = asp_py_arrays_new(ASP_PY_INT64, 1, &n, &data);
    if (!state) return NULL;
    int64_t *to = data;
    to[n - 1] = 0;
    to[0] = c->kept.n_done;
    to[1] = c->kept.size;
    memcpy(to + 2, &c->kept.loss, sizeof c->kept.loss);
    memcpy(to + HEAD, c->scores, (size_t)c->places * sizeof(double));
    memcpy(to + HEAD + c->places, c->mask, (size_t)c->places);
    return state;
}

/* Scores, mask and place from a state, or None: from the beginning. */
static int read_state(kept_call *c, PyObject *object) {
    int64_t n;
    void *data;
    if (object == Py_None) return 1;
    PyObject *state = asp_py_arrays_copy(object, ASP_PY_INT64, 1, "state", &data, &n);
    if (!state) return 0;
    const int64_t *from = data;
    const int good = n == n_state(c);
    if (good) {
        c->kept = (asp_component_kept){.n_done = from[0], .size = from[1]};
        memcpy(&c->kept.loss, from + 2, sizeof c->kept.loss);
        memcpy(c->scores, from + HEAD, (size_t)c->places * sizeof(double));
        memcpy(c->mask, from + HEAD + c->places, (size_t)c->places);
    } else
        PyErr_Format(PyExc_ValueError, "state must have %lld numbers, got %lld", (long long)n_state(c), (long long)n);
    Py_DECREF(state);
    return good;
}

/* ---- keeping --------------------------------------------------------------------------------------------- */

static int write_state(const kept_call *c) {
    PyObject *state = kept_state(c);
    PyObject *answer = state ? PyObject_CallMethod(c->keep, "write", "O", state) : NULL;
    Py_XDECREF(state);
    Py_XDECREF(answer);
    return answer != NULL;
}

static int write_if_due(const kept_call *c) {
    PyObject *due = PyObject_CallMethod(c->keep, "due", NULL);
    const int wanted = due ? PyObject_IsTrue(due) : -1;
    Py_XDECREF(due);
    return wanted < 0 ? 0 : !wanted || write_state(c);
}

static int tell_and_keep(void *state, const char *stage, int64_t done, int64_t total) {
    kept_call *c = state;
    if (c->call.failed || (c->progress && c->progress(&c->call, stage, done, total))) return 1;
    asp_py_call_attach(&c->call);
    c->call.failed = !write_if_due(c);
    asp_py_call_detach(&c->call);
    return c->call.failed;
}

/* After the computation: keeps what is found, also where it was stopped. */
static void keep_when_ended(const kept_call *c, asp_status status) {
    if (c->keep == Py_None || (status && status != ASP_STOPPED && status != ASP_NO_MEMORY)) return;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (write_state(c)) PyErr_Restore(type, value, traceback);
    else {
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
    }
}

/* ---- the call --------------------------------------------------------------------------------------------- */

/* Arrays of the result, from the state on. */
static int open_kept_call(kept_call *c, const asp_config *config, PyObject *state) {
    const int64_t dims[2] = {asp_nodes_n_senders(config), asp_nodes_n_receivers(config)};
    c->places = dims[0] * dims[1];
    c->scores_array = asp_py_arrays_new(ASP_PY_DOUBLE, 2, dims, &c->scores);
    if (c->scores_array) c->mask_array = asp_py_arrays_new(ASP_PY_BYTE, 2, dims, &c->mask);
    return c->mask_array && read_state(c, state);
}

static int begin_kept_call(kept_call *c, py_component_call *call, PyObject *self, PyObject *progress) {
    if (!asp_py_component_begin(call, &c->call, self, progress)) return 0;
    if (c->keep == Py_None) return 1;
    c->progress = c->call.context.progress;
    c->call.context.progress = tell_and_keep;
    c->call.context.progress_state = c;
    return 1;
}

static void end_kept_call(kept_call *c, PyObject *self, asp_status status, const asp_error *err) {
    asp_py_component_end(&c->call, self, status, err);
    keep_when_ended(c, status);
}

PyObject *asp_py_component_values_acdc(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"task", "threshold", "options", "threads", "progress", "state", "keep", NULL};
    PyObject *task, *options, *progress = Py_None, *state = Py_None;
    int threads = 0;
    double threshold;
    kept_call c = {.keep = Py_None};
    py_component_call call;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OdO|iOOO:component_acdc", names, &task, &threshold, &options,
                                     &threads, &progress, &state, &c.keep))
        return NULL;
    const asp_model *model = ((py_model *)self)->model;
    if (asp_py_component_read(&call, self, task, options, threads) &&
        open_kept_call(&c, asp_model_config(model), state) && begin_kept_call(&c, &call, self, progress)) {
        asp_error err = {0};
        const asp_status status = asp_component_acdc(c.mask, c.scores, &c.kept, model, &call.task.task, threshold,
                                                     &call.options, &c.call.context, &err);
        end_kept_call(&c, self, status, &err);
    }
    PyObject *pair = c.mask_array && !PyErr_Occurred() ? PyTuple_Pack(2, c.mask_array, c.scores_array) : NULL;
    Py_XDECREF(c.mask_array);
    Py_XDECREF(c.scores_array);
    return asp_py_component_clear(&call, pair);
}

/* ---- masks --------------------------------------------------------------------------------------------- */

static void masks_shape(PyObject *self, int64_t dims[2]) {
    const asp_config *c = asp_model_config(((py_model *)self)->model);
    dims[0] = asp_nodes_n_senders(c);
    dims[1] = asp_nodes_n_receivers(c);
}

static const double *read_soft_masks(py_held *held, PyObject *self, PyObject *object, int64_t dims[3]) {
    int64_t shape[2];
    masks_shape(self, shape);
    const double *masks = asp_py_arrays_hold_copy(held, object, ASP_PY_DOUBLE, 3, "masks", dims);
    if (!masks || (dims[1] == shape[0] && dims[2] == shape[1])) return masks;
    PyErr_Format(PyExc_ValueError, "masks must be of the shape (n, %lld, %lld), got (%lld, %lld, %lld)",
                 (long long)shape[0], (long long)shape[1], (long long)dims[0], (long long)dims[1], (long long)dims[2]);
    return NULL;
}

PyObject *asp_py_component_values_gradients(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"task", "masks", "options", "threads", "progress", NULL};
    PyObject *task, *object, *options, *progress = Py_None, *values = NULL, *gradients = NULL;
    int threads = 0;
    py_component_call c;
    py_held held = {.n = 0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|iO:component_gradients", names, &task, &object, &options,
                                     &threads, &progress))
        return NULL;
    int64_t dims[3] = {0, 0, 0}, of_values[2];
    void *value_data, *gradient_data;
    const double *masks = NULL;
    if (asp_py_component_read(&c, self, task, options, threads)) masks = read_soft_masks(&held, self, object, dims);
    of_values[0] = dims[0];
    of_values[1] = c.task.task.clean.n_prompts;
    if (masks) values = asp_py_arrays_new(ASP_PY_DOUBLE, 2, of_values, &value_data);
    if (values) gradients = asp_py_arrays_new(ASP_PY_DOUBLE, 3, dims, &gradient_data);
    py_call call;
    if (gradients && asp_py_component_begin(&c, &call, self, progress)) {
        asp_error err = {0};
        const asp_status status =
            asp_component_gradients(value_data, gradient_data, ((py_model *)self)->model, &c.task.task, masks, dims[0],
                                    &c.options, &call.context, &err);
        asp_py_component_end(&call, self, status, &err);
    }
    asp_py_arrays_let_go(&held);
    PyObject *pair = gradients ? PyTuple_Pack(2, values, gradients) : NULL;
    Py_XDECREF(values);
    Py_XDECREF(gradients);
    return asp_py_component_clear(&c, pair);
}

/* ---- training -------------------------------------------------------------------------------------------- */

enum { STEPS, BATCH, LR_STEPS, SPARSITY_STEPS, INTEGERS };
enum { LR, BETA1, BETA2, EPS, DECAY, PENALTY, SPARSITY, NODE_SPARSITY, MULTIPLIER_LR, NUMBERS };
enum { LR_FALLS = INTEGERS + NUMBERS, PRUNING, NODES, SEED, MEASURE, FIELDS };

static int read_masks_fields(PyObject **o, asp_component_masks_options *options) {
    int64_t *integers[INTEGERS] = {&options->steps, &options->batch, &options->lr_steps, &options->sparsity_steps};
    double *numbers[NUMBERS] = {&options->lr,       &options->beta1,         &options->beta2,
                                &options->eps,      &options->weight_decay,  &options->penalty,
                                &options->sparsity, &options->node_sparsity, &options->multiplier_lr};
    int *flags[] = {&options->lr_falls, &options->pruning, &options->nodes};
    for (int i = 0; i < INTEGERS; i++) *integers[i] = PyLong_AsLongLong(o[i]);
    for (int i = 0; i < NUMBERS; i++) *numbers[i] = PyFloat_AsDouble(o[INTEGERS + i]);
    for (int i = 0; i < 3; i++) *flags[i] = PyObject_IsTrue(o[LR_FALLS + i]) > 0;
    options->seed = PyLong_AsUnsignedLongLong(o[SEED]);
    return !PyErr_Occurred();
}

/* Also what is measured: *measure, a new reference. */
static int read_masks_options(PyObject *object, asp_component_masks_options *options, PyObject **measure) {
    static const char *const names[FIELDS] = {"steps",    "batch",         "lr_steps",      "sparsity_steps", "lr",
                                              "beta1",    "beta2",         "eps",           "weight_decay",   "penalty",
                                              "sparsity", "node_sparsity", "multiplier_lr", "lr_falls",       "pruning",
                                              "nodes",    "seed",          "measure"};
    PyObject *o[FIELDS];
    if (!asp_py_module_fields(object, "MasksOptions", names, FIELDS, o)) return 0;
    const int good = read_masks_fields(o, options);
    if (good) *measure = Py_NewRef(o[MEASURE]);
    asp_py_module_forget(o, FIELDS);
    return good;
}

/* Copies of parameters and multipliers, which become those of the result. */
static int read_masks_state(PyObject *self, PyObject *parameters, PyObject *multipliers, PyObject *copies[2],
                            asp_component_masks_state *state) {
    int64_t shape[2], dims[2], others[2];
    void *data, *other;
    masks_shape(self, shape);
    const int64_t n = shape[0] * shape[1] + shape[0];
    copies[0] = asp_py_arrays_copy(parameters, ASP_PY_REAL, 2, "parameters", &data, dims);
    if (copies[0]) copies[1] = asp_py_arrays_copy(multipliers, ASP_PY_REAL, 2, "multipliers", &other, others);
    if (!copies[1]) return 0;
    if (dims[0] != 3 || dims[1] != n || others[0] != 3 || others[1] != 4) {
        PyErr_Format(PyExc_ValueError,
                     "parameters must be of the shape (3, %lld) and multipliers of (3, 4), got (%lld, %lld) and "
                     "(%lld, %lld)",
                     (long long)n, (long long)dims[0], (long long)dims[1], (long long)others[0], (long long)others[1]);
        return 0;
    }
    state->parameters = data;
    state->multipliers = other;
    return 1;
}

/* The steps: (parameters, multipliers, history, expected). */
static PyObject *train_masks(py_component_call *c, PyObject *self, asp_component_masks_state *state, int64_t end,
                             asp_component_masks_options *options, PyObject *progress) {
    const int64_t begin = state->step;
    int64_t shape[2], rows[2] = {end - begin, ASP_COMPONENT_MASKS_HISTORY};
    void *history_data, *expected_data;
    masks_shape(self, shape);
    const int64_t n = shape[0] * shape[1] + shape[0];
    PyObject *history = asp_py_arrays_new(ASP_PY_DOUBLE, 2, rows, &history_data);
    PyObject *expected = history ? asp_py_arrays_new(ASP_PY_DOUBLE, 1, &n, &expected_data) : NULL;
    py_call call;
    options->measure = c->options;
    if (expected && asp_py_component_begin(c, &call, self, progress)) {
        asp_error err = {0};
        const asp_status status =
            asp_component_masks(state, history_data, expected_data, end, ((py_model *)self)->model, &c->task.task,
                                options, &call.context, &err);
        asp_py_component_end(&call, self, status, &err);
    }
    PyObject *pair = expected ? PyTuple_Pack(2, history, expected) : NULL;
    Py_XDECREF(history);
    Py_XDECREF(expected);
    return pair;
}

PyObject *asp_py_component_values_masks(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"task", "step", "end", "parameters", "multipliers", "options", "threads", "progress", NULL};
    PyObject *task, *parameters, *multipliers, *object, *progress = Py_None, *measure = NULL, *copies[2] = {NULL, NULL};
    PyObject *found = NULL, *result = NULL;
    int threads = 0;
    long long step, end;
    py_component_call c;
    asp_component_masks_options options = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OLLOOO|iO:component_masks", names, &task, &step, &end, &parameters,
                                     &multipliers, &object, &threads, &progress))
        return NULL;
    if (step < 0 || end < step)
        return PyErr_Format(PyExc_ValueError, "step must be at least 0 and end at least step, got %lld and %lld", step,
                            end);
    if (!read_masks_options(object, &options, &measure)) return NULL;
    asp_component_masks_state state = {.step = step};
    if (asp_py_component_read(&c, self, task, measure, threads) &&
        read_masks_state(self, parameters, multipliers, copies, &state))
        found = train_masks(&c, self, &state, end, &options, progress);
    if (found && !PyErr_Occurred())
        result = PyTuple_Pack(4, copies[0], copies[1], PyTuple_GET_ITEM(found, 0), PyTuple_GET_ITEM(found, 1));
    Py_XDECREF(found);
    Py_XDECREF(copies[0]);
    Py_XDECREF(copies[1]);
    Py_DECREF(measure);
    return asp_py_component_clear(&c, result);
}
