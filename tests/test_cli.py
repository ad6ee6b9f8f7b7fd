"""The command as a person meets it: help, lists, and errors in one sentence."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from redis.exceptions import AuthenticationError
from rich.table import Table

from al_strategies import available_strategies
from ml_backend.cli import _sentence
from ml_backend.cli.tables import whole
from ml_backend.embedded.processes import free_port
from ml_backend.experiment.files import RunFiles
from ml_backend.rounds.claim import ClaimLost, ClaimTaken
from ml_backend.rounds.records import ProjectRecord
from ml_backend.rounds.round import UnusableLabels
from ml_backend.rounds.store import Store
from ml_backend.settings import Settings
from tests.tiny_experiment import write_slices


def nextslice(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ml_backend.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
        env={**os.environ, "COLUMNS": "200", **env},
    )


def test_help_lists_the_commands() -> None:
    shown = nextslice("--help").stdout
    for command in (
        "demo",
        "up",
        "worker",
        "connect",
        "import",
        "export",
        "segment",
        "rounds",
        "simulate",
    ):
        assert command in shown


def test_strategies_lists_every_one() -> None:
    shown = nextslice("strategies")
    assert shown.returncode == 0
    for info in available_strategies():
        assert info.name in shown.stdout
    assert f"Default: {Settings.model_fields['strategy'].default} " in shown.stdout


def test_an_unknown_strategy_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = nextslice("demo", "--headless", "--strategy", "best", NEXTSLICE_HOME=str(tmp_path))
    assert done.returncode == 2
    assert "--strategy: found 'best', expected one of" in done.stderr
    assert "coreset" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    done = nextslice("demo", "--headless", "--data", str(tmp_path), NEXTSLICE_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "images" in done.stderr
    assert "Traceback" not in done.stderr


def test_rounds_without_a_project_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    """Its store may hold projects of another Label Studio."""
    project = Store(str(tmp_path)).project("127.0.0.1_8080", "7.1700000000")
    project.record = ProjectRecord(project=7, key="7.1700000000")
    env = {"LABEL_STUDIO_API_KEY": "t", "LABEL_STUDIO_URL": "http://127.0.0.1:8081"}
    done = nextslice("rounds", "list", NEXTSLICE_STORE=str(tmp_path), **env)
    assert done.returncode == 1
    said = done.stderr.replace("\n", " ")
    assert f"no project is known in {tmp_path} for http://127.0.0.1:8081" in said
    assert "Are NEXTSLICE_STORE and LABEL_STUDIO_URL those of the running service?" in said


def test_rounds_for_programs_are_none_without_a_project(tmp_path: Path) -> None:
    done = nextslice("rounds", "list", "--json", NEXTSLICE_STORE=str(tmp_path))
    assert json.loads(done.stdout) == {"projects": []}
    assert done.returncode == 0


@pytest.mark.parametrize("given", ["", "lab.example", "*"])
def test_this_machine_is_asked_without_the_proxy(given: str) -> None:
    """Whatever is started, and in both spellings: libraries read one or the other."""
    code = """
import os, requests
from ml_backend import cli
cli.app = lambda **_: print(
    os.environ.get("no_proxy"), os.environ["NO_PROXY"],
    *(requests.utils.get_environ_proxies(f"http://{host}:8080/") for host in
      ("127.0.0.1", "localhost", "[::1]", "images.example")), sep="|")
