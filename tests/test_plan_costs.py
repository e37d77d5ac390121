"""The formulas behind a plan, held against what was counted, measured or lies on disk."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from psi_fast import PSIConfig
from psi_fast.activation_tap import ActivationTap
from psi_fast.decoding import PIXELS, SIZES
from psi_fast.mining import Miner
from psi_fast.networks import load_network
from psi_fast.planning.costs import (
    Cost,
    Sizes,
    bank_bytes,
    costs,
    distributions_bytes,
    draw_operations,
    embeddings_bytes,
    pool_operations,
    state_bytes,
    text_operations,
)
from psi_fast.planning.counting import counted
from psi_fast.planning.distinct import distinct_crops_of, distinct_curve
from psi_fast.planning.memory import device_bytes, host_bytes, listing_bytes, mapped_bytes, scoring_bytes
from psi_fast.planning.workload import LayerSize, ModelSize, Workload, encoder_size, network_size
from psi_fast.progress import Progress
from psi_fast.store import DISTRIBUTIONS, EMBEDDINGS
from psi_fast_kernels.cluster import cost as cluster

CPU = torch.device("cpu")
MODEL = ModelSize(name="x", side=224, flops=8_000_000_000, live_bytes=10_000_000, weight_bytes=100_000_000)
WORK = Workload(
    network=MODEL,
    encoder=replace(MODEL, name="e", flops=9_000_000_000),
    layers=(
        LayerSize(name="a", channels=1024, width=1024, positions=196),
        LayerSize(name="b", channels=2048, width=2048, positions=49),
    ),
    config=PSIConfig(),
    embedding_width=512,
    concepts=1602,
    head_width=0,
    text_flops=7,
    classes=1000,
    bank_side=256,
    bank_named=True,
    image_bytes=110_000.5,
    entry_bytes=200.0,
)


def at(images, workers=1, crops=200_000, products=True):
    crops = min(crops, WORK.most_crops(images))
    return Sizes(images=images, workers=workers, crops=crops, kept=crops, products=products)


def test_operations_of_a_convolution_and_a_linear_layer_are_those_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10))
    with torch.inference_mode():
        batch = torch.zeros(2, 3, 8, 8)
        found = counted(lambda: net(batch))
    assert found.flops == 2 * (2 * 8 * 64 * 27 + 2 * 512 * 10)
    assert found.live_bytes == 2 * 2 * (8 * 64 * 4)  # the map before and after the ReLU; flattening copies nothing


def test_attention_in_one_operation_counts_as_its_products():
    width, tokens, inner = 8, 5, 12
    layer = nn.TransformerEncoderLayer(width, 2, inner, batch_first=True).eval()
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.inference_mode():
        found = counted(lambda: layer(torch.zeros(1, tokens, width)))
    by_hand = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * inner
    assert found.flops == 2 * by_hand
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_a_network_is_counted_as_far_as_its_layer_and_an_encoder_as_a_whole():
    first, second = 2 * 5 * 32 * 32 * 27, 2 * 6 * 16 * 16 * 45
    network = tiny.network()
    for layer, wanted in (("0", first), ("2", first + second)):
        found = network_size(network, [ActivationTap(network, layer, CPU)])
        assert found.flops == wanted
    assert found.weight_bytes == 4 * (5 * 27 + 5 + 6 * 45 + 6)
    from psi_fast.encoders import load_encoder

    size, width = encoder_size(load_encoder("classifier:tiny:classifier"), CPU)
    assert width == 144
    assert size.flops == 2 * 8 * 16 * 16 * 27 + 2 * 16 * 8 * 8 * 72  # what lies behind the features is not run


def test_resnet50_takes_the_operations_that_are_published():
    network = load_network("torchvision:resnet50@none")
    found = network_size(network, [ActivationTap(network, "fc", CPU)])
    assert found.flops / 2 == pytest.approx(4.09e9, rel=0.01)  # torchvision's table: 4.09 G multiplications
    assert found.weight_bytes == pytest.approx(4 * 25_557_032, rel=0.01)  # parameters there, here with buffers


@pytest.mark.parametrize("band", [None, (0.5, 1.0)])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_state_of_mining_has_the_bytes_of_the_formula(band, labelled):
    class Seen:
        def read(self):
            return 0, {}

        def write(self, done, make):
            self.done, self.bytes = done, sum(own.nbytes for own in make().values())

    images, seen = tiny.image_set(30, labelled=labelled), Seen()
    network, config = tiny.network(), replace(tiny.CONFIG, band=band)
    taps = [ActivationTap(network, name, CPU) for name in ("0", "2")]
    chosen = [np.arange(2), np.arange(6)]
    miner = Miner(taps, network, tiny.bank(images), images.names, chosen, config, labels=images.labels)
    miner.whole(Progress(False), seen)
    layers = tuple(LayerSize(name="x", channels=len(own), width=9, positions=9) for own in chosen)
    work = replace(WORK, layers=layers, config=config, classes=4 if labelled else 0)
    assert seen.done == 30
    assert state_bytes(work, 30) == seen.bytes


def tensor_bytes(path):
    """Bytes of a safetensors file behind its head, which lists tensors and concepts."""
    head = int.from_bytes(path.read_bytes()[:8], "little")
    return path.stat().st_size - 8 - head


def test_the_files_of_a_run_have_the_bytes_of_the_formulas(tmp_path):
    bank, out = tmp_path / "bank", tmp_path / "run"
    pictures = tiny.write_pictures(tmp_path / "pictures", 40)
    scores = tiny.score(images=pictures, out=out, bank=bank, encoder="classifier:tiny:classifier")
    work = replace(
        WORK,
        layers=(LayerSize(name="2", channels=6, width=6, positions=256),),
        config=tiny.CONFIG,
        embedding_width=144,
        concepts=7,
        classes=4,
        bank_side=scores.manifest["bank"]["side_px"],
    )
    kept = len(scores.patches[["image", "box"]].astype(str).drop_duplicates())
    size = Sizes(images=40, workers=1, crops=scores.manifest["distinct_crops"], kept=kept, products=False)
    (squares,) = bank.glob("*/" + PIXELS)
    headers = 2 * 128
    assert bank_bytes(work, 40) + headers == squares.stat().st_size + (squares.parent / SIZES).stat().st_size
    assert tensor_bytes(out / EMBEDDINGS) == embeddings_bytes(work, size)
    assert tensor_bytes(out / DISTRIBUTIONS) == distributions_bytes(work, size)


def test_one_worker_sends_nothing_and_all_workers_do_the_work_of_one():
    alone, many = costs(WORK, at(10**6)), costs(WORK, at(10**6, 64))
    assert all(own.wire == 0 for own in alone.values())
    for name in ("mining", "embedding"):
        assert many[name].flops == alone[name].flops
        assert many[name].share == pytest.approx(alone[name].share / 64, rel=0.02)
    for name in ("open images", "decoding"):
        assert many[name].share == alone[name].share
    assert many["merge"].wire == 64 * state_bytes(WORK, 10**6 // 64)
    parts = math.ceil(1124 / 16) + math.ceil(2148 / 16)  # of few channels, as there are so many workers
    assert many["nulls"].flops - alone["nulls"].flops == (parts - 2) * pool_operations(WORK, True)
    assert many["clusters"].flops == alone["clusters"].flops
    for name in ("clusters", "nulls"):
        assert alone[name].share / 64 <= many[name].share < alone[name].share / 30


def test_images_come_in_parts_so_that_a_65th_worker_finds_none():
    mined = [costs(WORK, at(10**6, workers))["mining"].share for workers in (1, 5, 64, 65, 1000)]
    assert mined == [10**6, 13 * 15_625, 15_625, 15_625, 15_625]


def test_several_workers_keep_squares_only_where_a_place_is_named():
    nowhere = replace(WORK, bank_named=False)
    assert nowhere.on(1) == nowhere
    assert WORK.on(8) == WORK
    made = costs(nowhere.on(8), at(10**6, 8))
    assert made["decoding"] == Cost()
    assert made["mining"].decoded == 125_000
    assert made["embedding"].decoded == 25_000


def test_work_grows_with_the_images_and_never_shrinks():
    small, large = costs(WORK, at(10**5)), costs(WORK, at(10**7))
    for name, per_image in (("decoding", "share"), ("decoding", "disk"), ("mining", "flops"), ("mining", "share")):
        assert getattr(large[name], per_image) == 100 * getattr(small[name], per_image)
    for name in ("read", "disk", "wire", "flops", "share", "moved"):
        assert all(getattr(large[stage], name) >= getattr(small[stage], name) for stage in small)
    more = replace(WORK, config=replace(WORK.config, draws=2000))
    assert draw_operations(more, True) == 2 * draw_operations(WORK, True)
    assert text_operations(more) == 2 * text_operations(WORK) - 2 * 1602 * 6 * 512  # products with the bank


def test_the_operations_of_draws_are_counted_for_matrix_units_and_for_loops():
    products = cluster.product_flops(1000, 100, 6, 4) + 1000 * 2 * 100**3
    assert draw_operations(WORK, True) > products
    assert 0 < draw_operations(WORK, False) < draw_operations(WORK, True)


def test_nothing_overflows_at_a_thousand_million_images():
    big = replace(WORK, network=replace(MODEL, flops=10**12), bank_side=4096)
    made = costs(big, at(10**9))
    assert made["mining"].flops >= 10**21  # beyond 64 bits
    assert made["decoding"].disk == 10**9 * (3 * 4096**2 + 16)
    assert made["decoding"].read == 110_000_500_000_000
    assert listing_bytes(big, 10**9) > 2e11  # names alone: the plan must say so
    assert mapped_bytes(big, at(10**9, 64)) == 3 * 4096**2 * 15_625_000


def test_without_a_bank_images_are_decoded_while_they_are_mined_and_again_for_their_crops():
    stream = replace(WORK, bank_side=0)
    made = costs(stream, at(10**6))
    assert made["decoding"].read == made["decoding"].disk == made["decoding"].share == 0
    assert made["mining"].read == 110_000_500_000
    assert made["embedding"].read == round(200_000 * 110_000.5)
    assert mapped_bytes(stream, at(10**6)) == 0


def test_a_gpus_memory_grows_with_batch_and_channels_alone():
    few = device_bytes(WORK, at(10**6))
    assert device_bytes(WORK, at(10**8)) == few
    assert device_bytes(replace(WORK, config=replace(WORK.config, batch_size=1024)), at(10**6)) > few
    assert few > MODEL.weight_bytes * 2


def test_host_memory_holds_what_scoring_really_takes():
    """Tensors alive at their most while channels are scored, counted, against the formula's part for it."""
    from psi_fast.evaluation import Background, evaluate
    from psi_fast.results import PatchEmbeddings

    torch.manual_seed(0)
    crops, width, channels, config = 3000, 64, 40, PSIConfig(top_k=20, k_max=3, n_init=1, draws=300)
    rows = nn.functional.normalize(torch.randn(crops, width), dim=1)
    patches = PatchEmbeddings(rows, torch.randint(crops, (channels, 20)), torch.arange(channels))
    known = {name: np.zeros(channels, dtype=np.float32) for name in ("max_activation", "selectivity")}
    known |= {name: np.zeros(channels, dtype=bool) for name in ("dead", "unselective")}
    background = Background(rows[:1000], None)
    live = counted(
        lambda: evaluate(patches, None, None, background, config, CPU, Progress(False), keep_draws=1000, **known)
    ).live_bytes
    layers = (LayerSize(name="x", channels=channels, width=channels, positions=1),)
    work = replace(WORK, layers=layers, config=config, embedding_width=width, concepts=0, classes=0)
    size = Sizes(images=10**4, workers=1, crops=crops, kept=crops, products=False)
    told = scoring_bytes(work, size)
    assert host_bytes(work, size) >= told + listing_bytes(work, 10**4)
    assert live < told < 4 * live  # the formula also has the embeddings that wait, boxes and places


