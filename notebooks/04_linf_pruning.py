# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # L-infinity pruning: guess the trigger, then silence what peaks on it
#
# You will make a backdoored network tell you its trigger, without ever seeing an attacked image: a mask of about four pixels for one
# label, where the others need ten or more. Then you will rank channels by how much that guess raises their peak, switch off two of sixteen, and
# take the attack success from 100 % to below 5 %. On a warp the same procedure will report progress that is none.
#
# > **At a glance.** Reading: 30 minutes. Doing: 55 minutes. Run time: about 100 seconds and 1 GiB on two CPU cores.
# > Prerequisites: [lesson 03](03_inside_a_victim.ipynb). Papers: Cheng, Xu, Liu, Chen, Zhao and Lin, *Defending against Backdoor Attack on
# > Deep Neural Networks*, [arXiv 2002.12162](https://arxiv.org/abs/2002.12162); Wang and others, *Neural Cleanse*, IEEE S&P 2019.

# %% [markdown]
# ## Objectives
#
# After this lesson you can
#
# 1. say which norm of a feature map a small patch changes most, and when the choice does not matter (exercises 1 and 2);
# 2. write the stamp that a trigger search optimizes, and judge its result by a robust anomaly index (exercises 3 and 4);
# 3. rank channels by the growth of their peak and choose how many to prune without looking at the attack (exercises 5 and 6);
# 4. tell a repaired network from one that is only immune to your guess.
#
# ## Threat model
#
# | | l-infinity pruning |
# |---|---|
# | attacker | poisoned the training data; knows nothing of this defense |
# | defender has | the network and a few hundred clean images, some of them held out |
# | defender makes | a *guess* of the trigger, by optimization |
# | defender may do | switch channels off; no training |
# | success | ASR with the attacker's own trigger below 10 %, accuracy kept within two points |
#
# No code of the paper is public, and its exact layer, score and share are not known to us. What follows is our reading of its idea; choices
# of ours are named as such.
#
# ## Set-up

# %% tags=["setup"]
import math

import torch

from bdcourse import activations, check, data, metrics
from bdcourse import show, surgery, tables, victims, widgets
from bdcourse.defenses import invert_trigger, linf, linf_oracle, prune_random
from bdcourse.defenses import linf_curve, linf_gated, linf_responses, linf_sweep

parts = data.splits("signs")
test, clean, held = parts.test[:300], parts.clean, parts.held
victim, twin, bent = (victims.zoo(n) for n in ("badnets", "benign", "wanet"))
print(len(clean), "clean images,", len(held), "held out")

# %% [markdown]
# ## The idea: a patch is a peak
#
# A patch covers a few positions of a feature map. Let $A_k(x) \in \mathbb{R}^{h \times w}$ be the map of channel $k$ behind its ReLU. Its size
# can be measured by
#
# $$\lVert A_k \rVert_1 = \sum_{ij} |A_k[i,j]|, \qquad \lVert A_k \rVert_2 = \Big(\sum_{ij} A_k[i,j]^2\Big)^{1/2}, \qquad
# \lVert A_k \rVert_\infty = \max_{ij} |A_k[i,j]| .$$
#
# A sum over all positions hardly notices a spike, the maximum notices nothing else. The paper's claim: of the three, the
# $\ell_\infty$ norm separates triggered from clean inputs best.
#
# ### Exercise 1: three norms of a map
#
# *Difficulty 1, importance 4, 5 minutes.*
#
# > **Hint 1.** `torch.linalg.vector_norm` takes `dim`, and any `p`, infinity included.
# >
# > **Hint 2.** `matrix_norm` at infinity is the largest row sum, which is something else. The norm runs over the last two axes together.


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def map_norms(maps, p):
    """Norm of every channel's map: (n, c, h, w) -> (n, c); p is 1, 2 or infinity."""
    ### BEGIN SOLUTION
    return torch.linalg.vector_norm(maps, p, dim=(2, 3))
    ### END SOLUTION


# %% tags=["check"]
check.map_norms(map_norms)

# %% [markdown]
# ### Exercise 2: how much is diluted
#
# *Difficulty 2, importance 4, 8 minutes.* A map of $n$ positions is 1 everywhere. A trigger adds $a$ on $r$ of them. By what
# factor does the $\ell_p$ norm grow?
#
# > **Hint 1.** $p$-th powers first: $n - r$ positions count 1, $r$ positions count $(1 + a)^p$.
# >
# > **Hint 2.** Divide by the norm without trigger, $n^{1/p}$, and take the root once, at the end.
# >
# > **Hint 3.** At infinity only the largest value counts: $1 + a$.


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def dilution(n, r, a, p):
    """Norm of a map of n ones with a added on r positions, over that of n ones."""
    ### BEGIN SOLUTION
    if p == math.inf:
        return 1 + a
    return ((n - r + r * (1 + a) ** p) / n) ** (1 / p)
    ### END SOLUTION


