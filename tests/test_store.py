"""The store: whole files or none, and one worker a round."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import re
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ml_backend.embedded.processes import wait_until
from ml_backend.errors import TimeUp
from ml_backend.rounds import store as store_module
from ml_backend.rounds.artefacts import (
    DATASET,
    EVIDENCE,
    MASKS,
    METRICS,
    ROUND,
    WEIGHTS,
    EvidenceArrays,
    Step,
    of_a_round,
    written_after,
)
from ml_backend.rounds.claim import (
    ClaimedRound,
    ClaimLost,
    ClaimTaken,
    Holder,
    claimed,
    last_holder,
)
from ml_backend.rounds.project import PublishedRound
from ml_backend.rounds.records import ProjectRecord, Published, RoundRecord
from ml_backend.rounds.store import ProjectStore, RoundFolder, Store, StoreError, StoreFault
from tests.bucket import Bucket, NoAnswer
from tests.silent import Silent

PUBLISHED = Published(
    round=3, model_version="nextslice-r003-abcdef", classes=["background", "bone"], fingerprint="f"
)


@pytest.fixture(params=["local", "memory", Bucket.protocol])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> ProjectStore:
    root = str(tmp_path) if request.param == "local" else f"{request.param}://{tmp_path.name}"
    return Store(root).project("host_8080", "7.1763865028")


def as_another_process(project: ProjectStore) -> ProjectStore:
    scheme = "" if project.store.local else f"{project.store.fs.protocol}:/"
    return Store(scheme + project.store.root).project("host_8080", "7.1763865028")


def test_a_project_starts_with_nothing(project: ProjectStore) -> None:
    assert project.record is None
    assert project.published is None
    assert project.rounds() == []


def test_a_record_is_read_back_as_it_was_written(project: ProjectStore) -> None:
    project.published = PUBLISHED
    assert project.published == PUBLISHED


def test_what_another_process_writes_and_deletes_is_seen_after_a_listing(
    project: ProjectStore,
) -> None:
    """The web process lists the rounds of a project, and the worker publishes the first."""
    project.round(0).write(DATASET, b"{}")
    assert project.rounds() == [0]

    there = as_another_process(project)
    there.published = PUBLISHED
    there.round(0).write(ROUND, b"{}")
    there.round(0).remove(DATASET)

    assert project.published == PUBLISHED
    assert project.round(0).has(ROUND)
    assert not project.round(0).has(DATASET)
    assert project.store.modified(project.round(0).where(ROUND))


def test_rounds_are_numbered_folders(project: ProjectStore) -> None:
    for number in (0, 12, 3):
        project.round(number).write(DATASET, b"{}")
    assert project.rounds() == [0, 3, 12]
    assert project.round(12).has(DATASET)
    assert not project.round(12).has(ROUND)


def test_evidence_comes_back_without_pickle(project: ProjectStore) -> None:
    entropy, embedding = np.linspace(0, 1, 5), np.ones((5, 3), np.float32)
    evidence = EvidenceArrays(tuple(range(5)), {"entropy": entropy}, {"embedding": embedding})
    project.round(1).save(EVIDENCE, evidence)
    found = project.round(1).need(EVIDENCE)
    assert found.ids == evidence.ids
    assert found.names == {"entropy", "embedding"}
    np.testing.assert_array_equal(found.scores["entropy"], entropy)
    np.testing.assert_array_equal(found.features["embedding"], embedding)


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, ids=np.arange(2), **{"score.entropy": np.array([object(), object()])})
    return buffer.getvalue()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"no archive", pickled()])
def test_evidence_that_is_damaged_or_pickled_is_named(project: ProjectStore, data: bytes) -> None:
    project.round(1).write(EVIDENCE, data)
    with pytest.raises(StoreError, match=r"evidence\.npz is not a file of evidence"):
        project.round(1).load(EVIDENCE)


def test_what_a_step_makes_out_of_date_goes_last_first() -> None:
    names = [artefact.name for artefact in written_after(Step.SYNC)]
    assert names == [
        "round.json", "selection.json", "evidence.npz", "metrics.json", "weights.safetensors",
    ]  # fmt: skip


def test_every_file_of_a_round_names_its_step() -> None:
    steps = [artefact.step for artefact in of_a_round()]
    assert steps == sorted(steps)
    assert set(steps) == set(Step)


def test_a_damaged_record_is_named(project: ProjectStore) -> None:
    project.store.write(f"{project.path}/published.json", b'{"round": 3')
    with pytest.raises(StoreError, match=r"published\.json is not a Published"):
        _ = project.published


def test_a_missing_record_is_named(project: ProjectStore) -> None:
    with pytest.raises(StoreError, match=r"round-0004/round\.json is missing"):
        project.round(4).need(ROUND)


FILES = (DATASET, MASKS["1-a"], WEIGHTS, EVIDENCE, ROUND)


@pytest.mark.parametrize("retired", [False, True])
def test_pruning_takes_old_weights_and_evidence_but_never_what_is_served(
    project: ProjectStore, retired: bool
) -> None:
    """Round 3 was flagged: it serves the weights of round 1. Round 4 is at work."""
    served = "round-0001/weights.safetensors"
    for number in range(5):
        for file in FILES:
            project.round(number).write(file, b"{}")
    record = RoundRecord(
        round=3, model_version="v", classes=[], fingerprint="", weights=served, flagged="worse"
    )
    project.round(3).save(ROUND, record)
    project.published = PUBLISHED.model_copy(update={"weights": None if retired else served})

    assert project.prune() == 5

    there = {(n, file.name) for n in range(5) for file in FILES if project.round(n).has(file)}
    gone = {(n, file.name) for n in range(3) for file in (WEIGHTS, EVIDENCE)}
    every = {(n, file.name) for n in range(5) for file in FILES}
    assert every - there == gone - {(1, WEIGHTS.name)}
    assert project.prune() == 0


def test_nothing_is_pruned_before_something_is_published(project: ProjectStore) -> None:
    project.round(0).write(WEIGHTS, b"")

    assert project.prune() == 0
    assert project.round(0).has(WEIGHTS)


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


@pytest.fixture
def slow_or_stale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Have each look at a file under ``tmp_path`` do something first, as a network disk does."""
    stat = os.stat

    def begin(act: Callable[[], None]) -> None:
        def look(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
            if str(path).startswith(str(tmp_path)):
                act()
            return stat(path, *arguments, **options)

        monkeypatch.setattr("os.stat", look)

    return begin


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EACCES])
def test_what_cannot_be_looked_at_is_not_taken_for_gone(
    tmp_path: Path, slow_or_stale: Callable[..., None], code: int
) -> None:
    store = Store(str(tmp_path))
    project = store.project("host_8080", "7.1763865028")
    project.record = ProjectRecord(project=7, key="7.1763865028")
    with claimed(project.round(1), ttl_s=600) as round_:
        round_.write(DATASET, b"{}")

        def refuse() -> None:
            raise OSError(code, os.strerror(code))

        slow_or_stale(refuse)
        for ask in (
            lambda: project.has(DATASET),
            lambda: store.projects("host_8080"),
            project.rounds,
            lambda: store.modified(round_.where(DATASET)),
            lambda: last_holder(project.round(1)),
            lambda: round_.write(METRICS, b"{}"),
            PublishedRound(project, 1).check,
            round_.claim._show,
        ):
            with pytest.raises(StoreFault, match=re.escape(os.strerror(code))) as refused:
                ask()
            assert refused.value.errno == code
            assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize(
    "error",
    [
        NoAnswer('Could not connect to the endpoint URL: "http://s3.example/"'),
        NoAnswer(),
        OSError(errno.EBUSY, "Please reduce your request rate."),
        PermissionError(errno.EACCES, "Access Denied"),
    ],
)
def test_whatever_an_object_store_raises_is_a_fault_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    store = Store(f"bucket://{tmp_path.name}")
    store.write("h/x", b"{}")
    monkeypatch.setattr(Bucket, "refuses", error)
    said = re.escape(str(error.args[-1]).rstrip(".") if error.args else "NoAnswer")
    for act in (
        lambda: store.read("h/x"),
        lambda: store.write("h/x", b""),
        lambda: store.create("h/y", b""),
        lambda: store.exists("h/x"),
        lambda: store.modified("h/x"),
        lambda: store.names("h"),
        lambda: store.remove("h/x"),
        lambda: store.check_writable("h"),
    ):
        with pytest.raises(StoreFault, match=rf"{tmp_path.name}/h.*: {said}\. Is its server up"):
            act()


