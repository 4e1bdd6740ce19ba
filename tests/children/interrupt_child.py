"""Processes of test_interrupt.py: python interrupt_child.py WHAT SIZE COUNT. Prints what it found as JSON.

Each interrupt comes at a random moment of a call that would go on for ever. Its delay is measured twice: as
time, and as processor time of this process, which does not grow when the machine is busy with something else.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import reliability
from places import TESTS
from reliability import bits_of_model, bits_of_run, counters, micro_batch, new_folder, step_options

import attnsparse as asp
from attnsparse import _core
from attnsparse._core_types import Curve
from attnsparse.circuits import (
    component_acdc,
    component_masks,
    component_scores,
    component_values,
    effects,
    node_values,
    patching_sweep,
    path_patch,
)
from attnsparse.tasks import CustomMetric
from attnsparse.tasks.task import Task

SIZES = {
    "small": {"n_layer": 3, "n_head": 8, "d_model": 192, "d_mlp": 768, "n_ctx": 384, "n_vocab": 6000},
    "gpt2": {"n_layer": 12, "n_head": 12, "d_model": 768, "d_mlp": 3072, "n_ctx": 1024, "n_vocab": 50257},
}


def large_model(size: str) -> asp.Model:
    """Random weights without the detour over float64, which would take long at GPT-2's size."""
    config = asp.Config(**SIZES[size], d_head=SIZES[size]["d_model"] // SIZES[size]["n_head"], gated=True)
    random = np.random.default_rng(0)
    shapes = config.parameter_shapes()
    return asp.Model(
        config,
        {
            name: 0.05 * random.standard_normal(shape, dtype=np.float32)
            + (name.endswith(".weight") and len(shape) == 1)
            for name, shape in shapes.items()
        },
    )


class Interrupt(threading.Thread):
    """Once started, sends SIGINT to this process after some seconds, and remembers when."""

    def __init__(self, after: float, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.after, self.number = after, number

    def run(self) -> None:
        time.sleep(self.after)
        self.sent, self.used = time.monotonic(), time.process_time()
        os.kill(os.getpid(), self.number)


def interrupted(call: Callable[[], Any], after: float) -> tuple[float, float]:
    """Seconds, and of the processor, between SIGINT and KeyboardInterrupt in endless calls of `call`."""
    sender = Interrupt(after)
    try:
        sender.start()
        while True:
            call()
    except KeyboardInterrupt:
        caught, used = time.monotonic(), time.process_time()
    sender.join()
    return caught - sender.sent, used - sender.used


def moments_of(call: Callable[[], Any], count: int) -> list[float]:
    """Random moments within one call and a bit of the next; counts a call as at least 0.1 s, at most 2 s."""
    begin = time.monotonic()
    call()
    duration = min(max(time.monotonic() - begin, 0.1), 2)
    return np.random.default_rng(0).uniform(0, 1.2 * duration, count).tolist()


def delays(
    call: Callable[[], Any], count: int, check: Callable[[], bool], *, alone: bool = True
) -> dict[str, Any]:
    """Delays of `count` interrupts, and whether `check` held after each and, if no other thread computes, no
    byte of the core was left over."""
    moments = moments_of(call, count)
    before, found, fine = counters(), [], True
    for after in moments:
        found.append(interrupted(call, after))
        fine = fine and check() and (not alone or counters() == before)
    seconds, processor = (sorted(values) for values in zip(*found))
    return {"seconds": seconds, "processor": processor, "fine": fine, "runnable": runnable()}


def runnable() -> int:
    """Threads of the whole machine that want a processor now, this one included; 0 if nobody says."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].split("/")[0])
    except OSError:
        return 0


def run(size: str, count: int) -> dict[str, Any]:
    """A long forward pass with the LM head."""
    model = large_model(size)
    tokens = np.arange(model.config.n_ctx, dtype=np.int32)
    expected = bits_of_run(model.copy().run(tokens[:20]))

    def check() -> bool:
        return bits_of_run(model.run(tokens[:20])) == expected

    return delays(lambda: model.run([tokens, tokens], record="pattern"), count, check)


def generation(size: str, count: int) -> dict[str, Any]:
    """Long prompts, tokens drawn among a sorted vocabulary; what an interrupt leaves is a text's begin."""
    model = large_model(size)
    prompt = np.arange(40, dtype=np.int32)
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "stop_at_eos": False}
    expected = model.copy().generate(prompt, 20, **options).new_tokens
    part = expected[:0]

    def generate() -> None:
        nonlocal part
        try:
            model.generate([prompt, np.arange(200, dtype=np.int32)], 100, n_samples=2, **options)
        except asp.model.GenerationInterrupted as stop:
            part = stop.generation[0].new_tokens
            raise

    def check() -> bool:
        again = model.generate(prompt, 20, **options).new_tokens
        return bool((again == expected).all() and (part[:20] == expected[: len(part)]).all())

    return delays(generate, count, check)


def gradients(size: str, count: int) -> dict[str, Any]:
    """Forward and backward."""
    model = large_model(size)
    tokens = np.arange(model.config.n_ctx, dtype=np.int32)
    expected = bits_of_run(model.copy().gradients(tokens[:20], wrt=("z", "resid_pre")))

    def check() -> bool:
        return bits_of_run(model.gradients(tokens[:20], wrt=("z", "resid_pre"))) == expected

    return delays(lambda: model.gradients(tokens), count, check)


def long_task(model: asp.Model) -> Task:
    """Two pairs of prompts of 40 tokens, one in each half."""
    rows = np.arange(160, dtype=np.int32).reshape(4, 40)
    answers, wrong = ((np.array([token], np.int32),) * 2 for token in (5, 7))
    halves = np.array([True, False])
    return Task(
        "long", "logit_diff", None, tuple(rows[:2]), tuple(rows[2:]), answers, wrong, ("",) * 2, halves
    )


def sweep(size: str, count: int) -> dict[str, Any]:
    """Every head at every position, each alone."""
    model = large_model(size)
    task = long_task(model)
    items = effects.candidates(model, task, "head_position")
    expected = effects.knock_out(model, task, items[:7]).tobytes()

    def check() -> bool:
        return effects.knock_out(model, task, items[:7]).tobytes() == expected

    return delays(lambda: effects.knock_out(model, task, items), count, check)


def patching(size: str, count: int) -> dict[str, Any]:
    """The k of every head at every position."""
    model = large_model(size)
    task = long_task(model)
    expected = patching_sweep(model, task, "resid", by=["layer"]).values.tobytes()

    def check() -> bool:
        return patching_sweep(model, task, "resid", by=["layer"]).values.tobytes() == expected

    return delays(lambda: patching_sweep(model, task, "k", by=("layer", "head", "position")), count, check)


def paths(size: str, count: int) -> dict[str, Any]:
    """Every sender into every head of the last layer."""
    model = large_model(size)
    task = long_task(model)
    layer = model.config.n_layer - 1
    receivers = [f"a{layer}.h{head}<{letter}>" for head in range(model.config.n_head) for letter in "qkv"]
    expected = path_patch(model, task, "m0", receivers).values.tobytes()

    def check() -> bool:
        return path_patch(model, task, "m0", receivers).values.tobytes() == expected

    return delays(lambda: path_patch(model, task, None, receivers, each="both"), count, check)


def attribution(size: str, count: int) -> dict[str, Any]:
    """Integrated gradients of all edges."""
    model = large_model(size)
    task = long_task(model)
    expected = effects.attribution(model, task, "edge").tobytes()

    def check() -> bool:
        return effects.attribution(model, task, "edge").tobytes() == expected

    return delays(lambda: effects.attribution(model, task, "edge", steps=30), count, check)


def circuit(size: str, count: int) -> dict[str, Any]:
    """A whole search, Python between the calls of the core included."""
    model = large_model(size)
    task = long_task(model)

    def find() -> asp.Circuit:
        return asp.find_circuit(
            model, task, unit="edge", method="ig", steps=3, sizes=range(0, 3000, 40), n_bootstrap=200
        )

    expected = effects.metric_values(model, task).tobytes()

    def check() -> bool:
        return effects.metric_values(model, task).tobytes() == expected

    return delays(find, count, check)


def acdc(size: str, count: int) -> dict[str, Any]:
    """Component edges that are taken away one after the other."""
    model = large_model(size)
    task = long_task(model)
    expected = effects.metric_values(model, task).tobytes()

    def check() -> bool:
        return effects.metric_values(model, task).tobytes() == expected

    return delays(lambda: component_acdc(model, task, 1e-9, metric="kl"), count, check)


def component_edges(size: str, count: int) -> dict[str, Any]:
    """Scores of all component edges."""
    model = large_model(size)
    task = long_task(model)
    expected = component_scores(model, task, level="node").scores.tobytes()

    def check() -> bool:
        return component_scores(model, task, level="node").scores.tobytes() == expected

    return delays(lambda: component_scores(model, task, method="eap-ig-activations", steps=2), count, check)


def component_exact(size: str, count: int) -> dict[str, Any]:
    """Every component edge alone, kept in a file, from which the next call continues."""
    model = large_model(size)
    task, path = long_task(model), new_folder() / "kept"
    expected = component_scores(model, task, level="node").scores.tobytes()

    def check() -> bool:
        path.with_name("kept.search.safetensors").unlink(missing_ok=True)
        return component_scores(model, task, level="node").scores.tobytes() == expected

    return delays(lambda: component_scores(model, task, method="exact", resume=path), count, check)


def component_circuits(size: str, count: int) -> dict[str, Any]:
    """Circuits of component edges and of neurons."""
    model = large_model(size)
    task = long_task(model)
    scores = component_scores(model, task)
    masks = np.random.default_rng(0).random((20, *scores.scores.shape)) < 0.3
    neurons = np.random.default_rng(0).random((4, len(scores.senders), model.config.d_model)) < 0.3
    expected = component_values(model, task, masks[:1]).tobytes()

    def both() -> None:
        component_values(model, task, masks)
        node_values(model, task, neurons)

    def check() -> bool:
        return component_values(model, task, masks[:1]).tobytes() == expected

    return delays(both, count, check)


def masks(size: str, count: int) -> dict[str, Any]:
    """Training of masks of component edges."""
    model = large_model(size)
    task = long_task(model)
    expected = effects.metric_values(model, task).tobytes()

    def check() -> bool:
        return effects.metric_values(model, task).tobytes() == expected

    return delays(lambda: component_masks(model, task, steps=3), count, check)


def curves(size: str, count: int) -> dict[str, Any]:
    """Many resamples of a curve, how many items they need, and their band."""
    del size
    random = np.random.default_rng(0)
    full = random.random(300) + 1
    values = np.linspace(0, 1, 100)[:, None] * full * random.uniform(0.9, 1.1, (100, 300))
    curve = Curve(values, full, np.zeros(300), "mib", np.linspace(0, 1, 100), np.arange(100))

    def bits(n: int) -> bytes:
        found = _core.curve_bootstrap(curve, n, 3)
        needed = _core.curve_needed_interval(curve, 0.9, n, 3, 0.9)
        ratio = _core.curve_ratio(curve, curve, 0.9, False, n, 3, 0.9)
        return repr((needed, ratio)).encode() + np.stack(_core.curve_band(found, 0.9)).tobytes()

    expected = bits(50)
    return delays(lambda: bits(20_000), count, lambda: bits(50) == expected)


def metric(size: str, count: int) -> dict[str, Any]:
    """A sweep by a metric in Python: Ctrl-C comes in the core or in the metric."""
    model = large_model(size)
    task = long_task(model)
    items = effects.candidates(model, task, "head")
    own = CustomMetric(lambda logits, prompts: [float(sum(row[:500].tolist())) for row in logits])
    expected = effects.knock_out(model, task, items[:3], metric=own).tobytes()

    def check() -> bool:
        return effects.knock_out(model, task, items[:3], metric=own).tobytes() == expected

    return delays(lambda: effects.knock_out(model, task, items, metric=own), count, check)


def train(size: str, count: int) -> dict[str, Any]:
    """Training: afterwards model and trainer are those of exactly the steps that were completed."""
    model = large_model(size)
    twin = model.copy()
    trainer, untouched = _core.Trainer(model._core), _core.Trainer(twin._core)
    batch = micro_batch((model.config.n_ctx,), model.config.n_vocab)

    def step(one: Any, number: int) -> None:
        one.step([batch, batch], **step_options(seed=number))

    def check() -> bool:
        while untouched.step_count < trainer.step_count:
            step(untouched, untouched.step_count)
        return bits_of_model(model, trainer) == bits_of_model(twin, untouched)

    step(untouched, 0)  # its scratch is there before bytes are counted
    return delays(lambda: step(trainer, trainer.step_count), count, check) | {"steps": trainer.step_count}


def edges(size: str, count: int) -> dict[str, Any]:
    """Single edges, each alone."""
    model = large_model(size)
    task = long_task(model)
    items = effects.candidates(model, task, "edge")[:20_000]
    expected = effects.knock_out(model, task, items[:7]).tobytes()

    def check() -> bool:
        return effects.knock_out(model, task, items[:7]).tobytes() == expected

    return delays(lambda: effects.knock_out(model, task, items), count, check)


def load(size: str, count: int) -> dict[str, Any]:
    """A model from its folder."""
    model, folder = large_model(size), new_folder()
    model.save(folder)
    expected = bits_of_model(model)

    def check() -> bool:
        return bits_of_model(asp.load(folder)) == expected

    return delays(lambda: asp.load(folder), count, check)


def save(size: str, count: int) -> dict[str, Any]:
    """A model into a folder that has one: it stays, or it is the new one, and nothing is left over."""
    model, other, folder = large_model(size), large_model(size), new_folder()
    other.assign({"ln_f.bias": other.parameter("ln_f.bias") + 1})
    model.save(folder)
    known = bits_of_model(model), bits_of_model(other)

    def check() -> bool:
        names = sorted(path.name for path in folder.iterdir())
        return names == ["config.json", "model.safetensors"] and bits_of_model(asp.load(folder)) in known

    return delays(lambda: other.save(folder), count, check)


def checkpoint(size: str, count: int) -> dict[str, Any]:
    """A training checkpoint, written and read."""
    import tiny_training

    model, path = large_model(size), new_folder() / "a.safetensors"
    options = tiny_training.options(5, gate_bias=1.0, edge_weight=1.0)
    trainer = asp.Trainer(model, tiny_training.data(), options)
    expected = bits_of_model(model, trainer._engine)
    trainer.save(path)

    def check() -> bool:
        found = asp.Trainer.resume(path, tiny_training.data())
        left = sorted(item.name for item in path.parent.iterdir())
        return bits_of_model(found.model, found._engine) == expected and left == [
            "a.safetensors",
            "history.csv",
        ]

    def both() -> None:
        trainer.save(path)
        asp.Trainer.resume(path, tiny_training.data())

    return delays(both, count, check)


def long_text(size: str) -> tuple[Any, str, str]:
    """A tokenizer of the library, a text, and ten megabytes of it, one for the small size."""
    import tokenizers

    text = (TESTS / "oracle" / "oracle.py").read_text()
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [text],
        tokenizers.trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False),
    )
    return inner, text, text * (10 ** (7 if size == "gpt2" else 6) // len(text))


def tokenise(size: str, count: int) -> dict[str, Any]:
    """A long text that is encoded in blocks."""
    inner, text, long = long_text(size)
    tokenizer = asp.Tokenizer(inner)
    expected = tokenizer.encode(text)
    return delays(lambda: tokenizer.encode(long), count, lambda: tokenizer.encode(text) == expected)


def normalise(size: str, count: int) -> dict[str, Any]:
    """A long text that its normalizer must see whole."""
    import tokenizers

    inner, text, long = long_text(size)
    inner.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex("e\\s*x"), "ex")
    tokenizer = asp.Tokenizer(inner)
    expected = tokenizer.encode(text)
    return delays(lambda: tokenizer.encode(long), count, lambda: tokenizer.encode(text) == expected)


