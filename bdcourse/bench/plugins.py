"""Plans and attacks of your own, from a Python file: `bench --plugin my_plans.py`.

Every :class:`Plan` and every subclass of `Attack` at the top level of the file is found,
plans in a list, tuple or dict too. Worker processes load the same file. Its digest stands
in the rows that use it, so that changed code is measured anew.
"""

from __future__ import annotations

import hashlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from bdcourse import require
from bdcourse.attacks import ATTACKS, Attack
from bdcourse.bench.plans import PLANS, Plan, register

MODULE = "bdcourse_plugin_"  # and the digest: the name of the loaded module


@dataclass(frozen=True)
class Plugin:
    """A file whose plans and attacks can be measured.

    Args:
        path: absolute.
        digest: 16 hex digits of the SHA-256 of its bytes.
        plans, attacks: the names that it adds.
    """

    path: str
    digest: str
    plans: tuple[str, ...]
    attacks: tuple[str, ...]

    def restore(self) -> None:
        """Load it here, in a process that may not have it.

        Raises:
            ValueError: the file differs from the one that was loaded first.
        """
        if load_plugin(self.path).digest != self.digest:
            raise ValueError(
                f"{self.path} holds other code here than where the run was started; start "
                "the run again."
            )


_loaded: dict[str, Plugin] = {}  # by path


def load_plugin(path: str | os.PathLike) -> Plugin:
    """Run a file once and add its plans and attacks to PLANS and ATTACKS.

    A file that has changed since it was loaded replaces what it added.

    Raises:
        ValueError: it cannot be read or run, adds nothing, or adds a name that is taken.
    """
    path = os.path.abspath(require.path("plugin", path))
    name = Path(path).name
    try:
        code = Path(path).read_bytes()
    except (OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or require.reason(e)
        raise ValueError(f"{path} cannot be read ({why}); name a Python file.") from e
    digest = hashlib.sha256(code).hexdigest()[:16]
    known = _loaded.get(path)
    if known is not None and known.digest == digest:
        return known
    if known is not None:
        _forget(known)
    module = _run(code, path, digest)
    found = dict.fromkeys(_plans(vars(module).values()))
    plans = [p for p in found if PLANS.get(p.name) is not p]  # imported ones are no news
    kinds = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Attack)]
    attacks = dict.fromkeys(v for v in kinds if v.__module__ == module.__name__)
    if not plans and not attacks:
        raise ValueError(
            f"{name} has no Plan and no class of Attack at its top level; add one, or leave "
            "the file out."
        )
    added = Plugin(path, digest, tuple(p.name for p in plans), tuple(a.__name__ for a in attacks))
    _add(added, plans, attacks)
    return added


def loaded(paths: object) -> tuple[Plugin, ...]:
    """The plugins of these files, each loaded once."""
    if isinstance(paths, (str, bytes, os.PathLike)) or not isinstance(paths, Iterable):
        raise ValueError(f"plugins must be a list of files, not {require.kind(paths)}.")
    return tuple(dict.fromkeys(map(load_plugin, paths)))


def used(plugins: Iterable[Plugin], attack: str | None = None, plan: str | None = None) -> dict:
    """What a row tells of the plugins that it needs: {"plugins": {name: digest}} or {}."""
    found: dict[str, str] = {}
    for p in plugins:
        found |= {attack: p.digest} if attack in p.attacks else {}
        found |= {plan: p.digest} if plan in p.plans else {}
    return {"plugins": found} if found else {}


def digest_of(attack: type[Attack]) -> str | None:
    """The digest of the plugin that defines an attack, None for the course's own."""
    before, found, digest = attack.__module__.partition(MODULE)
    return digest if found and not before else None


def _run(code: bytes, path: str, digest: str) -> ModuleType:
    module = ModuleType(f"{MODULE}{digest}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look themselves up there
    try:
        exec(compile(code, path, "exec"), vars(module))
    except Exception as e:
        del sys.modules[module.__name__]
        lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == path]
        at = lines[-1] if lines else getattr(e, "lineno", None)
        where = f" in line {at}" if at else ""
        raise ValueError(
            f"{path} cannot be run ({type(e).__name__}{where}: {require.reason(e)}); mend it."
        ) from e
    return module


def _plans(values: Iterable) -> Iterator[Plan]:
    for value in [*values]:
        if isinstance(value, Plan):
            yield value
        elif isinstance(value, dict):
            yield from (v for v in value.values() if isinstance(v, Plan))
        elif isinstance(value, (list, tuple)):
            yield from (v for v in value if isinstance(v, Plan))


def _add(plugin: Plugin, plans: Iterable[Plan], attacks: Iterable[type[Attack]]) -> None:
    name = Path(plugin.path).name
    taken = {n.lower() for n in ATTACKS}
    for cls in attacks:
        if cls.__name__.lower() in taken:
            raise ValueError(
                f"{name}: there is an attack {cls.__name__!r} already; take another name."
            )
    added = []
    try:
        for plan in plans:
            register(plan)
            added.append(plan.name)
    except ValueError as e:
        for one in added:
            del PLANS[one]
        raise ValueError(f"{name}: {e}") from e
    ATTACKS.update({cls.__name__: cls for cls in attacks})
    _loaded[plugin.path] = plugin


def _forget(plugin: Plugin) -> None:
    for known, names in ((PLANS, plugin.plans), (ATTACKS, plugin.attacks)):
        for name in names:
            known.pop(name, None)
    del _loaded[plugin.path]
