"""Logit lens, direct attribution, top tokens, detectors and composition, judged by the oracle."""

from __future__ import annotations

import engine
import numpy as np
import oracle
import oracle_lens as ol
import pandas as pd
import pytest
import reliability

import attnsparse as asp
from attnsparse.model.lens import detectors

CONFIGS = {
    "dense": {"n_vocab": 31, "n_layer": 3},
    "gated": {"gated": True, "gate_bias": -0.2, "tied": False, "unembed_bias": True, "n_vocab": 31},
    "without-biases": {"gated": True, "bias": False, "n_vocab": 31, "d_head": 3},
}
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7]]
RIGHT, WRONG = [7, 0, 11], [2, 30, 12]
BY = ("layer", "component", "head", "position", "neuron")


@pytest.fixture(scope="module", params=CONFIGS)
def toy(request):
    """(config, weights, the oracle's records of PROMPTS); gates of float32 fall as in float64."""
    config = oracle.full_config(**CONFIGS[request.param])
    for seed in range(50):
        weights = engine.rounded_model(seed, config)
        records = [oracle.forward(config, weights, prompt) for prompt in PROMPTS]
        if all(engine.gates_are_clear(config, record) for record in records):
            return config, weights, records
    raise AssertionError("no seed whose gates are clear")


@pytest.fixture(scope="module", params=TOLERANCE)
def run(request, toy):
    config, weights, _ = toy
    return engine.build(config, weights, request.param).run(PROMPTS, ("attribution", "resid_mid"))


def tolerance(run) -> float:
    return TOLERANCE[str(run.model.dtype)]


# --------------------------------------------------------------------------------- direct attribution


def expected_rows(toy, prompt: int, at: int, right: int, wrong: int | None, by: str) -> dict[tuple, float]:
    """{(component, layer, number): contribution}, put together from the oracle's single parts."""
    config, weights, records = toy
    single = ol.attribution(weights, config, records[prompt], at, right, wrong)
    rows: dict[tuple, float] = {}
    for part, value in single.items():
        kind, layer, *more = (*part, -1)[: max(2, len(part))]
        name: tuple = (kind, layer)
        if kind == "head":
            h, key = more
            name = {"head": ("head", layer, h), "position": ("position", -1, key)}.get(by, ("attn", layer))
        elif kind == "neuron":
            name = ("neuron", layer, more[0]) if by == "neuron" else ("mlp", layer)
        elif kind == "mlp_bias" and by != "neuron":
            name = ("mlp", layer)
        if by == "layer":
            name = (
                ("embed", -1)
                if kind in ("embed", "pos_embed")
                else ("bias", -1)
                if layer == -1
                else ("layer", layer)
            )
        name = (*name, -1)[:3]
        rows[name] = rows.get(name, 0.0) + value
    absent = {"value_bias", "attn_bias", "mlp_bias", "ln_final_bias"} if not config["bias"] else set()
    absent |= set() if config["unembed_bias"] else {"unembed_bias"}
    return {name: value for name, value in rows.items() if name[0] not in absent}


def rows_of(table: pd.DataFrame, by: str) -> dict[tuple, float]:
    number = {"head": "head_index", "position": "key_position", "neuron": "neuron"}.get(by)
    numbers = table[number].fillna(-1).astype(int) if number else [-1] * len(table)
    names = zip(table.component, table.layer.fillna(-1).astype(int), numbers, strict=True)
    rows = dict(zip(names, table.contribution, strict=True))
    assert len(rows) == len(table)
    return rows


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("wrong", [WRONG, None])
def test_every_row_is_the_oracles(toy, run, by, wrong):
    table = run.attribute(RIGHT, wrong, by)
    assert list(dict.fromkeys(table.prompt)) == [0, 1, 2]
    for i, prompt in enumerate(PROMPTS):
        of_one = table[table.prompt == i]
        at = len(prompt) - 1
        assert (of_one.position == at).all()
        found = rows_of(of_one, by)
        expected = expected_rows(toy, i, at, RIGHT[i], None if wrong is None else wrong[i], by)
        assert set(found) == set(expected)
        size = max(1.0, *(abs(value) for value in expected.values()))
        for name, value in expected.items():
            assert abs(found[name] - value) <= tolerance(run) * size, name
        again = run[i].attribute(RIGHT[i], None if wrong is None else wrong[i], by)
        pd.testing.assert_frame_equal(of_one.reset_index(drop=True), again)


