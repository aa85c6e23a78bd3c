"""Victims that others trained: opened safely, measured like our own.

Three sources: an `attack_result.pt` of BackdoorBench v2 with the images beside it, bare
weights, and a pair of weights and an .npz of triggered images. Only tensors, numpy
arrays, numbers and text are read; a file whose opening would run code is refused.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import index
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bdcourse.data import quantize
from bdcourse.metrics import Triggered, logits
from bdcourse.models import CIFAR_MEAN, CIFAR_STD, Normalize, build, lay_out

#: mean and std that BackdoorBench v2 trains with, by its name of the data.
NORMALISATION = {
    "cifar10": (CIFAR_MEAN, CIFAR_STD),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "celeba": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "mnist": ((0.5,), (0.5,)),
}
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
ARRAYS = {
    "images": ("x", "images", "data"),
    "true labels": ("y", "labels", "true"),
    "targets": ("target", "targets", "goal", "poisoned_labels"),
}
OWN = (
    "for another architecture pass net=, your own nn.Module (without normalisation), "
    "which is filled by load_state_dict"
)


@dataclass(frozen=True)
class Foreign:
    """A model of pixels in [0, 1], in eval mode; images with its trigger; its past."""

    model: nn.Module
    triggered: Triggered
    about: dict = field(default_factory=dict)


def backdoorbench(
    path: str | os.PathLike,
    *,
    images: str | os.PathLike | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    net: nn.Module | None = None,
) -> Foreign:
    """Read an `attack_result.pt` of BackdoorBench v2, or the folder that holds one.

    Args:
        images: the folder of test images, CLASS/INDEX.png with the true class; default
            `bd_test_dataset` beside the file. The paths in the file are ignored: they
            are somebody else's, and could lead anywhere.
        mean, std: per channel; default what BackdoorBench uses for the file's data set.
        net: see :func:`weights`.

    Raises:
        FileNotFoundError: the file, or some of its images, are not there.
        ValueError: damaged, unsafe, or not what its parts say it is.
        RuntimeError: torch is older than 2.6.
    """
    path = Path(path)
    path = path / "attack_result.pt" if path.is_dir() else path
    saved = _read(path)
    if not isinstance(saved, dict) or not isinstance(saved.get("bd_test"), dict):
        raise ValueError(
            f"{path.name} holds no bd_test and is no attack_result.pt of "
            "BackdoorBench v2; read bare weights with foreign.weights."
        )
    try:
        data, classes = str(saved["clean_data"]), index(saved["num_classes"])
        height, width = (index(n) for n in saved["img_size"][:2])
        rows = _rows(saved["bd_test"])
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError,
            ValueError) as e:  # fmt: skip
        raise ValueError(
            f"{path.name} is not laid out like BackdoorBench v2 ({e!r:.80}); "
            "files of v1 hold no true labels and cannot be measured."
        ) from e
    if mean is None or std is None:
        if data not in NORMALISATION:
            raise ValueError(
                f"{path.name} was trained on {data!r}, for which no normalisation is "
                "known; pass mean= and std=."
            )
        mean, std = (
            known if given is None else given
            for given, known in zip((mean, std), NORMALISATION[data], strict=True)
        )
    model = _filled(_state(saved, path.name), path.name, mean, std, net)
    _labels_fit(rows[:, 1:], classes, path.name)
    folder = Path(images) if images is not None else path.parent / "bd_test_dataset"
    x = _pictures(folder, rows, (width, height), "L" if len(mean) == 1 else "RGB")
    goal = rows[:, 2]
    triggered = _matched(model, Triggered(x, rows[:, 1], goal), path.name, classes)
    about = {
        "format": "BackdoorBench v2",
        "model": str(saved.get("model_name")),
        "data": data,
        "classes": classes,
        "goals": goal.unique().tolist(),
    }
    return Foreign(model, triggered, about)


def weights(
    path: str | os.PathLike,
    *,
    mean: Sequence[float] = CIFAR_MEAN,
    std: Sequence[float] = CIFAR_STD,
    net: nn.Module | None = None,
) -> nn.Module:
    """A model in eval mode from a state dict: .pt, .pth or .safetensors.

    ResNet-18, PreActResNet-18 (3x3 stem, no max-pool) and VGG-16-BN (one linear layer)
    are recognised by their parameter names, in the spelling of kuangliu's pytorch-cifar
    and BackdoorBench or, for ResNet-18, of torchvision; width and classes are read off
    the shapes. Names cannot tell a stride or a pooling: compare the clean accuracy with
    what the owner reports.

    Args:
        mean, std: per channel, with which the owner normalised pixels in [0, 1].
        net: a module of any other architecture that takes normalised pixels; a copy is
            filled and gets `Normalize(mean, std)` in front.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: see :func:`backdoorbench`.
    """
    path = Path(path)
    return _filled(_state(_read(path), path.name), path.name, mean, std, net)


def pair(
    model_path: str | os.PathLike,
    npz_path: str | os.PathLike,
    *,
    target: int | None = None,
    mean: Sequence[float] = CIFAR_MEAN,
    std: Sequence[float] = CIFAR_STD,
    net: nn.Module | None = None,
) -> Foreign:
    """Read weights and an .npz of triggered test images.

    The .npz holds images (`x`, `images` or `data`; (n, h, w, c) or (n, c, h, w); uint8,
    or float in 0..1, which is rounded to 256 levels as in an image file), true labels
    (`y`, `labels` or `true`) and the attacker's labels (`target`, `targets`, `goal` or
    `poisoned_labels`; one each, or one for all).

    Args:
        target: the attacker's label, if the .npz does not hold it.
        mean, std, net: see :func:`weights`.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: see :func:`backdoorbench`.
    """
    path = Path(npz_path)
    arrays = _arrays(path)
    model = weights(model_path, mean=mean, std=std, net=net)
    if (target is None) == ("targets" not in arrays):
        raise ValueError(
            f"{path.name} holds no target; pass target=, the attacker's label."
            if target is None
            else f"{path.name} holds targets already; leave out target=."
        )
    x = _pixels(arrays["images"], len(mean), path.name)
    wanted = np.asarray(arrays["targets"] if target is None else target)
    wanted = np.full(len(x), wanted) if wanted.ndim == 0 else wanted
    y, goal = (
        _whole(a, len(x), what, path.name)
        for a, what in ((arrays["true labels"], "true labels"), (wanted, "targets"))
    )
    triggered = _matched(model, Triggered(x, y, goal), path.name)
    about = {"format": "pair", "model": Path(model_path).name, "images": path.name}
    return Foreign(model, triggered, {**about, "goals": goal.unique().tolist()})


def _read(path: Path) -> object:
    """What a file of torch.save or safetensors holds, without running any of it."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file at {path}.")
    safetensors = path.suffix == ".safetensors"
    # Before 2.6 a crafted file could run code all the same (CVE-2025-32434).
    version = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if version < (2, 6) and not safetensors:
        raise RuntimeError(
            f"torch {torch.__version__} cannot open {path.name} safely; install torch "
            "2.6 or newer."
        )
    try:
        if safetensors:
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_numpy_only()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # readers of broken files raise many kinds
        named = re.search(r"GLOBAL (\S+)|<class '([\w.]+)'>", str(e))
        if named:
            raise ValueError(
                f"{path.name} holds more than tensors: opening it would run "
                f"{named[1] or named[2]}, so it was left closed; if it is a whole "
                "pickled nn.Module, let its owner save model.state_dict() instead."
            ) from None
        raise ValueError(
            f"{path.name} is cut short, damaged, or no file of plain tensors "
            f"({type(e).__name__}); get it again from its source."
        ) from e


