"""The byte-pair tokenizer with its training, GPT-2's files and its graph."""

import json
import pathlib

import seqlm_runtime.tokenizers
from keras_seqlm.tokenizers.byte_pair_graph import byte_pair_graph
from keras_seqlm.tokenizers.saving import SavedTokenizer
from keras_seqlm.tokenizers.texts import text_blocks
from keras_seqlm.tokenizers.unicode_tables import word_classes
from seqlm_runtime.tokenizers.byte_pair import (
    BYTE_CHARACTERS,
    MERGES_NAME,
    VOCABULARY_NAME,
    token_characters,
)
from seqlm_runtime.tokenizers.tokenizer import CONFIG_NAME, STANDARD_SPECIAL_IDS, config_bytes
from seqlm_runtime.tokenizers.words import CLASSES_NAME, parse_classes, split_words, word_bytes

MIN_VOCABULARY_SIZE = len(STANDARD_SPECIAL_IDS) + 256
SPECIAL_LINES = ["<pad>", "<bos>", "<eos>", "<unk>"]


class BytePairTokenizer(SavedTokenizer, seqlm_runtime.tokenizers.BytePairTokenizer):
    """Words split as GPT-2 splits them, then merged byte by byte; any bytes come back as they were.

    Args:
        files: dict of file name to bytes: `seqlm_tokenizer.json`, `vocabulary.txt` (a token a line, in the order of ids),
            `merges.txt` (two tokens a line, the first merged first) and `classes.bin` (letter, number, space or other
            for each code point). Tokens are written in GPT-2's characters for bytes.

    Raises:
        ValueError: a file does not hold what it should.

    Example:

    >>> tokenizer = BytePairTokenizer.train(texts=["low lower lowest"], vocabulary_size=262)
    >>> tokenizer.encode("low").tolist()
    [261]

    Reference: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2
    """

    @classmethod
    def train(cls, files=None, vocabulary_size=8192, *, texts=None, text_field="text", max_word_bytes=256):
        """Learns the merges of a text; the same text gives the same files, byte for byte.

        Args:
            files: a path, a glob pattern, a directory or a list of them, read as training data are (`.jsonl`, packed files
                and so on; see `data.Corpus`); read in blocks.
            vocabulary_size: number of ids: 4 special ones, 256 bytes and the merges. A text with fewer pairs that
                occur twice gives a smaller vocabulary.
            texts: instead of files, an iterable of str, or of mappings with such a field.
            text_field: the field of a record that holds the text.
            max_word_bytes: longer words are cut, here and whenever the tokenizer encodes. In a language without spaces
                a word is a whole phrase.

        Raises:
            ValueError: there is no text, or `vocabulary_size` is under 260.
            FileNotFoundError: a file does not exist.
        """
        if vocabulary_size < MIN_VOCABULARY_SIZE:
            raise ValueError(f"Expected a vocabulary_size of at least {MIN_VOCABULARY_SIZE}, got {vocabulary_size}.")
        if max_word_bytes < 1:
            raise ValueError(f"Expected max_word_bytes of at least 1, got {max_word_bytes}.")
        merges = learn_merges(
            text_blocks(files, texts, text_field), vocabulary_size - MIN_VOCABULARY_SIZE, max_word_bytes
        )
        tokens = BYTE_CHARACTERS + [left + right for left, right in merges]
        return cls(byte_pair_files(SPECIAL_LINES + tokens, merges, STANDARD_SPECIAL_IDS, max_word_bytes=max_word_bytes))

    @classmethod
    def from_gpt2_files(cls, vocabulary_path, merges_path, special_tokens=None):
        """Reads GPT-2's `encoder.json` and `vocab.bpe` (Hugging Face: `vocab.json`, `merges.txt`), keeping the ids.

        Args:
            vocabulary_path: JSON object of token to id.
            merges_path: two tokens a line, after a line with the version.
            special_tokens: dict of `"pad"`, `"bos"`, `"eos"`, `"unk"`, `"mask"` to the token; GPT-2's only one unless
                given: `{"eos": "<|endoftext|>"}`.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: the files are damaged.
        """
        special_tokens = {"eos": "<|endoftext|>"} if special_tokens is None else special_tokens
        try:
            vocabulary = json.loads(pathlib.Path(vocabulary_path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{vocabulary_path} is no JSON: {error}.") from error
        if not isinstance(vocabulary, dict) or set(map(repr, vocabulary.values())) != set(
            map(repr, range(len(vocabulary)))
        ):
            raise ValueError(f"{vocabulary_path}: expected an object of tokens with the ids from 0 on, each once.")
        missing = [token for token in special_tokens.values() if token not in vocabulary]
        if missing:
            raise ValueError(f"{vocabulary_path}: the special token {missing[0]!r} is not in the vocabulary.")
        lines = sorted(vocabulary, key=vocabulary.get)
        merges = pathlib.Path(merges_path).read_text(encoding="utf-8").split("\n")
        merges = [tuple(line.split(" ")) for line in merges[merges[0].startswith("#version") :] if line]
        if any(len(pair) != 2 for pair in merges):
            raise ValueError(f"{merges_path}: expected two tokens a line.")
        special_ids = {name: vocabulary[token] for name, token in special_tokens.items()}
        return cls(byte_pair_files(lines, merges, special_ids, max_word_bytes=None))

    def in_graph(self):
        """This tokenizer as a `tf.Module` with `tokenize` and `detokenize`."""
        return byte_pair_graph(self)


def learn_merges(blocks, num_merges, max_word_bytes):
    """The list of `(left, right)` in GPT-2's characters that byte-pair encoding learns of `blocks` of bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    # Our words are written without spaces, so a space is all that has to be split at.
    learner.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
    trainer = trainers.BpeTrainer(
        vocab_size=256 + num_merges,
        min_frequency=2,
        initial_alphabet=BYTE_CHARACTERS,
        special_tokens=[],
        show_progress=False,
    )
    learner.train_from_iterator(_spaced_words(blocks, max_word_bytes), trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in merges]
    while True:
        tokens = BYTE_CHARACTERS + list(dict.fromkeys(left + right for left, right in merges))
        probe = BytePairTokenizer(
            byte_pair_files(SPECIAL_LINES + tokens, merges, STANDARD_SPECIAL_IDS, max_word_bytes=max_word_bytes)
        )
        wrong = {tuple(token_characters(probe.tokens[i]) for i in pair) for pair in unsound_merges(probe)}
        if not wrong:
            return merges
        merges = _without(merges, wrong)


def unsound_merges(tokenizer):
    """The pairs of ids whose token is made by an earlier pair too, or does not encode to itself."""
    wrong, made = [], set()
    for pair, (_, merged) in tokenizer.pairs.items():
        if merged in made or tokenizer.encode_symbols(tokenizer.tokens[merged]) != [merged]:
            wrong.append(pair)
        made.add(merged)
    return wrong


def _without(merges, wrong):
    """`merges` less the pairs in `wrong`, and less what can then no longer be made."""
    kept, made = [], set(BYTE_CHARACTERS)
    for left, right in merges:
        if (left, right) not in wrong and left in made and right in made:
            kept.append((left, right))
            made.add(left + right)
    return kept


def _spaced_words(blocks, max_word_bytes):
    """Yields each block's words in GPT-2's characters with a space between them."""
    classes = parse_classes(word_classes("gpt2"))
    for block in blocks:
        written = {}
        words = split_words(block, classes)
        for word in set(words):
            data = word_bytes(word)
            parts = [data[start : start + max_word_bytes] for start in range(0, len(data), max_word_bytes)]
            written[word] = " ".join(map(token_characters, parts))
        yield " ".join([written[word] for word in words])


def byte_pair_files(lines, merges, special_ids, split="gpt2", **more):
    """The files of a tokenizer.

    Args:
        lines: list of tokens in the characters for bytes, by id.
        merges: list of `(left, right)` of those.
        special_ids: dict of name to id.
        split: which pattern splits words.
        **more: what the config says besides.
    """
    more = more if split == "gpt2" else {"split": split, **more}
    return {
        CONFIG_NAME: config_bytes("byte_pair", len(lines), special_ids, **more),
        VOCABULARY_NAME: "".join(line + "\n" for line in lines).encode("utf-8"),
        MERGES_NAME: "".join(f"{left} {right}\n" for left, right in merges).encode("utf-8"),
        CLASSES_NAME: word_classes(split),
    }
