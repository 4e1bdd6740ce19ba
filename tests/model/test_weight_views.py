"""Weights of all layers at once, factored heads, TransformerLens's names of sizes, and text helpers."""

from __future__ import annotations

import dataclasses

import engine
import numpy as np
import oracle
import oracle_lens as ol
import pytest
import reliability

import attnsparse as asp
from attnsparse.model import FactoredMatrix

CONFIGS = {
    "dense": {"n_layer": 3, "n_head": 2, "d_head": 3},
    "gated": {"n_layer": 2, "gated": True, "tied": False, "unembed_bias": True},
    "one-layer": {"n_layer": 1},
}
VIEWS = (
    "W_E", "W_pos", "W_U", "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "W_in", "b_in", "W_out",
    "b_out", "ln1_w", "ln1_b", "ln2_w", "ln2_b", "ln_final_w", "ln_final_b",
)  # fmt: skip
BIASES = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "b_U", "ln1_b", "ln2_b", "ln_final_b")


@pytest.fixture(params=CONFIGS)
def toy(request):
    config = oracle.full_config(**CONFIGS[request.param])
    weights = engine.rounded_model(3, config)
    return config, weights, engine.build(config, weights)


def test_stacks_are_the_weights_of_each_layer(toy):
    config, weights, model = toy
    n = config["n_layer"]
    heads = [ol.heads_of(weights, config, layer) for layer in range(n)]
    for name in ("W_Q", "W_K", "W_V", "W_O", "b_V"):
        assert np.array_equal(getattr(model, name), [head[name] for head in heads]), name
    bias = np.array([weights[f"h.{layer}.attn.c_attn.bias"] for layer in range(n)])
    thirds = bias.reshape(n, 3, config["n_head"], config["d_head"])
    assert np.array_equal(model.b_Q, thirds[:, 0])
    assert np.array_equal(model.b_K, thirds[:, 1])
    names = {
        "b_O": "attn.c_proj.bias", "W_in": "mlp.c_fc.weight", "b_in": "mlp.c_fc.bias",
        "W_out": "mlp.c_proj.weight", "b_out": "mlp.c_proj.bias", "ln1_w": "ln_1.weight",
        "ln1_b": "ln_1.bias", "ln2_w": "ln_2.weight",
        "ln2_b": "ln_2.bias",
    }  # fmt: skip
    for name, own in names.items():
        assert np.array_equal(getattr(model, name), [weights[f"h.{layer}.{own}"] for layer in range(n)]), name
    assert np.array_equal(model.W_E, weights["wte.weight"])
    assert np.array_equal(model.W_pos, weights["wpe.weight"])
    assert np.array_equal(model.W_U, oracle.unembedding(config, weights).T)
    assert np.array_equal(model.b_U, weights.get("lm_head.bias", np.zeros(config["n_vocab"])))
    assert np.array_equal(model.ln_final_w, weights["ln_f.weight"])
    assert np.array_equal(model.ln_final_b, weights["ln_f.bias"])


def test_stacks_are_read_only_views_that_follow_changes(toy):
    model = toy[2]
    for name in (*VIEWS, "b_U"):
        array = getattr(model, name)
        assert not array.flags.writeable, name
        assert array.dtype == np.float32
    before = {name: getattr(model, name) for name in VIEWS}
    model.assign({name: array + 1 for name, array in model.parameters().items()})
    for name, array in before.items():
        assert np.shares_memory(array, getattr(model, name)), name
        assert np.array_equal(array, getattr(model, name)), name


def test_views_keep_the_model():
    with reliability.nothing_kept():
        model = reliability.model()
        view, expected = model.W_O, model.W_O.copy()
        del model
        assert np.array_equal(view, expected)
        del view


def test_a_model_without_biases_has_zeros():
    config = oracle.full_config(bias=False)
    weights = oracle.random_model(np.random.default_rng(0), config)
    model, full = (
        engine.build(config, weights),
        engine.build(oracle.full_config(), engine.rounded_model(0, oracle.full_config())),
    )
    for name in BIASES:
        array = getattr(model, name)
        assert array.shape == getattr(full, name).shape
        assert not array.any()
        assert not array.flags.writeable
    with pytest.raises(KeyError, match="no parameter"):
        model._core.stacked("ln_1.bias")
    with pytest.raises(KeyError, match="no parameter"):
        model._core.stacked("wte.weight")


