"""pytest-benchmark's JSON as a markdown table and plots: `python -m bench.report results.json --out folder`.

Writes `report.md` and one `<op> <shape> <device>.png` per op, shape and device: time against batch size, with the
ceiling (the bytes a call must move, at the copy bandwidth measured in the same run). Medians and quartiles; the
ratio is to the group's baseline, above 1 is faster.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLUMNS = ("shape", "B", "device", "provider", "median us", "q1 - q3", "device us", "GB/s", "of copy", "ratio")


@dataclass(frozen=True)
class Row:
    """One benchmark; times in microseconds, `copy_gbps` None where the run did not measure it."""

    op: str
    shape: str
    batch: int
    device: str
    provider: str
    baseline: str
    bytes: int
    median: float
    q1: float
    q3: float
    device_us: float | None
    copy_gbps: float | None

    @property
    def us(self) -> float:
        """The GPU's own time where there is one, else what the caller waits."""
        return self.device_us or self.median

    @property
    def gbps(self) -> float:
        return self.bytes / self.us / 1e3

    @property
    def ceiling_us(self) -> float | None:
        return self.bytes / self.copy_gbps / 1e3 if self.copy_gbps else None

    @property
    def work(self) -> tuple[str, str, str, int]:
        """What has to be the same for two rows to be compared."""
        return self.op, self.shape, self.device, self.batch


def read_rows(data: dict[str, Any]) -> list[Row]:
    """The rows of a result file, in order of work and time.

    Raises:
        ValueError: benchmarks without the extra_info that this report is about.
    """
    copies = data["machine_info"].get("copy_gbps", {})
    rows = []
    for bench in data["benchmarks"]:
        info, stats = bench["extra_info"], bench["stats"]
        missing = {"op", "shape", "batch", "device", "provider", "baseline", "bytes"} - set(info)
        if missing:
            raise ValueError(f"{bench['name']}: got no {sorted(missing)} in extra_info, expected a row of bench/")
        times = {name: stats[name] * 1e6 for name in ("median", "q1", "q3")}
        fields = {name: info[name] for name in ("op", "shape", "batch", "device", "provider", "baseline", "bytes")}
        rows.append(Row(**fields, **times, device_us=info.get("device_us"), copy_gbps=copies.get(info["device"])))
    return sorted(rows, key=lambda row: (row.work, row.us))


def markdown(rows: list[Row], data: dict[str, Any]) -> str:
    """Machine and commit, then the table."""
    lines = [*machine_lines(data), "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    baselines = {row.work: row.us for row in rows if row.provider == row.baseline}
    for row in rows:
        ceiling, baseline = row.ceiling_us, baselines.get(row.work)
        cells = (
            row.shape,
            row.batch,
            row.device,
            row.provider,
            f"{row.median:.1f}",
            f"{row.q1:.1f} - {row.q3:.1f}",
            f"{row.device_us:.1f}" if row.device_us else "",
            f"{row.gbps:.2f}",
            f"{ceiling / row.us:.1%}" if ceiling else "",
            f"{baseline / row.us:.1f}" if baseline else "",
        )
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def machine_lines(data: dict[str, Any]) -> list[str]:
    """What was measured, on what."""
    machine, commit = data["machine_info"], data.get("commit_info", {})
    cpu = machine.get("cpu", {}).get("brand_raw", machine.get("processor") or "unknown CPU")
    dirty = " with local changes" if commit.get("dirty") else ""
    lines = [
        f"- commit {str(commit.get('id', 'unknown'))[:12]}{dirty}, {data.get('datetime', 'date unknown')}",
        f"- {cpu}, {machine.get('threads', '?')} threads, torch {machine.get('torch', '?')}",
    ]
    if gpu := machine.get("gpu"):
        lines.append(f"- {gpu['gpu']}, CUDA {gpu['cuda']}, triton {gpu['triton']}")
    for device, gbps in machine.get("copy_gbps", {}).items():
        lines.append(f"- copy bandwidth, {device}: {gbps:.1f} GB/s (read and written)")
    return lines


def plot(rows: list[Row], folder: Path) -> list[Path]:
    """One figure per op, shape and device."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    written = []
    for op, shape, device in sorted({row.work[:3] for row in rows}):
        here = [row for row in rows if row.work[:3] == (op, shape, device)]
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for provider in sorted({row.provider for row in here}):
            line = sorted((row.batch, row.us) for row in here if row.provider == provider)
            axes.plot(*zip(*line, strict=True), marker="o", label=provider)
        ceiling = sorted({(row.batch, row.ceiling_us) for row in here if row.ceiling_us is not None})
        if ceiling:
            axes.plot(*zip(*ceiling, strict=True), "k--", label="ceiling: copy bandwidth")
        axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="time of a call, us")
        axes.set_title(f"{op}, {shape}, {device}")
        axes.grid(alpha=0.3)
        axes.legend()
        path = folder / f"{op} {shape} {device}.png".replace(" ", "_")
        FigureCanvasAgg(figure).print_png(str(path))
        written.append(path)
    return written


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", type=Path, help="written by pytest bench/ --benchmark-json")
    parser.add_argument("--out", type=Path, required=True, help="folder for report.md and the plots")
    options = parser.parse_args(arguments)
    data = json.loads(options.results.read_text())
    rows = read_rows(data)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.md").write_text(markdown(rows, data))
    for path in (options.out / "report.md", *plot(rows, options.out)):
        print(path)


if __name__ == "__main__":
    main()
