"""Certificates for tests of TLS, made with openssl: a CA, a server's for 127.0.0.1, a client's."""

import shutil
import subprocess
from pathlib import Path

from support.needs import missing


class Authority:
    """A CA in a folder of its own. `ca`: the file with its certificate."""

    def __init__(self, folder: Path, name: str) -> None:
        if shutil.which("openssl") is None:
            missing("openssl is not on the path: Debian has it in the package openssl")
        self.folder = folder / name
        self.folder.mkdir()
        self.ca = self.folder / "ca.pem"
        self._run(
            "req", "-x509", *_NEW_KEY, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", f"/CN={name}"
        )

    def issue(self, name: str, *, host: str = "IP:127.0.0.1", days: int = 2) -> tuple[Path, Path]:
        """A certificate for a host, and its key. `days`: how long it is valid from now; negative: it has expired."""
        self._run("req", *_NEW_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (self.folder / "extensions").write_text(f"subjectAltName={host}\n")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "extensions")
        self._run("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", "-days", str(days), *signing)
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def lock(self, key: Path, password: str) -> None:
        """Encrypt a key with a password."""
        self._run("pkey", "-in", str(key), "-aes256", "-passout", f"pass:{password}", "-out", "locked")
        (self.folder / "locked").replace(key)

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=120)


#: Keys that are made fast.
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
