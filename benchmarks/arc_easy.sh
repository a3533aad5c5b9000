#!/usr/bin/env bash
# LoRA and Bayesian-LoRA on the same 800 ARC-Easy questions, with the same budget of epochs, batch size and modules;
# both stop and are chosen on the same validation rows, taken from the training file. Then 500 test questions under
# 1 to 32 posterior draws. Goes on where it was killed. DATA is the folder with arc_easy_train.jsonl and _test.jsonl.
set -euo pipefail
cd "$(dirname "$0")/.."
blora=${BLORA:-.venv/bin/blora}
data=${DATA:-../shared/data}
results=benchmarks/results/arc_easy
seed=${SEED:-0}

for method in lora bayesian; do
    adapter=runs/arc_easy/$method-seed$seed
    if [ ! -d "$adapter" ]; then
        "$blora" train --data "$data/arc_easy_train.jsonl" --train-examples 800 --validation-examples 200 \
            --method "$method" --epochs 3 --kl-weight 4e-3 --seed "$seed" --resume --output "$adapter"
    fi
    counts=1
    if [ "$method" = bayesian ]; then counts=1,4,8,16,32; fi
    if [ ! -f "$results/$method-seed$seed-s1.json" ]; then
        "$blora" evaluate "$adapter" --data "$data/arc_easy_test.jsonl" --limit 500 --n-samples "$counts" \
            --json "$results/$method-seed$seed-s{n_samples}.json"
    fi
done
if [ ! -f "$results/base.json" ]; then
    "$blora" evaluate base --data "$data/arc_easy_test.jsonl" --limit 500 --json "$results/base.json"
fi
