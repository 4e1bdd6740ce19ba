"""Saves of one file and of several: whole or not at all, one after the other, and nothing else in the folder
changed."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from saving_child import made, save_until

import attnsparse as asp
from attnsparse.io import atomic as saving
from attnsparse.io import folder_commit
from attnsparse.io.folder_commit import COMMIT, TEMPORARY, FolderLock, commit_record, finish, read_whole
from attnsparse.io.regular_file import RegularFile

needs_locks = pytest.mark.skipif(folder_commit.fcntl is None, reason="needs locks on folders")


def is_whole(model: asp.Model) -> bool:
    return model.digest == made(model.config.gated).digest


def write_both(folder: Path, text: str) -> None:
    saving.write_together([(folder / name, [text.encode()]) for name in ("a", "b")])


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


# ---- several files at once


def stop_at(monkeypatch, function: str, nth: int, error: BaseException) -> None:
    calls, real = [0], getattr(os, function)

    def stopping(*arguments):
        calls[0] += 1
        if calls[0] >= nth:
            raise error
        return real(*arguments)

    monkeypatch.setattr(os, function, stopping)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_save_that_is_stopped_at_a_rename_is_old_or_new_for_the_next_one(tmp_path, monkeypatch, nth):
    """The first rename is the record's: until then nothing has happened, afterwards it only has to go on."""
    write_both(tmp_path, "old")
    stop_at(monkeypatch, "replace", nth, OSError(errno.EIO, "broken"))
    with pytest.raises(OSError, match=r"broken; the (previous|new)"):
        write_both(tmp_path, "new")
    monkeypatch.undo()
    if nth == 1:
        assert contents(tmp_path) == {"a": "old", "b": "old"}
        return
    assert (tmp_path / COMMIT).exists()
    read = read_whole(tmp_path, lambda: contents(tmp_path))
    assert read == {"a": "new", "b": "new"}
    write_both(tmp_path, "newer")
    assert contents(tmp_path) == {"a": "newer", "b": "newer"}


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_ctrl_c_in_a_rename_leaves_all_or_nothing(tmp_path, monkeypatch, nth):
    write_both(tmp_path, "old")
    calls, real = [0], os.replace

    def interrupted(*arguments):
        calls[0] += 1
        if calls[0] == nth:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_both(tmp_path, "new")
    expected = "old" if nth == 1 else "new"
    assert contents(tmp_path) == {"a": expected, "b": expected}


def test_files_of_an_earlier_save_go_with_the_new_one(tmp_path):
    for name in ("tokenizer.json", "mine.txt"):
        (tmp_path / name).write_text("old")
    saving.write_together([(tmp_path / "a", [b"new"])], removed=["tokenizer.json", "none", "a"])
    assert contents(tmp_path) == {"a": "new", "mine.txt": "old"}


def record(**changes: object) -> bytes:
    return json.dumps({"version": 1, "moves": {}, "removed": []} | changes).encode()


@pytest.mark.parametrize(
    "data",
    [
        record(removed=["../mine"]), record(removed=[".."]), record(removed=[3]), record(removed="a"),
        record(moves={"a": "b"}), record(moves={"../a": f".1-2{TEMPORARY}"}), record(moves=[]),
        record(moves={"a": f"../.1-2{TEMPORARY}"}), record(moves={COMMIT: f".1-2{TEMPORARY}"}),
        record(version=2), record(more=1), b"{}", b"\x80", b"",
    ],
)  # fmt: skip
def test_a_record_that_no_save_wrote_is_refused(tmp_path, data):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "mine").write_text("mine")
    (folder / "b").write_text("mine")
    (folder / COMMIT).write_bytes(data)
    with pytest.raises(asp.FormatError) as caught:
        finish(folder)
    assert caught.value.code in ("header_value", "json_syntax")
    assert (tmp_path / "mine").exists()
    assert (folder / "b").exists()


def test_a_record_is_finished_from_anywhere(tmp_path):
    (tmp_path / f".1-2-0{TEMPORARY}").write_text("new")
    (tmp_path / "b").write_text("new")  # has its place already
    (tmp_path / "gone").write_text("old")
    moves = {"a": f".1-2-0{TEMPORARY}", "b": f".1-2-1{TEMPORARY}"}
    (tmp_path / COMMIT).write_bytes(commit_record(moves, ["gone", "gone before"]))
    finish(tmp_path)
    finish(tmp_path)
    assert contents(tmp_path) == {"a": "new", "b": "new"}


# ---- what is there


def test_modes_of_files_stay_and_new_ones_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_both(tmp_path, "old")
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
        (tmp_path / "a").chmod(0o600)
        (tmp_path / "b").chmod(0o666)
        write_both(tmp_path, "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o666


def test_a_folder_with_the_name_of_a_file_stays(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes").write_text("mine")
    (tmp_path / "a").write_text("old")
    with pytest.raises(IsADirectoryError) as caught:
        write_both(tmp_path, "new")
    assert caught.value.filename == str(tmp_path / "b")
    assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "b" / "notes").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="pipe, socket or device"):
        saving.write_atomic(tmp_path / "pipe", [b"new"])
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "a").symlink_to("target")
    (tmp_path / "b").symlink_to("nowhere")
    write_both(tmp_path, "new")
    assert contents(tmp_path) == {"a": "new", "b": "new", "target": "old"}
    assert not (tmp_path / "a").is_symlink()


