"""The language models as their papers write them: NumPy, float64, one sequence, from token ids to logits.

Nothing here is fast and nothing is shared with the package, so that a mistake there finds no accomplice here. Weights
come by the names of the papers' letters (`weights.py` splits a model's own), options by the names of the models'
arguments; what is not given has the default that the documentation states.

A product is written as in the paper at hand: x W for a Transformer, whose x is a row, W x for a recurrent network.

`rounded` says how numbers are kept between two operations: exactly, or in a type of half precision. Scores, softmax,
variances and recurrent states are exact in both, as every implementation keeps them in float32.
"""

import math

import numpy as np

TRANSFORMER = {
    "num_kv_heads": None,  # as many as num_heads
    "head_dim": None,  # hidden_dim / num_heads
    "activation": "gelu_tanh",
    "norm": "layer",
    "norm_first": True,
    "epsilon": 1e-5,
    "positions": "learned",
    "rotary_base": 10000.0,
    "rotary_scaling": None,
    "window": None,
    "attention_scale": None,  # 1 / sqrt(head_dim)
    "tie_embedding": True,
    "scale_embedding": None,  # beside sinusoidal positions
    "use_bias": True,
    "qkv_bias": None,  # as use_bias
    "output_bias": None,
    "feed_forward_bias": None,
}
RECURRENT = {"cell": "lstm", "embedding_dim": None, "tie_embedding": True}


def exact(x):
    return x


def transformer(weights, options, token_ids, segment_ids=None, rounded=exact):
    """Logits (time, vocabulary). Vaswani et al. 2017, arXiv:1706.03762; as a language model Radford et al. 2018, 2019.

    With `segment_ids`, several documents lie in one sequence: none sees another, and each counts from position 0.
    """
    o, weights = {**TRANSFORMER, **options}, {name: rounded(weight) for name, weight in weights.items()}
    segment_ids = [0] * len(token_ids) if segment_ids is None else list(segment_ids)
    positions = [t - segment_ids.index(segment) for t, segment in enumerate(segment_ids)]
    width = o["hidden_dim"]

    x = np.array([weights["token_embedding"][token] for token in token_ids])  # (time, hidden)
    if o["scale_embedding"] or (o["scale_embedding"] is None and o["positions"] == "sinusoidal"):
        x = rounded(x * rounded(np.float64(math.sqrt(width))))  # 3.4: "we multiply those weights by sqrt(d_model)"
    if o["positions"] == "learned":
        x = rounded(x + np.array([weights["positions"][p] for p in positions]))
    if o["positions"] == "sinusoidal":
        x = rounded(x + rounded(np.array([sinusoid(p, width) for p in positions])))

    for i in range(o["num_layers"]):
        block = {name.removeprefix(f"block_{i}/"): w for name, w in weights.items() if name.startswith(f"block_{i}/")}
        if o["norm_first"]:  # Radford et al. 2019, section 2.3; Xiong et al. 2020, arXiv:2002.04745, figure 1 (b)
            attended = attention(
                normal(x, block, "attention_norm", o, rounded), block, o, positions, segment_ids, rounded
            )
            x = rounded(x + attended)
            x = rounded(x + feed_forward(normal(x, block, "feed_forward_norm", o, rounded), block, o, rounded))
        else:  # Vaswani et al. 2017, section 3.1: LayerNorm(x + Sublayer(x))
            attended = attention(x, block, o, positions, segment_ids, rounded)
            x = normal(rounded(x + attended), block, "attention_norm", o, rounded)
            x = normal(rounded(x + feed_forward(x, block, o, rounded)), block, "feed_forward_norm", o, rounded)
    if o["norm_first"]:
        x = normal(x, weights, "output_norm", o, rounded)
    return rounded(x @ (weights["token_embedding"].T if o["tie_embedding"] else weights["output_projection"]))


