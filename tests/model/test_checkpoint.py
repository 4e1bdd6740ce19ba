"""Good checkpoints in every format load to the same weights, and what is saved is read back."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import safetensors_by_hand
import tiny_checkpoints as tiny
import torch_by_hand

from attnsparse.errors import ConfigError, LimitError, NonFiniteError
from attnsparse.io.limits import Limits
from attnsparse.io.torch_file import TorchFile
from attnsparse.model import load as checkpoint
from attnsparse.model.config import Config
from attnsparse.model.tokenizer import Tokenizer

GELU = {"activation_function": "gelu_new"}  # what a state dict of TransformerLens does not show


def assert_same(model, arrays, config):
    """Every parameter of the model has exactly these values."""
    assert model.config == config
    names = set(config.parameter_shapes())
    assert names <= set(arrays)
    for name in names:
        np.testing.assert_array_equal(np.asarray(model.parameter(name)), arrays[name], err_msg=name)


@pytest.fixture
def arrays():
    return tiny.weights()


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_hugging_face_folder(tmp_path, arrays, prefix):
    folder = tiny.write_folder(tmp_path / "model", tiny.prefixed(arrays, prefix), tiny.plain_config())
    model = checkpoint.load(folder)
    assert_same(model, arrays, tiny.TINY)
    assert model.name == "model"
    assert model.tokenizer is None
    assert_same(checkpoint.load(str(folder / "model.safetensors")), arrays, tiny.TINY)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("target", ["float32", "float64"])
def test_stored_types(tmp_path, arrays, dtype, target):
    if dtype == "bfloat16":
        stored = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in arrays.items()}
        expected = {name: (array.astype(np.uint32) << 16).view(np.float32) for name, array in stored.items()}
        raw = safetensors_by_hand.from_arrays(stored, dict.fromkeys(stored, "BF16"))
    else:
        stored = {name: array.astype(dtype) for name, array in arrays.items()}
        expected = {name: array.astype(target) for name, array in stored.items()}
        raw = safetensors_by_hand.from_arrays(stored)
    tiny.write_folder(tmp_path, arrays, tiny.plain_config())
    (tmp_path / "model.safetensors").write_bytes(raw)
    assert_same(checkpoint.load(tmp_path, dtype=target), expected, tiny.TINY)


def test_large_tensors_are_read_in_blocks(tmp_path, monkeypatch, arrays):
    monkeypatch.setattr("attnsparse.io.tensor_source.BLOCK_BYTES", 50)
    monkeypatch.setattr("attnsparse.io.regular_file.CHUNK_BYTES", 64)
    monkeypatch.setattr("attnsparse.io.torch_file.CHUNK_BYTES", 64)
    folder = tiny.write_folder(tmp_path / "hf", arrays, tiny.plain_config())
    assert_same(checkpoint.load(folder, dtype="float64"), arrays, tiny.TINY)
    (tmp_path / "lens.pth").write_bytes(torch_by_hand.torch_file(tiny.transformer_lens(arrays)))
    expected = arrays | {"lm_head.weight": arrays["wte.weight"]}
    config = dataclasses.replace(tiny.TINY, tied=False)
    assert_same(checkpoint.load(tmp_path / "lens.pth", config=GELU), expected, config)


@pytest.mark.parametrize("kind", ["f4", "u1", "b1"])
def test_buffers_are_ignored(tmp_path, arrays, kind):
    buffers = {}
    for layer in range(2):
        buffers[f"h.{layer}.attn.bias"] = np.ones((1, 1, 6, 6), kind)
        buffers[f"h.{layer}.attn.masked_bias"] = np.array(1, kind)
    tiny.write_folder(tmp_path, arrays, tiny.plain_config())
    (tmp_path / "model.safetensors").write_bytes(safetensors_by_hand.from_arrays(buffers | arrays))
    assert_same(checkpoint.load(tmp_path), arrays, tiny.TINY)


def test_shards(tmp_path, arrays):
    tiny.write_folder(tmp_path, arrays, tiny.plain_config())
    (tmp_path / "model.safetensors").unlink()
    names = list(tiny.prefixed(arrays))
    where = {name: f"model-0000{1 + index % 3}-of-00003.safetensors" for index, name in enumerate(names)}
    for shard in set(where.values()):
        part = {name: array for name, array in tiny.prefixed(arrays).items() if where[name] == shard}
        (tmp_path / shard).write_bytes(safetensors_by_hand.from_arrays(part))
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(checkpoint.load(tmp_path), arrays, tiny.TINY)


def test_torch_folder_and_torch_shards(tmp_path, arrays):
    tiny.write_folder(tmp_path, arrays, tiny.plain_config())
    (tmp_path / "model.safetensors").unlink()
    whole = tiny.prefixed(arrays)
    (tmp_path / "pytorch_model.bin").write_bytes(torch_by_hand.torch_file(whole))
    assert_same(checkpoint.load(tmp_path), arrays, tiny.TINY)
    (tmp_path / "pytorch_model.bin").unlink()
    where = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(whole)}
    for shard in set(where.values()):
        part = {name: array for name, array in whole.items() if where[name] == shard}
        (tmp_path / shard).write_bytes(torch_by_hand.torch_file(part))
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    assert_same(checkpoint.load(tmp_path), arrays, tiny.TINY)


def test_untied_and_repeated_head(tmp_path, arrays):
    head = np.random.default_rng(1).standard_normal((11, 8), np.float32)
    both = arrays | {"lm_head.weight": head}
    untied = dataclasses.replace(tiny.TINY, tied=False)
    folder = tiny.write_folder(tmp_path / "a", both, tiny.plain_config(tie_word_embeddings=False))
    assert_same(checkpoint.load(folder), both, untied)
    folder = tiny.write_folder(
        tmp_path / "b", both, tiny.plain_config()
    )  # the config does not say: the data do
    assert_same(checkpoint.load(folder), both, untied)
    same = arrays | {"lm_head.weight": arrays["wte.weight"].copy()}
    folder = tiny.write_folder(tmp_path / "c", same, tiny.plain_config(tie_word_embeddings=True))
    assert_same(checkpoint.load(folder), arrays, tiny.TINY)
    folder = tiny.write_folder(tmp_path / "d", both, tiny.plain_config(tie_word_embeddings=True))
    with pytest.raises(ConfigError) as caught:
        checkpoint.load(folder)
    assert caught.value.code == "tied_mismatch"


def test_transformer_lens_state_dict_needs_no_config_file(tmp_path, arrays):
    lens = tiny.transformer_lens(arrays)
    (tmp_path / "model.pth").write_bytes(torch_by_hand.torch_file(lens))
    model = checkpoint.load(tmp_path / "model.pth", config=GELU)
    expected = arrays | {"lm_head.weight": arrays["wte.weight"]}
    assert_same(model, expected, dataclasses.replace(tiny.TINY, tied=False))
    assert model.name == "model"
    assert_same(checkpoint.load(tmp_path / "model.pth", gated=True, config=GELU), expected,
                dataclasses.replace(tiny.TINY, tied=False, gated=True))  # fmt: skip


def test_transformer_lens_with_folded_layernorm_and_head_bias(tmp_path, arrays):
    bias = np.arange(11, dtype=np.float32)
    lens = tiny.transformer_lens(arrays | {"lm_head.bias": bias}, folded=True)
    (tmp_path / "model.pth").write_bytes(torch_by_hand.torch_file(lens))
    model = checkpoint.load(tmp_path / "model.pth", config=GELU | {"normalization_type": "LNPre"})
    assert model.config.unembed_bias
    np.testing.assert_array_equal(model.parameter("lm_head.bias"), bias)
    for name in ("h.0.ln_1", "h.1.ln_2", "ln_f"):
        np.testing.assert_array_equal(model.parameter(name + ".weight"), np.ones(8))
        np.testing.assert_array_equal(model.parameter(name + ".bias"), np.zeros(8))
    np.testing.assert_array_equal(model.parameter("h.1.mlp.c_fc.weight"), arrays["h.1.mlp.c_fc.weight"])


PADDED = Config(n_layer=1, n_head=1, d_model=2, d_head=2, d_mlp=8, n_ctx=3, n_vocab=50304, tied=False)
LENS_KEYS = {"d_model": 2, "d_head": 2, "d_vocab": 50304, "d_mlp": 8, "n_layers": 1, "n_ctx": 3,
    "act_fn": "gelu_new",
             "tokenizer_name": "gpt2", "use_sparse_attn": True,
             "auto_map": {"AutoModel": "evil.py"}}  # fmt: skip
GPT2_KEYS = {"n_embd": 2, "n_head": 1, "n_layer": 1, "n_positions": 3, "vocab_size": 50257,
    "model_type": "gpt2",
             "tie_word_embeddings": True}  # fmt: skip


@pytest.mark.parametrize("values", [LENS_KEYS, GPT2_KEYS, GPT2_KEYS | {"vocab_size": 50304}])
def test_sparse_release_folder(tmp_path, values):
    """Both layouts of config.json beside a file ending in final.pth; the vocabulary's padding is cut off."""
    arrays = tiny.weights(PADDED)
    folder = tmp_path / "SparseGPT2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "step_final.pth").write_bytes(torch_by_hand.torch_file(tiny.transformer_lens(arrays, PADDED)))
    expected = {name: a[:50257] if len(a) == 50304 else a for name, a in arrays.items()}
    config = dataclasses.replace(PADDED, n_vocab=50257, gated=True)
    assert_same(checkpoint.load(folder), expected, config)
    assert_same(checkpoint.load(folder / "step_final.pth"), expected, config)
    assert not checkpoint.load(folder, gated=False).config.gated
    if "use_sparse_attn" not in values:
        dense = folder.rename(tmp_path / "DenseGPT2")
        assert not checkpoint.load(dense).config.gated


