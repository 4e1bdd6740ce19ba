"""The recipe "text" with few steps: what it writes, that it goes on where it was stopped, what it refuses."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import attnsparse as asp
from attnsparse import recipes
from attnsparse.cli import main as cli
from attnsparse.recipes import text, text_frontier
from attnsparse.recipes.text_evaluation import measure
from attnsparse.training.trainer import Trainer

FILES = ["README.md", "config.json", "history.csv", "history.png", "model.safetensors", "tokenizer.json"]
FILES += ["tokenizer_config.json"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    random = np.random.default_rng(0)
    vocabulary = ["".join(random.choice(list("etaoinshrdlu"), random.integers(1, 7))) for _ in range(200)]
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text("".join(f"{word}{chr(10) if i % 9 == 0 else ' '}" for i, word in enumerate(
        random.choice(vocabulary, 12_000))))  # fmt: skip
    return path


def train(out: Path, corpus: Path, **settings) -> list[Path]:
    return recipes.RECIPES["text"].train(out, quiet=True, corpus=corpus, tiny=True, **settings)


def contents(folders: list[Path]) -> dict[str, bytes]:
    return {f"{f.name}/{path.name}": path.read_bytes() for f in folders for path in sorted(f.iterdir())}


@pytest.fixture(scope="module")
def short(tmp_path_factory, corpus) -> list[Path]:
    return train(tmp_path_factory.mktemp("short"), corpus, threads=1, checkpoint_every=5)


def test_it_writes_three_models_of_one_shape(short, corpus):
    assert [folder.name for folder in short] == list(recipes.RECIPES["text"].models)
    assert all(sorted(path.name for path in folder.iterdir()) == FILES for folder in short)
    dense, control, sparse = map(asp.load, short)
    assert [model.config.gated for model in (dense, control, sparse)] == [False, False, True]
    assert dense.config == control.config
    assert dense.n_parameters == control.n_parameters == sparse.n_parameters
    assert len({model.digest for model in (dense, control, sparse)}) == 3
    assert not list(short[0].parent.rglob(corpus.name))  # the text is read in place


def test_control_and_twin_have_as_many_steps(short):
    dense, control, sparse = (pd.read_csv(folder / "history.csv") for folder in short)
    assert control["step"].tolist() == sparse["step"].tolist() == [9, 19, 29, 39, 49]
    assert control["lr"].tolist() == sparse["lr"].tolist()
    assert control["multiplier"].isna().all()
    assert sparse["held_out_ce"].notna().all()
    assert dense["phase"].iloc[-1] == 2


def test_the_twin_is_held_against_the_control_after_as_many_steps(short):
    history = pd.DataFrame({"step": range(6), "held_out_ce": [np.nan, 3.00004, np.nan, 2.0, np.nan, 1.5]})
    control = SimpleNamespace(history=lambda: history, options=SimpleNamespace(steps=6))
    tau = text.course(control)
    assert [tau.at(step, 6) for step in range(6)] == pytest.approx([3, 3, 3, 2.5, 2, 1.75])
    options = text.twin_options(text.Settings(), text.Stage(6, 0.1, 0.0, 0.1, 0.5, 1e-3), tau)
    assert options.limit(3) == pytest.approx(2.6)
    control, sparse = (pd.read_csv(folder / "history.csv").set_index("step") for folder in short[1:])
    assert sparse["tau"][19] - 0.1 == pytest.approx(control["held_out_ce"][[9, 19]].mean(), abs=0.2)
    assert sparse["tau"][29] == pytest.approx(control["held_out_ce"][29] + 0.02, abs=1e-4)


def test_the_card_has_what_the_models_measure(short, corpus):
    control, sparse = map(asp.load, short[1:])
    card = (short[2] / "README.md").read_text()
    raw = corpus.read_bytes()
    assert f"| words.txt | {len(raw):,} | {len(raw):,} | `{hashlib.sha256(raw).hexdigest()}` |" in card
    assert "None" not in card
    assert sparse.digest in card
    source = asp.TextData(corpus, 16, 4, tokenizer=300)
    assert source.tokenizer.to_json() == sparse.tokenizer.to_json()
    judged = source.held_out[np.arange(len(source.held_out)) % text.STEERING != 0]
    losses = [
        np.array([model.evaluate([row]).cross_entropy for row in judged]) for model in (control, sparse)
    ]
    above = losses[1] - losses[0]
    rows = dict(re.findall(r"\| ([^|]+) \| (-?[\d.]+ \| [\d.]+) \|", card))
    error = above.std(ddof=1) / len(above) ** 0.5
    assert rows["cross-entropy minus that of text-control"] == f"{above.mean():.4f} | {error:.4f}"
    found = sparse.evaluate(judged)
    assert rows["cross-entropy, nats per token"].startswith(f"{found.cross_entropy:.4f} |")
    assert rows["open edges per token"].startswith(f"{found.open_edges.sum() / judged.size:.4f} |")
    share = 100 * found.open_edges.sum() / (len(judged) * 2 * 2 * 16 * 17 / 2)
    assert rows["open entries, per cent"].startswith(f"{share:.4f} |")


def test_a_dense_model_has_all_entries(short):
    found = measure(asp.load(short[0]), np.arange(64).reshape(4, 16))
    assert found.open_share == (1.0, 0.0)
    assert found.edges_per_token.value == 2 * 2 * 17 / 2
    assert found.self_edges_per_token.value == 4


def test_the_level_phase_ends_when_the_text_teaches_no_more(tmp_path, corpus, monkeypatch):
    ended: dict[str, int] = {}
    ship = text.TextJob.run

    def run(self, name, *rest):
        trainer = ship(self, name, *rest)
        ended[name] = trainer.step_count
        return trainer

    monkeypatch.setattr(text.TextJob, "run", run)
    train(tmp_path, corpus, dense_lr=0.0, level_every=5)  # the first look stays the best one
    assert ended["level"] == ended["long"] == 15
    assert ended["falling"] == text.TINY["falling_steps"]


def test_the_first_windows_are_short_and_position_embeddings_are_repeated(tmp_path, corpus, monkeypatch):
    seen: list = []
    run = text.TextJob.run

    def noting(self, name, options, model, patience=0):
        tokens, offsets, _, _ = self.text[name.rpartition("-")[2]].batch(0)
        seen.append((name, len(tokens), int(np.diff(offsets)[0]), model.copy()))
        return run(self, name, options, model, patience)

    monkeypatch.setattr(text.TextJob, "run", noting)
    train(tmp_path, corpus)
    first, second, *others = seen
    assert [entry[0] for entry in (first, second, others[0])] == ["level", "long", "falling"]
    assert len({n_tokens for _, n_tokens, _, _ in seen}) == 1
    assert (first[2], first[3].config.n_ctx) == (8, 8)
    assert {(length, model.config.n_ctx) for _, _, length, model in seen[1:]} == {(16, 16)}
    positions = second[3].parameter("wpe.weight")
    np.testing.assert_array_equal(positions[8:], positions[:8])
    trained = others[0][3].parameter("wpe.weight")
    assert not np.array_equal(trained[8:], trained[:8])


@pytest.mark.parametrize("phase", ["level", "long", "falling", "control-second", "twin-first", "twin-fourth"])
def test_stopped_and_resumed_gives_the_same_bytes(short, corpus, tmp_path, monkeypatch, phase):
    step, done = Trainer.step, []

    def stopping(self):
        if len(done) == 7 and (self._folder.name if self._folder else "") == phase:
            done.append(True)
            raise KeyboardInterrupt
        if self._folder.name == phase:
            done.append(True)
        return step(self)

    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, corpus, threads=2, checkpoint_every=5)
    folders = train(tmp_path, corpus, threads=1, resume=True, checkpoint_every=4)
    assert contents(folders) == contents(short)


def test_what_it_refuses(tmp_path, corpus):
    with pytest.raises(TypeError, match="corpus must name the text files"):
        recipes.RECIPES["text"].train(tmp_path / "a", quiet=True)
    with pytest.raises(TypeError, match="unknown setting 'corpus'"):
        recipes.RECIPES["addition"].train(tmp_path / "a", corpus=corpus)
    with pytest.raises(TypeError, match="tiny must be True or False, got 1"):
        recipes.RECIPES["text"].train(tmp_path / "a", corpus=corpus, tiny=1)
    assert not (tmp_path / "a").exists()
    (tmp_path / "short.txt").write_text(corpus.read_text()[:3000])
    with pytest.raises(
        ValueError, match=r"too short: \d+ held-out windows of 16 tokens, the recipe needs 16"
    ):
        train(tmp_path / "b", tmp_path / "short.txt", vocabulary=257)


def test_the_command(tmp_path, corpus, capsys):
    assert cli.main(["train", "text", "--corpus", str(corpus), "--out", str(tmp_path / "out"), "--tiny"]) == 0
    said = capsys.readouterr().out
    assert "text-sparse, " in said
    assert "cross-entropy minus that of text-control: " in said
    for wrong in (["text"], ["addition", "--corpus", "x"], ["demo", "--tiny"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["train", *wrong, "--out", str(tmp_path / "other")])
        assert caught.value.code == 2
    assert cli.main(["train", "text", "--corpus", "none.txt", "--out", str(tmp_path / "third")]) == 1
    assert "none.txt" in capsys.readouterr().err


def test_the_frontier(short, corpus, tmp_path, monkeypatch):
    """Its points are the models that the recipe says, also when it was stopped on the way."""
    monkeypatch.setattr(text_frontier, "MULTIPLIERS", (0.3,))
    monkeypatch.setattr(text_frontier, "TRAINED", (("window", 3),))
    monkeypatch.setattr(text_frontier, "RULES", {"window": (3, 16), "top_k": (2,), "min_weight": (0.2,)})
    step, done, kept = Trainer.step, [], []

    def stopping(self):
        if self._folder.name == "window-3-fourth":
            kept.append(self.model.config.window)
            done.append(True)
            if len(done) == 4:
                raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "step", stopping)
    frontier = recipes.RECIPES["text-frontier"]
    given = {"quiet": True, "corpus": corpus, "tiny": True, "checkpoint_every": 5}
    with pytest.raises(KeyboardInterrupt):
        frontier.train(tmp_path, **given)
    path = tmp_path / "text-sparse" / "frontier.csv"
    early = pd.read_csv(path)
    folders = frontier.train(tmp_path, resume=True, **given)
    table = pd.read_csv(path)
    path.unlink()
    assert contents(folders) == contents(short)
    assert kept
    assert set(kept) == {3}
    assert table["sparse_by"].tolist() == [
        "none",
        "gate",
        "gate",
        "window",
        "window",
        "window",
        "top_k",
        "min_weight",
    ]
    assert len(early) == len(table) - 1
    gates = table[table["sparse_by"] == "gate"]
    assert sorted(gates["setting"]) == [text.TINY["fourth"].multiplier_max, 0.3]
    source = asp.TextData(corpus, 16, 4, tokenizer=300)
    judged = source.held_out[np.arange(len(source.held_out)) % text.STEERING != 0]
    control, sparse = map(asp.load, short[1:])
    windows = table[table["sparse_by"] == "window"].reset_index()
    assert windows["trained"].tolist() == [True, False, False]
    assert windows["edges_per_token"].tolist() == pytest.approx([4 * 45 / 16, 4 * 45 / 16, 4 * 136 / 16])
    assert windows["above_control"][2] == pytest.approx(0, abs=1e-6)
    ruled = text_frontier.ruled(control, "window", 3)
    shipped = gates[gates["setting"] != 0.3].iloc[0]
    for model, row in ((control, table.iloc[0]), (ruled, windows.iloc[1]), (sparse, shipped)):
        losses = np.array([model.evaluate([window]).cross_entropy for window in judged])
        assert row["cross_entropy"] == pytest.approx(losses.mean(), rel=1e-5)
    assert abs(windows["cross_entropy"][0] - windows["cross_entropy"][1]) > 1e-4
