"""Verification: it passes what is right, fails what is wrong, and knows a near tie from a mistake."""

import importlib
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
from sentences import PROMPTS, train_on_sentences

from keras_seqlm import export
from keras_seqlm.export.verify import Agreement, Report, compare_text, forbidden_ops
from seqlm_runtime.replay import MODES
from seqlm_runtime.sampler import sample

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="TensorFlow's C library is used on Linux only")
VERIFY_MODULE = importlib.import_module("keras_seqlm.export.verify")  # `export.verify` is the function


# --- one text beside the other, on made-up numbers

VOCABULARY, EOS, FIRST = 12, 2, 3


def texts(best, second=1.0, ended=False, mode="greedy"):
    """The reference's half and an artifact's half that agree: at step i the model prefers `best[i]` by `second[i]`."""
    rows = len(best) + 1
    logits = np.tile(np.linspace(-3.0, -2.0, VOCABULARY, dtype="float32"), (rows, 1))
    margins = np.broadcast_to(second, (len(best),))
    for step, (token, margin) in enumerate(zip(best, margins, strict=True)):
        logits[step, token] = 5.0
        logits[step, 11 if token != 11 else 10] = 5.0 - margin
    new = [token for token in best if token != EOS]
    expected = {
        f"{mode}_first_0": FIRST,
        "eos_id": EOS,
        f"{mode}_ids_0": np.array([1, 7, 8, *new], "int32"),
        f"{mode}_ended_0": ended,
        f"{mode}_text_0": "text",
        f"{mode}_logits_0": logits[: len(new) + 1],
        "suppressed_ids": np.array([0, 1, 3], "int32"),
    }
    got = {
        f"{mode}_new_0": np.array(new, "int32"),
        f"{mode}_text_0": np.frombuffer(b"text", "uint8"),
        f"{mode}_logits_0": logits[: len(new) + 1].copy(),
    }
    return expected, got


def test_equal_texts_agree():
    assert compare_text("greedy", 0, *texts([4, 5, 6])) == ("", 0)
    assert compare_text("greedy", 0, *texts([4, 5, EOS], ended=True)) == ("", 0)
    assert compare_text("greedy", 0, *texts([EOS], ended=True)) == ("", 0)
    assert compare_text("greedy", 0, *texts([])) == ("", 0)


def test_equal_ids_with_another_text_do_not():
    expected, got = texts([4, 5])
    got["greedy_text_0"] = np.frombuffer(b"taxt", "uint8")
    assert "their text does not" in compare_text("greedy", 0, expected, got)[0]


@pytest.mark.parametrize(
    ("new", "complaint"),
    [
        ([4, 9, 6], "step 1 is 9, not 5"),
        ([9, 5, 6], "step 0 is 9, not 4"),
        ([4, 5], "step 2 is 2, not 6"),
        ([], "step 0 is 2"),
    ],
)
def test_another_id_without_a_tie_is_a_mistake(new, complaint):
    expected, got = texts([4, 5, 6])
    got["greedy_new_0"] = np.array(new, "int32")
    assert complaint in compare_text("greedy", 0, expected, got)[0]


def test_writing_on_where_the_model_ends_is_a_mistake():
    expected, got = texts([4, 5, EOS], ended=True)
    got["greedy_new_0"] = np.array([4, 5, 9], "int32")
    assert "step 2 is 9, not 2" in compare_text("greedy", 0, expected, got)[0]


def test_writing_beyond_the_models_last_token_is_a_mistake():
    expected, got = texts([4, 5])
    got["greedy_new_0"] = np.array([4, 5, 9], "int32")
    assert "writes 3 tokens, not 2" in compare_text("greedy", 0, expected, got)[0]


def test_after_a_near_tie_the_choices_along_the_models_text_count():
    margins = [1.0, 5e-5, 1.0, 1.0]
    expected, got = texts([4, 5, 6, 7], margins)
    got["greedy_new_0"] = np.array([4, 11, 8, 8], "int32")  # went the other way at the tie
    assert compare_text("greedy", 0, expected, got) == ("", 1)
    got["greedy_logits_0"][1, 11] = 5.1  # at the tie itself either is right
    assert compare_text("greedy", 0, expected, got) == ("", 1)
    got["greedy_logits_0"][3, 9] = 6.0
    complaint, ties = compare_text("greedy", 0, expected, got)
    assert "along the model's text step 3 is 9, not 7" in complaint and ties == 1


