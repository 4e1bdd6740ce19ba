"""The examples of the pages in PAGES run as a reader would type them, and no link is dead.

The how-to is about files of the reader's own; `own_files` makes them from the demo models, in the layouts in
which they come: a Hugging Face folder with a BOS token, a TransformerLens state dict, the paper's folder.
"""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints as tiny
import torch_by_hand
from places import ROOT

import attnsparse as asp

DOCS = ROOT / "docs"
PAGES = ("concepts", "howto", "components", "coming-from", "cluster")
BESIDE = ("coming-from",)  # pages whose tables have a call of another tool beside one of ours
BOS = "<|endoftext|>"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="needs the source tree, not only the package")


def examples(page: str) -> list[tuple[int, str]]:
    """(line, code) of the Python blocks of a page, and of the last column of its tables of calls."""
    text = (DOCS / f"{page}.md").read_text()
    found = [
        (match.start(1), match[1]) for match in re.finditer(r"^```python\n(.*?)^```", text, flags=re.S | re.M)
    ]
    if page in BESIDE:
        for match in re.finditer(r"^\|.*\| (`.*`) \|$", text, flags=re.M):
            found.append((match.start(1), "\n".join(re.findall(r"`([^`]+)`", match[1]))))
    return [(text.count("\n", 0, start), code) for start, code in sorted(found)]


def with_bos(name: str) -> asp.Model:
    """A demo model whose vocabulary has GPT-2's BOS token as well."""
    demo = asp.load(name)
    config = dataclasses.replace(demo.config, n_vocab=demo.config.n_vocab + 1)
    words = [*demo.tokenizer.token_strings(range(demo.config.n_vocab)), BOS]
    weights = demo.parameters()
    weights["wte.weight"] = np.append(
        weights["wte.weight"], np.zeros((1, config.d_model), np.float32), axis=0
    )
    return asp.Model(config, weights, asp.Tokenizer.from_words(words, bos=BOS), name)


def own_files() -> None:
    """my-gpt2/, my-gpt2-lens.pth, SparseGPT2/ and two texts in the working directory."""
    for name, letters in (("my-novels.txt", "abcdefgh"), ("my-play.txt", "ABCDEFGH")):
        words = np.random.default_rng(0).choice(list(letters), (4000, 5))
        Path(name).write_text(" ".join("".join(word) for word in words))
    own = with_bos("demo-dense")
    own.save("my-gpt2")
    Path("my-gpt2", "config.json").write_text(json.dumps(tiny.plain_config(own.config)))
    lens = tiny.transformer_lens(own.parameters(), own.config)
    Path("my-gpt2-lens.pth").write_bytes(torch_by_hand.torch_file(lens))
    sparse = with_bos("demo-sparse")
    Path("SparseGPT2").mkdir()
    lens = tiny.transformer_lens(sparse.parameters(), sparse.config)
    Path("SparseGPT2", "step_final.pth").write_bytes(torch_by_hand.torch_file(lens))
    Path("SparseGPT2", "config.json").write_text(json.dumps(tiny.plain_config(sparse.config)))


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page, tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    if page == "howto":
        own_files()
    blocks, variables = examples(page), {}
    assert len(blocks) >= 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for line, code in blocks:
            exec(compile("\n" * line + code, str(DOCS / f"{page}.md"), "exec"), variables)
    plt.close("all")


def anchors(path: Path) -> set[str]:
    """What `path#...` may name: GitHub's anchors of the headings, and explicit ones."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.M)
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r'<a id="([^"]+)"', text))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", (DOCS / f"{page}.md").read_text())
    assert len(targets) > 5
    for target in targets:
        file, _, anchor = target.partition("#")
        path = DOCS / (file or f"{page}.md")
        assert "://" in target or path.exists(), target
        assert "://" in target or not anchor or anchor in anchors(path), target
