"""What a run says on its way: each row on a line, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from bdcourse.bench.cells import Job


def complaints(rows: Iterable[dict]) -> list[str]:
    """One line for each different error in these rows, with the victims it befell."""
    found: dict[str, list[str]] = {}
    for r in rows:
        who = f"{r.get('victim') or r['attack']}, seed {r['seed']}"
        found.setdefault(r["error"], []).append(who)
    return [f"{'; '.join(dict.fromkeys(w))}: {text}" for text, w in found.items()]


class Progress:
    """What is done, and about how long the rest takes.

    A cell weighs what its defense took in other rows of the table, and the mean of all
    where there is none. What the first row of a victim took beyond its weight was
    training, and each victim to come is given the mean of that.
    """

    def __init__(self, jobs: Sequence[Job], rows: Sequence[dict]) -> None:
        seen: dict[str, list[float]] = {}
        for r in rows:
            if "seconds" in r:
                seen.setdefault(r["defense"], []).append(r["seconds"])
        self.means = {name: sum(s) / len(s) for name, s in seen.items()}
        usual = sum(self.means.values()) / len(self.means) if self.means else 0.0
        self.usual = 1.0 + usual  # a second for the scores
        self.total = sum(len(j.names) for j in jobs)
        self.left = sum(self._weigh(name) for j in jobs for name in j.names)
        self.untrained = {v for j in jobs for v in self._victims(j)}
        self.count = self.trained = 0
        self.training = self.took = self.weight = 0.0
        self.start = time.perf_counter()
        self.last: tuple | None = None

    @staticmethod
    def _victims(job: Job) -> set[str]:
        """The networks that a job needs trained."""
        own = job.subject
        return set() if own.zoo else {repr(own), repr(own.twin())}

    def _weigh(self, name: str) -> float:
        return 1.0 + self.means[name] if name in self.means else self.usual

    def say(self, job: Job, row: dict) -> None:
        """One line for one row; and why its victim misses the gate, if it does."""
        self.count += 1
        now, weight = time.perf_counter(), self._weigh(row["defense"])
        passed, self.start = now - self.start, now
        self.left -= weight
        if new := self._victims(job) & self.untrained:
            self.untrained -= new
            cell = min(passed, weight * self._rate())
            self.trained += len(new)
            self.training += passed - cell
            passed = cell
        self.took, self.weight = self.took + passed, self.weight + weight
        left = self._rate() * self.left
        if self.trained:
            left += self.training / self.trained * len(self.untrained)
        key = (job.subject, job.budget, job.draw)
        if key != self.last:
            print(f"\n{job}", flush=True)
            if row.get("weak"):
                print(f"  weak, and in no mean: {row['weak']}", flush=True)
        self.last = key
        print(
            f"  {row['defense']:25s} {_said(row)}  [{self.count}/{self.total}, "
            f"{_clock(max(0.0, left))} left]",
            flush=True,
        )

    def _rate(self) -> float:
        """Seconds for a weight of 1."""
        return self.took / self.weight if self.weight else 1.0


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _said(row: dict) -> str:
    """What a row says, on half a line."""
    if "error" in row:
        return f"FAILED: {row['error']}"
    if "refused" in row:
        return f"not possible: {row['refused']}"
    if "curve" in row:
        points = (f"{p['u']:g}: {100 * p['acc']:.0f}" for p in row["curve"][::4])
        return "u: ACC " + ", ".join(points)
    shares = {k: row[k] for k in ("acc", "asr", "ra") if row[k] is not None}
    names = {"acc": row.get("headline", "acc")}
    said = ", ".join(f"{names.get(k, k).upper()} {100 * v:.1f} %" for k, v in shares.items())
    return f"{said}, {row['pruned']} channels"
