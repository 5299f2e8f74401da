"""Why a process of a service cannot go on."""

from __future__ import annotations


class Unusable(Exception):
    """What the process was given cannot be used, and starting it again changes nothing; the message says what to do."""
