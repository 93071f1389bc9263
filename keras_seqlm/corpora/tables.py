"""Tables of Parquet and Arrow, read a few rows at a time."""

import contextlib
import itertools

from keras_seqlm.corpora.opening import HEAD_SIZE, arrow_form, reader_of_tables

ROWS = 1024  # of a batch


def rows_of(path, kind, text_field, handle):
    """Yield `(place, record)` of each row of a table: the column that holds the text alone.

    Args:
        path: of the file.
        kind: "parquet" or "arrow".
        text_field: the column.
        handle: of the `Source`, which is told of damage.

    Raises:
        ValueError: there is no such column, or it holds no text.
    """
    library, numbers = reader_of_tables(path, kind), itertools.count(1)
    try:
        with _opened(library, path, kind) as (schema, batches):
            _hold_column(path, schema, text_field)
            for batch in batches(text_field):
                for record in batch.to_pylist():
                    text = record[text_field]
                    broken = ValueError(f'no string in the column "{text_field}", but {text!r:.40}')
                    yield f"row {next(numbers)}", text if isinstance(text, str) else broken
    except LookupError as error:
        raise ValueError(*error.args) from None
    except (ValueError, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        handle.raw.spoil(error)  # Arrow's errors are of these two classes, and have no number of the system's.


@contextlib.contextmanager
def _opened(library, path, kind):
    """Gives the schema of a table, and a function of the column to its batches."""
    if kind == "parquet":
        with library.ParquetFile(path) as file:
            yield file.schema_arrow, lambda column: file.iter_batches(batch_size=ROWS, columns=[column])
        return
    with open(path, "rb") as file:
        form = arrow_form(file.read(HEAD_SIZE))
        file.seek(0)
        if form == "file":
            with library.open_file(file) as table:
                whole = (table.get_batch(number) for number in range(table.num_record_batches))
                yield table.schema, lambda column: _cut(whole, column)
        else:
            with library.open_stream(file) as table:
                yield table.schema, lambda column: _cut(table, column)


def _cut(batches, column):
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS):
            yield batch.slice(start, ROWS).select([column])


def _hold_column(path, schema, text_field):
    names = schema.names
    if text_field not in names:
        shown = ", ".join(f'"{name}"' for name in names)
        raise LookupError(
            f'{path} has no column "{text_field}"; it has {shown}: name the one that holds the text with '
            f"text_field= (command line: --text-field)."
        )
    types = {field.name: _type(field) for field in schema}
    if not _is_text(types[text_field]):
        texts = [f'"{name}"' for name, kind in types.items() if _is_text(kind)]
        other = f"name one that holds text with text_field= (command line: --text-field): {', '.join(texts)}"
        raise LookupError(
            f'{path}: its column "{text_field}" is of the type {types[text_field]}, and text is read from one of strings: '
            f"{other if texts else 'write it as such, or as .jsonl'}."
        )


def _type(field):
    kind = str(field.type)
    return kind.removeprefix("dictionary<values=").partition(",")[0] if kind.startswith("dictionary<") else kind


def _is_text(kind):
    return kind in ("string", "large_string", "string_view")
