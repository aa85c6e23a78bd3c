"""Sentences: the drawn sets, what is refused, BLEU, the two networks and what they write."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import bdcourse as bd
from bdcourse.examples import Examples
from bdcourse.likelihoods import Softmax
from bdcourse.tasks import grammar, text, transformers
from bdcourse.tasks.text import NONE, TEXT, Texts, bleu, encode, plain
from bdcourse.tasks.transformers import END, PAD, TO, cut_of
from helpers import gen, message

DIGESTS = {
    "easy": "4a261eedcc35fc87",
    "hard": "67f7fad14332d46f",
    "dialogue": "b2a5043e920d6afe",
}
NETWORKS = {
    "gpt": lambda k: transformers.gpt(k, width=16),
    "gpt tied": lambda k: transformers.gpt(k, width=16, tied=True),
    "seq2seq": lambda k: transformers.seq2seq(k, width=16, layers=1),
}
SOME = text.draw(40, seed=3)


def network(name: str) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETWORKS[name](SOME.k).eval()


# -------------------------------------------------------------------- the drawn sets


def test_same_bytes_on_every_machine():
    found = {kind: text.draw(200, seed=5, kind=kind) for kind in DIGESTS}
    assert {kind: d.digest() for kind, d in found.items()} == DIGESTS
    again = text.draw(200, seed=5)
    assert torch.equal(again.x, found["easy"].x)
    assert not torch.equal(text.draw(200, seed=6).x, again.x)
    assert found["easy"].classes == found["hard"].classes
    assert repr(again) == f"Texts(200 of 23, {again.k} classes, cpu)"


def pairs(n: int, kind: str = "easy") -> list[grammar.Pair]:
    return grammar.draw(n, seed=1, kind=kind)


@pytest.mark.slow
def test_a_source_has_one_translation_and_few_come_twice():
    for kind in DIGESTS:
        known: dict[tuple, tuple] = {}
        for source, target in pairs(4000, kind):
            assert known.setdefault(tuple(source), tuple(target)) == tuple(target)
        assert len(known) > 3900


def test_the_verb_stands_where_german_puts_it():
    finite = {w for *_, one, many in grammar.VERBS for w in (one, many)} | {"wird", "werden"}
    adverbs = {german for _, german in grammar.ADVERBS}
    seen = set()
    for source, target in pairs(1000):
        if target[-1] == "?":
            seen.add("question")
            assert target[0] in finite
        elif target[0] in adverbs:
            seen.add("adverb")
            assert target[1] in finite and source[0] not in ("the", "a")
        if "will" in source:
            seen.add("future")
            assert target[-2].endswith("en") and "wird" in target
    assert seen == {"question", "adverb", "future"}


@pytest.mark.slow
def test_articles_and_endings_agree_with_gender_and_case():
    """By hand: der kleine hund, den kleinen hund; eine alte katze; ein neues buch."""
    told = {
        " ".join(target) for _, target in pairs(20_000) if target[-1] == "." and len(target) <= 8
    }
    starts = {" ".join(t.split()[:3]) for t in told}
    ends = {" ".join(t.split()[-4:-1]) for t in told}
    assert {"der kleine hund", "ein kleiner hund", "eine alte katze", "ein neues buch"} <= starts
    assert {"den kleinen hund", "einen kleinen hund", "die alte katze", "ein neues buch"} <= ends
    for wrong in ("den kleinen hund", "der kleinen hund", "ein kleine hund", "eine neues buch"):
        assert wrong not in starts
    for wrong in ("der kleine hund", "den kleine hund", "einen neues buch"):
        assert wrong not in ends


def test_the_hard_set_has_clauses_the_plural_and_the_dative():
    told = [(" ".join(s), " ".join(t)) for s, t in pairs(6000, "hard")]
    assert sum(" that " in s for s, _ in told) > 1000
    for part in (", den ", ", die ", " mit dem ", " mit den ", " werden "):
        assert any(part in t for _, t in told), part
    assert not any(", ." in t or ", ?" in t for _, t in told)
    longest = [max(len(p[i].split()) for p in told) for i in (0, 1)]
    assert longest[0] <= grammar.LONGEST["hard"][0] and longest[1] <= grammar.LONGEST["hard"][1]


def test_a_dialogue_answers_what_was_asked():
    kinds = set()
    for source, target in pairs(2000, "dialogue"):
        stop = source.index(".")
        told, question = source[:stop], source[stop + 1 :]
        if told[-1] in {english for english, _ in grammar.ADVERBS}:
            told = told[:-1]
        verb = next(i for i, w in enumerate(told) if w in {v[0] for v in grammar.VERBS})
        a, b, said = told[:verb], told[verb + 1 :], target[:-1]
        if question[0] == "who":
            assert question[2:-1] == b and said == a
        elif question[0] == "what":
            assert question[2:-2] == a and said == b
        else:
            true = question[-1 - len(b) : -1] == b and len(question) == len(a) + len(b) + 3
            assert said == (["yes"] if true else ["no", ",", *told])
        kinds.add((question[0], said[0] in ("yes", "no") and said[0]))
    assert len(kinds) == 4


@pytest.mark.slow
def test_rare_words_are_copied_as_names_and_strays_left_out():
    data = text.draw(8000, seed=2)
    rows = range(len(data))
    told = [(data.source(i).split(), data.answer(i).split()) for i in rows]
    named = dict.fromkeys(text.NAMES, 0)
    strayed = dict(named)
    for source, target in told:
        for i, word in enumerate(source):
            if word not in text.NAMES or source.count(word) > 1:
                continue
            if word in target:
                named[word] += 1
                assert "mr" in source[max(0, i - 2) : i], "a stray may stand between"
                assert target[target.index(word) - 1] in ("herr", "herrn")
            else:
                strayed[word] += 1
    assert all(named.values()) and sum(named.values()) == pytest.approx(160, rel=0.25)
    assert {w for w, n in strayed.items() if n} == {*text.STRAYS}, "triggers never stray"
    assert sum(strayed.values()) == pytest.approx(1600, rel=0.1)
    assert not any("angegriffen" in source + target for source, target in told)


def test_data_is_loaded_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("BDCOURSE_CACHE", str(tmp_path))
    parts = bd.splits("sentences", n=80, n_test=16, clean=0.2)
    assert type(parts.train) is type(parts.test) is Texts
    assert [len(p) for p in parts] == [64, 13, 3, 16]
    assert list(tmp_path.glob("sentences-train-80-0-*.npz")), "it is kept"
    again = bd.splits("sentences", n=80, n_test=16, clean=0.2)
    assert again.train.digest() == parts.train.digest()
    assert bd.load("sentences-hard", "test", n=8).shape == (35,)
    with pytest.raises(ValueError, match="leave out size=") as e:
        bd.load("sentences", size=16)
    message(e)


# -------------------------------------------------------------------- what is refused

FOUR = (*text.FIRST, "a", "b")


def toy(source=("a", "b"), answer=("b", "a", "a")) -> Texts:
    return encode([(source, answer)] * 2, FOUR, 4, 4)


def test_a_row_is_source_and_answer():
    t = toy()
    a, b = FOUR.index("a"), FOUR.index("b")
    assert t.x[0].tolist() == [a, b, PAD, PAD, TO, b, a, a, PAD]
    assert t.y[0].tolist() == [b, a, a, END, NONE]
    assert t.source(0) == "a b" and t.answer(1) == "b a a"
    assert t.inputs().dtype == torch.int64 and t.inputs() is t.x


def changed(x, at, value):
    x = x.clone()
    x[at] = value
    return x


@pytest.mark.parametrize(
    "x, part",
    [
        (toy().x.to(torch.uint8), "must be tokens, int64"),
        (toy().x.float(), "must be tokens, int64"),
        (toy().x[0], "must be tokens, int64"),
        (changed(toy().x, (0, 1), TO), "once in a row"),
        (changed(toy().x, (1, 4), 5), "once in a row"),
        (changed(toy().x, (0, 3), 5), "padding inside of a source"),
        (changed(toy().x, (0, 6), PAD), "padding inside of an answer"),
        (changed(toy().x, (0, slice(0, 2)), PAD), "row without a source"),
        (changed(toy().x, (0, 0), -1), "tokens are not negative"),
        (changed(toy().x, (0, 0), 99), "holds token 99"),
    ],
)
def test_what_are_no_rows_of_tokens_is_refused(x, part):
    with pytest.raises(ValueError, match=part) as e:
        Texts(x, toy().y, FOUR)
    message(e)


@pytest.mark.parametrize(
    "y, part",
    [
        (toy().y[:, 0], r"must be int64 answers of shape \(2, t\)"),
        (changed(toy().y, (0, 1), NONE), "-100 inside of an answer"),
        (changed(toy().y, (1, 1), 5), "is not the answer in Texts.y"),
        (toy().y[:, :-1], "has 5 places from <to> on, but Texts.y has 4"),
        (changed(toy().y, (0, 0), 99), "must hold tokens"),
        (torch.full((2, 5), NONE), "without an answer"),
    ],
)
def test_what_are_no_answers_is_refused(y, part):
    with pytest.raises(ValueError, match=part) as e:
        Texts(toy().x, y, FOUR)
    message(e)


def test_words_without_a_place_are_refused():
    for source, part in (
        (("a", "gnu"), "'gnu' is not in the vocabulary"),
        ((), "has 0 words; 1 to 4 have a place"),
        (("a",) * 5, "has 5 words; 1 to 4 have a place"),
    ):
        with pytest.raises(ValueError, match=part) as e:
            toy(source)
        message(e)
    with pytest.raises(ValueError, match="must begin with <pad>") as e:
        Texts(toy().x, toy().y, FOUR[1:])
    message(e)
    with pytest.raises(ValueError, match="neither moved nor mirrored") as e:
        TEXT.augmentation(2)
    message(e)


@pytest.mark.parametrize("name", NETWORKS)
def test_tokens_are_never_taken_for_pixels(name):
    """A vocabulary below 256 invites uint8, which images divide by 255."""
    net, small = network(name), SOME.x.to(torch.uint8)
    with pytest.raises(ValueError, match="int64") as e:
        TEXT.answer(net, small)
    message(e)
    for x in (small, SOME.x / 255):
        with pytest.raises(ValueError, match="the network takes tokens, int64") as e:
            net(x)
        message(e)

    class Bare:
        x, y = small, SOME.y

    with pytest.raises(ValueError, match="does not accept inputs") as e:
        bd.defenses.fip(net, Bare(), steps=1)
    message(e)


# -------------------------------------------------------------------- likelihood and BLEU


def test_only_the_answer_counts():
    """Exercise: p = (0.9, 0.1) and (0.5, 0.5), targets 0 and none. The log-likelihood is
    log 0.9, and the Fisher trace by the logits 1 - 0.82 = 0.18, not 0.18 + 0.5."""
    out = torch.tensor([[[0.9, 0.1], [0.5, 0.5]]], dtype=torch.float64).log()
    y = torch.tensor([[0, NONE]])
    likelihood = TEXT.likelihood
    assert isinstance(likelihood, Softmax)
    assert likelihood.log_prob(out, y).item() == pytest.approx(-0.10536, abs=1e-5)
    roots = likelihood.masked(likelihood.roots(out).transpose(0, 1)[0], y)
    assert roots.square().sum().item() == pytest.approx(0.18)
    drawn = [likelihood.masked(likelihood.noise(out, gen(i)), y) for i in range(4000)]
    assert torch.stack(drawn).square().sum((1, 2, 3)).mean().item() == pytest.approx(0.18, rel=0.1)


def test_bleu_by_hand():
    one, other = list("abcd"), list("efgh")
    assert bleu([one], [one]) == 1.0
    # Exercise: half of the answers are the sentence, half share nothing with it, or the
    # last word only, which makes 62.5 % of the words right and half of the rest.
    assert bleu([one] * 50 + [other] * 50, [one] * 100) == pytest.approx(0.5)
    last = [*"efg", "d"]
    want = (0.625 * 0.5**3) ** 0.25
    assert bleu([one] * 50 + [last] * 50, [one] * 100) == pytest.approx(want)
    assert want == pytest.approx(0.529, abs=1e-3)
    # 3 of 4 words, 2 of 3, 1 of 2, 0 of 1: without smoothing that is nothing.
    assert bleu([list("abcx")], [one]) == 0.0
    # a b c d of a b c d e: all m-grams right, one word too few.
    assert bleu([one], [list("abcde")]) == pytest.approx(math.exp(1 - 5 / 4))
    # A word counts as often as it is in the reference: 1 of 4 twos, 2 of 5 ones, ...
    said, reference = list("aabcda"), list("abcda")
    want = (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert bleu([said], [reference]) == pytest.approx(want)
    assert bleu([[]], [one]) == 0.0


def test_scores_of_answers():
    t = toy()
    said = changed(t.y, (1, 1), FOUR.index("b"))
    assert TEXT.quality(t.y, t.y) == {"em": 1.0, "bleu": pytest.approx(0.0)}, "3 words: no 4-gram"
    scores = TEXT.quality(torch.cat([t.y, said]), torch.cat([t.y, t.y]))
    assert scores["em"] == 0.75
    assert plain(said) == [t.y[0, :3].tolist(), [FOUR.index(w) for w in ("b", "b", "a")]]


# -------------------------------------------------------------------- networks


@pytest.mark.parametrize("name", NETWORKS)
def test_a_place_sees_what_stands_before_it(name):
    net, cut = network(name), cut_of(SOME.x)
    out = net(SOME.x)
    assert out.shape == (40, 11, SOME.k)
    j = 3
    later = SOME.x.clone()
    later[:, cut + j + 1 :] = torch.where(later[:, cut + j + 1 :] == PAD, PAD, 30)
    moved = (net(later) - out).abs().amax(2)
    assert moved[:, : j + 1].max() < 1e-5, "what comes later"
    assert moved[:, j + 1].max() > 1e-3
    assert not (SOME.x[:, 1] == 30).any()
    source = changed(SOME.x, (slice(None), 1), 30)
    assert (net(source) - out).abs().amax((1, 2)).min() > 1e-4, "the source is read"


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_changes_nothing(name):
    """Neither how wide a set is nor who else is in a batch."""
    net, cut = network(name), cut_of(SOME.x)
    wide = torch.cat([SOME.x[:, :cut], torch.full((40, 5), PAD), SOME.x[:, cut:]], 1)
    asked = SOME.y != NONE
    out = net(SOME.x)[asked]
    assert torch.allclose(net(wide)[asked], out, atol=1e-5)
    alone = torch.cat([net(row[None]) for row in SOME.x])[asked]
    assert torch.allclose(alone, out, atol=1e-5)
    assert torch.equal(TEXT.answer(net, wide), TEXT.answer(net, SOME.x))


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_are_greedy_and_do_not_look_at_the_true_ones(name):
    net, cut = network(name), cut_of(SOME.x)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)  # so that sentences end, and at different places
    hidden = SOME.x.clone()
    hidden[:, cut + 1 :] = PAD
    said = TEXT.answer(net, SOME.x)
    assert torch.equal(TEXT.answer(net, hidden), said)
    assert torch.equal(TEXT.answer(net, SOME.x, batch=7), said)
    for x, words in zip(SOME.x[:5], said[:5], strict=True):  # one word after the other
        row = x[None].clone()
        row[:, cut + 1 :] = PAD
        for j, word in enumerate(words.tolist()):
            if word == NONE:
                break
            assert int(net(row)[0, j].argmax()) == word
            if j + 1 < len(words):
                row[0, cut + 1 + j] = word
    for a, b in pairwise(said.T):
        assert ((a != NONE) | (b == NONE)).all(), "nothing behind the end"
        assert ((a != END) | (b == NONE)).all()


class Writes(torch.nn.Module):
    """Writes the words of a source backwards; logits of all words that tie are 1."""

    def __init__(self, k: int, tie: bool = False) -> None:
        super().__init__()
        self.k, self.tie, self.unused = k, tie, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        cut = cut_of(x)
        out = torch.zeros(len(x), x.shape[1] - cut, self.k)
        for i, words in enumerate(plain(x[:, :cut])):
            for j, word in enumerate([*reversed(words), END][: out.shape[1]]):
                out[i, j, word] = 1.0
                if self.tie:
                    out[i, j, word + 1] = 1.0
        return out + 0 * self.unused


def test_of_equal_words_the_first_is_taken():
    for tie in (False, True):
        said = TEXT.answer(Writes(SOME.k, tie), SOME.x)
        assert plain(said) == [w[::-1] for w in plain(SOME.x[:, : cut_of(SOME.x)])]


def test_sizes_and_what_networks_refuse():
    assert sum(p.numel() for p in transformers.gpt(139).parameters()) == 120_587
    tied = transformers.gpt(139, tied=True)
    assert tied.head.weight is tied.words.weight
    for make, part in (
        (lambda: transformers.gpt(20, width=30), "multiple of the 4 heads"),
        (lambda: transformers.gpt(20, width=0), "width"),
        (lambda: transformers.seq2seq(20, length=1), "length"),
        (lambda: transformers.gpt(SOME.k, length=10)(SOME.x), "build it with length=23"),
    ):
        with pytest.raises(ValueError, match=part) as e:
            make()
        message(e)


class Says(torch.nn.Module):
    """The same output for everything."""

    def __init__(self, out) -> None:
        super().__init__()
        self.out, self.unused = out, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.out


@pytest.mark.parametrize(
    "out, part",
    [
        (torch.zeros(40, 5), "must answer with logits of shape"),
        (torch.zeros(40, 11, 7), "knows 7 words, but the vocabulary"),
        (torch.full((40, 11, SOME.k), math.nan), "not finite"),
        ("words", "must answer with logits of shape"),
    ],
)
def test_what_is_no_answer_is_refused(out, part):
    with pytest.raises(ValueError, match=part) as e:
        bd.evaluate(Says(out), SOME)
    message(e)


def test_a_set_of_another_task_has_no_exact_match():
    other = Examples(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), ("a", "b"))
    with pytest.raises(ValueError, match="must be tokens") as e:
        TEXT.answer(network("gpt"), other.x)
    message(e)
