"""The Pareto figure's panels."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from rsd_fast.evaluate.pareto import draw_pareto
from rsd_fast.evaluate.plots import STYLE
from rsd_fast.evaluate.records import EpisodeRow
from rsd_fast.evaluate.statistics import summarise

DEFAULT = {"draft": "coarse", "granularity": "layer", "keep": "main", "stop": 8, "expected_last": True}
VARIED: list[dict[str, object]] = [
    {},
    {"draft": "regression"},
    {"keep": "draft"},
    {"granularity": "element"},
    {"expected_last": False},
    {"stop": 1},
]


def draw(make_row: Callable[..., EpisodeRow], varied: list[dict[str, object]]) -> tuple[Figure, list[Text]]:
    """The figure, drawn, of one mode of RSD for each of `varied`; and its panels' titles."""
    rows = []
    for number, changed in enumerate(varied):
        settings = {**make_row().settings, "mode": "rsd", "rule": "exact", "theta": 0.9, **DEFAULT, **changed}
        rows.append(make_row(mode=f"rsd:{number}", settings=settings, passes=[1, number + 1]))
    with matplotlib.rc_context(STYLE):
        figure = draw_pareto(summarise(rows, [row.mode for row in rows]), "passes")
        assert figure is not None
        FigureCanvasAgg(figure).draw()
    texts = [child for axis in figure.axes for child in axis.get_children() if isinstance(child, Text)]
    return figure, [text for text in texts if text.get_text()]


def words(title: Text) -> str:
    return " ".join(title.get_text().replace("\u00a0", " ").split())


def test_titles_say_what_panels_have_in_common_and_stay_above_them(make_row: Callable[..., EpisodeRow]) -> None:
    figure, titles = draw(make_row, VARIED)
    assert len(titles) == len(VARIED)
    told = [words(title) for title in titles]
    assert told[0] == "coarse draft, by layer, keeps main's, stop 8, last digit expected"
    assert told[1].startswith("regression draft") and told[4].endswith("argmax") and "stop 1," in told[5]
    boxes = [title.get_window_extent() for title in titles]
    for line in (boxes[:3], boxes[3:]):
        assert all(left.x1 < right.x0 for left, right in pairwise(line))
        assert line[-1].x1 <= figure.bbox.x1


def test_a_setting_that_a_record_does_not_have_is_a_panel_of_its_own(make_row: Callable[..., EpisodeRow]) -> None:
    _, titles = draw(make_row, [{"expected_last": value} for value in (True, False, None)])
    assert [words(title) for title in titles] == ["last digit expected", "last digit argmax", "expected last None"]
