"""Keeps what git does not track out of the wheel and the sdist: a scratch file in a package is not part of it."""

import re
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TrackedFilesOnly(BuildHookInterface):  # type: ignore[type-arg]
    """Takes only files that git tracks. Without git, as in an unpacked sdist, all files are tracked ones."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        if version == "editable":  # the folders themselves are installed
            return
        left_out = _untracked(Path(self.root))
        self.build_config.target_config.setdefault("exclude", []).extend(map(_pattern, left_out))
        for path in left_out:
            if path.endswith(".py"):
                self.app.display_warning(f"{path} is left out, because git does not track it")


def _untracked(root: Path) -> list[str]:
    """The files and folders that git neither tracks nor ignores. Ignored files are left out by hatchling itself."""
    if not (root / ".git").exists():  # a work tree around this folder, if there is one, belongs to another project
        return []
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--others", "--exclude-standard"], cwd=root, capture_output=True, check=False
    )
    return [] if listed.returncode else [path for path in listed.stdout.decode().split("\0") if path]


def _pattern(path: str) -> str:
    """A pattern in the language of .gitignore that matches exactly this path."""
    return "/" + re.sub(r"([\\*?\[\]! ])", r"\\\1", path)
