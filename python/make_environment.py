#!/usr/bin/env python3
"""Installs a wheel of the package, with the library of an existing build, into a new environment.

    python/make_environment.py --library build/dev --directory build/dev/python

The environment is DIRECTORY/environment. Tools for building and testing come from PyPI
(requirements-build.txt, requirements.txt) and stay in DIRECTORY/tools. The extension module is
compiled again only if it has changed.
"""

import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import venv

PACKAGE = pathlib.Path(__file__).resolve().parent
BUILD_REQUIREMENTS = PACKAGE / "requirements-build.txt"
TEST_REQUIREMENTS = PACKAGE / "requirements.txt"


def run(*command: object, **environment: str) -> None:
    subprocess.run([str(word) for word in command], check=True, env={**os.environ, **environment})


def make_tools(directory: pathlib.Path, *more: pathlib.Path) -> pathlib.Path:
    """Returns the interpreter of an environment with the tools to build, and those in `more`. Makes
    it again if they have changed."""
    files = [BUILD_REQUIREMENTS, *more]
    tools = directory / "tools"
    stamp = tools / "requirements.sha256"
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files) +
                            sys.version.encode()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != digest:
        venv.create(tools, clear=True, with_pip=True)
        # A module is compiled when it is first imported. Most never are.
        run(tools / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "--no-compile", *(word for file in files for word in ("--requirement", file)))
        stamp.write_text(digest)
    return tools / "bin/python"


def build_wheel(python: pathlib.Path, library: pathlib.Path, directory: pathlib.Path
                ) -> pathlib.Path:
    wheels = directory / "wheel"
    shutil.rmtree(wheels, ignore_errors=True)
    run(python, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--no-build-isolation", "--wheel-dir", wheels,
        "--config-settings", f"build-dir={directory / 'build'}",
        "--config-settings", f"cmake.define.WHYCACHE_BUILD={library}", PACKAGE)
    return next(wheels.glob("*.whl"))


def make_environment(tools: pathlib.Path, wheel: pathlib.Path, directory: pathlib.Path) -> None:
    environment = directory / "environment"
    venv.create(environment, clear=True, with_pip=False)
    python = environment / "bin/python"
    run(tools, "-m", "pip", "--python", python, "install", "--quiet",
        "--disable-pip-version-check", "--no-deps", wheel)
    # The tools, such as pytest, behind what is installed here.
    site = next((tools.parent.parent / "lib").glob("python*/site-packages"))
    own_site = next((environment / "lib").glob("python*/site-packages"))
    (own_site / "tools.pth").write_text(f"{site}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--library", type=pathlib.Path, required=True,
                        help="directory of a build of the project")
    parser.add_argument("--directory", type=pathlib.Path, required=True, help="where to work")
    parser.add_argument("--requirements", type=pathlib.Path, action="append", default=[],
                        help="more tools to install")
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    tools = make_tools(directory, TEST_REQUIREMENTS, *arguments.requirements)
    wheel = build_wheel(tools, arguments.library.resolve(), directory)
    make_environment(tools, wheel, directory)
    print(wheel.name)


if __name__ == "__main__":
    main()
