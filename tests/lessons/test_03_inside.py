"""What lesson 03 may say of victims, beyond the claims that stand on its page."""

import itertools

import pytest
import torch

from bdcourse import activations, data, defenses, metrics, surgery, victims

pytestmark = pytest.mark.slow

FILES = ("badnets", "blended", "sig", "trojan", "tact", "wanet", "input-aware")


@pytest.fixture(scope="module")
def test():
    return data.splits("signs").test[:200]


@pytest.fixture(scope="module")
def zoo():
    return {n: victims.zoo(n) for n in (*FILES, "benign", "benign-w8")}


def pixels(test, attack):
    x = test[attack.counts(test.y)][:120].pixels()
    return x, attack.trigger(x)


def ratios(model, x, triggered):
    """Change over size at the first and at the last stage."""
    ends = ["bn1", "layer4.1"]
    a, b = (activations.outputs(model, p, ends) for p in (x, triggered))
    size = [a[s].flatten(1).norm(dim=1).sum() for s in ends]
    far = [(b[s] - a[s]).flatten(1).norm(dim=1).sum() for s in ends]
    return [float(f / s) for f, s in zip(far, size, strict=True)]


def test_victims_change_more_than_twins_at_the_exit_and_alike_at_the_entrance(test, zoo):
    for name in FILES:
        v = zoo[name]
        twin = zoo["benign-w8" if v.arch["width"] == 8 else "benign"]
        pair = pixels(test, v.attack)
        (first, last), (twin_first, twin_last) = (ratios(m.model, *pair) for m in (v, twin))
        assert last / twin_last >= 1.2, name
        assert 1 / 3 <= first / twin_first <= 3, name


def gathered(model, attack, test):
    """Share of triggered images whose nearest class mean is the target's."""
    _, x = pixels(test, attack)
    f, clean = (
        activations.outputs(model, p, ["layer4"])["layer4"].mean((2, 3)) for p in (x, test.pixels())
    )
    means = torch.stack([clean[test.y == k].mean(0) for k in range(test.k)])
    return (torch.cdist(f, means).argmin(1) == attack.target).float().mean().item()


def test_triggered_images_gather_at_the_target_in_all_but_one(test, zoo):
    near = {n: gathered(zoo[n].model, zoo[n].attack, test) for n in FILES}
    assert near.pop("input-aware") <= 0.2
    assert min(near.values()) >= 0.7, near
    assert gathered(zoo["benign"].model, zoo["badnets"].attack, test) <= 0.1


def top(change, k):
    """The k channels with the highest z-scores of all layers: layer -> positions."""
    z = {n: (v - v.mean()) / v.std() for n, v in change.items()}
    order = sorted(((s, n, i) for n, v in z.items() for i, s in enumerate(v.tolist())))
    chosen = {}
    for _, name, i in order[len(order) - k :]:
        chosen.setdefault(name, []).append(i)
    return {n: torch.tensor(i) for n, i in chosen.items()}


def test_ten_channels_across_layers_end_badnets_and_sixty_random_ones_do_not(test, zoo):
    v, g = zoo["badnets"], torch.Generator().manual_seed(0)
    change = activations.tac(v.model, test, v.attack)
    ten = metrics.evaluate(surgery.without(v.model, top(change, 10)), test, v.attack)
    assert ten.asr < 0.1 and ten.acc >= 0.95
    twenty = metrics.evaluate(surgery.without(v.model, top(change, 20)), test, v.attack)
    assert twenty.acc >= 0.95
    for k in (20, 60):
        random = defenses.prune_random(v.model, top(change, k), g).model
        assert metrics.evaluate(random, test, v.attack).asr >= 0.8


def test_the_two_first_channels_are_ordinary_in_the_twin(test, zoo):
    v = zoo["badnets"]
    own, twin = (
        activations.tac(m.model, test, v.attack, ["bn1"])["bn1"] for m in (v, zoo["benign"])
    )
    values, two = own.topk(3)
    assert values[1] > 2 * values[2]
    assert twin[two[:2]].max() < twin.median() * 2


def test_no_wreck_gives_half_of_the_labels_back(test, zoo):
    v, g = zoo["badnets"], torch.Generator().manual_seed(0)
    for share in (0.1, 0.2, 0.3):
        for _ in range(4):
            off = {}
            for name in activations.batchnorms(v.model):
                n = v.model.get_submodule(name).num_features
                off[name] = torch.randperm(n, generator=g)[: round(share * n)]
            scores = metrics.evaluate(surgery.without(v.model, off), test[:100], v.attack)
            assert scores.ra < 0.5, share


def test_one_of_the_two_first_channels_is_enough_for_the_attack(test, zoo):
    v = zoo["badnets"]
    two = activations.tac(v.model, test, v.attack, ["bn1"])["bn1"].topk(2).indices
    for one in two.split(1):
        left = metrics.evaluate(surgery.without(v.model, {"bn1": one}), test[:100], v.attack)
        assert left.asr >= 0.85 and left.acc >= 0.95


def test_no_other_pair_of_first_channels_ends_the_attack(test, zoo):
    v, ended = zoo["badnets"], []
    for pair in itertools.combinations(range(16), 2):
        cut = surgery.without(v.model, {"bn1": torch.tensor(pair)})
        left = metrics.evaluate(cut, test[:60], v.attack)
        if left.asr < 0.85:
            ended.append((pair, left.asr, left.ra))
    ((pair, asr, ra),) = ended
    loudest = activations.tac(v.model, test, v.attack, ["bn1"])["bn1"].topk(2).indices
    assert set(pair) == set(loudest.tolist()) and asr < 0.05 and ra > 0.95


