"""Scores and circuits of component edges against PyTorch's autograd, and against EAP-IG itself.

The first part needs torch alone. The second runs where EAP-IG (`eap`, from its repository: PyPI has another
package of that name) and TransformerLens before 4.0 can be imported. Where EAP-IG does something else than
its definition, a test says what it does.
"""

import importlib
import json
import warnings

import numpy as np
import oracle
import oracle_component_graph as component_graph
import oracle_components
import pandas as pd
import pytest
from circuit_cases import CONFIGS, TOLERANCE, Case, case, engine, error, random_task

from attnsparse import FormatError
from attnsparse.circuits import (
    ComponentCircuit,
    ComponentScores,
    component_circuit,
    component_scores,
    component_values,
)
from attnsparse.circuits.components import mib as component_mib

torch = pytest.importorskip("torch")

import torch_components as by_torch  # noqa: E402

PAIRED = ("eap", "eap-ig-inputs", "eap-ig-activations", "clean-corrupted")
METRICS = ("logit_diff", "logit_diff_max", "prob_diff", "log_prob", "kl")
OWN = {
    "wide": {"n_layer": 3, "n_head": 4, "d_model": 48, "d_mlp": 96, "n_vocab": 31},
    "no bias, untied": {"d_model": 12, "d_head": 5, "bias": False, "tied": False, "unembed_bias": True,
                        "activation": "gelu", "scale_by_inverse_layer": True},
}  # fmt: skip
DENSE = ("dense", *OWN)  # EAP-IG fails with one head a layer


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only cost time with models of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


each_config = pytest.mark.parametrize("name", [*CONFIGS, *OWN])
each_method = pytest.mark.parametrize("method", PAIRED)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


def made(name, lengths=(7, 4, 6), **options):
    if name in CONFIGS:
        return case(name, lengths, **options)
    config = oracle.full_config(**OWN[name])
    return Case(config, engine.rounded_model(5, config), random_task(config, lengths, 1, **options))


def scores_of(one, method, dtype="float64", **options):
    return component_scores(one.model(dtype), one.task, method=method, **options).scores


def values_of(one, masks, dtype="float64", **options):
    """[circuits, prompts]."""
    return component_values(one.model(dtype), one.task, masks, **options)


def circuits_of(one, seed=0):
    """Nothing, everything and random sets of component edges."""
    rng, real = np.random.default_rng(seed), by_torch.real_edges(one.config)
    return np.array([real & (rng.random(real.shape) < share) for share in (0, 0.1, 0.5, 0.9, 2)])


# ---------------------------------------------------------------------------------------------- files


def test_prune_scores_are_what_auto_circuit_loads(tmp_path):
    """`load_cache` is torch.load; the model of every module is TransformerLens's."""
    one = made("wide")
    model = one.model()
    circuit = component_circuit(component_scores(model, one.task), model)
    for ending in ("pkl", "pt", "pth"):
        path = tmp_path / f"scores.{ending}"
        circuit.to_prune_scores(path)
        loaded = torch.load(path, weights_only=True)
        assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
        assert tuple(loaded["blocks.1.hook_k_input"].shape) == (4, 6)
        again = ComponentCircuit.from_prune_scores(path, model)
        np.testing.assert_array_equal(again.scores, np.float32(circuit.scores))
    moved = {name: torch.stack([tensor, tensor]).double() for name, tensor in loaded.items()}
    torch.save(moved, tmp_path / "positions.pkl")
    again = ComponentCircuit.from_prune_scores(tmp_path / "positions.pkl", model, sum_positions=True)
    np.testing.assert_allclose(again.scores, 2 * np.float32(circuit.scores), rtol=1e-15)


def test_torch_files_of_mib(tmp_path):
    """What EAP-IG's Graph.from_pt asks for, and back."""
    there = by_torch.real_edges({"n_layer": 6, "n_head": 4})
    scores = np.random.default_rng(0).normal(size=there.shape) * there
    circuit, folder = ComponentCircuit(scores, 6, 4, 64), tmp_path / "ioi_interpbench"
    circuit.to_mib(folder, format="pt")
    data = torch.load(folder / "importances.pt", weights_only=True)
    assert {"cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph"} <= set(data)
    assert data["edges_scores"].shape == data["edges_in_graph"].shape == (31, 79)
    assert (data["src_nodes"][5], data["dst_nodes"][-1]) == ("m0", "logits")
    np.testing.assert_array_equal(ComponentCircuit.from_mib(folder).scores, np.float32(scores))
    circuit.to_mib(folder, kind="circuits", format="pt")
    for share in (0.01, 0.5):
        again = ComponentCircuit.from_mib(folder, share)
        np.testing.assert_array_equal(again.given, circuit.mask(int(share * 1_108)))


