"""Small tokenizers of Hugging Face's in the forms that well-known models have, trained on the text of these tests."""

import io
import json

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from seqlm_runtime.tokenizers.model_proto import parse_model

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


def qwen2(text, nfc=False):
    tokenizer = byte_level(text, 700, LLAMA3.replace("{1,3}", ""))
    tokenizer.normalizer = normalizers.NFC() if nfc else None
    tokenizer.add_special_tokens([special(f"<|{name}|>") for name in ("endoftext", "im_start", "im_end")])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("lowest", normalized=not nfc)])
    return tokenizer


def gpt_neox(text):
    """Normal form C, in which added tokens are looked for: runs of spaces and a word with an accent."""
    tokenizer = byte_level(text, 500)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens([special("<|endoftext|>"), special("<|padding|>")])
    tokenizer.add_tokens([AddedToken(" " * size, normalized=True) for size in (4, 3, 2)])
    tokenizer.add_tokens([AddedToken("Ça va", normalized=True), AddedToken("of", normalized=True, lstrip=True)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True, add_prefix_space=False)
    return tokenizer


def sentence_model(text, kind, size=500, byte_fallback=True):
    """A SentencePiece model that its own library trained, as pieces."""
    data = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.split("\n")),
        model_writer=data,
        model_type=kind,
        vocab_size=size,
        hard_vocab_limit=False,
        byte_fallback=byte_fallback,
        character_coverage=0.98,
        num_threads=1,
        minloglevel=2,
    )
    return parse_model(data.getvalue())


def char_bpe(text):
    """BPE on characters with byte fallback and the merges that Hugging Face's converter makes of such a model."""
    model = sentence_model(text, "bpe")
    vocabulary = {piece: i for i, (piece, _, _) in enumerate(model.pieces)}
    merges = []
    for piece, i in vocabulary.items():
        cuts = [(piece[:place], piece[place:]) for place in range(1, len(piece))]
        merges += [(i, left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
    merges = [(left, right) for _, left, right in sorted(merges)]
    return Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))


def fallback_decoder(strip):
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(parts + ([decoders.Strip(" ", 1, 0)] if strip else []))


def llama2(text, legacy=True):
    tokenizer = char_bpe(text)
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", "first", split=False)
    tokenizer.decoder = fallback_decoder(strip=True)
    tokenizer.add_special_tokens([special(name) for name in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def gemma(text):
    tokenizer = char_bpe(text)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = fallback_decoder(strip=False)
    tokenizer.add_special_tokens([special(name) for name in ("<unk>", "<s>", "</s>", "<start_of_turn>")])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in ("\n\n", "\n", "\u2581\u2581", "lowest")])
    return tokenizer


def unigram(text, charsmap=b"", byte_fallback=False, scheme="always", white_space=False, model=None):
    """As T5 or XLM-R: words by spaces, the most probable pieces."""
    model = model or sentence_model(text, "unigram", byte_fallback=byte_fallback)
    unknown = [i for i, (_, _, kind) in enumerate(model.pieces) if kind == 2][0]
    vocabulary = [(piece, score) for piece, score, _ in model.pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unknown, byte_fallback))
    changes = [normalizers.Precompiled(charsmap)] if charsmap else []
    tokenizer.normalizer = normalizers.Sequence(
        [*changes, normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    words = pre_tokenizers.Metaspace("\u2581", scheme)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words]) if white_space else words
    )
    tokenizer.decoder = fallback_decoder(strip=True) if byte_fallback else decoders.Metaspace("\u2581", scheme)
    tokenizer.add_special_tokens([special(piece) for piece, _, kind in model.pieces if kind in (2, 3)])
    tokenizer.add_special_tokens([special("<extra_id_0>")])
    return tokenizer


def bert(text, lowercase=True, cleanup=True):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=cleanup)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, min_frequency=1, special_tokens=[special(name) for name in names], show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_tokens([AddedToken("Call me", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def bert_added(text, **more):
    """With tokens that are looked for in what BERT's normaliser makes of a text."""
    tokenizer = bert(text, **more)
    names = ["Lowest", "ÇA", "<X>", "Don't", "low\u0301er"]
    tokenizer.add_tokens([AddedToken(name, normalized=True) for name in names])
    tokenizer.add_tokens([AddedToken("Times", normalized=True), AddedToken("of", normalized=False)])
    return tokenizer
