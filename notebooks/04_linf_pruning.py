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
# # L-infinity pruning: can a network be made to tell its own trigger?
#
# You are handed a network with a backdoor, and a few clean images. The trigger is
# nowhere in those images. But it is in the weights, and what is in the weights can be
# asked for. In this lesson you write the interrogation: a search that ends with a few
# pixels and a label. Then you use the answer to cut the backdoor out. **Is a
# confession enough to remove the crime?** The attack success rate (ASR) of one victim
# will fall below 10%, and of another it will not.
#
# > **At a glance.** Reading: 25 minutes. Doing: 65 minutes. Run time: about one
# > minute and 1 GiB on two CPU cores. Prerequisites: [lesson
# > 03](03_inside_a_victim.ipynb). Papers: Cheng and others, *Defending against
# > Backdoor Attack on Deep Neural Networks*, 2020, [arXiv
# > 2002.12162](https://arxiv.org/abs/2002.12162); Wang and others, *Neural Cleanse*,
# > IEEE S&P 2019.

# %% [markdown]
# ## Objectives
#
# After this lesson you can
#
# 1. say why the maximum of a map notices a patch that its sum overlooks (exercise 1);
# 2. write a trigger search from an empty page and name the suspicious label
#    (exercises 2 and 3);
# 3. rank channels by the rise of their peak and cut without asking the attacker
#    (exercises 4 and 5);
# 4. tell a network that is repaired from one that is only immune to your guess.
#
# ## Threat model
#
# | | this lesson |
# |---|---|
# | attacker | poisoned the training data; knows nothing of this defense |
# | defender has | the network and a few hundred clean images, some of them held out |
# | defender makes | a guess of the trigger, from the network alone |
# | defender may do | switch channels off; no training |
# | success | ASR with the attacker's own trigger below 10%, and signs read as before |
#
# The idea of the cut is from Cheng and others. Their abstract says that a backdoor
# "induces a significant bias in neuron activation in terms of the $\ell_\infty$ norm
# of an activation map compared to its $\ell_1$ and $\ell_2$ norm", and that pruning
# by it removes the backdoor. That abstract is all we have checked. No code is public,
# so the score, the layer and the search on this page are our choices.
#
# ## Set-up

# %% tags=["setup"]
import math

import torch
import torch.nn.functional as F

from bdcourse import activations, check, data, metrics, quiz, surgery, victims, widgets
from bdcourse.defenses import linf_curve, linf_gated, prune_random
from bdcourse.teach.figures import linf as figures

parts = data.splits("signs")
test, clean, held = parts.test[:300], parts.clean, parts.held
print(len(clean), "clean images,", len(held), "held out")

# %% [markdown]
# ## A patch is a peak
#
# Picture one channel's map of a sign: a gray landscape of small hills. A sticker of
# nine pixels lands on it, and at one spot a tower goes up. Measure the landscape by
# the total amount of earth, and the tower disappears in the rounding. Measure it by
# its highest point, and you see nothing but the tower.
#
# For the map $A_k$ of channel $k$ these are three members of one family,
#
# $$\lVert A_k \rVert_1 = \sum_{ij} |A_k[i,j]|, \qquad
# \lVert A_k \rVert_2 = \Big(\sum_{ij} A_k[i,j]^2\Big)^{1/2}, \qquad
# \lVert A_k \rVert_\infty = \max_{ij} |A_k[i,j]| .$$
#
# A sum over all positions hardly notices a spike, the maximum notices nothing else.
# How hardly? That is a formula, and it is yours to find.
#
# ### Exercise 1: how much is diluted
#
# *Difficulty 2, importance 4, 8 minutes.* A map of $n$ positions is 1 everywhere. A
# trigger adds $a$ on $r$ of them. By what factor does the $\ell_p$ norm grow?
#
# <details><summary>Hint 1</summary>
#
# Add up $p$-th powers first. How many positions still count 1, and what do the others
# count?
#
# </details>
# <details><summary>Hint 2</summary>
#
# Divide by the same sum without a trigger, and take the root once, at the end.
#
# </details>
# <details><summary>Hint 3</summary>
#
# Infinity is a case of its own: only the largest value counts.
#
# </details>


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
# **Predict.** A map of 13 by 13 positions is 1 everywhere, and a spike lifts one of
# them to 5. The maximum grows by 400%. By how many percent does the sum grow?

