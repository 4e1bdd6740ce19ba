/* py_module.c: module start and the module's functions. */
#include "python/py.h"

#include <string.h>

py_state *asp_py_module_state(PyTypeObject *defining_type) { return PyType_GetModuleState(defining_type); }

/* ---- arguments ------------------------------------------------------------------------- */

PyObject *asp_py_module_tuple(PyObject *object, const char *text) {
    PyObject *items = PySequence_Tuple(object);
    if (!items && PyErr_ExceptionMatches(PyExc_TypeError)) PyErr_SetString(PyExc_TypeError, text);
    return items;
}

int asp_py_module_fields(PyObject *object, const char *kind, const char *const *names, int n, PyObject **fields) {
    int found = 0;
    while (found < n && (fields[found] = PyObject_GetAttrString(object, names[found]))) found++;
    if (found == n) return 1;
    if (PyErr_ExceptionMatches(PyExc_AttributeError))
        PyErr_Format(PyExc_TypeError, "expected attnsparse._core_types.%s, got %.80s, which has no '%s'", kind,
                     Py_TYPE(object)->tp_name, names[found]);
    asp_py_module_forget(fields, found);
    return 0;
}

void asp_py_module_forget(PyObject **fields, int n) {
    for (int i = 0; i < n; i++) Py_CLEAR(fields[i]);
}

const char *asp_py_module_name(PyObject *object, const char *what) {
    if (PyUnicode_Check(object)) return PyUnicode_AsUTF8(object);
    PyErr_Format(PyExc_TypeError, "%s must be a string, got %.80s", what, Py_TYPE(object)->tp_name);
    return NULL;
}

int asp_py_module_index(PyObject *object, const char *what, const char *const *names, int n) {
    const char *name = asp_py_module_name(object, what);
    if (!name) return -1;
    for (int i = 0; i < n; i++)
        if (strcmp(name, names[i]) == 0) return i;
    PyErr_Format(PyExc_ValueError, "there is no %s '%.40s'", what, name);
    return -1;
}

/* ---- functions ---------------------------------------------------------------------------- */

static PyObject *set_num_threads(PyObject *module, PyObject *arg) {
    const long n = PyLong_AsLong(arg);
    if (n == -1 && PyErr_Occurred()) return NULL;
    if (n < 1 || n > 64) return PyErr_Format(PyExc_ValueError, "the number of threads must be in 1..64, got %ld", n);
    ((py_state *)PyModule_GetState(module))->n_threads = (int)n;
    Py_RETURN_NONE;
}

static PyObject *get_num_threads(PyObject *module, PyObject *unused) {
    (void)unused;
    return PyLong_FromLong(((py_state *)PyModule_GetState(module))->n_threads);
}

static PyObject *machine(PyObject *module, PyObject *unused) {
    (void)unused;
    return Py_BuildValue("{s:s,s:s,s:s,s:i,s:i,s:s}", "isa", asp_isa_name(), "blas_config", asp_blas_config(),
                         "blas_core", asp_blas_core(), "default_threads", asp_parallel_default_threads(), "threads",
                         ((py_state *)PyModule_GetState(module))->n_threads, "precision",
                         sizeof(asp_real) == 8 ? "float64" : "float32");
}

static const char capsule_name[] = "attnsparse.blas_state";

static PyObject *blas_state(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyCapsule_New(asp_blas_get_state(), capsule_name, NULL);
}

static PyObject *share_blas_state(PyObject *module, PyObject *capsule) {
    (void)module;
    asp_blas_state *state = PyCapsule_GetPointer(capsule, capsule_name);
    if (!state) return NULL;
    asp_blas_share_state(state);
    Py_RETURN_NONE;
}

static PyObject *select_isa(PyObject *module, PyObject *arg) {
    (void)module;
    asp_error err = {0};
    const char *name = PyUnicode_AsUTF8(arg);
    if (!name) return NULL;
    const asp_status status = asp_isa_select(name, &err);
    if (status) return asp_py_call_raise(status, &err);
    Py_RETURN_NONE;
}

static PyObject *debug_stats(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    const asp_memory_stats s = asp_memory_get_stats();
    return Py_BuildValue("{s:L,s:L,s:L}", "live_bytes", (long long)s.live_bytes, "live_blocks",
                         (long long)s.live_blocks, "n_allocations", (long long)s.n_allocations);
}

