"""The learner beside its peers: the same labels, the same test slices, masks scored alike.

    python -m benchmarks.learning --data sandstone_xrm=DIR --data totalseg_ct=DIR \\
        [--sets phantom_small …] [--labels 1 2 …] [--label-sets 0 1 2] [--only ours forest …]
    python -m benchmarks.learning --report

Every case (data set, labels, label set, peer) appends a line to docs/results/learning/, and a case
that has its line is skipped: the same command goes on. What was given another time than ours takes
since is measured again; so is a peer by ``--again PEER``, and what failed by ``--retry``.
``--report`` writes docs/learning.md from the lines. All peers and data sets take days on one core;
what a package brings is downloaded into ``--home``.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.comparison.data_sets import DATA_SETS, SHIFTS, labelled_slices, load
from benchmarks.comparison.records import Case, Record, Records, same_time
from benchmarks.comparison.report import page
from benchmarks.comparison.scores import score
from benchmarks.peers import OURS, PEERS
from benchmarks.peers.protocol import Mask, Peer, Pool, Task, Unavailable, cpu_seconds
from ml_backend.experiment.data import Data

__all__ = ["LABELS", "Run", "main", "measure"]

LABELS = (1, 2, 4, 8, 16, 40, 80)
ROOT = Path(__file__).resolve().parents[1]


def measure(peer: Peer, task: Task, data: Data, case: Case) -> Record:
    """Train ``peer`` on ``task`` and score it on the test slices of ``data``."""
    before, idle = cpu_seconds(), peer.idle_s
    peer.fit(task)
    train = cpu_seconds() - before - (peer.idle_s - idle)

    before, idle = cpu_seconds(), peer.idle_s
    masks: list[Mask] = list(peer.predict(data.source, data.test))
    predict = cpu_seconds() - before - (peer.idle_s - idle)

    scores = score(zip(map(data.source.mask, data.test), masks, strict=True), data.classes)
    return Record(
        case=case,
        slices=tuple(str(i) for i in task.labelled),
        iou=scores.iou,
        boundary_f=scores.boundary_f,
        train_cpu_s=round(train, 2),
        predict_cpu_s_per_mpx=round(predict / sum(mask.size for mask in masks) * 1e6, 3),
        given_s=task.seconds,
        steps=peer.steps,
        test_slices=len(data.test),
    )


class Run:
    """The cases that ``options`` ask for, in order: of each (data set, label set, labels) ours
    first, for its CPU seconds are what others are given."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._folders: Mapping[str, Path] = dict(options.data)
        self._records = Records(options.out)
        self._made_with = {
            "device": options.device, "threads": options.threads, "cpu": _cpu(),
            "version": _version(),
        }  # fmt: skip

    def go(self) -> None:
        for name in self._options.sets:
            try:
                data = load(name, self._options.home, self._folders)
            except Unavailable as error:
                print(f"{name} is left out: {error}", flush=True)
                continue
            for case in filter(self._wanted, self._cases(name, len(data.pool))):
                print(f"{case}: ", end="", flush=True)
                if self._lacks_ours(case):
                    print(f"left for later, measure {OURS} in this case first", flush=True)
                    continue
                record = replace(self._measured(case, data), **self._made_with)
                self._records.append(record)
                print(record, flush=True)

    def _cases(self, name: str, pool: int) -> Iterator[Case]:
        peers = sorted(self._options.only, key=list(PEERS).index)
        for label_set in self._options.label_sets:
            for labels in self._options.labels:
                if labels <= pool:
                    yield from (Case(name, labels, label_set, peer) for peer in peers)

    def _wanted(self, case: Case) -> bool:
        known = self._records.get(case)
        if known is None or case.peer in self._options.again:
            return True
        if known.error is not None:
            return bool(self._options.retry)
        seconds = self._seconds(case)
        return bool(seconds) and not same_time(known.given_s, seconds)

    def _measured(self, case: Case, data: Data) -> Record:
        labelled = labelled_slices(data.pool, case.labels, case.label_set)
        data_set = DATA_SETS.get(case.data_set)
        task = Task(
            pool=Pool(data.source, data.pool, labelled),
            labelled=labelled,
            classes=data.classes,
            seed=case.label_set,
            seconds=self._seconds(case),
            absolute=data_set is None or data_set.absolute,
        )
        try:
            peer = PEERS[case.peer].make(self._options.home, self._options.device)
            return measure(peer, task, data, case)
        except Unavailable as error:
            return Record(case, error=str(error))
        except Exception as error:  # whatever a peer raises: the others go on
            traceback.print_exc()
            return Record(case, error=f"{type(error).__name__}: {error}"[:500])

    def _lacks_ours(self, case: Case) -> bool:
        return PEERS[case.peer].times is not None and not self._our_seconds(case)

    def _seconds(self, case: Case) -> float | None:
        times = PEERS[case.peer].times
        return None if times is None else times * self._our_seconds(case)

    def _our_seconds(self, case: Case) -> float:
        """Those that are given, or that ours took in the case; 0 where it has not been measured."""
        if self._options.seconds is not None:
            return float(self._options.seconds)
        ours = self._records.get(replace(case, peer=OURS))
        return ours.train_cpu_s if ours else 0.0


def _version() -> str:
    """The commit of this checkout, with + where it is changed."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _cpu() -> str:
    """The model of this machine's CPU."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text() if info.exists() else "", re.M)
    return found[1] if found else platform.processor() or platform.machine()


def _folder(text: str) -> tuple[str, Path]:
    name, found, folder = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{text}: expected NAME=FOLDER")
    return name, Path(folder)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=_folder, action="append", default=[], metavar="NAME=FOLDER")
    add("--sets", nargs="+", help="data sets; default: all, and those given with --data")
    add("--labels", nargs="+", type=int, default=list(LABELS))
    add("--label-sets", nargs="+", type=int, default=[0, 1, 2], choices=range(len(SHIFTS)))
    add("--only", nargs="+", default=list(PEERS), choices=list(PEERS), metavar="PEER")
    add("--again", nargs="+", default=[], choices=list(PEERS), metavar="PEER")
    add("--retry", action="store_true", help="measure again what failed")
    add("--seconds", type=float, help="CPU seconds to give instead of those that ours took")
    add("--threads", type=int, default=1)
    add("--device", default="cpu")
    add("--home", type=Path, default=ROOT / ".nextslice" / "learning")
    add("--out", type=Path, default=ROOT / "docs" / "results" / "learning")
    add("--page", type=Path, default=ROOT / "docs" / "learning.md")
    add("--report", action="store_true", help="write the page from the lines and measure nothing")
    options = parser.parse_args(arguments)
    given = [name for name, _ in options.data]
    options.sets = options.sets or list(dict.fromkeys([*DATA_SETS, *given]))
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if not options.report:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(options.threads)  # of the processes that peers start
        import torch

        torch.set_num_threads(options.threads)
        Run(options).go()
    options.page.write_text(page(Records(options.out)))


if __name__ == "__main__":
    main()