# %% tags=["predict"]
guess_sum = None
check.reveal(guess_sum, round(100 * (dilution(169, 1, 4.0, 1) - 1), 1), "%")

# %% tags=["figure"]
reach = [1, 2, 4, 8, 16, 32, 64, 96, 128]
norms = {"sum": 1.0, "Euclidean": 2.0, "maximum": math.inf}
curves = {k: [dilution(169, r, 4.0, p) for r in reach] for k, p in norms.items()}
figures.growth([r / 169 for r in reach], curves)

# %% [markdown]
# Read the picture from left to right, and it shows the limit as well as the idea. A
# small patch belongs to the maximum. A trigger that covers all of the map moves all
# norms alike, and the advantage is gone. Remember the right edge of this figure: one
# of our victims lives there.
#
# ## Make the network talk
#
# To see which channels peak, we need the trigger, and we have none. But we can ask
# the network a question that it cannot refuse: *what is the smallest change that
# makes you say "stop"?*
#
# A change is a mask $m$, which says where and how strongly, and a pattern $\Delta$,
# which says what is put there. Stamped on a clean image $x$ they give
#
# $$T(x) = (1 - m) \odot x + m \odot \Delta, \qquad m \in [0,1]^{h \times w}, \quad
# \Delta \in [0,1]^{c \times h \times w} .$$
#
# For a label $t$ we look for the cheapest stamp that works,
#
# $$\min_{m, \Delta}\; \mathbb{E}_x\, \mathrm{CE}\big(f(T(x)), t\big) +
# \lambda \lVert m \rVert_1 ,$$
#
# where CE is cross-entropy. The first term wants every image read as $t$. The second
# makes pixels cost something, at the price $\lambda$. This is the search of *Neural
# Cleanse*. Every label has a solution, for with enough pixels any sign becomes any
# other. A label with a backdoor should be cheap.

# %% tags=["figure"]
figures.loop()

# %% [markdown]
# What price is right? Too low, and the mask stays large. Too high, and the stamp
# stops working. So the price is steered while the search runs. Every ten steps we
# look whether the stamp has worked:
#
# ```text
# worked on 99% of the stamped images: good += 1, bad = 0; else bad += 1, good = 0
# five good looks in a row: lambda = 2 * lambda, and good starts again at zero
# five bad looks in a row:  lambda = lambda / 2^1.5, and bad starts again at zero
# of all masks that worked, remember the smallest, with its pattern
# ```
#
# ### Exercise 2: steer the price
#
# *Difficulty 2, importance 3, 8 minutes.* Write the first three lines, for many
# labels at once: each has its own $\lambda$ and its own two counts.
#
# <details><summary>Hint 1</summary>
#
# `torch.where(condition, a, b)` decides for each label by itself. Update the counts
# before you look at them.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Up and down are not each other's inverse: the price climbs by 2 and falls by more.
#
# </details>
# <details><summary>Hint 3</summary>
#
# A look of one kind sets the other count to zero. So does a count that has reached
# five.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def steer(lam, good, bad, works):
    """One look at k labels.

    Args:
        lam: (k,) prices; good, bad: (k,) looks in a row so far; works: bool (k,).

    Returns:
        lam, good, bad after the look, three new tensors.
    """
    ### BEGIN SOLUTION
    good = torch.where(works, good + 1, 0)
    bad = torch.where(works, 0, bad + 1)
    lam = torch.where(good == 5, lam * 2, lam)
    lam = torch.where(bad == 5, lam / 2**1.5, lam)
    return lam, good % 5, bad % 5
    ### END SOLUTION


