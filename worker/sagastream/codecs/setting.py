"""Which codec a process uses, as its environment says.

    SAGASTREAM_KEYS    a file of keys, see Keyring.from_file
    SAGASTREAM_CODEC   MODULE:NAME of another Codec

A codec that the program itself gives to a client or a service comes first.
"""

import importlib
import os
from typing import Final

from sagastream.codecs.keyring import Keyring
from sagastream.core.sealing import Codec
from sagastream.errors import SettingsError

KEYS_VARIABLE: Final = "SAGASTREAM_KEYS"
CODEC_VARIABLE: Final = "SAGASTREAM_CODEC"


def codec_of(given: Codec | None) -> Codec | None:
    """The codec that was given or, if none was, that of the environment; None: values are neither sealed nor opened.

    Raises SettingsError if the environment names one that cannot be used, and TypeError if what was given is none.
    """
    if given is not None:
        if not isinstance(given, Codec):
            raise TypeError(f"a codec has key, encode and decode, not {given!r:.200}")
        return given
    keys, where = os.environ.get(KEYS_VARIABLE), os.environ.get(CODEC_VARIABLE)
    if (
        empty := next((name for name in (KEYS_VARIABLE, CODEC_VARIABLE) if os.environ.get(name) == ""), None)
    ) is not None:
        # Mostly the variable from which it was set is not set. Then values would stand in the store unsealed.
        raise SettingsError(f"{empty} is empty: set it, or unset it if values are not to be sealed")
    if keys and where:
        raise SettingsError(f"{KEYS_VARIABLE} and {CODEC_VARIABLE} are both set: set one of them")
    if where:
        return _load(where)
    if not keys:
        return None
    try:
        return Keyring.from_file(keys)
    except SettingsError as error:
        raise SettingsError(f"{KEYS_VARIABLE}: {error}") from None


def seals_with(codec: Codec) -> str:
    """With which key a codec seals now, for the log of a process that starts."""
    try:
        return f"seals with key {codec.key}"
    except Exception as error:  # noqa: BLE001 - whatever a codec raises: its keys may be away for a while
        return f"seals with a codec that names no key now ({type(error).__name__})"


def _load(where: str) -> Codec:
    module_name, _, name = where.partition(":")
    if not module_name or not name:
        raise SettingsError(f"{CODEC_VARIABLE} is {where!r}, not MODULE:NAME, like shop.secrets:codec")
    try:
        codec = getattr(importlib.import_module(module_name), name, None)
    except (Exception, SystemExit) as error:
        text = f"{CODEC_VARIABLE}: cannot import {module_name}: {type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            # The module itself is not there. Commands that run services look in their folder, and all others do not:
            # who runs them need not trust that folder.
            text += "; put its folder into PYTHONPATH"
        raise SettingsError(text) from error
    if not isinstance(codec, Codec):
        raise SettingsError(f"{CODEC_VARIABLE}: {name} in {module_name} has no key, encode and decode")
    return codec
