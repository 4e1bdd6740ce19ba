"""Transcoders: features and replaced MLPs against the twin in NumPy, and that nothing else can come out."""

from __future__ import annotations

import engine
import numpy as np
import oracle
import oracle_transcoder as twin
import pytest
from alone import same_bits_or_close
from engine import relative_error
from reliability import FEATURE_ARRAYS, TOKENS, bits_of_features, bits_of_run

import attnsparse as asp
from attnsparse.transcoders import evaluation

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
KINDS = {"relu": None, "jump_relu": None, "topk": 5}
CONFIG = oracle.full_config(n_layer=3, n_head=2, d_model=24, d_mlp=40, n_ctx=16, n_vocab=50, gated=True)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
kinds = pytest.mark.parametrize("activation", KINDS)


def as_transcoders(coder: twin.Coder, dtype: str = "float32", **changes) -> asp.Transcoders:
    """The package's object with the weights of the twin's."""

    def cast(values):
        return None if values is None else [None if a is None else a.astype(dtype) for a in values]

    arrays = (coder.w_enc, coder.b_enc, coder.w_dec, coder.output_bias, coder.threshold, coder.skip)
    hook = "hook_resid_mid" if coder.input_name == "resid_mid" else "ln2.hook_normalized"
    fields = {"activation": coder.activation, "top_k": coder.top_k, "input_hook": hook, "name": "random"}
    return asp.Transcoders(asp.ArraySource(*map(cast, arrays)), **(fields | changes))


def case(activation="relu", dtype="float32", seed=0, n_features=70, config=CONFIG, **options):
    """(config, weights, model, coder, transcoders); options: see `oracle_transcoder.random_coder`."""
    weights = engine.rounded_model(seed, config)
    coder = twin.random_coder(
        seed, config["n_layer"], config["d_model"], n_features, activation, top_k=KINDS[activation], **options
    )
    return config, weights, engine.build(config, weights, dtype), coder, as_transcoders(coder, dtype)


def dense(features: asp.Features) -> list[np.ndarray]:
    """Activations [T, F] of each layer from the list, every place at most once."""
    t, found = features.transcoders, []
    for layer in range(t.n_layer):
        mine = slice(features.start[layer], features.start[layer + 1])
        places = features.position[mine], features.feature[mine]
        array = np.zeros((features.n_tokens, t.n_features[layer]))
        np.add.at(array, places, features.activation[mine])
        assert (features.layer[mine] == layer).all()
        assert np.count_nonzero(array) == len(places[0])
        found.append(array)
    return found


def clear_tokens(config, weights, coder, n_tokens=9, least=1e-4) -> np.ndarray:
    """A prompt in which no rounding of float32 changes what is active (and no gate)."""
    for seed in range(200):
        tokens = engine.random_tokens(seed, config, n_tokens)
        run = oracle.forward(config, weights, tokens)
        margins = [twin.margin(coder, layer, x) for layer, x in enumerate(run[coder.input_name])]
        if min(margins) > least and engine.gates_are_clear(config, run):
            return tokens
    raise AssertionError("no such prompt")


# ------------------------------------------------------------------------------------------- features


@dtypes
@kinds
@pytest.mark.parametrize("cross_layer", [False, True])
@pytest.mark.parametrize("input_name", ["ln2_normalized", "resid_mid"])
def test_features_are_those_of_the_twin(activation, cross_layer, input_name, dtype):
    config, weights, model, coder, transcoders = case(
        activation, dtype, n_features=[70, 33, 90], cross_layer=cross_layer, skip=True, input_name=input_name
    )
    assert transcoders.cross_layer == cross_layer
    tokens = clear_tokens(config, weights, coder)
    run = oracle.forward(config, weights, tokens)
    activations, reconstruction = twin.find(coder, run)
    found = transcoders.features(model, tokens)
    for ours, theirs in zip(dense(found), activations):
        assert 0.02 < (theirs != 0).mean() < 0.6
        assert relative_error(ours, theirs) < TOLERANCE[dtype]
        if activation != "relu":
            assert np.array_equal(ours != 0, theirs != 0)
    assert relative_error(found.reconstruction, reconstruction) < TOLERANCE[dtype]
    assert relative_error(found.error, run["mlp_out"] - reconstruction) < TOLERANCE[dtype]
    assert np.array_equal(found.error, found.run.mlp_out - found.reconstruction)


