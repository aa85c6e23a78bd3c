"""Pack two victims and some signs for the playground of the book.

    python tools/playground.py

Writes book/plain-theme/playground/data.js: the weights of a BadNets victim and of its twin
as they lie in data/zoo, in half precision, test images, and for
each channel the score of CLP and its trigger-activated change (TAC). A script and
no JSON, because a page that is opened from a folder may load scripts and nothing else.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import torch

from bdcourse import activations, data, models, victims
from bdcourse.defenses import clp_scores

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "book" / "plain-theme" / "playground" / "data.js"
VICTIM, TWIN, IMAGES = "badnets-w8", "benign-w8", 200


def text(t: torch.Tensor) -> str:
    """The bytes of a tensor as base64."""
    return base64.b64encode(t.contiguous().numpy().tobytes()).decode()


def packed(model: torch.nn.Module) -> dict:
    """Names, shapes and numbers of a network, as the engine reads them.

    What the zoo keeps in half precision is kept so here, the rest as 32-bit floats.
    """
    state = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
    state = {n: t for n, t in state.items() if not n.startswith("normalize.")}
    short = {n: bool((t.half().float() == t).all()) for n, t in state.items()}
    parts = {
        key: text(torch.cat([t.reshape(-1).to(kind) for n, t in state.items() if short[n] is own]))
        for key, kind, own in (("halves", torch.float16, True), ("floats", torch.float32, False))
    }
    return {"tensors": [[n, list(t.shape), short[n]] for n, t in state.items()], **parts}


def content() -> dict:
    """Everything that the page needs."""
    victim, twin = victims.zoo(VICTIM), victims.zoo(TWIN)
    test = data.splits("signs").test[:IMAGES]
    patch, (row, column) = victim.attack.patch, victim.attack.at
    side = test.shape[-1]
    measured = {
        "scores": clp_scores(victim.model),
        "reactions": activations.tac(victim.model, test[:100], victim.attack),
    }
    bars = {
        key: {n: [round(v, 5) for v in s.tolist()] for n, s in found.items()}
        for key, found in measured.items()
    }
    return {
        "classes": list(test.classes),
        "side": side,
        "mean": list(models.CIFAR_MEAN),
        "std": list(models.CIFAR_STD),
        "eps": victim.model.bn1.eps,
        "target": victim.attack.target,
        "trigger": {"patch": patch[0].tolist(), "row": row % side, "column": column % side},
        "victim": packed(victim.model),
        "twin": packed(twin.model),
        **bars,
        "images": text(test.x),
        "labels": test.y.tolist(),
        "start": int((test.y == test.classes.index("stop")).nonzero()[0]),
    }


def main() -> None:
    TARGET.write_text(f"var PLAYGROUND = {json.dumps(content(), separators=(',', ':'))};\n")
    print(f"{TARGET.relative_to(ROOT)}: {TARGET.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
