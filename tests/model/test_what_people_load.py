"""What people try to load: what trainers and other tools write, and what is no GPT-2 checkpoint at all.

Good things load to the right weights (and say what they leave out); each of the others is one row: the thing,
how it is made, the exception and its code, and words of the way out.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors_by_hand
import tiny_checkpoints as tiny
import torch_by_hand as h
from foreign_things import ARRAYS, HEAD, LOST, ROWS

import attnsparse
from attnsparse.errors import ConfigError, FormatError
from attnsparse.model import load as checkpoint

GELU = {"activation_function": "gelu_new"}


def assert_same(model, arrays=ARRAYS):
    for name in model.config.parameter_shapes():
        np.testing.assert_array_equal(np.asarray(model.parameter(name)), arrays[name], err_msg=name)


def folder(path: Path, arrays=ARRAYS, **config: object) -> Path:
    return tiny.write_folder(path, arrays, tiny.plain_config(**config))


def torch_folder(path: Path, opcodes: bytes, storages: dict[str, bytes]) -> Path:
    """config.json and a pytorch_model.bin with this pickle."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(tiny.plain_config()))
    (path / "pytorch_model.bin").write_bytes(h.archive(h.finished(opcodes), storages))
    return path


# ------------------------------------------------------------------ tensors that no logit needs, and others

NEEDLESS = [
    "v_head.summary.weight", "value_head.bias", "score.weight", "classifier.0.weight", "qa_outputs.weight",
    "multiple_choice_head.summary.weight", "reward_head.weight", "critic.weight",
    "classification_head.weight",
    "train_loss.total", "val_acc.correct", "criterion.weight", "best_val_loss", "rng_state", "iter_num",
    "optimizer.state.exp_avg",
]  # fmt: skip
CHANGING = [
    "h.0.attn.q_norm.weight", "h.0.attn.c_attn.lora_A.weight", "h.1.adapter.down.weight", "h.0.ln_3.weight",
    "h.0.attn.rotary.inv_freq", "h.2.ln_1.weight", "h.0.attn.bias", "h.0.value_head.weight", "h.0.loss",
    "h.0.attn.masked_bias", "wte.lora_A", "lm_head.lora_B.weight", "lm_head_scale", "rotary.inv_freq",
    "prompt_encoder.weight", "prefix.weight", "adapter.weight", "ln_emb.weight", "wtt.weight", "wpe2.weight",
    "logit_scale", "head_norm.weight", "score_gate", "embed_scale", "unknown",
]  # fmt: skip


@pytest.mark.parametrize("name", NEEDLESS)
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_what_no_logit_needs_is_left_out_with_a_warning(tmp_path, name, prefix):
    where = folder(tmp_path / "m", tiny.prefixed(ARRAYS, prefix) | {name: HEAD})
    with pytest.warns(UserWarning, match="left out, because no logit needs it") as said:
        assert_same(checkpoint.load(where))
    assert len(said) == 1
    assert name in str(said[0].message)
    assert said[0].filename == __file__
    with pytest.raises(ConfigError) as caught:
        checkpoint.load(where, strict=True)
    assert (caught.value.code, caught.value.field) == ("unexpected_tensor", name)


def test_the_warning_names_a_few_and_counts_the_rest(tmp_path):
    many = {f"score.{index}.weight": HEAD for index in range(7)}
    with pytest.warns(UserWarning, match=r"'score\.3\.weight' and 3 more$"):
        checkpoint.load(folder(tmp_path, ARRAYS | many))
    folder(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.load(tmp_path, strict=True)


@pytest.mark.parametrize("name", CHANGING)
def test_what_may_change_logits_is_refused(tmp_path, name):
    """Inside a block, under a name of the model, or unknown: leaving it out would be a wrong answer."""
    where = folder(tmp_path / "m", tiny.prefixed(ARRAYS) | {f"transformer.{name}": HEAD})
    with pytest.raises(ConfigError) as caught:
        checkpoint.load(where)
    assert caught.value.code in ("unexpected_tensor", "missing_tensor")
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["head.weight", "score.weight"])
def test_a_head_with_a_row_for_every_token_may_be_the_unembedding(tmp_path, name):
    where = folder(tmp_path / "m", ARRAYS | {name: np.ones((11, 8), np.float32)})
    with pytest.raises(ConfigError, match="may change what the model computes"):
        checkpoint.load(where)


