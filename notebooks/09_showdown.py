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
# # The showdown: reading a table of defenses
#
# Eighteen repairs and controls against eight attacks on photographs. Five of them leave less than 15 % of every strong backdoor, and the best of those
# is in the middle of the order on another set of images. You will compute the usual score, beat some published methods with a network that answers "frog" to everything,
# and find out how much of a ranking is left when other victims could have been in it.
#
# > **At a glance.** Reading: 30 minutes. Doing: 45 minutes. Run time: under a minute and 1 GiB on two CPU cores; nothing is trained here, all rows were measured before.
# > Prerequisites: lessons [03](03_inside_a_victim.ipynb) (scores) and any two of [04](04_linf_pruning.ipynb) to [08](08_fip.ipynb). Paper: Wu, Chen, Zhang, Zhu, Wei, Yuan and Shen,
# > *BackdoorBench: A Comprehensive Benchmark of Backdoor Learning*, NeurIPS 2022, [arXiv 2206.12654](https://arxiv.org/abs/2206.12654).
#
# ## Objectives
#
# After this lesson you can
#
# 1. compute DER, and say which bad defenses it likes (exercise 1);
# 2. put an interval on a mean over victims and on a place in a ranking (exercise 2);
# 3. measure what a choice gains that was made by the test, and what by a larger allowance (exercise 3);
# 4. find the defenses that no other beats in everything (exercise 4);
# 5. say what fewer clean images cost, and measure a network of your own in ten lines.
#
# ## Threat model
#
# | | in every row of this lesson |
# |---|---|
# | attacker | poisoned the training images (WaNet, InputAware, Bpp: ran the training) |
# | defender has | the network and 2,500 clean labeled images, 500 of them held out; 5,000 or 500 where that is said, 300 on signs |
# | defender does not have | the trigger, its target, poisoned images |
# | success | ASR below 15 %, the field's mark, at little cost in ACC, and true labels back (RA) |

# %% tags=["setup"]
import tempfile
from pathlib import Path

import numpy as np
import torch

import bdcourse as bd
from bdcourse import check, claims, data, foreign, metrics, render, show, tables, victims, widgets  # fmt: skip
from bdcourse.activations import spearman

PHOTOS = {"name": "cifar10-defenses", "budget": 2500, "draw": None}
LINES = ("none", "random channels", "fine-tuning", "linf", "clp, u = 3", "fmp", "mnp, soft", "mnp, hard", "fip", "sam", "fine-pruning", "anp", "anp, 10 points", "rnp", "rnp, 10 points", "ft-sam", "nad", "i-bau", "nc unlearning")  # fmt: skip
STRONG = ("BadNets", "Blended", "SIG", "TrojanNN")  # who passes the gate

# %% [markdown]
# ## The table
#
# `python -m bdcourse bench` trains a victim and its benign twin for each attack, applies each defense to the same network with the same clean images, and
# writes one row a cell. CIFAR-10, ResNet-18 of width 8, six epochs: small networks, trained briefly. The lines:
#
# | line | what it does | clean images | lesson |
# |---|---|---|---|
# | random channels | control: switches off as many channels as CLP does at u = 2.5 | none | [05](05_clp.ipynb) |
# | fine-tuning | control: trains on | 2,000 | [01](01_poisoning.ipynb) |
# | linf | prunes channels that a guessed trigger drives to a high maximum | 2,500 | [04](04_linf_pruning.ipynb) |
# | clp | prunes channels with outlying Lipschitz bounds | none | [05](05_clp.ipynb) |
# | fmp | prunes the maps through which a small step harms most images, then tunes | 2,000 | [06](06_fmp.ipynb) |
# | mnp, soft and hard | masks from a copy that has forgotten the clean task: scale, or switch off | 2,000; 2,500 | [07](07_mnp.ipynb) |
# | fip | fine-tunes toward flat Fisher information | 2,000 | [08](08_fip.ipynb) |
# | sam, ft-sam | fine-tunes at the worst point nearby; sam in FIP's own loop, ft-sam as published | 2,000 | [08](08_fip.ipynb), [08b](08b_sharpness.ipynb) |
# | fine-pruning | prunes channels that sleep on clean images, then tunes | 2,500 | |
# | anp, rnp | masks that survive noise in the weights; masks that bring back a task unlearned | 2,500 | [07](07_mnp.ipynb) |
# | nad | tunes toward the attention maps of a tuned copy | 2,000 | |
# | i-bau | looks for a perturbation that fools all images, unlearns it, and again | 2,000 | |
# | nc unlearning | inverts a trigger (Neural Cleanse), unlearns it | 2,000 | [04](04_linf_pruning.ipynb) |
#
# anp and rnp stand there twice: their threshold may cost one point of held-out accuracy, or ten.
#
# A star marks a victim that misses the **gate** of the protocol: ASR at least 95 %, accuracy at most three points below the twin's. All four lose more accuracy than that;
# LF and InputAware miss the ASR, too. What half-trained victims say about defenses is little, so starred rows are shown and never averaged.
#
# **Predict.** Four victims pass: BadNets, Blended, SIG, TrojanNN. How many of the eighteen lines below "none" take **all four** below 15 % ASR?

