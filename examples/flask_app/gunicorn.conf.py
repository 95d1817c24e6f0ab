"""gunicorn's settings for app.py. gunicorn finds this file in the folder where it is started.

With `CONSUME=TUBE` each worker handles the jobs of a tube as well.
"""

from __future__ import annotations

import os
from typing import Any

import gevent

import gstalk

worker_class = "gevent"
workers = 2
graceful_timeout = 60  # what a request takes at most, and then the Consumer's stop_timeout: 25, below `timeout`, 30


def post_worker_init(worker: Any) -> None:
    """Start the Consumer in the worker, which is forked, patched and has loaded the app by now."""
    if tube := os.environ.get("CONSUME"):
        import app  # type: ignore[import-not-found]  # beside this file

        worker.consumer = gstalk.Consumer(app.URI, tube)
        worker.receiving = gevent.spawn(worker.consumer.receive, app.handle)


def worker_exit(server: Any, worker: Any) -> None:
    """Stop it when the last request is answered. The Producer needs no stop: no put is under way any more."""
    if hasattr(worker, "receiving"):  # the master calls this, too, for a worker that is gone
        worker.consumer.stop()
        worker.receiving.join()
