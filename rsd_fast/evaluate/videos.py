"""Side-by-side videos: one panel a mode, for the same task and initial state."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from .episodes import Film
from .films import file_name, film_path, has_film, load_film
from .phases import phases
from .records import EpisodeRow

FPS = 20  # control steps a second
HOLD = FPS  # frames that the last picture stays
PANEL, INSET, BAND, TITLE, GAP = 384, 112, 52, 32, 4  # pixels; main and wrist camera are square
COLUMNS = 3
OUTCOMES = {"success": "#7CFC00", "failure": "#FFB000", "error": "#FF6060"}

Frame = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class Panel:
    """One mode's part of the video."""

    row: EpisodeRow
    film: Film

    def draw(self, step: int) -> Image.Image:
        """The picture after control step `step`, counted from 0; the last one stays."""
        last = len(self.film.frames) - 1
        shown = min(step, last)
        chunk = int(np.searchsorted(self.film.chunks, shown, side="right")) - 1
        picture = Image.new("RGB", (PANEL, PANEL + BAND), "black")
        picture.paste(_scaled(self.film.frames[shown], PANEL), (0, 0))
        inset = _scaled(self.film.wrist[chunk], INSET)
        picture.paste(inset, (PANEL - INSET, 0))
        draw = ImageDraw.Draw(picture)
        draw.rectangle((PANEL - INSET, 0, PANEL - 1, INSET - 1), outline="black", width=2)
        _write(draw, (8, PANEL + 4), self.row.mode, "white", 16, PANEL - 16)
        over = step >= last
        caption = self._outcome() if over else self._caption(chunk, shown)
        _write(draw, (8, PANEL + 28), caption, OUTCOMES[self.row.outcome] if over else "#CCCCCC", 14, PANEL - 16)
        return picture

    def _outcome(self) -> str:
        text = f"{self.row.outcome} after {self.row.steps} steps"
        return f"{text}, {np.mean(self.row.passes):.2f} passes a chunk" if self.row.passes else text

    def _caption(self, chunk: int, step: int) -> str:
        if not self.row.passes:  # the expert decodes nothing
            return f"step {step + 1}"
        passes = self.row.passes[chunk]
        text = f"step {step + 1}  chunk {chunk + 1}: {passes} pass{'es' if passes > 1 else ''}"
        if self.row.kept_rates[chunk]:
            text += f", kept {self.row.accepted_layers[chunk]:.2f} of {len(self.row.kept_rates[chunk])} drafted layers"
        return f"{phases(self.row)[chunk]}  {text}"


def write_videos(rows: Sequence[EpisodeRow], modes: Sequence[str], folders: Sequence[Path], out: Path) -> list[Path]:
    """Writes a video for every initial state that at least one mode was filmed at; those that are up to date stay.

    Args:
        rows: of the evaluation.
        modes: left to right.
        folders: searched for films.
        out: where the folder `videos` goes.

    Returns:
        all videos, in the order of the rows.
    """
    filmed: dict[tuple[str, str, int, int], dict[str, tuple[EpisodeRow, Path]]] = defaultdict(dict)
    for row in rows:
        found = [path for folder in folders if has_film(path := film_path(folder, row))]
        if found and row.outcome != "error":
            filmed[row.pair][row.mode] = (row, found[0])
    paths = []
    for by_mode in filmed.values():
        shown = [by_mode[mode] for mode in modes if mode in by_mode]
        path = out / "videos" / f"{file_name(shown[0][0], [row.mode for row, _ in shown])}.mp4"
        if not _is_current(path, [film for _, film in shown]):
            write_video(path, [Panel(row, load_film(film)) for row, film in shown])
        paths.append(path)
    return paths


def write_video(path: Path, panels: Sequence[Panel]) -> None:
    """H.264 in an mp4, 20 frames a second: real time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.stem + ".partial.mp4")
    with av.open(str(partial), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "veryfast"})
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames(panels)):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    os.replace(partial, path)


def frames(panels: Sequence[Panel]) -> Iterator[Frame]:
    """The pictures of a video: as long as the longest episode, and a second more."""
    columns = min(len(panels), COLUMNS)
    lines = -(-len(panels) // columns)
    row = panels[0].row
    task = "" if row.task.replace("_", " ") == row.instruction else f" {row.task}"  # LIBERO's names say the same
    title = f"{row.instruction}   ({row.suite}{task}, initial state {row.init_state}, seed {row.seed})"
    size = (columns * (PANEL + GAP) - GAP, TITLE + lines * (PANEL + BAND))
    for step in range(max(len(panel.film.frames) for panel in panels) + HOLD):
        canvas = Image.new("RGB", size, "black")
        _write(ImageDraw.Draw(canvas), (8, 6), title, "white", 16, size[0] - 16)
        for place, panel in enumerate(panels):
            line, column = divmod(place, columns)
            canvas.paste(panel.draw(step), (column * (PANEL + GAP), TITLE + line * (PANEL + BAND)))
        yield np.asarray(canvas)


def _is_current(path: Path, films: Sequence[Path]) -> bool:
    newest = max(film.with_name(film.name + ".npz").stat().st_mtime for film in films)
    return path.is_file() and path.stat().st_mtime >= newest


def _scaled(picture: Frame, size: int) -> Image.Image:
    return Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, colour: str, size: int, width: int) -> None:
    """Text, smaller where it would be wider than `width` pixels."""
    font = next((font for n in range(size, 7, -1) if draw.textlength(text, font := _font(n)) <= width), _font(7))
    draw.text(at, text, fill=colour, font=font)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
