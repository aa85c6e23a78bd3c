"""One workaround: torchvision built for CUDA beside a CPU-only torch."""

from __future__ import annotations

from types import ModuleType

import torch

_library = None  # keeps the declared operators alive


def import_torchvision() -> ModuleType:
    """Import torchvision even where its compiled operators cannot load.

    The torchvision wheel on the package index is built against CUDA. Beside a CPU-only
    torch its extension does not load, and its Python code then fails on import with
    "operator torchvision::nms does not exist", because it attaches a rule to an
    operator that nobody declared. Declaring the names is enough: the course uses
    datasets and models only, never these two operators.
    """
    global _library
    try:
        import torchvision

        return torchvision
    except RuntimeError as e:
        if "torchvision::" not in str(e) or _library is not None:
            raise
    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import sys

    for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import left behind
    import torchvision

    return torchvision
