"""Pages of HTML that need no other file: how they are put together, written and shown.

A page holds its numbers as JSON, one style and one script. The Content-Security-Policy lets no script run but
this one, and nothing be loaded, whatever the texts in the page are.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import sys
import tempfile
import warnings
import webbrowser
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import _check
from ._display import in_notebook
from .errors import printable
from .io.atomic import write_atomic

LARGE = 20_000_000
"""Bytes from which a page is slow to open."""
MAX_SHOWN = 20_000_000
"""The largest page, in bytes, that is put into a notebook."""
HEIGHT = 640
"""Pixels that a page takes in a notebook."""
_NO_FRAME = "A page of attnsparse. It is shown when the notebook is trusted, or after running the cell."
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def asset(folder: Path, name: str) -> str:
    """A file that is a part of pages; ASCII."""
    return (folder / name).read_text(encoding="ascii")


def filled(template: str, parts: Mapping[str, str], script: str, style: str) -> bytes:
    """The page as bytes, all of them ASCII: `{{name}}` in the template is replaced by a part.

    parts: HTML, in which the texts of others are escaped already. script, style: go to `{{script}}` and
    `{{style}}`; `{{policy}}` allows these two and nothing else.
    """
    every = {**parts, "script": script, "style": style, "policy": _policy(script, style)}
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: every[match[1]], template)
    return text.encode("ascii", "xmlcharrefreplace")


def _policy(script: str, style: str) -> str:
    """Nothing from anywhere, no script but this and no style but this."""
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode("ascii")).digest()).decode() for text in (script, style)
    ]
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def escaped_json(value: Any) -> str:
    """JSON in ASCII without `<`, `>` and `&`: no text in it can end the element that it is in."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign, escape in _ESCAPES.items():
        text = text.replace(sign, escape)
    return text


def write_page(path: str | os.PathLike[str], data: bytes, advice: str) -> Path:
    """Write a page. A large one gives a UserWarning with `advice` on how to make it smaller."""
    place = Path(_check.path(path))
    write_atomic(place, [data])
    if len(data) > LARGE:
        size = f"{printable(os.fspath(place))} has {len(data) / 1e6:.0f} MB and will open slowly"
        warnings.warn(f"{size}; {advice}", stacklevel=3)
    return place


def show_page(data: bytes, name: str, height: int, open_browser: bool, advice: str) -> None:
    """Show a page in a notebook, or else write it as `name`.html in a new folder for temporary files.

    A page of more than MAX_SHOWN bytes, which the notebook would have to hold, is a ValueError.
    """
    if not in_notebook():
        path = Path(tempfile.mkdtemp(prefix="attnsparse-")) / f"{name}.html"
        write_page(path, data, advice)
        print(f"{path} ({len(data) / 1e6:.1f} MB): open it in a browser")
        if open_browser:
            webbrowser.open(path.as_uri())
        return
    if len(data) > MAX_SHOWN:
        raise ValueError(
            f"this page has {len(data) / 1e6:.0f} MB, and a notebook with it would be as large; {advice}, or "
            "write it to a file with to_html(path)"
        )
    display: Any = sys.modules["IPython"].display
    display.display({"text/html": frame(data, height), "text/plain": _NO_FRAME}, raw=True)
    if open_browser:
        print("the page is shown above; to_html(path) writes a file for the browser")


def frame(data: bytes, height: int) -> str:
    """A page inside another one. The frame may run its own script; it cannot reach what is around it.

    A notebook that is not trusted, and a program that shows no frames, leave the words inside alone.
    """
    return (
        f'<iframe srcdoc="{html.escape(data.decode("ascii"))}" sandbox="allow-scripts" width="100%" '
        f'height="{height}" style="border: 0" title="attnsparse">{_NO_FRAME}</iframe>'
    )


def joined(parts: Iterable[str]) -> str:
    """Scripts, one after the other, in a scope of their own."""
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();\n"
