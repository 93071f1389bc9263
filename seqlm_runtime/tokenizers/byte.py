"""A byte is a token: nothing to train, nothing unknown."""

import numpy as np

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
        if self.vocabulary_size != BYTE_VOCABULARY_SIZE or self.special_ids != STANDARD_SPECIAL_IDS:
            raise ValueError(
                f"Expected a byte tokenizer of {BYTE_VOCABULARY_SIZE} ids and {STANDARD_SPECIAL_IDS}, "
                f"got {self.vocabulary_size} and {self.special_ids}."
            )

    def encode(self, text):
        """The ids of `text` (str or bytes) as a (time,) int32 array."""
        return np.frombuffer(as_bytes(text), np.uint8).astype(np.int32) + np.int32(FIRST_BYTE_ID)

    def decode_bytes(self, ids):
        """The bytes of `ids` (time,), exactly those that were encoded."""
        ids = self.checked_ids(ids)
        return (ids[ids >= FIRST_BYTE_ID] - FIRST_BYTE_ID).astype(np.uint8).tobytes()
