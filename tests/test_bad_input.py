"""What a user can get wrong on the command line: one line that says what, exit code 2, and nothing left behind."""

import contextlib
import gzip
import json
import os
import shutil
import zipfile

import pytest

import seqlm_cli
from keras_seqlm.tasks import evaluate, load

SMALL = ["--size", "nano", "--steps", "2", "--batch", "4"]


@pytest.fixture
def files(tmp_path):
    """A folder of good and bad texts."""
    (tmp_path / "good.txt").write_text("the cat sat on the mat. " * 100)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \r\n\t\n" * 500)
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.png").write_bytes(b"\x89PNG")
    (tmp_path / "broken.jsonl").write_text('{"text": "good"}\n{"text": \n[1]\n')
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"the cat sat on the mat. " * 50)[:-12])
    return tmp_path


@pytest.fixture
def refused(capsys):
    """Runs a command that must be refused; returns its one line."""

    def run(*words):
        capsys.readouterr()
        assert seqlm_cli.main([str(word) for word in words]) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.startswith("seqlm: error: ")
        assert shown.err.endswith("\n") and shown.err.count("\n") == 1, shown.err
        return shown.err

    return run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("empty.txt", "empty.txt is empty"),
        ("blank.txt", "blank.txt holds no text"),
        ("missing.txt", "No file or directory"),
        ("*.missing", "holds no text file"),
        ("pictures", "holds no text file"),
        ("short.txt", "(--batch, --context, --validation-fraction)"),
        ("broken.jsonl", "broken.jsonl, line 2"),
        ("cut.txt.gz", "cut.txt.gz is damaged or cut ("),
    ],
)
def test_texts_that_cannot_be_trained_on(files, refused, text, message):
    out = files / "runs" / "new"
    assert message in refused("train", "--text", files / text, "--out", out, *SMALL)
    assert not out.exists()


@pytest.mark.parametrize("flag", ["--text", "--validation", "--tokenizer", "--out"])
def test_a_name_that_is_no_utf_8_leaves_nothing_behind(files, refused, flag):
    name, out = os.fsdecode(os.fsencode(files) + b"/caf\xe9.txt"), files / "runs" / "new"
    shutil.copy(files / "good.txt", name)
    words = {"--text": files / "good.txt", "--out": out, flag: name}
    said = refused("train", *[word for pair in words.items() for word in pair], *SMALL)
    assert "caf\\xe9.txt' is no UTF-8" in said and not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--heads 5", "num_heads must divide hidden_dim, got hidden_dim=96 and num_heads=5"),
        ("--kv-heads 2", "num_kv_heads must divide num_heads, got 2 and 3"),
        ("--size giant", "size must be one of"),
        ("--model lstm --size giant", "size must be one of"),
        ("--tokenizer morse", "--tokenizer must be one of byte, character, bpe"),
        ("--tokenizer bpe --vocabulary-size 2", "at least 260, got 2"),
        *(
            (f"--{name} 0", f"--{name} must be at least 1, got 0")
            for name in ("layers", "hidden-dim", "heads", "context")
        ),
        ("--layers -1", "--layers must be at least 1, got -1"),
        ("--context -5", "--context must be at least 1, got -5"),
        ("--model gru --embedding-dim -2", "--embedding-dim must be at least 1, got -2"),
        ("--batch 0", "--batch must be at least 1, got 0"),
        ("--steps 0", "--steps must be at least 1, got 0"),
        ("--dropout 1.5", "rate=1.5"),
        ("--dropout nan", "rate=nan"),
        ("--learning-rate nan", "learning_rate must be a number above 0, got nan"),
        ("--weight-decay -1", "weight_decay must be a number at least 0, got -1.0"),
        ("--clip-norm -1", "clip_norm must be a number above 0"),
        ("--warmup -1", "warmup_steps must be an integer of at least 0, got -1"),
        ("--validate-every 0", "validate_every must be an integer of at least 1, got 0"),
        ("--validation-fraction 1.5", "below 1, received 1.5"),
        ("--validation-fraction nan", "below 1, received nan"),
        ("--activation sine", "activation must be one of"),
        ("--norm group", "norm must be one of"),
        ("--positions none", "positions must be one of"),
        ("--optimizer hope", "optimizer must be one of"),
        ("--schedule weekly", "schedule must be one of"),
        ("--precision int2", "precision must be one of"),
        ("--distribution wide", "distribution must be one of"),
        ("--model lstm --heads 2", "--heads belongs to a Transformer, and --model is lstm"),
        ("--model gru --kv-heads 2", "--kv-heads belongs to a Transformer, and --model is gru"),
        ("--model rnn --norm rms", "--norm belongs to a Transformer, and --model is rnn"),
        ("--carry-state", "--carry-state belongs to a recurrent model, and --model is transformer"),
        ("--embedding-dim 8", "--embedding-dim belongs to a recurrent model, and --model is transformer"),
    ],
)
def test_settings_that_make_no_model(files, refused, words, message):
    out = files / "runs" / "new"
    assert message in refused("train", "--text", files / "good.txt", "--out", out, *SMALL, *words.split())
    assert not out.exists()


