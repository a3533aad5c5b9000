#!/usr/bin/env bash
# Every method on the same rows and budget, three seeds on ARC-Easy and OpenBookQA, one on BoolQ; then the tables and
# pictures of docs/calibration. Goes on where it was killed. DATA is the folder with the question-answering sets.
# SETS and METHODS choose some of it; one process a set may run beside another.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${VENV:-.venv}/bin/python
data=${DATA:-../shared/data}
results=benchmarks/results/calibration

grid() { # SET SEEDS FLAGS...
    local set=$1 seeds=$2
    shift 2
    "$python" -m benchmarks.calibration run "$@" \
        --train "$set=$data/${set}_train.jsonl" --test "${set}_test=$data/${set}_test.jsonl" \
        --layers last:10 --train-examples 800 --validation-examples 400 --epochs 6 --n-samples 6 --shift-limit 300 \
        --methods "${METHODS:-all}" --seeds "$seeds" --work "runs/calibration/$set" --output "$results/$set"
}

for set in ${SETS:-arc_easy openbookqa boolq}; do
    case $set in
        arc_easy) grid arc_easy "${SEEDS:-0,1,2}" --shift "arc_challenge=$data/arc_challenge_train.jsonl" \
            --shift "openbookqa=$data/openbookqa_test.jsonl" --shift "boolq=$data/boolq_test.jsonl" ;;
        openbookqa) grid openbookqa "${SEEDS:-0,1,2}" ;;
        boolq) grid boolq 0 ;;
    esac
done

# Does the guarantee hold on real probabilities? They are here only after a run on this machine.
run=arc_easy/bayesian-seed0
probabilities=runs/calibration/$run/arc_easy_test.safetensors
if [ -f "$probabilities" ]; then
    "$python" -m benchmarks.guarantee "$probabilities" \
        --run "$results/$run.json" \
        --json benchmarks/results/guarantee/arc_easy.json
fi
