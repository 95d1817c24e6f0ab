"""Other clients at the same workloads, each in the way that its own documentation shows.

A connection of theirs carries one command at a time, so each greenlet or task has a connection of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import aiostalk
import gevent
import greenstalk
import pystalk

from benchmarks.cases import Case
from benchmarks.meter import EVERY, Meter

__all__ = ["PEERS"]


def place(uri: str) -> Any:
    """An address as greenstalk takes it."""
    parts = urlsplit(uri)
    return parts.path if parts.scheme == "unix" else (parts.hostname, parts.port)


def greenstalk_client(case: Case, uri: str) -> greenstalk.Client:
    watched = [f"bench{number}" for number in range(case.tubes)]
    return greenstalk.Client(place(uri), encoding=None, use="bench0", watch=watched)


def operation(case: Case, client: greenstalk.Client) -> Callable[[int], object]:
    """One put, or one reserve and delete, or all three."""
    body, many = b"x" * case.size, case.tubes

    def put(number: int) -> None:
        client.put(body)

    def put_elsewhere(number: int) -> None:
        client.use(f"bench{number % many}")
        client.put(body)

    def work(number: int) -> None:
        client.delete(client.reserve())

    def both(number: int) -> None:
        client.put(body)
        client.delete(client.reserve())

    if case.workload == "put":
        return put if many == 1 else put_elsewhere
    return work if case.workload == "work" else both


def with_greenstalk(case: Case, uris: list[str], meter: Meter) -> None:
    with greenstalk_client(case, uris[0]) as client:
        do = operation(case, client)
        meter.each(range(case.warm_up), do)
        meter.start()
        meter.each(range(case.count), do)
        meter.stop()


def with_greenlets(case: Case, uris: list[str], meter: Meter) -> None:
    """Greenlets with a connection each; the sockets are gevent's, since `child` has patched them."""
    clients = [greenstalk_client(case, uris[0]) for _ in range(case.greenlets)]

    def spread(count: int) -> None:
        numbers = iter(range(count))
        working = [gevent.spawn(meter.each, numbers, operation(case, client)) for client in clients]
        gevent.joinall(working, raise_error=True)

    spread(case.warm_up)
    meter.start()
    spread(case.count)
    meter.stop()
    for client in clients:
        client.close()


def with_pystalk(case: Case, uris: list[str], meter: Meter) -> None:
    host, port = place(uris[0])
    client = pystalk.BeanstalkClient(host, port)
    body = b"x" * case.size
    client.use("bench0")
    client.watch("bench0")

    def work(number: int) -> None:
        client.delete_job(client.reserve_job().job_id)

    do = work if case.workload == "work" else lambda number: client.put_job(body)
    meter.each(range(case.warm_up), do)
    meter.start()
    meter.each(range(case.count), do)
    meter.stop()
    client.close()


def with_aiostalk(case: Case, uris: list[str], meter: Meter) -> None:
    body = b"x" * case.size

    async def one(client: aiostalk.Client, numbers: Iterator[int]) -> None:
        for number in numbers:
            began = perf_counter()
            if case.workload == "put":
                await client.put(body)
            else:
                await client.delete(await client.reserve())
            if not number % EVERY:
                meter.latencies.append(perf_counter() - began)

    async def all_of_them() -> None:
        clients = [
            aiostalk.Client(place(uris[0]), encoding=None, use="bench0", watch="bench0") for _ in range(case.greenlets)
        ]
        for client in clients:
            await client.connect()

        def spread(count: int) -> Coroutine[Any, Any, Any]:
            numbers = iter(range(count))
            return gathered(*(one(client, numbers) for client in clients))

        await spread(case.warm_up)
        meter.start()
        await spread(case.count)
        meter.stop()
        for client in clients:
            await client.close()

    asyncio.run(all_of_them())


async def gathered(*tasks: Coroutine[Any, Any, Any]) -> None:
    await asyncio.gather(*tasks)


PEERS = {
    "greenstalk": with_greenstalk,
    "greenstalk, patched": with_greenstalk,
    "greenstalk x64, patched": with_greenlets,
    "pystalk": with_pystalk,
    "aiostalk": with_aiostalk,
    "aiostalk x64": with_aiostalk,
}
