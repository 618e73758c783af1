"""Searchlights: how well the geometry of each layer agrees with that of the neighbourhood of each voxel."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np

from dnnbrain_app.dataset.surfaces import TO_MEASURE, find_meshes
from dnnbrain_app.derivatives import names
from dnnbrain_app.derivatives.maps import delete_maps, write_maps
from dnnbrain_app.records import Activations, Array
from dnnbrain_app.response_stages import Responses, describe_analysis, describe_parameters
from dnnbrain_app.rsa_stage import METRICS, gather_rdms
from dnnbrain_app.session import Session

logger = logging.getLogger(__name__)
SEARCHLIGHT_MAPS = {
    "similarity": "Similarity between the RDM of the layer and that of the searchlight around the voxel",
    "p": "Probability of the similarity or a higher one if stimuli are permuted",
    "q": "Lowest false discovery rate over searchlights at which the similarity is significant",
    "pfwe": "Probability that any layer and searchlight is as similar or more so if stimuli are permuted",
}


def run_searchlight(responses: Responses, activations: Activations, session: Session) -> list[Path]:
    """Compare the RDM of each layer with that of the searchlight around each voxel; write maps."""
    from dnnbrain_app.analyses.neighbourhoods import find_neighbourhoods
    from dnnbrain_app.analyses.rdms import compute_layer_rdm
    from dnnbrain_app.analyses.searchlight import score_searchlight

    options, unit, space, memory = session.config.searchlight, responses.unit, responses.space, session.memory // 3
    brain = [path for name, path in session.roots.items() if name not in ("", "raw")]
    meshes = find_meshes(unit, brain, TO_MEASURE) if any(part.is_surface for part in space.parts) else {}
    progress = partial(session.progress, f"{unit.label}: searchlights, neighbours")
    neighbourhoods = find_neighbourhoods(space, meshes, options.radius, memory=memory, progress=progress)
    metric = "sqeuclidean" if options.comparison in ("cka", "whitened-cosine") else "correlation"
    items = responses.stimuli.ids
    layers = gather_rdms(partial(compute_layer_rdm, gram, items, memory, metric) for gram in activations.layers)
    scores = score_searchlight(
        activations.network,
        responses.Y,
        layers,
        neighbourhoods,
        options,
        rng=np.random.default_rng(session.config.run.random_seed),
        memory=memory,
        n_jobs=session.n_cpus,
        progress=partial(session.progress, f"{unit.label}: searchlights"),
    )
    maps = {"similarity": scores.similarity}
    if options.n_permutations:
        maps |= {"p": scores.p, "q": adjust(scores.p), "pfwe": scores.p_fwe}
    outputs = []
    for stat, text in SEARCHLIGHT_MAPS.items():
        stem = names.searchlight_map(session.output, unit, activations.network, stat)
        if stat not in maps:
            delete_maps(stem, space)
            continue
        about = describe_analysis(responses, activations, session, f"{text} ({options.comparison})", scores.layers)
        about |= {"Statistic": stat, "Parameters": describe_parameters(options)}
        about["Distances"] = {"Layers": METRICS[metric], "Searchlights": METRICS[metric]}
        outputs += write_maps(stem, maps[stat], scores.layers, space, about)
    return outputs


def adjust(p: Array) -> Array:
    """Adjust the p values of each layer for the number of searchlights."""
    from dnnbrain_app.analyses.significance import adjust_fdr

    return np.stack([adjust_fdr(layer) for layer in p])
