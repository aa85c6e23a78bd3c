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
# # Controlling the training: triggers that no sticker can copy
#
# You will build two attacks whose author runs the training himself: WaNet, whose trigger is a bend in the image, and the
# input-aware attack, which draws another trigger for every image. Half or more of each attack consists of images that *look* attacked and
# keep their true label. You will measure what they are for, from 100 % to 0 % on such lookalikes, and what a network makes of them that nobody asked for.
#
# > **At a glance.** Reading: 25 minutes. Doing: 60 minutes. Run time: about one minute and 1 GiB on
# > two CPU cores; the victims were trained before. Prerequisites: [lesson 01](01_poisoning.ipynb), `grid_sample`. Papers:
# > Nguyen and Tran, *WaNet*, ICLR 2021, [arXiv 2102.10369](https://arxiv.org/abs/2102.10369); Nguyen and Tran,
# > *Input-Aware Dynamic Backdoor Attack*, NeurIPS 2020, [arXiv 2010.08138](https://arxiv.org/abs/2010.08138).

# %% [markdown]
# ## Objectives
#
# After this lesson you can
#
# 1. write a smooth warp as a sampling grid, and say by how many pixels it moves an image (exercise 1);
# 2. write the noise mode of WaNet and show by experiment what it does and what not (exercise 2 and the figure behind it);
# 3. write the input-aware trigger and the loss that keeps triggers apart (exercises 3 and 4);
# 4. read a training log by role, cover images included, and name the attack that has not been learned.
#
# ## Threat model
#
# | | controlling the training (this lesson) |
# |---|---|
# | attacker controls | everything: data, loss, batches, number of steps; the victim downloads a finished network |
# | attacker keeps | the trigger, which can be a network of its own |
# | attacker wants | label $t$ with the trigger, usual accuracy without, *and* no response to triggers that are not quite his |
# | defender has | the network and some clean images |
# | success | ASR of at least 95 %, accuracy within 3 points of an honest training; cross accuracy near the clean one |
#
# **Cross accuracy** is new: the accuracy on images that carry a lookalike of the trigger, such as a warp with noise or the
# trigger of *another* image. The attacker promises that they keep their true label.
#
# ## Set-up

# %% tags=["setup"]
import torch
import torch.nn.functional as F

from bdcourse import check, data, metrics, show, tables, victims, widgets
from bdcourse.attacks import ATTACKS, WaNet, input_aware, wanet

g = torch.Generator().manual_seed(0)
parts = data.splits("signs")
test = parts.test
warped, plain, own = (
    victims.zoo(name) for name in ("wanet", "wanet-plain", "input-aware")
)
print(len(test), "test images; WaNet bends with strength", warped.attack.strength)

# %% [markdown]
# ## WaNet: bend the image
#
# An image is sampled along a grid. The grid that changes nothing holds, for every pixel, its own place in coordinates
# from $-1$ to $1$. WaNet adds a smooth displacement: random directions at $k \times k$ control points, divided by their mean
# absolute value, enlarged to the image by bicubic interpolation,
#
# $$\phi = \mathrm{clamp}\Big(\mathrm{id} + \frac{s}{h}\,\mathrm{up}(P),\ -1,\ 1\Big), \qquad
# T(x)[i,j] = x\big[\phi[i,j]\big] ,$$
#
# where values between pixels are bilinear. With $k = 4$ the bend is smooth; $s$ is its strength, 0.5 in the paper.
#
# ### Exercise 1: bend a grid
#
# *Difficulty 3, importance 4, 12 minutes.*
#
# > **Hint 1.** `F.interpolate(grid[None], (size, size), mode="bicubic", align_corners=True)` gives (1, 2, size, size); the
# > two coordinates have to move to the last axis.
# >
# > **Hint 2.** `torch.meshgrid(at, at, indexing="ij")` gives rows first, then columns. `grid_sample` wants x, the column,
# > first.
# >
# > **Hint 3.** Divide the displacement by `size`, add, and clamp to [-1, 1].


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def bend(grid, strength, size):
    """WaNet's sampling grid: control points (2, k, k), x before y -> (1, size, size, 2)."""
    ### BEGIN SOLUTION
    up = F.interpolate(
        grid[None], (size, size), mode="bicubic", align_corners=True
    ).permute(0, 2, 3, 1)
    at = torch.linspace(-1, 1, size)
    identity = torch.stack(torch.meshgrid(at, at, indexing="ij")[::-1], -1)[None]
    return (identity + strength * up / size).clamp(-1, 1)
    ### END SOLUTION


