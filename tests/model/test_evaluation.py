"""Losses of tokens against the same written plainly in NumPy."""

from __future__ import annotations

import numpy as np
import oracle_start as twin
import pytest

from attnsparse._engine import CORES
from attnsparse.model.evaluation import token_losses


@pytest.mark.parametrize("dtype", CORES)
@pytest.mark.parametrize("n_vocab", [1, 7, 8, 128, 129, 1000, 50257])
def test_token_losses(dtype, n_vocab):
    random = np.random.default_rng(n_vocab)
    logits = (30 * random.standard_normal((4, n_vocab))).astype(dtype)
    logits[1] += 1e4
    logits[2] = 0
    logits[3, 0] += 200  # a loss of 0, or nearly
    targets = random.integers(0, n_vocab, 4)
    targets[3] = 0
    expected = twin.token_losses(logits, targets)
    found = token_losses(logits, targets, threads=2)
    assert found == pytest.approx(expected, rel=1e-13, abs=1e-15)
    assert found[2] == pytest.approx(np.log(n_vocab))
    assert np.array_equal(found, token_losses(logits, targets, threads=1))
    assert np.array_equal(token_losses(logits[None], targets[None]), found[None])


def test_what_token_losses_refuse():
    core, logits = CORES["float32"], np.zeros((2, 5), np.float32)
    assert token_losses(logits[:0], np.zeros(0, np.int64)).shape == (0,)
    for targets, error, text in (
        ([0, 5], IndexError, "target 5 of row 1 is out of range 0..4"),
        ([-1, 0], IndexError, "target -1 of row 0"),
        ([0], ValueError, "one id for each of the 2 rows"),
    ):
        with pytest.raises(error, match=text):
            core.token_losses(logits, np.array(targets, np.int32))
    logits[1, 3] = np.nan
    assert np.isnan(token_losses(logits, np.zeros(2, int))).tolist() == [False, True]
