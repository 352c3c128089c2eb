#!/usr/bin/env python3
"""Makes an sdist and a wheel that needs neither a compiler nor libraries beyond glibc.

    python/make_wheel.py --directory build/wheel

The sdist holds the project; the wheel is built from it. auditwheel then puts the libraries that the
module links beside it: SQLite, zstd, libmariadb with its plugins, libpq and what these need.
libstdc++ is linked statically. The wheel lists what it bundles, with versions and licences.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import make_environment

PACKAGE = make_environment.PACKAGE
PROJECT = PACKAGE.parent

# What the extension module is built from, beside python/.
PROJECT_FILES = ("CMakeLists.txt", "LICENSE", "cmake", "include", "src")


def run(*command: object, **environment: str) -> None:
    subprocess.run([str(word) for word in command], check=True, env={**os.environ, **environment})


def make_tools(directory: pathlib.Path) -> pathlib.Path:
    return make_environment.make_tools(directory, PACKAGE / "requirements-wheel.txt")


def tracked_files(below: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard",
                             "--", below], cwd=PROJECT, check=True, capture_output=True, text=True)
    return [path for path in listed.stdout.split("\0") if path and (PROJECT / path).is_file()]


def stage_source(directory: pathlib.Path) -> pathlib.Path:
    """Lays out the source of the sdist: the package, with the project in a directory of its own."""
    source = directory / "source"
    shutil.rmtree(source, ignore_errors=True)
    for path in tracked_files("python"):
        target = source / pathlib.Path(path).relative_to("python")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / path, target)
    for name in PROJECT_FILES:
        for path in tracked_files(name):
            target = source / "project" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / path, target)
    shutil.copy2(PROJECT / "LICENSE", source / "LICENSE")
    return source


def make_sdist(python: pathlib.Path, directory: pathlib.Path) -> pathlib.Path:
    source = stage_source(directory)
    run(python, "-m", "build", "--sdist", "--no-isolation", "--outdir", directory / "dist", source)
    return next((directory / "dist").glob("*.tar.gz"))


def build_wheel(python: pathlib.Path, sdist: pathlib.Path, directory: pathlib.Path,
                defines: list[str]) -> pathlib.Path:
    raw = directory / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    unpacked = directory / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    # Files of an sdist have no times that say whether they have changed.
    shutil.rmtree(directory / "build", ignore_errors=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    settings = [word for define in defines
                for word in ("--config-settings", f"cmake.define.{define}")]
    run(python, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--no-build-isolation", "--wheel-dir", raw,
        "--config-settings", f"build-dir={directory / 'build'}",
        "--config-settings", "cmake.define.WHYCACHE_MEMCACHED=OFF",
        "--config-settings", "cmake.define.WHYCACHE_REDIS=OFF",
        "--config-settings", "cmake.define.WHYCACHE_STATIC_LIBSTDCXX=ON",
        *settings, next(unpacked.iterdir()))
    return next(raw.glob("*.whl"))


# How a user proves who it is, beside the built-in way: by a password, also one that the server
# passes on to PAM, LDAP or a cloud's own service. Not by GSSAPI, which needs a Kerberos of its own.
MYSQL_PLUGINS = ("caching_sha2_password.so", "client_ed25519.so", "dialog.so",
                 "mysql_clear_password.so", "sha256_password.so")


def links_libmariadb(module: pathlib.Path) -> bool:
    needed = subprocess.run(["readelf", "--dynamic", module], check=True, capture_output=True,
                            text=True).stdout
    return "[libmariadb" in needed


def add_mysql_plugins(python: pathlib.Path, raw: pathlib.Path, directory: pathlib.Path
                      ) -> pathlib.Path:
    """Adds what libmariadb loads while it connects, where src/log/mysql_connection.cc looks.

    Without libmariadb, the wheel stays as it is.
    """
    unpacked = directory / "with_plugins"
    shutil.rmtree(unpacked, ignore_errors=True)
    run(python, "-m", "wheel", "unpack", "--dest", unpacked, raw)
    root = next(unpacked.iterdir())
    if not links_libmariadb(next((root / "whycache").glob("_whycache.*.so"))):
        return raw
    plugins = subprocess.run(["mariadb_config", "--plugindir"], check=True, capture_output=True,
                             text=True).stdout.strip()
    target = root / "whycache" / "mysql_plugins"
    target.mkdir()
    for name in MYSQL_PLUGINS:
        shutil.copy(pathlib.Path(plugins) / name, target)
    run(python, "-m", "wheel", "pack", "--dest-dir", raw.parent, root)
    return raw


def repair_wheel(python: pathlib.Path, raw: pathlib.Path, directory: pathlib.Path) -> pathlib.Path:
    """Copies the libraries that the module needs into the wheel."""
    repaired = directory / "repaired"
    shutil.rmtree(repaired, ignore_errors=True)
    run(python, "-m", "auditwheel", "repair", "--wheel-dir", repaired, raw,
        PATH=f"{python.parent}:{os.environ['PATH']}")
    return next(repaired.glob("*.whl"))


def package_of(library: str) -> tuple[str, str]:
    """The Debian package of a library, and its version."""
    name = re.sub(r"-[0-9a-f]{8}(?=\.)", "", library, count=1)
    stem = name.split(".so")[0]
    listed = subprocess.run(["dpkg-query", "-S", f"*/{stem}.so*"], capture_output=True, text=True)
    for line in listed.stdout.splitlines():
        package, _, path = line.partition(": ")
        if not package.split(":")[0].endswith("-dev") and pathlib.Path(path).name.startswith(stem):
            version = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package],
                                     capture_output=True, text=True).stdout
            return package.split(":")[0], version
    raise SystemExit(f"no Debian package has the bundled library: {library}")


def add_licences(python: pathlib.Path, wheel: pathlib.Path, directory: pathlib.Path
                 ) -> pathlib.Path:
    """Adds the licences of what is bundled, and the list with versions."""
    unpacked = directory / "licensed"
    shutil.rmtree(unpacked, ignore_errors=True)
    run(python, "-m", "wheel", "unpack", "--dest", unpacked, wheel)
    root = next(unpacked.iterdir())
    licences = next(root.glob("*.dist-info")) / "licenses"
    licences.mkdir(exist_ok=True)
    shutil.copy(PROJECT / "LICENSE", licences / "LICENSE")
    lines = ["# Bundled in this wheel", "", "| file | Debian package | version |", "|---|---|---|"]
    packages = {}
    for library in sorted([*root.glob("whycache.libs/*"),
                           *root.glob("whycache/mysql_plugins/*")]):
        package, version = package_of(library.name)
        packages[package] = version
        lines.append(f"| {library.name} | {package} | {version} |")
    for header_only, package in (("xxHash (inlined)", "libxxhash-dev"),
                                 ("libstdc++ (static)", "libstdc++-12-dev")):
        version = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package],
                                 capture_output=True, text=True).stdout
        if version:
            packages[package] = version
            lines.append(f"| {header_only} | {package} | {version} |")
    for package in packages:
        copyright_file = pathlib.Path("/usr/share/doc") / package / "copyright"
        if copyright_file.is_file():
            shutil.copyfile(copyright_file, licences / f"{package}.txt")
    (licences / "BUNDLED.md").write_text("\n".join(lines) + "\n")
    dist = directory / "dist"
    run(python, "-m", "wheel", "pack", "--dest-dir", dist, root)
    return dist / wheel.name


def check_wheel(wheel: pathlib.Path) -> None:
    """Prints what the wheel holds, and fails if the module needs what it must not."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    plugins = MYSQL_PLUGINS if any("/libmariadb" in name for name in names) else ()
    for needed in ("whycache/py.typed", "whycache/_whycache.pyi", "BUNDLED.md", *plugins):
        if not any(name.endswith(needed) for name in names):
            raise SystemExit(f"the wheel lacks {needed}")
    print(wheel)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=pathlib.Path, required=True, help="where to work")
    parser.add_argument("--define", action="append", default=[], metavar="NAME=VALUE",
                        help="a variable for CMake")
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    shutil.rmtree(directory / "dist", ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    python = make_tools(directory)
    sdist = make_sdist(python, directory)
    raw = add_mysql_plugins(python, build_wheel(python, sdist, directory, arguments.define),
                            directory)
    wheel = add_licences(python, repair_wheel(python, raw, directory), directory)
    check_wheel(wheel)
    print(sdist)


if __name__ == "__main__":
    sys.exit(main())