static PyObject *debug_fail_at(PyObject *module, PyObject *arg) {
    (void)module;
    const long long n = PyLong_AsLongLong(arg);
    if (n == -1 && PyErr_Occurred()) return NULL;
    asp_memory_fail_at(n);
    Py_RETURN_NONE;
}

static PyObject *kernel_noise_row(PyObject *module, PyObject *args) {
    (void)module;
    unsigned long long seed, step, sequence, layer, head, query;
    long long n;
    if (!PyArg_ParseTuple(args, "LKKKKKK", &n, &seed, &step, &sequence, &layer, &head, &query)) return NULL;
    if (n < 0) return PyErr_Format(PyExc_ValueError, "n must not be negative, got %lld", n);
    void *u;
    const int64_t dims[] = {n};
    PyObject *array = asp_py_arrays_new(ASP_PY_REAL, 1, dims, &u);
    if (array) asp_isa_noise_row(u, n, seed, step, sequence, layer, head, query);
    return array;
}

static PyObject *kernel_exp(PyObject *module, PyObject *arg) {
    (void)module;
    void *x, *out;
    int64_t n;
    PyObject *input = asp_py_arrays_borrow(arg, ASP_PY_REAL, 1, "x", &x, &n);
    if (!input) return NULL;
    PyObject *array = asp_py_arrays_new(ASP_PY_REAL, 1, &n, &out);
    if (array) asp_isa_exp_array(out, x, n);
    Py_DECREF(input);
    return array;
}

#define KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

