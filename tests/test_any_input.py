"""Inputs that nobody thought of: settings, files and arrays of any shape work, or end in one line; none hangs."""

import contextlib
import dataclasses
import math
import tempfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import psi_fast
from psi_fast import PSIConfig
from psi_fast.batch import Batch
from psi_fast.config import read_toml
from psi_fast.encoders import load_encoder
from psi_fast.encoders.text_head import load_text_head
from psi_fast.errors import PsiFastError
from psi_fast.images import open_images
from psi_fast.jobs import read_jobs
from psi_fast.networks import load_network
from psi_fast.planning.rates import require_rates
from psi_fast.store import require_own
from psi_fast.vocabulary import load_vocabulary

EACH = timedelta(seconds=20)
"""For one input, on a machine that does other work; what takes longer counts as a hang."""
NAMES = [field.name for field in dataclasses.fields(PSIConfig)]
WORDS = [
    "effective",
    "image",
    "auto",
    "float32",
    "gap",
    "pairwise",
    "marginal",
    "shuffled",
    "bank",
    "numba",
    "torch",
    "",
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 200),
    st.integers(),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=8),
    st.lists(st.one_of(st.floats(), st.integers(), st.text(max_size=3)), max_size=3),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
quick = settings(deadline=EACH, derandomize=True, max_examples=300, suppress_health_check=list(HealthCheck))


def attempt(call, *args, **kwargs):
    """What a call returns, None where it ends in a PsiFastError, which has one line to be read."""
    refusal = None
    try:
        found = call(*args, **kwargs)
    except PsiFastError as error:
        found, refusal = None, str(error)
    if refusal is not None:
        assert len(refusal.splitlines()) == 1
        assert refusal.strip()
        event("refused")
        return None
    event("worked")
    return found


@contextlib.contextmanager
def file_of(held, name="x.toml"):
    """A file with these bytes, or with this text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(held if isinstance(held, bytes) else held.encode("utf-8", "surrogatepass"))
        yield path


# ---- settings


@quick
@given(st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=6)), VALUES, max_size=4))
@example({"band": (0.0, math.nan)})
@example({"patch": math.inf})
@example({"seed": 2**64})
@example({"top_k": 10**400})
@example({"rotation": ["marginal"]})
@example({"patch": 10**400})
@example({"top_\nk": 3})
@example({"precision": "a\u2028b"})
def test_settings_of_any_names_and_values(values):
    found = attempt(PSIConfig.from_dict, values)
    if found is not None:
        assert PSIConfig.from_dict(found.to_dict()) == found
        assert set(values) <= set(NAMES)


def toml_value(value):
    """A value as TOML writes it; None for what it has no word for."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value).replace("inf", "inf")
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(one):08x}" for one in value if not 0xD800 <= ord(one) < 0xE000) + '"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(held for one in value if (held := toml_value(one)) is not None) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_value(key)} = {toml_value(own)}" for key, own in value.items()) + "}"
    return None


INPUTS = ["network", "layer", "images", "encoder", "out", "share", "channels", "max_images", "device", "name", "band"]
LINES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([*NAMES, *INPUTS]), VALUES).map(lambda one: f"{one[0]} = {toml_value(one[1])}"),
        st.sampled_from(["[defaults]", "[grid]", "[[jobs]]", "[jobs]", "[defaults.x]", "[grid.seed]", "[[grid]]"]),
        st.sampled_from(['network = "a:b"', 'layer = "x"', 'images = "y"', 'encoder = "e"', "seed = [0, 1]"]),
        st.text(max_size=10),
    ),
    max_size=14,
).map("\n".join)
WHOLE = '[defaults]\nnetwork = "a:b"\nlayer = "x"\nimages = "y"\nencoder = "e"\n'
FILES = st.one_of(LINES, LINES.map(lambda text: WHOLE + text), st.binary(max_size=60), st.text(max_size=60))


@quick
@given(FILES)
@example("x = " + "[" * 100_000)
@example("a." * 5000 + "b = 1")
@example("x = " + "1" * 5000)
@example("x = '\x00'")
def test_a_toml_file_of_anything(held):
    with file_of(held) as path:
        attempt(read_toml, path)
        found = attempt(PSIConfig.from_toml, path)
        assert found is None or isinstance(found, PSIConfig)


