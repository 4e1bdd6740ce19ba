"""Model.generate against the oracle, against runs of the whole text, and against exact probabilities."""

import math
import re
from contextlib import contextmanager

import numpy as np
import oracle
import oracle_circuits as oc
import oracle_sampling as sampling
import pytest
from circuit_cases import CONFIGS, TOLERANCE, case
from generation_cases import RAGGED, larger_case, same_logits

import attnsparse as asp
from attnsparse.items import Edge, Head, HeadPosition, Mlp, Resid
from attnsparse.model import Ablation, Generation, GenerationInterrupted, Tokenizer, generation
from attnsparse.model.interventions.compile import compile_interventions

each_config = pytest.mark.parametrize("name", CONFIGS)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE)
T, NEW = 5, 7  # of the prompts of a case, whose models take 12 tokens


def logits_model(logits, n_ctx: int = 40) -> asp.Model:
    """A model whose logits are these numbers at every position of every text."""
    config = asp.Config(
        n_layer=1, n_head=1, d_model=4, d_head=4, d_mlp=4, n_ctx=n_ctx, n_vocab=len(logits), tied=False,
        unembed_bias=True,
    )  # fmt: skip
    weights = {key: np.zeros(shape) for key, shape in config.parameter_shapes().items()}
    weights["lm_head.bias"] = np.asarray(logits, float)
    return asp.Model(config, weights, dtype="float64")


# ------------------------------------------------------------------------------------------ greedy


@each_config
@each_dtype
def test_greedy_texts_follow_the_oracle(name, dtype):
    one = larger_case(name)
    found = one.model(dtype).generate(RAGGED, 20, logits=True)
    assert len(found) == 3
    for prompt, text in zip(RAGGED, found):
        assert text.tokens[: len(prompt)].tolist() == list(prompt)
        assert len(text.new_tokens) == 20
        expected = oracle.forward(one.config, one.weights, text.tokens)["logits"][len(prompt) - 1 : -1]
        assert np.abs(text.logits - expected).max() < TOLERANCE[dtype] * np.abs(expected).max()
        assert text.new_tokens.tolist() == text.logits.argmax(axis=1).tolist()
        assert dtype == "float32" or text.new_tokens.tolist() == expected.argmax(axis=1).tolist()
        logprobs = np.log(oracle.softmax(expected))[np.arange(20), text.new_tokens]
        assert np.abs(text.logprobs - logprobs).max() < TOLERANCE[dtype] * np.abs(logprobs).max()


@each_config
@each_dtype
def test_logits_are_those_of_runs_of_the_text_so_far(name, dtype):
    model = larger_case(name).model(dtype)
    for text in model.generate(RAGGED, 9, temperature=1.5, n_samples=2, logits=True):
        for step in range(9):
            so_far = text.tokens[: len(text.tokens) - 9 + step]
            assert same_logits(text.logits[step], model.run(so_far, logits="last").logits)


def test_the_first_of_equal_logits_comes():
    assert logits_model([0, 3, 1, 3, 3]).generate([2], 4).new_tokens.tolist() == [1, 1, 1, 1]


# ----------------------------------------------------------------------------------- interventions


def items_of(config):
    """Some items of every kind; positions in the prompt, among the new tokens, and all."""
    last, end = config["n_layer"] - 1, config["n_head"] - 1
    return {
        "heads": [Head(0, 0), Head(last, end)],
        "head positions": [HeadPosition(0, 0, 2), HeadPosition(last, end, T + 1), HeadPosition(0, end, -1)],
        "edges": [Edge(0, 0, 3, 1), Edge(last, 0, T + 2, 2), Edge(last, end, T + 3, T + 3), Edge(0, 0, 8, 6)],
        "mlps": [Mlp(0)],
        "mixed": [Head(0, end), Mlp(last), Edge(last, 0, T + 1, 0), HeadPosition(last, 0, T)],
    }


def in_the_text(item):
    """An item whose position is counted from the start of the text."""
    return item._replace(position=T - 1) if isinstance(item, HeadPosition) and item.position < 0 else item


