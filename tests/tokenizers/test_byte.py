import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seqlm.tokenizers import ByteTokenizer


def test_ids_are_bytes_after_the_special_ones():
    tokenizer = ByteTokenizer.train("no such file is read")
    assert tokenizer.vocabulary_size == 260
    ids = tokenizer.encode("Hé\x00")
    assert ids.dtype == np.int32 and ids.tolist() == [76, 199, 173, 4]
    assert tokenizer.suppressed_ids == (0, 1, 3) and tokenizer.eos_id == 2


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=60))
def test_any_bytes_come_back(data):
    tokenizer = ByteTokenizer()
    assert tokenizer.decode_bytes(tokenizer.encode(data)) == data
    assert tokenizer.decode(tokenizer.encode(data)) == data.decode("utf-8", "replace")


def test_special_ids_produce_nothing_and_bad_ones_raise():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([1, 76, 0, 3, 109, 2]) == "Hi"
    assert tokenizer.decode([]) == "" and tokenizer.decode_bytes(np.zeros(0)) == b""
    for bad in ([260], [-1], [1 << 40], [[5]], [1.5], ["a"], 7):
        with pytest.raises(ValueError, match="Expected"):
            tokenizer.decode(bad)


def test_lone_surrogates_become_replacement_characters():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    with pytest.raises(ValueError, match="str or bytes"):
        tokenizer.encode(7)
