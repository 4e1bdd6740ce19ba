"""The command line: what it prints, its exit codes, and that no error shows a traceback unless asked."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, StringIO, TextIOWrapper

import numpy as np
import pandas as pd
import pytest

import attnsparse as asp
from attnsparse import recipes
from attnsparse.cli import info as cli_info
from attnsparse.cli import main as cli

PROMPT = 'The opposite of "large" is "'
WORDS = ["The", " opposite", " of", ' "', "large", '"', " is", "<|endoftext|>"]
MODULE = [sys.executable, "-m", "attnsparse"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A small gated model with a tokenizer, on disk."""
    config = asp.Config(
        n_layer=2, n_head=3, d_model=12, d_head=4, d_mlp=16, n_ctx=10, n_vocab=len(WORDS), gated=True
    )
    tokenizer = asp.Tokenizer.from_words(WORDS, bos="<|endoftext|>")
    path = tmp_path_factory.mktemp("models") / "small"
    asp.Model.initialised(config, 1, std=0.5, tokenizer=tokenizer, name="small").save(path)
    return str(path)


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


def test_heads_as_text(folder, capsys):
    assert run("heads", folder, "--prompt", PROMPT, "--key", "5", "--query", "8", "--base", "1") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].endswith("""6:'"'  7:' is'  8:' "'""")
    assert "positions from 1: 1:'The'" in out
    assert len(out.splitlines()) == 2 + 6


def test_reproduce_draws_and_prints(tmp_path, capsys):
    assert run("reproduce", "addition", "--out", str(tmp_path / "figures")) == 0
    out = capsys.readouterr().out
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"addition.png", "addition.svg", "addition.pdf", "addition.txt", "addition-models.csv"} <= names
    assert all(name in out for name in names)
    table = pd.read_csv(tmp_path / "figures" / "addition-models.csv")
    assert table.to_string(index=False) in out
    assert (tmp_path / "figures" / "addition.txt").read_text() in out
    assert run("reproduce", "addition", "--out", str(tmp_path / "figures"), "--quiet") == 0
    assert capsys.readouterr().out == ""


def test_heads_as_csv_and_json_are_the_table(folder, capsys):
    arguments = ("heads", folder, "--prompt", PROMPT, "--key", "large", "--query", "-1")
    expected = asp.load(folder).run(PROMPT).heads(key="large", query=-1)
    assert run(*arguments, "--csv") == 0
    table = pd.read_csv(StringIO(capsys.readouterr().out))
    assert table.columns.tolist() == expected.columns.tolist()
    assert np.allclose(table["weight"], expected["weight"])
    assert run(*arguments, "--json") == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["layer"] for record in records] == expected["layer"].tolist()


def test_prepend_bos_moves_positions(folder, capsys):
    arguments = ("heads", folder, "--prompt", PROMPT, "--prepend-bos", "--json")
    assert run(*arguments, "--key", "large", "--query", "8") == 0
    assert {record["key_position"] for record in json.loads(capsys.readouterr().out)} == {5}


def test_edges(folder, capsys):
    expected = asp.load(folder).run(PROMPT).open_edges()
    assert run("edges", folder, "--prompt", PROMPT, "--csv") == 0
    assert len(pd.read_csv(StringIO(capsys.readouterr().out))) == len(expected) > 0
    assert run("edges", folder, "--prompt", PROMPT, "--csv", "--base", "1") == 0
    table = pd.read_csv(StringIO(capsys.readouterr().out))
    assert table["query_position"].tolist() == (expected["query_position"] + 1).tolist()
    assert run("edges", folder, "--prompt", PROMPT, "--threshold", "2") == 0
    assert capsys.readouterr().out.endswith("(none)\n")


def test_info(folder, capsys):
    assert run("info", folder) == 0
    out = capsys.readouterr().out
    for text in (
        asp.__version__,
        "BLAS core:",
        "instruction set:",
        "threads:",
        "2 layers x 3 heads",
    ):
        assert text in out
    same = "yes, bit for bit" if asp.build_info()["batch_invariant"] else "no"
    assert re.search(rf"^prompt alone = in batch: +{same}$", out, flags=re.M)
    assert asp.load(folder).digest in out


@pytest.mark.parametrize(
    ("model", "activation"), [("demo-dense", "topk, k = 6"), ("demo-sparse", "jump_relu")]
)
def test_info_about_transcoders(capsys, model, activation):
    assert run("info", f"{model}-transcoders") == 0
    out = capsys.readouterr().out.splitlines()
    for line in (
        f"of the model:             {model}",
        "kind:                     one per layer",
        "shape:                    12 layers x 512 to 1,024 features, width 96",
        f"activation:               {activation}",
        "reads:                    ln2.hook_normalized",
        "writes:                   hook_mlp_out",
    ):
        assert line in out


def test_a_set_of_transcoders_is_no_model(capsys):
    assert run("edges", "demo-sparse-transcoders", "--prompt", "x") == 1
    assert (
        "'demo-sparse-transcoders' is a set of transcoders: see load_transcoders" in capsys.readouterr().err
    )


