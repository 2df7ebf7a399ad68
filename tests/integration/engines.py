"""The real engine on the real model, driven synchronously: what a test needs to force a mechanism to fire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from app.contract.config import EngineConfig
from app.contract.frames import EngineOutput, LoadProgress
from app.contract.request import GenerateRequest, SamplingParams
from app.engine.core import EngineCore
from app.kernels.native.library import ISAS, NativeError, best_isa
from app.runner.start import make_runner
from app.store import ModelFiles

GREEDY = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)


def isas() -> list[str]:
    """The instruction sets of the native kernels that this machine runs, best first."""
    try:
        return list(ISAS[ISAS.index(best_isa()) :])
    except NativeError:
        return []


def engine_config(files: ModelFiles, **changes: Any) -> EngineConfig:
    """fp32 on the CPU with integrity checks on."""
    base = EngineConfig(
        model_dir=str(files.directory),
        weights=tuple(str(path) for path in files.weights),
        eos_token_ids=files.eos_token_ids,
        max_model_len=2048,
        num_blocks=1024,
        integrity_checks=True,
    )
    return msgspec.structs.replace(base, **changes)


def make_engine(files: ModelFiles, **changes: Any) -> EngineCore:
    """An engine that has loaded the model's weights."""
    config = engine_config(files, **changes)
    return EngineCore(make_runner(config, _ignore), config)


def _ignore(progress: LoadProgress) -> None:
    del progress


def request(request_id: str, prompt: Sequence[int], params: SamplingParams = GREEDY, **fields: Any) -> GenerateRequest:
    """A request with a fixed seed."""
    return GenerateRequest(
        request_id=request_id, prompt_token_ids=list(prompt), sampling=params, **{"seed": 7, **fields}
    )


def run(engine: EngineCore, requests: Sequence[GenerateRequest], *, max_steps: int = 20_000) -> dict[str, list[int]]:
    """Adds all requests at once and steps until the engine is idle.

    Returns:
        The generated token ids of each request.
    """
    for item in requests:
        engine.add_request(item)
    outputs = step_until_idle(engine, max_steps=max_steps)
    return collect_tokens(outputs)


def step_until_idle(engine: EngineCore, *, max_steps: int = 20_000) -> list[EngineOutput]:
    """All outputs until nothing is left to do."""
    outputs: list[EngineOutput] = []
    for _ in range(max_steps):
        if not engine.has_work:
            engine.check_integrity()
            return outputs
        outputs += engine.step()
    raise TimeoutError(f"not idle after {max_steps} steps")


def collect_tokens(outputs: Sequence[EngineOutput]) -> dict[str, list[int]]:
    """Generated ids by request; an error output fails the test that asked."""
    tokens: dict[str, list[int]] = {}
    for output in outputs:
        if output.error is not None:
            raise AssertionError(f"{output.request_id}: {output.error.code}: {output.error.message}")
        tokens.setdefault(output.request_id, []).extend(output.new_token_ids)
    return tokens
