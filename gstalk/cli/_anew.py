"""How `gstalk work` starts itself anew: the same interpreter, with the same flags and the same `sys.path`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["anew", "interpreter_flags"]

_PROGRAM = "import sys; sys.path[:] = {path!r}; {patch}from gstalk.cli import main; main()"
_PATCH = "from gevent import monkey; monkey.patch_all(); "
_DROPPED = "ix"  # to inspect after the end is for a person; to skip a file's first line is for that file


def anew(words: Sequence[str], patch: bool) -> list[str]:
    """How to start `gstalk` with these words, as this process was started.

    It is a program of its own (`-c`), not `-m gstalk`: one that was packed (zipapp, pex) or that has put its libraries
    on `sys.path` itself would not find gstalk, nor gevent, by the interpreter's own means. So the path goes with it.

    Args:
        words: The arguments.
        patch: Whether `gevent.monkey.patch_all()` is to be its first act.
    """
    path = [each for each in sys.path if isinstance(each, str)]  # import looks at no others
    program = _PROGRAM.format(path=path, patch=_PATCH if patch else "")
    return [sys.executable, *interpreter_flags(sys.orig_argv), "-c", program, *words]


def interpreter_flags(words: Sequence[str]) -> list[str]:
    """The flags for the interpreter itself in the words that it was started with: those before the program.

    `sys.flags` would not do: it doesn't tell of -u, and mixes what was said with what the environment says.

    Args:
        words: As in `sys.orig_argv`.
    """
    flags: list[str] = []
    rest = iter(words[1:])
    for word in rest:
        if word.startswith("--") and word != "--":
            flags += [word, next(rest, "")]  # there is one that goes with a program: --check-hash-based-pycs MODE
            continue
        if not word.startswith("-") or word in ("-", "--"):
            break
        kept = "-"
        for place, letter in enumerate(word[1:], 1):
            if letter in "cm":  # what follows is the program
                return [*flags, kept] if kept != "-" else flags
            if letter in "WX":  # what follows is its value, or the next word is
                value = word[place + 1 :] or next(rest, "")
                kept += letter + value
                break
            kept += "" if letter in _DROPPED else letter
        flags += [kept] if kept != "-" else []
    return flags
