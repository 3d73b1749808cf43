"""What maps cost: seconds and peak memory of every function at the size of a whole genome: `make bench-maps`.

Each case is a process of its own; the seconds are of the function alone, its inputs made beforehand, compiled code loaded
within them.  Beside recall and TVN the same written plainly (numpy's full matrix, sorted; scikit-learn and scipy) at a smaller
size, in the same run, since only ratios on one machine count.  Aims on two cores: recall of 17,000 genes x 128 on three
annotations under 6 s and 2 GB without bootstrap and under 20 s with 1,000 draws; TVN of 200,000 wells x 384 under 60 s.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

NUM_GENES, DIM = 17_000, 128
ANNOTATIONS = {"HuMAP": 58_538, "Reactome": 18_565, "StringDB": 58_059}  # unique pairs of the published files
PLATE, CONTROLS = 1_380, 100  # wells of a plate, controls among them


def genes(num: int) -> list[str]:
    return [f"GENE{number:05d}" for number in range(num)]


def random_map(num: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num, dim))


def annotations(labels: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Random pairs, as many as the published files have, fewer in a smaller map."""
    generator, share = np.random.default_rng(1), min(1.0, len(labels) / NUM_GENES)
    rows = {name: generator.integers(0, len(labels), (int(num * share), 2)) for name, num in ANNOTATIONS.items()}
    return {name: [(labels[i], labels[j]) for i, j in pairs] for name, pairs in rows.items()}


