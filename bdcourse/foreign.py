"""Victims that others trained: opened safely, measured like our own.

Three sources: an `attack_result.pt` of BackdoorBench v2 with the images beside it, bare
weights, and a pair of weights and an .npz of triggered images. Only tensors, numpy
arrays, numbers and text are read; a file whose opening would run code is refused.
"""

from __future__ import annotations

import copy
import os
import re
import stat
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.metrics import Triggered, logits
from bdcourse.models import CIFAR_MEAN, CIFAR_STD, Normalize, build, lay_out
from bdcourse.task import first_channels, quantize

#: mean and std that BackdoorBench v2 trains with, by its name of the data.
NORMALIZATION = {
    "cifar10": (CIFAR_MEAN, CIFAR_STD),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "celeba": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "mnist": ((0.5,), (0.5,)),
}
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "netC",  # the classifier of WaNet and Input-Aware, beside their generators
    "net_state_dict",
    "network",
    "classifier",
    "params",
    "weights",
)
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
ARRAYS = {
    "images": ("x", "images", "data"),
    "true labels": ("y", "labels", "true"),
    "targets": ("target", "targets", "goal", "poisoned_labels"),
}
OWN = (
    "for another architecture pass net=, your own nn.Module (without normalization), "
    "which is filled by load_state_dict"
)


@dataclass(frozen=True, eq=False, repr=False)
class Foreign:
    """A model of pixels in [0, 1], in eval mode; images with its trigger; its past."""

    model: nn.Module
    triggered: Triggered
    about: dict = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Foreign({type(self.model).__name__}, {self.triggered})"


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
    path = _path(path)
    path = path / "attack_result.pt" if os.path.isdir(path) else path
    saved = _read(path)
    if not isinstance(saved, dict) or not isinstance(saved.get("bd_test"), dict):
        raise ValueError(
            f"{path.name} holds no bd_test and is no attack_result.pt of "
            f"BackdoorBench v2{_keys(saved)}; read bare weights with foreign.weights."
        )
    try:
        data, classes = str(saved["clean_data"]), index(saved["num_classes"])
        height, width = (index(n) for n in saved["img_size"][:2])
        rows = _rows(saved["bd_test"])
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise ValueError(
            f"{path.name} is not laid out like BackdoorBench v2 ({e!r:.80}); "
            "files of v1 hold no true labels and cannot be measured."
        ) from e
    if mean is None or std is None:
        if data not in NORMALIZATION:
            raise ValueError(
                f"{path.name} was trained on {data!r}, for which no normalization is "
                "known; pass mean= and std=."
            )
        mean, std = (
            known if given is None else given
            for given, known in zip((mean, std), NORMALIZATION[data], strict=True)
        )
    mean, std = _constants(mean, std)
    model = _filled(_state(saved, path.name, "model"), path.name, mean, std, net)
    _labels_fit(rows[:, 1:], classes, path.name)
    folder = path.parent / "bd_test_dataset"
    folder = folder if images is None else _path(images, "images")
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
    key: str | None = None,
) -> nn.Module:
    """A model in eval mode from a state dict: .pt, .pth or .safetensors.

    ResNet-18, PreActResNet-18 (3x3 stem, no max-pool) and VGG-16-BN (one linear layer)
    are recognized by their parameter names, in the spelling of kuangliu's pytorch-cifar
    and BackdoorBench or, for ResNet-18, of torchvision; width and classes are read off
    the shapes. Names cannot tell a stride or a pooling: compare the clean accuracy with
    what the owner reports. Warns of counts that a profiler left and of answers that are
    probabilities.

    Args:
        mean, std: per channel, with which the owner normalized pixels in [0, 1].
        net: a module of any other architecture that takes normalized pixels; a copy is
            filled and gets `Normalize(mean, std)` in front.
        key: the entry of the file that holds the state dict, where it stands beside
            others; found without it under the usual names.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: see :func:`backdoorbench`.
    """
    path, (mean, std) = _path(path), _constants(mean, std)
    model = _filled(_state(_read(path), path.name, key), path.name, mean, std, net)
    if net is not None:
        # The size of its images is unknown; most take 32 pixels.
        g = torch.Generator().manual_seed(0)
        try:
            answers = logits(model, torch.rand(2, len(mean), 32, 32, generator=g))
        except RuntimeError:
            return model
        _no_probabilities(answers, path.name)
    return model


