"""Defenses: functions from a model (and clean images, if the paper grants any) to a
:class:`Purified`. No signature can receive the attacker's trigger or poisoned data,
except in functions whose name says `oracle`.

Beside each defense stand its building blocks that the lessons and tables use, named
after it: `clp` repairs, `clp_scores` are what it judges by. What begins with `masks_`
is shared by the three methods that learn masks (ANP, RNP, MNP).
"""

from bdcourse.defenses._anp import anp, anp_step
from bdcourse.defenses._base import Look, Purified
from bdcourse.defenses._clp import (
    CLP_US,
    clp,
    clp_choose_u,
    clp_norms,
    clp_plain_scores,
    clp_scores,
    clp_sweep,
)
from bdcourse.defenses._controls import finetune, prune_random
from bdcourse.defenses._fine_pruning import fine_pruning
from bdcourse.defenses._fip import (
    FAST_FIP_ETA,
    FIP_ETA,
    FIP_SHARES,
    FipDescent,
    SamDescent,
    fast_fip,
    fip,
    fip_all_pairs,
    fip_along,
    fip_descend,
    fip_factorize,
    fip_fake_trace,
    fip_matrices,
    fip_released,
)
from bdcourse.defenses._fmp import (
    FMP_SETTINGS,
    FmpResponse,
    fmp,
    fmp_execution_order,
    fmp_plain_push,
    fmp_plain_scores,
    fmp_random,
    fmp_released_order,
    fmp_repair,
    fmp_scales_of,
    fmp_scores,
    fmp_select,
)
from bdcourse.defenses._ft_sam import ft_sam
from bdcourse.defenses._i_bau import i_bau
from bdcourse.defenses._invert import Detection, Estimate, Inverted, detect, invert_trigger
from bdcourse.defenses._linf import (
    LinfResponse,
    linf,
    linf_curve,
    linf_default_layer,
    linf_gated,
    linf_oracle,
    linf_responses,
    linf_sweep,
)
from bdcourse.defenses._masks import (
    masks_forward,
    masks_frozen,
    masks_ones,
    masks_prune,
    masks_prune_oracle,
)
from bdcourse.defenses._mnp import (
    mnp,
    mnp_apply_masks,
    mnp_correlation,
    mnp_deviations,
    mnp_first_order,
    mnp_learn_masks,
    mnp_loss_changes,
    mnp_magnitudes,
    mnp_saliency,
    mnp_score,
    mnp_suppress,
)
from bdcourse.defenses._nad import nad
from bdcourse.defenses._nc_unlearning import nc_unlearning
from bdcourse.defenses._rnp import rnp

# The five papers' methods, then their rivals, then the controls.
DEFENSES = {
    f.__name__: f
    for f in (
        *(linf, clp, fmp, mnp, fip, fast_fip),
        *(anp, rnp, fine_pruning, ft_sam, nad, i_bau, nc_unlearning),
        *(finetune, prune_random, fmp_random, fip_released),
    )
}

__all__ = [
    "anp",
    "anp_step",
    "clp",
    "clp_choose_u",
    "clp_norms",
    "clp_plain_scores",
    "clp_scores",
    "clp_sweep",
    "CLP_US",
    "DEFENSES",
    "detect",
    "Detection",
    "Estimate",
    "fast_fip",
    "FAST_FIP_ETA",
    "fine_pruning",
    "finetune",
    "fip",
    "fip_all_pairs",
    "fip_along",
    "fip_descend",
    "FIP_ETA",
    "fip_factorize",
    "fip_fake_trace",
    "fip_matrices",
    "fip_released",
    "FIP_SHARES",
    "FipDescent",
    "fmp",
    "fmp_execution_order",
    "fmp_plain_push",
    "fmp_plain_scores",
    "fmp_random",
    "fmp_released_order",
    "fmp_repair",
    "fmp_scales_of",
    "fmp_scores",
    "fmp_select",
    "FMP_SETTINGS",
    "FmpResponse",
    "ft_sam",
    "i_bau",
    "invert_trigger",
    "Inverted",
    "linf",
    "linf_curve",
    "linf_default_layer",
    "linf_gated",
    "linf_oracle",
    "linf_responses",
    "linf_sweep",
    "LinfResponse",
    "Look",
    "masks_forward",
    "masks_frozen",
    "masks_ones",
    "masks_prune",
    "masks_prune_oracle",
    "mnp",
    "mnp_apply_masks",
    "mnp_correlation",
    "mnp_deviations",
    "mnp_first_order",
    "mnp_learn_masks",
    "mnp_loss_changes",
    "mnp_magnitudes",
    "mnp_saliency",
    "mnp_score",
    "mnp_suppress",
    "nad",
    "nc_unlearning",
    "prune_random",
    "Purified",
    "rnp",
    "SamDescent",
]
