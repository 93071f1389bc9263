"""The character tokenizer with its training and its graph."""

import numpy as np

import seqlm_runtime.tokenizers
from keras_seqlm.tokenizers.graph import graph_module, joined_tokens, look_up
from keras_seqlm.tokenizers.learned import check_learned
from keras_seqlm.tokenizers.saving import SavedTokenizer
from keras_seqlm.tokenizers.texts import text_blocks
from seqlm_runtime.tokenizers.character import NUM_SPECIAL_IDS
from seqlm_runtime.tokenizers.code_points import NUM_CODE_POINTS, code_points


class CharacterTokenizer(SavedTokenizer, seqlm_runtime.tokenizers.CharacterTokenizer):
    """Every code point of the vocabulary is an id, in ascending order; others are `unk`.

    Nothing is normalised: "é" as one code point and as "e" with an accent are different text.

    Args:
        files: dict of file name to bytes: `seqlm_tokenizer.json` and `characters.txt`, the characters one after the other.

    Raises:
        ValueError: a file does not hold what it should.

    Example:

    >>> CharacterTokenizer.train(texts=["abba"]).encode("bat").tolist()
    [5, 4, 3]
    """

    @classmethod
    def train(cls, files=None, vocabulary_size=None, *, texts=None, text_field="text"):
        """Keeps the characters of a text, or the most frequent ones.

        Args:
            files: a path, a glob pattern, a directory or a list of them, read as training data are (`.jsonl`, packed files
                and so on; see `data.Corpus`).
            vocabulary_size: at most this many ids, the 4 special ones counted; None keeps every character.
            texts: instead of files, an iterable of str, or of mappings with such a field.
            text_field: the field of a record that holds the text.

        A warning says when more than 5% of the text are other characters.

        Raises:
            ValueError: there is no text, `vocabulary_size` leaves no room for a character, or more than half of the text
                are characters that found no room.
            FileNotFoundError: a file does not exist.
        """
        if vocabulary_size is not None and vocabulary_size <= NUM_SPECIAL_IDS:
            raise ValueError(f"Expected a vocabulary_size over {NUM_SPECIAL_IDS}, got {vocabulary_size}.")
        counts = np.zeros(NUM_CODE_POINTS, np.int64)
        for block in text_blocks(files, texts, text_field):
            points, repeats = np.unique(code_points(block.decode("utf-8", "replace")), return_counts=True)
            counts[points] += repeats
        points = np.flatnonzero(counts)
        if vocabulary_size is not None:
            by_count = np.argsort(-counts[points], kind="stable")  # of equally frequent ones, the lower code point
            points = np.sort(points[by_count[: vocabulary_size - NUM_SPECIAL_IDS]])
        check_learned(
            int(counts.sum() - counts[points].sum()),
            int(counts.sum()),
            "Give a larger vocabulary_size, or a byte tokenizer.",
        )
        return cls(cls.files_of("".join(map(chr, points.tolist()))))

    def in_graph(self):
        """This tokenizer as a `tf.Module` with `tokenize` and `detokenize`."""
        import tensorflow as tf

        def encode(text, _):
            points = tf.strings.unicode_decode(text, "UTF-8", errors="replace")  # (batch, characters), ragged
            return look_up(self.table, points.flat_values), tf.cast(points.row_lengths(), tf.int32)

        return graph_module(self, encode, lambda ids, lengths, _: joined_tokens(ids, lengths, self.tokens))
