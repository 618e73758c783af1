"""What the methods text says about responses: what was fitted to what, and what was assumed of the noise."""

from __future__ import annotations

from dnnbrain_app.reports.facts import ResponseFacts
from dnnbrain_app.reports.wording import Cite, enumerate_phrases

_COEFFICIENTS = {"lss": "a voxel and run", "lsa": "a voxel and run", "glmsingle": "a run", "condition": "a voxel"}
_SCALINGS = {
    "zscore": "in standard deviations of the voxel over the run",
    "percent": "in percent of the voxel's mean over the run",
}
_DERIVATIVES = {"derivative": "latency", "dispersion": "width"}


def describe_responses(model: ResponseFacts, cite: Cite) -> list[str]:
    """Write the sentences on how responses were estimated; `cite` notes what they rest on."""
    said = [_describe_model(model, cite)]
    if model.model != "precomputed":
        said += [*_describe_hrf(model, cite), _describe_nuisance(model, cite), *_describe_noise(model)]
    if model.model not in ("condition", "timeseries"):
        said.append("Responses to repeated presentations of a stimulus were averaged.")
    if model.has_ceiling:
        said.append(
            "From the repeats, the noise ceiling of each voxel was estimated by analysis of variance "
            f"{cite('nsd', 'ceiling')}, and the reliability of the averages by random split halves and the "
            f"Spearman-Brown formula {cite('spearman', 'brown')}."
        )
    if model.min_reliability:
        said.append(f"Voxels with a reliability below {model.min_reliability:g} were left out of all analyses.")
    return said


def _describe_model(model: ResponseFacts, cite: Cite) -> str:
    """Say what was fitted to what."""
    if model.model == "lss":
        frequent = (
            f", but for stimuli with many trials in the run, which had one each {cite('turner', 'variability')}"
            if model.has_frequent
            else ""
        )
        return (
            f"Responses to single trials were estimated by least squares, separately for each trial {cite('lss')}: the "
            f"model of a trial had one regressor for it and one for all other trials of its run{frequent}."
        )
    if model.model == "lsa":
        return (
            "Responses to single trials were estimated by least squares, from one model a run with a regressor for "
            f"each trial {cite('lss')}."
        )
    if model.model == "glmsingle":
        return _describe_glmsingle(model, cite)
    if model.model == "condition":
        return (
            "One response a stimulus was estimated by least squares over all runs, with one regressor for each "
            "stimulus."
        )
    if model.model == "timeseries":
        return (
            "No responses to stimuli were estimated: features of the stimuli predicted the volumes themselves "
            f"{cite('movies')}."
        )
    return "Responses to single trials had been estimated before, and were used as they are."


def _describe_glmsingle(model: ResponseFacts, cite: Cite) -> str:
    choice = (
        "of a library of haemodynamic response functions, which peak between 3 and 7 s as such responses do "
        f"{cite('handwerker')}, each voxel had the one under which its data were most likely"
    )
    if model.is_regularised is False:
        return (
            f"Responses to single trials were estimated by least squares, separately for each trial {cite('lss')}, "
            f"after the voxel's own response had been chosen: {choice}. The other steps of GLMsingle "
            f"{cite('glmsingle')} need stimuli that are shown in two runs, and were left out."
        )
    return (
        f"Responses to single trials were estimated after the ideas of GLMsingle {cite('glmsingle')}: {choice}; "
        "principal components of the voxels that respond least were noise regressors, as many as made responses most "
        f"like those to the same stimulus in other runs {cite('glmdenoise')}; and the responses of each voxel were "
        f"shrunk by ridge regression to a fraction of their length {cite('fracridge')}, chosen by the same criterion."
    )


def _describe_hrf(model: ResponseFacts, cite: Cite) -> list[str]:
    name, *derivatives = model.hrf.split(" + ")
    if name == "fir":
        delays = f"delays of 0 to {model.fir_length:g} s, one a volume"
        return [f"Features entered with {delays}, and with a weight of its own for each."]
    hrf = "the haemodynamic response function of SPM"
    if name == "glover":
        hrf = f"Glover's haemodynamic response function {cite('glover')}"
    at = "sampled at the time that each volume represents"
    if model.model == "glmsingle":
        return [f"The first function of the library was {hrf}. Trials were convolved with these functions and {at}."]
    said = [f"{'Features' if model.model == 'timeseries' else 'Trials'} were convolved with {hrf} and {at}."]
    if derivatives:
        to = enumerate_phrases([_DERIVATIVES[name] for name in derivatives])
        said.append(
            f"Its derivatives to {to} {cite('derivatives')} were further regressors, made orthogonal to it; the "
            "response is the weight of the function itself."
        )
    return said


def _describe_nuisance(model: ResponseFacts, cite: Cite) -> str:
    nuisance = ["a constant for each run"]
    if model.motion:
        nuisance.append(f"{model.motion} motion regressors" + (f" {cite('friston24')}" if model.motion == 24 else ""))
    if model.compcor:
        nuisance.append(f"the first {model.compcor} anatomical CompCor components {cite('compcor')}")
    if model.drifts_from_confounds:
        nuisance.append("the cosine drifts of the preprocessing")
    elif model.drifts_from_confounds is False and model.high_pass:
        nuisance.append(f"cosine drifts with periods of {model.high_pass:g} s and longer")
    if model.spikes:
        nuisance.append("one regressor for each non-steady-state and each motion-outlier volume")
    if model.fd_threshold:
        moved = f"a framewise displacement above {model.fd_threshold:g} mm"
        nuisance.append(f"one regressor for each volume with {moved} {cite('scrubbing')}")
    listed = enumerate_phrases(nuisance)
    if model.model == "timeseries":
        return f"What the nuisance regressors explain was taken from data and convolved features: {listed}."
    return f"The nuisance regressors were {listed}."


def _describe_noise(model: ResponseFacts) -> list[str]:
    """Say what was assumed of the noise, and in what unit the responses are."""
    scaling = _SCALINGS.get(model.scaling, "in the units of the data")
    if model.model == "timeseries":
        return [f"The data were expressed {scaling}."]
    noise = "Noise was taken as white."
    if model.noise_model == "ar1":
        noise = (
            "Noise was modelled as a first-order autoregressive process with one coefficient "
            f"{_COEFFICIENTS[model.model]}, and data and design were whitened with it."
        )
    return [noise, f"Responses were expressed {scaling}."]