def masks_without(config, items, n):
    """Masks of the oracle with 0 at the items, for texts of n tokens."""
    masks = {}
    for item in map(in_the_text, items):
        place = {Edge: "entry", Head: "z", HeadPosition: "z", Mlp: "mlp_out"}[type(item)]
        index = tuple(item)
        if max(index[2:], default=0) >= n:
            continue
        shape = (config["n_layer"], *(config["n_head"],) * (place != "mlp_out"))
        axes = oc.PLACES[place] - len(shape)
        masks.setdefault(place, np.ones((*shape, *(n,) * axes)))[index] = 0
    return masks


def long_references(one, n=T + NEW):
    rng = np.random.default_rng(5)
    return [rng.integers(0, one.config["n_vocab"], n).astype(np.int32) for _ in one.task.clean]


def fill_of(one, kind, references, i, text):
    if kind == "zero":
        plain = oc.record(one.config, one.weights, text)
        return {place: np.zeros_like(value) for place, value in plain.items()}
    cut = [row[: len(text)] for row in references]
    if kind == "mean":
        return oc.mean_record(one.config, one.weights, cut)
    return oc.record(one.config, one.weights, cut[i])


@pytest.mark.parametrize("name", ["dense", "gated", "relu, layer scale"])
@pytest.mark.parametrize("kind", oc.ABLATIONS)
@pytest.mark.parametrize("which", items_of({"n_layer": 1, "n_head": 1}))
def test_ablations_follow_the_oracle_at_every_step(name, kind, which):
    one, model = case(name), case(name).model()
    items, references = items_of(one.config)[which], long_references(one)
    ablation = Ablation(items, kind, None if kind == "zero" else references)
    found = model.generate(list(one.task.clean), NEW, ablate=ablation, logits=True)
    plain = model.generate(list(one.task.clean), NEW, logits=True)
    assert not all(np.array_equal(*pair) for pair in zip(found.logits, plain.logits))
    for i, text in enumerate(found):
        masks = masks_without(one.config, items, T + NEW)
        fill = fill_of(one, kind, references, i, text.tokens)
        expected = oc.forward(one.config, one.weights, text.tokens, masks, fill)["logits"][T - 1 : -1]
        assert np.abs(text.logits - expected).max() < 1e-9 * np.abs(expected).max()
        assert text.new_tokens.tolist() == expected.argmax(axis=1).tolist()


@each_dtype
@pytest.mark.parametrize("kind", oc.ABLATIONS)
def test_ablated_texts_are_those_of_ablated_runs(dtype, kind):
    """The best next token of a run of the text so far under the same ablation, at every step."""
    one = case("gated")
    model, references = one.model(dtype), long_references(one)
    items = [in_the_text(item) for group in items_of(one.config).values() for item in group]
    ablation = Ablation(items, kind, None if kind == "zero" else references)
    for i, text in enumerate(model.generate(list(one.task.clean), NEW, ablate=ablation, logits=True)):
        for step in range(NEW):
            n = T + step
            possible = [item for item in items if max(item[2:], default=0) < n]
            if kind == "zero":
                cut = Ablation(possible)
            else:
                rows = [row[:n] for row in (references if kind == "mean" else references[i : i + 1])]
                cut = Ablation(possible, kind, rows)
            last = model.run(text.tokens[:n], logits="last", ablate=cut).logits
            assert same_logits(text.logits[step], last)
            assert text.new_tokens[step] == last.argmax()


@each_dtype
def test_patched_texts_are_those_of_patched_runs(dtype):
    one, rng = case("gated"), np.random.default_rng(0)
    model, n_all = one.model(dtype), T + NEW
    width, d_head = one.config["d_model"], one.config["d_head"]
    patch = {
        Head(0, 1): rng.standard_normal((n_all, d_head)),
        HeadPosition(1, 0, T + 1): rng.standard_normal(d_head),
        Edge(1, 2, 6, 5): rng.standard_normal(d_head),
        Edge(0, 0, 2, 0): rng.standard_normal(d_head),
        Mlp(1): rng.standard_normal((n_all, width)),
        Resid(0, 3, "pre"): rng.standard_normal(width),
        Resid(0, T, "mid"): rng.standard_normal(width),
        Resid(1, T + 2, "post"): rng.standard_normal(width),
    }
    found = model.generate(list(one.task.clean), NEW, patch=patch, ablate=["L1H1"], logits=True)
    for text in found:
        run = model.run(text.tokens, patch=patch, ablate=["L1H1"])
        assert same_logits(text.logits, run.logits[T - 1 : -1])
        assert text.new_tokens.tolist() == text.logits.argmax(axis=1).tolist()


