"""The model of a training checkpoint is loaded like any other, without the data of its run."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import tiny_training as tiny
from bundle_by_hand import contents

import attnsparse as asp
from attnsparse.io.bundle import write_bundle
from attnsparse.training.checkpoint import SCHEMA, checkpoint_name


@pytest.fixture
def run(tmp_path):
    """Checkpoints after 2 and 4 steps, with the trainer after the last."""
    trainer = asp.Trainer(
        tiny.model(), tiny.data(), tiny.options(4), folder=tmp_path, checkpoint_every=2, threads=1
    )
    return trainer.train()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_is_the_model_that_was_trained(run, tmp_path, dtype):
    model = asp.load(tmp_path / checkpoint_name(4), dtype=dtype)
    assert model.config == run.model.config
    assert (model.name, model.tokenizer, model.dtype) == ("step-000004", None, dtype)
    for name, array in run.model.parameters().items():
        np.testing.assert_array_equal(model.parameter(name), array)
    if dtype == "float32":
        assert model.digest == run.model.digest != asp.load(tmp_path / checkpoint_name(2)).digest


def test_it_travels_and_takes_a_tokenizer(run, tmp_path):
    tokenizer = asp.Tokenizer.from_words([chr(ord("a") + i) for i in range(tiny.SHAPE["n_vocab"])])
    model = asp.load(tmp_path / checkpoint_name(2), tokenizer=tokenizer)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert twin.digest == model.digest
        assert twin.tokenizer.token_strings([0, 1]) == ["a", "b"]


def test_the_config_of_another_model_beside_it_does_not_count(run, tmp_path):
    (tmp_path / "config.json").write_text('{"n_layer": 7}')
    assert asp.load(tmp_path / checkpoint_name(4)).config == run.model.config


def refused(path, kind, **options):
    with pytest.raises(kind) as caught:
        asp.load(path, **options)
    return caught.value.code


def test_what_is_refused(run, tmp_path):
    path = tmp_path / checkpoint_name(4)
    meta, tensors = contents(path)
    for options in ({"gated": False}, {"config": {"n_head": 2}}):
        assert refused(path, asp.ConfigError, **options) == "config_value"
    name = "weight/ln_f.bias"
    bad = tensors[name].copy()
    bad[0] = np.nan
    for fields, arrays, kind, code in (
        ({}, tensors, asp.FormatError, "header_value"),
        ({"config": {}}, tensors, asp.ConfigError, "config_value"),
        (meta, {k: v for k, v in tensors.items() if k != name}, asp.ConfigError, "missing_tensor"),
        (meta, {**tensors, name: bad}, asp.NonFiniteError, "nonfinite"),
    ):
        write_bundle(path, SCHEMA, fields, arrays)
        assert refused(path, kind) == code
    assert np.isnan(asp.load(path, allow_nonfinite=True).parameter("ln_f.bias")[0])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert refused(path, asp.FormatError) == "checksum"
    small = asp.Limits(max_weight_bytes=100)
    assert refused(tmp_path / checkpoint_name(2), asp.LimitError, limits=small) == "weight_limit"
