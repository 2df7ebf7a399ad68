"""A server of one program's own: ``tuili serve`` as its child, on a free port of this machine, with its own key."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from app.settings import ENV_PREFIX, flag_name

# As the engine's: -m would find a package named app of the working directory.
_ENTRY = f"""import sys
sys.path[:] = {sys.path!r}
from app.parent import end_with_parent
end_with_parent()
from app.cli import main
main(prog_name="tuili")"""
_READY = re.compile(r"ready: (http\S+)")
_STOP_SECONDS = 20.0
"""Seconds that the server gets to end by itself."""


class ChildError(Exception):
    """The server did not come up; it has said why.

    Args:
        code: the exit code of this program.
    """

    def __init__(self, code: int) -> None:
        super().__init__("the server did not start")
        self.code = code


def serve_arguments(model: str, config_file: Path | None, flags: Mapping[str, Any]) -> list[str]:
    """The command line of ``tuili serve`` for a model.

    Args:
        flags: a value a setting; None or () where none was given.
    """
    arguments = [] if config_file is None else [f"--config={config_file}"]
    for name, value in ({**flags, "model": model}).items():
        flag = flag_name(name)
        if isinstance(value, bool):
            arguments.append(flag if value else f"--no-{flag[2:]}")
        elif value is not None:
            # With an equals sign, whatever the value begins with.
            arguments += [f"{flag}={each}" for each in (value if isinstance(value, tuple) else (value,))]
    return arguments


@contextlib.contextmanager
def child_server(arguments: Sequence[str], show: Callable[[str], object]) -> Iterator[tuple[str, str]]:
    """A ready server while the block runs.

    Args:
        show: called with each line that it prints while it starts.

    Yields:
        Its address and its key.

    Raises:
        ChildError: it ended before it was ready.
    """
    key = secrets.token_hex(16)
    own = {"HOST": "127.0.0.1", "PORT": "0", "API_KEYS": key}
    environment = {f"{ENV_PREFIX}LOG_LEVEL": "warning", **os.environ}
    environment |= {ENV_PREFIX + name: value for name, value in own.items()}
    # In a session of its own: a Ctrl-C is to stop an answer, not the server.
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", _ENTRY, "serve", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        url = _wait_ready(child, show)
        if url is None:
            raise ChildError(child.wait() or 1)
        threading.Thread(target=_drop, args=(child,), daemon=True).start()
        yield url, key
    finally:
        child.terminate()
        try:
            child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()  # its engine ends with it
            child.wait()
        signal.signal(signal.SIGTERM, before)


def _wait_ready(child: subprocess.Popen[str], show: Callable[[str], object]) -> str | None:
    """Address of the server, once it is ready; None when it ended."""
    for line in child.stdout or ():
        if found := _READY.match(line):
            return found[1]
        show(line.rstrip("\n"))
    return None


def _drop(child: subprocess.Popen[str]) -> None:
    """Reads what the server prints later, so that it never waits for a reader."""
    for _ in child.stdout or ():
        pass


def _leave(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)
