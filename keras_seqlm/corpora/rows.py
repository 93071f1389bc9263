"""Tables of examples: rows of named fields, from files of any common kind or from whatever can be iterated over."""

import copy
import csv
import io
import itertools
import json
from collections.abc import Iterable, Mapping

import numpy as np

from keras_seqlm.corpora.json_text import elements_of, lines_of, shape_of
from keras_seqlm.corpora.layouts_of_rows import UNFOLDED
from keras_seqlm.corpora.opening import HEAD_SIZE, TABLES, ending_of, reader_of_tables, sources
from keras_seqlm.corpora.paths import find_files
from keras_seqlm.corpora.unpacking import damage

TOLERANCE = 0.01
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SHOWN = 5
_MOST_FIELD = 1 << 24  # characters; csv's own limit is 131,072


class Rows:
    """Rows of named fields, dicts, each with the place that it is from; what is no row is counted and named.

    Read are `.csv` and `.tsv` (with a line of names), `.jsonl`, `.ndjson`, `.json` (a list of objects; of SQuAD's form a row
    for each question; of PolyAI's span files a row for each utterance), `.conll`, `.bio` and `.iob` (a token and its tag in a
    line, a blank line between sentences), `.parquet` and `.arrow`, each of them packed or not. Or any iterable of mappings, as
    a list of dicts or a Hugging Face data set.

    Args:
        source: a path, a glob pattern, or a list of these; or an iterable of mappings.
        columns: dict of the names that a task knows to those that the source has, as `{"text": "content"}`.
        tolerance: the share of rows that may be broken.

    Attributes:
        bad: a list of (place, reason), one for each row that was left out. A task adds its own by `refuse`.
        count: rows met so far, broken ones among them.

    Raises:
        FileNotFoundError: a file is absent.
        ValueError: from `check`: more than `tolerance` of the rows are broken, or there is none.

    Example:

    >>> rows = Rows([{"text": "Where is my card?", "label": "card_arrival"}, {"text": None}])
    >>> list(rows)[0]
    ('row 1', {'text': 'Where is my card?', 'label': 'card_arrival'})
    """

    def __init__(self, source, columns=None, tolerance=TOLERANCE):
        if not 0 <= tolerance <= 1:
            raise ValueError(f"tolerance must be a share from 0 to 1, got {tolerance!r}")
        self.columns = dict(columns or {})
        self.tolerance = tolerance
        self.bad, self.count = [], 0
        is_iterable = isinstance(source, Iterable) and not isinstance(source, str | bytes | Mapping)
        first = list(itertools.islice(source, 1)) if isinstance(source, list | tuple) else []
        self.files, self.before = None, None
        if is_iterable and (not isinstance(source, list | tuple) or (first and isinstance(first[0], Mapping))):
            self.records = source
        else:
            self.files = find_files(source)

    def __iter__(self):
        """Yield (place, row), from the beginning."""
        if self.before is not None:  # read before
            self.bad, self.count = list(self.before[0]), self.before[1]
            yield from self.records
            return
        self.bad, self.count = [], 0
        pieces = (
            [("", self._numbered())] if self.files is None else [(str(path), _of_file(path)) for path in self.files]
        )
        for name, records in pieces:
            for place, record in records:
                self.count += 1
                place = f"{name}, {place}" if name else place
                if isinstance(record, ValueError):
                    self.refuse(place, str(record))
                elif not isinstance(record, Mapping):
                    self.refuse(place, f"no row of named fields, but {type(record).__name__}")
                else:
                    yield place, self._renamed(record)

    def refuse(self, place, reason):
        """Count a row as broken."""
        self.bad.append((place, reason))

    def read(self):
        """These rows, read once and kept; their places stay, and what was broken stays counted."""
        pairs = list(self)
        return self._part(pairs)

    def split(self, fraction, seed=0):
        """Two sources, of rows drawn by chance from these: the second has `fraction` of them, and one at least.

        The first keeps what was broken. Files are often sorted by label, so that a tail would hold but some of them.

        Raises:
            ValueError: a fraction that is not between 0 and 1, or fewer than two rows.
        """
        pairs = list(self)
        if not 0 < fraction < 1 or len(pairs) < 2:
            raise ValueError(f"a part of {fraction} cannot be kept of {len(pairs)} rows")
        kept = min(len(pairs) - 1, max(1, round(fraction * len(pairs))))
        order = np.random.default_rng(seed).permutation(len(pairs))
        chosen = set(order[:kept].tolist())
        second = self._part([pair for number, pair in enumerate(pairs) if number in chosen])
        second.bad, second.count = [], kept
        second.before = [], kept
        return self._part([pair for number, pair in enumerate(pairs) if number not in chosen]), second

    def _part(self, pairs):
        part = copy.copy(self)
        part.records, part.columns = pairs, {}
        part.before = list(self.bad), len(pairs) + len(self.bad)
        part.bad, part.count = list(self.bad), part.before[1]
        return part

    def check(self):
        """Refuse a source of which too much is broken, or that holds nothing.

        Raises:
            ValueError: with the first rows that are broken, and why.
        """
        if not self.count:
            raise ValueError(f"there are no rows in {', '.join(map(str, self.files or ['what was given']))}")
        if len(self.bad) > self.tolerance * self.count or len(self.bad) == self.count:
            said = "\n".join(f"  {place}: {reason}" for place, reason in self.bad[:_SHOWN])
            raise ValueError(
                f"{len(self.bad)} of {self.count} rows are broken, and at most {self.tolerance:.1%} may be; the first of them:\n"
                f"{said}\nMend them, rename columns (columns={{'text': 'content'}}, --columns text=content), or raise tolerance "
                "(--tolerance)"
            )

    def _numbered(self):
        for number, record in enumerate(self.records, 1):
            yield f"row {number}", record

    def _renamed(self, record):
        theirs = set(self.columns.values())
        row = {name: value for name, value in record.items() if name not in theirs}
        return {**row, **{ours: record[name] for ours, name in self.columns.items() if name in record}}


