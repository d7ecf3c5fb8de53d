"""Sequences whose answers stand thousands of residues away from the questions: what a window of attention cannot see.

    <cls> flank  B L B L B L B L  Z W Z W Z W Z W  ...   background   Z <mask> B <mask> B <mask> ... <eos>
                 key and value, in tandem               distance      questions: the value of this key?

Keys are the first of B, Z, O and U, which occur nowhere else. Each has five possible values among the standard
residues, so that the question alone (the key stands right before the mask) gives 1 in 5: a window can learn that, and
no more. Only what stands `distance` residues upstream gives the rest. How much is asked of attention is a choice:

- without decoys the background is free of all possible values. With one key the answer is the only letter of its kind
  in the sequence: enough to look for it among thousands, or to count letters exactly. With two or three keys the
  question says which kind to look for.
- with decoys the background has all 20 letters, and each value that does not stand upstream is sown into it as often as
  the others stand there, so that counting gives nothing. Then a value has to know its key (a first layer that looks at
  the residue before) and a question has to find the value that stands with its key (a second one): associative recall,
  which is what separates attentions in arXiv 2312.04927, there without distance. It is learned from short distances
  first (`recall.stages` of `conf/experiment/long_recall.yaml`).
"""

import numpy as np

from protformer.data import alphabet
from protformer.data.batch import Example, segment
from protformer.data.corpus import Corpus, CorpusBuilder
from protformer.data.objectives import without_targets

KEYS = "BZOU"
VALUES = 5
"""Possible values of each key: `alphabet.STANDARD` in fours of five."""
_IS_KEY = np.array([token in KEYS for token in alphabet.TOKENS])
_LONGEST_FLANK = 8
MOST_KEYS = {True: len(KEYS), False: len(alphabet.STANDARD) // VALUES - 1}  # by `decoys`; a background needs letters


def draw_recall(
    sequences: int,
    distance: tuple[int, int],
    *,
    keys: int = 1,
    decoys: bool = False,
    questions: int = 16,
    repeats: int = 4,
    seed: int | list[int] = 0,
) -> Corpus:
    """`sequences` of them, named `recall_NUMBER_DISTANCE`.

    Args:
        distance: least and greatest number of background residues; drawn evenly on a logarithmic scale, so that no
            length of sequence takes most of the tokens.
        keys: at most 4, without decoys 3.
        decoys: whether the background holds the other values, too. It then needs `repeats` residues for each.
        questions: at the end of each sequence; their keys are drawn one by one.
        repeats: of each key and its value, in tandem.
        seed: the corpus is a pure function of it and the arguments.
    """
    low, high = distance
    if sequences < 1 or questions < 1 or repeats < 1:
        raise ValueError("recall needs at least one sequence, one question and one repeat")
    if not 1 <= keys <= MOST_KEYS[decoys]:
        raise ValueError(
            f"recall takes 1 to {MOST_KEYS[decoys]} keys {'with' if decoys else 'without'} decoys, not {keys}"
        )
    least = (len(alphabet.STANDARD) - keys) * repeats if decoys else 1
    if not least <= low <= high:
        raise ValueError(f"distances need {least} <= least <= greatest, not {low} and {high}")
    rng = np.random.default_rng(seed)
    letters = np.array(list(alphabet.STANDARD))
    around = letters if decoys else letters[VALUES * keys :]
    builder = CorpusBuilder()
    for number in range(sequences):
        places = VALUES * np.arange(keys) + rng.integers(0, VALUES, keys)
        value = letters[places]
        away = min(int(np.exp(rng.uniform(np.log(low), np.log(high + 1)))), high)
        flank = rng.choice(around, rng.integers(1, _LONGEST_FLANK + 1)).tolist()
        store = [(KEYS[key] + str(value[key])) * repeats for key in rng.permutation(keys)]
        asked = [KEYS[key] + str(value[key]) for key in rng.integers(0, keys, questions)]
        sown = np.repeat(np.delete(letters, places), repeats if decoys else 0)
        background = rng.permutation(np.concatenate([sown, rng.choice(around, away - len(sown))]))
        builder.add(f"recall_{number}_{away}", "".join([*flank, *store, *background.tolist(), *asked]))
    return builder.build()


class RecalledValues:
    """Each question's value is a target and shown as `<mask>`, nothing else is; the same in every epoch.

    The questions are the last `questions` keys of a sequence.
    """

    per_sequence = False

    def __init__(self, corpus: Corpus, *, questions: int = 16) -> None:
        self.corpus = corpus
        self.questions = questions

    def example(self, record: int, epoch: int) -> Example:
        residues = self.corpus.sequence(record)
        keys = np.flatnonzero(_IS_KEY[residues])[-self.questions :]
        rows = keys + 2  # <cls>, and the value stands behind its key
        tokens = segment(residues)
        targets = tokens[rows]
        tokens[rows] = alphabet.MASK
        return Example(tokens, rows, targets, np.ones(len(rows), bool))

    def weight(self, records: np.ndarray) -> float:
        return float(len(records) * self.questions)

    @property
    def empty(self) -> Example:
        return without_targets()


def question_alone(objective: RecalledValues, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """NLL (nats) and hits of each target `[targets]`, of one who sees the key before the mask and knows `counts`."""
    shares = (counts + 1e-3) / (counts + 1e-3).sum(axis=1, keepdims=True)
    before, targets = question_pairs(objective)
    return -np.log(shares[before, targets]), shares[before].argmax(axis=1) == targets


def question_pairs(objective: RecalledValues) -> tuple[np.ndarray, np.ndarray]:
    """The key before each target, and the target, of all records: int64 `[targets]` each."""
    examples = [objective.example(record, 0) for record in range(len(objective.corpus))]
    before = np.concatenate([example.tokens[example.rows - 1] for example in examples])
    return before, np.concatenate([example.targets for example in examples])


def question_counts(objective: RecalledValues) -> np.ndarray:
    """How often each value answers each key, `[33, 33]` by token."""
    counts = np.zeros((len(alphabet.TOKENS),) * 2)
    np.add.at(counts, question_pairs(objective), 1)
    return counts
