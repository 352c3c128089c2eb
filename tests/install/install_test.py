"""Installs a build into a temporary directory, builds user.cc against it, and runs the result.

The program finds the library with find_package (shared and static) and with pkg-config (through
CMake, and directly).
"""

import argparse
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent


def run(*command, **options):
    print("$", shlex.join(map(str, command)), flush=True)
    if subprocess.run(command, **options).returncode != 0:
        sys.exit("failed: " + shlex.join(map(str, command)))


def output(*command, **options):
    return subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE, **options
    ).stdout.split()


parser = argparse.ArgumentParser()
parser.add_argument("--build", required=True, help="the build to install")
parser.add_argument("--compiler", required=True)
arguments = parser.parse_args()

with tempfile.TemporaryDirectory(prefix="whycache-install-") as directory:
    prefix, build = f"{directory}/prefix", f"{directory}/build"
    run("cmake", "--install", arguments.build, "--prefix", prefix)

    found = list(pathlib.Path(prefix).rglob("whycache.pc"))
    if len(found) != 1:
        sys.exit(f"one whycache.pc expected, found {found}")
    libraries = found[0].parent.parent
    environment = dict(os.environ, PKG_CONFIG_PATH=str(found[0].parent))
    header_directories = {path.parent for path in pathlib.Path(prefix).rglob("*.h")}
    if header_directories != {pathlib.Path(prefix) / "include/whycache"}:
        sys.exit(f"headers in unexpected places: {header_directories}")

    run(
        "cmake",
        "-S",
        HERE,
        "-B",
        build,
        "-G",
        "Ninja",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_PREFIX_PATH={prefix}",
        f"-DCMAKE_CXX_COMPILER={arguments.compiler}",
        env=environment,
    )
    run("cmake", "--build", build)

    pkg_config_flags = output("pkg-config", "--cflags", "--libs", "whycache", env=environment)
    run(
        arguments.compiler,
        "-std=c++20",
        "-Wall",
        "-Wextra",
        "-Werror",
        HERE / "user.cc",
        "-o",
        f"{build}/user_direct",
        *pkg_config_flags,
        f"-Wl,-rpath,{libraries}",
    )

    for number, program in enumerate(
        ["user_shared", "user_static", "user_pkg_config", "user_direct"]
    ):
        os.mkdir(f"{directory}/log{number}")
        run(f"{build}/{program}", f"file://{directory}/log{number}", f"{directory}/{program}.state")
    if os.path.exists(f"{prefix}/bin/whycache"):
        run(f"{prefix}/bin/whycache", "version")
