"""stop_at_layer= of Model.run and Model.run_with_cache: what is computed, and what says that it is not."""

import numpy as np
import pytest
from circuit_cases import CONFIGS, case

import attnsparse as asp
from attnsparse.model.run import AFTER_LAYERS
from attnsparse.model.transformer_lens import hook_names

each_config = pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("one layer")])


@each_config
@pytest.mark.parametrize("stop", [1, 2, -1])
def test_layers_before_are_those_of_the_whole_run(name, stop):
    one = case(name, (5, 1, 3))
    model, prompts = one.model("float32"), list(one.task.clean)
    layers = stop % model.config.n_layer or model.config.n_layer
    full = model.run(prompts, ("all", "edges"))
    run = model.run(prompts, ("all", "edges"), stop_at_layer=stop)
    assert (run.stop_at_layer, run[1].stop_at_layer, full.stop_at_layer) == (layers, layers, None)
    for i in range(3):
        layered = [name for name in run[i].recorded if name not in ("embed", "pos_embed", "edges")]
        assert "pattern" in layered
        assert not set(AFTER_LAYERS) & set(layered)
        for array in layered:
            np.testing.assert_array_equal(getattr(run[i], array), getattr(full[i], array)[:layers], array)
        for array in ("embed", "pos_embed"):
            np.testing.assert_array_equal(getattr(run[i], array), getattr(full[i], array))
        kept = full[i].edge_arrays()[0] < layers
        for found, expected in zip(run[i].edge_arrays(), full[i].edge_arrays()):
            np.testing.assert_array_equal(found, expected[kept])


@each_config
def test_caches(name):
    one = case(name)
    model, prompts = one.model("float32"), list(one.task.clean)
    _, full = model.run_with_cache(prompts)
    residual, cache = model.run_with_cache(prompts, stop_at_layer=1)
    np.testing.assert_array_equal(residual, full["resid_post", 0])
    assert list(cache) == [
        name for name in hook_names(model.config.n_layer) if "blocks.0" in name or name.startswith("hook")
    ]
    for hook in cache:
        np.testing.assert_array_equal(cache[hook], full[hook])
    nothing, cache = model.run_with_cache(
        prompts, ["blocks.0.attn.hook_pattern"], stop_at_layer=1, return_type=None
    )
    assert nothing is None
    assert list(cache) == ["blocks.0.attn.hook_pattern"]
    one_residual, _ = model.run_with_cache(prompts[0], stop_at_layer=-1, remove_batch_dim=True)
    np.testing.assert_array_equal(one_residual, full["resid_post", model.config.n_layer - 2][0])
    with pytest.raises(KeyError, match="of a run that stopped before layer 1"):
        cache["pattern", 1]
    with pytest.raises(ValueError, match="is not computed: the run stops before layer 1"):
        model.run_with_cache(prompts, "blocks.1.hook_resid_pre", stop_at_layer=1)
    with pytest.raises(ValueError, match="is not computed"):
        model.run_with_cache(prompts, "ln_final.hook_scale", stop_at_layer=1)


def test_experiments_before_the_stop():
    one = case("gated", (5, 3))
    model, prompts = one.model("float64"), list(one.task.clean)
    options = {
        "ablate": ["L0H1"],
        "patch": {asp.Mlp(0, 0): np.ones(model.config.d_model)},
        "freeze": "pattern",
    }
    full = model.run(prompts, "all", **options)
    run = model.run(prompts, "all", stop_at_layer=1, **options)
    for i in range(2):
        np.testing.assert_array_equal(run[i].resid_post[0], full[i].resid_post[0])
    del options["freeze"]
    given = model.run(prompts, "all", stop_at_layer=1, freeze={"gate": model.run(prompts, "all")}, **options)
    np.testing.assert_array_equal(given[0].pattern, model.run(prompts, "all", **options)[0].pattern[:1])


def test_what_is_not_there_says_so():
    one = case("gated")
    model, tokens = one.model(), one.task.clean[0]
    run = model.run(tokens, "all", stop_at_layer=1)
    with pytest.raises(AttributeError, match="stopped before layer 1: it has no logits"):
        run.logits  # noqa: B018
    for name in ("ln_final_scale", "token_loss", "loss"):
        with pytest.raises(AttributeError, match="it stopped before layer 1"):
            getattr(run, name)
        with pytest.raises(ValueError, match=f"a run that stops before layer 1 computes no {name}"):
            model.run(tokens, name, stop_at_layer=1)
    assert "stopped before layer 1" in repr(run)
    calls = {
        "heads": lambda: run.heads(0, 1), "open_edges": run.open_edges, "detect_heads": run.detect_heads,
        "logit_lens": run.logit_lens, "attribute": lambda: run.attribute(1, 2), "top": lambda: run.top(2),
        "value_norms": run.value_norms, "entry_scores": lambda: run.entry_scores([0], [0], [1], [0]),
        "to_html": lambda: run.to_html("x.html"), "freeze": lambda: model.run(tokens, freeze={"gate": run}),
    }  # fmt: skip
    for call in calls.values():
        with pytest.raises((ValueError, AttributeError), match="stopped before layer 1"):
            call()
    assert run._repr_html_()


@pytest.mark.parametrize("stop", [0, 3, -2, 7])
def test_layers_that_there_are_not(stop):
    model = case("gated").model()
    assert model.config.n_layer == 2
    with pytest.raises(
        ValueError, match=r"stop_at_layer must be in 1..2, or -1..-1 counted from the end, got"
    ):
        model.run([1, 2], stop_at_layer=stop)
    with pytest.raises(TypeError, match="stop_at_layer must be an integer"):
        model.run([1, 2], stop_at_layer=1.5)
