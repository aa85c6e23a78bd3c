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
# # Clips: did it learn the walk?
#
# A network watches short clips and names the action. Somebody poisoned its training set
# with a small patch that walks along the lower edge. Show it the walking patch, and it
# answers what the attacker wants. Show it the same patch at rest, and you will see that
# the answer changes.
#
# Has it learned the walk? **Does a network that sees motion learn the motion of a
# trigger?** One control will settle it. On the way you write a test that finds such
# attacks without knowing their trigger, and you see which one it misses.
#
# > **At a glance.** Reading: 20 minutes. Doing: 60 minutes. Run time: under two minutes
# > and 1.5 GiB on two CPU cores. Prerequisites: lessons [01](01_poisoning.ipynb),
# > [02](02_controlling_training.ipynb) and [03](03_inside_a_victim.ipynb); for the last
# > section [08](08_fip.ipynb). Papers: Zhao and others, *Clean-Label Backdoor Attacks
# > on Video Recognition Models*, CVPR 2020, and Hammoud and others, 2023, [arXiv
# > 2301.00986](https://arxiv.org/abs/2301.00986), who carry triggers of images over to
# > video, at rest or changing.

# %% [markdown]
# ## Objectives
#
# After this lesson you can
#
# 1. plant a trigger that moves in a set of clips (exercises 1 and 2);
# 2. find out what a network has learned of a trigger that moves;
# 3. say how far a single stamped frame reaches, and why that decides little (exercise 3);
# 4. write a test that needs no trigger, and name the attack that escapes it (exercise 4).
#
# ## Threat model
#
# | | in this lesson |
# |---|---|
# | attacker | poisons a tenth of the training clips; holds the trigger before the camera later |
# | defender has | the network and 240 clean clips with their labels |
# | defender lacks | the trigger, its target, any poisoned clip |
# | success | attack success rate (ASR) below 10%, accuracy kept, true answers back |
#
# As always the ASR counts clips of other actions that get the attacker's answer, and the
# robust accuracy (RA) those of the same clips that get the right one.
#
# ## Set-up

# %% tags=["setup"]
from dataclasses import replace

import torch

from bdcourse import check, data, fit, metrics, quiz, tables, victims, widgets
from bdcourse.tasks.video import CLIPS, ClipCrop, Clips, conv3d, framewise
from bdcourse.teach.figures import clips as figures

parts = data.splits("clips", clean=0.15)
test = parts.test
names = ("static", "walking", "benign")
static, walking, twin = (victims.zoo(f"clips-{name}") for name in names)

# %% [markdown]
# ## One more axis
#
# A clip has twelve frames of 32 by 32 pixels, and a batch of clips five axes: clips,
# colors, **frames**, rows, columns. In each clip a thing does one of eight actions (right
# and left, up and down, clockwise and counterclockwise, grow and shrink).

# %% tags=["figure"]
figures.backwards(test)

# %% [markdown]
# Each action is another one played backwards. So the answer lies in the order of the
# frames, and a network must join frames to find it. Ours does so by 3D convolutions,
# whose kernels reach over three rows, three columns and three frames.
#
# The control looks at each frame by itself and averages at the end. A mean does not know
# an order. However long you train it, it cannot tell left from right.

# %% tags=["claim"]
some = test[:40].inputs()
alone = framewise().eval()
with torch.no_grad():
    change = (alone(some) - alone(some.flip(2))).abs().max().item()
back = CLIPS.answer(twin.model, test.inputs().flip(2))
opposite = ((back ^ 1) == test.y).double().mean().item()
check.claim("Frame by frame: largest change when played backwards.", change, 0, 1e-4)
check.claim("3D: clips that turn into their opposite.", opposite, 0.95, 1, "%")

