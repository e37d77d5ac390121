"""The paper's experiments, its open questions, and the ground truth it lacks: each a function of a Study.

One file an experiment, named like it: a function with `@experiment(draw)` that returns a Finding (a table, claims, a text),
and its figure. `separation.py` is the shortest and the model of the others. What they stand on:

- `study.py`: a Study opens network, images and encoder, and gives top patches, embeddings and scores. It keeps them in a
  `../shelf.py`: of the images a `survey.py` (every channel's largest activation in each), of patches those of `../embedding.py`.
- `statistics.py`: a Claim is a number with interval and test; `comparisons.py` has those of several groups of channels,
  `tables.py` what is done to tables, `psi_fast/figures/style.py` the look of figures.
- `outcome.py`: what `@experiment` makes of a finding, the files of an Outcome; `commands.py` makes the command.

Parts of one experiment or two: `null_channels.py` (separation, ablation), `settings.py` (robustness), `planted_units.py`
(planted, null-size), `null_shapes.py` (null-size), `swap_plan.py` and `swaps.py` (patch-swap), `attack.py` (adversarial),
`lesson.py`, `stand_in.py`, `tail.py` and `tuning.py` (regulariser).
"""

from psi_fast.experiments.ablation import ablation
from psi_fast.experiments.adversarial import adversarial
from psi_fast.experiments.bands import bands
from psi_fast.experiments.breadth import breadth
from psi_fast.experiments.depth import depth
from psi_fast.experiments.null_size import null_size
from psi_fast.experiments.outcome import Finding, Outcome
from psi_fast.experiments.patch_swap import patch_swap
from psi_fast.experiments.planted import planted
from psi_fast.experiments.regulariser import regulariser
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
    "regulariser",
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
    "regulariser": regulariser,
}
"""By the name of the command."""
