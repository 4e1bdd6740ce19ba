"""What features are active on and promote, against the same written plainly in NumPy; labels and files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from table_columns import hidden
from tiny_graph import PROMPT, WORDS, model, traced, transcoders

from attnsparse._engine import core_for
from attnsparse.errors import ConfigError, FormatError, LimitError
from attnsparse.graphs.build import attribution_graph
from attnsparse.io.limits import Limits
from attnsparse.items import cantor
from attnsparse.transcoders import contexts as feature_contexts
from attnsparse.transcoders.describe import automatic_label, describe_features
from attnsparse.transcoders.label_files import load_feature_labels, write_feature_details
from attnsparse.transcoders.labels import FeatureLabels

RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(0, len(WORDS), n).tolist() for n in (5, 9, 1, 16, 9, 12, 7, 20, 3, 11, 2, 8)]
TOP, BEFORE, AFTER = 4, 5, 2
CASES = {
    "relu": {},
    "jump_relu": {"activation": "jump_relu"},
    "topk": {"activation": "topk", "top_k": 5},
    "cross": {"cross": True},
    "mid": {"input_hook": "hook_resid_mid"},
}


@pytest.fixture(scope="module")
def spoken():
    return model()


def described(
    spoken: Any, of: Any, prompts: Any = PROMPTS, features: Any = None, **options: Any
) -> FeatureLabels:
    options = {"window": (BEFORE, AFTER), "n_promoted": 3, "threads": 1, "progress": False} | options
    return describe_features(spoken, of, prompts, features, TOP, **options)


def activations(spoken: Any, of: Any, layer: int, tokens: list[int]) -> np.ndarray:
    """[T, F]: of one layer on one prompt, in NumPy."""
    run = spoken.run(tokens, ("ln2_normalized", "resid_mid"), threads=1)
    x = (run.ln2_normalized if of.input_hook == "ln2.hook_normalized" else run.resid_mid)[layer].astype(
        np.float64
    )
    encoder = of.source.encoder(layer)
    pre = x @ encoder.w_enc.T.astype(np.float64) + encoder.b_enc
    if of.activation == "jump_relu":
        return np.where(pre > encoder.threshold, pre, 0)
    if of.activation == "topk":
        lowest = np.sort(pre, axis=1)[:, -of.top_k][:, None]
        return np.where((pre >= lowest) & (pre > 0), pre, 0)
    return np.maximum(pre, 0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("group", [1, 40, 10**6])
def test_against_numpy(spoken, case, group, monkeypatch):
    monkeypatch.setattr(feature_contexts, "GROUP_TOKENS", group)
    monkeypatch.setattr("attnsparse.transcoders.describe.GROUP_TOKENS", group)
    of = transcoders(spoken, **CASES[case])
    labels = described(spoken, of)
    n_tokens = sum(map(len, PROMPTS))
    assert (labels.n_prompts, labels.n_tokens) == (len(PROMPTS), n_tokens)
    found = 0
    for layer in range(of.n_layer):
        acts = [activations(spoken, of, layer, tokens) for tokens in PROMPTS]
        for number in range(of.n_features[layer]):
            counts = sum(int((a[:, number] > 0).sum()) for a in acts)
            if (layer, number) not in labels:
                assert counts == 0
                continue
            row = labels._row(layer, number)
            assert labels.density[row] == counts / n_tokens > 0
            largest = np.array([a[:, number].max() for a in acts])
            best = np.sort(largest[largest > 0])[::-1][:TOP]
            chosen = labels.prompt[row, : len(best)].tolist()
            assert len(set(chosen)) == len(chosen)
            np.testing.assert_allclose(largest[chosen], best, rtol=1e-5)  # nearly equal ones in any order
            assert (labels.prompt[row, len(best) :] == -1).all()
            np.testing.assert_allclose(labels.activation[row, : len(best)], best, rtol=2e-5, atol=1e-6)
            for k, i in enumerate(chosen):
                at = int(acts[i][:, number].argmax())
                assert labels.position[row, k] == at
                for w, place in enumerate(range(at - BEFORE, at + AFTER + 1)):
                    inside = 0 <= place < len(PROMPTS[i])
                    assert labels.tokens[row, k, w] == (PROMPTS[i][place] if inside else -1)
                    expected = acts[i][place, number] if inside else 0
                    assert labels.activations[row, k, w] == pytest.approx(expected, rel=2e-5, abs=1e-6)
            found += 1
    assert found == len(labels) == len(labels.layer) > 0.8 * sum(of.n_features)


def test_of_equal_contexts_the_earlier_ones_stay(spoken, monkeypatch):
    """Equal prompts, each run alone so that their activations are equal in all bits."""
    monkeypatch.setattr("attnsparse.transcoders.describe.GROUP_TOKENS", 1)
    labels = described(spoken, transcoders(spoken), [PROMPTS[3], PROMPTS[0], *[PROMPTS[3]] * 5])
    several = [row for row in labels.prompt.tolist() if sum(p not in (1, -1) for p in row) > 2]
    assert several
    for row in several:
        equal = [p for p in row if p != 1]
        assert equal == [0, 2, 3, 4][: len(equal)]


@pytest.mark.parametrize("n", [1, 7, len(WORDS)])
def test_all_promoted_tokens_are_in_order(spoken, n):
    """Any number of tokens up to the vocabulary, of equal logits the lower token first."""
    rows = np.random.default_rng(0).standard_normal((5, 2, spoken.config.d_model))
    rows[3] = 0  # every logit is the same
    for threads in (1, 3):
        tokens, effects = spoken._core.promoted_tokens(rows, n, threads)
        assert tokens.shape == effects.shape == (2, 5, n)
        for side, sign in ((0, -1), (1, 1)):
            everything = spoken._core.promoted_tokens(rows, len(WORDS))
            logits = np.empty((5, len(WORDS)), np.float32)
            np.put_along_axis(logits, everything[0][side].astype(np.int64), everything[1][side], axis=1)
            order = np.argsort(sign * logits, axis=1, kind="stable")[:, :n]
            assert np.array_equal(tokens[side], order)
            assert np.array_equal(effects[side], np.take_along_axis(logits, order, axis=1))
        assert tokens[0, 3].tolist() == tokens[1, 3].tolist() == list(range(n))


def test_a_table_is_closed_once_it_is_read(spoken):
    of = transcoders(spoken)
    features = of.features(spoken, PROMPTS[3])
    place = slice(*features.start[:2])
    active = (np.array(array[place]) for array in (features.position, features.feature, features.activation))
    table = core_for("float32").Contexts(of.n_features[0], None, 2, 1, 1)
    arguments = (*active, np.array(PROMPTS[3], np.int32), np.array([0, 16]), 0)
    table.add(*arguments)
    count = table.array("count")
    assert not count.flags.writeable
    assert (table.array("prompt")[count > 0, 0] == 0).all()
    with pytest.raises(RuntimeError, match="once an array has been read"):
        table.add(*arguments)
    with pytest.raises(KeyError, match="no array"):
        table.array("nothing")


@pytest.mark.parametrize("cross", [False, True])
def test_promoted_tokens_against_numpy(spoken, cross):
    of = transcoders(spoken, cross=cross)
    labels = described(spoken, of)
    name = "wte.weight" if spoken.config.tied else "lm_head.weight"
    unembed, weight = (spoken.parameter(n).astype(np.float64) for n in (name, "ln_f.weight"))
    for row, (layer, number) in enumerate(labels):
        direction = of.source.decoder_rows(layer, np.array([number]))[0].astype(np.float64).sum(axis=0)
        logits = unembed @ (weight * (direction - direction.mean()))
        logits -= logits.mean()
        order = np.argsort(-logits)
        assert labels.promoted_tokens[row].tolist() == order[:3].tolist()
        assert labels.suppressed_tokens[row].tolist() == order[::-1][:3].tolist()
        np.testing.assert_allclose(labels.promoted_effects[row], logits[order[:3]], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            labels.suppressed_effects[row], logits[order[::-1][:3]], rtol=1e-4, atol=1e-5
        )
        table = labels.promoted(layer, number)
        assert table.token.tolist() == [WORDS[i] for i in order[:3]]
        assert labels.suppressed(layer, number).effect.is_monotonic_increasing


@pytest.mark.parametrize("case", ["relu", "jump_relu", "topk"])
def test_some_features_are_described_as_among_all(spoken, case):
    of = transcoders(spoken, **CASES[case])
    whole = described(spoken, of)
    wanted = [(1, 3), (0, 20), (1, 17), (1, 3)]
    part = described(spoken, of, features=wanted)
    assert list(part) == sorted(set(wanted))
    for key in part:
        a, b = whole._row(*key), part._row(*key)
        assert part[key] == whole[key]
        for name in ("density", "prompt", "position", "tokens", "promoted_tokens"):
            assert np.array_equal(getattr(whole, name)[a], getattr(part, name)[b]), name
        np.testing.assert_allclose(part.activations[b], whole.activations[a], rtol=1e-4)
    only = described(spoken, of, features=np.array([[1, 3]]))
    assert list(only) == [(1, 3)]


def test_features_of_a_graph_and_of_a_prompt(spoken):
    graph = traced(max_feature_nodes=12)
    of = transcoders(spoken)
    labels = described(spoken, of, features=graph)
    assert set(labels) == {(int(a), int(b)) for a, b in zip(graph.layer[:12], graph.feature[:12])}
    assert len(described(spoken, of, features=of.features(spoken, PROMPT, threads=1))) > 12
    named = attribution_graph(spoken, of, PROMPT, labels=labels, max_feature_nodes=12, threads=1)
    assert [named.labels[i] for i in range(12)] == [
        labels[int(named.layer[i]), int(named.feature[i])] for i in range(12)
    ]
    assert graph.with_labels(labels).labels[:12] == named.labels[:12]


def test_a_feature_that_is_never_active(spoken):
    of = transcoders(spoken)
    of.source.encoder(1).b_enc[4] = -1e6
    labels = described(spoken, of, features=[(1, 4)])
    assert (1, 4) not in described(spoken, of)
    assert labels.density.tolist() == [0]
    words = [t.strip() for t in labels.promoted(1, 4).token if any(map(str.isalnum, t))]
    assert labels[1, 4] == f"-> “{words[0]}”, “{words[1]}”"
    assert len(labels.contexts(1, 4)) == 0
    assert labels.to_pandas().tokens.tolist() == [""]


def test_prompts_of_any_kind(spoken):
    of = transcoders(spoken)
    texts = ["The opposite of", 'large" is', PROMPT]
    ids = [spoken.to_tokens(text) for text in texts]
    first = described(spoken, of, texts)
    for same in (ids, iter(texts), (row.tolist() for row in ids)):
        assert_equal(first, described(spoken, of, same))
    assert described(spoken, of, PROMPT).n_prompts == described(spoken, of, ids[2]).n_prompts == 1
    assert described(spoken, of, np.array([[1, 2], [3, 4]])).n_prompts == 2
    with_bos = described(spoken, of, texts, prepend_bos=True)
    assert with_bos.n_tokens == first.n_tokens + 3
    plain = model()
    plain.tokenizer = None
    assert set(described(plain, of).strings.values()) <= {f"<{i}>" for i in range(len(WORDS))}


def test_contexts(spoken):
    labels = described(spoken, transcoders(spoken), [PROMPT])
    key = next(iter(labels))
    table = labels.contexts(*key)
    assert list(table.columns) == ["prompt", "position", "token", "activation", "text"]
    assert (len(table), table.prompt[0]) == (1, 0)
    others = labels.promoted(*key), labels.suppressed(*key), labels.to_pandas()
    assert [hidden(each) for each in (table, *others)] == [[]] * 4
    tokens = spoken.to_str_tokens(PROMPT)
    at = int(table.position[0])
    space = " " * tokens[at].startswith(" ")
    shown = [
        *tokens[max(at - BEFORE, 0) : at],
        f"{space}[{tokens[at].strip()}]",
        *tokens[at + 1 : at + 1 + AFTER],
    ]
    assert table.text[0] == "".join(shown)
    with pytest.raises(KeyError, match="not described"):
        labels.contexts(0, 10**6)


# --- labels


@pytest.mark.parametrize(
    ("tokens", "values", "label"),
    [
        ([" large", " large", "large"], [3.0, 2.9, 2.0], "“large”"),
        (["a", "b", "a", "b"], [4, 4, 3, 2.5], "“a” | “b”"),
        (["b", "a", "a"], [4, 3, 3], "“a” | “b”"),
        (["a", "b", "c", "c"], [2, 2, 2, 2], "“c” | “a” | “b”"),
        (["a", "b", "c", "d"], [2, 2, 2, 2], "“a”, … -> “x”, “y”"),
        (["d", "c", "b", "a", "a"], [2, 2, 2, 1, 1.5], "“a”, … -> “x”, “y”"),
        (["a", "b", "c", "d"], [2, 0.9, 0.9, 0.9], "“a”"),
        (["a"] * 8 + ["b", "c"], [1] * 10, "“a”"),
        (["a"] * 7 + ["b", "c", "d"], [1] * 10, "“a” | “b”"),
        (["\n", " "], [2, 1], "“\\n” | “␣” -> “x”, “y”"),
        (["\n\n"], [2], "“\\n\\n” -> “x”, “y”"),
        ([",", ","], [2, 1], "“,” -> “x”, “y”"),
        ([":", "Say"], [2, 1], "“:” | “Say”"),
        (['"', "'"], [2, 1.5], "“\"” | “'” -> “x”, “y”"),
        ([], [], "-> “x”, “y”"),
    ],
)
def test_the_rule_for_labels(tokens, values, label):
    promoted = [",", " x", "x", '".', "y", " z", "w"]
    assert automatic_label(tokens, np.array(values, np.float32), promoted) == label


def test_labels_of_a_vocabulary_without_words():
    """Nothing is made up where no promoted token can be read."""
    assert automatic_label([",", "."], np.array([2, 1], np.float32), [",", " "]) == "“,” | “.”"
    assert automatic_label([], np.array([], np.float32), [",", " "]) == "never active"


def test_labels_of_the_user_count_before_automatic_ones(spoken, tmp_path):
    labels = described(spoken, transcoders(spoken))
    key, other = list(labels)[:2]
    mine = labels.with_labels({key: "mine", (7, 9999): "of no context"})
    assert (mine[key], mine[other], mine[7, 9999]) == ("mine", labels[other], "of no context")
    assert len(mine) == len(labels) + 1
    assert list(mine) == sorted(mine)
    assert mine.get((8, 8)) is None
    assert labels[key] != "mine"
    table = mine.to_pandas()
    assert table.label.tolist() == [mine[k] for k in mine]
    assert np.isnan(table.density.iloc[-1])
    rows = f'\ufefffeature,label,layer\n{key[1]},"a, ""b""",{key[0]}\n5,,1\n'
    (tmp_path / "mine.csv").write_text(rows, "utf-8")
    read = mine.with_labels(tmp_path / "mine.csv")
    assert (read[key], read[7, 9999]) == ('a, "b"', "of no context")
    for wrong in (3, {3: "a"}, {(1, 2, 3): "a"}, {(0, 1): 3}, {(0.5, 1): "a"}, {(True, 1): "a"}):
        with pytest.raises(TypeError):
            labels.with_labels(wrong)
    assert repr(mine).startswith("FeatureLabels(") and "2 given" in repr(mine)  # noqa: PT018


