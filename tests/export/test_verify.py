"""Verification: it passes what is right, fails what is wrong, and knows a near tie from a mistake."""

import contextlib
import importlib
import json
import re
import sys
import types
import warnings

import numpy as np
import pytest
from sentences import PROMPTS, train_on_sentences

from keras_seqlm import export
from keras_seqlm.export import comparison
from keras_seqlm.export.comparison import (
    compare_logits,
    compare_texts,
    distance,
    wrong_answers,
    wrong_cuts,
    wrong_readings,
    wrong_shapes,
    wrong_vectors,
)
from keras_seqlm.export.inspection import forbidden_ops
from keras_seqlm.export.questions import (
    Way,
    beyond_the_bytes,
    longest_texts,
    options_of,
    questions,
    saved_ways,
    text_of,
)
from keras_seqlm.export.served_part import save_served_part
from keras_seqlm.export.verify import Agreement, Report
from keras_seqlm.tokenizers import BytePairTokenizer, ByteTokenizer, WordPieceTokenizer
from seqlm_runtime import replay
from seqlm_runtime.options import DEFAULTS
from seqlm_runtime.prompts import read_ids
from seqlm_runtime.sampler import sample

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="TensorFlow's C library is used on Linux only")


# --- one text beside the other, on made-up numbers

VOCABULARY, EOS, FIRST = 12, 2, 3


def answer(way, new, text="text", cut=False):
    """What an artifact gives for one text that it was asked for in a way."""
    return {
        f"{way}|token_ids": np.array([[*new, 0]], "int32"),
        f"{way}|num_tokens": np.array([len(new)]),
        f"{way}|truncated": np.array([cut]),
        f"{way}|texts": [text],
    }


def compare_text(mode, row, expected, got, name=None, options=True):
    name = name or mode
    return comparison.compare_text(mode, row, expected, got, Way(name, "generate", [(mode, row)], options), 0)


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
        "asked": {"greedy": [], mode: [{"text": b"..", **options_of(mode, 0)}]},
        f"{mode}_0_first": FIRST,
        "eos_id": EOS,
        f"{mode}_0_ids": np.array([1, 7, 8, *new], "int32"),
        f"{mode}_0_new": np.array(new, "int32"),
        f"{mode}_0_ended": ended,
        f"{mode}_0_truncated": False,
        f"{mode}_0_text": np.frombuffer(b"text", "uint8"),
        f"{mode}_0_logits": logits[: len(new) + 1],
        "suppressed_ids": np.array([0, 1, 3], "int32"),
    }
    return expected, {**answer(mode, new), f"{mode}_0_logits": logits[: len(new) + 1].copy()}


def test_equal_texts_agree():
    assert compare_text("greedy", 0, *texts([4, 5, 6])) == ("", 0)
    assert compare_text("greedy", 0, *texts([4, 5, EOS], ended=True)) == ("", 0)
    assert compare_text("greedy", 0, *texts([EOS], ended=True)) == ("", 0)
    assert compare_text("greedy", 0, *texts([])) == ("", 0)


def test_equal_ids_with_another_text_do_not():
    expected, got = texts([4, 5])
    got["greedy|texts"] = ["taxt"]
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
    got |= answer("greedy", new)
    assert complaint in compare_text("greedy", 0, expected, got)[0]


def test_writing_on_where_the_model_ends_is_a_mistake():
    expected, got = texts([4, 5, EOS], ended=True)
    got |= answer("greedy", [4, 5, 9])
    assert "step 2 is 9, not 2" in compare_text("greedy", 0, expected, got)[0]


def test_writing_beyond_the_models_last_token_is_a_mistake():
    expected, got = texts([4, 5])
    got |= answer("greedy", [4, 5, 9])
    assert "writes 3 tokens, not 2" in compare_text("greedy", 0, expected, got)[0]


def test_after_a_near_tie_the_choices_along_the_models_text_count():
    margins = [1.0, 5e-5, 1.0, 1.0]
    expected, got = texts([4, 5, 6, 7], margins)
    got |= answer("greedy", [4, 11, 8, 8])  # went the other way at the tie
    assert compare_text("greedy", 0, expected, got) == ("", 1)
    got["greedy_0_logits"][1, 11] = 5.1  # at the tie itself either is right
    assert compare_text("greedy", 0, expected, got) == ("", 1)
    got["greedy_0_logits"][3, 9] = 6.0
    complaint, ties = compare_text("greedy", 0, expected, got)
    assert "along the model's text step 3 is 9, not 7" in complaint and ties == 1