# %% tags=["check"]
check.steer(steer)

# %% [markdown]
# ### Exercise 3: the whole search
#
# *Difficulty 4, importance 5, 30 minutes.* Now the interrogation itself, from an
# empty page. Two decisions are made for you. To keep $m$ and $\Delta$ between 0 and
# 1, let Adam move free numbers $u$ and use $\tfrac12 + \tfrac12 \tanh u$. As Adam's
# settings take `lr=0.2, betas=(0.5, 0.9)`, a short memory, since the price keeps
# moving the goal.
#
# Search one label after the other, or all of them in one batch. The second is faster,
# and it is exact: the loss of one label has no gradient in the mask of another.
#
# <details><summary>Hint 1</summary>
#
# Give masks the shape `(k, 1, 1, h, w)` and patterns `(k, 1, c, h, w)`. Stamping a
# batch of images then gives `(k, batch, c, h, w)`, and `flatten(0, 1)` makes it food
# for the network. Draw with `torch.randn(..., generator=generator)` and
# `torch.randint`, and return the two tensors without the extra axis.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Compute mask and pattern anew from the free numbers in every step; only the free
# numbers belong to Adam. `free.to(x)` gives them the type of the images.
#
# </details>
# <details><summary>Hint 3</summary>
#
# `loss.backward()` would fill the network's own gradients. `torch.autograd.grad(loss,
# free)` asks for those of your numbers only; put them into `.grad` and let Adam step.
#
# </details>
# <details><summary>Hint 4</summary>
#
# The loss is a sum over labels: the mean cross-entropy of each, plus its own price
# times its own mask. The rows of your batch come in the order of `labels`.
#
# </details>
# <details><summary>Hint 5</summary>
#
# Collect hits for ten steps, then look. Keep a copy of mask and pattern where the
# look was good and the mask is smaller than every earlier one. While a label has no
# good look yet, keep the newest.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def find_triggers(model, x, labels, steps, lam, generator, batch=2):
    """Smallest stamps: masks (k, 1, h, w) and patterns (k, c, h, w), all in [0, 1].

    The network is left as it is; labels (k,) says where the rows lead, lam is the first
    price, generator decides every draw, batch counts images per label and step."""
    ### BEGIN SOLUTION
    k, (c, h, w) = len(labels), x.shape[1:]
    free = [torch.randn(k, 1, d, h, w, generator=generator).to(x) for d in (1, c)]
    adam = torch.optim.Adam([u.requires_grad_() for u in free], 0.2, (0.5, 0.9))
    lam, least = torch.full((k,), lam).to(x), torch.full((k,), math.inf).to(x)
    good = bad = hits = torch.zeros(k, dtype=torch.long)
    best, goal = [torch.zeros_like(u) for u in free], labels.repeat_interleave(batch)
    for step in range(1, steps + 1):
        mask, pattern = (0.5 + 0.5 * u.tanh() for u in free)
        some = x[torch.randint(len(x), (batch,), generator=generator)]
        out = model(((1 - mask) * some + mask * pattern).flatten(0, 1))
        size = mask.flatten(1).sum(1)
        loss = F.cross_entropy(out, goal, reduction="sum") / batch + (lam * size).sum()
        free[0].grad, free[1].grad = torch.autograd.grad(loss, free)
        adam.step()
        hits = hits + (out.argmax(1) == goal).view(k, batch).sum(1)
        if step % 10 == 0:
            works, hits = hits >= 0.99 * 10 * batch, torch.zeros_like(hits)
            take = works & (size < least)
            least = torch.where(take, size.detach(), least)
            take = take | least.isinf()
            best[0][take], best[1][take] = mask.detach()[take], pattern.detach()[take]
            lam, good, bad = steer(lam, good, bad, works)
    return best[0][:, 0], best[1][:, 0]
    ### END SOLUTION


