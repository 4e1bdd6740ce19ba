/* py_features.c: the type Features, and the Python object that is asked for the weights of transcoders. */
#include "python/py.h"

#include <string.h>

/* ---- the source ---------------------------------------------------------------------------- */

enum { HELD_BIAS, HELD_SKIP, HELD_W_ENC, HELD_B_ENC, HELD_THRESHOLD, HELD_ROWS, N_HELD };

/* Asked while the GIL is released; what it gave last is held until the next answer of its kind. */
typedef struct {
    PyObject *object;
    const asp_config *config;
    py_call *call;
    PyObject *held[N_HELD];
} py_source;

static void drop_source(py_source *s) {
    for (int i = 0; i < N_HELD; i++) Py_CLEAR(s->held[i]);
}

static int hold(py_source *s, int which, PyObject *object, int n_dims, const char *name, const asp_real **out,
                int64_t *dims) {
    void *data;
    Py_CLEAR(s->held[which]);
    *out = NULL;
    if (object == Py_None && (which == HELD_SKIP || which == HELD_THRESHOLD)) return 1;
    s->held[which] = asp_py_arrays_borrow(object, ASP_PY_REAL, n_dims, name, &data, dims);
    if (!s->held[which]) return 0;
    *out = data;
    return 1;
}

static int wrong_layer_shape(const char *name, int64_t layer) {
    PyErr_Format(PyExc_ValueError, "%s of layer %lld has the wrong shape", name, (long long)layer);
    return 0;
}

/* What method(layer) returned: a tuple of n items, or NULL and an exception. */
static PyObject *ask_source(const py_source *s, const char *method, int64_t layer, Py_ssize_t n) {
    PyObject *answer = PyObject_CallMethod(s->object, method, "L", (long long)layer);
    if (answer && (!PyTuple_Check(answer) || PyTuple_GET_SIZE(answer) != n)) {
        PyErr_Format(PyExc_TypeError, "%s must return a tuple of %zd, got %.80s", method, n, Py_TYPE(answer)->tp_name);
        Py_CLEAR(answer);
    }
    return answer;
}

static int read_output(py_source *s, int64_t layer, asp_transcoder_output *out) {
    const int64_t e = s->config->d_model;
    int64_t bias[1], skip[2] = {e, e};
    PyObject *answer = ask_source(s, "output", layer, 2);
    int good = answer && hold(s, HELD_BIAS, PyTuple_GET_ITEM(answer, 0), 1, "output_bias", &out->bias, bias) &&
               hold(s, HELD_SKIP, PyTuple_GET_ITEM(answer, 1), 2, "skip", &out->skip, skip);
    if (good && bias[0] != e) good = wrong_layer_shape("output_bias", layer);
    if (good && (skip[0] != e || skip[1] != e)) good = wrong_layer_shape("skip", layer);
    Py_XDECREF(answer);
    return good;
}

static int read_encoder(py_source *s, int64_t layer, asp_encoder *out) {
    int64_t weight[2], bias[1], threshold[1];
    PyObject *answer = ask_source(s, "encoder", layer, 3);
    int good = answer && hold(s, HELD_W_ENC, PyTuple_GET_ITEM(answer, 0), 2, "w_enc", &out->weight, weight) &&
               hold(s, HELD_B_ENC, PyTuple_GET_ITEM(answer, 1), 1, "b_enc", &out->bias, bias) &&
               hold(s, HELD_THRESHOLD, PyTuple_GET_ITEM(answer, 2), 1, "threshold", &out->threshold, threshold);
    if (good && (weight[0] < 1 || weight[0] > INT32_MAX || weight[1] != s->config->d_model))
        good = wrong_layer_shape("w_enc", layer);
    if (good && bias[0] != weight[0]) good = wrong_layer_shape("b_enc", layer);
    if (good && out->threshold && threshold[0] != weight[0]) good = wrong_layer_shape("threshold", layer);
    if (good) out->n_features = weight[0];
    Py_XDECREF(answer);
    return good;
}

