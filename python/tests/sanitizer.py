"""Whether the tests run under AddressSanitizer, as in `make test-asan`, and what follows."""

import os
import sys

# Python then takes its memory from malloc, and counts no blocks. The sanitizer keeps freed memory,
# and adds its own, so that the size of a process says little.
COUNTS_BLOCKS = sys.getallocatedblocks() > 0
# Programs take about this many times as long.
SLOWNESS = 1 if COUNTS_BLOCKS else 10
# The environment of programs that have nothing to do with the package.
FOREIGN_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
