"""Labels of features in files: our JSON, tables in CSV, and the pages of features that graph viewers show."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import _check
from ..errors import FormatError, file_error, quoted, raise_file_error
from ..io.atomic import write_atomic
from ..io.limits import DEFAULT_LIMITS, Limits
from ..io.regular_file import read_small
from ..io.strict_json import parse_object, shown
from ..io.text_bytes import compact_json, shortest, text_bytes
from ..items import cantor
from ..model.locate import MODELS_FOLDER
from .labels import FeatureLabels, Key, checked_key, no_feature

FORMAT = "attnsparse feature labels"
VERSION = 1
LABELS = ("labels.json", "labels.csv")  # in a folder of transcoders
LABEL_LIMITS = Limits(max_json_values=20_000_000)

_SIDES = ("promoted", "suppressed")
_FIELDS = {"model_name": str, "transcoders_name": str, "n_prompts": int, "n_tokens": int, "before": int,
           "window": int, "strings": list, "features": list, "given": list}  # fmt: skip
_MOST = 2**31
_TOKEN_BYTES = 8  # of a context's token in memory: id and activation
_LEAST_ROOM, _ROOM_PER_BYTE = 64 * 2**20, 16  # for contexts, beside the size of their file


def save_feature_labels(labels: FeatureLabels, path: str | os.PathLike[str], contexts: int | None) -> None:
    """See `FeatureLabels.save`."""
    name = _check.path(path)
    contexts = None if contexts is None else _check.integer(contexts, "contexts", 0)
    if not name.endswith((".json", ".csv")):
        raise ValueError(f"path must end in .json or .csv, got {name!r:.80}")
    if name.endswith(".csv"):
        write_atomic(name, [text_bytes(labels.to_pandas().to_csv(index=False, lineterminator="\n"))])
    else:
        write_atomic(name, [*compact_json(_data(labels, contexts)), b"\n"])


def _data(labels: FeatureLabels, contexts: int | None) -> dict[str, Any]:
    tokens = labels.tokens[:, :contexts]
    kept = (tokens, labels.promoted_tokens, labels.suppressed_tokens)
    used = set(np.unique(np.concatenate([array.ravel() for array in kept])).tolist()) - {-1}
    return {
        "format": FORMAT,
        "version": VERSION,
        "model_name": labels.model_name,
        "transcoders_name": labels.transcoders_name,
        "n_prompts": labels.n_prompts,
        "n_tokens": labels.n_tokens,
        "before": labels.before,
        "window": labels.tokens.shape[2],
        "strings": [[token, labels.strings[token]] for token in sorted(used)],
        "given": [[*key, text] for key, text in sorted(labels.given.items())],
        "features": [_feature(labels, row, contexts) for row in range(len(labels.layer))],
    }


def _feature(labels: FeatureLabels, row: int, contexts: int | None) -> dict[str, Any]:
    sides = {}
    for side in _SIDES:
        tokens, effects = (getattr(labels, f"{side}_{what}")[row] for what in ("tokens", "effects"))
        sides[side] = [list(pair) for pair in zip(tokens.tolist(), shortest(effects))]
    return {
        "layer": int(labels.layer[row]),
        "feature": int(labels.feature[row]),
        "label": labels.automatic[row],
        "density": float(labels.density[row]),
        "contexts": _contexts(labels, row, contexts),
        **sides,
    }


def _contexts(labels: FeatureLabels, row: int, contexts: int | None) -> list[dict[str, Any]]:
    tokens = labels.tokens[row, :contexts]
    inside, values = tokens >= 0, shortest(labels.activations[row, :contexts].ravel())
    used, first = inside.sum(axis=1).tolist(), inside.argmax(axis=1).tolist() if inside.size else []
    width, rows, found = tokens.shape[1], tokens.tolist(), []
    places = zip(labels.prompt[row].tolist(), labels.position[row].tolist())
    for k, ((prompt, position), begin, n) in enumerate(zip(places, first, used)):
        if n:
            found.append(
                {
                    "prompt": prompt,
                    "position": position,
                    "at": labels.before - begin,
                    "tokens": rows[k][begin : begin + n],
                    "activations": values[k * width + begin : k * width + begin + n],
                }
            )
    return found


# ------------------------------------------------------------------------------------------- reading


def load_feature_labels(path: str | os.PathLike[str], *, limits: Limits = LABEL_LIMITS) -> FeatureLabels:
    """Read what `FeatureLabels.save` wrote, or any CSV in UTF-8 with columns layer, feature and label.

    Parameters
    ----------
    path : path
        A file that ends in .csv gives labels alone, no contexts; rows without a label are left out. A
        folder: its labels.json, or else its labels.csv. The name of transcoders that come with the package:
        the labels that come with them.
    limits : Limits
        Of the sizes that files may have.

    Returns
    -------
    FeatureLabels

    Raises
    ------
    OSError
        If the file cannot be read; FileNotFoundError for a folder with neither file.
    FormatError
        With a code: json_* and duplicate_name for the JSON; magic, version, header_value for its fields;
        feature for an invalid feature; csv for a CSV.
    LimitError
        Above one of `limits`.
    """
    name = _labels_file(path)
    if name.endswith(".csv"):
        return FeatureLabels(given=read_label_csv(name, limits=limits))
    raw = read_small(name, "max_graph_bytes", limits=limits)
    data = parse_object(raw, name, limits=limits)
    _check_fields(data, name)
    _check_room(data, len(raw), name)
    strings = _strings(data["strings"], name)
    given = {}
    for entry in data["given"]:
        if not _is_row(entry, (int, int, str)) or min(entry[:2]) < 0:
            raise_file_error(
                "header_value", name, "'given' must hold layer, feature and label of each", "given"
            )
        given[entry[0], entry[1]] = entry[2]
    entries = data["features"]
    for i, entry in enumerate(entries):
        _check_feature(entry, i, data, strings, name)
    keys = [(entry["layer"], entry["feature"]) for entry in entries]
    for i, (first, second) in enumerate(itertools.pairwise(keys)):
        if first >= second:
            text = f"features must be in rising order of layer and number, features[{i + 1}] is not"
            raise_file_error("feature", name, text, f"features[{i + 1}]")
    return FeatureLabels(
        data["model_name"], data["transcoders_name"], data["n_prompts"], data["n_tokens"],
        layer=np.array([key[0] for key in keys], np.int32),
        feature=np.array([key[1] for key in keys], np.int32),
        automatic=tuple(entry["label"] for entry in entries),
        density=np.array([entry["density"] for entry in entries], np.float64),
        before=data["before"], strings=strings, given=given,
        **_context_arrays(entries, data["before"], data["window"]), **_effect_arrays(entries),
    )  # fmt: skip


def _labels_file(path: str | os.PathLike[str]) -> str:
    name = _check.path(path)
    embedded = name not in (".", "..") and Path(name).name == name and (MODELS_FOLDER / name).is_dir()
    folder = MODELS_FOLDER / name if embedded else Path(name)
    if not folder.is_dir():
        return name
    for label_file in LABELS:
        if (folder / label_file).exists():
            return os.fspath(folder / label_file)
    text = f"no {' and no '.join(LABELS)} in this folder; asp.describe_features makes labels"
    raise FileNotFoundError(errno.ENOENT, text, os.fspath(folder))


def _check_fields(data: dict[str, Any], path: str) -> None:
    if data.get("format") != FORMAT:
        raise_file_error(
            "magic",
            path,
            f"not feature labels: 'format' is {shown(data.get('format'))}, must be '{FORMAT}'",
        )
    version = data.get("version")
    if type(version) is not int or version < 1:
        raise_file_error(
            "version", path, f"version must be an integer of at least 1, got {shown(version)}", "version"
        )
    if version > VERSION:
        text = f"from a newer attnsparse: version {version}, this one reads up to {VERSION}; update"
        raise_file_error("version", path, text, "version")
    for field, kind in _FIELDS.items():
        value = data.get(field)
        if type(value) is not kind or (isinstance(value, int) and not 0 <= value < _MOST):
            raise_file_error("header_value", path, f"'{field}' cannot be {shown(value)}", field)
    if data["before"] >= max(data["window"], 1):
        text = f"'window' {data['window']} does not fit 'before' {data['before']}"
        raise_file_error("header_value", path, text, "window")


def _check_room(data: dict[str, Any], n_bytes: int, path: str) -> None:
    """FormatError `header_value` if the arrays of contexts would be large beside the file of `n_bytes`: all
    features have room for the most contexts that one has, and every context for `window` tokens."""
    longest = max((len(entry["contexts"]) for entry in data["features"] if _has_contexts(entry)), default=0)
    needed = _TOKEN_BYTES * len(data["features"]) * longest * data["window"]
    if needed > _LEAST_ROOM + _ROOM_PER_BYTE * n_bytes:
        text = f"{longest:,} contexts of {data['window']:,} tokens for each of {len(data['features']):,} "
        text += f"features would take {needed:,} bytes, which a file of {n_bytes:,} bytes does not need"
        raise_file_error("header_value", path, text, "window")


def _has_contexts(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("contexts"), list)


def _is_row(value: Any, kinds: Sequence[type]) -> bool:
    """A list of values of these types; an integer is a float too."""
    return (
        isinstance(value, list)
        and len(value) == len(kinds)
        and all(type(x) is kind or (kind is float and type(x) is int) for x, kind in zip(value, kinds))
    )


def _strings(rows: list[Any], path: str) -> dict[int, str]:
    for row in rows:
        if not _is_row(row, (int, str)) or not 0 <= row[0] < _MOST:
            raise_file_error(
                "header_value", path, "'strings' must hold the id and the text of each token", "strings"
            )
    return dict(rows)


def _check_feature(
    entry: Any, i: int, data: Mapping[str, Any], strings: Mapping[int, str], path: str
) -> None:
    field = f"features[{i}]"
    good = isinstance(entry, dict) and all(
        type(entry.get(name)) is int and 0 <= entry[name] < _MOST for name in ("layer", "feature")
    )
    good = good and isinstance(entry.get("label"), str) and type(entry.get("density")) in (int, float)
    good = good and 0 <= entry["density"] <= 1
    if not good or not all(isinstance(entry.get(name), list) for name in ("contexts", *_SIDES)):
        text = f"{field} must have layer, feature, label, density, contexts, promoted and suppressed"
        raise_file_error("feature", path, text, field)
    for side in _SIDES:
        if not all(
            _is_row(row, (int, float)) and row[0] in strings and abs(row[1]) < 1e38 for row in entry[side]
        ):
            text = f"{field}: '{side}' must hold a token of 'strings' and a number of each"
            raise_file_error("feature", path, text, field)
    for context in entry["contexts"]:
        if not _is_context(context, data["before"], data["window"], strings):
            text = f"{field}: a context does not fit 'before', 'window' and 'strings'"
            raise_file_error("feature", path, text, field)


def _is_context(context: Any, before: int, window: int, strings: Mapping[int, str]) -> bool:
    if not isinstance(context, dict):
        return False
    places: list[Any] = [context.get(name) for name in ("prompt", "position", "at")]
    tokens, values = context.get("tokens"), context.get("activations") or ()
    if not all(type(place) is int and 0 <= place < _MOST for place in places) or not isinstance(tokens, list):
        return False
    if not _is_row(values, (float,) * len(tokens)) or not max(map(abs, values), default=0) < 1e38:
        return False
    at = places[2]
    fits = at <= before and at < len(tokens) and before - at + len(tokens) <= window
    return fits and all(type(token) is int and token in strings for token in tokens)


def _context_arrays(entries: Sequence[dict[str, Any]], before: int, window: int) -> dict[str, np.ndarray]:
    n, most = len(entries), max((len(entry["contexts"]) for entry in entries), default=0)
    prompt, position = np.full((2, n, most), -1, np.int32)
    activation = np.zeros((n, most), np.float32)
    tokens = np.full((n, most, window), -1, np.int32)
    activations = np.zeros((n, most, window), np.float32)
    for row, entry in enumerate(entries):
        for k, context in enumerate(entry["contexts"]):
            first = before - context["at"]
            inside = slice(first, first + len(context["tokens"]))
            prompt[row, k], position[row, k] = context["prompt"], context["position"]
            tokens[row, k, inside], activations[row, k, inside] = context["tokens"], context["activations"]
            activation[row, k] = activations[row, k, before]
    return {"prompt": prompt, "position": position, "activation": activation, "tokens": tokens,
            "activations": activations}  # fmt: skip


def _effect_arrays(entries: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for side in _SIDES:
        most = min((len(entry[side]) for entry in entries), default=0)
        rows = [entry[side][:most] for entry in entries]
        shape = len(entries), most
        found[f"{side}_tokens"] = np.array([[t for t, _ in row] for row in rows], np.int32).reshape(shape)
        found[f"{side}_effects"] = np.array([[x for _, x in row] for row in rows], np.float32).reshape(shape)
    return found


def read_label_csv(path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS) -> dict[Key, str]:
    """The labels in a CSV; see `load_feature_labels`."""
    raw = read_small(path, "max_graph_bytes", limits=limits)
    try:
        text = raw.decode("utf-8-sig")
        table = csv.reader(io.StringIO(text, newline=""), strict=True)
        names = [name.strip() for name in next(table, [])]
        if missing := [column for column in _COLUMNS if column not in names]:
            message = f"has no column {missing[0]}; its first line must name layer, feature and label"
            raise file_error(FormatError, "csv", path, message, field=missing[0])
        return _labels_of_rows(table, names, path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise file_error(FormatError, "csv", path, f"not a CSV in UTF-8: {error}") from error


_COLUMNS = ("layer", "feature", "label")


def _labels_of_rows(table: Any, names: list[str], path: str | os.PathLike[str]) -> dict[Key, str]:
    """What the rows after the first line say; `table` is a reader of the csv module."""
    found: dict[Key, str] = {}
    for row in table:
        if not row:
            continue
        line = table.line_num
        if len(row) != len(names):
            text = f"line {line} has {len(row)} cells, the first line {len(names)}"
            text += '; write a label with a comma in quotation marks, "a, b"' * (len(row) > len(names))
            raise file_error(FormatError, "csv", path, text)
        cells = dict(zip(names, row))
        key = _cell(cells, "layer", line, path), _cell(cells, "feature", line, path)
        if key in found:
            text = f"line {line}: a second label of feature {key[1]} of layer {key[0]}"
            raise file_error(FormatError, "csv", path, text, field="feature")
        if cells["label"]:
            found[key] = cells["label"]
    return found


def _cell(row: Mapping[str, str], column: str, line: int, path: str | os.PathLike[str]) -> int:
    text = row[column].strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        message = f"line {line}: {column} must be an integer of at least 0, got {quoted(text)}"
        raise file_error(FormatError, "csv", path, message, field=column)
    return int(text)


# ------------------------------------------------------------------------------------------- labels of a user


def checked_labels(
    labels: Any, n_layer: int | None = None, n_features: Sequence[int] | None = None
) -> Mapping[Key, str]:
    """Labels of a user, or of a file: (layer, feature) to text.

    n_layer, n_features: how many layers, and features of each, there are, where it is known. Raises TypeError
    for other things, keys or labels, IndexError for features that do not exist; as `load_feature_labels` for
    a path.
    """
    if isinstance(labels, (str, os.PathLike)):
        labels = load_feature_labels(labels)
    if not isinstance(labels, Mapping):
        kind = type(labels).__name__
        raise TypeError(f"labels must be a mapping from (layer, feature) to text, or a path, got {kind}")
    found: Mapping[Key, str] = labels
    if not isinstance(labels, FeatureLabels):
        found = {checked_key(key): _checked_label(key, text) for key, text in labels.items()}
    n_layer = n_layer if n_features is None else len(n_features)
    for layer, number in found:
        if layer < 0 or number < 0:
            raise IndexError(f"labels: layer and feature must be at least 0, got {(layer, number)}")
        if n_layer is not None and layer >= n_layer:
            raise IndexError(f"labels: there is no layer {layer}, the layers are 0..{n_layer - 1}")
        if n_features is not None and number >= n_features[layer]:
            raise IndexError(f"labels: {no_feature(n_features, layer, number)}")
    return found


def _checked_label(key: Any, text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(f"the label of {key!r:.60} must be a string, got {type(text).__name__}")
    return text


# ------------------------------------------------------------------------------------------- viewers


def write_feature_details(folder: str | os.PathLike[str], labels: FeatureLabels) -> list[Path]:
    """Write one JSON per described feature, as the viewers of attribution graphs show them.

    Parameters
    ----------
    folder : path
        Made if it does not exist. circuit-tracer's viewer looks in features/SCAN/, Neuronpedia at
        `feature_json_base_url` of `Graph.to_neuronpedia`.
    labels : FeatureLabels
        With contexts.

    Returns
    -------
    list of pathlib.Path
        The files, one per feature.

    Raises
    ------
    TypeError
        For other labels.
    OSError
        If a file cannot be written.

    Notes
    -----
    The format of Anthropic's features: `index`.json with index, the Cantor pairing of (layer, number) that is
    `feature` in a graph JSON; examples_quantiles, one group "Top activations" of examples with tokens,
    tokens_acts_list and train_token_ind, the place of the strongest; top_logits and bottom_logits, the tokens
    promoted and suppressed; act_min, 0, and act_max.
    """
    _check.instance(labels, FeatureLabels, "labels")
    folder = Path(_check.path(folder, "folder"))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for row, key in enumerate(zip(labels.layer.tolist(), labels.feature.tolist())):
        index = cantor(*key)
        examples = [
            {
                "tokens": strings,
                "tokens_acts_list": shortest(values),
                "train_token_ind": at,
                "is_repeated_datapoint": False,
            }
            for strings, values, at in labels.examples(*key)
        ]
        sides = [
            [labels.strings[t] for t in getattr(labels, f"{side}_tokens")[row].tolist()] for side in _SIDES
        ]
        data = {
            "index": index,
            "examples_quantiles": [{"quantile_name": "Top activations", "examples": examples}],
            "top_logits": sides[0],
            "bottom_logits": sides[1],
            "act_min": 0.0,
            "act_max": float(labels.activation[row].max(initial=0)),
        }
        paths.append(folder / f"{index}.json")
        paths[-1].write_bytes(b"".join(compact_json(data)))
    return paths
