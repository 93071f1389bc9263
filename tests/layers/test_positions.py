import numpy as np
import pytest
from helpers import array

from keras_seqlm.layers import LearnedPositions, SinusoidalPositions, rotate

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


def rotated(x, positions, base):
    """As complex numbers: (x_i + i x_{i + d/2}) e^{i p / base^(2i/d)}."""
    half = x.shape[-1] // 2
    turn = np.exp(1j * positions[:, None, :, None] * base ** (-2.0 * np.arange(half) / x.shape[-1]))
    turned = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([turned.real, turned.imag], -1)


def test_rotation_is_a_complex_product():
    x = np.random.default_rng(1).standard_normal((2, 3, 3, 8)).astype("float32")
    np.testing.assert_allclose(array(rotate(x, RAGGED, base=100.0)), rotated(x, RAGGED, 100.0), atol=1e-5)


def test_rotated_products_depend_on_distance_alone():
    x = np.random.default_rng(1).standard_normal((1, 1, 2, 8)).astype("float32")

    def product(left, right):
        query, key = array(rotate(x, np.array([[left, right]], "int32")))[0, 0]
        return query @ key

    assert product(1, 4) == pytest.approx(product(21, 24), abs=1e-5)
    assert abs(product(1, 4) - product(1, 9)) > 1e-3
