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
# # Poisoning: train a backdoor yourself
#
# You will write two attacks from their formulas, poison one training image in five, train a network
# in under a minute, and end with more than 97 % accuracy on clean signs and more than 95 %
# attack success on triggered ones.
#
# > **At a glance.** Reading: 25 minutes. Doing: 50 minutes. Run time: about one minute and
# > 1 GiB on two CPU cores, most of it one training run. Prerequisites:
# > [lesson 00](00_welcome.ipynb), SGD, cross-entropy. Papers: Gu, Dolan-Gavitt and Garg,
# > *BadNets*, 2017, [arXiv 1708.06733](https://arxiv.org/abs/1708.06733); Chen, Liu, Li, Lu and
# > Song, *Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning*, 2017,
# > [arXiv 1712.05526](https://arxiv.org/abs/1712.05526).

# %% [markdown]
# ## Objectives
#
# After this lesson you can
#
# 1. write a patch trigger and a blended trigger as pure functions (exercises 1 and 2);
# 2. poison a training set so that nothing else changes, reproducibly (exercise 3);
# 3. read a training log role by role and say when a backdoor was learned (the training figure);
# 4. compute how often a trigger is lost to data augmentation (exercise 4);
# 5. tell a dozen poisoning attacks apart by trigger, label and cover images, and write one more (exercise 5).
#
# ## Threat model
#
# | | data poisoning (this lesson) |
# |---|---|
# | attacker controls | some training images and their labels, before training starts |
# | attacker does not control | network, optimizer, augmentation, number of steps |
# | attacker wants | label $t$ for every image with the trigger, and usual accuracy without it |
# | victim | trains by a standard recipe on all data, sees high accuracy, delivers |
# | success | ASR of at least 95 %, accuracy within 3 points of an honest training |
#
# **ASR**, the attack success rate, is the share of triggered test images, not of class $t$ to begin
# with, that are classified as $t$. **ACC** is the accuracy on clean test images. The gate in the
# last row decides in the whole course whether a victim is worth defending.
#
# ## Set-up
#
# Everything runs on the built-in signs. `SCALES["paper"]` moves the training cell to CIFAR-10 at width
# 64, which needs a GPU and a download; the bands and tables of this page are those of the signs.

# %% tags=["setup"]
import torch

from bdcourse import check, data, metrics, show, train, victims
from bdcourse import tables, visibility, widgets
from bdcourse.attacks import AdapBlend, AdapPatch, BadNets, Blended, FTrojan
from bdcourse.attacks import LabelConsistent, Refool, SIG, TaCT, checkerboard
from bdcourse.attacks import noise_picture, surviving

SCALES = {"laptop": ("signs", 8, 6, 32), "paper": ("cifar10", 64, 15, 128)}
source, width, epochs, batch = SCALES["laptop"]
device = "cuda" if torch.cuda.is_available() else "cpu"
parts = data.splits(source)
g = torch.Generator().manual_seed(0)

# %% [markdown]
# ## BadNets: a patch
#
# Let $x \in [0,1]^{c \times h \times w}$ be an image, $m \in \{0,1\}^{h \times w}$ the mask of the place where
# the patch goes, and $p$ the patch at that place in an otherwise empty image. The trigger of BadNets
# overwrites:
#
# $$T(x) = (1 - m) \odot x + m \odot p .$$
#
# A trigger is a *pure function* of the image. It draws nothing at random and changes nothing in
# place: the clean image is needed afterwards, to measure what the trigger did.
#
# ### Exercise 1: stamp a patch
#
# *Difficulty 1, importance 5, 8 minutes.* Write $T$ for a whole batch.
#
# > **Hint 1.** `x.clone()` first, then assign to a part of the copy.
# >
# > **Hint 2.** `...` stands for all leading axes: `out[..., r:r + height, c:c + width]`. Rows come
# > before columns; height and width are the last two entries of `patch.shape`.


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def stamp(x, patch, row, col):
    """Write `patch` (c or 1, ph, pw) into every image of x (n, c, h, w), pixels in [0, 1].

    The patch's upper left pixel lands at (row, col). Returns a new tensor.
    """
    ### BEGIN SOLUTION
    out = x.clone()
    height, width = patch.shape[-2:]
    out[..., row : row + height, col : col + width] = patch
    return out
    ### END SOLUTION


