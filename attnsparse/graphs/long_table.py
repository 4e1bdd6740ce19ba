"""Several attribution graphs, or effects of words, as one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from .. import _check
from .._tables import repeated, text_table
from .graph import Graph
from .select import Nodes
from .word_effect import WordEffect, edge_row

if TYPE_CHECKING:
    import pandas as pd

One: TypeAlias = "Graph | WordEffect"
Ends: TypeAlias = "Nodes | Callable[[Graph], Nodes]"

TABLES = ("summary", "nodes", "links", "heads")
OF_WORDS = ("summary", "heads", "groups", "arrows", "checks")


def table(
    graphs: One | Iterable[One] | Mapping[str, One],
    of: str = "summary",
    *,
    source: Ends | None = None,
    target: Ends | None = None,
    through: str = "any",
    texts: bool = False,
) -> pd.DataFrame:
    """One long table of several attribution graphs or word effects, such as one for each prompt.

    Parameters
    ----------
    graphs : Graph or WordEffect, iterable of these, or mapping of str to these
        All of one class. They are read one after the other, so that a generator needs the memory of one. The
        names of a mapping become the column graph.
    of : {"summary", "nodes", "links", "heads", "groups", "arrows", "checks"}, default "summary"
        Of graphs: one row for each graph, for each of its nodes, for each edge between nodes, or for each
        head that carries the edge from `source` to `target`. Of word effects: one row for each, or for each
        of its heads, groups, arrows or checks.
    source, target : Nodes, or function of a Graph that gives them, optional
        For "heads" of graphs, as `Graph.heads` takes them; a function such as ``lambda graph:
        graph.select("token", position=4)`` finds nodes that have other ids in each graph. target None: the
        logits.
    through : {"any", "features", "edge"}, default "any"
        As in `Graph.heads`; for "heads" of graphs.
    texts : bool, default False
        Also give the prompt as text, in the column prompt_text.

    Returns
    -------
    pandas.DataFrame
        Columns graph (of a mapping), model, prompt (from 0, in the order of the graphs of each model),
        prompt_text, then those of `Graph.summary`, `Graph.nodes`, `Graph.links`, `Graph.heads`, or of
        `WordEffect.heads`, `groups`, `arrows` or `checks`, that are not among them.

    Raises
    ------
    TypeError
        If something is neither, or for graphs and word effects together.
    ValueError
        For no graph, another `of`, and for "heads" of graphs without a source.
    """
    import pandas as pd

    texts = _check.flag(texts, "texts")
    if isinstance(graphs, (Graph, WordEffect)):
        graphs = [graphs]
    if not isinstance(graphs, Iterable):
        raise TypeError(f"graphs must be a Graph or several, got {type(graphs).__name__}")
    named = graphs.items() if isinstance(graphs, Mapping) else ((None, graph) for graph in graphs)
    parts: list[pd.DataFrame] = []
    counts: dict[str, int] = {}
    kind: type[Graph] | type[WordEffect] | None = None
    for name, one in named:
        kind = kind or (WordEffect if isinstance(one, WordEffect) else Graph)
        _check.instance(one, kind, "graphs")
        if isinstance(one, WordEffect):
            part, graph = _of_word(one, of), one.graph
        else:
            part, graph = _of_graph(one, of, source, target, through), one
        part = part.drop(columns=[each for each in ("model", "prompt") if each in part])
        number = counts.get(graph.model_name, 0)
        counts[graph.model_name] = number + 1
        front: dict[str, Any] = {"model": graph.model_name, "prompt": number}
        front = ({} if name is None else {"graph": str(name)}) | front
        front |= {"prompt_text": graph.prompt} if texts else {}
        for at, (column, value) in enumerate(front.items()):
            part.insert(at, column, repeated(value, len(part)))
        parts.append(part)
    if not parts:
        raise ValueError("graphs must be a Graph or several, got none")
    joined: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return joined


def _of_graph(graph: Graph, of: str, source: Ends | None, target: Ends | None, through: str) -> pd.DataFrame:
    if _check.choice(of, "of", TABLES) != "heads":
        if source is not None or target is not None:
            raise ValueError(f"source and target are for of='heads', got of={of!r}")
        return {"summary": Graph.summary, "nodes": Graph.nodes, "links": Graph.links}[of](graph)
    if source is None:
        raise ValueError("of='heads' needs source=, nodes or a function of a graph that gives them")
    to = graph.logits if target is None else _nodes(graph, target)
    return graph.heads(_nodes(graph, source), to, through=through)


def _nodes(graph: Graph, ends: Ends) -> Nodes:
    return ends(graph) if callable(ends) else ends


def _of_word(found: WordEffect, of: str) -> pd.DataFrame:

    _check.choice(of, "of", OF_WORDS)
    if of == "checks":
        checks: pd.DataFrame = found.checks.copy()
        return checks
    if of == "summary":
        rows: pd.DataFrame = text_table([edge_row(found, "features", 0)])
        return rows
    return {"heads": WordEffect.heads, "groups": WordEffect.groups, "arrows": WordEffect.arrows}[of](found)
