#!/usr/bin/env bash
# System packages that the tests use beyond Python itself: git (provenance of runs), chromium where a test looks at
# pages that a person would see, and what the examples in JavaScript and shell are run by. Does nothing where all is
# there, and says so politely where it may not install.
set -euo pipefail

missing=()
command -v git >/dev/null || missing+=(git)
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
command -v npm >/dev/null || missing+=(nodejs npm)
for program in curl jq sqlite3; do
    command -v "$program" >/dev/null || missing+=("$program")
done

if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
    echo "not installed: ${missing[*]} (needs apt-get and root); tests that use them are skipped" >&2
    exit 0
fi
apt-get update -qq || true
for package in "${missing[@]}"; do
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null ||
        echo "could not install $package; tests that use it are skipped" >&2
done
