"""Text in, text out: a language model that writes on after a prompt."""

import dataclasses

import numpy as np

from keras_seqlm.generation import generate, score, stream
from keras_seqlm.generation.generate import prompt_room
from keras_seqlm.tasks.task import Task
from seqlm_runtime.prompts import has_text, read_ids


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

    def generate(self, prompt, max_new_tokens=64, **options):
        """The new text after a prompt.

        Args:
            prompt: str, or a list of them.
            max_new_tokens, **options: see `write`.

        Returns:
            str, or a list of them: the new text only.
        """
        texts = [result.text for result in self.write(prompt, max_new_tokens, **options)]
        return texts[0] if isinstance(prompt, str) else texts

    def write(self, prompts, max_new_tokens=64, *, stop=(), slide=False, max_prompt_tokens=None, **options):
        """Write on after each prompt, with everything that is known of the result.

        One `bos` id stands before each prompt, so an empty prompt is a text from its beginning. Of a prompt that is too
        long its end is read, by the rule of `seqlm_runtime.prompts`, as an export does it.

        Args:
            prompts: str, or a list of them.
            max_new_tokens: int, or one for each prompt. The prompt goes first: a Transformer stops where its context ends.
            stop: str or a sequence of them; a text ends before the first that it would hold, and so do its ids: a token
                that reaches beyond is left out.
            slide: see `keras_seqlm.generation.generate`.
            max_prompt_tokens: ids of a prompt that are read, the `bos` among them; None for all that the model can read
                (`max_length - 1` of a Transformer). An export of a recurrent model reads 4096, unless told otherwise.
            **options: `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `seed`, each a number or one for
                each prompt; see `keras_seqlm.generation.generate`.

        Returns:
            A list of `Text`.

        Raises:
            ValueError: an option out of range.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        stops = _stops(stop)
        read = [self._read(prompt, slide, max_prompt_tokens) for prompt in prompts]
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
            prompt: str.
            max_new_tokens, stop, slide, max_prompt_tokens, **options: see `write`; each is one number.

        Returns:
            An iterator of str, none of them empty; joined they are the text that `generate` gives. What its end gives (the
            value of `StopIteration`, or of `yield from`) is the `Text`.

        Raises:
            ValueError: at the first step: an option out of range.

        Example:

        >>> from keras_seqlm.models import RecurrentLM
        >>> from keras_seqlm.tokenizers import ByteTokenizer
        >>> writer = TextGeneration(RecurrentLM(260, cell="gru", size="nano"), ByteTokenizer())
        >>> pieces = list(writer.stream("It was a dark", max_new_tokens=8))
        >>> "".join(pieces) == writer.generate("It was a dark", max_new_tokens=8)
        True
        """
        stops, given = _stops(stop), 0
        ids, cut = self._read(prompt, slide, max_prompt_tokens)
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

    def _read(self, prompt, slide, max_prompt_tokens):
        """The ids that are read of a prompt, and whether its beginning was cut off."""
        return read_ids(self.tokenizer, prompt, prompt_room(self.model, max_prompt_tokens, slide))

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
        return Text(prompt, text, token_ids, reason, cut or result.truncated)

    def score(self, texts):
        """Log-probability of each text, in nats, after the beginning of a text: sum of ln p(token | tokens before it).

        Args:
            texts: str, or a list of them.

        Returns:
            float, or float64 array with one number a text (0 for an empty one).

        Raises:
            ValueError: a text is longer than the model reads.
        """
        several = [texts] if isinstance(texts, str) else list(texts)
        ids = [self.ids_of(text) for text in several]
        rows = iter(score(self.model, [row for row in ids if len(row) > 1]))
        sums = np.array([next(rows).sum() if len(row) > 1 else 0.0 for row in ids], "float64")
        return float(sums[0]) if isinstance(texts, str) else sums

    def ids_of(self, text):
        """The ids of a text: `bos`, then all of its own, int32 (time,)."""
        return read_ids(self.tokenizer, text)[0]


def _stops(stop):
    return tuple(s for s in ([stop] if isinstance(stop, str) else stop or ()) if s)


def _sure(text, stops):
    """The part of a text that stays as it is, whatever is written after it."""
    text = text.rstrip("\ufffd")  # these may be the first bytes of a character
    beginnings = (i for i in range(len(text)) if any(s.startswith(text[i : i + len(s)]) for s in stops))
    return text[: next(beginnings, len(text))]
