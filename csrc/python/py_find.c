/* py_find.c: the type Circuit: a search for a circuit, one step after the other, and then the owner of its arrays. */
#include "python/py.h"

#include <string.h>

/* One thread at a time takes steps; arrays are lent after the last one. */
typedef struct {
    PyObject_HEAD asp_circuit *circuit;
    py_model *model;
    long long version; /* of the model at the beginning */
    py_held held;      /* what the search reads, until it has ended */
    py_task ranking, evaluation;
    asp_prompts reference;
    asp_items items;
    int64_t width; /* of an item */
    char task_name[168], metric_name[168];
    atomic_int busy;
    atomic_int stage; /* ASP_PY_FIND_* */
} py_circuit;
enum { ASP_PY_FIND_SEARCHING, ASP_PY_FIND_ENDED };

static const char *const parts[ASP_CIRCUIT_N_PARTS] = {"items",       "scores",        "sizes",      "values",
                                                       "full",        "empty",         "effect",     "effect_low",
                                                       "effect_high", "random_effect", "random_low", "random_high"};

static void let_go_question(py_circuit *c) {
    asp_py_effects_clear_task(&c->ranking);
    asp_py_effects_clear_task(&c->evaluation);
    asp_py_arrays_let_go(&c->held);
    Py_CLEAR(c->model);
}

static void circuit_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    asp_circuit_free(((py_circuit *)self)->circuit);
    let_go_question((py_circuit *)self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- begin ------------------------------------------------------------------------------------- */

enum {
    EFFECTS,
    METHOD,
    NORMALIZE,
    RANK_BY,
    SMALLER,
    STEPS,
    GREEDY,
    SIZES,
    RESAMPLES,
    RANDOM,
    CONFIDENCE,
    SEED,
    TASK_NAME,
    METRIC_NAME,
    FIELDS
};

static int read_integer(PyObject *object, int64_t *out) {
    *out = PyLong_AsLongLong(object);
    return *out != -1 || !PyErr_Occurred();
}

static int read_share(PyObject *object, double *out) {
    *out = PyFloat_AsDouble(object);
    return *out != -1 || !PyErr_Occurred();
}

/* Copies a name, cut at the size. */
static int read_circuit_text(PyObject *object, const char *what, char *out, size_t size) {
    const char *text = asp_py_module_name(object, what);
    if (text) PyOS_snprintf(out, size, "%s", text);
    return text != NULL;
}

static int read_circuit_fields(py_circuit *c, PyObject **o, asp_circuit_options *options) {
    static const char *const methods[] = {"exact", "attribution", "ig", "greedy"}, *const orders[] = {"signed",
                                                                                                      "absolute"};
    if (!asp_py_effects_read_options(&c->held, o[EFFECTS], &c->reference, &options->effects)) return 0;
    const int method = asp_py_module_index(o[METHOD], "method", methods, 4);
    options->ranking = (asp_ranking)method;
    options->absolute = method < 0 ? -1 : asp_py_module_index(o[RANK_BY], "rank_by", orders, 2);
    options->smaller_is_better = options->absolute < 0 ? -1 : PyObject_IsTrue(o[SMALLER]);
    if (options->smaller_is_better < 0 || !asp_py_curve_normalization(o[NORMALIZE], &options->normalization) ||
        !read_integer(o[STEPS], &options->steps) || !read_share(o[GREEDY], &options->greedy_step) ||
        !read_integer(o[RESAMPLES], &options->n_bootstrap) || !read_integer(o[RANDOM], &options->n_random) ||
        !read_share(o[CONFIDENCE], &options->confidence) ||
        !read_circuit_text(o[TASK_NAME], "task_name", c->task_name, sizeof c->task_name) ||
        !read_circuit_text(o[METRIC_NAME], "metric_name", c->metric_name, sizeof c->metric_name))
        return 0;
    options->seed = PyLong_AsUnsignedLongLong(o[SEED]);
    if (PyErr_Occurred()) return 0;
    options->task_name = c->task_name;
    options->metric_name = c->metric_name;
    if (o[SIZES] == Py_None) return 1;
    options->sizes = asp_py_arrays_hold_copy(&c->held, o[SIZES], ASP_PY_INT64, 1, "sizes", &options->n_sizes);
    return options->sizes != NULL;
}

static int read_circuit_options(py_circuit *c, PyObject *object, asp_circuit_options *options) {
    static const char *const names[] = {"effects",    "method",      "normalize", "rank_by",     "smaller_is_better",
                                        "steps",      "greedy_step", "sizes",     "n_bootstrap", "n_random",
                                        "confidence", "seed",        "task_name", "metric_name"};
    PyObject *fields[FIELDS];
    if (!asp_py_module_fields(object, "CircuitOptions", names, FIELDS, fields)) return 0;
    const int good = read_circuit_fields(c, fields, options);
    asp_py_module_forget(fields, FIELDS);
    return good;
}

static int begin_search(py_circuit *c, PyObject *model, PyObject *ranking, PyObject *evaluation, PyObject *items,
                        PyObject *object) {
    const int64_t n_vocab = asp_model_config(((py_model *)model)->model)->n_vocab;
    asp_circuit_options options = {.steps = 0};
    int64_t dims[2];
    if (!asp_py_effects_read_task(&c->ranking, ranking, n_vocab) ||
        !asp_py_effects_read_task(&c->evaluation, evaluation, n_vocab) || !read_circuit_options(c, object, &options))
        return 0;
    c->items.rows = asp_py_arrays_hold_copy(&c->held, items, ASP_PY_INT32, 2, "items", dims);
    if (!c->items.rows) return 0;
    c->items.n = dims[0];
    c->width = dims[1];
    if (dims[1] != 2 + (int64_t)options.effects.unit) {
        PyErr_SetString(PyExc_ValueError, "items has the wrong shape");
        return 0;
    }
    asp_error err = {0};
    c->model = (py_model *)Py_NewRef(model);
    c->version = atomic_load(&c->model->version);
    const asp_status status =
        asp_circuit_new(&c->circuit, c->model->model, &c->ranking.task, &c->evaluation.task, &c->items, &options, &err);
    if (status) asp_py_call_raise(status, &err);
    return !status;
}

PyObject *asp_py_find_circuit(PyObject *self, PyObject *args) {
    PyObject *ranking, *evaluation, *items, *options;
    if (!PyArg_ParseTuple(args, "OOOO:circuit", &ranking, &evaluation, &items, &options)) return NULL;
    PyTypeObject *type = asp_py_module_state(Py_TYPE(self))->circuit_type;
    py_circuit *c = (py_circuit *)type->tp_alloc(type, 0);
    if (!c || begin_search(c, self, ranking, evaluation, items, options)) return (PyObject *)c;
    Py_DECREF(c);
    return NULL;
}

/* ---- what is measured elsewhere -------------------------------------------------------------------------- */

/* Who measures for a step: a function of Python. */
typedef struct {
    py_circuit *circuit;
    py_call *call;
    PyObject *measure; /* (question, of_ranking, items, sizes, steps, tell) -> float64 array; borrowed */
} py_measurer;

/* What a call of tell(...) tells, while the measurement lasts. */
typedef struct {
    py_call *call;
    const asp_context *context;
} py_told;
static const char TOLD[] = "attnsparse.told", TOLD_NO_MORE[] = "attnsparse.told_no_more";

static PyObject *tell_context(PyObject *capsule, PyObject *args) {
    const char *stage;
    long long done, total;
    if (!PyArg_ParseTuple(args, "sLL:tell", &stage, &done, &total)) return NULL;
    const py_told *told = PyCapsule_GetPointer(capsule, TOLD);
    if (!told) return NULL;
    asp_py_call_detach(told->call);
    const int stop = told->context->progress(told->context->progress_state, stage, done, total);
    asp_py_call_attach(told->call);
    if (PyErr_Occurred()) return NULL;
    if (stop) return PyErr_Format(PyExc_RuntimeError, "the search that is told of this has stopped");
    Py_RETURN_NONE;
}
static PyMethodDef tell_method = {"tell", tell_context, METH_VARARGS, "tell(stage, done, total): shows it."};

/* The arguments besides `tell`: items and sizes are copies, or None. */
static PyObject *question_arguments(const py_circuit *c, const asp_circuit_question *q, PyObject *tell) {
    static const char *const kinds[] = {"knock_out", "keep_only", "leave_one_out", "attribution"};
    const int64_t dims[2] = {q->items.n, q->items.rows ? c->width : 0};
    void *items_data, *sizes_data;
    PyObject *items = asp_py_arrays_new(ASP_PY_INT32, 2, dims, &items_data);
    PyObject *sizes = items ? asp_py_arrays_new(ASP_PY_INT64, 1, &q->n_sizes, &sizes_data) : NULL;
    PyObject *arguments = NULL;
    if (sizes) {
        if (q->items.rows) memcpy(items_data, q->items.rows, (size_t)(dims[0] * dims[1]) * sizeof(int32_t));
        if (q->sizes) memcpy(sizes_data, q->sizes, (size_t)q->n_sizes * sizeof(int64_t));
        arguments = Py_BuildValue("sOOOLO", kinds[q->kind], q->of_ranking ? Py_True : Py_False, items, sizes,
                                  (long long)q->steps, tell);
    }
    Py_XDECREF(items);
    Py_XDECREF(sizes);
    return arguments;
}

/* The answer of the function: its numbers go to values, of which there are as many as the search says. */
static int take_answer(double *values, int64_t n, PyObject *answer) {
    int64_t found;
    void *data;
    PyObject *array = asp_py_arrays_copy(answer, ASP_PY_DOUBLE, 1, "what was measured", &data, &found);
    if (!array) return 0;
    if (found == n) memcpy(values, data, (size_t)n * sizeof *values);
    else PyErr_Format(PyExc_ValueError, "%lld numbers were to be measured, got %lld", (long long)n, (long long)found);
    Py_DECREF(array);
    return found == n;
}

static int ask_function(const py_measurer *m, double *values, int64_t n, const asp_circuit_question *question,
                        const asp_context *context) {
    py_told told = {m->call, context};
    PyObject *capsule = PyCapsule_New(&told, TOLD, NULL);
    PyObject *tell = !capsule ? NULL : context->progress ? PyCFunction_New(&tell_method, capsule) : Py_NewRef(Py_None);
    PyObject *arguments = tell ? question_arguments(m->circuit, question, tell) : NULL;
    PyObject *answer = arguments ? PyObject_CallObject(m->measure, arguments) : NULL;
    const int good = answer && take_answer(values, n, answer);
    if (capsule) PyCapsule_SetName(capsule, TOLD_NO_MORE);
    Py_XDECREF(answer);
    Py_XDECREF(arguments);
    Py_XDECREF(tell);
    Py_XDECREF(capsule);
    return good;
}

static asp_status measure_elsewhere(void *state, double *values, const asp_circuit_question *question, int64_t n_values,
                                    const asp_context *context, asp_error *err) {
    const py_measurer *m = state;
    (void)err;
    asp_py_call_attach(m->call);
    const int good = ask_function(m, values, n_values, question, context);
    asp_py_call_detach(m->call);
    return good ? ASP_OK : ASP_STOPPED;
}

/* ---- steps ---------------------------------------------------------------------------------------- */

/* 1 and the circuit is this thread's, until `busy` is 0 again; else 0 and an exception. */
static int take_search(py_circuit *c) {
    int nobody = 0;
    if (atomic_compare_exchange_strong(&c->busy, &nobody, 1)) return 1;
    PyErr_SetString(PyExc_RuntimeError, "this search is in use in another thread; wait for it");
    return 0;
}

static int step_begin(py_circuit *c) {
    if (!asp_py_call_read_begin(c->model)) return 0;
    if (atomic_load(&c->model->version) == c->version) return 1;
    asp_py_call_read_end(c->model);
    PyErr_SetString(PyExc_RuntimeError, "the weights changed during this search; begin again");
    return 0;
}

static int take_step(py_circuit *c, int threads, PyObject *progress, PyObject *measure) {
    if (!step_begin(c)) return 0;
    asp_error err = {0};
    py_call call;
    py_measurer here = {c, &call, measure};
    const asp_circuit_measurer measurer = {&here, measure_elsewhere};
    int done = 0;
    c->ranking.metric.call = c->evaluation.metric.call = &call;
    asp_py_call_begin(&call, asp_py_call_n_threads((PyObject *)c->model, threads));
    asp_py_call_report(&call, progress);
    const asp_status status =
        asp_circuit_step(c->circuit, &done, measure == Py_None ? NULL : &measurer, &call.context, &err);
    asp_py_call_end(&call);
    asp_py_call_read_end(c->model);
    if (status) {
        asp_py_call_raise(status, &err);
        return 0;
    }
    if (done) {
        let_go_question(c);
        atomic_store(&c->stage, ASP_PY_FIND_ENDED);
    }
    return 1;
}

static PyObject *circuit_step(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"threads", "progress", "measure", NULL};
    py_circuit *c = (py_circuit *)self;
    PyObject *progress = Py_None, *measure = Py_None;
    int threads = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|iOO:step", names, &threads, &progress, &measure) ||
        !asp_py_call_check_threads(threads) || !take_search(c))
        return NULL;
    const int good = atomic_load(&c->stage) == ASP_PY_FIND_ENDED || take_step(c, threads, progress, measure);
    atomic_store(&c->busy, 0);
    return good ? PyBool_FromLong(atomic_load(&c->stage) == ASP_PY_FIND_ENDED) : NULL;
}

