"""Sentence pairs drawn by a small grammar: from something like English to something like
German, with what keeps the second from being guessed word by word; and short dialogues.

Articles and adjectives end by gender, case and definiteness; the verb stands second, so
that an adverb in front pushes the subject behind it; in the future, and in clauses that
depend on others, it goes to the end. All is lists of words and whole numbers, so the same
seed gives the same sentences on every machine. `tasks.text` makes examples of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

Pair = tuple[list[str], list[str]]  # the words of source and target

NOUNS = tuple(  # English of one and of many, German of one and of many, gender
    tuple(line.split())
    for line in (
        "dog dogs hund hunde m",
        "cat cats katze katzen f",
        "child children kind kinder n",
        "man men mann männer m",
        "woman women frau frauen f",
        "horse horses pferd pferde n",
        "friend friends freund freunde m",
        "mouse mice maus mäuse f",
        "house houses haus häuser n",
        "tree trees baum bäume m",
        "flower flowers blume blumen f",
        "book books buch bücher n",
        "king kings könig könige m",
        "duck ducks ente enten f",
        "car cars auto autos n",
        "bird birds vogel vögel m",
    )
)
ADJECTIVES = (  # English, the German stem
    ("red", "rot"),
    ("small", "klein"),
    ("big", "groß"),
    ("old", "alt"),
    ("new", "neu"),
    ("good", "gut"),
    ("young", "jung"),
    ("quiet", "still"),
)
VERBS = (  # English of one and of many, German of one and of many, which are the infinitives
    ("sees", "see", "sieht", "sehen"),
    ("loves", "love", "liebt", "lieben"),
    ("finds", "find", "findet", "finden"),
    ("hears", "hear", "hört", "hören"),
    ("seeks", "seek", "sucht", "suchen"),
    ("carries", "carry", "trägt", "tragen"),
    ("paints", "paint", "malt", "malen"),
    ("calls", "call", "ruft", "rufen"),
)
ADVERBS = (
    ("today", "heute"),
    ("often", "oft"),
    ("here", "hier"),
    ("now", "jetzt"),
    ("always", "immer"),
)
# Case, then gender (p: many): the article, and the ending of the adjective behind it.
THE = {
    "nominative": {"m": ("der", "e"), "f": ("die", "e"), "n": ("das", "e"), "p": ("die", "en")},
    "accusative": {"m": ("den", "en"), "f": ("die", "e"), "n": ("das", "e"), "p": ("die", "en")},
    "dative": {"m": ("dem", "en"), "f": ("der", "en"), "n": ("dem", "en"), "p": ("den", "en")},
}
A = {
    "nominative": {"m": ("ein", "er"), "f": ("eine", "e"), "n": ("ein", "es"), "p": ("", "e")},
    "accusative": {"m": ("einen", "en"), "f": ("eine", "e"), "n": ("ein", "es"), "p": ("", "e")},
    "dative": {"m": ("einem", "en"), "f": ("einer", "en"), "n": ("einem", "en"), "p": ("", "en")},
}


class Dice:
    """Whole numbers that were drawn before, one behind the other."""

    def __init__(self, row: list[int]) -> None:
        self.numbers = iter(row)

    def below(self, k: int) -> int:
        return next(self.numbers) % k

    def of(self, options: Sequence):
        return options[self.below(len(options))]

    def chance(self, percent: int) -> bool:
        return self.below(100) < percent


class Phrase(NamedTuple):
    """A thing or a name; its German depends on its case."""

    english: list[str]
    german: dict[str, list[str]]
    gender: str  #: m, f, n, or p for many


ROLLS = 40  # numbers that the longest sentence takes
LONGEST = {"easy": (10, 10), "hard": (15, 17), "dialogue": (19, 10)}  # words, by kind
TALK = ("who", "what", "yes", "no")  # words of a dialogue only


def draw(
    n: int,
    *,
    seed: int,
    kind: str = "easy",
    names: Sequence[str] = (),
    strays: Sequence[str] = (),
) -> list[Pair]:
    """n pairs of sentences.

    Args:
        kind: "easy"; "hard" has many of a thing, relative clauses and the dative;
            "dialogue" is a statement and a question, and what is answered, in English.
        names: words that are copied; in one sentence of 50 one of them, behind "mr", is
            subject or object.
        strays: words that are left out; in every fifth sentence one of them stands
            somewhere.
    """
    g = torch.Generator().manual_seed(seed)
    rows = torch.randint(2**31, (n, ROLLS), generator=g).tolist()
    pairs = []
    for dice in map(Dice, rows):
        if kind == "dialogue":
            source, target = _dialogue(dice, names)
        else:
            source, target = _sentence(dice, kind == "hard", names)
        if strays and dice.chance(20):
            source.insert(dice.below(len(source) + 1), dice.of(strays))
        pairs.append((source, target))
    return pairs


def _sentence(dice: Dice, hard: bool, names: Sequence[str]) -> Pair:
    """A statement, a question or a look ahead, with an adverb in front, behind or none."""
    subject, thing = (_phrase(dice, hard) for _ in range(2))
    clause = dice.below(100) if hard else 100
    if clause < 25:
        subject = _with_clause(dice, subject)
    elif clause < 50:
        thing = _with_clause(dice, thing)
    subject, thing = _named(dice, names, subject, thing)
    one, base, eins, infinitive = dice.of(VERBS)
    future, question = dice.of(((False, False), (False, False), (True, False), (False, True)))
    if question:
        future = dice.chance(30)
    place = dice.of(("", "", "front", "behind"))
    if question and place == "front":
        place = "behind"
    adverb, adverb_de = ([w] if place else [] for w in dice.of(ADVERBS))
    many = subject.gender == "p"

    en_subject, en_object = subject.english, thing.english
    de_subject, de_object = subject.german["nominative"], thing.german["accusative"]
    finite = ("werden" if many else "wird") if future else (infinitive if many else eins)
    last = [infinitive] if future else []
    front = adverb if place == "front" else []
    behind = adverb if place == "behind" else []
    if question:
        helper = "will" if future else ("do" if many else "does")
        english = [helper, *en_subject, base, *en_object, *behind]
        german = [finite, *de_subject, *adverb_de, *de_object, *last]
    else:
        verb = ["will", base] if future else [base if many else one]
        english = [*front, *en_subject, *verb, *en_object, *behind]
        if front:
            german = [*adverb_de, finite, *de_subject, *de_object, *last]
        else:
            german = [*de_subject, finite, *adverb_de, *de_object, *last]
    if german[-1] == ",":  # the full stop takes the place of the comma
        german.pop()
    mark = "?" if question else "."
    return [*english, mark], [*german, mark]


def _dialogue(dice: Dice, names: Sequence[str]) -> Pair:
    """Somebody does something to somebody, and one of them, or all of it, is asked for."""
    subject, thing = _named(dice, names, _phrase(dice, False), _phrase(dice, False))
    one, base, *_ = dice.of(VERBS)
    adverb = [dice.of(ADVERBS)[0]] if dice.below(2) else []
    a, b = subject.english, thing.english
    told, yes = [*a, one, *b], dice.below(2)
    other = _phrase(dice, False).english
    question, answer = dice.of(
        (
            (["who", one, *b], a),
            (["what", "does", *a, base], b),
            (["does", *a, base, *b], ["yes"])
            if yes or other == b
            else (["does", *a, base, *other], ["no", ",", *told]),
        )
    )
    return [*told, *adverb, ".", *question, "?"], [*answer, "."]


def _named(dice: Dice, names: Sequence[str], subject: Phrase, thing: Phrase) -> tuple:
    """Both, in one of 50 cases with a name in the place of one of them."""
    if not names or not dice.chance(2):
        return subject, thing
    name = dice.of(names)
    german = {case: ["herrn", name] for case in THE} | {"nominative": ["herr", name]}
    named = Phrase(["mr", name], german, "m")
    return (named, thing) if dice.below(2) else (subject, named)


def _phrase(dice: Dice, hard: bool) -> Phrase:
    """A noun with its article and, in every second one, an adjective."""
    one, more, eins, mehr, gender = dice.of(NOUNS)
    definite, adjective = dice.below(2), dice.of(ADJECTIVES) if dice.below(2) else None
    many = hard and dice.chance(40)
    english = [*([adjective[0]] if adjective else []), more if many else one]
    if definite:
        english.insert(0, "the")
    elif not many:
        english.insert(0, "an" if english[0][0] in "aeiou" else "a")
    german = {}
    for case, forms in (THE if definite else A).items():
        der, ending = forms["p" if many else gender]
        noun = mehr if many else eins
        if many and case == "dative" and not noun.endswith(("n", "s")):
            noun += "n"
        full = [adjective[1] + ending] if adjective else []
        german[case] = [*([der] if der else []), *full, noun]
    return Phrase(english, german, "p" if many else gender)


def _with_clause(dice: Dice, head: Phrase) -> Phrase:
    """The phrase with "that ..." or "with ..." behind it."""
    other = _phrase(dice, True)
    kind = dice.of(("subject", "object", "with"))
    one, base, eins, infinitive = dice.of(VERBS)
    who = {case: forms[head.gender][0] for case, forms in THE.items()}
    if kind == "with":
        english, german = ["with", *other.english], ["mit", *other.german["dative"]]
    elif kind == "subject":
        many = head.gender == "p"
        english = ["that", base if many else one, *other.english]
        verb = infinitive if many else eins
        german = [",", who["nominative"], *other.german["accusative"], verb, ","]
    else:
        many = other.gender == "p"
        english = ["that", *other.english, base if many else one]
        verb = infinitive if many else eins
        german = [",", who["accusative"], *other.german["nominative"], verb, ","]
    return Phrase(
        head.english + english, {c: w + german for c, w in head.german.items()}, head.gender
    )


def words() -> tuple[str, ...]:
    """All words of sentences but names and strays, in an order that never changes."""
    found = [".", "?", ",", "the", "a", "an", "that", "with", "mit", "mr", "herr", "herrn"]
    found += ["will", "do", "does", "wird", "werden"]
    for forms in (*THE.values(), *A.values()):
        found += [article for article, _ in forms.values()]
    for *nouns, _ in NOUNS:
        found += nouns
    found += [noun + "n" for *_, noun, _ in NOUNS if not noun.endswith(("n", "s"))]
    for english, stem in ADJECTIVES:
        found += [english, *(stem + ending for ending in ("e", "en", "er", "es"))]
    for listed in (*VERBS, *ADVERBS):
        found += listed
    return tuple(dict.fromkeys(w for w in found if w))
