"""The directive `command-line`: every subcommand of `attnsparse` with its arguments, read off its parser."""

import argparse
from collections.abc import Iterator

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from attnsparse.cli.main import _parser


def usage_and_rows(command: argparse.ArgumentParser) -> tuple[str, list[tuple[str, str]]]:
    """What to type, and (argument, help) of each argument."""
    usage, rows = command.prog.split(), []
    for action in command._actions:
        if not action.help or "--help" in action.option_strings:
            continue
        values = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
        words = " ".join(values if isinstance(values, tuple) else (values,))
        shown = "/".join(action.option_strings) or words
        if action.option_strings and action.nargs != 0:
            shown += f" {words}{' ...' if action.nargs == '+' else ''}"
        if action.required or not action.option_strings:
            usage.append(shown if action.required else f"[{shown}]")
        rows.append((shown, action.help))
    return f"{' '.join(usage)} [options]", rows


def text_of(command: argparse.ArgumentParser) -> Iterator[str]:
    """The lines of a subcommand's section, in MyST."""
    usage, rows = usage_and_rows(command)
    yield from ("```sh", usage, "```", "", command.description or "", "")
    yield from (f"* `{shown}`: {said[0].upper()}{said[1:]}" for shown, said in rows)
    example = (command.epilog or "").partition("Example: ")[2]
    if example:
        yield from ("", "```sh", example, "```")


class CommandLine(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        [commands] = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
        sections: list[nodes.Node] = []
        for name, command in commands.choices.items():
            section = nodes.section(ids=[f"attnsparse-{name}"])
            section += nodes.title("", "", nodes.literal("", f"attnsparse {name}"))
            section += self.parse_text_to_nodes("\n".join(text_of(command)))
            sections.append(section)
        return sections


def setup(app) -> dict[str, bool]:
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True}