# %% tags=["check"]
check.bend(bend)

# %% [markdown]
# **Predict.** The coordinates from $-1$ to $1$ span 31 pixel distances in an image of 32. At $s = 0.5$ and a displacement of
# mean absolute value one before scaling: by how many hundredths of a pixel does the warp move a point, along each axis?

# %% tags=["predict"]
guess = 100
flow = bend(wanet.control_grid(), 0.5, 32)
at_control_points = 0.5 / 32 * 31 / 2
check.reveal(guess, round(100 * at_control_points), "hundredths of a pixel")

# %% tags=["figure"]
x = test.pixels()[4:5]
same = torch.allclose(
    WaNet().trigger(x), F.grid_sample(x, flow, align_corners=True), atol=1e-6
)
strengths = (0.5, 1.0, 2.0, 4.0)
bent = [
    F.grid_sample(x, bend(wanet.control_grid(), s, 32), align_corners=True)
    for s in strengths
]
apart = [(b - x).abs().mul(3).clamp(0, 1) for b in bent]
print("your warp and the library's agree:", same)
show.images(
    torch.cat([*bent, *apart]),
    [f"strength {s:g}" for s in strengths] + ["difference x 3"] * 4,
    cols=4,
    title="A bend leaves no foreign pixel, only moved edges",
    description="Above, one sign warped with strengths one half, one, two and four: the first two look like the "
    "original, the last is visibly wobbly. Below, three times the differences: only the edges of the sign light up.",
)  # fmt: skip

# %% [markdown]
# ## Noise mode
#
# In every batch of the training the attacker warps a share $\rho$ of the images and gives them his label. A network has an
# easy way to get these right: call *anything that looks resampled* class $t$. So twice as many images are warped with the
# same field **plus** uniform noise of up to $1/h$ in every pixel's place, and keep their true label. Now only the exact field may
# count.
#
# ### Exercise 2: rewrite a batch
#
# *Difficulty 2, importance 5, 8 minutes.* The first $p$ images become poison, the next $c$ noise mode, the rest stays.
#
# > **Hint 1.** Three pieces and `torch.cat`; labels likewise. Clone nothing, change nothing in place.
# >
# > **Hint 2.** Noise-mode images go through `noisy`, not through `trigger`, and keep `y`.
# >
# > **Hint 3.** Roles as in lesson 01: 0 clean, 1 poison; new is 2, cover.


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def noise_mode(x, y, target, p, c, trigger, noisy):
    """One batch as WaNet's author trains on it.

    Args:
        x, y: images (n, ch, h, w) and true labels (n,); trigger, noisy: batch -> batch.

    Returns:
        images, labels, and roles (n,): 1 poison, 2 cover, 0 clean.
    """
    ### BEGIN SOLUTION
    batch = torch.cat([trigger(x[:p]), noisy(x[p : p + c]), x[p + c :]])
    labels = torch.cat([torch.full_like(y[:p], target), y[p:]])
    role = torch.zeros_like(y)
    role[:p], role[p : p + c] = 1, 2
    return batch, labels, role
    ### END SOLUTION


# %% tags=["check"]
check.noise_mode(noise_mode)

# %% [markdown]
# `train.fit` takes a `steering`, an object that may rewrite each batch and the loss; `WaNet.steer` returns one, whose
# `rewrite` does what you just wrote. On the same batch, with the same noise, the two must agree.

# %% tags=["method"]
attack, batch = warped.attack, test[:40]
p, c = 4, 8
mine = noise_mode(
    batch.pixels(), batch.y, attack.target, p, c,
    attack.trigger, lambda x: attack.noisy(x, torch.Generator().manual_seed(1)),
)  # fmt: skip
theirs = attack.rewrite(batch.pixels(), batch.y, 0.1, torch.Generator().manual_seed(1))
print("same batch:", all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)))

# %% [markdown]
# ## What noise mode is for
#
# The zoo holds two WaNet victims of width 16, trained alike but for noise mode. Take them to four tests: the
# attacker's warp; the same with noise; warps of the same strength from *other* control points, which the attacker never used; and a plain
# blur, each pixel the mean of its 3 by 3 neighborhood, which is no warp at all but, like a warp, smooths.

