"""Strategies and formats of other distributions: the example of docs/plugins.md, installed."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from al_strategies import base as strategies
from al_strategies import get_strategy
from ml_backend.volumes import formats as package
from ml_backend.volumes.formats.format import Format
from ml_backend.volumes.formats.registry import formats
from ml_backend.volumes.volume import ReadOptions, Volume

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "plugins.md"
KNOWN = [one.name for one in formats()]


def run(plugins: Path, *arguments: str | Path, cwd: Path = ROOT) -> str:
    """What Python, with ``plugins`` among what is installed, writes to standard output."""
    path = os.pathsep.join((str(plugins), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has put the distribution that docs/plugins.md shows."""
    project, target = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("installed")
    files = re.findall(r"\*\*`([\w./]+)`\*\*\n\n```\w+\n(.*?)```", PAGE.read_text(), re.S)
    assert len(files) == 3
    for name, text in files:
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", target)
    run(target, "-m", "pip", "install", *options, project)
    return target


def test_the_command_lists_an_installed_strategy(installed: Path) -> None:
    assert "most_foreground" in run(installed, "-m", "ml_backend.cli", "strategies")


def test_the_command_offers_an_installed_format(installed: Path) -> None:
    assert ", pgm." in run(installed, "-m", "ml_backend.cli", "export", "--help")
    shown = run(installed, "-m", "ml_backend.cli", "segment", "--help")
    assert ".raw .pgm, folder." in " ".join(shown.split())


USED = """
import sys
from pathlib import Path
import numpy as np
from al_strategies import Evidence, Position, Query, get_strategy
from ml_backend.settings import Settings
from ml_backend.volumes.opening import FORMATS, open_volume, write_volume
from ml_backend.volumes.volume import VolumeSpec

pool = Evidence((1, 2), (Position("v", 0), Position("v", 9)), {"foreground": np.array([0.1, 0.2])})
assert get_strategy("most_foreground").select(Query(pool, Evidence.empty(), 1)).chosen == (2,)
assert Settings(strategy="most_foreground").strategy == "most_foreground"

array = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
assert FORMATS["pgm"] == ".pgm"
write_volume("scan.pgm", array, VolumeSpec(array.shape, array.dtype))
with open_volume("scan.pgm") as volume:
    assert np.array_equal(np.stack(list(volume)), array)
assert Path("scan.pgm").read_bytes().startswith(b"P5 4 3 65535\\n")
assert "torch" not in sys.modules
"""


def test_an_installed_strategy_and_format_are_used(installed: Path, tmp_path: Path) -> None:
    run(installed, "-c", USED, cwd=tmp_path)


def test_the_contracts_run_over_what_is_installed(installed: Path) -> None:
    said = run(
        installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_formats.py",
        "tests/test_strategies.py", "-k", "a.pgm or most_foreground",
    )  # fmt: skip
    passed = re.search(r"(\d+) passed", said)
    assert passed is not None
    assert int(passed[1]) > 50


def entry_point(folder: Path, name: str, group: str, module: str, text: str) -> None:
    """As if a distribution ``name`` were installed whose one entry point leads to ``module``, or to
    an object in it (``module:object``), made of ``text``."""
    (folder / f"{module.partition(':')[0]}.py").write_text(text)
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[nextslice.{group}]\nmine = {module}\n")


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed distributions that are looked at anew."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(strategies, "_REGISTRY", dict(strategies._REGISTRY))
    monkeypatch.setattr(strategies, "_plugins_loaded", False)
    formats.cache_clear()
    yield tmp_path
    formats.cache_clear()


STRATEGY = """
from dataclasses import dataclass
from al_strategies import ScoreStrategy, StrategyInfo, register

@register(StrategyInfo(name="fine_before", summary="Fine."))
class Before(ScoreStrategy):
    def score(self, problem): ...

@register(StrategyInfo(name={name!r}, summary="Mine.", evidence={evidence!r}))
class Mine(ScoreStrategy):
    def score(self, problem): ...
"""


@pytest.mark.parametrize(
    ("module", "text", "says"),
    [
        ("gone", "import no_such_library", "ModuleNotFoundError: No module named 'no_such_"),
        ("unknown", STRATEGY.format(name="a", evidence=("hessian",)), "hessian, which nobody com"),
        ("taken", STRATEGY.format(name="entropy", evidence=()), "'entropy' is registered twice: "),
        ("nothing", "", "expected a strategy's class, or a module of some"),
    ],
)
def test_a_broken_strategy_is_named_and_left_out(
    plugins: Path, caplog: pytest.LogCaptureFixture, module: str, text: str, says: str
) -> None:
    entry_point(plugins, "acme-lab", "strategies", f"strategies_{module}", text)
    with caplog.at_level(logging.WARNING):
        names = {info.name for info in strategies.available_strategies()}
    assert "entropy" in names
    assert "fine_before" not in names
    (record,) = caplog.records
    assert f"mine = strategies_{module} (nextslice.strategies) of acme-lab" in record.message
    assert says in record.message


