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

__version__ = "0.1.0"

# Name -> module, or module and name in it.
_PUBLIC = {
    "check": "teach.check",
    "widgets": "teach.widgets",
    "labs": "teach.labs",
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


def __getattr__(name: str):
    if name not in _PUBLIC:
        try:  # the rooms and modules: bd.attacks, bd.victims
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