def test_the_comparison_can_fail():
    """Each part of the weights matters: with another array of any kind the twin is far away."""
    config, weights, model, coder, transcoders = case("jump_relu", cross_layer=True, skip=True)
    tokens = clear_tokens(config, weights, coder)
    found = transcoders.features(model, tokens)
    run = oracle.forward(config, weights, tokens)
    for name in ("w_enc", "b_enc", "w_dec", "output_bias", "threshold", "skip"):
        other = twin.random_coder(0, 3, 24, 70, "jump_relu", cross_layer=True, skip=True)
        getattr(other, name)[0] = getattr(other, name)[0] * 1.2
        assert relative_error(found.reconstruction, twin.find(other, run)[1]) > 1e-4, name
    assert relative_error(found.reconstruction, twin.find(coder, run)[1]) < 1e-5


def test_the_list_is_sorted_and_complete():
    _, _, model, _, transcoders = case(n_features=[70, 33, 90])
    found = transcoders.features(model, TOKENS)
    order = np.stack([found.layer, found.position, found.feature])
    assert np.array_equal(order, order[:, np.lexsort(order[::-1])])
    assert found.start.tolist() == [0, *np.cumsum(np.bincount(found.layer, minlength=3))]
    assert len(found) == len(found.layer) == found.start[-1]
    assert (found.activation > 0).all()
    assert [a.dtype for a in (found.layer, found.position, found.feature, found.start)] == [np.int32] * 3 + [
        np.int64
    ]
    for name in ("pattern", "ln1_scale", "ln2_scale", "ln_final_scale", "embed", "pos_embed", "logits"):
        assert getattr(found.run, name).size
    for name in ("resid_pre", "resid_mid", "resid_post", "ln2_normalized", "mlp_out"):
        assert getattr(found.run, name).size


@dtypes
@kinds
@pytest.mark.parametrize("shape", [(1, 1), (1, 9000), (1100, 4500), (1030, 3), (70, 577)])
def test_any_number_of_tokens_and_features(activation, shape, dtype):
    """Above and below the blocks of rows (1,024) and features (4,096), from the run's own inputs."""
    n_tokens, n_features = shape
    config = oracle.full_config(n_layer=1, n_head=1, d_model=20, d_mlp=4, n_ctx=n_tokens, n_vocab=30)
    *_, model, coder, transcoders = case(activation, dtype, n_features=n_features, config=config, skip=True)
    tokens = engine.random_tokens(1, config, n_tokens)
    found = transcoders.features(model, tokens)
    run = {coder.input_name: found.run.ln2_normalized.astype(np.float64)}
    activations, reconstruction = twin.find(coder, run)
    ours = dense(found)[0]
    clear = np.abs(activations[0] - ours) <= TOLERANCE[dtype] * np.abs(activations[0]).max()
    assert (~clear).mean() < (1e-4 if dtype == "float32" else 1e-9)
    rows = clear.all(axis=1)
    assert rows.mean() > 0.8
    difference = np.abs(found.reconstruction - reconstruction)[:, rows].max()
    assert difference < TOLERANCE[dtype] * np.abs(reconstruction).max()


def test_of_equal_values_a_topk_keeps_the_lower_features():
    _, _, model, coder, _ = case("topk", n_features=40)
    for layer in range(3):
        coder.w_enc[layer][10:] = coder.w_enc[layer][0]
        coder.b_enc[layer][10:] = coder.b_enc[layer][0] = 50.0
    found = as_transcoders(coder).features(model, TOKENS)
    assert [row.nonzero()[0].tolist() for row in dense(found)[0]] == [[0, 10, 11, 12, 13]] * len(TOKENS)


def test_a_topk_keeps_only_what_is_positive():
    _, _, model, coder, _ = case("topk", n_features=40)
    for bias in coder.b_enc:
        bias[:] = -100.0
        bias[[7, 3]] = 100.0
    found = as_transcoders(coder).features(model, TOKENS)
    assert found.feature.tolist() == [3, 7] * len(TOKENS) * 3
    for bias in coder.b_enc:
        bias[:] = -100.0
    nothing = as_transcoders(coder).features(model, TOKENS)
    assert len(nothing) == 0
    assert np.array_equal(nothing.reconstruction[0, 0], coder.output_bias[0].astype(np.float32))
    assert len(nothing.to_pandas()) == 0


def test_a_topk_of_all_features_is_a_relu():
    _, _, model, coder, _ = case(n_features=40)
    relu = as_transcoders(coder).features(model, TOKENS)
    for top_k in (40, 10**6):
        coder.activation, coder.top_k = "topk", top_k
        found = as_transcoders(coder).features(model, TOKENS)
        assert np.array_equal(found.feature, relu.feature)
        assert np.array_equal(found.reconstruction, relu.reconstruction)


