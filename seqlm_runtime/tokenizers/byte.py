"""A byte is a token: nothing to train, nothing unknown."""

import numpy as np

from seqlm_runtime.tokenizers.code_points import byte_characters
from seqlm_runtime.tokenizers.tokenizer import CONFIG_NAME, STANDARD_SPECIAL_IDS, Tokenizer, as_bytes, config_bytes

FIRST_BYTE_ID = 4
BYTE_VOCABULARY_SIZE = FIRST_BYTE_ID + 256


class ByteTokenizer(Tokenizer):
    """Every byte of the text is the id byte + 4; any bytes come back as they were.

    Args:
        files: dict of file name to bytes; nothing gives the one byte tokenizer there is.

    Example:

    >>> ByteTokenizer().encode("Hi").tolist()
    [76, 109]
    """

    type = "byte"
    keeps_bytes = True
    max_token_bytes = 1

    def __init__(self, files=None):
        super().__init__({CONFIG_NAME: config_bytes(self.type, BYTE_VOCABULARY_SIZE)} if files is None else files)
        more = range(BYTE_VOCABULARY_SIZE, self.vocabulary_size)
        if (
            self.special_ids != STANDARD_SPECIAL_IDS
            or set(more) - set(self.added_tokens.shown)
            or (self.vocabulary_size < BYTE_VOCABULARY_SIZE)
        ):
            raise ValueError(
                f"Expected a byte tokenizer of {BYTE_VOCABULARY_SIZE} ids, added tokens after them and "
                f"{STANDARD_SPECIAL_IDS}, got {self.vocabulary_size} and {self.special_ids}."
            )
        tokens = [b""] * FIRST_BYTE_ID + [bytes([byte]) for byte in range(256)] + [b""] * len(more)
        self.max_token_bytes = max(1, self.added_tokens.longest)
        self.tokens = [self.added_tokens.shown.get(i, token) for i, token in enumerate(tokens)]

    def encode_plain(self, text):
        """The ids of `text` (str or bytes) as a (time,) int32 array."""
        return np.frombuffer(as_bytes(text), np.uint8).astype(np.int32) + np.int32(FIRST_BYTE_ID)

    def spans_plain(self, text):
        """The ids of `text` and the code points that each stands for; see `encode_with_offsets`."""
        data = as_bytes(text)
        characters = byte_characters(data)
        return self.encode_plain(data), np.stack([characters, characters + 1], axis=1)

    def decode_bytes(self, ids, after_text=False):
        """The bytes of `ids` (time,), exactly those that were encoded."""
        ids = self.checked_ids(ids)
        if self.added_tokens:
            return b"".join([self.tokens[i] for i in ids.tolist()])
        return (ids[ids >= FIRST_BYTE_ID] - FIRST_BYTE_ID).astype(np.uint8).tobytes()
