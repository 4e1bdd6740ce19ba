"""Prune scores of auto-circuit and submission folders of MIB, against definitions of their own here."""

import json
import sys

import numpy as np
import pytest
import torch_by_hand
from circuit_cases import case

from attnsparse import FormatError, LimitError, Limits, NonFiniteError
from attnsparse.circuits import ComponentCircuit, ComponentScores, component_scores
from attnsparse.circuits.components import names as names
from attnsparse.circuits.components.file import exists

GPT2, INTERPBENCH = names.Shape(12, 12), names.Shape(6, 4)
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def circuit_of(shape, d_model=8, seed=0, **fields):
    there = exists(shape)
    scores = np.random.default_rng(seed).normal(size=there.shape) * there
    return ComponentCircuit(scores, *shape, d_model, **fields)


# ---------------------------------------------------------------------------------------- prune scores


def place_in_auto_circuit(edge: str, shape) -> tuple:
    """Module and index of a component edge in auto-circuit, from its name here."""
    sender, receiver = edge.split("->")
    source = 0
    if sender != "input":
        layer, *head = sender[1:].split(".h")
        source = 1 + int(layer) * (shape.n_head + 1) + (int(head[0]) if head else shape.n_head)
    if receiver == "logits":
        return f"blocks.{shape.n_layer - 1}.hook_resid_post", (source,)
    if receiver[0] == "m":
        return f"blocks.{receiver[1:]}.hook_mlp_in", (source,)
    layer, rest = receiver[1:].split(".h")
    return f"blocks.{layer}.hook_{rest[-2]}_input", (int(rest[:-3]), source)


@pytest.fixture
def gated():
    """A circuit for the toy model, and the model."""
    model = case("gated", (5,)).model()
    config = model.config
    return circuit_of(names.Shape(config.n_layer, config.n_head), config.d_model), model


def test_every_component_edge_is_where_auto_circuit_has_it(tmp_path, gated):
    circuit, model = gated
    circuit.to_prune_scores(tmp_path / "scores")
    arrays = dict(np.load(tmp_path / "scores.npz"))
    table = circuit.to_pandas()
    shape = names.Shape(circuit.n_layer, circuit.n_head)
    for edge, score in zip(table["name"], table["score"]):
        module, index = place_in_auto_circuit(edge, shape)
        assert arrays[module][index] == score
    assert sum(array.size for array in arrays.values()) == circuit.n_edges
    again = ComponentCircuit.from_prune_scores(tmp_path / "scores.npz", model)
    np.testing.assert_array_equal(again.scores, circuit.scores)
    assert (again.rank_by, again.model, again.d_model) == ("absolute", model.name, model.config.d_model)


def test_scores_of_a_whole_model_have_auto_circuits_shapes(tmp_path):
    circuit_of(GPT2, 768).to_prune_scores(tmp_path / "scores.npz")
    shapes = {name: array.shape for name, array in np.load(tmp_path / "scores.npz").items()}
    assert len(shapes) == 12 * 4 + 1
    assert shapes["blocks.0.hook_k_input"] == (12, 1)
    assert shapes["blocks.11.hook_v_input"] == (12, 144)
    assert shapes["blocks.11.hook_mlp_in"] == (156,)
    assert shapes["blocks.11.hook_resid_post"] == (157,)
    assert sum(np.prod(shape) for shape in shapes.values()) == 32_491


def test_positions_are_added_if_that_is_asked_for(tmp_path, gated):
    circuit, model = gated
    circuit.to_prune_scores(tmp_path / "one.npz")
    arrays = {name: np.stack([array, 2 * array]) for name, array in np.load(tmp_path / "one.npz").items()}
    np.savez(tmp_path / "two.npz", **arrays)
    with pytest.raises(FormatError, match="it has positions: pass sum_positions=True") as caught:
        ComponentCircuit.from_prune_scores(tmp_path / "two.npz", model)
    assert caught.value.code == "size_mismatch"
    again = ComponentCircuit.from_prune_scores(tmp_path / "two.npz", model, sum_positions=True)
    np.testing.assert_allclose(again.scores, 3 * circuit.scores, rtol=1e-15)


def changed(tmp_path, circuit, change):
    circuit.to_prune_scores(tmp_path / "one.npz")
    arrays = dict(np.load(tmp_path / "one.npz"))
    change(arrays)
    np.savez(tmp_path / "two.npz", **arrays)
    return tmp_path / "two.npz"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda a: a.pop("blocks.0.hook_mlp_in"), "missing_tensor"),
        (lambda a: a.update({"blocks.9.hook_mlp_in": np.ones(3)}), "unexpected_tensor"),
        (lambda a: a.update({"blocks.0.hook_attn_in": np.ones((2, 1))}), "unexpected_tensor"),
        (lambda a: a.update({"blocks.0.hook_mlp_in": np.ones(9)}), "size_mismatch"),
        (lambda a: a.update({"blocks.0.hook_mlp_in": np.full(len(a["blocks.0.hook_mlp_in"]), np.nan)}),
         "nonfinite"),
        (lambda a: a.update({"blocks.0.hook_mlp_in": a["blocks.0.hook_mlp_in"] > 0}), "dtype"),
    ],
)  # fmt: skip
def test_scores_of_something_else(tmp_path, gated, change, code):
    circuit, model = gated
    with pytest.raises(FormatError) as caught:
        ComponentCircuit.from_prune_scores(changed(tmp_path, circuit, change), model)
    assert caught.value.code == code
    assert isinstance(caught.value, NonFiniteError) == (code == "nonfinite")