@pytest.mark.parametrize("by", BY)
def test_rows_add_up_to_the_logit_difference(toy, run, by):
    table = run.attribute(4, 5, by, position=None)
    sums = table.groupby(["prompt", "position"]).contribution.sum()
    for i, record in enumerate(toy[2]):
        expected = record["logits"][:, 4] - record["logits"][:, 5]
        assert np.abs(sums[i].to_numpy() - expected).max() <= tolerance(run) * 20


def test_layers_come_in_the_order_of_the_model(run):
    table = run[0].attribute(1, by="head")
    layer = table.layer.dropna().astype(int).to_numpy()
    assert (np.diff(layer) >= 0).all()
    assert table.component.iloc[:2].tolist() == ["embed", "pos_embed"]
    heads = table[table.component == "head"]
    assert heads.label.tolist() == [f"L{a}H{b}" for a, b in zip(heads.layer, heads.head_index)]
    assert (table.label[table.component != "head"] == "").all()


def test_positions_and_tokens_of_keys():
    words = ["The", " opposite", " of", " large", " is", " small", "<bos>"]
    plain = reliability.model(n_vocab=7)
    tokenizer = asp.Tokenizer.from_words(words, bos="<bos>")
    model = asp.Model(plain.config, plain.parameters(), tokenizer)
    run = model.run("The opposite of large is", "attribution")
    table = run.attribute(" small", " large", "position", position="large", base=1)
    keys = table[table.component == "position"]
    assert keys.key_position.tolist() == [1, 2, 3, 4]
    assert keys.key_token.tolist() == words[:4]
    assert set(table.position) == {4}
    assert table.attrs["base"] == 1
    assert (run.attribute(" small", by="head", position=3).contribution.sum()) == pytest.approx(
        float(run.logits[3, 5]), abs=1e-4
    )


def test_interventions_leave_a_rest(toy):
    config, weights, _ = toy
    model = engine.build(config, weights, "float64")
    patch = {asp.Resid(1, -1): np.ones(config["d_model"])}
    for changes, rests in (({"ablate": ["L0H1"]}, False), ({"patch": patch}, True)):
        run = model.run(PROMPTS[0], "attribution", **changes)
        for by in BY:
            table = run.attribute(4, 5, by)
            assert table.contribution.sum() == pytest.approx(run.logits[-1, 4] - run.logits[-1, 5], abs=1e-9)
            (rest,) = table[table.component == "rest"].contribution
            assert (abs(rest) > 1e-3) == (rests or by == "position"), by
        if not rests:
            heads = run.attribute(4, 5, "head")
            of_bias = heads[(heads.component == "head") & (heads.label == "L0H1")]
            assert len(of_bias) == 1
    assert "rest" not in set(model.run(PROMPTS[0], "attribution").attribute(4).component)


def test_what_attribute_refuses(run):
    with pytest.raises(ValueError, match="one for each of 3 prompts, got 2"):
        run.attribute([1, 2])
    with pytest.raises(ValueError, match="by must be one of"):
        run.attribute(1, by="edge")
    with pytest.raises(IndexError, match="out of range"):
        run.attribute(31)
    with pytest.raises(IndexError, match="position 3 is out of range"):
        run.attribute(1, position=3)
    with pytest.raises(ValueError, match=r"attribute needs .*mlp_post.*record="):
        run.model.run(PROMPTS[0], "attention").attribute(1, by="neuron")
    with pytest.raises(ValueError, match="has no tokenizer"):
        run.attribute("a")


