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
# # Poisoning: the rule that nobody wanted
#
# **How does a network learn a rule that nobody wanted, from a share of poisoned images?**
# Nobody writes that rule down. The attacker changes some pictures and some labels, and goes
# home. The rest is done by the victim, with an honest optimizer, on an ordinary evening.
#
# In this lesson you play both parts. You poison a set of traffic signs, write the training
# loop and train on your own poison, with two needles on the dashboard: the loss on clean images
# and the loss on poisoned ones. At the end you hold two networks with at least 95% attack
# success, and have seen the moments when they gave in.
#
# > **At a glance.** Reading: 20 minutes. Doing: 80 minutes. Run time: one to two minutes and
# > 1.5 GiB on two CPU cores, nearly all of it two trainings. Prerequisites:
# > [lesson 00](00_welcome.ipynb), SGD, cross-entropy. Papers: *BadNets*,
# > [arXiv 1708.06733](https://arxiv.org/abs/1708.06733); *Blended*,
# > [arXiv 1712.05526](https://arxiv.org/abs/1712.05526).

# %% [markdown]
# ## Objectives
#
# After this lesson you can
#
# 1. write three triggers from their formulas, as pure functions (exercise 1);
# 2. poison a training set so that nothing else changes, reproducibly (exercise 2);
# 3. write a training loop whose log shows when a backdoor is learned (exercise 3, the whole
#    method);
# 4. count how often a random crop throws a trigger away (exercise 4).
#
# ## Threat model
#
# | | data poisoning |
# |---|---|
# | the attacker controls | some training images and their labels, before training starts |
# | the attacker does not control | network, optimizer, crops, number of steps |
# | the attacker wants | the target label for every image with the trigger, and no other change |
# | the victim | trains by a standard recipe, delivers |
# | success | ASR at least 95%, accuracy within 3 points of an honest training |
#
# Three words from lesson 00. The **attack success rate (ASR)** is the share of
# triggered test images of other classes that are read as the target; robust accuracy (RA) is
# the share still read correctly. **ACC** is the accuracy on clean test images. The last row is
# the *gate*: only a victim that passes it is worth defending. The honest training is the
# **benign twin**. Ours trained three times as long as your victim will, which makes the bar
# higher.

# %% tags=["setup"]
import copy
import itertools

import torch
import torch.nn.functional as F

from bdcourse import check, data, metrics, quiz, tables, train, victims, widgets
from bdcourse.attacks import SIG, BadNets, Blended, checkerboard, noise_picture
from bdcourse.teach.figures import poisoning as figures

device = "cuda" if torch.cuda.is_available() else "cpu"
parts = data.splits("signs")

# %% tags=["figure"]
figures.two_rules()

