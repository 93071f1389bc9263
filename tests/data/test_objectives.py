"""Objectives against their rules, written down a second time: thousands of rows of random ids each."""

import collections
import itertools
import math

import numpy as np
import pytest

from keras_seqlm.data import Denoising, FillInTheMiddle, Masked, PrefixLM, SpanCorruption, prepared
from keras_seqlm.data.denoising import _in_disorder
from keras_seqlm.data.draws import generator_of, parts_of, poisson_lengths, subset
from keras_seqlm.data.objectives import runs_of
from keras_seqlm.data.vocabulary import Vocabulary
from keras_seqlm.tokenizers import BytePairTokenizer, ByteTokenizer, CharacterTokenizer, WordPieceTokenizer

pytestmark = pytest.mark.neutral

BOS, EOS = 1, 2
ROWS = 1500


def rows_of_documents(count=ROWS, longest=80, seed=0):
    """Rows as they are cut out of a stream: documents of any length, bos and eos about them, cut anywhere; some tiny."""
    random = np.random.default_rng(seed)
    stream = [np.concatenate([[BOS], random.integers(4, 260, random.integers(0, 60)), [EOS]]) for _ in range(count)]
    stream = np.concatenate(stream).astype(np.int32)
    for _ in range(count):
        size = int(random.integers(1, longest))
        start = int(random.integers(0, len(stream) - size))
        yield stream[start : start + size]


def examples(objective, layout, **how):
    """Each row with what becomes of it."""
    vocabulary = Vocabulary(prepared(ByteTokenizer(), objective))
    for number, ids in enumerate(rows_of_documents(**how)):
        inputs, targets = objective.example(ids, generator_of(5, number), vocabulary, layout)
        assert all(array.dtype == np.int32 and array.ndim == 1 for array in (*inputs.values(), targets))
        assert len(targets) == len(inputs["token_ids"])
        yield ids, inputs, targets, vocabulary


def special(ids):
    return (ids < 4) | (ids >= 260)


# Masked ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.15, 0.5, 1.0])
def test_masked_chooses_its_share_of_each_row_exactly(share):
    for ids, inputs, targets, _ in examples(Masked(share=share), "encoder"):
        chosen, candidates = targets != -1, np.count_nonzero(~special(ids))
        assert chosen.sum() == (max(1, round(share * candidates)) if candidates else 0)
        assert not special(ids)[chosen].any()
        np.testing.assert_array_equal(targets[chosen], ids[chosen])
        np.testing.assert_array_equal(inputs["token_ids"][~chosen], ids[~chosen])
        assert not np.isin(inputs["token_ids"][chosen], [0, 1, 2, 3]).any()


def test_masked_shows_eight_of_ten_as_the_mask_and_one_as_another():
    counts, others = collections.Counter(), collections.Counter()
    for ids, inputs, targets, vocabulary in examples(Masked(share=0.9), "encoder"):
        chosen = targets != -1
        shown = inputs["token_ids"][chosen]
        mask = vocabulary.id_of("[MASK]")
        assert mask == 260
        counts.update(np.select([shown == mask, shown == ids[chosen]], ["mask", "same"], "other").tolist())
        others.update(shown[(shown != mask) & (shown != ids[chosen])].tolist())
    total = sum(counts.values())
    # Five standard deviations of a binomial share; of the others one in 256 is the same by chance.
    bound = 5 * math.sqrt(0.16 / total)
    assert abs(counts["mask"] / total - 0.8) < bound
    assert abs(counts["other"] / total - 0.1 * 255 / 256) < bound and abs(counts["same"] / total - 0.1) < bound
    assert set(others) == set(range(4, 260))  # all of them, and none that is special
    expected = sum(others.values()) / 256
    assert sum((others[i] - expected) ** 2 / expected for i in range(4, 260)) < 256 + 6 * math.sqrt(512)  # chi-square


