"""What production does to a Producer and a Consumer: chance with a seed, and sizes that `make soak` makes large."""

from __future__ import annotations

from tests.faults.conftest import figures, many, rng

__all__ = ["figures", "many", "rng"]
