"""NAD: neural attention distillation, fine-tuning under the eyes of a teacher.

Li, Lyu, Koren, Lyu, Li and Ma, "Neural Attention Distillation: Erasing Backdoor
Triggers from Deep Neural Networks", ICLR 2021. The teacher is the suspicious model,
fine-tuned for a few epochs on the clean images. The student is the suspicious model
again, fine-tuned on the same images to answer right and to look where its teacher does:

    A(F) = sum over channels of |F|^p, flattened, divided by its length
    loss = cross-entropy + sum over stages l of beta_l * distance(A_l(student),
                                                                  A_l(teacher))

where F is the feature map at the end of a stage. A trigger that draws the attention of
the student but no longer that of the teacher would be unlearned. So the method stands
and falls with what fine-tuning did to the teacher.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse import require
from bdcourse.activations import map_ranks, outputs, runs, watching
from bdcourse.augment import Augmentation
from bdcourse.checkpoint import Checkpoint
from bdcourse.defenses._base import (
    Purified,
    Tuning,
    copied,
    decided_by,
    defense,
    require_list,
    stage,
)
from bdcourse.examples import Examples
from bdcourse.hooks import Hook, TrainBatch
from bdcourse.models import laid_out
from bdcourse.seeds import fresh_seed
from bdcourse.surgery import require_matching
from bdcourse.train import History


def attention(maps: Tensor, p: float = 2) -> Tensor:
    """Where a layer is active: (n, c, h, w) -> (n, h * w), each row of length 1.

    Of clips the positions are t * h * w, of point clouds the points.
    """
    energy = maps.float().abs().pow(p).sum(1).flatten(1)
    return F.normalize(energy, dim=1)


def attention_distance(student: Tensor, teacher: Tensor, p: float = 2) -> Tensor:
    """Mean squared difference of two attention maps, over images and positions: ().

    Both (n, c, h, w) with the same n and positions; channels may differ. Being a mean over
    positions it is small (2 / (h * w) at most), which is why betas are large.
    """
    return (attention(student, p) - attention(teacher, p)).square().mean()


def stages(model: nn.Module, images: Examples) -> list[str]:
    """The modules that give the last feature map of each size, from large to small.

    In the ResNets these are layer1 to layer4. Maps of one position have no attention
    and are left out, and so are maps inside a block that leaves it at another size: a
    pre-activation block begins with a BatchNorm of the old one, and modules that run
    more than once.
    """
    once = runs(model, images[:2].inputs())
    modules = {n: m for n, m in model.named_modules() if n and once[n] == 1}
    sizes: dict[str, tuple[int, ...]] = {}
    ranks, x = map_ranks(model), images[:2].inputs()

    def see(name: str, out: Tensor) -> None:
        maps = isinstance(out, Tensor) and out.ndim - 1 in ranks and out.shape[1:] != x.shape[1:]
        if maps and out[0, 0].numel() > 1:
            sizes[name] = tuple(out.shape[2:])

    with watching(model, see, modules):
        images.task.outputs(model, x)

    def leaves_at_another_size(name: str) -> bool:
        parts = name.split(".")
        outer = (".".join(parts[:i]) for i in range(1, len(parts)))
        blocks = (b for b in outer if not isinstance(modules.get(b), nn.Sequential))
        return any(sizes.get(b, sizes[name]) != sizes[name] for b in blocks)

    last = {size: n for n, size in sizes.items() if not leaves_at_another_size(n)}
    return [last[size] for size in sorted(last, reverse=True)]


class Attentive(Hook):
    """Adds the attention distances to the loss of `fit`.

    Args:
        teacher: in eval mode.
        mine, theirs: layer name -> maps of the current batch, kept by hooks on student
            and teacher.
        betas: layer name -> weight.
    """

    def __init__(
        self,
        teacher: nn.Module,
        mine: dict[str, Tensor],
        theirs: dict[str, Tensor],
        betas: dict[str, float],
        p: float,
    ) -> None:
        self.teacher, self.mine, self.theirs = teacher, mine, theirs
        self.betas, self.p = betas, p
        self.distances: list[Tensor] = []

    def rewrite(self, batch: TrainBatch) -> TrainBatch:
        with torch.no_grad():
            self.teacher(laid_out(self.teacher, batch.x))
        return batch

    def loss(self, loss: Tensor, out: Tensor, y: Tensor) -> Tensor:
        apart = torch.stack(
            [attention_distance(self.mine[n], self.theirs[n], self.p) for n in self.betas]
        )
        self.distances.append(apart.detach())
        weights = apart.new_tensor(list(self.betas.values()))
        return loss + weights @ apart

    def distance(self, _: nn.Module) -> dict[str, float]:
        """Mean distance of each layer over the steps since last asked."""
        means, self.distances = torch.stack(self.distances).mean(0), []
        return {f"distance {n}": float(m) for n, m in zip(self.betas, means, strict=True)}


def distil(
    student: nn.Module,
    teacher: nn.Module,
    clean: Examples,
    betas: dict[str, float],
    p: float,
    tuning: Tuning,
    generator: torch.Generator,
    checkpoint: str | os.PathLike | None = None,
) -> History:
    """Train `student` in place to answer right and to attend like `teacher`.

    Args:
        teacher: in eval mode, on the device of the images; it does not learn.
        betas: layer name -> weight of its distance.
        tuning: its `each_epoch` is not asked; the distances are.
    """
    mine: dict[str, Tensor] = {}
    theirs: dict[str, Tensor] = {}
    driver = Attentive(teacher, mine, theirs, betas, p)
    with (
        watching(student, mine.__setitem__, betas),
        watching(teacher, theirs.__setitem__, betas),
    ):
        return replace(tuning, each_epoch=driver.distance)(
            student,
            clean,
            generator,
            checkpoint,
            hook=driver,
            compile=False,  # hooks do not see a compiled network
        )


@defense(steady=False, moves=True)
def nad(
    model: nn.Module,
    clean: Examples,
    *,
    betas: Sequence[float] = (500, 1000, 1000),
    layers: Sequence[str] | None = None,
    p: float = 2,
    teacher: nn.Module | None = None,
    teacher_epochs: float = 10,
    epochs: float = 20,
    lr: float = 0.01,
    batch: int = 32,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    warmup: float = 0.2,
    frozen_norms: bool = False,
    augment: Augmentation | None = None,
    verbose: bool = False,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Purified:
    """Fine-tune a teacher on clean images, then the model itself under its attention.

    Args:
        betas: weights of the layers' distances, from the first to the last; the three
            numbers are BackdoorBench's configuration.
        layers: modules with (n, c, h, w) output, or other positions than h and w; None
            takes the last so many of :func:`stages`, as there are betas.
        p: exponent of the attention map, from 1 on; 2 is BackdoorBench's configuration.
        teacher: another model of the same layers instead; None fine-tunes this one.
        teacher_epochs: the authors' README says 5 to 10, BackdoorBench takes 10.
        epochs, batch: ours, for 240 images; lr: BackdoorBench's configuration. The
            teacher is trained with the same lr and batch.
        momentum, weight_decay, warmup, frozen_norms, augment, verbose: of both
            trainings, see `train.fit`.
        generator: decides both trainings.
        checkpoint: file that stands while this runs, with a second one (name plus
            ".fit") that is renewed after each epoch, and both are gone at the end. The
            same call, started again after a stop, ends where it would have ended.

    Returns:
        log, one number an epoch: `loss`, `acc` and `distances` (layer name ->
        list), and `teacher_loss` of the teacher's own fine-tuning.

    Raises:
        ValueError: negative betas, p below 1, no feature maps to attend to, or another
            number of layers than betas.

    Source: Li et al., ICLR 2021. Derived in lesson 09.
    """
    start, about = time.perf_counter(), decided_by("nad", locals())
    tuning = Tuning.of(locals(), each_epoch=None)
    betas = [require.number("a beta", b) for b in require_list("betas", betas)]
    require.number("p", p)
    require.number("teacher_epochs", teacher_epochs, above=0)
    if teacher is not None:
        require.module(teacher, "teacher")
    if not betas or min(betas) < 0 or p < 1:
        raise ValueError(
            "betas must be one or more numbers that are not negative, and p at least "
            f"1, not {betas} and {p}."
        )
    if layers is None:
        layers = stages(model, clean)[-len(betas) :]
    layers = require.names("layers", layers)
    if len(layers) != len(betas):
        raise ValueError(
            f"NAD compares feature maps, one layer for each of its {len(betas)} betas, "
            f"but there are {len(layers)} (maps of a transformer, or of points, have one "
            "size); change betas, or name the layers."
        )
    sizes, few = [], clean[:2].inputs()
    for net in (model,) if teacher is None else (model, teacher):
        counts = runs(net, few, layers)
        for name in layers:
            if counts[name] != 1:
                raise ValueError(
                    f"layer {name!r} runs {counts[name]} times in a pass, so it has no "
                    "one feature map; name others."
                )
        found = outputs(net, few, layers, clean.task)
        for name, maps in found.items():
            if maps.ndim < 3:
                raise ValueError(
                    f"layer {name!r} gives no feature maps of shape (n, c, h, w); name others."
                )
        sizes.append([maps.shape[2:] for maps in found.values()])
    if teacher is not None:
        require_matching(teacher, clean, name="teacher", steady=False)
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"teacher must have maps of the model's size at layers {', '.join(layers)}."
            )
    weights = dict(zip(layers, betas, strict=True))
    generator = require.generator(generator)
    seeds = [fresh_seed(generator) for _ in range(2)]
    keep, file = Checkpoint(checkpoint, about), stage(checkpoint, "fit")
    rng = [torch.Generator().manual_seed(s) for s in seeds]

    course: list[float] = []
    if (saved := keep.load()) is not None:
        teacher, course = copied(model), saved[1]["course"]
        teacher.load_state_dict(saved[0])
    elif teacher is None:
        teacher = copied(model)
        schooling = replace(tuning, epochs=teacher_epochs)
        taught = schooling(teacher, clean, rng[0], file, compile=False)
        course = taught["loss"]
        keep.save(teacher.state_dict(), course=course)
    teacher = copied(teacher).eval()
    student = copied(model)
    history = distil(student, teacher, clean, weights, p, tuning, rng[1], file)
    keep.done()
    log: dict = {"loss": history["loss"], "acc": history["acc"], "teacher_loss": course}
    log["distances"] = {n: history[f"distance {n}"] for n in layers}
    return Purified(student, log=log, seconds=time.perf_counter() - start)
