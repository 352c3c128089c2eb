"""Where tests put files whose durability is not under test; as memory_directory.h."""

import os

DIRECTORY = "/dev/shm"
BYTES_MIN = 1 << 30
BYTES_PER_TEST = 150_000_000  # of a database server; one test runs per processor


def memory_directory():
    """Returns /dev/shm if it has room for what tests that run in parallel put there. None: the
    directory for temporary files. Syncing a disk takes long."""
    if not os.access(DIRECTORY, os.W_OK):
        return None
    space = os.statvfs(DIRECTORY)
    bytes_needed = BYTES_MIN + BYTES_PER_TEST * (os.cpu_count() or 1)
    return DIRECTORY if space.f_bavail * space.f_frsize >= bytes_needed else None
