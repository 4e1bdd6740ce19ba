/* py_trainer.c: the type Trainer: optimiser state and the training step. */
#include "python/py.h"

#include <math.h>
#include <string.h>

static PyObject *trainer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *object;
    char *names[] = {"model", NULL};
    py_state *state = asp_py_module_state(type);
    if (!state || !PyArg_ParseTupleAndKeywords(args, kwargs, "O!", names, state->model_type, &object)) return NULL;
    py_trainer *self = (py_trainer *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    asp_error err = {0};
    self->model = (py_model *)Py_NewRef(object);
    self->step.what = "trainer";
    const asp_status status = asp_trainer_new(&self->trainer, self->model->model, &err);
    if (!status) return (PyObject *)self;
    Py_DECREF(self);
    return asp_py_call_raise(status, &err);
}

static void trainer_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    asp_trainer_free(((py_trainer *)self)->trainer);
    Py_XDECREF((PyObject *)((py_trainer *)self)->model);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- one step --------------------------------------------------------------------------------- */

/* Arrays of one micro-batch, held for the length of the step. */
typedef struct {
    py_batch batch;
    py_held held;
} held_batch;

static void release_batches(held_batch *held, asp_batch *micro, Py_ssize_t n) {
    for (Py_ssize_t i = 0; held && i < n; i++) {
        asp_py_arrays_batch_clear(&held[i].batch);
        asp_py_arrays_let_go(&held[i].held);
    }
    PyMem_Free(held);
    PyMem_Free(micro);
}

static int read_batch(PyObject *item, held_batch *held, asp_batch *micro) {
    PyObject *tokens, *offsets, *targets, *weights;
    if (!PyTuple_Check(item) || !PyArg_ParseTuple(item, "OOOO", &tokens, &offsets, &targets, &weights)) {
        PyErr_SetString(PyExc_TypeError, "a micro-batch must be a tuple (tokens, offsets, targets, weights)");
        return 0;
    }
    if (!asp_py_arrays_batch(&held->batch, tokens, offsets)) return 0;
    *micro = (asp_batch){.tokens = held->batch.tokens,
                         .offsets = held->batch.offsets,
                         .n_sequences = held->batch.n_sequences};
    return asp_py_arrays_targets(&held->held, targets, weights, held->batch.n_tokens, &micro->targets, &micro->weights);
}

/* One option with a number for each layer; None leaves *out NULL. */
typedef struct {
    const char *name;
    double least, most;
    const double **out;
    PyObject *given, *array; /* array holds what *out points into */
} layer_option;

static int read_layers(layer_option *option, int64_t n_layer) {
    void *data;
    int64_t n;
    if (option->given == Py_None) return 1;
    option->array = asp_py_arrays_convert(option->given, ASP_PY_DOUBLE, 1, option->name, &data, &n);
    if (!option->array) return 0;
    if (n != n_layer) {
        PyErr_Format(PyExc_ValueError, "%s must have one number for each of the %lld layers, got %lld", option->name,
                     (long long)n_layer, (long long)n);
        return 0;
    }
    *option->out = data;
    for (int64_t l = 0; l < n; l++) {
        char name[80];
        PyOS_snprintf(name, sizeof name, "%s of layer %lld", option->name, (long long)l);
        const py_step_range range = {name, (*option->out)[l], option->least, option->most};
        if (!asp_py_call_step_check(&range, 1)) return 0;
    }
    return 1;
}

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

static PyObject *take_model_step(py_trainer *self, const asp_batch *micro, Py_ssize_t n,
                                 const asp_step_options *options, int threads) {
    if (!asp_py_call_step_take(&self->step)) return NULL;
    if (!asp_py_call_write_begin(self->model)) {
        asp_py_call_step_release(&self->step);
        return NULL;
    }
    asp_error err = {0};
    asp_step_result r = {0};
    py_call call;
    asp_py_call_begin(&call, threads > 0 ? threads : asp_py_module_state(Py_TYPE(self))->n_threads);
    const asp_status status = asp_trainer_step(self->trainer, micro, n, options, &call.context, &r, &err);
    asp_py_call_end(&call);
    if (status) atomic_store(&self->model->users, 0); /* nothing was written: the version stays */
    else asp_py_call_write_end(self->model);
    const long long step = (long long)asp_trainer_get_state(self->trainer)->step - 1;
    asp_py_call_step_release(&self->step);
    if (status) return asp_py_call_raise(status, &err);
    return Py_BuildValue("{s:L,s:d,s:d,s:d,s:d,s:d,s:d,s:d,s:d,s:d,s:d,s:d,s:L}", "step", step, "loss", r.loss, "ce",
                         r.cross_entropy, "expected_edges", r.expected_edges, "open_edges", r.open_edges, "open_self",
                         r.open_self, "edges_per_token", r.edges_per_token, "self_edges_per_token", r.self_per_token,
                         "constrained", r.constrained, "multiplier", r.multiplier, "ema", r.ema, "grad_norm",
                         r.grad_norm, "tokens", (long long)r.n_tokens);
}

enum { LAYER_OPTIONS = 1 + ASP_N_ENTRY_KINDS + ASP_N_DROPS };
static const double MOST_DROPPED = 0.999; /* of what is divided by 1 - rate; of heads all may be */

