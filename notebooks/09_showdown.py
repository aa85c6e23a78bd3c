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
# # The showdown: who wins, and who chose?
#
# Every paper on backdoor defenses has the table. Attacks down, defenses across, and in the last column, in bold, the authors' own method. You have rebuilt such methods, and seen them shine and fail. Today they all meet in one
# table, with their rivals and their controls, and you will be the judge.
#
# **Who wins, and who chose that they would?** On the way, a network that answers
# "frog" to everything will beat five of the entries.
#
# > **At a glance.** Reading: 20 minutes. Doing: 50 minutes. Run time: half a minute
# > and 1 GiB on two CPU cores; every repair was measured before. Prerequisites:
# > [lesson 03](03_inside_a_victim.ipynb) and any two of [04](04_linf_pruning.ipynb) to
# > [08](08_fip.ipynb). Paper: Wu and others, *BackdoorBench*, NeurIPS 2022, [arXiv
# > 2206.12654](https://arxiv.org/abs/2206.12654).

# %% [markdown]
# ## Objectives
#
# After this lesson you can
#
# 1. compute the field's usual score and say which nonsense it likes (exercise 1);
# 2. turn a table of rates into a ranking that says how sure it is (exercises 2 and 3);
# 3. measure what somebody gains who chooses by the test (exercises 4 and 5);
# 4. read the table of a paper with ten questions.
#
# ## Threat model
#
# | | in every row of this lesson |
# |---|---|
# | attacker | poisoned the training images, or ran the training |
# | defender has | the network and a few hundred clean images; on photographs, 2,500 |
# | defender lacks | the trigger, its target, any poisoned image |
# | success | ASR below 10%, accuracy kept, and true labels back (RA) |

# %% tags=["setup"]
import torch

from bdcourse import check, quiz, tables, widgets
from bdcourse.teach.figures import showdown as figures


# %% [markdown]
# ## The table
#
# Ten victims stand ready: drawn signs, small networks, and attacks from the sticker to
# the warp. Each meets eighteen lines. Five methods you have rebuilt, MNP in two
# variants. Two lines are controls:
# *random channels* switches off as many channels as CLP does, and *fine-tuning* just
# trains on. The others are rivals from the literature, some with a generous threshold;
# the fold at the end has a sentence on each. Repairs that use clean images ran with three **draws**, three random sets of them.
#
# Two victims hardly work: they miss the **gate**, an ASR of at least 95% and at most
# three points of accuracy below the benign twin. Curing them is no achievement, so they
# carry a star, are shown, and never averaged.
#
# **Predict.** For now look at ASR only, and ask for less than 10%. How many of the
# eighteen lines reach that on *every* victim without a star?

# %%
LINES = (
    *("none", "random channels", "fine-tuning", "linf", "clp, u = 3", "fmp"),
    *("mnp, soft", "mnp, hard", "fip", "sam", "fine-pruning", "anp"),
    *("anp, 10 points", "rnp", "rnp, 10 points", "ft-sam", "nad", "i-bau"),
    "nc unlearning",
)
SIGNS = {"name": "signs-defenses"}
PHOTOS = {"name": "cifar10-defenses", "budget": 2500, "draw": None}
left = tables.scores(defenses=LINES, **SIGNS)
strong = torch.tensor([v for name, v in left.items() if not name.endswith("*")])
# Three parts of the figure: controls, the methods of this course, their rivals.
PARTS = (LINES.index("linf"), LINES.index("sam"))

# %% tags=["predict"]
guess_lines = None
whole = (strong < 0.1).all(0)
check.reveal(guess_lines, int(whole[1:].sum()), "lines")

# %% tags=["figure"]
figures.left(left, LINES, 0.1, PARTS)

# %% tags=["claim"]
worst = strong.amax(0).min().item()
check.claim("The best line on its worst victim: ASR.", worst, 0.3, 0.4, "%")

# %% [markdown]
# Not one. Read the figure by columns first: some victims, such as `wanet` with its warp,
# fall to many, `blended` and `lf` to nobody. Then read it by rows. A method that ends in
# fine-tuning has to be compared with the fine-tuning row, never with "none".
#
# If no line wins everywhere, then "who wins?" needs a number that adds things up. Here
# the choosing begins.

# %% tags=["figure"]
figures.choices()

