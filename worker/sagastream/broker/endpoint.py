"""Where an embedded server is reached: at its socket, which is for its user alone, as the home is.

Everybody on the machine can reach a port, so there is one only if somebody asks for it. Then whoever talks to the
server needs its password, at the socket too. Port and password stand in the home for as long as the server runs or is
used.
"""

import contextlib
import os
import secrets
import socket
import struct
import sys
import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sagastream.broker.home import Home, not_ours
from sagastream.broker.server_log import LOG
from sagastream.errors import BrokerError

#: The path of a unix socket must fit into 104 bytes on macOS, 108 on Linux.
_SOCKET_PATH_BYTES: Final = 100
#: A server that takes a connection and says nothing for so long hangs, in seconds. A server that loads data answers.
SILENT_S: Final = 5.0


class Endpoint:
    """Where the server of one home is reached."""

    def __init__(self, home: Home) -> None:
        self._home = home

    @property
    def path(self) -> Path:
        """The socket. Its path is short, so if that of the home is long, the socket is in a folder of its own. The home
        says in which: others cannot know it beforehand, and take its name."""
        path = self._home / "valkey.sock"
        if len(os.fsencode(path)) > _SOCKET_PATH_BYTES and (folder := self._home.read("socket")):
            return Path(folder) / path.name
        return path

    @property
    def port(self) -> str | None:
        """The port of 127.0.0.1 at which the server listens, too, or will when it starts again; None: at none."""
        return self._home.read("port")

    @property
    def password(self) -> str | None:
        """What the server asks of everybody, since it has a port; None: nothing."""
        return self._home.read("password") if self.port else None

    @property
    def url(self) -> str:
        """With the password, if there is one."""
        user = f":{password}@" if (password := self.password) else ""
        return f"unix://{user}{quote(str(self.path))}"

    def prepare(self, port: int | None) -> dict[str, object]:
        """As the owner, before the server starts: the settings that say where it listens, and what it asks then.
        `port`: the one that somebody asked for; None: as before."""
        self._make_folder()
        if port is not None and self.port != str(port):
            self._home.write("password", f"{secrets.token_hex(32)}\n")
            self._home.write("port", f"{port}\n")
        settings: dict[str, object] = {"unixsocket": self.path}
        if password := self.password:
            settings |= {"port": self.port, "bind": "127.0.0.1", "requirepass": password}
        return settings

    def forget_port(self) -> None:
        """The next server has none, unless somebody asks for it."""
        self._home.remove("port")
        self._home.remove("password")

    def _make_folder(self) -> None:
        if (folder := self.path.parent) != self._home.path:
            with contextlib.suppress(OSError):
                folder.mkdir(mode=0o700, exist_ok=True)
                if not_ours(folder) is None:
                    return  # that of the servers before: its path is in the environment of many processes
        elif len(os.fsencode(self.path)) <= _SOCKET_PATH_BYTES:
            return
        self._home.write("socket", tempfile.mkdtemp(prefix="sagastream-"))
        if len(os.fsencode(self.path)) > _SOCKET_PATH_BYTES:
            raise BrokerError(f"{self.path} is too long for a socket: set TMPDIR to a folder with a short path")

    def remove_folder(self) -> None:
        """As the last user, who keeps others out meanwhile."""
        if self.path.parent != self._home.path:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)  # a server that was killed leaves it
                self.path.parent.rmdir()

    def ping(self, silent_s: float) -> bytes:
        """What the server answers to a PING; nothing if it is away. Raises BrokerError if it takes the connection and
        says nothing for so many seconds."""
        try:
            with self._connected(silent_s) as connection:
                if password := self.password:
                    connection.sendall(f"AUTH {password}\r\n".encode())
                    connection.recv(64)
                connection.sendall(b"PING\r\n")
                return connection.recv(64)
        except TimeoutError:
            silent = f"says nothing for {silent_s:g} s: it hangs, or was stopped"
            raise BrokerError(f"the Valkey of {self._home} {silent}; see {self._home / LOG}") from None
        except OSError:
            return b""

    def _connected(self, timeout_s: float) -> socket.socket:
        """A connection to the server. Raises OSError if there is none."""
        path = self.path
        if path.parent != self._home.path and not_ours(path.parent) is not None:
            raise FileNotFoundError(path)  # ours is gone from the temporary folder, and somebody took its name
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
        except BaseException:
            connection.close()
            raise
        return connection

    def signal(self, number: int) -> bool:
        """Send a signal to the process that listens on the socket, which the kernel knows. Whether there is one."""
        with contextlib.suppress(OSError), self._connected(1.0) as connection:
            if (pid := _peer(connection)) > 0:  # 0: it is in another container
                os.kill(pid, number)
                return True
        return False


def _peer(connection: socket.socket) -> int:
    """The process that listens at the other end of a unix socket."""
    if sys.platform == "darwin":
        return int.from_bytes(connection.getsockopt(0, 2, 4), sys.byteorder)  # SOL_LOCAL, LOCAL_PEERPID
    return int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
