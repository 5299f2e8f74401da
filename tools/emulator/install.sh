#!/bin/sh
# Installs a self-contained copy of the emulator and prints the path of its binary.
# install.sh [--accelerator NAME] DIRECTORY     NAME as QEMU's -accel takes it; the default is software (TCG).
set -eu
accelerator=tcg,thread=multi
if [ "${1-}" = --accelerator ]; then accelerator=$2; shift 2; fi
[ $# -eq 1 ] || { echo "usage: install.sh [--accelerator NAME] DIRECTORY" >&2; exit 2; }
missing=
command -v qemu-system-x86_64 >/dev/null || missing="$missing qemu-system-x86"
[ -x /usr/bin/python3 ] || missing="$missing python3"
[ -z "$missing" ] || { echo "missing packages: apt install$missing" >&2; exit 1; }
here=$(CDPATH='' cd "$(dirname "$0")" && pwd)
umask 022
key=$( (cd "$here/.." && cat chv53/*.py emulator/*.py; echo "$accelerator") | sha256sum | cut -c1-16)
target=$1/emulator-$key
mkdir -p "$1"
exec 9<"$1"
flock 9 # one installer at a time; the kernel drops the lock of one that is killed
if [ ! -x "$target/cloud-hypervisor" ]; then
    rm -rf "$1"/.emulator-* # of installers that were killed
    fresh=$(mktemp -d "$1/.emulator-XXXXXX")
    mkdir "$fresh/chv53" "$fresh/emulator"
    cp "$here"/../chv53/*.py "$fresh/chv53/"
    cp "$here"/*.py "$fresh/emulator/"
    printf '%s\n' "$accelerator" > "$fresh/emulator/accelerator"
    cat > "$fresh/cloud-hypervisor" <<'PROGRAM'
#!/usr/bin/python3 -ISB
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from emulator.__main__ import main

main()
PROGRAM
    chmod -R u=rwX,go=rX "$fresh"
    chmod 755 "$fresh/cloud-hypervisor"
    mv -T "$fresh" "$target"
fi
echo "$target/cloud-hypervisor"
