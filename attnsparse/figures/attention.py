"""Attention patterns as maps: a grid of many small ones, or one large one with its tokens.

Query positions run downwards, key positions to the right, white is 0 and dark blue is 1. Only the lower
triangle is drawn, since attention looks back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias, cast

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle

from .. import _check
from ..items import Head
from .style import (
    GREY,
    LARGEST,
    PANEL,
    PLAIN_TEXT,
    RED,
    STYLE,
    TOKEN_SIGNS,
    WHITE_TO_BLUE,
    apart,
    check_axes,
    check_run,
    column_text,
    figure_of,
    given_text,
    new_axes,
    size_labels,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.transforms import Transform

    from ..model.run import Run

HeadLike: TypeAlias = "Head | str | tuple[int, int]"
Patterns: TypeAlias = "Run | np.ndarray"

_MAP_INCH = 0.74  # width of one small map in a figure of our own
_LEAST_MAP_INCH = 0.001
_TITLE_INCH = 0.26  # height of the strip above a panel, for its title and the scale
_IN_A_ROW = 9  # maps, unless asked for otherwise
_PITCH = 1.16  # distance of two maps, in map widths
_MARGIN = 0.14  # between the outer maps and the panel's border, in map widths
_RIM = 0.02  # around the border, so that half of its line is not cut off
_ROOM_FOR_DIRECTIONS = 4.0  # map widths: narrower panels have a title and the scale alone
_WHITE = 1 / 512  # entries up to here have the colour of an empty map
_VECTOR_TOKENS = 64  # maps of longer prompts are images,
_VECTOR_ENTRIES = 2**16  # and so are maps that have more entries together
_MAP_COLOURS = WHITE_TO_BLUE.with_extremes(bad=(1.0, 1.0, 1.0, 0.0))
_VALUE_TOKENS = 12  # a large map with at most this number of tokens shows its values


def head_grid(
    run: Patterns,
    heads: Iterable[HeadLike] | None = None,
    columns: int | None = None,
    ax: Axes | None = None,
    title: str | None = None,
    scale: bool = True,
    mark: tuple[int, int] | None = None,
) -> Axes:
    """Small attention maps of many heads in a rounded panel.

    The label of a head is at the top right of its map. Queries run downwards, keys to the right.

    Parameters
    ----------
    run : Run or numpy.ndarray
        A run of one prompt, or patterns [L, H, query, key] with values in 0..1, such as a mean over prompts.
    heads : iterable, optional
        Heads in the order of the maps, written in any way that `Head.parse` reads; None: all of them, layer
        by layer.
    columns : int, optional
        Maps in a row; None: 9 of given heads, and a row for each layer of all heads.
    ax : matplotlib.axes.Axes, optional
        Where to draw; None: a new figure.
    title : str, optional
        At most 160 characters a line are shown.
    scale : bool, default True
        Draw a small colour scale above the panel, and which way queries and keys run.
    mark : tuple of int, optional
        An entry (query, key), from 0, that has a red frame in every map.

    Returns
    -------
    matplotlib.axes.Axes
        Map i is `ax.collections[i]`; its array holds the entries that are not white (above 1/512), row by
        row. Maps of more than 64 tokens, or of more than 65,536 entries together, are images: map i is
        `ax.images[i]` with the array [T, T], masked above the diagonal.

    Raises
    ------
    ValueError
        If heads is empty or columns is below 1.
    IndexError
        For a head or an entry that does not exist.
    TypeError
        For other objects.
    """
    check_axes(ax)
    pattern = _patterns(run)
    chosen = _chosen_heads(heads, pattern.shape[:2])
    if mark is not None and not 0 <= mark[1] <= mark[0] < pattern.shape[-1]:
        raise IndexError(
            f"mark must be (query, key) with key <= query in 0..{pattern.shape[-1] - 1}, got {mark}"
        )
    columns = _columns(heads, pattern, columns)
    width, height = panel_size(len(chosen), columns)
    with styled():
        if ax is None:
            ax = _panel_axes([(width, height)])[0]
        draw_panel(ax, width, height, title)
        if scale:
            _draw_key(ax, width)
        label_size, pixels = _label_size(ax, width, height), as_pixels(len(chosen), pattern.shape[-1])
        for i, head in enumerate(chosen):
            x, y = map_corner(i, columns)
            draw_map(ax, pattern[head.layer, head.head], (x, y), 1 / pattern.shape[-1], mark, pixels=pixels)
            ax.text(x + 1, y + 0.02, head.label, ha="right", va="top", fontsize=label_size)
    return ax


def head_grids(
    panels: Sequence[tuple[str, Patterns, Iterable[HeadLike] | None]], columns: int | None = None
) -> Figure:
    """Several head grids below each other with maps of one size.

    The paper's copy-task figure: `head_grids([("GPT2", dense, its_61), ("Sparse GPT2", sparse, its_9)])`.

    Parameters
    ----------
    panels : sequence of tuple
        (title, run, heads) of each panel, as for `head_grid`.
    columns : int, optional
        Maps in a row; None: 9, and where a panel has all heads of a model as many as a layer has.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TypeError
        For panels of another kind.
    ValueError, IndexError
        As `head_grid` does, and for no panel.
    """
    if not isinstance(panels, list | tuple):
        raise TypeError(f"panels must be a list of (title, run, heads), got {type(panels).__name__}")
    listed, widest = [], 1
    for i, panel in enumerate(panels):
        if not isinstance(panel, tuple | list) or len(panel) != 3:
            raise TypeError(
                f"panels must be (title, run, heads), heads None for all; panel {i} is {panel!r:.60}"
            )
        title, run, heads = panel
        pattern = _patterns(run)
        listed.append((title, run, _chosen_heads(heads, pattern.shape[:2])))
        widest = max(widest, _columns(heads, pattern, columns))
    if not listed:
        raise ValueError("panels is empty: head grids need at least one")
    with styled():
        axes = _panel_axes([panel_size(len(heads), widest) for _, _, heads in listed])
    for i, (title, run, heads) in enumerate(listed):
        head_grid(run, heads, widest, axes[i], title, scale=i == 0)
    return figure_of(axes[0])


def attention_map(
    run: Run,
    layer: int,
    head: int,
    ax: Axes | None = None,
    base: int = 0,
    title: str | None = None,
    labels: Sequence[str] | None = None,
) -> Axes:
    """The pattern of one head with tokens on both axes; of several prompts their mean pattern.

    Tokens have their positions beside them; long ones are cut in the middle to 14 characters, and of many
    only as many are named as can be read. Prompts of at most 12 tokens show each entry's value, longer ones a
    scale; a closed gate shows nothing.

    Parameters
    ----------
    run : Run
        Of one prompt, or of several of one length. Where these have different tokens, the axes say how many.
    layer, head : int
        The head, from 0.
    ax : matplotlib.axes.Axes, optional
        Where to draw; None: a new figure.
    base : int, default 0
        Number of the first position, 0 or 1.
    title : str, optional
        In place of the head's label.
    labels : sequence of str, optional
        One text per position in place of the tokens, such as "subject"; at most 14 characters are shown.

    Returns
    -------
    matplotlib.axes.Axes
        The map is `ax.collections[0]`, or above 64 tokens `ax.images[0]`, as in `head_grid`.

    Raises
    ------
    IndexError
        For a head that the model does not have.
    ValueError
        For prompts of different lengths, and if there are not as many labels as tokens.
    TypeError
        For other objects.
    """
    check_axes(ax)
    check_run(run)
    base = _check.base(base)
    lengths = {run[i].n_tokens for i in range(len(run))}
    if len(lengths) != 1:
        raise ValueError(
            f"a mean pattern needs prompts of one length, got {min(lengths)} to {max(lengths)} tokens"
        )
    chosen = Head.parse((layer, head)).within(*run[0].pattern.shape[:2])
    values = np.mean([run[i].pattern[chosen] for i in range(len(run))], axis=0)
    n_tokens = len(values)
    if labels is None:
        texts = _shared_tokens(run)
    else:
        given = _check.items(labels, "labels", "a sequence of texts")
        texts = [given_text(label, TOKEN_SIGNS) for label in given]
    if len(texts) != n_tokens:
        raise ValueError(f"labels must have one text for each of the {n_tokens} tokens, got {len(texts)}")
    with styled():
        if ax is None:
            side = 1.3 + 0.27 * min(n_tokens, 40)
            ax = new_axes((side, side))
        draw_map(ax, values, (-0.5, -0.5), 1.0, pixels=as_pixels(1, n_tokens))
        if n_tokens <= _VALUE_TOKENS:
            _write_values(ax, values)
        else:
            draw_scale(ax, (0.68, 0.93, 0.27, 0.025), ax.transAxes)
        box = ax.get_window_extent()
        pitch = min(box.width, box.height) * 72 / ax.figure.dpi / n_tokens
        named = apart(pitch * np.arange(n_tokens), STYLE["xtick.labelsize"])
        shown = [f"{texts[i]}  {i + base}" for i in named]
        ax.set_xticks(named, shown, rotation=90, **PLAIN_TEXT)
        ax.set_yticks(named, shown, **PLAIN_TEXT)
        ax.set(xlim=(-0.52, n_tokens - 0.48), ylim=(n_tokens - 0.48, -0.52), aspect="equal")
        ax.set(xlabel=f"key (positions from {base})", ylabel=f"query (positions from {base})")
        own = chosen.label if len(run) == 1 else f"{chosen.label}, mean of {len(run):,} prompts"
        ax.set_title(own if title is None else given_text(title), **PLAIN_TEXT)
        ax.tick_params(length=0)
        size_labels(ax)
        ax.spines[:].set_visible(False)
    return ax


def _shared_tokens(run: Run) -> list[str]:
    """The token at each position, or how many different ones the prompts have there."""
    columns = zip(*(run[i].token_strings for i in range(len(run))))
    different = [sorted(set(tokens)) for tokens in columns]
    return [
        column_text(tokens[0]) if len(tokens) == 1 else f"({len(tokens):,} tokens)" for tokens in different
    ]


# -------------------------------------------------------------------------------------------- what to draw


def _patterns(run: Patterns) -> np.ndarray:
    """(L, H, T, T) from a Run of one prompt or from an array of that shape."""
    if not isinstance(run, np.ndarray):
        check_run(run, "a Run, such as Model.run gives, or an array of patterns")
    if isinstance(run, np.ndarray):
        pattern = run
    elif len(run) == 1:
        pattern = run[0].pattern
    else:
        raise ValueError(f"this run has {len(run)} prompts; choose one of them, for example run[0]")
    if pattern.ndim != 4 or pattern.shape[2] != pattern.shape[3]:
        raise ValueError(f"patterns must have shape (layers, heads, T, T), got {pattern.shape}")
    return pattern


def _chosen_heads(heads: Iterable[HeadLike] | None, shape: Sequence[int]) -> list[Head]:
    n_layer, n_head = shape
    if heads is None:
        return [Head(layer, head) for layer in range(n_layer) for head in range(n_head)]
    if isinstance(heads, str):
        heads = [heads]
    chosen = [Head.parse(head).within(n_layer, n_head) for head in heads]
    if not chosen:
        raise ValueError("heads is empty: a head grid needs at least one")
    return chosen


def _columns(heads: Iterable[HeadLike] | None, pattern: np.ndarray, columns: int | None) -> int:
    """Maps in a row, as asked for; or else so many that all heads have a row for each layer."""
    if columns is not None:
        return _check.integer(columns, "columns", 1)
    return _IN_A_ROW if heads is not None else int(pattern.shape[1])


# --------------------------------------------------------------------------------------- panels of maps


def map_corner(i: int, columns: int) -> tuple[float, float]:
    """Upper left corner of map i of a panel, in map widths."""
    row, column = divmod(i, columns)
    return _MARGIN + column * _PITCH, _MARGIN + row * _PITCH


def panel_size(n_maps: int, columns: int) -> tuple[float, float]:
    """Width and height of a panel in map widths; TypeError or ValueError for other columns."""
    columns = _check.integer(columns, "columns", 1)
    rows, columns = -(-n_maps // columns), min(columns, n_maps)
    return (columns - 1) * _PITCH + 1 + 2 * _MARGIN, (rows - 1) * _PITCH + 1 + 2 * _MARGIN


def _panel_axes(sizes: Sequence[tuple[float, float]]) -> list[Axes]:
    """One Axes per panel on a new figure, below each other, left edges aligned, all maps of one width.

    It is _MAP_INCH, less where the figure would become larger than LARGEST.
    """
    units = np.array(sizes) + 2 * _RIM
    room = LARGEST / units[:, 0].max(), (LARGEST - _TITLE_INCH * len(sizes)) / units[:, 1].sum()
    inches = units * max(min(_MAP_INCH, *room), _LEAST_MAP_INCH)
    total_width = max(width for width, _ in inches)
    total_height = sum(height + _TITLE_INCH for _, height in inches)
    figure = plt.figure(figsize=(total_width, total_height))
    axes, top = [], total_height
    for width, height in inches:
        top -= _TITLE_INCH + height
        place = (0, top / total_height, width / total_width, height / total_height)
        axes.append(figure.add_axes(place))
    return axes


def draw_panel(ax: Axes, width: float, height: float, title: str | None) -> None:
    """Coordinates in map widths with row 0 at the top, the rounded border and the title."""
    ax.set(xlim=(-_RIM, width + _RIM), ylim=(height + _RIM, -_RIM), aspect="equal")
    ax.set_axis_off()
    shape = "round,pad=0,rounding_size=0.12"
    ax.add_patch(FancyBboxPatch((0, 0), width, height, shape, fc=PANEL, ec=GREY, linewidth=0.8, zorder=0))
    if title is not None:
        ax.set_title(given_text(title), loc="left", y=1.0, pad=3, fontweight="bold", **PLAIN_TEXT)


def _label_size(ax: Axes, width: float, height: float) -> float:
    """Type size in points that fits a label such as L11H10 into the empty half of a map."""
    room, inches = ax.get_position(), ax.figure.figure.get_size_inches()
    map_inch = min(room.width * inches[0] / width, room.height * inches[1] / height)
    return float(np.clip(0.125 * 72 * map_inch, 2.5, 9.0))


def _draw_key(ax: Axes, width: float) -> None:
    """Above the panel at the right: the scale and, where there is room, the directions of the axes."""
    left = max(width - 0.9, 0.3)
    bar = draw_scale(ax, (left, -0.16, 0.6, 0.07), ax.transData)
    if width > _ROOM_FOR_DIRECTIONS:
        bar.annotate(
            "query ↓  key →", (0, 0.5), (-16, 0), textcoords="offset points", ha="right",
            va="center_baseline", fontsize=6.5, color=GREY,
        )  # fmt: skip


def draw_scale(ax: Axes, bounds: tuple[float, float, float, float], transform: Transform) -> Axes:
    """A small horizontal colour bar from 0 to 1 at `bounds` (x, y, width, height) of `transform`."""
    bar = ax.inset_axes(bounds, transform=transform)
    bar.imshow(np.linspace(0, 1, 256)[None], cmap=WHITE_TO_BLUE, extent=(0, 1, 0, 1), aspect="auto")
    bar.set(xticks=[], yticks=[])
    for x, text, side, offset in ((0, "0", "right", -3), (1, "1", "left", 3)):
        bar.annotate(
            text,
            (x, 0.5),
            (offset, 0),
            textcoords="offset points",
            ha=side,
            va="center_baseline",
            fontsize=6.5,
        )
    return bar


# -------------------------------------------------------------------------------------------- one map


def as_pixels(n_maps: int, n_tokens: int) -> bool:
    """Whether that many maps are images: squares of their own cost time and bytes for every entry."""
    return n_tokens > _VECTOR_TOKENS or n_maps * n_tokens * (n_tokens + 1) // 2 > _VECTOR_ENTRIES


def draw_map(
    ax: Axes,
    values: np.ndarray,
    corner: tuple[float, float],
    cell: float,
    mark: tuple[int, int] | None = None,
    *,
    pixels: bool,
) -> None:
    """The lower triangle of `values` (T, T) and its outline, from `corner` on, in squares of width `cell`.

    mark: an entry (query, key) with a red frame. pixels:
    one image instead of a square for each entry, see `as_pixels`.
    """
    x, y = corner
    n = len(values)
    stairs = [(x + (i + dx) * cell, y + (i + dy) * cell) for i in range(n) for dx, dy in ((1, 0), (1, 1))]
    triangle = [(x, y), *stairs, (x, y + n * cell)]
    ax.add_patch(Polygon(triangle, facecolor="white", edgecolor="none", zorder=1))
    ax.add_patch(Polygon(triangle, fill=False, edgecolor=GREY, linewidth=0.4, zorder=3))
    if pixels:
        _draw_image(ax, values, (x, x + n * cell, y + n * cell, y))
    else:
        _draw_squares(ax, values, corner, cell)
    if mark is not None:
        query, key = mark
        place = (x + key * cell, y + query * cell)
        ax.add_patch(Rectangle(place, cell, cell, fill=False, edgecolor=RED, linewidth=1.1, zorder=4))


def _draw_image(ax: Axes, values: np.ndarray, extent: tuple[float, float, float, float]) -> None:
    """Nothing above the diagonal; where a pixel holds several entries it has their mean colour."""
    above = np.triu(np.ones(values.shape, bool), 1)
    image = AxesImage(
        ax, cmap=_MAP_COLOURS, extent=extent, interpolation="antialiased", interpolation_stage="rgba"
    )
    image.set_data(np.ma.array(values, mask=above))
    image.set(clim=(0.0, 1.0), zorder=2)
    ax.add_image(image)


def _draw_squares(ax: Axes, values: np.ndarray, corner: tuple[float, float], cell: float) -> None:
    query, key = np.nonzero(np.tril(values) > _WHITE)
    left, top = corner[0] + key * cell, corner[1] + query * cell
    corners = ((0, 0), (cell, 0), (cell, cell), (0, cell))
    outlines = np.stack([np.stack([left + dx, top + dy], axis=1) for dx, dy in corners], axis=1)
    squares = PolyCollection(
        cast("Sequence[np.ndarray]", outlines),  # one array [m, 4, 2] is drawn faster than a list
        array=values[query, key],
        cmap=WHITE_TO_BLUE,
        edgecolors="face",
        linewidths=0.1,
        zorder=2,
    )
    squares.set_clim(0.0, 1.0)
    ax.add_collection(squares, autolim=False)


def _write_values(ax: Axes, values: np.ndarray) -> None:
    """Two decimals in every square that is not 0.00."""
    for query, key in np.argwhere(np.tril(values) >= 0.005):
        value = values[query, key]
        shown = f"{value:.2f}".lstrip("0")
        ax.text(
            key,
            query,
            shown,
            ha="center",
            va="center",
            fontsize=6,
            color="white" if value > 0.55 else "black",
        )
