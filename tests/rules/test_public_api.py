"""What a user gets from Model.run, its batches and records, run_with_cache and edges."""

import functools

import numpy as np
import pytest
import reliability
from alone import same_bits_or_close
from reliability import PROMPTS, TOKENS, counters

import attnsparse as asp
from attnsparse.model import run
from attnsparse.model import transformer_lens as cache

L, H, D, E, M, V, T = 2, 4, 16, 64, 128, 96, len(TOKENS)
SHAPES = {
    "pattern": (L, H, T, T), "scores": (L, H, T, T), "gate": (L, H, T, T), "lse": (L, H, T),
    "q": (L, T, H, D), "k": (L, T, H, D), "v": (L, T, H, D), "z": (L, T, H, D), "result": (L, T, H, E),
    "resid_pre": (L, T, E), "resid_mid": (L, T, E), "resid_post": (L, T, E), "attn_out": (L, T, E),
    "mlp_out": (L, T, E), "mlp_pre": (L, T, M), "mlp_post": (L, T, M), "ln1_scale": (L, T),
    "ln2_scale": (L, T), "ln1_normalized": (L, T, E), "ln2_normalized": (L, T, E), "ln_final_scale": (T,),
    "ln_final_normalized": (T, E), "embed": (T, E), "pos_embed": (T, E), "token_loss": (T - 1,),
    "logits": (T, V), "tokens": (T,),
}  # fmt: skip
WORDS = ["The", " opposite", " of", ' "', "large", '"', " is", "small"]


@pytest.fixture(scope="module")
def model():
    return reliability.model()


@pytest.fixture(scope="module")
def spoken():
    """A model with a tokenizer of whole words and a BOS token."""
    tokenizer = asp.Tokenizer.from_words([*WORDS, "<bos>"], bos="<bos>")
    plain = reliability.model(n_vocab=9)
    return asp.Model(plain.config, plain.parameters(), tokenizer=tokenizer, name="spoken")


# --------------------------------------------------------------------------------------- records and shapes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shapes_and_types_of_everything(dtype):
    found = reliability.model(dtype=dtype).run(TOKENS, record="all")
    assert set(SHAPES) == {name for name in run.CORE_NAMES if name != "loss"} | {"logits", "tokens"}
    for name, shape in SHAPES.items():
        array = getattr(found, name)
        assert array.shape == shape, name
        expected = {"gate": np.dtype(bool), "tokens": np.dtype(np.int32)}.get(name, np.dtype(dtype))
        assert array.dtype == expected, name
    assert found.pattern.flags.c_contiguous
    assert found.loss == pytest.approx(found.token_loss.mean(dtype=np.float64))
    assert isinstance(found.loss, float)


def test_presets(model):
    assert set(model.run(TOKENS).recorded) == {"pattern", "q", "k", "v", "ln_final_scale", "logits"}
    assert set(model.run(TOKENS, "all").recorded) == set(SHAPES) - {"tokens"}
    assert set(model.run(TOKENS, ("all", "edges"), logits="none").recorded) == set(SHAPES) - {
        "tokens",
        "logits",
    } | {"edges"}
    assert model.run(TOKENS, "none", logits="none").recorded == ()
    assert model.run(TOKENS, ()).recorded == ("logits",)
    assert set(model.run(TOKENS, ["z", "z", "attention"]).recorded) >= {"z", "pattern"}


@pytest.mark.parametrize("name", sorted(set(SHAPES) - {"tokens", "logits"}))
def test_a_record_alone_is_the_same_and_nothing_else_is_kept(name, model):
    everything, alone = model.run(TOKENS, "all"), model.run(TOKENS, name, logits="none")
    assert np.array_equal(getattr(alone, name), getattr(everything, name))
    for other in set(SHAPES) - {"tokens", "logits"}:
        if run.CORE_NAMES[other] == run.CORE_NAMES[name]:
            continue
        assert not hasattr(alone, other)
        assert other not in alone.recorded
    assert alone._core.nbytes < everything._core.nbytes


def test_logits_of_the_last_token(model):
    batch = model.run(PROMPTS, "none", logits="last")
    assert batch.logits.shape == (3, V)
    for i, prompt in enumerate(PROMPTS):
        assert same_bits_or_close(batch[i].logits, model.run(prompt).logits[-1])
        assert batch[i].logits.shape == (V,)


# ----------------------------------------------------------------------------------------------- batches


