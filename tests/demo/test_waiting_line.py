import threading

import pytest

from meloformer.demo.border import PageError
from meloformer.demo.waiting_line import VisitorGoneError, WaitingLine


def never() -> bool:
    return False


def test_visitors_are_served_one_at_a_time_in_the_order_of_coming() -> None:
    line, served, at_once = WaitingLine(10), [], []
    places = [line.join() for _ in range(6)]

    def visit(number: int) -> None:
        with places[number] as place:
            place.wait(lambda before: None, never)
            at_once.append(number)
            assert len(at_once) == 1
            served.append(number)
            at_once.remove(number)

    threads = [threading.Thread(target=visit, args=(number,)) for number in reversed(range(6))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert served == list(range(6))
    assert len(line) == 0


def test_a_full_line_is_refused_and_takes_one_again_when_one_has_left() -> None:
    line = WaitingLine(1)
    with line.join():
        with line.join():
            with pytest.raises(PageError, match="found 2 before you; allowed: up to 1") as full:
                line.join()
            assert full.value.code == "queue_full"
        with line.join():
            pass


def test_a_visitor_is_told_each_move_once() -> None:
    line, moves = WaitingLine(5), []
    first, second, third = (line.join() for _ in range(3))
    leave = {2: first, 1: second}

    def move(before: int) -> None:
        moves.append(before)
        leave[before].__exit__(None, None, None)

    with third:
        third.wait(move, never)
    assert moves == [2, 1]


def test_who_goes_away_leaves_the_place_to_the_next() -> None:
    line = WaitingLine(5)
    with line.join(), pytest.raises(VisitorGoneError), line.join() as place:
        place.wait(lambda before: None, lambda: True)
    assert len(line) == 0
