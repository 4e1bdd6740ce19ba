/* py_circuit.c: what Model offers for circuits: sweeps over variants, attribution, interventions of a run. */
#include "python/py.h"

#include <string.h>

static int wrong_shape(const char *name) {
    PyErr_Format(PyExc_ValueError, "%s has the wrong shape", name);
    return 0;
}

/* ---- metric and reference ---------------------------------------------------------------- */

/* Starts (B+1) that rise from 0 to the number of ids. */
static int read_tokens(py_held *h, PyObject *starts, PyObject *ids, int64_t n_sequences, const char *name,
                       const int64_t **start, const int32_t **tokens) {
    int64_t n_starts, n_ids;
    *start = asp_py_arrays_hold_copy(h, starts, ASP_PY_INT64, 1, name, &n_starts);
    if (!*start) return 0;
    *tokens = asp_py_arrays_hold_copy(h, ids, ASP_PY_INT32, 1, name, &n_ids);
    if (!*tokens) return 0;
    int good = n_starts == n_sequences + 1 && (*start)[0] == 0 && (*start)[n_starts - 1] == n_ids;
    for (int64_t b = 0; good && b < n_sequences; b++) good = (*start)[b] <= (*start)[b + 1];
    return good ? 1 : wrong_shape(name);
}

enum { KIND, ANSWER_START, ANSWERS, WRONG_START, WRONG, LOGITS, METRIC_FIELDS };

static int read_metric_fields(py_held *h, PyObject **fields, int64_t n_vocab, asp_metric *metric) {
    const char *name = asp_py_module_name(fields[KIND], "kind");
    if (!name) return 0;
    PyObject *reference = fields[LOGITS];
    int kind = 0;
    while (kind < ASP_N_METRICS && strcmp(name, asp_metric_name((asp_metric_kind)kind)) != 0) kind++;
    if (kind == ASP_N_METRICS) {
        PyErr_Format(PyExc_ValueError, "there is no metric '%.40s'", name);
        return 0;
    }
    metric->kind = (asp_metric_kind)kind;
    Py_ssize_t n = PyObject_Length(fields[ANSWER_START]);
    if (n < 1) return PyErr_Occurred() ? 0 : wrong_shape("answer starts");
    metric->n_sequences = (int64_t)n - 1;
    if (!read_tokens(h, fields[ANSWER_START], fields[ANSWERS], metric->n_sequences, "answers", &metric->answer_start,
                     &metric->answers) ||
        !read_tokens(h, fields[WRONG_START], fields[WRONG], metric->n_sequences, "wrong answers", &metric->wrong_start,
                     &metric->wrong))
        return 0;
    if (reference == Py_None) return 1;
    int64_t dims[2];
    metric->reference = asp_py_arrays_hold_copy(h, reference, ASP_PY_REAL, 2, "reference logits", dims);
    if (!metric->reference) return 0;
    return dims[0] == metric->n_sequences && dims[1] == n_vocab ? 1 : wrong_shape("reference logits");
}

static int read_metric(py_held *h, PyObject *object, int64_t n_vocab, asp_metric *metric) {
    static const char *const names[] = {"kind", "answer_start", "answers", "wrong_start", "wrong", "reference"};
    PyObject *fields[METRIC_FIELDS];
    if (!asp_py_module_fields(object, "Metric", names, METRIC_FIELDS, fields)) return 0;
    const int good = read_metric_fields(h, fields, n_vocab, metric);
    asp_py_module_forget(fields, METRIC_FIELDS);
    return good;
}