def test_without_torch_its_files_are_refused(tmp_path, gated, monkeypatch):
    circuit, _model = gated
    monkeypatch.setitem(sys.modules, "torch", None)
    for ending in (".pkl", ".pt", ".pth"):
        with pytest.raises(ImportError, match=r"torch is not installed.*npz needs no torch"):
            circuit.to_prune_scores(tmp_path / f"scores{ending}")
    with pytest.raises(ImportError, match="format='json' needs no torch"):
        circuit_of(GPT2, 768).to_mib(tmp_path / "ioi_gpt2", format="pt")
    assert list(tmp_path.rglob("*.p*")) == []


def test_a_torch_file_is_read_as_data(tmp_path, gated):
    circuit, model = gated
    circuit.to_prune_scores(tmp_path / "one.npz")
    arrays = dict(np.load(tmp_path / "one.npz"))
    data = torch_by_hand.torch_file({name: np.float32(array) for name, array in arrays.items()})
    (tmp_path / "scores.pkl").write_bytes(data)
    again = ComponentCircuit.from_prune_scores(tmp_path / "scores.pkl", model)
    np.testing.assert_array_equal(again.scores, np.float32(circuit.scores))
    (tmp_path / "bad.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(FormatError):
        ComponentCircuit.from_prune_scores(tmp_path / "bad.pkl", model)


# ----------------------------------------------------------------------------------------- MIB's folder


@pytest.mark.parametrize(
    ("folder", "shape", "width"), [("ioi_gpt2", GPT2, 768), ("ioi_interpbench", INTERPBENCH, 64)]
)
def test_importances(tmp_path, folder, shape, width):
    circuit = circuit_of(shape, width)
    circuit.to_mib(tmp_path / folder)
    assert [path.name for path in (tmp_path / folder).iterdir()] == ["importances.json"]
    data = json.loads((tmp_path / folder / "importances.json").read_text())
    assert len(data["edges"]) == {"ioi_gpt2": 32_491, "ioi_interpbench": 1_108}[folder]
    assert data["cfg"] == {
        "n_layers": shape.n_layer, "n_heads": shape.n_head, "parallel_attn_mlp": False, "d_model": width
    }  # fmt: skip
    again = ComponentCircuit.from_mib(tmp_path / folder)
    np.testing.assert_array_equal(again.scores, circuit.scores)
    np.testing.assert_array_equal(again.given, exists(shape))


def test_nine_circuits(tmp_path):
    circuit, folder = circuit_of(INTERPBENCH, 64), tmp_path / "ioi_interpbench"
    circuit.to_mib(folder)
    circuit.to_mib(folder, kind="circuits")
    assert len(list(folder.iterdir())) == 9  # and the importances are gone
    for share in SHARES:
        data = json.loads((folder / f"circuit-{100 * share:g}.json").read_text())
        n = sum(entry["in_graph"] for entry in data["edges"].values())
        assert n <= share * 1_108
        again = ComponentCircuit.from_mib(folder, share)
        np.testing.assert_array_equal(again.given, circuit.mask(int(share * 1_108)))
        assert again.given.sum() == n
    circuit.to_mib(folder)
    assert [path.name for path in folder.iterdir()] == ["importances.json"]


def test_circuits_of_ones_own(tmp_path):
    circuit, folder = circuit_of(INTERPBENCH, 64), tmp_path / "ioi_interpbench"
    masks = np.stack([circuit.mask(int(share * 1_108), prune=False) for share in SHARES])
    circuit.to_mib(folder, kind="circuits", masks=masks)
    np.testing.assert_array_equal(ComponentCircuit.from_mib(folder, 0.5).given, masks[-1])
    masks[3] = circuit.mask(12, prune=False)
    with pytest.raises(
        ValueError, match="the circuit for 1 % has 12 component edges, MIB takes at most 11 of"
    ):
        circuit.to_mib(folder, kind="circuits", masks=masks)
    with pytest.raises(ValueError, match="shape"):
        circuit.to_mib(folder, kind="circuits", masks=masks[:3])
    with pytest.raises(ValueError, match="kind='circuits'"):
        circuit.to_mib(folder, masks=masks)


@pytest.mark.parametrize(
    ("name", "shape", "width", "text"),
    [
        ("antonym_demo", GPT2, 768, "MIB takes folders .* 'ioi_gpt2' or 'ioi_interpbench'"),
        ("ioi_gpt2", INTERPBENCH, 768, "12 layers of 12 heads, 768 wide; this one has 6 of 4"),
        ("ioi_gpt2", GPT2, 64, "this one has 12 of 12, 64 wide"),
        ("ioi_interpbench", GPT2, 768, "6 layers of 4 heads; this one has 12 of 12"),
    ],
)
def test_another_size_is_refused(tmp_path, name, shape, width, text):
    with pytest.raises(ValueError, match=text):
        circuit_of(shape, width).to_mib(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    folder = tmp_path / "ioi_gpt2"
    folder.mkdir()
    (folder / "notes.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"notes\.json.*takes every file"):
        circuit_of(GPT2, 768).to_mib(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.json"]


def test_folders_that_are_no_submission(tmp_path):
    circuit, folder = circuit_of(INTERPBENCH, 64), tmp_path / "ioi_interpbench"
    with pytest.raises(FileNotFoundError):
        ComponentCircuit.from_mib(folder)
    circuit.to_mib(folder)
    with pytest.raises(ValueError, match="holds importances: give no share"):
        ComponentCircuit.from_mib(folder, 0.5)
    with pytest.raises(ValueError, match=r"share must be one of 0\.001"):
        ComponentCircuit.from_mib(folder, 0.3)
    with pytest.raises(LimitError):
        ComponentCircuit.from_mib(folder, limits=Limits(max_json_values=100))
    (folder / "more.json").write_text("{}")
    with pytest.raises(FormatError, match=r"2 \.json or \.pt files; MIB takes one"):
        ComponentCircuit.from_mib(folder)
    (folder / "more.json").unlink()
    circuit.to_mib(folder, kind="circuits")
    with pytest.raises(ValueError, match="nine circuits: give the share"):
        ComponentCircuit.from_mib(folder)
    circuit.to_json(folder / "circuit-50.json", 900, prune=False)
    with pytest.raises(FormatError, match="the one for 50 % has 900 of 1,108"):
        ComponentCircuit.from_mib(folder, 0.5)


# --------------------------------------------------------------------------------- nodes and neurons


@pytest.fixture
def small(monkeypatch):
    """The toy model, which MIB would have to ask for."""
    from attnsparse.circuits.components import mib as component_mib

    one = case("gated", (5, 3))
    model = one.model()
    config = model.config
    monkeypatch.setitem(component_mib.FOLDERS, "toy_toy", (config.n_layer, config.n_head, config.d_model))
    return one, model


@pytest.mark.parametrize("level", ["node", "neuron"])
def test_nodes_and_neurons(tmp_path, small, level):
    one, model = small
    scores, folder = component_scores(model, one.task, level=level), tmp_path / "toy_toy"
    scores.to_mib(folder, model)
    data = json.loads((folder / "importances.json").read_text())
    field = {"node": "score", "neuron": "neurons_scores"}[level]
    told = [data["nodes"][name][field] for name in scores.senders]
    if level == "neuron":  # EAP-IG writes those of all heads of a layer at each of them
        told = [row[int(name[-1])] if ".h" in name else row for name, row in zip(scores.senders, told)]
    np.testing.assert_array_equal(told, scores.scores)
    assert data["nodes"]["logits"] == {"in_graph": True}
    assert set(data["edges"]) == set(component_scores(model, one.task).to_pandas()["name"])
    again = ComponentScores.from_mib(folder, model)
    np.testing.assert_array_equal(again.scores, scores.scores)
    assert (again.level, again.senders, again.receivers) == (level, scores.senders, scores.receivers)
    np.testing.assert_array_equal(again.n_before, scores.n_before)
    with pytest.raises(FormatError, match=r"ComponentScores\.from_mib"):
        ComponentCircuit.from_mib(folder)


def test_scores_of_component_edges_go_through_a_circuit(tmp_path, small):
    one, model = small
    with pytest.raises(ValueError, match=r"component_circuit\(scores, model\)\.to_mib"):
        component_scores(model, one.task).to_mib(tmp_path / "toy_toy", model)
    other = case("dense", (5, 3)).model()
    with pytest.raises(ValueError, match="of another model"):
        component_scores(model, one.task, level="node").to_mib(tmp_path / "toy_toy", other)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda d: d.pop("nodes"), "nodes"),
        (lambda d: d.update(cfg=3), "cfg"),
        (lambda d: d["cfg"].update(d_model=99), "cfg"),
        (lambda d: d["cfg"].update(n_layers=400, n_heads=400), "nodes"),
        (lambda d: d["nodes"].pop("m0"), "m0"),
        (lambda d: d["nodes"]["m0"].update(score="1"), "m0"),
        (lambda d: d["nodes"]["m0"].pop("score"), "m0"),
    ],
)
def test_damaged_nodes(tmp_path, small, change, field):
    one, model = small
    folder = tmp_path / "toy_toy"
    component_scores(model, one.task, level="node").to_mib(folder, model)
    data = json.loads((folder / "importances.json").read_text())
    change(data)
    (folder / "importances.json").write_text(json.dumps(data))
    with pytest.raises(FormatError) as caught:
        ComponentScores.from_mib(folder, model)
    assert (caught.value.code, caught.value.field) == ("value", field)
