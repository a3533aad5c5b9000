#!/usr/bin/env bash
# Makes the three adapters that `make run` serves, one for each question about a ticket, and proves when each may
# answer, in either precision: at delta 0.025 each, so that both proofs hold with probability 95 %. All three read the
# ticket in the same words, so that one pass serves them.
#
# The folders keep the record of their calibration attempts, and attempts on the same proof tickets add up. So a further
# run states a larger delta: write new proof tickets first.
set -euo pipefail
cd "$(dirname "$0")/../.."
blora=${BLORA:-.venv/bin/blora}
demo=examples/triage

make_adapter() {  # folder, question, rows, column of the label, target risk, further options of the calibration
    local rows=$demo/$3 adapter=$demo/$1 template=$'Support ticket: {prompt}\nQueue:'
    $blora train --data "$rows/train.jsonl" --validation "$rows/validation.jsonl" --columns "label=$4" \
        --question "$demo/questions/$2.json" --template "$template" --dtype float32 --output "$adapter"
    for dtype in float32 bfloat16; do
        $blora calibrate "$adapter" --data "$rows/proof.jsonl" --columns "label=$4" --dtype "$dtype" \
            --target-risk "$5" --delta 0.025 "${@:6}"
    done
}

# The entropy tells more out-of-scope questions than the confidence does: on CLINC150 (docs/familiarity.md).
make_adapter adapter queue . label 0.10 --score predictive_entropy
make_adapter adapter.urgent urgent moods urgent 0.05
make_adapter adapter.mood mood moods mood 0.10