def wells(num: int, dim: int, file: Path | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Features f32[num, dim] (in `file`, mapped, where one is given), plates, controls, genes."""
    generator = np.random.default_rng(2)
    features = (
        np.empty((num, dim), np.float32)
        if file is None
        else np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(num, dim))
    )
    for start in range(0, num, PLATE):
        piece = generator.standard_normal((min(PLATE, num - start), dim), dtype=np.float32)
        features[start : start + PLATE] = piece * generator.uniform(0.5, 2.0, dim) + 3.0 * generator.standard_normal(
            dim
        )
    plate = np.arange(num) // PLATE
    control = np.arange(num) % PLATE < CONTROLS
    labels = [f"GENE{number:05d}" for number in generator.integers(0, NUM_GENES, num)]
    return features, np.array([f"plate{number:05d}" for number in plate]), control, labels


def recall(num: int, bootstrap: int) -> Callable[[], object]:
    from phenomhpc.maps import relationship_recalls

    labels = genes(num)
    features, known = random_map(num), annotations(labels)
    return lambda: relationship_recalls(features, labels, known, bootstrap=bootstrap)


def recall_plain(num: int) -> Callable[[], object]:
    """All cosines, sorted; every known pair ranked."""
    labels = genes(num)
    features, known = random_map(num), annotations(labels)

    def score() -> list[float]:
        row = {name: number for number, name in enumerate(labels)}
        unit = features / np.linalg.norm(features, axis=1)[:, None]
        cosines = unit @ unit.T
        null = np.sort(cosines[np.triu_indices(num, 1)])
        recalls = []
        for pairs in known.values():
            unique = {tuple(sorted(pair)) for pair in pairs if pair[0] != pair[1]}
            queries = np.array([cosines[row[a], row[b]] for a, b in unique])
            for lo, hi in ((0.05, 0.95), (0.1, 0.9)):
                left = np.searchsorted(null, queries, "left") / len(null)
                right = np.searchsorted(null, queries, "right") / len(null)
                recalls.append(float(np.mean((right <= lo) | (left >= hi))))
        return recalls

    return score


def tvn_ours(num: int, dim: int) -> Callable[[], object]:
    from phenomhpc.maps import tvn

    features, plate, control, _ = wells(num, dim)
    return lambda: tvn(features, plate, control)


def tvn_plain(num: int, dim: int) -> Callable[[], object]:
    """The published steps with scikit-learn and scipy."""
    from scipy.linalg import fractional_matrix_power
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    features, plate, control, _ = wells(num, dim)

    def align() -> np.ndarray:
        out = StandardScaler().fit(features[control]).transform(features.astype(np.float64))
        out = PCA(svd_solver="full").fit(out[control]).transform(out)
        out = StandardScaler().fit(out[control]).transform(out)
        for name in np.unique(plate):
            rows = plate == name
            covariance = np.cov(out[rows & control], rowvar=False, ddof=1) + 0.5 * np.eye(out.shape[1])
            out[rows] = out[rows] @ fractional_matrix_power(covariance, -0.5).real
        return out

    return align


def mapped(method: str, num: int, dim: int, folder: Path) -> Callable[[], object]:
    """From a mapped file to the map, in blocks."""
    from phenomhpc.maps import aggregate_blocks, fit_alignment

    features, plate, control, labels = wells(num, dim, folder / "features.npy")

    def align() -> object:
        alignment = fit_alignment(method, features, plate, control)
        return aggregate_blocks(alignment.blocks(features, plate, control), labels, control)

    return align


def compare(num: int) -> Callable[[], object]:
    from phenomhpc.maps import compare_recalls

    labels = genes(num)
    first, other, known = random_map(num), random_map(num, seed=9), annotations(labels)
    return lambda: compare_recalls(first, labels, other, labels, known)


def replicates(what: str, num: int) -> Callable[[], object]:
    """6 wells of every gene, 1,000 genes silent, 4,000 controls."""
    from phenomhpc.maps import perturbation_consistency, perturbation_magnitude

    labels = [name for name in genes(num) for _ in range(6)]
    features, silent = random_map(len(labels) + 4000), genes(num)[-1000:]
    if what == "consistency":
        return lambda: perturbation_consistency(features[: len(labels)], labels, silent)
    control = np.arange(len(features)) >= len(labels)
    return lambda: perturbation_magnitude(features, [*labels, *["control"] * 4000], control, silent)


def complexes(num: int) -> Callable[[], object]:
    from phenomhpc.maps import complex_coherence

    labels, generator = genes(num), np.random.default_rng(3)
    features = random_map(num)
    members = {
        f"complex{n:03d}": [labels[i] for i in generator.choice(num, 10 + n % 40, replace=False)] for n in range(300)
    }
    return lambda: complex_coherence(features, labels, members)


def proximity(num: int) -> Callable[[], object]:
    from phenomhpc.maps import proximity_bias

    labels = genes(num)
    features, arms = random_map(num), {name: f"{row % 24}{'pq'[row % 48 // 24]}" for row, name in enumerate(labels)}
    return lambda: proximity_bias(features, labels, arms)


def retrieval(num: int) -> Callable[[], object]:
    from phenomhpc.maps import replicate_retrieval

    labels = [f"p{row // 4}" for row in range(num)]
    features = random_map(num)
    return lambda: replicate_retrieval(features, labels)


def compounds(num: int) -> Callable[[], object]:
    """1,674 compounds at 8 doses."""
    from phenomhpc.maps import compound_gene_retrieval

    labels, names = genes(num), [f"c{row // 8}" for row in range(1674 * 8)]
    drugs, features = random_map(len(names), seed=5), random_map(num)
    targets = [(f"c{n}", labels[(7 * n + step) % num]) for n in range(1674) for step in range(3)]
    return lambda: compound_gene_retrieval(drugs, names, features, labels, targets)


Case = Callable[[Path], Callable[[], object]]

CASES: dict[str, Case] = {
    f"recall of {NUM_GENES:,} genes x {DIM}, 3 annotations": lambda _: recall(NUM_GENES, 0),
    "the same, 1,000 bootstrap draws": lambda _: recall(NUM_GENES, 1000),
    "recall of 5,000 genes": lambda _: recall(5_000, 0),
    "recall of 5,000 genes, plainly": lambda _: recall_plain(5_000),
    "two maps compared, 1,000 draws": lambda _: compare(NUM_GENES),
    "tvn of 200,000 wells x 384": lambda _: tvn_ours(200_000, 384),
    "tvn of 6,900 wells x 384": lambda _: tvn_ours(5 * PLATE, 384),
    "tvn of 6,900 wells x 384, plainly": lambda _: tvn_plain(5 * PLATE, 384),
    "mapped file to map, tvn, 27,600 wells x 1,664": lambda folder: mapped("tvn", 20 * PLATE, 1664, folder),
    "mapped file to map, tvn, 55,200 wells x 1,664": lambda folder: mapped("tvn", 40 * PLATE, 1664, folder),
    "mapped file to map, coral, 27,600 wells x 1,664": lambda folder: mapped("coral", 20 * PLATE, 1664, folder),
    "consistency of 17,000 x 6 wells": lambda _: replicates("consistency", NUM_GENES),
    "magnitude of 17,000 x 6 wells": lambda _: replicates("magnitude", NUM_GENES),
    "coherence of 300 complexes": lambda _: complexes(NUM_GENES),
    "proximity bias of 48 arms": lambda _: proximity(NUM_GENES),
    "replicate retrieval of 20,000 profiles": lambda _: retrieval(20_000),
    "compound-gene retrieval, 1,674 compounds x 8 doses": lambda _: compounds(NUM_GENES),
}


def own_mb() -> float:
    """Memory of this process that is no file's, now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1000


@contextmanager
def highest(value: Callable[[], float]) -> Any:
    """[the highest of a value looked at 50 times a second]."""
    seen, done = [value()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            seen[0] = max(seen[0], value())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield seen
    done.set()
    thread.join()


def measure(case: Case) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        run = case(Path(folder))
        inputs, wall, cpu = own_mb(), time.perf_counter(), time.process_time()
        with highest(own_mb) as seen:
            run()
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {**took, "inputs": inputs, "own": max(seen[0], inputs), "peak": peak}


def main() -> None:
    """Print a table, a case a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(CASES[arguments.case])))
        return
    # Compiled before anything is measured.
    from phenomhpc.maps import proximity_loops, retrieval_loops, tails_loops  # noqa: F401

    print(
        "| what | wall s | CPU s | inputs MB | own memory, peak MB | with mapped files, peak MB |\n|---|---|---|---|---|---|"
    )
    for name in CASES:
        if arguments.only not in name:
            continue
        child = [sys.executable, "-m", "tests.bench.bench_maps", "--case", name]
        result = json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE).stdout)
        print(
            f"| {name} | {result['wall']:.2f} | {result['cpu']:.2f} | {result['inputs']:,.0f} | {result['own']:,.0f} | "
            f"{result['peak']:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
