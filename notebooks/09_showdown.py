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
# Sixteen repairs and controls against eight attacks on photographs. Five of them leave less than 15 % of every strong backdoor, and the best of those
# comes fifth on another set of images. You will compute the usual score, beat four published methods, at our thresholds, with a network that answers "frog" to everything,
# and find out how much of a ranking is left when other victims could have been in it.
#
# > **At a glance.** Reading: 25 minutes. Doing: 40 minutes. Run time: about half a minute and 1 GiB on two CPU cores; nothing is trained here, all rows were measured before.
# > Prerequisites: lessons [03](03_inside_a_victim.ipynb) (scores) and any two of [04](04_linf_pruning.ipynb) to [08](08_fip.ipynb). Paper: Wu, Chen, Zhang, Zhu, Wei, Yuan and Shen,
# > *BackdoorBench: A Comprehensive Benchmark of Backdoor Learning*, NeurIPS 2022, [arXiv 2206.12654](https://arxiv.org/abs/2206.12654).
#
# ## Objectives
#
# After this lesson you can
#
# 1. compute DER, and say which bad defenses it likes (exercise 1);
# 2. put an interval on a mean over victims and on a place in a ranking (exercise 2);
# 3. measure what a threshold gains that was chosen by the test (exercise 3);
# 4. find the defenses that no other beats in everything (exercise 4);
# 5. choose a defense for a network of your own, and measure it in ten lines.
#
# ## Threat model
#
# | | in every row of this lesson |
# |---|---|
# | attacker | poisoned the training images (WaNet, InputAware: ran the training) |
# | defender has | the network and 2,500 clean labeled images, 500 of them held out; 500 in all where that is said |
# | defender does not have | the trigger, its target, poisoned images |
# | success | ASR below 15 %, the field's mark, at little cost in ACC, and true labels back (RA) |

# %% tags=["setup"]
import tempfile
from pathlib import Path

import numpy as np
import torch

from bdcourse import check, data, defenses, foreign, metrics, render, report, show, tables, victims, widgets  # fmt: skip
from bdcourse.activations import spearman
from bdcourse.plans import PLANS

PHOTOS = {"name": "cifar10-defenses", "budget": 2500, "draw": None}
LINES = ("none", "random channels", "fine-tuning", "linf", "clp, u = 3", "fmp", "mnp, soft", "fip", "sam", "fine-pruning", "anp", "rnp", "ft-sam", "nad", "i-bau", "nc unlearning")  # fmt: skip

# %% [markdown]
# ## The table
#
# `python -m bdcourse bench` trains a victim and its benign twin for each attack, applies each defense to the same network with the same clean images, and
# writes one row a cell. CIFAR-10, ResNet-18 of width 8, six epochs: small networks, trained briefly. A star marks a victim that misses the **gate** of the protocol: ASR at least 95 %, accuracy at most
# three points below the twin's. What is said about a backdoor that was never well learned says little about defenses, so starred rows are shown and never averaged.
#
# Rows end in scores, and scores are read from the attack's side first: the field below is the attack success that is **left**, in percent.

# %% tags=["figure"]
render.figure(**PHOTOS, kind="grid", defenses=LINES, title="What is left of eight attacks, ASR in percent")  # fmt: skip

# %% [markdown]
# Rows differ less than columns: here the defense decides more than the attack. Two columns of the left half are controls. Random pruning does nothing. *Fine-tuning alone* takes SIG
# and TrojanNN below 15 % and leaves 29 % of BadNets: a defense that ends in fine-tuning has to be compared with that column, not with the first.
#
# **Predict.** Four victims pass the gate: BadNets, Blended, SIG, TrojanNN. How many of the fifteen lines below "none" take **all four** below 15 %?

# %% tags=["predict", "claim"]
guess = 8
STRONG = ("BadNets", "Blended", "SIG", "TrojanNN")
left = tables.attack_success(defenses=LINES, who=STRONG, **PHOTOS)
worst = {d: max(row[i] for row in left.values()) for i, d in enumerate(LINES)}
whole = [d for d, v in worst.items() if v < 0.15]
check.reveal(guess, len(whole))
check.claim("Five repairs take all four below 15 %.", len(whole), 5, 5)
print(", ".join(sorted(whole)))