@pytest.mark.parametrize("prefix", ["transformer.", "_orig_mod.transformer."])
@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt(tmp_path, prefix, bias):
    config = dataclasses.replace(tiny.TINY, d_mlp=32, bias=bias, activation="gelu")
    arrays = tiny.weights(config)
    opcodes, storages = torch_by_hand.state_dict(tiny.nanogpt(arrays, prefix))
    args = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 6, "vocab_size": 11}
    model_args = {name: torch_by_hand.number(value) for name, value in args.items()}
    model_args |= {"bias": b"\x88" if bias else b"\x89", "dropout": b"G" + bytes(8)}
    root = {
        "model": opcodes,
        "model_args": torch_by_hand.plain_dict(model_args),
        "iter_num": torch_by_hand.number(5),
    }
    pickle = torch_by_hand.finished(torch_by_hand.plain_dict(root))
    (tmp_path / "ckpt.pt").write_bytes(torch_by_hand.archive(pickle, storages))
    assert_same(checkpoint.load(tmp_path / "ckpt.pt"), arrays, config)


def test_gate_and_other_conventions_come_from_the_config(tmp_path, arrays):
    more = {"attnsparse_gated": True, "attnsparse_gate_bias": -0.5, "scale_attn_weights": False,
            "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True,
            "layer_norm_epsilon": 1e-6,
            "activation_function": "gelu_pytorch_tanh", "trust_remote_code": True,
            "n_inner": None}  # fmt: skip
    config = dataclasses.replace(tiny.TINY, d_mlp=32, gated=True, gate_bias=-0.5, scale_attn=False,
        ln_eps=1e-6,
                                 scale_by_inverse_layer=True)  # fmt: skip
    arrays = tiny.weights(config)
    assert_same(
        checkpoint.load(tiny.write_folder(tmp_path, arrays, tiny.plain_config(**more))), arrays, config
    )


