"""A stand-in for a newer release: this release, which also knows format 9.

Only the number is new: a saga of format 9 is a plain one with that number. As a process: `python -m support.newer
worker`, with the command line of sagastream.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final
from unittest import mock

from sagastream.core import steps

FORMAT: Final = 9
KNOWN: Final = steps.FORMATS | {FORMAT}


@contextmanager
def newer() -> Iterator[None]:
    """Within this, workers and services that are made, or that run, belong to the newer release."""
    from sagastream.core import parsing
    from sagastream.store import heartbeat, saga_hash

    with ExitStack() as patched:
        for module in (parsing, saga_hash, heartbeat):
            patched.enter_context(mock.patch.multiple(module, FORMATS=KNOWN))
        yield


if __name__ == "__main__":
    vars(steps)["FORMATS"] = KNOWN  # before anything else imports it
    from sagastream_bridge.commands.main import main

    main()
