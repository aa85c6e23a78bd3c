"""Defenses: functions from a model (and clean images, if the paper grants any) to a
:class:`Purified`. No signature can receive the attacker's trigger or poisoned data,
except in functions whose name says `oracle`."""

from bdcourse.defenses.anp import anp
from bdcourse.defenses.base import Purified
from bdcourse.defenses.clp import clp
from bdcourse.defenses.controls import finetune, prune_random
from bdcourse.defenses.fine_pruning import fine_pruning
from bdcourse.defenses.fip import fast_fip, fip, fip_released
from bdcourse.defenses.fmp import fmp, fmp_random
from bdcourse.defenses.ft_sam import ft_sam
from bdcourse.defenses.i_bau import i_bau
from bdcourse.defenses.invert import detect, invert_trigger
from bdcourse.defenses.linf import linf, linf_oracle
from bdcourse.defenses.mnp import mnp
from bdcourse.defenses.nad import nad
from bdcourse.defenses.nc_unlearning import nc_unlearning
from bdcourse.defenses.rnp import rnp

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
    *DEFENSES,
    "DEFENSES",
    "Purified",
    "detect",
    "invert_trigger",
    "linf_oracle",
]
