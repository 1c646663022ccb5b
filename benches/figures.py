"""A figure: what was measured, what it is compared with, the bar and whether it holds."""

import json
import platform
import statistics
from dataclasses import asdict, dataclass


@dataclass
class Figure:
    name: str
    value: float
    unit: str
    reference: float | None = None
    ratio: float | None = None
    bar: str = ""
    holds: bool | None = None


def plain(name, value, unit, at_most=None, at_least=None):
    """A figure with a bar on the value itself, or with none."""
    bar, holds = "", None
    if at_most is not None:
        bar, holds = f"<= {at_most:g} {unit}", value <= at_most
    if at_least is not None:
        bar, holds = f">= {at_least:g} {unit}", value >= at_least
    return Figure(name, value, unit, bar=bar, holds=holds)


def share(name, ours, reference, unit, at_least=None):
    """Paired samples where more is better: medians, and the median of the pairs' ratios against the bar."""
    ratio = statistics.median(a / b for a, b in zip(ours, reference))
    bar = "" if at_least is None else f">= {at_least:.0%} of the reference"
    holds = None if at_least is None else ratio >= at_least
    return Figure(name, statistics.median(ours), unit, statistics.median(reference), ratio, bar, holds)


def extra(name, ours, reference, unit, at_most=None):
    """Paired samples where less is better: medians, and the median of the pairs' differences against the bar."""
    difference = statistics.median(a - b for a, b in zip(ours, reference))
    value, other = statistics.median(ours), statistics.median(reference)
    bar = "" if at_most is None else f"<= reference + {at_most:g} {unit} (is {difference:+.1f})"
    holds = None if at_most is None else difference <= at_most
    return Figure(name, value, unit, other, value / other if other else None, bar, holds)


def percentile(values, share_below):
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * share_below // 100) - 1))]


def number(value):
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def rows(figures):
    marks = {True: "yes", False: "NO", None: ""}
    for figure in figures:
        ratio = "" if figure.ratio is None else f"{figure.ratio:.3f}"
        yield [figure.name, number(figure.value), figure.unit, number(figure.reference), ratio, figure.bar, marks[figure.holds]]


HEAD = ["name", "value", "unit", "reference", "ratio", "bar", "holds"]


def as_text(figures):
    table = [HEAD, *rows(figures)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEAD))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table)


def as_markdown(figures):
    table = [HEAD, ["---"] * len(HEAD), *rows(figures)]
    return "\n".join("| " + " | ".join(row) + " |" for row in table)


def as_json(name, figures):
    return json.dumps({"benchmark": name, "machine": machine(), "figures": [asdict(figure) for figure in figures]}, indent=2)


def machine():
    model, cores, memory_kb = platform.processor(), 0, 0
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                model, cores = line.partition(":")[2].strip(), cores + 1
    with open("/proc/meminfo") as file:
        memory_kb = int(file.readline().split()[1])
    return {"cpu": model, "logical_cores": cores, "memory_gb": round(memory_kb / 2**20, 1), "kernel": platform.release()}
