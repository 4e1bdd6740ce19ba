"""Live parity with transformers on GPT-2 folders written by save_pretrained, and back again."""

import numpy as np
import oracle
import pytest
from reliability import report

import attnsparse as asp

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import make_reference_state as reference  # noqa: E402

SHAPES = {
    **reference.SHAPES,
    "longer": {"n_layer": 4, "n_head": 4, "n_embd": 64, "n_positions": 128, "vocab_size": 300},
}


@pytest.fixture(params=SHAPES)
def saved(request, tmp_path):
    """(transformers model, folder that save_pretrained wrote, tokens (T,))."""
    model = reference.random_gpt2(11, SHAPES[request.param])
    model.save_pretrained(tmp_path / "gpt2")
    tokens = torch.randint(model.config.vocab_size, (model.config.n_positions,))
    return model, tmp_path / "gpt2", tokens


def logits_of(model, tokens):
    with torch.no_grad():
        return model(tokens[None]).logits[0].numpy()


def test_logits_softmax_loss(saved):
    model, folder, tokens = saved
    run = asp.load(folder).run(tokens.numpy(), record="all")
    expected = logits_of(model, tokens)
    assert np.abs(run.logits - expected).max() <= 1e-4
    assert (
        np.abs(oracle.softmax(run.logits.astype(float)) - oracle.softmax(expected.astype(float))).max()
        <= 1e-5
    )
    with torch.no_grad():
        assert abs(run.loss - reference.loss_of(model, tokens[None]).item()) <= 1e-5
    best = np.sort(expected, axis=-1)
    clear = best[:, -1] - best[:, -2] > 1e-4
    assert np.array_equal(run.logits.argmax(-1)[clear], expected.argmax(-1)[clear])


def test_error_against_float64_is_at_most_twice_that_of_torch(saved):
    model, folder, tokens = saved
    ours, theirs = asp.load(folder).run(tokens.numpy()).logits, logits_of(model, tokens)
    exact = logits_of(model.double(), tokens)
    rms = [np.sqrt(((logits - exact) ** 2).mean()) for logits in (ours, theirs)]
    assert rms[0] <= 2 * rms[1]


def test_every_gradient(saved):
    model, folder, tokens = saved
    found = asp.load(folder).gradients(tokens.numpy())
    reference.loss_of(model, tokens[None]).backward()
    expected = {name: parameter.grad.numpy() for name, parameter in reference.named(model).items()}
    assert set(found.parameters) == set(expected)
    for name, value in expected.items():
        assert np.linalg.norm(found.parameters[name] - value) <= 1e-4 * np.linalg.norm(value), name


def test_saved_folder_loads_in_transformers(saved, tmp_path):
    model, folder, tokens = saved
    asp.load(folder).save(tmp_path / "ours")
    again = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "ours", attn_implementation="eager"
    ).eval()
    assert np.array_equal(logits_of(again, tokens), logits_of(model, tokens))


def test_a_wrong_weight_is_noticed(saved):
    """The comparison can fail: the same model with one weight negated is far outside the bounds."""
    model, folder, tokens = saved
    ours = asp.load(folder)
    name = "h.0.attn.c_proj.weight"
    ours.assign({name: -ours.parameter(name)})
    assert np.abs(ours.run(tokens.numpy()).logits - logits_of(model, tokens)).max() > 1e-2


@pytest.mark.slow
def test_largest_differences(tmp_path):
    worst = dict.fromkeys(("logits", "softmax", "loss", "gradient", "error against float64"), 0.0)
    n, flipped = 0, 0
    for name, shape in SHAPES.items():
        for seed in range(10):
            model = reference.random_gpt2(seed, shape)
            model.save_pretrained(tmp_path / f"{name}{seed}")
            tokens = torch.randint(model.config.vocab_size, (model.config.n_positions,))
            ours = asp.load(tmp_path / f"{name}{seed}")
            run, expected = ours.run(tokens.numpy(), record="all"), logits_of(model, tokens)
            loss = reference.loss_of(model, tokens[None])
            loss.backward()
            found = ours.gradients(tokens.numpy()).parameters
            theirs = {key: value.grad.numpy() for key, value in reference.named(model).items()}
            exact = logits_of(model.double(), tokens)
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
        f"{n} models of {len(SHAPES)} shapes: {numbers}; first tokens that differ: {flipped}",
    )
