"""The command `attnsparse`: tables of a model's attention, figures, graphs, training, and what is installed.

Exit codes: 0 done, 1 the job failed (one sentence on stderr says why), 2 wrong usage, 130 stopped by Ctrl-C.
Packages that draw are imported by the command that needs them, so that `attnsparse --version` is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from .. import attribution_graph, load, load_transcoders, recipes
from .._version import __version__
from ..errors import printable
from ..graphs import graph_file
from . import info, launch
from . import sweep as sweeps
from .text import say, say_table, show_traceback

if TYPE_CHECKING:
    import pandas as pd

    from ..model.run import Run

Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"

STOPPED = 130
FIGURES = ("all", "copy", "antonym", "curves", "addition", "text")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's arguments); returns the exit code."""
    try:
        code = _run_command(_parsed(argv))
    finally:
        whole = _flush_output()
    return code if whole else 1


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; what is wrong with them is said by the first of several processes."""
    started = launch.launched()
    if started is None or started.rank == 0:
        return _parser().parse_args(argv)
    with launch.silent():
        return _parser().parse_args(argv)


def _flush_output() -> bool:
    """Whether everything that was printed was written; a reader that has gone is not an error."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            say(f"attnsparse: {_sentence(error)}", error=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains again at exit
        return False
    return True


