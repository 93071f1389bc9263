"""The rows `pretraining` and `lora` of tasks.py: ten labelled questions of each intent, and much text without labels.

`pretraining` prints the accuracy of an encoder that first filled masks in the text, beside that of the same encoder from scratch.
`lora` prints that of adapters and head, beside the same encoder fine-tuned whole, and what share of the weights was trained.
Every one of them trains for the same number of epochs, and its last weights are judged: nothing is chosen by labels beyond the ten.
The learning rates were set before any figure was seen, one for each way.
"""

import math
import pathlib
import tempfile
import time

import keras

import keras_seqlm as seqlm
from keras_seqlm.models import MaskedLM, TransformerEncoder, add_lora, backbone_of

BOOKS, WIKI = "classic_books_en/*.md", "wikitext2_part/valid.txt"
SHARES = {"questions": 0.4, BOOKS: 0.4, WIKI: 0.2}  # of the rows of a batch of pre-training
PER_CLASS = 10
VOCABULARY, CONTEXT = 4000, 64
RATES = {"scratch": 1e-3, "full": 5e-4, "lora": 2e-3}
RANK, ALPHA = 2, 8
EPOCHS = 40  # of fine-tuning
STEPS = 30_000  # of pre-training at most: minutes end it before


def few(rows, per_class=PER_CLASS):
    """The first rows of each label, in the order in which they stand."""
    kept, met = [], {}
    for row in rows:
        met[row["label"]] = met.get(row["label"], 0) + 1
        if met[row["label"]] <= per_class:
            kept.append(row)
    return kept


def pretrained(folder, data, questions, args, clock, minutes):
    """The run folder of an encoder that has filled masks in books, articles and the questions, their labels left out."""
    text = pathlib.Path(folder) / "questions.txt"
    text.write_text("\n\n".join(questions) + "\n", encoding="utf-8")
    texts = {"questions": text, **{name: data / name for name in SHARES if name != "questions"}}
    samples = seqlm.data.texts([str(path) for path in texts.values()], tolerance=0.05)
    tokenizer = seqlm.tokenizers.WordPieceTokenizer.train(texts=samples, vocabulary_size=VOCABULARY)
    tokenizer = seqlm.data.prepared(tokenizer, "masked")
    corpora = {str(path): SHARES[name] for name, path in texts.items()}
    objective = seqlm.data.Masked(whole_words=True)
    given = {"validation_fraction": 0.0, "seed": args.seed, "cache_dir": folder}
    train, _ = seqlm.data.objective_blocks(corpora, tokenizer, objective, CONTEXT, 32, **given)
    model = MaskedLM(encoder(tokenizer, args))
    model.build()
    steps = STEPS
    model.compile(keras.optimizers.AdamW(1e-3, weight_decay=0.01, global_clipnorm=1.0), loss=model.default_loss())
    beat = clock(None, None, None, 1e-3, steps, 60 * minutes)
    history = model.fit(train.batches(0), steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[beat])
    print(
        f"  pre-trained for {beat.step} steps, loss {history.history['loss'][-1]:.3f} nats a masked token", flush=True
    )
    out = pathlib.Path(args.out or folder) / "pretrained"
    seqlm.tasks.FillMask(model, tokenizer).save(out)
    return out


def encoder(tokenizer, args):
    """An encoder that has learned nothing yet."""
    kind = args.model or "transformer"
    size = tokenizer.vocabulary_size
    if kind == "transformer":
        return TransformerEncoder(size, size=args.size, max_length=CONTEXT, num_token_types=2, dropout=0.1)
    return seqlm.models.RecurrentEncoder(size, cell=kind, size=args.size, dropout=0.2)


def finetuned(name, backbone, tokenizer, train, test, args, epochs):
    """Figures of the test rows after fine-tuning on a few, and how many weights were trained."""
    keras.utils.set_random_seed(args.seed)
    if name == "lora":
        backbone = add_lora(backbone, RANK, ALPHA)
    task = seqlm.tasks.TextClassification.begin_with(train, backbone, tokenizer, dropout=0.1, pooling="mean")
    examples = task.examples(train, 16, seed=args.seed)
    steps = max(1, math.ceil(epochs * len(examples)))
    recipe = seqlm.training.Recipe(
        steps=steps, batch_size=16, learning_rate=RATES[name], seed=args.seed, weight_decay=0.01
    )
    recipe.fit(task.model, examples, progress=False)
    return task.evaluate(test), sum(math.prod(weight.shape) for weight in task.model.trainable_weights)


def compare(args, train, test, clock, minutes, epochs=None):
    """Pre-train, or take the run of `--from`, fine-tune in both ways of the row, and give the line that says what came out."""
    began, epochs = time.perf_counter(), epochs or EPOCHS
    labelled = few(train)
    with tempfile.TemporaryDirectory() as folder:
        run = args.start or pretrained(folder, args.data, [row["text"] for row in train], args, clock, minutes)
        before = seqlm.load(run)
        names = ("full", "scratch") if args.row == "pretraining" else ("lora", "full")
        found = {}
        for name in names:
            backbone = encoder(before.tokenizer, args) if name == "scratch" else backbone_of(seqlm.load(run).model)
            found[name] = finetuned(name, backbone, before.tokenizer, labelled, test, args, epochs)
            print(
                f"  {name}: accuracy {found[name][0]['accuracy']:.4f}, {found[name][1]:,} weights trained", flush=True
            )
    (ours, trained), (theirs, of) = (found[name] for name in names)
    points = 100 * (ours["accuracy"] - theirs["accuracy"])
    shown = [
        f"accuracy {one['accuracy']:.4f} [{one['accuracy_low']:.4f}, {one['accuracy_high']:.4f}]"
        for one in (ours, theirs)
    ]
    beside = (
        "from scratch"
        if args.row == "pretraining"
        else f"fine-tuned whole, with {trained / of:.1%} of its trained weights"
    )
    return (
        f"{args.row}: {shown[0]}; {beside} {shown[1]}: {points:+.1f} points; {len(labelled)} labelled rows, {ours['count']} rows of "
        f"{'--test' if args.test else 'the part held back'}; {args.model or 'transformer'} {args.size}, "
        f"{(time.perf_counter() - began) / 60:.1f} minutes, seed {args.seed}, {keras.backend.backend()}"
    )
