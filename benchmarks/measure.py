"""Taking measurements: contenders take turns, each measurement in a process of its own where memory is of interest."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table

__all__ = ["Contender", "Report", "Sample", "alternate", "apart", "measure", "spread"]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run took: wall and processor seconds, and peak memory beyond what the process had before."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int = 0
    notes: Mapping[str, str] = field(default_factory=dict)


Contender = Callable[[], Mapping[str, str] | None]
"""One way to do the work. It may return notes, which the table shows as columns."""


def measure(contender: Contender) -> Sample:
    """Run a contender in this process."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, start = _cpu(), time.perf_counter()
    notes = contender()
    seconds, cpu_seconds = time.perf_counter() - start, _cpu() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    return Sample(seconds, cpu_seconds, peak * 1024, dict(notes or {}))


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
    low, mid, high = (value * scale for value in (min(values), statistics.median(values), max(values)))
    digits = max(0, 2 - len(str(int(mid)))) + 1
    return f"{mid:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


@dataclass
class Report:
    """One table: a row a contender, ours first; the last column compares medians with ours."""

    title: str
    target: str
    unit: str = "s"
    memory: bool = False
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def table(self) -> Table:
        """The table as it is printed."""
        table = Table(
            title=self.title, caption=f"asked for: {self.target}", title_justify="left", caption_justify="left"
        )
        notes = list(dict.fromkeys(key for samples in self.samples.values() for key in samples[-1].notes))
        for column in ("", f"wall, {self.unit}", f"CPU, {self.unit}", *(("peak, MiB",) if self.memory else ()), *notes):
            table.add_column(column, justify="right" if column else "left")
        table.add_column("ours / this", justify="right")
        ours = statistics.median(sample.seconds for sample in next(iter(self.samples.values())))
        for name, samples in self.samples.items():
            cells = [name, spread([sample.seconds for sample in samples], self.unit)]
            cells.append(spread([sample.cpu_seconds for sample in samples], self.unit))
            if self.memory:
                cells.append(spread([sample.peak_bytes for sample in samples], "MiB"))
            cells += [samples[-1].notes.get(key, "") for key in notes]
            cells.append(f"{ours / statistics.median(sample.seconds for sample in samples):.2f}")
            table.add_row(*cells)
        return table