def _run_command(arguments: argparse.Namespace) -> int:
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]  # place and line are not shown
        try:
            arguments.run(arguments)
        except KeyboardInterrupt:
            launch.ignore_more_interrupts()
            say(f"attnsparse: stopped{getattr(arguments, 'stopped', '')}", error=True)
            return STOPPED
        except BrokenPipeError:
            return 1
        except Exception as error:
            if arguments.debug:
                sys.excepthook = show_traceback
                raise
            say(f"attnsparse: {_sentence(error)}", error=True)
            return 1
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Arguments that it repeats may be names of files."""
        super().error(printable(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="attnsparse",
        description="Transformers with sparse, gated attention: figures, tables, training.",
        epilog="Example: attnsparse reproduce --out figures",
    )
    parser.add_argument("--version", action="version", version=f"attnsparse {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_reproduce(commands)
    _add_heads(commands)
    _add_edges(commands)
    _add_graph(commands)
    _add_train(commands)
    _add_sweep(commands)
    _add_info(commands)
    return parser


def _add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], text: str, example: str
) -> argparse.ArgumentParser:
    """A subcommand whose help ends with an example."""
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"Example: {example}",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


# ---- reproduce


def _add_reproduce(commands: Commands) -> None:
    parser = _add_command(
        commands,
        "reproduce",
        _reproduce,
        "draw the figures of the method from the models inside the package, or from two others",
        "attnsparse reproduce copy --dense my/gpt2 --sparse my/final.pth --out figures",
    )
    parser.add_argument("figure", nargs="?", default="all", choices=FIGURES, help="default: all")
    for role in ("dense", "sparse"):
        parser.add_argument(
            f"--{role}",
            metavar="MODEL",
            help=f"the {role} model: a name, folder or file (default: the package's)",
        )
    parser.add_argument(
        "--transcoders",
        nargs=2,
        metavar=("DENSE", "SPARSE"),
        help="transcoders of both models, for the figure antonym: names, folders or files",
    )
    parser.add_argument(
        "--corpus",
        nargs="+",
        metavar="FILE",
        help="the texts that the models of the figure text learned from",
    )
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR", help="default: figures")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _reproduce(arguments: argparse.Namespace) -> None:
    from ..reproduce import reproduce

    files = reproduce(
        arguments.figure,
        arguments.out,
        dense=arguments.dense,
        sparse=arguments.sparse,
        transcoders=arguments.transcoders,
        corpus=arguments.corpus,
        progress=False if arguments.quiet else None,
    )
    if arguments.quiet:
        return
    for path, table in files.items():
        if table is not None and len(table) <= 10:  # the others are for a spreadsheet
            say(path.stem)
            say_table(table)
            say("")
        elif path.suffix == ".txt":
            say(*path.read_text(encoding="utf-8").split("\n"))
    say(f"written to {arguments.out}{os.sep}: {', '.join(path.name for path in files)}")


# ---- heads and edges


def _add_heads(commands: Commands) -> None:
    parser = _add_command(
        commands,
        "heads",
        _heads,
        "list what every head does from one position of a prompt to another",
        'attnsparse heads MODEL --prompt \'The opposite of "large" is "\' --key 5 --query 8 --base 1',
    )
    _add_model_and_prompt(parser)
    parser.add_argument("--key", required=True, type=_position, help="position or token attended to")
    parser.add_argument("--query", required=True, type=_position, help="position or token attending")
    _add_base(parser)
    _add_table_format(parser)


def _heads(arguments: argparse.Namespace) -> None:
    run = _run(arguments)
    table = run.heads(key=arguments.key, query=arguments.query, base=arguments.base)
    _print_table(table, arguments.format, run, arguments.base)


def _add_edges(commands: Commands) -> None:
    parser = _add_command(
        commands,
        "edges",
        _edges,
        "list the attention edges of a prompt that the gate leaves open",
        "attnsparse edges addition-sparse --prompt 53+21= --csv",
    )
    _add_model_and_prompt(parser)
    parser.add_argument("--threshold", type=float, default=0.0, help="smallest weight listed (default: 0)")
    _add_base(parser)
    _add_table_format(parser)


def _edges(arguments: argparse.Namespace) -> None:
    run = _run(arguments)
    table = run.open_edges(threshold=arguments.threshold, base=arguments.base)
    _print_table(table, arguments.format, run, arguments.base)


def _add_model_and_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name of a model inside the package, folder or file")
    parser.add_argument("--prompt", required=True, help="the text to run")
    parser.add_argument("--prepend-bos", action="store_true", help="put the model's BOS token in front")


def _add_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base", type=int, default=0, choices=(0, 1), help="first position is 0 (default) or 1"
    )


def _add_table_format(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--csv",
        dest="format",
        action="store_const",
        const="csv",
        help="print CSV; control characters are escaped",
    )
    group.add_argument(
        "--json", dest="format", action="store_const", const="json", help="print JSON records, texts exact"
    )


def _position(text: str) -> int | str:
    """An integer is a position, anything else a token."""
    try:
        return int(text)
    except ValueError:
        return text


def _run(arguments: argparse.Namespace) -> Run:
    return load(arguments.model).run(arguments.prompt, prepend_bos=arguments.prepend_bos)


def _tokens_line(run: Run, base: int) -> str:
    tokens = "  ".join(f"{i}:{text!r}" for i, text in enumerate(run.token_strings, base))
    return f"{run.model.name}, positions from {base}: {tokens}"


def _print_table(table: pd.DataFrame, form: str | None, run: Run, base: int) -> None:
    """Print a table as text (below a line of the run's tokens), CSV or JSON records."""
    if form is None:
        say(_tokens_line(run, base))
    if form is None and not len(table):
        say("(none)")
    else:
        say_table(table, form)


# ---- graph


def _add_graph(commands: Commands) -> None:
    parser = _add_command(
        commands,
        "graph",
        _graph,
        "make the attribution graph of a prompt and summarise it",
        "attnsparse graph demo-sparse --transcoders demo-sparse-transcoders "
        '--prompt \'The opposite of "large" is "\' --html graph.html',
    )
    _add_model_and_prompt(parser)
    parser.add_argument(
        "--transcoders", required=True, metavar="SET", help="the model's transcoders: a name, folder or file"
    )
    parser.add_argument(
        "--target",
        nargs="+",
        metavar="TOKEN",
        help="tokens whose logits it explains (default: the likeliest)",
    )
    parser.add_argument(
        "--wrong", nargs="+", metavar="TOKEN", help="their logits are subtracted from the target's"
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="names of features: a CSV or JSON file, or the set's name for its own labels",
    )
    parser.add_argument("--html", metavar="FILE", help="write a page that shows the graph in a browser")
    parser.add_argument("--figure", metavar="FILE", help="draw the graph: a .png, .svg or .pdf, or all three")
    parser.add_argument(
        "--json", metavar="DIR", help="write DIR/graph.json for circuit-tracer's and Neuronpedia's viewers"
    )
    parser.add_argument(
        "--out", metavar="NAME", help="save the whole graph, NAME.graph.safetensors, for load_graph"
    )
    _add_base(parser)


def _graph(arguments: argparse.Namespace) -> None:
    model = load(arguments.model)
    transcoders = load_transcoders(arguments.transcoders, model)
    graph = attribution_graph(
        model,
        transcoders,
        arguments.prompt,
        arguments.target,
        wrong=arguments.wrong,
        labels=arguments.labels,
        prepend_bos=arguments.prepend_bos,
    )
    summary = graph.summary().iloc[0].to_dict()
    _print_lines((str(name), f"{x:.4g}" if isinstance(x, float) else x) for name, x in summary.items())
    files: list[Path] = []
    if arguments.html is not None:
        files.append(graph.to_html(arguments.html, base=arguments.base))
    if arguments.figure is not None:
        from .. import figures

        files += figures.save(figures.graph(graph, base=arguments.base), arguments.figure)
    if arguments.json is not None:
        files.append(graph.to_neuronpedia(arguments.json, "graph"))
    if arguments.out is not None:
        graph.save(arguments.out)
        files.append(Path(graph_file.SCHEMA.file(arguments.out)))
    if files:
        say(f"written: {', '.join(map(str, files))}")


# ---- train


def _add_train(commands: Commands) -> None:
    known = "; ".join(f"{recipe.name}: {recipe.summary}" for recipe in recipes.RECIPES.values())
    parser = _add_command(
        commands,
        "train",
        _train,
        "train the models of a recipe",
        "attnsparse train addition --out models",
    )
    parser.add_argument("recipe", choices=tuple(recipes.RECIPES), metavar="RECIPE", help=known)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the models")
    parser.add_argument(
        "--corpus", nargs="+", metavar="FILE", help="texts in UTF-8 to learn from, for recipes of text"
    )
    parser.add_argument("--tiny", action="store_true", help="a trial of seconds, for recipes of text")
    parser.add_argument("--resume", action="store_true", help="continue the run that DIR holds")
    parser.add_argument("--seed", type=int, default=None, help="default: the recipe's")
    parser.add_argument("--threads", type=int, default=None, help="default: as many as there are")
    parser.add_argument(
        "--parts",
        type=int,
        metavar="N",
        help="parts of a step, which processes started by mpirun share; the result depends on it, not on the "
        f"number of processes (default: 1, under mpirun {launch.PARTS})",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.set_defaults(wrong_usage=parser.error)
    parser.set_defaults(stopped="; the same command with --resume continues from the last checkpoint")


def _train(arguments: argparse.Namespace) -> None:
    with launch.first_speaks():
        folders = _trained(arguments, recipes.RECIPES[arguments.recipe])
        if not arguments.quiet:
            for folder in folders:
                say(folder)


def _trained(arguments: argparse.Namespace, recipe: recipes.Recipe) -> list[Path]:
    if recipe.needs_corpus and arguments.corpus is None:
        arguments.wrong_usage(f"the recipe {recipe.name} needs --corpus FILE ...")
    if not recipe.needs_corpus and (arguments.corpus is not None or arguments.tiny):
        arguments.wrong_usage(f"--corpus and --tiny are not for the recipe {recipe.name}")
    if not recipe.shared and arguments.parts is not None:
        arguments.wrong_usage(f"--parts is not for the recipe {recipe.name}")
    given = {"corpus": arguments.corpus, "tiny": arguments.tiny} if recipe.needs_corpus else {}
    comm = launch.communicator()
    parts = launch.PARTS if arguments.parts is None and comm is not None else arguments.parts
    if parts is not None:
        given["parts"] = parts
    return recipe.train(
        arguments.out,
        seed=arguments.seed,
        resume=arguments.resume,
        threads=arguments.threads,
        quiet=arguments.quiet,
        comm=comm,
        **given,
    )


# ---- sweep


def _add_sweep(commands: Commands) -> None:
    text = "find the circuits of many models, tasks and seeds, and keep them as Parquet files"
    sweeps.add_arguments(_add_command(commands, "sweep", sweeps.run, text, sweeps.EXAMPLE))


# ---- info


def _add_info(commands: Commands) -> None:
    parser = _add_command(
        commands,
        "info",
        _info,
        "describe what is installed, how it computes, and a model or a set of transcoders",
        "attnsparse info addition-sparse",
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="also describe this model or set of transcoders"
    )


def _info(arguments: argparse.Namespace) -> None:
    lines, notes = info.describe_build()
    if arguments.model is not None:
        lines += info.describe(arguments.model)
    _print_lines(lines)
    for note in notes:
        say(f"attnsparse: warning: {note}", error=True)


def _print_lines(lines: Iterable[tuple[str, object]]) -> None:
    say(*(f"{name + ':':<26}{value}" for name, value in lines))


# ---- messages


def _sentence(error: Exception) -> str:
    """One line about an error; unexpected kinds are named, because their text alone says little."""
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, IndexError, OSError, ArithmeticError, MemoryError, RuntimeError)):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text} (--debug shows the traceback)"


def _show_warning(message: Warning | str, category: type[Warning], *place: object) -> None:
    say(f"attnsparse: warning: {message}", error=True)
