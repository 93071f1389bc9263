"""The Java of guides/android on the JVM: its tokenizers, sampler and loop say what Python's say, on real exports.

The loop is Java's and the network is the real LiteRT file: Java asks for each step, and the test runs it.
"""

import base64
import json
import pathlib
import random
import shutil
import subprocess

import numpy as np
import pytest
from helpers import randomize
from sentences import READ

from keras_seqlm import export, models, tasks
from keras_seqlm import tokenizers as kinds
from keras_seqlm.export.vectors import tokenizer_vectors
from keras_seqlm.tokenizers.unicode_tables import word_classes
from seqlm_runtime import LiteRTModel
from seqlm_runtime.sampler import sample

HERE = pathlib.Path(__file__).parent
GUIDE = HERE.parents[1] / "guides" / "android"
TEXT = "\n".join(
    [
        "It was the best of times, it was the worst of times; we'll say 12 of 345 things aren't it's.",
        "秦川雄帝宅，函谷壯皇居。綺殿千尋起，離宮百雉餘。",
        "Ça va à l'école, Zürich, Straße; Москва и весна, שלום עולם, مرحبا 한국어 가나다 😀👩\u200d👩\u200d👧 🇨🇳 ½ ² Ⅷ\u3000wide",
        "The low road, the lower road and the lowest road are lower than the low bridge.",
    ]
    * 6
)
FRAGMENTS = (
    *(
        "'s",
        "'t",
        "'re",
        "'ve",
        "'ll",
        "'",
        "''",
        "'l",
        "'r",
        "s",
        "re",
        " ",
        "  ",
        "   ",
        "\t",
        "\n",
        "\r\n",
        "\u00a0",
    ),
    *(
        "\u3000",
        "\u2028",
        "\x00",
        "1",
        "23",
        "½",
        "Ⅷ",
        ".",
        "...",
        "##",
        "[UNK]",
        "<unk>",
        "$",
        "中",
        "秦川雄帝宅",
        "，",
        "한국어",
    ),
    *(
        "é",
        "e\u0301",
        "\u0301",
        "ß",
        "İ",
        "Σ",
        "😀",
        "👩\u200d👩\u200d👧",
        "\u200d",
        "ﷺ",
        "ﬁ",
        "Ａ",
        "ｶﾞ",
        "\u2581",
        "\ufeff",
    ),
    *("\ufffd", "\U0010fffd", "the", " the", "lowest", " lower", "zzqq", "a" * 60, "Zürich", "Straße"),
)
OFF = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0}
SAMPLED = {**OFF, "temperature": 0.9, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2, "seed": 12}


class Java:
    """The driver in a JVM; `ask` sends a request, runs what the program asks for, and returns its answer."""

    def __init__(self, classes):
        command = ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-Dfile.encoding=US-ASCII", "-cp", str(classes)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "encoding": "utf-8"}
        self.program = subprocess.Popen([*command, "seqlm.Driver"], **pipes)
        self.network, self.runs = None, []

    def ask(self, do, **request):
        self._send({"do": do, **request})
        while True:
            line = self.program.stdout.readline()
            assert line, "the program has ended"
            answer = json.loads(line)
            if "run" not in answer:
                return answer
            self.runs.append(answer["run"])
            self._send({"outputs": self.network(answer["run"], answer["inputs"])})

    def load(self, path):
        """Loads the model of a .tflite file, which runs in LiteRT here."""
        path = pathlib.Path(path)
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path))
        runners = {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}

        def run(signature, inputs):
            runner = runners[signature]
            arrays = {}
            for name, info in runner.get_input_details().items():
                arrays[name] = np.frombuffer(bytes.fromhex(inputs.pop(name)), info["dtype"]).reshape(info["shape"])
            assert not inputs, inputs
            return {name: np.ascontiguousarray(value).tobytes().hex() for name, value in runner(**arrays).items()}

        self.network = run
        return self.ask("load", sidecar=str(sidecar_of(path)), tflite=str(path))

    def _send(self, content):
        self.program.stdin.write(json.dumps(content) + "\n")
        self.program.stdin.flush()


