"""Rules that the source keeps, read off the files and the binary: layers, allocation, output, state, size."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from places import ROOT

CSRC = ROOT / "csrc"
pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="needs the source tree, not only the package")

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 500
LONG_FILES: dict[str, int] = {}  # name: limit, at most 700, each with its reason beside it

# Files of the core that keep state between calls.
STATEFUL = {
    "parallel.c",  # the thread pool
    "blas.c",  # what OpenBLAS keeps in the process: threads, buffers, its lock
    "environment.c",  # whether a thread is inside a call, and not in what the call called
    "memory.c",  # the live-byte counter, and the failing allocation of the tests
    "skinny.c",  # the block sizes that were found to give BLAS's bits, tried once in a process
    "isa.c",  # the instruction set, chosen when the module is imported
}

C_FILES = sorted(CSRC.rglob("*.[ch]"))
PYTHON_FILES = sorted((ROOT / "attnsparse").rglob("*.py"))
each_c_file = pytest.mark.parametrize("path", C_FILES, ids=lambda path: path.name)
each_python_file = pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: path.name)

ALLOCATION = r"\b(?:malloc|calloc|realloc|free|aligned_alloc|posix_memalign|strdup|alloca)\s*\("
OUTPUT_OR_EXIT = r"\b(?:v?f?printf|puts|putchar|fputs|perror|exit|_exit|quick_exit|abort|longjmp)\s*\("
UNSIZED = r"\b(?:v?sprintf|strcpy|strcat|gets|atoi|atof)\s*\("


def is_core(path: Path) -> bool:
    """Whether a C file belongs to the plain C library, which knows nothing of Python."""
    return path.parent.name != "python" and path.name != "py.h" and not path.name.startswith("py_")


def code_of(path: Path) -> str:
    return strip_c(path.read_text())


def strip_c(text: str) -> str:
    """C source with comments, literals and preprocessor lines blanked; line numbers stay."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    text = re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, text, flags=re.S)
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", blank, text, flags=re.M)


def functions(code: str) -> Iterator[tuple[int, str, int]]:
    """Yield (line, head, number of lines) of every function in stripped C code."""
    start, depth, opened = 0, 0, 0
    for i, sign in enumerate(code):
        if sign == "{":
            opened = i if depth == 0 else opened
            depth += 1
        elif sign == "}":
            depth -= 1
            head = code[start:opened]
            if depth == 0 and head.rstrip().endswith(")"):
                head = head.lstrip()
                line = code.count("\n", 0, opened - len(head)) + 1
                yield line, " ".join(head.split()), code.count("\n", 0, i) + 2 - line
                start = i + 1
        if sign == ";" and depth == 0:
            start = i + 1


def lines_with(pattern: str, path: Path) -> list[str]:
    """`file:line` of every match of `pattern` in the code (not in comments or strings) of `path`."""
    code = code_of(path)
    return [f"{path.name}:{code.count(chr(10), 0, m.start()) + 1}" for m in re.finditer(pattern, code)]


def variables(symbols: str) -> dict[str, set[str]]:
    """{source file: its writable variables} from what `objdump -t` prints; "" for names seen everywhere."""
    found: dict[str, set[str]] = {}
    source = ""
    for line in symbols.splitlines():
        if match := re.search(r"\bdf \*ABS\*\s+\S+\s*(.*)$", line):
            source = match[1]
        elif match := re.search(r"\s(?:\.t?data|\.t?bss|\*COM\*)\s+\S+\s+(?:\.hidden )?(\S+)$", line):
            found.setdefault(source, set()).add(match[1])
    return found


def test_there_is_something_to_check():
    assert len(C_FILES) > 10
    assert len(PYTHON_FILES) > 10


@each_c_file
def test_only_py_files_know_python(path):
    includes = re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', path.read_text(), flags=re.M)
    if is_core(path):
        python = [name for name in includes if re.match(r"Python\.h|numpy/|py\.h|py_|structmember\.h", name)]
        assert not python, f"{path.name} includes {python}"
    else:
        assert not {"internal.h", "kernels.h", "blas.h"} & set(includes), f"{path.name} reaches into the core"


@each_c_file
def test_only_memory_allocates(path):
    assert path.name == "memory.c" or not lines_with(ALLOCATION, path)


