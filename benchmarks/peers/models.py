"""The embedded model in the formats that the peers read, all made from the one file that we serve."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from app.store import ModelFiles
from benchmarks.peers.process import PeerError, last_line


class Models:
    """Makes each format once and keeps it."""

    def __init__(self, source: ModelFiles, directory: Path) -> None:
        """
        Args:
            directory: where what is made is kept; absolute.
        """
        self.source = source
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def safetensors(self) -> Path:
        """A Hugging Face directory in bf16."""
        return self._once("safetensors", self._write_safetensors)

    def gguf(self, quantize: Path, quantization: str) -> Path:
        """A GGUF file, by llama.cpp's own ``llama-quantize``."""
        (weights,) = self.source.weights
        name = f"{self.source.name}-{quantization}.gguf"
        return self._once(
            name, lambda out: self._run([quantize, "--allow-requantize", weights, out, quantization], name)
        )

    def openvino(self, optimum: Path, export: str) -> Path:
        """A directory of OpenVINO's, by optimum-intel; ``export`` is its weight format."""
        name = f"openvino-{export}"
        export_command: list[str | Path] = [optimum, "export", "openvino", "--model", self.safetensors()]
        how: list[str | Path] = ["--task", "text-generation-with-past", "--weight-format", export]
        return self._once(name, lambda out: self._run([*export_command, *how, out], name))

    def onnx(self, python: Path, precision: str) -> Path:
        """A directory of ONNX Runtime GenAI's, by its model builder."""
        name = f"onnxruntime-{precision}"
        builder: list[str | Path] = [
            python,
            "-m",
            "onnxruntime_genai.models.builder",
            "-m",
            self.safetensors(),
            "-e",
            "cpu",
        ]
        cache: list[str | Path] = ["-c", self._directory / "onnxruntime-cache"]
        return self._once(name, lambda out: self._run([*builder, *cache, "-p", precision, "-o", out], name))

    def _once(self, name: str, make: Callable[[Path], None]) -> Path:
        target = self._directory / name
        if not target.exists():
            # A name that is there is whole: what is half made is called otherwise.
            partial = target.with_name(f"partial-{name}")
            if partial.is_dir():
                shutil.rmtree(partial)
            make(partial)
            partial.rename(target)
        return target

    def _run(self, command: Sequence[str | Path], name: str) -> None:
        log = self._directory / f"{name}.log"
        with log.open("w") as output:
            code = subprocess.run(command, stdout=output, stderr=output).returncode
        if code:
            raise PeerError(f"converting to {name} failed: {last_line(log)} (log: {log})")

    def _write_safetensors(self, out: Path) -> None:
        import torch
        from safetensors.torch import save_file

        from app.checkpoints.loader import iter_weights

        out.mkdir()
        tensors = {stored.name: stored.read().to(torch.bfloat16) for stored in iter_weights(self.source.weights)}
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        (eos, *_) = self.source.eos_token_ids
        ours = {"model_type": "llama", "torch_dtype": "bfloat16", "eos_token_id": eos}
        (out / "config.json").write_text(json.dumps(self.source.config | ours, indent=2))
        for name in ("generation_config.json", "tokenizer_config.json"):
            shutil.copy(self.source.directory / name, out)
        shutil.copy(self.source.tokenizer_file, out / "tokenizer.json")
