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

import torch
from torch import Tensor, nn

from bdcourse.attacks.base import Attack
from bdcourse.data import Images
from bdcourse.models import evaluating, laid_out


@dataclass(frozen=True)
class Scores:
    """Shares in 0..1 and the numbers of images behind them; asr and ra need an
    attack, cross one that promises that lookalikes keep their label."""

    acc: float
    asr: float | None = None
    ra: float | None = None
    n_clean: int = 0
    n_triggered: int = 0
    cross: float | None = None

    def __str__(self) -> str:
        text = f"ACC {100 * self.acc:.1f} % (n={self.n_clean})"
        if self.asr is not None:
            text += f", ASR {100 * self.asr:.1f} %, RA {100 * self.ra:.1f} %"
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
        if self.x.dtype != torch.uint8 or self.x.ndim != 4:
            raise ValueError("Triggered.x must be uint8 of shape (n, c, h, w).")
        for labels in (self.y, self.goal):
            if labels.dtype != torch.int64 or labels.shape != self.x.shape[:1]:
                raise ValueError(
                    f"Triggered.y and .goal must be int64 of shape ({len(self.x)},), "
                    "one label per image."
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

    The model's train/eval mode is put back afterwards.
    """
    device = next(model.parameters()).device
    with evaluating(model):
        out = []
        for part in x.split(batch):
            part = part.to(device)
            part = part.float() / 255 if part.dtype == torch.uint8 else part
            out.append(model(laid_out(model, part)).float())
        return torch.cat(out)


def predict(model: nn.Module, x: Tensor, batch: int = 500) -> Tensor:
    """Predicted labels (n,) int64, on the model's device."""
    return logits(model, x, batch).argmax(1)


def evaluate(
    model: nn.Module,
    test: Images,
    attack: Attack | Triggered | None = None,
    batch: int = 500,
) -> Scores:
    """Score a model on clean test images and, given an attack, on triggered ones.

    Which triggered images count, and what the attacker wants of each, is the attack's
    word (`counts`, `goal`): without the target class for all-to-one, all for
    all-to-all. Of images that are `Triggered` already, those count whose true label is
    not the goal.
    """
    acc = (
        (predict(model, test.x, batch).to(test.y.device) == test.y)
        .double()  # in float32, 95 of 100 would come out below 0.95
        .mean()
        .item()
    )
    if attack is None:
        return Scores(acc, n_clean=len(test))
    attack.check(test)
    ready = isinstance(attack, Triggered)
    asked = attack[attack.goal != attack.y] if ready else test[attack.counts(test.y)]
    if len(asked) == 0:
        raise ValueError(
            "no test image counts for this attack; is there only one class?"
        )
    said = torch.cat(
        [
            predict(model, part if ready else attack.trigger(part.float() / 255), batch)
            for part in asked.x.split(batch)
        ]
    ).to(asked.y.device)
    goal = asked.goal if ready else attack.goal(asked.y)
    asr = (said == goal).double().mean().item()
    ra = (said == asked.y).double().mean().item()
    cross = None if ready else _cross(model, test, attack)
    return Scores(acc, asr, ra, len(test), len(asked), cross)


def _cross(model: nn.Module, test: Images, attack: Attack) -> float | None:
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
    """
    drop_asr = max(0.0, before.asr - after.asr)
    drop_acc = max(0.0, before.acc - after.acc)
    return (drop_asr - drop_acc + 1) / 2