def test_an_unknown_word_is_told_by_the_parser(files, capsys):
    for words in (["--mode", "lstm"], ["--steps", "many"], ["--model", "mamba"], ["--backend", "numpy"]):
        with pytest.raises(SystemExit) as ended:
            seqlm_cli.main(["train", "--text", str(files / "good.txt"), "--out", str(files / "new"), *words])
        assert ended.value.code == 2 and "seqlm" in capsys.readouterr().err.splitlines()[-1]
    assert not (files / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--temperature nan", "temperature must be a finite number"),
        ("--temperature -1", "temperature must be a finite number"),
        ("--temperature inf", "temperature must be a finite number"),
        ("--top-p 2", "top_p must be a finite number, above 0 and at most 1 (keeps"),
        ("--top-p 2", "1 keeps all); got 2.0"),
        ("--top-p 0", "top_p must be"),
        ("--top-k -1", "top_k must be"),
        ("--min-p 2", "min_p must be"),
        ("--repetition-penalty 0", "repetition_penalty must be"),
        ("--seed -1", "seed must be"),
        ("--seed 99999999999", "seed must be"),
        ("--max-new-tokens -1", "max_new_tokens must be whole numbers of 0 or more, got -1"),
    ],
)
def test_options_of_generate(run_folder, refused, words, message):
    said = refused("generate", run_folder("lstm"), "--prompt", "the cat", *words.split())
    assert message in said and f"({words.split()[0]})" in said


def test_other_commands(run_folder, files, refused, tmp_path):
    lstm, transformer, good = run_folder("lstm"), run_folder("transformer"), files / "good.txt"
    root = tmp_path / "saved_models"
    assert "there is no run folder" in refused("generate", tmp_path / "nowhere")
    assert "there is no run folder" in refused("generate", good)
    assert "is no run folder: it has no model.keras" in refused("evaluate", files / "pictures", "--text", good)
    assert "No file or directory" in refused("evaluate", lstm, "--text", files / "missing.txt")
    assert "is empty" in refused("evaluate", lstm, "--text", files / "empty.txt")
    assert "holds no text" in refused("evaluate", lstm, "--text", files / "blank.txt")
    assert "stride is for a Transformer" in refused("evaluate", lstm, "--text", good, "--stride", "8")
    assert "stride is for 1 to 64" in refused("evaluate", transformer, "--text", good, "--stride", "65")
    said = refused("evaluate", transformer, "--text", good, "--batch", "0")
    assert "batch_size must be at least 1" in said and "(--batch)" in said
    export = ("export", lstm, "--saved-models", root)
    assert "--quantize is for --to litert" in refused(*export, "--to", "saved-model", "--quantize", "int8")
    said = refused(*export, "--to", "saved-model", "--max-new-tokens-limit", "0")
    assert "at least 1, got 0" in said and "(--max-new-tokens-limit)" in said
    said = refused("verify", lstm, "--saved-models", root)
    assert "there is no artifact of" in said and "--name" in said and "--saved-models" in said
    assert "there is no artifact 'x.tflite'" in refused("verify", lstm, "x.tflite")
    assert not root.exists()
    root.mkdir()
    (root / "taken.tflite").write_text("")
    assert "name another, or overwrite it (--name, --overwrite)" in refused(
        *export, "--to", "litert", "--name", "taken"
    )


