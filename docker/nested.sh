#!/bin/sh
# nested.sh DIR PARENT… : a Python environment in DIR that sees what is installed in the PARENTs, so that each is an image layer of its own.
set -eu
dir=$1
shift
python -m venv --without-pip "$dir"
packages() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
for parent in "$@"; do packages "$parent"; done > "$(packages "$dir")/parents.pth"
