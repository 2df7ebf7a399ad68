"""What the next step computes: running requests first, then waiting ones, under one token budget.

There is no prefill or decode phase. Every request has ``num_computed_tokens`` chasing ``num_tokens``; a step moves it
on by as many tokens as budget and blocks allow, so chunked prefill and mixed batches fall out.

* **Order** is (priority, arrival), in both queues; waiting requests are admitted strictly in that order.
* **Fairness**: a row ahead in the order leaves one token and one logits row to every request behind it that decodes,
  and no more requests run than could each get a token, so neither prefills nor decodes starve.
* **Short of blocks**, a running request preempts those behind it, last first; with none behind it, it waits for those
  ahead, who always get on. A preempted request keeps its place in the order and computes again what the prefix cache
  has lost. Nobody preempts itself, and admission has refused whatever does not fit alone.
* **Short of blocks or slots**, a waiting request of strictly better priority preempts running ones of worse priority.
* **Steps in flight** still read and write the blocks of a request that leaves: its blocks and its slot come back when
  the last step that has a row of it is collected.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from operator import attrgetter

from app.engine.block_manager import BlockManager
from app.engine.request import Request
from app.engine.step import Budget, Hold, PlannedRow, Publication, Step
from app.types import EngineConfig, RequestStatus, ScheduledRow, SlotInit

_by_order = attrgetter("order")


class Scheduler:
    """The queues, the slots and the blocks. Knows nothing of results but what it is told to undo."""

    def __init__(self, config: EngineConfig, blocks: BlockManager) -> None:
        self._blocks = blocks
        self._max_tokens = config.max_num_batched_tokens
        self._max_logit_rows = config.max_logit_rows
        self._max_running = min(config.max_num_seqs, config.max_num_batched_tokens, config.max_logit_rows)
        self._free_slots = list(range(config.max_num_seqs))
        self._next_step = 0
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.in_flight: deque[Step] = deque()
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        self.num_query_tokens = 0
        self.num_hit_tokens = 0

    def add(self, request: Request) -> None:
        """Queues a request that admission has passed."""
        insort(self.waiting, request, key=_by_order)

    def remove(self, request: Request) -> None:
        """Takes a finished or aborted request out, wherever it is."""
        if request.status is RequestStatus.RUNNING:
            self.running.remove(request)
            self._let_go(request)
        else:
            self.waiting.remove(request)
        request.status = RequestStatus.FINISHED

    # -- filling a step -----------------------------------------------------------------------------------------

    def schedule(self, now: float) -> Step | None:
        """The next step, in flight from here on; None when nothing can be computed now."""
        self._yield_to_priority()
        step = Step(self._next_step)
        candidates = [(request, request.num_schedulable_tokens) for request in self.running]
        num_decodes = sum(wanted == 1 for _, wanted in candidates)
        budget = Budget(self._max_tokens, self._max_logit_rows, num_decodes)
        short_of_blocks = False
        for request, wanted in candidates:
            if wanted == 0 or request.status is not RequestStatus.RUNNING:
                continue  # it waits for a step in flight, or was preempted by a request ahead of it
            budget.reserved -= wanted == 1
            short_of_blocks |= not self._advance(request, wanted, step, budget)
        budget.reserved = 0
        if self.waiting and not short_of_blocks:
            self._admit(step, budget, now)
        if not step.rows:
            return None
        self._next_step += 1
        self.in_flight.append(step)
        return step

    def _advance(self, request: Request, wanted: int, step: Step, budget: Budget) -> bool:
        """Gives a running request its row; False when it is blocks that lack."""
        num_tokens = budget.chunk(request, wanted)
        if num_tokens == 0:
            return True
        drafts = budget.drafts(request) if request.draft_token_ids else []
        end = request.num_computed_tokens + num_tokens
        if self._blocks.num_missing(request, end + len(drafts)) > self._blocks.num_free:
            drafts = []  # a guess is not worth a preemption
            if not self._secure_blocks(request, end):
                return False
        new_block_ids = self._blocks.allocate(request, end + len(drafts))
        self._add_row(step, budget, request, num_tokens, drafts, new_block_ids)
        return True

    def _secure_blocks(self, request: Request, num_tokens: int) -> bool:
        """Preempts from the back of the order until ``request`` can hold ``num_tokens`` positions."""
        while (missing := self._blocks.num_missing(request, num_tokens)) > self._blocks.num_free:
            returning_blocks, _ = self._returning()
            if missing <= self._blocks.num_free + returning_blocks or self.running[-1] is request:
                return False
            self._preempt(self.running[-1])
        return True

    def _admit(self, step: Step, budget: Budget, now: float) -> None:
        """Moves waiting requests in, in order, until one of them does not fit."""
        promised = self._promised_blocks()
        while self.waiting and self._free_slots and len(self.running) < self._max_running:
            request = self.waiting[0]
            cached = self._blocks.match(request)
            num_cached = len(cached) * self._blocks.block_size
            num_tokens = budget.chunk(request, len(request.token_ids) - num_cached)
            if num_tokens == 0 or self._needed_blocks(request, cached) > self._blocks.num_free - promised:
                return
            self.waiting.pop(0)
            self._start(request, cached, step, now)
            new_block_ids = cached + self._blocks.allocate(request, num_cached + num_tokens)
            self._add_row(step, budget, request, num_tokens, [], new_block_ids)
            promised += self._blocks.num_missing(request, len(request.token_ids)) + 1

    def _start(self, request: Request, cached: list[int], step: Step, now: float) -> None:
        """Binds a waiting request to a slot, its table starting with the ``cached`` blocks."""
        request.slot = heapq.heappop(self._free_slots)
        request.status = RequestStatus.RUNNING
        insort(self.running, request, key=_by_order)
        self._blocks.share(request, cached)
        request.num_computed_tokens = len(cached) * self._blocks.block_size
        if request.first_scheduled is None:
            request.first_scheduled = now
            request.num_cached_tokens = request.num_computed_tokens
            if self._blocks.looks_up(request):
                self.num_query_tokens += request.num_prompt_tokens
                self.num_hit_tokens += request.num_computed_tokens
        step.slots.append(_slot_init(request, request.slot))

    def _add_row(
        self,
        step: Step,
        budget: Budget,
        request: Request,
        num_known: int,
        drafts: list[int],
        new_block_ids: list[int],
    ) -> None:
        """Puts the request's next ``num_known`` tokens and its drafts into the step, and counts them as computed."""
        start = request.num_computed_tokens
        num_tokens = num_known + len(drafts)
        reaches_end = start + num_known == request.num_tokens
        num_samples = 1 + len(drafts) if reaches_end else 0
        logits_start = num_tokens - num_samples
        targets: list[int] = []
        if request.wants_prompt_logprobs:
            targets = request.token_ids[start + 1 : start + 1 + logits_start]
            logits_start = 0
        if request.slot is None:
            raise RuntimeError(f"request {request.request_id} runs without a slot")
        row = ScheduledRow(
            slot=request.slot,
            start=start,
            num_tokens=num_tokens,
            token_ids=None if request.num_pending else request.token_ids[start : start + num_known] + drafts,
            new_block_ids=[new_block_ids],
            logits_start=logits_start,
            num_samples=num_samples,
            logprob_targets=targets,
        )
        step.rows.append(PlannedRow(request, row, request.epoch))
        budget.spend(row)
        self.num_prompt_tokens += max(0, min(start + num_known, request.num_prompt_tokens) - start)
        request.num_computed_tokens = start + num_tokens
        if reaches_end:
            request.num_pending += 1
            request.draft_token_ids = []
        # Every layer writes the whole step's KV before any row attends: later rows of this very step may share it.
        for block_id in self._blocks.publish(request, min(start + num_known, len(request.token_ids))):
            step.published.append(Publication(block_id, request, request.epoch))

    # -- room ---------------------------------------------------------------------------------------------------

    def _needed_blocks(self, request: Request, cached: list[int]) -> int:
        """Free blocks that a waiting request's known tokens take."""
        return self._blocks.blocks_for(len(request.token_ids)) - len(cached) + self._blocks.num_idle(cached)

    def _promised_blocks(self) -> int:
        """Free blocks that are spoken for: the rest of every running prompt, and one to grow by each.

        Without this, prompts admitted on their first chunk would preempt each other over their later ones.
        """
        return sum(self._blocks.num_missing(request, len(request.token_ids)) + 1 for request in self.running)

    def _returning(self) -> tuple[int, int]:
        """Blocks (at most) and slots that come back when the steps in flight are collected."""
        holds = [hold for step in self.in_flight for hold in step.holds]
        return sum(len(hold.block_ids) for hold in holds), len(holds)

    def _yield_to_priority(self) -> None:
        """Makes room for the first waiting request at the cost of running ones of worse priority."""
        if not self.waiting:
            return
        head = self.waiting[0]
        while self.running and self.running[-1].priority > head.priority:
            blocks, slots = self._returning()
            num_available = self._blocks.num_free + blocks - self._promised_blocks()
            has_slot = len(self._free_slots) + slots > 0 and len(self.running) < self._max_running
            if has_slot and self._needed_blocks(head, self._blocks.match(head)) <= num_available:
                return
            self._preempt(self.running[-1])

    def _preempt(self, request: Request) -> None:
        """Sends a running request back to the queue; it will be computed again, from the prefix cache if that lasts."""
        self.running.remove(request)
        self._let_go(request)
        request.rewind(0)
        request.prompt_logprobs = []
        request.status = RequestStatus.PREEMPTED
        self.num_preemptions += 1
        self.add(request)

    def _let_go(self, request: Request) -> None:
        """Returns blocks and slot, now or when the last step in flight that uses them is collected."""
        if request.slot is None:
            raise RuntimeError(f"request {request.request_id} runs without a slot")
        hold = Hold(request.block_ids, request.slot)
        request.block_ids, request.slot, request.num_published_blocks = [], None, 0
        for step in reversed(self.in_flight):
            if any(planned.row.slot == hold.slot for planned in step.rows):
                step.holds.append(hold)
                return
        self._take_back(hold)

    def _take_back(self, hold: Hold) -> None:
        self._blocks.release(hold.block_ids)
        heapq.heappush(self._free_slots, hold.slot)

    # -- after a step -------------------------------------------------------------------------------------------

    def retire(self, step: Step) -> None:
        """The step is over: what waited for it comes back."""
        self.in_flight.remove(step)
        for hold in step.holds:
            self._take_back(hold)

    def fail(self, step: Step) -> list[Request]:
        """Retires a step that was not computed and withdraws what it published; the caller ends the requests returned.

        Whoever else shares a block that the step was to write, or that a later step derived from such a block, is
        computed again.
        """
        steps = [other for other in self.in_flight if other.id >= step.id]
        lost = {p.block_id: p for other in steps for p in other.published}
        self._blocks.unpublish(lost)
        self.retire(step)
        failed = {p.row.slot for p in step.rows}
        culprits = [request for request in self.running if request.slot in failed]
        for request in self.running.copy():
            if request.slot in failed:
                continue
            mine = [lost[block_id] for block_id in request.block_ids if block_id in lost]
            if any(p.request is not request or p.epoch != request.epoch for p in mine):
                self._preempt(request)
            elif mine:
                request.num_published_blocks = 0  # offered again when its own step has succeeded
        return culprits

    def held_tables(self) -> list[list[int]]:
        """Every block table that holds references, for the integrity check."""
        held = [hold.block_ids for step in self.in_flight for hold in step.holds]
        return held + [request.block_ids for request in self.running]


def _slot_init(request: Request, slot: int) -> SlotInit:
    params = request.sampling
    counts_prompt = params.repetition_penalty != 1.0
    counts_output = counts_prompt or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
    return SlotInit(
        slot=slot,
        sampling=params,
        seed=request.seed,
        sample_index=request.sample_index,
        prompt_len=request.num_prompt_tokens,
        stop_token_ids=sorted(request.stop_token_ids),
        prompt_token_ids=request.token_ids[: request.num_prompt_tokens] if counts_prompt else [],
        output_token_ids=request.token_ids[request.num_prompt_tokens :] if counts_output else [],
    )
