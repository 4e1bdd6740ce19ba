"""Masks of component edges against the oracle: values, gradients, training, and circuits put in by hand."""

import dataclasses

import engine
import numpy as np
import oracle_component_graph as og
import oracle_components as oc
import oracle_masks as om
import planted_components as pc
import pytest
from circuit_cases import CONFIGS, TOLERANCE, case, error

from attnsparse import FormatError
from attnsparse.circuits import (
    component_mask_gradients,
    component_masks,
    component_scores,
    component_values,
    load_component_circuit,
)
from attnsparse.circuits.components import training as component_training
from attnsparse.tasks import CustomMetric

each_config = pytest.mark.parametrize("name", CONFIGS)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE)
LENGTHS = (5, 3, 4)
PROBING = {"steps": 7, "learning_rate": 0.3, "start": 0.8, "penalty": 1.5}
PRUNING = {
    "method": "edge-pruning",
    "steps": 31,
    "learning_rate": 0.3,
    "start": 1.2,
    "sparsity": 0.7,
    "sparsity_steps": 9,
    "multiplier_rate": 0.2,
}


def soft(one, n: int = 1, seed: int = 0) -> np.ndarray:
    """Masks between 0 and 1."""
    return np.random.default_rng(seed).random((n, *og.real_edges(one.config).shape))