static void list_layer_options(layer_option list[LAYER_OPTIONS], asp_step_options *o) {
    static const char *const edges[] = {"self_edge_weight", "previous_edge_weight", "first_edge_weight", "edge_weight"},
                             *const drops[] = {"entry_dropout", "head_dropout", "attn_out_dropout", "mlp_out_dropout"};
    const double most = ASP_PY_STEP_MOST;
    list[0] = (layer_option){"gate_bias", -most, most, &o->gate_bias, Py_None, NULL};
    for (int i = 0; i < ASP_N_ENTRY_KINDS; i++)
        list[1 + i] = (layer_option){edges[i], -most, most, &o->edge_weight[i], Py_None, NULL};
    for (int i = 0; i < ASP_N_DROPS; i++) {
        const double most_dropped = i == ASP_DROP_HEADS ? 1 : MOST_DROPPED;
        list[1 + ASP_N_ENTRY_KINDS + i] = (layer_option){drops[i], 0, most_dropped, &o->dropout[i], Py_None, NULL};
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

static int parse_step(PyObject *args, PyObject *kwargs, asp_step_options *o, PyObject **micro,
                      layer_option layers[LAYER_OPTIONS], int *threads) {
    static char *names[] = {"micro",
                            "lr",
                            "beta1",
                            "beta2",
                            "eps",
                            "weight_decay",
                            "clip",
                            "seed",
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
                            "threads",
                            NULL};
    unsigned long long seed = 0;
    const char *constraint = "training";
    layer_option *l = layers;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$ddddddKOOOOOOOOOddddpddsddi:step", names, micro, &o->lr,
                                     &o->beta1, &o->beta2, &o->eps, &o->weight_decay, &o->clip, &seed, &l[0].given,
                                     &l[1].given, &l[2].given, &l[3].given, &l[4].given, &l[5].given, &l[6].given,
                                     &l[7].given, &l[8].given, &o->tau, &o->geco_rate, &o->geco_clip, &o->geco_ema,
                                     &o->geco_relative, &o->lambda_min, &o->lambda_max, &constraint, &o->measured,
                                     &o->edges_per_token, threads))
        return 0;
    o->seed = seed;
    return read_constraint(constraint, &o->constraint);
}

static PyObject *trainer_step(PyObject *object, PyObject *args, PyObject *kwargs) {
    py_trainer *self = (py_trainer *)object;
    PyObject *list, *result = NULL, *items;
    asp_step_options o = {.lr = NAN,
                          .beta1 = NAN,
                          .beta2 = NAN,
                          .eps = NAN,
                          .weight_decay = NAN,
                          .clip = NAN,
                          .geco_clip = 1,
                          .geco_ema = 0.95,
                          .geco_relative = 1,
                          .lambda_max = 1e9,
                          .measured = NAN};
    layer_option layers[LAYER_OPTIONS];
    int threads = 0;
    list_layer_options(layers, &o);
    if (!parse_step(args, kwargs, &o, &list, layers, &threads)) return NULL;
    const asp_config *config = asp_model_config(self->model->model);
    if (!check_step_options(&o, config->gated) || !asp_py_call_check_threads(threads)) return NULL;
    if (!(items = asp_py_module_tuple(list, "micro must be a list of micro-batches"))) return NULL;
    const Py_ssize_t n = PyTuple_GET_SIZE(items);
    held_batch *held = PyMem_Calloc((size_t)n + 1, sizeof *held);
    asp_batch *micro = PyMem_Calloc((size_t)n + 1, sizeof *micro);
    int complete = held && micro;
    if (!complete) PyErr_NoMemory();
    for (int i = 0; complete && i < LAYER_OPTIONS; i++) complete = read_layers(&layers[i], config->n_layer);
    for (Py_ssize_t i = 0; complete && i < n; i++)
        complete = read_batch(PyTuple_GET_ITEM(items, i), &held[i], &micro[i]);
    if (complete) result = take_model_step(self, micro, n, &o, threads);
    release_batches(held, micro, n);
    for (int i = 0; i < LAYER_OPTIONS; i++) Py_XDECREF(layers[i].array);
    Py_DECREF(items);
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

static PyObject *trainer_moments(PyObject *object, PyObject *name) {
    py_trainer *self = (py_trainer *)object;
    const asp_parameter *p = find_trained(self, name);
    if (!p) return NULL;
    PyObject *m = asp_py_arrays_lend(object, asp_trainer_first_moment(self->trainer) + p->offset, ASP_PY_REAL,
                                     p->n_dims, p->dims, NULL, 0);
    PyObject *v = asp_py_arrays_lend(object, asp_trainer_second_moment(self->trainer) + p->offset, ASP_PY_REAL,
                                     p->n_dims, p->dims, NULL, 0);
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
        const int64_t bytes = p->size * (int64_t)sizeof(asp_real);
        const py_step_copy copies[] = {{asp_trainer_first_moment(self->trainer) + p->offset, m_data, bytes},
                                       {asp_trainer_second_moment(self->trainer) + p->offset, v_data, bytes}};
        asp_py_call_step_copy(&self->step, copies, 2);
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

static PyMethodDef methods[] = {{"step", (PyCFunction)(void (*)(void))trainer_step, METH_VARARGS | METH_KEYWORDS,
                                 "step(micro, *, lr, beta1, beta2, eps, weight_decay, clip, seed, gate_bias=None, "
                                 "edge_weight=None, tau=0, ...) -> dict"},
                                {"moments", trainer_moments, METH_O,
                                 "moments(name) -> (m, v): read-only views of Adam's moments."},
                                {"load_moments", trainer_load_moments, METH_VARARGS,
                                 "load_moments(name, m, v): copies moments in."},
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
