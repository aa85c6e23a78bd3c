"""A course on backdoors in neural networks, and the library that it is written in.

    import bdcourse as bd

    parts = bd.splits("signs")
    victim = bd.victims.zoo("badnets")
    repaired = bd.defenses.clp(victim.model).model
    bd.evaluate(repaired, parts.test, victim.attack)

Names are looked up when they are first used, so that importing this costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers, which look nothing up
    from bdcourse import attacks as attacks
    from bdcourse import data as data
    from bdcourse import defenses as defenses
    from bdcourse import foreign as foreign
    from bdcourse import metrics as metrics
    from bdcourse import models as models
    from bdcourse import train as train
    from bdcourse import victims as victims
    from bdcourse.analysis import curvature as curvature
    from bdcourse.analysis import landscape as landscape
    from bdcourse.analysis import visibility as visibility
    from bdcourse.bench.plans import PLANS as plans  # noqa: F401
    from bdcourse.bench.plans import Plan as Plan
    from bdcourse.bench.plans import repair as repair
    from bdcourse.data import load as load
    from bdcourse.data import splits as splits
    from bdcourse.images import Images as Images
    from bdcourse.metrics import evaluate as evaluate
    from bdcourse.report import claims as claims
    from bdcourse.report import render as render
    from bdcourse.report import show as show
    from bdcourse.report import tables as tables
    from bdcourse.teach import check as check
    from bdcourse.teach import labs as labs
    from bdcourse.teach import widgets as widgets
    from bdcourse.teach.quiz import quiz as quiz
    from bdcourse.train import Augment as Augment
    from bdcourse.train import fit as fit

__version__ = "0.1.0"

# Name -> module, or module and name in it; the same names as above.
_PUBLIC = {
    "attacks": "attacks",
    "data": "data",
    "defenses": "defenses",
    "foreign": "foreign",
    "metrics": "metrics",
    "models": "models",
    "train": "train",
    "victims": "victims",
    "check": "teach.check",
    "widgets": "teach.widgets",
    "labs": "teach.labs",
    "quiz": "teach.quiz:quiz",
    "show": "report.show",
    "tables": "report.tables",
    "claims": "report.claims",
    "render": "report.render",
    "curvature": "analysis.curvature",
    "landscape": "analysis.landscape",
    "visibility": "analysis.visibility",
    "Images": "images:Images",
    "load": "data:load",
    "splits": "data:splits",
    "fit": "train:fit",
    "Augment": "train:Augment",
    "evaluate": "metrics:evaluate",
    "Plan": "bench.plans:Plan",
    "plans": "bench.plans:PLANS",
    "repair": "bench.plans:repair",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        try:  # other modules: bd.signs, bd.report
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as e:
            if e.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no {name!r}") from None
    module, _, own = _PUBLIC[name].partition(":")
    found = importlib.import_module(f"{__name__}.{module}")
    return getattr(found, own) if own else found


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