def test_bad_arguments(spoken):
    of = transcoders(spoken)
    for wrong, kind in (
        ({"features": [(2, 0)]}, IndexError), ({"features": [(0, 24)]}, IndexError),
        ({"features": [(0, -1)]}, IndexError), ({"features": [3]}, TypeError),
        ({"features": ["ab"]}, TypeError),
        ({"window": (-1, 2)}, ValueError), ({"n_promoted": 0}, ValueError), ({"prompts": []}, ValueError),
        ({"prompts": iter(())}, ValueError), ({"prompts": 3}, TypeError), ({"prompts": [[99]]}, IndexError),
        ({"max_bytes": 1000}, MemoryError),
    ):  # fmt: skip
        with pytest.raises(kind):
            described(spoken, of, **wrong)
    with pytest.raises(ValueError, match="top must be at least 1"):
        describe_features(spoken, of, PROMPTS, top=0)
    with pytest.raises(ConfigError):
        described(model(n_layer=1), of)


def test_same_bits_for_any_number_of_threads(spoken):
    of = transcoders(spoken)
    assert_equal(described(spoken, of), described(spoken, of, threads=3))


def test_float64():
    spoken = model(dtype="float64")
    labels = described(spoken, transcoders(spoken))
    single = described(model(), transcoders(model()))
    assert labels.activation.dtype == np.float32
    assert set(labels) == set(single)
    np.testing.assert_allclose(labels.activation, single.activation, rtol=1e-4, atol=1e-5)