/* ---- the state -------------------------------------------------------------------------------------- */

static PyObject *circuit_state(PyObject *self, PyObject *unused) {
    (void)unused;
    py_circuit *c = (py_circuit *)self;
    const void *state;
    void *data;
    if (!take_search(c)) return NULL;
    const int64_t n_bytes = asp_circuit_state(c->circuit, &state), n = n_bytes / (int64_t)sizeof(int64_t);
    PyObject *array = asp_py_arrays_new(ASP_PY_INT64, 1, &n, &data);
    if (array) memcpy(data, state, (size_t)n_bytes);
    atomic_store(&c->busy, 0);
    return array;
}

static PyObject *circuit_restore(PyObject *self, PyObject *state) {
    py_circuit *c = (py_circuit *)self;
    int64_t n;
    void *data;
    PyObject *array = asp_py_arrays_copy(state, ASP_PY_INT64, 1, "state", &data, &n);
    if (!array) return NULL;
    if (!take_search(c)) {
        Py_DECREF(array);
        return NULL;
    }
    asp_error err = {0};
    asp_status status = ASP_OK;
    if (atomic_load(&c->stage) == ASP_PY_FIND_ENDED) PyErr_SetString(PyExc_RuntimeError, "this search has ended");
    else status = asp_circuit_restore(c->circuit, data, n * (int64_t)sizeof(int64_t), &err);
    atomic_store(&c->busy, 0);
    Py_DECREF(array);
    if (status) asp_py_call_raise(status, &err);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

/* ---- the result --------------------------------------------------------------------------------------- */

static PyObject *circuit_array(PyObject *self, PyObject *name) {
    py_circuit *c = (py_circuit *)self;
    const int part = asp_py_module_index(name, "array", parts, ASP_CIRCUIT_N_PARTS);
    if (part < 0) return NULL;
    if (atomic_load(&c->stage) != ASP_PY_FIND_ENDED)
        return PyErr_Format(PyExc_RuntimeError, "this search has not ended; take steps until it has");
    const asp_circuit_array_view view = asp_circuit_array(c->circuit, (asp_circuit_part)part);
    const int kind = part == ASP_CIRCUIT_ITEMS   ? ASP_PY_INT32
                     : part == ASP_CIRCUIT_SIZES ? ASP_PY_INT64
                                                 : ASP_PY_DOUBLE;
    return asp_py_arrays_lend(self, (void *)(uintptr_t)view.data, kind, view.n_dims, view.dims, NULL, 0);
}

static PyMethodDef circuit_methods[] = {
    {"step", (PyCFunction)(void (*)(void))circuit_step, METH_VARARGS | METH_KEYWORDS,
     "step(threads=0, progress=None, measure=None) -> whether the search has ended.\n\n"
     "measure(question, of_ranking, items, sizes, steps, tell) -> flat float64 array: measures in place of this call."},
    {"state", circuit_state, METH_NOARGS, "state() -> int64 array: all that the search has found."},
    {"restore", circuit_restore, METH_O, "restore(state): continues from the state of a search of the same question."},
    {"array", circuit_array, METH_O, "array(name): read-only view of one array of the circuit."},
    {0}};

static PyType_Slot circuit_slots[] = {{Py_tp_dealloc, circuit_dealloc},
                                      {Py_tp_methods, circuit_methods},
                                      {Py_tp_doc, "A search for a circuit, and owner of the arrays that it found."},
                                      {0, NULL}};
PyType_Spec asp_py_find_spec = {ASP_MODULE ".Circuit", sizeof(py_circuit), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                circuit_slots};