# %% tags=["predict", "claim"]
guess = 9
left = tables.attack_success(defenses=LINES, who=STRONG, **PHOTOS)
worst = {d: max(row[i] for row in left.values()) for i, d in enumerate(LINES)}
whole = [d for d, v in worst.items() if v < 0.15]
check.reveal(guess, len(whole))
check.claim("Five lines take all four below 15 %.", len(whole), 5, 5)
print(", ".join(sorted(whole)))

# %% tags=["figure"]
render.figure(**PHOTOS, kind="grid", defenses=LINES, title=f"ASR left, %: {len(whole)} lines keep all four unstarred at most 15 (framed)")  # fmt: skip

# %% [markdown]
# Rows differ less than columns: here the defense decides more than the attack. Read the controls first. Random pruning leaves 98 to 100 % of the four. *Fine-tuning alone* takes SIG
# and TrojanNN below 15 %, leaves 29 % of BadNets and 89 % of Blended: a defense that ends in fine-tuning has to be compared with that column, not with the first.
#
# Two of the course's five methods are framed all four times: FIP, and MNP as we reconstructed it, in its soft repair. The hard one leaves TrojanNN as it was: a variant, too, is chosen. FMP misses by one victim (SIG, 39 %), CLP by three,
# l-infinity pruning by all four.
#
# ## One number
#
# A table of ASR forgets what a repair costs. Benchmarks add both up in the *defense effectiveness rating* that you met in lesson 03,
#
# $$\mathrm{DER} = \tfrac12 \left( \max(0, \Delta\mathrm{ASR}) - \max(0, \Delta\mathrm{ACC}) + 1 \right), \qquad \Delta = \text{before} - \text{after},$$
#
# 1 for a repair that is free and takes ASR from 100 % to 0, ½ for one that does nothing.
#
# ### Exercise 1: DER
#
# *Difficulty 1, importance 4, 4 minutes.* All arguments are shares in 0..1.
#
# <details><summary>Hint 1</summary>
#
# Perfect and free is 1, idle is 0.5. What must stand outside the bracket?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Both differences are before minus after; the second one is subtracted.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `max(0, ...)` twice: a repair is not paid for accuracy that rose.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def balance(acc, asr, acc_after, asr_after):
    """Defense effectiveness rating of one repair, a float in 0..1."""
    ### BEGIN SOLUTION
    removed = max(0, asr - asr_after)
    lost = max(0, acc - acc_after)
    return (removed - lost + 1) / 2
    ### END SOLUTION


# %% tags=["check"]
check.balance(balance)

# %% tags=["claim"]
rows = tables.results(PHOTOS["name"]).select(budget=2500, draw=None)
before = {r["attack"]: r for r in rows if r["defense"] == "none"}
off = max(abs(balance(before[r["attack"]]["acc"], before[r["attack"]]["asr"], r["acc"], r["asr"]) - r["der"])
          for r in rows if r["attack"] in STRONG and "acc" in r)  # fmt: skip
check.claim("It is the DER of every row.", off, 0, 1e-6)

# %% [markdown]
# ## Where it breaks
#
# Now a defense that needs no data, no GPU and no idea: it replaces the network by one that answers "frog" to everything. CIFAR-10 has ten classes with as many test images each, so its ACC is exactly
# 10 %; the attacker's label is "airplane", so its ASR is 0.
#
# **Predict.** What is its DER on these four victims, in percent?

