"""The slab holds little more than the rows of its versions, zeroes what is freed, and keeps neighbours together."""

import torch

from loratree_composer.batch.slab import RankRows, Slab

CPU = torch.device("cpu")


def rows(rank: int, value: float = 1.0, *, into: int = 64, out: int = 32) -> dict[str, RankRows]:
    return {"x.weight": RankRows(torch.full((rank, into), value), torch.full((rank, out), -value))}


def test_many_versions_that_come_together_lie_in_one_block_without_spare_room() -> None:
    slab = Slab({"x.weight": torch.float32}, CPU)
    places = [slab.put(rows(8, at), coming=100 - at) for at in range(100)]
    assert {id(place.block) for place in places} == {id(places[0].block)}
    assert [place.slot for place in places] == list(range(100))
    assert slab.nbytes == sum(place.nbytes for place in places) == 100 * 8 * (64 + 32) * 4
    assert all(float(place.block.a["x.weight"][place.slot].mean()) == at for at, place in enumerate(places))


def test_versions_that_come_one_by_one_take_little_spare_room() -> None:
    slab = Slab({"x.weight": torch.float32}, CPU)
    places = [slab.put(rows(rank)) for rank in range(1, 40)]  # a form each
    assert slab.nbytes <= 8 * sum(place.nbytes for place in places)
    large = Slab({"x.weight": torch.float32}, CPU)
    place = large.put(rows(16, into=300_000, out=8))  # 19 MB
    assert large.nbytes == place.nbytes


def test_freed_rows_are_zeroed_and_taken_again_and_empty_blocks_are_freed() -> None:
    slab = Slab({"x.weight": torch.float32}, CPU)
    one, two, three = (slab.put(rows(2, value), coming=coming) for value, coming in ((1, 3), (2, 2), (3, 1)))
    slab.drop(two)
    assert not two.block.a["x.weight"][two.slot].any()
    assert not two.block.b["x.weight"][two.slot].any()
    again = slab.put(rows(2, 4.0))
    assert (again.block, again.slot) == (two.block, two.slot)
    for place in (one, again, three):
        slab.drop(place)
    assert slab.nbytes == 0


def test_rows_take_the_dtype_of_their_layer() -> None:
    slab = Slab({"x.weight": torch.bfloat16}, CPU)
    assert slab.put(rows(2)).block.a["x.weight"].dtype == torch.bfloat16
