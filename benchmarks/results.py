"""What every benchmark does with its numbers: print a table or a line of JSON, keep both beside a plot in docs/.

A benchmark puts `@output_options` under its `@click.command()` and ends with `report(Result(...), as_json, save)`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Cell = str | float | Sequence[float]
"""A text, a number, or one number a round: then the median is shown and every round is kept."""

F = TypeVar("F", bound=Callable[..., Any])

FOLDER = Path(__file__).parent.parent / "docs" / "measurements"
LIBRARIES = ("torch", "transformers", "hivemind")
PANEL = (3.6, 0.42, 1.1)
"""Inches: how wide a panel is, how high one bar, and how high what is above and below the bars."""
LINES_HIGH = 3.2
BLUE = "#3367a8"


def machine_facts() -> dict[str, str]:
    """What the numbers depend on, besides the code."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "load": f"{load:.1f}",
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@dataclass(frozen=True)
class Result:
    """One table of numbers.

    `name`: of the files; `title`: one line; `rows`: cells by column label (units belong in the label), the first of
    which names the row; `goal`: what was aimed at; `notes`: whatever else must be said, a line each; `plot`: columns
    that get a panel, else all that hold numbers. Rows that are named by numbers are plotted as lines over them, both
    axes logarithmic, others as bars.
    """

    name: str
    title: str
    rows: Sequence[Mapping[str, Cell]]
    goal: str = ""
    notes: Sequence[str] = ()
    plot: Sequence[str] = ()
    machine: Mapping[str, str] = field(default_factory=machine_facts)
    command: str = field(default_factory=lambda: f"python -m benchmarks {' '.join([_benchmark(), *sys.argv[2:]])}")

    @property
    def columns(self) -> list[str]:
        """All labels, in the order in which rows bring them."""
        return list(dict.fromkeys(label for row in self.rows for label in row))


def _benchmark() -> str:
    return sys.argv[1] if len(sys.argv) > 1 else "NAME"


def output_options(command: F) -> F:
    """Add --json and --save to a command, as its arguments `as_json` and `save`."""
    save = click.option("--save", is_flag=True, help="Also write docs/measurements/NAME.json and NAME.svg.")
    as_json = click.option("--json", "as_json", is_flag=True, help="One line of JSON instead of a table.")
    return as_json(save(command))


def report(result: Result, as_json: bool = False, save: bool = False, folder: Path = FOLDER) -> None:
    """Print a result; with `save` keep it as NAME.json and NAME.svg in `folder`."""
    print(json.dumps(as_dict(result)) if as_json else table(result))
    if save:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(as_dict(result), indent=1, ensure_ascii=False)
        (folder / f"{result.name}.json").write_text(text + "\n", encoding="utf-8")
        draw(result, folder / f"{result.name}.svg")


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round: what was measured together is compared with each other."""
    return [one / other for one, other in zip(over, under, strict=True)]


# ---- text -----------------------------------------------------------------------------------------------------


def middle(cell: Cell) -> str | float:
    """The median of a cell of several rounds; any other cell as it is."""
    return cell if isinstance(cell, str | int | float) else statistics.median(cell)


def shown(cell: Cell) -> str:
    """A cell in a table: three digits that count, thousands apart."""
    value = middle(cell)
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def table(result: Result) -> str:
    """The result to be read: title, aligned columns, goal, notes, machine."""
    columns = result.columns
    cells = [columns, *([shown(row.get(label, "")) for label in columns] for row in result.rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    texts = {i for i, label in enumerate(columns) if not _numeric(result, label)}
    lines = ["  ".join(_aligned(line[i], widths[i], i in texts) for i in range(len(columns))) for line in cells]
    rule = "  ".join("-" * width for width in widths)
    facts = ", ".join(f"{what} {value}" for what, value in result.machine.items())
    rest = [f"goal: {result.goal}"] if result.goal else []
    return "\n".join([result.title, "", lines[0].rstrip(), rule, *lines[1:], "", *rest, *result.notes, facts])


def _aligned(text: str, width: int, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)


def _numeric(result: Result, label: str) -> bool:
    return not any(isinstance(row.get(label, 0.0), str) for row in result.rows)


def as_dict(result: Result) -> dict[str, Any]:
    """The result for programs; a cell of several rounds is {"median": …, "rounds": […]}."""
    rows = [{label: _kept(cell) for label, cell in row.items()} for row in result.rows]
    return {
        "name": result.name,
        "title": result.title,
        "command": result.command,
        "goal": result.goal,
        "rows": rows,
        "notes": list(result.notes),
        "machine": dict(result.machine),
    }


def _kept(cell: Cell) -> Any:
    if isinstance(cell, str | int | float):
        return cell
    return {"median": statistics.median(cell), "rounds": list(cell)}


# ---- plot -----------------------------------------------------------------------------------------------------


def draw(result: Result, file: Path) -> None:
    """An SVG with a panel for each plotted column; the same bytes for the same result."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    names, *numbers = result.columns
    lines = _numeric(result, names)
    panels = list(result.plot) or [label for label in numbers if _numeric(result, label)]
    wide, bar, around = PANEL
    high = LINES_HIGH if lines else around + bar * len(result.rows)
    with matplotlib.rc_context({"svg.hashsalt": result.name, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure((wide * len(panels) + (0 if lines else 1.2), high), layout="constrained")
        figure.suptitle(result.title, fontsize=10)
        for axes, label in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            (_lines if lines else _bars)(axes, result, label)
        _only_outer_names(figure.axes, lines)
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})


def _lines(axes: Axes, result: Result, label: str) -> None:
    names = result.columns[0]
    rows = [row for row in result.rows if label in row]
    axes.plot([_number(row[names]) for row in rows], [_number(row[label]) for row in rows], "o-", color=BLUE)
    axes.set(xscale="log", yscale="log", xlabel=names)
    axes.set_title(label, fontsize=9)
    axes.minorticks_off()  # each would be an element of the file
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: shown(value))
    axes.grid(True, alpha=0.3)


def _bars(axes: Axes, result: Result, label: str) -> None:
    """A bar for each row, with a line from the lowest round to the highest; none where a row has no such number."""
    names = [str(row[result.columns[0]]) for row in result.rows]
    cells = [row.get(label, 0.0) for row in result.rows]
    values = [_number(cell) for cell in cells]
    low, high = zip(*(_reach(cell) for cell in cells), strict=True)
    axes.barh(names, values, xerr=(low, high), color=BLUE, ecolor="#999999", height=0.6)
    for row, value, up in zip(result.rows, values, high, strict=True):
        place = (value + up, str(row[result.columns[0]]))
        axes.annotate(shown(row.get(label, "")), place, (4, 0), textcoords="offset points", va="center")
    axes.margins(x=0.2)
    axes.invert_yaxis()
    axes.set_title(label, fontsize=9)


def _only_outer_names(panels: Sequence[Axes], lines: bool) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        if not lines and axes is not panels[0]:
            axes.set_yticklabels([])


def _number(cell: Cell) -> float:
    return float(middle(cell))


def _reach(cell: Cell) -> tuple[float, float]:
    """How far the rounds go below and above the median."""
    if isinstance(cell, str | int | float):
        return 0.0, 0.0
    return _number(cell) - min(cell), max(cell) - _number(cell)
