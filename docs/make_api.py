"""Writes docs/api.md, the reference of everything public, from signatures and docstrings.

    python docs/make_api.py            # after a change of a public name, signature or docstring
    python docs/make_api.py other.md   # somewhere else

What is public is read off the package: `attnsparse.__all__`, the modules that `attnsparse.NAME` gives, and
the few names of ALSO, which users meet as results or in docstrings. Signatures are shown as the source has
them, so that the text does not depend on the version of Python.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import attnsparse
from attnsparse import errors
from attnsparse.cli import main as cli
from attnsparse.model import interventions

TARGET = Path(__file__).resolve().parent / "api.md"
WIDTH = 100

# Title of a group, and the modules that belong to it, in this order.
GROUPS = (
    ("Loading and saving", ("checkpoint", "tokenizer", "config", "limits")),
    ("Models and runs", ("model", "run", "gradients", "cache", "labels", "engine")),
    ("Tables", ("tables",)),
    ("Figures", ("figures", "*_figure", "*_figures", "figure_*")),
    ("Tasks", ("tasks", "tasks_object", "tasks_metrics", "tasks_files", "tasks_prompts", "tasks_*")),
    (
        "Interventions and circuits",
        ("interventions", "intervention*", "effects*", "circuit", "circuit*", "carriers"),
    ),
    ("Transcoders and attribution graphs", ("transcoder", "transcoder_*", "graph", "graph_*", "feature_*")),
    ("Training", ("trainer", "training_*", "schedules", "evaluation", "initial_weights")),
    ("Recipes and reproduction", ("recipes", "recipe_*", "reproduce")),
    ("Errors", ("errors",)),
    ("More", ("*",)),
)
ALSO = {
    "cache": ("ActivationCache", "hook_names"),
    "carriers": ("find_carriers", "Carriers"),
    "circuit_ratio": ("needed_ratio", "Ratio"),
    "graph_heads": ("ScoreSplit",),
    "graph_json": ("write_graph_json",),
    "initial_weights": ("initial_weights",),
    "reproduce": ("reproduce",),
    "tasks_prompts": (
        "copy", "induction", "antonym", "ioi", "COUNTERFACTUALS", "greater_than", "docstring", "add",
    ),
    "training_data": ("Data",),
    "transcoder": ("Source",),
}  # fmt: skip

INTRODUCTION = """\
# API reference

Everything public, made by `python docs/make_api.py` from the docstrings. `asp` is `import attnsparse as asp`;
`asp.tables`, `asp.figures`, `asp.tasks` and the other modules are imported when they are first used. What the
words mean, with formulas: [concepts](concepts.md). From your own model to a figure: [how-to](howto.md).
What is written here as `attnsparse.module.name` is imported with `from attnsparse.module import name`.
"""


class Entry(NamedTuple):
    """One public object: the name users write after `asp.`, the object, and the module that defines it."""

    name: str
    value: object
    module: ModuleType
    line: int


# ------------------------------------------------------------------------------------ what is public


def public_modules() -> list[ModuleType]:
    """The submodules that `attnsparse.NAME` gives without being imported first."""
    found = []
    for info in pkgutil.iter_modules(attnsparse.__path__):
        try:
            module = attnsparse.__getattr__(info.name)
        except AttributeError:
            continue
        found.append(module)
    return found


def entries() -> list[Entry]:
    """All public names, each once, under the shortest name."""
    named: dict[str, tuple[ModuleType, str]] = {
        name: (attnsparse, name) for name in attnsparse.__all__ if not name.startswith("_")
    }
    also = [(importlib.import_module(f"attnsparse.{module}"), names) for module, names in ALSO.items()]
    for module, names in [*((module, own_names(module)) for module in public_modules()), *also]:
        for name in names:
            named[f"{short(module)}.{name}"] = (module, name)
    found, seen = [], set()
    for shown, (module, name) in named.items():
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            continue
        home = home_of(module, name)
        if (home.__name__, name) not in seen:
            seen.add((home.__name__, name))
            node = definition(home, name)
            found.append(Entry(shown, value, home, 0 if node is None else node.lineno))
    return found


def own_names(module: ModuleType) -> list[str]:
    """`__all__`, or else the public functions and classes that the module defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]