cli.main()
cli.main()
"""
    proxy = {"http_proxy": "http://127.0.0.1:9", "NO_PROXY": given}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **proxy},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    first, again = done.stdout.splitlines()
    lower, upper, *ours, theirs = first.split("|")
    listed = [] if given == "*" else ["127.0.0.1", "localhost", "::1"]
    assert again == first
    assert upper.split(",") == [*filter(None, [given]), *listed]
    assert lower == (upper if given != "*" else "None")
    assert ours == ["{}", "{}", "{}"]
    assert (theirs == "{}") == (given == "*")


def test_what_a_terminal_cannot_show_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ml_backend.cli", "config"],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"}, cwd=tmp_path,
        capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"NEXTSLICE_RESERVE  " in done.stdout


def test_rounds_of_another_project_names_those_there_are_and_shows_errors_as_they_are(
    tmp_path: Path,
) -> None:
    env = {"NEXTSLICE_STORE": str(tmp_path), "LABEL_STUDIO_API_KEY": "t"}
    told = "VolumeError: scans[/old] of http://ann:secret@files.example is no volume"
    project = Store(str(tmp_path)).project("127.0.0.1_8080", "7.1700000000")
    project.record = ProjectRecord(project=7, key="7.1700000000", failures=1, last_error=told)

    other, shown = nextslice("rounds", "list", "3", **env), nextslice("rounds", "list", "7", **env)

    assert (other.returncode, shown.returncode) == (1, 0)
    assert "project 3 is not in" in other.stderr
    assert "it has 7.1700000000" in other.stderr.replace("\n", " ")
    assert "scans[/old] of http://ann:***@files.example is no volume" in shown.stderr


def test_a_round_whose_worker_is_gone_is_not_said_to_be_running(tmp_path: Path) -> None:
    env = {"NEXTSLICE_STORE": str(tmp_path), "LABEL_STUDIO_API_KEY": "t"}
    project = Store(str(tmp_path)).project("127.0.0.1_8080", "7.1700000000")
    project.record = ProjectRecord(project=7, key="7.1700000000", unended=1, began_at=1.7e9)

    shown = nextslice("rounds", "list", "7", **env)

    assert "Round 0 is not running: its worker was killed" in shown.stderr
    assert "Round 0 is running" not in shown.stderr
    assert "is held by" not in shown.stderr


@pytest.mark.usefixtures("ctrl_c_is_heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_command_ends_alike_by_ctrl_c_sigterm_and_a_closed_terminal(
    tmp_path: Path, number: int
) -> None:
    """What it holds, as the claim of a round, is given back: a signal alone leaves it."""
    project = Store(str(tmp_path)).project("127.0.0.1_8080", "7.1700000000")
    project.record = ProjectRecord(project=7, key="7.1700000000")
    env = {"NEXTSLICE_STORE": str(tmp_path), "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    argv = [sys.executable, "-m", "ml_backend.cli", "rounds", "list", "--watch"]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **env}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()  # it is at work
        process.send_signal(number)
        assert process.wait(120) == 130


def test_a_table_shows_names_with_brackets_as_they_are() -> None:
    table = Table(title="scans[/old]")
    table.add_column("class")
    table.add_row("bone [/b] :smile:")
    assert "scans[/old]" in whole(table)
    assert "bone [/b] :smile:" in whole(table)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ClaimTaken("round-0003 is held"), "round-0003 is held"),
        (ClaimLost("round-0003 was taken over"), "round-0003 was taken over"),
        (UnusableLabels("8 slices are annotated"), "8 slices are annotated"),
        (
            PermissionError(13, "Permission denied", "/data"),
            "[Errno 13] Permission denied: '/data'",
        ),
        (TimeoutError(), "TimeoutError"),
        (AuthenticationError("wrong pass."), "Redis cannot be used: wrong pass. Check REDIS_URL"),
        (KeyError("a bug"), None),
        (RuntimeError("a bug"), None),
    ],
)
def test_errors_for_people_are_a_sentence_and_bugs_a_traceback(
    error: Exception, said: str | None
) -> None:
    sentence = _sentence(error)
    assert (sentence is None) == (said is None)
    assert (sentence or "").startswith(said or "")


BROKEN = """
import sys
from ml_backend.cli import app, main
{imports}

@app.command()
def broken() -> None:
    {line}

