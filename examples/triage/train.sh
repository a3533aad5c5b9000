#!/usr/bin/env bash
# Makes examples/triage/adapter, the adapter that `make run` serves, and proves when it may answer, in either precision.
set -euo pipefail
cd "$(dirname "$0")/../.."
blora=${BLORA:-.venv/bin/blora}
$blora train \
    --data examples/triage/train.jsonl --validation examples/triage/validation.jsonl \
    --choices "billing|account access|bug report|feature request|data export|security|cancellation" \
    --template $'Support ticket: {prompt}\nQueue:' --output examples/triage/adapter
for dtype in bfloat16 float32; do
    $blora calibrate examples/triage/adapter --data examples/triage/proof.jsonl --dtype "$dtype" \
        --target-risk 0.10 --delta 0.05
done
