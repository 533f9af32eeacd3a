"""Counts the effects of a service by a command of the user: from outside, only replies can be seen."""

import os
import subprocess
from typing import Final

from sagastream_bridge.conformance.exchange import Unfit

#: How long the user's command may take, in seconds.
_TIMEOUT_S: Final = 30.0


class Effects:
    """Runs a shell command that prints one whole number: how many effects there are now, of the saga in SAGA_ID or of
    all."""

    def __init__(self, shell_command: str) -> None:
        self._command = shell_command

    def count(self, saga_id: str) -> int:
        """Raises Unfit if the command fails, or prints something else."""
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", self._command],
                env=os.environ | {"SAGA_ID": saga_id},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unfit(f"--effects took longer than {_TIMEOUT_S:g} s") from None
        said = done.stdout.decode(errors="backslashreplace").strip()
        if done.returncode != 0:
            raise Unfit(
                f"--effects {self._command[:200]!a} ended with exit code {done.returncode} and said {said[:80]!a}; "
                "a command that counts ends with 0: add `; true`"
            )
        try:
            return int(said)
        except ValueError:
            raise Unfit(
                f"--effects {self._command[:200]!a} must print one whole number; it printed {said[:80]!a}"
            ) from None
