"""Lets Sphinx render docstrings that are plain text, not yet in numpydoc form, without warnings.

A docstring with a numpydoc section (a title underlined with dashes) is left alone.
"""

import re
from collections.abc import Iterator

SECTION = re.compile(r"^(\w[\w ]*)\n-{3,}$", flags=re.M)
CODE = re.compile(r"(``.+?``|`[^`\n]+`)", flags=re.S)


def literal(text: str) -> str:
    r"""`x` as code that may touch a letter on either side."""
    return f"\\ ``{text.strip('`')}``\\ "


def escaped(text: str) -> str:
    """Running text whose `*`, `|`, `_` and backslashes mean themselves; text in backticks is code."""
    parts = CODE.split(text)
    for i, part in enumerate(parts):
        parts[i] = literal(part) if i % 2 else re.sub(r"([*|_\\`<>])", r"\\\1", part)
    return "".join(parts)


def blocks(text: str) -> Iterator[str]:
    """The docstring as reStructuredText, block by block: text, items of lists, and indented formulas."""
    kind, held = "", []
    for line in [*text.splitlines(), ""]:
        is_item = line.startswith("* ")
        is_formula = line.startswith("    ") and kind != "item"
        now = "item" if is_item else "formula" if is_formula else "text"
        if not line.strip() or is_item or (now != kind and kind not in ("", "item")):
            if held:
                yield block(kind, held)
            kind, held = "", []
        if line.strip():
            kind = kind or now
            held.append(line)


def block(kind: str, lines: list[str]) -> str:
    if kind == "formula":
        return "\n".join(["::", "", *lines])
    text = escaped(" ".join(line.strip() for line in lines))
    return "* " + text.removeprefix("\\* ") if kind == "item" else text


def process(app, what, name, value, options, lines: list[str]) -> None:
    text = "\n".join(lines)
    if not SECTION.search(text):
        lines[:] = "\n\n".join(blocks(text)).splitlines()


def setup(app) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process, priority=400)  # numpydoc comes after, at 500
    return {"parallel_read_safe": True}
