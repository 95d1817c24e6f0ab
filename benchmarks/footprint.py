"""What gstalk costs in memory, and in time to import: python -m benchmarks.footprint WHAT URI.

connections   KB of resident memory for each of a thousand connections
million       resident memory while a million jobs are put, worked off and deleted
import        milliseconds that `import gstalk` takes beyond the modules that it can't do without (no URI)
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NEEDED = "import gevent.socket, gevent.ssl, gevent.pool, gevent.queue, logging, dataclasses"
CONNECTIONS = 1000
FIRST = 50  # connections before the counting begins: what is loaded once isn't a connection's
IMPORTS = 21
MILLION = 1_000_000


def resident() -> int:
    """Bytes of resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory(uri: str) -> dict[str, Any]:
    import gstalk

    conns = [gstalk.dial(uri) for _ in range(FIRST)]
    gc.collect()
    before = resident()
    conns += [gstalk.dial(uri) for _ in range(CONNECTIONS)]
    gc.collect()
    after = resident()
    for conn in conns:
        conn.close()
    return {"kilobytes": (after - before) / CONNECTIONS / 1024}


def million(uri: str) -> dict[str, Any]:
    """Put, work off and delete a million jobs; look at the memory after each tenth of them."""
    import gevent

    import gstalk

    consumer = gstalk.Consumer(uri, "million", num_greenlets=64)
    seen: list[float] = []
    done = 0

    def handler(job: gstalk.Job) -> None:
        nonlocal done
        number = done = done + 1
        job.delete()
        if not number % (MILLION // 10):
            seen.append(resident() / 2**20)
        if number == MILLION:
            consumer.stop()

    numbers = iter(range(MILLION))
    with gstalk.Producer(uri) as producer:

        def put() -> None:
            for number in numbers:
                producer.put("million", b"%d" % number)
                while number > done + 5000:  # the server's queue is to stay short
                    gevent.sleep(0.01)

        putting = [gevent.spawn(put) for _ in range(64)]
        consumer.receive(handler)
        gevent.joinall(putting, raise_error=True)
    return {"megabytes": [round(each, 2) for each in seen], "growth": seen[-1] - seen[0]}


def import_time() -> dict[str, Any]:
    """The median over fresh interpreters, which find their bytecode compiled by the first."""
    code = f"{NEEDED}\nimport time\nbegan = time.perf_counter()\nimport gstalk\nprint(time.perf_counter() - began)"
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-c", code]
        times = [float(subprocess.check_output(command, env=environment)) * 1000 for _ in range(IMPORTS)]
    return {"milliseconds": statistics.median(times[1:])}


if __name__ == "__main__":
    what, *uris = sys.argv[1:]
    print(json.dumps(import_time() if what == "import" else {"memory": memory, "million": million}[what](*uris)))
