"""Several attribution graphs as one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .. import _check
from .graph import Graph

if TYPE_CHECKING:
    import pandas as pd

TABLES = ("summary", "nodes", "links")


def table(
    graphs: Graph | Iterable[Graph] | Mapping[str, Graph], of: str = "summary", *, texts: bool = False
) -> pd.DataFrame:
    """One long table of several attribution graphs, such as one for each prompt.

    Parameters
    ----------
    graphs : Graph, iterable of Graph, or mapping of str to Graph
        They are read one after the other, so that a generator needs the memory of one graph. The names of a
        mapping become the column graph.
    of : {"summary", "nodes", "links"}, default "summary"
        One row for each graph, for each of its nodes, or for each edge between nodes.
    texts : bool, default False
        Also give the prompt as text, in the column prompt_text.

    Returns
    -------
    pandas.DataFrame
        Columns graph (of a mapping), model, prompt (from 0, in the order of the graphs of each model),
        prompt_text, then those of `Graph.summary`, `Graph.nodes` or `Graph.links` that are not among them.

    Raises
    ------
    TypeError
        If something is not a graph.
    ValueError
        For no graph, and for another `of`.
    """
    import pandas as pd

    of, texts = _check.choice(of, "of", TABLES), _check.flag(texts, "texts")
    if isinstance(graphs, Graph):
        graphs = [graphs]
    if not isinstance(graphs, Iterable):
        raise TypeError(f"graphs must be a Graph or several, got {type(graphs).__name__}")
    named = graphs.items() if isinstance(graphs, Mapping) else ((None, graph) for graph in graphs)
    parts: list[pd.DataFrame] = []
    counts: dict[str, int] = {}
    for name, graph in named:
        _check.instance(graph, Graph, "graphs")
        part = {"summary": Graph.summary, "nodes": Graph.nodes, "links": Graph.links}[of](graph)
        part = part.drop(columns=[each for each in ("model", "prompt") if each in part])
        number = counts.get(graph.model_name, 0)
        counts[graph.model_name] = number + 1
        front = {"model": graph.model_name, "prompt": number}
        front = ({} if name is None else {"graph": str(name)}) | front
        front |= {"prompt_text": graph.prompt} if texts else {}
        for at, (column, value) in enumerate(front.items()):
            part.insert(at, column, value)
        parts.append(part)
    if not parts:
        raise ValueError("graphs must be a Graph or several, got none")
    joined: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return joined