def test_a_mistake_before_the_tie_is_not_excused_by_it():
    expected, got = texts([4, 5, 6], [1.0, 1.0, 5e-5])
    got |= answer("greedy", [4, 9, 6])
    assert "step 1 is 9, not 5" in compare_text("greedy", 0, expected, got)[0]


def test_a_margin_just_above_the_limit_is_no_tie():
    for margin, ties in ((1.2e-4, 0), (0.8e-4, 1)):
        expected, got = texts([4, 5], [1.0, margin])
        got |= answer("greedy", [4, 11])
        complaint, found = compare_text("greedy", 0, expected, got)
        assert (found, bool(complaint)) == (ties, not ties)


def test_the_tie_of_a_sampled_step_is_its_draw_beside_a_border():
    """With two ids to draw from, the border between them is put at the draw's own place."""
    from seqlm_runtime.sampler import uniform

    options = options_of("sampled", 0)
    del options["max_new_tokens"]
    draw = float(uniform(options["seed"], FIRST))
    for away, tie in ((1e-6, 1), (1e-2, 0)):
        logits = np.full((1, VOCABULARY), -60.0, "float32")
        first = draw + away  # the share of id 4, which comes first
        logits[0, [4, 5]] = 0.8 * np.log([first, 1 - first])
        (chosen,), (margin,) = sample(logits, options, None, [FIRST], (0, 1, 3), with_margin=True)
        assert chosen == 4 and (margin < 1e-4) == bool(tie)
        expected, got = texts([4], mode="sampled")
        for half in (expected, got):
            half["sampled_0_logits"] = np.concatenate([logits, logits])
        assert compare_text("sampled", 0, expected, got) == ("", tie)
        got |= answer("sampled", [5])
        assert bool(compare_text("sampled", 0, expected, got)[0]) == (not tie)


def test_an_option_is_looked_at_along_the_text():
    """A penalty makes another choice of ids that have been read, and the texts are held to that."""
    row = 4  # greedy, with a penalty of 1.5
    assert options_of("mixed", row)["repetition_penalty"] == 1.5 and options_of("mixed", row)["temperature"] == 0
    logits = np.full((2, VOCABULARY), -5.0, "float32")
    logits[:, 7], logits[:, 5] = 3.0, 2.5  # 7 stands in the prompt, so that 5 comes first, and then 7
    expected = {
        "asked": {"mixed": [{**DEFAULTS, **options_of("mixed", i)} for i in range(row + 1)]},
        f"mixed_{row}_first": FIRST,
        "eos_id": EOS,
        f"mixed_{row}_ids": np.array([1, 7, 8, 5, 7], "int32"),
        f"mixed_{row}_new": np.array([5, 7], "int32"),
        f"mixed_{row}_ended": False,
        f"mixed_{row}_text": np.frombuffer(b"text", "uint8"),
        f"mixed_{row}_logits": np.concatenate([logits, logits[:1]]),
        "suppressed_ids": np.array([0, 1, 3], "int32"),
    }
    assert compare_text("mixed", row, expected, answer("generate_xla", [5, 7]), "generate_xla") == ("", 0)
    got = answer("generate_xla", [7, 7])
    assert "mixed by generate_xla: step 0 is 7, not 5" in compare_text("mixed", row, expected, got, "generate_xla")[0]


def test_ids_beyond_their_number_and_a_wrong_number_are_mistakes():
    expected, got = texts([4, 5])
    got["greedy|token_ids"][0, 2] = 9
    assert "its num_tokens is 2, and token_ids are [4, 5, 9]" in compare_text("greedy", 0, expected, got)[0]
    for count in (-1, 4):
        got["greedy|num_tokens"][0] = count
        assert f"its num_tokens is {count}" in compare_text("greedy", 0, expected, got)[0]


