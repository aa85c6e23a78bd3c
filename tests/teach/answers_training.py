"""Right and wrong answers to the exercises of lesson 02, for test_check.py."""

import torch
import torch.nn.functional as F


def bend(grid, strength, size, flip=True, divide=True):
    up = F.interpolate(grid[None], (size, size), mode="bicubic", align_corners=True).permute(
        0, 2, 3, 1
    )
    at = torch.linspace(-1, 1, size)
    pair = torch.meshgrid(at, at, indexing="ij")
    identity = torch.stack(pair[::-1] if flip else pair, -1)[None]
    return identity + strength * up / (size if divide else 1)


def bend_by_affine(grid, strength, size):
    eye = torch.eye(2, 3)[None]
    flow = F.affine_grid(eye, (1, 1, size, size), align_corners=True)
    up = F.interpolate(
        (strength / size * grid)[None], size=size, mode="bicubic", align_corners=True
    )
    return flow + up.movedim(1, 3)


def bend_that_scales(grid, strength, size):
    return bend(grid / grid.abs().mean(), strength, size)


def bend_by_reshape(grid, strength, size):
    up = F.interpolate(grid[None], (size, size), mode="bicubic", align_corners=True)
    return bend(grid, 0, size) + strength * up.reshape(1, size, size, 2) / size


def bend_without_corners(grid, strength, size):
    up = F.interpolate(grid[None], (size, size), mode="bicubic")
    return bend(grid, 0, size) + strength * up.movedim(1, 3) / size


def bend_bilinear(grid, strength, size):
    up = F.interpolate(grid[None], (size, size), mode="bilinear", align_corners=True)
    return bend(grid, 0, size) + strength * up.movedim(1, 3) / size


def noisy_warp(x, flow, noise, generator):
    n, size = len(x), x.shape[-1]
    jitter = 2 * torch.rand((n, size, size, 2), generator=generator) - 1
    flow = (flow + noise * jitter / size).clamp(-1, 1)
    return F.grid_sample(x, flow, align_corners=True)


def noisy_warp_one_by_one(x, flow, noise, generator):
    far = noise / x.shape[-1]
    out = []
    for image in x:
        places = flow + torch.empty_like(flow).uniform_(-far, far, generator=generator)
        places = places.clamp(-1, 1)
        out.append(F.grid_sample(image[None], places, align_corners=True))
    return torch.cat(out)


def jittered(draw, clamp=True):
    """The noisy warp with other noise."""

    def answer(x, flow, noise, generator):
        n, size = len(x), x.shape[-1]
        places = flow + draw(n, size, noise, generator)
        places = places.clamp(-1, 1) if clamp else places
        return F.grid_sample(x, places.expand(n, -1, -1, -1), align_corners=True)

    return answer


def reflecting(x, flow, noise, generator):
    n, size = len(x), x.shape[-1]
    places = flow + uniform(n, size, noise, generator)
    return F.grid_sample(x, places, padding_mode="reflection", align_corners=True)


def clamped_first(x, flow, noise, generator):
    n, size = len(x), x.shape[-1]
    places = flow.clamp(-1, 1) + uniform(n, size, noise, generator)
    return F.grid_sample(x, places.clamp(-1, 1), align_corners=True)


def uniform(n, size, noise, generator, shape=None):
    jitter = 2 * torch.rand(shape or (n, size, size, 2), generator=generator) - 1
    return noise * jitter / size


def noise_mode(x, y, target, p, c, trigger, noisy):
    batch = torch.cat([trigger(x[:p]), noisy(x[p : p + c]), x[p + c :]])
    labels = torch.cat([torch.full_like(y[:p], target), y[p:]])
    role = torch.zeros_like(y)
    role[:p], role[p : p + c] = 1, 2
    return batch, labels, role


def noise_mode_by_where(x, y, target, p, c, trigger, noisy):
    i = torch.arange(len(x))
    role = (i < p + c).int() * 2 - (i < p).int()
    r = role.view(-1, 1, 1, 1)
    batch = torch.where(r == 1, trigger(x), torch.where(r == 2, noisy(x), x))
    return batch, torch.where(role == 1, target, y), role


def noise_mode_with(part):
    """One of the three outputs replaced."""

    def answer(x, y, target, p, c, trigger, noisy):
        out = list(noise_mode(x, y, target, p, c, trigger, noisy))
        at, value = part(x, y, p, c, trigger, noisy)
        out[at] = value
        return tuple(out)

    return answer


def covers_too(x, y, target, p, c, trigger, noisy):
    batch, labels, role = noise_mode(x, y, target, p, c, trigger, noisy)
    return batch, torch.where(role > 0, target, y), role


