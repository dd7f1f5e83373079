"""Counts the values of JSON text without creating them, which takes seconds for millions."""

# More than any request needs. Plain numbers, such as token ids, take less time than strings.
MAX_CONTAINERS, MAX_MEMBERS, MAX_STRINGS, MAX_VALUES = 100_000, 200_000, 1_000_000, 4_000_000


def find_excess(written: str) -> str | None:
    """Say of which values JSON has more than any request needs, how many and the limit, or None.

    Counts them without creating them.
    """
    if _excess(written) is None and written.count('"') <= 2 * MAX_STRINGS:
        return None
    unescaped = written.replace("\\\\", "").replace('\\"', "")
    num_strings = unescaped.count('"') // 2
    if num_strings > MAX_STRINGS:
        return f"{num_strings} strings; the limit is {MAX_STRINGS}"
    return _excess("".join(unescaped.split('"')[::2]))  # what is outside of strings


def _excess(written: str) -> str | None:
    counts = (
        (written.count("[") + written.count("{"), MAX_CONTAINERS, "lists and objects"),
        (written.count(":"), MAX_MEMBERS, "members of objects"),
        (written.count(","), MAX_VALUES, "commas between values"),
    )
    excesses = (f"{num} {kind}; the limit is {limit}" for num, limit, kind in counts if num > limit)
    return next(excesses, None)