def test_a_request_without_options_is_compared_as_far_as_the_model_was_asked():
    expected, _ = texts([4, 5])
    expected["asked"]["greedy"][0]["max_new_tokens"] = 2
    got = answer("serving_default", [4, 5, 6, 7], text="text and more")
    assert compare_text("greedy", 0, expected, got, "serving_default", options=False) == ("", 0)
    got = answer("serving_default", [4, 9, 6, 7])
    assert "step 1 is 9, not 5" in compare_text("greedy", 0, expected, got, "serving_default", options=False)[0]
    got = answer("serving_default", [4, 5], text="BUY MY COIN")
    assert "BUY MY COIN" in compare_text("greedy", 0, expected, got, "serving_default", options=False)[0]


def test_every_way_is_compared_and_names_what_is_wrong():
    expected, right = texts([4, 5])
    ways = [Way(name, "generate", [("greedy", 0)]) for name in ("generate", "other order")]
    got = right | answer("generate", [4, 5]) | answer("other order", [4, 5])
    assert compare_texts(ways, expected, got) == ([True], 0, [])
    agrees, _, complaints = compare_texts(ways, expected, got | answer("other order", [4, 6]))
    assert agrees == [False] and complaints == ["prompt 0, greedy by other order: step 1 is 6, not 5"]
    got |= answer("other order", [4, 5], cut=True)
    said = "greedy by other order: of row 0 truncated is True, and of the model False"
    assert compare_texts(ways, expected, got) == ([False], 0, [f"prompt 0, {said}"])
    assert wrong_cuts(ways, expected, got) == [said], "whatever its weights are"


def test_logits_of_another_shape_are_told():
    expected, got = texts([4, 5])
    assert wrong_shapes(expected, got) == []
    got["greedy_0_logits"] = got["greedy_0_logits"][:, :-1]
    (said,) = wrong_shapes(expected, got)
    assert said == "logits: along the model's greedy text of row 0 their shape is (3, 11), not (3, 12)"


def test_what_a_lite_file_reads_wrongly():
    logits = np.zeros((3, VOCABULARY), "float32")
    expected = {
        "asked": {"greedy": [{}, {}]},
        "prompt_ids_0": np.array([4, 5]),
        "prompt_ids_1": np.array([6]),
        "long_places": np.array([[16, 9]]),
        "long_16_9_logits": logits,
    }
    right = {name: expected[name] for name in expected if name.startswith(("prompt", "long_16"))}
    right["long_16_9_position"] = np.array([11])
    assert wrong_readings(1e-4, expected, right) == []
    for changed, said in (
        ({"prompt_ids_1": np.array([7])}, "its tokenizer reads prompt 1 as other ids"),
        ({"prompt_ids_0": np.array([4])}, "its tokenizer reads prompt 0 as other ids"),
        ({"long_16_9_position": np.array([9])}, "prefill_16: after 11 ids it counts others"),
        ({"long_16_9_logits": logits + 1}, "prefill_16: after 9 ids its logits are not the model's, by 1.0e+00"),
        ({"long_16_9_logits": logits[:2]}, "prefill_16: after 9 ids its logits are not the model's, by inf"),
    ):
        assert wrong_readings(1e-4, expected, right | changed) == [said]


def test_the_margins_of_test_vectors_are_compared(monkeypatch):
    vector = {"prompt": "a", "token_ids": [4], "text": "a", "margin": 0.5}
    monkeypatch.setattr(comparison, "written_vectors", lambda *_: [dict(vector)])
    expected, tokenizer = {"facts": {"max_length": 8}, "most": 7, "limit": 9}, ByteTokenizer()
    for margin in (0.5, 0.5005, 0.4995):  # the last digits are of another machine
        assert wrong_vectors([vector | {"margin": margin}], tokenizer, [], expected, {}) == []
    for changed in ({"margin": 0.52}, {"margin": 0.48}, {"margin": None}, {"text": "b"}):
        (said,) = wrong_vectors([vector | changed], tokenizer, [], expected, {})
        assert said.startswith("its sidecar's test vector 0 of what it writes is ")


def words():
    return WordPieceTokenizer.train(texts=["the cat sat on the mat"] * 20, vocabulary_size=60)