def test_a_batch_of_ragged_prompts(model):
    batch = model.run(PROMPTS, "all")
    assert len(batch) == 3
    assert [len(one) for one in batch] == [1, 1, 1]
    assert [one.n_tokens for one in batch] == [5, 1, 8]
    for i, prompt in enumerate(PROMPTS):
        alone = model.run(prompt, "all")
        for name in SHAPES:
            assert same_bits_or_close(getattr(batch[i], name), getattr(alone, name)), name
            assert np.array_equal(getattr(batch[i - 3], name), getattr(batch[i], name)), name
        assert same_bits_or_close(batch[i].loss, alone.loss)
        assert batch[i].tokens.tolist() == prompt
        assert np.shares_memory(batch[i].q, batch[i].q)
    weights = np.array([4, 0, 7])
    losses = [batch[i].loss if len(prompt) > 1 else 0.0 for i, prompt in enumerate(PROMPTS)]
    assert batch.loss == pytest.approx((weights * losses).sum() / weights.sum())
    assert np.isnan(batch[1].loss)


def test_a_batch_of_prompts_of_one_length(model):
    prompts = np.array([TOKENS, TOKENS[::-1], TOKENS + 1])
    batch = model.run(prompts, "all")
    for name, shape in SHAPES.items():
        array = getattr(batch, name)
        assert array.shape == (3, *shape), name
        for i in range(3):
            assert np.array_equal(array[i], getattr(batch[i], name)), name
        assert np.shares_memory(array, getattr(batch[1], name))
    assert batch.n_tokens == T
    for same in (
        prompts.tolist(),
        list(prompts),
        tuple(map(tuple, prompts.tolist())),
        prompts.astype(np.uint8),
    ):
        assert np.array_equal(model.run(same).logits, batch.logits)


def test_one_prompt_in_a_list_has_a_batch_axis(model):
    assert model.run([TOKENS]).logits.shape == (1, T, V)
    assert model.run(TOKENS).logits.shape == (T, V)
    assert model.run(TOKENS)[0].logits.shape == (T, V)
    for same in (TOKENS.tolist(), tuple(TOKENS.tolist()), TOKENS.astype(np.int64), np.repeat(TOKENS, 2)[::2]):
        assert np.array_equal(model.run(same).logits, model.run(TOKENS).logits)


def test_texts_and_bos(spoken):
    text = 'The opposite of "large" is "'
    found = spoken.run(text)
    assert found.token_strings == ["The", " opposite", " of", ' "', "large", '"', " is", ' "']
    assert (found.prompt, found.prepend_bos, found.n_tokens) == (text, False, 8)
    with_bos = spoken.run(text, prepend_bos=True)
    assert with_bos.token_strings == ["<bos>", *found.token_strings]
    assert with_bos.prepend_bos
    assert np.array_equal(with_bos.logits, spoken.run(with_bos.tokens).logits)
    assert np.array_equal(with_bos.logits, spoken.run(found.tokens, prepend_bos=True).logits)
    again = spoken.run(with_bos.tokens, prepend_bos=True)  # a prompt with BOS gets no second one
    assert np.array_equal(again.tokens, with_bos.tokens)
    assert spoken.run("<bos>" + text, prepend_bos=True).token_strings == with_bos.token_strings
    batch = spoken.run([text, "small is"], prepend_bos=True)
    assert [one.prompt for one in batch] == [text, "small is"]
    assert batch[1].token_strings == ["<bos>", "small", " is"]
    assert spoken.run([1, 2]).prompt is None
    for ids in ([1, True], [[1, True]], (2, np.True_)):
        with pytest.raises(TypeError, match="tokens must be integers, got bool"):
            spoken.run(ids)
    assert spoken.to_str_tokens(np.array([1, 2])) == spoken.run([1, 2]).token_strings
    with pytest.raises(IndexError, match=r"token id 9 is out of range 0\.\.8"):
        spoken.to_str_tokens([1, 9])
    assert spoken.to_str_tokens(text) == spoken.to_str_tokens(spoken.to_tokens(text))


def test_without_a_tokenizer_tokens_are_shown_by_number(model):
    assert model.run([3, 1]).token_strings == ["<3>", "<1>"]


# ----------------------------------------------------------------------------------------- run_with_cache


