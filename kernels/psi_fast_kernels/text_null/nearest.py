"""The nearest concept of each prototype, in a bank of any size, and the products that every part of D rests on."""

import warnings
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import pad

from psi_fast_kernels._backend import BackendError
from psi_fast_kernels._chunks import in_chunks
from psi_fast_kernels._tiling import LINE, padded

SEARCHES = ("auto", "matmul", "faiss")
LARGE = 100_000  # concepts; from here on `auto` prefers faiss on a CPU
ROWS = 128  # rows of one product on a CPU
COLUMNS = 2048  # concepts of one product: it stays in the cache until it is searched
SEARCHED = 4096  # prototypes searched at once
MULTIPLE = 64  # of a product's columns
FACTOR = 0x5851F42D4C957F2D  # odd, of a generator with good spectra (Knuth, MMIX)


def nearest_concepts(prototypes: Tensor, text: Tensor, *, search: str = "auto") -> Tensor:
    """Index of the concept with the largest product with each prototype, int64 [..., k]; of equal concepts the first.

    On a CPU it takes a few MB beyond its arguments and its result, and a copy of the bank where concepts repeat.

    Parameters
    ----------
    prototypes : [..., k, d] float
    text : [P, d] float
        Concept bank, P >= 1.
    search : {"auto", "matmul", "faiss"}
        Both compare with every concept. faiss runs on a CPU in float32, so where two concepts are equally near within
        rounding it may take the other. "auto" takes faiss for more than 100,000 concepts on a CPU.

    Raises
    ------
    BackendError
        faiss is asked for by name and not installed, or the data are not on a CPU. "auto" multiplies instead and warns when
        it would have preferred faiss.
    """
    if search not in SEARCHES:
        raise ValueError(f"unknown search {search!r}; there are {', '.join(SEARCHES)}")
    if prototypes.shape[-1] != text.shape[-1] or text.ndim != 2 or len(text) == 0:
        raise ValueError(
            f"prototypes must be [..., d] and text [P, d] with P >= 1, got {tuple(prototypes.shape)} and {tuple(text.shape)}"
        )
    find = _by_faiss if _chooses_faiss(search, len(text), text.device) else _by_matmul
    rows, first = prototypes.reshape(-1, prototypes.shape[-1]), _first_places(text)
    # of equal rows either way may take any, since products differ in their last bits from place to place
    found = find(rows, text if len(first) == len(text) else text[first])
    return first[found].reshape(prototypes.shape[:-1])


def largest(values: Tensor) -> Tensor:
    """Index of the largest value of each row [N, P], int64 [N]; of equal ones the first."""
    if values.device.type == "cpu":  # NumPy's search is vectorised; torch's takes ten times as long
        return torch.from_numpy(values.numpy().argmax(-1))
    return values.argmax(-1)


def aligned(matrix: Tensor, rows: int = MULTIPLE, columns: int = LINE) -> Tensor:
    """The matrix with zeros up to multiples of `rows` and `columns`."""
    more = padded(len(matrix), rows) - len(matrix), padded(matrix.shape[1], columns) - matrix.shape[1]
    return pad(matrix, (0, more[1], 0, more[0])) if any(more) else matrix


def fits(rows: Tensor, bank: Tensor) -> Tensor:
    """Products [N, P] of rows [N, d] with the rows of an `aligned` bank [P, padded d].

    On a CPU a row's products do not depend on the other rows: every product there multiplies as many.
    """
    count = len(rows)
    step = ROWS if rows.device.type == "cpu" else count
    rows = aligned(rows, step)
    result = rows.new_empty(len(rows), len(bank))
    for start in range(0, len(rows), step):
        torch.mm(rows[start : start + step], bank.T, out=result[start : start + step])
    return result[:count]


def _by_matmul(rows: Tensor, bank: Tensor) -> Tensor:
    result = torch.empty(len(rows), dtype=torch.int64, device=rows.device)

    def work(part: slice) -> None:
        highest = torch.full_like(rows[part, 0], -torch.inf)
        nearest = torch.zeros_like(result[part])
        for first in range(0, len(bank), COLUMNS):
            columns = bank[first : first + COLUMNS]
            products = fits(rows[part], aligned(columns))[:, : len(columns)]
            here = largest(products)
            value = products.gather(1, here[:, None])[:, 0]
            better = value > highest
            highest = torch.where(better, value, highest)
            nearest = torch.where(better, here + first, nearest)
        result[part] = nearest

    in_chunks(work, len(rows), ROWS if rows.device.type == "cpu" else SEARCHED, "prototypes")
    return result


def _by_faiss(rows: Tensor, bank: Tensor) -> Tensor:
    import faiss

    queries, concepts = (matrix.float().contiguous().numpy() for matrix in (rows, bank))
    return torch.from_numpy(faiss.knn(queries, concepts, 1, metric=faiss.METRIC_INNER_PRODUCT)[1][:, 0])


def _first_places(bank: Tensor) -> Tensor:
    """Ascending indices [U] of the rows that no earlier row equals."""
    place = torch.arange(len(bank), device=bank.device)
    keys = torch.cat([_keys(rows) for rows in bank.split(COLUMNS)])
    different, group = keys.unique(return_inverse=True)
    first = torch.full_like(different, len(bank)).scatter_reduce(0, group, place, "amin")[group]
    later = place[first != place]
    repeated = torch.zeros_like(place, dtype=torch.bool)
    for part in later.split(COLUMNS):  # different rows with one key stay
        repeated[part] = (bank[part] == bank[first[part]]).all(1)
    return place[~repeated]


def _keys(rows: Tensor) -> Tensor:
    """An int64 of each row, the same for equal rows and hardly ever for others."""
    words = (rows + 0.0).contiguous().view(torch.int32)  # + 0.0: negative zeros are zeros
    factors = torch.full_like(words[0], FACTOR, dtype=torch.int64).cumprod(0)  # modulo 2**64, as the sum is
    return (words * factors).sum(1)


def _chooses_faiss(search: str, concepts: int, device: torch.device) -> bool:
    if search == "matmul" or (search == "auto" and (concepts <= LARGE or device.type != "cpu")):
        return False
    installed = find_spec("faiss") is not None
    if search == "faiss":
        if not installed:
            raise BackendError("search 'faiss' needs the package faiss: pip install \"psi-fast[faiss]\"")
        if device.type != "cpu":
            raise BackendError(f"search 'faiss' runs on a CPU, and the data are on {device}; use 'matmul' or 'auto'")
    elif not installed:
        warnings.warn(
            f'faiss, preferred for more than {LARGE} concepts, is not installed (pip install "psi-fast[faiss]"); '
            f"multiplying with all {concepts} instead, for the same result",
            stacklevel=3,
        )
    return installed