def home_of(module: ModuleType, name: str) -> ModuleType:
    """The module in whose source `name` is defined; imports are followed."""
    while definition(module, name) is None:
        for node in tree(module).body:
            if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
                module = importlib.import_module(f"attnsparse.{node.module}")
                break
        else:
            return module
    return module


@cache
def text_of(module: ModuleType) -> str:
    """The source of a module."""
    return inspect.getsource(module)


@cache
def tree(module: ModuleType) -> ast.Module:
    """The parsed source of a module."""
    return ast.parse(text_of(module))


def definition(module: ModuleType, name: str) -> ast.stmt | None:
    """The statement that defines `name` at the top level of a module."""
    for node in tree(module).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        if getattr(node, "name", None) == name or name in names:
            return node
    return None


def short(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


# ------------------------------------------------------------------------------------ docstrings


def prose(text: str | None, names: Iterable[str] = ()) -> str:
    """A docstring as Markdown: what is said about one of `names` (`name: text`) becomes an item of a list."""
    known = "|".join(map(re.escape, names)) or "(?!)"
    item = re.compile(rf"((?:{known})(?:, \w+)*)((?: \w+)? \[[^\]]*\])?:\s+")
    text = re.sub(rf"(?<=\.) +(?={item.pattern})", "\n", text or "")
    return "\n\n".join(block(part.splitlines(), item) for part in re.split(r"\n{2,}", text.strip("\n")))


def block(lines: list[str], item: re.Pattern[str]) -> str:
    """One paragraph of a docstring: its text, items of a list, indented formulas."""
    done: list[str] = []
    in_list = in_code = False
    for line in lines:
        match, was = item.match(line), (in_list, in_code)
        in_code = line.startswith("    ") and not in_list
        if match:
            in_list = True
            what = ", ".join(f"`{name}`" for name in match[1].split(", "))
            line = f"* {what}{match[2] or ''}: {line[match.end() :]}"
        elif in_list and done[-1].endswith(".") and line[:1].isupper():
            in_list = False
        if done and (was != (in_list, in_code) or (not in_list and re.match(r"(Raises|Returns) ", line))):
            done.append("")
        done.append(line if in_code else escaped(line))
    return "\n".join(done)


def escaped(line: str) -> str:
    """Signs that Markdown would take for markup, outside of code and but for the star of a list."""
    star = re.match(r"\s*\* ", line)
    start = star.end() if star else 0
    parts = line[start:].split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return line[:start] + "`".join(parts)


def sentence(text: str | None) -> str:
    """A docstring in one line, for a list."""
    return " ".join(prose(text).split())


def comments(module: ModuleType) -> dict[int, str]:
    """Line -> the text of a comment `#:` there."""
    found = {}
    for number, line in enumerate(text_of(module).splitlines(), 1):
        if match := re.search(r"  #: (.*)$", line):
            found[number] = match[1]
    return found


# ------------------------------------------------------------------------------------ signatures


def signature(name: str, node: ast.FunctionDef, module: ModuleType, method: bool = False) -> str:
    """`name(parameters) -> result` as in the source, one parameter a line where it is long."""
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    parts = [parameter(a, d, module) for a, d in zip(plain, defaults)]
    if method and "staticmethod" not in decorators(node):
        parts = parts[1:]
    if arguments.vararg:
        parts.append("*" + parameter(arguments.vararg, None, module))
    elif arguments.kwonlyargs:
        parts.append("*")
    parts += [parameter(a, d, module) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults)]
    if arguments.kwarg:
        parts.append("**" + parameter(arguments.kwarg, None, module))
    returns = node.returns is not None and node.name != "__init__"
    return called(name, parts, f" -> {source(node.returns, module)}" if returns else "")


def parameter(argument: ast.arg, default: ast.expr | None, module: ModuleType) -> str:
    kind = f": {source(argument.annotation, module)}" if argument.annotation is not None else ""
    equals = " = " if kind else "="
    return argument.arg + kind + ("" if default is None else equals + source(default, module))


def source(node: ast.expr, module: ModuleType) -> str:
    """The text of an expression in one line."""
    return " ".join((ast.get_source_segment(text_of(module), node) or "").split())


def decorators(node: ast.FunctionDef) -> list[str]:
    return [ast.unparse(decorator) for decorator in node.decorator_list]


def called(name: str, parts: list[str], result: str = "") -> str:
    line = f"{name}({', '.join(parts)}){result}"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){result}"


def code(text: str) -> str:
    return f"```python\n{text}\n```"


