"""Uploads, to a server on this machine: what is asked, what is sent, who sees the key, what refusals say."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from small_graph import small_graph

from attnsparse.graphs import upload_to_neuronpedia
from attnsparse.graphs.neuronpedia_upload import SERVER

KEY = "sk-np-secret"
PLACE, END = "/api/graph/signed-put", "/api/graph/save-to-db"
SHOWN = "https://www.neuronpedia.org/model/graph?slug=mine"


class Server(ThreadingHTTPServer):
    """Answers as Neuronpedia does, unless `wrong` says otherwise: {path: (status, body, headers)}."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, dict, bytes]] = []
        self.wrong: dict[str, tuple[int, bytes, dict[str, str]]] = {}
        self.address = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def answer(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.asked.append((self.command, self.path, dict(self.headers), body))
        answers = {
            "/api/graph/signed-put": {"url": f"{self.server.address}/store?signed", "putRequestId": "id 7"},
            "/api/graph/save-to-db": {"url": SHOWN},
        }
        right = (200, json.dumps(answers.get(self.path, {})).encode(), {})
        status, content, headers = self.server.wrong.get(self.path.partition("?")[0], right)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_GET = answer

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return small_graph(20).to_neuronpedia(tmp_path_factory.mktemp("graph"), "mine")


@pytest.fixture
def server():
    with Server() as server:
        yield server


def test_an_upload(path, server):
    assert upload_to_neuronpedia(path, KEY, server=server.address + "/") == SHOWN
    methods, paths, headers, (asked, sent, told) = zip(*server.asked)
    assert methods == ("POST", "PUT", "POST")
    assert paths == (PLACE, "/store?signed", END)
    assert json.loads(asked) == {
        "filename": "mine.json",
        "contentLength": path.stat().st_size,
        "contentType": "application/json",
    }
    assert sent == path.read_bytes()
    assert json.loads(told) == {"putRequestId": "id 7"}
    assert [h.get("X-Api-Key") for h in headers] == [KEY, None, KEY]
    assert SERVER.startswith("https://")


REFUSALS = {
    "key": (PLACE, 401, b'{"error": "no"}', {}, r"refused with status 401; is the key right\?"),
    "elsewhere": (PLACE, 302, b"", {"Location": "/else"}, "refused with status 302"),
    "no JSON": (PLACE, 200, b"<html>\x1b[31m", {}, r"gave no JSON: <html>\\x1b\[31m"),
    "no place": (PLACE, 200, b'{"putRequestId": "7"}', {}, "gave no url: "),
    "no id": (PLACE, 200, b'{"url": "https://[::1]:1/"}', {}, "cannot be reached|gave no put"),
    "a place without https": (
        PLACE,
        200,
        b'{"url": "http://example.invalid/", "putRequestId": "7"}',
        {},
        "the address that the server gave must begin with https://",
    ),
    "a place of files": (
        PLACE,
        200,
        b'{"url": "file:///etc/passwd", "putRequestId": "7"}',
        {},
        "the address that the server gave must begin with https://",
    ),
    "store": ("/store", 403, b"expired", {}, "refused with status 403.*expired"),
    "end": (END, 400, b"the slug is taken", {}, "refused with status 400: the slug is taken"),
    "list": (END, 200, b"[1]", {}, r"gave no url: \[1\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(path, server, name):
    where, status, body, headers, text = REFUSALS[name]
    server.wrong[where] = (status, body, headers)
    with pytest.raises((OSError, ValueError), match=text) as caught:
        upload_to_neuronpedia(path, KEY, server=server.address)
    assert KEY not in str(caught.value)
    assert str(caught.value).isprintable()
    assert all(asked[1] != "/else" for asked in server.asked)


def test_no_server(path):
    with Server() as gone:
        pass
    with pytest.raises(OSError, match=r"127\.0\.0\.1:\d+ cannot be reached"):
        upload_to_neuronpedia(path, KEY, server=gone.address, timeout=5)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"key": 3}, TypeError, "key must be a string, got int"),
        ({"key": ""}, ValueError, "key must be the API key"),
        ({"key": "a\r\nHost: b"}, ValueError, "key must be the API key"),
        (
            {"server": "http://www.neuronpedia.org"},
            ValueError,
            "must begin with https://: others could",
        ),
        ({"server": "neuronpedia.org"}, ValueError, "server must begin with https://, got"),
        ({"server": 4}, TypeError, "server must be a string"),
        ({"timeout": 0}, ValueError, "timeout must be"),
        ({"path": ""}, ValueError, "path must not be empty"),
        ({"path": "/nowhere/x.json"}, OSError, "x.json"),
    ],
)
def test_wrong_arguments(path, options, error, text):
    given = {"path": path, "key": KEY} | options
    with pytest.raises(error, match=text):
        upload_to_neuronpedia(given.pop("path"), given.pop("key"), **given)


@pytest.mark.parametrize("text", ["{}", "[" * 100_000, '{"metadata": {}, "nodes": 1, "links": 1}', "[1, 2]"])
def test_files_that_are_no_graphs(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text.ljust(2000))
    with pytest.raises(ValueError, match=r"other\.json is no graph; write one with Graph\.to_neuronpedia"):
        upload_to_neuronpedia(path, KEY)
    path.write_text("{}")
    with pytest.raises(ValueError, match="has 2 bytes; Neuronpedia takes 1 KiB to 100 MiB"):
        upload_to_neuronpedia(path, KEY)
