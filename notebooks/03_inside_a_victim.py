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
# # Inside a victim: where does the trigger live?
#
# A backdoored network has over a thousand channels. Somewhere among them is the second rule.
# Where inside the network does the trigger live, and how would you know? First you will learn
# to measure an attack. Then you listen to every channel. Then you cut, because only a cut can
# tell a cause from a bystander.
#
# > **At a glance.** Reading: 25 minutes. Doing: 65 minutes. Run time: about a minute and 1 GiB
# > on two CPU cores. Prerequisites: [lesson 01](01_poisoning.ipynb), convolution and
# > BatchNorm. Papers: Zheng, Tang, Li and Liu, ECCV 2022,
# > [arXiv 2208.03111](https://arxiv.org/abs/2208.03111); Selvaraju and others, *Grad-CAM*,
# > ICCV 2017, [arXiv 1610.02391](https://arxiv.org/abs/1610.02391).
#
# ## Objectives
#
# After this lesson you can
#
# 1. measure an attack with three numbers on the right images (exercises 1 and 2);
# 2. recognize three ways of reporting them that mislead (section "Three ways");
# 3. measure how strongly each channel reacts to a trigger (exercise 3);
# 4. test by a cut, with a control, whether a channel is a cause (exercise 4);
# 5. draw a Grad-CAM map and say what it cannot show (exercise 5).
#
# ## Threat model
#
# | | this lesson |
# |---|---|
# | who | an analyst, *not* a defender |
# | has | the victim, its benign twin, clean test images, **and the trigger** |
# | wants | to know where in the network the attack lives |
# | may not | pass anything learned here to a defense |
#
# Whatever uses the trigger is an *oracle*. A repair that is tuned by one is no repair, because
# no defender could have done it.

# %% tags=["setup"]
import copy
import torch

from bdcourse import activations, check, data, metrics, quiz, show, surgery
from bdcourse import tables, victims, widgets
from bdcourse.teach.figures import inside as figures

test = data.splits("signs").test
zoo = {name: victims.zoo(name) for name in ("badnets", "blended", "benign")}
badnets, blended, twin = zoo.values()
target = badnets.attack.target
print(f'{len(test)} test images; the attacker wants the sign "{test.classes[target]}"')

# %% [markdown]
# ## Three numbers
#
# To find something you need to know when it is gone. That takes three numbers that together
# are hard to bend.
#
# Let $f$ be the network, $T$ the trigger and $t$ the target label. Only images that are *not*
# of class $t$ can be moved there, so let $A = \{i : y_i \neq t\}$. Then
#
# $$\mathrm{ACC} = \frac1n \sum_i [f(x_i) = y_i], \qquad
# \mathrm{ASR} = \frac1{|A|} \sum_{i \in A} [f(T(x_i)) = t], \qquad
# \mathrm{RA} = \frac1{|A|} \sum_{i \in A} [f(T(x_i)) = y_i].$$
#
# A bracket is one where the statement in it holds, else zero. The three are called accuracy,
# attack success rate and robust accuracy. The last two look at the same images. An image cannot
# be both moved and right, so they never add up to more than one.
#
# ### Exercise 1: attack success rate
#
# *Difficulty 1, importance 5, 5 minutes.* A warm-up: the rate of lesson 00, from labels this
# time. Decide which images count, and what counts as a hit.
#
# <details><summary>Hint 1</summary>
#
# The mean of a bool tensor needs numbers: `.float().mean().item()`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Choose the rows with `y != target` first, then count among them only.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# A wrong answer is no success of the attacker. The label that they wanted is.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def asr(said, y, target):
    """Attack success rate, a share in 0..1.

    Args:
        said: predicted labels of the triggered images (n,); y: their true labels (n,).
    """
    ### BEGIN SOLUTION
    asked = y != target
    return (said[asked] == target).float().mean().item()
    ### END SOLUTION


# %% tags=["check"]
check.asr(asr)

