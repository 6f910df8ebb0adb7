"""A policy's round at one shape: the stages that `rsd_fast.runtime` drives, over static buffers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from rsd_fast.codec import RFSQCodec
from rsd_fast.decoding import CODELESS, ChunkDecoder
from rsd_fast.kernels.accept import RoundState
from rsd_fast.models.draft import DraftModel
from rsd_fast.models.inputs import PolicyInputs, Prefix
from rsd_fast.models.main import PROPRIO_DIMS, MainModel
from rsd_fast.proposal import Proposal
from rsd_fast.runtime import PackedBuffers, RoundStages


@dataclass(frozen=True)
class RoundParts:
    """What a round is made of, on one device."""

    main: MainModel
    draft: DraftModel | None
    codec: RFSQCodec
    decoder: ChunkDecoder


class PolicyRound:
    """Decodes `batch` chunks for instructions of up to `tokens` tokens.

    Args:
        parts: networks and decoder.
        batch: B.
        tokens: N; at most the model's `max_tokens`.
        device: of the parts.

    Attributes:
        inputs: `images` uint8 `[B, cameras, H, W, 3]`, `proprio` float32 `[B, 8]`, `tokens` int64 `[B, N]`,
            `token_mask` bool `[B, N]`.
        outputs: `actions` float32 `[B, T, A]`, and of the round's state `codes`, `passes`, `agreed` and `kept`.
        state: of the round; those four are views of `outputs`.
        uniforms: float32 `[B, L, T, D, 2]`, where the temperature is above 0; to be drawn before a round.
        draft_uniforms: float32 `[B, Ld, T, D]`, likewise, for the draft's own draws.
    """

    def __init__(self, parts: RoundParts, batch: int, tokens: int, device: torch.device) -> None:
        self.parts = parts
        config, codec = parts.main.config, parts.codec.config
        size = config.vision.image_size
        self.inputs = PackedBuffers(
            {
                "images": ((batch, config.cameras, size, size, 3), torch.uint8),
                "proprio": ((batch, PROPRIO_DIMS), torch.float32),
                "tokens": ((batch, tokens), torch.int64),
                "token_mask": ((batch, tokens), torch.bool),
            },
            device,
        )
        steps, layers, dims = config.head.steps, codec.layers, codec.latent_dims
        of_state = {
            "codes": ((batch, layers, steps, dims), torch.int32),
            "passes": ((batch,), torch.int32),
            "agreed": ((batch, layers), torch.int32),
            "kept": ((batch, layers), torch.int32),
        }
        self.outputs = PackedBuffers(
            {"actions": ((batch, steps, codec.action_dims), torch.float32), **of_state}, device
        )
        views = {name: self.outputs.on_device[name] for name in of_state}
        self.state = replace(RoundState.new(batch, layers, steps, dims, device), **views)
        self.uniforms: Float[Tensor, "B L T D 2"] | None = None
        self.draft_uniforms: Float[Tensor, "B Ld T D"] | None = None
        if parts.decoder.acceptance.temperature > 0:
            self.uniforms = torch.zeros(batch, layers, steps, dims, 2, device=device)
            if parts.draft is not None:
                self.draft_uniforms = torch.zeros(batch, parts.draft.config.layers, steps, dims, device=device)
        self.head = parts.main.head_for(parts.decoder.mode)
        # One run of the backbone instead of two.
        self.rider = self.head if parts.main.can_ride(self.head) else None
        # What the stages hand on.
        self._features: Tensor | None = None
        self._prefix: Prefix | None = None
        self._logits: Tensor | None = None
        self._latents: Tensor | None = None
        self._actions: Tensor | None = None
        self._draft_probs: Tensor | None = None

    def fill(self, inputs: PolicyInputs) -> None:
        """Puts a batch of this shape, on the CPU, where the round reads it.

        Raises:
            ValueError: another shape; the message says which one this round was made for.
        """
        for name, target in self.inputs.on_host.items():
            source = getattr(inputs, name)
            if source.shape != target.shape:
                raise ValueError(f"{name}: got shape {tuple(source.shape)}, this round takes {tuple(target.shape)}")
            target.copy_(source)

    def draw(self, generator: torch.Generator) -> None:
        """Fresh uniforms, where the round samples."""
        for uniforms in (self.uniforms, self.draft_uniforms):
            if uniforms is not None:
                torch.rand(uniforms.shape, generator=generator, out=uniforms)

    # ---- stages

    def stages(self) -> RoundStages:
        """In the terms of `rsd_fast.runtime`."""
        return RoundStages(
            head={"vision": self.see, "prefill": self.prefill, "draft": self.propose},
            forward=self.forward,
            accept=self.accept,
            finished=self.state.finished,
            stop=self.parts.decoder.stop,
            inputs=self.inputs,
            outputs=self.outputs,
        )

    def see(self) -> None:
        """Images -> features."""
        self._features = self.parts.main.encode_images(self.inputs.on_device["images"])

    def prefill(self) -> None:
        """Features, proprio and instruction -> prefix; the queries of a head that reads no codes go along."""
        inputs = PolicyInputs(**self.inputs.on_device)
        self._prefix = self.parts.main.prefill(inputs, self._features, in_place=True, rider=self.rider)

    def propose(self) -> None:
        """Prefix -> the draft's codes, or in mode draft its chunk, and a fresh state."""
        parts, proposal = self.parts, None
        assert self._prefix is not None
        if parts.decoder.mode == "draft":
            assert parts.draft is not None
            self._latents = parts.draft.latents(self._prefix, parts.codec)
        elif parts.draft is not None:
            proposal = parts.draft.propose(self._prefix, parts.codec, self.draft_uniforms)
        self.start(proposal)

    def start(self, proposal: Proposal | None) -> None:
        """A fresh state, with a proposal in modes rsd and conditioned."""
        self.parts.decoder.begin_(self.state, proposal)
        self._draft_probs = None
        if proposal is not None and self.uniforms is not None:
            self._draft_probs = self.parts.decoder.padded_probs(proposal)

    def forward(self) -> None:
        """One pass: codes -> logits. In the modes without codes: actions in physical units."""
        parts = self.parts
        assert self._prefix is not None
        if parts.decoder.mode == "regression":
            self._actions = parts.codec.normalizer.unnormalize(parts.main.actions(self._prefix, self.head))
        elif parts.decoder.mode == "draft":
            assert self._latents is not None
            self._actions = parts.codec.latents_to_actions(self._latents)
        else:
            self._logits = parts.main.decode(self._prefix, self.state.codes, self.head)

    def accept(self) -> None:
        """The tail of a pass."""
        decoder, actions = self.parts.decoder, self.outputs.on_device["actions"]
        if decoder.mode in CODELESS:
            assert self._actions is not None
            decoder.accept_actions(self._actions, self.state, actions)
        else:
            assert self._logits is not None
            decoder.accept(self._logits, self.state, actions, self.uniforms, self._draft_probs)


