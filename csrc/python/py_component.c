/* py_component.c: component edges: their numbers, their scores, and circuits chosen from these. */
#include "python/py.h"

#include <string.h>

enum {
    METHOD,
    LEVEL,
    ABLATION,
    STEPS,
    DENOISING,
    HELD_GATE,
    SMALLER,
    MAX_BYTES,
    REFERENCE,
    OFFSETS,
    MLP_INPUT,
    FIELDS
};

static int read_component_integer(PyObject *object, int64_t *out) {
    *out = PyLong_AsLongLong(object);
    return *out != -1 || !PyErr_Occurred();
}

static int read_component_flag(PyObject *object, int *out) { return (*out = PyObject_IsTrue(object)) >= 0; }

static int read_component_fields(py_component_call *c, PyObject **o) {
    static const char *const methods[] = {"eap", "eap-ig-inputs", "eap-ig-activations", "clean-corrupted",
                                          "information-flow-routes"};
    static const char *const levels[] = {"edge", "node", "neuron"};
    static const char *const ablations[] = {"zero", "counterfactual", "mean", "mean-positional", "mean-all"};
    asp_component_options *options = &c->options;
    const int method = asp_py_module_index(o[METHOD], "method", methods, 5);
    const int level = method < 0 ? -1 : asp_py_module_index(o[LEVEL], "level", levels, 3);
    const int ablation = level < 0 ? -1 : asp_py_module_index(o[ABLATION], "ablation", ablations, 5);
    if (ablation < 0 || !read_component_integer(o[STEPS], &options->steps) ||
        !read_component_integer(o[MAX_BYTES], &options->max_bytes) ||
        !read_component_flag(o[DENOISING], &options->denoising) ||
        !read_component_flag(o[HELD_GATE], &options->held_gate) ||
        !read_component_flag(o[SMALLER], &options->smaller_is_better) ||
        !read_component_flag(o[MLP_INPUT], &options->mlp_input))
        return 0;
    options->method = (asp_component_method)method;
    options->level = (asp_component_level)level;
    options->ablation = (asp_component_ablation)ablation;
    if (o[REFERENCE] == Py_None) return 1;
    if (!asp_py_arrays_batch(&c->reference_batch, o[REFERENCE], o[OFFSETS])) return 0;
    c->reference = (asp_prompts){c->reference_batch.tokens, c->reference_batch.offsets, c->reference_batch.n_sequences};
    options->reference = &c->reference;
    return 1;
}

static int read_component_options(py_component_call *c, PyObject *object) {
    static const char *const names[] = {
        "method",    "level",     "ablation",          "steps",    "denoising", "held_gate", "smaller_is_better",
        "max_bytes", "reference", "reference_offsets", "mlp_input"};
    PyObject *o[FIELDS];
    if (!asp_py_module_fields(object, "ComponentOptions", names, FIELDS, o)) return 0;
    const int good = read_component_fields(c, o);
    asp_py_module_forget(o, FIELDS);
    return good;
}

int asp_py_component_read(py_component_call *c, PyObject *self, PyObject *task, PyObject *options, int threads) {
    *c = (py_component_call){.threads = threads};
    return asp_py_call_check_threads(threads) &&
           asp_py_effects_read_task(&c->task, task, asp_model_config(((py_model *)self)->model)->n_vocab) &&
           read_component_options(c, options);
}

int asp_py_component_begin(py_component_call *c, py_call *call, PyObject *self, PyObject *progress) {
    c->task.metric.call = call;
    if (!asp_py_call_read_begin((py_model *)self)) return 0;
    asp_py_call_begin(call, asp_py_call_n_threads(self, c->threads));
    asp_py_call_report(call, progress);
    return 1;
}

void asp_py_component_end(py_call *call, PyObject *self, asp_status status, const asp_error *err) {
    asp_py_call_end(call);
    asp_py_call_read_end((py_model *)self);
    if (status) asp_py_call_raise(status, err);
}

PyObject *asp_py_component_clear(py_component_call *c, PyObject *result) {
    asp_py_effects_clear_task(&c->task);
    asp_py_arrays_batch_clear(&c->reference_batch);
    if (PyErr_Occurred()) Py_CLEAR(result);
    return result;
}

