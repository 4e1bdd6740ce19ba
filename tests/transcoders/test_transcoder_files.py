"""Transcoders in files: every layout read as NumPy says, saved and read again, a layer in memory at once."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import tiny_transcoders as tiny
from places import TESTS
from safetensors_by_hand import from_arrays

from attnsparse import errors
from attnsparse.io.safetensors_file import SafetensorsFile
from attnsparse.model.config import Config
from attnsparse.model.model import Model
from attnsparse.transcoders import load as transcoder_files
from attnsparse.transcoders.arrays import ArraySource
from attnsparse.transcoders.load import load_transcoders
from attnsparse.transcoders.save import save_transcoders
from attnsparse.transcoders.transcoders import Transcoders

each_format = pytest.mark.parametrize("name", sorted(tiny.FORMATS))


def model(**more) -> Model:
    """A model that the tiny sets fit, with LayerNorm weights that are not 1."""
    config = Config(n_layer=tiny.L, n_head=2, d_model=tiny.E, d_head=3, d_mlp=8, n_ctx=6, n_vocab=11, **more)
    rng = np.random.default_rng(1)
    shapes = config.parameter_shapes().items()
    return Model(config, {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes})


def load(folder, name: str, **options) -> tuple[Transcoders, tiny.Weights]:
    writer, file = tiny.FORMATS[name]
    files, expected = writer()
    tiny.write(folder, files)
    return load_transcoders(folder / file if file else folder, **options), expected


def check(transcoders: Transcoders, w: tiny.Weights) -> None:
    """All weights equal what is expected, exactly or to `rounding`."""
    assert transcoders.n_features == tuple(map(len, w.b_enc))
    assert (transcoders.n_layer, transcoders.d_model) == (len(w.b_enc), w.w_enc[0].shape[1])
    for name, value in w.fields.items():
        assert getattr(transcoders, name) == value, name
    source = transcoders.source
    for i in range(transcoders.n_layer):
        encoder = source.encoder(i)
        n = transcoders.n_features[i]
        rows = source.decoder_rows(i, np.arange(n))
        found = [encoder.w_enc, rows, encoder.b_enc, source.output_bias(i), encoder.threshold, source.skip(i)]
        wanted = [
            w.w_enc[i],
            w.w_dec[i],
            w.b_enc[i],
            w.output[i],
            w.threshold and w.threshold[i],
            w.skip and w.skip[i],
        ]
        for one, other in zip(found, wanted):
            assert (one is None) == (other is None)
            if one is not None:
                assert one.dtype == np.float32
                assert one.flags.c_contiguous
                assert one.shape == other.shape
                np.testing.assert_allclose(one, other, rtol=w.rounding, atol=w.rounding)
        some = np.array([n - 1, 0, 2, 2, 1])
        assert np.array_equal(source.decoder_rows(i, some), rows[some])
        assert source.decoder_rows(i, some[:0]).shape == (0, *rows.shape[1:])


@each_format
def test_every_layout_is_read_as_numpy_says(tmp_path, name):
    transcoders, expected = load(tmp_path, name, verify=True)
    check(transcoders, expected)
    transcoders.check(model())
    assert transcoders.name == (
        "config" if name.endswith("YAML file") else "set" if "v0.1" in name else tmp_path.name
    )


@each_format
def test_a_set_can_be_pickled(tmp_path, name):
    """A set is names and places, so a process that gets a copy reads the same files."""
    transcoders, expected = load(tmp_path, name)
    check(pickle.loads(pickle.dumps(transcoders)), expected)


@each_format
def test_features_are_those_of_the_same_weights_in_memory(tmp_path, name):
    transcoders, w = load(tmp_path, name, model=model())
    source = ArraySource(w.w_enc, w.b_enc, w.w_dec, w.output, w.threshold, w.skip)
    same = {key: w.fields.get(key) for key in ("kind", "activation", "top_k")}
    expected = Transcoders(source, **same).features(model(), [1, 2, 3], threads=1)
    found = transcoders.features(model(), [1, 2, 3], threads=1)
    assert len(found.feature) > 3
    for field in ("layer", "position", "feature"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    for field in ("activation", "reconstruction", "error"):
        one, other = getattr(found, field), getattr(expected, field)
        np.testing.assert_allclose(one, other, rtol=20 * w.rounding, atol=20 * w.rounding)


# ------------------------------------------------------------------------------------ other libraries


def test_files_that_torch_and_safetensors_wrote(tmp_path):
    """The same weights in every element type, written by the libraries that users write them with."""
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    w = tiny.weights(skip=True, threshold=True)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        folder = tmp_path / str(dtype)
        folder.mkdir()
        (folder / "config.yaml").write_text(tiny.config())
        stored = tiny.Weights([], [], [], [], [], [])
        for i in range(tiny.L):
            tensors = {name: torch.tensor(a).to(dtype) for name, a in tiny.plain_layer(w, i).items()}
            library.save_file(tensors, folder / f"layer_{i}.safetensors")
            back = {name: tensor.float().numpy() for name, tensor in tensors.items()}
            stored.w_enc.append(back["W_enc"])
            stored.b_enc.append(back["b_enc"])
            stored.w_dec.append(back["W_dec"][:, None])
            stored.output.append(back["b_dec"])
            stored.threshold.append(back["activation_function.threshold"])
            stored.skip.append(back["W_skip"])
        check(load_transcoders(folder), stored)


def test_pt_files_that_torch_wrote(tmp_path, monkeypatch):
    """An object of a class of that name, with a device and a dtype, and parameters as a module keeps them."""
    torch = pytest.importorskip("torch")
    module, name = tiny.PT_CLASS
    kind = type(name, (), {"__module__": module})
    for part in ("sae_training", module):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    setattr(sys.modules[module], name, kind)
    w = tiny.weights()
    for i in range(tiny.L):
        settings = kind()
        vars(settings).update(tiny.pt_settings(i), dtype=torch.float32, device=torch.device("cpu"), l1=8e-05)
        layer = torch.nn.Module()
        for key, array in tiny.pt_layer(w, i, np.zeros(tiny.E, np.float32)).items():
            layer.register_parameter(key, torch.nn.Parameter(torch.tensor(array)))
        transposed = torch.tensor(w.w_enc[i]).T  # not contiguous: saved with its strides
        layer.W_enc = torch.nn.Parameter(transposed)
        torch.save({"cfg": settings, "state_dict": layer.state_dict()}, tmp_path / f"l{i}.pt")
    check(load_transcoders(tmp_path), w)


# --------------------------------------------------------------------------------------------- saving


@each_format
def test_saved_and_loaded_again_nothing_changes(tmp_path, name):
    transcoders, expected = load(tmp_path / "a", name)
    if transcoders.cross_layer and transcoders.source.skip(0) is not None:
        with pytest.raises(ValueError, match="skip matrix"):
            save_transcoders(transcoders, tmp_path / "b")
        return
    save_transcoders(transcoders, tmp_path / "b")
    again = load_transcoders(tmp_path / "b", verify=True)
    check(again, expected)
    assert again.digest == transcoders.digest
    save_transcoders(again, tmp_path / "b")  # over itself
    assert load_transcoders(tmp_path / "b").digest == again.digest
    assert not [item for item in (tmp_path / "b").iterdir() if item.name.startswith(".")]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("cross", [False, True])
def test_saved_in_half_precision_each_number_is_the_nearest(tmp_path, dtype, cross):
    w = tiny.weights(cross=cross, threshold=True)
    source = ArraySource(w.w_enc, w.b_enc, w.w_dec, w.output, w.threshold)
    kind = "cross_layer_transcoder" if cross else "transcoder_set"
    save_transcoders(Transcoders(source, kind=kind, activation="jump_relu"), tmp_path, dtype=dtype)
    for arrays in (w.w_enc, w.b_enc, w.w_dec, w.output, w.threshold):
        arrays[:] = [nearest(array, dtype) for array in arrays]
    check(load_transcoders(tmp_path), w)
    stored = {info.dtype for path in tmp_path.glob("*.safetensors") for info in tensors(path)}
    assert stored == {"F16" if dtype == "float16" else "BF16"}


def tensors(path):
    with SafetensorsFile(path) as file:
        return list(file.tensors.values())


def nearest(array: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest number of each; of two equally near the one with an even last bit."""
    if dtype == "float16":
        return array.astype(np.float16).astype(np.float32)
    down = tiny.bf16(array)[1].astype(np.float64)
    step = np.spacing(down.astype(np.float32)).astype(np.float64) * 2.0**16
    up = down + np.copysign(step, down)
    closer_up = np.abs(up - array) < np.abs(array - down)
    tie = np.abs(up - array) == np.abs(array - down)
    odd = tiny.bf16(array)[0] & 1 == 1
    return np.where(closer_up | tie & odd, up, down).astype(np.float32)


