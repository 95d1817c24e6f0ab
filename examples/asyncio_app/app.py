"""Handlers that use asyncio libraries: each waits for its coroutine, ten of them side by side.

A Job stays in its handler: coroutines get values, and give values back. With `--patch` it works, too.

Run, in this folder, where loop.py is found: gstalk work app:handle --tube fetch
"""

from __future__ import annotations

import asyncio

from loop import Loop  # type: ignore[import-not-found]  # beside this file

import gstalk

loop = Loop()


async def fetch(host: str, port: int) -> bytes:
    """Stand for a call of an asyncio library: ask a server for a line."""
    reader, writer = await asyncio.open_connection(host, port)
    line = await reader.readline()
    writer.close()
    return line.strip()


def handle(job: gstalk.Job) -> None:
    host, _, port = job.body.decode().partition(":")
    print("fetched", loop.run(fetch(host, int(port))).decode(), flush=True)
    job.delete()