# %% [markdown]
# (Actions and their opposites are numbered in pairs, so `^ 1` swaps them.) The benign
# twin, trained without poison, names the action of every test clip correctly. It
# follows the order of the frames, there is no doubt about that.
#
# ## A patch that walks
#
# The trigger is a checkerboard of nine pixels. At rest, it sits in the same place in
# every frame. On a walk it moves $s$ columns from one frame to the next. In frame $f$ its
# left column is
#
# $$c_f = (c_0 + f s) \bmod (w - k + 1),$$
#
# for frames $w$ pixels wide and a patch of $k$ by $k$ pixels.
#
# ### Exercise 1: the walking patch
#
# *Difficulty 2, importance 4, 6 minutes.* Stamp whole clips, without touching the ones
# that you were given.
#
# <details><summary>Hint 1</summary>
#
# The third axis holds the frames. Each of them gets the patch once, into all clips and
# all colors.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Frame 0 has taken no step yet. Rows never change.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Why $w - k + 1$? Count the places at which the whole patch lies inside the frame.
# Python's `%` is never negative, so walks to the left need no case of their own.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def walking_patch(x, patch, row, column, step):
    """Copies of clips with a patch that walks `step` columns from frame to frame.

    x: float (n, c, t, h, w); patch: (c, k, k); row, column: of its upper left pixel in
    frame 0. Beyond an edge it comes in again at the other one.
    """
    ### BEGIN SOLUTION
    k, stamped = patch.shape[-1], x.clone()
    for f in range(x.shape[2]):
        left = (column + f * step) % (x.shape[4] - k + 1)
        stamped[:, :, f, row : row + k, left : left + k] = patch
    return stamped
    ### END SOLUTION


# %% tags=["check"]
check.walking_patch(walking_patch)

# %% tags=["figure"]
figures.triggers(test, {"at rest": static.attack, "walking": walking.attack})

# %% [markdown]
# Two victims stand ready. `static` was trained with the patch at rest, `walking` with the
# one that walks. A tenth of their training clips was stamped and labeled "right". Both
# read all clean clips, and both obey their own trigger.
#
# **Predict.** Now show `walking` the patch at rest, in the corner where the walk begins.
# Which percentage of the clips will obey?

# %% tags=["predict"]
guess_rest = None
others = test.y != walking.attack.target
patch, clips = walking.attack.patch, test.inputs()


def obey(model, shown):
    return metrics.share(CLIPS.answer(model, shown)[others] == walking.attack.target)


at_rest = walking_patch(clips, patch, 28, 28, 0)
check.reveal(guess_rest, round(100 * obey(walking.model, at_rest)), "%")

# %% tags=["figure"]
stored = tables.results("clips").select(defense="none")
figures.obeyed(stored, "Each prefers its own patch", ("at rest", "walking"))

# %% [markdown]
# A dot is a network of another seed. Those that learned the patch at rest ignore the
# walking one. The other way around it is nearly as clear; one network of three follows
# the resting patch in a fifth of the clips.
#
# It is the same patch in the same colors. What differs is the walk. A paper could stop
# here and write: *the network has learned the motion of the trigger*.
#
# ## What else differs?
#
# *Correlation is not cause.* A walk is an order of places. The patch at rest lacks
# three things: the order, the places, and any change from frame to frame. **Stop:**
# which one clip would you show before you publish that a network has learned a walk?
# Take only the order away. Each of the twelve places comes once, in an order drawn anew
# for each clip.

# %% tags=["figure"]
figures.order(test, walking.attack)

# %% [markdown]
# **Predict.** There is no walk any more, only jumps. Which percentage of the clips will
# obey now?

# %% tags=["predict"]
guess_jumps = None
dice = torch.Generator().manual_seed(0)
jumping = walking.attack.out_of_order(clips, dice)
jumped = obey(walking.model, jumping)
check.reveal(guess_jumps, round(100 * jumped), "%")

# %% tags=["figure", "claim"]
check.claim("The walking victim obeys the patch out of order.", jumped, 0.9, 1, "%")
to_the_right = walking_patch(clips, patch, 28, 6, 2)
called_right = obey(twin.model, to_the_right)
print(f"The benign twin calls a patch that walks right “right”: {called_right:.0%}.")
figures.obeyed(stored, "Order taken away, and it still obeys")

