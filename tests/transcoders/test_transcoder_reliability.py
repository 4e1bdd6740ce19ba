"""Transcoders that do not fit, sources that fail, memory that runs out: one clear error, and nothing kept."""

from __future__ import annotations

import gc
import threading
import weakref

import engine
import numpy as np
import pytest
import reliability
from failing import every_failure
from messages import check_message
from public_calls import small_transcoders
from reliability import PROMPTS, TOKENS, bits_of_features, bits_of_run, counters, nothing_kept

import attnsparse as asp
from attnsparse import _core
from attnsparse._core_types import FeatureChanges, Substitute
from attnsparse.transcoders.replacement import CheckedWeights

ARRAYS = ("w_enc", "b_enc", "w_dec", "output_bias", "threshold", "skip")
OFFSETS = np.array([0, len(TOKENS)])


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """What exists before these tests is left out of garbage collections: there are hundreds here."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def model():
    return reliability.model()


class Changed:
    """A source that asks another one, and changes or fails where it is told."""

    def __init__(self, source, changes=None, fail=None):
        self.source, self.changes, self.fail = source, changes or {}, fail
        self.n_layer, self.d_model, self.n_features = source.n_layer, source.d_model, source.n_features
        self.cross_layer, self.asked = source.cross_layer, []

    def _given(self, name, layer, value):
        self.asked.append((name, layer))
        if self.fail == (name, layer):
            raise Own(name)
        return self.changes[name](value) if name in self.changes and layer == 1 else value

    def encoder(self, layer):
        e = self.source.encoder(layer)
        values = zip(("w_enc", "b_enc", "threshold"), (e.w_enc, e.b_enc, e.threshold))
        return asp.Encoder(*(self._given(name, layer, value) for name, value in values))

    def decoder_rows(self, layer, features):
        return self._given("w_dec", layer, self.source.decoder_rows(layer, features))

    def output_bias(self, layer):
        return self._given("output_bias", layer, self.source.output_bias(layer))

    def skip(self, layer):
        return self._given("skip", layer, self.source.skip(layer))


class Own(Exception):
    """What a source of the user's raises."""


def changed(name, change, **fields) -> asp.Transcoders:
    source = small_transcoders().source
    return asp.Transcoders(Changed(source, {name: change}), **({"activation": "jump_relu"} | fields))


def with_nan(array):
    array = array.copy()
    array.flat[-1] = np.nan
    return array


# ------------------------------------------------------------------------------------------- wrong weights


def test_what_fits_is_accepted(model):
    for weights in (True, False):
        small_transcoders().check(model, weights=weights)
    small_transcoders("float64").check(model)


@pytest.mark.parametrize(("field", "shape"), [("n_layer", {"n_layer": 3}), ("d_model", {"d_model": 32})])
def test_another_model_is_named_in_the_error(field, shape):
    other = reliability.model(**shape)
    for call in ("check", "features", "replacement_run", "evaluate"):
        arguments = (other,) if call == "check" else (other, [TOKENS])
        with pytest.raises(asp.ConfigError) as caught:
            getattr(small_transcoders(), call)(*arguments)
        assert (caught.value.code, caught.value.field) == ("config_value", field)
        check_message(caught.value)


