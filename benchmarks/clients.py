"""gstalk at each workload. A client runs its warm-up, starts the meter, does its operations, and stops the meter."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import gevent

import gstalk
from benchmarks.cases import Case
from benchmarks.meter import EVERY, Meter

__all__ = ["CLIENTS", "bodies", "gather", "tubes"]

CA = ""  # the certificate authority that `wire="tls"` is to trust; set by `child`


def options() -> dict[str, Any]:
    return {"tls_context": ssl.create_default_context(cafile=CA)} if CA else {}


def tubes(case: Case) -> list[str]:
    return [f"bench{number}" for number in range(case.tubes)]


def bodies(case: Case) -> bytes:
    return b"x" * case.size


def spread(count: int, greenlets: int, do: Callable[[int], object], meter: Meter) -> None:
    """Have greenlets do 0 to count - 1 between them."""
    numbers = iter(range(count))
    gevent.joinall([gevent.spawn(meter.each, numbers, do) for _ in range(greenlets)], raise_error=True)


def gather(case: Case, do: Callable[[int], object], meter: Meter) -> None:
    """Warm up, then measure."""
    spread(case.warm_up, case.greenlets, do, meter)
    meter.start()
    spread(case.count, case.greenlets, do, meter)
    meter.stop()


def conn_put(case: Case, uris: list[str], meter: Meter) -> None:
    names, body, many = tubes(case), bodies(case), case.tubes
    with gstalk.dial(uris[0], **options()) as conn:
        if many == 1:
            tube = names[0]
            gather(case, lambda number: conn.put(tube, body), meter)
        else:
            gather(case, lambda number: conn.put(names[number % many], body), meter)


def producer_put(case: Case, uris: list[str], meter: Meter) -> None:
    names, body, many = tubes(case), bodies(case), case.tubes
    with gstalk.Producer(uris, multiply=case.connections, **options()) as producer:
        producer.wait_connected(5)
        gevent.sleep(0.6)  # the others' first dials are spread over half a second
        if many == 1:
            tube = names[0]
            gather(case, lambda number: producer.put(tube, body), meter)
        else:
            gather(case, lambda number: producer.put(names[number % many], body), meter)


def put_many(put: Callable[[str, Iterable[bytes]], object], case: Case, meter: Meter) -> None:
    tube, body = tubes(case)[0], bodies(case)
    put(tube, [body] * case.warm_up)
    meter.start()
    put(tube, (body for _ in range(case.count)))
    meter.stop()


def conn_put_many(case: Case, uris: list[str], meter: Meter) -> None:
    with gstalk.dial(uris[0], **options()) as conn:
        put_many(conn.put_many, case, meter)


def producer_put_many(case: Case, uris: list[str], meter: Meter) -> None:
    with gstalk.Producer(uris, multiply=case.connections, **options()) as producer:
        producer.wait_connected(5)
        put_many(producer.put_many, case, meter)


def conn_work(case: Case, uris: list[str], meter: Meter) -> None:
    with gstalk.dial(uris[0], **options()) as conn:
        for tube in tubes(case):
            conn.watch(tube)
        conn.ignore("default")
        gather(case, lambda number: conn.reserve().delete(), meter)


def consumer_work(case: Case, uris: list[str], meter: Meter) -> None:
    consumer = gstalk.Consumer(uris, tubes(case), multiply=case.connections, num_greenlets=case.greenlets, **options())
    first, last = case.warm_up, case.warm_up + case.count
    done = 0

    def handler(job: gstalk.Job) -> None:
        nonlocal done
        number = done = done + 1  # others go on counting while this one waits for its delete
        if number % EVERY:
            job.delete()
        else:
            began = perf_counter()
            job.delete()
            meter.latencies.append(perf_counter() - began)
        if number == first:
            meter.start()
        elif number == last:
            meter.stop()
            consumer.stop()

    consumer.receive(handler)


def mixed(case: Case, uris: list[str], meter: Meter) -> None:
    body, tube, half = bodies(case), tubes(case)[0], max(case.greenlets // 2, 1)
    first, last = case.warm_up, case.warm_up + case.count
    consumer = gstalk.Consumer(uris, tube, multiply=case.connections, num_greenlets=half, **options())
    numbers = iter(range(last))
    done = 0

    def handler(job: gstalk.Job) -> None:
        nonlocal done
        number = done = done + 1
        job.delete()
        if number == first:
            meter.start()
        elif number == last:
            meter.stop()
            consumer.stop()

    with gstalk.Producer(uris, multiply=case.connections, **options()) as producer:

        def put() -> None:
            for _ in numbers:
                producer.put(tube, body)

        producer.wait_connected(5)
        putting = [gevent.spawn(put) for _ in range(half)]
        consumer.receive(handler)
        gevent.joinall(putting, raise_error=True)


CLIENTS = {
    ("put", "gstalk Conn"): conn_put,
    ("put", "gstalk Producer"): producer_put,
    ("put_many", "gstalk Conn"): conn_put_many,
    ("put_many", "gstalk Producer"): producer_put_many,
    ("work", "gstalk Conn"): conn_work,
    ("work", "gstalk Consumer"): consumer_work,
    ("mixed", "gstalk Producer+Consumer"): mixed,
}