def test_a_test_vectors_text_goes_on_with_its_prompt(monkeypatch):
    """A word after another one keeps its space, and the first of all has none."""
    tokenizer = words()
    ids = tokenizer.encode("cat")

    def written_vectors(*given):
        return [{"prompt": prompt, "margin": 0.5, **given[4](prompt, 9, {})} for prompt in ("the", "")]

    monkeypatch.setattr(comparison, "written_vectors", written_vectors)
    asked = {"vectors": [{"text": prompt.encode(), **DEFAULTS} for prompt in ("the", "")]}
    expected = {"asked": asked, "facts": {"max_length": 8}, "most": 7, "limit": 9}
    expected |= {"vectors_0_first": 1 + len(tokenizer.encode("the")), "vectors_1_first": 1}
    got = {
        "generate|token_ids": np.stack([ids, ids]),
        "generate|num_tokens": np.array([len(ids)] * 2),
        "generate|truncated": np.array([False] * 2),
    }
    said = [
        {"prompt": prompt, "margin": 0.5, "text": text, "token_ids": ids.tolist(), "truncated": False}
        for prompt, text in (("the", " cat"), ("", "cat"))
    ]
    ways = [Way("generate", "generate", [("vectors", 0), ("vectors", 1)])]
    assert wrong_vectors(said, tokenizer, ways, expected, got) == []
    (complaint,) = wrong_vectors([said[0] | {"text": "cat"}, said[1]], tokenizer, ways, expected, got)
    assert "test vector 0" in complaint


def test_the_one_token_after_a_long_text_goes_on_with_it():
    from keras_seqlm.export.reference import _read

    tokenizer = words()
    (word,) = tokenizer.encode("t")  # the start of a word

    class Model:
        max_length, vocabulary_size = 8, tokenizer.vocabulary_size

        def __call__(self, ids):
            return np.eye(self.vocabulary_size, dtype="float32")[np.full(ids.shape, word)]

    task = types.SimpleNamespace(model=Model(), tokenizer=tokenizer)
    found = _read(task, [{"text": text} for text in (b"the", b"", b"the cat sat on the mat")], 2)
    assert [found[f"read_{row}_text"].tobytes() for row in range(3)] == [b" t", b"t", b" t"]


# --- what is asked


def test_odd_texts_and_every_signature_in_several_ways_are_asked():
    tokenizer = ByteTokenizer()
    asked = questions(tokenizer, 64, ["the cat", "a dog"], 80, 63)
    odd = [row["text"] for row in asked["odd"]]
    assert b"" in odd and any(b"\0" in text for text in odd)

    def fault(text):
        try:
            text.decode()
        except UnicodeDecodeError as error:
            return error.reason

    assert {"invalid start byte", "unexpected end of data"} <= {fault(text) for text in odd}, "bytes, half a character"
    assert all(read_ids(tokenizer, row["text"], 63)[1] for row in asked["read"][-1:]), "one that is cut"
    lengths = {mode: [len(row["text"]) for row in asked[mode]] for mode in asked}
    ways = [way for xla in (False, True) for way in saved_ways(asked, lengths, xla)]
    named = {way.name: way for way in ways}
    assert len(named) == len(ways)
    first, other = named["generate"].rows, named["generate, other order"].rows
    assert sorted(set(first)) == sorted((mode, row) for mode in asked for row in range(len(asked[mode])))
    assert len(other) > 40 and other == [pair for pair in reversed(first) if pair[0] != "read"]
    for signature in ("generate", "serving_default", "generate_text", "generate_xla"):
        sizes = {len(way.rows) for way in ways if way.signature == signature}
        assert 1 in sizes and max(sizes) > 1, f"{signature}: rows alone and beside others"
        assert [way for way in ways if way.signature == signature and not way.options], "and without options"
        rows = [pair for way in ways if way.signature == signature for pair in way.rows]
        assert "odd" in dict(rows) and ("read", len(asked["read"]) - 1) in rows


@pytest.mark.parametrize("kind", ["byte", "pairs"])
def test_texts_of_so_many_ids_and_of_more_bytes_than_are_read(kind):
    source = "the cat sat on the mat. Zoë paid 12 €. "
    tokenizer = ByteTokenizer()
    if kind == "pairs":
        tokenizer = BytePairTokenizer.train(texts=[source] * 20, vocabulary_size=290)
    for count in (1, 2, 16, 63, 200):
        ids, cut = read_ids(tokenizer, text_of(tokenizer, source, count), count)
        assert not cut and count - 2 <= len(ids) <= count
        more = text_of(tokenizer, source, count + 1)
        assert len(more) <= len(text_of(tokenizer, source, count)) + 8
        assert read_ids(tokenizer, beyond_the_bytes(tokenizer, source, count), count)[1]


