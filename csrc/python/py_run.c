/* py_run.c: the types Run and Gradients: owners of recorded arrays, and what is computed from a run. */
#include "python/py.h"

#include <string.h>

int asp_py_run_is_whole(const py_run *run) {
    const int64_t stop_at = asp_run_stop_at(run->run);
    if (!stop_at) return 1;
    PyErr_Format(PyExc_ValueError,
                 "this run stopped before layer %lld, and this needs all layers; run without stop_at_layer",
                 (long long)stop_at);
    return 0;
}

int asp_py_run_is_current(const py_run *run, const py_model *model) {
    if (!asp_py_run_is_whole(run)) return 0;
    if (run->model != model) PyErr_SetString(PyExc_ValueError, "the run is of another model");
    else if (run->version != atomic_load(&model->version))
        PyErr_SetString(PyExc_RuntimeError, "the weights changed after the run; run again");
    return !PyErr_Occurred();
}

static void run_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    asp_run_free(((py_run *)self)->run);
    Py_XDECREF((PyObject *)((py_run *)self)->model);
    type->tp_free(self);
    Py_DECREF(type);
}

static int record_index(PyObject *name, asp_record *record) {
    const char *text = asp_py_module_name(name, "a record name");
    if (!text) return 0;
    for (int r = 0; r < ASP_N_RECORDS; r++)
        if (strcmp(text, asp_run_record_name((asp_record)r)) == 0) {
            *record = (asp_record)r;
            return 1;
        }
    PyErr_Format(PyExc_KeyError, "there is no record %R", name);
    return 0;
}

static PyObject *names_of(asp_array (*get)(const void *, asp_record), const void *owner) {
    PyObject *names = PyList_New(0);
    for (int r = 0; names && r < ASP_N_RECORDS; r++) {
        if (!get(owner, (asp_record)r).data) continue;
        PyObject *name = PyUnicode_FromString(asp_run_record_name((asp_record)r));
        if (!name || PyList_Append(names, name) < 0) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

static asp_array run_array_of(const void *run, asp_record record) { return asp_run_array(run, record); }
static asp_array gradient_array_of(const void *g, asp_record record) { return asp_gradients_array(g, record); }

static PyObject *run_names(PyObject *self, void *unused) {
    (void)unused;
    return names_of(run_array_of, ((py_run *)self)->run);
}

static PyObject *run_array(PyObject *self, PyObject *name) {
    asp_record record;
    if (!record_index(name, &record)) return NULL;
    const asp_array array = asp_run_array(((py_run *)self)->run, record);
    if (array.data) return asp_py_arrays_lend_array(self, array);
    return PyErr_Format(PyExc_KeyError, "this run did not record '%s'", asp_run_record_name(record));
}

static PyObject *run_edges(PyObject *self, PyObject *unused) {
    (void)unused;
    const asp_edges e = asp_run_edges(((py_run *)self)->run);
    if (!e.start) return PyErr_Format(PyExc_KeyError, "this run did not record edges");
    const int64_t rows = e.n_rows + 1;
    PyObject *start = asp_py_arrays_lend(self, (void *)(uintptr_t)e.start, ASP_PY_INT64, 1, &rows, NULL, 0);
    PyObject *key =
        start ? asp_py_arrays_lend(self, (void *)(uintptr_t)e.key, ASP_PY_INT32, 1, &e.n_edges, NULL, 0) : NULL;
    PyObject *weight =
        key ? asp_py_arrays_lend(self, (void *)(uintptr_t)e.weight, ASP_PY_REAL, 1, &e.n_edges, NULL, 0) : NULL;
    if (weight) return Py_BuildValue("(NNN)", start, key, weight);
    Py_XDECREF(start);
    Py_XDECREF(key);
    return NULL;
}

static int same_weights(const py_run *run) {
    if (!asp_py_run_is_whole(run)) return 0;
    if (atomic_load(&run->model->version) == run->version) return 1;
    PyErr_SetString(PyExc_RuntimeError, "the weights changed after this run; run again");
    return 0;
}

static PyObject *run_value_norms(PyObject *self, PyObject *args) {
    PyObject *direction;
    long long first, last;
    py_run *run = (py_run *)self;
    const asp_config *c = asp_model_config(run->model->model);
    void *vector = NULL, *out[3] = {0};
    int64_t width = 0;
    PyObject *input = NULL, *arrays[3] = {0}, *result = NULL;
    if (!PyArg_ParseTuple(args, "OLL", &direction, &first, &last) || !same_weights(run)) return NULL;
    if (first < 0 || last < first || last > asp_run_offsets(run->run)[asp_run_n_sequences(run->run)])
        return PyErr_Format(PyExc_IndexError, "tokens %lld..%lld are not in this run", first, last);
    if (direction != Py_None) {
        input = asp_py_arrays_copy(direction, ASP_PY_REAL, 1, "direction", &vector, &width);
        if (!input) return NULL;
        if (width != c->d_model) {
            Py_DECREF(input);
            return PyErr_Format(PyExc_ValueError, "direction must have %lld values, got %lld", (long long)c->d_model,
                                (long long)width);
        }
    }
    const int64_t dims[] = {c->n_layer, c->n_head, last - first};
    int complete = 1;
    for (int i = 0; i < (input ? 3 : 2) && complete; i++)
        complete = (arrays[i] = asp_py_arrays_new(ASP_PY_REAL, 3, dims, &out[i])) != NULL;
    if (complete && asp_py_call_read_begin_of(run->model, run)) {
        asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, asp_py_module_state(Py_TYPE(self))->n_threads);
        const asp_status status = asp_run_value_norms(run->model->model, run->run, first, last - first, vector, out[0],
                                                      out[1], out[2], &call.context, &err);
        asp_py_call_end(&call);
        asp_py_call_read_end(run->model);
        if (status) asp_py_call_raise(status, &err);
        else result = Py_BuildValue("(OOO)", arrays[0], arrays[1], arrays[2] ? arrays[2] : Py_None);
    }
    for (int i = 0; i < 3; i++) Py_XDECREF(arrays[i]);
    Py_XDECREF(input);
    return result;
}

static PyObject *run_entry_scores(PyObject *self, PyObject *args) {
    static const char *const names[] = {"layer", "head", "query", "key"};
    PyObject *inputs[4], *result = NULL;
    py_run *run = (py_run *)self;
    py_held held = {0};
    const int64_t *index[4];
    int64_t n[4];
    void *scores;
    if (!PyArg_ParseTuple(args, "OOOO", &inputs[0], &inputs[1], &inputs[2], &inputs[3]) || !same_weights(run))
        return NULL;
    int complete = 1;
    for (int i = 0; i < 4 && complete; i++)
        complete = (index[i] = asp_py_arrays_hold_copy(&held, inputs[i], ASP_PY_INT64, 1, names[i], &n[i])) != NULL;
    if (complete && (n[1] != n[0] || n[2] != n[0] || n[3] != n[0]))
        PyErr_SetString(PyExc_ValueError, "layer, head, query and key must have the same length");
    else if (complete && (result = asp_py_arrays_new(ASP_PY_REAL, 1, n, &scores))) {
        asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, asp_py_module_state(Py_TYPE(self))->n_threads);
        const asp_status status = asp_attention_entry_scores(run->model->model, run->run, n[0], index[0], index[1],
                                                             index[2], index[3], scores, &call.context, &err);
        asp_py_call_end(&call);
        if (status) {
            Py_CLEAR(result);
            asp_py_call_raise(status, &err);
        }
    }
    asp_py_arrays_let_go(&held);
    return result;
}

