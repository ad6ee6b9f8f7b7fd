"""A Tiled server of bluesky, in an environment of its own: its pins are not ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ml_backend.durable import held
from ml_backend.embedded.processes import ProcessGroup

__all__ = ["KEY", "start_tiled"]

VERSION = "0.2.20"
KEY = "akeyofthetests"
_SERVER = """
import sys, numpy, uvicorn
from tiled.adapters.array import ArrayAdapter
from tiled.adapters.mapping import MapAdapter
from tiled.config import Authentication
from tiled.server.app import build_app
folder, key, port = sys.argv[1:]
arrays = {name: ArrayAdapter.from_array(array, dims=tuple(dims.split(",")) if dims else None)
          for name, array, dims in [
              ("scan", numpy.load(folder + "/scan.npy"), ""),
              ("named", numpy.load(folder + "/named.npy"), "time,z,y,x"),
              ("big end", numpy.load(folder + "/big.npy"), ""),
              ("picture", numpy.load(folder + "/scan.npy")[0], ""),
              ("complex", numpy.zeros((2, 3, 4), "complex64"), "")]}
tree = MapAdapter({"raw": MapAdapter(arrays)})
only = Authentication(single_user_api_key=key, allow_anonymous_access=False)
app = build_app(tree, authentication=only)
uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")
"""


def _python(home: Path) -> Path:
    """That of the environment, which is made once (some minutes)."""
    environment = home / f"tiled-{VERSION}"
    python = environment / "bin" / "python"
    with held(home / "tiled.lock"):
        if not (environment / "installed").exists():
            subprocess.run([sys.executable, "-m", "venv", environment], check=True)
            what = f"tiled[server]=={VERSION}"
            subprocess.run([python, "-m", "pip", "install", "-q", "--no-compile", what], check=True)
            (environment / "installed").touch()
    return python


def start_tiled(group: ProcessGroup, home: Path, folder: Path, port: int) -> str:
    """Serve the arrays in ``folder``: raw/scan, raw/named (time, z, y, x), raw/big end, raw/picture
    and raw/complex. Returns the address."""
    python = _python(home)
    url = f"http://127.0.0.1:{port}"
    group.start("tiled", [str(python), "-c", _SERVER, str(folder), KEY, str(port)])
    return url
