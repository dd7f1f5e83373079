"""Counts the values of JSON text without creating them, which takes seconds for millions."""

# More than any request needs: lists and objects, members of objects, and values.
MAX_CONTAINERS, MAX_MEMBERS, MAX_VALUES = 100_000, 200_000, 1_000_000


def has_too_many_values(written: str) -> bool:
    """Whether JSON has more lists, objects, members or values than any request needs.

    Counts them without creating them.
    """
    if _has_few_values(written):
        return False
    unescaped = written.replace("\\\\", "").replace('\\"', "")
    if unescaped.count('"') > 2 * MAX_VALUES:
        return True
    return not _has_few_values("".join(unescaped.split('"')[::2]))  # what is outside of strings


def _has_few_values(written: str) -> bool:
    num_containers = written.count("[") + written.count("{")
    return (
        num_containers <= MAX_CONTAINERS
        and written.count(":") <= MAX_MEMBERS
        and written.count(",") <= MAX_VALUES
    )
