"""The exercise checks of lesson 03."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import combinations, permutations

import torch
from torch import Tensor, nn

from bdcourse.activations import outputs
from bdcourse.metrics import predict
from bdcourse.teach.check.core import (
    CheckFailed,
    call,
    close,
    fresh,
    guarded,
    need,
    number,
    passed,
    shaped,
)


def _predictions(g: torch.Generator) -> tuple[Tensor, Tensor, int]:
    """60 answers, true classes and a target, in which each slip gives a rate of its own."""
    while True:
        target = int(torch.randint(0, 6, (1,), generator=g))
        own, hits, wrong = (int(torch.randint(6, 14, (1,), generator=g)) for _ in range(3))
        # Steps from the target: 0 is the target itself, so that chance cannot make two
        # kinds of answer one.
        step = torch.randint(1, 6, (60,), generator=g)
        step[:own] = 0
        guess = step.clone()
        guess[: own // 3] = 1 + torch.arange(own // 3) % 5  # the target's own, misread
        guess[own : own + hits] = 0
        wrong_ones = slice(own + hits, own + hits + wrong)
        guess[wrong_ones] = step[wrong_ones] % 5 + 1  # wrong, and not the target
        y, said = (target + step) % 6, (target + guess) % 6
        told = _as_slips_have_it(said, y, target)
        if all(abs(a - b) > 0.005 for a, b in combinations(told, 2)):
            shuffle = torch.randperm(60, generator=g)
            return said[shuffle], y[shuffle], target


def _as_slips_have_it(said: Tensor, y: Tensor, target: int) -> list[float]:
    """The attack success rate, and what comes out if it is counted in other ways."""
    hit, asked = said == target, y != target
    n, among = len(y), int(asked.sum())
    counted = (
        ((hit & asked).sum(), among),  # rightly
        (hit.sum(), n),
        (hit.sum(), among),
        ((hit & asked).sum(), n),
        ((said != y)[asked].sum(), among),
        (hit.sum() - (y == target).sum(), among),
        ((said != y).sum(), n),
        ((said != y)[asked].sum(), n),
        ((said == y)[asked].sum(), among),
    )
    return [int(k) / n for k, n in counted]


def _rate(name: str, fn: Callable, *args):
    """`call`, and a word on what stops most readers at their first rate."""
    try:
        return call(name, fn, *args)
    except RuntimeError as e:
        if not str(e).startswith("mean()"):
            raise
        symptom = "takes the mean of a bool tensor; make numbers of it first."
        raise CheckFailed(f"{name}: {symptom} (hint 1)") from None


@guarded
def asr(fn: Callable[[Tensor, Tensor, int], float]) -> None:
    """asr(said, y, target) -> attack success rate on triggered images."""
    name, g = "asr", fresh()
    said, y, target = _predictions(g)
    out = number(name, _rate(name, fn, said, y, target))
    told = _as_slips_have_it(said, y, target)
    want, mixed, over, unasked, errors, taken_off, every_error, errors_of_all, kept = told
    need(out <= 1, name, "must be a share in 0..1, not a count or percentage.", 1)
    own = "counts images whose true class is the target; they look like successes "
    need(min(abs(out - mixed), abs(out - over)) > 1e-6, name, own + "without any attack.", 2)
    need(
        min(abs(out - e) for e in (errors, every_error, errors_of_all)) > 1e-6,
        name,
        "counts every error as a success; only the target label is one.",
        3,
    )
    need(
        abs(out - unasked) > 1e-6,
        name,
        "divides by all images; divide by those that were asked.",
        2,
    )
    need(
        abs(out - taken_off) > 1e-6,
        name,
        "takes the target's own images for hits, all of them; some are misread.",
        2,
    )
    need(
        abs(out - kept) > 1e-6,
        name,
        "is the robust accuracy: it counts true labels. Count the attacker's label.",
        3,
    )
    need(abs(out - want) < 1e-6, name, f"gives {out:.4f}, expected {want:.4f}.", 1)
    passed(name, "hits on the target, among images of other classes")


def _network(g: torch.Generator) -> nn.Sequential:
    """A small network in float64 whose six channels all matter."""
    norm = nn.BatchNorm2d(6)
    parts = [nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.Flatten()]
    names = ("conv", "norm", "relu", "flat", "linear")
    layers = dict(zip(names, [*parts, nn.Linear(96, 5)], strict=True))
    model = nn.Sequential(OrderedDict(layers)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype) / p[0].numel() ** 0.5)
        norm.weight.copy_(0.5 + torch.rand(6, generator=g, dtype=torch.float64))
        norm.bias.copy_(0.3 + torch.rand(6, generator=g, dtype=torch.float64) / 2)
        norm.running_mean = torch.randn(6, generator=g, dtype=torch.float64) / 4
        norm.running_var = 0.1 + torch.rand(6, generator=g, dtype=torch.float64)
    return model


def _case(g: torch.Generator) -> tuple[nn.Sequential, Tensor, Tensor, Tensor, int]:
    """(model, x, triggered, y, target): a network that is mostly right, and a trigger."""
    while True:
        model = _network(g)
        x = torch.rand(90, 3, 6, 6, generator=g, dtype=torch.float64)
        triggered = x.clone()
        triggered[:, :, :4, :4] = torch.rand(3, 4, 4, generator=g, dtype=torch.float64)
        plain, said = predict(model, torch.cat([x, triggered])).chunk(2)
        y = plain.clone()
        y[:20] = torch.randint(0, 5, (20,), generator=g)
        target = int(said.mode().values)
        y[20:40] = (target + torch.arange(20)) % 5  # every class is there
        acc, asr, ra = _rates(plain, said, y, target).tolist()
        # Each mistake must show: no two of these may agree by chance.
        asked = y != target
        told = [acc, asr, ra, 1 - asr]
        told += [float((said == t).double().mean()) for t in (y, target)]
        told += [float((plain == t)[asked].double().mean()) for t in (y, target)]
        far = all(abs(a - b) > 0.004 for a, b in combinations(told, 2))
        if far and min(asr, ra, 1 - asr - ra) > 0.05:
            return model, x, triggered, y, target


def _shares(model: nn.Module, x: Tensor, triggered: Tensor, y: Tensor, target: int) -> Tensor:
    return _rates(predict(model, x), predict(model, triggered), y, target)


def _rates(plain: Tensor, said: Tensor, y: Tensor, target: int) -> Tensor:
    """ACC, ASR and RA of the answers to clean and to triggered images."""
    asked = y != target
    hits = (plain == y, said[asked] == target, said[asked] == y[asked])
    return torch.stack([h.double().mean() for h in hits])


def _of_the_right(model: nn.Module, x: Tensor, triggered: Tensor, y: Tensor, target: int) -> Tensor:
    """ASR and RA, (2, 2), if hits count only where the clean image is read rightly:
    over those images, and over all of other classes."""
    said, right, asked = predict(model, triggered), predict(model, x) == y, y != target
    hits = torch.stack([(right & (said == w))[asked].double() for w in (target, y)])
    return torch.stack([hits.sum(1) / right[asked].sum(), hits.mean(1)], 1)


LEFT_IN_EVAL = (
    "leaves the network in evaluation mode; it came in training mode, and "
    "metrics.predict gives it back as it was."
)


LEFT_IN_TRAINING = (
    "leaves the network in training mode; it came in evaluation mode, and "
    "metrics.predict gives it back as it was."
)


def _training(model: nn.Module) -> bool:
    return all(m.training for m in model.modules())


@guarded
def three_rates(fn: Callable[[nn.Module, Tensor, Tensor, Tensor, int], Tensor]) -> None:
    """three_rates(model, x, triggered, y, target) -> ACC, ASR, RA as a tensor (3,)."""
    name, g = "three_rates", fresh()
    while True:
        model, x, triggered, y, target = _case(g)
        want = _shares(model, x, triggered, y, target)
        narrow = _of_the_right(model, x, triggered, y, target)
        said, asked = predict(model, triggered), y != target
        told = [*want, 1 - want[1], *((said == w).double().mean() for w in (target, y))]
        plain = predict(model, x)
        told += [(plain == w)[asked].double().mean() for w in (target, y)]
        if all(abs(float(r - t)) > 0.002 for r in narrow.flatten() for t in told):
            break  # a draw in which this mistake shows too
    model.train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    out = _rate(name, fn, model, x, triggered, y, target)
    shaped(name, out, (3,))
    need(
        all(torch.equal(t, before[n]) for n, t in model.state_dict().items()),
        name,
        "changes the network: it was asked in training mode.",
        1,
    )
    need(_training(model), name, LEFT_IN_EVAL, 1)
    model.eval()
    call(name, fn, model, x, triggered, y, target)
    need(not any(m.training for m in model.modules()), name, LEFT_IN_TRAINING, 1)
    need(float(out.max()) <= 1, name, "must give shares in 0..1, not percentages.", 1)
    for i, rate, wanted in ((1, "ASR", torch.tensor(target)), (2, "RA", y)):
        need(
            not close(out[i], (said == wanted).double().mean()),
            name,
            f"{rate} includes images of the target class; leave them out.",
            2,
        )
        need(
            not close(out[i], (plain == wanted)[asked].double().mean()),
            name,
            f"{rate} is measured on clean images; it belongs to the triggered ones.",
            2,
        )
    need(
        not close(out[2], (said[asked] != target).double().mean()),
        name,
        "RA is 1 - ASR; an image may miss the target and still be wrong.",
        3,
    )
    orders = [close(out[list(o)], want) for o in permutations(range(3)) if o != (0, 1, 2)]
    need(not any(orders), name, "the order is ACC, ASR, RA.", 1)
    for i, rate in ((1, "ASR"), (2, "RA")):
        need(
            not any(close(out[i], r) for r in narrow[i - 1]),
            name,
            f"{rate} looks only at images that are right without the trigger; "
            "its images are all those of other classes.",
            2,
        )
    need(
        not close(out[0], (said == y).double().mean()),
        name,
        "ACC is measured on triggered images; it belongs to the clean ones.",
        2,
    )
    need(
        not close(out[0], (plain == y)[asked].double().mean()),
        name,
        "ACC leaves the target class out; accuracy counts every clean image.",
        2,
    )
    for i, rate in enumerate(("ACC", "ASR", "RA")):
        told = f"{rate} is {float(out[i]):.4f}, expected {float(want[i]):.4f}."
        need(close(out[i], want[i], 1e-5), name, told, 2)
    passed(name, "ACC on clean images, ASR and RA on the same triggered ones")


def _changes_of_size(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Without a sign, (n, c) to (c,): the change of the mean, and the mean change."""
    return (after - before).mean(0).abs(), (after - before).abs().mean(0)