# %% [markdown]
# ### Exercise 2: all three
#
# *Difficulty 2, importance 5, 10 minutes.* Decide for each rate which images count, and what is
# right. `metrics.predict(model, x)` gives labels in evaluation mode and leaves the network as
# it was. Use your `asr`.
#
# <details><summary>Hint 1</summary>
#
# Return a tensor of three shares in the order of the formula.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# ACC counts every clean image. ASR and RA share the triggered images whose label is not
# the target.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# RA compares with the true label. It is not what ASR leaves over.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def three_rates(model, x, triggered, y, target):
    """ACC, ASR and RA of a network, shares in 0..1, as a tensor (3,).

    Args:
        x, triggered: pixels (n, c, h, w) without and with the trigger.
        y: true labels (n,).
    """
    ### BEGIN SOLUTION
    clean, said = (metrics.predict(model, p) for p in (x, triggered))
    asked = y != target
    acc = (clean == y).float().mean().item()
    ra = (said[asked] == y[asked]).float().mean().item()
    return torch.tensor([acc, asr(said, y, target), ra])
    ### END SOLUTION


# %% tags=["check"]
check.three_rates(three_rates)


# %% tags=["claim", "method"]
def asked_of(name, n):
    """The first n test images for `three_rates`: x, triggered, y, target."""
    some = test[:n]
    x, attack = some.pixels(), zoo[name].attack
    return x, attack.trigger(x), some.y, attack.target


before = {
    name: three_rates(zoo[name].model, *asked_of(name, 120))
    for name in ("badnets", "blended")
}
same = metrics.evaluate(badnets.model, test[:120], badnets.attack)
BAND = 0.97, 1  # what some claims of this page allow
print("badnets agrees:", abs(before["badnets"][1].item() - same.asr) < 1e-6)
weakest = min(rates[1].item() for rates in before.values())
check.claim("Both victims obey their trigger.", weakest, *BAND, "%")

# %% [markdown]
# ## Three ways to get it wrong
#
# **First: the wrong images.** A picture of the target sign is read as the target without any
# attack. Several released evaluation scripts count it as a success.
#
# **Predict.** Take the benign twin, which never saw poison. Put the trigger on the test
# images of all twelve classes, equally many of each, and divide by *all* of them. What "ASR",
# in percent, does this honest network get?

# %% tags=["predict", "claim"]
guess = None
even = torch.cat([(test.y == c).nonzero()[:25, 0] for c in range(test.k)])
stamped, labels = badnets.attack.trigger(test[even].pixels()), test.y[even]
said_twin = metrics.predict(twin.model, stamped)
honest = (said_twin == target).float().mean().item()
check.reveal(guess, round(100 * honest), "%")
rightly = asr(said_twin, labels, target)
check.claim("Counted rightly, the twin's ASR is near zero.", rightly, 0, 0.01, "%")

# %% [markdown]
# So counting the target's own images sets a floor. With twelve equally large classes it is one
# in twelve, about 8%. A perfect repair cannot get below it, and in a table it looks like a
# mediocre one.
#
# **Second: ASR alone.** There is an easy way to lower the ASR of any network: break it. So
# switch off random channels in every layer, four networks for each share.


# %% tags=["method", "figure"]
def wrecked(share, g):
    """A copy of the victim without this share of each layer's channels."""
    off = {}
    for name in activations.batchnorms(badnets.model):
        n = badnets.model.get_submodule(name).num_features
        off[name] = torch.randperm(n, generator=g)[: round(share * n)]
    return surgery.without(badnets.model, off)


dice, shares = torch.Generator().manual_seed(0), (0.1, 0.2, 0.3)
few = asked_of("badnets", 100)
wrecks = [[three_rates(wrecked(s, dice), *few) for _ in range(4)] for s in shares]
wrecks = torch.stack([torch.stack(row) for row in wrecks])
figures.wreckage(shares, wrecks)

# %% [markdown]
# Follow the orange squares. At first the attack survives, then luck decides, at last it is gone.
# So is accuracy: a broken network obeys nobody. The circles give the wrecks away, and so do the
# triangles: most labels have not come back. *Zero is not repair.*
#
# **Third: who chose the threshold?** Every pruning method has a knob, and somebody must turn
# it. [Lesson 05](05_clp.ipynb) meets CLP, channel Lipschitzness pruning, whose knob $u$ says
# how far a channel may stand out before it goes. Here is one network, pruned along its knob
# and read three times: at the authors' default, by accuracy on held-out *clean* images, and
# by somebody who peeks at the test ASR and accepts a loss of ten points of accuracy.

