"""A step's samples on their way from the device, and the row outputs that they become."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.contract.frames import TokenLogprobs
from app.contract.step import RowOutput
from app.kernels.sample import LogprobsOut, logprobs
from app.runner.staging import Fetched, Returns

RESULT_BYTES = torch.int64.itemsize + torch.bool.itemsize
"""Bytes of a sample: its token, and whether it failed."""
_SAMPLE_FAILED = "no token could be sampled: the logits are not finite, or every token is masked"
_PROMPT_FAILED = "the logits of a prompt token are not finite"


class Reports:
    """Log-probabilities of tokens that are being computed.

    Args:
        rows: [Q] int64, row of logits of each token.
        token_ids: [Q] int64.
        num_top: alternatives that each token wants.
    """

    def __init__(
        self, logits_LV: Tensor, rows: Tensor, token_ids: Tensor, num_top: list[int], returns: Returns
    ) -> None:
        count, width, device = rows.numel(), min(max(num_top), logits_LV.shape[1]), logits_LV.device
        self._num_top = num_top
        out = LogprobsOut(
            logprob=torch.empty(count, device=device),
            rank=torch.empty(count, dtype=torch.int64, device=device),
            top_ids=torch.empty(count, width, dtype=torch.int64, device=device),
            top_logprobs=torch.empty(count, width, device=device),
        )
        logprobs(logits_LV, rows, token_ids, out)
        self._fetched = returns.fetch(token_ids, out.logprob, out.rank, out.top_ids, out.top_logprobs)

    def result(self) -> list[TokenLogprobs]:
        """Waits for the log-probabilities; one record for each token, in their order."""
        columns = zip(*(array.tolist() for array in self._fetched.arrays()), self._num_top, strict=True)
        return [
            TokenLogprobs(token_id, logprob, rank, list(zip(ids[:k], values[:k], strict=True)))
            for token_id, logprob, rank, ids, values, k in columns
        ]


@dataclass(frozen=True, slots=True)
class PendingSample:
    """A step's samples, perhaps still on their way from the device. Later steps do not touch it."""

    num_rows: int
    """Rows of the step."""
    sampled_rows: list[int]
    """Row of each sample, in ascending order."""
    results: Fetched
    """Bytes: tokens of the largest step's samples, int64, then for each whether it failed; this step's come first."""
    drafts: dict[int, list[int]]
    """Drafts that a row's samples but the last verify, by row; rows of one sample have none."""
    reports: Reports | None
    """Log-probabilities of sampled tokens."""
    reported: list[int]
    """Sample of each of ``reports``."""
    prompt_reports: Reports | None
    """Log-probabilities of prompt tokens."""
    prompt_rows: list[int]
    """Row of each of ``prompt_reports``."""

    def result(self) -> list[RowOutput]:
        """Waits for the device: one output a row of the step."""
        (results,) = self.results.arrays()
        tokens_end = len(results) // RESULT_BYTES * torch.int64.itemsize
        count = len(self.sampled_rows)
        token_ids: list[int] = results[:tokens_end].view(np.int64)[:count].tolist()
        failures: list[bool] = results[tokens_end:].view(np.bool_)[:count].tolist()
        plain = self.reports is None and self.prompt_reports is None and len(token_ids) == self.num_rows
        if plain and not self.drafts and not any(failures):
            return [RowOutput(token_ids=[token_id]) for token_id in token_ids]
        reports = dict(zip(self.reported, self.reports.result(), strict=True)) if self.reports else {}
        prompts: dict[int, list[TokenLogprobs]] = {}
        if self.prompt_reports:
            for row, report in zip(self.prompt_rows, self.prompt_reports.result(), strict=True):
                prompts.setdefault(row, []).append(report)
        valid = self._valid(token_ids)
        outputs = []
        for row in range(self.num_rows):
            samples, prompt = valid.get(row, []), prompts.get(row)
            if any(failures[sample] for sample in samples):
                outputs.append(RowOutput(error=_SAMPLE_FAILED))
            elif prompt and not all(math.isfinite(report.logprob) for report in prompt):
                outputs.append(RowOutput(error=_PROMPT_FAILED))
            else:
                new = [token_ids[sample] for sample in samples]
                own = [reports[sample] for sample in samples if sample in reports]
                outputs.append(RowOutput(token_ids=new, logprobs=own or None, prompt_logprobs=prompt))
        return outputs

    def _valid(self, token_ids: list[int]) -> dict[int, list[int]]:
        """Samples of each row that follow from tokens of the sequence: up to the first that is not the draft there."""
        samples: dict[int, list[int]] = {}
        for sample, row in enumerate(self.sampled_rows):
            samples.setdefault(row, []).append(sample)
        for row, drafts in self.drafts.items():
            own = samples[row]
            held = next((n for n, draft in enumerate(drafts) if token_ids[own[n]] != draft), len(drafts))
            del own[held + 1 :]
        return samples