# %% tags=["predict", "claim"]
guess = 40
frog = sum(balance(before[a]["acc"], before[a]["asr"], 0.1, 0.0) for a in STRONG) / 4
check.reveal(guess, round(100 * frog), "%")
ranks = tables.ranking(defenses=LINES, against="fine-tuning", **PHOTOS)
beaten = {r["defense"]: r for r in ranks if r["der"] < frog}
check.claim("That is more than six lines of the table get.", len(beaten), 6, 6)
acc, ra = ([r[k] for r in beaten.values()] for k in ("acc", "ra"))
check.claim("All of these keep more accuracy than 70 % ...", min(acc), 0.7, 1)
check.claim("... and none has an RA above 12 %.", max(ra), 0, 0.12)
print(", ".join(beaten))

# %% [markdown]
# In points: 50 for the attack, less 32 for the 65 lost points of accuracy, and 50 that everyone gets. Of the published methods CLP, l-infinity pruning, and ANP and RNP at one point, stand below the frog (RNP pruned nothing, so its 50 is that of "none"). Only **ACC** exposes the frog: its RA is 11 %, one class of the
# nine that are triggered, and a network that is still backdoored has no more. So DER must never stand alone, and an ASR near zero says nothing by itself.
#
# ## How sure is the order?
#
# The mean over four victims is a mean over *these* four. Others could have been in the table. The **bootstrap** takes the table at its word: draw four victims from the
# four with replacement, average, repeat. Some tables then hold SIG twice and Blended never. How far the means spread tells how much the choice of victims matters.
#
# ### Exercise 2: other tables that could have been
#
# *Difficulty 2, importance 5, 7 minutes.* `scores` holds one number a victim, shape $(v,)$. Return the means of `n` samples of $v$ victims each, drawn with replacement.
#
# <details><summary>Hint 1</summary>
#
# `torch.randint(v, (n, v), generator=generator)` draws all positions at once.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A sample has as many victims as there are, some of them twice.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `scores[at].mean(1)`.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def resampled_means(scores, n, generator):
    """Means of n samples with replacement, each as large as scores: (n,)."""
    ### BEGIN SOLUTION
    at = torch.randint(len(scores), (n, len(scores)), generator=generator)
    return scores[at].mean(1)
    ### END SOLUTION


# %% tags=["check"]
check.resampled_means(resampled_means)

# %% tags=["claim"]
ders = {d: torch.tensor([r["der"] for r in rows if r["defense"] == d and r["attack"] in STRONG]) for d in LINES}  # fmt: skip
g = torch.Generator().manual_seed(0)
drawn = resampled_means(ders["fmp"], 4000, g).quantile(torch.tensor([0.05, 0.95]))
packaged = next(r for r in ranks if r["defense"] == "fmp")
check.claim(
    "FMP: 90 % of the tables lie above 0.82 to 0.87 ...", drawn[0].item(), 0.82, 0.875
)
check.claim("... and below about 0.96.", drawn[1].item(), 0.94, 0.98)
check.claim("The package takes all 256 tables: the same, up to 0.04.", abs(drawn[0].item() - packaged["low"]), 0, 0.04)  # fmt: skip

# %% tags=["figure"]
render.ranked(ranks, highlight=["fine-tuning"], marks={"idle": 0.5, "frog": frog})

# %% [markdown]
# FMP's lower end jumps between 0.83 and 0.87 with the seed of your generator. Four victims make only 35 different means; about one table in twenty holds SIG three times, and there the 5 % mark sits. That is how few four are.
#
# An interval that reaches into the first one's does **not** mean "could be first": all defenses were measured on the *same* victims, and a table that is kind to one is mostly kind to the others. So compare within each resampled table.

# %% tags=["claim"]
by = {r["defense"]: r for r in ranks}
check.claim("First by its mean, our reconstruction of MNP, soft repair ...", ranks[0]["defense"] == "mnp, soft", True, True)  # fmt: skip
check.claim("... leads in about three quarters of the tables.", by["mnp, soft"]["first"], 0.65, 0.85)  # fmt: skip
check.claim("SAM's interval reaches into its; SAM leads in under 5 %.", by["sam"]["first"] if by["sam"]["high"] >= by["mnp, soft"]["low"] else 1, 0, 0.05)  # fmt: skip
sure = [d for d, r in by.items() if r["above"] >= 0.9]
check.claim("Six beat fine-tuning in 90 % of the tables.", len(sure), 6, 6)
tables.ranking_table(ranks[:12], "The first twelve, on photographs")

