"""Which tokens of a context stand in the question, too: as loops find them, and what a model makes of it."""

import keras
import numpy as np
import pytest
from helpers import array
from keras import ops

from keras_seqlm.models import RecurrentEncoder, SpanFinder, TransformerEncoder
from keras_seqlm.models.token_heads import matched

ENCODERS = {
    "transformer": lambda types=4: TransformerEncoder(
        20, size="nano", num_layers=1, hidden_dim=16, num_heads=2, max_length=24, num_token_types=types
    ),
    "gru": lambda types=4: RecurrentEncoder(
        20, cell="gru", size="nano", num_layers=1, hidden_dim=16, num_token_types=types
    ),
}


def by_hand(ids, types, length):
    """The types of one row."""
    asked = [place for place in range(1, length) if types[place] == 0]
    found = list(types)
    for place, kind in enumerate(types):
        if kind == 1:
            twins = [other for other in asked if ids[other] == ids[place]]
            before = any(
                place - 1 >= 0 and types[place - 1] == 1 and o - 1 in asked and ids[o - 1] == ids[place - 1]
                for o in twins
            )
            after = any(
                place + 1 < len(ids) and types[place + 1] == 1 and o + 1 in asked and ids[o + 1] == ids[place + 1]
                for o in twins
            )
            found[place] = 1 + bool(twins) + (before or after)
    return found


@pytest.mark.backends
def test_matches_are_those_that_loops_find():
    random = np.random.default_rng(0)
    ids = random.integers(4, 9, (40, 24)).astype("int32")
    borders, lengths = random.integers(1, 12, 40), random.integers(12, 25, 40).astype("int32")
    types = ((np.arange(24) >= borders[:, None]) & (np.arange(24) < lengths[:, None])).astype("int32")  # padding is 0
    found = array(matched(ops.convert_to_tensor(ids), ops.convert_to_tensor(types), ops.convert_to_tensor(lengths)))
    for row, length in enumerate(lengths):
        assert found[row, :length].tolist() == by_hand(ids[row], types[row], length)[:length]
    assert {1, 2, 3} <= set(found.ravel().tolist())
    assert array(matched(ops.ones((2, 1), "int32"), ops.ones((2, 1), "int32"))).tolist() == [[1], [1]]


@pytest.mark.backends
@pytest.mark.parametrize("kind", ENCODERS)
def test_a_row_alone_is_the_row_beside_others_and_a_file_keeps_it(kind, tmp_path):
    model = SpanFinder(ENCODERS[kind](), matches=True)
    model.build()
    random = np.random.default_rng(1)
    ids, lengths = random.integers(4, 12, (3, 14)).astype("int32"), np.array([14, 9, 6], "int32")
    types = np.repeat((np.arange(14) >= 5)[None], 3, axis=0).astype("int32")
    together = array(model({"token_ids": ids, "token_types": types, "lengths": lengths}))
    for row, length in enumerate(lengths):
        alone = array(model({"token_ids": ids[row : row + 1, :length], "token_types": types[row : row + 1, :length]}))
        np.testing.assert_allclose(alone[0], together[row, :, :length], atol=1e-5)
    model.save(tmp_path / "model.keras")
    twin = keras.saving.load_model(tmp_path / "model.keras")
    inputs = {"token_ids": ids, "token_types": types, "lengths": lengths}
    assert twin.matches and twin.backbone.num_token_types == 4
    np.testing.assert_allclose(array(twin(inputs)), together, atol=1e-6)
    blind = SpanFinder(model.backbone)
    blind.build()
    blind.ends.set_weights(model.ends.get_weights())
    assert np.abs(array(blind(inputs)) - together)[:, :, 5:6].max() > 1e-4, "the backbone is shown them"


@pytest.mark.neutral
def test_a_question_names_what_is_asked_of_a_row_of_pairs():
    """The number behind the name that is asked for, among three: without the matches a guess, a third of them."""
    keras.utils.set_random_seed(3)
    random = np.random.default_rng(2)

    def rows(count):
        names = np.array([random.permutation(np.arange(4, 12))[:3] for _ in range(count)])
        numbers, asked = random.integers(12, 20, (count, 3)), random.integers(0, 3, count)
        pairs = np.stack([names, numbers], axis=2).reshape(count, 6)
        ids = np.column_stack([np.full(count, 1), names[np.arange(count), asked], np.full(count, 2), pairs])
        types = np.repeat((np.arange(9) >= 3)[None], count, axis=0)
        places = 4 + 2 * asked
        return {"token_ids": ids.astype("int32"), "token_types": types.astype("int32")}, np.stack(
            [places, places], axis=1
        )

    shares = []
    for matches in (True, False):
        model = SpanFinder(ENCODERS["gru"](), matches=matches)
        model.build()
        jit = keras.backend.backend() == "jax"
        model.compile(keras.optimizers.Adam(0.01), loss=model.default_loss(), jit_compile=jit)
        model.fit(*rows(640), batch_size=32, epochs=2, verbose=0)
        x, y = rows(200)
        shares.append(np.mean(np.argmax(array(model(x)), axis=-1) == y))
    assert shares[0] > 0.95 and shares[1] < 0.6, shares


def test_a_backbone_of_too_few_types_is_refused():
    for types in (0, 3):
        with pytest.raises(ValueError, match=f"knows {types} of them; build it with num_token_types=4"):
            SpanFinder(ENCODERS["gru"](types), matches=True)
    with pytest.raises(ValueError, match="knows 0 of them"):
        SpanFinder(TransformerEncoder(20, size="nano", max_length=8), matches=True)
