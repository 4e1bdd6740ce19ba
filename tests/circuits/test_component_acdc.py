"""ACDC over component edges against the oracle, which asks one component edge after the other."""

import engine
import numpy as np
import oracle_component_graph as og
import oracle_components as oc
import planted_components as pc
import pytest
from circuit_cases import CONFIGS, case, error

from attnsparse.circuits import component_acdc, component_acdc_sweep, component_values, load_component_circuit
from attnsparse.tasks import CustomMetric

each_config = pytest.mark.parametrize("name", CONFIGS)
LENGTHS = (4, 3)
THRESHOLDS = (1e-3, 1e-2, 0.1)


def expected(one, threshold: float, **options) -> np.ndarray:
    return og.acdc(one.config, one.ask(oc.kl_of, **options), threshold)


def by_hand(one, threshold: float, **options) -> tuple[np.ndarray, np.ndarray]:
    """The circuit and the rises, asked of the core one circuit at a time."""
    asked: list[tuple[float, np.ndarray]] = []

    def loss(mask):
        asked.append(
            (component_values(one.model(), one.task, mask[None], metric="kl", **options).mean(), mask.copy())
        )
        return asked[-1][0]

    kept, scores = og.acdc(one.config, loss, threshold), np.zeros(asked[0][1].shape)
    now, whole = asked[0]
    for value, mask in asked[1:]:
        scores[whole & ~mask] = value - now
        if value - now < threshold:
            now, whole = value, mask
    return kept, scores


# ------------------------------------------------------------------------------------------ the oracle


@each_config
def test_the_circuit(name):
    one = case(name, LENGTHS)
    found = component_acdc(one.model(), one.task, 0.01, prune=False)
    np.testing.assert_array_equal(found.given, expected(one, 0.01))
    assert (found.scores[~og.real_edges(one.config)] == 0).all()


@pytest.mark.parametrize("ablation", oc.ABLATIONS)
@pytest.mark.parametrize("gate", oc.GATES)
def test_ablations_and_gates(ablation, gate):
    one = case("gated", LENGTHS)
    found = component_acdc(one.model(), one.task, 0.01, prune=False, ablation=ablation, gate=gate)
    np.testing.assert_array_equal(found.given, expected(one, 0.01, ablation=ablation, gate=gate))
    pruned = component_acdc(one.model(), one.task, 0.01, ablation=ablation, gate=gate)
    np.testing.assert_array_equal(pruned.given, og.pruned(one.config, found.given))


@pytest.mark.parametrize("name", ["dense", "gated"])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_rises(name, threshold):
    one = case(name, LENGTHS)
    found = component_acdc(one.model(), one.task, threshold, prune=False)
    kept, scores = by_hand(one, threshold)
    np.testing.assert_array_equal(found.given, kept)
    np.testing.assert_array_equal(scores[kept] >= threshold, True)
    assert error(found.scores, scores) < 1e-9


@pytest.mark.parametrize("metric", ["logit_diff", "log_prob", "prob_diff", "logit_diff_max"])
def test_metrics(metric):
    """Of the task's metrics a circuit gets worse by falling."""
    one = case("dense", LENGTHS)
    found = component_acdc(one.model(), one.task, 0.01, prune=False, metric=metric)
    loss = lambda mask: -float(one.ask(oc.evaluate, [mask], metric=metric).mean())  # noqa: E731
    np.testing.assert_array_equal(found.given, og.acdc(one.config, loss, 0.01))


@pytest.mark.parametrize("smaller", [False, True])
def test_a_custom_metric(smaller):
    one = case("gated", LENGTHS)
    metric = CustomMetric(values=lambda logits, prompts: logits[:, 1].copy(), smaller_is_better=smaller)
    found = component_acdc(one.model(), one.task, 0.02, prune=False, metric=metric)
    asked = lambda logits: (float(logits[1]), None)  # noqa: E731
    sign = 1 if smaller else -1
    loss = lambda mask: sign * float(one.ask(oc.evaluate, [mask], metric=asked).mean())  # noqa: E731
    np.testing.assert_array_equal(found.given, og.acdc(one.config, loss, 0.02))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("planted", pc.all_planted(), ids=lambda planted: planted.name)
def test_planted_circuits(planted, dtype):
    """Of two redundant heads the one is left whose component edges are asked last."""
    model = engine.build(planted.config, planted.weights, dtype)
    found = component_acdc(model, planted.task, 1e-6 if dtype == "float64" else 1e-3)
    assert og.names_of(planted.config, found.given) in [set(names) for names in planted.enough]
    values = component_values(model, planted.task, found.given[None], metric="kl")
    assert values.mean() < 1e-2


# ------------------------------------------------------------------------------------- several thresholds


