/* py_model.c: the type Model: config, weights, and the calls that run it. */
#include "python/py.h"

#include <math.h>
#include <string.h>

/* ---- config -------------------------------------------------------------------------------- */

static PyObject *field(PyObject *config, const char *name) {
    PyObject *key = PyUnicode_FromString(name);
    PyObject *value = key ? PyDict_GetItemWithError(config, key) : NULL;
    Py_XDECREF(key);
    if (!value && !PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "config has no '%s'", name);
    return value;
}

static int read_int(PyObject *config, const char *name, int64_t *out) {
    PyObject *value = field(config, name);
    if (!value) return 0;
    *out = PyLong_AsLongLong(value);
    return !(*out == -1 && PyErr_Occurred());
}

static int read_double(PyObject *config, const char *name, double *out) {
    PyObject *value = field(config, name);
    if (!value) return 0;
    *out = PyFloat_AsDouble(value);
    return !(*out == -1.0 && PyErr_Occurred());
}

static int read_flag(PyObject *config, const char *name, int *out) {
    PyObject *value = field(config, name);
    if (value) *out = PyObject_IsTrue(value);
    return value && *out >= 0;
}

static const char *const activations[] = {"gelu_new", "gelu", "relu"};

static int read_activation(PyObject *config, asp_activation *out) {
    PyObject *value = field(config, "activation");
    const char *name = value ? PyUnicode_AsUTF8(value) : NULL;
    if (!name) return 0;
    for (int i = 0; i < 3; i++)
        if (strcmp(name, activations[i]) == 0) {
            *out = (asp_activation)i;
            return 1;
        }
    PyErr_Format(PyExc_ValueError, "activation must be gelu_new, gelu or relu, got '%.40s'", name);
    return 0;
}

static int read_config(PyObject *d, asp_config *c) {
    return read_int(d, "n_layer", &c->n_layer) && read_int(d, "n_head", &c->n_head) &&
           read_int(d, "d_model", &c->d_model) && read_int(d, "d_head", &c->d_head) &&
           read_int(d, "d_mlp", &c->d_mlp) && read_int(d, "n_ctx", &c->n_ctx) && read_int(d, "n_vocab", &c->n_vocab) &&
           read_activation(d, &c->activation) && read_double(d, "ln_eps", &c->ln_eps) &&
           read_flag(d, "gated", &c->gated) && read_double(d, "gate_bias", &c->gate_bias) &&
           read_flag(d, "self_closed", &c->self_closed) && read_flag(d, "tied", &c->tied) &&
           read_flag(d, "bias", &c->bias) && read_flag(d, "unembed_bias", &c->unembed_bias) &&
           read_flag(d, "scale_attn", &c->scale_attn) &&
           read_flag(d, "scale_by_inverse_layer", &c->scale_by_inverse_layer) && read_int(d, "window", &c->window) &&
           read_int(d, "top_k", &c->top_k) && read_double(d, "min_weight", &c->min_weight);
}

/* ---- life ------------------------------------------------------------------------------------- */