# %% [markdown]
# Two of the course's five methods are among them: FIP, and MNP as we reconstructed it. The others are SAM in FIP's own loop, FT-SAM and I-BAU, which came as rivals. FMP misses by one victim (SIG, 39 %), CLP by three,
# l-infinity pruning by all four.
#
# ## One number
#
# A table of ASR forgets what a repair costs. Benchmarks add both up in the *defense effectiveness rating*,
#
# $$\mathrm{DER} = \tfrac12 \left( \max(0, \Delta\mathrm{ASR}) - \max(0, \Delta\mathrm{ACC}) + 1 \right), \qquad \Delta = \text{before} - \text{after},$$
#
# 1 for a repair that is perfect and free, ½ for one that does nothing.
#
# ### Exercise 1: DER
#
# *Difficulty 1, importance 4, 4 minutes.* All arguments are shares in 0..1.
#
# > **Hint 1.** Perfect and free is 1, idle is 0.5. What must stand outside the bracket?
# >
# > **Hint 2.** Both differences are before minus after; the second one is subtracted.
# >
# > **Hint 3.** `max(0, ...)` twice: a repair is not paid for accuracy that rose.


# %% tags=["exercise", "hide-input"]
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
ranks = tables.ranking(defenses=LINES, **PHOTOS)
beaten = [r["defense"] for r in ranks if r["der"] < frog]
check.claim("That is more than six lines of the table get.", len(beaten), 6, 6)
print(", ".join(beaten))

# %% [markdown]
# DER pays half a point for the attack and takes back only half of the 65 points of accuracy. Four published methods, at the thresholds of this course, stand below the frog. So DER must never stand without ACC and RA beside it: the frog's RA is 11 %. And an ASR near
# zero alone says nothing at all.
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
# > **Hint 1.** `torch.randint(v, (n, v), generator=generator)` draws all positions at once.
# >
# > **Hint 2.** A sample has as many victims as there are, some of them twice.
# >
# > **Hint 3.** `scores[at].mean(1)`.


# %% tags=["exercise", "hide-input"]
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
check.claim("FMP's interval: from about 0.83 ...", drawn[0].item(), 0.80, 0.88)
check.claim("... to about 0.96.", drawn[1].item(), 0.94, 0.98)
check.claim("The package finds the same, up to 0.05.", abs(drawn[0].item() - packaged["low"]), 0, 0.05)  # fmt: skip

# %% tags=["figure"]
render.ranked(ranks, highlight=["fine-tuning"])

# %% tags=["claim"]
first = ranks[0]
tied = [r["defense"] for r in ranks if r["high"] >= first["low"]]
check.claim("First by its mean: our reconstruction of MNP, soft repair.", first["defense"] == "mnp, soft", True, True)  # fmt: skip
check.claim("At least three others reach into its interval.", len(tied), 4, 8)
places = {r["defense"]: (r["rank_low"], r["rank_high"]) for r in ranks}
check.claim("Fine-tuning's place spans three or more.", places["fine-tuning"][1] - places["fine-tuning"][0], 3, 12)  # fmt: skip
tables.ranking_table(ranks[:8], "The first eight, on photographs")

# %% [markdown]
# "Their places" says where a defense stood in 90 % of the tables drawn. What survives: a group of about six above fine-tuning, a group of idle ones at the bottom. What does not: a winner by a point or two. And four
# victims, one training seed and one choice of clean images are all that this interval knows of; it is too narrow, if anything.
#
# ## Does the order travel?
#
# The zoo of this course has other victims: drawn signs, nearly no clean error, three choices of 300 clean images.
#
# **Predict.** The best on photographs by its mean was MNP, soft repair. Which place of the same lines does it take on the signs?

