"""Accuracy, attack success, robust accuracy: one function for every model and task.

ACC  share of clean test images classified correctly; on other tasks, their headline.
ASR  share of triggered test images, true class not already the attacker's label, that
     get the attacker's label.
RA   share of those same triggered images that get their true label; ASR + RA <= 1.
CROSS accuracy on images that look attacked but must keep their label: warped with
     noise, the trigger of another image, a patch on a class that the attack spares.
DER  (max(0, ASR drop) - max(0, ACC drop) + 1) / 2, a defense's balance of the two.

Derived in lesson 03.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.examples import Examples, Poisoned, require_clean
from bdcourse.seeds import seeded
from bdcourse.task import IMAGES
from bdcourse.triggers import Trigger, is_trigger


@dataclass(frozen=True)
class Scores:
    """Shares in 0..1 and the numbers of images behind them; asr and ra need an
    attack, cross one that promises that lookalikes keep their label.

    Args:
        acc: the headline of the task: the accuracy, where answers are classes.
        more: what else the task says of clean answers, and the attack of triggered ones,
            by name.
        headline: what the task calls the first of them, such as "map50".

    Raises:
        ValueError: something is no share, or no number of images.
    """

    acc: float
    asr: float | None = None
    ra: float | None = None
    n_clean: int = 0
    n_triggered: int = 0
    cross: float | None = None
    more: dict[str, float] = field(default_factory=dict, hash=False)
    headline: str = "acc"

    def __post_init__(self) -> None:
        require.fraction("acc", self.acc)
        for name in ("asr", "ra", "cross"):
            if getattr(self, name) is not None:
                require.fraction(name, getattr(self, name))
        for name in ("n_clean", "n_triggered"):
            require.whole(name, getattr(self, name), 0)

    def __str__(self) -> str:
        text = f"{self.headline.upper()} {100 * self.acc:.1f} % (n={self.n_clean})"
        if self.asr is not None:
            text += f", ASR {100 * self.asr:.1f} %"
            text += "" if self.ra is None else f", RA {100 * self.ra:.1f} %"
            text += f" (n={self.n_triggered})"
        if self.cross is not None:
            text += f", cross {100 * self.cross:.1f} %"
        return text

    def row(self, **first) -> dict:
        """A line for `show.Table`: what is given, then the headline, ASR and RA in percent."""
        shares = {f"{self.headline.upper()} %": self.acc, "ASR %": self.asr, "RA %": self.ra}
        percent = {k: None if v is None else 100 * v for k, v in shares.items()}
        return {**first, **percent}

    # The last one: below it, `dict` is no type.
    def dict(self) -> dict:
        """Plain values for a row; what no task says is left out."""
        usual = {"more": {}, "headline": "acc"}
        return {k: v for k, v in asdict(self).items() if k not in usual or v != usual[k]}


@dataclass(frozen=True, eq=False, repr=False)
class Triggered:
    """Test images that carry a trigger already, where the attack itself is not at hand.

    Args:
        x: uint8 pixels, (n, c, h, w).
        y: int64 true labels, (n,).
        goal: int64 labels that the attacker wants, (n,).

    Raises:
        ValueError: the tensors do not fit together.
    """

    x: Tensor
    y: Tensor
    goal: Tensor

    def __post_init__(self) -> None:
        x = self.x
        if not isinstance(x, Tensor) or x.dtype != torch.uint8 or x.ndim != 4:
            raise ValueError(
                f"Triggered.x must be uint8 of shape (n, c, h, w), not {require.kind(x)}."
            )
        for name in ("y", "goal"):
            labels = getattr(self, name)
            if (
                not isinstance(labels, Tensor)
                or labels.dtype != torch.int64
                or labels.shape != x.shape[:1]
            ):
                raise ValueError(
                    f"Triggered.{name} must be int64 of shape ({len(x)},), one label "
                    f"per image, not {require.kind(labels)}."
                )
            if labels.device != x.device:
                raise ValueError(
                    f"Triggered.x is on {x.device}, .{name} on {labels.device}; move "
                    "one with .to(device)."
                )

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.x.shape[1:]))
        return f"Triggered({len(self):,} of {size}, {self.x.device})"

    def __getitem__(self, i) -> Triggered:
        """The images at `i`: a slice, a bool mask or a tensor of positions."""
        return replace(self, x=self.x[i], y=self.y[i], goal=self.goal[i])

    def check(self, test: Examples) -> None:
        """Refuse to be measured beside clean images of another kind."""
        if self.x.shape[1:] != test.x.shape[1:]:
            raise ValueError(
                f"the triggered images are {tuple(self.x.shape[1:])}, the clean ones "
                f"{test.shape}; both must be what the model was trained on."
            )
        labels = torch.cat([self.y, self.goal])
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < test.k:
            raise ValueError(
                f"labels of the triggered images run from {int(labels.min())} to "
                f"{int(labels.max())}; the clean set has the labels 0..{test.k - 1}."
            )


def logits(model: nn.Module, x: Tensor, batch: int = 100) -> Tensor:
    """Eval-mode logits of pixels x: uint8, or float in [0, 1]; (n, c, h, w) -> (n, k).

    Raises:
        ValueError, RuntimeError: see `task.Task.outputs`, which does this for any task.
    """
    return IMAGES.outputs(model, x, batch)


def predict(model: nn.Module, x: Tensor, batch: int = 100) -> Tensor:
    """Predicted labels of pixels x (n,) int64, on the model's device.

    Raises:
        ValueError, RuntimeError: see `task.Task.answer`, which does this for any task.
    """
    return IMAGES.answer(model, x, batch)


def share(hits: Tensor) -> float:
    """Share of True, exact: no float64 is needed where a device has none."""
    return int(hits.sum()) / len(hits)


def quality(model: nn.Module, examples: Examples, batch: int = 100) -> dict[str, float]:
    """How good the answers to clean examples are, by name; the first is the headline."""
    task = examples.task
    k = len(examples.classes)
    return task.quality(task.answer(model, examples.x, batch, k), examples.y)


def evaluate(
    model: nn.Module,
    test: Examples,
    attack: Trigger | Triggered | None = None,
    batch: int = 100,
) -> Scores:
    """Score a model on clean test examples and, given an attack, on triggered ones.

    Which triggered examples count, and what the attacker wants of each, is the attack's
    word (`counts`, `goal`, `reached`): without the target class for all-to-one, all for
    all-to-all. Of images that are `Triggered` already, those count whose true label is
    not the goal.

    Raises:
        ValueError: no clean test examples, another number of classes than the network
            has, a trigger that returns no inputs, nothing to count; see `Task.answer`.
        RuntimeError: see `Task.answer`.
    """
    require.module(model)
    if isinstance(test, Poisoned):
        kind = test.task.many.title()
        raise ValueError(
            f"test must be clean {kind}, not Poisoned ones: some of their labels are "
            "the attacker's, and agreeing with those is no accuracy."
        )
    require_clean(test, "test", least=1)
    require.whole("batch", batch, 1)
    if attack is not None:
        if not (is_trigger(attack) or isinstance(attack, Triggered)):
            raise ValueError(
                f"attack must be an Attack, Triggered images or None, not {require.kind(attack)}."
            )
        attack.check(test)
    task = test.task
    (headline, acc), *more = quality(model, test, batch).items()
    scores = Scores(acc, n_clean=len(test), more=dict(more), headline=headline)
    if attack is None:
        return scores
    if isinstance(attack, Triggered):
        asked = attack[attack.goal != attack.y]
        if len(asked) == 0:
            raise ValueError(
                "no test image counts: the goal of each triggered one is its true label."
            )
        said = task.answer(model, asked.x, batch).to(asked.y.device)
        reached, right = said == asked.goal, task.correct(said, asked.y)
        return replace(scores, asr=share(reached), ra=share(right), n_triggered=len(asked))
    asked = test[_counting(attack, test)]
    if len(asked) == 0:
        raise ValueError(f"no test {task.one} counts for this attack; is there only one class?")
    hits: list[Tensor] = []
    kept: list[Tensor] = []
    others: dict[str, list[Tensor]] = {}
    for i in range(0, len(asked), batch):
        part = asked[i : i + batch]
        said = task.answer(model, _stamped(attack, part), batch)
        hits.append(attack.reached(said, part.y).to(part.y.device))
        kept.append(task.correct(said, part.y))
        for name, which in attack.also(said, part.y).items():
            others.setdefault(name, []).append(which)
    return replace(
        scores,
        more=scores.more | {name: share(torch.cat(which)) for name, which in others.items()},
        asr=share(torch.cat(hits)),
        ra=share(torch.cat(kept)),
        n_triggered=len(asked),
        cross=_cross(model, test, attack),
    )


def _counting(attack: Trigger, test: Examples) -> Tensor:
    """Which test examples count, bool (n,), after a look at what the attack wants."""
    name, counts = type(attack).__name__, attack.counts(test.y)
    goal = attack.goal(test.y)
    test.task.check_targets(goal, len(test), test.k, f"{name}.goal(y)")
    if (
        not isinstance(counts, Tensor)
        or counts.dtype != torch.bool
        or counts.shape != test.y.shape[:1]
    ):
        raise ValueError(
            f"{name}.counts must return bool of shape ({len(test)},), one for each "
            f"{test.task.one}, not {require.kind(counts)}."
        )
    return counts


def _stamped(attack: Trigger, examples: Examples) -> Tensor:
    """Inputs with the trigger; refuses any other answer of the attack."""
    name, task = f"what {type(attack).__name__}.trigger returns", examples.task
    inputs = examples.inputs()
    out = task.check_inputs(attack.apply(inputs, examples.y), name, tuple(inputs.shape[1:]))
    if len(out) != len(inputs):
        raise ValueError(f"{name} must be {len(inputs)} {task.many}, one for each, not {len(out)}.")
    return out


def _cross(model: nn.Module, test: Examples, attack: Trigger) -> float | None:
    """Accuracy on examples that look attacked and are not, if the attack has such."""
    g = seeded(0)  # the same noise for every defense
    hits = n = 0
    for part in range(0, len(test), 500):
        part = test[part : part + 500]
        pair = attack.cross(part.inputs(), part.y, g)
        if pair is None:
            continue
        right = test.task.correct(test.task.answer(model, pair[0]), pair[1])
        hits, n = hits + int(right.sum()), n + len(right)
    return hits / n if n else None


def der(before: Scores, after: Scores) -> float:
    """Defense effectiveness rating in 0..1: 1 kills the backdoor at no cost, 0.5 is
    idle.

    Source: Zhu et al., "Enhancing fine-tuning based backdoor defense with
    sharpness-aware minimization", ICCV 2023, as used by BackdoorBench.

    Raises:
        ValueError: scores without an ASR.
    """
    asr = []
    for name, scores in (("before", before), ("after", after)):
        if not isinstance(scores, Scores) or scores.asr is None:
            what = "no ASR" if isinstance(scores, Scores) else require.kind(scores)
            raise ValueError(
                f"{name} must be Scores with an ASR, not {what}; evaluate with the attack."
            )
        asr.append(scores.asr)
    drop_asr = max(0.0, asr[0] - asr[1])
    drop_acc = max(0.0, before.acc - after.acc)
    return (drop_asr - drop_acc + 1) / 2
