"""`sagastream service --reload`: runs the service in a child process, and starts it again when a source file changes.

A new process, not new modules in the old process: so nothing of the old code is left.
"""

import logging
import subprocess
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from sagastream.broker.connection import Broker
from sagastream.broker.outage import Outage
from sagastream.errors import SagastreamError
from sagastream.service.declaration import EXIT_HANGS
from sagastream.telemetry import Log
from sagastream_bridge.local.stack import end, spawn

#: How often to look after the broker and the child, in milliseconds.
_LOOK_MS: Final = 500
_WHO: Final = "sagastream"
_LOG: Final = Log("reload", _WHO)


def run_again_when_changed(
    broker: Broker, where: str, arguments: Sequence[str], stop: threading.Event, *, grace_s: float
) -> None:
    """Run `sagastream service WHERE`. Start it again after each change of a .py file below the current folder, or of
    the module if that is elsewhere. If it ends by itself, for example by an error in the code, wait for the next
    change; if it ends because a handler hung, start it again.

    Raises SagastreamError if watchfiles is not installed.
    """
    try:
        from watchfiles import PythonFilter, watch
    except ModuleNotFoundError:
        raise SagastreamError("--reload needs watchfiles: pip install watchfiles") from None
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it tells of each change, and so do we
    outage = Outage(broker, _WHO, stop)
    child: subprocess.Popen[bytes] | None = _spawn(broker, where, arguments)
    try:
        for changes in watch(
            *_watched(where),
            watch_filter=PythonFilter(),
            stop_event=stop,
            rust_timeout=_LOOK_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
        ):
            if changes:
                changed = ", ".join(sorted(Path(path).name for _, path in changes)[:3])
                _LOG.info(f"{changed} changed; starting {where} again")
                if child is not None:
                    end(child, grace_s + 1.0)
                child = _spawn(broker, where, arguments)
            elif child is not None and (code := child.poll()) is not None:
                if code == EXIT_HANGS:
                    _LOG.warning(f"{where} ended with exit code {code}, since a handler hung; starting it again")
                    child = _spawn(broker, where, arguments)
                else:
                    _LOG.warning(f"{where} ended with exit code {code}; waiting for the next change")
                    child = None
            outage.restore()
    finally:
        if child is not None:
            end(child, grace_s + 1.0)


def _spawn(broker: Broker, where: str, arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
    # No bytecode is written: Python takes it for that of a source file if second and length are the same, so if a file
    # is saved twice in a second, the first version would run.
    return spawn(broker, ["service", where, *arguments], PYTHONDONTWRITEBYTECODE="1")


def _watched(where: str) -> list[Path]:
    here = Path.cwd().resolve()
    spec = find_spec(where.partition(":")[0].partition(".")[0])  # of the top package only: this imports nothing
    if spec is None or spec.origin is None:
        return [here]
    module = Path(spec.origin).resolve()
    module = module.parent if spec.submodule_search_locations else module
    return [here] if module.is_relative_to(here) else [here, module]
