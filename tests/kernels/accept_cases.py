"""Inputs of `accept_` for tests and benches, the nasty ones among them, and a slow loop that knows what is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from rsd_fast.kernels.accept import AcceptParams, ActionDecoder, RoundState, accept_

INTEGER_BUFFERS = ("codes", "frontier", "drafted", "finished", "passes", "agreed", "kept")


@dataclass
class Case:
    """One call."""

    logits: Tensor
    state: RoundState
    codebook: Tensor
    slack: Tensor
    params: AcceptParams
    uniforms: Tensor | None = None
    draft_probs: Tensor | None = None
    decoder: ActionDecoder | None = None
    actions: Tensor | None = None

    def run(self, backend: str) -> Case:
        """A copy of the outputs after the call; `self` keeps its own."""
        return self.after(accept_, backend=backend)

    def after(self, op: Callable[..., None], **settings: object) -> Case:
        """The same with `accept_` or one backend's function."""
        after = self.copy()
        after.call(op, **settings)
        return after

    def copy(self) -> Case:
        """With outputs of its own; the inputs are shared."""
        return replace(
            self, state=copy_state(self.state), actions=None if self.actions is None else self.actions.clone()
        )

    def call(self, op: Callable[..., None], **settings: object) -> None:
        """In place, on the very tensors of the case (a copy of them would be contiguous)."""
        op(
            self.logits,
            self.state,
            self.codebook,
            self.slack,
            self.params,
            uniforms=self.uniforms,
            draft_probs=self.draft_probs,
            decoder=self.decoder,
            actions=self.actions,
            **settings,
        )

    def row(self, b: int) -> Case:
        """Sample b alone."""

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[b : b + 1].clone()

        state = RoundState(**{f.name: pick(getattr(self.state, f.name)) for f in fields(RoundState)})
        return replace(
            self,
            logits=self.logits[b : b + 1],
            state=state,
            uniforms=pick(self.uniforms),
            draft_probs=pick(self.draft_probs),
            actions=pick(self.actions),
        )

    def to(self, device: str) -> Case:
        """The same on another device."""

        def move(value):
            if isinstance(value, Tensor):
                return value.to(device)
            if isinstance(value, RoundState | ActionDecoder):
                return type(value)(**{f.name: move(getattr(value, f.name)) for f in fields(value)})
            return value

        return Case(**{f.name: move(getattr(self, f.name)) for f in fields(self)})


def copy_state(state: RoundState) -> RoundState:
    return RoundState(**{f.name: getattr(state, f.name).clone() for f in fields(RoundState)})