# --- files


def assert_equal(one: FeatureLabels, other: FeatureLabels) -> None:
    for name, a in vars(one).items():
        b = getattr(other, name)
        if isinstance(a, np.ndarray):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name
            assert not b.flags.writeable
        else:
            assert a == b, name


@pytest.fixture
def saved(spoken, tmp_path) -> tuple[FeatureLabels, Path]:
    labels = described(spoken, transcoders(spoken)).with_labels({(1, 2): 'a "b", c\n', (9, 9): "ä"})
    labels.save(tmp_path / "l.json")
    return labels, tmp_path / "l.json"


def test_comes_back(saved):
    labels, path = saved
    found = load_feature_labels(path)
    assert_equal(labels, found)
    assert dict(found) == dict(labels)
    assert found.to_pandas().equals(labels.to_pandas())
    assert found.contexts(*next(iter(labels))).equals(labels.contexts(*next(iter(labels))))
    found.save(path.parent / "again.json")
    assert (path.parent / "again.json").read_bytes() == path.read_bytes()


def test_few_contexts_are_a_smaller_file(saved):
    labels, path = saved
    labels.save(path.parent / "small.json", contexts=1)
    found = load_feature_labels(path.parent / "small.json")
    assert found.prompt.shape[1] == 1
    assert dict(found) == dict(labels)
    assert np.array_equal(found.tokens, labels.tokens[:, :1])
    assert (path.parent / "small.json").stat().st_size < 0.55 * path.stat().st_size