# %% [markdown]
# ## One number
#
# A repair should remove the attack and keep the accuracy. Benchmarks add both up in the
# *defense effectiveness rating* (DER), which you met inside a victim:
#
# $$\mathrm{DER} = \tfrac12 \left( \max(0, \Delta\mathrm{ASR}) -
# \max(0, \Delta\mathrm{ACC}) + 1 \right), \qquad \Delta = \text{before} -
# \text{after}.$$
#
# It is 1 for a free and perfect repair, and one half for doing nothing at all.
#
# ### Exercise 1: DER
#
# *Difficulty 1, importance 4, 4 minutes.* All arguments are shares from 0 to 1.
#
# <details><summary>Hint 1</summary>
#
# Check two cases by hand: the perfect repair, and the idle one. What has to be added,
# and what halved?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Both differences are before minus after. A loss of accuracy lowers the score.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Neither maximum may be forgotten: a repair is not paid for accuracy that rose.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def balance(acc, asr, acc_after, asr_after):
    """Defense effectiveness rating of one repair, a float from 0 to 1."""
    ### BEGIN SOLUTION
    removed = max(0, asr - asr_after)
    lost = max(0, acc - acc_after)
    return (removed - lost + 1) / 2
    ### END SOLUTION


# %% tags=["check"]
check.balance(balance)

# %% [markdown]
# Now meet a defense that needs no data, no training and no idea. It throws the network
# away and answers "frog", whatever the image. We try it on photographs: CIFAR-10 has ten
# equally frequent classes, the attacker's label is "airplane", and the victims there
# are small and briefly trained, with about three quarters of the test images right.
#
# **Predict.** What is its mean DER on the four victims that pass, in percent?

# %% tags=["predict"]
guess_frog = None
rows = tables.results(PHOTOS["name"]).select(budget=2500, draw=None)
victims = [
    r
    for r in rows
    if r["defense"] == "none" and r["attack"] != "none" and not r["weak"]
]
frog = sum(balance(r["acc"], r["asr"], 0.1, 0.0) for r in victims) / len(victims)
check.reveal(guess_frog, round(100 * frog), "%")

# %% tags=["claim"]
ranked = tables.ranking(defenses=LINES, against="fine-tuning", **PHOTOS)
beaten = [r for r in ranked if r["der"] < frog and r["defense"] != "none"]
check.claim("The frog beats so many of the eighteen lines.", len(beaten), 5, 5)
print(", ".join(r["defense"] for r in beaten))

# %% [markdown]
# Its DER is 67%. Half of the score comes free. Removing the whole attack earns another
# half, and the lost accuracy costs only a third. So a heap of rubble outranks careful
# methods that tried and failed.
#
# Does the frog deserve its place? Accuracy gives it away at once. *Zero is not repair*,
# and a score that hides this must not stand alone.

# %% [markdown]
# ## How sure is the order?
#
# A ranking averages over the victims that happened to be in the table. Somebody else
# might have picked others. The **bootstrap** asks what would have happened, using only
# the victims you have: draw as many victims as there are, *with replacement*, average,
# and repeat. Some of these tables hold one victim three times and another never. Where
# the averages scatter, the choice of victims mattered.
#
# ### Exercise 2: tables that could have been
#
# *Difficulty 2, importance 5, 7 minutes.* You have one score for each of $v$ victims.
#
# <details><summary>Hint 1</summary>
#
# Draw positions, not scores. `torch.randint` takes a `generator` and a shape.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A table has as many victims as the original, some of them twice.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# With positions of shape $(n, v)$, indexing gives $(n, v)$ scores at once.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def resampled_means(scores, n, generator):
    """Means of n samples with replacement, each as large as scores (v,): (n,)."""
    ### BEGIN SOLUTION
    at = torch.randint(len(scores), (n, len(scores)), generator=generator)
    return scores[at].mean(1)
    ### END SOLUTION


# %% tags=["check"]
check.resampled_means(resampled_means)

