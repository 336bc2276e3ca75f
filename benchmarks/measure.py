"""Taking measurements: contenders take turns, each measurement in a process of its own where memory is of interest."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table

__all__ = ["Contender", "Report", "Sample", "alternate", "apart", "measure", "spread"]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run took: wall and processor seconds, and peak memory: a program's, or beyond what the process had."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int = 0
    notes: Mapping[str, float] = field(default_factory=dict)


Contender = Callable[[], Mapping[str, float] | None]
"""One way to do the work. It may return notes, figures by name, which the table shows as columns."""


def measure(contender: Contender) -> Sample:
    """Run a contender in this process."""
    memory, programs = _peak(resource.RUSAGE_SELF), _peak(resource.RUSAGE_CHILDREN)
    cpu, start = _cpu(), time.perf_counter()
    notes = contender()
    seconds, cpu_seconds = time.perf_counter() - start, _cpu() - cpu
    peak, largest = _peak(resource.RUSAGE_SELF) - memory, _peak(resource.RUSAGE_CHILDREN)
    return Sample(seconds, cpu_seconds, max(peak, largest if largest > programs else 0), dict(notes or {}))


def _peak(whose: int) -> int:
    """The most memory that this process, or one of the children that it has waited for, ever had."""
    return resource.getrusage(whose).ru_maxrss * 1024


def _cpu() -> float:
    """Processor seconds of this process and of the children that it has waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def alternate(contenders: Mapping[str, Contender], *, rounds: int, isolated: bool = False) -> dict[str, list[Sample]]:
    """Let the contenders take turns, so that whatever else the machine does hits all of them.

    Args:
        contenders: by name; the order turns from round to round.
        rounds: how often each runs. One more round before is not counted.
        isolated: run each apart, so that its peak memory is its own.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            sample = apart(contenders[name]) if isolated else measure(contenders[name])
            if number:
                samples[name].append(sample)
    return samples


def apart(contender: Contender) -> Sample:
    """Run a contender in a fork of this process, which must not have started threads."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        sender.send(measure(contender))

    process = context.Process(target=run)
    with warnings.catch_warnings():
        # Engines warn of forks after their threads were started, and this process starts none.
        warnings.simplefilter("ignore", UserWarning)
        process.start()
    sender.close()
    try:
        sample: Sample = receiver.recv()
    except EOFError:
        raise RuntimeError("a measured process died; what it said stands above") from None
    finally:
        process.join()
    return sample


def spread(values: Sequence[float], unit: str = "s") -> str:
    """The median, and the least and the greatest value."""
    scale = {"s": 1.0, "ms": 1e3, "us": 1e6, "MiB": 1 / 1024**2}[unit]
    low, mid, high = (value * scale for value in _ordered(values))
    digits = max(0, 2 - len(str(int(mid)))) + 1
    if low == high:
        return f"{mid:.{digits}f}"
    return f"{mid:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _counted(values: Sequence[float]) -> str:
    """Figures that ought to be the same each time: one, or the median, the least and the greatest."""
    least, mid, greatest = (f"{value:,.2f}".removesuffix(".00") for value in _ordered(values))
    return mid if least == greatest else f"{mid} ({least} to {greatest})"


def _ordered(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)


@dataclass
class Report:
    """One table: a row a contender.

    Attributes:
        title: what was done.
        target: what is asked for.
        unit: of the times.
        memory: whether peak memory is shown.
        samples: by contender, ours first.
        ratio: the heading of the last column, which compares medians of wall time.
        bases: for each row of the last column what its time is divided by; without it, ours is divided by each row's.
    """

    title: str
    target: str
    unit: str = "s"
    memory: bool = False
    samples: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    ratio: str = "ours / this"
    bases: Mapping[str, str] = field(default_factory=dict)

    def table(self) -> Table:
        """The table as it is printed."""
        table = Table(
            title=self.title, caption=f"asked for: {self.target}", title_justify="left", caption_justify="left"
        )
        notes = list(dict.fromkeys(key for samples in self.samples.values() for key in samples[-1].notes))
        for column in ("", f"wall, {self.unit}", f"CPU, {self.unit}", *(("peak, MiB",) if self.memory else ()), *notes):
            table.add_column(column, justify="right" if column else "left")
        table.add_column(self.ratio, justify="right")
        for name, samples in self.samples.items():
            cells = [name, spread([sample.seconds for sample in samples], self.unit)]
            cells.append(spread([sample.cpu_seconds for sample in samples], self.unit))
            if self.memory:
                cells.append(spread([sample.peak_bytes for sample in samples], "MiB"))
            cells += [_counted([s.notes[key] for s in samples]) if key in samples[-1].notes else "" for key in notes]
            table.add_row(*cells, self._ratio(name))
        return table

    def _ratio(self, name: str) -> str:
        if not self.bases:
            return f"{self._median(next(iter(self.samples))) / self._median(name):.2f}"
        return f"{self._median(name) / self._median(self.bases[name]):.2f}" if name in self.bases else ""

    def _median(self, name: str) -> float:
        return statistics.median(sample.seconds for sample in self.samples[name])