def test_a_mistake_before_the_tie_is_not_excused_by_it():
    expected, got = texts([4, 5, 6], [1.0, 1.0, 5e-5])
    got["greedy_new_0"] = np.array([4, 9, 6], "int32")
    assert "step 1 is 9, not 5" in compare_text("greedy", 0, expected, got)[0]


def test_a_margin_just_above_the_limit_is_no_tie():
    for margin, ties in ((1.2e-4, 0), (0.8e-4, 1)):
        expected, got = texts([4, 5], [1.0, margin])
        got["greedy_new_0"] = np.array([4, 11], "int32")
        complaint, found = compare_text("greedy", 0, expected, got)
        assert (found, bool(complaint)) == (ties, not ties)


def test_the_tie_of_a_sampled_step_is_its_draw_beside_a_border():
    """With two ids to draw from, the border between them is put at the draw's own place."""
    from seqlm_runtime.sampler import uniform

    draw = float(uniform(MODES["sampled"]["seed"], FIRST))
    for distance, tie in ((1e-6, 1), (1e-2, 0)):
        logits = np.full((1, VOCABULARY), -60.0, "float32")
        first = draw + distance  # the share of id 4, which comes first
        logits[0, [4, 5]] = 0.8 * np.log([first, 1 - first])
        (chosen,), (margin,) = sample(logits, MODES["sampled"], None, [FIRST], (0, 1, 3), with_margin=True)
        assert chosen == 4 and (margin < 1e-4) == bool(tie)
        expected, got = texts([4], mode="sampled")
        for half in (expected, got):
            half["sampled_logits_0"] = np.concatenate([logits, logits])
        assert compare_text("sampled", 0, expected, got) == ("", tie)
        got["sampled_new_0"] = np.array([5], "int32")
        assert bool(compare_text("sampled", 0, expected, got)[0]) == (not tie)


# --- the report


def agreement(kind="saved-model", agree=20, difference=1e-6, forbidden=()):
    return Agreement(
        artifact=f"a/{kind}",
        kind=kind,
        prompts=20,
        agree=agree,
        exempt_steps=0,
        same_choices=1.0,
        max_logit_difference=difference,
        forbidden_ops=list(forbidden),
    )


def test_what_is_ok():
    assert agreement().ok and agreement("litert").ok
    assert not agreement(agree=19).ok and not agreement("litert", agree=19).ok
    assert not agreement(difference=2e-4).ok and not agreement(difference=float("nan")).ok
    assert not agreement(forbidden=["XlaDynamicUpdateSlice"]).ok
    for kind in ("litert-int8", "litert-float16"):
        assert agreement(kind, agree=3, difference=0.5).ok, "other weights are reported, not gated"
        assert not agreement(kind, forbidden=["CUSTOM:x"]).ok
    assert Report([agreement(), agreement("litert-int8", agree=0)]).ok
    assert not Report([agreement(), agreement("litert", agree=0)]).ok


def test_the_report_as_table_and_as_json():
    report = Report([agreement(), agreement("litert-int8", agree=7, difference=0.1), agreement("litert", agree=0)])
    table = str(report)
    lines = table.splitlines()
    assert "20/20" in lines[1] and lines[1].endswith("ok")
    assert "7/20" in lines[2] and lines[2].endswith("reported") and lines[3].endswith("FAILED")
    content = json.loads(json.dumps(report.to_dict()))
    assert set(content) == {"a/saved-model", "a/litert-int8", "a/litert"}
    promised = {"prompts", "agree", "exempt_steps", "max_logit_difference", "forbidden_ops"}
    assert all(promised <= set(figures) for figures in content.values())


# --- whole artifacts


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("name", ["rnn", "gru", "lstm", "transformer"])
def test_every_artifact_agrees_with_its_model(saved_model, litert, run_folder, name):
    quantized = ["float16", "int8"] if name in ("lstm", "transformer") else []
    artifacts = [saved_model(name), litert(name), *(litert(name, quantize) for quantize in quantized)]
    report = export.verify(run_folder(name), *artifacts)
    assert report.ok, str(report)
    assert [a.kind for a in report] == ["saved-model", "litert", *(f"litert-{quantize}" for quantize in quantized)]
    for found in report:
        assert found.prompts == len(PROMPTS) == 20 and found.forbidden_ops == []
        if found.gated:
            assert found.agree == 20 and found.max_logit_difference < 1e-4
    assert all(a.max_logit_difference > 1e-4 for a in report[2:]), "other weights must show"