/* fields: run, z, entries; length: T of all prompts. */
static int read_reference_fields(py_held *h, PyObject *self, PyObject **fields, int64_t length,
                                 asp_reference *reference) {
    PyObject *run = fields[0], *z = fields[1], *entries = fields[2];
    const asp_config *c = asp_model_config(((py_model *)self)->model);
    int64_t dims[5];
    if (run != Py_None) {
        if (!Py_IS_TYPE(run, asp_py_module_state(Py_TYPE(self))->run_type)) {
            PyErr_SetString(PyExc_TypeError, "the reference must be a run");
            return 0;
        }
        if (!asp_py_run_is_current((py_run *)run, (py_model *)self)) return 0;
        reference->run = ((py_run *)run)->run;
        h->arrays[h->n++] = Py_NewRef(run);
    }
    if (z != Py_None) {
        reference->z = asp_py_arrays_hold_copy(h, z, ASP_PY_REAL, 4, "mean z", dims);
        if (!reference->z) return 0;
        if (dims[0] != c->n_layer || dims[1] != length || dims[2] != c->n_head || dims[3] != c->d_head)
            return wrong_shape("mean z");
    }
    if (entries != Py_None) {
        reference->entries = asp_py_arrays_hold_copy(h, entries, ASP_PY_REAL, 5, "mean entries", dims);
        if (!reference->entries) return 0;
        if (dims[0] != c->n_layer || dims[1] != c->n_head || dims[2] != length || dims[3] != length ||
            dims[4] != c->d_head)
            return wrong_shape("mean entries");
    }
    return 1;
}

static int read_reference(py_held *h, PyObject *self, PyObject *object, int64_t length, asp_reference *reference) {
    static const char *const names[] = {"run", "z", "entries"};
    PyObject *fields[3];
    if (!asp_py_module_fields(object, "Reference", names, 3, fields)) return 0;
    const int good = read_reference_fields(h, self, fields, length, reference);
    asp_py_module_forget(fields, 3);
    return good;
}

static int read_unit(int unit, asp_unit *out) {
    if (unit < ASP_UNIT_HEAD || unit > ASP_UNIT_EDGE) {
        PyErr_Format(PyExc_ValueError, "unit must be 0, 1 or 2, got %d", unit);
        return 0;
    }
    *out = (asp_unit)unit;
    return 1;
}

/* Items of a unit: heads, heads at positions, entries. */
static int64_t unit_size(const asp_config *c, asp_unit unit, int64_t length) {
    const int64_t heads = c->n_layer * c->n_head;
    return unit == ASP_UNIT_HEAD ? heads : unit == ASP_UNIT_POSITION ? heads * length : heads * length * length;
}

/* ---- sweep --------------------------------------------------------------------------------- */

typedef struct {
    py_held held;
    asp_sweep_options options;
    const asp_variant *variants;
    int64_t n_variants;
} sweep_call;

static int read_sweep(sweep_call *s, PyObject *self, const asp_run *clean, PyObject *variants, int unit,
                      PyObject *order, PyObject *reference, PyObject *metric) {
    const asp_config *c = asp_model_config(((py_model *)self)->model);
    const int64_t length = asp_run_offsets(clean)[1];
    int64_t dims[2], n_order;
    if (!read_unit(unit, &s->options.unit)) return 0;
    s->variants = asp_py_arrays_hold_copy(&s->held, variants, ASP_PY_INT64, 2, "variants", dims);
    if (!s->variants) return 0;
    if (dims[1] != (int64_t)(sizeof(asp_variant) / sizeof(int64_t))) return wrong_shape("variants");
    s->n_variants = dims[0];
    s->options.order = asp_py_arrays_hold_copy(&s->held, order, ASP_PY_INT32, 1, "order", &n_order);
    if (!s->options.order) return 0;
    if (n_order != unit_size(c, s->options.unit, length)) return wrong_shape("order");
    return read_reference(&s->held, self, reference, length, &s->options.reference) &&
           read_metric(&s->held, metric, c->n_vocab, &s->options.metric);
}

