"""The real engine under ThreadSanitizer, 64 streams at once: ``make race-check``. Takes some minutes.

Builds the native library with ``-fsanitize=thread`` into a copy of the package, preloads the sanitizer's runtime, and
runs the default model on two and on four threads. Python and torch are not instrumented: what is looked at is ours.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
STREAMS = 64
THREADS = (2, 4)
_RACES = 66


def main() -> int:
    """The number of thread counts under which a race was found, or the engine failed."""
    found = subprocess.run(["gcc", "-print-file-name=libtsan.so"], check=True, capture_output=True, text=True)
    runtime = found.stdout.strip()
    if not Path(runtime).is_absolute():
        raise SystemExit("no libtsan here; it comes with gcc")
    with tempfile.TemporaryDirectory(prefix="tuili-races-") as directory:
        copy = Path(directory)
        for name in ("setup.py", "pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy)
        for room in ("app", "tests"):
            shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        flags = {"TUILI_CXXFLAGS": "-fsanitize=thread -g -O1", "TUILI_REQUIRE_NATIVE": "1"}
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(build, cwd=copy, env={**os.environ, **flags}, check=True)
        return sum(_run(copy, runtime, threads) != 0 for threads in THREADS)


def _run(copy: Path, runtime: str, threads: int) -> int:
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime,
        "TSAN_OPTIONS": f"ignore_noninstrumented_modules=1 exitcode={_RACES}",
        "PYTHONPATH": str(copy),
    }
    command = [sys.executable, "-m", "tests.kernels.native.race_check", "run", str(threads)]
    code = subprocess.run(command, cwd=copy, env=environment).returncode
    outcome = {0: "no race", _RACES: "races"}.get(code, f"exit code {code}")
    sys.stdout.write(f"{STREAMS} streams on {threads} threads: {outcome}\n")
    sys.stdout.flush()
    return code


def stream(threads: int) -> None:
    """Greedy and sampled requests of many lengths, all at once, to the end."""
    from app.contract.config import EngineConfig
    from app.contract.request import GenerateRequest, SamplingParams
    from app.engine.core import EngineCore
    from app.runner.start import make_runner
    from app.store import SilentProgress, Store, pull

    files = pull("smollm2-135m", Store(), SilentProgress())
    config = EngineConfig(
        model_dir=str(files.directory),
        weights=tuple(map(str, files.weights)),
        dtype="auto",
        quantization="auto",
        kernels="strict",
        num_blocks=1024,
        max_num_seqs=STREAMS,
        max_num_batched_tokens=512,
        threads=threads,
    )
    engine = EngineCore(make_runner(config, lambda _: None), config)
    for index in range(STREAMS):
        sampling = SamplingParams(
            temperature=0.0 if index % 2 else 0.8, top_p=0.9, max_tokens=6 + index % 5, ignore_eos=True
        )
        prompt = [(7 * index + position) % 40_000 + 100 for position in range(5 + index)]
        engine.add_request(
            GenerateRequest(
                request_id=str(index),
                prompt_token_ids=prompt,
                sampling=sampling,
                seed=index,
                arrival_time=time.monotonic(),
            )
        )
    ended = 0
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise SystemExit(output.error.message)
            ended += output.finish_reason is not None
    if ended != STREAMS:
        raise SystemExit(f"{ended} of {STREAMS} streams came to their end")


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        stream(int(sys.argv[2]))
    else:
        sys.exit(main())
