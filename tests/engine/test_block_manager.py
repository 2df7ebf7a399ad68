"""The allocator by itself: holds, eviction order, and that its integrity check finds what is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.block_manager import BlockManager, IntegrityError
from app.engine.request import Request
from tests.fakes import fake_request

BLOCK = 4


def manager(num_blocks: int = 8) -> BlockManager:
    return BlockManager(num_blocks, BLOCK, identity=("model", "float32"), prefix_caching=True)


def request(prompt: list[int], salt: str = "") -> Request:
    return Request(fake_request("r", prompt, 100, cache_salt=salt), 0, ())


def test_blocks_are_counted_up() -> None:
    assert [manager().blocks_for(n) for n in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]


def test_shared_blocks_are_free_when_the_last_holder_lets_go() -> None:
    blocks = manager()
    first, second = request(list(range(9))), request(list(range(9)))
    blocks.allocate(first, 9)
    blocks.publish(first, 9)
    shared = blocks.match(second)
    blocks.share(second, shared)
    assert shared == first.block_ids[:2]
    blocks.check_integrity([first.block_ids, second.block_ids])
    blocks.release(first.block_ids)
    assert blocks.num_held == 2
    blocks.release(second.block_ids)
    assert blocks.num_free == 8
    assert blocks.match(request(list(range(9)))) == shared, "free, but not forgotten"


def test_blocks_without_contents_are_taken_before_cached_ones() -> None:
    blocks = manager(4)
    cached = request(list(range(8)))
    blocks.allocate(cached, 8)
    blocks.publish(cached, 8)
    blocks.release(cached.block_ids)
    other = request([9] * 8)
    blocks.allocate(other, 8)
    assert not set(other.block_ids) & set(cached.block_ids)
    assert len(blocks.match(request([*range(8), 1]))) == 2
    blocks.allocate(other, 12)
    assert len(blocks.match(request([*range(8), 1]))) == 1, "the tail of a prefix goes first"


def test_a_withdrawn_block_is_not_matched_and_keeps_its_holder() -> None:
    blocks = manager()
    holder = request(list(range(8)))
    blocks.allocate(holder, 8)
    published = blocks.publish(holder, 8)
    blocks.unpublish(published[:1])
    assert blocks.match(request([*range(8), 1])) == []
    blocks.check_integrity([holder.block_ids])


def test_equal_contents_stay_on_offer_once() -> None:
    blocks = manager()
    first, second = request(list(range(8))), request(list(range(8)))
    for holder in (first, second):
        blocks.allocate(holder, 8)
    assert blocks.publish(first, 8) == first.block_ids
    assert blocks.publish(second, 8) == []
    assert blocks.match(request([*range(8), 1])) == first.block_ids


def test_too_many_blocks_are_an_error_not_a_wrong_table() -> None:
    blocks = manager(2)
    with pytest.raises(IntegrityError):
        blocks.allocate(request([1] * 9), 9)
    blocks.check_integrity([])


def _leak(blocks: BlockManager, held: Request) -> None:
    blocks.allocate(held, 16)
    held.block_ids.pop()


def _release_twice(blocks: BlockManager, held: Request) -> None:
    blocks.release(held.block_ids[:1])


def _name_twice(blocks: BlockManager, held: Request) -> None:
    held.block_ids.append(held.block_ids[0])


def _lose_index(blocks: BlockManager, held: Request) -> None:
    blocks._published.clear()


@pytest.mark.parametrize("damage", [_leak, _release_twice, _name_twice, _lose_index])
def test_the_integrity_check_finds_damage(damage: Callable[[BlockManager, Request], None]) -> None:
    blocks = manager()
    held = request(list(range(8)))
    blocks.allocate(held, 8)
    blocks.publish(held, 8)
    blocks.check_integrity([held.block_ids])
    damage(blocks, held)
    with pytest.raises(IntegrityError):
        blocks.check_integrity([held.block_ids])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 20), st.booleans()), max_size=60))
@settings(max_examples=100, deadline=None)
def test_books_balance_under_any_sequence_of_operations(operations: list[tuple[int, int, bool]]) -> None:
    blocks = manager(12)
    held: dict[int, Request] = {}
    for index, length, publish in operations:
        if index in held:
            blocks.release(held.pop(index).block_ids)
        else:
            new = request([index % 2] * length)
            shared = blocks.match(new)
            if blocks.blocks_for(length) - len(shared) + blocks.num_idle(shared) <= blocks.num_free:
                blocks.share(new, shared)
                blocks.allocate(new, length)
                held[index] = new
                if publish:
                    blocks.publish(new, length)
        blocks.check_integrity([entry.block_ids for entry in held.values()])
    for entry in held.values():
        blocks.release(entry.block_ids)
    blocks.check_integrity([])
    assert blocks.num_free == 12
