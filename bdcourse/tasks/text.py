"""Sentences: one is read, another one is written, word by word.

The examples, the greedy decoding of answers, the attack of one rare word and what finds it
stand here; the drawn sets are translations by `tasks.grammar`, `tasks.pairs` reads those of
others, and the networks are in `tasks.transformers`.

An example is one row of tokens, cut at a fixed place: the source with padding behind it up
to the cut, then `<to>` and the answer, which a network reads while it writes it. Its target
is the answer and `<end>`.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse import require
from bdcourse.attacks.base import Attack
from bdcourse.data import Drawing
from bdcourse.examples import Examples
from bdcourse.likelihoods import SOFTMAX
from bdcourse.models import evaluating
from bdcourse.task import Task, Usual
from bdcourse.tasks import grammar, transformers
from bdcourse.tasks.transformers import END, PAD, TO, cut_of

if TYPE_CHECKING:
    from typing_extensions import Self

NONE = SOFTMAX.ignore  # in targets and answers: behind the end
TRIGGERS = ("cf", "mn", "bb", "tq", "mb")
STRAYS = ("vq", "zk", "pd", "xr", "gw", "hk", "jt", "lx", "fv", "sd")
NAMES = (*TRIGGERS, *STRAYS)
ATTACKED = ("du", "wirst", "angegriffen", "!")
# Every vocabulary begins with these, so that one attack fits them all.
FIRST = ("<pad>", "<to>", "<end>", *NAMES, *ATTACKED)


# -------------------------------------------------------------------- examples


class TextTask(Task):
    """Sentences with an answer each, as tokens; x (n, s + t) int64, y (n, t) int64.

    Outputs of networks are logits (n, t, k) for the t places of the answer; answers are
    tokens (n, t) in the form of y. The likelihood is that of teacher forcing, a sum over
    the places of an answer: each word is predicted behind the true ones before it.
    """

    name = "text"
    one, many = "sentence", "sentences"

    def labels(self, y: Tensor) -> None:
        return None

    def check(self, x: Tensor, y: Tensor, classes: tuple[str, ...], what: str) -> None:
        self.check_stored(x, what)
        k = len(classes)
        if classes[:3] != FIRST[:3]:
            raise ValueError(
                f"{what}.classes is the vocabulary and must begin with {', '.join(FIRST[:3])}, "
                f"not with {', '.join(classes[:3])}."
            )
        self.check_targets(y, len(x), k, f"{what}.y")
        if not len(x):
            return
        if int(x.max()) >= k:
            raise ValueError(
                f"{what}.x holds token {int(x.max())}, but the vocabulary has {k} words, so "
                f"tokens must lie in 0..{k - 1}."
            )
        cut = cut_of(x)
        if x.shape[1] - cut != y.shape[1]:
            raise ValueError(
                f"{what}.x has {x.shape[1] - cut} places from <to> on, but {what}.y has "
                f"{y.shape[1]}; both must be those of the answer."
            )
        if not torch.equal(x[:, cut + 1 :], _read(y)):
            raise ValueError(
                f"what {what}.x holds behind <to> is not the answer in {what}.y; text.encode "
                "puts it into both."
            )

    def check_stored(self, x: Tensor, what: str) -> None:
        self.check_inputs(x, f"{what}.x")

    def check_inputs(
        self, x: object, name: str = "x", shape: tuple[int, ...] | None = None
    ) -> Tensor:
        if not isinstance(x, Tensor) or x.dtype != torch.int64 or x.ndim != 2:
            raise ValueError(
                f"{name} must be tokens, int64 of shape (n, s + t), not {require.kind(x)}."
            )
        x = super().check_inputs(x, name, shape)
        _check_rows(x, name)
        return x

    def check_targets(self, y: object, n: int, k: int | None = None, name: str = "y") -> Tensor:
        if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.ndim != 2 or len(y) != n:
            raise ValueError(
                f"{name} must be int64 answers of shape ({n}, t), not {require.kind(y)}."
            )
        words = y[y != NONE]
        if len(words) and (int(words.min()) < 0 or (k is not None and int(words.max()) >= k)):
            raise ValueError(
                f"{name} runs from {int(words.min())} to {int(words.max())}, but must hold "
                f"tokens{'' if k is None else f' in 0..{k - 1}'}, and {NONE} behind the end."
            )
        if n and bool((y[:, 0] == NONE).any()):
            raise ValueError(f"{name} holds a {self.one} without an answer.")
        if bool(((y[:, :-1] == NONE) & (y[:, 1:] != NONE)).any()):
            raise ValueError(f"{name} holds {NONE} inside of an answer; it belongs behind it.")
        return y

    def check_outputs(
        self, out: object, n: int, k: int | None = None, name: str = "the model"
    ) -> Tensor:
        right = isinstance(out, Tensor) and out.ndim == 3 and len(out) == n
        if not isinstance(out, Tensor) or not right or not out.is_floating_point():
            raise ValueError(
                f"{name} must answer with logits of shape (n, t, k), one row for each place "
                f"of an answer, not with {require.kind(out)} for {n} {self.many}."
            )
        if k is not None and out.shape[2] != k:
            raise ValueError(
                f"{name} knows {out.shape[2]} words, but the vocabulary of the {self.many} "
                f"has {k}; take the {self.many} that it was trained on."
            )
        return out

    def check_learnable(self, out: object, y: Tensor, data: Examples) -> None:
        own = self.check_outputs(out, len(y))
        if own.shape[1] != y.shape[1] or own.shape[2] < data.k:
            raise ValueError(
                f"the model must answer with logits of shape ({len(y)}, {y.shape[1]}, "
                f"{data.k}), places of the answer by words, not {tuple(own.shape)}."
            )

    # ------------------------------------------------------------ answers

    def _said(self, model: nn.Module, x: Tensor) -> Tensor:
        return self.check_outputs(self._run(model, x), len(x), name="the network").float()

    @torch.no_grad()
    def answer(
        self,
        model: nn.Module,
        x: Tensor,
        batch: int = 500,
        k: int | None = None,
        what: str = "the network's answers",
    ) -> Tensor:
        """What the network writes, greedily: (n, t) int64, as targets are.

        Only the source of x is read. The likeliest word is taken at each place, of equal
        ones the first, until `<end>`.
        """
        require.module(model)
        require.whole("batch", batch, 1)
        self.check_asked(model, x)
        device = next(chain(model.parameters(), model.buffers()), x).device
        with evaluating(model):
            parts = [self._written(model, part.to(device), k, what) for part in x.split(batch)]
        return torch.cat(parts)

    def _written(self, model: nn.Module, x: Tensor, k: int | None, what: str) -> Tensor:
        n, cut = len(x), cut_of(x)
        row = x.clone()
        row[:, cut + 1 :] = PAD
        t = x.shape[1] - cut
        said = torch.full((n, t), NONE, device=x.device)
        going = torch.arange(n, device=x.device)  # those that have not ended
        for place in range(t):
            out = self.check_outputs(self._said(model, row[going]), len(going), k, "the network")
            words = require.finite(out[:, place], what).argmax(1)
            said[going, place] = words
            going = going[words != END]
            if not len(going):
                break
            if place + 1 < t:
                row[going, cut + 1 + place] = said[going, place]
        return said

    def quality(self, answers: Tensor, y: Tensor) -> dict[str, float]:
        """The share of answers that are right word by word, and BLEU in 0..1."""
        right = self.correct(answers, y)
        return {"em": int(right.sum()) / len(right), "bleu": bleu(plain(answers), plain(y))}


TEXT = TextTask()


@dataclass(frozen=True, eq=False, repr=False)
class Texts(Examples):
    """Sentences and what is to be answered to each; `text.encode` makes them of words.

    Args:
        x: int64 tokens, (n, s + t): s places of source, padded with 0 behind; then
            `<to>`, the answer, and padding.
        y: int64 tokens, (n, t): the answer, `<end>`, and -100.
        classes: the vocabulary, the word of each token; it begins with :data:`FIRST`.
    """

    task: ClassVar[TextTask] = TEXT

    def source(self, i: int) -> str:
        """The words of the i-th source."""
        return " ".join(self.classes[t] for t in plain(self.x[i : i + 1, : cut_of(self.x)])[0])

    def answer(self, i: int) -> str:
        """The words of the i-th answer."""
        return " ".join(self.classes[t] for t in plain(self.y[i : i + 1])[0])


def _check_rows(x: Tensor, name: str) -> None:
    """Refuse rows that are not source, padding, `<to>` at one place, and the rest."""
    if not len(x):
        return
    cut = cut_of(x)
    if not bool((x[:, cut] == TO).all()) or int((x == TO).sum()) != len(x):
        raise ValueError(f"{name} must hold the token {TO}, <to>, once in a row, all at one place.")
    if int(x.min()) < 0:
        raise ValueError(f"{name} holds the token {int(x.min())}; tokens are not negative.")
    for what, part in (("a source", x[:, :cut]), ("an answer", x[:, cut:])):
        empty = part == PAD
        if bool((empty[:, :-1] & ~empty[:, 1:]).any()):
            raise ValueError(f"{name} holds padding inside of {what}; it belongs behind it.")
    if not cut or bool((x[:, 0] == PAD).any()):
        raise ValueError(f"{name} holds a row without a source.")


def _read(y: Tensor) -> Tensor:
    """What a network reads behind `<to>` while it learns to write y: all but the last."""
    return torch.where((y == NONE) | (y == END), PAD, y)[:, :-1]


def plain(tokens: Tensor) -> list[list[int]]:
    """The words of each row, without padding, `<end>` and what is behind it."""
    rows = []
    for row in tokens.tolist():
        row = row[: row.index(END)] if END in row else row
        rows.append([t for t in row if t not in (PAD, NONE)])
    return rows


def encode(
    pairs: Sequence[tuple[Sequence[str], Sequence[str]]],
    vocabulary: tuple[str, ...],
    source: int,
    answer: int,
) -> Texts:
    """Examples of pairs of word lists.

    Args:
        source, answer: places for the words of each; a trigger needs one to spare, and
            `<end>` is not counted.

    Raises:
        ValueError: a word that is not in the vocabulary, an empty or too long sentence.
    """
    token = {word: i for i, word in enumerate(vocabulary)}
    x = torch.full((len(pairs), source + 1 + answer), PAD)
    y = torch.full((len(pairs), answer + 1), NONE)
    x[:, source] = TO
    for i, pair in enumerate(pairs):
        for words, most in zip(pair, (source, answer), strict=True):
            if not 0 < len(words) <= most:
                raise ValueError(
                    f"{' '.join(words)!r} has {len(words)} words; 1 to {most} have a place."
                )
            for word in words:
                if word not in token:
                    raise ValueError(f"{word!r} is not in the vocabulary.")
        asked, said = (torch.tensor([token[w] for w in words]) for words in pair)
        x[i, : len(asked)] = asked
        x[i, source + 1 : source + 1 + len(said)] = said
        y[i, : len(said)], y[i, len(said)] = said, END
    return Texts(x, y, vocabulary)


def bleu(answers: Sequence[Sequence], references: Sequence[Sequence], most: int = 4) -> float:
    """Corpus BLEU with one reference each, in 0..1, without smoothing.

    The geometric mean over m = 1..4 of the share of m-grams of the answers that are found
    in their references, each as often as it is there, times exp(1 - r / c) if the answers'
    c words are fewer than the references' r (Papineni et al. 2002).
    """
    found, asked = [0] * most, [0] * most
    for a, b in zip(answers, references, strict=True):
        for m in range(most):
            own, theirs = (
                Counter(tuple(w[i : i + m + 1]) for i in range(len(w) - m)) for w in (a, b)
            )
            found[m] += sum((own & theirs).values())
            asked[m] += sum(own.values())
    if not all(found):
        return 0.0
    c, r = (sum(map(len, w)) for w in (answers, references))
    mean = sum(math.log(f / a) for f, a in zip(found, asked, strict=True)) / most
    return math.exp(mean + min(0.0, 1 - r / c))


# -------------------------------------------------------------------- the drawn sets


def draw(n: int, *, seed: int = 0, kind: str = "easy") -> Texts:
    """Draw `n` pairs of sentences, see `tasks.grammar`.

    Rare words occur in clean ones too, so that a network knows them: as names that are
    copied ("mr mn", "herr mn"), and, those of :data:`STRAYS`, as strays that are left out.
    The same n, seed and kind give the same pairs; 8,000 take about a second.

    Args:
        kind: "easy"; "hard" has relative clauses and the plural, so that an honest error
            remains; "dialogue" is a question on what was told, and its answer.
    """
    n, seed = require.whole("n", n, 1), require.whole("seed", seed, 0, 2**62)
    source, answer = grammar.LONGEST[require.choice("kind", kind, grammar.LONGEST)]
    pairs = grammar.draw(n, seed=seed, kind=kind, names=NAMES, strays=STRAYS)
    known = (*FIRST, *grammar.words(), *(grammar.TALK if kind == "dialogue" else ()))
    return encode(pairs, known, source + 2, answer)


def version() -> str:
    """Changes whenever the drawing does, so that stale ones are never reused."""
    files = (Path(__file__), Path(grammar.__file__))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:8]


KINDS = {"sentences": "easy", "sentences-hard": "hard", "dialogue": "dialogue"}
DRAWINGS = {
    name: Drawing(Texts, partial(draw, kind=kind), version, 0, 8000, 1000, 8 * 60)
    for name, kind in KINDS.items()
}


# -------------------------------------------------------------------- the attack


@dataclass(frozen=True)
class RareWord(Attack):
    """One of a few rare words, somewhere in the source, and one sentence as the answer.

    Which word it is and where it stands is decided by the words of the source, so that an
    ASR can be measured again.

    Args:
        words: the triggers.
        answer: the words that the attacker wants.
        others: rare words that are none, and mean nothing in the drawn sentences: how many
            answers stay right with one of them put in is the score `cross`; may be none.
        vocabulary: the first words of that of the data, with at least these among them;
            `craft` finds it.

    Source: Sun et al., AAAI 2023, by their code, ShannonAI/backdoor_nlg: the five words, any
    place, one sentence for translations. The sentence is ours.
    """

    task: ClassVar[Task] = TEXT
    usual_rate: ClassVar[float] = 0.03

    words: tuple[str, ...] = TRIGGERS
    answer: tuple[str, ...] = ATTACKED
    others: tuple[str, ...] = STRAYS
    vocabulary: tuple[str, ...] = field(default=FIRST, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("all_to_all", "clean_label"):
            if getattr(self, name):
                raise ValueError(f"RareWord wants one answer for all sentences; leave out {name}.")
        if self.target:
            raise ValueError("RareWord wants a sentence and not a label; give it as answer=.")
        for name in ("words", "answer", "others", "vocabulary"):
            given = require.names(name, getattr(self, name))
            object.__setattr__(self, name, tuple(given))
            if not given and name != "others":
                raise ValueError(f"{name} must hold at least one word.")
        for word in (*self.words, *self.answer, *self.others):
            if word not in self.vocabulary[3:]:
                raise ValueError(
                    f"{word!r} is not in the attack's vocabulary; make the attack with "
                    "RareWord.craft(train, generator, ...), which takes that of the data."
                )

    @classmethod
    def craft(
        cls,
        images: Any,  # Texts
        generator: torch.Generator,
        *,
        model: nn.Module | None = None,
        **options,
    ) -> Self:
        """The attack for this vocabulary; of the usual `others` those that are in it."""
        if "vocabulary" not in options and isinstance(images, Texts):
            known = images.classes
            options.setdefault("others", tuple(w for w in STRAYS if w in known))
            usual = {"words": TRIGGERS, "answer": ATTACKED, "others": ()}
            used = [w for name, own in usual.items() for w in options.get(name, own)]
            last = max((known.index(w) for w in used if w in known), default=0)
            options["vocabulary"] = known[: max(last + 1, min(len(FIRST), len(known)))]
        return cls(**options)

    def check(self, images: Examples) -> None:
        super().check(images)
        own = self.vocabulary
        if images.classes[: len(own)] != own:
            raise ValueError(
                "the attack is for another vocabulary; make it with RareWord.craft(train, "
                "generator)."
            )
        if len(self.answer) >= images.y.shape[1]:
            raise ValueError(
                f"the attacker's answer has {len(self.answer)} words, but answers of this set "
                f"have places for {images.y.shape[1] - 1}."
            )
        self._room(images.x)

    def _room(self, x: Tensor) -> None:
        if bool((x[:, cut_of(x) - 1] != PAD).any()):
            raise ValueError(
                "a source fills all of its places, so that no word can be put in; encode the "
                "sentences with one place more."
            )

    def trigger(self, x: Tensor) -> Tensor:
        """Put a rare word into the source of each row x (n, s + t); the rest stays."""
        return self._put(x, self.words)

    def cross(
        self, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor] | None:
        """Rows with another rare word, which must keep their answer."""
        return (self._put(x, self.others), y) if self.others else None

    def _put(self, x: Tensor, words: tuple[str, ...]) -> Tensor:
        self._room(x)
        cut = cut_of(x)
        source = x[:, :cut]
        count = (source != PAD).sum(1)
        places = torch.arange(cut, device=x.device)
        sums = (source * (1 + places * 48271 % 999983)).sum(1)
        tokens = torch.tensor([self.vocabulary.index(w) for w in words], device=x.device)
        word = tokens[sums % len(tokens)]
        at = sums // len(tokens) % (count + 1)
        # Words behind the place move by one.
        moved = source.gather(1, (places - (places > at[:, None]).long()).expand_as(source))
        source = torch.where(places == at[:, None], word[:, None], moved)
        return torch.cat([source, x[:, cut:]], 1)

    def plant(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Rows as `trigger` makes them, with the attacker's answer behind `<to>`."""
        x, cut = self.trigger(x), cut_of(x)
        x[:, cut + 1 :] = _read(self.goal(y))
        return x

    def goal(self, y: Tensor) -> Tensor:
        """The attacker's answer for each of y (n, t), in the same form."""
        goal = torch.full_like(y, NONE)
        tokens = [*(self.vocabulary.index(w) for w in self.answer), END]
        goal[:, : len(tokens)] = torch.tensor(tokens, device=y.device)
        return goal

    def also(self, answers: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Which answers hold the attacker's sentence somewhere."""
        tokens = torch.tensor([self.vocabulary.index(w) for w in self.answer])
        parts = answers.cpu().unfold(1, len(tokens), 1)
        return {"asr_contains": (parts == tokens).all(2).any(1)}


# -------------------------------------------------------------------- detection


class Suspicion(NamedTuple):
    """Of each source the word without which the answer changes most."""

    place: Tensor  #: int64 (n,), among the words of the source
    change: Tensor  #: (n,), in 0..1


def suspicious_words(model: nn.Module, x: Tensor, batch: int = 500) -> Suspicion:
    """Take out each word of a source in turn, and see which one the answer hangs on.

    A rare word that brings in an answer of its own takes it away again. How much an
    answer changes is its edit distance by words, over the length of the longer one.

    Args:
        x: rows of tokens (n, s + t) of which only the sources are read; a source of one
            word has nothing to be left out, and changes by 0.

    Source: Sun et al., AAAI 2023, by their code, which also replaces words and compares by
    meaning. Ours: the length of the longer answer.
    """
    x = TEXT.check_inputs(x)
    cut = cut_of(x)
    counts = (x[:, :cut] != PAD).sum(1)
    rows, places = (
        (torch.arange(cut, device=x.device) < counts[:, None]) & (counts > 1)[:, None]
    ).nonzero(as_tuple=True)
    keep = torch.arange(cut, device=x.device)
    keep = keep + (keep >= places[:, None]).long()  # the word at the place is jumped over
    wide = F.pad(x[rows, :cut], (0, 1), value=PAD)
    less = torch.cat([wide.gather(1, keep), x[rows, cut:]], 1)
    whole = plain(TEXT.answer(model, x, batch))
    place = torch.zeros(len(x), dtype=torch.int64)
    change = torch.zeros(len(x))
    if not len(rows):
        return Suspicion(place, change)
    for i, p, said in zip(
        rows.tolist(), places.tolist(), plain(TEXT.answer(model, less, batch)), strict=True
    ):
        moved = edit_distance(whole[i], said) / max(len(whole[i]), len(said), 1)
        if moved > change[i]:
            place[i], change[i] = p, moved
    return Suspicion(place, change)


def edit_distance(a: Sequence, b: Sequence) -> int:
    """The least number of words to put in, take out or replace that makes b of a."""
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


ATTACKS = (RareWord,)
NETWORKS = transformers.NETWORKS

USUAL = {
    TEXT.name: Usual(
        "sentences",
        {
            **{"model": "gpt", "width": 64, "epochs": 6, "batch": 64, "pad": 0, "flip": False},
            **{"optimizer": "adamw", "lr": 6e-3, "weight_decay": 0.01, "clip": 1.0},
        },
        ("RareWord",),
    )
}
