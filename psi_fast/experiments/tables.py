"""What experiments do with tables: columns as numbers, and columns in order."""

import numpy as np
import pandas as pd


def numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    """A column as float64 [n]."""
    return table[column].to_numpy(dtype=np.float64)


def led_by(table: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The table with the columns `names` first, the others behind them as they are."""
    return table[[*names, *(name for name in table if name not in names)]]