def test_texts_of_several_lengths_and_samples_have_their_own_places():
    """Positions, negative ones too, are those of each text; the samples of a prompt are changed alike."""
    model = larger_case("gated").model()
    ablate = [HeadPosition(0, 0, -1), HeadPosition(1, 1, 0), Head(1, 2)]
    together = model.generate(RAGGED, 6, ablate=ablate, temperature=1.0, n_samples=3, logits=True)
    for i, prompt in enumerate(RAGGED):
        alone = model.generate([prompt], 6, ablate=ablate, temperature=1.0, n_samples=3, logits=True)
        for sample in range(3):
            assert together[3 * i + sample].logits.tobytes() == alone[sample].logits.tobytes()
        absolute = [HeadPosition(0, 0, len(prompt) - 1), *ablate[1:]]
        run = model.run(alone[0].tokens, ablate=absolute)
        assert same_logits(alone[0].logits, run.logits[len(prompt) - 1 : -1])


def test_added_vectors_and_several_ablations():
    """Vectors added at every position, which new tokens get too; ablations of several kinds at once."""
    one, rng = case("gated"), np.random.default_rng(1)
    model, n_all = one.model(), T + NEW
    width = one.config["d_model"]
    patch = {
        Resid(0, None, "post"): asp.Add(rng.standard_normal(width)),
        Mlp(1): asp.Add(rng.standard_normal((n_all, width))),
        HeadPosition(1, 1, T + 1): asp.Add(rng.standard_normal(one.config["d_head"])),
    }
    ablate = [Ablation(["L0H1"]), Ablation([Mlp(0, T + 2)], "mean", long_references(one))]
    found = model.generate(
        one.task.clean[0], NEW, patch=patch, ablate=ablate, logits=True, n_samples=2, temperature=1.0
    )
    for text in found:
        run = model.run(text.tokens, patch=patch, ablate=ablate)
        assert same_logits(text.logits, run.logits[T - 1 : -1])


def test_keep_only():
    one = case("gated")
    model, kept = one.model(), [Head(0, 0), Head(1, 1)]
    edges = [Edge(0, 0, 2, 1), Edge(0, 0, 7, 3), Edge(1, 1, 7, 7), Edge(1, 2, 4, 0)]
    for items in (kept, edges):
        ablation = Ablation(items, keep_only=True)
        text = model.generate(one.task.clean[0], NEW, ablate=ablation, logits=True)
        run = model.run(text.tokens, ablate=ablation)
        assert same_logits(text.logits, run.logits[T - 1 : -1])


def test_references_that_are_too_short_or_missing():
    one = case("gated")
    model, prompt, short = one.model(), one.task.clean[0], [row[: T + 2] for row in long_references(one)]
    with pytest.raises(ValueError, match=re.escape("at position 11 of prompt 0 with its new tokens needs")):
        model.generate(prompt, NEW, ablate=Ablation(["L0H0"], "mean", short))
    with pytest.raises(ValueError, match="at least 9 tokens, got 7"):
        model.generate(prompt, NEW, ablate=Ablation(["a0.h0[1->8]"], "counterfactual", short[:1]))
    with pytest.raises(ValueError, match="counterfactual ablation needs one reference prompt"):
        model.generate(prompt, NEW, ablate=Ablation([HeadPosition(0, 0, 1)], "counterfactual", short))
    with pytest.raises(ValueError, match="not known before a text is generated"):
        model.generate(
            prompt, NEW, ablate=Ablation(["a0.h0[1->8]"], "mean", long_references(one), keep_only=True)
        )
    with pytest.raises(IndexError, match="prompt 0 has 5 tokens and gets 7"):
        model.generate(prompt, NEW, ablate=[HeadPosition(0, 0, 12)])
    with pytest.raises(ValueError, match=re.escape("must have shape (12, ")):
        model.generate(prompt, NEW, patch={Mlp(0): np.zeros((T, one.config["d_model"]))})
    model.generate(prompt, NEW, ablate=Ablation([HeadPosition(0, 0, 6)], "mean", short))


