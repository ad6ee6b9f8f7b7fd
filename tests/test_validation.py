"""A z-block is held out and stays held out; a worse checkpoint is recognised."""

from __future__ import annotations

import math

import numpy as np
import pytest

from al_strategies.evidence import Position, SliceId
from al_strategies.learner import Metrics
from ml_backend.segmentation.validation import ZBlock, held_back, is_worse, split_validation

Z = {f"s{i}": Position("v", 10.0 * i) for i in range(10)}
MANY = {f"{v}{z}": Position(v, float(z)) for v in "abcdef" for z in range(2)}


def metrics(slices: int = 3, **iou: float) -> Metrics:
    known = [v for v in iou.values() if not math.isnan(v)]
    return Metrics(miou=sum(known) / len(known), iou=iou, accuracy=0.5, slices=slices)


def test_too_few_labelled_slices_are_all_trained_on() -> None:
    ids = list(Z)[:9]

    assert split_validation(ids, Z) == split_validation(ids, Z, seed=5)
    assert split_validation(ids, Z).train == tuple(ids)
    assert split_validation(ids, Z).validation == ()


@pytest.mark.parametrize("seed", range(5))
def test_ten_labelled_slices_hold_two_neighbours_out(seed: int) -> None:
    split = split_validation(list(Z), Z, seed=seed)

    heights = [Z[i].z for i in split.validation]
    assert len(split.validation) == 2
    assert heights[1] - heights[0] == 10.0
    assert set(split.train) | set(split.validation) == set(Z)
    assert not set(split.train) & set(split.validation)


def test_the_block_stays_and_takes_slices_labelled_inside_it_later() -> None:
    first = split_validation(list(Z), Z, seed=1)
    low = Z[first.validation[0]].z
    later = {**Z, "inside": Position("v", low + 5), "outside": Position("v", 1000.0)}

    second = split_validation(list(later), later, blocks=first.blocks, seed=99)

    assert second.blocks == first.blocks
    assert set(second.validation) == {*first.validation, "inside"}
    assert "outside" in second.train


def test_since_a_block_is_held_out_nothing_trains_on_slices_that_judge_later() -> None:
    """What was trained before, on fewer than ten, did: `test_round` has it judged without those."""
    positions = {f"s{i}": Position("v", float(7 * i % 40)) for i in range(40)}
    ids = list(positions)
    trained: set[str] = set()
    blocks: tuple[ZBlock, ...] = ()

    for labelled in (10, 18, 26, 34, 40):
        split = split_validation(ids[:labelled], positions, blocks=blocks, seed=labelled)
        assert not trained & set(split.validation)
        trained |= set(split.train)
        blocks = split.blocks


def test_a_block_whose_annotations_were_deleted_is_chosen_anew() -> None:
    gone = ZBlock("v", 5000.0, 6000.0)

    split = split_validation(list(Z), Z, blocks=[gone])

    assert split.validation
    assert gone not in split.blocks


def test_sparse_volumes_are_held_out_whole() -> None:
    split = split_validation(list(MANY), MANY, seed=0)

    assert len(split.validation) == 2
    assert len({MANY[i].volume for i in split.validation}) == 1
    assert split.blocks == (ZBlock(MANY[split.validation[0]].volume),)


def test_every_dense_volume_holds_a_block_out() -> None:
    positions = {f"{v}{z}": Position(v, float(z)) for v in "ab" for z in range(10)}

    split = split_validation(list(positions), positions)

    assert [block.volume for block in split.blocks] == ["a", "b"]
    assert len(split.validation) == 4


def test_a_block_reaches_half_way_to_the_labels_around_it() -> None:
    split = split_validation(list(Z), Z, seed=1)

    heights = [Z[i].z for i in split.validation]
    (block,) = split.blocks
    assert block.low is None or block.low == heights[0] - 5
    assert block.high is None or block.high == heights[-1] + 5
    ends = {split_validation(list(Z), Z, seed=seed).blocks[0] for seed in range(50)}
    assert {block.low for block in ends if block.high is None} == {75.0}
    assert {block.high for block in ends if block.low is None} == {15.0}


@pytest.mark.parametrize(("volumes", "k"), [(1, 10), (2, 5), (2, 6), (3, 8), (7, 4), (8, 8)])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_held_out_grows_with_the_labels(volumes: int, k: int, seed: int) -> None:
    """Ten rounds of labels anywhere: about a fifth of them judges, from the third round on."""
    rng = np.random.default_rng([volumes, k, seed])
    positions = {f"{v}-{z}": Position(str(v), float(z)) for v in range(volumes) for z in range(100)}
    order = [list(positions)[i] for i in rng.permutation(len(positions))]
    blocks: tuple[ZBlock, ...] = ()
    for number in range(1, 11):
        ids = order[: k * number]
        split = split_validation(ids, positions, blocks=blocks, seed=seed)
        blocks = split.blocks
        if number >= 3 and len(ids) >= 15:
            assert 0.09 <= len(split.validation) / len(ids) <= 0.35


def test_volumes_held_out_whole_give_way_to_blocks() -> None:
    """One of three volumes is a third of the labels, once there are enough for blocks."""
    positions = {f"{v}{z}": Position(v, float(z)) for v in "abc" for z in range(20)}

    split = split_validation(list(positions), positions, blocks=[ZBlock("b")])

    assert [block.volume for block in split.blocks] == ["a", "b", "c"]
    assert len(split.validation) == 12


def test_slices_of_a_block_wait_once_it_holds_its_part() -> None:
    places: dict[SliceId, Position] = {i: Position("v", float(i)) for i in range(40)}
    block = ZBlock("v", 10, 19)

    def waiting(labelled: list[SliceId]) -> set[SliceId]:
        pool = [i for i in places if i not in labelled]
        return set(held_back(pool, labelled, places, [block]))

    assert waiting([10, *range(20, 24)]) == set(range(11, 20))
    assert waiting([10, *range(20, 25)]) == set()
    assert held_back(range(40), [1, 2], places, []) == frozenset()


def test_a_clear_drop_is_worse_and_a_small_one_is_not() -> None:
    published = metrics(bone=0.8, implant=0.6)

    assert is_worse(metrics(bone=0.75, implant=0.6), published)
    assert not is_worse(metrics(bone=0.78, implant=0.6), published)
    assert not is_worse(metrics(bone=0.9, implant=0.9), published)


def test_classes_that_only_one_of_them_saw_are_left_out() -> None:
    # Predicting a class that is not there gives it IoU 0 where the other has none at all.
    published = metrics(bone=0.8, implant=math.nan)

    assert not is_worse(metrics(bone=0.8, implant=0.0), published)


def test_one_or_two_slices_decide_nothing() -> None:
    assert not is_worse(metrics(2, bone=0.1), metrics(2, bone=0.9))
    assert is_worse(metrics(3, bone=0.1), metrics(3, bone=0.9))


def test_metrics_of_other_slices_do_not_compare() -> None:
    with pytest.raises(ValueError, match="same validation slices"):
        is_worse(metrics(4, bone=0.5), metrics(3, bone=0.5))
    with pytest.raises(ValueError, match="same validation slices"):
        is_worse(metrics(bone=0.5), metrics(wood=0.5))
