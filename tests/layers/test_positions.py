import numpy as np
import pytest
from helpers import array
from keras import ops

from keras_seqlm.layers import LearnedPositions, SinusoidalPositions, rotary_frequencies, rotate, rotation

pytestmark = pytest.mark.backends
RAGGED = np.array([[0, 1, 2], [7, 3, 0]], "int32")


@pytest.mark.parametrize("offset", [0, 2])
def test_learned_positions_are_rows_behind_the_offset(offset):
    layer = LearnedPositions(max_length=8, hidden_dim=4, offset=offset)
    vectors = array(layer(RAGGED))
    assert layer.table.shape == (8 + offset, 4)
    np.testing.assert_array_equal(vectors, array(layer.table)[RAGGED + offset])


def test_a_position_past_the_end_reads_the_last_row():
    layer = LearnedPositions(max_length=8, hidden_dim=4, offset=2)
    vectors = array(layer(np.array([[7, 8, 100]], "int32")))[0]
    np.testing.assert_array_equal(vectors[1:], np.stack([vectors[0]] * 2))


def test_sinusoidal_positions_are_the_papers():
    width, base = 6, 50.0
    expected = np.zeros((*RAGGED.shape, width))
    for i in range(width // 2):
        expected[..., 2 * i] = np.sin(RAGGED / base ** (2 * i / width))
        expected[..., 2 * i + 1] = np.cos(RAGGED / base ** (2 * i / width))
    np.testing.assert_allclose(array(SinusoidalPositions(width, base)(RAGGED)), expected, atol=1e-5)


def test_an_odd_width_has_no_sinusoidal_positions():
    with pytest.raises(ValueError, match="even hidden_dim, got 5"):
        SinusoidalPositions(5)


def rotated(x, positions, frequencies):
    """As complex numbers: (x_i + i x_{i + d/2}) e^{i p f_i}, x (batch, time, heads, width)."""
    half = x.shape[-1] // 2
    turn = np.exp(1j * positions[:, :, None, None] * frequencies)
    turned = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([turned.real, turned.imag], -1)


def turned(x, positions, base=10000.0):
    return array(rotate(x, rotation(positions, rotary_frequencies(x.shape[-1], base))))


def test_rotation_is_a_complex_product():
    x = np.random.default_rng(1).standard_normal((2, 3, 3, 8)).astype("float32")
    frequencies = 100.0 ** (-2.0 * np.arange(4) / 8)
    np.testing.assert_allclose(turned(x, RAGGED, base=100.0), rotated(x, RAGGED, frequencies), atol=1e-5)


def test_rotated_products_depend_on_distance_alone():
    x = np.random.default_rng(1).standard_normal((1, 2, 1, 8)).astype("float32")

    def product(left, right):
        query, key = turned(x, np.array([[left, right]], "int32"))[0, :, 0]
        return query @ key

    assert product(1, 4) == pytest.approx(product(21, 24), abs=1e-5)
    assert abs(product(1, 4) - product(1, 9)) > 1e-3


def test_the_rotation_is_made_in_float32_whatever_is_turned():
    x = np.random.default_rng(1).standard_normal((1, 3, 1, 8)).astype("float32")
    half = ops.cast(x, "bfloat16")
    result = rotate(half, rotation(np.array([[1000, 2000, 3001]], "int32"), rotary_frequencies(8)))
    assert "bfloat16" in str(result.dtype)
    exact = rotated(array(ops.cast(half, "float32")), np.array([[1000, 2000, 3001]]), 10000.0 ** (-np.arange(4) / 4))
    assert np.abs(array(ops.cast(result, "float32")) - exact).max() <= 2**-8 * np.abs(exact).max()


LLAMA3 = {
    "type": "llama3",
    "factor": 8.0,
    "low_frequency_factor": 1.0,
    "high_frequency_factor": 4.0,
    "original_max_length": 8192,
}


def test_scaled_frequencies_are_those_of_the_definition():
    """Llama 3.1's, wavelength by wavelength as its report's code decides; and those that Hugging Face computes."""
    plain = 500000.0 ** (-2.0 * np.arange(64) / 128)
    np.testing.assert_allclose(rotary_frequencies(128, 500000.0), plain, rtol=1e-12)
    linear = rotary_frequencies(128, 500000.0, {"type": "linear", "factor": 4.0})
    np.testing.assert_allclose(linear, plain / 4, rtol=1e-12)
    found = rotary_frequencies(128, 500000.0, LLAMA3)
    for frequency, scaled in zip(plain, found, strict=True):
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            assert scaled == pytest.approx(frequency, rel=1e-12)
        elif wavelength > 8192:
            assert scaled == pytest.approx(frequency / 8, rel=1e-12)
        else:
            share = (8192 / wavelength - 1) / (4 - 1)
            assert scaled == pytest.approx((1 - share) * frequency / 8 + share * frequency, rel=1e-12)
    assert len(set(np.round(found / plain, 6))) > 3  # below, between, above


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 3}, "even head_dim, got 3"),
        ({"base": 0.0}, "rotary_base must be a finite number above 0, got 0.0"),
        ({"scaling": {"type": "yarn"}}, "must be a dict whose 'type' is one of .*'linear', 'llama3'"),
        ({"scaling": {"factor": 2.0}}, "must be a dict whose 'type' is one of"),
        ({"scaling": {"type": "linear"}}, "of type 'linear' takes .*'factor'"),
        ({"scaling": {"type": "linear", "factor": -1.0}}, "each a number above 0"),
        ({"scaling": LLAMA3 | {"low_frequency_factor": 4.0}}, "must be below high_frequency_factor, got 4.0 and 4.0"),
    ],
)
def test_frequencies_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        rotary_frequencies(**{"head_dim": 8, **options})
