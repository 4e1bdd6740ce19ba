/* py_circuit.c: interventions of a run, and means of what its entries contribute. */
#include "python/py.h"

static int wrong_shape(const char *name) {
    PyErr_Format(PyExc_ValueError, "%s has the wrong shape", name);
    return 0;
}

/* ---- means ------------------------------------------------------------------------------- */

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