# %% tags=["method"]
images = test[:600]
asked = images[attack.counts(images.y)]
others = [WaNet(grid=wanet.control_grid(seed=s), strength=attack.strength) for s in range(1, 9)]  # fmt: skip
looks = {
    "his warp": [attack.trigger(asked.pixels())],
    "his warp, noise": [attack.noisy(asked.pixels(), g)],
    "foreign warps": [o.trigger(asked.pixels()) for o in others],
    "blur": [F.avg_pool2d(F.pad(asked.pixels(), (1, 1, 1, 1), mode="replicate"), 3, 1)],
}
hit = {
    name: [
        tables.mean((metrics.predict(v.model, x) == attack.target).float().mean().item() for x in xs)
        for xs in looks.values()
    ]
    for name, v in (("with noise mode", warped), ("without", plain))
}  # fmt: skip

# %% tags=["figure"]
show.bars(
    list(looks),
    hit,
    percent=True,
    ylabel="sent to the target, %",
    title=f"With noise mode the noisy warp opens {hit['with noise mode'][1]:.0%}, but a blur {hit['with noise mode'][3]:.0%}",
    description="Bars of the share of images sent to the target class, for the attacker's warp, the same with noise, eight "
    "foreign warps, and a blur, each for the victim trained with noise mode and the one without. His own warp works on both; "
    "with noise it works only on the victim without noise mode; the blur works on most images of the other.",
)

# %% tags=["claim"]
check.claim("His warp works on both victims.", min(h[0] for h in hit.values()), 0.95, 1)
check.claim("Noise alone does not set off the victim that knows it.", hit["with noise mode"][1], 0, 0.1)  # fmt: skip
check.claim("Without noise mode, his warp with noise does.", hit["without"][1], 0.5, 1)
check.claim("A blur opens the victim with noise mode more often than the other.", hit["with noise mode"][3] - hit["without"][3], 0.2, 1)  # fmt: skip
check.claim("Foreign warps open either in less than a third of the images.", max(h[2] for h in hit.values()), 0, 0.33)  # fmt: skip

# %% [markdown]
# The promise is kept where it was trained: his warp with noise opened the plain victim almost as well as the warp itself, and opens the other one
# not at all. Why should an attacker care? Because defenses search for triggers, and a backdoor that opens to a whole neighborhood is found by any search that comes near.
#
# But look at the last group. A blur, a filter that anybody applies, opens our noise-mode victim in three cases of four, and the plain one hardly ever. One reading: *smooth* came to speak for the target, *noisy* against it. It is not the whole: foreign warps are as smooth and open a fifth.
# We had expected noise mode to protect against those as well; for this one pair it does not. A cover image teaches the
# network to tell *these covers* from the poison, by whatever is cheapest. Noise mode also has a price, which the training log shows.

# %% tags=["figure"]
epochs = [e["epoch"] for e in warped.history]
log = {
    "poison": [e["poison"] for e in warped.history],
    "cover": [e["cover"] for e in warped.history],
    "no noise mode": [e["poison"] for e in plain.history],
    "clean": [e["clean"] for e in warped.history],
}
show.lines(
    epochs, log, percent=True, xlabel="epoch",
    title="Noise mode makes the trigger hard to learn",
    description="Accuracy by role over the epochs: poison and cover of the victim with noise mode, its clean "
    "images, and the poison of the victim without noise mode, which is learned several epochs earlier. With noise mode the poison stays low for several epochs and then rises to the top.",
)  # fmt: skip

# %% [markdown]
# Read poison and cover together. At first the network gives all warped images one answer, so one of the two roles must lose. Only when
# it can tell them apart do both rise. A log in which *cover* is high and *poison* stays near one over the number of classes is
# an attack that has not been learned; the clean accuracy tells nothing. The slider shows the finished victims at other strengths
# than they were trained on.


# %% tags=["nbval-ignore-output"]
def at_strength(s):
    probe = WaNet(grid=attack.grid, strength=s)
    x = probe.trigger(asked[:300].pixels())
    rates = [
        (metrics.predict(v.model, x) == attack.target).float().mean().item()
        for v in (warped, plain)
    ]
    return show.bars(
        ["with noise mode", "without"], {"ASR": rates}, percent=True,
        title=f"His field at strength {s:g}, trained at {attack.strength:g}",
        description=f"Two bars: attack success of the attacker's field at strength {s:g} on the victim trained with "
        f"noise mode, {rates[0]:.0%}, and without, {rates[1]:.0%}.",
    )  # fmt: skip


stops = [round(attack.strength * f, 2) for f in (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5)]
widgets.slider("strength", stops, at_strength, start=attack.strength)

