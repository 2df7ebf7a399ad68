"""Tiers of the prefix cache, through the engine: what comes back is right, bounded, and nobody else's."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.contract.frames import TierStats
from app.contract.info import KVCacheGroup
from app.engine.kv.tiers.block_file import HEAD_BYTES
from tests.engine.harness import Harness, wait_until
from tests.fake_tiers import RECORD_BYTES, CopyingRunner
from tests.fakes import FakeRunner, expected_tokens, fake_request, kv_group

BLOCK = 16
HYBRIDS: dict[str, Callable[[], list[KVCacheGroup]]] = {
    "full": lambda: [kv_group("full", 32)],
    "sliding": lambda: [kv_group("full", 32), kv_group("sliding", 12, window=40)],
    "state": lambda: [kv_group("full", 32), kv_group("state", 8)],
    "all": lambda: [kv_group("state", 8), kv_group("sliding", 12, window=40), kv_group("full", 32)],
}


@pytest.fixture(params=list(HYBRIDS))
def groups(request: pytest.FixtureRequest) -> list[KVCacheGroup]:
    return HYBRIDS[request.param]()


def prompt(number: int, length: int = 100) -> list[int]:
    """No two begin alike."""
    return [number, *((31 * number + 7 * i) % 1000 for i in range(length - 1))]


class Engine(Harness):
    """A harness over blocks that can be copied; ``name`` a request as you like."""

    def __init__(self, runner: FakeRunner | None = None, **config: Any) -> None:
        super().__init__(runner or CopyingRunner(num_blocks=32), **config)
        self.num_asked = 0

    def ask(self, tokens: list[int], num_tokens: int = 4, **fields: Any) -> int:
        """Asks alone, checks the answer; returns the tokens that were cached."""
        self.num_asked += 1
        key = str(self.num_asked)
        self.add(fake_request(key, tokens, num_tokens, **fields))
        self.run()
        assert self.last[key].error is None
        assert self.tokens[key] == expected_tokens(tokens, num_tokens)
        return self.last[key].num_cached_tokens

    def tier(self, name: str) -> TierStats:
        (found,) = (tier for tier in self.stats.prefix_tiers if tier.tier == name)
        return found

    def copy_all(self) -> None:
        """Until all that ended requests left has been copied for the disk."""

        def is_done() -> bool:
            self.core.tend()
            return self.core.longest_pause is None

        wait_until(is_done)

    def settle(self) -> None:
        """Until it is on the disk."""
        self.copy_all()
        self.core.close(20)


def files_of(directory: Path) -> list[Path]:
    return sorted(directory.glob("??/*.kv"))


def on_disk(directory: Path, groups: list[KVCacheGroup] | None = None, **config: Any) -> Engine:
    runner = CopyingRunner(num_blocks=32) if groups is None else CopyingRunner(groups=groups)
    return Engine(runner, prefix_cache_dir=str(directory), **config)


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_what_the_pool_gave_up_comes_back_from_memory(depth: int, groups: list[KVCacheGroup], late: bool) -> None:
    engine = Engine(CopyingRunner(groups=groups, copies_late=late), pipeline_depth=depth, prefix_cache_ram=1 << 20)
    said = [prompt(number) for number in range(12)]
    assert [engine.ask(tokens) for tokens in said] == [0] * 12
    again = [engine.ask(tokens) for tokens in said]
    assert all(hit >= 80 for hit in again[:8]), again
    assert engine.tier("ram").hits_total > 0
    assert engine.tier("ram").hit_tokens_total > 0


def test_sixty_four_conversations_over_a_pool_for_eight(depth: int) -> None:
    """Without the tier, of the same requests no token would be found."""
    hits = {}
    for ram in (None, 1 << 20):
        engine = Engine(CopyingRunner(num_blocks=8 * 7), pipeline_depth=depth, prefix_cache_ram=ram)
        for number in range(64):
            engine.ask(prompt(number), 6)
        asked = [[*prompt(number), *expected_tokens(prompt(number), 6), 1, 2] for number in range(64)]
        hits[ram] = [engine.ask(tokens) for tokens in asked]
    assert hits == {None: [0] * 64, 1 << 20: [96] * 64}, "of 108"


def test_memory_holds_no_more_than_it_may() -> None:
    engine = Engine(prefix_cache_ram=10 * RECORD_BYTES)
    for number in range(12):
        engine.ask(prompt(number))
        assert engine.tier("ram").held_bytes <= 10 * RECORD_BYTES
    assert engine.tier("ram").held_bytes == 10 * RECORD_BYTES


def test_many_at_once_and_preempted_are_right(depth: int, groups: list[KVCacheGroup]) -> None:
    engine = Engine(CopyingRunner(groups=groups), pipeline_depth=depth, prefix_cache_ram=1 << 20)
    for turn in range(3):
        said = {f"{turn} {number}": [*prompt(number, 60), *range(turn * 9)] for number in range(8)}
        engine.add(*(fake_request(key, tokens, 24) for key, tokens in said.items()))
        engine.run()
        assert {key: engine.tokens[key] for key in said} == {
            key: expected_tokens(tokens, 24) for key, tokens in said.items()
        }
    assert engine.tier("ram").hits_total > 0


def test_restoring_before_a_step_of_others_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream goes on while a long prompt comes back a slice a step."""
    monkeypatch.setattr("app.engine.kv.tiered._SLICE_BYTES", 2 * RECORD_BYTES)
    runner = CopyingRunner(num_blocks=32)
    engine = Engine(runner, prefix_cache_ram=1 << 20)
    engine.ask(prompt(1, 200))
    for number in range(2, 6):
        engine.ask(prompt(number, 200))
    runner.written.clear()
    engine.add(fake_request("stream", [5], 40))
    engine.step()
    engine.add(fake_request("long", prompt(1, 200), 4))
    before = len(engine.tokens["stream"])
    while "long" not in engine.tokens:
        engine.step()
    assert max(runner.written) == 2
    assert len(engine.tokens["stream"]) - before >= 6, "a token in each of the steps in which it came back"
    engine.run()
    assert engine.last["long"].num_cached_tokens == 192
    assert engine.tokens["long"] == expected_tokens(prompt(1, 200), 4)
    runner.written.clear()
    assert engine.ask(prompt(2, 200)) == 192, "with nobody to wait, in one step"


