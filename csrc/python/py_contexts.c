/* py_contexts.c: the type Contexts, a table of where features are most active, and the tokens that they promote. */
#include "python/py.h"

#include <string.h>

/* Additions first, one at a time; the first array that is lent ends them. */
enum { OPEN, BUSY, CLOSED };

typedef struct {
    PyObject_HEAD asp_contexts *contexts;
    atomic_int stage;
} py_contexts;

static PyObject *contexts_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"n_features", "wanted", "top", "before", "after", NULL};
    long long n_features, top, before, after;
    PyObject *wanted;
    asp_contexts_options options = {0};
    py_held held = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "LOLLL:Contexts", names, &n_features, &wanted, &top, &before,
                                     &after))
        return NULL;
    options.n_features = n_features, options.top = top, options.before = before, options.after = after;
    if (wanted != Py_None &&
        !(options.wanted = asp_py_arrays_hold_copy(&held, wanted, ASP_PY_INT64, 1, "wanted", &options.n_wanted)))
        return NULL;
    py_contexts *self = (py_contexts *)type->tp_alloc(type, 0);
    asp_error err = {0};
    asp_status status = ASP_OK;
    if (self) status = asp_contexts_new(&self->contexts, &options, &err);
    asp_py_arrays_let_go(&held);
    if (!status) return (PyObject *)self;
    Py_DECREF(self);
    return asp_py_call_raise(status, &err);
}

static void contexts_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    asp_contexts_free(((py_contexts *)self)->contexts);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *wrong_stage(int stage) {
    PyErr_SetString(PyExc_RuntimeError, stage == BUSY ? "contexts are being added in another thread"
                                                      : "nothing can be added once an array has been read");
    return NULL;
}

static PyObject *add_active(py_contexts *self, const asp_feature_list *list, const asp_contexts_prompts *prompts) {
    int stage = OPEN;
    if (!atomic_compare_exchange_strong(&self->stage, &stage, BUSY)) return wrong_stage(stage);
    asp_error err = {0};
    py_call call;
    asp_py_call_begin(&call, 1);
    const asp_status status = asp_contexts_add(self->contexts, list, 0, prompts, &call.context, &err);
    asp_py_call_end(&call);
    atomic_store(&self->stage, OPEN);
    if (status) return asp_py_call_raise(status, &err);
    Py_RETURN_NONE;
}

/* The active features of one layer; start (2) written. */
static int read_active(py_held *h, PyObject *const o[3], int64_t start[2], asp_feature_list *list) {
    int64_t n_features = -1, n_activations = -1;
    list->position = asp_py_arrays_hold_copy(h, o[0], ASP_PY_INT32, 1, "position", &list->n);
    if (list->position) list->feature = asp_py_arrays_hold_copy(h, o[1], ASP_PY_INT32, 1, "feature", &n_features);
    if (list->feature)
        list->activation = asp_py_arrays_hold_copy(h, o[2], ASP_PY_REAL, 1, "activation", &n_activations);
    if (!list->activation) return 0;
    start[0] = 0;
    start[1] = list->n;
    list->start = start;
    if (n_features == list->n && n_activations == list->n) return 1;
    PyErr_Format(PyExc_ValueError, "position, feature and activation must be as long, got %lld, %lld and %lld",
                 (long long)list->n, (long long)n_features, (long long)n_activations);
    return 0;
}

static PyObject *contexts_add(PyObject *object, PyObject *args) {
    PyObject *active[3], *tokens, *offsets, *result = NULL;
    long long first;
    int64_t start[2];
    py_batch batch;
    py_held held = {.n = 0};
    asp_feature_list list = {0};
    if (!PyArg_ParseTuple(args, "OOOOOL:add", &active[0], &active[1], &active[2], &tokens, &offsets, &first))
        return NULL;
    if (!asp_py_arrays_batch(&batch, tokens, offsets)) return NULL;
    const asp_contexts_prompts prompts = {batch.tokens, batch.offsets, batch.n_sequences, first};
    if (first < 0 || first > INT32_MAX - batch.n_sequences)
        PyErr_Format(PyExc_ValueError, "the first prompt must have a number in 0..%lld, got %lld",
                     (long long)(INT32_MAX - batch.n_sequences), first);
    else if (read_active(&held, active, start, &list)) result = add_active((py_contexts *)object, &list, &prompts);
    asp_py_arrays_let_go(&held);
    asp_py_arrays_batch_clear(&batch);
    return result;
}

