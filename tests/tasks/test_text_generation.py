"""Text in, text out: `write`, `generate` and `score` against the model's own ids and logits."""

import importlib
import json

import numpy as np
import pytest
from cases import on_all
from helpers import array, randomize
from sentences import CONTEXT

from keras_seqlm import tokenizers
from keras_seqlm.export.signatures import serving_module
from keras_seqlm.generation import stream
from keras_seqlm.models import RecurrentLM, TransformerLM
from keras_seqlm.tasks import TextGeneration
from keras_seqlm.tasks.text_generation import _sure
from keras_seqlm.tokenizers import CHAT_TEMPLATES, BytePairTokenizer, ByteTokenizer
from seqlm_runtime import LiteRTModel
from seqlm_runtime.tokenizers.tokenizer import CONFIG_NAME, bytes_of

pytestmark = pytest.mark.neutral

SAMPLED = {"temperature": 0.9, "top_k": 30, "seed": 5}


@pytest.fixture(scope="module", params=["recurrent", "transformer"])
def writer(request):
    """A task whose model has random weights, small enough for every backend."""
    if request.param == "recurrent":
        model = RecurrentLM(260, cell="lstm", size="nano", hidden_dim=16)
    else:
        model = TransformerLM(260, size="nano", num_layers=1, hidden_dim=16, num_heads=2, max_length=32)
    model.build()
    randomize(model)
    return TextGeneration(model, ByteTokenizer())


@pytest.mark.backends
def test_text_is_what_the_model_writes_after_bos_and_the_prompt(writer):
    (text,) = writer.write("It was", max_new_tokens=10, **SAMPLED)
    ids = [1, *(byte + 4 for byte in b"It was")]
    ids_of_tokenizer = {"eos_id": 2, "suppressed_ids": (0, 1, 3)}
    new = writer.model.generate(ids, max_new_tokens=10, **ids_of_tokenizer, **SAMPLED)
    assert text.token_ids == new.tolist()
    assert text.text == bytes(i - 4 for i in new).decode("utf-8", errors="replace")
    assert (text.prompt, text.truncated) == ("It was", False)
    assert text.stop_reason == ("length" if len(new) == 10 else "eos")


@pytest.mark.backends
def test_a_row_alone_is_the_row_in_a_batch_whatever_the_options_of_the_others(writer):
    prompts = ["", "It was", "a", "é中"]
    options = {
        "max_new_tokens": [9, 0, 4, 12],
        "temperature": [0.0, 0.0, 1.1, 0.7],
        "top_k": [0, 5, 0, 40],
        "top_p": [1.0, 0.5, 0.9, 1.0],
        "min_p": [0.0, 0.0, 0.05, 0.0],
        "repetition_penalty": [1.0, 1.2, 1.0, 1.3],
        "seed": [0, 1, 2, 2**31 - 1],
    }
    together = writer.write(prompts, **options)
    for row, prompt in enumerate(prompts):
        (alone,) = writer.write(prompt, **{name: values[row] for name, values in options.items()})
        assert together[row] == alone
    assert together[1].text == "" and together[1].stop_reason == "length"


def test_a_string_gives_a_string_and_a_list_a_list(writer):
    assert writer.generate("a", 5) == writer.generate(["a"], 5)[0] == writer.write("a", 5)[0].text
    assert writer.generate([], 5) == [] and writer.write([], 5) == []


