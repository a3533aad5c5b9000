#!/usr/bin/env bash
# Installs the programs that tests run beside the Python packages. Where that is not possible (no root, no apt, no network),
# the tests that need them are skipped and say so; in continuous integration they fail instead.
set -euo pipefail
missing=()
for program in prometheus redis-server kustomize chromium; do
    command -v "$program" > /dev/null || missing+=("$program") # Debian's packages have the programs' names
done
if [ ${#missing[@]} = 0 ]; then exit 0; fi
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "${missing[@]}" > /dev/null; then exit 0; fi
echo "not installed: ${missing[*]}; the tests that need them are skipped"
