"""Chance, for pauses that are to differ from each other.

Not `random`: a program may seed it. Then all its processes would come back to a server at the same moments, which is
what chance is to prevent; and whatever gstalk took from it would change the numbers that the program gets. Nor is it
imported for this alone, which takes longer than any module of gstalk's own.
"""

from __future__ import annotations

import os

__all__ = ["chance"]


def chance() -> float:
    """Return a random number from 0 to below 1."""
    return int.from_bytes(os.urandom(4), "big") / 2**32