def test_an_object_store_that_never_answers_is_a_fault_of_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_module, "_ANSWER_S", 0.3)
    store = Store(f"{Silent.protocol}://lab")
    for act in (
        lambda: store.write("h/x", b""),
        lambda: store.create("h/y", b""),
        lambda: store.exists("h/x"),
        lambda: store.names("h"),
        lambda: store.remove("h/x"),
        lambda: store.check_writable("h"),
    ):
        with pytest.raises(StoreFault, match=r"lab/h.*: no answer within 0 s\. Is its server"):
            act()


def test_what_is_to_be_written_where_nothing_can_be_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket that is not there, and a disk that is not mounted behind a link."""
    gone = FileNotFoundError("The specified bucket does not exist")
    monkeypatch.setattr(Bucket, "refuses", gone)
    (tmp_path / "h").symlink_to(tmp_path / "disk")
    for store, said in (
        (Store("bucket://gone"), "The specified bucket does not exist. Is its server up"),
        (Store(str(tmp_path)), "File exists. Is its disk there?"),
    ):
        assert not store.exists("h/x")
        for write in (store.write, store.create):
            with pytest.raises(StoreFault, match=re.escape(said)):
                write("h/x", b"")
        with pytest.raises(FileNotFoundError):
            store.read("h/x")


def test_a_file_where_a_folder_is_looked_for_is_none(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("h", b"")
    assert store.projects("h") == []
    assert not store.exists("h/7.1")
    assert store.names("h/7.1") == []


def test_a_job_whose_time_is_up_while_a_slow_disk_is_asked_ends(
    tmp_path: Path, slow_or_stale: Callable[..., None]
) -> None:
    store = Store(str(tmp_path))

    def up() -> None:
        raise TimeUp("the job was given 86400 seconds, and has not ended")

    slow_or_stale(up)
    for ask in (store.exists, store.names):
        with pytest.raises(TimeUp):
            ask("h")


def test_create_never_overwrites(project: ProjectStore) -> None:
    assert project.store.create(f"{project.path}/x", b"first")
    assert not project.store.create(f"{project.path}/x", b"second")
    assert project.read_at("x") == b"first"


@pytest.mark.parametrize("there", [None, b"another's"])
@pytest.mark.parametrize(
    "error",
    [
        FileExistsError(errno.EEXIST, "At least one of the pre-conditions did not hold"),
        OSError("The conditional request cannot succeed due to a conflicting operation"),
        NoAnswer("Connection was closed before we received a valid response"),
    ],
)
def test_a_file_whose_creation_is_not_answered_clearly_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, there: bytes | None
) -> None:
    """A client repeats a put whose answer was lost, and is refused for what it has done."""
    store, put = Store(f"bucket://{tmp_path.name}"), Bucket.pipe_file

    def unclear(fs: Bucket, path: str, value: bytes, mode: str) -> None:
        put(fs, path, there or value)
        raise error

    monkeypatch.setattr(Bucket, "pipe_file", unclear)
    assert store.create("x", b"ours") is (there is None)


def test_a_file_that_could_not_be_created_and_is_not_there_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def conflict(*_: object, **__: object) -> None:
        raise OSError("a conflicting operation")

    monkeypatch.setattr(Bucket, "pipe_file", conflict)
    with pytest.raises(StoreFault, match="a conflicting operation"):
        Store(f"bucket://{tmp_path.name}").create("x", b"ours")


def test_of_two_workers_with_one_token_the_last_goes_on_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that knows no conditional puts gives it to both."""
    put = Bucket.pipe_file

    def overwrite(fs: Bucket, path: str, value: bytes, mode: str = "overwrite") -> None:
        put(fs, path, value)

    monkeypatch.setattr(Bucket, "pipe_file", overwrite)
    folder = Store(f"bucket://{tmp_path.name}").project("h", "7.1").round(1)
    with claimed(folder, ttl_s=4) as first:  # a sign of life every half second
        here = threading.current_thread()
        with monkeypatch.context() as blind:
            blind.setattr(
                "ml_backend.rounds.claim.last_holder",
                lambda folder: None if threading.current_thread() is here else last_holder(folder),
            )
            second = claimed(folder, ttl_s=600)
            last = second.__enter__()
        assert first.claim.token == last.claim.token == 1
        time.sleep(1.2)
        with pytest.raises(ClaimLost, match=r"token 1 is held by process .* as well"):
            first.write(DATASET, b"{}")
        last.write(DATASET, b"{}")
    last.write(METRICS, b"{}")
    second.__exit__(None, None, None)
    after = last_holder(folder)
    assert after is not None
    assert after.released


