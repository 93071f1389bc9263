"""The sentence-piece tokenizer with its training, models from elsewhere and its graph."""

import io
import pathlib

import seqlm_runtime.tokenizers
from keras_seqlm.tokenizers.saving import SavedTokenizer
from keras_seqlm.tokenizers.sentence_piece_graph import sentence_piece_graph
from keras_seqlm.tokenizers.texts import text_blocks
from seqlm_runtime.tokenizers.model_proto import (
    BPE,
    CONTROL,
    MAX_MODEL_BYTES,
    UNIGRAM,
    UNKNOWN,
    Model,
    parse_model,
    serialize_model,
)
from seqlm_runtime.tokenizers.sentence_piece import MODEL_NAME, SPACE_MARK
from seqlm_runtime.tokenizers.tokenizer import CONFIG_NAME, STANDARD_SPECIAL_IDS, config_bytes

ALGORITHMS = {"unigram": UNIGRAM, "bpe": BPE}
MAX_LINE_CHARACTERS = 1000
# Sums of such scores are exact in single precision, so that no library breaks a near tie differently.
SCORE_STEPS = 16


class SentencePieceTokenizer(SavedTokenizer, seqlm_runtime.tokenizers.SentencePieceTokenizer):
    """Pieces of a SentencePiece model, trained here or elsewhere.

    A model trained here does not normalise, starts words with their space and falls back to bytes, so any text comes
    back, save that U+2581 reads as a space.

    Args:
        files: dict of file name to bytes: `seqlm_tokenizer.json` and `sentencepiece.model`.

    Raises:
        ValueError: a file does not hold what it should, or the model has user-defined pieces.

    Example:

    >>> tokenizer = SentencePieceTokenizer.train(texts=["low lower lowest"] * 9, vocabulary_size=270)
    >>> tokenizer.decode(tokenizer.encode("slow"))
    'slow'

    Reference: Kudo 2018, https://arxiv.org/abs/1804.10959; Kudo and Richardson 2018, https://arxiv.org/abs/1808.06226
    """

    @classmethod
    def train(
        cls,
        files=None,
        vocabulary_size=8192,
        *,
        texts=None,
        text_field="text",
        algorithm="unigram",
        character_coverage=0.9995,
    ):
        """Learns the pieces of a text with the `sentencepiece` library; the same text gives the same files.

        The library keeps the whole text in memory, about twenty times its size for unigram.

        Args:
            files: a path, a glob pattern, a directory or a list of them, read as training data are (`.jsonl`, packed files
                and so on; see `data.Corpus`).
            vocabulary_size: number of ids: 4 special ones, 256 bytes, the characters and longer pieces. A small text
                gives a smaller vocabulary.
            texts: instead of files, an iterable of str, or of mappings with such a field.
            text_field: the field of a record that holds the text.
            algorithm: `"unigram"` or `"bpe"`.
            character_coverage: share of the text whose characters get a piece; the rest is written in bytes.

        Raises:
            ValueError: there is no text, or `vocabulary_size` is too small for its characters.
            FileNotFoundError: a file does not exist.
        """
        import sentencepiece

        if algorithm not in ALGORITHMS:
            raise ValueError(f"Expected algorithm 'unigram' or 'bpe', got {algorithm!r}.")
        data = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_lines(text_blocks(files, texts, text_field)),
                model_writer=data,
                model_type=algorithm,
                vocab_size=vocabulary_size,
                hard_vocab_limit=False,
                character_coverage=character_coverage,
                byte_fallback=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                max_sentence_length=8 * MAX_LINE_CHARACTERS,
                required_chars=SPACE_MARK,  # a text without spaces is no reason to know none
                num_threads=1,  # with another number unigram learns other pieces
                minloglevel=2,
                **{f"{name}_id": i for name, i in STANDARD_SPECIAL_IDS.items()},
            )
        except RuntimeError as error:
            raise ValueError(
                f"SentencePiece could not learn {vocabulary_size} pieces of this text: {error}. "
                "Give another vocabulary_size, or more text."
            ) from error
        trained = parse_model(data.getvalue())
        pieces = [(text, round(score * SCORE_STEPS) / SCORE_STEPS, kind) for text, score, kind in trained.pieces]
        model = Model(
            pieces, trained.model_type, byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=False
        )
        return cls(sentence_piece_files(model, STANDARD_SPECIAL_IDS, chunks=True))

    @classmethod
    def from_model_file(cls, path):
        """Reads a SentencePiece model from elsewhere, T5's for example, keeping the ids.

        The special ids are those of its unknown piece and of its control pieces `<pad>`, `<s>` and `</s>`.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is no model that this tokenizer can read.
        """
        path = pathlib.Path(path)
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise ValueError(f"{path}: {path.stat().st_size} bytes are more than a model has ({MAX_MODEL_BYTES}).")
        model = parse_model(path.read_bytes())
        names = {"<pad>": "pad", "<s>": "bos", "</s>": "eos"}
        special_ids = {
            "unk" if kind == UNKNOWN else names.get(text, text): i
            for i, (text, _, kind) in enumerate(model.pieces)
            if kind in (CONTROL, UNKNOWN)
        }
        return cls(sentence_piece_files(model, special_ids, chunks=False))

    def in_graph(self):
        """This tokenizer as a `tf.Module` with `tokenize` and `detokenize`."""
        return sentence_piece_graph(self)


def _lines(blocks):
    """Yields the lines of `blocks` of bytes, long ones cut at a space: the library skips lines over its limit."""
    for block in blocks:
        for line in block.decode("utf-8", "replace").split("\n"):
            while len(line) > MAX_LINE_CHARACTERS:
                cut = line.rfind(" ", 1, MAX_LINE_CHARACTERS)
                cut = MAX_LINE_CHARACTERS if cut < 1 else cut
                yield line[:cut]
                line = line[cut:]
            if line:
                yield line


def sentence_piece_files(model, special_ids, chunks, **more):
    """The files of a tokenizer.

    Args:
        model: a `Model`.
        special_ids: dict of name to id.
        chunks: whether it is encoded word by word, as models that were trained here are.
        **more: what the config says besides.
    """
    return {
        CONFIG_NAME: config_bytes("sentence_piece", len(model.pieces), special_ids, chunks=chunks, **more),
        MODEL_NAME: serialize_model(model),
    }
