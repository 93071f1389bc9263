"""`seqlm evaluate`: how well a run predicts texts."""

from seqlm_cli.options import add_common, add_run, load_task, write_answer

HELP = "loss, bits per byte and perplexity of text files"
EXAMPLES = (
    ("seqlm evaluate runs/books --text held_out.txt", "of a text that was not trained on"),
    (
        "seqlm evaluate runs/books --text 'news/*.jsonl' --text-field body",
        "of records, by the field that holds the text",
    ),
    ("seqlm evaluate runs/books --text held_out.txt --checkpoint best", "by the best checkpoint"),
    ("seqlm evaluate runs/books --text held_out.txt --stride 64", "Transformer: with more text before each token"),
)


def arguments(p):
    """Add what the verb takes to its parser."""
    add_run(p)
    p.add_argument("--text", nargs="+", required=True, metavar="FILE", help="files, folders, globs of text")
    p.add_argument("--text-field", default="text", metavar="NAME", help="of a record that holds the text")
    p.add_argument("--stride", type=int, default=None, help="Transformer: tokens between windows (default the context)")
    p.add_argument("--batch", type=int, default=32, help="windows of a batch")
    add_common(p)


def run(args):
    """`seqlm evaluate`: loss, bits per byte, perplexity."""
    from keras_seqlm import tasks

    result = tasks.evaluate(
        load_task(args),
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
