"""Models under `FusedCrossEntropy`: the numbers of the plain loss in `fit`, and logits everywhere else."""

import copy

import keras
import numpy as np
import pytest
from cases import on_all, some_of
from helpers import MODELS, VOCABULARY, array, ids_of
from helpers import new_model as model_of
from keras import ops

from keras_seqlm.losses import CrossEntropy, FusedCrossEntropy
from keras_seqlm.models import LanguageModel, RecurrentLM, TransformerLM

pytestmark = pytest.mark.neutral

IDS = ids_of(4, 9)
X, Y = IDS[:, :-1], IDS[:, 1:]
WEIGHTS = np.random.default_rng(0).random((4, 8)).astype("float32")
KERAS = keras.losses.SparseCategoricalCrossentropy
ON_ALL_BACKENDS = ("untied",)
TIED, BRIDGED, UNTIED = ("learned", "rnn"), ("lstm",), ("untied", "gru")


def new_model(name, **options):
    """Of one layer: what lies below the projection has no part in its loss."""
    return model_of(name, **{"num_layers": 1, **options})


def compiled(model, loss, **options):
    jit = keras.backend.backend() == "jax" and not options.get("run_eagerly")
    model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=jit, **options)
    return model


def losses_of_fit(model, loss, x=X, y=Y, weights=WEIGHTS, **options):
    """Three steps, then the loss of `evaluate`."""
    compiled(model, loss, **options)
    history = model.fit(x, y, sample_weight=weights, batch_size=4, epochs=3, verbose=0, shuffle=False)
    return [*history.history["loss"], model.evaluate(x, y, sample_weight=weights, batch_size=4, verbose=0)]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.backends) if name in ON_ALL_BACKENDS else name
        for name in TIED + BRIDGED + UNTIED
    ],
)
def test_fit_gives_the_numbers_of_the_plain_loss(name):
    plain = losses_of_fit(new_model(name), KERAS(from_logits=True))
    fused = losses_of_fit(new_model(name), FusedCrossEntropy(chunk_size=9))
    assert fused == pytest.approx(plain, abs=1e-5)
    assert plain[-1] < plain[0] - 0.05


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"ignore_class": int(Y[0, 0])}, {}),
        ({"reduction": "mean_with_sample_weight"}, {}),
        ({"reduction": "sum"}, {"loss_weights": 0.1}),
    ],
)
def test_reductions_and_weights_in_fit(options, more):
    more = {"run_eagerly": True, **more}
    plain = losses_of_fit(new_model("learned"), KERAS(from_logits=True, **options), **more)
    fused = losses_of_fit(new_model("learned"), FusedCrossEntropy(chunk_size=9, **options), **more)
    assert fused == pytest.approx(plain, rel=1e-5)


def test_smoothing_z_loss_and_penalties_in_fit():
    def model():
        model = new_model("gru")
        model.output_projection.kernel_regularizer = keras.regularizers.L2(0.01)
        return model

    options = {"label_smoothing": 0.1, "z_loss": 1e-3}
    plain = losses_of_fit(model(), CrossEntropy(**options), run_eagerly=True)
    fused = losses_of_fit(model(), FusedCrossEntropy(chunk_size=9, **options), run_eagerly=True)
    assert fused == pytest.approx(plain, abs=1e-5)


def test_documents_and_carried_state():
    inputs = {"token_ids": X, "segment_ids": np.repeat([[0, 0, 0, 1, 1, 1, 1, 1]], 4, axis=0).astype("int32")}
    results = []
    for loss in (KERAS(from_logits=True), FusedCrossEntropy(chunk_size=9)):
        documents = losses_of_fit(new_model("rotary"), loss, inputs, run_eagerly=True)
        results.append(documents + losses_of_fit(new_model("lstm", stateful_batch_size=4), loss, run_eagerly=True))
    assert results[1] == pytest.approx(results[0], abs=1e-5)


@pytest.mark.parametrize(("name", "dtype"), on_all([("untied", "mixed_bfloat16"), ("rnn", "mixed_float16")], 0))
def test_mixed_precision_trains_as_with_the_plain_loss(name, dtype):
    plain = losses_of_fit(new_model(name, dtype=dtype), KERAS(from_logits=True))
    fused = losses_of_fit(new_model(name, dtype=dtype), FusedCrossEntropy(chunk_size=9))
    assert fused == pytest.approx(plain, abs=0.03)
    assert fused[-1] < fused[0] - 0.3