def test_bfloat16_ties_go_to_even(tmp_path):
    values = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, -(1 + 2.0**-8), 2.0**-130], np.float32)
    source = ArraySource([values[:, None]], [values], [values[:, None]], [np.ones(1, np.float32)])
    save_transcoders(Transcoders(source), tmp_path, dtype="bfloat16")
    found = load_transcoders(tmp_path).source.encoder(0).b_enc
    assert found.tolist() == [1, 1 + 2.0**-6, -1, 2.0**-130]
    assert np.array_equal(found, nearest(values, "bfloat16"))


def test_what_cannot_be_saved(tmp_path):
    w = tiny.weights()
    w.w_dec[1][3, 0, 2] = 7e4
    transcoders = Transcoders(ArraySource(w.w_enc, w.b_enc, w.w_dec, w.output))
    with pytest.raises(ValueError, match=r"layer_1\.safetensors: W_dec holds 70000.0, which F16 cannot hold"):
        save_transcoders(transcoders, tmp_path / "a", dtype="float16")
    assert list((tmp_path / "a").iterdir()) == []
    for dtype in ("int8", "F32", None, 4):
        with pytest.raises(ValueError, match="dtype must be one of 'float32', 'float16', 'bfloat16', got"):
            save_transcoders(transcoders, tmp_path / "b", dtype=dtype)
    with pytest.raises(TypeError, match=r"transcoders must be Transcoders, such as .* gives, got list"):
        save_transcoders([], tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "layer_3.safetensors").write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"layer_3\.safetensors belongs to another set"):
        save_transcoders(transcoders, tmp_path / "c")
    with pytest.raises(OSError, match=r"."):
        save_transcoders(transcoders, tmp_path / "c" / "layer_3.safetensors")


