"""The fuzzer notices what must not be, goes on, and does the same thing again."""

from __future__ import annotations

from tests.fuzz.mutation import mutated
from tests.fuzz.runner import run
from tests.fuzz.target import samples
from tests.fuzz.targets import FAULTY, TARGETS

NAMES = list(samples("faulty"))


def test_what_hangs_ends_grows_or_raises_is_named_and_the_rest_is_read() -> None:
    said: list[str] = []
    (report,) = run({"faulty": len(NAMES)}, 0, lambda report: said.append(report.target))
    assert said == ["faulty"]
    assert report.inputs == len(NAMES), "each was read once"
    faults = {NAMES[number]: fault for fault, (number,) in report.faults.items()}
    assert faults.keys() == {"found-raise", "found-hang", "found-grow", "found-end"}
    assert faults["found-raise"].startswith("KeyError in faulty.py:")
    assert faults["found-hang"] == "hangs: it is busy for 2 s"
    assert faults["found-grow"].startswith("grows by 5")
    assert faults["found-end"].startswith("ends the process (-11)")
    assert report.counts["ValueError"] == report.counts["KeyError"] == 1


def test_an_input_is_the_same_whenever_it_is_made() -> None:
    for target in TARGETS.values():
        corpus = list(samples(target.name).values())
        numbers = range(len(corpus) + 20)
        made = [mutated(target, corpus, 5, number) for number in numbers]
        assert made == [mutated(target, corpus, 5, number) for number in numbers]
        assert made[: len(corpus)] == corpus
        others = [mutated(target, corpus, 6, number) for number in numbers]
        assert others != made
        assert sum(one not in corpus for one in made) > 10, "most are changed"
    assert not FAULTY.keys() & TARGETS.keys()
