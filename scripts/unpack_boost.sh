#!/bin/sh
# Unpacks the headers of Debian's libboost1.81-dev into a folder, for the benchmark's rival
# boost_flat. The package itself cannot be installed beside libboost-dev, which is older and has no
# boost/unordered/unordered_flat_map.hpp. Does nothing if the folder or the system has that header.
# If the package cannot be had, says so and succeeds: the benchmark then leaves the rival out.
#
#   scripts/unpack_boost.sh FOLDER
set -eu

folder=$1
package=libboost1.81-dev
header=include/boost/unordered/unordered_flat_map.hpp
if [ -e "$folder/$header" ] || [ -e "/usr/$header" ]; then exit 0; fi

leave_out() {
  echo "benchmarking without boost_flat: $*" >&2
  exit 0
}
command -v apt-get >/dev/null ||
  leave_out "not a Debian system (it needs the headers of Boost 1.81 or later)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"  # apt downloads as another user
(cd "$work" && apt-get -qq download "$package" 2>"$work/errors") ||
  leave_out "cannot download $package: $(cat "$work/errors")"
dpkg-deb -x "$work"/*.deb "$work/unpacked" || leave_out "cannot unpack $package"
mkdir -p "$folder/include"
cp -r "$work/unpacked/usr/include/boost" "$folder/include"
