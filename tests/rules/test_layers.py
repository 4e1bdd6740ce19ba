"""Imports and includes run one way: packages, modules inside a package, folders of the C core."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from places import ROOT

PACKAGE, CSRC = ROOT / "attnsparse", ROOT / "csrc"
pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="needs the source tree, not only the package")

# A package may import those before it.
ORDER = [
    "_version", "errors", "_core_types", "_check", "items", "_random", "_engine", "_tables", "_display", "io",
    "_page", "model", "tasks", "training", "circuits", "sweeps", "transcoders", "graphs", "pages", "figures",
    "recipes", "reproduce", "cli", "__main__",
]  # fmt: skip
# Methods of objects that hand over to a module above them in their package, or to one that is slow to import.
FACADES: set[tuple[str, str]] = {
    ("model.model", "save"),
    ("model.travel", "__reduce__"),
    ("transcoders.labels", "save"),
    ("transcoders.labels", "with_labels"),
    ("cli.main", "_graph"),
    ("cli.main", "_reproduce"),
    *(("model.run_page", name) for name in ("to_html", "show", "widget")),
    *(("circuits.circuit_page", name) for name in ("to_html", "show")),
}
# Methods that make pages, the only imports of a package above: a page shows runs and circuits together.
PAGES = {"model.run_page", "circuits.circuit_page"}

FOLDERS = {  # of the C core: what each may include besides itself and the public headers
    "base": set(),
    "kernels": {"base"},
    "model": {"base", "kernels"},
    "circuit": {"base", "kernels", "model"},
    "component": {"base", "kernels", "model", "circuit"},
    "graph": {"base", "kernels", "model"},
    "transcoder": {"base", "kernels", "model"},
    "train": {"base", "kernels", "model"},
    "python": {"base"},
}


class Import(NamedTuple):
    """One import of ours: by which module, in which function, of which module, and whether only for types."""

    source: str
    function: str | None
    target: str
    typing: bool


def modules(root: Path) -> dict[str, Path]:
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(root: Path) -> Iterator[Import]:
    """All imports of the package's own modules: at the top, in functions, and under TYPE_CHECKING."""
    known = modules(root)
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        yield from _walk(ast.parse(path.read_text()), name, package, known, None, False)


def _walk(node: ast.AST, name: str, package: str, known: dict[str, Path], function: str | None, typing: bool):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom) and child.level:
            base = package.split(".") if package else []
            base = base[: len(base) - child.level + 1]
            dotted = ".".join([*base, *filter(None, [child.module])])
            for alias in child.names:
                inner = f"{dotted}.{alias.name}" if dotted else alias.name
                target = inner if inner in known else dotted
                if target and target != name:
                    yield Import(name, function, target, typing)
        inside = child.name if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
        guarded = typing or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        yield from _walk(child, name, package, known, inside, guarded)


def package_of(module: str) -> str:
    return module.partition(".")[0]


def upward(root: Path) -> list[Import]:
    def rank(module: str) -> int:
        return ORDER.index(package_of(module)) if package_of(module) else len(ORDER)

    return [
        e
        for e in imports(root)
        if e.source
        and e.target
        and rank(e.target) > rank(e.source)
        and not (e.source in PAGES and e.function is not None and package_of(e.target) == "pages")
    ]


def circles(root: Path) -> list[list[str]]:
    """Groups of modules that import each other when they are imported."""
    graph: dict[str, set[str]] = {name: set() for name in modules(root)}
    for e in imports(root):
        if not e.typing and e.function is None and e.target in graph:
            graph[e.source].add(e.target)
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, todo = set(), [start]
        while todo:
            for target in graph[todo.pop()]:
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        reach[start] = seen
    found = {frozenset({a, *(b for b in reach[a] if a in reach[b])}) for a in graph if a in reach[a]}
    return sorted(sorted(group) for group in found)


def late(root: Path) -> set[tuple[str, str]]:
    return {(e.source, e.function) for e in imports(root) if e.function is not None}


def test_every_package_has_its_place():
    assert {package_of(name) for name in modules(PACKAGE)} - {""} == set(ORDER)


def test_imports_run_one_way():
    assert upward(PACKAGE) == []