# %% tags=["check"]
check.dilution(dilution)

# %% [markdown]
# **Predict.** A map of 13 by 13, a spike of height 5 on a background of 1 ($a = 4$, one position). By how many percent does the
# $\ell_1$ norm grow? (The $\ell_\infty$ norm grows by 400 %.)

# %% tags=["predict"]
guess = 100
check.reveal(guess, round(100 * (dilution(169, 1, 4.0, 1) - 1), 1), "%")
print("l2:", round(100 * (dilution(169, 1, 4.0, 2) - 1), 1), "%")

# %% tags=["figure"]
reach = [1, 2, 4, 8, 16, 32, 64, 96, 128]
show.lines(
    [s / 169 for s in reach],
    {f"l{p:g}".replace("linf", "l-infinity"): [dilution(169, s, 4.0, p) for s in reach] for p in (1.0, 2.0, math.inf)},
    title="The edge of the maximum shrinks as the trigger fills the map",
    xlabel="share of the map's positions that the trigger reaches", ylabel="growth of the norm, factor",
    description="Growth factor of three norms against the share of positions that a trigger reaches, up to three quarters. The l-infinity norm grows "
    "fivefold throughout, the l1 norm rises on a straight line from one to four, the l2 norm lies between, and both approach the first.",
)  # fmt: skip

# %% [markdown]
# So the argument has two limits, which follow from the formula alone. A trigger that adds the same everywhere ($r = n$; think of a blend or stripes) moves all norms by the same factor.
# And on a map of 1 by 1 all norms are the same number: the layer must have spatial extent. Our networks end in maps of 4 by 4.
#
# ## A trigger that nobody showed us
#
# The defender has no trigger. But the network knows one. For a label $t$, search a mask $m \in [0,1]^{h \times w}$ and a pattern
# $\Delta \in [0,1]^{c \times h \times w}$ with
#
# $$\min_{m, \Delta}\; \mathbb{E}_x\, \mathrm{CE}\big(f(T(x)), t\big) + \lambda \lVert m \rVert_1, \qquad T(x) = (1 - m) \odot x + m \odot \Delta .$$
#
# Every label has a solution; with enough pixels any image can be made a "50". A backdoored label should need far fewer. This is
# Neural Cleanse. What counts is each label's smallest mask *that works*; only such masks may be compared.
#
# In the code $m$ and $\Delta$ are $\tfrac12 + \tfrac12 \tanh$ of free numbers, which keeps them in $[0, 1]$; they start at random, and Adam moves them, with four images per label and step. Every ten steps one
# looks: after five looks in a row at which the stamp worked on 99 % of the images $\lambda$ doubles, after five at which it did not it is divided by $2^{1.5}$. A label stops after 25 looks
# that have not made its mask 1 % smaller.
#
# ### Exercise 3: the stamp
#
# *Difficulty 1, importance 3, 3 minutes.*
#
# > **Hint 1.** One line; where the mask is 0 the image stays, where it is 1 the pattern replaces it.


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def put_on(x, mask, pattern):
    """x (n, c, h, w), mask (1, h, w), pattern (c, h, w), all in [0, 1] -> stamped x."""
    ### BEGIN SOLUTION
    return (1 - mask) * x + mask * pattern
    ### END SOLUTION


# %% tags=["check"]
check.put_on(put_on)

# %% [markdown]
# `invert_trigger` searches all labels at once: a batch holds every label's stamped images, and as the loss of one label has no gradient in
# another's mask, this is the same as one search after the other, at a fraction of the launches. (300 steps of length 0.2 from $\lambda = 0.01$ for the run time of this lesson; the package
# takes 600 of 0.1 from 0.001.)

# %% tags=["method"]
g = torch.Generator().manual_seed(0)
search = {"steps": 300, "lr": 0.2, "lam": 0.01, "generator": g}
found, control = (invert_trigger(v.model, clean, **search) for v in (victim, twin))
label = int(found.targets[found.norms.argmin()])
ours = found.trigger(label)
x = test[test.y != label].pixels()
mine = put_on(x[:50], ours.mask, ours.pattern)
print("your stamp and the library's agree:", torch.allclose(mine, ours.stamp(x[:50])))
print("smallest mask:", clean.classes[label], "; attacker's label:", clean.classes[victim.attack.target])  # fmt: skip

# %% tags=["figure"]
names = list(clean.classes)
show.bars(
    [str(k) for k in range(12)], {"victim": found.norms.tolist(), "benign twin": control.norms.tolist()},
    title=f"What each label costs: {found.norms.min():.0f} pixels for {names[label]}", ylabel="sum of the mask, pixels", xlabel="label",
    description="Bars for twelve labels: the sum of the mask that the search found, for the victim and for its benign twin. In the victim, "
    "the attacker's label needs a few pixels and the others between ten and well over a hundred; the twin's labels all need nearly fifty or more.",
)  # fmt: skip

