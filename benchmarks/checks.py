"""Every Triton op against plain torch in float32 and float64 on this device; each check is a number and its limit.

python benchmarks/checks.py                       # all, on a GPU
TRITON_INTERPRET=1 python benchmarks/checks.py --tiny   # in Triton's interpreter, at sizes it can do
"""

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from harness import say
from torch import Tensor
from workloads import concepts, embeddings, grams

from psi_fast_kernels import philox
from psi_fast_kernels.cluster import cluster, silhouette
from psi_fast_kernels.permutation_null import permutation_null
from psi_fast_kernels.rotation_null import ROTATIONS, Tangent, rotation_null, rotation_pool, sphere_null, tangent_space
from psi_fast_kernels.text_null import text_rotation_null, text_shuffle_null
from psi_fast_kernels.topk_merge import empty_top_k, topk_merge

SEED = 2**40 + 7
LIMITS = {
    "bits": 0.0,  # values that differ
    "normal": 1e-12,
    "mean S": 1e-3,  # over the draws of a channel, the largest; over all draws where a channel has few
    "S differs": 0.02,  # share of problems whose S differs by more than 1e-4: rounding may lead to another optimum
    "S of labels": 1e-5,  # S from the labels given, in float64
    "NMI": 1e-12,
    "D": 1e-5,
    "D differs": 0.005,  # share of draws that took another of two equally near concepts
}
CLOSE = {"S differs": 1e-4, "D differs": 1e-5}


class Check(NamedTuple):
    """One comparison: what, the number found, and the kind whose limit it must keep."""

    what: str
    found: float
    kind: str

    @property
    def ok(self) -> bool:
        """Whether the number keeps its limit; nan does not."""
        return self.found <= LIMITS[self.kind]


class Sizes(NamedTuple):
    """Channels and draws of the usual shape, its samples and width, and other shapes (samples, k_max, n_init)."""

    channels: int
    draws: int
    samples: int
    width: int
    awkward: tuple[tuple[int, int, int], ...]


REAL = Sizes(64, 64, 100, 512, ((4, 2, 1), (41, 6, 5), (97, 16, 3), (128, 6, 4), (129, 6, 2), (257, 3, 2)))
TINY = Sizes(2, 3, 12, 16, ((4, 2, 1), (17, 3, 2)))


