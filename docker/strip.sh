#!/bin/sh
# strip.sh DIR : take from a Python environment what no run needs: C++ headers, static libraries, build files, the libraries' own tests.
set -eu
cd "$1"
for packages in lib/python*/site-packages; do
    rm -rf "$packages"/torch/include "$packages"/torch/share "$packages"/torch/test "$packages"/torch/bin/test*
    rm -rf "$packages"/torch/bin/protoc* "$packages"/include
    find "$packages" -name '*.a' -delete
    find "$packages"/numpy "$packages"/sympy "$packages"/networkx "$packages"/mpmath -type d -name tests -prune -exec rm -rf {} + 2>/dev/null || true
done
