"""What an installed package must hold and what importing it must not do (nothing here needs the source)."""

from __future__ import annotations

import copy
import importlib
import json
import pickle
import pkgutil
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import check_isa
import pytest

import attnsparse as asp
from attnsparse.graphs import page as graph_page
from attnsparse.pages import attention
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


def test_scripts_and_styles_of_pages_are_installed():
    of_pages = (*attention.SCRIPTS, "page.js", "widget.js")
    for package, scripts in (("graphs", graph_page.SCRIPTS), ("pages", of_pages)):
        kind = "graph" if package == "graphs" else "attention"
        for name in (*scripts, f"{kind}.html", f"{kind}.css"):
            assert files("attnsparse").joinpath(package, "assets", name).is_file()


@pytest.mark.parametrize(
    "name",
    dict.fromkeys(name for recipe in RECIPES.values() for name in recipe.models),
)
def test_embedded_models_are_installed(name):
    folder = files("attnsparse").joinpath("pretrained", name)
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


x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction sets of x86-64")


@reads_elf
@x86_64
@each_module
def test_wide_instructions_only_in_dispatched_kernels(module):
    """Beyond SSE2 only functions of kernels_avx2.c and kernels_avx512.c, which only their table names."""
    found = check_isa.scan(find_spec(module).origin)
    if not any(found.beyond) and "kernels_avx2.c" not in check_isa.owners(find_spec(module).origin)[1]:
        pytest.skip("stripped")
    assert found.n_instructions > 10_000
    assert set(found.beyond) == check_isa.DISPATCHED
    assert found.calls == []


@reads_elf
@x86_64
@pytest.mark.skipif(not shutil.which("gcc"), reason="compiles C")
@pytest.mark.parametrize("flag", ["-mavx2", "-mavx512f", "-mpopcnt", "-mbmi2", "-msse4.1"])
def test_the_scan_sees_one_wide_function(tmp_path, flag):
    bodies = {
        "-mpopcnt": "return __builtin_popcount((unsigned)n);",
        "-mbmi2": "return n << (p[0] & 31);",
        "-msse4.1": "for (int i = 0; i < n; i++) p[i] *= q[i]; return 0;",
    }
    body = bodies.get(flag, "for (int i = 0; i < n; i++) p[i] += q[i]; return 0;")
    source, library = tmp_path / "wide.c", tmp_path / "wide.so"
    kept = "static __attribute__((used))"
    source.write_text(f"{kept} int wide(int *restrict p, const int *q, int n) {{ {body} }}\n")
    for flags, expected in ([flag], {"wide.c"}), ([], set()):
        command = ["gcc", "-O3", *flags, "-shared", "-fPIC", str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        assert set(check_isa.scan(str(library)).beyond) == expected


ALL_MODULES = """
import importlib, pkgutil, attnsparse
for found in pkgutil.walk_packages(attnsparse.__path__, "attnsparse."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
"""


def test_importing_every_module_writes_nothing_and_starts_nothing():
    """Beyond what pandas and matplotlib do themselves when they are imported first."""
    code = IMPORT.replace("import numpy\n", "import matplotlib.pyplot, pandas, tokenizers\n")
    command = [sys.executable, "-B", "-c", code.replace("import attnsparse\n", ALL_MODULES)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["events"] == []
    assert sum(name.startswith("attnsparse.") for name in found["modules"]) > 50


def test_the_audit_sees_writing_and_the_network():
    code = (
        "import socket, tempfile, pathlib\n"
        "with tempfile.TemporaryDirectory() as d: pathlib.Path(d, 'x').write_text('x')\n"
        "socket.socket().close()\n"
    )
    command = [
        sys.executable,
        "-B",
        "-c",
        IMPORT.replace("import attnsparse\n", "import attnsparse\n" + code),
    ]
    events = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["events"]
    assert any(event.startswith("open") for event in events)
    assert any(event.startswith("socket") for event in events)


def exceptions() -> list[type]:
    """Every exception that some module of the package defines."""
    found = set()
    for name in (each.name for each in pkgutil.walk_packages(asp.__path__, "attnsparse.")):
        if not name.endswith("__main__"):
            values = vars(importlib.import_module(name)).values()
            found |= {v for v in values if isinstance(v, type) and issubclass(v, BaseException)}
    return sorted(
        (kind for kind in found if kind.__module__.startswith("attnsparse")), key=lambda k: k.__name__
    )


@pytest.mark.parametrize("kind", exceptions(), ids=lambda kind: kind.__name__)
def test_every_exception_can_be_pickled(kind):
    located = {"code": "crc", "path": "a/b.ckpt", "offset": 2**40, "field": "tensor"}
    try:
        error, expected = kind("wrong\n\u00e9", **located), located
    except TypeError:  # one without a place
        error, expected = kind("wrong\n\u00e9"), {}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for twin in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error), copy.deepcopy(error)):
            assert type(twin) is kind
            assert (str(twin), twin.args) == (str(error), error.args)
            assert {name: getattr(twin, name) for name in expected} == expected


def test_the_public_exceptions_are_among_them():
    public = {getattr(asp, name) for name in asp.__all__}
    public = {kind for kind in public if isinstance(kind, type) and issubclass(kind, BaseException)}
    assert len(public) >= 7
    assert public <= set(exceptions())
