"""Makes docs/_static/top.svg anew: a cast of `gstalk top`, taken while jobs are put and worked off.

Run: python docs/make_pictures.py

The jobs, their rates and their ages are real: a Producer and a Consumer work on an embedded server, and the screen that
`top` shows is drawn once a second. Each picture becomes a group of text in one SVG, and a style sheet in it shows one
after the other; whoever has asked his system for less motion sees the last one alone. Nothing is loaded from elsewhere.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from xml.sax.saxutils import escape

import gevent
from rich.console import Console
from rich.segment import Segment

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import gstalk  # noqa: E402  # the package may be beside us, not installed
from gstalk.cli._screen import Screen  # noqa: E402
from gstalk.cli._watcher import Watcher  # noqa: E402
from gstalk.testing import Server  # noqa: E402

PICTURE = ROOT / "docs" / "_static" / "top.svg"
COLUMNS, LINES = 84, 10
WIDE, HIGH = 8.4, 18  # of a character's cell
EDGE = 14
SHOWN = 1.0  # seconds that each picture stays
STYLE = """
text { font: 14px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #d8dee9; white-space: pre; }
.bold { font-weight: bold; fill: #ffffff; }
.reverse { fill: #11151c; }
"""


class Office:
    """Jobs that come and go in a few tubes, for something to look at."""

    def __init__(self, uri: str) -> None:
        self._chance = random.Random(7)
        self._producer = gstalk.Producer(uri)
        once = gstalk.RetryPolicy(max_attempts=1)
        self._consumers = [
            gstalk.Consumer(uri, tube, num_greenlets=greenlets, retry=once, error_func=_drop)
            for tube, greenlets in (("mail", 8), ("thumbnails", 4), ("invoices", 2))
        ]
        self._busy = [gevent.spawn(each.receive, self._handle) for each in self._consumers]
        self._busy += [gevent.spawn(self._put, *each) for each in (("mail", 260), ("thumbnails", 45), ("invoices", 30))]
        for number in range(3):
            self._producer.put("reminders", b"%d" % number, delay=3600)

    def _put(self, tube: str, each_second: int) -> None:
        while True:
            self._producer.put(tube, b"x" * self._chance.randrange(20, 400))
            gevent.sleep(self._chance.expovariate(each_second))

    def _handle(self, job: gstalk.Job) -> None:
        gevent.sleep(self._chance.uniform(0.01, 0.1))
        if self._chance.random() < 0.004:
            raise gstalk.Bury
        job.delete()

    def close(self) -> None:
        for consumer in self._consumers:
            consumer.stop(0)
        gevent.killall(self._busy)
        self._producer.stop()


def _drop(error: Exception, message: str) -> None:
    """Handlers that are ended with the office are no news."""


def look(frames: int, every: float) -> list[list[list[Segment]]]:
    """Take so many pictures of the screen, each as lines of styled text."""
    taken = []
    with Server() as server:
        office = Office(server.uri)
        watcher = Watcher([server.uri])
        try:
            watcher.look()
            for _ in range(frames):
                gevent.sleep(every)
                watcher.look()
                console = Console(width=COLUMNS, height=LINES, color_system="truecolor", force_terminal=True)
                taken.append(console.render_lines(Screen(watcher), console.options.update(height=LINES)))
        finally:
            watcher.close()
            office.close()
    for lines in taken:  # where a reader of the page would have his server
        lines[0] = [Segment(each.text.replace(server.uri, "beanstalk://q1:11300"), each.style) for each in lines[0]]
    return taken


def drawn(frames: list[list[list[Segment]]]) -> str:
    """Draw the pictures as one SVG."""
    width, height = round(COLUMNS * WIDE) + 2 * EDGE, LINES * HIGH + 2 * EDGE
    seconds = len(frames) * SHOWN
    share = 100 / len(frames)
    animation = (
        f"@keyframes turn {{ 0%, {share - 0.01:.2f}% {{ opacity: 1 }} {share:.2f}%, 100% {{ opacity: 0 }} }}\n"
        f".frame {{ opacity: 0; animation: turn {seconds:g}s infinite; }}\n"
        "@media (prefers-reduced-motion: reduce) { .frame { animation: none; } .frame:last-child { opacity: 1; } }\n"
    )
    groups = []
    for number, lines in enumerate(frames):
        delay = number * SHOWN
        inside = "".join(_line(row, line) for row, line in enumerate(lines))
        groups.append(f'<g class="frame" style="animation-delay: {delay:g}s">\n{inside}</g>\n')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-labelledby="title">\n'
        '<title id="title">gstalk top: tubes with their jobs, rates and ages, second by second</title>\n'
        f"<style>{STYLE}{animation}</style>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="#11151c"/>\n{"".join(groups)}</svg>\n'
    )


def _line(row: int, line: list[Segment]) -> str:
    parts, column = [], 0
    y = EDGE + row * HIGH
    for segment in line:
        style = segment.style
        x, wide = EDGE + column * WIDE, len(segment.text) * WIDE
        column += len(segment.text)
        if style is not None and style.reverse:
            parts.append(f'<rect x="{x:g}" y="{y}" width="{wide:g}" height="{HIGH}" fill="#d8dee9"/>\n')
        if not segment.text.strip():
            continue
        classes = [name for name in ("bold", "reverse") if style is not None and getattr(style, name)]
        kind = f' class="{" ".join(classes)}"' if classes else ""
        text = escape(segment.text.rstrip())
        # Its length is told, so that the columns stand one below the other in whatever font there is.
        length = f'textLength="{len(segment.text.rstrip()) * WIDE:g}"'
        parts.append(f'<text{kind} x="{x:g}" y="{y + 13}" {length} xml:space="preserve">{text}</text>\n')
    return "".join(parts)


if __name__ == "__main__":
    PICTURE.write_text(drawn(look(8, 1.0)), encoding="utf-8")