# %% [markdown]
# There is a trap. Two intervals that overlap do *not* mean that either could be better:
# all defenses met the same victims, and a table that is kind to one is kind to most. So
# compare the lines **within** each resampled table, and count. You will see such a pair.
#
# ### Exercise 3: the whole contest
#
# *Difficulty 3, importance 5, 20 minutes.* Write the judge. From rates to a ranking that
# knows its limits, in these steps:
#
# 1. **Gate.** Line 0 is "none". Keep a victim if its ASR there is at least 0.95 and its
#    accuracy at least `twin` minus 0.03.
# 2. **Score.** The DER of every line on every victim that is left.
# 3. **Tables.** Draw `n` tables of victims with replacement, the same tables for all
#    lines, and average each line in each table.
# 4. **Judge.** `mean` over the victims; `low` and `high`, the 5% and 95% quantiles of
#    the table means; `first`, the share of tables in which no line is better; `above`,
#    the share in which a line is strictly better than line `against`.
#
# <details><summary>Hint 1</summary>
#
# The gate is a bool mask over victims, made from line 0 and applied to both rates.
# `clamp(min=0)` is the maximum for tensors.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# One call of `torch.randint` gives all tables: positions of shape $(n, v)$.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Index the scores' second axis with these positions and average over the last axis of
# what comes out. Quantiles are taken over the tables. A quantile asked for as a tensor
# needs the dtype of the values; a plain number does not care.
#
# </details>
#
# <details><summary>Hint 4</summary>
#
# `first` compares each line with the best of its own table, `amax(0)`; so equals are
# first together. Both shares are means of bools, turned to numbers.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def contest(acc, asr, twin, against, n, generator):
    """A ranking with its uncertainty.

    acc, asr: (lines, victims) in 0..1, line 0 without a defense; twin: the benign
    twin's accuracy; against: position of a line; n: tables.
    Returns a dict of "mean", "low", "high", "first", "above", each (lines,).
    """
    ### BEGIN SOLUTION
    passed = (asr[0] >= 0.95) & (acc[0] >= twin - 0.03)
    acc, asr = acc[:, passed], asr[:, passed]
    removed = (asr[0] - asr).clamp(min=0)
    lost = (acc[0] - acc).clamp(min=0)
    der = (removed - lost + 1) / 2
    v = der.shape[1]
    at = torch.randint(v, (n, v), generator=generator)
    means = der[:, at].mean(2)
    low, high = means.quantile(torch.tensor([0.05, 0.95]).to(means), dim=1)
    first = (means == means.amax(0)).to(means).mean(1)
    above = (means > means[against]).to(means).mean(1)
    scores = {"mean": der.mean(1), "low": low, "high": high}
    return scores | {"first": first, "above": above}
    ### END SOLUTION


# %% tags=["check"]
check.contest(contest)

# %% [markdown]
# Let it judge the signs. Each stroke below is one repair that was measured, all victims
# and draws of clean images. Dots and bars are yours, and so is the column on the right:
# the share of tables in which a line is above fine-tuning.


# %% tags=["method", "claim"]
def judged(where, twin, seed=0):
    acc, asr = (
        torch.tensor(list(tables.scores(defenses=LINES, of=k, **where).values())).T
        for k in ("acc", "asr")
    )
    g = torch.Generator().manual_seed(seed)
    return contest(acc, asr, twin, LINES.index("fine-tuning"), 4000, g)


each = tables.results(SIGNS["name"])
signs = judged(SIGNS, each.select(attack="none", defense="none")[0]["acc"])
package = {r["defense"]: r for r in tables.ranking(defenses=LINES, **SIGNS)}
off = max(abs(signs["mean"][i] - package[d]["der"]) for i, d in enumerate(LINES))
print("your means are those of the package:", bool(off < 1e-3))
ahead = signs["first"][LINES.index("i-bau")].item()
check.claim("I-BAU leads: share of the tables.", ahead, 0.8, 1, "%")
one, other = LINES.index("nad"), LINES.index("fine-tuning")
overlap = (signs["high"][other] - signs["low"][one]).item()
print(f"the bars of NAD and fine-tuning overlap by {100 * overlap:.0f} points")
above = signs["above"][one].item() if overlap > 0 else 0
check.claim("Yet NAD is above fine-tuning: share of the tables.", above, 0.95, 1, "%")


# %% tags=["figure", "claim"]
def strokes(name, **key):
    # DER of every measured repair of a victim that passes, by line.
    found = [r for r in tables.results(name).select(**key) if r["attack"] != "none"]
    passed = [r for r in found if not r["weak"]]
    return {d: [r["der"] for r in passed if r["defense"] == d] for d in LINES}


