"""The training loop that codec, main model and drafts share.

Every draw of step s comes from a generator seeded with (seed, s), so that a run that was killed and resumed draws
the same as one that was not.

A step never waits for the device; so it can be captured as a CUDA graph. What changes from step to step (the
generator's seed, the learning rate, how closely the average follows) is set outside, on the device.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rsd_fast.progress import progress_bar
from rsd_fast.runtime.graphs import capture_stream
from rsd_fast.train.config import OptimizerOptions
from rsd_fast.train.metrics import MetricsLog
from rsd_fast.train.regions import compile_regions, restore_regions
from rsd_fast.train.state import STATE_FILE, Progress, load_state, save_state

B = TypeVar("B")
M = TypeVar("M", bound=nn.Module)
LOG_EVERY = 50  # steps a training row averages over; reading the losses stops the device
SAVE_EVERY = 60.0  # seconds
UNCAPTURED = 3  # steps before a capture: they make the optimiser's state and choose kernels


@dataclass
class Objective(Generic[M, B]):
    """What to train, and how to tell whether it got better.

    Attributes:
        name: of the part, for messages.
        model: trained in place, on its device.
        batch: draws a batch; called without gradients, under autocast.
        loss: the loss of a batch, and its named parts.
        evaluate: held-out metrics of a model.
        select: the metric that chooses the best weights; lower is better.
    """

    name: str
    model: M
    batch: Callable[[torch.Generator], B]
    loss: Callable[[M, B], tuple[Tensor, dict[str, Tensor]]]
    evaluate: Callable[[M], dict[str, Any]]
    select: str


@dataclass
class Outcome:
    """How a run ended: the steps it took, the minutes, why it ended, and the held-out metrics of the best weights."""

    steps: int
    minutes: float
    ended: str
    best: dict[str, Any]


def fit(objective: Objective[M, B], options: OptimizerOptions, folder: Path, settings: dict[str, Any]) -> Outcome:
    """Trains until the steps, the minutes or the patience run out; leaves the best averaged weights in the model.

    Args:
        objective: see there.
        options: how long and how fast.
        folder: for `last.safetensors` (everything needed to go on), `metrics.jsonl` and `curves.png`.
        settings: what must be the same for a saved state to be taken up.

    Raises:
        ValueError: the saved state in `folder` belongs to other settings.
        FloatingPointError: the loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(objective, options, folder, settings)
    if options.resume and (folder / STATE_FILE).is_file():
        run.resume()
    else:
        run.begin()
    with progress_bar(f"training {objective.name}", options.steps) as advance:
        advance(run.progress.step)
        run.until_done(advance)
    restore_regions(objective.model)
    run.log.plot(objective.name)
    objective.model.load_state_dict(run.best)
    objective.model.eval()
    done = run.progress
    return Outcome(done.step, done.seconds / 60, done.ended or "", done.best_metrics)


