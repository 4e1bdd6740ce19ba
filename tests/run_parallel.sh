#!/usr/bin/env bash
# Tests of the engine, each in eight threads at once, ten times, while Python changes threads every microsecond.
#
#   tests/run_parallel.sh                                      the files below
#   tests/run_parallel.sh tests/graphs/test_graph.py --iterations=2
#
# Needs pytest-run-parallel beside what the tests need; PYTHON names the interpreter, which may be one without a GIL.
# Left out are tests that count the memory of the whole process, change its state (patches, warnings), or are about
# threads themselves.
set -euo pipefail
cd "$(dirname "$0")/.."
files=(tests/model/test_interventions.py tests/c/test_sparse_dense.py tests/graphs/test_graph.py tests/model/test_gradients.py
    tests/transcoders/test_transcoder.py tests/circuits/test_effects.py tests/c/test_nonfinite.py tests/c/test_numbers.py)
options=(--deselect=tests/transcoders/test_transcoder.py::test_another_models_transcoders_warn_once)
for argument; do
    if [[ $argument == tests/* ]]; then
        [ -n "${chosen:-}" ] || files=()
        chosen=1
        files+=("$argument")
    else
        options+=("$argument")
    fi
done
export ATTNSPARSE_SWITCH_INTERVAL=1e-6
said=$("${PYTHON:-python3}" -m pytest -q -p no:cacheprovider --parallel-threads=8 --iterations=10 --skip-thread-unsafe=true "${options[@]}" \
    "${files[@]}" | tee /dev/stderr | tail -n 1)
echo "R14: ${said//=/} in 8 threads with $("${PYTHON:-python3}" -VV | tail -n 1)"
