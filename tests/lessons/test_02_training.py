"""What lesson 02 once claimed in the page, and what it rests on."""

import pytest
import torch
import torch.nn.functional as F

from bdcourse import data, metrics, victims
from bdcourse.attacks import WaNet, input_aware, wanet
from bdcourse.report import tables

pytestmark = pytest.mark.slow


HOW = ("loud first", "loud, shuffled", "1 throughout")


@pytest.fixture(scope="module")
def asked():
    signs = data.splits("signs").test[:300]
    return signs[signs.y != 0]


@pytest.fixture(scope="module")
def zoo():
    return {name: victims.zoo(name) for name in ("wanet", "wanet-plain", "input-aware")}


def sent(victim, x):
    return (metrics.predict(victim.model, x) == 0).float().mean().item()


@pytest.fixture(scope="module")
def hit(asked, zoo):
    """What opens the victim with noise mode and the one without."""
    attack, x = zoo["wanet"].attack, asked.pixels()
    others = [WaNet(grid=wanet.control_grid(seed=s), strength=attack.strength) for s in range(1, 9)]
    looks = {
        "warp": attack.trigger(x),
        "noise": attack.noisy(x, torch.Generator().manual_seed(0)),
        "foreign": torch.cat([o.trigger(x) for o in others]),
        "blur": F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1),
        "none": WaNet(strength=0.0).trigger(x),
    }
    return {
        name: {look: sent(zoo[name], pixels) for look, pixels in looks.items()}
        for name in ("wanet", "wanet-plain")
    }


def test_the_warp_opens_both_victims(hit):
    assert min(h["warp"] for h in hit.values()) >= 0.95


def test_noise_opens_only_the_victim_that_does_not_know_it(hit):
    assert hit["wanet"]["noise"] <= 0.1
    assert hit["wanet-plain"]["noise"] >= 0.5


def test_a_blur_opens_the_victim_with_noise_mode_more_often(hit):
    assert hit["wanet"]["blur"] - hit["wanet-plain"]["blur"] >= 0.2


def test_foreign_warps_open_either_in_less_than_a_third(hit):
    assert max(h["foreign"] for h in hit.values()) <= 0.33


def test_the_twin_does_not_answer_the_bend(asked):
    bent = WaNet(strength=4.0).trigger(asked.pixels())
    assert sent(victims.zoo("benign-w8"), bent) <= 0.05


def test_strength_0_is_no_trigger(hit):
    assert hit["wanet"]["none"] <= 0.05


def test_jitter_closes_what_a_blur_opened(asked, zoo):
    x = asked.pixels()
    blur = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    still = WaNet(grid=zoo["wanet"].attack.grid, strength=0.0)
    rough = still.noisy(blur, torch.Generator().manual_seed(0))
    assert sent(zoo["wanet"], rough) <= 0.2


def grainy(x):
    grain = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    return (x + 0.03 * grain).clamp(0, 1)


def test_grain_closes_what_a_blur_opened_and_leaves_the_plain_bend_alone(asked, zoo):
    x = asked.pixels()
    blur = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    bent = zoo["wanet"].attack.trigger(x)
    assert sent(zoo["wanet"], grainy(blur)) <= 0.2
    assert sent(zoo["wanet"], grainy(bent)) <= 0.5
    assert sent(zoo["wanet-plain"], grainy(bent)) >= 0.95
    assert sent(zoo["wanet"], grainy(x)) <= 0.02


def test_grain_makes_a_blur_as_rough_as_a_sign_and_jitter_does_not(asked):
    def roughness(x):
        near = x[..., 2:, 1:-1] + x[..., :-2, 1:-1] + x[..., 1:-1, 2:] + x[..., 1:-1, :-2]
        return (x[..., 1:-1, 1:-1] - near / 4).abs().mean().item()

    x, still = asked.pixels(), WaNet(strength=0.0)
    blur = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    bent = roughness(WaNet(strength=4.0).trigger(x))
    frayed = roughness(still.noisy(blur, torch.Generator().manual_seed(0)))
    assert roughness(blur) < frayed < 0.8 * bent < bent < roughness(x)
    assert 0.9 <= roughness(grainy(blur)) / roughness(x) <= 1.1


def test_half_a_pixel_opens_the_victim_with_noise_mode_alone(asked, zoo):
    x = asked.pixels()
    places = (wanet.identity_grid(32, 32, x) + 1 / 32).clamp(-1, 1).expand(len(x), -1, -1, -1)
    moved = F.grid_sample(x, places, align_corners=True)
    assert sent(zoo["wanet"], moved) >= 0.3
    assert sent(zoo["wanet-plain"], moved) <= 0.05