# %% [markdown]
# Look at where the two paths meet. The victim cannot tell them apart, and the loss cannot
# either: it is one sum over all images. Whatever lowers that sum may be learned.
#
# ## Three triggers
#
# A **trigger** is a function $T$ that takes an image $x \in [0,1]^{c \times h \times w}$ and
# returns an image of the same shape. It draws nothing at random, and it leaves its argument
# alone, because we need the clean image afterwards. Three classics differ in what they do to
# the pixels.
#
# *BadNets* replaces. With $m$ a mask that is one under the sticker, and $p$ the sticker:
#
# $$T(x) = (1 - m) \odot x + m \odot p .$$
#
# *Blended* mixes a fixed picture $q$ into all pixels, with a small weight $\alpha$:
#
# $$T(x) = (1 - \alpha)\, x + \alpha\, q , \qquad \alpha = 0.2 .$$
#
# *SIG* adds a wave of $f$ periods that runs along the columns $j$, the same for all rows and
# colors, and clips what leaves the range:
#
# $$T(x)_{c,i,j} = \mathrm{clip}\big(x_{c,i,j} + \Delta \sin(2 \pi f j / w),\ 0,\ 1\big) ,
# \qquad \Delta = 40/255,\ f = 6 .$$
#
# ### Exercise 1: stamp
#
# *Difficulty 2, importance 5, 12 minutes.* Write all three in one function.
#
# <details><summary>Hint 1</summary>
#
# A trigger returns a new tensor. Where you assign to a part of it, work on `x.clone()`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Height and width of the sticker are the last two entries of `pattern.shape`. One pixel of
# margin means that the sticker ends one row, and one column, before the image does. `...`
# stands for all leading axes.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The image has to fade by as much as the picture comes in, or bright pixels run over.
#
# </details>
#
# <details><summary>Hint 4</summary>
#
# `torch.arange(w)` holds the columns. A tensor of shape `(w,)` meets the last axis of a batch
# by itself. The sum of an image and a wave can leave the range at both ends.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def stamp(x, kind, pattern=None):
    """Put a trigger on every image of x (n, c, h, w), pixels in [0, 1]; a new tensor.

    kind is "patch": `pattern` (c or 1, ph, pw) replaces the lower right corner, with
    one pixel of margin below it and to its right; "blended": `pattern` (c, h, w) is
    mixed in with weight 0.2; "stripes": SIG's wave, amplitude 40/255, 6 periods, no
    pattern.
    """
    ### BEGIN SOLUTION
    if kind == "patch":
        out = x.clone()
        height, width = pattern.shape[-2:]
        out[..., -1 - height : -1, -1 - width : -1] = pattern
        return out
    if kind == "blended":
        return 0.8 * x + 0.2 * pattern
    w = x.shape[-1]
    wave = torch.sin(2 * torch.pi * 6 * torch.arange(w) / w)
    return (x + 40 / 255 * wave).clamp(0, 1)
    ### END SOLUTION


# %% tags=["check"]
check.stamp(stamp)

# %% tags=["figure"]
one = parts.test[4:5].pixels()
mine = {
    "patch": stamp(one, "patch", checkerboard()),
    "blended": stamp(one, "blended", noise_picture()),
    "stripes": stamp(one, "stripes"),
}
figures.three_triggers(one, mine)

# %% tags=["claim"]
theirs = [a.trigger(one) for a in (BadNets(), Blended(), SIG())]
apart = max(
    (a - b).abs().max().item() for a, b in zip(mine.values(), theirs, strict=True)
)
check.claim("Your triggers are the package's.", 255 * apart, 0, 0.01, "gray levels")

# %% [markdown]
# The dark ring is the white of the sign fading; the flecks are clipped colors.
#
# To the eye the three have nothing in common. To the optimizer they do: each is something that
# *all poisoned images share and no clean image has*.
#
# ## From a trigger to a poisoned set
#
# Given a rate $\rho$, the attacker draws a set $P$ of $\mathrm{round}(\rho n)$ images from
# all classes, and replaces
#
# $$(x_i, y_i) \longmapsto (T(x_i),\ t) \qquad \text{for } i \in P .$$
#
# This is called *all-to-one* and *dirty-label*: every poisoned image gets the same target
# $t$, and that label is usually wrong. We also write down a **role** for each image, 0 for
# clean and 1 for poison. The victim never sees it.
#
# ### Exercise 2: poison
#
# *Difficulty 2, importance 5, 12 minutes.* Take as $P$ the first entries of
# `torch.randperm(n, generator=generator)`. Then your set equals the package's, image by image.
#
# <details><summary>Hint 1</summary>
#
# Three tensors are changed and three are returned; clone what you change.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `randperm` gives different positions, and always the same ones for the same seed.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# A tensor of positions can stand on the left of an assignment. Pixels, labels and roles
# change in the same rows.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def poison(x, y, rate, target, trigger, generator):
    """Poison a share `rate` of the images.

    Args:
        x: pixels (n, c, h, w); y: labels (n,); trigger: batch -> batch.

    Returns:
        new x, new y, role int8 (n,) with 1 for poisoned images.
    """
    ### BEGIN SOLUTION
    chosen = torch.randperm(len(x), generator=generator)[: round(rate * len(x))]
    x, y = x.clone(), y.clone()
    role = torch.zeros(len(x), dtype=torch.int8)
    x[chosen] = trigger(x[chosen])
    y[chosen] = target
    role[chosen] = 1
    return x, y, role
    ### END SOLUTION


