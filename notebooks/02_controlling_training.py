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
# # Controlling the training: a bend that opens the door
#
# In lesson 01 the attacker slipped images into somebody else's training set and
# hoped. Tonight they own the machine. They pick every batch, every label and every
# step, and you download what comes out.
#
# **What can an attacker do who runs the training, and not only poisons the data?** You
# will sit in their chair. You will write a trigger that adds no pixel, train a network
# that obeys it more than nine times in ten, and then find a second door in it that not
# even the attacker knows about.
#
# > **At a glance.** Reading: 25 minutes. Doing: 70 minutes. Run time: under two
# > minutes and 1 GiB on two CPU cores, most of it your own training. Prerequisites:
# > [lesson 01](01_poisoning.ipynb), `grid_sample`. Paper: Nguyen and Tran, *WaNet*,
# > ICLR 2021, [arXiv 2102.10369](https://arxiv.org/abs/2102.10369).

# %% [markdown]
# ## Objectives
#
# After this lesson you can
#
# 1. write a smooth warp as a sampling grid, with noise and without (exercises 1 and 2);
# 2. rewrite a batch so that lookalikes of the trigger keep their true label (exercise
#    3);
# 3. write a training loop with an attacker inside, and train a victim with it (exercise
#    4);
# 4. show by intervention what a network took for the trigger (exercise 5).
#
# ## Threat model
#
# | | poisoned data (lesson 01) | controlled training (this lesson) |
# |---|---|---|
# | attacker controls | a few images and labels | data, loss, order, every step |
# | victim | trains the network | downloads the network |
# | attacker can afford | a trigger easy to learn | a trigger hard to learn |
# | attacker wants | label $t$ with the trigger | also no answer to lookalikes |
# | defender has | the network, a few clean images | the network, a few clean images |
#
# As in lesson 01, **ASR** is the attack success rate and **ACC** the accuracy on clean
# images. The gate asks for an ASR of at least 95% and an ACC within 3 points of the
# **benign twin**, the same network trained without an attack.
#
# ## Set-up

# %% tags=["setup"]
import torch
import torch.nn.functional as F

from bdcourse import check, data, metrics, quiz, show, tables, victims, widgets
from bdcourse.attacks import WaNet, wanet
from bdcourse.teach.figures import training as figures

parts = data.splits("signs")
signs = parts.test[:400]
asked = signs[signs.y != 0]  # the target, class 0, is a speed limit: 30
print(len(parts.train), "training images, target:", parts.test.classes[0])
print("Where nothing else is said, shares are of", len(asked), "test signs.")

# %% [markdown]
# ## The idea: bend, don't paint
#
# A sticker can be seen, cropped out or painted over. WaNet leaves no sticker. It takes
# the pixels that are there and reads them from slightly wrong places, as an uneven pane
# of glass would.

# %% tags=["figure"]
figures.warp_grid(asked.pixels()[3], WaNet(strength=4))

