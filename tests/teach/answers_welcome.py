"""Right and wrong answers to the exercises of lesson 00, for test_check.py."""

import copy

import torch


def confusion(model, x, y, classes, batch, *, mode=True, last=True, scale=255, turned=False):
    table = torch.zeros(classes, classes, dtype=torch.int64)
    was = model.training
    if mode:
        model.eval()
    with torch.no_grad():
        for index in torch.arange(len(x)).split(batch):
            if len(index) < batch and not last:
                break
            said = model(x[index].float() / scale).argmax(1)
            for pair in (
                zip(said, y[index], strict=True) if turned else zip(y[index], said, strict=True)
            ):
                table[pair] += 1
    model.train(was)
    return table


@torch.no_grad()
def confusion_by_bincount(model, x, y, classes, batch):
    was = model.training
    model.eval()
    said = torch.cat([model(part / 255.0).argmax(1) for part in x.split(batch)])
    model.train(was)
    return torch.bincount(y * classes + said, minlength=classes**2).view(classes, classes)


def left_in_evaluation(model, x, y, classes, batch):
    out = confusion(model, x, y, classes, batch)
    model.train(not model.training)
    return out


def with_gradients(model, x, y, classes, batch):
    was = model.training
    model.eval()
    table = torch.zeros(classes, classes, dtype=torch.int64)
    for part, labels in zip(x.split(batch), y.split(batch), strict=True):
        table.index_put_(
            (labels, model(part / 255).argmax(1)), torch.ones_like(labels), accumulate=True
        )
    model.train(was)
    return table


def never_evaluated(model, x, y, classes, batch):
    return confusion(model, x, y, classes, batch, mode=False)


def always_trained(model, x, y, classes, batch):
    out = confusion(model, x, y, classes, batch)
    model.train()
    return out


def never_restored(model, x, y, classes, batch):
    out = confusion(model, x, y, classes, batch)
    model.eval()
    return out


@torch.no_grad()
def evaluated_late(model, x, y, classes, batch):
    was, said = model.training, []
    for part in x.split(batch):
        said.append(model(part / 255).argmax(1))
        model.eval()
    model.train(was)
    return torch.bincount(y * classes + torch.cat(said), minlength=classes**2).view(classes, -1)


@torch.no_grad()
def repeated_pairs(model, x, y, classes, batch):
    was = model.training
    model.eval()
    table = torch.zeros(classes, classes, dtype=torch.int64)
    for part, labels in zip(x.split(batch), y.split(batch), strict=True):
        table[labels, model(part / 255).argmax(1)] += 1
    model.train(was)
    return table


def attack_success(table, target):
    others = [k for k in range(len(table)) if k != target]
    return (table[others, target].sum() / table[others].sum()).item()


def attack_success_by_subtraction(table, target):
    hits = table[:, target].sum() - table[target, target]
    return float(hits) / float(table.sum() - table[target].sum())


def rows(table, target):
    return table[[k for k in range(len(table)) if k != target]]


def place(pixels, patch, row, column):
    out, k = pixels.clone(), patch.shape[-1]
    out[:, :, row : row + k, column : column + k] = patch
    return out


def place_by_mask(pixels, patch, row, column):
    h, w = pixels.shape[2:]
    k = patch.shape[-1]
    full = torch.nn.functional.pad(patch, (column, w - column - k, row, h - row - k))
    mask = torch.zeros(h, w, dtype=torch.bool)
    mask[row : row + k, column : column + k] = True
    return torch.where(mask, full, pixels)


def in_place(pixels, patch, row, column):
    k = patch.shape[-1]
    pixels[:, :, row : row + k, column : column + k] = patch
    return pixels


def put(pixels, patch, row, column, images=slice(None), colors=slice(None), add=False):
    out, k = pixels.clone(), patch.shape[-1]
    at = (images, colors, slice(row, row + k), slice(column, column + k))
    out[at] = (out[at] if add else 0) + (patch[0] if colors == 0 else patch)
    return out


def clamped(pixels, patch, row, column):
    out, k = pixels.clone(), patch.shape[-1]
    out[:, :, row : row + k, column : column + k] += patch
    return out.clamp(0, 1)


def three_by_three(pixels, patch, row, column):
    out = pixels.clone()
    out[:, :, row : row + 3, column : column + 3] = patch
    return out


def one_by_one(model, x, y, classes, batch):
    return confusion(model, x, y, classes, 1)


def twenty_at_once(model, x, y, classes, batch):
    return confusion(model, x, y, classes, 20)


def frozen(model, x, y, classes, batch):
    model.requires_grad_(False)
    return confusion(model, x, y, classes, batch)


def of_a_copy(model, x, y, classes, batch):
    return confusion(copy.deepcopy(model), x, y, classes, batch)


def too_few_bins(model, x, y, classes, batch):
    table = confusion(model, x, y, classes, batch)
    pairs = torch.arange(classes**2).repeat_interleave(table.flatten())
    return torch.bincount(pairs).view(classes, classes)


