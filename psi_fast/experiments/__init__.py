"""The paper's experiments, its open questions, and the ground truth it lacks: each a function of a Study."""

from psi_fast.experiments.ablation import ablation
from psi_fast.experiments.adversarial import adversarial
from psi_fast.experiments.bands import bands
from psi_fast.experiments.breadth import breadth
from psi_fast.experiments.depth import depth
from psi_fast.experiments.null_size import null_size
from psi_fast.experiments.outcome import Finding, Outcome
from psi_fast.experiments.patch_swap import patch_swap
from psi_fast.experiments.planted import planted
from psi_fast.experiments.robustness import robustness
from psi_fast.experiments.separation import separation
from psi_fast.experiments.statistics import Claim
from psi_fast.experiments.study import Study

__all__ = [
    "EXPERIMENTS",
    "Claim",
    "Finding",
    "Outcome",
    "Study",
    "ablation",
    "adversarial",
    "bands",
    "breadth",
    "depth",
    "null_size",
    "patch_swap",
    "planted",
    "robustness",
    "separation",
]

EXPERIMENTS = {
    "separation": separation,
    "ablation": ablation,
    "depth": depth,
    "robustness": robustness,
    "breadth": breadth,
    "patch-swap": patch_swap,
    "planted": planted,
    "null-size": null_size,
    "bands": bands,
    "adversarial": adversarial,
}
"""By the name of the command."""