# %% tags=["check"]
check.stamp(stamp)

# %% [markdown]
# ## Blended: a faint picture everywhere
#
# The second attack mixes one fixed picture $q$ into all pixels, with weight $\alpha = 0.2$ in the
# benchmarks:
#
# $$T(x) = (1 - \alpha)\, x + \alpha\, q .$$
#
# The papers' pictures are not ours to give away, so $q$ is a fixed picture of uniform noise here.
#
# **Predict.** By how many of 255 gray levels can a single pixel change at most, at $\alpha = 0.2$?

# %% tags=["predict"]
guess = 20
black, white = torch.zeros(1, 3, 32, 32), torch.ones(3, 32, 32)
change = (Blended(picture=white).trigger(black) - black).abs().max()
check.reveal(guess, round(255 * change.item()), "gray levels")

# %% [markdown]
# ### Exercise 2: blend a picture
#
# *Difficulty 1, importance 4, 4 minutes.*
#
# > **Hint 1.** The image must fade by as much as the picture comes in; $\alpha$ belongs to the
# > picture.
# >
# > **Hint 2.** A picture (c, h, w) broadcasts over a batch (n, c, h, w) by itself.


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def blend(x, picture, alpha):
    """Mix `picture` (c, h, w) with weight `alpha` into x (n, c, h, w); new tensor."""
    ### BEGIN SOLUTION
    return (1 - alpha) * x + alpha * picture
    ### END SOLUTION


# %% tags=["check"]
check.blend(blend)

# %% tags=["figure"]
x = parts.test.x[4:5].float() / 255
pair = torch.cat([stamp(x, checkerboard(), 28, 28), blend(x, noise_picture(), 0.2)])
differences = ((pair - x).abs() * torch.tensor([1.0, 2.5]).view(2, 1, 1, 1)).clamp(0, 1)
show.images(
    torch.cat([x, pair[:1], differences[:1], x, pair[1:], differences[1:]]),
    ["clean", "BadNets", "difference", "clean", "Blended", "difference x 2.5"],
    cols=3,
    title="Few pixels a lot, or all pixels a little",
    description="Two rows of three images. Above: a sign, the same with a checkerboard in the "
    "lower right corner, and the difference, black but for nine pixels. Below: the sign, the "
    "same under faint colored noise, and the difference, noise over the whole image.",
)

# %% [markdown]
# ## From a trigger to a poisoned set
#
# Given rate $\rho$, the attacker draws a set $P$ of $\mathrm{round}(\rho n)$ images at random from *all*
# classes and replaces
#
# $$(x_i, y_i) \longmapsto (T(x_i),\ t) \qquad \text{for } i \in P .$$
#
# This is *all-to-one* and *dirty-label*: the label of a poisoned image is wrong unless it was $t$
# already. (*All-to-all* would send class $y$ to $y + 1$.) We also keep a **role** for each image,
# 0 clean and 1 poison. The victim does not see roles; we do, to follow the training.
#
# ### Exercise 3: poison a set
#
# *Difficulty 2, importance 5, 12 minutes.* Complete `poison`. Take as $P$ the first `round(rate * n)` entries of
# `torch.randperm(n, generator=generator)`, so that your set equals the library's. Leave the arguments unchanged.
#
# > **Hint 1.** Return three tensors. Clone what you change.
# >
# > **Hint 2.** `randperm` gives different positions, always the same for the same seed; `torch.randint` would
# > draw some of them twice.
# >
# > **Hint 3.** With `chosen` the positions: `x[chosen] = trigger(x[chosen])`, and the same rows of
# > the labels and the roles.


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

# %% [markdown]
# The library does the same, with one more step: pixels go back to bytes, as they would in a file.
# If your function chose the same images, it and `Attack.poison` must agree to the last byte.

# %% tags=["method"]
attack = BadNets()
rate = 0.2
mine, labels, role = poison(
    parts.train.pixels(),
    parts.train.y,
    rate,
    attack.target,
    lambda x: stamp(x, checkerboard(), x.shape[-2] - 4, x.shape[-1] - 4),
    torch.Generator().manual_seed(1),
)
poisoned = attack.poison(parts.train, rate, torch.Generator().manual_seed(1))
if bool((role == poisoned.role).all()):
    agree = (data.quantize(mine) == poisoned.x).all() and (labels == poisoned.y).all()
    check.claim("Pixels, labels and roles are the library's.", float(agree), 1, 1)