def expected_shapes(batch: int) -> dict[str, tuple[int, ...]]:
    """TransformerLens's hook names and shapes, written out."""
    b, found = batch, {}
    for layer in range(L):
        block = {
            "hook_resid_pre": (b, T, E), "ln1.hook_scale": (b, T, 1), "ln1.hook_normalized": (b, T, E),
            "attn.hook_q": (b, T, H, D), "attn.hook_k": (b, T, H, D), "attn.hook_v": (b, T, H, D),
            "attn.hook_attn_scores": (b, H, T, T), "attn.hook_pattern": (b, H, T, T),
            "attn.hook_sparse_mask": (b, H, T, T), "attn.hook_z": (b, T, H, D),
            "attn.hook_result": (b, T, H, E),
            "hook_attn_out": (b, T, E), "hook_resid_mid": (b, T, E), "ln2.hook_scale": (b, T, 1),
            "ln2.hook_normalized": (b, T, E), "mlp.hook_pre": (b, T, M), "mlp.hook_post": (b, T, M),
            "hook_mlp_out": (b, T, E), "hook_resid_post": (b, T, E),
        }  # fmt: skip
        found |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    ends = {"hook_embed": (b, T, E), "hook_pos_embed": (b, T, E)}
    return ends | found | {"ln_final.hook_scale": (b, T, 1), "ln_final.hook_normalized": (b, T, E)}


@pytest.mark.parametrize("n_prompts", [1, 3])
def test_names_shapes_and_values_of_the_cache(n_prompts, model):
    prompts = [TOKENS + i for i in range(n_prompts)]
    logits, found = model.run_with_cache(prompts)
    assert {name: array.shape for name, array in found.items()} == expected_shapes(n_prompts)
    assert set(cache.hook_names(L)) == set(found)
    reference = model.run(prompts, "all")
    assert np.array_equal(logits, reference.logits)
    for hook, name in cache.BLOCK_HOOKS.items():
        for layer in range(L):
            array = found[f"blocks.{layer}.{hook}"]
            expected = getattr(reference, name)[:, layer]
            assert np.array_equal(array[..., 0] if hook.endswith("hook_scale") else array, expected), hook
            assert not array.flags.writeable
    for hook, name in cache.OTHER_HOOKS.items():
        array = found[hook]
        assert np.array_equal(
            array[..., 0] if hook.endswith("hook_scale") else array, getattr(reference, name)
        ), hook


def test_relations_between_hooks(model):
    """The hooks mean what TransformerLens means by them."""
    found = model.run_with_cache(TOKENS)[1]
    for layer in range(L):
        block = {hook: found[f"blocks.{layer}.{hook}"] for hook in cache.BLOCK_HOOKS}
        pre, mid, post = (block[f"hook_resid_{part}"] for part in ("pre", "mid", "post"))
        assert np.allclose(mid, pre + block["hook_attn_out"], atol=1e-5)
        assert np.allclose(post, mid + block["hook_mlp_out"], atol=1e-5)
        centred = pre - pre.mean(-1, keepdims=True)
        assert np.allclose(block["ln1.hook_normalized"], centred / block["ln1.hook_scale"], atol=1e-4)
        z = np.einsum("bhqk,bkhd->bqhd", block["attn.hook_pattern"], block["attn.hook_v"])
        assert np.allclose(block["attn.hook_z"], z, atol=1e-5)
        bias = model.parameter(f"h.{layer}.attn.c_proj.bias")
        assert np.allclose(block["hook_attn_out"], block["attn.hook_result"].sum(2) + bias, atol=1e-4)
        assert np.array_equal(block["attn.hook_sparse_mask"], block["attn.hook_pattern"] > 0)
    assert np.allclose(
        found["blocks.0.hook_resid_pre"], found["hook_embed"] + found["hook_pos_embed"], atol=1e-6
    )


def test_filters_of_the_cache(model):
    hooks = cache.hook_names(L)
    wanted = ["blocks.1.attn.hook_pattern", "hook_embed"]
    for names_filter in (wanted, tuple(wanted[::-1]), lambda name: name in wanted):
        found = model.run_with_cache(TOKENS, names_filter)[1]
        assert list(found) == ["hook_embed", "blocks.1.attn.hook_pattern"]
        assert len(found) == 2
        assert "hook_pos_embed" not in found
        with pytest.raises(KeyError):
            found["hook_pos_embed"]
    assert list(model.run_with_cache(TOKENS, "ln_final.hook_scale")[1]) == ["ln_final.hook_scale"]
    assert list(model.run_with_cache(TOKENS, [])[1]) == []
    assert list(model.run_with_cache(TOKENS, None)[1]) == hooks
    small, large = (model.run_with_cache(TOKENS, f, return_type=None)[1].run for f in ("hook_embed", None))
    assert small._core.nbytes < large._core.nbytes / 8
    seen = []
    model.run_with_cache(TOKENS, lambda name: bool(seen.append(name)))
    assert seen == hooks


