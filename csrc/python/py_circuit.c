/* py_circuit.c: interventions of a run, what it takes from another run, functions of the user's own that see and change
 * its activations, and means of what its entries contribute. */
#include "python/py.h"

#include <string.h>

static int wrong_shape(const char *name) {
    PyErr_Format(PyExc_ValueError, "%s has the wrong shape", name);
    return 0;
}

/* ---- means ------------------------------------------------------------------------------- */

PyObject *asp_py_circuit_mean_entries(PyObject *self, PyObject *unused) {
    (void)unused;
    const asp_run *run = ((py_run *)self)->run;
    const asp_config *c = asp_model_config(((py_run *)self)->model->model);
    if (!asp_py_run_is_whole((py_run *)self)) return NULL;
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

/* Which of a list are added (n), bool, or None: none of them. */
static int read_added(py_held *h, PyObject *added, PyObject *places, const char *name, const uint8_t **out) {
    if (added == Py_None) return 1;
    int64_t n;
    *out = asp_py_arrays_hold_copy(h, added, ASP_PY_BYTE, 1, name, &n);
    return *out && (n == PyObject_Length(places) || wrong_shape(name));
}

struct py_interventions {
    py_held held;
    asp_interventions given;
    asp_hooks *hooks;
};

static void free_interventions(py_interventions *i) {
    if (!i) return;
    asp_interventions_free(i->hooks);
    asp_py_arrays_let_go(&i->held);
    PyMem_Free(i);
}

static int read_interventions(py_interventions *i, PyObject **o, const asp_config *c) {
    asp_interventions *g = &i->given;
    return read_added(&i->held, o[8], o[0], "heads_added", &g->heads_added) &&
           read_added(&i->held, o[9], o[4], "mlps_added", &g->mlps_added) &&
           read_added(&i->held, o[10], o[6], "resids_added", &g->resids_added) &&
           read_list(&i->held, o[0], o[1], 4, c->d_head, 0, "heads", &g->n_heads, &g->heads, &g->head_values) &&
           read_list(&i->held, o[2], o[3], 5, c->d_head, 1, "entries", &g->n_entries, &g->entries, &g->entry_values) &&
           read_list(&i->held, o[4], o[5], 3, c->d_model, 0, "mlps", &g->n_mlps, &g->mlps, &g->mlp_values) &&
           read_list(&i->held, o[6], o[7], 4, c->d_model, 0, "resids", &g->n_resids, &g->resids, &g->resid_values);
}

static py_interventions *new_interventions(PyObject *object, const asp_config *c) {
    static const char *const names[] = {"heads",       "head_values", "entries",     "entry_values",
                                        "mlps",        "mlp_values",  "resids",      "resid_values",
                                        "heads_added", "mlps_added",  "resids_added"};
    PyObject *o[11];
    py_interventions *i = PyMem_Calloc(1, sizeof *i);
    if (!i) {
        PyErr_NoMemory();
        return NULL;
    }
    int good = asp_py_module_fields(object, "Interventions", names, 11, o);
    if (good) {
        good = read_interventions(i, o, c);
        asp_py_module_forget(o, 11);
    }
    if (good) {
        asp_error err = {0};
        const asp_status status = asp_interventions_hooks(&i->hooks, &i->given, &err);
        if (!status) return i;
        asp_py_call_raise(status, &err);
    }
    free_interventions(i);
    return NULL;
}

/* ---- what a run takes from another one ---------------------------------------------------------------- */

struct py_frozen {
    py_held held;
    asp_visitor *visitor;
};

static void free_frozen(py_frozen *f) {
    if (!f) return;
    asp_frozen_free(f->visitor);
    asp_py_arrays_let_go(&f->held);
    PyMem_Free(f);
}

/* A Run, which is held, and the number of its first prompt. */
static int read_frozen_part(py_frozen *f, py_model *model, PyObject *run, PyObject *first, asp_frozen_part *part) {
    if (run == Py_None) return 1;
    if (!Py_IS_TYPE(run, asp_py_module_state(Py_TYPE((PyObject *)model))->run_type)) {
        PyErr_Format(PyExc_TypeError, "what is frozen is taken from a Run, got %.80s", Py_TYPE(run)->tp_name);
        return 0;
    }
    if (!asp_py_run_is_whole((py_run *)run)) return 0;
    part->first = PyLong_AsLongLong(first);
    if (part->first == -1 && PyErr_Occurred()) return 0;
    f->held.arrays[f->held.n++] = Py_NewRef(run);
    part->run = ((py_run *)run)->run;
    return 1;
}

static py_frozen *new_frozen(PyObject *object, py_model *model, const py_batch *batch, int64_t n_texts) {
    static const char *const names[] = {"pattern", "pattern_first", "gate", "gate_first", "scales", "scales_first"};
    PyObject *o[6];
    asp_frozen given = {0};
    asp_error err = {0};
    py_frozen *f = PyMem_Calloc(1, sizeof *f);
    if (!f) {
        PyErr_NoMemory();
        return NULL;
    }
    int good = asp_py_module_fields(object, "Frozen", names, 6, o);
    if (good) {
        good = read_frozen_part(f, model, o[0], o[1], &given.pattern) &&
               read_frozen_part(f, model, o[2], o[3], &given.gate) &&
               read_frozen_part(f, model, o[4], o[5], &given.scales);
        asp_py_module_forget(o, 6);
    }
    const asp_status status = good ? asp_frozen_visitor(&f->visitor, &given, asp_model_config(model->model),
                                                        batch->offsets, batch->n_sequences, n_texts, &err)
                                   : ASP_OK;
    if (good && !status) return f;
    if (status) asp_py_call_raise(status, &err);
    free_frozen(f);
    return NULL;
}

/* ---- functions at hooks ------------------------------------------------------------------------------ */

struct py_functions {
    py_held held;
    const asp_config *config;
    PyObject *call;   /* (place, layer, first sequence, first position, array) -> array; in held */
    py_call *running; /* set when the run begins */
    asp_visitor visitor;
};

/* Sequences that are shown together: all if they have the same positions, else each by itself. */
typedef struct {
    int64_t first, n, length, position; /* length: rows of each, the first one at this position */
} function_group;

static int is_square(asp_place place) {
    return place == ASP_AT_SCORES || place == ASP_AT_GATE || place == ASP_AT_PATTERN;
}

/* dims (4) written: those of what the function sees.  Returns how many there are. */
static int shown_dims(const asp_visit *visit, const asp_config *c, const function_group *group, int64_t dims[4]) {
    const int square = is_square(visit->place), by_head = visit->place == ASP_AT_RESULT;
    dims[0] = group->n;
    dims[1] = square ? c->n_head : group->length;
    dims[2] = square ? group->length : visit->width;
    if (square) {
        dims[3] = group->position + group->length;
    } else if (by_head || visit->place == ASP_AT_Q || visit->place == ASP_AT_K || visit->place == ASP_AT_V ||
               visit->place == ASP_AT_Z) {
        dims[2] = c->n_head;
        dims[3] = by_head ? c->d_model : c->d_head;
    } else {
        return 3;
    }
    return 4;
}

/* Copies the group's part of an activation to shown, or back. */
static void copy_shown(const asp_visit *visit, const asp_config *c, const function_group *group, void *shown,
                       int back) {
    const int64_t square = c->n_head * group->length * (group->position + group->length);
    const int64_t n = is_square(visit->place) ? group->n : group->n * group->length;
    const size_t item = visit->gates ? 1 : sizeof(asp_real);
    const size_t bytes = (size_t)(is_square(visit->place) ? square : visit->width) * item;
    for (int64_t i = 0; i < n; i++) {
        char *there = (char *)shown + (size_t)i * bytes, *here;
        if (visit->rows) here = (char *)(visit->rows + (visit->offsets[group->first] + i) * visit->stride);
        else if (visit->gates) here = (char *)(visit->gates + asp_visit_square(visit, group->first + i));
        else here = (char *)(visit->squares + asp_visit_square(visit, group->first + i));
        memcpy(back ? here : there, back ? there : here, bytes);
    }
}

/* With the GIL.  0 and an exception unless the function gave an array of what it was shown. */
static int call_functions(const struct py_functions *f, const asp_visit *visit, const function_group *group) {
    const int kind = visit->gates ? ASP_PY_BYTE : ASP_PY_REAL;
    int64_t dims[4], found[4];
    void *shown, *data;
    const int n_dims = shown_dims(visit, f->config, group, dims);
    PyObject *array = asp_py_arrays_new(kind, n_dims, dims, &shown);
    if (!array) return 0;
    copy_shown(visit, f->config, group, shown, 0);
    PyObject *answer = PyObject_CallFunction(f->call, "iLLLO", (int)visit->place, (long long)visit->layer,
                                             (long long)group->first, (long long)group->position, array);
    PyObject *given = answer ? asp_py_arrays_copy(answer, kind, n_dims, "what a function gives", &data, found) : NULL;
    const int good =
        given && (memcmp(dims, found, (size_t)n_dims * sizeof *dims) == 0 || wrong_shape("what a function gives"));
    if (good) copy_shown(visit, f->config, group, data, 1);
    Py_XDECREF(given);
    Py_XDECREF(answer);
    Py_DECREF(array);
    return good;
}

/* Called without the GIL.  The exception of what failed stays set; ASP_STOPPED brings it out. */
static asp_status visit_functions(void *state, const asp_visit *visit, const asp_context *context) {
    (void)context;
    const struct py_functions *f = state;
    const int64_t *offsets = visit->offsets, length = offsets[1], position = asp_visit_first(visit, 0);
    int alike = 1, good = 1;
    for (int64_t b = 1; b < visit->n_sequences; b++)
        alike = alike && offsets[b + 1] - offsets[b] == length && asp_visit_first(visit, b) == position;
    const int64_t n_groups = alike ? 1 : visit->n_sequences;
    asp_py_call_attach(f->running);
    for (int64_t b = 0; good && b < n_groups; b++) {
        const function_group group = {b, alike ? visit->n_sequences : 1, offsets[b + 1] - offsets[b],
                                      asp_visit_first(visit, b)};
        if (group.length) good = call_functions(f, visit, &group);
    }
    asp_py_call_detach(f->running);
    return good ? ASP_OK : ASP_STOPPED;
}

static void free_functions(py_functions *f) {
    if (!f) return;
    asp_py_arrays_let_go(&f->held);
    PyMem_Free(f);
}

static int read_functions(py_functions *f, PyObject **fields) {
    int64_t n;
    const int32_t *places = asp_py_arrays_hold_copy(&f->held, fields[0], ASP_PY_INT32, 1, "places", &n);
    if (!places || (n != f->config->n_layer + 1 && !wrong_shape("places"))) return 0;
    f->call = f->held.arrays[f->held.n++] = Py_NewRef(fields[1]);
    f->visitor = (asp_visitor){(const uint32_t *)places, visit_functions, f};
    return 1;
}

static py_functions *new_functions(PyObject *object, const asp_config *config) {
    static const char *const names[] = {"places", "call"};
    PyObject *fields[2];
    py_functions *f = PyMem_Calloc(1, sizeof *f);
    if (!f) {
        PyErr_NoMemory();
        return NULL;
    }
    f->config = config;
    int good = asp_py_module_fields(object, "Functions", names, 2, fields);
    if (good) {
        good = read_functions(f, fields);
        asp_py_module_forget(fields, 2);
    }
    if (good) return f;
    free_functions(f);
    return NULL;
}

/* ---- all of it ----------------------------------------------------------------------------------------- */

void asp_py_circuit_experiment_free(py_experiment *e) {
    free_functions(e->functions);
    asp_py_steering_free(e->steering);
    free_frozen(e->frozen);
    free_interventions(e->interventions);
}

int asp_py_circuit_experiment_read(py_experiment *e, const py_experiment_objects *given, py_model *model,
                                   const py_batch *batch, int64_t n_texts) {
    const asp_config *config = asp_model_config(model->model);
    if (given->interventions != Py_None && !(e->interventions = new_interventions(given->interventions, config)))
        return 0;
    if (given->frozen != Py_None && !(e->frozen = new_frozen(given->frozen, model, batch, n_texts))) return 0;
    if (given->steering != Py_None && !(e->steering = asp_py_steering_new(given->steering, model, n_texts))) return 0;
    return given->functions == Py_None || (e->functions = new_functions(given->functions, config)) != NULL;
}

const asp_hooks *asp_py_circuit_experiment_hooks(py_experiment *e, py_call *call) {
    if (e->frozen) e->visitors[e->n_visitors++] = *e->frozen->visitor;
    if (e->steering) e->visitors[e->n_visitors++] = asp_py_steering_given(e->steering);
    if (e->functions) {
        e->functions->running = call;
        e->visitors[e->n_visitors++] = e->functions->visitor;
    }
    return e->interventions ? e->interventions->hooks : NULL;
}
