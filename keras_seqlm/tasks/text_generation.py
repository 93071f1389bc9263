"""Text in, text out: a language model that writes on after a prompt."""

import dataclasses
import warnings
from collections.abc import Iterable

import numpy as np

from keras_seqlm.generation import generate, score, stream
from keras_seqlm.generation.generate import prompt_room
from keras_seqlm.models import LanguageModel, Seq2SeqLM
from keras_seqlm.tasks.task import Task
from seqlm_runtime.prompts import has_text, read_ids
from seqlm_runtime.tokenizers.tokenizer import as_text


@dataclasses.dataclass
class Text:
    """What `TextGeneration.write` returns for one prompt."""

    prompt: str
    text: str  # the new text only, with the space before its first word: `prompt + text` is the whole
    token_ids: list
    stop_reason: str  # "eos", "stop" or "length"
    truncated: bool  # whether the prompt's beginning was left out


class TextGeneration(Task):
    """Writes text after a prompt, and says how probable a text is.

    Example:

    >>> from keras_seqlm.models import RecurrentLM
    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> writer = TextGeneration(RecurrentLM(260, cell="gru", size="nano"), ByteTokenizer())
    >>> len(writer.write("It was a dark", max_new_tokens=8)[0].token_ids) <= 8
    True
    """

    model_class = LanguageModel

    def __init__(self, model, tokenizer):
        if isinstance(model, Seq2SeqLM):
            raise ValueError("an encoder-decoder writes after a source, not after a prompt: make a TextToText of it")
        super().__init__(model, tokenizer)

    def generate(self, prompt, max_new_tokens=64, **options):
        """The new text after a prompt.

        Args:
            prompt: str (or its bytes), or a list of them.
            max_new_tokens, **options: see `write`.

        Returns:
            str, or a list of them: the new text only.
        """
        texts = [result.text for result in self.write(prompt, max_new_tokens, **options)]
        return texts[0] if isinstance(prompt, str | bytes) else texts

    def write(self, prompts, max_new_tokens=64, *, stop=(), slide=False, max_prompt_tokens=None, **options):
        """Write on after each prompt, with everything that is known of the result.

        One `bos` id stands before each prompt, so an empty prompt is a text from its beginning. Of a prompt that is too
        long its end is read, by the rule of `seqlm_runtime.prompts`, as an export does it.

        Args:
            prompts: str (or its bytes), or a list of them.
            max_new_tokens: int, or one for each prompt. The prompt goes first: a Transformer stops where its context ends.
            stop: str or a sequence of them; a text ends before the first that it would hold, and so do its ids: a token
                that reaches beyond is left out. A special added token is never written, so no text with one in it can stop.
            slide: see `keras_seqlm.generation.generate`.
            max_prompt_tokens: ids of a prompt that are read, the `bos` among them; None for all that the model can read
                (`max_length - 1` of a Transformer). An export of a recurrent model reads 4096, unless told otherwise.
            **options: `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `seed`, each a number or one for
                each prompt; see `keras_seqlm.generation.generate`.

        Returns:
            A list of `Text`.

        Raises:
            ValueError: an option out of range, a `stop` that is no text or can never be written, or an empty prompt where the
                tokenizer has no `bos`.
        """
        stops, prompts = self._stops(stop), _texts(prompts)
        read = [self._read(prompt, slide, max_prompt_tokens, f"prompt {row}") for row, prompt in enumerate(prompts)]
        after = [has_text(self.tokenizer, ids, cut) for ids, cut in read]
        rules = {**self._rules(stops, set(after)), "slide": slide}
        results = generate(self.model, [ids for ids, _ in read], max_new_tokens, **rules, **options)
        return [
            self._text(prompt, result, stops, cut, after_text)
            for prompt, (_, cut), result, after_text in zip(prompts, read, results, after, strict=True)
        ]

    def stream(self, prompt, max_new_tokens=64, *, stop=(), slide=False, max_prompt_tokens=None, **options):
        """Write on after a prompt, and give each piece of the text as soon as it is sure.

        Held back until more is known: a character whose bytes are not all there, and what may be the beginning of a text
        of `stop`.

        Args:
            prompt: str, or its bytes.
            max_new_tokens, stop, slide, max_prompt_tokens, **options: see `write`; each is one number.

        Returns:
            An iterator of str, none of them empty; joined they are the text that `generate` gives. What its end gives (the
            value of `StopIteration`, or of `yield from`) is the `Text`.

        Raises:
            ValueError: at the first step, as `write` does.

        Example:

        >>> from keras_seqlm.models import RecurrentLM
        >>> from keras_seqlm.tokenizers import ByteTokenizer
        >>> writer = TextGeneration(RecurrentLM(260, cell="gru", size="nano"), ByteTokenizer())
        >>> pieces = list(writer.stream("It was a dark", max_new_tokens=8))
        >>> "".join(pieces) == writer.generate("It was a dark", max_new_tokens=8)
        True
        """
        stops, given = self._stops(stop), 0
        ids, cut = self._read(prompt, slide, max_prompt_tokens, "the prompt")
        after_text = has_text(self.tokenizer, ids, cut)
        pieces = stream(self.model, ids, max_new_tokens, **self._rules(stops, {after_text}), slide=slide, **options)
        while True:
            try:
                text = _sure(self.tokenizer.decode(next(pieces), after_text), stops)
            except StopIteration as ended:
                result = self._text(prompt, ended.value, stops, cut, after_text)
                break
            if len(text) > given:
                yield text[given:]
                given = len(text)
        if len(result.text) > given:
            yield result.text[given:]
        return result

    def _read(self, prompt, slide, max_prompt_tokens, name):
        """The ids that are read of a prompt, and whether its beginning was cut off."""
        ids, cut = read_ids(self.tokenizer, prompt, prompt_room(self.model, max_prompt_tokens, slide))
        if not len(ids):
            raise ValueError(f"{name} is empty, and the tokenizer has no bos: there is nothing to write on from")
        return ids, cut

    def _stops(self, stop):
        """The texts of `stop` as a tuple, or ValueError where one is no text or can never be written."""
        stops = [stop] if isinstance(stop, str) else () if stop is None else stop
        if not isinstance(stops, list | tuple | set | frozenset) or not all(isinstance(s, str) for s in stops):
            raise ValueError(f"stop must be a str, or a list of them, got {stop!r}")
        for entry in self.tokenizer.added_tokens.entries:
            token = entry["content"]
            text = next((s for s in stops if token in s), None)
            if text is not None and entry["special"] and entry["id"] != self.tokenizer.eos_id:
                raise ValueError(
                    f"stop={text!r} can never be written: {token!r} is a special token, which is not sampled and has no "
                    f"text. Before you train, add it as one that is not special (with_added_tokens([{token!r}])), or make it "
                    f"the end of a text (from_huggingface(..., special_tokens={{'eos': {token!r}}}))"
                )
        return tuple(s for s in stops if s)

    def _rules(self, stops, after):
        """What the tokenizer and the texts of `stop` demand of `generate`, `after` being all that `after_text` may be."""
        decode = self.tokenizer.decode
        return {
            "eos_id": self.tokenizer.eos_id,
            "suppressed_ids": self.tokenizer.suppressed_ids,
            "stop": (lambda ids: all(any(s in decode(ids, one) for s in stops) for one in after)) if stops else None,
        }

    def _text(self, prompt, result, stops, cut, after_text):
        text = self.tokenizer.decode(result.token_ids, after_text)
        ends = [at for at in (text.find(s) for s in stops) if at >= 0]
        token_ids, reason = result.token_ids.tolist(), result.stop_reason
        if ends:
            text, reason = text[: min(ends)], "stop"
            while token_ids and not text.startswith(self.tokenizer.decode(token_ids, after_text)):
                token_ids.pop()  # what stands beyond the cut, or across it
        prompt = prompt if isinstance(prompt, str) else as_text(prompt)
        return Text(prompt, text, token_ids, reason, cut or result.truncated)

    def score(self, texts):
        """Log-probability of each text, in nats, after the beginning of a text: sum of ln p(token | tokens before it).

        A tokenizer without `bos` gives nothing that stands before the first token: then that token is not counted, a text of
        one token has 0 as an empty one has, and a warning says so.

        Args:
            texts: str (or its bytes), or a list of them.

        Returns:
            float, or float64 array with one number a text (0 for an empty one).

        Raises:
            ValueError: a text is longer than the model reads.
        """
        several = _texts(texts)
        if self.tokenizer.bos_id is None:
            warnings.warn(
                "The tokenizer has no bos, so nothing stands before the first token of a text: it is not counted, and a text "
                "of one token has the score 0.",
                stacklevel=2,
            )
        ids = [self.ids_of(text) for text in several]
        rows = iter(score(self.model, [row for row in ids if len(row) > 1]))
        sums = np.array([next(rows).sum() if len(row) > 1 else 0.0 for row in ids], "float64")
        return float(sums[0]) if isinstance(texts, str | bytes) else sums

    def ids_of(self, text):
        """The ids of a text: `bos`, then all of its own, int32 (time,)."""
        return read_ids(self.tokenizer, text)[0]


def _texts(texts):
    """One text or several as a list of str or bytes."""
    several = [texts] if isinstance(texts, str | bytes) or not isinstance(texts, Iterable) else list(texts)
    wrong = [text for text in several if not isinstance(text, str | bytes | bytearray | memoryview)]
    if wrong:
        raise ValueError(f"Expected a str, or a list of them, got {str(wrong[0])[:80]!r} ({type(wrong[0]).__name__}).")
    return several


def _sure(text, stops):
    """The part of a text that stays as it is, whatever is written after it."""
    text = text.rstrip("\ufffd")  # these may be the first bytes of a character
    beginnings = (i for i in range(len(text)) if any(s.startswith(text[i : i + len(s)]) for s in stops))
    return text[: next(beginnings, len(text))]
