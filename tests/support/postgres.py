"""A PostgreSQL server for one run of the tests, on a unix socket. Its data are deleted at the end."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from support.waiting import until

#: Where Debian installs the server, which is not on the path.
_DEBIAN = Path("/usr/lib/postgresql")


def find_binaries() -> Path | None:
    """The folder with `initdb` and `postgres`; None: they are not installed."""
    on_path = shutil.which("postgres")
    folders = [Path(on_path).resolve().parent] if on_path else sorted(_DEBIAN.glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@dataclass
class Postgres:
    """One server. Tests create their own databases on it."""

    binaries: Path
    process: "subprocess.Popen[bytes] | None" = None
    _numbers: Any = field(default_factory=count)

    @cached_property
    def folder(self) -> Path:
        """Its path is short, because of the socket. It belongs to the server, which does not run as root."""
        folder = Path(tempfile.mkdtemp(prefix="sgs-pg-"))
        if self._as:
            os.chown(folder, self._as["user"], self._as["group"])
        return folder

    @cached_property
    def _as(self) -> dict[str, Any]:
        """The user that runs the server, if that is not the user that runs the tests."""
        if os.geteuid() != 0:
            return {}
        names = {user.pw_name for user in pwd.getpwall()}
        user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def _command(self, name: str, *arguments: str) -> list[str]:
        return [str(self.binaries / name), "-D", str(self.folder / "data"), *arguments]

    def start(self) -> None:
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "cwd": self.folder} | self._as
        options = ["--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"]
        subprocess.run(self._command("initdb", *options), check=True, **quiet)
        # Only processes are killed here, never the machine: so what was committed is there.
        settings = ("fsync=off", "max_connections=60", "shared_buffers=16MB", "listen_addresses=")
        options = [word for setting in settings for word in ("-c", setting)]
        command = self._command("postgres", "-k", str(self.folder), *options)
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **quiet)
        until(self._answers, what="PostgreSQL answers")

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.dsn("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True

    def dsn(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def new_database(self) -> str:
        """The dsn of a database of its own, empty."""
        name = f"test{next(self._numbers)}"
        with closing(psycopg.connect(self.dsn("postgres"), autocommit=True)) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.dsn(name)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)  # it does not wait for open transactions
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGQUIT)
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
