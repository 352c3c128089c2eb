#!/usr/bin/env python3
"""Runs docs/operations.md block by block, as root, on a machine of its own.

    ```sh fleet            runs in order, all in one shell
    ```sh fleet exit=N     must end with exit code N

The machine is a set of namespaces: /etc is a copy, /var/lib, /var/backups, /srv, /tmp and /run are
empty, the network is a loopback on which db.example is a MariaDB with TLS. systemctl is a
program of this file that starts the unit's command as its user. Ends with "NOT TESTED" without
root, namespaces or MariaDB.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/operations.md"
UNIT = ROOT / "packaging/whycache-follow@.service"

MACHINE = r"""
set -eu
umask 022
mount --make-rprivate /
mkdir "$MACHINE/etc" && cp -a /etc/. "$MACHINE/etc" && mount --bind "$MACHINE/etc" /etc
for directory in /var/lib /var/backups /srv /tmp /run; do
  mkdir -p "$directory" "$MACHINE$directory"
  mount --bind "$MACHINE$directory" "$directory"
done
chmod 1777 /tmp
rm -f /etc/whycache.toml
echo '127.0.0.1 localhost db.example' >/etc/hosts
ip link set lo up
install -D "$UNIT" "/etc/systemd/system/$(basename "$UNIT")"

# The server of the database, with a certificate of our authority.
cd "$MACHINE"
mkdir tls && cd tls
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj '/CN=our authority' \
  -keyout ca.key -out ca.pem
openssl req -newkey rsa:2048 -nodes -subj '/CN=db.example' -keyout server.key -out server.csr
printf 'subjectAltName=DNS:db.example\n' >names
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 \
  -extfile names -out server.pem
install -m 0644 ca.pem /etc/ssl/ca.pem
mkdir -p /run/mysqld /var/lib/mysql
mariadb-install-db --no-defaults --user=root --datadir=/var/lib/mysql --skip-test-db \
  --auth-root-authentication-method=normal
mariadbd --no-defaults --user=root --datadir=/var/lib/mysql --socket=/run/mysqld/mysqld.sock \
  --pid-file=/run/mysqld/pid --bind-address=127.0.0.1 --port=3306 --skip-log-bin \
  --ssl-ca="$PWD/ca.pem" --ssl-cert="$PWD/server.pem" --ssl-key="$PWD/server.key" &
for _ in $(seq 600); do
  mariadb --no-defaults -uroot -e 'SELECT 1' && break
  sleep 0.1
done
"""

# Starts, stops and reports the unit as systemd would, as far as the page relies on it.
SYSTEMCTL = r"""#!/bin/bash
set -eu
name=${!#}
pid_file=/run/$name.pid
value() { sed -n "s/^$1=//p" "/etc/systemd/system/${name%%@*}@.service"; }
stop() {
  [ -e "$pid_file" ] || return 0
  kill -TERM "$(cat "$pid_file")" 2>/dev/null || true
  for _ in $(seq 150); do
    kill -0 "$(cat "$pid_file")" 2>/dev/null || break
    sleep 0.1
  done
  rm "$pid_file"
}
start() {
  install -d -m "$(value StateDirectoryMode)" -o "$(value User)" -g "$(value Group)" \
    "/var/lib/$(value StateDirectory)"
  command=$(value ExecStart)
  command=${command//%i/${name#*@}}
  command=${command/\/usr\/bin\/whycache/whycache}
  umask "$(value UMask)"
  # shellcheck disable=SC2086
  setsid setpriv --reuid="$(value User)" --regid="$(value Group)" --init-groups $command \
    >>"/run/$name.out" 2>&1 </dev/null &
  echo $! >"$pid_file"
}
case $1 in
  daemon-reload) ;;
  enable | start) start ;;
  stop) stop ;;
  restart) stop && start ;;
  *) echo "systemctl $1 is not part of this machine" >&2; exit 1 ;;
