"""A code point is a token."""

import numpy as np

from seqlm_runtime.tokenizers.code_points import NUM_CODE_POINTS, code_points, look_up, two_level
from seqlm_runtime.tokenizers.tokenizer import STANDARD_SPECIAL_IDS, Tokenizer, as_text, config_bytes

CHARACTERS_NAME = "characters.txt"
NUM_SPECIAL_IDS = len(STANDARD_SPECIAL_IDS)
REPLACEMENT = 0xFFFD


class CharacterTokenizer(Tokenizer):
    """Every code point of the vocabulary is an id, in the order of `characters.txt`; others are `unk`.

    Nothing is normalised: "é" as one code point and as "e" with an accent are different text.

    Args:
        files: dict of file name to bytes: `tokenizer.json` and `characters.txt`, the characters one after the other.

    Raises:
        ValueError: a file does not hold what it should.
    """

    type = "character"
    file_names = (CHARACTERS_NAME,)
    max_token_bytes = 4

    def __init__(self, files):
        super().__init__(files)
        if self.special_ids != STANDARD_SPECIAL_IDS:
            raise ValueError(f"Expected the special ids {STANDARD_SPECIAL_IDS}, got {self.special_ids}.")
        try:
            self.characters = self.files[CHARACTERS_NAME].decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{CHARACTERS_NAME} is no UTF-8: {error}.") from error
        if len(self.characters) != self.vocabulary_size - NUM_SPECIAL_IDS:
            raise ValueError(
                f"{CHARACTERS_NAME}: expected {self.vocabulary_size - NUM_SPECIAL_IDS} characters, "
                f"got {len(self.characters)}."
            )
        if len(set(self.characters)) != len(self.characters):
            raise ValueError(f"{CHARACTERS_NAME}: a character stands twice.")
        points = code_points(self.characters)
        ids = np.full(NUM_CODE_POINTS, self.unk_id, np.uint32)
        ids[points] = np.arange(NUM_SPECIAL_IDS, self.vocabulary_size)
        self.table = two_level(ids)
        # unk is the last special id and the only one that shows.
        self._shown = np.concatenate([np.array([REPLACEMENT], np.uint32), points])

    @staticmethod
    def files_of(characters):
        """The files of the tokenizer with these `characters`, a str."""
        return {
            "tokenizer.json": config_bytes("character", NUM_SPECIAL_IDS + len(characters)),
            CHARACTERS_NAME: characters.encode("utf-8"),
        }

    def encode(self, text):
        """The ids of `text` (str or bytes) as a (time,) int32 array."""
        return look_up(self.table, code_points(as_text(text))).astype(np.int32)

    def decode(self, ids):
        """The text of `ids` (time,); `unk` becomes U+FFFD, the other special ids nothing."""
        ids = self.checked_ids(ids)
        return self._shown[ids[ids >= self.unk_id] - self.unk_id].tobytes().decode("utf-32-le")

    def decode_bytes(self, ids):
        """The UTF-8 bytes of `decode(ids)`."""
        return self.decode(ids).encode("utf-8")
