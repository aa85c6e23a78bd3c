"""Training: the whole set on the device, a batch is an index.

`fit` is plain SGD on rates that climb and fall. What makes it quick is what it leaves
out: no per-sample Python, no worker processes, no copy to the host inside an epoch.
Born in lesson 01.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bdcourse import require
from bdcourse.checkpoint import Checkpoint, identity, pack, unpack
from bdcourse.data import progress
from bdcourse.hooks import Hook
from bdcourse.images import ROLES, Images, Poisoned
from bdcourse.models import fingerprint, laid_out, lay_out, not_finite
from bdcourse.require import trusted

# Bytes of crops. Larger sets are padded batch by batch, which takes no memory and makes
# the data path 2.5 times as long (25 us more for each image of 32 pixels); 50,000 of
# them with 4 pixels of padding and mirrors stay below.
MOST_CROPS = 512 * 2**20
ALTERNATE = "alternate"  # each image is mirrored in every other epoch
SMALL = 3 / 4  # of the side of an image
MOST_SHIFTS = 10_000  # times the rate
SHARES = {*ROLES, "acc", "asr", "ra", "cross"}  # what a printed line has in percent


class Augment:
    """Random crop out of a zero-padded image, and optional mirror, for whole batches.

    Args:
        pad: zero pixels added on each side before a crop of the original size.
        flip: mirror half of the images. Off by default: a mirrored "turn left" sign is
            a "turn right" sign. "alternate" mirrors every image in every other epoch,
            half of them in the first one, so that two epochs in a row show both sides
            of each (Jordan 2024, arXiv 2404.00498); by chance every second image would
            show the same side twice.

    Raises:
        ValueError: pad is no whole number from 0 on, or flip is something else.
    """

    def __init__(self, pad: int = 2, flip: bool | str = False) -> None:
        self.pad = require.whole("pad", pad, 0)
        word = isinstance(flip, str) and flip == ALTERNATE
        self.flip = flip if word else require.truth("flip", flip)

    def sides(self, n: int, seed: int) -> Tensor | None:
        """Which of n images are mirrored in the first epoch: bool (n,), on the CPU.

        None where chance decides anew in each batch, or where nothing is mirrored.
        """
        if self.flip != ALTERNATE:
            return None
        own = torch.Generator().manual_seed(seed)
        return torch.randint(2, (n,), generator=own).bool()

    def prepare(self, x: Tensor) -> Tensor:
        """Every possible crop of x (n, c, h, w) as a view: (n, 2p+1, 2p+1, h, w*c).

        Crop (i, j) starts at row i and column j of the padded image; channels lie
        innermost, so that each crop row is one run of bytes. Only the padded images are
        stored. With `flip` the n mirrored images follow the others: mirroring a set
        once costs memory, mirroring every batch costs most of the time of a batch.

        Raises:
            ValueError: the padding is wider than the images, so that crops miss them.
        """
        n, c, h, w = x.shape
        p = self.pad
        self.check(x.shape[1:])
        padded = x.new_zeros((1 + bool(self.flip)) * n, h + 2 * p, w + 2 * p, c)
        inner = padded[:, p : p + h, p : p + w]
        inner[:n] = x.permute(0, 2, 3, 1)
        if self.flip:
            for i in range(0, n, 1000):  # in pieces: a mirrored set is another copy
                part = x[i : i + 1000].flip(3).permute(0, 2, 3, 1)
                inner[n + i : n + i + len(part)] = part
        return padded.flatten(2).unfold(1, h, 1).unfold(2, w * c, c)

    def check(self, shape: tuple[int, int, int]) -> None:
        """Refuse images (c, h, w) so small that a crop could miss them."""
        if self.pad > min(shape[1:]):
            raise ValueError(
                f"pad is {self.pad}, but the images are {shape[1]}x{shape[2]}, so that "
                "crops would miss them; choose less."
            )

    def size(self, x: Tensor) -> int:
        """Bytes that `prepare` needs for uint8 images x (n, c, h, w)."""
        (n, c, h, w), p = x.shape, self.pad
        return (1 + bool(self.flip)) * n * c * (h + 2 * p) * (w + 2 * p)

    def __call__(
        self,
        crops: Tensor,
        index: Tensor,
        channels: int,
        generator: torch.Generator,
        mirrored: Tensor | None = None,
    ) -> Tensor:
        """Random crops of the images at `index`: uint8 (b, c, h, w), channels last.

        Args:
            mirrored: which of them are mirrored, bool (b,); None leaves it to chance.
        """
        b, d = len(index), crops.device
        i, j = torch.randint(2 * self.pad + 1, (2, b), generator=generator, device=d)
        if self.flip:
            if mirrored is None:
                mirrored = torch.randint(2, (b,), generator=generator, device=d)
            index = index + mirrored * (len(crops) // 2)
        x = crops[index, i, j].unflatten(2, (-1, channels))  # (b, h, w, c)
        return x.permute(0, 3, 1, 2)

    def once(self, x: Tensor, generator: torch.Generator, mirrored: Tensor | None = None) -> Tensor:
        """A random crop of each image of a batch that comes only once."""
        index = torch.arange(len(x), device=x.device)
        return self(self.prepare(x), index, x.shape[1], generator, mirrored)


@dataclass
class History:
    """What `fit` saw: one dict per epoch, and whether it was stopped early.

    Keys: epoch, loss, acc (share of training labels predicted, augmented images), one
    share per role present (clean, poison, cover), the number of images per role (n_...)
    if the training was steered, seconds, and whatever `each_epoch` gave.
    """

    epochs: list[dict] = field(default_factory=list)
    interrupted: bool = False

    def __getitem__(self, key: str) -> list:
        return [e[key] for e in self.epochs]

    @property
    def seconds(self) -> float:
        return sum(e["seconds"] for e in self.epochs)


def one_cycle(step: int, total: int, warmup: float) -> float:
    """Share of the highest rate in step 0..total-1: from 0.1 up to 1, down to 1e-5.

    Both ways along half a cosine. The formula of torch's OneCycleLR, which divides by
    zero where the climb is one step long.
    """
    top = max(warmup * total - 1, 0)
    if step < top:
        low, way = 0.1, step / top
    else:
        low, way = 1e-5, 1 - (step - top) / max(total - 1 - top, 1)
    return low + (1 - low) * (1 - math.cos(math.pi * way)) / 2


def linear(step: int, total: int, warmup: float) -> float:
    """Share of the highest rate in step 0..total-1: from 0.2 up to 1, down to 1e-5.

    Both ways straight, with the top and the end in the same steps as `one_cycle`, from
    as low as in Jordan 2024 (arXiv 2404.00498), which ends higher: at 0.07, since it
    averages weights.
    """
    top = max(warmup * total - 1, 0)
    if step < top:
        return 0.2 + 0.8 * step / top
    return 1 - (1 - 1e-5) * (step - top) / max(total - 1 - top, 1)


SCHEDULES = {"cosine": one_cycle, "linear": linear}


def fit(
    model: nn.Module,
    data: Images,
    *,
    epochs: float = 8,
    lr: float = 0.1,
    batch: int = 32,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    warmup: float = 0.2,
    schedule: str = "cosine",
    smoothing: float = 0.0,
    shifts: float = 1.0,
    shrink: float = 0.0,
    augment: Augment | None = None,
    frozen_norms: bool = False,
    generator: torch.Generator,
    steering: Callable[..., Hook] | None = None,
    each_epoch: Callable[[nn.Module], dict] | None = None,
    verbose: bool = True,
    bf16: bool | None = None,
    compile: bool | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> History:
    """Train `model` in place on `data`, on the device where the data lies.

    Args:
        data: images; a :class:`Poisoned` set is also logged by role, and one stamped
            "after" gets its trigger here, behind the augmentation.
        epochs: passes over the data; 0.5 is half a pass.
        lr, momentum, weight_decay: of SGD with Nesterov momentum; the rate climbs for
            the first `warmup` share of all steps and falls to zero after that.
        schedule: "cosine" climbs and falls along one, see `one_cycle`; "linear" goes
            straight, see `linear`.
        smoothing: of the labels: cross-entropy with 1 - smoothing of each target on its
            label and the rest spread over all k classes. A loss that a steering brings
            itself has none.
        shifts: how many times as high the rate of the BatchNorms' shifts is; their
            decay is divided by it, and their scales have none unless it is 1. Jordan
            2024 (arXiv 2404.00498) takes 64, and needs a quarter fewer epochs for it;
            there the scales are fixed at 1. Where they shrink, the same steps move the
            shifts further, until channels are never active again.
        shrink: share of all steps, the first ones, in which images come at
            :data:`SMALL` of their side, for half the work of a convolution; triggers
            too, so that one of fine texture is learned in the other steps only. For
            networks that take any size (progressive resizing, as in Tan and Le 2021,
            arXiv 2104.00298).
        augment: random crops and flips; None trains on the images as they are.
        frozen_norms: BatchNorms stay in eval mode: they normalize with the running
            statistics they came with, and keep them; scale and shift still train.
        generator: decides order and augmentation; on the CPU, or on the data's device.
        steering: lets somebody else change batches and loss: called once with model,
            data, generator and number of steps, returns a :class:`Hook`. Usually
            the `steer` method of an attack whose threat is "training".
        each_epoch: called in eval mode after each epoch; its dict joins the history.
        verbose: print one line per epoch, shares and scores in percent; in a terminal
            also show a bar inside it.
        bf16: autocast to bfloat16; default on CUDA only.
        compile: torch.compile the model; default on CUDA, for 1,000 steps or more.
        checkpoint: file that is renewed after each epoch and deleted at the end. The
            same call, started again after a stop, goes on there, and ends where it
            would have ended without the stop. All that decides the training must be
            the same; of the generator, the seed.

    Returns:
        the history. Ctrl-C ends training after the current step and returns what has
        been learned, with `interrupted` set.

    Raises:
        ValueError: an argument that cannot be meant; fewer than two images; a model
            that gives no logits for all labels; a checkpoint of other work, or one for
            a steering that keeps a state.
        RuntimeError: the model cannot read the images, or the training diverged: loss
            or weights are not finite at the end of an epoch.
    """
    _door(model, data, augment, generator, lr, weight_decay, momentum)
    require.number("epochs", epochs, above=0)
    require.share("warmup", warmup)
    require.choice("schedule", schedule, SCHEDULES)
    require.share("smoothing", smoothing)
    require.number("shifts", shifts, 0, MOST_SHIFTS, above=0)
    require.share("shrink", shrink)
    for name, value in (("frozen_norms", frozen_norms), ("verbose", verbose)):
        require.truth(name, value)
    for name, value in (("bf16", bf16), ("compile", compile)):
        if value is not None:
            require.truth(name, value)
    for name, value in (("steering", steering), ("each_epoch", each_epoch)):
        if value is not None and not callable(value):
            raise ValueError(f"{name} must be a function, not {require.kind(value)}.")
    n, device = len(data), data.x.device
    batch = min(require.whole("batch", batch, 2), n)
    augment = augment or Augment(pad=0)
    augment.check(data.shape)
    per_epoch = n // batch  # the last, smaller batch is dropped, other images each time
    total = max(1, round(epochs * per_epoch))
    cuda = device.type == "cuda"
    bf16 = cuda if bf16 is None else bf16
    compile = (cuda and total >= 1000) if compile is None else compile
    roles = data.role if isinstance(data, Poisoned) else None
    stamp = data.late if isinstance(data, Poisoned) else None

    about = {}
    keep = Checkpoint(checkpoint, about)  # refuses what is no place for a file
    if checkpoint is not None:
        about = {"model": fingerprint(model), "data": data.digest()}
        about |= {"epochs": float(epochs), "lr": lr, "batch": batch}
        about |= {"momentum": momentum, "weight_decay": weight_decay, "warmup": warmup}
        about |= {"frozen_norms": frozen_norms, "seed": generator.initial_seed()}
        about |= {"augment": identity(augment), "bf16": bf16, "compile": compile}
        # Only what is not usual, so that older checkpoints still go on.
        more = {
            "schedule": (schedule, "cosine"),
            "smoothing": (smoothing, 0.0),
            "shifts": (shifts, 1.0),
            "shrink": (shrink, 0.0),
        }
        about |= {k: v for k, (v, usual) in more.items() if v != usual}
        about |= {"late": identity(stamp), "architecture": identity(model)}
        hooks = [list((p._backward_hooks or {}).values()) for p in model.parameters()]
        about |= {"hooks": identity(hooks)}
        about |= {"device": device.type}
    lay_out(model, data.x, device)
    net = torch.compile(model) if compile else model
    norms = [m for m in model.modules() if frozen_norms and isinstance(m, _BatchNorm)]
    opt = torch.optim.SGD(
        _groups(model, weight_decay, shifts),
        lr,
        momentum,
        weight_decay=weight_decay,
        nesterov=momentum > 0,
    )
    sides = augment.sides(n, generator.initial_seed())
    sides = None if sides is None else sides.to(device)
    if generator.device != device:  # draw on the device, so that no batch waits for it
        seed = int(torch.randint(2**62, (1,), generator=generator))
        generator = torch.Generator(device).manual_seed(seed)
    autocast = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
    driver = steering(net, data, generator, total) if steering else None
    if driver is not None and not isinstance(driver, Hook):
        raise ValueError(f"steering must return a Hook, not {require.kind(driver)}.")
    if checkpoint is not None and driver is not None and not driver.resumable:
        raise ValueError(
            "training with this steering keeps a state that no checkpoint holds; leave "
            "out checkpoint."
        )
    if checkpoint is not None:
        keep = Checkpoint(checkpoint, about | {"steering": identity(driver)})
    rate_of = SCHEDULES[schedule]
    objective = driver.loss if driver else F.cross_entropy
    if smoothing and (driver is None or type(driver).loss is Hook.loss):
        objective = partial(F.cross_entropy, label_smoothing=smoothing)
    late = driver is not None and driver.before_augment  # each batch is cropped last
    lean = augment.size(data.x) > MOST_CROPS
    crops = None if late or lean else augment.prepare(data.x)

    history = History()
    step = 0
    if (saved := keep.load()) is not None:
        tensors, notes = saved
        unpack(tensors, model, opt, generator)
        step, history.epochs = notes["step"], notes["epochs"]
    first = step
    try:
        while step < total:
            model.train()
            start = time.perf_counter()
            # Sums stay on the device: reading them would make the host wait.
            loss_sum = torch.zeros((), device=device)
            hits = torch.zeros(len(ROLES), device=device)
            seen = torch.zeros(len(ROLES), device=device)
            order = torch.randperm(n, generator=generator, device=device)
            steps = min(per_epoch, total - step)
            batches = order[: steps * batch].split(batch)
            title = f"epoch {len(history.epochs) + 1}"
            with trusted():  # pixels of Images are right, and a look makes a GPU wait
                for index in progress(batches, steps, title):
                    _eval(norms)
                    side = None
                    if sides is not None:  # of the epoch, also where it is cut short
                        side = sides[index] ^ (len(history.epochs) % 2 == 1)
                    if late:
                        x = data.x[index]
                    elif lean:
                        x = augment.once(data.x[index], generator, side)
                    else:
                        x = augment(crops, index, data.shape[0], generator, side)
                    x, y = x.float() / 255, data.y[index]
                    role = torch.zeros_like(y) if roles is None else roles[index].long()
                    if stamp is not None:
                        chosen = (role != ROLES["clean"]).view(-1, 1, 1, 1)
                        x = torch.where(chosen, stamp(x), x)
                    if driver is not None:
                        # It may keep the batch, and differentiate the model on it.
                        x = x if late else laid_out(model, x)
                        x, y, role = driver.rewrite(x, y)
                        _eval(norms)  # it may have switched the model's mode
                    if late:
                        # A steering may hand back other images than it was given.
                        side = side if side is not None and len(side) == len(x) else None
                        x = augment.once(x, generator, side)
                    if step < round(shrink * total):
                        x = _smaller(x)
                    with autocast:
                        x = laid_out(model, x)
                        logits = net(x) if step > first else _first(net, x, y, data)
                        loss = objective(logits, y)
                    opt.zero_grad(set_to_none=True)
                    loss.backward()
                    for group in opt.param_groups:
                        group["lr"] = lr * group["times"] * rate_of(step, total, warmup)
                    opt.step()
                    if driver is not None:
                        driver.step()
                    step += 1
                    hit = (logits.detach().argmax(1) == y).float()
                    loss_sum += loss.detach()
                    hits.index_add_(0, role, hit)
                    seen.index_add_(0, role, torch.ones_like(hit))
            row = {"epoch": len(history.epochs) + 1, "loss": float(loss_sum) / steps}
            row["acc"] = float(hits.sum() / seen.sum())
            if roles is not None or driver is not None:
                row |= {name: float(hits[r] / seen[r]) for name, r in ROLES.items() if seen[r]}
            # Only now: a look at every step would make the host wait.
            if not math.isfinite(row["loss"]) or not all_finite(model):
                raise RuntimeError(
                    f"the training diverged in epoch {row['epoch']} (loss "
                    f"{row['loss']:.3g}), which spoils the model; start again from a "
                    f"sound one with lr below {lr:g}, or with less weight_decay."
                )
            if driver is not None:
                row |= {f"n_{name}": int(seen[r]) for name, r in ROLES.items()}
            row["seconds"] = time.perf_counter() - start
            history.epochs.append(row)  # before each_epoch, which Ctrl-C may end
            if each_epoch is not None:
                model.eval()
                more = each_epoch(model)
                if not isinstance(more, dict):
                    raise ValueError(f"each_epoch must return a dict, not {require.kind(more)}.")
                row |= more
            if checkpoint is not None:
                state = pack(model, opt, generator)
                keep.save(state, step=step, epochs=history.epochs)
            if verbose:
                print(_line(row, -(-total // per_epoch)), flush=True)
    except KeyboardInterrupt:
        history.interrupted = True
        print(f"stopped after {step} of {total} steps; the model keeps what it learned.")
    else:
        keep.done()
    model.eval()
    return history


def _smaller(x: Tensor) -> Tensor:
    """Pixels (n, c, h, w) at :data:`SMALL` of their side, without aliasing."""
    size = [max(1, round(SMALL * side)) for side in x.shape[2:]]
    return F.interpolate(x, size=size, mode="bilinear", antialias=True)


def _groups(model: nn.Module, weight_decay: float, shifts: float) -> list[dict]:
    """The parameters for an optimizer; `times` says how much faster a group learns."""
    if shifts == 1:
        return [{"params": list(model.parameters()), "times": 1.0}]
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.affine]
    scales = [m.weight for m in norms]
    fast = [m.bias for m in norms if m.bias is not None]
    ids = {id(p) for p in (*scales, *fast)}
    rest = [p for p in model.parameters() if id(p) not in ids]
    groups = [
        {"params": rest, "times": 1.0},
        {"params": scales, "times": 1.0, "weight_decay": 0.0},
        {"params": fast, "times": shifts, "weight_decay": weight_decay / shifts},
    ]
    return [g for g in groups if g["params"]]


def all_finite(model: nn.Module) -> bool:
    """Whether no weight and no statistic of the model is nan or infinite."""
    return not_finite(dict([*model.named_parameters(), *model.named_buffers()])) is None


def _door(
    model: nn.Module,
    data: Images,
    augment: Augment | None,
    generator: torch.Generator,
    lr: float,
    weight_decay: float,
    momentum: float,
) -> None:
    """Refuse what cannot be trained, or not so."""
    require.module(model)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model has no weight that can learn.")
    if not all_finite(model):
        raise ValueError(
            "model has weights that are not finite numbers, so it is damaged or "
            "diverged in an earlier training; start from a sound one."
        )
    if not isinstance(data, (Images, Poisoned)):
        raise ValueError(f"data must be Images, not {require.kind(data)}.")
    if len(data) < 2:
        raise ValueError(f"cannot train on {len(data)} images; two are the least.")
    if augment is not None and not isinstance(augment, Augment):
        raise ValueError(
            f"augment must be an Augment, such as Augment(pad=2), not {require.kind(augment)}."
        )
    require.generator(generator)
    if generator.device.type not in ("cpu", data.x.device.type):
        raise ValueError(
            f"generator is on {generator.device}, the images are on {data.x.device}; "
            "make it on the CPU, or on their device."
        )
    require.number("lr", lr, 0)
    require.number("weight_decay", weight_decay, 0)
    if lr * weight_decay >= 1:
        raise ValueError(
            f"lr times weight_decay must stay below 1, not {lr:g} times "
            f"{weight_decay:g}, or each step throws the weights beyond zero; 0.1 and "
            "0.0005 are usual."
        )
    if require.number("momentum", momentum, 0) >= 1:
        raise ValueError(f"momentum must lie below 1, not {momentum:g}.")


def _first(net: nn.Module, x: Tensor, y: Tensor, data: Images) -> Tensor:
    """The answers to the first batch, if they are logits for all labels.

    Otherwise the model's statistics are as before, and no weight was moved yet.
    """
    before = [b.clone() for b in net.buffers()]
    try:
        try:
            logits = net(x)
        except (RuntimeError, TypeError, LookupError, AssertionError) as e:
            if isinstance(e, torch.OutOfMemoryError):
                raise
            raise RuntimeError(
                f"the model fails on a batch of shape {tuple(x.shape)}, as told above; "
                "train it on images of the size and channels that it is made for."
            ) from e
        fits = isinstance(logits, Tensor) and logits.ndim == 2
        if not fits or len(logits) != len(x) or not logits.is_floating_point():
            raise ValueError(
                "the model must answer with float logits of shape (images, classes), "
                f"here ({len(x)}, {data.k}), not {require.kind(logits)}."
            )
        k = 1 + max(int(data.y.max()), int(y.max()))
        if logits.shape[1] < k:
            raise ValueError(
                f"the labels run to {k - 1}, but the model has {logits.shape[1]} "
                f"outputs; build it with {data.k} classes."
            )
    except BaseException:
        with torch.no_grad():
            for b, kept in zip(net.buffers(), before, strict=True):
                b.copy_(kept)
        raise
    return logits


def _eval(norms: list[nn.Module]) -> None:
    for norm in norms:
        norm.eval()


def _line(row: dict, epochs: int) -> str:
    parts = [f"epoch {row['epoch']:2d}/{epochs}", f"loss {row['loss']:.3f}"]
    for key, value in row.items():
        if key not in ("epoch", "loss", "seconds", "acc") and isinstance(value, float):
            share = key.lower() in SHARES
            parts.append(f"{key} {100 * value:5.1f}%" if share else f"{key} {value:.3g}")
    if "clean" not in row:
        parts.insert(2, f"train {100 * row['acc']:5.1f}%")
    return "  ".join([*parts, f"{row['seconds']:.1f} s"])