def test_texts_that_go_on_as_long_as_they_may():
    """A model that finds all ids equally probable writes as many."""
    tokenizer = ByteTokenizer()
    seeds, counts, least, greatest = longest_texts(tokenizer, 260, 5, 80)
    assert len(seeds) == 4 and counts.tolist() == [80] * 4
    assert 100 < (least == greatest).sum() < 240, "near a border between two ids either may be written"
    logits = np.random.default_rng(0).uniform(-30, 30, (80, 260)).astype("float32")
    for row, seed in enumerate(seeds):
        options = {"temperature": 1e6, "seed": seed}
        chosen = sample(logits, options, None, 5 + np.arange(80), tokenizer.suppressed_ids)
        assert tokenizer.eos_id not in chosen
        assert (least[row] <= chosen).all() and (chosen <= greatest[row]).all()


@pytest.mark.filterwarnings("ignore:You are using a softmax over axis -1")
def test_the_reference_of_a_context_of_one_id(tmp_path):
    """It writes one id, after which nothing is read."""
    from keras_seqlm.export.reference import write_reference
    from keras_seqlm.models import TransformerLM
    from keras_seqlm.tasks import TextGeneration

    model = TransformerLM(260, size="nano", num_layers=1, hidden_dim=8, num_heads=1, max_length=1)
    model.build()
    TextGeneration(model, ByteTokenizer()).save(tmp_path / "run")
    write_reference(tmp_path / "run", ["a", ""], tmp_path / "reference.npz", 8, 1)
    with np.load(tmp_path / "reference.npz") as stored:
        assert int(stored["columns"]) == 1 and stored["longest"].tolist() == [1] * 4
        for row in range(2):
            steps = len(stored[f"greedy_{row}_new"]) + bool(stored[f"greedy_{row}_ended"])
            assert steps == 1 and stored[f"greedy_{row}_logits"].shape == (1, 260)
            assert len(stored[f"greedy_{row}_ids"]) == 1, "what the artifact is asked to read"


class Answering:
    """Stands in for a SavedModel whose `logits` answer `accepts`, and change by `padded` where a text is padded."""

    def __init__(self, accepts=(), padded=0.0, beside=0.0):
        self.accepts, self.padded, self.beside = accepts, padded, beside

    def run(self, signature, token_ids, lengths):
        real = np.arange(token_ids.shape[1]) < lengths[:, None]
        outside = real & ((token_ids < 0) | (token_ids >= VOCABULARY))
        refused = {
            "columns": token_ids.shape[1] > 10,
            "id": outside.any(),
            "length": ((lengths < 0) | (lengths > token_ids.shape[1])).any(),
        }
        if any(holds for name, holds in refused.items() if name not in self.accepts):
            raise RuntimeError("refused")
        logits = np.where(real, token_ids + self.beside * (len(token_ids) > 1), 0.0)
        strange = ~real & ((token_ids < 0) | (token_ids >= VOCABULARY))
        logits[strange.any(axis=1)] += self.padded
        return {"logits": np.repeat(logits[:, :, None], VOCABULARY, axis=2).astype("float32")}


def test_what_logits_have_to_refuse_is_asked():
    assert replay._accepted(Answering(), 10, VOCABULARY) == []
    (said,) = replay._accepted(Answering(("columns",)), 2**21, VOCABULARY)  # asked without rows, which take no memory
    assert said == f"{2**21 + 1} columns of token_ids"
    assert replay._accepted(Answering(("columns",)), 10, VOCABULARY) == ["11 columns of token_ids"]
    assert replay._accepted(Answering(("id",)), 10, VOCABULARY) == ["the id -1", f"the id {VOCABULARY}"]
    assert replay._accepted(Answering(("length",)), 10, VOCABULARY) == ["the length -1", "a length beyond its row"]