GRAPH = ("graph", "demo-sparse", "--transcoders", "demo-sparse-transcoders", "--prompt", PROMPT)


def test_graph_prints_its_summary(capsys):
    assert run(*GRAPH, "--target", "small", "--wrong", "cold", "hot") == 0
    model = asp.load("demo-sparse")
    transcoders = asp.load_transcoders("demo-sparse-transcoders", model)
    graph = asp.attribution_graph(model, transcoders, PROMPT, "small", wrong=["cold", "hot"])
    [summary] = graph.summary().to_dict("records")
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == list(summary)
    assert int(lines["n_feature"]) == summary["n_feature"]
    assert float(lines["replacement"]) == pytest.approx(summary["replacement"], rel=1e-3)


def test_graph_writes_what_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ("--html", "page.html", "--figure", "graph.png", "--json", "viewer", "--out", "whole")
    assert run(*GRAPH, *options, "--base", "1", "--labels", "demo-sparse-transcoders") == 0
    written = "page.html, graph.png, viewer/graph.json, whole.graph.safetensors"
    assert capsys.readouterr().out.splitlines()[-1] == f"written: {written}"
    assert all((tmp_path / name).is_file() for name in written.split(", "))
    whole, named = asp.load_graph("whole"), asp.load_feature_labels("demo-sparse-transcoders")
    assert whole.pruned is None
    shown = {key: label for key, label in zip(zip(whole.layer, whole.feature), whole.labels) if key in named}
    assert shown
    assert all(label == named[key] for key, label in shown.items())
    assert (
        "from 1" in (tmp_path / "page.html").read_text() or '"base":1' in (tmp_path / "page.html").read_text()
    )


def test_an_old_blas_core_is_named():
    info = {"isa": "avx512", "blas_core": "Prescott"}
    assert "takes this CPU for a Prescott" in cli_info.old_blas_core(info)
    assert cli_info.old_blas_core({**info, "blas_core": "SkylakeX"}) is None
    assert cli_info.old_blas_core({**info, "isa": "baseline"}) is None


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["heads", "model"],
        ["heads", "model", "--prompt", "x", "--key", "1", "--query", "2", "--base", "2"],
        ["edges", "model", "--prompt", "x", "--csv", "--json"],
        ["graph", "model", "--prompt", "x"],
        ["train", "nothing", "--out", "x"],
        ["train", "addition"],
        ["reproduce", "subtraction"],
    ],
)
def test_wrong_usage_is_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: attnsparse" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["edges", "no-such-model", "--prompt", "x"],
        ["edges", "FOLDER", "--prompt", "unknown words"],
        ["heads", "FOLDER", "--prompt", PROMPT, "--key", "50", "--query", "1"],
        ["heads", "FOLDER", "--prompt", PROMPT, "--key", "small", "--query", "1"],
        ["info", "no-such-model"],
    ],
)
def test_a_failed_job_is_1_and_one_line(arguments, folder, capsys):
    arguments = [folder if argument == "FOLDER" else argument for argument in arguments]
    assert cli.main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("attnsparse: ")
    assert err.count("\n") == 1


def test_debug_shows_the_error_itself(folder):
    with pytest.raises(ValueError):
        cli.main(["edges", folder, "--prompt", "unknown words", "--debug"])


def test_unexpected_errors_are_named(monkeypatch, capsys):
    monkeypatch.setattr(cli_info, "describe_build", lambda: {}["x"])
    assert run("info") == 1
    assert capsys.readouterr().err == "attnsparse: KeyError: 'x' (--debug shows the traceback)\n"


def test_every_help_ends_with_an_example(capsys):
    for command in ("reproduce", "heads", "edges", "graph", "train", "info"):
        with pytest.raises(SystemExit) as caught:
            cli.main([command, "--help"])
        assert caught.value.code == 0
        assert f"Example: attnsparse {command}" in capsys.readouterr().out


@pytest.mark.serial
def test_train_calls_the_recipe(monkeypatch, capsys, tmp_path):
    calls = []

    class Fake(recipes.Recipe):
        def train(self, out, **options):
            calls.append((out, options))
            return [out / "model"]

    monkeypatch.setitem(recipes.RECIPES, "addition", Fake("addition", "", (), ""))
    assert run("train", "addition", "--out", str(tmp_path), "--quiet") == 0
    assert calls.pop() == (
        tmp_path,
        {"seed": None, "resume": False, "threads": None, "quiet": True, "comm": None},
    )
    assert run("train", "addition", "--out", str(tmp_path), "--seed", "4", "--threads", "1", "--resume") == 0
    assert calls == [(tmp_path, {"seed": 4, "resume": True, "threads": 1, "quiet": False, "comm": None})]
    assert capsys.readouterr().out == f"{tmp_path / 'model'}\n"


