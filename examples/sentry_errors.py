"""Failed jobs in Sentry: each with its job as tags, and with the breadcrumbs of its own handler alone.

Run: python examples/sentry_errors.py [URI [DSN]]
"""

import logging
import sys
from collections.abc import Callable
from typing import Any

import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

import gstalk


def reported(handler: Callable[[gstalk.Job], None]) -> Callable[[gstalk.Job], None]:
    def handle(job: gstalk.Job) -> None:
        with sentry_sdk.isolation_scope() as scope:  # else tags and breadcrumbs stay for the jobs after this one
            scope.clear_breadcrumbs()
            scope.set_tags({"job_id": job.id, "tube": job.tube, "server": job.uri})
            try:
                handler(job)
            except (gstalk.Retry, gstalk.Bury):  # these are no errors
                raise
            except Exception as error:
                sentry_sdk.capture_exception(error)
                raise

    return handle


class Printer(Transport):  # in place of the network
    def capture_envelope(self, envelope: Envelope) -> None:
        event: Any = envelope.get_event()
        crumbs = [crumb["message"] for crumb in event["breadcrumbs"]["values"]]
        print(event["exception"]["values"][-1]["value"], "- job", event["tags"]["job_id"], crumbs)


def main(uri: str = "localhost:11300", dsn: str = "") -> None:
    here: Any = {"dsn": "http://key@localhost/1", "transport": Printer, "auto_enabling_integrations": False}
    sentry_sdk.init(**({"dsn": dsn} if dsn else here), include_local_variables=False)  # a body may stand there
    logging.getLogger("gstalk").addHandler(logging.NullHandler())  # Sentry hears of it all the same
    with gstalk.Producer(uri) as producer:
        producer.put_many("mail", [b"to ann", b"to bob"])
    consumer = gstalk.Consumer(uri, "mail", num_greenlets=1, retry=gstalk.RetryPolicy(max_attempts=1))

    def handler(job: gstalk.Job) -> None:
        sentry_sdk.add_breadcrumb(message=f"asked for the address of job {job.id}")
        if job.body == b"to bob":
            consumer.stop()
        raise LookupError("no such address")

    consumer.receive(reported(handler))


if __name__ == "__main__":
    main(*sys.argv[1:])
