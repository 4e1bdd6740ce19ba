"""Transcoders of some layers of a model only: whatever is asked, layers have the model's numbers, and those
without a transcoder keep their MLP."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tiny_transcoders as tiny
from safetensors_by_hand import from_arrays

import attnsparse as asp
from attnsparse.errors import ConfigError
from attnsparse.items import Mlp
from attnsparse.model.config import Config
from attnsparse.transcoders.arrays import layers_text

PROMPT = [3, 1, 4, 1, 5]
pytestmark = pytest.mark.filterwarnings("ignore:transcoders .* are of layer")


@pytest.fixture(scope="module")
def model() -> asp.Model:
    config = Config(n_layer=4, n_head=2, d_model=tiny.E, d_head=3, d_mlp=8, n_ctx=6, n_vocab=11)
    rng = np.random.default_rng(1)
    shapes = config.parameter_shapes().items()
    return asp.Model(
        config, {name: rng.standard_normal(shape) * 0.5 for name, shape in shapes}, dtype="float64"
    )


def weights() -> tiny.Weights:
    return tiny.weights(threshold=True, skip=True, counts=(5, 7, 9, 6))


def transcoders(w: tiny.Weights, *layers: int) -> asp.Transcoders:
    """The set of these weights with only these layers."""

    def some(arrays):
        return [array if i in layers else None for i, array in enumerate(arrays)]

    source = asp.ArraySource(*map(some, (w.w_enc, w.b_enc, w.w_dec, w.output, w.threshold, w.skip)))
    return asp.Transcoders(source, activation="jump_relu", name="some")


def test_features_are_those_of_the_layers_that_have_transcoders(model):
    w = weights()
    whole, some = transcoders(w, 0, 1, 2, 3), transcoders(w, 1, 3)
    assert (some.layers, some.n_features, some.n_layer) == ((1, 3), (0, 7, 0, 6), 4)
    all_of, found = whole.features(model, PROMPT), some.features(model, PROMPT)
    keep = np.isin(all_of.layer, (1, 3))
    assert keep.any()
    assert not keep.all()
    for name in ("layer", "position", "feature", "activation"):
        np.testing.assert_array_equal(getattr(found, name), getattr(all_of, name)[keep])
    assert set(found.to_pandas().layer) == {1, 3}
    for layer in range(4):
        part = found.run.mlp_out[layer] if layer in (0, 2) else all_of.error[layer]
        np.testing.assert_array_equal(found.error[layer], part)
    for values, other in ((found.l0, all_of.l0), (found.explained_variance, all_of.explained_variance)):
        np.testing.assert_array_equal(values[[1, 3]], other[[1, 3]])
        assert np.isnan(values[[0, 2]]).all()
    assert all("layers 1, 3 of 4" in repr(each) for each in (found, some))
    assert list(some.evaluate(model, [PROMPT]).layer) == [1, 3]
    np.testing.assert_array_equal(
        some.evaluate(model, [PROMPT]).explained_variance,
        whole.evaluate(model, [PROMPT]).explained_variance[[1, 3]],
    )


def test_other_layers_keep_their_mlp(model):
    """The last layer's replaced output can be patched into the model itself: nothing reads it before."""
    some = transcoders(weights(), 3)
    found = some.features(model, PROMPT)
    patched = model.run(PROMPT, patch={Mlp(3): found.reconstruction[3]})
    replaced = some.replacement_run(model, PROMPT, record="all")
    np.testing.assert_allclose(replaced.logits, patched.logits, atol=1e-12)
    assert np.abs(replaced.logits - found.run.logits).max() > 1e-3
    np.testing.assert_array_equal(replaced.mlp_out[:3], found.run.mlp_out[:3])
    closed = some.replacement_run(model, PROMPT, errors=found)
    np.testing.assert_allclose(closed.logits, found.run.logits, atol=1e-12)
    first = transcoders(weights(), 0).replacement_run(model, PROMPT, record="all")
    assert np.abs(first.mlp_out[2] - found.run.mlp_out[2]).max() > 1e-3  # it reads what was replaced


def test_a_graph_takes_the_other_mlps_as_errors(model, tmp_path):
    some = transcoders(weights(), 1, 2)
    graph = asp.attribution_graph(model, some, PROMPT, target=[7], max_feature_nodes=None)
    assert graph.closure < 1e-9
    kind = np.array(graph.kind)
    assert set(graph.layer[kind == "feature"]) == {1, 2}
    assert set(graph.layer[kind == "error"]) == {0, 1, 2, 3}
    label = graph.labels[graph.node("err_3_4")]
    assert label == "MLP of layer 3, which has no transcoder"
    assert graph.labels[graph.node("err_1_4")] == "error of layer 1"
    assert "layers 1-2 of 4" in repr(graph)
    assert graph.options["transcoder_layers"] == [1, 2]
    graph.save(tmp_path / "graph")
    path = graph.to_neuronpedia(tmp_path, "some", node_threshold=None, edge_threshold=None)
    for again in (asp.load_graph(tmp_path / "graph"), asp.read_graph_json(path)):
        assert again.labels[again.node("err_3_4")] == label
        assert "layers 1-2 of 4" in repr(again)
    # the MLP's whole output, through the final LayerNorm, is what the error node does to the logit
    features = some.features(model, PROMPT)
    direction = model.parameter("lm_head.weight" if not model.config.tied else "wte.weight")
    direction = (direction[7] - direction.mean(axis=0)) * model.parameter("ln_f.weight")
    direction = (direction - direction.mean()) / features.run.ln_final_scale[-1]
    edge = graph.weight("err_3_4", int(graph.logits[0]))
    assert abs(edge - features.run.mlp_out[3, 4] @ direction) < 1e-9