three = [r["asr"] for r in each.select(victim="badnets", defense="fip")]
apart = max(three) - min(three)
check.claim("FIP on badnets, draws of clean images apart by.", apart, 0.9, 1, "%")
figures.standings(signs, LINES, strokes(**SIGNS), "fine-tuning")

# %% [markdown]
# There is a winner after all, and it wins clearly. I-BAU, one of the rivals, looks for
# the perturbation that fools the network most, unlearns it, and starts again. It leads
# nine in ten of the tables that these victims could have made.
#
# Notice the strokes. Those of FIP lie anywhere from below one half, where it did harm, to
# almost one, and on `badnets` one draw cures where the next does nothing. *One draw is no
# result*, and a mean is not what a defender gets.
#
# ## Does the winner travel?
#
# The bar around I-BAU is short. It tells how sure we may be *about such signs*. Take the
# same nineteen lines to photographs, with networks of their own. Of eight victims there
# four pass the gate: BadNets, Blended, SIG and TrojanNN. Each was repaired with one draw
# of clean images only.
#
# **Predict.** Which place does I-BAU take there, among nineteen?

# %% tags=["predict"]
guess_place = None
measured = tables.results(PHOTOS["name"])
twin = measured.select(attack="none", defense="none", budget=2500, draw=None)[0]["acc"]
photos = judged(PHOTOS, twin)
orders = [
    [LINES[i] for i in r["mean"].argsort(descending=True, stable=True).tolist()]
    for r in (signs, photos)
]
check.reveal(guess_place, orders[1].index("i-bau") + 1, "(its place)")

# %% tags=["figure"]
places = {"signs": signs["mean"], "photographs": photos["mean"]}
figures.travels(places, LINES, ("i-bau", "mnp, soft", "fmp", "fip"))

# %% tags=["figure"]
figures.standings(photos, LINES, strokes(**PHOTOS), "fine-tuning")

# %% tags=["claim"]
by = {r["defense"]: r for r in ranked}
for d in ("none", "mnp, soft", "ft-sam", "i-bau"):
    percent = (f"{k} {100 * by[d][k]:.0f}" for k in ("der", "worst", "acc", "ra"))
    print(d, *percent, sep="  ")
leader = photos["first"][LINES.index("mnp, soft")].item()
check.claim("Soft MNP leads there: share of the tables.", leader, 0.65, 0.85, "%")

# %% [markdown]
# The winner on photographs is the soft variant of our MNP reconstruction, ninth on signs.
# An interval over victims cannot know about victims that nobody put into the table.
#
# Now read the printed rows: DER, the worst ASR of a victim, accuracy and RA. By ASR the
# old winner still brings all four below 10%, which the new one does not; FT-SAM's worst
# is lower yet. But I-BAU loses thirteen points of accuracy, MNP two, and DER charges for
# them. In the mean none of the three brings more than about half of the labels back. **Who wins depends on what the score lets you trade**,
# and which of these columns it leaves out.
#
# ## Who chose?
#
# CLP has its threshold $u$, ANP and RNP have theirs. A defender sets it with clean images
# alone. A benchmark sees everything: for ANP and RNP, BackdoorBench's code keeps the
# threshold with the lowest ASR *on the test set* among those that cost at most a tenth
# of the accuracy ([header of
# anp.py](https://github.com/SCLBD/BackdoorBench/blob/main/defense/anp.py), [issue
# 35](https://github.com/SCLBD/BackdoorBench/issues/35)). That rule does two things at
# once: somebody **looks** at the attack, and somebody **allows** a tenth.
#
# ### Exercise 4: the examiner's threshold
#
# *Difficulty 1, importance 5, 5 minutes.* Find the position with the lowest `asr` among
# those whose `acc` is at least `least`.
#
# <details><summary>Hint 1</summary>
#
# Exactly `least` is enough, and at least one point has it.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# If you filter first, the positions change. Make the forbidden ones unattractive
# instead, in a tensor of your own: `asr` belongs to somebody else.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def by_the_test(acc, asr, least):
    """Position, an int, of the lowest asr where acc >= least; both are (n,)."""
    ### BEGIN SOLUTION
    return int(torch.where(acc >= least, asr, torch.inf).argmin())
    ### END SOLUTION


