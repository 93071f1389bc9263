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
        ValueError: it is no such file.
    """
    with open(path, newline="", encoding="utf-8") as file:
        lines = [line for line in file if line.endswith("\n")]
    rows, reader = [], csv.DictReader(lines)
    if lines and "step" not in reader.fieldnames:
        raise ValueError(f"{path} is no history of a run: its first line has no column step; move it away")
    for row in reader:
        if None in row.values():
            continue
        numbers = {name: float(value) if value else None for name, value in row.items()}
        rows.append({**dict.fromkeys(COLUMNS), **numbers, "step": int(row["step"])})
    return rows
