"""A server whose clock a test sets."""

import shutil
import struct
import subprocess
from pathlib import Path

from support.needs import missing
from support.servers import OwnServer

SOURCE = Path(__file__).with_suffix(".c")


class ServerClock:
    """The clock of one server, which starts again to get it. It goes on as the machine's does."""

    def __init__(self, server: OwnServer) -> None:
        if (compiler := shutil.which("cc")) is None:
            missing("there is no C compiler: it makes a clock for a server that a test can set")
        library, self._shift = server.folder / "clock.so", server.folder / "shift"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE], check=True)
        self._shift.write_bytes(struct.pack("q", 0))
        server.kill()
        server.environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT_FILE": str(self._shift)}
        server.start()

    def set_back(self, ms: int) -> None:
        """Set the clock back by so much, in milliseconds."""
        with self._shift.open("r+b") as file:
            (shift,) = struct.unpack("q", file.read(8))
            file.seek(0)
            file.write(struct.pack("q", shift - ms))
