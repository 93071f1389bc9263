"""Tables: aligned columns where they fit a terminal, a block for each row where they do not; elsewhere plain lines."""

import sys

GAP = 2
NARROWEST = 12  # columns that a cell which may be folded is given at least
_STYLES = {"ok": "green", "finished": "green", "running": "cyan", "FAILED": "bold red", "damaged": "red"}


def show_table(titles, rows, folded=(0,)):
    """Print a table.

    Args:
        titles: of the columns; spaces in them are where they may be broken.
        rows: tuples of str, as long as the titles.
        folded: places of the columns whose cells may take several lines, where not all fit one.
    """
    from keras_seqlm.status_line import columns_of
    from seqlm_cli.streams import colours

    if not sys.stdout.isatty() and not colours(sys.stdout):
        print(plain_table([titles, *rows]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    plain = not colours(sys.stdout)
    whole = [max(Text(row[i]).cell_len for row in [titles, *rows]) for i in range(len(titles))]
    width = columns_of(sys.stdout) if sys.stdout.isatty() else sum(whole) + GAP * len(whole)
    console = Console(
        file=sys.stdout,
        width=width,
        force_terminal=not plain,
        color_system=None if plain else "standard",
        no_color=plain,
        highlight=False,
        emoji=False,
        markup=False,
    )
    widths = _widths(titles, rows, folded, width, whole)
    if widths is None:
        _show_blocks(console, titles, rows)
        return
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold", collapse_padding=True)
    for title, columns in zip(titles, widths, strict=True):
        table.add_column(Text(title), width=columns, overflow="fold", vertical="top")
    for row in rows:
        table.add_row(*(Text(cell, style=_style(cell)) for cell in row))
    console.print(table)


def plain_table(rows):
    """Rows of str as aligned columns.

    >>> print(plain_table([("run", "step"), ("books", "12/12")]))
    run    step
    books  12/12
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    gap = " " * GAP
    lines = (gap.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def _widths(titles, rows, folded, width, whole):
    """A width for each column, so that a row fits; None where it cannot be done."""
    if sum(whole) + GAP * (len(whole) - 1) <= width:
        return whole
    words = [max((len(word) for word in title.split()), default=0) for title in titles]
    cells = [max((len(row[i]) for row in rows), default=0) for i in range(len(titles))]
    needed = [
        max(word, min(cell, NARROWEST) if i in folded else cell)
        for i, (word, cell) in enumerate(zip(words, cells, strict=True))
    ]
    left = width - sum(needed) - GAP * (len(needed) - 1)
    if left < 0:
        return None
    for i in [*folded, *(i for i in range(len(titles)) if i not in folded)]:
        more = min(left, whole[i] - needed[i])
        needed[i], left = needed[i] + more, left - more
    return needed


def _show_blocks(console, titles, rows):
    """A row as its first cell, and below it as many of the others in each line as there is room for."""
    from rich.padding import Padding
    from rich.text import Text

    for row in rows:
        console.print(Text(row[0], style="bold", overflow="fold"))
        lines = [Text()]
        for title, cell in zip(titles[1:], row[1:], strict=True):
            if cell in ("", "-"):
                continue
            part = Text(f"{title} " if title else "").append(cell, style=_style(cell))
            if lines[-1].cell_len and lines[-1].cell_len + GAP + part.cell_len > console.width - GAP:
                lines.append(Text())
            lines[-1].append(" " * GAP if lines[-1].cell_len else "").append(part)
        for line in lines:
            line.overflow = "fold"
            console.print(Padding(line, (0, 0, 0, GAP), expand=False))


def _style(cell):
    return _STYLES.get(cell.partition(":")[0], "")