def decode(size: str, count: int) -> dict[str, Any]:
    """Millions of tokens."""
    inner, _, long = long_text(size)
    tokenizer = asp.Tokenizer(inner)
    ids = tokenizer.encode(long)
    some = ids[:100]
    expected = tokenizer.decode(some)
    return delays(lambda: tokenizer.decode(ids), count, lambda: tokenizer.decode(some) == expected)


def coders(size: str, count: int) -> dict[str, Any]:
    """Training of transcoders; then a small one, which ends as one that was not interrupted."""
    import tiny_training

    from attnsparse.training.data import TokenData
    from attnsparse.transcoders.trainer import TranscoderTrainer

    model, folder = large_model(size), new_folder()
    data = TokenData(np.arange(5000) % model.config.n_vocab, model.config.n_ctx, 1)
    found = delays(TranscoderTrainer(model, data, steps=10**6, n_features=600).step, count, lambda: True)
    stopped, whole = (
        TranscoderTrainer(tiny_training.model(), tiny_training.data(), steps=10**6, n_features=7, aux_k=4)
        for _ in range(2)
    )
    for after in np.random.default_rng(0).uniform(0, 0.02, count):
        interrupted(stopped.step, float(after))
    stopped.save(folder / "stopped.safetensors")
    while whole.step_count < stopped.step_count:
        whole.step()
    whole.save(folder / "whole.safetensors")
    same = (folder / "whole.safetensors").read_bytes() == (folder / "stopped.safetensors").read_bytes()
    return found | {"fine": found["fine"] and same}