@pytest.mark.parametrize("alike", [0.0, 1.0])
def test_a_sample_tells_how_many_distinct_crops_more_images_have(alike):
    """Channels with something in common choose the same images more often; the sample sees that."""
    rng = np.random.default_rng(0)
    total, some, channels, top_k = 8000, 500, 60, 40
    common = rng.normal(size=(total, 1))
    values = rng.normal(size=(total, channels)) + alike * common

    def top(rows):
        return np.argsort(-values[:rows], axis=0)[:top_k].T

    image, rank = top(some), np.broadcast_to(np.arange(top_k), (channels, top_k))
    curve = distinct_curve(image.ravel(), np.zeros((image.size, 4)), rank.ravel(), some)
    for images in (500, 1000, 3000, 8000):
        truth = len(np.unique(top(images)))
        assert distinct_crops_of(curve, top_k, images) == pytest.approx(truth, rel=0.1)
    assert len(np.unique(top(8000))) < 0.92 * channels * top_k  # there is something to tell
    far = [distinct_crops_of(curve, top_k, images) for images in (3 * 10**4, 10**5, 10**6)]
    assert curve[0][1] * top_k / curve[0][0] <= far[0] < far[1] < far[2]  # whoever asks knows how many places there are


def test_boxes_tell_crops_of_one_image_apart():
    image, rank = np.array([3, 3, 3, 5]), np.array([0, 0, 1, 1])
    box = np.array([[0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 1, 1]], dtype=float)
    curve = distinct_curve(image, box, rank, 10)
    assert curve == ((0.1, 0.2), (0.2, 0.3))
    assert distinct_crops_of(curve, 1, 10) == 2
    assert distinct_crops_of(((0.1, 0.2),), 1, 1000) == 2  # a single point: as many for each share
    assert math.isclose(distinct_crops_of(curve, 4, 10), 3 * (1.5**1), rel_tol=0.2)