def attention(x, w, o, positions, segment_ids, rounded):
    """head_i = softmax(Q K^T / sqrt(d_k)) V, concat(head_1, ..., head_h) W_O. Vaswani et al. 2017, section 3.2.

    Grouped queries: neighbours share a key-value head (Ainslie et al. 2023, arXiv:2305.13245, figure 2). A window: of
    the tokens up to its own each sees the last few (Beltagy et al. 2020, arXiv:2004.05150).
    """
    time, heads = len(x), o["num_heads"]
    kv_heads = o["num_kv_heads"] or heads
    head_dim = o["head_dim"] or o["hidden_dim"] // heads
    scale = o["attention_scale"] or 1.0 / math.sqrt(head_dim)
    has_bias = given(o["qkv_bias"], o["use_bias"])
    outputs = []
    for i in range(heads):
        shared = i // (heads // kv_heads)
        query, key, value = (
            linear(x, w[name][head], w[f"{name}_bias"][head] if has_bias else None, rounded)
            for name, head in (("query", i), ("key", shared), ("value", shared))
        )
        if o["positions"] == "rotary":
            query, key = (
                rounded(np.array([turned(vector, p, o) for vector, p in zip(part, positions, strict=True)]))
                for part in (query, key)
            )
        output = np.zeros((time, head_dim))
        for t in range(time):
            seen = [s for s in range(t + 1) if segment_ids[s] == segment_ids[t] and t - s < (o["window"] or time)]
            scores = np.array([scale * np.dot(query[t], key[s]) for s in seen])
            for probability, s in zip(softmax(scores), seen, strict=True):
                output[t] += probability * value[s]
        outputs.append(rounded(output))
    has_bias = given(o["output_bias"], o["use_bias"])
    return linear(np.concatenate(outputs, axis=-1), w["output"], w["output_bias"] if has_bias else None, rounded)


def feed_forward(x, w, o, rounded):
    """f(x W_1 + b_1) W_2 + b_2 (Vaswani et al. 2017, section 3.3), or gated: Shazeer 2020, arXiv:2002.05202, (6)."""
    has_bias = given(o["feed_forward_bias"], o["use_bias"])

    def product(x, name):
        return linear(x, w[name], w[f"{name}_bias"] if has_bias else None, rounded)

    if o["activation"] in GATED:
        middle = rounded(rounded(GATED[o["activation"]](product(x, "gate"))) * product(x, "up"))
    else:
        middle = rounded(PLAIN[o["activation"]](product(x, "up")))
    return product(middle, "down")


def linear(x, weight, bias, rounded):
    product = rounded(x @ weight)
    return product if bias is None else rounded(product + bias)


def relu(x):
    return np.maximum(x, 0.0)


def gelu(x):
    """x Phi(x), with Phi the normal distribution's. Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2."""
    return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def gelu_tanh(x):
    """The approximation of the same section, which GPT-2 has."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def swish(x):
    """x sigmoid(x). Ramachandran et al. 2017, arXiv:1710.05941."""
    return x * sigmoid(x)


PLAIN = {"relu": relu, "gelu": gelu, "gelu_tanh": gelu_tanh}
GATED = {"swiglu": swish, "geglu": gelu_tanh}  # geglu with the approximation, as T5 1.1 has it


def normal(x, w, name, o, rounded):
    """LayerNorm (Ba et al. 2016, arXiv:1607.06450), or RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467, (4))."""
    rows = []
    for row in x:
        if o["norm"] == "layer":
            mean = np.mean(row)
            variance = np.mean((row - mean) ** 2)
            rows.append((row - mean) / math.sqrt(variance + o["epsilon"]) * w[name] + w[f"{name}_bias"])
        else:
            rows.append(row / math.sqrt(np.mean(row**2) + o["epsilon"]) * w[name])
    return rounded(np.array(rows))


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def sinusoid(position, width):
    """PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos(...). Vaswani et al. 2017, section 3.5."""
    vector = np.zeros(width)
    for i in range(width // 2):
        vector[2 * i] = math.sin(position / 10000.0 ** (2 * i / width))
        vector[2 * i + 1] = math.cos(position / 10000.0 ** (2 * i / width))
    return vector


def turned(vector, position, o):
    """Each pair of numbers turned by the angle position * theta_i, theta_i = base^(-2i/d). Su et al. 2021, arXiv:2104.09864.

    A pair is (x_i, x_{i + d/2}), as GPT-NeoX and Llama have it; the paper's is (x_2i, x_{2i+1}).
    """
    width = len(vector)
    result = np.zeros(width)
    for i in range(width // 2):
        theta = frequency(o["rotary_base"] ** (-2.0 * i / width), o["rotary_scaling"])
        cos, sin = math.cos(position * theta), math.sin(position * theta)
        a, b = vector[i], vector[i + width // 2]
        result[i], result[i + width // 2] = a * cos - b * sin, a * sin + b * cos
    return result


def frequency(theta, scaling):
    """theta for a longer context: Chen et al. 2023, arXiv:2306.15595 ("linear"); Llama 3.1's reference code ("llama3")."""
    if scaling is None:
        return theta
    if scaling["type"] == "linear":
        return theta / scaling["factor"]
    wavelength, context = 2 * math.pi / theta, scaling["original_max_length"]
    if wavelength < context / scaling["high_frequency_factor"]:
        return theta
    if wavelength > context / scaling["low_frequency_factor"]:
        return theta / scaling["factor"]
    low, high = scaling["low_frequency_factor"], scaling["high_frequency_factor"]
    smooth = (context / wavelength - low) / (high - low)
    return (1 - smooth) * theta / scaling["factor"] + smooth * theta


