"""Calibrated polysemanticity scores for every channel of a vision network."""

from psi_fast.api import score, score_embeddings
from psi_fast.batch import run_jobs
from psi_fast.config import PSIConfig
from psi_fast.errors import PsiFastError
from psi_fast.networks import Network
from psi_fast.planning.plan import plan
from psi_fast.preprocess import Preprocess
from psi_fast.ray_workers import RayWorkers
from psi_fast.report.folder import build_report
from psi_fast.scores import Scores
from psi_fast.store import load
from psi_fast.workers import ArrayTask, Merging, OthersMissing

__all__ = [
    "ArrayTask",
    "Merging",
    "Network",
    "OthersMissing",
    "PSIConfig",
    "Preprocess",
    "PsiFastError",
    "RayWorkers",
    "Scores",
    "build_report",
    "load",
    "plan",
    "run_jobs",
    "score",
    "score_embeddings",
]