ODD = [
    tiny.TINY,
    dataclasses.replace(tiny.TINY, gated=True, gate_bias=-1.25),
    dataclasses.replace(tiny.TINY, tied=False, unembed_bias=True),
    dataclasses.replace(tiny.TINY, bias=False, activation="relu", ln_eps=0.001),
    dataclasses.replace(tiny.TINY, n_head=3, d_head=5, scale_attn=False, scale_by_inverse_layer=True),
    dataclasses.replace(tiny.TINY, n_layer=1, n_head=1, d_model=6, d_head=2, d_mlp=1, n_ctx=1, n_vocab=1),
    dataclasses.replace(tiny.TINY, n_layer=1, d_model=2, n_vocab=50304),
]


@pytest.mark.parametrize("config", ODD)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saved_models_load_again(tmp_path, config, dtype):
    arrays = tiny.weights(config)
    first = tiny.write_folder(
        tmp_path / "a", tiny.prefixed(arrays), checkpoint.hugging_face_config(config, None)
    )
    model = checkpoint.load(first, dtype=dtype)
    model.tokenizer = Tokenizer.from_words([f"w{index}" for index in range(config.n_vocab)][:11])
    checkpoint.save(model, tmp_path / "b")
    again = checkpoint.load(tmp_path / "b")
    assert_same(again, arrays, config)
    assert again.tokenizer.to_json() == model.tokenizer.to_json()
    assert sorted(os.listdir(tmp_path / "b")) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_failed_save_leaves_the_old_files(tmp_path, arrays, monkeypatch):
    model = checkpoint.load(tiny.write_folder(tmp_path / "a", arrays, tiny.plain_config()))
    checkpoint.save(model, tmp_path / "b")
    before = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(model, tmp_path / "b")
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == before


