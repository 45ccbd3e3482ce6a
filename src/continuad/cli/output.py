"""What is printed: results on stdout, the rest on stderr; legible without colour and in 80 columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from continuad.inspector import Product

stdout = Console()
stderr = Console(stderr=True)


def say(text: str | Text = "", *, console: Console = stdout) -> None:
    """Print a line as it is; long lines are left to the terminal."""
    console.print(text, soft_wrap=True, markup=False, highlight=False, emoji=False)


def complain(problem: str, remedy: str = "") -> None:
    """Print on stderr what is wrong and, below it, what to do about it."""
    say(Text.assemble(("error:", "bold red"), " ", problem), console=stderr)
    if remedy:
        say(f"  {remedy}", console=stderr)


def print_json(values: Mapping[str, Any]) -> None:
    """Print an object of plain values on a line of its own."""
    print(json.dumps(values, allow_nan=False), flush=True)


def print_table(
    columns: Iterable[str | Column],
    rows: Iterable[Sequence[str]],
    *,
    total: Sequence[str] = (),
    narrow: bool = False,
) -> None:
    """Print a table; cells are shown as they are, too long texts folded, numbers never.

    Args:
        columns: their headers, or what `right` returns.
        rows: the cells.
        total: a last row, below a line.
        narrow: leave a single space between columns.
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 0 if narrow else 1),
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    for column in columns:
        column = column if isinstance(column, Column) else Column(column)
        table.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    if total:
        table.add_section()
        table.add_row(*map(Text, total))
    stdout.print(table)


def print_reports(reports: Sequence[Mapping[str, Any]], mean: Mapping[str, Any]) -> None:
    """Print what was measured of each product (`ProductReport.as_dict`), and the means."""
    columns = {
        "I-AUROC": ("i_auroc", 3),
        "P-AUROC": ("p_auroc", 3),
        "P-AP": ("p_ap", 3),
        "AUPRO": ("aupro", 3),
        "routing": ("routing_accuracy", 3),
        "recall": ("recall", 3),
        "false\nalarms": ("false_alarm_rate", 3),
        "learn\ns": ("learn_seconds", 1),
        "KiB": ("kib", 1),
        "ms": ("ms_per_image", 1),
    }

    def cells(values: Mapping[str, Any]) -> list[str]:
        return [number(values[key], digits) for key, digits in columns.values()]

    print_table(
        ("product", *map(right, columns)),
        ([str(report["product"]), *cells(report)] for report in reports),
        total=["mean", *cells(mean)],
        narrow=True,
    )


def say_learnt(product: Product, /) -> None:
    """Note on stderr that a product was learnt."""
    say(f"{product.name}: learnt in {product.seconds:.1f} s", console=stderr)


def right(header: str) -> Column:
    """A column of numbers."""
    return Column(header, justify="right", no_wrap=True)


def number(value: float | None, digits: int) -> str:
    """Format with so many decimals; None, for what could not be measured, is a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def kib(size: int) -> str:
    """Format a number of bytes in KiB."""
    return f"{size / 1024:.1f}"
