"""Encodes and decodes typed values with the package msgpack, by docs/formats/value.md alone."""

import datetime
import decimal
import struct
import uuid
import zoneinfo
from typing import Any

import msgpack

PREFIX = b"\xc1\x01"
_WORDS = (-(1 << 63), (1 << 64) - 1)


def _extension(number: int, payload: bytes) -> bytes:
    return msgpack.packb(msgpack.ExtType(number, payload))


def _int(value: int) -> bytes:
    size = 1
    while True:
        try:
            return value.to_bytes(size, "big", signed=True)
        except OverflowError:
            size += 1


def _date(value: datetime.date) -> bytes:
    return struct.pack(">HBB", value.year, value.month, value.day)


def _time(value: datetime.time | datetime.datetime) -> bytes:
    microsecond = struct.pack(">I", value.microsecond | value.fold << 23)[1:]
    return bytes([value.hour, value.minute, value.second]) + microsecond + _zone(value.tzinfo)


def _zone(zone: datetime.tzinfo | None) -> bytes:
    if zone is None:
        return b""
    if isinstance(zone, zoneinfo.ZoneInfo):
        return b"\x02" + zone.key.encode()
    offset = zone.utcoffset(None) // datetime.timedelta(microseconds=1)
    name = zone.tzname(None)
    is_default = name == datetime.timezone(zone.utcoffset(None)).tzname(None)
    return b"\x01" + struct.pack(">q", offset) + (b"" if is_default else name.encode())


def _object(value: Any) -> bytes:
    packer = msgpack.Packer(use_bin_type=True)
    kind = type(value)
    if kind is int and not _WORDS[0] <= value <= _WORDS[1]:
        return _extension(1, _int(value))
    if kind is str:
        try:
            return packer.pack(value)
        except UnicodeEncodeError:
            return _extension(11, value.encode("utf-8", "surrogatepass"))
    if kind is list:
        return packer.pack_array_header(len(value)) + b"".join(map(_object, value))
    if kind is tuple:
        return _extension(2, _object(list(value)))
    if kind is dict:
        pairs = (_object(key) + _object(item) for key, item in value.items())
        return packer.pack_map_header(len(value)) + b"".join(pairs)
    if kind in (set, frozenset):
        elements = sorted(map(_object, value))
        payload = packer.pack_array_header(len(value)) + b"".join(elements)
        return _extension(3 if kind is set else 4, payload)
    if kind is datetime.datetime:
        return _extension(5, _date(value) + _time(value))
    if kind is datetime.date:
        return _extension(6, _date(value))
    if kind is datetime.time:
        return _extension(7, _time(value))
    if kind is datetime.timedelta:
        return _extension(8, struct.pack(">iII", value.days, value.seconds, value.microseconds))
    if kind is decimal.Decimal:
        return _extension(9, str(value).encode())
    if kind is uuid.UUID:
        return _extension(10, value.bytes)
    return packer.pack(value)


def encode(value: Any) -> bytes:
    if type(value) is bytes and not value.startswith(PREFIX):
        return value
    return PREFIX + _object(value)


def _read_zone(payload: bytes) -> datetime.tzinfo | None:
    if not payload:
        return None
    if payload[0] == 2:
        return zoneinfo.ZoneInfo(payload[1:].decode())
    (microseconds,) = struct.unpack(">q", payload[1:9])
    offset = datetime.timedelta(microseconds=microseconds)
    return datetime.timezone(offset, payload[9:].decode()) if payload[9:] else (
        datetime.timezone(offset))


def _read_time(payload: bytes) -> dict[str, Any]:
    microsecond = int.from_bytes(payload[3:6], "big")
    return {
        "hour": payload[0],
        "minute": payload[1],
        "second": payload[2],
        "microsecond": microsecond & 0x7FFFFF,
        "fold": microsecond >> 23,
        "tzinfo": _read_zone(payload[6:]),
    }


def _read_extension(number: int, payload: bytes) -> Any:
    if number == 1:
        return int.from_bytes(payload, "big", signed=True)
    if number in (2, 3, 4):
        return {2: tuple, 3: set, 4: frozenset}[number](_read(payload))
    if number == 5:
        year, month, day = struct.unpack(">HBB", payload[:4])
        return datetime.datetime(year, month, day, **_read_time(payload[4:]))
    if number == 6:
        return datetime.date(*struct.unpack(">HBB", payload))
    if number == 7:
        return datetime.time(**_read_time(payload))
    if number == 8:
        return datetime.timedelta(*struct.unpack(">iII", payload))
    if number == 9:
        return decimal.Decimal(payload.decode())
    if number == 10:
        return uuid.UUID(bytes=payload)
    assert number == 11
    return payload.decode("utf-8", "surrogatepass")


def _read(payload: bytes) -> Any:
    return msgpack.unpackb(payload, ext_hook=_read_extension, strict_map_key=False)


def decode(stored: bytes) -> Any:
    return _read(stored[2:]) if stored.startswith(PREFIX) else stored
