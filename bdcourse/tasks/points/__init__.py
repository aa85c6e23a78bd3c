"""Point clouds: examples, a set drawn by code, networks, attacks and files."""

from bdcourse.tasks.points.attacks import (
    ATTACKS,
    IRBA,
    PCBA,
    USUAL,
    PointBall,
    PointRotation,
    sphere,
)
from bdcourse.tasks.points.clouds import CLOUDS, Clouds, PointTask, TurnAndJitter, on_grid, rotation
from bdcourse.tasks.points.files import read_clouds
from bdcourse.tasks.points.networks import (
    NETWORKS,
    OutlierRemoval,
    critical_points,
    dgcnn,
    outliers,
    pointnet,
)
from bdcourse.tasks.points.solids import DRAWINGS, SOLIDS, draw

__all__ = [
    "ATTACKS",
    "CLOUDS",
    "DRAWINGS",
    "IRBA",
    "NETWORKS",
    "USUAL",
    "PCBA",
    "SOLIDS",
    "Clouds",
    "OutlierRemoval",
    "PointBall",
    "PointRotation",
    "PointTask",
    "TurnAndJitter",
    "critical_points",
    "dgcnn",
    "draw",
    "on_grid",
    "outliers",
    "pointnet",
    "read_clouds",
    "rotation",
    "sphere",
]
