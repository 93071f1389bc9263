"""`seqlm finetune --lora`: a small file beside the base, killed and gone on, merged, refused; --metric, --class-weights, --layer-decay."""

import shutil

import numpy as np
import pytest
from helpers import array
from killed import run_until_killed

import seqlm_cli
from keras_seqlm import tasks
from keras_seqlm.checkpoints import Checkpoints
from keras_seqlm.export.loading import load_reference
from keras_seqlm.models.adapters import base_of, learned
from keras_seqlm.training import list_runs, read_history

WORDS = ("apple", "berry", "cherry")
SMALL = [
    "--model",
    "transformer",
    "--size",
    "nano",
    "--layers",
    "2",
    "--hidden-dim",
    "16",
    "--heads",
    "2",
    "--context",
    "32",
]
MORE = ["--batch", "8", "--steps", "12", "--validate-every", "4", "--checkpoint-every", "2", "--columns", "label=kind"]
LORA = ["--lora", "2", "--lora-alpha", "4", "--lora-on", "q,v,feed_forward", "--learning-rate", "0.02"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    lines = [f"{word} number {number},{word}" for word in WORDS for number in range(40)]
    path.write_text("text,kind\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def base(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "base"
    assert finetune(rows, folder, *SMALL, "--tokenizer", "byte", *MORE) == 0
    return folder


@pytest.fixture(scope="module")
def run(rows, base):
    folder = base.parent / "lora"
    assert finetune(rows, folder, "--from", str(base), *LORA, *MORE) == 0
    return folder


def finetune(rows, folder, *words):
    return seqlm_cli.main(["finetune", "--task", "classify", "--data", str(rows), "--out", str(folder), *words])


def same_weights(one, other):
    for ours, theirs in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(array(ours), array(theirs))


def test_what_was_learned_is_a_small_file_beside_the_base(run, base, rows, capsys):
    assert not (run / "model.keras").exists()
    size = (run / "adapters.safetensors").stat().st_size
    model, before = tasks.load(run).model, tasks.load(base).model
    held = sum(4 * int(np.prod(weight.shape)) for weight in learned(model))
    assert held < size < held + 16_000 and size < (base / "model.keras").stat().st_size / 3
    for ours, theirs in zip(base_of(model), before.backbone.weights, strict=True):
        np.testing.assert_array_equal(array(ours), array(theirs))  # bit for bit
    same_weights(model, tasks.load(run, "newest").model)  # the checkpoint, which needs no base
    assert model.backbone.lora == {"rank": 2, "alpha": 4.0, "on": ["q", "v", "feed_forward"]}
    assert [one["state"] for one in list_runs(base.parent)] == ["finished", "finished"]
    assert seqlm_cli.main(["predict", str(run), "--text", "berry number 3"]) == 0
    (said,) = tasks.load(run, "newest").predict(["berry number 3"])
    assert f'"label": "{said.label}"' in capsys.readouterr().out


def test_killed_and_gone_on_it_is_the_run_left_alone(run, base, rows):
    folder = base.parent / "killed"
    flags = ["--from", str(base), *LORA, *MORE]
    words = ["finetune", "--task", "classify", "--data", str(rows), "--out", str(folder), *flags]
    run_until_killed(words, step=8)
    assert finetune(rows, folder, *flags) == 0
    same_weights(tasks.load(folder).model, tasks.load(run).model)
    ours, theirs = (read_history(one / "history.csv") for one in (folder, run))
    for name in ("loss", "validation_loss", "validation_accuracy", "validation_macro_f1"):
        assert [row[name] for row in ours] == [row[name] for row in theirs]
    shutil.rmtree(folder)


def test_a_base_of_other_content_is_refused_by_name(run, base, rows, capsys):
    elsewhere, moved = base.parent / "elsewhere", base.parent / "moved"
    shutil.copytree(run, elsewhere)
    base.rename(moved)
    try:
        with pytest.raises(FileNotFoundError, match=f"the model of {base}"):
            tasks.load(elsewhere)
        same_weights(tasks.load(elsewhere, base=moved).model, tasks.load(elsewhere, "newest").model)
    finally:
        moved.rename(base)
    task = tasks.load(base)
    weight = task.model.backbone.weights[0]
    weight.assign(array(weight) + 1e-4)
    other = base.parent / "other"
    task.save(other)
    with pytest.raises(ValueError, match=r"base as it was, of content [0-9a-f]{12}; that of .*other has content"):
        tasks.load(elsewhere, base=other)
    content = (elsewhere / "adapters.safetensors").read_bytes()
    (elsewhere / "adapters.safetensors").write_bytes(content[:40])
    with pytest.raises(ValueError, match="no file of adapters, or damaged"):
        tasks.load(elsewhere)
    shutil.rmtree(elsewhere)
    shutil.rmtree(other)


def test_merged_on_request(run, base, rows, capsys):
    folder = base.parent / "merged"
    shutil.copytree(run, folder)
    unmerged = tasks.load(folder)
    flags = ["finetune", "--config", str(folder / "run.toml"), "--out", str(folder), "--merge"]
    assert seqlm_cli.main(flags) == 0  # nothing is left to train
    assert not (folder / "adapters.safetensors").exists() and (folder / "model.keras").is_file()
    merged = tasks.load(folder)
    assert merged.model.backbone.lora is None
    texts = ["berry number 3", "cherry", "apple 9"]
    for ours, theirs in zip(merged.predict(texts), unmerged.predict(texts), strict=True):
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-6)
    on = base.parent / "on"
    capsys.readouterr()
    assert finetune(rows, on, "--from", str(run), "--lora", "2", *MORE) == 2
    assert "adapters of adapters are not kept" in capsys.readouterr().err
    assert finetune(rows, on, "--from", str(run), *MORE[:2], "--steps", "1", *MORE[4:]) == 0  # all of it, merged
    assert tasks.load(on).model.backbone.lora is None
    for other in (folder, on):
        shutil.rmtree(other)


def test_the_best_is_that_of_the_task_s_metric(rows, base, tmp_path, capsys):
    """An accuracy that stays while the loss falls ends the run, and the first best one is kept."""
    folder = tmp_path / "run"
    words = ["--from", str(base), "--early-stopping", "2", "--metric", "macro_f1", *MORE]
    words[words.index("--steps") + 1] = "40"
    assert finetune(rows, folder, *words) == 0
    history = read_history(folder / "history.csv")
    scores = [row["validation_macro_f1"] for row in history]
    losses = [row["validation_loss"] for row in history]
    best = history[int(np.argmax(scores))]["step"]
    assert len(history) == best // 4 + 2 < 10 and losses[-1] < losses[scores.index(max(scores))]
    assert Checkpoints(folder / "checkpoints").best().step == best
    same_weights(tasks.load(folder).model, tasks.load(folder, best).model)
    assert 'metric = "macro_f1"' in (folder / "run.toml").read_text()
    shown = capsys.readouterr()
    assert f"step {best}, validation loss" in shown.out and f"macro f1 {max(scores):.4f}" in shown.err
    assert finetune(rows, folder, *words, "--metric", "loss") == 2
    assert "--metric was macro_f1 and is loss" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_the_best_of_a_run_from_scratch_is_kept_and_every_checkpoint_is_read(rows, tmp_path, kind):
    folder = tmp_path / "run"
    assert (
        finetune(rows, folder, *SMALL[2:6], "--model", kind, "--tokenizer", "byte", "--early-stopping", "9", *MORE) == 0
    )
    best = Checkpoints(folder / "checkpoints").best().step
    for which in ("best", best):
        same_weights(tasks.load(folder).model, tasks.load(folder, which).model)


def test_weights_of_classes_and_layers_train(rows, tmp_path):
    flags = [*SMALL, "--tokenizer", "byte", *MORE]
    flags[flags.index("--steps") + 1] = "4"
    losses = {}
    for name, words in {"": [], "w": ["--class-weights", "apple=3,berry=0"], "d": ["--layer-decay", "0.5"]}.items():
        assert finetune(rows, tmp_path / f"run{name}", *flags, *words) == 0
        losses[name] = [
            (row["loss"], row["validation_loss"]) for row in read_history(tmp_path / f"run{name}" / "history.csv")
        ]
    assert losses["w"][0][0] != losses[""][0][0] and losses["d"][0][1] != losses[""][0][1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lora", "2"], "give --from RUN"),
        (["--lora-on", "q"], "--lora-on is of --lora RANK"),
        (["--from", "BASE", "--lora", "2", "--freeze"], "give one of them"),
        (["--from", "BASE", "--lora", "0"], "a rank of at least 1"),
        (["--from", "BASE", "--lora", "2", "--lora-on", "recurrent"], "on must name parts that TransformerEncoder has"),
        (["--metric", "f1"], "--metric must be one of accuracy, macro_f1, loss"),
        (["--class-weights", "apple"], "LABEL=WEIGHT"),
        (["--class-weights", "pear=2"], "'pear', which is no class; there are apple, berry, cherry"),
        (["--layer-decay", "1.5"], "above 0 and at most 1"),
    ],
)
def test_wrong_use_says_what_to_do(base, rows, tmp_path, capsys, words, said):
    assert finetune(rows, tmp_path / "x", *[{"BASE": str(base)}.get(word, word) for word in words], *MORE) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_exports_see_merged_kernels(base, run, tmp_path):
    """`export.loading` is what every export and its reference read."""
    from helpers import new_model

    from keras_seqlm.models import add_lora, merge_lora
    from keras_seqlm.tasks import TextGeneration
    from keras_seqlm.tokenizers import ByteTokenizer

    model = add_lora(new_model("lstm", 260, num_layers=1), 2)
    for weight in learned(model):
        weight.assign(0.2 * np.ones(weight.shape))
    TextGeneration(model, ByteTokenizer()).save(tmp_path / "run")
    same_weights(load_reference(tmp_path / "run").model, merge_lora(model))
