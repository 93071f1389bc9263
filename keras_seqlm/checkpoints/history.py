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
    """
    with open(path, newline="", encoding="utf-8") as file:
        lines = [line for line in file if line.endswith("\n")]
    rows = []
    for row in csv.DictReader(lines):
        if None in row.values():
            continue
        numbers = {name: float(value) if value else None for name, value in row.items()}
        rows.append({**dict.fromkeys(COLUMNS), **numbers, "step": int(row["step"])})
    return rows
