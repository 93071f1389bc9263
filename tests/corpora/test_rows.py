"""Rows of examples: every kind of file, what is no row, and the parts of a source."""

import bz2
import gzip
import json

import pytest

from keras_seqlm.corpora import Rows

ROWS = [{"text": "Where is my card?", "label": "card"}, {"text": 'It said "no",\ntwice', "label": "error"}]


def read(source, **options):
    rows = Rows(source, **options)
    found = [row for _, row in rows]
    rows.check()
    return found


def written(path, text, pack=None):
    path.write_bytes(text.encode() if pack is None else pack(text.encode()))
    return path


CSV = 'text,label\nWhere is my card?,card\n\n"It said ""no"",\ntwice",error\n'
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("name", "text", "pack"),
    [
        ("a.csv", CSV, None),
        ("a.csv", "\ufeff" + CSV.replace("\n", "\r\n").replace(",\r\ntwice", ",\ntwice"), None),
        ("a.csv.gz", CSV, gzip.compress),
        ("a.tsv", CSV.replace('card?,card', 'card?\tcard').replace("text,label", "text\tlabel").replace('",error', '"\terror'), None),
        ("a.jsonl", LINES, None),
        ("a.ndjson.bz2", LINES, bz2.compress),
        ("a.json", json.dumps(ROWS), None),
        ("a.json", LINES, None),
    ],
)  # fmt: skip
def test_every_kind_of_file(tmp_path, name, text, pack):
    assert read(written(tmp_path / name, text, pack)) == ROWS


def test_tables_of_columns(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist(ROWS)
    parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pyarrow.OSFile(str(tmp_path / "b.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow", "b.arrow"):
        assert read(tmp_path / name) == ROWS


def test_forms_of_published_data_sets(tmp_path):
    questions = [
        {"id": "1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 3}]},
        {"id": "2", "question": "When?", "answers": [], "is_impossible": True},
        {"id": "3", "question": "Where?", "answers": [{"text": "x"}]},
    ]
    squad = {"version": "2", "data": [{"title": "t", "paragraphs": [{"context": "By Ada", "qas": questions}]}]}
    path = written(tmp_path / "squad.json", json.dumps(squad))
    assert read(path, tolerance=0.5) == [
        {"id": "1", "question": "Who?", "context": "By Ada", "answers": [{"text": "Ada", "start": 3}]},
        {"id": "2", "question": "When?", "context": "By Ada", "answers": []},
    ]
    with pytest.raises(ValueError, match="question 3: no question of SQuAD's form"):
        read(path)
    label = {"slot": "people", "valueSpan": {"endIndex": 2}}
    spans = [{"userInput": {"text": "4 of us"}, "context": {"requestedSlots": ["people"]}, "labels": [label]}]
    assert read(written(tmp_path / "spans.json", json.dumps(spans))) == [
        {"text": "4 of us", "spans": [{"label": "people", "start": 0, "end": 2}], "requested": ["people"]}
    ]
    conll = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\nPeter NNP B-PER\n"
    assert read(written(tmp_path / "a.conll", conll)) == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"tokens": ["Peter"], "tags": ["B-PER"]},
    ]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "text,label\na,b,c\n" + "x,y\n" * 9, "line 2: 3 fields, and the first line names 2"),
        ("a.csv", "text,label\n" + "x,y\n" * 9 + '"open,y\n', "line 11: no row of this table"),
        ("a.csv", b"text,label\ncaf\xe9,y\n".decode("latin-1"), None),
        ("a.jsonl", "[1]\n" + LINES * 9, "line 1: no row of named fields, but list"),
        ("a.jsonl", "{\n" + LINES * 9, "line 1: "),
        ("a.conll", "one\n\n" + "a B-X\n\n" * 9, "line 1 has a token and no tag"),
    ],
)
def test_what_is_no_row_is_named(tmp_path, name, text, said):
    path = written(tmp_path / name, text)
    if said is None:
        path.write_bytes(b"text,label\ncaf\xe9,y\n" + b"x,y\n" * 9)
        said = "line 2: bytes that are no UTF-8"
    with pytest.raises(ValueError, match="1 of .* rows are broken") as error:
        read(path)
    assert said in str(error.value) and str(path) in str(error.value)
    rows = Rows(path, tolerance=0.2)
    found = list(rows)
    rows.check()
    assert len(rows.bad) == 1 and len(found) == rows.count - 1


def test_whole_sources_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no table that is known by its ending"):
        read(written(tmp_path / "a.txt", "x"))
    with pytest.raises(ValueError, match="must name each column once"):
        read(written(tmp_path / "b.csv", "text,text\na,b\n"))
    with pytest.raises(ValueError, match="there are no rows"):
        read(written(tmp_path / "c.csv", "text,label\n"))
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent.csv")
    cut = written(tmp_path / "d.csv.gz", CSV * 99, lambda data: gzip.compress(data)[:-20])
    with pytest.raises(ValueError, match="cut or damaged"):
        read(cut)


def test_names_of_columns_are_ours(tmp_path):
    path = written(tmp_path / "a.csv", "body,category,id\nx,y,7\n")
    assert read(path, columns={"text": "body", "label": "category"}) == [{"text": "x", "label": "y", "id": "7"}]
    assert read([{"body": "x"}], columns={"text": "body"}) == [{"text": "x"}]
    assert read(iter(ROWS)) == ROWS


def test_parts_of_a_source_hold_each_row_once(tmp_path):
    source = [{"text": str(number), "label": number // 50} for number in range(100)]
    train, kept = Rows(source).split(0.2)
    for _ in range(2):  # each is read as often as one likes
        numbers = [[int(row["text"]) for _, row in part] for part in (train, kept)]
        assert sorted(numbers[0] + numbers[1]) == list(range(100)) and len(numbers[1]) == 20
        assert 4 < sum(number < 50 for number in numbers[1]) < 16  # no tail
    assert numbers == [[int(row["text"]) for _, row in part] for part in Rows(source).split(0.2)]
    train.refuse("row 1", "a task's reason")
    with pytest.raises(ValueError, match="a task's reason"):
        train.check()
    list(train)
    train.check()  # read anew
