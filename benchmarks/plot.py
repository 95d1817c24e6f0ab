"""The results as a picture: python -m benchmarks --plot FILE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.figures import is_shown
from benchmarks.rounds import Result

__all__ = ["draw"]

COLORS = {"gstalk": "#2a6f97", "raw": "#9a9a9a", "floor": "#6b8f71", "peer": "#d9a441"}


def draw(results: list[Result], place: Path) -> None:
    """Draw how many operations a second each client does, as bars, beside the raw limit and the floor."""
    import matplotlib as mpl  # type: ignore[import-not-found, unused-ignore]

    mpl.use("svg")
    # Text stays text, and the same results give the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "gstalk", "font.size": 9})
    from matplotlib import pyplot  # type: ignore[import-not-found, unused-ignore]

    panels = [("put", "put, jobs/s"), ("work", "reserve + delete, jobs/s")]
    panels = [(group, title) for group, title in panels if any(each.group == group for each in results)]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.2 * len(panels), 3.4), squeeze=False)
    for axis, (group, title) in zip(axes[0], panels, strict=True):
        _bars(axis, [each for each in results if each.group == group], title)
    figure.tight_layout()
    figure.savefig(place, metadata={"Date": None})


def _bars(axis: Any, results: list[Result], title: str) -> None:
    shown = [each for each in results if is_shown(each, results)]
    shown.sort(key=lambda each: each.rate)
    names = [_name(each) for each in shown]
    axis.barh(names, [each.rate for each in shown], color=[COLORS[each.case.family] for each in shown])
    for number, each in enumerate(shown):
        axis.text(each.rate, number, f" {each.rate:,.0f}", va="center")
    axis.set_title(title)
    axis.set_xlim(0, max(each.rate for each in shown) * 1.2)
    axis.spines[["top", "right"]].set_visible(False)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.locator_params(axis="x", nbins=4)


def _name(result: Result) -> str:
    case = result.case
    if case.workload == "put_many":
        return f"{case.client}, put_many"
    return case.client