def pair(
    model_path: str | os.PathLike,
    npz_path: str | os.PathLike,
    *,
    target: int | None = None,
    mean: Sequence[float] = CIFAR_MEAN,
    std: Sequence[float] = CIFAR_STD,
    net: nn.Module | None = None,
    key: str | None = None,
) -> Foreign:
    """Read weights and an .npz of triggered test images.

    The .npz holds images (`x`, `images` or `data`; (n, h, w, c) or (n, c, h, w); uint8,
    or float in 0..1, which is rounded to 256 levels as in an image file), true labels
    (`y`, `labels` or `true`) and the attacker's labels (`target`, `targets`, `goal` or
    `poisoned_labels`; one each, or one for all).

    Args:
        target: the attacker's label, if the .npz does not hold it.
        mean, std, net, key: see :func:`weights`.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: see :func:`backdoorbench`.
    """
    if target is not None:
        require.whole("target", target, 0)
    path, model_path = _path(npz_path, "npz_path"), _path(model_path, "model_path")
    mean, std = _constants(mean, std)
    arrays = _arrays(path)
    saved = _state(_read(model_path), model_path.name, key)
    model = _filled(saved, model_path.name, mean, std, net)
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
    about = {"format": "pair", "model": model_path.name, "images": path.name}
    return Foreign(model, triggered, {**about, "goals": goal.unique().tolist()})


def _path(path: object, name: str = "path") -> Path:
    plain = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(plain, str) or not plain:
        raise ValueError(f"{name} must be the path of a file, not {require.kind(path)}.")
    return Path(plain)


def _start(path: Path) -> bytes:
    """The first bytes of a regular file: a pipe would wait for a writer forever."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            with open(path, "rb") as f:
                return f.read(512)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"there is no file at {path}.") from None
    except (OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or str(e)
        raise ValueError(f"{path.name} cannot be opened ({why}).") from e
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path} is a folder; give the path of a file in it.")
    raise ValueError(f"{path} is a pipe, socket or device, not a regular file.")


def _read(path: Path) -> object:
    """What a file of torch.save or safetensors holds, without running any of it."""
    start = _start(path)
    # The length of a header in JSON comes first; the library takes up to 100 MB.
    safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= 10**8
    # Before 2.6 a crafted file could run code all the same (CVE-2025-32434).
    version = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if version < (2, 6) and not safetensors:
        raise RuntimeError(
            f"torch {torch.__version__} cannot open {path.name} safely; install torch 2.6 or newer."
        )
    if not safetensors and (other := _other(path, start)):
        raise ValueError(f"{path.name} is {other}.")
    try:
        if safetensors:
            from safetensors.torch import load_file

            return load_file(path)
        if start[:4] == b"PK\3\4":
            _whole_zip(path)
        # An open file: given a path, newer versions go by its ending.
        with torch.serialization.safe_globals(_numpy_only()), open(path, "rb") as f:
            return torch.load(f, map_location="cpu", weights_only=True)
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


def _whole_zip(path: Path) -> None:
    """torch reads over flipped bytes: it does not look at the checksums of its zip."""
    with zipfile.ZipFile(path) as z:
        size = sum(i.file_size for i in z.infolist())
        if size > 10 * os.path.getsize(path) + 10**6:  # torch.save does not compress
            raise ValueError("unpacks to far more than its size")
        if (bad := z.testzip()) is not None:
            raise ValueError(f"the checksum of {bad} is wrong")


UNPACK = "unpack it and give the path of the file in it"
CONVERT = "load it with its own library and save a state dict with torch.save"
#: (first bytes, where, what it is and what to do) of files taken for weights
FORMATS = (
    (
        b"version https://git-lfs",
        0,
        "a Git LFS pointer, not the file it points to; "
        "fetch that with git lfs pull, or by the site's download button",
    ),
    (b"\x89HDF", 0, f"an HDF5 file, as Keras writes; {CONVERT}"),
    (b"\x93NUMPY", 0, "a single numpy array (.npy)"),
    (b"ustar", 257, f"a tar archive; {UNPACK}"),
    (b"\x1f\x8b", 0, f"a gzip archive; {UNPACK}"),
    (b"BZh", 0, f"a bzip2 archive; {UNPACK}"),
    (b"\xfd7zXZ", 0, f"an xz archive; {UNPACK}"),
    (b"7z\xbc\xaf", 0, f"a 7z archive; {UNPACK}"),
    (b"Rar!", 0, f"a rar archive; {UNPACK}"),
    (b"\x28\xb5\x2f\xfd", 0, f"a zstd archive; {UNPACK}"),
    (b"TFL3", 4, f"a TensorFlow Lite model; {CONVERT}"),
    (b"GGUF", 0, "a GGUF file of a language model, not a state dict"),
    (b"\x89PNG", 0, "an image, not a state dict"),
    (b"\xff\xd8\xff", 0, "an image, not a state dict"),
    (b"%PDF", 0, "a PDF, not a state dict"),
)
LEGACY = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # torch.save before 1.6 wrote a plain pickle


def _other(path: Path, start: bytes) -> str:
    """What a file is, if not torch's, and what to do, by its first bytes; else ""."""
    if not start:
        return "empty: it was cut short in copying; get it again from its source"
    for magic, at, what in FORMATS:
        if start[at : at + len(magic)] == magic:
            return what
    # ir_version, then producer or graph: protobuf has no magic number.
    if start[:1] == b"\x08" and start[2:3] in b"\x12\x1a\x22\x3a\x42" and start[2:]:
        return f"an ONNX model; {CONVERT}"
    if start[:4] == b"PK\3\4":
        return _zipped(path)
    if start[:1] == b"\x80" and LEGACY not in start[:32]:
        return (
            "a bare pickle, and opening one could run code; let its owner save "
            "model.state_dict() with torch.save"
        )
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return (
            "a web page, not the file that it offers; use the page's download button "
            "or its raw link"
        )
    if start.isascii() and not re.search(rb"[\0-\x08\x0e-\x1f]", start):
        return "a text file, not a state dict"
    return ""