def test_only_masks_are_taken_for_masks(tmp_path):
    for shape in ((1, 1, 6, 6), (6, 6)):
        assert_same(checkpoint.load(folder(tmp_path, ARRAYS | {"h.0.attn.bias": np.ones(shape, "f4")})))
    for shape in ((1, 2, 6, 6), (8,), (24,), (6, 5)):  # of several heads, of a linear map, of two sides
        with pytest.raises(ConfigError, match="has no place"):
            checkpoint.load(folder(tmp_path, ARRAYS | {"h.0.attn.bias": np.ones(shape, "f4")}))


# ------------------------------------------------------------------------------------ prefixes and wrappers

PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.transformer.", "_orig_mod.module.model.", "model.",
            "_fsdp_wrapped_module.transformer.", "net.transformer.", "model.gpt.transformer.",
            "pretrained_model.", "base_model.transformer.", "_forward_module.model.transformer."]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_trainers(tmp_path, prefix):
    assert_same(checkpoint.load(folder(tmp_path, tiny.prefixed(ARRAYS, prefix))))


@pytest.mark.parametrize(
    "part", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"]
)
def test_wrappers_inside_of_names(tmp_path, part):
    inside = {name.replace(".attn.", f".{part}.attn.").replace(".0.", f".0.{part}."): array
              for name, array in tiny.prefixed(ARRAYS).items()}  # fmt: skip
    assert_same(checkpoint.load(folder(tmp_path, inside)))


@pytest.mark.parametrize("keys", [
    ("model",), ("state_dict",), ("model_state_dict",), ("module",), ("net",), ("model", "state_dict"),
    ("state_dict", "model"), ("module", "model", "state_dict")])  # fmt: skip
def test_dicts_of_trainers(tmp_path, keys):
    opcodes, storages = h.state_dict(tiny.prefixed(ARRAYS))
    for key in reversed(keys):
        opcodes = h.plain_dict({"epoch": h.number(3), key: opcodes, "args": h.plain_dict({})})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(checkpoint.load(torch_folder(tmp_path, opcodes, storages)))


def test_a_checkpoint_of_lightning(tmp_path):
    """The weights under state_dict, called model.; what else a Trainer keeps lies beside."""
    opcodes, storages = h.state_dict(tiny.prefixed(ARRAYS, "model.transformer."))
    rest = {"epoch": h.number(3), "global_step": h.number(9), "pytorch-lightning_version": h.text("2.5"),
            "loops": h.plain_dict({}), "callbacks": h.plain_dict({}), "optimizer_states": b"]"}  # fmt: skip
    pickle = h.finished(h.plain_dict(rest | {"state_dict": opcodes}))
    (tmp_path / "config.json").write_text(json.dumps(tiny.plain_config()))
    (tmp_path / "epoch=3.ckpt").write_bytes(h.archive(pickle, storages))
    assert_same(checkpoint.load(tmp_path / "epoch=3.ckpt"))


def test_tensors_beside_the_weights_of_one_shard_are_named(tmp_path):
    opcodes, storages = h.state_dict(ARRAYS)
    other = h.tensor("0", "FloatStorage", 88, 0, (), ())
    torch_folder(tmp_path, h.plain_dict({"model": opcodes, "rng": other}), storages)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "a.bin")
    index = {"weight_map": dict.fromkeys(ARRAYS, "a.bin")}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.warns(UserWarning, match="needs it: 'rng'$"):
        assert_same(checkpoint.load(tmp_path))