def test_saved_file_is_what_the_safetensors_package_reads(tmp_path, arrays):
    folder = tiny.write_folder(tmp_path, tiny.prefixed(arrays), tiny.plain_config())
    for name, array in safetensors.numpy.load_file(folder / "model.safetensors").items():
        np.testing.assert_array_equal(array, tiny.prefixed(arrays)[name])


def test_non_finite_weights(tmp_path, arrays):
    arrays["h.1.attn.c_attn.weight"][3, 17] = np.inf
    arrays["h.1.attn.c_attn.weight"][5, 2] = np.nan
    folder = tiny.write_folder(tmp_path, arrays, tiny.plain_config())
    with pytest.raises(NonFiniteError) as caught:
        checkpoint.load(folder)
    assert (caught.value.code, caught.value.field) == ("nonfinite", "h.1.attn.c_attn.weight")
    assert "has 2 non-finite values, first at [3, 17]; pass allow_nonfinite=True" in str(caught.value)
    assert_same(checkpoint.load(folder, allow_nonfinite=True), arrays, tiny.TINY)
    (tmp_path / "lens.pth").write_bytes(torch_by_hand.torch_file(tiny.transformer_lens(arrays)))
    with pytest.raises(NonFiniteError) as caught:  # column 17 of [q k v] is element 1 of k's head 0... of v's
        checkpoint.load(tmp_path / "lens.pth", config=GELU)
    assert caught.value.field == "blocks.1.attn.W_Q"
    assert "first at [0, 5, 2]" in str(caught.value)


def test_values_that_overflow_float32_are_found(tmp_path, arrays):
    stored = {name: array.astype(np.float64) for name, array in arrays.items()}
    stored["ln_f.bias"][4] = 1e300
    tiny.write_folder(tmp_path, arrays, tiny.plain_config())
    (tmp_path / "model.safetensors").write_bytes(safetensors_by_hand.from_arrays(stored))
    with pytest.raises(NonFiniteError):
        checkpoint.load(tmp_path)
    assert checkpoint.load(tmp_path, dtype="float64").parameter("ln_f.bias")[4] == 1e300


