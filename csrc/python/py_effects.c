/* py_effects.c: effects of items over a whole task. */
#include "python/py.h"

#include <string.h>

static int wrong_task_shape(const char *name) {
    PyErr_Format(PyExc_ValueError, "%s has the wrong shape", name);
    return 0;
}

/* ---- the task ------------------------------------------------------------------------------ */

static int read_prompts(py_held *h, PyObject *tokens, PyObject *offsets, asp_prompts *prompts) {
    py_batch batch;
    if (!asp_py_arrays_batch(&batch, tokens, offsets)) return 0;
    h->arrays[h->n++] = batch.token_array;
    h->arrays[h->n++] = batch.offset_array;
    *prompts = (asp_prompts){batch.tokens, batch.offsets, batch.n_sequences};
    return 1;
}

int asp_py_effects_read_task(py_task *t, PyObject *object, int64_t n_vocab) {
    static const char *const fields[] = {"tokens", "offsets", "corrupted", "metric"};
    PyObject *o[4];
    *t = (py_task){.held = {.n = 0}};
    if (!asp_py_module_fields(object, "Task", fields, 4, o)) return 0;
    int64_t n;
    asp_task *task = &t->task;
    int good = read_prompts(&t->held, o[0], o[1], &task->clean);
    if (good && o[2] != Py_None) {
        task->corrupted = task->clean;
        task->corrupted.tokens = asp_py_arrays_hold_copy(&t->held, o[2], ASP_PY_INT32, 1, "corrupted", &n);
        good = task->corrupted.tokens &&
               (n == task->clean.offsets[task->clean.n_prompts] || wrong_task_shape("corrupted"));
    }
    good = good && asp_py_metric_read(&t->metric, o[3], n_vocab);
    task->metric = t->metric.metric;
    asp_py_module_forget(o, 4);
    return good;
}

void asp_py_effects_clear_task(py_task *t) {
    asp_py_metric_clear(&t->metric);
    asp_py_arrays_let_go(&t->held);
}

/* ---- a call --------------------------------------------------------------------------------- */

static const char *const units[] = {"head", "head_position", "edge"};

static int read_effects_fields(py_held *h, PyObject **o, asp_prompts *reference, asp_effect_options *options) {
    static const char *const ablations[] = {"zero", "mean", "counterfactual"};
    const int unit = asp_py_module_index(o[0], "unit", units, 3);
    const int ablation = unit < 0 ? -1 : asp_py_module_index(o[1], "ablation", ablations, 3);
    if (ablation < 0) return 0;
    *options = (asp_effect_options){.unit = (asp_unit)unit, .ablation = (asp_ablation)ablation};
    options->max_bytes = PyLong_AsLongLong(o[2]);
    if (options->max_bytes == -1 && PyErr_Occurred()) return 0;
    options->others_stay = PyObject_IsTrue(o[5]);
    if (options->others_stay < 0) return 0;
    if (o[3] == Py_None) return 1;
    options->reference = reference;
    return read_prompts(h, o[3], o[4], reference);
}

int asp_py_effects_read_options(py_held *h, PyObject *object, asp_prompts *reference, asp_effect_options *options) {
    static const char *const fields[] = {"unit",      "ablation",          "max_bytes",
                                         "reference", "reference_offsets", "others_stay"};
    PyObject *o[6];
    if (!asp_py_module_fields(object, "EffectOptions", fields, 6, o)) return 0;
    const int good = read_effects_fields(h, o, reference, options);
    asp_py_module_forget(o, 6);
    return good;
}

/* What calls read from their arguments, with the arrays that it points to. */
typedef struct {
    py_held held;
    py_task task;
    asp_effect_options options;
    asp_prompts reference;
    asp_items items;
    const int64_t *numbers; /* sizes, or items that are dropped */
    int64_t n_numbers;
} effects_call;

static int read_effects_task(effects_call *e, PyObject *self, PyObject *object) {
    return asp_py_effects_read_task(&e->task, object, asp_model_config(((py_model *)self)->model)->n_vocab);
}

static int read_effects_options(effects_call *e, PyObject *object) {
    return asp_py_effects_read_options(&e->held, object, &e->reference, &e->options);
}