def test_tensors_beside_the_state_dict_are_named(tmp_path):
    opcodes, storages = h.state_dict(ARRAYS)
    other = h.tensor("0", "FloatStorage", 88, 0, (), ())
    moments = h.plain_dict({"state": b"}" + h.number(0) + h.plain_dict({"exp_avg": other}) + b"s"})
    root = {"model": opcodes, "optimizer": moments, "best_val_loss": other, "iter_num": h.number(5)}
    where = torch_folder(tmp_path, h.plain_dict(root), storages)
    with pytest.warns(UserWarning, match="needs it: 'optimizer', 'best_val_loss'$"):
        assert_same(checkpoint.load(where))
    with pytest.raises(ConfigError, match="strict=True"):
        checkpoint.load(where, strict=True)


@pytest.mark.parametrize("kept", ["wte.weight", "lm_head.weight"])
def test_tied_weights_may_be_stored_under_either_name(tmp_path, kept):
    table = ARRAYS["wte.weight"]
    rest = {name: array for name, array in ARRAYS.items() if name != "wte.weight"}
    assert_same(checkpoint.load(folder(tmp_path, rest | {kept: table})))
    with pytest.raises(ConfigError) as caught:
        checkpoint.load(folder(tmp_path, rest | {kept: table}, tie_word_embeddings=False))
    assert caught.value.code == "missing_tensor"


def test_names_that_safetensors_dropped_are_in_its_metadata(tmp_path):
    """save_model keeps one name of tensors that are shared, here two LayerNorms too."""
    arrays = ARRAYS | {"h.1.ln_2.weight": ARRAYS["h.0.ln_1.weight"], "lm_head.weight": ARRAYS["wte.weight"]}
    stored = {name: a for name, a in arrays.items() if name not in ("h.1.ln_2.weight", "wte.weight")}
    folder(tmp_path, tie_word_embeddings=False)
    raw = safetensors_by_hand.from_arrays(stored)
    n_header = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + n_header])
    header["__metadata__"] = {
        "format": "pt",
        "h.1.ln_2.weight": "h.0.ln_1.weight",
        "wte.weight": "lm_head.weight",
    }
    (tmp_path / "model.safetensors").write_bytes(safetensors_by_hand.file_bytes(header, raw[8 + n_header :]))
    assert_same(checkpoint.load(tmp_path), arrays)


# ----------------------------------------------------------------------------------- what a config says

LEFT_AT_ITS_DEFAULT = [{"n_ctx": 1024}, {"d_vocab": 50_304}, {"d_mlp": 3072}, {"hidden_size": 768},
                       {"num_hidden_layers": 12}]  # fmt: skip


@pytest.mark.parametrize("key", LEFT_AT_ITS_DEFAULT, ids=lambda keys: next(iter(keys)))
def test_a_second_name_that_the_weights_disprove_is_idle(tmp_path, key):
    assert_same(checkpoint.load(folder(tmp_path, **key)))


def test_n_ctx_alone_is_not_read_from_a_config_of_transformers(tmp_path):
    where = folder(tmp_path, n_ctx=512)
    config = tiny.plain_config(n_ctx=512)
    del config["n_positions"]
    (where / "config.json").write_text(json.dumps(config))
    assert checkpoint.load(where).config.n_ctx == 6


@pytest.mark.parametrize(("first", "second"), [({"n_positions": 7}, {"n_ctx": 6}),
    ({"n_head": 2}, {"num_attention_heads": 4}), ({"activation_function": "relu"}, {"act_fn": "gelu"}),
    ({"layer_norm_epsilon": 1e-5}, {"eps": 1e-6})])  # fmt: skip
def test_a_contradiction_that_matters_names_both_keys(tmp_path, first, second):
    with pytest.raises(ConfigError) as caught:
        checkpoint.load(folder(tmp_path, **first, **second))
    assert caught.value.code == "config_value"
    for key in (*first, *second):
        assert key in str(caught.value)


