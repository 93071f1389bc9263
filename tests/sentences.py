"""Five sentences, and models of every architecture that learn them in seconds: what tasks, exports and commands are
tested with."""

ARCHITECTURES = ("rnn", "gru", "lstm", "transformer")
QUANTIZED = ("lstm", "transformer")  # those exported as int8 and float16 as well
CONTEXT = 64  # of the Transformer
READ = 256  # ids of a prompt that artifacts of the GRU and the LSTM read; that of the RNN reads 4096, the default
SENTENCES = (
    "the cat sat on the mat and looked at the moon.",
    "a dog ran over the hill to the old red barn.",
    "rain fell on the roof all night, and nobody slept.",
    "Zoë paid 12 € for two cafés and a piece of cake.",
    "in the morning the sun rose over the quiet sea.",
)
PROMPTS = ("", "the cat", "a dog ran", "rain fell on the", "Zoë paid 12 €", "in the morning", "moon.", "old red barn")
PROMPTS += (
    "x",
    "Q?",
    "the cat sat on the mat and looked at the moo",
    "12",
    " ",
    "\n",
    "é",
    "nobody",
    "sun",
    "a",
    "€",
    "t",
)


def train_on_sentences(corpus, name, dtype):
    """A `TextGeneration` of that architecture which has learned the sentences a little; keras is imported here only."""
    import keras

    from keras_seqlm import data, models, tasks, tokenizers

    tokenizer = tokenizers.ByteTokenizer()
    keras.utils.set_random_seed(11)
    shape = {"size": "nano", "hidden_dim": 32, "dtype": dtype}
    if name == "transformer":
        model = models.TransformerLM(260, num_layers=2, num_heads=4, num_kv_heads=2, max_length=CONTEXT, **shape)
    else:
        parts = {"gru": {"num_layers": 2, "tie_embedding": False}, "lstm": {"embedding_dim": 24}}.get(name, {})
        model = models.RecurrentLM(260, cell=name, **shape, **parts)
    model.build()
    train, _ = data.causal_blocks(corpus, tokenizer, sequence_length=CONTEXT, batch_size=8, validation_fraction=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss=loss, jit_compile=keras.backend.backend() == "jax")
    model.fit(train, epochs=3, verbose=0, shuffle=False)
    return tasks.TextGeneration(model, tokenizer)
