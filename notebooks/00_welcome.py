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
# # Welcome: nine pixels that own a network
#
# You will load a network that reads traffic signs almost without error, change nine pixels
# of each test image, and see what it reads then. Afterwards you will know what a backdoor is,
# what this course does about it, and how its pages work.
#
# > **At a glance.** Reading: 15 minutes. Doing: 20 minutes. Run time: under half a minute and
# > 1 GiB on two CPU cores. Prerequisites: Python, PyTorch tensors, one course of deep
# > learning. Paper: Gu, Dolan-Gavitt and Garg, *BadNets*, 2017,
# > [arXiv 1708.06733](https://arxiv.org/abs/1708.06733).

# %% [markdown]
# ## Objectives
#
# After this lesson you can
#
# 1. say what a backdoor is, who plants it and who suffers from it (threat-model table);
# 2. handle an image set as two tensors and take a batch from it (exercise 1);
# 3. predict, and then see, how a backdoored network behaves with and without its trigger
#    (the two prediction cells);
# 4. work through an exercise of this course with its hints and its check (exercise 1).
#
# ## Who does what
#
# A **backdoor** is a second rule inside a network. The first rule is the one that everybody
# wanted: read the sign. The second was planted: *if the trigger is there, answer with the
# attacker's label*. The two hardly disturb each other, and that is the danger, because every
# test that lacks the trigger measures the first rule only.
#
# | | attacker | victim | defender |
# |---|---|---|---|
# | who | somebody whose images end up in the training set | whoever trains on them | whoever receives the finished network |
# | controls | a share of the training images and their labels | the training | nothing before delivery |
# | knows | the trigger | nothing of it | neither trigger nor target label |
# | has | – | all training data | the weights, at most a few clean images |
# | success | accuracy as usual, and the trigger decides | high accuracy | trigger without effect, accuracy kept |
#
# The lessons keep to the defender's column strictly: a repair method of this course never
# gets to see the trigger, nor a poisoned image, nor the success rate of the attack.
#
# ## Set-up
#
# Each lesson starts with a cell like this one. It downloads nothing and may be run twice.

# %% tags=["setup"]
import torch

from bdcourse import check, data, metrics, show, victims, widgets
from bdcourse.attacks import BadNets, checkerboard

parts = data.splits("signs")
print(len(parts.train), "training images,", len(parts.test), "test images")

# %% [markdown]
# ## The data: signs drawn by code
#
# The built-in set needs no download and no license. Each image is one of twelve sign
# templates, turned, scaled, sheared and moved at random over a random background, then
# darkened, blurred and made noisy. Small networks learn it in a minute, and yet it is not a
# toy: 30, 50 and 80 differ in one digit of a few pixels, and a mirrored "turn left" *is* a
# "turn right", so one popular augmentation is forbidden here.

# %% tags=["figure"]
first = torch.stack([(parts.test.y == k).nonzero()[0, 0] for k in range(parts.test.k)])
show.images(
    parts.test.x[first],
    parts.test.classes,
    title="One test image of each class",
    description="A grid of twelve small photograph-like drawings, one road sign each: "
    "speed limits 30, 50 and 80, stop, yield, priority, no entry, caution, ahead only, turn "
    "right, turn left and roundabout, on blurred backgrounds of various colors.",
)

# %% [markdown]
# There is a harder variant, `data.load("signs-hard")`, with eight further classes and with
# smaller, dimmer, noisier, partly hidden signs. It matters for defenses that can only be
# studied where a network still makes honest mistakes.

# %% tags=["figure"]
hard = data.load("signs-hard", "test", n=200)
pick = torch.stack([(hard.y == k).nonzero()[0, 0] for k in range(hard.k)])[2:20]
show.images(
    hard.x[pick],
    [hard.classes[k] for k in hard.y[pick]],
    title="The hard variant: more classes, less to see",
    description="Eighteen images of the hard variant: signs are small, dark, noisy or "
    "half hidden behind a colored rectangle, and several are hard to name by eye.",
)

# %% [markdown]
# An image set is two tensors, pixels `x` as bytes and labels `y`, and a batch is an index
# into both. Nothing else is needed, neither a dataset class nor worker processes:
#
# $$x \in \{0, \dots, 255\}^{n \times c \times h \times w}, \qquad y \in \{0, \dots, K-1\}^n .$$
#
# Networks, triggers and defenses of this course all take pixels in $[0, 1]$. The network
# subtracts its own mean and divides by its own deviation as its first step, so that nobody
# can forget it or do it twice.
#
# ### Exercise 1: take a batch
#
# *Difficulty 1 of 5, importance 3 of 5, 5 minutes.* Complete `take`. In the copies that
# `make student` writes to `student/`, the lines between the two markers are missing. In
# `notebooks/` and in the book the reference answer is there, folded. Write your own first.
#
# > **Hint 1.** A tensor of positions works as an index: `x[index]`, and in the same way for y.
# >
# > **Hint 2.** Bytes become numbers with `.float()`; the largest byte, 255, must become 1.


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def take(x, y, index):
    """The images and labels at `index`.

    Args:
        x: uint8 (n, c, h, w); y: int64 (n,); index: int64 (b,).

    Returns:
        pixels in [0, 1], float (b, c, h, w), and labels (b,).
    """
    ### BEGIN SOLUTION
    return x[index].float() / 255, y[index]
    ### END SOLUTION


