"""What the simulation has found in gstalk: each a program, made as small as it goes, that broke a promise then."""

from __future__ import annotations

import pytest

from tests.simulation.oracle import run
from tests.simulation.program import Actor, Fault, Process, Program, Step

OPTIONS = {"conn_timeout": 1, "reconnect_timeout": 0.1, "reserve_timeout": 1}
FOUND = {
    "a stopped Producer leaves the timer behind that was to end a server's rest": Program(
        seed=177,
        processes=(
            Process(
                (Actor((Step("put", ("a", 0, None, 0, None, 15)), Step("put", ("a", 0, None, 0, None, 15)))),),
                servers=(0,),
                options=OPTIONS,
            ),
        ),
        faults=(Fault(0.0, "full", (0, 2.0)),),
    ),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_was_found_is_mended(what):
    outcome = run(FOUND[what], is_traced=True)
    print(*outcome.trace, sep="\n")
    assert outcome.violations == []
