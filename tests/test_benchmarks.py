"""The benchmarks' own machinery: no row is lost, numbers are what they say, and README and figures follow from the rows."""

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import checks
import device
import harness
import peers
import plot
import scaling
import table
import workloads
from harness import Measured, Rates, Row, Work
from workloads import Case

BENCHMARKS = Path(harness.__file__).parent
CPU = torch.device("cpu")
ROW = Row(
    run="2026-01-01T00:00:00Z", commit="1234567", device="A processor", threads=2, versions="python 3; torch 2",
    product_gflops=80.0, operation_gflops=70.0, copy_gb=10.0, backend="numba", op="rotation_null", peer="", varies="", value=0,
    rotation="marginal", channels=64, draws=100, samples=100, width=512, k_max=6, n_init=4, repeats=3,
    time_ms_p20=900.0, time_ms_p50=1000.0, time_ms_p80=1100.0, draws_per_s=6400.0, peak_mem_mib=30.0,
    floor_ms=250.0, percent_of_floor=25.0, silhouette=0.25, inertia_ratio=math.nan,
)  # fmt: skip


def rows_of_a_run() -> list[Row]:
    """A series over draws, one over channels, and a peer that is 100 times slower."""
    draws = [
        replace(ROW, varies="draws", value=n, draws=n, time_ms_p50=5.0 * n, peak_mem_mib=30.0)
        for n in (100, 1000, 10_000)
    ]
    channels = [replace(ROW, varies="channels", value=n, channels=n, time_ms_p50=3.0 * n) for n in (64, 256)]
    return [ROW, replace(ROW, peer="another", draws_per_s=64.0), *draws, *channels]


# ---- the file


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "rows.csv"
    other = replace(ROW, device='A "quoted", name', silhouette=math.nan, inertia_ratio=1.0)
    harness.append(path, [ROW])
    harness.append(path, [other])
    found = harness.read(path)
    assert [repr(row) for row in found] == [repr(ROW), repr(other)]


def test_writers_at_the_same_time_lose_no_row(tmp_path):
    path = tmp_path / "rows.csv"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: harness.append(path, [replace(ROW, value=n)]), range(40)))
    assert sorted(row.value for row in harness.read(path)) == list(range(40))
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]


