"""A process of test_threads.py: how many threads use the processor at once while models run."""

from __future__ import annotations

import json
import os
import threading
import time

import numpy as np
import reliability


def is_running(task: str) -> bool:
    try:
        with open(f"/proc/self/task/{task}/stat") as file:
            return file.read().rpartition(") ")[2][0] == "R"
    except OSError:
        return False


def most_at_once(call) -> int:
    """The most threads of this process in state R while `call` ran, without the one that looks."""
    seen, stop = [], threading.Event()

    def look() -> None:
        own = str(threading.get_native_id())
        while not stop.is_set():
            seen.append(sum(is_running(task) for task in os.listdir("/proc/self/task") if task != own))
            time.sleep(0.004)

    thread = threading.Thread(target=look)
    thread.start()
    end = time.monotonic() + 0.7
    while time.monotonic() < end:
        call()
    stop.set()
    thread.join()
    return max(seen)


def main() -> None:
    model = reliability.model(n_head=8, d_model=128, d_mlp=512, n_ctx=128, n_vocab=500)
    prompts = [np.zeros(128, np.int32)] * 6
    found = {}
    for name, threads in (("two", 2), ("eight", 8), ("two after eight", 2), ("one", 1)):
        time.sleep(0.3)  # in which workers of the last calls fall asleep, also on a busy machine
        found[name] = most_at_once(lambda threads=threads: model.run(prompts, "none", threads=threads))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
