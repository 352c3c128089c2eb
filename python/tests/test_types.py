"""The types of the package: mypy on it, stubs against the module, and a user's code."""

import inspect
import pathlib
import subprocess
import sys

import whycache

PACKAGE = pathlib.Path(whycache.__file__).parent


def run(*arguments, **options):
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True,
                          text=True, timeout=300, **options)
    return done.returncode, done.stdout + done.stderr


def test_package_passes_mypy_strict(tmp_path):
    code, output = run("mypy", "--strict", "--cache-dir", tmp_path, PACKAGE, cwd=tmp_path)
    assert code == 0, output


def test_stubs_describe_the_modules(tmp_path):
    allowed = tmp_path / "allowed.txt"
    # typing.NamedTuple with Generic: typeshed and CPython differ.
    allowed.write_text("whycache._operations.TransactResult.__class_getitem__\n")
    code, output = run("mypy.stubtest", "--ignore-disjoint-bases", "--allowlist", allowed,
                       "whycache", cwd=tmp_path)
    assert code == 0, output


def test_users_see_the_types_of_results(tmp_path):
    (tmp_path / "user_code.py").write_text("""\
import whycache
from whycache import aio

cache = whycache.Cache("memory:")
update_id: int = cache.set(b"a", 1)
maybe: int | None = cache.set_if(b"a", 1, 2)
result: str = cache.transact(lambda t: "text").value


async def use(cache: aio.Cache) -> int:
    async def function(t: whycache.Transaction) -> str:
        return ""

    text: str = (await cache.transact(function)).value
    write: aio.Write[int] = cache.set(b"a", text)
    return await write


cache.set("text", 1)
whycache.Caches("memory:")
""")
    code, output = run("mypy", "--strict", "--cache-dir", tmp_path / "cache", "user_code.py",
                       cwd=tmp_path)
    assert code == 1
    assert output.splitlines()[:-1] == [
        'user_code.py:19: error: Argument 1 to "set" of "Cache" has incompatible type "str"; '
        'expected "bytes"  [arg-type]',
        'user_code.py:20: error: Module has no attribute "Caches"; maybe "Cache"?  [attr-defined]']


def test_methods_have_docstrings_and_signatures():
    for cls in (whycache.Cache, whycache.aio.Cache, whycache.View, whycache.Memo,
                whycache.Transaction, whycache.Log):
        for name, method in inspect.getmembers(cls, callable):
            if name.startswith(("_", "start_")):
                continue
            assert inspect.getdoc(method), (cls, name)
            inspect.signature(method)