def test_places_of_samples():
    """Each sample of a prompt has the prompt's places, whatever the kind."""
    one = case("gated")
    model = one.model()
    batch = generation.as_batch(model, list(one.task.clean), False)
    changes = compile_interventions(model, batch, items_of(one.config)["mixed"], None, NEW, 2)
    for rows, column in ((changes.heads, 1), (changes.entries, 1), (changes.mlps, 1)):
        counts = np.bincount(rows[:, column], minlength=6)
        assert len(set(counts.tolist())) == 1
        assert len(counts) == 6


# ---------------------------------------------------------------------------------------- sampling

LOGITS = [0.3, 2.0, -1.0, 2.0, 0.3, 1.1, 0.3, -5.0, 2.0, -math.inf]
CHOICES = [
    {}, {"top_k": 1}, {"top_k": 2}, {"top_k": 4}, {"top_k": 5}, {"top_k": 99}, {"top_p": 0.2}, {"top_p": 0.6},
    {"top_p": 0.61}, {"top_p": 1.0}, {"top_p": 1e-9}, {"top_k": 5, "top_p": 0.7},
    {"top_k": 3, "top_p": 0.9999},
]  # fmt: skip


def expected_texts(logits, prompt, n_samples, n_new, seed, temperature, **choice):
    probabilities = sampling.kept(logits, temperature, **choice)
    numbers = [sampling.uniforms(prompt, sample, n_new, seed) for sample in range(n_samples)]
    return [[sampling.draw(probabilities, number) for number in row] for row in numbers]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_tokens_are_those_of_the_twin(choice, temperature):
    """Token for token, with logits that are equal and one that is impossible."""
    found = logits_model(LOGITS).generate(
        [3, 1], 5, temperature=temperature, seed=11, n_samples=300, **choice
    )
    expected = expected_texts(LOGITS, [3, 1], 300, 5, 11, temperature, **choice)
    assert [text.tolist() for text in found.new_tokens] == expected
    seen = {token for row in expected for token in row}
    assert seen <= set(np.flatnonzero(sampling.kept(LOGITS, temperature, **choice)).tolist())


def test_ties_at_the_limit_go_to_lower_ids():
    cases = (({"top_k": 2}, {1, 3}), ({"top_k": 5}, {0, 1, 3, 5, 8}), ({"top_p": 0.45}, {1, 3}))
    for choice, wanted in cases:
        texts = logits_model(LOGITS).generate([0], 1, temperature=1.0, n_samples=500, **choice)
        assert set(np.concatenate(texts.new_tokens).tolist()) == wanted


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> tuple[float, int]:
    """Over the tokens that are expected at least five times; the others are one class."""
    expected = probabilities * counts.sum()
    often = expected >= 5
    counts = np.append(counts[often], counts[~often].sum())
    expected = np.append(expected[often], expected[~often].sum())
    used = expected > 0
    assert counts[~used].sum() == 0
    return float(((counts - expected)[used] ** 2 / expected[used]).sum()), int(used.sum()) - 1


