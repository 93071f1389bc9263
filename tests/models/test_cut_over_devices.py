"""What devices that share one model exchange: the sums of two products a layer, and no columns of any weight."""

import keras
import pytest

pytestmark = [
    pytest.mark.backends,
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="keras.distribution cuts models on JAX alone"),
]
COUNT = """
    import collections, json, re
    import jax, keras, numpy as np
    from keras_seqlm.models import TransformerLM
    from keras_seqlm.training import Recipe

    jax.config.update("jax_disable_most_optimizations", False)  # it is the program as users have it that is read
    found = {}
    for name, options in {
        "plain": {},
        "llama": {"positions": "rotary", "num_kv_heads": 2, "activation": "swiglu", "norm": "rms", "use_bias": False},
    }.items():
        with Recipe(distribution="model-parallel:2", batch_size=4, steps=10).scope():
            model = TransformerLM(64, num_layers=3, hidden_dim=32, num_heads=4, max_length=16, **options)
            model.build()
        variables, ids = model.trainable_variables, np.ones((4, 16), "int32")

        def loss(values, ids):
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return model.hidden_states({"token_ids": ids}, training=True)[0].var()

        for kind, function in {"forward": loss, "training": jax.grad(loss)}.items():
            text = jax.jit(function).lower([variable.value for variable in variables], ids).compile().as_text()
            kinds = "all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter"
            found[f"{name}, {kind}"] = collections.Counter(re.findall(rf" ({kinds})(?:-start)?\\(", text))
    print(json.dumps(found))
"""


def test_two_sums_a_layer_and_no_other_exchange(in_fork):
    found = in_fork(COUNT, backend="jax", XLA_FLAGS="--xla_force_host_platform_device_count=2")
    layers, embedding = 3, 1
    for name in ("plain", "llama"):
        assert found[f"{name}, forward"] == {"all-reduce": 2 * layers + embedding}
        assert found[f"{name}, training"] == {"all-reduce": 4 * layers + embedding}