def test_no_module_is_imported_in_a_circle():
    assert circles(PACKAGE) == []


def test_imports_in_functions_are_known():
    assert late(PACKAGE) == FACADES


def test_no_folder_is_crowded():
    """A reader sees at a glance what a folder holds."""
    folders = {
        path.parent
        for pattern in ("*.py", "*.[ch]")
        for path in [*PACKAGE.rglob(pattern), *CSRC.rglob(pattern)]
    }
    crowded = {
        f.name: n for f in folders if (n := sum(p.suffix in (".py", ".c", ".h") for p in f.iterdir())) > 25
    }
    assert crowded == {}


# ---------------------------------------------------------------------------------------------- arithmetic

# Python computes on arrays in these packages only: it widens and scales what files hold, lays out figures and
# packs the numbers of pages.
COMPUTING = ("io", "transcoders.formats", "figures", "pages")
ARITHMETIC = {
    "bincount", "cumsum", "dot", "einsum", "exp", "expm1", "inner", "lexsort", "log", "log1p", "logaddexp",
    "matmul", "percentile", "quantile", "searchsorted", "tensordot", "vdot",
}  # fmt: skip
# (module, what it uses) and why.
ALLOWED = {
    ("model.batch", "cumsum"): "where packed prompts begin",
    ("model.lens.factored", "@"): "factors of a head's maps, d_head wide, that a user multiplies",
    ("model.build_info", "cumsum"): "where packed prompts begin",
    ("training.data", "cumsum"): "where packed prompts begin",
    ("recipes.demo_text", "cumsum"): "limits of the kinds of sentences, a dozen numbers, once",
    ("transcoders.stored", "einsum"): "the bias of a foreign set that subtracts a vector from its input",
    ("transcoders.stored", "exp"): "thresholds that a foreign set stores as logarithms",
    ("model.tables", "cumsum"): "where the tokens of each prompt of a batch begin",
    ("model.tables", "searchsorted"): "which rows of a table are of each prompt",
    ("graphs.edges", "searchsorted"): "which row an edge of a sparse matrix is in",
    ("graphs.graph_file", "cumsum"): "where the nodes of each split begin in the file",
    ("graphs.layout", "cumsum"): "places on the page",
    ("graphs.layout", "lexsort"): "places on the page",
    ("graphs.neuronpedia_read", "bincount"): "sparse rows of the links of a file",
    ("graphs.neuronpedia_read", "cumsum"): "sparse rows of the links of a file",
    ("graphs.neuronpedia_read", "lexsort"): "sparse rows of the links of a file",
    ("graphs.prune", "searchsorted"): "numbers of the nodes of a split after pruning",
    ("graphs.neuronpedia_write", "@"): "which node of the file a split is shown at, one product a split",
}


def computes(root: Path) -> set[tuple[str, str]]:
    """(module, name of a function of NumPy, or @) of all array arithmetic outside the packages that may."""
    found = set()
    for name, path in modules(root).items():
        if any(name == package or name.startswith(package + ".") for package in COMPUTING):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, ast.MatMult):
                found.add((name, "@"))
            elif isinstance(node, ast.Attribute) and node.attr in ARITHMETIC:
                if not (isinstance(node.value, ast.Name) and node.value.id == "math"):
                    found.add((name, node.attr))
            elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "numpy":
                found |= {(name, alias.name) for alias in node.names if alias.name in ARITHMETIC}
    return found


def test_python_does_not_compute():
    assert computes(PACKAGE) == set(ALLOWED)


# ------------------------------------------------------------------------------------------------- C


def includes(root: Path) -> Iterator[tuple[str, str]]:
    """(file, included file) of all includes in quotes, both relative to `root`."""
    for path in sorted(root.rglob("*.[ch]")):
        for target in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.M):
            yield path.relative_to(root).as_posix(), target


def wrong_includes(root: Path) -> list[tuple[str, str]]:
    found = []
    for source, target in includes(root):
        here, there = Path(source).parent.name, Path(target).parent.name
        public = there == "" and Path(target).name.startswith("asp")
        if not (public or there == here or there in FOLDERS.get(here, set())):
            found.append((source, target))
    return found


