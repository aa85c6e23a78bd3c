"""How visible a change of an image is, by two measures. PSNR is derived in lesson 01b."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bdcourse.models import wide


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of image pairs in dB, (n,); infinite if equal.

    PSNR = -10 log10(mean((a - b) ** 2)) for pixels in [0, 1], (n, c, h, w). High values
    mean small changes; it does not know where the eye looks.
    """
    return -10 * wide(a - b).square().flatten(1).mean(1).log10().float()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of image pairs, (n,) in -1..1; 1 if equal.

    Means, variances and covariance in a Gaussian window of 11 pixels (sigma 1.5),
    constants 0.01 and 0.03, averaged over places and colors; windows that do not lie
    inside the image are left out.

    Args:
        a, b: pixels in [0, 1], (n, c, h, w), at least 11 x 11.

    Source: Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment: From Error
    Visibility to Structural Similarity", IEEE TIP 2004, equation 13.
    """
    if min(a.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs images of at least 11x11 pixels, not {tuple(a.shape[-2:])}.")
    a, b, c = wide(a), wide(b), a.shape[1]
    line = torch.exp(-(torch.arange(-5, 6).double() ** 2) / (2 * 1.5**2))
    window = line[:, None] * line
    window = (window / window.sum()).to(a.device).expand(c, 1, 11, 11)

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=c)

    ma, mb = mean(a), mean(b)
    va, vb = mean(a * a) - ma**2, mean(b * b) - mb**2
    cov = mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    s = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return s.flatten(1).mean(1).float()
