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
# # How sharp is it? Measuring curvature honestly
#
# A paper prints one number for a backdoored network and one for a clean network. The
# first is larger, and the text says: a backdoor sits in a sharper minimum.
#
# Could you check such a number? It belongs to a matrix with seven hundred thousand
# rows, which would fill two terabytes. You will measure it on a laptop, with code of
# your own, and then you will put the number itself on trial. **What does it take to
# say that one network is sharper than another?**
#
# > **At a glance.** An appendix to [lesson 08](08_fip.ipynb). Reading: 20 minutes.
# > Doing: 45 minutes. Run time: about a minute and 1 GiB on two CPU cores.
# > Prerequisites: gradients of gradients. Paper: Karim, Al Arafat, Rakin, Guo and
# > Rahnavard, *Fisher Information guided Purification against Backdoor Attacks* (FIP),
# > CCS 2024, [arXiv 2409.00863](https://arxiv.org/abs/2409.00863). We had its
# > abstract, its figures and its authors' code.

# %% [markdown]
# ## Objectives
#
# After this lesson you can
#
# 1. estimate a trace from a few products with random signs (exercise 1);
# 2. find the eigenvalue of largest size, with its sign (exercise 2);
# 3. measure the sharpest direction of a real network (exercise 3);
# 4. make a network sharper without changing what it does (exercise 4), and say what a
#    sharpness can tell and what it cannot.
#
# ## Threat model
#
# | | measuring sharpness |
# |---|---|
# | attacker | poisoned the training data of the victim |
# | whoever measures | has the network and clean labeled images, and chooses which |
# | the comparison | a benign twin: same recipe, no poison, measured on the same images |
# | success | "sharper" holds whichever images they choose |

# %% tags=["setup"]
import copy

import torch
import torch.nn.functional as F

from bdcourse import check, curvature, data, landscape, quiz, tables, victims, widgets
from bdcourse.teach.figures import sharpness as figures

parts = data.splits("signs")
victim, twin = victims.zoo("badnets").model, victims.zoo("benign").model

# %% [markdown]
# ## The matrix that nobody writes down
#
# Put all weights into one long vector $w$, and let $L(w)$ be the mean loss over some
# images. Take a short step of length $\varepsilon$ along a unit vector $v$:
#
# $$L(w + \varepsilon v) \approx L(w) + \varepsilon\, g^\top v + \tfrac12
# \varepsilon^2\, v^\top H v .$$
#
# The vector $g$ is the gradient. The *Hessian* $H$ is the matrix of all second
# derivatives, and $v^\top H v$ is the curvature along $v$. Two numbers are often
# quoted. The *trace* adds up all eigenvalues, and the *top eigenvalue* is the curvature
# in the sharpest direction.
#
# Both can be had without the matrix, since products with it are cheap: $H v$ is the
# gradient of the single number $g^\top v$, with $v$ held fixed.

# %% tags=["figure"]
figures.twice()

# %% [markdown]
# ## A trace from products
#
# Draw a vector $v$ whose entries are independent, with mean zero and variance one.
# Then, for any matrix $A$,
#
# $$\mathbb{E}\, v^\top A v = \sum_{ij} A_{ij}\, \mathbb{E}[v_i v_j] = \sum_i A_{ii} =
# \mathrm{Tr}\, A .$$
#
# This is *Hutchinson's estimator*: each draw costs one product. The usual $v$ has random
# signs for entries, plus or minus one with equal chances.
#
# Take $A = \begin{pmatrix} 2 & 1 \\ 1 & 3 \end{pmatrix}$. On paper: which values can
# $v^\top A v$ take?
#
# ### Exercise 1: Hutchinson's trace
#
# *Difficulty 2, importance 5, 8 minutes.* Here `product` maps **one** vector of
# length $p$ to $A v$. Return $v^\top A v$ for `draws` random sign vectors.
#
# <details><summary>Hint 1</summary>
#
# `torch.randint(2, (p,), generator=generator)` gives zeros and ones. Which line turns
# them into signs, and into floats?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A loop over the draws, with a vector of its own in each; `torch.stack` makes one
# tensor of a list of numbers.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# $v^\top (A v)$ is a dot product: a sum, and no mean.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def trace_draws(product, p, draws, generator):
    """v . A v for random sign vectors v of length p, each with mean Tr A: (draws,)."""
    ### BEGIN SOLUTION
    out = []
    for _ in range(draws):
        v = 2.0 * torch.randint(2, (p,), generator=generator) - 1
        out.append(v @ product(v))
    return torch.stack(out)
    ### END SOLUTION


