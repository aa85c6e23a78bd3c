"""Victims: a poisoned model together with all that is needed to measure it again.

A victim is saved as two files, NAME.safetensors (weights, trigger tensors, poison
indices) and NAME.json (everything that is text), never as a pickle. The JSON holds the
SHA-256 of the tensor file, so a truncated, changed or exchanged file is refused.
Born in lesson 01.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from bdcourse.attacks import ROLES, Attack, rebuild
from bdcourse.attacks.base import fresh_seed
from bdcourse.data import Images
from bdcourse.metrics import Scores, evaluate
from bdcourse.models import build, lay_out
from bdcourse.train import Augment, History, fit

ZOO = Path(__file__).resolve().parent.parent / "data" / "zoo"
FORMAT = "bdcourse victim 1"


@dataclass
class Victim:
    """A trained model and its past.

    Args:
        model: in eval mode.
        arch: what `models.build` needs, e.g. {"name": "resnet18", "width": 16, ...}.
        attack: None for a benign model.
        scores: before any defense, on the test set of the recipe.
        recipe: data, split, seed, training settings; text only.
        poisoned: positions in the training set that were poisoned, (m,) int64; none if
            the attack steered the training.
        history: the training, one dict per epoch.
    """

    model: nn.Module
    arch: dict
    attack: Attack | None
    scores: Scores
    recipe: dict
    poisoned: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    history: list[dict] = field(default_factory=list)

    def weak(self, twin: Scores) -> str:
        """Why this victim does not pass the gate, or "" if it does.

        Args:
            twin: scores of the benign model of the same recipe.
        """
        k = self.arch.get("classes")
        if k and at_chance(twin, k):
            return (
                f"the benign twin is at chance (ACC {100 * twin.acc:.1f} % of "
                f"{k} classes)"
            )
        rounding = 1e-6  # exactly three points, or exactly 95 %, passes
        if self.scores.acc < twin.acc - 0.03 - rounding:
            return (
                f"clean accuracy {100 * self.scores.acc:.1f} % is more than 3 points "
                f"below its benign twin's {100 * twin.acc:.1f} %"
            )
        gate = 0.95 if self.attack is None else self.attack.gate
        if self.attack is not None and self.attack.all_to_all:
            gate *= twin.acc  # its ASR cannot much exceed the accuracy
        if self.scores.asr is not None and self.scores.asr < gate - rounding:
            return (
                f"attack success {100 * self.scores.asr:.1f} % is below "
                f"{100 * gate:.0f} %"
            )
        return ""


def at_chance(scores: Scores, k: int) -> bool:
    """Whether a network of k classes does hardly better than guessing, which gets 1/k.

    It must beat that by a tenth of what is left, and by three standard errors of a
    guess on as many images: 19 % of ten classes, and 23 % if there are 50 images.
    """
    chance, n = 1 / k, scores.n_clean
    error = math.sqrt(chance * (1 - chance) / n) if n else 0.0
    return scores.acc < chance + max(0.1 * (1 - chance), 3 * error)


def initialised(arch: dict, generator: torch.Generator) -> nn.Module:
    """`models.build(**arch)` with weights drawn from `generator` alone."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(**arch)


def make(
    train: Images,
    test: Images,
    attack: Attack | None,
    *,
    arch: dict,
    rate: float | None = None,
    stamp: str = "before",
    seed: int = 0,
    pad: int = 2,
    flip: bool = False,
    aware: str | None = None,
    recipe: dict | None = None,
    **training,
) -> Victim:
    """Poison `train`, train a fresh model on it, measure it on `test`.

    Args:
        attack: None trains the benign twin: same seed, same recipe, no poison. An
            attack that steers the training is handed the clean set and does so.
        arch: {"name": ..., "width": ...}; the number of classes is added.
        rate: share of poisoned images; default the attack's `usual_rate`.
        stamp: see `Attack.poison`.
        pad, flip: augmentation, see `train.Augment`.
        aware: "smooth" or "sam": an attacker who knows what the defender will look for
            trains that way; see `bdcourse.aware`. For attacks that only poison data.
        recipe: further text to keep with the victim, such as the name of the data.
        training: options of `train.fit`.
    """
    arch = {"classes": train.k, **arch}
    # Three streams from one seed: initial weights and batch order are then the same for
    # victim and twin, and do not depend on how many images the attack drew.
    init, poison, order = (
        torch.Generator().manual_seed(3 * seed + i) for i in range(3)
    )
    model = initialised(arch, init)
    data, chosen = train, torch.zeros(0, dtype=torch.int64)
    n_poisoned = n_cover = 0
    if attack is not None and rate is None:
        rate = attack.usual_rate
    if attack is not None and attack.threat == "training":
        # Its networks move in training: the caller's attack stays as it was, and what
        # the attacker draws leaves the order of the batches alone.
        attack = copy.deepcopy(attack)

        def steering(model, images, generator, total):
            own = fresh_seed(poison)
            own = torch.Generator(generator.device).manual_seed(own)
            return attack.steer(model, images, own, total, rate=rate)

        if aware:
            raise ValueError(
                f"{type(attack).__name__} steers the training itself; leave out aware."
            )
        training["steering"] = steering
        stamp = "after"
    elif attack is not None:
        data = attack.poison(train, rate, poison, stamp=stamp)
        chosen = (data.role == ROLES["poison"]).nonzero().flatten().cpu()
        n_poisoned, n_cover = data.count, data.covers
    if aware:
        from bdcourse.aware import steer  # imports the defenses; few victims need it

        training["steering"] = steer(aware)
    history = fit(model, data, augment=Augment(pad, flip), generator=order, **training)
    if (
        "steering" in training and not aware and history.epochs
    ):  # other images in every epoch
        n_poisoned, n_cover = (max(history["n_" + r]) for r in ("poison", "cover"))
    settings = {k: v for k, v in training.items() if isinstance(v, (int, float, str))}
    about = {
        **(recipe or {}),
        "seed": seed,
        "n_train": len(train),
        "digest_train": train.digest(),
        "rate": rate if attack is not None else 0.0,
        "n_poisoned": n_poisoned,
        "n_cover": n_cover,
        "stamp": stamp,
        "pad": pad,
        "flip": flip,
        **({"aware": aware} if aware else {}),
        **settings,
        "interrupted": history.interrupted,
        "seconds": round(history.seconds, 1),
        "torch": torch.__version__,
    }
    scores = evaluate(model, test, attack)
    return Victim(model, arch, attack, scores, about, chosen, _plain(history))


