"""The allocator by itself: holds, eviction order, and that its integrity check finds what is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.contract.info import KVCacheGroup, KVCacheSpec
from app.engine.kv.counts import all_fit
from app.engine.kv.manager import KVManager
from app.engine.kv.pool import IntegrityError
from app.engine.request import Request
from tests.fakes import fake_config, fake_request, kv_group

BLOCK = 4


LONGEST = 1000


def manager(*groups: KVCacheGroup, num_blocks: int = 8) -> KVManager:
    spec = KVCacheSpec(block_size=BLOCK, groups=list(groups) or [kv_group("full", num_blocks)])
    return KVManager(spec, fake_config(), max_model_len=LONGEST, identity=("model", "float32"))


def request(kv: KVManager, prompt: list[int], salt: str = "") -> Request:
    """One that begins with what is cached of it."""
    new = Request(fake_request("r", prompt, 100, cache_salt=salt), 0, ())
    kv.share(new, kv.match(new))
    return new


def computed(kv: KVManager, prompt: list[int]) -> Request:
    """A request whose prompt has been computed, and published."""
    new = request(kv, prompt)
    kv.allocate(new, len(prompt))
    kv.publish(new, len(prompt))
    return new


def let_go(kv: KVManager, held: Request) -> list[int]:
    """Gives all back; returns the blocks of the first group."""
    kv.release(held.tables)
    return held.tables[0].held()


def hit(kv: KVManager, prompt: list[int]) -> int:
    """Blocks of a prompt that are cached."""
    return kv.match(Request(fake_request("r", prompt, 100), 0, ())).num_blocks


def test_shared_blocks_are_free_when_the_last_holder_lets_go() -> None:
    kv = manager()
    first = computed(kv, list(range(9)))
    second = request(kv, list(range(9)))
    assert second.tables[0].held() == first.tables[0].held()[:2]
    kv.check_integrity([first.tables, second.tables])
    kv.release(first.tables)
    assert kv.num_free == (6,)
    kv.release(second.tables)
    assert kv.num_free == (8,)
    assert hit(kv, list(range(9))) == 2, "free, but not forgotten"


def test_blocks_that_only_count_are_never_shared() -> None:
    kv = manager(kv_group("counted", 8))
    first = computed(kv, list(range(9)))
    assert (kv.num_free, kv.can_rewind) == ((5,), False)
    assert hit(kv, list(range(9))) == 0
    kv.check_integrity([first.tables])
    let_go(kv, first)
    assert (kv.num_free, hit(kv, list(range(9)))) == ((8,), 0)


def test_blocks_without_contents_are_taken_before_cached_ones() -> None:
    kv = manager(num_blocks=4)
    cached = let_go(kv, computed(kv, list(range(8))))
    other = request(kv, [9] * 8)
    kv.allocate(other, 8)
    assert not set(other.tables[0].held()) & set(cached)
    assert hit(kv, [*range(8), 1]) == 2
    kv.allocate(other, 12)
    assert hit(kv, [*range(8), 1]) == 1, "the tail of a prefix goes first"


def test_a_withdrawn_block_is_not_matched_and_keeps_its_holder() -> None:
    kv = manager()
    holder = request(kv, list(range(8)))
    kv.allocate(holder, 8)
    kv.withdraw(kv.publish(holder, 8)[:1])
    assert hit(kv, [*range(8), 1]) == 0
    kv.check_integrity([holder.tables])


def test_equal_contents_stay_on_offer_once() -> None:
    kv = manager()
    first, second = request(kv, list(range(8))), request(kv, list(range(8)))
    for holder in (first, second):
        kv.allocate(holder, 8)
    assert [ref.block_id for ref in kv.publish(first, 8)] == first.tables[0].held()
    assert kv.publish(second, 8) == []
    assert request(kv, [*range(8), 1]).tables[0].held() == first.tables[0].held()


def test_too_many_blocks_are_an_error_not_a_wrong_table() -> None:
    kv = manager(kv_group("full", 8), kv_group("sliding", 2, window=3))
    new = request(kv, [1] * 9)
    with pytest.raises(IntegrityError):
        kv.allocate(new, 9)
    kv.check_integrity([new.tables])


def _leak(kv: KVManager, held: Request) -> None:
    kv.allocate(held, 16)
    held.tables[0].entries.pop()


def _release_twice(kv: KVManager, held: Request) -> None:
    kv._pools[0].release(held.tables[0].held()[:1])


def _name_twice(kv: KVManager, held: Request) -> None:
    held.tables[0].entries.append(held.tables[0].entries[0])


def _lose_index(kv: KVManager, held: Request) -> None:
    kv._pools[0]._published.clear()


@pytest.mark.parametrize("damage", [_leak, _release_twice, _name_twice, _lose_index])
def test_the_integrity_check_finds_damage(damage: Callable[[KVManager, Request], None]) -> None:
    kv = manager()
    held = computed(kv, list(range(8)))
    kv.check_integrity([held.tables])
    damage(kv, held)
    with pytest.raises(IntegrityError):
        kv.check_integrity([held.tables])


GROUPS = {
    "full": [kv_group("full", 12)],
    "sliding": [kv_group("full", 12), kv_group("sliding", 9, window=6)],
    "state": [kv_group("state", 7), kv_group("full", 12)],
}


@given(
    st.sampled_from(sorted(GROUPS)),
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 20), st.booleans()), max_size=60),
)
@settings(max_examples=150, deadline=None)
def test_books_balance_under_any_sequence_of_operations(kind: str, operations: list[tuple[int, int, bool]]) -> None:
    kv = manager(*GROUPS[kind])
    held: dict[int, Request] = {}
    for index, length, publish in operations:
        kv.begin_step()
        if index in held:
            kv.release(held.pop(index).tables)
        else:
            new = Request(fake_request("r", [index % 2] * length, 100), 0, ())
            found = kv.match(new)
            kv.share(new, found)
            if all_fit(kv.missing(new, length), kv.num_free):
                kv.allocate(new, length)
                held[index] = new
                if publish:
                    kv.publish(new, length)
                kv.give_back(new, length)
            else:
                kv.release(new.tables)
        kv.check_integrity([entry.tables for entry in held.values()])
    for entry in held.values():
        kv.release(entry.tables)
    kv.check_integrity([])
    assert kv.num_free == tuple(group.num_blocks for group in GROUPS[kind])