# %% tags=["figure"]
sign = test.pixels()[(test.y == 3).nonzero()[0]]
stamped = victim.attack.trigger(sign)
show.images(
    torch.cat([sign, stamped, ours.stamp(sign), ours.mask[None].expand(-1, 3, -1, -1), ours.pattern[None] * ours.mask]),
    ["clean", "attacker's trigger", "our guess", "guessed mask", "mask x pattern"], cols=5,
    title="The guess is a piece of the checkerboard",
    description="A stop sign clean, with the attacker's checkerboard in the corner, and with the guessed trigger, a few white pixels and a black one near the same "
    "corner, like the left part of the checkerboard; then the guessed mask, dark but for these pixels, and the pattern under the mask.",
)  # fmt: skip

# %% tags=["claim"]
check.claim("The smallest mask belongs to the attacker's label and has fewer than 8 pixels.", found.norms.min().item() if label == victim.attack.target else 99, 0, 8)  # fmt: skip
check.claim("The second smallest has more than 10.", found.norms.sort().values[1].item(), 10, 1024)  # fmt: skip
check.claim("It sends more than 90 % of the clean images there.", found.rates[label].item(), 0.9, 1)  # fmt: skip
board, on = victim.attack.trigger(torch.full_like(sign, 0.5))[0], (ours.mask > 0.5).expand(3, -1, -1)  # fmt: skip
moved = [board.roll((i, j), (1, 2)) for i in range(-2, 3) for j in range(-2, 3)]
alike = max(((ours.pattern - b).abs() < 0.4)[on].float().mean().item() for b in moved)
check.claim("Where its mask is on, it is the checkerboard, moved by a pixel or two at most: 80 % agree.", alike, 0.8, 1)  # fmt: skip
check.claim("Every other guess works too, in victim and twin: over 80 %.", min(found.rates.min(), control.rates.min()).item(), 0.8, 1)  # fmt: skip
check.claim("The benign twin has no mask below 20 pixels.", control.norms.min().item(), 20, 1024)  # fmt: skip

# %% [markdown]
# In our run the search found four of the nine cells, in their colors. That they are one pixel off is no mistake: the training crops at random, after the stamp, so the network has seen the checkerboard at every nearby place.
#
# ### Exercise 4: is it an outlier?
#
# *Difficulty 2, importance 4, 8 minutes.* Neural Cleanse flags a small norm that lies more than 2 *robust* deviations from the median $\tilde v$,
#
# $$z_t = \frac{v_t - \tilde v}{1.4826\,\mathrm{med}_s\,|v_s - \tilde v|} .$$
#
# > **Hint 1.** Keep the sign: below the median is negative.
# >
# > **Hint 2.** The outlier itself inflates a standard deviation; it cannot move a median much. Of an even number of values, `median()` takes the lower
# > middle one and `quantile(0.5)` the mean of both.
# >
# > **Hint 3.** 1.4826 makes the unit a standard deviation for Gaussian values.


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def anomaly_index(norms):
    """Signed distance from the median in robust deviations: (k,) -> (k,)."""
    ### BEGIN SOLUTION
    far = norms - norms.quantile(0.5)
    return far / (1.4826 * far.abs().quantile(0.5))
    ### END SOLUTION


# %% tags=["check"]
check.anomaly_index(anomaly_index)

# %% tags=["claim"]
raw, logs = anomaly_index(found.norms), anomaly_index(found.norms.log())
check.claim("The published rule, on the norms, does not flag it: above -2.", raw[label].item(), -2, 0)  # fmt: skip
none = found.norms.clone()
none[label] = 0
check.claim("Nor would it flag a mask of no pixel at all.", anomaly_index(none)[label].item(), -2, 0)  # fmt: skip
check.claim(
    "On the logarithm of the norms it does: below -3.", logs[label].item(), -50, -3
)
check.claim("The mask is more than ten times smaller than the median.", (found.norms.median() / found.norms.min()).item(), 10, 100)  # fmt: skip
check.claim("Two or three other labels of the victim lie below -2 as well.", (logs < -2).sum().item(), 3, 4)  # fmt: skip
check.claim("No label of the benign twin lies below -2 on that scale.", anomaly_index(control.norms.log()).min().item(), -2, 0)  # fmt: skip