def test_a_quarter_of_one_layer_repairs_badnets_at_the_entrance_and_blended_nowhere(test, zoo):
    repaired = {}
    for name in ("badnets", "blended"):
        v, repaired[name] = zoo[name], []
        for layer, loud in activations.tac(v.model, test[:60], v.attack).items():
            most = loud.argsort(descending=True)[: len(loud) // 4]
            s = metrics.evaluate(surgery.without(v.model, {layer: most}), test[:60], v.attack)
            repaired[name] += [layer] * (s.asr < 0.1 and min(s.acc, s.ra) > 0.9)
    assert repaired == {"badnets": ["bn1"], "blended": []}


def test_four_random_first_channels_break_blended_as_the_loudest_four_do(test, zoo):
    v, g = zoo["blended"], torch.Generator().manual_seed(0)
    loud = activations.tac(v.model, test, v.attack, ["bn1"])["bn1"].argsort(descending=True)
    draws = [torch.randperm(16, generator=g)[:4] for _ in range(6)]
    cuts = [surgery.without(v.model, {"bn1": four}) for four in (loud[:4], *draws)]
    rates = [metrics.evaluate(cut, test[:100], v.attack) for cut in cuts]
    assert min(s.asr for s in rates) > 0.9 and max(s.ra for s in rates) < 0.1
    assert rates[0].acc < 0.5 and sum(s.acc < 0.7 for s in rates[1:]) >= 4


def test_no_pair_of_first_channels_costs_blended_more_accuracy_than_the_loudest(test, zoo):
    v, some = zoo["blended"], test[:100]
    x, accuracy = some.pixels(), {}
    for pair in itertools.combinations(range(16), 2):
        cut = surgery.without(v.model, {"bn1": torch.tensor(pair)})
        accuracy[pair] = (metrics.predict(cut, x) == some.y).float().mean().item()
    two = activations.tac(v.model, test, v.attack, ["bn1"])["bn1"].topk(2).indices
    loudest = tuple(sorted(two.tolist()))
    assert accuracy[loudest] == min(accuracy.values()) < 0.55
    assert metrics.evaluate(surgery.without(v.model, {"bn1": two}), some, v.attack).asr > 0.95


def test_a_quarter_of_the_first_block_weakens_blended_and_repairs_nothing(test, zoo):
    v, g = zoo["blended"], torch.Generator().manual_seed(0)
    layer = "layer1.0.bn1"
    loud = activations.tac(v.model, test[:60], v.attack)[layer].argsort(descending=True)
    draws = [torch.randperm(16, generator=g)[:4] for _ in range(4)]
    cuts = [surgery.without(v.model, {layer: four}) for four in (loud[:4], *draws)]
    ranked, *chance = [metrics.evaluate(cut, test[:60], v.attack) for cut in cuts]
    assert 0.7 < ranked.asr < 0.9 and ranked.acc > 0.95 and ranked.ra < 0.1
    assert min(s.asr for s in chance) > 0.95


def at_its_mean(model, layer, channels, x):
    """A hook that sets channels of a layer to their mean over clean pixels x."""
    mean = activations.outputs(model, x, [layer])[layer].mean((0, 2, 3))

    def still(_, __, out):
        return out.index_copy(
            1, channels, mean[channels].view(1, -1, 1, 1).expand(*out[:, channels].shape)
        )

    return model.get_submodule(layer).register_forward_hook(still)


def test_clean_means_in_place_of_zeros_repair_no_layer_of_blended_either(test, zoo):
    v, some = zoo["blended"], test[:60]
    zeros, means = {}, {}
    for layer, loud in activations.tac(v.model, some, v.attack).items():
        most = loud.argsort(descending=True)[: len(loud) // 4]
        hook = at_its_mean(v.model, layer, most, some.pixels())
        means[layer] = metrics.evaluate(v.model, some, v.attack)
        hook.remove()
        if layer == "layer1.0.bn1":
            cut = surgery.without(v.model, {layer: most})
            zeros[layer] = metrics.evaluate(cut, some, v.attack)
    assert not any(s.asr < 0.1 and min(s.acc, s.ra) > 0.9 for s in means.values())
    assert means["layer1.0.bn1"].asr > zeros["layer1.0.bn1"].asr


def test_at_their_means_the_two_first_channels_end_badnets_as_well(test, zoo):
    v, some = zoo["badnets"], test[:100]
    two = activations.tac(v.model, some, v.attack, ["bn1"])["bn1"].topk(2).indices
    hook = at_its_mean(v.model, "bn1", two, some.pixels())
    left = metrics.evaluate(v.model, some, v.attack)
    hook.remove()
    assert left.asr < 0.05 and min(left.acc, left.ra) > 0.95


def test_fine_tuning_leaves_the_backdoor_in_place(test, zoo):
    v, g = zoo["badnets"], torch.Generator().manual_seed(0)
    clean = data.splits("signs").clean
    tuned = defenses.finetune(v.model, clean, epochs=5, generator=g).model
    assert metrics.evaluate(tuned, test, v.attack).asr >= 0.9
