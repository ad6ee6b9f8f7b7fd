"""Child processes that are stopped with us, in the reverse of the order they were started in."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from ml_backend.durable import Scratch
from ml_backend.errors import EnvironmentFault, OptionError
from ml_backend.parents import end_with_parent

__all__ = [
    "ProcessGroup",
    "StartError",
    "check_free",
    "free_port",
    "kill_tree",
    "split_address",
    "wait_until",
]

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ADDRESS = re.compile(r"(\[[^\[\]\s]+\]|[^\[\]\s:]*):([0-9]{1,5})")


class StartError(EnvironmentFault, RuntimeError):
    """A process ended or did not answer in time; the message shows the end of its log."""


class _Child(NamedTuple):
    name: str
    process: subprocess.Popen[bytes]
    log: Path


def free_port() -> int:
    """A TCP port on the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def split_address(address: str) -> tuple[str, int]:
    """Host, without its brackets, and port of ``address`` (host:port), to listen at. Raises
    OptionError for another form."""
    found = _ADDRESS.fullmatch(address)
    host, port = ("", 0) if found is None else (found[1].strip("[]"), int(found[2]))
    if not 0 < port < 1 << 16 or not _is_host(host):
        raise OptionError(
            f"--bind: found {address!r}, expected an address and a port from 1 to 65535, as "
            "127.0.0.1:9090, 0.0.0.0:9090 or [::1]:9090"
        )
    return host, port


def _is_host(name: str) -> bool:
    try:
        name.encode("idna")
    except UnicodeError:  # a part is empty or too long
        return False
    return True


def check_free(address: str) -> None:
    """Raise StartError where something listens at ``address`` (host:port) already, or where this
    machine has no such address; OptionError as `split_address`."""
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # as gunicorn does: what ended a moment ago is in nobody's way
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StartError(
                    f"Port {port} of {host or 'this machine'} is used by another program: is "
                    "nextslice running already? Stop that one, or give another address with --bind."
                ) from None
            raise StartError(
                f"Nothing can listen at {address} ({error.strerror or error}): give an address of "
                "this machine with --bind, as 127.0.0.1:9090 or 0.0.0.0:9090."
            ) from None


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """What stops us waits until this is done: an error that is raised in what Python calls at a
    fork is lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:  # runs in the child
    """Linux: a child must not outlive us even when we are killed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    end_with_parent(signal.SIGTERM)


def _tail(log: Path, lines: int = 15) -> str:
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join(text.splitlines()[-lines:])


def wait_until(
    ready: Callable[[], bool], what: str, timeout_s: float, pause_s: float = 0.2
) -> None:
    """Return when ``ready()`` is true. StartError when it is not within ``timeout_s`` seconds."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise StartError(f"{what} did not happen within {timeout_s:.0f} s")
        time.sleep(pause_s)


class ProcessGroup(contextlib.AbstractContextManager["ProcessGroup", None]):
    """Starts processes, each with a log file in ``logs``; a context manager that stops them all."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        self._children: list[_Child] = []
        self._scratch: list[Scratch] = []

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start ``argv`` with ``env`` added to ours."""
        log = self.logs / f"{name}.log"
        with log.open("ab") as out, _undisturbed():
            process = subprocess.Popen(
                list(argv),
                env={**os.environ, **(env or {})},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                # A session of its own: Ctrl-C reaches us alone, and we stop the others in order.
                start_new_session=True,
                preexec_fn=_begin,
            )
            self._children.append(_Child(name, process, log))
        return process

    def wait(self, name: str, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until process ``name`` answers. StartError with its log when it ends or does not."""
        child = next(c for c in self._children if c.name == name)

        def alive_and_ready() -> bool:
            if child.process.poll() is not None:
                raise StartError(
                    f"{name} ended with code {child.process.returncode}; the end of {child.log}:\n"
                    f"{_tail(child.log)}"
                )
            return ready()

        try:
            wait_until(alive_and_ready, f"{name}: start", timeout_s)
        except StartError as error:
            if "ended with code" in str(error):
                raise
            raise StartError(f"{error}; the end of {child.log}:\n{_tail(child.log)}") from None

    def scratch(self) -> Path:
        """A new temporary folder, until they are stopped."""
        self._scratch.append(Scratch())
        return Path(self._scratch[-1].name)

    def pids(self) -> dict[str, int]:
        """Name → process id of each that was started."""
        return {child.name: child.process.pid for child in self._children}

    def ended(self) -> str | None:
        """Name and log of a process that ended by itself, or None while all run."""
        for child in self._children:
            if child.process.poll() is not None:
                return f"{child.name} ended with code {child.process.returncode}, see {child.log}"
        return None

    def forget(self, process: subprocess.Popen[bytes]) -> None:
        """Stop looking after a process that the caller ends (tests that kill a worker)."""
        self._children = [c for c in self._children if c.process is not process]

    def stop(self, grace_s: float = 8.0) -> None:
        """Ask every process to end, last started first; kill what does not. Interrupted, as by a
        second Ctrl-C, kill all that is left at once."""
        try:
            while self._children:
                _end(self._children[-1].process, grace_s)
                self._children.pop()
        finally:
            with _undisturbed():
                while self._children:
                    _end(self._children.pop().process, 0)
                while self._scratch:
                    self._scratch.pop().cleanup()


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process and to all it started, at once, as a lost machine would."""
    _kill({*_started_by(process), process.pid})
    process.wait()


def _started_by(process: subprocess.Popen[bytes]) -> set[int]:
    """Its descendants, and who else is in its session: all that is known of them once it has ended.
    RQ's work horses lead process groups of their own, so a signal to its group misses them."""
    found = {pid for pid in psutil.pids() if _session_of(pid) == process.pid}
    with contextlib.suppress(psutil.NoSuchProcess):
        found |= {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    return found - {process.pid}


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """SIGTERM to the process, then SIGKILL to it and to what it started; SIGKILL alone where it has
    no ``grace_s``."""
    started = _started_by(process)
    if grace_s and process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    _kill(started)
    if process.poll() is None:
        process.kill()
    process.wait()
