"""One tree of errors, and it is the one that is drawn."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import al_strategies
import ml_backend
from ml_backend import errors
from ml_backend.errors import NextsliceError

NOT_IMPORTED = {"ml_backend.cli.__main__", "ml_backend.adapter._wsgi", "ml_backend.adapter.model"}
"""They start something when imported, or need label-studio-ml, which is not installed here."""


def modules() -> list[str]:
    found = [
        info.name
        for package in (al_strategies, ml_backend)
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    return [name for name in found if name not in NOT_IMPORTED]


def subclasses(cls: type[Exception]) -> set[type[Exception]]:
    return {cls}.union(*(subclasses(one) for one in cls.__subclasses__()))


def drawn() -> dict[str, str | None]:
    """Name → name of the class above it, as the docstring draws them."""
    tree: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in str(errors.__doc__).splitlines():
        found = re.match(r"( *)[*x+-] (\w+)  +\S", line)
        if found is None:
            continue
        depth, name = len(found[1]), found[2]
        above = [one for one in above if one[0] < depth]
        assert name not in tree
        tree[name] = above[-1][1] if above else None
        above.append((depth, name))
    return tree


def test_the_tree_that_is_drawn_is_the_tree_that_is_there() -> None:
    for name in modules():
        importlib.import_module(name)
    ours = {cls for cls in subclasses(NextsliceError) if not cls.__module__.startswith("tests")}
    there = {
        cls.__name__: next((base.__name__ for base in cls.__bases__ if base in ours), None)
        for cls in ours
    }
    assert len(there) == len(ours)
    assert there == drawn()


def test_every_error_of_ours_hangs_in_the_tree() -> None:
    """Private ones excepted: they are caught where they are raised. A BaseException is no error."""
    root = Path(al_strategies.__file__).parents[1]
    for package in ("al_strategies", "ml_backend"):
        for path in (root / package).rglob("*.py"):
            for name, bases in re.findall(r"^class (\w+)\((.*)\):", path.read_text(), re.MULTILINE):
                if re.search(
                    r"((?<!Base)Exception|Error|Warning)\b", bases
                ) and not name.startswith("_"):
                    assert name in drawn(), f"{path}: {name}"
