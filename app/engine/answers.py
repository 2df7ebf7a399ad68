"""What clients are told of their requests to generate."""

from __future__ import annotations

from app.contract.frames import EngineError, EngineOutput, TokenLogprobs
from app.contract.request import FinishReason
from app.engine.request import Request


class Answers:
    """Outputs of requests to generate that wait to be sent, by client."""

    def __init__(self) -> None:
        self._outputs: dict[int, list[EngineOutput]] = {}

    def __bool__(self) -> bool:
        """Whether any output waits."""
        return bool(self._outputs)

    def take(self) -> dict[int, list[EngineOutput]]:
        """Outputs since the last call, by client index."""
        outputs, self._outputs = self._outputs, {}
        return outputs

    def reject(self, request_id: str, client_index: int, error: EngineError) -> None:
        """Answers a request that the engine did not take."""
        self._emit(client_index, EngineOutput(request_id=request_id, finish_reason=FinishReason.ERROR, error=error))

    def tokens(
        self,
        request: Request,
        new_token_ids: list[int],
        logprobs: list[TokenLogprobs] | None,
        *,
        is_first: bool,
        finish_reason: FinishReason | None,
    ) -> None:
        """Sends a request's new tokens.

        Args:
            logprobs: one for each new token; None where the request did not ask for them.
            is_first: these are the request's first tokens.
            finish_reason: why the request ended with the last of them; None while it goes on.
        """
        prompt_logprobs = None
        if is_first and request.sampling.prompt_logprobs is not None:
            prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs, []
        output = EngineOutput(
            request_id=request.request_id,
            new_token_ids=new_token_ids,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            finish_reason=finish_reason,
            stop_token_id=_stop_token(request, new_token_ids) if finish_reason is FinishReason.STOP else None,
            num_cached_tokens=request.num_cached_tokens,
            timings=request.timings() if is_first or finish_reason is not None else None,
            num_drafts=request.num_drafts,
            num_right_drafts=request.num_right_drafts,
        )
        self._emit(request.client_index, output)

    def ended(self, request: Request, reason: FinishReason, error: EngineError | None) -> None:
        """Tells of the end of a request that none of its own tokens ended."""
        output = EngineOutput(
            request_id=request.request_id,
            finish_reason=reason,
            num_cached_tokens=request.num_cached_tokens,
            error=error,
            timings=request.timings(),
            num_drafts=request.num_drafts,
            num_right_drafts=request.num_right_drafts,
        )
        self._emit(request.client_index, output)

    def _emit(self, client_index: int, output: EngineOutput) -> None:
        self._outputs.setdefault(client_index, []).append(output)


def _stop_token(request: Request, token_ids: list[int]) -> int | None:
    """The token that ended a request; None where its grammar did."""
    return token_ids[-1] if token_ids and token_ids[-1] in request.stop_token_ids else None
