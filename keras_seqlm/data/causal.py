"""From text to the batches that `fit` trains and validates on."""

import warnings
from collections.abc import Mapping
from numbers import Real

from keras_seqlm.corpora.corpus import TOLERANCE
from keras_seqlm.corpora.paths import find_files
from keras_seqlm.data.blocks import CausalBlocks
from keras_seqlm.data.mixtures import JoinedStore, MixedBlocks
from keras_seqlm.data.packing import pack
from keras_seqlm.data.splitting import split
from keras_seqlm.data.spool import are_documents


def causal_blocks(
    files,
    tokenizer,
    sequence_length,
    batch_size,
    *,
    seed=0,
    validation=None,
    validation_fraction=0.1,
    segment_ids=None,
    contiguous=False,
    shuffle=True,
    text_field="text",
    tolerance=TOLERANCE,
    cache_dir=None,
):
    """Make training and validation blocks of text files, for a model that predicts the next token.

    Documents are joined to one stream of ids, `bos + document + eos` each, and the stream is cut in blocks without padding.

    Args:
        files: a path, a glob pattern, a directory, or a list of these (see `Corpus`); or an iterable of documents (see
            `pack`). Or a dict of several such corpora to their weights, the shares of the training rows that they give, as
            `{"books/*.txt": 0.7, "letters.jsonl": 0.3}` (see `MixedBlocks`).
        tokenizer: any tokenizer of `keras_seqlm.tokenizers`.
        sequence_length: tokens of a row.
        batch_size: rows of a batch.
        seed: any integer; with the step it alone decides what a training batch holds.
        validation: files to validate on, in place of a part of `files`.
        validation_fraction: without `validation`, the share of the tokens that is kept for validation: the last documents
            of each file, and of a document that is longer than all that is kept, its tail (see `splitting.split`). So of a
            single text file it is the tail. 0 keeps none.
        segment_ids: give `{"token_ids", "segment_ids"}` in place of ids; a segment is a document, numbered from 1 in each
            row. None does so where the stream is `contiguous`.
        contiguous: row r of each batch goes on where row r of the batch before ended, as training with a carried state
            needs it. A row's first segment is 0 where its document goes on from the batch before, and 1 where a document
            or a pass over the stream starts: there the state starts anew (see `RecurrentLM`). Without segment ids it goes
            on everywhere, also from the end of a pass to the start of the next. Not shuffled; call `fit(..., shuffle=False)`.
        shuffle: permute the training blocks and cut the stream at other places in each epoch.
        text_field: the field of a record that holds the text.
        tolerance: the fraction of the files that may be broken and is skipped (see `Corpus`).
        cache_dir: where the ids are kept (see `pack`).

    Returns:
        `(train, validation)`, both `CausalBlocks` (of several corpora `train` is `MixedBlocks`, and validation has of each
        its share, one after the other); validation is None if there is none.

    Raises:
        FileNotFoundError: if a named file is absent.
        ValueError: if an argument is out of range, there is no text or too much of it is broken, or there are fewer tokens
            than one batch needs.

    Example:

    >>> import pathlib, tempfile
    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "night.txt").write_text("It was a dark night. " * 100)
    >>> train, validation = causal_blocks(folder, ByteTokenizer(), sequence_length=16, batch_size=4, cache_dir=folder)
    >>> x, y = train[0]
    >>> x.shape, len(train), len(validation)
    ((4, 16), 29, 4)

    `model.fit(train, validation_data=validation, epochs=3)` trains on them.
    """
    if isinstance(files, Mapping) and contiguous:
        raise ValueError("Rows that go on from batch to batch (`contiguous`) are cut out of one corpus: give one.")
    reading = {"cache_dir": cache_dir, "text_field": text_field, "tolerance": tolerance}
    stores, weights, validation_tokens = stores_of(files, tokenizer, validation, validation_fraction, **reading)
    segment_ids = contiguous if segment_ids is None else segment_ids
    shape = {"sequence_length": sequence_length, "batch_size": batch_size, "segment_ids": segment_ids}
    if weights:
        train = MixedBlocks(stores, weights, **shape, seed=seed, shuffle=shuffle)
    else:
        train = CausalBlocks(stores, **shape, seed=seed, contiguous=contiguous, shuffle=shuffle)
    if validation_tokens is None:
        return train, None
    return train, CausalBlocks(validation_tokens, **shape, shuffle=False, complete=True)


def stores_of(files, tokenizer, validation=None, validation_fraction=0.1, **reading):
    """What is trained on and what is validated on, as token stores; arguments as in `causal_blocks`.

    Args:
        **reading: see `pack`.

    Returns:
        A store, or of several corpora a dict of name to store; the weights by the same names, a dict that is empty for one
        corpus; and the store to validate on, or None.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"`validation_fraction` must be at least 0 and below 1, received {validation_fraction}.")
    weights = _weights(files)
    if isinstance(validation, Mapping):
        raise ValueError("`validation` takes files, as a path or a list: weights are for what is trained on.")
    corpora = list(files) if weights else [files]
    stores, held = [pack(corpus, tokenizer, **reading) for corpus in corpora], None
    if validation is not None:
        _warn_of_the_same([corpora, [validation]], "both trained on and validated on")
        held = pack(validation, tokenizer, **reading)
    elif validation_fraction:
        stores, kept = zip(*(split(store, validation_fraction) for store in stores), strict=True)
        held = JoinedStore(kept) if weights else kept[0]
    if not weights:
        return stores[0], {}, held
    _warn_of_the_same([[corpus] for corpus in corpora], "in two of the corpora")
    return dict(zip(weights, stores, strict=True)), weights, held


def _weights(files):
    """The weights of several corpora by their names; nothing where there is one corpus."""
    if not isinstance(files, Mapping):
        return {}
    if not files:
        raise ValueError("`files` is an empty dict: give a weight for at least one corpus.")
    for name, weight in files.items():
        if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 < weight < float("inf"):
            raise ValueError(
                f"A dict of files gives each corpus a weight, a number above 0; {str(name)[:80]!r} has "
                f"{type(weight).__name__} {str(weight)[:80]!r}. (Of a dict of data sets, give one of its values.)"
            )
    names = {}
    for name, weight in files.items():
        name, number = str(name), 2
        while name in names:  # Data sets of one make may have one name.
            name, number = f"{name.removesuffix(f' ({number - 1})')} ({number})", number + 1
        names[name] = float(weight)
    return names


def _warn_of_the_same(groups, what):
    """Warn of a file that is in two of some groups of corpora."""
    seen = {}
    for number, group in enumerate(groups):
        for corpus in group:
            for path in [] if are_documents(corpus) else find_files(corpus):
                if seen.setdefault(path.resolve(), number) != number:
                    warnings.warn(f"{path} is {what}.", stacklevel=4)
                    return