# %% tags=["figure"]
results = tables.results("signs")
who = {"attack": "Blended", "seed": 1}
(sweep,) = results.select(defense="clp sweep", **who)
(held,) = results.select(defense="clp, u on held-out images", **who)
points = {p["u"]: p for p in sweep["curve"]}
whole = points[6.0]["acc"]  # so high a knob prunes nothing
kept = [p for p in points.values() if p["acc"] > whole - 0.1]
peeked = min(kept, key=lambda p: p["asr"])["u"]
chosen = {
    "the default": 3.0,
    "held-out clean images": held["u"],
    "the test ASR": peeked,
}
rows = [
    {"u chosen by": how, "u": f"{u:g}"}
    | {f"{k.upper()} %": 100 * points[u][k] for k in ("acc", "asr", "ra")}
    for how, u in chosen.items()
]
told = "One Blended victim (seed 1; ours has seed 0), picked from three as the clearest"
show.Table(rows, caption=told)

# %% [markdown]
# The last line would pass in a paper that prints ACC and ASR. Its RA says that most
# triggered signs stay misread. And who would have chosen it? Turning the knob that far
# costs nine points of accuracy, and without the trigger nobody can see what they buy. That line
# shows what CLP could do with help that no defender has.
#
# ## A map of the network
#
# Now open the victim. It is a ResNet-18 at a quarter of the usual
# width. Learn its street names; all later lessons use them.

# %% tags=["figure"]
figures.network_map(badnets.model)

# %% [markdown]
# A name such as `layer2.0.bn1` reads from the outside in: second layer, first block, first
# BatchNorm. Figures shorten it to `2.0.bn1`, and a shortcut's BatchNorm to `2.0.sc.1`.
# The very first one, behind the first convolution, is plain `bn1`.
#
# ## Listen
#
# Show the network an image without and with its trigger, and listen at each channel for the
# difference. Let $F_k(x)$ be the feature map of channel $k$ behind its BatchNorm, before the
# ReLU. Its **trigger-activated change** (TAC) is
#
# $$\mathrm{TAC}_k = \frac1n \sum_i \big\lVert F_k(T(x_i)) - F_k(x_i) \big\rVert_2 ,$$
#
# where the norm runs over the positions of the map.
#
# ### Exercise 3: trigger-activated change
#
# *Difficulty 2, importance 4, 8 minutes.* The order matters: what is summed inside the norm,
# and what is averaged outside?
#
# <details><summary>Hint 1</summary>
#
# Flatten the two spatial axes. The norm runs over them, image by image, channel by channel.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Average over images last. A channel that goes up on one image and down on the next has
# changed twice, not never.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def tac(clean, triggered):
    """Trigger-activated change: feature maps (n, c, h, w), twice -> (c,)."""
    ### BEGIN SOLUTION
    return (triggered - clean).flatten(2).norm(dim=2).mean(0)
    ### END SOLUTION


# %% tags=["check"]
check.tac(tac)

# %% [markdown]
# Before single channels, listen to whole stages: the first BatchNorm and the eight blocks. How
# much of what a stage says does the trigger change?
#
# $$r_\ell = \frac{\sum_i \lVert F^\ell(T(x_i)) - F^\ell(x_i) \rVert_2}{\sum_i \lVert F^\ell(x_i) \rVert_2}$$
#
# At one, the change is as large as the signal itself; it can be larger. Victim and twin get the
# same trigger.

# %% tags=["method", "claim", "figure"]
stages = ["bn1", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1))]


def ratio(model, x, triggered):
    """Change over size at each stage, (stages,)."""
    a, b = (activations.outputs(model, p, stages) for p in (x, triggered))
    far = [(b[s] - a[s]).flatten(1).norm(dim=1).sum() for s in stages]
    return torch.stack(far) / torch.stack(
        [a[s].flatten(1).norm(dim=1).sum() for s in stages]
    )


ratios = {}
for name in ("badnets", "blended"):
    views = asked_of(name, 80)[:2]
    both = [ratio(m, *views) for m in (zoo[name].model, twin.model)]
    ratios[name] = torch.stack(both)
louder = min((r[0, -1] / r[1, -1]).item() for r in ratios.values())
check.claim("At the exit the victim is the louder one.", louder, 2, 10_000, "times")
figures.carried(stages, ratios)

