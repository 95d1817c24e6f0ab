"""The pauses between reserves that find nothing."""

from __future__ import annotations

from gstalk.protocol.pauses import FIRST_PAUSE, LONGEST_PAUSE, longer


def test_pauses_double_from_a_millisecond_to_fifty():
    pauses = [FIRST_PAUSE]
    while len(pauses) < 9:
        pauses.append(longer(pauses[-1]))
    assert pauses == [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.05, 0.05, LONGEST_PAUSE]