@pytest.fixture(scope="module")
def impostor(corpus, tmp_path_factory):
    """A run of the same shape and tokenizer as `lstm`, trained otherwise."""
    import keras

    task = train_on_sentences(corpus, "lstm", "float32")
    random = np.random.default_rng(0)
    for variable in task.model.trainable_variables:
        variable.assign(keras.ops.convert_to_numpy(variable) + 0.05 * random.standard_normal(variable.shape))
    folder = tmp_path_factory.mktemp("impostor") / "runs" / "other"
    task.save(folder)
    (folder / "prompts.json").write_text(json.dumps({"prompts": PROMPTS[:4]}))
    return folder


@linux_only
@pytest.mark.slow
def test_artifacts_of_other_weights_fail(saved_model, litert, impostor, capsys, tmp_path):
    import seqlm_cli

    artifacts = [saved_model("lstm"), litert("lstm"), litert("lstm", "int8")]
    answer = tmp_path / "answer.json"
    assert seqlm_cli.main(["verify", str(impostor), *artifacts, "--json", str(answer)]) == 1
    content = json.loads(answer.read_text())
    assert [content[artifact]["ok"] for artifact in artifacts] == [False, False, True]
    assert all(content[artifact]["agree"] < 4 for artifact in artifacts[:2])
    assert all(content[artifact]["max_logit_difference"] > 1e-2 for artifact in artifacts)
    shown = capsys.readouterr().out
    assert shown.count("FAILED") == 2 and f"{artifacts[0]}: prompt 0 ('')" in shown


@linux_only
def test_a_task_in_memory_and_prompts_of_ones_own(saved_model, trained):
    report = export.verify(trained("lstm"), saved_model("lstm"), prompts=["", "a dog"])
    assert report.ok and report[0].prompts == 2


def test_an_artifact_that_is_missing(run_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no artifact"):
        export.verify(run_folder("lstm"), tmp_path / "1")


@pytest.fixture
def reference(monkeypatch):
    """In place of the model's half, which has its tests above: one prompt and its made-up text."""

    def write(_, path, prompts, **__):
        content = {
            "prompts": json.dumps(prompts),
            "max_new_tokens": 2,
            "eos_id": 2,
            "suppressed_ids": np.array([0, 1, 3]),
        }
        for mode in MODES:
            content |= {f"{mode}_ids_0": np.array([1, 70]), f"{mode}_first_0": 1, f"{mode}_text_0": "B"}
            content |= {f"{mode}_ended_0": False, f"{mode}_logits_0": np.zeros((2, 260), "float32")}
        np.savez(path, **content)

    monkeypatch.setattr(VERIFY_MODULE, "run_clean", write)


def test_a_damaged_artifact_is_named(reference, litert, saved_model, run_folder, tmp_path):
    source = pathlib.Path(litert("lstm"))
    for path in (source, source.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    shutil.copytree(source.with_suffix(".tokenizer"), tmp_path / "lstm.tokenizer")
    (tmp_path / "lstm.tflite").write_bytes(source.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"lstm\.tflite does not run: .*damaged or was replaced"):
        export.verify(run_folder("lstm"), tmp_path / "lstm.tflite", prompts=[""])
    with pytest.raises(ValueError, match="does not run: .*No SavedModel in"):
        export.verify(run_folder("lstm"), tmp_path / "lstm.tokenizer", prompts=[""])


def test_nan_logits_are_a_disagreement():
    expected, got = texts([4, 5])
    got["greedy_logits_0"][1, 6] = np.nan
    distance = VERIFY_MODULE._distance(expected["greedy_logits_0"], got["greedy_logits_0"])
    assert max(0.0, distance) == float("inf") and not agreement(difference=distance).ok


# --- operations


def test_an_xla_op_is_found_wherever_it_hides(tmp_path):
    import tensorflow as tf

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def plain(self, x):
            return {"y": x + 1.0}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def compiled(self, x):
            inner = tf.function(lambda x: x * 2.0, jit_compile=True)
            return {"y": tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, inner(y)), (0, x))[1]}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def sliced(self, x):
            import keras

            return {"y": keras.ops.slice_update(x, (0,), x[:1] + 1.0)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "x")])
        def reads(self, x):
            return {"y": tf.map_fn(tf.io.read_file, x)}

    module = Module()
    found = {}
    for name, as_name in (
        ("plain", "generate"),
        ("compiled", "generate"),
        ("sliced", "score"),
        ("reads", "generate"),
        ("compiled", "generate_xla"),
    ):
        folder = tmp_path / f"{name}-{as_name}" / "1"
        tf.saved_model.save(module, str(folder), signatures={as_name: getattr(module, name)})
        found[name, as_name] = forbidden_ops(str(folder))
    assert found == {
        ("plain", "generate"): [],
        ("compiled", "generate"): ["_XlaMustCompile"],
        ("sliced", "score"): ["XlaDynamicUpdateSlice"],
        ("reads", "generate"): ["ReadFile"],
        ("compiled", "generate_xla"): [],
    }


