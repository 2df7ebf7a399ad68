"""What the next step computes: running requests first, then waiting ones, under one token budget.

There is no prefill or decode phase. Every request has ``num_computed_tokens`` chasing ``num_tokens``; a step moves it
on by as many tokens as budget and blocks allow, so chunked prefill and mixed batches fall out.

* **Order** is (priority, arrival), in both queues; waiting requests are admitted strictly in that order.
* **Fairness**: a row ahead in the order leaves one token and one logits row to every request behind it that decodes,
  and no more requests run than could each get a token, so neither prefills nor decodes starve.
* **Short of blocks**, of whichever KV group, a running request preempts those behind it, last first; with none behind
  it, it waits for those ahead, who always get on. A preempted request keeps its place in the order and computes again
  what the prefix cache has lost. Nobody preempts itself, and admission has refused whatever does not fit alone.
* **Short of blocks or slots**, a waiting request of strictly better priority preempts running ones of worse priority.
* **What a sequence no longer reads** (a window's past) comes back when the rows that read it are collected.
* **Steps in flight** still read and write the blocks of a request that leaves: its blocks and its slot come back when
  the last step that has a row of it is collected.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from operator import attrgetter

from app.contract.config import EngineConfig
from app.contract.request import RequestStatus
from app.contract.step import ScheduledRow, SlotInit
from app.engine.drafts.desk import DraftDesk
from app.engine.kv.counts import Counts, added, all_fit, subtracted
from app.engine.kv.manager import Hit, KVManager
from app.engine.kv.table import BlockTable
from app.engine.request import Request
from app.engine.step import Budget, Hold, PlannedRow, Publication, Step

_by_order = attrgetter("order")


class Scheduler:
    """Queues of requests, and the slots and blocks that they hold. Sees no results; the engine says what to undo."""

    def __init__(self, config: EngineConfig, kv: KVManager, drafts: DraftDesk) -> None:
        self._kv, self._drafts = kv, drafts
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
        self._kv.begin_step()
        self._yield_to_priority()
        step = Step(self._next_step)
        candidates = [(request, request.num_schedulable_tokens) for request in self.running]
        budget = Budget(
            self._max_tokens,
            self._max_logit_rows,
            num_rows=sum(wanted > 0 for _, wanted in candidates),
            num_decodes=sum(wanted == 1 for _, wanted in candidates),
            max_chunk=self._kv.max_chunk,
        )
        short_of_blocks = False
        for request, wanted in candidates:
            if wanted == 0 or request.status is not RequestStatus.RUNNING:
                continue  # it waits for a step in flight, or was preempted by a request ahead of it
            budget.reserved -= wanted == 1
            short_of_blocks |= not self._advance(request, wanted, step, budget)
        budget.reserved = 0
        if self.waiting and not short_of_blocks:
            self._admit(step, budget, now)
        self._kv.end_step()
        if not step.rows:
            return None
        self._next_step += 1
        self.in_flight.append(step)
        return step

    def _advance(self, request: Request, wanted: int, step: Step, budget: Budget) -> bool:
        """Gives a running request its row; False when there are too few blocks for it."""
        num_tokens = budget.chunk(request, wanted)
        if num_tokens == 0:
            return True
        end = request.num_computed_tokens + num_tokens
        drafts = self._drafts.worthwhile(request, budget) if request.draft_token_ids else []
        if not self._has_room(request, end + len(drafts)):
            drafts = []  # a guess is not worth a preemption
            if not self._secure_blocks(request, end):
                return False
        new_block_ids = self._kv.allocate(request, end + len(drafts))
        self._add_row(step, budget, request, num_tokens, drafts, new_block_ids)
        return True

    def _has_room(self, request: Request, end: int) -> bool:
        """Whether there are blocks for a running request's row that ends before position ``end``."""
        return self._kv.covers(request, end) or all_fit(self._kv.missing(request, end), self._kv.num_free)

    def _secure_blocks(self, request: Request, end: int) -> bool:
        """Preempts from the back of the order until there are blocks for a row that ends before position ``end``."""
        while not self._has_room(request, end):
            blocks, _ = self._returning()
            if all_fit(self._kv.missing(request, end), added(self._kv.num_free, blocks)) or self.running[-1] is request:
                return False
            self.preempt(self.running[-1])
        return True

    def _admit(self, step: Step, budget: Budget, now: float) -> None:
        """Moves waiting requests in, in order, until one of them does not fit."""
        promised = self._promised_blocks()
        while self.waiting and self._free_slots and len(self.running) < self._max_running:
            request = self.waiting[0]
            found = self._kv.match(request)
            num_tokens = self._first_tokens(request, found, budget, promised)
            if num_tokens == 0:
                return
            hit = self._kv.restore(request, found, bounded=bool(step.rows or self.in_flight))
            if hit is None:
                return
            if hit is not found and (num_tokens := self._first_tokens(request, hit, budget, promised)) == 0:
                return
            self.waiting.pop(0)
            self._start(request, hit, step, now)
            gained = self._kv.allocate(request, request.num_computed_tokens + num_tokens)
            new_block_ids = [cached + new for cached, new in zip(hit.entries, gained, strict=True)]
            self._add_row(step, budget, request, num_tokens, [], new_block_ids)
            promised = added(promised, self._kv.promised([request]))

    def _first_tokens(self, request: Request, hit: Hit, budget: Budget, promised: Counts) -> int:
        """Tokens of the first row of a waiting request behind a cached prefix; 0 when it does not fit."""
        num_cached = hit.num_blocks * self._kv.block_size
        request.parting = hit.parting * self._kv.block_size
        num_tokens = budget.chunk(request, request.up_to_parting(num_cached, len(request.token_ids) - num_cached))
        fits = num_tokens and all_fit(self._kv.needed(request, hit), subtracted(self._kv.num_free, promised))
        return num_tokens if fits else 0

    def _start(self, request: Request, hit: Hit, step: Step, now: float) -> None:
        """Binds a waiting request to a slot, its tables starting with a cached prefix."""
        request.slot = heapq.heappop(self._free_slots)
        request.status = RequestStatus.RUNNING
        insort(self.running, request, key=_by_order)
        self._kv.share(request, hit)
        request.num_computed_tokens = hit.num_blocks * self._kv.block_size
        if request.first_scheduled is None:
            request.first_scheduled = now
            # A grammar's first tokens are in the cache, too, after a request like this one.
            request.num_cached_tokens = min(request.num_computed_tokens, request.num_prompt_tokens)
            if self._kv.looks_up(request):
                self.num_query_tokens += request.num_prompt_tokens
                self.num_hit_tokens += request.num_cached_tokens
        step.slots.append(_slot_init(request, request.slot))

    def _add_row(
        self,
        step: Step,
        budget: Budget,
        request: Request,
        num_known: int,
        drafts: list[int],
        new_block_ids: list[list[int]],
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
            new_block_ids=new_block_ids,
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
        for ref in self._kv.publish(request, min(start + num_known, len(request.token_ids))):
            step.published.append(Publication(ref, request, request.epoch))

    # -- room ---------------------------------------------------------------------------------------------------

    def _promised_blocks(self) -> Counts:
        """Free blocks that running requests will take: for the rest of every prompt, and one for each to grow by.

        Without this, prompts admitted on their first chunk would preempt each other over their later ones.
        """
        return self._kv.promised(self.running)

    def _returning(self) -> tuple[Counts, int]:
        """Blocks (at most) and slots that come back when the steps in flight are collected."""
        holds = [hold for step in self.in_flight for hold in step.holds]
        blocks = [tuple(table.num_held for table in hold.tables) for hold in holds]
        return added(self._kv.leaving(self.running), *blocks), len(holds)

    def _yield_to_priority(self) -> None:
        """Preempts running requests of worse priority until there is room for the first waiting one."""
        if not self.waiting:
            return
        head = self.waiting[0]
        while self.running and self.running[-1].priority > head.priority:
            blocks, slots = self._returning()
            available = subtracted(added(self._kv.num_free, blocks), self._promised_blocks())
            has_slot = len(self._free_slots) + slots > 0 and len(self.running) < self._max_running
            if has_slot and all_fit(self._kv.needed(head, self._kv.match(head)), available):
                return
            self.preempt(self.running[-1])

    def preempt(self, request: Request) -> None:
        """Sends a running request back to the queue; what the prefix cache has lost by then is computed again."""
        self.running.remove(request)
        self._let_go(request)
        request.rewind(0)
        request.prompt_logprobs = []
        request.num_restorable = None
        request.status = RequestStatus.PREEMPTED
        self.num_preemptions += 1
        self.add(request)

    def _let_go(self, request: Request) -> None:
        """Returns blocks and slot, now or when the last step in flight that uses them is collected."""
        if request.slot is None:
            raise RuntimeError(f"request {request.request_id} runs without a slot")
        hold = Hold(request.tables, request.slot, self._kv.ending(request))
        request.tables, request.slot, request.num_published_blocks = [], None, 0
        for step in reversed(self.in_flight):
            if any(planned.row.slot == hold.slot for planned in step.rows):
                step.holds.append(hold)
                return
        self._take_back(hold)

    def _take_back(self, hold: Hold) -> None:
        self._kv.release(hold.tables)
        if hold.ending is not None:
            self._kv.keep(hold.ending)
        heapq.heappush(self._free_slots, hold.slot)

    # -- after a step -------------------------------------------------------------------------------------------

    def retire(self, step: Step) -> None:
        """Ends a step: blocks and slots that were held until then become free."""
        self.in_flight.remove(step)
        for hold in step.holds:
            self._take_back(hold)

    def fail(self, step: Step) -> list[Request]:
        """Retires a step that was not computed and withdraws what it published; the caller ends the requests returned.

        Other requests that share a block which the step was to write, or which a later step derived from such a block,
        are computed again.
        """
        steps = [other for other in self.in_flight if other.id >= step.id]
        lost = {p.ref: p for other in steps for p in other.published}
        self._kv.withdraw(lost)
        self.retire(step)
        failed = {p.row.slot for p in step.rows}
        culprits = [request for request in self.running if request.slot in failed]
        for request in self.running.copy():
            if request.slot in failed:
                continue
            mine = [lost[ref] for ref in self._kv.refs(request) if ref in lost] if lost else []
            if any(p.request is not request or p.epoch != request.epoch for p in mine):
                self.preempt(request)
            elif mine:
                request.num_published_blocks = 0  # offered again when its own step has succeeded
        return culprits

    def held_tables(self) -> list[list[BlockTable]]:
        """All block tables that hold blocks, for the integrity check."""
        held = [hold.tables for step in self.in_flight for hold in step.holds]
        return held + [request.tables for request in self.running]


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
        adapter=-1 if request.adapter is None else request.adapter.slot,
        # What a mask says of them is enough, and knows where nothing else can come.
        stop_token_ids=[] if request.is_constrained else sorted(request.stop_token_ids),
        prompt_token_ids=request.token_ids[: request.num_prompt_tokens] if counts_prompt else [],
        output_token_ids=request.token_ids[request.num_prompt_tokens :] if counts_output else [],
    )
