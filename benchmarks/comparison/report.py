"""docs/learning.md: the tables, made from the records."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from benchmarks.comparison.data_sets import DATA_SETS, DataSet
from benchmarks.comparison.records import Record, Records, same_time
from benchmarks.peers import OURS, PEERS

__all__ = ["FEW_STEPS", "MARGIN", "page"]

MARGIN = 0.005
"""mIoU by which a peer must be ahead before we say that we lose."""
_SEEN = 0.0005
"""Less is not seen in three digits."""
FEW_STEPS = 50
"""A peer that made fewer in the time it was given has hardly begun to learn."""

Value = Callable[[Record], float]
Cell = Callable[[Sequence[Record]], str]

_HEAD = """# How good the learner is, beside its peers

<!-- Made by `python -m benchmarks.learning --report` from docs/results/learning/; do not edit. -->

The same labelled slices, the same test slices, one way to score masks (`benchmarks/learning.py`).

- **ours**: the learner of the product as a project's first round trains it, default settings.
- **the network alone**: HRNet at a quarter of the resolution (hrnet_w18_small), without filters,
  pixel expert and pool: the learner of before.
- **pixel forest**: a pixel classifier as ilastik builds it: 100 unpruned trees on 42 filters at six
  scales (scikit-learn, SciPy), on every labelled pixel or 200,000 drawn at random. Here it is given
  whole labelled slices; its users mostly paint strokes.
- **U-Net**: four levels from full resolution, 32 to 256 channels, AdamW, flips, quarter turns,
  brightness, contrast and noise, for the CPU seconds that ours took to train.
- **nnU-Net**: nnunetv2, configuration `2d`, plans and augmentation its own, fold `all`; for the CPU
  seconds of ours and for ten times as many, its learning rate falling over those; planning and
  preprocessing come on top. It is made for a GPU and a thousand epochs: this says what it gives on
  CPUs in the time that an annotator waits, no more.

**Ours has an advantage here**: its recipe was chosen by mIoU on the test slices of these data sets
([what was tried](decisions.md), with the phantom, the CT, the sandstone and the MR), most of it on
label set 0. The peers have the settings that their own projects give them, or that are usual. The
head in MR (colin27_mr) was looked at for the first time when it was measured, after all of that.

Labelled slices are evenly spread over the pool: the pool is cut into as many bins as there are
labels, and label set 0 takes the centre of each, sets 1 and 2 the slice at one and at five sixths.
The number of the set is the seed as well. A cell is the mean over label sets ± their standard
deviation. mIoU and boundary F (tolerance 2 pixels) pool the pixels of all test slices; classes that
the test slices do not hold have none.
Training and predicting are CPU seconds, user and system, child processes included; the start of
nnU-Net's interpreter is not. What trained for our time is compared as long as that is within a
tenth of what ours takes now; the steps made stand beside the seconds where they were recorded.