static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *dict;
    char *names[] = {"config", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!", names, &PyDict_Type, &dict)) return NULL;
    asp_config config = {0};
    PyObject *own = PyDict_Copy(dict); /* which nobody changes while it is read */
    const int complete = own && read_config(own, &config);
    Py_XDECREF(own);
    if (!complete) return NULL;
    py_model *self = (py_model *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    asp_error err = {0};
    asp_status status;
    Py_BEGIN_ALLOW_THREADS status = asp_model_new(&self->model, &config, &err);
    Py_END_ALLOW_THREADS if (!status) return (PyObject *)self;
    Py_DECREF(self);
    return asp_py_call_raise(status, &err);
}

static void model_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    asp_model_free(((py_model *)self)->model);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- weights ------------------------------------------------------------------------------------ */

static const asp_parameter *find_weight(py_model *self, PyObject *name) {
    const char *text = asp_py_module_name(name, "a parameter name");
    if (!text) return NULL;
    for (int64_t i = 0; i < asp_model_n_parameters(self->model); i++) {
        const asp_parameter *p = asp_model_parameter(self->model, i);
        if (strcmp(p->name, text) == 0) return p;
    }
    PyErr_Format(PyExc_KeyError, "this model has no parameter %R", name);
    return NULL;
}

static PyObject *lend_parameter(PyObject *self, PyObject *name, int writable) {
    const asp_parameter *p = find_weight((py_model *)self, name);
    if (!p) return NULL;
    return asp_py_arrays_lend(self, asp_model_data(((py_model *)self)->model) + p->offset, ASP_PY_REAL, p->n_dims,
                              p->dims, NULL, writable);
}

static PyObject *model_parameter(PyObject *self, PyObject *name) { return lend_parameter(self, name, 0); }
static PyObject *model_writable(PyObject *self, PyObject *name) { return lend_parameter(self, name, 1); }

static PyObject *dims_tuple(int n_dims, const int64_t *dims) {
    return n_dims == 2 ? Py_BuildValue("(LL)", (long long)dims[0], (long long)dims[1])
                       : Py_BuildValue("(L)", (long long)dims[0]);
}

static PyObject *model_shape(PyObject *self, PyObject *name) {
    const asp_parameter *p = find_weight((py_model *)self, name);
    return p ? dims_tuple(p->n_dims, p->dims) : NULL;
}

/* One item of an assignment: the parameter and its checked array, borrowed for the call. */
typedef struct {
    const asp_parameter *parameter;
    PyObject *array;
    void *data;
} assignment;

static int read_assignment(py_model *self, PyObject *name, PyObject *object, assignment *out) {
    int64_t dims[2] = {0};
    const asp_parameter *p = find_weight(self, name);
    out->array = p ? asp_py_arrays_borrow(object, ASP_PY_REAL, p->n_dims, p->name, &out->data, dims) : NULL;
    if (!out->array) return 0;
    out->parameter = p;
    if (dims[0] == p->dims[0] && (p->n_dims == 1 || dims[1] == p->dims[1])) return 1;
    PyObject *expected = dims_tuple(p->n_dims, p->dims), *got = dims_tuple(p->n_dims, dims);
    if (expected && got) PyErr_Format(PyExc_ValueError, "%s: expected shape %S, got %S", p->name, expected, got);
    Py_XDECREF(expected);
    Py_XDECREF(got);
    return 0;
}

/* All or nothing: every array is checked before the first is written. */
static PyObject *model_assign(PyObject *self, PyObject *weights) {
    py_model *model = (py_model *)self;
    if (!PyDict_Check(weights))
        return PyErr_Format(PyExc_TypeError, "weights must be a dict from names to arrays, got %.80s",
                            Py_TYPE(weights)->tp_name);
    PyObject *items = PyDict_Copy(weights), *name, *object;
    assignment *list = items ? PyMem_Calloc((size_t)PyDict_Size(items) + 1, sizeof *list) : NULL;
    Py_ssize_t at = 0, n = 0;
    int complete = list != NULL;
    if (items && !list) PyErr_NoMemory();
    while (complete && PyDict_Next(items, &at, &name, &object))
        complete = read_assignment(model, name, object, &list[n++]);
    if (complete && asp_py_call_write_begin(model)) {
        Py_BEGIN_ALLOW_THREADS for (Py_ssize_t i = 0; i < n; i++)
            memcpy(asp_model_data(model->model) + list[i].parameter->offset, list[i].data,
                   (size_t)list[i].parameter->size * sizeof(asp_real));
        Py_END_ALLOW_THREADS asp_py_call_write_end(model);
    }
    for (Py_ssize_t i = 0; i < n; i++) Py_XDECREF(list[i].array);
    PyMem_Free(list);
    Py_XDECREF(items);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

static PyObject *model_nonfinite(PyObject *self, PyObject *unused) {
    (void)unused;
    asp_model *model = ((py_model *)self)->model;
    for (int64_t i = 0; i < asp_model_n_parameters(model); i++) {
        const asp_parameter *p = asp_model_parameter(model, i);
        int64_t first, count;
        if (PyErr_CheckSignals()) return NULL;
        Py_BEGIN_ALLOW_THREADS count = asp_model_count_nonfinite(asp_model_data(model) + p->offset, p->size, &first);
        Py_END_ALLOW_THREADS if (count) return Py_BuildValue("(sLL)", p->name, (long long)count, (long long)first);
    }
    Py_RETURN_NONE;
}

/* 1 if this thread alone may move the weights to other memory, which keeps their numbers: no change of them.  0
 * while another thread does, with an exception while one changes them. */
static int sharing_begin(py_model *model, py_call *call) {
    int idle = 0;
    if (!asp_py_call_read_begin(model)) return 0;
    if (atomic_compare_exchange_strong(&model->sharing, &idle, 1)) {
        asp_py_call_begin(call, 1);
        return 1;
    }
    asp_py_call_read_end(model);
    return 0;
}

static void sharing_end(py_model *model, py_call *call) {
    asp_py_call_end(call);
    atomic_store(&model->sharing, 0);
    asp_py_call_read_end(model);
}

static PyObject *model_share(PyObject *self, PyObject *unused) {
    (void)unused;
    py_model *model = (py_model *)self;
    int descriptor = -1;
    py_call call;
    asp_status status = ASP_OK;
    if (sharing_begin(model, &call)) {
        status = asp_model_share(model->model, &descriptor, &call.context);
        sharing_end(model, &call);
    }
    if (status) return asp_py_call_raise(status, &(asp_error){0});
    if (PyErr_Occurred()) return NULL;
    return descriptor < 0 ? Py_NewRef(Py_None) : PyLong_FromLong(descriptor);
}

static PyObject *model_take_shared(PyObject *self, PyObject *object) {
    py_model *model = (py_model *)self;
    const int descriptor = PyObject_AsFileDescriptor(object);
    int taken = 0;
    py_call call;
    asp_status status = ASP_OK;
    if (descriptor >= 0 && sharing_begin(model, &call)) {
        status = asp_model_take_shared(model->model, descriptor, &taken, &call.context);
        sharing_end(model, &call);
    }
    if (status) return asp_py_call_raise(status, &(asp_error){0});
    return PyErr_Occurred() ? NULL : PyBool_FromLong(taken);
}

static PyObject *model_names(PyObject *self, void *unused) {
    (void)unused;
    asp_model *model = ((py_model *)self)->model;
    PyObject *names = PyTuple_New((Py_ssize_t)asp_model_n_parameters(model));
    for (int64_t i = 0; names && i < asp_model_n_parameters(model); i++) {
        PyObject *name = PyUnicode_FromString(asp_model_parameter(model, i)->name);
        if (!name) Py_CLEAR(names);
        else PyTuple_SET_ITEM(names, (Py_ssize_t)i, name);
    }
    return names;
}

static PyObject *model_version(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(atomic_load(&((py_model *)self)->version));
}

static PyObject *model_config(PyObject *self, void *unused) {
    (void)unused;
    const asp_config *c = asp_model_config(((py_model *)self)->model);
#define FLAG(x) ((x) ? Py_True : Py_False)
    return Py_BuildValue("{s:L,s:L,s:L,s:L,s:L,s:L,s:L,s:s,s:d,s:O,s:d,s:O,s:O,s:O,s:O,s:O,s:O,s:L,s:L,s:d}", "n_layer",
                         (long long)c->n_layer, "n_head", (long long)c->n_head, "d_model", (long long)c->d_model,
                         "d_head", (long long)c->d_head, "d_mlp", (long long)c->d_mlp, "n_ctx", (long long)c->n_ctx,
                         "n_vocab", (long long)c->n_vocab, "activation", activations[c->activation], "ln_eps",
                         c->ln_eps, "gated", FLAG(c->gated), "gate_bias", c->gate_bias, "self_closed",
                         FLAG(c->self_closed), "tied", FLAG(c->tied), "bias", FLAG(c->bias), "unembed_bias",
                         FLAG(c->unembed_bias), "scale_attn", FLAG(c->scale_attn), "scale_by_inverse_layer",
                         FLAG(c->scale_by_inverse_layer), "window", (long long)c->window, "top_k", (long long)c->top_k,
                         "min_weight", c->min_weight);
#undef FLAG
}

/* ---- run and gradients ----------------------------------------------------------------------------- */

int asp_py_model_records(PyObject *names, uint64_t *records) {
    PyObject *items = asp_py_module_tuple(names, "record must be a sequence of names");
    if (!items) return 0;
    *records = 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items); i++) {
        const char *name = asp_py_module_name(PyTuple_GET_ITEM(items, i), "a record name");
        int r = 0;
        while (name && r < ASP_N_RECORDS && strcmp(name, asp_run_record_name((asp_record)r)) != 0) r++;
        if (!name || r == ASP_N_RECORDS) {
            if (name) PyErr_Format(PyExc_ValueError, "there is no record '%.60s'", name);
            Py_DECREF(items);
            return 0;
        }
        *records |= (uint64_t)1 << r;
    }
    Py_DECREF(items);
    return 1;
}

