"""What a benchmark found: one row of the table, one object of build/bench.json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

_TIMELESS_UNITS = frozenset({"MiB", "KiB", "modules"})
_HEADINGS = ("name", "value", "p50", "p95", "unit", "floor", "ratio", "budget", "emulated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One measured number, less is better; `value` is what is held to the budget."""

    name: str
    value: float
    p50: float
    p95: float
    unit: str
    floor: float | None
    """The same without what is measured: what no product could be better than; None where there is none."""
    ratio: float | None
    """`value` by `floor`."""
    p95_ratio: float | None
    """`p95` by the p95 of the floor."""
    max_value: float | None
    """Budget in `unit`, never a time: a budget of time would judge the machine."""
    max_ratio: float | None
    max_p95_ratio: float | None
    """Budget of `p95` by the p95 of the floor: what disturbs the machine makes both slower."""
    emulated: bool
    """Whether a guest without hardware virtualisation took part: then only the ratio means something."""
    note: str

    @property
    def broken(self) -> list[str]:
        """Say which budgets are exceeded."""
        found = []
        if self.max_value is not None and self.value > self.max_value:
            found.append(f"{self.name}: {self.value:.4g} {self.unit} is above {self.max_value:.4g}")
        if self.max_ratio is not None and (self.ratio is None or self.ratio > self.max_ratio):
            found.append(f"{self.name}: {self.ratio or math.nan:.2f} times its floor is above {self.max_ratio}")
        if self.max_p95_ratio is not None and (self.p95_ratio is None or self.p95_ratio > self.max_p95_ratio):
            times = self.p95_ratio or math.nan
            found.append(f"{self.name}: a p95 of {times:.2f} times its floor's is above {self.max_p95_ratio}")
        return found


def result(
    name: str,
    samples: Sequence[float],
    *,
    unit: str,
    emulated: bool,
    floors: Sequence[float] = (),
    max_value: float | None = None,
    max_ratio: float | None = None,
    max_p95_ratio: float | None = None,
    note: str = "",
) -> Result:
    """Return the medians: a few slow samples on a busy machine say nothing of the product.

    Raises ValueError for an absolute budget of time: on a slower machine it fails, and its floor is slower too.
    """
    if max_value is not None and unit not in _TIMELESS_UNITS:
        raise ValueError(f"{name}: give a ratio to a floor of the same run as its budget, not a number of {unit}")
    value, p95 = median(samples), percentile(samples, 95)
    floor = median(floors) if floors else None
    return Result(
        name=name,
        value=value,
        p50=value,
        p95=p95,
        unit=unit,
        floor=floor,
        ratio=value / floor if floor else None,
        p95_ratio=p95 / percentile(floors, 95) if floor else None,
        max_value=max_value,
        max_ratio=max_ratio,
        max_p95_ratio=max_p95_ratio,
        emulated=emulated,
        note=note,
    )


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the smallest sample that `percent` of all are not above."""
    return sorted(samples)[max(0, math.ceil(len(samples) * percent / 100) - 1)]


def table(results: Iterable[Result]) -> list[str]:
    """Return the lines of the table."""
    rows = [_HEADINGS, *(_row(each) for each in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def write(path: Path, results: Iterable[Result]) -> None:
    """Write all results as JSON."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([asdict(each) for each in results], indent=2) + "\n")


def _row(found: Result) -> tuple[str, ...]:
    budgets = (
        f"<= {found.max_value:g}" if found.max_value is not None else "",
        f"ratio <= {found.max_ratio:g}" if found.max_ratio is not None else "",
        f"p95 ratio <= {found.max_p95_ratio:g}" if found.max_p95_ratio is not None else "",
    )
    numbers = (found.value, found.p50, found.p95)
    return (
        found.name,
        *(f"{number:.4g}" for number in numbers),
        found.unit,
        "-" if found.floor is None else f"{found.floor:.4g}",
        "-" if found.ratio is None else f"{found.ratio:.2f}",
        ", ".join(filter(None, budgets)) or "-",
        "EMULATED" if found.emulated else "no",
    )
