"""The embedded Valkey of a home folder: one server, shared by all processes that name the same home.

There are three locks. The kernel releases a lock when its holder dies, however it dies:

    users.lock    shared by all processes that use the server; the last one to leave gets it alone, and stops the server
    owner.lock    held by the one process that starts the server, and starts it again when it dies
    server.lock   held by the server itself

So there is never a second server on the same data, and a crash leaves nothing to clean up by hand. If the owner is
gone, another user becomes the owner. No process is ended because its number stands in a file.

The server is reached by its socket, which is for its user alone, as the home is; see home.py and endpoint.py.

A process leaves when it says so, when nothing refers to the server any more, or when the interpreter ends: a client
that was made at import is closed by nobody. Only a process that is killed, or calls os._exit, does not leave.
"""

import atexit
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
import weakref
from pathlib import Path
from typing import Final

from sagastream.broker import server_log
from sagastream.broker.endpoint import SILENT_S, Endpoint
from sagastream.broker.home import Home, try_lock, try_share, unlock
from sagastream.broker.launch import launch
from sagastream.broker.server_log import LOG
from sagastream.errors import BrokerError

#: How long a start may take, in seconds: the server may have to read a large append-only file.
START_TIMEOUT_S: Final = 60.0
#: How long a stopping server may take to write its data before it is killed, in seconds.
STOP_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.01
#: The server is not started with less room on its disk, in bytes: it stops at the first write for which there is none.
_ROOM_BYTES: Final = 1 << 20
#: Servers that this process started. They may go on without it, and Python warns of a child that nobody refers to; also
#: if it is found together with the one that would end it, as garbage.
_CHILDREN: Final[set["subprocess.Popen[bytes]"]] = set()
#: Those that this process uses.
_USED: Final["weakref.WeakSet[EmbeddedServer]"] = weakref.WeakSet()