def test_every_place_is_masked_as_often_as_any_other():
    vocabulary, ids, rows = Vocabulary(prepared(ByteTokenizer(), "masked")), np.arange(10, 30, dtype=np.int32), 4000
    seen = np.zeros(20)
    for number in range(rows):
        seen += Masked().example(ids, generator_of(0, number), vocabulary, "encoder")[1] != -1
    assert seen.sum() == 3 * rows
    assert np.abs(seen / rows - 0.15).max() < 5 * math.sqrt(0.15 * 0.85 / rows)


WORDS = ["night", "dark", "wind", "loud", "unbelievable", "a", "to", "see"]


@pytest.fixture(scope="module", params=["byte", "character", "bpe", "wordpiece"])
def worded(request):
    """A tokenizer with a mask."""
    kind = {
        "byte": ByteTokenizer,
        "character": CharacterTokenizer,
        "bpe": BytePairTokenizer,
        "wordpiece": WordPieceTokenizer,
    }[request.param]
    random = np.random.default_rng(1)
    texts = [" ".join(random.choice(WORDS, 12)) for _ in range(60)]
    return prepared(kind.train(texts=texts, vocabulary_size=285), "masked")


def test_whole_words_are_masked_whole(worded):
    random, vocabulary = np.random.default_rng(2), Vocabulary(worded)
    rule, whole, sizes = Masked(share=0.3, masked=1, other=0, whole_words=True), 0, 0
    for number in range(400):
        words = random.choice(WORDS, int(random.integers(2, 12))).tolist()
        ids = worded.encode(" ".join(words))
        per_word = [len(worded.encode((" " if i else "") + word)) for i, word in enumerate(words)]
        assert sum(per_word) == len(ids)
        inputs, targets = rule.example(ids, generator_of(0, number), vocabulary, "encoder")
        chosen = targets != -1
        of_word = np.split(chosen, np.cumsum(per_word)[:-1])
        assert all(part.all() or not part.any() for part in of_word)
        budget = max(1, round(0.3 * len(ids)))
        masked = [size for size, part in zip(per_word, of_word, strict=True) if part.all()]
        assert sum(masked) <= budget or len(masked) == 1
        unmasked = [size for size, part in zip(per_word, of_word, strict=True) if not part.any()]
        assert not masked or sum(masked) > budget or all(sum(masked) + size > budget for size in unmasked)
        whole, sizes = whole + len(masked), sizes + sum(masked)
    assert whole > 400 and (sizes > whole) == (max(len(worded.encode(" " + word)) for word in WORDS) > 1)


def test_a_script_without_spaces_has_words_of_one_id_and_the_parts_of_a_character_are_none():
    characters = Vocabulary(CharacterTokenizer.train(texts=["天黑了。 a"]))
    tokenizer = characters._tokenizer
    table = {tokenizer.decode([i]): bool(characters.begins_word[i]) for i in characters.ordinary.tolist()}
    assert table == {"天": True, "黑": True, "了": True, "。": False, " ": True, "a": False}
    assert {text for text in table if characters.ends_sentence[tokenizer.encode(text)[0]]} == {"。"}
    of_bytes = Vocabulary(ByteTokenizer())
    assert np.flatnonzero(of_bytes.begins_word).tolist() == [4 + code for code in (*range(9, 14), *range(28, 33))]
    assert np.flatnonzero(of_bytes.ends_sentence).tolist() == sorted(4 + ord(stop) for stop in ".!?")


# Spans -------------------------------------------------------------------------------------------------------------


def spans_of(source, target):
    """The text that a source and a target of spans were made of, put together by hand."""
    assert target[-1] == EOS
    spans, text = {}, []
    for i in target[:-1].tolist():
        if i >= 260:
            assert i == 260 + len(spans)  # in their order, each once
            spans[i] = []
        else:
            spans[max(spans)].append(i)
    for i in source.tolist():
        text += spans.pop(i) if i >= 260 else [i]
    assert not spans, "a sentinel stands in the target alone"
    return np.array(text, np.int32)


