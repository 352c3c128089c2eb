"""Values: what Python writes is what Python reads, by the format that all languages share."""

import base64
import collections
import datetime
import decimal
import enum
import gc
import json
import math
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import threading
import uuid
import zoneinfo

import msgpack_oracle
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sanitizer import COUNTS_BLOCKS

import whycache
from whycache import decode_value, encode_value

VECTORS = json.loads(
    (pathlib.Path(__file__).parents[2] / "docs/formats/vectors/value.json").read_text()
)

# Time of the machine's other work must not fail a test.
settings.register_profile(
    "whycache", deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("whycache")

offsets = st.builds(
    lambda microseconds, name: datetime.timezone(
        datetime.timedelta(microseconds=microseconds), *name
    ),
    st.integers(-86_399_999_999, 86_399_999_999),
    st.just(()) | st.tuples(st.text(min_size=1, max_size=20)),
)
zones = (
    st.none() | st.just(datetime.UTC) | offsets
    | st.sampled_from(["Europe/Berlin", "America/New_York", "UTC"]).map(zoneinfo.ZoneInfo)
)
any_text = st.text(st.characters(exclude_categories=[]), max_size=40)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(1 << 70), 1 << 70),
    st.integers(-(1 << 2000), 1 << 2000), st.floats(), any_text, st.binary(),
    st.dates(), st.times(timezones=zones),
    st.builds(lambda moment, fold: moment.replace(fold=fold),
              st.datetimes(timezones=zones, allow_imaginary=True), st.integers(0, 1)),
    st.timedeltas(), st.decimals(allow_nan=False), st.uuids(),
)
hashables = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4),
    max_leaves=5,
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.lists(inner, max_size=5).map(tuple)
    | st.dictionaries(hashables, inner, max_size=5) | st.sets(hashables, max_size=5)
    | st.frozensets(hashables, max_size=5),
    max_leaves=20,
)


def same(first: object, second: object, nan_sign: bool = True) -> bool:
    """Returns whether two values are the same in type, order and each detail. NaN equals NaN, of
    the same sign unless `nan_sign` is false."""
    if type(first) is not type(second):
        return False
    if isinstance(first, float):
        if not nan_sign and math.isnan(first):
            return math.isnan(second)
        return first.hex() == second.hex() and math.copysign(1, first) == math.copysign(1, second)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(
            same(one, other, nan_sign) for one, other in zip(first, second, strict=True))
    if isinstance(first, dict):
        return same(list(first.items()), list(second.items()), nan_sign)
    if isinstance(first, set | frozenset):
        return sorted(map(form, first)) == sorted(map(form, second))
    return repr(first) == repr(second)


def form(element: object) -> str:
    """A text that is the same for equal elements of sets, whatever the order of theirs."""
    if isinstance(element, frozenset):
        return f"frozenset({sorted(map(form, element))})"
    if isinstance(element, tuple):
        return f"tuple({list(map(form, element))})"
    return repr(element)


@given(values)
def test_values_survive_a_round_trip(value):
    assert same(decode_value(encode_value(value)), value)


@given(values)
def test_msgpack_writes_the_same_bytes(value):
    assert encode_value(value) == msgpack_oracle.encode(value)


@given(values)
def test_msgpack_reads_the_same_values(value):
    assert same(msgpack_oracle.decode(encode_value(value)), value)


@given(st.binary(max_size=60))
def test_any_bytes_are_decoded_or_refused(payload):
    stored = b"\xc1\x01" + payload
    try:
        value = decode_value(stored)
    except whycache.DecodeError:
        return
    again = encode_value(value)
    assert same(decode_value(again), value)


@given(values, st.data())
def test_damaged_values_are_decoded_or_refused(value, data):
    stored = bytearray(encode_value(value))
    for _ in range(data.draw(st.integers(1, 3))):
        if len(stored) > 2:
            position = data.draw(st.integers(2, len(stored) - 1))
            stored[position] = data.draw(st.integers(0, 255))
    try:
        decode_value(bytes(stored))
    except whycache.DecodeError:
        pass


@pytest.mark.parametrize("vector", VECTORS["values"], ids=lambda vector: vector["name"])
def test_vectors_are_decoded(vector):
    stored = bytes.fromhex(vector["bytes"])
    value = decode_value(stored)
    if "nested" not in vector["name"]:  # comparing takes more stack than Python allows
        assert same(value, msgpack_oracle.decode(stored))
    if type(value) is not bytes or value.startswith(b"\xc1\x01"):
        assert (encode_value(value) == stored) is vector.get("canonical", True)


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["name"])
def test_refused_vectors_raise_decode_error(vector):
    with pytest.raises(whycache.DecodeError, match="typed value"):
        decode_value(bytes.fromhex(vector["bytes"]))


