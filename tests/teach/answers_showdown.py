"""Right and wrong answers to the exercises of lesson 09, for test_check.py."""

import torch


def balance(acc, asr, acc_after, asr_after):
    return (max(0, asr - asr_after) - max(0, acc - acc_after) + 1) / 2


def balance_by_parts(acc, asr, acc_after, asr_after):
    removed = asr - min(asr, asr_after)
    lost = acc - min(acc, acc_after)
    return 0.5 + 0.5 * removed - 0.5 * lost


def front(acc, asr):
    better = (acc[:, None] >= acc) & (asr[:, None] <= asr)
    strictly = (acc[:, None] > acc) | (asr[:, None] < asr)
    return ~(better & strictly).any(0)


def front_by_loop(acc, asr):
    points = list(zip(acc.tolist(), asr.tolist(), strict=True))
    keep = []
    for a, s in points:
        keep.append(not any((b >= a and t <= s) and (b, t) != (a, s) for b, t in points))
    return torch.tensor(keep)


def front_without_ties(acc, asr):
    return ~((acc[:, None] >= acc) & (asr[:, None] <= asr)).fill_diagonal_(0).any(0)


def front_by_both(acc, asr):
    return ~((acc[:, None] > acc) & (asr[:, None] < asr)).any(0)


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


def by_the_test(acc, asr, least):
    return int(torch.where(acc >= least, asr, torch.inf).argmin())


def by_the_test_by_loop(acc, asr, least):
    allowed = [i for i in range(len(acc)) if acc[i] >= least]
    return min(allowed, key=lambda i: asr[i])


RIGHT = {
    "balance": [balance, balance_by_parts],
    "front": [front, front_by_loop],
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
        (lambda a, s, b, t: (t - s + a - b + 1) / 2, "gives 0 for a perfect"),
    ],
    "front": [
        (front_without_ties, "equal points|drops point"),
        (front_by_both, "keeps point|better in both"),
        (lambda acc, asr: front(acc, -asr), "takes high ASR for good"),
        (lambda acc, asr: ~front(acc, asr), "marks the beaten"),
        (lambda acc, asr: acc == acc.max(), "keeps point|drops point|high ASR"),
        (lambda acc, asr: front(acc, asr).float(), "the answer is bool"),
    ],
    "resampled_means": [
        (without_replacement, "drawn without replacement"),
        (one_victim, "one victim each time"),
        (half_a_sample, "as large as the set"),
        (always_four, "as large as the set"),
        (one_too_many, "as large as the set"),
        (own_generator, "that it is given"),
        (lambda s, n, g: resampled_means(s, n, g) + 0.1, "another mean"),
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
    ],
}