# %% tags=["check"]
check.find_triggers(find_triggers)

# %% [markdown]
# Now ask a real network. `badnets` is the victim that you have met in every lesson so
# far, and `benign` is its twin, trained alike and never poisoned. You ask both about
# all twelve signs. Two images per label and step keep this page quick.
#
# **Predict.** The attacker's trigger has nine pixels. How many pixels will the
# smallest mask of the victim have?

# %% tags=["method"]
x, every = clean.pixels(), torch.arange(clean.k)
networks = {name: victims.zoo(name) for name in ("badnets", "benign")}
told = {
    name: find_triggers(v.model, x, every, 200, 0.01, torch.Generator().manual_seed(0))
    for name, v in networks.items()
}
price = {name: masks.flatten(1).sum(1) for name, (masks, _) in told.items()}

# %% tags=["predict"]
guess_pixels = None
check.reveal(guess_pixels, round(price["badnets"].min().item(), 1), "pixels")

# %% tags=["figure"]
figures.costs(clean.classes, price["badnets"], price["benign"])

# %% tags=["claim"]
victim, twin = networks["badnets"], networks["benign"]
suspect = int(price["badnets"].argmin())
rank = 1 + int((price["badnets"] < price["badnets"][victim.attack.target]).sum())
check.claim("Rank of the attacker's label, from the cheapest.", rank, 1, 1)
times = (price["badnets"].median() / price["badnets"].min()).item()
check.claim("It is far smaller than the middle one.", times, 8, 100, "times")
lowest = price["benign"].min().item()
check.claim("The cheapest label of the twin costs far more.", lowest, 20, 500, "pixels")

# %% [markdown]
# One sign is on sale. The network has named its target, and nobody showed it a single
# attacked image. The twin has cheap and dear signs as well, but none at such a price.
#
# So where would you draw the line between cheap and suspicious? Neural Cleanse draws
# it two robust deviations below the median, and on this victim that rule stays
# silent: the honest labels differ so much among themselves that even a mask of no
# pixels would pass. *Who chose the threshold?* We shall take the smallest mask and
# claim no more than that it is the smallest.
#
# What has the network confessed? Look at the corner.

# %% tags=["figure"]
mask, pattern = (t[suspect] for t in told["badnets"])
stop = test.pixels()[(test.y == 3).nonzero()[0]]
planted = victim.attack.trigger(stop)[0]
figures.corner(planted, ((1 - mask) * stop + mask * pattern)[0], mask)

# %% [markdown]
# That is a piece of the checkerboard. It need not lie where the attacker put it, since
# a convolution reads a pattern wherever it is, and it need not be whole. The network
# never learned nine exact pixels. It learned whatever tells poisoned images apart most
# cheaply, and this is what it tells us. The slider shows what the other signs ask for:
# dots by the dozen, scattered over the image.


# %% tags=["nbval-ignore-output"]
def show_label(name):
    k = clean.classes.index(name)
    masks, patterns = told["badnets"]
    return figures.confession(name, stop[0], masks[k], patterns[k])


widgets.slider("label", list(clean.classes), show_label, start=clean.classes[7])

# %% [markdown]
# ## Follow the peak
#
# We have a stamp that the network obeys. Put it on clean images and watch every
# channel twice, without and with it. The channel whose peak rises most is the first
# suspect:
#
# $$d_k = \mathbb{E}_x \lVert A_k(T(x)) \rVert_\infty -
# \mathbb{E}_x \lVert A_k(x) \rVert_\infty .$$
#
# ### Exercise 4: the rise of the peak
#
# *Difficulty 2, importance 5, 6 minutes.*
#
# <details><summary>Hint 1</summary>
#
# The change of the peak is not the peak of the change. Which comes first?
#
# </details>
# <details><summary>Hint 2</summary>
#
# Peaks are taken over positions, means over images. A channel that the trigger
# silences has a negative score, and it should keep it.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def rise(clean, triggered):
    """Mean growth of each channel's peak: two (n, c, h, w) -> (c,)."""
    ### BEGIN SOLUTION
    before, after = (maps.amax((2, 3)) for maps in (clean, triggered))
    return (after - before).mean(0)
    ### END SOLUTION