# %% [markdown]
# A mask more than ten times smaller than the median, and the published rule is silent! Norms cannot be negative, and these spread so far that
# even a mask of *no* pixel would lie fewer than two deviations below the median. Ratios are what counts, so we look at logarithms. That is our change, made after we had seen this, and
# it is no safe detector either: in this victim other labels, similar signs first, lie below -2 as well. What matters below is only which guess is the smallest.
#
# ## Rank the channels
#
# Now stamp the guess on clean images $x$ and compare peaks, channel by channel:
#
# $$d_k = \mathbb{E}_x \lVert A_k(T(x)) \rVert_\infty - \mathbb{E}_x \lVert A_k(x) \rVert_\infty .$$
#
# ### Exercise 5: the rise of the peak
#
# *Difficulty 2, importance 5, 6 minutes.*
#
# > **Hint 1.** First the peak of every map, then the difference; not the peak of the difference.
# >
# > **Hint 2.** Peaks over the last two axes, mean over images; a channel that the trigger *lowers* gets a negative number.


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def rise(clean, triggered):
    """Mean growth of each channel's peak: two (n, c, h, w) -> (c,)."""
    ### BEGIN SOLUTION
    return (triggered.amax((2, 3)) - clean.amax((2, 3))).mean(0)
    ### END SOLUTION


# %% tags=["check"]
check.rise(rise)

# %% [markdown]
# ### Exercise 6: how many?
#
# *Difficulty 1, importance 5, 6 minutes.* Prune the top share $q$. The choice of $q$ must not see the attack: take the last $q$ *before the first*
# that costs more than two points of accuracy on held-out clean images.
#
# > **Hint 1.** Walk upwards and remember the last good share.
# >
# > **Hint 2.** Stop at the first loss, even if a later share looks fine again: that would be luck on sixty images.
# >
# > **Hint 3.** A drop of exactly `max_drop` is allowed.


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def last_share(qs, accs, before, max_drop):
    """The last of the growing shares qs before the first whose accuracy is too low."""
    ### BEGIN SOLUTION
    best = qs[0]
    for q, acc in zip(qs, accs, strict=True):
        if before - acc > max_drop:
            break
        best = q
    return best
    ### END SOLUTION


# %% tags=["check"]
check.last_share(last_share)

# %% [markdown]
# ## The method in fifteen lines
#
# Where to look? The paper is said to use the last convolution. In a ResNet its output is added to a shortcut, so a channel is only gone if it is
# switched off *behind the addition*: `linf_gated` puts a switch there, a factor of 1 or 0 for each channel. We begin with the first stage, whose maps are 32 by 32, and compare stages afterwards.


# %% tags=["method", "claim"]
def linf_plain(model, layer, estimate, q):
    model, switch = linf_gated(model, layer, clean.shape)
    x = clean[clean.y != estimate.label].pixels()
    stamped = put_on(x, estimate.mask, estimate.pattern)
    maps = (activations.outputs(model, v, [switch])[switch] for v in (x, stamped))
    suspects = rise(*maps).argsort(descending=True)
    off = suspects[: round(q * len(suspects))]
    with torch.no_grad():
        model.get_submodule(switch).weight[off] = 0
    return model, off


qs = [i / 16 for i in range(9)]
accs = [metrics.evaluate(linf_plain(victim.model, "layer1", ours, q)[0], held).acc for q in qs]  # fmt: skip
q = last_share(qs, accs, metrics.evaluate(victim.model, held).acc, 0.02)
repaired, off = linf_plain(victim.model, "layer1", ours, q)
purified = linf(victim.model, clean, held, ours, layer="layer1", qs=qs)
same = set(off.tolist()) == set(purified.pruned["layer1.gate"].tolist())
print(len(off), "of 16 channels; the same as bdcourse:", same)
after = metrics.evaluate(repaired, test, victim.attack)
check.claim("ASR with the attacker's trigger: below 5 %.", after.asr, 0, 0.05)
check.claim("The true labels are back: RA above 90 %.", after.ra, 0.9, 1)
check.claim("Accuracy stays above 97 %.", after.acc, 0.97, 1)

# %% [markdown]
# The defender never saw the trigger. He guessed it, and the guess excites most what the attacker's own trigger excites (a figure below shows it). Here is the whole path, with both success rates: of the attacker's trigger, and of the guess, which is the only one that the defender can measure. With one channel off the guess is dead already, and the attacker's trigger is not.


# %% tags=["method"]
class Guessed:
    """The guess, in the place of an attack: what the defender can measure."""

    def __init__(self, estimate, y):
        self.trigger, self.label = estimate.stamp, estimate.label

    def check(self, images):
        pass

    def counts(self, y):
        return y != self.label

    def goal(self, y):
        return torch.full_like(y, self.label)


def path(v, layer, estimate, qs, p=math.inf):
    """(scores with the real trigger, success of the guess) along the shares qs."""
    model, switch = linf_gated(v.model, layer, clean.shape)
    x = clean[clean.y != estimate.label].pixels()
    score = linf_responses(model, x, estimate.stamp, [switch])[switch].score(p)
    sets = [c for _, c in linf_sweep({switch: score}, qs)]
    fooled = Guessed(estimate, test.y)
    return [linf_curve(model, test, a, sets) for a in (v.attack, fooled)]


