/* py_component_values.c: circuits of component edges, evaluated; each component edge patched alone; ACDC. */
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