# %% tags=["predict", "claim"]
guess = 3
signs = tables.ranking("signs-defenses", [d for d in LINES if d not in ("fip", "sam")])
order = [r["defense"] for r in signs]
place = order.index("mnp, soft") + 1
check.reveal(guess, place)
both = {r["defense"]: (100 * p["der"], 100 * r["der"]) for r in signs for p in ranks if p["defense"] == r["defense"]}  # fmt: skip
x, y = torch.tensor(list(both.values())).T
check.claim("The rank correlation of the two orders: 0.3 to 0.9.", spearman(x, y), 0.3, 0.9)  # fmt: skip

# %% tags=["figure"]
show.points(
    both, xlabel="DER on photographs, %", ylabel="DER on signs, %", highlight=["mnp, soft", "i-bau"],
    title="Good on photographs does not make good on signs",
    description=f"Mean DER of {len(both)} defenses on signs over that on photographs, a point each with its name. I-BAU is high on both. Soft MNP is far right and at middle height: first on "
    "photographs, fifth on signs.",
)  # fmt: skip

# %% [markdown]
# On signs the clean loss of a trained network is almost zero, and with it the gradient of everything that repairs by descending the clean loss: fine-tuning, NAD, fine-pruning and MNP's soft step move little.
# What searches for a perturbation first and unlearns it (I-BAU, FT-SAM, inverted triggers) has something to descend. "Which defense is best?" has no answer without "on what?": the order travels only in part.
#
# ## Who chose the threshold?
#
# CLP has a knob $u$. Its curve below was measured at every $u$, on the test set, with the trigger. A defender sees neither. A benchmark does, and may be tempted: BackdoorBench's leaderboard picks the thresholds
# of ANP and RNP by the lowest ASR **on the test set** among settings that keep accuracy within a tenth of the original ([issue 35](https://github.com/SCLBD/BackdoorBench/issues/35)).
#
# ### Exercise 3: the examiner's choice
#
# *Difficulty 1, importance 5, 5 minutes.* Return the position of the lowest `asr` among the points with `acc` of at least `least`.
#
# > **Hint 1.** Exactly `least` is enough.
# >
# > **Hint 2.** Put infinity where accuracy is too low; then `argmin` counts in the whole list.


# %% tags=["exercise", "hide-input"]
def by_the_test(acc, asr, least):
    """Position, an int, of the lowest asr where acc >= least; both are (n,)."""
    ### BEGIN SOLUTION
    return int(torch.where(acc >= least, asr, torch.inf).argmin())
    ### END SOLUTION


# %% tags=["check"]
check.by_the_test(by_the_test)

# %% tags=["claim"]
swept, chosen = tables.results("cifar10"), {}
for attack in ("BadNets", "Blended"):
    curve = swept.select(attack=attack, defense="clp sweep")[0]["curve"]
    acc, asr, u = (torch.tensor([p[k] for p in curve]) for k in ("acc", "asr", "u"))
    start = swept.select(attack=attack, defense="none")[0]["acc"]
    at = by_the_test(acc, asr, start * 0.9)
    held = swept.select(attack=attack, defense="clp, u on held-out images")[0]
    chosen[attack] = {"attack": attack, "u by the test": f"{u[at]:g}", "ASR %": 100 * asr[at].item(), "u held-out": f"{held['u']:g}", "ASR % held-out": 100 * held["asr"]}  # fmt: skip
    check.claim(f"{attack}: chosen by the test, CLP leaves less than 10 %.", asr[at].item(), 0, 0.1)  # fmt: skip
    check.claim(f"{attack}: chosen by held-out accuracy it leaves all.", held["asr"], 0.95, 1)  # fmt: skip
show.Table(list(chosen.values()), "CLP on photographs, width 16: one curve, two ways to choose")  # fmt: skip

