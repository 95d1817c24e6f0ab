"""What programs say to the test that runs them, a line of JSON each time, also from a child that shares its output."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

__all__ = ["outcome", "say"]


def say(**values: object) -> None:
    os.write(1, json.dumps(values).encode() + b"\n")  # in one piece, and not from a buffer that a fork would double


def outcome(function: Callable[[], object]) -> str:
    """What a call came to: "done", or the name of its error's class."""
    try:
        function()
    except Exception as error:
        return type(error).__name__
    return "done"