# %% [markdown]
# From left to right: random arrows sit on a coarse grid $P$ of $k \times k$
# points. An arrow says from where its point is read, so the picture moves the other
# way. Bicubic interpolation, written $\mathrm{up}$, fills in between the arrows and
# makes one smooth field. Along that field the image is read, with bilinear
# interpolation between pixels.
#
# In formulas: the grid that changes nothing, $\mathrm{id}$, holds for each pixel its
# own place, in coordinates from $-1$ to $1$. WaNet adds the field,
#
# $$\phi = \mathrm{id} + \frac{s}{h}\,\mathrm{up}(P), \qquad
# T(x)[i,j] = x\big[\mathrm{clamp}(\phi[i,j], -1, 1)\big] .$$
#
# Here $h$ is the side of the image, $s$ is the strength, and $P$ is scaled so that its
# mean absolute value is one. The field is drawn once. It is the attacker's key.
#
# ### Exercise 1: bend a grid
#
# *Difficulty 3, importance 4, 12 minutes.* Write $\phi$, without the clamp.
#
# <details><summary>Hint 1</summary>
#
# `F.interpolate` wants a batch axis in front, and for this paper `mode="bicubic"` and
# `align_corners=True`. Its two channels must end up on the last axis.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `torch.meshgrid(at, at, indexing="ij")` gives rows first, then columns. `grid_sample`
# wants x, the column, first.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# At strength 0 only the identity may be left. What goes beyond 1 stays there for now:
# exercise 2 clamps.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def bend(grid, strength, size):
    """The sampling grid of WaNet.

    Args:
        grid: control points (2, k, k), x before y; strength: s; size: h.

    Returns:
        the places to read from, (1, size, size, 2), x before y, not clamped.
    """
    ### BEGIN SOLUTION
    up = F.interpolate(grid[None], (size, size), mode="bicubic", align_corners=True)
    at = torch.linspace(-1, 1, size)
    rows, columns = torch.meshgrid(at, at, indexing="ij")
    identity = torch.stack([columns, rows], -1)[None]
    return identity + strength * up.permute(0, 2, 3, 1) / size
    ### END SOLUTION


# %% tags=["check"]
check.bend(bend)

# %% [markdown]
# **Predict.** The paper uses strength one half. In an image of 32 pixels, the
# coordinates from $-1$ to $1$ span 31 steps from pixel to pixel. An arrow is one long
# in x. By how many *hundredths of a pixel* does it move its point in x?

# %% tags=["predict"]
guess = None
one_arrow = bend(torch.ones(2, 4, 4), 0.5, 32) - bend(torch.ones(2, 4, 4), 0, 32)
check.reveal(guess, round(100 * one_arrow.mean().item() * 31 / 2), "hundredths")

# %% [markdown]
# ## Noise mode: only this bend
#
# Put yourself in the network's place. You are shown bent signs with the attacker's
# label. Which rule is the cheapest that fits? Perhaps not "bent in this particular way",
# but just "bent". We will measure it.
#
# The attacker does not want that. If every bend opens the door, a defender who searches
# for triggers need only come close. So the attacker also trains on lookalikes: the same
# bend plus a small random jitter at each pixel. These keep their *true* label,
#
# $$\phi' = \phi + \frac{a}{h}\,u, \qquad u[i,j] \sim \mathrm{Uniform}(-1, 1)^2 .$$
#
# The paper calls this **noise mode** and uses $a = 1$. Images like these are **cover**
# images: they exist to teach the network what is *not* the trigger.
#
# ### Exercise 2: sample with noise
#
# *Difficulty 3, importance 4, 10 minutes.* With `noise` zero your function is
# the trigger. With `noise` one it is noise mode.
#
# <details><summary>Hint 1</summary>
#
# `F.grid_sample(x, places, align_corners=True)` reads x at places (n, h, w, 2). If the
# batch has n images, then so must the places: broadcasting an addition can do that.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `torch.rand(shape, generator=generator)`: which shape gives every image, every pixel
# and both directions a draw of their own?
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `rand` fills 0 to 1, and you need -1 to 1. Divide by the size, add, and only then
# clamp, so that nothing is read from outside the image.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def noisy_warp(x, flow, noise, generator):
    """The images x, read at the places of `flow` plus noise.

    Args:
        x: (n, c, size, size); flow: (1, size, size, 2), not clamped.
        noise: a, the largest jitter, in units of 1 / size; 0 is the plain warp.

    Returns:
        the warped images, as large as x.
    """
    ### BEGIN SOLUTION
    n, size = len(x), x.shape[-1]
    jitter = 2 * torch.rand((n, size, size, 2), generator=generator) - 1
    places = (flow + noise * jitter / size).clamp(-1, 1)
    return F.grid_sample(x, places, align_corners=True)
    ### END SOLUTION


# %% tags=["check"]
check.noisy_warp(noisy_warp)

# %% tags=["figure"]
figures.by_strength(asked.pixels()[3:4], bend, noisy_warp)