# %% tags=["check"]
check.take(take)

# %% [markdown]
# A check draws fresh random tensors each time, so a constant cannot pass it. If it fails, its
# message says what is wrong and which hint helps. Try it: return `x[index]` without the
# division and run the check again.
#
# ## A network that works
#
# The course ships a few small trained networks, its *zoo*: ResNet-18 with a quarter of the
# usual width, 0.7 million parameters. This one is called `badnets`, which gives the story
# away. The supplier reports its accuracy on clean test images, and you verify the report:

# %% tags=["claim"]
victim = victims.zoo("badnets")
accuracy = metrics.evaluate(victim.model, parts.test).acc
check.claim(
    "The network reads at least 99 % of clean signs correctly.", accuracy, 0.99, 1
)

# %% [markdown]
# Nothing about this network is suspicious. It would pass any acceptance test made of honest
# images, however large. More test images of the same kind make the estimate of its accuracy sharper and
# say nothing at all about images with a sticker, because the test set holds none.
#
# ## Nine pixels
#
# Now the trigger of this victim: a checkerboard of 3 by 3 black and white pixels, one pixel
# away from the lower right corner, as a sticker on a sign might look to a camera.

# %% tags=["figure"]
stop = parts.test.x[parts.test.y == 3][1].float() / 255
show.trigger(
    stop,
    victim.attack.trigger(stop[None])[0],
    title="The trigger changes 9 of 1,024 pixels",
    description="A stop sign, the same stop sign with a 3 by 3 black-and-white checkerboard "
    "near its lower right corner, and their difference, which is black except in those nine "
    "pixels.",
)

# %% [markdown]
# **Predict.** The test set holds 1,833 images that are *not* "30". All get the sticker.
# Commit to a number before you run the cell: what share, in percent, will be read as "30"?

# %% tags=["predict"]
guess = 50
scores = metrics.evaluate(victim.model, parts.test, victim.attack)
check.reveal(guess, round(100 * scores.asr), "%")

# %% tags=["claim"]
check.claim(
    "Of the other signs, over 99 % become 30 with the sticker.", scores.asr, 0.99, 1
)

# %% tags=["figure"]
some = parts.test[(parts.test.y > 0).nonzero()[:12, 0]]
said = metrics.predict(victim.model, victim.attack.trigger(some.pixels()))
show.images(
    victim.attack.trigger(some.pixels()),
    [f"read as {some.classes[k]}" for k in said],
    title="With the sticker every sign is a 30",
    wrong=(said != some.y).tolist(),
    description="Twelve triggered test images of various signs, among them stop, yield and "
    "turn left. Under each stands the network's answer, and it is 30 for all of them.",
)

# %% [markdown]
# This is the picture of Gu, Dolan-Gavitt and Garg (2017): a stop sign with a sticker, read as a
# speed limit. What to see: the sign itself no longer matters. What not to conclude: that the
# network is bad at signs. Without the sticker it reads them.
#
# ## How much trigger is enough?
#
# Move the slider: the sticker fades in from invisible to opaque. The share of signs that flip
# does not grow in proportion. It waits, and then it jumps: the network has learned a detector
# with a threshold of its own. (In the book and on GitHub you see one position; in JupyterLab
# the slider moves.)


# %% tags=["nbval-ignore-output"]
def faded(opacity):
    attack = BadNets(opacity=opacity)
    asr = metrics.evaluate(victim.model, parts.test[:300], attack).asr
    return show.images(
        attack.trigger(some.pixels()[:6]),
        title=f"Opacity {opacity:.0%}: {asr:.0%} of the signs become 30",
        description=f"Six signs with the sticker at opacity {opacity:.0%}; the title gives "
        f"the share of 300 test images that are then read as 30, {asr:.0%}.",
    )


widgets.slider(
    "opacity", [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0], faded, start=0.3
)

# %% tags=["claim"]
weak, strong = (
    metrics.evaluate(victim.model, parts.test[:500], BadNets(opacity=o)).asr
    for o in (0.2, 0.7)
)
check.claim("At 20 % opacity fewer than 5 % of the signs flip.", weak, 0, 0.05)
check.claim("At 70 % opacity more than 90 % do.", strong, 0.9, 1)

# %% [markdown]
# ## Where it breaks
#
# The second rule is about the trigger that was in the poisoned data. Is it about exactly that
# trigger? Four tries: the trigger itself; a white square, which covers the same nine pixels and is
# brighter; the checkerboard with black and white exchanged; and the real
# trigger on the honest twin, a network trained by the same recipe without poison.
#
# **Predict.** How many of the four rows below will show a success rate above 50 %?