def test_spans_put_back_give_the_text():
    rule = SpanCorruption()
    for ids, inputs, target, _ in examples(rule, "encoder-decoder"):
        source, tokens = inputs["source_ids"], inputs["token_ids"]
        np.testing.assert_array_equal(spans_of(source, target), ids)
        assert tokens[0] == BOS
        np.testing.assert_array_equal(tokens[1:], target[:-1])
        # Special ids of the text stay in the source, and no two sentinels touch.
        assert np.isin(target[:-1], [0, 1, 2, 3]).sum() == 0
        assert not ((source[1:] >= 260) & (source[:-1] >= 260)).any()
        count = np.count_nonzero(~special(ids))
        left_out = int((~special(target)).sum())
        runs = int((target >= 260).sum())
        wanted = min(max(1, round(0.15 * count)), count - 1) if count > 1 else 0
        assert left_out <= wanted and (left_out == wanted or runs == rule._most_spans(len(ids)))


def test_spans_of_one_document_are_t5s():
    """Without borders: exact numbers, the text's beginning stays, and each way of cutting is as probable as another."""
    rule = SpanCorruption(share=0.4, mean_span=2.0, sentinels=8)
    vocabulary, ids = Vocabulary(prepared(ByteTokenizer(), rule)), np.arange(10, 20, dtype=np.int32)
    ways = collections.Counter()
    for number in range(6000):
        source, target = rule.pair(ids, generator_of(1, number), vocabulary)
        assert len(source) == 6 + 2 and len(target) == 4 + 2 + 1 and source[0] == 10 and source[-1] >= 260
        ways[tuple(source.tolist())] += 1
    assert len(ways) == math.comb(3, 1) * math.comb(5, 1)  # 4 ids in 2 parts, 6 ids in 2 parts
    expected = 6000 / 15
    assert sum((n - expected) ** 2 / expected for n in ways.values()) < 14 + 6 * math.sqrt(28)


@pytest.mark.parametrize("layout", ["encoder-decoder", "causal"])
@pytest.mark.parametrize(
    "rule",
    [
        SpanCorruption(),
        SpanCorruption(share=0.5, mean_span=1.5),
        Denoising(),
        Denoising(share=0.5, deleted=0.2),
        PrefixLM(),
        FillInTheMiddle(rate=1.0),
    ],
)
@pytest.mark.parametrize("width", [16, 61, 100])
def test_no_row_is_wider_than_it_may_be(rule, layout, width):
    """Also where every other id is special, or documents have one token."""
    if layout not in rule.layouts:
        return
    lengths, vocabulary = rule.lengths(width, layout), Vocabulary(prepared(ByteTokenizer(), rule))
    random, widest = np.random.default_rng(0), 0
    for number in range(400):
        ids = random.integers(4, 200, lengths.text).astype(np.int32)
        ids[random.random(lengths.text) < (0, 0.1, 0.5, 0.9)[number % 4]] = number % 8 // 4 + 1
        inputs, targets = rule.example(ids, generator_of(0, number), vocabulary, layout)
        assert len(inputs["token_ids"]) == len(targets) <= lengths.tokens <= width
        assert len(inputs.get("source_ids", [])) <= (lengths.source or 0) <= width
        widest = max(widest, len(targets))
    assert widest >= 0.6 * lengths.tokens, "the rows have more room than is ever used"


def test_too_few_sentinels_are_refused():
    with pytest.raises(ValueError, match="has up to 39 spans, and there are 20 sentinels"):
        SpanCorruption(sentinels=20).lengths(512, "encoder-decoder")
    assert (
        SpanCorruption().lengths(512, "encoder-decoder").tokens == 77 + 39 + 1
    )  # 114 in the paper: 26 spans, all sure
    with pytest.raises(ValueError, match="no room"):
        SpanCorruption().lengths(3, "causal")


