"""Patching sweeps and path patching against the oracle, and what they say of each other."""

import numpy as np
import oracle_component_graph as graph
import oracle_patching
import pytest
from circuit_cases import CONFIGS, TOLERANCE, Case, case, error

from attnsparse.circuits import effects, patching_sweep, path_patch
from attnsparse.circuits.components import patching as patching
from attnsparse.items import Head

DIRECTIONS = ("denoising", "noising")
KINDS = (*patching.LAYER_KINDS, *patching.HEAD_KINDS)

each_config = pytest.mark.parametrize("name", CONFIGS)
each_kind = pytest.mark.parametrize("kind", KINDS)
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


def axes_of(kind: str, *more: str) -> tuple[str, ...]:
    return ("layer", *more, "head") if kind in patching.HEAD_KINDS else ("layer", *more)


# ------------------------------------------------------------------------------------------ sweeps


@each_config
@each_kind
@each_direction
def test_a_sweep_by_position(name, kind, direction):
    one, by = case(name), axes_of(kind, "position")
    found = patching_sweep(one.model(), one.task, kind, by=by, direction=direction)
    assert found.by == by
    assert error(found.values, one.ask(oracle_patching.sweep, kind, by, direction)) < 1e-9


@each_config
@each_kind
@each_dtype
def test_a_sweep_of_prompts_of_different_lengths(name, kind, dtype):
    one, by = case(name, (1, 7, 4, 12)), axes_of(kind)
    found = patching_sweep(one.model(dtype), one.task, kind, by=by)
    assert error(found.values, one.ask(oracle_patching.sweep, kind, by, "denoising")) < TOLERANCE[dtype]


@each_kind
@each_direction
@pytest.mark.parametrize("name", ["dense", "gated", "one layer, untied"])
def test_held_gates(name, kind, direction):
    one, by = case(name), axes_of(kind, "position")
    found = patching_sweep(one.model(), one.task, kind, by=by, direction=direction, gate="held")
    expected = one.ask(oracle_patching.sweep, kind, by, direction, gate="held")
    assert error(found.values, expected) < 1e-9
    assert found.gate == ("held" if one.config["gated"] else "none")


def test_held_gates_differ_from_recomputed_ones():
    one = case("gated")
    held, own = (patching_sweep(one.model(), one.task, "resid", gate=gate) for gate in ("held", "recomputed"))
    assert np.abs(held.values - own.values).max() > 1e-3


@each_kind
@pytest.mark.parametrize("layers", [[0], [1], [0, 1]])
@pytest.mark.parametrize("positions", [[0, 3], [4]])
def test_some_layers_and_positions(kind, layers, positions):
    one, by = case("gated"), axes_of(kind, "position")
    whole = patching_sweep(one.model(), one.task, kind, by=by)
    found = patching_sweep(one.model(), one.task, kind, by=by, layers=layers, positions=positions)
    np.testing.assert_array_equal(found.values, whole.values[layers][:, positions])
    table = found.to_pandas()
    assert sorted(set(table["layer"])) == layers
    assert sorted(set(table["position"])) == positions
    np.testing.assert_array_equal(table["mean_metric"], found.mean.ravel())
    assert (found.layers, found.positions) == (tuple(layers), tuple(positions))


@pytest.mark.parametrize(
    "options",
    [
        {"layers": []},
        {"layers": [1, 0]},
        {"layers": [2]},
        {"layers": [0, 0]},
        {"positions": [-1]},
        {"positions": [99]},
        {"by": ("layer",), "positions": [0]},
        {"gate": "open"},
    ],
)
def test_places_that_are_not_there(options):
    one = case("gated")
    with pytest.raises(ValueError, match=r"layers|positions|gate"):
        patching_sweep(one.model(), one.task, "resid", **options)


@each_kind
def test_a_sweep_in_float32(kind):
    one, by = case("dense", seed=3), axes_of(kind, "position")
    found = patching_sweep(one.model("float32"), one.task, kind, by=by)
    assert error(found.values, one.ask(oracle_patching.sweep, kind, by, "denoising")) < TOLERANCE["float32"]


@pytest.mark.parametrize("metric", effects.METRICS)
def test_metrics(metric):
    one = case("gated", seed=1)
    found = patching_sweep(one.model(), one.task, "attn_out", metric=metric)
    expected = one.ask(oracle_patching.sweep, "attn_out", ("layer", "position"), "denoising", metric)
    assert error(found.values, expected) < 1e-9


def test_what_is_told_besides():
    one = case("gated")
    model, task = one.model(), one.task
    found = patching_sweep(model, task, "resid")
    np.testing.assert_allclose(found.clean, effects.metric_values(model, task), rtol=1e-12)
    other = effects.metric_values(model, task.swapped())
    noising = patching_sweep(model, task.swapped(), "resid", direction="noising")
    np.testing.assert_allclose(noising.clean, other, rtol=1e-12)
    assert found.mean.shape == (2, 5)
    table = found.to_pandas()
    assert list(table.columns) == ["layer", "position", "mean_metric", "recovered"]
    assert len(table) == 10
    low, high = found.corrupted.mean(), found.clean.mean()
    np.testing.assert_allclose(table["recovered"], ((found.mean - low) / (high - low)).ravel())
    assert "2 layers x 5 positions" in repr(found)