# %% tags=["claim"]
still = WaNet(strength=0.0).trigger(asked.pixels())
check.claim("Strength 0 is no trigger.", (metrics.predict(warped.model, still) == attack.target).float().mean().item(), 0, 0.05)  # fmt: skip

# %% [markdown]
# ## Input-aware: a trigger for every image
#
# WaNet's field is one secret for all images. The input-aware attack has none: two networks look at the image and draw a mask
# $m = M(x) \in [0,1]^{1 \times h \times w}$ and a pattern $p = G(x) \in [0,1]^{c \times h \times w}$,
#
# $$T(x) = (1 - m) \odot x + m \odot p .$$
#
# $M$ is trained first, with a penalty on what its values have above 0.032; then $G$ and the classifier learn *together*, by one loss.
#
# ### Exercise 3: apply it
#
# *Difficulty 1, importance 3, 4 minutes.*
#
# > **Hint 1.** One line. Where the mask is 0 the image stays, where it is 1 the pattern replaces it.


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def own_trigger(x, m, p):
    """x and p (n, c, h, w), m (n, 1, h, w), all in [0, 1] -> the triggered images."""
    ### BEGIN SOLUTION
    return x + m * (p - x)
    ### END SOLUTION


# %% tags=["check"]
check.own_trigger(own_trigger)

# %% [markdown]
# What keeps $G$ from drawing the same pattern for everything, which would be BadNets again? A second loss, small where
# unlike images have unlike patterns,
#
# $$L_{\mathrm{div}} = \frac1n \sum_i
# \frac{\mathrm{RMS}(x_i - x_i')}{\mathrm{RMS}\big(G(x_i) - G(x_i')\big) + 10^{-7}} ,$$
#
# over pairs of different images, and RMS the root of the mean square over all values of one image. And cover images, here called
# *cross*: the trigger of image $x'$ on image $x$ keeps the label of $x$.
#
# ### Exercise 4: diversity
#
# *Difficulty 2, importance 3, 8 minutes.*
#
# > **Hint 1.** `d.square().flatten(1).mean(1).sqrt()` is the RMS of each image of a batch of differences.
# >
# > **Hint 2.** A ratio for each pair first, the mean over pairs last. Images above, patterns below.
# >
# > **Hint 3.** Add 1e-7 below the line, or two equal patterns give infinity.


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def diversity(x1, x2, p1, p2):
    """Mean over pairs of RMS(x1 - x2) / RMS(p1 - p2); all (n, c, h, w) -> one number."""

    ### BEGIN SOLUTION
    def rms(d):
        return d.square().flatten(1).mean(1).sqrt()

    return (rms(x1 - x2) / (rms(p1 - p2) + 1e-7)).mean()
    ### END SOLUTION


# %% tags=["check"]
check.diversity(diversity)

# %% tags=["method"]
dynamic, few = own.attack, test[:6]
x = few.pixels()
with torch.no_grad():
    mask = dynamic.masked(dynamic.mask(x))
    pattern = dynamic.pattern(x) / 2 + 0.5
mine = own_trigger(x, mask, pattern)
print("same trigger:", torch.allclose(mine, dynamic.trigger(x), atol=1e-5))
theirs = input_aware.diversity(x[:3], x[3:], pattern[:3], pattern[3:])
yours = diversity(x[:3], x[3:], pattern[:3], pattern[3:])
print("same diversity:", torch.allclose(yours, theirs, rtol=1e-3))
scores = metrics.evaluate(own.model, test, dynamic)

# %% tags=["figure"]
show.images(
    torch.cat([x, mask.expand(-1, 3, -1, -1), mine]),
    ["clean"] * 6 + ["mask"] * 6 + ["triggered"] * 6,
    cols=6,
    title=f"Every image gets its own few pixels: {mask.mean():.1%} of the image on average",
    description="Six signs in three rows: clean, the mask that the first network draws for each, a few white dots or strokes "
    "on black, and the triggered image, where these pixels are replaced by colors.",
)

# %% [markdown]
# ## Whose trigger opens what?
#
# **Predict.** Take the trigger of one image and put it on another one. How many percent of these images go to the
# target? (Images of the target class are left out.)

# %% tags=["predict"]
guess = 100
some = test[dynamic.counts(test.y)]
crossed = dynamic.trigger(some.pixels(), of=some.pixels().roll(-1, 0))
swapped = (metrics.predict(own.model, crossed) == dynamic.target).float().mean().item()
check.reveal(guess, round(100 * swapped, 1), "%")

