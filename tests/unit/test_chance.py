"""Chance is the system's: nobody's seed decides it, and it takes nothing from a seed of others."""

from __future__ import annotations

import random
import re

from gstalk.pool.chance import chance
from tests.house import is_core
from tests.test_layers import sources


def test_chance_is_from_0_to_below_1(monkeypatch):
    assert all(0 <= chance() < 1 for _ in range(1000))
    monkeypatch.setattr("os.urandom", lambda size: b"\xff" * size)
    assert 0.999 < chance() < 1
    monkeypatch.setattr("os.urandom", bytes)
    assert chance() == 0


def test_chance_is_spread_evenly():
    tenths = [0] * 10
    for _ in range(10_000):
        tenths[int(chance() * 10)] += 1
    assert all(800 < each < 1200 for each in tenths)  # six standard deviations and more


def test_processes_that_share_a_seed_do_not_share_their_pauses():
    found = set()
    for _ in range(3):
        random.seed(1)
        found.add(chance())
    assert len(found) > 1


def test_a_programs_own_numbers_stay_as_its_seed_says():
    random.seed(1)
    expected = random.random()
    random.seed(1)
    chance()
    assert random.random() == expected


def test_core_takes_chance_from_nowhere_else():
    pattern = re.compile(r"^\s*(?:import|from) (?:random|secrets)\b", re.MULTILINE)
    assert not {module for module, source in sources().items() if is_core(module) and pattern.search(source)}
