"""Text files as training data: what is read, what is held out, the order of windows, mixtures, the folder."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import attnsparse as asp
from attnsparse.errors import CheckpointError, FormatError
from attnsparse.training import text_tokens

END = "<|endoftext|>"
WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "and", "then", "Ämne"]


def prose(n_words: int, seed: int = 0) -> str:
    random = np.random.default_rng(seed)
    words = random.choice(WORDS, n_words)
    return "".join(f"{word}{chr(10) if random.random() < 0.1 else ' '}" for word in words)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "one.txt").write_text(prose(4000), encoding="utf-8")
    (folder / "two.txt").write_text(prose(1500, 1).upper(), encoding="utf-8")
    return folder


def data(corpus: Path, **changes) -> asp.TextData:
    settings = {"length": 8, "batch": 4, "tokenizer": 280, "seed": 3} | changes
    files = settings.pop("files", [corpus / "one.txt", corpus / "two.txt"])
    return asp.TextData(files, settings.pop("length"), settings.pop("batch"), **settings)


def windows(source: asp.TextData, steps: int, micro: int = 0) -> np.ndarray:
    """Inputs and the last target of every sequence, [n, length + 1]."""
    rows = []
    for step in range(steps):
        tokens, offsets, targets, weights = source.batch(step, micro)
        assert tokens.dtype == targets.dtype == np.int32
        assert offsets.tolist() == list(range(0, len(tokens) + 1, source.length))
        assert (weights == 1).all()
        shape = (-1, source.length)
        inputs, outputs = tokens.reshape(shape), targets.reshape(shape)
        assert (inputs[:, 1:] == outputs[:, :-1]).all()
        rows.append(np.concatenate([inputs, outputs[:, -1:]], axis=1))
    return np.concatenate(rows)


# ---- what is read


def test_train_and_held_out_parts_are_the_texts(corpus):
    source = data(corpus)
    train = source._tokens.take(np.arange(len(source)))
    found = source.tokenizer.decode(train) + source.tokenizer.decode(source.held_out.reshape(-1))
    texts = [(corpus / name).read_text(encoding="utf-8") for name in ("one.txt", "two.txt")]
    total = sum(map(len, texts))
    cut = len(source.tokenizer.decode(source.held_out[0])) * 3
    assert total - cut < len(found.replace(END, "")) <= total  # a rest of a row is left out
    for part in source.tokenizer.decode(train).split(END):
        assert any(part in text for text in texts)
    # held-out pieces lie apart over the whole and are in no training part
    pieces = source.tokenizer.decode(source.held_out.reshape(-1)).split(END)
    assert len(pieces) > 3
    places = [text.index(piece) for text in texts for piece in pieces if piece and piece in text]
    assert max(places) - min(places) > 0.5 * len(texts[0])
    share = source.held_out.size / (source.held_out.size + len(source))
    assert 0.03 < share < 0.07


def test_every_file_ends_with_the_token_that_ends_texts(corpus):
    source = data(corpus, held_out=0.0)
    train = source._tokens.take(np.arange(len(source)))
    assert np.flatnonzero(train == source.tokenizer.eos_id).tolist()[1:] == [len(train) - 1]
    texts = [(corpus / name).read_text(encoding="utf-8") for name in ("one.txt", "two.txt")]
    assert source.tokenizer.decode(train) == "".join(text + END for text in texts)
    assert source.held_out.shape == (0, 8)


def test_documents_inside_a_file(tmp_path):
    (tmp_path / "many.txt").write_text(END.join([prose(300, i) for i in range(4)]), encoding="utf-8")
    source = data(tmp_path, files=tmp_path / "many.txt", held_out=0.0)
    train = source._tokens.take(np.arange(len(source)))
    assert np.count_nonzero(train == source.tokenizer.eos_id) == 4


def test_a_trained_tokenizer_has_not_seen_the_held_out_part(corpus, tmp_path):
    source = data(corpus)
    train = source.tokenizer.decode(source._tokens.take(np.arange(len(source))))
    (tmp_path / "train.txt").write_text(train, encoding="utf-8")
    alone = data(corpus, files=tmp_path / "train.txt", held_out=0.0)
    assert alone.tokenizer.to_json() == source.tokenizer.to_json()
    assert source.tokenizer.n_vocab == 280
    assert source.tokenizer.decode(source.tokenizer.encode("Ämne, 水 \x00")) == "Ämne, 水 \x00"


def test_what_was_read_is_named(corpus):
    source = data(corpus, files={"prose": corpus / "one.txt", "loud": [corpus / "two.txt"]})
    first, second = source.texts
    raw = (corpus / "one.txt").read_bytes()
    assert first == ("prose", "one.txt", len(raw), len(raw.decode()), hashlib.sha256(raw).hexdigest())
    assert (second.source, second.name) == ("loud", "two.txt")
    about = source.describe()
    assert json.loads(json.dumps(about)) == about
    assert about["texts"][0]["sha256"] == first.sha256
    assert about["tokens"] == len(source)
    assert about["held_out"] == source.held_out.size
    assert repr(source).startswith(f"TextData(2 files, {len(source):,} tokens of 280 kinds, ")


# ---- order


def test_an_epoch_has_every_window_once(corpus):
    source = data(corpus, batch=1)
    n = (len(source) - 8) // 8
    train = source._tokens.take(np.arange(len(source)))
    for epoch in range(2):
        begins = []
        for step in range(epoch * n, (epoch + 1) * n):
            begins.append(source._window(0, step, 0))
            assert (source.batch(step)[0] == train[begins[-1] : begins[-1] + 8]).all()
        assert sorted(begins) == list(range(min(begins), min(begins) + 8 * n, 8))
        assert begins != sorted(begins)
        assert max(begins) + 8 < len(source)
    assert source._window(0, 0, 0) % 8 != source._window(0, n, 0) % 8  # this seed's places


def test_held_out_sequences_are_in_no_window(corpus):
    """Numbered words, so that no sequence is there twice by chance."""
    text = "\n".join(f"{i:05d}" for i in range(3000))
    (corpus / "numbers.txt").write_text(text)
    for order in ("epochs", "random"):
        source = data(corpus, files=corpus / "numbers.txt", length=16, order=order)
        seen = {tuple(row[i : i + 8]) for row in windows(source, 1500) for i in range(9)}
        held = {tuple(row[i : i + 8]) for row in source.held_out.tolist() for i in range(9)}
        assert len(held) > 50
        assert not seen & held


@pytest.mark.parametrize("order", ["epochs", "random"])
def test_batches_are_a_function_of_step_and_micro_batch(corpus, order):
    one, other = data(corpus, order=order), data(corpus, order=order)
    backwards = [other.batch(step, micro) for step in range(9, -1, -1) for micro in (1, 0)]
    forwards = [one.batch(step, micro) for step in range(10) for micro in (0, 1)]
    for a, b in zip(forwards, backwards[::-1]):
        assert all(np.array_equal(x, y) for x, y in zip(a, b))
    assert not np.array_equal(one.batch(0, 0)[0], one.batch(0, 1)[0])
    assert not np.array_equal(one.batch(0, 0)[0], one.batch(1, 0)[0])
    assert not np.array_equal(one.batch(0)[0], data(corpus, order=order, seed=4).batch(0)[0])


def test_random_windows_are_spread_evenly(corpus):
    source = data(corpus, order="random", batch=64)
    train = source._tokens.take(np.arange(len(source)))
    found = {bytes(row) for row in np.lib.stride_tricks.sliding_window_view(train, 9).copy()}
    rows = windows(source, 20)
    assert all(row.tobytes() in found for row in rows)
    assert len({row.tobytes() for row in rows}) > 0.8 * len(rows)


# ---- mixtures


@pytest.mark.parametrize("order", ["epochs", "random"])
def test_shares_of_a_mixture(corpus, order):
    files = {"low": corpus / "one.txt", "high": corpus / "two.txt"}
    source = data(corpus, files=files, shares={"high": 0.25, "low": 0.75}, order=order, batch=50)
    assert source.shares == {"low": 0.75, "high": 0.25}
    chosen, number = source._turns(np.arange(3000), 0)
    for block in range(3):
        assert np.bincount(chosen[1000 * block : 1000 * (block + 1)]).tolist() == [750, 250]
    for i in (0, 1):
        assert number[chosen == i].tolist() == list(range(np.count_nonzero(chosen == i)))
    assert len(set(chosen[:20].tolist())) == 2
    for step in range(10):
        for row, i in zip(windows_of(source, step), chosen[50 * step :]):
            text = source.tokenizer.decode(row).replace(END, "").replace("ä", "").replace("Ä", "")
            assert (text == text.upper()) == (i == 1), text


def windows_of(source: asp.TextData, step: int) -> np.ndarray:
    return source.batch(step)[0].reshape(-1, source.length)


def test_a_mixture_without_shares_is_one_text(corpus):
    files = {"low": corpus / "one.txt", "high": corpus / "two.txt"}
    plain, named = data(corpus), data(corpus, files=files)
    assert named.shares is None
    assert named.digest == plain.digest


@pytest.mark.parametrize(
    ("shares", "kind", "text"),
    [
        ({"low": 0.5, "high": 0.4}, ValueError, "shares must add up to 1, got 0.9"),
        ({"low": 1.0}, ValueError, "shares must name the sources low, high, got low"),
        ({"low": 1.5, "high": -0.5}, ValueError, r"shares\['low'\] must be in 0\.\.1, got 1.5"),
        ({"low": "half", "high": 0.5}, TypeError, r"shares\['low'\] must be a number, got str"),
        ({"low": 0.9999, "high": 0.0001}, ValueError, "shares must be at least 0.001, got 0.0001"),
        ([0.5, 0.5], TypeError, "shares must be a mapping of sources to numbers, got list"),
    ],
)
def test_shares_that_do_not_fit(corpus, shares, kind, text):
    files = {"low": corpus / "one.txt", "high": corpus / "two.txt"}
    with pytest.raises(kind, match=text):
        data(corpus, files=files, shares=shares)


# ---- identity and resume


def test_the_digest_is_that_of_tokens_and_settings(corpus, tmp_path):
    source = data(corpus)
    (tmp_path / "renamed.txt").write_bytes((corpus / "one.txt").read_bytes())
    assert data(corpus, files=[tmp_path / "renamed.txt", corpus / "two.txt"]).digest == source.digest
    others = [{"seed": 4}, {"length": 9}, {"batch": 5}, {"order": "random"}, {"held_out": 0.1}]
    others += [{"files": [corpus / "one.txt"]}, {"tokenizer": 270}]
    digests = {data(corpus, **other).digest for other in others}
    assert len(digests) == len(others)
    assert source.digest not in digests


def test_a_resumed_run_has_the_same_bytes(corpus, tmp_path):
    def source() -> asp.TextData:
        return data(corpus, folder=tmp_path / "tokens")

    def run(until: int, path: Path, resume: bool = False) -> None:
        text = source()
        rows = text.held_out[:5]
        if resume:
            trainer = asp.Trainer.resume(path, text, held_out=rows)
        else:
            shape = asp.Config(n_layer=1, n_head=2, d_model=8, d_head=4, d_mlp=8, n_ctx=8, n_vocab=280)
            model = asp.Model.initialised(shape, 0, tokenizer=text.tokenizer)
            trainer = asp.Trainer(model, text, steps=8, evaluate_every=3, held_out=rows)
        trainer.train(progress=False, until=until).save(path)

    whole, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    run(8, whole)
    run(4, part)
    run(8, part, resume=True)
    assert part.read_bytes() == whole.read_bytes()
    with pytest.raises(CheckpointError, match="was trained on other data"):
        asp.Trainer.resume(part, data(corpus, seed=4), held_out=source().held_out[:5])


def test_tokens_do_not_depend_on_threads(corpus, tmp_path):
    code = "import attnsparse as a, sys; print(a.TextData(sys.argv[1:], 8, 4, tokenizer=280).digest)"
    digests = set()
    for threads in ("1", "4"):
        command = [sys.executable, "-c", code, corpus / "one.txt", corpus / "two.txt"]
        names = ("RAYON_NUM_THREADS", "RAYON_RS_NUM_CPUS", "ATTNSPARSE_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, threads)
        digests.add(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)
    assert digests == {f"{data(corpus, seed=0).digest}\n".encode()}


# ---- the folder


def test_the_folder_is_used_again(corpus, tmp_path, monkeypatch):
    folder = tmp_path / "tokens"
    source = data(corpus, folder=folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(text_tokens.FILES)
    assert (folder / "train.bin").stat().st_size == 2 * len(source)
    assert source.digest == data(corpus).digest
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(text_tokens.Texts, "_tokens", None)  # not called
    again = data(corpus, folder=folder, length=5, seed=9)
    assert len(again) == len(source)
    assert np.array_equal(data(corpus, folder=folder).batch(2)[0], source.batch(2)[0])
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert again.tokenizer.to_json() == source.tokenizer.to_json()


def test_the_folder_is_made_anew_for_other_texts_or_settings(corpus, tmp_path):
    folder, text = tmp_path / "tokens", tmp_path / "text.txt"
    text.write_text(prose(3000))
    first = data(corpus, files=text, folder=folder)
    text.write_text(prose(3000, 5))
    second = data(corpus, files=text, folder=folder)
    assert second.digest == data(corpus, files=text).digest != first.digest
    third = data(corpus, files=text, folder=folder, tokenizer=270)
    assert third.tokenizer.n_vocab == 270
    fourth = data(corpus, files=text, folder=folder, tokenizer=second.tokenizer)
    assert fourth.digest == second.digest
    assert first.batch(0)[0].shape == (32,)  # the map of before still holds


def test_a_folder_that_belongs_to_something_else_is_left_alone(corpus, tmp_path):
    (tmp_path / "train.bin").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="give a folder of its own"):
        data(corpus, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train.bin"]


def test_a_damaged_folder_is_refused(corpus, tmp_path):
    folder = tmp_path / "tokens"
    data(corpus, folder=folder)
    record = json.loads((folder / "text.json").read_text())
    for name in ("train.bin", "held_out.bin"):
        whole = (folder / name).read_bytes()
        for damaged in (whole[:-2], whole[:-2] + b"\x01\x00", b""):
            (folder / name).write_bytes(damaged)
            with pytest.raises(FormatError, match=name.replace(".", r"\.")):
                data(corpus, folder=folder)
        (folder / name).write_bytes(whole)
    for changes in ({"begin": [0, 5]}, {"begin": 3}, {"train.bin": None}, {"held_out.bin": {"n": 1}}):
        (folder / "text.json").write_text(json.dumps(record | changes))
        with pytest.raises(FormatError, match="not as TextData writes it"):
            data(corpus, folder=folder)
    (folder / "text.json").write_text("{")
    with pytest.raises(FormatError):
        data(corpus, folder=folder)


def test_a_map_takes_no_memory(corpus, tmp_path):
    (tmp_path / "long.txt").write_text(prose(60_000))
    source = data(corpus, files=tmp_path / "long.txt", folder=tmp_path / "tokens", order="random")
    tracemalloc.start()
    for step in range(3):
        source.batch(step)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(source)


def test_many_tokens_are_stored_in_four_bytes(corpus, tmp_path):
    words = [f" {i:05d}" for i in range(70_000)]
    tokenizer = asp.Tokenizer.from_words([*words, END])
    (tmp_path / "numbers.txt").write_text("".join(words[:300]) + "".join(words[-300:]))
    source = data(
        corpus, files=tmp_path / "numbers.txt", tokenizer=tokenizer, folder=tmp_path / "t", held_out=0
    )
    assert (tmp_path / "t" / "train.bin").stat().st_size == 4 * len(source)
    assert source._tokens.take(np.arange(len(source)))[-2] == 69_999


# ---- wrong input


def test_texts_that_cannot_be_read(corpus, tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Das sind Bären".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt: must be text in UTF-8, but byte 10 is not"):
        data(corpus, files=[corpus / "one.txt", latin])
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        data(corpus, files=tmp_path / "none.txt")
    with pytest.raises(IsADirectoryError):
        data(corpus, files=tmp_path)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"empty\.txt: holds no text"):
        data(corpus, files=tmp_path / "empty.txt")


def test_texts_that_are_too_short(corpus, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text(prose(400))
    with pytest.raises(
        ValueError, match=r"too short, .* tokens to train on; length=5,000 needs at least 10,000"
    ):
        data(corpus, files=short, length=5000)
    with pytest.raises(
        ValueError, match=r"too short: held_out=0\.05 of them are .* tokens, fewer than length=200"
    ):
        data(corpus, files=short, length=200)
    with pytest.raises(ValueError, match=r"too short for tokenizer=5,000: they give \d+ tokens"):
        data(corpus, files=short, tokenizer=5000)
    files, shares = {"long": corpus / "one.txt", "short": short}, {"long": 0.5, "short": 0.5}
    with pytest.raises(ValueError, match="short: too short"):
        data(corpus, files=files, shares=shares, length=600, held_out=0.0)


def test_a_tokenizer_of_another_vocabulary(corpus):
    closed = asp.Tokenizer.from_words(["cat", END, " ", "\n"])
    with pytest.raises(ValueError, match=r"one\.txt: .* is not in this tokenizer's vocabulary of 4 tokens"):
        data(corpus, tokenizer=closed)
    with pytest.raises(ValueError, match=r"tokenizer must have the token <\|endoftext\|>"):
        data(corpus, tokenizer=asp.load("addition-dense").tokenizer)
    with pytest.raises(ValueError, match=r"tokenizer must be in 257\.\.1,048,576, got 5"):
        data(corpus, tokenizer=5)
    model = asp.Model.initialised(
        asp.Config(n_layer=1, n_head=1, d_model=4, d_head=4, d_mlp=4, n_ctx=8, n_vocab=270), 0
    )
    with pytest.raises(IndexError, match=r"is out of range 0\.\.269"):
        asp.Trainer(model, data(corpus), steps=50).train(progress=False)


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"length": 1}, ValueError, "length must be at least 2, got 1"),
        ({"batch": 0}, ValueError, "batch must be at least 1, got 0"),
        ({"held_out": 1.0}, ValueError, "held_out must be 0 or more and below 1, got 1.0"),
        ({"order": "sorted"}, ValueError, "order must be one of 'epochs', 'random', got 'sorted'"),
        ({"seed": -1}, ValueError, "seed must be in"),
        ({"tokenizer": "gpt2"}, TypeError, "tokenizer must be an integer, got str"),
        ({"files": []}, ValueError, "files must name at least one file, got none"),
        ({"files": {}}, ValueError, "files must name at least one file, got none"),
        ({"files": {"a": []}}, ValueError, "got none for source 'a'"),
        ({"files": {3: "x"}}, TypeError, "the name of a source must be a string, got 3"),
        ({"files": 3}, TypeError, "files must be a string or a path, got int"),
    ],
)
def test_wrong_arguments(corpus, changes, kind, text):
    with pytest.raises(kind, match=text):
        data(corpus, **changes)


def test_a_text_that_changes_while_it_is_read(corpus, tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text(prose(2000))
    versions = itertools.chain([prose(2000)], itertools.repeat(prose(2000, 1)))
    monkeypatch.setattr(text_tokens, "_text_of", lambda path: next(versions))
    with pytest.raises(ValueError, match="was written to while it was read"):
        data(corpus, files=path, tokenizer=data(corpus).tokenizer)