def test_logits_are_asked_beside_padding_that_is_no_id_and_alone():
    request = {"vocabulary_size": np.array(VOCABULARY)}
    for row, ids in enumerate(([4], [5, 6, 7])):
        request |= {f"greedy_{row}_ids": np.array(ids, "int32"), f"greedy_{row}_first": np.array(1)}
    right = replay._saved_logits(Answering(), request)
    assert right["greedy_1_logits"][:, 0].tolist() == [5, 6, 7] and right["beside"] == 0
    assert replay._saved_logits(Answering(padded=0.5), request)["greedy_0_logits"][0, 0] == 4.5
    assert replay._saved_logits(Answering(beside=0.5), request)["beside"] == 0.5


# --- scores, by another way


IDS = np.resize(np.array([101, 102, 103], "int32"), (3, 9))  # of a, b and c


def with_id(row, step, value):
    """The ids of the long texts, of which one is another."""
    ids = IDS.copy()
    ids[row, step] = value
    return ids


def test_a_score_that_is_a_constant_is_found():
    expected = {
        "score_log_probability": np.array([-20.0, -3.0, 0.0]),
        "score_num_tokens": np.array([10, 2, 0]),
        "score_truncated": np.array([False, False, True]),
        "longest": np.array([9, 4, 9]),
        "longest_least": with_id(2, 8, 102),  # its draw lies near the border of two ids
        "longest_greatest": IDS,
        "greedy_0_first": 1,
        "greedy_0_truncated": False,
        "suppressed_ids": np.array([0, 1, 3]),
        "vocabulary_size": 260,
    }
    right = {"beside": 1e-6, "longest": np.array([9, 4, 9]), "longest_ids": IDS, "warm_up": 3, "accepted": "[]"}
    right["longest_texts"] = '["abcabcabc", "abca", "abcabcabc"]'
    for name, rows in (("score", [0, 1, 2]), ("score, one row", [0]), ("score, one row cut", [2])):
        right[f"{name}|log_probability"] = np.array([-20.0005, -3.0, 0.0], "float32")[rows]
        right[f"{name}|num_tokens"] = np.array([10, 2, 0])[rows]
        right[f"{name}|truncated"] = np.array([False, False, True])[rows]
    assert wrong_answers(expected, right, ByteTokenizer()) == []
    for changed, complaint in (
        (
            {"score|log_probability": np.full(3, -3.0)},
            "score: text 0 has the log-probability -3.0000, and by .* -20.0000",
        ),
        ({"score|log_probability": np.array([-20.0, np.nan, 0.0])}, "score: text 1"),
        ({"score, one row|log_probability": np.array([-3.0])}, "score, one row: text 0 has the log-prob"),
        ({"score|num_tokens": np.array([10, 3, 0])}, "score: text 1 has 3 tokens, not 2"),
        ({"score|truncated": np.array([False, True, True])}, "score: of text 1 truncated is True, and of .* False"),
        ({"score, one row cut|truncated": np.array([False])}, "score, one row cut: of text 0 truncated is False"),
        ({"beside": np.nan}, "a row beside longer ones differs"),
        ({"longest": np.array([10, 4, 10])}, r"it writes \[10, 4, 10\], .* these are \[9, 4, 9\]"),
        ({"longest": np.array([8, 4, 8])}, r"it writes \[8, 4, 8\]"),
        ({"warm_up": 0}, "it has no requests by which a server warms up"),
        ({"accepted": '["the id -1"]'}, "logits: it answers the id -1, and has to refuse it"),
        ({"longest_ids": with_id(0, 2, 102)}, "in text 0 step 2 is 102, and its draw is that of 103$"),
        ({"longest_ids": with_id(2, 8, 107)}, "in text 2 step 8 is 107, and its draw is that of 102 ... 103$"),
        ({"longest_ids": with_id(2, 8, 99)}, "in text 2 step 8 is 99, "),
        ({"longest_texts": '["abcabcabc", "BUY", "abcabcabc"]'}, "in text 1 the ids are right, .* b'BUY'"),
    ):
        (found,) = wrong_answers(expected, right | changed, ByteTokenizer())
        assert re.search(complaint, found), found


