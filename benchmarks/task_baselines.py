"""What benchmarks/tasks.py prints beside its models: plain programs of known strength, each told what the model was told.

Each takes rows to learn from and rows to answer, and gives a score a row (or counts, for spans).
"""

import collections
import math
import re

import numpy as np


def ngram_classes(train, test):
    """Whether the class is right, by a linear classifier (SVM) on hashed n-grams: words 1 to 2, characters 2 to 5 within words."""
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.svm import LinearSVC

    hashed = make_union(
        HashingVectorizer(ngram_range=(1, 2), n_features=2**17, alternate_sign=False, norm=None),
        HashingVectorizer(analyzer="char_wb", ngram_range=(2, 5), n_features=2**17, alternate_sign=False, norm=None),
    )
    model = make_pipeline(hashed, TfidfTransformer(sublinear_tf=True), LinearSVC())
    model.fit([row["text"] for row in train], [row["label"] for row in train])
    return model.predict([row["text"] for row in test]) == np.array([row["label"] for row in test])


def tfidf_neighbours(train, test):
    """Whether the nearest other text has the label, by cosine of tf-idf vectors of words 1 to 2; idf of the training rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit([row["text"] for row in train])
    vectors = vectorizer.transform([row["text"] for row in test])
    likeness = (vectors @ vectors.T).toarray()
    np.fill_diagonal(likeness, -np.inf)
    labels = np.array([row["label"] for row in test])
    return labels[likeness.argmax(axis=1)] == labels


def lexicon_spans(train, test):
    """Spans by a list of those that training rows have, each with its most frequent label; the longest first, at word borders."""
    labels = collections.defaultdict(collections.Counter)
    seen = collections.Counter()
    for row in train:
        text = row["text"].lower()
        for span in row["spans"]:
            labels[text[span["start"] : span["end"]]][span["label"]] += 1
    for row in train:
        seen.update(set(_words(row["text"].lower())))
    # A word that is in a span less often than not is no name for one: "now", "for".
    kept = [part for part, found in labels.items() if part.strip() and 2 * sum(found.values()) >= seen[part]]
    if not kept:
        return [[] for _ in test]
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, sorted(kept, key=len, reverse=True))) + r")(?!\w)")
    return [
        [(m.start(), m.end(), labels[m[0]].most_common(1)[0][0]) for m in pattern.finditer(row["text"].lower())]
        for row in test
    ]


def overlap_answers(train, test):
    """Answers by a sliding window: of all clauses that by whose surroundings most of the question is said, less itself.

    A question's characters weigh ln(1 + 1 / how often the context has them); the window is as long as the question, twice.

    Reference: Richardson et al. 2013, MCTest (the sliding window); Rajpurkar et al. 2016, section 5.
    """
    longest = int(np.quantile([len(row["answers"][0]["text"]) for row in train if row["answers"]], 0.95))
    return [_overlap_answer(row["question"], row["context"], longest) for row in test]


def _overlap_answer(question, context, longest):
    counts = collections.Counter(context)
    asked = set(question)
    weights = np.array([math.log(1 + 1 / counts[one]) if one in asked else 0.0 for one in context])
    sums = np.concatenate([[0.0], np.cumsum(weights)])
    width, best = len(question), (-np.inf, "")
    for clause in re.finditer(r"[^，。、；：！？（）《》“”「」\s,.;:!?()]+", context):
        if len(clause[0]) > longest:
            continue
        low, high = max(0, clause.start() - width), min(len(context), clause.end() + width)
        said = sums[high] - sums[low]
        own = sums[clause.end()] - sums[clause.start()]
        best = max(best, (said - 2 * own, clause[0]))
    return best[1]


def _words(text):
    return re.findall(r"\w+", text)
