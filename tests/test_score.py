"""score(): from images to the table, on networks that take a second, and once on real ones."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from image_helpers import message
from safetensors import safe_open
from sklearn.metrics import normalized_mutual_info_score
from tiny import EFFECTIVE, score
from torch import nn

import psi_fast
from psi_fast.errors import PsiFastError

TESTS = Path(__file__).parent


def assert_same_bits(left: pd.DataFrame, right: pd.DataFrame):
    """Equal columns, types and bits; lists by their items."""
    assert list(left.columns) == list(right.columns)
    assert list(left.dtypes) == list(right.dtypes)
    assert len(left) == len(right)
    differ = {}
    for name in left.columns:
        a, b = ([list(x) if np.ndim(x) else x for x in table[name]] for table in (left, right))
        if left[name].dtype.kind == "f":
            a, b = (table[name].to_numpy().tobytes() for table in (left, right))
        if a != b:
            differ[name] = (left[name], right[name])
    assert not differ


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run: its scores, its folder and the tensors in it."""
    folder = tmp_path_factory.mktemp("run") / "made" / "here"
    scores = score(config=EFFECTIVE, out=folder)
    with safe_open(folder / "embeddings.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    return scores, folder, tensors, metadata


def test_columns_are_the_documented_ones(run):
    scores, folder, _, _ = run
    assert list(scores.table.columns) == tiny.SCORE_COLUMNS
    assert list(scores.patches.columns) == tiny.PATCH_COLUMNS
    assert list(pd.read_parquet(folder / "scores.parquet").columns) == tiny.SCORE_COLUMNS
    assert list(pd.read_parquet(folder / "patches.parquet").columns) == tiny.PATCH_COLUMNS
    assert sorted(path.name for path in folder.iterdir()) == [
        "distributions.safetensors",
        "embeddings.safetensors",
        "manifest.json",
        "patches.parquet",
        "scores.parquet",
    ]


def test_the_order_of_the_images_changes_no_score():
    images = tiny.image_set()
    order = np.random.default_rng(0).permutation(len(images))
    drawn = ["random_percentile"]  # of random patches, which are drawn by the images' numbers
    table = score(images=images).table.drop(columns=drawn)
    assert_same_bits(score(images=images.take(order)).table.drop(columns=drawn), table)
    tied = tiny.conv_network(tiny.Quantise())
    scored = [score(tied, "3", images=one, config=tiny.CONFIG).table for one in (images, images.take(order))]
    assert not scored[0]["S"].equals(scored[1]["S"]), "ties at the last rank go to the first images"


def test_values_lie_in_their_documented_ranges(run):
    table = run[0].table
    assert table["channel"].tolist() == list(range(6))
    assert table["psi"].between(0, 1, inclusive="neither").all()
    assert np.allclose(np.exp(table["log_psi"]), table["psi"], rtol=1e-12)
    assert np.allclose(table["S_hat"] * table["Q_hat"] * table["D_hat"], table["psi"], rtol=1e-9)
    assert np.allclose(table[["S_p", "Q_p", "D_p"]].max(axis=1), table["p"])
    for name in ("p", "q", "S_p", "Q_p", "D_p"):
        assert table[name].between(1 / 10 if name != "q" else 0, 1).all(), name
    assert table["random_percentile"].between(0, 100).all()
    assert table["k"].between(2, 3).all()
    assert table["S"].between(-1, 1).all()
    assert table["Q"].between(0, 1).all()
    assert (table["components"] == "SQD").all()
    assert (table["flags"].map(len) == 0).all()


def test_the_manifest_tells_what_was_run(run):
    scores, _, _, _ = run
    manifest = scores.manifest
    assert psi_fast.PSIConfig.from_dict(manifest["config"]) == EFFECTIVE
    assert set(manifest["fingerprints"]) >= {"network", "images", "encoder", "vocabulary", "code"}
    assert manifest["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert manifest["device"]["type"] == "cpu"
    assert {"mining", "embedding", "clusters", "nulls"} <= set(manifest["seconds"])
    assert all(value >= 0 for value in manifest["seconds"].values())
    assert manifest["images_per_second"] > 0
    assert manifest["warnings"] == ["9 draws give p >= 0.100, so no channel can be significant; use at least 20"]
    assert (manifest["network"], manifest["layers"], manifest["encoder"]) == ("tiny", ["2"], "tiny-encoder")
    assert (manifest["images"], manifest["channels"], manifest["concepts"]) == (40, 6, 5)
    assert manifest["bank"]["side_px"] == 32


def test_patches_agree_with_the_table_and_the_labels(run):
    scores, _, _, _ = run
    table, patches = scores.table.set_index("channel"), scores.patches
    assert len(patches) == 6 * 12
    for channel, rows in patches.groupby("channel"):
        assert rows["rank"].tolist() == list(range(12))
        assert (np.diff(rows["activation"]) <= 0).all()
        assert rows["activation"].iloc[0] == table.loc[channel, "max_activation"]
        np.testing.assert_array_equal(rows["cluster"], scores.labels[channel])
        sizes = np.bincount(rows["cluster"])
        assert list(sizes) == list(table.loc[channel, "cluster_sizes"])
        assert list(sizes) == sorted(sizes, reverse=True)
        assert sizes.sum() == 12
        assert len(sizes) == table.loc[channel, "k"] == len(table.loc[channel, "concepts"])
        assert rows["image"].is_unique
        wanted = normalized_mutual_info_score(rows["label"], rows["cluster"])
        assert abs(table.loc[channel, "Q"] - wanted) < 1e-9
    numbers = patches["image"].str.removeprefix("picture-").astype(int)
    names = np.array(["stripes", "squares", "gradient", "noise"])
    np.testing.assert_array_equal(patches["label"], names[numbers % 4])
    boxes = np.stack(list(patches["box"]))
    widths, heights = np.array([tiny.sizes(i) for i in numbers]).T
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= widths).all()
    assert (boxes[:, 3] <= heights).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_embeddings_are_those_of_the_patches(run):
    scores, _, tensors, metadata = run
    unique, index = tensors["unique"], tensors["index"]
    assert index.shape == (6, 12)
    assert sorted(index.unique().tolist()) == list(range(len(unique)))
    encoder, images = tiny.TinyEncoder(), tiny.image_set()
    pixels = tiny.bank(images).read(slice(None), torch.device("cpu"))
    for row in scores.patches.itertuples():
        number = images.names.index(row.image)
        short = min(tiny.sizes(number))  # from px of the image to px of its centre square, which has 32
        box = (np.reshape(row.box, (2, 2)) - [(side - short) // 2 for side in tiny.sizes(number)]) * 32 / short
        (left, top), (right, bottom) = np.floor(box[0] + 1e-4).astype(int), np.ceil(box[1] - 1e-4).astype(int)
        wanted = encoder.encode(encoder.preprocess(pixels[number : number + 1, top:bottom, left:right]))[0]
        torch.testing.assert_close(
            unique[index[row.channel, row.rank]], wanted / wanted.norm(), atol=1e-5, rtol=0, msg=str(row)
        )
    assert metadata == {"concepts": '["red", "green", "blue", "dark", "light"]'}
    text = encoder.concepts(None)[1]
    torch.testing.assert_close(tensors["text"], text / text.norm(dim=1, keepdim=True))


def test_concepts_are_the_nearest_to_each_cluster(run):
    scores, _, tensors, _ = run

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    unique, text = tensors["unique"].double().numpy(), tensors["text"].double().numpy()
    x, bank = unit(unique - unique.mean(0)), unit(text - text.mean(0))
    names = ["red", "green", "blue", "dark", "light"]
    for row, labels, index in zip(scores.table.itertuples(), scores.labels, tensors["index"].numpy(), strict=True):
        means = unit(np.stack([x[index][labels == j].mean(0) for j in range(row.k)]))
        assert list(row.concepts) == [names[t] for t in (means @ bank.T).argmax(1)]


def test_a_loaded_run_equals_the_returned_scores(run):
    scores, folder, _, _ = run
    for again in (psi_fast.load(folder), psi_fast.load(str(folder))):
        assert_same_bits(again.table, scores.table)
        assert_same_bits(again.patches, scores.patches)
        assert again.labels.dtype == scores.labels.dtype
        np.testing.assert_array_equal(again.labels, scores.labels)
        assert psi_fast.PSIConfig.from_dict(again.manifest["config"]) == EFFECTIVE
        assert again.manifest["fingerprints"] == scores.manifest["fingerprints"]
        assert isinstance(again.table["flags"].iloc[0], list)
        assert again.significant() == scores.significant()


@pytest.mark.usefixtures("batched")
@pytest.mark.parametrize("batch_size", [16, 32])
def test_the_batch_size_changes_no_bit(run, batch_size):
    again = score(config=replace(EFFECTIVE, batch_size=batch_size))
    assert_same_bits(again.table, run[0].table)
    assert_same_bits(again.patches, run[0].patches)


def test_a_second_process_gives_the_same_bits(run, tmp_path):
    code = (
        "import sys, tiny, psi_fast, dataclasses\n"
        "config = dataclasses.replace(tiny.CONFIG, patch='effective', batch_size=5)\n"
        "psi_fast.score(tiny.network(), tiny.LAYER, tiny.image_set(), encoder=tiny.TinyEncoder(), config=config,"
        " device='cpu').to_parquet(sys.argv[1])\n"
    )
    path = tmp_path / "table.parquet"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=TESTS, check=True, timeout=120)
    assert_same_bits(pd.read_parquet(path), run[0].table)


def test_layers_read_together_score_as_they_do_alone(tmp_path):
    made = tiny.conv_network(nn.ReLU(), tiny.Tokens())
    names = ["4", "2", "3"]  # not in the order they run
    scores = score(made, names, out=tmp_path / "run")
    assert scores.table["layer"].unique().tolist() == names
    assert scores.manifest["layers"] == list(scores.manifest["patch"]) == names
    for name in names:
        alone = score(made, name)
        rows = scores.table["layer"] == name
        assert_same_bits(scores.table[rows].reset_index(drop=True), alone.table)
        np.testing.assert_array_equal(scores.labels[rows], alone.labels)
        own = scores.patches[scores.patches["layer"] == name].reset_index(drop=True)
        assert_same_bits(own, alone.patches)
    again = psi_fast.load(tmp_path / "run")
    assert_same_bits(again.table, scores.table)
    np.testing.assert_array_equal(again.labels, scores.labels)
    with safe_open(tmp_path / "run" / "embeddings.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in ("unique", "index")}
    assert tensors["index"].shape == scores.labels.shape
    assert sorted(tensors["index"].unique().tolist()) == list(range(len(tensors["unique"])))


def test_layers_are_read_in_one_pass():
    made = tiny.conv_network(nn.ReLU(), tiny.Boom(), nn.ReLU(), tiny.Boom())
    middle, behind = made.module[4], made.module[6]

    def passes(layers):
        middle.runs = behind.runs = 0
        score(made, layers)
        return middle.runs, behind.runs

    alone, few = passes("5")
    both, last = passes(["5", "3"])
    assert both - alone <= 2  # one more look at the layers' shapes
    assert few + 1 >= last  # and none at all behind the last layer


@pytest.mark.parametrize("layers", [[], ["2", "2"], [2], 2, None, ["2", "nothing"]])
def test_layers_that_cannot_be_read_are_an_error(layers):
    message(score, tiny.network(), layers, error=PsiFastError)


def test_another_seed_gives_other_draws(run):
    again = score(config=replace(EFFECTIVE, seed=1))
    assert (again.table["S_null_mean"] != run[0].table["S_null_mean"]).all()


@pytest.mark.parametrize(
    ("channels", "ids"),
    [(slice(1, 4), [1, 2, 3]), ([4, 0], [4, 0]), (slice(None, None, 5), [0, 5]), (np.array([2]), [2])],
)
def test_channels_restrict_the_table(channels, ids):
    whole, part = (
        score(config=replace(tiny.CONFIG, center=False)),
        score(config=replace(tiny.CONFIG, center=False), channels=channels),
    )
    assert part.table["channel"].tolist() == ids
    assert part.labels.shape == (len(ids), 12)
    assert sorted(part.patches["channel"].unique()) == sorted(ids)
    # without the common centre a channel's own numbers depend on no other channel
    own = ["psi", "S", "S_null_mean", "Q", "Q_null_sd", "D", "D_null_mean", "max_activation"]
    wanted = whole.table.set_index("channel").loc[ids, own].reset_index()
    pd.testing.assert_frame_equal(part.table.set_index("channel")[own].reset_index(), wanted, rtol=1e-5, atol=1e-6)


def test_without_labels_q_is_absent(tmp_path):
    scores = score(images=tiny.write_pictures(tmp_path / "flat", 24, classes=False))
    table = scores.table
    assert list(table.columns) == tiny.SCORE_COLUMNS
    assert (table["components"] == "SD").all()
    assert table[["Q", "Q_z", "Q_hat", "Q_p", "Q_null_mean", "Q_null_sd"]].isna().all(axis=None)
    assert np.allclose(table["S_hat"] * table["D_hat"], table["psi"])
    assert scores.patches["label"].isna().all()
    assert table["random_percentile"].between(0, 100).all()


def test_a_module_and_a_dataset_are_taken(run):
    module = tiny.network().module
    module.preprocess = tiny.PREPROCESS
    scores = score(module, images=tiny.Pictures(40), config=EFFECTIVE)
    different = ["concepts"]
    assert_same_bits(scores.table.drop(columns=different), run[0].table.drop(columns=different))
    assert scores.manifest["network"] == "Sequential"
    assert set(scores.patches["label"]) <= {f"class {i}" for i in range(4)}
    assert set(scores.patches["image"]) <= {str(i) for i in range(40)}


def test_an_image_folder_and_a_vocabulary_are_taken(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("stripe\nsquare\n# no concept\nslope\nsnow\n", encoding="utf-8")
    scores = score(images=str(tiny.write_pictures(tmp_path / "tree", 24)), vocabulary=str(words))
    assert set(scores.table["concepts"].explode()) <= {"stripe", "square", "slope", "snow"}
    assert set(scores.patches["label"]) <= {f"class{i}" for i in range(4)}
    assert scores.manifest["concepts"] == 4


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (lambda: tiny.conv_network(tiny.Tokens()), "3"),
        (lambda: tiny.conv_network(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "4"),
    ],
    ids=["tokens", "vector"],
)
@pytest.mark.parametrize("patch", ["effective", "theoretical", "cell", "image", 0.3])
def test_every_patch_mode_on_tokens_and_vectors(make, layer, patch):
    scores = score(make(), layer, config=replace(tiny.CONFIG, patch=patch), channels=slice(0, 2))
    assert scores.table["psi"].between(0, 1).all()
    assert scores.manifest["patch"][layer]["mode"] == str(patch)


def test_several_positions_of_an_image_may_be_kept():
    scores = score(config=replace(tiny.CONFIG, per_image=3, patch="cell"))
    counts = scores.patches.groupby(["channel", "image"]).size()
    assert counts.max() <= 3
    assert counts.max() > 1


def test_nothing_is_printed_where_nobody_watches(capfd):
    score(progress=False)
    assert capfd.readouterr() == ("", "")


def test_a_line_a_stage_is_printed_where_stderr_is_no_terminal(capfd):
    scores = score(progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert [line.split("s  ")[1] for line in err.splitlines()] == list(scores.manifest["seconds"])


def test_stages_of_several_layers_name_theirs(capfd):
    scores = score(layer=["2", "0"], progress=True)
    told = [line.split("s  ")[1] for line in capfd.readouterr().err.splitlines()]
    assert told[-5:] == ["embedding", "clusters, 2", "nulls, 2", "clusters, 0", "nulls, 0"]
    assert list(scores.manifest["seconds"])[-3:] == ["embedding", "clusters", "nulls"]


def test_real_networks_on_a_few_demo_tiles(tmp_path):
    pytest.importorskip("skimage")
    pytest.importorskip("efficientnet_lite_pytorch")
    from psi_fast.demo import DEMO_ENCODER, DEMO_LAYER, DEMO_NETWORK, demo_tiles
    from psi_fast.networks import load_network
    from psi_fast.vocabulary import imagenet_names

    tiles = demo_tiles()
    config = replace(tiny.CONFIG, patch="image", draws=19)
    scores = score(
        DEMO_NETWORK,
        DEMO_LAYER,
        tiles,
        encoder=DEMO_ENCODER,
        config=config,
        channels=[7, 3, 1200],
        max_images=60,
        out=tmp_path / "run",
    )
    table = scores.table
    assert table["channel"].tolist() == [7, 3, 1200]
    assert table["psi"].between(0, 1, inclusive="neither").all()
    assert (table["components"] == "SQD").all()
    assert set(table["concepts"].explode()) <= set(imagenet_names())
    assert scores.manifest["images"] == 60
    assert scores.manifest["patch"][DEMO_LAYER]["mode"] == "image"
    assert set(scores.patches["label"]) <= set(tiles.class_names)
    assert_same_bits(psi_fast.load(tmp_path / "run").table, table)

    network = load_network(DEMO_NETWORK)
    best = scores.patches[scores.patches["rank"] == 0]
    rows = np.array([tiles.names.index(name) for name in best["image"]])
    batch = network.preprocess(tiny.bank(tiles, 260).read(rows, torch.device("cpu")))
    found = {}
    handle = network.module.get_submodule(DEMO_LAYER).register_forward_hook(
        lambda _module, _inputs, output: found.update(maps=output)
    )
    with torch.no_grad():
        network.module.eval()(batch)
    handle.remove()
    wanted = [found["maps"][i, channel].max().item() for i, channel in enumerate(best["channel"])]
    np.testing.assert_allclose(best["activation"], wanted, rtol=1e-3, atol=1e-3)
