"""A Model and its Runs made from oracle.py, in the shape that tables.py and figures.py expect.

For tests that ask what a table or a picture says about given numbers: the numbers come from plain NumPy, so
these tests need no C extension and a fault of the C core cannot hide in them.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import oracle

import attnsparse

WORDS = ("The", " opposite", " of", ' "', "large", '"', " is", " small", " ", "\n", "$", "<b>", " large")
PROMPT = 'The opposite of "large" is "'
PROMPT_TOKENS = np.array([0, 1, 2, 3, 4, 5, 6, 3], np.int32)


class WordTokenizer:
    """Greedy longest match among a few words; the id of a word is its place in the list."""

    def __init__(self, words: tuple[str, ...]):
        self.words = words

    def encode(self, text: str, prepend_bos: bool = False) -> list[int]:
        tokens = []
        while text:
            word = max((w for w in self.words if text.startswith(w)), key=len)
            tokens.append(self.words.index(word))
            text = text[len(word) :]
        return tokens

    def token_strings(self, ids) -> list[str]:
        return [self.words[i] for i in ids]


class FakeModel:
    """A random model of oracle.py whose tokenizer knows `WORDS`."""

    def __init__(self, seed: int = 0, *, words: tuple[str, ...] = WORDS, weights=None, name="fake", **config):
        settings = {
            "n_layer": 3,
            "n_head": 4,
            "n_ctx": 24,
            "gated": True,
            "tied": False,
            "n_vocab": len(words),
        }
        self._config = oracle.full_config(**(settings | config))
        self.config = SimpleNamespace(**self._config)
        self.weights = weights or oracle.random_model(np.random.default_rng(seed), self._config)
        self.words = words
        self.name = name
        self.digest = "0" * 64

    def parameter(self, name: str) -> np.ndarray:
        return np.asarray(self.weights[name], np.float32)

    def to_tokens(self, text: str, prepend_bos: bool = False) -> np.ndarray:
        return np.array(WordTokenizer(self.words).encode(text, prepend_bos), np.int32)

    def to_single_token(self, text: str) -> int:
        ids = self.to_tokens(text)
        if len(ids) != 1:
            raise ValueError(f"{text!r} is {len(ids)} tokens, expected one")
        return int(ids[0])

    def real(self) -> attnsparse.Model:
        """The same model on the C core."""
        config = attnsparse.Config.from_dict(self._config)
        return attnsparse.Model(config, self.weights, WordTokenizer(self.words), self.name)

    def run(self, prompt, record=("pattern", "q", "k", "v", "ln_final_scale"), **options):
        """One Run for one prompt (text or token ids), a FakeBatch for a list of prompts."""
        record = (record,) if isinstance(record, str) else tuple(record)
        if isinstance(prompt, list):
            return FakeBatch([self.run(one, record) for one in prompt])
        text = prompt if isinstance(prompt, str) else None
        tokens = self.to_tokens(prompt) if text is not None else np.asarray(prompt, np.int32)
        return FakeRun(self, tokens, text, record)


class FakeRun:
    """One prompt. An array that was not recorded raises AttributeError, as in a real Run."""

    def __init__(self, model: FakeModel, tokens: np.ndarray, prompt: str | None, record: tuple[str, ...]):
        self.model, self.tokens, self.prompt = model, tokens, prompt
        self.token_strings = [model.words[token] for token in tokens]
        self.prepend_bos, self.n_tokens, self._index, self.stop_at_layer = False, len(tokens), 0, None
        self.recorded = tuple(record)
        self.oracle = oracle.forward(model._config, model.weights, tokens)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> FakeRun:
        return (self,)[index]

    def __getattr__(self, name: str):
        if name.startswith("_") or name not in self.__dict__.get("recorded", ()):
            raise AttributeError(f"this run did not record {name!r}")
        value = self.oracle[name]
        return value if value.dtype == bool else value.astype(np.float32)

    def value_norms(self, direction=None):
        config, v = self.model._config, self.oracle["v"]
        w_o = np.stack([self.model.weights[f"h.{layer}.attn.c_proj.weight"] for layer in range(len(v))])
        w_o = w_o.reshape(len(v), config["n_head"], config["d_head"], -1)
        written = np.einsum("lthd,lhde->lhte", v, w_o)
        value_norm = np.linalg.norm(v, axis=-1).swapaxes(1, 2).astype(np.float32)
        projection = None if direction is None else (written @ np.asarray(direction)).astype(np.float32)
        return value_norm, np.linalg.norm(written, axis=-1).astype(np.float32), projection

    def entry_scores(self, layer, head, query, key):
        scores = self.oracle["scores"][layer, head, query, key].astype(np.float32)
        return scores, self.oracle["gate"][layer, head, query, key]

    def edge_arrays(self):
        layer, head, query, key = (index.astype(np.int32) for index in np.nonzero(self.oracle["gate"]))
        weight = self.oracle["pattern"][layer, head, query, key].astype(np.float32)
        return layer, head, query, key, weight


class FakeBatch(list):
    """Several prompts; arrays are stacked over prompts of equal length."""

    def __getattr__(self, name: str) -> np.ndarray:
        if name.startswith("_"):
            raise AttributeError(name)
        return np.stack([getattr(run, name) for run in self])
