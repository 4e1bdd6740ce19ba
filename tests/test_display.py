"""Tables for notebooks: escaped, cut, and HTML only where it is marked as such."""

from __future__ import annotations

from attnsparse._display import Html, html_rows


def test_cells_are_escaped_unless_they_are_html() -> None:
    found = html_rows(("a", "b"), [("<i>", Html("<b>x</b>")), ("\u202e", "")], 2)
    assert found == (
        "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody>"
        "<tr><td>&lt;i&gt;</td><td><b>x</b></td></tr><tr><td>\\u202e</td><td></td></tr></tbody></table>"
    )


def test_what_is_left_out_is_counted() -> None:
    assert html_rows(("a",), [("x",)], 1_235).endswith("</table><p>and 1,234 more</p>")
    assert "more" not in html_rows(("a",), [], 0)
