"""A target of fuzzing: one function that reads bytes from outside as the product reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["CORPUS", "LONGEST_S", "MOST_GROWTH", "Form", "Sample", "Target", "samples", "unchanged"]

CORPUS = Path(__file__).parent / "corpus"
"""``<target>/<name>`` is a file, or a folder of the files that make one input. ``found-…`` are what
the fuzzer found, made smaller: they raise what is documented, or nothing. All others are whole."""
LONGEST_S = 5.0
"""Of processor time: an input that takes more hangs."""
MOST_GROWTH = 500 << 20
"""Bytes by which one input may make our processes grow."""

Sample = dict[str, bytes]
"""Name of a file → its bytes; the name is empty where an input is no file."""

Form = Literal["bytes", "json", "text", "png", "gzip", "zip"]
"""What is mended after a change so that it is not refused at the door, or changed as a tree."""


@contextmanager
def unchanged(read: Callable[[Sample], None]) -> Iterator[Callable[[Sample], None]]:
    """What reads without anything to set up."""
    yield read


@dataclass(frozen=True)
class Target:
    """``name``: also of its folder in the corpus. ``open``: sets up what is needed and gives the
    function that reads one input. ``errors``: what that may raise. ``form``: of files that
    ``forms`` does not name. ``words``: what is put in besides what the corpus holds. ``slow``: it
    gets a tenth of the inputs that others get.
    """

    name: str
    open: Callable[[], AbstractContextManager[Callable[[Sample], None]]]
    errors: tuple[type[Exception], ...]
    form: Form = "bytes"
    forms: Mapping[str, Form] = field(default_factory=dict)
    words: tuple[bytes, ...] = ()
    slow: bool = False
    longest_s: float = LONGEST_S

    def form_of(self, file: str) -> Form:
        """By the longest ending of its name that `forms` has."""
        known = [ending for ending in self.forms if file.endswith(ending)]
        return self.forms[max(known, key=len)] if known else self.form


def samples(target: str) -> dict[str, Sample]:
    """The corpus of a target by name, in order."""
    return {place.name: _sample(place) for place in sorted((CORPUS / target).iterdir())}


def _sample(place: Path) -> Sample:
    if place.is_file():
        return {"": place.read_bytes()}
    files = sorted(path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)): path.read_bytes() for path in files}
