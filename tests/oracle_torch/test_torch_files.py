"""Files written by torch.save and transformers themselves: read without torch, equal to what torch reads."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import tiny_checkpoints as tiny  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from attnsparse.errors import FormatError, UnsafeFileError  # noqa: E402
from attnsparse.io.torch_file import TorchFile  # noqa: E402
from attnsparse.model import load as checkpoint  # noqa: E402


def assert_read_alike(path, state):
    with TorchFile(path) as file:
        assert list(file.tensors) == list(state)
        for name, tensor in state.items():
            assert file.tensors[name].shape == tuple(tensor.shape)
            if tensor.is_floating_point():
                np.testing.assert_array_equal(file.read(name, "float64"), tensor.detach().double().numpy())


def test_types_views_and_parameters(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    state = OrderedDict(
        whole=base, transposed=base.t(), rows=base[1:3], column=base[:, 2], scalar=torch.tensor(3.5),
        empty=torch.zeros(0, 3), half=torch.randn(5).half(), brain=torch.randn(2, 3).bfloat16(),
        double=torch.randn(4, dtype=torch.float64), mask=torch.tril(torch.ones(4, 4)).bool(),
        count=torch.tensor([2**40, -1]), parameter=torch.nn.Parameter(torch.randn(2, 2)),
        permuted=torch.randn(2, 3, 4).permute(2, 0, 1),
    )  # fmt: skip
    torch.save(state, tmp_path / "x.pth")
    assert_read_alike(tmp_path / "x.pth", state)
    torch.save({"state_dict": state, "epoch": 3, "loss": 0.5, "notes": ["a", None, True]}, tmp_path / "y.pth")
    assert_read_alike(tmp_path / "y.pth", state)


def test_module_state_dict_and_optimizer(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    torch.save(module.state_dict(), tmp_path / "x.pth")
    assert_read_alike(tmp_path / "x.pth", module.state_dict())
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    whole = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "model_args": {"n_layer": 1}}
    torch.save(whole, tmp_path / "y.pth")
    assert_read_alike(tmp_path / "y.pth", module.state_dict())
    with TorchFile(tmp_path / "y.pth") as file:
        assert file.config == {"n_layer": 1}


def test_what_is_not_data_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    torch.save(torch.nn.Linear(3, 2), path)
    with pytest.raises(UnsafeFileError) as caught:
        TorchFile(path)
    assert caught.value.code == "global"
    torch.save({"a": torch.ones(2)}, path, pickle_protocol=4)
    with pytest.raises(UnsafeFileError) as caught:
        TorchFile(path)
    assert caught.value.code == "opcode"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(FormatError) as caught:
        TorchFile(path)
    assert caught.value.code == "magic"
    torch.save({"a": torch.ones(2).expand(3, 2)}, path)
    with pytest.raises(FormatError) as caught:
        TorchFile(path)
    assert caught.value.code == "bad_view"


def test_damage_anywhere_is_found(tmp_path):
    """Every single byte of a file: changed, the file is refused or means the same."""
    path = tmp_path / "x.pth"
    torch.save({"a": torch.arange(6.0), "b": torch.ones(2).half()}, path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    ignored = 0
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            with TorchFile(path) as file:
                np.testing.assert_array_equal(file.read("a"), np.arange(6))
                np.testing.assert_array_equal(file.read("b"), np.ones(2))
            ignored += 1  # padding, dates, version numbers
        except FormatError:
            pass
    assert ignored < len(whole) / 2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_agreement_with_torch_load(tmp_path_factory, data):
    """Generated views of shared storages: torch.load(weights_only=True) sees the same numbers."""
    path = tmp_path_factory.mktemp("generated") / "x.pth"
    state = {}
    for index in range(data.draw(st.integers(1, 4))):
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
        dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]))
        tensor = torch.randn(shape).to(dtype)
        if tensor.dim() > 1 and data.draw(st.booleans()):
            tensor = tensor.transpose(0, 1)
        if tensor.dim() and tensor.shape[0] and data.draw(st.booleans()):
            tensor = tensor[data.draw(st.integers(0, tensor.shape[0] - 1)) :]
        state[f"t{index}"] = tensor
    torch.save(state, path)
    theirs = torch.load(path, weights_only=True)
    assert_read_alike(path, theirs)


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_what_we_save(tmp_path, tied):
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(tiny.TINY, tied=tied)
    arrays = tiny.weights(config)
    folder = tiny.write_folder(
        tmp_path / "a", tiny.prefixed(arrays), checkpoint.hugging_face_config(config, None)
    )
    checkpoint.save(checkpoint.load(folder), tmp_path / "b")
    model, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(report.values()), report
    for name, array in tiny.prefixed(arrays).items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), array)
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied


@pytest.mark.parametrize("how", ["whole", "shards", "half"])
def test_we_read_what_transformers_saves(tmp_path, how):
    transformers = pytest.importorskip("transformers")
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 6, "vocab_size": 11, "n_inner": 12}
    config = transformers.GPT2Config(**shape, bos_token_id=None, eos_token_id=None)
    model = transformers.GPT2LMHeadModel(config)
    if how == "half":
        model = model.half()
    model.save_pretrained(tmp_path, max_shard_size="2kB" if how == "shards" else "1GB")
    assert (tmp_path / "model.safetensors").exists() == (how != "shards")
    ours = checkpoint.load(tmp_path)
    assert ours.config == tiny.TINY
    for name in ours.config.parameter_shapes():
        theirs = model.state_dict()["transformer." + name].float().numpy()
        np.testing.assert_array_equal(ours.parameter(name), theirs)


def test_the_negative_bit_is_applied(tmp_path):
    """A tensor with the bit is stored as values of the other sign: of every type, strided, whole, or one."""
    base = torch.arange(-6.0, 6).reshape(3, 4)
    state = {str(dtype): torch._neg_view(base.to(dtype)) for dtype in
             (torch.float64, torch.float32, torch.float16, torch.bfloat16)}  # fmt: skip
    state |= {"strided": torch._neg_view(base.t()[1:]), "one": torch._neg_view(torch.tensor(2.5)),
              "imag": torch.complex(base, base + 1).conj().imag,
              "twice": torch._neg_view(torch._neg_view(base)), "none": torch._neg_view(base[:0])}  # fmt: skip
    torch.save(state, tmp_path / "x.pth")
    with TorchFile(tmp_path / "x.pth") as file:
        for name, tensor in state.items():
            expected = tensor.double().resolve_neg().numpy()
            np.testing.assert_array_equal(file.read(name, "float64"), expected)
            if tensor.dim():
                rows = [block for _, block in file.blocks(name)]
                np.testing.assert_array_equal(
                    np.concatenate([np.empty((0, *expected.shape[1:])), *rows]), expected
                )
        assert not file.same_values("torch.float32", "twice")
        picked = np.empty((2, 4), np.float32)
        file.read_rows("torch.bfloat16", np.array([2, 0]), picked)
        np.testing.assert_array_equal(picked, -base.numpy()[[2, 0]])


def test_a_model_with_the_negative_bit_loads_right(tmp_path):
    arrays = tiny.weights()
    negative = {name: torch._neg_view(-torch.from_numpy(array)) for name, array in arrays.items()}
    tiny.write_folder(tmp_path, {}, tiny.plain_config())
    (tmp_path / "model.safetensors").unlink()
    torch.save(negative, tmp_path / "pytorch_model.bin")
    model = checkpoint.load(tmp_path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(model.parameter(name), array)


@pytest.mark.filterwarnings(
    "ignore"
)  # torch warns about typed storages, and that complex layouts are in beta
@pytest.mark.parametrize(("kind", "make"), [
    ("C64", lambda x: torch.complex(x, x).conj()), ("F8_E4M3", lambda x: x.to(torch.float8_e4m3fn)),
    ("U16", lambda x: x.to(torch.uint16)), ("BOOL", lambda x: x > 1)])  # fmt: skip
def test_types_that_no_weight_has(tmp_path, kind, make):
    """They may lie in the file; one that is a weight is refused with what to do."""
    torch.save({"a": make(torch.arange(6.0)), "b": torch.ones(2)}, tmp_path / "x.pth")
    with TorchFile(tmp_path / "x.pth") as file:
        assert file.tensors["a"] == ((6,), kind)
        np.testing.assert_array_equal(file.read("b"), [1, 1])
        with pytest.raises(FormatError, match=f"has dtype {kind}.*; ") as caught:
            file.read("a")
        assert caught.value.code == "dtype"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [
    lambda x: x.to_sparse(), lambda x: x.to_sparse_csr(), lambda x: torch.nested.nested_tensor([x, x]),
    lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), lambda x: x.to("meta")])  # fmt: skip
def test_tensors_that_are_no_views_of_a_storage(tmp_path, make):
    torch.save({"a": make(torch.ones(2, 3)), "b": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(FormatError, match="'a' is a ") as caught:
        TorchFile(tmp_path / "x.pth")
    assert caught.value.code == "dtype"
    torch.save({"model": {"b": torch.ones(2)}, "other": make(torch.ones(2, 3))}, tmp_path / "x.pth")
    with TorchFile(tmp_path / "x.pth") as file:
        assert (list(file.tensors), file.left_out) == (["b"], ("other",))


def test_attributes_of_tensors_change_nothing(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.initialized = True
    tensor = torch.zeros(3)
    tensor.note = [1, 2]
    state = {"parameter": parameter, "tensor": tensor, "buffer": torch.nn.Buffer(torch.ones(1))}
    torch.save(state, tmp_path / "x.pth")
    assert_read_alike(tmp_path / "x.pth", state)


def test_archives_without_checksums(tmp_path):
    """set_crc32_options(False) writes 0 for every checksum; where one is not 0 all are checked."""
    state = {"a": torch.arange(6.0), "none": torch.zeros(0), "view": torch.arange(6.0)[1:4]}
    path = tmp_path / "x.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_read_alike(path, state)
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"x/version") - 46
    data[entry + 16] = 1  # a checksum for one entry: then the others are wrong
    path.write_bytes(data)
    with pytest.raises(FormatError):
        TorchFile(path)
