"""Bad sets of transcoders, made on the spot: a name, the exception and code each must get, and the files.

Each is a good set of tiny_transcoders.py with one thing changed. `load` is the file of the folder to load, ""
for the folder; `options` go to load_transcoders, with verify=True unless they say otherwise. What SAELens,
Dunefsky et al. and CLT-Forge write is in bad_transcoders_other.py.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tiny_transcoders as tiny
from safetensors_by_hand import entry, file_bytes, from_arrays

from attnsparse.errors import ConfigError, FormatError, LimitError, NonFiniteError

E, L = tiny.E, tiny.L
NORMALIZED = {"input_hook": "ln2.hook_normalized"}


class BadSet(NamedTuple):
    """Loading `load` in a folder with these files must raise exactly `error` with code `code`."""

    name: str
    error: type
    code: str
    files: Mapping[str, Any]
    load: str = ""
    options: Mapping[str, Any] = {}


GOOD, WEIGHTS = tiny.circuit_tracer(threshold=True, skip=True)
CROSS, _ = tiny.cross_layer(threshold=True)
SCOPE, SCOPE_WEIGHTS = tiny.gemma_scope()
SCOPE_2, SCOPE_2_WEIGHTS = tiny.gemma_scope_2()
SCOPE_CROSS, _ = tiny.gemma_scope_2(cross=True)
V01, V01_WEIGHTS = tiny.circuit_tracer_v01()
ZEROS = np.zeros(E, np.float32)


def without(files: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: content for name, content in files.items() if name not in names}


def _layer(number: int = 1, **changes: Any) -> dict[str, Any]:
    """The good set with tensors of one layer changed, or left out if None."""
    arrays = tiny.plain_layer(WEIGHTS, number)
    for name, array in changes.items():
        arrays[name.replace("activation_function_", "activation_function.")] = array
    kept = {name: array for name, array in arrays.items() if array is not None}
    return GOOD | {f"layer_{number}.safetensors": from_arrays(kept)}


def with_nan(array: np.ndarray, value: float = np.nan) -> np.ndarray:
    changed = array.copy()
    changed.flat[-1] = value
    return changed


def _tensors() -> list[BadSet]:
    """Weights that do not fit each other."""

    def bad(name: str, code: str, number: int = 1, error: type = ConfigError, **changes: Any) -> BadSet:
        return BadSet("layer: " + name, error, code, _layer(number, **changes))

    w = WEIGHTS
    threshold = "activation_function_threshold"
    return [
        bad("no W_enc", "missing_tensor", W_enc=None),
        bad("no W_dec", "missing_tensor", W_dec=None),
        bad("no b_enc", "missing_tensor", b_enc=None),
        bad("no b_dec", "missing_tensor", b_dec=None),
        bad("one tensor too many", "unexpected_tensor", b_dec_out=ZEROS),
        bad("log_threshold for threshold", "unexpected_tensor", log_threshold=w.threshold[1],
            **{threshold: None}),
        bad("W_enc transposed", "tensor_shape", W_enc=w.w_enc[1].T),
        bad("W_dec transposed", "tensor_shape", W_dec=w.w_dec[1][:, 0].T),
        bad("W_dec with one feature less", "tensor_shape", W_dec=w.w_dec[1][:-1, 0]),
        bad("W_dec of a cross-layer transcoder", "tensor_shape", W_dec=np.repeat(w.w_dec[1], 2, axis=1)),
        bad("W_enc with three dimensions", "tensor_shape", W_enc=w.w_enc[1][None]),
        bad("b_enc is a matrix", "tensor_shape", b_enc=w.b_enc[1][None]),
        bad("b_enc is a number", "tensor_shape", b_enc=np.array(1, np.float32)),
        bad("b_enc is empty", "tensor_shape", b_enc=w.b_enc[1][:0]),
        bad("b_dec of another width", "tensor_shape", b_dec=w.output[1][:-1]),
        bad("threshold of another length", "tensor_shape", **{threshold: w.threshold[1][:-1]}),
        bad("W_skip not square", "tensor_shape", W_skip=w.skip[1][:-1]),
        bad("only layer 1 lacks a threshold", "missing_tensor", **{threshold: None}),
        bad("only layer 0 lacks a threshold", "unexpected_tensor", 0, **{threshold: None}),
        bad("layer 1 is narrower", "tensor_shape", W_enc=w.w_enc[1][:, 1:], W_dec=w.w_dec[1][:, 0, 1:],
            b_dec=w.output[1][1:], W_skip=w.skip[1][1:, 1:]),
        bad("integers", "dtype", error=FormatError, W_dec=np.ones((7, E), np.int64)),
        bad("a scale of bool", "dtype", error=FormatError, b_enc=np.ones(7, bool)),
        bad("k without activation in config.yaml", "config_missing", k=np.array(4, np.int64)),
        bad("NaN in W_enc", "nonfinite", error=NonFiniteError, W_enc=with_nan(w.w_enc[1])),
        bad("infinity in W_dec", "nonfinite", error=NonFiniteError,
            W_dec=with_nan(w.w_dec[1][:, 0], np.inf)),
        bad("NaN in b_enc", "nonfinite", error=NonFiniteError, b_enc=with_nan(w.b_enc[1])),
        bad("NaN in b_dec", "nonfinite", error=NonFiniteError, b_dec=with_nan(w.output[1])),
        bad("NaN in the threshold", "nonfinite", error=NonFiniteError,
            **{threshold: with_nan(w.threshold[1])}),
        bad("minus infinity in W_skip", "nonfinite", error=NonFiniteError,
            W_skip=with_nan(w.skip[1], -np.inf)),
        bad("float64 beyond float32", "nonfinite", error=NonFiniteError,
            W_dec=with_nan(w.w_dec[1][:, 0].astype(np.float64), 1e300)),
    ]  # fmt: skip


def _files() -> list[BadSet]:
    """Layers that are missing, too many or broken, and files that are no sets."""
    name = "layer_1.safetensors"
    data = GOOD[name]

    def bad(
        what: str, error: type, code: str, files: Mapping[str, Any], load: str = "", **options: Any
    ) -> BadSet:
        return BadSet("files: " + what, error, code, files, load, options)

    return [
        bad("only config.yaml", ConfigError, "missing_layer", {"config.yaml": GOOD["config.yaml"]}),
        bad("layer 1 twice", ConfigError, "duplicate_layer", GOOD | {"layer_1.npz": b""}),
        bad("layer 1 cut short", FormatError, "bad_offsets", GOOD | {name: data[:-1]}),
        bad("layer 1 empty", FormatError, "too_short", GOOD | {name: b""}),
        bad("layer 1 is a pointer", FormatError, "magic",
            GOOD | {name: b"version https://git-lfs.github.com/spec/v1\noid sha256:0"}),
        bad("layer 1 with a byte more", FormatError, "trailing_data", GOOD | {name: data + b"\0"}),
        bad("a gap in layer 1", FormatError, "bad_offsets",
            GOOD | {name: file_bytes({"a": entry(4, 8, [1])}, bytes(8))}),
        bad("no config.yaml, no hook", ConfigError, "config_missing", without(GOOD, "config.yaml")),
        bad("an ending that is not known", FormatError, "magic", {"set.bin": b"x"}, "set.bin"),
        bad("one layer by itself", FormatError, "magic", GOOD, name),
        bad("hook other than the files say", ConfigError, "hook", GOOD, input_hook="hook_resid_mid"),
        bad("an encoder above the limit", LimitError, "weight_limit", GOOD, limits={"max_weight_bytes": 200}),
        bad("too many tensors", LimitError, "tensor_limit", GOOD, limits={"max_tensors": 3}),
        bad("reads the LayerNorm's output, no model", ConfigError, "hook",
            GOOD | {"config.yaml": tiny.config(feature_input_hook="mlp.hook_in")}),
    ]  # fmt: skip


def _configs() -> list[BadSet]:
    """config.yaml and what it names."""

    def text(name: str, code: str, content: str, error: type = FormatError) -> BadSet:
        return BadSet("config: " + name, error, code, GOOD | {"config.yaml": content})

    def value(name: str, code: str, error: type = ConfigError, **changes: Any) -> BadSet:
        return text(name, code, tiny.config(**changes), error)

    def entries(name: str, code: str, *entry: Any, error: type = FormatError) -> BadSet:
        names = [*entry, *(f"layer_{i}.safetensors" for i in range(len(entry), L))]
        return value(name, code, error, transcoders=names)

    def old(name: str, code: str, error: type = ConfigError, **changes: Any) -> BadSet:
        listed = [{"id": "a", "layer": i, "filepath": f"files/l{i}.safetensors"} for i in range(L)]
        listed[1] = {key: item for key, item in (listed[1] | changes).items() if item is not None}
        content = tiny.yaml(model_name="tiny", transcoders=listed, **tiny.HOOKS)
        return BadSet("v0.1: " + name, error, code, V01 | {"set.yaml": content}, "set.yaml")

    good = GOOD["config.yaml"]
    return [
        text("empty", "yaml_type", ""),
        text("a list", "yaml_type", "- 1\n- 2\n"),
        text("a key that is a number", "yaml_type", good + "3: 4\n"),
        text("a tab", "yaml_syntax", "a:\n\t- 1\n"),
        text("cut short", "yaml_syntax", good + "scans: ['a"),
        text("not UTF-8", "yaml_syntax", "a: caf\udce9".encode("utf-8", "surrogateescape")),  # type: ignore
        text("two documents", "yaml_syntax", good + "---\na: 1\n"),
        text("a date that is none", "yaml_syntax", good + "when: 2020-99-99\n"),
        text("a number of 5000 digits", "yaml_syntax", good + "k: " + "9" * 5000 + "\n"),
        text("a key twice", "duplicate_name", good + "scan: b\n"),
        text("an alias", "yaml_feature", "a: &x [1, 1]\nb: [*x, *x]\n"),
        text("an anchor", "yaml_feature", good + "a: &x 1\n"),
        text("a Python object", "yaml_feature", "a: !!python/object/apply:os.system ['echo harm']\n"),
        text("a tag", "yaml_feature", "a: !!binary aGk=\n"),
        text("a bomb of aliases", "yaml_feature", "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"),
        text("nested deeply", "yaml_depth", "a: " + "[" * 300 + "]" * 300),
        text("70 kB", "file_limit", "a: '" + "x" * 70_000 + "'\n", LimitError),
        value("an unknown key", "unknown_key", normalize=True),
        value("another kind", "config_value", model_kind="sparse_autoencoder"),
        value("the kind is a list", "config_value", model_kind=["transcoder_set"]),
        value("counts of features that are text", "config_type", attnsparse_n_features="7"),
        value("counts of two layers of three", "config_type", attnsparse_n_features=[7, 7]),
        value("more features than there are", "config_type", attnsparse_n_features=[10, 8, 12]),
        value("no features", "config_type", attnsparse_n_features=[0, 7, 12]),
        value("a count that is true", "config_type", attnsparse_n_features=[True, 7, 12]),
        value("cross-layer, with layer files", "missing_layer", model_kind="cross_layer_transcoder"),
        text("no input hook", "config_missing", good.replace("feature_in", "attnsparse_"), ConfigError),
        text("no output hook", "config_missing", good.replace("feature_out", "attnsparse_"), ConfigError),
        value("another input hook", "hook", feature_input_hook="hook_resid_pre"),
        value("input hook of attention", "hook", feature_input_hook="ln1.hook_normalized"),
        value("input hook is null", "hook", feature_input_hook=None),
        value("another output hook", "hook", feature_output_hook="hook_resid_post"),
        value("model_name is a number", "config_type", model_name=3),
        value("scan is a mapping", "config_type", scan={"a": 1}),
        value("another activation", "config_value", activation="gelu"),
        value("relu, with thresholds", "config_value", activation="relu"),
        value("transcoders is text", "config_type", transcoders="layer_0.safetensors"),
        value("transcoders is empty", "config_type", transcoders=[]),
        entries("an absolute path", "layer_file", "/etc/passwd"),
        entries("a parent folder", "layer_file", "../layer_0.safetensors"),
        entries("a parent folder inside", "layer_file", "a/../../layer_0.safetensors"),
        entries("an empty path", "layer_file", ""),
        entries("a hidden file", "layer_file", ".layer_0.safetensors"),
        entries("a backslash", "layer_file", "a\\layer_0.safetensors"),
        entries("a drive", "layer_file", "C:layer_0.safetensors"),
        entries("a parent folder on the hub", "layer_file", "hf://a/b/../../c.safetensors"),
        entries("nothing after the repository", "layer_file", "hf://owner/repository"),
        entries("a file that is not here", "missing_layer", "layer_9.safetensors", error=ConfigError),
        entries("a folder", "missing_layer", "folder", error=ConfigError),
        entries("a file of the hub that is not here", "missing_layer", "hf://a/b/layer_9.safetensors",
                error=ConfigError),
        entries("a number", "config_type", 7, error=ConfigError),
        entries("layer 1 in the place of layer 0", "config_value", "layer_1.safetensors", error=ConfigError),
        entries("an entry of v0.1 in a later list", "config_type", "layer_0.safetensors", {"layer": 1},
                error=ConfigError),
        entries("a file of another kind", "magic", "config.yaml"),
        old("layer 0 twice", "duplicate_layer", layer=0),
        old("no layer", "config_type", layer=None),
        old("layer is true", "config_type", layer=True),
        old("a negative layer", "config_type", layer=-1),
        old("no filepath", "config_type", filepath=None),
        old("an unknown key", "config_type", transposed=True),
        BadSet("v0.1: W_dec as in later versions", ConfigError, "tensor_shape",
               V01 | {"files/l1.safetensors": from_arrays(tiny.plain_layer(V01_WEIGHTS, 1))}, "set.yaml"),
    ]  # fmt: skip


def _top_k() -> list[BadSet]:
    files, _ = tiny.circuit_tracer_top_k()

    def bad(name: str, code: str, **changes: Any) -> BadSet:
        return BadSet("top-k: " + name, ConfigError, code, files | {"config.yaml": tiny.config(**changes)})

    return [
        bad("not in config.yaml", "config_missing"),
        bad("no k", "config_type", activation="topk"),
        bad("k is 0", "config_type", activation="topk", k=0),
        bad("k is true", "config_type", activation="topk", k=True),
        bad("k is text", "config_type", activation="topk", k="4"),
        bad("jump_relu without thresholds", "missing_tensor", activation="jump_relu"),
    ]


def _cross_layer() -> list[BadSet]:
    def bad(name: str, code: str, files: Mapping[str, Any], error: type = ConfigError) -> BadSet:
        return BadSet("cross-layer: " + name, error, code, files)

    def decoder(*shape: int, name: str = "W_dec_1") -> dict[str, bytes]:
        return {"W_dec_1.safetensors": from_arrays({name: np.zeros(shape, np.float32)})}

    w = tiny.weights(cross=True, threshold=True)
    arrays = {
        "W_enc_1": w.w_enc[1],
        "b_enc_1": w.b_enc[1],
        "b_dec_1": w.output[1],
        "threshold_1": w.threshold[1],
    }

    def encoder(**changes: Any) -> dict[str, bytes]:
        kept = {name: array for name, array in (arrays | changes).items() if array is not None}
        return {"W_enc_1.safetensors": from_arrays(kept)}

    return [
        bad("no W_dec_1", "missing_layer", without(CROSS, "W_dec_1.safetensors")),
        bad("no W_enc_1", "missing_layer", without(CROSS, "W_enc_1.safetensors")),
        bad("W_dec_3 too many", "extra_layer", CROSS | {"W_dec_3.safetensors": CROSS["W_dec_2.safetensors"]}),
        bad("the last layer left out", "tensor_shape",
            without(CROSS, "W_enc_2.safetensors", "W_dec_2.safetensors")),
        bad("W_dec_1 writes to all layers", "tensor_shape", CROSS | decoder(7, 3, E)),
        bad("W_dec_1 with axes swapped", "tensor_shape", CROSS | decoder(2, 7, E)),
        bad("W_dec_1 under another name", "missing_tensor", CROSS | decoder(7, 2, E, name="W_dec")),
        bad("names without numbers", "missing_tensor", CROSS | encoder(b_enc_1=None, b_enc=w.b_enc[1])),
        bad("W_enc_1 transposed", "tensor_shape", CROSS | encoder(W_enc_1=w.w_enc[1].T)),
        bad("threshold_1 missing", "missing_tensor", CROSS | encoder(threshold_1=None)),
        bad("a skip", "unexpected_tensor", CROSS | encoder(W_skip_1=np.eye(E, dtype=np.float32))),
        bad("NaN in W_enc_1", "nonfinite", CROSS | encoder(W_enc_1=with_nan(w.w_enc[1])), NonFiniteError),
        bad("NaN in the last target", "nonfinite", CROSS | {"W_dec_1.safetensors": from_arrays(
            {"W_dec_1": with_nan(w.w_dec[1])})}, NonFiniteError),
        bad("as a set", "missing_layer", CROSS | {"config.yaml": tiny.config()}),
        bad("GemmaScope 2, one layer less", "tensor_shape", SCOPE_CROSS | {"config.yaml": tiny.config(
            "cross_layer_transcoder", transcoders=["l0.safetensors", "l1.safetensors"])}),
        BadSet("cross-layer: no config.yaml", ConfigError, "config_missing", without(CROSS, "config.yaml")),
    ]  # fmt: skip


def _scope() -> list[BadSet]:
    name = "layer_1/width_10/params.npz"
    w = SCOPE_WEIGHTS
    good = {"W_enc": w.w_enc[1].T, "W_dec": w.w_dec[1][:, 0], "b_enc": w.b_enc[1], "b_dec": w.output[1],
            "threshold": w.threshold[1]}  # fmt: skip

    def bad(
        what: str, code: str, error: type = ConfigError, data: bytes | None = None, **changes: Any
    ) -> BadSet:
        kept = {key: array for key, array in (good | changes).items() if array is not None}
        return BadSet("npz: " + what, error, code, SCOPE | {name: tiny.npz(**kept) if data is None else data})

    def entry_of(what: str, code: str, change: Callable[[bytes], bytes], error: type = FormatError) -> BadSet:
        """The good archive with the bytes of W_enc.npy changed."""
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(tiny.npz(**good))) as old, zipfile.ZipFile(file, "w") as new:
            for each in old.namelist():
                data = old.read(each)
                new.writestr(each, change(data) if each == "W_enc.npy" else data)
        return bad(what, code, error, file.getvalue())

    def nine(data: bytes) -> bytes:
        begin, end = data.index(b"(6, 7)"), data.index(b"\n")
        return data[:begin] + (b"(" + b"1, " * 8 + b"42), }").ljust(end - begin) + data[end:]

    compressed, objects = io.BytesIO(), io.BytesIO()
    np.savez_compressed(compressed, **good)
    np.savez(objects, **(good | {"W_enc": np.array([{}], object)}))
    whole = tiny.npz(**good)
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("W_enc.txt", "1 2 3")
    at = whole.find(np.ascontiguousarray(good["W_dec"]).tobytes())
    return [
        bad("no zip", "magic", FormatError, b"\x93NUMPY\x01\x00" + bytes(40)),
        bad("empty", "too_short", FormatError, b""),
        bad("cut short", "truncated", FormatError, whole[:-10]),
        bad("compressed", "zip_compressed", FormatError, compressed.getvalue()),
        bad("Python objects", "array_header", FormatError, objects.getvalue()),
        bad("an entry that is no array", "array_header", FormatError, other.getvalue()),
        bad("a damaged array", "crc", FormatError, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]),
        entry_of("no header", "array_header", lambda data: data[:5]),
        entry_of("version 3", "array_header", lambda data: data[:6] + b"\x03" + data[7:]),
        entry_of("a header that is code", "array_header",
                 lambda data: data.replace(b"'shape': (", b"'shape': int(")),
        entry_of("more columns than bytes", "size_mismatch", lambda data: data.replace(b"(6, 7)", b"(6, 8)")),
        entry_of("big-endian", "dtype", lambda data: data.replace(b"<f4", b">f4")),
        entry_of("complex", "dtype", lambda data: data.replace(b"<f4", b"<c8")),
        entry_of("nine dimensions", "rank_limit", nine, LimitError),
        bad("no threshold", "missing_tensor", threshold=None),
        bad("W_enc transposed", "tensor_shape", W_enc=w.w_enc[1]),
        bad("lower-case names", "missing_tensor", W_enc=None, W_dec=None, w_dec=good["W_dec"]),
        bad("one array too many", "unexpected_tensor", b_dec_out=ZEROS),
        bad("integers", "dtype", FormatError, b_dec=np.ones(E, np.int64)),
        bad("NaN", "nonfinite", NonFiniteError, W_dec=with_nan(good["W_dec"])),
        BadSet("GemmaScope 2: w_enc transposed", ConfigError, "tensor_shape", SCOPE_2 | {
            "l1.safetensors": from_arrays({
                "w_enc": SCOPE_2_WEIGHTS.w_enc[1], "w_dec": SCOPE_2_WEIGHTS.w_dec[1][:, 0],
                "b_enc": SCOPE_2_WEIGHTS.b_enc[1], "b_dec": ZEROS, "threshold": SCOPE_2_WEIGHTS.b_enc[1]})}),
    ]  # fmt: skip


SETS = [*_tensors(), *_files(), *_configs(), *_top_k(), *_cross_layer(), *_scope()]