def test_what_neither_weights_nor_config_show_is_asked_for(tmp_path):
    """Never guessed: the activation, the number of heads, and LayerNorms that have no weights."""
    lens = tiny.transformer_lens(ARRAYS)
    folded = tiny.transformer_lens(ARRAYS, folded=True)
    (tmp_path / "toy.pth").write_bytes(h.torch_file(lens))
    (tmp_path / "folded.pth").write_bytes(h.torch_file(folded))
    (tmp_path / "plain.pth").write_bytes(h.torch_file(ARRAYS))
    for name, asked in [("toy", ["activation_function"]),
                        ("folded", ["activation_function", "normalization_type"]),
                        ("plain", ["n_head", "activation_function"])]:  # fmt: skip
        with pytest.raises(ConfigError, match=r"pass config=\{") as caught:
            checkpoint.load(tmp_path / f"{name}.pth")
        assert caught.value.code == "config_missing"
        assert all(key in str(caught.value) for key in asked)
    model = checkpoint.load(tmp_path / "toy.pth", config={"act_fn": "relu", "eps": 1e-6})
    assert (model.config.activation, model.config.ln_eps) == ("relu", 1e-6)
    assert checkpoint.load(tmp_path / "plain.pth", config=GELU | {"n_head": 4}).config.n_head == 4
    for kind in (None, "RMS", "RMSPre", "LN"):
        with pytest.raises(ConfigError, match="normalization_type") as caught:
            checkpoint.load(tmp_path / "folded.pth", config=GELU | {"normalization_type": kind})
        assert caught.value.code == "config_value"
    (tmp_path / "config.json").write_text(json.dumps({"d_model": 8, "n_layers": 2}))
    with pytest.raises(ConfigError, match=r"config\.json does not say activation_function"):
        checkpoint.load(tmp_path / "toy.pth")


def test_config_goes_before_the_file(tmp_path):
    where = folder(tmp_path)
    config = checkpoint.load(where, config={"layer_norm_epsilon": 1e-3, "n_head": 4}).config
    assert (config.ln_eps, config.n_head) == (1e-3, 4)
    with pytest.raises(TypeError, match="config must be a dict"):
        checkpoint.load(where, config="config.json")
    with pytest.raises(ConfigError, match="n_head"):
        checkpoint.load(where, config={"n_head": 0})


