#!/usr/bin/env bash
# Everything that is measured on a GPU, in one go: bench/run_gpu.sh OUT [STEP ...]
# Steps: tests accept round sanitize pytest (default: all). Logs and JSON go to OUT; needs the package installed.
set -uo pipefail
out=$1
shift
steps=${*:-tests accept round sanitize pytest}
mkdir -p "$out"
failed=0

step() { # name, command ...
    local name=$1
    shift
    echo "== $name: $*"
    SECONDS=0
    "$@" 2>&1 | tee "$out/$name.log" || { failed=1; echo "== $name FAILED"; }
    echo "== $name: $SECONDS s"
}

# Racecheck and initcheck are slow: small shapes, every form of the kernel.
sanitized=(python3 -m pytest -q -p no:cacheprovider tests/gpu/test_sanitized_gpu.py)

for name in $steps; do
    case $name in
        tests) step gpu_tests python3 -m pytest -q -p no:cacheprovider --durations=8 tests/gpu ;;
        accept) step accept python3 -m bench.gpu_accept --out "$out/accept.json" ;;
        sweep) step sweep python3 -m bench.gpu_accept --sweep --out "$out/sweep.json" ;;
        round) step round python3 -m bench.gpu_round --out "$out/round.json" ;;
        sanitize)
            for tool in memcheck racecheck initcheck; do
                step "sanitizer_$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 --kernel-regex kns=accept \
                    "${sanitized[@]}"
            done
            ;;
        pytest) step benchmark python3 -m pytest bench/ --benchmark-only --benchmark-json "$out/benchmark.json" ;;
        *) echo "got step '$name', expected tests, accept, sweep, round, sanitize or pytest" >&2; exit 2 ;;
    esac
done
exit $failed
