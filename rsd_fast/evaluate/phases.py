"""What the robot was doing in each chunk of an episode, from how its hand moved."""

from __future__ import annotations

from itertools import pairwise

from .records import EpisodeRow

PHASES = ("reach", "grasp", "carry", "place")
THIRDS = ("first third", "second third", "last third")

FINGERS_MOVE = 0.004  # m in a chunk; less is slack and noise
HAND_SINKS = 0.01  # m in a chunk


def phases(row: EpisodeRow) -> list[str]:
    """The phase of every chunk.

    - `grasp`: the fingers close.
    - `carry`: they have closed and stay so, on an object, a handle, or empty to push.
    - `place`: they open again; and the chunks before, in which the hand sank towards that.
    - `reach`: all else.

    Where the record does not say how the hand moved, thirds of the episode stand in: `THIRDS`.
    """
    chunks = len(row.passes)
    if min(len(row.aperture), len(row.height)) <= chunks:
        return [THIRDS[len(THIRDS) * chunk // chunks] for chunk in range(chunks)]
    found: list[str] = []
    for before, after in pairwise(row.aperture[: chunks + 1]):
        held = bool(found) and found[-1] in ("grasp", "carry")
        if before - after > FINGERS_MOVE:
            found.append("grasp")
        elif held and after - before <= FINGERS_MOVE:
            found.append("carry")
        elif after - before > FINGERS_MOVE and (held or found[-1:] == ["place"]):
            found.append("place")
            _mark_descent(found, row.height)
        else:
            found.append("reach")
    return found


def _mark_descent(found: list[str], height: list[float]) -> None:
    """Turns the carrying chunks just before a release, in which the hand sank, into placing ones."""
    for chunk in range(len(found) - 2, -1, -1):
        if found[chunk] != "carry" or height[chunk] - height[chunk + 1] <= HAND_SINKS:
            return
        found[chunk] = "place"
