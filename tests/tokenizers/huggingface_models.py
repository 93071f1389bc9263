"""Small tokenizers of Hugging Face's in the forms that well-known models have, trained on the text of these tests."""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def special(content, **more):
    return AddedToken(content, special=True, **{"normalized": False, **more})


def byte_level(text, size, pattern=None, **more):
    """A byte-level BPE tokenizer without added tokens."""
    tokenizer = Tokenizer(models.BPE(**more))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern is not None:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        words = pre_tokenizers.Sequence([split, words])
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def gpt2(text):
    tokenizer = byte_level(text, 500)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=True, special=True)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def roberta(text, add_prefix_space=False):
    tokenizer = byte_level(text, 500)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.add_special_tokens([special(name, normalized=True) for name in ("<s>", "<pad>", "</s>", "<unk>")])
    tokenizer.add_special_tokens([special("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", tokenizer.token_to_id("</s>")),
        ("<s>", tokenizer.token_to_id("<s>")),
        add_prefix_space=add_prefix_space,
    )
    return tokenizer


def llama3(text):
    """Every pair of tokens that joins to a token merges, in the order of the tokens; whole words come first."""
    learned = json.loads(byte_level(text, 600, LLAMA3).to_str())["model"]
    vocabulary = dict(learned["vocab"])
    # Two tokens that no merges make, which `ignore_merges` finds all the same.
    for token in ("Ġwisdomofages", "Zü"):
        vocabulary[token] = len(vocabulary)
    merges = []
    for token in sorted(vocabulary, key=vocabulary.get):
        if token != "Ġwisdomofages":
            cuts = [(token[:place], token[place:]) for place in range(1, len(token))]
            merges += sorted(
                ((left, right) for left, right in cuts if left in vocabulary and right in vocabulary),
                key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]),
            )
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([special(f"<|{name}|>") for name in ("begin_of_text", "end_of_text", "eot_id")])
    tokenizer.add_tokens([AddedToken("of times", normalized=False), AddedToken("of", normalized=False, rstrip=True)])
    first = "<|begin_of_text|>"
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True, add_prefix_space=False),
            processors.TemplateProcessing(single=f"{first} $A", special_tokens=[(first, tokenizer.token_to_id(first))]),
        ]
    )
    return tokenizer


def qwen2(text):
    tokenizer = byte_level(text, 700, LLAMA3.replace("{1,3}", ""))
    tokenizer.add_special_tokens([special(f"<|{name}|>") for name in ("endoftext", "im_start", "im_end")])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("lowest", normalized=True)])
    return tokenizer