def test_special_values_are_kept():
    for plain in (b"ab\xa1x", b"\0\0\xa0", b"xx\xd9\x01y"):
        assert decode_value(encode_value(plain)) == plain
    nan = float("nan")
    assert math.isnan(decode_value(encode_value(nan)))
    assert str(decode_value(encode_value(-0.0))) == "-0.0"
    assert decode_value(encode_value({nan, float("nan")})).__len__() == 2
    for text in ("NaN", "-NaN12", "sNaN", "sNaN3", "Infinity", "-Infinity", "-0.00", "1E+9999999"):
        value = decimal.Decimal(text)
        assert repr(decode_value(encode_value(value))) == repr(value)
    with decimal.localcontext() as context:
        context.capitals = 0
        context.prec = 3
        context.traps[decimal.InvalidOperation] = False
        value = decimal.Decimal("1.234567E+90")
        assert encode_value(value)[-12:] == b"1.234567E+90"
        assert decode_value(encode_value(value)) == value
    assert decode_value(encode_value(datetime.datetime.min)) == datetime.datetime.min
    assert decode_value(encode_value(datetime.timedelta.max)) == datetime.timedelta.max
    assert decode_value(encode_value(datetime.time(tzinfo=datetime.UTC))
                        ).tzinfo is datetime.UTC


class Number(enum.IntEnum):
    ONE = 1


