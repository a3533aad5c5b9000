"""Owners that share the batcher by work."""

import asyncio

from tests.server.scheduling.test_batcher import bench, settle


async def test_one_that_floods_does_not_make_others_wait_for_all_of_it() -> None:
    async with bench(max_batch_tokens=20) as b:
        held = await b.hold()
        tasks = [b.submit(f"flood{i}", owner="flood") for i in range(20)]
        tasks += [b.submit(f"rare{i}", owner="rare") for i in range(2)]
        await settle()
        await b.release(held, *tasks)
        places = {name: place for place, batch in enumerate(b.worker.batches) for name in batch}
        assert max(places["rare0"], places["rare1"]) <= 2
        assert [name for batch in b.worker.batches for name in batch if "flood" in name] == [
            f"flood{i}" for i in range(20)
        ]


async def test_owners_share_by_work_and_not_by_inputs() -> None:
    async with bench(max_batch_tokens=40) as b:
        held = await b.hold()
        tasks = [b.submit(f"long{i}", n_tokens=40, owner="long") for i in range(4)]
        tasks += [b.submit(f"short{i}", n_tokens=10, owner="short", group="short") for i in range(16)]
        await settle()
        await b.release(held, *tasks)
        first_half = [name for batch in b.worker.batches[:4] for name in batch]
        assert sum("long" in name for name in first_half) == 2
        assert sum("short" in name for name in first_half) == 8


async def test_what_was_dropped_costs_nobody_a_turn() -> None:
    async with bench(max_batch_tokens=10) as b:
        held = await b.hold()
        dead = [b.submit(f"dead{i}", owner="a", timeout_s=0.01) for i in range(50)]
        await asyncio.sleep(0.05)
        tasks = [b.submit(f"{owner}{i}", owner=owner) for i in range(4) for owner in ("b", "a")]
        await settle()
        await b.release(held, *dead, *tasks)
        owners = [name[0] for batch in b.worker.batches for name in batch]
        assert sorted(owners[:2]) == sorted(owners[2:4]) == ["a", "b"]


async def test_nobody_saves_up_turns_while_asking_nothing() -> None:
    async with bench(max_batch_tokens=10) as b:
        for i in range(5):
            await b.submit(f"early{i}", owner="busy")
        await b.submit("long", n_draws=10, owner="busy")
        await settle()
        held = await b.hold()
        tasks = [b.submit(f"{owner}{i}", owner=owner) for i in range(3) for owner in ("busy", "new")]
        await settle()
        await b.release(held, *tasks)
        owners = [name.rstrip("012") for batch in b.worker.batches for name in batch]
        assert sorted(owners[:2]) == sorted(owners[2:4]) == ["busy", "new"]
