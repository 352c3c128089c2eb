#!/usr/bin/env python3
"""Installs a release build and uses it in every way that README.md names.

    installed/    a project that finds the installed library
    subproject/   a project that builds the library itself
    user.cc       the program of both

and ../../examples/service, which finds the installed library, too.

Without --release, builds the library as the preset `library` does, in --directory. That build and
the installation stay there, so the next run only compiles what has changed.
"""

import argparse
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


def run(*command, **options):
    """Returns what the command prints. Ends the test if it fails."""
    words = [str(word) for word in command]
    print("$", shlex.join(words), flush=True)
    done = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          **options)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\nexit code {done.returncode}: {shlex.join(words)}")
    return done.stdout


def expect(holds, message):
    if not holds:
        sys.exit(f"FAILED: {message}")


class InstallTest:
    def __init__(self, directory, temporary, compiler, launcher):
        self.directory = pathlib.Path(directory).resolve()
        self.temporary = pathlib.Path(temporary)
        # The path of a header is part of what the launcher compares, so it is the same in each run.
        self.prefix = self.directory / "prefix"
        self.compiler = compiler
        self.cmake_options = ["-G", "Ninja", f"-DCMAKE_CXX_COMPILER={compiler}"]
        self.launcher = [f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}"] if launcher else []
        self.programs = 0

    def build_release(self):
        build = self.directory / "release"
        run("cmake", "--preset", "library", "-B", build, *self.cmake_options, *self.launcher,
            cwd=ROOT)
        run("cmake", "--build", build, "--parallel", "2")
        return build

    def install(self, build):
        shutil.rmtree(self.prefix, ignore_errors=True)
        run("cmake", "--install", build, "--prefix", self.prefix)
        found = list(self.prefix.rglob("whycache.pc"))
        expect(len(found) == 1, f"one whycache.pc expected: {found}")
        self.pkg_config_directory = found[0].parent
        self.libraries = found[0].parent.parent
        self.include = self.prefix / "include"
        headers = {path.relative_to(self.include) for path in self.prefix.rglob("*.h")}
        public = {path.relative_to(ROOT / "include") for path in ROOT.glob("include/whycache/*.h")}
        expect(headers == public, f"installed headers: {headers}")
        if (self.prefix / "bin/whycache").exists():
            run(self.prefix / "bin/whycache", "version")
            expect((self.prefix / "lib/systemd/system/whycache-follow@.service").is_file(),
                   "not installed: the systemd unit")
            for page in ("man/man1/whycache-get.1", "bash-completion/completions/whycache",
                         "zsh/site-functions/_whycache",
                         "fish/vendor_completions.d/whycache.fish"):
                expect((self.prefix / "share" / page).is_file(), f"not installed: {page}")

    def run_user(self, program):
        """Runs a build of user.cc, each with a log and a state of its own."""
        self.programs += 1
        log = self.temporary / f"log{self.programs}"
        log.mkdir()
        run(program, f"file://{log}", f"{log}.state")

    def uses_shared_library(self, program):
        return "libwhycache.so" in run("readelf", "--dynamic", "--wide", program)

    def check_archive(self):
        """A link of a program must not optimise the library again, which takes long and warns."""
        sections = run("readelf", "--sections", "--wide", self.libraries / "libwhycache.a")
        expect(".text" in sections, "libwhycache.a contains no machine code")
        expect(".gnu.lto" not in sections, "libwhycache.a contains bytecode of the compiler")

    def pkg_config(self, *options):
        # No other package is installed as far as pkg-config can see.
        environment = dict(os.environ, PKG_CONFIG_LIBDIR=str(self.pkg_config_directory))
        environment.pop("PKG_CONFIG_PATH", None)
        return run("pkg-config", *options, "whycache", env=environment).split()

    def check_pkg_config(self, compiler):
        flags = self.pkg_config("--cflags", "--libs")
        paths = [os.path.normpath(flag[2:]) for flag in flags[:2]]
        expect(paths == [str(self.include), str(self.libraries)] and flags[2:] == ["-lwhycache"],
               f"flags for the shared library: {flags}")
        static_flags = self.pkg_config("--static", "--cflags", "--libs")
        expect([flag for flag in static_flags if flag.startswith("-I")] == [flags[0]],
               f"include directories of others: {static_flags}")

        program = self.temporary / "user_shared"
        run(compiler, "-std=c++20", "-O2", *WARNINGS, HERE / "user.cc", "-o", program, *flags,
            f"-Wl,-rpath,{self.libraries}")
        expect(self.uses_shared_library(program), "not linked to the shared library")
        self.run_user(program)

        program = self.temporary / "user_static"
        run(compiler, "-std=c++20", "-O2", *WARNINGS, HERE / "user.cc", "-o", program,
            *(flag.replace("-lwhycache", "-l:libwhycache.a") for flag in static_flags))
        expect(not self.uses_shared_library(program), "not linked to the static library")
        self.run_user(program)

    def check_language_mode(self, compiler):
        """A compiler that is not told to compile C++20 reports this, and no errors that follow."""
        for header in sorted((self.include / "whycache").glob("*.h")):
            done = subprocess.run(
                [compiler, "-std=c++17", "-fsyntax-only", f"-I{self.include}", "-x", "c++", "-"],
                input=f"#include <whycache/{header.name}>\nwhycache::UpdateId id = 1;\n",
                text=True, stderr=subprocess.PIPE)
            errors = [line for line in done.stderr.splitlines() if "error: " in line]
            expect(done.returncode != 0 and "compile with -std=c++20" in errors[0]
                   and all("fatal error: " in line for line in errors[1:]),
                   f"{compiler} -std=c++17 says of {header.name}:\n{done.stderr}")

    def check_find_package(self):
        for name, options, expected in (
                ("default", [], "SHARED_LIBRARY"),
                ("shared", ["-DBUILD_SHARED_LIBS=ON"], "SHARED_LIBRARY"),
                ("static", ["-DBUILD_SHARED_LIBS=OFF"], "STATIC_LIBRARY")):
            build = self.temporary / f"find_package_{name}"
            run("cmake", "-S", HERE / "installed", "-B", build, *self.cmake_options, *options,
                f"-DCMAKE_PREFIX_PATH={self.prefix}", f"-DEXPECTED_TYPE={expected}")
            if name != "shared":
                run("cmake", "--build", build)
                self.run_user(build / "user")

    def check_service(self):
        """The service of examples/ is a user's project: builds it alone, and asks it once."""
        if subprocess.run(["pkg-config", "--exists", "cpp-httplib", "nlohmann_json"]).returncode:
            return print("NOT TESTED: the example service needs cpp-httplib and nlohmann-json")
        build = self.directory / "service"
        run("cmake", "--fresh", "-S", ROOT / "examples/service", "-B", build, *self.cmake_options,
            *self.launcher, f"-DCMAKE_PREFIX_PATH={self.prefix}", "-DCMAKE_UNITY_BUILD=ON")
        run("cmake", "--build", build)
        log = self.temporary / "service_log"
        log.mkdir()
        command = [build / "example_service", "--log", f"file://{log}", "--port", "0", "--state",
                   self.temporary / "service.state"]
        print("$", shlex.join(map(str, command)), flush=True)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
            try:
                address = service.stdout.readline().split()[-1]
                write = urllib.request.Request(f"http://{address}/flags/a", b"on", method="PUT")
                with urllib.request.urlopen(write, timeout=20) as answer:
                    written = json.load(answer)
            finally:
                service.terminate()
        expect(written == {"update": 1} and service.returncode == 0,
               f"the service answered {written} and ended with {service.returncode}")

    def check_subproject(self):
        # Needs no package that only tests, tools and logs need.
        fewer = [f"-DCMAKE_DISABLE_FIND_PACKAGE_{name}=ON"
                 for name in ("GTest", "fmt", "CLI11", "nlohmann_json", "Python3")]
        fewer += ["-DWHYCACHE_SQLITE=OFF", "-DWHYCACHE_MYSQL=OFF", "-DWHYCACHE_POSTGRES=OFF",
                  "-DWHYCACHE_MEMCACHED=OFF", "-DWHYCACHE_REDIS=OFF"]
        for method, shared, expected in (
                ("FetchContent", "ON", "whycache_shared"),
                ("add_subdirectory", "OFF", "whycache_static")):
            build = self.directory / method
            run("cmake", "-S", HERE / "subproject", "-B", build, *self.cmake_options,
                *self.launcher, *fewer, f"-DWHYCACHE_SOURCE={ROOT}", f"-DMETHOD={method}",
                f"-DBUILD_SHARED_LIBS={shared}", f"-DEXPECTED_TARGET={expected}")
            if method == "FetchContent":
                continue  # it differs only in how the folder is found, and compiling takes long
            run("cmake", "--build", build, "--parallel", "2")
            self.run_user(build / "user")
            prefix = self.temporary / "subproject"
            run("cmake", "--install", build, "--prefix", prefix)
            installed = [str(path.relative_to(prefix)) for path in prefix.rglob("*")
                         if path.is_file()]
            expect(installed == ["bin/user"], f"installed by a project of its own: {installed}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", required=True, help="where to build")
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--launcher", help="as CMAKE_CXX_COMPILER_LAUNCHER")
    parser.add_argument("--release", help="a release build to install")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="whycache-install-") as temporary:
        test = InstallTest(arguments.directory, temporary, arguments.compiler, arguments.launcher)
        test.install(arguments.release or test.build_release())
        test.check_archive()
        found = filter(None, map(shutil.which, (arguments.compiler, "g++", "clang++")))
        for compiler in {run(path, "-dumpversion"): path for path in found}.values():
            test.check_pkg_config(compiler)
            test.check_language_mode(compiler)
        test.check_find_package()
        test.check_service()
        test.check_subproject()


if __name__ == "__main__":
    main()
