"""Make the demonstration dataset: photographs, and simulated BOLD whose regions follow layers of a network.

    python demo/make_dataset.py OUT

Photographs: from scikit-image (public domain and CC0) and scikit-learn (CC-BY 2.0: "china" by Rob Boudon, "flower" by
dany13), cut into overlapping windows. Regions: EVC follows an early, LOC a middle and VTC a late block of
EfficientNet-Lite0. The BOLD is simulated (see ``simulate.py``).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from simulate import Design, write_dataset
from skimage import data as photographs
from sklearn.datasets import load_sample_image

PLANTED = {"EVC": 1, "LOC": 7, "VTC": 13}  # position of the block among the network's sixteen
CATEGORIES = {
    "astronaut": "person",
    "camera": "person",
    "cat": "animal",
    "coffee": "object",
    "rocket": "object",
    "coins": "object",
    "grass": "texture",
    "brick": "texture",
    "gravel": "texture",
    "hubble_deep_field": "sky",
    "china": "scene",
    "flower": "plant",
}


WINDOWS = [  # size, as a share of the shorter side, and place, from the left and from the top
    *((0.6, x, y) for y in (0.0, 1.0) for x in (0.0, 1.0)),
    *((0.6, x, 0.5) for x in (0.0, 1.0)),
    (0.5, 0.5, 0.5),
    (0.9, 0.5, 0.5),
]


def cut_photographs() -> dict[str, Image.Image]:
    """Cut eight square windows from each photograph, at 224 x 224 pixels."""
    images = {}
    for name, category in CATEGORIES.items():
        pixels = load_sample_image(f"{name}.jpg") if name in ("china", "flower") else getattr(photographs, name)()
        photo = Image.fromarray(np.asarray(pixels)).convert("RGB")
        for k, (size, right, down) in enumerate(WINDOWS, 1):
            side = int(size * min(photo.size))
            x, y = int(right * (photo.width - side)), int(down * (photo.height - side))
            window = photo.crop((x, y, x + side, y + side)).resize((224, 224), Image.Resampling.LANCZOS)
            images[f"{category}/{name}{k}.png"] = window
    return images


def compute_kernels(images: dict[str, Image.Image]) -> dict[str, np.ndarray]:
    """Compute the Gram of each planted block for the images."""
    import torch

    from dnnbrain_app.networks.options import NetworkOptions
    from dnnbrain_app.networks.sources import load_network

    network = load_network("efficientnet_lite0", NetworkOptions())
    batch = torch.stack([torch.as_tensor(network.transform(image)) for image in images.values()])
    blocks = dict(network.model.named_modules())
    outputs: dict[str, torch.Tensor] = {}
    for region, number in PLANTED.items():
        layer = network.default_layers[number]
        blocks[layer].register_forward_hook(lambda _m, _i, out, region=region: outputs.update({region: out.flatten(1)}))
    with torch.inference_mode():
        network.model(network.normalize(batch))
    return {region: (x.double() @ x.double().T).numpy() for region, x in outputs.items()}


def main() -> None:
    """Write the dataset into the folder named on the command line, unless it is there already."""
    out = Path(sys.argv[1])
    if (out / "dataset_description.json").exists():
        print(f"{out} is there already; remove it to make it again")
        return
    print("Cutting photographs and looking at them with EfficientNet-Lite0 ...", flush=True)
    images = cut_photographs()
    categories = [name.split("/")[0] for name in images]
    print(f"Simulating one participant who sees {len(images)} images in each of 4 runs ...", flush=True)
    unfinished = out.with_name(f"{out.name}.part")  # an interrupted run must not look like a dataset
    shutil.rmtree(unfinished, ignore_errors=True)
    write_dataset(
        unfinished, images, compute_kernels(images), ("fsaverage5",), Design(soa=3.0, snr=3.0), {"category": categories}
    )
    unfinished.rename(out)
    print(f"Made {out}: real photographs, simulated BOLD", flush=True)


if __name__ == "__main__":
    main()