def parameter_names(node: ast.FunctionDef | None) -> list[str]:
    if node is None:
        return []
    return [item.arg for item in ast.walk(node.args) if isinstance(item, ast.arg)]


# ------------------------------------------------------------------------------------ one entry


def described(entry: Entry) -> str:
    """Markdown of one public name, with its heading."""
    node = definition(entry.module, entry.name.rpartition(".")[2])
    if isinstance(node, ast.ClassDef):
        body = class_text(entry, node)
    elif isinstance(node, ast.FunctionDef):
        text = prose(inspect.getdoc(entry.value), parameter_names(node))
        body = [code(signature(full(entry), node, entry.module)), text]
    else:
        body = [code(f"{full(entry)} = {constant(entry.value)}"), sentence(following_text(entry, node))]
    return "\n\n".join([f"### `{entry.name}`", *filter(None, body)])


def full(entry: Entry) -> str:
    """The name as users write it."""
    return ("attnsparse." if entry.name.partition(".")[0] in ALSO else "asp.") + entry.name


def constant(value: object) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{constant(key)}: ...' for key in value)}}}"
    if isinstance(value, tuple):
        parts = [constant(item) for item in value]
        line = f"({', '.join(parts)})"
        return line if len(line) <= WIDTH else "(\n" + "".join(f"    {part},\n" for part in parts) + ")"
    return json.dumps(value, ensure_ascii=False)


def following_text(entry: Entry, node: ast.stmt | None) -> str:
    """The string that stands below an assignment."""
    body = tree(entry.module).body
    after = body[body.index(node) + 1 :][:1] if node in body else []
    return next((inspect.cleandoc(text) for text in map(string_of, after) if text), "")


def string_of(node: ast.stmt) -> str:
    value = getattr(getattr(node, "value", None), "value", "") if isinstance(node, ast.Expr) else ""
    return value if isinstance(value, str) else ""


def class_text(entry: Entry, node: ast.ClassDef) -> list[str]:
    """Constructor (unless something else makes the object), docstring, attributes, methods."""
    kind = entry.value
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    init = next((item for item in methods if item.name == "__init__"), None)
    fields = list(fields_of(entry, node))
    init_text = (init is not None and ast.get_docstring(init)) or ""
    made_elsewhere = "Made by" in (init_text if init is not None else ast.get_docstring(node) or "")
    names = [*parameter_names(init), *(name for name, _, _, _ in fields)]
    body = []
    if issubclass(kind, Exception):
        bases = ", ".join(base.__name__ for base in kind.__bases__ if not base.__name__.startswith("_"))
        return [f"A kind of {bases}.", prose(ast.get_docstring(node))]
    if not made_elsewhere and init is not None:
        body.append(code(signature(full(entry), init, entry.module, method=True)))
    elif not made_elsewhere and fields:
        parts = [f"{n}: {a}" + (f" = {d}" if d else "") for n, a, d, _ in fields]
        body.append(code(called(full(entry), parts)))
    body += [prose(ast.get_docstring(node), names), prose(init_text, names)]
    attributes = [attribute(n, a, t) for n, a, _, t in fields if t or made_elsewhere]
    for item in methods:
        if is_property(item) and public(item):
            kind = "" if item.returns is None else source(item.returns, entry.module)
            attributes.append(attribute(item.name, kind, ast.get_docstring(item)))
    if attributes:
        body += ["Attributes:", "\n".join(attributes)]
    shown: set[str] = set()
    for item in methods:
        if public(item) and not is_property(item) and item.name not in shown:
            shown.add(item.name)
            body += method_text(entry, item)
    return body


def fields_of(entry: Entry, node: ast.ClassDef) -> Iterator[tuple[str, str, str, str]]:
    """(name, type, default, text) of the annotated names of a class and of `self.x  #: text` lines."""
    notes = comments(entry.module)
    for item, after in zip(node.body, [*node.body[1:], None]):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id[0] != "_":
            text = string_of(after) if after is not None else ""
            default = "" if item.value is None else source(item.value, entry.module)
            default = plain_default(default, getattr(entry.value, item.target.id, None))
            notes_here = [notes[line] for line in range(item.lineno, item.end_lineno + 1) if line in notes]
            text = inspect.cleandoc(text) or " ".join(notes_here)
            yield item.target.id, source(item.annotation, entry.module), default, text
    for item in ast.walk(node):
        if isinstance(item, (ast.Assign, ast.AnnAssign)) and item.lineno in notes:
            target = item.target if isinstance(item, ast.AnnAssign) else item.targets[0]
            if isinstance(target, ast.Attribute):
                kind = source(item.annotation, entry.module) if isinstance(item, ast.AnnAssign) else ""
                yield target.attr, kind, "", notes[item.lineno]


