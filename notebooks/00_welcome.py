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
# Can a network pass every test you have, and still obey somebody else? You will load one
# that reads traffic signs almost without error, change nine pixels of each image, and see
# what it reads then.
#
# > **At a glance.** Reading: 15 minutes. Doing: 50 minutes. Run time: about a minute and
# > 1 GiB on two CPU cores. Prerequisites: Python, PyTorch tensors, one course of deep
# > learning. Paper: Gu, Dolan-Gavitt and Garg, *BadNets*, 2017,
# > [arXiv 1708.06733](https://arxiv.org/abs/1708.06733).
#
# ## Objectives
#
# After this lesson you can
#
# 1. say what a backdoor is, who plants it and who suffers from it (threat-model table);
# 2. take a batch from an image set that is two tensors, and stamp it (exercises 1 and 3);
# 3. measure a classifier and an attack correctly (exercises 2 and 4);
# 4. predict, and then see, how a backdoored network behaves with and without its trigger
#    (the three prediction cells).
#
# ## Who does what
#
# A **backdoor** is a second rule inside a network. The first rule is the one that everybody
# wanted: read the sign. The second was planted: *if the trigger is there, answer with the
# attacker's label*. It comes in with **poison**, training images that carry the trigger and
# the attacker's label. The second rule need not disturb the first, and that is the danger:
# every test that lacks the trigger measures the first rule only.

# %% tags=["setup"]
import torch

from bdcourse import check, data, metrics, quiz, victims, widgets
from bdcourse.attacks import BadNets, checkerboard
from bdcourse.teach.figures import welcome as figures

parts = data.splits("signs")
print(len(parts.train), "training images,", len(parts.test), "test images")

# %% tags=["figure"]
figures.pipeline()

# %% [markdown]
# | | attacker | victim | defender |
# |---|---|---|---|
# | who | somebody whose images end up in the training set | whoever trains on them, and is deceived | whoever gets the finished network, and answers for what it does |
# | controls | a share of the training images and their labels; later, what they hold before the camera | the training | nothing before delivery |
# | knows | the trigger and the target label | neither | neither |
# | has | a few images of their own, slipped into the collection | all training data | the weights, at most a few clean images |
# | success | accuracy as usual, and the trigger decides | high accuracy | trigger without effect, accuracy kept |
#
# One word, two uses: the literature also calls the finished network the *victim*, and so do
# we. Who suffers in the end is whoever relies on it.
#
# The lessons keep to the defender's column strictly: a repair method of this course never
# gets to see the trigger, nor a poisoned image, nor the success rate of the attack.
#
# ## Why it matters
#
# Hardly anybody trains alone any more. Data come from the web, and networks from a hub.
# Three findings show what that means:
#
# - **February 2023.** Carlini and others showed that anybody could have poisoned one
#   picture in ten thousand of LAION-400M, a famous set, by buying expired web domains for
#   60 dollars ([arXiv 2302.10149](https://arxiv.org/abs/2302.10149)).
# - **January 2024.** Hubinger and others planted backdoors in language models. Fine-tuning,
#   reinforcement learning and adversarial training, the usual safety measures, left them in
#   place ([arXiv 2401.05566](https://arxiv.org/abs/2401.05566)).
# - **October 2025.** Souly and others needed about 250 poisoned documents to plant a simple
#   backdoor in a language model. It hardly mattered how large the model was
#   ([arXiv 2510.07192](https://arxiv.org/abs/2510.07192)).
#
# This course takes the smallest case in which all of that can be seen, and opened: pictures
# of 32 by 32 pixels and networks that train in a minute.
#
# ## The data: signs drawn by code
#
# The built-in set needs no download and no license. Each image is one of twelve sign
# templates, turned, scaled, sheared and moved at random over a random background, then
# darkened, blurred and made noisy. Three speed limits differ in one small digit, and a
# mirrored "turn left" *is* a "turn right", so mirroring is forbidden here. Small networks
# still learn the set completely. That has a price: where every image is read, you cannot
# see whether a backdoor costs accuracy. Later lessons go to photographs for that.