# ----------------------------------------------------------------------------------------- logit lens


def points(toy, prompt: int):
    """(label, layer, residual stream) of every point of a prompt."""
    config, _, records = toy
    for layer in range(config["n_layer"]):
        yield f"{layer}_pre", layer, records[prompt]["resid_pre"][layer]
        yield f"{layer}_mid", layer + 1, records[prompt]["resid_mid"][layer]
    yield "final_post", config["n_layer"], records[prompt]["resid_post"][-1]


@pytest.mark.parametrize("scale", ["own", "held"])
def test_logit_lens_is_the_oracles(toy, run, scale):
    config, weights, records = toy
    table = run.logit_lens(tokens=[3, 8], incl_mid=True, scale=scale)
    best = run.logit_lens(2, incl_mid=True, scale=scale)
    for i, record in enumerate(records):
        held = record["ln_final_scale"] if scale == "held" else None
        for label, layer, x in points(toy, i):
            logits = ol.logits_at(weights, config, x, held)
            log_p = oracle.log_softmax(logits)
            of_one = table[(table.prompt == i) & (table.label == label)]
            assert (of_one.layer == layer).all()
            assert of_one.position.tolist() == np.repeat(np.arange(len(x)), 2).tolist()
            assert of_one.token_id.tolist() == [3, 8] * len(x)
            size = max(1, np.abs(logits).max())
            assert np.abs(of_one.logit - logits[:, [3, 8]].ravel()).max() <= tolerance(run) * size
            assert (
                np.abs(of_one.probability - np.exp(log_p[:, [3, 8]]).ravel()).max()
                <= 10 * tolerance(run) * size
            )
            two = best[(best.prompt == i) & (best.label == label)]
            assert two.place.tolist() == [0, 1] * len(x)
            order = np.argsort(-logits, axis=1)[:, :2]
            clear = np.diff(np.sort(logits, axis=1)[:, ::-1][:, :3], axis=1).max() < -1e-3
            assert not clear or (two.token_id.to_numpy().reshape(-1, 2) == order).all()


def test_places_of_tokens(run):
    table = run.logit_lens(tokens=list(range(31)))
    for _, one in table.groupby(["prompt", "layer", "position"]):
        assert sorted(one.place) == list(range(31))
        by_place = one.sort_values("place")
        assert (np.diff(by_place.logit) <= 0).all()
        assert one.probability.sum() == pytest.approx(1)


def test_logit_lens_ends_at_the_logits_and_goes_in_chunks(toy):
    config, weights, _ = toy
    model = engine.build(config, weights, "float64")
    many = [[1 + i % 29, 2, 3, 4, 5, 6, 7, 8] for i in range(70)]  # 70 * 8 rows, more than a chunk
    run = model.run(many, "attribution")
    table = run.logit_lens(tokens=[6])
    at_end = table[table.label == "final_post"]
    assert np.abs(at_end.logit - run.logits[..., 6].ravel()).max() < 1e-12
    assert len(table) == 70 * 8 * (config["n_layer"] + 1)


def test_what_logit_lens_refuses(run):
    plain = run.model.run(PROMPTS[0])
    with pytest.raises(ValueError, match="logit_lens needs resid_pre"):
        plain.logit_lens()
    with pytest.raises(ValueError, match="scale must be one of 'own', 'held'"):
        run.logit_lens(scale="final")
    with pytest.raises(ValueError, match=r"n must be in 1\.\.31, got 32"):
        run.logit_lens(32)
    with pytest.raises(ValueError, match="at least one token"):
        run.logit_lens(tokens=[])


# ------------------------------------------------------------------------------------------------ top


