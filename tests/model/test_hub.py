"""Loading from the Hugging Face hub, against a small server that speaks what is used of its protocol."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny_checkpoints as tiny
import torch_by_hand
from safetensors_by_hand import from_arrays

import attnsparse
from attnsparse.model import hub
from attnsparse.model import load as checkpoint
from attnsparse.model.tokenizer import Tokenizer

pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LENS = tiny.transformer_lens(tiny.weights())
WORDS = Tokenizer.from_words([f"w{index}" for index in range(11)]).to_json().encode()
REPOSITORIES = {
    "some/gpt2": {
        "config.json": json.dumps(tiny.plain_config()).encode(),
        "model.safetensors": from_arrays(tiny.prefixed(tiny.weights())),
        "tokenizer.json": WORDS,
        "pytorch_model.bin": b"not wanted",
        "README.md": b"not wanted",
        "onnx/model.safetensors": b"not wanted",
    },
    "some/SparseTiny": {
        "config.json": json.dumps(tiny.plain_config()).encode(),
        "step_final.pth": torch_by_hand.torch_file(LENS),
    },
    "some/DenseTiny": {
        "config.json": json.dumps(tiny.plain_config()).encode(),
        "final.pth": torch_by_hand.torch_file(LENS),
    },
    "some/empty": {"README.md": b"nothing here"},
}


class Handler(BaseHTTPRequestHandler):
    """The routes that a download needs: about a revision, its files, and one file of it."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        about = re.fullmatch(r"/api/models/([\w-]+/[\w-]+)(?:/revision/(\w+))?(?:\?.*)?", self.path)
        file = re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/(\w+)/([\w./-]+)(?:\?.*)?", self.path)
        tree = re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/tree/(\w+)(?:\?.*)?", self.path)
        match = about or file or tree
        files = REPOSITORIES.get(match[1]) if match else None
        if files is None:
            return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if match[2] not in (None, "main", COMMIT):
            return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if about:
            siblings = [{"rfilename": name} for name in files]
            return self.reply(
                200, json.dumps({"id": match[1], "sha": COMMIT, "siblings": siblings}).encode(), {}
            )
        if tree:
            listed = [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                      for name, data in files.items()]  # fmt: skip
            return self.reply(200, json.dumps(listed).encode(), {})
        if match[3] not in files:
            return self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        data = files[match[3]]
        return self.reply(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.requests = []
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from attnsparse.model import load as checkpoint
model = checkpoint.load(sys.argv[2], revision=sys.argv[3] or None)
about = {"name": model.name, "gated": model.config.gated, "tokenizer": model.tokenizer is not None}
print(json.dumps(about | {"weight": float(model.parameter("h.1.mlp.c_fc.weight")[3, 5])}))
"""


def load(
    server, cache: Path, name: str, *, revision: str = "", offline: bool = False, program: str = PROGRAM
) -> dict | list | str:
    """Load in a fresh process (settings are read on import); what it printed, or its last error line."""
    settings = {
        "HF_HOME": str(cache), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1" if offline else "0", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    package = str(Path(attnsparse.__path__[0]).parent)
    done = subprocess.run([sys.executable, "-c", program, package, name, revision], capture_output=True,
        text=True,
                          env=os.environ | settings, timeout=120)  # fmt: skip
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    return json.loads(done.stdout.splitlines()[-1])


OF_TOKENIZER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from attnsparse.model.tokenizer import Tokenizer
print(json.dumps(Tokenizer.load(sys.argv[2]).token_string(3)))
"""


def test_a_tokenizer_alone_then_offline(server, tmp_path):
    """Only files of the tokenizer are fetched; afterwards the cache is enough."""
    server.requests.clear()
    assert load(server, tmp_path, "some/gpt2", program=OF_TOKENIZER) == "w3"
    assert not [request for request in server.requests if "safetensors" in request]
    assert load(server, tmp_path, "some/gpt2", offline=True, program=OF_TOKENIZER) == "w3"
    said = load(server, tmp_path / "empty", "some/gpt2", offline=True, program=OF_TOKENIZER)
    assert said.startswith("FileNotFoundError")
    assert "give a folder with vocab.json" in said


def test_load_then_offline(server, tmp_path):
    """What is fetched is what is needed; afterwards the cache is enough."""
    server.requests.clear()
    expected = {"name": "some/gpt2", "gated": False, "tokenizer": True,
                "weight": float(tiny.weights()["h.1.mlp.c_fc.weight"][3, 5])}  # fmt: skip
    assert load(server, tmp_path, "some/gpt2") == expected
    fetched = {
        request.split("/")[-1] for request in server.requests if request.startswith("GET /some/gpt2/resolve")
    }
    assert fetched == {"config.json", "model.safetensors", "tokenizer.json"}
    server.requests.clear()
    assert load(server, tmp_path, "some/gpt2", offline=True) == expected
    assert server.requests == []


def test_revision(server, tmp_path):
    assert load(server, tmp_path, "some/gpt2", revision=COMMIT)["name"] == "some/gpt2"
    error = load(server, tmp_path, "some/gpt2", revision="nowhere")
    assert error.startswith("FileNotFoundError: ")
    assert "Hugging Face hub" in error


def test_sparse_release(server, tmp_path):
    """A file ending in final.pth is gated unless the name says dense; GPT-2's tokenizer is not there."""
    found = load(server, tmp_path, "some/SparseTiny")
    assert (found["gated"], found["tokenizer"]) == (True, False)
    assert not load(server, tmp_path, "some/DenseTiny")["gated"]


def test_what_is_not_there(server, tmp_path):
    for name in ("some/nothing", "some/empty"):
        error = load(server, tmp_path, name)
        assert error.startswith(
            f"FileNotFoundError: [Errno 2] no file or folder '{name}'; the Hugging Face hub: "
        ), error
        assert "models that come with attnsparse" in error
    assert load(server, tmp_path, "some/gpt2", offline=True).startswith("FileNotFoundError: ")


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install attnsparse\[hub\]"):
        hub.fetch("some/gpt2")
    with pytest.raises(FileNotFoundError, match=r"pip install attnsparse\[hub\]"):
        checkpoint.load("some/gpt2")
    assert hub.fetch_gpt2_tokenizer() is None