sys.argv = ["nextslice", "broken"]
main()
"""


def broken(line: str, imports: str = "") -> subprocess.CompletedProcess[str]:
    """A command that meets what ``line`` raises."""
    code = BROKEN.format(line=line, imports=imports)
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "COLUMNS": "200"},
    )


def test_arrays_that_do_not_fit_are_a_bug_and_not_what_a_person_did() -> None:
    done = broken("np.zeros(2) + np.zeros(3)", "import numpy as np")
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert "operands could not be broadcast together" in done.stderr
    assert "nextslice:" not in done.stderr


@pytest.mark.parametrize(
    ("line", "imports", "code", "says"),
    [
        ("open('/nowhere/scan.tif')", "", 74, "No such file or directory: '/nowhere/scan.tif'"),
        ("raise OSError(errno.ENOSPC, 'No space left')", "import errno", 74, "No space left"),
        ("socket.create_connection(('127.0.0.1', 9))", "import socket", 74, "Connection refused"),
        (
            "redis.Redis(port=9).ping()",
            "import redis",
            69,
            "Redis cannot be used: Error 111 connecting to",
        ),
        (
            "raise RunTaken('another process is on it')",
            "from ml_backend.experiment.files import RunTaken",
            75,
            "another process is on it",
        ),
    ],
)
def test_a_fault_of_the_machine_is_a_sentence(
    line: str, imports: str, code: int, says: str
) -> None:
    done = broken(line, imports)
    assert done.returncode == code
    assert f"nextslice: {says}" in re.sub(r"\[Errno \d+\] ", "", done.stderr)
    assert "Traceback" not in done.stderr


def test_an_error_of_files_that_a_library_made_up_is_a_bug() -> None:
    """Where such a file is read, it is said what it is."""
    done = broken("raise OSError('not a file of this kind')")
    assert done.returncode == 70
    assert "Traceback" in done.stderr


def test_verbose_and_the_log_level_reach_every_command(tmp_path: Path) -> None:
    """The error in full is logged as DEBUG; a command that reads no settings shows it too."""
    wrong = ["simulate", "--phantom", "small"]
    assert "Traceback" not in nextslice(*wrong).stderr
    assert "the error in full" in nextslice("--verbose", *wrong).stderr
    assert "the error in full" in nextslice(*wrong, NEXTSLICE_LOG_LEVEL="debug").stderr
    volume = ["import", str(tmp_path / "none.tif")]
    asked = nextslice("-v", *volume, LABEL_STUDIO_API_KEY="t")
    assert "the error in full" in asked.stderr
    assert "the error in full" not in nextslice(*volume, LABEL_STUDIO_API_KEY="t").stderr


def test_a_gpu_worker_does_not_wait_for_labels_with_a_network_that_cannot_be_built(
    redis_url: str,
) -> None:
    done = nextslice("worker", "gpu", REDIS_URL=redis_url, NEXTSLICE_ARCHITECTURE="hrnet18")
    assert done.returncode == 78
    assert "NEXTSLICE_ARCHITECTURE is 'hrnet18', which cannot be built" in done.stderr
    assert "Traceback" not in done.stderr


def test_segment_names_a_device_that_is_none_before_it_reads_anything(tmp_path: Path) -> None:
    out = str(tmp_path / "labels.tif")
    done = nextslice("segment", str(tmp_path / "none.tif"), "--out", out, "--device", "gpu")
    assert done.returncode == 2
    assert "--device is 'gpu', expected cpu, cuda" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_without_redis_says_so() -> None:
    done = nextslice("worker", "control", REDIS_URL="redis://:secret@127.0.0.1:9/0")
    assert done.returncode == 69
    assert "Redis cannot be used" in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--backend", "this-machine:9090"], 2, "--backend is 'this-machine:9090', expected an"),
        # of the environment alone: of another server, store and secret would not fit
        (["--url", "http://other.example"], 2, "No such option"),
        (["--token", "t"], 2, "No such option"),
    ],
)
def test_connect_takes_only_what_may_differ_from_the_service(
    options: list[str], code: int, says: str
) -> None:
    done = nextslice("connect", "1", *options, LABEL_STUDIO_API_KEY="t")
    assert done.returncode == code
    assert says in done.stderr
    assert "pydantic" not in done.stderr


@pytest.mark.parametrize(
    ("env", "code", "says"),
    [
        ({"LABEL_STUDIO_API_KEY": ""}, 78, "LABEL_STUDIO_API_KEY is empty"),
        (
            {"LABEL_STUDIO_API_KEY": "t", "LABEL_STUDIO_URL": "http://127.0.0.1:9"},
            69,
            "cannot be reached",
        ),
        ({"LABEL_STUDIO_URL": "nonsense"}, 78, "found 'nonsense'"),
    ],
)
def test_connect_says_what_is_wrong(env: dict[str, str], code: int, says: str) -> None:
    done = nextslice("connect", "1", **env)
    assert done.returncode == code
    assert says in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


WRONG = [
    ("--phantom small", "give --out"),
    ("--out {tmp}/o", "give either --data or --phantom"),
    ("--out {named} --phantom small", "holds something else ("),
    ("--out {named}/volumes.json --phantom small", "is a file, expected a folder"),
    ("--out {tmp}/o --data {tmp} --strategies best", "is called 'best'"),
    ("--out {tmp}/o --phantom huge", "phantom size is 'huge'"),
    ("--out {tmp}/o --data {tmp}", "no folder images/"),
    ("--out {tmp}/o --data {tmp} --device gpu", "--device is 'gpu', expected cpu, cuda"),
    ("--out {tmp}/o --data {tmp} --axis 0", "--axis cannot be given without --labels"),
    ("--out {tmp}/o --phantom small --axis 1", "--axis cannot be given with --phantom"),
    (
        "--out {tmp}/o --phantom small --held-out 0.4 --gap 20",
        "--held-out and --gap cannot be given with --phantom small",
    ),
    (
        "--out {tmp}/o --data {named} --held-out-at 0.5",
        "--held-out-at cannot be given for named, whose volumes.json names the test slices",
    ),
    ("--out {tmp}/o --data {tmp} --workers", "--workers needs --device cuda or --device cpu"),
    ("--out {tmp}/o --data {tmp} --workers --device cpu", "Redis does not answer"),
    (
        "--out {tmp}/o --data {tmp} --workers --device cpu --jobs 2",
        "--jobs cannot be given with --workers",
    ),
    ("--report {tmp}", "holds no experiment.json"),
    ("--report {tmp} --out {tmp}/o", "--out cannot be given with --report"),
    ("--report {tmp} --no-spacing", "--spacing cannot be given with --report"),
]
"""Arguments of simulate, and a part of what is said to them."""


def _simulate_code(says: str) -> int:
    """1 for data or a folder of which no experiment can be made, 69 without Redis, 2 else."""
    if "Redis" in says:
        return 69
    return 1 if says.startswith(("no folder", "holds ", "is a file")) else 2


REFUSED = """
import io, json, sys
from ml_backend.cli import console, main