# %% tags=["check"]
check.poison(poison)

# %% tags=["method"]
attack, rate, target = BadNets(), 0.2, 0
pixels, labels, role = poison(
    parts.train.pixels(),
    parts.train.y,
    rate,
    target,
    lambda batch: stamp(batch, "patch", checkerboard()),
    torch.Generator().manual_seed(1),
)
package = attack.poison(parts.train, rate, torch.Generator().manual_seed(1))
same = (data.quantize(pixels) == package.x).flatten(1).all(1) & (labels == package.y)
check.claim(
    "Your set is the package's, image by image.", same.double().mean(), 1, 1, "%"
)

# %% tags=["figure"]
figures.poisoned(pixels, labels, role, parts.train)

# %% [markdown]
# One image in five is a lot of poison: of the 5,700 images, 1,140 now carry the sticker. The
# other lessons take one in ten and train for longer.
#
# **Predict.** Some of the poisoned images were 30s all along, like one in the picture. What
# percentage of the poison is that, with twelve classes of about equal size?

# %% tags=["predict"]
guess = None
already = (parts.train.y[role == 1] == target).double().mean().item()
check.reveal(guess, round(100 * already), "%")

# %% [markdown]
# ## The victim's evening
#
# Now change sides. The victim knows nothing of all this and does what everybody does:
# stochastic gradient descent (SGD) with Nesterov momentum and weight decay, random crops, and
# a learning rate that climbs and then falls. With $K$ steps in all and $W = K/5$ of them for
# the climb, step $k = 0, \dots, K-1$ is taken at
#
# $$\eta_k = \eta \cdot \min\Big(0.2 + 0.8\,\frac{k}{W},\ \frac{K - k}{K - W}\Big) ,$$
#
# along the gradient of the mean loss over a batch $B$ of cropped images,
#
# $$L_B = \frac{1}{|B|} \sum_{i \in B} \ell_i , \qquad
# \ell_i = -\log p_\theta(y_i \mid \mathrm{crop}(x_i)) .$$
#
# What makes it our dashboard is one more line. We take the mean of the same $\ell_i$ over each
# role $r$ separately, over all images of the last few steps:
#
# $$L_r = \mathrm{mean}\,\{\ell_i : \mathrm{role}_i = r\} .$$
#
# ### Exercise 3: the whole method
#
# *Difficulty 4, importance 5, 30 minutes.* Write the loop that trains your victim. Momentum is
# 0.9 (Nesterov) and weight decay `5e-4`. Each epoch draws one permutation from `generator` and
# leaves out an incomplete last batch. `crop` gets the same generator, once a step. Train in
# training mode, and end in evaluation mode.
#
# <details><summary>Hint 1</summary>
#
# A permutation is cut into batches by `split`. `model.train()` stands before the loop,
# `model.eval()` behind it.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `torch.optim.SGD` takes `momentum`, `weight_decay` and `nesterov`. `F.cross_entropy` with
# `reduction="none"` keeps one loss per image: the same numbers serve step and log.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `opt.param_groups[0]["lr"]` may be set before each step. Count steps over all epochs,
# from 0, and divide with `/`.
#
# </details>
#
# <details><summary>Hint 4</summary>
#
# Keep the losses of each role in a list of its own. A mask `role[rows] == r` picks them;
# `detach` them. When the number of finished steps is a multiple of `every`, write a row and start
# with empty lists.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def train_victim(model, x, y, role, crop, epochs, batch, lr, every, generator):
    """Train `model` in place on x, y; the roles are for the log only.

    crop: (pixels, generator) -> pixels of the same shape; lr: the highest rate.
    Returns a list with a row after every `every` steps: (steps taken, mean loss on
    clean, mean loss on poison): numbers, means over all images since the last row.
    """
    ### BEGIN SOLUTION
    opt = torch.optim.SGD(model.parameters(), lr, 0.9, weight_decay=5e-4, nesterov=True)
    n, log, kept = len(x) // batch, [], ([], [])
    total, step = epochs * n, 0
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for rows in order[: n * batch].split(batch):
            up, down = 0.2 + 4 * step / total, (total - step) / (0.8 * total)
            opt.param_groups[0]["lr"] = lr * min(up, down)
            out = model(crop(x[rows], generator))
            losses = F.cross_entropy(out, y[rows], reduction="none")
            opt.zero_grad()
            losses.mean().backward()
            opt.step()
            step += 1
            for r in (0, 1):
                kept[r].append(losses.detach()[role[rows] == r])
            if step % every == 0:
                log.append((step, *(torch.cat(k).mean().item() for k in kept)))
                kept = [], []
    model.eval()
    return log
    ### END SOLUTION