def test_a_write_that_fails_leaves_the_rows_there_are(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    harness.append(path, [ROW])
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        harness.append(path, [ROW])
    assert len(harness.read(path)) == 1


def test_a_file_with_other_columns_is_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("run,commit\n1,2\n")
    with pytest.raises(ValueError, match="other columns"):
        harness.append(path, [ROW])
    assert path.read_text() == "run,commit\n1,2\n"


def test_the_latest_run_is_the_last_to_start():
    later = replace(ROW, run="2026-01-02T00:00:00Z")
    assert harness.latest([ROW, later, ROW]) == [later]


# ---- measuring


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_quantiles_are_percentiles(count):
    times = np.random.default_rng(count).exponential(size=count).tolist()
    np.testing.assert_allclose(harness.quantiles(times), np.percentile(times, (20, 50, 80)))


def test_a_row_tells_rate_and_share_of_the_floor():
    row = harness.with_times(ROW, Measured([10.0, 20.0, 30.0], 5.0), draws=100, floor_ms=4.0)
    assert (row.time_ms_p50, row.draws_per_s, row.percent_of_floor, row.repeats, row.peak_mem_mib) == (
        20.0,
        5000.0,
        20.0,
        3,
        5.0,
    )


def test_a_run_beyond_the_limit_is_not_repeated():
    calls = []
    assert len(harness.times_ms(lambda: calls.append(sum(range(10**5))), CPU, repeats=4, seconds=1e-9)) == 1
    assert len(harness.times_ms(lambda: calls.append(0), CPU, repeats=4, seconds=10)) == 4
    assert len(calls) == 5


def test_peak_memory_is_what_a_run_takes_at_its_height():
    """In a process of its own, as the command has freed memory kept by the one that it ran in."""
    program = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import harness, torch\n"
        "def run():\n"
        "    for _ in range(3):\n"
        "        torch.ones(2**24)  # 64 MiB, freed before the next\n"
        "torch.ones(2**26)  # an earlier peak, which is none of the run's\n"
        "print(harness.measured(run, torch.device('cpu'), repeats=2, seconds=5).peak_mem_mib)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert 60 < float(run.stdout) < 100


def test_the_floor_is_the_slower_of_arithmetic_and_copies():
    rates = Rates(products=1e12, operations=1e11, bytes=1e9)
    assert rates.floor_ms(Work(10**9, 10**9, 10**3)) == pytest.approx(11)
    assert rates.floor_ms(Work(10**9, 10**9, 10**9)) == pytest.approx(1000)


# ---- work and data


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("op", [*workloads.OPS, "kmeans"])
def test_work_grows_with_channels_and_draws_alike(op, kind):
    """Ten times the pairs are at most ten times the work, and nearly ten times where nothing is shared."""
    own = torch.device(kind)
    small, large = (sum(workloads.work(Case(op=op, channels=n, draws=1000), own)[:2]) for n in (1000, 10_000))
    assert 9.4 < large / small <= 10


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_all_nulls_are_more_work_than_each_of_them_together(kind):
    total, *parts = (
        sum(workloads.work(Case(op=op), torch.device(kind))[:2])
        for op in ("score_embeddings", "rotation_null", "permutation_null", "text_null")
    )
    assert sum(parts) < total < 2 * sum(parts)


def test_a_clustering_of_two_samples_by_hand():
    from psi_fast_kernels.cluster import cost

    # k = 2: 2 * 2 * 2 operations per column, 2 columns, for one silhouette and STEPS steps
    assert cost.product_flops(1, 2, 2, 1) == 16 * (cost.STEPS + 1)
    assert cost.bytes_moved(3, 2) == 3 * (4 * 4 + 4 + 16 + 16 + 8)


def test_lloyd_takes_as_many_steps_as_the_cost_says():
    from psi_fast_kernels.cluster import cost, reference

    gram = workloads.grams(workloads.embeddings(32, 100, 512))
    numbers = torch.rand(32, 2, 6, 3, generator=torch.Generator().manual_seed(0))
    starts = reference.plus_plus(gram, numbers)
    steps = []
    for k in range(2, 7):
        labels, moving = starts[:, :, :k].max(2).indices, torch.ones(32, 2, dtype=torch.bool)
        while moving.any():
            steps.append(moving.float().mean())
            new = reference._nearest_centre(reference._sums(gram, labels, k))
            moving &= (new != labels).any(-1)
            labels = new
    assert cost.STEPS / 1.5 < float(sum(steps)) / 5 < cost.STEPS * 1.5


def test_channels_do_not_depend_on_how_many_there_are():
    few, many = (workloads.embeddings(count, 10, 8) for count in (3, 300))
    torch.testing.assert_close(few, many[:3], rtol=0, atol=0)
    torch.testing.assert_close(many.norm(dim=-1), torch.ones(300, 10))


@pytest.mark.parametrize("op", workloads.OPS)
def test_every_workload_runs(op):
    value = workloads.runner(
        Case(op=op, channels=3, draws=4, samples=20, width=12, k_max=3, n_init=1, concepts=5), CPU
    )()
    assert math.isnan(value) == (op in ("permutation_null", "text_null"))


# ---- series


def test_slope_of_a_power_law():
    assert scaling.slope([(x, 7 * x**1.3) for x in (1, 10, 1000)]) == pytest.approx(1.3)
    assert math.isnan(scaling.slope([(1, 2)]))


def test_time_slope_leaves_short_runs_out():
    rows = [replace(ROW, varies="draws", value=n, time_ms_p50=max(90.0, float(n))) for n in (10, 90, 900, 9000)]
    assert scaling.time_slope(rows, "rotation_null", "draws") == pytest.approx(1)
    assert math.isnan(scaling.time_slope(rows, "rotation_null", "channels"))


def test_a_series_ends_before_the_point_that_would_take_too_long(monkeypatch, capsys):
    measured = []

    def fake(case: Case, *_, **__) -> Measured:
        measured.append(case.draws)
        return Measured([case.draws * 1.0], 1.0)  # a millisecond each

    monkeypatch.setattr(scaling, "measure", fake)
    found = [case.draws for case, _ in scaling.series("rotation_null", "draws", CPU, 1, seconds=5, points=99)]
    assert found == measured == [100, 300, 1000, 3000]
    assert "draws = 10000, 30000, 100000 left out" in capsys.readouterr().out


# ---- peers


@pytest.fixture(scope="module")
def planted() -> torch.Tensor:
    """Four problems of three clusters far apart."""
    rng = np.random.default_rng(0)
    centres = np.eye(8)[np.arange(24) % 3]
    return torch.nn.functional.normalize(torch.from_numpy(centres + 0.05 * rng.normal(size=(4, 24, 8))).float(), dim=-1)


def test_peers_find_planted_clusters_as_well_as_the_reference(planted):
    lowest = peers.lowest_inertia(planted, 4)
    with peers.processes(2) as pool:
        fits = {"naive": peers.naive_torch, "scikit-learn": lambda *given: peers.scikit_learn(pool, *given)}
        for fit in fits.values():
            value, labels, ks = peers.cluster_with(fit, planted, 4, 3)
            assert ks.tolist() == [3] * 4
            assert value.min() > 0.9
            assert peers.inertia_ratio(planted, labels, ks, lowest) == pytest.approx(1, abs=1e-3)
        peers.scikit_learn_loop(pool, planted, planted[0], 1, 3, 1)
    own = peers.scikit_learn_silhouette(planted[0].double(), 4, 3)
    assert own == pytest.approx(float(value[0]), abs=1e-5)


def test_a_worse_clustering_has_a_larger_ratio(planted):
    mixed = torch.arange(24).expand(4, -1) // 8  # eight neighbours hold all three clusters
    assert peers.inertia_ratio(planted, mixed, torch.full((4,), 3), peers.lowest_inertia(planted, 3)) > 10


def test_gpu_peers_are_called_as_their_interfaces_say(planted, monkeypatch):
    """Stand-ins with the libraries' signatures (flash-kmeans 0.3, fastkmeans 0.5) return naive clusterings."""

    def batch_kmeans_euclid(x, n_clusters, max_iters=100, tol=0.0, init_centroids=None, verbose=False):
        return peers.naive_torch(x.float(), n_clusters, 1)[:, 0].int(), None, 3

    class FastKMeans:
        def __init__(self, d, k, niter=25, tol=1e-8, gpu=True, seed=0):
            self.k, self.d = k, d

        def fit_predict(self, data):
            assert data.shape[1] == self.d
            return peers.naive_torch(torch.from_numpy(data)[None], self.k, 1)[0, 0].numpy()

    monkeypatch.setitem(sys.modules, "flash_kmeans", SimpleNamespace(batch_kmeans_Euclid=batch_kmeans_euclid))
    monkeypatch.setitem(sys.modules, "fastkmeans", SimpleNamespace(FastKMeans=FastKMeans))
    for fit in (peers.flash_kmeans, peers.fastkmeans):
        assert fit(planted, 3, 2).shape == (4, 2, 24)
        assert peers.cluster_with(fit, planted, 4, 3)[2].tolist() == [3] * 4


# ---- table and figures


def test_the_readme_shows_the_table_of_the_results():
    text = table.README.read_text(encoding="utf-8")
    shown = text.split(table.BEGIN)[1].split(table.END)[0].strip()
    assert shown == table.markdown(harness.result_files()).strip()


def test_the_table_tells_ratios_and_growth(tmp_path):
    path = tmp_path / "rows.csv"
    harness.append(path, [replace(ROW, run="2025-01-01T00:00:00Z", commit="older")])
    harness.append(path, rows_of_a_run())
    text = table.markdown([path])
    assert "older" not in text
    assert "| another | C=64, B=100, n_init=4, marginal |" in text
    assert "| 100 x |" in text
    assert "(docs/scaling-rows.svg)" in text
    assert (
        "from 100 to 10,000 draws (runs of 100 ms and more) time grows with power 1.00, peak memory lies within 30 to 30 MiB"
        in text
    )
    assert "from 64 to 256 channels (runs of 100 ms and more) time grows with power 1.00" in text


def test_a_peer_is_compared_with_the_same_settings_only():
    peer = replace(ROW, peer="another", draws_per_s=64.0)
    faster = [replace(ROW, n_init=1, draws_per_s=1e6), replace(ROW, rotation="tangent", draws_per_s=1e6)]
    assert table.speed_up(peer, [ROW, *faster, peer]) == pytest.approx(100)


def test_figures_name_device_and_commit():
    for draw in (plot.scaling, plot.peers):
        rows = [*rows_of_a_run(), replace(ROW, op="kmeans"), replace(ROW, op="kmeans", peer="another")]
        rows += [replace(ROW, op="score_embeddings"), replace(ROW, op="score_embeddings", peer="another")]
        figure = draw(rows)
        assert "A processor, 2 threads, commit 1234567" in figure.get_suptitle()
        assert any(axes.has_data() for axes in figure.axes)
        plot.plt.close(figure)


# ---- checks on a device


def test_a_check_fails_beyond_its_limit_and_on_nan():
    assert checks.Check("x", 1e-3, "mean S").ok
    assert not checks.Check("x", 1.1e-3, "mean S").ok
    assert not checks.Check("x", math.nan, "mean S").ok


def test_fresh_memory_is_poisoned_for_a_check_only():
    assert checks.poisoned(torch.empty, 1000).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_nan_and_shape_differ():
    nan = torch.tensor([math.nan, 1.0])
    assert checks.differing(nan, nan.clone()) == 0
    assert checks.differing(nan, torch.tensor([0.0, 1.0])) == 1
    assert checks.differing(nan, torch.zeros(3)) == math.inf
    assert math.isnan(checks.largest(nan, torch.zeros(2)))
    assert checks.share(nan, torch.ones(2), "S differs") == 0.5


@pytest.mark.parametrize(("program", "outcome"), [("pass", "ok"), ("raise SystemExit(3)", "FAILED with status 3")])
def test_a_part_tells_how_it_ended(program, outcome, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", program])
    assert device.part("ops", 30).startswith(outcome)


@pytest.mark.parametrize("op", ["philox", "permutation_null", "sphere_null", "topk_merge"])
def test_the_checks_of_a_device_pass_in_the_interpreter(op, monkeypatch):
    pytest.importorskip("triton", reason="Triton has no build for this platform")
    program = [sys.executable, str(Path(device.__file__)), "--tiny"]
    monkeypatch.setattr(sys, "orig_argv", program)
    assert device.part(op, 300).startswith("ok")


def test_a_part_that_hangs_is_stopped(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", "import time; time.sleep(60)"])
    assert device.part("ops", 0.5) == "stopped after 0 s"


def test_the_summary_holds_the_targets(tmp_path):
    out = tmp_path / "rows.csv"
    target = replace(
        ROW, op="score_embeddings", channels=2048, draws=1000, n_init=1, time_ms_p50=1500.0, peak_mem_mib=900.0
    )
    kmeans = [replace(ROW, op="kmeans"), replace(ROW, op="kmeans", peer="flash-kmeans", draws_per_s=320.0)]
    harness.append(out, [target, *kmeans, replace(target, run="another run", time_ms_p50=9000.0)])
    text = "\n".join(device.summary({"philox": "ok, 3 s", "ops": "stopped after 5 s"}, out, ROW.run))
    assert "ops               stopped after 5 s" in text
    assert "target: n_init=1 in 2 s and 4096 MiB: 1.50 s, 900 MiB" in text
    assert "best other library, flash-kmeans: 20.0 x" in text
    assert "9.00 s" not in text


def test_benchmarks_are_collected_when_asked_for_and_not_otherwise():
    root = Path(__file__).resolve().parents[1]
    settings = (root / "pyproject.toml").read_text(encoding="utf-8")
    assert 'testpaths = ["tests"]' in settings
    command = [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "--benchmark-only"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=120)
    collected = {line.split(":")[0] for line in run.stdout.splitlines() if line.startswith("benchmarks/")}
    assert collected == {f"benchmarks/{file.name}" for file in (root / "benchmarks").glob("bench_*.py")}
