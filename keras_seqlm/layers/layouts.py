"""How weights are cut over devices that share one model: tensor parallelism, as Megatron-LM has it.

The first product of a branch is cut by columns and the second one by rows, so that between the two no device needs
anything of another. A table of tokens and the projection to the vocabulary are cut by tokens. Norms, positions and the
biases behind a cut by rows are whole on every device.

Reference: Shoeybi et al. 2019, arXiv:1909.08053.
"""

import re

import keras

AXIS = "model"  # the axis of the mesh whose devices share one model
COLUMNS, ROWS, VECTOR = (None, AXIS), (AXIS, None), (AXIS,)

# A pattern of weights' paths -> the axes to cut along; what stands second serves where the first does not divide.
ATTENTION = {
    ".*attention/(qkv|query|kv)/kernel": [COLUMNS],
    ".*attention/(qkv|query|kv)/bias": [VECTOR],
    ".*attention/output/kernel": [ROWS],
}
FEED_FORWARD = {
    ".*feed_forward/(gate|up)/kernel": [COLUMNS],
    ".*feed_forward/(gate|up)/bias": [VECTOR],
    ".*feed_forward/down/kernel": [ROWS],
}
VOCABULARY = {
    ".*token_embedding/table": [ROWS, COLUMNS],
    ".*/output_projection/kernel": [COLUMNS, ROWS],
    ".*/output_projection/bias": [VECTOR, (None,)],
    ".*/output_bias": [VECTOR, (None,)],
}
RECURRENT = {
    ".*(simple_rnn|gru|lstm)_cell/(recurrent_)?kernel": [COLUMNS],
    ".*(simple_rnn|lstm)_cell/bias": [VECTOR],
    ".*gru_cell/bias": [COLUMNS],
    ".*/bridge/kernel": [ROWS],
    ".*/(query_of_attention|keys_of_attention|output_of_state|output_of_context|first_state)/kernel": [COLUMNS],
    ".*/(query_of_attention|output_of_state|first_state)/bias": [VECTOR],
    ".*/recurrent/scores": [VECTOR],
}
LAYOUTS = {**ATTENTION, **FEED_FORWARD, **VOCABULARY, **RECURRENT}


def axes_of(path, shape, devices):
    """Which axes of a weight are cut, by its path alone, so that it is known before the weight is made.

    Args:
        path: of the weight, as `transformer_lm/block_0/attention/qkv/kernel`.
        shape: of the weight.
        devices: how many share the model.

    Returns:
        A tuple as long as `shape`, of `AXIS` and None.

    Raises:
        ValueError: the devices do not divide the axis that is to be cut.

    Example:

    >>> axes_of("lm/block_0/attention/qkv/kernel", (96, 288), devices=4)
    (None, 'model')
    """
    choices = next((choices for pattern, choices in LAYOUTS.items() if re.fullmatch(pattern, path)), None)
    if choices is None:
        return (None,) * len(shape)
    for axes in choices:
        if all(axis is None or size % devices == 0 for size, axis in zip(shape, axes, strict=True)):
            return axes
    size = shape[choices[0].index(AXIS)]
    fitting = [count for count in range(1, min(size, 64) + 1) if size % count == 0]
    raise ValueError(
        f"{path} of shape {tuple(shape)} is cut along its axis of {size}, which {devices} devices do not divide; give the "
        f"model widths that {devices} divides, or use distribution='model-parallel:N' with N one of {fitting}"
    )


def layout_map(mesh, layouts, vocabulary_size):
    """A `keras.distribution.LayoutMap` of some of the tables above.

    Args:
        mesh: a `keras.distribution.DeviceMesh` with an axis called "model".
        layouts: pattern -> choices, as `ATTENTION`.
        vocabulary_size: it decides by which axis a table of tokens is cut.

    Raises:
        ValueError: the mesh has no such axis.
    """
    if AXIS not in mesh.axis_names:
        raise ValueError(f"the mesh needs an axis called {AXIS!r}, got {list(mesh.axis_names)}")
    divides = vocabulary_size % mesh.shape[list(mesh.axis_names).index(AXIS)] == 0
    layouts_of = keras.distribution.LayoutMap(mesh)
    for pattern, choices in layouts.items():
        layouts_of[pattern] = choices[0] if divides else choices[-1]
    return layouts_of
