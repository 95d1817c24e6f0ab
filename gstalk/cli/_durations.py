"""Lengths of time as a person types them: seconds, or with units."""

from __future__ import annotations

import re
from typing import Any

import click

__all__ = ["DELAY", "TTR", "Duration"]

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
NUMBER = r"([0-9]*\.?[0-9]+)"
PARTS = re.compile("".join(f"(?:{NUMBER}{unit})?" for unit in UNITS))


class Duration(click.FloatRange):
    """Seconds (`90`, `1.5`), or numbers with units, the largest first (`5m`, `1h30m`, `2d`); within a range."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        return super().convert(self._seconds(value, param, context), param, context)

    def _seconds(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        if not isinstance(value, str):
            return float(value)
        text = value.strip()
        if re.fullmatch(NUMBER, text):
            return float(text)
        found = PARTS.fullmatch(text)
        if found is None or not text:
            self.fail(f"{value!r} is no duration: seconds, or such as 90s, 5m, 1h30m, 2d", param, context)
        return sum(float(number or 0) * size for number, size in zip(found.groups(), UNITS.values(), strict=True))


DELAY = Duration(0, 2**32 - 1)  # what the protocol has room for
TTR = Duration(0, 2**32 - 1, min_open=True)  # rounded up to whole seconds, and at least one
