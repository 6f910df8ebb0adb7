"""Names of tasks that fit tables and figures."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rsd_fast.evaluate.names import LONGEST, short_tasks

SPATIAL = (
    "pick_up_the_black_bowl_between_the_plate_and_the_ramekin_and_place_it_on_the_plate",
    "pick_up_the_black_bowl_on_the_stove_and_place_it_on_the_plate",
    "pick_up_the_black_bowl_next_to_the_plate_and_place_it_on_the_plate",
)
TEN = (
    "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it",
    "LIVING_ROOM_SCENE2_put_both_the_alphabet_soup_and_the_tomato_sauce_in_the_basket",
    "LIVING_ROOM_SCENE1_put_both_the_alphabet_soup_and_the_cream_cheese_box_in_the_basket",
)


def names(*tasks: str) -> list[str]:
    """Short names of the tasks of one suite."""
    return list(short_tasks([("suite", task) for task in tasks]).values())


def test_what_all_tasks_share_goes() -> None:
    assert names(*SPATIAL) == ["between plate and ramekin", "on stove", "next to plate"]
    assert names("pick_up_the_milk_and_place_it", "pick_up_the_butter_and_place_it") == ["milk", "butter"]


def test_long_names_lose_their_middle_and_their_scene() -> None:
    assert names(*TEN) == [
        "turn on stove and put moka pot on it",
        "put both alphabet soup ... tomato sauce in basket",
        "put both alphabet soup ... cheese box in basket",
    ]


def test_plain_names_stay() -> None:
    assert names("Lift", "PickPlaceCan") == ["Lift", "PickPlaceCan"]
    assert names("open_the_middle_drawer_of_the_cabinet") == ["open middle drawer of cabinet"]


def test_scenes_tell_apart_what_nothing_else_does() -> None:
    same = ("KITCHEN_SCENE1_open_the_drawer", "KITCHEN_SCENE2_open_the_drawer", "STUDY_SCENE1_pick_up_the_book")
    assert names(*same) == ["kitchen 1: open drawer", "kitchen 2: open drawer", "pick up book"]


words = st.lists(st.sampled_from(["the", "bowl", "plate", "on", "put", "a" * 30]), min_size=1, max_size=12)


@given(st.lists(words.map("_".join), min_size=1, max_size=8, unique=True))
def test_names_are_unique_and_as_a_rule_short(tasks: list[str]) -> None:
    short = short_tasks([("suite", task) for task in tasks])
    assert len(set(short.values())) == len(tasks)
    assert all(len(name) <= max(LONGEST + 20, len(task)) for (_, task), name in short.items())
