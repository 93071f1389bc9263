"""`seqlm train --objective`: its flags, what goes with them, the data and the task of each."""

import dataclasses

SEQ2SEQ = ("span", "denoising", "prefix")  # objectives whose target an encoder-decoder writes after its source
OBJECTIVES = ("causal", "masked", "span", "denoising", "prefix", "fim")
_MOVING = ("span", "denoising", "fim")  # the text, so that its documents have no places


def add_objective(group):
    """Add the flags of the objective."""
    group.add_argument(
        "--objective",
        choices=OBJECTIVES,
        default="causal",
        help="what is learned: the next token (causal, default), masked ones by an encoder, spans left out, a noisy text put "
        "right (denoising), the rest after a prefix, the middle of a text (fim)",
    )
    group.add_argument(
        "--architecture",
        choices=["causal", "seq2seq"],
        default="causal",
        help="span, denoising, prefix: a causal model that reads source and target in one sequence (default), or an "
        "encoder-decoder",
    )
    group.add_argument(
        "--attention", choices=["additive", "general"], help="of a recurrent seq2seq: Bahdanau's (default) or Luong's"
    )
    group.add_argument("--whole-words", action="store_true", help="masked: words are masked whole")


def check_objective(args):
    """Refuse flags that do not go with `--objective`.

    Raises:
        ValueError: naming the flag.
    """
    said = f"and --objective is {args.objective}"
    if args.whole_words and args.objective != "masked":
        raise ValueError(f"--whole-words belongs to --objective masked, {said}")
    if args.architecture == "seq2seq":
        if args.objective not in SEQ2SEQ:
            raise ValueError(f"--architecture seq2seq is for --objective {', '.join(SEQ2SEQ)}, {said}")
        foreign = [
            name for name in ("kv_heads", "norm", "embedding_dim", "carry_state", "segment_ids") if getattr(args, name)
        ]
        if foreign:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
            raise ValueError(f"{named} belongs to causal models, and --architecture is seq2seq; leave it out")
    if args.attention and (args.architecture != "seq2seq" or args.model == "transformer" or args.start is not None):
        raise ValueError("--attention belongs to a new recurrent model of --architecture seq2seq; leave it out")
    if args.carry_state and args.objective != "causal":
        raise ValueError(f"--carry-state goes on from row to row of a text, as --objective causal reads it, {said}")
    if args.segment_ids and args.objective in _MOVING:
        raise ValueError(f"--segment-ids needs the text in its places, {said}; leave it out")
    if args.untied and args.objective == "masked":
        raise ValueError(f"--untied is for models that write on: what fills masks shares its table, {said}")


def blocks_of(args, corpora, tokenizer, context):
    """What is trained on and what is validated on."""
    from keras_seqlm import data

    given = {
        "sequence_length": context,
        "batch_size": args.batch,
        "seed": args.seed,
        "validation": args.validation,
        "validation_fraction": args.validation_fraction,
        "tolerance": args.tolerance,
        "text_field": args.text_field,
    }
    if args.objective == "causal":
        segments = args.segment_ids or None
        return data.causal_blocks(corpora, tokenizer, **given, segment_ids=segments, contiguous=args.carry_state)
    masked = args.objective == "masked"
    objective = data.Masked(whole_words=args.whole_words) if masked else args.objective
    layout = "encoder" if masked else {"causal": "causal", "seq2seq": "encoder-decoder"}[args.architecture]
    return data.objective_blocks(corpora, tokenizer, objective, **given, layout=layout, segment_ids=args.segment_ids)


def prepared_for(args, tokenizer):
    """A new tokenizer with the special tokens of the objective; one of another run, whose model has its ids, as it is.

    Raises:
        ValueError: the other run's lacks some.
    """
    from keras_seqlm import data

    prepared = data.prepared(tokenizer, args.objective)
    if args.start is not None and prepared is not tokenizer:
        raise ValueError(
            f"--objective {args.objective} needs special tokens that the tokenizer of {args.start} lacks, and its model has no ids "
            "for them: begin with a run of that objective, or leave out --from"
        )
    return prepared


def check_start(args, model):
    """Refuse the model of another run (`--from`) where the objective is for one of another kind.

    Raises:
        ValueError: an encoder that fills masks is asked for, or another model than that, and the run has the other.
    """
    from keras_seqlm.models import LanguageModel, MaskedLM, Seq2SeqLM

    of_sources = args.architecture == "seq2seq"
    wanted = MaskedLM if args.objective == "masked" else Seq2SeqLM if of_sources else LanguageModel
    if not isinstance(model, wanted) or isinstance(model, Seq2SeqLM) is not of_sources:
        raise ValueError(
            f"--objective {args.objective} trains a {wanted.__name__}, and {args.start} holds a {type(model).__name__}: begin with a "
            "run of such an objective, or leave out --from"
        )


def task_of(args, model, tokenizer, train):
    """What the run is to be used as."""
    from keras_seqlm import tasks

    if args.objective == "masked":
        return tasks.FillMask(model, tokenizer, dataclasses.asdict(train.objective))
    if args.architecture == "seq2seq":
        numbers = dataclasses.asdict(train.objective)
        context = args.context or model.max_length or 128
        return tasks.TextToText(model, tokenizer, {"name": train.objective.name, **numbers}, context)
    return tasks.TextGeneration(model, tokenizer)


def prompts_for(task, prompts):
    """The prompts of a run: with a mask where the task fills some, and then as long as the model reads."""
    from keras_seqlm import tasks

    if not isinstance(task, tasks.FillMask):
        return prompts
    room, found = task.model.max_length, []
    for text in prompts:
        while room is not None and text and len(task.tokenizer.encode(text)) + 3 > room:  # a bos, a mask and an eos
            text = text[: len(text) // 2]
        found.append(with_a_mask(text))
    return found if room is None or room >= 3 else []


def with_a_mask(text):
    """A text with [MASK] in place of a word in its middle, or of a character where it has no two words.

    >>> with_a_mask("It was a dark night"), with_a_mask("night"), with_a_mask("")
    ('It was [MASK] dark night', 'ni[MASK]ht', '[MASK]')
    """
    words = text.split(" ")
    if len(words) > 1:
        words[len(words) // 2] = "[MASK]"
        return " ".join(words)
    return text[: len(text) // 2] + "[MASK]" + text[len(text) // 2 + 1 :]


def filled(task, prompts):
    """Lines that show what a `FillMask` finds in the masks of some texts."""
    lines = []
    for prompt, result in zip(prompts, task.predict(prompts), strict=True):
        [found] = result.candidates
        said = ", ".join(f"{one.text!r} {one.probability:.2f}" for one in found)
        lines.append(f"{prompt!r} -> {said}")
    return "\n".join(lines)
