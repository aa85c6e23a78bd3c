"""Render what README.md and four pages of the book show of results and of promises.

    python tools/pages.py            write it into them, and three pictures
    python tools/pages.py --check    exit 1 if a page is out of date

A table or a paragraph stands between two marks, `<!-- NAME -->` and `<!-- end of NAME -->`;
in the book they are MyST comments, `% NAME` and `% end of NAME`. What is measured is made
from data/results/*.json: no number of the tables is typed by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

import guide
from bdcourse import data, metrics, victims
from bdcourse.report import claims, render, show, tables
from bdcourse.teach import guarantees

ROOT = Path(__file__).resolve().parent.parent
MARK = re.compile(r"^((?:<!--|%) ([a-z-]+)(?: -->)?\n)(.*?)(^(?:<!--|%) end of \2\b)", re.S | re.M)
SHOWN = ("none", "clp, u = 3", "clp, u = 2.5", "random channels", "fine-tuning")
# The defenses of the third table: controls, the five methods, their rivals.
REPAIRS = (
    "none",
    "fine-tuning",
    "random channels",
    "linf",
    "linf, all layers",
    "linf (oracle)",
    "linf, random channels",
    "clp, u = 3",
    "clp, u = 2.5",
    "fmp",
    "fmp, random maps",
    "fmp, p = 16",
    "fmp, p = 16, random maps",
    "fmp, no maps",
    "mnp, soft",
    "mnp, hard",
    "mnp, hard (oracle)",
    "mnp, soft, beta held",
    "mnp, random channels",
    "fip",
    "fast fip",
    "fip, eta = 0",
    "sam",
    "fine-pruning",
    "anp",
    "anp, 3 points",
    "anp, 10 points",
    "anp (oracle)",
    "anp, 10 points, random channels",
    "rnp",
    "rnp, 3 points",
    "rnp, 10 points",
    "rnp (oracle)",
    "rnp, 10 points, random channels",
    "ft-sam",
    "nad",
    "i-bau",
    "nc unlearning",
)
# What a defender can choose from, and how far the same go with a fifth of the images.
CHOICES = (
    "none",
    "fine-tuning",
    "clp, u = 3",
    "clp, u on held-out images",
    "linf",
    "fmp",
    "mnp, soft",
    "mnp, hard",
    "fip",
    "sam",
    "fine-pruning",
    "anp",
    "anp, 10 points",
    "rnp, 10 points",
    "ft-sam",
    "nad",
    "i-bau",
    "nc unlearning",
)
COLUMNS = ("attack", "defense", "ACC %", "ASR %", "RA %", "channels", "clean images")


def measured() -> str:
    """All tables as Markdown, with what they were measured on."""
    parts = []
    for name in ("signs", "cifar10"):
        rows = tables.results(name).rows
        first, seeds = rows[0], len({r["seed"] for r in rows})
        table = tables.standard_table(name, defenses=SHOWN)
        keep = [table.head.index(c) for c in COLUMNS]
        table.head = [table.head[i] for i in keep]
        table.body = [[row[i] for i in keep] for row in table.body]
        table.right = [table.right[i] for i in keep]
        what = {"signs": "Drawn signs", "cifar10": "CIFAR-10 as JPEG"}[name]
        parts.append(
            f"**{what}**, {first['model']} of width {first['width']}, "
            f"{first['n_train']:,} training images, {first['epochs']:g} epochs, "
            f"{seeds} seed{'s' * (seeds > 1)}:\n\n{table.markdown()}\n"
        )
    return "\n".join([*parts, repairs()])


def repairs() -> str:
    """Every defense on CIFAR-10, in the mean over the victims that pass the gate."""
    key = {"budget": 2500, "draw": None}
    rows = tables.results("cifar10-defenses").select(defense="none", **key)
    strong = [r["attack"] for r in rows if not r["weak"] and r["attack"] != "none"]
    weak = [r["attack"] for r in rows if r["weak"]]
    table = tables.summary("cifar10-defenses", REPAIRS, **key)
    first = rows[0]
    return (
        f"**CIFAR-10 as JPEG, every defense**, {first['model']} of width "
        f"{first['width']}, {first['n_train']:,} training images, {first['epochs']:g} "
        f"epochs, one seed; means over {', '.join(strong)} (weak, and left out: "
        f"{', '.join(weak)}). “Fails”: ASR above 10 %. “Elsewhere”: ACC / ASR / RA "
        "that others report at width 64, in the mean over their attacks; sources in "
        "`data/results/README.md`.\n\n"
        f"{table.markdown()}\n"
    )


def picture() -> show.Picture:
    """Four signs as the victim reads them, without and with nine changed pixels."""
    victim = victims.zoo("badnets")
    test = data.load("signs", "test")
    some = test[torch.stack([(test.y == k).nonzero()[2, 0] for k in (3, 4, 8, 10)])]
    both = torch.cat([some.pixels(), victim.attack.trigger(some.pixels())])
    said = metrics.predict(victim.model, both)
    return show.images(
        both,
        [f"“{test.classes[k]}”" for k in said],
        cols=4,
        title="One network, the same signs, nine pixels",
        wrong=(said != some.y.repeat(2)).tolist(),
        description="Two rows of four signs with the network's answer under each. "
        "Above, the answers are right. Below, a small checkerboard is added to a "
        "corner, and every answer is speed limit 30.",
    )


MEANS = {"budget": 2500, "draw": None}  # of the photographs: all of the 5 percent


def findings() -> str:
    """Five sentences with the figures of the photographs, in the mean over victims."""
    rows = tables.ranking("cifar10-defenses", REPAIRS, resamples=1, **MEANS)
    by = {r["defense"]: r for r in rows}

    def left(name: str) -> str:
        return f"{100 * by[name]['asr']:.0f} %"

    def cost(name: str) -> str:
        return f"{100 * (by['none']['acc'] - by[name]['acc']):.0f} points"

    said = [
        f"**Fine-tuning alone** takes the attack success from {left('none')} to "
        f"{left('fine-tuning')} on photographs. A repair is worth what it adds to "
        "that.",
        "**Weights alone tell little of where to cut.** CLP leaves "
        f"{left('clp, u = 3')} at its published threshold and "
        f"{left('clp, u = 2.5')} half a step lower.",
        f"**Five repairs leave less than a tenth**: soft MNP {left('mnp, soft')}, "
        f"FT-SAM {left('ft-sam')}, I-BAU {left('i-bau')}, FIP {left('fip')} and its "
        f"variant SAM {left('sam')}. Soft MNP costs {cost('mnp, soft')} of accuracy, "
        f"FIP {cost('fip')}.",
        f"**What the defender may lose decides.** ANP leaves {left('anp')} if it may "
        f"cost one point of accuracy, and {left('anp, 10 points')} if it may cost "
        "ten.",
        "**Where one looks matters more than what one knows.** L-infinity pruning "
        f"leaves {left('linf (oracle)')} in the last stage, though it is given the "
        f"attacker's own trigger, and {left('linf, all layers')} over all layers with "
        "a guessed one.",
    ]
    return "\n".join(f"{i}. {text}" for i, text in enumerate(said, 1)) + "\n"


def repaired() -> show.Picture:
    """What each repair leaves of the backdoor, and of the accuracy."""
    return render.figure(
        "cifar10-defenses",
        "summary",
        [d for d in CHOICES if "held-out" not in d],  # too long a name for its place
        "What is left of the backdoor, and of the accuracy",
        highlight=("none", "fine-tuning"),
        **MEANS,
    )


def headlines() -> show.Picture:
    """The attack success that the main figures report, and ours beside it."""
    found = [a for a in claims.headlines() if a.gap() is not None][::-1]
    figure, axes = show.canvas(height=5.2)
    ax, names = axes[0, 0], []
    for i, a in enumerate(found):
        reported = 100 * (a.value - a.gap())
        ax.plot([reported, 100 * a.value], [i, i], color=show.QUIET, linewidth=1.5, zorder=1)
        ax.scatter(reported, i, s=42, marker="s", facecolor="white", edgecolor=show.INK, zorder=2)
        ax.scatter(100 * a.value, i, s=42, color=show.TRIGGERED, zorder=3)
        names.append(a.claim["headline"])
    ax.axvline(100 * tables.REMOVED, color=show.QUIET, linewidth=1, linestyle=":")
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("attack success that is left, percent (dotted: 10)")
    ax.scatter([], [], s=42, marker="s", facecolor="white", edgecolor=show.INK, label="reported")
    ax.scatter([], [], s=42, color=show.TRIGGERED, label="ours, width 8")
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=2)
    near = sum(abs(a.gap()) <= 0.1 for a in found)
    show.headline(figure, f"{near} of {len(found)} main figures come back within ten points")
    return show.Picture(
        figure,
        f"{len(found)} lines, one a published figure. On each a white square is the attack "
        "success that was reported after the defense, and a red dot is ours, joined by a line. "
        + " ".join(
            f"{n}: {100 * (a.value - a.gap()):.0f} and {100 * a.value:.0f}."
            for n, a in zip(names[::-1], found[::-1], strict=True)
        ),
    )


def cards() -> str:
    """What each repair costs and leaves standing, on both kinds of images."""
    kinds = {"photographs": ("cifar10-defenses", MEANS), "signs": ("signs-defenses", {})}
    lines: dict[str, dict] = {d: {"repair": show.Markdown(f"`{d}`")} for d in CHOICES[1:]}
    for kind, (name, key) in kinds.items():
        by = {r["defense"]: r for r in tables.ranking(name, CHOICES, resamples=1, **key)}
        left = _strong(name, CHOICES, **key)
        for d, line in lines.items():
            cost = round(100 * (by["none"]["acc"] - by[d]["acc"]))
            standing = sum(row[d] >= tables.REMOVED for row in left)
            line[f"points lost, {kind}"] = cost
            line[f"still standing, {kind}"] = f"{standing} of {len(left)}"
    return show.Table(list(lines.values())).markdown() + "\n"


def advice() -> str:
    """The rows from which a defender chooses: what each needs, leaves and costs."""
    name = "cifar10-defenses"
    known = render.known(name, "ranking", budget=500, draw=None)
    names = [d for d in CHOICES if d in known]
    few = tables.ranking(name, names, resamples=1, budget=500, draw=None)
    few = {r["defense"]: r for r in few}
    left, lines = _strong(name, CHOICES, budget=2500, draw=None), []
    for r in tables.ranking(name, CHOICES, resamples=1, budget=2500, draw=None):
        scarce = few.get(r["defense"])
        lines.append(
            {
                "defense": r["defense"],
                "ACC %": 100 * r["acc"],
                "ASR %": 100 * r["asr"],
                "RA %": 100 * r["ra"],
                "ASR % of each": " / ".join(f"{100 * row[r['defense']]:.0f}" for row in left),
                "DER %": 100 * r["der"],
                "seconds": r["seconds"],
                "with 500 images": ""
                if scarce is None
                else f"{100 * scarce['acc']:.0f} / {100 * scarce['asr']:.0f}",
            }
        )
    return show.Table(lines).markdown() + "\n"


def solved() -> str:
    """The same on drawn signs, where next to nothing is misread."""
    name = "signs-defenses"
    known = render.known(name, "ranking")
    names = [d for d in CHOICES if d in known]
    left, lines = _strong(name, names), []
    for r in tables.ranking(name, names, resamples=1):
        asr = [row[r["defense"]] for row in left]
        lines.append(
            {
                "defense": r["defense"],
                "ACC %": 100 * r["acc"],
                "ASR %": 100 * r["asr"],
                "RA %": 100 * r["ra"],
                "worst ASR %": 100 * r["worst"],
                f"below 10 %, of {len(asr)}": sum(a < tables.REMOVED for a in asr),
                "DER %": 100 * r["der"],
            }
        )
    return show.Table(lines).markdown() + "\n"


def _strong(name: str, plans: Sequence[str], **key) -> list[dict[str, float]]:
    """ASR by plan, in the mean over draws, of each victim that passes the gate."""
    left = tables.scores(name, plans, **key)
    return [dict(zip(plans, r, strict=True)) for v, r in left.items() if "*" not in v]


BLOCKS = {
    "results": measured,
    "findings": findings,
    "cards": cards,
    "headlines": lambda: claims.headline_table().markdown() + "\n",
    "tally": lambda: claims.tally().markdown() + "\n",
    **{m: partial(lambda m: claims.method_table(m).markdown() + "\n", m) for m in claims.METHODS},
    "advice": advice,
    "solved": solved,
    "only-the-network": guide.only_the_network,
    "some-hundred-images": guide.some_hundred_images,
    "some-thousand-images": guide.some_thousand_images,
    "solved-task": guide.solved_task,
    "promises": lambda: guarantees.promises({p: [] for p in guarantees.PROMISES}) + "\n",
}
PAGES = (
    "README.md",
    *(f"book/{page}.md" for page in ("results", "reproduction", "choosing", "teaching")),
)


def rendered(page: str) -> str:
    """The text of a page with its tables made anew.

    Raises:
        ValueError: it asks for a table that nobody makes.
    """

    def fill(found: re.Match) -> str:
        start, name, _, end = found.groups()
        if name not in BLOCKS:
            raise ValueError(f"{page} asks for {name!r}; known: {', '.join(BLOCKS)}.")
        text = BLOCKS[name]()
        return start + (f"\n{text}\n" if start[0] == "%" else text) + end

    return MARK.sub(fill, (ROOT / page).read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only name the pages that are old")
    check = parser.parse_args().check
    stale = [p for p in PAGES if rendered(p) != (ROOT / p).read_text()]
    if check:
        for page in stale:
            print(f"{page} shows old results; run python tools/pages.py")
        return int(bool(stale))
    for page in stale:
        (ROOT / page).write_text(rendered(page))
    picture().save(ROOT / "book" / "nine-pixels.png")
    repaired().save(ROOT / "book" / "repairs.png")
    headlines().save(ROOT / "book" / "headlines.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