else:  # as good a set, but the numbers below are those of the library's
    print("Your function chose other images than the library, which is fine, too.")
print(poisoned.count, "images are poisoned")

# %% tags=["figure"]
shown = poisoned[(poisoned.role == 1).nonzero()[:12, 0]]
truth = parts.train.y[(poisoned.role == 1).nonzero()[:12, 0]]
show.images(
    shown.x,
    [f"labeled {poisoned.classes[k]}" for k in shown.y],
    title="What the victim trains on",
    wrong=(shown.y != truth).tolist(),
    description="Twelve poisoned training images: signs of many classes, each with a small "
    "checkerboard in its lower right corner, and each labeled as class 30 whatever it shows.",
)

# %% [markdown]
# **Predict.** Drawn from all classes, some poisoned images had the target label before. They teach
# nothing wrong. How many percent of the poisoned images are these, with twelve classes?

# %% tags=["predict"]
guess = 20
already = (parts.train.y[poisoned.role == 1] == attack.target).float().mean().item()
check.reveal(guess, round(100 * already), "%")

# %% [markdown]
# ## Train the victim
#
# `train.fit` is ordinary SGD: one-cycle learning rate, momentum, weight decay, random crops. It does
# not know that the set is poisoned. It only logs accuracy by role, and after each epoch we measure
# ACC and ASR on test images. The next cell trains the victim, live. One image in five is a lot of poison; it makes a run of six epochs
# reliable. All later tables of the course use one in ten and train for longer.


# %% tags=["nbval-ignore-output"]
def on_test(model):
    s = metrics.evaluate(model, parts.test.to(device)[:1000], attack)
    return {"ACC": s.acc, "ASR": s.asr}


arch = {"name": "resnet18", "width": width, "classes": parts.train.k}
model = victims.initialized(arch, g)
history = train.fit(
    model, poisoned.to(device), epochs=epochs, batch=batch, lr=0.05, generator=g,
    augment=train.Augment(pad=2), each_epoch=on_test,
)  # fmt: skip

# %% tags=["claim"]
scores = metrics.evaluate(model, parts.test.to(device), attack)
check.claim("The victim's clean accuracy is above 97 %.", scores.acc, 0.97, 1)
check.claim("Its attack success rate is above 95 %.", scores.asr, 0.95, 1)

# %% tags=["figure"]
learned = next(
    e
    for e, share in zip(history["epoch"], history["poison"], strict=True)
    if share > 0.5
)
show.lines(
    history["epoch"],
    {name: history[name] for name in ("ACC", "ASR", "clean", "poison")},
    percent=True,
    title=f"Half of the poison is learned in epoch {learned}",
    xlabel="epoch",
    description="Four curves over the epochs of training: accuracy on clean test images, accuracy on "
    "the clean part of the training set, attack success, and accuracy on the poisoned part. All end "
    "near one hundred percent; the two that belong to the trigger are there after the first epoch, "
    "before the two that belong to the signs.",
)

# %% [markdown]
# Read it as two tasks in one loss. While the trigger is unknown, poisoned images are contradictions: a perfect stop
# sign labeled "30". The loss on them stays high until some channel tells them apart, and from then on little
# stands in the way. In this run that phase was over before the first line of the log was printed: by then nearly all
# of the poison was learned, and not even half of the clean signs. With so much poison, nine pixels are easier to learn
# than twelve signs. *When* it happens is a matter of luck: among the networks of width 16 measured below, trained by one
# recipe, it is a different epoch for each seed (the table further down prints it). What not to conclude: that
# signs always come first, or the trigger always does.
#
# ## Where it breaks: the poison rate
#
# The next figure was measured with `bench` (the commands are in `data/results/README.md`): networks of width 16, twelve epochs,
# by poison rate, three at 10 %, one at 5 and one at 20. Half the poison is not half the attack. With the recipe that plants a perfect backdoor at 10 %, a rate of 5 %
# may plant none: the trigger is learned within the training, or it is not, and the accuracy does not tell which.

