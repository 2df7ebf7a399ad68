"""tuili: an inference-optimised model server.

>>> from app import LLM
>>> llm = LLM("smollm2-135m")
>>> llm.generate("The capital of France is")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.version import __version__

if TYPE_CHECKING:
    from app.contract.request import SamplingParams
    from app.llm import LLM

__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy: `tuili --help` and the API process must not pay for (or even see) torch.
    if name == "LLM":
        from app.llm import LLM

        return LLM
    if name == "SamplingParams":
        from app.contract.request import SamplingParams

        return SamplingParams
    raise AttributeError(name)
