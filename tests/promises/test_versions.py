"""Files of released versions load for ever, newer ones say so, runs go on only where they belong (R23)."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import own_formats
import pytest
import tiny_training as tiny
from bundle_by_hand import around, contents
from places import FIXTURES
from reliability import report

from attnsparse.errors import CheckpointError, ConfigError, FormatError
from attnsparse.io.bundle import write_bundle
from attnsparse.training.checkpoint import SCHEMA, build
from attnsparse.training.trainer import Trainer
from attnsparse.transcoders.trainer import train_transcoders

GOLDEN = FIXTURES / "v1"
MOST_BYTES = 20_000
EXPECTED = {
    "training": "fe98861165aafeb0",
    "model": "38b4ff8c236f4d9a",
    "transcoders": "818e0647f8c7d51b",
    "circuit": "eef75bc459e3301d",
    "graph": "a6a001c7d466a8ba",
}


def numbers(name: str, thing: Any) -> str:
    """A checksum of the numbers that a file of version 1 holds, whatever later versions add to it."""
    if name == "training":
        core = thing._engine
        arrays = [m for parameter in thing.model.parameters() for m in core.moments(parameter)]
        arrays += [
            *thing.model.parameters().values(),
            np.array([thing.step_count, core.multiplier, core.ema]),
        ]
        arrays += [np.array([result["loss"] for result in thing._history.results])]
    elif name == "model":
        arrays = [*thing.parameters().values(), np.array(thing.tokenizer.encode("abcj"))]
    elif name == "transcoders":
        encoders = [thing.source.encoder(i) for i in range(thing.n_layer)]
        arrays = [array for encoder in encoders for array in (encoder.w_enc, encoder.b_enc)]
        arrays += [thing.source.decoder_rows(i, np.arange(5)) for i in range(thing.n_layer)]
        arrays += [thing.source.output_bias(i) for i in range(thing.n_layer)]
    elif name == "circuit":
        arrays = [thing.items, thing.scores, thing.sizes, thing.values, thing.full, thing.empty]
    else:
        arrays = [thing.weights, thing.source, thing.value, thing.layer, thing.position]
    return hashlib.sha256(b"|".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[
        :16
    ]


def load(name: str, folder: Path = GOLDEN) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a training checkpoint of another build
        return own_formats.FORMATS[name].load(folder / name)


@pytest.mark.parametrize("name", EXPECTED)
def test_files_of_version_1_load_for_ever(name):
    sizes = [path.stat().st_size for path in (GOLDEN / name).iterdir()]
    assert max(sizes) <= MOST_BYTES
    assert numbers(name, load(name)) == EXPECTED[name]
    report("R23", f"{name} of version 1: {len(sizes)} files of {sum(sizes)} bytes load with the same numbers")


def test_a_run_of_version_1_goes_on():
    assert load("training").train(progress=False).finished


def test_every_format_has_a_file_of_version_1():
    assert sorted(EXPECTED) == sorted(own_formats.FORMATS)


# ---- newer versions


@pytest.mark.parametrize(
    ("name", "schema"), [("training", "training checkpoint"), ("circuit", "circuit"), ("graph", "graph")]
)
def test_newer_files_say_so(tmp_path, name, schema):
    """Whatever else is different in them."""
    (tmp_path / name).mkdir()
    (path,) = (GOLDEN / name).glob("*.safetensors")
    text = {"schema": schema, "version": 99, "data": []}
    (tmp_path / name / path.name).write_bytes(around(text, {"more": np.zeros(3, bool)}))
    with pytest.raises(FormatError, match=f"newer attnsparse: {schema} version 99.*update") as caught:
        load(name, tmp_path)
    assert caught.value.code == "version"
    assert isinstance(caught.value, CheckpointError) is (name == "training")


def test_newer_models_say_so(tmp_path):
    shutil.copytree(GOLDEN / "model", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attnsparse_version": 99}))
    with pytest.raises(ConfigError, match=r"99.*update") as caught:
        load("model", tmp_path)
    assert caught.value.code == "config_version"


def test_newer_transcoders_say_what_is_not_known(tmp_path):
    """circuit-tracer's layout has no version; what it does not know is refused by name."""
    shutil.copytree(GOLDEN / "transcoders", tmp_path / "transcoders")
    path = tmp_path / "transcoders" / "config.yaml"
    path.write_text(path.read_text().replace("cross_layer_transcoder", "quantum_transcoder"))
    with pytest.raises((FormatError, ConfigError), match="quantum_transcoder"):
        load("transcoders", tmp_path)


# ---- another run, another build


@pytest.mark.parametrize("field", build())
def test_another_build_is_named(tmp_path, field):
    path = tmp_path / "a.safetensors"
    Trainer(tiny.model(), tiny.data(), tiny.options(10)).save(path)
    fields, tensors = contents(path)
    other = {**fields["build"], field: "abacus"}
    write_bundle(path, SCHEMA, {**fields, "build": other}, tensors)
    with pytest.warns(UserWarning, match=f"{field} 'abacus'"):
        assert Trainer.resume(path, tiny.data()).step_count == 0


def test_transcoders_of_another_model_data_or_options_are_refused(tmp_path):
    path, how = tmp_path / "a.safetensors", {"steps": 3, "n_features": 7, "aux_k": 4, "progress": False}
    train_transcoders(tiny.model(), tiny.data(), checkpoint=path, **how)
    for field, model, data, changed in (
        ("model", tiny.model(seed=4), tiny.data(), {}),
        ("data", tiny.model(), tiny.data(seed=6), {}),
        ("steps", tiny.model(), tiny.data(), {"steps": 4}),
    ):
        with pytest.raises(CheckpointError) as caught:
            train_transcoders(model, data, checkpoint=path, **(how | changed))
        assert caught.value.field == field


def write() -> None:
    """python test_versions.py writes the files of this version; for a new format only, never again."""
    for name, format in own_formats.FORMATS.items():
        if not (GOLDEN / name).exists():
            (GOLDEN / name).mkdir(parents=True)
            format.save(format.make(0), GOLDEN / name)
            print(f'    "{name}": "{numbers(name, load(name))}",')


if __name__ == "__main__":
    sys.exit(write())