esac
"""


def blocks(text):
    """Returns (line, expected exit code, commands) of each block to run."""
    pattern = re.compile(r"^```sh fleet(?: exit=(\d+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [
        (text.count("\n", 0, found.start()) + 1, int(found[1] or 0), found[2])
        for found in pattern.finditer(text)
    ]


def script_of(page):
    """Returns the page as one bash script, which says where it stopped."""
    script = ["set -eEu -o pipefail", "trap 'echo \"FAILED at line $line of the page\" >&2' ERR"]
    for line, code, commands in blocks(page):
        script.append(f"line={line}; echo \"--- line {line}\" >&2")
        if code == 0:
            script.append(commands)
            continue
        script.append(f"code=0; ( {commands} ) || code=$?")
        script.append(f"[ $code = {code} ] || {{ echo \"exit code $code\" >&2; false; }}")
    return "\n".join(script)


def check_runbook(page):
    """Each exit code and each event has an entry."""
    missing = []
    codes = re.findall(r"^  (\w+) = (\d+),$", (ROOT / "cli/exit_code.h").read_text(), re.MULTILINE)
    for name, number in codes:
        if f"| {number} `{name}` |" not in page:
            missing.append(f"exit code {number} {name}")
    options = (ROOT / "include/whycache/options.h").read_text()
    kinds = re.search(r"enum class Kind \{(.*?)\};", options, re.DOTALL)[1]
    for name in re.findall(r"^ +(\w+),? *//", kinds, re.MULTILINE):
        if f"| `{name}` |" not in page:
            missing.append(f"event {name}")
    if not codes or missing:
        sys.exit(f"the runbook of docs/operations.md has no entry for: {', '.join(missing)}")


def verify_unit(program, directory):
    """systemd-analyze verify accepts the unit."""
    if shutil.which("systemd-analyze") is None:
        print("NOT TESTED: systemd-analyze is not installed")
        return
    if "Type=notify\n" not in UNIT.read_text():
        sys.exit(f"{UNIT}: follow tells systemd when it is ready")
    path = pathlib.Path(directory, "whycache-follow@flags.service")
    path.write_text(UNIT.read_text().replace("/usr/bin/whycache", str(program)))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", path], capture_output=True,
                          text=True, check=False)
    if done.returncode != 0 or done.stderr:
        sys.exit(f"systemd-analyze verify: {done.stderr}")


def run_page(program, page, directory):
    programs = pathlib.Path(directory, "bin")
    programs.mkdir()
    shutil.copy(program, programs / "whycache")
    (programs / "systemctl").write_text(SYSTEMCTL)
    for path in (*programs.iterdir(),):
        path.chmod(0o755)
    pathlib.Path(directory, "machine.sh").write_text(MACHINE)
    pathlib.Path(directory, "page.sh").write_text(script_of(page))
    environment = {
        "PATH": f"{programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "MACHINE": directory,
        "UNIT": str(UNIT),
        "LC_ALL": "C.UTF-8",
    }
    # The log of the preparation is of interest only if it fails.
    command = ('bash "$MACHINE/machine.sh" >"$MACHINE/machine.log" 2>&1 '
               '|| { cat "$MACHINE/machine.log"; exit 99; }; bash "$MACHINE/page.sh"')
    namespaces = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--mount-proc",
                  "--kill-child"]
    done = subprocess.run([*namespaces, "bash", "-c", command], env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=280,
                          check=False)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\nexit code {done.returncode}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    program = pathlib.Path(parser.parse_args().program).resolve()
    page = PAGE.read_text()
    check_runbook(page)
    # Other users run the program, so the directory is not below a private one.
    with tempfile.TemporaryDirectory(prefix="whycache-operations-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        verify_unit(program, directory)
        needed = ["unshare", "mariadbd", "mariadb-install-db", "openssl", "useradd", "runuser",
                  "setpriv", "ip", "sqlite3"]
        missing = [name for name in needed
                   if shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None]
        if os.geteuid() != 0 or missing:
            print(f"NOT TESTED: needs root and {', '.join(missing) or 'no more'}")
            return
        probe = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"],
                               capture_output=True, check=False)
        if probe.returncode != 0:
            print(f"NOT TESTED: no namespaces: {probe.stderr}")
            return
        run_page(program, page, directory)


if __name__ == "__main__":
    main()