@pytest.mark.parametrize("change", [
    lambda d: d.pop("cfg"),
    lambda d: d.update(src_nodes=d["src_nodes"][::-1]),
    lambda d: d.update(edges_scores=d["edges_scores"][:3]),
    lambda d: d.update(edges_in_graph=d["edges_scores"]),
    lambda d: d.update(edges_in_graph=d["edges_in_graph"].T.contiguous().T),
    lambda d: d.pop("edges_in_graph"),
    lambda d: d["edges_scores"].fill_(float("nan")),
])  # fmt: skip
def test_damaged_torch_files_of_mib(tmp_path, change):
    there = by_torch.real_edges({"n_layer": 6, "n_head": 4})
    folder = tmp_path / "ioi_interpbench"
    ComponentCircuit(there.astype(float), 6, 4, 64).to_mib(folder, format="pt")
    data = torch.load(folder / "importances.pt", weights_only=True)
    change(data)
    torch.save(data, folder / "importances.pt")
    with pytest.raises(FormatError):
        ComponentCircuit.from_mib(folder)


@pytest.mark.parametrize("level", ["node", "neuron"])
def test_torch_files_of_nodes(tmp_path, monkeypatch, level):
    one = made("wide")
    model = one.model()
    monkeypatch.setitem(component_mib.FOLDERS, "toy_toy", (3, 4, 48))
    scores = component_scores(model, one.task, level=level)
    scores.to_mib(tmp_path / "toy_toy", model, format="pt")
    data = torch.load(tmp_path / "toy_toy" / "importances.pt", weights_only=True)
    np.testing.assert_array_equal(data[f"{level}s_scores"].numpy(), np.float32(scores.scores))
    again = ComponentScores.from_mib(tmp_path / "toy_toy", model)
    assert again.level == level
    np.testing.assert_array_equal(again.scores, np.float32(scores.scores))


# ------------------------------------------------------------------------------------------------ autograd


@each_config
@each_method
@each_dtype
def test_scores_by_autograd(name, method, dtype):
    one = made(name)
    expected = one.ask(by_torch.edge_scores, method)
    assert error(scores_of(one, method, dtype), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["dense", "gated"])
@each_method
@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("gate", ["held", "recomputed"])
@pytest.mark.parametrize("metric", METRICS)
def test_directions_gates_and_metrics_by_autograd(name, method, direction, gate, metric):
    one, options = made(name, (4, 5)), {"direction": direction, "gate": gate, "metric": metric}
    expected = one.ask(by_torch.edge_scores, method, steps=2, **options)
    assert error(scores_of(one, method, steps=2, **options), expected) < 1e-9


@pytest.mark.parametrize("name", ["dense", "gated"])
@each_method
def test_nodes_by_autograd(name, method):
    """The gradient of an output is the sum over all receivers after it. Mixed inputs end with clean ones."""
    one = made(name)
    expected = one.ask(by_torch.edge_scores, method, right=True).sum(1)
    assert error(scores_of(one, method, level="node"), expected) < 1e-9
    assert error(scores_of(one, method, level="neuron").sum(1), expected) < 1e-9


@pytest.mark.parametrize("name", ["dense", "gated"])
@pytest.mark.parametrize("method", ["eap", "eap-ig-activations"])
@pytest.mark.parametrize("ablation", ["zero", "mean-positional"])
@each_dtype
def test_ablations_by_autograd(name, method, ablation, dtype):
    one = made(name)
    expected = one.ask(by_torch.edge_scores, method, ablation=ablation)
    assert error(scores_of(one, method, dtype, ablation=ablation), expected) < TOLERANCE[dtype]