def graph(size: str, count: int) -> dict[str, Any]:
    """An attribution graph of a longer prompt."""
    from graph_toys import random_transcoders

    model = large_model(size)
    transcoders = random_transcoders(model, 300)
    tokens = np.arange(64 if size == "gpt2" else 32, dtype=np.int32)

    def trace(prompt: np.ndarray) -> bytes:
        return asp.attribution_graph(model, transcoders, prompt, progress=False).weights.tobytes()

    expected = trace(tokens[:6])
    return delays(lambda: trace(tokens), count, lambda: trace(tokens[:6]) == expected)


def checks(size: str, count: int) -> dict[str, Any]:
    """What a graph claims, checked in the model, and the score of an entry split into pairs of sources."""
    from graph_toys import random_transcoders

    model = large_model(size)
    tokens = np.arange(64 if size == "gpt2" else 32, dtype=np.int32)
    made = asp.attribution_graph(model, random_transcoders(model, 300), tokens, progress=False)
    removed = [int(node) for node in made.select("token")][:2]
    last = len(tokens) - 1

    def call() -> bytes:
        split = made.score_pairs(model.config.n_layer - 1, 0, last, 0)
        return made.check(removed, progress=False).actual.to_numpy().tobytes() + split.pairs.tobytes()

    expected = call()
    return delays(call, count, lambda: call() == expected)