PyObject *asp_py_component_scores(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"task", "options", "threads", "progress", NULL};
    PyObject *task, *options, *progress = Py_None, *result = NULL;
    int threads = 0;
    int64_t dims[2];
    void *scores;
    py_component_call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|iO:component_scores", names, &task, &options, &threads,
                                     &progress))
        return NULL;
    const asp_model *model = ((py_model *)self)->model;
    if (asp_py_component_read(&c, self, task, options, threads)) {
        asp_component_scores_shape(dims, asp_model_config(model), c.options.level);
        result = asp_py_arrays_new(ASP_PY_DOUBLE, c.options.level == ASP_COMPONENT_NODE ? 1 : 2, dims, &scores);
    }
    py_call call;
    if (result && asp_py_component_begin(&c, &call, self, progress)) {
        asp_error err = {0};
        const asp_status status = asp_component_scores(scores, model, &c.task.task, &c.options, &call.context, &err);
        asp_py_component_end(&call, self, status, &err);
    }
    return asp_py_component_clear(&c, result);
}

PyObject *asp_py_component_senders_before(PyObject *self, PyObject *unused) {
    (void)unused;
    const asp_config *config = asp_model_config(((py_model *)self)->model);
    const int64_t n = asp_nodes_n_receivers(config);
    void *data;
    PyObject *result = asp_py_arrays_new(ASP_PY_INT64, 1, &n, &data);
    for (int64_t r = 0; result && r < n; r++) ((int64_t *)data)[r] = asp_nodes_n_before(config, r);
    return result;
}

/* ---- circuits chosen from scores: functions of the module, for there is no model, only its numbers of layers and heads */

/* The part of a config that numbers nodes. */
static int read_shape(long long n_layer, long long n_head, asp_config *config) {
    if (n_layer >= 1 && n_layer <= 512 && n_head >= 1 && n_head <= 1024) {
        *config = (asp_config){.n_layer = n_layer, .n_head = n_head};
        return 1;
    }
    PyErr_Format(PyExc_ValueError, "n_layer must be in 1..512 and n_head in 1..1024, got %lld and %lld", n_layer,
                 n_head);
    return 0;
}

/* A matrix (S,R) of this kind, a private copy. */
static void *read_matrix(py_held *held, PyObject *object, int kind, const char *name, const asp_config *c) {
    int64_t dims[2];
    void *data = asp_py_arrays_hold_copy(held, object, kind, 2, name, dims);
    if (!data || (dims[0] == asp_nodes_n_senders(c) && dims[1] == asp_nodes_n_receivers(c))) return data;
    PyErr_Format(PyExc_ValueError, "%s must be of the shape (%lld, %lld), got (%lld, %lld)", name,
                 (long long)asp_nodes_n_senders(c), (long long)asp_nodes_n_receivers(c), (long long)dims[0],
                 (long long)dims[1]);
    return NULL;
}

/* Lets go of the arguments; result, or NULL and an exception. */
static PyObject *end_selection(py_held *held, PyObject *result, asp_status status, const asp_error *err) {
    asp_py_arrays_let_go(held);
    if (!status && !PyErr_Occurred()) return result;
    Py_XDECREF(result);
    return status ? asp_py_call_raise(status, err) : NULL;
}

PyObject *asp_py_component_select_order(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"n_layer", "n_head", "scores", "absolute", "greedy", NULL};
    PyObject *object, *result = NULL;
    long long n_layer, n_head;
    int absolute, greedy;
    asp_config c;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "LLOpp:component_order", names, &n_layer, &n_head, &object,
                                     &absolute, &greedy) ||
        !read_shape(n_layer, n_head, &c))
        return NULL;
    py_held held = {.n = 0};
    asp_error err = {0};
    asp_status status = ASP_OK;
    void *order;
    const int64_t n = asp_nodes_n_edges(&c);
    const double *scores = read_matrix(&held, object, ASP_PY_DOUBLE, "scores", &c);
    if (scores) result = asp_py_arrays_new(ASP_PY_INT64, 1, &n, &order);
    if (result) status = asp_component_select_order(order, &c, scores, absolute, greedy, &err);
    return end_selection(&held, result, status, &err);
}