@pytest.mark.slow
def test_custom_and_variable_ops_are_found_in_a_lite_file(tmp_path):
    import tensorflow as tf

    class Counter(tf.Module):
        def __init__(self):
            super().__init__()
            self.count = tf.Variable(0.0)

        @tf.function(input_signature=[tf.TensorSpec([2], tf.float32, "x")])
        def __call__(self, x):
            return {"y": x + self.count.assign_add(1.0)}

    def convert(function, module, **options):
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], module)
        for name, value in options.items():
            setattr(converter, name, value)
        return converter.convert()

    rare = tf.function(lambda x: tf.raw_ops.Betainc(a=x, b=x, x=x), input_signature=[tf.TensorSpec([2], tf.float32)])
    counter = Counter()
    (tmp_path / "custom.tflite").write_bytes(convert(rare, None, allow_custom_ops=True))
    counting = convert(counter.__call__, counter, experimental_enable_resource_variables=True)
    (tmp_path / "counter.tflite").write_bytes(counting)
    assert forbidden_ops(str(tmp_path / "custom.tflite")) == ["CUSTOM:Betainc"]
    assert {"ASSIGN_VARIABLE", "VAR_HANDLE"} <= set(forbidden_ops(str(tmp_path / "counter.tflite")))


# --- other ways to a model


@linux_only
@pytest.mark.slow
def test_a_model_trained_in_mixed_precision(run_folder, tmp_path):
    run = run_folder("lstm", "mixed_bfloat16")
    report = export.verify(run, export.saved_model(run, tmp_path / "mixed" / "1"), prompts=PROMPTS[:4])
    assert report.ok, str(report)


OWN_MODEL = '''
import keras
import keras_seqlm

@keras.saving.register_keras_serializable("mine")
class Doubled(keras_seqlm.models.RecurrentLM):
    """A model of the user's own: its logits are twice as large."""

    def logits_of(self, hidden):
        return 2.0 * super().logits_of(hidden)
'''


@linux_only
@pytest.mark.slow
def test_a_model_of_ones_own(tmp_path, monkeypatch, capsys):
    import seqlm_cli
    from keras_seqlm.tasks import TextGeneration
    from keras_seqlm.tokenizers import ByteTokenizer

    (tmp_path / "their_models.py").write_text(OWN_MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    their_models = importlib.import_module("their_models")
    model = their_models.Doubled(260, cell="gru", size="nano", hidden_dim=16)
    model.build()
    run = tmp_path / "runs" / "own"
    TextGeneration(model, ByteTokenizer()).save(run)
    command = ["export", str(run), "--to", "saved-model", "--saved-models", str(tmp_path / "saved_models")]
    assert seqlm_cli.main(command) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("seqlm: error: ") and errors.count("\n") == 1
    assert "Doubled" in errors and "--import" in errors
    assert list((tmp_path / "saved_models" / "own").iterdir()) == []
    assert seqlm_cli.main([*command, "--import", "their_models"]) == 0
    assert "10/10" in capsys.readouterr().out


@linux_only
@pytest.mark.slow
def test_a_model_trained_under_jax(corpus, in_fork, tmp_path):
    pytest.importorskip("jax")
    script = """
        import json, sys
        del sys.modules["tensorflow"]  # which has been kept from being imported, to save time
        import keras
        sys.path.insert(0, sys.argv[1])
        from sentences import PROMPTS, train_on_sentences
        from keras_seqlm import export
        task = train_on_sentences(sys.argv[2], "gru", "float32")
        report = export.verify(task, export.saved_model(task, sys.argv[3] + "/jax/1"), prompts=PROMPTS[:4])
        print(json.dumps([keras.backend.backend(), report.ok, str(report)]))
    """
    backend, ok, table = in_fork(script, pathlib.Path(__file__).parents[1], corpus, tmp_path, backend="jax")
    assert backend == "jax" and ok, table
