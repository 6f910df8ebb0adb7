"""Names of tasks that fit a table and a figure: the words that tell a task from the others of its suite."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

SCENE = re.compile(r"^([A-Z][A-Z_]*)_SCENE(\d+)_")  # of libero_10 and libero_90
ARTICLES = ("the", "a", "an")
LONGEST = 48  # characters


def short_tasks(tasks: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """A short name of every task (suite, name), unique in its suite.

    `pick_up_the_black_bowl_on_the_stove_and_place_it_on_the_plate` among its like becomes `on stove`: what all tasks of
    the suite begin and end with goes, then articles, then the middle of what is still too long. A name without
    underscores stays, and so does one whose short form another task has too, unless their scenes tell them apart.
    """
    suites: dict[str, list[str]] = defaultdict(list)
    for suite, task in tasks:
        suites[suite].append(task)
    return {(suite, task): short for suite, own in suites.items() for task, short in _short(own).items()}


def _short(tasks: Sequence[str]) -> dict[str, str]:
    words = {task: SCENE.sub("", task).split("_") for task in tasks}
    several = [own for own in words.values() if len(own) > 1]
    shared = len(several) > 1 and len(several) == len(words)
    shortest = min(map(len, words.values()))
    head = min(_shared(several), shortest - 1) if shared else 0
    tail = min(_shared([own[::-1] for own in several]), shortest - 1 - head) if shared else 0
    short = {task: _told(own[head : len(own) - tail]) if len(own) > 1 else task for task, own in words.items()}
    counts = Counter(short.values())
    for task, name in short.items():
        if counts[name] > 1 and (scene := SCENE.match(task)):
            short[task] = f"{scene[1].replace('_', ' ').lower()} {scene[2]}: {name}"
    counts = Counter(short.values())
    return {task: name if counts[name] == 1 else task for task, name in short.items()}


def _shared(names: Sequence[Sequence[str]]) -> int:
    """How many words all begin with."""
    return next((n for n, own in enumerate(zip(*names, strict=False)) if len(set(own)) > 1), min(map(len, names)))


def _told(words: Sequence[str]) -> str:
    told = [word for word in words if word not in ARTICLES] or list(words)
    if len(" ".join(told)) <= LONGEST:
        return " ".join(told)
    half = (LONGEST - 4) // 2
    return f"{_first(told, half)} ... {' '.join(_first(told[::-1], half).split(' ')[::-1])}"


def _first(words: Sequence[str], limit: int) -> str:
    """As many of the words as fit; at least one."""
    count = max(n for n in range(1, len(words) + 1) if n == 1 or len(" ".join(words[:n])) <= limit)
    return " ".join(words[:count])