def _of_file(path):
    for source in sources(path):
        ending = ending_of(source.name)
        if source.kind in TABLES:
            yield from _of_table(path, source.kind)
        elif source.kind == "lines":
            yield from unfolded(lines_of(source.handle))
        elif source.kind == "json":
            yield from unfolded(_of_json(source))
        elif ending in _DELIMITERS:
            yield from _of_csv(source.handle, _DELIMITERS[ending])
        elif ending in (".conll", ".bio", ".iob"):
            yield from _of_conll(source.handle)
        else:
            raise ValueError(
                f"{source.name} is no table that is known by its ending: expected .csv, .tsv, .jsonl, .json, .parquet, "
                ".arrow or .conll (packed or not)"
            )
        lost = damage(source.handle)
        if lost is not None:
            raise ValueError(f"{source.name} is cut or damaged: {lost}")


def unfolded(records):
    """Yield (place, row) of records, some of which hold many rows, as an article of SQuAD does."""
    for place, record in records:
        unfold = next((unfold for fits, unfold in UNFOLDED if isinstance(record, Mapping) and fits(record)), None)
        if unfold is None:
            yield place, record
        else:
            yield from ((f"{place}, {within}" if within else place, row) for within, row in unfold(record))


def _of_json(source):
    head = source.handle.peek(HEAD_SIZE)
    if shape_of(head) == "lines":
        yield from lines_of(source.handle)
    elif shape_of(head) == "array":
        yield from elements_of(source.name, source.handle)
    else:
        try:
            record = json.load(source.handle)
        except ValueError as error:
            record = ValueError(f"no JSON: {error}")
        yield "the object", record


def _of_csv(handle, delimiter):
    csv.field_size_limit(_MOST_FIELD)
    lines = io.TextIOWrapper(handle, "utf-8", errors="surrogateescape", newline="")
    try:
        yield from _of_fields(csv.reader(lines, delimiter=delimiter, strict=True))
    finally:
        lines.detach()  # the handle is its owner's to close


def _of_fields(reader):
    """Rows of a `csv.reader`, whose first line has the names."""
    names = None
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield place, ValueError(f"no row of this table: {error}")
            continue
        if not fields:
            continue
        if names is None:
            names = [name.strip() for name in fields]
            if len(set(names)) < len(names):
                raise ValueError(f"the first line must name each column once, got {names}")
        elif len(fields) != len(names):
            yield place, ValueError(f"{len(fields)} fields, and the first line names {len(names)}")
        elif any("\udc80" <= character <= "\udcff" for field in fields for character in field):
            yield place, ValueError("bytes that are no UTF-8; convert the file, as with iconv")
        else:
            yield place, dict(zip(names, fields, strict=True))


def _of_conll(handle):
    """Sentences of lines whose first word is the token and whose last is its tag: {"tokens": [...], "tags": [...]}."""
    tokens, tags, first = [], [], 1
    wrong = None
    for number, line in enumerate(itertools.chain(handle, [b"\n"]), 1):
        try:
            words = line.decode("utf-8").split()
        except UnicodeDecodeError:
            words, wrong = ["?", "?"], wrong or ValueError(f"line {number} is no UTF-8")
        if words and words[0] == "-DOCSTART-":
            continue
        if words:
            if len(words) < 2:
                wrong = wrong or ValueError(f"line {number} has a token and no tag: {' '.join(words)[:40]!r}")
            tokens.append(words[0])
            tags.append(words[-1])
            continue
        if tokens:
            yield f"line {first}", wrong or {"tokens": tokens, "tags": tags}
        tokens, tags, first, wrong = [], [], number + 1, None


def _of_table(path, kind):
    library = reader_of_tables(path, kind)
    if kind == "parquet":
        with library.ParquetFile(path) as file:
            batches = (batch for batch in file.iter_batches(batch_size=1024))
            yield from _rows_of_batches(batches)
        return
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        try:
            table = library.open_file(file).read_all()
        except pyarrow.ArrowInvalid:
            table = library.open_stream(file).read_all()
        yield from _rows_of_batches(table.to_batches(max_chunksize=1024))


def _rows_of_batches(batches):
    numbers = itertools.count(1)
    for batch in batches:
        yield from ((f"row {next(numbers)}", row) for row in batch.to_pylist())