@pytest.mark.backends
def test_no_logits_in_a_step_and_logits_everywhere_else(monkeypatch):
    model = compiled(new_model("lstm"), FusedCrossEntropy())
    model.train_on_batch(X, Y)
    model.test_on_batch(X, Y)
    logits = array(model(X))
    assert logits.shape == (4, 8, VOCABULARY)
    np.testing.assert_allclose(model.predict(X, verbose=0), logits, atol=1e-5)
    assert len(model.generate([4, 5, 6], max_new_tokens=3, eos_id=None)) == 3

    def refuse(hidden):
        raise AssertionError("logits were made")

    monkeypatch.setattr(model, "logits_of", refuse)  # other shapes, so that the steps are traced anew
    model.train_on_batch(X[:2], Y[:2])
    model.test_on_batch(X[:2], Y[:2])
    with pytest.raises(AssertionError, match="logits were made"):
        model(X[:3])


@pytest.mark.backends
def test_a_step_of_ones_own_has_logits():
    model = compiled(new_model("learned"), FusedCrossEntropy(chunk_size=9))
    expected = array(KERAS(from_logits=True)(Y, model(X), WEIGHTS))
    assert array(model.compute_loss(X, Y, model(X), WEIGHTS)) == pytest.approx(expected, abs=1e-6)


def test_a_step_that_fails_leaves_the_model_as_it_was():
    model = compiled(new_model("learned"), FusedCrossEntropy(), run_eagerly=True)
    with pytest.raises(Exception, match="shape|dimension|size|value"):
        model.train_on_batch(X, np.zeros((4, 7), "int32"))
    assert model(X).shape == (4, 8, VOCABULARY)


@pytest.mark.tensorflow
def test_a_model_inside_the_step_of_another_gives_logits():
    class Student(TransformerLM):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            assert tuple(teacher(x).shape[1:]) == (8, VOCABULARY)
            assert tuple(y_pred.shape[1:]) == (8, 16)
            return super().compute_loss(x, y, y_pred, sample_weight, training)

    teacher = compiled(new_model("learned"), FusedCrossEntropy())
    student = Student(VOCABULARY, **MODELS["learned"][1])
    student.build()
    assert compiled(student, FusedCrossEntropy()).train_on_batch(X, Y) > 0


@pytest.mark.backends
def test_metrics_that_need_logits_are_refused():
    model = new_model("learned")
    with pytest.raises(ValueError, match="accuracy, perplexity.*CrossEntropy"):
        model.compile("adam", FusedCrossEntropy(), metrics=["accuracy", keras.metrics.Mean(name="perplexity")])
    with pytest.raises(ValueError, match="sparse_categorical_accuracy"):
        model.compile("adam", FusedCrossEntropy(), weighted_metrics=[keras.metrics.sparse_categorical_accuracy])
    with pytest.raises(ValueError, match="the only loss"):
        model.compile("adam", [FusedCrossEntropy(), CrossEntropy()])
    compiled(model, FusedCrossEntropy(), metrics=[], weighted_metrics=None)
    compiled(model, CrossEntropy(), metrics=["accuracy"])


