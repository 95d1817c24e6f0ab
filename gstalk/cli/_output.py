"""What commands say to people: tables, JSON lines, progress, questions, errors."""

from __future__ import annotations

import sys

__all__ = ["complain"]


def complain(message: str) -> None:
    """Say on standard error, in one sentence, what went wrong."""
    print(f"gstalk: {message}", file=sys.stderr)