/* An empty Run of a model that may be read; NULL and an exception if it may not. */
static py_run *run_begin(py_model *model) {
    PyTypeObject *type = asp_py_module_state(Py_TYPE((PyObject *)model))->run_type;
    if (!asp_py_call_read_begin(model)) return NULL;
    py_run *run = (py_run *)type->tp_alloc(type, 0);
    if (!run) {
        asp_py_call_read_end(model);
        return NULL;
    }
    run->model = (py_model *)Py_NewRef((PyObject *)model);
    run->version = atomic_load(&model->version);
    return run;
}

/* What a run is asked for beside its options; let go together. */
typedef struct {
    py_batch batch;
    py_experiment experiment;
    py_substitute *substitute;
} run_inputs;

static int read_run_inputs(run_inputs *in, py_model *model, PyObject *tokens, PyObject *offsets,
                           const py_experiment_objects *given, PyObject *substitute) {
    if (!asp_py_arrays_batch(&in->batch, tokens, offsets) ||
        !asp_py_circuit_experiment_read(&in->experiment, given, model, &in->batch, 1))
        return 0;
    if (substitute == Py_None) return 1;
    in->substitute = asp_py_features_substitute_new(substitute, model, in->batch.n_tokens);
    return in->substitute != NULL;
}

static asp_status call_run(py_run *run, run_inputs *in, asp_run_options *options, int threads, asp_error *err) {
    py_call call;
    options->hooks = asp_py_circuit_experiment_hooks(&in->experiment, &call);
    options->visitors = in->experiment.visitors;
    options->n_visitors = in->experiment.n_visitors;
    if (in->substitute) options->substitute = asp_py_features_substitute_given(in->substitute, &call, err);
    asp_py_call_begin(&call, threads);
    const asp_status status = asp_run_new(&run->run, run->model->model, in->batch.tokens, in->batch.offsets,
                                          in->batch.n_sequences, options, &call.context, err);
    asp_py_call_end(&call);
    return status;
}

