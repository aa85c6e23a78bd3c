"""Tasks whose inputs are no pictures: each a module or a folder with all that only it needs.

A module brings a `task.Task`, its `examples.Examples`, a drawn data set, small networks and
attacks. Training, scores, `bd.repair` and every defense that does not work on pixels of
images take it as it is, because the data knows its task. What is looked up by name is
entered here: data that is loaded, networks and attacks of victims that are read back,
what tables take for a task where nothing else is asked, and what reads files of another
kind than images.
"""

from __future__ import annotations

from bdcourse import attacks, data, models, task
from bdcourse.tasks import detection, pairs, points, text, video

for room in (video, points, text, detection):
    data.DRAWINGS.update(room.DRAWINGS)
    models.ELSEWHERE.update(room.NETWORKS)
    attacks.ELSEWHERE.update({cls.__name__: cls for cls in room.ATTACKS})
    task.USUAL.update(room.USUAL)
data.READERS += [points.read_clouds, pairs.read_pairs]