# %% tags=["check"]
check.trace_draws(trace_draws)

# %% [markdown]
# Why signs? Normal numbers have mean zero and variance one as well. Let both estimate
# the trace of the little matrix.

# %% tags=["claim"]
a = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
luck = torch.Generator().manual_seed(0)
signs = trace_draws(lambda v: a @ v, 2, 5000, luck)
probe = landscape.random_normal
normals = landscape.hutchinson(lambda v: v @ a, torch.zeros(2), 5000, luck, probe)
check.claim("Random signs: variance of a draw.", signs.var().item(), 3.8, 4.2)
check.claim("Normal numbers: variance of a draw.", normals.var().item(), 25, 35)

# %% [markdown]
# With signs, $v_i^2$ is always one. The diagonal, which we want to add up, adds the
# same to every draw, and only the entries beside it make noise. With normal numbers
# the diagonal itself becomes noise.
#
# ## The sharpest direction
#
# A random vector is a mix of all eigenvectors. Multiply it by $A$ again and again: each
# time, every part grows by its own eigenvalue, and the part whose eigenvalue is largest
# in *size* wins. That is *power iteration*. Move the slider.

# %% tags=["nbval-ignore-output"]
widgets.slider("products", [0, 1, 2, 3, 5, 10, 20], figures.parts, start=3)

# %% [markdown]
# ### Exercise 2: power iteration
#
# *Difficulty 2, importance 4, 8 minutes.* Return the eigenvalue of largest absolute
# value, **with its sign**, after `steps` products.
#
# <details><summary>Hint 1</summary>
#
# Sixty products with an eigenvalue of three hundred are more than a float can hold.
# Divide $v$ by its length each time.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The next $v$ is $A v$, and not another product with the first one.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# A length is never negative. Which product of $v$ and $A v$ keeps the sign?
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def top_eigenvalue(product, v, steps):
    """Eigenvalue of largest size, a float; product maps (p,) to (p,), v starts."""
    ### BEGIN SOLUTION
    value = 0.0
    for _ in range(steps):
        v = v / v.norm()
        av = product(v)
        value = (v @ av).item()
        v = av
    return value
    ### END SOLUTION


# %% tags=["check"]
check.top_eigenvalue(top_eigenvalue)

# %% [markdown]
# ## A real network
#
# One trap is left: BatchNorm. In train mode an image is normalized together with its
# neighbors, so the loss, and with it the Hessian, depends on who shares a batch with
# whom. Besides, every pass moves the running statistics.
#
# In eval mode each image stands for itself. The loss is a plain mean over images, and
# the Hessian is the same mean of theirs. You can walk through the images in batches and
# add up the products.
#
# ### Exercise 3: the sharpest direction of a network
#
# *Difficulty 4, importance 5, 20 minutes.* The whole measurement. Return the top
# eigenvalue of the Hessian of the mean cross-entropy over all images, in eval mode.
# Start from a random normal vector, and leave weights, statistics and `.grad` alone.
#
# <details><summary>Hint 1</summary>
#
# `model.eval()` before anything else, whatever mode the model came in.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The last batch may be shorter than the others. Sum the loss within a batch, and
# divide by the number of *all* images.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# For each batch: `torch.autograd.grad(loss, weights, create_graph=True)`, flattened
# into one vector $g$; then the gradient of `g @ v`.
#
# </details>
#
# <details><summary>Hint 4</summary>
#
# Define `product(v)` inside, over all of `model.parameters()`, and hand it to your
# power iteration. The start has one entry for each weight, in the weights' dtype:
# `.to(weights[0])`.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def sharpest(model, x, y, batch, steps, generator):
    """Top eigenvalue, a float; x (n, ...) inputs, y (n,) labels, `batch` at once."""
    ### BEGIN SOLUTION
    model.eval()
    weights = list(model.parameters())

    def flat(tensors):
        return torch.cat([t.flatten() for t in tensors])

    def product(v):
        total = torch.zeros_like(v)
        for some, labels in zip(x.split(batch), y.split(batch), strict=True):
            loss = F.cross_entropy(model(some), labels, reduction="sum") / len(x)
            g = flat(torch.autograd.grad(loss, weights, create_graph=True))
            total += flat(torch.autograd.grad(g @ v, weights))
        return total

    size = sum(w.numel() for w in weights)
    start = torch.randn(size, generator=generator).to(weights[0])
    return top_eigenvalue(product, start, steps)
    ### END SOLUTION