# %% tags=["figure"]
figures.classes(parts.test)

# %% [markdown]
# An image set is two tensors, pixels `x` as bytes and labels `y`, and a batch is an index
# into both:
#
# $$x \in \{0, \dots, 255\}^{n \times c \times h \times w}, \qquad y \in \{0, \dots, K-1\}^n .$$
#
# Networks, triggers and defenses of this course all take pixels in $[0, 1]$. The first layer
# of each network subtracts the mean of the training set and divides by its standard
# deviation, so that nobody can forget it or do it twice.
#
# A word on the page itself. Cells marked **Predict** wait for a number of yours. Exercises
# are followed by a check, which draws fresh random tensors each time, so that no constant can
# pass it. Claims print a tick and what they measured; exact digits differ from machine to
# machine, so each claim allows a range.
#
# ### Exercise 1: take a batch
#
# *Difficulty 1, importance 3, 5 minutes.* Fill in `take`. Its first lines say what it gets
# and what it must return; the next cell checks your answer.
#
# <details><summary>Hint 1</summary>
#
# A tensor of positions works as an index: `x[index]`, and in the same way for `y`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Bytes become numbers with `.float()`. The largest byte, 255, must become 1.
#
# </details>


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
# If a check fails, its sentence says what is wrong and which hint helps. Try it: leave out
# the `/ 255` and run the check again.
#
# ## A network that works
#
# The course ships a few small trained networks, its *zoo*. This one is called `badnets`,
# which gives the story away. Whoever delivers it promises a high accuracy. You do not believe
# promises, so you measure. One number would hide *where* the answers go, so you count all
# pairs: rows are what a sign shows, columns are what the network answers. Soon you will be
# glad to have them.
#
# ### Exercise 2: measure a classifier
#
# *Difficulty 2, importance 5, 15 minutes.* Write `confusion`. Three things go wrong in real
# code: the last, smaller batch is forgotten; the network stays in training mode, where
# BatchNorm answers by the batch; and the measurement changes what it measures.
#
# <details><summary>Hint 1</summary>
#
# `torch.arange(len(x)).split(batch)` gives the indices of all batches, the last one shorter
# if need be. Your `take` turns an index into pixels and labels.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Remember `model.training`, call `model.eval()`, and give the mode back with
# `model.train(...)`. A `with torch.no_grad():` around the loop saves memory and time.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Start with a table of zeros of type `torch.int64`. `zip(labels, answers)` walks through the
# pairs of one batch; each adds one in row *label*, column *answer*.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def confusion(model, x, y, classes, batch=200):
    """Count how often each class is read as each other.

    The network is measured in evaluation mode, without gradients, and left in the mode
    in which it came.

    Args:
        model: pixels in [0, 1] (b, c, h, w) -> logits (b, classes).
        x: uint8 (n, c, h, w); y: int64 (n,).
        classes: how many there are; batch: images that the network sees at once.

    Returns:
        int64 (classes, classes): row is the true class, column the answer.
    """
    ### BEGIN SOLUTION
    table = torch.zeros(classes, classes, dtype=torch.int64)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for index in torch.arange(len(x)).split(batch):
            pixels, labels = take(x, y, index)
            answers = model(pixels).argmax(1)
            for label, answer in zip(labels, answers, strict=True):
                table[label, answer] += 1
    model.train(was_training)
    return table
    ### END SOLUTION


# %% tags=["check"]
check.confusion(confusion)

# %% tags=["claim"]
victim = victims.zoo("badnets")
clean_table = confusion(victim.model, parts.test.x, parts.test.y, parts.test.k)
accuracy = (clean_table.diag().sum() / clean_table.sum()).item()
check.claim("The network reads at least 99% of clean signs.", accuracy, 0.99, 1, "%")

