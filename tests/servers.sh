#!/usr/bin/env bash
# What some tests talk to and pip cannot bring: a browser and a database server. Where they are missing and may
# not be installed, the tests that need them are skipped.
set -uo pipefail

packages=()
command -v chromium chromium-browser google-chrome >/dev/null || packages+=(chromium fonts-dejavu-core)
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || packages+=(postgresql)
((${#packages[@]})) || exit 0

apt() {
    DEBIAN_FRONTEND=noninteractive timeout --kill-after=10 "$1" apt-get -qq -y \
        -o Acquire::http::Timeout=20 -o Acquire::Retries=1 -o DPkg::Lock::Timeout=60 "${@:2}" </dev/null
}

if ((EUID)) || ! command -v apt-get >/dev/null; then
    echo "Tests that need ${packages[*]} are skipped: install them as root with apt-get." >&2
elif ! { apt 120 update && apt 420 install --no-install-recommends "${packages[@]}"; } >/dev/null 2>&1; then
    echo "Tests that need ${packages[*]} are skipped: apt-get could not install them." >&2
fi
exit 0
