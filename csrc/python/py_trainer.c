/* py_trainer.c: the type Trainer: optimiser state and the training step. */
#include "python/py.h"

#include <math.h>
#include <string.h>

enum { MOST_PARTS = 1000000, MOST_RANKS = 1000000 };

static PyObject *trainer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *object;
    long long rank = 0, n_ranks = 1;
    char *names[] = {"model", "rank", "ranks", NULL};
    py_state *state = asp_py_module_state(type);
    if (!state ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "O!|LL", names, state->model_type, &object, &rank, &n_ranks))
        return NULL;
    if (n_ranks < 1 || n_ranks > MOST_RANKS || rank < 0 || rank >= n_ranks)
        return PyErr_Format(PyExc_ValueError, "rank must be in 0..%lld of ranks in 1..%d, got %lld", n_ranks - 1,
                            MOST_RANKS, rank);
    py_trainer *self = (py_trainer *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    asp_error err = {0};
    self->model = (py_model *)Py_NewRef(object);
    self->step.what = self->piece.what = "trainer";
    self->rank = rank;
    self->n_ranks = n_ranks;
    const asp_status status = asp_trainer_new(&self->trainer, self->model->model, rank, n_ranks, &err);
    if (!status) return (PyObject *)self;
    Py_DECREF(self);
    return asp_py_call_raise(status, &err);
}

static void trainer_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    asp_py_pieces_end((py_trainer *)self);
    asp_trainer_free(((py_trainer *)self)->trainer);
    Py_XDECREF((PyObject *)((py_trainer *)self)->model);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- one step --------------------------------------------------------------------------------- */

static int check_step_options(const asp_step_options *o, int gated) {
    const py_step_range ranges[] = {{"weight_decay", o->weight_decay, 0, ASP_PY_STEP_MOST},
                                    {"tau", o->tau, -ASP_PY_STEP_MOST, ASP_PY_STEP_MOST},
                                    {"geco_rate", o->geco_rate, 0, ASP_PY_STEP_MOST},
                                    {"geco_clip", o->geco_clip, 0, ASP_PY_STEP_MOST},
                                    {"geco_ema", o->geco_ema, 0, 1},
                                    {"lambda_min", o->lambda_min, 0, ASP_PY_STEP_MOST},
                                    {"lambda_max", o->lambda_max, o->lambda_min, ASP_PY_STEP_MOST}};
    if (!asp_py_call_step_check_adamw(o->lr, o->beta1, o->beta2, o->eps, o->clip) ||
        !asp_py_call_step_check(ranges, sizeof ranges / sizeof ranges[0]))
        return 0;
    if (o->constraint == ASP_CONSTRAINT_EDGES) {
        const py_step_range target = {"edges_per_token", o->edges_per_token, 1e-12, ASP_PY_STEP_MOST};
        return asp_py_call_step_check(&target, 1);
    }
    if (!gated || !o->geco_relative || o->geco_rate <= 0 || o->tau > 0) return 1;
    PyErr_SetString(PyExc_ValueError, "tau must be above 0 when the multiplier follows the relative constraint");
    return 0;
}

static const double MOST_DROPPED = 0.999; /* of what is divided by 1 - rate; of heads all may be */

static void list_layer_options(py_step_layers list[ASP_PY_LAYER_OPTIONS], asp_step_options *o) {
    static const char *const edges[] = {"self_edge_weight", "previous_edge_weight", "first_edge_weight", "edge_weight"},
                             *const drops[] = {"entry_dropout", "head_dropout", "attn_out_dropout", "mlp_out_dropout"};
    const double most = ASP_PY_STEP_MOST;
    list[0] = (py_step_layers){"gate_bias", -most, most, &o->gate_bias, Py_None, NULL};
    for (int i = 0; i < ASP_N_ENTRY_KINDS; i++)
        list[1 + i] = (py_step_layers){edges[i], -most, most, &o->edge_weight[i], Py_None, NULL};
    for (int i = 0; i < ASP_N_DROPS; i++) {
        const double most_dropped = i == ASP_DROP_HEADS ? 1 : MOST_DROPPED;
        list[1 + ASP_N_ENTRY_KINDS + i] = (py_step_layers){drops[i], 0, most_dropped, &o->dropout[i], Py_None, NULL};
    }
}

static int read_constraint(const char *name, asp_constraint *constraint) {
    static const char *const names[] = {"training", "hard", "held-out", "edges"};
    for (int i = 0; i < 4; i++)
        if (strcmp(name, names[i]) == 0) {
            *constraint = (asp_constraint)i;
            return 1;
        }
    PyErr_Format(PyExc_ValueError, "constraint must be 'training', 'hard', 'held-out' or 'edges', got '%.60s'", name);
    return 0;
}