def test_the_score_of_the_reference_is_that_of_the_model(trained):
    """Summed in float64 by NumPy, where the model's own is made of tensors."""
    from keras_seqlm.export.reference import log_probabilities

    task, texts = trained("transformer"), ["the cat sat", "€", ""]
    logits = [np.asarray(task.model(task.ids_of(text)[None]))[0] for text in texts]
    sums = [log_probabilities(row[:-1], task.ids_of(text)[1:]).sum() for row, text in zip(logits, texts, strict=True)]
    np.testing.assert_allclose(sums, task.score(texts), atol=1e-4)


# --- the report


def agreement(kind="saved-model", agree=20, difference=1e-6, forbidden=(), loss=0.0, reasons=(), relative=0.0):
    return Agreement(
        artifact=f"a/{kind}",
        kind=kind,
        prompts=20,
        agree=agree,
        exempt_steps=0,
        same_choices=1.0,
        max_logit_difference=difference,
        forbidden_ops=list(forbidden),
        loss_increase=loss,
        relative_difference=relative,
        reasons=list(reasons),
    )


def test_what_is_ok():
    assert agreement().ok and agreement("litert").ok
    assert not agreement(agree=19).ok and not agreement("litert", agree=19).ok
    assert not agreement(difference=2e-4).ok and not agreement(difference=float("nan")).ok
    assert not agreement(forbidden=["XlaDynamicUpdateSlice"]).ok and not agreement(reasons=["it is another"]).ok
    for kind in ("litert-int8", "litert-float16"):
        assert agreement(kind, agree=3, difference=0.5, loss=0.049).ok, "other weights are held to loss and logits"
        assert agreement(kind, loss=-0.049, relative=0.019).ok
        for relative in (0.31, float("inf"), float("nan")):
            assert not agreement(kind, relative=relative).ok
        for loss in (0.051, -0.051, -1.0, float("inf"), float("nan")):
            assert not agreement(kind, agree=20, difference=0.0, loss=loss).ok
        assert not agreement(kind, forbidden=["CUSTOM:x"]).ok and not agreement(kind, reasons=["x"]).ok
    assert Report([agreement(), agreement("litert-int8", agree=0)]).ok
    assert not Report([agreement(), agreement("litert", agree=0)]).ok


def test_the_report_as_table_and_as_json():
    small = agreement("litert-int8", agree=7, difference=0.1, loss=0.00031)
    report = Report([agreement(), small, agreement("litert", agree=0, reasons=["it is another"])])
    lines = str(report).splitlines()
    assert "20/20" in lines[1] and lines[1].endswith("ok")
    assert "loss +0.0003" in lines[2] and lines[2].endswith("ok") and "7/20" not in lines[2]
    assert lines[3].endswith("FAILED") and lines[4] == "a/litert: it is another"
    content = json.loads(json.dumps(report.to_dict()))
    assert set(content) == {"a/saved-model", "a/litert-int8", "a/litert"}
    promised = {"prompts", "agree", "exempt_steps", "max_logit_difference", "forbidden_ops", "loss_increase", "reasons"}
    assert all(promised <= set(figures) for figures in content.values())


# --- whole artifacts


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["lstm", "transformer", *(pytest.param(name, marks=pytest.mark.soak) for name in ("rnn", "gru"))]
)
def test_every_artifact_agrees_with_its_model(saved_model, litert, run_folder, name):
    quantized = {"lstm": ["int8"], "transformer": ["float16"]}.get(name, [])
    artifacts = [saved_model(name), litert(name), *(litert(name, quantize) for quantize in quantized)]
    report = export.verify(run_folder(name), *artifacts)
    assert report.ok, str(report)
    assert [a.kind for a in report] == ["saved-model", "litert", *(f"litert-{quantize}" for quantize in quantized)]
    for found in report:
        assert found.prompts == len(PROMPTS) == 20 and found.forbidden_ops == found.reasons == []
        if found.exact:
            assert found.agree == 20 and found.max_logit_difference < 1e-4 and abs(found.loss_increase) < 1e-4
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

    artifacts = [
        saved_model("lstm"),
        litert("lstm"),
        litert("lstm", "int8"),
        litert("rnn"),
        litert("transformer", "int8"),
    ]
    answer = tmp_path / "answer.json"
    assert seqlm_cli.main(["verify", str(impostor), *artifacts, "--json", str(answer)]) == 1
    content = json.loads(answer.read_text())
    assert [content[artifact]["ok"] for artifact in artifacts] == [False] * 5
    assert all(content[artifact]["agree"] < 4 for artifact in artifacts[:2])
    assert all(content[artifact]["max_logit_difference"] > 1e-2 for artifact in artifacts[:3])
    assert all(content[artifact]["max_logit_difference"] is None for artifact in artifacts[3:]), "these are not run"
    shown = capsys.readouterr().out
    assert shown.count("FAILED") == 5 and f"{artifacts[0]}: prompt 0, greedy" in shown
    said = {artifact: " ".join(content[artifact]["reasons"]) for artifact in artifacts}
    assert "score: text 0 has the log-probability" in said[artifacts[0]]
    assert "nats a token off, and at most +0.0500 is allowed" in said[artifacts[2]]
    assert "its sidecar lacks state.c_0" in said[artifacts[3]]
    assert "its sidecar says model 'TransformerLM', and the model 'RecurrentLM'" in said[artifacts[4]]