def test_one_sequence_is_the_source_and_what_a_decoder_would_read():
    for rule in (SpanCorruption(), Denoising()):
        both = zip(examples(rule, "encoder-decoder"), examples(rule, "causal"), strict=True)
        for (_, two, target, _), (_, one, targets, _) in both:
            source = two["source_ids"]
            np.testing.assert_array_equal(one["token_ids"], np.concatenate([source, two["token_ids"]]))
            np.testing.assert_array_equal(targets, np.concatenate([np.full(len(source), -1), target]))


# Denoising -----------------------------------------------------------------------------------------------------------


def test_the_target_of_denoising_is_the_text():
    for ids, inputs, target, _ in examples(Denoising(), "encoder-decoder"):
        np.testing.assert_array_equal(target, [*ids, EOS])
        assert inputs["token_ids"][0] == BOS and len(inputs["source_ids"]) <= len(ids)


def test_holes_leave_the_rest_in_order_and_special_ids_alone():
    missing, masks = 0, 0
    for ids, inputs, _, vocabulary in examples(Denoising(permute_sentences=False), "encoder-decoder"):
        source, mask = inputs["source_ids"], vocabulary.id_of("[MASK]")
        kept = source[source != mask]
        # What is kept is what is left of the text after exactly its share is gone; borders are all there.
        count = np.count_nonzero(~special(ids))
        wanted = max(1, round(0.3 * count)) if count else 0
        assert len(kept) == len(ids) - wanted and is_subsequence(kept, ids)
        np.testing.assert_array_equal(kept[special(kept)], ids[special(ids)])
        assert not ((source[1:] == mask) & (source[:-1] == mask)).any(), "two masks touch"
        assert ((source == mask).sum() > 0) == (count > 0) and (source == mask).sum() <= wanted
        missing, masks = missing + wanted, masks + int((source == mask).sum())
    assert 2.0 < missing / masks < 3.0  # 3 of a Poisson distribution, less what borders and short rows cut


def is_subsequence(part, whole):
    rest = iter(whole.tolist())
    return all(i in rest for i in part.tolist())


def test_hole_lengths_are_poissons():
    """Drawn one at a time until the sum is reached, the last cut: as NumPy's own draws of the same distribution."""
    own, theirs, random = [], [], np.random.default_rng(0)
    for number in range(3000):
        lengths = poisson_lengths(3.0, 60, generator_of(0, number))
        assert lengths.sum() == 60 and lengths.min() >= 0
        own += lengths[:-1].tolist()
        drawn = random.poisson(3.0, 200)
        theirs += drawn[: np.searchsorted(np.cumsum(drawn), 60)].tolist()
    for number in range(9):
        assert abs(np.mean(np.array(own) == number) - np.mean(np.array(theirs) == number)) < 0.01


def test_sentences_of_a_document_change_places_and_no_other():
    vocabulary, orders = Vocabulary(prepared(ByteTokenizer(), "denoising")), collections.Counter()
    encode = vocabulary._tokenizer.encode
    text = np.concatenate([[BOS], encode("One. Two! Three? Fo"), [EOS, BOS], encode("ur. A b"), [EOS]]).astype(np.int32)
    for number in range(3000):
        source, target = Denoising(share=1e-9, mean_span=1.0).pair(text, generator_of(0, number), vocabulary)
        np.testing.assert_array_equal(target, [*text, EOS])
        border = np.flatnonzero(source == EOS)[0]
        assert source[0] == BOS and source[border + 1] == BOS and source[-1] == EOS
        order = _in_disorder(text, generator_of(0, number), vocabulary)
        documents = vocabulary._tokenizer.decode(text[order][:22]), vocabulary._tokenizer.decode(text[order][22:])
        assert documents[1] in ("ur. A b", " A bur.")
        orders[documents[0]] += 1
    parts = ("One.", " Two!", " Three?", " Fo")
    assert set(orders) == {"".join(order) for order in itertools.permutations(parts)}
    assert sum((n - 125) ** 2 / 125 for n in orders.values()) < 23 + 6 * math.sqrt(46)


