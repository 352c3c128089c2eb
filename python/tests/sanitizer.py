"""Whether the tests run under AddressSanitizer, as in `make test-asan`."""

import sys

# Python then takes its memory from malloc, and counts no blocks. The sanitizer keeps freed memory,
# and adds its own, so that the size of a process says little.
COUNTS_BLOCKS = sys.getallocatedblocks() > 0
