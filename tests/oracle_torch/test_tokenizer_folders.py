"""Ids and BOS tokens of tokenizer folders, drawn at random, equal those of transformers."""

import json
import os
from pathlib import Path
from random import Random

import pytest
import tokenizers
import transformers
from reliability import report

from attnsparse.model.tokenizer import Tokenizer

N_FOLDERS = int(os.environ.get("ATTNSPARSE_TOKENIZER_FOLDERS", "150"))
SIGNS = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
MERGES = ["h e", "l l", "Ġ w", "he ll", "o r", "Ġw or", "hell o"]
WORDS = ["he", "ll", "Ġw", "hell", "or", "Ġwor", "hello"]
MARKS = ["<s>", "</s>", "<pad>", "<|user|>", "<|endoftext|>", "user", "lo wo", "é", "<a><b>", "HE"]
ROLES = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"]
ROLES += ["image_token"]
GLUE = ["", " ", "  ", "\n", "hello", " world", " or hello", "é", "日本", "x", "HELLO", "\t"]


def maybe(rng: Random, share: float = 0.5) -> bool:
    return rng.random() < share


def token(rng: Random, text: str, *, typed: bool = True) -> dict:
    """A token with some flags, as the JSON files hold it."""
    flags = {name: maybe(rng, 0.3) for name in ("lstrip", "rstrip", "single_word", "normalized")}
    return {"content": text, **flags} | ({"__type": "AddedToken"} if typed else {})


def roles(rng: Random, *, typed: bool) -> dict:
    """Tokens with roles: a text, an AddedToken, or none."""
    found = {}
    for name in rng.sample(ROLES, rng.randint(0, 4)):
        text = rng.choice(MARKS)
        found[name] = text if maybe(rng, 0.6) or name == "image_token" else token(rng, text, typed=typed)
        if typed and name != "image_token" and maybe(rng, 0.1):
            found[name] = None
    if maybe(rng, 0.3):
        name = rng.choice(["additional_special_tokens", "extra_special_tokens"])
        found[name] = rng.sample(MARKS, rng.randint(0, 3))
    return found


def added(rng: Random, vocabulary: dict) -> dict:
    """Token -> id as it must be: of the vocabulary, or the next ones; in any order."""
    found, number = {}, len(vocabulary)
    for text in rng.sample(MARKS, rng.randint(0, 4)):
        found[text] = vocabulary.get(text, number)
        number += text not in vocabulary
    return dict(sorted(found.items(), key=lambda _: rng.random()))


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def draw(rng: Random, folder: Path) -> None:
    """One folder: any vocabulary, with or without tokenizer.json, and any of the files beside it."""
    words = list(dict.fromkeys([*SIGNS, *WORDS, *rng.sample(MARKS, rng.randint(0, 5))]))
    rng.shuffle(words)
    vocabulary = {word: i for i, word in enumerate(words)}
    settings = roles(rng, typed=True)
    if maybe(rng):
        settings["tokenizer_class"] = rng.choice(["GPT2Tokenizer", "GPT2TokenizerFast"])
    for name in ("add_prefix_space", "add_bos_token", "split_special_tokens"):
        if maybe(rng, 0.2):
            settings[name] = maybe(rng, 0.7)
    ids = added(rng, vocabulary)
    if maybe(rng, 0.4):
        if maybe(rng, 0.4):
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        ids = draw_json(rng, folder, vocabulary)
    else:
        write(folder, "vocab.json", vocabulary)
        write(folder, "merges.txt", "\n".join(["#version: 0.2", *MERGES, ""]))
        if maybe(rng):
            write(folder, "added_tokens.json", added(rng, vocabulary))
    if maybe(rng, 0.3):
        settings.pop("split_special_tokens", None)  # the library keeps no token that is special no more
        settings["added_tokens_decoder"] = {
            str(i): token(rng, text, typed=False) | {"special": maybe(rng)} for text, i in ids.items()
        }
    if maybe(rng, 0.7):
        write(folder, "tokenizer_config.json", settings)
    if maybe(rng):
        write(folder, "special_tokens_map.json", roles(rng, typed=False))
    write(folder, "config.json", {"model_type": "gpt2", "vocab_size": len(vocabulary)})