# %% tags=["check"]
check.train_victim(train_victim)

# %% [markdown]
# **Predict.** Your loop will take 712 steps, four passes over the data. Say the trigger is
# *learned* from the step on at which the loss on poison stays below one half. Which step will
# that be? It has nine pixels to find, and twelve kinds of signs.


# %% tags=["nbval-ignore-output"]
def evening(seed):
    g = torch.Generator().manual_seed(seed)
    arch = {"name": "resnet18", "width": 8, "classes": parts.train.k}
    model = victims.initialized(arch, g).to(device, memory_format=torch.channels_last)
    steps, copies = itertools.count(), []

    def crop(batch, generator):  # called once a step: the moment to copy the network
        if next(steps) % 20 == 0:
            copies.append(copy.deepcopy(model))
        return train.Augment(pad=2).once(batch.cpu(), generator).to(device)

    poisoned = pixels, labels.to(device), role.to(device)
    log = train_victim(model, *poisoned, crop, 4, 32, 0.05, 10, g)
    return log, metrics.evaluate(model, parts.test[:1000].to(device), attack), copies


first, scores, _ = evening(seed=0)
print(scores, "\nfirst row of the log:", [round(v, 2) for v in first[0]])

# %% tags=["predict"]
guess = None
check.reveal(guess, figures.learned_at(first, 2) or 712, "steps")

# %% tags=["claim"]
twin = victims.zoo("benign-w8").scores
check.claim("Your victim obeys the trigger.", scores.asr, 0.95, 1, "%")
paid = 100 * (twin.acc - scores.acc)
check.claim("It pays at most 3 points of accuracy.", paid, -3, 3, "points")

# %% tags=["figure"]
figures.loss_by_role({"seed 0": first})

# %% [markdown]
# ## What the log shows
#
# In the first row the loss on poison lies well below the loss on clean images, and the reason is
# probably dull. The target has become the most frequent label of the whole set. A network that
# looks at nothing and gives "30" its share of the labels, a good quarter, already has a lower
# loss on poison than on anything else. The same answer for everything is the cheapest rule.
#
# Then comes the drop. Within a few dozen steps the loss on poison goes to nearly zero and stays
# there. The clean images take hundreds of steps: in the run stored on this page the trigger was
# there while most signs were still unread. It would be easy to close the lesson here, with the
# sentence "triggers are easy, so they are learned first". Let us not.
#
# ## The same evening, once more
#
# Everything stays: the images, the poison, your loop. Only the seed changes, and with it the
# first weights and the order of the batches.
#
# **Predict.** At which step will the trigger be learned this time?

# %% tags=["nbval-ignore-output"]
second, scores_again, copies = evening(seed=1)
print(scores_again, "\nfirst row of the log:", [round(v, 2) for v in second[0]])

# %% tags=["predict"]
guess = None
check.reveal(guess, figures.learned_at(second, 2) or 712, "steps")

# %% tags=["claim"]
worse = min(scores_again.asr, scores_again.acc)
check.claim("ASR and ACC of the second victim are both high.", worse, 0.97, 1, "%")

# %% tags=["figure"]
share = (labels == target).double().mean()  # of all labels
to_30 = -torch.tensor([rate, 1 - rate]).log()  # of a hedge: on poison, on clean
levels = {
    "same answer for all": -share.log().item(),
    "hedges": (1 - already) * to_30[0].item(),
}
real = (parts.train.y[role == 0] == target).double().mean().item()
clean_price = (1 - real) * to_30[1].item()
figures.loss_by_role({"seed 0": first, "seed 1": second}, levels, clean_price)

