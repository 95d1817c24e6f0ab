"""Which files a process was made from, and whether one has changed since."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from typing import Any

__all__ = ["Sources"]


class Sources:
    """The files of all modules, with their times of change. Make it before what is to be watched is imported."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        times, original = self._times, SourceFileLoader.path_stats

        def path_stats(loader: SourceFileLoader, path: str) -> Mapping[str, Any]:
            # Called just before the file is read. To look only afterwards is too late: it may have changed meanwhile,
            # and one that could not be imported is among no modules.
            stats = original(loader, path)
            times[path] = stats["mtime"]
            return stats

        SourceFileLoader.path_stats = path_stats  # type: ignore[assignment, method-assign]

    def changed(self) -> str | None:
        """Look at all files; returns one that has changed."""
        # Some modules make up attributes, or import more when they are asked for one.
        files = {vars(module).get("__file__") for module in list(sys.modules.values()) if hasattr(module, "__dict__")}
        for file in {file for file in files if isinstance(file, str)} | self._times.keys():
            try:
                time = os.stat(file).st_mtime
            except OSError:
                continue  # an editor is just replacing it
            if self._times.setdefault(file, time) != time:
                return file
        return None