# %% [markdown]
# "Their places" and "90 % of tables" say where a defense stood in nine of ten resampled tables; "above" in how many it beat fine-tuning. What survives: six lines above fine-tuning, FIP, FMP and the inverted trigger not among them; a group of idle ones at the bottom. And it is *not* a 90 % confidence
# interval. With four values such an interval holds the true mean in about three cases of four even when scores are normal, it cannot leave the range of the four, and it knows of one training seed and one choice of clean images only.
#
# ## Does the order travel?
#
# The zoo of this course has other victims: drawn signs, nearly no clean error, three choices of 300 clean images for each.
#
# **Predict.** The best on photographs by its mean was MNP, soft repair. Which place does it take on the signs, among the nineteen lines?

# %% tags=["predict", "claim"]
guess = 3
signs = tables.ranking("signs-defenses", LINES)
place = [r["defense"] for r in signs].index("mnp, soft") + 1
check.reveal(guess, place)
both = {r["defense"]: (100 * by[r["defense"]]["der"], 100 * r["der"]) for r in signs}
awake = [v for v in both.values() if max(v) > 55]
traveled, without = (spearman(*torch.tensor(list(v)).T) for v in (both.values(), awake))  # fmt: skip
check.claim("Rank correlation of the two orders: about 0.7 ...", traveled, 0.5, 0.85)
check.claim("... and less among those that do something on either.", without, 0.1, 0.7)
asr = {r["defense"]: 100 * r["asr"] for r in signs}
check.claim("On signs soft MNP leaves more than 55 % in the mean ...", asr["mnp, soft"], 55, 100)  # fmt: skip
check.claim("... FIP 30 to 60 % ...", asr["fip"], 30, 60)
check.claim("... SAM as well ...", asr["sam"], 30, 60)
check.claim("... and I-BAU less than 15 %.", asr["i-bau"], 0, 15)
print(f"{traveled:.2f} of {len(both)} lines, {without:.2f} of the {len(awake)} above 55 on either")  # fmt: skip

# %% tags=["figure"]
show.points(
    both, xlabel="DER on photographs, %", ylabel="DER on signs, %", highlight=["mnp, soft", "i-bau"],
    title=f"The order travels in part: rank correlation {traveled:.2f}",
    description=f"Mean DER of {len(both)} defenses on signs over that on photographs, a point each with its name. I-BAU, FT-SAM and unlearning of inverted triggers are high on both. Soft MNP and FMP are far right and lower: MNP is first on "
    f"photographs and number {place} on signs.",
)  # fmt: skip

# %% [markdown]
# The best on signs (I-BAU, inverted triggers, FT-SAM, SAM) are good on photographs, too; soft MNP and, most of all, FMP fall. One explanation fits most of it: on signs the clean loss of a trained network is almost zero, and with it the gradient of what repairs by descending the clean loss,
# while those four look for a perturbation first and have something to descend. But the two sides also differ in attacks, number of images and training, and the choice of the 300 images alone can decide: soft MNP leaves 0, 79 and 0 % of BadNets, FT-SAM 1, 60 and 89, FIP 0, 100 and 100, I-BAU 61, 15 and 30 % of TaCT. "Which defense is best?" has no answer without "on what?".
#
# ## Who chose?
#
# CLP has a knob $u$. The file holds its scores at every $u$, on the test set, with the trigger. A defender sees neither. A benchmark does: BackdoorBench's code keeps, for ANP and RNP, the threshold with the lowest ASR **on the test set** among those that lose at most a tenth of the accuracy
# ([`anp.py`](https://github.com/SCLBD/BackdoorBench/blob/main/defense/anp.py), item 7 of its header; [issue 35](https://github.com/SCLBD/BackdoorBench/issues/35)). Such a rule does two things at once: somebody looks, and somebody allows a tenth. Take them apart.
#
# ### Exercise 3: the examiner's choice
#
# *Difficulty 1, importance 5, 5 minutes.* Return the position of the lowest `asr` among the points with `acc` of at least `least`; one at least has it.
#
# <details><summary>Hint 1</summary>
#
# Exactly `least` is enough.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Put infinity where accuracy is too low; then `argmin` counts in the whole list.
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

