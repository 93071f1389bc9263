"""How do I bring a PyTorch program here with its weights, and take them back?

Three programs in PyTorch stand below, and the twin of each: a recurrent layer whose last output feeds a linear layer, with
`nn.RNN` and with `nn.LSTM`, and an encoder-decoder of `nn.TransformerEncoder` and `nn.TransformerDecoder` that reads tokens,
positions and token types. Weights go in both ways by a table: our variables, PyTorch's parameters, and what turns one into the
other. The guide gives the twin PyTorch's weights and compares what both say; trains the twin; gives PyTorch the new weights and
compares again. It needs torch beside any backend of Keras.

What differs in how weights lie:

    nn.Linear            weight is our kernel, transposed
    nn.RNN, nn.LSTM      two biases, of which the sum is ours; the gates stand in the same order, i, f, g, o
    nn.MultiheadAttention  queries, keys and values stand in three blocks; ours by head, so that devices can share a layer
    post-norm            `norm_first=False`, as PyTorch's default; a norm behind the last layer is `final_norm=True`

Run it: python guides/from_pytorch.py
"""

import keras
import numpy as np
import torch
from torch import nn

import keras_seqlm as seqlm

VOCABULARY, WIDTH, HEADS, LAYERS, LONGEST = 50, 16, 4, 2, 20
random = np.random.default_rng(0)


class Recurrent(nn.Module):
    """PyTorch: a recurrent layer, its last output, a linear layer."""

    def __init__(self, kind):
        super().__init__()
        self.rnn = kind(10, 20, batch_first=True)
        self.linear = nn.Linear(20, 2)

    def forward(self, x):
        output, _ = self.rnn(x)
        return self.linear(output[:, -1])


class RecurrentTwin(keras.Model):
    """The same here."""

    def __init__(self, cell):
        super().__init__()
        self.rnn = seqlm.layers.RecurrentStack(cell, hidden_dim=20)
        self.linear = keras.layers.Dense(2)

    def call(self, x, training=None):
        output, _ = self.rnn(x, training=training)
        return self.linear(output[:, -1])


class EncoderDecoder(nn.Module):
    """PyTorch: tokens, positions and types; an encoder, a decoder that attends to it; logits of the next token."""

    def __init__(self):
        super().__init__()
        self.source = nn.ModuleList([nn.Embedding(n, WIDTH) for n in (VOCABULARY, LONGEST, 2)])
        self.target = nn.ModuleList([nn.Embedding(n, WIDTH) for n in (VOCABULARY, LONGEST, 2)])
        options = {"dim_feedforward": 48, "batch_first": True}
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, **options)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, **options), LAYERS)
        self.linear = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, token_ids, token_types, source_ids, source_types, source_lengths):
        padding = torch.arange(source_ids.shape[1]) >= source_lengths[:, None]
        memory = self.encoder(embedded(self.source, source_ids, source_types), src_key_padding_mask=padding)
        causal = nn.Transformer.generate_square_subsequent_mask(token_ids.shape[1])
        target = embedded(self.target, token_ids, token_types)
        return self.linear(self.decoder(target, memory, tgt_mask=causal, memory_key_padding_mask=padding))


def embedded(tables, ids, types):
    """The sum of the vectors of tokens, positions and types."""
    tokens, positions, kinds = tables
    return tokens(ids) + positions(torch.arange(ids.shape[1])) + kinds(types)


def encoder_decoder_twin():
    """The same here: an encoder, a language model that attends to it, and the two together."""
    parts = {
        "num_layers": LAYERS,
        "hidden_dim": WIDTH,
        "num_heads": HEADS,
        "intermediate_dim": 48,
        "max_length": LONGEST,
    }
    parts |= {"activation": "relu", "norm_first": False, "num_token_types": 2}
    encoder = seqlm.models.TransformerEncoder(VOCABULARY, **parts)
    decoder = seqlm.models.TransformerLM(VOCABULARY, **parts, memory_dim=encoder.width, tie_embedding=False)
    model = seqlm.models.Seq2SeqLM(encoder=encoder, decoder=decoder)
    model.build()
    return model


# The tables: (our variables, PyTorch's parameters, from theirs to ours, from ours to theirs).


def same(*arrays):
    return arrays


def transposed(*arrays):
    return [array.T for array in arrays]


def linear(layer, module):
    yield [layer.kernel], [module.weight], transposed, transposed
    if module.bias is not None:
        yield [layer.bias], [module.bias], same, same


def norm(layer, module):
    yield [layer.gamma, layer.beta], [module.weight, module.bias], same, same


def recurrent(twin, program):
    cell, rnn = twin.rnn.layers[0].cell, program.rnn
    yield [cell.kernel, cell.recurrent_kernel], [rnn.weight_ih_l0, rnn.weight_hh_l0], transposed, transposed
    yield [cell.bias], [rnn.bias_ih_l0, rnn.bias_hh_l0], lambda a, b: [a + b], lambda both: [both, 0 * both]
    yield from linear(twin.linear, program.linear)