static int read_rows(py_source *s, int64_t layer, const int64_t *features, int64_t n, int64_t n_writes,
                     const asp_real **rows) {
    void *copy;
    int64_t dims[3];
    PyObject *numbers = asp_py_arrays_new(ASP_PY_INT64, 1, &n, &copy);
    if (!numbers) return 0;
    memcpy(copy, features, (size_t)n * sizeof *features);
    Py_CLEAR(s->held[HELD_ROWS]);
    PyObject *answer = PyObject_CallMethod(s->object, "rows", "LO", (long long)layer, numbers);
    int good = answer && hold(s, HELD_ROWS, answer, 3, "decoder rows", rows, dims);
    if (good && (dims[0] != n || dims[1] != n_writes || dims[2] != s->config->d_model))
        good = wrong_layer_shape("w_dec", layer);
    Py_XDECREF(answer);
    Py_DECREF(numbers);
    return good;
}

/* The exception stays set; ASP_STOPPED brings it out. */
static asp_status source_output(void *state, int64_t layer, asp_transcoder_output *out) {
    py_source *s = state;
    asp_py_call_attach(s->call);
    const int good = read_output(s, layer, out);
    asp_py_call_detach(s->call);
    return good ? ASP_OK : ASP_STOPPED;
}

static asp_status source_encoder(void *state, int64_t layer, asp_encoder *out) {
    py_source *s = state;
    asp_py_call_attach(s->call);
    const int good = read_encoder(s, layer, out);
    asp_py_call_detach(s->call);
    return good ? ASP_OK : ASP_STOPPED;
}

static asp_status source_rows(void *state, int64_t layer, const int64_t *features, int64_t n, int64_t n_writes,
                              const asp_real **rows) {
    py_source *s = state;
    asp_py_call_attach(s->call);
    const int good = read_rows(s, layer, features, n, n_writes, rows);
    asp_py_call_detach(s->call);
    return good ? ASP_OK : ASP_STOPPED;
}

static asp_transcoder_source source_of(py_source *s) {
    return (asp_transcoder_source){source_output, source_encoder, source_rows, s};
}

/* ---- Features -------------------------------------------------------------------------------- */

int asp_py_features_activation(const char *name, asp_transcoder_activation *activation) {
    static const char *const names[] = {"relu", "jump_relu", "topk"};
    for (int i = 0; i < 3; i++)
        if (strcmp(name, names[i]) == 0) {
            *activation = (asp_transcoder_activation)i;
            return 1;
        }
    PyErr_Format(PyExc_ValueError, "activation must be relu, jump_relu or topk, got '%.40s'", name);
    return 0;
}

/* absent: None, or bytes with one for each layer, which coder borrows. */
static int read_absent(PyObject *absent, int64_t n_layer, asp_transcoder *coder) {
    if (absent == Py_None) return 1;
    if (!PyBytes_Check(absent) || PyBytes_GET_SIZE(absent) != n_layer) {
        PyErr_Format(PyExc_ValueError, "absent must be %lld bytes, one for each layer", (long long)n_layer);
        return 0;
    }
    coder->absent = (const uint8_t *)PyBytes_AS_STRING(absent);
    return 1;
}

static PyObject *features_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"model",    "n_tokens",  "activation", "top_k", "cross_layer",
                            "from_mid", "max_bytes", "absent",     NULL};
    PyObject *model, *absent = Py_None;
    const char *activation;
    long long n_tokens, top_k = 0, max_bytes = INT64_MAX;
    asp_transcoder coder = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OLs|LppLO:Features", names, &model, &n_tokens, &activation, &top_k,
                                     &coder.cross_layer, &coder.from_mid, &max_bytes, &absent))
        return NULL;
    if (!Py_IS_TYPE(model, asp_py_module_state(type)->model_type))
        return PyErr_Format(PyExc_TypeError, "model must be a Model, got %.80s", Py_TYPE(model)->tp_name);
    if (!asp_py_features_activation(activation, &coder.activation)) return NULL;
    coder.top_k = top_k;
    py_features *self = (py_features *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    asp_error err = {0};
    asp_status status = ASP_OK;
    self->model = (py_model *)Py_NewRef(model);
    self->n_tokens = n_tokens;
    self->from_mid = coder.from_mid;
    const int good = read_absent(absent, asp_model_config(self->model->model)->n_layer, &coder);
    if (good) status = asp_features_new(&self->features, self->model->model, n_tokens, &coder, max_bytes, &err);
    if (good && !status) return (PyObject *)self;
    Py_DECREF(self);
    return good ? asp_py_call_raise(status, &err) : NULL;
}

