"""Chance with a seed that is printed, and sizes that `make soak` makes large."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import pytest

SOAK = bool(os.environ.get("GSTALK_SOAK"))


@pytest.fixture
def rng() -> random.Random:
    """Chance; a failing test shows the seed, and `GSTALK_SEED` runs it again."""
    seed = int(os.environ.get("GSTALK_SEED") or random.SystemRandom().getrandbits(32))
    print(f"seed: GSTALK_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def many() -> Callable[[int, int], int]:
    """How many rounds: `many(normal, soak)`."""
    return lambda normal, soak: soak if SOAK else normal


@pytest.fixture
def figures(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Iterator[dict[str, object]]:
    """What a test counted; printed by `make soak` even where nothing fails."""
    counted: dict[str, object] = {}
    yield counted
    line = ", ".join(f"{name} {value}" for name, value in counted.items())
    if SOAK:
        with capsys.disabled():
            print(f"\n{request.node.name}: {line}")
    else:
        print(line)
