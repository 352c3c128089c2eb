#!/bin/sh
# Installs the Debian packages that building, testing, the demo, the benchmarks, checking or fuzzing
# need, and only those that are missing. Prints nothing if none is missing, and never asks. The demo
# and one of the benchmarks read apt's package index, so `demo` and `bench` fetch it if needed.
#
#   scripts/install_packages.sh [build|test|torture|demo|bench|check|fuzz|wheel|aarch64]...
set -eu

build="cmake ninja-build g++ pkg-config libsqlite3-dev libmariadb-dev libpq-dev libmemcached-dev
       libhiredis-dev libxxhash-dev libzstd-dev libfmt-dev libcli11-dev nlohmann-json3-dev"
test="libgtest-dev libgmock-dev libcpp-httplib-dev python3 sqlite3 mariadb-server memcached
       redis-server postgresql pgbouncer openssl libssl-dev strace util-linux btrfs-progs xfsprogs
       python3-dev python3-venv git groff-base fish zsh"
torture="spin gcc e2fsprogs"
bench="libabsl-dev liblmdb-dev libtkrzw-dev libboost-dev libhiredis-dev redis-server
       libmemcached-dev memcached mariadb-server python3
       python3-dev python3-venv"
check="clang clang-format clang-tidy codespell shellcheck python3 python3-dev"
fuzz="clang libclang-rt-dev"
wheel="python3-dev python3-venv git"
aarch64="g++-12-aarch64-linux-gnu qemu-user-static"

packages=$build
needs_index=no
for group in "$@"; do
  case $group in
    build) ;;
    demo) needs_index=yes ;;
    test) packages="$packages $test" ;;
    torture) packages="$packages $test $torture" ;;
    bench) needs_index=yes; packages="$packages $bench" ;;
    check) packages="$packages $check" ;;
    fuzz) packages="$packages $fuzz" ;;
    wheel) packages="$packages $wheel" ;;
    aarch64) packages="$packages $aarch64" ;;
    *)
      echo "unknown group of packages: $group" \
           "(build, test, torture, demo, bench, check, fuzz, wheel, aarch64)" >&2
      exit 2
      ;;
  esac
done

if ! command -v apt-get >/dev/null; then
  # shellcheck disable=SC2086
  echo "not a Debian system, install what these packages hold if it is missing:" $packages >&2
  exit 0
fi

missing=""
for package in $packages; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || true
  [ "$status" = installed ] || missing="$missing $package"
done
[ $needs_index = no ] || ! ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1 || needs_index=no
[ "$missing$needs_index" != no ] || exit 0

if [ "$(id -u)" -eq 0 ]; then
  as_root="env"
elif sudo -n true 2>/dev/null; then
  as_root="sudo -n env"
elif [ -z "$missing" ]; then
  exit 0
else
  echo "packages are missing, and installing them takes root or sudo without a password; run:" >&2
  echo "  sudo apt-get install --no-install-recommends$missing" >&2
  exit 1
fi

apt() {
  $as_root DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" </dev/null
}

# Some packages contain a server, which we start ourselves when we need it. Debian must not start
# it, neither now (policy-rc.d(8)) nor at the next boot.
no_services=/usr/sbin/policy-rc.d
install_missing() {
  if [ ! -e $no_services ]; then
    # shellcheck disable=SC2064
    trap "$as_root rm -f $no_services" EXIT
    $as_root sh -c "printf '#!/bin/sh\nexit 101\n' >$no_services && chmod 755 $no_services"
  fi
  # shellcheck disable=SC2086
  apt install -y --no-install-recommends $missing >/dev/null || return
  [ ! -d /run/systemd/system ] || for server in redis-server memcached postgresql pgbouncer; do
    case " $missing " in *" $server "*) $as_root systemctl --quiet disable $server ;; esac
  done
}

if [ $needs_index = yes ]; then
  apt update >/dev/null || true  # without an index the demo says what to do
fi
if [ -n "$missing" ]; then
  echo "installing:$missing" >&2
  # If the index is absent or out of date, the first attempt fails, and the second uses a new one.
  install_missing 2>/dev/null || { apt update >/dev/null && install_missing; }
fi
