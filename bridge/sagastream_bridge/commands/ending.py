"""How a process is asked to end: by a signal, or by the end of its standard input."""

import os
import select
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn


def on_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    """What to do when the process has to end: it was asked to, or interrupted, or its terminal is gone."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as it is under nohup
            signal.signal(number, handler)


def terminated(number: int, _: FrameType | None) -> NoReturn:
    on_signals(lambda *_: None)  # a second signal must not interrupt the clean-up
    raise SystemExit(128 + number)


def call_on_signals(stop: Callable[[], object], until_eof: bool = False) -> None:
    """Let a thread call `stop` when the process has to end; with `until_eof`, also when standard input ends.

    A signal handler must not call it: that runs between any two statements of the main thread, and would wait forever
    for a lock that the main thread holds. It also runs only when the main thread gets to it; the pipe is written at
    once.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    on_signals(lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def watch() -> None:
        while True:
            ready = select.select([read, 0] if until_eof else [read], [], [])[0]
            if read in ready or not os.read(0, 4096):
                break
        stop()

    threading.Thread(target=watch, daemon=True).start()


def stop_event(until_eof: bool = False) -> threading.Event:
    """An event that is set when the process has to end."""
    stop = threading.Event()
    call_on_signals(stop.set, until_eof)
    return stop