# --------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize(
    ("activation", "cross"), [("relu", False), ("jump_relu", False), ("jump_relu", True), ("topk", False)]
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_layers_are_filled_up_to_one_size(tmp_path, activation, cross, dtype):
    """circuit-tracer takes no others; what is added is never active and writes nothing."""
    w = tiny.weights(cross=cross, threshold=activation == "jump_relu")
    source = ArraySource(w.w_enc, w.b_enc, w.w_dec, w.output, w.threshold)
    top_k = 9 if activation == "topk" else None
    save_transcoders(Transcoders(source, activation=activation, top_k=top_k), tmp_path, dtype=dtype)
    config = (tmp_path / "config.yaml").read_text()
    assert f"attnsparse_n_features:\n- {tiny.COUNTS[0]}\n- {tiny.COUNTS[1]}\n- {tiny.COUNTS[2]}\n" in config
    again = load_transcoders(tmp_path)
    assert again.n_features == tiny.COUNTS
    (tmp_path / "config.yaml").write_text(config.partition("attnsparse_")[0])
    filled = load_transcoders(tmp_path)
    assert filled.n_features == (max(tiny.COUNTS),) * tiny.L
    assert again.digest != filled.digest
    with np.errstate(all="ignore"):
        own = model()
        wanted, found = (t.features(own, [1, 2, 3, 4]) for t in (again, filled))
    for name in ("layer", "position", "feature", "activation", "error"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    n = tiny.COUNTS[1]
    encoder = filled.source.encoder(1)
    x = 1e4 * np.random.default_rng(0).standard_normal((5, tiny.E)).astype(np.float32)
    pre = x @ encoder.w_enc[n:].T + encoder.b_enc[n:]
    assert (pre <= (0 if encoder.threshold is None else encoder.threshold[n:])).all()
    assert not filled.source.decoder_rows(1, np.arange(n, max(tiny.COUNTS))).any()
    folder = tmp_path / "as they are"
    save_transcoders(again, folder, equal_sizes=False)
    assert "attnsparse_" not in (folder / "config.yaml").read_text()
    assert load_transcoders(folder).n_features == tiny.COUNTS


def plain_folder(folder, w: tiny.Weights, **config) -> None:
    layers = {f"layer_{i}.safetensors": from_arrays(tiny.plain_layer(w, i)) for i in range(tiny.L)}
    tiny.write(folder, layers | ({"config.yaml": tiny.config(**config)} if config else {}))


def pre_and_skip(transcoders: Transcoders, layer: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pre-activations, and output bias and skip, of inputs [n, E], in float64."""
    source = transcoders.source
    encoder = source.encoder(layer)
    x = x.astype(np.float64)
    pre = x @ encoder.w_enc.T.astype(np.float64) + encoder.b_enc
    return pre, source.output_bias(layer) + x @ source.skip(layer).T.astype(np.float64)


def test_a_set_on_the_layernorms_output_is_folded(tmp_path):
    """What it was trained on, x * weight + bias, gives what the folded set gives on x."""
    w = tiny.weights(skip=True)
    plain_folder(tmp_path, w, feature_input_hook="mlp.hook_in", feature_output_hook="mlp.hook_out")
    with pytest.raises(errors.ConfigError) as caught:
        load_transcoders(tmp_path)
    assert (caught.value.code, caught.value.field) == ("hook", "model")
    for bias in (True, False):
        own = model(bias=bias)
        folded = load_transcoders(tmp_path, own)
        raw = load_transcoders(tmp_path, own, processed=True)  # LayerNorm folded: x itself was read
        assert folded.input_hook == raw.input_hook == "ln2.hook_normalized"
        check(raw, w)
        x = np.random.default_rng(3).standard_normal((5, tiny.E))
        for i in range(tiny.L):
            norm = x * own.parameter(f"h.{i}.ln_2.weight")
            norm += own.parameter(f"h.{i}.ln_2.bias") if bias else 0
            for one, other in zip(pre_and_skip(folded, i, x), pre_and_skip(raw, i, norm)):
                np.testing.assert_allclose(one, other, atol=1e-5)
        save_transcoders(folded, tmp_path / f"folded {bias}")
        assert load_transcoders(tmp_path / f"folded {bias}", own).digest == folded.digest


def test_a_set_on_a_centred_residual_stream_reads_the_raw_one(tmp_path):
    w = tiny.weights(skip=True)
    plain_folder(tmp_path, w, feature_input_hook="blocks.{layer}.hook_resid_mid")
    raw = load_transcoders(tmp_path)
    assert raw.input_hook == "hook_resid_mid"
    check(raw, _reading(w, "hook_resid_mid"))
    centred = load_transcoders(tmp_path, processed=True)
    x = np.random.default_rng(3).standard_normal((5, tiny.E)) + 2
    for i in range(tiny.L):
        expected = pre_and_skip(raw, i, x - x.mean(axis=1, keepdims=True))
        for one, other in zip(pre_and_skip(centred, i, x), expected):
            np.testing.assert_allclose(one, other, atol=1e-5)


def _reading(w: tiny.Weights, hook: str) -> tiny.Weights:
    w.fields["input_hook"] = hook
    return w


def test_processing_must_be_said_where_it_matters_and_no_file_says_it(tmp_path):
    """SAELens and Dunefsky et al. train on processed or raw models; circuit-tracer only on raw ones."""
    w = tiny.weights()
    settings = {"hook_point": "blocks.0.hook_resid_mid", "out_hook_point": "blocks.0.hook_mlp_out"}
    single = tiny.pt_file(tiny.pt_layer(w, 0, np.zeros(tiny.E, np.float32)), settings)
    sae = tiny.saelens_config(0, 10, hook_name="blocks.0.hook_resid_mid")
    tiny.write(tmp_path, {"a/x.pt": single, "b/cfg.json": sae})
    tiny.write(tmp_path, {"b/sae_weights.safetensors": from_arrays(tiny.saelens_layer(w, 0))})
    for path in (tmp_path / "a", tmp_path / "a" / "x.pt", tmp_path / "b"):
        with pytest.raises(errors.ConfigError) as caught:
            load_transcoders(path)
        assert caught.value.code == "processing"
        raw, centred = (load_transcoders(path, processed=value).source.encoder(0) for value in (False, True))
        np.testing.assert_array_equal(raw.w_enc, w.w_enc[0])
        mean = w.w_enc[0].mean(axis=1, dtype=np.float64, keepdims=True)
        np.testing.assert_allclose(centred.w_enc, w.w_enc[0] - mean, atol=1e-6)


def test_the_hook_is_asked_for_where_no_file_says_it(tmp_path):
    w = tiny.weights()
    plain_folder(tmp_path, w)
    with pytest.raises(errors.ConfigError) as caught:
        load_transcoders(tmp_path)
    assert (caught.value.code, caught.value.field) == ("config_missing", "input_hook")
    check(load_transcoders(tmp_path, input_hook="ln2.hook_normalized"), w)
    check(load_transcoders(tmp_path, input_hook="hook_mlp_in"), _reading(w, "hook_resid_mid"))
    for hook in ("hook_resid_pre", "", 3):
        with pytest.raises(ValueError, match="input_hook must be one of"):
            load_transcoders(tmp_path, input_hook=hook)
    for value in ("yes", 2, []):
        with pytest.raises(TypeError, match="processed must be True or False"):
            load_transcoders(tmp_path, processed=value)
    (tmp_path / "config.yaml").write_text(tiny.config())
    load_transcoders(tmp_path, input_hook="ln2.hook_normalized")
    with pytest.raises(errors.ConfigError) as caught:
        load_transcoders(tmp_path, input_hook="hook_resid_mid")
    assert caught.value.code == "hook"


def test_a_model_of_another_size_is_refused(tmp_path):
    for name in ("circuit-tracer, ReLU", "CLT-Forge", "Dunefsky et al."):
        load(tmp_path / name, name)
        small = Model(Config(n_layer=2, n_head=2, d_model=6, d_head=3, d_mlp=8, n_ctx=6, n_vocab=11))
        narrow = Model(Config(n_layer=3, n_head=2, d_model=4, d_head=3, d_mlp=8, n_ctx=6, n_vocab=11))
        for other, field in ((small, "n_layer"), (narrow, "d_model")):
            with pytest.raises(errors.ConfigError) as caught:
                load_transcoders(tmp_path / name, other)
            assert (caught.value.code, caught.value.field) == ("config_value", field)
    plain_folder(tmp_path / "folded", tiny.weights(), feature_input_hook="mlp.hook_in")
    for other, field in ((small, "n_layer"), (narrow, "d_model")):
        with pytest.raises(errors.ConfigError) as caught:
            load_transcoders(tmp_path / "folded", other)
        assert (caught.value.code, caught.value.field) == ("config_value", field)


def test_a_set_that_comes_with_the_package_is_loaded_by_its_name(tmp_path, monkeypatch):
    files, w = tiny.circuit_tracer()
    tiny.write(tmp_path / "demo-transcoders", files | {"card.md": "# How it was made"})
    (tmp_path / "a-model").mkdir()
    (tmp_path / "a-model" / "config.json").write_text("{}")
    monkeypatch.setattr(transcoder_files, "MODELS_FOLDER", tmp_path)
    assert transcoder_files.embedded_transcoders() == ("demo-transcoders",)
    transcoders = load_transcoders("demo-transcoders")
    check(transcoders, w)
    assert transcoders.name == "demo-transcoders"
    with pytest.raises(FileNotFoundError, match="come with attnsparse: demo-transcoders"):
        load_transcoders("a-model")
    monkeypatch.setattr(transcoder_files, "MODELS_FOLDER", tmp_path / "none")
    assert transcoder_files.embedded_transcoders() == ()


# ------------------------------------------------------------------------------------ files and memory


def test_features_out_of_range(tmp_path):
    for name in ("circuit-tracer, ReLU", "circuit-tracer v0.1", "CLT-Forge, in ranks"):
        transcoders, _ = load(tmp_path / name, name)
        n = transcoders.n_features[1]
        for features in ([n], [0, -1], [2**40]):
            with pytest.raises(IndexError, match=rf"out of range 0\.\.{n - 1} of layer 1"):
                transcoders.source.decoder_rows(1, np.array(features))


def test_many_threads_may_read_one_set(tmp_path):
    transcoders, expected = load(tmp_path, "CLT-Forge, in ranks")
    wrong = []

    def read() -> None:
        try:
            for _ in range(5):
                check(transcoders, expected)
        except BaseException as error:
            wrong.append(error)

    workers = [threading.Thread(target=read) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@each_format
def test_no_file_stays_open(tmp_path, name):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("counts open files in /proc")
    before = len(os.listdir("/proc/self/fd"))
    transcoders, expected = load(tmp_path, name)
    check(transcoders, expected)
    assert len(os.listdir("/proc/self/fd")) == before


@each_format
def test_a_file_that_changed_or_shrank_is_refused(tmp_path, name):
    transcoders, _ = load(tmp_path, name)
    source = transcoders.source
    files = {part.file.path for layer in source.layers.values() for part in (*layer.encoder, *layer.decoder)}
    for path in files:
        os.utime(path, ns=(1, 1))
    for read in (source.encoder, source.output_bias, lambda layer: source.decoder_rows(layer, np.arange(2))):
        with pytest.raises(errors.FormatError) as caught:
            read(1)
        assert type(caught.value) is errors.FormatError
        assert caught.value.code == "changed"
    for path in files:
        os.truncate(path, os.path.getsize(path) // 2)
    for read in (source.encoder, lambda layer: source.decoder_rows(layer, np.arange(2))):
        with pytest.raises(errors.FormatError):
            read(1)
    for path in files:
        os.remove(path)
    with pytest.raises(FileNotFoundError):
        source.encoder(1)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    """200 times, at any moment: the weights as they were, or FormatError; never a crash."""
    w = tiny.weights(counts=(3000,), width=64)
    data = from_arrays(tiny.plain_layer(w, 0))
    path = tmp_path / "layer_0.safetensors"
    (tmp_path / "config.yaml").write_text(tiny.config())
    path.write_bytes(data)
    seen = {"whole": 0, "refused": 0}
    for turn in range(200):
        path.write_bytes(data)
        source = load_transcoders(tmp_path).source
        cutter = threading.Timer(0.0002 * (turn % 20), os.truncate, (path, len(data) * (turn % 7) // 7))
        cutter.start()
        try:
            encoder, rows = source.encoder(0), source.decoder_rows(0, np.arange(3000))
            np.testing.assert_array_equal(encoder.w_enc, w.w_enc[0])
            np.testing.assert_array_equal(rows, w.w_dec[0])
            seen["whole"] += 1
        except errors.FormatError:
            seen["refused"] += 1
        cutter.join()
    assert seen["whole"] + seen["refused"] == 200


@pytest.mark.parametrize("name", ["GemmaScope", "Dunefsky et al."])
def test_rows_are_only_handed_out_from_entries_with_the_right_checksum(tmp_path, name):
    transcoders, _ = load(tmp_path, name)
    path = transcoders.source.layers[1].decoder[0].file.path
    wanted = transcoders.source.decoder_rows(1, np.arange(7))
    with open(path, "rb") as file:
        data = bytearray(file.read())
    at = data.find(wanted[5].tobytes())
    assert at > 0
    data[at] ^= 1
    with open(path, "wb") as file:
        file.write(data)
    again = load_transcoders(tmp_path)
    for rows in ([5], [0]):
        with pytest.raises(errors.FormatError) as caught:
            again.source.decoder_rows(1, np.array(rows))
        assert caught.value.code == "crc"


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize("layout", ["layers", "clt", "clt_forge", "pt"])
def test_memory_is_that_of_one_layer(tmp_path, layout, capsys):
    """A set of a few hundred MB, read whole in a process of its own, which stays far below that."""
    command = [sys.executable, str(TESTS / "children" / "transcoder_memory_child.py")]
    options = {"capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([*command, layout, str(tmp_path)], **options)
    assert done.returncode == 0, done.stderr
    n_features = int(done.stdout)
    file_bytes = sum(item.stat().st_size for item in tmp_path.iterdir())
    assert file_bytes > 170e6
    done = subprocess.run([*command, "read", str(tmp_path), str(n_features)], **options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    with capsys.disabled():
        print(f"\n{layout}: {file_bytes / 1e6:.0f} MB in files;", {k: round(v, 2) for k, v in found.items()})
    assert found["loading"] < 8e6
    assert found["rows"] < 48e6
    # one layer's encoder in float32, and blocks of a file and of a conversion
    assert found["encoders"] < 4 * n_features * 256 + 48e6
    assert found["rows_seconds"] < 10