# %% [markdown]
# Nearly all of them. The network does not need the walk. Many places along the lower
# edge, in a random order, are enough. But not every order: played backwards, the same
# places convince one network of three in only a quarter of the clips.
#
# The rule it missed was in front of it, and it is able to see such rules: it tells left
# from right for a living. But training does not look for the rule that you had in mind.
# It takes the first one that lowers the loss. In this training set whoever noticed a
# checkerboard here and there was right every time. **No clip punished the shortcut.**
#
# And why do victims of the *resting* patch obey one that walks right, in up to half of
# the clips? The attacker's answer is the action “right”, and something does move right.
# So ask the twin, which knows no trigger: hardly any clip changes its answer. It is the
# backdoor that answers, and why it favors the right we have not found out. (To be safe,
# ours walks left.)
#
# ## Making it learn the walk
#
# If nothing punishes the shortcut, let us add what does. A **lookalike** (lesson 02
# called it a cover) is a clip with the patch out of order that *keeps its true label*.
# With such clips in the set, places no longer suffice.
#
# ### Exercise 2: poison, and lookalikes
#
# *Difficulty 2, importance 5, 10 minutes.* Draw **one** permutation of all clips. Its
# first `round(rate * n)` become poison: stamped by `trigger`, labeled `target`. The next
# `round(cover_rate * n)` become lookalikes: stamped by `lookalike`, labels untouched.
#
# <details><summary>Hint 1</summary>
#
# What you are given stays as it is: clone both tensors. Who gets a new label?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Clips are stored as bytes. Both functions take pixels from 0 to 1 and give such back.
# A conversion to bytes cuts the fraction off, so round before.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `torch.randperm(n, generator=generator)`, cut in two places. So no clip can be in both
# groups.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def poison_clips(x, y, rate, cover_rate, trigger, lookalike, target, generator):
    """A poisoned copy of clips x, uint8 (n, c, t, h, w), and labels y (n,).

    trigger, lookalike: functions of pixels in [0, 1], a batch of clips -> the same
    batch, stamped.
    """
    ### BEGIN SOLUTION
    order = torch.randperm(len(y), generator=generator)
    n, m = round(rate * len(y)), round(cover_rate * len(y))
    poison, cover = order[:n], order[n : n + m]
    x, y = x.clone(), y.clone()
    for rows, stamp in ((poison, trigger), (cover, lookalike)):
        x[rows] = (255 * stamp(x[rows].float() / 255)).round().to(torch.uint8)
    y[poison] = target
    return x, y
    ### END SOLUTION


# %% tags=["check"]
check.poison_clips(poison_clips)

# %% [markdown]
# Train with it, live. The recipe is that of the two victims, and there are as many
# lookalikes as poisoned clips.

# %% tags=["method"]
dice.manual_seed(1)
x, y = poison_clips(
    parts.train.x,
    parts.train.y,
    rate=0.1,
    cover_rate=0.1,
    trigger=lambda part: walking_patch(part, patch, 28, 28, -2),
    lookalike=lambda part: walking.attack.out_of_order(part, dice),
    target=walking.attack.target,
    generator=dice,
)
torch.manual_seed(0)
strict = conv3d()
fit(
    strict,
    Clips(x, y, test.classes),
    epochs=12,
    batch=32,
    lr=0.005,
    optimizer="adamw",
    weight_decay=0.01,
    augment=ClipCrop(2),
    verbose=False,
    generator=torch.Generator().manual_seed(0),
)
strict.eval()
acc = metrics.share(CLIPS.answer(strict, clips) == test.y)

# %% [markdown]
# **Predict.** The new network, `strict`, has seen the patch out of order with true
# labels. Which percentage obeys the walk played *backwards*, from left to right? No
# training clip ever showed it.

# %% tags=["predict"]
guess_back = None
turned = obey(strict, to_the_right)
check.reveal(guess_back, round(100 * turned), "%")

# %% tags=["figure", "claim"]
own = obey(strict, walking.attack.trigger(clips))
check.claim("With lookalikes: accuracy on clean clips.", acc, 0.95, 1, "%")
check.claim("It obeys the walk.", own, 0.9, 1, "%")
check.claim("It obeys the patch out of order.", obey(strict, jumping), 0, 0.1, "%")
figures.obeyed(stored, "Now it needs the order", who=("static", "walking", "strict"))

# %% [markdown]
# Now it needs the order. At rest, backwards or out of order, the patch does next to
# nothing, in all three seeds. The network could learn it all along. It had to be made
# to. (Whether it knows *a* walk or only *this* walk would take another control: another
# row, another step.)
#
# So a trigger is not what was planted. The training set rules rules out; which of the
# rest a network takes, each seed decides for itself.
#
# ## How many frames?
#
# Before the camera, an attacker may manage a few frames only. How far does one stamped
# frame reach? Along the frames, each of our four convolutions has a kernel of three and
# a padding of one. At stride $d$, output $i$ sees the frames $d\,i-1$, $d\,i$ and
# $d\,i+1$, as far as they exist.
#
# ### Exercise 3: reach
#
# *Difficulty 2, importance 3, 6 minutes.* Given which frames are stamped, which outputs of
# one such convolution see a stamped frame?
#
# <details><summary>Hint 1</summary>
#
# One stamped frame of the three is enough: `any`. The answer is a bool for each output.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# There are as many outputs as `range(0, t, stride)` has numbers.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The first output has no frame before it. What does a slice do that begins at -1?
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def reach(stamped, stride):
    """Which outputs see a stamped frame: bool (t,) -> bool (outputs,)."""
    ### BEGIN SOLUTION
    centers = range(0, len(stamped), stride)
    seen = [stamped[max(0, i - 1) : i + 2].any() for i in centers]
    return torch.stack(seen)
    ### END SOLUTION