def gradients_off(model, x, y, classes, batch):
    torch.set_grad_enabled(False)
    return confusion(model, x, y, classes, batch)


RIGHT = {
    "place": [place, place_by_mask],
    "take": [
        lambda x, y, i: [x[i].float() / 255, y[i]],
        lambda x, y, i: (x[i].float() / 255, y[i]),
        lambda x, y, i: (x.index_select(0, i).div(255), y.index_select(0, i)),
    ],
    "confusion": [confusion, confusion_by_bincount],
    "attack_success": [attack_success, attack_success_by_subtraction],
}
WRONG = {
    "place": [
        (in_place, "clone first"),
        (clamped, "overwrite it"),
        (three_by_three, "takes every patch for 3 by 3"),
        (lambda x, p, r, c: put(x, p, r, c, add=True), "overwrite it"),
        (lambda x, p, r, c: put(x, p, c, r), "rows and columns"),
        (lambda x, p, r, c: put(x, p, r, c, colors=0), "first color"),
        (lambda x, p, r, c: put(x, p, r, c, images=0), "first image"),
        (lambda x, p, r, c: put(x, p, r + 1, c), "outside the patch"),
        (lambda x, p, r, c: x.clone(), "changes nothing"),
        (lambda x, p, r, c: put(x, p, r, c)[:, :, r : r + 3, c : c + 3], "shape"),
    ],
    "take": [
        (lambda x, y, i: (x[i].float() / x.max(), y[i]), "brightest byte"),
        (lambda x, y, i: (x[i].float() / x[i].max(), y[i]), "brightest byte"),
        (lambda x, y, i: (x[i].float() / 255, y[i].float()), "whole numbers"),
        (lambda x, y, i: (x[i], y[i]), "floats"),
        (lambda x, y, i: (x[i].double() / 255, y[i]), "float64; networks here take float32"),
        (lambda x, y, i: (x[i].half() / 255, y[i]), "float16; networks here take float32"),
        (lambda x, y, i: (x[i].float(), y[i]), r"\[0, 1\]"),
        (lambda x, y, i: (x[i].float() / 255, y[: len(i)]), "labels"),
        (lambda x, y, i: (x[i].float() / 256, y[i]), "divided by 255"),
        (lambda x, y, i: x[i].float() / 255, "two tensors"),
    ],
    "confusion": [
        (gradients_off, "gradients off for good"),
        (frozen, "freezes the network"),
        (one_by_one, "shows 1 images at once"),
        (twenty_at_once, "shows 20 images at once"),
        (of_a_copy, "that you were given"),
        (too_few_bins, "minlength"),
        (lambda *a: confusion(*a, turned=True), "turned over"),
        (lambda *a: confusion(*a, mode=False), "training mode"),
        (lambda *a: confusion(*a, last=False), "smaller batch"),
        (lambda *a: confusion(*a, scale=1), "bytes"),
        (lambda m, x, y, k, b: confusion(m, x, y, k, len(x)), "at once"),
        (lambda *a: confusion(*a) / len(a[1]), "whole numbers"),
        (never_evaluated, "training mode"),
        (evaluated_late, "some batches in training mode"),
        (always_trained, "came in the other one"),
        (never_restored, "came in the other one"),
        (repeated_pairs, "only once"),
        (left_in_evaluation, "came in the other one"),
        (with_gradients, "gradients"),
        (lambda m, x, y, k, b: confusion(m, x, y, k, b)[:-1, :-1], "shape"),
    ],
    "attack_success": [
        (lambda t, k: (t[:, k].sum() / rows(t, k).sum()).item(), "below the fraction bar only"),
        (lambda t, k: 1 - (t.diag().sum() / t.sum()).item(), "every wrong answer"),
        (
            lambda t, k: ((t.diag().sum() - t[k, k]) / rows(t, k).sum()).item(),
            "the robust accuracy",
        ),
        (
            lambda t, k: 1 - ((t.diag().sum() - t[k, k]) / rows(t, k).sum()).item(),
            "every wrong answer",
        ),
        (lambda t, k: (rows(t, k)[:, k].sum() / (t.sum() - t[k, k])).item(), "one entry"),
        (lambda t, k: (rows(t, k)[:, k].sum() / t[:, k].sum()).item(), "answers that are"),
        (lambda t, k: (t[k, k] / t[:, k].sum()).item(), "answers that are"),
        (lambda t, k: attack_success(t, 0), r"not 0|must be"),
        (lambda t, k: (t[:, k].sum() / t.sum()).item(), "anyway"),
        (lambda t, k: (rows(t, k)[:, k].sum() / t.sum()).item(), "divides by all"),
        (lambda t, k: attack_success(t.T, k), "rows and columns"),
        (lambda t, k: (rows(t, k)[:, k] / rows(t, k).sum(1)).mean().item(), "over classes"),
        (lambda t, k: 100 * attack_success(t, k), r"0\.\.1"),
    ],
}