@each_config
@pytest.mark.parametrize("ablation", ["counterfactual", "zero", "mean-positional"])
@each_dtype
def test_circuits_in_torch(name, ablation, dtype):
    one, metric = made(name), "prob_diff" if ablation == "zero" else "logit_diff"
    masks, options = circuits_of(one), {"ablation": ablation, "metric": metric}
    found, expected = values_of(one, masks, dtype, **options), one.ask(by_torch.evaluate, masks, **options)
    assert error(found, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("gate", ["held", "recomputed"])
@pytest.mark.parametrize("metric", ["logit_diff", "kl"])
def test_circuits_and_single_edges_of_a_gated_model_in_torch(direction, gate, metric):
    one, masks = made("gated", (4, 5)), circuits_of(made("gated"))
    options = {"direction": direction, "gate": gate, "metric": metric}
    found, expected = values_of(one, masks, **options), one.ask(by_torch.evaluate, masks, **options)
    assert error(found, expected) < 1e-9
    assert error(scores_of(one, "exact", **options), one.ask(by_torch.edge_scores, "exact", **options)) < 1e-9


@pytest.mark.parametrize("ablation", ["counterfactual", "zero", "mean-positional"])
@each_dtype
def test_single_edges_in_torch(ablation, dtype):
    one = made("dense")
    expected = one.ask(by_torch.edge_scores, "exact", ablation=ablation)
    assert error(scores_of(one, "exact", dtype, ablation=ablation), expected) < TOLERANCE[dtype]


def test_the_methods_differ():
    """The comparison can fail: no method, gate or direction passes for another."""
    one = made("gated")
    found = [one.ask(by_torch.edge_scores, method) for method in (*PAIRED, "exact")]
    found.append(one.ask(by_torch.edge_scores, "clean-corrupted", gate="held"))
    found.append(one.ask(by_torch.edge_scores, "eap", direction="denoising"))
    for i, first in enumerate(found):
        assert all(error(first, second) > 1e-3 for second in found[:i])


# -------------------------------------------------------------------------------------------------- EAP-IG


@pytest.fixture(scope="module")
def eap():
    """The helper that asks EAP-IG."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("transformer_lens")
        pytest.importorskip(
            "eap.graph", exc_type=ImportError, reason="no EAP-IG, or not for this TransformerLens"
        )
        return importlib.import_module("eap_peer")


warns = pytest.mark.filterwarnings("ignore")  # what others warn of


def same_order(found, expected):
    """Spearman's rank correlation is 1; what differs by rounding alone counts as equal."""
    size = np.abs(expected).max()
    ranks = [pd.Series(np.round(x.ravel() / size, 9)).rank() for x in (found, expected)]
    return np.corrcoef(*ranks)[0, 1] > 1 - 1e-9


@pytest.mark.parametrize("name", DENSE)
@each_method
@pytest.mark.parametrize("metric", ["logit_diff", "prob_diff", "kl"])
@warns
def test_edges(eap, name, method, metric):
    if (method, metric) == ("eap", "kl"):
        pytest.skip("KL has no slope at the clean run")
    one, real = made(name), by_torch.real_edges(made(name).config)
    expected, graph = one.ask(eap.Peer, metric=metric, batch=2).edge_scores(method)
    assert np.array_equal(graph.real_edge_mask.numpy(), real)
    assert list(graph.edges) == component_graph.edge_names(one.config)
    found = scores_of(one, method, metric=metric)
    assert error(found, expected) < 1e-9
    assert same_order(found[real], expected[real])
    assert error(scores_of(one, method, "float32", metric=metric), expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("name", DENSE)
@warns
def test_information_flow_routes(eap, name):
    """EAP-IG has NaN for a receiver if no sender has a share at some position; here that one counts 0."""
    one, method = made(name), "information-flow-routes"
    expected = one.ask(eap.Peer, batch=2).edge_scores(method)[0]
    found, real = scores_of(one, method), by_torch.real_edges(one.config)
    whole = np.isfinite(expected).all(0)
    assert whole.sum() > 2
    assert error(found[:, whole], expected[:, whole]) < 1e-9
    assert same_order(found[real & whole], expected[real & whole])
    assert found[:, whole].sum(0) == pytest.approx(1)
    assert (found[:, ~whole].sum(0) < 1 - 1e-9).all()
    assert whole.all() == (name == "wide" or name == "dense")


@pytest.mark.parametrize("method", [*PAIRED, "information-flow-routes"])
@warns
def test_edges_where_all_is_in_float32(eap, method):
    one = made("wide")
    expected = one.ask(eap.Peer, dtype="float32", batch=3).edge_scores(method)[0]
    found = scores_of(one, method, "float32")
    assert error(found, expected) < 1e-5


@warns
def test_the_mean_of_a_batch_is_divided_twice(eap):
    """EAP-IG divides by the number of prompts what a mean loss has divided by the size of the batch."""
    one = made("dense", (5, 5, 5, 5))
    expected = one.ask(eap.Peer, batch=4).edge_scores("eap", mean=True)[0]
    assert error(scores_of(one, "eap") / 4, expected) < 1e-9


@pytest.mark.parametrize("method", PAIRED[:3])
@pytest.mark.parametrize("neuron", [False, True])
@warns
def test_nodes_and_neurons(eap, method, neuron):
    """EAP-IG multiplies the difference of an MLP's outputs with the gradient of its input."""
    one, level = made("wide"), "neuron" if neuron else "node"
    expected, found = (
        one.ask(eap.Peer, batch=2).node_scores(method, neuron=neuron),
        scores_of(one, method, level=level),
    )
    mlp = np.array([name.startswith("m") for name in component_graph.senders(one.config)])
    assert error(found[~mlp], expected[~mlp]) < 1e-9
    assert error(found[mlp], expected[mlp]) > 0.1
    with_input = one.ask(oracle_components.node_scores, method, neuron=neuron, mlp_gradient="input")
    assert error(with_input, expected) < 1e-9
    assert error(scores_of(one, method, level=level, mlp_gradient="input"), expected) < 1e-9


@pytest.mark.parametrize("method", ["eap", "eap-ig-activations"])
@warns
def test_zero(eap, method):
    one = made("wide")
    expected = one.ask(eap.Peer, batch=2).edge_scores(method, ablation="zero")[0]
    assert error(scores_of(one, method, ablation="zero"), expected) < 1e-9


@warns
def test_means_per_position(eap):
    """Where all prompts are of one length, for EAP-IG counts padding. Its method of activations goes from the
    clean values to 0 instead of to the mean."""
    one = made("wide", (5, 5, 5))
    peer = one.ask(eap.Peer, batch=3)
    expected = peer.edge_scores("eap", ablation="mean-positional")[0]
    assert error(scores_of(one, "eap", ablation="mean-positional"), expected) < 1e-9
    found, parts = peer.edge_scores("eap-ig-activations", ablation="mean-positional")[0], []
    for pair in one.ask(by_torch.pairs, ablation="mean-positional"):
        differences = torch.stack([new - old.detach() for new, old in zip(pair.fill, pair.base.outputs)])
        pair.fill = [torch.zeros_like(x) for x in pair.fill]
        slopes = [torch.stack(pair.slopes(run)) for run in by_torch.points(pair, "eap-ig-activations", 5)]
        parts.append(torch.einsum("ute,vte->uv", differences, sum(slopes) / len(slopes)).numpy())
    assert error(np.where(by_torch.real_edges(one.config), np.mean(parts, axis=0), 0.0), found) < 1e-9


@warns
def test_the_plain_mean_is_another(eap):
    """EAP-IG's "mean" is one vector for all senders: outputs at the last position alone, divided by the count
    of positions, averaged over prompts and senders."""
    one = made("wide")
    model = by_torch.TorchModel(one.config, one.weights)
    last = [torch.stack(model.run(x).outputs).detach()[:, -1] / len(x) for x in one.task.clean]
    expected, parts = torch.stack(last).mean((0, 1)), []
    for pair in one.ask(by_torch.pairs, ablation="zero"):
        differences = torch.stack([expected - old.detach() for old in pair.base.outputs])
        parts.append(torch.einsum("ute,vte->uv", differences, torch.stack(pair.slopes(pair.base))).numpy())
    found = one.ask(eap.Peer, batch=3).edge_scores("eap", ablation="mean")[0]
    assert error(np.where(by_torch.real_edges(one.config), np.mean(parts, axis=0), 0.0), found) < 1e-9


@pytest.mark.parametrize("ablation", ["counterfactual", "zero"])
@pytest.mark.parametrize("metric", ["logit_diff", "prob_diff"])
@warns
def test_single_edges(eap, ablation, metric):
    """Not KL: EAP-IG's value before patching takes the corrupted logits for the clean ones."""
    one, theirs = made("dense"), "patching" if ablation == "counterfactual" else ablation
    real = by_torch.real_edges(one.config)
    expected = one.ask(eap.Peer, batch=3, metric=metric).edge_scores("exact", ablation=theirs)[0]
    found = scores_of(one, "exact", metric=metric, ablation=ablation)
    assert error(found, expected) < 1e-9
    assert same_order(found[real], expected[real])


# ------------------------------------------------------------------------------------- EAP-IG: circuits


def circuit_of(one, scores, select="top", rank_by="absolute"):
    sizes = one.config["n_layer"], one.config["n_head"], one.config["d_model"]
    return ComponentCircuit(scores.copy(), *sizes, select, rank_by)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
@warns
def test_selection_and_pruning(eap, greedy, absolute):
    """EAP-IG's pruning stops after one round where the nodes are those that the selection has just noted;
    what is left dangling goes when it is called again, as an evaluation does."""
    one, dangling = made("wide"), 0
    scores, graph = one.ask(eap.Peer, metric="prob_diff").edge_scores("eap-ig-inputs")
    sizes = range(int(graph.real_edge_mask.sum()) + 1)
    circuit = circuit_of(one, scores, "greedy" if greedy else "top", "absolute" if absolute else "signed")
    raw, pruned = (circuit.masks(sizes, prune=prune)[0] for prune in (False, True))
    for n in sizes:
        (graph.apply_greedy if greedy else graph.apply_topn)(n, absolute=absolute, prune=False)
        assert np.array_equal(graph.in_graph.numpy(), raw[n])
        graph.prune()
        dangling += not np.array_equal(graph.in_graph.numpy(), pruned[n])
        graph.prune()
        assert np.array_equal(graph.in_graph.numpy(), pruned[n])
    assert (dangling == 0) == greedy


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("ablation", ["counterfactual", "zero", "mean-positional"])
@pytest.mark.parametrize("metric", ["logit_diff", "kl"])
@warns
def test_circuits(eap, name, ablation, metric):
    one = made(name, (5, 5, 5) if ablation == "mean-positional" else (7, 4, 6))
    peer = one.ask(eap.Peer, batch=3, metric=metric)
    sizes = [0, 1, 5, 20, 40, int(by_torch.real_edges(one.config).sum())]
    scores = scores_of(one, "eap-ig-inputs", metric=metric)
    raw, pruned = (circuit_of(one, scores).masks(sizes, prune=prune)[0] for prune in (False, True))
    theirs = "patching" if ablation == "counterfactual" else ablation
    expected = np.array([peer.evaluate(mask, theirs) for mask in raw])
    assert error(values_of(one, pruned, metric=metric, ablation=ablation), expected) < 1e-9
    assert error(values_of(one, pruned, "float32", metric=metric, ablation=ablation), expected) < 1e-5
    if ablation == "counterfactual":
        assert error(values_of(one, raw, metric=metric), expected) < 1e-9  # pruned or not


@warns
def test_whole_models(eap):
    one = made("wide")
    peer, real = one.ask(eap.Peer, batch=3), by_torch.real_edges(made("wide").config)
    found = values_of(one, [real, np.zeros_like(real)])
    assert error(found[0], peer.whole()) < 1e-9
    assert error(found[1], peer.whole(corrupted=True)) < 1e-9


@warns
def test_files(eap, tmp_path):
    """The JSON that EAP-IG writes is that of the package and of the oracle, and each reads the other's."""
    one, theirs, ours = made("wide"), tmp_path / "theirs.json", tmp_path / "ours.json"
    scores, graph = one.ask(eap.Peer, batch=3).edge_scores("eap-ig-inputs")
    graph.apply_topn(60, prune=True)
    graph.prune()
    graph.to_json(theirs)
    circuit_of(one, scores).to_json(ours, 60)
    found, own = (json.loads(path.read_text()) for path in (theirs, ours))
    mask = circuit_of(one, scores).mask(60)
    assert found == own == component_graph.to_json(one.config, scores, mask)
    assert all(list(found[part]) == list(own[part]) for part in ("nodes", "edges"))
    again, read = type(graph).from_json(ours), ComponentCircuit.from_json(theirs)
    assert np.array_equal(again.in_graph.numpy(), mask)
    assert np.abs(again.scores.double().numpy() - scores).max() < 1e-6  # float32
    assert np.array_equal(read.given, mask)
    assert np.array_equal(read.scores, scores)


@warns
def test_submissions_to_mib(eap, tmp_path, monkeypatch):
    """EAP-IG's graph reads all that `to_mib` writes."""
    one = made("wide")
    model = one.model()
    monkeypatch.setitem(component_mib.FOLDERS, "toy_toy", (3, 4, 48))
    _, graph = one.ask(eap.Peer, batch=3).edge_scores("eap")
    circuit, folder = component_circuit(component_scores(model, one.task), model), tmp_path / "toy_toy"
    reads = {"json": type(graph).from_json, "pt": getattr(type(graph), "from_pt", None)}
    for form, read in reads.items():
        if read is None:
            continue
        circuit.to_mib(folder, format=form)
        again = read(str(folder / f"importances.{form}"))
        np.testing.assert_array_equal(again.scores.numpy(), np.float32(circuit.scores))
        for level in ("node", "neuron"):
            scores = component_scores(model, one.task, level=level)
            scores.to_mib(folder, model, format=form)
            again = read(str(folder / f"importances.{form}"))
            found = {"node": again.nodes_scores, "neuron": again.neurons_scores}[level]
            np.testing.assert_array_equal(found.numpy(), np.float32(scores.scores))
            again.apply_topn(5, True, level=level, prune=True)
            assert again.count_included_nodes() <= 5
