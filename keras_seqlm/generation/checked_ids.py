"""Token ids as a user gives them, looked at before any tensor is made of them."""

import numpy as np


def checked_ids(sequences, vocabulary_size, name="sequence"):
    """The sequences as int32 arrays, after a look at each id: a backend may take a wrong one without a word.

    Raises:
        ValueError: an empty sequence, ids that are no integers, or an id outside the vocabulary.
    """
    sequences = [np.asarray(sequence) for sequence in sequences]
    for row, ids in enumerate(sequences):
        if ids.ndim != 1:
            raise ValueError(f"{name} {row} must be a list of ids, got an array of shape {ids.shape}")
        if len(ids) == 0:
            raise ValueError(f"{name} {row} is empty; give at least one id, say the bos id")
        if ids.dtype.kind not in "iu":
            raise ValueError(f"token ids must be integers, got {ids.dtype} in {name} {row}; encode a text first")
        if ids.min() < 0 or ids.max() >= vocabulary_size:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise ValueError(f"{name} {row} holds id {wrong}, and this model knows 0 to {vocabulary_size - 1}")
    return [ids.astype("int32") for ids in sequences]
