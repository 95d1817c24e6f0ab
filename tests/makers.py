"""The programs under docs/ that make parts of the pages; they are no package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

__all__ = ["ROOT", "load"]

ROOT = Path(__file__).parent.parent


def load(name: str) -> ModuleType:
    """Import one, such as `make_cli`."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
