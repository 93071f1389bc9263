"""What the data of a run are, known by a batch that does not change, and what of them is another at the next start."""

import hashlib
import re

import keras
import numpy as np

from keras_seqlm.devices.feed import name_of


def identity_of_data(train):
    """What data are, by the batch of step 0, since every batch depends on nothing but its step.

    Args:
        train: has `batches(first_step)`.

    Returns:
        A dict that JSON takes: name of each array -> [dtype, shape, SHA-256]; where data say them also `content`, the hash
        of all of their text, and `weights`, those of several texts.
    """
    found = _arrays_of(next(iter(train.batches(0))))
    content, weights = getattr(train, "content_hash", None), getattr(train, "weights", None)
    if isinstance(content, str):
        found["content"] = content
    if isinstance(weights, dict) and all(isinstance(one, float) for one in weights.values()):
        found["weights"] = list(weights.values())
    return found


def identity_of_validation(validation):
    """What validation data are, as far as they can be seen without being read away: arrays, and data that know their batches.

    Args:
        validation: what `fit` takes as `validation_data`.

    Returns:
        As `identity_of_data`, of the first batch or of all arrays, with `targets` or `batches`, how many there are; None
        of what cannot be seen.
    """
    if isinstance(validation, tuple | list):
        return _arrays_of(validation)
    if hasattr(validation, "batches"):
        targets = getattr(validation, "num_targets", None)
        return identity_of_data(validation) | ({} if targets is None else {"targets": int(targets)})
    if isinstance(validation, keras.utils.PyDataset):  # which may draw its batches, or their order
        forms = {name: [form[0], [None] * len(form[1])] for name, form in _arrays_of(validation[0]).items()}
        return forms | {"batches": validation.num_batches}
    return None


def data_changes(before, now, of="the batch of step 0"):
    """What of two `identity_of_data` differs, as texts; nothing where one of the two is unknown.

    Args:
        of: what the arrays are of.
    """
    if before is None or now is None:
        return []
    parts = {"content": "their text is another", "weights": "the weights of their texts are others"}
    counts = ("targets", "batches")
    changed = [said for part, said in parts.items() if part in before and part in now and before[part] != now[part]]
    changed += [
        f"{of} has {now[count]} {count}, and had {before[count]}"
        for count in counts
        if count in before and count in now and before[count] != now[count]
    ]
    for name in sorted((before.keys() | now.keys()) - {*parts, *counts}):
        old, new = before.get(name), now.get(name)
        if old is None or new is None:
            changed.append(f"{name} is in {of} only {'there' if new is None else 'here'}")
        elif _width_aside(old[:2]) != _width_aside(new[:2]):
            changed.append(f"{name} of {of} was {_form(old)} and is {_form(new)}")
        elif old[2:] != new[2:]:
            changed.append(f"{name} of {of} holds something else")
    return changed


def _width_aside(form):
    return [re.sub("u?int[0-9]+", "int", form[0]), *form[1:]]


def _arrays_of(batch):
    found = {}
    for path, leaf in keras.tree.flatten_with_path(batch):
        array = leaf if isinstance(leaf, np.ndarray) or leaf is None else np.asarray(keras.ops.convert_to_numpy(leaf))
        if array is not None:
            # Integers are 32 bits wide on one backend and 64 on another.
            same = array.astype("int64") if array.dtype.kind in "iu" else array
            content = repr(array.tolist()).encode() if array.dtype == object else _bytes_of(same)
            found[name_of(path)] = [array.dtype.name, list(array.shape), hashlib.sha256(content).hexdigest()]
    return found


def _bytes_of(array):
    return np.ascontiguousarray(array).reshape(-1).view("uint8")  # also of dtypes that no buffer knows, as bfloat16


def _form(leaf):
    return f"{leaf[0]} {tuple(leaf[1])}"