PyObject *asp_py_component_select(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"n_layer", "n_head", "order", "sizes", "prune", NULL};
    PyObject *object, *asked, *masks = NULL, *kept = NULL;
    long long n_layer, n_head;
    int pruned;
    asp_config c;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "LLOOp:component_select", names, &n_layer, &n_head, &object, &asked,
                                     &pruned) ||
        !read_shape(n_layer, n_head, &c))
        return NULL;
    py_held held = {.n = 0};
    asp_error err = {0};
    asp_status status = ASP_OK;
    int64_t n = 0, dims[3] = {0, asp_nodes_n_senders(&c), asp_nodes_n_receivers(&c)};
    void *mask, *count;
    const int64_t *order = asp_py_arrays_hold_copy(&held, object, ASP_PY_INT64, 1, "order", &n), *sizes = NULL;
    if (order && n != asp_nodes_n_edges(&c))
        PyErr_Format(PyExc_ValueError, "order must hold all %lld component edges, got %lld",
                     (long long)asp_nodes_n_edges(&c), (long long)n);
    else if (order) sizes = asp_py_arrays_hold_copy(&held, asked, ASP_PY_INT64, 1, "sizes", &dims[0]);
    if (sizes) masks = asp_py_arrays_new(ASP_PY_BYTE, 3, dims, &mask);
    if (masks) kept = asp_py_arrays_new(ASP_PY_INT64, 1, dims, &count);
    if (kept) status = asp_component_select(mask, count, &c, order, sizes, dims[0], pruned, &err);
    PyObject *pair = kept ? PyTuple_Pack(2, masks, kept) : NULL;
    Py_XDECREF(masks);
    Py_XDECREF(kept);
    return end_selection(&held, pair, status, &err);
}

PyObject *asp_py_component_select_best(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"scores", "absolute", NULL};
    PyObject *object, *result = NULL;
    int absolute;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Op:component_best", names, &object, &absolute)) return NULL;
    py_held held = {.n = 0};
    asp_error err = {0};
    asp_status status = ASP_OK;
    int64_t n;
    void *order;
    const double *scores = asp_py_arrays_hold_copy(&held, object, ASP_PY_DOUBLE, 1, "scores", &n);
    if (scores) result = asp_py_arrays_new(ASP_PY_INT64, 1, &n, &order);
    if (result) status = asp_component_select_best(order, scores, n, absolute, &err);
    return end_selection(&held, result, status, &err);
}

PyObject *asp_py_component_select_neurons(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"n_layer", "n_head", "width", "order", "sizes", "prune", NULL};
    PyObject *object, *asked, *masks = NULL, *kept = NULL;
    long long n_layer, n_head, width;
    int pruned;
    asp_config c;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "LLLOOp:component_select_neurons", names, &n_layer, &n_head, &width,
                                     &object, &asked, &pruned) ||
        !read_shape(n_layer, n_head, &c))
        return NULL;
    py_held held = {.n = 0};
    asp_error err = {0};
    asp_status status = ASP_OK;
    int64_t n = 0, dims[3] = {0, asp_nodes_n_senders(&c), width};
    void *mask, *count;
    const int64_t *order = asp_py_arrays_hold_copy(&held, object, ASP_PY_INT64, 1, "order", &n), *sizes = NULL;
    if (order && (width < 1 || n / dims[1] != width || n % dims[1]))
        PyErr_Format(PyExc_ValueError, "order must hold the numbers of %lld senders by %lld, got %lld",
                     (long long)dims[1], width, (long long)n);
    else if (order) sizes = asp_py_arrays_hold_copy(&held, asked, ASP_PY_INT64, 1, "sizes", &dims[0]);
    if (sizes) masks = asp_py_arrays_new(ASP_PY_BYTE, 3, dims, &mask);
    if (masks) kept = asp_py_arrays_new(ASP_PY_INT64, 1, dims, &count);
    if (kept) status = asp_component_select_neurons(mask, count, &c, width, order, sizes, dims[0], pruned, &err);
    PyObject *pair = kept ? PyTuple_Pack(2, masks, kept) : NULL;
    Py_XDECREF(masks);
    Py_XDECREF(kept);
    return end_selection(&held, pair, status, &err);
}

