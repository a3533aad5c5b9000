#!/usr/bin/env bash
# Makes examples/triage/adapter, the adapter that `make run` serves, and proves when it may answer, in either precision.
# Twelve epochs: of six and twelve, those with the lower validation NLL. The committed adapter was trained by this command
# with folders of other names.
set -euo pipefail
cd "$(dirname "$0")/../.."
blora=${BLORA:-.venv/bin/blora}
$blora train \
    --data examples/triage/train.jsonl --validation examples/triage/validation.jsonl \
    --choices "billing|account access|bug report|feature request|data export|security|cancellation" \
    --template $'Support ticket: {prompt}\nQueue:' --choice-end none --layers last:20 --epochs 12 --n-samples 8 \
    --work-dir runs/triage --resume --output examples/triage/adapter
# The committed calibration asked the first 262 of these tickets alone before, in vain, and in float32 all of them without
# --score: its delta is 0.1 in bfloat16 and 0.15 in float32.
for dtype in bfloat16 float32; do
    $blora calibrate examples/triage/adapter --data examples/triage/proof.jsonl --dtype "$dtype" \
        --target-risk 0.25 --delta 0.05 --score confidence
done