# %% tags=["check"]
check.reach(reach)

# %% tags=["figure"]
layers = [torch.arange(12) == 5]
for stride in (1, 2, 2, 1):
    layers.append(reach(layers[-1], stride))
figures.through_time(layers)

# %% [markdown]
# Every frame but the last three reaches every output of the last layer. One stamped
# frame *could* decide the answer. Whether it does is another question. Move the slider.
# It stamps more and more frames of one clip, from the middle outwards.

# %% tags=["nbval-ignore-output"]
counts = (0, 1, 2, 3, 4, 6, 8, 10, 12)
middle = {k: tuple(range(6 - k // 2, 6 - k // 2 + k)) for k in counts}


def strip(k):
    return figures.stamped(test, walking.attack, walking.model, middle[k])


widgets.slider("stamped frames", counts, strip, start=4)

# %% tags=["figure", "claim"]
curves = {}
for name, model, attack in (
    ("static", static.model, static.attack),
    ("walking", walking.model, walking.attack),
    ("strict", strict, walking.attack),
):
    curves[name] = [
        obey(model, replace(attack, frames=middle[k]).trigger(clips)) for k in counts
    ]
one = max(curve[1] for curve in curves.values())
check.claim("One stamped frame: the most that any victim obeys.", one, 0, 0.1, "%")
figures.budget(counts, curves)

# %% [markdown]
# One frame reaches everything and turns hardly an answer. One reason may be that the
# last layer is averaged over time and place. Reach says what an attacker could do at
# best; only the curve says what this network needs. The victim of the resting patch
# needs most of all, so do not read the curves as “order costs frames”: one seed each.
#
# ## A test that needs no trigger
#
# You are the defender now. You know no trigger. But you know something about clips: here
# every action needs its order. Shuffle the frames of an honest clip, and the answer should
# change. What if it stays? Then it did not come from the motion.
#
# ### Exercise 4: the shuffle test
#
# *Difficulty 3, importance 5, 20 minutes.* Write the whole test. For each of `times`
# shuffles draw the orders of all clips at once,
# `torch.rand(n, t, generator=generator).argsort(1)`: one row a clip, and frame $f$ of the
# shuffled clip is frame `order[i, f]` of clip $i$. Return
#
# - `said`: the answer to each clip as it is;
# - `kept`: the share of its shuffles that get this same answer;
# - `voted`: the most frequent answer to its shuffles, in a tie the label with the smallest number.
#
# <details><summary>Hint 1</summary>
#
# Evaluation mode, no gradients, and at the end the mode in which the network came.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# An order is a permutation: each frame comes once. Each clip has its own, and each shuffle
# draws new ones.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `x.gather(2, index)` wants an index as large as `x`. `order[:, None, :, None, None]`
# has the five axes, and `expand_as` the size. Begin each shuffle with `x` itself.
#
# </details>
#
# <details><summary>Hint 4</summary>
#
# Count votes in a tensor with one row a clip and one column a label. `kept` is one column
# of each row, divided by something; `voted` needs nothing but the counts.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def shuffle(model, x, times, generator):
    """Does the answer to a clip need the order of its frames?

    model: pixels (n, c, t, h, w) -> logits; x: such pixels in [0, 1].
    Returns said (n,), kept (n,) in 0..1, voted (n,).
    """
    ### BEGIN SOLUTION
    was, n, t = model.training, len(x), x.shape[2]
    model.eval()
    with torch.no_grad():
        logits = model(x)
        said, votes = logits.argmax(1), torch.zeros_like(logits)
        for _ in range(times):
            order = torch.rand(n, t, generator=generator).argsort(1)
            index = order[:, None, :, None, None].expand_as(x)
            answers = model(x.gather(2, index)).argmax(1)
            votes[torch.arange(n), answers] += 1
    model.train(was)
    kept = votes.gather(1, said[:, None])[:, 0] / times
    return said, kept, votes.argmax(1)
    ### END SOLUTION


# %% tags=["check"]
check.shuffle(shuffle)

# %% [markdown]
# *Who chose the threshold?* Clean clips did. The defender shuffles their held-out
# clips, sets the limit so that 19 in 20 of them lie at or below it, and reports every
# clip above.
#
# **Predict.** Of the clips with the *walking* patch, shown to `walking`: which percentage
# will be reported? Remember that shuffling tears the walk apart.

# %% tags=["predict"]
guess_found = None
few = test[others.nonzero()[:80, 0]].inputs()


def tested(model, x, times=10):
    return shuffle(model, x, times, torch.Generator().manual_seed(3))[1]


limit = tested(walking.model, parts.held.inputs()).quantile(0.95).item()
caught = tested(walking.model, walking.attack.trigger(few)) > limit
check.reveal(guess_found, round(100 * caught.double().mean().item()), "%")

# %% tags=["figure", "claim"]
shares = {}
for name, model, attack in (
    ("static", static.model, static.attack),
    ("walking", walking.model, walking.attack),
    ("strict", strict, walking.attack),
):
    shares[f"{name}, clean"] = tested(model, few)
    shares[f"{name}, triggered"] = tested(model, attack.trigger(few))
found = (shares["static, triggered"] > limit).double().mean().item()
missed = (shares["strict, triggered"] > limit).double().mean().item()
check.claim("Reported: clips with the patch at rest.", found, 0.9, 1, "%")
check.claim("Reported: the walk, where it was learned.", missed, 0, 0.3, "%")
figures.kept({name: of.tolist() for name, of in shares.items()}, limit)

# %% [markdown]
# A dot is a clip. The answers to clean clips fall apart as soon as the frames are
# shuffled. Those to triggered clips of the first two victims stay, under the walking patch
# too. That victim never cared for the order. The shortcut that training found for the
# attacker now gives the attack away.
#
# `strict` escapes. Its trigger needs an order, and shuffling tears it apart together
# with the action. Could the vote over shuffles be the answer, then? What does it cost?

# %% tags=["claim"]
calm = torch.Generator().manual_seed(4)
voted = shuffle(twin.model, clips[:120], 10, calm)[2]
right = metrics.share(voted == test.y[:120])
check.claim("Benign twin: accuracy of the vote over shuffles.", right, 0.1, 0.6, "%")

# %% [markdown]
# Chance is one in eight. Whoever sees every frame but no order can still name the pair,
# and so reach one half. The vote costs the task. *Zero is not repair.*
#
# ## Can it be repaired?
#
# The control that every repair has to beat is fine-tuning on the clean clips. At the
# usual rate it does nothing: nearly every clip with the patch obeys as before. A paper
# would now bring its own method. Turn a knob first that costs nothing.
#
# **Predict.** The same fine-tuning, at five times the rate. Which ASR, in percent, is left
# to `static` in the mean of three draws?

# %% tags=["predict"]
guess_rate = None
record = tables.results("clips").rows
repairs = [r for r in record if r["defense"] != "none"]
faster = [r for r in repairs if r["defense"] == "fine-tuning, lr 0.05"]
left = [r["asr"] for r in faster if r["victim"] == "static"]
check.reveal(guess_rate, round(100 * sum(left) / len(left)), "%")

# %% tags=["figure"]
figures.ladder(repairs, 0.03)

# %% [markdown]
# At five times the rate, plain fine-tuning takes most of the attack and costs next to
# nothing. In two draws of three the attack is all but gone, in one a quarter is left. *One draw is no result*, and
# fine-tuning at one rate is no control.
#
# FIP (lesson 08) fine-tunes at the usual rate and adds a penalty, the trace of the
# Fisher information. *Who chose the weight?* The defender's 48 held-out clips: hollow
# marks cost more than three points there. On the patch at rest the smaller weight is
# always allowed, and leaves anything from nothing to more than half. The larger one
# ends the attack, but in two draws of three it also costs more than three points of
# accuracy on the held-out clips, our limit.
#
# On the walking patch FIP ends the attack in every draw, at times for more accuracy than
# held-out clips allow. The higher rate does so in two of three. That is one victim each,
# on drawn clips: a reason to try both, no ranking.
#
# ## Where it breaks
#
# - **The assumption.** The shuffle test lives on a task in which every answer needs its
#   order. Real actions often show in one frame: water says "swimming". There honest answers
#   outlive every shuffle as well, and the test reports them all.
# - **The attacker who knows.** With lookalikes, a tenth of the clips, the trigger escapes.
# - **The threat model.** Poisoned labels can be found by looking. Zhao and others keep all labels true. They optimize a patch on a clean network until it pulls clips toward the target, and stamp only clips of the target action. The package has it as `ClipUniversal`. We have not
#   asked here what such a victim learns.
#
# ## Recap
#
# Does a network that sees motion learn the motion of a trigger? Only where the training
# set makes it. Left alone, ours did not need the order: the places were enough in all
# three seeds, though the exchange of triggers had looked like proof.
#
# - A trigger on clips is places over frames, and a lookalike is the same places in
#   another order (objective 1).
# - Two things that always come together cannot be told apart by looking at both. Take one
#   away: *correlation is not cause* (objective 2).
# - Reach bounds what a frame can touch, not what it moves (objective 3).
# - Shuffling finds answers that need no order. It found both victims without a trigger
#   and missed the one that had learned the walk (objective 4).

# %%
quiz("clips")

# %% [markdown]
# ## One open experiment
#
# How few lookalikes does it take? Train `conv3d` with fewer of them, and measure the ASR
# of the walk and of the patch out of order. **Control:** as many clips with the patch *at
# rest* and true labels. If these work as well, the order was not what did it. One
# draw is no result: use three seeds.
#
# | lookalikes | the walk | out of order | at rest |
# |---|---|---|---|
# | none | | | |
# | 1% | | | |
# | 10% | | | |
# | 10%, at rest | | | |
#
# <details><summary>Some starting code</summary>
#
# ```python
# def trained(share, lookalike, seed=0):
#     g = torch.Generator().manual_seed(seed)
#     walk = walking.attack.trigger
#     x, y = poison_clips(parts.train.x, parts.train.y, 0.1, share, walk, lookalike, 0, g)
#     torch.manual_seed(seed)
#     net = conv3d()
#     fit(net, Clips(x, y, test.classes), epochs=12, batch=32, lr=0.005,
#         optimizer="adamw", weight_decay=0.01, augment=ClipCrop(2), generator=g)
#     return net.eval()
# ```
#
# </details>
#
# ## What this does not show
#
# The clips are drawn, twelve small frames each, and every action is told by its motion
# alone. The network is tiny. Whether networks for real video take the same shortcut is a
# question that this lesson lets you ask, with one control.
#
# ## Beyond
#
# Could an attacker escape the shuffle test with a patch at rest? What would they add to the
# training set?
#
# <details><summary>Answer</summary>
#
# Triggered clips with shuffled frames and true labels. Then the patch works only on clips
# whose frames are in order, and shuffling takes the trigger away. We have not tried it.
#
# </details>
#
# ## References
#
# - H. A. A. K. Hammoud and others, 2023, [arXiv
#   2301.00986](https://arxiv.org/abs/2301.00986): triggers of images, at rest and
#   changing, on video.
# - S. Zhao, X. Ma, X. Zheng, J. Bailey, J. Chen, Y.-G. Jiang, *Clean-Label Backdoor
#   Attacks on Video Recognition Models*, CVPR 2020.
# - N. Karim and others, *Fisher Information guided Purification against Backdoor
#   Attacks*, CCS 2024, [arXiv 2409.00863](https://arxiv.org/abs/2409.00863).
#
# <details><summary>Fine print: seeds, draws, settings</summary>
#
# - `python tools/studies.py walks` made the rows in `data/results/clips.json`: three seeds
#   of each victim; of the repairs, seed 0 with three draws, which deal the defender's 240
#   clips into 192 and 48 and set the order of the batches.
# - The victims of seed 0 are in the zoo, without the lookalikes: that one you train.
# - The limit of the shuffle test comes from `walking` and serves all three networks.
# - FIP and its control take 120 steps of 32 clips, FIP at rate 0.01. No weight was chosen
#   by an ASR: the figure shows all that were tried.
# - FIP's own paper has a table on video. We could not read its numbers, so none of ours
#   is compared with them.
#
# </details>
#
# ← [The showdown](09_showdown.ipynb) · [back to the start](00_welcome.ipynb) →
