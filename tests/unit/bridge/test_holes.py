"""Which releases of servers have known holes."""

import pytest

from sagastream_bridge.inspection.holes import _HOLES, holes


@pytest.mark.parametrize(
    ("kind", "version", "names", "take"),
    [
        ("Redis", "7.0.15", ["CVE-2025-49844", "CVE-2026-81934"], "7.2.16"),
        ("Redis", "7.2.10", ["CVE-2025-49844", "CVE-2026-23479", "CVE-2026-81934"], "7.2.16"),
        ("Redis", "7.4.9", ["CVE-2026-81934"], "7.4.11"),
        ("Redis", "8.0.4", ["CVE-2026-23479", "CVE-2026-81934"], "8.2.9"),
        ("Redis", "8.8.0", ["CVE-2026-81934"], "8.8.2"),
        ("Valkey", "8.0.5", ["CVE-2025-49844", "CVE-2025-67733", "CVE-2026-23479", "CVE-2026-56684"], "8.0.10"),
        ("Valkey", "8.1.6", ["CVE-2026-23479", "CVE-2026-56684"], "8.1.9"),
        ("Valkey", "9.0.0", ["CVE-2025-67733", "CVE-2026-23479", "CVE-2026-56684"], "9.0.5"),
        ("Valkey", "9.1.0", ["CVE-2026-56684"], "9.1.1"),
    ],
)
def test_a_release_with_holes_is_named_with_the_one_to_take(
    kind: str, version: str, names: list[str], take: str
) -> None:
    said = holes(kind, version)
    assert said is not None
    assert [hole.name for hole in _HOLES if hole.name in said] == names
    assert f": take {take}, or" in said
    assert holes(kind, take) is None


@pytest.mark.parametrize(
    ("kind", "version"),
    [("Redis", "8.10.1"), ("Redis", "8.12.0"), ("Redis", "7.2.16"), ("Valkey", "9.1.2"), ("Valkey", "10.0.0"),
     ("Valkey", "255.255.255"), ("Redis", "unstable"), ("Redis", ""), ("Other", "1.0")],
)  # fmt: skip
def test_of_any_other_nothing_is_said(kind: str, version: str) -> None:
    assert holes(kind, version) is None
