"""A port for a server of a test."""

import contextlib
import pathlib
import random
import socket


def free_port() -> int:
    # Not one that the kernel gives to connections: a server that is to start may lose it.
    range_of_connections = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    end = int(range_of_connections.split()[0])
    for _ in range(1000):
        port = random.randrange(10_000, end if end > 12_000 else 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("there is no free port")