@quick
@given(FILES)
@example(WHOLE + "[grid]\nseed = [" + ", ".join(map(str, range(50))) + "]\ntop_k = [20, 30]")
@example(
    WHOLE
    + "[grid]\n"
    + "\n".join(f"{name} = [{', '.join(['1'] * 99)}]" for name in ("seed", "draws", "top_k", "n_init"))
)
@example(WHOLE + "[[jobs]]\nchannels = '" + "1" * 5000 + ":'")
@example(WHOLE + "[[jobs]]\nname = 'x'\nnetwork = 'é'")
@example('out = "\\u0000"\n' + WHOLE + "[[jobs]]")
@example(WHOLE + "[[jobs]]\nlayer = ['x', \"\\u0000\"]")
def test_a_file_of_jobs_of_anything(held):
    with file_of(held) as path:
        found = attempt(read_jobs, path)
        if found is not None:
            names = [job.name for job in found[1]]
            assert len(set(names)) == len(names) > 0
            for job in found[1]:
                assert job.name == Path(job.name).name
                assert job.name not in ("", ".", "..")
                job.arguments()
            assert "\\x00" not in repr(found)  # which no path can hold


# ---- vocabularies

CONCEPTS = st.lists(st.sampled_from(["dog", "DOG", "[kind]", "# x", "", "ﬀ", "ss", "ß"])).map("\n".join)


@quick
@given(
    st.one_of(
        st.binary(max_size=80),
        st.text(max_size=80),
        st.lists(st.sampled_from(["dog", "DOG", "[kind]", "# x", "", "ﬀ", "ss", "ß"])).map("\n".join),
    )
)
@example("")
@example(b"\xff\xfe\x00")
@example("a\x85b\u2028c")
@example("\ufeff[kind]\nx")
def test_a_vocabulary_of_anything(held):
    with file_of(held, "words.txt") as path:
        found = attempt(load_vocabulary, str(path))
        if found is not None:
            assert len({one.casefold() for one in found.concepts}) == len(found.concepts) > 0
            assert all(len(one.splitlines()) == 1 for one in found.concepts)
            assert found.kinds is None or len(found.kinds) == len(found.concepts)
            assert len(found.fingerprint) == 64


@quick
@given(st.text(max_size=20))
@example("\0")
@example("a" * 5000)
def test_a_vocabulary_of_any_name(name):
    attempt(load_vocabulary, name)


# ---- paths

PATHS = {
    "images": open_images,
    "run": psi_fast.load,
    "out": lambda path: require_own(Path(path)),
    "rates": require_rates,
    "jobs": lambda path: Batch(path, [{name: "x" for name in ("network", "layer", "images", "encoder")}]),
    "torchvision": lambda path: load_network(f"torchvision:resnet18@{path}.pth"),
    "transformers": lambda path: load_network(f"transformers:{path}"),
    "open_clip": lambda path: load_encoder(f"open_clip:local-dir:{path}"),
    "text head": lambda path: load_text_head(f"sentence-transformers:{path}"),
}


@settings(quick, max_examples=40)
@given(
    st.sampled_from(list(PATHS)), st.one_of(st.text(max_size=20), st.sampled_from(["a", "é/"]).map(lambda x: x * 300))
)
@example("images", "{" + "a," * 200 + "}.tar")
@example("images", "\0@train")
@example("images", "a" * 300 + "/*.parquet")
def test_a_path_of_any_name(tmp_path_factory, what, name):
    attempt(PATHS[what], f"{tmp_path_factory.getbasetemp()}/nothing-{name}")


# ---- arrays

SMALL = PSIConfig(top_k=4, k_max=2, n_init=1, draws=3)
DTYPES = st.sampled_from(["f2", "f4", "f8", "i1", "i8", "u1", "u8", "?", "c8", "U2", "O", "M8[s]", ">f4"])
ELEMENTS = st.sampled_from([0, 1, -1, 0.5, 1e-300, 1e300, 3e38, math.nan, math.inf, -math.inf, 2**62])