def test_a_round_is_claimed_once(project: ProjectStore) -> None:
    folder = project.round(1)
    with claimed(folder, ttl_s=60), pytest.raises(ClaimTaken, match="is held by process"):
        claimed(folder, ttl_s=60).__enter__()
    with claimed(folder, ttl_s=60) as after_release:
        assert after_release.claim.token == 2


def test_a_claim_without_a_sign_of_life_is_taken_over(project: ProjectStore) -> None:
    folder = project.round(1)
    with claimed(folder, ttl_s=600) as stale, claimed(folder, ttl_s=1e-9) as taker:
        taker.claim.check()
        with pytest.raises(ClaimLost, match="taken over with token 2"):
            stale.claim.check()


def test_a_worker_that_was_taken_over_writes_and_deletes_nothing_more(
    project: ProjectStore,
) -> None:
    folder = project.round(1)
    with claimed(folder, ttl_s=600) as stale:
        stale.write(DATASET, b"{}")
        with claimed(folder, ttl_s=1e-9) as taker:
            taker.write(ROUND, b"{}")
            for act in (
                lambda: stale.write(DATASET, b"late"),
                lambda: stale.save(MASKS["1-a"], np.zeros((2, 2), np.uint8)),
                lambda: stale.remove(ROUND),
            ):
                with pytest.raises(ClaimLost):
                    act()
    assert folder.read(DATASET) == folder.read(ROUND) == b"{}"
    assert not folder.has(MASKS["1-a"])