PyObject *asp_py_circuit_sweep(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"clean", "variants", "unit", "order", "reference", "metric", "threads", "count", NULL};
    PyObject *clean, *variants, *order, *reference, *metric, *result = NULL;
    int unit, threads = 0, count = 0;
    int64_t rows[2] = {0};
    py_state *state = asp_py_module_state(Py_TYPE(self));
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OiOO!O!|ip:sweep", names, state->run_type, &clean, &variants,
                                     &unit, &order, &PyTuple_Type, &reference, &PyTuple_Type, &metric, &threads,
                                     &count))
        return NULL;
    if (!asp_py_call_check_threads(threads)) return NULL;
    sweep_call s = {0};
    const asp_run *run = ((py_run *)clean)->run;
    void *values;
    if (!asp_py_run_is_current((py_run *)clean, (py_model *)self)) return NULL;
    if (read_sweep(&s, self, run, variants, unit, order, reference, metric))
        result = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &s.n_variants, &values);
    if (result && asp_py_call_read_begin_of((py_model *)self, (py_run *)clean)) {
        asp_error err = {0};
        py_call call;
        if (count) s.options.rows = rows;
        asp_py_call_begin(&call, asp_py_call_n_threads(self, threads));
        const asp_status status = asp_sweep(values, ((py_model *)self)->model, run, s.variants, s.n_variants,
                                            &s.options, &call.context, &err);
        asp_py_call_end(&call);
        asp_py_call_read_end((py_model *)self);
        if (status) asp_py_call_raise(status, &err);
    }
    asp_py_arrays_let_go(&s.held);
    if (PyErr_Occurred()) Py_CLEAR(result);
    return result && count ? Py_BuildValue("NLL", result, (long long)rows[0], (long long)rows[1]) : result;
}

/* ---- attribution ----------------------------------------------------------------------------- */

typedef struct {
    py_held held;
    asp_attribution_options options;
} attribution_call;

/* bool (L,H,T,T) for entries with a paired run, or None. */
static int read_closed(py_held *h, PyObject *closed, const asp_config *c, int64_t length,
                       asp_attribution_options *options) {
    int64_t dims[4];
    if (closed == Py_None) return 1;
    if (options->unit != ASP_UNIT_EDGE || !options->reference.run) {
        PyErr_SetString(PyExc_ValueError, "closed entries are for attention edges with a paired run");
        return 0;
    }
    options->closed = asp_py_arrays_hold_copy(h, closed, ASP_PY_BYTE, 4, "closed", dims);
    if (!options->closed) return 0;
    return dims[0] == c->n_layer && dims[1] == c->n_head && dims[2] == length && dims[3] == length
               ? 1
               : wrong_shape("closed");
}

static PyObject *new_scores(const asp_config *c, asp_unit unit, int64_t length, void **data) {
    const int64_t dims[4] = {c->n_layer, c->n_head, length, length};
    return asp_py_arrays_new(ASP_PY_DOUBLE, unit == ASP_UNIT_HEAD ? 2 : unit == ASP_UNIT_POSITION ? 3 : 4, dims, data);
}

PyObject *asp_py_circuit_attribution(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"tokens", "offsets",   "unit",    "steps", "through_gate", "reference", "closed",
                            "metric", "max_bytes", "threads", NULL};
    PyObject *tokens, *offsets, *reference, *closed, *metric, *result = NULL;
    attribution_call a = {.options.max_bytes = INT64_MAX};
    long long steps, max_bytes = INT64_MAX;
    int unit, threads = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOiLpO!OO!|Li:attribution", names, &tokens, &offsets, &unit, &steps,
                                     &a.options.through_gate, &PyTuple_Type, &reference, &closed, &PyTuple_Type,
                                     &metric, &max_bytes, &threads))
        return NULL;
    py_batch batch;
    if (!asp_py_call_check_threads(threads) || !read_unit(unit, &a.options.unit) ||
        !asp_py_arrays_batch(&batch, tokens, offsets))
        return NULL;
    a.options.steps = steps;
    a.options.max_bytes = max_bytes;
    const asp_model *model = ((py_model *)self)->model;
    const asp_config *c = asp_model_config(model);
    void *scores;
    if (read_reference(&a.held, self, reference, batch.offsets[1], &a.options.reference) &&
        read_closed(&a.held, closed, c, batch.offsets[1], &a.options) &&
        read_metric(&a.held, metric, c->n_vocab, &a.options.metric))
        result = new_scores(c, a.options.unit, batch.offsets[1], &scores);
    if (result && asp_py_call_read_begin((py_model *)self)) {
        asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, asp_py_call_n_threads(self, threads));
        const asp_status status = asp_attribution(scores, model, batch.tokens, batch.offsets, batch.n_sequences,
                                                  &a.options, &call.context, &err);
        asp_py_call_end(&call);
        asp_py_call_read_end((py_model *)self);
        if (status) asp_py_call_raise(status, &err);
    }
    asp_py_arrays_let_go(&a.held);
    asp_py_arrays_batch_clear(&batch);
    if (PyErr_Occurred()) Py_CLEAR(result);
    return result;
}

