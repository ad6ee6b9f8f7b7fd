"""``python -m tests.fuzz --inputs 1000000 --seed 1``: docs/fuzzing.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.fuzz.mutation import mutated
from tests.fuzz.runner import Report, run
from tests.fuzz.target import Target, samples
from tests.fuzz.targets import TARGETS

__all__ = ["main", "shares"]

_HEAD = (
    "| target | inputs | a second | read | refused | longest | grew by | faults |\n"
    "|---|---|---|---|---|---|---|---|"
)


def shares(targets: Sequence[Target], inputs: int) -> Iterator[tuple[str, int]]:
    """How many of ``inputs`` each target gets: slow ones a tenth of the others."""
    weights = [1 if target.slow else 10 for target in targets]
    for target, weight in zip(targets, weights, strict=True):
        yield target.name, -(-inputs * weight // sum(weights))


def row(report: Report) -> str:
    """Of the table."""
    refused = sum(report.counts.values()) - report.counts["read"]
    rate = report.inputs / max(report.seconds, 1e-9)
    return (
        f"| {report.target} | {report.inputs:,} | {rate:,.0f} | {report.counts['read']:,} "
        f"| {refused:,} | {report.worst_s:.2f} s | {report.growth >> 20} MB "
        f"| {len(report.faults)} |"
    )


def show(target: Target, seed: int, number: int, folder: Path) -> None:
    """Write an input's files into ``folder``, and read it."""
    sample = mutated(target, list(samples(target.name).values()), seed, number)
    for name, content in sample.items():
        place = folder / name if name else folder / f"{target.name}-{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        print(f"{place}: {len(content)} bytes", flush=True)
    with target.open() as read:
        try:
            read(sample)
        except Exception:
            traceback.print_exc()


def say(report: Report) -> None:
    """Print the row, and what was found to stderr."""
    print(row(report), flush=True)
    for fault, numbers in report.faults.items():
        line = f"  {report.target}: {fault}: {len(numbers)} inputs, first {numbers[:3]}"
        print(line, file=sys.stderr, flush=True)


def endpoints(examples: int, seed: int) -> Report:
    """Schemathesis, with so many requests as described to each operation, and as many that are
    not."""
    from ml_backend.app import create_app
    from ml_backend.embedded.processes import ProcessGroup
    from ml_backend.embedded.redis_server import start_redis
    from ml_backend.embedded.stack import settings_from
    from tests.fuzz.endpoints import CREDENTIALS, answer_all
    from tests.fuzz.wire import backend_environment

    report, began = Report("endpoints"), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name, ProcessGroup(Path(name)) as group:
        environment = backend_environment(Path(name), start_redis(group, Path(name)))
        environment |= dict(zip(("BASIC_AUTH_USER", "BASIC_AUTH_PASS"), CREDENTIALS, strict=True))
        app = create_app(settings_from(environment))
        for (_, status), count in answer_all(app, examples, seed).items():
            report.counts["read" if status == 200 else str(status)] += count
            report.inputs += count
    report.seconds = time.monotonic() - began
    return report


def main() -> int:
    """The status: 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="over all targets")
    parser.add_argument(
        "--examples", type=int, default=0, help="requests of schemathesis to each operation"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="default: all")
    parser.add_argument("--show", type=int, metavar="NUMBER", help="one input of the one target")
    parser.add_argument(
        "--folder", type=Path, default=Path("fuzzed"), help="where --show writes it"
    )
    given = parser.parse_args()
    targets = [TARGETS[name] for name in given.target or TARGETS]
    if given.show is not None:
        show(targets[0], given.seed, given.show, given.folder)
        return 0
    print(_HEAD, flush=True)
    reports = run(dict(shares(targets, given.inputs)), given.seed, say)
    if given.examples:
        reports.append(endpoints(given.examples, given.seed))
        say(reports[-1])
    total = sum(report.inputs for report in reports)
    print(f"\n{total:,} inputs in {sum(report.seconds for report in reports):,.0f} s")
    return int(any(report.faults for report in reports))


if __name__ == "__main__":
    sys.exit(main())