static int parse_step(PyObject *args, PyObject *kwargs, py_step_arguments *a) {
    static char *names[] = {"micro",
                            "lr",
                            "beta1",
                            "beta2",
                            "eps",
                            "weight_decay",
                            "clip",
                            "seed",
                            "gate_noise",
                            "gate_bias",
                            "self_edge_weight",
                            "previous_edge_weight",
                            "first_edge_weight",
                            "edge_weight",
                            "entry_dropout",
                            "head_dropout",
                            "attn_out_dropout",
                            "mlp_out_dropout",
                            "tau",
                            "geco_rate",
                            "geco_clip",
                            "geco_ema",
                            "geco_relative",
                            "lambda_min",
                            "lambda_max",
                            "constraint",
                            "measured",
                            "edges_per_token",
                            "parts",
                            "first",
                            "count",
                            "threads",
                            NULL};
    unsigned long long seed = 0;
    const char *constraint = "training";
    asp_step_options *o = &a->options;
    py_step_layers *l = a->layers;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$ddddddKpOOOOOOOOOddddpddsddLLLi:step", names, &a->given, &o->lr,
                                     &o->beta1, &o->beta2, &o->eps, &o->weight_decay, &o->clip, &seed, &o->gate_noise,
                                     &l[0].given, &l[1].given, &l[2].given, &l[3].given, &l[4].given, &l[5].given,
                                     &l[6].given, &l[7].given, &l[8].given, &o->tau, &o->geco_rate, &o->geco_clip,
                                     &o->geco_ema, &o->geco_relative, &o->lambda_min, &o->lambda_max, &constraint,
                                     &o->measured, &o->edges_per_token, &a->n_parts, &a->first, &a->count, &a->threads))
        return 0;
    o->seed = seed;
    return read_constraint(constraint, &o->constraint);
}

static int check_step_parts(const py_step_arguments *a) {
    if (a->n_parts >= 1 && a->n_parts <= MOST_PARTS && a->first >= 0 && a->count >= 1 && a->count <= a->n_parts &&
        a->first <= a->n_parts - a->count)
        return 1;
    PyErr_Format(PyExc_ValueError, "parts must be in 1..%d and hold parts first..first+count, got %lld, %lld and %lld",
                 MOST_PARTS, a->n_parts, a->first, a->count);
    return 0;
}

/* 0 and an exception; release them in any case. */
int asp_py_trainer_read_step(py_trainer *self, PyObject *args, PyObject *kwargs, py_step_arguments *a) {
    *a = (py_step_arguments){.options = {.lr = NAN,
                                         .beta1 = NAN,
                                         .beta2 = NAN,
                                         .eps = NAN,
                                         .weight_decay = NAN,
                                         .clip = NAN,
                                         .gate_noise = 1,
                                         .geco_clip = 1,
                                         .geco_ema = 0.95,
                                         .geco_relative = 1,
                                         .lambda_max = 1e9,
                                         .measured = NAN},
                             .n_parts = 1,
                             .count = 1};
    list_layer_options(a->layers, &a->options);
    const asp_config *config = asp_model_config(self->model->model);
    if (!parse_step(args, kwargs, a) || !check_step_options(&a->options, config->gated) || !check_step_parts(a) ||
        !asp_py_call_check_threads(a->threads))
        return 0;
    if (a->threads == 0) a->threads = asp_py_module_state(Py_TYPE(self))->n_threads;
    for (int i = 0; i < ASP_PY_LAYER_OPTIONS; i++)
        if (!asp_py_call_step_layers(&a->layers[i], config->n_layer)) return 0;
    return 1;
}

void asp_py_trainer_release_step(py_step_arguments *a) {
    for (int i = 0; i < ASP_PY_LAYER_OPTIONS; i++) Py_XDECREF(a->layers[i].array);
}

PyObject *asp_py_trainer_result(py_trainer *self, const asp_step_result *r) {
    const long long step = (long long)asp_trainer_get_state(self->trainer)->step - 1;
    return Py_BuildValue("{s:L,s:d,s:d,s:d,s:d,s:d,s:d,s:d,s:d,s:d,s:d,s:d,s:L}", "step", step, "loss", r->loss, "ce",
                         r->cross_entropy, "expected_edges", r->expected_edges, "open_edges", r->open_edges,
                         "open_self", r->open_self, "edges_per_token", r->edges_per_token, "self_edges_per_token",
                         r->self_per_token, "constrained", r->constrained, "multiplier", r->multiplier, "ema", r->ema,
                         "grad_norm", r->grad_norm, "tokens", (long long)r->n_tokens);
}

/* Takes trainer and model until end_step; 0 and RuntimeError. */
int asp_py_trainer_begin(py_trainer *self) {
    if (!asp_py_call_step_take(&self->step)) return 0;
    if (asp_py_call_write_begin(self->model)) return 1;
    asp_py_call_step_release(&self->step);
    return 0;
}

