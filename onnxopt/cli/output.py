"""What a command shows: the report on stdout, progress on stderr, and all of it in a log file if one is wanted."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import IO, TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from onnxopt.errors import OutputError

T = TypeVar("T")

# A plain line only for what takes longer than this, and at most this often.
_PATIENCE_S = 1.0
_LINE_EVERY_S = 5.0
# Bars are drawn while models are timed: seldom, so as not to disturb. What is over before is not seen.
_REFRESH_HZ = 2
_WIDTH = 120


def console() -> Console:
    """Standard output: as wide as the terminal, or wide enough for the tables where there is none."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=_WIDTH)


class Output:
    """Where a command's words go. ``track`` is the Track that the engine calls."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False, log_file: Path | None = None) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self._out = console()
        self._err = Console(stderr=True, highlight=False)
        self._log: IO[str] | None = None
        if log_file is not None:
            try:
                self._log = log_file.open("a", encoding="utf-8", errors="backslashreplace")
            except OSError as error:
                raise OutputError(f"cannot write the log file {log_file}: {error.strerror}") from None
        self._progress: Progress | None = None

    def __enter__(self) -> Output:
        if not self.quiet and self._err.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._progress = Progress(*columns, console=self._err, transient=True, refresh_per_second=_REFRESH_HZ)
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._log is not None:
            self._log.close()

    def show(self, renderable: RenderableType) -> None:
        """Print a result. ``--quiet`` leaves it to the log file and the exit code."""
        if not self.quiet:
            self._out.print(renderable)
        if self._log is not None:
            Console(file=self._log, width=_WIDTH, highlight=False).print(renderable)

    def say(self, line: str) -> None:
        """Print a line, however long: a path in it stays in one piece."""
        if not self.quiet:
            self._out.print(line, markup=False, soft_wrap=True)

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Show how far the items are: a bar on a terminal, a line now and then elsewhere."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        started = said = time.monotonic()
        task = self._progress.add_task(description, total=total) if self._progress is not None else None
        done = 0
        try:
            for item in items:
                yield item
                done += 1
                now = time.monotonic()
                if self._progress is not None and task is not None:
                    self._progress.update(task, completed=done)
                if now - said > (_LINE_EVERY_S if said > started else _PATIENCE_S):
                    said = now
                    self._line(f"{description}: {done}{f' of {total}' if total else ''}, {now - started:.0f} s")
        finally:
            if self._progress is not None and task is not None:
                self._progress.remove_task(task)
            if time.monotonic() - started > _PATIENCE_S:
                self._line(f"{description}: {done} done in {time.monotonic() - started:.1f} s")

    def _line(self, text: str) -> None:
        if self._progress is None and not self.quiet:
            self._err.print(text)
        if self._log is not None:
            self._log.write(f"{time.strftime('%H:%M:%S')} {text}\n")
            self._log.flush()