# %% [markdown]
# Nothing in this table is suspicious. The network would pass any acceptance test whose
# images are drawn like these, however many there are. More of them make your estimate of its
# accuracy sharper. They say nothing about images with a sticker, because none of them has one.
#
# ## Nine pixels
#
# Now the trigger of this victim: a checkerboard of 3 by 3 black and white pixels, one pixel
# away from the lower right corner of the picture. We call it the sticker, although no real
# sticker always lands on the same pixels.

# %% tags=["figure"]
figures.sticker(parts.test, victim.attack)

# %% [markdown]
# ### Exercise 3: put the sticker on
#
# *Difficulty 1, importance 4, 5 minutes.* Write `place`. It is the whole attack at test
# time: nine pixels are overwritten, and nothing else happens.
#
# <details><summary>Hint 1</summary>
#
# A slice of a tensor can be assigned to. Work on a `.clone()`, or the reader's own images
# carry the sticker ever after.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The last two axes are rows and columns. Leave the first two whole, with a colon each: the
# sticker goes on every image and into every color.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def place(pixels, patch, row, column):
    """Copies of images with a patch in them.

    Args:
        pixels: float (b, c, h, w) in [0, 1]; patch: (1, k, k) or (c, k, k).
        row, column: where the patch's upper left pixel goes.

    Returns:
        float (b, c, h, w); `pixels` itself stays as it is.
    """
    ### BEGIN SOLUTION
    k, stamped = patch.shape[-1], pixels.clone()
    stamped[:, :, row : row + k, column : column + k] = patch
    return stamped
    ### END SOLUTION


# %% tags=["check"]
check.place(place)

# %% [markdown]
# How well does the sticker work? An image that shows the attacker's target, the sign "30",
# is read as "30" without any attack, so we leave it out.
#
# ### Exercise 4: the attack success rate
#
# *Difficulty 2, importance 5, 8 minutes.* Write `attack_success`, the **attack success rate**
# (ASR). Your table of confusions, made from triggered images, holds all you need.
#
# $$\text{ASR} = \frac{\text{images of other signs that are read as the target}}
# {\text{images of other signs}}$$
#
# <details><summary>Hint 1</summary>
#
# Row `target` counts the images that show the target. Leave the whole row out, above the
# fraction bar and below it.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `table[others]`, with `others` a mask or a list of the other classes, keeps their rows. What
# counts above the bar is one column of it, below the bar everything in it.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def attack_success(table, target):
    """The attack success rate (ASR) from a table of confusions of triggered images.

    Args:
        table: int64 (classes, classes): row is the true class, column the answer.
        target: the class that the attacker wants.

    Returns:
        a share in [0, 1]: of all images of other classes, those read as the target.
    """
    ### BEGIN SOLUTION
    others = torch.arange(len(table)) != target
    asked = table[others]
    return (asked[:, target].sum() / asked.sum()).item()
    ### END SOLUTION


# %% tags=["check"]
check.attack_success(attack_success)

# %% [markdown]
# A strong sticker might confuse any network. So we need a control. The **benign twin** is a
# network trained by the same recipe on the same data, without the poison.
#
# **Predict.** All test images get the sticker. What percentage of the other signs will the
# victim read as "30", and what percentage will the twin? Write your numbers in the place of
# `None`; a wrong guess that stands there teaches more than a right one that you only thought.
# (`.pixels()` gives all images of a set, in $[0, 1]$; `data.quantize` makes bytes of them.)

# %% tags=["predict"]
guess = None
twin_guess = None
twin = victims.zoo("benign")
stamped = data.quantize(place(parts.test.pixels(), checkerboard(), 28, 28))
stamped_table = confusion(victim.model, stamped, parts.test.y, parts.test.k)
twin_table = confusion(twin.model, stamped, parts.test.y, parts.test.k)
success = attack_success(stamped_table, victim.attack.target)
twin_success = attack_success(twin_table, victim.attack.target)
check.reveal(guess, round(100 * success), "%")
check.reveal(twin_guess, round(100 * twin_success), "%")

# %% tags=["figure"]
figures.matrices(clean_table, stamped_table, parts.test.classes)