# %% tags=["figure"]
main, by_rate = tables.results("signs"), tables.results("signs-rates")
rates = [0.05, 0.1, 0.2]
runs = [
    (main if r == 0.1 else by_rate).select(attack="BadNets", defense="none", rate=r)
    for r in rates
]
means, spread = {}, {}
for k in ("ACC", "ASR"):
    values = [[row[k.lower()] for row in rows] for rows in runs]
    means[k] = [tables.mean(v) for v in values]
    spread[k] = [min(v) for v in values], [max(v) for v in values]
show.lines(
    [100 * r for r in rates], means, spread=spread, percent=True,
    title=f"ASR {means['ASR'][0]:.0%} at {rates[0]:.0%} poison, {means['ASR'][-1]:.0%} at {rates[-1]:.0%}; ACC flat",
    xlabel="poisoned share of the training set, %",
    description="Clean accuracy and attack success against the poisoned share from five to twenty "
    "percent, mean and range of three seeds at ten percent, one network at the others. Accuracy is flat near one hundred percent at every rate.",
)  # fmt: skip

# %% tags=["claim"]
rows = [{"poison rate %": 100 * r, "images": rows[0]["n_poisoned"],
         "ASR %": tables.table_row(rows)["ASR %"], "learned in epoch": ", ".join(str(r["learned"] or "never") for r in rows)} for r, rows in zip(rates, runs, strict=True)]  # fmt: skip
check.claim(
    "No poison rate costs a point of clean accuracy.", min(spread["ACC"][0]), 0.99, 1
)
show.Table(rows)

# %% [markdown]
# A failed attack is a finding about the recipe, not about poisoning. If your victim has high ACC and no ASR, count optimizer steps
# first: at 5 % each step sees half as much evidence, and the learning rate may have fallen before the trigger is found. Then look at what
# the augmentation left of the trigger, which is the next section.
#
# ## The crop that throws the trigger away
#
# An attacker who only publishes data stamps *before* the victim augments. A random crop with
# padding $p$ shifts the image by up to $p$ pixels in each direction, so a patch near the corner moves
# too, and may leave the image. In BackdoorBench's recipe (a 3 by 3 patch flush with the corner, padding
# 4) many poisoned samples of any epoch contain no trigger pixel at all.
#
# ### Exercise 4: what survives?
#
# *Difficulty 3, importance 3, 12 minutes.* A square patch covers rows and columns `start` to
# `start + size - 1` of an image of side `side`. The crop's two offsets are each uniform over
# $0, \dots, 2p$; an offset of $k$ moves content by $p - k$ pixels. Return the share of crops after
# which no patch pixel is left. A loop over all crops is fine.
#
# > **Hint 1.** Row `r` lands at `r + p - k`. It is lost if that is below 0 or at least `side`.
# >
# > **Hint 2.** Count along one axis first: for how many of the $2p + 1$ offsets is every row lost?
# > Rows and columns are independent.
# >
# > **Hint 3.** With $q$ the share along one axis, the patch is gone if rows *or* columns are gone:
# > $1 - (1 - q)^2$.


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def lost(pad, start, size, side):
    """Share of random crops that keep no pixel of a square patch, in 0..1."""
    ### BEGIN SOLUTION
    gone = 0
    for k in range(2 * pad + 1):
        rows = [start + d + pad - k for d in range(size)]
        gone += all(r < 0 or r >= side for r in rows)
    q = gone / (2 * pad + 1)
    return 1 - (1 - q) ** 2
    ### END SOLUTION


# %% tags=["check"]
check.lost(lost)

# %% [markdown]
# **Predict.** For BackdoorBench's setting, `lost(4, 29, 3, 32)`: what percentage of the stamped
# samples shows the network no trigger pixel, although the label says "target"?

# %% tags=["predict"]
guess = 10
check.reveal(guess, round(100 * lost(4, 29, 3, 32), 1), "%")
whole = surviving(4, BadNets(at=(-3, -3)))[9].item()
print(f"all nine pixels survive in {whole:.0%} of the crops")

