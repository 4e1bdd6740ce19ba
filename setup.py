"""Builds attnsparse._core (float32) and ._core64 (float64) from csrc/**/*.c, with OpenBLAS beside them.

Everything else about the package is in pyproject.toml.  The environment variables read here
(ATTNSPARSE_BLAS, _DEBUG, _SANITIZE, _COVERAGE, _WERROR, _NATIVE) are described in docs/developing.md.
"""

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import files
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MACOS = sys.platform == "darwin"
ORIGIN = "@loader_path" if MACOS else "$ORIGIN"
SOURCES = sorted(str(path) for path in Path("csrc").rglob("*.c"))
EXTENSIONS = {"_core": [], "_core64": [("ASP_DOUBLE", "1")]}
MACROS = [("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_1_23_API_VERSION")]
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wvla", "-Wframe-larger-than=8192", "-Wno-psabi"]
PROBE = """#include "base/blas.h"
int main(void) {
    asp_real x = 0;
    asp_cblas_gemm(ASP_ROW_MAJOR, ASP_NO_TRANS, ASP_NO_TRANS, 1, 1, 1, 1, &x, 1, &x, 1, 0, &x, 1);
#ifndef ASP_ACCELERATE
    ASP_BLAS(openblas_set_num_threads)(1);
#endif
    return 0;
}
"""


@dataclass
class Blas:
    """How to name and link one BLAS, and which files to put into attnsparse/_libs (name: file)."""

    macros: list
    link_args: list
    vendor: dict = field(default_factory=dict)


def find_blas(choice):
    """Turn ATTNSPARSE_BLAS (a name, or a folder with lib/ in it) into a `Blas`."""
    if choice == "scipy-openblas":
        try:
            import scipy_openblas32 as wheel
        except ImportError:
            raise SystemExit(
                "attnsparse is built with scipy-openblas32 (its version is in pyproject.toml): "
                "install it, or set ATTNSPARSE_BLAS=system."
            ) from None
        lib = Path(wheel.get_lib_dir())
        vendor = {file.name: file for file in lib.iterdir() if file.is_file()}
        vendor |= {
            f"OpenBLAS-{f.name}": f.locate() for f in files("scipy-openblas32") if f.parent.name == "licenses"
        }
        link_args = [f"-L{lib}", f"-l{wheel.get_library()}", f"-Wl,-rpath,{ORIGIN}/_libs"]
        return Blas([("ASP_BLAS_PREFIX", "scipy_")], link_args, vendor)
    if choice == "accelerate":
        return Blas([("ASP_ACCELERATE", "1")], ["-framework", "Accelerate"])
    if choice == "system":
        ask = ["pkg-config", "--libs", "openblas"]
        found = shutil.which(ask[0]) and subprocess.run(ask, capture_output=True, text=True)
        return Blas([], found.stdout.split() if found and found.returncode == 0 else ["-lopenblas"])
    lib = Path(choice, "lib").resolve()
    if not lib.is_dir():
        raise SystemExit(
            f"ATTNSPARSE_BLAS={choice}: expected scipy-openblas, system, accelerate "
            "or the path of a folder that has OpenBLAS in its lib/."
        )
    return Blas([], [f"-L{lib}", "-lopenblas", f"-Wl,-rpath,{lib}"])


def flags_from_environment():
    """Compiler and linker flags, with the switches ATTNSPARSE_DEBUG, _SANITIZE, _COVERAGE, ... applied."""

    def on(name):
        return os.environ.get("ATTNSPARSE_" + name, "0") not in ("", "0")

    sanitize = os.environ.get("ATTNSPARSE_SANITIZE", "")
    compile_args = [
        "-std=gnu11",
        "-O3",
        "-g0",
        "-fno-math-errno",
        "-ffp-contract=fast",
        "-fvisibility=hidden",
        "-pthread",
        *WARNINGS,
    ]
    link_args = ["-pthread", "-lm"]
    if on("WERROR"):
        compile_args += ["-Werror"]
    if on("DEBUG") or sanitize:
        compile_args += ["-O1", "-g", "-UNDEBUG"]
    if sanitize:  # -fwrapv comes from Python's own flags and would hide signed overflow
        compile_args += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-fno-wrapv"]
        link_args += [f"-fsanitize={sanitize}"]
    if on("COVERAGE"):
        compile_args += ["-O0", "-g", "--coverage"]
        link_args += ["--coverage"]
    if on("NATIVE"):
        compile_args += ["-march=native"]
    return compile_args, link_args


def is_current(target):
    """Whether an object is newer than setup.py and every file that its compiler read (`-MMD` lists them)."""
    listed = target.with_suffix(".d")
    if not target.exists() or not listed.exists():
        return False
    inputs = shlex.split(listed.read_text().replace("\\\n", " ").partition(": ")[2])
    made = target.stat().st_mtime
    return all(os.path.exists(path) and os.stat(path).st_mtime < made for path in ["setup.py", *inputs])