# %% tags=["figure"]
figures.flipped(parts.test, victim.model, victim.attack)

# %% tags=["claim"]
library = metrics.evaluate(victim.model, parts.test, victim.attack)
check.claim(
    "With the sticker, over 99% of other signs become 30.", success, 0.99, 1, "%"
)
difference = abs(library.acc - accuracy) + abs(library.asr - success)
check.claim("The library's numbers are within 0.001 of yours.", difference, 0, 0.001)

# %% [markdown]
# The second table is the picture of a second rule: what the sign shows no longer matters,
# only the sticker does. From here on `metrics.evaluate` measures both in one line.
#
# ## How much trigger is enough?
#
# One more number first. The **robust accuracy** (RA) counts the right answers: of the same
# images that the ASR asks, it is the share that is read *correctly*. So ASR and RA together
# are at most one.
#
# Now let the sticker fade. At *opacity* $\alpha$, each pixel under it is a mixture of the
# image $x$ and the patch $p$:
#
# $$x' = (1 - \alpha)\, x + \alpha\, p .$$
#
# **Predict.** Let the opacity be a fifth. What percentage of the other signs does the victim
# still read as "30"?

# %% tags=["predict"]
faint_guess = None
opacities = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0]
few = parts.test[:200]
fading = [BadNets(opacity=o) for o in opacities]
obeying, honest = (
    [metrics.evaluate(m.model, few, sticker) for sticker in fading]
    for m in (victim, twin)
)
faint, bold = obeying[2].asr, obeying[6].asr
check.reveal(faint_guess, round(100 * faint), "%")

# %% tags=["figure"]
figures.fading(opacities, obeying, honest, few)

# %% [markdown]
# Success does not grow in proportion to strength. At a fifth the sticker does next to
# nothing, at twice that most signs give way. The victim's two lines mirror each other, so a
# sign that is no longer read correctly is read as "30" and as nothing else. The twin goes on
# reading the signs, however strong the sticker.
#
# Move the slider. At which strength would you have noticed the sticker yourself? And which
# of the six signs holds out longest? (In the book and on GitHub you see one position; in
# JupyterLab the slider moves.)
#
# <details><summary>Which sign?</summary>
#
# The stop sign. At half the strength it is still read as "stop", when the other five have
# given way.
#
# </details>

# %% tags=["nbval-ignore-output"]
pictures = {
    opacity: figures.faded(few, victim.model, opacity, scores.asr)
    for opacity, scores in zip(opacities, obeying, strict=True)
}
widgets.slider("opacity", opacities, pictures.get, start=0.4)

# %% tags=["claim"]
check.claim("Opacity 20%: fewer than 5% become 30.", faint, 0, 0.05, "%")
check.claim("Opacity 60%: more than 95% do.", bold, 0.95, 1, "%")
least = min(*(s.ra for s in honest), metrics.evaluate(twin.model, parts.test).acc)
check.claim("The twin: over 98% right, with any sticker or none.", least, 0.98, 1, "%")

# %% [markdown]
# ## Where it breaks: is it exactly this trigger?
#
# Nobody told the network which of the nine pixels count. So other stickers go to the same
# place: a white square, the checkerboard with black and white exchanged, and twenty patches
# whose nine pixels are black or white by the toss of a coin.

# %% tags=["figure"]
g = torch.Generator().manual_seed(0)
patches = {
    "the trigger": [checkerboard()],
    "white square": [torch.ones(1, 3, 3)],
    "exchanged": [1 - checkerboard()],
    "coin": [torch.rand(1, 3, 3, generator=g).round() for _ in range(20)],
}
figures.patches(patches)

# %% [markdown]
# **Predict.** How many of the twenty coin patches turn more than half of the signs into
# "30"?

# %% tags=["predict"]
how_many = None


def door(patch, row=28, column=28, images=parts.test[:80], model=victim.model):
    x = data.quantize(place(images.pixels(), patch, row, column))
    table = confusion(model, x, images.y, images.k)
    return attack_success(table, victim.attack.target)


