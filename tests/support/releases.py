"""The releases that tests run side by side on one store: this one, the one before it, a stand-in for a newer one."""

import io
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support.needs import missing
from support.processes import SAGASTREAM

ROOT: Final = Path(__file__).parents[2]

#: The release before this one: its commit, and the module of its command line. Move both on with each release.
FORMER_COMMIT: Final = "476c19b"
#: The last one whose workers know graphs, and nothing of indexes and pauses.
WITHOUT_INDEXES: Final = "d239b32"
FORMER_MAIN: Final = "sagastream_bridge.commands.main"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """How the command line of a release is run."""

    name: str
    program: tuple[str, ...]  # the command in place of `sagastream`
    path: tuple[Path, ...] = ()  # the folder of its modules, if it is not the installed release


THIS: Final = Release(name="this", program=(SAGASTREAM,))
NEWER: Final = Release(name="newer", program=(sys.executable, "-m", "support.newer"))


def former_release(folder: Path, commit: str = FORMER_COMMIT) -> Release:
    """The release before this one, or that of another commit, taken from the git history and unpacked into the
    folder."""
    git = ["git", "-C", str(ROOT)]
    command = [*git, "archive", commit, "worker", "bridge", "stubs"]
    try:
        archive = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", b"").decode(errors="replace").strip() or str(error)
        missing(f"the release before this one, {commit}, is not in the history of this checkout: {why}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    path = tuple(folder / name for name in ("worker", "bridge", "stubs"))
    return Release(name="former", program=(sys.executable, "-m", FORMER_MAIN), path=path)