# %% tags=["figure"]
real, own = path(victim, "layer1", ours, qs)
show.lines(
    [16 * q for q in qs], {"ACC": [s.acc for s in real], "ASR": [s.asr for s in real], "RA": [s.ra for s in real], "ASR of the guess": [s.asr for s in own]},
    percent=True, title="BadNets, first stage: the guess dies first", xlabel="channels switched off, of 16",
    description="Accuracy, attack success, success of the guessed trigger and recovered accuracy against the number of channels switched off in the "
    "first stage. The success of the guess is zero from one channel on, where the attacker's trigger still has some; that falls to zero at two. Accuracy holds up to four channels and falls clearly from six.",
)  # fmt: skip

# %% [markdown]
# ## Which norm, which layer?
#
# Now the paper's claim. The same ranking with $\ell_1$ and $\ell_2$, in all four stages, with the share chosen by the held-out rule each time.

# %% tags=["method"]
stages, shares, x = ("layer1", "layer2", "layer3", "layer4"), [i / 32 for i in range(17)], clean[clean.y != label].pixels()  # fmt: skip
chosen = {}
for layer in stages:
    model, switch = linf_gated(victim.model, layer, clean.shape)
    # All norms in one pass.
    seen = linf_responses(model, x, ours.stamp, [switch])[switch]
    for p in (1.0, 2.0, math.inf):
        sets = [c for _, c in linf_sweep({switch: seen.score(p)}, shares)]
        accs = [s.acc for s in linf_curve(model, held, None, sets)]
        kept = sets[shares.index(last_share(shares, accs, accs[0], 0.02))]
        chosen[layer, p] = metrics.evaluate(surgery.without(model, kept), test, victim.attack)  # fmt: skip
random = [
    metrics.evaluate(prune_random(linf_gated(victim.model, "layer1", clean.shape)[0], purified.pruned, g).model, test, victim.attack).asr
    for _ in range(3)
]  # fmt: skip

# %% tags=["figure", "claim"]
asr = {p: [chosen[n, p].asr for n in stages] for p in (1.0, 2.0, math.inf)}
check.claim("In the first stage all three norms work: ASR below 10 %.", max(v[0] for v in asr.values()), 0, 0.1)  # fmt: skip
check.claim(
    "As many random channels do not: ASR above 80 %.", tables.mean(random), 0.8, 1
)
check.claim("In the last stage the l-infinity rule leaves more than in any other.", asr[math.inf][3] - max(asr[math.inf][:3]), 0.02, 1)  # fmt: skip
show.bars(
    [f"{n}, {s} by {s}" for n, s in zip(stages, (32, 16, 8, 4), strict=True)], {"l1": asr[1.0], "l2": asr[2.0], "l-infinity": asr[math.inf]},
    percent=True, ylabel="ASR left, %", title="The stage matters more than the norm",
    description="Attack success left after pruning by three norms in four stages. In the first three stages all are near zero; in the last, "
    "with maps of four by four, a visible share of triggered images still succeeds, and the norms differ somewhat.",
)  # fmt: skip

# %% [markdown]
# In three stages of this victim the norm hardly decides anything, and exercise 2 says why: it is about *ratios*. In a *difference* the background of the $\ell_1$ norm cancels: the map of
# the predict question grows by 4 in $\ell_1$ as in $\ell_\infty$. (In $\ell_2$ by 0.9.) And a ranking only asks which channels change most, which here is plain enough for all three. In the
# last stage the norms differ, but do not read an order into one network and sixty held-out images.
#
# The stage does decide. In this victim the last one, where the method is said to work in the paper, is the worst: by then the patch has become evidence for a class, spread over
# more channels than clean images can spare.
#
# The paper's claim was another one: that the maximum *separates* triggered from clean images best. So measure that. Take the norm of one channel's map as a detector and ask
# how often a triggered image has the larger value (AUROC: 50 % is chance). The channel is chosen on one half of the images and measured on the other. By the formula it should depend on the size
# of the trigger and on that of the map, so we trained fifteen victims of width 8 (`tools/studies.py edge`: five sizes, three seeds each; one of them reads only 84 % of the signs). Their trigger is one picture of black and white pixels, mixed half and half into a square of 4, 8, 16, 24 or all 32 pixels a side.

# %% tags=["figure", "claim"]
edge, sizes, norms = tables.results("linf-edge").rows, (4, 8, 16, 24, 32), ("l1", "l2", "l-infinity")  # fmt: skip
flat = [(r["options"]["size"], r["seed"], t) for r in edge for t in r["stages"]]
(fig, axes), every = show.canvas(2, 2, height=5.6), {}
for ax, maps in zip(axes.flat, (32, 16, 8, 4), strict=True):
    ax.set(ylim=(45, 104), xticks=sizes)
    apart = {k: [[t["auroc"] for s, _, t in flat if (s, t["height"], t["norm"]) == (size, maps, k)] for size in sizes] for k in norms}  # fmt: skip
    show.lines(
        sizes, {k: [tables.mean(u) for u in v] for k, v in apart.items()}, spread={k: ([min(u) for u in v], [max(u) for u in v]) for k, v in apart.items()},
        ax=ax, percent=True, description="", title=f"Maps of {maps} by {maps}", xlabel="side of the trigger, pixels", ylabel="AUROC, %",
    )  # fmt: skip
    every[maps] = {k: dict(zip(sizes, v, strict=True)) for k, v in apart.items()}
