/* py_generation.c: Model.generate. */
#include "python/py.h"

/* What a generation reads and writes; let go together. */
typedef struct {
    py_held held;
    py_batch batch;
    py_experiment experiment;
    asp_generation_options options;
    asp_generated out;
} generation_call;

enum { MAX_NEW, SAMPLES, TEMPERATURE, TOP_K, TOP_P, SEED, STOP, MAX_BYTES, FIELDS };

static int read_generation_fields(generation_call *g, PyObject **o, int64_t n_vocab) {
    asp_generation_options *options = &g->options;
    options->max_new_tokens = PyLong_AsLongLong(o[MAX_NEW]);
    if (!PyErr_Occurred()) options->n_samples = PyLong_AsLongLong(o[SAMPLES]);
    if (!PyErr_Occurred()) options->temperature = PyFloat_AsDouble(o[TEMPERATURE]);
    if (!PyErr_Occurred()) options->top_k = PyLong_AsLongLong(o[TOP_K]);
    if (!PyErr_Occurred()) options->top_p = PyFloat_AsDouble(o[TOP_P]);
    if (!PyErr_Occurred()) options->seed = PyLong_AsUnsignedLongLong(o[SEED]);
    if (!PyErr_Occurred()) options->max_bytes = PyLong_AsLongLong(o[MAX_BYTES]);
    if (PyErr_Occurred()) return 0;
    int64_t dims[1];
    options->stop = asp_py_arrays_hold_copy(&g->held, o[STOP], ASP_PY_BYTE, 1, "stop", dims);
    if (!options->stop) return 0;
    if (dims[0] == n_vocab) return 1;
    PyErr_Format(PyExc_ValueError, "stop must have one value for each of the %lld tokens, got %lld", (long long)n_vocab,
                 (long long)dims[0]);
    return 0;
}

static int read_generation_options(generation_call *g, PyObject *object, int64_t n_vocab) {
    static const char *const names[] = {"max_new_tokens", "n_samples", "temperature", "top_k",
                                        "top_p",          "seed",      "stop",        "max_bytes"};
    PyObject *fields[FIELDS];
    if (!asp_py_module_fields(object, "GenerationOptions", names, FIELDS, fields)) return 0;
    const int good = read_generation_fields(g, fields, n_vocab);
    asp_py_module_forget(fields, FIELDS);
    return good;
}

static int hold_generated_fields(generation_call *g, PyObject **o, int64_t n_vocab) {
    int64_t dims[4][3] = {{0}};
    asp_generated *out = &g->out;
    if (!(out->n_new = asp_py_arrays_hold_out(&g->held, o[0], ASP_PY_INT64, 1, "n_new", dims[0])) ||
        !(out->tokens = asp_py_arrays_hold_out(&g->held, o[1], ASP_PY_INT32, 2, "tokens", dims[1])) ||
        !(out->logprobs = asp_py_arrays_hold_out(&g->held, o[2], ASP_PY_DOUBLE, 2, "logprobs", dims[2])))
        return 0;
    if (o[3] != Py_None && !(out->logits = asp_py_arrays_hold_out(&g->held, o[3], ASP_PY_REAL, 3, "logits", dims[3])))
        return 0;
    const int64_t most = g->options.max_new_tokens, n = dims[0][0];
    int good =
        g->options.n_samples > 0 && n % g->options.n_samples == 0 && n / g->options.n_samples == g->batch.n_sequences;
    for (int i = 1; i < (out->logits ? 4 : 3); i++) good = good && dims[i][0] == n && dims[i][1] == most;
    if (good && (!out->logits || dims[3][2] == n_vocab)) return 1;
    PyErr_SetString(PyExc_ValueError, "generated has arrays of another shape than the prompts and options need");
    return 0;
}

static int hold_generated(generation_call *g, PyObject *object, int64_t n_vocab) {
    static const char *const names[] = {"n_new", "tokens", "logprobs", "logits"};
    PyObject *fields[4];
    if (!asp_py_module_fields(object, "Generated", names, 4, fields)) return 0;
    const int good = hold_generated_fields(g, fields, n_vocab);
    asp_py_module_forget(fields, 4);
    return good;
}

static int run_generation(generation_call *g, py_model *model, int threads, PyObject *progress) {
    if (!asp_py_call_read_begin(model)) return 0;
    asp_error err = {0};
    py_call call;
    asp_py_call_begin(&call, asp_py_call_n_threads((PyObject *)model, threads));
    asp_py_call_report(&call, progress);
    g->options.hooks = asp_py_circuit_experiment_hooks(&g->experiment, &call);
    g->options.visitors = g->experiment.visitors;
    g->options.n_visitors = g->experiment.n_visitors;
    const asp_status status = asp_generation_run(&g->out, model->model, g->batch.tokens, g->batch.offsets,
                                                 g->batch.n_sequences, &g->options, &call.context, &err);
    asp_py_call_end(&call);
    asp_py_call_read_end(model);
    if (status) asp_py_call_raise(status, &err);
    return !status;
}

PyObject *asp_py_generation_of_model(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"tokens",    "offsets", "options",  "generated", "interventions", "threads", "progress",
                            "functions", "frozen",  "steering", NULL};
    PyObject *tokens, *offsets, *options, *generated, *progress = Py_None;
    py_experiment_objects given = {Py_None, Py_None, Py_None, Py_None};
    int threads = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|OiOOOO:generate", names, &tokens, &offsets, &options,
                                     &generated, &given.interventions, &threads, &progress, &given.functions,
                                     &given.frozen, &given.steering) ||
        !asp_py_call_check_threads(threads))
        return NULL;
    py_model *model = (py_model *)self;
    const asp_config *config = asp_model_config(model->model);
    generation_call g = {0};
    int good = asp_py_arrays_batch(&g.batch, tokens, offsets) &&
               read_generation_options(&g, options, config->n_vocab) && hold_generated(&g, generated, config->n_vocab);
    good = good && asp_py_circuit_experiment_read(&g.experiment, &given, model, &g.batch, g.options.n_samples);
    good = good && run_generation(&g, model, threads, progress);
    asp_py_circuit_experiment_free(&g.experiment);
    asp_py_arrays_let_go(&g.held);
    asp_py_arrays_batch_clear(&g.batch);
    if (!good) return NULL;
    Py_RETURN_NONE;
}