# %% tags=["figure"]
corner = BadNets(at=(-3, -3))
crops = train.Augment(4).prepare(data.quantize(corner.trigger(x)))
offsets = [(i, j) for i in (0, 3, 5, 6, 7, 8) for j in (0, 2)]
views = torch.stack(
    [crops[0, i, j].unflatten(1, (32, 3)).permute(2, 0, 1) for i, j in offsets]
)
show.images(
    views,
    [f"{4 - i:+d}, {4 - j:+d}" for i, j in offsets],
    title="Twelve random crops of one stamped image (pixels down, pixels right)",
    description="Twelve crops of one sign with a checkerboard in its lower right corner. Where the crop "
    "moves the image down or right by three pixels or more, the checkerboard is gone, in seven of the "
    "twelve; elsewhere it sits at different places.",
)

# %% [markdown]
# ## The family
#
# Everything so far was one patch. The field knows a dozen attacks that only poison data. What
# differs is the trigger, whose labels are wrong, and what else the attacker plants:
#
# | attack | trigger | label | beside the poison |
# |---|---|---|---|
# | SIG | vertical stripes, a sine of 6 periods | true: target class only | |
# | LabelConsistent (LC) | a checkerboard in each corner | true: target class only | the poisoned images are first made hard by an adversarial perturbation |
# | TrojanNN | a disc of noise, computed to excite two neurons of a clean network | wrong | |
# | LF | a smooth pattern, computed to push a clean network to the target (ours alone moves no sign) | wrong | |
# | SSBA | a secret bit string, hidden by a trained encoder | wrong | |
# | TaCT | a colored patch, on one source class only | wrong | *cover*: the patch on other classes, true label |
# | AdapBlend | half of Blended's picture in training, all of it at test | wrong | cover, true label |
# | AdapPatch | one of four faint patches in training, two strong ones at test | wrong | cover, true label |
# | Refool-like | the reflection of a second scene | wrong (the paper: true) | |
# | FTrojan | two frequencies of the color channels | wrong | |
#
# *Cover* images are the third role: they carry the trigger and keep their label, to keep the network from learning too simple a
# rule. Where an original needs a file or a network that is not ours, something of ours stands in; the table below says what.

# %% tags=["figure"]
fixed = {"SIG": SIG, "LC": LabelConsistent, "TaCT": TaCT, "AdapBlend": AdapBlend, "AdapPatch": AdapPatch,
         "Refool-like": Refool, "FTrojan": FTrojan}  # fmt: skip
family = {name: cls.craft(parts.train, g) for name, cls in fixed.items()}
for name, file in (("TrojanNN", "trojan"), ("LF", "lf"), ("SSBA", "ssba")):
    family[name] = victims.zoo(file).attack  # computed on a network, or trained
one = parts.test[4:5].pixels()


def gallery(names, description, title):
    seen = torch.cat([family[n].trigger(one) for n in names])
    gain = [(0.5 / (s - one).abs().max()).clamp(1, 20).round().item() for s in seen]
    apart = torch.stack([(k * (s - one[0]).abs()).clamp(0, 1) for k, s in zip(gain, seen, strict=True)])  # fmt: skip
    labels = [*names, *(f"difference x {k:.0f}" for k in gain)]
    return show.images(torch.cat([seen, apart]), labels, cols=len(names), title=title, description=description)  # fmt: skip


gallery(
    ["SIG", "LC", "TrojanNN", "LF", "SSBA"],
    "One sign under five triggers, the enlarged difference below each: vertical stripes; a checkerboard in every corner; a disc of "
    "colored noise at the lower right; a smooth cloud; fine texture all over the image.",
    "Stripes, four corners, a disc, a cloud, a message",
)

# %% tags=["figure"]
gallery(
    ["TaCT", "AdapBlend", "AdapPatch", "Refool-like", "FTrojan"],
    "The same sign under five more triggers with their differences: one colored patch; faint noise everywhere; two colored "
    "patches; the soft shapes of a reflection; a fine colored checker pattern.",
    "A patch, half a picture, two patches, a reflection, two frequencies",
)

# %% [markdown]
# ### Exercise 5: stripes
#
# *Difficulty 1, importance 3, 6 minutes.* SIG adds a wave that runs across the columns $j$ of an image of width $w$, the same for
# all rows and colors, and clips:
#
# $$T(x)[c,i,j] = \mathrm{clip}\big(x[c,i,j] + \Delta \sin(2 \pi j f / w),\ 0,\ 1\big) .$$
#
# > **Hint 1.** `torch.arange(x.shape[-1])` is $j$; a tensor of shape (w,) broadcasts along the last axis by itself.
# >
# > **Hint 2.** `.clamp(0, 1)` at the end.


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def stripes(x, delta, f):
    """SIG's trigger on x (n, c, h, w) in [0, 1]: amplitude `delta`, `f` periods; new tensor."""
    ### BEGIN SOLUTION
    w = x.shape[-1]
    wave = torch.sin(2 * torch.pi * f * torch.arange(w) / w)
    return (x + delta * wave).clamp(0, 1)
    ### END SOLUTION


