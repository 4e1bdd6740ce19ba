"""Bad checkpoints of several files: configs, weights that do not fit them, shards and tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tiny_checkpoints as tiny
from bad_files import DEEP, BadFolder
from safetensors_by_hand import from_arrays

from attnsparse.errors import ConfigError, FormatError, LimitError, NonFiniteError
from attnsparse.model.tokenizer import Tokenizer

WEIGHTS = from_arrays(tiny.weights())


def _config(name: str, error: type, code: str, **changes: object) -> BadFolder:
    config = {key: value for key, value in tiny.plain_config(**changes).items() if value != "absent"}
    return BadFolder("config: " + name, error, code, {"config.json": config, "model.safetensors": WEIGHTS})


def _configs() -> list[BadFolder]:
    def kind(name: str, **changes: object) -> BadFolder:
        return _config(name, ConfigError, "config_type", **changes)

    def value(name: str, **changes: object) -> BadFolder:
        return _config(name, ConfigError, "config_value", **changes)

    def text(name: str, error: type, code: str, raw: object) -> BadFolder:
        return BadFolder("config: " + name, error, code, {"config.json": raw, "model.safetensors": WEIGHTS})

    return [
        kind("n_layer is true", n_layer=True), kind("n_layer is 0", n_layer=0), kind("n_layer is -1",
            n_layer=-1),
        kind("n_layer is 1.5", n_layer=1.5), kind("n_layer is 2.0", n_layer=2.0), kind("n_layer is text",
            n_layer="2"),
        kind("n_layer is huge", n_layer=513),
        kind("n_head is huge", n_head=10**6), kind("n_embd is a list", n_embd=[8]),
        kind("vocabulary of 2^40", vocab_size=2**40), kind("positions of 2^40", n_positions=2**40),
        kind("epsilon is text", layer_norm_epsilon="1e-5"), kind("epsilon is true", layer_norm_epsilon=True),
        kind("epsilon of 10^400", layer_norm_epsilon=1e300), kind("gate is 1", attnsparse_gated=1),
        kind("activation is a number", activation_function=3), kind("tying is text",
            tie_word_embeddings="yes"),
        kind("version is text", attnsparse_version="1"),
        value("epsilon is 0", layer_norm_epsilon=0), value("epsilon is negative", layer_norm_epsilon=-1e-5),
        value("heads do not divide the width", n_head=3), value("unknown activation",
            activation_function="swish"),
        value("llama", model_type="llama"), value("model type is null", model_type=None),
        value("cross attention", add_cross_attention=True),
        value("two names disagree", num_attention_heads=4),
        value("two names of what the weights show, the first wrong", n_positions=7, n_ctx=6),
        value("quantized", quantization_config={"quant_method": "gptq"}),
        value("rotary positions", positional_embedding_type="rotary"), value("RMS norm",
            normalization_type="RMS"),
        value("parallel blocks", parallel_attn_mlp=True), value("other attention scale", attn_scale=3.0),
        value("unknown field of ours", attnsparse_colour="blue"),
        _config("n_layer has 4000 digits", FormatError, "json_syntax", n_layer=10**4000),
        _config("epsilon of 400 digits", FormatError, "json_syntax", layer_norm_epsilon=10**400),
        _config("newer version", ConfigError, "config_version", attnsparse_version=2),
        _config("no n_head", ConfigError, "config_missing", n_head="absent"),
        _config("too many layers", ConfigError, "missing_tensor", n_layer=3),
        _config("too few layers", ConfigError, "unexpected_tensor", n_layer=1),
        _config("other context", ConfigError, "tensor_shape", n_positions=7),
        _config("other vocabulary", ConfigError, "tensor_shape", vocab_size=12),
        _config("other width", ConfigError, "tensor_shape", n_embd=10),
        _config("untied without a head", ConfigError, "missing_tensor", tie_word_embeddings=False),
        text("cut short", FormatError, "json_syntax", '{"n_layer": 2'),
        text("empty", FormatError, "json_syntax", ""),
        text("a list", FormatError, "json_type", "[1]"),
        text("a number", FormatError, "json_type", "3"),
        text("duplicate key", FormatError, "duplicate_name", '{"n_layer": 2, "n_layer": 3}'),
        text("nested 70 deep", FormatError, "json_depth", DEEP),
        text("2 MiB", LimitError, "file_limit", '{"a": "' + "x" * 2**21 + '"}'),
    ]  # fmt: skip


def _weights(name: str, error: type, code: str, arrays: dict, **config: object) -> BadFolder:
    files = {"config.json": tiny.plain_config(**config), "model.safetensors": from_arrays(arrays)}
    return BadFolder("weights: " + name, error, code, files)


def _shards(name: str, error: type, code: str, index: object, **more: object) -> BadFolder:
    files = {"config.json": tiny.plain_config(), "model.safetensors.index.json": index,
             "model-00001-of-00001.safetensors": WEIGHTS}  # fmt: skip
    return BadFolder("shards: " + name, error, code, files | more)


def _folders() -> list[BadFolder]:
    good = tiny.weights()
    without = {name: array for name, array in good.items() if name != "h.1.mlp.c_proj.bias"}
    infinite = good | {"h.0.attn.c_attn.bias": np.full(24, np.nan, np.float32)}
    only = "model-00001-of-00001.safetensors"
    where = dict.fromkeys(good, only)
    half = np.array(1, np.float32)

    def elsewhere(file: str) -> dict[str, object]:
        return {"weight_map": where | {"wte.weight": file}}

    vocab = {
        "config.json": tiny.plain_config(),
        "model.safetensors": WEIGHTS,
        "merges.txt": "#version: 0.2\n",
    }
    ids = {chr(97 + index): index for index in range(11)}

    added = {"added_tokens_decoder": {"3": {"content": "z"}}}
    words = {"tokenizer.json": Tokenizer.from_words(list(ids)).to_json()}

    def tokens(name: str, error: type, code: str, **files: object) -> BadFolder:
        return BadFolder("tokenizer: " + name, error, code, vocab | files)

    return [
        _weights("one tensor missing", ConfigError, "missing_tensor", without),
        _weights("one tensor too many", ConfigError, "unexpected_tensor", good | {"h.0.attn.rotary": half}),
        _weights("two models", ConfigError, "several_models", tiny.prefixed(good, "actor.") | tiny.prefixed(
            good, "critic.")),
        _weights("another family", ConfigError, "other_model",
                 {"gpt_neox.layers.0.attention.dense.bias": half}),
        _weights("no tensors", ConfigError, "missing_tensor", {}),
        _weights("transposed", ConfigError, "tensor_shape", good | {"wpe.weight": good["wpe.weight"].T}),
        _weights("a scalar for a vector", ConfigError, "tensor_shape", good | {"ln_f.bias": half}),
        _weights("both names of one tensor", ConfigError, "duplicate_name",
                 good | {"transformer.wpe.weight": good["wpe.weight"]}),
        _weights("integers", FormatError, "dtype", good | {"ln_f.bias": np.ones(8, np.int64)}),
        _weights("not a number", NonFiniteError, "nonfinite", infinite),
        _weights("head differs though tied", ConfigError, "tied_mismatch",
                 good | {"lm_head.weight": good["wte.weight"] + 1}, tie_word_embeddings=True),
        BadFolder("weights: no config.json", ConfigError, "config_missing", {"model.safetensors": WEIGHTS}),
        BadFolder("weights: two files", ConfigError, "several_files",
                  {"config.json": tiny.plain_config(), "a.safetensors": WEIGHTS, "b.safetensors": WEIGHTS}),
        _shards("no weight_map", FormatError, "shard_index", {"metadata": {}}),
        _shards("weight_map is a list", FormatError, "shard_index", {"weight_map": []}),
        _shards("index is no object", FormatError, "json_type", "[]"),
        _shards("file name with a slash", FormatError, "shard_name", elsewhere("a/b.safetensors")),
        _shards("file name with a backslash", FormatError, "shard_name", elsewhere("a\\b.safetensors")),
        _shards("parent folder", FormatError, "shard_name", elsewhere("../" + only)),
        _shards("dots", FormatError, "shard_name", elsewhere("..")),
        _shards("absolute", FormatError, "shard_name", elsewhere("/etc/passwd")),
        _shards("file that is not there", FormatError, "shard_missing", elsewhere("b.safetensors")),
        _shards("NUL", FormatError, "shard_name", elsewhere("a\0.safetensors")),
        _shards("hidden", FormatError, "shard_name", elsewhere(".safetensors")),
        _shards("other ending", FormatError, "shard_name", elsewhere("a.pth")),
        _shards("a number", FormatError, "shard_name", {"weight_map": where | {"wte.weight": 1}}),
        _shards("tensor not in its file", FormatError, "shard_mismatch", {"weight_map": where | {"x": only}}),
        _shards("tensor not in the index", FormatError, "shard_mismatch",
                {"weight_map": dict.fromkeys(list(where)[1:], only)}),
        tokens("id too large", ConfigError, "vocab", **{"vocab.json": ids | {"z": 99}}),
        tokens("id twice", ConfigError, "vocab", **{"vocab.json": ids | {"z": 3}}),
        tokens("id is text", ConfigError, "vocab", **{"vocab.json": ids | {"z": "11"}}),
        tokens("negative id", ConfigError, "vocab", **{"vocab.json": ids | {"z": -1}}),
        tokens("duplicate token", FormatError, "duplicate_name", **{"vocab.json": '{"a": 0, "a": 1}'}),
        tokens("merge of three", FormatError, "merges", **{"vocab.json": ids, "merges.txt": "a b c\n"}),
        tokens("merge of unknown", FormatError, "merges", **{"vocab.json": ids,
            "merges.txt": "a \x1b[31m\n"}),
        tokens("merges not UTF-8", FormatError, "merges", **{"vocab.json": ids,
            "merges.txt": b"\xff \xff\n"}),
        tokens("a million merges", LimitError, "tokenizer_limit",
               **{"vocab.json": ids, "merges.txt": "\n" * 1_000_001}),
        tokens("tokenizer.json of something else", FormatError, "tokenizer", **{"tokenizer.json": {"a": 1}}),
        tokens("tokenizer.json cut short", FormatError, "json_syntax",
            **{"tokenizer.json": '{"version": "1.0"'}),
        tokens("added token with a gap", ConfigError, "vocab",
            **{"vocab.json": ids, "added_tokens.json": {"z": 12}}),
        tokens("added token with another's id", ConfigError, "vocab",
            **{"vocab.json": ids, "tokenizer_config.json": added}),
        tokens("id of an added token is text", FormatError, "tokenizer",
            **words, **{"added_tokens.json": {"z": "\x1b[31m"}}),
        tokens("added tokens as a list", FormatError, "tokenizer",
            **words, **{"tokenizer_config.json": {"added_tokens_decoder": ["z"]}}),
        tokens("added token without text", FormatError, "tokenizer",
            **words, **{"tokenizer_config.json": {"added_tokens_decoder": {"11": {"lstrip": True}}}}),
        tokens("flag of an added token is a number", FormatError, "tokenizer",
            **words, **{"special_tokens_map.json": {"bos_token": {"content": "a", "lstrip": 1}}}),
        tokens("special token is a number", FormatError, "tokenizer",
            **words, **{"special_tokens_map.json": {"bos_token": 3}}),
        tokens("special tokens are a text", FormatError, "tokenizer",
            **words, **{"tokenizer_config.json": {"additional_special_tokens": "a"}}),
        tokens("add_prefix_space is a text", FormatError, "tokenizer",
            **{"vocab.json": ids, "tokenizer_config.json": {"add_prefix_space": "yes"}}),
        tokens("BOS token id is a text", ConfigError, "config_type",
            **words, **{"config.json": tiny.plain_config(bos_token_id="a")}),
        tokens("tokenizer_config.json is a list", FormatError, "json_type",
            **words, **{"tokenizer_config.json": "[]"}),
        tokens("vocab.json is a list", FormatError, "json_type", **{"vocab.json": "[]"}),
    ]  # fmt: skip


FOLDERS = [*_configs(), *_folders()]


def write(folder: Path, files: dict[str, object]) -> None:
    """Write a BadFolder's files: bytes and text as they are, everything else as JSON."""
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
