"""Fine-Pruning: switch off what sleeps on clean images, then fine-tune.

Liu, Dolan-Gavitt and Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep
Neural Networks", RAID 2018. A backdoor needs units that clean images leave asleep. So
order the channels of the last convolutional layer by their mean activation on clean
images, switch them off from the most dormant on while clean accuracy lasts, and
fine-tune on the clean images, which deals with units that both tasks share.

What is "the last convolutional layer" of a residual network? In the networks of the
paper its channels are what the linear head reads, and that is the reading kept here. A
residual network's head reads a sum. The last convolution alone is one of its terms: the
skip beside it would carry a pruned channel on. So the channel is switched off in every
term, wherever something is added to the map that the head reads: in ResNet-18 at the
BatchNorms of layer4's second block, first block and shortcut, in its pre-activation
form at the three convolutions, as no BatchNorm follows them. In VGG-16 and MobileNetV2
one BatchNorm ends the last convolutional layer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bdcourse import require
from bdcourse.activations import runs, watching
from bdcourse.augment import Augmentation
from bdcourse.checkpoint import Checkpoint
from bdcourse.defenses._base import (
    Look,
    Purified,
    Tuning,
    admit,
    decided_by,
    defense,
    furthest,
    stage,
)
from bdcourse.examples import Examples, require_clean
from bdcourse.models import evaluating, head, wide
from bdcourse.surgery import CONVS, LAYERS, require_plain, weight_of, without
from bdcourse.surgery import held as holding


def last_layer(model: nn.Module) -> list[str]:
    """The modules whose outputs add up to the feature map that the linear head reads.

    BatchNorms, or convolutions that none follows. Walks back from the head through
    whatever has no parameters: pooling, ReLU, sums; and through the layers of a head that
    has several, with their BatchNorms.

    Raises:
        ValueError: something else with parameters lies in between, as the LayerNorm of
            a Vision Transformer does, or maps are put side by side.
    """
    return _last_layer(model)[0]


def _last_layer(model: nn.Module) -> tuple[list[str], nn.Module]:
    """The same, and the first linear layer behind it, which reads the map."""
    modules, end = dict(require.module(model).named_modules()), head(model)
    try:
        with evaluating(model):  # its code may ask in which mode it is
            nodes = fx.Tracer().trace(model).nodes
        start = next(n for n in nodes if modules.get(n.target) is end)
    except Exception as e:  # fx raises many kinds when a model's code depends on values
        raise ValueError(
            "Fine-Pruning cannot follow the code of this model back from its head; "
            "name the modules to prune with layer=."
        ) from e
    found: list[str] = []
    reader = end

    def walk(node: fx.Node) -> None:
        nonlocal reader
        m = modules[node.target] if node.op == "call_module" else None
        behind = m
        if isinstance(m, _BatchNorm):
            before = node.all_input_nodes[0]
            behind = modules.get(before.target) if before.op == "call_module" else m
        if isinstance(behind, nn.Linear):  # of the head; what it reads comes before it
            reader = behind if behind is m else reader
            walk(node.all_input_nodes[0])
        elif isinstance(m, (_BatchNorm, *CONVS)):
            name = str(node.target)
            found.extend([name] * (name not in found))
        elif (
            node.op == "placeholder"
            or (m and next(m.parameters(), None) is not None)
            or node.target in (torch.cat, torch.concat, torch.stack)
        ):
            raise ValueError(
                "Fine-Pruning needs a convolutional layer behind which only pooling, "
                f"ReLU and sums lead to the head, but here is {_called(node)}; name "
                "the modules to prune with layer=."
            )
        else:
            for origin in node.all_input_nodes:
                walk(origin)

    walk(start.all_input_nodes[0])
    return _checked(model, found), reader


def _called(node: fx.Node) -> str:
    """What a node of a traced network calls, in a word."""
    return str(getattr(node.target, "__name__", node.target))


@torch.no_grad()
def activity(model: nn.Module, images: Examples, layer: Sequence[str] | None = None) -> Tensor:
    """Mean activation of each channel of a layer over the examples: (c,).

    Args:
        layer: as in :func:`fine_pruning`. None measures what the head reads, which is
            behind the pooling, and takes magnitudes, as the features of a pre-activation
            network have both signs. For a named BatchNorm or linear layer the activation
            is what a ReLU behind it lets through, for a named convolution the magnitude.
            Several names count with their sum.
    """
    admit(model, images, least=1, logits=False)
    if layer is None:
        names, reader = _last_layer(model)
    else:
        names, reader = _checked(model, layer), None
    c = len(weight_of(model.get_submodule(names[0])))
    total = torch.zeros(c, dtype=torch.float64)
    if reader is not None:
        features = weight_of(reader).shape[1]
        if features % c:
            raise ValueError(
                f"the head reads {features} features, which are no maps of the {c} "
                f"channels of {names[0]}; name the modules to prune with layer=."
            )

        def see(_, args: tuple[Tensor]) -> None:  # (n, c), or (n, c * h * w)
            total.add_(wide(args[0].unflatten(1, (c, -1)).abs().mean(2)).sum(0).cpu())

        hook = reader.register_forward_pre_hook(see)
        try:
            images.task.outputs(model, images.x)
        finally:
            hook.remove()
    else:

        def add(name: str, out: Tensor) -> None:
            m = model.get_submodule(name)
            out = out.abs() if isinstance(m, CONVS) else out.relu()
            if isinstance(m, nn.Linear):  # whose channels come last
                out = out.movedim(-1, 1)
            places = tuple(range(2, out.ndim))
            total.add_(wide(out.mean(places) if places else out).sum(0).cpu())

        with watching(model, add, names):
            images.task.outputs(model, images.x)
    return (total / len(images)).float()


def _checked(model: nn.Module, names: Sequence[str]) -> list[str]:
    """These module names, if the channels of all of them can be pruned together."""
    modules = dict(model.named_modules())
    if not names:
        raise ValueError("layer names no module; name BatchNorms, convolutions or linear layers.")
    for name in names:
        m = modules.get(name)
        last = isinstance(m, nn.Linear) and m is head(model)  # whose units are the answers
        if last or not isinstance(m, (_BatchNorm, *LAYERS)):
            raise ValueError(
                "layer must name BatchNorms, convolutions or linear layers before the head, "
                f"and {name!r} is none of this model."
            )
        if m.weight is None:
            raise ValueError(
                f"{name} has no scale (affine=False), so none of its channels can be "
                "switched off; name other modules with layer=."
            )
        require_plain(m, name)
    widths = {len(modules[name].weight) for name in names}
    if len(widths) != 1:
        raise ValueError(f"the modules of layer must have one width, not {sorted(widths)}.")
    return list(names)


def pruning_steps(
    activity: Tensor, names: Sequence[str], share: float = 0.01
) -> list[tuple[int, dict[str, Tensor]]]:
    """[(m, the m most dormant channels in every module)] for growing m.

    Args:
        activity: mean activation of each channel, (c,).
        share: of the channels that one step adds, at least one channel.
    """
    order = activity.argsort(stable=True)  # the most dormant first
    stride = max(1, round(share * len(order)))
    return [
        (m, {name: order[:m].sort().values for name in names})
        for m in range(stride, len(order), stride)
    ]


def _require_once(model: nn.Module, images: Examples, names: Sequence[str]) -> None:
    """Refuse modules that run more than once: a channel would go in both places."""
    counts = runs(model, images[:2].inputs())
    for name in names:
        if counts[name] != 1:
            raise ValueError(
                f"{name} runs {counts[name]} times in a pass of this model, so its "
                "channels cannot be switched off in one place; name modules that run "
                "once with layer=."
            )


@defense(moves=True, steady=False)
def fine_pruning(
    model: nn.Module,
    clean: Examples,
    held: Examples,
    *,
    layer: str | Sequence[str] | None = None,
    max_drop: float = 0.01,
    share: float = 0.01,
    hold: bool = True,
    epochs: float = 20,
    lr: float = 0.01,
    batch: int = 32,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    warmup: float = 0.2,
    frozen_norms: bool = False,
    augment: Augmentation | None = None,
    each_epoch: Callable[[nn.Module], dict] | None = None,
    verbose: bool = False,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Purified:
    """Prune the dormant channels of the last convolutional layer, then fine-tune.

    Args:
        clean: ranks the channels and trains the pruned network.
        held: decides how many channels go, see `furthest`.
        layer: BatchNorms, convolutions or linear layers to prune instead, all of one
            width; the same channels go in each. None finds the last layer, see
            :func:`last_layer`. Of a transformer, name the first linear layer of a block's
            MLP: its hidden units are the ones that can go without touching anything else.
        max_drop: held-out accuracy that pruning may cost before the fine-tuning, 0..1.
            Ours; BackdoorBench's configuration allows a tenth of the accuracy.
        share: of the channels pruned between two looks at `held`, 0..1; 0.01 is
            BackdoorBench's configuration.
        hold: keep what is pruned at zero while training; False lets it grow back where
            a gradient reaches it, as in a pre-activation network. Elsewhere a ReLU
            follows, whose slope at zero is zero.
        epochs, batch: ours, for 240 images; lr: BackdoorBench's configuration.
        momentum, weight_decay, warmup, frozen_norms, augment, each_epoch, verbose,
            generator: see `train.fit`.
        checkpoint: file that is renewed while this runs, with a second one (name plus
            ".fit") for the training, and both are gone at the end. The same call,
            started again after a stop, ends where it would have ended.

    Returns:
        in `pruned` the channels of every module; log: `activity` (c,), the modules
        (`layer`), how many channels went (`m`), what was tried before (`looks`, see
        `furthest`), and `loss` and `acc` in training, one number an epoch.

    Raises:
        ValueError: no layer to prune, no images, a drop or share outside 0..1.

    Source: Liu et al., RAID 2018. Derived in lesson 09.
    """
    start, about = time.perf_counter(), decided_by("fine_pruning", locals())
    require_clean(held, "held", 1)  # None would do for others
    require.fraction("max_drop", max_drop)
    require.fraction("share", share)
    if share == 0:
        raise ValueError("share must be above 0, else no channel is ever pruned.")
    require.truth("hold", hold)
    tuning = Tuning.of(locals())
    layer = [layer] if isinstance(layer, str) else layer
    layer = None if layer is None else require.names("layer", layer)
    names = last_layer(model) if layer is None else _checked(model, layer)
    _require_once(model, clean, names)
    keep, looks = Checkpoint(checkpoint, about), []
    if (saved := keep.load()) is not None:
        dormant, order = saved[0]["activity"], saved[0]["pruned"]
        looks = [Look(*tried) for tried in saved[1]["looks"]]
    else:
        dormant = activity(model, clean, layer)
        steps = pruning_steps(dormant, names, share)
        m = furthest(model, steps, held, max_drop, looks=looks) or 0
        order = dormant.argsort(stable=True)[:m].sort().values
        keep.save({"activity": dormant, "pruned": order}, looks=looks)
    generator = require.generator(generator)
    pruned = dict.fromkeys(names, order)
    repaired = without(model, pruned)
    with holding(repaired, pruned if hold else None):
        history = tuning(repaired, clean, generator, stage(checkpoint, "fit"))
    keep.done()
    log = {"layer": names, "activity": dormant, "m": len(order), "looks": looks}
    log |= {"loss": history["loss"], "acc": history["acc"]}
    return Purified(repaired, pruned, log, time.perf_counter() - start)