def _zipped(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as z:
            names = [n.split("/", 1)[-1] for n in z.namelist()]
            ends = [n.rsplit("/", 1)[-1] for n in z.namelist()]
    except Exception:  # zipfile raises many kinds; whoever reads on says "damaged"
        return ""
    if "constants.pkl" in names and any(n.startswith("code/") for n in names):
        return (
            "a TorchScript archive, and opening one runs its code; where you trust it, "
            "save torch.jit.load(...).state_dict() with torch.save"
        )
    if ".data/extern_modules" in names:
        return "a torch.package with code; let its owner save model.state_dict()"
    if "data.pkl" in names:
        return ""
    if any(n.endswith(".npy") for n in ends):
        return "an .npz of numpy arrays, not a file of torch.save or safetensors"
    if "model.weights.h5" in ends:
        return f"a Keras model; {CONVERT}"
    return f"a zip archive without weights at its top; {UNPACK}"


def _numpy_only() -> list:
    """What arrays and scalars of plain numbers need; dtypes of objects are left out."""
    makers: list[Any] = [np.empty(0).__reduce__()[0], np.int64(0).__reduce__()[0]]
    # numpy 1 and 2 write different names, and each must read the other's files.
    spelled = [
        (f, f"numpy.{core}.multiarray.{f.__name__}") for f in makers for core in ("core", "_core")
    ]
    types: set[type] = {np.ndarray, np.dtype, *(type(np.dtype(c)) for c in "?bhilqBHILQefd")}
    return spelled + [(t, f"{t.__module__}.{t.__name__}") for t in types]


def _state(found: Any, name: str, key: str | None = None) -> dict[str, Tensor]:
    """The state dict in what a file held, unwrapped."""
    keys = _keys(found)
    if key is not None:
        if not isinstance(key, str) or not isinstance(found, dict) or key not in found:
            raise ValueError(f"{name} has no entry key={require.kind(key)}{keys}.")
        found = found[key]
    for _ in range(3):  # no loop until the end: a crafted dict may hold itself
        inner = _wrapped(found)
        if len(inner) > 1:
            raise ValueError(
                f"{name} holds several state dicts ({', '.join(inner)}); pass key=, "
                "the one to read."
            )
        found = found[inner[0]] if inner else found
    odd = f"it is a {type(found).__name__}"
    if isinstance(found, dict):
        wrong = [k for k, v in found.items() if not (isinstance(k, str) and _dense(v))]
        if found and not wrong:
            return dict(found)
        odd = f"its entry {str(wrong[0])[:40]!r} is no plain tensor" if wrong else "empty"
    raise ValueError(
        f"{name} holds no state dict ({odd}){keys}; save model.state_dict(), or pass "
        "key= if an entry is one."
    )


def _wrapped(found: object) -> list[str]:
    """Under which of the usual names a file holds a dict of tensors, or any dict."""
    if not isinstance(found, dict):
        return []
    dicts = [k for k in WRAPPERS if isinstance(found.get(k), dict)]
    # Settings go by some of these names too.
    full = [k for k in dicts if any(isinstance(v, (Tensor, dict)) for v in found[k].values())]
    return full or dicts[:1]


def _keys(found: object) -> str:
    """What a file holds, for messages."""
    if not isinstance(found, dict) or not found:
        return ""
    names = [" ".join(str(k).split())[:40] for k in list(found)[:8]]
    return f"; its entries are {', '.join(names)}" + ", ..." * (len(found) > 8)


def _dense(v: object) -> bool:
    return (
        isinstance(v, Tensor)
        and v.layout == torch.strided
        and not (v.is_meta or v.is_quantized or v.is_complex())
        # A crafted file may expand a single number to fill the memory.
        and v.numel() <= max(10**6, v.untyped_storage().nbytes())
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
    """Our model, or a copy of `net` behind its normalization, with these weights."""
    if net is None:
        arch, state = _recognized(_bare(state, ("conv1.weight", "features.0.weight")))
        if not arch:
            raise ValueError(
                f"the names in {name} ({', '.join(list(state)[:3])}, ...) are of no "
                f"ResNet-18, PreActResNet-18 or VGG-16-BN; {OWN}."
            )
        with torch.device("meta"):  # a wrong shape must not fill the memory
            want = build(**arch, mean=mean, std=std).state_dict()
        what = f"our {arch['name']} for {len(mean)} channels"
    else:
        filled, want, what = _copied(net, len(mean))
        state = _bare(state, want)
    state = _without_counts(state, want, name)
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
    state = _sound(state, want, name)
    if net is None:
        model = filled = build(**arch, mean=mean, std=std)
    else:
        model = nn.Sequential(Normalize(mean, std), filled)
    try:
        filled.load_state_dict(state, strict=False)
    except Exception as e:  # `net` may raise anything
        raise ValueError(
            f"{what} cannot load {name} ({type(e).__name__}); try its load_state_dict."
        ) from e
    return lay_out(model).eval()


def _constants(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The normalization, if it is one of pixels in [0, 1]."""
    try:
        means, stds = tuple(map(float, mean)), tuple(map(float, std))
        m, s = torch.tensor(means), torch.tensor(stds)
        fits = 0 < len(means) == len(stds) and bool((s > 0).all() & s.isfinite().all())
    except (RuntimeError, TypeError, ValueError, OverflowError):
        fits = False
    if not fits or not bool((m.abs() <= 1).all()):
        raise ValueError(
            "mean and std need one finite number per channel, mean in units of pixels "
            "in [0, 1] and std above zero."
        )
    return means, stds


def _copied(net: nn.Module, channels: int) -> tuple[nn.Module, dict[str, Tensor], str]:
    """A copy of somebody's module, its state dict, and its name."""
    require.module(net, "net")
    what = type(net).__name__
    try:
        filled = copy.deepcopy(net)
        want = filled.state_dict()
        odd = [k for k, v in want.items() if not isinstance(v, Tensor) or v.is_meta]
        lazy = any(map(nn.parameter.is_lazy, want.values()))
    except Exception as e:  # `net` may raise anything
        raise ValueError(
            f"net, a {what}, cannot be copied ({type(e).__name__}); pass a freshly made one."
        ) from e
    if odd or lazy:
        raise ValueError(
            f"net, a {what}, has no memory for its weights yet; make it on the CPU, "
            "and run an image through lazy layers."
        )
    takes = first_channels(filled)
    if {takes, channels} == {1, 3}:
        raise ValueError(
            f"mean and std are for {channels} channels, but the first convolution of "
            f"{what} takes {takes}; pass {takes} numbers for each."
        )
    return filled, want, what


def _without_counts(state: dict[str, Tensor], want: Iterable[str], name: str) -> dict[str, Tensor]:
    """The state without what a profiler has added to every module."""
    counts = [
        k for k in state.keys() - want if k.rpartition(".")[2] in ("total_ops", "total_params")
    ]
    if counts:
        warnings.warn(
            f"{name} holds {len(counts)} entries total_ops and total_params, which a "
            "profiler left; they are no weights and are left out.",
            stacklevel=4,
        )
    return {k: v for k, v in state.items() if k not in counts}


def _sound(state: dict[str, Tensor], want: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights in the network's number format, if none was spoilt on the way."""
    rounded = []
    ours = {}
    for k, v in state.items():
        ours[k] = v.to(want[k].dtype)
        if not want[k].is_floating_point():
            if not torch.equal(ours[k].double(), v.double()):
                raise ValueError(
                    f"{name} holds fractions in {k}, where the network has whole "
                    "numbers; the file is damaged."
                )
            continue
        if not v.is_floating_point():
            raise ValueError(
                f"{name} holds whole numbers in {k} ({v.dtype}): the weights were "
                "quantized or rounded; get them as floats."
            )
        if not ours[k].isfinite().all():
            raise ValueError(
                f"{name} holds numbers in {k} that are too large for {want[k].dtype}; "
                "the file is damaged."
                if v.double().isfinite().all()
                else f"{name} holds infinite or undefined numbers in {k}: the training "
                "diverged or the file is damaged."
            )
        if k.endswith("running_var") and bool((ours[k] < 0).any()):
            raise ValueError(f"{name} holds negative variances in {k}; the file is damaged.")
        if v.ndim > 1:
            rounded.append(bool((ours[k] == ours[k].round()).all()))
    if rounded and all(rounded):
        raise ValueError(
            f"all weights in {name} are whole numbers: they were quantized or rounded; "
            "get them as floats."
        )
    return ours


def _shape(t: Tensor) -> str:
    return "x".join(map(str, t.shape)) or "a number"


def _recognized(state: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
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
        # Ours has the normalization in front: everything is one place further on.
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
    root = Path(os.path.realpath(folder))
    files = [root / str(true) / f"{i}.png" for i, true, _ in rows.tolist()]
    gone = [f for f in files if not os.path.isfile(f)]  # nor pipes, which would wait
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
            found, deep = im.size, im.mode[0] in "IF"
            if found == size and not deep:
                opaque = im.convert("RGBA").getextrema()[3][0] == 255
                if opaque:
                    return np.array(im.convert(mode))
    except Exception as e:  # PIL raises many kinds
        raise ValueError(f"{file} is not a readable PNG; copy it again.") from e
    if found != size:
        raise ValueError(
            f"{file} is {found[0]}x{found[1]} pixels, but the .pt file says "
            f"{size[0]}x{size[1]}; the two do not belong together."
        )
    raise ValueError(
        f"{file} is {'16-bit' if deep else 'transparent'}, but BackdoorBench writes "
        "opaque PNGs of 8 bits; save it as it was."
    )


def _matched(
    model: nn.Module, found: Triggered, name: str, classes: int | None = None
) -> Triggered:
    """`found`, if the model takes such images and knows such labels."""
    try:
        answers = logits(model, found.x[:2])
    except RuntimeError as e:
        raise ValueError(
            f"the model cannot take the images of {name}, {_shape(found.x[0])} each; "
            "do the two belong together?"
        ) from e
    _no_probabilities(answers, name)
    k = answers.shape[1]
    if classes not in (None, k):
        raise ValueError(
            f"{name} says {classes} classes, but its model answers with {k}; the two "
            "do not belong together."
        )
    _labels_fit(torch.cat([found.y, found.goal]), k, name)
    return found


def _no_probabilities(answers: Tensor, name: str) -> None:
    """Warn of a Softmax at the end: such a network is measured rightly, no more."""
    ones = torch.ones(len(answers), device=answers.device)
    if bool((answers >= 0).all()) and torch.allclose(answers.sum(1), ones, atol=1e-4):
        warnings.warn(
            f"the network of {name} answers with probabilities, not logits: scores are "
            "right, but defenses that train it take a second softmax; leave out its "
            "last Softmax.",
            stacklevel=3,
        )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz by what they are, under any of the names of `ARRAYS`."""
    start = _start(path)
    if start[:4] != b"PK\3\4" and (other := _other(path, start)):
        raise ValueError(f"{path.name} is not an .npz but {other}.")
    try:
        with np.load(path, allow_pickle=False) as f:
            held = f.files
            names = {
                what: [n for n in held if n.lower() in known] for what, known in ARRAYS.items()
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
                f"{path.name} lacks the {what}: it holds "
                f"{', '.join(held[:8]) or 'nothing'}, and they are looked for under "
                f"{', '.join(ARRAYS[what])}."
            )
    return arrays


def _pixels(x: np.ndarray, channels: int, name: str) -> Tensor:
    """Images as uint8 (n, c, h, w)."""
    if x.ndim == 4 and x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    # One channel would spread over three in the normalization without a word.
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
            "in 0..1 and not normalized yet."
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