def test_short_names_of_the_cache(model):
    found = model.run_with_cache(TOKENS)[1]
    pairs = {
        ("pattern", 1): "blocks.1.attn.hook_pattern", ("resid_post", -1): "blocks.1.hook_resid_post",
        ("q", 0): "blocks.0.attn.hook_q", ("scale", 1, "ln1"): "blocks.1.ln1.hook_scale",
        ("normalized", 0, "ln2"): "blocks.0.ln2.hook_normalized", ("pre", 0, "mlp"): "blocks.0.mlp.hook_pre",
        ("z", 1, "attn"): "blocks.1.attn.hook_z", "embed": "hook_embed",
        ("pos_embed", None): "hook_pos_embed",
    }  # fmt: skip
    for short, full in pairs.items():
        assert np.array_equal(found[short], found[full]), short


def test_what_run_with_cache_returns(model):
    logits, found = model.run_with_cache(TOKENS, remove_batch_dim=True)
    assert logits.shape == (T, V)
    assert found["pattern", 0].shape == (H, T, T)
    assert not found.has_batch_dim
    loss, _ = model.run_with_cache(TOKENS, return_type="loss")
    assert loss == model.run(TOKENS, "loss").loss
    nothing, found = model.run_with_cache([TOKENS.tolist()], return_type=None)
    assert nothing is None
    assert found["pattern", 0].shape == (1, H, T, T)
    assert "hook_embed" in repr(found)


# -------------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.05, 2.0])
def test_edges_are_the_entries_of_the_pattern(gated, threshold):
    model = reliability.model(gated=gated)
    found = model.run(PROMPTS, ("pattern", "gate", "edges"), edge_threshold=threshold)
    start, key, weight = found._core.edges()
    rows = [
        (i, layer, h, q)
        for i, p in enumerate(PROMPTS)
        for layer in range(L)
        for h in range(H)
        for q in range(len(p))
    ]
    assert start.shape == (len(rows) + 1,)
    assert (start.dtype, key.dtype, weight.dtype) == (np.int64, np.int32, np.float32)
    assert (start[0], start[-1]) == (0, len(key))
    for row, (i, layer, head, query) in enumerate(rows):
        values = found[i].pattern[layer, head, query]
        is_open = found[i].gate[layer, head, query] & (values > threshold)
        assert np.array_equal(key[start[row] : start[row + 1]], np.flatnonzero(is_open))
        assert np.array_equal(weight[start[row] : start[row + 1]], values[is_open])
    for i in range(len(PROMPTS)):
        layer, head, query, key, weight = found[i].edge_arrays()
        expected = np.nonzero(found[i].gate & (found[i].pattern > threshold))
        for one, other in zip((layer, head, query, key), expected):
            assert np.array_equal(one, other)
        assert np.array_equal(weight, found[i].pattern[expected])
    assert (len(weight) == 0) == (threshold == 2.0)


def test_edges_keep_what_they_hold_and_no_square():
    """Measured by the allocator: memory in use grows with edges and tokens, not with tokens squared."""
    model = reliability.model(n_layer=1, n_ctx=512, gate_bias=-6.0)
    random = np.random.default_rng(0)
    held = {}
    for n in (256, 512):
        prompt = random.integers(0, V, n)
        before = counters()[0]
        found = model.run(prompt, "edges", logits="none")
        held[n] = counters()[0] - before
        n_edges, square = len(found._core.edges()[1]), H * n * n * 4
        assert n_edges < square / 64
        assert held[n] < square / 8
        assert held[n] <= 8 * n_edges + 8 * (H * n + 1) + 16 * n + 4096
        assert np.array_equal(found._core.edges()[2] > 0, np.ones(n_edges, bool))
    assert held[512] < 3 * held[256]


def test_edges_of_a_run_whose_pattern_would_not_fit():
    """2.4 GB of patterns under a limit of the system far below that."""
    code = (
        "import json, resource, numpy as np, reliability as r\n"
        "m = r.model(n_layer=4, n_head=16, d_model=64, n_ctx=3072, gate_bias=-6.0)\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4096 * pages + 2**29,) * 2)\n"
        "prompt = np.random.default_rng(0).integers(0, 96, 3072)\n"
        "run = m.run(prompt, 'edges', logits='none', max_bytes=2**28, threads=2)\n"
        "text = ''\n"
        "try: m.run(prompt, 'pattern', max_bytes=2**62)\n"
        "except MemoryError as error: text = str(error)\n"
        "print(json.dumps([int(run._core.edges()[0][-1]), text]))\n"
    )
    n_edges, text = reliability.child("-c", code)
    assert 0 < n_edges < 4 * 16 * 3072 * 3072 / 100
    assert "2.4" in text
    assert "GB" in text


