"""What an imported image may hold; sizes in bytes.

The agent has the same numbers for what it reads of an image, and a test compares them: what can be imported can start.
"""

from __future__ import annotations

MAX_DOCUMENT = 4 << 20
"""A JSON document of an archive."""
MAX_LAYERS = 127
"""As other container runtimes allow."""

MAX_UNPACKED = 16 << 30
"""All unpacked layers of an image, and all files in it."""
FREE_UNPACKED = 256 << 20
"""What may be unpacked whatever the size of the archive is."""
MAX_RATIO = 100
"""What may be unpacked beyond that, for each packed byte. Programs and texts shrink to a third, logs to a twentieth."""

MAX_ENTRIES = 1_000_000
"""Files, directories and links of all layers, with the directories that only lie on the way to them."""
MAX_TEXT = 256 << 20
"""All names and targets of links together."""
MAX_STEPS = 100_000_000
"""Names looked up while the layers are read."""
MAX_DEPTH = 2048
"""Directories inside each other: a path of PATH_MAX (4096) bytes has no more."""
MAX_HEADER = 1 << 20
"""What one tar entry says of itself beyond its 512 bytes, at one go; eight times that in all."""

MAX_WORDS = 1024
"""Entries of one list of the configuration, such as the environment."""
MAX_STRING = (128 << 10) - 1
"""One argument or variable: the kernel's MAX_ARG_STRLEN, less the byte that ends it."""
MAX_STRINGS = 1 << 20
"""Arguments and environment together, as execve(2) counts them. It takes 2 MiB with the usual stack of 8 MiB; half is
left for what a caller adds."""
POINTER = 8
MAX_CONFIG = 2 << 20
"""The configuration as written for the agent."""
MAX_ID = 65535
"""The highest user and group id that a container has."""
