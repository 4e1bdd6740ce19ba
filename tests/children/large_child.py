"""Runs beyond the borders of int32, and the same at a small size:

    python large_child.py NAME [small]

prints as JSON how far the result goes (the last index or byte), the largest relative error of random entries
against float64, how many entries, and the peak of this process's memory in bytes.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
from alone import same_bits_or_close
from peak_memory import peak_bytes

import attnsparse as asp
from attnsparse import _core

RANDOM = np.random.default_rng(0)
N_ENTRIES = 1000


def build(left_zero: str = "", **sizes: int) -> tuple:
    """Config and core of one layer with random weights, but for one array that is left 0."""
    usual = {"n_layer": 1, "n_head": 12, "d_model": 24, "d_head": 4, "d_mlp": 8}
    config = asp.Config(**(usual | {"gated": True, "gate_bias": -1.0} | sizes))
    core = _core.Model(dataclasses.asdict(config))
    for name in core.names:
        if name != left_zero:
            core._writable(name)[...] = RANDOM.standard_normal(core.shape(name), dtype=np.float32)
    return config, core


def run(core, tokens, lengths, record, **options):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return core.run(tokens, offsets, record, **options)


def error(found, expected) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def head(qkv, h: int, first: int, n: int):
    """q, k, v (n,D) of one head of one sequence in float64."""
    return (qkv[0, first : first + n, i, h].astype(np.float64) for i in range(3))


def row(qkv, config, h: int, first: int, n: int, query: int):
    """Scores, open gates, pattern, z and log-sum-exp of one query in float64."""
    q, k, v = head(qkv, h, first, n)
    scores = k[: query + 1] @ q[query] / np.sqrt(config.d_head)
    lse = scores.max() + np.log(np.exp(scores - scores.max()).sum())
    gates = scores + config.gate_bias > 0
    pattern = np.exp(scores - lse) * gates
    return scores, gates, pattern, pattern @ v[: query + 1], lse


def entries(n_head: int, n: int):
    """Random (head, query, key), a tenth of them in the last rows of the last head."""
    for i in range(N_ENTRIES):
        last = i % 10 == 0
        h = n_head - 1 if last else int(RANDOM.integers(n_head))
        query = n - 1 - int(RANDOM.integers(min(n, 50))) if last else int(RANDOM.integers(n))
        yield h, query, int(RANDOM.integers(query + 1))


def gates(n: int = 13_500) -> dict:
    """One layer's gates: 12 heads x 13,500^2 bytes; z and log-sum-exp without holding a score."""
    config, core = build(n_ctx=n, n_vocab=500)
    tokens = RANDOM.integers(0, 500, n).astype(np.int32)
    result = run(core, tokens, [n], ("gate", "qkv", "z", "lse"), logits=0)
    gate, qkv, z, lse = (result.array(name) for name in ("gate", "qkv", "z", "lse"))
    found, wrong, worst = gate.reshape(12, n, n), 0, 0.0
    for h, query, _key in entries(12, n):
        scores, expected, _, out, total = row(qkv, config, h, 0, n, query)
        clear = np.abs(scores + config.gate_bias) > 1e-4
        wrong += int((found[h, query, : query + 1] != expected)[clear].sum())
        wrong += int(found[h, query, query + 1 :].sum())
        if clear.all():
            worst = max(worst, error(z[0, query, h], out), error(lse[0, h, query], total))
    return {"reaches": gate.size, "wrong": wrong, "error": worst}


def patterns(n: int = 6_750) -> dict:
    """A recorded pattern and scores' bytes: 12 x 6,750^2 x 4."""
    config, core = build(n_ctx=n, n_vocab=500)
    tokens = RANDOM.integers(0, 500, n).astype(np.int32)
    result = run(core, tokens, [n], ("pattern", "qkv"), logits=0)
    pattern, qkv, worst = result.array("pattern"), result.array("qkv"), 0.0
    for h, query, key in entries(12, n):
        scores, _, expected, _, _ = row(qkv, config, h, 0, n, query)
        if abs(scores[key] + config.gate_bias) > 1e-4:
            worst = max(worst, abs(pattern.reshape(12, n, n)[h, query, key] - expected[key]))
    return {"reaches": pattern.nbytes, "wrong": 0, "error": float(worst)}


