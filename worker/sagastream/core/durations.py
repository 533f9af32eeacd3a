"""Durations and days as people read and write them."""

import re
from typing import Final

#: The longest duration that somebody may write, in milliseconds: that is longer than since 1970.
MOST_MS: Final = 10**14
_UNITS: Final = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_WRITTEN: Final = re.compile("".join(f"(?:([0-9]{{1,40}}){unit})?" for unit in _UNITS))


def written(text: str) -> int:
    """A duration as people write it, in milliseconds. Raises ValueError, whose text says what is wrong."""
    found = _WRITTEN.fullmatch(text)
    if not text or found is None:
        raise ValueError(f"{text!a:.40} is not a duration like 500ms, 90s, 30m, 1h, 2d, 1w or 1h30m")
    ms = sum(int(number) * size for number, size in zip(found.groups(), _UNITS.values(), strict=True) if number)
    if ms > MOST_MS:
        raise ValueError(f"{text!a:.40} is too long: at most {MOST_MS // _UNITS['d']}d")
    return ms


def spoken(ms: float) -> str:
    """A duration in the unit that suits it, rounded to the nearest: "4 s", "119 s", "2 m", "24 h", "2 d".

    A negative one counts as none.
    """
    number, unit = round(max(ms, 0) / 1000), "s"
    for larger, seconds, most in (("m", 60, 120), ("h", 3600, 120), ("d", 86400, 48)):
        if number < most:
            break
        number, unit = round(max(ms, 0) / 1000 / seconds), larger
    return f"{number} {unit}"


def exact(ms: int) -> str:
    """A duration in the largest unit in which it is a whole number: "2 d", "90 s", "1500 ms"."""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if ms and ms % size == 0:
            return f"{ms // size} {unit}"
    return f"{ms} ms"


def day(ms: int) -> str:
    """The day in UTC of a time in milliseconds since the epoch: "2026-11-29"."""
    # Years that begin in March have their leap day at the end. In 400 of them there are 146,097 days.
    era, day_of_era = divmod(ms // 86_400_000 + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month = (5 * day_of_year + 2) // 153  # from March, 0
    date = day_of_year - (153 * month + 2) // 5 + 1
    is_next_year = month >= 10
    return f"{400 * era + year_of_era + is_next_year:04}-{month - 9 if is_next_year else month + 3:02}-{date:02}"