@pytest.mark.parametrize("name", ARRAYS)
def test_every_array_is_checked(name, model):
    """Shape, kind and finite values of each, in the layer where it is wrong."""
    cases = [
        (lambda a: a[..., :-1], asp.ConfigError, "config_value"),
        (lambda a: a.astype(np.int64), asp.ConfigError, "dtype"),
        (lambda a: a.tolist(), asp.ConfigError, "dtype"),
        (with_nan, asp.NonFiniteError, "nonfinite"),
    ]
    if name == "threshold":
        cases.append((lambda a: None, asp.ConfigError, "config_value"))
    for change, kind, code in cases:
        with pytest.raises(kind) as caught:
            changed(name, change).check(model)
        assert (type(caught.value), caught.value.code, caught.value.field) == (kind, code, f"{name}.1")
        check_message(caught.value)


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"kind": "sae"}, "config_value", "kind"),
        ({"input_hook": "hook_mlp_in"}, "hook", "input_hook"),
        ({"output_hook": "hook_resid_post"}, "hook", "output_hook"),
        ({"activation": "gelu"}, "config_value", "activation"),
        ({"activation": "topk"}, "config_value", "top_k"),
        ({"activation": "topk", "top_k": 0}, "config_value", "top_k"),
        ({"activation": "topk", "top_k": 2.0}, "config_value", "top_k"),
        ({"activation": "relu", "top_k": 3}, "config_value", "top_k"),
        ({"n_layer": 0}, "config_value", "n_layer"),
        ({"n_layer": 3}, "config_value", "n_features"),
        ({"d_model": "64"}, "config_value", "d_model"),
        ({"n_features": 40}, "config_value", "n_features"),
        ({"n_features": (40, -1)}, "config_value", "n_features"),
        ({"n_features": (40, 2**31)}, "config_value", "n_features"),
        ({"activation": ["relu"]}, "config_value", "activation"),
    ],
)
def test_fields_are_checked(fields, code, field):
    with pytest.raises(asp.ConfigError) as caught:
        small_transcoders(**fields)
    assert (caught.value.code, caught.value.field) == (code, field)
    check_message(caught.value)


def test_arrays_are_checked_when_a_source_is_made():
    a = [np.ones((4, 3), np.float32)] * 2, [np.ones(4)] * 2, [np.ones((4, 3))] * 2, [np.ones(3)] * 2
    assert asp.ArraySource(*a).cross_layer is False
    for arrays, field in (
        (([], [], [], []), "w_enc"),
        ((a[0], a[1][:1], a[2], a[3]), "b_enc"),
        (([np.ones(3)] * 2, *a[1:]), "w_enc.0"),
        ((a[0], a[0], a[2], a[3]), "b_enc.0"),
        ((a[0], a[1], [a[2][0], np.ones((4, 2, 3))], a[3]), "w_dec.1"),
        ((a[0], a[1], [np.ones((3, 3))] * 2, a[3]), "w_dec.0"),
        ((*a[:3], a[1]), "output_bias.0"),
        ((*a, [np.ones(3)] * 2), "threshold.0"),
        ((*a, None, [None, np.ones((4, 3))]), "skip.1"),
    ):
        with pytest.raises(asp.ConfigError) as caught:
            asp.ArraySource(*arrays)
        assert (caught.value.code, caught.value.field) == ("config_value", field)
        check_message(caught.value)
    for arrays in (([[1, 2]], *a[1:]), (a[0], [None] * 2, *a[2:])):
        with pytest.raises((TypeError, asp.ConfigError)):
            asp.ArraySource(*arrays)


def test_a_source_needs_its_methods():
    for source in (None, 3, object(), [np.ones(3)]):
        with pytest.raises(TypeError, match="must have a method encoder"):
            asp.Transcoders(source)


@pytest.mark.parametrize("call", ["features", "replacement_run", "evaluate"])
def test_wrong_arguments_get_one_clear_sentence(call, model):
    transcoders = small_transcoders()
    use = getattr(transcoders, call)
    wrong = [(None, TOKENS), (model, None), (model, [96]), (model, []), (model, 3.5), (_core, TOKENS)]
    cases = [(arguments, {}) for arguments in wrong]
    cases += [((model, TOKENS), {"threads": 0}), ((model, TOKENS), {"threads": "2"})]
    if call != "evaluate":
        cases += [((model, TOKENS), {"max_bytes": v}) for v in (-1, 2.5, 10_000)]
        cases += [((model, TOKENS), {"record": v}) for v in ("nothing", 3)]
    if call == "features":
        cases += [((model, [TOKENS, TOKENS]), {}), ((model, model.run([TOKENS] * 2, "all")), {})]
        cases += [
            ((model, model.run(TOKENS, "none")), {}),
            ((model, reliability.model().run(TOKENS, "all")), {}),
        ]
    if call == "replacement_run":
        found = transcoders.features(model, TOKENS)
        other = small_transcoders().features(model, TOKENS)
        cases += [((model, TOKENS), {"errors": v}) for v in (3, found.error, other)]
        cases += [((model, v), {"errors": found}) for v in (TOKENS[:-1], TOKENS[::-1], [TOKENS, TOKENS])]
    with nothing_kept():
        for arguments, options in cases:
            with pytest.raises((TypeError, ValueError, IndexError, MemoryError)) as caught:
                use(*arguments, **options)
            check_message(caught.value)
            caught = None


