"""Rotated-null channels: what channels without any structure score, made of one draw of each null."""

import numpy as np
import pandas as pd

from psi_fast.calibration import calibrate, combine
from psi_fast.evaluation import Evaluation
from psi_fast.moments import TIE
from psi_fast.results import COMPONENTS


def null_channels(evaluation: Evaluation, turn: int = 0) -> pd.DataFrame:
    """A row for each scored channel: one null draw of each component, calibrated against the others.

    Channel i gives its draw number (i + turn) % B: channels share the rotations of a draw, so the same draw of all of them
    would be one sample many times over.

    Columns as in a score table: channel, psi, log_psi, p and X_z, X_hat, X_p for each component X there is. The mean and
    deviation leave the draw itself out, so that under the null z is what a new draw's would be.
    """
    parts, columns = [], {"channel": evaluation.table["channel"].to_numpy()}
    for name in COMPONENTS:
        if name not in evaluation.draws:
            continue
        draws = evaluation.draws[name].double().numpy()
        rows, count = np.arange(len(draws)), draws.shape[1]
        one = draws[rows, (rows + turn) % count]
        others = draws[rows[:, None], (rows[:, None] + turn + np.arange(1, count)) % count]
        p = (1 + (others >= one[:, None] - TIE).sum(1)) / (others.shape[1] + 1)
        part = calibrate(one, others.mean(1), others.std(1, ddof=1), np.where(np.isnan(one), np.nan, p))
        parts.append(part)
        columns |= {f"{name}_z": part.z, f"{name}_hat": part.hat, f"{name}_p": part.p}
    log_psi, p = combine(parts)
    table = pd.DataFrame(columns | {"psi": np.exp(log_psi), "log_psi": log_psi, "p": p})
    return table[np.isfinite(table["log_psi"])].reset_index(drop=True)