# %% tags=["check"]
check.by_the_test(by_the_test)

# %% [markdown]
# Take the two apart. For CLP a stored sweep lets us choose again: the blind defender
# goes to the smallest $u$ that the allowance permits and never sees an ASR. The rulers
# differ a little. CLP's victims are wider, and its allowance is a hundredth or a tenth of
# the test accuracy; ANP and RNP may lose one or ten points on held-out images.

# %% tags=["method"]
swept = tables.results("cifar10")
choosers = {}
for attack in ("BadNets", "Blended"):
    curve = swept.select(attack=attack, defense="clp sweep")[0]["curve"]
    acc, asr, u = (torch.tensor([p[k] for p in curve]) for k in ("acc", "asr", "u"))
    start = swept.select(attack=attack, defense="none")[0]["acc"]
    blind = [torch.where(acc >= start * s, u, torch.inf).argmin() for s in (0.99, 0.9)]
    picks = [*blind, by_the_test(acc, asr, start * 0.9)]
    line = [(asr[i].item(), acc[i].item()) for i in picks]
    choosers.setdefault("CLP\nphotographs", []).append(line)


# %% tags=["method", "claim"]
def chosen(names, where):
    # (ASR, accuracy) of each victim under each chooser.
    asr, acc = (tables.scores(defenses=names, of=k, **where) for k in ("asr", "acc"))
    return [list(zip(asr[v], acc[v], strict=True)) for v in asr if v[-1] != "*"]


for m in ("anp", "rnp"):
    unseen = [m, f"{m}, 10 points"]
    choosers[f"{m.upper()}\nphotographs"] = chosen([*unseen, f"{m} (oracle)"], PHOTOS)
    choosers[f"{m.upper()}\nsigns"] = chosen(unseen, SIGNS)
means = {who: torch.tensor(v).mean(0)[:, 0] for who, v in choosers.items()}
look = max((m[1] - m[2]).item() for m in means.values() if len(m) == 3)
falls = {who: 100 * (m[0] - m[1]).item() for who, m in means.items()}
fall = min(v for who, v in falls.items() if "signs" not in who)
check.claim("Looking takes off the mean ASR, at most:", 100 * look, -1, 2, "points")
check.claim("Allowing a tenth takes, on photographs at least:", fall, 40, 100, "points")
print({who.replace("\n", ", "): round(v) for who, v in falls.items()})

# %% tags=["figure"]
figures.allowance(choosers)

# %% [markdown]
# Follow the orange lines. From the first place to the second they fall: that is the
# allowance. From the second to the third they stay: that is the look. It hardly lowers
# any ASR; on CLP's Blended it saves almost three points of accuracy.
#
# What decides is the price, and the blue lines show it. By DER it may well be a bargain.
# It is no law either: two of RNP's four photograph victims do not move at all, and on the
# signs, where nobody stored the third place, nine of sixteen lines hardly do. But a table that
# does not print the price compares purses, not methods. Before you ask who chose a
# threshold, ask **what it was allowed to cost**.
#
# Looking pays where more is not simply more: when somebody chooses among epochs, seeds,
# variants, or *methods*.
#
# ### Exercise 5: three choosers
#
# *Difficulty 2, importance 4, 10 minutes.* An **examiner** picks for each victim the line
# that scores best on it. An **author** picks one line for all, the best in the mean, and
# reports that mean. A **defender** has met the *other* victims only: they pick the best
# line in the mean over those, and use it on their own. What does each of them score, in
# the mean?
#
# <details><summary>Hint 1</summary>
#
# The examiner's pick may change from victim to victim, the author's may not.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The mean over all others: subtract a victim's own score from the sum.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The pick is made on the others and *paid* on the victim itself. `gather` reads one line
# a column.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def three_choosers(der):
    """(examiner, author, defender), three floats, from der (lines, victims)."""
    ### BEGIN SOLUTION
    others = (der.sum(1, keepdim=True) - der) / (der.shape[1] - 1)
    paid = der.gather(0, others.argmax(0, keepdim=True))
    return der.amax(0).mean().item(), der.mean(1).max().item(), paid.mean().item()
    ### END SOLUTION


# %% tags=["check"]
check.three_choosers(three_choosers)

# %% [markdown]
# **Predict.** On the four photograph victims, how many points of DER lie between the
# author and the defender?