def given(own, general):
    return general if own is None else own


def recurrent(weights, options, token_ids, segment_ids=None, rounded=exact):
    """Logits (time, vocabulary). Mikolov et al. 2010; tied weights: Press and Wolf 2017, arXiv:1608.05859.

    A token's vector is read at unit scale, sqrt(d) times a row of the table, which is also the output projection. With
    `segment_ids` the state is zero where a document starts.
    """
    o, weights = {**RECURRENT, **options}, {name: rounded(weight) for name, weight in weights.items()}
    segment_ids = [0] * len(token_ids) if segment_ids is None else list(segment_ids)
    table = weights["token_embedding"]
    width = o["hidden_dim"]
    factor = rounded(np.float64(math.sqrt(o["embedding_dim"] or width)))
    sequence = [rounded(table[token] * factor) for token in token_ids]
    for i in range(o["num_layers"]):
        layer = {name.removeprefix(f"layer_{i}/"): w for name, w in weights.items() if name.startswith(f"layer_{i}/")}
        outputs = []
        for t, x in enumerate(sequence):
            if t == 0 or segment_ids[t] != segment_ids[t - 1]:
                state = (np.zeros(width), np.zeros(width))
            state = CELLS[o["cell"]](x, state, layer, rounded)
            outputs.append(rounded(state[0]))
        sequence = outputs
    logits = []
    for h in sequence:
        if not o["tie_embedding"]:
            logits.append(rounded(weights["V"] @ h) + weights["a"])
            continue
        if o["embedding_dim"] not in (None, width):
            h = rounded(rounded(weights["bridge"] @ h) + weights["bridge_bias"])
        logits.append(rounded(table @ h) + weights["a"])
    return np.array(logits)


def elman(x, state, w, rounded):
    """h_t = tanh(W x_t + U h_{t-1} + b). Elman 1990."""
    h, _ = state
    return np.tanh(of_input(x, w, "h", rounded) + of_state(h, w, "h", rounded)), None


def gru(x, state, w, rounded):
    """Cho et al. 2014, arXiv:1406.1078, with the reset gate behind the product (cuDNN, PyTorch) and biases on both sides.

    z = s(W_z x + b_z + U_z h + b'_z), r = s(W_r x + b_r + U_r h + b'_r), g = tanh(W_g x + b_g + r * (U_g h + b'_g)),
    h_t = z * h_{t-1} + (1 - z) * g
    """
    h, _ = state
    z = sigmoid(of_input(x, w, "z", rounded) + (of_state(h, w, "z", rounded) + w["b'_z"]))
    r = sigmoid(of_input(x, w, "r", rounded) + (of_state(h, w, "r", rounded) + w["b'_r"]))
    g = np.tanh(of_input(x, w, "g", rounded) + r * (of_state(h, w, "g", rounded) + w["b'_g"]))
    return z * h + (1.0 - z) * g, None


def lstm(x, state, w, rounded):
    """Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.

    i, f, o = s(W x + U h + b), each its own; g = tanh(W_g x + U_g h + b_g); c_t = f * c_{t-1} + i * g; h_t = o * tanh(c_t)
    """
    h, c = state
    i, f, o = (sigmoid(of_input(x, w, gate, rounded) + of_state(h, w, gate, rounded)) for gate in "ifo")
    g = np.tanh(of_input(x, w, "g", rounded) + of_state(h, w, "g", rounded))
    c = f * c + i * g
    return o * np.tanh(c), c


CELLS = {"rnn": elman, "gru": gru, "lstm": lstm}


def of_input(x, w, gate, rounded):
    return rounded(rounded(w[f"W_{gate}"] @ x) + w[f"b_{gate}"])


def of_state(h, w, gate, rounded):
    return rounded(w[f"U_{gate}"] @ rounded(h))


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))
