#!/usr/bin/env bash
# Makes examples/triage/adapter, the adapter that `make run` serves.
set -euo pipefail
cd "$(dirname "$0")/../.."
${BLORA:-.venv/bin/blora} train \
    --data examples/triage/train.jsonl --validation examples/triage/validation.jsonl \
    --choices "billing|account access|bug report|feature request|data export|security|cancellation" \
    --template $'Support ticket: {prompt}\nQueue:' --epochs 6 \
    --n-samples 8 --min-confidence 0.8 \
    --work-dir runs/triage --resume --output examples/triage/adapter
