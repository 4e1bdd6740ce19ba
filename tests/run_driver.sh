#!/usr/bin/env bash
# The C core without Python, in both precisions, under one checker (Linux):
#
#   tests/run_driver.sh             as it is                          minutes
#   tests/run_driver.sh address     AddressSanitizer with its leak check, and UndefinedBehaviorSanitizer
#   tests/run_driver.sh thread      ThreadSanitizer: eight threads on shared models
#   tests/run_driver.sh valgrind    memcheck: also memory that is read before it was written; minutes
#
# Needs gcc and a Python (PYTHON) with the wheel scipy-openblas32, or with this package, which holds that library.
# Builds in build/driver. Each checker must first report a fault that was put there for it.
set -euo pipefail
cd "$(dirname "$0")/.."
checker=${1:-none}
python=${PYTHON:-python3}
folder=build/driver/$checker
mkdir -p "$folder"
blas=$("$python" - <<'PYTHON'
import pathlib
try:
    from scipy_openblas32 import get_lib_dir
    print(get_lib_dir())
except ImportError:
    import attnsparse
    print(pathlib.Path(attnsparse.__file__).parent / "_libs")
PYTHON
)
flags=(-std=gnu11 -O1 -g -UNDEBUG -Wall -Wextra -Werror -Wno-psabi -Wno-maybe-uninitialized -fno-omit-frame-pointer -pthread -DASP_BLAS_PREFIX=scipy_)
launch=() modes=(serial) fault=
case $checker in
none) modes=(serial threads) ;;
address)
    flags+=(-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover)
    modes=(serial threads) fault=leak
    export ASAN_OPTIONS=halt_on_error=1:detect_leaks=1
    ;;
thread)
    flags+=(-fsanitize=thread)
    launch=(setarch "$(uname -m)" -R) modes=(threads) fault=race
    export TSAN_OPTIONS=halt_on_error=1
    ;;
valgrind)
    launch=(valgrind --quiet --error-exitcode=9 --leak-check=full --show-leak-kinds=definite
        --errors-for-leak-kinds=definite)
    modes=(once) fault=uninitialized # every allocation failed once is for AddressSanitizer: here it would take hours
    ;;
*)
    echo "unknown checker $checker" >&2
    exit 2
    ;;
esac
sources=()
while IFS= read -r -d '' source; do
    case $source in csrc/python/* | csrc/py_*) ;; *) sources+=("$source") ;; esac
done < <(find csrc -name '*.c' -print0)
for precision in ${PRECISIONS:-float32 float64}; do
    program=$folder/$precision
    define=() && [ $precision = float64 ] && define=(-DASP_DOUBLE=1)
    gcc "${flags[@]}" "${define[@]}" -Icsrc -Itests/driver tests/driver/*.c "${sources[@]}" -o "$program" \
        -L"$blas" -lscipy_openblas -Wl,-rpath,"$blas" -lm
    if [ -n "$fault" ] && "${launch[@]}" "$program" $fault > /dev/null 2>&1; then
        echo "$checker does not see a planted fault" >&2
        exit 3
    fi
    for mode in "${modes[@]}"; do
        said=$("${launch[@]}" "$program" $mode)
        echo "$checker, $precision, $mode: $said, 0 reports"
    done
done