static PyObject *run_bytes(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(asp_run_bytes(((py_run *)self)->run));
}

static PyMethodDef run_methods[] = {
    {"array", run_array, METH_O, "array(name): read-only view of one recorded array, all sequences packed."},
    {"edges", run_edges, METH_NOARGS,
     "edges() -> (start, key, weight): open edges in CSR, rows (sequence, layer, head, query)."},
    {"value_norms", run_value_norms, METH_VARARGS,
     "value_norms(direction or None, first, last) -> (|v|, |v W_O|, (v W_O).direction) of these tokens, each (L,H,n)."},
    {"mean_entries", asp_py_circuit_mean_entries, METH_NOARGS,
     "mean_entries() -> (L,H,T,T,D): mean over prompts of A[q,k] v[k]."},
    {"lens", asp_py_lens_logits, METH_VARARGS,
     "lens(points, rows, held, n, asked (rows,m)) -> (tokens, logits, probabilities of the n most likely, logits, "
     "probabilities, places of those asked for)"},
    {"attribute", asp_py_lens_attribute, METH_VARARGS,
     "attribute(rows, right, wrong or None, parts) -> {part: what it adds to the logit (difference) at each row}"},
    {"detect", asp_py_lens_detect, METH_VARARGS,
     "detect(patterns (n,squares), measure, exclude_first, exclude_current) -> scores (n,B,L,H)"},
    {"entry_scores", run_entry_scores, METH_VARARGS,
     "entry_scores(layer, head, query, key): scores of these entries, packed rows."},
    {0}};

static PyGetSetDef run_attributes[] = {{"names", run_names, NULL, "Names of the recorded arrays.", NULL},
                                       {"nbytes", run_bytes, NULL, "Bytes of the recorded arrays.", NULL},
                                       {0}};