def sidecar_of(path):
    return pathlib.Path(path).with_suffix(".json")


@pytest.fixture(scope="module")
def java(tmp_path_factory):
    if shutil.which("javac") is None or shutil.which("java") is None:
        pytest.skip("guides/android is NOT tried: there is no javac here (apt-get install openjdk-17-jdk-headless)")
    classes = tmp_path_factory.mktemp("classes")
    sources = [*GUIDE.rglob("*.java"), *HERE.rglob("*.java")]
    assert len(sources) > 15
    # Release 8: what Android has of the language and of the library is more than that.
    command = ["javac", "--release", "8", "-encoding", "UTF-8", "-Xlint:all,-options", "-Werror", "-d", str(classes)]
    done = subprocess.run([*command, *map(str, sources)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    program = Java(classes)
    yield program
    program.program.stdin.close()
    program.program.wait(timeout=60)


@pytest.fixture(scope="module")
def trained_tokenizers(tmp_path_factory):
    """A tokenizer of each kind by name, and the folder that it is saved in."""
    made = {
        "byte": kinds.ByteTokenizer(),
        "character": kinds.CharacterTokenizer.train(texts=[TEXT]),
        "byte_pair": kinds.BytePairTokenizer.train(texts=[TEXT], vocabulary_size=500, max_word_bytes=20),
        "word_piece": kinds.WordPieceTokenizer.train(texts=[TEXT], vocabulary_size=400),
        "word_piece_cased": kinds.WordPieceTokenizer.train(texts=[TEXT], vocabulary_size=400, lowercase=False),
        "unigram": kinds.SentencePieceTokenizer.train(texts=[TEXT], vocabulary_size=500),
        "bpe": kinds.SentencePieceTokenizer.train(texts=[TEXT], vocabulary_size=500, algorithm="bpe"),
    }
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, tokenizer in made.items():
        tokenizer.save(folder / name)
    return {name: (tokenizer, folder / name) for name, tokenizer in made.items()}


def hard_texts(count):
    """Strings of fragments on which tokenizers disagree, some of them with bytes that are no UTF-8; the same each time."""
    choose = random.Random(3)
    texts = [b"", b"\xff", b"\xe2\x82", "a\u0301".encode() * 300, b" " * 300, "中".encode() * 1500, b"x" * 3000]
    for i in range(count):
        data = bytearray("".join(choose.choices(FRAGMENTS, k=choose.randint(1, 10))).encode())
        if i % 3 == 0:
            place = choose.randrange(len(data) + 1)
            data[place : place + choose.randint(0, 1)] = bytes([choose.choice([0x80, 0xBF, 0xC0, 0xE2, 0xED, 0xF4])])
        texts.append(bytes(data))
    return texts


def load(java, tokenizer, folder):
    config = next(iter(tokenizer.files))
    assert java.ask("tokenizer", folder=str(folder), config=config) == {"hash": tokenizer.hash}


def assert_same_ids(java, tokenizer, texts):
    got = java.ask("encode", base64=[base64.b64encode(text).decode() for text in texts])["ids"]
    for text, ids in zip(texts, got, strict=True):
        assert ids == tokenizer.encode(text).tolist(), text


NAMES = ("byte", "character", "byte_pair", "word_piece", "word_piece_cased", "unigram", "bpe")


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_reads_and_writes_as_in_python(java, trained_tokenizers, name):
    tokenizer, folder = trained_tokenizers[name]
    load(java, tokenizer, folder)
    vectors = tokenizer_vectors(tokenizer)
    assert java.ask("vectors", vectors=vectors) == {"wrong": []}
    vectors["encode"][3]["ids"][0] ^= 1  # a vector that is wrong is seen
    assert java.ask("vectors", vectors=vectors)["wrong"]
    assert_same_ids(java, tokenizer, hard_texts(1500))
    choose = np.random.default_rng(5)
    for _ in range(150):
        ids = choose.integers(0, tokenizer.vocabulary_size, choose.integers(1, 12)).tolist()
        assert java.ask("decode", ids=ids) == {"text": tokenizer.decode(ids), "hex": tokenizer.decode_bytes(ids).hex()}
    for ids in ([-1], [tokenizer.vocabulary_size]):
        assert "ids must lie in 0" in java.ask("decode", ids=ids)["error"]
    for text in ("\ud800", "a\udc00b", "😀\ud83d"):  # half a pair of surrogates, as a text field of a phone can hold
        assert java.ask("encode_text", text=text) == {"ids": tokenizer.encode(text).tolist()}


@pytest.mark.parametrize("kind", ["byte", "character", "gpt2", "llama3", "qwen2"])
def test_added_tokens_and_splits_of_words(java, trained_tokenizers, tmp_path, kind):
    base, _ = trained_tokenizers[kind if kind in ("byte", "character") else "byte_pair"]
    if not hasattr(base, "added_tokens"):
        pytest.skip("added tokens are NOT tried in Java: the tokenizers of this release have none")
    files, name = dict(base.files), next(iter(base.files))
    config = json.loads(files[name])
    entries = [("<|user|>", True, False, False), ("<|user", False, False, False), ("LOW", False, True, True)]
    entries += [("[X]", False, False, True), ("中", False, False, False)]
    config["added_tokens"] = [
        {
            "content": text,
            "id": base.vocabulary_size + i,
            "special": special,
            "lstrip": left,
            "rstrip": right,
            "normalized": i % 2 == 1,
        }
        for i, (text, special, left, right) in enumerate(entries)
    ]
    config["vocabulary_size"] += len(entries)
    if kind in ("gpt2", "llama3", "qwen2"):
        files["vocabulary.txt"] += b"\n" * len(entries)
    if kind in ("llama3", "qwen2"):
        config.update(split=kind, add_prefix_space=kind == "qwen2", ignore_merges=kind == "llama3")
        files["classes.bin"] = word_classes(kind)
    files[name] = json.dumps(config).encode()
    tokenizer = type(base)(files)
    tokenizer.save(tmp_path / "tokenizer")
    load(java, tokenizer, tmp_path / "tokenizer")
    assert java.ask("vectors", vectors=tokenizer_vectors(tokenizer)) == {"wrong": []}
    choose = random.Random(6)
    pieces = [*FRAGMENTS, *[text for text, *_ in entries] * 4, "\r", "\n", " \n", "'S", "'Re", "1234567"]
    texts = ["".join(choose.choices(pieces, k=choose.randint(1, 9))).encode() for _ in range(800)]
    assert_same_ids(
        java, tokenizer, [*hard_texts(100), *texts, *(text[:3] + b"\xe2" + text[3:] for text in texts[:100])]
    )
    for text in texts[:50]:
        ids = tokenizer.encode(text).tolist()
        assert java.ask("decode", ids=ids) == {"text": tokenizer.decode(ids), "hex": tokenizer.decode_bytes(ids).hex()}


@pytest.mark.parametrize("name", ["word_piece", "unigram", "bpe"])
def test_tokens_of_a_user(java, trained_tokenizers, tmp_path, name):
    tokenizer, _ = trained_tokenizers[name]
    if not hasattr(tokenizer, "with_added_tokens"):
        pytest.skip("added tokens are NOT tried in Java: the tokenizers of this release have none")
    tokenizer = tokenizer.with_added_tokens(["<user>", "<bot>"], special=True).with_added_tokens(["lowest", ".x", "中"])
    tokenizer.save(tmp_path / "tokenizer")
    load(java, tokenizer, tmp_path / "tokenizer")
    assert java.ask("vectors", vectors=tokenizer_vectors(tokenizer)) == {"wrong": []}
    choose = random.Random(6)
    pieces = [*FRAGMENTS, *["<user>", "<bot>", "lowest", ".x", "中", "n't", "."] * 4]
    texts = ["".join(choose.choices(pieces, k=choose.randint(1, 9))).encode() for _ in range(500)]
    assert_same_ids(java, tokenizer, texts)
    for text in texts[:50]:
        ids = tokenizer.encode(text).tolist()
        assert java.ask("decode", ids=ids) == {"text": tokenizer.decode(ids), "hex": tokenizer.decode_bytes(ids).hex()}


@pytest.mark.parametrize("lowercase", [True, False])
def test_tokens_that_are_looked_for_in_the_form_of_a_text(java, trained_tokenizers, tmp_path, lowercase):
    """A BERT of Hugging Face's, with what its file says of the template around a text."""
    base, _ = trained_tokenizers["word_piece" if lowercase else "word_piece_cased"]
    base.to_huggingface(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["normalizer"]["strip_accents"] = True
    names = ["LOW", "d'\u00e9", "<X>", "秦川", "lowzz"]
    for number, name in enumerate(names[: None if lowercase is False else -1]):
        added = {"content": name, "id": base.vocabulary_size + number, "special": False, "lstrip": name == "LOW"}
        content["added_tokens"].append({**added, "rstrip": False, "single_word": False, "normalized": name != "<X>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = kinds.from_huggingface(tmp_path)
    assert tokenizer.config["post_processor"] and tokenizer.config["strip_accents"]
    tokenizer.save(tmp_path / "tokenizer")
    load(java, tokenizer, tmp_path / "tokenizer")
    assert java.ask("vectors", vectors=tokenizer_vectors(tokenizer)) == {"wrong": []}
    choose = random.Random(6)
    pieces = [*FRAGMENTS, *[*names, "l\u00f3w", "D'E", "lowz\x07z", "<x>", "\x07", "lo\u0301\x00w"] * 4]
    texts = ["".join(choose.choices(pieces, k=choose.randint(1, 9))).encode() for _ in range(500)]
    assert_same_ids(java, tokenizer, texts)
    for text in texts[:50]:
        ids = tokenizer.encode(text).tolist()
        assert java.ask("decode", ids=ids) == {"text": tokenizer.decode(ids), "hex": tokenizer.decode_bytes(ids).hex()}


@pytest.mark.shared_data
@pytest.mark.parametrize("model", ["t5_sentencepiece", "test_oss_model"])
def test_a_sentence_piece_model_of_others(java, tmp_path, model):
    shared = HERE.parents[2] / "shared" / "data"
    if not shared.is_dir():
        pytest.skip(f"{shared} is not there")
    tokenizer = kinds.SentencePieceTokenizer.from_model_file(shared / "tokenizers" / "sentencepiece" / f"{model}.model")
    tokenizer.save(tmp_path / "tokenizer")
    load(java, tokenizer, tmp_path / "tokenizer")
    cases = json.loads((shared / "tokenizers_expected" / "expected.json").read_text())["cases"]
    assert_same_ids(java, tokenizer, [*hard_texts(1500), *(case["text"].encode() for case in cases)])


@pytest.mark.shared_data
def test_gpt2_and_bert(java, tmp_path):
    shared = HERE.parents[2] / "shared" / "data" / "tokenizers"
    if not shared.is_dir():
        pytest.skip(f"{shared} is not there")
    gpt2 = kinds.BytePairTokenizer.from_gpt2_files(shared / "gpt2" / "encoder.json", shared / "gpt2" / "vocab.bpe")
    bert = kinds.WordPieceTokenizer.from_vocab_file(shared / "bert_base_uncased" / "vocab.txt")
    for name, tokenizer in (("gpt2", gpt2), ("bert", bert)):
        tokenizer.save(tmp_path / name)
        load(java, tokenizer, tmp_path / name)
        assert_same_ids(java, tokenizer, [text for text in hard_texts(1500) if b"\x80" not in text])


def test_a_field_that_changes_the_ids_and_is_not_known_is_refused(java, trained_tokenizers, tmp_path):
    tokenizer, folder = trained_tokenizers["byte"]
    name = next(iter(tokenizer.files))
    config = json.loads((folder / name).read_text())
    for field, value, wanted in (
        ("upside_down", True, "which this reader does not know"),
        ("format", 9, "expected format 1"),
        ("type", "morse", 'no tokenizer of type \\"morse\\"'),
    ):
        (tmp_path / name).write_text(json.dumps({**config, field: value}))
        error = java.ask("tokenizer", folder=str(tmp_path), config=name)["error"]
        assert wanted.replace("\\", "") in error
    (tmp_path / name).write_text("{")
    assert "no JSON" in java.ask("tokenizer", folder=str(tmp_path), config=name)["error"]
    assert "there is no file" in java.ask("tokenizer", folder=str(tmp_path), config="other.json")["error"]


def test_the_sampler_chooses_as_in_python(java):
    random_numbers = np.random.default_rng(8)
    rows, wanted = [], []
    for i in range(600):
        size = int(random_numbers.choice([3, 50, 260, 5000]))
        logits = (random_numbers.standard_normal(size) * random_numbers.choice([0.5, 3, 20])).astype("float32")
        if i % 10 == 0:
            logits[0], logits[1] = np.nan, np.inf * random_numbers.choice([-1, 1])
        options = {
            "temperature": float(np.float32(random_numbers.choice([0, 1e-6, 0.7, 1.0, 5.0]))),
            "top_k": int(random_numbers.choice([0, 1, 5, 40, 10**6])),
            "top_p": float(np.float32(random_numbers.choice([1.0, 0.9, 0.3, 1e-6]))),
            "min_p": float(np.float32(random_numbers.choice([0, 0.05, 1.0]))),
            "repetition_penalty": float(np.float32(random_numbers.choice([1.0, 1.3, 0.8]))),
            "seed": int(random_numbers.integers(0, 2**31)),
        }
        seen, position = random_numbers.integers(0, size, 5).tolist(), int(random_numbers.integers(0, 5000))
        mask = np.isin(np.arange(size), seen)
        token, margin = sample(logits, options, mask, position, (1,), with_margin=True)
        if margin[0] > 1e-5:  # the two exponential functions may differ in the last bit
            wanted.append(int(token[0]))
            given = {"seen": seen, "position": position, "suppressed_ids": [1], "options": options}
            rows.append({"logits": logits.astype("<f4").tobytes().hex(), **given})
    assert len(rows) > 400
    assert java.ask("sample", rows=rows)["tokens"] == wanted


def test_an_export_with_pieces(java, trained_tokenizers, tmp_path, fast_exports):
    tokenizer, _ = trained_tokenizers["unigram"]
    model = models.RecurrentLM(tokenizer.vocabulary_size, cell="gru", size="nano", hidden_dim=32)
    model.build()
    randomize(model, scale=2.0)  # so that no two logits are near each other
    with fast_exports():
        path = export.litert(tasks.TextGeneration(model, tokenizer), tmp_path / "pieces.tflite", "int8")
    assert path.name == "pieces-int8.tflite"
    assert java.load(path) == {"describes": True}
    assert java.ask("self_test") == {"wrong": []}
    rows = json.loads(sidecar_of(path).read_text("utf-8"))["test_vectors"]["written"]
    assert {row["options"]["temperature"] for row in rows} == {0.0, 0.8}
    got = java.ask("generate", prompt="The lowest 中 road", max_new_tokens=9, options=SAMPLED)
    assert got["token_ids"] == LiteRTModel(path).generate("The lowest 中 road", 9, **SAMPLED)["token_ids"].tolist()


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_the_self_test_of_a_real_export(java, litert, name):
    java.runs.clear()
    assert java.load(litert(name)) == {"describes": True}
    assert java.ask("self_test") == {"wrong": []}
    assert len(java.runs) > 30


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_the_loop_writes_what_python_writes(java, litert, name):
    java.load(litert(name))
    model = LiteRTModel(litert(name))
    java.runs.clear()
    for prompt in ("", "the cat", "Zoë paid 12 €", "rain fell on the roof all night, and nobo", "x" * 20):
        for options in (OFF, SAMPLED):
            got = java.ask("generate", prompt=prompt, max_new_tokens=20, options=options)
            wanted = model.generate(prompt, max_new_tokens=20, **options)
            assert got == {
                **{key: wanted[key] for key in ("text", "stop_reason", "truncated")},
                "token_ids": wanted["token_ids"].tolist(),
            }
    assert {"decode", "prefill_16"} <= set(java.runs)


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_a_prompt_is_cut_as_in_python(java, litert, name):
    java.load(litert(name))
    model = LiteRTModel(litert(name))
    for prompt in (
        "the cat sat on the mat and looked. " * 3,
        "Zoë " * 1500,
        "中文" * 900,
        "x" + "😀" * 1100,
        "a" * (READ - 1),
        "a" * READ,
    ):
        got = java.ask("generate", prompt=prompt, max_new_tokens=7, options=OFF)
        wanted = model.generate(prompt, max_new_tokens=7)
        assert got["token_ids"] == wanted["token_ids"].tolist() and got["truncated"] == wanted["truncated"], prompt[:9]


def test_a_listener_stops_it_and_a_new_text_starts_from_nothing(java, litert):
    java.load(litert("lstm"))
    whole = java.ask("generate", prompt="the cat", max_new_tokens=12, options=OFF)
    part = java.ask("generate", prompt="the cat", max_new_tokens=12, options=OFF, stop_after=3)
    assert part["stop_reason"] == "stopped" and part["token_ids"] == whole["token_ids"][:3]
    assert java.ask("generate", prompt="the cat", max_new_tokens=12, options=OFF) == whole
    nothing = java.ask("generate", prompt="the cat", max_new_tokens=0, options=OFF)
    assert nothing["token_ids"] == [] and nothing["stop_reason"] == "length"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("temperature", -1.0, "temperature must be"),
        ("top_p", 0.0, "topP must be"),
        ("min_p", 2.0, "minP must be"),
        ("repetition_penalty", 0.0, "repetitionPenalty must be"),
        ("seed", -1, "seed must be"),
        ("top_k", -1, "topK must be"),
    ],
)
def test_an_option_out_of_its_range_is_refused(java, litert, option, value, message):
    java.load(litert("lstm"))
    assert message in java.ask("generate", prompt="a", max_new_tokens=1, options={**OFF, option: value})["error"]


def test_what_does_not_belong_together_is_refused(java, litert, tmp_path):
    path = pathlib.Path(litert("lstm"))
    sidecar = json.loads(sidecar_of(path).read_text("utf-8"))
    shutil.copytree(path.with_suffix(".tokenizer"), tmp_path / "lstm.tokenizer")
    (tmp_path / "lstm.tflite").write_bytes(path.read_bytes() + b"\0")
    for field, value, wanted in (
        ("format", 2, "another format"),
        ("sampler", {**sidecar["sampler"], "name": "seqlm-sampler-2"}, "asks for the sampler seqlm-sampler-2"),
        ("tokenizer", {**sidecar["tokenizer"], "hash": "0" * 16}, "the tokenizer of another model"),
        ("state", {"h": {"shape": [1, 2], "dtype": "int4"}}, "the leaf h is of int4"),
    ):
        (tmp_path / "lstm.json").write_text(json.dumps({**sidecar, field: value}))
        answer = java.ask("load", sidecar=str(tmp_path / "lstm.json"), tflite=str(tmp_path / "lstm.tflite"))
        assert wanted in answer["error"]
    (tmp_path / "lstm.json").write_text(json.dumps(sidecar))
    answer = java.ask("load", sidecar=str(tmp_path / "lstm.json"), tflite=str(tmp_path / "lstm.tflite"))
    assert answer == {"describes": False}