console.width = 1000
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["nextslice", "simulate", *arguments]
    console.file = io.StringIO()
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    print(json.dumps([code, console.file.getvalue(), "torch" in sys.modules]))
"""


def test_simulate_says_what_is_wrong_without_torch_and_leaves_nothing(tmp_path: Path) -> None:
    named = tmp_path / "named"
    write_named_split(named)
    given = [text.format(tmp=tmp_path, named=named).split() for text, _ in WRONG]
    environment = {"NEXTSLICE_HOME": str(tmp_path / "home"), "REDIS_URL": "redis://127.0.0.1:9/0"}
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, json.dumps(given)],
        capture_output=True, text=True, check=True, timeout=120, env=os.environ | environment,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for (arguments, says), (code, said, torch) in zip(WRONG, answers, strict=True):
        assert (code, torch) == (_simulate_code(says), False), arguments
        assert says in said, arguments
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--architecture", "hrnet_18", "Unknown architecture 'hrnet_18'"),
        ("--device", "cuda:99", "--device is 'cuda:99', and torch"),
    ],
)
def test_what_only_torch_knows_is_checked_before_anything_is_read_or_written(
    tmp_path: Path, option: str, value: str, says: str
) -> None:
    given = ["--out", str(tmp_path / "o"), "--phantom", "small", option, value]
    done = nextslice("simulate", *given, NEXTSLICE_HOME=str(tmp_path / "home"))
    assert done.returncode == 2
    assert says in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def write_named_split(folder: Path) -> None:
    """`tiny_experiment`'s slices, the first half to train on and the second to test on."""
    folder.mkdir()
    write_slices(folder)
    for path in [*(folder / "images").iterdir(), *(folder / "masks").iterdir()]:
        volume = "a" if int(path.stem[1:]) < 12 else "b"
        path.rename(path.with_name(f"{volume}_{path.name}"))
    volumes = [{"name": "a", "split": "train"}, {"name": "b", "split": "test"}]
    (folder / "volumes.json").write_text(json.dumps({"volumes": volumes}))


