"""python -m benchmarks: measure, and say what was found. `--help` has the options."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

from benchmarks import plot, scale
from benchmarks.cases import DEFAULT_GROUPS, GROUPS, Case
from benchmarks.figures import judge
from benchmarks.raw import Raw
from benchmarks.report import machine, table
from benchmarks.rounds import DISTURBED, Bed, Result, run_group

IDLE = ("latency", "shared", "quiet")
FOOTPRINT = ("import", "memory", "million")
DEFAULT = (*DEFAULT_GROUPS, *IDLE, "import", "memory")


def options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="gstalk beside the raw limit and its peers"
    )
    names = [*GROUPS, *IDLE, *FOOTPRINT]
    parser.add_argument(
        "what",
        nargs="*",
        help=f"what to measure, of {', '.join(names)}; left out: {', '.join(DEFAULT)}. "
        f"With --scale, of {', '.join(scale.NAMES)}, or shapes as 100x3/100: servers, connections to each, handlers",
    )
    parser.add_argument("--all", action="store_true", help="measure everything, for half an hour or so")
    parser.add_argument(
        "--scale", action="store_true", help="measure what many of everything cost, in ten minutes or so"
    )
    parser.add_argument("--client", default="", help="only clients whose name has this in it (raw C stays)")
    usual = f"rounds; medians are taken (default: 5; with --scale: {scale.ROUNDS})"
    parser.add_argument("--rounds", type=int, help=usual)
    again = "how often to measure again what other programs disturb (default: %(default)s)"
    parser.add_argument("--patience", type=int, default=5, help=again)
    parser.add_argument("--json", metavar="FILE", help="write the results there, too; - for standard output alone")
    parser.add_argument("--plot", metavar="FILE", help="draw the results there, as SVG")
    chosen = parser.parse_args(arguments)
    if chosen.rounds is None:
        chosen.rounds = scale.ROUNDS if chosen.scale else 5
    if chosen.scale:
        names = list(scale.NAMES)
    else:
        chosen.what = names if chosen.all else chosen.what or list(DEFAULT)
    if wrong := [name for name in chosen.what if name not in names and not (chosen.scale and scale.is_shape(name))]:
        parser.error(f"no such thing to measure: {', '.join(wrong)}")
    if chosen.rounds < 1 or chosen.patience < 0:
        parser.error("--rounds is at least 1, --patience at least 0")
    cases = [case for name in chosen.what for case in GROUPS.get(name, [])]
    if not any(chosen.client in case.client for case in cases) and chosen.client:
        parser.error(f"no client whose name has {chosen.client!r} in it")
    if chosen.plot and not {"put", "work"} & set(chosen.what):
        parser.error("--plot draws put and work: measure one of them")
    for place in (chosen.json, chosen.plot):
        if place and place != "-" and not Path(place).absolute().parent.is_dir():
            parser.error(f"no such directory: {Path(place).parent}")
    return chosen


def say(text: str) -> None:
    """Tell how far it is, where somebody looks on."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def wanted(case: Case, client: str) -> bool:
    return client in case.client or case.family in ("raw", "floor")


def measure(chosen: argparse.Namespace) -> tuple[list[Result], dict[str, Any], float]:
    """Measure what is chosen; tell also how many microseconds a system call takes."""
    results: list[Result] = []
    others: dict[str, Any] = {}
    with Raw() as raw, Bed(raw) as bed:
        system_call = raw.system_call()
        for name in chosen.what:
            if name in GROUPS:
                cases = [case for case in GROUPS[name] if wanted(case, chosen.client)]
                results += run_group(name, cases, bed, chosen.rounds, chosen.patience, say)
                continue
            say(name)
            module = "benchmarks.idle" if name in IDLE else "benchmarks.footprint"
            others[name] = bed.child(module, "", name, *([] if name == "import" else [bed.server().uri]))
    say("")
    return results, others, system_call


def main(arguments: list[str]) -> None:
    chosen = options(arguments)
    if chosen.scale:
        scale.main(chosen.what, say, chosen.rounds)
        return
    results, others, system_call = measure(chosen)
    figures = judge(results, others, system_call)
    found: dict[str, Any] = {
        "machine": machine(system_call),
        "results": [each.as_json() for each in results],
        "others": others,
        "figures": [{**vars(each), "met": each.met} for each in figures],
    }
    if chosen.json and chosen.json != "-":
        Path(chosen.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if chosen.plot:
        plot.draw(results, Path(chosen.plot))
    if chosen.json == "-":
        print(json.dumps(found, indent=1))
        return
    print(", ".join(f"{name} {value}" for name, value in found["machine"].items()), end="\n\n")
    print(table(results), end="\n\n")
    if disturbed := sum(each.others > DISTURBED for each in results):
        print(f"{disturbed} of {len(results)} medians were measured beside other busy programs: they say little\n")
    for name, value in others.items():
        print(f"{name}: {json.dumps(value)}")
    print(*figures, sep="\n")


def run(arguments: list[str]) -> None:
    """Be a program: whatever ends it stops the servers first."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    try:
        main(arguments)
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    run(sys.argv[1:])
