"""How visible a trigger is: PSNR and SSIM."""

from __future__ import annotations

import pytest
import torch

from bdcourse.analysis import visibility
from helpers import gen


def pixels(n, h, w=None, c=3, seed=0):
    return torch.rand(n, c, h, w or h, generator=gen(seed))


def test_psnr_and_ssim():
    x = pixels(4, 32)
    assert visibility.psnr(x, (x + 0.1)).tolist() == pytest.approx([20.0] * 4, abs=1e-3)
    assert visibility.psnr(x, x).isinf().all()
    assert torch.allclose(visibility.ssim(x, x), torch.ones(4))
    noise = 0.1 * torch.randn(4, 3, 32, 32, generator=gen())
    near, far = visibility.ssim(x, x + noise / 4), visibility.ssim(x, x + noise)
    assert (far < near).all() and (near < 1).all() and (far > 0).all()
    # A constant shift by d of a constant image m: structure and contrast are equal.
    m, d = torch.full((1, 1, 16, 16), 0.5), 0.2
    want = (2 * 0.5 * 0.7 + 1e-4) / (0.5**2 + 0.7**2 + 1e-4)
    assert visibility.ssim(m, m + d).item() == pytest.approx(want, abs=1e-6)
    with pytest.raises(ValueError, match="11x11"):
        visibility.ssim(pixels(1, 8), pixels(1, 8))


def test_ssim_agrees_with_a_loop():
    a, b = pixels(1, 13, 12, 1).double(), pixels(1, 13, 12, 1, seed=2).double()
    line = torch.exp(-((torch.arange(11).double() - 5) ** 2) / 4.5)
    w = line[:, None] * line / line.sum() ** 2
    total = []
    for i in range(3):
        for j in range(2):
            p, q = a[0, 0, i : i + 11, j : j + 11], b[0, 0, i : i + 11, j : j + 11]
            mp, mq = (w * p).sum(), (w * q).sum()
            vp, vq = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum()
            cov = (w * (p - mp) * (q - mq)).sum()
            top = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4)
            total.append(top / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    want = torch.stack(total).mean().item()
    assert visibility.ssim(a, b).item() == pytest.approx(want, abs=1e-6)
