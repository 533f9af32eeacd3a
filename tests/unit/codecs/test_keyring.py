"""The keyring: what a file of keys may say, and that nothing opens which was not sealed so."""

import os
from pathlib import Path
from typing import Any

import pytest

from sagastream.codecs.keyring import Keyring, line_of
from sagastream.codecs.setting import codec_of
from sagastream.core.sealing import Codec, CodecContext
from sagastream.errors import CannotOpen, SettingsError

A, B = Keyring.new_key(), Keyring.new_key()
CONTEXT = CodecContext(saga_id="s", step=1, field="params", key="a")


def written(path: Path, *lines: str, mode: int = 0o600) -> Path:
    file = path / "keys"
    file.write_text("\n".join(lines) + "\n")
    file.chmod(mode)
    return file


def test_the_first_key_of_a_file_seals_and_all_open(tmp_path: Path) -> None:
    file = written(tmp_path, "# the keys of the shop", "", line_of("b", B), line_of("a", A))
    ring = Keyring.from_file(file)
    assert ring.key == "b"
    for key in ("a", "b"):
        context = CodecContext(saga_id="s", step=1, field="params", key=key)
        assert ring.decode(Keyring({"a": A, "b": B}).encode(b"{}", context), context) == b"{}"


def test_a_keyring_does_not_show_its_keys() -> None:
    assert repr(Keyring({"a": A, "b": B})) == "Keyring(a, b)"


@pytest.mark.parametrize(
    ("lines", "mode", "why"),
    [
        ([line_of("a", A)], 0o640, "other users may read it .mode 0640.: chmod 600"),
        ([line_of("a", A)], 0o604, "other users may read it"),
        (["a"], 0o600, "line 1 of .* is not an id, a blank and a key"),
        ([line_of("a", A), line_of("a", B)], 0o600, "line 2 of .* each id once"),
        (["a not-base64!"], 0o600, "line 1 of .* the key is not base64"),
        ([line_of("a", A[:32])], 0o600, "key a has 32 bytes, and must have 64"),
        (["# nothing"], 0o600, "there is no key"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, lines: list[str], mode: int, why: str) -> None:
    with pytest.raises(SettingsError, match=why) as error:
        Keyring.from_file(written(tmp_path, *lines, mode=mode))
    assert "\n" not in str(error.value)
    for key in (A, B):
        assert line_of("a", key)[2:40] not in str(error.value)


def test_what_an_error_says_of_a_file_has_no_part_of_a_key(tmp_path: Path) -> None:
    turned = " ".join(reversed(line_of("abcd", A).split()))  # base64 has characters that no id has
    with pytest.raises(SettingsError, match=r"line 1 of .*: the id of a key must be 1 to 128 characters") as error:
        Keyring.from_file(written(tmp_path, turned))
    assert turned[:8] not in str(error.value)


def test_a_file_of_keys_says_what_is_wrong_in_plain_words(tmp_path: Path) -> None:
    for path, why in (
        (tmp_path / "none", "there is no such file"),
        (tmp_path, "it is a directory"),
        (tmp_path / "a\0b", "it is not a path"),
        (Path("/dev/null"), "it is a device, not a file"),
        (written(tmp_path, "# nothing"), f"add one: sagastream new-key ID >> {tmp_path / 'keys'}"),
    ):
        with pytest.raises(SettingsError) as error:
            Keyring.from_file(path)
        assert why in str(error.value)
        assert "Errno" not in str(error.value)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "bytes").chmod(0o600)
    with pytest.raises(SettingsError, match="it is not text"):
        Keyring.from_file(tmp_path / "bytes")


def test_a_pipe_is_no_file_of_keys_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(SettingsError, match="it is not a regular file"):
        Keyring.from_file(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ("keys", "keys must be a dict .*Keyring.from_file"),
        (None, "keys must be a dict"),
        ({"a": "abc"}, "key a must be"),
    ],
    ids=str,
)
def test_a_keyring_refuses_what_are_no_keys(keys: Any, why: str) -> None:
    with pytest.raises(TypeError, match=why):
        Keyring(keys)


def test_a_file_that_is_not_there_or_not_a_file_says_why(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read the keys"):
        Keyring.from_file(tmp_path / "none")
    with pytest.raises(SettingsError):
        Keyring.from_file(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"saga_id": "t"}, {"step": 2}, {"field": "result"}, {"saga_id": "s/1", "step": 1}, {"key": "b"}, {"key": "c"}],
    ids=str,
)
def test_nothing_opens_with_another_context(changes: dict[str, Any]) -> None:
    ring = Keyring({"a": A, "b": B})
    sealed = ring.encode(b'"x"', CONTEXT)
    members = {name: getattr(CONTEXT, name) for name in CONTEXT.__struct_fields__}
    with pytest.raises(CannotOpen):
        ring.decode(sealed, CodecContext(**(members | changes)))
    assert ring.decode(sealed, CONTEXT) == b'"x"'


def test_no_changed_byte_opens() -> None:
    ring = Keyring({"a": A})
    sealed = ring.encode(b'"x"', CONTEXT)
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(CannotOpen):
            ring.decode(bytes(changed), CONTEXT)
    for short in (b"", sealed[:10], sealed[:-1]):
        with pytest.raises((CannotOpen, ValueError)):
            ring.decode(short, CONTEXT)


def test_the_environment_names_the_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert codec_of(None) is None
    monkeypatch.setenv("SAGASTREAM_KEYS", str(written(tmp_path, line_of("a", A))))
    assert isinstance(codec_of(None), Codec)
    given = Keyring({"b": B})
    assert codec_of(given) is given
    monkeypatch.setenv("SAGASTREAM_KEYS", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match=r"SAGASTREAM_KEYS: cannot read the keys in .*none: there is no such file"):
        codec_of(None)
    monkeypatch.setenv("SAGASTREAM_CODEC", "shop.secrets:codec")
    with pytest.raises(SettingsError, match="both set"):
        codec_of(None)
    monkeypatch.delenv("SAGASTREAM_KEYS")
    with pytest.raises(SettingsError, match=r"cannot import shop.*; put its folder into PYTHONPATH$"):
        codec_of(None)
    (tmp_path / "needs_more.py").write_text("import nowhere_to_be_found")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SAGASTREAM_CODEC", "needs_more:codec")
    with pytest.raises(SettingsError, match=r"cannot import needs_more: .*No module named 'nowhere_to_be_found'$"):
        codec_of(None)
    for where in ("shop", "json:nothing", "json:loads"):
        monkeypatch.setenv("SAGASTREAM_CODEC", where)
        with pytest.raises(SettingsError):
            codec_of(None)
    with pytest.raises(TypeError):
        codec_of(object())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["SAGASTREAM_KEYS", "SAGASTREAM_CODEC"])
def test_a_variable_that_is_set_to_nothing_does_not_switch_sealing_off(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "")
    with pytest.raises(SettingsError, match=f"{name} is empty: set it, or unset it"):
        codec_of(None)
    given = Keyring({"b": B})
    assert codec_of(given) is given