def split(count: int, sizes: Sequence[int]) -> list[int]:
    """`count` chunks as a sum of the sizes there are rounds for, largest first; 1 is among them."""
    parts: list[int] = []
    for size in sorted(sizes, reverse=True):
        parts += [size] * ((count - sum(parts)) // size)
    return parts


def describe_state(
    outputs: dict[str, Int32[Tensor, "..."]], elements: int, has_codes: bool = True
) -> list[dict[str, object]]:
    """Per chunk, from a round's outputs on the host: `passes`, `accepted_layers`, `match_rates`, `kept_rates`, `codes`.

    Args:
        outputs: of the round.
        elements: T * D.
        has_codes: false in modes without: `codes` are then those of no layer.
    """
    agreed, kept = outputs["agreed"].numpy(), outputs["kept"].numpy()  # many small steps: torch takes thrice as long
    infos: list[dict[str, object]] = []
    for row, passes in enumerate(outputs["passes"].tolist()):
        drafted = agreed[row] >= 0
        infos.append(
            {
                "passes": passes,
                "accepted_layers": int(kept[row][drafted].sum()) / elements,
                "match_rates": (agreed[row][drafted] / elements).tolist(),
                "kept_rates": (kept[row][drafted] / elements).tolist(),
                "codes": outputs["codes"][row, : None if has_codes else 0].clone().numpy(),
            }
        )
    return infos
