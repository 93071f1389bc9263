"""What may stand in the masks of a text."""

import numpy as np

from seqlm_runtime.prompts import read_ids
from seqlm_runtime.row_tasks.reading import Read, RowTask, as_str
from seqlm_runtime.tokenizers.tokenizer import as_text

MASK = "[MASK]"
CANDIDATES = 5


class FillMask(RowTask):
    """Which token stands in the place of each [MASK].

    Settings: `mask_id`; `mask_text`, by which the tokenizer reads it, None where no text does; `takes_space`, whether a mask
    stands for the space before it, too; `special`, ids that are never proposed.
    """

    verb, per_token = "fill-mask", True
    mask_id, mask_text, takes_space, special = -1, None, False, ()

    def read(self, row):
        ids, cut = masked_ids(self.tokenizer, row["text"], self.mask_id, self.mask_text, self.takes_space, self.room)
        return Read([self.inputs(ids, np.zeros(len(ids), "int32"))], cut, (ids,))

    def answer(self, read, numbers):
        return filled(self.tokenizer, read.about[0], numbers[0], self.mask_id, self.special, CANDIDATES)

    def from_outputs(self, outputs, number, row):
        names = ("candidates", "candidate_ids", "probabilities")
        masks = zip(*(outputs[name][number, : outputs["num_masks"][number]] for name in names), strict=True)
        candidates = [
            [
                {"text": as_str(text), "token_id": int(i), "probability": float(share)}
                for text, i, share in zip(*mask, strict=True)
            ]
            for mask in masks
        ]
        return {"filled": as_str(outputs["filled"][number]), "candidates": candidates}


def masked_ids(tokenizer, text, mask_id, mask_text, takes_space, room=None):
    """The ids of a text with masks, bos and eos around them; of a long one the first `room`, and whether it was cut."""
    text = as_text(text)
    if takes_space:
        text = text.replace(f" {MASK}", MASK)
    end = np.array([] if tokenizer.eos_id is None else [tokenizer.eos_id], "int32")
    most = None if room is None else room - len(end)
    if mask_text is not None:
        ids, cut = read_ids(tokenizer, text.replace(MASK, mask_text), most, end=False)
    else:  # an id that no text names: what stands between the masks is read by itself
        parts = [tokenizer.encode(part) for part in text.split(MASK)]
        body = np.concatenate([parts[0], *(np.append(mask_id, part) for part in parts[1:])])
        ids = np.concatenate([[] if tokenizer.bos_id is None else [tokenizer.bos_id], body]).astype("int32")
        cut = most is not None and len(ids) > most
        ids = ids[:most] if cut else ids
    return np.concatenate([ids, end]).astype("int32"), cut


def filled(tokenizer, ids, logits, mask_id, special, top_k):
    """The text with the best candidate in each mask's place, and all candidates: dict of `filled` and `candidates`.

    Args:
        ids: int32 (time,); logits: (time or more, vocabulary).
        special: ids that are not proposed, or bool (vocabulary,).
        top_k: candidates of each mask.
    """
    ids, candidates = ids.copy(), []
    for place in np.flatnonzero(ids == mask_id):
        row = np.asarray(logits[place], "float64")
        shares = np.exp(row - row.max())
        shares /= shares.sum()
        shares[np.asarray(special, bool if np.asarray(special).dtype == bool else "int64")] = -1.0
        best = np.argsort(-shares, kind="stable")[:top_k].tolist()
        texts = [tokenizer.decode([i], after_text=True) for i in best]
        found = zip(texts, best, strict=True)
        candidates.append([{"text": text, "token_id": i, "probability": float(shares[i])} for text, i in found])
        ids[place] = best[0]
    return {"filled": tokenizer.decode(ids), "candidates": candidates}