static PyType_Slot run_slots[] = {{Py_tp_dealloc, run_dealloc},
                                  {Py_tp_methods, run_methods},
                                  {Py_tp_getset, run_attributes},
                                  {Py_tp_doc, "Owner of the arrays that one forward pass recorded."},
                                  {0, NULL}};
PyType_Spec asp_py_run_spec = {ASP_MODULE ".Run", sizeof(py_run), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                               run_slots};

/* ---- losses of given logits ------------------------------------------------------------------- */

PyObject *asp_py_run_token_losses(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"logits", "targets", "threads", NULL};
    PyObject *logits, *targets, *out = NULL;
    py_held held = {0};
    int64_t dims[2], n_targets;
    int threads = 0;
    void *losses;
    const asp_real *x;
    const int32_t *ids;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|i:token_losses", names, &logits, &targets, &threads) ||
        !asp_py_call_check_threads(threads))
        return NULL;
    if ((x = asp_py_arrays_hold(&held, logits, ASP_PY_REAL, 2, "logits", dims)) &&
        (ids = asp_py_arrays_hold_copy(&held, targets, ASP_PY_INT32, 1, "targets", &n_targets))) {
        if (dims[0] == n_targets) out = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &n_targets, &losses);
        else
            PyErr_Format(PyExc_ValueError, "targets must have one id for each of the %lld rows of logits, got %lld",
                         (long long)dims[0], (long long)n_targets);
    }
    if (out) {
        asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, asp_py_call_module_threads(module, threads));
        const asp_status status = asp_loss_tokens(losses, x, ids, n_targets, dims[1], &call.context, &err);
        asp_py_call_end(&call);
        if (status) Py_CLEAR(out);
        if (status) asp_py_call_raise(status, &err);
    }
    asp_py_arrays_let_go(&held);
    return out;
}

/* ---- Gradients --------------------------------------------------------------------------- */

static int read_gradient_inputs(py_held *held, asp_gradient_options *options, const asp_config *config,
                                const py_batch *batch, PyObject *dlogits, PyObject *targets, PyObject *weights) {
    int64_t dims[2] = {0};
    if (dlogits != Py_None) {
        options->dlogits = asp_py_arrays_hold(held, dlogits, ASP_PY_REAL, 2, "dlogits", dims);
        if (!options->dlogits) return 0;
        if (dims[0] == batch->n_tokens && dims[1] == config->n_vocab) return 1;
        PyErr_Format(PyExc_ValueError, "dlogits must have shape (%lld, %lld), got (%lld, %lld)",
                     (long long)batch->n_tokens, (long long)config->n_vocab, (long long)dims[0], (long long)dims[1]);
        return 0;
    }
    if (!asp_py_arrays_targets(held, targets, weights, batch->n_tokens, &options->targets, &options->weights)) return 0;
    double sum = 0;
    for (int64_t r = 0; r < batch->n_tokens; r++) {
        if (options->weights[r] != 0 && (options->targets[r] < 0 || options->targets[r] >= config->n_vocab)) {
            PyErr_Format(PyExc_IndexError, "target %d at row %lld is out of range 0..%lld", (int)options->targets[r],
                         (long long)r, (long long)config->n_vocab - 1);
            return 0;
        }
        if (!(options->weights[r] >= 0)) {
            PyErr_Format(PyExc_ValueError, "the loss weight at row %lld must be finite and not negative", (long long)r);
            return 0;
        }
        sum += (double)options->weights[r];
    }
    if (sum > 0 && sum < INFINITY) return 1;
    PyErr_SetString(PyExc_ValueError, "the loss weights must sum to a finite number above 0; a target of -100 counts "
                                      "as 0, and a sequence of one token has no next token");
    return 0;
}

static PyObject *call_gradients(PyObject *self, const py_batch *batch, const asp_gradient_options *options,
                                int threads) {
    py_model *model = (py_model *)self;
    PyTypeObject *type = asp_py_module_state(Py_TYPE(self))->gradients_type;
    if (!asp_py_call_read_begin(model)) return NULL;
    py_gradients *result = (py_gradients *)type->tp_alloc(type, 0);
    if (result) {
        asp_error err = {0};
        py_call call;
        result->model = (py_model *)Py_NewRef(self);
        asp_py_call_begin(&call, asp_py_call_n_threads(self, threads));
        const asp_status status = asp_gradients_new(&result->gradients, model->model, batch->tokens, batch->offsets,
                                                    batch->n_sequences, options, &call.context, &err);
        asp_py_call_end(&call);
        if (status) {
            asp_py_call_raise(status, &err);
            Py_CLEAR(result);
        }
    }
    asp_py_call_read_end(model);
    return (PyObject *)result;
}