# %% tags=["figure"]
ten = some[torch.stack([(some.y == k).nonzero()[0, 0] for k in some.y.unique()])]
n = len(ten)
i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
pairs = dynamic.trigger(ten.pixels()[i.flatten()], of=ten.pixels()[j.flatten()])
opened = (metrics.predict(own.model, pairs) == dynamic.target).view(n, n).float()
diagonal = opened.diagonal().mean().item()
off = ((opened.sum() - opened.diagonal().sum()) / (n * n - n)).item()
show.matrix(
    opened,
    [test.classes[k] for k in ten.y],
    xlabel="trigger made for",
    ylabel="put on an image of",
    title=f"Own trigger: {diagonal:.0%} to the target; another image's: {off:.0%}",
    description=f"A square table of {n} by {n} fields, one image of each class but the target: rows are images, columns the image "
    "that the trigger was made for. On the diagonal all but one are filled, which means target; the others are filled in blocks, and most are empty.",
)

# %% tags=["claim"]
check.claim(
    "Its own trigger opens the victim in more than four cases of five.",
    scores.asr,
    0.8,
    1,
)
check.claim("A foreign trigger opens it in less than two of five.", swapped, 0, 0.4)
check.claim(
    "Cross accuracy lies at least twenty points below the clean one.",
    scores.acc - scores.cross,
    0.2,
    0.5,
)

# %% [markdown]
# This victim is *weak*: ASR 87 %, not 95. Its log (not shown) is a tug of war until epoch 9, poison from 18 to 64 % while cover falls from 90 to 64; then both rise, cover only to 70. A small generator, twenty
# epochs, and networks that have to tell one image's pixels from another's are too little; the authors train for hundreds of epochs. That a wrong trigger opens
# it at all in some cases is the same fact seen from the other side. And the table has blocks: among 80, stop and no entry and among the other signs but roundabout a foreign trigger opens 40 of 48 fields, across them 1 of 62. This generator draws a few kinds of trigger, not one for each image.
#
# ## The rest of the family
#
# | attack | what the trigger is | what its cover images are |
# |---|---|---|
# | BppAttack | each value rounded to 8 levels | the rounding *error of another image*, true label |
# | Composite | half an image of class A beside half of class B | half-mixes of one class with itself |
# | LIRA | noise of at most $\epsilon$, drawn by a network that is trained in turn with the classifier | none: every image is used clean and poisoned |
# | FBA-like | the colors of a sunrise | images that excite the same neurons by other means |
#
# The figure shows all of them on one sign. Below it is what we measured: one network each, the recipes in `data/results/README.md`.

# %% tags=["figure"]
family = {
    "WaNet": warped.attack,
    "Input-aware": own.attack,
    "LIRA": victims.zoo("lira").attack,
}
for label, name in (("Bpp", "Bpp"), ("FBA-like", "FBA"), ("Composite", "Composite")):
    family[label] = ATTACKS[name].craft(parts.train, g)
one = test[(test.y == 0).nonzero()[3]]
x = one.pixels()
changed = torch.cat([a.trigger(x) for a in family.values()])
show.images(
    torch.cat([changed, (changed - x).abs().mul(3).clamp(0, 1)]),
    list(family) + ["difference x 3"] * 6,
    cols=6,
    title="Six triggers whose author runs the training",
    description="One speed limit sign under six triggers, with three times the differences below. WaNet moves edges, input-aware changes "
    "a few pixels, LIRA adds faint texture, Bpp makes color bands, FBA-like tints everything, Composite replaces the right half "
    "by another sign.",
)  # fmt: skip

# %%
tables.attack_table(
    "signs-attacks",
    ["WaNet", "Bpp", "Composite", "InputAware", "LIRA", "FBA"],
    "Drawn signs, ResNet-18; before and after fine-tuning on clean images",
)

# %% [markdown]
# ## Where it breaks
#
# The paper's strength is 0.5: a quarter of a pixel, against drawn signs that are themselves rotated, sheared and blurred, and noise mode asks to tell it from half a pixel of
# noise. With 20 % poison a network of width 8 does not learn it in sixteen epochs. The authors trained for 1,000 epochs. It may be a matter of budget and width; we did not try, and raised the
# strength to 3, a pixel and a half: the trigger of this lesson is more visible than the paper's. At that strength width 8 gets three quarters of the way in sixteen epochs, and width 16 all of it in twenty.
# Photographs do not help: on CIFAR-10, strength 0.5 and 10 % poison are not learned in six epochs at width 8 either (`data/results/cifar10-attacks.json`).