static PyObject *contexts_array(PyObject *object, PyObject *name) {
    py_contexts *self = (py_contexts *)object;
    const char *text = asp_py_module_name(name, "an array name");
    if (!text) return NULL;
    int stage = OPEN;
    if (!atomic_compare_exchange_strong(&self->stage, &stage, CLOSED) && stage == BUSY) return wrong_stage(stage);
    const asp_contexts_table t = asp_contexts_read(self->contexts);
    const int64_t dims[] = {t.n, t.top, t.width};
    const struct {
        const char *name;
        const void *data;
        int kind, n_dims;
    } arrays[] = {{"prompt", t.prompt, ASP_PY_INT32, 2},           {"position", t.position, ASP_PY_INT32, 2},
                  {"activation", t.activation, ASP_PY_FLOAT, 2},   {"tokens", t.tokens, ASP_PY_INT32, 3},
                  {"activations", t.activations, ASP_PY_FLOAT, 3}, {"count", t.count, ASP_PY_INT64, 1}};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++)
        if (strcmp(text, arrays[i].name) == 0)
            return asp_py_arrays_lend(object, (void *)(uintptr_t)arrays[i].data, arrays[i].kind, arrays[i].n_dims, dims,
                                      NULL, 0);
    return PyErr_Format(PyExc_KeyError, "contexts have no array %R", name);
}

static PyMethodDef methods[] = {
    {"add", contexts_add, METH_VARARGS,
     "add(position, feature, activation, tokens, offsets, first): what is active of a layer, sorted by position and\n"
     "feature, in prompts first, first + 1, ..."},
    {"array", contexts_array, METH_O, "array(name): read-only view of one array; nothing can be added after it."},
    {0}};

static PyType_Slot slots[] = {{Py_tp_new, contexts_new},
                              {Py_tp_dealloc, contexts_dealloc},
                              {Py_tp_methods, methods},
                              {Py_tp_doc, "Contexts(n_features, wanted, top, before, after): the strongest contexts of "
                                          "features of a layer."},
                              {0, NULL}};
PyType_Spec asp_py_contexts_spec = {ASP_MODULE ".Contexts", sizeof(py_contexts), 0,
                                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, slots};

/* ---- a method of Model --------------------------------------------------------------------------- */

static asp_status promote(py_model *model, int threads, void *const *out, int64_t k, const double *rows,
                          const int64_t *dims, asp_error *err) {
    py_call call;
    asp_py_call_begin(&call, asp_py_call_n_threads((PyObject *)model, threads));
    const asp_status status =
        asp_contexts_promoted(out[0], out[1], k, model->model, rows, dims[0], dims[1], &call.context, err);
    asp_py_call_end(&call);
    return status;
}

PyObject *asp_py_contexts_promoted(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"rows", "n", "threads", NULL};
    py_model *model = (py_model *)object;
    PyObject *rows, *tokens = NULL, *effects = NULL, *result = NULL;
    py_held held = {0};
    long long k;
    int threads = 0;
    int64_t dims[3];
    void *out[2];
    const double *data;
    const asp_config *c = asp_model_config(model->model);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OL|i:promoted_tokens", names, &rows, &k, &threads) ||
        !asp_py_call_check_threads(threads))
        return NULL;
    if (k < 1 || k > c->n_vocab)
        return PyErr_Format(PyExc_ValueError, "n must be in 1..%lld, got %lld", (long long)c->n_vocab, k);
    if (!(data = asp_py_arrays_hold_convert(&held, rows, ASP_PY_DOUBLE, 3, "rows", dims))) return NULL;
    const int64_t shape[] = {2, dims[0], k};
    if (dims[2] != c->d_model || dims[1] < 1)
        PyErr_Format(PyExc_ValueError, "rows must have shape (n, 1 or more, %lld), got (%lld, %lld, %lld)",
                     (long long)c->d_model, (long long)dims[0], (long long)dims[1], (long long)dims[2]);
    else if ((tokens = asp_py_arrays_new(ASP_PY_INT32, 3, shape, &out[0])) &&
             (effects = asp_py_arrays_new(ASP_PY_FLOAT, 3, shape, &out[1])) && asp_py_call_read_begin(model)) {
        asp_error err = {0};
        const asp_status status = promote(model, threads, out, k, data, dims, &err);
        asp_py_call_read_end(model);
        if (status) asp_py_call_raise(status, &err);
        else result = Py_BuildValue("(OO)", tokens, effects);
    }
    Py_XDECREF(tokens);
    Py_XDECREF(effects);
    asp_py_arrays_let_go(&held);
    return result;
}
