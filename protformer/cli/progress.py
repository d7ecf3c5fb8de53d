"""Progress of a command on standard error: a bar on a terminal, lines of JSON for programs, else nothing."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

_EVERY = 5.0  # seconds between lines of JSON


@runtime_checkable
class Progress(Protocol):
    """Counts residues."""

    def start(self, total: int | None) -> None:
        """So many are to be done; None where that is not known."""

    def advance(self, residues: int) -> None: ...

    def skip(self, residues: int) -> None:
        """Found done: they count, and not for the rate."""


class Quiet:
    def start(self, total: int | None) -> None: ...
    def advance(self, residues: int) -> None: ...
    def skip(self, residues: int) -> None: ...


class JsonLines:
    """`{"event": "progress", "residues": 4096, "of": 90000, "residues_per_second": 5000, "seconds_left": 17}`."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._total: int | None = None
        self._done = self._skipped = 0
        self._begun = self._said = time.monotonic()

    def start(self, total: int | None) -> None:
        self._total = total
        self._begun = self._said = time.monotonic()
        self._say("start")

    def advance(self, residues: int) -> None:
        self._done += residues
        if time.monotonic() - self._said >= _EVERY:
            self._say("progress")

    def skip(self, residues: int) -> None:
        self._skipped += residues

    def end(self) -> None:
        self._say("end")

    def _say(self, event: str) -> None:
        self._said = time.monotonic()
        rate = self._done / max(self._said - self._begun, 1e-9)
        there = self._done + self._skipped
        left = None if self._total is None or not rate else round((self._total - there) / rate, 1)
        line = {"event": event, "what": self._what, "residues": there, "of": self._total, "resumed": self._skipped}
        print(
            json.dumps({**line, "residues_per_second": round(rate, 1), "seconds_left": left}),
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def reporting(what: str, *, as_json: bool = False) -> Iterator[Progress]:
    """Residues done, residues per second and the time left. `what` stands in front, such as "embedding"."""
    if as_json:
        lines = JsonLines(what)
        yield lines
        lines.end()
        return
    if not sys.stderr.isatty():
        yield Quiet()
        return
    with _bar(what) as bar:
        yield bar


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn as Column
    from rich.table import Column as TableColumn
    from rich.text import Text

    class Rate(Column):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} residues/s" if task.speed else "")

    class Done(Column):
        def render(self, task: Task) -> Text:
            of = f" of {task.total:,.0f}" if task.total is not None else ""
            return Text(f"{task.completed:,.0f}{of} residues")

    one_line = {"table_column": TableColumn(no_wrap=True)}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),
        Done(**one_line),
        Rate(**one_line),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=None, visible=False)

        class Bar:
            def start(self, total: int | None) -> None:
                bars.update(task, total=total, visible=True)

            def advance(self, residues: int) -> None:
                bars.advance(task, residues)

            def skip(self, residues: int) -> None:
                # (reset, and not advance: the rate is that of what is computed)
                done = bars.tasks[0].completed + residues
                bars.reset(task, total=bars.tasks[0].total, completed=int(done))

        yield Bar()