# %% tags=["predict"]
guess_gap = None
gaps = {}
for name, where in (("photographs", PHOTOS), ("signs", SIGNS)):
    ders = tables.scores(defenses=LINES, of="der", **where)
    kept = [values for victim, values in ders.items() if not victim.endswith("*")]
    gaps[name] = three_choosers(torch.tensor(kept).T)
lead = 100 * (gaps["photographs"][1] - gaps["photographs"][2])
check.reveal(guess_gap, round(lead), "points")

# %% tags=["claim"]
check.claim("The author's lead on photographs.", lead, 5, 12, "points")
for name, scores in gaps.items():
    who = zip(("examiner", "author", "defender"), scores, strict=True)
    print(name, *(f"{role} {score:.3f}" for role, score in who), sep="  ")

# %% [markdown]
# Nobody cheated. The author merely picked their method with the same victims that they
# report. On signs that cost nothing, since every defender would have picked the same
# line. On photographs the lead melts, all of it on a single victim: whoever has not met SIG trusts NC unlearning, which fails on it. So much of a lead can stay at home.
#
# It also answers the question of this lesson: **the winner of a table is the winner of
# that table**, under the score, the allowance and the victims that somebody chose.
#
# ## Turn it yourself
#
# Every draw is a dot. Find a victim and a defense whose ASR is near zero while the
# labels stay lost, and another pair than FIP and `badnets` whose draws disagree.

# %% tags=["nbval-ignore-output"]
names_left = [name for name in left if not name.endswith("*")]
order = ["fip", *(d for d in LINES if d not in ("none", "fine-tuning", "fip"))]
widgets.menus({"victim": names_left, "defense": order}, figures.compared)

# %% tags=["claim"]
tuned = [r["asr"] for r in each.select(victim="badnets", defense="fine-tuning")]
check.claim("Fine-tuning on badnets, lowest ASR of its draws.", min(tuned), 0.9, 1, "%")

# %% [markdown]
# ## Where it breaks
#
# The judge that you wrote has limits of its own. All victims share one training seed, and
# on photographs one draw of clean images, so its bars know nothing of others. A
# bootstrap can never leave the range of its values, and four victims make only 35
# different tables.
#
# ## Recap
#
# Who wins? On these signs I-BAU, clearly, and no line cures every victim. On those photographs our MNP reconstruction by DER, and FT-SAM by the ASR of its worst victim. Who chose? Everybody along the way.
#
# - DER pays half for nothing and little for accuracy, so the frog beats five lines
#   (objective 1).
# - Draw tables of victims and compare within each; the interval covers such victims,
#   and no others (objective 2).
# - On photographs an allowance of a tenth decides more than who looks, and a method picked by the
#   victims it is reported on leads by points that may not travel (objective 3).
#
# ## How to read a defense paper
#
# Print these ten questions.
#
# 1. **Do the attacks work?** Look for ASR and accuracy before any defense, beside a
#    benign twin.
# 2. **What does doing nothing clever achieve?** Fine-tuning on the same images, and as
#    many random channels.
# 3. **Are the labels back?** ASR near zero without RA may be a lost class or a frog.
# 4. **What was a threshold allowed to cost**, in accuracy?
# 5. **Who set it**, and had they seen the trigger or the test set?
# 6. **How many draws and seeds?** Is their spread shown, or only a mean?
# 7. **Compared within the same victims**, or only in two columns of means?
# 8. **How many clean images**, and what happens with a fifth of them?
# 9. **Does it hold elsewhere**: another data set, another width, another attack?
# 10. **Has the attacker read the paper?** A defense that nobody tried to evade is
#     untested.
#
# Try it on a real sentence. The abstract of FMP says that it "decreases the ASR to
# 2.86% in CIFAR10, which is 19.2% to 65.41% lower than baselines", and reports an RA of
# 87.40%. Which of the ten questions does it answer, and which would you send to the
# authors?
#
# <details><summary>What we would say</summary>
#
# It reports RA, and that is rare. There are baselines; whether fine-tuning alone is one
# of them decides how to read "lower". A single mean says nothing about spread, or about
# which victims carried it. Who set the pruning share $p$, and on what?
#
# In our own rows FMP brings three of the four photograph victims below 10%, and on signs its score is
# below plain fine-tuning's. That is a finding about small networks, and no verdict on the
# paper.
#
# </details>

