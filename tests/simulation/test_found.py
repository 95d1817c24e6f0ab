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
FOUND["a reserve that waited on the server is said to be unsent when its Conn is closed in the turn of its recall"] = (
    Program(
        seed=16000007544,
        servers=(ServerPlan(silent_expiry=False, max_job_size=2000),),
        processes=(
            Process(
                actors=(
                    Actor(steps=()),
                    Actor(steps=(), conn=1),
                    Actor(
                        steps=(
                            Step(
                                what="put",
                                args=(
                                    "a",
                                    0,
                                    None,
                                    0,
                                    None,
                                    15,
                                ),
                                pick=1598076721,
                            ),
                        ),
                        conn=1,
                    ),
                    Actor(steps=(Step(what="reserve", limit=0.044892, pick=3403536727),), conn=1),
                    Actor(steps=(Step(what="close", pick=766804255),)),
                ),
                conns=(0,),
                servers=(0,),
                options={"conn_timeout": 1, "reconnect_timeout": 3, "reserve_timeout": 30},
            ),
        ),
        jitter=0.0,
        slicing=0.0,
    )
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
    "whoever is busy with a job that was given up takes no other, also when that job's own time is over": Program(
        seed=17000000648,
        servers=(
            ServerPlan(),
            ServerPlan(),
        ),
        processes=(
            Process(
                actors=(Actor(steps=(Step(what="receive-on"),)),),
                servers=(0,),
                consumes=("b",),
                options={
                    "conn_timeout": 1,
                    "reconnect_timeout": 0.1,
                    "reserve_timeout": 2,
                    "num_greenlets": 1,
                    "stop_timeout": 0,
                    "given_up": "hang",
                },
                retry={"max_attempts": 1, "first_delay": 0, "max_delay": 2, "exhausted": "bury"},
                handlers=("raise",),
            ),
            Process(
                actors=(
                    Actor(
                        steps=(
                            Step(
                                what="put_many",
                                args=(
                                    "a",
                                    1,
                                    0,
                                    15,
                                ),
                                pick=1943901108,
                            ),
                            Step(
                                what="put_many",
                                args=(
                                    "b",
                                    1,
                                    0,
                                    0.5,
                                ),
                                pick=3064283139,
                            ),
                            Step(
                                what="put",
                                args=(
                                    "b",
                                    0,
                                    1,
                                    0,
                                    1,
                                    15,
                                ),
                                pick=1826237933,
                            ),
                        )
                    ),
                    Actor(
                        steps=(
                            Step(what="sleep", args=(0.003778,)),
                            Step(
                                what="put_many",
                                args=(
                                    "a",
                                    1,
                                    0,
                                    15,
                                ),
                                pick=966760680,
                            ),
                            Step(
                                what="put",
                                args=(
                                    "b",
                                    0,
                                    None,
                                    0,
                                    None,
                                    0,
                                ),
                                pick=1001431334,
                            ),
                            Step(
                                what="put",
                                args=(
                                    "a",
                                    0,
                                    None,
                                    0,
                                    None,
                                    0.5,
                                ),
                                pick=2748934237,
                            ),
                            Step(
                                what="put_many",
                                args=(
                                    "a",
                                    1,
                                    0,
                                    15,
                                ),
                                pick=2840281800,
                            ),
                        )
                    ),
                ),
                servers=(
                    0,
                    1,
                ),
                options={"conn_timeout": 5, "reconnect_timeout": 1, "reserve_timeout": 30, "multiply": 2},
            ),
        ),
        jitter=0.005,
        slicing=1.0,
    ),
    "a peek also finds a job whose body is still on its way to the server": Program(
        seed=910000385,
        processes=(
            Process(
                actors=(
                    Actor(
                        steps=(
                            Step(
                                what="put",
                                args=(
                                    "a",
                                    60000,
                                    None,
                                    0,
                                    60,
                                    15,
                                ),
                                pick=3806137088,
                            ),
                        ),
                        start=0.009436,
                    ),
                ),
                conns=(0,),
                servers=(0,),
                options={"conn_timeout": 5, "reconnect_timeout": 3, "reserve_timeout": 1},
            ),
            Process(
                actors=(
                    Actor(
                        steps=(
                            Step(what="sleep", args=(0.010587,)),
                            Step(what="by_id", args=("peek",), pick=1629248175),
                        ),
                        conn=1,
                    ),
                ),
                conns=(0,),
                servers=(0,),
                options={"conn_timeout": 0.3, "reconnect_timeout": 0.1, "reserve_timeout": 2},
            ),
        ),
        jitter=0.0,
        slicing=0.0,
        capacity=4000,
    ),
    "a job that failed for the last time runs again where its server has no memory to bury it": Program(
        seed=17000004265,
        servers=(
            ServerPlan(max_job_size=2000),
            ServerPlan(durable=False),
        ),
        processes=(
            Process(
                actors=(Actor(steps=(Step(what="receive-on"),), start=0.005472174271949304),),
                servers=(1,),
                consumes=(
                    "c",
                    "a",
                    "b",
                ),
                options={
                    "conn_timeout": 0.3,
                    "reconnect_timeout": 3,
                    "reserve_timeout": 30,
                    "num_greenlets": 2,
                    "stop_timeout": 1,
                },
                retry={"max_attempts": 1, "first_delay": 0, "max_delay": 2, "exhausted": "bury"},
                handlers=("exit",),
            ),
            Process(
                actors=(
                    Actor(
                        steps=(
                            Step(
                                what="put_many",
                                args=(
                                    "b",
                                    3,
                                    0,
                                    0.5,
                                ),
                                pick=3865982555,
                            ),
                        ),
                        conn=1,
                    ),
                ),
                servers=(1,),
                options={"conn_timeout": 1, "reconnect_timeout": 1, "reserve_timeout": 1},
            ),
            Process(
                actors=(Actor(steps=(Step(what="reserve", limit=0.60371, pick=1451005010),)),),
                conns=(1,),
                servers=(1,),
                options={"conn_timeout": 1, "reconnect_timeout": 1, "reserve_timeout": 30},
            ),
        ),
        faults=(
            Fault(
                at=0.01,
                what="full",
                args=(
                    1,
                    2.0,
                ),
            ),
        ),
        jitter=0.00030000000000000003,
        slicing=0.1,
    ),
    "a Consumer that is to stop while the hub computes has stopped when that is over": Program(
        seed=17000006584,
        servers=(
            ServerPlan(),
            ServerPlan(durable=False, silent_expiry=False),
        ),
        processes=(
            Process(
                actors=(
                    Actor(
                        steps=(
                            Step(
                                what="receive",
                                args=(
                                    0.24459339429126226,
                                    0.5,
                                ),
                                limit=0.025915,
                                pick=2593992977,
                            ),
                        ),
                        start=0.0002023551487204156,
                    ),
                ),
                servers=(
                    0,
                    1,
                ),
                consumes=(
                    "a",
                    "c",
                    "b",
                ),
                options={
                    "conn_timeout": 1,
                    "reconnect_timeout": 1,
                    "reserve_timeout": 30,
                    "num_greenlets": 4,
                    "stop_timeout": 5,
                },
                retry={"max_attempts": 2, "first_delay": 0, "max_delay": 2, "exhausted": "bury"},
                handlers=("retry",),
            ),
            Process(
                actors=(
                    Actor(
                        steps=(
                            Step(
                                what="receive",
                                args=(
                                    0.9983454661726683,
                                    0.5,
                                ),
                                pick=2325167758,
                            ),
                        ),
                        start=0.002484117449534743,
                    ),
                ),
                servers=(
                    0,
                    1,
                ),
                consumes=(
                    "a",
                    "b",
                ),
                options={
                    "conn_timeout": 5,
                    "reconnect_timeout": 0.1,
                    "reserve_timeout": 30,
                    "num_greenlets": 1,
                    "stop_timeout": 1,
                },
                retry={"max_attempts": 2, "first_delay": 1, "max_delay": 2, "exhausted": "delete"},
                handlers=("compute",),
            ),
            Process(
                actors=(
                    Actor(steps=()),
                    Actor(
                        steps=(
                            Step(
                                what="put_many",
                                args=(
                                    "b",
                                    8,
                                    0,
                                    0.5,
                                ),
                                pick=2671597165,
                            ),
                        )
                    ),
                    Actor(steps=(), start=0.087979),
                    Actor(steps=(), start=0.009382, conn=1),
                ),
                servers=(1,),
                options={"conn_timeout": 5, "reconnect_timeout": 3, "reserve_timeout": 1, "multiply": 2},
            ),
        ),
        jitter=5e-05,
        slicing=0.1,
    ),
    "a job whose time is over, which its server has not noticed, has less than no time left": Program(
        seed=16000008656,
        servers=(ServerPlan(durable=False, silent_expiry=False),),
        processes=(
            Process(
                actors=(
                    Actor(
                        steps=(
                            Step(what="watch", args=("c",), pick=2035123455),
                            Step(what="reserve_with_timeout", args=(1,), pick=1192083496),
                        ),
                        conn=1,
                    ),
                    Actor(
                        steps=(
                            Step(
                                what="put",
                                args=(
                                    "c",
                                    0,
                                    5000,
                                    1,
                                    2,
                                    15,
                                ),
                                pick=1183668433,
                            ),
                            Step(what="sleep", args=(2.995948,)),
                            Step(what="reserve_with_timeout", args=(2.5,), pick=3181901205),
                            Step(
                                what="settle",
                                args=(
                                    "time_left",
                                    None,
                                ),
                                pick=155064020,
                            ),
                        )
                    ),
                ),
                conns=(
                    0,
                    0,
                ),
                servers=(0,),
                options={"conn_timeout": 1, "reconnect_timeout": 0.1, "reserve_timeout": 30},
            ),
        ),
        jitter=0.0,
        slicing=0.0,
    ),
    "what a close is about to send is said to be sent, also where the close is interrupted": Program(
        seed=16000008088,
        processes=(
            Process(
                actors=(
                    Actor(
                        steps=(
                            Step(what="reserve_with_timeout", args=(1,), pick=1995679902),
                            Step(what="reserve_job", pick=653166986),
                            Step(what="reserve_with_timeout", args=(0,), pick=3926859266),
                            Step(what="compute", args=(2.0,), pick=3165592569),
                        )
                    ),
                    Actor(
                        steps=(
                            Step(
                                what="put_many",
                                args=(
                                    "a",
                                    1,
                                    0,
                                    3,
                                ),
                                pick=1190765864,
                            ),
                            Step(what="reserve_with_timeout", args=(0.5,), pick=3708802104),
                            Step(what="close", strike=11, pick=2896435507),
                        ),
                        start=0.06422,
                        conn=1,
                    ),
                    Actor(
                        steps=(
                            Step(what="reserve", limit=0.457666, pick=2249558632),
                            Step(what="reserve_with_timeout", args=(0,), pick=2453356266),
                            Step(what="sleep", args=(0.0,)),
                            Step(
                                what="put_many",
                                args=(
                                    "a",
                                    1,
                                    0,
                                    3,
                                ),
                                pick=1949187223,
                            ),
                        ),
                        conn=1,
                    ),
                    Actor(
                        steps=(
                            Step(what="reserve_with_timeout", args=(0.5,), pick=1985596662),
                            Step(
                                what="put",
                                args=(
                                    "a",
                                    0,
                                    None,
                                    0,
                                    None,
                                    15,
                                ),
                                pick=1675078702,
                            ),
                            Step(what="sleep", args=(0.0,)),
                            Step(
                                what="put",
                                args=(
                                    "a",
                                    70000,
                                    5000,
                                    0,
                                    5,
                                    0.5,
                                ),
                                limit=1.621379,
                                pick=1622117119,
                            ),
                            Step(
                                what="settle",
                                args=(
                                    "delete",
                                    None,
                                ),
                                pick=3581929019,
                            ),
                        )
                    ),
                ),
                conns=(0,),
                servers=(0,),
                options={"conn_timeout": 1, "reconnect_timeout": 3, "reserve_timeout": 1},
            ),
        ),
        faults=(
            Fault(
                at=0.036574,
                what="ambush",
                args=(
                    0,
                    "end",
                ),
            ),
        ),
        latency=2e-05,
        jitter=0.0,
        slicing=0.5,
        capacity=4000,
    ),
}
RETRY = {"max_attempts": 1, "first_delay": 0, "max_delay": 2, "exhausted": "bury"}
CONSUMES = OPTIONS | {"num_greenlets": 2, "stop_timeout": 0}
SAID_WRONGLY["while the hub computes, nobody can be told that a job was given up"] = Program(
    seed=19000001272,
    processes=(
        Process(
            (Actor((Step("receive-on"),)),),
            servers=(0,),
            consumes=("a",),
            options=CONSUMES | {"num_greenlets": 1, "given_up": "raise"},
            retry=RETRY,
            handlers=("raise",),
        ),
        Process(
            (
                Actor((Step("put", ("a", 0, None, 0, 60, 3)), Step("put", ("a", 0, None, 0, 60, 3)))),
                Actor((Step("compute", (0.1,)), Step("sleep", (0.5,))), start=0.013),
            ),
            servers=(0,),
            options=OPTIONS,
        ),
    ),
    latency=0.001,
    jitter=0.0,
    slicing=0.0,
)
SAID_WRONGLY["a job whose time is over while it is given up runs again, and is given up again"] = Program(
    seed=19000003488,
    processes=(
        Process(
            (Actor((Step("receive-on"),)),),
            servers=(0,),
            consumes=("a",),
            options=CONSUMES | {"stop_timeout": 5, "given_up": "hang"},
            retry=RETRY,
            handlers=("raise",),
        ),
        Process((Actor((Step("put", ("a", 0, None, 0, 2, 3)), Step("sleep", (3.0,)))),), servers=(0,), options=OPTIONS),
    ),
)
SAID_WRONGLY["two handlers' greenlets may be at work with the same job that was given up, and neither is free"] = (
    Program(
        seed=23000000624,
        processes=(
            Process(
                (Actor((Step("receive-on"),)),),
                servers=(0,),
                consumes=("a",),
                options=CONSUMES | {"given_up": "hang"},
                retry=RETRY,
                handlers=("raise",),
            ),
            Process(
                (
                    Actor((Step("put", ("a", 0, None, 0, 1, 3)), Step("sleep", (6.0,)))),
                    Actor((Step("put", ("a", 0, 5000, 3, 60, 3)),), start=0.5),
                ),
                servers=(0,),
                options=OPTIONS,
            ),
        ),
    )
)
SAID_WRONGLY["a stop kills whoever puts a dead letter: its job goes back, and is given up again"] = Program(
    seed=26000001503,
    processes=(
        Process(
            (Actor((Step("receive", (0.01, None)), Step("receive-on"))),),
            servers=(0,),
            consumes=("a",),
            options=CONSUMES | {"given_up": "dead letter"},
            retry=RETRY,
            handlers=("raise",),
        ),
        Process(
            (Actor((Step("put", ("a", 0, None, 0, 60, 3)), Step("sleep", (0.5,)))),), servers=(0,), options=OPTIONS
        ),
    ),
    latency=0.001,
    jitter=0.0,
    slicing=0.0,
)
SAID_WRONGLY["while two permits are kept from waits, four can't be lent to three servers"] = Program(
    seed=16000016691,
    servers=(ServerPlan(), ServerPlan(), ServerPlan()),
    processes=(
        Process(
            (Actor((Step("receive-on"),)),),
            servers=(0, 1, 2),
            consumes=("a",),
            options=CONSUMES | {"num_greenlets": 4},
            retry=RETRY,
            handlers=("touch",),
        ),
        Process((Actor((Step("put_many", ("a", 4, 0, 3)), Step("sleep", (2.0,)))),), servers=(0,), options=OPTIONS),
    ),
    faults=(Fault(1.0, "drain", (2,)),),
)
SAID_WRONGLY["a touch says that a job is lost, while its release, which is under way, hasn't been answered"] = Program(
    seed=16000017909,
    processes=(
        Process(
            (
                Actor((Step("put", ("default", 0, None, 0, 1, 3)), Step("reserve_with_timeout", (1,)))),
                Actor((Step("settle", ("touch", None)),), start=1.5),
                Actor((Step("settle", ("release", None)),), start=1.51),
            ),
            conns=(0,),
            servers=(0,),
            options=OPTIONS,
        ),
    ),
    latency=0.01,
    jitter=0.0,
    slicing=0.0,
)
SAID_WRONGLY["a server takes no job back, so gstalk ends that connection, and auto_touch can't keep its other jobs"] = (
    Program(
        seed=955876,
        servers=(ServerPlan(), ServerPlan()),
        processes=(
            Process(
                (
                    Actor(
                        (
                            Step("put", ("b", 0, None, 0, None, 3)),
                            Step("put_many", ("a", 70, 0, 15)),
                            Step("put_many", ("c", 70, 0, 15)),
                        ),
                        conn=1,
                    ),
                    Actor((Step("put_many", ("b", 1, 0, 0.5)),)),
                    Actor((Step("sleep", (0.044096,)),)),
                ),
                servers=(0, 1),
                options=OPTIONS,
            ),
            Process(
                (Actor((Step("receive-on"),), start=0.002123973433220235),),
                servers=(0,),
                consumes=("c",),
                options=CONSUMES | {"num_greenlets": 1, "auto_touch": True},
                retry=RETRY,
                handlers=("retry-later", "forget-timeout"),
            ),
        ),
        faults=(Fault(0.004, "full", (0, 2.0)),),
        latency=0.00002,
        jitter=0.0,
        slicing=0.0,
    )
)


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
