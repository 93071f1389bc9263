"""The history of a run as it lies on the disk: a CSV file, a row a validation point."""

import csv

COLUMNS = (
    "step",
    "loss",
    "validation_loss",
    "validation_bits_per_byte",
    "learning_rate",
    "tokens_per_second",
    "seconds",
    "gradient_norm",
    "skipped_steps",
)


def read_history(path):
    """The rows of a `HistoryCSV` file: a list of dicts, `step` an int, the rest floats or None.

    A last line that a crash cut short is left out. Columns that an older file lacks are None.

    Raises:
        ValueError: the file is no such history.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            content = file.read()
        found = csv.DictReader([line for line in content.splitlines(keepends=True) if line.endswith("\n")])
        if content and "step" not in (found.fieldnames or ()):
            raise ValueError('its first line names no column "step"')
        return [_row(row) for row in found if None not in row.values()]
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path} is no history of a run: {error}") from error


def _row(row):
    numbers = {name: float(value) if value else None for name, value in row.items()}
    return {**dict.fromkeys(COLUMNS), **numbers, "step": int(row["step"])}