class OwnZone(datetime.tzinfo):
    pass


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "value",
    [
        object(), int, len, bytearray(b"x"), memoryview(b"x"), 1j, range(3), Ellipsis,
        Number.ONE, Point(1, 2), collections.OrderedDict(), collections.defaultdict(int),
        type("Text", (str,), {})("x"), type("Bytes", (bytes,), {})(b"x"),
        type("Moment", (datetime.datetime,), {})(2024, 1, 1),
        type("Number", (decimal.Decimal,), {})(1), {}.keys(), collections.deque(),
        datetime.datetime(2024, 1, 1, tzinfo=OwnZone()), datetime.UTC,
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_types_raise_type_error(value):
    for nested in (value, [value], (1, value), {1: value}, [{2: (value,)}]):
        with pytest.raises(TypeError, match="cannot be stored"):
            encode_value(nested)


def test_zone_without_key_raises_type_error():
    with open("/usr/share/zoneinfo/Europe/Berlin", "rb") as file:
        zone = zoneinfo.ZoneInfo.from_file(file)
    with pytest.raises(TypeError, match="time zone"):
        encode_value(datetime.datetime(2024, 1, 1, tzinfo=zone))


def test_unknown_zone_raises_decode_error():
    value = datetime.datetime(2024, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
    stored = encode_value(value).replace(b"Berlin", b"Atlant")
    with pytest.raises(whycache.DecodeError, match="Europe/Atlant") as caught:
        decode_value(stored)
    assert isinstance(caught.value.__cause__, zoneinfo.ZoneInfoNotFoundError)


def test_value_that_contains_itself_raises_value_error():
    own_list = []
    own_list.append(own_list)
    own_dict = {}
    own_dict["a"] = [own_dict]
    for value in (own_list, own_dict, (own_list,)):
        with pytest.raises(ValueError, match="contains itself"):
            encode_value(value)


def test_depth_is_bounded():
    deep = []
    for _ in range(511):
        deep = [deep]
    assert encode_value(decode_value(encode_value(deep))) == encode_value(deep)
    for _ in range(9_500):
        deep = (deep,)
    with pytest.raises(ValueError, match="nested too deeply: depth_max=512"):
        encode_value(deep)
    with pytest.raises(whycache.DecodeError, match="nested too deeply"):
        decode_value(b"\xc1\x01" + b"\x91" * 10_000 + b"\xc0")


def test_size_is_bounded():
    with pytest.raises(whycache.LimitError, match="too long"):
        encode_value("x" * (1 << 24))
    lots = ["x" * 1000] * 1000
    with pytest.raises(whycache.LimitError, match="too long"):
        encode_value([lots] * 1000)


def test_equal_keys_raise_decode_error():
    for stored in ("8201010102", "8201c0cb3ff0000000000000c0", "d70392010" + "1" + "0" * 10):
        with pytest.raises(whycache.DecodeError):
            decode_value(b"\xc1\x01" + bytes.fromhex(stored))
    with pytest.raises(whycache.DecodeError, match="equal elements"):
        decode_value(b"\xc1\x01" + bytes.fromhex("c70303920101"))


def test_mutation_by_another_thread_never_crashes():
    value = {number: [uuid.uuid4()] for number in range(50)}
    ended = threading.Event()

    def change():
        number = 0
        while not ended.is_set():
            value[number % 97] = [uuid.uuid4()] * (number % 3)
            value.pop((number * 7) % 97, None)
            number += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(300):
            try:
                decode_value(encode_value(value))
            except (ValueError, RuntimeError):
                pass
    finally:
        ended.set()
        thread.join()
        sys.setswitchinterval(interval)


@pytest.mark.parametrize(
    ("codec", "value", "stored"),
    [
        ("bytes", b"\xc1\x01", b"\xc1\x01"),
        ("utf8", "grün", "grün".encode()),
        ("json", {"a": [1, "grün", None]}, '{"a":[1,"grün",null]}'.encode()),
        ("pickle", {1, (2,)}, None),
    ],
)
def test_codecs_store_and_read(codec, value, stored):
    encoded = encode_value(value, codec)
    assert stored is None or encoded == stored
    assert decode_value(encoded, codec) == value


@pytest.mark.parametrize(
    ("codec", "value", "error"),
    [
        ("bytes", "x", TypeError), ("utf8", b"x", TypeError), ("utf8", "\udc80", ValueError),
        ("json", {1, 2}, TypeError), ("json", math.nan, ValueError),
        ("json", b"x", TypeError), ("pickle", lambda: 0, (pickle.PicklingError, AttributeError)),
        ("typo", 1, ValueError), (b"json", 1, TypeError),
    ],
)
def test_codecs_refuse_other_values(codec, value, error):
    with pytest.raises(error):
        encode_value(value, codec)


@pytest.mark.parametrize(
    ("codec", "stored"),
    [
        ("utf8", b"\xff"), ("json", b"{"), ("json", b"[" * 100_000), ("json", b"\xc1\x01\xc0"),
        ("pickle", b"x"), ("pickle", b""), ("typed", b"\xc1\x01"),
    ],
)
def test_codecs_raise_decode_error(codec, stored):
    with pytest.raises(whycache.DecodeError, match="cannot be decoded"):
        decode_value(stored, codec)


def growth_of_blocks(call, calls):
    for _ in range(100):
        call()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(calls):
        call()
    gc.collect()
    return sys.getallocatedblocks() - before


@pytest.mark.skipif(not COUNTS_BLOCKS, reason="blocks of memory are not counted")
def test_no_references_leak():
    value = {
        "a": [1, 1 << 90, 1.5, None, True, "grün", "\udc80", b"x"], (1, 2): {1, 2},
        "t": (datetime.datetime.now(datetime.UTC), datetime.date.today(), datetime.timedelta(1),
              datetime.time(1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))),
        "d": decimal.Decimal("1.5"), "u": uuid.UUID(int=1),
        "z": datetime.time(1, tzinfo=datetime.timezone(datetime.timedelta(1 / 24), "x")),
    }
    stored = encode_value(value)
    own = []
    own.append(own)

    def fail_to_encode():
        for bad in (object(), [1, {2: object()}]):
            try:
                encode_value(bad)
            except TypeError:
                pass

    def fail_to_encode_endless():
        try:
            encode_value(own)
        except ValueError:
            pass

    def fail_to_decode():
        for bad in (stored[:-3], b"\xc1\x01" + bytes.fromhex("8201010102"), b"\xc1\x01\x92\xa1x"):
            try:
                decode_value(bad)
            except whycache.DecodeError:
                pass

    for call, calls in ((lambda: encode_value(value), 20_000),
                        (lambda: decode_value(stored), 20_000), (fail_to_encode, 20_000),
                        (fail_to_decode, 20_000),
                        (fail_to_encode_endless, 4_000)):  # each takes 0.7 ms
        growth = growth_of_blocks(call, calls)
        assert growth < 2_000  # lists of free objects; a leak is one block per call or more


def test_command_line_notation_is_base64_where_it_says_so():
    vector = next(v for v in VECTORS["values"] if v["name"] == "text with a surrogate")
    text = decode_value(bytes.fromhex(vector["bytes"]))
    assert base64.b64decode(vector["json"]["$surrogates"]) == text.encode("utf-8", "surrogatepass")



def test_cache_stores_typed_values(url, state):
    value = {"when": datetime.datetime(2024, 2, 29, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
             "tags": {"a", "b"}, 5: (1, 1.5, None)}
    with whycache.Cache(url, state_path=state) as cache:
        cache.set(b"value", value)
        cache.set_multi({b"bytes": b"yes", b"like typed": b"\xc1\x01x", b"text": "grün"})
        assert cache[b"value"] == value
        assert cache.get_multi([b"bytes", b"like typed", b"text"]) == [b"yes", b"\xc1\x01x", "grün"]
        assert dict(cache.items())[b"value"] == value
        with cache.view() as view:
            assert view[b"value"] == value
            assert bytes(view[b"bytes"]) == b"yes"
        assert cache.set_if(b"value", value, 1) is not None
        assert cache[b"value"] == 1
    with whycache.Cache(url, state_path=state, codec="bytes") as cache:
        assert cache[b"bytes"] == b"yes"
        assert cache[b"like typed"] == encode_value(b"\xc1\x01x")
        assert cache[b"text"] == encode_value("grün")


@pytest.mark.parametrize("codec", ["typed", "bytes", "utf8", "json", "pickle"])
def test_other_types_raise_before_anything_is_written(url, state, codec):
    with whycache.Cache(url, state_path=state, codec=codec) as cache:
        bad = {"bytes": 1, "utf8": 1, "pickle": lambda: 0}.get(codec, object())
        good = {"bytes": b"x", "utf8": "x"}.get(codec, 1)
        first = cache.set(b"a", good)
        for write in (
            lambda: cache.set(b"b", bad),
            lambda: cache.set_multi({b"b": good, b"c": bad}),
            lambda: cache.set_if(b"a", good, bad),
            lambda: cache.write([(b"b", good), (b"c", bad)], [b"a"]),
            lambda: cache.fill([(b"b", bad)]),
        ):
            with pytest.raises((TypeError, pickle.PicklingError, AttributeError)):
                write()
        assert cache.update() == first
        assert list(cache.items()) == [(b"a", good)]


def test_undecodable_value_fails_only_for_its_reader(url, state):
    with whycache.Cache(url, state_path=state, codec="bytes") as raw:
        raw.set_multi({b"bad": b"\xc1\x01\xc1", b"good": encode_value([1])})
    with whycache.Cache(url, state_path=state) as cache:
        with pytest.raises(whycache.DecodeError, match="key=b'bad' reason=typed value has an unkn"):
            cache.get(b"bad")
        assert cache.get(b"good") == [1]
        assert b"bad" in cache
        assert list(cache.keys()) == [b"bad", b"good"]
        cache.update()
        cache.set(b"bad", 1)
        assert cache[b"bad"] == 1


def test_pickle_is_read_only_by_its_codec(url, state):
    with whycache.Cache(url, state_path=state, codec="pickle") as cache:
        cache.set(b"value", Point(1, 2))
        assert cache[b"value"] == Point(1, 2)
    with whycache.Cache(url, state_path=state) as cache:
        assert type(cache[b"value"]) is bytes


@pytest.mark.skipif(not os.environ.get("WHYCACHE_PROGRAM"), reason="NOT TESTED: no command line")
@settings(max_examples=10)
@given(st.lists(values, min_size=5, max_size=30))
@example([-math.nan, [math.nan, -math.nan], {"a": -math.nan}, None, 1])
def test_command_line_reads_and_writes_the_same_values(examples):
    program = os.environ["WHYCACHE_PROGRAM"]
    with tempfile.TemporaryDirectory() as directory:
        logs = [f"sqlite://{directory}/{name}.db" for name in ("first", "second")]
        states = [f"{directory}/{name}.state" for name in ("first", "second")]
        flags = [["--log", log, "--state", state] for log, state in zip(logs, states, strict=True)]
        with whycache.Cache(logs[0], state_path=states[0]) as cache:
            cache.set_multi((b"%03d" % number, value) for number, value in enumerate(examples))
        printed = subprocess.run([program, "scan", "--json", *flags[0]], check=True,
                                 stdout=subprocess.PIPE).stdout
        for line, value in zip(printed.splitlines(), examples, strict=True):
            assert json.loads(line).get("typed", False) is (
                type(value) is not bytes or value.startswith(b"\xc1\x01"))
        subprocess.run([program, "import", "-", *flags[1]], input=printed, check=True,
                       stdout=subprocess.DEVNULL)
        with whycache.Cache(logs[1], state_path=states[1]) as cache:
            # The bits of NaN are not part of its JSON, and its sign is one of them.
            assert all(same(found, value, nan_sign=False)
                       for found, value in zip(cache.values(), examples, strict=True))
            stored = [encode_value(value) for value in examples]
        with whycache.Cache(logs[1], state_path=states[1], codec="bytes") as cache:
            assert all(found == expected or b"\xcb\x7f" in expected or b"\xcb\xff" in expected
                       for found, expected in zip(cache.values(), stored, strict=True))
