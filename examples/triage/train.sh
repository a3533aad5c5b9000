#!/usr/bin/env bash
# Makes examples/triage/adapter, the adapter that `make run` serves: plain LoRA first, then a posterior around it.
set -euo pipefail
cd "$(dirname "$0")/../.."

train() {
    ${BLORA:-.venv/bin/blora} train \
        --data examples/triage/train.jsonl --validation examples/triage/validation.jsonl \
        --choices "billing|account access|bug report|feature request|data export|security|cancellation" \
        --template $'Support ticket: {prompt}\nQueue:' --resume "$@"
}

if [ ! -d runs/triage/lora ]; then
    train --method lora --epochs 5 --output runs/triage/lora
fi
train --init-from runs/triage/lora --epochs 2 --learning-rate 2e-3 --lambda-init 0.2 --train-draws 8 \
    --n-samples 8 --min-confidence 0.8 --work-dir runs/triage/bayesian.work --output examples/triage/adapter
