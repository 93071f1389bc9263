"""Text in, text out: a language model that writes on after a prompt."""

import dataclasses

import numpy as np

from keras_seqlm.generation import generate, score
from keras_seqlm.generation.generate import prompt_room
from keras_seqlm.tasks.task import Task
from seqlm_runtime.prompts import read_ids


@dataclasses.dataclass
class Text:
    """What `TextGeneration.write` returns for one prompt."""

    prompt: str
    text: str  # the new text only
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
            stop: str or a sequence of them; a text ends before the first that it would hold.
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
        stops = tuple(s for s in ([stop] if isinstance(stop, str) else stop or ()) if s)
        decode = self.tokenizer.decode
        most = prompt_room(self.model, max_prompt_tokens, slide)
        read = [read_ids(self.tokenizer, prompt, most) for prompt in prompts]
        results = generate(
            self.model,
            [ids for ids, _ in read],
            max_new_tokens,
            eos_id=self.tokenizer.eos_id,
            suppressed_ids=self.tokenizer.suppressed_ids,
            stop=(lambda ids: any(s in decode(ids) for s in stops)) if stops else None,
            slide=slide,
            **options,
        )
        texts = []
        for prompt, (_, cut), result in zip(prompts, read, results, strict=True):
            text = decode(result.token_ids)
            ends = [at for at in (text.find(s) for s in stops) if at >= 0]
            text = text[: min(ends)] if ends else text
            texts.append(Text(prompt, text, result.token_ids.tolist(), result.stop_reason, cut or result.truncated))
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
        """The ids of a text: `bos`, then all of its own, int32 (time,)."""
        return read_ids(self.tokenizer, text)[0]
