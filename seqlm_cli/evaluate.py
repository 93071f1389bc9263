"""`seqlm evaluate`: how well a run predicts texts."""

from seqlm_cli.options import add_checkpoint, add_common, write_answer

HELP = "loss, bits per byte and perplexity of text files"


def arguments(p):
    """Add what the verb takes to its parser."""
    p.add_argument("run", metavar="RUN", help="a run folder")
    add_checkpoint(p)
    p.add_argument("--text", nargs="+", required=True, metavar="FILE")
    p.add_argument("--text-field", default="text", metavar="NAME", help="of a record that holds the text")
    p.add_argument("--stride", type=int, default=None, help="Transformer: tokens between windows (default the context)")
    p.add_argument("--batch", type=int, default=32, help="windows of a batch")
    add_common(p)


def run(args):
    """`seqlm evaluate`: loss, bits per byte, perplexity."""
    from keras_seqlm import tasks

    result = tasks.evaluate(
        tasks.load(args.run, args.checkpoint),
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