def test_a_cross_layer_transcoder_is_the_sum_of_what_its_layers_write():
    _, _, model, coder, transcoders = case(cross_layer=True)
    found, total = transcoders.features(model, TOKENS), np.zeros((3, len(TOKENS), 24))
    for layer, position, feature, value in zip(
        found.layer, found.position, found.feature, found.activation.astype(float)
    ):
        for target in range(layer, 3):
            total[target, position] += value * coder.w_dec[layer][feature, target - layer]
    total += np.stack(coder.output_bias)[:, None]
    assert relative_error(found.reconstruction, total) < 1e-5


# ------------------------------------------------------------------------------------------- replaced MLPs


@dtypes
@kinds
@pytest.mark.parametrize("cross_layer", [False, True])
def test_a_replacement_run_is_that_of_the_twin(activation, cross_layer, dtype):
    config, weights, model, coder, transcoders = case(
        activation, dtype, cross_layer=cross_layer, skip=True, config=CONFIG | {"gated": False}
    )
    prompts = [clear_tokens(config, weights, coder, n) for n in (6, 1, 9)]
    run = transcoders.replacement_run(model, prompts, record="all")
    n_clear = 0
    for i, tokens in enumerate(prompts):
        own = oracle.forward(config, weights, tokens)
        assert relative_error(run[i].logits, own["logits"]) > 1e-2
        expected = twin.replaced(config, weights, tokens, coder)
        inputs = expected[coder.input_name]
        if min(twin.margin(coder, layer, x) for layer, x in enumerate(inputs)) < 1e-5:
            continue  # rounding may change what is active: these inputs are not the model's own
        n_clear += 1
        for name in ("logits", "mlp_out", "resid_post", "ln2_scale", "pattern"):
            assert relative_error(getattr(run[i], name), expected[name]) < 2 * TOLERANCE[dtype], name
    assert n_clear >= 2


@dtypes
@kinds
def test_with_the_errors_the_logits_are_the_models(activation, dtype):
    _, _, model, _, transcoders = case(activation, dtype, cross_layer=True, skip=True)
    found = transcoders.features(model, TOKENS)
    run = transcoders.replacement_run(model, TOKENS, errors=found)
    assert relative_error(run.logits, found.run.logits) < TOLERANCE[dtype]
    without = transcoders.replacement_run(model, TOKENS)
    assert relative_error(without.logits, found.run.logits) > 1e-2


def test_outputs_of_a_replacement_run_patched_into_the_model_give_its_logits():
    _, _, model, _, transcoders = case(skip=True)
    run = transcoders.replacement_run(model, TOKENS, record="mlp_out")
    patched = model.run(TOKENS, patch={asp.Mlp(layer): run.mlp_out[layer] for layer in range(3)})
    assert relative_error(patched.logits, run.logits) < 1e-5


def test_interventions_on_a_replacement_run():
    """They change what the transcoders read; an Mlp item takes the place of what they write."""
    _, _, model, _, transcoders = case()
    plain = transcoders.replacement_run(model, TOKENS, record=("mlp_out", "z"))
    run = transcoders.replacement_run(model, TOKENS, record=("mlp_out", "z"), ablate="L0H1")
    assert (run.z[0, :, 1] == 0).all()
    assert relative_error(run.mlp_out[0], plain.mlp_out[0]) > 1e-3
    values = np.ones((len(TOKENS), 24))
    run = transcoders.replacement_run(model, TOKENS, record="mlp_out", patch={asp.Mlp(1): values})
    assert np.array_equal(run.mlp_out[1], values)
    assert np.array_equal(run.mlp_out[0], plain.mlp_out[0])
    assert relative_error(run.mlp_out[2], plain.mlp_out[2]) > 1e-3


def test_a_replacement_run_records_all_but_the_mlp():
    _, _, model, _, transcoders = case()
    usual = model.run(TOKENS, record=("all", "edges"))
    run = transcoders.replacement_run(model, TOKENS, record=("all", "edges"))
    assert set(usual.recorded) - set(run.recorded) == {"mlp_pre", "mlp_post"}
    with pytest.raises(AttributeError):
        run.mlp_post  # noqa: B018
    for record in ("mlp_pre", ("z", "mlp_post"), ("all", "mlp_post")):
        with pytest.raises(ValueError, match="no mlp_p"):
            transcoders.replacement_run(model, TOKENS, record=record)
    with pytest.raises(ValueError, match="unknown name"):
        transcoders.replacement_run(model, TOKENS, record=("all", "x"))


