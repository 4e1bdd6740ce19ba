"""R29: index arithmetic against Python's integers, and sizes that are refused before anything is computed.

Runs beyond the borders of int32 are in test_large_sizes.py.
"""

import ctypes
import shutil
import subprocess
import sys

import numpy as np
import pytest
import reliability
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from places import TESTS
from reliability import TOKENS, report

from attnsparse import _core

CSRC = TESTS.parent / "csrc"
SOURCES = ("fail.c", "arena.c", "shape.c", "run.c", "attention.c", "memory.c", "forward.c")
LARGEST, INT_MAX = 2**63 - 1, 2**31 - 1
CONFIG = ("n_layer", "n_head", "d_model", "d_head", "d_mlp", "n_ctx", "n_vocab")
MOST = (512, 1024, 65536, 65536, 1048576, 1048576, 4194304)
compiled = pytest.mark.skipif(
    not (CSRC.is_dir() and sys.platform == "linux" and shutil.which("gcc")), reason="compiles the source"
)
up_to_2_40 = st.integers(1, 2**40) | st.integers(0, 40).map(lambda n: 2**n)


class ConfigC(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in CONFIG),
        *(("activation", ctypes.c_int), ("ln_eps", ctypes.c_double), ("gated", ctypes.c_int)),
        *(("gate_bias", ctypes.c_double), ("self_closed", ctypes.c_int)),
        *(("tied", ctypes.c_int), ("bias", ctypes.c_int)),
        *((name, ctypes.c_int) for name in ("unembed_bias", "scale_attn", "scale_by_inverse_layer")),
        *(("window", ctypes.c_int64), ("top_k", ctypes.c_int64), ("min_weight", ctypes.c_double)),
    ]


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    library = tmp_path_factory.mktemp("probe") / "probe.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-std=gnu11", f"-I{CSRC}"]
    command += ["-fvisibility=hidden", "-ffunction-sections", "-Wl,--gc-sections"]  # leaves the rest out
    sources = [TESTS / "c" / "sizes_probe.c", *(path for name in SOURCES for path in CSRC.rglob(name))]
    command += [*map(str, sources), "-o", str(library)]
    subprocess.run([*command, "-lm"], check=True)
    found = ctypes.CDLL(str(library))
    for name in ("probe_block_start", "probe_squares", "probe_scratch"):
        getattr(found, name).restype = ctypes.c_int64
    return found


def int64s(values) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)


def wide(*values: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(value) for value in values]


@st.composite
def configs(draw) -> ConfigC:
    """Any sizes that a model may have."""
    sizes = [draw(st.integers(1, most) | st.sampled_from([1, most])) for most in MOST]
    assume(sizes[1] * sizes[3] <= 1048576)
    return ConfigC(*sizes, 0, 1e-5, 1, 0.0, 1, 1, 0, 1, 0)


def fits(value: int) -> int:
    return value if value <= LARGEST else -1


# ---------------------------------------------------------------------------------- against Python's integers


@compiled
@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, LARGEST) | up_to_2_40, st.integers(0, LARGEST) | up_to_2_40)
def test_products(probe, a, b):
    out = ctypes.c_int64(-7)
    whole = probe.probe_multiply(*wide(a, b), ctypes.byref(out))
    assert (whole, out.value) == ((1, a * b) if a * b <= LARGEST else (0, -7))
    assert not probe.probe_multiply(*wide(-a - 1, b), ctypes.byref(out))


