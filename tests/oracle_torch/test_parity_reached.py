"""The numbers of R25: the largest differences from transformers over ten seeds of every shape."""

import numpy as np
import oracle
import pytest
from reliability import report

import attnsparse as asp

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import make_reference_state as reference  # noqa: E402
import test_parity  # noqa: E402

pytestmark = pytest.mark.slow


def test_largest_differences(tmp_path):
    worst = dict.fromkeys(("logits", "softmax", "loss", "gradient", "error against float64"), 0.0)
    n, flipped = 0, 0
    for name, shape in test_parity.SHAPES.items():
        for seed in range(10):
            model = reference.random_gpt2(seed, shape)
            model.save_pretrained(tmp_path / f"{name}{seed}")
            tokens = torch.randint(model.config.vocab_size, (model.config.n_positions,))
            ours = asp.load(tmp_path / f"{name}{seed}")
            run, expected = ours.run(tokens.numpy(), record="all"), test_parity.logits_of(model, tokens)
            loss = reference.loss_of(model, tokens[None])
            loss.backward()
            found = ours.gradients(tokens.numpy()).parameters
            theirs = {key: value.grad.numpy() for key, value in reference.named(model).items()}
            exact = test_parity.logits_of(model.double(), tokens)
            softmax = [oracle.softmax(logits.astype(float)) for logits in (run.logits, expected)]
            rms = [np.sqrt(((logits - exact) ** 2).mean()) for logits in (run.logits, expected)]
            sizes = [np.linalg.norm(found[k] - v) / np.linalg.norm(v) for k, v in theirs.items()]
            here = (np.abs(run.logits - expected).max(), np.abs(softmax[0] - softmax[1]).max(),
                    abs(run.loss - loss.item()), max(sizes), rms[0] / rms[1])  # fmt: skip
            worst = {key: max(value, float(new)) for (key, value), new in zip(worst.items(), here)}
            best = np.sort(expected, axis=-1)
            clear = best[:, -1] - best[:, -2] > 1e-4
            flipped += int((run.logits.argmax(-1) != expected.argmax(-1))[clear].sum())
            n += 1
    bounds = dict(zip(worst, (1e-4, 1e-5, 1e-5, 1e-4, 2.0)))
    assert {key: value for key, value in worst.items() if value > bounds[key]} == {}
    assert not flipped
    numbers = ", ".join(f"{key} {value:.1e}" for key, value in worst.items())
    report(
        "R25",
        f"{n} models of {len(test_parity.SHAPES)} shapes: {numbers}; first tokens that differ: {flipped}",
    )