# ------------------------------------------------------------------------------------------- same bits


@kinds
def test_the_same_bits_for_any_number_of_threads(activation):
    config = oracle.full_config(n_layer=2, n_head=2, d_model=64, d_mlp=96, n_ctx=90, n_vocab=60)
    *_, model, _, transcoders = case(activation, n_features=5000, config=config, cross_layer=True, skip=True)
    prompts = [engine.random_tokens(n, config, n) for n in (90, 8)]
    for tokens in prompts:
        expected = bits_of_features(transcoders.features(model, tokens, threads=1))
        for threads in (2, 3, 4):
            assert bits_of_features(transcoders.features(model, tokens, threads=threads)) == expected
    expected = bits_of_run(transcoders.replacement_run(model, prompts, threads=1))
    for threads in (2, 3, 4):
        assert bits_of_run(transcoders.replacement_run(model, prompts, threads=threads)) == expected


def test_a_prompt_has_the_same_features_in_a_batch():
    config = oracle.full_config(n_layer=2, n_head=2, d_model=64, d_mlp=96, n_ctx=90, n_vocab=60)
    *_, model, _, transcoders = case(n_features=900, config=config, skip=True)
    prompts = [engine.random_tokens(n, config, n) for n in (90, 8, 1, 30)]
    batch = model.run(prompts, record=("ln2_normalized", "mlp_out"))
    together = transcoders.replacement_run(model, prompts)
    for i, tokens in enumerate(prompts):
        alone = transcoders.features(model, tokens)
        found = transcoders.features(model, batch[i])
        for name in FEATURE_ARRAYS:
            assert same_bits_or_close(getattr(found, name), getattr(alone, name)), name
        logits = transcoders.replacement_run(model, tokens).logits
        assert same_bits_or_close(together[i].logits, logits)


# ------------------------------------------------------------------------------------------- tables


def test_tables_and_numbers_of_features():
    config, weights, model, coder, transcoders = case()
    found = transcoders.features(model, TOKENS)
    table = found.to_pandas(base=1)
    assert table.columns.tolist() == ["layer", "position", "token", "feature", "activation"]
    assert np.array_equal(table["position"], found.position + 1)
    assert table["token"].tolist() == [found.run.token_strings[i] for i in found.position]
    run = oracle.forward(config, weights, TOKENS)
    activations, reconstruction = twin.find(coder, run)
    assert found.l0.tolist() == [(a > 0).sum() / len(TOKENS) for a in activations]
    out = run["mlp_out"]
    spread = ((out - out.mean(axis=1, keepdims=True)) ** 2).sum(axis=(1, 2))
    expected = 1 - ((out - reconstruction) ** 2).sum(axis=(1, 2)) / spread
    assert np.allclose(found.explained_variance, expected, rtol=1e-5)
    assert np.isnan(transcoders.features(model, [3]).explained_variance).all()
    assert "features" in repr(transcoders)
    assert f"{len(found):,} active" in repr(found)


def test_evaluation_is_that_of_the_twin(monkeypatch):
    config, weights, model, coder, transcoders = case(cross_layer=True, config=CONFIG | {"gated": False})
    prompts = [engine.random_tokens(n, config, n) for n in (9, 4, 1, 12)]
    rng = np.random.default_rng(0)
    n = sum(map(len, prompts))
    targets, mask = rng.integers(0, 50, n), rng.integers(0, 3, n).astype(float)
    runs = [oracle.forward(config, weights, tokens) for tokens in prompts]
    found = [twin.find(coder, run) for run in runs]
    out = np.concatenate([run["mlp_out"] for run in runs], axis=1)
    reconstruction = np.concatenate([r for _, r in found], axis=1)
    spread = ((out - out.mean(axis=1, keepdims=True)) ** 2).sum(axis=(1, 2))
    active = [np.concatenate([a[layer] for a, _ in found]) > 0 for layer in range(3)]
    replaced = [twin.replaced(config, weights, tokens, coder) for tokens in prompts]
    losses = [
        mask @ oracle.token_loss(np.concatenate([run["logits"] for run in group]), targets) / mask.sum()
        for group in (runs, replaced)
    ]
    for at_once in (2048, 10, 1):
        monkeypatch.setattr(evaluation, "_TOKENS_AT_ONCE", at_once)
        table = transcoders.evaluate(model, prompts, targets=targets, loss_mask=mask)
        assert table["layer"].tolist() == [0, 1, 2]
        assert np.allclose(table["l0"], [a.sum() / n for a in active])
        assert np.allclose(table["dead"], [1 - a.any(axis=0).mean() for a in active])
        error = ((out - reconstruction) ** 2).sum(axis=(1, 2))
        assert np.allclose(table["explained_variance"], 1 - error / spread, rtol=1e-5)
        assert np.allclose(table["cross_entropy"], losses[0], rtol=1e-5)
        assert np.allclose(table["cross_entropy_replaced"], losses[1], rtol=1e-5)
    plain = transcoders.evaluate(model, prompts)
    following = [oracle.token_loss(run["logits"][:-1], t[1:]).sum() for run, t in zip(runs, prompts)]
    assert np.allclose(plain["cross_entropy"], sum(following) / (n - len(prompts)), rtol=1e-5)
    for options, error in (
        ({"targets": [1, 2]}, ValueError),
        ({"loss_mask": np.zeros(n)}, ValueError),
        ({"targets": targets + 50, "loss_mask": np.ones(n)}, IndexError),
    ):
        with pytest.raises(error):
            transcoders.evaluate(model, prompts, **options)


