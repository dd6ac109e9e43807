#!/bin/sh
# strip.sh DIR : take from a Python environment what no run needs: C++ headers, static libraries, build files, the libraries' own tests,
# types for editors, setuptools, torch's symbols for debuggers (90 MB), and all byte code. What is used is compiled again by using it
# (used.py), a fifth of the whole. sympy stays: code of a user's own may need what torch does with it.
set -eu
cd "$1"
for packages in lib/python*/site-packages; do
    for name in torch/include torch/share torch/test include setuptools _distutils_hack distutils-precedence.pth; do
        rm -rf "${packages:?}/$name"
    done
    rm -rf "$packages"/torch/bin/*[tT]est* "$packages"/torch/bin/protoc* "$packages"/setuptools-*
    rm -f "$packages"/torch/lib/lib*_test.so "$packages"/torch/lib/libaoti_custom_ops.so "$packages"/torch/lib/libbackend_with_compiler.so
    for name in numpy sympy networkx mpmath; do
        [ ! -d "$packages/$name" ] || find "$packages/$name" -type d -name tests -prune -exec rm -rf {} +
    done
    find "$packages" \( -name '*.a' -o -name '*.pyi' \) -delete
    for library in "$packages"/torch/lib/libtorch_cpu.so "$packages"/torch/lib/libtorch_python.so; do
        [ ! -e "$library" ] || strip --strip-unneeded "$library"
    done
    find "$packages" -type d -name __pycache__ -prune -exec rm -rf {} +
done