static PyMethodDef functions[] = {
    {"set_num_threads", set_num_threads, METH_O, "Sets how many threads calls use (1..64)."},
    {"get_num_threads", get_num_threads, METH_NOARGS, "How many threads calls use."},
    {"machine", machine, METH_NOARGS, "Instruction set, BLAS and threads as a dict."},
    {"lens_read", asp_py_lens_read, METH_VARARGS,
     "lens_read(logits (n,V), n, asked (n,m)) -> as Run.lens, of given logits"},
    {"lens_normalize", asp_py_lens_normalize, METH_VARARGS,
     "lens_normalize(stack (n,rows,E), scale (rows) or None, eps) -> (x - mean) / scale"},
    {"metric_names", asp_py_metric_names, METH_NOARGS,
     "{name: whether the metric needs nothing but answers and wrong answers}"},
    {"metric_values", asp_py_metric_values, METH_VARARGS, "metric_values(logits, metric) -> values"},
    {"metric_gradients", asp_py_metric_gradients, METH_VARARGS, "metric_gradients(logits, metric) -> gradients"},
    {"curve_effect", asp_py_curve_effect, METH_O, "curve_effect(curve) -> effect"},
    {"curve_bootstrap", KEYWORDS(asp_py_curve_bootstrap),
     "curve_bootstrap(curve, n_resamples, seed, threads=0) -> curves"},
    {"component_order", KEYWORDS(asp_py_component_select_order),
     "component_order(n_layer, n_head, scores, absolute, greedy) -> places of all component edges, best first"},
    {"component_select", KEYWORDS(asp_py_component_select),
     "component_select(n_layer, n_head, order, sizes, prune) -> (masks (n,S,R), kept (n))"},
    {"component_prune", KEYWORDS(asp_py_component_select_prune),
     "component_prune(n_layer, n_head, mask) -> mask (S,R) without dangling nodes"},
    {"component_best", KEYWORDS(asp_py_component_select_best),
     "component_best(scores, absolute) -> places of scores (n), best first"},
    {"component_select_neurons", KEYWORDS(asp_py_component_select_neurons),
     "component_select_neurons(n_layer, n_head, width, order, sizes, prune) -> (masks (n,S,width), kept (n))"},
    {"component_roc", KEYWORDS(asp_py_component_select_roc),
     "component_roc(n_layer, n_head, scores, truth, absolute) -> (false rate, true rate, area)"},
    {"component_areas", KEYWORDS(asp_py_component_select_areas),
     "component_areas(curves, shares) -> areas (n,2) of f and of |1 - f|"},
    {"curve_band", KEYWORDS(asp_py_curve_band), "curve_band(curves, confidence, threads=0) -> (low, high)"},
    {"curve_shares", asp_py_curve_shares, METH_O, "curve_shares(effect) -> shares (n+1) of the effects above 0"},
    {"curve_needed", asp_py_curve_needed, METH_VARARGS, "curve_needed(curves, fraction) -> (first, stays)"},
    {"curve_needed_interval", KEYWORDS(asp_py_curve_needed_interval),
     "curve_needed_interval(curve, fraction, n_resamples, seed, confidence, threads=0) -> (first, stays, first_low, "
     "first_high, stays_low, stays_high)"},
    {"curve_ratio", KEYWORDS(asp_py_curve_ratio),
     "curve_ratio(curve, other, fraction, stays, n_resamples, seed, confidence, threads=0) -> (value, low, high)"},
    {"graph_loadings", asp_py_graph_loadings, METH_VARARGS,
     "graph_loadings(carried, received, received_alone, pattern, pairs, places, factor) -> loadings"},
    {"graph_factors", asp_py_graph_factors, METH_VARARGS,
     "graph_factors(start, source, weight, value, wanted, blocked) -> factors"},
    {"graph_within", asp_py_graph_within, METH_VARARGS,
     "graph_within(start, source, weight, value, position, origin) -> parts"},
    {"graph_writes", asp_py_graph_writes, METH_VARARGS,
     "graph_writes(layer, position, n_outputs, n_tokens) -> (layer, position, source, rows)"},
    {"graph_likely", asp_py_graph_likely, METH_VARARGS,
     "graph_likely(logits, most, desired) -> (probability, tokens, number of tokens)"},
    {"graph_total", asp_py_graph_pairs_total, METH_VARARGS, "graph_total(weight, factor): the sum of edges."},
    {"graph_between", asp_py_graph_pairs_between, METH_VARARGS,
     "graph_between(carried, received, received_alone, pattern, pairs, places, factor, weight, loose_weight, "
     "loose_factor) -> (by_head, direct, remainder)"},
    {"graph_shares", asp_py_graph_pairs_shares, METH_VARARGS,
     "graph_shares(parts, rest, absolute) -> (order, share, cumulative, whole)"},
    {"graph_entries", asp_py_graph_pairs_entries, METH_VARARGS,
     "graph_entries(received, pattern, values, entries, weights) -> effects"},
    {"graph_moved", asp_py_graph_pairs_moved, METH_VARARGS,
     "graph_moved(carried, received, pattern, position, rows, weights, query) -> moved"},
    {"graph_pairs", asp_py_graph_pairs_score, METH_VARARGS,
     "graph_pairs(query_rows, query_bias, key_rows, key_bias, node, n_nodes, bias_node, scale) -> (pairs, used, "
     "score)"},
    {"graph_largest_pairs", asp_py_graph_pairs_largest, METH_VARARGS,
     "graph_largest_pairs(pairs, rest, most) -> (kept, merged)"},
    {"token_losses", (PyCFunction)(void (*)(void))asp_py_run_token_losses, METH_VARARGS | METH_KEYWORDS,
     "token_losses(logits, targets, threads=0): cross-entropy in nats of each row."},
    {"first_weights_from_text", (PyCFunction)(void (*)(void))asp_py_coder_weights_from_text,
     METH_VARARGS | METH_KEYWORDS,
     "first_weights_from_text(x, y, scale, draws, random, threads=0) -> (w_enc, b_enc, w_dec, b_dec, chosen)"},
    {"first_weights_from_set", (PyCFunction)(void (*)(void))asp_py_coder_weights_from_set, METH_VARARGS | METH_KEYWORDS,
     "first_weights_from_set(w_enc, b_enc, w_dec, b_dec, threshold, scale, threads=0) -> (w_enc, b_enc, w_dec, b_dec, "
     "log_threshold)"},
    {"first_weights_scale", (PyCFunction)(void (*)(void))asp_py_coder_weights_scale, METH_VARARGS | METH_KEYWORDS,
     "first_weights_scale(y): standard deviation of outputs."},
    {"first_weights_threshold", (PyCFunction)(void (*)(void))asp_py_coder_weights_threshold,
     METH_VARARGS | METH_KEYWORDS,
     "first_weights_threshold(w_enc, b_enc, x, l0, threads=0): a threshold for all features."},
    {"_blas_state", blas_state, METH_NOARGS,
     "What is kept of the BLAS library, for _share_blas_state of the other precision."},
    {"_share_blas_state", share_blas_state, METH_O, "Makes this module use the state of the other, before any call."},
    {"_select_isa", select_isa, METH_O, "Chooses kernels by name, '' for the best; for tests."},
    {"_debug_stats", debug_stats, METH_NOARGS, "Counters of the allocator."},
    {"_debug_fail_at", debug_fail_at, METH_O, "Makes the n-th allocation from now fail; 0 switches it off."},
    {"_noise_row", kernel_noise_row, METH_VARARGS, "Noise (n, seed, step, sequence, layer, head, query); for tests."},
    {"_random_raw", asp_py_curve_random_raw, METH_VARARGS,
     "Numbers (start, n, seed, use, first, second) of a stream, their bits as int64; for tests."},
    {"_random_permutation", asp_py_curve_random_permutation, METH_VARARGS,
     "Random order (n, seed, use, first, second); for tests."},
    {"_exp", kernel_exp, METH_O, "exp of the kernels; for tests."},
    {0}};