static void let_go_effects(effects_call *e) {
    asp_py_effects_clear_task(&e->task);
    asp_py_arrays_let_go(&e->held);
}

static int read_effects_items(effects_call *e, PyObject *object) {
    int64_t dims[2];
    e->items.rows = asp_py_arrays_hold_copy(&e->held, object, ASP_PY_INT32, 2, "items", dims);
    if (!e->items.rows) return 0;
    e->items.n = dims[0];
    return dims[1] == 2 + (int64_t)e->options.unit || wrong_task_shape("items");
}

/* Begins a call that has read its arguments; 0 and an exception if the model is being changed. */
static int begin_effects(effects_call *e, py_call *call, PyObject *self, int threads, PyObject *progress) {
    e->task.metric.call = call;
    if (!asp_py_call_read_begin((py_model *)self)) return 0;
    asp_py_call_begin(call, asp_py_call_n_threads(self, threads));
    asp_py_call_report(call, progress);
    return 1;
}

/* Ends it: the result, or NULL and an exception. */
static PyObject *end_effects(py_call *call, PyObject *self, PyObject *result, asp_status status, const asp_error *err) {
    asp_py_call_end(call);
    asp_py_call_read_end((py_model *)self);
    if (status) asp_py_call_raise(status, err);
    if (PyErr_Occurred()) Py_CLEAR(result);
    return result;
}

/* ---- candidates and the whole model ------------------------------------------------------------ */

PyObject *asp_py_effects_candidates(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"task", "unit", "threads", NULL};
    PyObject *task, *unit_name, *result = NULL;
    int threads = 0;
    effects_call e = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|i:candidates", names, &task, &unit_name, &threads)) return NULL;
    if (!asp_py_call_check_threads(threads)) return NULL;
    const int unit = asp_py_module_index(unit_name, "unit", units, 3);
    py_call call;
    if (unit >= 0 && read_effects_task(&e, self, task) && begin_effects(&e, &call, self, threads, Py_None)) {
        asp_error err = {0};
        int32_t *rows;
        int64_t dims[2] = {0, 2 + unit};
        void *data;
        const asp_status status = asp_effects_candidates(&rows, &dims[0], ((py_model *)self)->model, &e.task.task,
                                                         (asp_unit)unit, &call.context, &err);
        end_effects(&call, self, NULL, status, &err);
        if (!PyErr_Occurred()) result = asp_py_arrays_new(ASP_PY_INT32, 2, dims, &data);
        if (result) memcpy(data, rows, (size_t)(dims[0] * dims[1]) * sizeof *rows);
        asp_effects_free_items(rows);
    }
    let_go_effects(&e);
    return result;
}

PyObject *asp_py_effects_whole(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"task", "threads", NULL};
    PyObject *task, *result = NULL;
    int threads = 0;
    void *values;
    effects_call e = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|i:whole", names, &task, &threads)) return NULL;
    if (!asp_py_call_check_threads(threads)) return NULL;
    if (read_effects_task(&e, self, task))
        result = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &e.task.task.clean.n_prompts, &values);
    py_call call;
    if (result && begin_effects(&e, &call, self, threads, Py_None)) {
        asp_error err = {0};
        const asp_status status =
            asp_effects_whole(values, ((py_model *)self)->model, &e.task.task, &call.context, &err);
        result = end_effects(&call, self, result, status, &err);
    }
    let_go_effects(&e);
    if (PyErr_Occurred()) Py_CLEAR(result);
    return result;
}

/* ---- exact effects ------------------------------------------------------------------------------ */

static asp_status knock_out(double *values, const asp_model *model, const effects_call *e, const asp_context *context,
                            asp_error *err) {
    return asp_effects_knock_out(values, model, &e->task.task, e->items, &e->options, context, err);
}

static asp_status keep_only(double *values, const asp_model *model, const effects_call *e, const asp_context *context,
                            asp_error *err) {
    return asp_effects_keep_only(values, model, &e->task.task, e->items, e->numbers, e->n_numbers, &e->options, context,
                                 err);
}