# -------------------------------------------------------------------------------------------------- limits


def test_max_bytes_names_the_size_and_what_else_to_do():
    """16 heads, 12 layers, 1,000 tokens: the pattern alone has 768 MB, and nothing is allocated."""
    model = reliability.model(n_layer=12, n_head=16, n_ctx=1000)
    prompt = np.zeros(1000, np.int32)
    before = counters()
    with pytest.raises(MemoryError, match=r"768 MB.*max_bytes=100000000.*edges"):
        model.run(prompt, max_bytes=100_000_000)
    assert counters() == before
    with pytest.raises(MemoryError, match=r"[kM]B.*max_bytes=1000000; "):
        model.gradients(prompt, max_bytes=1_000_000)
    with pytest.raises(MemoryError, match=r"GB.*max_bytes"):
        model.run_with_cache(prompt, max_bytes=1_000_000)
    assert model.run(prompt, "edges", edge_threshold=0.5, logits="none", max_bytes=100_000_000).recorded == (
        "edges",
    )


@pytest.mark.parametrize("what", ["all", "edges", "gradients"])
def test_max_bytes_covers_the_whole_call(what):
    """The smallest max_bytes that is enough is above what the result keeps plus the least scratch."""
    model = reliability.model(gated=False)
    if what == "gradients":
        call, scratch = functools.partial(model.gradients, TOKENS, threads=1), 4 * L * T * E
    elif what == "edges":
        model, prompt = reliability.model(gated=False, n_head=32, n_ctx=100), np.zeros(100, np.int32)
        call, scratch = functools.partial(model.run, prompt, ("all", "edges"), threads=1), 4 * 100 * E
    else:
        call, scratch = functools.partial(model.run, [TOKENS] * 30, "all", threads=1), 4 * 30 * T * E
    low, high = 0, 2**30
    while high - low > 1:
        middle = (low + high) // 2
        try:
            call(max_bytes=middle)
        except MemoryError:
            low = middle
        else:
            high = middle
    before = counters()[0]
    found = call(max_bytes=high)
    assert counters()[0] - before + scratch <= high
    del found


def test_open_edges_can_pass_max_bytes():
    """The number of edges is known late; the sentence says so."""
    model = reliability.model(gated=False, n_layer=4, n_head=32, d_model=64, n_ctx=200)
    prompt = np.zeros(200, np.int32)
    before = counters()
    with pytest.raises(MemoryError, match=r"edges.*MB that max_bytes leaves.*edge_threshold"):
        model.run(prompt, "edges", logits="none", max_bytes=3_000_000, threads=1)
    assert counters() == before


def test_what_objects_say_of_themselves(model, spoken):
    text = repr(spoken)
    assert all(part in text for part in ("spoken", "2 layers x 4 heads", "gated", "float32"))
    assert "dense" in repr(reliability.model(gated=False))
    assert "8 tokens" in repr(model.run(TOKENS))
    assert "3 prompts" in repr(model.run(PROMPTS))
    assert "loss" in repr(model.gradients(TOKENS))
    assert "<table" in model.run(TOKENS, "all")._repr_html_()
    assert model.n_parameters == sum(array.size for array in model.parameters().values())
    assert len(model.digest) == 64


def test_digest_follows_the_weights():
    model = reliability.model()
    before, version = model.digest, model.version
    assert model.copy().digest == before
    model.assign({"ln_f.bias": model.parameter("ln_f.bias").copy()})
    assert model.digest == before
    assert model.version > version
    model.assign({"ln_f.bias": np.ones(E)})
    assert model.digest != before
    assert reliability.model(gate_bias=0.25).digest != before


def test_results_of_an_old_run_after_a_change_of_weights():
    """What needs the weights is refused, with what to do; what the run holds stays."""
    model = reliability.model()
    found = model.run(TOKENS)
    pattern = found.pattern.copy()
    model.assign({"ln_f.bias": np.ones(E)})
    for call in (found.value_norms, lambda: found.entry_scores([0], [0], [1], [0])):
        with pytest.raises(RuntimeError, match="run again"):
            call()
    assert np.array_equal(found.pattern, pattern)
