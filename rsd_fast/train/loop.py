"""The training loop that codec, main model and drafts share.

Every draw of step s comes from a generator seeded with (seed, s), so that a run that was killed and resumed draws
the same as one that was not.
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
from torch import Tensor, nn

from rsd_fast.progress import progress_bar
from rsd_fast.train.config import OptimizerOptions
from rsd_fast.train.metrics import MetricsLog
from rsd_fast.train.state import STATE_FILE, Progress, load_state, save_state

B = TypeVar("B")
M = TypeVar("M", bound=nn.Module)
LOG_EVERY = 50  # steps a training row averages over; reading the losses stops the device


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
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.optimizer = make_optimizer(self.model, options)
        self.generator = torch.Generator(self.device)
        self.loss = torch.compile(objective.loss) if options.compile else objective.loss
        self.progress = Progress()
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

    def until_done(self, advance: Callable[[int], None]) -> None:
        """Steps, evaluating and saving on the way."""
        progress, options = self.progress, self.options
        before, start = progress.seconds, time.monotonic()
        since_log: list[dict[str, Tensor]] = []
        while progress.ended is None:
            progress.seconds = before + time.monotonic() - start
            since_log.append(self.step(progress.step, share_done(progress.step, progress.seconds, options)))
            progress.step += 1
            advance(1)
            progress.seconds = before + time.monotonic() - start
            finished = share_done(progress.step, progress.seconds, options) >= 1.0
            if finished or progress.step % LOG_EVERY == 0 or progress.step % options.eval_every == 0:
                self.log_training(since_log)
                since_log = []
            if finished or progress.step % options.eval_every == 0:
                self.evaluate()
                if progress.ended is None and finished:
                    progress.ended = "steps" if progress.step >= options.steps else "minutes"
                progress.seconds = before + time.monotonic() - start
                self.save()

    def step(self, step: int, done: float) -> dict[str, Tensor]:
        """One optimiser step; the parts of the loss, still on the device."""
        options, model = self.options, self.model
        self.generator.manual_seed(options.seed * 1_000_003 + step)
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * rate(step, done, options.warmup)
        model.train()
        with half_precision(self.device):
            with torch.no_grad():
                batch = self.objective.batch(self.generator)
            loss, parts = self.loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # Early on the average follows closely, or it would carry the initial weights along.
        decay = min(options.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for averaged, current in zip(self.average.parameters(), model.parameters(), strict=True):
                averaged.lerp_(current, 1 - decay)
        return {"loss": loss.detach(), **{name: part.detach() for name, part in parts.items()}}

    def log_training(self, rows: list[dict[str, Tensor]]) -> None:
        """Writes the mean of the last steps."""
        names = list(rows[0])
        means = torch.stack([torch.stack([row[name].float() for name in names]) for row in rows]).mean(0).tolist()
        if not all(math.isfinite(mean) for mean in means):
            raise FloatingPointError(
                f"the loss of {self.objective.name} is {means[0]} near step {self.progress.step}; "
                "try a smaller --learning-rate"
            )
        rate_now = self.optimizer.param_groups[0]["lr"]
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


def make_optimizer(model: nn.Module, options: OptimizerOptions) -> torch.optim.AdamW:
    """Fused AdamW; only matrices decay, and of them not the embeddings."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        (decayed if parameter.ndim >= 2 and id(parameter) not in tables else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=options.learning_rate, betas=(0.9, 0.95), fused=True
    )


def share_done(step: int, seconds: float, options: OptimizerOptions) -> float:
    """How much of the budget is used: of the steps or of the minutes, whichever is further."""
    by_time = 0.0 if options.minutes is None else seconds / (60 * options.minutes)
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