def worker(size: str, count: int) -> dict[str, Any]:
    """A call in another thread: Ctrl-C is the main thread's, at once; the call goes on to its end."""
    model = large_model(size)
    tokens = np.arange(model.config.n_ctx, dtype=np.int32)
    expected, results = model.run(tokens).logits.tobytes(), []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            results.append(model.run(tokens).logits.tobytes() == expected)

    thread = threading.Thread(target=work)
    thread.start()
    found = delays(lambda: time.sleep(0.05), count, lambda: True, alone=False)
    stop.set()
    thread.join()
    return found | {"fine": len(results) > 0 and all(results)}


def features(size: str, count: int) -> dict[str, Any]:
    """Active features of a long prompt, and the forward pass with replaced MLPs."""
    model = large_model(size)
    config, random, n = model.config, np.random.default_rng(0), 8000
    layers = range(config.n_layer)
    arrays = [
        [(0.05 * random.standard_normal(shape, dtype=np.float32)) for _ in layers]
        for shape in ((n, config.d_model), n, (n, config.d_model), config.d_model)
    ]
    transcoders = asp.Transcoders(asp.ArraySource(*arrays))
    tokens = np.arange(config.n_ctx, dtype=np.int32)

    def both(prompt: np.ndarray) -> bytes:
        found = transcoders.features(model, prompt)
        run = transcoders.replacement_run(model, prompt, errors=found)
        return found.feature.tobytes() + found.error.tobytes() + run.logits.tobytes()

    expected = both(tokens[:20])
    return delays(lambda: both(tokens), count, lambda: both(tokens[:20]) == expected)


