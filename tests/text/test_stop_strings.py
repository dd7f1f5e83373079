import random

import pytest

from container.text.stop_strings import StopStrings


def check(pieces: list[str], stops: list[str], *, keep: bool = False) -> tuple[str, bool]:
    machine = StopStrings(stops, keep_match=keep)
    text = ""
    for piece in pieces:
        released = machine.add(piece)
        text += released.text
        if released.is_stopped:
            return text, True
    return text + machine.flush(), False


def test_a_stop_inside_a_piece() -> None:
    assert check(["one END two"], ["END"]) == ("one ", True)


def test_a_stop_across_pieces() -> None:
    assert check(["one E", "N", "D two"], ["END"]) == ("one ", True)


def test_the_match_may_be_kept() -> None:
    assert check(["one E", "ND two"], ["END"], keep=True) == ("one END", True)


def test_a_partial_stop_string_is_released() -> None:
    assert check(["E", "N", "O"], ["END"]) == ("ENO", False)


def test_nothing_is_held_back_that_cannot_be_a_stop() -> None:
    machine = StopStrings(["END"], keep_match=False)
    assert machine.add("hello").text == "hello"
    assert machine.add(" EN").text == " "


def test_the_earliest_match_wins_and_then_the_longest() -> None:
    assert check(["a b c"], ["c", "b"]) == ("a ", True)
    assert check(["abc"], ["ab", "abc"], keep=True) == ("abc", True)


def test_an_empty_stop_string_never_matches() -> None:
    assert check(["abc"], [""]) == ("abc", False)


@pytest.mark.parametrize("seed", range(200))
def test_any_chunking_gives_the_same_text(seed: int) -> None:
    rnd = random.Random(seed)
    text = "".join(rnd.choice("ab") for _ in range(60))
    stops = ["".join(rnd.choice("ab") for _ in range(rnd.randint(3, 9))) for _ in range(2)]
    starts = [text.find(stop) for stop in stops if stop in text]
    pieces, rest = [], text
    while rest:
        size = rnd.randint(1, 4)
        pieces.append(rest[:size])
        rest = rest[size:]
    got, is_stopped = check(pieces, stops)
    assert is_stopped == bool(starts)
    if not starts:
        assert got == text
    else:
        assert text.startswith(got)
        # Pieces are short, so a later stop may be complete before an earlier, longer one.
        assert len(got) in {text.find(stop) for stop in stops}