def test_as_csv(saved):
    import pandas as pd

    labels, path = saved
    labels.save(path.with_suffix(".csv"))
    table = pd.read_csv(path.with_suffix(".csv"))
    assert list(table.columns[:4]) == ["layer", "feature", "label", "density"]
    assert table.label.tolist() == [labels[key] for key in labels]
    found = load_feature_labels(path.with_suffix(".csv"))
    assert dict(found) == dict(labels)
    with pytest.raises(KeyError):
        found.contexts(0, 0)


def test_in_a_folder_of_transcoders(saved, tmp_path, monkeypatch):
    labels, _ = saved
    folder = tmp_path / "models" / "some-transcoders"
    folder.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"labels\.json"):
        load_feature_labels(folder)
    labels.save(folder / "labels.csv")
    assert load_feature_labels(folder).n_prompts == 0
    labels.save(folder / "labels.json", contexts=2)
    assert load_feature_labels(folder).n_prompts == labels.n_prompts
    monkeypatch.setattr("attnsparse.transcoders.label_files.MODELS_FOLDER", tmp_path / "models")
    assert dict(load_feature_labels("some-transcoders")) == dict(labels)
    with pytest.raises(TypeError, match="must be a string or a path"):
        load_feature_labels(b"some-transcoders")


def test_nothing_at_all(tmp_path):
    FeatureLabels().save(tmp_path / "l.json")
    assert_equal(load_feature_labels(tmp_path / "l.json"), FeatureLabels())
    assert len(FeatureLabels().to_pandas()) == 0


