"""What an installed package must hold and what importing it must not do (nothing here needs the source)."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest

import attnsparse as asp
from attnsparse.recipes import RECIPES

PACKAGE = Path(asp.__file__).parent
MODULES = ["attnsparse._core", "attnsparse._core64"]
each_module = pytest.mark.parametrize("module", MODULES)
reads_elf = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("objdump"), reason="reads ELF with binutils"
)

IMPORT = """
import json, os, sys, time
import numpy
count = lambda: len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else None
before, writes = count(), []
def hook(event, args):
    writing = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
    if writing or event.split(".")[0] in ("socket", "subprocess", "shutil", "tempfile", "urllib") \\
            or event in ("os.mkdir", "os.remove", "os.rename", "os.system", "os.fork", "os.exec"):
        writes.append(f"{event} {args}")
sys.addaudithook(hook)
start = time.perf_counter()
import attnsparse
seconds = time.perf_counter() - start
maps = open("/proc/self/maps").read().split() if os.path.exists("/proc/self/maps") else []
print(json.dumps({
    "seconds": seconds, "threads": [before, count()], "events": writes, "modules": sorted(sys.modules),
    "blas": sorted({word for word in maps if "openblas" in word}), "file": attnsparse.__file__,
}))
"""


@pytest.fixture(scope="module")
def imported() -> dict:
    """What a fresh interpreter has seen after `import numpy, attnsparse`."""
    command = [sys.executable, "-B", "-c", IMPORT]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def objdump(flag: str, path: str | Path) -> str:
    return subprocess.run(["objdump", flag, str(path)], capture_output=True, text=True, check=True).stdout


def dynamic_entries(path: str | Path) -> dict[str, list[str]]:
    """{tag: values} of the ELF dynamic section: NEEDED, SONAME, RPATH, RUNPATH, ..."""
    found: dict[str, list[str]] = {}
    for tag, value in re.findall(r"^\s+([A-Z]+)\s+(\S+)$", objdump("-p", path), flags=re.M):
        found.setdefault(tag, []).append(value)
    return found


def test_version_is_that_of_the_metadata():
    try:
        installed = version("attnsparse")
    except PackageNotFoundError:
        pytest.skip("built in place, not installed")
    assert asp.__version__ == installed


@pytest.mark.parametrize("name", ["py.typed", "_core.pyi"])
def test_type_information_is_installed(name):
    assert files("attnsparse").joinpath(name).is_file()


@pytest.mark.parametrize("name", [name for recipe in RECIPES.values() for name in recipe.models])
def test_embedded_models_are_installed(name):
    folder = files("attnsparse").joinpath("models", name)
    assert {Path(entry.name).suffix for entry in folder.iterdir()} >= {".json", ".safetensors"}


@reads_elf
@each_module
def test_binary_names_no_folder_of_the_building_machine(module):
    entries = dynamic_entries(find_spec(module).origin)
    paths = ":".join(entries.get("RPATH", []) + entries.get("RUNPATH", [])).split(":")
    assert all(path.startswith("$ORIGIN") for path in paths if path), paths


@reads_elf
@each_module
def test_blas_is_inside_the_package(module):
    entries = dynamic_entries(find_spec(module).origin)
    wanted = [name for name in entries["NEEDED"] if "openblas" in name]
    if not any("scipy" in name for name in wanted):
        pytest.skip("built against a BLAS of the system")
    for name in wanted:
        vendored = PACKAGE / "_libs" / name
        assert dynamic_entries(vendored)["SONAME"] == [name]
        assert "$ORIGIN/_libs" in entries["RUNPATH"]
        beside = {path.name for path in vendored.parent.iterdir()}
        system = re.compile(r"lib(c|m|dl|rt|pthread|gcc_s)\.so|ld-linux|ld-musl|libc\.musl")
        assert all(system.match(each) or each in beside for each in dynamic_entries(vendored)["NEEDED"])
    assert list((PACKAGE / "_libs").glob("OpenBLAS-LICENSE*"))


def test_blas_is_loaded_from_the_package(imported):
    if not (PACKAGE / "_libs").is_dir():
        pytest.skip("built against a BLAS of the system")
    ours = str(Path(imported["file"]).parent / "_libs")
    assert not imported["blas"] or any(path.startswith(ours) for path in imported["blas"])


def test_import_starts_no_thread(imported):
    before, after = imported["threads"]
    assert after == before


def test_import_writes_nothing_and_starts_nothing(imported):
    assert imported["events"] == []


@pytest.mark.parametrize("name", ["pandas", "matplotlib", "tokenizers", "yaml", "torch", "transformers"])
def test_import_loads_heavy_packages_only_when_used(imported, name):
    assert name not in imported["modules"]


def test_import_time_is_reported(imported, capsys):
    with capsys.disabled():
        print(f"\nimport attnsparse after numpy: {imported['seconds'] * 1000:.0f} ms")


@reads_elf
@pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction sets of x86-64")
@each_module
def test_wide_instructions_only_in_dispatched_kernels(module):
    """AVX registers appear only in functions of kernels_avx2.c and kernels_avx512.c."""
    path = find_spec(module).origin
    source, owner = "", {}
    for line in objdump("-t", path).splitlines():
        if match := re.search(r"\bdf \*ABS\*\s+\S+\s*(.*)$", line):
            source = match[1]
        elif match := re.match(r"([0-9a-f]+) \S?.{5}F \.text", line):
            owner[int(match[1], 16)] = source
    if "kernels_avx2.c" not in owner.values():
        pytest.skip("stripped")
    users, address = set(), 0
    for line in objdump("-d", path).splitlines():
        if match := re.match(r"([0-9a-f]{16}) <", line):
            address = int(match[1], 16)
        elif re.search(r"\tv[a-z0-9]+ .*%[xyz]mm|%[yz]mm", line):
            users.add(owner.get(address, f"{address:#x}"))
    assert users == {"kernels_avx2.c", "kernels_avx512.c"}