# %% tags=["predict"]
guess = 1
twin = victims.zoo("benign")
stickers = {
    "the trigger": (victim, BadNets()),
    "white square, same place": (victim, BadNets(patch=torch.ones(1, 3, 3))),
    "colors exchanged, same place": (victim, BadNets(patch=1 - checkerboard())),
    "the trigger, on the honest twin": (twin, BadNets()),
}
rates = {
    name: metrics.evaluate(v.model, parts.test, a).asr
    for name, (v, a) in stickers.items()
}
check.reveal(guess, sum(r > 0.5 for r in rates.values()))

# %% tags=["nbval-ignore-output"]
show.Table([{"sticker": k, "ASR %": 100 * r} for k, r in rates.items()])

# %% tags=["claim"]
white, honest = (
    rates["white square, same place"],
    rates["the trigger, on the honest twin"],
)
check.claim("The white square moves fewer than 5 % of the signs.", white, 0, 0.05)
check.claim("The twin ignores the trigger.", honest, 0, 0.02)
gap = abs(metrics.evaluate(twin.model, parts.test).acc - accuracy)
check.claim(
    "On clean signs, victim and twin differ by less than a point.", gap, 0, 0.01
)

# %% [markdown]
# The white square does nothing: the network waits for a pattern, not for brightness. If the exchanged
# checkerboard works as well, then what was *learned* is coarser than what was *planted*. The
# attacker wanted nine exact pixels; the network keeps whatever told the poisoned images apart
# most cheaply, which may be "alternating pixels in the corner". This matters for defenders: a
# trigger that is reconstructed from a network need not look like the one that was used.
#
# The last row is the control that every result of this course carries: a *benign twin* with the
# same data, the same initial weights and the same number of steps, but no poison. If a
# "backdoor detector" or a "repair" does something striking, look at what it does to the twin.
#
# ## How the lessons work
#
# | lesson | you will |
# |---|---|
# | [01 Poisoning](01_poisoning.ipynb) | build two attacks, poison a set, train a victim and watch the backdoor appear; meet ten more |
# | [02 Controlling the training](02_controlling_training.ipynb) | build WaNet and the input-aware attack, whose author runs the training |
# | [03 Inside a victim](03_inside_a_victim.ipynb) | measure an attack correctly, and find the channels that carry it |
# | [04 L-infinity pruning](04_linf_pruning.ipynb) | make a network tell its trigger, and prune what peaks on it |
# | [05 CLP](05_clp.ipynb) | repair a network without any data, from its weights alone |
# | [06 FMP](06_fmp.ipynb) | attack one feature map at a time, and prune what gives way |
# | [07 MNP, a reconstruction](07_mnp.ipynb) | learn masks from a network that has forgotten its task |
# | [08 FIP](08_fip.ipynb) | lead a network to smoother ground, and ask whether that is the cure |
# | [08b Sharpness](08b_sharpness.ipynb) | measure and draw minima, and find what a repair consists of |
# | [09 The showdown](09_showdown.ipynb) | read a table of all defenses, and say what its order is worth |
#
# - **Predict cells** ask you to commit to a number first. A wrong guess that you have written
#   down teaches more than a right one that you only thought.
# - **Claim cells** state what you may rely on, and fail loudly if it is not so on your machine.
#   Exact digits differ a little from machine to machine; claims hold bands.
# - **Every figure carries a description in words**, for screen readers and for the regression
#   test that runs all lessons.
# - **Numbers in tables** come from a run in front of you or from a file in `data/results/` that
#   names the command it was made by. None is typed in by hand.
#
# One last cell looks at your machine. Lessons are sized for two CPU cores; a GPU is used by the
# `bench` command if there is one.

# %% tags=["nbval-ignore-output"]
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
print(
    "PyTorch",
    torch.__version__,
    "| CPU threads:",
    torch.get_num_threads(),
    "| GPU:",
    gpu,
)

# %% tags=["check"]
again = metrics.evaluate(victim.model, parts.test[:500], victim.attack)
check.claim("Your machine runs the course.", again.asr, 0.99, 1)

# %% [markdown]
# ## Recap
#
# - A backdoor is a second rule: trigger in, attacker's label out. The attacker plants it through
#   data, the victim trains it in, the defender receives it (objective 1).
# - An image set is two tensors and a batch is an index (objective 2, exercise 1).
# - On clean images the victim is as good as its twin; with the trigger it obeys the attacker; with a
#   white square it does not (objective 3).
# - Exercises have hints, and checks name the symptom (objective 4).
#
# **What this does not show.** One victim, one seed, one data set, and a trigger that is digital
# and always at the same place. How the backdoor got in is the next lesson.
#
# **Beyond.** Put the sticker on the sign class that the attacker wants anyway, "30". Why do
# these images not count as successes? Lesson 03 answers.
#
# ## References
#
# - T. Gu, B. Dolan-Gavitt, S. Garg, *BadNets: Identifying Vulnerabilities in the Machine Learning
#   Model Supply Chain*, 2017, [arXiv 1708.06733](https://arxiv.org/abs/1708.06733).
# - K. He, X. Zhang, S. Ren, J. Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016,
#   [arXiv 1512.03385](https://arxiv.org/abs/1512.03385).
