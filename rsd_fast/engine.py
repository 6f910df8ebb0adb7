"""The engine: camera images, robot state and an instruction in, a chunk of actions out.

    engine = RSDInferenceEngine.from_pretrained("robosuite-nano")
    actions, info = engine.generate_action(obs, "lift the red cube")

`obs` is what LIBERO evaluation scripts build: `{"full_image": uint8 [H, W, 3], "wrist_image": ..., "state": [8]}`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import rsd_fast
from rsd_fast.acceptance import Acceptance, Granularity, Rule, parse_rule
from rsd_fast.codec import RFSQCodec
from rsd_fast.decoding import CODELESS, DRAFTED, ChunkDecoder, Mode
from rsd_fast.kernels.registry import pick
from rsd_fast.models.checkpoints import PolicyParts, check_fit, load_policy
from rsd_fast.models.draft import DraftModel
from rsd_fast.models.fused_backbone import fuse_backbone
from rsd_fast.models.fused_vision import fuse_vision
from rsd_fast.models.inputs import PolicyInputs
from rsd_fast.models.main import MainModel
from rsd_fast.models.streaming import choose_device
from rsd_fast.observation import Observation, build_inputs
from rsd_fast.policy_round import PolicyRound, RoundParts, describe_state, split
from rsd_fast.round_statistics import RoundStatistics
from rsd_fast.runtime import RoundLoop, Runtime, choose_runtime, make_loop, pool_bytes
from rsd_fast.runtime.clock import STAGES

M = TypeVar("M", bound=torch.nn.Module)


class RSDInferenceEngine:
    """Decodes action chunks by residual speculative decoding.

    Args:
        main_model: with its tokenizer.
        draft_model: needed by modes `rsd`, `conditioned` and `draft`, unused by the others.
        rfsq_model: the codec.
        mode: `sequential`, `rsd`, `jacobi`, `draft`, `parallel`, `conditioned` or `regression` (see
            `rsd_fast.decoding`); the last three need a head of their own.
        rule: `exact`, `distance(LEVELS)`, `typical(TAU)`, or a `Rule`. Default, as of the next three: `Acceptance`'s.
        granularity: `element` (partial acceptance) or `layer`.
        theta: share of elements that must be final (`element`) or agree (`layer`).
        keep: what disagreeing elements of an accepted layer take, `main` or `draft` (`layer` only).
        expected_last: read the last layer as a mean over the levels, not as the likeliest level. Default: yes when
            greedy, and never when sampling.
        temperature: above 0 samples from main's distribution; needs `layer`, `exact` and theta 1.
        stop: layers to decode; default all.
        tolerance: adaptive depth instead of `stop`: the fewest layers that are within so much of the full code, in
            the units of the action.
        device: `auto`, `cpu`, `cuda`, ...
        dtype: of the networks; default bfloat16 on a GPU and float32 on the CPU.
        batch_invariant: decode every row at batch one, so that its bits do not depend on its neighbours. Default: on
            the CPU, where batching gains little.
        runtime: how rounds are driven (`rsd_fast.runtime`): `auto`, `eager`, `graph` or `device-loop`.
        batch_sizes: batches that there are rounds for; other batches are decoded in parts. 1 is always among them.
        token_buckets: lengths to which instructions are padded; the shortest that fits is used. Default: the model's
            longest only, so that padding never depends on the instruction.
        seed: of the draws when sampling.
        backend: of the accept op; `auto`, `reference`, `cpu` or `triton`.

    Raises:
        ValueError: settings or parts that do not fit together.
    """

    def __init__(
        self,
        main_model: MainModel,
        draft_model: DraftModel | None,
        rfsq_model: RFSQCodec,
        *,
        mode: Mode = "rsd",
        rule: str | Rule = Acceptance.rule,
        granularity: Granularity = Acceptance.granularity,
        theta: float = Acceptance.theta,
        keep: str = Acceptance.keep,
        expected_last: bool | None = None,
        temperature: float = 0.0,
        stop: int | None = None,
        tolerance: float | None = None,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        batch_invariant: bool | None = None,
        runtime: Runtime = "auto",
        batch_sizes: Sequence[int] = (1,),
        token_buckets: Sequence[int] | None = None,
        seed: int = 0,
        backend: str = "auto",
    ) -> None:
        check_fit(PolicyParts(rfsq_model, main_model, draft_model))
        if main_model.tokenizer is None:
            raise ValueError("main_model has no tokenizer; set main_model.tokenizer or load it with from_pretrained")
        if mode in DRAFTED and draft_model is None:
            raise ValueError(f"mode {mode!r} needs a draft_model; without one use 'jacobi', 'sequential' or 'parallel'")
        head = main_model.head_for(mode)  # refuses a mode that none of its heads can serve
        if stop is not None and tolerance is not None:
            raise ValueError("got both stop and tolerance, expected at most one: tolerance chooses the stop")
        self.device = choose_device(device)
        self.dtype = dtype or (torch.bfloat16 if self.device.type == "cuda" else torch.float32)
        self.batch_invariant = self.device.type == "cpu" if batch_invariant is None else batch_invariant
        self.mode = mode
        self.codec = rfsq_model.to(self.device).eval()
        self.main = _to(main_model, self.device, self.dtype)
        positions = self.main.config.prefix_tokens + self.main.config.head.queries
        self.main.backbone = fuse_backbone(self.main.backbone, positions)
        self.main.vision_backbone = fuse_vision(self.main.vision_backbone)
        self.draft = _to(draft_model, self.device, self.dtype) if mode in DRAFTED and draft_model else None
        self.tokenizer = main_model.tokenizer
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._decoder = ChunkDecoder(
            self.codec,
            Acceptance(
                rule=parse_rule(rule) if isinstance(rule, str) else rule,
                granularity=granularity,
                theta=theta,
                keep=keep,  # type: ignore[arg-type]  # checked by AcceptParams, which lists the choices
                expected_last=temperature == 0 if expected_last is None else expected_last,
                temperature=temperature,
            ),
            mode,
            steps=main_model.config.head.steps,
            stop=self.codec.depth_for(tolerance) if tolerance is not None else stop,
            backend=backend,
            layered=main_model.is_layered(head),
        )
        self.runtime = choose_runtime(runtime, self.device)
        self.batch_sizes = _sizes("batch_sizes", (1,) if self.batch_invariant else (1, *batch_sizes))
        longest = self.main.config.max_tokens
        self.token_buckets = _sizes("token_buckets", (*(token_buckets or ()), longest), longest)
        self._parts = RoundParts(self.main, self.draft, self.codec, self._decoder)
        self._pool = torch.cuda.graph_pool_handle() if self.runtime in ("graph", "device-loop") else None
        self._rounds: dict[tuple[int, int], tuple[PolicyRound, RoundLoop]] = {}
        # Largest first: the smaller ones then fit into the pool's memory.
        for size in sorted(self.batch_sizes, reverse=True):
            for tokens in sorted(self.token_buckets, reverse=True):
                with self._on_device():
                    self._round(size, tokens)
        self.reset_stats()

    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | Path | None = None, *, mode: Mode = "rsd", draft: str = "coarse", **settings: Any
    ) -> RSDInferenceEngine:
        """Loads a policy folder, a shipped checkpoint by name, or a hub id; the default is the shipped one.

        Args:
            path_or_hub_id: see `rsd_fast.models.checkpoints.resolve_checkpoint`.
            mode: as above.
            draft: which of the folder's draft models, `regression`, `coarse` or `original`.
            **settings: as above; those of the acceptance that are not given are the folder's, if it recommends some.

        Raises:
            FileNotFoundError: nothing there, or a part is missing.
            ValueError: the parts do not fit together.
        """
        device = choose_device(settings.get("device", "auto"))
        parts = load_policy(path_or_hub_id, draft if mode in DRAFTED else None, device)
        return cls(parts.main, parts.draft, parts.codec, mode=mode, **parts.acceptance | settings)

    # ---- observation -> actions

    def generate_action(
        self, obs: Observation, task_description: str
    ) -> tuple[Float[np.ndarray, "T 7"], dict[str, Any]]:
        """One chunk.

        Args:
            obs: `full_image` and `wrist_image`, uint8 `[H, W, 3]`, upright; `state`, 8 numbers (end-effector position
                in m, axis-angle in rad, two gripper fingers in m).
            task_description: the instruction.

        Returns:
            Actions float32 `[T, 7]`, un-normalised, and `info`: see `generate_actions`.

        Raises:
            ValueError: a missing camera, a wrong shape or dtype, NaN, an empty instruction.
        """
        actions, infos = self.generate_actions([obs], [task_description])
        return actions[0], infos[0]

    def generate_actions(
        self, observations: Sequence[Observation], instructions: Sequence[str]
    ) -> tuple[Float[np.ndarray, "B T 7"], list[dict[str, Any]]]:
        """A batch of chunks.

        Returns:
            Actions float32 `[B, T, 7]`, un-normalised, and one `info` a chunk:

            - `passes`: runs of the main model over the action queries.
            - `accepted_layers`: layers kept from the draft in the first pass, a mean over the elements.
            - `match_rates`, `kept_rates`: per drafted layer, the share of elements whose draft agreed with main, and
              whose draft code was kept.
            - `codes`: int32 `[L, T, D]`; in modes regression and draft `[0, T, D]`.
            - `ms`: milliseconds by stage (`vision`, `prefill`, `draft`, `passes`, `tail`, `total`) of the whole call.
            - `batch`: chunks in the call.

        Raises:
            ValueError: as `generate_action`.
        """
        started = time.perf_counter()
        inputs = build_inputs(observations, instructions, self.main.config, self.tokenizer)
        ms = dict.fromkeys(STAGES, 0.0)
        actions: list[Tensor] = []
        infos: list[dict[str, Any]] = []
        for size in split(len(inputs), self.batch_sizes):
            with self._on_device():
                loop, outputs = self._decode(inputs[len(infos) : len(infos) + size])
            actions.append(outputs["actions"].clone())
            elements = self._decoder.steps * self.codec.config.latent_dims
            infos += describe_state(outputs, elements, has_codes=self.mode not in CODELESS)
            ms = {stage: ms[stage] + spent for stage, spent in loop.milliseconds().items()}
        ms["total"] = 1e3 * (time.perf_counter() - started)
        for info in infos:
            info |= {"ms": ms, "batch": len(inputs)}
        self._statistics.add(infos, ms)
        return torch.cat(actions).numpy(), infos

    def _on_device(self) -> AbstractContextManager[object]:
        """Kernels, captures and launches go to CUDA's current device, whatever tensors they are given."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    @torch.inference_mode()
    def _decode(self, inputs: PolicyInputs) -> tuple[RoundLoop, dict[str, Tensor]]:
        """One round; the results are on the host, and valid until the next one."""
        used = int(inputs.token_mask.sum(1).max())
        tokens = min(bucket for bucket in self.token_buckets if bucket >= used)
        this_round, loop = self._round(len(inputs), tokens)
        this_round.fill(inputs.first_tokens(tokens))
        this_round.draw(self._generator)
        loop.run()
        return loop, this_round.outputs.on_host

    def _round(self, batch: int, tokens: int) -> tuple[PolicyRound, RoundLoop]:
        """The round of a shape. Those of a GPU's graphs are all made at construction."""
        key = (batch, tokens)
        if key not in self._rounds:
            with torch.inference_mode(False):
                made = PolicyRound(self._parts, batch, tokens, self.device)
            with torch.inference_mode():
                loop = make_loop(self.runtime, made.stages(), self._pool)
                loop.run()  # so that the first call is like any other
            self._rounds[key] = made, loop
        return self._rounds[key]

    # ---- about the run

    def stats(self) -> dict[str, Any]:
        """Chunks, mean passes, acceptance histogram, and latency p50 and p99 by stage, since the last reset."""
        return self._statistics.summary()

    def reset_stats(self) -> None:
        """Forgets what `stats` counts."""
        self._statistics = RoundStatistics()

    def reseed(self, seed: int) -> None:
        """Starts the draws of sampling anew."""
        self._generator.manual_seed(seed)

    def memory(self) -> dict[str, int]:
        """Bytes on the device: `weights`, `buffers` (inputs, outputs) and `graphs` (all captured rounds' pool)."""
        models = [model for model in (self.main, self.draft, self.codec) if model is not None]
        tensors = [t for model in models for t in (*model.parameters(), *model.buffers())]
        buffers = [packed for made, _ in self._rounds.values() for packed in (made.inputs, made.outputs)]
        return {
            "weights": sum(t.numel() * t.element_size() for t in tensors),
            "buffers": sum(packed.device_bytes.numel() for packed in buffers),
            "graphs": pool_bytes(self._pool) if self._pool else 0,
        }

    def describe(self) -> dict[str, Any]:
        """Everything that defines how this engine decodes, JSON-able, for the header of a record."""
        acceptance = self._decoder.acceptance
        return {
            "mode": self.mode,
            "rule": str(acceptance.rule),
            "granularity": acceptance.granularity,
            "theta": acceptance.theta,
            "keep": acceptance.keep,
            "expected_last": acceptance.expected_last,
            "temperature": acceptance.temperature,
            "draft": self.draft.config.kind if self.draft else None,
            "stop": self._decoder.stop,
            "layers": self.codec.config.layers,
            "levels": self.codec.config.levels,
            "chunk": self._decoder.steps,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            "dtype": str(self.dtype).removeprefix("torch."),
            "batch_invariant": self.batch_invariant,
            "runtime": self.runtime,
            "backend": pick("accept", self.device, self._decoder.backend).name,
            "versions": {"rsd_fast": rsd_fast.__version__, "torch": torch.__version__},
        }


def _sizes(name: str, values: Sequence[int], most: int | None = None) -> tuple[int, ...]:
    if min(values) < 1 or (most is not None and max(values) > most):
        raise ValueError(f"got {name} {list(values)}, expected numbers from 1 {f'to {most}' if most else 'up'}")
    return tuple(sorted(set(values)))


def _to(model: M, device: torch.device, dtype: torch.dtype) -> M:
    # Parameters only: statistics (buffers) keep their precision.
    model = model.to(device).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