def test_version_is_quick():
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        done = subprocess.run([*MODULE, "--version"], check=True, capture_output=True, text=True)
        times.append(time.perf_counter() - begin)
    assert done.stdout == f"attnsparse {asp.__version__}\n"
    assert min(times) < 2
    heavy = "('pandas', 'matplotlib', 'tokenizers', 'safetensors')"
    code = (
        f"import sys, attnsparse.cli.main as c; c._parser(); print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_ctrl_c_is_130_and_one_line(tmp_path):
    command = [*MODULE, "train", "addition", "--out", str(tmp_path), "--quiet"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "checkpoints" / "dense").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "attnsparse: stopped; the same command with --resume continues from the last checkpoint\n"


def test_a_closed_pipe_is_no_traceback(folder):
    command = [*MODULE, "edges", folder, "--prompt", PROMPT]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert done.stderr == ""


# ---------------------------------------------------------------------------------- strange texts

STRANGE = "\x1b]0;title\x07\x9b2J\u202e\n"
ESCAPED = r"\x1b]0;title\x07\x9b2J\u202e\n"
ODD = "a\x1b\u202e\x9b\n"


@pytest.fixture(scope="module")
def strange(tmp_path_factory) -> str:
    """A model whose name and tokens hold what a terminal obeys; the name is no UTF-8 either."""
    config = asp.Config(n_layer=1, n_head=2, d_model=12, d_head=4, d_mlp=16, n_ctx=10, n_vocab=5, gated=True)
    tokenizer = asp.Tokenizer.from_words(list(ODD), split="characters")
    path = os.fsdecode(os.fsencode(tmp_path_factory.mktemp("strange")) + b"/\xff\x1b[31m")
    asp.Model.initialised(config, 1, std=0.5, tokenizer=tokenizer).save(path)
    return path


def printed(*arguments: str, encoding: str = "utf-8") -> tuple[int, str]:
    """Exit code and output on streams of an encoding; nothing in it is obeyed by a terminal."""
    streams = [TextIOWrapper(BytesIO(), encoding) for _ in range(2)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        try:
            code = cli.main(arguments)
        except SystemExit as exit:
            code = exit.code
    text = ""
    for stream in streams:
        stream.flush()
        text += stream.buffer.getvalue().decode(encoding)
    assert all(line.isprintable() for line in text.split("\n")), text
    return code, text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "FOLDER"],
        ["heads", "FOLDER", "--prompt", ODD, "--key", "0", "--query", "2"],
        ["edges", "FOLDER", "--prompt", ODD],
        ["edges", "FOLDER", "--prompt", ODD, "--csv"],
        ["edges", "FOLDER", "--prompt", ODD, "--json"],
    ],
)
def test_nothing_printed_is_obeyed(strange, arguments, encoding):
    arguments = [strange if argument == "FOLDER" else argument for argument in arguments]
    code, text = printed(*arguments, encoding=encoding)
    assert code == 0, text
    assert r"\x1b" in text or r"\u001b" in text


def test_json_holds_the_texts_exactly(strange):
    _, text = printed("edges", strange, "--prompt", ODD, "--json")
    rows = json.loads(text)
    assert {row[name] for row in rows for name in ("query_token", "key_token")} == set(ODD)


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", f"no-{STRANGE}"],
        ["edges", "FOLDER", "--prompt", f"unknown {STRANGE}"],
        ["info", "FOLDER", f"more-{STRANGE}"],
        ["reproduce", STRANGE],
        ["reproduce", "addition", "--dense", "FOLDER"],
    ],
)
def test_errors_repeat_no_strange_texts(strange, arguments):
    code, text = printed(*(strange if argument == "FOLDER" else argument for argument in arguments))
    assert code in (1, 2)
    assert text


def test_tracebacks_and_warnings_repeat_no_strange_texts(capsys):
    cli._show_warning(UserWarning(STRANGE), UserWarning)
    assert capsys.readouterr().err == f"attnsparse: warning: {ESCAPED}\n"
    cli.show_traceback(ValueError, ValueError(STRANGE.strip()), None)
    assert capsys.readouterr().err == f"ValueError: {ESCAPED[:-2]}\n"


def test_a_traceback_is_asked_for_in_a_process(strange):
    command = [*MODULE, "info", "no-\x1b[31m", "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_files_with_names_that_are_no_utf8(tmp_path, encoding):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b")
    code, text = printed(
        "graph", "demo-sparse", "--transcoders", "demo-sparse-transcoders", "--prompt", PROMPT, "--html",
        f"{name}.html", "--figure", f"{name}.svg", "--out", name, "--json", name, encoding=encoding,
    )  # fmt: skip
    assert code == 0, text
    assert text.count(r"\udcff\x1b") == 4
    assert len(os.listdir(tmp_path)) == 4


def test_figures_of_models_with_names_that_are_no_utf8(tmp_path):
    out = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b")
    asp.load("addition-sparse").save(f"{out}-model")
    code, text = printed("reproduce", "addition", "--sparse", f"{out}-model", "--out", out, encoding="ascii")
    assert code == 0, text
    assert r"\udcff\x1b/" in text


@pytest.mark.parametrize("arguments", [["--help"], ["info"]])
def test_no_reader_no_traceback(arguments):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*MODULE, *arguments], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*MODULE, "info"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams(closed):
    for arguments, code in (("info", 0), ("info no-such-model", 1)):
        command = ["sh", "-c", f'"$0" -m attnsparse {arguments} {closed}', sys.executable]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        assert "no-such-model" not in done.stdout