def test_torch_views_and_shared_storage(tmp_path):
    base = np.arange(24, dtype=np.float32)
    h = torch_by_hand
    views = {
        "whole": h.tensor("0", "FloatStorage", 24, 0, (4, 6), (6, 1)),
        "transposed": h.tensor("0", "FloatStorage", 24, 0, (6, 4), (1, 6)),
        "part": h.tensor("0", "FloatStorage", 24, 6, (2, 6), (6, 1)),
        "column": h.tensor("0", "FloatStorage", 24, 2, (4,), (6,)),
        "one": h.tensor("0", "FloatStorage", 24, 23, (), ()),
        "none": h.tensor("0", "FloatStorage", 24, 24, (0, 5), (5, 1)),
    }
    (tmp_path / "x.pth").write_bytes(h.archive(h.finished(h.ordered_dict(views)), {"0": base.tobytes()}))
    grid = base.reshape(4, 6)
    with TorchFile(tmp_path / "x.pth") as file:
        for name, expected in [("whole", grid), ("transposed", grid.T), ("part", grid[1:3]), ("column",
        grid[:, 2]),
                               ("one", np.float32(23)), ("none", np.empty((0, 5)))]:  # fmt: skip
            np.testing.assert_array_equal(file.read(name), expected)
        assert file.same_values("whole", "whole")
        assert not file.same_values("whole", "transposed")
        assert [len(rows) for _, rows in file.blocks("transposed")] == [6]


def test_torch_parameters_metadata_and_prefix(tmp_path):
    """What torch adds around tensors: Parameters, and BUILD with `_metadata` on the state dict."""
    h = torch_by_hand
    inner = h.array_tensor("7", np.ones((2, 3), np.float16))
    hooks = h.name("collections", "OrderedDict") + b")R"
    parameter = h.name("torch._utils", "_rebuild_parameter") + b"(" + inner + b"\x88" + hooks + b"tR"
    pickle = h.ordered_dict({"w": parameter}) + h.plain_dict({"_metadata": h.ordered_dict({})}) + b"b"
    data = np.full((2, 3), 0.5, np.float16).tobytes()
    (tmp_path / "x.pth").write_bytes(h.archive(h.finished(pickle), {"7": data}, prefix="a b"))
    with TorchFile(tmp_path / "x.pth") as file:
        np.testing.assert_array_equal(file.read("w"), np.full((2, 3), 0.5))


def test_what_is_tried_is_listed(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no file or folder 'nothing'; .* called owner/name; models that come with "
    ):
        checkpoint.load("nothing")
    with pytest.raises(FileNotFoundError, match=r"no weights in this folder; looked for model\.safetensors"):
        checkpoint.load(tmp_path)
    with pytest.raises(TypeError):
        checkpoint.load(3)
    with pytest.raises(ValueError, match="dtype must be"):
        checkpoint.load("nothing", dtype="float16")


def test_embedded_models(tmp_path, arrays, monkeypatch):
    monkeypatch.setattr("attnsparse.model.locate.MODELS_FOLDER", tmp_path)
    tiny.write_folder(tmp_path / "demo-x", arrays, tiny.plain_config())
    model = checkpoint.load("demo-x")
    assert model.name == "demo-x"
    assert_same(model, arrays, tiny.TINY)
    with pytest.raises(FileNotFoundError, match="demo-x"):
        checkpoint.load("demo-y")


def test_tokenizer_argument(tmp_path, arrays):
    folder = tiny.write_folder(tmp_path, arrays, tiny.plain_config())
    small = Tokenizer.from_words(["a", " b"])
    assert checkpoint.load(folder, tokenizer=small).tokenizer is small


def test_tokens_without_a_row_do_no_harm_until_they_are_used(tmp_path, arrays):
    """As a padding token that was added without a row for it."""
    folder = tiny.write_folder(tmp_path, arrays, tiny.plain_config())
    words = [f" {letter}" for letter in "abcdefghijklmnopq"]
    Tokenizer.from_words(words).save(folder / "tokenizer.json")
    expected = r"the embedding has 11 rows; tokens that cannot be used: ' l' \(11\), .*' p' \(15\) and 1 more"
    with pytest.warns(UserWarning, match=expected):
        model = checkpoint.load(folder)
    assert model.run(" a k").tokens.tolist() == [0, 10]
    for prompt in (" a m", [0, 12]):
        with pytest.raises(IndexError, match=r"token id 12 at position 1 .* 0\.\.10: .* no row for ' m'"):
            model.run(prompt)
    with pytest.raises(IndexError, match=r"token id 17 at position 0 of the prompt is out of range 0\.\.10$"):
        model.run([17])


