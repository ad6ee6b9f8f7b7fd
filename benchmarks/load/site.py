"""What the load runs on: PostgreSQL, Label Studio, Redis, our backend and workers, a large project.

All of it in one folder and on 127.0.0.1, started by us and stopped with us.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.embedded.label_studio import (
    LABEL_STUDIO_VERSION,
    install_label_studio,
    label_studio_environment,
)
from ml_backend.embedded.processes import ProcessGroup, StartError, free_port
from ml_backend.embedded.stack import Stack, start_stack
from ml_backend.rounds.service import Service, slice_keys
from ml_backend.studio import projects
from ml_backend.studio.label_config import bitmask_config
from ml_backend.volumes.address import SliceAddress

__all__ = ["CLASSES", "SIDE", "create_tasks", "start_postgresql", "start_site", "truth"]

CLASSES = ["bone", "implant"]
SIDE = 32
_USER = "postgres"
_TASKS_PER_REQUEST = 2500
_MIGRATE_S = 1800
_COPY_S = 600
_SERVICE = {
    "NEXTSLICE_K": "8",
    "NEXTSLICE_EARLY_ROUNDS": "off",
    "NEXTSLICE_TRAIN_STEPS": "200",
    "NEXTSLICE_CROP": "32",
    "NEXTSLICE_ARCHITECTURE": "hrnet_w18_small",
    "NEXTSLICE_PRETRAINED": "false",
    "OMP_NUM_THREADS": "1",
}
"""A network as small as the slices: what is measured is the service around it."""


# -- PostgreSQL


def _programs() -> Path:
    """The folder of PostgreSQL's programs: on PATH, or where Debian puts them."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        raise StartError("No PostgreSQL was found. Install it: apt-get install postgresql.")
    return found[-1]


def _unprivileged() -> list[str]:
    """What a command begins with that must not run as root, as PostgreSQL's must not."""
    if os.getuid():
        return []
    return ["setpriv", "--reuid", _USER, "--regid", _USER, "--clear-groups"]


def start_postgresql(group: ProcessGroup, folder: Path) -> dict[str, str]:
    """Start a new PostgreSQL with its data in ``folder``; Label Studio's variables of it."""
    folder.mkdir(parents=True)
    if not os.getuid():
        shutil.chown(folder, _USER, _USER)
    bin_, data, port = _programs(), folder / "data", free_port()
    initdb = [*_unprivileged(), str(bin_ / "initdb"), "-D", str(data), "-A", "trust", "-U", _USER]
    subprocess.run(initdb, check=True, capture_output=True, timeout=120, cwd=folder)
    options = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": str(folder),
        "max_connections": "300",
    }
    argv = [*_unprivileged(), str(bin_ / "postgres"), "-D", str(data)]
    for name, value in options.items():
        argv += ["-c", f"{name}={value}"]
    group.start("postgresql", argv, cwd=folder)

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    group.wait("postgresql", listens, timeout_s=60)
    return {
        "DJANGO_DB": "default",
        "POSTGRE_HOST": "127.0.0.1",
        "POSTGRE_PORT": str(port),
        "POSTGRE_NAME": _USER,
        "POSTGRE_USER": _USER,
        "POSTGRE_PASSWORD": "",
    }


def _make_tables(home: Path, database: dict[str, str], folder: Path) -> None:
    """Label Studio's migrations: too long for its first start, on a busy machine."""
    environment = install_label_studio(home).parents[1]
    (manage,) = environment.glob("lib/python*/site-packages/label_studio/manage.py")
    env = {**os.environ, **label_studio_environment(folder, database)}
    argv = [str(environment / "bin" / "python"), str(manage), "migrate"]
    done = subprocess.run(argv, env=env, capture_output=True, timeout=_MIGRATE_S, check=False)
    if done.returncode:
        raise StartError(f"Label Studio {LABEL_STUDIO_VERSION}: {done.stderr[-2000:].decode()}")


# -- the service


