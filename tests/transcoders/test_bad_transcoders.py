"""Every wrong set of transcoders gets its named error, and nothing in its files is run."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import bad_transcoders
import bad_transcoders_other
import numpy as np
import pytest
import tiny_transcoders as tiny

import attnsparse
from attnsparse.errors import ConfigError, FormatError
from attnsparse.io.limits import Limits
from attnsparse.io.npz_file import NpzFile
from attnsparse.transcoders.load import load_transcoders

PACKAGE = Path(attnsparse.__path__[0])
SETS = [*bad_transcoders.SETS, *bad_transcoders_other.SETS]
READERS = (
    "transcoders/load", "transcoders/stored", "transcoders/formats/layout", "transcoders/formats/clt_forge",
    "transcoders/formats/circuit_tracer", "transcoders/formats/saelens", "transcoders/formats/dunefsky",
    "io/npz_file", "io/strict_yaml",
)  # fmt: skip


def load(folder: Path, case: bad_transcoders.BadSet):
    options = {"verify": True, **case.options}
    if "limits" in options:
        options["limits"] = Limits(**options["limits"])
    return load_transcoders(folder / case.load if case.load else folder, **options)


def test_names_are_unique_and_many():
    assert len({case.name for case in SETS}) == len(SETS) >= 200


@pytest.mark.parametrize("case", SETS, ids=lambda case: case.name)
def test_bad_set(tmp_path, case):
    """Exact type and code, one printable line, and an error that survives pickling."""
    tiny.write(tmp_path, case.files)
    with pytest.raises(Exception) as caught:
        load(tmp_path, case)
    error = caught.value
    assert type(error) is case.error, (type(error), error)
    assert error.code == case.code, (error.code, str(error))
    message = str(error)
    assert len(message) <= 300
    assert message.isprintable()
    assert error.path.startswith(str(tmp_path))
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), message, vars(error))


def test_every_code_of_the_readers_is_reached():
    """The codes are those written in the sources; those left out are tested elsewhere."""
    written = set()
    for name in READERS:
        source = (PACKAGE / f"{name}.py").read_text()
        written |= set(re.findall(r"file_error\(\s*\w+,\s*\"(\w+)\"", source))
        written |= set(re.findall(r"raise_file_error\(\s*\"(\w+)\"", source))
        written |= set(re.findall(r"code=\"(\w+)\"", source))
    elsewhere = {"changed", "processing", "size_overflow"}  # test_transcoder_files.py, test_fuzz_corpus.py
    assert elsewhere <= written
    assert written - elsewhere <= {case.code for case in SETS}


def test_no_reader_imports_pickle_or_runs_anything():
    """See the same test of test_bad_files.py, which also runs 200 malicious pickles."""
    forbidden = re.compile(
        r"\b(import (pickle|torch|mmap)|from (pickle|torch|mmap) |eval\(|exec\(|__import__)"
    )
    for name in (*READERS, "transcoders/save"):
        assert not forbidden.search((PACKAGE / f"{name}.py").read_text()), name
    text = (PACKAGE / "io" / "strict_yaml.py").read_text()
    assert "yaml.load" not in text
    assert set(re.findall(r"yaml\.(?:constructor\.)?(\w+Loader|\w+Constructor)\b", text)) == {
        "SafeLoader", "SafeConstructor"}  # fmt: skip


def test_some_messages(tmp_path):
    """The wording is compared in a few cases only."""

    def message(name: str) -> str:
        case = next(case for case in SETS if case.name == name)
        folder = tiny.write(tmp_path / re.sub(r"\W", "_", name), case.files)
        with pytest.raises(ValueError) as caught:
            load(folder, case)
        return str(caught.value)

    assert message("layer: W_enc transposed") == (
        "layer_1.safetensors: tensor 'W_enc' has shape [6, 7], expected [7, 6] (b_enc has 7 features, "
        "b_dec has width 6); it looks transposed"
    )
    assert message("cross-layer: no W_enc_1").endswith(
        ": layer 1 is missing, found layers 0, 2; a cross-layer transcoder has all layers"
    )
    assert message("config: a file of the hub that is not here") == (
        "config.yaml: transcoders[0]: 'hf://a/b/layer_9.safetensors' is on the Hugging Face hub; download it "
        "to 'layer_9.safetensors' in the folder of config.yaml, then load that"
    )
    assert message("config: a parent folder") == (
        "config.yaml: transcoders[0] is '../layer_0.safetensors', which is not a path inside the folder of "
        "config.yaml"
    )
    assert message("layer: NaN in W_enc") == (
        "layer_1.safetensors: 'W_enc' has values that are not finite, the first at [6, 5] of what was read"
    )
    assert message("SAELens: b_dec taken from the input") == (
        "cfg.json: apply_b_dec_to_input must be false: b_dec is the bias of the output; found true or nothing"
    )
    assert message("CLT-Forge: the last rank missing") == (
        "clt_cfg.json: d_latent=8 but the weights have 4 features"
    )
    assert message(".pt: a function in cfg").endswith(
        "refers to 'os.system'; only tensors, numbers, strings, lists and dicts are read. The file was not "
        "executed; save the weights alone: torch.save(model.state_dict(), path)"
    )


def test_wrong_arguments(tmp_path):
    for wrong in (None, 3, ["a"], b"a"):
        with pytest.raises(TypeError, match="the set must be a string or a path"):
            load_transcoders(wrong)
    with pytest.raises(ValueError, match="NUL"):
        load_transcoders("a\0b")
    with pytest.raises(FileNotFoundError, match="no file or folder 'nothing/here'"):
        load_transcoders("nothing/here")
    with pytest.raises(FileNotFoundError, match="no transcoders in this folder"):
        load_transcoders(tmp_path)


def test_a_pipe_is_refused(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    files, _ = tiny.circuit_tracer()
    for name in ("config.yaml", "layer_1.safetensors"):
        folder = tiny.write(tmp_path / name, {key: data for key, data in files.items() if key != name})
        os.mkfifo(folder / name)
        with pytest.raises(ValueError) as caught:
            load_transcoders(folder)
        assert caught.value.code in ("not_a_file", "config_missing")


def test_every_proper_prefix_of_an_npz_is_refused(tmp_path):
    whole = tiny.npz(a=np.ones((3, 2), np.float32), b=np.zeros(4))
    path = tmp_path / "x.npz"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError) as caught:
            NpzFile(path)
        assert caught.value.code in ("too_short", "truncated", "magic"), length


@pytest.mark.parametrize("name", sorted(tiny.FORMATS))
def test_changed_bytes_give_a_set_or_a_named_error(tmp_path, name):
    """Configurations and the first bytes of weights, with bytes changed, removed or doubled."""
    rng = np.random.default_rng(len(name))
    writer, file = tiny.FORMATS[name]
    files, _ = writer()
    tiny.write(tmp_path, files)
    refused = []
    for _ in range(150):
        path = tmp_path / rng.choice(sorted(files))
        whole = path.read_bytes()
        at = int(rng.integers(0, min(len(whole), 700)))
        piece = [bytes(rng.integers(0, 256, 2, np.uint8)), b"", whole[at : at + 1] * 3][rng.integers(3)]
        path.write_bytes(whole[:at] + piece + whole[at + 1 :])
        try:
            load_transcoders(tmp_path / file if file else tmp_path, verify=True)
        except (FormatError, ConfigError) as error:
            refused.append(error)
        path.write_bytes(whole)
    assert all(error.code and str(error).isprintable() for error in refused)
    assert len(refused) > 50