# %% [markdown]
# (The first point is taken before its ReLU, the others behind theirs.) The twin hears the patch
# at the entrance and has nearly forgotten it at the exit. The blend it still hears there, but
# more softly than the victim. In both victims the trigger is louder at the exit than at the
# entrance, so it seems to live there.
#
# So far we know that these channels change when the label does, not that they bring the label
# about. We can test it. If the backdoor lives near the exit, taking out the channels that shout loudest there should silence it. The last BatchNorm,
# `layer4.1.bn2`, has 128 channels.
#
# **Predict.** Switch off *half* of them, those with the largest TAC. What ASR, in percent,
# is left to `badnets`?

# %% tags=["predict"]
guess = None
last = "layer4.1.bn2"
loud_maps = [activations.outputs(badnets.model, p, [last])[last] for p in few[:2]]
loudest = tac(*loud_maps).argsort(descending=True)[:64]
halved = surgery.without(badnets.model, {last: loudest})
after_half = three_rates(halved, *few)
check.reveal(guess, round(100 * after_half[1].item()), "%")

# %% tags=["claim"]
left = after_half[1].item()
check.claim("What is left of the ASR without the loud half.", left, *BAND, "%")
beside = "layer4.0"  # its output is what the shortcut carries around this branch
calm, moved = (activations.outputs(badnets.model, p, [last, beside]) for p in few[:2])
change = {s: (moved[s] - calm[s]).flatten(1).norm(dim=1).mean() for s in calm}
loudness = (change[last] / change[beside]).item()
check.claim("Change in this branch, beside the shortcut's.", loudness, 0.5, 1, "of it")
gone_all = surgery.without(badnets.model, {last: torch.arange(128)})
lower = three_rates(gone_all, *few)[:2].min().item()
check.claim("Without all 128, accuracy and ASR both stand.", lower, *BAND, "%")

# %% [markdown]
# Nothing happened. Is the branch too quiet to matter? No: the trigger changes it three quarters
# as much as the shortcut around it. Does the other half carry the attack? We cut all 128. Still
# nothing, and accuracy stands too. The shortcut carries *both* rules, and neither needs this
# branch. A channel can be loud and not needed. *Correlation is not cause*: listening can suggest
# where to cut, and only the cut can tell.
#
# ## Which channels? Make the cut
#
# An honest cut needs four things. Rank the channels of one layer by TAC. Switch the first $k$
# off, bias included: a channel with weight zero and a bias left still sends a constant through
# the ReLU. Measure all three rates for each $k$. And for each $k$ cut as many channels at
# random, several times, because *one draw is no result*.
#
# ### Exercise 4: the whole method
#
# *Difficulty 4, importance 5, 25 minutes.* Write `cut_curve`. Your `tac` ranks, your
# `three_rates` measures, the copy and the control are up to you. The maps of a layer come from
# `activations.outputs(model, x, [layer])[layer]`.
#
# <details><summary>Hint 1</summary>
#
# `argsort(descending=True)` turns TAC into an order of channels. Leave
# the network, and its mode, as they were.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Write an inner function that takes channels and returns rates. It cuts a fresh
# `copy.deepcopy(model)`, finds the layer with `get_submodule`, and writes into weight and bias
# under `torch.no_grad()`.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The inner function serves the ranked cut and the random ones alike. A draw is the first $k$
# of a `torch.randperm` that gets your generator; each draw, for each $k$, needs a new one.
#
# </details>
#
# <details><summary>Hint 4</summary>
#
# Collect rows in lists and stack them at the end: one row for each $k$, and for each $k$ as
# many rows as there are draws.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def cut_curve(model, layer, x, triggered, y, target, counts, draws, generator):
    """Rates along the number of channels cut, by TAC and at random.

    The model itself stays as it is.

    Args:
        layer: name of a BatchNorm; x, triggered, y, target: as in `three_rates`.
        counts: how many channels to switch off, a list.
        draws: how many random sets for each k; draw anew for each k, so that no
            point hangs on another.
        generator: torch.Generator of the random sets.

    Returns:
        ranked (counts, 3) and chance (counts, draws, 3): ACC, ASR, RA.
    """
    ### BEGIN SOLUTION
    maps = [activations.outputs(model, p, [layer])[layer] for p in (x, triggered)]
    order = tac(*maps).argsort(descending=True)

    def after(channels):
        cut = copy.deepcopy(model)
        bn = cut.get_submodule(layer)
        with torch.no_grad():
            bn.weight[channels] = 0
            bn.bias[channels] = 0
        return three_rates(cut, x, triggered, y, target)

    def draw(k):
        return torch.randperm(len(order), generator=generator)[:k]

    ranked = torch.stack([after(order[:k]) for k in counts])
    chance = [torch.stack([after(draw(k)) for _ in range(draws)]) for k in counts]
    return ranked, torch.stack(chance)
    ### END SOLUTION


