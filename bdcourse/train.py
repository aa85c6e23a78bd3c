"""Training: the whole set on the device, a batch is an index.

`fit` is plain SGD on rates that climb and fall. What makes it quick is what it leaves
out: no per-sample Python, no worker processes, no copy to the host inside an epoch.
Derived in lesson 01.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bdcourse import require
from bdcourse.augment import Augment, Augmentation
from bdcourse.checkpoint import Checkpoint, content_hash, pack, unpack
from bdcourse.data import progress
from bdcourse.examples import ROLES, Examples, Poisoned
from bdcourse.hooks import Hook, TrainBatch
from bdcourse.models import fingerprint, laid_out, lay_out, not_finite
from bdcourse.require import trusted
from bdcourse.seeds import seeded

SMALL = 3 / 4  # of the side of an image
MOST_SHIFTS = 10_000  # times the rate
SHARES = {*ROLES, "acc", "asr", "ra", "cross"}  # what a printed line has in percent


@dataclass(repr=False)
class History:
    """What `fit` saw: one dict per epoch, and whether it was stopped early.

    Keys: epoch, loss, acc (share of training labels predicted, augmented images), one
    share per role present (clean, poison, cover), the number of images per role (n_...)
    if the training was steered, seconds, and whatever `each_epoch` gave.
    """

    epochs: list[dict] = field(default_factory=list)
    interrupted: bool = False

    def __repr__(self) -> str:
        last = f"{_line(self.epochs[-1], len(self.epochs))}, " if self.epochs else ""
        stopped = ", interrupted" if self.interrupted else ""
        return f"History({last}{self.seconds:.1f} s in all{stopped})"

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
OPTIMIZERS = ("sgd", "adamw")


def fit(
    model: nn.Module,
    data: Examples,
    *,
    epochs: float = 8,
    lr: float = 0.1,
    batch: int = 32,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    warmup: float = 0.2,
    schedule: str = "cosine",
    smoothing: float = 0.0,
    shifts: float = 1.0,
    shrink: float = 0.0,
    clip: float | None = None,
    augment: Augmentation | None = None,
    frozen_norms: bool = False,
    generator: torch.Generator | None = None,
    hook: Hook | Callable[..., Hook] | Sequence | None = None,
    each_epoch: Callable[[nn.Module], dict] | None = None,
    verbose: bool = True,
    bf16: bool | None = None,
    compile: bool | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> History:
    """Train `model` in place on `data`, on the device where the data lies.

    Args:
        data: images or examples of another task, whose likelihood is the loss; a
            :class:`Poisoned` set is also logged by role, and one stamped "after" gets its
            trigger here, behind the augmentation.
        epochs: passes over the data; 0.5 is half a pass.
        lr, momentum, weight_decay: of the optimizer; the rate climbs for the first
            `warmup` share of all steps and falls to zero after that.
        optimizer: "sgd" with Nesterov momentum, or "adamw", whose first beta `momentum`
            is and whose `weight_decay` is usually 0.01.
        schedule: "cosine" climbs and falls along one, see `one_cycle`; "linear" goes
            straight, see `linear`.
        smoothing: of the labels: cross-entropy with 1 - smoothing of each target on its
            label and the rest spread over all k classes.
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
        clip: largest norm of the gradient over all weights together; None leaves it.
        augment: random crops and flips of images, see :class:`Augment`; None trains on
            the examples as they are.
        frozen_norms: BatchNorms stay in eval mode: they normalize with the running
            statistics they came with, and keep them; scale and shift still train.
        generator: decides order and augmentation; on the CPU, or on the data's device;
            None starts from seed 0.
        hook: lets somebody else change batches and loss: a :class:`Hook`, or a function
            of model, data, generator and number of steps that returns one, usually the
            `steer` method of an attack whose threat is "training"; or several of these,
            which are called in this order.
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
        ValueError: an argument that cannot be meant; fewer than two examples; a model
            that gives no logits for all labels; a checkpoint of other work.
        RuntimeError: the model cannot read the examples, or the training diverged: loss
            or weights are not finite at the end of an epoch.
    """
    generator = seeded(0) if generator is None else generator
    settings = Settings(
        epochs=epochs,
        lr=lr,
        batch=batch,
        optimizer=optimizer,
        momentum=momentum,
        weight_decay=weight_decay,
        warmup=warmup,
        schedule=schedule,
        smoothing=smoothing,
        shifts=shifts,
        shrink=shrink,
        clip=clip,
        frozen_norms=frozen_norms,
    )
    _door(model, data, augment, generator, settings)
    for name, value in (("bf16", bf16), ("compile", compile)):
        if value is not None:
            require.truth(name, value)
    require.truth("verbose", verbose)
    if each_epoch is not None and not callable(each_epoch):
        raise ValueError(f"each_epoch must be a function, not {require.kind(each_epoch)}.")
    hooks = listed_hooks(hook)
    training = _Training(model, data, settings, augment, generator, bf16, compile)
    return training.run(hooks, each_epoch, verbose, checkpoint)


@dataclass(frozen=True)
class Settings:
    """What decides a training besides model, data and chance; see :func:`fit`."""

    epochs: float
    lr: float
    batch: int
    optimizer: str
    momentum: float
    weight_decay: float
    warmup: float
    schedule: str
    smoothing: float
    shifts: float
    shrink: float
    clip: float | None
    frozen_norms: bool

    def __post_init__(self) -> None:
        require.number("lr", self.lr, 0)
        require.number("weight_decay", self.weight_decay, 0)
        if self.lr * self.weight_decay >= 1:
            raise ValueError(
                f"lr times weight_decay must stay below 1, not {self.lr:g} times "
                f"{self.weight_decay:g}, or each step throws the weights beyond zero; 0.1 "
                "and 0.0005 are usual."
            )
        if require.number("momentum", self.momentum, 0) >= 1:
            raise ValueError(f"momentum must lie below 1, not {self.momentum:g}.")
        require.number("epochs", self.epochs, above=0)
        require.fraction("warmup", self.warmup)
        require.choice("optimizer", self.optimizer, OPTIMIZERS)
        require.choice("schedule", self.schedule, SCHEDULES)
        require.fraction("smoothing", self.smoothing)
        require.number("shifts", self.shifts, 0, MOST_SHIFTS, above=0)
        require.fraction("shrink", self.shrink)
        if self.clip is not None:
            require.number("clip", self.clip, above=0)
        require.truth("frozen_norms", self.frozen_norms)
        object.__setattr__(self, "batch", require.whole("batch", self.batch, 2))

    def described(self) -> dict:
        """For a checkpoint; what has its usual value and came later is left out, so that
        older ones still go on."""
        usual = {
            **{"optimizer": "sgd", "schedule": "cosine", "smoothing": 0.0},
            **{"shifts": 1.0, "shrink": 0.0, "clip": None},
        }
        own = asdict(self) | {"epochs": float(self.epochs)}
        return {k: v for k, v in own.items() if k not in usual or v != usual[k]}

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of this model's weights."""
        groups = _groups(model, self.weight_decay, self.shifts)
        if self.optimizer == "adamw":
            return torch.optim.AdamW(
                groups, self.lr, betas=(self.momentum, 0.999), weight_decay=self.weight_decay
            )
        return torch.optim.SGD(
            groups,
            self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.momentum > 0,
        )


