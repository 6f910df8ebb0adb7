"""When a drafted code may stand: the rules, and how they reach the kernel.

A drafted code c meets main's own choice m at the same place. A rule is data, not code: a table of how many levels c
may be from m (`slack`, per layer and latent dimension), or how much less probable than m it may be (`log_tau`). So
every rule runs in the same kernel. A new rule that these two can express is one function and one line in `RULES`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from rsd_fast.kernels.accept import AcceptParams, Redraft

Granularity = Literal["element", "layer"]


@dataclass(frozen=True)
class Rule:
    """A rule in the kernel's terms; make one with `exact`, `distance`, `typical` or `parse_rule`."""

    kind: Literal["distance", "typical"]
    slack: int | tuple[tuple[int, ...], ...] = 0
    log_tau: float = 0.0

    def __str__(self) -> str:
        """As `parse_rule` reads it, but for tables of distances, which it does not read."""
        if self.kind == "typical":
            return f"typical({math.exp(self.log_tau):.6g})"
        return "exact" if self.slack == 0 else f"distance({self.slack})"

    def slack_table(self, layers: int, dims: int) -> Int[Tensor, "L D"]:
        """Levels by which a draft may differ, int32, per layer and latent dimension."""
        if isinstance(self.slack, int):
            return torch.full((layers, dims), self.slack, dtype=torch.int32)
        table = torch.tensor(self.slack, dtype=torch.int32)
        if table.shape != (layers, dims):
            raise ValueError(f"the distance table has shape {tuple(table.shape)}, expected ({layers}, {dims})")
        return table


def exact() -> Rule:
    """The draft must equal main's choice."""
    return Rule("distance", 0)


def distance(levels: int | tuple[tuple[int, ...], ...] = 1) -> Rule:
    """The draft may be off by so many levels: one number, or one per layer and latent dimension.

    Sound where the codec is redundant: the layers above repair a coarse code that is off by one.
    """
    smallest = levels if isinstance(levels, int) else min(min(row) for row in levels)
    if smallest < 0:
        raise ValueError(f"got a distance of {smallest}, expected 0 or more")
    return Rule("distance", levels)


def typical(tau: float = 0.3) -> Rule:
    """Main must give the draft's code at least `tau` times the probability of its own choice.

    After the typical acceptance of Medusa (Cai et al., 2024, https://arxiv.org/abs/2401.10774).
    """
    if not 0.0 < tau <= 1.0:
        raise ValueError(f"got tau {tau}, expected a number in (0, 1]")
    return Rule("typical", 0, math.log(tau))


RULES: dict[str, Callable[..., Rule]] = {"exact": exact, "distance": distance, "typical": typical}


def parse_rule(text: str) -> Rule:
    """`"exact"`, `"distance(1)"`, `"typical(0.3)"` -> Rule; anything else is a ValueError that lists the valid ones."""
    match = re.fullmatch(r"\s*([a-z]+)\s*(?:\(\s*([-+.\d]+)\s*\))?\s*", text)
    if match is None or match[1] not in RULES or (match[1] == "exact" and match[2]):
        raise ValueError(f"got rule {text!r}, expected exact, distance(LEVELS) or typical(TAU)")
    if match[2] is None:
        return RULES[match[1]]()
    try:
        number = int(match[2]) if match[1] == "distance" else float(match[2])
    except ValueError as error:
        raise ValueError(f"got {match[2]!r} in rule {text!r}, expected a whole number of levels") from error
    return RULES[match[1]](number)


def needed(theta: float, elements: int) -> int:
    """The fewest of `elements` that make a share of at least `theta`."""
    return max(math.ceil(theta * elements - 1e-9), 0)  # 0.7 * 10 is 7.000000000000001 in floating point


@dataclass(frozen=True)
class Acceptance:
    """How a round verifies, and when it is done.

    Attributes:
        rule: when a drafted code agrees with main.
        granularity: `element`: every element walks up alone (partial acceptance); `layer`: whole layers.
        theta: share of elements that must agree (`layer`) or be final (`element`).
        keep: what disagreeing elements of an accepted layer take (`layer` only).
        expected_last: at the last layer take the softmax mean over the levels instead of the most likely level; where
            codes fall back to the middle also at the one that changed (see `accept_`'s reference).
        temperature: 0 decodes greedily; above, codes are distributed as main's own samples.
    """

    # docs/recommended.md says why these three.
    rule: Rule = exact()  # noqa: RUF009  # frozen
    granularity: Granularity = "layer"
    theta: float = 0.75
    keep: Literal["main", "draft"] = "main"
    expected_last: bool = True
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError on a setting that has no meaning."""
        if self.granularity not in ("element", "layer"):
            raise ValueError(f"got granularity {self.granularity!r}, expected 'element' or 'layer'")
        if not 0.0 < self.theta <= 1.0:
            raise ValueError(f"got theta {self.theta}, expected a share in (0, 1]")
        if self.temperature > 0.0 and self.rule != exact():
            raise ValueError(f"got temperature {self.temperature} and {self.rule}, expected rule 'exact' when sampling")
        if self.temperature > 0.0 and (self.granularity, self.theta) != ("layer", 1.0):
            raise ValueError(
                f"got temperature {self.temperature}, granularity {self.granularity!r} and theta {self.theta}, "
                "expected 'layer' and theta 1 when sampling"
            )

    def params(self, *, stop: int, elements: int, redraft: Redraft, parallel: bool = False) -> AcceptParams:
        """The kernel's parameters for chunks of `elements` = T * D elements decoded to `stop` layers."""
        return AcceptParams(
            stop=stop,
            granularity="all" if parallel else self.granularity,
            rule=self.rule.kind,
            need=needed(self.theta, elements),
            log_tau=self.rule.log_tau,
            keep=self.keep,
            redraft=redraft,
            expected=self.expected_last,
            temperature=self.temperature,
        )


def lossless(temperature: float = 0.0) -> Acceptance:
    """Bit-for-bit the codes of sequential decoding, whatever the draft says (greedy), or its distribution."""
    return Acceptance(exact(), "layer", theta=1.0, expected_last=False, temperature=temperature)
