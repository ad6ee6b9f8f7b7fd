"""A small disk that can be filled and made read-only: a file system in memory, mounted where no
other process sees it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from ml_backend.embedded.processes import ProcessGroup
from tests.faults.cells import wait_until

__all__ = ["SmallDisk", "may_mount"]

_SCRIPT = 'mount -t tmpfs -o size=64m none "$1" && touch "$1/mounted" && exec sleep 3600'


def may_mount() -> bool:
    """Whether this user may make name spaces."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return False
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0


class SmallDisk:
    """64 MiB at ``path``, for the processes that are ``inside``; ``seen``: by others."""

    def __init__(self, group: ProcessGroup, path: Path) -> None:
        path.mkdir()
        self.path = path
        argv = ["unshare", "-rm", "sh", "-c", _SCRIPT, "sh", str(path)]
        self.inside = group.start("disk", argv).pid
        self.seen = Path(f"/proc/{self.inside}/root{path}")
        group.wait("disk", (self.seen / "mounted").exists, 30)

    def fill(self) -> None:
        """Until not a byte more can be written."""
        try:
            with (self.seen / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 16))
        except OSError:
            wait_until(lambda: shutil.disk_usage(self.seen).free == 0, "a full disk", 5, 0.02)

    def make_room(self) -> None:
        """Delete what filled it."""
        (self.seen / "filler").unlink()

    def mount(self, options: str) -> None:
        """Mount it again, as ``ro`` or ``rw``."""
        enter = ["nsenter", "-t", str(self.inside), "-U", "-m", "--preserve-credentials"]
        command = ["mount", "-o", f"remount,{options}", str(self.path)]
        subprocess.run([*enter, *command], check=True)