def plain_default(text: str, value: object) -> str:
    """The default of a dataclass field, without the call to `field` and without private names."""
    match = re.fullmatch(r"field\(default_factory=(\w+)\)", text)
    if match or text.startswith("field("):
        return f"{match[1]}()" if match else ""
    return repr(value) if text.startswith("_") else text


def public(node: ast.FunctionDef) -> bool:
    return not node.name.startswith("_")


def is_property(node: ast.FunctionDef) -> bool:
    return any("property" in decorator for decorator in decorators(node))


def attribute(name: str, kind: str, text: str | None) -> str:
    said = sentence(text)
    return f"* `{name}{': ' if kind else ''}{kind}`" + (f": {said}" if said else "")


def method_text(entry: Entry, node: ast.FunctionDef) -> list[str]:
    name = entry.name.rpartition(".")[2]
    bound = {"classmethod", "staticmethod"} & set(decorators(node))
    owner = full(entry) if bound else re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    text = prose(inspect.getdoc(getattr(entry.value, node.name)), parameter_names(node))
    called_as = signature(f"{owner}.{node.name}", node, entry.module, method=True)
    return [f"#### `{name}.{node.name}`", code(called_as), text]


# ------------------------------------------------------------------------------------ the whole text


def api_text() -> str:
    """The text of docs/api.md."""
    groups: dict[str, list[Entry]] = {title: [] for title, _ in GROUPS}
    for entry in entries():
        groups[group_of(short(entry.module))].append(entry)
    modules = {short(module): module for module in [*public_modules(), errors, interventions]}
    parts, contents = [], []
    for title, patterns in GROUPS:
        chosen = sorted(groups[title], key=lambda entry: place(entry, patterns))
        if not chosen:
            continue
        contents.append(f"* [{title}](#{slug(title)}): " + ", ".join(map(link, chosen)))
        parts.append(f"## {title}")
        for name in sorted(modules):
            if group_of(name) == title and modules[name].__doc__:
                parts.append(f"**`attnsparse.{name}`.** {prose(inspect.getdoc(modules[name]))}")
        parts += map(described, chosen)
    contents.append("* [Command line](#command-line)")
    return "\n\n".join([INTRODUCTION.strip(), "\n".join(contents), *parts, command_line()]) + "\n"


def group_of(module: str) -> str:
    return next(title for title, patterns in GROUPS if any(fnmatch(module, p) for p in patterns))


def place(entry: Entry, patterns: tuple[str, ...]) -> tuple[int, str, int]:
    """Where an entry stands in its group: by the order of the patterns, then as in the source."""
    module = short(entry.module)
    first = next(i for i, pattern in enumerate(patterns) if fnmatch(module, pattern))
    return first, module, entry.line


def link(entry: Entry) -> str:
    return f"[{entry.name}](#{slug(entry.name)})"


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def command_line() -> str:
    """Every subcommand of `attnsparse` with its arguments."""
    parts = ["## Command line", prose(inspect.getdoc(cli))]
    [commands] = [a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    for name, command in commands.choices.items():
        usage, rows = [f"attnsparse {name}"], []
        for action in command._actions:
            if not action.help or "--help" in action.option_strings:
                continue
            values = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
            words = values if isinstance(values, tuple) else (values,)
            repeated = " ..." if action.nargs == "+" else ""
            shown = "/".join(action.option_strings) or " ".join(words)
            if action.option_strings and action.nargs != 0:
                shown += f" {' '.join(words)}{repeated}"
            if action.required or not action.option_strings:
                usage.append(shown if action.required else f"[{shown}]")
            rows.append(f"* `{shown}`: {sentence(action.help)}")
        usage = f"```sh\n{' '.join(usage)} [options]\n```"
        text = f"{command.description} {command.epilog.replace('Example: ', 'Example: `')}`"
        parts += [f"### `attnsparse {name}`", usage, text, "\n".join(rows)]
    return "\n\n".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else TARGET).write_text(api_text(), encoding="utf-8", newline="\n")
