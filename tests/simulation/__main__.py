"""Run seeds: ``python -m tests.simulation --from 0 --count 1000``; one that fails is shrunk and printed.

--seed N     run one seed, and print all that happened
--jobs N     in so many processes side by side
--seconds S  until so much time has passed
--coverage   and say which branches of gstalk were reached
"""

from __future__ import annotations

import argparse
import sys

from tests.simulation.oracle import run
from tests.simulation.program import generate, written
from tests.simulation.runner import Figures, run_seeds, tell_failure


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__.partition(":")[0])
    parser.add_argument("--seed", type=int)
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--quiet", action="store_true", help="figures and seeds only, nothing is shrunk")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        outcome = run(generate(arguments.seed), is_traced=True)
        print(*outcome.trace, written(outcome.program), *outcome.violations, sep="\n")
        return bool(outcome.violations)
    figures: Figures = run_seeds(arguments.first, arguments.count, arguments.jobs, arguments.seconds)
    print(figures)
    for seed, promise in figures.failures.items():
        print(f"seed {seed} breaks: {promise}")
        if not arguments.quiet:
            print(tell_failure(seed))
    return bool(figures.failures)


if __name__ == "__main__":
    sys.exit(main())
