"""Which formats there are: the modules of this package and what other distributions bring.

A format of another distribution (entry point group ``nextslice.formats``, docs/plugins.md) that
cannot be loaded, or claims what another one has, is named in a warning and left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import PurePath
from pkgutil import iter_modules

from al_strategies.plugins import load_plugins
from ml_backend.volumes import formats as package
from ml_backend.volumes.formats.format import Format

__all__ = [
    "GROUP",
    "format_by_ending",
    "formats",
    "mask_formats",
    "split_ending",
    "volume_stem",
    "written_endings",
]

GROUP = "nextslice.formats"
"""Entry points of this group lead to a `Format`."""


@cache
def formats() -> tuple[Format, ...]:
    """Every format, in the order of lists: ours first, then those of other distributions.

    Raises ValueError where two of ours claim one name or ending.
    """
    found: list[Format] = []
    for one in sorted(_ours(), key=lambda one: (one.place, one.name)):
        _add(found, one)
    load_plugins(GROUP, lambda point: _add(found, point.load()))
    return tuple(found)


def _ours() -> Iterator[Format]:
    for module in iter_modules(package.__path__):
        declared = getattr(import_module(f"{package.__name__}.{module.name}"), "FORMAT", None)
        if isinstance(declared, Format):
            yield declared


def _add(found: list[Format], one: object) -> None:
    """Raises TypeError for what is no format, ValueError where it claims what another one has."""
    if not isinstance(one, Format):
        raise TypeError(f"it is {one!r}, expected a Format")
    for other in found:
        if other.name == one.name:
            raise ValueError(f"two formats are called {one.name!r}: {other.title} and {one.title}")
        if both := other.claimed & one.claimed:
            raise ValueError(
                f"the formats {other.name!r} and {one.name!r} both claim the ending "
                f"{', '.join(sorted(both))}"
            )
        if other.without_ending and one.without_ending:
            raise ValueError(
                f"the formats {other.name!r} and {one.name!r} both claim names without an ending"
            )
    found.append(one)


def format_by_ending(name: str) -> Format | None:
    """The format that has the longest ending of ``name``; None without one."""
    best = max(formats(), key=lambda one: len(one.ending_of(name)))
    return best if best.ending_of(name) else None


def mask_formats() -> Mapping[str, str]:
    """Name of each format that label volumes are exported as → ending of the file; empty for a
    folder with a file a slice."""
    return {one.name: one.masks for one in formats() if one.masks is not None}


def split_ending(name: str) -> tuple[str, str]:
    """``labels`` and ``.nii.gz`` of ``labels.nii.gz``; what follows the last dot where no format
    has such an ending."""
    known = (ending for one in formats() for ending in (*one.endings, *one.also, *one.long_endings))
    ending = max((e for e in known if name.lower().endswith(e)), key=len, default="")
    if not ending:
        ending = PurePath(name).suffix
    stem = name[: len(name) - len(ending)]
    return stem, name[len(stem) :]


def volume_stem(name: str) -> str:
    """``bone`` of ``bone.nii.gz``; a name that no format of files has as it is."""
    known = (e for one in formats() for e in (*one.endings, *one.also) if e.startswith("."))
    ending = max((e for e in known if name.lower().endswith(e)), key=len, default="")
    return name[: len(name) - len(ending)]


def written_endings() -> tuple[str, ...]:
    """The usual endings of label volumes, one or two a format; a folder of images has none."""
    writing = [one for one in formats() if "uint8" in one.dtypes and one.reads_files]
    return tuple(dict.fromkeys(e for one in writing for e in (one.endings[0], one.masks) if e))