def packed(lengths=(10_000, 9_500, 1_000)) -> dict:
    """Gates of three prompts in one array; the last one begins beyond the border, and is the same alone."""
    lengths = list(lengths)
    config, core = build(n_ctx=max(lengths), n_vocab=500)
    tokens = RANDOM.integers(0, 500, sum(lengths)).astype(np.int32)
    result = run(core, tokens, lengths, ("gate", "qkv", "z"), logits=0)
    n, first = lengths[-1], sum(lengths[:-1])
    begins = 12 * sum(t * t for t in lengths[:-1])
    alone = run(core, tokens[first:], [n], ("gate", "z"), logits=0)
    wrong = int((result.array("gate")[begins:] != alone.array("gate")).sum())
    wrong += not same_bits_or_close(result.array("z")[0, first:], alone.array("z")[0])
    found, worst = result.array("gate")[begins:].reshape(12, n, n), 0.0
    for h, query, key in entries(12, n):
        scores, expected, _, _, _ = row(result.array("qkv"), config, h, first, n, query)
        if abs(scores[key] + config.gate_bias) > 1e-4:
            wrong += int(found[h, query, key] != expected[key])
    return {"reaches": begins, "wrong": wrong, "error": worst}


def final(result, core) -> np.ndarray:
    """What the LM head reads, in float64."""
    normalized = result.array("ln_final_normalized").astype(np.float64)
    return normalized * core.parameter("ln_f.weight") + core.parameter("ln_f.bias")


def logits(n_sequences: int = 10, n: int = 1_070, n_vocab: int = 50_304) -> dict:
    """Bytes of recorded logits."""
    _, core = build(n_ctx=n, n_vocab=n_vocab, d_model=8, n_head=2)
    tokens = RANDOM.integers(0, n_vocab, n_sequences * n).astype(np.int32)
    result = run(core, tokens, [n] * n_sequences, ("ln_final_normalized",))
    found, hidden, unembed = result.array("logits"), final(result, core), core.parameter("wte.weight")
    rows = np.concatenate([RANDOM.integers(0, len(tokens), N_ENTRIES - 50), len(tokens) - 1 - np.arange(50)])
    columns = RANDOM.integers(0, n_vocab, N_ENTRIES)
    expected = np.einsum("ij,ij->i", hidden[rows], unembed[columns].astype(np.float64))
    return {"reaches": found.nbytes, "wrong": 0, "error": error(found[rows, columns], expected)}


def losses(n_sequences: int = 42, n: int = 1_024, n_vocab: int = 50_304) -> dict:
    """B T V beyond 2^31 logits, in chunks: every token's loss, and the loss of a backward pass."""
    _, core = build(n_ctx=n, n_vocab=n_vocab, d_model=8, n_head=2)
    tokens = RANDOM.integers(0, n_vocab, n_sequences * n).astype(np.int32)
    lengths = [n] * n_sequences
    result = run(core, tokens, lengths, ("ln_final_normalized", "token_loss"), logits=0)
    hidden, unembed = final(result, core), core.parameter("wte.weight").astype(np.float64)
    rows = RANDOM.permutation(len(tokens) - 1)[:N_ENTRIES]
    rows = np.sort(rows[(rows + 1) % n != 0])
    expected = []
    for some in np.array_split(rows, 20):
        z = hidden[some] @ unembed.T
        most = z.max(1)
        lse = most + np.log(np.exp(z - most[:, None]).sum(1))
        expected.append(lse - z[np.arange(len(some)), tokens[some + 1]])
    loss = result.array("token_loss")
    offsets = np.arange(0, len(tokens) + 1, n)
    weights = np.ones(len(tokens), np.float32)
    weights[n - 1 :: n] = 0
    gradients = core.gradients(tokens, offsets, (), True, None, np.roll(tokens, -1), weights)
    mean = loss.astype(np.float64).sum() / weights.sum()
    worst = max(error(loss[rows], np.concatenate(expected)), abs(gradients.loss / mean - 1))
    return {"reaches": len(tokens) * n_vocab, "wrong": 0, "error": worst}