def test_simulate_runs_an_experiment_and_draws_it(tmp_path: Path) -> None:
    slices = tmp_path / "slices[old] :b:"  # brackets are no markup, and :b: is no picture
    slices.mkdir()
    write_slices(slices)
    out = tmp_path / "out"
    # a path without a name of its own, and a strategy twice
    options = ["--data", str(slices / "images" / ".."), "--strategies", "random,strided,random"]
    options += ["--rounds", "2", "--k", "2"]
    options += ["--seeds", "1", "--steps", "2", "--full-steps", "2", "--gap", "1"]
    options += ["--precision", "bfloat16"]
    done = nextslice("simulate", *options, "--out", str(out), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "slices[old] :b:: 17 slices to choose from" in done.stderr
    for name in ("random (control)", "strided (control)", "fully supervised"):
        assert name in done.stdout
    assert (out / "report.html").stat().st_size > 10_000
    assert len((out / "rounds.jsonl").read_text().splitlines()) == 5
    assert "trained afresh in bfloat16" in (out / "results.md").read_text()
    record = json.loads((out / "experiment.json").read_text())
    record["versions"]["timm"] = "0.1"
    (out / "experiment.json").write_text(json.dumps(record))
    again = nextslice("simulate", *options, "--out", str(out))
    assert "3 runs, 3 of them done before" in again.stderr
    assert "timm was 0.1 when this experiment began" in again.stderr
    other = nextslice("simulate", *options, "--precision", "float32", "--out", str(out))
    assert other.returncode == 1
    assert "training is {'precision': 'bfloat16'} there" in other.stderr.replace("\n", " ")


def test_simulate_draws_what_is_there_when_a_run_fails_or_another_process_is_on_it(
    tmp_path: Path,
) -> None:
    slices, out = tmp_path / "slices", tmp_path / "out"
    slices.mkdir()
    write_slices(slices)
    options = ["--data", str(slices), "--strategies", "random,strided", "--rounds", "2", "--k", "2"]
    options += ["--seeds", "1", "--steps", "2", "--no-supervised", "--gap", "1", "--out", str(out)]
    strided = RunFiles(out, "strided", 0)
    in_the_way = strided.folder / "status.json"  # that of a training, the second at the latest
    assert nextslice("simulate", *options, OMP_NUM_THREADS="1").returncode == 0
    strided.lines_path.unlink()
    in_the_way.unlink(missing_ok=True)
    in_the_way.mkdir(parents=True)

    failed = nextslice("simulate", *options, OMP_NUM_THREADS="1")

    assert failed.returncode == 1
    assert "strided, seed 0: IsADirectoryError" in failed.stderr
    assert "Report: " in failed.stdout
    in_the_way.rmdir()
    (out / "report.html").unlink()

    with strided.lock():
        taken = nextslice("simulate", *options, OMP_NUM_THREADS="1")

    assert taken.returncode == 75
    assert "strided, seed 0: another process is on it" in taken.stderr
    assert (out / "report.html").exists()


def test_a_path_with_brackets_is_printed_as_it_is(tmp_path: Path) -> None:
    for name in ("scans[old]", "scans[/old]"):
        said = nextslice("simulate", "--data", str(tmp_path / name), "--out", str(tmp_path / "o"))
        assert said.returncode == 1
        assert f"{name} does not exist" in said.stderr.replace("\n", "")