# %% tags=["claim"]
swept, chosen, gained = tables.results("cifar10"), [], []
for attack in ("BadNets", "Blended"):
    curve = swept.select(attack=attack, defense="clp sweep")[0]["curve"]
    acc, asr, u = (torch.tensor([p[k] for p in curve]) for k in ("acc", "asr", "u"))
    start = swept.select(attack=attack, defense="none")[0]["acc"]
    for share, who in ((0.9, "a tenth"), (0.99, "a hundredth")):
        seen = by_the_test(acc, asr, start * share)
        blind = int(torch.where(acc >= start * share, u, torch.inf).argmin())
        gained.append((asr[blind] - asr[seen]).item())
        chosen.append({"attack": attack, "may cost": who, "ACC %": 100 * acc[seen].item(), "by the lowest ASR %": 100 * asr[seen].item(), "by the smallest u %": 100 * asr[blind].item()})  # fmt: skip
check.claim("At equal allowance the look at ASR gains under 2 points.", max(gained), 0, 0.02)  # fmt: skip
check.claim("A tenth instead of a hundredth gains over 70.", min(chosen[i + 1]["by the smallest u %"] - chosen[i]["by the smallest u %"] for i in (0, 2)), 70, 100)  # fmt: skip
show.Table(chosen, "CLP on photographs, width 16: ASR that is left, by who chooses u")  # fmt: skip

# %% [markdown]
# The allowance decides; the look adds nearly nothing, because on this knob less accuracy means less backdoor, and whoever goes to the edge of the allowance ends at the same place. ANP and RNP tell the same: with one, three and ten points of held-out accuracy allowed, and "(oracle)" with ten points and the lowest ASR.

# %% tags=["claim"]
knobs = ["anp", "anp, 3 points", "anp, 10 points", "anp (oracle)", "rnp, 10 points", "rnp (oracle)"]  # fmt: skip
left_by = {d: 100 * v[2500][1] for d, v in tables.by_budget(PHOTOS["name"], knobs, [2500], draw=None).items()}  # fmt: skip
check.claim("ANP: ten points instead of one gain over 70.", left_by["anp"] - left_by["anp, 10 points"], 70, 100)  # fmt: skip
check.claim("At ten points the examiner's look gains under 2, for both.", max(left_by[f"{m}, 10 points"] - left_by[f"{m} (oracle)"] for m in ("anp", "rnp")), -1, 2)  # fmt: skip
tables.summary(PHOTOS["name"], knobs, "By allowance and chooser, mean of four", budget=2500, draw=None)  # fmt: skip

# %% [markdown]
# So ask of each table first what a threshold may cost, then who chose it. Looking pays where more is not always more: among epochs, seeds, variants and *methods*.
#
# **Predict.** An examiner picks for each victim the line with the best DER, on that victim. A defender picks by the other three victims. How many points of DER lie between them in the mean?

# %% tags=["predict", "claim"]
guess = 2
table = torch.stack([ders[d] for d in LINES])  # (lines, victims)
others = (table.sum(1, keepdim=True) - table) / 3
gap = (table.amax(0) - table.gather(0, others.argmax(0, keepdim=True))[0]).mean()
check.reveal(guess, round(100 * gap.item()), "points")
check.claim("Picking by the tested victim itself: 6 to 14 points more.", 100 * gap.item(), 6, 14)  # fmt: skip

# %% [markdown]
# This lesson looks as well: the winner of a table is the winner *of that table*. Its lead is the part that does not travel.
#
# ## What it costs
#
# A defender weighs attack success against accuracy himself. What he can skip is a defense that another one *beats*: at least as good in both, and better in one.
#
# ### Exercise 4: the front
#
# *Difficulty 3, importance 3, 8 minutes.* Which points does no other beat? High `acc` and low `asr` are good.
#
# <details><summary>Hint 1</summary>
#
# `acc[:, None] >= acc` compares all pairs: entry $(j, i)$ says whether $j$ is at least as accurate as $i$. The answer is a bool tensor.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# $j$ beats $i$: at least as good in both, **and** better in one of them.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# So equal points do not beat each other, and no point beats itself. `~beats.any(0)`.
#
# </details>


# %% jupyter={"source_hidden": true} tags=["exercise", "hide-input"]
def front(acc, asr):
    """Points that no other beats, (n,) bool, from acc and asr, (n,) each."""
    ### BEGIN SOLUTION
    no_worse = (acc[:, None] >= acc) & (asr[:, None] <= asr)
    better = (acc[:, None] > acc) | (asr[:, None] < asr)
    return ~(no_worse & better).any(0)
    ### END SOLUTION


