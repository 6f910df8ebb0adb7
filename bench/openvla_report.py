"""The rows of `bench.gpu_openvla` as markdown tables: `python -m bench.openvla_report FOLDER/rows.jsonl`.

With `--into docs/performance.md` the tables take the place of what lies between `<!-- rows:NAME -->` and
`<!-- end -->`, NAME being a section; everything else of the page stays.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

Row = dict[str, Any]
MACHINE = ("gpu", "torch", "cuda", "triton", "preset", "runtime", "copy_gbps", "gemm_tflops")
TIMED = ("work", "variant", "ms", "p10 - p90", "wall ms", "floor ms", "bound", "share of floor", "x fused")
MARK = re.compile(r"(<!-- rows:([\w,]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def table(columns: tuple[str, ...], cells: list[list[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *(f"| {' | '.join(row)} |" for row in cells)]
    return "\n".join(lines) + "\n"


def number(value: float | None, form: str = ".3f") -> str:
    return "" if value is None else format(value, form)


def section_table(rows: list[Row], names: tuple[str, ...]) -> str:
    """One table of the sections' timed rows, by work; then what was noted."""
    chosen = [row for row in rows if row["section"] in names]
    if names == ("machine",):
        found = [row for row in chosen if row["work"] == "machine"]
        return "".join(f"- {key}: {number(v, '.1f') if isinstance(v, float) else v}\n" for row in found
                       for key, v in row.items() if key in MACHINE)  # fmt: skip
    if names == ("accuracy",):
        return accuracy_table(chosen)
    timed = [row for row in chosen if row.get("ms") is not None]
    works = list(dict.fromkeys(key(row) for row in timed))
    best = {key(row): row["ms"] for row in reversed(timed) if row["variant"].startswith("fused")}
    cells = []
    for work in works:
        for row in sorted((row for row in timed if key(row) == work), key=lambda row: row["ms"]):
            ratio = row["ms"] / best[work] if work in best else None
            cells.append(
                [
                    work,
                    row["variant"],
                    number(row["ms"]),
                    f"{row['p10']:.3f} - {row['p90']:.3f}",
                    number(row["wall_ms"]),
                    number(row.get("floor_ms")),
                    row.get("bound", ""),
                    number(row.get("floor_share"), ".0%"),
                    number(ratio, ".2f"),
                ]
            )
    notes = [f"- {row['work']}, {row['variant']}: {row['note']}\n" for row in chosen if row.get("note")]
    traces = [
        f"- {row['work']}, {row['variant']}: {row['wall_ms_mean']:.2f} ms on average over {row['trace']} "
        f"(mean {row['passes_mean']:.2f} passes, shares {row['passes_shares']})\n"
        for row in chosen
        if "wall_ms_mean" in row
    ]
    return table(TIMED, cells) + "".join(["\n"] * bool(notes or traces) + traces + notes)


def key(row: Row) -> str:
    """Work, with the passes a chunk took."""
    return f"{row['work']}, {row['passes']} passes" if row.get("passes") else row["work"]


def accuracy_table(rows: list[Row]) -> str:
    names = ("cosine", "cosine_worst_token", "action_mae", "codes_alike", "bit_identical")
    cells = []
    for row in rows:
        values = [row.get(name) for name in names]
        cells.append([row["work"], row["variant"], *("" if v is None else f"{v:.6g}" if v is not True and v is not False
                                                     else str(v).lower() for v in values)])  # fmt: skip
    return table(("work", "variant", *names), cells)


def fill(page: str, rows: list[Row]) -> str:
    """The page with its tables made anew."""
    return MARK.sub(lambda m: m[1] + section_table(rows, tuple(m[2].split(","))) + m[3], page)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("rows", type=Path, help="rows.jsonl")
    parser.add_argument("--into", type=Path, default=None, help="a markdown page with marks")
    options = parser.parse_args(arguments)
    rows = read(options.rows)
    if options.into is None:
        for section in dict.fromkeys(row["section"] for row in rows):
            print(f"\n## {section}\n\n{section_table(rows, (section,))}", end="")
        return
    options.into.write_text(fill(options.into.read_text(), rows))
    print(options.into)


if __name__ == "__main__":
    main()
