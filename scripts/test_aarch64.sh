#!/bin/sh
# Compiles the unit tests for aarch64 with Debian's cross compiler, and runs them below qemu. They
# are those of the base, of updates and values, of the state, and of the logs in memory, in a file
# and in SQLite. Needs a Debian 12 with a network. Packages for arm64 are unpacked into the build.
# Nothing of the system changes but the cross compiler and qemu, which are installed.
#
#   scripts/test_aarch64.sh [base|update|value|state|log]...
#
# Leaves out the long tests, and those that tests/not_below_qemu.txt names with the reason. An
# emulator on x86-64 shows no weak memory: docs/reliability.md says what does.
set -eu
cd "$(dirname "$0")/.."

scripts/install_packages.sh build test aarch64
build=$PWD/build/aarch64
packages=$build/packages

# apt with lists and a cache of its own, so that the system's architectures stay what they are.
apt_arm64() {
  apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 \
    -o Dir::State::Lists="$build/apt/lists" -o Dir::Cache="$build/apt/cache" \
    -o APT::Sandbox::User=root "$@"
}

if [ ! -d "$packages" ]; then
  mkdir -p "$build/apt/lists/partial" "$build/apt/cache/archives/partial" "$build/apt/debs"
  apt_arm64 update
  (cd "$build/apt/debs" && apt_arm64 download libzstd-dev libzstd1 libxxhash-dev \
    libsqlite3-dev libsqlite3-0 libgtest-dev libgmock-dev googletest libfmt-dev libfmt9 \
    libcli11-dev nlohmann-json3-dev)
  for package in "$build"/apt/debs/*.deb; do
    dpkg-deb --extract "$package" "$packages.unfinished"
  done
  mv "$packages.unfinished" "$packages"
fi

[ $# -gt 0 ] || set -- base update value state log
targets=""
for folder in "$@"; do targets="$targets ${folder}_tests"; done
cmake --preset aarch64 -D WHYCACHE_AARCH64_PACKAGES="$packages"
# shellcheck disable=SC2086
cmake --build --preset aarch64 --target $targets

# Tests that cannot run below qemu, and why.
not_emulated=$(sed -e 's/ *#.*//' -e '/^$/d' tests/not_below_qemu.txt | paste -s -d :)
failed=""
for folder in "$@"; do
  echo "== $folder"
  qemu-aarch64-static -L /usr/aarch64-linux-gnu -R 4G "$build/bin/${folder}_tests" \
    --gtest_brief=1 --gtest_filter="-*Long*:$not_emulated" || failed="$failed $folder"
done
[ -z "$failed" ] || { echo "failed below qemu:$failed" >&2; exit 1; }