def twin(one, asked: dict, **options) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By the oracle, which has other names."""
    names = {"learning_rate": "rate"}
    method = {names.get(name, name): value for name, value in asked.items() if name != "method"}
    return one.ask(om.train, **method, **options)


# -------------------------------------------------------------------------------------- values, gradients


@each_config
@each_dtype
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"metric": "kl", "ablation": "zero"},
        {"metric": "log_prob", "ablation": "mean-positional"},
        {"metric": "prob_diff", "direction": "denoising"},
        {"metric": "kl", "direction": "denoising", "gate": "held"},
        {"metric": "logit_diff_max", "gate": "held", "ablation": "mean"},
    ],
    ids=str,
)
def test_gradients(name, dtype, options):
    one = case(name, LENGTHS)
    masks = soft(one, 2)
    values, gradients = component_mask_gradients(one.model(dtype), one.task, masks, **options)
    assert (gradients[:, ~og.real_edges(one.config)] == 0).all()
    for mask, value, gradient in zip(masks, values, gradients):
        wanted = one.ask(om.loss_and_gradient, mask, **options)
        assert error(value, wanted[0]) < TOLERANCE[dtype]
        assert error(gradient, wanted[1]) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["dense", "gated"])
@pytest.mark.parametrize("direction", oc.DIRECTIONS)
def test_gradients_are_the_slope_of_values(name, direction):
    """Along a random direction; gates held, because values jump where one opens."""
    one, step = case(name, LENGTHS), 1e-4
    mask, way = soft(one)[0], soft(one, seed=1)[0] - 0.5
    options = {"direction": direction, "gate": "held", "metric": "kl"}
    masks = np.stack([mask, mask + step * way, mask - step * way])
    values, gradients = component_mask_gradients(one.model(), one.task, masks, **options)
    slope = (values[1] - values[2]).mean() / (2 * step)
    assert (gradients[0] * way).sum() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("name", ["dense", "gated"])
@pytest.mark.parametrize("direction", oc.DIRECTIONS)
@pytest.mark.parametrize("gate", oc.GATES)
def test_masks_of_0_and_1_are_circuits(name, direction, gate):
    one = case(name, LENGTHS)
    masks = np.random.default_rng(0).random((4, *og.real_edges(one.config).shape)) < 0.6
    options = {"direction": direction, "gate": gate}
    values, _ = component_mask_gradients(one.model(), one.task, masks.astype(float), **options)
    assert error(values, component_values(one.model(), one.task, masks, **options)) < 1e-9


@pytest.mark.parametrize("name", ["dense", "gated"])
@pytest.mark.parametrize("direction", oc.DIRECTIONS)
def test_gradients_of_masks_are_attribution_patching(name, direction):
    """At the run that is changed: whole masks for noising, masks of 0 for denoising."""
    one = case(name, LENGTHS)
    masks = np.full((1, *og.real_edges(one.config).shape), float(direction == "noising"))
    _, gradients = component_mask_gradients(one.model(), one.task, masks, direction=direction)
    assert error(gradients[0], component_scores(one.model(), one.task, direction=direction).scores) < 1e-9


def test_a_custom_metric_has_its_own_gradient():
    one = case("gated", LENGTHS)
    twice = CustomMetric(
        values=lambda logits, prompts: 2 * logits[:, 1],
        gradient=lambda logits, prompts: np.eye(logits.shape[1])[[1] * len(logits)] * 2,
    )
    values, gradients = component_mask_gradients(one.model(), one.task, soft(one), metric=twice)
    slope = np.eye(one.config["n_vocab"])[1] * 2
    wanted = one.ask(om.loss_and_gradient, soft(one)[0], metric=lambda logits: (2 * logits[1], slope))
    assert error(values[0], wanted[0]) < 1e-9
    # The oracle takes a callable for a metric that is better when larger, as this one is.
    assert error(gradients[0], wanted[1]) < 1e-9


def test_blocks_and_threads():
    """Blocks of prompts change nothing but the last bits, threads not even these."""
    one = case("gated", (5, 3, 4, 6, 2, 5))
    whole, again = (
        component_mask_gradients(one.model("float32"), one.task, soft(one, 2), threads=n) for n in (1, 3)
    )
    for found, other in zip(whole, again):
        np.testing.assert_array_equal(found, other)
    with pytest.raises(MemoryError, match=r"needs [0-9.]+ [kM]B even one prompt") as caught:
        component_mask_gradients(one.model(), one.task, soft(one), max_bytes=1000)
    least = 1000 * float(str(caught.value).split("needs ")[1].split(" kB")[0])
    few = component_mask_gradients(one.model(), one.task, soft(one), max_bytes=int(least * 1.3))
    all_at_once = component_mask_gradients(one.model(), one.task, soft(one))
    for found, other in zip(few, all_at_once):
        assert error(found, other) < 1e-12


# ----------------------------------------------------------------------------------------------- training


@each_config
@each_dtype
def test_probing(name, dtype):
    one = case(name, LENGTHS)
    found = component_masks(one.model(dtype), one.task, **PROBING)
    log_alpha, _, rows = twin(one, PROBING, metric="kl")
    assert error(found.circuit.scores, log_alpha) < 100 * TOLERANCE[dtype]
    assert error(found.history[:, :3], rows) < 100 * TOLERANCE[dtype]
    assert np.isnan(found.history[:, 3:]).all()


@pytest.mark.parametrize("name", ["dense", "gated"])
@pytest.mark.parametrize(
    "options",
    [
        {"metric": None, "batch_size": 2},
        {"metric": "log_prob", "direction": "denoising", "batch_size": 1},
        {"gate": "held", "ablation": "mean-all", "seed": 2**63 + 5},
    ],
    ids=str,
)
def test_options_of_probing(name, options):
    one = case(name, LENGTHS)
    found = component_masks(one.model(), one.task, **PROBING, **options)
    log_alpha, _, rows = twin(one, PROBING, **{"metric": "kl", **options})
    assert error(found.circuit.scores, log_alpha) < 1e-9
    assert error(found.history[:, :3], rows) < 1e-9


@pytest.mark.parametrize("name", ["dense", "gated"])
@pytest.mark.parametrize("nodes", [None, 0.4])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_pruning(name, nodes, dtype):
    one = case(name, LENGTHS)
    found = component_masks(one.model(dtype), one.task, **PRUNING, node_sparsity=nodes)
    log_alpha, of_nodes, rows = twin(one, PRUNING, node_sparsity=nodes, metric="kl")
    tolerance = 1e-9 if dtype == "float64" else 1e-2  # 31 steps, whose masks turn at 0 and 1
    real = og.real_edges(one.config)
    smaller = log_alpha if nodes is None else np.where(real, np.minimum(log_alpha, of_nodes[:, None]), 0)
    assert error(found.circuit.scores, smaller) < tolerance
    assert error(found.history[:, :3], rows) < tolerance
    expected = np.where(real, om.open_probability(log_alpha), 0.0)
    assert error(found.expected, expected) < tolerance
    if nodes is None:
        assert found.node_expected is None
    else:
        assert error(found.node_expected, om.open_probability(of_nodes)) < tolerance


def test_the_target_rises_and_the_density_follows():
    one = case("dense", LENGTHS)
    asked = {"method": "edge-pruning", "steps": 600, "sparsity": 0.7}
    found = component_masks(one.model(), one.task, **asked)
    table = found.to_pandas()
    assert table["target"].iloc[[0, 250, 500, 599]].tolist() == pytest.approx([1, 0.65, 0.3, 0.3])
    assert table["density"].iloc[-50:].mean() == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("nodes", [None, 0.5])
def test_what_is_chosen(nodes):
    """What is open without noise, and whose sender is; then pruned."""
    one = case("dense", LENGTHS)
    asked = PRUNING | {"steps": 60, "node_sparsity": nodes, "sparsity": 0.8}
    log_alpha, of_nodes, _ = twin(one, asked, metric="kl")
    wanted = og.real_edges(one.config) & (log_alpha > 0)
    if nodes is not None:
        assert 0 < (of_nodes > 0).sum() < len(of_nodes)
        wanted &= of_nodes[:, None] > 0
    loose = component_masks(one.model(), one.task, prune=False, **asked)
    np.testing.assert_array_equal(loose.circuit.given, wanted)
    assert 0 < loose.requested == loose.kept == wanted.sum() < loose.circuit.n_edges
    found = component_masks(one.model(), one.task, **asked)
    np.testing.assert_array_equal(found.circuit.given, og.pruned(one.config, wanted))
    assert (found.requested, found.kept) == (wanted.sum(), found.circuit.given.sum())


def is_found(planted, **asked) -> bool:
    """As it is, or, of two redundant heads, one or both."""
    model = engine.build(planted.config, planted.weights, "float64")
    found = component_masks(model, planted.task, threads=1, **asked)
    names = og.names_of(planted.config, found.circuit.given)
    return names in [set(some) for some in (*planted.enough, planted.edges)]


@pytest.mark.parametrize("planted", pc.all_planted(), ids=lambda planted: planted.name)
def test_probing_finds_planted_circuits(planted):
    """A softmax that no small change moves has no gradient, so a query behind it is not found."""
    assert is_found(planted, steps=300) == ("firm" not in planted.name)


@pytest.mark.parametrize(
    "planted",
    [
        pytest.param(planted, marks=pytest.mark.slow if planted.config["gated"] else (), id=planted.name)
        for planted in pc.all_planted()
    ],
)
def test_pruning_finds_planted_circuits(planted):
    n = og.real_edges(planted.config).sum()
    asked = {"method": "edge-pruning", "sparsity": 1 - len(planted.enough[0]) / n, "steps": 1000}
    assert is_found(planted, **asked) == ("firm" not in planted.name)


# ---------------------------------------------------------------------------------------- its properties


@pytest.mark.parametrize("asked", [PROBING, PRUNING | {"node_sparsity": 0.3}], ids=["probing", "pruning"])
def test_threads_change_no_bit(asked):
    one = case("gated", LENGTHS)
    alone, four = (component_masks(one.model("float32"), one.task, threads=n, **asked) for n in (1, 4))
    np.testing.assert_array_equal(alone.circuit.scores, four.circuit.scores)
    np.testing.assert_array_equal(alone.history, four.history)
    np.testing.assert_array_equal(alone.expected, four.expected)


def same(found, other) -> None:
    for name in ("expected", "node_expected", "history"):
        np.testing.assert_array_equal(getattr(found, name), getattr(other, name))
    np.testing.assert_array_equal(found.circuit.scores, other.circuit.scores)
    np.testing.assert_array_equal(found.circuit.given, other.circuit.given)


@each_dtype
@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_training_that_was_stopped_goes_on(dtype, batch_size, tmp_path, monkeypatch):
    """Ctrl-C in some step; what the file keeps is continued with the same bits, and read when it is done."""
    one, path = case("gated", LENGTHS), tmp_path / "training"
    asked = {**PRUNING, "node_sparsity": 0.3, "batch_size": batch_size}
    whole = component_masks(one.model(dtype), one.task, **asked)
    calls, bars = [], component_training.stage_bars

    class Stopping:
        """Bars that stop the training once."""

        def __init__(self, progress) -> None:
            self._bars = bars(progress)

        def __enter__(self):
            tell = self._bars.__enter__()

            def stop(stage, done, total):
                calls.append((stage, done, total))
                if len(calls) == 20:
                    raise KeyboardInterrupt
                return tell(stage, done, total) if tell else None

            return stop

        def __exit__(self, *error):
            return self._bars.__exit__(*error)

    monkeypatch.setattr(component_training, "stage_bars", Stopping)
    with pytest.raises(KeyboardInterrupt):
        component_masks(one.model(dtype), one.task, resume=path, **asked)
    assert {(stage, total) for stage, _, total in calls} == {("masks", 31)}
    steps = []
    monkeypatch.setattr(component_training, "stage_bars", bars)
    take = component_training.MaskTraining._take

    def counted(self, *arguments):
        steps.append(len(self.state.history))
        return take(self, *arguments)

    monkeypatch.setattr(component_training.MaskTraining, "_take", counted)
    same(component_masks(one.model(dtype), one.task, resume=path, **asked), whole)
    assert 0 < steps[0] < 20
    steps.clear()
    same(component_masks(one.model(dtype), one.task, resume=path, **asked), whole)
    assert steps == [31]
    with pytest.raises(FormatError, match="another question: seed is 0 there and 1 here"):
        component_masks(one.model(dtype), one.task, resume=path, seed=1, **asked)


@pytest.mark.parametrize("state", [np.zeros(3, np.int64), np.full(3 * 230 + 12, -1)], ids=["short", "NaN"])
def test_a_file_of_another_state(state, tmp_path, monkeypatch):
    one, path = case("one layer, untied", LENGTHS), tmp_path / "training"
    write = component_training.SearchFile.write
    monkeypatch.setattr(component_training.SearchFile, "write", lambda self, _: write(self, state))
    component_masks(one.model(), one.task, resume=path, **PROBING)
    with pytest.raises(FormatError, match="state is none of this training"):
        component_masks(one.model(), one.task, resume=path, **PROBING)


def test_memory():
    one = case("gated", (5, 3, 4, 6, 2, 5))
    with pytest.raises(MemoryError, match=r"masks over 6 prompts needs .* even one prompt at a time"):
        component_masks(one.model(), one.task, max_bytes=1000)
    small = component_masks(one.model(), one.task, max_bytes=150_000, **PROBING)
    whole = component_masks(one.model(), one.task, **PROBING)
    assert error(small.circuit.scores, whole.circuit.scores) < 1e-9


def test_tables_and_files(tmp_path):
    one = case("dense", LENGTHS)
    found = component_masks(one.model(), one.task, **PROBING)
    table = found.to_pandas()
    assert table.columns.tolist() == [
        "step", "objective", "loss", "density", "target", "node_density", "node_target", "multiplier",
        "square_multiplier",
    ]  # fmt: skip
    assert len(table) == 7
    assert "subnetwork-probing" in repr(found)
    found.circuit.save(tmp_path / "one")
    again = load_component_circuit(tmp_path / "one")
    np.testing.assert_array_equal(again.given, found.circuit.given)
    assert (again.method, again.rank_by) == ("subnetwork-probing", "signed")
    with pytest.raises(ValueError, match="read-only"):
        found.history[0] = 0
    assert dataclasses.is_dataclass(found)


def test_wrong_arguments():
    one = case("dense", LENGTHS)
    model = one.model()
    nothing = CustomMetric(values=lambda logits, prompts: logits[:, 1])
    for wrong in (
        {"method": "x"},
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": -1},
        {"start": np.nan},
        {"penalty": -1},
        {"node_sparsity": 0.5},
        {"sparsity": 0.5},
        {"multiplier_rate": 0.5, "sparsity_steps": 3},
        {"method": "edge-pruning", "penalty": 10.0},
        {"method": "edge-pruning", "sparsity": 3},
        {"method": "edge-pruning", "node_sparsity": -1},
        {"method": "edge-pruning", "steps": 5, "sparsity_steps": 6},
        {"method": "edge-pruning", "multiplier_rate": -1},
        {"ablation": "none"},
        {"gate": "open"},
        {"direction": "denoising", "ablation": "zero"},
        {"reference": one.task},
        {"metric": nothing},
    ):
        with pytest.raises(ValueError):
            component_masks(model, one.task, **wrong)
    with pytest.raises(TypeError):
        component_masks(model, one.task, steps="1")
    masks = soft(one)
    for bad in (masks[0], masks[:, :-1], np.full_like(masks, np.nan)):
        with pytest.raises(ValueError):
            component_mask_gradients(model, one.task, bad)
    with pytest.raises(ValueError, match="has none"):
        component_mask_gradients(model, one.task, masks, metric=nothing)


def test_a_loss_that_is_not_finite():
    """The step before it was taken, this one was not."""
    from attnsparse import TrainingDiverged

    one = case("dense", LENGTHS)
    broken = CustomMetric(
        values=lambda logits, prompts: np.full(len(logits), np.nan),
        gradient=lambda logits, prompts: np.zeros_like(logits),
    )
    with pytest.raises(TrainingDiverged, match="step 0: the loss is nan"):
        component_masks(one.model(), one.task, metric=broken, **PROBING)