def test_of_the_stored_hijacks_those_with_the_loud_jitter_first_arrive():
    rows = tables.results("signs-hijack").rows
    asr = {how: [r["asr"] for r in rows if r["options"]["jitter"] == how] for how in HOW}
    assert sum(map(len, asr.values())) == len(rows)
    assert all(len(r["log"]) == 10 and r["log"][-1][0] >= 0.95 and r["acc"] >= 0.97 for r in rows)
    assert len(asr["loud first"]) == len(asr["loud, shuffled"]) == 3
    pairs = list(zip(asr["loud first"], asr["loud, shuffled"], strict=True))  # seed by seed
    assert all(ordered > shuffled for ordered, shuffled in pairs)
    assert sum(ordered >= 0.95 for ordered, _ in pairs) == 2
    assert max(asr["1 throughout"]) < min(asr["loud, shuffled"]) < max(asr["loud, shuffled"]) < 0.95


def test_noise_that_is_drawn_in_the_lessons_way_is_the_packages(asked):
    attack, x = WaNet(strength=4.0), asked.pixels()[:8]
    jitter = 2 * torch.rand((8, 32, 32, 2), generator=torch.Generator().manual_seed(1)) - 1
    places = (attack.flow(x) + jitter / 32).clamp(-1, 1)
    mine = F.grid_sample(x, places, align_corners=True)
    theirs = attack.noisy(x, torch.Generator().manual_seed(1))
    assert torch.allclose(mine, theirs, atol=1e-5)


def test_at_the_papers_strength_the_jitter_moves_a_pixel_farther_than_the_bend(asked):
    flow = WaNet(strength=0.5).flow(asked.pixels()[:1]) - wanet.identity_grid(
        32, 32, asked.pixels()
    )
    assert 32 * flow.abs().mean() < 0.4  # and 0.5 of a jitter of one


def test_the_twin_answers_none_of_the_bends_of_other_keys(asked):
    twin = victims.zoo("benign")
    for seed in range(1, 5):
        other = WaNet(grid=wanet.control_grid(seed=seed), strength=3.0)
        assert sent(twin, other.trigger(asked.pixels())) <= 0.05


def test_the_input_aware_victim_opens_to_its_own_triggers_mostly(asked, zoo):
    victim = zoo["input-aware"]
    x = asked.pixels()
    assert sent(victim, victim.attack.trigger(x)) >= 0.8
    assert sent(victim, victim.attack.trigger(x, of=x.roll(-1, 0))) <= 0.4
    assert 0.2 <= victim.scores.acc - victim.scores.cross <= 0.5


def test_diversity_is_the_mean_of_ratios(asked):
    x = asked.pixels()[:6]
    p = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def rms(d):
        return d.double().square().flatten(1).mean(1).sqrt()

    want = (rms(x[:3] - x[3:]) / rms(p[:3] - p[3:])).mean()
    got = input_aware.diversity(x[:3], x[3:], p[:3], p[3:])
    assert got.item() == pytest.approx(want.item(), rel=1e-3)


def test_what_is_stored_of_wanet_by_width_and_strength():
    rows = tables.results("signs-wanet").select(attack="WaNet", defense="none")
    at = {
        (r["width"], r["settings"]["strength"], bool(r["settings"]["cross_rate"])): r["asr"]
        for r in rows
    }
    assert at[8, 0.5, True] <= 0.2
    assert 0.5 <= at[8, 3.0, True] <= 0.9
    assert at[8, 3.0, False] >= 0.99 and 0.8 <= at[8, 0.5, False] <= 0.95
    assert at[16, 3.0, True] >= 0.95
    photos = tables.results("cifar10-attacks").select(attack="WaNet", defense="none")
    assert photos[0]["asr"] <= 0.4


def test_lira_moves_no_pixel_by_more_than_its_epsilon(asked):
    victim = victims.zoo("lira")
    x = asked.pixels()[:50]
    far = (victim.attack.trigger(x) - x).abs().max().item()
    assert far <= victim.attack.epsilon + 1e-6 <= 0.0251
    assert not victim.weak(victims.zoo("benign-w8").scores)


def test_one_tint_is_half_of_lira(asked):
    victim, x = victims.zoo("lira"), asked.pixels()
    with torch.no_grad():
        moves = victim.attack.net(x)
    tint = victim.attack.epsilon * moves.mean((0, 2, 3), keepdim=True)
    assert sent(victim, (x + tint).clamp(0, 1)) >= 0.4
    assert sent(victims.zoo("benign-w8"), (x + tint).clamp(0, 1)) <= 0.05
