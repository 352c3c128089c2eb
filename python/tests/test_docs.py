"""Runs the examples of docs/python.md and of README.md."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def blocks_of(document: str) -> list[str]:
    text = (ROOT / document).read_text()
    # Blocks with the name of a file are programs of their own: test_recipes.py.
    return re.findall(r"^```python(?: test)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", ["docs/python.md", "README.md"])
def test_every_block_in_python_is_run(document):
    text = (ROOT / document).read_text()
    blocks = re.findall(r"^[ \t>]*(?:```+|~~~+)[ \t]*py.*$", text, re.MULTILINE | re.IGNORECASE)
    programs = re.findall(r"^```python \w+\.py$", text, re.MULTILINE)
    assert len(blocks_of(document)) + len(programs) == len(blocks), blocks


def run_blocks(document: str, tmp_path: pathlib.Path) -> dict[str, object]:
    """Runs the blocks of a document in order. /var/lib becomes a temporary directory."""
    (tmp_path / "other").mkdir()
    names: dict[str, object] = {}
    blocks = blocks_of(document)
    assert blocks
    for block in blocks:
        code = block.replace("/var/lib", str(tmp_path))
        exec(compile(code, document, "exec"), names)
    return names


@pytest.fixture
def own_state(tmp_path, monkeypatch):
    (tmp_path / "states").mkdir()
    monkeypatch.setenv("WHYCACHE_STATE", f"{tmp_path}/states/")


async def test_examples_of_the_guide_run(tmp_path, own_state, capsys):
    names = run_blocks("docs/python.md", tmp_path)
    output = capsys.readouterr().out
    assert "on\nb'checkout.enabled' True\n" in output
    assert "secrets do not belong here" in output

    # The web handler answers.
    from aiohttp.test_utils import TestClient, TestServer

    async with TestClient(TestServer(names["app"])) as client:
        answer = await client.put("/colour", data=json.dumps("blue"))
        written = (await answer.json())["update_id"]
        answer = await client.get("/colour")
        assert await answer.json() == {"value": "blue", "as_of": written}
        assert (await (await client.get("/absent")).json())["value"] is None

    # A browser is told of changes, and resumes by the id of the last event.
    flags = names["flags"]
    async with TestClient(TestServer(names["events_app"])) as client:
        before = flags.applied_id()
        for colour in ("red", "green"):
            await flags.set(b"colour", colour)
        for after, expected in ((before, [before + 1, before + 2]), (before + 1, [before + 2])):
            answer = await client.get("/events?prefix=col",
                                      headers={"Last-Event-ID": str(after)})
            for update_id in expected:
                event = [await answer.content.readline() for _ in range(3)]
                assert json.loads(event[0].removeprefix(b"data: ")) == {
                    "kind": "set", "key": "colour"}
                assert event[1] == b"id: %d\n" % update_id
            answer.close()

    for name in ("cache", "other_machine", "bounded", "flags", "guarded"):
        names[name].close()


def test_examples_of_the_readme_run(tmp_path, own_state, capsys):
    names = run_blocks("README.md", tmp_path)
    names["cache"].close()