@st.composite
def numbers(draw, shape):
    """An array, mostly of the shape and of well-behaved numbers, else of any."""
    if draw(st.integers(0, 9)) == 0:
        shape = draw(arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    made = rng.normal(size=shape)
    if made.size and draw(st.integers(0, 3)) == 0:  # a place or all of them
        at = draw(st.integers(0, made.size - 1)) if draw(st.booleans()) else slice(None)
        made.reshape(-1)[at] = draw(ELEMENTS)
    with np.errstate(all="ignore"):
        kind = draw(DTYPES) if draw(st.integers(0, 5)) == 0 else draw(st.sampled_from(["f4", "f8"]))
        made = made.astype(kind) if kind != "M8[s]" else np.nan_to_num(made).astype("i8").astype(kind)
    if made.dtype.kind == "f" and made.dtype.isnative and draw(st.integers(0, 4)) == 0:
        return torch.from_numpy(np.ascontiguousarray(made)).to(draw(st.sampled_from([torch.bfloat16, torch.float32])))
    return draw(st.sampled_from([made, made.tolist()])) if draw(st.integers(0, 5)) == 0 else made


@st.composite
def classes(draw, shape):
    """Labels, mostly whole numbers of the shape."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.one_of(numbers(shape), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    low, high = draw(st.sampled_from([(0, 1), (0, 3), (-5, 5), (0, 2**62), (-(2**62), 2**62)]))
    return rng.integers(low, high + 1, shape).astype(draw(st.sampled_from(["i8", "i8", "u8", "i1", "u1"])))


@st.composite
def calls(draw):
    """Arguments of `score_embeddings`."""
    channels, places, width = draw(st.integers(0, 3)), draw(st.integers(1, 9)), draw(st.integers(0, 5))
    concepts, pool = draw(st.integers(0, 5)), draw(st.integers(0, 12))
    made = {"embeddings": draw(numbers((channels, places, width)))}
    parts = {
        "labels": classes((channels, places)),
        "activations": numbers((channels, places)),
        "text": numbers((concepts, width)),
        "text_head": numbers((concepts, 3)),
        "valid": st.one_of(arrays.arrays(bool, (channels, places)), numbers((channels, places)), st.text(max_size=2)),
        "concept_names": st.one_of(st.lists(st.text(max_size=3), min_size=concepts, max_size=concepts), st.integers()),
        "background": numbers((pool, width)),
        "background_labels": classes((pool,)),
    }
    for name, part in parts.items():
        if draw(st.integers(0, 3)) == 0 or (name == "labels" and draw(st.booleans())):
            made[name] = draw(part)
    pairwise = draw(st.booleans())
    made["config"] = dataclasses.replace(
        SMALL, distinctness="pairwise" if pairwise else "gap", center=draw(st.booleans())
    )
    return made


@pytest.fixture(scope="module")
def compiled():
    """The loops compiled, which may take longer than an input is given."""
    psi_fast.score_embeddings(np.eye(8)[None], labels=[[0, 1] * 4], text=np.eye(8), config=SMALL, device="cpu")


@pytest.mark.filterwarnings("error::RuntimeWarning")
@settings(quick, max_examples=200)
@given(calls())
@example({"embeddings": np.full((1, 4, 2), 1e300)})
@example({"embeddings": np.full((1, 4, 2), 5e-324)})
@example({"embeddings": [[[1.0], [2.0, 3.0]]]})
@example({"embeddings": np.ones((2, 8, 3)), "labels": np.full((2, 8), 2**64 - 1, dtype=np.uint64)})
@example({"embeddings": np.ones((1, 8, 3)), "activations": np.full((1, 8), 1e300)})
@example({"embeddings": torch.ones(1, 8, 3, requires_grad=True), "text": torch.ones(2, 3).to_sparse()})
def test_embeddings_and_labels_of_anything(compiled, made):
    made = {"config": SMALL, **made}
    embeddings = made.pop("embeddings")
    found = attempt(psi_fast.score_embeddings, embeddings, device="cpu", **made)
    if found is not None:
        assert len(found.table) == len(embeddings)
        psi = found.table["psi"].dropna()
        assert psi.between(0, 1).all()
        assert found.table["p"].dropna().between(0, 1).all()


def test_one_line_is_asked_for():
    """The tests above can fail."""
    with pytest.raises(AssertionError):
        attempt(raising, Broken())
    with pytest.raises(ValueError, match="of another kind"):
        attempt(raising, ValueError("of another kind"))


class Broken(PsiFastError):
    """An error of two lines, which no other can be."""

    def __str__(self):
        return "two\nlines"


def raising(error):
    raise error
