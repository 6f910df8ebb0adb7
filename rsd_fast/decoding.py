"""The decoding loop: draft, verify, accept, advance.

    codes, frontier = draft(prefix), 0             # drafted layers; the rest a neutral code
    while not finished(frontier):                  # per sample
        logits = main.decode(prefix, codes)        # one pass over all L * T queries, at one fixed shape
        codes, frontier = accept(codes, logits)    # one fused kernel
    actions = dequantise(codes)

The modes are the same loop with another first proposal:

| mode | first proposal | layers above the frontier |
|---|---|---|
| sequential | none | stay unproposed: one layer a pass |
| rsd | the draft model's | main's guesses, where they are not out of date, become the next proposal |
| jacobi | none | the same |
| parallel | none | one pass of a head that predicts all layers at once |
| conditioned | the draft model's, all layers below the last | stays as it is; one pass of a head that reads it |
| regression | none, and no codes | one pass of a head that gives actions |
| draft | the draft model's chunk, as it is | no pass |

What was said above a code is out of date once that code changes: it refines a cell that has been left. Where a
code is redundant enough for the middle level to be a level off at most, that takes its place (docs/recommended.md has
what it brings); otherwise main's old guesses are better still.

Guarantees (tests/test_decoding.py): at granularity `layer`, rule `exact`, theta 1 the codes are bit-for-bit those of
sequential decoding for any draft; no round takes more than `stop` passes; a row decodes the same alone or in a batch.

`ChunkDecoder.run` is this loop as it stands there, over any function from codes to logits. An engine runs the same
stages over static buffers (`rsd_fast.policy_round`), as CUDA graphs where there is a GPU (`rsd_fast.runtime`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rsd_fast.acceptance import Acceptance
from rsd_fast.codec import RFSQCodec
from rsd_fast.kernels.accept import ActionDecoder, Redraft, RoundState, accept_
from rsd_fast.proposal import Proposal

Mode = Literal["sequential", "rsd", "jacobi", "parallel", "conditioned", "regression", "draft"]
MODES: tuple[str, ...] = get_args(Mode)
DRAFTED = ("rsd", "conditioned", "draft")  # the modes that need a draft model
PROPOSED = ("rsd", "conditioned")  # those that start from its codes
CODELESS = ("regression", "draft")  # those that decode no codes: actions come from elsewhere

Pass = Callable[[Int[Tensor, "B L T D"]], Float[Tensor, "B L T D V"]]


class ChunkDecoder:
    """Decodes chunks of one codec under one acceptance setting.

    Args:
        codec: defines the codes and what they decode to.
        acceptance: rule, granularity, share.
        mode: see the table above.
        steps: T, the steps of a chunk.
        stop: layers to decode; all by default. `codec.depth_for(tolerance)` gives an honest early stop.
        backend: of the accept op; `auto` picks the fastest there is.
        layered: main says a layer in view of the codes below it. False of a head that reads the prefix alone: what it
            says is never out of date.

    Raises:
        ValueError: an unknown mode, a stop outside 1 .. L, or an acceptance that the mode cannot honour.
    """

    def __init__(
        self,
        codec: RFSQCodec,
        acceptance: Acceptance,
        mode: Mode = "rsd",
        *,
        steps: int,
        stop: int | None = None,
        backend: str = "auto",
        layered: bool = True,
    ) -> None:
        config = codec.config
        if mode not in MODES:
            raise ValueError(f"got mode {mode!r}, expected one of {list(MODES)}")
        self.stop = config.layers if stop is None else stop
        if not 1 <= self.stop <= config.layers:
            raise ValueError(f"got stop {stop}, expected 1 to the codec's {config.layers} layers")
        if mode == "conditioned" and self.stop < config.layers:
            raise ValueError(f"got stop {stop} in mode conditioned, expected {config.layers}: its head gives the last")
        self.codec, self.acceptance, self.mode, self.steps, self.backend = codec, acceptance, mode, steps, backend
        self.params = acceptance.params(
            stop=self.stop,
            elements=steps * config.latent_dims,
            redraft=redraft_of(codec, layered) if mode in ("rsd", "jacobi") else "none",
            parallel=mode in ("parallel", "conditioned"),
        )
        device = codec.codebook.device
        self.slack = acceptance.rule.slack_table(config.layers, config.latent_dims).to(device)
        self.decoder = action_decoder(codec)

    def begin(self, batch: int, proposal: Proposal | None = None) -> RoundState:
        """A fresh state for `batch` chunks; see `begin_`."""
        config = self.codec.config
        state = RoundState.new(
            batch, config.layers, self.steps, config.latent_dims, device=self.codec.codebook.device
        )
        self.begin_(state, proposal)
        return state

    def begin_(self, state: RoundState, proposal: Proposal | None = None) -> None:
        """Starts a round in a state that is there; only modes rsd and conditioned take a proposal, and need one.

        Raises:
            ValueError: a proposal too much or too few, or in mode conditioned one of too few layers.
        """
        if (proposal is not None) != (self.mode in PROPOSED):
            raise ValueError(f"mode {self.mode} {'needs a' if self.mode in PROPOSED else 'takes no'} proposal")
        codes = None if proposal is None else proposal.top(self.stop).codes
        drafted = 0 if codes is None else codes.shape[1]
        if self.mode == "conditioned":
            if drafted < self.stop - 1:
                raise ValueError(
                    f"got a draft of {drafted} layers in mode conditioned, expected {self.stop - 1}, "
                    "all below the last, as a draft of kind regression has"
                )
            drafted = 0  # they stand; nothing is verified
        state.begin_(codes, drafted, self.codec.config.levels // 2)

    @torch.no_grad()
    def run(
        self,
        main_pass: Pass,
        batch: int,
        proposal: Proposal | None = None,
        uniforms: Float[Tensor, "B L T D 2"] | None = None,
    ) -> tuple[Float[Tensor, "B T A"], RoundState]:
        """One round for `batch` chunks.

        Args:
            main_pass: codes int32 `[B, L, T, D]` -> logits `[B, L, T, D, V]`, against a prefix it holds.
            batch: B.
            proposal: the draft's; mode rsd only.
            uniforms: float32 in [0, 1), needed when the temperature is above 0.

        Returns:
            Actions in physical units, float32 `[B, T, A]`, and the final state (codes, passes, what was kept).

        Raises:
            ValueError: as `begin_`; or a mode without codes.
        """
        if self.mode in CODELESS:
            raise ValueError(f"got mode {self.mode}, expected a mode that decodes codes; see accept_actions")
        state = self.begin(batch, proposal)
        actions = torch.empty(batch, self.steps, self.codec.config.action_dims, device=state.codes.device)
        draft_probs = None
        if uniforms is not None and proposal is not None:
            draft_probs = self.padded_probs(proposal)
        for _ in range(self.stop):  # the frontier moves at least one layer a pass
            self.accept(main_pass(state.codes), state, actions, uniforms, draft_probs)
            if bool(state.finished.all()):
                break
        return actions, state

    def accept(
        self,
        logits: Float[Tensor, "B L T D V"],
        state: RoundState,
        actions: Float[Tensor, "B T A"],
        uniforms: Float[Tensor, "B L T D 2"] | None = None,
        draft_probs: Float[Tensor, "B L T D V"] | None = None,
    ) -> None:
        """The tail of one pass; updates `state`, and `actions` of the samples that finish."""
        accept_(
            logits,
            state,
            self.codec.codebook,
            self.slack,
            self.params,
            uniforms=uniforms,
            draft_probs=draft_probs,
            decoder=self.decoder,
            actions=actions,
            backend=self.backend,
        )

    def accept_actions(
        self, made: Float[Tensor, "B T A"], state: RoundState, actions: Float[Tensor, "B T A"]
    ) -> None:
        """The tail of modes without codes: `actions` are those that were made, in physical units; ends the round."""
        actions.copy_(made)
        state.passes.fill_(1 if self.mode == "regression" else 0)
        state.finished.fill_(1)

    def padded_probs(self, proposal: Proposal) -> Float[Tensor, "B L T D V"] | None:
        """The draft's distribution as the op takes it: of every layer, read at drafted ones only."""
        proposal = proposal.top(self.stop)
        if proposal.probs is None:
            return None
        batch, drafted, *rest = proposal.probs.shape
        padded = proposal.probs.new_zeros(batch, self.codec.config.layers, *rest)
        padded[:, :drafted] = proposal.probs
        return padded


def redraft_of(codec: RFSQCodec, layered: bool) -> Redraft:
    """What to propose above a code that main has changed: the middle level, if it is at most one off there."""
    config = codec.config
    return "middle" if layered and config.redundancy >= (config.levels - 1) / 2 else "main"


def action_decoder(codec: RFSQCodec) -> ActionDecoder:
    """The codec's way from latents to physical units, as the kernel takes it (float32, contiguous copies)."""
    w1 = b1 = w2 = b2 = None
    if codec.decoder is not None:
        w1, b1, w2, b2 = (
            p.detach().float().contiguous() for layer in (0, 2) for p in codec.decoder[layer].parameters()
        )
    return ActionDecoder(w1, b1, w2, b2, codec.normalizer.gain.float(), codec.normalizer.offset.float())
