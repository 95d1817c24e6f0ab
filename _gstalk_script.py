"""Where the script `gstalk` begins: a Ctrl-C while it still imports ends it in one sentence, without a traceback.

It is no part of the package, whose import is what takes the time. It imports as little as it can.
"""

from __future__ import annotations

import os
import signal

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else ignored, as in the background of a shell
        signal.signal(signal.SIGINT, _leave)  # the command line has a handler of its own, once it is there
    from gstalk.cli import main

    main()


def _leave(number: int, frame: object) -> None:
    """Nothing has been done yet, so there is nothing to clear away."""
    os.write(2, b"gstalk: interrupted\n")
    os._exit(1)
