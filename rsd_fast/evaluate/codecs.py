"""A comparison of codecs that was made offline, as the study shows it: a file of JSON or Markdown -> a table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import tables

MOST_COLUMNS = 24  # more of them are a record, and no table


def read_codecs(path: Path) -> tuple[tables.Rows, dict[str, str]]:
    """The table, and what else the file says.

    The file is a list of objects, an object that holds such a list (what else it says is kept beside it), or an object
    of objects by name. Columns are the keys of the rows, in order; those of objects and lists within a row are joined
    to theirs. Nothing depends on what the keys are.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, none of these, or rows with too much in them.
    """
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}), expected a list of objects, one a codec") from error
    rows, beside = _rows(found)
    if not rows:
        raise ValueError(f"got no rows in {path}, expected a list of objects, one a codec")
    cells = [{name: _cell(value) for name, value in _flat(row)} for row in rows]
    columns = len({name for row in cells for name in row})
    if columns > MOST_COLUMNS:
        raise ValueError(
            f"got {columns} columns in {path}, expected at most {MOST_COLUMNS}: give the table in Markdown, such as "
            f"the {path.with_suffix('.md').name} that is written beside it"
        )
    return cells, {name: _cell(value) for name, value in _flat(beside)}


def text(path: Path) -> str:
    """A sentence and the table; of Markdown its own words, without the title. Raises as `read_codecs` does."""
    if path.suffix == ".md":
        own = re.sub(r"\A# .*\n+", "", path.read_text())
        return f"From `{path.name}`, measured offline.\n\n{re.sub(r'(?m)^#', '##', own).strip()}"
    rows, beside = read_codecs(path)
    told = "\n".join(f"- {name}: {value}" for name, value in beside.items())
    words = {name for row in rows for name, cell in row.items() if not _is_number(cell)}
    intro = (
        f"{tables.plural(len(rows), 'variant')} of the codec, from `{path.name}`: trained and measured offline, so the "
        "errors are those of single chunks of demonstrations, not of episodes; which of them a robot notices, the "
        "tables of success say."
    )
    return "\n\n".join([intro, *([told] if told else []), tables.markdown(rows, words)])


def _rows(found: Any) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    if isinstance(found, list):
        return (found if _is_table(found) else []), {}
    if not isinstance(found, Mapping):
        return [], {}
    lists = {name: value for name, value in found.items() if _is_table(value)}
    if lists:
        name, rows = max(lists.items(), key=lambda item: len(item[1]))
        return rows, {key: value for key, value in found.items() if key != name}
    if all(isinstance(value, Mapping) for value in found.values()):
        return [{"variant": name} | dict(value) for name, value in found.items()], {}
    return [], {}


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, list):
        parts = list(enumerate(value))
    else:
        return [(name, value)]
    return [pair for key, part in parts for pair in _flat(part, f"{name} {key}".strip().replace("_", " "))]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(cell: str) -> bool:
    try:
        float(cell or 0)
    except ValueError:
        return False
    return True
