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
# Every paper on backdoor defenses has the table: attacks down, defenses across, and in
# the last column, in bold, the authors' own method. You have rebuilt such methods, and
# seen them shine and fail. Today they all meet in one table, with their rivals and their
# controls, and you will be the judge.
#
# **Who wins, and who chose that they would?** On the way, a network that answers
# "frog" to everything will beat some of the entries.
#
# > **At a glance.** Reading: 20 minutes. Doing: 50 minutes. Run time: half a minute
# > and 1 GiB on two CPU cores; every repair was measured before. Prerequisites:
# > [lesson 03](03_inside_a_victim.ipynb) and any two of [04](04_linf_pruning.ipynb) to
# > [08](08_fip.ipynb). Paper: Wu and others, *BackdoorBench*, NeurIPS 2022, [arXiv
# > 2206.12654](https://arxiv.org/abs/2206.12654).
#
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
# | success | attack success rate (ASR) below 10%, accuracy kept, true labels back |
#
# The share of triggered images that get their true label is the robust accuracy, RA.

# %% tags=["setup"]
import torch

from bdcourse import check, quiz, tables, widgets
from bdcourse.teach.figures import showdown as figures


# %% [markdown]
# ## The table
#
# Ten victims stand ready: small networks that read drawn signs, under attacks from the
# sticker to the warp. Each meets eighteen **entries**. Five are the methods of lessons 04 to
# 08, MNP in two variants. Two are controls: *random channels* switches off as many
# channels as CLP does, and *fine-tuning* just trains on. The others are rivals from the
# literature; the fold at the end has a sentence on each.
# Repairs that use clean images ran with three **draws**, three random sets of them.
#
# Two victims miss the **gate**: an ASR of at least 95%, and accuracy at most three points
# below the benign twin, the same network trained on clean images. Curing a weak
# attack proves little. So they carry a star, and no mean counts them.
#
# **Predict.** For now look at ASR only, and ask for less than 10%. How many of the
# eighteen entries reach that on *every* victim without a star?

# %%
ENTRIES = (
    *("none", "random channels", "fine-tuning", "linf", "clp, u = 3", "fmp"),
    *("mnp, soft", "mnp, hard", "fip", "sam", "fine-pruning", "anp"),
    *("anp, 10 points", "rnp", "rnp, 10 points", "ft-sam", "nad", "i-bau"),
    "nc unlearning",
)
SIGNS = {"name": "signs-defenses"}
PHOTOS = {"name": "cifar10-defenses", "budget": 2500, "draw": None}
left = tables.scores(defenses=ENTRIES, **SIGNS)
strong = torch.tensor([v for name, v in left.items() if not name.endswith("*")])
# Three parts of the figure: controls, the methods of this course, their rivals.
PARTS = (ENTRIES.index("linf"), ENTRIES.index("sam"))

# %% tags=["predict"]
guess_entries = None
whole = (strong < 0.1).all(0)
check.reveal(guess_entries, int(whole[1:].sum()), "entries")

# %% tags=["figure", "claim"]
worst = strong.amax(0).min().item()
check.claim("The lowest worst-victim ASR of any entry.", worst, 0.3, 0.4, "%")
figures.left(left, ENTRIES, 0.1, PARTS)

# %% [markdown]
# Not one. Read the figure by columns first. Many entries bring `wanet` with its warp below
# 10%; none does so for `blended` or `lf`. Then read it by rows. A method
# that ends in fine-tuning has to be compared with the fine-tuning row, never with "none".
#
# If nobody wins everywhere, then "who wins?" needs a number that adds things up.
#
# ## One number
#
# A repair should remove the attack and keep the accuracy. Benchmarks add both up in the
# *defense effectiveness rating* (DER), which you met in lesson 03:
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
# equally frequent classes, the attacker's label is "airplane", and the victims read
# about three quarters of the test images right.
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
ranked = tables.ranking(defenses=ENTRIES, against="fine-tuning", **PHOTOS)
beaten = [r for r in ranked if r["der"] < frog and r["defense"] != "none"]
check.claim("Entries that the frog beats.", len(beaten), 5, 5)
print(", ".join(r["defense"] for r in beaten))

# %% [markdown]
# Its DER is 67%. Half of the score comes free. Removing the whole attack earns another
# half, and the lost accuracy costs only a third. So a network that reads nothing outranks
# four careful methods that failed here, and one control.
#
# *Zero is not repair*, and a score that hides this must not stand alone.
#
# ## How sure is the order?
#
# A ranking averages over the victims that happened to be in the table. Somebody else
# might have picked others. The **bootstrap** asks what would have happened, using only
# the victims you have: draw as many victims as there are, *with replacement*, average,
# and repeat. Where the averages scatter, the choice of victims mattered. Here is one
# entry on the eight sign victims, and three tables drawn from them.

