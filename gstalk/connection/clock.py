"""The clock that every deadline and pause is measured with.

Not `time.monotonic`: tools that freeze time in tests (freezegun, for one) replace that function in every module which
has imported it, and a wait that looks at a clock which stands still never ends. Nobody replaces `clock_gettime`, and
it reads the same clock.
"""

from __future__ import annotations

from functools import partial
from time import CLOCK_MONOTONIC, clock_gettime

__all__ = ["monotonic"]

#: Seconds since some moment in the past, as `time.monotonic` counts them.
monotonic = partial(clock_gettime, CLOCK_MONOTONIC)