PyObject *asp_py_component_select_prune(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"n_layer", "n_head", "mask", NULL};
    PyObject *object, *result = NULL;
    long long n_layer, n_head;
    asp_config c;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "LLO:component_prune", names, &n_layer, &n_head, &object) ||
        !read_shape(n_layer, n_head, &c))
        return NULL;
    py_held held = {.n = 0};
    void *pruned;
    const int64_t dims[2] = {asp_nodes_n_senders(&c), asp_nodes_n_receivers(&c)};
    const uint8_t *mask = read_matrix(&held, object, ASP_PY_BYTE, "mask", &c);
    if (mask) result = asp_py_arrays_new(ASP_PY_BYTE, 2, dims, &pruned);
    if (result) {
        memcpy(pruned, mask, (size_t)(dims[0] * dims[1]));
        asp_component_select_prune(&c, pruned);
    }
    return end_selection(&held, result, ASP_OK, NULL);
}

/* The first n of x. */
static PyObject *first_of(PyObject *x, int64_t n) {
    PyObject *part = x ? PySequence_GetSlice(x, 0, (Py_ssize_t)n) : NULL;
    Py_XDECREF(x);
    return part;
}

PyObject *asp_py_component_select_roc(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"n_layer", "n_head", "scores", "truth", "absolute", NULL};
    PyObject *object, *true_object, *false_rate = NULL, *true_rate = NULL, *result = NULL;
    long long n_layer, n_head;
    int absolute;
    asp_config c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "LLOOp:component_roc", names, &n_layer, &n_head, &object,
                                     &true_object, &absolute) ||
        !read_shape(n_layer, n_head, &c))
        return NULL;
    py_held held = {.n = 0};
    asp_error err = {0};
    asp_status status = ASP_OK;
    asp_component_roc roc = {.n = 0};
    void *false_data, *true_data;
    const int64_t n = asp_nodes_n_edges(&c) + 1;
    const double *scores = read_matrix(&held, object, ASP_PY_DOUBLE, "scores", &c);
    const uint8_t *truth = scores ? read_matrix(&held, true_object, ASP_PY_BYTE, "truth", &c) : NULL;
    if (truth) false_rate = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &n, &false_data);
    if (false_rate) true_rate = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &n, &true_data);
    if (true_rate) {
        py_call call;
        roc.false_rate = false_data;
        roc.true_rate = true_data;
        asp_py_call_begin(&call, asp_py_call_module_threads(module, 1));
        status = asp_component_curve_roc(&roc, &c, scores, truth, absolute, &call.context, &err);
        asp_py_call_end(&call);
        false_rate = first_of(false_rate, roc.n);
        true_rate = first_of(true_rate, roc.n);
        if (!status && false_rate && true_rate) result = Py_BuildValue("OOd", false_rate, true_rate, roc.area);
    }
    Py_XDECREF(false_rate);
    Py_XDECREF(true_rate);
    return end_selection(&held, result, status, &err);
}

PyObject *asp_py_component_select_areas(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"curves", "shares", NULL};
    PyObject *object, *share_object, *result = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:component_areas", names, &object, &share_object)) return NULL;
    py_held held = {.n = 0};
    asp_error err = {0};
    asp_status status = ASP_OK;
    int64_t dims[2], n, out[2] = {0, 2};
    void *areas;
    const double *curves = asp_py_arrays_hold_copy(&held, object, ASP_PY_DOUBLE, 2, "curves", dims), *shares = NULL;
    if (curves) shares = asp_py_arrays_hold_copy(&held, share_object, ASP_PY_DOUBLE, 1, "shares", &n);
    if (shares && n != dims[1])
        PyErr_Format(PyExc_ValueError, "there are %lld shares, and curves of %lld sizes", (long long)n,
                     (long long)dims[1]);
    else if (shares) {
        out[0] = dims[0];
        result = asp_py_arrays_new(ASP_PY_DOUBLE, 2, out, &areas);
    }
    if (result) {
        py_call call;
        asp_py_call_begin(&call, asp_py_call_module_threads(module, 1));
        status = asp_component_curve_areas(areas, curves, dims[0], shares, n, &call.context, &err);
        asp_py_call_end(&call);
    }
    return end_selection(&held, result, status, &err);
}