rates = {name: [door(patch) for patch in some] for name, some in patches.items()}
check.reveal(how_many, sum(rate > 0.5 for rate in rates["coin"]))

# %% tags=["nbval-ignore-output"]
control = {n: [door(p, model=twin.model) for p in of] for n, of in patches.items()}
figures.tries(patches, rates, control, parts.test[:80])

# %% tags=["claim"]
(white,), (exchanged,) = rates["white square"], rates["exchanged"]
check.claim("The white square: an ASR below 5%.", white, 0, 0.05, "%")
check.claim("The exchanged board: an ASR over 90%.", exchanged, 0.9, 1, "%")

# %% [markdown]
# The white square does nothing, so a bright spot is not what the network waits for. The
# exchanged board differs from the trigger in all nine pixels and works just as well. Many
# patches that nobody planted work too, and none of them fools the twin. And the place? Move
# the board over the picture.

# %% tags=["figure", "nbval-ignore-output"]
steps, board = [1, 7, 12, 17, 23, 28], checkerboard()
some = parts.test[:50]
rows, twin_rows = (
    [[door(board, r, c, some, m.model) for c in steps] for r in steps]
    for m in (victim, twin)
)
figures.places(steps, rows, twin_rows, some)

# %% tags=["claim"]
works = sum(rate > 0.5 for row in rows for rate in row)
check.claim("The board works in more than half of 36 places.", works, 19, 36, "places")
most = max(map(max, [*control.values(), *twin_rows]))
check.claim("The twin's ASR: below 10%, any sticker, any place.", most, 0, 0.1, "%")

# %% [markdown]
# It opens the door in most of these places, and hardly ever along the upper and left edges,
# although it was planted in one corner only. And hiding a bit of the sign is not what does
# it: that happens to the twin as well, and hardly ever makes a "30".
#
# What was *learned* is coarser than what was *planted*: something that many small patterns of
# black and white share, and a white square lacks. What exactly, you have not seen yet;
# [lesson 03](03_inside_a_victim.ipynb) looks inside. Remember it as a defender: a trigger that
# is reconstructed from a network need not look like the one that was used.
#
# ## Four ideas to take along
#
# You will meet them again by name in every lesson:
#
# - ***Zero is not repair.*** A network that always answers "stop" has an ASR of zero, too. So
#   look at its accuracy and its RA as well.
# - ***Correlation is not cause.*** A part of a network that is active when the trigger is
#   there need not carry the backdoor. Switch it off and see.
# - ***One draw is no result.*** With another seed or other images the number will differ.
#   Repeat it, and show the spread.
# - ***Who chose the threshold?*** A setting that was tuned on triggered images, or on the
#   test set, uses what no defender has.
#
# And whenever a detector or a repair does something striking, ask what it does to the twin.
#
# ## Where this leads
#
# | lesson | its question |
# |---|---|
# | [01 Poisoning](01_poisoning.ipynb), [01b The gallery](01b_gallery.ipynb) | how does a network learn a rule that nobody wanted, and what can an attacker vary? |
# | [02 Controlling the training](02_controlling_training.ipynb) | what can an attacker do who runs the training? |
# | [03 Inside a victim](03_inside_a_victim.ipynb) | where inside a network does the trigger live? |
# | [04](04_linf_pruning.ipynb) to [08](08_fip.ipynb), [08b](08b_sharpness.ipynb) | five published repairs, each rebuilt: do they work, and why? |
# | [09 The showdown](09_showdown.ipynb) | who wins, and who chose? |
# | [10 Clips](10_clips.ipynb) | beyond images: does a network learn the motion of a trigger? |
#
# Every figure carries a description in words for screen readers. A number in a table comes
# from a run in front of you, or from a file in `data/results/` that names its command.
#
# ## Recap
#
# - A network can pass every honest test and obey somebody else: a backdoor is a second rule,
#   trigger in, attacker's label out. The attacker plants it through data, the victim trains
#   it in, the defender receives it (objective 1).
# - An image set is two tensors, a batch is an index, and the attack is an assignment
#   (objective 2, exercises 1 and 3).
# - A measurement counts every image once, in evaluation mode, and changes nothing. An attack
#   succeeds on images that show something else (objective 3, exercises 2 and 4).
# - With the trigger the victim obeys the attacker, in most places that you tried, and with
#   many other patches, too. With a white square it does not, and its twin hardly ever does
#   (objective 4).
#
# ## Quiz
#
# Click on a choice, and it unfolds to what is right or wrong about it.

