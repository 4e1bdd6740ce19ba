"""A JupyterLab of its own, in folders of its own, and one notebook of it in a browser."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from chromium import Browser

IS_HERE = all(map(importlib.util.find_spec, ("jupyterlab", "ipykernel", "nbformat", "anywidget")))
_TOKEN = "attnsparse"
SECONDS = 300.0
"""How long to wait: a busy machine takes minutes to start JupyterLab and to draw it."""
_KERNEL = "((window.jupyterapp || {}).shell?.currentWidget?.sessionContext?.session || {}).kernel"
_READY = f"(k => !!k && k.connectionStatus === 'connected' && k.status === 'idle')({_KERNEL})"
CELLS = "[...document.querySelectorAll('.jp-Notebook .jp-Cell')]"
PANEL = "window.jupyterapp.shell.currentWidget.content"


class Lab:
    """The server: `address`, and `folder` with the notebooks."""

    def __init__(self, address: str, folder: Path):
        self.address, self.folder = address, folder

    def write(self, name: str, cells: Sequence[str]) -> Path:
        """A notebook with these cells, not yet run."""
        nbformat: Any = importlib.import_module("nbformat")
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        book = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata={"kernelspec": kernel}
        )
        path = self.folder / name
        nbformat.write(book, path)
        return path

    def asked(self, path: str, method: str = "GET") -> bytes:
        """What the server answers."""
        request = urllib.request.Request(f"{self.address}/{path}?token={_TOKEN}", method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def stop_kernels(self) -> None:
        """End all kernels, as a restart of the server does."""
        for session in json.loads(self.asked("api/sessions")):
            self.asked(f"api/sessions/{session['id']}", "DELETE")

    def open(self, browser: Browser, name: str) -> None:
        """Open a notebook and wait for its kernel."""
        browser.call("Page.navigate", url=f"{self.address}/doc/workspaces/w/tree/{name}?token={_TOKEN}&reset")
        browser.wait(_READY)


@contextlib.contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """A JupyterLab whose notebooks and settings are in `folder`, ended at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "root").mkdir()
    own = {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = os.environ | own | {"IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": path}
    options = {
        "ServerApp.root_dir": str(folder / "root"),
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": str(port),
        "ServerApp.port_retries": "0",
        "ServerApp.allow_root": "True",
        "IdentityProvider.token": _TOKEN,
        "LabApp.expose_app_in_browser": "True",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    told = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", *told]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=folder)
    found = Lab(f"http://127.0.0.1:{port}", folder / "root")
    try:
        until = time.monotonic() + SECONDS
        while True:
            running = process.poll() is None and time.monotonic() < until
            assert running, log.read_text()[-2000:]
            try:
                found.asked("api/status")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        yield found
        found.stop_kernels()
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def command(browser: Browser, name: str, **arguments: str) -> None:
    """One of JupyterLab's commands; it may take a while."""
    browser.read(f"void window.jupyterapp.commands.execute({json.dumps(name)}, {json.dumps(arguments)})")


def run_all(browser: Browser) -> None:
    """Run all cells and wait until each has its number."""
    command(browser, "notebook:clear-all-cell-outputs")
    browser.wait("[...document.querySelectorAll('.jp-OutputArea-output')].length === 0")
    command(browser, "notebook:run-all-cells")
    numbered = f"{PANEL}.widgets.every(cell => Number.isInteger(cell.model.executionCount))"
    browser.wait(f"{numbered} && {_READY}")


def show_cell(browser: Browser, number: int) -> None:
    """Scroll to a cell; JupyterLab makes only cells near the view."""
    browser.read(f"void {PANEL}.scrollToItem({number}, 'start')")
    browser.wait(f"document.querySelector('[data-windowed-list-index=\"{number}\"] .jp-OutputArea') !== null")


def output(browser: Browser, number: int) -> str:
    """The text that a cell shows."""
    show_cell(browser, number)
    return browser.read(
        f"document.querySelector('[data-windowed-list-index=\"{number}\"] .jp-Cell-outputArea').innerText"
    )