@pytest.mark.parametrize(
    "key", ["use_qk_norm", "num_experts", "attn_scores_soft_cap", "output_logits_soft_cap"]
)
def test_what_our_forward_pass_does_not_do_is_refused(tmp_path, key):
    with pytest.raises(ConfigError) as caught:
        checkpoint.load(folder(tmp_path, **{key: True}))
    assert (caught.value.code, caught.value.field) == ("config_value", key)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    where = folder(tmp_path)
    text = (where / "config.json").read_text()
    (where / "config.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert_same(checkpoint.load(where))
    (where / "config.json").write_bytes(text.encode("utf-16"))
    with pytest.raises(FormatError, match="UTF-16"):
        checkpoint.load(where)


# ------------------------------------------------------------------------------- TransformerLens's bridge


def bridge(arrays, *, linear: bool, folded: bool = False):
    """The state dict of a TransformerBridge: of boot_native if `linear`, else of Hugging Face's GPT-2."""
    result = {"embed.weight": arrays["wte.weight"], "pos_embed.weight": arrays["wpe.weight"]}
    for layer in range(2):
        at, own = f"blocks.{layer}.", f"h.{layer}."
        for index, letter in enumerate("qkv"):
            columns = slice(8 * index, 8 * index + 8)
            result[f"{at}attn.{letter}.weight"] = arrays[own + "attn.c_attn.weight"][:, columns].T
            result[f"{at}attn.{letter}.bias"] = arrays[own + "attn.c_attn.bias"][columns]
        for theirs, ours in (("attn.o", "attn.c_proj"), ("mlp.in", "mlp.c_fc"), ("mlp.out", "mlp.c_proj")):
            weight = arrays[f"{own}{ours}.weight"]
            result[f"{at}{theirs}.weight"] = weight.T if linear else weight
            result[f"{at}{theirs}.bias"] = arrays[f"{own}{ours}.bias"]
    norms = {f"blocks.{layer}.ln{n}": f"h.{layer}.ln_{n}" for layer in range(2) for n in (1, 2)}
    for theirs, ours in (norms | {"ln_final": "ln_f"}).items() if not folded else ():
        result[theirs + ".weight"], result[theirs + ".bias"] = (
            arrays[ours + ".weight"],
            arrays[ours + ".bias"],
        )
    return result | {"unembed.weight": arrays["lm_head.weight"], "unembed.bias": np.zeros(11, np.float32)}


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("folded", [True, False])
def test_state_dicts_of_transformer_bridge(tmp_path, linear, folded):
    config = dataclasses.replace(tiny.TINY, tied=False)
    arrays = tiny.weights(config)
    (tmp_path / "b.pth").write_bytes(h.torch_file(bridge(arrays, linear=linear, folded=folded)))
    said = {"n_heads": 2, "act_fn": "gelu_new", "normalization_type": "LNPre" if folded else "LN"}
    model = checkpoint.load(tmp_path / "b.pth", config=said)
    assert model.config == config
    if folded:
        arrays |= {name: np.full(8, float(name.endswith("weight")), "f4") for name in arrays if "ln_" in name}
    assert_same(model, arrays)
    with pytest.raises(ConfigError, match="n_head"):
        checkpoint.load(tmp_path / "b.pth", config={"act_fn": "gelu_new"})


def test_a_bridge_with_square_maps_asks_how_they_are_stored(tmp_path):
    config = dataclasses.replace(tiny.TINY, tied=False, d_mlp=8)
    arrays = tiny.weights(config)
    (tmp_path / "b.pth").write_bytes(h.torch_file(bridge(arrays, linear=True)))
    said = {"n_heads": 2, "act_fn": "gelu_new"}
    with pytest.raises(ConfigError, match="architecture") as caught:
        checkpoint.load(tmp_path / "b.pth", config=said)
    assert caught.value.code == "config_missing"
    assert_same(
        checkpoint.load(tmp_path / "b.pth", config=said | {"architecture": "TransformerLensNative"}), arrays
    )


# -------------------------------------------------------------------------------------- names and places


@pytest.mark.parametrize(("name", "repository"), [
    ("gpt2", "openai-community/gpt2"), ("gpt2-xl", "openai-community/gpt2-xl"),
    ("distilgpt2", "distilbert/distilgpt2")])  # fmt: skip
def test_short_names_stand_for_repositories(tmp_path, monkeypatch, name, repository):
    pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    where = folder(tmp_path / "fetched")
    fetched = []
    monkeypatch.setattr(
        "attnsparse.model.hub.fetch", lambda repository, _: fetched.append(repository) or where
    )
    assert checkpoint.load(name).name == repository
    assert fetched == [repository]
    (tmp_path / "fetched").rename(tmp_path / name)  # a folder of that name goes before
    assert checkpoint.load(name).name == name
    assert fetched == [repository]


def test_a_short_name_that_is_not_had_tells_the_long_one(monkeypatch):
    from attnsparse.model import hub

    def missing(*_):
        raise hub.NotOnHub("out of reach")

    monkeypatch.setattr(hub, "fetch", missing)
    with pytest.raises(FileNotFoundError, match=r"\(as 'openai-community/gpt2-medium'\): out of reach"):
        checkpoint.load("gpt2-medium")


def test_tokenizers_by_name(tmp_path, monkeypatch):
    from attnsparse.model import hub

    monkeypatch.chdir(tmp_path)
    words = attnsparse.Tokenizer.from_words(["a", " b"])
    (tmp_path / "fetched").mkdir()
    words.save(tmp_path / "fetched" / "tokenizer.json")
    asked = []
    monkeypatch.setattr(hub, "fetch_tokenizer", lambda name: asked.append(name) or tmp_path / "fetched")
    for name, repository in (("gpt2", "openai-community/gpt2"), ("some/model", "some/model")):
        assert attnsparse.Tokenizer.load(name).encode("a b") == [0, 1]
        assert asked.pop() == repository
    model = checkpoint.load(folder(tmp_path / "mine"), tokenizer="gpt2")
    assert model.to_single_token(" b") == 1
    assert asked.pop() == "openai-community/gpt2"
    words.save("gpt2")  # a file of that name goes before
    assert attnsparse.Tokenizer.load("gpt2").encode("a b") == [0, 1]
    assert attnsparse.Tokenizer.load("demo-dense").n_vocab == attnsparse.load("demo-dense").tokenizer.n_vocab
    assert asked == []


def test_a_tokenizer_that_is_not_had_says_what_to_give(tmp_path, monkeypatch):
    from attnsparse.model import hub

    def missing(_):
        raise hub.NotOnHub("out of reach")

    monkeypatch.chdir(tmp_path)
    what_to_give = r"give a folder with vocab\.json and merges\.txt, or a tokenizer\.json$"
    monkeypatch.setattr(hub, "fetch_tokenizer", missing)
    with pytest.raises(
        FileNotFoundError, match=rf"\(as 'openai-community/gpt2'\): out of reach; {what_to_give}"
    ):
        attnsparse.Tokenizer.load("gpt2")
    monkeypatch.setattr(hub, "fetch_tokenizer", lambda _: tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"hub: its folder there holds no tokenizer; {what_to_give}"):
        attnsparse.Tokenizer.load("some/model")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        attnsparse.Tokenizer.load("nowhere")


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    folder(tmp_path / "models" / "mine")
    for path in ("~/models/mine", Path("~/models/mine"), "~/models/mine/model.safetensors"):
        model = checkpoint.load(path)
        assert_same(model)
    model.save("~/saved")
    assert_same(checkpoint.load(tmp_path / "saved"))
    attnsparse.Tokenizer.from_words(["a"]).save("~/saved/tokenizer.json")
    assert attnsparse.Tokenizer.is_in("~/saved")
    assert attnsparse.Tokenizer.load("~/saved").encode("a") == [0]


def test_files_of_trainers_beside_the_weights_are_passed_over(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny.plain_config()))
    (tmp_path / "weights.pt").write_bytes(h.torch_file(ARRAYS))
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth", "rng_state_0.pth"):
        (tmp_path / name).write_bytes(b"not weights")
    assert_same(checkpoint.load(tmp_path))