def test_top_tokens(toy, run):
    table = run.top(3)
    assert list(table) == [
        "model",
        "prompt",
        "position",
        "position_token",
        "place",
        "token",
        "token_id",
        "logit",
        "probability",
    ]
    for i, one in enumerate(run):
        own = table[table.prompt == i]
        order = np.argsort(-one.logits, axis=1, kind="stable")[:, :3]
        assert (own.token_id.to_numpy().reshape(-1, 3) == order).all()
        assert (own.logit.to_numpy().reshape(-1, 3) == np.take_along_axis(one.logits, order, 1)).all()
        p = np.exp(oracle.log_softmax(one.logits.astype(np.float64)))
        assert (
            np.abs(own.probability.to_numpy().reshape(-1, 3) - np.take_along_axis(p, order, 1)).max() < 1e-12
        )
        assert own.position_token.tolist() == np.repeat(one.token_strings, 3).tolist()
    texts = {i: "".join(one.token_strings) for i, one in enumerate(run)}
    for made in (run.top(1, texts=True), run.logit_lens(1, texts=True), run.attribute(1, 2, texts=True)):
        assert made.prompt_text.tolist() == [texts[i] for i in made.prompt]
        assert set(made.model) == {run.model.name}
    last = run.model.run(PROMPTS, "none", logits="last").top(3)
    everywhere = table.groupby("prompt").tail(3).reset_index(drop=True)
    assert last.token_id.tolist() == everywhere.token_id.tolist()
    assert last.position.tolist() == everywhere.position.tolist()
    one = run[2].top(1, position=0, base=0)
    assert one.prompt.tolist() == [2]


def test_places_of_chosen_tokens(run):
    table = run.top(tokens=[6, 3])
    everything = run.top(31).set_index(["prompt", "position", "token_id"])
    assert len(table) == 2 * sum(len(prompt) for prompt in PROMPTS)
    assert set(table.token_id[::2]) == {6}
    for row in table.itertuples():
        same = everything.loc[(row.prompt, row.position, row.token_id)]
        assert (row.place, row.logit) == (same.place, same.logit)
        assert row.probability == pytest.approx(same.probability, abs=1e-15)
    last = run.model.run(PROMPTS, "none", logits="last").top(tokens=6)
    assert last.place.tolist() == table[table.token_id == 6].groupby("prompt").tail(1).place.tolist()


def test_equal_logits_come_in_the_order_of_ids():
    model = reliability.model()
    model.assign({"wte.weight": np.zeros((96, 64), np.float32)})
    table = model.run([1, 2]).top(4, position=-1)
    assert table.token_id.tolist() == [0, 1, 2, 3]
    assert table.probability.tolist() == pytest.approx([1 / 96] * 4)


def test_what_top_refuses(run):
    model = run.model
    with pytest.raises(ValueError, match="top needs logits, which this run did not compute"):
        model.run([1], logits="none").top()
    with pytest.raises(ValueError, match="last positions only"):
        model.run(PROMPTS, logits="last").top(position=0)
    with pytest.raises(ValueError, match=r"n must be in 1\.\.31, got 32"):
        run.top(32)
    with pytest.raises(ValueError, match="at least one token"):
        run.top(tokens=[])
    with pytest.raises(IndexError, match="31"):
        run.top(tokens=31)


# ------------------------------------------------------------------------------------------ detectors


@pytest.mark.parametrize("measure", ["mul", "abs"])
@pytest.mark.parametrize("exclude", [(False, False), (True, False), (False, True), (True, True)])
def test_detectors_are_the_oracles(toy, run, measure, exclude):
    records = toy[2]
    own = [np.tril(np.random.default_rng(i).random((len(p), len(p)))) for i, p in enumerate(PROMPTS)]
    options = dict(zip(("exclude_bos", "exclude_current_token"), exclude)) | {"error_measure": measure}
    table = run.detect_heads(**options)
    table["own"] = run.detect_heads({"own": own}, **options).own
    assert table.label.tolist() == [f"L{a}H{b}" for a, b in zip(table.layer, table.head_index)]
    wanted = {"own": own}
    for name in detectors.PATTERNS:
        wanted[name] = [by_hand(name, prompt) for prompt in PROMPTS]
    for name, patterns in wanted.items():
        for row in table.to_dict("records"):
            scores = [
                ol.detection(record["pattern"][row["layer"]][row["head_index"]], pattern, measure, *exclude)
                for record, pattern in zip(records, patterns)
            ]
            assert row[name] == pytest.approx(np.mean(scores), abs=10 * tolerance(run))
    assert np.isfinite(table.drop(columns=["model", "label"]).to_numpy(float)).all()