class Run(Generic[M, B]):
    """One run: model, averaged model, optimiser, and where it stands."""

    def __init__(
        self, objective: Objective[M, B], options: OptimizerOptions, folder: Path, settings: dict[str, Any]
    ) -> None:
        self.objective, self.options, self.folder, self.settings = objective, options, folder, settings
        self.model = objective.model
        self.device = next(self.model.parameters()).device
        if options.cuda_graph and self.device.type != "cuda":
            raise ValueError(f"got cuda_graph on {self.device}, expected a GPU; use --no-cuda-graph")
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.optimizer = make_optimizer(self.model, options, self.device)
        self.follow = torch.zeros((), device=self.device)  # the average's share of the way to the weights, each step
        self.generator = torch.Generator(self.device)
        if options.compile:
            compile_regions(self.model)  # and not the average, which sees batches of other sizes
        self.names: list[str] = []  # of the losses
        self.graph: CapturedStep | None = None
        self.progress = Progress()
        self.saved = -math.inf  # when, in seconds of the run
        self.reserve = 0.0  # seconds that the last evaluation took
        self.log = MetricsLog(folder)

    def begin(self) -> None:
        """Starts from scratch."""
        self.log.clear()

    def resume(self) -> None:
        """Takes up the saved state."""
        self.progress, self.best = load_state(
            self.folder, self.settings, self.model, self.average, self.optimizer, self.device
        )
        self.log.keep_until(self.progress.step)
        at = self.progress
        doing = "complete since" if at.ended else "going on from"
        print(f"{self.objective.name}: {doing} step {at.step} ({at.seconds / 60:.1f} min)", file=sys.stderr)

    def save(self) -> None:
        """Writes everything needed to go on."""
        save_state(self.folder, self.settings, self.progress, self.model, self.average, self.optimizer, self.best)
        self.saved = self.progress.seconds

    def until_done(self, advance: Callable[[int], None]) -> None:
        """Steps, evaluating and saving on the way; the last evaluation and saving count as training time."""
        progress, options = self.progress, self.options
        before, start = progress.seconds, time.monotonic()
        since_log: list[Tensor] = []
        taken = 0
        while progress.ended is None:
            progress.seconds = before + time.monotonic() - start
            done = share_done(progress.step, progress.seconds, options, self.reserve)
            since_log.append(self.step(progress.step, done, taken))
            taken += 1
            progress.step += 1
            advance(1)
            progress.seconds = before + time.monotonic() - start
            finished = share_done(progress.step, progress.seconds, options, self.reserve) >= 1.0
            if finished or progress.step % LOG_EVERY == 0 or progress.step % options.eval_every == 0:
                self.log_training(since_log)
                since_log = []
            # Not where there would be no time for the last one.
            room = share_done(progress.step, progress.seconds, options, 2 * self.reserve) < 1.0
            if finished or (progress.step % options.eval_every == 0 and room):
                progress.seconds = began = before + time.monotonic() - start
                self.evaluate()
                if progress.ended is None and finished:
                    progress.ended = "steps" if progress.step >= options.steps else "minutes"
                progress.seconds = before + time.monotonic() - start
                if progress.ended or progress.seconds - self.saved >= SAVE_EVERY:
                    self.save()
                self.reserve = before + time.monotonic() - start - began

    def step(self, step: int, done: float, taken: int) -> Float[Tensor, " losses"]:
        """One optimiser step; its losses (see `names`), still on the device. `taken`: steps of this process so far."""
        self.generator.manual_seed(self.options.seed * 1_000_003 + step)
        rate_now = self.options.learning_rate * rate(step, done, self.options.warmup)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate_now)
            else:
                group["lr"] = rate_now
        # Early on the average follows closely, or it would carry the initial weights along.
        self.follow.fill_(1 - min(self.options.ema, (1 + step) / (10 + step)))
        if not self.options.cuda_graph:
            return self.compute()
        if taken < UNCAPTURED:
            with on_side_stream(self.device):
                return self.compute()
        if self.graph is None:
            self.graph = CapturedStep(self.compute, self.generator, self.device)
        return self.graph.replay()

    def compute(self) -> Float[Tensor, " losses"]:
        """What a step does on the device."""
        self.model.train()
        with half_precision(self.device):
            with torch.no_grad():
                batch = self.objective.batch(self.generator)
            loss, parts = self.objective.loss(self.model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.follow_weights()
        self.names = ["loss", *parts]
        return torch.stack([loss.detach().float(), *(part.detach().float() for part in parts.values())])

    @torch.no_grad()
    def follow_weights(self) -> None:
        """Moves the average towards the weights, all tensors in a few launches."""
        averaged: list[Tensor] = list(self.average.parameters())
        current: list[Tensor] = list(self.model.parameters())
        steps = list(torch._foreach_sub(current, averaged))
        torch._foreach_mul_(steps, self.follow)
        torch._foreach_add_(averaged, steps)

    def log_training(self, rows: list[Float[Tensor, " losses"]]) -> None:
        """Writes the mean of the last steps."""
        names, means = self.names, torch.stack(rows).mean(0).tolist()
        if not all(math.isfinite(mean) for mean in means):
            raise FloatingPointError(
                f"the loss of {self.objective.name} is {means[0]} near step {self.progress.step}; "
                "try a smaller --learning-rate"
            )
        rate_now = float(self.optimizer.param_groups[0]["lr"])
        metrics = dict(zip(names, means, strict=True)) | {"learning_rate": rate_now}
        self.log.write("train", self.progress.step, self.progress.seconds, metrics)

    def evaluate(self) -> None:
        """Held-out metrics of the averaged weights; keeps them if they are the best, stops if patience is out."""
        progress, select = self.progress, self.objective.select
        with torch.no_grad(), half_precision(self.device):
            metrics = self.objective.evaluate(self.average)
        self.log.write("held_out", progress.step, progress.seconds, metrics)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if isinstance(value, float))
        print(
            f"{self.objective.name}: step {progress.step}, {progress.seconds / 60:.1f} min: {shown}", file=sys.stderr
        )
        if progress.best_metrics.get(select, math.inf) > metrics[select]:
            progress.best_metrics, progress.without_progress = {"step": progress.step, **metrics}, 0
            self.best = {name: value.clone() for name, value in self.average.state_dict().items()}
        else:
            progress.without_progress += 1
            if progress.without_progress >= self.options.patience:
                progress.ended = "patience"


class CapturedStep:
    """A step as a CUDA graph: one launch, with the memory and the addresses of the step that was captured.

    Args:
        compute: the step; it has run a few times, on another stream than the default one.
        generator: of its draws; each replay draws from the seed that the generator has then.
        device: where it runs.
    """

    def __init__(self, compute: Callable[[], Tensor], generator: torch.Generator, device: torch.device) -> None:
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(generator)
        with torch.cuda.device(device):
            stream = capture_stream(torch.cuda.current_device())
            with torch.cuda.graph(self.graph, stream=stream):
                self.losses = compute()

    def replay(self) -> Tensor:
        """Takes a step."""
        self.graph.replay()
        return self.losses.clone()  # the next replay writes over it


@contextmanager
def on_side_stream(device: torch.device) -> Iterator[None]:
    """Runs the block on a stream of its own, as steps before a capture have to; what comes after waits for it."""
    stream, outer = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(outer)
    with torch.cuda.stream(stream):
        yield
    outer.wait_stream(stream)


def make_optimizer(model: nn.Module, options: OptimizerOptions, device: torch.device) -> torch.optim.AdamW:
    """Fused AdamW; only matrices decay, and of them not the embeddings."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        (decayed if parameter.ndim >= 2 and id(parameter) not in tables else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    graph = options.cuda_graph
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=torch.tensor(options.learning_rate, device=device) if graph else options.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
        capturable=graph,
    )


def share_done(step: int, seconds: float, options: OptimizerOptions, reserve: float = 0.0) -> float:
    """How much of the budget is used: of the steps or of the minutes, whichever is further.

    `reserve` are seconds of the minutes that the last evaluation will take.
    """
    by_time = 0.0 if options.minutes is None else seconds / max(60 * options.minutes - reserve, 1e-3)
    return max(step / options.steps, by_time)


def rate(step: int, done: float, warmup: int) -> float:
    """Share of the peak learning rate: linear up over `warmup` steps, and a cosine down to 1 % over the budget."""
    cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return min(1.0, (step + 1) / (warmup + 1)) * cosine


@contextmanager
def half_precision(device: torch.device) -> Iterator[None]:
    """bfloat16 autocast on a GPU; plain float32 elsewhere."""
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        yield