static void features_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    asp_features_free(((py_features *)self)->features);
    Py_XDECREF((PyObject *)((py_features *)self)->model);
    type->tp_free(self);
    Py_DECREF(type);
}

/* Features are filled once; 0 and RuntimeError if another call has begun to. */
static int fill_begin(py_features *self) {
    int fresh = ASP_PY_FEATURES_NEW;
    if (atomic_compare_exchange_strong(&self->stage, &fresh, ASP_PY_FEATURES_BUSY)) return 1;
    PyErr_SetString(PyExc_RuntimeError, "these features have been filled, or are being filled in another thread");
    return 0;
}

static PyObject *features_fill(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"run", "first", "source", "threads", NULL};
    py_features *self = (py_features *)object;
    PyObject *run, *source;
    long long first;
    int threads = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OLO|i:fill", names, &run, &first, &source, &threads)) return NULL;
    if (!asp_py_call_check_threads(threads)) return NULL;
    if (!Py_IS_TYPE(run, asp_py_module_state(Py_TYPE(object))->run_type))
        return PyErr_Format(PyExc_TypeError, "run must be a Run, got %.80s", Py_TYPE(run)->tp_name);
    if (!asp_py_run_is_current((py_run *)run, self->model) || !fill_begin(self)) return NULL;
    asp_error err = {0};
    py_call call;
    py_source s = {.object = source, .config = asp_model_config(self->model->model), .call = &call};
    const asp_transcoder_source coder_source = source_of(&s);
    asp_py_call_begin(&call, asp_py_call_n_threads(object, threads));
    const asp_status status =
        asp_features_of_run(self->features, ((py_run *)run)->run, first, &coder_source, &call.context, &err);
    asp_py_call_end(&call);
    drop_source(&s);
    if (status) return asp_py_call_raise(status, &err);
    atomic_store(&self->stage, ASP_PY_FEATURES_COMPLETE);
    Py_RETURN_NONE;
}

static PyObject *features_array(PyObject *object, PyObject *name) {
    py_features *self = (py_features *)object;
    const char *text = asp_py_module_name(name, "an array name");
    if (!text) return NULL;
    if (atomic_load(&self->stage) != ASP_PY_FEATURES_COMPLETE) {
        PyErr_SetString(PyExc_RuntimeError, "these features are not complete");
        return NULL;
    }
    const asp_feature_list list = asp_features_list(self->features);
    const int64_t starts = asp_model_config(self->model->model)->n_layer + 1;
    const struct {
        const char *name;
        const void *data;
        int kind;
        int64_t n;
    } lists[] = {{"start", list.start, ASP_PY_INT64, starts},
                 {"layer", list.layer, ASP_PY_INT32, list.n},
                 {"position", list.position, ASP_PY_INT32, list.n},
                 {"feature", list.feature, ASP_PY_INT32, list.n},
                 {"activation", list.activation, ASP_PY_REAL, list.n}};
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++)
        if (strcmp(text, lists[i].name) == 0)
            return asp_py_arrays_lend(object, (void *)(uintptr_t)lists[i].data, lists[i].kind, 1, &lists[i].n, NULL, 0);
    const asp_array error = asp_features_error(self->features);
    if (strcmp(text, "reconstruction") == 0)
        return asp_py_arrays_lend_array(object, asp_features_reconstruction(self->features));
    if (strcmp(text, "error") == 0 && error.data) return asp_py_arrays_lend_array(object, error);
    return PyErr_Format(PyExc_KeyError, "these features have no array %R", name);
}