def test_everything_replaced_is_the_other_prompt():
    one = case("dense")
    found = patching_sweep(one.model(), one.task, "resid", by=["layer"])
    np.testing.assert_allclose(found.values, np.tile(found.clean, (3, 1)), rtol=1e-9)
    np.testing.assert_allclose(found.recovered, 1)


def test_z_is_the_effect_of_heads():
    one = case("gated", seed=2)
    found = patching_sweep(one.model(), one.task, "z", direction="noising")
    heads = [[layer, head] for layer in range(2) for head in range(3)]
    expected = effects.knock_out(one.model(), one.task, heads, "counterfactual")
    assert error(found.values.reshape(6, 3), expected) < 1e-12


def shared_start(one: Case) -> Case:
    """The same with pairs whose first tokens agree."""
    for clean, corrupted in zip(one.task.clean, one.task.corrupted):
        corrupted.setflags(write=True)
        corrupted[:-2] = clean[:-2]
        corrupted[-1] = clean[-1]
        corrupted.setflags(write=False)
    return one


@each_kind
def test_pairs_that_begin_alike(kind):
    one, by = shared_start(case("gated", (6, 6, 6), seed=4)), axes_of(kind, "position")
    found = patching_sweep(one.model(), one.task, kind, by=by)
    assert error(found.values, one.ask(oracle_patching.sweep, kind, by, "denoising")) < 1e-9
    before = np.take(found.values, range(3), axis=1)
    np.testing.assert_array_equal(before, np.broadcast_to(found.corrupted, before.shape))


def test_many_prompts_go_in_blocks():
    one = case("dense", (9,) * 40, seed=5)
    by = ("layer", "position", "head")
    found = patching_sweep(one.model(), one.task, "v", by=by)
    less = patching_sweep(one.model(), one.task, "v", by=by, max_bytes=3_000_000)
    np.testing.assert_array_equal(found.values, less.values)
    few = one.task.subset([0, 39])
    expected = oracle_patching.sweep(one.config, one.weights, few, "v", by, "denoising")
    assert error(np.ascontiguousarray(found.values[..., [0, 39]]), expected) < 1e-9


@pytest.mark.parametrize("kind", ["resid", "mlp_out", "k", "pattern"])
def test_sweeps_have_the_same_bits_for_any_number_of_threads(kind):
    one, by = case("gated", (8,) * 20), axes_of(kind, "position")
    found = [
        patching_sweep(one.model("float32"), one.task, kind, by=by, threads=n).values.tobytes()
        for n in (1, 2, 3)
    ]
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("x",), "kind must be one of"),
        (("resid", ["layer", "head"]), "by must have 'layer' and may have 'position'"),
        (("z", ["layer", "position"]), "by must have 'layer', 'head'"),
        (("z", ["layer", "head", "head"]), "by must have"),
    ],
)
def test_wrong_sweeps(arguments, text):
    one = case("gated")
    with pytest.raises(ValueError, match=text):
        patching_sweep(one.model(), one.task, arguments[0], by=arguments[1] if len(arguments) > 1 else None)


def test_positions_need_prompts_of_one_length():
    one = case("gated", (3, 4))
    with pytest.raises(ValueError, match="prompts of one length"):
        patching_sweep(one.model(), one.task, "resid")
    with pytest.raises(MemoryError, match="above max_bytes=1000"):
        patching_sweep(one.model(), one.task, "resid", by=["layer"], max_bytes=1000)


# ------------------------------------------------------------------------------------------- paths


@each_config
@each_direction
@pytest.mark.parametrize("gate", ["recomputed", "held"])
def test_every_single_path(name, direction, gate):
    one = case(name)
    found = path_patch(
        one.model(), one.task, None, graph.receivers(one.config), each="both", direction=direction, gate=gate
    )
    assert found.values.shape == (len(found.senders), len(found.receivers), 3)
    for i, u in enumerate(found.senders):
        for j, v in enumerate(found.receivers):
            if not graph.real_edges(one.config)[i, j]:
                base = found.clean if direction == "noising" else found.corrupted
                np.testing.assert_array_equal(found.values[i, j], base)
            elif (i + j) % 3 == 0:
                expected = one.ask(oracle_patching.paths, [u], [v], direction, gate=gate)
                assert error(found.values[i, j], expected) < 1e-9


GROUPS = [
    (["input"], ["logits"]),
    (["m0", "a0.h1"], ["a1.h0<q>", "a1.h2<k>", "logits"]),
    (["a0.h0", "m0", "m1", "a1.h1"], ["m0", "a1.h0<v>", "m1", "a2.h1<q>", "m2", "logits"]),
    (None, ["a2.h0"]),
]