static PyObject *model_run(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"tokens",         "offsets",  "record",        "logits",     "max_bytes",
                            "edge_threshold", "threads",  "interventions", "substitute", "functions",
                            "frozen",         "steering", "stop_at",       NULL};
    PyObject *tokens, *offsets, *record, *threshold = Py_None, *substitute = Py_None;
    py_experiment_objects given = {Py_None, Py_None, Py_None, Py_None};
    asp_run_options options = {.logits = ASP_LOGITS_ALL};
    long long max_bytes = INT64_MAX, stop_at = 0;
    int threads = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|iLOiOOOOOL:run", names, &tokens, &offsets, &record,
                                     &options.logits, &max_bytes, &threshold, &threads, &given.interventions,
                                     &substitute, &given.functions, &given.frozen, &given.steering, &stop_at))
        return NULL;
    if (!asp_py_call_check_threads(threads)) return NULL;
    if (options.logits < ASP_LOGITS_NONE || options.logits > ASP_LOGITS_ALL)
        return PyErr_Format(PyExc_ValueError, "logits must be 0 (none), 1 (last) or 2 (all), got %d", options.logits);
    options.max_bytes = max_bytes;
    options.stop_at = stop_at;
    options.edges = threshold != Py_None;
    if (options.edges) options.edge_threshold = PyFloat_AsDouble(threshold);
    if (PyErr_Occurred() || !asp_py_model_records(record, &options.records)) return NULL;
    py_model *model = (py_model *)self;
    run_inputs in = {0};
    asp_status status = ASP_BAD_ARGUMENT;
    py_run *run = read_run_inputs(&in, model, tokens, offsets, &given, substitute) ? run_begin(model) : NULL;
    if (run) {
        asp_error err = {0};
        status = call_run(run, &in, &options, asp_py_call_n_threads(self, threads), &err);
        asp_py_call_read_end(model);
        if (status) {
            asp_py_call_raise(status, &err);
            Py_CLEAR(run);
        }
    }
    asp_py_features_substitute_free(in.substitute, status);
    asp_py_circuit_experiment_free(&in.experiment);
    asp_py_arrays_batch_clear(&in.batch);
    return (PyObject *)run;
}