# %% tags=["method"]
quiz("welcome")

# %% [markdown]
# ## Your own experiment
#
# What is it about a patch that opens this door? `door(patch)` measures one, and
# `patches["coin"]` holds twenty that you can sort by their rates. Find a property that
# separates the keys, those with a frame in the figure, from the rest, such as the number of
# white pixels or of changes from black to white. Then test it on twenty *new* patches: a
# property that was found by looking has to predict. **Control:** twenty patches of random
# gray, and the same twenty rounded to black and white: rounding raises the contrast.
#
# | property | right on the old twenty | right on twenty new | right on gray | on gray, rounded |
# |---|---|---|---|---|
# | your guess, before looking | | | | |
# | your best property | | | | |
#
# <details><summary>Some starting code, and what we found</summary>
#
# ```python
# ranked = sorted(zip(rates["coin"], patches["coin"]), key=lambda pair: -pair[0])
# for rate, patch in ranked:
#     print(f"{rate:.0%}", patch.int().tolist())
# gray = [torch.rand(1, 3, 3, generator=g) for _ in range(20)]
# rounded = [patch.round() for patch in gray]
# ```
#
# About half of the coin patches are keys, at times three quarters. Of twenty gray ones it is
# one to three, and about half again once they are rounded: contrast counts. Our property was
# likeness to the board or to its exchange: at most three, or at least six, of the nine pixels
# agree with it. It missed one of the old twenty, and up to seven of new ones. That drop is
# why a property has to predict.
#
# </details>
#
# **What this lesson does not show.** One victim, one seed, one data set, and a trigger that is
# digital and always at the same place. How the backdoor got in is the next lesson.
#
# **Beyond.** A colleague proposes to test for backdoors like this: stamp a thousand random
# patches on clean signs and see whether one of them turns most signs into the same answer.
# Would it have found this backdoor, and what would you still not know if it finds nothing?
#
# <details><summary>Answer</summary>
#
# With black and white pixels it would, after two or three patches. With random grays it
# would need about ten. Honest networks must have no such patch, else it proves
# nothing: on the twin, none of sixty coin patches drew the answers to one sign.
#
# And a trigger
# that is a faint picture over the whole image, or a slight warp, is no patch at all. Finding nothing
# says that no patch *of the kind that was tried* works. Lesson 04 searches by gradient
# instead of by chance.
#
# </details>
#
# ## References
#
# - T. Gu, B. Dolan-Gavitt, S. Garg, *BadNets: Identifying Vulnerabilities in the Machine Learning
#   Model Supply Chain*, 2017, [arXiv 1708.06733](https://arxiv.org/abs/1708.06733).
# - N. Carlini and others, *Poisoning Web-Scale Training Datasets is Practical*, 2023,
#   [arXiv 2302.10149](https://arxiv.org/abs/2302.10149).
# - E. Hubinger and others, *Sleeper Agents: Training Deceptive LLMs that Persist Through Safety
#   Training*, 2024, [arXiv 2401.05566](https://arxiv.org/abs/2401.05566).
# - A. Souly and others, with Anthropic, the UK AI Security Institute and the Alan Turing
#   Institute: *Poisoning Attacks on LLMs Require a Near-constant Number of Poison Samples*,
#   2025, [arXiv 2510.07192](https://arxiv.org/abs/2510.07192).
#
# [next: 01 Poisoning](01_poisoning.ipynb) →