/* The weights are another version only if they were changed. */
void asp_py_trainer_leave(py_trainer *self, int changed) {
    if (changed) asp_py_call_write_end(self->model);
    else atomic_store(&self->model->users, 0);
    asp_py_call_step_release(&self->step);
}

static PyObject *trainer_step(PyObject *object, PyObject *args, PyObject *kwargs) {
    py_trainer *self = (py_trainer *)object;
    PyObject *result = NULL;
    py_step_arguments a;
    py_micro micro = {0};
    if (asp_py_trainer_read_step(self, args, kwargs, &a) && asp_py_arrays_micro(&micro, a.given) &&
        asp_py_trainer_begin(self)) {
        asp_error err = {0};
        asp_step_result r = {0};
        py_call call;
        asp_py_call_begin(&call, a.threads);
        const asp_status status =
            asp_trainer_step(self->trainer, micro.batches, micro.n, a.n_parts, &a.options, &call.context, &r, &err);
        asp_py_call_end(&call);
        asp_py_trainer_leave(self, !status);
        result = status ? asp_py_call_raise(status, &err) : asp_py_trainer_result(self, &r);
    }
    asp_py_arrays_micro_clear(&micro);
    asp_py_trainer_release_step(&a);
    return result;
}

/* ---- state ------------------------------------------------------------------------------------- */

static const asp_parameter *find_trained(py_trainer *self, PyObject *name) {
    const char *text = asp_py_module_name(name, "a parameter name");
    for (int64_t i = 0; text && i < asp_model_n_parameters(self->model->model); i++) {
        const asp_parameter *p = asp_model_parameter(self->model->model, i);
        if (strcmp(p->name, text) == 0) return p;
    }
    if (text) PyErr_Format(PyExc_KeyError, "this model has no parameter %R", name);
    return NULL;
}

static PyObject *trainer_place(PyObject *object, PyObject *name) {
    const asp_parameter *p = find_trained((py_trainer *)object, name);
    const long long end = p ? p->offset + p->size : 0;
    return p ? Py_BuildValue("(LL)", (long long)p->offset, end) : NULL;
}

static PyObject *trainer_moments(PyObject *object, PyObject *name) {
    py_trainer *self = (py_trainer *)object;
    const asp_parameter *p = find_trained(self, name);
    if (!p) return NULL;
    const asp_trainer_slice s = asp_trainer_slice_of(self->trainer, self->rank);
    if (p->offset < s.begin || p->offset + p->size > s.end)
        return PyErr_Format(PyExc_ValueError, "this process does not have all moments of %s", p->name);
    const int64_t at = p->offset - s.begin;
    PyObject *m = asp_py_arrays_lend(object, asp_trainer_first_moment(self->trainer) + at, ASP_PY_REAL, p->n_dims,
                                     p->dims, NULL, 0);
    PyObject *v = asp_py_arrays_lend(object, asp_trainer_second_moment(self->trainer) + at, ASP_PY_REAL, p->n_dims,
                                     p->dims, NULL, 0);
    if (m && v) return Py_BuildValue("(NN)", m, v);
    Py_XDECREF(m);
    Py_XDECREF(v);
    return NULL;
}

static PyObject *borrow_moment(PyObject *object, const asp_parameter *p, void **data) {
    int64_t dims[2] = {0};
    PyObject *array = asp_py_arrays_borrow(object, ASP_PY_REAL, p->n_dims, p->name, data, dims);
    if (!array || (dims[0] == p->dims[0] && (p->n_dims == 1 || dims[1] == p->dims[1]))) return array;
    PyErr_Format(PyExc_ValueError, "the moments of %s have another shape than the weights", p->name);
    Py_DECREF(array);
    return NULL;
}

