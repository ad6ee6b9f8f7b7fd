"""Experiment folders with rounds of one's own making, written through the record's models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_backend.experiment.record import FULLY_SUPERVISED, Cost, Experiment, RoundLine

CLASSES = ["background", "bone"]
"""A round of mIoU m has m + 0.1 of the first and m − 0.1 of the second."""


def write_experiment(
    out: Path,
    curves: Mapping[str, Sequence[Sequence[float]]],
    full: Sequence[float] = (),
    *,
    pool: int = 10,
    start: int = 4,
    k: int = 4,
    rounds: int | None = None,
    data: str = "phantom",
    test: Mapping[str, tuple[str, float]] | None = None,
    costs: Mapping[str, Sequence[int]] | None = None,
    judged: bool = False,
) -> Path:
    """``curves``: strategy → for each seed, from 0, the test mIoU after each round.

    ``full``: the mIoU of the fully supervised run of each seed. A run that is shorter than the
    longest, or than ``rounds``, is unfinished unless it has annotated the whole pool, as every run
    does in order. ``test``: slice id → (volume, z); by default far beyond the pool. ``costs``:
    strategy → corrected pixels of each round, of every seed.
    """
    longest = rounds or max(len(miou) for runs in curves.values() for miou in runs)
    slices = {f"s{i:04d}": (f"volume {i % 2}", float(i // 2)) for i in range(pool)}
    experiment = Experiment(
        data=data,
        data_hash="0" * 64,
        classes=CLASSES,
        pool=slices,
        test=dict(test or {"t0": ("volume 0", 900.0), "t1": ("volume 1", 900.0)}),
        k=k,
        start=start,
        rounds=longest,
        cold_start="strided",
        spacing=True,
        judged=judged,
        warm_start=False,
        architecture="hrnet_w18",
        steps=None,
        full_steps=100,
        training={},
        device="cpu",
        threads=1,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "experiment.json").write_text(experiment.model_dump_json())
    ids = list(slices)
    for strategy, runs in curves.items():
        for seed, miou in enumerate(runs):
            ends = [min(start + k * number, pool) for number in range(len(miou))]
            begins = [0, *ends]
            lines = [
                line(
                    strategy=strategy,
                    seed=seed,
                    round=number + 1,
                    labelled=end,
                    selected=ids[begins[number] : end],
                    miou=miou[number],
                    cost=a_cost(costs[strategy][number]) if costs else None,
                    following={} if number + 1 < longest and end < pool else None,
                )
                for number, end in enumerate(ends)
            ]
            write_run(out, lines)
    for seed, value in enumerate(full):
        write_run(
            out,
            [line(strategy=FULLY_SUPERVISED, seed=seed, labelled=pool, selected=ids, miou=value)],
        )
    return out


def a_cost(corrected: int) -> Cost:
    """Of four slices of 100 pixels; half as much outline as pixels."""
    by_class = {CLASSES[1]: corrected}
    return Cost(corrected=corrected, by_class=by_class, boundary=corrected // 2, pixels=400)


def line(*, miou: float, **values: Any) -> RoundLine:
    """A round line; what is not given is of no matter."""
    given: dict[str, Any] = {
        "strategy": "random",
        "seed": 0,
        "round": 1,
        "labelled": 4,
        "selected": [],
        "iou": dict(zip(CLASSES, (miou + 0.1, miou - 0.1), strict=True)),
        "accuracy": 0.9,
        "steps": 10,
    }
    return RoundLine(miou=miou, **{**given, **values})


def write_run(out: Path, lines: Sequence[RoundLine]) -> Path:
    """The file of one run."""
    path = out / "runs" / lines[0].strategy / f"seed-{lines[0].seed}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(each.to_line() for each in lines))
    return path
