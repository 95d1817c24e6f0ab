"""What the simulation has found: each a program, made as small as it goes, that broke a promise then.

Some it had found in gstalk, others in itself: there the oracle asked for more than is promised.
"""

from __future__ import annotations

import pytest

from tests.simulation.oracle import run
from tests.simulation.program import Actor, Fault, Process, Program, ServerPlan, Step

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
FOUND["a reserve whose time is over waits on the server for the sake of another, as long as that may wait"] = Program(
    seed=3000010,
    processes=(
        Process(
            (
                Actor((Step("reserve_with_timeout", (2.5,), pick=2374689676),), start=0.072563),
                Actor((Step("reserve_with_timeout", (0.01,), pick=3703654234),), start=0.071015, conn=1),
            ),
            conns=(0,),
            servers=(0,),
            options={"conn_timeout": 0.3, "reconnect_timeout": 3, "reserve_timeout": 2},
        ),
    ),
    latency=0.001,
    jitter=0.0,
    slicing=0.0,
)

RESERVING = {"conn_timeout": 1, "reconnect_timeout": 1, "reserve_timeout": 1}
SAID_WRONGLY = {
    "a job that failed may run again if a stop has killed what was to bury it: it is given back at once": Program(
        seed=702573,
        servers=(ServerPlan(silent_expiry=False), ServerPlan(max_job_size=2000), ServerPlan(silent_expiry=False)),
        processes=(
            Process(
                (
                    Actor(
                        (
                            Step("receive", (0.0006789723436909747, 0), pick=2049839392),
                            Step("receive", (0.00019129510480847, None), pick=1844573307),
                        ),
                        start=0.0005558237895767138,
                    ),
                ),
                servers=(0, 1),
                consumes=("b",),
                options={**OPTIONS, "num_greenlets": 1, "stop_timeout": 0.1},
                retry={"max_attempts": 1, "first_delay": 1, "max_delay": 2, "exhausted": "bury"},
                handlers=("raise",),
            ),
            Process(
                (
                    Actor(
                        (
                            Step("put_many", ("b", 3, 0, 15), pick=3030144545),
                            Step("put", ("b", 0, None, 0, None, 15), pick=1210326155),
                        ),
                        conn=1,
                    ),
                    Actor(
                        (
                            Step("put_many", ("b", 1, 0, 3), pick=2572480969),
                            Step("put", ("a", 0, None, 0, None, 15), pick=2750455897),
                            Step("sleep", (0.015621,)),
                        )
                    ),
                ),
                servers=(0, 1),
                options=OPTIONS,
            ),
        ),
        latency=2e-05,
        jitter=0.0,
        slicing=0.0,
    ),
    "a reserve with timeout 0 is told none, unasked, for a quarter of a second after DEADLINE_SOON": Program(
        seed=703186,
        servers=(ServerPlan(), ServerPlan(max_job_size=2000)),
        processes=(
            Process(
                (Actor((Step("put", ("c", 60000, None, 0, 1, 3), pick=2955587574),)),),
                servers=(0, 1),
                options={**OPTIONS, "conn_timeout": 5},
            ),
            Process(
                (
                    Actor(
                        (
                            Step("reserve_job", pick=2997000126),
                            Step("reserve_with_timeout", (2.5,), strike=13, pick=2696056602),
                            Step("reserve_with_timeout", (0,), pick=581504441),
                        ),
                        conn=1,
                    ),
                    Actor((Step("watch", ("c",), pick=2964725641),)),
                    Actor(
                        (
                            Step("reserve_with_timeout", (0.01,), pick=3401742391),
                            Step("settle", ("release", None), pick=344667168),
                        )
                    ),
                ),
                conns=(0,),
                servers=(0,),
                options=RESERVING,
            ),
        ),
        jitter=0.0,
        slicing=0.0,
    ),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_was_found_is_mended(what):
    outcome = run(FOUND[what], is_traced=True)
    print(*outcome.trace, sep="\n")
    assert outcome.violations == []


@pytest.mark.parametrize("what", SAID_WRONGLY)
def test_what_is_not_promised_is_not_asked_for(what):
    outcome = run(SAID_WRONGLY[what], is_traced=True)
    print(*outcome.trace, sep="\n")
    assert outcome.violations == []