def from_behind(x, y, target, p, c, trigger, noisy):
    batch, labels, role = noise_mode(x, y, target, p, c, trigger, noisy)
    rest = x[-(len(x) - p - c) :]
    return torch.cat([trigger(x[:p]), noisy(x[p : p + c]), rest]), labels, role


def recast(at, dtype):
    """One of the three outputs in another dtype."""

    def answer(*args):
        out = list(noise_mode(*args))
        out[at] = out[at].to(dtype)
        return tuple(out)

    return answer


def noise_mode_as_a_list(*args):
    return list(noise_mode(*args))


def hijack(model, x, y, attacker, steps, lr, batch, generator, fault=""):
    opt = torch.optim.SGD(
        model.parameters(),
        lr,
        momentum=0 if fault == "momentum" else 0.9,
        weight_decay=0 if fault == "decay" else 5e-4,
        nesterov=fault not in ("momentum", "nesterov"),
    )
    if fault == "own":
        generator = torch.Generator().manual_seed(0)
    log, right, seen = [], torch.zeros(3), torch.zeros(3)
    first, means = None, []
    if fault != "mode":
        model.train()
    for step in range(steps):
        if fault != "rate":
            opt.param_groups[0]["lr"] = lr * (1 - (step + (fault == "early")) / steps)
        most = batch if fault == "first" else len(x)
        index = torch.randint(most, (batch,), generator=generator)
        if fault == "order":
            index = (torch.arange(batch) + step * batch) % len(x)
        if fault == "window":
            index = torch.arange(batch) + torch.randint(
                len(x) - batch + 1, (1,), generator=generator
            )
        pixels, truth = x[index].float(), y[index]
        if fault == "pairs":
            truth = y[:batch]
        pixels = pixels if fault == "bytes" else pixels / (256 if fault == "256" else 255)
        done = 1 - step / steps if fault == "progress" else step / steps
        rows = attacker(pixels, truth, done)
        bx, by, role = (pixels, *rows[1:]) if fault == "images" else rows
        by = truth if fault == "labels" else by
        out = model(bx)
        if fault != "gradients":
            opt.zero_grad()
        F.cross_entropy(out, by).backward()
        opt.step()
        truth = truth if fault == "log" else by
        first = role if first is None else first
        role = first if fault == "roles" else role
        hits = (out.argmax(1) == truth).float()
        means.append([hits[role == k].mean() for k in range(3)])
        right.index_add_(0, role, hits)
        seen.index_add_(0, role, torch.ones(batch))
        tenth = 10 * (step + 1) // steps > 10 * step // steps
        if (step + 1) % (steps // 10) == 0 if fault in ("tenths", "ten") else tenth:
            average = torch.tensor(means).mean(0)
            log.append((average if fault == "means" else right / seen).tolist())
            means = []
            right, seen = torch.zeros(3), torch.zeros(3)
        if fault == "look":
            model.eval()
            model(bx)
            model.train()
        if fault == "twice":
            model(bx)
    if fault not in ("mode", "end"):
        model.eval()
    return log[:10] if fault == "ten" else log


def hijack_with_a_long_last_note(model, x, y, attacker, steps, lr, batch, generator):
    kept = []

    def listen(*args):
        kept.append(attacker(*args))
        return kept[-1]

    outs, forward = [], model.forward

    def hear(x):
        outs.append(forward(x))
        return outs[-1]

    model.forward = hear
    hijack(model, x, y, listen, steps, lr, batch, generator)
    del model.forward
    cuts = [k * (steps // 10) for k in range(10)] + [steps]
    log = []
    for a, b in zip(cuts[:-1], cuts[1:], strict=True):
        hits = torch.cat(
            [o.argmax(1) == y for o, (_, y, _) in zip(outs[a:b], kept[a:b], strict=True)]
        )
        role = torch.cat([r for _, _, r in kept[a:b]])
        log.append([hits[role == k].float().mean().item() for k in range(3)])
    return log


def hijack_with_a_schedule(model, x, y, attacker, steps, lr, batch, generator):
    rate = {"lr": lr, "momentum": 0.9, "weight_decay": 5e-4}
    opt = torch.optim.SGD(model.parameters(), **rate, nesterov=True)
    fall = torch.optim.lr_scheduler.LambdaLR(opt, lambda s: 1 - s / steps)
    model.train()
    said = []
    for step in range(steps):
        model.zero_grad()
        i = torch.randperm(len(x), generator=generator)[:batch]
        bx, by, role = attacker(x[i] / 255, y[i], step / steps)
        out = model(bx)
        (-out.log_softmax(1)[torch.arange(batch), by]).mean().backward()
        opt.step()
        fall.step()
        said.append([(out.argmax(1) == by)[role == k] for k in range(3)])
    model.eval()
    cuts = [(k * steps + 9) // 10 for k in range(11)]
    parts = [said[a:b] for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    return [
        [torch.cat([s[k] for s in part]).float().mean().item() for k in range(3)] for part in parts
    ]


def faulty(fault):
    return lambda *a: hijack(*a, fault=fault)


def asks_once(model, x, y, attacker, steps, *rest):
    rows = []

    def once(*args):
        rows.append(rows[0] if rows else attacker(*args))
        return rows[0]

    return hijack(model, x, y, once, steps, *rest)


def coarse(x):
    near = x[..., 2:, 1:-1] + x[..., :-2, 1:-1] + x[..., 1:-1, 2:] + x[..., 1:-1, :-2]
    return 255 * (x[..., 1:-1, 1:-1] - near / 4).abs().mean().item()


def roughen(x, goal, generator, draw=torch.randn, steps=20, clip=True, late=False, shape=None):
    grain = draw(shape(x) if shape else x.shape, generator=generator)
    low, high = 0.0, 1.0
    for _ in range(steps):
        sigma = (low + high) / 2
        out = x + sigma * grain
        out = out.clamp(0, 1) if clip and not late else out
        low, high = (sigma, high) if coarse(out) < goal else (low, sigma)
    return out.clamp(0, 1) if clip else out


def roughen_by_small_steps(x, goal, generator):
    out, sigma, seed = x, 0.0, generator.initial_seed()
    while coarse(out) < goal:
        sigma += 0.0002
        grain = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        out = (x + sigma * grain).clamp(0, 1)
    return out


def rough(**slips):
    return lambda *args: roughen(*args, **slips)


def centered(shape, generator):
    return torch.rand(shape, generator=generator) - 0.5


def cloudy(shape, generator):
    noise = torch.randn(shape, generator=generator)
    return (noise + noise.roll(1, -1) + noise.roll(1, -2)) / 3


def sigma_by_image(x, goal, generator):
    return torch.cat([roughen(image[None], goal, generator) for image in x])


def one_by_one(x, goal, generator):
    goals = [goal * (1 + 0.1 * (k - 2)) for k in range(len(x))]
    return torch.cat([roughen(x[k : k + 1], r, generator) for k, r in enumerate(goals)])


RIGHT = {
    "bend": [bend, bend_by_affine, bend_that_scales],
    "noisy_warp": [noisy_warp, noisy_warp_one_by_one],
    "noise_mode": [noise_mode, noise_mode_by_where, noise_mode_as_a_list],
    "roughen": [roughen, roughen_by_small_steps],
    "hijack": [
        hijack,
        hijack_with_a_schedule,
        hijack_with_a_long_last_note,
        lambda *a: torch.tensor(hijack(*a)),
        lambda *a: tuple(map(tuple, hijack(*a))),
    ],
}

WRONG = {
    "bend": [
        (lambda *a: bend(*a, flip=False), "x, the column, first"),
        (lambda *a: bend(*a, divide=False), "not divided"),
        (lambda g, s, n: bend(g.flip(0), s, n), "x and y are exchanged"),
        (lambda g, s, n: bend(g, s, n).clamp(-1, 1), "clamps already"),
        (lambda g, s, n: bend(g, s * n / (n - 1), n), "size - 1"),
        (bend_by_reshape, "permute moves"),
        (bend_without_corners, "without align_corners"),
        (bend_bilinear, "is not identity"),
        (lambda g, s, n: bend(g, s, n)[0], "shape"),
        (lambda g, s, n: bend(g, s + 0.5, n), "identity grid"),
    ],
    "noisy_warp": [
        (lambda x, f, noise, g: noisy_warp(x, f, 0, g), "no noise"),
        (lambda x, f, noise, g: noisy_warp(x, f, noise * x.shape[-1], g), "division"),
        (jittered(lambda n, s, a, g: uniform(n, s, a, g, (1, s, s, 2))), "its own"),
        (jittered(lambda n, s, a, g: uniform(n, s, a, g, (n, s, s, 1))), "in x as in y"),
        (jittered(lambda n, s, a, g: uniform(n, s, a, g, (n, s, 1, 2))), "whole rows"),
        (jittered(lambda n, s, a, g: uniform(n, s, a, g, (n, 1, s, 2))), "whole columns"),
        (
            jittered(lambda n, s, a, g: a * torch.randn((n, s, s, 2), generator=g) / s),
            "long tails, as torch.randn",
        ),
        (jittered(lambda n, s, a, g: 2 * uniform(n, s, a, g)), r"2\.0 times"),
        (jittered(lambda n, s, a, g: uniform(n, s, a, g).abs()), "one side"),
        (jittered(lambda n, s, a, g: uniform(n, s, a, g) / 2), "too small"),
        (jittered(lambda n, s, a, g: s / 32 * uniform(n, s, a, g)), "too small"),
        (jittered(lambda n, s, a, g: 2 * uniform(n, s, a, g).abs()), "one side"),
        (jittered(uniform, clamp=False), "black from beyond the border"),
        (reflecting, "behind the noise"),
        (clamped_first, "behind the noise"),
        (
            lambda x, f, noise, g: noisy_warp(x, f, noise, torch.Generator().manual_seed(0)),
            "same noise",
        ),
    ],
    "noise_mode": [
        (noise_mode_with(lambda x, y, p, c, t, n: (0, x)), "lack the trigger"),
        (
            noise_mode_with(lambda x, y, p, c, t, n: (0, torch.cat([t(x[: p + c]), x[p + c :]]))),
            "noisy warp",
        ),
        (noise_mode_with(lambda x, y, p, c, t, n: (1, y)), "kept their label"),
        (covers_too, "the point of them"),
        (lambda x, y, t, *a: noise_mode(x, y, 0, *a), "must be labeled `target`"),
        (recast(1, torch.float32), "cross_entropy wants"),
        (recast(2, torch.uint8), "int64 like the labels"),
        (recast(2, torch.int8), "int64 like the labels"),
        (recast(2, torch.float32), "whole numbers"),
        (
            noise_mode_with(lambda x, y, p, c, t, n: (2, (torch.arange(len(y)) < p + c).long())),
            "2 for noise mode",
        ),
        (lambda *a: noise_mode(*a)[:2], "x, y, role"),
        (from_behind, "no image stays clean"),
    ],
    "roughen": [
        (lambda x, goal, g: x.clone(), "no grain"),
        (rough(draw=torch.rand), "brighter"),
        (rough(draw=centered), "not Gaussian"),
        (rough(draw=cloudy), "neighboring"),
        (rough(shape=lambda x: x[:1].shape), "one grain"),
        (rough(shape=lambda x: x[:, :1].shape), "three colors"),
        (one_by_one, "one sigma"),
        (sigma_by_image, "one sigma"),
        (rough(steps=3), "keep searching"),
        (rough(steps=9), "keep searching"),
        (lambda x, goal, g: roughen(x, goal / 255, g), "keep searching|no grain"),
        (
            lambda x, goal, g: (x + 0.02 * torch.randn(x.shape, generator=g)).clamp(0, 1),
            "keep searching",
        ),
        (rough(clip=False), "leaves"),
        (rough(late=True), "after the clip"),
        (lambda x, goal, g: roughen(x, goal, torch.Generator().manual_seed(0)), "every seed"),
        (lambda x, goal, g: roughen(x, goal, None), "without the generator"),
    ],
    "hijack": [
        (asks_once, "asks the attacker 1 times"),
        (faulty("bytes"), "divide by 255"),
        (faulty("256"), "divides by 256"),
        (faulty("order"), "in the order in which they lie"),
        (faulty("first"), "some of the 40 images only"),
        (faulty("window"), "a window of neighbors"),
        (faulty("own"), "whatever the generator"),
        (faulty("early"), "a step too early"),
        (faulty("nesterov"), "not Nesterov's"),
        (faulty("momentum"), "without momentum"),
        (faulty("decay"), "without weight decay"),
        (faulty("pairs"), "belong together"),
        (faulty("progress"), "progress"),
        (faulty("mode"), "eval mode"),
        (faulty("end"), "training mode"),
        (faulty("labels"), "true labels"),
        (faulty("images"), "before the attacker"),
        (faulty("gradients"), "add up"),
        (faulty("rate"), "learning rate"),
        (faulty("log"), "the log"),
        (faulty("look"), "output that the loss sees"),
        (faulty("twice"), "once a step"),
        (faulty("tenths"), "whether or not ten divides"),
        (faulty("ten"), "ends its notes at step"),
        (faulty("means"), "averages the batches' shares"),
        (faulty("roles"), "roles of the first batch"),
        (lambda *a: hijack(*a)[-1:], "logs 1 rows"),
        (
            lambda *a: [
                dict(zip(("clean", "poison", "cover"), r, strict=True)) for r in hijack(*a)
            ],
            "a list of three shares",
        ),
    ],
}
