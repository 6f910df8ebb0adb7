"""What a running evaluation shows on stderr."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .episodes import WorkItem
from .records import EpisodeRow
from .scheduler import Usage

COLOURS = {"success": "green", "failure": "yellow", "error": "red"}


class Live:
    """A bar with counts on a terminal; one line an episode elsewhere. Errors get a line in both.

    Usage: `with Live(total) as live: live.ended(...)`.
    """

    def __init__(self, total: int) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.counts = dict.fromkeys(COLOURS, 0)
        self.total = total
        columns = (
            TextColumn("episodes"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.bar = self.progress.add_task("episodes", total=total, counts="starting the simulators")

    def __enter__(self) -> Live:
        """Starts the bar."""
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the bar."""
        self.progress.stop()

    def ended(self, item: WorkItem, row: EpisodeRow, again: bool) -> None:
        """An episode is over; `again`: it will be tried again."""
        if not again:
            self.counts[row.outcome] += 1
        done = sum(self.counts.values())
        parts = [f"[{COLOURS[name]}]{count} {name}[/]" for name, count in self.counts.items() if count]
        self.progress.update(self.bar, completed=done, counts=" ".join(parts) + f", last {escape(str(item))}")
        if row.outcome == "error" or not self.console.is_terminal:
            line = escape(self._line(done, item, row, again))
            self.console.print(f"[{COLOURS[row.outcome]}]{line}[/]", soft_wrap=True)

    def usage(self, usage: Usage) -> None:
        """How busy everybody was."""
        told = usage.describe()
        self.console.print(
            f"{told['episodes']} episodes in {told['seconds']:.0f} s; policy busy {told['policy_busy']:.0%}, "
            f"{told['simulators']} simulators busy {told['simulators_busy']:.0%}"
        )

    def _line(self, done: int, item: WorkItem, row: EpisodeRow, again: bool) -> str:
        line = f"{done:4d}/{self.total} {item}: {row.outcome}"
        if row.outcome == "error":
            return f"{line}{', trying again' if again else ''}: {row.error}"
        passes = f", {sum(row.passes) / len(row.passes):.2f} passes a chunk" if row.passes else ""
        return f"{line}, {row.steps} steps{passes}"