@each_c_file
def test_never_prints_or_ends_the_process(path):
    assert not lines_with(OUTPUT_OR_EXIT, path)
    assert not lines_with(UNSIZED, path), "use the form that takes a size"


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("objdump"), reason="reads ELF with objdump")
@pytest.mark.parametrize("module", ["attnsparse._core", "attnsparse._core64"])
def test_core_keeps_no_state_between_calls(module):
    """Read off the binary: the files of the core that have a writable variable are the listed ones."""
    command = ["objdump", "-t", find_spec(module).origin]
    found = variables(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    names = " ".join(name for each in found.values() for name in each)
    if not found or re.search("gcov|asan|tsan|ubsan", names):
        pytest.skip("stripped or instrumented build")
    core = {path.name for path in C_FILES if is_core(path)}
    assert {name for name in found if name in core} == STATEFUL
    # Seen by all files: what the compiler adds, and what CPython wants writable.
    expected = re.compile(r"__|completed\.0$|asp_py_\w+_spec$|asp_module_def$")
    assert [name for name in found.get("", set()) if not expected.match(name)] == []


def test_every_public_function_that_computes_enters_the_environment():
    """Those that are told how to run, and the few that compute without."""
    heads = " ".join(code_of(path) for path in sorted(CSRC.glob("asp*.h")))
    declared = re.findall(r"\b(asp_\w+)\(([^()]*)\);", heads)
    computing = {name for name, arguments in declared if re.search(r"\basp_context\b", arguments)}
    computing |= {"asp_model_new", "asp_model_count_nonfinite", "asp_isa_noise_row", "asp_isa_exp_array"}
    computing |= {"asp_curve_effect", "asp_curve_needed", "asp_curve_shares"}
    computing |= {"asp_transcoder_trainer_scaled"}
    assert len(computing) > 15
    entering = set()
    for path in C_FILES:
        entering |= set(re.findall(r"\b(asp_\w+)\([^()]*\)\s*\{\s*ASP_ENVIRONMENT;", code_of(path)))
    assert entering == computing


@each_c_file
def test_c_functions_are_short(path):
    long = {
        f"{path.name}:{line} {head[:60]}": n
        for line, head, n in functions(code_of(path))
        if n > MAX_FUNCTION_LINES
    }
    assert not long


@each_python_file
def test_python_functions_are_short(path):
    long = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            # A docstring does not count towards the limit.
            documented = ast.get_docstring(node) is not None and len(node.body) > 1
            n_lines = node.end_lineno - (node.body[1] if documented else node).lineno + 1
            if n_lines > MAX_FUNCTION_LINES:
                long[f"{path.name}:{node.lineno} {node.name}"] = n_lines
    assert not long


@pytest.mark.parametrize("path", C_FILES + PYTHON_FILES, ids=lambda path: path.name)
def test_files_are_short(path):
    limit = min(LONG_FILES.get(path.name, MAX_FILE_LINES), 700)
    assert len(path.read_text().splitlines()) <= limit


def static_functions(path: Path) -> set[str]:
    """Names of the functions that only this file can call."""
    return set(re.findall(r"^static\s[^=;(){}]*?\b([a-z]\w*)\(", code_of(path), flags=re.M))


def test_static_functions_are_named_after_their_subject():
    """No name in two files, so that a debugger and a profiler tell them apart."""
    places: dict[str, list[str]] = {}
    for path in C_FILES:
        for name in static_functions(path):
            places.setdefault(name, []).append(path.name)
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_map_names_every_folder():
    """docs/developing.md says where to look for what; a new folder gets a line there."""
    text = (ROOT / "docs" / "developing.md").read_text().partition("## Map")[2]
    named = set(re.findall(r"`([^`\s]+/)`", text))
    for top in ("attnsparse", "csrc", "tests"):
        tracked = {path.parent for kind in ("*.py", "*.c", "*.h") for path in (ROOT / top).rglob(kind)}
        folders = {f"{path.relative_to(ROOT / top).as_posix()}/" for path in tracked} - {"./"}
        assert folders - named == set(), top


def test_the_build_bounds_what_functions_put_on_the_stack():
    """Threads with small stacks call the core, and its own have 1 MiB."""
    setup = (ROOT / "setup.py").read_text()
    assert re.search(r'WARNINGS = \[.*"-Wframe-larger-than=8192"', setup)
    assert not re.search(r"frame-larger-than", setup.replace('"-Wframe-larger-than=8192"', ""))


def test_the_picture_names_every_package_and_c_folder():
    drawn = (ROOT / "docs" / "images" / "packages.svg").read_text()
    packages = {path.parent.name for path in (ROOT / "attnsparse").glob("*/*.py")}
    folders = {path.parent.name for path in CSRC.glob("*/*.c")}
    assert len(packages) > 8
    missing = [name for name in packages | folders if f">{name}<" not in drawn]
    assert missing == [], "add it to docs/images/packages.py and run that"


def test_build_uses_no_unsafe_flags():
    """-march=native once, behind its switch; nothing that changes what floating-point arithmetic means."""
    for name in ("setup.py", "pyproject.toml", ".ci/run", ".ci/suite"):
        text = (ROOT / name).read_text()
        assert not re.search(r"-ffast-math|-Ofast|-funsafe-math|-ffinite-math|-mtune=native", text), name
    setup = (ROOT / "setup.py").read_text()
    native = re.findall(r'if on\("NATIVE"\):\n\s+compile_args \+= \["-march=native"\]', setup)
    assert len(native) == setup.count("-march=native") == 1


@each_c_file
def test_no_pragma_changes_the_flags(path):
    text = path.read_text()
    assert not re.search(r"#\s*pragma\s+GCC\s+(?:optimize|diagnostic)|fast-math|no-math|\bmarch\b", text)


def test_the_checks_can_fail(tmp_path):
    """The patterns above are shown what they forbid, so that a broken one does not pass for clean code."""
    bad = tmp_path / "bad.c"
    bad.write_text('/* free(x); */\n#define P "exit(1)"\nvoid f(void) {\n p = malloc (8);\n puts("x");\n}\n')
    assert lines_with(ALLOCATION, bad) == ["bad.c:4"]
    assert lines_with(OUTPUT_OR_EXIT, bad) == ["bad.c:5"]
    code = "struct s { int a; };\nint x[] = {1, 2};\n\nint f(int a)\n{\n  if (a) { a = 1; }\n  return a;\n}\n"
    assert list(functions(strip_c(code))) == [(4, "int f(int a)", 5)]
    bad.write_text("static int f(int a) {\n  return g(a);\n}\nstatic const int n = h(1);\nint k(void);\n")
    assert static_functions(bad) == {"f"}
    symbols = (
        "00 l    df *ABS*  00  bad.c\n08 l     O .bss  08  counter\n10 l     O .data.rel.ro  08  table\n"
        "00 l    df *ABS*  00  \n18 l     O .data  04  .hidden shared\n"
    )
    assert variables(symbols) == {"bad.c": {"counter"}, "": {"shared"}}