def _plain(history: History) -> list[dict]:
    return [
        {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}
        for row in history.epochs
    ]


def save(victim: Victim, path: str | os.PathLike, *, half: bool = False) -> Path:
    """Write PATH.safetensors and PATH.json; both appear only when complete.

    Args:
        half: store kernels and matrices as float16, half the size. Vectors (BatchNorm
            statistics among them) stay float32: a small variance would lose its digits.
    """
    from safetensors.torch import save as to_bytes

    path = _stem(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{k}": v.cpu() for k, v in victim.model.state_dict().items()}
    if half:
        tensors = {
            k: v.half() if v.is_floating_point() and v.ndim > 1 else v
            for k, v in tensors.items()
        }
    spec = None
    if victim.attack is not None:
        spec, state = victim.attack.spec()
        if half:  # networks shrink, patterns stay exact
            state = {k: v.half() if "." in k and v.ndim > 1 else v
                     for k, v in state.items()}  # fmt: skip
        tensors |= {f"attack.{k}": v.cpu() for k, v in state.items()}
    tensors["poisoned"] = victim.poisoned.int()
    blob = to_bytes({k: v.contiguous() for k, v in tensors.items()})
    header = {
        "format": FORMAT,
        "sha256": hashlib.sha256(blob).hexdigest(),
        "arch": victim.arch,
        "attack": spec,
        "scores": victim.scores.dict(),
        "recipe": victim.recipe,
        "history": victim.history,
    }
    _write(Path(f"{path}.safetensors"), blob)
    _write(Path(f"{path}.json"), (json.dumps(header, indent=1) + "\n").encode())
    return path


def _stem(path: str | os.PathLike) -> Path:
    """The path without the suffix of either file; other dots belong to the name."""
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".json", ".safetensors") else path


def _write(path: Path, blob: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as f:
        f.write(blob)
    os.chmod(f.name, 0o644)
    os.replace(f.name, path)


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> Victim:
    """Read a victim back; `path` with or without suffix.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the files are damaged, were changed, or are not a victim's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    path = Path(path)
    if path.suffix in (".pt", ".pth", ".pkl", ".ckpt"):
        raise ValueError(
            f"{path.name} is a pickle, which can run code when opened; victims are "
            "NAME.safetensors beside NAME.json."
        )
    path = _stem(path)
    text, blob = Path(f"{path}.json"), Path(f"{path}.safetensors")
    for p in (text, blob):
        if not p.exists():
            raise FileNotFoundError(
                f"there is no {p.name} in {p.parent}; a victim needs both its "
                ".safetensors and its .json."
            )
    try:
        header = json.loads(text.read_text())
        form, digest = header["format"], header["sha256"]
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{text.name} is not the header of a victim.") from e
    if form != FORMAT:
        raise ValueError(f"{text.name} says {form!r}; this version reads {FORMAT!r}.")
    raw = blob.read_bytes()
    if hashlib.sha256(raw).hexdigest() != digest:
        raise ValueError(
            f"{blob.name} does not match the hash in {text.name}: it was cut short, "
            "changed or exchanged; restore both files together."
        )
    try:
        tensors = from_bytes(raw)
        model = build(**header["arch"])
        attack = None
        if header["attack"] is not None:
            attack = rebuild(header["attack"], _under("attack.", tensors))
        state = _under("model.", tensors)
        model.load_state_dict({k: v.float() if v.is_floating_point() else v
                               for k, v in state.items()})  # fmt: skip
        poisoned, scores = tensors["poisoned"].long(), Scores(**header["scores"])
        recipe, history = header["recipe"], header["history"]
    except (SafetensorError, RuntimeError, LookupError, TypeError, ValueError,
            AttributeError) as e:  # fmt: skip
        why = (str(e).splitlines() or [type(e).__name__])[0]
        raise ValueError(
            f"{path.name} is not a victim that this version can rebuild ({why})."
        ) from e
    lay_out(model, device=device).eval()
    return Victim(model, header["arch"], attack, scores, recipe, poisoned, history)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)
    }


def zoo(name: str, device: str | torch.device = "cpu") -> Victim:
    """A victim that ships with the course, from data/zoo/ (see its README)."""
    known = sorted(p.stem for p in ZOO.glob("*.safetensors"))
    if name not in known:
        raise ValueError(f"the zoo has no {name!r}; it holds {', '.join(known)}.")
    return load(ZOO / name, device)