def poisoned(work: Callable, *given, **named):
    """What `work` returns of its arguments while torch fills every fresh tensor with nan, or with the largest integer."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        return work(*given, **named)
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def differing(a: Tensor, b: Tensor) -> float:
    """How many values differ, nan being equal to nan."""
    if a.shape != b.shape:
        return float("inf")
    return float(((a != b) & ~((a != a) & (b != b))).sum())


def largest(a: Tensor, b: Tensor) -> float:
    """Largest difference; nan where either holds one."""
    return float((a.double() - b.double()).abs().max())


def share(a: Tensor, b: Tensor, kind: str) -> float:
    """Share of values further apart than CLOSE, nan included."""
    return float((~((a.double() - b.double()).abs() <= CLOSE[kind])).double().mean())


# ---- ops


def check_philox(device: torch.device, sizes: Sizes) -> Iterator[Check]:
    channel = torch.arange(sizes.channels, device=device)[:, None] + 2**31
    draw = torch.arange(sizes.draws, device=device)[None, :]
    for name in ("uint32", "uniform", "normal", "integers", "permutation"):
        more = (1000,) if name == "integers" else ()
        for count in (1, 4, sizes.samples + 3):
            found, expected = (
                getattr(philox, name)(SEED, 3, channel, draw, count, *more, backend=backend)
                for backend in ("triton", "torch")
            )
            kind = "normal" if name == "normal" else "bits"
            yield Check(
                f"{name}, {count} each",
                largest(found, expected) if kind == "normal" else differing(found, expected),
                kind,
            )


def check_cluster(device: torch.device, sizes: Sizes) -> Iterator[Check]:
    problems = sizes.channels * sizes.draws
    for samples, k_max, n_init in ((sizes.samples, min(6, sizes.samples), 4), *sizes.awkward):
        count = problems if samples == sizes.samples else min(problems, 64)
        gram = grams(embeddings(count, samples, sizes.width, device=device))
        gram[-1] = 1  # all samples are one point
        given = _starts(k_max, n_init, count, device)
        found = cluster(gram, **given, backend="triton")
        name = f"K={samples}, k=2..{k_max}, n_init={n_init}"
        for dtype in (torch.float32, torch.float64):
            expected = cluster(gram.to(dtype), **given, backend="torch").silhouette
            yield Check(
                f"{name} against {dtype}",
                abs(float(found.silhouette.double().mean() - expected.double().mean())),
                "mean S",
            )
            yield Check(f"{name} against {dtype}", share(found.silhouette, expected, "S differs"), "S differs")
        several = found.k > 1
        value = silhouette(gram[several].double(), found.labels[several], k_max)
        yield Check(f"{name}: labels belong to S", largest(found.silhouette[several], value), "S of labels")
        again = poisoned(cluster, gram, **given, backend="triton")
        yield Check(
            f"{name}: fresh memory poisoned", sum(differing(a, b) for a, b in zip(found, again, strict=True)), "bits"
        )
        half = count // 2
        parts = [
            cluster(gram[part], **_starts(k_max, n_init, count, device, part), backend="triton")
            for part in (slice(0, half), slice(half, count))
        ]
        yield Check(
            f"{name}: in two chunks",
            differing(torch.cat([part.silhouette for part in parts]), found.silhouette),
            "bits",
        )


def _starts(k_max: int, n_init: int, count: int, device: torch.device, part: slice = slice(None)) -> dict:
    ids = torch.arange(count, device=device)[part]
    return {"k_max": k_max, "n_init": n_init, "seed": SEED, "stream": 2, "channel": ids + 5, "draw": 3 * ids}


def check_rotation_null(device: torch.device, sizes: Sizes) -> Iterator[Check]:
    shapes = [(sizes.samples, min(6, sizes.samples), 4, rotation) for rotation in ROTATIONS]
    shapes += [(*shape, "marginal") for shape in sizes.awkward]
    for samples, k_max, n_init, rotation in shapes:
        usual = samples == sizes.samples
        channels, draws = (sizes.channels, sizes.draws) if usual else (min(sizes.channels, 16), min(sizes.draws, 32))
        gram = grams(embeddings(channels, samples, sizes.width, device=device))
        given = {"rotation": rotation, "k_max": k_max, "n_init": n_init, "seed": SEED}
        data = [
            (
                tangent_space(gram.to(dtype), sizes.width),
                _pool(samples, sizes.width, rotation, range(draws), dtype, device),
            )
            for dtype in (torch.float32, torch.float64)
        ]
        channel = torch.arange(channels, device=device) + 7
        tangent, pool = data[0]

        def drawn(tangent: Tangent, pool, channel: Tensor, given=given) -> Tensor:
            return rotation_null(tangent, pool, **given, channel=channel, backend="triton")

        found = drawn(tangent, pool, channel)
        name = f"{rotation}, K={samples}, k=2..{k_max}, n_init={n_init}"
        for own in data:
            expected = rotation_null(*own, **given, channel=channel, backend="torch")
            against = f"{name} against {expected.dtype}"
            axis = 1 if usual else (0, 1)  # with few draws one other optimum moves a channel's mean far
            moved = (found.double().mean(axis) - expected.double().mean(axis)).abs().max()
            yield Check(against, float(moved), "mean S")
            yield Check(against, share(found, expected, "S differs"), "S differs")
        yield Check(f"{name}: fresh memory poisoned", differing(found, poisoned(drawn, tangent, pool, channel)), "bits")
        half, cut = channels // 2, draws // 2
        rows = [drawn(tangent.rows(part), pool, channel[part]) for part in (slice(0, half), slice(half, channels))]
        yield Check(f"{name}: channels in two chunks", differing(torch.cat(rows), found), "bits")
        halves = [
            _pool(samples, sizes.width, rotation, part, torch.float32, device)
            for part in (range(cut), range(cut, draws))
        ]
        columns = [drawn(tangent, own, channel) for own in halves]
        # a pool comes from a library's QR, which may round by batch; a draw must still be the same draw
        yield Check(f"{name}: draws in two chunks", share(torch.cat(columns, dim=1), found, "S differs"), "S differs")


def _pool(samples: int, width: int, rotation: str, draws: range, dtype: torch.dtype, device: torch.device):
    return rotation_pool(samples, width, rotation=rotation, draws=draws, seed=SEED, dtype=dtype, device=device)


def check_sphere_null(device: torch.device, sizes: Sizes) -> Iterator[Check]:
    given = {"draws": range(4 * sizes.draws), "k_max": 3, "n_init": 2, "seed": SEED, "device": device}
    found = sphere_null(sizes.samples, sizes.width, **given, backend="triton")
    for dtype in (torch.float32, torch.float64):
        expected = sphere_null(sizes.samples, sizes.width, **given, dtype=dtype, backend="torch")
        yield Check(f"against {dtype}", abs(float(found.double().mean() - expected.double().mean())), "mean S")
        yield Check(f"against {dtype}", share(found, expected, "S differs"), "S differs")


def check_permutation_null(device: torch.device, sizes: Sizes) -> Iterator[Check]:
    for samples in (sizes.samples, *(shape[0] for shape in sizes.awkward), 4 * sizes.samples + 213):
        generator = torch.Generator(device).manual_seed(samples)
        shape = (sizes.channels, samples)
        clusters = torch.randint(6, shape, generator=generator, device=device)
        labels = torch.randint(20, shape, generator=generator, device=device)
        clusters[0] = 0  # one cluster
        labels[-1] = torch.arange(samples, device=device)  # every class once
        channel = torch.arange(sizes.channels, device=device) + 2**31

        def drawn(backend: str, draws: range, clusters=clusters, labels=labels, channel=channel) -> Tensor:
            return permutation_null(clusters, labels, draws=draws, seed=SEED, channel=channel, backend=backend)

        draws = range(3, 3 + 4 * sizes.draws)
        found = drawn("triton", draws)
        yield Check(f"K={samples} against float64", largest(found, drawn("torch", draws)), "NMI")
        yield Check(f"K={samples}: fresh memory poisoned", differing(found, poisoned(drawn, "triton", draws)), "bits")
        parts = [drawn("triton", part) for part in (draws[:5], draws[5:])]
        yield Check(f"K={samples}: draws in two chunks", differing(torch.cat(parts, dim=1), found), "bits")


def check_text_null(device: torch.device, sizes: Sizes) -> Iterator[Check]:
    draws = range(3, 3 + sizes.draws)
    for k_max, count, width in ((6, 1000, sizes.width), (2, 1, 3), (16, 129, 97)):
        text = concepts(count, width, device=device)
        prototypes = embeddings(sizes.channels, k_max, width, device=device)
        channel = torch.arange(sizes.channels, device=device)
        k = 2 + channel % (k_max - 1)
        for row, used in zip(prototypes, k.tolist(), strict=True):
            row[used:] = 7.0  # ignored
        pool = torch.randint(count, (11,), device=device)
        other = concepts(count, 384, device=device)
        for kind, head in (("gap", None), ("pairwise", None), ("pairwise", other)):
            of = kind if head is None else f"{kind} of a head"
            for own in (None, pool):

                def shuffled(
                    backend: str,
                    dtype=torch.float32,
                    kind=kind,
                    head=head,
                    own=own,
                    given=(prototypes, k, text, channel),
                ) -> Tensor:
                    prototypes, k, text, channel = given
                    return text_shuffle_null(
                        prototypes.to(dtype), k, text.to(dtype), kind=kind, head=None if head is None else head.to(dtype),
                        pool=own, draws=draws, seed=SEED, channel=channel, backend=backend,
                    )  # fmt: skip

                found = shuffled("triton")
                name = f"shuffled {of}, P={count}, k_max={k_max}" + (", a pool" if own is not None else "")
                for dtype in (torch.float32, torch.float64):
                    yield Check(f"{name} against {dtype}", largest(found, shuffled("torch", dtype)), "D")
                again = poisoned(shuffled, "triton")
                yield Check(f"{name}: fresh memory poisoned", differing(found, again), "bits")

            def rotated(backend: str, dtype=torch.float32, kind=kind, head=head, given=(prototypes, k, text)) -> Tensor:
                prototypes, k, text = given
                return text_rotation_null(
                    prototypes.to(dtype), k, text.to(dtype), kind=kind, head=None if head is None else head.to(dtype),
                    draws=draws, seed=SEED, backend=backend,
                )  # fmt: skip

            found = rotated("triton")
            name = f"rotated {of}, P={count}, k_max={k_max}"
            for dtype in (torch.float32, torch.float64):
                yield Check(f"{name} against {dtype}", share(found, rotated("torch", dtype), "D differs"), "D differs")
            again = poisoned(rotated, "triton")
            yield Check(f"{name}: fresh memory poisoned", differing(found, again), "bits")


def check_topk_merge(device: torch.device, sizes: Sizes) -> Iterator[Check]:
    for images, channels, positions, k, per_image in (
        (sizes.draws, 8 * sizes.channels, 49, sizes.samples, 1), (7, 35, 50, 10, 5), (3, 130, 1, 0, 1), (5, 2, 112 * 112, 4, 2),
    ):  # fmt: skip
        generator = torch.Generator(device).manual_seed(images)
        for dtype in (torch.float32, torch.bfloat16):
            x = (
                torch.randn(2, images, channels, positions, generator=generator, device=device)
                .to(dtype)
                .round(decimals=1)
            )
            x[0, 0, 0, 0], x[1, -1, -1, 0] = float("nan"), float("-inf")

            def merged(backend: str, x=x, channels=channels, k=k, per_image=per_image) -> list[Tensor]:
                top = empty_top_k(channels, k, device)
                parts: list[Tensor] = []
                for i, batch in enumerate(x):
                    top, extremes = topk_merge(top, batch, i * len(batch), per_image=per_image, backend=backend)
                    parts += extremes
                return [*top, *parts]

            found, expected = merged("triton"), merged("torch")
            again = poisoned(merged, "triton")
            name = f"B={images}, C={channels}, P={positions}, K={k}, {per_image} per image, {dtype}"
            yield Check(name, sum(differing(a, b) for a, b in zip(found, expected, strict=True)), "bits")
            yield Check(
                f"{name}: fresh memory poisoned",
                sum(differing(a, b) for a, b in zip(found, again, strict=True)),
                "bits",
            )


CHECKS = {
    "philox": check_philox,
    "cluster": check_cluster,
    "rotation_null": check_rotation_null,
    "sphere_null": check_sphere_null,
    "permutation_null": check_permutation_null,
    "text_null": check_text_null,
    "topk_merge": check_topk_merge,
}


def failures(op: str, device: torch.device, *, tiny: bool) -> int:
    """Run the checks of one op, say each, and count those that fail."""
    failed = 0
    for check in CHECKS[op](device, TINY if tiny else REAL):
        failed += not check.ok
        outcome, limit = "ok  " if check.ok else "FAIL", LIMITS[check.kind]
        say(f"  {outcome} {op}: {check.what}: {check.kind} {check.found:.2g} (limit {limit:g})")
    return failed


def main() -> None:
    """Run the checks asked for; exit status 1 when one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", default=list(CHECKS), help="all by default")
    parser.add_argument("--tiny", action="store_true", help="sizes for Triton's interpreter")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    raise SystemExit(int(sum(failures(op, device, tiny=options.tiny) for op in options.ops) > 0))


if __name__ == "__main__":
    main()
