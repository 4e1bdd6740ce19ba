"""Reads small untrusted YAML files: plain values only, by PyYAML's safe loader.

Before anything is built, the file's size, its depth and the number of its values are checked, and anchors,
aliases, tags and duplicate keys are refused: the configurations that are read here have none.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

from ..errors import FormatError, file_error, quoted
from .limits import DEFAULT_LIMITS, Limits
from .regular_file import read_small

_MAX_DEPTH = 8


def read_yaml(path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS) -> dict[str, Any]:
    """The mapping in a YAML file of at most `limits.max_yaml_bytes` bytes; its keys are strings.

    Raises FormatError with code yaml_syntax, yaml_type (no mapping), yaml_depth, yaml_feature (an anchor,
    alias or tag) or duplicate_name, LimitError with code file_limit.
    """
    import yaml

    path = os.fspath(path)
    data = read_small(path, "max_yaml_bytes", limits=limits)
    try:
        _check_events(yaml, data, path)
        node = yaml.compose(data, yaml.SafeLoader)
        _check_keys(yaml, node, path)
        value = yaml.constructor.SafeConstructor().construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
        _raise_file_error("yaml_syntax", path, f"invalid YAML{where}: {problem}", error)
    except (ValueError, TypeError, OverflowError) as error:  # a date or a number that Python has no value for
        if isinstance(error, FormatError):
            raise
        _raise_file_error("yaml_syntax", path, "invalid YAML: a number or date out of range", error)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        _raise_file_error("yaml_type", path, f"expected names and values, found {type(value).__name__}", None)
    return value


def _check_events(yaml: Any, data: bytes, path: str) -> None:
    depth = 0
    for event in yaml.parse(data, yaml.SafeLoader):
        line = event.start_mark.line + 1
        tag = getattr(event, "tag", None)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or tag:
            text = f"line {line} has an anchor, alias or tag; write the value out"
            _raise_file_error("yaml_feature", path, text, None)
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
        if depth > _MAX_DEPTH:
            _raise_file_error(
                "yaml_depth", path, f"nested deeper than {_MAX_DEPTH} levels in line {line}", None
            )


def _check_keys(yaml: Any, root: Any, path: str) -> None:
    pending = [root]
    while pending:
        node = pending.pop()
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
        elif isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            pending += [part for pair in node.value for part in pair]
            if len(set(keys)) != len(keys):
                twice = next(key for key in keys if keys.count(key) > 1)
                text = f"duplicate name {quoted(twice)}"
                raise file_error(FormatError, "duplicate_name", path, text, field=twice)


def _raise_file_error(code: str, path: str, text: str, cause: BaseException | None) -> NoReturn:
    raise file_error(FormatError, code, path, text) from cause
