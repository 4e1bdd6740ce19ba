#!/usr/bin/env bash
# The suite under gcc's AddressSanitizer and UndefinedBehaviorSanitizer, or under ThreadSanitizer (Linux).
#
#   tests/run_sanitizers.sh                                   everything
#   tests/run_sanitizers.sh address,undefined tests/promises/test_memory.py -k batch
#   tests/run_sanitizers.sh thread tests/promises/test_threads.py
#   PYTHON=python3.10 tests/run_sanitizers.sh                 with another Python
#
# Builds into its own environment, .venv-sanitize-*. Each file of tests runs in a process of its own, which ends at
# its first report; at the end stand the number of tests and of reports, those of child processes among them. The
# reports are kept in the environment's folder reports/.
set -euo pipefail
cd "$(dirname "$0")/.."
kinds=${1:-address,undefined}
shift || true

environment=$PWD/.venv-sanitize-${kinds%%,*}${PYTHON:+-$(basename "$PYTHON")}
[ -d "$environment" ] || "${PYTHON:-python3}" -m venv "$environment"
ATTNSPARSE_SANITIZE=$kinds "$environment/bin/pip" install -q '.[test]'

# The runtime must come first in the process, and the C++ library with it, whose exceptions it watches;
# Python's own allocator would hide errors from it.
libraries="$(gcc -print-file-name="lib${kinds:0:1}san.so") $(gcc -print-file-name=libstdc++.so.6)"
launch=() skip=(--deselect=tests/io/test_bad_files.py::test_a_header_of_100_000_tensors_is_read_quickly) # takes time
if [ "$kinds" = thread ]; then
    launch=(setarch "$(uname -m)" -R)
    export OPENBLAS_NUM_THREADS=1 # of NumPy's copy, whose locks the sanitizer does not see
    # One races on purpose, the others count threads, of which the sanitizer has one itself.
    skip+=(--deselect=tests/promises/test_threads.py::test_arrays_changed_by_another_thread_do_no_harm)
    skip+=(--deselect=tests/promises/test_threads.py::test_never_more_threads_work_than_were_asked_for)
    skip+=(--deselect=tests/promises/test_threads.py::test_threads_are_started_by_calls_only)
fi
reports=$environment/reports
rm -rf "$reports"
mkdir "$reports"
export PYTHONMALLOC=malloc
export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:log_path=$reports/report
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1:log_path=$reports/report
export TSAN_OPTIONS=halt_on_error=1:log_path=$reports/report

# What is a file of tests among the arguments; the rest is for every pytest.
files=() options=()
for argument; do
    if [[ $argument == tests/* ]]; then files+=("$argument"); else options+=("$argument"); fi
done
if [ ${#files[@]} = 0 ]; then
    for file in tests/*/test_*.py; do # without those that build the package, start a browser with it or need PyTorch
        case $file in
        tests/rules/test_packaging.py | tests/graphs/test_graph_page_browser.py | tests/oracle_torch/*) ;;
        *) files+=("$file") ;;
        esac
    done
fi
failed=0
for file in "${files[@]}"; do
    code=0
    "${launch[@]}" env LD_PRELOAD="$libraries" "$environment/bin/pytest" -p no:cacheprovider \
        "${skip[@]}" "$file" "${options[@]}" > "$reports/output" 2>&1 || code=$?
    tail -n 1 "$reports/output" | sed "s|^=* *|$file: |; s| *=*\$||"
    [ "$code" = 0 ] || [ "$code" = 5 ] || { failed=1; cat "$reports/output"; }
    cat "$reports/output" >> "$reports/all"
done
passed=$(grep -aoE '^=.* [0-9]+ passed' "$reports/all" | awk '{ n += $(NF - 1) } END { print n + 0 }')
found=$(find "$reports" -name 'report.*' | wc -l)
echo "R12: $passed tests under -fsanitize=$kinds with $("$environment/bin/python" -V), $found reports"
[ "$failed" = 0 ] && [ "$found" = 0 ]