# %% tags=["figure"]
on_signs = tables.scores(defenses=["nc unlearning"], of="der", **SIGNS)
example = {v: row[0] for v, row in on_signs.items() if not v.endswith("*")}
dice = torch.Generator().manual_seed(2)
three_tables = torch.randint(len(example), (3, len(example)), generator=dice)
figures.drawn(example, "nc unlearning", three_tables.tolist())

# %% [markdown]
# NC unlearning fails on `blended` and `lf`. The first drawn table lacks both and flatters
# it. The third holds `lf` three times.
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
# There is a trap. Two intervals that overlap do *not* mean that either could be better.
# All entries met the same victims, and a table that is kind to one is kind to most. So
# compare two entries **within** each drawn table, and count.
#
# ### Exercise 3: the whole contest
#
# *Difficulty 3, importance 5, 20 minutes.* Write the judge, in four steps.
#
# 1. **Gate.** Entry 0 is "none". Keep a victim if its ASR there is at least 0.95 and its
#    accuracy at least `twin` minus 0.03.
# 2. **Score.** The DER of every entry on every victim that is left.
# 3. **Tables.** Draw `n` tables of victims with replacement, the same tables for all
#    entries, and average each entry in each table.
# 4. **Judge.** `mean` over the victims; `low` and `high`, the 5% and 95% quantiles of
#    the table means; `first`, the share of tables in which no entry is better; `above`,
#    the share in which an entry is strictly better than entry `against`.
#
# <details><summary>Hint 1</summary>
#
# The gate is a bool mask over victims, made from entry 0 and applied to both rates.
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
# `first` compares each entry with the best of its own table, `amax(0)`; so equals are
# first together. Both shares are means of bools, turned to numbers.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def contest(acc, asr, twin, against, n, generator):
    """A ranking with its uncertainty.

    acc, asr: (entries, victims) in 0..1, entry 0 without a defense; twin: the benign
    twin's accuracy; against: position of an entry; n: tables.
    Returns a dict of "mean", "low", "high", "first", "above", each (entries,).
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
# Judge the signs. The first figure is a pair whose intervals overlap: fine-tuning,
# and NAD, which tunes with a teacher. Each point is one drawn table, with the means from
# your exercise 2.
#
# The second figure has all entries. Each stroke is one measured repair of one victim.
# Dots and bars are yours, and so is the column on the right: the share of tables in which
# an entry is above fine-tuning. `judged` averages a victim's draws first, so
# a cure with one draw in three counts like a third of a cure with each.


# %% tags=["method", "claim"]
def judged(where, twin, seed=0):
    acc, asr = (
        torch.tensor(list(tables.scores(defenses=ENTRIES, of=k, **where).values())).T
        for k in ("acc", "asr")
    )
    g = torch.Generator().manual_seed(seed)
    return contest(acc, asr, twin, ENTRIES.index("fine-tuning"), 4000, g)


each = tables.results(SIGNS["name"])
signs = judged(SIGNS, each.select(attack="none", defense="none")[0]["acc"])
rank = tables.ranking(defenses=ENTRIES, resamples=1000, **SIGNS)
package = {r["defense"]: r for r in rank}
off = max(abs(signs["mean"][i] - package[d]["der"]) for i, d in enumerate(ENTRIES))
print(f"your means and the package's: at most {100 * off:.2f} points apart")
pair = ("fine-tuning", "nad")
bars = [tuple(signs[k][ENTRIES.index(d)].item() for k in ("low", "high")) for d in pair]
above = signs["above"][ENTRIES.index("nad")].item() if bars[0][1] > bars[1][0] else 0
check.claim(
    "Share of the tables in which NAD is above fine-tuning.", above, 0.95, 1, "%"
)

# %% tags=["figure"]
paired = []
for d in pair:
    rows_of = tables.scores(defenses=[d], of="der", **SIGNS).items()
    passing = torch.tensor([row[0] for name, row in rows_of if not name.endswith("*")])
    paired.append(resampled_means(passing, 400, torch.Generator().manual_seed(0)))
figures.pairs(*paired, pair, bars)


# %% tags=["figure", "claim"]
def strokes(name, **key):
    # DER of every measured repair of a victim that passes, by entry.
    found = [r for r in tables.results(name).select(**key) if r["attack"] != "none"]
    passed = [r for r in found if not r["weak"]]
    return {d: [r["der"] for r in passed if r["defense"] == d] for d in ENTRIES}


three = [r["asr"] for r in each.select(victim="badnets", defense="fip")]
apart = max(three) - min(three)
check.claim("Spread of FIP's ASR on badnets over three draws.", apart, 0.9, 1, "%")
ahead = signs["first"][ENTRIES.index("i-bau")].item()
check.claim("Share of the tables in which I-BAU leads.", ahead, 0.8, 1, "%")
redrawn = package["i-bau"]["first"]
print(f"the package, which redraws the draws as well: {100 * redrawn:.0f}%")
figures.standings(signs, ENTRIES, strokes(**SIGNS), "fine-tuning")

# %% [markdown]
# There is a winner after all, and it wins clearly. I-BAU, one of the rivals, leads in nine
# of ten tables, and in almost as many when the draws are redrawn too.
#
# Look at FIP's strokes. They lie anywhere from below one half, where it did harm, to
# almost one. On `badnets` one draw cures and the others do nothing. *One draw is no
# result*, and a mean is not what a defender gets.
#
# ## Does the winner travel?
#
# The bar around I-BAU is short. It tells how sure we may be *about such signs*. Take the
# eighteen entries and "none" to photographs, with networks of their own and 2,500 clean
# images: three things change at once. Of eight victims there four pass the gate: BadNets,
# Blended, SIG and TrojanNN. Each was repaired with one draw of clean images only.
#
# **Predict.** Which place does I-BAU take there, among nineteen?

# %% tags=["predict"]
guess_place = None
measured = tables.results(PHOTOS["name"])
twin = measured.select(attack="none", defense="none", budget=2500, draw=None)[0]["acc"]
photos = judged(PHOTOS, twin)
orders = [
    [ENTRIES[i] for i in r["mean"].argsort(descending=True, stable=True).tolist()]
    for r in (signs, photos)
]
check.reveal(guess_place, orders[1].index("i-bau") + 1, "(its place)")

# %% tags=["figure"]
places = {"signs": signs["mean"], "photographs": photos["mean"]}
figures.travels(places, ENTRIES, ("i-bau", "mnp, soft", "fmp", "fip"))

# %% tags=["figure"]
figures.standings(photos, ENTRIES, strokes(**PHOTOS), "fine-tuning")

# %% tags=["claim"]
by = {r["defense"]: r for r in ranked}
ways = [abs(photos["above"][i] - by[d].get("above", 0)) for i, d in enumerate(ENTRIES)]
print("your shares are the package's, within 3 points:", bool(max(ways) < 0.03))
for d in ("none", *(d for d in by if d == "mnp, soft" or by[d]["worst"] < 0.1)):
    percent = (f"{k} {100 * by[d][k]:.0f}" for k in ("der", "worst", "acc", "ra"))
    print(d, *percent, sep="  ")
labels = tables.scores(defenses=["mnp, soft"], of="ra", **PHOTOS).items()
back = [f"{v} {100 * row[0]:.0f}" for v, row in labels if not v.endswith("*")]
print("labels that soft MNP brings back, %:", *back, sep="  ")
leader = photos["first"][ENTRIES.index("mnp, soft")].item()
check.claim("Share of these tables in which soft MNP leads.", leader, 0.65, 0.85, "%")

# %% [markdown]
# The winner on photographs is the soft variant of our MNP reconstruction, ninth on signs.
# I-BAU is only three points of DER lower here, but the others caught up; places 5 to 7 all
# round to 91. NAD, above fine-tuning in every table of signs, is above it in 35% here. An
# interval over victims cannot know about victims that nobody put into the table.
#
# Now read the printed rows: DER, the worst ASR of a victim, accuracy and RA. By ASR four
# entries bring all four victims below 10%, FIP by a hair. The old winner is among them, the new one is
# not, and FT-SAM's worst is the lowest of all. But I-BAU loses thirteen points of
# accuracy, MNP two, and DER charges for them. **Who wins depends on what the score lets
# you trade.**
#
# And on what it leaves out. RA can hardly exceed the 75% that these networks read without
# a trigger. Soft MNP gives BadNets nearly all labels back and SIG a third; the mean
# describes neither. (SIG's waves may hide a label from any network.)
#
# ## Who chose?
#
# CLP has its threshold $u$, ANP and RNP have theirs. A defender sets it with clean images
# alone. A benchmark sees everything: for ANP and RNP, BackdoorBench's code keeps the
# threshold with the lowest ASR *on the test set* among those that cost at most a tenth
# of the accuracy ([anp.py](https://github.com/SCLBD/BackdoorBench/blob/main/defense/anp.py), [issue
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
# takes the smallest $u$ that the allowance permits. Its accuracy and its look are those of
# the test set, ANP's and RNP's those of held-out images.

# %% tags=["method"]
swept = tables.results("cifar10")
choosers = {"CLP\nphotographs": {}}
for attack in ("BadNets", "Blended"):
    curve = swept.select(attack=attack, defense="clp sweep")[0]["curve"]
    acc, asr, u = (torch.tensor([p[k] for p in curve]) for k in ("acc", "asr", "u"))
    start = swept.select(attack=attack, defense="none")[0]["acc"]
    picks = []
    for least in (0.99 * start, 0.9 * start):
        picks.append(int(torch.where(acc >= least, u, torch.inf).argmin()))
        picks.append(by_the_test(acc, asr, least))
    curve_at = [(asr[i].item(), acc[i].item()) for i in picks]
    choosers["CLP\nphotographs"][attack] = curve_at


# %% tags=["method", "claim"]
def chosen(names, where):
    # victim: (ASR, accuracy) under each chooser.
    asr, acc = (tables.scores(defenses=names, of=k, **where) for k in ("asr", "acc"))
    return {v: [*zip(asr[v], acc[v], strict=True)] for v in asr if v[-1] != "*"}


for m in ("anp", "rnp"):
    unseen = [m, f"{m}, 10 points"]
    choosers[f"{m.upper()}\nphotographs"] = chosen([*unseen, f"{m} (oracle)"], PHOTOS)
    choosers[f"{m.upper()}\nsigns"] = chosen(unseen, SIGNS)
look_first = ("little", "little + look", "a tenth", "tenth + look")
STEPS = {
    2: ("little", "a tenth"),
    3: ("little", "a tenth", "tenth + look"),
    4: look_first,
}
falls, looks = {}, []
for knob, by_victim in choosers.items():
    mean = 100 * torch.tensor(list(by_victim.values())).mean(0)[:, 0]
    left_at = dict(zip(STEPS[len(mean)], mean.tolist(), strict=True))
    falls[knob.replace("\n", ", ")] = left_at["little"] - left_at["a tenth"]
    for before, after in (look_first[:2], look_first[2:]):
        looks += [left_at[before] - left_at[after]] if after in left_at else []
print(
    *(f"a tenth, {knob}: {fell:.0f} points" for knob, fell in falls.items()), sep="\n"
)
fall = min(fell for knob, fell in falls.items() if "signs" not in knob)
check.claim("Largest fall in mean ASR from looking.", max(looks), -1, 2, "points")
said = "Smallest fall in mean ASR on photographs from allowing a tenth."
check.claim(said, fall, 40, 100, "points")

# %% tags=["figure"]
figures.allowance(choosers, STEPS)

# %% [markdown]
# Follow the orange curves. From "little" to "a tenth" they fall: that is the allowance.
# After it they stay: the look hardly lowers any ASR. On these victims more pruning removes
# more of the attack, so the lowest ASR lies near the edge of the allowance, and a blind
# defender who goes to the edge lands there too. (On CLP's Blended the look saves almost
# three points of accuracy.)
#
# What decides is the price, and the blue curves show it. It does not always buy
# something: two of RNP's four photograph victims do not move at all. On signs, where
# nobody stored the look, nine of sixteen curves fall by less than six points; two of
# those start at zero. A table that does not print the price compares purses, not methods.
# Before you ask who chose a threshold, ask **what it was allowed to cost**.
#
# Looking should pay where somebody chooses among methods. That we can measure.
#
# ### Exercise 5: three choosers
#
# *Difficulty 2, importance 4, 10 minutes.* An **examiner** picks for each victim the entry
# that scores best on it. An **author** picks one entry for all, the best in the mean, and
# reports that mean. A **defender** has met the *other* victims only: they pick the best
# entry in the mean over those, and use it on their own. What does each of them score,
# averaged over the victims?
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
# The pick is made on the others and *paid* on the victim itself. `gather` reads one entry
# a column.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def three_choosers(der):
    """(examiner, author, defender), three floats, from der (entries, victims)."""
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
    ders = tables.scores(defenses=ENTRIES, of="der", **where)
    kept = [values for victim, values in ders.items() if not victim.endswith("*")]
    gaps[name] = three_choosers(torch.tensor(kept).T)
lead = 100 * (gaps["photographs"][1] - gaps["photographs"][2])
check.reveal(guess_gap, round(lead), "points")

# %% tags=["claim"]
check.claim(
    "The author's lead over the defender on photographs.", lead, 5, 12, "points"
)
for name, scores in gaps.items():
    who = zip(("examiner", "author", "defender"), scores, strict=True)
    print(name, *(f"{role} {score:.3f}" for role, score in who), sep="  ")

# %% [markdown]
# Nobody cheated. The author merely picked by the victims that they report. On signs
# that cost nothing, since every defender would have picked the same entry. On
# photographs the lead melts, all of it on a single victim: whoever has not met SIG
# trusts NC unlearning, which fails on it. It is a close call: on the other three NC
# unlearning is ahead by less than a point.
#
# And the question of this lesson? **The winner of a table is the winner of that table**,
# under choices that somebody made. Here they are, with what each of them moved.

# %% tags=["figure"]
place = orders[1].index("i-bau") + 1
figures.choices(place, three, list(falls.values()), len(beaten), lead)

# %% [markdown]
# ## Turn it yourself
#
# Every draw is a dot. Find a victim and a defense whose ASR is near zero while the
# labels stay lost, and another pair than FIP and `badnets` whose draws disagree.

# %% tags=["nbval-ignore-output"]
names_left = [name for name in left if not name.endswith("*")]
order = ["fip", *(d for d in ENTRIES if d not in ("none", "fine-tuning", "fip"))]
widgets.menus({"victim": names_left, "defense": order}, figures.compared)

# %% tags=["claim"]
tuned = [r["asr"] for r in each.select(victim="badnets", defense="fine-tuning")]
check.claim("Lowest ASR of fine-tuning's draws on badnets.", min(tuned), 0.9, 1, "%")

# %% [markdown]
# ## Where it breaks
#
# All victims share one training seed, and on photographs one draw of clean images, so the
# bars know nothing of others. A bootstrap can never leave the range of its values, and
# four victims make only 35 different tables.
#
# ## Recap
#
# Who wins? On these signs I-BAU, clearly, though it does not cure every victim. On those
# photographs our MNP reconstruction by DER, and FT-SAM by the ASR of its worst victim.
# Who chose? Everybody along the way.
#
# - DER pays half for nothing and charges little for accuracy, so a frog can beat real
#   methods.
# - Draw tables of victims and compare within each. The interval covers such victims,
#   and no others.
# - On photographs an allowance moved far more than a look did. A method picked by the
#   victims it is reported on may lead by points that do not travel.
#
# ## How to read a defense paper
#
# Ten questions to print.
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
# In our own rows, on small networks, FMP brings three of the four photograph victims below
# 10%, and on signs its score is below plain fine-tuning's.
#
# </details>

# %%
quiz("showdown")

# %% [markdown]
# ## One open experiment
#
# Does the winner survive a change of score? Rank by RA. The control is a change that
# should not matter: leave one victim out. If that moves the places as much as the new
# score does, you have learned nothing about scores.
#
# | entry | place by DER | one victim left out | by RA |
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
#     found = tables.scores(defenses=ENTRIES, of=of, **SIGNS)
#     kept = [v for n, v in found.items() if not n.endswith("*") and n not in out]
#     return [ENTRIES[i] for i in torch.tensor(kept).mean(0).argsort(descending=True)]
#
# print(order("der"), order("der", ["tact"]), order("ra"), sep="\n")
# ```
#
# </details>
#
# ## What this does not show
#
# The networks are small, and those for photographs are trained briefly; published tables
# come from networks many times as wide. Our MNP is a reconstruction, so its places say
# nothing about the paper's own.
#
# ## Beyond
#
# Does a bootstrap interval of four values cover? Draw four normal numbers many times,
# resample each, and count how often the 90% interval holds the true mean.
#
# <details><summary>Answer</summary>
#
# In about three cases of four. Four values are too few to know their own spread.
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
# <details><summary>Fine print: what each entry does, and where its rows are</summary>
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
# `python -m bdcourse bench` made the rows in `data/results`: one victim an attack, all
# defenses with the same clean images. See also the [full tables](../book/results.md),
# [published figures beside ours](../book/reproduction.md), how to
# [measure](../book/measuring.md) your own network, and [which
# defense](../book/choosing.md) to take first.
#
# </details>
#
# ← [FIP](08_fip.ipynb) · [beyond images: clips](10_clips.ipynb) →
