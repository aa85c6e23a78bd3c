"""Right and wrong answers to the exercises of lesson 09, for test_check.py."""

import torch


def balance(acc, asr, acc_after, asr_after):
    return (max(0, asr - asr_after) - max(0, acc - acc_after) + 1) / 2


def balance_by_parts(acc, asr, acc_after, asr_after):
    removed = asr - min(asr, asr_after)
    lost = acc - min(acc, acc_after)
    return 0.5 + 0.5 * removed - 0.5 * lost


def resampled_means(scores, n, generator):
    at = torch.randint(len(scores), (n, len(scores)), generator=generator)
    return scores[at].mean(1)


def resampled_means_by_loop(scores, n, generator):
    out = []
    for _ in range(n):
        at = (torch.rand(len(scores), generator=generator) * len(scores)).long()
        out.append(scores[at].mean())
    return torch.stack(out)


def without_replacement(scores, n, generator):
    orders = [torch.randperm(len(scores), generator=generator) for _ in range(n)]
    return torch.stack([scores[o].sum() for o in orders]) * 0 + scores.mean()


def one_victim(scores, n, generator):
    return scores[torch.randint(len(scores), (n,), generator=generator)]


def half_a_sample(scores, n, generator):
    at = torch.randint(len(scores), (n, max(1, len(scores) // 2)), generator=generator)
    return scores[at].mean(1)


def always_four(scores, n, generator):
    return scores[torch.randint(len(scores), (n, 4), generator=generator)].mean(1)


def one_too_many(scores, n, generator):
    at = torch.randint(len(scores), (n, len(scores) + 1), generator=generator)
    return scores[at].mean(1)


def own_generator(scores, n, generator):
    at = torch.randint(len(scores), (n, len(scores)))
    return scores[at].mean(1)


def bell_curve(scores, n, generator):
    spread = scores.std(correction=0) / len(scores) ** 0.5
    return scores.mean() + spread * torch.randn(n, generator=generator)


def by_the_test(acc, asr, least):
    return int(torch.where(acc >= least, asr, torch.inf).argmin())


def in_place(acc, asr, least):
    asr[acc < least] = torch.inf
    return int(asr.argmin())


def by_the_test_by_loop(acc, asr, least):
    allowed = [i for i in range(len(acc)) if acc[i] >= least]
    return min(allowed, key=lambda i: asr[i])


def clamped(x):
    return x.clamp(min=0)


def as_it_is(x):
    return x


def contest(
    acc,
    asr,
    twin,
    against,
    n,
    generator,
    gate="both",
    gain=clamped,
    loss=clamped,
    whole=as_it_is,
    size=None,
    ends=0.05,
):
    strong, accurate = asr[0] >= 0.95, acc[0] >= twin - 0.03
    ok = {"both": strong & accurate, "asr": strong, "acc": accurate, "none": strong | True}[gate]
    acc, asr = acc[:, ok], asr[:, ok]
    removed, lost = gain(asr[0] - asr), loss(acc[0] - acc)
    der = (whole(removed - lost) + 1) / 2
    v = der.shape[1]
    means = der[:, torch.randint(v, (n, size or v), generator=generator)].mean(2)
    low, high = means.quantile(torch.tensor([ends, 1 - ends], dtype=der.dtype), dim=1)
    first = (means == means.max(0).values).to(der).mean(1)
    above = (means > means[against]).to(der).mean(1)
    return {"mean": der.mean(1), "low": low, "high": high, "first": first, "above": above}


def contest_by_loop(acc, asr, twin, against, n, generator):
    victims = [v for v in range(acc.shape[1]) if asr[0, v] >= 0.95 and acc[0, v] >= twin - 0.03]
    der = torch.zeros(len(acc), len(victims), dtype=acc.dtype)
    for i in range(len(acc)):
        for j, v in enumerate(victims):
            removed = max(0.0, float(asr[0, v] - asr[i, v]))
            der[i, j] = 0.5 * (removed - max(0.0, float(acc[0, v] - acc[i, v])) + 1)
    tables = []
    for _ in range(n):
        at = torch.randint(len(victims), (len(victims),), generator=generator)
        tables.append(der[:, at].mean(1))
    tables = torch.stack(tables)
    ordered = tables.sort(0).values
    return {
        "mean": der.mean(1),
        "low": ordered[round(0.05 * (n - 1))],
        "high": ordered[round(0.95 * (n - 1))],
        "first": (tables >= tables.amax(1, keepdim=True)).to(der).mean(0),
        "above": (tables > tables[:, against : against + 1]).to(der).mean(0),
    }


def no_gate(*given):
    return contest(*given, gate="none")


def gate_by_asr(*given):
    return contest(*given, gate="asr")


def gate_by_acc(*given):
    return contest(*given, gate="acc")


def unclamped(*given):
    return contest(*given, gain=as_it_is, loss=as_it_is)


def unclamped_asr(*given):
    return contest(*given, gain=as_it_is)


def unclamped_acc(*given):
    return contest(*given, loss=as_it_is)


def absolute_asr(*given):
    return contest(*given, gain=torch.abs)


def absolute_acc(*given):
    return contest(*given, loss=torch.abs)


def clamped_whole(*given):
    return contest(*given, gain=as_it_is, loss=as_it_is, whole=clamped)


def as_many_as_came(*given):
    return contest(*given, size=given[0].shape[1])


def first_or_not(*given):
    out = contest(*given)
    return out | {"first": (out["mean"] == out["mean"].max()).to(out["mean"])}


def private_dice(*given):
    return contest(*given[:-1], torch.Generator().manual_seed(0))


def always_4000(acc, asr, twin, against, n, generator):
    return contest(acc, asr, twin, against, 4000, generator)


def half_tables(*given):
    return contest(*given, size=2)


def quartiles(*given):
    return contest(*given, ends=0.25)


def own_dice(*given):
    return contest(*given[:-1], torch.Generator().manual_seed(torch.seed() % 10**9))


def _der(acc, asr, twin):
    ok = (asr[0] >= 0.95) & (acc[0] >= twin - 0.03)
    acc, asr = acc[:, ok], asr[:, ok]
    return ((asr[0] - asr).clamp(min=0) - (acc[0] - acc).clamp(min=0) + 1) / 2


def by_the_bell(*given):
    out = contest(*given)
    der = _der(*given[:3])
    half = 1.645 * der.std(1, correction=0) / der.shape[1] ** 0.5
    return out | {"low": der.mean(1) - half, "high": der.mean(1) + half}


def of_the_victims(acc, asr, twin, *rest):
    out, der = contest(acc, asr, twin, *rest), _der(acc, asr, twin)
    low, high = der.quantile(torch.tensor([0.05, 0.95], dtype=der.dtype), dim=1)
    return out | {"low": low, "high": high}


def mean_of_tables(acc, asr, twin, against, n, generator):
    der, out = _der(acc, asr, twin), contest(acc, asr, twin, against, n, generator)
    at = torch.randint(5, (n, 5), generator=generator)
    return out | {"mean": der[:, at].mean(2).mean(1)}


def the_same_table(acc, asr, twin, *rest):
    mean = _der(acc, asr, twin).mean(1)
    return contest(acc, asr, twin, *rest) | {"low": mean, "high": mean}


def unpaired(acc, asr, twin, against, n, generator):
    der, out = _der(acc, asr, twin), contest(acc, asr, twin, against, n, generator)
    v = der.shape[1]
    means = torch.stack([d[torch.randint(v, (n, v), generator=generator)].mean(1) for d in der])
    above = (means > means[against]).to(der).mean(1)
    return out | {"first": (means == means.amax(0)).to(der).mean(1), "above": above}


def not_strictly(acc, asr, twin, against, n, generator):
    der = _der(acc, asr, twin)
    means = der[:, torch.randint(5, (n, 5), generator=generator)].mean(2)
    out = contest(acc, asr, twin, against, n, generator)
    return out | {"above": (means >= means[against]).to(der).mean(1)}


def one_winner(acc, asr, twin, against, n, generator):
    der = _der(acc, asr, twin)
    means = der[:, torch.randint(5, (n, 5), generator=generator)].mean(2)
    first = torch.bincount(means.argmax(0), minlength=len(der)).to(der) / n
    return contest(acc, asr, twin, against, n, generator) | {"first": first}


def three_choosers(der):
    others = (der.sum(1, keepdim=True) - der) / (der.shape[1] - 1)
    defender = der.gather(0, others.argmax(0, keepdim=True))
    return der.amax(0).mean().item(), der.mean(1).max().item(), defender.mean().item()


def three_choosers_by_loop(der):
    examiner, defender = [], []
    for v in range(der.shape[1]):
        rest = [i for i in range(der.shape[1]) if i != v]
        examiner.append(float(der[:, v].max()))
        defender.append(float(der[der[:, rest].mean(1).argmax(), v]))
    author = max(float(row.mean()) for row in der)
    return sum(examiner) / len(examiner), author, sum(defender) / len(defender)


def three_choosers_as_tensor(der):
    return torch.tensor(three_choosers(der), dtype=der.dtype)


def promised(der):
    others = (der.sum(1, keepdim=True) - der) / (der.shape[1] - 1)
    return *three_choosers(der)[:2], others.amax(0).mean().item()


def gated(strength, share):
    def wrong(acc, asr, twin, against, n, generator):
        moved = asr.clone()
        moved[0] = (asr[0] >= strength).to(asr)
        moved[0, acc[0] < twin - share] = 0
        ok = moved[0] > 0
        return contest(acc[:, ok], asr[:, ok], twin, against, n, generator, gate="none")

    return wrong


RIGHT = {
    "balance": [balance, balance_by_parts],
    "contest": [contest, contest_by_loop],
    "three_choosers": [three_choosers, three_choosers_by_loop, three_choosers_as_tensor],
    "resampled_means": [resampled_means, resampled_means_by_loop],
    "by_the_test": [by_the_test, by_the_test_by_loop],
}
WRONG = {
    "balance": [
        (lambda a, s, b, t: s - t - (a - b) + 1, "halve the sum"),
        (lambda a, s, b, t: (max(0, s - t) - max(0, a - b)) / 2, "forgets the 1"),
        (lambda a, s, b, t: (s - t - (a - b) + 1) / 2, "a gain counts as no loss"),
        (lambda a, s, b, t: (s - t - max(0, a - b) + 1) / 2, "counts as no drop"),
        (lambda a, s, b, t: (s - t + a - b + 1) / 2, "rewards a loss"),
        (lambda a, s, b, t: (max(0, s - t) - abs(a - b) + 1) / 2, "charges for accuracy that"),
        (lambda a, s, b, t: (abs(s - t) - max(0, a - b) + 1) / 2, "pays for attack success"),
        (lambda a, s, b, t: (max(0, s - t - max(0, a - b)) + 1) / 2, "maximum of its own"),
        (lambda a, s, b, t: (max(0, s - t - (a - b)) + 1) / 2, "maximum of its own|that rose"),
        (lambda a, s, b, t: (t - s + a - b + 1) / 2, "gives 0 for a perfect"),
        (lambda a, s, b, t: (max(0, t - s) - max(0, b - a) + 1) / 2, "before minus after"),
    ],
    "contest": [
        (gated(0.94, 0.03), "fewer than 95%"),
        (gated(0.96, 0.03), "edge inside"),
        (gated(0.95, 0.1), "edge inside|more than 3 points"),
        (gated(0.95, 0.02), "edge inside"),
        (no_gate, "miss the gate"),
        (gate_by_asr, "lost more than 3 points"),
        (gate_by_acc, "fewer than 95%"),
        (unclamped, "pays for accuracy that rose, or charges"),
        (unclamped_asr, "charges for attack success that rose"),
        (unclamped_acc, "pays for accuracy that rose; a gain"),
        (absolute_asr, "pays for attack success that rose"),
        (absolute_acc, "charges for accuracy that rose"),
        (clamped_whole, "maximum of its own"),
        (as_many_as_came, "as many victims as passed|end that no table has"),
        (first_or_not, "share of the tables in which it leads"),
        (private_dice, "same tables for every seed"),
        (always_4000, "another number of tables than n"),
        (of_the_victims, "average each table first"),
        (the_same_table, "with replacement"),
        (half_tables, "as many victims as passed"),
        (quartiles, "5% from either end"),
        (unpaired, "victims of its own"),
        (not_strictly, "strictly better"),
        (one_winner, "breaks a tie"),
        (own_dice, "for the same seed"),
        (by_the_bell, "no table has"),
        (gated(0.95 + 1e-9, 0.03), "edge inside"),
        (mean_of_tables, "over the victims themselves"),
        (lambda *a: contest(*a)["mean"], "must return a dict"),
    ],
    "three_choosers": [
        (lambda der: three_choosers(der)[::-1], "another order"),
        (lambda der: (three_choosers(der)[1], *three_choosers(der)[1:]), "one entry for all"),
        (lambda der: (*three_choosers(der)[:2], three_choosers(der)[1]), "leave it out"),
        (lambda der: (three_choosers(der)[0],) * 3, "author"),
        (promised, "picked by"),
        (lambda der: three_choosers(der)[:2], "three numbers"),
    ],
    "resampled_means": [
        (without_replacement, "drawn without replacement"),
        (one_victim, "one victim each time"),
        (half_a_sample, "as large as the set"),
        (always_four, "as large as the set"),
        (one_too_many, "as large as the set"),
        (own_generator, "that it is given"),
        (lambda s, n, g: resampled_means(s, n, g) + 0.1, "another mean"),
        (bell_curve, "a mean that no sample has"),
        (lambda s, n, g: resampled_means(s, 1, g).expand(n), "one sample n times"),
    ],
    "by_the_test": [
        (lambda acc, asr, least: int(asr.argmin()), "ignores the accuracy"),
        (lambda acc, asr, least: int(asr[acc >= least].argmin()), "whole list"),
        (lambda acc, asr, least: int(acc.argmax()), "best accuracy"),
        (
            lambda acc, asr, least: by_the_test(acc, asr, least + 1e-6),
            "exactly enough",
        ),
        (lambda acc, asr, least: len(acc), "no position"),
        (in_place, r"in place.*hint 2"),
        (lambda acc, asr, least: int((acc - least).abs().argmin()), "never looks at the ASR"),
        (
            lambda acc, asr, least: int(torch.where(acc >= least, acc, torch.inf).argmin()),
            "never looks at the ASR",
        ),
        (lambda acc, asr, least: int(torch.where(acc >= least, asr, -1.0).argmax()), "highest"),
        (lambda acc, asr, least: int(torch.where(acc >= least, asr, 1.0).argmin()), "is 1"),
    ],
}
