"""A stand-in for a newer release: this release, which also knows format 9.

Only the number is new: a saga of format 9 is a plain one with that number. As a process: `python -m support.newer
worker`, with the command line of sagastream.
"""

import sys
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
    modules = [
        module
        for name, module in sys.modules.items()
        if name.startswith("sagastream.") and vars(module).get("FORMATS") is steps.FORMATS
    ]
    with ExitStack() as patched:
        for module in modules:  # … into which steps.FORMATS was imported
            patched.enter_context(mock.patch.object(module, "FORMATS", KNOWN))
        yield


if __name__ == "__main__":
    vars(steps)["FORMATS"] = KNOWN  # before anything else imports it
    from sagastream_bridge.commands.main import main

    main()