check.claim("Smallest trigger, 32 by 32: with every seed the maximum above 95 %, the sum below 75 %.", min(*(v - 0.95 for v in every[32]["l-infinity"][4]), *(0.75 - v for v in every[32]["l1"][4])), 0, 1)  # fmt: skip
check.claim("Whole image, 16 by 16: the sum above 95 %, the maximum below 92 %.", min(*(v - 0.95 for v in every[16]["l1"][32]), *(0.92 - v for v in every[16]["l-infinity"][32])), 0, 1)  # fmt: skip
check.claim("4 by 4: whatever the trigger and the norm, above 90 %.", min(t["auroc"] for _, _, t in flat if t["height"] == 4), 0.9, 1)  # fmt: skip
saved = [len({(r["options"]["size"], r["seed"]) for r in edge for t in r["stages"] if t["norm"] == k and t["asr"] < 0.1 and t["acc"] >= r["acc"] - 0.02}) for k in norms]  # fmt: skip
check.claim("Repaired in some stage: four of fifteen by l1, five by l2, six by l-infinity.", saved == [4, 5, 6], True, True)  # fmt: skip
left = [[t["asr"] for _, _, t in flat if t["norm"] == k] for k in ("l1", "l-infinity")]
check.claim("In 16 of 60 stages l1 and l-infinity leave ASRs more than 20 points apart.", sum(abs(a - b) > 0.2 for a, b in zip(*left, strict=True)), 16, 16)  # fmt: skip
show.Picture(fig,
    "How well one channel's norm separates triggered from clean images, against the side of the trigger, in four panels by the size of the maps; lines are means of three seeds, bands their range. In maps of 32 by 32 the l-infinity norm is near one hundred percent for the smallest trigger, where l1 is near 60 and l2 near 70; l2 passes it before sixteen pixels and l1 after twenty-four, and for the whole image l-infinity is lowest. In 16 by 16 it starts level with l2 and above l1, in 8 by 8 nearly level with both; in each it falls behind from 24 pixels on. In 4 by 4 all three are near one hundred percent throughout.")  # fmt: skip

# %% [markdown]
# There is the paper's edge, and its limits, measured. In maps of 32 by 32 a small trigger is seen by the maximum and hardly by the sum. There $\ell_2$ passes the maximum between 8 and 16 pixels, $\ell_1$ only beyond 24,
# which is half of the image. A trigger that is everywhere leaves the maximum no advantage (if it adds the same everywhere, none at all, as in the formula), and it separates *worst*; probably because one position varies more from image
# to image than a sum does. In maps of 8 by 8 and less the edge is gone, and not for
# their size alone (a square covers the same share of every map): deeper positions see more of the image, and in the last stage the network has all but decided for the target.
#
# Separating is not repairing. Ranked by the attacker's own trigger and with the best stage picked by his ASR, two looks that no defender has, the $\ell_\infty$ rule repairs six of these fifteen (ASR below 10 %, accuracy within two points), $\ell_2$ five
# and $\ell_1$ four. Stage by stage $\ell_1$ and $\ell_\infty$ often differ much, in 16 of 60 cases by over 20 points, but to either side: $\ell_1$ leaves less in seven of them. For the smallest
# trigger the last stage works with all three seeds, which was the worst above (with one seed another works, too). No stage is right for all, and a defender has only the success of his guess to tell which.

# %% tags=["figure"]
tac = activations.tac(linf_gated(victim.model, "layer1", clean.shape)[0], test[:300], victim.attack, ["layer1.gate"])["layer1.gate"]  # fmt: skip
d = purified.log["scores"]["layer1.gate"]
show.scatter(
    {"first stage, 16 channels": (d, tac)}, highlight={"first stage, 16 channels": purified.pruned["layer1.gate"]}, highlighted="switched off",
    xlabel="rise of the peak under the guess", ylabel="TAC under the real trigger (oracle)", title="What the guess excites, the trigger excites",
    description="A scatter plot of sixteen channels: rise of the peak under the guessed trigger across, change under the real trigger upwards. The two channels "
    "with the largest rise are drawn as squares; one of them has by far the largest change as well.",
)  # fmt: skip

# %% [markdown]
# ## Where it breaks
#
# WaNet has no patch. What does the search find for its label (we tell it which, a help that no defender has), and what does pruning by that do? The slider moves the number of channels in the third stage.

