"""What comes from outside is read, or refused with an error that is documented."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import shares
from tests.fuzz.runner import run
from tests.fuzz.target import CORPUS, samples
from tests.fuzz.targets import FAULTY, TARGETS

INPUTS = 9_000
"""Of all targets: some twenty seconds of one core. `make fuzz` sends a million."""


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_read(name: str) -> None:
    target = TARGETS[name]
    found = samples(name)
    assert any(not one.startswith("found-") for one in found)
    with target.open() as read:
        for one, sample in found.items():
            try:
                read(sample)
            except target.errors:
                assert one.startswith("found-"), f"{one} should be whole"


def test_the_corpus_is_small_and_all_of_it_is_used() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    assert {path.name for path in CORPUS.iterdir()} == TARGETS.keys() | FAULTY.keys()


def test_changed_inputs_are_read_or_refused() -> None:
    wanted = dict(shares(list(TARGETS.values()), INPUTS))
    reports = run(wanted, seed=0)
    assert {report.target: report.inputs for report in reports} == wanted
    assert {report.target: report.faults for report in reports if report.faults} == {}
    for report in reports:
        read = report.counts["read"]
        assert read > report.inputs / 50, f"{report.target}: nearly nothing gets beyond the door"
        assert report.target == "wire" or read < report.inputs, "nothing is refused"
