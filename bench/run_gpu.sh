#!/usr/bin/env bash
# Everything that is measured on a GPU, in one go: bench/run_gpu.sh OUT [STEP ...]
# Steps: tests accept round launch sanitize pytest (default: all of these), sweep. Logs and JSON go to OUT; needs the
# package installed.
set -uo pipefail
out=$1
shift
steps=${*:-tests accept round launch sanitize pytest}
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

# Small shapes, every form of the kernel. Memory comes from cudaMalloc directly, or its bounds would be the pool's.
sanitized=(env PYTORCH_NO_CUDA_MEMORY_CACHING=1 python3 -m pytest -q -p no:cacheprovider tests/gpu/test_sanitized_gpu.py)

for name in $steps; do
    case $name in
        tests) step gpu_tests python3 -m pytest -q -p no:cacheprovider --durations=8 tests/gpu ;;
        accept) step accept python3 -m bench.gpu_accept --out "$out/accept.json" ;;
        sweep) step sweep python3 -m bench.gpu_accept --sweep --out "$out/sweep.json" ;;
        round) step round python3 -m bench.gpu_round --out "$out/round.json" ;;
        launch) step launch python3 -m bench.gpu_round --launch --out "$out/launch.json" ;;
        sanitize)
            step sanitizer_memcheck compute-sanitizer --tool memcheck --error-exitcode 1 "${sanitized[@]}"
            step sanitizer_racecheck compute-sanitizer --tool racecheck --error-exitcode 1 --kernel-regex kns=accept \
                "${sanitized[@]}"
            # Every kernel: one that is not watched would not count as having written what accept reads.
            step sanitizer_initcheck compute-sanitizer --tool initcheck --error-exitcode 1 "${sanitized[@]}"
            ;;
        pytest) step benchmark python3 -m pytest bench/ --benchmark-only --benchmark-json "$out/benchmark.json" ;;
        *) echo "got step '$name', expected tests, accept, sweep, round, launch, sanitize or pytest" >&2; exit 2 ;;
    esac
done
exit $failed