def start_site(
    group: ProcessGroup, folder: Path, home: Path, database: str, annotators: int, tasks: int,
    step: Callable[[str], None],
) -> tuple[Stack, dict[str, str] | None]:  # fmt: skip
    """Start everything, with a volume of ``tasks`` slices that the backend serves; what runs, and
    Label Studio's variables of PostgreSQL where it is on it."""
    variables = None
    if database == "postgresql":
        step("starting PostgreSQL, making Label Studio's tables")
        variables = start_postgresql(group, folder / "postgresql")
        (folder / "label-studio").mkdir()
        _make_tables(home, variables, folder / "label-studio")
    scans = folder / "scans"
    scans.mkdir()
    np.save(scans / "load.npy", _volume(tasks))
    env = {
        **_SERVICE,
        "NEXTSLICE_RESERVE": str(annotators),
        "NEXTSLICE_VOLUMES": f"scans={scans}",
    }
    return start_stack(group, folder, home, env=env, step=step, database=variables), variables


def _mask(z: int) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    radius = np.hypot(y, x)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[radius < 12] = 1
    mask[radius < 3 + z % 6] = 2
    return mask


def _volume(tasks: int) -> npt.NDArray[np.uint8]:
    """(tasks, SIDE, SIDE): a cone in a tube, with the noise of 64 slices."""
    noise = np.random.default_rng(0).integers(-20, 20, (64, SIDE, SIDE))
    shown = np.stack([np.array([60, 120, 200])[_mask(z)] for z in range(6)])
    z = np.arange(tasks)
    volume = np.empty((tasks, SIDE, SIDE), np.uint8)
    for part in np.array_split(z, max(1, tasks // 4096)):
        volume[part] = shown[part % 6] + noise[part % 64]
    return volume


def truth(data: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """The label map of a task."""
    return _mask(int(data["z"]))


def create_tasks(
    service: Service, tasks: int, title: str, postgresql: dict[str, str] | None = None
) -> int:
    """A project whose ``tasks`` tasks show a slice each, imported in chunks; its number.

    ``postgresql``: Label Studio's variables of it, to copy the first chunk's rows there instead:
    an import of 100,000 tasks takes a minute of CPU.
    """
    number = projects.create_project(service.studio, title, bitmask_config(CLASSES)).id
    keys, base = slice_keys(service.settings), service.settings.slices_url

    def data(z: int) -> dict[str, Any]:
        url = SliceAddress("scans/load.npy", "z", z).url(base, keys)
        return {"image": url, "volume": "load", "z": z, "axis": "z"}

    for first in range(0, tasks, _TASKS_PER_REQUEST):
        chunk = range(first, min(first + _TASKS_PER_REQUEST, tasks))
        projects.import_tasks(service.studio, number, [{"data": data(z)} for z in chunk])
        if postgresql is not None:
            rest = range(chunk.stop, tasks)
            _copy_rows(postgresql, number, [data(z) for z in rest])
            break
    return number


def _copy_rows(database: dict[str, str], number: int, rows: list[dict[str, Any]]) -> None:
    """Tasks of project ``number`` with the data ``rows``, else as its first task is."""
    psql = [str(_programs() / "psql"), "-v", "ON_ERROR_STOP=1", "-h", database["POSTGRE_HOST"],
            "-p", database["POSTGRE_PORT"], "-U", database["POSTGRE_USER"], "-q"]  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    script = f"""
CREATE TEMP TABLE rows (n serial, data jsonb);
COPY rows (data) FROM STDIN;
{lines}\\.
CREATE TEMP TABLE copies AS
  SELECT t.*, n, rows.data AS row FROM rows,
  (SELECT * FROM task WHERE project_id = {number} ORDER BY id LIMIT 1) t;
UPDATE copies SET id = nextval(pg_get_serial_sequence('task', 'id')), data = row,
  inner_id = (SELECT max(inner_id) FROM task WHERE project_id = {number}) + n;
ALTER TABLE copies DROP COLUMN n, DROP COLUMN row;
INSERT INTO task SELECT * FROM copies;
ANALYZE task;
"""
    subprocess.run(psql, input=script.encode(), check=True, capture_output=True, timeout=_COPY_S)
