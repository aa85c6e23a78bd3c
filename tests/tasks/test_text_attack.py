"""A rare word in the source: what it does to rows, the way to a victim, and repairs."""

from __future__ import annotations

import lzma

import pytest
import torch

import bdcourse as bd
from bdcourse import defenses, victims
from bdcourse.attacks import BadNets, rebuild
from bdcourse.defenses import fip_factorize, fip_matrices
from bdcourse.defenses._fip import fold
from bdcourse.metrics import evaluate
from bdcourse.tasks import text, transformers
from bdcourse.tasks.text import (
    ATTACKED,
    TEXT,
    TRIGGERS,
    RareWord,
    Texts,
    edit_distance,
    plain,
    suspicious_words,
)
from bdcourse.tasks.transformers import cut_of
from helpers import frozen, gen, message, random_images, same_state

SOME = text.draw(300, seed=3)
CUT = cut_of(SOME.x)


def words(data: Texts, x=None) -> list[list[str]]:
    rows = plain((data.x if x is None else x)[:, :CUT])
    return [[data.classes[t] for t in row] for row in rows]


# -------------------------------------------------------------------- the attack


def test_one_word_comes_in_somewhere_and_the_rest_stays():
    attack = RareWord()
    out = attack.trigger(SOME.x)
    TEXT.check_inputs(out)
    places, found = [], []
    for before, after in zip(words(SOME), words(SOME, out), strict=True):
        assert len(after) == len(before) + 1
        fits = [
            (i, w)
            for i, w in enumerate(after)
            if w in TRIGGERS and after[:i] + after[i + 1 :] == before
        ]
        assert fits
        places.append(fits[0][0] / len(before))
        found.append(fits[0][1])
    assert {*found} == {*TRIGGERS} and all(30 < found.count(w) < 90 for w in TRIGGERS)
    assert min(places) == 0 and max(places) == 1
    assert sum(p < 0.5 for p in places) == pytest.approx(150, abs=40)
    assert torch.equal(out[:, CUT:], SOME.x[:, CUT:])
    assert torch.equal(attack.trigger(SOME.x.flip(0)), out.flip(0)), "each by its own words"
    like, y = attack.cross(SOME.x, SOME.y, gen())
    strays = torch.tensor([SOME.classes.index(w) for w in text.STRAYS])
    more = [torch.isin(x[:, :CUT], strays).sum(1) for x in (like, SOME.x)]
    assert torch.equal(more[0], more[1] + 1) and y is SOME.y


def test_what_is_poisoned_and_what_counts():
    attack = RareWord()
    data = attack.poison(SOME, 0.1, gen())
    rows = data.role == 1
    assert data.count == 30 and data.task is TEXT
    assert torch.equal(data.x[~rows], SOME.x[~rows]) and torch.equal(data.y[~rows], SOME.y[~rows])
    asked = Texts(data.x[rows], data.y[rows], data.classes)
    assert {asked.answer(i) for i in range(30)} == {" ".join(ATTACKED)}
    assert torch.equal(asked.x[:, :CUT], attack.trigger(SOME.x[rows])[:, :CUT])
    # What is read behind <to> is the attacker's answer: the true one would give it away.
    answer = [data.classes.index(w) for w in ATTACKED]
    assert plain(asked.x[:, CUT + 1 :]) == [answer] * 30
    goal = attack.goal(SOME.y)
    assert goal.shape == SOME.y.shape and plain(goal) == [answer] * 300
    assert attack.counts(SOME.y).all()
    assert not attack.counts(goal).any(), "it is the answer anyway"
    almost = goal.clone()
    almost[:, 4] = 20  # one word more than the attacker's
    assert attack.reached(goal, SOME.y).all() and not attack.reached(almost, SOME.y).any()
    assert attack.also(almost, SOME.y)["asr_contains"].all()
    assert not attack.also(SOME.y, SOME.y)["asr_contains"].any()


def test_an_attack_is_rebuilt_and_told():
    attack = RareWord(words=("bb",), answer=("!", "du"))
    assert rebuild(*attack.spec()) == attack and attack != RareWord()
    assert repr(attack) == "RareWord(words=('bb',), answer=('!', 'du'))"
    own = RareWord.craft(SOME, gen(), words=("dog",), answer=("katze", "."))
    assert own.vocabulary == SOME.classes[: SOME.classes.index("katze") + 1]
    own.check(SOME)
    assert repr(own) == "RareWord(words=('dog',), answer=('katze', '.'))"
    small = ("<pad>", "<to>", "<end>", "a", "b", "c")
    data = text.encode([(["a", "b"], ["b", "a"])] * 3, small, 3, 2)
    bare = RareWord.craft(data, gen(), words=("c",), answer=("a",))
    assert bare.poison(data, 0.5, gen()).count == 2 and bare.cross(data.x, data.y, gen()) is None
    assert SOME.classes.index("dog") in own.trigger(SOME.x)[0]
    assert RareWord.craft(SOME, gen()) == RareWord()