def test_a_json_file_that_cannot_be_written(run_folder, files, capsys):
    for path in (files / "nowhere" / "a.json", files / "pictures", files / "good.txt" / "a.json"):
        assert seqlm_cli.main(["generate", str(run_folder("lstm")), "--max-new-tokens", "2", "--json", str(path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    ["generate r", "runs", "export r --to litert", "verify r", "evaluate r --text t", "cache --folder kept --prune"],
)
def test_a_json_file_that_cannot_be_written_is_told_before_the_work(words, files, refused, monkeypatch):
    verb = words.split()[0]
    worked = []
    monkeypatch.setattr(seqlm_cli.VERBS[verb], "run", worked.append)
    assert "--json names a folder that is not there" in refused(*words.split(), "--json", files / "nosuch" / "a.json")
    assert "--json names a folder; give" in refused(*words.split(), "--json", files / "pictures")
    assert "--json: no file can be written there" in refused(*words.split(), "--json", "/proc/a.json")
    before = sorted(files.iterdir())
    assert seqlm_cli.main([*words.split(), "--json", str(files / "a.json")]) == 0
    assert len(worked) == 1 and sorted(files.iterdir()) == before


def test_a_module_to_import_that_is_missing(run_folder, refused, tmp_path):
    words = ("export", run_folder("lstm"), "--to", "litert", "--saved-models", tmp_path, "--import", "no_such_module")
    message = refused(*words)
    assert "--import no_such_module: there is no module 'no_such_module'" in message and "pip install" not in message
    assert list(tmp_path.iterdir()) == []


# --- damaged run folders


@pytest.fixture
def folder(run_folder, tmp_path):
    return shutil.copytree(run_folder("transformer"), tmp_path / "run")


def in_model_file(folder, name, change):
    """Write `model.keras` anew with one of its files changed, or left out where `change` gives None."""
    with zipfile.ZipFile(folder / "model.keras") as archive:
        content = {entry: archive.read(entry) for entry in archive.namelist()}
    before, content[name] = content[name], change(content[name])
    assert content[name] != before, "the change changes nothing"
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        for entry, data in content.items():
            if data is not None:
                archive.writestr(entry, data)


def cut_model(folder):
    content = (folder / "model.keras").read_bytes()
    (folder / "model.keras").write_bytes(content[: len(content) // 2])


def config(old, new):
    return lambda folder: in_model_file(folder, "config.json", lambda data: data.replace(old, new))


DAMAGES = {
    "cut model": (cut_model, "model.keras is damaged"),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), "There is no tokenizer folder"),
    "broken tokenizer": (
        lambda folder: (folder / "tokenizer" / "seqlm_tokenizer.json").write_text("{"),
        "tokenizer.json",
    ),
    "broken task": (lambda folder: (folder / "task.json").write_text('{"task": '), "task.json is damaged"),
    "odd task": (lambda folder: (folder / "task.json").write_text('{"task": "Poetry"}'), "names the task 'Poetry'"),
    "cut config": (
        lambda folder: in_model_file(folder, "config.json", lambda data: data[:100]),
        "model.keras is damaged",
    ),
    "no config": (lambda folder: in_model_file(folder, "config.json", lambda _: None), "model.keras is damaged"),
    "cut weights": (
        lambda folder: in_model_file(folder, "model.weights.h5", lambda data: data[:1000]),
        "model.keras is damaged",
    ),
    "no weights": (lambda folder: in_model_file(folder, "model.weights.h5", lambda _: None), "model.keras is damaged"),
    "a layer more": (config(b'"num_layers": 2', b'"num_layers": 3'), "model.keras is whole, but no model"),
    "heads that do not divide": (config(b'"num_heads": 4', b'"num_heads": 5'), "num_heads must divide hidden_dim"),
    "a width that is no number": (
        config(b'"hidden_dim": 32', b'"hidden_dim": "wide"'),
        "model.keras is whole, but no model",
    ),
    "an unknown part": (config(b'"hidden_dim": 32', b'"hidden_dims": 32'), "model.keras is whole, but no model"),
    "another context": (config(b'"max_length": 64', b'"max_length": 99'), "model.keras is whole, but no model"),
    "another class": (config(b"TransformerLM", b"TransporterLM"), "import the module that defines it first"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_folder(folder, refused, damage):
    change, message = DAMAGES[damage]
    change(folder)
    assert message in refused("generate", folder)


def test_prompts_that_are_no_prompts(run_folder, refused, tmp_path):
    folder = shutil.copytree(run_folder("rnn"), tmp_path / "run")
    for content in ("{", "[]", "{}", '{"prompts": "the cat"}', '{"prompts": [1, 2]}', '{"prompts": []}'):
        (folder / "prompts.json").write_text(content)
        assert "prompts.json is damaged" in refused("verify", folder, folder / "model.keras")


# --- texts that are large or odd, and work


def test_odd_texts_are_evaluated(run_folder, tmp_path):
    odd = {"bom": b"\xef\xbb\xbfthe cat\r\n", "nul": b"\x00" * 50, "raw": bytes(range(256)), "dot": b".\n"}
    for name, content in odd.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
        with pytest.warns(UserWarning, match="are no UTF-8") if name == "raw" else contextlib.nullcontext():
            result = evaluate(load(run_folder("lstm")), tmp_path / f"{name}.txt")
        size = len(content.removeprefix(b"\xef\xbb\xbf"))  # the mark is no text
        assert result["num_bytes"] == size and result["num_tokens"] == size + 1
        json.dumps(result, allow_nan=False)


LONG_LINE = """
    import json, resource, sys
    import keras_seqlm
    from keras_seqlm import data, tokenizers

    def megabytes():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    file, cache, kind = sys.argv[1:]
    tokenizer, before = tokenizers.ByteTokenizer(), megabytes()
    if kind == "bpe":
        tokenizer = tokenizers.BytePairTokenizer.train(texts=data.texts(file), vocabulary_size=400)
    train, validation = data.causal_blocks(file, tokenizer, 128, 16, cache_dir=cache)
    train[len(train) - 1], validation[0]
    print(json.dumps([megabytes() - before, train.num_bytes + validation.num_bytes]))
"""


@pytest.mark.parametrize(
    ("kind", "size", "most"),
    [
        pytest.param("byte", 64, 80, id="byte-64MB", marks=pytest.mark.soak),
        pytest.param("bpe", 4, 400, id="bpe-4MB", marks=pytest.mark.slow),
        pytest.param("byte", 1000, 80, id="byte-1GB", marks=pytest.mark.soak),
        pytest.param("bpe", 64, 512, id="bpe-64MB", marks=pytest.mark.soak),
    ],
)
def test_a_line_without_end_takes_little_memory(in_python, tmp_path, kind, size, most):
    """Megabytes above those of the imports; the 400 of byte pairs are the trainer's own buffers and its library."""
    line = b"the cat sat on the mat and "
    with open(tmp_path / "line.txt", "wb") as file:
        for _ in range(size):
            file.write(line * (1_000_000 // len(line)))
    grown, num_bytes = in_python(LONG_LINE, tmp_path / "line.txt", tmp_path / "cache", kind, KERAS_BACKEND="jax")
    assert num_bytes == (tmp_path / "line.txt").stat().st_size
    shutil.rmtree(tmp_path)  # gigabytes, at full scale
    assert grown < most, f"{grown:.0f} MB for a line of {size} MB"