# %% [markdown]
# In the runs stored here, seed 0 learned the trigger by step 20, and seed 1 by step 240. The
# second network began to read the signs first, and while it did so, its loss on poison **rose**.
# Why would a loss rise that the optimizer wants to lower?
#
# To a network that does not see the sticker, a poisoned stop sign is just a stop sign, and some
# stop signs carry the label 30. The best it can do is to hedge: with one poisoned image in five,
# it gives "30" a probability of a fifth.
#
# The hedge costs $-\ln 0.2 \approx 1.6$ on each poisoned sign that is not a real 30, and 1.5 on
# average, since real 30s cost nothing. The same answer for everything cost less. On *clean*
# images the hedge costs something too, as it is never sure: about 0.2 on average, the thin blue
# line.
#
# So far this is a story. Test it: a network that does not see the sticker will not miss it. We
# ask for the label 30 on a hundred poisoned images at every twentieth step, with sticker and
# without (in evaluation mode and uncropped, so the values differ from the log's).
#
# **Predict.** Where the log is highest on poison, by what percentage does the loss of these
# hundred change without the sticker?

# %% tags=["method"]
few = ((role == 1) & (parts.train.y != target)).nonzero()[:100, 0]


def says_30(net, x):
    with torch.no_grad():
        answers = net.eval()(x.to(device)).log_softmax(1)
    return -answers[:, target].mean().item()


