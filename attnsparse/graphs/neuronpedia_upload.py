"""Upload of a graph's file to Neuronpedia, with the user's own key.

Three requests, as Neuronpedia documents them: the server is asked where to put the file, the file is put
there, and the server is told so. Only the first and the last carry the key. Nothing is sent unless the user
calls this, and nothing is followed elsewhere.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from .. import _check
from ..errors import printable
from ..items import shortened

SERVER = "https://www.neuronpedia.org"
_MOST_BYTES = 100 * 2**20
_LEAST_BYTES = 1024
_MOST_ANSWER = 1 << 20
_LOCAL = ("localhost", "127.0.0.1", "::1")


def upload_to_neuronpedia(
    path: str | os.PathLike[str], key: str, *, server: str = SERVER, timeout: float = 60.0
) -> str:
    """Upload a file of `Graph.to_neuronpedia` to Neuronpedia and return the address at which it is shown.

    Everybody who has the address can see the graph, its prompt and its labels.

    Parameters
    ----------
    path : str or os.PathLike
        The file. Its slug must be new on the server.
    key : str
        The API key of your account on Neuronpedia.
    server : str, default "https://www.neuronpedia.org"
        Another server of the same kind, for example your own.
    timeout : float, default 60
        Seconds without an answer after which the upload fails.

    Returns
    -------
    str
        The address.

    Raises
    ------
    ValueError
        For a file that is none of a graph, one of less than 1 KiB or more than 100 MiB, a key that is no
        single word, and a server without https.
    OSError
        If the file cannot be read, the server cannot be reached, or it refuses. The message has no key.
    """
    _check.path(path)
    key, server = _checked_key(key), _checked_address(server, "server").rstrip("/")
    timeout = _check.positive(timeout, "timeout")
    data = Path(path).read_bytes()
    _check_graph(data, path)
    headers = {"x-api-key": key, "Content-Type": "application/json"}
    asked = {
        "filename": Path(path).name,
        "contentLength": len(data),
        "contentType": "application/json",
    }
    place = _asked(f"{server}/api/graph/signed-put", asked, headers, timeout)
    address = _checked_address(_field(place, "url", server), "the address that the server gave")
    _sent(address, data, {"Content-Type": "application/json"}, "PUT", timeout)
    told = {"putRequestId": _field(place, "putRequestId", server)}
    return _field(_asked(f"{server}/api/graph/save-to-db", told, headers, timeout), "url", server)


def _checked_key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"key must be a string, got {type(key).__name__}")
    if not key.isascii() or not key.isprintable() or not key.strip() or " " in key:
        raise ValueError("key must be the API key of your account on Neuronpedia, one word of ASCII")
    return key


def _checked_address(address: object, name: str) -> str:
    if not isinstance(address, str):
        raise TypeError(f"{name} must be a string, got {type(address).__name__}")
    parts = urlsplit(address)
    if not parts.hostname or parts.scheme not in ("http", "https"):
        raise ValueError(f"{name} must begin with https://, got {address!r:.60}")
    if parts.scheme == "http" and parts.hostname not in _LOCAL:
        raise ValueError(f"{name} must begin with https://: others could read the key and the graph")
    return address


def _check_graph(data: bytes, path: str | os.PathLike[str]) -> None:
    name = printable(os.fspath(path))[-80:]
    if not _LEAST_BYTES <= len(data) <= _MOST_BYTES:
        raise ValueError(f"{name} has {len(data):,} bytes; Neuronpedia takes 1 KiB to 100 MiB")
    try:
        graph = json.loads(data)
        known = {"metadata", "nodes", "links"} <= set(graph) and bool(graph["metadata"]["slug"])
    except (ValueError, TypeError, KeyError, RecursionError):
        known = False
    if not known:
        raise ValueError(f"{name} is no graph; write one with Graph.to_neuronpedia(folder, slug)")


def _asked(url: str, question: dict[str, Any], headers: dict[str, str], timeout: float) -> Any:
    answer = _sent(url, json.dumps(question).encode(), headers, "POST", timeout)
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        raise OSError(f"{_host(url)} gave no JSON: {_text(answer)}") from None


def _field(answer: Any, name: str, url: str) -> str:
    value = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(value, str) or not value:
        raise OSError(f"{_host(url)} gave no {name}: {shortened(json.dumps(answer), 200)}")
    return value


def _sent(url: str, data: bytes, headers: dict[str, str], method: str, timeout: float) -> bytes:
    """One request and its answer. A redirection is refused: it would take the key elsewhere."""
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class NoRedirection(HTTPRedirectHandler):
        def redirect_request(self, *arguments: Any) -> None:
            return None

    try:
        request = Request(url, data=data, headers=headers, method=method)
        with build_opener(NoRedirection).open(request, timeout=timeout) as answer:
            content: bytes = answer.read(_MOST_ANSWER)
            return content
    except HTTPError as error:
        with error:
            _refuse(url, error.code, error.read(_MOST_ANSWER))
    except (URLError, HTTPException) as error:
        raise OSError(f"{_host(url)} cannot be reached: {shortened(str(error), 200)}") from None


def _refuse(url: str, status: int, answer: bytes) -> NoReturn:
    why = {401: "; is the key right?", 403: "; is the key right?", 413: "; the file is too large"}
    raise OSError(f"{_host(url)} refused with status {status}{why.get(status, '')}: {_text(answer)}")


def _text(answer: bytes) -> str:
    return shortened(answer[:2000].decode("utf-8", "backslashreplace"), 200)


def _host(url: str) -> str:
    return shortened(urlsplit(url).netloc.rpartition("@")[2], 80)