# -- disk ------------------------------------------------------------------------------------------------------------


def test_a_restart_finds_a_long_conversation(tmp_path: Path, depth: int, groups: list[KVCacheGroup]) -> None:
    engine = on_disk(tmp_path, groups, pipeline_depth=depth)
    said = prompt(3, 150)
    for _ in range(3):
        engine.ask(said, 40)
        said = [*said, *expected_tokens(said, 40), 1, 2, 3]
    engine.settle()
    again = on_disk(tmp_path, HYBRIDS["full"]() if len(groups) == 1 else groups, pipeline_depth=depth)
    assert again.ask(said) >= len(said) - 4 - BLOCK
    disk = again.tier("disk")
    assert (disk.damaged_total, disk.drops_total) == (0, 0)
    assert disk.hit_tokens_total >= len(said) - 4 - BLOCK


def test_an_engine_that_is_closed_at_once_leaves_all(tmp_path: Path) -> None:
    engine = on_disk(tmp_path)
    engine.ask(prompt(1))
    engine.core.close(20)
    assert on_disk(tmp_path).ask(prompt(1)) == 96


def test_an_engine_that_is_killed_in_mid_answer_has_left_the_prompt(tmp_path: Path, depth: int) -> None:
    engine = on_disk(tmp_path, pipeline_depth=depth)
    engine.add(fake_request("a", prompt(1, 200), 100))
    while len(engine.tokens.get("a", [])) < 60:
        engine.step()
    wait_until(lambda: engine.tier("disk").stores_total >= 12)
    assert on_disk(tmp_path).ask(prompt(1, 200)) == 192


def test_a_failed_step_leaves_nothing_on_the_disk(tmp_path: Path, depth: int) -> None:
    runner = CopyingRunner(num_blocks=32, fail_collect=lambda step: step.rows[0].start > 130)
    engine = Engine(runner, prefix_cache_dir=str(tmp_path), pipeline_depth=depth)
    engine.add(fake_request("a", prompt(1, 120), 40))
    engine.run()
    assert engine.errors() == {"a": "engine_error"}
    engine.settle()
    again = on_disk(tmp_path)
    said = [*prompt(1, 120), *expected_tokens(prompt(1, 120), 40)]
    assert 112 <= again.ask(said) <= 128, "read, and found to be right"


