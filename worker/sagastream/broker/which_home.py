"""Which folder is the home: the one that the environment names, or that of the current folder.

The latter is in the state folder of the user. It is not in the current folder: that may come from somebody else.
"""

import contextlib
import hashlib
import os
import re
import shlex
import socket
import stat
from pathlib import Path
from typing import Final

from sagastream.broker.home import HOME_VARIABLE, Home
from sagastream.errors import BrokerError
from sagastream.telemetry import Log

#: Where the home was in the past, below the current folder. It is not used any more.
_FORMER: Final = ".sagastream"
#: Why.
_FORMER_IS_OPEN: Final = "whoever gives you this folder may have put it there"
#: How much of the name of a folder or of a machine is seen in the path of its home. The path of a socket is short.
_SEEN: Final = 12
_log: Final = Log("broker", "broker")


def chosen(*, create: bool) -> Path:
    """The home that the environment names, or that of the current folder. If that is made now, this tells of a store
    where the home was in the past."""
    if (named := named_home()) is not None:
        return named
    home = default_home()
    if create and not home.exists() and (former := _former_home()) is not None:
        _log.warning(f"{former} is not used, since {_FORMER_IS_OPEN}; if it is yours, set {HOME_VARIABLE}={former}")
    return home


def named_home() -> Path | None:
    """The home that the environment names."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named) if named else None


def default_home() -> Path:
    """The home for the current folder: in the state folder of this user, by machine and folder. Raises BrokerError if
    there is no such folder."""
    return home_of(*_here_and_state())


def _home_above() -> tuple[Path, Path] | None:
    """The nearest folder above the current one in which sagastream has run, and its home; None: there is none. Raises
    BrokerError as `default_home` does."""
    here, state = _here_and_state()
    homes = ((folder, home_of(folder, state)) for folder in here.parents)
    return next(((folder, home) for folder, home in homes if os.path.lexists(home / "appendonlydir")), None)


def _here_and_state() -> tuple[Path, Path]:
    """The current folder, and the state folder of this user."""
    try:
        here = Path.cwd()
        state = Path(os.environ.get("XDG_STATE_HOME") or "")
        if not state.is_absolute():
            state = Path.home() / ".local" / "state"
    except OSError as error:
        raise BrokerError(f"the current folder cannot be read: {error.strerror}; set {HOME_VARIABLE}") from None
    except RuntimeError:  # there is neither HOME nor an entry for this user
        raise BrokerError(f"it is not known where your home folder is; set {HOME_VARIABLE} or HOME") from None
    return here, state


def home_of(folder: Path, state: Path) -> Path:
    """The home for work in a folder, on this machine. `state`: the state folder of this user."""
    # The whole path counts, and a shorter hash of it could be met on purpose by a folder that is named for it.
    unique = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return state / "sagastream" / (_slug(socket.gethostname()) or "here") / f"{_slug(folder.name) or 'root'}-{unique}"


def _former_home() -> Path | None:
    """A folder in which the home was in the past, with a store in it. It is not used."""
    with contextlib.suppress(OSError):
        former = Path.cwd() / _FORMER
        if stat.S_ISDIR(former.lstat().st_mode) and os.path.lexists(former / "appendonlydir"):
            return former
    return None


def _move(former: Path, home: Path) -> str:
    """The line that moves a home to where it is looked for."""
    return f"mkdir -p {shlex.quote(str(home.parent))} && mv {shlex.quote(str(former))} {shlex.quote(str(home))}"


def above(home: Home) -> tuple[Path, Path] | None:
    """The folder above the current one that has a home, and that home; None: there is none, or this home is not that of
    the current folder."""
    with contextlib.suppress(BrokerError):  # the current folder cannot be read, so this home is not its own
        if home.path == default_home():
            return _home_above()
    return None


def no_store(home: Home) -> str:
    """That there is no store in this home, and what to do."""
    where = "the folder in which sagastream runs"
    if (other := above(home)) is not None:
        where += f" (there is a store for {other[0]})"
    text = f"there is no store in {home}: go to {where}, or set {HOME_VARIABLE} or REDIS_URL"
    if named_home() is None and (former := _former_home()) is not None:
        text += f"; {former} is not used, since {_FORMER_IS_OPEN}; if it is yours: {_move(former, home.path)}"
    return text


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:_SEEN].strip("-")