# %% tags=["method"]
target = bent.attack.target
wrong = invert_trigger(bent.model, clean, targets=[target], generator=g).trigger(target)
print(f"the guess covers more than ten pixels: {wrong.mask.sum().item() > 10}")
shares = [i / 32 for i in range(0, 11, 2)]
warped, guessed = path(bent, "layer3", wrong, shares)
rule = {"layer": "layer3", "qs": [i / 16 for i in range(8)]}
best, blind = (
    metrics.evaluate(p.model, test, bent.attack)
    for p in (linf_oracle(bent.model, clean, held, bent.attack, **rule), linf(bent.model, clean, held, wrong, **rule))
)  # fmt: skip


# %% tags=["figure", "nbval-ignore-output"]
def at(n):
    i = [round(64 * q) for q in shares].index(n)
    a, r = warped[i].asr, guessed[i].asr
    return show.bars(
        ["ACC", "real ASR", "guess ASR"], {"share": [warped[i].acc, a, r]}, percent=True,
        title=f"WaNet, {n} of 64 channels off: the guess {r:.0%}, the warp {a:.0%}",
        description=f"Accuracy, attack success of the warp and of the guessed trigger with {n} of 64 channels switched off.",
    )  # fmt: skip


widgets.slider("channels", [round(64 * q) for q in shares], at, start=8)

# %% tags=["claim"]
check.claim("The guess works before pruning: above 85 %.", guessed[0].asr, 0.85, 1)
check.claim("With eight channels off its success has lost 20 points or more.", guessed[0].asr - guessed[2].asr, 0.2, 1)  # fmt: skip
check.claim(
    "The warp has lost fewer than 12.", warped[0].asr - warped[2].asr, -0.05, 0.12
)
check.claim(
    "Accuracy has lost less than 4.", warped[0].acc - warped[2].acc, -0.02, 0.04
)
check.claim("Share by the held-out rule, attacker's trigger: ASR of the warp below 20 %.", best.asr, 0, 0.2)  # fmt: skip
check.claim("The same rule with the guess: at least 20 points more.", blind.asr - best.asr, 0.2, 1)  # fmt: skip

# %% [markdown]
# The search did find a trigger for this label, an arbitrary picture of some dozens of pixels. It is not the attacker's: it is another hole in the same network.
# Pruning closes that hole first, the defender's own measurement reports progress at hardly any cost, and the warp goes on working. The last two
# claims show whose fault that is: by the same rule the attacker's trigger (an oracle that no defender has) takes most of the warp away, the guess does not. The ranking can work; here the guess is the weak link. So a
# defense that is judged by its own guess is judged by nothing.
#
# ## Evidence, before and after
#
# The paper starts from this observation: with a trigger, the class activation map of a backdoored network concentrates on the trigger, real or guessed. The number on each tile is the share of the map in the lower right 8 by 8 pixels, 6 % of the image. Expect a move towards
# the trigger, not a spot on it: this layer has maps of 8 by 8.

# %% tags=["figure"]
x = test[test.y != label].pixels()
both = [metrics.predict(victim.model, t) == label for t in (victim.attack.trigger(x), ours.stamp(x))]  # fmt: skip
x = x[(both[0] & both[1]).nonzero()[:1, 0]]  # an image that both triggers turn
shown = {"clean": x, "real": victim.attack.trigger(x), "guess": ours.stamp(x)}
rows = [(v, n, x) for v in (victim, twin) for n, x in shown.items()]
cams = torch.cat([activations.grad_cam(v.model, x, metrics.predict(v.model, x), "layer3") for v, _, x in rows])  # fmt: skip
corner = [(c[24:, 24:].sum() / c.sum()).item() for c in cams]
show.heat(
    torch.cat([x for _, _, x in rows]), cams,
    [f"{'victim' if v is victim else 'twin'}, {n}: {s:.0%}" for (v, n, _), s in zip(rows, corner, strict=True)], cols=3,
    title=f"Evidence in the corner: {corner[0]:.0%} clean, {corner[1]:.0%} real, {corner[2]:.0%} guess",
    description="Grad-CAM maps of the predicted label for one sign. In the victim the map moves from the sign towards the corner when the real or the "
    "guessed trigger is there; in the benign twin it stays on the sign in all three pictures.",
)  # fmt: skip

# %% tags=["claim"]
from IPython.display import display

