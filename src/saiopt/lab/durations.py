"""How times are written."""


def duration(seconds: float) -> str:
    """Write seconds in the unit that suits them.

    >>> duration(9.4), duration(75), duration(7380)
    ('9 s', '1:15 min', '2:03 h')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"


def milliseconds(seconds: float | None) -> str:
    """Write a step's time, nothing where there is none.

    >>> milliseconds(0.01234), milliseconds(None)
    ('12.34', '')
    """
    return "" if seconds is None else f"{1000 * seconds:.2f}"