# %% tags=["check"]
check.rise(rise)

# %% [markdown]
# ### Exercise 5: where to stop
#
# *Difficulty 2, importance 5, 6 minutes.* Cut from the top, one channel after the
# other. When is it enough? The attack success would tell, but you do not have the
# attack. You have held-out clean images. So cut as long as the network can bear it:
# take the last share *before the first* that costs more than `max_drop` of accuracy.
#
# <details><summary>Hint 1</summary>
#
# Walk upward and remember the last good share. A drop of exactly `max_drop` is still
# allowed.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Stop at the first loss, even if a later share looks fine again. On sixty images that
# is luck.
#
# </details>


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
# Your pieces join into the defense. One detail: a residual network adds a shortcut
# behind its convolutions, so a channel is silent only if it is switched off behind
# the addition. `linf_gated` puts a switch there. We cut in the first stage, where the
# maps are largest and the maximum has most to say.


# %% tags=["method"]
def cut_by_guess(v, layer, stamp, label, shares):
    """Cut what a stamp excites: what the defender sees, and what the judge sees."""
    model, switch = linf_gated(v.model, layer, clean.shape)
    some = clean[clean.y != label].pixels()
    maps = (
        activations.outputs(model, t, [switch])[switch] for t in (some, stamp(some))
    )
    order = rise(*maps).argsort(descending=True)
    sets = [{switch: order[: round(q * len(order))]} for q in shares]
    kept = [s.acc for s in linf_curve(model, held, None, sets)]
    q = last_share(shares, kept, kept[0], 0.02)
    stamped = stamp(test[test.y != label].pixels())
    obeyed = [
        metrics.predict(surgery.without(model, s), stamped) == label for s in sets
    ]
    return {
        "off": [len(s[switch]) for s in sets],
        "guess": [o.float().mean().item() for o in obeyed],
        "real": linf_curve(model, test, v.attack, sets),  # for the judge alone
        "chosen": shares.index(q),
        "sets": sets,
    }


def stamper(mask, pattern):
    return lambda images: (1 - mask) * images + mask * pattern


shares = [i / 16 for i in range(9)]
mended = cut_by_guess(victim, "layer1", stamper(mask, pattern), suspect, shares)

# %% [markdown]
# **Predict.** The first stage has sixteen channels. How many must go before the
# *attacker's* trigger succeeds on fewer than one image in ten?

# %% tags=["predict"]
guess_channels = None
rates = [s.asr for s in mended["real"]]
needed = next(n for n, r in zip(mended["off"], rates, strict=True) if r < 0.1)
check.reveal(guess_channels, needed, "channels")

# %% tags=["figure"]
figures.repair(
    *(mended[k] for k in ("off", "real", "guess")), mended["off"][mended["chosen"]]
)

# %% tags=["claim"]
after = mended["real"][mended["chosen"]]
check.claim("At the chosen cut the attack is gone: its ASR.", after.asr, 0, 0.05, "%")
check.claim("Triggered signs are read as what they are: RA.", after.ra, 0.9, 1, "%")
check.claim("Clean signs as well: accuracy.", after.acc, 0.97, 1, "%")
g, opened = (
    torch.Generator().manual_seed(1),
    linf_gated(victim.model, "layer1", clean.shape)[0],
)
same_number = mended["sets"][mended["chosen"]]
drawn = [prune_random(opened, same_number, g).model for _ in range(3)]
luck = min(metrics.evaluate(m, test, victim.attack).asr for m in drawn)
check.claim(
    "As many channels at random, the best of three draws: ASR.", luck, 0.5, 1, "%"
)

