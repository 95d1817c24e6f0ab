"""`python -m gstalk`: the command line."""

from __future__ import annotations

from _gstalk_script import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
