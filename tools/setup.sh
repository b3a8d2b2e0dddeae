#!/usr/bin/env bash
# Create the virtual environment named by $1 and install attnc with its tests into it.
# Without an NVIDIA GPU this takes torch's CPU build, which is a tenth of the size of the CUDA one.
set -euo pipefail
venv=$1
torch=2.13.0

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "attnc needs Python 3.11 or later; set PYTHON=/path/to/python" >&2
    exit 1
}

install() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

install_torch() {
    if "$venv/bin/python" -c 'import torch' 2>/dev/null; then
        return
    fi
    if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
        install 'torch>=2.11'
        return
    fi
    # A local wheel or mirror may offer the CPU build by name; then torch's own index; then whatever there is.
    install "torch==$torch+cpu" 2>/dev/null ||
        install "torch==$torch" --index-url https://download.pytorch.org/whl/cpu 2>/dev/null ||
        install "torch==$torch"
}

if [ ! -x "$venv/bin/python" ]; then
    echo "attnc: creating $venv (once)"
    "$(find_python)" -m venv "$venv"
fi
echo "attnc: installing torch and attnc into $venv (once; again when pyproject.toml changes)"
install_torch
install -e '.[plot,test]'
