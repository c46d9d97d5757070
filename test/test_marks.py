"""Marks as rows, on every database: they move forward, and outlive who set them."""

import threading

from data.database import Engine
from data.marks import Marks


def test_a_mark_that_nobody_has_set_is_none(engine: Engine) -> None:
    assert Marks(engine).find("tags") is None


def test_a_mark_moves_forward_only(engine: Engine) -> None:
    marks = Marks(engine)
    for position in (0, 5, 3, 1 << 40, 7):
        marks.advance("tags", position)
    marks.advance("others", 2)
    assert (Marks(engine).find("tags"), marks.find("others")) == (1 << 40, 2)


def test_of_many_who_move_it_the_furthest_counts(engine: Engine) -> None:
    threads = [threading.Thread(target=Marks(engine).advance, args=("tags", at)) for at in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Marks(engine).find("tags") == 8