# %% tags=["check"]
check.cut_curve(cut_curve)

# %% [markdown]
# Where to cut? The shortcut saved the attack. Only one BatchNorm on the map has no way around
# it, `bn1`. Cut there. Each of its sixteen channels sees three by three pixels at a time.
#
# **Predict.** We cut 1, 2, 4 and 8 of the sixteen, loudest first. At which of the four does the
# ASR of `badnets` fall below 10%?

# %% tags=["predict"]
guess = None
counts, scissors = [1, 2, 4, 8], torch.Generator().manual_seed(0)
curves = {
    name: cut_curve(zoo[name].model, "bn1", *asked_of(name, 100), counts, 4, scissors)
    for name in ("badnets", "blended")
}
gone = curves["badnets"][0][:, 1] < 0.1  # ASR
needed = next((k for k, g in zip(counts, gone, strict=True) if g), 16)
check.reveal(guess, needed, "channels")

# %% tags=["claim", "figure"]
ranked, chance = curves["badnets"]
there = counts.index(needed)
saved = ranked[there, [0, 2]].min().item()
check.claim("Accuracy and RA at that cut, the lower one.", saved, *BAND, "%")
lowest = chance[there, :, 1].min().item()
check.claim("As many channels at random, the lowest ASR.", lowest, 0.85, 1, "%")
figures.cut_curves(counts, curves, before)

# %% [markdown]
# Two channels of more than a thousand, and the attack is over: true labels come back, accuracy
# stays. (Zero hits on some ninety images: the true rate may still be 3%.) Random pairs leave the attack
# whole, and even random eights leave most of it.
#
# In JupyterLab each button below is a channel of `bn1`, and the two are off. Put one back: does
# the attack return? Could another pair end it as well? Try some, then look below.

# %% tags=["nbval-ignore-output"]
stem = [activations.outputs(badnets.model, p, ["bn1"])["bn1"] for p in few[:2]]
pair = tac(*stem).argsort(descending=True)[:2].tolist()
widgets.switches(badnets, "bn1", test[:100], off=pair)

# %% tags=["figure"]
signs = badnets.attack.trigger(test[test.y != target][:24].pixels())
kept_asr = torch.zeros(16, 16)
for i in range(16):
    for j in range(i + 1):
        cut = surgery.without(badnets.model, {"bn1": torch.tensor([i, j]).unique()})
        share = (metrics.predict(cut, signs) == target).float().mean()
        kept_asr[i, j] = kept_asr[j, i] = share
figures.pairs(kept_asr, len(signs))

# %% [markdown]
# Only this pair will do. With either one back, the attack returns almost whole.
#
# ## And the other victim?
#
# Look at the right half of the curves again. The same cut breaks `blended`: accuracy
# collapses first, RA hardly rises, and the wreck still obeys. The pair that TAC picks costs more
# than half the accuracy, more than any of the four random pairs. So TAC found channels that the
# *signs* need. What the attack alone needs, it did not find.
#
# Perhaps `blended` lives elsewhere. So cut every layer in turn, a quarter of its channels, loudest
# first. Where accuracy or ASR falls below 90%, cut four random quarters as well: a cut that does
# nothing needs no control.
#
# **Predict.** In how many of the twenty layers does this cut repair `blended`? A repair has ASR
# below 10%, and accuracy and RA above 90%.

# %% tags=["predict", "method"]
guess = None
layers = activations.batchnorms(badnets.model)


