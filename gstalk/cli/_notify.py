"""The service manager, as systemd has it told: datagrams to the socket that `$NOTIFY_SOCKET` names."""

from __future__ import annotations

import contextlib
import os
import socket

from gevent.monkey import get_original

from gstalk.connection.clock import monotonic

__all__ = ["notify", "notify_reloading", "watchdog_seconds"]

# Not gevent's: that asks for the hub, and a signal handler may come before there is one, or while it is being made.
_Socket = get_original("socket", "socket")


def notify(state: str) -> None:
    """Tell the service manager, if there is one, such as "READY=1"; never waits, so also in a signal handler.

    Args:
        state: Lines, as sd_notify(3) has them.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):  # no other kind that can be reached so
        return
    with contextlib.suppress(OSError), _Socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)
        manager.sendto(state.encode(), f"\0{address[1:]}" if address[0] == "@" else address)


def notify_reloading() -> None:
    """Tell that the configuration, here the code, is being read again; "READY=1" tells of the end."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={int(monotonic() * 1e6)}")


def watchdog_seconds() -> float | None:
    """After how many seconds without "WATCHDOG=1" this process is killed; `None`: it isn't watched."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        return int(os.environ["WATCHDOG_USEC"]) / 1e6 or None
    except (KeyError, ValueError):
        return None