def test_files_that_cannot_be(saved, tmp_path):
    labels, path = saved
    for wrong in ("l.txt", "l"):
        with pytest.raises(ValueError, match=r"must end in \.json or \.csv"):
            labels.save(tmp_path / wrong)
    for name in ("none.json", "none.csv"):
        with pytest.raises(FileNotFoundError):
            load_feature_labels(tmp_path / name)
    with pytest.raises(LimitError):
        load_feature_labels(path, limits=Limits(max_graph_bytes=10))


def code(path: Path) -> str:
    with pytest.raises(FormatError) as caught:
        load_feature_labels(path)
    error = caught.value
    assert len(str(error)) <= 300
    assert "\n" not in str(error)
    assert str(error).startswith("l.")
    assert pickle.loads(pickle.dumps(error)).code == error.code
    return error.code


def walk(data: Any, *path: str | int) -> Any:
    for key in path:
        data = data[key]
    return data


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        (("format",), "attnsparse graph", "magic"),
        (("version",), 2, "version"),
        (("version",), True, "version"),
        (("model_name",), 3, "header_value"),
        (("n_tokens",), -1, "header_value"),
        (("n_prompts",), 2.5, "header_value"),
        (("before",), 8, "header_value"),
        (("before",), True, "header_value"),
        (("window",), 2_000_000, "header_value"),
        (("window",), 2**30, "header_value"),
        (("window",), 2**40, "header_value"),
        (("strings",), {}, "header_value"),
        (("strings", 0), ["a", 3], "header_value"),
        (("strings", 0), [-1, "a"], "header_value"),
        (("strings",), [], "feature"),
        (("given", 0), [1, 2], "header_value"),
        (("given", 0, 0), -1, "header_value"),
        (("features",), {}, "header_value"),
        (("features", 0), [], "feature"),
        (("features", 0, "layer"), -1, "feature"),
        (("features", 0, "layer"), 2**31, "feature"),
        (("features", 0, "layer"), 1, "feature"),
        (("features", 1, "feature"), 0, "feature"),
        (("features", 0, "label"), None, "feature"),
        (("features", 0, "density"), 1.5, "feature"),
        (("features", 0, "density"), "0", "feature"),
        (("features", 0, "contexts"), {}, "feature"),
        (("features", 0, "contexts", 0), [], "feature"),
        (("features", 0, "contexts", 0, "prompt"), -1, "feature"),
        (("features", 0, "contexts", 0, "position"), None, "feature"),
        (("features", 0, "contexts", 0, "at"), 6, "feature"),
        (("features", 0, "contexts", 0, "tokens"), [3] * 9, "feature"),
        (("features", 0, "contexts", 0, "tokens"), 3, "feature"),
        (("features", 0, "contexts", 0, "tokens", 0), 99, "feature"),
        (("features", 0, "contexts", 0, "activations"), [], "feature"),
        (("features", 0, "contexts", 0, "activations", 0), 1e300, "feature"),
        (("features", 0, "contexts", 0, "activations", 0), "1", "feature"),
        (("features", 0, "promoted"), None, "feature"),
        (("features", 0, "promoted", 0), [99, 1.0], "feature"),
        (("features", 0, "suppressed", 0), [1], "feature"),
        (("features", 0, "suppressed", 0, 1), 1e300, "feature"),
    ],
)
def test_bad_files(saved, path, value, wanted):
    data = json.loads(saved[1].read_text())
    walk(data, *path[:-1])[path[-1]] = value
    saved[1].write_text(json.dumps(data))
    assert code(saved[1]) == wanted


