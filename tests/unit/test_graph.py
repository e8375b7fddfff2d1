"""The tree of rounds as `refold log --graph` draws it."""

from refold.cli.graph import graph


def drawn(parents: dict[int, int]) -> list[str]:
    return [f"{line}  {round_}" if round_ is not None else line for line, round_ in graph(parents)]


def test_a_line_of_rounds_is_a_line() -> None:
    assert drawn({1: 0, 2: 1}) == ["*  2", "*  1", "*  0"]


def test_a_branch_that_was_left_stands_beside_and_joins_where_it_began() -> None:
    assert drawn({1: 0, 2: 1, 3: 2, 4: 1, 5: 4}) == ["*  5", "*  4", "| *  3", "| *  2", "|/", "*  1", "*  0"]


def test_two_branches_that_were_left_at_one_round_both_join_it() -> None:
    assert drawn({1: 0, 2: 0, 3: 0}) == ["*  3", "| *  2", "|/", "| *  1", "|/", "*  0"]


def test_a_join_crosses_the_branches_between_and_those_behind_it_move_up() -> None:
    crossing = ["*  4", "| *  3", "| | *  2", "|_|/", "* |  1", "|/", "*  0"]
    assert drawn({1: 0, 2: 1, 3: 0, 4: 1}) == crossing
    moving = ["*  4", "| *  3", "| | *  2", "| |/"]
    assert drawn({1: 0, 2: 1, 3: 1, 4: 0})[:4] == moving
