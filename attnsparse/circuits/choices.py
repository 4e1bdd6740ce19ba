"""The names that options of a circuit take, and what each unit of ablation consists of."""

from __future__ import annotations

from ..items import Edge, Head, HeadPosition

ITEMS: dict[str, type[Head] | type[HeadPosition] | type[Edge]] = {
    "head": Head,
    "head_position": HeadPosition,
    "edge": Edge,
}
NAMES = {"head": "heads", "head_position": "heads at a position", "edge": "attention edges"}

UNITS = ("head", "head_position", "edge")
"""What an item is: "head", "head_position" (a head at one position) or "edge" (an attention entry)."""
METHODS = ("exact", "attribution", "ig", "greedy")
"""How items are ranked."""
NORMALIZATIONS = ("mib", "ratio", "none")
"""How the metric becomes a faithfulness (explained effect)."""
RANK_BY = ("absolute", "signed")
"""Which scores come first."""
COUNTED_BY = ("first", "stays")
"""Which of the two sizes of `Needed` counts."""

MAX_RESAMPLES = 1_000_000