@pytest.mark.parametrize(
    "name", ["before", "window", "strings", "features", "given", "model_name", "n_tokens"]
)
def test_missing_fields(saved, name):
    data = json.loads(saved[1].read_text())
    del data[name]
    saved[1].write_text(json.dumps(data))
    assert code(saved[1]) == "header_value"


@pytest.mark.parametrize(
    "text",
    [
        "layer,feature\n1,2\n",
        "layer,feature,label\n1\n",
        "layer,feature,label\n1,a,b\n",
        "layer,feature,label\n-1,2,b\n",
        "layer,feature,label\n1.0,2,b\n",
        "layer,feature,label\n1,2,b\n1,2,c\n",
        'layer,feature,label\n1,2,"b',
        "layer,feature,label\n1,99999999999,b\n",
        "layer,feature,label\n1,2,a,b\n",
        "\n",
        "",
    ],
)
def test_bad_csv(tmp_path, text):
    (tmp_path / "l.csv").write_text(text)
    assert code(tmp_path / "l.csv") == "csv"
    (tmp_path / "l.csv").write_bytes(b"layer,feature,label\n1,2,\xff\n")
    assert code(tmp_path / "l.csv") == "csv"


def test_a_bad_csv_is_named_by_its_line(tmp_path):
    for row, text in (
        ("0,14,a,b", "line 3 has 4 cells, the first line 3; write a label with a comma in quotation marks"),
        ("0,x,b", "line 3: feature must be an integer of at least 0, got 'x'"),
        ("0,1", "line 3 has 2 cells, the first line 3"),
        ("1,2,c", "line 3: a second label of feature 2 of layer 1"),
    ):
        (tmp_path / "l.csv").write_text(f"layer,feature,label\n1,2,a\n{row}\n")
        with pytest.raises(FormatError, match=text):
            load_feature_labels(tmp_path / "l.csv")
    (tmp_path / "l.csv").write_text("")
    with pytest.raises(FormatError, match="has no column layer"):
        load_feature_labels(tmp_path / "l.csv")


