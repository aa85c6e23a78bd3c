"""Accuracy, attack success, recovered accuracy: one function for every model.

ACC  share of clean test images classified correctly.
ASR  share of triggered test images, true class not already the attacker's label, that
     get the attacker's label.
RA   share of those same triggered images that get their true label; ASR + RA <= 1.
CROSS accuracy on images that look attacked but must keep their label: warped with
     noise, the trigger of another image, a patch on a class that the attack spares.
DER  (max(0, ASR drop) - max(0, ACC drop) + 1) / 2, a defense's balance of the two.

Born in lesson 03.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.images import Images, Poisoned, require_clean
from bdcourse.models import evaluating, laid_out
from bdcourse.triggers import Trigger, is_trigger


@dataclass(frozen=True)
class Scores:
    """Shares in 0..1 and the numbers of images behind them; asr and ra need an
    attack, cross one that promises that lookalikes keep their label.

    Raises:
        ValueError: something is no share, or no number of images.
    """

    acc: float
    asr: float | None = None
    ra: float | None = None
    n_clean: int = 0
    n_triggered: int = 0
    cross: float | None = None

    def __post_init__(self) -> None:
        require.share("acc", self.acc)
        for name in ("asr", "ra", "cross"):
            if getattr(self, name) is not None:
                require.share(name, getattr(self, name))
        for name in ("n_clean", "n_triggered"):
            require.whole(name, getattr(self, name), 0)

    def __str__(self) -> str:
        text = f"ACC {100 * self.acc:.1f} % (n={self.n_clean})"
        if self.asr is not None:
            text += f", ASR {100 * self.asr:.1f} %"
            text += "" if self.ra is None else f", RA {100 * self.ra:.1f} %"
            text += f" (n={self.n_triggered})"
        if self.cross is not None:
            text += f", cross {100 * self.cross:.1f} %"
        return text

    def dict(self) -> dict:
        return asdict(self)

    def row(self, **first) -> dict:
        """A line for `show.Table`: what is given, then ACC, ASR and RA in percent."""
        shares = {"ACC %": self.acc, "ASR %": self.asr, "RA %": self.ra}
        percent = {k: None if v is None else 100 * v for k, v in shares.items()}
        return {**first, **percent}


@dataclass(frozen=True)
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

    def __getitem__(self, i) -> Triggered:
        """The images at `i`: a slice, a bool mask or a tensor of positions."""
        return replace(self, x=self.x[i], y=self.y[i], goal=self.goal[i])

    def check(self, test: Images) -> None:
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


@torch.no_grad()
def logits(model: nn.Module, x: Tensor, batch: int = 500) -> Tensor:
    """Eval-mode logits of pixels x: uint8, or float in [0, 1]; (n, c, h, w) -> (n, k).

    Every prediction of the course is made here. The model's train/eval mode is put back
    afterwards.

    Raises:
        ValueError: x are no pixels; gray ones on a color network; answers that are not
            one row of finite numbers for each image.
        RuntimeError: the network fails on such images.
    """
    require.module(model)
    require.whole("batch", batch, 1)
    if not isinstance(x, Tensor) or x.dtype != torch.uint8 or x.ndim != 4:
        require.pixels(x)
    if not x.numel():
        raise ValueError(f"x must hold at least one pixel, but is {require.kind(x)}.")
    # A normalisation by the network's owner spreads one channel over three, in silence.
    if x.shape[1] == 1 and first_channels(model) == 3:
        raise ValueError(
            "the network's first convolution takes 3 channels, but the images have 1; "
            "pass color images, or gray ones with their channel repeated."
        )
    device = next(chain(model.parameters(), model.buffers()), x).device
    with evaluating(model):
        out = []
        for part in x.split(batch):
            part = part.to(device)
            part = part.float() / 255 if part.dtype == torch.uint8 else part
            out.append(_answers(model, part))
        return require.finite(torch.cat(out))


def _answers(model: nn.Module, x: Tensor) -> Tensor:
    """What a network says to pixels x as float32 logits, at least two to a row."""
    try:
        said = model(laid_out(model, x))
    except torch.OutOfMemoryError:  # says more than we could
        raise
    except Exception as e:  # anybody's network may raise anything
        if isinstance(e, ValueError) and str(e).endswith("."):
            raise  # a sentence of ours, as of Normalize
        raise RuntimeError(
            f"the network fails on images of shape {tuple(x.shape[1:])} with a "
            f"{type(e).__name__} ({require.reason(e)})."
        ) from e
    rows = isinstance(said, Tensor) and said.ndim == 2 and said.is_floating_point()
    if not rows or said.shape[1] < 2:
        raise ValueError(
            "the network must answer with logits of shape (n, k), one for each of at "
            f"least two classes, but answers with {require.kind(said)}; wrap it in a "
            "module whose forward returns those."
        )
    return said.float()


def first_channels(model: nn.Module) -> int | None:
    """Channels that the first convolution in order of definition takes, if any."""
    found = (m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    return next(found, None)


def predict(model: nn.Module, x: Tensor, batch: int = 500) -> Tensor:
    """Predicted labels (n,) int64, on the model's device.

    Raises:
        ValueError, RuntimeError: see :func:`logits`.
    """
    return _rows(logits(model, x, batch), x).argmax(1)


def _rows(answers: Tensor, x: Tensor) -> Tensor:
    if len(answers) != len(x):
        raise ValueError(
            f"the network gives {len(answers)} answers to {len(x)} images; it must "
            "give each image one."
        )
    return answers


def share(hits: Tensor) -> float:
    """Share of True, exact: no float64 is needed where a device has none."""
    return int(hits.sum()) / len(hits)


def evaluate(
    model: nn.Module,
    test: Images,
    attack: Trigger | Triggered | None = None,
    batch: int = 500,
) -> Scores:
    """Score a model on clean test images and, given an attack, on triggered ones.

    Which triggered images count, and what the attacker wants of each, is the attack's
    word (`counts`, `goal`): without the target class for all-to-one, all for
    all-to-all. Of images that are `Triggered` already, those count whose true label is
    not the goal.

    Raises:
        ValueError: no clean test images, another number of classes than the network
            has, a trigger that returns no pixels, nothing to count; see :func:`logits`.
        RuntimeError: see :func:`logits`.
    """
    require.module(model)
    if isinstance(test, Poisoned):
        raise ValueError(
            "test must be clean Images, not Poisoned ones: some of their labels are "
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
    answers = _rows(logits(model, test.x, batch), test.x)
    if answers.shape[1] != test.k:
        raise ValueError(
            f"the network answers with {answers.shape[1]} logits, but the test images "
            f"have {test.k} classes; the two do not belong together."
        )
    acc = share(answers.argmax(1).to(test.y.device) == test.y)
    if attack is None:
        return Scores(acc, n_clean=len(test))
    ready = isinstance(attack, Triggered)
    if ready:
        asked = attack[attack.goal != attack.y]
    else:
        asked = test[_counting(attack, test)]
    if len(asked) == 0:
        raise ValueError(
            "no test image counts: the goal of each triggered one is its true label."
            if ready
            else "no test image counts for this attack; is there only one class?"
        )
    said = torch.cat(
        [
            predict(model, part if ready else _stamped(attack, part), batch)
            for part in asked.x.split(batch)
        ]
    ).to(asked.y.device)
    goal = asked.goal if ready else attack.goal(asked.y)
    asr, ra = share(said == goal), share(said == asked.y)
    cross = None if ready else _cross(model, test, attack)
    return Scores(acc, asr, ra, len(test), len(asked), cross)


def _counting(attack: Trigger, test: Images) -> Tensor:
    """Which test images count, bool (n,), after a look at what the attack wants."""
    name, counts = type(attack).__name__, attack.counts(test.y)
    require.labels(attack.goal(test.y), len(test), test.k, f"{name}.goal(y)")
    if not isinstance(counts, Tensor) or counts.dtype != torch.bool or counts.shape != test.y.shape:
        raise ValueError(
            f"{name}.counts must return bool of shape ({len(test)},), one for each "
            f"image, not {require.kind(counts)}."
        )
    return counts


def _stamped(attack: Trigger, x: Tensor) -> Tensor:
    """uint8 images with the trigger, as pixels in [0, 1]; refuses any other answer."""
    name = f"what {type(attack).__name__}.trigger returns"
    out = require.pixels(attack.trigger(x.float() / 255), name, x.shape[1:])
    if len(out) != len(x):
        raise ValueError(f"{name} must be {len(x)} images, one for each, not {len(out)}.")
    return out


def _cross(model: nn.Module, test: Images, attack: Trigger) -> float | None:
    """Accuracy on images that look attacked and are not, if the attack has such."""
    g = torch.Generator().manual_seed(0)  # the same noise for every defense
    hits = n = 0
    for part in range(0, len(test), 500):
        part = test[part : part + 500]
        pair = attack.cross(part.pixels(), part.y, g)
        if pair is None:
            continue
        said = predict(model, pair[0]).to(pair[1].device)
        hits, n = hits + int((said == pair[1]).sum()), n + len(said)
    return hits / n if n else None


def der(before: Scores, after: Scores) -> float:
    """Defense effectiveness rating in 0..1: 1 kills the backdoor at no cost, 0.5 is
    idle.

    Source: Zhu et al., "Enhancing fine-tuning based backdoor defense with
    sharpness-aware minimization", ICCV 2023, as used by BackdoorBench.

    Raises:
        ValueError: scores without an ASR.
    """
    for name, scores in (("before", before), ("after", after)):
        if not isinstance(scores, Scores) or scores.asr is None:
            what = "no ASR" if isinstance(scores, Scores) else require.kind(scores)
            raise ValueError(
                f"{name} must be Scores with an ASR, not {what}; evaluate with the attack."
            )
    drop_asr = max(0.0, before.asr - after.asr)
    drop_acc = max(0.0, before.acc - after.acc)
    return (drop_asr - drop_acc + 1) / 2
