"""The command line: what each command writes, prints and returns."""

import csv
import json
import pathlib
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from sentences import CONTEXT, SENTENCES

import keras_seqlm
import seqlm_cli
from keras_seqlm import export, tasks
from keras_seqlm.export.verify import Agreement
from keras_seqlm.tokenizers import ByteTokenizer
from seqlm_cli.train import prompts_from
from seqlm_cli.verify import artifact_name, artifacts_of

RUN_FILES = [".lock", "checkpoints", "history.csv", "loss.png", "model.keras", "prompts.json", "recipe.json"]
RUN_FILES += ["run.toml", "samples.txt", "task.json", "tokenizer"]
SMALL = ["--size", "nano", "--layers", "1", "--hidden-dim", "32", "--batch", "4"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Numbered sentences, so that it shows from which part of the file something comes."""
    path = tmp_path_factory.mktemp("text") / "numbered.txt"
    path.write_text("".join(f"number {i:04d} is here, {SENTENCES[i % 5]}\n" for i in range(400)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):
    """A run folder as `seqlm train` writes it."""
    folder = tmp_path_factory.mktemp("cli") / "runs" / "books" / "small"
    words = ["train", "--text", text, "--out", folder, *SMALL, "--heads", "2", "--context", "48"]
    words += ["--steps", "12", "--validate-every", "5", "--seed", "3"]
    assert seqlm_cli.main([str(word) for word in words]) == 0
    return folder


def test_a_dash_is_no_name_of_a_file_for_json(capsys):
    with pytest.raises(SystemExit):
        seqlm_cli.main(["generate", "runs/none", "--json", "-"])
    assert "--json: standard output has what is shown, so - is no file here" in capsys.readouterr().err


def test_train_writes_a_run_folder(run):
    assert sorted(path.name for path in run.iterdir()) == RUN_FILES
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    with open(run / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["5", "10", "12"]
    assert all(float(row["validation_loss"]) > 0 for row in rows)
    assert float(rows[-1]["validation_bits_per_byte"]) < 8.5
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe["recipe"]["steps"] == 12 and recipe["recipe"]["seed"] == 3 and recipe["command"]["heads"] == 2
    assert recipe["backend"] == "tensorflow"
    assert (run / "samples.txt").read_text(encoding="utf-8").strip()


def test_train_builds_the_model_that_was_asked_for(run):
    model = tasks.load(run).model
    assert (model.num_layers, model.hidden_dim, model.num_heads, model.max_length) == (1, 32, 2, 48)
    assert model.tokenizer_hash == ByteTokenizer().hash


def test_the_prompts_are_of_the_validation_part(run, text):
    prompts = json.loads((run / "prompts.json").read_text())["prompts"]
    assert len(prompts) == 20 and len(set(prompts)) > 10
    content = text.read_text(encoding="utf-8")
    tail = content[int(0.88 * len(content)) :]
    assert all(prompt and prompt in tail for prompt in prompts)


def test_prompts_of_a_short_part_are_texts_too():
    tokenizer = ByteTokenizer()
    for text in ("", "a", "Zoë € " * 3, "€" * 40):
        prompts = prompts_from(np.concatenate([[1], tokenizer.encode(text), [2]]), tokenizer)
        assert len(prompts) == 20 and "\ufffd" not in "".join(prompts)


def test_generate_prints_and_writes_the_text(run, capsys, tmp_path):
    options = {"max_new_tokens": 12, "temperature": 0.7, "top_k": 30, "top_p": 0.9, "min_p": 0.01, "seed": 5}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    answer = tmp_path / "answer.json"
    command = ["generate", str(run), "--prompt", "number 00", *words, "--repetition-penalty", "1.1"]
    assert seqlm_cli.main([*command, "--json", str(answer)]) == 0
    content = json.loads(answer.read_text(encoding="utf-8"))
    assert set(content) == {"prompt", "text", "token_ids", "stop_reason", "truncated"}
    (wanted,) = tasks.load(run).write("number 00", repetition_penalty=1.1, **options)
    assert (content["text"], content["token_ids"]) == (wanted.text, wanted.token_ids)
    assert content["stop_reason"] == wanted.stop_reason and content["prompt"] == "number 00"
    assert content["truncated"] is False
    shown = capsys.readouterr()
    assert shown.out == f"number 00{wanted.text}\n" and shown.err == ""


def test_generate_ends_before_a_stop_string(run_folder, capsys):
    command = ["generate", str(run_folder("lstm")), "--prompt", "the cat"]
    assert seqlm_cli.main(command) == 0
    whole = capsys.readouterr().out
    stop = whole[10:13]
    assert seqlm_cli.main([*command, "--stop", "never said", "--stop", stop]) == 0
    assert capsys.readouterr().out == "the cat" + whole[7 : whole.index(stop, 7)] + "\n"


def test_a_prompt_beyond_the_context_works_and_is_told(run_folder, capsys):
    prompt = "the cat sat on the mat. " * 8
    assert (
        seqlm_cli.main(["generate", str(run_folder("transformer")), "--prompt", prompt, "--max-new-tokens", "9"]) == 0
    )
    shown = capsys.readouterr()
    assert shown.out.startswith(prompt) and shown.err.count("\n") == 1
    assert f"longer than the {CONTEXT - 1} tokens that this model reads of one; its beginning was left out" in shown.err


def test_a_huge_number_of_tokens_ends_at_the_context(run_folder, tmp_path):
    answer = tmp_path / "answer.json"
    command = ["generate", str(run_folder("transformer")), "--max-new-tokens", "1000000000", "--json", str(answer)]
    assert seqlm_cli.main([*command, "--temperature", "5", "--seed", "1"]) == 0
    content = json.loads(answer.read_text(encoding="utf-8"))
    assert len(content["token_ids"]) <= CONTEXT - 1
    assert content["stop_reason"] == ("eos" if len(content["token_ids"]) < CONTEXT - 1 else "length")


@pytest.mark.parametrize(("name", "options"), [("gru", []), ("transformer", ["--stride", "20", "--batch", "3"])])
def test_evaluate_prints_and_writes_the_loss(run_folder, text, capsys, tmp_path, name, options):
    short = tmp_path / "short.txt"
    short.write_bytes(text.read_bytes()[:1500])
    answer = tmp_path / "answer.json"
    command = ["evaluate", str(run_folder(name)), "--text", str(short), *options, "--json", str(answer)]
    assert seqlm_cli.main(command) == 0
    content = json.loads(answer.read_text())
    assert set(content) == {"loss", "bits_per_byte", "perplexity", "num_tokens", "num_bytes"}
    stride = 20 if options else None
    wanted = tasks.evaluate(tasks.load(run_folder(name)), short, stride=stride, batch_size=3)
    assert content == pytest.approx(wanted) and content["num_bytes"] == 1500
    assert f"loss {wanted['loss']:.4f} nats a token" in capsys.readouterr().out


def train_again(run, text, *words):
    """What `run` was trained with, and more."""
    first = ["train", "--text", text, "--out", run, *SMALL, "--heads", "2", "--context", "48", "--validate-every", "5"]
    return seqlm_cli.main([str(word) for word in [*first, "--seed", "3", "--steps", "12", *words]])


def test_the_same_command_again_has_nothing_left_to_do(run, text, capsys):
    before = (run / "history.csv").read_text(), (run / "samples.txt").read_text(encoding="utf-8")
    assert train_again(run, text) == 0
    streams = capsys.readouterr()
    assert "step 12, validation loss" in streams.out and "going on from step 12" in streams.err
    assert ((run / "history.csv").read_text(), (run / "samples.txt").read_text(encoding="utf-8")) == before


def test_row_19_other_settings_are_refused_and_the_run_is_kept(run, text, capsys):
    assert train_again(run, text, "--batch", "8", "--dropout", "0.5") == 2
    said = capsys.readouterr().err
    assert "--batch was 4 and is 8; --dropout was 0.0 and is 0.5" in said and "--allow-changes" in said
    assert train_again(run, text, "--no-resume") == 2
    assert "holds a run; leave --no-resume out to go on with it, or replace it: --overwrite" in capsys.readouterr().err
    assert seqlm_cli.main(["train", "--text", "no.txt", "--out", str(run), "--overwrite"]) == 2
    assert (run / "model.keras").exists()


def test_a_longer_run_goes_on_and_other_text_is_refused(run, text, capsys, tmp_path):
    longer = tmp_path / "longer"
    shutil.copytree(run, longer)
    recipe = json.loads((longer / "recipe.json").read_text())
    assert train_again(longer, text, "--steps", "15") == 0
    with open(longer / "history.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["5", "10", "12", "15"]
    assert recipe["recipe"]["steps"] == 12 and json.loads((longer / "recipe.json").read_text())["recipe"]["steps"] == 15
    changed = tmp_path / "numbered.txt"
    changed.write_text(text.read_text(encoding="utf-8") + "more", encoding="utf-8")
    content = json.loads((longer / "recipe.json").read_text())
    content["command"]["text"] = [str(changed)]
    (longer / "recipe.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert train_again(longer, changed, "--steps", "20") == 2
    assert "other settings: text was" in capsys.readouterr().err


def test_runs_are_listed(run, capsys, tmp_path):
    assert seqlm_cli.main(["runs", str(run.parents[1]), "--json", str(tmp_path / "runs.json")]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "model", "step"]
    assert line.split()[:3] == ["books/small", "transformer", "12/12"] and line.endswith("finished")
    (found,) = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert found["state"] == "finished" and found["validation_loss"] > 0


@pytest.mark.slow
def test_a_run_killed_by_sigkill_ends_as_the_one_left_alone(forks, monkeypatch, capsys):
    """Real processes, killed at random moments; `benchmarks/kill_resume.py` does it twenty times."""
    path = pathlib.Path(__file__).parents[1] / "benchmarks" / "kill_resume.py"
    script = types.ModuleType("kill_resume")
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), vars(script))
    words = ["--kills", "1", "--steps", "60", "--longest", "0.8", "--seed", "1", "--validations", "4", "--lines", "20"]
    monkeypatch.setattr(sys, "argv", [str(path), *words])
    monkeypatch.setattr(script, "subprocess", forks("tensorflow"))
    assert script.main() == 0
    said = capsys.readouterr().out
    assert "killed 1 times" in said and "max |loss difference| = 0, max |weight difference| = 0" in said


def test_overwrite_never_deletes_what_is_no_run_folder(text, capsys, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    for place in ("thesis", "thesis/chapter.txt"):
        assert seqlm_cli.main(["train", "--text", str(text), "--out", str(tmp_path / place), "--overwrite"]) == 2
        assert "no run folder" in capsys.readouterr().err
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_invalid_utf8_trains_into_a_folder_that_is_replaced(tmp_path, capsys):
    random = np.random.default_rng(0)
    (tmp_path / "raw.txt").write_bytes(random.integers(0, 256, 4000, "uint8").tobytes() + b"\xff\xfe\x00\xc3")
    folder = tmp_path / "runs" / "raw"
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text("{}")
    (folder / "left_over.txt").write_text("from before")
    words = [
        "train",
        "--text",
        str(tmp_path / "raw.txt"),
        "--out",
        str(folder),
        "--overwrite",
        "--model",
        "rnn",
        *SMALL,
    ]
    with pytest.warns(UserWarning, match="no UTF-8 .*raw.txt"):
        assert seqlm_cli.main([*words, "--context", "16", "--steps", "3", "--carry-state"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == RUN_FILES
    shown = capsys.readouterr()
    assert "step 3, validation loss" in shown.out and "RecurrentLM" in shown.err
    assert tasks.load(folder).model.stateful_batch_size == 4
    assert seqlm_cli.main(["generate", str(folder), "--prompt", "\x00é", "--max-new-tokens", "3"]) == 0


# --- exports; what they hold is tested in tests/export


@pytest.fixture
def no_process(monkeypatch, tmp_path_factory):
    """Exports and verification without their processes: what they are asked for, and whether the report is good."""
    asked, good = [], [True]
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    for name in ("books/small", "b"):
        pathlib.Path("runs", name).mkdir(parents=True)

    def make(kind, path, folder):
        asked.append((kind, path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if folder else path.write_text("")
        return path

    def saved_model(run, path, limit, imports, max_prompt_tokens, allow_ops):
        return make(f"saved-model limit {limit}", path, folder=True)

    def litert(run, path, quantize, overwrite, imports, max_prompt_tokens, allow_ops):
        return make(f"litert {quantize}", path, folder=False)

    def verify(run, *artifacts, imports, **allowed):
        asked.append(("verify", *artifacts))
        if allowed != {"max_loss_increase": 0.05, "max_metric_loss": 0.05, "allow_ops": []}:
            asked.append(tuple(allowed.values()))
        report = export.Report()
        if not good[0]:
            report.append(Agreement("a", "litert", 20, 0, 0, 0.0, 1.0, [], "wrong"))
        return report

    monkeypatch.setattr(export, "saved_model", saved_model)
    monkeypatch.setattr(export, "litert", litert)
    monkeypatch.setattr(export, "verify", verify)
    return asked, good


def test_export_writes_the_next_version_and_verifies_it(no_process, tmp_path):
    asked, good = no_process
    root = tmp_path / "saved_models"
    command = ["export", "runs/books/small", "--saved-models", str(root), "--to", "saved-model"]
    assert seqlm_cli.main(command) == 0
    assert seqlm_cli.main([*command, "--max-new-tokens-limit", "9", "--no-verify"]) == 0
    first, second = root / "books-small" / "1", root / "books-small" / "2"
    assert asked == [("saved-model limit 256", first), ("verify", first), ("saved-model limit 9", second)]
    good[0] = False
    assert seqlm_cli.main([*command, "--name", "other"]) == 1
    assert asked[-1] == ("verify", root / "other" / "1")


def test_export_of_a_lite_file(no_process, tmp_path):
    asked, _ = no_process
    command = ["export", "runs/books", "--saved-models", str(tmp_path), "--to", "litert", "--quantize", "int8"]
    assert seqlm_cli.main(command) == 0
    assert asked == [("litert int8", tmp_path / "books.tflite"), ("verify", tmp_path / "books.tflite")]


def test_verify_takes_the_newest_version_and_every_lite_file(no_process, tmp_path, capsys):
    asked, _ = no_process
    for version in ("1", "2", "10"):
        (tmp_path / "books" / version).mkdir(parents=True)
    for name in ("books.tflite", "books-int8.tflite", "books-float16.tflite", "other.tflite"):
        (tmp_path / name).write_text("")
    files = [tmp_path / name for name in ("books.tflite", "books-float16.tflite", "books-int8.tflite")]
    assert artifacts_of("books", tmp_path) == [tmp_path / "books" / "10", *files]
    assert seqlm_cli.main(["verify", "runs/books", "--saved-models", str(tmp_path)]) == 0
    assert seqlm_cli.main(["verify", "runs/books", str(files[1])]) == 0
    assert asked == [("verify", tmp_path / "books" / "10", *files), ("verify", str(files[1]))]
    assert seqlm_cli.main(["verify", "runs/books", "--name", "nothing", "--saved-models", str(tmp_path)]) == 2
    assert "there is no artifact of 'nothing'" in capsys.readouterr().err


def test_verify_of_no_run_and_of_no_version_is_refused_before_the_model_is_asked(no_process, tmp_path, capsys):
    asked, _ = no_process
    for verb in (["verify"], ["export", "--to", "litert"]):
        assert seqlm_cli.main([verb[0], "runs/nosuch", *verb[1:]]) == 2
        assert "there is no run folder 'runs/nosuch'" in capsys.readouterr().err
    for version in ("2", "10"):
        (tmp_path / "books" / version).mkdir(parents=True)
    assert seqlm_cli.main(["verify", "runs/books", str(tmp_path / "books")]) == 2
    assert f"name one of them, as {tmp_path / 'books' / '10'}" in capsys.readouterr().err
    assert not asked


def test_what_verify_allows(no_process, tmp_path):
    asked, _ = no_process
    words = ["--max-loss-increase", "0.2", "--max-metric-loss", "0.1", "--allow-op", "Conv2D", "--allow-op", "Erf"]
    assert seqlm_cli.main(["verify", "runs/books", "a.tflite", *words]) == 0
    assert seqlm_cli.main(["export", "runs/b", "--to", "litert", "--saved-models", str(tmp_path), *words]) == 0
    assert asked[1] == asked[-1] == (0.2, 0.1, ["Conv2D", "Erf"])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/books", "books"),
        ("runs/demo/rnn/", "demo-rnn"),
        ("/tmp/runs/runs/a", "a"),
        ("./runs/a/../b", "b"),
        ("elsewhere/books", "books"),
    ],
)
def test_the_name_of_an_artifact(path, name):
    assert artifact_name(path) == name


# --- the script


def seqlm(*words):
    return subprocess.run([sys.executable, "-m", "seqlm_cli", *words], capture_output=True, text=True, timeout=120)


def test_exit_codes_and_streams_of_the_script(tmp_path):
    nothing = seqlm()
    assert nothing.returncode == 2 and "COMMAND" in nothing.stdout
    assert seqlm("--version").stdout.strip() == keras_seqlm.__version__
    unknown = seqlm("translate")
    assert unknown.returncode == 2 and "invalid choice: 'translate'" in unknown.stderr
    missing = seqlm("generate", str(tmp_path / "nowhere"))
    assert missing.returncode == 2 and missing.stdout == ""
    said = f"seqlm: error: there is no run folder '{tmp_path / 'nowhere'}' (`seqlm runs` lists those below a folder)\n"
    assert missing.stderr == said


@pytest.mark.parametrize("command", ["demo", "train", "generate", "evaluate", "export", "verify"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        seqlm_cli.main([command, "--help"])
    assert ended.value.code == 0 and len(capsys.readouterr().out.splitlines()) > 5


def test_export_hands_on_how_much_of_a_prompt_is_read(run_folder, monkeypatch, tmp_path):
    from keras_seqlm import export

    given = []
    for name in ("saved_model", "litert"):
        monkeypatch.setattr(export, name, lambda *_, name=name, **options: given.append((name, options)))
    words = [
        "export",
        str(run_folder("lstm")),
        "--no-verify",
        "--saved-models",
        str(tmp_path),
        "--max-prompt-tokens",
        "9",
    ]
    for kind in ("saved-model", "litert"):
        assert seqlm_cli.main([*words, "--to", kind]) == 0
    assert [(name, options["max_prompt_tokens"]) for name, options in given] == [("saved_model", 9), ("litert", 9)]