def test_what_memory_alone_has_is_written_at_the_end(tmp_path: Path) -> None:
    engine = on_disk(tmp_path, prefix_cache_ram=1 << 20)
    for number in range(6):
        engine.ask(prompt(number))
    engine.core.close(20)
    again = on_disk(tmp_path)
    assert [again.ask(prompt(number)) for number in range(6)] == [96] * 6


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes((data[middle] ^ 1,)) + data[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "the first byte": lambda data: bytes((data[0] ^ 1,)) + data[1:],
    "a byte of the head": _flip,
    "the last byte": lambda data: data[:-1] + bytes((data[-1] ^ 1,)),
    "truncated": lambda data: data[:-3],
    "longer": lambda data: data + b"x",
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_every_tenth_file_damaged_is_a_miss(tmp_path: Path, damage: str, groups: list[KVCacheGroup]) -> None:
    engine = on_disk(tmp_path, groups)
    said = [prompt(number, 150) for number in range(3)]
    for tokens in said:
        engine.ask(tokens)
    engine.settle()
    damaged = files_of(tmp_path)[::10]
    for file in damaged:
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
    again = on_disk(tmp_path, groups)
    hits = [again.ask(tokens) for tokens in said]
    assert sum(hits) < 3 * 144
    found = again.tier("disk").damaged_total
    assert 0 < found <= len(damaged)
    while again.tier("disk").damaged_total:  # a file that was not read is found the next time
        again.settle()
        again = on_disk(tmp_path, groups)
        hits = [again.ask(tokens) for tokens in said]
    assert hits == [144] * 3, "what was damaged was computed, and written again"


def test_a_file_under_anothers_name_is_damaged(tmp_path: Path) -> None:
    engine = on_disk(tmp_path)
    engine.ask(prompt(1))
    engine.settle()
    first, second, *_ = files_of(tmp_path)
    first.write_bytes(second.read_bytes())
    again = on_disk(tmp_path)
    assert again.ask(prompt(1)) < 96
    assert again.tier("disk").damaged_total == 1


def test_files_that_go_while_it_runs_are_misses(tmp_path: Path) -> None:
    engine = on_disk(tmp_path)
    engine.ask(prompt(1))
    engine.settle()
    again = on_disk(tmp_path)
    for file in files_of(tmp_path):
        file.unlink()
    assert again.ask(prompt(1)) == 0
    assert again.tier("disk").damaged_total == 0


def test_files_hold_no_more_than_they_may_and_the_last_used_stay(tmp_path: Path) -> None:
    capacity = 20 * (HEAD_BYTES + RECORD_BYTES)
    engine = on_disk(tmp_path, [kv_group("full", 10)], prefix_cache_disk=capacity)
    for number in range(8):
        engine.ask(prompt(number))
        engine.copy_all()
    engine.settle()
    assert sum(file.stat().st_size for file in files_of(tmp_path)) <= capacity
    again = on_disk(tmp_path, prefix_cache_disk=capacity)
    assert [again.ask(prompt(number)) for number in (7, 6, 1, 0)] == [96, 96, 0, 0]


def test_only_the_user_may_look_in(tmp_path: Path) -> None:
    directory = tmp_path / "blocks"
    engine = on_disk(directory)
    engine.ask(prompt(1), cache_salt="a secret salt")
    engine.settle()
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (directory, *directory.rglob("*"))}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert (directory / "key").stat().st_size == 32
    assert all(b"a secret salt" not in path.read_bytes() for path in directory.rglob("*") if path.is_file())


def test_a_directory_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letters").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(ValueError, match="of its own"):
        on_disk(tmp_path)


def test_another_key_knows_nothing_of_it(tmp_path: Path) -> None:
    engine = on_disk(tmp_path)
    engine.ask(prompt(1))
    engine.settle()
    (tmp_path / "key").write_bytes(os.urandom(32))
    assert on_disk(tmp_path).ask(prompt(1)) == 0


def test_tenants_share_nothing_on_disk_either(tmp_path: Path) -> None:
    engine = on_disk(tmp_path)
    engine.ask(prompt(1), cache_salt="one")
    engine.settle()
    again = on_disk(tmp_path)
    assert [again.ask(prompt(1), cache_salt=salt) for salt in ("two", "", "one")] == [0, 0, 96]


