#!/usr/bin/env bash
# A LIBERO policy from nothing: tools/libero_policy.sh OUT
# Demonstrations, pictures, training, evaluation, one report. Stopped, it goes on where it was. Needs a GPU, LIBERO and
# its assets (docs/libero.md).
# EPISODES: demonstrations a task (default 64), a quarter more for libero_spatial and _10. TRIALS: evaluation states (20).
# WORKERS: simulators at once (one a core but one). POLICY: a policy whose mistakes the demonstrations recover from.
set -euo pipefail
out=${1:?expected the folder to write to}
episodes=${EPISODES:-64} trials=${TRIALS:-20} workers=${WORKERS:-$(($(nproc) - 1))}
suites="libero_goal libero_spatial libero_object libero_10"
policy=(${POLICY:+--policy "$POLICY"})

for suite in $suites; do
    count=$episodes every=4 # neighbouring pictures tell little more
    case $suite in
        libero_spatial) count=$((episodes * 5 / 4)) ;;
        libero_10) count=$((episodes * 5 / 4)) every=6 ;; # two tasks in one
    esac
    rsd-fast demos --suite "$suite" --episodes $count --workers "$workers" --no-render "${policy[@]}" --out "$out/recorded"
    rsd-fast render "$out/recorded/$suite" --every $every --workers "$workers" --out "$out/demos"
done
rsd-fast train all --config libero-nano --demos "$out/demos" --out "$out/libero-nano" --compile
for suite in $suites; do
    rsd-fast eval --suite "$suite" --checkpoint "$out/libero-nano" --trials "$trials" --modes sequential rsd \
        --workers "$workers" --batch 8 --out "$out/results/$suite"
done
rsd-fast report $(printf "$out/results/%s " $suites) --out "$out/results/all"
# Once more, for the success table of the model card; nothing is trained again.
rsd-fast train all --config libero-nano --demos "$out/demos" --out "$out/libero-nano" --compile \
    --success "$out/results/all/summary.json"
