"""What is ablated, patched and shown, and how each is written: heads (`L9H6`), attention edges
(`a9.h6[5->8]`), heads at positions, MLPs, places in the residual stream, tokens.

Nothing here needs pandas or matplotlib, so every other module may use it.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from . import _check
from .errors import printable

COLUMNS = {"head": "head_index", "query": "query_position", "key": "key_position"}
"""Names in tables, where `table.head` and `table.query` are methods of every DataFrame."""

_HEAD_FORMS = re.compile(
    r"L(?P<layer1>[0-9]{1,5})-?H(?P<head1>[0-9]{1,5})"  # L9H6, L9-H6: papers
    r"|A?(?P<layer2>[0-9]{1,5})\.(?P<head2>[0-9]{1,5})"  # 9.6, A9.6: IOI paper, auto-circuit
    r"|a(?P<layer3>[0-9]{1,5})\.h(?P<head3>[0-9]{1,5})"  # a9.h6: EAP, MIB, edge pruning
)


class Head(NamedTuple):
    """An attention head; equal to the tuple `(layer, head)`.

    Parameters
    ----------
    layer : int
        Counted from 0.
    head : int
        Counted from 0.
    """

    layer: int
    head: int

    @property
    def label(self) -> str:
        """The name used in every table and figure, for example `L9H6`."""
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, value: object) -> Head:
        """Read a head in any of the usual notations.

        Parameters
        ----------
        value : str, tuple of int, list of int or Head
            `"L9H6"`, `"L9-H6"`, `"9.6"`, `"A9.6"`, `"a9.h6"`, `(9, 6)` and a `Head` all give `Head(9, 6)`.

        Returns
        -------
        Head
            The head. Whether a model has it is not known here, see `within`.

        Raises
        ------
        ValueError
            For other text and for negative numbers.
        TypeError
            For anything else.
        """
        if isinstance(value, str):
            match = _HEAD_FORMS.fullmatch(value.strip())
            if match is None:
                raise ValueError(
                    f"{value[:80]!r} is not a head; write it as 'L9H6', 'L9-H6', '9.6', 'A9.6' or 'a9.h6'"
                )
            layer, head = (int(number) for number in match.groups() if number is not None)
            return cls(layer, head)
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise TypeError(
                f"a head must be text such as 'L9H6' or a pair (layer, head), got {type(value).__name__}"
            )
        layer, head = _check.integer(value[0], "layer"), _check.integer(value[1], "head")
        if layer < 0 or head < 0:
            raise ValueError(f"layer and head must be at least 0, got ({layer}, {head})")
        return cls(layer, head)

    def within(self, n_layer: int, n_head: int) -> Head:
        """Check that a model has this head.

        Parameters
        ----------
        n_layer : int
            Layers of the model.
        n_head : int
            Heads of each layer.

        Returns
        -------
        Head
            This head, with Python integers.

        Raises
        ------
        IndexError
            If there is no such head.
        TypeError
            If layer or head is not an integer.
        """
        layer, head = _check.integer(self.layer, "layer"), _check.integer(self.head, "head")
        if not (0 <= layer < n_layer and 0 <= head < n_head):
            raise IndexError(
                f"{self.label} is out of range: there are layers 0..{n_layer - 1} and heads 0..{n_head - 1}"
            )
        return Head(layer, head)


def token_label(token: str) -> str:
    """A token as an axis or a table shows it: no leading space, other blanks and control characters visible.

    `" large"` -> `large`, `" "` -> `␣`, a line feed -> `\\n`, a tab -> `\\t`, the empty string -> `∅`.
    """
    shown = token[1:] if token.startswith(" ") and token.strip() else token
    if not shown:
        return "∅"
    return printable(shown).replace(" ", "␣")


def shortened(text: str, most: int) -> str:
    """`text` escaped, on one line; if it is longer than `most` characters, its middle is left out."""
    if len(text) > 2 * most:
        text = text[:most] + text[-most:]  # no more of it can be seen
    shown, kept = printable(text), most - 1
    if len(shown) <= most:
        return shown
    end = len(shown) - kept // 2
    return f"{shown[: kept - kept // 2].rstrip()}…{shown[end:].lstrip()}"


def edge_label(layer: int, head: int, query: int, key: int) -> str:
    """One attention edge in the direction in which information flows: `a9.h6[5->8]`, key 5 to query 8."""
    return f"a{layer}.h{head}[{key}->{query}]"


_EDGE_FORM = re.compile(r"(?P<head>.+?)\[(?P<key>[0-9]{1,6})->(?P<query>[0-9]{1,6})\]")


class Edge(NamedTuple):
    """An attention edge: entry (query, key) of a head's pattern; equal to `(layer, head, query, key)`.

    Parameters
    ----------
    layer : int
        Counted from 0.
    head : int
        Counted from 0.
    query : int
        Position that reads, counted from 0.
    key : int
        Position that is read, counted from 0; at most `query`.
    """

    layer: int
    head: int
    query: int
    key: int

    @property
    def label(self) -> str:
        """`a9.h6[5->8]`: key 5 to query 8."""
        return edge_label(*self)

    @classmethod
    def parse(cls, value: object) -> Edge:
        """Read an attention edge.

        Parameters
        ----------
        value : str, tuple of int, list of int or Edge
            `"a9.h6[5->8]"`, or any notation of a head followed by `[key->query]`, or
            `(layer, head, query, key)`.

        Returns
        -------
        Edge
            The edge. Whether a model has it is not known here, see `within`.

        Raises
        ------
        ValueError
            For other text, negative numbers, and a key after its query.
        TypeError
            For anything else.
        """
        if isinstance(value, str):
            match = _EDGE_FORM.fullmatch(value.strip())
            if match is None:
                raise ValueError(f"{value[:80]!r} is not an attention edge; write it as 'a9.h6[5->8]'")
            layer, head = Head.parse(match["head"])
            query, key = int(match["query"]), int(match["key"])
        elif isinstance(value, tuple | list) and len(value) == 4:
            names = ("layer", "head", "query", "key")
            layer, head, query, key = (_check.integer(part, name) for part, name in zip(value, names))
        else:
            kind = type(value).__name__
            raise TypeError(f"an edge must be text such as 'a9.h6[5->8]' or four integers, got {kind}")
        if min(layer, head, query, key) < 0:
            raise ValueError(
                f"layer, head, query and key must be at least 0, got {(layer, head, query, key)}"
            )
        return cls(layer, head, query, key)._looking_back()

    def within(self, n_layer: int, n_head: int, n_tokens: int) -> Edge:
        """Check that a model has this edge in a prompt.

        Parameters
        ----------
        n_layer : int
            Layers of the model.
        n_head : int
            Heads of each layer.
        n_tokens : int
            Tokens of the prompt.

        Returns
        -------
        Edge
            This edge, with Python integers.

        Raises
        ------
        IndexError
            If there is no such head or position.
        ValueError
            If the key comes after the query.
        TypeError
            If a number is not an integer.
        """
        layer, head = Head(self.layer, self.head).within(n_layer, n_head)
        query, key = _check.integer(self.query, "query"), _check.integer(self.key, "key")
        if not (0 <= query < n_tokens and 0 <= key < n_tokens):
            raise IndexError(f"{self.label} is out of range: there are positions 0..{n_tokens - 1}")
        return Edge(layer, head, query, key)._looking_back()

    def _looking_back(self) -> Edge:
        if self.key > self.query:
            raise ValueError(f"attention looks back: key {self.key} comes after query {self.query}")
        return self


class HeadPosition(NamedTuple):
    """An attention head at one position.

    Parameters
    ----------
    layer : int
        Counted from 0.
    head : int
        Counted from 0.
    position : int
        Counted from 0; negative positions count from the end.
    """

    layer: int
    head: int
    position: int

    @property
    def label(self) -> str:
        """`L9H6@7`."""
        return f"{Head(self.layer, self.head).label}@{self.position}"


class Mlp(NamedTuple):
    """The MLP of a layer, at all positions or at one.

    Parameters
    ----------
    layer : int
        Counted from 0.
    position : int, optional
        Counted from 0; negative positions count from the end. None: all positions.
    """

    layer: int
    position: int | None = None


class Resid(NamedTuple):
    """The residual stream before, within or after a layer, at one position or at all.

    Parameters
    ----------
    layer : int
        Counted from 0.
    position : int, optional
        Counted from 0; negative positions count from the end. None: all positions.
    point : {"pre", "mid", "post"}, default "pre"
        Before the layer, between its attention and its MLP, or after it.

    Notes
    -----
    It has no zero ablation, which would delete the model.
    """

    layer: int
    position: int | None = None
    point: str = "pre"


def cantor(layer: int, number: int) -> int:
    """The Cantor pairing of two numbers from 0 on: (x + y)(x + y + 1) / 2 + y."""
    return (layer + number) * (layer + number + 1) // 2 + number


def valid_text(text: str) -> str:
    """Text that UTF-8 can hold: half surrogate pairs, from file names that are not UTF-8, become \\udce9."""
    return text.encode("utf-8", "backslashreplace").decode()


def name_of(path: str | os.PathLike[str]) -> str:
    """The last part of a path as a name that can be shown and stored."""
    return valid_text(os.path.basename(os.fspath(path)))