/* ---- module ---------------------------------------------------------------------------------- */

static int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **type) {
    *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *type ? PyModule_AddType(module, *type) : -1;
}

static int start(PyObject *module) {
    py_state *state = PyModule_GetState(module);
    asp_error err = {0};
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "attnsparse cannot be imported in a subinterpreter");
        return -1;
    }
    if (asp_py_arrays_import() < 0) return -1;
    const asp_status status = asp_isa_select(getenv("ATTNSPARSE_ISA"), &err);
    if (status) {
        asp_py_call_raise(status, &err);
        return -1;
    }
    state->n_threads = asp_parallel_default_threads();
    if (add_type(module, &asp_py_model_spec, &state->model_type) < 0) return -1;
    if (add_type(module, &asp_py_run_spec, &state->run_type) < 0) return -1;
    if (add_type(module, &asp_py_find_spec, &state->circuit_type) < 0) return -1;
    if (add_type(module, &asp_py_gradients_spec, &state->gradients_type) < 0) return -1;
    if (add_type(module, &asp_py_features_spec, &state->features_type) < 0) return -1;
    if (add_type(module, &asp_py_coder_trainer_spec, &state->coder_trainer_type) < 0) return -1;
    if (add_type(module, &asp_py_call_reading_spec, &state->reading_type) < 0) return -1;
    if (add_type(module, &asp_py_graph_object_spec, &state->graph_type) < 0) return -1;
    if (add_type(module, &asp_py_contexts_spec, &state->contexts_type) < 0) return -1;
    return add_type(module, &asp_py_trainer_spec, &state->trainer_type);
}

static int traverse(PyObject *module, visitproc visit, void *arg) {
    py_state *state = PyModule_GetState(module);
    Py_VISIT(state->model_type);
    Py_VISIT(state->run_type);
    Py_VISIT(state->circuit_type);
    Py_VISIT(state->gradients_type);
    Py_VISIT(state->trainer_type);
    Py_VISIT(state->features_type);
    Py_VISIT(state->coder_trainer_type);
    Py_VISIT(state->reading_type);
    Py_VISIT(state->graph_type);
    Py_VISIT(state->contexts_type);
    return 0;
}

static int clear(PyObject *module) {
    py_state *state = PyModule_GetState(module);
    Py_CLEAR(state->model_type);
    Py_CLEAR(state->run_type);
    Py_CLEAR(state->circuit_type);
    Py_CLEAR(state->gradients_type);
    Py_CLEAR(state->trainer_type);
    Py_CLEAR(state->features_type);
    Py_CLEAR(state->coder_trainer_type);
    Py_CLEAR(state->reading_type);
    Py_CLEAR(state->graph_type);
    Py_CLEAR(state->contexts_type);
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, start},
#if PY_VERSION_HEX >= 0x030C0000
                                   {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030D0000
                                   {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
                                   {0, NULL}};

struct PyModuleDef asp_module_def = {
    PyModuleDef_HEAD_INIT,      .m_name = ASP_MODULE,   .m_doc = "The C core of attnsparse.",
    .m_size = sizeof(py_state), .m_methods = functions, .m_slots = slots,
    .m_traverse = traverse,     .m_clear = clear};

#define INIT_NAME_(name) PyInit_##name
#define INIT_NAME(name) INIT_NAME_(name)
PyMODINIT_FUNC INIT_NAME(ASP_MODULE_NAME)(void);
PyMODINIT_FUNC INIT_NAME(ASP_MODULE_NAME)(void) { return PyModuleDef_Init(&asp_module_def); }