def vocabulary(n_vocab: int = 4_194_304, width: int = 520) -> dict:
    """Weights of more than 2^31 numbers: the last rows read as embeddings and as outputs.

    The rows that are not used stay 0, which takes no memory."""
    config, core = build("wte.weight", n_vocab=n_vocab, n_ctx=64, d_model=width)
    ids = np.sort(RANDOM.permutation(n_vocab // 100)[:64].astype(np.int64)) + n_vocab - n_vocab // 100
    rows = RANDOM.standard_normal((64, width), dtype=np.float32)
    core._writable("wte.weight")[ids] = rows
    small = _core.Model(dataclasses.asdict(config) | {"n_vocab": 64})
    for name in core.names:
        small._writable(name)[...] = rows if name == "wte.weight" else core.parameter(name)
    tokens = np.arange(64, dtype=np.int32)
    record = ("embed", "resid", "ln_final_normalized")
    found = run(core, ids.astype(np.int32), [64], record, logits=1)
    twin = run(small, tokens, [64], record)
    wrong = sum(int((found.array(name) != twin.array(name)).sum()) for name in record)
    last = found.array("logits")[0]
    expected = final(found, core)[-1] @ rows.astype(np.float64).T
    wrong += int((last != 0).sum() > 64)
    return {"reaches": int(ids[-1]) * width, "wrong": wrong, "error": error(last[ids], expected)}


def dictionary(n_features: int = 4_200_000, width: int = 520) -> dict:
    """Transcoder weights of more than 2^31 numbers: the last features found active, and what they write."""
    config, core = build(n_vocab=100, n_ctx=8, d_model=width)
    model = asp.Model(config, {name: core.parameter(name) for name in core.names})
    ids = np.sort(RANDOM.permutation(n_features // 100)[:20]) + n_features - n_features // 100
    w_enc, w_dec = (np.zeros((n_features, width), np.float32) for _ in range(2))
    w_enc[ids], w_dec[ids] = (RANDOM.standard_normal((20, width), dtype=np.float32) for _ in range(2))
    b_enc = np.full(n_features, -1, np.float32)
    source = asp.ArraySource([w_enc], [b_enc], [w_dec], [np.zeros(width, np.float32)])
    features = asp.Transcoders(source, activation="relu").features(model, np.arange(8))
    x = features.run._core.array("ln2_normalized")
    pre = x[0].astype(np.float64) @ w_enc[ids].astype(np.float64).T - 1
    expected = np.maximum(pre, 0)
    found = np.zeros((8, 20))
    found[features.position, np.searchsorted(ids, features.feature)] = features.activation
    wrong = int((~np.isin(features.feature, ids)).sum()) + int(((found > 0) != (expected > 0)).sum())
    written = expected @ w_dec[ids].astype(np.float64)
    worst = max(error(found, expected), error(features.reconstruction[0], written))
    return {"reaches": int(ids[-1]) * width, "wrong": wrong, "error": worst}


SMALL = {
    "gates": (130,),
    "patterns": (70,),
    "packed": ((100, 90, 30),),
    "logits": (3, 20, 700),
    "losses": (3, 64, 700),
    "vocabulary": (10_000, 30),
    "dictionary": (30_000, 30),
}


def main() -> None:
    names = list(SMALL) if sys.argv[1] == "all" else [sys.argv[1]]
    found = {name: globals()[name](*(SMALL[name] if sys.argv[2:] else ())) for name in names}
    print(json.dumps({"found": found, "peak": peak_bytes()}))


if __name__ == "__main__":
    main()