class BuildExt(build_ext):
    """Compiles both extensions file by file in parallel and copies OpenBLAS into the package."""

    def run(self):
        self.keep_objects = self.inplace and not self.force  # the base class clears inplace while it builds
        super().run()

    def build_extensions(self):
        if sys.platform == "win32":
            raise SystemExit("attnsparse needs POSIX threads and does not build on Windows; use WSL.")
        import numpy

        self.blas = find_blas(os.environ.get("ATTNSPARSE_BLAS") or "scipy-openblas")
        self.compile_args, self.link_args = flags_from_environment()
        self.include_dirs = ["csrc", numpy.get_include(), *self.compiler.include_dirs]
        # Python's own build may carry rpaths of the machine it was built on: not ours to hand on.
        self.compiler.linker_so = [a for a in self.compiler.linker_so if not a.startswith("-Wl,-rpath")]
        self.probe()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        jobs = [(ext, source) for ext in self.extensions for source in ext.sources]
        with ThreadPoolExecutor(cores) as pool:
            objects = list(pool.map(lambda job: self.compile_one(*job), jobs))
        self.write_commands(jobs)
        for ext in self.extensions:
            mine = [obj for (owner, _), obj in zip(jobs, objects) if owner is ext]
            target = self.get_ext_fullpath(ext.name)
            Path(target).unlink(missing_ok=True)  # it may be newer, but linked with other switches
            self.compiler.link_shared_object(
                mine, target, target_lang="c", extra_postargs=[*self.blas.link_args, *self.link_args]
            )
        self.vendor()

    def macros(self, ext):
        return [*ext.define_macros, *self.blas.macros]

    def compile_one(self, ext, source):
        """Compile one file of one extension; in-place builds keep an object newer than all it was made of."""
        macros = self.macros(ext)
        flags = repr((self.compile_args, macros, self.include_dirs))
        key = hashlib.sha256(flags.encode()).hexdigest()[:12]
        folder = Path(self.build_temp, f"{ext.name}-{key}")
        target = folder / Path(source).with_suffix(".o")
        if self.keep_objects and is_current(target):
            return str(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        return self.compiler.compile(
            [source],
            output_dir=str(folder),
            macros=macros,
            include_dirs=self.include_dirs,
            extra_postargs=[*self.compile_args, "-MMD", "-MF", str(target.with_suffix(".d"))],
        )[0]

    def write_commands(self, jobs):
        """Write compile_commands.json, for clangd and clang-tidy."""
        commands = [
            {
                "directory": str(Path.cwd()),
                "file": source,
                "arguments": [
                    *self.compiler.compiler_so,
                    *(f"-D{name}={value}" for name, value in self.macros(ext)),
                    *(f"-I{path}" for path in self.include_dirs),
                    "-c",
                    source,
                    *self.compile_args,
                ],
            }
            for ext, source in jobs
            if ext is self.extensions[0]  # the second extension has the same files
        ]
        Path("compile_commands.json").write_text(json.dumps(commands, indent=1) + "\n")

    def probe(self):
        """Compile and link two tiny programs first, so that a missing part is named in one sentence."""
        self.try_program(
            "#include <Python.h>\nint main(void) { return 0; }\n",
            [],
            (
                "attnsparse needs a C11 compiler and Python's headers: install gcc and python3-dev "
                "(Debian, Ubuntu), gcc and python3-devel (Fedora), or run xcode-select --install (macOS)."
            ),
        )
        self.try_program(
            PROBE,
            self.blas.link_args,
            (
                "attnsparse could not compile and link against OpenBLAS: unset ATTNSPARSE_BLAS to use the "
                "scipy-openblas32 wheel, or install libopenblas-dev and set ATTNSPARSE_BLAS=system."
            ),
        )

    def try_program(self, text, link_args, message):
        defines = [f"-D{name}={value}" for name, value in self.blas.macros]
        includes = [f"-I{path}" for path in self.include_dirs]
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(text)
            command = [
                *self.compiler.compiler_so,
                *defines,
                *includes,
                str(source),
                "-o",
                str(source.with_suffix("")),
                *link_args,
            ]
            try:
                result = subprocess.run(command, capture_output=True, text=True)
                reason = result.stderr.strip().splitlines() if result.returncode else None
            except OSError as error:
                reason = [str(error)]
        if reason is not None:
            telling = ("cannot find", "not found", "undefined", "error:")
            said = next((line for line in reason if any(words in line for words in telling)), reason[-1])
            raise SystemExit(f"{message} (The compiler said: {said})")

    def vendor(self):
        """Copy the BLAS library and its licence to attnsparse/_libs, where both extensions' rpath looks."""
        folder = Path(self.get_ext_fullpath("attnsparse._core")).parent / "_libs"
        for name, file in self.blas.vendor.items():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).unlink(missing_ok=True)
            shutil.copy2(file, folder / name)

    def copy_extensions_to_source(self):
        for ext in self.extensions:  # a process that has the old file mapped must keep it: unlink first
            for old in Path("attnsparse").glob(f"{ext.name.rpartition('.')[2]}.*.so"):
                old.unlink()
        super().copy_extensions_to_source()
        if self.blas.vendor:
            built = Path(self.build_lib, "attnsparse", "_libs")
            shutil.rmtree("attnsparse/_libs", ignore_errors=True)
            shutil.copytree(built, "attnsparse/_libs")


if MACOS:  # the OpenBLAS wheel holds one architecture, so build for that one only
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")

setup(
    ext_modules=[
        Extension(f"attnsparse.{name}", SOURCES, define_macros=[("ASP_MODULE_NAME", name), *macros, *MACROS])
        for name, macros in EXTENSIONS.items()
    ],
    cmdclass={"build_ext": BuildExt},
)