def test_names_may_be_as_long_as_the_file_system_takes(tmp_path):
    saving.write_atomic(tmp_path / ("x" * 255), [b"new"])
    assert contents(tmp_path) == {"x" * 255: "new"}


# ---- several savers and readers


@needs_locks
def test_saves_wait_for_each_other_and_leave_no_litter(tmp_path, monkeypatch):
    (tmp_path / f".7-8-0{TEMPORARY}").write_text("left by a kill")
    with FolderLock(tmp_path) as has_locks:
        assert has_locks
        thread = threading.Thread(target=write_both, args=(tmp_path, "new"))
        thread.start()
        time.sleep(0.05)
        assert thread.is_alive()
    thread.join(10)
    assert contents(tmp_path) == {"a": "new", "b": "new"}
    monkeypatch.setattr(folder_commit, "WAIT_SECONDS", 0.05)
    with FolderLock(tmp_path), pytest.raises(BlockingIOError, match="another process has been saving"):
        write_both(tmp_path, "newer")


def test_a_file_system_without_locks_is_saved_to(tmp_path, monkeypatch):
    def refused(*arguments):
        raise OSError(errno.ENOLCK, "no locks")

    if folder_commit.fcntl is not None:
        monkeypatch.setattr(folder_commit.fcntl, "flock", refused)
    (tmp_path / f".7-8-0{TEMPORARY}").write_text("perhaps of a save that goes on")
    write_both(tmp_path, "new")
    assert len(contents(tmp_path)) == 3
    assert (tmp_path / "a").read_text() == "new"


def test_a_reader_reads_again_when_files_are_replaced_meanwhile(tmp_path):
    write_both(tmp_path, "0")
    times = [0]

    def read() -> str:
        text = ""
        for name in ("a", "b"):
            with RegularFile(tmp_path / name) as file:
                text += file.read(0, file.size).decode()
            if times[0] < 3 and name == "a":
                times[0] += 1
                if times[0] == 1:  # a writer that takes no turns
                    for other in ("a", "b"):
                        (tmp_path / "c").write_text("1")
                        os.replace(tmp_path / "c", tmp_path / other)
        return text

    assert read_whole(tmp_path, read) == "11"


def test_a_reader_of_files_that_never_rest_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_commit, "POLL_SECONDS", 0)

    def read() -> None:
        (tmp_path / "a").write_text("x" * len(os.listdir(tmp_path)))
        with RegularFile(tmp_path / "a"):
            (tmp_path / "a").unlink()

    with pytest.raises(OSError, match="keep changing") as caught:
        read_whole(tmp_path, read)
    assert caught.value.errno == errno.EBUSY


def test_an_error_that_is_true_of_the_files_is_not_hidden(tmp_path):
    with pytest.raises(asp.FormatError):
        asp.load(_damaged(tmp_path))


def _damaged(folder: Path) -> Path:
    made().save(folder)
    (folder / "model.safetensors").write_bytes(b"nothing of the kind")
    return folder


@needs_locks
def test_two_processes_save_and_a_third_loads(tmp_path):
    made().save(tmp_path)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    savers = [context.Process(target=save_until, args=(stop, gated, tmp_path)) for gated in (True, False)]
    for saver in savers:
        saver.start()
    seen, end = set(), time.monotonic() + 60
    while len(seen) < 2 and time.monotonic() < end:
        model = asp.load(tmp_path)
        assert is_whole(model)
        seen.add(model.config.gated)
    for _ in range(50):
        assert is_whole(asp.load(tmp_path))
    stop.set()
    for saver in savers:
        saver.join(60)
        assert saver.exitcode == 0
    assert is_whole(asp.load(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert seen == {True, False}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_leave_a_model_that_loads(tmp_path):
    model = made()
    model.save(tmp_path)
    for milliseconds in range(1, 13):
        process = os.fork()
        if process == 0:
            while True:
                model.save(tmp_path)
        time.sleep(milliseconds / 1000)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        assert asp.load(tmp_path).digest == model.digest
    model.save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]


def test_a_folder_that_held_another_model_keeps_nothing_of_it(tmp_path):
    asp.load("demo-dense").save(tmp_path)
    for name in ("merges.txt", "added_tokens.json", "model-00001-of-00002.safetensors", "notes.json"):
        (tmp_path / name).write_text("{}")
    small = made(n_vocab=12)
    small.save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors", "notes.json"]
    loaded = asp.load(tmp_path)
    assert loaded.tokenizer is None
    assert np.array_equal(loaded.parameter("wte.weight"), small.parameter("wte.weight"))


def test_names_that_are_no_utf_8_can_be_saved(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    made().save(folder)
    model = asp.load(folder)
    assert model.name == "caf\\udce9"
    data = asp.TokenData(np.arange(30), length=4, batch=1)
    trainer = asp.Trainer(model, data, steps=2)
    trainer.train(progress=False)
    trainer.save(folder / "a.safetensors")
    assert asp.Trainer.resume(folder / "a.safetensors", data).model.name == "caf\\udce9"
