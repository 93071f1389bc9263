"""Where weights are cut, by their paths alone; that they train so is tested in tests/devices/test_strategies.py."""

import keras
import numpy as np
import pytest
from helpers import MODELS, new_model

from keras_seqlm.layers.layouts import LAYOUTS, axes_of, layout_map
from keras_seqlm.models import Seq2SeqLM

ENCODER_DECODERS = {
    "transformer": {"num_heads": 4, "max_length": 8},
    "additive": {"encoder": "lstm"},
    "general": {"encoder": "gru", "attention": "general"},
}


@pytest.mark.parametrize("name", [*MODELS, *ENCODER_DECODERS])
def test_all_large_weights_of_every_model_are_cut(name):
    if name in ENCODER_DECODERS:
        model = Seq2SeqLM(40, size="nano", num_layers=2, hidden_dim=16, **ENCODER_DECODERS[name])
        model.build()
    else:
        model = new_model(name)
    cut, whole = [], []
    for variable in model.trainable_variables:
        axes = axes_of(variable.path, variable.shape, devices=2)
        assert len(axes) == len(variable.shape)
        if "positions" not in variable.path:
            (cut if "model" in axes else whole).append(int(np.prod(variable.shape)))
    assert sum(whole) < sum(cut) / 20


def test_the_second_choice_serves_where_the_first_does_not_divide():
    assert axes_of("lm/token_embedding/table", (24, 16), devices=8) == ("model", None)
    assert axes_of("lm/token_embedding/table", (23, 16), devices=8) == (None, "model")
    assert axes_of("lm/output_bias", (23,), devices=2) == (None,)
    assert axes_of("lm/my_own/kernel", (7, 7), devices=2) == (None, None)


def test_what_does_not_divide_is_named_with_the_way_out():
    with pytest.raises(ValueError, match=r"block_0/attention/qkv/kernel of shape \(6, 18\).*axis of 18.*4 devices"):
        axes_of("lm/block_0/attention/qkv/kernel", (6, 18), devices=4)
    with pytest.raises(ValueError, match=r"N one of \[1, 2, 3, 6, 9, 18\]"):
        axes_of("lm/block_0/attention/qkv/bias", (18,), devices=4)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="keras.distribution")
@pytest.mark.backends
@pytest.mark.parametrize("name", ["learned", "gru"])
def test_a_models_map_is_for_all_its_weights_before_they_are_made(name):
    kind, parts = MODELS[name]
    mesh = keras.distribution.DeviceMesh((1, 1), ["batch", "model"], ["cpu:0"])
    found = kind(40, **parts).layout_map(mesh)
    for variable in new_model(name).variables:
        layout = found[variable.path]
        axes = (None,) * len(variable.shape) if layout is None else layout.axes
        assert axes == axes_of(variable.path, variable.shape, devices=1)
    with pytest.raises(ValueError, match="needs an axis called 'model'"):
        layout_map(keras.distribution.DeviceMesh((1,), ["batch"], ["cpu:0"]), LAYOUTS, vocabulary_size=40)