def code_of(path: Path) -> str:
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", path.read_text(), flags=re.S)
    return re.sub(r'"(?:\\.|[^"\\\n])*"', '""', text)


def defined(root: Path) -> dict[str, str]:
    """{function that others can call: its file}."""
    found = {}
    for path in sorted(root.rglob("*.c")):
        for match in re.finditer(
            r"^(?!static\b)[A-Za-z_][\w \t*]*?\b(asp_\w+)\([^;{]*\)\s*\{", code_of(path), re.M
        ):
            found[match[1]] = path.relative_to(root).as_posix()
    return found


def wrong_calls(root: Path) -> list[tuple[str, str, str]]:
    """(file, function, its file) where a file uses a function of a folder that it must not know."""
    home, found = defined(root), []
    for path in sorted(root.rglob("*.c")):
        source = path.relative_to(root).as_posix()
        here = Path(source).parent.name
        for name in sorted(set(re.findall(r"\basp_\w+", code_of(path))) & set(home)):
            there = Path(home[name]).parent.name
            if here != "python" and there != here and there not in FOLDERS[here]:
                found.append((source, name, home[name]))
    return found


# Functions whose file is not the word after their prefix: short names for what nearly every file uses.
ELSEWHERE = dict.fromkeys(("asp_allocate", "asp_multiply", "asp_release"), "base/memory.c")


def misplaced(root: Path) -> dict[str, str]:
    """Exported functions that are in another file than the one that the word after the prefix names."""
    found = {}
    for name, path in defined(root).items():
        stem, rest = Path(path).stem, name.removeprefix("asp_")
        if rest != stem and not rest.startswith(stem + "_"):
            found[name] = path
    return found


def test_c_folders_run_one_way():
    assert wrong_includes(CSRC) == []
    assert wrong_calls(CSRC) == []


def test_the_word_after_the_prefix_is_the_file():
    assert len(defined(CSRC)) > 100
    assert misplaced(CSRC) == ELSEWHERE


# ----------------------------------------------------------------------------- the rules can fail


@pytest.fixture
def planted(tmp_path):
    """Writes a small tree of files and gives its root."""

    def write(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_c", ".c").replace("_py", ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize(
    "text",
    [
        "from ..graphs import b",
        "def f():\n    from ..graphs.b import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..graphs.b import x",
    ],
)
def test_an_import_upwards_is_found(planted, text):
    root = planted(model__a_py=text, graphs__b_py="x = 1")
    assert [(e.source, e.target) for e in upward(root)] == [("model.a", "graphs.b")]


def test_a_circle_and_a_late_import_are_found(planted):
    root = planted(
        model__a_py="from .b import x",
        model__b_py="from . import a",
        model__c_py="def f():\n    from . import a",
    )
    assert circles(root) == [["model.a", "model.b"]]
    assert late(root) == {("model.c", "f")}


def test_arithmetic_is_found(planted):
    root = planted(
        model__a_py="import math, numpy as np\nx = np.exp(1) @ y\nz = math.exp(1)",
        model__b_py="from numpy import einsum\nfrom numpy.linalg import norm",
        model__c_py="def f(x, y):\n    x @= y.cumsum()",
        figures__d_py="import numpy as np\nnp.exp(1)",
        transcoders__formats__e_py="import numpy as np\nnp.log(1)",
        transcoders__formatted_py="import numpy as np\nnp.log(1)",
    )
    assert computes(root) == {
        ("model.a", "exp"), ("model.a", "@"), ("model.b", "einsum"), ("model.c", "@"), ("model.c", "cumsum"),
        ("transcoders.formatted", "log"),
    }  # fmt: skip


def test_wrong_includes_calls_and_places_are_found(planted):
    root = planted(
        model__run_c='#include "circuit/circuit.h"\nvoid asp_run_a(void) { asp_sweep_b(); }\n',
        circuit__sweep_c="void asp_sweep_b(void) {\n}\nint asp_other(int x) {\n    return x;\n}\n",
    )
    assert wrong_includes(root) == [("model/run.c", "circuit/circuit.h")]
    assert wrong_calls(root) == [("model/run.c", "asp_sweep_b", "circuit/sweep.c")]
    assert misplaced(root) == {"asp_other": "circuit/sweep.c"}