def by_head(weight, parts):
    """`parts` blocks of rows, each by head, as columns by head, each with all the parts; of a bias, too."""
    blocks = weight.reshape(parts, HEADS, WIDTH // HEADS, -1)
    return blocks.transpose(3, 1, 0, 2).reshape(-1, parts * WIDTH).squeeze()


def by_part(kernel, parts):
    """The way back."""
    blocks = kernel.reshape(-1, HEADS, parts, WIDTH // HEADS)
    return blocks.transpose(2, 1, 3, 0).reshape(parts * WIDTH, -1).squeeze()


def self_attention(layer, module):
    ours, theirs = [layer.qkv.kernel, layer.qkv.bias], [module.in_proj_weight, module.in_proj_bias]
    yield ours, theirs, lambda *all_: [by_head(one, 3) for one in all_], lambda *all_: [by_part(one, 3) for one in all_]
    yield from linear(layer.output_projection, module.out_proj)


def cross_attention(layer, module):
    for query, both, theirs in (
        (layer.query.kernel, layer.kv.kernel, module.in_proj_weight),
        (layer.query.bias, layer.kv.bias, module.in_proj_bias),
    ):
        yield (
            [query, both],
            [theirs],
            lambda one: [one[:WIDTH].T, by_head(one[WIDTH:], 2)],
            lambda query, both: [np.concatenate([query.T, by_part(both, 2)])],
        )
    yield from linear(layer.output_projection, module.out_proj)


def encoder_decoder(twin, program):
    for model, tables, module in (
        (twin.encoder, program.source, program.encoder),
        (twin.decoder, program.target, program.decoder),
    ):
        ours = [model.token_embedding.table, model.position_embedding.table, model.type_embedding.table]
        yield ours, [table.weight for table in tables], same, same
        for block, layer in zip(model.blocks, module.layers, strict=True):
            yield from self_attention(block.attention, layer.self_attn)
            norms = [layer.norm1, layer.norm2]
            if module is program.decoder:
                yield from cross_attention(block.cross_attention, layer.multihead_attn)
                yield from norm(block.cross_attention_norm, layer.norm2)
                norms = [layer.norm1, layer.norm3]
            yield from norm(block.attention_norm, norms[0])
            yield from norm(block.feed_forward_norm, norms[1])
            yield from linear(block.feed_forward.up, layer.linear1)
            yield from linear(block.feed_forward.down, layer.linear2)
    yield from linear(twin.decoder.output_projection, program.linear)


def weights_in(table):
    """PyTorch's weights into the twin; how many variables were given some."""
    count = 0
    for ours, theirs, inward, _ in table:
        arrays = inward(*(parameter.detach().numpy() for parameter in theirs))
        for variable, array in zip(ours, arrays, strict=True):
            variable.assign(array)
            count += 1
    return count


def weights_out(table):
    """The twin's weights into the PyTorch program."""
    for ours, theirs, _, outward in table:
        arrays = outward(*(np.array(keras.ops.convert_to_numpy(variable)) for variable in ours))
        with torch.no_grad():
            for parameter, array in zip(theirs, arrays, strict=True):
                parameter.copy_(torch.tensor(array))


def compared(program, twin, inputs):
    """The largest difference of what both say."""
    as_torch = {
        name: torch.tensor(value.astype("int64" if value.dtype.kind == "i" else value.dtype))
        for name, value in inputs.items()
    }
    with torch.no_grad():
        theirs = program(**as_torch).numpy()
    ours = keras.ops.convert_to_numpy(twin(inputs["x"] if "x" in inputs else inputs))
    return float(np.abs(ours - theirs).max())


def there_and_back(name, program, twin, table, inputs, y, loss):
    program.eval()
    if not twin.built:
        twin(inputs["x"])
    given = weights_in(table(twin, program))
    there = compared(program, twin, inputs)
    twin.compile(keras.optimizers.Adam(0.01), loss)
    losses = twin.fit(inputs["x"] if "x" in inputs else inputs, y, epochs=10, verbose=0).history["loss"]
    apart = compared(program, twin, inputs)  # the twin has learned, the program has not
    weights_out(table(twin, program))
    back = compared(program, twin, inputs)
    print(
        f"{name}: {given} of {len(twin.trainable_variables)} variables; apart by {there:.1e} with PyTorch's weights, by {apart:.1e} "
        f"after training here (loss {losses[0]:.3f} to {losses[-1]:.3f}), by {back:.1e} with the weights back in PyTorch"
    )
    return {"given": given, "variables": len(twin.trainable_variables), "there": there, "apart": apart, "back": back}


def main():
    torch.manual_seed(0)
    keras.utils.set_random_seed(0)
    classes = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x = {"x": random.standard_normal((8, 12, 10)).astype("float32")}
    y = random.integers(0, 2, 8)
    figures = {}
    for name, kind, cell in (("nn.RNN", nn.RNN, "rnn"), ("nn.LSTM", nn.LSTM, "lstm")):
        figures[name] = there_and_back(name, Recurrent(kind), RecurrentTwin(cell), recurrent, x, y, classes)

    def ids(high, *shape):
        return random.integers(0, high, shape).astype("int32")

    inputs = {
        "token_ids": ids(VOCABULARY, 8, 7),
        "token_types": ids(2, 8, 7),
        "source_ids": ids(VOCABULARY, 8, 11),
        "source_types": ids(2, 8, 11),
        "source_lengths": 1 + ids(11, 8),
    }
    program, twin = EncoderDecoder(), encoder_decoder_twin()
    loss = seqlm.losses.CrossEntropy()
    figures["nn.Transformer"] = there_and_back(
        "nn.TransformerEncoder and nn.TransformerDecoder",
        program,
        twin,
        encoder_decoder,
        inputs,
        ids(VOCABULARY, 8, 7),
        loss,
    )
    written = twin.generate([1], max_new_tokens=5, source_ids=inputs["source_ids"][0])
    print(f"and the twin writes, with a cache: {written.tolist()}")
    return figures


if __name__ == "__main__":
    main()