# %% tags=["check"]
check.sharpest(sharpest)

# %% [markdown]
# Now the networks of every lesson: `badnets`, the victim, and its benign twin, on the
# first thirty test images. In the first figure of the paper, one victim's top eigenvalue
# is thirty times that of a clean network.
#
# **Predict.** How many times as sharp as its twin is our victim?

# %% tags=["predict"]
guess_first = None


def reading(model, images, steps=6):
    g = torch.Generator().manual_seed(0)
    return sharpest(model, images.pixels(), images.y, 15, steps, g)


first = parts.test[:30]
top_victim = reading(victim, first)
ratio_first = top_victim / reading(twin, first)
check.reveal(guess_first, round(ratio_first, 1), "times")

# %% tags=["claim"]
check.claim("First thirty: victim over twin.", ratio_first, 1.2, 3, "times")
doubled = reading(victim, first, 12) / reading(twin, first, 12)
print(f"after twice as many products: {doubled:.1f} times")

# %% [markdown]
# Are six products enough? With every product the other eigenvectors lose ground, and
# here twice as many products change little.
#
# The victim is the sharper one, as the paper says, if by much less. Many a report would
# end here. You have the code, so look once more: thirty other images, numbers 330 to
# 359 of the same test set. Both networks read all of them correctly. (We picked these
# thirty, knowing what comes. Whole sets follow.)
#
# **Predict.** What is the victim's top eigenvalue on these, in percent of the twin's?

# %% tags=["predict"]
guess_second = None
second = parts.test[330:360]
top_twin = reading(twin, second)
ratio_second = reading(victim, second) / top_twin
check.reveal(guess_second, round(100 * ratio_second), "%")

# %% tags=["claim"]
check.claim("Second thirty: victim over twin.", ratio_second, 0.03, 0.3, "%")

# %% [markdown]
# The order has turned round, and not by a little: now the *twin* is the sharp one, about
# ten times as sharp as the victim. Same networks, same code, same test set.
#
# Perhaps thirty images are too few? The authors' script takes two hundred. So we
# measured both victims of this course on the first four sets of that size in the test.
# Beside them stand four victims on photographs (CIFAR-10), on ten sets each.
#
# **Predict.** On how many of the four sets of signs is `badnets` sharper than its twin?

# %% tags=["predict"]
guess_sets = None
stored, measures = tables.results("signs-sharp"), ("lambda_max", "fisher")
signs_on = {
    who: {m: [r[m] for r in stored.select(victim=who)] for m in measures}
    for who in ("benign", "badnets", "blended")
}
tops = {who: found["lambda_max"] for who, found in signs_on.items()}
wins = sum(v > t for v, t in zip(tops["badnets"], tops["benign"], strict=True))
check.reveal(guess_sets, wins, "sets")

# %% tags=["figure"]
photos = {r["attack"]: r for r in tables.results("cifar10-sharp").rows}


def over(row, base):
    pairs = {m: zip(row[m], base[m], strict=True) for m in measures}
    top, trace = ([v / t for v, t in pairs[m]] for m in measures)
    return {"top eigenvalue": top, "trace (Fisher)": trace}


