import io

import numpy as np
import pytest
from PIL import Image

from dnnbrain_app.records import BrainPart, BrainSpace
from dnnbrain_app.reports.composing import compose_map
from dnnbrain_app.reports.contents import UnitReport
from dnnbrain_app.reports.maps import (
    BrainMap,
    ChoiceLegend,
    Painter,
    ScoreLegend,
    choose_highest,
    colour_layers,
    draw_scores,
)


def draw(unit: UnitReport) -> tuple[BrainMap, BrainMap]:
    """Best layer and score of the first network."""
    return draw_scores(unit.networks[0].encoding, Painter(unit), unit.held_out)


def is_coloured(picture: np.ndarray) -> np.ndarray:
    """Grey has equal channels; a map has not."""
    return (np.ptp(picture[..., :3].astype(int), axis=-1) > 25) & (picture[..., 3] > 200)


def test_a_map_of_the_left_hemisphere_appears_in_the_left_panels_only(surface_unit):
    for brain in draw(surface_unit):
        assert [panel.label for panel in brain.surfaces] == [
            f"{side}, {view}" for side in ("Left", "Right") for view in ("lateral", "medial", "ventral")
        ]
        for panel in brain.surfaces:
            assert is_coloured(panel.picture).any() == panel.label.startswith("Left")


def test_planted_gradient_of_layers_runs_from_the_back_to_the_front(surface_unit, make):
    best, _ = draw(surface_unit)
    picture = best.surfaces[0].picture
    row = picture[picture.shape[0] // 2].astype(int)
    palette = 255 * colour_layers(len(make.layers))
    layer = np.array([np.abs(palette - pixel[:3]).sum(axis=1).argmin() for pixel in row[row[:, 3] == 255]])
    middle = layer[len(layer) // 10 : -len(layer) // 10]  # the edge is shaded
    assert (np.diff(middle) <= 0).all()  # the front of a left hemisphere is on the left
    assert middle[0] == len(make.layers) - 1
    assert middle[-1] == 0


def test_shares_of_the_layers_are_counted(make, meshes, rng):
    space = make.surface_space(meshes)
    best = np.zeros(space.n_voxels, dtype=int)
    best[:30], best[30:40] = 2, 6
    legend = draw(make.unit(space, best, rng, meshes=meshes))[0].legend
    assert isinstance(legend, ChoiceLegend)
    assert legend.shares == (0, 75, 0, 0, 0, 25)
    assert len(set(legend.colours)) == len(make.layers)


def test_voxels_without_a_best_layer_or_with_nan_scores_stay_grey(make, rng):
    space = make.volume_space()
    unit = make.unit(space, np.zeros(space.n_voxels, dtype=int), rng)
    for brain in draw(unit):
        assert brain.n_shown == 0
        assert brain.panels
        assert not any(is_coloured(panel.picture).any() for panel in brain.panels)
    unit.networks[0].encoding.best_layer[:] = 1
    unit.networks[0].encoding.r[:] = np.nan
    assert draw(unit)[1].n_shown == 0


def test_colour_of_a_score_is_found_on_the_colour_bar(make, rng):
    space = make.volume_space()
    best = np.ones(space.n_voxels, dtype=int)
    unit = make.unit(space, best, rng)
    r = np.linspace(0, 0.4, space.n_voxels)
    unit.networks[0].encoding.r[0] = r
    _, score = draw(unit)
    legend = score.legend
    assert isinstance(legend, ScoreLegend)
    assert legend.highest == 0.4
    assert not legend.saturated
    stops = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in legend.stops])
    lowest = score.slices[0].picture[-1, 0, :3]  # the voxel with the lowest x, y and z
    np.testing.assert_allclose(lowest, stops[0], atol=2)
    highest = score.slices[-1].picture[0, -1, :3]
    np.testing.assert_allclose(highest, stops[-1], atol=2)


@pytest.mark.parametrize(
    ("values", "highest"),
    [([], 0.05), ([0.001], 0.05), ([0.31], 0.35), ([0.3], 0.3), ([0.1] * 1000 + [0.99], 0.1), ([-0.2], 0.05)],
)
def test_colour_bar_ends_at_a_robust_round_number(values, highest):
    assert choose_highest(np.array(values)) == highest


def test_cortex_goes_on_surfaces_and_subcortical_voxels_on_slices(make, meshes, rng):
    n = len(meshes["L"].coordinates)
    voxels = np.argwhere(np.ones((3, 4, 5), dtype=bool))
    parts = (
        BrainPart("CIFTI_STRUCTURE_CORTEX_LEFT", 0, n - 5, np.arange(5, n), n),
        BrainPart("CIFTI_STRUCTURE_THALAMUS_LEFT", n - 5, n + 55, voxels=voxels),
    )
    space = BrainSpace("fsLR", "cifti", parts, {"space": "fsLR"}, np.diag([2.0, 2.0, 2.0, 1.0]), (3, 4, 5))
    best = np.zeros(space.n_voxels, dtype=int)
    best[0] = 1
    brain, _ = draw(make.unit(space, best, rng, meshes=meshes))
    assert len(brain.surfaces) == 3
    assert not brain.slices  # nothing to see there
    best[-1] = 1
    brain, _ = draw(make.unit(space, best, rng, meshes=meshes))
    assert len(brain.slices) == 5


def test_mesh_of_another_resolution_is_not_drawn_on(make, meshes, rng):
    left = BrainPart("CIFTI_STRUCTURE_CORTEX_LEFT", 0, 10, np.arange(10), 10)
    space = BrainSpace("fsaverage6", "gifti", (left,), {"space": "fsaverage6"})
    brain, _ = draw(make.unit(space, np.ones(10, dtype=int), rng, meshes=meshes))
    assert brain.panels == ()
    assert brain.n_shown == 10


@pytest.mark.parametrize("which", [0, 1])
def test_composed_picture_is_a_png_with_the_same_bytes_every_time(surface_unit, which):
    brain = draw(surface_unit)[which]
    png = compose_map(brain, "Title $x^2$")
    assert png == compose_map(brain, "Title $x^2$")
    picture = np.asarray(Image.open(io.BytesIO(png)))
    assert picture.shape[1] == 1920
    assert is_coloured(picture).mean() > 0.01
