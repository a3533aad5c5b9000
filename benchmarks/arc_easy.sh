#!/usr/bin/env bash
# LoRA and Bayesian-LoRA on the same 800 ARC-Easy questions with the same budget: three epochs of plain LoRA, then one
# epoch more of either method from there. All are chosen on the same validation rows, taken from the training file.
# Then 500 test questions under 1 to 32 posterior draws. Goes on where it was killed.
# DATA is the folder with arc_easy_train.jsonl and arc_easy_test.jsonl.
set -euo pipefail
cd "$(dirname "$0")/.."
blora=${BLORA:-.venv/bin/blora}
data=${DATA:-../shared/data}
seed=${SEED:-0}
runs=runs/arc_easy
results=benchmarks/results/arc_easy

train() { # NAME FLAGS...
    local name=$1-seed$seed
    shift
    if [ ! -d "$runs/$name" ]; then
        "$blora" train --data "$data/arc_easy_train.jsonl" --train-examples 800 --validation-examples 200 \
            --seed "$seed" --resume --output "$runs/$name" "$@"
    fi
}

evaluate() { # NAME DRAWS
    local name=$1-seed$seed
    if [ ! -f "$results/$name-s${2##*,}.json" ]; then
        "$blora" evaluate "$runs/$name" --data "$data/arc_easy_test.jsonl" --limit 500 --n-samples "$2" \
            --json "$results/$name-s{n_samples}.json"
    fi
}

train lora --method lora --epochs 3
train bayesian --init-from "$runs/lora-seed$seed" --epochs 1 --learning-rate 2e-3 \
    --lambda-init 0.25 --train-draws 8 --kl-weight 1e-3
train lora-continued --method lora --init-from "$runs/lora-seed$seed" --epochs 1 --learning-rate 2e-4
evaluate lora 1
evaluate lora-continued 1
evaluate bayesian 1,4,8,16,32
if [ ! -f "$results/base.json" ]; then
    "$blora" evaluate base --data "$data/arc_easy_test.jsonl" --limit 500 --json "$results/base.json"
fi
