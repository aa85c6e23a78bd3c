"""Exercise checks: properties on fresh random tensors, and a sentence when one fails.

A check draws new inputs each time, so a constant cannot pass. It tests shape, dtype,
that nothing is changed in place, and agreement with a reference in float64; its message
names the symptom and the hint to open. Passing prints one fixed line. One file a
lesson; notebooks call them from here, `check.asr(...)`.
"""

from bdcourse.teach.check.clips import poison_clips, reach, shuffle, walking_patch
from bdcourse.teach.check.clp import (
    careful_u,
    clp_plain,
    largest_z,
    outliers,
    score,
    sigma,
)
from bdcourse.teach.check.core import CheckFailed, claim, reveal, stand_in
from bdcourse.teach.check.fip import (
    fip_plain,
    one_pass_trace,
    product,
    score_length,
    spectral_step,
)
from bdcourse.teach.check.fmp import (
    fmp_maps,
    look_again,
    pulls,
    push_layer,
    worst_maps,
)
from bdcourse.teach.check.gallery import by_class, decibels, poison_one_class
from bdcourse.teach.check.inside import asr, cam, cut_curve, tac, three_rates
from bdcourse.teach.check.linf import (
    dilution,
    find_triggers,
    last_share,
    rise,
    steer,
    verdict,
)
from bdcourse.teach.check.mnp import folded, forget, learn_masks, mask_step, removal
from bdcourse.teach.check.poisoning import lost, poison, stamp, train_victim
from bdcourse.teach.check.sharpness import (
    rescaled,
    sharpest,
    top_eigenvalue,
    trace_draws,
)
from bdcourse.teach.check.showdown import (
    balance,
    by_the_test,
    contest,
    resampled_means,
    three_choosers,
)
from bdcourse.teach.check.training import bend, hijack, noise_mode, noisy_warp, roughen
from bdcourse.teach.check.welcome import attack_success, confusion, place, take

__all__ = [
    "CheckFailed",
    "asr",
    "attack_success",
    "balance",
    "bend",
    "by_class",
    "by_the_test",
    "cam",
    "careful_u",
    "claim",
    "clp_plain",
    "confusion",
    "contest",
    "cut_curve",
    "decibels",
    "dilution",
    "find_triggers",
    "fip_plain",
    "fmp_maps",
    "folded",
    "forget",
    "hijack",
    "largest_z",
    "last_share",
    "learn_masks",
    "look_again",
    "lost",
    "mask_step",
    "noise_mode",
    "noisy_warp",
    "one_pass_trace",
    "outliers",
    "place",
    "poison",
    "poison_clips",
    "poison_one_class",
    "product",
    "pulls",
    "push_layer",
    "reach",
    "removal",
    "resampled_means",
    "rescaled",
    "reveal",
    "rise",
    "roughen",
    "score",
    "score_length",
    "sharpest",
    "shuffle",
    "sigma",
    "spectral_step",
    "stamp",
    "stand_in",
    "steer",
    "tac",
    "take",
    "three_choosers",
    "three_rates",
    "top_eigenvalue",
    "trace_draws",
    "train_victim",
    "verdict",
    "walking_patch",
    "worst_maps",
]
