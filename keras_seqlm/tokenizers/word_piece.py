"""The word-piece tokenizer with its training, BERT's vocabulary and its graph."""

import collections
import json
import pathlib

import seqlm_runtime.tokenizers
from keras_seqlm.tokenizers.learned import check_learned
from keras_seqlm.tokenizers.saving import SavedTokenizer
from keras_seqlm.tokenizers.texts import text_blocks
from keras_seqlm.tokenizers.unicode_tables import bert_forms
from keras_seqlm.tokenizers.word_piece_graph import word_piece_graph
from seqlm_runtime.tokenizers.tokenizer import CONFIG_NAME, STANDARD_SPECIAL_IDS, config_bytes
from seqlm_runtime.tokenizers.word_piece import CONTINUATION, FORMS_NAME, FORMS_TABLE_NAME, VOCABULARY_NAME

SPECIAL_LINES = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]
BERT_SPECIAL_TOKENS = {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
MAX_WORD_CHARACTERS = 100


class WordPieceTokenizer(SavedTokenizer, seqlm_runtime.tokenizers.WordPieceTokenizer):
    """BERT's tokenizer: clean, lower-case and strip accents, split at spaces and signs, then the longest pieces.

    A word of which a part is unknown is one `unk`. Decoding cannot bring back what normalisation took away, so this is
    a tokenizer for reading text more than for writing it.

    Args:
        files: dict of file name to bytes: `seqlm_tokenizer.json`, `vocabulary.txt` (a token a line, in the order of ids,
            `##` before those inside a word), `forms.bin` (a number for each code point) and `forms.txt` (what it
            becomes, a line each).

    Raises:
        ValueError: a file does not hold what it should.

    Example:

    >>> tokenizer = WordPieceTokenizer.train(texts=["Low, lower, lowest"], vocabulary_size=30)
    >>> tokenizer.decode(tokenizer.encode("LOWEST, low"))
    'lowest , low'

    Reference: Devlin et al. 2019, https://arxiv.org/abs/1810.04805
    """

    @classmethod
    def train(cls, files=None, vocabulary_size=8192, *, texts=None, text_field="text", lowercase=True):
        """Learns the pieces of a text; the same text gives the same files, byte for byte.

        Args:
            files: a path, a glob pattern, a directory or a list of them, read as training data are (`.jsonl`, packed files
                and so on; see `data.Corpus`); read in blocks, and only its different words are kept.
            vocabulary_size: number of ids: 4 special ones, the characters (at most three quarters, the most frequent
                ones) and pieces of several characters. A small text gives a smaller vocabulary.
            texts: instead of files, an iterable of str, or of mappings with such a field.
            text_field: the field of a record that holds the text.
            lowercase: whether capitals and accents are taken away.

        A warning says when words with more than 5% of the characters become `unk`.

        Raises:
            ValueError: there is no text, `vocabulary_size` leaves no room for a character, or more than half of the text
                becomes `unk`, as text without spaces does.
            FileNotFoundError: a file does not exist.
        """
        if vocabulary_size < len(SPECIAL_LINES) + 4:
            raise ValueError(f"Expected a vocabulary_size of at least {len(SPECIAL_LINES) + 4}, got {vocabulary_size}.")
        normalizer = cls(word_piece_files(SPECIAL_LINES, STANDARD_SPECIAL_IDS, {"lowercase": lowercase}))
        words = collections.Counter()
        for block in text_blocks(files, texts, text_field):
            words.update(word for word in normalizer.normalize(block).split(" ") if word)
        pieces = learn_pieces(words, vocabulary_size - len(SPECIAL_LINES))
        tokenizer = cls(word_piece_files(SPECIAL_LINES + pieces, STANDARD_SPECIAL_IDS, {"lowercase": lowercase}))
        unknown = sum(len(word) * count for word, count in words.items() if tokenizer.is_unknown(word))
        check_learned(
            unknown,
            sum(len(word) * count for word, count in words.items()),
            "Give a larger vocabulary_size; for text without spaces take byte pairs or sentence pieces.",
        )
        return tokenizer

    @classmethod
    def from_vocab_file(cls, path, lowercase=True, special_tokens=None):
        """Reads BERT's `vocab.txt`, keeping the ids.

        Args:
            path: file with a token a line.
            lowercase: whether the model was trained without capitals and accents.
            special_tokens: dict of `"pad"`, `"bos"`, `"eos"`, `"unk"`, `"mask"` to the token; BERT's own, as far as the
                file has them, unless given. Its `[CLS]` counts as bos, its `[SEP]` as eos.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is no vocabulary, or a special token is not in it.
        """
        try:
            lines = pathlib.Path(path).read_bytes().decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8: {error}.") from error
        if special_tokens is None:
            special_tokens = {name: token for name, token in BERT_SPECIAL_TOKENS.items() if token in lines}
        missing = [token for token in special_tokens.values() if token not in lines]
        if missing:
            raise ValueError(f"{path}: the special token {missing[0]!r} is not in the vocabulary.")
        special_ids = {name: lines.index(token) for name, token in special_tokens.items()}
        return cls(word_piece_files(lines, special_ids, {"lowercase": lowercase}))

    def in_graph(self):
        """This tokenizer as a `tf.Module` with `tokenize` and `detokenize`."""
        return word_piece_graph(self)


def learn_pieces(words, num_pieces):
    """At most `num_pieces` tokens for `words`, a Counter: characters first, then what WordPiece training joins."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    counts = collections.Counter()
    words = {word: count for word, count in words.items() if len(word) <= MAX_WORD_CHARACTERS}
    for word, count in words.items():
        counts[word[0]] += count
        for character in word[1:]:
            counts[CONTINUATION + character] += count
    kept = set(sorted(counts, key=lambda piece: (-counts[piece], piece))[: num_pieces * 3 // 4])
    single = sorted(kept, key=lambda piece: (piece.startswith(CONTINUATION), piece))
    # Words with a character that is left out are `unk` whatever else is learnt.
    known = [word for word in sorted(words) if word[0] in kept and all(CONTINUATION + c in kept for c in word[1:])]
    # The library gives every character a piece at the start of a word too, needed or not.
    extra = {character for word in known for character in word} - kept
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
    trainer = trainers.WordPieceTrainer(
        vocab_size=num_pieces + len(extra),
        min_frequency=2,
        # Listed here, the characters get the same ids each time; the library's own order changes from run to run.
        special_tokens=single,
        continuing_subword_prefix=CONTINUATION,
        show_progress=False,
    )
    learner.train_from_iterator(_repeated(known, words), trainer)
    vocabulary = json.loads(learner.to_str())["model"]["vocab"]
    joined = [piece for piece in sorted(vocabulary, key=vocabulary.get) if piece not in kept and piece not in extra]
    return (single + joined)[:num_pieces]


def _repeated(words, counts):
    """Yields each word as often as it was counted, in lines of bounded length."""
    for word in words:
        rest = counts[word]
        while rest > 0:
            yield " ".join([word] * min(rest, 4096))
            rest -= 4096


def word_piece_files(lines, special_ids, normal, max_word_characters=MAX_WORD_CHARACTERS, **more):
    """The files of a tokenizer.

    Args:
        lines: list of tokens by id.
        special_ids: dict of name to id.
        normal: dict of `lowercase`, and `strip_accents`, `clean_text` and `handle_chinese_chars` where they are not
            BERT's own.
        max_word_characters: longer words are `unk`.
        **more: what the config says besides.
    """
    table, forms = bert_forms(**normal)
    usual = {"strip_accents": None, "clean_text": True, "handle_chinese_chars": True}
    normal = {name: value for name, value in normal.items() if name not in usual or usual[name] != value}
    return {
        CONFIG_NAME: config_bytes(
            "word_piece", len(lines), special_ids, max_word_characters=max_word_characters, **normal, **more
        ),
        VOCABULARY_NAME: "".join(line + "\n" for line in lines).encode("utf-8"),
        FORMS_TABLE_NAME: table,
        FORMS_NAME: forms,
    }
