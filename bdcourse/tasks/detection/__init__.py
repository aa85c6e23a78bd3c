"""Object detection: scenes of road signs, a detector, its likelihood and its backdoors.

`scenes` holds the examples and their task, `boxes` cells, answers and their precision,
`likelihood` what a detector says, `streets` the set drawn by code, `network` the detector,
`attacks` the backdoors, and `files` reads scenes with boxes from a folder.
"""

from __future__ import annotations

from bdcourse.tasks.detection.attacks import (
    ATTACKS,
    GMA,
    ODA,
    OGA,
    RMA,
    USUAL,
    BadDet,
    CleanImage,
    SceneAttack,
    outcomes,
)
from bdcourse.tasks.detection.boxes import average_precision, from_cells, iou, suppressed, to_cells
from bdcourse.tasks.detection.files import read_scenes
from bdcourse.tasks.detection.likelihood import BoxLikelihood
from bdcourse.tasks.detection.network import NETWORKS, Detector, context_detector, detector
from bdcourse.tasks.detection.scenes import SCENES, DetectionTask, SceneCrop, Scenes
from bdcourse.tasks.detection.streets import DRAWINGS, draw

__all__ = [
    "ATTACKS",
    "DRAWINGS",
    "GMA",
    "NETWORKS",
    "USUAL",
    "ODA",
    "OGA",
    "RMA",
    "SCENES",
    "BadDet",
    "BoxLikelihood",
    "CleanImage",
    "DetectionTask",
    "Detector",
    "SceneAttack",
    "SceneCrop",
    "Scenes",
    "average_precision",
    "context_detector",
    "from_cells",
    "detector",
    "draw",
    "to_cells",
    "iou",
    "outcomes",
    "read_scenes",
    "suppressed",
]
