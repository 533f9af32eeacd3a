"""A server whose clock a test sets."""

import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import redis

from support.needs import missing
from support.servers import OwnServer
from support.waiting import until

SOURCE = Path(__file__).with_suffix(".c")

#: By how many milliseconds the time of the server may differ from what it was set to: the test may wait for a core.
_NEAR_MS: Final = 1000


class ServerClock:
    """The clock of one server, which starts again to get it. It goes on as the machine's does."""

    def __init__(self, server: OwnServer, *, behind_ms: int = 0) -> None:
        """`behind_ms`: how far it is behind the machine's from the beginning."""
        if (compiler := shutil.which("cc")) is None:
            missing("there is no C compiler: it makes a clock for a server that a test can set")
        self._server = server
        library, self._shift = server.folder / "clock.so", server.folder / "shift"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE], check=True)
        self._shift.write_bytes(struct.pack("q", -behind_ms))
        server.kill()
        server.environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT_FILE": str(self._shift)}
        server.start()

    def set_back(self, ms: int) -> None:
        """Set the clock back by so much, in milliseconds. If the server runs, returns when it says the new time itself:
        Valkey keeps what its clock said for some milliseconds, so the next command might still see the old one."""
        with self._shift.open("r+b") as file:
            (before,) = struct.unpack("q", file.read(8))
            file.seek(0)
            file.write(struct.pack("q", before - ms))
        if self._server.process is not None and self._server.process.poll() is None:
            until(lambda: self._says(before - ms), what="the server says the new time")

    def _says(self, shift_ms: int) -> bool:
        """Whether the server, to a client and to a script, says the machine's time with this shift."""
        # Not sagastream's own client, which takes the time of a cluster from one of its nodes.
        with redis.Redis.from_url(self._server.url) as client:
            to_script: Any = client.eval("return redis.call('TIME')", 0)
            told = [client.time(), to_script]
        now_ms = time.time() * 1000 + shift_ms
        return all(abs(int(seconds) * 1000 + int(micros) / 1000 - now_ms) < _NEAR_MS for seconds, micros in told)