def _numpy_only() -> list:
    """What arrays and scalars of plain numbers need; dtypes of objects are left out."""
    makers = (np.empty(0).__reduce__()[0], np.int64(0).__reduce__()[0])
    # numpy 1 and 2 write different names, and each must read the other's files.
    spelled = [
        (f, f"numpy.{core}.multiarray.{f.__name__}")
        for f in makers
        for core in ("core", "_core")
    ]
    types = {np.ndarray, np.dtype, *(type(np.dtype(c)) for c in "?bhilqBHILQefd")}
    return spelled + [(t, f"{t.__module__}.{t.__name__}") for t in types]


def _state(found: object, name: str) -> dict[str, Tensor]:
    """The state dict in what a file held, unwrapped."""
    for _ in range(3):  # no loop until the end: a crafted dict may hold itself
        for key in WRAPPERS:
            if isinstance(found, dict) and isinstance(found.get(key), dict):
                found = found[key]
    odd = f"it is a {type(found).__name__}"
    if isinstance(found, dict):
        wrong = [k for k, v in found.items() if not (isinstance(k, str) and _dense(v))]
        if found and not wrong:
            return dict(found)
        odd = (
            f"its entry {str(wrong[0])[:40]!r} is no plain tensor" if wrong else "empty"
        )
    raise ValueError(f"{name} holds no state dict ({odd}); save model.state_dict().")


def _dense(v: object) -> bool:
    return (
        isinstance(v, Tensor)
        and v.layout == torch.strided
        and not (v.is_meta or v.is_quantized or v.is_complex())
    )


