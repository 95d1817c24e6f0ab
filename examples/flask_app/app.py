"""A Flask app whose requests put jobs. Its Producer is made at import, after the fork or (with `--preload`) before it.

Run, in this folder, where gunicorn.conf.py is found: gunicorn app:app
"""

from __future__ import annotations

import os

from flask import Flask, request

import gstalk

URI = os.environ.get("BEANSTALKD_URI", "localhost:11300")

app = Flask(__name__)

# Connects in the background, so a server that is away delays no start. A worker that is forked makes connections of its
# own at its first put. All requests of a worker share them.
producer = gstalk.Producer(URI, put_timeout=5)


@app.post("/jobs/<tube>")
def put(tube: str) -> tuple[dict[str, object], int]:
    return {"id": producer.put(tube, request.get_data(), delay=request.args.get("delay", 0, int))}, 201


@app.errorhandler(gstalk.InvalidArgumentError)
def invalid(error: gstalk.InvalidArgumentError) -> tuple[dict[str, object], int]:
    return {"error": str(error)}, 400


@app.errorhandler(gstalk.JobTooBigError)
def too_big(error: gstalk.JobTooBigError) -> tuple[dict[str, object], int]:
    return {"error": str(error)}, 413


@app.errorhandler(gstalk.GstalkError)
def unavailable(error: gstalk.GstalkError) -> tuple[dict[str, object], int]:
    # "maybe": the job may have been stored, and one who tries again may double it.
    return {"error": str(error), "sent": getattr(error, "sent", "no")}, 503


def handle(job: gstalk.Job) -> None:
    """Work a job off; gunicorn.conf.py runs this in each worker's Consumer."""
    producer.put("done", job.body)
    job.delete()
