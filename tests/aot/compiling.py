"""Compiles launches for a GPU that need not be there and prints a JSON row for each; what both lists of variants share.

Run with TRITON_INTERPRET=0: what the interpreter takes may not compile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from app.kernels.gpu.aot import compile_launch
from app.kernels.gpu.launch import Launch
from app.kernels.gpu.tuning import compiling_for

_SHARED_BYTES = 227 << 10
"""What a block may have on sm_90."""


def main(launches: Callable[[], list[Launch]]) -> None:
    """Compiles each distinct launch for the compute capability that is the program's argument."""
    capability, seen = int(sys.argv[1]), set[Any]()
    with compiling_for(capability):
        for launch in launches():
            key = (launch.name, launch.signature, launch.constants, launch.aligned, launch.num_warps, launch.num_stages)
            if key in seen:
                continue
            seen.add(key)
            made = compile_launch(launch, capability)
            row = {
                "name": made.name,
                "constants": {name: value for name, value in launch.constants if value is not None},
                "int8": ("x", "*i8") in launch.signature,
                "registers": made.registers,
                "stack": made.stack_bytes,
                "shared": made.shared_bytes,
                "wgmma": made.uses_wgmma,
                "waits": made.waits_for_inputs,
                "starts_next_first": made.lets_next_start_first,
            }
            sys.stdout.write(json.dumps(row) + "\n")


def rows_of(module: str) -> list[dict[str, Any]]:
    """What the compiler made for sm_90, in a process of its own: this one's kernels are interpreted."""
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", module, "90"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=840, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_means(rows: list[dict[str, Any]]) -> None:
    """That nothing spills, nor asks for more than a block of sm_90 can have; and that every kernel waits for the one
    before it, without which the next would not wait for that one either."""
    assert rows
    for row in rows:
        assert row["registers"] <= 255, row
        assert row["stack"] == 0, row
        assert row["shared"] <= _SHARED_BYTES, row
        assert row["waits"], row