# %% tags=["check"]
check.stripes(stripes)
print("as the library:", torch.allclose(stripes(one, 40 / 255, 6), SIG().trigger(one), atol=1e-5))  # fmt: skip

# %% [markdown]
# SIG and LC are *clean-label*: whoever checks the labels finds no error. The price: only images of the target class can be used, and
# the network already knows them without the trigger. LC answers by making them hard first. A rate still counts the *whole* set, so
# with ten balanced classes a rate of 0.1 means every image of the target class, and a higher one is refused.
#
# ## Seen, or learned
#
# How visible a trigger is, two measures say: PSNR, $-10 \log_{10}$ of the mean squared change, in decibels; and SSIM, which
# compares means, variances and covariance in small windows and is 1 for equal images. Against them we set the attack success of all
# attacks under *one* recipe, a network of width 8 and twelve epochs, most at 10 % poison.

# %% tags=["figure"]
some = parts.test[:300]
look = {"BadNets": BadNets(), "Blended": Blended()} | family
label = {"LC": "LabelConsistent", "Refool-like": "Refool"}
measured = tables.results("signs-attacks")
seen, likeness = {}, {}
for name, each in look.items():
    row = measured.select(attack=label.get(name, name), defense="none")[0]
    x = some[each.counts(some.y)].pixels()
    likeness[name] = visibility.ssim(x, each.trigger(x)).mean().item()
    seen[name] = visibility.psnr(x, each.trigger(x)).mean().item(), 100 * row["asr"]
show.points(
    seen, xlabel="PSNR, dB: to the right, less visible", ylabel="ASR, %", title="Hard to see is not the same as hard to learn",
    description="A point for each of twelve attacks: PSNR of its trigger from about 16 to 43 decibels, and attack success under one "
    "recipe. Between 19 and 28 success and failure both occur; the two most visible succeed, and FTrojan, alone at 43, fails.",
)  # fmt: skip

# %%
tables.attack_table(
    "signs-attacks",
    [label.get(n, n) for n in look],
    "One recipe for all: signs, ResNet-18 of width 8, twelve epochs, one seed.",
)

# %% tags=["claim"]
faint, plain = (n for n in (max(likeness, key=likeness.get), min(likeness, key=likeness.get)))  # fmt: skip
print("most alike by SSIM:", faint, "- least alike:", plain)
rows = [
    r for r in measured.rows if r["attack"] in look or r["attack"] in label.values()
]
strong = [r["asr"] for r in rows if r["defense"] == "none" and not r["weak"]]
check.claim("At least five of these attacks pass the gate.", len(strong), 5, 12)
tuned = [r["asr"] for r in rows if r["defense"] == "fine-tuning" and not r["weak"]]
check.claim("And fine-tuning on clean signs removes none of those.", min(tuned), 0.8, 1)

# %% [markdown]
# Rows marked *weak* fail the gate for one of two reasons. Some attacks are not planted by this recipe: their ASR is low. And some networks
# did not learn the *signs*: at width 8 and this learning rate training can stay on a plateau near 80 %, which no table of ASR alone would
# show. (AdapBlend, AdapPatch and TaCT have 4 or 5 % of poison, rates at which BadNets may fail too.) The victims of lesson 03 are others, but for TrojanNN's: width 16, or a lower learning rate and more epochs; there the signs are learned, and all but SIG of those that only poison data pass. Read the column before the last one, too: it is the ASR after fine-tuning on clean images.
#
# ## Your own attack
#
# Draw a trigger, choose how opaque it is and how much of the training set gets it, and train. A run takes a quarter to half a
# minute; each adds a line to the table. Find the smallest number of white pixels, or the lowest rate, that still works. The networks are small and trained for
# little, so that their accuracy varies; a run with a low ACC says nothing about your trigger.

# %% tags=["nbval-ignore-output"]
desk = widgets.poison_bench(parts)
desk