def _hold(root: str, held: multiprocessing.synchronize.Event) -> None:
    folder = Store(root).project("h", "1.1").round(1)
    with claimed(folder, ttl_s=600):
        held.set()
        time.sleep(600)


def test_a_killed_holder_does_not_block_the_next_worker(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path), held))
    holder.start()
    assert held.wait(240)
    folder: RoundFolder = Store(str(tmp_path)).project("h", "1.1").round(1)
    with pytest.raises(ClaimTaken):
        claimed(folder, ttl_s=600).__enter__()

    holder.kill()
    holder.join()

    with claimed(folder, ttl_s=600) as held:
        assert held.claim.token == 2


def test_a_token_that_meets_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the system refuses the bytes alike."""
    context = multiprocessing.get_context("fork")
    holder = context.Process(target=_take_on_a_full_disk, args=(str(tmp_path),))
    holder.start()
    holder.join(240)
    assert holder.exitcode == 0

    folder = Store(str(tmp_path)).project("h", "1.1").round(1)
    assert list((tmp_path / folder.path / "claims").iterdir()) == []
    with claimed(folder, ttl_s=600) as taken:
        assert taken.claim.token == 1


def _take_on_a_full_disk(root: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with pytest.raises(OSError, match="too large"):
        claimed(Store(root).project("h", "1.1").round(1), ttl_s=600).__enter__()


def test_a_claim_that_is_gone_is_lost_and_not_made_anew(tmp_path: Path) -> None:
    """The folder of a project is moved out of the store while a worker is at a round of it."""
    round_ = Store(str(tmp_path)).project("ls.example", "7.1763865028").round(1)
    with claimed(round_, 4) as folder:  # a sign of life each half second
        (tmp_path / "ls.example").rename(tmp_path / "taken-off")
        time.sleep(1.2)
        with pytest.raises(ClaimLost, match="taken off"):
            folder.write(DATASET, b"{}")
    assert not (tmp_path / "ls.example").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff" * 9])
def test_a_claim_that_cannot_be_read_ends_like_any_other(
    project: ProjectStore, content: bytes
) -> None:
    folder = project.round(1)
    project.store.write(f"{folder.path}/claims/000004.json", content)
    project.store.write(f"{folder.path}/claims/notes.json", b"somebody's")
    with pytest.raises(ClaimTaken, match=r"somebody whose claim, token 4, cannot be read"):
        claimed(folder, ttl_s=60).__enter__()
    void = 0.2

    def taken() -> bool:
        try:
            with claimed(folder, ttl_s=void) as round_:
                return round_.claim.token == 5
        except ClaimTaken:
            return False

    wait_until(taken, "the claim to be void", 120)


def test_a_sign_of_life_from_the_future_is_none(project: ProjectStore) -> None:
    """A clock that was put back by a day does not keep a round for a day."""
    folder = project.round(1)
    with claimed(folder, ttl_s=600) as round_:
        file = round_.claim._file
        tomorrow = round_.claim._holder().model_copy(
            update={"host": "elsewhere", "beat": time.time() + 86_400}
        )
        folder.save(file, tomorrow)
        with claimed(folder, ttl_s=60) as taker:
            assert taker.claim.token == 2


def test_signs_of_life_outlast_a_store_that_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Store(str(tmp_path)).project("h", "1.1").round(1)
    claims = tmp_path / folder.path / "claims"

    def beat() -> float:
        holder = last_holder(folder)
        assert holder is not None
        return holder.beat

    with claimed(folder, ttl_s=4) as round_:  # a sign of life every half second
        claims.rename(claims.with_name("away"))
        claims.touch()  # no folder: nothing can be written under it
        wait_until(lambda: "no sign of life can be written" in caplog.text, "a missed one", 120)
        claims.unlink()
        claims.with_name("away").rename(claims)
        before = beat()
        wait_until(lambda: beat() > before, "the next sign of life", 120)
        with pytest.raises(ClaimTaken):
            claimed(folder, ttl_s=60).__enter__()
        round_.write(DATASET, b"{}")


def test_a_process_that_has_the_pid_of_a_holder_is_not_taken_for_it() -> None:
    started = psutil.Process().create_time()
    holder = Holder(
        token=1, host=socket.gethostname(), pid=os.getpid(), started=started, beat=time.time()
    )
    assert holder.alive(600)
    assert not holder.model_copy(update={"started": started - 3600}).alive(600)


def test_a_sign_of_life_on_its_way_does_not_come_after_the_release(
    project: ProjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, go, save = threading.Event(), threading.Event(), RoundFolder.save

    def slow(*arguments: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            under_way.set()
            go.wait(120)
        save(*arguments)

    monkeypatch.setattr(RoundFolder, "save", slow)
    folder = project.round(1)
    with claimed(folder, ttl_s=4) as held:  # a sign of life every half second
        assert under_way.wait(120)
        threading.Timer(0.1, go.set).start()
    held.claim._thread.join(120)
    last = last_holder(folder)
    assert last is not None
    assert last.released


def test_work_that_is_done_is_not_lost_for_a_claim_that_cannot_be_released(tmp_path: Path) -> None:
    folder = Store(str(tmp_path)).project("h", "1.1").round(1)
    claims = tmp_path / folder.path / "claims"

    def work(round_: ClaimedRound) -> str:
        round_.write(DATASET, b"{}")
        claims.rename(claims.with_name("away"))
        claims.touch()
        return "done"

    with claimed(folder, ttl_s=600) as round_:
        assert work(round_) == "done"


def test_who_holds_a_round_is_known_and_since_when(project: ProjectStore) -> None:
    folder = project.round(1)
    assert last_holder(folder) is None
    before = time.time()
    with claimed(folder, ttl_s=600):
        holder = last_holder(folder)
        assert holder is not None
        assert (holder.pid, holder.host) == (os.getpid(), socket.gethostname())
        assert before <= holder.since <= holder.beat <= time.time()
        assert holder.alive(600)
    released = last_holder(folder)
    assert released is not None
    assert not released.alive(600)
    assert released.since == holder.since
