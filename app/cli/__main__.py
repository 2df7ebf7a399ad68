"""``python -m app.cli``: the same as ``tuili``."""

from __future__ import annotations

from app.cli import main

if __name__ == "__main__":
    main(prog_name="tuili")