def test_a_token_that_only_gpt2_s_class_adds_is_no_cause_for_a_warning(tmp_path, arrays):
    folder = tiny.write_folder(tmp_path, arrays, tiny.plain_config())
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate("abcdefghijk")}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    model = checkpoint.load(folder)
    assert model.run("abk").tokens.tolist() == [0, 1, 10]
    with pytest.raises(IndexError, match=r"token id 11 .*: the embedding has no row for '<\|endoftext\|>'"):
        model.run("ab", prepend_bos=True)


def test_the_bos_token_comes_back(tmp_path, arrays):
    words = [f"w{index}" for index in range(9)]
    for bos in ("<s>", "<|endoftext|>", None):
        tokenizer = Tokenizer.from_words([*words, "<|endoftext|>", "<s>"], bos=bos)
        model = checkpoint.load(tiny.write_folder(tmp_path / "a", arrays, tiny.plain_config()))
        model.tokenizer = tokenizer
        model.save(tmp_path / "b")
        again = checkpoint.load(tmp_path / "b").tokenizer
        assert again.bos_id == tokenizer.bos_id
        assert json.loads((tmp_path / "b" / "config.json").read_text())["bos_token_id"] == tokenizer.bos_id


def test_limits_are_named_and_can_be_raised(tmp_path, arrays):
    folder = tiny.write_folder(tmp_path, arrays, tiny.plain_config())
    with pytest.raises(LimitError, match="above max_weight_bytes=1,000; pass limits=Limits") as caught:
        checkpoint.load(folder, limits=Limits(max_weight_bytes=1000))
    assert caught.value.code == "weight_limit"
    assert_same(checkpoint.load(folder, limits=Limits(max_weight_bytes=2**40)), arrays, tiny.TINY)
    with pytest.raises(ValueError, match=r"max_header_bytes must be in 1..100,000,000"):
        Limits(max_header_bytes=2**30)
    with pytest.raises(TypeError):
        Limits(max_rank=2.0)
    with pytest.raises(ValueError, match="max_rank must be at least 1"):
        Limits(max_rank=0)


def test_config_round_trip():
    for config in ODD:
        assert Config.from_dict(config.to_dict()) == config
        assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(tiny.TINY.to_dict() | {"n_layers": 2})
    assert caught.value.code == "config_value"
    with pytest.raises(ConfigError):
        Config.from_dict({"n_layer": 2})


LOAD_AND_MEASURE = """
import sys
import numpy as np
from peak_memory import peak_bytes
from attnsparse.model import load as checkpoint
import attnsparse.model.model
before = peak_bytes()
model = checkpoint.load(sys.argv[1], config={"activation_function": "gelu_new"})
peak = peak_bytes() - before
print(peak, 4 * model.config.n_parameters())
"""


@pytest.mark.parametrize("layout", ["safetensors", "transformer_lens"])
def test_peak_memory(tmp_path, layout):
    """At most 1.1 x the weights + 64 MiB while loading, with a largest tensor of 80 MB."""
    config = dataclasses.replace(tiny.TINY, d_model=400, d_head=200, n_vocab=50_000, n_layer=1, d_mlp=400)
    arrays = tiny.weights(config)
    if layout == "safetensors":
        tiny.write_folder(tmp_path, arrays, tiny.plain_config(config))
    else:
        (tmp_path / "x.pth").write_bytes(torch_by_hand.torch_file(tiny.transformer_lens(arrays, config)))
    del arrays
    done = subprocess.run([sys.executable, "-c", LOAD_AND_MEASURE, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak, size = map(int, done.stdout.split())
    print(f"peak {peak / 2**20:.0f} MiB for weights of {size / 2**20:.0f} MiB")
    assert peak <= 1.1 * size + 64 * 2**20