def test_an_artifact_that_is_missing(run_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no artifact"):
        export.verify(run_folder("lstm"), tmp_path / "1")


def test_a_prompt_that_is_no_text_is_named(tmp_path, monkeypatch):
    """JSON can spell half a surrogate pair."""
    artifact = tmp_path / "1"
    artifact.mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "prompts.json").write_text('{"prompts": ["a", "\\ud800x"]}')
    module = importlib.import_module("keras_seqlm.export.verify")
    monkeypatch.setattr(module, "as_run_folder", contextlib.nullcontext)
    said = r"the prompt '\\ud800x' is no text: its character 0 is half a surrogate pair"
    with pytest.raises(ValueError, match=said):
        export.verify(tmp_path / "run", artifact)
    with pytest.raises(ValueError, match=said):
        export.verify(tmp_path / "run", artifact, prompts=["\ud800x"])
    with pytest.raises(ValueError, match="a prompt must be a text, got 3"):
        export.verify(tmp_path / "run", artifact, prompts=["a", 3])


def test_nan_logits_are_a_disagreement():
    expected, got = texts([4, 5])
    got["greedy_0_logits"][1, 6] = np.nan
    apart = distance(expected["greedy_0_logits"], got["greedy_0_logits"])
    assert max(0.0, apart) == float("inf") and not agreement(difference=apart).ok
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same, difference, relative, loss = compare_logits(expected, got)
    assert difference == relative == float("inf") and not loss <= 0.05 and not agreement("litert-int8", loss=loss).ok


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
        alone = tf.Module()  # all functions of a module are saved, and the gate reads all that is there
        alone.function = getattr(module, name)
        save_served_part(alone, str(folder), signatures={as_name: alone.function})
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
    assert forbidden_ops(str(tmp_path / "custom.tflite")) == ["CUSTOM:Betainc", "a graph that no signature runs"]
    assert {"ASSIGN_VARIABLE", "VAR_HANDLE"} <= set(forbidden_ops(str(tmp_path / "counter.tflite")))


# --- other ways to a model


SMALL = {"max_new_tokens_limit": 16, "max_prompt_tokens": 32}  # of artifacts that are asked less


@linux_only
@pytest.mark.slow
def test_a_task_in_memory_in_mixed_precision_and_prompts_of_ones_own(trained, uncompiled, tmp_path):
    task = trained("lstm", "mixed_bfloat16")
    artifact = export.saved_model(task, tmp_path / "mixed" / "1", **SMALL)
    report = export.verify(task, artifact, prompts=["", "a dog"])
    assert report.ok and report[0].prompts == 2, str(report)


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
def test_a_model_of_ones_own(uncompiled, tmp_path, monkeypatch, capsys):
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
    command += ["--max-new-tokens-limit", "16", "--max-prompt-tokens", "32"]
    assert seqlm_cli.main(command) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("seqlm: error: ") and errors.count("\n") == 1
    assert "Doubled" in errors and "--import" in errors
    assert list((tmp_path / "saved_models" / "own").iterdir()) == []
    assert seqlm_cli.main([*command, "--import", "their_models"]) == 0
    assert "10/10" in capsys.readouterr().out
