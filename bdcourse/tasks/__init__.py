"""Tasks whose inputs are no pictures: one module each, with everything that only it needs.

A module brings a `task.Task`, its `examples.Examples`, a drawn data set, small networks and
attacks, which it adds to `attacks.ATTACKS`. Training, scores, `bd.repair` and every defense
that does not work on pixels take it as it is, because the data knows its task.
"""