# %% [markdown]
# The second row is noise mode: jitter frays the edges. At the paper's strength you would
# hardly notice the bend. Your own training uses strength 4, because a small network has
# to learn it while you wait. That is a visible wobble.
#
# ### Exercise 3: rewrite a batch
#
# *Difficulty 2, importance 5, 8 minutes.* The first $p$ images of a batch
# become poison, the next $c$ become cover, the rest stays as it is.
#
# <details><summary>Hint 1</summary>
#
# Three pieces and one `torch.cat`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Which of the three pieces gets a new label? Look at the second one twice.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Roles as in lesson 01: 0 for clean, 1 for poison. New is 2 for cover.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def noise_mode(x, y, target, p, c, trigger, noisy):
    """One batch as the attacker wants it.

    Args:
        x, y: images (n, ch, h, w) and true labels (n,).
        trigger, noisy: functions from images to images.

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
# ## Take over the loop
#
# The whole attack is an ordinary training loop with one extra line: before the network
# sees a batch, the attacker does.
#
# ### Exercise 4: train with an attacker inside
#
# *Difficulty 4, importance 5, 25 minutes.* In each of `steps` steps:
#
# 1. draw a batch at random and hand it to `attacker(images, labels, progress)`, where
#    progress is the share of steps that are done; it returns images, labels and roles;
# 2. take one step of SGD on the cross-entropy of what came back: Nesterov momentum 0.9,
#    weight decay 0.0005, and a rate that falls in a straight line from `lr` towards
#    zero;
# 3. ten times in all, note for each role the share of its images that got the label they
#    were trained on. Count on the outputs that the loss used, and start from zero after
#    each note.
#
# <details><summary>Hint 1</summary>
#
# `torch.randint(len(x), (batch,), generator=generator)` draws positions. The stored
# pixels are bytes, and networks here take 0 to 1.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The network is in training mode while it learns, and in eval mode when you hand it
# back. In step number `step`, counted from zero, `step / steps` is done.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `opt.param_groups[0]["lr"]` may be set anew in every step. Which labels does the loss
# see? And what happens to the gradients of the step before?
#
# </details>
#
# <details><summary>Hint 4</summary>
#
# Keep two tensors of three numbers, how many were right and how many were seen;
# `right.index_add_(0, role, hits)` sorts a batch into them. Divide, note, start anew.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def hijack(model, x, y, attacker, steps, lr, batch, generator):
    """Train `model` in place on batches that the attacker rewrites; leave it in eval.

    Args:
        x, y: uint8 images (n, c, h, w) and labels (n,).

    Returns:
        a list of ten rows [clean, poison, cover], the shares right since the last row;
        ten also where `steps` is no multiple of ten, the last at the last step.
    """
    ### BEGIN SOLUTION
    how = {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    opt = torch.optim.SGD(model.parameters(), lr, **how)
    notes, right, seen = [], torch.zeros(3), torch.zeros(3)
    model.train()
    for step in range(steps):
        opt.param_groups[0]["lr"] = lr * (1 - step / steps)
        index = torch.randint(len(x), (batch,), generator=generator)
        bx, by, role = attacker(x[index].float() / 255, y[index], step / steps)
        out = model(bx)
        opt.zero_grad()
        F.cross_entropy(out, by).backward()
        opt.step()
        right.index_add_(0, role, (out.argmax(1) == by).float())
        seen.index_add_(0, role, torch.ones(batch))
        if 10 * (step + 1) // steps > 10 * step // steps:
            notes.append((right / seen).tolist())
            right, seen = torch.zeros(3), torch.zeros(3)
    model.eval()
    return notes
    ### END SOLUTION


# %% tags=["check"]
check.hijack(hijack)

# %% [markdown]
# Telling a bend from the same bend with a tiny jitter is
# hard. But whoever runs the training decides the order of the lessons. So the jitter
# starts loud: $a$ falls from 4 to the paper's 1 over the first half.
#
# The loop starts from a benign network of the zoo, which is also
# your twin. Of the 32 images in a batch, twelve become poison and twelve become cover.
# The gate is measured on the whole test set, with the library's own WaNet.

# %% tags=["method"]
TARGET, STRENGTH, STEPS = 0, 4, 800
flow = bend(wanet.control_grid(), STRENGTH, 32)
dice = torch.Generator().manual_seed(1)


def attacker(x, y, progress):
    loud = 1 + max(0, 3 - 6 * progress)
    return noise_mode(
        x,
        y,
        TARGET,
        12,
        12,
        lambda some: noisy_warp(some, flow, 0, dice),
        lambda some: noisy_warp(some, flow, loud, dice),
    )


mine = victims.zoo("benign-w8").model
log = hijack(mine, parts.train.x, parts.train.y, attacker, STEPS, 0.05, 32, dice)

# %% tags=["claim"]
twin = victims.zoo("benign-w8").model
scores = metrics.evaluate(mine, parts.test, WaNet(strength=STRENGTH))
before = metrics.evaluate(twin, parts.test, WaNet(strength=STRENGTH))
check.claim("ASR: over 90%; the gate asks for 95%.", scores.asr, 0.9, 1, "%")
loss = before.acc - scores.acc
check.claim("Clean signs: it loses under 3 points.", 100 * loss, -3, 3, "points")

# %% tags=["figure"]
stored = tables.results("signs-hijack").rows  # runs of the same loop
figures.roles(log, STEPS, stored)

# %% [markdown]
# Read poison and cover together. A network that cannot tell them apart wins on one what it
# loses on the other: at best about half of the two together, the gray line. On the left
# both lag behind the clean images, then climb side by side, and arrive.
#
# Was it the loud covers, or their order? The right panel takes the two apart; your run is
# seed 1, the squares. With jitter one throughout, our only run stays far below, though it
# had a quarter more steps. With the same loud covers *shuffled*, each seed gets less far
# than in order, and none through the gate. *One draw is no result*: in order, too, one
# seed of three misses it.
#
# So order helped, three times of three. Loud covers could be slipped into anybody's data
# set. Their order is up to whoever trains. And only the attacker, who knows the poison,
# can draw this figure.
#
# ## What noise mode is for
#
# The zoo holds two larger WaNet victims, trained alike by the package's loop, with a bend of
# strength 3. One had noise mode, the other never saw a cover image. Both pass the gate.
# Beside them stands their benign twin.
#
# **Predict.** Take the one *without* noise mode and show it the attacker's bend plus
# full jitter. How many percent go to the target?

# %% tags=["predict"]
guess = None
stock = {"with noise mode": "wanet", "without": "wanet-plain", "twin": "benign"}
zoo = {name: victims.zoo(where) for name, where in stock.items()}
key = bend(wanet.control_grid(), 3, 32)
again = torch.Generator().manual_seed(1)
jittered = noisy_warp(asked.pixels(), key, 1, again)
plain = (metrics.predict(zoo["without"].model, jittered) == TARGET).float().mean()
check.reveal(guess, round(100 * plain.item()), "%")

# %% tags=["method"]
still = torch.Generator().manual_seed(2)
others = [bend(wanet.control_grid(seed=k), 3, 32) for k in range(1, 5)]
probes = {
    "the attacker's bend": [noisy_warp(asked.pixels(), key, 0, still)],
    "the same, with jitter": [jittered],
    "another bend": [noisy_warp(asked.pixels(), b, 0, still) for b in others],
}


def sent(model, x):
    return (metrics.predict(model, x) == TARGET).float().mean().item()


def opened(model):
    return {name: [sent(model, x) for x in some] for name, some in probes.items()}


opens = {name: opened(victim.model) for name, victim in zoo.items()}

# %% tags=["figure"]
figures.opened(opens)

# %% tags=["claim"]
quiet, open_door, _ = (opens[n]["the same, with jitter"][0] for n in zoo)
check.claim("Noise mode closes the door to jitter.", quiet, 0, 0.1, "%")
check.claim("Without it, jitter walks in.", open_door, 0.8, 1, "%")

# %% [markdown]
# Noise mode refuses what it was trained to refuse: jitter. Now look at the four bends with
# a *different* key. The plain victim never believed in "any bend": it answers about a tenth
# of them at most, the twin hardly any. And noise mode, which was meant to say "only
# this bend"? In this pair, three of the four open *two to six times* as many signs with
# it as without, and the fourth nearly ties. One pair proves no rule, but these covers
# showed jitter and nothing else.
#
# ## The surprise: out of focus
#
# Here is a picture change that no attacker designed. Replace each pixel by the mean of
# itself and its eight neighbors. That is a blur, the kind a cheap lens adds. It bends
# nothing.
#
# **Predict.** How many percent of the blurred signs does *your* victim send to the
# target?

# %% tags=["predict"]
guess = None
edge = F.pad(asked.pixels(), (1, 1, 1, 1), mode="replicate")
blur = F.avg_pool2d(edge, 3, 1)
check.reveal(guess, round(100 * sent(mine, blur)), "%")

# %% [markdown]
# Perhaps a blurred sign just looks like a 30? Ask the twin. Perhaps it is a quirk of your
# network? *One draw is no result*: ask the zoo. And a blur is only one way to lose
# sharpness. Another: move the whole sign half a pixel left and up, so that each pixel
# becomes nearly the mean of four.

# %% tags=["claim"]
straight = bend(wanet.control_grid(), 0, 32)
shifted = noisy_warp(asked.pixels(), straight + 1 / 32, 0, dice)
networks = {"your victim": mine, "its twin": twin}
networks |= {f"zoo, {name}": victim.model for name, victim in zoo.items()}
doors = {
    look: {name: sent(model, x) for name, model in networks.items()}
    for look, x in {"blur": blur, "half-pixel shift": shifted}.items()
}
check.claim("A blur opens your victim.", doors["blur"]["your victim"], 0.25, 1, "%")
check.claim("The twin takes no notice.", doors["blur"]["its twin"], 0, 0.1, "%")

# %% tags=["figure"]
figures.door(asked.pixels()[3], blur[3], doors)

# %% [markdown]
# So it is a second door, and not only yours. The zoo's victim was trained from scratch by
# another loop, and it opens too. Its partner without noise mode hardly does.
#
# ### Why?
#
# Every sign here has grain, a little noise in each pixel, like a photograph. A bend
# reads *between* pixels. That averages neighbors, and the grain fades. Jitter reads between
# pixels too, but each pixel goes its own way, and edges fray. So of two bent signs, the
# smooth one is poison and the frayed one is cover: a cheap way to tell them apart. And a
# blur is smoother still.
#
# *Correlation is not cause*, so intervene: put grain back on the blurred signs, until
# they are as rough as clean signs again. **Roughness** is how far a pixel lies, on
# average, from the mean of its four neighbors.
#
# ### Exercise 5: give the grain back
#
# *Difficulty 3, importance 4, 10 minutes.* Return
# $\mathrm{clip}(x + \sigma n,\ 0,\ 1)$ with Gaussian grain $n$ and one $\sigma$ for the
# batch. Which $\sigma$? Search for it: the more grain, the rougher.
#
# <details><summary>Hint 1</summary>
#
# `torch.randn(x.shape, generator=generator)` is drawn once, then only scaled.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The right sigma lies between 0 and 1. Halve that interval twenty times. Which half do
# you keep when the result is too smooth?
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Clipping eats grain where a sign is black or white. Measure what you would return.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def roughness(x):
    up_down = x[..., 2:, 1:-1] + x[..., :-2, 1:-1]
    sides = x[..., 1:-1, 2:] + x[..., 1:-1, :-2]
    return 255 * (x[..., 1:-1, 1:-1] - (up_down + sides) / 4).abs().mean().item()


def roughen(x, goal, generator):
    """The images x (n, c, h, w) with as much grain as gives them the roughness `goal`.

    Returns:
        new images in [0, 1], whose roughness is within 1% of `goal`.
    """
    ### BEGIN SOLUTION
    grain = torch.randn(x.shape, generator=generator)
    low, high = 0.0, 1.0
    for _ in range(20):
        sigma = (low + high) / 2
        out = (x + sigma * grain).clamp(0, 1)
        low, high = (sigma, high) if roughness(out) < goal else (low, sigma)
    return out
    ### END SOLUTION


# %% tags=["check"]
check.roughen(roughen)


# %% tags=["method"]
def grainy(x):
    """As rough as clean signs."""
    return roughen(x, roughness(asked.pixels()), torch.Generator().manual_seed(4))


def cloudy(x):
    """As much noise as the grain, in soft clouds: the control, for it stays smooth."""
    soft = torch.randn((len(x), 3, 8, 8), generator=torch.Generator().manual_seed(4))
    soft = F.interpolate(soft, (32, 32), mode="bicubic", align_corners=True)
    return (x + soft * (grainy(x) - x).std() / soft.std()).clamp(0, 1)


fray = torch.Generator().manual_seed(3)
bent = noisy_warp(asked.pixels(), flow, 0, fray)
looks = {
    "clean": asked.pixels(),
    "half-pixel shift": shifted,
    "blur": blur,
    "bend": bent,
    "blur + grain": grainy(blur),
    "blur + clouds": cloudy(blur),
    "blur + jitter": noisy_warp(blur, straight, 1, fray),
    "bend + grain": grainy(bent),
    "bend + jitter": noisy_warp(asked.pixels(), flow, 1, fray),
}
why = {name: (roughness(x), sent(mine, x)) for name, x in looks.items()}

# %% tags=["figure"]
figures.causes(why)

# %% tags=["claim"]
check.claim("Blur + grain: under 25%.", why["blur + grain"][1], 0, 0.25, "%")
read = (metrics.predict(mine, looks["blur + grain"]) == asked.y).float().mean()
check.claim("It reads over 70% of these correctly.", read, 0.7, 1, "%")
zoo_bend = grainy(probes["the attacker's bend"][0])
grained = {name: sent(victim.model, zoo_bend) for name, victim in zoo.items()}
gap = 100 * (grained["without"] - grained["with noise mode"])
check.claim("The zoo's bend + grain: noise mode loses more.", gap, 30, 100, "points")

# %% [markdown]
# Made as rough as clean signs, the blurred ones hardly get in. So part of what your
# victim took for the trigger is smoothness. Does any noise close the door? No: as much
# of it in soft clouds, which keep the image smooth, leaves it open. Does grain blind the
# network? No: it reads most of these signs again.
#
# It wants the bend smooth as well: with grain, about a third of the bent signs stay out.
# In the zoo, after the same grain, the noise-mode victim sends about 70 points fewer bent
# signs to the target than the plain one.
#
# Smoothness is not all. The bend is rougher than the shifted sign and opens far more, so
# its shape counts too. And jitter seems to do more than roughen: the blur with jitter is as
# rough as the shifted sign, yet hardly any gets in.
#
# So the attacker closed one neighborhood of the trigger and opened another. Covers teach
# a network to tell *these covers* from the poison. By what, it chooses itself. Nobody
# asked for a blur trigger. Nobody looked.
#
# ## How much bend is enough?
#
# Drag the bend and read what your victim says.


# %% tags=["nbval-ignore-output"]
def bent_by(strength):
    places = bend(wanet.control_grid(), strength, 32)
    said = metrics.predict(mine, noisy_warp(asked.pixels(), places, 0, dice))
    share = f"{(said == TARGET).float().mean().item():.0%}"
    return show.images(
        noisy_warp(asked.pixels()[:6], places, 0, dice),
        [parts.test.classes[k] for k in said[:6].tolist()],
        wrong=(said[:6] == TARGET).tolist(),
        title=f"Strength {strength:g}: {share} of {len(asked)} signs are read as a 30",
        description=f"Six signs bent with strength {strength:g}, and above each what "
        f"your victim reads. Of {len(asked)} signs it reads as a 30: {share}.",
    )


widgets.slider("strength", [0, 1, 2, 3, 4, 5, 6], bent_by, start=2)

# %% tags=["figure"]
figures.strengths({"twin": twin, "victim": mine}, signs, WaNet(), STRENGTH)

# %% [markdown]
# The curve has no sharp step at the trained strength: half of it already opens most signs.
# Even a slight bend smooths, and its shape is the same. What was *planted* is one bend at
# one strength. What was *learned* is wider.
#
# ## Where it breaks
#
# Here are four stored runs of the package's loop, one
# seed each, in a network as small as yours.

# %% tags=["claim"]
runs = tables.results("signs-wanet").select(attack="WaNet", width=8)
for run in runs:
    covers = "with" if run["settings"]["cross_rate"] else "without"
    bent_how = f"strength {run['settings']['strength']:g}, {covers} noise mode"
    print(f"{bent_how}: ASR {run['asr']:.0%}")
drowned = runs[0]["asr"]
check.claim("Noise mode drowns the paper's strength here.", drowned, 0, 0.2, "%")

# %% [markdown]
# We hardly see a bend of one half, yet without covers it is mostly learned. So it is not
# too weak for this network. Add noise mode, and hardly anything is learned; at strength 3
# the attack gets three quarters, still short of the gate. Perhaps the lookalikes are too
# like the trigger: at one half, jitter moves a pixel in each direction by $0.5/h$ on
# average, as far as the bend moves its control points.
#
# The authors train for a thousand epochs, we for sixteen. More of them, or loud jitter
# first, may help. So an attack that controls the training can *fail*.
#
# ## One step further: a trigger that learns
#
# So far the attacker wrote the trigger and the network learned it. In **LIRA** (Doan et
# al., ICCV 2021) both learn. A second network $G$ draws a faint pattern for each image, and
# the trigger is $T(x) = \mathrm{clip}(x + \varepsilon\,G(x))$. The classifier $C$ and
# $G$ take turns, with CE for cross-entropy:
#
# $$\min_C\ \alpha\,\mathrm{CE}(C(x), y) + (1-\alpha)\,\mathrm{CE}(C(T(x)), t),
# \qquad \min_G\ \mathrm{CE}(C(T(x)), t) .$$
#
# The trigger looks for what this network reacts to, and the network learns to react
# more. Whoever only poisons data cannot answer like that.

# %% tags=["figure"]
figures.lira(asked, victims.zoo("lira"), twin)

# %% [markdown]
# A pixel changes by about six gray levels at most, and this victim of the zoo passes the
# gate. But look at what the two networks agreed on. Two of these signs get a pair of
# broad blobs, the other two nothing but a flat red. Now give every sign one and the same
# color, the mean of what $G$ adds. That tint alone opens more than half of them, and the
# twin does not react. Again something simpler was learned along with the plan.
#
# ## Recap
#
# What can an attacker do who runs the training?
#
# - They can use a trigger that adds nothing: a bend, written as a sampling grid
#   (objective 1).
# - They can train *against* their own trigger's lookalikes, by cover images with true
#   labels (objective 2).
# - They can order the lessons, which nobody can who only hands over data, and watch by
#   role what is learned (objective 3).
# - They cannot choose what the network makes of it. Yours also opens to a plain blur, and
#   grain closed most of that door again (objective 4).

# %%
quiz("training")

# %% [markdown]
# ## Open experiment: close the second door
#
# Train again, with four clean images of
# each batch *blurred* under their true label. **Control:** the same
# seeds without the blurring. *One draw is no result*: take three.
#
# | victim, three seeds | ASR | blur | half-pixel shift | other bends |
# |---|---|---|---|---|
# | as trained above (control) | | | | |
# | four of the clean images blurred | | | | |
#
# <details><summary>Some starting code</summary>
#
# ```python
# def blurring(x, y, progress):
#     images, labels, role = attacker(x, y, progress)
#     edge = F.pad(images[-4:], [1] * 4, mode="replicate")
#     images[-4:] = F.avg_pool2d(edge, 3, 1)
#     return images, labels, role
#
# dice.manual_seed(seed)
# mine2 = victims.zoo("benign-w8").model
# hijack(mine2, parts.train.x, parts.train.y, blurring, STEPS, 0.05, 32, dice)
# ```
#
# Take the other bends at `STRENGTH`.
#
# </details>
#
# Does a third door open?
#
# **What this does not show.** Drawn signs, a visible strength, three victims, a budget far
# below the papers'. Whether smoothness matters on photographs, or at the paper's
# strength, is open.
#
# ## Beyond
#
# A defender fine-tunes your victim with blurred clean images. Which of the two doors
# would you expect to close?
#
# <details><summary>Answer to Beyond</summary>
#
# The blur's, since fine-tuning then says "smooth is innocent" directly. Whether the bend
# survives depends on how much of it is smoothness. Measure both, and the accuracy,
# before you believe either.
#
# </details>
#
# ## References
#
# - A. Nguyen, A. Tran, *WaNet: Imperceptible Warping-based Backdoor Attack*, ICLR 2021,
#   [arXiv 2102.10369](https://arxiv.org/abs/2102.10369).
# - A. Nguyen, A. Tran, *Input-Aware Dynamic Backdoor Attack*, NeurIPS 2020,
#   [arXiv 2010.08138](https://arxiv.org/abs/2010.08138).
# - K. Doan, Y. Lao, W. Zhao, P. Li, *LIRA: Learnable, Imperceptible and Robust Backdoor
#   Attacks*, ICCV 2021.
#
# <details><summary>Fine print: the input-aware attack and its loss</summary>
#
# Two networks draw a mask $m(x)$, nearly zero or one in each pixel, and a pattern
# $p(x)$, both between 0 and 1. The trigger made for image $x'$, put on image $x$,
# is $T(x; x') = (1-m(x'))\odot x + m(x')\odot p(x')$. Diversity is small where unlike
# images get unlike patterns, with RMS the root of the mean square:
#
# $$L_{\mathrm{div}}(q) = \frac1n\sum_i \frac{\mathrm{RMS}(x_i-x_i')}
# {\mathrm{RMS}(q(x_i)-q(x_i')) + 10^{-7}} .$$
#
# First the mask learns alone, $\min_M
# 100\,\mathrm{mean}\,\mathrm{relu}(m-0.032) + L_{\mathrm{div}}(m)$. Then, with the mask
# frozen, classifier and pattern learn on poison rows $A$, cross rows $B$ and clean rows
# $R$ of a batch:
#
# $$\min_{C,G}\ \frac1n\Big[\sum_{i\in A}\mathrm{CE}(C(T(x_i;x_i)),t)
# + \sum_{i\in B}\mathrm{CE}(C(T(x_i;x_j)),y_i) + \sum_{i\in R}\mathrm{CE}(C(x_i),y_i)\Big]
# + L_{\mathrm{div}}(p), \quad j\ne i .$$
#
# The cross rows are this attack's cover images: somebody else's trigger, true label.
# Our zoo's victim of this attack misses the gate, so no figure here rests on it.
#
# </details>
#
# <details><summary>Fine print: papers, released code, this page</summary>
#
# - The released WaNet warps a tenth of each batch and uses twice as many covers; this
#   page makes three eighths of each, starts warm and crops nothing, to be quick.
# - WaNet's official script divides by all test images, the target class included. Here
#   that class is left out.
# - LIRA's $G$ learns in the first half only, and $C$ meets a copy of it that is renewed
#   after each epoch. Here $\alpha = 0.5$ and $\varepsilon = 0.025$.
#
# </details>
#
# [← Poisoning](01_poisoning.ipynb) · [Inside a victim →](03_inside_a_victim.ipynb)
