"""What each number format costs a model: perplexity and top-1 agreement against fp32, in English and in Chinese.

Run from the repository's root: python -m benchmarks.quality [MODEL]. Rows go to benchmarks/results/quality.jsonl.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from pathlib import Path

from app.quality.quantize import table
from app.quality.report import compare
from app.store import Store, TerminalProgress, pull
from app.version import __version__

RESULTS = Path(__file__).parent / "results" / "quality.jsonl"


def main() -> None:
    """Measures all formats and appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    model = parser.parse_args().model
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    where = {"bench": "quality", "model": model, "version": __version__, "commit": commit.stdout.strip()}
    rows = []
    for row in compare(pull(model, Store(), TerminalProgress()), announce=print):
        rows.append(row)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**where, **row.fields(), "machine": platform.machine()}) + "\n")
    print(table(rows))
    print(json.dumps([row.fields() for row in rows]))


if __name__ == "__main__":
    main()
