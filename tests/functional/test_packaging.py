"""What is installed: the wheel and the sdist of a clone with the leftovers of somebody's work."""

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("worker/sagastream/", "bridge/sagastream_bridge/", "stubs/sagastream_stubs/")
JUNK = (
    "worker/sagastream/scratch.py",
    "worker/sagastream/core/decision.py.orig",
    "worker/sagastream/core/[a-z]* !#1.py",
    "bridge/sagastream_bridge/old/__init__.py",
    "bridge/sagastream_bridge/__pycache__/gone.cpython-311.pyc",
    "stubs/dump.rdb",
    "build/lib/sagastream/gone.py",
)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a clone")
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(ROOT), str(clone))
    return clone


def run(folder: Path, *command: str) -> str:
    # If this runs as a hook of a commit, git's variables point to that commit.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def built(clone: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What the wheel and the sdist hold, by path."""
    out = clone.parent / "out"
    run(clone, sys.executable, "-m", "hatchling", "build", "-d", str(out))
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        installed = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    shipped = {}
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            if file := archive.extractfile(member):
                shipped[member.name.partition("/")[2]] = file.read()
    return installed, shipped


def tracked(clone: Path, *roots: str) -> dict[str, bytes]:
    paths = run(clone, "git", "ls-files", "-z", *roots).split("\0")
    return {path: (clone / path).read_bytes() for path in paths if path}


def test_a_wheel_and_an_sdist_hold_what_git_tracks_and_nothing_else(clone: Path) -> None:
    gone = clone / "worker/sagastream/gone.py"
    gone.write_text('"""A module that the next release has no more."""\n')
    run(clone, "git", "add", "--all")
    installed, shipped = built(clone)
    assert "sagastream/gone.py" in installed
    assert "worker/sagastream/gone.py" in shipped
    run(clone, "git", "rm", "--quiet", "--force", str(gone))
    for name in JUNK:
        path = clone / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("junk")
    installed, shipped = built(clone)
    assert installed == {path.partition("/")[2]: data for path, data in tracked(clone, *PACKAGES).items()}
    assert shipped.pop("PKG-INFO")
    assert shipped == tracked(clone)


def test_what_is_installed_names_its_licence_and_needs_a_server_only_in_the_extra(clone: Path) -> None:
    built(clone)
    (wheel,) = (clone.parent / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
        assert archive.read(name.replace("METADATA", "licenses/LICENSE")) == (clone / "LICENSE").read_bytes()
    assert metadata["License-Expression"] == "MIT"
    servers = [need for need in metadata.get_all("Requires-Dist", []) if need.startswith("valkey")]
    assert servers
    assert all("; extra == " in need for need in servers)
    assert "embedded" in metadata.get_all("Provides-Extra", [])


def test_an_sdist_builds_the_same_wheel(clone: Path) -> None:
    installed, _ = built(clone)
    (sdist,) = (clone.parent / "out").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(clone.parent / "unpacked", filter="data")
    (unpacked,) = (clone.parent / "unpacked").iterdir()
    assert built(unpacked)[0] == installed
