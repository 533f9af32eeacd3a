"""The codec that sagastream brings along: AES in the mode SIV (RFC 5297), with keys that have ids.

Needs the extra `sagastream[crypto]`.

SIV is deterministic: equal values in the same place of the same saga, under the same key, become equal bytes. So a saga
that is begun again compares equal, in the orchestrator too, which has no key. That is all that the bytes tell, besides
the length: the place and the saga go into the seal, so values of other places and sagas never look alike. Rejected:
AES-GCM. With a random nonce no two begins compare equal; with one that follows from the value, a single collision in 96
bits would give away the authentication key.
"""

import os
import re
import stat
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Mapping
from typing import Final, Self

from sagastream import files
from sagastream.core.messages import is_id
from sagastream.core.sealing import CodecContext
from sagastream.errors import CannotOpen, PackageMissing, SettingsError

#: The length of a key in bytes: two keys of AES-256.
KEY_BYTES: Final = 64
_LINE: Final = re.compile(r"(\S+)\s+(\S+)")
_ID: Final = "the id of a key must be 1 to 128 characters of A-Z a-z 0-9 . _ : -"
_MISSING: Final = "the package cryptography is missing: pip install cryptography"


class Keyring:
    """A codec with any number of keys to open values, one of which seals."""

    def __init__(self, keys: Mapping[str, bytes], *, seal_with: str | None = None) -> None:
        """
        Args:
            keys: each key by its id, as `new_key` makes it.
            seal_with: the id of the key that seals; by default the first one.

        Raises SettingsError if there is no key, or one cannot be used, or the package `cryptography` is missing; and
        TypeError for an argument of another kind.
        """
        given: object = keys
        if not isinstance(given, Mapping):
            text = f"keys must be a dict of keys by their ids, not {type(given).__name__}"
            raise TypeError(f"{text}; for the keys of a file: Keyring.from_file")
        try:
            from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
            from cryptography.hazmat.primitives.ciphers.aead import AESSIV
        except ImportError:
            raise PackageMissing(_MISSING) from None
        if not keys:
            raise SettingsError("there is no key")
        for key_id, key in keys.items():
            if not is_id(key_id):
                raise SettingsError(f"{_ID}, not {key_id!r:.200}")
            if not isinstance(key, bytes):
                raise TypeError(f"key {key_id} must be bytes, as Keyring.new_key makes them, not {type(key).__name__}")
            if len(key) != KEY_BYTES:
                raise SettingsError(f"key {key_id} has {len(key)} bytes, and must have {KEY_BYTES}")
        self._wrong = InvalidTag
        try:
            self._ciphers = {key_id: AESSIV(key) for key_id, key in keys.items()}
        except UnsupportedAlgorithm:
            raise SettingsError(
                "the OpenSSL of the package cryptography has no AES-SIV: it must be 3.0 or later"
            ) from None
        self._seal_with = next(iter(keys)) if seal_with is None else seal_with
        if self._seal_with not in self._ciphers:
            raise SettingsError(f"there is no key {self._seal_with!r:.200} to seal with")

    @property
    def key(self) -> str:
        """The id of the key that seals."""
        return self._seal_with

    def encode(self, data: bytes, context: CodecContext) -> bytes:
        """Seal a value."""
        return self._ciphers[context.key].encrypt(data, [context.bound_to])

    def decode(self, data: bytes, context: CodecContext) -> bytes:
        """What was sealed. Raises CannotOpen."""
        cipher = self._ciphers.get(context.key)
        if cipher is None:
            raise CannotOpen(f"it is sealed with key {context.key}, which this process does not have; it has {self}")
        try:
            return cipher.decrypt(data, [context.bound_to])
        except self._wrong:
            why = "another key of this id sealed it, or it was moved, or was changed since"
            raise CannotOpen(f"key {context.key} does not open it: {why}") from None

    def __str__(self) -> str:
        return ", ".join(self._ciphers)

    def __repr__(self) -> str:
        """Without the keys."""
        return f"Keyring({self})"

    @staticmethod
    def new_key() -> bytes:
        """A new key."""
        return os.urandom(KEY_BYTES)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """The keys of a file, one a line: its id, a blank, the key in base64. The first one seals. Empty lines, and
        those that begin with #, are passed over.

        Raises SettingsError if it cannot be read, if other users can read it, or if a line is something else.
        """
        keys = _keys_in(_text_of(path), path)
        if not keys:
            raise SettingsError(f"there is no key in {path}: add one: sagastream new-key ID >> {path}")
        try:
            return cls(keys)
        except SettingsError as error:
            raise SettingsError(f"the keys in {path} cannot be used: {error}") from None


def _text_of(path: str | os.PathLike[str]) -> str:
    """What is in a file of keys. Raises SettingsError."""
    try:
        return files.content(path, lambda told: _check(told, path)).decode()
    except IsADirectoryError:
        raise SettingsError(f"cannot read the keys in {path}: it is a directory") from None
    except FileNotFoundError:
        raise SettingsError(f"cannot read the keys in {path}: there is no such file") from None
    except UnicodeDecodeError:
        raise SettingsError(f"cannot read the keys in {path}: it is not text (UTF-8)") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is not a path"
        raise SettingsError(f"cannot read the keys in {path}: {why[0].lower()}{why[1:]}") from None


def _check(told: os.stat_result, path: str | os.PathLike[str]) -> None:
    """Raises SettingsError if others could have written the keys or could read them, or if they are in no file."""
    if stat.S_ISDIR(told.st_mode):
        return  # which is told in other words
    if not stat.S_ISREG(told.st_mode):
        raise SettingsError(f"the keys in {path} are not used: it is not a regular file")
    if told.st_uid not in (0, os.geteuid()):
        text = f"it belongs to another user (uid {told.st_uid}): chown it to the one who runs this"
        raise SettingsError(f"the keys in {path} are not used: {text}")
    if told.st_mode & 0o077:
        text = f"other users may read it (mode {stat.S_IMODE(told.st_mode):04o}): chmod 600 {path}"
        raise SettingsError(f"the keys in {path} are not used: {text}")


def _keys_in(text: str, path: str | os.PathLike[str]) -> dict[str, bytes]:
    """The keys of a text by their ids. Raises SettingsError. No line is quoted: part of a key may be anywhere in it."""
    keys: dict[str, bytes] = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        here = f"line {number} of {path}"
        if (found := _LINE.fullmatch(line)) is None:
            raise SettingsError(f"{here} is not an id, a blank and a key, as sagastream new-key ID prints them")
        if not is_id(found[1]):
            raise SettingsError(f"{here}: {_ID}")
        try:
            key = b64decode(found[2], validate=True)
        except NotBase64:
            raise SettingsError(f"{here}: the key is not base64") from None
        if found[1] in keys:
            raise SettingsError(f"{here}: there is a key {found[1]} above: each id once")
        keys[found[1]] = key
    return keys


def line_of(key_id: str, key: bytes) -> str:
    """A key as a line of such a file. Raises SettingsError if the id cannot be used."""
    if not is_id(key_id):
        raise SettingsError(f"{_ID}, not {key_id!r:.200}")
    return f"{key_id} {b64encode(key).decode()}"
