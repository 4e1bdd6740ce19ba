"""How much of the C code the suite executes, by gcov:

    python tests/check_coverage.py [--keep FOLDER] [--report FOLDER] [pytest arguments]

builds an instrumented copy of the tree in a folder, runs pytest on it and adds up both extensions and all
processes. Prints lines and branches of every file, the refusals (asp_fail) that no test reached, and one line
for the plain C core. --report: only adds up again what is in a kept folder. Needs gcc and gcov.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "*.so", "__pycache__", "*.egg-info")
Lines = dict[str, dict[int, int]]
Branches = dict[str, dict[tuple[int, int], int]]


def build(folder: Path) -> None:
    """An instrumented copy of the tree."""
    shutil.copytree(ROOT, folder, ignore=SKIPPED, dirs_exist_ok=True)
    variables = os.environ | {"ATTNSPARSE_COVERAGE": "1"}
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder, env=variables, check=True
    )


def run(folder: Path, arguments: list[str]) -> int:
    """The suite on that copy; instrumented code at -O0 is slow, so that a test may take longer."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "timeout=3600",
        *arguments,
    ]
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": paths}).returncode


def read(folder: Path) -> tuple[Lines, Branches]:
    """{file: {line: times}} and {file: {(line, number): times}}, summed over the builds of each file."""
    sources = {path.name for path in (folder / "csrc").rglob("*.[ch]")}
    lines: Lines = defaultdict(lambda: defaultdict(int))
    branches: Branches = defaultdict(lambda: defaultdict(int))
    for notes in sorted(folder.glob("build/temp*/*/csrc/**/*.gcno")):
        command = ["gcov", "--branch-probabilities", "--json-format", "--stdout", str(notes)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        for file in json.loads(done.stdout.splitlines()[0])["files"]:
            name = Path(file["file"]).name
            if name not in sources:
                continue
            for line in file["lines"]:
                lines[name][line["line_number"]] += line["count"]
                for i, branch in enumerate(line["branches"]):
                    branches[name][line["line_number"], i] += branch["count"]
    return lines, branches


def share(counts: dict) -> tuple[int, int]:
    return sum(n > 0 for n in counts.values()), len(counts)


def unreached(folder: Path, lines: Lines) -> tuple[int, list[str]]:
    """How many refusals there are, and those that were never executed."""
    n, missing = 0, []
    for path in sorted((folder / "csrc").rglob("*.c")):
        for number, text in enumerate(path.read_text().splitlines(), 1):
            if (
                re.search(r"\b(?:asp_fail|PyErr_Format|PyErr_SetString)\(", text)
                and number in lines[path.name]
            ):
                n += 1
                if not lines[path.name][number]:
                    missing.append(f"{path.name}:{number}: {text.strip()[:100]}")
    return n, missing


def report(folder: Path) -> None:
    lines, branches = read(folder)
    core = {name for name in lines if not name.startswith("py")}
    for name in sorted(lines):
        (a, b), (c, d) = share(lines[name]), share(branches[name])
        print(f"{name:22} lines {a:5} of {b:5} {100 * a / max(b, 1):5.1f} %   branches {c:5} of {d:5} "
              f"{100 * c / max(d, 1):5.1f} %")  # fmt: skip
    n, missing = unreached(folder, lines)
    print(*missing, sep="\n")
    print(f"refusals reached: {n - len(missing)} of {n}")
    for label, names in (("C core", core), ("C core and binding", set(lines))):
        totals = [
            [sum(x) for x in zip(*(share(table[name]) for name in names))] for table in (lines, branches)
        ]
        words = [f"{100 * a / b:.1f} % of {b:,}" for a, b in totals]
        print(f"R30: {label}: lines {words[0]}, branches {words[1]}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, help="a new folder for the copy, else temporary")
    parser.add_argument("--report", type=Path, help="a folder that was kept")
    options, arguments = parser.parse_known_args()
    if options.report:
        report(options.report.resolve())
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary, "copy")).resolve()
        folder.mkdir(parents=True)
        build(folder)
        code = run(folder, arguments)
        report(folder)
        return code


if __name__ == "__main__":
    sys.exit(main())
