#!/usr/bin/env python3
"""Times what the stable ABI would cost a hot get (docs/decisions/python-package.md).

    python3 python/bench/stable_abi.py

Compiles two modules that do what Cache.get() does around the look-up: check the key, copy a value
of 100 bytes into a new bytes object. One uses the stable ABI of Python 3.11, the other its macros.
"""

import importlib
import pathlib
import subprocess
import sys
import sysconfig
import tempfile
import time

SOURCE = r"""
#include <Python.h>
#include <string.h>
#ifdef Py_LIMITED_API
#define DATA PyBytes_AsString
#define SIZE PyBytes_Size
#else
#define DATA PyBytes_AS_STRING
#define SIZE PyBytes_GET_SIZE
#endif
static char value[100];
static PyObject* spare;
static PyObject* get(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  if (count < 1 || count > 2 || !PyBytes_Check(arguments[0])) return NULL;
  if ((size_t)SIZE(arguments[0]) - 1 >= 1024) return NULL;
  value[0] = DATA(arguments[0])[0];
  PyObject* result = spare != NULL ? spare : PyBytes_FromStringAndSize(NULL, sizeof value);
  memcpy(DATA(result), value, (size_t)SIZE(result));
  spare = PyBytes_FromStringAndSize(NULL, SIZE(result));
  return result;
}
static PyMethodDef methods[] = {
    {"get", (PyCFunction)(void (*)(void))get, METH_FASTCALL, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, NAME, NULL, 0, methods};
PyMODINIT_FUNC INIT(void) { return PyModule_Create(&definition); }
"""


def nanoseconds(get) -> float:
    keys = [b"key-00000000001"] * 200_000
    times = []
    for _ in range(50):
        began = time.perf_counter_ns()
        for key in keys:
            get(key)
        times.append((time.perf_counter_ns() - began) / len(keys))
    return min(times)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        (directory / "get.c").write_text(SOURCE)
        sys.path.insert(0, name)
        include = sysconfig.get_paths()["include"]
        for module, options in (("of_this_version", []),
                                ("stable", ["-DPy_LIMITED_API=0x030b0000"])):
            subprocess.run(["cc", "-O2", "-fPIC", "-shared", f"-I{include}", f'-DNAME="{module}"',
                            f"-DINIT=PyInit_{module}", *options, directory / "get.c", "-o",
                            directory / f"{module}.so"], check=True)
            print(f"{module:<16} {nanoseconds(importlib.import_module(module).get):6.1f} ns")


if __name__ == "__main__":
    main()
