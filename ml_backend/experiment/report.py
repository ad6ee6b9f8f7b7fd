"""An experiment's folder as a page to read: `report.html`, its plots, `results.md`, `rounds.jsonl`.

The page is one file without scripts that needs no network. Every file is replaced whole; an
experiment that is still running is drawn as far as it has come.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ml_backend.durable import held, write_whole
from ml_backend.experiment import plots
from ml_backend.experiment.comparison import CONTROLS, Comparison, compare, needs_truth
from ml_backend.experiment.notation import NOTHING, count, percent
from ml_backend.experiment.recommendation import recommendation
from ml_backend.experiment.record import Experiment, load_experiment, runs_of
from ml_backend.experiment.summary import (
    PUBLISHED_LABELS,
    PUBLISHED_SHARE,
    Runs,
    Summary,
    summarise,
    summary_of,
)
from ml_backend.experiment.tables import class_table, effort_table, final_table, share_table

__all__ = ["Comparison", "Report", "Summary", "compare", "summarise", "write_report"]


@dataclass(frozen=True)
class Report:
    """The files that `write_report` wrote, and what they say."""

    page: Path
    markdown: Path
    rounds: Path
    plots: tuple[Path, ...]
    summary: Summary
    recommendation: str


@dataclass(frozen=True)
class _Plot:
    """``name.png``, and what stands below it."""

    name: str
    title: str
    caption: str
    png: bytes


def write_report(out: Path) -> Report:
    """Draw the experiment in ``out``, into ``out``. Raises RecordError, also without any round.

    Waits while another process draws there.
    """
    experiment = load_experiment(out)
    with held(out / "runs" / "report.lock"):
        return _draw(out, experiment, runs_of(out))


def _draw(out: Path, experiment: Experiment, runs: Runs) -> Report:
    summary = summary_of(experiment, runs, where=str(out))
    comparison, advice = compare([summary]), recommendation(summary)
    drawn = _plots(summary, runs, comparison.default)
    report = Report(
        page=out / "report.html",
        markdown=out / "results.md",
        rounds=out / "rounds.jsonl",
        plots=tuple(out / f"{plot.name}.png" for plot in drawn),
        summary=summary,
        recommendation=advice,
    )
    command = shlex.join(["nextslice", "simulate", "--report", str(out.resolve())])
    lines = (line.to_line() for key in sorted(runs) for line in runs[key])
    for path, plot in zip(report.plots, drawn, strict=True):
        write_whole(path, plot.png, alone=True)
    write_whole(report.rounds, "".join(lines).encode(), alone=True)
    write_whole(report.markdown, _markdown(summary, comparison, advice).encode(), alone=True)
    write_whole(
        report.page, _page(summary, comparison, advice, drawn, command).encode(), alone=True
    )
    return report


# -- words


def _protocol(summary: Summary) -> str:
    experiment = summary.experiment
    spacing = "kept apart along z" if experiment.spacing else "not kept apart along z"
    weights = "from the weights of the round before" if experiment.warm_start else "afresh"
    precision = experiment.training.get("precision") or experiment.versions.get("precision")
    how = f"{weights} in {precision}" if precision else weights
    judged, taught = (_JUDGED, "other annotated") if experiment.judged else ("", "annotated")
    start = min(experiment.start, len(experiment.pool))
    return (
        f"{_rounds(summary)}: the first annotates "
        f"{count(start, 'slice')} chosen by {experiment.cold_start} before there is a model, each "
        f"later one {count(experiment.k, 'more slice')} chosen by the strategy, "
        f"{spacing}. {judged}After each, {experiment.architecture} is trained {how} on all "
        f"{taught} slices and measured once on the test slices, by which nothing is chosen. "
        "Strategies with the same seed start from the same slices and weights, so they are "
        "compared in pairs." + (f" {_ceiling(experiment)}" if summary.full else "")
    )


_JUDGED = (
    "A fifth of what is annotated is of blocks that no training sees: no strategy chooses it, it "
    "is evenly spread over them, and judges each model, as in the live loop. "
)


def _rounds(summary: Summary) -> str:
    """Those that were run, and why there are not more."""
    asked, rounds = summary.experiment.rounds, count(summary.rounds, "round")
    if summary.rounds == asked:
        return rounds
    return f"{rounds} until the pool was used up ({asked} were asked for)"


def _ceiling(experiment: Experiment) -> str:
    steps = count(experiment.full_steps, "step")
    return f"Fully supervised is one training on the whole pool, {steps} long."


def _data(summary: Summary) -> str:
    experiment, measured = summary.experiment, summary.measured
    absent = [name for name in experiment.classes if name not in measured]
    unmeasured = f" The test slices hold no {', '.join(absent)}: not measured." if absent else ""
    return (
        f"{_part(experiment.pool)} to choose from, {_part(experiment.test)} to test on; classes: "
        f"{', '.join(experiment.classes)}.{unmeasured}"
    )


def _part(slices: Mapping[str, tuple[str, float]]) -> str:
    volumes = {volume for volume, _ in slices.values()}
    return f"{count(len(slices), 'slice')} of {count(len(volumes), 'volume')}"


_SHARES = (
    "Full: the mean mIoU of the fully supervised runs. Labels to 95 / 99 %: annotated slices at "
    "the first round whose mean mIoU is that share of full. "
)
"""Of the columns that say something once a fully supervised run has ended."""


def _reading(summary: Summary) -> str:
    """What stands below the final table."""
    seeds = ", ".join(map(str, summary.ranked_seeds)) or "none in common"
    controls = any(s.strategy in CONTROLS and s.areas for s in summary.standings)
    left_out = ", ".join(f"{name} seed {seed}" for name, seed in summary.unfinished)
    return (
        "mIoU: the mean over the classes that the test slices hold, all of their pixels together. "
        "± is the sample standard deviation over seeds. Area: test mIoU over annotated slices by "
        "the trapezoid rule, divided by the range of slices, so it is the mean mIoU along the "
        "curve. Differences are paired by seed, with their 95 % t interval. "
        + (_SHARES if summary.ceiling else "")
        + f"Rank: by area, mean over the seeds ({seeds}) that every "
        f"{'control' if controls else 'strategy'} with a finished run has; what lacks one is not "
        "ranked. Oracles use the true masks, so they cannot be used on new data."
        + (f" Left out, since not finished: {left_out}." if left_out else "")
    )


_EFFORT = (
    "Each slice is opened as the model of the round before segments it, the first ones blank, and "
    "corrected to the truth. Corrected px: pixels whose class changes, over all slices of a run, "
    "the mean of its seeds. Outline: length of the borders drawn, in pixel edges. mIoU by effort: "
    "the mean test mIoU along the corrected pixels, up to where the cheapest run of the seed ends. "
    "Ranks: means over seeds, by that and by the area over annotated slices."
)
"""What stands below the table of effort."""


def _mark(summary: Summary) -> str:
    """How the experiment stands to the published result."""
    published = (
        f"Published for comparison: {percent(PUBLISHED_SHARE)} of full supervision from "
        f"{percent(PUBLISHED_LABELS, 2)} of the slices (Kazimi et al. 2022, coreset, other data). "
    )
    mark, pool = summary.mark, len(summary.experiment.pool)
    if mark is None:
        return f"{published}This experiment ends with fewer labels than that."
    here = (
        f"Here that is {count(mark.needed, 'slice')} of {pool}; the first round with as many is "
        f"round {mark.round}, with {mark.labelled} ({percent(mark.labelled / pool, 2)}): "
    )
    known = [
        s
        for s in summary.standings
        if s.mark_share is not None and s.rank is not None and s.strategy not in needs_truth()
    ]
    if not known:
        return f"{published}{here}no share can be given yet."
    if mark.round == 1:
        start = max(known, key=lambda s: len(s.finals))
        return (
            f"{published}{here}{percent(start.mark_share)}, the same start for every strategy, so "
            "on so small a pool this mark says nothing about them."
        )
    best = max(known, key=lambda s: s.mark_share or 0.0)
    return f"{published}{here}{percent(best.mark_share)} by {best.strategy}, the best there."


def _plots(summary: Summary, runs: Runs, default: str | None) -> tuple[_Plot, ...]:
    order = [standing.strategy for standing in summary.standings]
    drawn: list[_Plot] = []
    if any(standing.areas for standing in summary.standings):
        to_random = (
            " Right: the area's difference to random; an interval that touches the dotted line may "
            "be chance."
        )
        drawn.append(
            _Plot(
                "final",
                "Areas and final mIoU",
                "Best area first. Mean ± standard deviation over seeds, each seed a tick"
                f"{_dashed(summary)}." + (to_random if summary.paired else ""),
                plots.final_dots(summary),
            )
        )
    if order:
        seed = plots.picks_seed(runs)
        drawn += [
            _Plot(
                "learning_curves",
                "Learning curves",
                "A panel a strategy, best area first: mean over seeds, band ± standard deviation"
                f"{_others(order)}{_dashed(summary)}.",
                plots.learning_curves(summary),
            ),
            _Plot(
                "picks",
                "What was picked",
                f"Annotated slices along z in each volume, seed {seed}; within a volume, the "
                "rounds follow each other from top to bottom. Grey: the pool"
                f"{_gaps(summary.experiment)}.{_round_1(summary, seed)}",
                plots.picks(summary.experiment, runs, order),
            ),
            _Plot(
                "class_iou",
                "IoU per class",
                f"Mean over seeds, each class on its own scale{_dashed(summary, band=False)}. "
                f"{_colours(order, [*plots.highlights(summary, default)])}.",
                plots.class_curves(summary, default),
            ),
        ]
    return tuple(drawn)


def _dashed(summary: Summary, *, band: bool = True) -> str:
    if summary.ceiling is None:
        return ""
    return f"; dashed{', with its band' if band and summary.ceiling.std else ''}: full supervision"


def _others(order: Sequence[str]) -> str:
    if len(order) < 2:
        return ""
    return "; in light grey all the others" + ("; dotted: random" if "random" in order else "")


def _gaps(experiment: Experiment) -> str:
    """Of the pool; none where the test slices are other volumes, or lie at an end of theirs."""
    places: dict[str, list[float]] = {}
    for volume, z in experiment.pool.values():
        places.setdefault(volume, []).append(z)
    between = (
        min(places[volume]) < z < max(places[volume])
        for volume, z in experiment.test.values()
        if volume in places
    )
    return "; its gaps are held out for testing" if any(between) else ""


def _round_1(summary: Summary, seed: int) -> str:
    differs = any(odd.slices and odd.seed == seed for odd in summary.odd_starts)
    return "" if differs else " Round 1 is the same for all."


def _colours(order: Sequence[str], coloured: Sequence[str]) -> str:
    controls = set(coloured).intersection(CONTROLS)
    parts = [
        *(["in colour the strategies of the largest area"] if set(coloured) - controls else []),
        *(["controls dark grey"] if controls else []),
        *(["all others light grey"] if len(coloured) < len(order) else []),
    ]
    text = ", ".join(parts)
    return text[0].upper() + text[1:]


# -- Markdown


def _markdown(summary: Summary, comparison: Comparison, advice: str) -> str:
    default = comparison.default
    cost = effort_table(summary, default)
    effort = ["### What the labels cost", cost.markdown().rstrip(), _EFFORT] if cost else []
    return "\n\n".join(
        [
            f"## {summary.experiment.data}",
            f"{_data(summary)} {_protocol(summary)}",
            advice,
            final_table(summary, default).markdown().rstrip(),
            _reading(summary),
            *effort,
            "### Share of full supervision by annotated slices",
            share_table(summary, default).markdown().rstrip(),
            _mark(summary),
            "### IoU per class after the last round",
            class_table(summary, default).markdown().rstrip() + "\n",
        ]
    )


# -- HTML

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto;
       max-width: 1060px; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 36px 0 8px; }
p { max-width: 105ch; }
.note, figcaption { color: #555; font-size: 13px; max-width: 120ch; }
.advice { border-left: 4px solid #0072b2; background: #f3f7fa; padding: 10px 16px; margin: 16px 0; }
.advice p { margin: 0; max-width: none; }
table { border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums;
        width: 100%; }
th, td { padding: 3px 6px; text-align: right; border-bottom: 1px solid #e4e4e4;
         white-space: nowrap; }
th { border-bottom: 1px solid #888; vertical-align: bottom; font-weight: 600; white-space: normal; }
th:first-child, td:first-child { text-align: left; padding-left: 4px; }
tr.marked td { background: #e6f0f7; }
tr.marked td:first-child { font-weight: 600; }
.wide { overflow-x: auto; }
.settings td, .settings th { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.settings td:first-child { white-space: nowrap; color: #555; width: 14em; }
figure { margin: 12px 0 0; }
img { width: 100%; height: auto; display: block; }
code { font: 13px/1.4 ui-monospace, monospace; }
pre { background: #f4f4f4; padding: 10px 12px; white-space: pre-wrap; overflow-wrap: anywhere; }
@page { margin: 14mm; }
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  table { font-size: 6.6pt; } th, td { padding: 2px 3px; }
  .wide { overflow: visible; }
  tr, figure, .advice { break-inside: avoid; } h2 { break-after: avoid; }
  .advice, tr.marked td { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def _page(
    summary: Summary, comparison: Comparison, advice: str, drawn: Sequence[_Plot], command: str
) -> str:
    experiment, default = summary.experiment, comparison.default
    figures = {plot.name: _figure(plot) for plot in drawn}
    cost = effort_table(summary, default)
    effort = [
        "<h2>What the labels cost</h2>",
        f'<div class="wide">{cost.html() if cost else ""}</div>',
        f'<p class="note">{escape(_EFFORT)}</p>',
    ]
    parts = [
        f"<h1>{escape(experiment.data)}: which slices to annotate</h1>",
        f'<p class="note">A simulated annotation by nextslice. {escape(_data(summary))}</p>',
        f'<h2>Recommendation</h2>\n<div class="advice"><p>{escape(advice)}</p></div>',
        "<h2>Results</h2>",
        f'<div class="wide">{final_table(summary, default).html()}</div>',
        f'<p class="note">{escape(_reading(summary))}</p>',
        figures.get("final", ""),
        figures.get("learning_curves", ""),
        *(effort if cost else []),
        "<h2>Share of full supervision by annotated slices</h2>",
        f'<div class="wide">{share_table(summary, default).html()}</div>',
        f'<p class="note">{escape(_mark(summary))}</p>',
        figures.get("class_iou", ""),
        "<h2>IoU per class after the last round</h2>",
        f'<div class="wide">{class_table(summary, default).html()}</div>',
        figures.get("picks", ""),
        f"<h2>Protocol</h2>\n<p>{escape(_protocol(summary))}</p>",
        f"<h2>Settings and versions</h2>\n{_settings(experiment)}",
        f"<h2>Draw this page again</h2>\n<pre><code>{escape(command)}</code></pre>",
    ]
    title = f"{escape(experiment.data)} – nextslice simulate"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def _figure(plot: _Plot) -> str:
    data = base64.b64encode(plot.png).decode("ascii")
    return (
        f"<h2>{escape(plot.title)}</h2>\n<figure>"
        f'<img alt="{escape(plot.title)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
    )


def _settings(experiment: Experiment) -> str:
    rows = "\n".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td><td>{escape(_value(value))}</td></tr>"
        for name, value in experiment.model_dump(exclude={"pool", "test"}).items()
    )
    return f'<table class="settings"><tbody>\n{rows}\n</tbody></table>'


def _value(value: Any) -> str:
    if value is None or value in ({}, []):
        return NOTHING
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_value(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
