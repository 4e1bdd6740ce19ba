"""Links that leave docs/, such as `../notebooks/...`, lead to the copies that conf.py makes."""

import re

COPIED = re.compile(r"\]\(\.\./(CHANGELOG\.md|notebooks/|bench/README\.md)")


def redirect(app, name: str, text: list[str]) -> None:
    if "/" not in name:
        text[0] = COPIED.sub(r"](_copied/\1", text[0])


def setup(app) -> dict[str, bool]:
    app.connect("source-read", redirect)
    return {"parallel_read_safe": True}
