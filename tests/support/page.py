"""The shell commands of docs/protocol.md, run as they are written there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from support.needs import missing
from support.servers import Server

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def shell(section: str) -> list[str]:
    """The shell scripts below a heading, to the next one."""
    found = re.search(rf"(?:\A|\n)#+ {re.escape(section)}\n(.*?)(?=\n##|\Z)", PAGE, re.DOTALL)
    assert found is not None, section
    scripts = re.findall(r"```(?:ba)?sh\n(.*?)```", found[1], re.DOTALL)
    assert scripts, section
    return scripts


class Shell:
    """A bash in its own folder, whose redis-cli talks to a test's server."""

    def __init__(self, server: Server, folder: Path) -> None:
        redis_cli = shutil.which("redis-cli")
        if redis_cli is None:
            missing("redis-cli is not on the path: Debian has it in the package redis-tools")
        self.folder = folder / "shell"
        self._bin = folder / "bin"
        for made in (self.folder, self._bin):
            made.mkdir()
        wrapper = self._bin / "redis-cli"
        wrapper.write_text(f'#!/bin/sh\nexec {redis_cli} -s {server.url.removeprefix("unix://")} "$@"\n')
        wrapper.chmod(0o755)

    def run(self, script: str) -> str:
        """The output of the script. Fails the test if the script fails."""
        path = f"{self._bin}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=os.environ | {"PATH": path, "HOSTNAME": "here"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout
