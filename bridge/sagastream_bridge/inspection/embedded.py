"""Examines the embedded server of a home, from outside: what it cannot say itself, since it stops."""

from collections.abc import Iterator
from typing import Any, Final

from sagastream.broker.connection import Broker
from sagastream_bridge.inspection.findings import PROBLEM, WARNING, Finding

#: A fault that ended the server is a problem for so long after its next start, in seconds: it may come again.
_RECENT_S: Final = 600


def findings(broker: Broker) -> Iterator[Finding]:
    """What is wrong with it; nothing for a server of one's own."""
    if broker.embedded is None:
        return
    if (full := broker.embedded.full_disk()) is not None:
        yield Finding(level=PROBLEM, about="disk", text=full)
    elif (words := broker.embedded.last_fault()) is not None:
        info: Any = broker.client.info("server")
        level = PROBLEM if int(info["uptime_in_seconds"]) < _RECENT_S else WARNING
        text = f"the Valkey of {broker.store} stopped, and was started again; see valkey.log; its last words: {words}"
        yield Finding(level=level, about="server", text=text)
