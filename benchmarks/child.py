"""One measurement in a process of its own: python -m benchmarks.child, with a JSON order on standard input.

A fresh process, so that no client finds what another one has left behind, and its CPU time is the client's alone.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from benchmarks.cases import Case
from benchmarks.meter import Meter


def measure(order: dict[str, Any]) -> dict[str, Any]:
    case = Case(**order["case"])
    if case.client.endswith("patched"):
        from gevent import monkey

        monkey.patch_all()
    if case.pinned:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    meter = Meter(order["pids"])
    if case.family == "gstalk":
        from benchmarks import clients

        clients.CA = order["ca"]
        clients.CLIENTS[case.workload, case.client](case, order["uris"], meter)
    elif case.family == "floor":
        from benchmarks import floor

        floor.FLOORS[case.workload](case, order["uris"], meter)
    else:
        from benchmarks import peers

        peers.PEERS[case.client](case, order["uris"], meter)
    return meter.result(case.count)


if __name__ == "__main__":
    print(json.dumps(measure(json.load(sys.stdin))))