# %%
quiz("showdown")

# %% [markdown]
# ## One open experiment
#
# Does the winner survive a change of score? Rank by RA, the share of triggered images that
# are read correctly. The control is a change that should not matter: leave one victim
# out. If that moves the places as much as the new score does, you have learned nothing
# about scores. Write down your guess before you run anything.
#
# | line | place by DER | one victim left out | by RA |
# |---|---|---|---|
# | I-BAU | | | |
# | NC unlearning | | | |
# | MNP, soft | | | |
# | FMP | | | |
#
# <details><summary>Some starting code</summary>
#
# ```python
# def order(of, out=()):
#     found = tables.scores(defenses=LINES, of=of, **SIGNS)
#     kept = [v for n, v in found.items() if not n.endswith("*") and n not in out]
#     return [LINES[i] for i in torch.tensor(kept).mean(0).argsort(descending=True)]
#
# print(order("der"), order("der", ["tact"]), order("ra"), sep="\n")
# ```
#
# </details>
#
# ## What this does not show
#
# The networks are small, and those for photographs are trained briefly. Published
# tables come from networks many times as wide. Ours say which claims hold *small*. Our
# MNP is a reconstruction, so its places say nothing about the paper's own.
#
# ## Beyond
#
# 1. With a hundred equally frequent classes, which DER does the frog get from victims of
#    accuracy 75%?
# 2. Does a bootstrap interval of four values cover? Draw four normal numbers many times,
#    resample each, and count how often the 90% interval holds the true mean.
#
# <details><summary>Answers</summary>
#
# 1. It now loses almost all of the accuracy, and its score falls to about 63%. It would
#    still beat every idle line.
# 2. In about three cases of four. Four values are too few to know their own spread.
#
# </details>
#
# ## References
#
# - B. Wu, H. Chen, M. Zhang, Z. Zhu, S. Wei, D. Yuan, C. Shen, *BackdoorBench: A
#   Comprehensive Benchmark of Backdoor Learning*, NeurIPS 2022, [arXiv
#   2206.12654](https://arxiv.org/abs/2206.12654).
# - M. Zhu, S. Wei, L. Shen, Y. Fan, B. Wu, *Enhancing Fine-Tuning Based Backdoor Defense
#   with Sharpness-Aware Minimization*, ICCV 2023, [arXiv
#   2304.11823](https://arxiv.org/abs/2304.11823): DER, and FT-SAM.
# - D. Huang, Q. Bu, *Adversarial Feature Map Pruning for Backdoor*, ICLR 2024, [arXiv
#   2307.11565](https://arxiv.org/abs/2307.11565).
# - B. Efron, *Bootstrap Methods: Another Look at the Jackknife*, Annals of Statistics 7,
#   1979.
#
# <details><summary>Fine print: what each line does, and where its rows are</summary>
#
# - **[linf](04_linf_pruning.ipynb), [clp](05_clp.ipynb), [fmp](06_fmp.ipynb),
#   [mnp](07_mnp.ipynb), [fip](08_fip.ipynb)**: the five methods. MNP's soft repair
#   scales channels, its hard one switches them off.
# - **sam** trains at the worst point nearby, inside FIP's own loop; **ft-sam** is that
#   idea as published.
# - **anp** keeps masks that survive noise in the weights, **rnp** masks that bring back a
#   task unlearned. Their thresholds may cost one point of held-out accuracy, or ten.
# - **fine-pruning** prunes channels that sleep on clean images, then tunes. **nad**
#   tunes toward the attention maps of a tuned copy.
# - **i-bau** unlearns a perturbation that fools all images, again and again; **nc
#   unlearning** unlearns an inverted trigger.
#
# `python -m bdcourse bench` made the rows: one victim and one benign twin an attack, all
# defenses on the same network with the same clean images. They are in `data/results`,
# the full tables on the [results page](../book/results.md), published figures beside
# ours in the [reproduction report](../book/reproduction.md). To measure a network of your own, see [measuring](../book/measuring.md); which
# defense to take first is on [one page](../book/choosing.md).
#
# </details>
#
# ← [FIP](08_fip.ipynb) · [back to the start](00_welcome.ipynb) →
