"""A stand-in for a newer release of the services: this release, whose records have format 9, `v9 ok …`. As a process:
`python -m support.newer_records service MODULE:NAME`."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest import mock

from sagastream.broker.scripting import Script
from sagastream.core import service_records

FORMAT: Final = 9
_load: Final = Script.__init__


def _writing(script: Script, name: str, *package: Any) -> None:
    """A script as that release has it."""
    _load(script, name, *package)
    if name == "answer":
        known = f"(string.gsub(record, '^v{FORMAT} ', ''))"
        changes = {
            "tonumber(format) > 1": f"tonumber(format) > {FORMAT}",
            "string.match(record, '^(%a+) (.*)$')": f"string.match({known}, '^(%a+) (.*)$')",
            "field, kind .. ' ' .. payload": f"field, 'v{FORMAT} ' .. kind .. ' ' .. payload",
            "field, 'unknown ' .. times": f"field, 'v{FORMAT} unknown ' .. times",
        }
        for old, new in changes.items():
            assert script._text.count(old) == 1, old
            script._text = script._text.replace(old, new)
        # With another text it needs another name: its own bytes say it.
        script._sha = hashlib.sha1(script._text.encode(), usedforsecurity=False).hexdigest()


@contextmanager
def newer_records() -> Iterator[None]:
    """Within this, services that are made, or that run, belong to that release. It reads records of this one too."""
    with (
        mock.patch.object(Script, "__init__", _writing),
        mock.patch.object(service_records, "RECORD_FORMAT", FORMAT),
        mock.patch.object(service_records, "_RECORD", re.compile(rb"(?:v9 )?(ok|failed) (.*)", re.DOTALL)),
    ):
        yield


if __name__ == "__main__":
    from sagastream_bridge.commands.main import main

    with newer_records():
        main()