def test_cfg():
    model = reliability.model()
    assert dataclasses.asdict(model.cfg) == {
        "n_layers": 2, "n_heads": 4, "d_model": 64, "d_head": 16, "d_mlp": 128, "d_vocab": 96, "n_ctx": 24,
        "act_fn": "gelu_new", "eps": 1e-5,
    }  # fmt: skip


# ---------------------------------------------------------------------------------- factored matrices


def test_heads_as_factored_matrices(toy):
    config, weights, model = toy
    for layer, head in np.ndindex(config["n_layer"], config["n_head"]):
        of_head = {name: array[head] for name, array in ol.heads_of(weights, config, layer).items()}
        expected = {"OV": of_head["W_V"] @ of_head["W_O"], "QK": of_head["W_Q"] @ of_head["W_K"].T}
        for name, whole in expected.items():
            found = getattr(model, name)(layer, head)
            assert found.shape == whole.shape
            assert np.allclose(found.AB, whole, atol=1e-6)
            assert np.allclose(getattr(model, name)()[layer, head].AB, found.AB)
            assert np.allclose(getattr(model, name)(layer - config["n_layer"])[head].AB, found.AB)
    assert np.shares_memory(model.OV(0, 0).A, model.W_V)
    assert model.QK().shape == (config["n_layer"], config["n_head"], config["d_model"], config["d_model"])
    for wrong in ((config["n_layer"], 0), (0, config["n_head"]), (-config["n_layer"] - 1, 0)):
        with pytest.raises(IndexError, match="out of range: this model has"):
            model.OV(*wrong)
    with pytest.raises(TypeError, match="head must be an integer"):
        model.QK(0, "L0H1")


@pytest.fixture(scope="module", params=[(), (2, 3)], ids=["one", "stack"])
def factored(request):
    rng = np.random.default_rng(1)
    return FactoredMatrix(rng.normal(size=(*request.param, 9, 3)), rng.normal(size=(3, 9)))


def test_decomposition_norm_and_eigenvalues(factored):
    whole = factored.AB
    u, s, v = factored.svd()
    assert factored.shape == whole.shape
    assert factored.ndim == whole.ndim
    assert np.allclose(u * s[..., None, :] @ np.swapaxes(v, -1, -2), whole, atol=1e-12)
    assert np.allclose(s, np.linalg.svd(whole, compute_uv=False)[..., :3])
    assert np.allclose(np.swapaxes(u, -1, -2) @ u, np.eye(3))
    assert np.allclose(np.swapaxes(v, -1, -2) @ v, np.eye(3))
    assert (factored.U is u, factored.S is s, factored.V is v) == (True, True, True)
    assert np.allclose(factored.norm(), np.linalg.norm(whole, axis=(-2, -1)))
    expected = np.linalg.eigvals(whole)
    largest = np.take_along_axis(expected, np.argsort(-abs(expected), axis=-1)[..., :3], -1)
    assert np.allclose(np.sort_complex(factored.eigenvalues), np.sort_complex(largest))
    assert np.allclose(factored.T.AB, np.swapaxes(whole, -1, -2))


def test_products(factored):
    rng = np.random.default_rng(2)
    whole, other, right, left, x = (
        factored.AB,
        rng.normal(size=(9, 2)),
        rng.normal(size=(2, 9)),
        rng.normal(size=(4, 9)),
        rng.normal(size=9),
    )
    assert np.allclose((factored @ other).AB, whole @ other)
    assert np.allclose((left @ factored).AB, left @ whole)
    assert isinstance(left @ factored, FactoredMatrix)
    assert np.allclose(factored @ x, whole @ x)
    assert np.allclose(x @ factored, x @ whole)
    assert np.allclose((factored @ FactoredMatrix(other, right)).AB, whole @ (other @ right))
    assert (factored @ FactoredMatrix(other, right)).A.shape[-1] == 3
    assert repr(factored).startswith("FactoredMatrix(shape=(")


