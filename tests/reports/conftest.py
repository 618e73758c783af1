"""A small brain with a planted gradient of layers, and reports of it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from dnnbrain_app.records import BrainPart, BrainSpace, EncodingScores, Mesh, Rdm, RsaScores, Unit
from dnnbrain_app.reports.facts import EncodingFacts, MethodsFacts, NetworkFacts, ResponseFacts, RsaFacts
from dnnbrain_app.reports.participant import (
    Design,
    NetworkReport,
    ParticipantReport,
    Provenance,
    RenderedReport,
    RunRow,
    UnitReport,
    render_participant,
)

LAYERS = tuple(f"blocks.{i}" for i in range(6))
REGIONS = ("V1", "VTC")
STIMULI = tuple(f"image{i:02d}.png" for i in range(12))


def make_sphere(offset: float, n: int = 40) -> Mesh:
    """An ellipsoid of the size of a hemisphere."""
    theta, phi = np.meshgrid(np.linspace(0, np.pi, n), np.linspace(0, 2 * np.pi, 2 * n, endpoint=False), indexing="ij")
    x, y, z = 30 * np.sin(theta) * np.cos(phi), 80 * np.sin(theta) * np.sin(phi), 50 * np.cos(theta)
    index = np.arange(n * 2 * n).reshape(n, 2 * n)
    a, b = index[:-1], index[1:]
    c, d = np.roll(a, -1, axis=1), np.roll(b, -1, axis=1)
    faces = np.concatenate([np.stack(t, axis=-1).reshape(-1, 3) for t in ((a, b, c), (b, d, c))])
    coordinates = np.column_stack([x.ravel() + offset, y.ravel(), z.ravel()])
    return Mesh("test ellipsoid", coordinates, faces, np.sin(coordinates[:, 1] / 6))


@pytest.fixture(scope="session")
def meshes() -> dict[str, Mesh]:
    return {"L": make_sphere(-35), "R": make_sphere(35)}


def make_surface_space(meshes: dict[str, Mesh]) -> BrainSpace:
    n = len(meshes["L"].coordinates)
    left = BrainPart("CIFTI_STRUCTURE_CORTEX_LEFT", 0, n, np.arange(n), n)
    right = BrainPart("CIFTI_STRUCTURE_CORTEX_RIGHT", n, 2 * n, np.arange(n), n)
    return BrainSpace("fsaverage5", "gifti", (left, right), {"space": "fsaverage5"})


def make_volume_space(affine: np.ndarray | None = None) -> BrainSpace:
    voxels = np.argwhere(np.ones((10, 12, 8), dtype=bool))
    affine = np.diag([4.0, 4.0, 4.0, 1.0]) if affine is None else affine
    part = BrainPart("CIFTI_STRUCTURE_OTHER", 0, len(voxels), voxels=voxels)
    return BrainSpace("MNI152NLin2009cAsym", "nifti", (part,), {"space": "MNI152NLin2009cAsym"}, affine, (10, 12, 8))


def make_scores(best_layer: np.ndarray, network: str = "alexnet", r: float = 0.3) -> EncodingScores:
    scores = np.zeros((len(LAYERS), len(best_layer)))
    shown = np.flatnonzero(best_layer)
    scores[best_layer[shown] - 1, shown] = r
    return EncodingScores(network, LAYERS, scores, scores**2, np.ones_like(scores), best_layer, 0.0)


def make_network(
    best_layer: np.ndarray, rng: np.random.Generator, regions: tuple[str, ...] = REGIONS, network: str = "alexnet"
) -> NetworkReport:
    peaks = np.linspace(1, len(LAYERS) - 1, len(regions)).round()
    profile = 0.3 - 0.04 * np.abs(np.arange(len(LAYERS))[:, None] - peaks)
    rsa = RsaScores(network, LAYERS, regions, {"pearson": profile + 0.05, "rho-a": profile})
    n_pairs = len(STIMULI) * (len(STIMULI) - 1) // 2
    rdms = tuple(Rdm(layer, rng.random(n_pairs), STIMULI) for layer in LAYERS)
    return NetworkReport(network, LAYERS, make_scores(best_layer, network), regions, profile, rsa, rdms)


def make_unit(space: BrainSpace, best_layer: np.ndarray, rng: np.random.Generator, **changes: object) -> UnitReport:
    regions = changes.pop("regions", REGIONS)
    n_pairs = len(STIMULI) * (len(STIMULI) - 1) // 2
    frame_times = 0.5 + 2.0 * np.arange(30)
    fields = {
        "unit": Unit("01", "objects", space.name, {"sub": "01", "task": "objects", **space.entities}, ()),
        "space": space,
        "n_stimuli": len(STIMULI),
        "n_trials": 24,
        "runs": (RunRow("task-objects_run-01", 12, 30, 2.0, 0.5, 1, ("constant", "trans_x"), 0.123),),
        "networks": changes.get("networks") or (make_network(best_layer, rng, regions),),
        "region_rdms": tuple(Rdm(region, rng.random(n_pairs), STIMULI) for region in regions),
        "design": Design(
            "task-objects_run-01", rng.normal(size=(30, 3)), ("trials", "constant", "trans_x"), frame_times
        ),
        "attributes": {"category": np.array(["face", "place"] * 6), "name": np.array(STIMULI)},
    }
    return UnitReport(**(fields | changes))


def make_facts() -> MethodsFacts:
    return MethodsFacts(
        "9.8.7",
        tasks=("objects",),
        spaces=("fsaverage5",),
        n_runs=4,
        n_trials=368,
        n_stimuli=92,
        fmriprep="25.1.0",
        networks=(NetworkFacts("alexnet", "IMAGENET1K_V1", LAYERS, "resized to 224 pixels", "torchvision"),),
        responses=ResponseFacts("lss", "glover", "percent", "ar1", 24, 5, True, 128.0, False),
        encoding=EncodingFacts(10, "stimulus", 1e-5, 1e5, 21, 0.05),
        rsa=RsaFacts(("pearson", "rho-a")),
        atlas="MMP",
        regions={"VTC": "V8+FFC", "V1": ""},
        surfaces=("HCP S1200 inflated",),
        software={"nilearn": "0.14.1", "numpy": "2.4.0", "torch": "2.14"},
        seed=77,
    )


@pytest.fixture(scope="session")
def surface_unit(meshes: dict[str, Mesh]) -> UnitReport:
    """Layers deepen from the back to the front of the left hemisphere; the right one has nothing."""
    space = make_surface_space(meshes)
    y = meshes["L"].coordinates[:, 1]
    best = np.zeros(space.n_voxels, dtype=int)
    best[: len(y)] = 1 + np.clip((y + 80) / 160 * len(LAYERS), 0, len(LAYERS) - 1).astype(int)
    return make_unit(space, best, np.random.default_rng(5), meshes=meshes)


@pytest.fixture(scope="session")
def report(surface_unit: UnitReport) -> ParticipantReport:
    provenance = Provenance(
        "dnnbrain /data /out participant", "[dataset]\nseed = 1\n", {"torch": "2.14"}, 77, {"Time": "2 min"}
    )
    return ParticipantReport("01", (surface_unit,), make_facts(), "Objects", (), provenance)


@pytest.fixture(scope="session")
def rendered(report: ParticipantReport) -> RenderedReport:
    """The report of `surface_unit`, rendered once for all tests."""
    return render_participant(report)


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The makers above, for tests that want another brain."""
    return SimpleNamespace(
        surface_space=make_surface_space,
        volume_space=make_volume_space,
        scores=make_scores,
        network=make_network,
        unit=make_unit,
        facts=make_facts,
        provenance=Provenance,
        layers=LAYERS,
        stimuli=STIMULI,
    )