static PyObject *features_bytes(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(asp_features_bytes(((py_features *)self)->features));
}

static PyMethodDef features_methods[] = {
    {"fill", (PyCFunction)(void (*)(void))features_fill, METH_VARARGS | METH_KEYWORDS,
     "fill(run, first, source, threads=0): finds the features of n_tokens rows of a run, from row `first` on."},
    {"array", features_array, METH_O, "array(name): read-only view of one array."},
    {0}};

static PyGetSetDef features_attributes[] = {{"nbytes", features_bytes, NULL, "Bytes in use.", NULL}, {0}};

static PyType_Slot features_slots[] = {{Py_tp_new, features_new},
                                       {Py_tp_dealloc, features_dealloc},
                                       {Py_tp_methods, features_methods},
                                       {Py_tp_getset, features_attributes},
                                       {Py_tp_doc, "Features(model, n_tokens, activation, top_k=0, cross_layer=False, "
                                                   "from_mid=False, max_bytes=..., absent=None): to be filled once."},
                                       {0, NULL}};
PyType_Spec asp_py_features_spec = {ASP_MODULE ".Features", sizeof(py_features), 0,
                                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, features_slots};

/* ---- in place of the MLPs ------------------------------------------------------------------------ */

struct py_substitute {
    py_features *features, *held_features;
    PyObject *errors, *held_layers;
    py_held held;
    asp_feature_changes changes;
    py_source source;
    asp_transcoder_source coder_source;
    asp_feature_substitute state;
    asp_mlp_substitute substitute;
};

static int read_errors(py_substitute *s, PyObject *errors, const asp_config *config, int64_t n_tokens) {
    void *data;
    int64_t dims[3];
    if (errors == Py_None) return 1;
    s->errors = asp_py_arrays_borrow(errors, ASP_PY_REAL, 3, "errors", &data, dims);
    s->state.errors = s->errors ? data : NULL;
    if (!s->errors) return 0;
    if (dims[0] == config->n_layer && dims[1] == n_tokens && dims[2] == config->d_model) return 1;
    PyErr_Format(PyExc_ValueError, "errors must have shape (%lld, %lld, %lld), got (%lld, %lld, %lld)",
                 (long long)config->n_layer, (long long)n_tokens, (long long)config->d_model, (long long)dims[0],
                 (long long)dims[1], (long long)dims[2]);
    return 0;
}

/* The five lists, as long as each other. */
static int read_change_lists(py_substitute *s, PyObject **fields) {
    asp_feature_changes *c = &s->changes;
    int64_t n[5];
    if (!(c->layer = asp_py_arrays_hold(&s->held, fields[0], ASP_PY_INT32, 1, "layer", &n[0])) ||
        !(c->row = asp_py_arrays_hold(&s->held, fields[1], ASP_PY_INT32, 1, "row", &n[1])) ||
        !(c->feature = asp_py_arrays_hold(&s->held, fields[2], ASP_PY_INT32, 1, "feature", &n[2])) ||
        !(c->factor = asp_py_arrays_hold(&s->held, fields[3], ASP_PY_REAL, 1, "factor", &n[3])) ||
        !(c->added = asp_py_arrays_hold(&s->held, fields[4], ASP_PY_REAL, 1, "added", &n[4])))
        return 0;
    c->n = n[0];
    for (int i = 1; i < 5; i++)
        if (n[i] != n[0]) {
            PyErr_SetString(PyExc_ValueError, "the lists of changes of features must be equally long");
            return 0;
        }
    return 1;
}