# %% tags=["check"]
check.front(front)

# %% tags=["figure"]
acc, asr = (torch.tensor([r[k] for r in ranks]) for k in ("acc", "asr"))
best = [r["defense"] for r, on in zip(ranks, front(acc, asr), strict=True) if on]
render.figure(**PHOTOS, kind="summary", defenses=LINES, highlight=best, title=f"Squares: the {len(best)} that no other beats, in the mean of four")  # fmt: skip

# %% tags=["claim"]
check.claim("Four to nine are on the front.", len(best), 4, 9)
check.claim("Soft MNP is.", "mnp, soft" in best, True, True)
check.claim("Fine-tuning is not.", "fine-tuning" in best, False, False)
check.claim("SAM in FIP's loop: 3 to 8 points more accuracy than FIP ...", 100 * (by["sam"]["acc"] - by["fip"]["acc"]), 3, 8)  # fmt: skip
check.claim("... and up to 3 points more ASR.", 100 * (by["sam"]["asr"] - by["fip"]["asr"]), 0, 3)  # fmt: skip
check.claim("FT-SAM beats FIP: more accuracy, less ASR.", by["ft-sam"]["acc"] > by["fip"]["acc"] and by["ft-sam"]["asr"] < by["fip"]["asr"], True, True)  # fmt: skip
print(", ".join(best))

# %% [markdown]
# Doing nothing is always on the front: no repair has more accuracy. Points a hair apart are no order: FT-SAM beats FIP by 1.8 points of ASR. And the picture has no third axis. RA belongs on it (after FIP 40 % of the triggered images are read right, after soft MNP 53 %), and time,
# which on this page is wall-clock of a shared machine and good for orders of magnitude only.
#
# ## Fewer images
#
# 2,500 clean images are a twentieth of CIFAR-10. Who has so many?
#
# **Predict.** With 500, fine-tuning leaves a mean ASR of 84 % instead of 35. What does soft MNP leave, after 5 % with 2,500?

# %% tags=["predict", "claim"]
guess = 30
amounts = {"5,000": None, "2,500": 2500, "500": 500}
lines = [*LINES, "fmp, random maps", "fmp, no maps"]
by_images = tables.by_budget(PHOTOS["name"], lines, list(amounts.values()), draw=None)
asr = {(d, n): 100 * v[1] for d, row in by_images.items() for n, v in row.items() if v}
check.reveal(guess, round(asr["mnp, soft", 500]), "%")
grew = {d: asr[d, 500] - asr[d, 2500] for d in ("mnp, soft", "ft-sam", "fip", "sam")}
check.claim("FT-SAM and FIP leave as little as before.", max(grew["ft-sam"], grew["fip"]), -2, 2)  # fmt: skip
check.claim("SAM leaves 3 to 8 points more.", grew["sam"], 3, 8)
check.claim("Fine-tuning leaves over 80 %.", asr["fine-tuning", 500], 80, 90)

# %% tags=["claim"]
five = tables.results(PHOTOS["name"]).select(defense="fine-tuning", budget=500, attack="BadNets")  # fmt: skip
spread = [100 * r["asr"] for r in five]
check.claim("Five choices of the 500, BadNets, fine-tuning: 25 to 45 points apart.", max(spread) - min(spread), 25, 45)  # fmt: skip
check.claim("FMP with its own budget, 5,000, leaves 25 to 40 % ...", asr["fmp", None], 25, 40)  # fmt: skip
check.claim("... 10 points more than after random maps, or worse ...", asr["fmp", None] - asr["fmp, random maps", None], 10, 20)  # fmt: skip
check.claim("... and 20 less than its ten epochs after no pruning.", asr["fmp, no maps", None] - asr["fmp", None], 20, 40)  # fmt: skip
said = lambda v: "" if v is None else f"{100 * v[0]:.0f} / {100 * v[1]:.0f}"  # noqa: E731
show.Table([{"defense": d} | {n: said(row[b]) for n, b in amounts.items()} for d, row in by_images.items() if row[None] or row[500]], "ACC / ASR in %, mean of four, by the number of clean images")  # fmt: skip

