"""Graphs of given runs, of changed models, of little or unknown activity: right, or refused in a sentence."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import reliability
from graph_toys import PROMPT, random_transcoders, toy, toy_graph
from peak_memory import peak_bytes

import attnsparse as asp
from attnsparse import figures
from attnsparse.errors import ConfigError
from attnsparse.graphs.neuronpedia_read import read_graph_json
from attnsparse.items import Resid
from attnsparse.transcoders.arrays import ArraySource
from attnsparse.transcoders.features import RECORDED
from attnsparse.transcoders.transcoders import Transcoders


def same(a: asp.Graph, b: asp.Graph) -> bool:
    return (
        a.ids == b.ids
        and np.array_equal(a.weights, b.weights)
        and np.array_equal(a.value, b.value, equal_nan=True)
    )


# --------------------------------------------------------------------------------------------- given runs


@pytest.mark.parametrize("logits", ["all", "last"])
def test_a_graph_of_a_run_is_that_of_its_prompt(logits) -> None:
    model, transcoders = toy()
    run = model.run(PROMPT, RECORDED, logits=logits)
    assert same(
        asp.attribution_graph(model, transcoders, run), asp.attribution_graph(model, transcoders, PROMPT)
    )


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (lambda m: m.run([PROMPT, PROMPT], RECORDED)[0], "one prompt alone, this one is of 2"),
        (lambda m: m.run(PROMPT, RECORDED, logits="none"), "needs a run with logits too"),
        (lambda m: m.run(PROMPT, "mlp_out"), "needs a run with pattern, ln1_scale.* too"),
        (lambda m: m.run(PROMPT, RECORDED, ablate=["L0H1"]), "had interventions"),
        (lambda m: m.run(PROMPT, RECORDED, patch={Resid(1, 3, "pre"): np.zeros(64)}), "had interventions"),
        (lambda m: m.run([PROMPT], RECORDED, ablate=["L0H1"])[0], "had interventions"),
    ],
)  # fmt: skip
def test_runs_that_cannot_be_a_graph(run, text) -> None:
    model, transcoders = toy()
    with pytest.raises(ValueError, match=text):
        asp.attribution_graph(model, transcoders, run(model))


def test_a_graph_of_replaced_mlps_closes_but_has_no_check() -> None:
    model, transcoders = toy()
    graph = asp.attribution_graph(
        model, transcoders, transcoders.replacement_run(model, PROMPT, record=RECORDED)
    )
    assert graph.closure_absolute < 1e-5
    with pytest.raises(ValueError, match="of a run with replaced MLPs"):
        graph.check(nodes=[0])


def test_a_check_of_changed_weights_is_refused() -> None:
    model, transcoders = toy()
    graph = asp.attribution_graph(model, transcoders, PROMPT)
    model.assign({"wte.weight": model.parameter("wte.weight") * 2})
    with pytest.raises(RuntimeError, match="weights changed after the graph was made"):
        graph.check(nodes=[0])


# ------------------------------------------------------------------------------------ nothing, or unknown


@pytest.mark.parametrize("options", [{"max_feature_nodes": 0}, {}], ids=["none kept", "none active"])
def test_removing_an_error_when_no_feature_is_a_node(options) -> None:
    model, transcoders = toy("float64")
    if not options:
        transcoders = random_transcoders(model)
        for layer in transcoders.layers:
            transcoders.source.encoder(layer).b_enc[...] -= 100
    graph = asp.attribution_graph(model, transcoders, PROMPT, target=7, wrong=9, **options)
    assert graph.n_features == 0
    table = graph.check(nodes="err_1_5")
    assert table.predicted[0] == -graph.weight("err_1_5", -1)
    whole = asp.attribution_graph(model, transcoders, PROMPT, target=7, wrong=9).check(nodes="err_1_5")
    assert table.actual[0] == whole.actual[0] != 0


def test_one_entry_as_four_numbers() -> None:
    graph = toy_graph()
    pd = pytest.importorskip("pandas")
    pd.testing.assert_frame_equal(graph.check(entries=(1, 0, 5, 2)), graph.check(entries=[(1, 0, 5, 2)]))
    pd.testing.assert_frame_equal(graph.check(entries="a1.h0[2->5]"), graph.check(entries=[(1, 0, 5, 2)]))


def test_without_activations_ways_through_features_are_refused() -> None:
    graph = toy_graph()
    value = graph.value.copy()
    value[0] = np.nan
    unknown = dataclasses.replace(graph, value=value)
    assert unknown.weight(0, -1) == graph.weight(0, -1)
    for call in (
        lambda g: g.total(0, -1),
        lambda g: g.heads(0, -1, through="features"),
        asp.token_groups,
        lambda g: asp.group_nodes(g, {"a": [0]}),
    ):
        call(graph)
        with pytest.raises(ValueError, match="has no activations"):
            call(unknown)


def test_a_graph_without_heads_has_none_on_its_page(tmp_path) -> None:
    graph = toy_graph()
    for shown, heads in ((graph, True), (graph.without_heads(), False)):
        text = shown.to_html(tmp_path / "page.html").read_text()
        data = json.loads(text.split('type="application/json">')[1].split("</script>")[0])
        assert ("loadings" in data["edges"]) == heads
        assert bool(data["maps"]) == heads


@pytest.mark.parametrize("settings", [{"node_threshold": 0.8}, None])
def test_a_graph_as_circuit_tracer_writes_it_can_be_drawn(tmp_path, settings) -> None:
    toy_graph().prune().to_neuronpedia(tmp_path, "g")
    path = tmp_path / "g.json"
    data = json.loads(path.read_text())
    metadata = data["metadata"]
    for name in ("pruning_settings", "attnsparse"):
        metadata.get("info", metadata).pop(name, None)
        metadata.pop(name, None)
    if settings:
        metadata["node_threshold"] = settings["node_threshold"]
    else:
        metadata.pop("node_threshold", None)
    path.write_text(json.dumps(data))
    graph = read_graph_json(path)
    assert not graph.has_heads
    assert graph.pruned == (settings or {})
    page = graph.to_html(tmp_path / "page.html").read_text()
    assert ("nodes with 0.8 of the influence" in page) == bool(settings)
    assert figures.graph(graph).get_figure() is not None


# ------------------------------------------------------------------------------------------------- size


def test_thresholds_that_nothing_would_use_are_refused() -> None:
    ones = [np.ones((3, 4), np.float32)]
    source = ArraySource(ones, [ones[0][:, 0]], ones, [ones[0][0]], threshold=[ones[0][:, 0]])
    assert Transcoders(source, activation="jump_relu").activation == "jump_relu"
    for options in ({}, {"activation": "topk", "top_k": 2}):
        with pytest.raises(ConfigError, match=r"has thresholds, which activation=.* ignores") as caught:
            Transcoders(source, **options)
        assert caught.value.field == "threshold"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS and /proc")
def test_a_graph_takes_no_more_than_it_was_allowed() -> None:
    """Resident memory of a process that makes a dense graph, above that of its run: at most max_bytes."""
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    grown, allowed, refused = json.loads(done.stdout)
    assert grown < allowed
    assert refused


def child() -> None:
    model = reliability.model(n_ctx=200, n_vocab=300)
    transcoders = random_transcoders(model, n_features=64)
    prompt = np.arange(160, dtype=np.int32)
    options = {"max_feature_nodes": None, "threads": 1, "progress": False}
    asp.attribution_graph(model, transcoders, prompt[:8], **options)
    features = transcoders.features(model, prompt)
    n = len(features) + 10
    needed = 4 * n * n  # of its dense effects alone
    refused = False
    try:
        asp.attribution_graph(model, transcoders, prompt, max_bytes=needed, **options)
    except MemoryError:
        refused = True
    before = peak_bytes()
    graph = asp.attribution_graph(model, transcoders, prompt, max_bytes=4 * needed, **options)
    grown = peak_bytes() - before
    assert len(graph) > n
    print(json.dumps([grown, 4 * needed, refused]))


if __name__ == "__main__":
    child()