@pytest.mark.parametrize("choice", [{}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 8, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("name", ["dense", "gated"])
def test_frequencies_are_the_probabilities(name, choice):
    """Of the first token, and of the second given the first, by the probabilities of a run."""
    model = case(name).model()
    prompt, n, n_vocab = case(name).task.clean[0], 6000, model.config.n_vocab
    texts = np.array(model.generate(prompt, 2, temperature=0.7, seed=5, n_samples=n, **choice).new_tokens)
    first = np.bincount(texts[:, 0], minlength=n_vocab)
    best = int(first.argmax())
    second = np.bincount(texts[texts[:, 0] == best, 1], minlength=n_vocab)
    for counts, so_far in ((first, prompt), (second, [*prompt, best])):
        probabilities = sampling.kept(model.run(so_far, logits="last").logits, 0.7, **choice)
        found, degrees = chi_square(counts, probabilities)
        assert found < degrees + 4 * math.sqrt(2 * degrees) + 1, (found, degrees)
        assert (
            chi_square(counts, np.roll(probabilities, 1) * 0.5 + probabilities * 0.5)[0] > 3 * found + degrees
        )


# ------------------------------------------------------------------- what a text does not depend on


def everything(text: Generation) -> bytes:
    return text.tokens.tobytes() + text.logprobs.tobytes() + text.logits.tobytes()


@each_dtype
@pytest.mark.parametrize("name", ["dense", "gated"])
def test_a_text_depends_on_no_other_one(name, dtype):
    """Not on other prompts, their order, other samples, threads, or when others end; on every machine."""
    model = larger_case(name).model(dtype)
    options = {"temperature": 1.2, "seed": 3, "logits": True}
    alone = {i: model.generate(prompt, 12, threads=1, **options) for i, prompt in enumerate(RAGGED)}
    together = model.generate(
        [RAGGED[2], RAGGED[0], RAGGED[1], RAGGED[0]], 12, n_samples=5, threads=4, **options
    )
    for at, i in enumerate((2, 0, 1, 0)):
        assert everything(together[5 * at]) == everything(alone[i])
    assert len({everything(text) for text in together}) == 15
    many = model.generate([RAGGED[0]] * 150 + [RAGGED[1]], 12, n_samples=2, **options)
    assert everything(many[300]) == everything(alone[1])
    stop = [int(alone[0].new_tokens[4])]
    ending = model.generate([RAGGED[0], RAGGED[2]], 12, stop=stop, **options)
    n = len(ending[1].new_tokens)
    assert ending[1].logits.tobytes() == alone[2].logits[:n].tobytes()


def test_the_seed_matters_and_counts_to_the_last_bit():
    model = larger_case("dense").model()
    texts = {
        model.generate([1], 20, temperature=2.0, seed=s).tokens.tobytes() for s in (0, 1, 2**63, 2**64 - 1)
    }
    assert len(texts) == 4


def test_prompts_that_do_not_fit_into_one_pass():
    """More than 2,048 tokens of prompts, and more than 256 texts at once."""
    model = larger_case("gated", 400).model("float32")
    rng = np.random.default_rng(0)
    prompts = [
        rng.integers(0, model.config.n_vocab, n).tolist() for n in (390, 300, 1, 380, 395, 350, 390, 2)
    ]
    together = model.generate(prompts, 4, logits=True)
    for prompt, text in zip(prompts, together):
        assert everything(text) == everything(model.generate(prompt, 4, logits=True))
    short = [row.tolist() for row in rng.integers(0, model.config.n_vocab, (300, 3))]
    many = model.generate(short, 3, logits=True)
    assert everything(many[299]) == everything(model.generate(short[299], 3, logits=True))


# ------------------------------------------------------------------------------------- where texts end


def test_stop_tokens():
    tokenizer = Tokenizer.from_words(["a", "b", "c", "d", "<|endoftext|>"], split="characters")
    model = logits_model([0.0, 0.1, 0.2, 0.0, 0.1])
    model.tokenizer = tokenizer
    assert tokenizer.eos_id == 4
    drawn = model.generate("ab", 30, temperature=1.0, n_samples=40, stop=["b"])
    for text in drawn:
        new, stops = text.new_tokens.tolist(), {1, 4}
        assert not stops & set(new[:-1])
        assert text.ended_by == ("stop" if new[-1] in stops else "length")
        assert text.ended_by == "stop" or len(new) == 30
    assert {text.new_tokens[-1] for text in drawn if text.ended_by == "stop"} == {1, 4}
    on = model.generate("ab", 30, temperature=1.0, n_samples=40, stop_at_eos=False)
    assert on.ended_by == ["length"] * 40
    assert any(4 in text for text in on.new_tokens)
    free = model.generate("ab", 30, temperature=1.0, n_samples=40, stop=1)
    assert [text.tolist() for text in free.new_tokens] == [text.tolist() for text in drawn.new_tokens]


def test_a_text_as_long_as_the_context():
    model = larger_case("dense", 12).model()
    assert len(model.generate([1] * 11, 1).tokens) == 12
    with pytest.raises(
        ValueError, match=r"the prompt has 11 tokens, to which this model \(n_ctx 12\) can add"
    ):
        model.generate([1] * 11, 2)
    with pytest.raises(ValueError, match="prompt 1 has 12 tokens"):
        model.generate([[1], [1] * 12], 1)


def test_logits_that_are_not_numbers():
    broken = larger_case("one layer, untied").model()
    rows = np.array(broken.parameter("wte.weight"))
    rows[5] = math.nan
    broken.assign({"wte.weight": rows})
    with pytest.raises(RuntimeError, match="the logits of prompt 1 after 0 new tokens are not numbers"):
        broken.generate([[1], [5]], 3)
    with pytest.raises(RuntimeError, match="prompt 0"):
        logits_model([0, math.nan, 1]).generate([0], 2, temperature=1.0, top_k=2, top_p=0.5)


# ------------------------------------------------------------------------------------------ interrupts


@pytest.fixture
def stopping(monkeypatch):
    """Makes the bar of a generation raise after so many tokens."""

    def after(n: int, error: type[BaseException]) -> None:
        @contextmanager
        def bars(_):
            def tell(stage, done, total):
                assert stage == "generation"
                assert done <= total
                if done >= n:
                    raise error

            yield tell

        monkeypatch.setattr(generation, "stage_bars", bars)

    return after


def test_what_an_interrupt_leaves(stopping):
    model = larger_case("gated").model()
    whole = model.generate(RAGGED, 20, temperature=1.0, n_samples=2, logits=True)
    stopping(40, KeyboardInterrupt)
    with pytest.raises(GenerationInterrupted, match="after 42 new tokens") as caught:
        model.generate(RAGGED, 20, temperature=1.0, n_samples=2, logits=True)
    assert isinstance(caught.value, KeyboardInterrupt)
    part = caught.value.generation
    assert part.ended_by == ["interrupt"] * 6
    for text, full in zip(part, whole):
        assert text.new_tokens.tolist() == full.new_tokens[:7].tolist()
        assert text.logits.tobytes() == full.logits[:7].tobytes()
        assert len(text.logprobs) == 7
    assert len(part.to_pandas()) == 42


def test_an_interrupt_before_the_first_token_and_another_error(stopping):
    model = larger_case("gated").model()
    stopping(0, KeyboardInterrupt)
    with pytest.raises(GenerationInterrupted) as caught:
        model.generate([1, 2], 20)
    assert caught.value.generation.new_tokens.tolist() == []
    stopping(10, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        model.generate([1, 2], 20)


# ------------------------------------------------------------------------------------------- the result


def test_the_object():
    words = [" the", " cat", " <b>", "\x1b[1m", "\n"]
    model = logits_model([0.0, 5.0, 0.0, -9.0, 0.0])
    model.tokenizer = Tokenizer.from_words(words, split="gpt2")
    model.name = "toy"
    text = model.generate(" the", 2)
    assert (text.text, text.full_text) == (" cat cat", " the cat cat")
    assert text.token_strings == [" cat", " cat"]
    assert text.tokens.tolist() == [0, 1, 1]
    assert repr(text) == "Generation(1 text, 2 new tokens, greedy, model='toy')\n  ' the' -> ' cat cat'"
    assert len(text) == 1
    assert not text.tokens.flags.writeable
    assert not text.new_tokens.flags.writeable
    with pytest.raises(AttributeError, match="logits=True"):
        _ = text.logits
    several = model.generate([" the", [2, 3]], 3, temperature=9.0, n_samples=2, seed=4)
    assert [len(row) for row in several.new_tokens] == [3] * 4
    assert several[-1].text == several.text[3]
    assert isinstance(several.text, list)
    assert [text.text for text in several] == several.text
    with pytest.raises(IndexError, match="there are 4 texts, got number 4"):
        several[4]
    html = several._repr_html_()
    assert "<b>" in html
    assert " <b> " not in html
    assert "&lt;b&gt;" in html
    assert "\x1b" not in html + repr(several)
    listed = model.generate([" the"], 1)
    assert isinstance(listed.text, list)
    assert model.generate([1], 1, temperature=1.0, n_samples=2).text


def test_without_a_tokenizer():
    text = logits_model([0.0, 1.0]).generate([0, 0], 3)
    assert text.token_strings == ["<1>"] * 3
    assert "'<0><0>' -> '<1><1><1>'" in repr(text)
    assert "&lt;0&gt;&lt;0&gt;<b>&lt;1&gt;" in text._repr_html_()
    with pytest.raises(ValueError, match="has no tokenizer"):
        _ = text.text


def test_many_texts_are_shown_in_short():
    texts = logits_model([0.0, 1.0]).generate([[0]] * 20, 1)
    assert repr(texts).endswith("and 8 more")
    assert "<p>and 8 more</p>" in texts._repr_html_()


def test_a_character_of_prompt_and_new_tokens(tmp_path):
    """The new text is what the whole one has more than the prompt."""
    model = asp.load("demo-dense")
    for text in model.generate(["The", "the opposite of"], 4):
        assert text.full_text == model.tokenizer.decode(text.tokens)


def test_the_table():
    model = logits_model([0.0, 2.0, 1.0])
    table = model.generate([[1], [2, 0]], 2, temperature=1.0, n_samples=2, seed=1).to_pandas()
    assert table.columns.tolist() == [
        "model", "prompt", "sample_index", "position", "token_id", "token", "logprob", "probability",
    ]  # fmt: skip
    assert table["prompt"].tolist() == [0] * 4 + [1] * 4
    assert table["sample_index"].tolist() == [0, 0, 1, 1] * 2
    assert table["position"].tolist() == [1, 2] * 2 + [2, 3] * 2
    probabilities = oracle.softmax(np.array([0.0, 2.0, 1.0]))
    assert np.allclose(table["probability"], probabilities[table["token_id"]], rtol=1e-12)
    assert np.allclose(np.exp(table["logprob"]), table["probability"], rtol=1e-12)
    assert (table["token"] == [f"<{i}>" for i in table["token_id"]]).all()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"temperature": 0}, ValueError, "leave it out for the most probable token"),
        ({"temperature": 0.0}, ValueError, "temperature must be above 0, got 0"),
        ({"temperature": -1}, ValueError, "temperature must be above 0"),
        ({"temperature": math.nan}, ValueError, "temperature"),
        ({"temperature": math.inf}, ValueError, "temperature"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number"),
        ({"temperature": 1, "top_p": 0}, ValueError, "top_p"),
        ({"temperature": 1, "top_p": 1.01}, ValueError, "top_p"),
        ({"temperature": 1, "top_p": math.nan}, ValueError, "top_p"),
        ({"temperature": 1, "top_k": 0}, ValueError, "top_k must be at least 1"),
        ({"temperature": 1, "top_k": 1.5}, TypeError, "top_k must be an integer"),
        ({"top_k": 3}, ValueError, "top_k is for drawing tokens"),
        ({"top_p": 0.5}, ValueError, "top_p is for drawing tokens"),
        ({"n_samples": 2}, ValueError, "n_samples is for drawing tokens"),
        ({"temperature": 1, "n_samples": 0}, ValueError, "n_samples must be at least 1"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": 2**70}, ValueError, "can add at most 58"),
        ({"seed": -1}, ValueError, "seed"),
        ({"stop": [99]}, IndexError, "99"),
        ({"stop": "the"}, ValueError, "tokenizer"),
        ({"stop": [1.5]}, TypeError, "integer"),
        ({"logits": "yes"}, TypeError, "logits"),
        ({"max_bytes": 10}, MemoryError, "max_bytes=10"),
        ({"max_bytes": 20_000}, MemoryError, "generating 1 text needs"),
        ({"max_bytes": 1000, "logits": True}, MemoryError, "the tokens and logits of 1 text need"),
    ],
)
def test_bad_options(options, kind, message):
    model = larger_case("dense").model()
    with pytest.raises(kind, match=re.escape(message)):
        model.generate([1, 2], **options)


def test_a_stop_text_of_several_tokens():
    model = logits_model([0.0, 1.0, 0.0])
    model.tokenizer = Tokenizer.from_words(["a", "b", "c"], split="characters")
    with pytest.raises(ValueError, match="'ab' must be one token, got 2"):
        model.generate("a", 2, stop=["ab"])


def test_bad_prompts():
    model = larger_case("dense").model()
    with pytest.raises(ValueError, match="has no tokens"):
        model.generate([[]])
    with pytest.raises(IndexError, match="out of range"):
        model.generate([99])
    with pytest.raises(ValueError, match="at least one prompt"):
        model.generate([])
