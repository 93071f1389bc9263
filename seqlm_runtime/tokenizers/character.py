"""A code point is a token."""

import numpy as np

from seqlm_runtime.tokenizers.code_points import NUM_CODE_POINTS, code_points, look_up, two_level
from seqlm_runtime.tokenizers.tokenizer import CONFIG_NAME, STANDARD_SPECIAL_IDS, Tokenizer, as_text, config_bytes

CHARACTERS_NAME = "characters.txt"
NUM_SPECIAL_IDS = len(STANDARD_SPECIAL_IDS)
REPLACEMENT = 0xFFFD


class CharacterTokenizer(Tokenizer):
    """Every code point of the vocabulary is an id, in the order of `characters.txt`; others are `unk`.

    Nothing is normalised: "é" as one code point and as "e" with an accent are different text.

    Args:
        files: dict of file name to bytes: `seqlm_tokenizer.json` and `characters.txt`, the characters one after the other.

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
        known = NUM_SPECIAL_IDS + len(self.characters)
        if set(range(known, self.vocabulary_size)) - set(self.added_tokens.shown) or known > self.vocabulary_size:
            raise ValueError(
                f"{CHARACTERS_NAME}: expected {self.vocabulary_size} ids, got {len(self.characters)} characters and "
                f"{NUM_SPECIAL_IDS} special ids; the rest must be added tokens."
            )
        if len(set(self.characters)) != len(self.characters):
            raise ValueError(f"{CHARACTERS_NAME}: a character stands twice.")
        points = code_points(self.characters)
        ids = np.full(NUM_CODE_POINTS, self.unk_id, np.uint32)
        ids[points] = np.arange(NUM_SPECIAL_IDS, known)
        self.table = two_level(ids)
        # unk is the last special id and the only one that shows.
        tokens = [b""] * self.unk_id + [chr(REPLACEMENT).encode(), *(one.encode() for one in self.characters)]
        tokens += [b""] * (self.vocabulary_size - known)
        self.max_token_bytes = max(4, self.added_tokens.longest)
        self.tokens = [self.added_tokens.shown.get(i, token) for i, token in enumerate(tokens)]

    @staticmethod
    def files_of(characters):
        """The files of the tokenizer with these `characters`, a str."""
        return {
            CONFIG_NAME: config_bytes("character", NUM_SPECIAL_IDS + len(characters)),
            CHARACTERS_NAME: characters.encode("utf-8"),
        }

    def encode_plain(self, text):
        """The ids of `text` (str or bytes) as a (time,) int32 array."""
        return look_up(self.table, code_points(as_text(text))).astype(np.int32)

    def spans_plain(self, text):
        """The ids of `text` and the code points that each stands for; see `encode_with_offsets`."""
        ids = self.encode_plain(text)
        places = np.arange(len(ids))
        return ids, np.stack([places, places + 1], axis=1)

    def decode_bytes(self, ids, after_text=False):
        """The UTF-8 bytes of `ids` (time,); `unk` becomes U+FFFD, the other special ids nothing."""
        return b"".join([self.tokens[i] for i in self.checked_ids(ids).tolist()])