PyObject *asp_py_run_gradients(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"tokens",  "offsets",          "record",    "parameters", "dlogits", "targets",
                            "weights", "straight_through", "max_bytes", "threads",    NULL};
    PyObject *tokens, *offsets, *record, *dlogits = Py_None, *targets = Py_None, *weights = Py_None, *result = NULL;
    asp_gradient_options options = {0};
    long long max_bytes = INT64_MAX;
    int threads = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOpOOO|pLi:gradients", names, &tokens, &offsets, &record,
                                     &options.parameters, &dlogits, &targets, &weights, &options.gate_gradient,
                                     &max_bytes, &threads))
        return NULL;
    options.max_bytes = max_bytes;
    if (!asp_py_call_check_threads(threads)) return NULL;
    const uint64_t possible = 1u << ASP_RESID | 1u << ASP_RESID_MID | 1u << ASP_QKV | 1u << ASP_SCORES |
                              1u << ASP_PATTERN | 1u << ASP_Z | 1u << ASP_MLP_PRE | 1u << ASP_MLP_POST;
    py_batch batch;
    if (!asp_py_model_records(record, &options.records)) return NULL;
    if (options.records & ~possible) {
        PyErr_SetString(PyExc_ValueError,
                        "gradients exist for resid, resid_mid, qkv, scores, pattern, z, mlp_pre and mlp_post");
        return NULL;
    }
    if (!asp_py_arrays_batch(&batch, tokens, offsets)) return NULL;
    py_held held = {0};
    const asp_config *config = asp_model_config(((py_model *)self)->model);
    if (read_gradient_inputs(&held, &options, config, &batch, dlogits, targets, weights))
        result = call_gradients(self, &batch, &options, threads);
    asp_py_arrays_let_go(&held);
    asp_py_arrays_batch_clear(&batch);
    return result;
}

static void gradients_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    asp_gradients_free(((py_gradients *)self)->gradients);
    Py_XDECREF((PyObject *)((py_gradients *)self)->model);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *gradients_names(PyObject *self, void *unused) {
    (void)unused;
    return names_of(gradient_array_of, ((py_gradients *)self)->gradients);
}

static PyObject *gradients_array(PyObject *self, PyObject *name) {
    asp_record record;
    if (!record_index(name, &record)) return NULL;
    const asp_array array = asp_gradients_array(((py_gradients *)self)->gradients, record);
    if (array.data) return asp_py_arrays_lend_array(self, array);
    return PyErr_Format(PyExc_KeyError, "the gradient of '%s' was not asked for", asp_run_record_name(record));
}

static PyObject *gradients_parameter(PyObject *self, PyObject *name) {
    py_gradients *g = (py_gradients *)self;
    const char *text = asp_py_module_name(name, "a parameter name");
    asp_real *data = asp_gradients_parameters(g->gradients);
    if (!text) return NULL;
    if (!data) return PyErr_Format(PyExc_KeyError, "gradients of the parameters were not asked for");
    for (int64_t i = 0; i < asp_model_n_parameters(g->model->model); i++) {
        const asp_parameter *p = asp_model_parameter(g->model->model, i);
        if (strcmp(p->name, text) == 0)
            return asp_py_arrays_lend(self, data + p->offset, ASP_PY_REAL, p->n_dims, p->dims, NULL, 0);
    }
    return PyErr_Format(PyExc_KeyError, "this model has no parameter %R", name);
}

static PyObject *gradients_loss(PyObject *self, void *unused) {
    (void)unused;
    return PyFloat_FromDouble(asp_gradients_loss(((py_gradients *)self)->gradients));
}

static PyMethodDef gradients_methods[] = {{"array", gradients_array, METH_O,
                                           "array(name): read-only gradient of one recorded array, packed."},
                                          {"parameter", gradients_parameter, METH_O,
                                           "parameter(name): read-only gradient of one weight array."},
                                          {0}};

static PyGetSetDef gradients_attributes[] = {{"names", gradients_names, NULL, "Names of the activation gradients.",
                                              NULL},
                                             {"loss", gradients_loss, NULL, "The scalar that was differentiated.",
                                              NULL},
                                             {0}};

static PyType_Slot gradients_slots[] = {{Py_tp_dealloc, gradients_dealloc},
                                        {Py_tp_methods, gradients_methods},
                                        {Py_tp_getset, gradients_attributes},
                                        {Py_tp_doc, "Owner of gradients with respect to weights and activations."},
                                        {0, NULL}};
PyType_Spec asp_py_gradients_spec = {ASP_MODULE ".Gradients", sizeof(py_gradients), 0,
                                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                     gradients_slots};
