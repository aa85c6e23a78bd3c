"""The figures of lesson 07."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bdcourse.metrics import Scores
from bdcourse.report import diagram, show
from bdcourse.report.diagram import Box
from bdcourse.report.show import CLEAN, DEFENDED, INK, OTHER, QUIET, TRIGGERED, Picture

RATES = (("acc", "ACC", CLEAN, "o"), ("asr", "ASR", TRIGGERED, "s"), ("ra", "RA", DEFENDED, "^"))


def ranks(reach: Mapping[str, Mapping[str, Tensor]]) -> Picture:
    """How large are the channels that react most: victim -> {its name: ..., twin: ...}.

    Args:
        reach: victim -> network -> (layers,), the mean size rank of each layer's tenth that
            reacts most to the victim's trigger, 0 for the smallest channel, 1 for the largest.
    """
    leads = [float(p["victim"].mean()) - float(p["twin"].mean()) for p in reach.values()]
    with show.style():
        fig, axes = show.canvas(height=3.6)
        ax = axes[0, 0]
        for i, (name, pair) in enumerate(reach.items()):
            for j, (who, color, face) in enumerate(
                (("victim", INK, INK), ("twin", QUIET, "white"))
            ):
                v, at = pair[who], 3 * i + j
                spread = at + 0.26 * torch.sin(2.4 * torch.arange(len(v)))
                label = {"victim": "victim", "twin": "its benign twin"}[who] if i == 0 else None
                ax.plot(spread, v, "o", ms=4, color=color, mfc=face, alpha=0.65)
                mean = float(v.mean())
                ax.plot([at - 0.42, at + 0.42], [mean] * 2, color=color, lw=3, label=label)
                ax.text(at, 1.06, f"{mean:.2f}", ha="center", color=color, fontsize=11)
            ax.text(3 * i + 0.5, -0.16, name, ha="center", fontsize=11)
        ax.axhline(0.5, color=QUIET, lw=1, ls=":")
        ax.set(xlim=(-0.7, 3 * len(reach) - 1), ylim=(-0.22, 1.15), xticks=[])
        ax.set_yticks([0, 0.5, 1], ["smallest", "middle", "largest"])
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.02), ncols=2, fontsize=11)
        ax.set_title(f"A victim's trigger channels lead its twin's by {max(leads):.2f} at most")
        return Picture(
            fig,
            "Six columns of dots, two for each of three triggers, the victim and its benign twin. "
            "A dot is a layer: how large, among the channels of that layer, those are that react "
            "most to the trigger. A bar marks each network's mean; all bars lie above the middle. "
            "In every pair the victim's bar lies about at the twin's height or below it.",
        )


def cuts(
    shares: Sequence[float],
    largest: Mapping[str, Sequence[Scores]],
    random: Mapping[str, Sequence[Sequence[Scores]]],
) -> Picture:
    """The largest channels off, and as many random ones, for each victim.

    Args:
        largest: victim -> a score for each share; random: the same with several draws.
    """
    with show.style():
        fig, axes = show.canvas(2, len(largest), height=4.4, sharex=True, sharey=True)
        for column, name in zip(axes.T, largest, strict=True):
            for ax, (key, said, color, marker) in zip(column, RATES[1::-1], strict=True):
                x = [100 * s for s in shares]
                for at, draws in zip(x, random[name], strict=True):
                    for k, score in enumerate(draws if at else ()):
                        y = 100 * getattr(score, key)
                        ax.plot(at + 0.4 + 0.22 * k, y, marker, color=color, mfc="white", ms=6)
                y = [100 * getattr(s, key) for s in largest[name]]
                ax.plot(x, y, marker=marker, ls="-", color=color, ms=7)
                ax.set(ylim=(-6, 106), ylabel=f"{said}, %")
                ax.grid(axis="y", color="#e6e6e6", lw=0.8)
            column[0].set_title(name, fontsize=11, fontweight="normal")
            column[1].set_xlabel("channels off, % of each layer")
            column[1].set_xticks([100 * s for s in shares])
        axes[0, 0].plot([], [], "s-", color=INK, label="the largest")
        axes[0, 0].plot([], [], "s", color=INK, mfc="white", label="random")
        axes[0, 1].legend(*axes[0, 0].get_legend_handles_labels(), loc="center", fontsize=11)
        said = [f"{100 * (s[1].asr or 0.0):.0f}% on {name}" for name, s in largest.items()]
        show.headline(fig, f"The largest {shares[1]:.0%} off: ASR {' and '.join(said)}")
        return Picture(
            fig,
            "Attack success above, accuracy below, for BadNets on the left and Blended on the "
            "right, against the share of each layer that is switched off. Filled marks joined by "
            "lines: the largest channels; hollow marks: as many random ones, five draws. On "
            "BadNets the largest take the attack along at once, and random ones do not; on Blended "
            "the attack stays at the top. Accuracy falls in all panels, by random cuts as well.",
        )


def need(size: Tensor, harm: Tensor, marked: Tensor, least: float = 1e-7) -> Picture:
    """Size against saliency, a dot for each channel: (c,) each; marked: bool (c,)."""
    off = harm.abs().clamp(min=least)
    needed = int((harm.abs() >= 1e-3).sum())
    with show.style():
        fig, axes = show.canvas(height=3.4)
        ax = axes[0, 0]
        ax.plot(size[~marked], off[~marked], "o", ms=3.5, color=QUIET, alpha=0.5, mew=0)
        ax.plot(
            *(size[marked], off[marked], "s"),
            **{"ms": 5, "color": TRIGGERED, "alpha": 0.8, "mew": 0},
            label="react most to the trigger (oracle)",
        )
        ax.axhline(1e-3, color=INK, lw=1, ls=":")
        ax.text(float(size.max()), 1.5e-3, "a thousandth of a nat", ha="right", fontsize=11)
        ax.set_yscale("log")
        ax.set_ylim(least / 2, max(1e-2, 3 * float(off.max())))
        ax.set(
            xlabel="size (1 is the layer's mean)",
            ylabel="change of the loss,\nnats, without its sign",
        )
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.2), fontsize=11)
        ax.set_title(f"One at a time, all but {needed} of {len(harm)} channels can be spared")
        return Picture(
            fig,
            "A scatter plot of all channels of the BadNets victim: size across, and upwards, on a "
            "logarithmic axis, by how much the clean loss changes when the channel is removed. "
            "The cloud has no direction. Nearly all of it lies below a dotted line at a "
            "thousandth of a nat. Squares, the channels that react most to the trigger, are "
            "spread through the whole cloud; the few largest channels are squares.",
        )


def law(rows: Sequence[Mapping]) -> Picture:
    """The stored study: every network a point, victims tied to their twins."""
    late = [-r["correlation"] for r in rows]
    clean = [v for v, r in zip(late, rows, strict=True) if r["attack"] == "none"]
    named = {r["victim"]: v for v, r in zip(late, rows, strict=True) if r["victim"]}
    victims = [(r, v) for v, r in zip(late, rows, strict=True) if r["attack"] != "none"]
    victims.sort(key=lambda p: p[1])
    with show.style():
        fig, axes = show.canvas(height=3.6)
        ax = axes[0, 0]
        for v in clean:
            ax.axvline(v, color=QUIET, lw=0.7, alpha=0.35, zorder=0)
        apart = [sum(abs(v - w) < 4e-3 for w in clean[:k]) for k, v in enumerate(clean)]
        heights = [len(victims) + 0.3 * k for k in apart]  # two that coincide
        ax.plot(clean, heights, "o", color=QUIET, mfc="white", ms=7)
        names = []
        for i, (row, v) in enumerate(victims):
            ax.plot([v, named[row["twin"]]], [i, i], color="#d8d8d8", lw=2, zorder=1)
            ax.plot(named[row["twin"]], i, "o", color=QUIET, mfc="white", ms=7)
            ax.plot(v, i, "s", color=INK, ms=7)
            names.append(row["attack"])
        ax.set_yticks(range(len(victims) + 1), [*names, "12 clean networks"])
        ax.set_xlabel("rank correlation of size and saliency, mean of the later layers")
        inside = sum(min(clean) <= v <= max(clean) for _, v in victims)
        left = sum(v < named[row["twin"]] for row, v in victims)
        said = f"{left} of {len(victims)} lie left of their twin, {inside} in the clean range"
        show.headline(fig, said)
        ax.plot([], [], "s", color=INK, label="victim")
        ax.plot([], [], "o", color=QUIET, mfc="white", label="clean network (in a row: its twin)")
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2, fontsize=11)
        low, high = min(clean), max(clean)
        return Picture(
            fig,
            "Eighteen networks on one axis, the rank correlation of size and saliency in the late "
            f"layers. The top row holds twelve clean ones, from {low:.2f} to {high:.2f}. Below, "
            "six victims, each tied to its benign twin: all lie left of the twin. Four share the "
            "twin at the right end of the clean ones; all but one lie within their range.",
        )


def skeleton() -> Picture:
    """The method as boxes."""
    parts = {
        "net": Box(1.2, 4.1, "the network", INK, 2.0),
        "copy": Box(1.2, 1.0, "its copy", QUIET, 2.0),
        "forgot": Box(5.0, 1.0, "has forgotten\nthe signs", QUIET, 2.3, 1.1),
        "kept": Box(5.0, 4.1, "still reads\nthe signs?", CLEAN, 2.3, 1.1),
        "mask": Box(8.7, 2.55, "one mask\na channel", OTHER, 2.0, 1.1),
        "size": Box(8.7, 4.5, "size, price λ", INK, 2.1),
        "back": Box(8.7, 0.6, "masks on\nthe network", DEFENDED, 2.1, 1.0),
    }
    return diagram.boxes(
        parts,
        [
            ("net", "copy"),
            ("copy", "forgot", "up the loss"),
            ("net", "kept"),
            ("kept", "mask"),
            ("forgot", "mask"),
            ("size", "mask"),
            ("mask", "back"),
        ],
        height=3.8,
        notes=[(7.25, 3.75, "α: keep"), (6.95, 1.0, "β: lower it")],
        title="Forget on a copy, learn masks from both, repair the original",
        description="Boxes. A network and its copy on the left. The copy climbs the clean loss "
        "until it has forgotten the signs. Three arrows lead to the masks: the network that "
        "must still "
        "read the signs, the copy whose loss should fall, and the size of each channel at a price. "
        "From the masks an arrow leads to the repaired network.",
    )


def copies(names: Sequence[str], share: Tensor, target: int, rows: Sequence[Mapping]) -> Picture:
    """What the reader's copy says about clean signs, and what stored copies do.

    Args:
        share: (classes,) of the answers; rows: of the study, one copy each.
    """
    forgot = [r for r in rows if r["defense"].endswith("ascent")]
    with show.style():
        fig, axes = show.canvas(1, 2, height=4.2)
        left, right = axes[0]
        colors = [TRIGGERED if k == target else QUIET for k in range(len(names))]
        left.barh(range(len(names)), 100 * share, color=colors)
        left.set_title("your copy, clean signs", fontsize=11, fontweight="normal")
        left.set(xlim=(0, 105), xlabel="% of the answers")
        left.set_yticks(range(len(names)), names)
        left.invert_yaxis()
        labels: list[str] = []
        for row in sorted(forgot, key=lambda r: r["victim"]):
            at, first = len(labels), not labels
            clean, hit = 100 * row["named"], 100 * row["copy"]["asr"]
            right.plot([clean, hit], [at, at], color="#d8d8d8", lw=2, zorder=1)
            mark = {"color": CLEAN, "mfc": "white", "ms": 7, "ls": ""}
            right.plot(clean, at, "o", label="clean signs" if first else None, **mark)
            mark = {"color": TRIGGERED, "ms": 7, "ls": ""}
            right.plot(hit, at, "s", label="with the trigger" if first else None, **mark)
            labels.append(f"{row['victim']} {row['draw'] + 1}")
        right.set_title("draws of the copy", fontsize=11, fontweight="normal")
        right.set(xlim=(-4, 105), xlabel="% sent to the target")
        right.set_yticks(range(len(labels)), labels)
        right.set_ylim(len(labels) - 0.5, -0.5)
        right.legend(loc="upper right", bbox_to_anchor=(1.02, -0.16), ncols=2, fontsize=11)
        hits = [r["copy"]["asr"] for r in forgot]
        show.headline(
            fig,
            f"Copies that cannot read: {min(hits):.0%} to {max(hits):.0%} of triggered signs obey",
        )
        return Picture(
            fig,
            "Left, a bar for each class: what the reader's copy says about clean signs; the "
            "attacker's target has by far the longest bar. Right, a row for each stored copy: a "
            "hollow circle for the share of clean signs sent to the target, a square for the "
            "share of triggered ones. The squares stand near the right end, the circles are "
            "scattered.",
        )


def ladder(rows: Sequence[Mapping]) -> Picture:
    """The rule at work on stored copies of BadNets: a column for each kind, a line a draw."""
    kinds = {"copies that forgot": "ascent", "noisy copies": "noise"}
    groups = {
        said: [r for r in rows if r["victim"] == "badnets" and r["defense"].endswith(by)]
        for said, by in kinds.items()
    }
    with show.style():
        fig, axes = show.canvas(2, len(groups), height=5.4, sharey="row")
        ended = []
        for column, (said, group) in zip(axes.T, groups.items(), strict=True):
            for k, (row, line) in enumerate(zip(group, ("-", "--", ":"), strict=True)):
                points, chosen = row["betas"], allowed(row)
                at = [j + 0.13 * (k - (len(group) - 1) / 2) for j in range(len(points))]
                for ax, key, color, form in (
                    (column[0], "asr", TRIGGERED, "s"),
                    (column[1], "held", CLEAN, "o"),
                ):
                    ax.plot(at, [100 * p[key] for p in points], ls=line, color=color, lw=1.5)
                    for x, p in zip(at, points, strict=True):
                        face = color if p is chosen else "white"
                        ax.plot(x, 100 * p[key], form, color=color, mfc=face, ms=6)
                label = f"draw {k + 1}: {row['named']:.0%}"
                column[1].plot([], [], ls=line, color=INK, lw=1.5, label=label)
            ended.append(sum(a is not None and a["asr"] < 0.1 for a in map(allowed, group)))
            least = 100 * (group[0]["before"] - 0.03)
            for ax, level in ((column[0], 10), (column[1], least)):
                ax.axhline(level, color=QUIET, lw=1, ls=":")
            column[0].set_title(said, fontsize=11, fontweight="normal")
            names = [f"{p['beta']:g}" for p in group[0]["betas"]]
            column[0].set_xticks(range(len(names)), [])
            column[1].set_xticks(range(len(names)), names)
            for ax in column:
                ax.set(xlim=(-0.4, len(names) - 0.6), ylim=(-8, 108))
            column[1].set_xlabel("β")
            title = "clean signs that the\ncopy sends to the target"
            column[1].legend(loc="lower left", fontsize=10, title=title, title_fontsize=10)
        axes[0, 0].set_ylabel("repair: ASR, %")
        axes[1, 0].set_ylabel("held-out ACC, %")
        mark = {"color": TRIGGERED, "ms": 6, "ls": ""}
        axes[0, 0].plot([], [], "s", label="chosen", **mark)
        axes[0, 0].plot([], [], "s", mfc="white", label="not chosen", **mark)
        axes[0, 0].legend(loc="center left", fontsize=10)
        counts = [f"{n} of {len(g)}" for n, g in zip(ended, groups.values(), strict=True)]
        show.headline(
            fig, f"Attack ended: {counts[0]} copies that forgot, {counts[1]} noisy copies"
        )
        return Picture(
            fig,
            "Two columns, copies that forgot and noisy copies of BadNets, with a line for each of "
            "three draws against a ladder of beta. Above, attack success of the repair; below, "
            "held-out accuracy. The mark is filled where the rule stops. Dotted lines: success at "
            "a tenth, and the accuracy that the rule demands. The filled squares lie at zero with "
            "all copies that forgot, and with noisy ones except the third. On the highest rungs "
            "accuracy falls. A legend says how many clean signs each copy sends to the target: "
            "many or few with either kind, and none with the first noisy copy.",
        )


def furthest(points: Sequence[Mapping], before: float, key: str) -> Mapping | None:
    """The point with the largest value that costs at most three points on held-out images."""
    fine = [p for p in points if p["held"] >= before - 0.03 - 1e-9]
    return max(fine, key=lambda p: p[key]) if fine else None


def allowed(row: Mapping) -> Mapping | None:
    """The largest beta that costs at most three points on held-out images; None: no beta."""
    return furthest(row["betas"], row["before"], "beta")


def arms(rows: Sequence[Mapping], victim: str = "badnets") -> dict[str, list[Mapping]]:
    """What objectives leave: name -> the rates of each draw.

    Beta and the larger price are the largest that held-out images allow.
    """
    own = [r for r in rows if r["victim"] == victim]
    copied = [r for r in own if "terms" in r]
    found: dict[str, list] = {"all three": [allowed(r) for r in copied]}
    for k, name in enumerate(("keep + copy", "copy alone")):
        found[name] = [r["terms"][k] for r in copied]
    names = ("keep + size", "keep + ten times the price", "the same, all sizes equal")
    found |= {name: [] for name in names}
    for row in (r for r in own if "prices" in r):
        by = {(p["penalty"], p["lam"]): p for p in row["prices"]}
        asked = (("magnitude", 0.001), ("magnitude", 0.01), ("uniform", 0.01))
        for name, key in zip(names, asked, strict=True):
            found[name].append(by[key])
    return found


def rungs(
    betas: Sequence[float],
    held: Mapping[float, float],
    scores: Mapping[float, Scores],
    at: float,
    chosen: bool,
) -> Picture:
    """The soft repair at each beta, bars side by side; one beta on gray, chosen or not."""
    with show.style():
        fig, axes = show.canvas(height=3.2)
        ax = axes[0, 0]
        for i, beta in enumerate(betas):
            score = scores[beta]
            bars = (
                ("held-out ACC", held[beta], CLEAN, "white"),
                ("ACC", score.acc, CLEAN, CLEAN),
                ("ASR", score.asr or 0.0, TRIGGERED, TRIGGERED),
                ("RA", score.ra or 0.0, DEFENDED, DEFENDED),
            )
            if beta == at:
                ax.axvspan(i - 0.46, i + 0.46, color="#eeeeee", zorder=0)
            for j, (said, value, edge, face) in enumerate(bars):
                x, label = i + 0.21 * (j - 1.5), None if i else said
                ax.bar(x, 100 * value, 0.17, color=face, edgecolor=edge, lw=1.5, label=label)
                ax.text(x, 100 * value + 2, f"{100 * value:.0f}", ha="center", fontsize=10)
        ax.set_xticks(range(len(betas)), [f"β = {b:g}" for b in betas])
        ax.set(xlim=(-0.5, len(betas) - 0.5), ylim=(0, 115), ylabel="%", yticks=[0, 50, 100])
        ax.legend(ncols=4, loc="upper left", bbox_to_anchor=(0, -0.12), fontsize=11)
        left, kept = (getattr(scores[at], key) or 0.0 for key in ("asr", "ra"))
        rule = "Held-out images choose β" if chosen else "At β"
        ax.set_title(f"{rule} = {at:g}: ASR {left:.0%}, RA {kept:.0%}")
        return Picture(
            fig,
            "Three groups of four bars, one group for each beta, one of them on gray: accuracy "
            "on held-out images, accuracy, attack success and robust accuracy of the soft repair. "
            "On the two lower rungs attack success is gone and the other bars stand at the top. On "
            "the highest rung the other three bars are less than half as high.",
        )


def terms(found: Mapping[str, Sequence[Mapping]]) -> Picture:
    """The objective with terms taken away: name -> the rates of each draw."""
    with show.style():
        fig, axes = show.canvas(height=4.4)
        ax = axes[0, 0]
        ended = []
        for i, (name, draws) in enumerate(found.items()):
            if i:
                ax.axhline(i - 0.5, color="#e6e6e6", lw=1)
            for j, (key, said, color, marker) in enumerate(RATES):
                for k, row in enumerate(draws):
                    label = said if not (i or k) else None
                    at = i + 0.26 * (j - 1) + 0.07 * (k - 1)
                    ax.plot(100 * row[key], at, marker, color=color, ms=6, label=label, alpha=0.85)
            ended.append(all(r["asr"] < 0.1 and r["acc"] > 0.9 for r in draws) and name)
        ax.axvline(10, color=QUIET, lw=1, ls=":")
        ax.set_yticks(range(len(found)), list(found))
        ax.set_ylim(len(found) - 0.5, -0.5)
        ax.set(xlim=(-4, 104), xlabel="%")
        ax.legend(ncols=3, loc="upper left", bbox_to_anchor=(0, -0.14), fontsize=11)
        n = sum(map(bool, ended))
        show.headline(fig, f"{n} of {len(found)} objectives repair in every draw")
        return Picture(
            fig,
            "A row for each objective, with a mark for each of three draws: circle accuracy, "
            "square attack success, triangle robust accuracy. With keeping and the copy the "
            "squares lie at zero, whether size has its price or not. The copy alone costs "
            "accuracy. With keeping and the small price the squares stay at the right; with ten "
            "times the price they come close to the dotted line at a tenth, with all sizes equal "
            "nearly as close.",
        )


SAID = {
    "mnp, soft": "MNP-style, soft",
    "mnp, hard": "MNP-style, hard",
    "mnp, random channels": "as many at random",
}


def draws(rows: Mapping[str, Mapping[str, Sequence[Mapping]]]) -> Picture:
    """Every draw a point: victim -> defense -> stored rows."""
    hard = [r["asr"] for r in rows["Blended"]["mnp, hard"]]
    with show.style():
        fig, axes = show.canvas(1, len(rows), height=3.6, sharey=True)
        for ax, (name, by) in zip(axes[0], rows.items(), strict=True):
            for i, defense in enumerate(SAID):
                if i:
                    ax.axhline(i - 0.5, color="#e6e6e6", lw=1)
                for j, (key, said, color, marker) in enumerate(RATES):
                    for k, row in enumerate(by[defense]):
                        at = i + 0.26 * (j - 1) + 0.07 * (k - 1)
                        label = said if not (i or k) else None
                        ax.plot(
                            100 * row[key], at, marker, color=color, ms=6, label=label, alpha=0.85
                        )
            ax.axvline(10, color=QUIET, lw=1, ls=":")
            ax.set_title(name, fontsize=11, fontweight="normal")
            ax.set(xlim=(-5, 105), xlabel="%")
            ax.set_yticks(range(len(SAID)), list(SAID.values()))
        axes[0, 0].set_ylim(len(SAID) - 0.5, -0.5)
        axes[0, 0].legend(ncols=3, loc="upper left", bbox_to_anchor=(0, -0.2), fontsize=11)
        found = [f"{v:.0%}" for v in sorted(hard)]
        said = f"{', '.join(found[:-1])} or {found[-1]}"
        show.headline(fig, f"Blended, hard repair: ASR {said}, by the draw of images")
        return Picture(
            fig,
            "Two panels, BadNets and Blended, with a row for each defense and a mark for each of "
            "three draws of clean images: circle accuracy, square attack success, triangle robust "
            "accuracy. On BadNets most squares of the two learned repairs lie near zero, one "
            "of the soft repair far to the right. On Blended all squares lie at the right but two "
            "of the hard repair, whose triangles stay at the left. Random channels cost a third "
            "of the accuracy or more.",
        )