def test_features_of_a_run_need_its_weights():
    one = reliability.model()
    run = one.run(TOKENS, record=("ln2_normalized", "mlp_out"))
    assert len(small_transcoders().features(one, run))
    one.assign({"ln_f.bias": np.zeros(64)})
    with pytest.raises(RuntimeError, match="weights changed"):
        small_transcoders().features(one, run)


# ------------------------------------------------------------------------------------------- bad sources


@pytest.mark.parametrize("call", ["features", "replacement_run"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", ARRAYS)
def test_an_exception_of_a_source_comes_out_as_it_is(name, layer, call, model):
    """And nothing of the core's memory, and no object, is left behind."""
    source = Changed(small_transcoders().source, fail=(name, layer))
    transcoders = asp.Transcoders(source, activation="jump_relu")
    with nothing_kept():
        with pytest.raises(Own) as caught:
            getattr(transcoders, call)(model, TOKENS)
        assert caught.value.args == (name,)
        assert source.asked[-1] == (name, layer)
        caught = None
    gone = weakref.ref(source)
    del source, transcoders
    gc.collect()
    assert gone() is None
    expected = bits_of_features(small_transcoders().features(model, TOKENS))
    assert bits_of_features(small_transcoders().features(model, TOKENS)) == expected


@pytest.mark.parametrize("name", ARRAYS)
def test_wrong_arrays_of_a_source_are_named(name, model):
    """Without `check`: the shape is compared whenever an array is used, in Python and again in the core."""
    for change in (lambda a: a[:-1], lambda a: a[None], lambda a: a[..., :-1]):
        transcoders = changed(name, change)
        for call in (transcoders.features, transcoders.replacement_run):
            with nothing_kept():
                with pytest.raises(asp.ConfigError, match=f"{name} of layer 1") as caught:
                    call(model, TOKENS)
                assert caught.value.field == f"{name}.1"
                caught = None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["w_enc", "b_enc", "w_dec", "output_bias", "skip"])
def test_what_is_not_finite_is_not_hidden(name, value, model):
    def spoil(array):
        array = array.copy()
        array.flat[array.size // 2] = value
        return array

    transcoders = changed(name, spoil, activation="topk", top_k=40)
    for call in (transcoders.features, transcoders.replacement_run):
        with pytest.raises(ValueError, match=r"layer 1.*not finite") as caught:
            call(model, TOKENS)
        check_message(caught.value)


class Raw:
    """A source as the core asks for it, with one answer replaced."""

    def __init__(self, model, **answers):
        self.weights, self.answers = CheckedWeights(small_transcoders(), model), answers

    def __getattr__(self, name):
        answers, weights = self.__dict__["answers"], self.__dict__["weights"]
        return lambda *arguments: answers[name] if name in answers else getattr(weights, name)(*arguments)


def test_the_core_trusts_no_answer(model):
    """Wrong kinds, types, shapes and layouts: TypeError or ValueError, and the features stay unreadable."""
    f = np.float32
    w, b, e = np.ones((40, 64), f), np.ones(40, f), np.ones(64, f)
    wrong = [
        {"output": None}, {"output": (e,)}, {"output": [e, None]}, {"output": (None, None)},
        {"output": (e[:-1], None)}, {"output": (e.astype(float), None)}, {"output": (e, w)},
        {"output": (e, e)},
        {"encoder": (w, b)}, {"encoder": (w, b, b[:-1])}, {"encoder": (w, e, b)}, {"encoder": (w.T, b, b)},
        {"encoder": (w[:, :-1].copy(), b, b)}, {"encoder": (w[::2], b[:20], None)}, {"encoder": (w, None, b)},
        {"encoder": (w[:0], b[:0], None)}, {"encoder": 3}, {"rows": None}, {"rows": np.ones((40, 2, 64))},
        {"rows": np.ones((1, 2, 64), f)}, {"rows": np.ones((40, 64), f)},
    ]  # fmt: skip
    run = model.run(TOKENS, record=("ln2_normalized", "mlp_out"))._core
    for answers in wrong:
        source = Raw(model, **answers)
        for substitute in (False, True):
            before = counters()
            features = _core.Features(model._core, len(TOKENS), "jump_relu", cross_layer=True)
            calls = {
                True: lambda f=features, s=source: model._core.run(
                    TOKENS, OFFSETS, (), substitute=Substitute(f, s, None)
                ),
                False: lambda f=features, s=source: f.fill(run, 0, s),
            }
            with pytest.raises((TypeError, ValueError)) as caught:
                calls[substitute]()
            assert not isinstance(caught.value, SystemError)
            with pytest.raises(RuntimeError, match="not complete"):
                features.array("layer")
            with pytest.raises(RuntimeError, match="have been filled"):
                features.fill(run, 0, Raw(model))
            caught = features = calls = None
            assert counters() == before, answers


def test_the_core_refuses_what_is_not_a_substitute(model):
    core, source = model._core, Raw(model)

    def fresh(n=8, of=core):
        return _core.Features(of, n, "jump_relu", cross_layer=True)

    other = reliability.model()._core
    filled = fresh()
    core.run(TOKENS, OFFSETS, (), substitute=Substitute(filled, source, None))
    assert filled.array("reconstruction").shape == (2, 8, 64)
    with pytest.raises(KeyError):
        filled.array("error")
    wrong_errors = [3, np.ones((2, 8, 64)), np.ones((2, 8, 63), np.float32), np.ones((2, 64), np.float32)]
    cases = [
        3,
        (fresh(), source),
        Substitute(3, source, None),
        Substitute(fresh(3), source, None),
        Substitute(fresh(of=other), source, None),
    ]
    at, values = [np.array([0], np.int32)] * 3, [np.ones(1, np.float32)] * 2
    cases += [
        Substitute(fresh(), source, None, changes)
        for changes in (
            3,
            FeatureChanges(*at, *values[:1], np.ones(2, np.float32)),
            FeatureChanges(*at, *values[:1], np.ones(1)),
            FeatureChanges(*at[:2], np.array([40], np.int32), *values),
            FeatureChanges(*at[:2], np.array([0]), *values),
            FeatureChanges(*at, *values, 3, b"11"),
            FeatureChanges(*at, *values, fresh(), b"11"),
            FeatureChanges(*at, *values, filled, b"1"),
            FeatureChanges(*at, *values, filled, None),
        )
    ]
    cases += [Substitute(filled, source, None), *(Substitute(fresh(), source, e) for e in wrong_errors)]
    for substitute in cases:
        with pytest.raises((TypeError, ValueError, RuntimeError, IndexError)):
            core.run(TOKENS, OFFSETS, (), substitute=substitute)
    with pytest.raises(ValueError, match="mlp_pre"):
        core.run(TOKENS, OFFSETS, ("mlp_post",), substitute=Substitute(fresh(), source, None))
    del cases, substitute
    gc.collect()


# ------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fields", [{}, {"activation": "topk", "top_k": 5}])
def test_out_of_memory(fields, dtype):
    """Every allocation of both calls fails once; nothing is kept, and the next call is as if none had."""
    one, transcoders = reliability.model(dtype=dtype), small_transcoders(dtype, **fields)
    held = transcoders.features(one, TOKENS)
    expected, before = bits_of_features(transcoders.features(one, TOKENS)), bits_of_features(held)
    run = bits_of_run(transcoders.replacement_run(one, PROMPTS))

    def check():
        assert bits_of_features(transcoders.features(one, TOKENS)) == expected
        assert bits_of_features(held) == before
        assert bits_of_run(transcoders.replacement_run(one, PROMPTS)) == run

    given = held.run
    assert every_failure(dtype, lambda: transcoders.features(one, given, threads=1), check) >= 20
    assert every_failure(dtype, lambda: transcoders.replacement_run(one, PROMPTS, threads=1), check) >= 20


def test_a_limit_on_memory(model):
    """Outputs and lists count; the least that is enough gives the same."""
    transcoders = small_transcoders()
    run = model.run(TOKENS, record=("ln2_normalized", "mlp_out"))
    expected = bits_of_features(transcoders.features(model, run))
    low, high = 2 * 2 * 8 * 64 * 4, 60_000  # reconstruction and error alone; more than enough
    while high - low > 50:
        max_bytes = (low + high) // 2
        try:
            assert bits_of_features(transcoders.features(model, run, max_bytes=max_bytes)) == expected
            high = max_bytes
        except MemoryError:
            low = max_bytes
    with pytest.raises(MemoryError, match=f"max_bytes={low}"):
        transcoders.features(model, run, max_bytes=low)
    assert low > 17_000


def test_arrays_outlive_features_run_and_model():
    one = reliability.model()
    with nothing_kept():
        found = small_transcoders().features(one, TOKENS)
        kept, expected = [found.activation[3:], found.error[1], found.run.resid_mid], bits_of_features(found)
        del found
        gc.collect()
        assert kept[1].tobytes() == expected["error"][len(expected["error"]) // 2 :]
        assert kept[0].tobytes() == expected["activation"][12:]
        del kept


def test_features_are_let_go():
    one = reliability.model()
    with nothing_kept():
        small_transcoders().features(one, TOKENS)
        small_transcoders().replacement_run(one, PROMPTS)


# ------------------------------------------------------------------------------------------- other threads


def test_many_threads_at_once(model):
    transcoders = small_transcoders()
    expected = (
        bits_of_features(transcoders.features(model, TOKENS)),
        bits_of_run(transcoders.replacement_run(model, PROMPTS)),
    )
    found = []

    def work():
        for _ in range(20):
            pair = transcoders.features(model, TOKENS), transcoders.replacement_run(model, PROMPTS)
            found.append((bits_of_features(pair[0]), bits_of_run(pair[1])) == expected)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [True] * 80


def test_a_source_may_use_the_library_and_other_threads_run_meanwhile(model):
    """The source is asked with Python attached: it can run models, this one too, but not change it."""
    seen = []

    def use(array):
        seen.append(model.run(TOKENS[:3]).logits.shape)
        with pytest.raises(RuntimeError, match="in use"):
            model.assign({"ln_f.bias": np.zeros(64)})
        return array

    before = small_transcoders().replacement_run(model, TOKENS).logits.tobytes()
    assert changed("b_enc", use).replacement_run(model, TOKENS).logits.tobytes() == before
    assert seen == [(3, 96)]


def test_a_source_in_float64_serves_a_float32_model(model):
    """Whatever floating-point arrays come are taken in the model's type."""
    expected = bits_of_features(small_transcoders().features(model, TOKENS))
    assert bits_of_features(small_transcoders("float64").features(model, TOKENS)) == expected
    half = small_transcoders("float16").features(model, TOKENS)
    assert (
        engine.relative_error(half.reconstruction, small_transcoders().features(model, TOKENS).reconstruction)
        < 0.1
    )
