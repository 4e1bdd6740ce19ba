/* py_component_values.c: circuits of component edges, evaluated; each component edge patched alone; ACDC; masks, their
 * gradients and their training. */
#include "python/py.h"

static const uint8_t *read_masks(py_held *held, PyObject *self, PyObject *object, int64_t *n) {
    const asp_config *c = asp_model_config(((py_model *)self)->model);
    int64_t dims[3];
    const uint8_t *masks = asp_py_arrays_hold_copy(held, object, ASP_PY_BYTE, 3, "masks", dims);
    if (!masks) return NULL;
    *n = dims[0];
    if (dims[1] == asp_nodes_n_senders(c) && dims[2] == asp_nodes_n_receivers(c)) return masks;
    PyErr_Format(PyExc_ValueError, "masks must be of the shape (n, %lld, %lld), got (%lld, %lld, %lld)",
                 (long long)asp_nodes_n_senders(c), (long long)asp_nodes_n_receivers(c), (long long)dims[0],
                 (long long)dims[1], (long long)dims[2]);
    return NULL;
}

PyObject *asp_py_component_values(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"task", "masks", "options", "threads", "progress", NULL};
    PyObject *task, *object, *options, *progress = Py_None, *result = NULL;
    int threads = 0;
    py_component_call c;
    py_held held = {.n = 0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|iO:component_values", names, &task, &object, &options, &threads,
                                     &progress))
        return NULL;
    const asp_model *model = ((py_model *)self)->model;
    int64_t dims[2] = {0, 0};
    void *values;
    const uint8_t *masks = NULL;
    if (asp_py_component_read(&c, self, task, options, threads)) masks = read_masks(&held, self, object, &dims[0]);
    dims[1] = c.task.task.clean.n_prompts;
    if (masks) result = asp_py_arrays_new(ASP_PY_DOUBLE, 2, dims, &values);
    py_call call;
    if (result && asp_py_component_begin(&c, &call, self, progress)) {
        asp_error err = {0};
        const asp_status status =
            asp_component_values(values, model, &c.task.task, masks, dims[0], &c.options, &call.context, &err);
        asp_py_component_end(&call, self, status, &err);
    }
    asp_py_arrays_let_go(&held);
    return asp_py_component_clear(&c, result);
}

PyObject *asp_py_component_values_exact(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"task", "options", "threads", "progress", NULL};
    PyObject *task, *options, *progress = Py_None, *result = NULL;
    int threads = 0;
    py_component_call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|iO:component_exact", names, &task, &options, &threads,
                                     &progress))
        return NULL;
    const asp_model *model = ((py_model *)self)->model;
    const asp_config *config = asp_model_config(model);
    const int64_t dims[2] = {asp_nodes_n_senders(config), asp_nodes_n_receivers(config)};
    void *scores;
    if (asp_py_component_read(&c, self, task, options, threads))
        result = asp_py_arrays_new(ASP_PY_DOUBLE, 2, dims, &scores);
    py_call call;
    if (result && asp_py_component_begin(&c, &call, self, progress)) {
        asp_error err = {0};
        const asp_status status = asp_component_exact(scores, model, &c.task.task, &c.options, &call.context, &err);
        asp_py_component_end(&call, self, status, &err);
    }
    return asp_py_component_clear(&c, result);
}

PyObject *asp_py_component_values_acdc(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"task", "threshold", "options", "threads", "progress", NULL};
    PyObject *task, *options, *progress = Py_None, *mask = NULL, *scores = NULL;
    int threads = 0;
    double threshold;
    py_component_call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OdO|iO:component_acdc", names, &task, &threshold, &options,
                                     &threads, &progress))
        return NULL;
    const asp_model *model = ((py_model *)self)->model;
    const asp_config *config = asp_model_config(model);
    const int64_t dims[2] = {asp_nodes_n_senders(config), asp_nodes_n_receivers(config)};
    void *mask_data, *score_data;
    if (asp_py_component_read(&c, self, task, options, threads))
        mask = asp_py_arrays_new(ASP_PY_BYTE, 2, dims, &mask_data);
    if (mask) scores = asp_py_arrays_new(ASP_PY_DOUBLE, 2, dims, &score_data);
    py_call call;
    if (scores && asp_py_component_begin(&c, &call, self, progress)) {
        asp_error err = {0};
        const asp_status status =
            asp_component_acdc(mask_data, score_data, model, &c.task.task, threshold, &c.options, &call.context, &err);
        asp_py_component_end(&call, self, status, &err);
    }
    PyObject *pair = scores ? PyTuple_Pack(2, mask, scores) : NULL;
    Py_XDECREF(mask);
    Py_XDECREF(scores);
    return asp_py_component_clear(&c, pair);
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