# %% [markdown]
# Fewer images cost the tuning methods accuracy (I-BAU 7 points, FT-SAM 3) and the pruning ones little. And *which* 500 matters: five choices put fine-tuning on BadNets anywhere between 65 and 100 %. FMP is odd: with twice the images *more* is left than with 2,500, 56 % of BadNets and 61 % of SIG; in the mean twice as much as after random maps. Its ten epochs alone leave 59 %: pruning helps, the choice of maps does not, here.
#
# ## Turn it yourself
#
# Attack, defense and the number of clean images, beside no defense and fine-tuning on the same images. Find an attack and a defense where more images leave *more* of the backdoor.


# %% tags=["figure", "nbval-ignore-output"]
def compare(attack, defense, images):
    attack, names = attack.rstrip("*"), dict.fromkeys(("none", "fine-tuning", defense))
    key = {"attack": attack, "budget": amounts[images], "draw": None}
    found = {d: tables.results(PHOTOS["name"]).select(defense=d, **key | ({} if "clean" in bd.plans[d].needs else {"budget": 2500})) for d in names}  # fmt: skip
    if not all(found.values()):
        raise ValueError(f"{defense} against {attack} with {images} images was not measured.")  # fmt: skip
    scores = {k.upper(): [r[0][k] for r in found.values()] for k in ("acc", "asr", "ra")}  # fmt: skip
    asr, der = 100 * found[defense][0]["asr"], 100 * found[defense][0]["der"]
    return show.bars(
        list(names), scores, percent=True, title=f"{defense}, {images} clean images: {asr:.0f} % of {attack} is left, DER {der:.0f}",
        description=f"Bars of accuracy, attack success and recovered accuracy for {attack}: no defense, fine-tuning and {defense}, each with {images} clean images. Attack success ends at {asr:.0f} %.",
    )  # fmt: skip


stars = [r["attack"] + "*" * bool(r["weak"]) for r in before.values() if r["attack"] != "none"]  # fmt: skip
widgets.menus({"attack": stars, "defense": LINES[:2:-1], "images": list(amounts)[1:] + ["5,000"]}, compare)  # fmt: skip

# %% [markdown]
# ## Papers say, we measure
#
# Every figure of the five papers, of their code and of the leaderboard that we could verify stands in the [reproduction report](../book/reproduction.md), beside our row. Verdicts follow a rule written down beside the claim: *as published*; *otherwise*; *at a higher price*, where it holds
# but costs five points of accuracy more than published. Six of them (ACC / ASR / RA, in brackets what stands beside):

# %% tags=["claim"]
SHORT = ("linf-headline", "clp-claim-data-free", "fmp-mean", "mnp-claim-asr", "fip-t6-badnets", "fip-t6-sharp-badnets")  # fmt: skip
found = {a.claim["id"]: a for a in claims.answers()}
check.claim("CLP at u = 3 in the mean of four: not below 15 %.", found["clp-claim-data-free"].verdict == claims.FAILS, True, True)  # fmt: skip
check.claim("FMP at its own 10 %: not near the paper's 2.9 %.", found["fmp-mean"].verdict == claims.FAILS, True, True)  # fmt: skip
check.claim("FIP on BadNets: as published, at a higher price.", found["fip-t6-badnets"].verdict == claims.DEARER, True, True)  # fmt: skip
check.claim("A victim twice as sharp as its twin: not here.", found["fip-t6-sharp-badnets"].verdict == claims.FAILS, True, True)  # fmt: skip
show.Table([{"claim": found[i].claim["what"], "reported": found[i].reported(), "ours": found[i].ours(), "verdict": found[i].verdict} for i in SHORT])  # fmt: skip

# %% [markdown]
# | method | its claim in one line | what became of it here |
# |---|---|---|
# | l-infinity (04) | channels that peak on the trigger can be pruned, with a guessed trigger | on photographs the last stage is the weak part: with the attacker's own trigger 93 % are left; all layers ranked together, two of four fall. On warped signs the guess is |
# | CLP (05) | the weights alone betray the backdoor | sometimes; the threshold decides, and nothing without the trigger tells where it should be |
# | FMP (06) | maps through which a small change does great harm are the backdoor's | removes three of four with 2,500 images, two with its own 5,000, where random maps remove one but leave half as much in the mean |
# | MNP (07) | suppress what is clean, and masks find the rest | first by its mean on photographs, in the middle on signs; a reconstruction, so no verdict on the paper |
# | FIP (08, 08b) | backdoored minima are sharper; smoothing removes them | smoothing removes all four on photographs and two of eight on signs; sharper than their twins are only two of four victims there, by 11 and 12 %, and two of six here; FT-SAM does it at less cost |
#
# ## Your own network, ten lines
#
# Someone hands you a state dict and a file of poisoned test images, as model hubs have them. Here we play that someone, with a victim of the zoo.