def test_a_seed_decides_the_text(writer):
    first, second, other = (writer.generate("a", 24, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert first == second != other


def test_a_stop_string_ends_the_text_before_it(writer):
    whole = writer.generate("a", 24, **SAMPLED)
    stop = whole[5:8]
    (text,) = writer.write("a", 24, stop=["never said", "", stop], **SAMPLED)
    assert text.text == whole[: whole.index(stop)] and text.stop_reason == "stop"
    assert writer.tokenizer.decode(text.token_ids) == text.text  # a byte a token: the ids end where the text does
    assert writer.write("a", 24, stop="never said", **SAMPLED)[0].text == whole
    assert writer.write("a", 24, stop=None, **SAMPLED)[0].text == whole


def special_writer(**options):
    tokenizer = ByteTokenizer().with_added_tokens(["<|im_start|>", "<|im_end|>"], **options)
    return TextGeneration(RecurrentLM(262, cell="gru", size="nano", hidden_dim=8), tokenizer)


def test_a_stop_string_that_can_never_be_written_is_refused():
    stop = CHAT_TEMPLATES["chatml"].end_of_reply
    special = special_writer(special=True)
    for run in (special.write, special.generate, lambda *rest, **more: list(special.stream(*rest, **more))):
        with pytest.raises(ValueError, match=r"'<\|im_end\|>' is a special token.*with_added_tokens\(\['<\|im_end"):
            run("It", 3, stop=["x", stop])
    assert special.write("It", 3, stop="<|im_")[0].stop_reason in ("length", "eos")


def test_a_reply_ends_at_the_token_of_its_template():
    writer, stop = special_writer(), CHAT_TEMPLATES["chatml"].end_of_reply
    writer.model.build()
    for weight in writer.model.weights:
        weight.assign(np.zeros(weight.shape))
    end = writer.tokenizer.encode("<|im_end|>")[0]
    for weight in writer.model.weights:
        if tuple(weight.shape) == (262,):  # the bias of the logits: the token, or the line feed behind it
            weight.assign(np.where(np.arange(262) == end, 1.0, 0.0))
    (text,) = writer.write("It", 8, stop="<|im_end|>")
    assert (text.text, text.stop_reason, text.token_ids) == ("", "stop", [])
    assert stop.startswith("<|im_end|>") and end not in writer.tokenizer.suppressed_ids


def test_the_end_of_a_text_may_stand_in_stop():
    writer = special_writer(special=True)
    writer.tokenizer.eos_id = writer.tokenizer.encode("<|im_end|>")[0].item()
    assert writer.write("It", 3, stop="<|im_end|>\n")[0].stop_reason in ("length", "eos")


@pytest.mark.parametrize("stop", [b"e", 3, [b"e"], ["a", 3], 0])
def test_a_stop_that_is_no_text_is_refused_before_any_work(writer, monkeypatch, stop):
    monkeypatch.setattr(writer, "_read", None)
    with pytest.raises(ValueError, match="stop must be a str, or a list of them"):
        writer.write("It", 3, stop=stop)
    with pytest.raises(ValueError, match="stop must be a str, or a list of them"):
        next(writer.stream("It", 3, stop=stop))


def test_bytes_are_one_text(writer):
    assert writer.generate(b"It", 5) == writer.generate("It", 5) and writer.score(b"It") == writer.score("It")
    assert writer.write([b"It", "It"], 5) == writer.write(["It", b"It"], 5)
    assert writer.write(b"It", 1)[0].prompt == "It"
    for call in (writer.generate, writer.write, writer.score):
        for wrong in (3, None, ["a", 3]):
            with pytest.raises(ValueError, match="Expected a str, or a list of them, got"):
                call(wrong)


@pytest.fixture
def without_bos():
    tokenizer = BytePairTokenizer.train(texts=["low lower lowest"], vocabulary_size=262)
    special = {name: i for name, i in tokenizer.special_ids.items() if name != "bos"}
    config = bytes_of({**tokenizer.config, "special_ids": special})
    tokenizer = BytePairTokenizer({**tokenizer.files, CONFIG_NAME: config})
    model = RecurrentLM(tokenizer.vocabulary_size, cell="gru", size="nano", hidden_dim=8)
    return TextGeneration(model, tokenizer)


def test_without_a_bos_an_empty_prompt_and_the_first_token_are_named(without_bos):
    with pytest.raises(ValueError, match="prompt 1 is empty, and the tokenizer has no bos"):
        without_bos.write(["low", ""])
    with pytest.raises(ValueError, match="prompt 0 is empty, and the tokenizer has no bos"):
        without_bos.generate("")
    with pytest.raises(ValueError, match="the prompt is empty, and the tokenizer has no bos"):
        next(without_bos.stream(""))
    with pytest.warns(UserWarning, match="no bos.*not counted"):
        scores = without_bos.score(["low", "", "lower road"])
    assert scores[:2].tolist() == [0.0, 0.0] and scores[2] < 0


def test_with_a_bos_no_score_warns(writer, recwarn):
    writer.score("It")
    assert not [warning for warning in recwarn if "bos" in str(warning.message)]


@pytest.fixture
def token_by_token(monkeypatch):
    """No call is short, so that every piece is of one token."""
    monkeypatch.setattr(importlib.import_module("keras_seqlm.generation.generate"), "SHORT", 0.0)


def streamed(writer, *arguments, **options):
    """The pieces of a stream, and the `Text` at its end."""
    pieces, stream = [], writer.stream(*arguments, **options)
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as ended:
            return pieces, ended.value


@pytest.mark.parametrize(
    "options", on_all([{}, SAMPLED, {"temperature": 1.2, "seed": 3, "repetition_penalty": 1.2}], 1)
)
def test_the_pieces_of_a_stream_are_the_text(writer, token_by_token, options):
    (wanted,) = writer.write("It", 20, **options)
    pieces, result = streamed(writer, "It", 20, **options)
    assert result == wanted and "".join(pieces) == wanted.text
    assert all(pieces) and (len(pieces) > 1 or not options)  # many of the bytes are no UTF-8
    pieces, result = streamed(writer, "It", 0)
    assert pieces == [] and result.stop_reason == "length"


@pytest.mark.backends
def test_a_stream_ends_before_a_stop_string_and_never_shows_its_beginning(writer, token_by_token):
    whole = writer.generate("a", 24, **SAMPLED)
    for stop in (whole[5:9], [whole[6:8], "never said"], [whole[4] + "no", whole[7:9]]):
        (wanted,) = writer.write("a", 24, stop=stop, **SAMPLED)
        pieces, result = streamed(writer, "a", 24, stop=stop, **SAMPLED)
        assert result == wanted and wanted.stop_reason == "stop" and "".join(pieces) == wanted.text


def test_a_stream_that_slides_is_the_text_of_one_call(writer, token_by_token):
    (wanted,) = writer.write("a", 70, slide=True, **SAMPLED)
    pieces, result = streamed(writer, "a", 70, slide=True, **SAMPLED)
    assert result == wanted and "".join(pieces) == wanted.text


def test_pieces_grow_while_they_take_little_time(writer, monkeypatch):
    monkeypatch.setattr(importlib.import_module("keras_seqlm.generation.generate"), "SHORT", 1e9)
    lengths = [len(ids) for ids in stream(writer.model, [5, 6], 20, suppressed_ids=(2,))]
    assert lengths == [1, 3, 7, 15, 20]


@pytest.mark.parametrize(
    ("text", "stops", "sure"),
    [
        ("the cat", (), "the cat"),
        ("caf\ufffd", (), "caf"),
        ("the end", ("end",), "the "),
        ("the en", ("end", "zoo"), "the "),
        ("the ene", ("end",), "the en"),
        ("the ended", ("end",), "the "),
        ("aab", ("aaab", "abc"), "a"),
        ("\ufffd\ufffd", (), ""),
        ("e\ufffdn", (), "e\ufffdn"),
    ],
)
def test_what_is_sure_of_a_text(text, stops, sure):
    assert _sure(text, stops) == sure


KINDS = ["ByteTokenizer", "CharacterTokenizer", "BytePairTokenizer", "WordPieceTokenizer", "SentencePieceTokenizer"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sure_stays_whatever_follows(kind):
    text = "naïve café, 日本語 and 🙂 emoji; the cat sat on the mat. " * 8
    size = None if kind in KINDS[:2] else 300
    tokenizer = getattr(tokenizers, kind).train(texts=[text], vocabulary_size=size)
    random = np.random.default_rng(3)
    rows = [tokenizer.encode(text[:60]), *random.integers(0, tokenizer.vocabulary_size, (20, 24))]
    for ids in rows:
        whole = tokenizer.decode(ids)
        for count in range(len(ids) + 1):
            assert whole.startswith(_sure(tokenizer.decode(ids[:count]), ())), (ids, count)


@pytest.mark.tensorflow
def test_prompt_and_new_text_are_the_whole_text():
    """Of a tokenizer that writes the space between words when it decodes: in Python, in the served graph, on the phone."""
    tokenizer = tokenizers.WordPieceTokenizer.train(texts=["the cat sat on the mat, on a hat " * 8], vocabulary_size=60)
    model = RecurrentLM(tokenizer.vocabulary_size, cell="gru", size="nano", hidden_dim=8)
    model.build()
    randomize(model)
    task, prompts = TextGeneration(model, tokenizer), ["the cat", "", "sat on a"]
    options = {"temperature": [1.0] * 3, "seed": [3, 4, 8]}
    written = task.write(prompts, 9, **options)
    for prompt, found in zip(prompts, written, strict=True):
        ids = tokenizer.encode(prompt).tolist()
        assert prompt + found.text == tokenizer.decode(ids + found.token_ids)
    assert written[0].text.startswith(" ") and not written[1].text.startswith(" ")
    pieces, last = streamed(task, "the cat", 9, temperature=1.0, seed=3)
    assert "".join(pieces) == last.text == written[0].text
    _, signatures = serving_module(model, tokenizer, 16)
    columns = {name: np.array(values, "int32" if name == "seed" else "float32") for name, values in options.items()}
    served = signatures["generate"](text=prompts, max_new_tokens=[9], **columns)["generated_text"]
    assert [text.decode() for text in served.numpy()] == [found.text for found in written]
    phone = OnThePhone(model, tokenizer)
    assert [phone.generate(p, 9, temperature=1.0, seed=s)["text"] for p, s in zip(prompts, (3, 4, 8), strict=True)] == [
        found.text for found in written
    ]
    # A text of `stop` that begins with that space, where only one of the prompts has a text.
    stop = written[0].text[:2]
    first, second, _ = task.write(prompts, 9, stop=[stop], **options)
    assert (first.text, first.token_ids, first.stop_reason) == ("", [], "stop")
    assert second.text == written[1].text.split(stop)[0]


class OnThePhone(LiteRTModel):
    """The loop of the phone around a model that runs here."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.vocabulary_size = model, tokenizer, tokenizer.vocabulary_size
        self.max_prompt_tokens, self.max_length = 100, None
        self.sidecar = {"suppressed_ids": tokenizer.suppressed_ids, "eos_id": tokenizer.eos_id}

    def initial_state(self):
        return self.model.initial_state(1)

    def step(self, token_ids, state):
        logits, state = self.model(np.array([token_ids], "int32"), state=state)
        return array(logits)[0, -1], state


def test_a_text_ends_where_the_model_says_so(trained):
    (text,) = trained("rnn").write("the cat", max_new_tokens=60)
    assert text.stop_reason == "eos" and text.text.endswith(".") and 2 not in text.token_ids


def test_a_long_prompt_keeps_its_end_and_says_so(trained):
    transformer, prompt = trained("transformer"), "the cat sat on the mat. " * 10
    (text,) = transformer.write(prompt, max_new_tokens=20)
    assert text.truncated and text.prompt == prompt
    assert len(text.token_ids) <= 1 and text.stop_reason in ("length", "eos")
    kept = transformer.ids_of(prompt)[-(CONTEXT - 1) :]
    options = {"eos_id": 2, "suppressed_ids": (0, 1, 3)}
    assert text.token_ids == transformer.model.generate(kept, 20, **options).tolist()
    (fits,) = transformer.write("x" * (CONTEXT - 2), max_new_tokens=20)  # and bos
    assert not fits.truncated and len(fits.token_ids) <= 1
    assert transformer.write("x" * (CONTEXT - 1), max_new_tokens=20)[0].truncated
    assert not trained("rnn").write(prompt, max_new_tokens=5)[0].truncated


@pytest.mark.parametrize("name", ["rnn", "transformer"])
def test_a_prompt_of_any_size_costs_no_more_than_its_end(trained, monkeypatch, name):
    task, sizes = trained(name), []
    encode = type(task.tokenizer).encode
    monkeypatch.setattr(
        type(task.tokenizer), "encode", lambda self, text: sizes.append(len(text)) or encode(self, text)
    )
    prompt = "é" * 1_000_000 + " the cat sat on"
    (text,) = task.write(prompt, 8, max_prompt_tokens=20)
    assert text.truncated and text.prompt == prompt and max(sizes) < 200
    kept = task.ids_of(prompt[-60:])[-20:]
    options = {"eos_id": 2, "suppressed_ids": (0, 1, 3)}
    assert text.token_ids == task.model.generate(kept, 8, **options).tolist()


def test_a_huge_wish_ends_at_the_context(trained):
    (text,) = trained("transformer").write("zz", max_new_tokens=2**40, temperature=5.0, seed=3)
    assert text.stop_reason in ("length", "eos") and len(text.token_ids) <= CONTEXT - 1
    (whole,) = trained("transformer").write("a dog ran over the hill", max_new_tokens=1000)
    assert not whole.truncated and len(whole.token_ids) <= CONTEXT - 24


def test_any_text_may_be_a_prompt(writer):
    prompts = ["", " ", "\n", "\x00", "a\x00b", "\ufeffx", "\u202eabc", "👩\u200d👩\u200d👧", "秦川雄帝宅" * 20]
    for text in writer.write(prompts, 4, temperature=1.0):
        assert len(text.token_ids) <= 4
        json.dumps(text.__dict__).encode()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": float("nan")},
        {"temperature": -0.1},
        {"temperature": float("inf")},
        {"top_p": 0},
        {"top_p": 2},
        {"top_k": -1},
        {"min_p": 1.5},
        {"repetition_penalty": 0},
        {"seed": -1},
        {"max_new_tokens": -1},
        {"max_new_tokens": 1.5},
        {"max_new_tokens": [1, 2]},
        {"temperature": [0.0, 1.0]},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused_by_name(writer, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        writer.write("a", **options)


@pytest.mark.backends
def test_score_is_the_sum_of_the_log_probabilities_after_bos(writer):
    texts = ["It was", "", "é", "a dark night"]
    scores = writer.score(texts)
    for text, score in zip(texts, scores, strict=True):
        ids = np.array([1, *(byte + 4 for byte in text.encode())], "int32")
        logits = array(writer.model(ids[None]))[0].astype("float64")
        log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        assert score == pytest.approx(log_probabilities[np.arange(len(ids) - 1), ids[1:]].sum(), abs=1e-3)
    assert writer.score("It was") == pytest.approx(scores[0], abs=1e-4) and isinstance(writer.score("x"), float)
    assert scores[1] == 0.0 and writer.score([]).shape == (0,)


def test_a_text_beyond_the_context_is_not_scored_in_part(trained):
    assert trained("transformer").score("x" * CONTEXT) < 0
    with pytest.raises(ValueError, match=f"reads {CONTEXT} tokens at most"):
        trained("transformer").score("x" * (CONTEXT + 1))
    assert trained("rnn").score("x" * 300) < 0
