#!/bin/sh
# Launches a compiler for its warnings alone, as CMAKE_CXX_COMPILER_LAUNCHER and
# CMAKE_CXX_LINKER_LAUNCHER. A source file is parsed and checked, which includes the instantiation
# of templates. Neither machine code nor a program is made: the output is an empty file, so that
# ninja knows what is up to date. A precompiled header is made, because others are parsed with it.
#
#   scripts/syntax_only.sh clang++ ... -o OUTPUT -c SOURCE
set -eu

output=
compiles=no
previous=
for word in "$@"; do
  case $word in
    -emit-pch) exec "$@" ;;
    -c) compiles=yes ;;
  esac
  [ "$previous" != -o ] || output=$word
  previous=$word
done
[ $compiles = no ] || "$@" -fsyntax-only
: >"$output"