def test_the_digest_is_of_all_weights():
    coders = [twin.random_coder(0, 2, 8, 9, "jump_relu", skip=True) for _ in range(7)]
    for name, coder in zip(("w_enc", "b_enc", "w_dec", "output_bias", "threshold", "skip"), coders):
        getattr(coder, name)[1].flat[-1] += 1
    digests = [as_transcoders(coder).digest for coder in coders]
    assert len(set(digests)) == 7
    assert as_transcoders(coders[-1], input_hook="hook_resid_mid").digest != digests[-1]
    assert as_transcoders(coders[-1], name="other").digest == digests[-1]
    assert as_transcoders(coders[-1], digest="as given").digest == "as given"


def test_what_cannot_be_is_said_plainly():
    arrays = [[np.ones(shape, np.float32)] for shape in ((3, 4), (3,), (3, 4), (4,))]
    source = asp.ArraySource(*arrays)
    one = asp.Transcoders(source)
    cases = [
        (lambda: asp.Transcoders(source, activation="topk"), asp.ConfigError, "'topk' needs top_k"),
        (lambda: asp.Transcoders(source, top_k=2), asp.ConfigError, "is for activation='topk' alone"),
        (lambda: asp.ArraySource(1, 2, 3, 4), TypeError, "w_enc must be a list with one array per layer"),
        (lambda: asp.ArraySource(*arrays, skip=3), TypeError, "skip must be a list"),
        *((lambda call=call: call(1), IndexError, r"layer 1 is out of range: there are layers 0\.\.0")
          for call in (source.encoder, source.output_bias, source.skip, one.writes)),
        (lambda: source.decoder_rows(-1, np.array([0])), IndexError, "layer -1"),
        (lambda: one.writes("a"), TypeError, "layer must be an integer"),
    ]  # fmt: skip
    for call, error, text in cases:
        with pytest.raises(error, match=text):
            call()
    assert repr(source) == "ArraySource(1 layers x 3 features)"
    assert "<table" in one._repr_html_()


def test_layers_of_a_stored_set():
    stored = asp.load_transcoders("demo-dense-transcoders").source
    for call in (stored.encoder, stored.output_bias, stored.skip, lambda i: stored.decoder_rows(i, [0])):
        for layer in (99, -1):
            with pytest.raises(IndexError, match=rf"layer {layer} is out of range: there are layers 0\.\.11"):
                call(layer)


def test_another_models_transcoders_warn_once(recwarn):
    *_, model, _, plain = case()
    fitting = asp.Transcoders(plain.source, name="t", model_name="openai-community/gpt2")
    for transcoders, name in ((fitting, "folder/gpt2"), (fitting, ""), (plain, "sparse-gpt2")):
        model.name = name
        transcoders.check(model)
    assert not recwarn.list
    model.name = "sparse-gpt2"
    for _ in range(2):
        fitting.features(model, TOKENS)
    [warning] = recwarn.list
    assert "'t' were made for model 'gpt2', this one is 'sparse-gpt2'" in str(warning.message)


def test_features_where_nothing_varies():
    """Two equal tokens, of which no layer has an explained variance."""
    config, weights, *_, coder, _ = case()
    model = engine.build(config, weights)
    model.assign({"wpe.weight": np.zeros_like(model.parameter("wpe.weight"))})
    found = as_transcoders(coder).features(model, [3, 3])
    assert "explained variance nan" in repr(found)
    assert "<table" in found._repr_html_()
