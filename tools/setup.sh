#!/bin/sh
# Make .venv with Refold and its development tools, or say what this machine lacks.
#
#   tools/setup.sh          make or refresh .venv; does nothing when it is up to date
#   tools/setup.sh --find   print the interpreter that .venv would be made with
#
# PYTHON=/path/to/python   use this interpreter and look for no other
# REFOLD_WITH_TORCH=1      install the torch extra too (on Linux it brings CUDA: several gigabytes)
set -eu

cd "$(dirname "$0")/.."
VENV=.venv
STAMP=$VENV/.refold-setup

# Prints "major minor lacking": lacking is "none" or the first missing standard module.
PROBE='
import importlib, sys
lacking = "none"
for name in ("ensurepip", "venv"):
    try:
        importlib.import_module(name)
    except ImportError:
        lacking = name
print(sys.version_info[0], sys.version_info[1], lacking)
'

# Every interpreter on PATH, not only the first of each name: a version manager puts shims first that may refuse to run.
candidates() {
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" || true
        return
    fi
    for name in python3.14 python3.13 python3.12 python3.11 python3; do
        (
            set -f
            IFS=:
            for folder in $PATH; do
                if [ -f "$folder/$name" ] && [ -x "$folder/$name" ]; then printf '%s\n' "$folder/$name"; fi
            done
        )
    done
}

# Sets found (newest complete interpreter), lame and lacking (newest that lacks a module), old (newest that is too old).
search() {
    found='' found_minor=0 lame='' lame_minor=0 lacking='' old='' old_minor=-1
    while read -r path; do
        answer=$("$path" -I -c "$PROBE" 2>/dev/null </dev/null) || continue
        # shellcheck disable=SC2086
        set -- $answer
        if [ "$#" -ne 3 ] || [ "$1" -ne 3 ]; then continue; fi
        if [ "$2" -lt 11 ]; then
            if [ "$2" -gt "$old_minor" ]; then old=$path old_minor=$2; fi
        elif [ "$3" != none ]; then
            if [ "$2" -gt "$lame_minor" ]; then lame=$path lame_minor=$2 lacking=$3; fi
        elif [ "$2" -gt "$found_minor" ]; then
            found=$path found_minor=$2
        fi
    done <<EOF
$(candidates)
EOF
}

# $1: "python" (none is new enough) or "venv" (it is there without venv or ensurepip).
install_line() {
    as_root=''
    if [ "$(id -u)" -ne 0 ]; then as_root='sudo '; fi
    if command -v apt-get >/dev/null 2>&1; then
        case $1 in
            python) if [ -n "$old" ]; then set -- python3.11 python3.11-venv; else set -- python3 python3-venv; fi ;;
            *) set -- "python3.$lame_minor-venv" ;;
        esac
        echo "${as_root}apt-get install -y $*"
    elif command -v dnf >/dev/null 2>&1; then
        if [ -n "$old" ]; then echo "${as_root}dnf install -y python3.11"; else echo "${as_root}dnf install -y python3"; fi
    elif command -v pacman >/dev/null 2>&1; then
        echo "${as_root}pacman -S --needed python"
    elif command -v apk >/dev/null 2>&1; then
        echo "${as_root}apk add --upgrade python3"
    elif command -v brew >/dev/null 2>&1; then
        echo "brew install python@3.13"
    else
        echo "see https://www.python.org/downloads/"
    fi
}

fail() {
    echo "setup: $1" >&2
    echo "setup: install it with:  $(install_line "$2")" >&2
    exit 1
}

require_python() {
    search
    if [ -n "$found" ]; then return; fi
    if [ -n "$lame" ]; then fail "$lame (3.$lame_minor) lacks the module $lacking, which .venv is made with." venv; fi
    if [ -n "$old" ]; then fail "Refold needs Python 3.11 or newer; the newest that runs is $old (3.$old_minor)." python; fi
    fail "Refold needs Python 3.11 or newer, and no python3 ${PYTHON:+named $PYTHON }that runs is on PATH." python
}

# The environment holds absolute paths, so a clone that was moved needs a new one.
is_usable() {
    [ -x "$VENV/bin/python" ] && [ -r "$VENV/.refold-home" ] && [ "$(cat "$VENV/.refold-home")" = "$PWD" ] &&
        "$VENV/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [ "${1:-}" = --find ]; then
    require_python
    echo "$found"
    exit
fi

extras=dev
if [ "${REFOLD_WITH_TORCH:-0}" = 1 ]; then extras=dev,torch; fi
key="$PWD $(cksum <pyproject.toml)"
# An environment with torch also serves those who did not ask for it.
if [ -x "$VENV/bin/python" ] && [ -r "$STAMP" ]; then
    for have in "$extras" dev,torch; do
        if [ "$(cat "$STAMP")" = "$key $have" ]; then exit 0; fi
    done
fi

if ! is_usable; then
    require_python
    echo "setup: making $VENV with $found (3.$found_minor)"
    "$found" -m venv --clear "$VENV"
    echo "$PWD" >"$VENV/.refold-home"
fi
echo "setup: installing Refold and its tools into $VENV (about a minute the first time)"
rm -f "$STAMP"
PIP_DISABLE_PIP_VERSION_CHECK=1 "$VENV/bin/python" -m pip install --quiet --editable ".[$extras]"
echo "$key $extras" >"$STAMP"
echo "setup: done"
