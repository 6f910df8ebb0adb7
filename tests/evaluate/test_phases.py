"""Phases of an episode, from how the hand moved."""

from collections.abc import Callable

import pytest

from rsd_fast.evaluate.phases import phases
from rsd_fast.evaluate.records import EpisodeRow
from rsd_fast.evaluate.statistics import summarise

MakeRow = Callable[..., EpisodeRow]

OPEN, CUBE = 0.078, 0.042  # m between the fingers: nothing, a cube


@pytest.mark.parametrize(
    ("aperture", "height", "told"),
    [
        (  # picks a cube up, carries it, lowers it, lets go and leaves
            [OPEN, OPEN, OPEN, 0.05, CUBE, CUBE, CUBE, CUBE, OPEN, OPEN],
            [0.3, 0.2, 0.05, 0.05, 0.05, 0.2, 0.22, 0.15, 0.08, 0.2],
            "reach reach grasp grasp carry carry place place reach",
        ),
        (  # fingers that start half open and open for the approach do not place anything
            [0.04, OPEN, OPEN, CUBE, CUBE],
            [0.3, 0.2, 0.1, 0.1, 0.3],
            "reach reach grasp carry",
        ),
        (  # two objects
            [OPEN, CUBE, CUBE, OPEN, OPEN, CUBE, CUBE, OPEN],
            [0.1] * 8,
            "grasp carry place reach grasp carry place",
        ),
        ([0.04, 0.0, 0.0, 0.0], [0.3, 0.1, 0.1, 0.1], "grasp carry carry"),  # closes its fingers to push
        ([OPEN, 0.05, CUBE, 0.06, OPEN], [0.1] * 5, "grasp grasp place place"),  # opening takes two chunks
        ([OPEN, OPEN], [0.1, 0.1], "reach"),
    ],
)
def test_phases_follow_the_fingers_and_the_height(
    make_row: MakeRow, aperture: list[float], height: list[float], told: str
) -> None:
    row = make_row(passes=[1] * (len(aperture) - 1), aperture=aperture, height=height)
    assert phases(row) == told.split()


def test_thirds_stand_in_where_the_hand_was_not_recorded(make_row: MakeRow) -> None:
    assert phases(make_row(passes=[1] * 3)) == ["first third", "second third", "last third"]
    cut_by_an_error = make_row(passes=[1] * 3, aperture=[OPEN] * 3, height=[0.1] * 3)
    assert phases(cut_by_an_error)[0] == "first third"
    assert phases(make_row(passes=[])) == []


def test_passes_and_kept_layers_are_told_by_phase(make_row: MakeRow) -> None:
    row = make_row(
        mode="rsd",
        passes=[1, 3, 2, 1],
        accepted_layers=[2.0, 0.5, 1.0, 2.0],
        kept_rates=[[1.0, 1.0], [0.5, 0.0], [0.75, 0.25], [1.0, 1.0]],
        aperture=[OPEN, OPEN, CUBE, CUBE, CUBE],
        height=[0.1] * 5,
    )
    told = summarise([row], ["rsd"]).over_all[0].phases
    assert list(told) == ["reach", "grasp", "carry"]
    assert (told["grasp"].passes, told["grasp"].accepted_layers, told["grasp"].kept_rates) == (3.0, 0.5, [0.5, 0.0])
    assert (told["carry"].chunks, told["carry"].passes, told["carry"].kept_rates) == (2, 1.5, [0.875, 0.625])
