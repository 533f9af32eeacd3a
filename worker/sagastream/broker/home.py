"""The home: the folder of an embedded server and of the processes that share it.

Whoever can write into a home decides what the server loads and what our processes read. So a home is used only if no
other user can write into it, or put another folder in its place.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shlex
import stat
from pathlib import Path
from typing import Final

from sagastream.errors import BrokerError

#: The environment variable that names the home.
HOME_VARIABLE: Final = "SAGASTREAM_HOME"


class Home:
    """A home, which need not be there yet. Raises BrokerError if it is there, and not safe."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def make(self) -> None:
        """Make it if it is not there, for us alone."""
        try:
            if not os.path.lexists(self.path):
                for folder in [*reversed(self.path.parents), self.path]:
                    if not folder.exists():
                        folder.mkdir(mode=0o700, exist_ok=True)
                self.check()
                self.write(".gitignore", "*\n")
        except OSError as error:
            raise BrokerError(self._unusable(error)) from None
        self.check()

    @property
    def is_there(self) -> bool:
        """Whether it is there; if so, it is safe."""
        if not os.path.lexists(self.path):
            return False
        self.check()
        return True

    def check(self) -> None:
        """Check that no other user can write into it, or put another folder in its place."""
        try:
            fault = not_ours(self.path) or _movable(self.path)
        except OSError as error:
            raise BrokerError(self._unusable(error)) from None
        if fault is not None:
            raise BrokerError(f"{self} is not used as {HOME_VARIABLE}: {fault}")

    def _unusable(self, error: OSError) -> str:
        return f"cannot use {self} as {HOME_VARIABLE}: {error.strerror}; set it to a folder of your own"

    def check_data(self, name: str) -> None:
        """Check that a folder of data in it holds plain files: the server would write to wherever a link points."""
        folder = self.path / name
        if not os.path.lexists(folder):
            return
        files = [] if folder.is_symlink() else list(os.scandir(folder))
        if folder.is_symlink() or not all(file.is_file(follow_symlinks=False) for file in files):
            raise BrokerError(f"{folder} is not a folder that sagastream made: there is a symbolic link in it")

    def open(self, name: str, flags: int) -> int:
        """A descriptor of one of its files; see `open_private`."""
        return open_private(self.path / name, flags)

    def read(self, name: str) -> str | None:
        """What one of its files says, in one line; None: there is no such file."""
        with contextlib.suppress(FileNotFoundError), os.fdopen(self.open(name, os.O_RDONLY), "rb") as file:
            return file.read(4096).decode(errors="replace").strip()
        return None

    def write(self, name: str, text: str) -> None:
        """Write one of its files, all of it at once. What had its name before, also a link, is replaced."""
        draft = self.path / f".{name}-{secrets.token_hex(4)}"
        with os.fdopen(open_private(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as file:
            file.write(text)
        draft.replace(self.path / name)

    def remove(self, name: str) -> None:
        """Remove one of its files, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def lock(self, name: str) -> int | None:
        """A descriptor that holds the lock on this file; None: another process holds it."""
        fd = self.open(name, os.O_RDWR | os.O_CREAT)
        if try_lock(fd):
            return fd
        os.close(fd)
        return None


def open_private(path: Path, flags: int) -> int:
    """A descriptor of a file that is ours alone. Follows no link. Raises BrokerError if it is no such file."""
    # A pipe without a reader would hold up whoever opens it.
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise
        raise BrokerError(f"{path} is not a file that sagastream made; remove it") from None
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink > 1:
        os.close(fd)
        raise BrokerError(f"{path} is not a file that sagastream made; remove it")
    return fd


def not_ours(folder: Path) -> str | None:
    """Why a folder is not ours alone; None: it is."""
    found = folder.lstat()
    if stat.S_ISLNK(found.st_mode):
        return "it is a symbolic link; name the folder itself"
    if not stat.S_ISDIR(found.st_mode):
        return "it is not a folder"
    if found.st_uid != os.geteuid():
        return f"it belongs to another user, {found.st_uid}; name a folder of your own"
    if found.st_mode & 0o077:
        return f"other users may open it; chmod 700 {shlex.quote(str(folder))}"
    return None


def _movable(path: Path) -> str | None:
    """How another user could put another folder in the place of this one; None: not at all."""
    above = [*path.parents, *path.parent.resolve().parents, path.parent.resolve()]
    for folder in dict.fromkeys(above):
        found = folder.lstat()
        if not _trusted(found.st_uid):
            return f"{folder} belongs to another user, {found.st_uid}; name a folder of your own"
        if stat.S_ISLNK(found.st_mode) or found.st_mode & stat.S_ISVTX:
            continue  # in a sticky folder, users can move only what is theirs
        # Many systems give each user a group of their own, which may write to what they make.
        strangers = found.st_mode & 0o002 or (found.st_mode & 0o020 and found.st_gid not in (0, os.getegid()))
        if strangers:
            return f"other users may write to {folder}; name a folder where only you may"
    return None


def _trusted(owner: int) -> bool:
    """Whether a folder above ours may belong to this user: root or us. In a user namespace, as in many containers, root
    of the machine looks like the user that stands for all those who have no number there."""
    if owner in (0, os.geteuid()):
        return True
    with contextlib.suppress(OSError, ValueError):
        all_users = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
        return not all_users and owner == int(Path("/proc/sys/kernel/overflowuid").read_text())
    return False


def try_lock(fd: int) -> bool:
    """Take the lock on a file, unless another process has it."""
    return _flock(fd, fcntl.LOCK_EX)


def try_share(fd: int) -> bool:
    """Take a share of the lock on a file, unless another process has it alone."""
    return _flock(fd, fcntl.LOCK_SH)


def _flock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(fd: int) -> None:
    """Release a lock, and close its file. Closing alone would leave the lock to a child that was forked meanwhile."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