def twice(size: str, count: int) -> dict[str, Any]:
    """A second Ctrl-C right after the first does no harm."""
    model = large_model(size)
    tokens = np.arange(model.config.n_ctx, dtype=np.int32)
    expected, n_caught = bits_of_run(model.run(tokens[:20])), 0
    for i in range(count):
        senders = [Interrupt(0.05), Interrupt(0.05 + 0.004 * i)]
        try:
            for sender in senders:
                sender.start()
            while True:
                model.run([tokens, tokens])
        except KeyboardInterrupt:
            n_caught += 1
        try:
            time.sleep(0.1)
            for sender in senders:
                sender.join()
        except KeyboardInterrupt:
            n_caught += 1
            for sender in senders:
                sender.join()
    return {"caught": n_caught, "fine": bits_of_run(model.run(tokens[:20])) == expected}


class Own(Exception):
    """What the user's handler raises."""


def handlers(size: str, count: int) -> dict[str, Any]:
    """The user's own handlers run during a call: it goes on, or ends with what the handler raises. They may
    also use the library."""
    model, other = large_model(size), reliability.model()
    tokens = np.arange(model.config.n_ctx, dtype=np.int32)
    prompts = [tokens] * 10  # long enough to be in the call when the signal comes
    expected, small = bits_of_run(model.run(prompts)), bits_of_run(other.run(reliability.PROMPTS))
    calls, raised, same, nested, refused = [0], 0, True, [], []

    def counts(*_: object) -> None:
        calls[0] += 1

    def uses(*_: object) -> None:
        nested.append(bits_of_run(other.run(reliability.PROMPTS)) == small)
        model.run(tokens[:3])
        try:
            model.assign({"ln_f.bias": model.parameter("ln_f.bias").copy()})
        except RuntimeError as error:
            refused.append(str(error))

    def raises(*_: object) -> None:
        raise Own

    for handler, n in ((counts, count), (uses, count), (raises, count)):
        for _ in range(n):
            signal.signal(signal.SIGUSR1, handler)
            sender = Interrupt(0.02, signal.SIGUSR1)
            try:
                sender.start()
                found = bits_of_run(model.run(prompts))
                while handler is raises:
                    model.run(prompts)
                same = same and found == expected
            except Own:
                raised += 1
            sender.join()
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    same = same and bits_of_run(model.run(prompts)) == expected
    return {"calls": calls[0], "raised": raised, "same": same, "nested": nested, "refused": len(refused)}


