"""The interface of the original program, on its two stores."""

import pathlib

import pytest
import servers

from whycache.original import FileWhycacheInstance, MySQLWhycacheInstance, WhycacheInstance


@pytest.fixture(scope="session")
def mariadb_port(tmp_path_factory):
    with servers.mariadb(tmp_path_factory.mktemp("mariadb") / "server") as port:
        yield port


@pytest.fixture(params=["file", "mysql"])
async def make_instance(request, tmp_path, monkeypatch):
    """A function that makes an instance, each time on the same, initially empty, store."""
    if request.param == "file":
        (tmp_path / "data").mkdir()

        def make() -> WhycacheInstance:
            return FileWhycacheInstance("test-instance", str(tmp_path / "data"))
    else:
        port = request.getfixturevalue("mariadb_port")
        monkeypatch.setattr(MySQLWhycacheInstance, "shared_state_filename",
                            lambda self: str(tmp_path / "mysql.state"))

        def make() -> WhycacheInstance:
            return MySQLWhycacheInstance("test", "whycache", "127.0.0.1", port, "whycache",
                                         "secret", "test")
    instance = make()
    await instance.delete_all_history()
    await instance.update()
    yield make
    await instance.close()


@pytest.fixture
async def pc(make_instance):
    instance = make_instance()
    yield instance
    await instance.close()


async def test_set_get_and_delete(pc):
    first = await pc.set(b"key1", b"value1")
    assert await pc.set_multi({b"key2": b"2", b"key3": b"3"}) == first + 1
    assert pc.get(b"key1") == b"value1"
    await pc.delete(b"key1")
    with pytest.raises(KeyError):
        pc.get(b"key1")
    await pc.delete_multi([b"key2"])
    assert list(pc.items()) == [(b"key3", b"3")]
    assert await pc.set_multi({}) is None
    assert await pc.get_latest_update_id() == pc.get_shared_state_update_id() == first + 3


@pytest.mark.parametrize("key", ["key0", 0, True, None, ()])
async def test_wrong_types_raise_type_error(pc, key):
    with pytest.raises(TypeError):
        pc.get(key)
    with pytest.raises(TypeError):
        await pc.set(key, b"value0")
    with pytest.raises(TypeError):
        await pc.delete(key)
    with pytest.raises(TypeError):
        await pc.set_multi({key: b"value0", b"key1": b"value1"})
    with pytest.raises(TypeError):
        await pc.delete_multi([key, b"key1"])


async def test_empty_key_and_large_value_raise_value_error(pc):
    for items in ({b"": b"4"}, {b"key1": b"*" * (1024 * 1024)},
                  {b"a": b"1", b"large": b"*" * (1024 * 1024)}):
        with pytest.raises(ValueError) as raised:
            await pc.set_multi(items)
        assert raised.type is ValueError
    assert list(pc.keys()) == []


async def test_batch_of_large_values_is_split(pc):
    data = b"*" * 128 * 1024
    await pc.set_multi({b"key%d" % i: data for i in range(20)})
    assert all(pc.get(b"key%d" % i) == data for i in range(20))


async def test_two_instances_share_the_state(pc, make_instance):
    await pc.set(b"key1", b"1")
    other = make_instance()
    assert other.get_shared_state_update_id() == pc.get_shared_state_update_id()
    await other.set(b"key1", b"1111")
    assert pc.get(b"key1") == b"1111"
    await other.close()


async def test_state_is_built_again_after_it_was_deleted(pc):
    assert pc.valid()
    await pc.set(b"key1", b"1")
    pc.delete_shared_state()
    pc.delete_shared_state()
    assert not pc.valid()

    await pc.update()

    assert pc.valid()
    pc.assert_valid()
    assert pc.get(b"key1") == b"1"
    pc.delete_shared_state()
    assert pc.get(b"key1") == b"1"


async def test_closed_state_opens_again(pc):
    await pc.set(b"key1", b"1")
    pc.close_shared_state()
    assert pathlib.Path(pc.shared_state_filename()).exists()
    assert pc.get(b"key1") == b"1"
    pc.close_shared_state()
    pc.close_shared_state()
    await pc.set(b"key2", b"2")
    assert pc.get_shared_state()["item_count"] == 2


async def test_iterators_see_one_update_id(pc):
    await pc.set_multi({b"key1": b"1", b"key3": b"3"})
    keys = pc.keys()
    assert next(keys) == b"key1"
    await pc.set(b"key4", b"4")
    assert list(keys) == [b"key3"]
    assert list(pc.values()) == [b"1", b"3", b"4"]


async def test_rewrite_history_with_a_filter(pc):
    await pc.set_multi({b"key%d" % i: b"%d" % (i % 2) for i in range(10)})
    await pc.rewrite_history(await pc.get_latest_update_id(),
                             filter_fn=lambda key, value: value == b"1")
    assert len(list(pc.keys())) == 5
    pc.delete_shared_state()
    await pc.update()
    assert len(list(pc.keys())) == 5


def test_instance_is_abstract():
    with pytest.raises(TypeError):
        WhycacheInstance("test")


async def test_subclass_may_override_get(tmp_path):
    class Decoding(FileWhycacheInstance):
        def get(self, key):
            return super().get(key).decode()

    instance = Decoding("decoding", str(tmp_path))
    await instance.set(b"a", b"1")
    assert instance.get(b"a") == "1"
    await instance.close()