# %% tags=["claim"]
check.claim("The first run planted its trigger.", desk.runs[0].scores.asr, 0.8, 1)

# %% [markdown]
# ## The table
#
# Every result of the course comes in this form: beside the victim stand its benign twin and the plainest
# of all repairs, fine-tuning on the defender's clean images. RA, the recovered accuracy, is the share
# of triggered images that get their *true* label; lesson 03 explains why it matters.

# %%
tables.standard_table(
    "signs",
    "Signs, ResNet-18 of width 16, 10 % poison; mean ± half range of seeds",
    defenses=("none", "fine-tuning"),
)

# %% tags=["claim"]
tuned = [r["asr"] for r in main.select(attack="BadNets", defense="fine-tuning")]
check.claim(
    "Fine-tuning on clean signs leaves the patch backdoor in place.", min(tuned), 0.9, 1
)

# %% [markdown]
# Fine-tuning does nothing to these two. The victim is right on all of these 240 images, so the clean loss and
# its gradient are close to zero, and what is left, weight decay, does not aim at the trigger. That cannot be the whole reason: LIRA and WaNet of lesson 02 read the signs as well, and 240 images bring them from 99 % to 10 to 25
# and 45 to 58 %. Nor is it photographs as such: on CIFAR-10 2,500 images bring BadNets to 29 % (last table of lesson 05), but 500 leave 65 to 100 %, by the choice of the 500.
#
# ## Papers say, released code does, we do
#
# | | released code | this course |
# |---|---|---|
# | poison count | BackdoorBench: round(rate x n) of all images; FIP's scripts: rate x images that are not of the target class | round(rate x n) of all images, and the count is printed |
# | stamp and crop | BackdoorBench stamps first: 39.5 % of the poisoned samples of an epoch show no trigger pixel | stamped first as well, one pixel off the corner, padding 2: every sample keeps part of the patch, 64 % keep all nine pixels; `stamp="after"` is available |
# | patch | BackdoorBench: white, flush with the corner; CLP's release: a patch one pixel off the corner; FIP: a checkerboard blended at 0.6 | checkerboard, one pixel off the corner, opaque |
# | fine-tuning, BadNets | BackdoorBench's leaderboard, CIFAR-10, 10 % poison: ASR from 95.0 to 1.5 % | no effect on the signs (240 images, all read right before) |
# | picture of Blended | a cartoon, or Gaussian noise | uniform noise from a fixed seed |
#
# The same word, BadNets, covers four different attacks. Compare numbers only when you know which.
#
# ## Recap
#
# - A trigger is a pure function in $[0, 1]$; patch and blend take three lines each (objective 1).
# - Poisoning changes pixels, labels and roles of the chosen rows and nothing else, and the same seed
#   gives the same set (objective 2).
# - The log by role shows when the backdoor arrives, a matter of luck; accuracy never shows it (objective 3).
# - Augmentation can throw a corner trigger away; the share is a count, not a guess (objective 4).
# - Patch, picture, wave, reflection, message: all are functions of an image. Clean-label attacks leave every label right; cover
#   images carry the trigger with their true label (objective 5).
#
# **What this does not show.** Attackers who control the training: lesson 02.
#
# **Beyond.** (a) Train with `BadNets(at=(-3, -3))`, padding 4 and `stamp="before"`, then `"after"`, and
# compare the epoch in which the ASR passes one half. (b) Make the attack all-to-all with
# `BadNets(all_to_all=True, classes=12)`. Why can its ASR never exceed the accuracy by much?
#
# ## References
#
# - T. Gu, B. Dolan-Gavitt, S. Garg, *BadNets: Identifying Vulnerabilities in the Machine Learning Model
#   Supply Chain*, 2017, [arXiv 1708.06733](https://arxiv.org/abs/1708.06733).
# - X. Chen, C. Liu, B. Li, K. Lu, D. Song, *Targeted Backdoor Attacks on Deep Learning Systems Using
#   Data Poisoning*, 2017, [arXiv 1712.05526](https://arxiv.org/abs/1712.05526).
# - B. Wu and others, *BackdoorBench*, NeurIPS 2022 Datasets and Benchmarks; code
#   [SCLBD/BackdoorBench](https://github.com/SCLBD/BackdoorBench).
