"""What ends a command from outside: SIGTERM and SIGHUP do what Ctrl-C does."""

from __future__ import annotations

import signal

__all__ = ["stop_on_signals"]


def stop_on_signals() -> None:
    """Let SIGTERM, and the SIGHUP of a terminal that is closed, unwind like Ctrl-C, so that
    everything that was started is stopped, and what is held is given back. Under nohup, which
    ignores it, SIGHUP stays ignored."""

    def interrupt(signum: int, frame: object) -> None:
        # shell and system send it one after the other: what is being stopped is stopped
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, interrupt)