def trainer_object(size: str, count: int) -> dict[str, Any]:
    """asp.Trainer.run: after every interrupt its history has exactly the steps that were done."""
    del size
    import tiny_training

    n_steps, fine, n_caught = 10**6, True, 0
    trainer = asp.Trainer(tiny_training.model(), tiny_training.data(), tiny_training.options(n_steps))
    random = np.random.default_rng(0)
    for after in random.uniform(0, 0.1, count):
        sender = Interrupt(float(after))
        try:
            sender.start()
            trainer.train(progress=False)
        except KeyboardInterrupt:
            n_caught += 1
        sender.join()
        fine = fine and len(trainer._history.results) == trainer.step_count
    done = trainer.step_count
    whole = asp.Trainer(tiny_training.model(), tiny_training.data(), tiny_training.options(n_steps))
    whole.train(progress=False, until=done)
    same = bits_of_model(trainer.model, trainer._engine) == bits_of_model(whole.model, whole._engine)
    return {"caught": n_caught, "fine": fine, "same": same, "steps": done}


COMPUTING = (
    run,
    generation,
    gradients,
    sweep,
    patching,
    paths,
    edges,
    attribution,
    circuit,
    acdc,
    component_edges,
    component_exact,
    component_circuits,
    masks,
    curves,
    metric,
    graph,
    checks,
    train,
    features,
    coders,
)
OTHERS = (load, save, checkpoint, tokenise, normalise, decode, worker, twice, handlers, trainer_object)
WHATS = {f.__name__: f for f in (*COMPUTING, *OTHERS)}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background of a shell ignore it
    found = WHATS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
    print(json.dumps(found), flush=True)