@compiled
@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(-1, 2**40) | st.integers(2**58, LARGEST), st.just(4)), max_size=9))
def test_arenas(probe, pieces):
    n, (items, sizes) = len(pieces), (list(zip(*pieces)) or [[], []])
    offsets, total = int64s([0] * n), ctypes.c_int64()
    probe.probe_arena(*wide(n), int64s(items), int64s(sizes), offsets, ctypes.byref(total))
    expected, at, whole = [], 0, True
    for count, size in pieces:
        end = at + count * size
        whole = whole and count >= 0 and end <= LARGEST - 64
        expected.append(at if whole else -1)
        at = -(-end // 64) * 64 if whole else at
    assert list(offsets) == expected
    assert not whole or total.value == at


def shapes(c: ConfigC, n: int, rows: int, total: int) -> dict[int, tuple[int, list[int], list[int]]]:
    """By record: layers (0: none), visible dims after them, dims in memory after them."""
    e, h, d, length = c.d_model, c.n_head, c.d_head, c.n_layer
    plain = {0: 0, 1: 0, 20: 0, 2: length + 1, 3: length, 5: length, 13: length, 15: length, 18: length}
    found = {record: (layers, [n, e], [rows, e]) for record, layers in plain.items()}
    found |= {4: (length, [n], [n]), 14: (length, [n], [n]), 19: (0, [n], [n]), 22: (0, [n], [n])}
    found |= {6: (length, [n, 3, h, d], [rows, 3, h, d]), 11: (length, [n, h, d], [rows, h, d])}
    found |= {12: (length, [n, h, e], [rows, h, e]), 10: (length, [h, n], [h, n])}
    found |= {record: (length, [n, c.d_mlp], [rows, c.d_mlp]) for record in (16, 17)}
    found |= {record: (0, [total], [total]) for record in (7, 8, 9)}
    return found | {21: (0, [n, c.n_vocab], [rows, c.n_vocab])}


@compiled
@settings(max_examples=60, deadline=None, derandomize=True)
@given(configs(), st.lists(up_to_2_40, min_size=1, max_size=3), st.integers(0, 2**20))
def test_shapes_of_all_records(probe, config, lengths, padding):
    offsets = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    n = offsets[-1]
    total = sum(t * t for t in lengths) * config.n_layer * config.n_head
    assert probe.probe_squares(ctypes.byref(config), int64s(offsets), *wide(len(lengths))) == fits(total)
    expected = shapes(config, n, n + padding, total)
    assert sorted(expected) == list(range(23))
    for record, (layers, dims, memory) in expected.items():
        out = int64s([0] * 13)
        counts = wide(len(lengths), n + padding)
        probe.probe_shape(ctypes.byref(config), record, int64s(offsets), *counts, out)
        items, size = (layers or 1) * int(np.prod(np.array(memory, object))), [1]
        for m in memory[:0:-1]:
            size.insert(0, size[0] * m)
        assert out[0] == fits(items), record
        if items <= LARGEST:
            shown = [layers] * bool(layers) + dims
            assert list(out[3 : 3 + out[2]]) == shown
            assert list(out[8 : 8 + out[2]]) == [memory[0] * size[0]] * bool(layers) + size


@compiled
@settings(max_examples=100, deadline=None, derandomize=True)
@given(up_to_2_40, st.integers(1, 2**31), st.integers(0, 2**31))
@example(2**40, 2**30, 2**30 - 1)
def test_starts_of_blocks(probe, n, blocks, i):
    i = min(i, blocks)
    expected = n if i == blocks else n * i // blocks // 16 * 16
    assert probe.probe_block_start(*wide(n, blocks, i)) == expected


def blas_calls(probe, m: int, n: int, k: int, *leading: int) -> tuple[int, list[list[int]], int]:
    calls, found, items = ((ctypes.c_int64 * 8) * 400)(), ctypes.c_int64(), ctypes.c_int64()
    status = probe.probe_gemm(*wide(m, n, k, *leading), calls, ctypes.byref(found), ctypes.byref(items))
    return status, [list(call) for call in calls[: found.value]], items.value


@compiled
@settings(max_examples=120, deadline=None, derandomize=True)
@given(up_to_2_40, st.integers(1, 2**22), up_to_2_40, st.booleans())
@example(1, 1, INT_MAX, True)
@example(1, 1, INT_MAX + 1, True)
@example(2**40, 2**22, 1, True)
def test_what_blas_is_given_fits_an_int(probe, m, n, k, short):
    """Blocks cover the product without gap or overlap, and no size of a call is other than what was asked."""
    k = k % INT_MAX + 1 if short and k > INT_MAX + 1 else k
    ldc = n + 3
    assume(m * ldc < 2**60)
    status, calls, items = blas_calls(probe, m, n, k, k, n, ldc)
    if k > INT_MAX:
        assert (status, calls) == (2, [])
        return
    assert status == 0
    assert len(calls) == min(items, 200)
    columns = [call[1] for call in calls if call[0] == 0]
    assert len(calls) == items or len(columns) < 100 or items > 200
    for row, column, rows, width, *rest in calls:
        assert rest == [k, k, n, ldc]
        assert 0 < rows < 2**22
        assert 0 < width <= 1200
        assert row + rows <= m
        assert column + width <= n
    assert calls[0][:2] == [0, 0]
    assert (calls[-1][0] + calls[-1][2], calls[-1][1] + calls[-1][3]) == (m, n)
    if items <= 200:
        assert sum(call[2] * call[3] for call in calls) == m * n
        assert len({(call[0], call[1]) for call in calls}) == items


@compiled
@pytest.mark.parametrize("at", [3, 4, 5])
def test_leading_dimensions_above_int_are_refused(probe, at):
    sizes = [200, 300, 400, 400, 300, 300]
    assert blas_calls(probe, *sizes)[0] == 0
    sizes[at] = INT_MAX + 1
    assert blas_calls(probe, *sizes)[:2] == (2, [])


@compiled
@settings(max_examples=100, deadline=None, derandomize=True)
@given(configs(), st.integers(1, 2**20))
def test_scratch_of_attention(probe, config, longest):
    def rounded(n: int, to: int) -> int:
        return -(-n // to) * to

    keys, width = rounded(longest + 4, 16), rounded(config.d_head, 16)
    forward = config.d_head * keys + longest * width + 4 * keys + 4 * width
    more = config.d_head * keys + 3 * longest * width + 4 * keys + 4 * width
    for backward in (0, 1):
        found = probe.probe_scratch(ctypes.byref(config), ctypes.c_int64(longest), backward)
        assert found == rounded(forward + backward * more, 16) + 64


# ------------------------------------------------------------------------------------------ refused at once


@compiled
def test_more_tokens_than_int32_are_refused(probe):
    """2,048 sequences of 2**20 tokens: one token too many, and no token is looked at."""
    config = ConfigC(1, 1, 1, 1, 1, 2**20, 2, 0, 1e-5, 1, 0.0, 1, 1, 0, 1, 0)
    text = ctypes.create_string_buffer(256)
    offsets = [i * 2**20 for i in range(2049)]
    found = probe.probe_check(ctypes.byref(config), None, int64s(offsets), *wide(2048), text)
    assert found == 2
    assert b"at most 2147483647 tokens, got 2147483648" in text.value


BATCHES = {
    "too many": ([0] * 25, [0, 25], ValueError, "25 tokens.* at most 24"),
    "T = 0": ([], [0, 0], ValueError, "no tokens|no next token"),
    "T = 0 in the middle": ([1, 2], [0, 1, 1, 2], ValueError, "sequence 1 has no tokens"),
    "B = 0": ([], [0], ValueError, "offsets"),
    "no offsets": ([], [], ValueError, "offsets"),
    "id -1": ([1, -1], [0, 2], IndexError, "token id -1 at position 1 .* 0..95"),
    "id of the vocabulary": ([96], [0, 1], IndexError, "token id 96 .* 0..95"),
    "smallest id": ([-(2**31)], [0, 1], IndexError, "token id -2147483648"),
    "largest id": ([INT_MAX], [0, 1], IndexError, "token id 2147483647"),
    "offsets to 2**62": ([1, 2], [0, 2**62], ValueError, "offsets"),
    "negative offsets": ([1, 2], [0, -1, 2], ValueError, "offsets"),
}


@pytest.mark.parametrize("what", BATCHES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wrong_batches_have_clear_errors(what, dtype):
    tokens, offsets, error, text = BATCHES[what]
    tokens, offsets = np.array(tokens, np.int32), np.array(offsets, np.int64)
    model = reliability.model(dtype=dtype)
    targets, weights = np.zeros(len(tokens), np.int32), np.ones(len(tokens), dtype)
    trainer = reliability.CORES[dtype].Trainer(model._core)
    before = reliability.counters(dtype)
    for call in (
        lambda: model._core.run(tokens, offsets, ("pattern",)),
        lambda: model._core.gradients(tokens, offsets, (), True, None, targets, weights),
        lambda: trainer.step([(tokens, offsets, targets, weights)], **reliability.step_options()),
    ):
        with pytest.raises(error, match=text):
            call()
    assert reliability.counters(dtype) == before


@pytest.mark.parametrize("field", CONFIG)
@pytest.mark.parametrize("value", [0, -1, 2**31, 2**40, 2**62, LARGEST, -LARGEST - 1])
def test_wrong_sizes_of_a_model_are_named(field, value):
    config = reliability.model()._core.config | {field: value}
    with pytest.raises(ValueError, match=field):
        _core.Model(config)


def test_no_size_is_too_large_to_be_refused():
    """What a run would need is computed without overflow, whatever the limit."""
    model = reliability.model(n_layer=2, n_head=16, d_head=1, d_model=1, d_mlp=1, n_ctx=2**20, n_vocab=2)
    tokens = np.zeros(2**20, np.int32)
    for record in ("pattern", "scores", "gate"):
        with pytest.raises(MemoryError):
            model._core.run(tokens, np.array([0, len(tokens)]), (record,), 0, 2**40)
    run = model._core.run(TOKENS * 0, np.array([0, 8]), ("pattern",), 0)
    assert run.array("pattern").shape == (2 * 16 * 64,)


@compiled
@pytest.mark.slow
def test_index_arithmetic_at_length(probe):
    """The same with random numbers, many more of them."""
    random, n = np.random.default_rng(0), 100_000
    for _ in range(n):
        total = int(random.integers(1, 2 ** int(random.integers(1, 41))))
        blocks = int(random.integers(1, 2**31))
        i = int(random.integers(0, blocks + 1))
        expected = total if i == blocks else total * i // blocks // 16 * 16
        assert probe.probe_block_start(*wide(total, blocks, i)) == expected
    report("R29", f"{n} starts of blocks up to 2^40 as Python's integers")
