"""PSIConfig: defaults, presets, TOML, and one clear line for every bad value."""

import dataclasses
import json

import numpy as np
import pytest

from psi_fast import PSIConfig, PsiFastError
from psi_fast.errors import ConfigError

BAD = [
    ("top_k", 3),
    ("top_k", 11),  # below 2 * k_max
    ("top_k", 12.0),
    ("top_k", "100"),
    ("per_image", 0),
    ("band", (0.5, 0.5)),
    ("band", (0.9, 0.1)),
    ("band", (-0.1, 0.5)),
    ("band", (0.5, 1.1)),
    ("band", (0.1, 0.2, 0.3)),
    ("band", ("a", "b")),
    ("band", (float("nan"), 0.5)),
    ("band", 0.5),
    ("band", "ab"),
    ("patch", "efective"),
    ("patch", 0.0),
    ("patch", 1.5),
    ("patch", 2),
    ("patch", float("nan")),
    ("patch", True),
    ("patch", [1]),
    ("precision", "half"),
    ("precision", 32),
    ("precision", None),
    ("center", 1),
    ("center", "yes"),
    ("k_max", 1),
    ("k_max", 17),
    ("n_init", 0),
    ("n_init", True),
    ("distinctness", "gaps"),
    ("rotation", "radiall"),
    ("rotation", None),
    ("rotation", ["radial"]),
    ("text_null", "rotate"),
    ("text_pool", "banks"),
    ("draws", 1),
    ("draws", 2.5),
    ("exact", 0),
    ("seed", -1),
    ("seed", 2**64),
    ("seed", None),
    ("batch_size", 0),
    ("backend", "cuda"),
    ("backend", "Torch"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_value_ends_in_one_line_naming_the_field(name, value):
    with pytest.raises(ConfigError) as caught:
        PSIConfig(**{name: value})
    message = str(caught.value)
    assert name in message
    assert "\n" not in message
    assert isinstance(caught.value, PsiFastError)


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [("rotation", "radiall", "radial"), ("text_null", "rotate", "rotated"), ("backend", "Torch", "torch")],
)
def test_misspelt_choice_gets_the_nearest_one(name, value, meant):
    with pytest.raises(ConfigError, match=f"nearest: '{meant}'"):
        PSIConfig(**{name: value})


def test_top_k_and_k_max_are_checked_together():
    assert PSIConfig(top_k=4, k_max=2).top_k == 4
    with pytest.raises(ConfigError, match=r"top_k must be at least 2 \* k_max = 32, got 20"):
        PSIConfig(top_k=20, k_max=16)


def test_a_band_takes_one_position_an_image():
    assert PSIConfig(band=(0.2, 0.8), per_image=1).band == (0.2, 0.8)
    with pytest.raises(ConfigError, match=r"band takes one position an image, got per_image 2"):
        PSIConfig(band=(0.2, 0.8), per_image=2)


def test_every_field_is_covered_by_a_bad_value():
    assert {name for name, _ in BAD} == {field.name for field in dataclasses.fields(PSIConfig)}


def test_numpy_integer_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="draws must be a whole number"):
        PSIConfig(draws=np.int64(50))


def test_frozen_and_keyword_only():
    config = PSIConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.draws = 5
    with pytest.raises(TypeError):
        PSIConfig(100)


def test_presets():
    assert PSIConfig.preset("default") == PSIConfig()
    paper = PSIConfig.preset("paper")
    assert (paper.rotation, paper.center) == ("independent", False)
    assert PSIConfig.preset("paper", draws=7, rotation="radial") == PSIConfig(rotation="radial", center=False, draws=7)
    with pytest.raises(ConfigError, match=r"unknown preset 'papr'.*nearest: 'paper'"):
        PSIConfig.preset("papr")


def test_defaults_are_the_documented_ones():
    config = PSIConfig()
    assert (config.top_k, config.per_image, config.k_max, config.n_init) == (100, 1, 6, 4)
    assert (config.rotation, config.distinctness, config.text_null, config.text_pool) == (
        "marginal",
        "gap",
        "shuffled",
        "bank",
    )
    assert config.center
    assert not config.exact


CHANGED = PSIConfig(
    top_k=40,
    per_image=2,
    patch=0.5,
    precision="bfloat16",
    center=False,
    k_max=3,
    n_init=2,
    distinctness="pairwise",
    rotation="tangent",
    text_null="rotated",
    text_pool="layer",
    draws=10,
    exact=True,
    seed=7,
    batch_size=3,
    backend="torch",
)
BANDED = dataclasses.replace(CHANGED, per_image=1, band=(0.2, 0.8))


def test_the_two_differ_from_the_default_everywhere():
    for field in dataclasses.fields(PSIConfig):
        assert {getattr(config, field.name) for config in (CHANGED, BANDED)} != {getattr(PSIConfig(), field.name)}


@pytest.mark.parametrize("config", [PSIConfig(), CHANGED, BANDED])
def test_json_round_trip(config):
    assert PSIConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_toml_round_trip(tmp_path):
    path = tmp_path / "settings.toml"
    for config in (CHANGED, BANDED):
        held = {name: value for name, value in config.to_dict().items() if value is not None}
        path.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in held.items()), encoding="utf-8")
        assert PSIConfig.from_toml(path) == config
    path.write_text("draws = 12\n", encoding="utf-8")
    assert PSIConfig.from_toml(path) == PSIConfig(draws=12)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("draw = 3", "unknown setting 'draw'; nearest: 'draws'"),
        ("draws = ", "cannot read settings"),
        ("draws = '3'", "draws must be a whole number"),
        ("band = [0.5, 0.1]", "band must be"),
        ("band = 3", "band must be"),
    ],
)
def test_bad_toml_ends_in_one_line(tmp_path, text, said):
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as caught:
        PSIConfig.from_toml(path)
    assert "\n" not in str(caught.value)


def test_missing_and_binary_toml_end_in_one_line(tmp_path):
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("none.toml", "b.toml"):
        with pytest.raises(ConfigError, match=name):
            PSIConfig.from_toml(tmp_path / name)
