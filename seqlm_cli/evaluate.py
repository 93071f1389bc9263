"""`seqlm evaluate`: how well a run predicts texts, or answers rows."""

from seqlm_cli.finetune import add_data, figures_line, rows_of
from seqlm_cli.options import add_common, add_run, load_task, write_answer

HELP = "how well a run does on texts or rows that it has not seen"
EXAMPLES = (
    ("seqlm evaluate runs/books --text held_out.txt", "of a text that was not trained on"),
    (
        "seqlm evaluate runs/books --text 'news/*.jsonl' --text-field body",
        "of records, by the field that holds the text",
    ),
    ("seqlm evaluate runs/intents --data test.csv --columns label=category", "a task's figures, with their intervals"),
    ("seqlm evaluate runs/books --text held_out.txt --stride 64", "Transformer: with more text before each token"),
)


def arguments(p):
    """Add what the verb takes to its parser."""
    add_run(p)
    p.add_argument("--text", nargs="+", metavar="FILE", help="files, folders, globs of text, for a language model")
    add_data(p)
    p.add_argument("--text-field", default="text", metavar="NAME", help="of a record that holds the text")
    p.add_argument("--stride", type=int, default=None, help="Transformer: tokens between windows (default the context)")
    p.add_argument("--batch", type=int, default=32, help="windows of a batch")
    add_common(p)


def run(args):
    """`seqlm evaluate`: loss, bits per byte and perplexity of a language model, the figures of a task."""
    from keras_seqlm import tasks

    task = load_task(args)
    if isinstance(task, tasks.RowTask):
        if args.data is None:
            raise ValueError(
                f"{args.run} is a {type(task).__name__}, which is judged by rows: give --data FILE, and --columns"
            )
        result = task.evaluate(rows_of(args, args.data), args.batch)
        print(figures_line(result))
        write_answer(args, result)
        return
    if args.text is None:
        raise ValueError(f"{args.run} is a language model, which is judged by texts: give --text FILE")
    if isinstance(task, tasks.FillMask | tasks.TextToText):
        if args.stride is not None:
            raise ValueError(f"--stride is for models that write on, and {args.run} is a {type(task).__name__}")
        result = task.evaluate(args.text, args.batch, text_field=args.text_field)
        if isinstance(task, tasks.FillMask):
            print(
                f"loss {result['loss']:.4f} nats a masked token, accuracy {result['accuracy']:.4f} ({result['accuracy_low']:.4f} "
                f"to {result['accuracy_high']:.4f}), {result['count']:,} masked tokens of {result['num_tokens']:,}"
            )
        else:
            print(
                f"loss {result['loss']:.4f} nats a token of a target, {result['count']:,} of them, of {result['num_tokens']:,} tokens"
            )
        write_answer(args, result)
        return
    result = tasks.evaluate(
        task,
        args.text,
        stride=args.stride,
        batch_size=args.batch,
        text_field=args.text_field,
    )
    print(
        f"loss {result['loss']:.4f} nats a token, {result['bits_per_byte']:.4f} bits a byte, "
        f"perplexity {result['perplexity']:.2f}, {result['num_tokens']:,} tokens, {result['num_bytes']:,} bytes"
    )
    write_answer(args, result)
