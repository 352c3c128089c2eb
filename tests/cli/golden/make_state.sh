#!/bin/sh
# Makes the golden file of a state's format with the library of a commit that writes this format:
#
#   tests/cli/golden/make_state.sh COMMIT FORMAT      such as: make_state.sh 54e3cf3 1
#
# git log -S'state_format_major = FORMAT' finds such commits. Builds in a temporary directory.
set -eu

commit=$1
format=$2
golden=$(cd "$(dirname "$0")" && pwd)
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT

git -C "$golden/../../.." archive --output="$directory/source.tar" "$commit"
mkdir "$directory/source"
tar -x -f "$directory/source.tar" -C "$directory/source"
cmake -G Ninja -S "$directory/source" -B "$directory/build" -D CMAKE_BUILD_TYPE=Debug \
  -D WHYCACHE_MYSQL=OFF -D WHYCACHE_MEMCACHED=OFF -D WHYCACHE_POSTGRES=OFF \
  -D WHYCACHE_TOOLS=OFF -D WHYCACHE_TESTS=OFF -D WHYCACHE_BENCH=OFF
cmake --build "$directory/build" --target whycache_static
cat >"$directory/make.cc" <<'END'
#include <whycache/cache.h>

int main(int, char** arguments) {
  whycache::Options options;
  options.state_path = arguments[2];
  whycache::Cache cache(arguments[1], options);
  cache.update();
  cache.close_shared_state();
}
END
${CXX:-c++} -std=c++20 -I "$directory/source/include" "$directory/make.cc" \
  "$directory/build/lib/libwhycache.a" -lsqlite3 -lzstd -pthread -o "$directory/make"
xz --decompress --stdout "$golden/sqlite_log1.xz" >"$directory/log.db"
"$directory/make" "sqlite://$directory/log.db" "$directory/state"
test "$(od -A n -t u2 -j 8 -N 2 "$directory/state" | tr -d ' ')" = "$format"
xz -9e --stdout "$directory/state" >"$golden/state$format.xz"