def test_what_factored_matrices_refuse(factored):
    for shapes in (((3, 2), (3, 2)), ((3,), (3, 3)), ((2, 4, 3), (3, 3, 4))):
        with pytest.raises(ValueError, match="A and B"):
            FactoredMatrix(*(np.ones(shape) for shape in shapes))
    with pytest.raises(ValueError, match="square matrix"):
        _ = FactoredMatrix(np.ones((2, 1)), np.ones((1, 3))).eigenvalues
    for product in (
        lambda: factored @ np.ones(8),
        lambda: np.ones((2, 8)) @ factored,
        lambda: factored @ 2.0,
    ):
        with pytest.raises(ValueError, match="a matrix product needs 9 values"):
            product()
    with pytest.raises(TypeError, match="A must be real numbers"):
        FactoredMatrix(np.array([["a"]]), np.ones((1, 1)))
    with pytest.raises(IndexError, match="leading axes"):
        factored[(0,) * (factored.ndim - 1)]


# ----------------------------------------------------------------------------------------------- text


WORDS = ["The", " opposite", " large", " small", "<bos>"]


@pytest.fixture(scope="module")
def spoken():
    plain = reliability.model(n_vocab=5)
    return asp.Model(plain.config, plain.parameters(), asp.Tokenizer.from_words(WORDS, bos="<bos>"), "spoken")


def test_positions_of_tokens(spoken):
    text = "The small opposite small"
    assert spoken.get_token_position(" small", text) == spoken.get_token_position(3, text) == 1
    assert spoken.get_token_position(" small", text, mode="last") == 3
    assert spoken.get_token_position(" small", text, prepend_bos=True) == 2
    assert spoken.get_token_position(" small", [4, 0, 3]) == 2
    with pytest.raises(ValueError, match="' large' is not among the 4 tokens"):
        spoken.get_token_position(" large", text)
    with pytest.raises(ValueError, match="'The large' is 2 tokens"):
        spoken.get_token_position("The large", text)
    with pytest.raises(ValueError, match="mode must be one of 'first', 'last'"):
        spoken.get_token_position(" small", text, mode="middle")
    with pytest.raises(TypeError):
        spoken.get_token_position(3, [0.5, 3.0])


def test_texts_and_single_tokens(spoken):
    assert spoken.to_single_token(" large") == 2
    assert spoken.to_string(2) == " large"
    assert spoken.to_string([0, 1, 2]) == "The opposite large"
    assert spoken.to_string(np.array([0, 1])) == "The opposite"
    assert (
        spoken.to_string([[0, 1], [3]])
        == spoken.to_string([np.array([0, 1]), [3]])
        == ["The opposite", " small"]
    )
    assert spoken.to_string(np.array([[0, 1], [0, 3]])) == ["The opposite", "The small"]
    with pytest.raises(ValueError, match=r"'The large' is 2 tokens \('The', ' large'\), expected one"):
        spoken.to_single_token("The large")
    with pytest.raises(ValueError, match=r"'' is 0 tokens"):
        spoken.to_single_token("")
    with pytest.raises(TypeError, match="text must be a string, got int"):
        spoken.to_single_token(3)
    with pytest.raises(IndexError):
        spoken.to_string(-1)
    with pytest.raises(ValueError, match="has no tokenizer"):
        reliability.model().to_string([1])


def test_tokens_of(spoken):
    table = spoken.tokens_of(["The large", " small"], prepend_bos=True, base=1)
    assert table.to_dict("list") == {
        "prompt": [0, 0, 0, 1, 1],
        "position": [1, 2, 3, 1, 2],
        "token": ["<bos>", "The", " large", "<bos>", " small"],
        "token_id": [4, 0, 2, 4, 3],
    }
    assert reliability.model().tokens_of([3, 1]).token.tolist() == ["<3>", "<1>"]
    with pytest.raises(IndexError, match="out of range"):
        spoken.tokens_of([5])