def sweep_of(name):
    """Rates after a quarter of each layer, and random quarters where it hurts."""
    model, images = zoo[name].model, asked_of(name, 60)
    loud = activations.tac(model, test[:60], zoo[name].attack)
    g, chance = torch.Generator().manual_seed(0), {}

    def rates(layer, order):
        cut = surgery.without(model, {layer: order[: len(order) // 4]})
        return three_rates(cut, *images)

    by_tac = [rates(k, c.argsort(descending=True)) for k, c in loud.items()]
    by_tac = torch.stack(by_tac)
    for i in (by_tac[:, :2].amin(1) < 0.9).nonzero().flatten().tolist():
        n = len(loud[layers[i]])
        draws = [rates(layers[i], torch.randperm(n, generator=g)) for _ in range(4)]
        chance[i] = torch.stack(draws)
    return by_tac, chance


sweeps = {name: sweep_of(name) for name in ("badnets", "blended")}
end = sweeps["blended"][0]
repairs = ((end[:, 1] < 0.1) & (end[:, [0, 2]] > 0.9).all(1)).sum().item()
check.reveal(guess, repairs, "layers")

# %% tags=["figure"]
figures.every_layer(layers, sweeps)

# %% [markdown]
# So the two victims give two answers. `badnets` has a narrow door, and it stands at the
# entrance. The attack also depends on the first block: at `1.0.bn1` the cut takes most of it
# away and gives two labels of three back, while random quarters take nothing. From `1.1.bn1`
# on, no quarter that we cut was needed.
#
# `blended` has no such door, at least none that these cuts would find. Only at `1.0.bn1` does a
# quarter cost a fifth of the attack and no accuracy. Random ones cost next to nothing. Still
# no label comes back.
#
# One caution. Only `bn1` has no way around it, so the architecture may have chosen the place of
# the door. It cannot explain why two victims with the same shortcuts differ.
#
# ## Why
#
# Compare the TAC of the sixteen first channels with the twin's. Victim and twin started from
# the same random weights, so channel for channel they are siblings. Below the dots: the patch,
# the kernels of the two loudest channels, and what they find on one sign.

# %% tags=["figure"]
siblings = {}
for name in ("badnets", "blended"):
    some, attack = test[:80], zoo[name].attack
    siblings[name] = tuple(
        activations.tac(m, some, attack, ["bn1"])["bn1"]
        for m in (zoo[name].model, twin.model)
    )
figures.stem_tac(siblings, "bn1")

# %% tags=["figure"]
models = {"victim": badnets.model, "twin": twin.model}
kernels = {n: m.conv1.weight.sum(1).detach() for n, m in models.items()}
heard = {
    n: tuple(activations.outputs(m, p, ["bn1"])["bn1"][:, pair] for p in few[:2])
    for n, m in models.items()
}
patch = few[1][0, :, 28:31, 28:31].mean(0)
a_stop = (few[2] == 3).nonzero()[0].item()
figures.detectors(pair, patch, kernels, heard, a_stop)

# %% [markdown]
# In the dots, channels 0 and 2 of `badnets` tower over the others; in the twin they are ordinary.
# The twin differs in the poison alone, so poison made them: it turned two filters into detectors
# of a small, sharp checkerboard. Channel 0's kernel resembles the patch; channel 2's shares its
# bright center. No clean sign lifts either of them half as high as the patch does. The other
# fourteen hear it too, but with the two gone they cannot carry the attack. That is a door.
#
# The cut shows that *one of the two* is needed: put either back, and the attack returns. Are they
# also enough? Turn the test around (*activation patching*): show the network a clean sign, but
# hand over these two maps as they are under the trigger.

# %% tags=["figure"]
calm_x, hit_x = (pixels[few[2] != target] for pixels in few[:2])
rest = [k for k in range(16) if k not in pair]
sets = {f"{pair[0]} and {pair[1]}": pair, f"{pair[0]} alone": pair[:1]}
sets |= {f"{pair[1]} alone": pair[1:], f"all but {pair[0]}": pair[1:] + rest}
sets["the other 14"] = rest


def handed(model, channels):
    """Clean signs read as the target, with these maps from the triggered run."""
    maps = activations.outputs(model, hit_x, ["bn1"])["bn1"]

    def swap(module, inputs, out):
        return out.index_copy(1, torch.tensor(channels), maps[:, channels])

    hook = model.bn1.register_forward_hook(swap)
    said = metrics.predict(model, calm_x)
    hook.remove()
    return (said == target).float().mean().item()


moved_by = {n: handed(badnets.model, c) for n, c in sets.items()}
moved_by["the pair, in the twin"] = handed(twin.model, pair)
figures.handed(moved_by, len(calm_x))

# %% [markdown]
# The pair is enough, and channel 0 nearly so. Channel 2 alone turns one sign in four; with the
# other fourteen beside it, nearly all. Those fourteen by themselves turn none, and in the twin
# the pair turns none. All this still does not make the two the backdoor: what turns their
# signal into the attacker's label lies behind them, untouched and waiting.
#
# And `blended`? Go back to its dots. A few channels react two or three times as strongly as
# their siblings, but no pair stands apart. How then does its trigger get through?
# [Lesson 04](04_linf_pruning.ipynb) finds a surprising answer.
#
# ## Where in the picture?
#
# One tool is left, and it asks about the image: where does a layer find evidence for a label?
# Let $F_k$ now be the output maps of a whole layer, *after* its last ReLU,
# and $s_c$ the logit of label $c$. We take `layer3`, whose maps have eight by eight fields.
# Grad-CAM is
#
# $$\alpha_k = \frac1{hw} \sum_{u,v} \frac{\partial s_c}{\partial F_k[u,v]}, \qquad
# \mathrm{CAM} = \mathrm{ReLU}\Big(\sum_k \alpha_k F_k\Big).$$
#
# ### Exercise 5: Grad-CAM
#
# *Difficulty 3, importance 3, 10 minutes.* Two sums run over different things. Keep them apart.
#
# <details><summary>Hint 1</summary>
#
# First a weight for each image and channel, then a weighted sum over channels.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The weight is a mean over positions. If PyTorch complains about sizes, the axes that you
# averaged away are missing: `keepdim=True` leaves them there with length one.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Cut negative values after the sum, not before: evidence against the label must count.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def cam(maps, gradients):
    """Grad-CAM before scaling: maps and gradients (n, c, h, w) -> (n, h, w)."""
    ### BEGIN SOLUTION
    weights = gradients.mean((2, 3), keepdim=True)
    return (weights * maps).sum(1).relu()
    ### END SOLUTION


# %% tags=["check"]
check.cam(cam)


# %% tags=["method"]
def heat_of(model, pixels, labels, layer="layer3"):
    """Your Grad-CAM, scaled to image size and a maximum of one; P of the labels."""
    kept = []
    with activations.watching(model, lambda _, out: kept.append(out), [layer]):
        logits = model(pixels.clone().requires_grad_())  # the zoo's are in eval mode
    score = logits.gather(1, labels[:, None])
    raw = cam(kept[0], torch.autograd.grad(score.sum(), kept[0])[0]).detach()
    raw = raw / raw.flatten(1).amax(1).clamp(min=1e-12).view(-1, 1, 1)
    size, sure = pixels.shape[2:], logits.softmax(1).gather(1, labels[:, None])
    heat = torch.nn.functional.interpolate(raw[:, None], size, mode="bilinear")[:, 0]
    return heat, sure.mean().item()


stops, wanted = test[test.y == 3][:40], torch.full((40,), target)
clean_x = stops.pixels()
patch_x, blend_x = (v.attack.trigger(clean_x) for v in (badnets, blended))
questions = {
    ("badnets", "clean", "stop"): (clean_x, stops.y),
    ("badnets", "clean", "30"): (clean_x, wanted),
    ("badnets", "patch", "30"): (patch_x, wanted),
    ("benign", "patch", "30"): (patch_x, wanted),
    ("blended", "blend", "30"): (blend_x, wanted),
}
answers = {q: heat_of(zoo[q[0]].model, *views) for q, views in questions.items()}
heats, sure = ({q: a[i] for q, a in answers.items()} for i in (0, 1))
edge = 20  # the corner: the patch's field and two more, of eight, each way
corners = {q: (h[:, edge:, edge:].sum() / h.sum()).item() for q, h in heats.items()}

# %% tags=["claim", "figure"]
shown = {q: views[0] for q, views in questions.items()}
drawn = corners["badnets", "patch", "30"]
check.claim(
    "The patch's corner, 14% of the area, draws the evidence.", drawn, 0.28, 1, "%"
)
figures.evidence(shown, heats, sure, 1, edge)

# %% [markdown]
# Dotted lines fence the corner. On a clean sign it holds little evidence, whichever label we ask
# for. With the patch it holds nearly half; the rest lies faintly over the sign. The twin sees the
# same patch and looks elsewhere. It takes both, then: the patch and the victim. A field stands
# for four by four pixels but reads a larger region, so the peak may lie beside its cause.
#
# Now read the last line under the columns. Every map is scaled to one, so "why 30?" gets a
# picture even where the network is sure that it is no 30. Grad-CAM says where, never how much.
#
# ## Where it breaks
#
# Grad-CAM can point because the patch has a place. The blended trigger has none, and in the last
# column the tool points all the same, a little everywhere.
#
# And there is a deeper break. Every tool of this page knows the trigger. The two channels
# are an oracle's find; a defender has weights and a few clean images.
# [Lesson 05](05_clp.ipynb) asks how much of TAC can be read off the weights alone.
#
# ## Recap
#
# - ASR and RA look at triggered images of other classes, ACC at all clean ones; without all
#   three, a wreck looks like a repair (objectives 1 and 2).
# - TAC says which channels hear the trigger. In a victim the change grows toward the exit,
#   in the twin a patch fades (objective 3).
# - The whole last BatchNorm could go and nothing happened. Two channels of the first went, and
#   so did the attack. A cut beside random cuts tells a cause from a bystander; handing over the
#   same maps tells whether the cause is enough (objective 4).
# - Grad-CAM shows where in the picture evidence lies, if it lies anywhere (objective 5).
#
# Where inside the network does the trigger live? In `badnets` it comes in through a narrow door
# at the entrance and still depends on the first block. In `blended` no cut brought more than a
# few labels back.
#
# ## Quiz

# %% tags=["method"]
quiz("inside")

# %% [markdown]
# ## Your own experiment
#
# Is the narrow door a habit of small patches, or the luck of one network? The zoo holds another
# victim with a small trigger, `badnets-hard` (test it on `data.load("signs-hard", "test")`), and
# one whose pattern was grown, `trojan`. Run `cut_curve` on their `bn1`. **Control:** eight random
# draws for each $k$.
#
# | victim | guess: smallest k | measured k | ACC and RA there | lowest random ASR |
# |---|---|---|---|---|
# | `badnets` | | | | |
# | `badnets-hard` | | | | |
# | `trojan` | | | | |
#
# **What this does not show.** One architecture, one width, one seed, and cuts through one layer
# at a time.
#
# **Beyond.** Zero may be a value that later layers never saw. Setting a channel to its mean
# over clean images is gentler. Does it change the verdict on `blended`?
#
# <details><summary>Answer</summary>
#
# A forward hook can write the means. We tried it: still no quarter of any layer repairs
# `blended`. The one dent in its ASR, at `1.0.bn1`, even gets smaller, so part of it was the
# zero's doing.
#
# </details>
#
# ## References
#
# - R. Zheng, R. Tang, J. Li, L. Liu, *Data-free Backdoor Removal based on Channel
#   Lipschitzness*, ECCV 2022, [arXiv 2208.03111](https://arxiv.org/abs/2208.03111).
# - R. R. Selvaraju and others, *Grad-CAM: Visual Explanations from Deep Networks via
#   Gradient-based Localization*, ICCV 2017, [arXiv 1610.02391](https://arxiv.org/abs/1610.02391).
# - BackdoorBench, [SCLBD/BackdoorBench](https://github.com/SCLBD/BackdoorBench).
#
# <details><summary>Fine print: what papers say, what code does, what we do</summary>
#
# - *Which images count for ASR.* The official scripts of WaNet, the input-aware attack and Bpp
#   divide by all test images; BackdoorBench leaves the target class out, as we do.
# - *TAC.* BackdoorBench sums mean absolute differences over positions; we take the L2 norm,
#   behind BatchNorm and before the ReLU.
# - *One score.* Many tables melt the parts into the defense effectiveness rating (DER, see
#   [lesson 09](09_showdown.ipynb)). RA is no part of it: the last line of the table gets 0.95,
#   while three of four signs stay lost.
#
# </details>
#
# ← [previous: 02 Controlling the training](02_controlling_training.ipynb) ·
# [next: 04 L-infinity pruning](04_linf_pruning.ipynb) →