@pytest.mark.parametrize("loss", on_all([CrossEntropy(z_loss=1e-4), FusedCrossEntropy(0.1, 1e-4, chunk_size=9)], 1))
def test_a_file_goes_on_training(loss, tmp_path):
    model = compiled(new_model("lstm"), copy.copy(loss))
    model.train_on_batch(X, Y)
    model.save(tmp_path / "model.keras")
    twin = keras.saving.load_model(tmp_path / "model.keras")
    assert type(twin.loss) is type(loss) and twin.loss.get_config() == loss.get_config()
    np.testing.assert_array_equal(array(twin(X)), array(model(X)))
    losses = [[float(each.train_on_batch(X, Y)) for _ in range(2)] for each in (model, twin)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@keras.saving.register_keras_serializable("tests")
class Scaled(RecurrentLM):
    """A model of the user's own, whose logits no plain projection makes."""

    def logits_of(self, hidden):
        return 2.0 * super().logits_of(hidden)


@keras.saving.register_keras_serializable("tests")
class Bag(LanguageModel):
    """A model of the user's own with a projection: a mean of the embeddings so far, and a Dense layer."""

    def __init__(self, vocabulary_size, activation=None, name=None, dtype=None, trainable=True):
        super().__init__(name=name, dtype=dtype, trainable=trainable)
        self.vocabulary_size, self.activation = vocabulary_size, activation
        self.embedding = keras.layers.Embedding(vocabulary_size, 6)
        self.output_layer = keras.layers.Dense(vocabulary_size, activation=activation)

    def build(self, inputs_shape=None, state_shape=None):
        self.embedding.build((None, None))
        self.output_layer.build((None, None, 6))
        self.built = True

    def hidden_states(self, inputs, state=None, training=None):
        return ops.cumsum(self.embedding(inputs["token_ids"]), axis=1), None

    def projection(self):
        return self.output_layer, None


@pytest.mark.backends
def test_models_of_the_users_own():
    model = Scaled(VOCABULARY, **MODELS["rnn"][1])
    assert losses_of_fit(model, KERAS(from_logits=True))[-1] > 0
    with pytest.raises(ValueError, match=r"Scaled defines logits_of; define projection\(\).*CrossEntropy"):
        model.compile("adam", FusedCrossEntropy())
    bags = [Bag(VOCABULARY), Bag(VOCABULARY)]
    for bag in bags:
        bag.build()
    bags[1].set_weights(bags[0].get_weights())
    plain = losses_of_fit(bags[0], KERAS(from_logits=True))
    assert losses_of_fit(bags[1], FusedCrossEntropy(chunk_size=9)) == pytest.approx(plain, abs=1e-5)
    bag = Bag(VOCABULARY, activation="tanh")
    with pytest.raises(ValueError, match="needs a linear projection.*use CrossEntropy"):
        compiled(bag, FusedCrossEntropy(), run_eagerly=True).train_on_batch(X, Y)


def test_a_call_of_the_users_own_that_makes_logits_is_refused():
    class Tempered(TransformerLM):
        def call(self, inputs, state=None, training=None):
            hidden, _ = self.hidden_states({"token_ids": inputs}, None, training)
            return 2.0 * self.logits_of(hidden)

    model = Tempered(VOCABULARY, **MODELS["learned"][1])
    model.build()
    with pytest.raises(ValueError, match=r"of width 16, and a step of Tempered gave shape \(4, 8, 40\)"):
        compiled(model, FusedCrossEntropy(), run_eagerly=True).train_on_batch(X, Y)


def test_a_quantized_projection_is_refused():
    model = new_model("untied")
    model.output_projection.quantize("int8")
    with pytest.raises(ValueError, match="output_projection is quantized"):
        compiled(model, FusedCrossEntropy(), run_eagerly=True).test_on_batch(X, Y)


def test_low_rank_adapters_of_the_projection_learn():
    results = []
    for loss in (KERAS(from_logits=True), FusedCrossEntropy(chunk_size=9)):
        keras.utils.set_random_seed(1)
        model = new_model("untied")
        model.output_projection.enable_lora(2)
        results.append(losses_of_fit(model, loss, run_eagerly=True))
    assert results[1] == pytest.approx(results[0], abs=1e-5)
    assert results[0][-1] < results[0][0]


TWO_DEVICES = """
    import json, os, sys
    backend = os.environ["KERAS_BACKEND"]
    import keras, numpy as np
    from keras_seqlm.losses import CrossEntropy, FusedCrossEntropy
    from keras_seqlm.models import LanguageModel, TransformerLM

    ids = np.random.default_rng(0).integers(0, 300, (4, 17)).astype("int32")
    x, y = ids[:, :-1], ids[:, 1:].copy()
    y[0, 3:], y[1, 10:] = 7, 7  # what is ignored lies in the rows of one of the two devices
    padded = {"token_ids": x, "lengths": np.array([2, 9, 16, 16], "int32")}
    cases = {
        "fused": (FusedCrossEntropy(z_loss=1e-3, chunk_size=16), x),
        "fused, ignored": (FusedCrossEntropy(ignore_class=7, chunk_size=16), x),
        "plain, padded": (CrossEntropy(), padded),
        "Keras's, ignored and padded": (keras.losses.SparseCategoricalCrossentropy(True, ignore_class=7), padded),
    }

    class Bigram(LanguageModel):  # of one matrix, which compiles fast
        def __init__(self):
            super().__init__()
            self.matrix = keras.layers.Dense(300, use_bias=False)

        def build(self, inputs_shape=None, state_shape=None):
            self.matrix.build((None, None, 300))
            self.built = True

        def hidden_states(self, inputs, state=None, training=None):
            return keras.ops.one_hot(inputs["token_ids"], 300), None

        def projection(self):
            return self.matrix, None

    def losses(name, loss, x):
        keras.utils.set_random_seed(3)
        transformer = {"num_layers": 1, "hidden_dim": 16, "num_heads": 2, "max_length": 16}
        model = TransformerLM(300, size="nano", **transformer) if name == "fused" else Bigram()
        model.build()
        # SGD, which shows the size of a gradient
        model.compile(keras.optimizers.SGD(0.5 if name == "fused" else 30.0), loss, jit_compile=backend == "jax")
        history = model.fit(x, y, batch_size=4, epochs=4, verbose=0, shuffle=False)
        return history.history["loss"] + [model.evaluate(x, y, batch_size=4, verbose=0)]

    one = {name: losses(name, *case) for name, case in cases.items()}
    if backend == "tensorflow":
        import tensorflow as tf
        devices = tf.config.list_physical_devices("CPU")
        scope = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()
    else:
        scope = keras.distribution.DataParallel(devices=keras.distribution.list_devices()).scope()
    with scope:
        both = {name: losses(name, *case) for name, case in cases.items()}
    print(json.dumps([one, both]))
"""


@pytest.mark.tensorflow
@pytest.mark.slow
@pytest.mark.parametrize("backend", some_of(["tensorflow", "jax"], "tensorflow"))
def test_two_devices_train_as_one_does(backend, in_fork):
    """And the mean is over the tokens that count on both of them."""
    pytest.importorskip(backend)
    logical = "import tensorflow as tf; cpu = tf.config.list_physical_devices('CPU')[0]; "
    logical += "tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)"
    script = (f"\n    {logical}" if backend == "tensorflow" else "") + TWO_DEVICES
    one, both = in_fork(script, backend=backend, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    for name, losses in one.items():
        assert losses[-1] < losses[0] - 0.05, name
        assert both[name] == pytest.approx(losses, abs=1e-5), name


EXCHANGES = """
    import json, re
    import jax, keras, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from keras_seqlm.losses import fused_cross_entropy

    jax.config.update("jax_disable_most_optimizations", False)  # it is the program as users have it that is read
    vocabulary, width, rows, time = 56, 8, 8, 12
    random = np.random.default_rng(0)
    hidden, table = (random.standard_normal((n, width)).astype("float32") for n in (rows * time, vocabulary))
    targets, weights = random.integers(0, vocabulary, (rows, time)), random.random((rows, time))
    arrays = hidden.reshape(rows, time, width), table, targets.astype("int32"), weights.astype("float32")

    def loss(hidden, table, targets, weights):
        return fused_cross_entropy(hidden, table, None, targets, weights, chunk_size=16)

    def step(*arrays):
        return jax.value_and_grad(loss, argnums=(0, 1))(*arrays)

    one, results = jax.jit(step)(*arrays), {}
    mesh = keras.distribution.DeviceMesh((2, 2), ["batch", "model"])
    layouts = keras.distribution.LayoutMap(mesh)
    for name, distribution, cut in (
        ("data", keras.distribution.DataParallel(devices=keras.distribution.list_devices()), ()),
        ("model", keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch"), ("model",)),
    ):
        mesh = distribution.device_mesh.backend_mesh
        specs = [("batch",), cut, ("batch",), ("batch",)]
        spread = [jax.device_put(a, NamedSharding(mesh, PartitionSpec(*s))) for a, s in zip(arrays, specs)]
        with distribution.scope():
            program = jax.jit(lambda *arrays: step(*arrays)).lower(*spread).compile()
        found = program(*spread)
        parts = {}
        for header, body in re.findall(r"^(\\S+ [^\\n]*) [{]\\n(.*?)\\n[}]", program.as_text(), re.MULTILINE | re.DOTALL):
            parts["main" if header.startswith("ENTRY") else header] = body
        part = list(found[1][1].sharding.shard_shape((vocabulary, width)))
        reduced = {}
        for header, body in parts.items():
            lines = [line.split(" all-reduce(")[0] for line in body.splitlines() if " all-reduce(" in line]
            shapes = [json.loads(f"[{shape}]") for shape in re.findall("f32\\\\[([0-9,]*)\\\\]", " ".join(lines))]
            reduced[header] = sum(np.prod(shape) == np.prod(part) for shape in shapes)
        results[name] = {
            "outside": int(reduced.pop("main")),
            "inside": int(sum(reduced.values())),
            "loops": sum(" while(" in line for line in parts["main"].splitlines()),
            "part": part,
            "furthest": [float(abs(np.array(a) - b).max() / abs(b).max()) for a, b in zip(*map(jax.tree.leaves, (found, one)))],
        }
    print(json.dumps(results))
"""


@pytest.mark.tensorflow
@pytest.mark.slow
def test_the_kernels_gradient_is_exchanged_once(in_fork):
    """Of four devices the compiled program says so: one all-reduce of it, after the loop over chunks, and none inside."""
    pytest.importorskip("jax")
    results = in_fork(EXCHANGES, backend="jax", XLA_FLAGS="--xla_force_host_platform_device_count=4")
    assert {name: result["part"] for name, result in results.items()} == {"data": [56, 8], "model": [28, 8]}
    for result in results.values():
        assert (result["outside"], result["inside"], result["loops"]) == (1, 0, 1)
        assert max(result["furthest"]) < 2e-6