@each_dtype
@each_direction
@pytest.mark.parametrize(("senders", "receivers"), GROUPS)
@pytest.mark.parametrize("positions", [None, [1, -1], [0]])
def test_groups_of_paths(dtype, direction, senders, receivers, positions):
    one = case("dense", (5, 5, 2, 7), seed=6)
    found = path_patch(
        one.model(dtype), one.task, senders, receivers, positions=positions, direction=direction
    )
    expected = one.ask(oracle_patching.paths, found.senders, found.receivers, direction, positions=positions)
    assert error(found.values, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("metric", effects.METRICS)
def test_metrics_of_paths(metric):
    one = case("gated", seed=1)
    found = path_patch(one.model(), one.task, ["a0.h1", "m0"], ["a1.h0", "logits"], metric=metric)
    expected = one.ask(oracle_patching.paths, found.senders, found.receivers, metric=metric)
    assert error(found.values, expected) < 1e-9


def test_all_paths_patched_is_the_other_prompt():
    one = case("gated", (1, 5, 3))
    found = path_patch(one.model(), one.task, None, graph.receivers(one.config))
    np.testing.assert_allclose(found.values, found.corrupted, rtol=1e-9)
    np.testing.assert_allclose(found.recovered, 0, atol=1e-9)
    np.testing.assert_allclose(found.effect, found.corrupted.mean() - found.clean.mean())


def test_paths_one_at_a_time_are_paths_alone():
    one = case("gated")
    model = one.model()
    swept = path_patch(model, one.task, ["m0", Head(0, 2), "a1.h0"], ["a1.h1<q>", "logits"], each="senders")
    assert swept.senders == ("m0", "a0.h2", "a1.h0")
    for sender, values in zip(swept.senders, swept.values):
        alone = path_patch(model, one.task, sender, ["a1.h1<q>", "logits"])
        np.testing.assert_array_equal(values, alone.values)
    table = swept.to_pandas()
    assert list(table["senders"]) == list(swept.senders)
    assert set(table["receivers"]) == {"a1.h1<q> logits"}
    assert "3 senders, 2 receivers, each='senders'" in repr(swept)
    each = path_patch(model, one.task, "m0", ["a1.h1<q>", "logits"], each="receivers")
    assert each.values.shape == (2, 3)
    assert list(each.to_pandas()["receivers"]) == ["a1.h1<q>", "logits"]


def test_many_patches_go_in_blocks():
    one = case("dense", (9,) * 30, seed=7)
    receivers = graph.receivers(one.config)
    found = path_patch(one.model(), one.task, None, receivers, each="both")
    less = path_patch(one.model(), one.task, None, receivers, each="both", max_bytes=3_000_000)
    np.testing.assert_array_equal(found.values, less.values)


def test_paths_have_the_same_bits_for_any_number_of_threads():
    one = case("gated", (8,) * 20)
    model = one.model("float32")
    found = [
        path_patch(
            model, one.task, None, ["a1.h0", "m1", "logits"], each="senders", threads=n
        ).values.tobytes()
        for n in (1, 2, 3)
    ]
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"senders": "logits"}, ValueError, "senders: 'logits' is none of this model"),
        ({"senders": "a9.h0"}, ValueError, "is none of this model"),
        ({"senders": []}, ValueError, "senders is empty"),
        ({"senders": 3}, TypeError, "senders must be a name or a sequence of names"),
        ({"receivers": [3]}, TypeError, "receivers must be names"),
        ({"receivers": "input"}, ValueError, "receivers: 'input'"),
        ({"each": "x"}, ValueError, "each must be one of"),
        ({"positions": [5]}, ValueError, "not all in a prompt of 5 tokens"),
        ({"positions": [[0], [1]]}, ValueError, "rows for 2 prompts"),
        ({"positions": ["S2"]}, ValueError, "names no word 'S2'"),
        ({"positions": []}, TypeError, "positions must be integers"),
        ({"positions": [0.5]}, TypeError, "positions must be integers"),
        ({"direction": "x"}, ValueError, "direction must be one of"),
        ({"gate": "x"}, ValueError, "gate must be one of"),
    ],
)
def test_wrong_paths(changes, kind, text):
    one = case("gated")
    arguments = {"senders": "m0", "receivers": "logits"} | changes
    with pytest.raises(kind, match=text):
        path_patch(one.model(), one.task, **arguments)


def test_positions_of_each_prompt():
    one = case("dense", (5, 5, 5))
    model, rows = one.model(), np.array([[0], [2], [-1]])
    found = path_patch(model, one.task, ["m0"], ["m1"], positions=rows)
    for i, row in enumerate(rows):
        alone = path_patch(model, one.task, ["m0"], ["m1"], positions=row)
        np.testing.assert_array_equal(found.values[i], alone.values[i])