@pytest.mark.parametrize(
    "change",
    [
        {"layout": "another"},
        {"config": {"load_format": "dummy", "seed": 1}},
        {"weights": b"other weights"},
    ],
    ids=["layout", "dummy", "weights"],
)
def test_another_model_finds_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"these weights")
    config: dict[str, Any] = {"prefix_cache_dir": str(tmp_path / "blocks"), "weights": (str(weights),)}
    engine = Engine(**config)
    engine.ask(prompt(1))
    engine.settle()
    if "weights" in change:
        weights.write_bytes(change["weights"])
    other = Engine(
        CopyingRunner(num_blocks=32, layout=change.get("layout", "fake")), **config, **change.get("config", {})
    )
    assert other.ask(prompt(1)) == 0


def test_the_same_weights_may_lie_elsewhere(tmp_path: Path) -> None:
    weights, directory = tmp_path / "weights", str(tmp_path / "blocks")
    weights.write_bytes(b"these weights")
    engine = Engine(prefix_cache_dir=directory, weights=(str(weights),))
    engine.ask(prompt(1))
    engine.settle()
    (tmp_path / "moved").mkdir()
    moved = weights.rename(tmp_path / "moved" / "weights")
    assert Engine(prefix_cache_dir=directory, weights=(str(moved),), model_dir="elsewhere").ask(prompt(1)) == 96


def test_two_engines_share_a_directory(tmp_path: Path) -> None:
    first, second = on_disk(tmp_path), on_disk(tmp_path)
    for number in range(4):
        first.ask(prompt(number))
        second.ask(prompt(number + 2))
    first.settle()
    second.settle()
    third = on_disk(tmp_path)
    assert [third.ask(prompt(number)) for number in range(6)] == [96] * 6
    assert third.tier("disk").damaged_total == 0


@pytest.fixture
def no_file_may_grow() -> Iterator[Callable[[int], None]]:
    """Sets the size beyond which this process writes no file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_costs_the_tier_alone(tmp_path: Path, no_file_may_grow: Callable[[int], None]) -> None:
    engine = on_disk(tmp_path)
    engine.ask(prompt(1))
    engine.copy_all()
    wait_until(lambda: engine.tier("disk").stores_total == 6)
    no_file_may_grow(HEAD_BYTES + 1)
    engine.ask(prompt(2))
    engine.copy_all()
    wait_until(lambda: engine.tier("disk").drops_total > 0)
    for number in range(1, 5):
        engine.ask(prompt(number))
    engine.core.close(20)
    assert list((tmp_path / "partial").iterdir()) == []
    assert len(files_of(tmp_path)) == 6
    assert on_disk(tmp_path).ask(prompt(1)) == 96


# -- what may go wrong -----------------------------------------------------------------------------------------------


def test_blocks_that_cannot_be_copied_cost_the_tiers_alone(tmp_path: Path) -> None:
    runner = CopyingRunner(num_blocks=16)
    engine = Engine(runner, prefix_cache_ram=1 << 20, prefix_cache_dir=str(tmp_path))
    engine.ask(prompt(1))
    engine.ask(prompt(2))
    runner.fails = True
    for number in (1, 2, 3, 1):
        engine.ask(prompt(number))
    runner.fails = False
    engine.core.close(20)


def test_a_runner_that_copies_no_blocks_goes_without(tmp_path: Path) -> None:
    engine = Engine(FakeRunner(), prefix_cache_ram=1 << 20, prefix_cache_dir=str(tmp_path / "blocks"))
    assert engine.ask(prompt(1)) == 0
    assert engine.stats.prefix_tiers == []
    assert not (tmp_path / "blocks").exists()


def test_numbers_gone_bad_stay_in_no_tier(tmp_path: Path) -> None:
    """A row that fails withdraws what its request wrote, copies included."""
    runner = CopyingRunner(groups=HYBRIDS["sliding"]())
    engine = Engine(runner, prefix_cache_ram=1 << 20, prefix_cache_dir=str(tmp_path))
    engine.ask(prompt(2, 150))
    runner.row_error = lambda _, row: "not finite" if row.start > 150 else None
    engine.add(fake_request("bad", prompt(1, 150), 40))
    engine.run()
    assert engine.errors() == {"bad": "engine_error"}
    runner.row_error = None
    assert engine.ask(prompt(1, 150)) == 0


def test_unset_there_are_no_tiers() -> None:
    runner = CopyingRunner(num_blocks=16)
    engine = Engine(runner)
    for number in (1, 2, 3, 1):
        engine.ask(prompt(number))
    assert (engine.stats.prefix_tiers, runner.num_read, runner.written) == ([], 0, [])
    assert engine.core.longest_pause is None