# %% [markdown]
# A few channels out, and the backdoor is gone. *Zero is not repair*, so read all
# three lines: robust accuracy (RA), the share of triggered signs that get their true
# name, has climbed as far as the attack success has fallen, and clean accuracy has
# not moved. Random channels, same number: backdoor intact. And *one draw is no
# result*, so there were three.
#
# One detail deserves a second look. At the first cut the guess is already dead, and
# the attacker's trigger still opens the network for some images. If you had watched
# the only number that a defender can watch, you would have stopped too early. Hold on
# to that gap.
#
# ## Where it breaks
#
# One confession led to one repair. Is that a rule? Take `blended`, the other victim
# of every defense lesson. Its trigger is a faint picture laid over the whole image.
# As a guest comes `wanet`, which has no pattern at all: it bends the image a little,
# like a warped mirror.
#
# We help the defender with something that no defender has, and tell them the target
# label. The search finds a stamp of some forty pixels for either victim, and it works
# on nearly every image. Cut by this guess, this time in the third stage.

# %% tags=["method"]
LAYER, goal = "layer3", torch.tensor([0])
hard, by_guess, by_truth = {}, {}, {}
for name in ("blended", "wanet"):
    hard[name] = victims.zoo(name)
    net, seed = hard[name].model, torch.Generator().manual_seed(0)
    one, two = find_triggers(net, x, goal, 200, 0.01, seed, batch=8)
    by_guess[name] = cut_by_guess(hard[name], LAYER, stamper(one[0], two[0]), 0, shares)
    own_trigger = hard[name].attack.trigger  # an oracle: no defender has it
    by_truth[name] = cut_by_guess(hard[name], LAYER, own_trigger, 0, shares)

# %% [markdown]
# **Predict.** The share is chosen on held-out images as before. Which ASR, in
# percent, does the attacker of `blended` keep?

# %% tags=["predict"]
guess_left = None
kept = by_guess["blended"]["real"][by_guess["blended"]["chosen"]]
check.reveal(guess_left, round(100 * kept.asr), "%")

# %% tags=["figure"]
figures.breaks({"blended": by_guess["blended"], "wanet": by_guess["wanet"]}, by_truth)

# %% tags=["claim"]
check.claim("Blended keeps its attack at the chosen cut: ASR.", kept.asr, 0.8, 1, "%")
cheat = by_truth["blended"]["real"][by_truth["blended"]["chosen"]]
check.claim("Ranked by its real trigger, it does too: ASR.", cheat.asr, 0.8, 1, "%")
ends = [p["wanet"]["real"][p["wanet"]["chosen"]].asr for p in (by_guess, by_truth)]
check.claim(
    "The real warp as a guide lowers WaNet's ASR.",
    100 * (ends[0] - ends[1]),
    40,
    100,
    "points",
)

# %% [markdown]
# Both attacks survive the cut that clean images chose. The oracle's panels on the right
# tell the two failures apart.
#
# **Blended breaks the ranking.** Even with the attacker's own picture as the stamp, a
# cheat that no defender could afford, no cut of this stage up to half its channels ends
# the attack. A better guess would not help here. One reading fits the right edge of our
# first figure: where a trigger fills the map, the maximum has no advantage left.
#
# **WaNet breaks the guess.** With the real warp as the stamp, the ranking finds the
# channels and the ASR falls, although not every sign gets its true name back. With the
# guess it does not. No mask and no pattern can express a warp, so the search found
# something else: another hole in the same network. At the chosen cut the guess itself
# still works on many signs. Follow the panel beyond it: there the guess dies first, and
# for a while most warped signs still obey.
#
# *Zero is not repair* has a cousin here: **a guess that dies is not an attack that
# dies.** A defense that is judged by its own guess is judged by nothing.
#
# ## Recap
#
# Can a network be made to tell its own trigger? Sometimes, and astonishingly well: a
# search that never saw an attacked image named the label of `badnets` and a piece of
# its checkerboard. Is that enough to remove it? Only if two more things hold: the
# guess must excite what the attacker excites, and what it excites must stand out as a
# peak.
#
# - The maximum of a map notices a small patch, and the sum does not; for a trigger
#   that fills the map they agree (objective 1).
# - Mask, pattern, and a price that is steered: the smallest mask that works names the
#   suspicious label (objective 2).
# - Rank by the rise of the peak, and let held-out clean images choose the cut
#   (objective 3).
# - A network that is immune to your guess may still obey its attacker (objective 4).