def test_labels_are_of_the_layers_that_have_transcoders(model):
    some = transcoders(weights(), 2)
    labels = asp.describe_features(model, some, [PROMPT, PROMPT[::-1]])
    assert set(labels.layer.tolist()) == {2}
    whole = asp.describe_features(model, transcoders(weights(), 0, 1, 2, 3), [PROMPT, PROMPT[::-1]])
    assert {key: labels[key] for key in labels} == {key: whole[key] for key in whole if key[0] == 2}
    with pytest.raises(IndexError, match="no feature 0 in layer 1"):
        asp.describe_features(model, some, [PROMPT], [(1, 0)])


def test_saved_and_loaded_again(model, tmp_path):
    w = weights()
    some = transcoders(w, 1, 2)
    with pytest.warns(
        UserWarning, match="circuit-tracer needs transcoders of all layers, these are of layers 1-2"
    ):
        asp.save_transcoders(some, tmp_path)
    assert sorted(item.name for item in tmp_path.glob("layer_*")) == [
        "layer_1.safetensors",
        "layer_2.safetensors",
    ]
    known, unknown = asp.load_transcoders(tmp_path, model), asp.load_transcoders(tmp_path)
    assert (known.n_layer, unknown.n_layer) == (4, 3)
    assert known.digest == unknown.digest == some.digest
    for again in (known, unknown):
        assert again.layers == (1, 2)
        np.testing.assert_array_equal(again.features(model, PROMPT).error, some.features(model, PROMPT).error)
        graph = asp.attribution_graph(model, again, PROMPT, target=[7], max_feature_nodes=None)
        assert graph.closure < 1e-9
    with pytest.raises(IndexError, match="layer 0 has no transcoder; there are transcoders of layers 1-2"):
        known.source.encoder(0)


def files_of(w: tiny.Weights, *layers: int) -> dict[str, dict[str, bytes]]:
    """Layout -> the files of these layers of it."""
    plain = {f"layer_{i}.safetensors": from_arrays(tiny.plain_layer(w, i)) for i in layers}
    listed = [{"id": f"l{i}", "layer": i, "filepath": f"layer_{i}.safetensors"} for i in layers]
    sae, single = {}, {}
    for i in layers:
        sae[f"l{i}/cfg.json"] = tiny.saelens_config(i, len(w.b_enc[i]))
        sae[f"l{i}/sae_weights.safetensors"] = from_arrays(tiny.saelens_layer(w, i))
        none = np.zeros(tiny.E, np.float32)
        single[f"l{i}.pt"] = tiny.pt_file(tiny.pt_layer(w, i, none), tiny.pt_settings(i))
    return {
        "circuit-tracer": plain | {"config.yaml": tiny.config()},
        "SAELens": sae,
        "Dunefsky et al.": single,
        "YAML": plain | {"config.yaml": tiny.config(transcoders=listed)},
    }


@pytest.mark.parametrize("layers", [(1,), (0, 2), (2,), (0, 1)])
@pytest.mark.parametrize("layout", ["circuit-tracer", "SAELens", "Dunefsky et al.", "YAML"])
def test_every_layout_may_have_some_layers(model, tmp_path, layout, layers):
    w = tiny.weights(counts=(5, 5, 5))
    if layout == "YAML":  # of circuit-tracer 0.1: decoders lie the other way round
        w.w_dec = [np.ascontiguousarray(a[:, 0].T)[:, None] for a in w.w_dec]
        files = files_of(w, *layers)[layout]
        w = tiny.weights(counts=(5, 5, 5))
        for i in layers:
            arrays = tiny.plain_layer(w, i) | {"W_dec": np.ascontiguousarray(w.w_dec[i][:, 0].T)}
            files[f"layer_{i}.safetensors"] = from_arrays(arrays)
    else:
        files = files_of(w, *layers)[layout]
    loaded = asp.load_transcoders(tiny.write(tmp_path, files), model)
    assert (loaded.layers, loaded.n_layer) == (layers, 4)
    for i in layers:
        np.testing.assert_array_equal(loaded.source.encoder(i).w_enc, w.w_enc[i])
        np.testing.assert_array_equal(loaded.source.decoder_rows(i, np.arange(5)), w.w_dec[i])


def test_the_layers_are_said_once(model):
    some = transcoders(weights(), 1)
    with pytest.warns(UserWarning, match="are of layer 1 of the model's 4; the other layers keep their MLP"):
        some.check(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        some.features(model, PROMPT)


def test_what_cannot_be(model, tmp_path):
    w = weights()
    small = Config(n_layer=1, n_head=2, d_model=tiny.E, d_head=3, d_mlp=8, n_ctx=6, n_vocab=11)
    tiny.write(tmp_path, files_of(tiny.weights(), 1)["SAELens"])
    with pytest.raises(ConfigError, match="n_layer=2, model '' has 1"):
        asp.load_transcoders(tmp_path, asp.Model(small))
    with pytest.raises(ConfigError, match="layer 1 has w_enc but no b_enc"):
        asp.ArraySource([None, w.w_enc[1]], [None, None], [None, w.w_dec[1]], [None, w.output[1]])
    with pytest.raises(ConfigError, match="at least one layer"):
        asp.ArraySource([None], [None], [None], [None])
    with pytest.raises(
        ConfigError, match="a cross-layer transcoder has all layers, this one has layer 1 of 4"
    ):
        asp.Transcoders(transcoders(w, 1).source, activation="jump_relu", kind="cross_layer_transcoder")


def test_layers_as_text():
    assert layers_text([3]) == "layer 3"
    assert layers_text([0, 1, 2, 5, 7, 8]) == "layers 0-2, 5, 7-8"
