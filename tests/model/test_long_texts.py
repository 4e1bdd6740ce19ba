"""Long texts are encoded block by block, so that Ctrl-C is heard; the tokens are those of the whole text."""

from __future__ import annotations

import json
import random
import threading
import time

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from attnsparse.model.tokenizer import Tokenizer
from attnsparse.model.tokenizer import tokenizer as module
from attnsparse.model.tokenizer.library import aside

SIGNS = [
    *"abz_'.,\"-<|>09",
    " ",
    " ",
    " ",
    "\n",
    "\n",
    "\t",
    "\r",
    "\x1c",
    "\x85",
    "\xa0",
    "\u2003",
    "\u0301",
    "é",
    "日",
    "²",
]
TEXTS = st.text(st.sampled_from(SIGNS), max_size=60) | st.text(st.characters(exclude_categories=["Cs"]))


def trained(**options) -> tokenizers.Tokenizer:
    """Byte-level BPE that has learned to join whatever its pieces allow, much of it white space."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | options)
    inner.decoder = tokenizers.decoders.ByteLevel()
    rng = random.Random(0)
    texts = ["".join(rng.choices(SIGNS, k=200)) for _ in range(300)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=3000,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
    )
    inner.train_from_iterator(texts, trainer)
    return inner


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Tokenizer(trained())


@pytest.fixture(scope="module")
def characters() -> Tokenizer:
    return Tokenizer.from_words([chr(i) for i in range(0x3000)], split="characters")


@given(TEXTS, st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_blocks_give_the_tokens_of_the_whole_text(bpe, text, block):
    assert bpe._may_cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        assert bpe.encode(text) == bpe._inner.encode(text, add_special_tokens=False).ids
        assert bpe.decode(bpe.encode(text)) == text


def test_blocks_of_closed_vocabularies(characters, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2)
    text = "it's a b  c\nd  \n e_f 1 2\n\n x"
    words = Tokenizer.from_words(
        ["it", "'s", *(f" {c}" for c in "abcdefx12_ "), " ", *"\nd_f\te", "\n\n", "  \n"]
    )
    for one in (words, characters):
        assert one._may_cut
        assert one.encode(text) == one._inner.encode(text, add_special_tokens=False).ids


@pytest.mark.serial
def test_what_is_not_cut_is_encoded_aside(monkeypatch):
    """Ids, decoded text and errors are the same; the last is the library's panic."""
    inner = trained()
    inner.normalizer = tokenizers.normalizers.NFKC()
    one, text = Tokenizer(inner), "the ﬁfth  é 日本 " * 40
    ids = one.encode(text)
    monkeypatch.setattr(module, "MOST_AT_ONCE", 20)
    threads = []
    monkeypatch.setattr(module, "aside", lambda call: threads.append(aside(call)) or threads[-1])
    assert one.encode(text) == ids == threads[0]
    assert one.decode(ids) == inner.decode(ids) == threads[1]
    inner.pre_tokenizer = tokenizers.pre_tokenizers.FixedLength(length=0)
    with pytest.raises(ValueError, match="text cannot be encoded: chunk size must be non-zero"):
        Tokenizer(inner).encode(text)


def test_other_threads_run_while_a_long_text_is_encoded():
    """The longest time for which another thread did not get to run, against the whole."""
    inner = trained()
    inner.normalizer = tokenizers.normalizers.NFKC()
    one, gaps, done = Tokenizer(inner), [0.0], threading.Event()

    def tick() -> None:
        last = time.monotonic()
        while not done.is_set():
            time.sleep(0.001)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    other = threading.Thread(target=tick)
    other.start()
    begin = time.monotonic()
    one.encode("many words of a text " * 40_000)
    whole = time.monotonic() - begin
    done.set()
    other.join()
    assert max(gaps) < max(0.2, whole / 3)
    assert len(gaps) > 10


def test_nothing_is_cut_where_the_library_could_see_it():
    before = tokenizers.pre_tokenizers
    changes = {
        "normalizer": tokenizers.normalizers.NFC(),
        "pre_tokenizer": before.Metaspace(),
    }
    for name, value in changes.items():
        inner = trained()
        setattr(inner, name, value)
        assert not Tokenizer(inner)._may_cut, name
    for options in ({"add_prefix_space": True}, {"use_regex": False}):
        assert not Tokenizer(trained(**options))._may_cut
    for added in (
        "a b",
        tokenizers.AddedToken("ab", lstrip=True),
        tokenizers.AddedToken("ab", single_word=True),
    ):
        inner = trained()
        inner.add_tokens([added])
        assert not Tokenizer(inner)._may_cut
    inner = trained()
    inner.enable_truncation(4)
    assert not Tokenizer(inner)._may_cut
    assert json.loads(inner.to_str())["truncation"]
