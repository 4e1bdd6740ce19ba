"""Draws packages.svg: the packages and the C folders, each of which uses only what lies below it.

python docs/images/packages.py [packages.png]
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

PYTHON = [  # from the top: (name, what it holds)
    ("cli", "the command attnsparse"),
    ("reproduce", "the paper's figures, drawn again"),
    ("recipes", "how the models inside the package were made"),
    ("figures", "one file per figure"),
    ("pages", "interactive attention in a browser or a cell"),
    ("graphs", "attribution graphs: build, prune, check, files"),
    ("transcoders", "sets, features, foreign formats, labels"),
    ("sweeps", "circuits of many models, tasks, seeds"),
    ("circuits", "effects, rankings, circuits"),
    ("training", "trainer, data, options, checkpoints"),
    ("tasks", "prompts with answers, metrics"),
    ("model", "weights, tokenizer, runs, gradients"),
    ("io", "readers that trust nothing, atomic writing"),
    ("_engine _tables _display", "the core, tables with text, progress"),
    ("errors items _check _random", "what every package uses"),
]
C = [  # from the top, rows of (name, what it holds)
    [("python", "the binding; alone it knows Python")],
    [("component", "component edges")],
    [
        ("circuit", "sweeps, effects"),
        ("graph", "flow, pruning"),
        ("transcoder", "features"),
        ("train", "optimiser step"),
    ],
    [("model", "forward, backward, hooks, records")],
    [("kernels", "inner loops for three instruction sets, products")],
    [("base", "memory, threads, BLAS, floating-point environment")],
]
BOUNDARY = """_engine loads the two extensions,
_core (float32) and _core64 (float64).
Only arrays whose type, shape and order
were checked go through; results come back
without a copy."""
INK, NOTE, PALE, BLUE, EDGE = "#1b1f24", "#57606a", "#f4f5f7", "#dbe9f6", "#0b4f9e"
LEFT, WIDTH, RIGHT, TOP, STEP, HEIGHT = 0.5, 5.1, 6.9, 9.3, 0.74, 0.62


def box(ax, x, y, width, height, name, note, colour, edge) -> None:
    ax.add_patch(plt.Rectangle((x, y), width, height, facecolor=colour, edgecolor=edge, linewidth=1.0))
    centre, middle = x + width / 2, y + height / 2
    ax.text(centre, middle + 0.13, name, ha="center", va="center", weight="bold", size=9, color=INK)
    ax.text(centre, middle - 0.15, note, ha="center", va="center", size=7.5, color=NOTE)


def arrow(ax, begin, end, colour=NOTE) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", xy=end, xytext=begin, arrowprops=style)


def column_of_packages(ax) -> float:
    y = TOP
    for name, note in PYTHON:
        box(ax, LEFT, y, WIDTH, HEIGHT, name, note, PALE, "#8a8a8a")
        y -= STEP
    return y + STEP


def column_of_folders(ax, top: float, bottom: float) -> float:
    step = (top - bottom) / (len(C) - 1)
    for row, boxes in enumerate(C):
        each = WIDTH / len(boxes)
        for i, (name, note) in enumerate(boxes):
            x, gap = RIGHT + i * each, 0.05 if len(boxes) > 1 else 0
            box(ax, x + gap, top - row * step, each - 2 * gap, HEIGHT * 1.25, name, note, BLUE, EDGE)
    return step


def draw() -> plt.Figure:
    figure, ax = plt.subplots(figsize=(9.2, 7.2))
    bottom = column_of_packages(ax)
    first = bottom + 4.4
    column_of_folders(ax, first, bottom)
    ax.text(LEFT, TOP + 0.85, "attnsparse/", size=11, weight="bold", color=INK)
    ax.text(RIGHT, first + 1.0, "csrc/", size=11, weight="bold", color=INK)
    arrow(ax, (LEFT - 0.22, TOP + HEIGHT), (LEFT - 0.22, bottom))
    arrow(ax, (RIGHT + WIDTH + 0.22, first + HEIGHT), (RIGHT + WIDTH + 0.22, bottom))
    for x in (LEFT - 0.36, RIGHT + WIDTH + 0.38):
        ax.text(x, bottom + 2.4, "uses", rotation=90, ha="center", va="center", size=9, color=NOTE)
    ax.plot([LEFT + WIDTH, LEFT + WIDTH + 0.65], [bottom + STEP + HEIGHT / 2] * 2, color=EDGE, linewidth=1.4)
    ax.plot([LEFT + WIDTH + 0.65] * 2, [bottom + STEP + HEIGHT / 2, first + 0.39], color=EDGE, linewidth=1.4)
    arrow(ax, (LEFT + WIDTH + 0.65, first + 0.39), (RIGHT, first + 0.39), EDGE)
    ax.text(RIGHT, first + 2.9, BOUNDARY, size=9, color=NOTE, va="top", linespacing=1.4)
    ax.set(xlim=(-0.1, RIGHT + WIDTH + 0.6), ylim=(bottom - 0.15, TOP + 1.25))
    ax.set_axis_off()
    figure.subplots_adjust(0, 0, 1, 1)
    return figure


if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg")
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "attnsparse", "font.family": "DejaVu Sans"}
    draw().savefig(target, metadata={"Date": None} if str(target).endswith("svg") else None, dpi=110)