# ----------------------------------------------------------------------------- what is no GPT-2 checkpoint


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.thing)
def test_a_message_leads_out(tmp_path, row):
    for name, content in row.files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(row.error) as caught:
        attnsparse.load(tmp_path / row.name if row.name else tmp_path)
    message = str(caught.value)
    assert type(caught.value) is row.error
    assert getattr(caught.value, "code", None) == row.code
    assert row.words in message
    assert row.error is LOST or (len(message) <= 300 and not message.endswith("...")), message


@pytest.mark.parametrize(
    "kind", ["gpt_neox", "llama", "gptj", "opt", "bert", "gpt_neo", "mistral", "openai-gpt"]
)
def test_a_config_of_another_model_type(tmp_path, kind):
    with pytest.raises(ConfigError, match=r'asp\.load\("openai-community/gpt2"\)') as caught:
        checkpoint.load(folder(tmp_path, model_type=kind))
    assert (caught.value.code, caught.value.field) == ("config_value", "model_type")


def test_a_directory_of_holes_is_refused_before_it_is_read(tmp_path):
    """An archive whose directory claims 3 GiB for one entry."""
    size = 3 * 2**30
    path = tmp_path / "x.pth"
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(size)
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, size, 0, 0))
    with pytest.raises(FormatError, match="bytes for 1 entries") as caught:
        checkpoint.load(path)
    assert caught.value.code == "zip_structure"
    assert os.path.getsize(path) > size
    assert zipfile.is_zipfile(path)