static PyObject *trainer_load_moments(PyObject *object, PyObject *args) {
    py_trainer *self = (py_trainer *)object;
    PyObject *name, *m, *v;
    void *m_data, *v_data;
    if (!PyArg_ParseTuple(args, "UOO", &name, &m, &v)) return NULL;
    const asp_parameter *p = find_trained(self, name);
    PyObject *m_array = p ? borrow_moment(m, p, &m_data) : NULL;
    PyObject *v_array = m_array ? borrow_moment(v, p, &v_data) : NULL;
    if (v_array) {
        const asp_trainer_slice s = asp_trainer_slice_of(self->trainer, self->rank);
        const int64_t begin = p->offset > s.begin ? p->offset : s.begin,
                      end = p->offset + p->size < s.end ? p->offset + p->size : s.end,
                      bytes = begin < end ? (end - begin) * (int64_t)sizeof(asp_real) : 0, from = begin - p->offset;
        const py_step_copy copies[] = {{asp_trainer_first_moment(self->trainer) + (begin - s.begin),
                                        (asp_real *)m_data + from, bytes},
                                       {asp_trainer_second_moment(self->trainer) + (begin - s.begin),
                                        (asp_real *)v_data + from, bytes}};
        if (bytes) asp_py_call_step_copy(&self->step, copies, 2);
    }
    Py_XDECREF(m_array);
    Py_XDECREF(v_array);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

static asp_trainer_state *state_of(PyObject *self) { return asp_trainer_get_state(((py_trainer *)self)->trainer); }

static int set_number(PyObject *value, double *out) {
    if (!value) {
        PyErr_SetString(PyExc_AttributeError, "this attribute cannot be deleted");
        return -1;
    }
    const double x = PyFloat_AsDouble(value);
    if (x == -1.0 && PyErr_Occurred()) return -1;
    *out = x;
    return 0;
}

static PyObject *trainer_get_step(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(state_of(self)->step);
}
static int trainer_set_step(PyObject *self, PyObject *value, void *unused) {
    (void)unused;
    return asp_py_call_step_set_count(&((py_trainer *)self)->step, &state_of(self)->step, value);
}
static PyObject *get_multiplier(PyObject *self, void *unused) {
    (void)unused;
    return PyFloat_FromDouble(state_of(self)->multiplier);
}
static int set_multiplier(PyObject *self, PyObject *value, void *unused) {
    (void)unused;
    double x;
    if (set_number(value, &x) < 0) return -1;
    if (!(x >= 0) || isinf(x)) {
        PyErr_SetString(PyExc_ValueError, "multiplier must be finite and not negative");
        return -1;
    }
    if (!asp_py_call_step_take(&((py_trainer *)self)->step)) return -1;
    state_of(self)->multiplier = x;
    asp_py_call_step_release(&((py_trainer *)self)->step);
    return 0;
}
static PyObject *get_ema(PyObject *self, void *unused) {
    (void)unused;
    return PyFloat_FromDouble(state_of(self)->ema);
}
static int set_ema(PyObject *self, PyObject *value, void *unused) {
    (void)unused;
    double x;
    if (set_number(value, &x) < 0 || !asp_py_call_step_take(&((py_trainer *)self)->step)) return -1;
    state_of(self)->ema = x;
    asp_py_call_step_release(&((py_trainer *)self)->step);
    return 0;
}

static PyMethodDef methods[] = {
    {"step", (PyCFunction)(void (*)(void))trainer_step, METH_VARARGS | METH_KEYWORDS,
     "step(micro, *, lr, beta1, beta2, eps, weight_decay, clip, seed, gate_bias=None, "
     "edge_weight=None, tau=0, ...) -> dict"},
    {"moments", trainer_moments, METH_O, "moments(name) -> (m, v): read-only views of Adam's moments."},
    {"load_moments", trainer_load_moments, METH_VARARGS,
     "load_moments(name, m, v): copies in what the process keeps of them."},
    {"place", trainer_place, METH_O, "place(name) -> (begin, end) of a parameter"},
    {"gradients", (PyCFunction)(void (*)(void))asp_py_pieces_gradients, METH_VARARGS | METH_KEYWORDS,
     "gradients(micro, *, parts, first, count, ...) -> (numbers, [(first, n, sum)])"},
    {"combine", asp_py_pieces_combine, METH_VARARGS,
     "combine(sums, received) -> squares of the gradients of the slice"},
    {"update", (PyCFunction)(void (*)(void))asp_py_pieces_update, METH_VARARGS | METH_KEYWORDS,
     "update((numbers, squares, weights), ...) -> dict: the slice of weights is written"},
    {"adopt", asp_py_pieces_adopt, METH_O, "adopt(weights): the end of a step in pieces."},
    {"abandon", asp_py_pieces_abandon, METH_NOARGS, "Ends a step in pieces."},
    {"slice", asp_py_pieces_slice, METH_O,
     "slice(rank) -> (begin, end, first chunk, end chunk) of what a process updates"},
    {"slice_moments", asp_py_pieces_moments, METH_NOARGS, "Read-only views of the moments of the slice."},
    {0}};

static PyGetSetDef attributes[] = {{"step_count", trainer_get_step, trainer_set_step, "Steps taken.", NULL},
                                   {"multiplier", get_multiplier, set_multiplier, "Multiplier of the constraint.",
                                    NULL},
                                   {"ema", get_ema, set_ema,
                                    "Moving average of the constraint; NaN before the first step.", NULL},
                                   {0}};

static PyType_Slot slots[] = {{Py_tp_new, trainer_new},
                              {Py_tp_dealloc, trainer_dealloc},
                              {Py_tp_methods, methods},
                              {Py_tp_getset, attributes},
                              {Py_tp_doc, "Trainer(model): gradients, moments and scratch of a training run."},
                              {0, NULL}};
PyType_Spec asp_py_trainer_spec = {ASP_MODULE ".Trainer", sizeof(py_trainer), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, slots};
