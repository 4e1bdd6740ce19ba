/* py_component_values.c: circuits of component edges, evaluated; each component edge patched alone. */
#include "python/py.h"

#include <string.h>

/* What calls read from their arguments, with the arrays that it points to. */
typedef struct {
    py_held held;
    py_task task;
    asp_patch_options options;
    asp_prompts reference;
} patch_call;

enum { ABLATION, DENOISING, HELD_GATE, SMALLER, MAX_BYTES, REFERENCE, OFFSETS, FIELDS };

static int read_patch_fields(patch_call *p, PyObject **o) {
    static const char *const ablations[] = {"zero", "counterfactual", "mean", "mean-positional", "mean-all"};
    const int ablation = asp_py_module_index(o[ABLATION], "ablation", ablations, 5);
    if (ablation < 0) return 0;
    p->options.ablation = (asp_component_ablation)ablation;
    int *const flags[] = {&p->options.denoising, &p->options.held_gate, &p->options.smaller_is_better};
    for (int i = 0; i < 3; i++)
        if ((*flags[i] = PyObject_IsTrue(o[DENOISING + i])) < 0) return 0;
    p->options.max_bytes = PyLong_AsLongLong(o[MAX_BYTES]);
    if (p->options.max_bytes == -1 && PyErr_Occurred()) return 0;
    if (o[REFERENCE] == Py_None) return 1;
    py_batch batch;
    if (!asp_py_arrays_batch(&batch, o[REFERENCE], o[OFFSETS])) return 0;
    p->held.arrays[p->held.n++] = batch.token_array;
    p->held.arrays[p->held.n++] = batch.offset_array;
    p->reference = (asp_prompts){batch.tokens, batch.offsets, batch.n_sequences};
    p->options.reference = &p->reference;
    return 1;
}

static int read_patch_call(patch_call *p, PyObject *self, PyObject *task, PyObject *options) {
    static const char *const names[] = {"ablation",  "denoising", "held_gate",        "smaller_is_better",
                                        "max_bytes", "reference", "reference_offsets"};
    PyObject *o[FIELDS];
    if (!asp_py_effects_read_task(&p->task, task, asp_model_config(((py_model *)self)->model)->n_vocab)) return 0;
    if (!asp_py_module_fields(options, "PatchOptions", names, FIELDS, o)) return 0;
    const int good = read_patch_fields(p, o);
    asp_py_module_forget(o, FIELDS);
    return good;
}

/* Lets go of the arguments; result, or NULL and an exception. */
static PyObject *end_patch_call(patch_call *p, PyObject *result) {
    asp_py_effects_clear_task(&p->task);
    asp_py_arrays_let_go(&p->held);
    if (PyErr_Occurred()) Py_CLEAR(result);
    return result;
}

/* Begins the computation; 0 and an exception if the model is being changed. */
static int begin_patch(patch_call *p, py_call *call, PyObject *self, int threads, PyObject *progress) {
    p->task.metric.call = call;
    if (!asp_py_call_read_begin((py_model *)self)) return 0;
    asp_py_call_begin(call, asp_py_call_n_threads(self, threads));
    asp_py_call_report(call, progress);
    return 1;
}

static void end_patch(py_call *call, PyObject *self, asp_status status, const asp_error *err) {
    asp_py_call_end(call);
    asp_py_call_read_end((py_model *)self);
    if (status) asp_py_call_raise(status, err);
}

static const uint8_t *read_masks(patch_call *p, PyObject *self, PyObject *object, int64_t *n) {
    const asp_config *c = asp_model_config(((py_model *)self)->model);
    int64_t dims[3];
    const uint8_t *masks = asp_py_arrays_hold_copy(&p->held, object, ASP_PY_BYTE, 3, "masks", dims);
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
    patch_call p = {.held = {.n = 0}};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|iO:component_values", names, &task, &object, &options, &threads,
                                     &progress) ||
        !asp_py_call_check_threads(threads))
        return NULL;
    const asp_model *model = ((py_model *)self)->model;
    int64_t dims[2];
    void *values;
    const uint8_t *masks = NULL;
    if (read_patch_call(&p, self, task, options)) masks = read_masks(&p, self, object, &dims[0]);
    dims[1] = p.task.task.clean.n_prompts;
    if (masks) result = asp_py_arrays_new(ASP_PY_DOUBLE, 2, dims, &values);
    py_call call;
    if (result && begin_patch(&p, &call, self, threads, progress)) {
        asp_error err = {0};
        const asp_status status =
            asp_component_values(values, model, &p.task.task, masks, dims[0], &p.options, &call.context, &err);
        end_patch(&call, self, status, &err);
    }
    return end_patch_call(&p, result);
}

PyObject *asp_py_component_exact(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"task", "options", "threads", "progress", NULL};
    PyObject *task, *options, *progress = Py_None, *result = NULL;
    int threads = 0;
    patch_call p = {.held = {.n = 0}};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|iO:component_exact", names, &task, &options, &threads,
                                     &progress) ||
        !asp_py_call_check_threads(threads))
        return NULL;
    const asp_model *model = ((py_model *)self)->model;
    const asp_config *c = asp_model_config(model);
    const int64_t dims[2] = {asp_nodes_n_senders(c), asp_nodes_n_receivers(c)};
    void *scores;
    if (read_patch_call(&p, self, task, options)) result = asp_py_arrays_new(ASP_PY_DOUBLE, 2, dims, &scores);
    py_call call;
    if (result && begin_patch(&p, &call, self, threads, progress)) {
        asp_error err = {0};
        const asp_status status = asp_component_exact(scores, model, &p.task.task, &p.options, &call.context, &err);
        end_patch(&call, self, status, &err);
    }
    return end_patch_call(&p, result);
}