def draw_json(rng: Random, folder: Path, vocabulary: dict) -> dict:
    """Write a tokenizer.json; its added tokens and their ids."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [tuple(pair.split()) for pair in MERGES]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=maybe(rng, 0.3))
    inner.decoder = tokenizers.decoders.ByteLevel()
    if maybe(rng, 0.2):
        inner.normalizer = tokenizers.normalizers.Lowercase()
    for text in added(rng, vocabulary):
        inner.add_tokens([tokenizers.AddedToken(**token(rng, text, typed=False), special=maybe(rng))])
    if maybe(rng, 0.3):
        inner.add_special_tokens(["<s>"])
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
        )
    write(folder, "tokenizer.json", inner.to_str())
    return {token.content: i for i, token in inner.get_added_tokens_decoder().items()}


def texts(rng: Random) -> list[str]:
    return ["".join(rng.choice([*MARKS, *GLUE, *GLUE]) for _ in range(rng.randint(1, 9))) for _ in range(8)]


def described(folder: Path) -> str:
    names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    shown = {name: (folder / name).read_text() for name in names if (folder / name).exists()}
    return f"{sorted(path.name for path in folder.iterdir())} {shown}"


def compare(ours: Tokenizer, theirs, rng: Random, about: str) -> int:
    """The number of texts that both give the same ids for."""
    assert ours._inner.get_vocab() == theirs.get_vocab(), about
    if theirs.bos_token_id is not None:  # else GPT-2's, where there is one
        assert ours.bos_id == theirs.bos_token_id, about
    drawn = texts(rng)
    for text in drawn:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False), f"{text!r} in {about}"
        assert ours.decode(ids) == theirs.decode(ids), f"{ids} in {about}"
    return len(drawn)


@pytest.mark.filterwarnings("ignore:.*are ignored, as GPT2Tokenizer")
def test_drawn_folders(tmp_path):
    """Each is read, written by us, and read again: nothing changes, for transformers neither."""
    n_read = n_texts = 0
    for seed in range(N_FOLDERS):
        rng, folder, again = Random(seed), tmp_path / str(seed), tmp_path / f"{seed} again"
        folder.mkdir(), again.mkdir()
        draw(rng, folder)
        ours, about = Tokenizer.load(folder), f"folder {seed}: {described(folder)}"
        try:
            theirs = transformers.AutoTokenizer.from_pretrained(folder)
        except ValueError as error:
            assert "Missing SpecialToken" in str(error)  # noqa: PT017 - a BOS token of two words as a template
            continue
        n_texts += compare(ours, theirs, rng, about)
        for name, text in ours.to_files().items():
            write(again, name, text)
        write(again, "config.json", {"model_type": "gpt2", "bos_token_id": ours.bos_id})
        saved = Tokenizer.load(again)
        assert saved.bos_id == ours.bos_id
        n_texts += compare(saved, theirs, rng, about)
        n_texts += compare(ours, transformers.AutoTokenizer.from_pretrained(again), rng, about)
        n_read += 1
    report("R5", f"{n_read} tokenizer folders, {n_texts} texts: ids equal those of transformers")
    assert n_read > 0.9 * N_FOLDERS


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "GPT2TokenizerFast"])
def test_folders_of_transformers(name, tmp_path):
    """What save_pretrained writes, after tokens were added and roles given."""
    for seed in range(20):
        rng, folder = Random(seed), tmp_path / str(seed)
        words = list(dict.fromkeys([*SIGNS, *WORDS, *rng.sample(MARKS, 3)]))
        theirs = getattr(transformers, name)(
            vocab={word: i for i, word in enumerate(words)},
            merges=[tuple(pair.split()) for pair in MERGES],
            bos_token=rng.choice(MARKS),
            add_prefix_space=maybe(rng),
        )
        theirs.add_special_tokens({"pad_token": rng.choice(MARKS)})
        theirs.add_tokens([tokenizers.AddedToken(**token(rng, text, typed=False)) for text in MARKS[3:6]])
        theirs.save_pretrained(folder)
        compare(Tokenizer.load(folder), theirs, rng, f"folder {seed}: {described(folder)}")