| data set | what | labels made | classes |
| --- | --- | --- | ---: |
"""


def page(records: Records) -> str:
    """The whole page, Markdown. With nothing measured it says so."""
    found = list(records)
    scored = [record for record in found if record.error is None]
    stale = [record for record in scored if _is_stale(record, records)]
    measured = [record for record in scored if record not in stale]
    parts = [_HEAD + "\n".join(_described(name, measured) for name in _data_sets(found))]
    parts.append(_summary(measured) if measured else "Nothing has been measured yet.")
    doubts = [*(_stale(r, records) for r in stale), *filter(None, map(_doubt, measured))]
    if doubts:
        parts.append("### What to make of single rows\n\n" + "\n".join(doubts))
    parts += [_section(name, measured) for name in _data_sets(measured)] if measured else []
    failed = [record for record in found if record.error is not None]
    if failed:
        parts.append("## What could not be measured\n\n" + "\n".join(_failure(r) for r in failed))
    return "\n\n".join(parts) + "\n"


def _data_sets(records: Iterable[Record]) -> list[str]:
    """Those of the comparison, in its order, then others; of an empty page all."""
    seen = list(dict.fromkeys(record.case.data_set for record in records))
    if not seen:
        return list(DATA_SETS)
    return [n for n in DATA_SETS if n in seen] + [n for n in seen if n not in DATA_SETS]


def _described(name: str, measured: Sequence[Record]) -> str:
    data_set = DATA_SETS.get(name, DataSet("given with --data", "not stated"))
    classes = next((str(len(r.iou)) for r in measured if r.case.data_set == name), "")
    return f"| {name} | {data_set.title} | {data_set.labels} | {classes} |"


def _failure(record: Record) -> str:
    return f"- {record.case}: {record.error}"


# -- what was given our time


def _our_time(record: Record, records: Records) -> float | None:
    """What the peer would be given now; None: its own settings say how long it trains, or ours has
    not been measured."""
    times = PEERS[record.case.peer].times
    ours = records.get(replace(record.case, peer=OURS))
    return None if times is None or ours is None or ours.error else times * ours.train_cpu_s


def _is_stale(record: Record, records: Records) -> bool:
    seconds = _our_time(record, records)
    return seconds is not None and not same_time(record.given_s, seconds)


def _stale(record: Record, records: Records) -> str:
    return (
        f"- {record.case}: left out. Its mIoU of {_number(_miou(record))} is that of "
        f"{record.given_s or 0:.0f} CPU seconds; now it would be given "
        f"{_our_time(record, records):.0f}."
    )


def _hardly_trained(record: Record) -> bool:
    timed = PEERS[record.case.peer].times is not None
    return timed and record.steps is not None and record.steps < FEW_STEPS


def _doubt(record: Record) -> str | None:
    if _hardly_trained(record):
        return f"- {record.case}: {record.steps} steps only, so not among the means above."
    if record.case.peer.startswith("nnunet") and record.steps is None:
        return (
            f"- {record.case}: how many steps it made was not recorded. It may be so few that "
            f"its mIoU of {_number(_miou(record))} says nothing."
        )
    return None


# -- the summary


def _summary(measured: Sequence[Record]) -> str:
    """Ours against each peer, and where a peer is ahead."""
    lines = [
        "## In short\n",
        "Mean mIoU of ours and of each peer over the rows that both have, of the label sets that "
        f"both have. Lost: the peer is ahead by more than {MARGIN}.\n",
        _row(["peer", "rows", "ours", "peer", "difference", "won or equal", "lost"]),
        _rule(7, texts=(0,)),
    ]
    losses: dict[str, list[str]] = {}
    behind: dict[str, list[str]] = {}
    for peer in PEERS:
        duels = _duels([r for r in measured if not _hardly_trained(r)], peer)
        if peer == OURS or not duels:
            continue
        lost = [duel for duel in duels if duel.theirs - duel.ours > MARGIN]
        losses[PEERS[peer].title] = list(map(str, lost))
        close = [duel for duel in duels if _SEEN <= duel.theirs - duel.ours <= MARGIN]
        behind[PEERS[peer].title] = list(map(str, close))
        ours = statistics.fmean(duel.ours for duel in duels)
        theirs = statistics.fmean(duel.theirs for duel in duels)
        numbers = [_number(ours), _number(theirs), _signed(ours - theirs)]
        counts = [str(len(duels) - len(lost)), str(len(lost))]
        lines.append(_row([PEERS[peer].title, str(len(duels)), *numbers, *counts]))
    if not losses:
        return "## In short\n\nOurs has not been measured beside a peer yet."
    lines.append("\n### Where we lose\n")
    lines += [f"- to {peer}: {'; '.join(where)}" for peer, where in losses.items() if where]
    if not any(losses.values()):
        lines.append(f"Nowhere by more than {MARGIN} among the rows that were measured.")
    if any(behind.values()):
        lines.append("\nAhead of ours by no more than that:\n")
    lines += [f"- {peer}: {'; '.join(where)}" for peer, where in behind.items() if where]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Duel:
    """mIoU of ours and of a peer in a row, each the mean of the label sets that both have."""

    data_set: str
    labels: int
    ours: float
    theirs: float

    def __str__(self) -> str:
        return (
            f"{self.data_set} {self.labels} ({_number(self.ours)} against {_number(self.theirs)})"
        )


def _duels(measured: Sequence[Record], peer: str) -> list[_Duel]:
    found = []
    for (data_set, labels), of in _rows(measured).items():
        ours, theirs = ({r.case.label_set: _miou(r) for r in of.get(p, [])} for p in (OURS, peer))
        both = ours.keys() & theirs.keys()
        if both:
            means = (statistics.fmean(values[i] for i in both) for values in (ours, theirs))
            found.append(_Duel(data_set, labels, *means))
    return found


def _rows(measured: Sequence[Record]) -> dict[tuple[str, int], dict[str, list[Record]]]:
    """(data set, labels), a row → peer → its records, one a label set."""
    rows: dict[tuple[str, int], dict[str, list[Record]]] = {}
    for record in measured:
        group = record.case.data_set, record.case.labels
        rows.setdefault(group, {}).setdefault(record.case.peer, []).append(record)
    return rows


# -- a data set


def _section(name: str, measured: Sequence[Record]) -> str:
    rows = {group[1]: of for group, of in _rows(measured).items() if group[0] == name}
    peers = [peer for peer in PEERS if any(peer in of for of in rows.values())]
    head = [PEERS[peer].title for peer in peers]

    def table(cell: Cell, best: Value | None) -> str:
        lines = [
            _row([str(labels), *_bold({p: of.get(p, []) for p in peers}, cell, best)])
            for labels, of in sorted(rows.items())
        ]
        return "\n".join([_row(["labels", *head]), _rule(len(head) + 1), *lines])

    return "\n\n".join(
        [
            f"## {name}",
            *_same_sets(rows),
            "mIoU:",
            table(lambda records: _spread(_miou, records), _miou),
            "Boundary F, mean of the classes:",
            table(lambda records: _spread(_boundary, records), _boundary),
            "CPU seconds to train, and to predict a megapixel:",
            table(_cost, None),
            "IoU of each class:",
            _classes(rows, peers, head),
            f"Measured with {_versions(rows)}.",
        ]
    )


def _same_sets(rows: dict[int, dict[str, list[Record]]]) -> list[str]:
    """Sentences about label sets that differ in the seed alone."""
    found = []
    for labels, of in sorted(rows.items()):
        sets: dict[tuple[str, ...], set[int]] = {}
        for record in (r for records in of.values() for r in records if r.slices):
            sets.setdefault(record.slices, set()).add(record.case.label_set)
        found += [
            f"With {labels} labels, sets {' and '.join(map(str, sorted(same)))} are the same "
            "slices: ± counts them twice, with two seeds."
            for same in sets.values()
            if len(same) > 1
        ]
    return found


def _versions(rows: dict[int, dict[str, list[Record]]]) -> str:
    """Of each peer, those of its rows; + where the checkout was changed."""
    made: dict[str, set[str]] = {}
    for record in (r for of in rows.values() for records in of.values() for r in records):
        cpu = f" on {record.cpu}" if record.cpu else ""
        made.setdefault(record.case.peer, set()).add((record.version or "unknown") + cpu)
    return "; ".join(f"{PEERS[p].title} {', '.join(sorted(made[p]))}" for p in PEERS if p in made)


def _classes(rows: dict[int, dict[str, list[Record]]], peers: list[str], head: list[str]) -> str:
    lines = [_row(["labels", "class", *head]), _rule(len(head) + 2, texts=(1,))]
    for labels, of in sorted(rows.items()):
        names = dict.fromkeys(name for records in of.values() for name in records[0].iou)
        for name in names:
            cells = [_number(_mean(of.get(peer, []), _iou_of(name))) for peer in peers]
            lines.append(_row([str(labels), name, *cells]))
    return "\n".join(lines)


def _bold(
    of: dict[str, Sequence[Record]],
    cell: Cell,
    best: Value | None,
) -> list[str]:
    """The cells of a row, the highest bold."""
    cells = {peer: cell(records) for peer, records in of.items()}
    if best is not None and sum(bool(records) for records in of.values()) > 1:
        first = max((p for p in of if of[p]), key=lambda p: _mean(of[p], best))
        cells[first] = f"**{cells[first]}**"
    return list(cells.values())


def _miou(record: Record) -> float:
    return record.scores.miou


def _iou_of(name: str) -> Value:
    return lambda record: record.iou[name]


def _boundary(record: Record) -> float:
    return record.scores.mean_boundary_f


def _mean(records: Sequence[Record], value: Value = _miou) -> float:
    return statistics.fmean(map(value, records)) if records else math.nan


def _spread(value: Value, records: Sequence[Record]) -> str:
    values = [value(record) for record in records]
    if not values:
        return ""
    if len(values) == 1:
        return f"{_number(values[0])} (one set)"
    return f"{_number(statistics.fmean(values))} ± {_number(statistics.stdev(values))}"


def _cost(records: Sequence[Record]) -> str:
    if not records:
        return ""
    train = _mean(records, lambda record: record.train_cpu_s)
    steps = [record.steps for record in records if record.steps is not None]
    made = f", {statistics.fmean(steps):.0f} steps" if steps else ""
    return f"{train:.0f} / {_mean(records, lambda record: record.predict_cpu_s_per_mpx):.1f}{made}"


def _number(value: float) -> str:
    """.123, 1.000; nothing where there is no value."""
    return "" if math.isnan(value) else f"{value:.3f}".removeprefix("0")


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int, texts: Sequence[int] = ()) -> str:
    return _row("---" if column in texts else "---:" for column in range(columns))