def test_a_folder_without_labels_and_names_that_are_none(saved, tmp_path, monkeypatch):
    (tmp_path / "models" / "some").mkdir(parents=True)
    for name in ("labels.json", "some/labels.json"):
        (tmp_path / "models" / name).write_text("{}")
    monkeypatch.setattr("attnsparse.transcoders.label_files.MODELS_FOLDER", tmp_path / "models" / "some")
    (tmp_path / "own" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "own" / "folder")
    saved[0].save(tmp_path / "own" / "labels.json")
    assert dict(load_feature_labels("..")) == dict(saved[0])
    for name in (".", tmp_path / "own" / "folder"):
        with pytest.raises(FileNotFoundError, match=r"no labels\.json and no labels\.csv in this folder"):
            load_feature_labels(name)


def test_what_labels_say_of_themselves(spoken):
    labels = described(spoken, transcoders(spoken))
    assert labels._repr_html_().count("<tr") == 13
    with pytest.raises(KeyError, match=r"no label of \(9, 9\); keys are pairs"):
        labels[9, 9]
    assert (9, 9) not in labels
    with pytest.raises(IndexError, match="must be at least 0"):
        labels.with_labels({(0, -1): "a"})


# --- pages of features for viewers


def test_feature_details(saved, tmp_path):
    labels, _ = saved
    paths = write_feature_details(tmp_path / "features" / "spoken", labels)
    assert len(paths) == len(labels.layer)
    for (layer, number), path in zip(zip(labels.layer.tolist(), labels.feature.tolist()), paths):
        assert path == tmp_path / "features" / "spoken" / f"{cantor(layer, number)}.json"
        data = json.loads(path.read_text())
        assert data["index"] == cantor(layer, number)
        (group,) = data["examples_quantiles"]
        table = labels.contexts(layer, number)
        assert len(group["examples"]) == len(table)
        for example, activation in zip(group["examples"], table.activation):
            assert len(example["tokens"]) == len(example["tokens_acts_list"])
            assert np.float32(example["tokens_acts_list"][example["train_token_ind"]]) == activation
        assert data["top_logits"] == labels.promoted(layer, number).token.tolist()
        assert data["bottom_logits"] == labels.suppressed(layer, number).token.tolist()
        assert data["act_max"] == table.activation.max()


# --- memory


def test_prompts_are_read_as_they_are_used(spoken, monkeypatch):
    """The iterator is never more than one group ahead of what was run."""
    monkeypatch.setattr("attnsparse.transcoders.describe.GROUP_TOKENS", 20)
    run, read = [], []
    add = feature_contexts.Collector.add

    def watched(self: Any, batch: Any, *rest: Any) -> None:
        run.append(len(batch.batch.tokens))
        add(self, batch, *rest)

    def prompts() -> Iterator[list[int]]:
        for prompt in PROMPTS * 3:
            read.append(len(prompt))
            assert sum(read) - sum(run) <= 40
            yield prompt

    monkeypatch.setattr(feature_contexts.Collector, "add", watched)
    described(spoken, transcoders(spoken), prompts())
    assert sum(run) == sum(read) == 3 * sum(map(len, PROMPTS))


def test_weights_are_asked_for_one_layer_at_a_time(spoken):
    of = transcoders(spoken)
    inner, asked = of.source, []

    class Watched:
        n_layer, d_model, n_features = inner.n_layer, inner.d_model, inner.n_features

        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                asked.append((name, arguments[0]))
                return getattr(inner, name)(*arguments)

            return call

    of.source = Watched()
    described(spoken, of)
    assert asked[:2] == [("encoder", 0), ("encoder", 1)]
    assert {name for name, _ in asked} == {"encoder", "decoder_rows"}
    assert [layer for name, layer in asked if name == "decoder_rows"] == [0, 1]


def test_labels_are_pickled_with_all_that_they_know(spoken):
    labels = described(spoken, transcoders(spoken), features=[(0, 3), (1, 4)])
    again = pickle.loads(pickle.dumps(labels))
    assert dict(again) == dict(labels)
    assert again.contexts(1, 4).equals(labels.contexts(1, 4))
