"""Text in, text out: a language model that writes on after a prompt."""

import dataclasses

import numpy as np

from keras_seqlm.generation import generate, score
from keras_seqlm.tasks.task import Task


@dataclasses.dataclass
class Text:
    """What `TextGeneration.write` returns for one prompt."""

    prompt: str
    text: str  # the new text only
    token_ids: list
    stop_reason: str  # "eos", "stop" or "length"
    truncated: bool  # whether the prompt was cut to fit the context


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

    def write(self, prompts, max_new_tokens=64, *, stop=(), **options):
        """Write on after each prompt, with everything that is known of the result.

        One `bos` id stands before each prompt, so an empty prompt is a text from its beginning.

        Args:
            prompts: str, or a list of them.
            max_new_tokens: int, or one for each prompt.
            stop: str or a sequence of them; a text ends before the first that it would hold, and so do its ids: a token
                that reaches beyond is left out.
            **options: `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `seed` (each a number or one for
                each prompt) and `slide`; see `keras_seqlm.generation.generate`.

        Returns:
            A list of `Text`.

        Raises:
            ValueError: an option out of range.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        stops = tuple(s for s in ([stop] if isinstance(stop, str) else stop or ()) if s)
        decode = self.tokenizer.decode
        results = generate(
            self.model,
            [self.ids_of(prompt) for prompt in prompts],
            max_new_tokens,
            eos_id=self.tokenizer.eos_id,
            suppressed_ids=self.tokenizer.suppressed_ids,
            stop=(lambda ids: any(s in decode(ids) for s in stops)) if stops else None,
            **options,
        )
        texts = []
        for prompt, result in zip(prompts, results, strict=True):
            text = decode(result.token_ids)
            ends = [at for at in (text.find(s) for s in stops) if at >= 0]
            ids = result.token_ids.tolist()
            if ends:
                text = text[: min(ends)]
                while ids and not text.startswith(decode(ids)):
                    ids.pop()  # what stands beyond the cut, or across it
            texts.append(Text(prompt, text, ids, result.stop_reason, result.truncated))
        return texts

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
        """The ids that the model reads for a prompt: `bos`, then the text."""
        first = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        return np.concatenate([np.asarray(first, "int32"), self.tokenizer.encode(text)]).astype("int32")