def by_hand(name: str, tokens: list[int]) -> np.ndarray:
    found = np.zeros((len(tokens), len(tokens)))
    for q, k in np.ndindex(found.shape):
        if name == "previous_token_head":
            found[q, k] = k == q - 1
        elif name == "duplicate_token_head":
            found[q, k] = k < q and tokens[k] == tokens[q]
        else:
            found[q, k] = 1 <= k <= q and tokens[k - 1] == tokens[q] and k - 1 < q
    return found


def test_a_closed_head_scores_0():
    model = reliability.model(gate_bias=-1e6)
    table = model.run([1, 1, 1, 1]).detect_heads()
    assert (table[list(detectors.PATTERNS)] == 0).all(axis=None)


def test_detectors_of_one_prompt_of_a_batch(run):
    one, alone = (
        run[2].detect_heads("induction_head"),
        run.model.run(PROMPTS[2]).detect_heads("induction_head"),
    )
    pd.testing.assert_frame_equal(one, alone)
    assert list(one) == ["model", "layer", "head_index", "label", "induction_head"]
    square = np.tril(np.ones((8, 8)))
    assert run[2].detect_heads({"all": square})["all"].max() == pytest.approx(1)


def test_what_detectors_refuse(run):
    with pytest.raises(ValueError, match="patterns must be one of 'previous_token_head'"):
        run.detect_heads("copy_head")
    with pytest.raises(ValueError, match=r"has shape \(5, 5\), prompt 1 needs \(1, 1\)"):
        run.detect_heads({"mine": np.eye(5)})
    with pytest.raises(ValueError, match="looks ahead"):
        run[0].detect_heads({"mine": np.ones((5, 5))})
    with pytest.raises(ValueError, match="not a column of the table"):
        run[0].detect_heads({"label": np.eye(5)})
    with pytest.raises(ValueError, match="2 arrays for 3 prompts"):
        run.detect_heads({"mine": [np.eye(5), np.eye(1)]})
    for nothing in ((), {}):
        with pytest.raises(ValueError, match="at least one pattern"):
            run.detect_heads(nothing)
    with pytest.raises(ValueError, match="error_measure must be one of 'mul', 'abs'"):
        run.detect_heads(error_measure="square")


# ---------------------------------------------------------------------------------------- composition


def test_composition_is_the_oracles(toy, run):
    config, weights, _ = toy
    expected = ol.composition(weights, config)
    table = run.model.composition_scores()
    layers, heads = config["n_layer"], config["n_head"]
    assert len(table) == layers * (layers - 1) // 2 * heads**2
    for row in table.to_dict("records"):
        at = (row["sender_layer"], row["sender_head"], row["receiver_layer"], row["receiver_head"])
        assert (row["sender"], row["receiver"]) == (f"L{at[0]}H{at[1]}", f"L{at[2]}H{at[3]}")
        for i, way in enumerate("qkv"):
            assert row[way] == pytest.approx(expected[(i, *at)], rel=50 * tolerance(run))


def test_composition_of_nothing_is_0():
    model = reliability.model()
    model.assign({"h.1.attn.c_attn.weight": np.zeros((64, 192))})
    table = model.composition_scores()
    assert (table[["q", "k", "v"]] == 0).all(axis=None)
    assert len(table) == 16