# %%
quiz("linf")

# %% [markdown]
# ## One open experiment
#
# The third stage was our choice. Is there a stage in which the guess repairs WaNet?
# Change `LAYER`, run the section again, and write the ASR of the chosen cut into the
# table. The control is the last column: as many random channels, three draws. Decide
# before you look which number will convince you.
#
# | stage | by the guess | by the real warp | accuracy | random, best of three |
# |---|---|---|---|---|
# | `layer1` | | | | |
# | `layer2` | | | | |
# | `layer4` | | | | |
#
# ## What this does not show
#
# There was one victim for each attack, one random start of each search, and one set
# of small drawn signs. The search ran for few steps with two images per label. The
# stage of each cut was chosen by us, who know the answers; a defender would need a
# rule for it, and this lesson has none.
#
# ## Beyond
#
# 1. Repair, search again, and cut again. Does the second guess of WaNet come closer?
# 2. Instead of switching a channel off, clip it at the highest peak that clean images
#    reach.
# 3. An attacker reads this lesson. What do they add to their training loss?
#
# <details><summary>Answers</summary>
#
# 1. The second guess is another hole, usually a dearer one. Watch the attacker's ASR
#    on the side: it is the only number that says whether the guesses are walking
#    toward the warp.
# 2. Clipping costs less accuracy, since clean images keep their peaks. It removes
#    only what lies above them, so a trigger within the usual range passes.
# 3. A penalty on the largest rise of a peak. The trigger then spreads its effect over
#    many channels and positions, and the backdoor begins to look like Blended's.
#
# </details>
#
# ## References
#
# - H. Cheng, K. Xu, S. Liu, P.-Y. Chen, P. Zhao, X. Lin, *Defending against Backdoor
#   Attack on Deep Neural Networks*, 2020, [arXiv
#   2002.12162](https://arxiv.org/abs/2002.12162).
# - B. Wang, Y. Yao, S. Shan, H. Li, B. Viswanath, H. Zheng, B. Y. Zhao, *Neural
#   Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks*, IEEE S&P
#   2019.
#
# <details><summary>Fine print: other norms, other stages, single images</summary>
#
# **Ranking.** In a difference of means the background of the sum cancels, so the
# three norms often rank alike. On `badnets` all three repair in the first stage, and
# the last stage is the worst for the maximum.
#
# **Separating single images.** The abstract speaks of a bias in the norms. We
# measured one consequence on victims of width 8 with a half transparent trigger of
# growing size: how often one channel's norm is larger on a triggered image than on a
# clean one (the area under the ROC curve).
#
# On large maps with a small trigger the maximum is nearly perfect and the sum is not;
# with a trigger as large as the image the order turns around, and on the smallest
# maps all norms do well. The runs are in `data/results/linf-edge.json`.
#
# **The outlier rule.** No norm is negative, so a small mask can lie only so far below
# the median. On the logarithm of the masks the rule does flag the attacker's label of
# `badnets`, and with it some honest ones. Both are tested in
# `tests/lessons/test_04_linf.py`, as is everything on this fold.
#
# **Settings.** The package's `invert_trigger` takes four images per label and step, a
# smaller first price and three times as many steps. `linf` ranks and cuts as you did,
# in the last stage unless told otherwise. Photographs and a rival that fine-tunes on
# the stamped guess are on the results pages.
#
# </details>
#
# ← [Inside a victim](03_inside_a_victim.ipynb) · [CLP](05_clp.ipynb) →