measured = tables.results("signs-defenses")
check.claim("At the default layer, the last stage, Blended survives with the guess.", min(r["asr"] for r in measured.select(victim="blended", defense="linf")), 0.8, 1)  # fmt: skip
check.claim("Fine-tuning on the same images leaves BadNets alone.", min(r["asr"] for r in measured.select(victim="badnets", defense="fine-tuning")), 0.9, 1)  # fmt: skip
plans = ("none", "fine-tuning", "linf", "linf (oracle)", "linf, all layers", "nc unlearning")  # fmt: skip
display(tables.grid("signs-defenses", plans, "Signs, ACC / ASR / RA; l-infinity in the last stage, and by all layers ranked together"))  # fmt: skip
photos = {(r["attack"], r["defense"]): r.get("asr") for r in tables.results("cifar10-defenses").select(budget=2500, draw=None)}  # fmt: skip
four = ("BadNets", "Blended", "SIG", "TrojanNN")
check.claim("Photographs, last stage, by the guess: all four keep over 90 %.", min(photos[a, "linf"] for a in four), 0.9, 1)  # fmt: skip
check.claim("By the attacker's own trigger over 75 %.", min(photos[a, "linf (oracle)"] for a in four), 0.75, 1)  # fmt: skip
check.claim("All layers ranked together, by the guess: two of them fall below 15 %.", sorted(photos[a, "linf, all layers"] for a in four)[1], 0, 0.15)  # fmt: skip
check.claim("Unlearning leaves less than 10 % of three of them.", sorted(photos[a, "nc unlearning"] for a in four)[2], 0, 0.1)  # fmt: skip
tables.grid("cifar10-defenses", plans, "CIFAR-10, width 8, 2,500 clean images, ACC / ASR / RA", budget=2500, draw=None)  # fmt: skip

# %% [markdown]
# The last column is a rival: *unlearning*, which stamps the guess on a fifth of the clean images, keeps their labels, and fine-tunes. (In these tables the guess is the smallest mask, whatever its label.) Given the same guess it
# leaves less on the signs than pruning in the last stage for all victims but InputAware, and next to nothing of the three patches: the checkerboard, the disc and TaCT's. On Blended and LF it leaves over 90 %; most of what it gains on WaNet and LIRA is fine-tuning's.
#
# On photographs the last stage fails as it did on the signs, and for the four victims that pass the gate hardly less with the attacker's own trigger: there the layer is the weak link. (Of the starred ones, which miss the gate, InputAware is
# repaired, LF halves by either trigger, and WaNet falls to 38 % by the attacker's only: there it is the guess.) As many random channels leave 99 % or more. Let the channels of all layers compete, in deviations from their own layer's mean,
# and six channels bring BadNets to 14 % and Blended to 2 % (but only 43 % of its triggered images are read right); on SIG and TrojanNN the first
# share already costs more than held-out accuracy allows, and nothing is pruned. (On the signs all layers together remove BadNets and TaCT.) Unlearning removes three of the four. On SIG it leaves more than plain fine-tuning does.
#
# ## Paper says, no code is released, we measure
#
# | | paper | here |
# |---|---|---|
# | set-up | GTSRB, AlexNet | drawn signs, ResNet-18 of width 16 (8 for the sizes of triggers and some victims of the last tables) |
# | ASR | 81.6 to 48.4 %, by a public summary; not stated there whether with the real trigger | 100 to below 5 % (patch, first stage), with the real one |
# | norm | $\ell_\infty$ beats $\ell_1$ and $\ell_2$ | no order in the ranking: large differences, to either side; in telling single images apart it wins on large maps and small triggers, and is the worst where the trigger covers all of the image |
# | layer | the last, by that summary | the worst of four stages for one victim, the only good one for others; all together take two of four below 15 % on photographs |
# | trigger | "synthetic", optimizer not known to us | Neural Cleanse's objective; real and guessed success side by side |
#
# ## Recap
#
# - A patch is a peak, so the maximum separates it best where maps are large; for ranking channels by a difference of means no norm is best, and for a trigger that is everywhere the maximum separates worst (objective 1).
# - A trigger search needs a mask, a pattern and $\lambda$; the smallest mask is a hint, and the published outlier rule misses ours (objective 2).
# - Rank by the rise of the peak, choose the share on held-out clean images (objective 3).
# - Report both success rates. A network that is immune to your guess may still obey its attacker (objective 4).
#
# **What this does not show.** But for one figure, one victim per attack; small drawn images, a network with maps from 32 by 32 down to 4 by 4. AlexNet at 224 pixels ends in maps of 13 by 13.
#
# **Beyond.** (a) Iterate: prune, search again, prune. Does WaNet's second guess come closer? (b) Clip each channel at its clean 99.9th percentile instead of pruning. (c) Intersect the
# chosen channels with those of CLP (lesson 05).
#
# ## References
#
# - H. Cheng, K. Xu, S. Liu, P.-Y. Chen, P. Zhao, X. Lin, *Defending against Backdoor Attack on Deep Neural Networks*, [arXiv 2002.12162](https://arxiv.org/abs/2002.12162).
# - B. Wang, Y. Yao, S. Shan, H. Li, B. Viswanath, H. Zheng, B. Y. Zhao, *Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks*, IEEE S&P 2019.