class EmbeddedServer:
    """The server of one home. `owned`: this process has to start it again when it dies."""

    def __init__(self, home: Path, *, port: int | None = None) -> None:
        """`port`: let the server also listen at this port of 127.0.0.1."""
        self.home = Home(home)
        self.endpoint = Endpoint(self.home)
        self._asked_port = port
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
    def has_data(self) -> bool:
        """Whether a server has kept data in this home."""
        return self.home.is_there and (self.home / "appendonlydir").is_dir()

    @property
    def is_running(self) -> bool:
        """Whether the server runs, whoever uses it."""
        if not self.home.is_there or not (self.home / "server.lock").exists():
            return False
        if (fd := self.home.lock("server.lock")) is None:
            return True
        unlock(fd)
        return False

    def ensure(self, patience_s: float = START_TIMEOUT_S) -> None:
        """Make sure that the server answers: find it, become its owner, or start it. Safe to call at any time.

        Also returns if the server still loads its data after `patience_s`: it will answer. Raises BrokerError, with the
        last line of the server's log if it has stopped; also if its disk is full, or the server hangs.
        """
        self.home.make()
        deadline = time.monotonic() + patience_s
        if self._users_fd is None:
            self._users_fd = self._become_user(deadline)
            _USED.add(self)
        while not (answer := self.endpoint.ping(min(SILENT_S, patience_s))).startswith(b"+PONG"):
            loading = answer.startswith(b"-LOADING")
            if not loading and self._take_ownership():
                self._start()
            elif not answer and not self.is_running and (full := self.full_disk()) is not None:
                raise BrokerError(full)  # its owner waits for room
            if time.monotonic() > deadline:
                if loading:
                    break
                raise BrokerError(f"the Valkey of {self.home} does not answer; see {self.home / LOG}")
            time.sleep(_POLL_S)
        self._has_answered = True
        self._take_ownership()
        if self._asked_port is not None and (port := self.endpoint.port) != str(self._asked_port):
            at = f"at port {port}" if port else "without a port"
            raise BrokerError(f"the Valkey of {self.home} runs {at}: end those who use it first, then ask for a port")

    def leave(self) -> None:
        """Use the server no more. The last user to leave stops it."""
        if self._users_fd is None:
            return
        if self._owner_fd is not None:
            unlock(self._owner_fd)
        if self._becomes_alone(self._users_fd):
            with contextlib.suppress(BrokerError, OSError):  # the home is not ours any more: who reads this was told
                self._stop()
                self.endpoint.remove_folder()
        unlock(self._users_fd)
        self._owner_fd = self._users_fd = self._process = None
        _USED.discard(self)

    def erase(self) -> None:
        """Stop the server and delete its data. Raises BrokerError if other processes use it."""
        self.home.make()
        fd = self.home.open("users.lock", os.O_RDWR | os.O_CREAT)
        try:
            if not self._becomes_alone(fd):
                raise BrokerError(
                    f"the Valkey of {self.home} is in use: wait until those who use it have ended, or set "
                    "SAGASTREAM_HOME to another folder"
                )
            self._stop()
            shutil.rmtree(self.home / "appendonlydir", ignore_errors=True)
        finally:
            unlock(fd)

    def forget(self) -> None:
        """In a forked child: it is not a user of the server, and must not keep our locks."""
        for fd in (self._users_fd, self._owner_fd):
            if fd is not None:
                os.close(fd)
        self._owner_fd = self._users_fd = self._process = None

    def _becomes_alone(self, users_fd: int) -> bool:
        """Whether nobody else uses the server, and nobody will until `users_fd` is closed."""
        fcntl.flock(users_fd, fcntl.LOCK_UN)  # of two that ask for the whole and keep their shares, neither gets it
        return try_lock(users_fd)

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
        _CHILDREN.discard(self._process)

    def _become_user(self, deadline: float) -> int:
        """A descriptor that holds a share of the lock of all users. Waits for a process that is just stopping the
        server."""
        fd = self.home.open("users.lock", os.O_RDWR | os.O_CREAT)
        if try_lock(fd) and not self.is_running:  # a port was asked for by those before us
            self.endpoint.forget_port()
        while not try_share(fd):
            if time.monotonic() > deadline:
                os.close(fd)
                raise BrokerError(f"another process is stopping the Valkey of {self.home}, and does not end")
            time.sleep(_POLL_S)
        return fd

    def _take_ownership(self) -> bool:
        if self._owner_fd is None:
            self._owner_fd = self.home.lock("owner.lock")
        return self._owner_fd is not None

    def _start(self) -> None:
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return  # still coming up
            _CHILDREN.discard(self._process)
            self._process = None
            if not self._has_answered and self._is_plain:
                raise BrokerError(
                    f"the embedded Valkey stopped with exit code {code}: {server_log.last_words(self.home)}"
                )
            self._is_plain = not self._has_answered  # the jemalloc that was found may not run on this machine
        life_fd = self.home.lock("server.lock")
        if life_fd is None:
            return  # the server of an earlier owner lives, but does not answer
        try:
            fault = server_log.fault(self.home, is_running=False)
            if self._has_answered:
                self.died_with = fault
            if (full := self._full_disk(fault)) is not None:
                raise BrokerError(full)
            self._has_answered = False
            self.home.check_data("appendonlydir")
            self.home.remove("valkey.pid")  # of a server that was killed
            settings = self.endpoint.prepare(self._asked_port)
            self._process = launch(self.home, settings, life_fd, plain=self._is_plain)
            _CHILDREN.add(self._process)
        finally:
            os.close(life_fd)

    def full_disk(self) -> str | None:
        """That there is no room on the disk of the server; None: there is."""
        return self._full_disk(self.last_fault())

    def last_fault(self) -> str | None:
        """The last words of the server that ran last, or before the one that runs now, if it did not end in order."""
        return server_log.fault(self.home, is_running=self.is_running)

    def _full_disk(self, words: str | None) -> str | None:
        with contextlib.suppress(OSError):
            found = os.statvfs(self.home.path)
            if (free := found.f_bavail * found.f_frsize) < _ROOM_BYTES:
                said = f"; the Valkey stopped with the words: {words}" if words else ""
                return f"the disk of {self.home} is full ({free // 1024} KiB are free){said}; make room"
        return None

    def _stop_adopted(self) -> None:
        """Stop a server that an earlier owner started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + STOP_TIMEOUT_S
            asked = False
            while (fd := self.home.lock("server.lock")) is None and time.monotonic() < deadline:
                asked = asked or self.endpoint.signal(number)
                time.sleep(_POLL_S)
            if fd is not None:
                unlock(fd)
                return


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
