"""A load test of puts, with locust: each user puts, and locust counts puts a second, times and failures.

Run: locust -f examples/locustfile.py --headless --users 50 --run-time 10s --host localhost:11300
"""

from __future__ import annotations

import time
from typing import Any

from locust import User, constant_throughput, events, task

import gstalk

TUBE, BODY = "load", bytes(1000)
producers: dict[str, gstalk.Producer] = {}  # one for all users of a process, as in a web application


class Putter(User):  # type: ignore[misc]
    wait_time = constant_throughput(10)  # puts a second, each user

    def on_start(self) -> None:
        if self.host not in producers:
            producers[self.host] = gstalk.Producer(self.host, put_timeout=5)
        self.producer = producers[self.host]

    @task  # type: ignore[untyped-decorator]
    def put(self) -> None:
        began, failed = time.perf_counter(), None
        try:
            self.producer.put(TUBE, BODY)
        except gstalk.GstalkError as error:
            failed = error
        took = (time.perf_counter() - began) * 1000
        self.environment.events.request.fire(
            request_type="put", name=TUBE, response_time=took, response_length=len(BODY), exception=failed, context={}
        )


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def stop(environment: Any, **_: Any) -> None:
    while producers:
        producers.popitem()[1].stop()