/* Features that are complete, and which layers are held at them. */
static int read_held_features(py_substitute *s, py_model *model, PyObject *features, PyObject *layers) {
    const int64_t n_layer = asp_model_config(model->model)->n_layer;
    if (features == Py_None) return 1;
    if (!Py_IS_TYPE(features, asp_py_module_state(Py_TYPE((PyObject *)model))->features_type)) {
        PyErr_Format(PyExc_TypeError, "held must be Features, got %.80s", Py_TYPE(features)->tp_name);
        return 0;
    }
    if (((py_features *)features)->model != model ||
        atomic_load(&((py_features *)features)->stage) != ASP_PY_FEATURES_COMPLETE) {
        PyErr_SetString(PyExc_ValueError, "held must be complete Features of the same model");
        return 0;
    }
    if (!PyBytes_Check(layers) || PyBytes_GET_SIZE(layers) != n_layer) {
        PyErr_Format(PyExc_ValueError, "held_layers must be %lld bytes, one for each layer", (long long)n_layer);
        return 0;
    }
    s->held_features = (py_features *)Py_NewRef(features);
    s->held_layers = Py_NewRef(layers);
    s->changes.held = s->held_features->features;
    s->changes.held_layers = (const uint8_t *)PyBytes_AS_STRING(layers);
    return 1;
}

static int read_changes(py_substitute *s, py_model *model, PyObject *changes) {
    static const char *const names[] = {"layer", "row", "feature", "factor", "added", "held", "held_layers"};
    PyObject *fields[7];
    if (changes == Py_None) return 1;
    if (!asp_py_module_fields(changes, "FeatureChanges", names, 7, fields)) return 0;
    const int good = read_change_lists(s, fields) && read_held_features(s, model, fields[5], fields[6]);
    asp_py_module_forget(fields, 7);
    if (good) s->state.changes = &s->changes;
    return good;
}

static py_substitute *new_substitute(PyObject **fields, py_model *model, int64_t n_tokens) {
    PyObject *features = fields[0], *source = fields[1], *errors = fields[2];
    if (!Py_IS_TYPE(features, asp_py_module_state(Py_TYPE((PyObject *)model))->features_type)) {
        PyErr_Format(PyExc_TypeError, "substitute needs Features, got %.80s", Py_TYPE(features)->tp_name);
        return NULL;
    }
    if (((py_features *)features)->model != model || ((py_features *)features)->n_tokens != n_tokens) {
        PyErr_SetString(PyExc_ValueError, "these Features are of another model or of another number of tokens");
        return NULL;
    }
    py_substitute *s = PyMem_Calloc(1, sizeof *s);
    if (!s) {
        PyErr_NoMemory();
        return NULL;
    }
    const asp_config *config = asp_model_config(model->model);
    s->source = (py_source){.object = Py_NewRef(source), .config = config};
    if (read_errors(s, errors, config, n_tokens) && read_changes(s, model, fields[3]) &&
        fill_begin((py_features *)features)) {
        s->features = (py_features *)Py_NewRef(features);
        return s;
    }
    asp_py_features_substitute_free(s, ASP_BAD_ARGUMENT);
    return NULL;
}

py_substitute *asp_py_features_substitute_new(PyObject *object, py_model *model, int64_t n_tokens) {
    static const char *const names[] = {"features", "source", "errors", "changes"};
    PyObject *fields[4];
    if (!asp_py_module_fields(object, "Substitute", names, 4, fields)) return NULL;
    py_substitute *s = new_substitute(fields, model, n_tokens);
    asp_py_module_forget(fields, 4);
    return s;
}

const asp_mlp_substitute *asp_py_features_substitute_given(py_substitute *s, py_call *call, asp_error *err) {
    s->source.call = call;
    s->coder_source = source_of(&s->source);
    s->state.features = s->features->features;
    s->state.source = &s->coder_source;
    s->state.err = err;
    s->substitute = (asp_mlp_substitute){s->features->from_mid, asp_features_absent(s->features->features),
                                         asp_features_substitute, &s->state};
    return &s->substitute;
}

void asp_py_features_substitute_free(py_substitute *s, asp_status status) {
    if (!s) return;
    if (s->features && !status) atomic_store(&s->features->stage, ASP_PY_FEATURES_COMPLETE);
    drop_source(&s->source);
    Py_XDECREF(s->source.object);
    Py_XDECREF(s->errors);
    Py_XDECREF(s->held_layers);
    asp_py_arrays_let_go(&s->held);
    Py_XDECREF((PyObject *)s->held_features);
    Py_XDECREF((PyObject *)s->features);
    PyMem_Free(s);
}