static PyMethodDef methods[] = {
    {"parameter", model_parameter, METH_O, "parameter(name): read-only view of one weight array."},
    {"_writable", model_writable, METH_O, "_writable(name): view for loaders that fill a new model."},
    {"shape", model_shape, METH_O, "shape(name): shape of one weight array."},
    {"assign", model_assign, METH_O, "assign({name: array}): copies arrays into the weights, all or none."},
    {"share", model_share, METH_NOARGS,
     "share() -> descriptor of the memory of the weights, for take_shared elsewhere; None if it cannot be shared."},
    {"take_shared", model_take_shared, METH_O,
     "take_shared(descriptor) -> True if it holds the same weights, is now used, and belongs to the model."},
    {"reading", asp_py_call_reading, METH_NOARGS,
     "reading() -> context manager: nobody changes the weights meanwhile."},
    {"nonfinite", model_nonfinite, METH_NOARGS, "None, or (name, count, first flat index) of the first bad array."},
    {"stacked", asp_py_lens_stacked, METH_O, "stacked(name): read-only view of one weight array of all layers."},
    {"composition", asp_py_lens_composition, METH_NOARGS,
     "composition() -> scores (3,L,H,L,H): how much later heads read of earlier ones, as q, k and v."},
    {"lens_project", asp_py_lens_project, METH_VARARGS,
     "lens_project(stack (n,rows,E), scale (rows), right (rows), wrong or None) -> (n,rows) added to logits"},
    {"run", (PyCFunction)(void (*)(void))model_run, METH_VARARGS | METH_KEYWORDS,
     "run(tokens, offsets, record, logits=2, max_bytes=..., edge_threshold=None, threads=0, interventions=None, "
     "substitute=None, functions=None, frozen=None, steering=None, stop_at=0) -> Run"},
    {"generate", (PyCFunction)(void (*)(void))asp_py_generation_of_model, METH_VARARGS | METH_KEYWORDS,
     "generate(tokens, offsets, options, generated, interventions=None, threads=0, progress=None, functions=None, "
     "frozen=None, steering=None): writes new tokens into the arrays of `generated`"},
    {"candidates", (PyCFunction)(void (*)(void))asp_py_effects_candidates, METH_VARARGS | METH_KEYWORDS,
     "candidates(task, unit, threads=0) -> items that can have an effect"},
    {"whole", (PyCFunction)(void (*)(void))asp_py_effects_whole, METH_VARARGS | METH_KEYWORDS,
     "whole(task, threads=0) -> metric (P) of the whole model"},
    {"component_values", (PyCFunction)(void (*)(void))asp_py_component_values, METH_VARARGS | METH_KEYWORDS,
     "component_values(task, masks, options, threads=0, progress=None) -> metric (n,P) of circuits"},
    {"component_neuron_values", (PyCFunction)(void (*)(void))asp_py_component_values_of_neurons,
     METH_VARARGS | METH_KEYWORDS,
     "component_neuron_values(task, neurons, options, threads=0, progress=None) -> metric (n,P) of circuits"},
    {"component_exact", (PyCFunction)(void (*)(void))asp_py_component_values_exact, METH_VARARGS | METH_KEYWORDS,
     "component_exact(task, edges, options, threads=0, progress=None) -> scores (S,R) of component edges, those from "
     "one number to before another"},
    {"patching_sweep", (PyCFunction)(void (*)(void))asp_py_patching_sweep, METH_VARARGS | METH_KEYWORDS,
     "patching_sweep(task, kind, by_position, denoising, held_gate, layers, positions, max_bytes, threads=0, "
     "progress=None) -> metric "
     "(layers,heads,positions,P) with each activation alone replaced, (P) of the base run, (P) of the other one"},
    {"path_values", (PyCFunction)(void (*)(void))asp_py_patching_paths, METH_VARARGS | METH_KEYWORDS,
     "path_values(task, senders, receivers, positions, denoising, held_gate, max_bytes, threads=0, progress=None) -> "
     "metric (n,P) with each set of paths patched, (P) of the base run, (P) of the other one"},
    {"component_acdc", (PyCFunction)(void (*)(void))asp_py_component_values_acdc, METH_VARARGS | METH_KEYWORDS,
     "component_acdc(task, threshold, options, threads=0, progress=None, state=None, keep=None) -> (mask (S,R), "
     "scores (S,R))"},
    {"component_gradients", (PyCFunction)(void (*)(void))asp_py_component_values_gradients,
     METH_VARARGS | METH_KEYWORDS,
     "component_gradients(task, masks, options, threads=0, progress=None) -> (metric (n,P) with masks, its gradients "
     "(n,S,R))"},
    {"component_masks", (PyCFunction)(void (*)(void))asp_py_component_values_masks, METH_VARARGS | METH_KEYWORDS,
     "component_masks(task, step, end, parameters, multipliers, options, threads=0, progress=None) -> (parameters "
     "(3,n), multipliers (3,4), history (end-step,8), expected (n)) after the steps"},
    {"knock_out", (PyCFunction)(void (*)(void))asp_py_effects_knock_out, METH_VARARGS | METH_KEYWORDS,
     "knock_out(task, items, options, threads=0, progress=None) -> metric (n,P) without each item"},
    {"keep_only", (PyCFunction)(void (*)(void))asp_py_effects_keep_only, METH_VARARGS | METH_KEYWORDS,
     "keep_only(task, items, sizes, options, threads=0, progress=None) -> metric (n_sizes,P)"},
    {"leave_one_out", (PyCFunction)(void (*)(void))asp_py_effects_leave_one_out, METH_VARARGS | METH_KEYWORDS,
     "leave_one_out(task, items, dropped, options, threads=0, progress=None) -> metric (n_dropped,P)"},
    {"attribution", (PyCFunction)(void (*)(void))asp_py_effects_attribution, METH_VARARGS | METH_KEYWORDS,
     "attribution(task, options, steps, through_gate, threads=0, progress=None) -> scores"},
    {"component_scores", (PyCFunction)(void (*)(void))asp_py_component_scores, METH_VARARGS | METH_KEYWORDS,
     "component_scores(task, options, threads=0, progress=None) -> scores"},
    {"component_senders_before", asp_py_component_senders_before, METH_NOARGS,
     "component_senders_before() -> how many senders come before each receiver"},
    {"circuit", asp_py_find_circuit, METH_VARARGS,
     "circuit(ranking, evaluation, items, options) -> Circuit, a search that has not begun"},
    {"promoted_tokens", (PyCFunction)(void (*)(void))asp_py_contexts_promoted, METH_VARARGS | METH_KEYWORDS,
     "promoted_tokens(rows, n, threads=0) -> (tokens, effects): what features raise and lower most."},
    {"graph_edges", (PyCFunction)(void (*)(void))asp_py_graph_edges, METH_VARARGS | METH_KEYWORDS,
     "graph_edges(frozen, writes, reads, threads=0) -> (edges, bias)"},
    {"graph_logits", (PyCFunction)(void (*)(void))asp_py_graph_logits, METH_VARARGS | METH_KEYWORDS,
     "graph_logits(logits, tokens, wrong, threads=0) -> (vectors, constant, value)"},
    {"graph_build", (PyCFunction)(void (*)(void))asp_py_graph_build, METH_VARARGS | METH_KEYWORDS,
     "graph_build(frozen, writes, features, logits, probability, tokens, most, max_bytes, threads=0, progress=None) -> "
     "(graph, "
     "chosen, "
     "closure, closure_absolute)"},
    {"gradients", (PyCFunction)(void (*)(void))asp_py_run_gradients, METH_VARARGS | METH_KEYWORDS,
     "gradients(tokens, offsets, record, parameters, dlogits, targets, weights, straight_through=False, "
     "max_bytes=..., threads=0) -> Gradients"},
    {0}};

static PyGetSetDef attributes[] = {{"names", model_names, NULL, "Names of the weight arrays.", NULL},
                                   {"version", model_version, NULL, "Changes with every change of the weights.", NULL},
                                   {"config", model_config, NULL, "The configuration as a dict.", NULL},
                                   {0}};

static PyType_Slot slots[] = {{Py_tp_new, model_new},
                              {Py_tp_dealloc, model_dealloc},
                              {Py_tp_methods, methods},
                              {Py_tp_getset, attributes},
                              {Py_tp_doc, "Model(config): a model with zero weights."},
                              {0, NULL}};
PyType_Spec asp_py_model_spec = {ASP_MODULE ".Model", sizeof(py_model), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, slots};