def listed_hooks(hook: object) -> list:
    """The hooks that were handed over, or what makes them."""
    if hook is None:
        return []
    hooks = list(hook) if isinstance(hook, Sequence) and not isinstance(hook, str) else [hook]
    for h in hooks:
        if not isinstance(h, Hook) and not callable(h):
            raise ValueError(
                f"hook must be a Hook, a function that makes one, or several of these, not "
                f"{require.kind(h)}."
            )
    return hooks


class _Sums:
    """Loss and hits of an epoch. They stay on the device: reading them would make the
    host wait."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device)
        self.hits = torch.zeros(len(ROLES), device=device)
        self.seen = torch.zeros(len(ROLES), device=device)

    def add(self, loss: Tensor, right: Tensor, asked: Tensor, role: Tensor) -> None:
        self.loss += loss
        self.hits.index_add_(0, role, right.float())
        self.seen.index_add_(0, role, asked.float())

    def row(self, epoch: int, steps: int, by_role: bool) -> dict:
        row = {"epoch": epoch, "loss": float(self.loss) / steps}
        row["acc"] = float(self.hits.sum() / self.seen.sum())
        if by_role:
            for name, r in ROLES.items():
                if self.seen[r]:
                    row[name] = float(self.hits[r] / self.seen[r])
        return row


class _Training:
    """One call of :func:`fit`."""

    def __init__(
        self,
        model: nn.Module,
        data: Examples,
        settings: Settings,
        augment: Augmentation | None,
        generator: torch.Generator,
        bf16: bool | None,
        compile: bool | None,
    ) -> None:
        self.model, self.data, self.settings = model, data, settings
        self.task, self.device = data.task, data.x.device
        self.augment = augment or self.task.plain
        self.augment.check(data.shape)
        n = len(data)
        self.batch = min(settings.batch, n)
        # The last, smaller batch is dropped, other examples each time.
        self.per_epoch = n // self.batch
        self.total = max(1, round(settings.epochs * self.per_epoch))
        cuda = self.device.type == "cuda"
        self.bf16 = cuda if bf16 is None else bf16
        self.compile = (cuda and self.total >= 1000) if compile is None else compile
        self.generator = generator
        self.roles = data.role if isinstance(data, Poisoned) else None
        self.stamp = data.late if isinstance(data, Poisoned) else None

    def about(self) -> dict:
        """What a checkpoint must agree with, but for the hooks."""
        hooks = [list((p._backward_hooks or {}).values()) for p in self.model.parameters()]
        return {
            "model": fingerprint(self.model),
            "data": self.data.digest(),
            **self.settings.described(),
            "batch": self.batch,
            "seed": self.generator.initial_seed(),
            "augment": content_hash(self.augment),
            "bf16": self.bf16,
            "compile": self.compile,
            "late": content_hash(self.stamp),
            "architecture": content_hash(self.model),
            "hooks": content_hash(hooks),
            "device": self.device.type,
        }

    def run(
        self,
        hooks: list,
        each_epoch: Callable[[nn.Module], dict] | None,
        verbose: bool,
        checkpoint: str | os.PathLike | None,
    ) -> History:
        model, data = self.model, self.data
        keep = Checkpoint(checkpoint, {})  # refuses what is no place for a file
        about = {} if checkpoint is None else self.about()
        lay_out(model, data.x, self.device)
        self.net = torch.compile(model) if self.compile else model
        frozen = self.settings.frozen_norms
        self.norms = [m for m in model.modules() if frozen and isinstance(m, _BatchNorm)]
        self.opt = self.settings.build(model)
        seed = self.generator.initial_seed()
        if self.generator.device != self.device:
            # Draw on the device, so that no batch waits for it.
            own = int(torch.randint(2**62, (1,), generator=self.generator))
            self.generator = torch.Generator(self.device).manual_seed(own)
        self.hooks = self._made(hooks)
        self.before = [h for h in self.hooks if h.before_augment]
        self.behind = [h for h in self.hooks if not h.before_augment]
        if checkpoint is not None:
            known = self.hooks[0] if len(self.hooks) == 1 else self.hooks or None
            keep = Checkpoint(checkpoint, about | {"hook": content_hash(known)})
        self.stream = self.augment.stream(data.x, data.y, self.generator, seed)
        history = History()
        self.step = self._restored(keep, history)
        self.first = self.step
        try:
            while self.step < self.total:
                row = self._epoch(len(history.epochs))
                history.epochs.append(row)  # before each_epoch, which Ctrl-C may end
                if each_epoch is not None:
                    model.eval()
                    more = each_epoch(model)
                    if not isinstance(more, dict):
                        raise ValueError(
                            f"each_epoch must return a dict, not {require.kind(more)}."
                        )
                    row |= more
                if checkpoint is not None:
                    keep.save(self._state(), step=self.step, epochs=history.epochs)
                if verbose:
                    print(_line(row, -(-self.total // self.per_epoch)), flush=True)
        except KeyboardInterrupt:
            history.interrupted = True
            print(
                f"stopped after {self.step} of {self.total} steps; the model keeps what it learned."
            )
        else:
            keep.done()
        model.eval()
        return history

    def _made(self, hooks: list) -> list[Hook]:
        made = []
        for h in hooks:
            if not isinstance(h, Hook):
                h = h(self.net, self.data, self.generator, self.total)
                if not isinstance(h, Hook):
                    raise ValueError(f"hook must return a Hook, not {require.kind(h)}.")
            made.append(h)
        return made

    def _state(self) -> dict[str, Tensor]:
        state = pack(self.model, self.opt, self.generator)
        for i, h in enumerate(self.hooks):
            state |= {f"hook.{i}.{k}": v for k, v in h.state().items()}
        return state

    def _restored(self, keep: Checkpoint, history: History) -> int:
        """Steps that were done before a stop."""
        if (saved := keep.load()) is None:
            return 0
        tensors, notes = saved
        unpack(tensors, self.model, self.opt, self.generator)
        for i, h in enumerate(self.hooks):
            own = f"hook.{i}."
            h.restore({k.removeprefix(own): v for k, v in tensors.items() if k.startswith(own)})
        history.epochs = notes["epochs"]
        return notes["step"]

    def _epoch(self, epoch: int) -> dict:
        """Train for one epoch, or what is left of it; returns its row."""
        self.model.train()
        start = time.perf_counter()
        sums = _Sums(self.device)
        n = len(self.data)
        order = torch.randperm(n, generator=self.generator, device=self.device)
        steps = min(self.per_epoch, self.total - self.step)
        batches = order[: steps * self.batch].split(self.batch)
        with trusted():  # what Examples hold is right, and a look makes a GPU wait
            for index in progress(batches, steps, f"epoch {epoch + 1}"):
                _eval(self.norms)
                self._train(self._batch(index, epoch), sums)
        by_role = self.roles is not None or bool(self.hooks)
        row = sums.row(epoch + 1, steps, by_role)
        # Only now: a look at every step would make the host wait.
        if not math.isfinite(row["loss"]) or not all_finite(self.model):
            raise RuntimeError(
                f"the training diverged in epoch {row['epoch']} (loss "
                f"{row['loss']:.3g}), which spoils the model; start again from a "
                f"sound one with lr below {self.settings.lr:g}, or with less weight_decay."
            )
        if self.hooks:
            row |= {f"n_{name}": int(sums.seen[r]) for name, r in ROLES.items()}
        row["seconds"] = time.perf_counter() - start
        return row

    def _batch(self, index: Tensor, epoch: int) -> TrainBatch:
        """The next batch as the network gets it: augmented, stamped, rewritten."""
        early = bool(self.before)
        x, y = self.stream.raw(index) if early else self.stream.take(index, epoch)
        x = self.task.inputs(x)
        role = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        if self.roles is not None:
            role = self.roles[index].long()
        if self.stamp is not None:
            chosen = (role != ROLES["clean"]).view(-1, *[1] * (x.ndim - 1))
            x = torch.where(chosen, self.stamp(x), x)
        batch = TrainBatch(x, y, role)
        for h in self.before:
            batch = TrainBatch(*h.rewrite(batch))
        if early:
            batch = TrainBatch(*self.stream.after(batch.x, batch.y, index, epoch), batch.role)
        if self.behind:
            # They may keep the batch, and differentiate the model on it.
            batch = batch._replace(x=laid_out(self.model, batch.x))
            for h in self.behind:
                batch = TrainBatch(*h.rewrite(batch))
        if self.hooks:
            _eval(self.norms)  # one may have switched the model's mode
        if self.step < round(self.settings.shrink * self.total):
            batch = batch._replace(x=_smaller(batch.x))
        return batch

    def _train(self, batch: TrainBatch, sums: _Sums) -> None:
        """One step."""
        s, likelihood = self.settings, self.task.likelihood
        x, y, role = batch
        with self._autocast():
            x = laid_out(self.model, x)
            out = self.net(x) if self.step > self.first else self._first(x, y)
            loss = likelihood.loss(out, y, s.smoothing)
            for h in self.hooks:
                loss = h.loss(loss, out, y)
        self.opt.zero_grad(set_to_none=True)
        loss.backward()
        if s.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), s.clip)
        share = SCHEDULES[s.schedule](self.step, self.total, s.warmup)
        for group in self.opt.param_groups:
            group["lr"] = s.lr * group["times"] * share
        self.opt.step()
        for h in self.hooks:
            h.step()
        self.step += 1
        sums.add(loss.detach(), *likelihood.hits(out.detach(), y), role)

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def _first(self, x: Tensor, y: Tensor) -> Tensor:
        """The outputs for the first batch, if its targets can be learned from them.

        Otherwise the model's statistics are as before, and no weight was moved yet.
        """
        before = [b.clone() for b in self.model.buffers()]
        try:
            try:
                out = self.net(x)
            except (RuntimeError, TypeError, LookupError, AssertionError) as e:
                if isinstance(e, torch.OutOfMemoryError):
                    raise
                raise RuntimeError(
                    f"the model fails on a batch of shape {tuple(x.shape)}, as told above; "
                    f"train it on {self.task.many} of the size and channels that it is made for."
                ) from e
            self.task.check_learnable(out, y, self.data)
        except BaseException:
            with torch.no_grad():
                for b, kept in zip(self.model.buffers(), before, strict=True):
                    b.copy_(kept)
            raise
        return out


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
    data: Examples,
    augment: Augmentation | None,
    generator: torch.Generator,
    settings: Settings,
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
    if not isinstance(data, Examples):
        raise ValueError(f"data must be Images, not {require.kind(data)}.")
    task = data.task
    if len(data) < 2:
        raise ValueError(f"cannot train on {len(data)} {task.many}; two are the least.")
    kind = type(task.plain)
    if augment is not None and not isinstance(augment, kind):
        raise ValueError(
            f"augment must be an {kind.__name__}"
            f"{', such as Augment(pad=2)' if kind is Augment else ''}, not "
            f"{require.kind(augment)}."
        )
    if settings.shrink and task.name != "images":
        raise ValueError(f"shrink is for images, not for {task.many}; leave it out.")
    require.generator(generator)
    if generator.device.type not in ("cpu", data.x.device.type):
        raise ValueError(
            f"generator is on {generator.device}, the {task.many} are on {data.x.device}; "
            "make it on the CPU, or on their device."
        )


def _eval(norms: Sequence[nn.Module]) -> None:
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