def random_decoder(dims: int, hidden: int, actions: int, generator: torch.Generator) -> ActionDecoder:
    """Two layers, or with `hidden` 0 the un-normalisation alone."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if hidden == 0:
        return ActionDecoder(None, None, None, None, normal(dims), normal(dims))
    weights = (normal(hidden, dims), normal(hidden), normal(actions, hidden), normal(actions))
    return ActionDecoder(*weights, normal(actions), normal(actions))


def random_case(
    params: AcceptParams,
    sizes: tuple[int, int, int, int, int],
    seed: int,
    *,
    dtype: torch.dtype = torch.float32,
    drafted_most: int | None = None,
    ties: bool = False,
    broken: float = 0.0,
    slack: int = 1,
    hidden: int = 5,
    with_probs: bool = False,
    mid_round: bool = False,
) -> Case:
    """A call in the first pass of a round, or with `mid_round` somewhere in it.

    `ties` makes equal logits common, `broken` is the share of NaN and infinite ones. Most of the draft is main's
    choice, so that walks are long enough to matter; some of it is no level at all.
    """
    batch, layers, steps, dims, levels = sizes
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

    logits = torch.randn(sizes, generator=generator) * 2
    if ties:
        logits = logits.round()
    for value in (math.nan, math.inf, -math.inf):
        logits[torch.rand(sizes, generator=generator) < broken / 3] = value
    logits = logits.to(dtype)

    state = RoundState.new(batch, layers, steps, dims)
    greedy = logits.float().nan_to_num(-torch.inf, torch.inf, -torch.inf).argmax(-1).int()
    noise = integers(-1, levels + 1, batch, layers, steps, dims)
    state.codes.copy_(torch.where(torch.rand(greedy.shape, generator=generator) < 0.7, greedy, noise))
    state.drafted.copy_(integers(0, (layers if drafted_most is None else drafted_most) + 1, batch))
    if mid_round:
        state.codes.clamp_(0, levels - 1)
        per_element = params.granularity == "element"
        state.frontier.copy_(
            integers(0, params.stop + 1, batch, steps, dims)
            if per_element
            else integers(0, params.stop, batch, 1, 1).expand(batch, steps, dims)
        )
        state.passes.copy_(integers(0, 3, batch))
        state.finished.copy_(integers(0, 4, batch) == 0)
        state.latents.normal_(generator=generator)
    draft_probs = torch.rand(sizes, generator=generator)
    action_dims = 7 if hidden else dims
    return Case(
        logits,
        state,
        codebook=torch.randn(layers, dims, levels, generator=generator),
        slack=integers(0, slack + 1, layers, dims),
        params=params,
        uniforms=torch.rand(*sizes[:4], 2, generator=generator) if params.temperature > 0 else None,
        draft_probs=draft_probs / draft_probs.sum(-1, keepdim=True) if with_probs else None,
        decoder=random_decoder(dims, hidden, action_dims, generator),
        actions=torch.full((batch, steps, action_dims), torch.nan),
    )


@st.composite
def cases(draw, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> Case:
    """Calls of every kind, on small odd shapes."""
    batch, layers, steps = draw(st.integers(0, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    dims, levels = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    temperature = draw(st.sampled_from([0.0, 0.0, 0.0, 0.7, 1.0, 3.0]))
    sampling = temperature > 0
    params = AcceptParams(
        stop=draw(st.integers(1, layers)),
        granularity="layer" if sampling else draw(st.sampled_from(["element", "layer", "all"])),
        rule="distance" if sampling else draw(st.sampled_from(["distance", "typical"])),
        need=steps * dims if sampling else draw(st.integers(0, steps * dims)),
        log_tau=draw(st.sampled_from([0.0, -0.5, -3.0])),
        keep=draw(st.sampled_from(["main", "draft"])),
        redraft=draw(st.sampled_from(["none", "main", "middle"])),
        expected=False if sampling else draw(st.booleans()),
        temperature=temperature,
    )
    return random_case(
        params,
        (batch, layers, steps, dims, levels),
        draw(st.integers(0, 2**20)),
        dtype=draw(st.sampled_from(dtypes)),
        ties=draw(st.booleans()),
        broken=0.0 if sampling else draw(st.sampled_from([0.0, 0.0, 0.1, 1.0])),
        slack=draw(st.integers(0, 2)),
        hidden=draw(st.sampled_from([0, 5])),
        with_probs=sampling and draw(st.booleans()),
        mid_round=draw(st.booleans()),
    )


# ------------------------------------------------------------------------------------------------ the loop

F = np.float32


@np.errstate(all="ignore")
def loop_accept(case: Case) -> Case:
    """What `accept_` does, element by element in Python. Written from the description, not from the reference."""
    after = case.copy()
    for b in range(case.logits.shape[0]):
        if int(case.state.finished[b]) == 0:
            _loop_sample(case, after, b)
    return after


def _loop_sample(case: Case, after: Case, b: int) -> None:
    params, entry, state = case.params, case.state, after.state
    layers, steps, dims, levels = case.logits.shape[1:]
    stop = params.stop
    drafted = min(int(entry.drafted[b]), stop - 1)
    elements = [(t, d) for t in range(steps) for d in range(dims)]
    x = {
        (l, t, d): [F(-np.inf) if math.isnan(v) else F(v) for v in case.logits[b, l, t, d].float().tolist()]
        for l in range(stop)
        for t, d in elements
    }
    greedy = {key: row.index(max(row)) for key, row in x.items()}
    choice, agree = dict(greedy), {}
    for key, row in x.items():
        code = int(entry.codes[(b, *key)])
        if params.temperature > 0:
            choice[key], agree[key] = _loop_sampled(case, b, key, row, code, key[0] < drafted)
        elif not 0 <= code < levels:
            agree[key] = False
        elif params.rule == "distance":
            agree[key] = abs(code - greedy[key]) <= int(case.slack[key[0], key[2]])
        else:
            agree[key] = row[code] == max(row) or row[code] - max(row) >= F(params.log_tau)
        agree[key] = agree[key] and key[0] < drafted

    kept = [0] * layers
    changed, left = set(), {}

    def put(l: int, t: int, d: int, code: int, walks: bool = False) -> None:
        if (t, d) in left:
            code = levels // 2
        if code != int(entry.codes[b, l, t, d]):
            if l < stop - 1:
                changed.add((t, d))
            if walks and params.redraft == "middle":
                left.setdefault((t, d), l)
        state.codes[b, l, t, d] = code

    frontier = {e: int(entry.frontier[(b, *e)]) for e in elements}
    start = dict(frontier)
    if params.granularity == "element":
        for e in elements:
            while frontier[e] < stop:
                l = frontier[e]
                frontier[e] += 1
                if not agree[(l, *e)]:
                    put(l, *e, choice[(l, *e)], walks=True)
                    break
                kept[l] += 1
    elif params.granularity == "layer":
        for l in range(frontier[elements[0]], stop):
            accepted = l < drafted and sum(agree[(l, *e)] for e in elements) >= params.need
            for e in elements:
                frontier[e] = l + 1
                code = int(entry.codes[(b, l, *e)])
                stays = accepted and (agree[(l, *e)] or (params.keep == "draft" and 0 <= code < levels))
                put(l, *e, code if stays else choice[(l, *e)], walks=True)
                kept[l] += stays
            if not accepted:
                break
    else:
        for e in elements:
            for l in range(frontier[e], stop):
                put(l, *e, choice[(l, *e)])
            frontier[e] = stop
    for e in elements:
        for l in range(frontier[e], stop):
            put(l, *e, greedy[(l, *e)])
        state.frontier[(b, *e)] = frontier[e]

    reached = sum(frontier[e] >= stop for e in elements)
    finished = reached >= params.need if params.granularity == "element" else reached == len(elements)
    for t, d in elements:
        if start[t, d] >= stop:
            continue
        values = [F(case.codebook[l, d, int(state.codes[b, l, t, d])]) for l in range(stop)]
        stood = (t, d) not in changed or params.granularity == "all"
        by_mean = stop - 1 if frontier[t, d] >= stop and stood else left.get((t, d), stop)
        if params.expected and by_mean < stop and (stood or by_mean < stop - 1):
            top = max(x[by_mean, t, d])
            weights = [1.0 if v == top else math.exp(float(v) - float(top)) for v in x[by_mean, t, d]]
            mean = sum(w * float(case.codebook[by_mean, d, v]) for v, w in enumerate(weights))
            values = [*values[:by_mean], F(mean / sum(weights))]
        total = F(0)
        for value in values:
            total = F(total + value)
        state.latents[b, t, d] = float(total)

    if int(entry.passes[b]) == 0:
        for l in range(layers):
            state.agreed[b, l] = sum(agree[(l, *e)] for e in elements) if l < drafted else -1
            state.kept[b, l] = kept[l] if l < drafted else -1
    state.passes[b] += 1
    state.drafted[b] = 0 if params.redraft == "none" else stop - 1
    state.finished[b] = int(finished)
    if finished and after.actions is not None:
        after.actions[b] = _loop_decode(state.latents[b], case.decoder)


def _loop_sampled(case: Case, b: int, key, row, code: int, proposed: bool) -> tuple[int, bool]:
    top = max(row)
    weights = [F(math.exp(float(F(0) if v == top else F(v - top)) / case.params.temperature)) for v in row]
    u_accept, u_sample = (F(u) for u in case.uniforms[(b, *key)].tolist())
    if case.draft_probs is None or not proposed or int(case.state.passes[b]) > 0:
        sampled = _loop_draw(weights, u_sample)
        return sampled, sampled == code
    total = _loop_sums(weights)[-1]
    q = [F(v) for v in case.draft_probs[(b, *key)].tolist()]
    if 0 <= code < len(row) and F(u_accept * q[code]) < F(weights[code] / total):
        return code, True
    residual = [max(F(F(w / total) - v), F(0)) for w, v in zip(weights, q, strict=True)]
    return _loop_draw(residual if _loop_sums(residual)[-1] > 0 else weights, u_sample), False


def _loop_sums(weights) -> list:
    sums = [weights[0]]
    for w in weights[1:]:
        sums.append(F(sums[-1] + w))
    return sums


def _loop_draw(weights, u) -> int:
    sums = _loop_sums(weights)
    return min(sum(s <= F(u * sums[-1]) for s in sums), len(weights) - 1)


def _loop_decode(z: Tensor, decoder: ActionDecoder | None) -> Tensor:
    z = z.double()
    if decoder is None:
        return z.float()
    if decoder.w1 is not None:
        hidden = z @ decoder.w1.double().T + decoder.b1.double()
        hidden = hidden * torch.tanh(torch.log1p(torch.exp(hidden)))
        z = hidden @ decoder.w2.double().T + decoder.b2.double()
    return (z * decoder.gain.double() + decoder.offset.double()).float()
