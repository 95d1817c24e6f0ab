"""What of gstalk the seeds reach: ``python -m tests.simulation.coverage --count 300``.

Branches too, of the rooms that carry the promises; what is not reached is listed.
"""

from __future__ import annotations

import argparse
import importlib

ROOMS = """
    protocol/stream protocol/request connection/loop connection/waking connection/ending connection/pipeline
    connection/channel connection/connection connection/reserved connection/reserving connection/recall
    connection/calls connection/transport connection/connect connection/used_tube connection/damaged_job
    connection/critical protocol/progress pool/hubs pool/keeper pool/asking pool/crew pool/handling
    pool/put_queue pool/puts pool/schedule pool/permits conn consumer producer job retry
""".split()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.coverage")
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--count", type=int, default=300)
    arguments = parser.parse_args()
    measured = importlib.import_module("coverage").Coverage(branch=True, concurrency="greenlet", data_file=None)
    measured.start()
    figures = importlib.import_module("tests.simulation.runner").run_seeds(arguments.first, arguments.count)
    measured.stop()
    print(figures)
    measured.report(show_missing=True, include=[f"*/gstalk/{room}.py" for room in ROOMS])


if __name__ == "__main__":
    main()