twins = {"signs": signs_on["benign"], "photographs": photos["none"]}
ratios = {
    where: {n: over(row, twins[where]) for n, row in networks.items()}
    for where, networks in (("signs", signs_on), ("photographs", photos))
}
del ratios["signs"]["benign"], ratios["photographs"]["none"]
figures.sets(ratios["signs"], ratios["photographs"])

# %% [markdown]
# On signs both victims are sharper on sets 1, 3 and 4, and on set 2 the twin is. On
# photographs the ratios crowd around one (look at the axis): only SIG is sharper every
# time, while BadNets and Blended are flatter on most sets. The trace of the Fisher
# matrix, on the right, moves less, but `badnets` changes sides there, too.
#
# *One draw is no result*, and here a draw is a set of images. Where a victim does stay
# sharper, the backdoor need not be the reason: another training moves sharpness as
# well, as the gray rows of lesson 08 showed.
#
# ## What the second thirty have
#
# What is it about the second thirty? Sort them by the twin's loss. At the front stands
# number 346, which also belongs to set 2.

# %% tags=["figure"]
with torch.no_grad():
    losses = F.cross_entropy(twin(second.pixels()), second.y, reduction="none")
loud = int(losses.argmax())
strip = [loud, 0, 1, 2, 10, 20]
sure = [f"{330 + i}: {(-losses[i]).exp():.2%}" for i in strip]
figures.dark(second[strip].pixels(), sure)

# %% [markdown]
# A dark 50. The twin reads it correctly, and of every other one of the thirty it is
# surer still.
#
# **Predict.** Leave this one image out and measure the twin on the other twenty-nine.
# What percentage of its top eigenvalue is left?

# %% tags=["predict"]
guess_rest = None
without = {
    name: reading(twin, second[[i for i in range(30) if i != gone]]) / top_twin
    for name, gone in (("loudest", loud), ("another", 10))
}
check.reveal(guess_rest, round(100 * without["loudest"], 1), "%")

# %% tags=["claim"]
check.claim("Top eigenvalue left without it.", without["loudest"], 0, 0.1, "%")
check.claim("Left without another image.", without["another"], 0.9, 1.1, "%")

# %% [markdown]
# So one image made the twin sharp. The control shows that it is this image, and not the
# smaller number of them: without another one the top even grows a little, since nearly
# the same sum is divided by 29 instead of 30.
#
# A mean explains how. The Hessian of a set is the mean of the Hessians of its images.
# An image of which the network is certain should have hardly any: nudge the weights,
# and the answer stays certain. Your code can look at each image alone.

# %% tags=["figure"]
alone = [abs(reading(twin, second[[i]], 3)) for i in range(len(second))]
figures.certain(losses.tolist(), alone, loud)

# %% [markdown]
# By and large: the more certain the twin, the flatter the image. Does this hold for whole
# sets? How much of the top eigenvalue of two hundred images do the *loudest* ones,
# those with the largest loss, make by themselves? A share is what would remain if all
# other images were flat; shares need not add up to one. Ten random images are the
# control.

# %% tags=["figure"]
which = {"1": "loudest image", "10": "ten loudest", "10 random": "ten random"}
shares = {
    who: {
        called: [r["alone"][k] / r["lambda_max"] for r in stored.select(victim=who)]
        for k, called in which.items()
    }
    for who in signs_on
}
figures.loudest(shares)

