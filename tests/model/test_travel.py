"""Models that are pickled, copied, and sent as bytes."""

import copy
import dataclasses
import gc
import json
import multiprocessing
import os
import pickle
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import tiny_training
from reliability import report
from travel_child import anonymous_bytes, double, memory_with, shared_weights

import attnsparse as asp
from attnsparse.errors import ConfigError, FormatError, LimitError
from attnsparse.model import arrival
from attnsparse.model import shared_weights as shared_weights_module
from attnsparse.model.tokenizer import Tokenizer

EMBEDDED = "addition-sparse"


@pytest.fixture(autouse=True)
def no_models_of_before():
    arrival._kept.clear()
    arrival._sent.clear()


def sent(model):
    return pickle.loads(pickle.dumps(model))


def as_elsewhere(data):
    """What another process makes of a pickle: nothing is remembered there."""
    arrival._kept.clear()
    arrival._sent.clear()
    return pickle.loads(data)


def test_a_loaded_model_travels_by_name():
    model = asp.load(EMBEDDED)
    data = pickle.dumps(model)
    assert len(data) < 2000
    twin = as_elsewhere(data)
    assert twin is not model
    assert (twin.name, twin.digest, twin.dtype) == (model.name, model.digest, model.dtype)
    assert twin.tokenizer.encode("1") == model.tokenizer.encode("1")
    assert pickle.loads(data) is twin, "it is loaded once"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_folder_travels_by_its_absolute_path(dtype, tmp_path, monkeypatch):
    tiny_training.model().save(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(asp.load("model", dtype=dtype))
    monkeypatch.chdir("/")
    twin = as_elsewhere(data)
    assert (twin.name, twin.dtype) == ("model", dtype)
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        as_elsewhere(data)


def test_load_options_travel(tmp_path):
    model = tiny_training.model()
    words = Tokenizer.from_words([f" w{i}" for i in range(model.config.n_vocab)])
    model.save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attnsparse_gated": True}))
    loaded = asp.load(tmp_path, tokenizer=words, config={"attnsparse_gated": False})
    twin = as_elsewhere(pickle.dumps(loaded))
    assert not twin.config.gated
    assert twin.tokenizer.to_json() == words.to_json()


def test_name_and_tokenizer_travel():
    model = asp.load(EMBEDDED)
    model.name, model.tokenizer = "other", None
    twin = as_elsewhere(pickle.dumps(model))
    assert (twin.name, twin.tokenizer) == ("other", None)
    assert sent(asp.load(EMBEDDED)).name == EMBEDDED, "names are told apart"


def test_other_weights_at_the_same_place(tmp_path):
    tiny_training.model(seed=1).save(tmp_path)
    data = pickle.dumps(asp.load(tmp_path))
    tiny_training.model(seed=2).save(tmp_path)
    with pytest.raises(ValueError, match="holds another model than the one that was sent: digest"):
        as_elsewhere(data)


def test_a_model_that_was_changed_on_arrival_is_loaded_again():
    model = asp.load(EMBEDDED)
    data = pickle.dumps(model)
    first = as_elsewhere(data)
    first.assign({"ln_f.weight": 2 * first.parameter("ln_f.weight")})
    second = pickle.loads(data)
    assert second is not first
    assert second.digest == model.digest


@pytest.mark.parametrize("kind", ["changed", "made"])
def test_a_changed_model_says_what_to_do(kind):
    model = asp.load(EMBEDDED) if kind == "changed" else tiny_training.model()
    if kind == "changed":
        model.assign({"ln_f.weight": 2 * model.parameter("ln_f.weight")})
    text = {"changed": "was changed after it was loaded", "made": "was not loaded from a file"}[kind]
    with pytest.raises(TypeError, match=rf"{text}, so .*save it.*model\.to_bytes\(\).*Model\.from_bytes"):
        pickle.dumps(model)


def test_few_models_are_kept(tmp_path):
    for seed in range(arrival.MOST_KEPT + 2):
        tiny_training.model(seed=seed).save(tmp_path / str(seed))
        sent(asp.load(tmp_path / str(seed)))
    assert len(arrival._kept) == arrival.MOST_KEPT
    gc.collect()
    assert len(arrival._sent) == arrival.MOST_KEPT, "sending keeps no model alive"


def test_loaded_transcoders_travel_by_their_files():
    coders = asp.load_transcoders("demo-sparse-transcoders")
    data = pickle.dumps(coders)
    assert len(data) < 20_000 < 4 * coders.source.encoder(0).w_enc.size
    assert pickle.loads(data).digest == coders.digest


@pytest.mark.parametrize("by", [copy.copy, copy.deepcopy])
def test_copies_have_weights_of_their_own(by):
    model = asp.load(EMBEDDED)
    twin = by(model)
    assert (twin.digest, twin.name) == (model.digest, model.name)
    data = pickle.dumps(twin)
    twin.assign({"ln_f.weight": 2 * twin.parameter("ln_f.weight")})
    assert twin.digest != model.digest
    assert as_elsewhere(data).digest == model.digest
    with pytest.raises(TypeError, match="was changed"):
        pickle.dumps(twin)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bytes_hold_the_whole_model(dtype):
    model = asp.load(EMBEDDED, dtype=dtype)
    model.assign({"ln_f.weight": np.pi * model.parameter("ln_f.weight")})
    data = model.to_bytes()
    twin = asp.Model.from_bytes(data)
    assert (twin.name, twin.digest, twin.dtype) == (model.name, model.digest, model.dtype)
    assert twin.tokenizer.to_json() == model.tokenizer.to_json()
    assert twin.tokenizer.bos_id == model.tokenizer.bos_id
    assert twin.to_bytes() == data
    bare = asp.Model.from_bytes(memoryview(tiny_training.model().to_bytes()))
    assert bare.tokenizer is None


def test_damaged_bytes():
    data = tiny_training.model().to_bytes()
    for i in np.random.default_rng(0).integers(0, len(data), 40).tolist():
        changed = bytearray(data)
        changed[i] ^= 1
        with pytest.raises(FormatError):
            asp.Model.from_bytes(bytes(changed))
        with pytest.raises(FormatError):
            asp.Model.from_bytes(data[:i])
    with pytest.raises(TypeError, match="the bytes of a model must be bytes, got str"):
        asp.Model.from_bytes("x")
    limits = asp.Limits(max_weight_bytes=100)
    with pytest.raises(LimitError, match="max_weight_bytes"):
        asp.Model.from_bytes(data, limits=limits)


def _write(model, **changes):
    """Bytes with other fields or tensors, of right checksums."""
    from attnsparse.io.bundle import bundle_pieces
    from attnsparse.model.travel import SCHEMA

    fields = {"name": "", "config": model.config.to_dict(), "tokenizer": None, **changes.pop("fields", {})}
    tensors = {**model.parameters(), **changes.pop("tensors", {})}
    tensors = {name: value for name, value in tensors.items() if value is not None}
    return b"".join(bundle_pieces(SCHEMA, fields, tensors))


WRONG = {
    "an unknown field": ({"fields": {"more": 1}}, "has 'more'"),
    "no name": ({"fields": {"name": 3}}, "'name' must be a string"),
    "no config": ({"fields": {"config": 3}}, "'config' must be an object"),
    "config of nothing": ({"fields": {"config": {}}}, "is missing"),
    "no such tokenizer": ({"fields": {"tokenizer": {}}}, "lacks"),
    "bos below 0": (
        {"fields": {"tokenizer": {"bos_id": -1, "encode_special_tokens": False}}}, "'bos_id' must be"),
    "tokenizer without text": (
        {"fields": {"tokenizer": {"bos_id": None, "encode_special_tokens": False}}}, "must be I32"),
    "text of no tokenizer": (
        {"fields": {"tokenizer": {"bos_id": None, "encode_special_tokens": False}},
         "tensors": {"tokenizer": np.zeros(3, np.int32)}}, "not a tokenizer"),
    "a tensor too many": ({"tensors": {"more": np.zeros(3, np.float32)}}, "'more' does not fit"),
    "a tensor too few": ({"tensors": {"ln_f.weight": None}}, r"'ln_f\.weight' does not fit"),
    "another shape": ({"tensors": {"ln_f.weight": np.zeros(3, np.float32)}}, r"'ln_f\.weight' does not fit"),
    "another type": ({"tensors": {"wte.weight": np.zeros((2, 2), np.int32)}}, "does not fit"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "text"), WRONG.values(), ids=WRONG)
def test_bytes_of_what_is_no_model(changes, text):
    with pytest.raises((FormatError, ConfigError), match=text):
        asp.Model.from_bytes(_write(tiny_training.model(), **changes))


LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sealed memory is of Linux")


@pytest.fixture
def large(tmp_path):
    """A loaded model of 67 MB."""
    config = asp.Config(n_layer=4, n_head=8, d_model=512, d_head=64, d_mlp=2048, n_vocab=8192, n_ctx=64)
    asp.Model.initialised(config, 0).save(tmp_path)
    return asp.load(tmp_path)


def inode_of(model):
    """Of the memory that its weights are shared in."""
    return str(os.fstat(model._core.share()).st_ino)


@LINUX
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_share_the_weights(large, method):
    """All processes have one copy; a change is of one process alone."""
    n_bytes, before = 4 * large.n_parameters, large.digest
    pickle.dumps(large)
    inherited = anonymous_bytes() if method == "fork" else 0
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        anonymous, shared = pool.submit(memory_with, large).result(timeout=120)
        report("R16", f"{method}: anonymous memory of a worker, {n_bytes:,} bytes of weights: {anonymous:,}")
        assert anonymous < inherited + n_bytes
        assert shared[inode_of(large)] > 0.99 * n_bytes
        doubled = pool.submit(double, large).result(timeout=120)
    assert doubled == pytest.approx(2 * float(np.sum(large.W_E[0])), rel=1e-5)
    large._digest = None
    assert large.digest == before


@LINUX
def test_weights_that_were_shared_are_given_back(large, tmp_path):
    model = asp.load(tmp_path)
    n_descriptors = len(os.listdir("/proc/self/fd"))
    first = pickle.dumps(model)
    assert pickle.dumps(model) == first, "they are moved once"
    inode, size = inode_of(model), shared_weights()[inode_of(model)]
    twin = as_elsewhere(first)
    assert twin is not model
    assert inode_of(twin) == inode
    assert shared_weights()[inode] == 2 * size
    assert twin.to_bytes() == model.to_bytes()
    twin.assign({"ln_f.weight": 2 * twin.parameter("ln_f.weight")})
    assert not np.array_equal(twin.parameter("ln_f.weight"), model.parameter("ln_f.weight"))
    del model, twin
    arrival._kept.clear()
    gc.collect()
    assert inode not in shared_weights()
    assert len(os.listdir("/proc/self/fd")) == n_descriptors


@LINUX
def test_memory_that_does_not_hold_the_weights(large, tmp_path):
    """A descriptor may be gone, of another file, unsealed, of another size, or hold other weights."""
    process, number = shared_weights_module.offered(large)
    other = asp.Model.initialised(large.config, 1)
    other_place = shared_weights_module.offered(other)
    small = asp.Model.initialised(dataclasses.replace(large.config, n_layer=3), 1)
    small_place = shared_weights_module.offered(small)
    unsealed = os.memfd_create("attnsparse", os.MFD_ALLOW_SEALING)
    os.truncate(unsealed, os.fstat(number).st_size)
    pipe = os.pipe()
    file = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    twin = large.copy()
    places = [(process, n) for n in (unsealed, file, *pipe, 10**6)]
    for place in (None, other_place, small_place, (2**22 + 1, 3), *places):
        assert not shared_weights_module.take(twin, place), place
    assert twin.to_bytes() == large.to_bytes()
    assert shared_weights_module.take(twin, (process, number))
    assert twin.to_bytes() == large.to_bytes()
    for descriptor in (unsealed, file, *pipe):
        os.close(descriptor)


@LINUX
def test_small_weights_are_not_shared():
    assert shared_weights_module.offered(tiny_training.model()) is None


@LINUX
def test_a_file_that_changes_after_it_was_loaded(large, tmp_path):
    """Nothing of a model lies in its file: cut off and overwritten in place, it changes no weight."""
    data, before = pickle.dumps(large), large.to_bytes()
    path = tmp_path / "model.safetensors"
    size = os.path.getsize(path)
    os.truncate(path, 0)
    os.truncate(path, size)
    assert large.to_bytes() == before
    with pytest.raises(FormatError):
        as_elsewhere(data)