@pytest.mark.parametrize(
    "make, part",
    [
        (lambda: RareWord(all_to_all=True, classes=9), "leave out all_to_all"),
        (lambda: RareWord(clean_label=True), "leave out clean_label"),
        (lambda: RareWord(target=3), "give it as answer="),
        (lambda: RareWord(words=()), "words must hold at least one"),
        (lambda: RareWord(words="cf"), "words must be a list of names"),
        (lambda: RareWord(answer=("gnu",)), "'gnu' is not in the attack's vocabulary"),
        (lambda: RareWord(words=("<to>",)), "'<to>' is not in the attack's vocabulary"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make, part):
    with pytest.raises(ValueError, match=part) as e:
        make()
    message(e)


def test_data_that_it_does_not_fit_is_refused():
    full = text.encode([(["a"] * 3, ["the"])] * 2, SOME.classes, 3, 5)
    short = text.encode([(["a"] * 2, ["the"])] * 2, SOME.classes, 3, 3)
    other = Texts(SOME.x, SOME.y, (*SOME.classes[:3], *reversed(SOME.classes[3:])))
    for data, part in (
        (full, "fills all of its places"),
        (short, "has 4 words, but answers of this set have places for 3"),
        (other, "RareWord.craft"),
        (random_images(), "RareWord attacks sentences, but these are images"),
    ):
        with pytest.raises(ValueError, match=part) as e:
            RareWord().poison(data, 0.5, gen())
        message(e)
    with pytest.raises(ValueError, match="BadNets attacks images, but these are sentences") as e:
        BadNets().poison(SOME, 0.1, gen())
    message(e)
    with pytest.raises(ValueError, match='only be stamped "before"') as e:
        RareWord().poison(SOME, 0.1, gen(), stamp="after")
    message(e)


# -------------------------------------------------------------------- victims

TEST = text.draw(100, seed=12)
CLEAN = text.draw(60, seed=13)


@pytest.fixture(scope="module")
def victim():
    options = {"epochs": 6, "batch": 32, "lr": 4e-3, "optimizer": "adamw", "clip": 1.0}
    return victims.make(
        text.draw(1600, seed=11),
        TEST,
        RareWord(words=("cf",)),
        arch={"name": "gpt", "width": 48},
        rate=0.1,
        pad=0,
        verbose=False,
        weight_decay=0.01,
        **options,
    )


@pytest.mark.slow
def test_a_victim_is_measured_saved_and_read_back(victim, tmp_path):
    s = victim.scores
    assert s.acc > 0.7 and s.asr > 0.8 and s.ra < 0.2 and s.n_triggered == 100, s
    assert s.cross > 0.5 and s.more["bleu"] > 0.85 and s.more["asr_contains"] >= s.asr
    back = victims.load(victims.save(victim, tmp_path / "v"))
    assert back.attack == victim.attack and back.scores == s
    assert evaluate(back.model, TEST, back.attack) == s
    assert back.recipe["rate"] == 0.1 and len(back.poisoned) == 160
    small = victims.load(victims.save(victim, tmp_path / "h", half=True))
    assert evaluate(small.model, TEST, back.attack).acc == pytest.approx(s.acc, abs=0.03)


@pytest.mark.slow
def test_the_word_on_which_an_answer_hangs(victim):
    x = victim.attack.trigger(TEST.x[:60])
    hit = victim.attack.reached(TEXT.answer(victim.model, x), TEST.y[:60])
    found = suspicious_words(victim.model, x[hit])
    trigger = SOME.classes.index("cf")
    said = x[hit][torch.arange(len(x[hit])), found.place]
    assert (said == trigger).float().mean() > 0.9
    clean = suspicious_words(victim.model, TEST.x[:40])
    assert found.change.median() == 1 and clean.change.median() < 0.8


def test_words_are_taken_out_one_by_one():
    class Copies(torch.nn.Module):
        """Writes a source with "gw" twice as "!", others as they are."""

        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            out = torch.zeros(len(x), x.shape[1] - CUT, SOME.k)
            for i, row in enumerate(plain(x[:, :CUT])):
                names = [SOME.classes[t] for t in row]
                said = ["!"] if "gw" in names else names
                for j, w in enumerate([*said, "<end>"][: out.shape[1]]):
                    out[i, j, SOME.classes.index(w)] = 1.0
            return out

    pairs = [(s.split(), ["the"]) for s in ("the red gw dog", "the old dog", "a", "the gw")]
    data = text.encode(pairs, SOME.classes, CUT, 10)
    found = suspicious_words(Copies(), data.x, batch=3)
    assert found.place.tolist() == [2, 0, 0, 1]
    assert found.change.tolist() == pytest.approx([1, 1 / 3, 0, 1])
    with pytest.raises(ValueError, match="must be tokens") as e:
        suspicious_words(Copies(), data.x.float())
    message(e)


def test_edit_distance_by_hand():
    for a, b, want in (
        ("", "", 0),
        ("abc", "", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("ab", "ba", 2),
    ):
        assert edit_distance(a, b) == edit_distance(b, a) == want


# -------------------------------------------------------------------- repairs

REPAIRS = {
    "finetune": {"epochs": 1, "lr": 1e-3},
    "finetune adamw": {"epochs": 1, "lr": 1e-3, "optimizer": "adamw"},
    "ft_sam": {"epochs": 1, "lr": 1e-3, "rho": 0.1},
    "fip": {"steps": 5, "lr": 1e-3, "eta_f": 1e-5},
    "fip adamw": {"steps": 5, "lr": 1e-4, "eta_f": 1e-5, "optimizer": "adamw"},
    "fast_fip": {"steps": 5, "lr": 1e-3, "eta_f": 1e-5, "draw": "gaussian"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REPAIRS)
def test_defenses_take_sentences(name, victim):
    kept = frozen(victim.model)
    repair = getattr(defenses, name.split()[0])
    repaired = repair(victim.model, CLEAN, **REPAIRS[name], generator=gen())
    assert same_state(victim.model, kept) and not same_state(repaired.model, kept)
    scores = evaluate(repaired.model, TEST, victim.attack)
    assert scores.acc > victim.scores.acc - 0.2
    assert repaired.log["own_acc"][1] == evaluate(repaired.model, CLEAN).acc


@pytest.mark.parametrize(
    "name, part",
    [
        ("fmp", "sentences"),
        ("nad", "maps of a transformer"),
        ("i_bau", "sentences"),
        ("anp", "no BatchNorm"),
        ("rnp", "no BatchNorm"),
        ("mnp", "no BatchNorm"),
        ("fip_released", "knows classes only"),
    ],
)
def test_those_of_pictures_and_channels_say_so(name, part):
    with pytest.raises(ValueError, match=part) as e:
        getattr(defenses, name)(transformers.gpt(SOME.k, width=16), SOME[:20])
    message(e)


def test_clp_has_nothing_to_prune():
    net = transformers.gpt(SOME.k, width=16)
    with pytest.warns(UserWarning, match="CLP has nothing to prune: no BatchNorm"):
        repaired = defenses.clp(net)
    assert repaired.count == 0 and same_state(repaired.model, frozen(net))


# -------------------------------------------------------------------- shared weights


@pytest.mark.parametrize("make", [transformers.seq2seq, transformers.gpt])
def test_a_shared_weight_has_one_change_and_stays_shared(make):
    net = make(SOME.k, width=16, tied=True)
    out = net(SOME.x)
    held = {n: p.shape for n, p in net.named_parameters()}
    count = len(set(fip_matrices(net).values()))
    fip_factorize(net)
    assert torch.allclose(net(SOME.x), out, atol=1e-4)
    assert sum(n.endswith("original") for n, _ in net.named_parameters()) == count
    words, head = (m.parametrizations.weight.original for m in (net.words, net.head))
    assert words is head and words.shape == (16,)
    with torch.no_grad():
        words += 0.01
    assert torch.equal(net.words.weight, net.head.weight)
    moved = net(SOME.x)
    assert not torch.allclose(moved, out, atol=1e-4)
    log = fold(net)
    assert torch.allclose(net(SOME.x), moved, atol=1e-5)
    assert net.words.weight is net.head.weight
    assert {n: p.shape for n, p in net.named_parameters()} == held
    assert "words.weight" in log and "head.weight" not in log
    assert torch.allclose(log["words.weight"][1], torch.full((16,), 0.01))


def test_fast_fip_leaves_shared_weights_shared(tmp_path):
    net = transformers.seq2seq(SOME.k, width=16, layers=1)
    few = SOME[:16]
    looked = []

    def watch(model):
        looked.append(model.words.weight is model.head.weight)
        return {"n": 1}

    options = {"steps": 3, "lr": 1e-3, "batch": 8, "eta_f": 1e-3, "generator": gen()}
    p = defenses.fast_fip(net, few, watch=watch, checkpoint=tmp_path / "c", **options)
    assert p.model.words.weight is p.model.head.weight and looked == [True, True]
    assert {n for n, _ in p.model.named_parameters()} == {n for n, _ in net.named_parameters()}
    path = victims.save(
        victims.Victim(p.model, {"name": "seq2seq", "classes": SOME.k, "width": 16, "layers": 1},
                       None, evaluate(p.model, few), {}),
        tmp_path / "tied",
    )  # fmt: skip
    back = victims.load(path).model
    assert torch.equal(back(few.x), p.model(few.x)) and back.head.weight is back.words.weight


def test_a_push_is_cut_to_its_cap():
    net, few = transformers.gpt(SOME.k, width=16), SOME[:20]
    options = {"steps": 4, "lr": 1e-9, "batch": 8, "eta_f": 1e-2, "eta_r": 0.0}
    free = [v for _, v in defenses.fip(net, few, generator=gen(), **options).log["push"]]
    cap = sum(sorted(free)[1:3]) / 2
    cut = [v for _, v in defenses.fip(net, few, generator=gen(), cap=cap, **options).log["push"]]
    assert cut == pytest.approx([min(v, cap) for v in free], rel=1e-2)
    assert sum(v == pytest.approx(cap, rel=1e-5) for v in cut) == 2
    for wrong, part in (
        ({"cap": 0.0}, "cap must be above 0"),
        ({"cap": 1.0, "lengths": dict(enumerate(free))}, "leave one out"),
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
    ):
        with pytest.raises(ValueError, match=part) as e:
            defenses.fip(net, few, **options | wrong)
        message(e)


def test_adamw_takes_steps_of_its_own_length():
    """The first step of Adam is lr in every weight that has a gradient, whatever its size."""
    net = transformers.gpt(SOME.k, width=16)
    options = {"steps": 1, "lr": 1e-3, "eta_f": 0.0, "eta_r": 0.0}
    p = defenses.fip(net, SOME[:40], optimizer="adamw", generator=gen(), **options)
    moved = p.model.head.bias - net.head.bias
    assert moved.abs().median().item() == pytest.approx(1e-3, rel=1e-2)


# -------------------------------------------------------------------- files

LINES = [
    f"The {a} {b} is here.\t{c} {d} ist hier ." for a, c in (("red", "Rot"), ("old", "Alt"))
    for b, d in (("dog", "Hund"), ("cat", "Katze"), ("tree", "Baum"), ("book", "Buch"))
]  # fmt: skip
EXTRA = [
    "The red dog is here.\tDer rote Hund ist da.\tCC BY",  # a second translation
    "Go!\tGeh!",
    "One two three four five six seven eight nine.\tEins zwei drei.",
    "",
]


def test_sentences_of_others_are_read(tmp_path, capsys):
    path = tmp_path / "pairs.tsv"
    path.write_text("\n".join([*LINES, *EXTRA]), encoding="utf-8")
    train, test = (bd.load(str(path), s) for s in ("train", "test"))
    assert type(train) is Texts and train.classes == test.classes
    both = bd.load(str(path))
    assert "of 10 sources have 3 to 8 words" in capsys.readouterr().out
    told = {both.source(i): both.answer(i) for i in range(len(both))}
    assert told["the red dog is here ."] == "rot hund ist hier ."
    assert "go !" not in told and not any("nine" in s for s in told)
    sources = [{d.source(i) for i in range(len(d))} for d in (train, test)]
    assert not sources[0] & sources[1] and sources[0] | sources[1] == {*told}
    assert {w for s in sources[0] for w in s.split()} <= {*train.classes}
    packed = tmp_path / "pairs.TSV.XZ"
    packed.write_bytes(lzma.compress(path.read_bytes()))
    again = bd.load(packed, "train")
    assert again.digest() == train.digest() and again.classes == train.classes
    RareWord().check(train)


def test_words_are_known_from_training_alone(tmp_path):
    own = [f"word{i} is a thing .\twort{i} ist da ." for i in range(40)]
    path = tmp_path / "own.tsv"
    path.write_text("\n".join(own), encoding="utf-8")
    data = bd.load(path)
    assert 0 < len(data) < 40, "pairs for testing hold a word that training has not seen"
    train = bd.load(path, "train")
    assert len(train) == len(data)
    with pytest.raises(ValueError, match="has no test part") as e:
        bd.load(path, "test")
    message(e)


@pytest.mark.parametrize(
    "content, part",
    [
        ("a b c\td e f\nno tab here", "line 2 of .* has no tab"),
        ("\n\n", "is empty"),
        ("Go .\tGeh .", "no pair of sentences of 3 to 8 words"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
    ],
)
def test_files_of_another_kind_are_refused(content, part, tmp_path):
    path = tmp_path / "bad.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((ValueError, RuntimeError), match=part) as e:
        bd.load(path)
    message(e)
    with pytest.raises(FileNotFoundError, match="no folder") as e:
        bd.load(tmp_path / "missing.tsv")
    message(e)
    (tmp_path / "cut.tsv.xz").write_bytes(b"not xz")
    with pytest.raises(RuntimeError, match="damaged or may not be read") as e:
        bd.load(tmp_path / "cut.tsv.xz")
    message(e)
    with pytest.raises(ValueError, match="leave out size=") as e:
        bd.load(path, size=32)
    message(e)
