"""Tasks whose inputs are no pictures: one module each, with everything that only it needs.

A module brings a `task.Task`, its `examples.Examples`, a drawn data set, small networks and
attacks. Training, scores, the bench and every defense that does not work on pixels take it
as it is, because the data knows its task; nothing outside names one.
"""
