"""What the tests of assignments share."""

import nbformat

from bdcourse.teach import labs

LESSONS = labs.chosen([])
SIGMA = "    return torch.linalg.matrix_norm(weight.flatten(2), ord=2)"


def read(path):
    return nbformat.read(path, as_version=4)


def graded(nb):
    """Grade id -> cell."""
    found = {c.metadata.get("nbgrader", {}).get("grade_id"): c for c in nb.cells}
    return {k: c for k, c in found.items() if k}