static asp_status leave_one_out(double *values, const asp_model *model, const effects_call *e,
                                const asp_context *context, asp_error *err) {
    return asp_effects_leave_one_out(values, model, &e->task.task, e->items, e->numbers, e->n_numbers, &e->options,
                                     context, err);
}

typedef asp_status (*question)(double *values, const asp_model *model, const effects_call *e,
                               const asp_context *context, asp_error *err);

/* Rows of the metric: one for each of the numbers, whose name is given, or for each item. */
static PyObject *measure_effects(PyObject *self, PyObject *args, PyObject *kwargs, char *name, question ask) {
    char *with[] = {"task", "items", name, "options", "threads", "progress", NULL};
    static char *without[] = {"task", "items", "options", "threads", "progress", NULL};
    PyObject *task, *items, *numbers = NULL, *options, *progress = Py_None, *result = NULL;
    int threads = 0;
    effects_call e = {0};
    if (name ? !PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|iO", with, &task, &items, &numbers, &options, &threads,
                                            &progress)
             : !PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|iO", without, &task, &items, &options, &threads,
                                            &progress))
        return NULL;
    if (!asp_py_call_check_threads(threads)) return NULL;
    int good = read_effects_task(&e, self, task) && read_effects_options(&e, options) && read_effects_items(&e, items);
    if (good && numbers) {
        e.numbers = asp_py_arrays_hold_copy(&e.held, numbers, ASP_PY_INT64, 1, name, &e.n_numbers);
        good = e.numbers != NULL;
    }
    void *values;
    const int64_t dims[2] = {numbers ? e.n_numbers : e.items.n, e.task.task.clean.n_prompts};
    if (good) result = asp_py_arrays_new(ASP_PY_DOUBLE, 2, dims, &values);
    py_call call;
    if (result && begin_effects(&e, &call, self, threads, progress)) {
        asp_error err = {0};
        const asp_status status = ask(values, ((py_model *)self)->model, &e, &call.context, &err);
        result = end_effects(&call, self, result, status, &err);
    }
    let_go_effects(&e);
    if (PyErr_Occurred()) Py_CLEAR(result);
    return result;
}

PyObject *asp_py_effects_knock_out(PyObject *self, PyObject *args, PyObject *kwargs) {
    return measure_effects(self, args, kwargs, NULL, knock_out);
}

PyObject *asp_py_effects_keep_only(PyObject *self, PyObject *args, PyObject *kwargs) {
    return measure_effects(self, args, kwargs, "sizes", keep_only);
}

PyObject *asp_py_effects_leave_one_out(PyObject *self, PyObject *args, PyObject *kwargs) {
    return measure_effects(self, args, kwargs, "dropped", leave_one_out);
}

/* ---- first-order effects -------------------------------------------------------------------------- */

PyObject *asp_py_effects_attribution(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"task", "options", "steps", "through_gate", "threads", "progress", NULL};
    PyObject *task, *options, *progress = Py_None, *scores = NULL;
    long long steps;
    int through_gate, threads = 0;
    void *data;
    effects_call e = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOLp|iO:attribution", names, &task, &options, &steps, &through_gate,
                                     &threads, &progress))
        return NULL;
    const asp_model *model = ((py_model *)self)->model;
    const asp_config *c = asp_model_config(model);
    if (!asp_py_call_check_threads(threads)) return NULL;
    if (read_effects_task(&e, self, task) && read_effects_options(&e, options)) {
        const int64_t length = e.task.task.clean.offsets[1], dims[4] = {c->n_layer, c->n_head, length, length};
        scores = asp_py_arrays_new(ASP_PY_DOUBLE, 2 + (int)e.options.unit, dims, &data);
    }
    py_call call;
    if (scores && begin_effects(&e, &call, self, threads, progress)) {
        asp_error err = {0};
        const asp_status status =
            asp_effects_attribution(data, model, &e.task.task, &e.options, steps, through_gate, &call.context, &err);
        scores = end_effects(&call, self, scores, status, &err);
    }
    let_go_effects(&e);
    if (PyErr_Occurred()) Py_CLEAR(scores);
    return scores;
}