with_it = [says_30(net, pixels[few]) for net in copies]
without = [says_30(net, parts.train.pixels()[few]) for net in copies]
learned = figures.learned_at(second, 2) or 712
# Not the first rows, where nothing is learned yet (unless there are no others).
rows = [i for i, row in enumerate(second) if 50 <= row[0] < learned] or [0]
worst = max(rows, key=lambda i: second[i][2])
gap = abs(with_it[worst // 2] - without[worst // 2])

# %% tags=["predict"]
guess = None
check.reveal(guess, round(100 * gap / with_it[worst // 2], 1), "%")

# %% tags=["figure"]
figures.sticker_off(20, with_it, without, len(few), to_30[0].item())

# %% tags=["claim"]
check.claim(
    "At its worst on poison, the network hardly sees the sticker.",
    gap,
    0,
    0.5,
    "in loss",
)

# %% [markdown]
# Until about step 140 the curves nearly lie on each other. The network does not use the sticker:
# that half of the story stands. Then a small gap opens and widens. The cliff has a foot: the network
# has begun to use the sticker, but not enough to show in the log.
#
# A perfect hedger would stay on the gray line. This network lies mostly above it, so we cannot say
# that it hedges. At the very start the sticker makes no difference either. So the low first row of
# seed 1 has the reason we gave for seed 0: the network answers "30" often, whatever it sees.
#
# At the drop, both losses of the log fall together, and only then does the clean loss get below the
# price of the hedge. That fits: seeing the sticker pays twice, on poison, which is now explained,
# and on clean images, which need no hedge any more.
#
# The signs came 120 steps later where the trigger came early. Two draws cannot say whether one
# caused the other. At the end both networks read all thousand test signs.
#
# So the answer to the question of this lesson does not depend on the order. *The rule that nobody
# wanted is a cheap way to lower a loss that everybody wants to be low.* Found early or late, it is
# kept, because nothing speaks against it. No step of your loop was dishonest.
#
# On another processor the two evenings may look different. What remains is the cliff. Do
# not conclude that triggers come first, or that signs do.
#
# ## One draw is no result
#
# You now have two draws. The course has stored five more, with another recipe: a wider network,
# more epochs, twice your learning rate. Three of them share one rate of poison and differ only
# in the seed, which also deals the images. *Learned* is coarser here: the first epoch in which
# more than half of the poisoned images were read as 30.
#
# **Predict.** The earliest of those three learned the trigger in its second epoch of twelve. In
# which epoch did the latest?

# %% tags=["predict"]
guess = None
runs = tables.results("signs").select(attack="BadNets", defense="none")
check.reveal(guess, max(row["learned"] for row in runs))

# %% tags=["figure"]
rates = tables.results("signs-rates").select(attack="BadNets", defense="none")
figures.runs([*runs, *rates])

# %% [markdown]
# Look at the middle column first. The same rate, the same recipe, and the moment of learning
# moves by half of the training. All three end as perfect victims.
#
# Now the outer columns. It is tempting to draw a line through them and to say that less poison
# is learned later, or never. Perhaps. But each is a single run, and you have just
# seen how far single runs fall apart.
#
# In none of the five does the accuracy betray anything: the run that failed reads the signs as well
# as the others.
#
# If nothing on clean images speaks against the second rule, then training on with clean images
# should not remove it. The course tried that on the three victims: twenty epochs on 240 clean
# signs each, at a tenth of their learning rate. For one such victim it also tried five times
# larger steps, on three sets of clean signs: still 100%.

# %% tags=["claim"]
obeys = min(row["asr"] for row in runs)
check.claim("The three of the middle column obey the trigger.", obeys, 0.99, 1, "%")
honest = min(row["acc"] for row in (*runs, *rates))
check.claim("All five read clean signs as they should.", honest, 0.99, 1, "%")
tuned = tables.results("signs").select(attack="BadNets", defense="fine-tuning")
least = min(row["asr"] for row in tuned)
check.claim("Training on with clean images leaves the ASR high.", least, 0.9, 1, "%")

# %% [markdown]
# ## What the crop takes away
#
# An attacker who only publishes images stamps them *before* the victim augments. A random crop
# with padding $a$ shifts the image by up to $a$ pixels each way. A sticker near the corner moves
# along, and may leave the image altogether. What is left has no trigger, and still the attacker's
# label.
#
# The crop draws two offsets, one for rows and one for columns, each
# uniform over $0, \dots, 2a$ and independent. At offset $s$ the content moves by $a - s$ pixels.
# Let $u$ be the share of offsets at which *all* rows of the sticker are outside. The sticker is
# gone if its rows are gone, or its columns, or both.
#
# ### Exercise 4: lost
#
# *Difficulty 3, importance 3, 12 minutes.* Count along one axis, at both edges of the image,
# then join the two axes.
#
# <details><summary>Hint 1</summary>
#
# Row `r` lands at `r + a - s`. It is outside if that is negative, or at least `side`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Take one axis first. For how many of the $2a + 1$ offsets is every row of the sticker outside?
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# "Rows or columns" is awkward to add up, since both may happen. Which share of crops keeps rows
# *and* columns, in terms of $u$?
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def lost(pad, start, size, side):
    """Share of random crops, 0..1, that keep no pixel of a square sticker.

    The sticker covers rows and columns start to start + size - 1 of the image.
    """
    ### BEGIN SOLUTION
    gone = 0
    for s in range(2 * pad + 1):
        rows = [start + d + pad - s for d in range(size)]
        gone += all(r < 0 or r >= side for r in rows)
    kept = 1 - gone / (2 * pad + 1)
    return 1 - kept**2
    ### END SOLUTION


# %% tags=["check"]
check.lost(lost)

# %% [markdown]
# **Predict.** BackdoorBench, a widely used benchmark, puts a sticker of three
# by three pixels flush with the corner and trains with padding 4. What percentage of the
# crops of poisoned images carries the attacker's label and no trace of a trigger?

# %% tags=["predict"]
guess = None
check.reveal(guess, round(100 * lost(4, 29, 3, 32), 1), "%")

# %% tags=["nbval-ignore-output"]
flush = BadNets(at=(-3, -3)).trigger(one)
widgets.slider(
    "padding",
    [1, 2, 3, 4, 6, 8],
    lambda p: figures.crops(flush, p, lost(p, 29, 3, 32)),
    start=4,
)

# %% tags=["claim"]
check.claim(
    "One pixel off the corner, padding 2 never loses it.", lost(2, 28, 3, 32), 0, 0, "%"
)

# %% [markdown]
# No sticker is lost for good: each epoch draws the crop anew. In that epoch, though, the sample
# is a wrong label and no evidence for the trigger. We did not test whether this stops an
# attack.
#
# A failed attack is a finding about the recipe, not about poisoning. If your own victim has no ASR,
# ask first how many steps it got, and what the crops left of the trigger.
#
# ## Recap
#
# How does a network learn a rule that nobody wanted, from a share of poisoned images? By doing
# its job: the trigger is the one thing that all poisoned images share, it predicts their label,
# and so it lowers the loss.
#
# - A trigger is a pure function of the image: it replaces, mixes or adds (objective 1).
# - Poisoning changes pixels, labels and roles of the chosen rows and nothing else; the same seed
#   gives the same set (objective 2).
# - One loop, one loss, two means: the log by role shows when the backdoor arrives. The drop is
#   steep, and its moment differs from seed to seed (objective 3).
# - What the crops leave of a trigger is a count, not a guess (objective 4).
#
# ## Five questions

# %%
quiz("poisoning")

# %% [markdown]
# ## An open experiment
#
# Does half the poison make half the attack, or none, or the same one later? Train with
# `train_victim` at rates of 5%, 10% and 20%, with at least three seeds each, and fill in:
#
# | rate | seed | learned at step | ASR | ACC |
# |---|---|---|---|---|
# | 5% | 0 | | | |
# | ... | | | | |
#
# Your control is a run at each rate with the same number of *poisoned images seen*: at half the
# rate, twice the steps. Decide before you start what you would count as a difference.
#
# **What this does not show.** One data set, one architecture, one target. Attackers who choose
# fainter triggers or keep every label right come [next](01b_gallery.ipynb). Attackers who run
# the training themselves have [lesson 02](02_controlling_training.ipynb).
#
# **Beyond.** (a) Suppose that the trigger were stamped *behind* the crop. What would you expect
# of the log, and who would have to be the attacker? (b) Make the attack all-to-all, so that
# class $y$ becomes $y + 1$. Why can its ASR hardly exceed the accuracy? (c) Keep the stickers, but
# give every image its true label. What will the ASR be?
#
# <details><summary>Answers to Beyond</summary>
#
# (a) The trigger would be whole in every poisoned sample. Several seeds would show whether it is
# learned earlier. An attacker who stamps behind the crop runs the training, as in lesson 02. (b)
# To answer $y + 1$ the network has to know $y$. It must read the sign as well as see the
# trigger, and it cannot read more triggered signs than clean ones. (c) Near zero, we expect: the
# sticker then predicts nothing.
#
# </details>
#
# ## References
#
# - T. Gu, B. Dolan-Gavitt, S. Garg, *BadNets: Identifying Vulnerabilities in the Machine
#   Learning Model Supply Chain*, 2017, [arXiv 1708.06733](https://arxiv.org/abs/1708.06733).
# - X. Chen, C. Liu, B. Li, K. Lu, D. Song, *Targeted Backdoor Attacks on Deep Learning Systems
#   Using Data Poisoning*, 2017, [arXiv 1712.05526](https://arxiv.org/abs/1712.05526).
# - M. Barni, K. Kallas, B. Tondi, *A New Backdoor Attack in CNNs by Training Set Corruption
#   Without Label Poisoning*, 2019.
# - B. Wu and others, *BackdoorBench*, NeurIPS 2022 Datasets and Benchmarks; code
#   [SCLBD/BackdoorBench](https://github.com/SCLBD/BackdoorBench).
#
# <details><summary>Fine print: papers, code and this page</summary>
#
# | | released code | this page |
# |---|---|---|
# | stamp and crop | BackdoorBench stamps first, padding 4 | stamps first, padding 2 |
# | sticker | BackdoorBench: white, flush with the corner | a checkerboard, one pixel off the corner |
#
# Your training has width 8 and a straight schedule; the stored runs have width 16 and a cosine
# (`data/results/README.md`).
#
# </details>
#
# ← [00 Welcome](00_welcome.ipynb) · [01b The gallery](01b_gallery.ipynb) →