PyObject *asp_py_circuit_mean_entries(PyObject *self, PyObject *unused) {
    (void)unused;
    const asp_run *run = ((py_run *)self)->run;
    const asp_config *c = asp_model_config(((py_run *)self)->model->model);
    const int64_t t = asp_run_offsets(run)[1], dims[5] = {c->n_layer, c->n_head, t, t, c->d_head};
    void *entries;
    PyObject *result = asp_py_arrays_new(ASP_PY_REAL, 5, dims, &entries);
    if (!result) return NULL;
    asp_error err = {0};
    py_call call;
    asp_py_call_begin(&call, asp_py_module_state(Py_TYPE(self))->n_threads);
    const asp_status status = asp_reference_mean_entries(entries, run, &call.context, &err);
    asp_py_call_end(&call);
    if (!status) return result;
    Py_DECREF(result);
    return asp_py_call_raise(status, &err);
}

/* ---- interventions of a run ----------------------------------------------------------------------- */

/* One list: places (n, columns) int64 and values (n, width), which may be None if `optional`. */
static int read_list(py_held *h, PyObject *places, PyObject *values, int64_t columns, int64_t width, int optional,
                     const char *name, int64_t *n, const int64_t **at, const asp_real **value) {
    int64_t dims[2];
    *at = asp_py_arrays_hold_copy(h, places, ASP_PY_INT64, 2, name, dims);
    if (!*at) return 0;
    if (dims[1] != columns) return wrong_shape(name);
    *n = dims[0];
    if (optional && values == Py_None) return 1;
    *value = asp_py_arrays_hold_copy(h, values, ASP_PY_REAL, 2, name, dims);
    if (!*value) return 0;
    return dims[0] == *n && dims[1] == width ? 1 : wrong_shape(name);
}

struct py_interventions {
    py_held held;
    asp_interventions given;
    asp_hooks *hooks;
};

void asp_py_circuit_interventions_free(py_interventions *i) {
    if (!i) return;
    asp_interventions_free(i->hooks);
    asp_py_arrays_let_go(&i->held);
    PyMem_Free(i);
}

static int read_interventions(py_interventions *i, PyObject **o, const asp_config *c) {
    asp_interventions *g = &i->given;
    return read_list(&i->held, o[0], o[1], 4, c->d_head, 0, "heads", &g->n_heads, &g->heads, &g->head_values) &&
           read_list(&i->held, o[2], o[3], 5, c->d_head, 1, "entries", &g->n_entries, &g->entries, &g->entry_values) &&
           read_list(&i->held, o[4], o[5], 3, c->d_model, 0, "mlps", &g->n_mlps, &g->mlps, &g->mlp_values) &&
           read_list(&i->held, o[6], o[7], 4, c->d_model, 0, "resids", &g->n_resids, &g->resids, &g->resid_values);
}

py_interventions *asp_py_circuit_interventions_new(PyObject *object, const asp_config *c) {
    static const char *const names[] = {"heads", "head_values", "entries", "entry_values",
                                        "mlps",  "mlp_values",  "resids",  "resid_values"};
    PyObject *o[8];
    py_interventions *i = PyMem_Calloc(1, sizeof *i);
    if (!i) {
        PyErr_NoMemory();
        return NULL;
    }
    int good = asp_py_module_fields(object, "Interventions", names, 8, o);
    if (good) {
        good = read_interventions(i, o, c);
        asp_py_module_forget(o, 8);
    }
    if (good) {
        asp_error err = {0};
        const asp_status status = asp_interventions_hooks(&i->hooks, &i->given, &err);
        if (!status) return i;
        asp_py_call_raise(status, &err);
    }
    asp_py_circuit_interventions_free(i);
    return NULL;
}

const asp_hooks *asp_py_circuit_interventions_hooks(const py_interventions *i) { return i->hooks; }