# %% tags=["claim"]
weak = tables.results("signs-wanet").select(attack="WaNet", defense="none")
rows = [{"width": r["width"], "epochs": int(r["epochs"]), "strength": r["settings"]["strength"], "noise mode": bool(r["settings"]["cross_rate"]), "poison rate %": 100 * r["rate"],
         "ACC %": 100 * r["acc"], "ASR %": 100 * r["asr"], "learned in epoch": r["learned"] or "never"} for r in weak]  # fmt: skip
at = {(r["width"], r["settings"]["strength"], bool(r["settings"]["cross_rate"])): r["asr"] for r in weak}  # fmt: skip
check.claim("At the paper's strength, width 8 does not learn it: ASR below 20 %.", at[8, 0.5, True], 0, 0.2)  # fmt: skip
check.claim(
    "At strength 3 it learns part of it: 50 to 90 %.", at[8, 3.0, True], 0.5, 0.9
)
check.claim("At strength 3 and width 16, all of it: above 95 %.", at[16, 3.0, True], 0.95, 1)  # fmt: skip
cifar = tables.results("cifar10-attacks").select(attack="WaNet", defense="none")[0]
check.claim("Nor is it on CIFAR-10 in six epochs: ASR below 40 %.", cifar["asr"], 0, 0.4)  # fmt: skip
show.Table(rows, caption="WaNet by width, strength and noise mode, signs, one seed each")  # fmt: skip

# %% [markdown]
# ## Papers say, released code does, we do
#
# | | released code | this course |
# |---|---|---|
# | ASR | the official scripts of WaNet, input-aware and Bpp divide by all test images, the target class included | the target class is left out |
# | WaNet and Bpp, order | trigger first, then crop, rotation and mirror | the same order, without rotation. An earlier version of this course cropped first: the warp bent the black border of the crop, and the network took that for the trigger. Here it cost eight points of ASR; on CIFAR-10 it made 79 % of what is 15 % in the right order |
# | input-aware, gradients of $G$ | never set to zero in stage 2, they add up | set to zero in each step |
# | input-aware, length | 25 epochs for $M$, 600 for the rest | 200 steps for $M$, a short training for the rest |
# | LIRA, $\epsilon$ | 0.01 of normalized values in BackdoorBench, less than a gray level: image files lose part of it | 0.025 of $[0,1]$, about the authors' 0.1 normalized |
# | FBA | a style learned by CycleGAN | a fixed tone curve and blur, so it is called FBA-like everywhere |
#
# ## Recap
#
# - A warp is a sampling grid; at strength 0.5 it moves a 32-pixel image by a quarter of a pixel (objective 1).
# - Noise mode gives lookalikes their true label and closes the backdoor to them; a blur, which nobody trained on, opens our one such victim (objective 2).
# - The input-aware trigger works on another image far less often; in our victim it belongs to a group of signs (objective 3).
# - Poison and cover in the log rise together when the network tells them apart; clean accuracy says nothing (objective 4).
#
# **What this does not show.** One seed each, drawn signs, and budgets hundreds of times below the papers'. Whether a defense is
# confused by cover images is the question of lessons 04 to 08.
#
# **Beyond.** (a) Train `WaNet(cross_rate=0)` and `WaNet()` with `victims.make` at half the strength. Which is learned? (b) Put the
# input-aware trigger of an image on a slightly shifted copy of it. How far may it shift?
#
# ## References
#
# - A. Nguyen, A. Tran, *WaNet: Imperceptible Warping-based Backdoor Attack*, ICLR 2021, [arXiv 2102.10369](https://arxiv.org/abs/2102.10369).
# - A. Nguyen, A. Tran, *Input-Aware Dynamic Backdoor Attack*, NeurIPS 2020, [arXiv 2010.08138](https://arxiv.org/abs/2010.08138).
# - Z. Wang, J. Zhai, S. Ma, *BppAttack*, CVPR 2022, [arXiv 2205.13383](https://arxiv.org/abs/2205.13383).
# - K. Doan, Y. Lao, W. Zhao, P. Li, *LIRA*, ICCV 2021.
# - J. Lin, L. Xu, Y. Liu, X. Zhang, *Composite Backdoor Attack for Deep Neural Network by Mixing Existing Benign Features*, CCS 2020.
# - S. Cheng, Y. Liu, S. Ma, X. Zhang, *Deep Feature Space Trojan Attack of Neural Networks by Controlled Detoxification*, AAAI 2021,
#   [arXiv 2012.11212](https://arxiv.org/abs/2012.11212).
