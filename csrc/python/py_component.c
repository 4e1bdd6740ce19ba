/* py_component.c: component edges: their numbers and their scores. */
#include "python/py.h"

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
