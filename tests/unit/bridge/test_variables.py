"""Which environment variables there are, and what is taken for a misspelling of one."""

import ast
import re
from pathlib import Path

import pytest

from sagastream_bridge.commands.variables import VARIABLES, complaints

ROOT = Path(__file__).resolve().parents[3]


def test_all_variables_are_known() -> None:
    named = set()
    for path in [*(ROOT / "worker").rglob("*.py"), *(ROOT / "bridge").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named |= {node.value} & {*re.findall(r"SAGASTREAM_[A-Z_]+[A-Z]", node.value)}
    assert named == set(VARIABLES)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SAGASTREAM_KEY", "SAGASTREAM_KEYS"),
        ("SAGASTREAM_KEYS_FILE", "SAGASTREAM_KEYS"),
        ("SAGASTREAM_KEYFILE", "SAGASTREAM_KEYS"),
        ("SAGASTREAM_keys", "SAGASTREAM_KEYS"),
        ("sagastream_keys", "SAGASTREAM_KEYS"),
        ("SAGA_STREAM_KEYS", "SAGASTREAM_KEYS"),
        ("SAGESTREAM_KEYS", "SAGASTREAM_KEYS"),
        ("SAGASTREAM_CODECS", "SAGASTREAM_CODEC"),
        ("SAGASTREAM_MAX_MEMORY", "SAGASTREAM_MAXMEMORY"),
        ("SAGASTREAM_RETENTION", "SAGASTREAM_RETENTION_DAYS"),
        ("SAGASTREAM_PARTITION", "SAGASTREAM_PARTITIONS"),
    ],
)
def test_a_name_that_is_nearly_one_of_them_is_told(name: str, meant: str) -> None:
    (told,) = complaints({name: "x", "PATH": "/bin"})
    assert name in told
    assert told.endswith(f"is it a misspelling of {meant}?")


@pytest.mark.parametrize("name", ["SAGASTREAM_SOAK", "SAGASTREAM_OWNER", "SAGA_ID", "REDIS_URL", "SAGE_HOME", "KEYS"])
def test_variables_of_others_are_not_told(name: str) -> None:
    assert list(complaints({name: "x"})) == []


def test_what_is_right_is_not_told() -> None:
    assert list(complaints(dict.fromkeys(VARIABLES, "x"))) == []