def test_a_known_strategy_does_not_wait_for_plugins(plugins: Path) -> None:
    entry_point(plugins, "acme-lab", "strategies", "strategies_slow", "raise KeyboardInterrupt")
    assert get_strategy("entropy").info.name == "entropy"


FORMAT = """
from ml_backend.volumes.formats.format import Format
mine = Format({arguments}, summary="Mine.", read=lambda path, options: None)
"""


FORMAT_OF_OURS = """
from ml_backend.volumes.formats.format import Format
FORMAT = Format("nrrd", "NRRD", "Mine.", (".nrrd",), lambda path, options: None)
"""


@pytest.mark.parametrize(
    ("module", "arguments", "says"),
    [
        ("unlike", "name='x', title='X'", "missing 1 required positional argument: 'endings'"),
        ("named", "name='tiff', title='X', endings=('.x',)", "called 'tiff': TIFF and X"),
        ("ended", "name='x', title='X', endings=('.gz', '.npz')", "'numpy' and 'x' both claim"),
        ("shown", "name='x', title='X', endings=('.x',), masks='.x'", "writes no uint8"),
    ],
)
def test_a_broken_format_is_named_and_left_out(
    plugins: Path, caplog: pytest.LogCaptureFixture, module: str, arguments: str, says: str
) -> None:
    text = FORMAT.format(arguments=arguments)
    entry_point(plugins, "acme-lab", "formats", f"formats_{module}:mine", text)
    with caplog.at_level(logging.WARNING):
        names = [one.name for one in formats()]
    assert names == KNOWN
    (record,) = caplog.records
    assert f"formats_{module}:mine (nextslice.formats) of acme-lab" in record.message
    assert says in record.message


def test_what_is_no_format_is_left_out(plugins: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry_point(plugins, "acme-lab", "formats", "formats_module", "")
    with caplog.at_level(logging.WARNING):
        assert [one.name for one in formats()] == KNOWN
    assert "expected a Format" in caplog.text


def reader(path: Path, options: ReadOptions) -> Volume:
    raise NotImplementedError


def test_a_module_of_ours_that_declares_a_format_is_found(
    plugins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plugins / "nrrd.py").write_text(FORMAT_OF_OURS)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(plugins)])
    assert {one.name for one in formats()} == {*KNOWN, "nrrd"}
    del sys.modules[f"{package.__name__}.nrrd"]


def test_a_strategy_in_a_file_of_ours_is_found(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "al_strategies", tmp_path / "al_strategies")
    text = STRATEGY.format(name="mine", evidence=("entropy",))
    (tmp_path / "al_strategies" / "toy.py").write_text(text)
    code = "import al_strategies; print(al_strategies.get_strategy('mine').info.summary)"
    assert run(tmp_path, "-c", code, cwd=tmp_path) == "Mine.\n"


def a_format(**changes: object) -> Format:
    plain = {"name": "x", "title": "X", "summary": "X.", "endings": (".x",), "read": reader}
    return Format(**{**plain, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "My format"}, "a name that is not made of a-z"),
        ({"endings": ()}, "expected some in lower case"),
        ({"endings": (".X",)}, "expected some in lower case"),
        ({"dtypes": ("u1",)}, "declares the dtypes u1, expected some of bool, uint8"),
        ({"keeps": ("colour",)}, "keeps colour, expected some of voxel_size"),
        ({"dtypes": ("uint8",)}, "a write without the dtypes"),
        ({"masks": ".x"}, "offers label volumes .* but writes no uint8"),
        ({"dtypes": ("uint8",), "write": print, "masks": ".y"}, "expected one of its endings .x"),
        ({"dtypes": ("uint8",), "write": print, "masks": ""}, "a name without an ending"),
        ({"dtypes": ("uint8",), "write": print, "folder": True}, "does not say what is strange"),
        ({"folder": True, "sidecar": True}, "a folder with a sidecar"),
    ],
)
def test_a_format_that_contradicts_itself_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=f"format '.*{says}"):
        a_format(**changes)