# %% [markdown]
# Ten images in two hundred make about half of the top or more, ten random ones mostly
# less than a fifth. In set 2 of the twin a single image does it all, and you have met
# it: number 346.
#
# So the top eigenvalue of a confident network speaks mostly of its few least certain
# images, and the choice of a set decides which these are.
#
# ## Where it breaks: one function, many spellings
#
# So far the networks stayed and the images changed. Now keep the images. In front of a
# BatchNorm stands a convolution. Multiply its weights by $c$: its outputs grow by $c$,
# and BatchNorm, which subtracts a mean and divides by a deviation, can take that back.
#
# ### Exercise 4: another way to write the same network
#
# *Difficulty 2, importance 4, 8 minutes.* Return copies of both layers, the weights of
# the convolution, and its bias if it has one, multiplied by $c$, such that in eval mode
# the outputs stay. In BatchNorm only the running statistics may follow; leave its tiny
# `eps` alone.
#
# <details><summary>Hint 1</summary>
#
# `copy.deepcopy` for each layer, and `torch.no_grad()` around what you change. Return
# a pair.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# What would BatchNorm have measured if the convolution had always had these weights?
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `running_mean` and `running_var` do not grow by the same factor. Some convolutions
# have a bias.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def rescaled(conv, norm, c):
    """Copies (conv, norm): c times the weights, the same outputs behind norm."""
    ### BEGIN SOLUTION
    conv, norm = copy.deepcopy(conv), copy.deepcopy(norm)
    with torch.no_grad():
        conv.weight *= c
        if conv.bias is not None:
            conv.bias *= c
        norm.running_mean *= c
        norm.running_var *= c**2
    return conv, norm
    ### END SOLUTION


# %% tags=["check"]
check.rescaled(rescaled)

# %% [markdown]
# Do it to the first convolution of the twin, with $c$ a tenth. Then go back to the
# first thirty images, on which the victim was nearly twice as sharp as its twin.
#
# **Predict.** How many times as sharp as the rewritten twin is the victim?

# %% tags=["predict", "method"]
guess_spelled = None
spelled = copy.deepcopy(twin)
spelled.conv1, spelled.bn1 = rescaled(spelled.conv1, spelled.bn1, 0.1)
ratio_spelled = top_victim / reading(spelled, first)
check.reveal(guess_spelled, round(ratio_spelled, 2), "times")

# %% tags=["claim", "method"]
layer, same = ["conv1.weight"], torch.Generator()


def layer_trace(model):
    def times(v):
        return landscape.hessian_product(model, first, v, weights=layer)

    size = model.conv1.weight.numel()
    return trace_draws(times, size, 3, same.manual_seed(0)).mean().item()


relative = [
    curvature.relative_trace(
        m, first, weights=layer, draws=2, generator=same.manual_seed(0)
    ).value
    for m in (spelled, twin)
]
moved = (spelled(first.pixels()) - twin(first.pixels())).abs().max().item()
grown = layer_trace(spelled) / layer_trace(twin)
check.claim("Largest change of any output.", moved, 0, 0.01)
check.claim("Victim over rewritten twin.", ratio_spelled, 0, 0.9, "times")
check.claim("Trace of the layer, by your signs.", grown, 95, 105, "times")
check.claim("Its relative trace.", relative[0] / relative[1], 0.98, 1.02, "times")

# %% [markdown]
# Now the twin is the sharp one, and it answers every image as it did. Its first weights
# are a tenth as long, so a step of the same length is ten times as much of them. The
# curvature, a second derivative, feels that twice. With rescalings like this one, Dinh
# and others made good networks as sharp as they liked.
#
# A fair ruler counts steps in units of the weights. The *relative trace* multiplies
# each diagonal entry by the square of its weight. (The package takes the Fisher matrix
# of lesson 08 for it.) The last claim above shows that it did not notice the rescaling.
#
# ## Recap
#
# What does it take to say that one network is sharper than another? More than two
# numbers. It takes several sets of images, a second benign network, a look at the
# single images behind a large eigenvalue, and a ruler that does not stretch with the
# weights.
#
# - Random signs give a trace from products alone, and the diagonal adds no noise
#   (objective 1).
# - Power iteration gives the eigenvalue of largest size; $v^\top A v$ keeps its sign
#   (objective 2).
# - In eval mode, batches add up exactly, and a top eigenvalue costs two passes a step
#   (objective 3).
# - A layer became a hundred times as sharp, and the network stayed what it was (objective
#   4).

# %%
quiz("sharpness")