def test_deleted_ids_go_without_a_trace():
    rule = Denoising(share=0.1, permute_sentences=False, deleted=0.25)
    for ids, inputs, _, vocabulary in examples(rule, "encoder-decoder"):
        source = inputs["source_ids"]
        kept, count = source[source != vocabulary.id_of("[MASK]")], np.count_nonzero(~special(ids))
        left = count - round(0.25 * count)
        assert len(kept) == len(ids) - round(0.25 * count) - (max(1, round(0.1 * left)) if left else 0)
        assert is_subsequence(kept, ids)
        np.testing.assert_array_equal(kept[special(kept)], ids[special(ids)])


# Prefix and the middle ------------------------------------------------------------------------------------------------


def test_a_prefix_is_given_and_the_rest_counts():
    cuts = collections.Counter()
    for ids, inputs, targets, _ in examples(PrefixLM(), "causal"):
        np.testing.assert_array_equal(inputs["token_ids"], ids[:-1])
        counted = targets != -1
        np.testing.assert_array_equal(targets[counted], ids[1:][counted])
        assert (np.diff(counted.astype(int)) >= 0).all()  # from one place on, to the end
        assert len(ids) == 1 or counted[-1]
        if len(ids) > 1:
            cuts[(counted.sum() - 1) * 4 // (len(ids) - 1)] += 1
    assert all(abs(cuts[i] / sum(cuts.values()) - 0.25) < 0.06 for i in range(4)), cuts
    for ids, inputs, targets, _ in examples(PrefixLM(), "encoder-decoder"):
        np.testing.assert_array_equal(np.concatenate([inputs["source_ids"], targets]), ids)
        np.testing.assert_array_equal(inputs["token_ids"], [BOS, *targets][: len(targets)])


def unturned(ids):
    """The text of documents in another order, put together by hand; and how many were PSM and SPM."""
    text, kinds, rest = [], collections.Counter(), ids.tolist()
    while rest:
        if rest[0] != 260:
            text.append(rest.pop(0))
            continue
        stop = next((i for i, one in enumerate(rest) if one in (BOS, EOS)), len(rest))
        document, rest = rest[1:stop], rest[stop:]
        behind, middle = document.index(261), document.index(262)
        beginning, end, middle = document[:behind], document[behind + 1 : middle], document[middle + 1 :]
        text += [*beginning, middle, end]  # of SPM the beginning is empty, and stands before the middle
        kinds["beginning" if beginning else "none"] += 1
    return np.array([i for part in text for i in (part if isinstance(part, list) else [part])], np.int32), kinds


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_the_middle_put_back_gives_the_text(rate):
    rule, turned, wanted = FillInTheMiddle(rate=rate), 0, 0.0
    for ids, inputs, targets, _ in examples(rule, "causal"):
        whole = np.concatenate([inputs["token_ids"][:1], targets])
        if len(ids) == 1 and len(targets) == 0:
            continue
        np.testing.assert_array_equal(inputs["token_ids"], whole[:-1])
        text, kinds = unturned(whole)
        np.testing.assert_array_equal(text, ids)
        assert sum(kinds.values()) <= 1  # one for each 128 ids, and one at least
        turned += sum(kinds.values())
        wanted += 1 - (1 - rate) ** len(runs_of((ids != BOS) & (ids != EOS)))
    assert turned == wanted if rate in (0, 1) else abs(turned - wanted) < 5 * math.sqrt(wanted * (1 - wanted / ROWS))


def test_the_two_orders_and_their_cuts_are_as_probable_as_they_should_be():
    rule = FillInTheMiddle(rate=1.0)
    vocabulary, ids = Vocabulary(prepared(ByteTokenizer(), rule)), np.arange(10, 13, dtype=np.int32)
    seen = collections.Counter()
    for number in range(8000):
        seen[tuple(rule.turned(ids, generator_of(0, number), vocabulary, most=1).tolist())] += 1
    # Two places of 0 to 3, each pair as probable as another, in two orders.
    wanted = collections.Counter()
    for one in range(4):
        for other in range(4):
            first, second = sorted((one, other))
            beginning, middle, end = (part.tolist() for part in np.split(ids, [first, second]))
            wanted[(260, *beginning, 261, *end, 262, *middle)] += 1
            wanted[(260, 261, *end, 262, *beginning, *middle)] += 1
    assert set(seen) == set(wanted)
    difference = sum((seen[way] - 250 * n) ** 2 / (250 * n) for way, n in wanted.items())
    assert difference < len(wanted) + 6 * math.sqrt(2 * len(wanted))


def test_of_many_documents_some_are_turned():
    rule, ids = FillInTheMiddle(rate=1.0), np.array([BOS, 5, 6, 7, EOS] * 60, np.int32)
    vocabulary = Vocabulary(prepared(ByteTokenizer(), rule))
    which = np.zeros(60)
    for number in range(500):
        turned = rule.turned(ids, generator_of(0, number), vocabulary, most=2)
        assert (turned == 260).sum() == 2 and len(turned) == 306
        which[np.cumsum(turned == BOS)[turned == 260] - 1] += 1
    assert which.sum() == 1000 and which.min() > 3


# Draws, vocabularies, names -------------------------------------------------------------------------------------------


def test_draws_hold_for_ever():
    """Runs of before must see the same numbers: these were drawn when the objectives were written."""
    assert generator_of(1, 7).random(2).tolist() == [0.015571497225141284, 0.5085189768525209]
    assert subset(100, 5, generator_of(0, 0)).tolist() == [2, 38, 43, 68, 96]
    assert parts_of(20, 4, generator_of(0, 1)).tolist() == [2, 5, 1, 12]
    assert poisson_lengths(3.0, 12, generator_of(0, 2)).tolist() == [0, 4, 4, 1, 3]


def test_runs_of_bools():
    random = np.random.default_rng(0)
    for _ in range(200):
        chosen = random.random(random.integers(0, 12)) < 0.5
        runs = runs_of(chosen)
        again = np.zeros(len(chosen), bool)
        for start, stop in runs:
            assert not again[max(0, start - 1) : stop].any()
            again[start:stop] = True
        np.testing.assert_array_equal(again, chosen)


def test_a_tokenizer_is_prepared_once():
    plain = ByteTokenizer()
    for objective, count in (("masked", 1), ("span", 100), ("denoising", 1), ("prefix", 0), ("fim", 3), ("causal", 0)):
        tokenizer = prepared(plain, objective)
        assert tokenizer.vocabulary_size == 260 + count and prepared(tokenizer, objective) is tokenizer
        assert all(Vocabulary(tokenizer).special[260:])
    with pytest.raises(ValueError, match="no special token '.MASK.'.*data.prepared"):
        Vocabulary(plain).id_of("[MASK]")
    with pytest.raises(ValueError, match="an added token that is not special"):
        prepared(plain.with_added_tokens(["[MASK]"]), "masked")
    with pytest.raises(ValueError, match="must be one of .*'causal', 'masked'"):
        prepared(plain, "cloze")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Masked(share=0),
        lambda: Masked(share=1.5),
        lambda: Masked(masked=0.8, other=0.3),
        lambda: SpanCorruption(share=0.6),
        lambda: SpanCorruption(mean_span=0.5),
        lambda: SpanCorruption(mean_span=float("nan")),
        lambda: Denoising(share=0.7),
        lambda: Denoising(mean_span=0),
        lambda: Denoising(deleted=1),
        lambda: FillInTheMiddle(rate=1.1),
        lambda: FillInTheMiddle(spm=-1),
        lambda: FillInTheMiddle().lengths(3, "causal"),
        lambda: Denoising().lengths(4, "causal"),
        lambda: Masked().checked_layout("causal"),
    ],
)
def test_what_cannot_be_is_refused(make):
    with pytest.raises(ValueError, match="must be|are shares|no room|at least"):
        make()