@guarded
def tac(fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    """tac(clean, triggered) -> trigger-activated change of each channel."""
    name, g = "tac", fresh()
    a, b = (torch.randn(6, 4, 5, 3, generator=g) for _ in "ab")
    out = call(name, fn, a, b)
    shaped(name, out, (4,))
    d = (b - a).double()
    need(
        not close(out, d.mean(0).flatten(1).norm(dim=1)),
        name,
        "averages over images before taking the norm, so opposite changes cancel.",
        2,
    )
    need(
        not any(close(out, t) for t in (d.abs().sum((2, 3)).mean(0), d.abs().mean((0, 2, 3)))),
        name,
        "takes absolute differences; this lesson uses the L2 norm over positions.",
        2,
    )
    need(
        not close(out, d.square().sum((2, 3)).mean(0)),
        name,
        "is the squared norm; take the root before the mean.",
        2,
    )
    need(
        not close(out, d.square().mean((2, 3)).sqrt().mean(0)),
        name,
        "takes the mean over positions under the root; the L2 norm takes the sum.",
        1,
    )
    need(
        not close(out, d.square().sum((2, 3)).mean(0).sqrt()),
        name,
        "takes the root after the mean over images; each image has a norm of its own.",
        1,
    )
    need(
        not close(out, d.flatten(2).norm(dim=2).sum(0)),
        name,
        "sums over images; TAC is the mean over images.",
        2,
    )
    sizes = [t.double().flatten(2).norm(dim=2) for t in (a, b)]
    need(
        not any(close(out.abs(), t) for t in _changes_of_size(*sizes)),
        name,
        "is the change of the norm; the norm of the change is asked for.",
        1,
    )
    need(
        close(out, d.flatten(2).norm(dim=2).mean(0)),
        name,
        "is not the mean over images of the norm over positions.",
        1,
    )
    passed(name, "mean over images of the norm over positions, opposite changes kept")


def _loudest(maps: Tensor) -> Tensor:
    return maps.flatten(2).norm(dim=2).mean(0).argsort(descending=True)


class _Cuts:
    """What switching channels of the small network off does, worked out once."""

    def __init__(self, g: torch.Generator) -> None:
        self.model, self.x, self.triggered, self.y, self.target = _case(g)
        maps = [outputs(self.model, p, ["norm"])["norm"] for p in (self.x, self.triggered)]
        self.maps = maps
        self.order = _loudest(maps[1] - maps[0])
        self.loud = [_loudest(m) for m in maps]
        self.mean = _loudest((maps[1] - maps[0]).mean(0, keepdim=True))

    def rates(self, channels: Tensor, left: Tensor | None = None) -> Tensor:
        """What is left without these channels, from the maps: no copy, no second pass.

        Args:
            left: what each channel sends once it is off, nothing or a constant.
        """
        left = torch.zeros(6, dtype=torch.float64) if left is None else left
        linear, said = self.model.get_submodule("linear"), []
        for m in self.maps:
            m = m.clone()
            m[:, channels] = left[channels, None, None]
            said.append(linear(m.relu().flatten(1)).argmax(1))
        return _rates(said[0], said[1], self.y, self.target)

    def constants(self) -> tuple[Tensor, Tensor, Tensor]:
        """What channels send without the BatchNorm's weight, and without the
        convolution's, with its bias and without."""
        names = ("conv.bias", "norm.weight", "norm.bias")
        bias, weight, shift = (self.model.get_parameter(n).detach() for n in names)
        mean, var = (self.model.get_buffer(f"norm.running_{n}") for n in ("mean", "var"))
        rest = [(b - mean) / (var + 1e-5).sqrt() * weight + shift for b in (bias, 0 * bias)]
        return shift, rest[0], rest[1]

    def ranked(self, order: Tensor, counts: list[int], left: Tensor | None = None) -> Tensor:
        return torch.stack([self.rates(order[:k], left) for k in counts])

    def every(self, k: int) -> Tensor:
        """The rates of each set of k channels."""
        return torch.stack(
            [self.rates(torch.tensor(c, dtype=torch.int64)) for c in combinations(range(6), k)]
        )

    def nested(self, triples: Tensor, pairs: Tensor) -> bool:
        """Whether each row of rates may come from a triple that holds a pair of the other's.

        Args:
            triples, pairs: rates (rows, 3).
        """
        of = {k: [set(c) for c in combinations(range(6), k)] for k in (2, 3)}
        inside = torch.tensor([[p <= t for p in of[2]] for t in of[3]])
        may = [
            (rows[:, None] - self.every(k)).abs().amax(2) < 1e-5
            for k, rows in ((3, triples), (2, pairs))
        ]
        return bool((may[0][:, :, None] & may[1][:, None] & inside).any(2).any(1).all())


def _alike(a: Tensor, b: Tensor, counts: list[int]) -> bool:
    """Whether two orders of channels cut the same sets."""
    return all(set(a[:k].tolist()) == set(b[:k].tolist()) for k in counts)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and close(a, b, 1e-5)


BIAS_ON = "leaves the bias on, so each channel goes on sending a constant."
CONV_OFF = "switches off the convolution; the BatchNorm behind it goes on sending a constant."
BY_LOUDNESS = "ranks by the size of the maps, not by how much the trigger changes them."
BY_MEAN = "ranks by the mean change over images, in which opposite changes cancel."


@guarded
def cut_curve(fn: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """cut_curve(model, layer, x, triggered, y, target, counts, draws, generator)."""
    name, g = "cut_curve", fresh()
    counts, draws = [0, 1, 2, 4], 3
    while True:
        case = _Cuts(g)
        if any(_alike(o, case.order, counts) for o in (*case.loud, case.mean)):
            continue  # the same sets, so the same rates: no need to work them out
        want = case.ranked(case.order, counts)
        first = case.ranked(case.order[:1], [0])[0]
        constants = case.constants()
        wrong = [
            (case.ranked(case.order, counts, constants[0]), BIAS_ON, 2),
            *((case.ranked(case.order, counts, c), CONV_OFF, 2) for c in constants[1:]),
            (case.ranked(case.order.flip(0), counts), "cuts the channels that change least.", 1),
            *((case.ranked(o, counts), BY_LOUDNESS, 1) for o in case.loud),
            (case.ranked(case.mean, counts), BY_MEAN, 1),
        ]
        pairs = case.every(2)
        single = (case.every(1)[:, None] - pairs).abs().amax(2).amin(1) > 1e-4
        clear = not any(_same(w, want) for w, _, _ in wrong)
        clear = clear and not any(_same(wrong[0][0], w) for w, _, _ in wrong[1:3])
        piled = case.ranked(case.order, [3, 3])
        apart = case.ranked(case.order, [3, 2])
        clear = clear and not _same(piled, apart)
        if clear and len(pairs.unique(dim=0)) >= 12 and single.sum() >= 2:
            break  # a draw in which each mistake shows
    case.model.train()

    def ask(seed: int | torch.Generator, counts: list[int], draws: int) -> tuple[Tensor, Tensor]:
        source = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        args = (case.model, "norm", case.x, case.triggered, case.y, case.target)
        before = {n: t.clone() for n, t in case.model.state_dict().items()}
        out = call(name, fn, *args, counts, draws, source)
        same = (torch.equal(t, before[n]) for n, t in case.model.state_dict().items())
        need(all(same), name, "cuts the network itself; cut a copy.", 2)
        need(_training(case.model), name, LEFT_IN_EVAL, 1)
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise CheckFailed(f"{name}: must return two tensors, ranked and chance (hint 4)")
        shaped(name, out[0], (len(counts), 3), 4)
        shaped(name, out[1], (len(counts), draws, 3), 4)
        return out[0], out[1]

    ranked, chance = ask(1, counts, draws)
    case.model.eval()
    call(
        name,
        fn,
        *(case.model, "norm", case.x, case.triggered, case.y, case.target),
        *([1], 1, torch.Generator().manual_seed(1)),
    )
    need(not any(m.training for m in case.model.modules()), name, LEFT_IN_TRAINING, 1)
    case.model.train()
    need(
        _same(ranked[0], first),
        name,
        "with k = 0 the rates are not those of the untouched network.",
        3,
    )
    if not _same(ranked, want):
        for other, symptom, hint in wrong:
            need(not _same(ranked, other), name, symptom, hint)
        need(False, name, "the ranked rates are not those of the k largest TAC.", 1)
    for i, k in enumerate(counts):
        possible = pairs if k == 2 else case.every(k)
        for row in chance[i]:
            hit = (possible - row.double()).abs().amax(1).min() < 1e-5
            need(bool(hit), name, f"no set of {k} channels gives a random row.", 3)
    need(
        not all(_same(r, w) for i, w in enumerate(want) for r in chance[i]),
        name,
        "the random draws switch off the ranked channels.",
        3,
    )
    need(
        any(not _same(r, rows[0]) for rows in chance for r in rows),
        name,
        "all draws of a k are one set of channels; draw anew each time.",
        3,
    )
    need(
        _same(ask(1, counts, draws)[1], chance),
        name,
        "the draws ignore the generator: the same seed gives other rates.",
        3,
    )
    # Triples and pairs of nine seeds, in falling order of k.
    asked = [ask(seed, [3, 2], 4) for seed in range(2, 11)]
    need(
        not _same(asked[0][0], piled),
        name,
        "the cuts pile up: channels of one k are still off at the next. Cut a fresh copy for each.",
        2,
    )
    need(
        _same(asked[0][0], apart),
        name,
        "the ranked rates depend on the order of the counts.",
        2,
    )
    both = torch.stack([chance for _, chance in asked]).double()  # (seeds, 2, draws, 3)
    # (seeds, draws, 3). By chance no draw is the same pair in all seeds, and nearly all of
    # the fifteen pairs occur.
    many = both[:, 1]
    fits = (many[:, :, None] - pairs).abs().amax(3) < 1e-5
    need(
        bool(fits.any(2).all()),
        name,
        "a random pair is no pair; draw without putting back.",
        3,
    )
    same = (many - many[0]).abs().amax((0, 2)) < 1e-5
    need(
        not bool(same.all()),
        name,
        "the draws ignore the generator: other seeds give the same rates.",
        3,
    )
    need(
        not bool(same.any()),
        name,
        "one of the draws is the same for every seed; draw each of them anew.",
        3,
    )
    of_pair = torch.tensor(list(combinations(range(6), 2)))[fits.any(0).any(0)]
    need(
        len(of_pair.unique()) == 6 and len(many.flatten(0, 1).round(decimals=4).unique(dim=0)) > 6,
        name,
        "some channels are never drawn; a random set comes from the whole layer.",
        3,
    )
    # One generator, asked twice: by chance all eight sets are never the same.
    source = torch.Generator().manual_seed(12)
    twice = [ask(source, [3, 2], 4)[1] for _ in range(2)]
    need(
        not _same(*twice),
        name,
        "the generator never moves on: asked twice, the same one gives the same draws. "
        "Draw with it, and seed no other from it.",
        3,
    )
    need(
        not case.nested(both[:, 0].flatten(0, 1), both[:, 1].flatten(0, 1)),
        name,
        "one permutation serves every k, so a small random set lies inside the larger one "
        "and the points of one draw are not independent; draw anew for each k.",
        3,
    )
    passed(name, "the k largest cut whole, fresh random sets beside them, network untouched")


@guarded
def cam(fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    """cam(maps, gradients) -> Grad-CAM heat maps."""
    name, g = "cam", fresh()
    maps, grad = (torch.randn(3, 8, 4, 5, generator=g) for _ in "ab")
    out = call(name, fn, maps, grad)
    shaped(name, out, (3, 4, 5))
    weights = grad.double().mean((2, 3), keepdim=True)
    raw = (weights * maps.double()).sum(1)
    swapped = (maps.double().mean((2, 3), keepdim=True) * grad.double()).sum(1)
    need(
        not any(close(out, t) for t in (swapped, swapped.relu())),
        name,
        "weights the gradients by the maps; the maps are weighted by their mean gradients.",
        1,
    )
    need(
        not close(out, (weights.relu() * maps.double()).sum(1).relu()),
        name,
        "drops the negative weights; a map that speaks against the label must count.",
        3,
    )
    need(
        not any(close(out, t) for t in (raw.abs(), (weights.abs() * maps.double()).sum(1).relu())),
        name,
        "takes the absolute value, so evidence against the label counts as evidence for it.",
        3,
    )
    need(
        float(out.min()) >= 0,
        name,
        "is negative somewhere; keep evidence for the label only.",
        3,
    )
    pointwise = (grad.double() * maps.double()).sum(1).relu()
    need(
        not close(out, pointwise),
        name,
        "weights every position by its own gradient; "
        "Grad-CAM averages the gradient over positions first.",
        2,
    )
    need(
        not close(out, maps[0, 0].numel() * raw.relu()),
        name,
        "sums the gradient over positions; the weight is their mean.",
        2,
    )
    need(
        not close(out, raw.relu() / maps.shape[1]),
        name,
        "takes the mean over channels; the map is their sum.",
        1,
    )
    early = (weights * maps.double()).relu().sum(1)
    need(
        not close(out, early),
        name,
        "cuts negative values before the sum over channels; evidence against the label must count.",
        3,
    )
    need(
        close(out, raw.relu()),
        name,
        "is not the positive part of the weighted sum of the maps.",
        1,
    )
    passed(name, "one weight a map, sum over maps, then the positive part")