# %% tags=["method", "claim"]
victim, parts = victims.zoo("trojan"), data.splits("signs")
folder = Path(tempfile.mkdtemp())
torch.save(victim.model.state_dict(), folder / "model.pt")
ask = parts.test[victim.attack.counts(parts.test.y)][:500]
x = data.quantize(victim.attack.trigger(ask.pixels()))
np.savez(folder / "poisoned_test.npz", x=x, y=ask.y, target=victim.attack.goal(ask.y))

# From here on it is yours.
suspect = foreign.pair(folder / "model.pt", folder / "poisoned_test.npz")
own = {"clean": parts.clean, "held": parts.held, "augment": bd.Augment(pad=2)}
repairs = {n: bd.repair(n, suspect.model, **own).model for n in ("none", "clp, u = 3", "nc unlearning")}  # fmt: skip
found = {n: metrics.evaluate(m, parts.test[:600], suspect.triggered) for n, m in repairs.items()}  # fmt: skip
check.claim("The stored backdoor works: ASR above 95 %.", found["none"].asr, 0.95, 1)
check.claim("CLP leaves it.", found["clp, u = 3"].asr, 0.9, 1)
check.claim("Unlearning an inverted trigger removes it.", found["nc unlearning"].asr, 0, 0.2)  # fmt: skip
verdict = {n: "works: ASR above 90 %" if s.asr > 0.9 else "gone: ASR below 10 %" if s.asr < 0.1 else "in between" for n, s in found.items()}  # fmt: skip
show.Table(
    [{"defense": n, "the backdoor": v} for n, v in verdict.items()],
    "Somebody's network",
)

# %% [markdown]
# The poisoned images are the examiner's: a defender has none, and then ACC on clean images is all that he sees, the same for all three. The loader reads tensors only: a pickle that carries code is refused. `python -m bdcourse bench --data FOLDER --attacks all --defenses all --out mine.json --workers 4` fills a
# whole table for your own images; killed and started again it goes on where it was, and `python -m bdcourse table mine.json` renders it. Which defense to take first is on one page: [choosing a defense](../book/choosing.md).
#
# ## Recap
#
# - DER adds up what is removed and what is lost, and likes a constant answer better than six lines of our table. ACC exposes it (objective 1).
# - Compare two defenses within each resampled table. Soft MNP leads in three quarters of them; four victims allow no confidence interval worth the name (objective 2).
# - Allow a tenth of the accuracy in place of a hundredth, and CLP's 100 % become 5 and 2 %. A look at the ASR adds nearly nothing there, and ten points of DER where methods are picked (objective 3).
# - The front drops what another one beats: FIP by FT-SAM, fine-tuning by soft MNP (objective 4).
# - With a fifth of the images fine-tuning fails and soft MNP, FT-SAM and FIP hold. The orders on photographs and on signs agree in part: measure on your own images (objective 5).
#
# **What this does not show.** Width 8 and six epochs, one seed and one choice of clean images on photographs. The published tables come from networks eight times as wide, trained more than ten times as long; ours say which claims hold
# *small*. Four victims miss the gate.
#
# **Beyond.** (a) Rank by RA instead of DER. Who gains? (b) Does a bootstrap of four values cover? Draw four normal numbers 2,000 times, resample each, and count the intervals that hold the true mean. (c) With a hundred equally frequent classes, which DER would the frog get?
#
# ## References
#
# - B. Wu, H. Chen, M. Zhang, Z. Zhu, S. Wei, D. Yuan, C. Shen, *BackdoorBench: A Comprehensive Benchmark of Backdoor Learning*, NeurIPS 2022, [arXiv 2206.12654](https://arxiv.org/abs/2206.12654).
# - M. Zhu, S. Wei, L. Shen, Y. Fan, B. Wu, *Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization*, ICCV 2023, [arXiv 2304.11823](https://arxiv.org/abs/2304.11823): DER, and FT-SAM.
# - B. Efron, *Bootstrap Methods: Another Look at the Jackknife*, Annals of Statistics 7, 1979.
