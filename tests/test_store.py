"""The store: whole files or none, and one worker a round."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

from ml_backend.rounds.store import (
    ClaimLost,
    ClaimTaken,
    ProjectStore,
    Published,
    RoundFolder,
    RoundRecord,
    Store,
    StoreError,
)

PUBLISHED = Published(
    round=3, model_version="nextslice-r003-abcdef", classes=["background", "bone"], fingerprint="f"
)


@pytest.fixture(params=["local", "memory"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> ProjectStore:
    root = str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"
    return Store(root).project("host_8080", "7.1763865028")


def test_a_project_starts_with_nothing(project: ProjectStore) -> None:
    assert project.record is None
    assert project.published is None
    assert project.rounds() == []


def test_a_record_is_read_back_as_it_was_written(project: ProjectStore) -> None:
    project.published = PUBLISHED
    assert project.published == PUBLISHED


def test_rounds_are_numbered_folders(project: ProjectStore) -> None:
    for number in (0, 12, 3):
        project.round(number).write("dataset.json", b"{}")
    assert project.rounds() == [0, 3, 12]
    assert project.round(12).has("dataset.json")
    assert not project.round(12).has("round.json")


def test_arrays_come_back_without_pickle(project: ProjectStore) -> None:
    arrays = {"ids": np.arange(5), "score.entropy": np.linspace(0, 1, 5)}
    project.round(1).write_arrays("evidence.npz", arrays)
    found = project.round(1).read_arrays("evidence.npz")
    assert found.keys() == arrays.keys()
    np.testing.assert_array_equal(found["score.entropy"], arrays["score.entropy"])


def test_a_damaged_record_is_named(project: ProjectStore) -> None:
    project.store.write(f"{project.path}/published.json", b'{"round": 3')
    with pytest.raises(StoreError, match=r"published\.json is not a Published"):
        _ = project.published


def test_a_missing_record_is_named(project: ProjectStore) -> None:
    with pytest.raises(StoreError, match=r"round-0004/round\.json is missing"):
        project.round(4).need("round.json", Published)


FILES = ("dataset.json", "masks/1-a.png", "weights.safetensors", "evidence.npz", "round.json")


@pytest.mark.parametrize("retired", [False, True])
def test_pruning_takes_old_weights_and_evidence_but_never_what_is_served(
    project: ProjectStore, retired: bool
) -> None:
    """Round 3 was flagged: it serves the weights of round 1. Round 4 is at work."""
    served = "round-0001/weights.safetensors"
    for number in range(5):
        for name in FILES:
            project.round(number).write(name, b"{}")
    record = RoundRecord(
        round=3, model_version="v", classes=[], fingerprint="", weights=served, flagged="worse"
    )
    project.round(3).save("round.json", record)
    project.published = PUBLISHED.model_copy(update={"weights": None if retired else served})

    assert project.prune() == 5

    there = {(n, name) for n in range(5) for name in FILES if project.round(n).has(name)}
    gone = {(n, name) for n in range(3) for name in ("weights.safetensors", "evidence.npz")}
    assert {(n, name) for n in range(5) for name in FILES} - there == gone - {(1, FILES[2])}
    assert project.prune() == 0


def test_nothing_is_pruned_before_something_is_published(project: ProjectStore) -> None:
    project.round(0).write("weights.safetensors", b"")

    assert project.prune() == 0
    assert project.round(0).has("weights.safetensors")


def test_the_round_of_the_weights_is_not_the_published_one_after_a_flag() -> None:
    served = PUBLISHED.model_copy(update={"weights": "round-0012/weights.safetensors"})

    assert served.weights_round == 12
    assert PUBLISHED.weights_round is None


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    store.write("a.json", b"old")

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write("a.json", b"new")
    assert store.read("a.json") == b"old"
    assert store.names("") == ["a.json"]


def test_create_never_overwrites(project: ProjectStore) -> None:
    assert project.store.create(f"{project.path}/x", b"first")
    assert not project.store.create(f"{project.path}/x", b"second")
    assert project.read("x") == b"first"


def test_a_round_is_claimed_once(project: ProjectStore) -> None:
    folder = project.round(1)
    with folder.claim(ttl_s=60), pytest.raises(ClaimTaken, match="is held by process"):
        folder.claim(ttl_s=60).__enter__()
    with folder.claim(ttl_s=60) as after_release:
        assert after_release.token == 2


def test_a_claim_without_a_sign_of_life_is_taken_over(project: ProjectStore) -> None:
    folder = project.round(1)
    with folder.claim(ttl_s=600) as stale, folder.claim(ttl_s=1e-9) as taker:
        taker.check()
        with pytest.raises(ClaimLost, match="taken over with token 2"):
            stale.check()


def _hold(root: str, held: multiprocessing.synchronize.Event) -> None:
    folder = Store(root).project("h", "1.1").round(1)
    with folder.claim(ttl_s=600):
        held.set()
        time.sleep(600)


def test_a_killed_holder_does_not_block_the_next_worker(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path), held))
    holder.start()
    assert held.wait(30)
    folder: RoundFolder = Store(str(tmp_path)).project("h", "1.1").round(1)
    with pytest.raises(ClaimTaken):
        folder.claim(ttl_s=600).__enter__()

    holder.kill()
    holder.join()

    with folder.claim(ttl_s=600) as claim:
        assert claim.token == 2