@pytest.mark.parametrize("ablation", ["counterfactual", "mean"])
def test_a_sweep(ablation):
    one, other = case("gated", LENGTHS), case("gated", (5, 3, 4), seed=4)
    model, options = one.model(), {"ablation": ablation, "gate": "held"}
    found = component_acdc_sweep(model, one.task, THRESHOLDS, evaluation=other.task, **options)
    left = np.array([expected(one, threshold, **options) for threshold in THRESHOLDS])
    pruned = np.array([og.pruned(one.config, mask) for mask in left])
    np.testing.assert_array_equal([circuit.given for circuit in found.circuits], pruned)
    np.testing.assert_array_equal(found.requested, left.sum((1, 2)))
    np.testing.assert_array_equal(found.kept, pruned.sum((1, 2)))
    assert found.requested[0] > found.requested[-1]
    reference = {"reference": one.task} if ablation == "mean" else {}
    for values, masks in ((found.values, pruned), (found.full[None], [og.real_edges(one.config)])):
        asked = oc.evaluate(one.config, one.weights, other.task, masks, metric="kl", **options, **reference)
        assert error(values, asked) < 1e-9
    alone = component_acdc(model, one.task, THRESHOLDS[1], **options)
    np.testing.assert_array_equal(found.circuits[1].scores, alone.scores)


def test_a_sweep_is_kept_by_threshold(tmp_path):
    one = case("dense", LENGTHS)
    first, again = (
        component_acdc_sweep(one.model(), one.task, [0.01, 0.1], resume=tmp_path / "a") for _ in range(2)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a-0.01.search.safetensors",
        "a-0.1.search.safetensors",
    ]
    np.testing.assert_array_equal(first.values, again.values)
    table = first.to_pandas()
    assert list(table) == ["threshold", "requested", "kept", "metric"]
    np.testing.assert_array_equal(table["metric"], first.values.mean(1))


@pytest.mark.parametrize("thresholds", [[], [0.1, 0.01], [0.1, 0.1], [-1]])
def test_wrong_thresholds(thresholds):
    one = case("dense", LENGTHS)
    with pytest.raises(ValueError, match="thresholds"):
        component_acdc_sweep(one.model(), one.task, thresholds)


# ---------------------------------------------------------------------------------------- its properties


def test_threshold_0_takes_only_what_makes_it_better():
    one = case("dense", LENGTHS)
    found = component_acdc(one.model(), one.task, 0, prune=False)
    real = og.real_edges(one.config)
    np.testing.assert_array_equal(found.given, real & ~(found.scores < 0))
    assert component_acdc(one.model(), one.task, 1e9).given.sum() == 0


def test_threads_change_no_bit():
    one = case("gated", LENGTHS)
    alone, four = (component_acdc(one.model("float32"), one.task, 0.01, threads=n) for n in (1, 4))
    np.testing.assert_array_equal(alone.given, four.given)
    np.testing.assert_array_equal(alone.scores, four.scores)


@pytest.mark.parametrize("ablation", ["counterfactual", "mean"])
@pytest.mark.parametrize("gate", ["recomputed", "held"])
def test_blocks_of_prompts_change_no_bit(ablation, gate):
    """A block is a call of the metric for as many prompts."""
    one, sizes = case("gated", (4, 3, 6, 1)), []
    metric = CustomMetric(values=lambda logits, prompts: sizes.append(len(prompts)) or logits[:, 1].copy())
    options = {"prune": False, "ablation": ablation, "gate": gate, "metric": metric}
    model, task = one.model(), one.task
    expected = component_acdc(model, task, 0.01, **options)
    assert min(sizes) == 4
    with pytest.raises(MemoryError, match="one prompt at a time") as caught:
        component_acdc(model, task, 0.01, max_bytes=100_000, **options)
    needed = float(str(caught.value).split("needs ")[1].split(" MB")[0])
    for more, most in ((0.002, 1), (0.01, 2)):
        sizes.clear()
        max_bytes = int(1e6 * (needed + more))
        found = component_acdc(model, task, 0.01, max_bytes=max_bytes, **options)
        np.testing.assert_array_equal(found.given, expected.given)
        np.testing.assert_array_equal(found.scores, expected.scores)
        assert sizes[0] <= most


def test_save_and_load(tmp_path):
    one = case("gated", LENGTHS)
    found = component_acdc(one.model(), one.task, 0.01)
    found.save(tmp_path / "one")
    again = load_component_circuit(tmp_path / "one")
    np.testing.assert_array_equal(again.given, found.given)
    assert again.method == "acdc"


def test_wrong_arguments():
    one = case("dense", LENGTHS)
    model = one.model()
    nothing = CustomMetric(values=lambda logits, prompts: np.full(len(logits), np.nan))
    wrong = [
        lambda: component_acdc(model, one.task, -1),
        lambda: component_acdc(model, one.task, np.nan),
        lambda: component_acdc(model, one.task, 1, ablation="none"),
        lambda: component_acdc(model, one.task, 1, gate="open"),
        lambda: component_acdc(model, one.task, 1, reference=one.task),
        lambda: component_acdc(model, one.task, 1, metric=nothing),
    ]
    for use in wrong:
        with pytest.raises(ValueError):
            use()
    with pytest.raises(TypeError):
        component_acdc(model, one.task, "1")
