"""Durations as people read them."""


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
