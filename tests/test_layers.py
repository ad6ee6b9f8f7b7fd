"""Imports run one way, and the web and control processes do not import torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

GROUND = {"errors", "durable", "grey", "logs", "parents", "pictures"}
"""What all of `ml_backend` stands on: each may import `errors`, and nothing above the ground."""

ALLOWED = {
    "al_strategies": set(),
    **{part: {"al_strategies"} | GROUND for part in GROUND},
    "volumes": {"al_strategies"},
    "segmentation": {"al_strategies"},
    "studio": {"al_strategies", "disk_cache"},
    "disk_cache": set(),
    "configuration": set(),
    "settings": {"al_strategies", "configuration"},
    "rounds": {
        *("al_strategies", "studio", "segmentation", "volumes", "settings", "configuration"),
        "disk_cache",
    },
    "api": {
        *("al_strategies", "studio", "volumes", "settings", "rounds", "segmentation", "health"),
        *("configuration", "disk_cache"),
    },
    "experiment": {"al_strategies", "segmentation", "volumes", "rounds", "settings"},
    "export": {
        *("al_strategies", "studio", "volumes", "rounds", "settings"),
        "experiment",  # how plots look
    },
    "import_volume": {"studio", "volumes", "rounds", "al_strategies"},
    "segment": {"al_strategies", "volumes"},
    "health": {"al_strategies", "studio", "rounds", "settings"},
    "app": {"api", "rounds", "settings"},
    "embedded": {"al_strategies", "studio", "volumes", "rounds", "settings", "api"},
    "adapter": {"al_strategies", "studio", "rounds", "settings", "api"},
}
"""For each part, the parts of ours that it may import. `cli` may import all."""

ROUNDS = (
    *("records", "advice", "artefacts", "store", "claim", "leftovers", "pauses", "unreadable"),
    "uncertainty_pictures",  # what is kept
    *("contention", "schedule", "deployment"),
    *("slices", "service", "project"),  # what a step is handed
    "looking_up",
    "cut_from",
    *("project_settings", "extra_params", "held_settings"),
    *("coverage", "effort", "source", "learners", "pseudo", "further", "training", "scoring"),  # …
    "stacks",
    *(
        "reasons",
        "early",
        "hold_out",
        "imageless",
        "sync",
        "live_masks",
        "queue",
        "filling",
        "tidying",
        "switching",
        "publish",
        "explained",
        "pending",
        "upcoming",
        "round",
    ),
    "going_on",
    *("attempt", "status", "readiness", "people", "overview"),  # where it stands
    *("adopt", "reconcile", "jobs", "worker"),  # who runs them, and when
)
"""The modules of `rounds`, each of which may import those before it."""


def part_of(module: str) -> str | None:
    head, _, rest = module.partition(".")
    if head == "al_strategies":
        return head
    if head != "ml_backend":
        return None
    return rest.partition(".")[0] or None


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def files() -> list[Path]:
    return sorted([*(ROOT / "al_strategies").rglob("*.py"), *(ROOT / "ml_backend").rglob("*.py")])


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_nothing_above_it(path: Path) -> None:
    own = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own in (None, "cli", "__init__"):
        return
    reached = {part for module in imports(path) if (part := part_of(module))} - {own}
    allowed = ALLOWED[own] if own == "al_strategies" else ALLOWED[own] | GROUND
    assert reached <= allowed, f"{path} imports {sorted(reached - allowed)}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "ml_backend" / "rounds").glob("[a-z]*.py")), ids=lambda p: p.stem
)
def test_a_step_imports_nothing_that_comes_after_it(path: Path) -> None:
    assert path.stem in ROUNDS, f"say in ROUNDS where {path.name} stands"
    before = ROUNDS[: ROUNDS.index(path.stem)]
    prefix = "ml_backend.rounds."
    reached = {m.removeprefix(prefix) for m in imports(path) if m.startswith(prefix)}
    assert reached <= {*before}, f"{path} imports {sorted(reached - {*before})}"


def test_the_factory_alone_names_a_kind_of_learner() -> None:
    """All others write against the protocol: a second kind must not touch them."""
    outside = [path for path in files() if "segmentation" not in path.parts]
    naming = {path for path in outside if "NetworkLearner" in path.read_text()}
    assert naming == {ROOT / "ml_backend" / "rounds" / "learners.py"}


def test_nobody_imports_the_training_step_in_order_to_predict() -> None:
    name = "ml_backend.rounds.training"
    importing = {path for path in files() if name in imports(path)}
    assert importing == {ROOT / "ml_backend" / "rounds" / "round.py"}


@pytest.mark.parametrize(
    "module", ["ml_backend.app", "ml_backend.rounds.jobs", "ml_backend.rounds.adopt"]
)
def test_the_web_and_control_processes_import_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_strategies_import_nothing_but_numpy() -> None:
    code = (
        "import sys, al_strategies; al_strategies.available_strategies();"
        "sys.exit(any(m in sys.modules for m in ('torch', 'scipy', 'flask', 'rq', 'PIL')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