def _bare(state: dict[str, Tensor], landmarks: Iterable[str]) -> dict[str, Tensor]:
    """The state without the prefixes of DataParallel, torch.compile and wrappers."""
    landmarks = set(landmarks)
    for prefix in PREFIXES * 2:
        if not landmarks & state.keys() and all(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def _filled(
    state: dict[str, Tensor],
    name: str,
    mean: Sequence[float],
    std: Sequence[float],
    net: nn.Module | None,
) -> nn.Module:
    """Our model, or a copy of `net` behind its normalisation, with these weights."""
    if len(mean) != len(std) or not all(s > 0 for s in std):
        raise ValueError("mean and std need one number per channel, std above zero.")
    mean, std = tuple(map(float, mean)), tuple(map(float, std))
    if net is None:
        arch, state = _recognised(_bare(state, ("conv1.weight", "features.0.weight")))
        if not arch:
            raise ValueError(
                f"the names in {name} ({', '.join(list(state)[:3])}, ...) are of no "
                f"ResNet-18, PreActResNet-18 or VGG-16-BN; {OWN}."
            )
        model = filled = build(**arch, mean=mean, std=std)
        what = f"our {arch['name']} for {len(mean)} channels"
    else:
        filled, what = copy.deepcopy(net), type(net).__name__
        state = _bare(state, filled.state_dict())
        model = nn.Sequential(Normalize(mean, std), filled)
    want = filled.state_dict()
    sizes = [
        f"{k} as {_shape(state[k])} instead of {_shape(v)}"
        for k, v in want.items()
        if k in state and state[k].shape != v.shape
    ]
    # Checkpoints from before torch 0.4.1 do not count batches; nothing here needs it.
    missing = [k for k in want.keys() - state.keys() if "num_batches" not in k]
    wrong = []
    for verb, keys in (
        ("lacks", missing),
        ("has left over", state.keys() - want.keys()),
        ("has", sizes),
    ):
        first, *more = sorted(keys) or [""]
        if first:
            wrong.append(f"{verb} {first}" + f" and {len(more)} more" * bool(more))
    if wrong:
        raise ValueError(f"{name} does not fit {what}: it {', '.join(wrong)}; {OWN}.")
    odd = [k for k, v in state.items() if not v.isfinite().all()]
    if odd:
        raise ValueError(
            f"{name} holds infinite or undefined numbers in {odd[0]}: the training "
            "diverged or the file is damaged."
        )
    filled.load_state_dict(state, strict=False)
    return lay_out(model).eval()


def _shape(t: Tensor) -> str:
    return "x".join(map(str, t.shape)) or "a number"


def _recognised(state: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """(arguments of `models.build`, the state in our names); ({}, state) if unknown."""
    if "features.0.weight" in state:
        kind, stem, top, ours = "vgg16_bn", "1.weight", "47.weight", _vgg(state)
    else:
        kind = "resnet18" if "bn1.weight" in state else "preact_resnet18"
        stem, top = "conv1.weight", "linear.weight"
        ours = {
            re.sub(r"^fc\.", "linear.", k).replace(".downsample.", ".shortcut."): v
            for k, v in state.items()
        }
    if [ours[k].ndim for k in (stem, top) if k in ours] != [4, 2]:
        return {}, state
    return {"name": kind, "width": len(ours[stem]), "classes": len(ours[top])}, ours


def _vgg(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """pytorch-cifar's VGG-16 in our names; our convolutions have no bias."""
    ours = {}
    for k, v in state.items():
        at = re.fullmatch(r"features\.(\d+)\.(\w+)", k)
        # Ours has the normalisation in front: everything is one place further on.
        k = f"{int(at[1]) + 1}.{at[2]}" if at else re.sub("^classifier", "47", k)
        ours[k] = v
    for i in range(1, 45):
        bias, mean = ours.get(f"{i}.bias"), f"{i + 1}.running_mean"
        if bias is not None and mean in ours and ours[mean].shape == bias.shape:
            # BatchNorm subtracts the mean, so a smaller mean stands for the bias.
            ours[mean] = ours[mean].float() - ours.pop(f"{i}.bias").float()
    return ours


def _rows(bd_test: dict) -> Tensor:
    """(index, true label, goal) of every triggered image of a test set, (n, 3)."""
    held = bd_test["bd_data_container"]["data_dict"]
    order = [i for i in map(index, bd_test["original_index_array"]) if i in held]
    labels = [map(index, held[i]["other_info"][:2]) for i in order]  # goal, then true
    if not order:
        raise ValueError("no triggered image is listed")
    return torch.tensor([(i, y, g) for i, (g, y) in zip(order, labels, strict=True)])


def _labels_fit(labels: Tensor, k: int, name: str) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= k:
        raise ValueError(
            f"{name} holds the label {low if low < 0 else high}, but with {k} classes "
            f"labels must lie in 0..{k - 1}."
        )


def _pictures(folder: Path, rows: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """The images of `rows` as uint8 (n, c, h, w), all from inside `folder`."""
    root = folder.resolve()
    files = [root / str(true) / f"{i}.png" for i, true, _ in rows.tolist()]
    gone = [f for f in files if not f.is_file()]
    if gone:
        raise FileNotFoundError(
            f"{len(gone)} of {len(rows)} images are not in {folder}, the first is "
            f"{gone[0].parent.name}/{gone[0].name}; put the whole folder "
            "bd_test_dataset beside the .pt file, or pass images=."
        )
    out = next((f for f in files if not f.resolve().is_relative_to(root)), None)
    if out:
        raise ValueError(f"{out} is a link that leads out of its folder; remove it.")
    with ThreadPoolExecutor() as pool:
        arrays = list(pool.map(lambda f: _picture(f, size, mode), files))
    x = torch.from_numpy(np.stack(arrays))
    return x[:, None] if mode == "L" else x.permute(0, 3, 1, 2).contiguous()


def _picture(file: Path, size: tuple[int, int], mode: str) -> np.ndarray:
    from PIL import Image

    try:
        # PNG only: some of the other readers of PIL start programs.
        with Image.open(file, formats=["PNG"]) as im:
            if im.size == size:
                return np.array(im.convert(mode))
            found = im.size
    except Exception as e:  # PIL raises many kinds
        raise ValueError(f"{file} is not a readable PNG; copy it again.") from e
    raise ValueError(
        f"{file} is {found[0]}x{found[1]} pixels, but the .pt file says "
        f"{size[0]}x{size[1]}; the two do not belong together."
    )


def _matched(
    model: nn.Module, found: Triggered, name: str, classes: int | None = None
) -> Triggered:
    """`found`, if the model takes such images and knows such labels."""
    try:
        k = logits(model, found.x[:1]).shape[1]
    except Exception as e:  # `net` may raise anything
        raise ValueError(
            f"the model cannot take the images of {name}, {_shape(found.x[0])} each; "
            "do the two belong together?"
        ) from e
    if classes not in (None, k):
        raise ValueError(
            f"{name} says {classes} classes, but its model answers with {k}; the two "
            "do not belong together."
        )
    _labels_fit(torch.cat([found.y, found.goal]), k, name)
    return found


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz by what they are, under any of the names of `ARRAYS`."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file at {path}.")
    try:
        with np.load(path, allow_pickle=False) as f:
            held = f.files
            names = {
                what: [n for n in held if n.lower() in known]
                for what, known in ARRAYS.items()
            }
            arrays = {what: f[n[0]] for what, n in names.items() if n}
    except Exception as e:  # zipfile and numpy raise many kinds; no pickle is opened
        raise ValueError(
            f"{path.name} is cut short, damaged, or not an .npz of plain arrays; get "
            "it again from its source."
        ) from e
    for what, n in names.items():
        if len(n) > 1:
            raise ValueError(
                f"{path.name} holds both {n[0]!r} and {n[1]!r}, and either could be "
                f"the {what}; keep one."
            )
        if not n and what != "targets":
            raise ValueError(
                f"{path.name} lacks the {what}: it holds {', '.join(held) or 'nothing'}"
                f", and they are looked for under {', '.join(ARRAYS[what])}."
            )
    return arrays


def _pixels(x: np.ndarray, channels: int, name: str) -> Tensor:
    """Images as uint8 (n, c, h, w)."""
    if x.ndim == 4 and x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    # One channel would spread over three in the normalisation without a word.
    if x.ndim != 4 or 0 in x.shape or x.shape[1] != channels:
        raise ValueError(
            f"the images in {name} have shape {x.shape}; they must be (n, h, w, c) or "
            f"(n, c, h, w) with {channels} channels, as many as mean and std."
        )
    if x.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(x))
    if x.dtype.kind != "f" or not (x.min() >= 0 and x.max() <= 1):
        span = f" from {x.min():.4g} to {x.max():.4g}" if x.dtype.kind in "fiu" else ""
        raise ValueError(
            f"the images in {name} are {x.dtype}{span}; they must be uint8, or float "
            "in 0..1 and not normalised yet."
        )
    return quantize(torch.from_numpy(np.ascontiguousarray(x)))


def _whole(a: np.ndarray, n: int, what: str, name: str) -> Tensor:
    """Labels as int64 (n,)."""
    if a.shape != (n,) or a.dtype.kind not in "iu":
        raise ValueError(
            f"the {what} in {name} are {a.dtype} of shape {a.shape}; they must be {n} "
            "whole numbers, one per image."
        )
    return torch.from_numpy(a.astype(np.int64))