# %% [markdown]
# ## One open experiment
#
# Is the relative trace a better witness? Measure it for `badnets`, `blended` and the
# twin on five sets of a hundred test images, with the same generator for all.
# **Control:** a second benign network, of the same recipe and another seed.
#
# | network | sets on which it is sharper than the twin | smallest and largest ratio |
# |---|---|---|
# | `badnets` | | |
# | `blended` | | |
# | benign, another seed | | |
#
# ## What this does not show
#
# There is one training of each network, on drawn signs or, for the photographs, at a
# fraction of the paper's width and length. The paper's victims get sharper late in a
# long training, and ours never get there. The loudest images explain networks that are
# certain of nearly everything; where many images are in doubt, many share the top.
#
# ## Beyond
#
# (a) The trace varies less from set to set than the top eigenvalue. Why? (b) Would you
# rather measure on images that a defense has trained on?
#
# <details><summary>Answers</summary>
#
# (a) It adds up the curvature of all images in all directions, and one loud image is one
# of many terms. The top asks for the one direction in which most comes together.
#
# (b) No. The defense has made the network certain of them, and certain images look flat.
# Lesson 08 saw the trace fall on such images and rise on others.
#
# </details>
#
# ## References
#
# - N. Karim, A. Al Arafat, A. S. Rakin, Z. Guo, N. Rahnavard, *Fisher Information guided
#   Purification against Backdoor Attacks*, CCS 2024, [arXiv
#   2409.00863](https://arxiv.org/abs/2409.00863).
# - L. Dinh, R. Pascanu, S. Bengio, Y. Bengio, *Sharp Minima Can Generalize For Deep
#   Nets*, ICML 2017, [arXiv 1703.04933](https://arxiv.org/abs/1703.04933).
# - H. Li, Z. Xu, G. Taylor, C. Studer, T. Goldstein, *Visualizing the Loss Landscape of
#   Neural Nets*, NeurIPS 2018, [arXiv 1712.09913](https://arxiv.org/abs/1712.09913).
#
# <details><summary>Fine print: settings, Lanczos, the released script</summary>
#
# **Settings.** Stored top eigenvalues come from power iteration until the value changes
# by less than half a percent (signs) or a tenth of a percent (photographs). Stored
# traces are of the Fisher matrix, at labels drawn from the network, which is the
# Hessian's trace without the part that fades with the loss.
#
# **Lanczos** is power iteration with a memory: it keeps every vector on the way and
# makes each new one orthogonal to them. From the same products it reads an estimate of
# *all* eigenvalues; `landscape.spectrum` does it.
#
# **The released script** computes no trace. Its sum runs inside the loop over the $P$
# weight tensors, so the inner product of tensor $k$ with noise counts $P - k + 1$
# times. The mean is zero, and over $m$ draws the variance is $\frac1m \sum_k (P - k +
# 1)^2 \lVert g_k \rVert^2$.
#
# </details>
#
# <details><summary>Fine print: maps of minima, and which part carries a repair</summary>
#
# **Maps.** The popular pictures of a loss surface span a plane by two random directions,
# with each filter of a direction as long as the network's own. A random
# direction has a little of every eigenvector, so no single steep direction shows: around
# neither victim nor twin does such a map have a pit (`landscape.plane`,
# `show.contours`).
#
# **While it is learned.** In three trainings of each kind on the harder signs, BadNets'
# top eigenvalue doubles before the attack comes in late, and so does that of one benign
# network. At the end, two of six victims are sharper than the twin of their seed.
#
# **What carries a repair.** Fast FIP tunes singular values; our version tunes
# BatchNorm's scales and shifts as well. On `badnets-hard` the attack came back in full
# once BatchNorm was put back, with the singular values left tuned; with scales and
# shifts held fixed, nearly all of it stayed. Put parts back to find out which one did the
# work, and blame a part only if the rest still reads the signs. Of the triggered signs
# that FIP itself led away from the target, most got their true label.
#
# </details>
#
# ← [FIP](08_fip.ipynb) · [The showdown](09_showdown.ipynb) →
