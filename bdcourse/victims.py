"""Victims: a poisoned model together with all that is needed to measure it again.

A victim is saved as two files, NAME.safetensors (weights, trigger tensors, poison
indices) and NAME.json (everything that is text), never as a pickle. The JSON holds the
SHA-256 of the tensor file, so a truncated, changed or exchanged file is refused.
Derived in lesson 01.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

import bdcourse.tasks  # noqa: F401  # whose networks and attacks victims are rebuilt with
from bdcourse import require
from bdcourse.attacks import ROLES, Attack, rebuild
from bdcourse.augment import Augmentation
from bdcourse.examples import Examples, require_clean
from bdcourse.files import write_whole
from bdcourse.metrics import Scores, evaluate
from bdcourse.models import ELSEWHERE, MODELS, build, lay_out, not_finite
from bdcourse.seeds import fresh_seed
from bdcourse.train import History, all_finite, fit, listed_hooks

ZOO = Path(__file__).resolve().parent.parent / "data" / "zoo"
FORMAT = "bdcourse victim 1"


@dataclass(eq=False, repr=False)
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

    def __repr__(self) -> str:
        attack = "no attack" if self.attack is None else type(self.attack).__name__
        width = f" of width {self.arch['width']}" if "width" in self.arch else ""
        return f"Victim({attack} on {self.arch.get('name')}{width}, {self.scores})"

    def weak(self, twin: Scores) -> str:
        """Why this victim does not pass the gate, or "" if it does.

        Args:
            twin: scores of the benign model of the same recipe.
        """
        k = self.arch.get("classes")
        if k and at_chance(twin, k):
            share = f"{twin.headline.upper()} {100 * twin.acc:.1f} %"
            return f"the benign twin is at chance ({share} of {k} classes)"
        rounding = 1e-6  # exactly three points, or exactly 95 %, passes
        if self.scores.acc < twin.acc - 0.03 - rounding:
            what = "accuracy" if twin.headline == "acc" else twin.headline.upper()
            return (
                f"clean {what} {100 * self.scores.acc:.1f} % is more than 3 points "
                f"below its benign twin's {100 * twin.acc:.1f} %"
            )
        gate = 0.95 if self.attack is None else self.attack.gate
        if self.attack is not None and self.attack.all_to_all:
            gate *= twin.acc  # its ASR cannot much exceed the accuracy
        if self.scores.asr is not None and self.scores.asr < gate - rounding:
            return f"attack success {100 * self.scores.asr:.1f} % is below {100 * gate:.0f} %"
        return ""


PATCHES = 2_000_000  # that set a whitening first layer: 2,000 images of 32 pixels
GRAY = {"mean": [0.5], "std": [0.25]}  # of images with one channel


def checked(arch: dict, channels: int | None = None) -> dict:
    """The arguments of `models.build`, for images of so many channels.

    Networks for gray images get :data:`GRAY` to normalize with, if `arch` says nothing.

    Raises:
        ValueError: it names no network, or one that does not take such images.
    """
    if not isinstance(arch, dict) or "name" not in arch:
        raise ValueError(
            'arch must be a dict such as {"name": "resnet18", "width": 16}, not '
            f"{require.kind(arch)}."
        )
    networks = MODELS | ELSEWHERE
    name = require.choice("the name in arch", arch["name"], networks)
    known = {"name", *inspect.signature(networks[name]).parameters}
    if wrong := {str(k) for k in arch} - known:
        raise ValueError(
            f"arch has no entry {min(wrong)!r}{require.meant(min(wrong), known)}; "
            f"choose from {', '.join(sorted(known))}."
        )
    arch = dict(arch)
    for key, most in (("width", 1024), ("classes", 100_000)):
        if key in arch:
            arch[key] = require.whole(f"the {key} in arch", arch[key], 1, most)
    if name == "vit" and (w := arch.get("width", 192)) % max(1, w // 64):
        raise ValueError(f"the width of a vit must be a multiple of 64, not {w}.")
    if name in ELSEWHERE:
        return arch  # whose networks say themselves what they take
    if channels == 1 and not arch.keys() & GRAY.keys():
        arch |= GRAY
    for key in GRAY.keys() & arch.keys():
        arch[key] = list(require.row(f"the {key} in arch", arch[key]))
    takes = len(arch["mean"]) if "mean" in arch else 3
    if channels not in (None, takes):
        raise ValueError(
            f"the images have {channels} channels, but arch is for {takes}; give it a "
            "mean and a std with one number for each channel."
        )
    if name in ("mobilenet", "vit") and takes != 3:
        raise ValueError(f"{name} takes images of 3 channels, not of {takes}.")
    return arch


def at_chance(scores: Scores, k: int) -> bool:
    """Whether a network of k classes does hardly better than guessing, which gets 1/k
    of labels, and none of boxes or sentences.

    It must beat that by a tenth of what is left, and by three standard errors of a
    guess on as many images: 19 % of ten classes, and 23 % if there are 50 images.
    """
    chance, n = 1 / k if scores.headline == "acc" else 0.0, scores.n_clean
    error = math.sqrt(chance * (1 - chance) / n) if n else 0.0
    return scores.acc < chance + max(0.1 * (1 - chance), 3 * error)


def initialized(arch: dict, generator: torch.Generator) -> nn.Module:
    """`models.build(**arch)` with weights drawn from `generator` alone."""
    arch = checked(arch)
    require.generator(generator)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(**arch)


def make(
    train: Examples,
    test: Examples,
    attack: Attack | None,
    *,
    arch: dict,
    rate: float | None = None,
    stamp: Literal["before", "after"] = "before",
    seed: int = 0,
    pad: int | None = None,
    flip: bool | str = False,
    augment: Augmentation | None = None,
    aware: str | None = None,
    recipe: dict | None = None,
    **training,
) -> Victim:
    """Poison `train`, train a fresh model on it, measure it on `test`.

    Args:
        attack: None trains the benign twin: same seed, same recipe, no poison. An
            attack that steers the training is handed the clean set and does so.
        arch: {"name": ..., "width": ...}; the number of classes is added, and for gray
            images what they are normalized with.
        rate: share of poisoned images; default the attack's `usual_rate`.
        stamp: see `Attack.poison`.
        pad, flip: usual augmentation of the task, see `train.Augment`; pad is 2 for
            pixels, and 0 for what cannot be moved.
        augment: another augmentation, in the place of these two.
        aware: "smooth" or "sam": an attacker who knows what the defender will look for
            trains that way, whatever the attack; see `attacks.adaptive_training`.
        recipe: further text to keep with the victim, such as the name of the data.
        training: options of `train.fit`.

    Raises:
        ValueError: an argument that cannot be meant, before any work.
        RuntimeError: the training diverged; no victim is made of that.
    """
    _door(train, test, attack, rate, stamp, seed, aware, recipe, training)
    if augment is not None and not isinstance(augment, Augmentation):
        raise ValueError(f"augment must be an Augmentation or None, not {require.kind(augment)}.")
    pad = train.task.pad if pad is None else pad
    arch = {"classes": train.k, **checked(arch, train.shape[0])}
    if arch["classes"] < train.k:
        raise ValueError(f"arch has {arch['classes']} classes, but the images have {train.k}.")
    augmented = {"pad": pad, "flip": flip} if augment is None else {"augment": repr(augment)}
    augment = augment or train.task.augmentation(pad, flip)
    augment.check(train.shape)
    # Three streams from one seed: initial weights and batch order are then the same for
    # victim and twin, and do not depend on how many images the attack drew.
    init, poison, order = (torch.Generator().manual_seed(3 * seed + i) for i in range(3))
    model = initialized(arch, init)
    if (whiten := getattr(model, "whiten", None)) is not None:
        # Of the clean set, so that victim and twin start alike; all over it, since a
        # set may be sorted by class.
        _, h, w = train.shape
        whiten(train.x[:: max(1, -(-len(train) * h * w // PATCHES))])
    data, chosen = train, torch.zeros(0, dtype=torch.int64)
    n_poisoned = n_cover = 0
    hooks = []
    share = 0.0
    if attack is not None:
        share = attack.usual_rate if rate is None else rate
    if attack is not None and attack.threat == "training":
        # Its networks move in training: the caller's attack stays as it was, and what
        # the attacker draws leaves the order of the batches alone.
        attack = copy.deepcopy(attack)

        def hook(model, images, generator, total):
            own = fresh_seed(poison)
            own = torch.Generator(generator.device).manual_seed(own)
            return attack.steer(model, images, own, total, rate=share)

        hooks.append(hook)
        stamp = "after"
    elif attack is not None:
        data = attack.poison(train, share, poison, stamp=stamp)
        chosen = (data.role == ROLES["poison"]).nonzero().flatten().cpu()
        n_poisoned, n_cover = data.count, data.covers
    if aware:
        from bdcourse.attacks.adaptive_training import steer  # few victims need it

        hooks.append(steer(aware))
    hooks += listed_hooks(training.pop("hook", None))
    history = fit(model, data, augment=augment, generator=order, hook=hooks, **training)
    if not all_finite(model):  # stopped inside an epoch
        raise RuntimeError("the training diverged before it was stopped; try it with a lower lr.")
    if attack is not None and attack.threat == "training" and history.epochs:
        # Other images in every epoch.
        n_poisoned, n_cover = (max(history["n_" + r]) for r in ("poison", "cover"))
    settings = {
        k: v for k, v in training.items() if isinstance(v, (int, float, str)) and k != "checkpoint"
    }
    about = {
        **(recipe or {}),
        "seed": seed,
        "n_train": len(train),
        "digest_train": train.digest(),
        "rate": share,
        "n_poisoned": n_poisoned,
        "n_cover": n_cover,
        "stamp": stamp,
        **augmented,
        **({"aware": aware} if aware else {}),
        **settings,
        "interrupted": history.interrupted,
        "seconds": round(history.seconds, 1),
        "torch": torch.__version__,
    }
    scores = evaluate(model, test, attack)
    return Victim(model, arch, attack, scores, about, chosen, _plain(history))


def _door(
    train: Examples,
    test: Examples,
    attack: Attack | None,
    rate: float | None,
    stamp: str,
    seed: int,
    aware: str | None,
    recipe: dict | None,
    training: dict,
) -> None:
    """Refuse what no victim can be made of."""
    require_clean(train, "train")
    require_clean(test, "test", least=1)
    if train.classes != test.classes or train.shape != test.shape:
        raise ValueError(
            "train and test differ in classes or image size; take both from one data.splits."
        )
    require.whole("seed", seed, 0, 2**60)
    if rate is not None:
        require.fraction("rate", rate)
    require.choice("stamp", stamp, ("before", "after"))
    if aware is not None:
        require.choice("aware", aware, ("smooth", "sam"))
    if recipe is not None and not isinstance(recipe, dict):
        raise ValueError(f"recipe must be a dict, not {require.kind(recipe)}.")
    known = inspect.signature(fit).parameters.keys()
    known = known - {"model", "data", "augment", "generator"}
    if wrong := training.keys() - known:
        raise ValueError(
            f"there is no option {min(wrong)!r}{require.meant(min(wrong), known)}; a "
            f"training takes {', '.join(sorted(known))}."
        )
    if attack is None:
        return
    if not isinstance(attack, Attack):
        raise ValueError(
            f"attack must be an Attack, such as BadNets(), or None, not {require.kind(attack)}."
        )
    for images in (train, test):
        attack.check(images)
    if not bool(attack.counts(test.y).any()):
        raise ValueError("no test image counts for this attack; take more of them.")


def _plain(history: History) -> list[dict]:
    return [
        {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}
        for row in history.epochs
    ]


def save(victim: Victim, path: str | os.PathLike, *, half: bool = False) -> Path:
    """Write PATH.safetensors and PATH.json; each appears only when complete.

    Args:
        half: store kernels and matrices as float16, half the size. Vectors (BatchNorm
            statistics among them) stay float32: a small variance would lose its digits.

    Raises:
        ValueError: weights that are not finite, as stored.
        RuntimeError: the files cannot be written.
    """
    from safetensors.torch import save as to_bytes

    if not isinstance(victim, Victim):
        raise ValueError(f"victim must be a Victim, not {require.kind(victim)}.")
    require.truth("half", half)
    path = _stem(require.path("path", path))
    tensors = {f"model.{k}": v.cpu() for k, v in victim.model.state_dict().items()}
    if half:
        tensors = {
            k: v.half() if v.is_floating_point() and v.ndim > 1 else v for k, v in tensors.items()
        }
    spec = None
    if victim.attack is not None:
        spec, state = victim.attack.spec()
        if half:  # networks shrink, patterns stay exact
            state = {k: v.half() if "." in k and v.ndim > 1 else v for k, v in state.items()}
        tensors |= {f"attack.{k}": v.cpu() for k, v in state.items()}
    tensors["poisoned"] = victim.poisoned.int()
    if bad := not_finite(tensors):
        raise ValueError(
            f"{bad} holds numbers that are not finite"
            f"{' at half precision' if half else ''}, so this victim is not saved."
        )
    # Copies: modules may share a weight, which safetensors would refuse.
    blob = to_bytes({k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()})
    header = {
        "format": FORMAT,
        "sha256": hashlib.sha256(blob).hexdigest(),
        "arch": victim.arch,
        "attack": spec,
        "scores": victim.scores.dict(),
        "recipe": victim.recipe,
        "history": victim.history,
    }
    try:
        text = json.dumps(header, indent=1) + "\n"
    except (TypeError, ValueError) as e:
        raise ValueError(
            "recipe, history and arch of a victim must be text, numbers, lists and "
            "dicts, and something else is among them."
        ) from e
    write_whole(f"{path}.safetensors", blob)
    write_whole(f"{path}.json", text.encode())
    return path


def _stem(path: str | os.PathLike) -> Path:
    """The path without the suffix of either file; other dots belong to the name."""
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".json", ".safetensors") else path


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> Victim:
    """Read a victim back; `path` with or without suffix.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the files are damaged, were changed, or are not a victim's.
    """
    from safetensors.torch import load as from_bytes

    path, device = Path(require.path("path", path)), require.device("device", device)
    if path.suffix in (".pt", ".pth", ".pkl", ".ckpt"):
        raise ValueError(
            f"{path.name} is a pickle, which can run code when opened; victims are "
            "NAME.safetensors beside NAME.json."
        )
    path = _stem(path)
    text, blob = Path(f"{path}.json"), Path(f"{path}.safetensors")
    for p in (text, blob):
        if not p.is_file():
            raise FileNotFoundError(
                f"there is no {p.name} in {p.parent}; a victim needs both its "
                ".safetensors and its .json."
            )
    try:
        header, raw = text.read_bytes(), blob.read_bytes()
    except OSError as e:
        raise ValueError(f"{path.name} cannot be read ({e.strerror}).") from e
    try:
        header = json.loads(header)
        form, digest = header["format"], header["sha256"]
    except (ValueError, LookupError, TypeError, RecursionError) as e:
        raise ValueError(f"{text.name} is not the header of a victim.") from e
    if form != FORMAT:
        raise ValueError(f"{text.name} says {require.kind(form)}; this version reads {FORMAT!r}.")
    if hashlib.sha256(raw).hexdigest() != digest:
        raise ValueError(
            f"{blob.name} does not match the hash in {text.name}: it was cut short, "
            "changed or exchanged; restore both files together."
        )
    try:
        tensors = from_bytes(raw)
        if bad := not_finite(tensors):
            raise ValueError(f"{bad} holds numbers that are not finite")
        model = build(**checked(header["arch"]))
        attack = None
        if header["attack"] is not None:
            attack = rebuild(header["attack"], _under("attack.", tensors))
            _among_labels(attack, header["arch"].get("classes", 10))
        state = _under("model.", tensors)
        model.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
        )
        poisoned, scores = _rows(tensors["poisoned"]), _scores(header["scores"])
        recipe, history = header["recipe"], header["history"]
        if not isinstance(recipe, dict) or not isinstance(history, list):
            raise ValueError("recipe must be a dict and history a list")
        if not all(isinstance(row, dict) for row in history):
            raise ValueError("history must hold one dict for each epoch")
    except Exception as e:  # what somebody wrote into a file can fail in many ways
        why = (str(e).splitlines() or [""])[0].rstrip(".") or type(e).__name__
        raise ValueError(
            f"{path.name} is not a victim that this version can rebuild ({why})."
        ) from e
    lay_out(model, device=device).eval()
    return Victim(model, header["arch"], attack, scores, recipe, poisoned, history)


def _among_labels(attack: Attack, k: int) -> None:
    """Refuse an attack on labels that a network of k classes does not have."""
    for name in ("target", "source", "sources", "together", "covers"):
        value = getattr(attack, name, ())
        for label in value if isinstance(value, tuple) else (value,):
            require.whole(f"{name} of the attack", label, 0, k - 1)
    if attack.all_to_all and attack.classes != k:
        raise ValueError(f"the attack is for {attack.classes} classes, the model has {k}")


def _rows(poisoned: Tensor) -> Tensor:
    if poisoned.ndim != 1 or poisoned.is_floating_point() or (poisoned < 0).any():
        raise ValueError("poisoned must hold positions of images")
    return poisoned.long()


def _scores(values: dict) -> Scores:
    scores = Scores(**values)
    for name, value in scores.dict().items():
        if name == "headline":
            continue
        if name.startswith("n_"):
            require.whole(name, value, 0)
        elif name == "more":
            for key, number in value.items():
                require.number(key, number)
        elif value is not None or name == "acc":
            require.fraction(name, value)
    return scores


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def zoo(name: str, device: str | torch.device = "cpu") -> Victim:
    """A victim that ships with the course, from data/zoo/ (see its README)."""
    known = sorted(p.stem for p in ZOO.glob("*.safetensors"))
    if name not in known:
        raise ValueError(
            f"the zoo has no {require.kind(name)}{require.meant(name, known)}; it "
            f"holds {', '.join(known)}."
        )
    return load(ZOO / name, device)