# %% [markdown]
# The same method on the same network is a complete success or a complete failure, depending on who turned the knob. ANP's line tells it, too: with the rule of this course (one point of held-out accuracy) it leaves
# 86 % in the mean, with ten points 5 %. On the leaderboard ANP leaves 0.8 % at 86 % accuracy, an examiner's number.
#
# ## What it costs
#
# A defender weighs attack success against accuracy himself. What he can skip is a defense that another one *beats*: at least as good in both, and better in one.
#
# ### Exercise 4: the front
#
# *Difficulty 3, importance 3, 8 minutes.* Which points does no other beat? High `acc` and low `asr` are good.
#
# > **Hint 1.** `acc[:, None] >= acc` compares all pairs: entry $(j, i)$ says whether $j$ is at least as accurate as $i$. The answer is a bool tensor.
# >
# > **Hint 2.** $j$ beats $i$: at least as good in both, **and** better in one of them.
# >
# > **Hint 3.** So equal points do not beat each other, and no point beats itself. `~beats.any(0)`.


# %% tags=["exercise", "hide-input"]
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
render.figure(**PHOTOS, kind="summary", defenses=LINES, highlight=best, title="Squares: no other repair is better in both")  # fmt: skip

# %% tags=["claim"]
check.claim("Three to seven are on the front, doing nothing among them.", len(best), 3, 7)  # fmt: skip
check.claim("Soft MNP is.", "mnp, soft" in best, True, True)
check.claim("Fine-tuning is not.", "fine-tuning" in best, False, False)
fip, sam = (next(r for r in ranks if r["defense"] == d) for d in ("fip", "sam"))
check.claim("SAM in FIP's own loop keeps 3 to 8 points more accuracy than FIP ...", 100 * (sam["acc"] - fip["acc"]), 3, 8)  # fmt: skip
check.claim("... at an ASR that is 3 points away at most.", 100 * abs(sam["asr"] - fip["asr"]), 0, 3)  # fmt: skip

# %% [markdown]
# Nothing is always on the front: who wants the last point of accuracy does nothing. And the picture has no third axis. RA belongs on it (after FIP 43 % of the triggered images are read right, after soft MNP 53 %), and time,
# which on this page is wall-clock of a shared machine and good for orders of magnitude only.
#
# ## Turn it yourself
#
# Attack, defense and the number of clean images, beside no defense and fine-tuning on the same images.


# %% tags=["figure", "nbval-ignore-output"]
def compare(attack, defense, images):
    names = dict.fromkeys(("none", "fine-tuning", defense))
    found = {d: tables.results(PHOTOS["name"]).select(attack=attack, defense=d, budget=images, draw=None) for d in names}  # fmt: skip
    if not all(found.values()):
        raise ValueError(f"{defense} against {attack} with {images} images was not measured.")  # fmt: skip
    scores = {
        k.upper(): [r[0][k] for r in found.values()] for k in ("acc", "asr", "ra")
    }
    asr = 100 * found[defense][0]["asr"]
    return show.bars(
        list(names), scores, percent=True, title=f"{defense}, {images} clean images: {asr:.0f} % of {attack} is left",
        description=f"Bars of accuracy, attack success and recovered accuracy for {attack}: no defense, fine-tuning and {defense}, each with {images} clean images. Attack success ends at {asr:.0f} %.",
    )  # fmt: skip


widgets.menus({"attack": [a for a in before if a != "none"], "defense": [d for d in LINES if PLANS[d].clean][::-1], "images": [2500, 500]}, compare)  # fmt: skip

# %% tags=["claim"]
few = {a: tables.results(PHOTOS["name"]).select(attack=a, defense="fine-tuning", budget=500, draw=None)[0] for a in ("BadNets", "Blended")}  # fmt: skip
check.claim("Fine-tuning on 500 instead of 2,500 images leaves over half of BadNets ...", few["BadNets"]["asr"], 0.5, 1)  # fmt: skip
check.claim("... and over 80 % of Blended.", few["Blended"]["asr"], 0.8, 1)

# %% [markdown]
# ## Papers say, we measure
#
# Every figure of the five papers, of their code and of the leaderboard that we could verify stands in the [reproduction report](../book/reproduction.md), beside our row and a verdict that follows from a rule. In short:

# %% tags=["claim"]
SHORT = ("linf-headline", "clp-claim-data-free", "fmp-mean", "mnp-claim-asr", "fip-t6-badnets", "fip-t6-sharp-badnets")  # fmt: skip
found = {a.claim["id"]: a for a in report.answers()}
check.claim("CLP at u = 3 in the mean of four: not below 15 %.", found["clp-claim-data-free"].verdict == report.FAILS, True, True)  # fmt: skip
check.claim("FIP on BadNets: as published, at a higher price.", found["fip-t6-badnets"].verdict == report.DEARER, True, True)  # fmt: skip
check.claim("A victim twice as sharp as its twin: not here.", found["fip-t6-sharp-badnets"].verdict == report.FAILS, True, True)  # fmt: skip
show.Table([{"claim": found[i].claim["what"][:88], "verdict": found[i].verdict} for i in SHORT])  # fmt: skip

# %% [markdown]
# | method | its claim in one line | what became of it here |
# |---|---|---|
# | l-infinity (04) | channels that peak on the trigger can be pruned, with a guessed trigger | the guess is the weak part, the last stage another; in earlier stages it works on patches |
# | CLP (05) | the weights alone betray the backdoor | sometimes; the threshold decides, and nothing without the trigger tells where it should be |
# | FMP (06) | maps through which little harm comes at little change are the backdoor's | removes three of four, but random maps and fine-tuning do much of it |
# | MNP (07) | suppress what is clean, and masks find the rest | best here; on signs it removes two of eight; a reconstruction, so no verdict on the paper |
# | FIP (08, 08b) | backdoored minima are sharper; smoothing removes them | removes them; sharper they are not; SAM does it for less |
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
repairs = {"none": suspect.model, "clp": defenses.clp(suspect.model, 3.0).model}
images = data.splits("signs").clean
repairs["ft-sam"] = defenses.ft_sam(suspect.model, images, generator=torch.Generator().manual_seed(0)).model  # fmt: skip
found = {n: metrics.evaluate(m, parts.test[:600], suspect.triggered) for n, m in repairs.items()}  # fmt: skip
check.claim("The stored backdoor works: ASR above 95 %.", found["none"].asr, 0.95, 1)

# %% [markdown]
# The loader reads tensors only: a pickle that carries code is refused. `python -m bdcourse bench --data FOLDER --attacks all --defenses all --workers 4` fills a whole table for your own images; killed and started again it goes on where it was, and
# `python -m bdcourse table` renders it. Which defense to take first is on one page: [choosing a defense](../book/choosing.md).
#
# ## Recap
#
# - DER adds up what is removed and what is lost, and likes a constant answer better than six lines of our table. ACC and RA must stand beside it (objective 1).
# - Four victims leave intervals so wide that at least three methods could be first; places, too, have intervals (objective 2).
# - A threshold chosen by the test turned 100 % into 5 %. Ask of every table who chose (objective 3).
# - The front drops what another one beats; FIP is beaten by SAM in its own loop, fine-tuning by soft MNP (objective 4).
# - The order on photographs and that on signs agree only in part: measure on your own images (objective 5).
#
# **What this does not show.** Width 8 and six epochs, one seed and one choice of clean images on photographs. The published tables come from networks eight times as wide, trained ten times as long; ours say which claims hold
# *small*. Four victims miss the gate.
#
# **Beyond.** (a) Rank by RA instead of DER. Who gains? (b) Draw defenses in pairs: in what share of the resampled tables is FT-SAM above SAM? (c) With a hundred equally frequent classes, which DER would the frog get?
#
# ## References
#
# - B. Wu, H. Chen, M. Zhang, Z. Zhu, S. Wei, D. Yuan, C. Shen, *BackdoorBench: A Comprehensive Benchmark of Backdoor Learning*, NeurIPS 2022, [arXiv 2206.12654](https://arxiv.org/abs/2206.12654).
# - M. Zhu, S. Wei, L. Shen, Y. Fan, B. Wu, *Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization*, ICCV 2023, [arXiv 2304.11823](https://arxiv.org/abs/2304.11823): DER, and FT-SAM.
# - B. Efron, *Bootstrap Methods: Another Look at the Jackknife*, Annals of Statistics 7, 1979.
