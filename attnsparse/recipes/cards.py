"""Model cards: the templates `cards/*.md`, filled with what was measured on the finished files.

The fields of a template are those of `str.format`, with their formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .._version import __version__
from ..io.atomic import write_atomic
from ..tasks import words

if TYPE_CHECKING:
    import pandas as pd

    from ..model.model import Model
    from ..training.text import TextData
    from .addition_evaluation import Facts
    from .demo_evaluation import Measured
    from .transcoder_evaluation import SetFacts

_FOLDER = Path(__file__).parent / "cards"


def fill(template: str, **fields: object) -> str:
    """The template `cards/TEMPLATE.md` with its fields, and `version`, replaced; without the last newline."""
    text = (_FOLDER / f"{template}.md").read_text(encoding="utf-8")
    return text.removesuffix("\n").format(version=__version__, **fields)


def write(folder: Path, card: str) -> None:
    """Write a card as README.md into the folder of a model or of a set of transcoders."""
    write_atomic(folder / "README.md", [f"{card}\n".encode()])


# ------------------------------------------------------------------------------------- the kinds


def addition_card(facts: Facts, settings: Mapping[str, object]) -> str:
    """The card of an addition model. settings: of the recipe, by name."""
    return fill(
        "addition",
        **facts,
        kind=_kind(gated=facts["edge_is"] == "open gate"),
        seed=settings["seed"],
        training=fill(facts["model"]),
        settings=listed(settings),
        right_share=_share(facts["right"], facts["sums"]),
        held_out_share=_share(facts["held_out_right"], facts["held_out"]),
    )


def demo_card(model: Model, found: Measured, settings: Mapping[str, object], history_every: int) -> str:
    """The card of a demo model; `history_every`: steps between two rows of its history."""
    spread = settings.get("spread")
    held_out_pairs = [pair for pair in words.PAIRS if pair in words.HELD_OUT_PAIRS]
    return fill(
        "demo",
        model=model,
        config=model.config,
        kind=_kind(model.config.gated),
        seed=settings["seed"],
        training=fill(
            model.name,
            gate=fill("demo-gate"),
            reading=fill("demo-reading"),
            spread=fill("demo-spread", **spread) if isinstance(spread, Mapping) else "",
        ),
        settings=listed(settings),
        history_every=history_every,
        cross_entropy=found.cross_entropy,
        floor=found.floor,
        tasks=_table(found.tasks),
        nouns=", ".join(words.HELD_OUT_NOUNS),
        n_nouns=len(words.HELD_OUT_NOUNS),
        names=", ".join(words.HELD_OUT_NAMES),
        n_names=len(words.HELD_OUT_NAMES),
        years=", ".join(map(str, words.HELD_OUT_YEARS)),
        n_years=len(words.HELD_OUT_YEARS),
        pairs=", ".join(map("-".join, held_out_pairs)),
        n_pairs=len(held_out_pairs),
    )


def transcoders_card(
    name: str, facts: SetFacts, settings: Mapping[str, object], repeat: str, history_every: int
) -> str:
    """The card of a set of transcoders; `repeat`: what makes it again."""
    layers = "\n".join(
        "| {layer} | {n_features} | {l0:.2f} | {explained_variance:.4f} | {dead:.3f} |".format(**row)
        for row in facts["layers"]
    )
    return fill(
        "transcoders",
        **{**facts, "layers": layers},
        name=name,
        repeat=repeat,
        active=fill(f"transcoders-{facts['activation'].replace('_', '-')}", **settings),
        settings=listed(settings),
        sequences=facts["text"]["batches"] * facts["text"]["batch"],
        history_every=history_every,
    )


def text_card(
    model: Model,
    measured: Mapping[str, tuple[float, float]],
    text: TextData,
    settings: Mapping[str, object],
    history_every: int,
) -> str:
    """The card of a model of text. measured: name -> mean and standard error over held-out windows."""
    about = text.describe()
    rows = [f"| {name} | {value:.4f} | {error:.4f} |" for name, (value, error) in measured.items()]
    texts = [f"| {t.name} | {t.n_bytes:,} | {t.n_characters:,} | `{t.sha256}` |" for t in text.texts]
    return fill(
        "text",
        model=model,
        config=model.config,
        kind=_kind(model.config.gated),
        names=" ".join(t.name for t in text.texts),
        seed=settings["seed"],
        texts="\n".join(["| file | bytes | characters | SHA-256 |", "| --- | --- | --- | --- |", *texts]),
        tokens=about["tokens"],
        held_out=about["held_out"],
        training=fill(model.name),
        settings=listed(settings),
        history_every=history_every,
        measured="\n".join(["| | mean | standard error |", "| --- | --- | --- |", *rows]),
    )


# --------------------------------------------------------------------------------------- their parts


def listed(settings: Mapping[str, object]) -> str:
    """Settings, and those inside of them, as one line."""
    return ", ".join(
        f"{name} ({listed(value)})" if isinstance(value, Mapping) else f"{name} {value}"
        for name, value in settings.items()
    )


def _kind(gated: bool) -> str:
    return "gated: an attention entry counts only where its score is above 0" if gated else "dense"


def _share(part: int, whole: int) -> str:
    """A share in per cent; only exactly all is written as 100 %."""
    percent = 100 * part / whole
    return "100 %" if part == whole else f"{min(percent, 99.99):.2f} % ({part:,} of {whole:,})"


def _table(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns)]
    rows += [[_cell(value) for value in row] for row in table.to_numpy()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
