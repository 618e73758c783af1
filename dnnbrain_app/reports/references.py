"""The works that a methods text may have to cite."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reference:
    """One work.

    Parameters
    ----------
    short : str
        As cited in the text.
    full : str
        As listed, without the link.
    link : str
        Of the DOI or the preprint.
    """

    short: str
    full: str
    link: str


def _doi(short: str, full: str, doi: str) -> Reference:
    return Reference(short, full, f"https://doi.org/{doi}")


def _arxiv(short: str, full: str, number: str) -> Reference:
    return Reference(short, full, f"https://arxiv.org/abs/{number}")


REFERENCES: dict[str, Reference] = {
    "dnnbrain": _doi(
        "Chen et al., 2020",
        "Chen X., Zhou M., Gong Z., Xu W., Liu X., Huang T., Zhen Z. & Liu J. (2020). DNNBrain: a unifying "
        "toolbox for mapping deep neural networks and brains. Frontiers in Computational Neuroscience 14, "
        "580632.",
        "10.3389/fncom.2020.580632",
    ),
    "bids": _doi(
        "Gorgolewski et al., 2016",
        "Gorgolewski K. J. et al. (2016). The brain imaging data structure, a format for organizing and "
        "describing outputs of neuroimaging experiments. Scientific Data 3, 160044.",
        "10.1038/sdata.2016.44",
    ),
    "bidsapps": _doi(
        "Gorgolewski et al., 2017",
        "Gorgolewski K. J. et al. (2017). BIDS Apps: improving ease of use, accessibility, and "
        "reproducibility of neuroimaging data analysis methods. PLoS Computational Biology 13, e1005209.",
        "10.1371/journal.pcbi.1005209",
    ),
    "fmriprep": _doi(
        "Esteban et al., 2019",
        "Esteban O. et al. (2019). fMRIPrep: a robust preprocessing pipeline for functional MRI. Nature "
        "Methods 16, 111–116.",
        "10.1038/s41592-018-0235-4",
    ),
    "nilearn": _doi(
        "Abraham et al., 2014",
        "Abraham A. et al. (2014). Machine learning for neuroimaging with scikit-learn. Frontiers in "
        "Neuroinformatics 8, 14.",
        "10.3389/fninf.2014.00014",
    ),
    "nibabel": _doi(
        "Brett et al.",
        "Brett M. et al. NiBabel: access a cacophony of neuro-imaging file formats. Zenodo.",
        "10.5281/zenodo.591597",
    ),
    "torch": _arxiv(
        "Paszke et al., 2019",
        "Paszke A. et al. (2019). PyTorch: an imperative style, high-performance deep learning library. "
        "Advances in Neural Information Processing Systems 32.",
        "1912.01703",
    ),
    "torchvision": _doi(
        "Marcel & Rodriguez, 2010",
        "Marcel S. & Rodriguez Y. (2010). Torchvision the machine-vision package of Torch. Proceedings of the "
        "18th ACM International Conference on Multimedia, 1485–1488.",
        "10.1145/1873951.1874254",
    ),
    "lss": _doi(
        "Mumford et al., 2012",
        "Mumford J. A., Turner B. O., Ashby F. G. & Poldrack R. A. (2012). Deconvolving BOLD activation in "
        "event-related designs for multivoxel pattern classification analyses. NeuroImage 59, 2636–2643.",
        "10.1016/j.neuroimage.2011.08.076",
    ),
    "turner": _doi(
        "Turner et al., 2012",
        "Turner B. O., Mumford J. A., Poldrack R. A. & Ashby F. G. (2012). Spatiotemporal activity estimation for "
        "multivoxel pattern analysis with rapid event-related designs. NeuroImage 62, 1429–1438.",
        "10.1016/j.neuroimage.2012.05.057",
    ),
    "variability": _doi(
        "Abdulrahman & Henson, 2016",
        "Abdulrahman H. & Henson R. N. (2016). Effect of trial-to-trial variability on optimal event-related fMRI "
        "design: implications for beta-series correlation and multi-voxel pattern analysis. NeuroImage 125, 756–766.",
        "10.1016/j.neuroimage.2015.11.009",
    ),
    "glmsingle": _doi(
        "Prince et al., 2022",
        "Prince J. S., Charest I., Kurzawski J. W., Pyles J. A., Tarr M. J. & Kay K. N. (2022). Improving the accuracy "
        "of single-trial fMRI response estimates using GLMsingle. eLife 11, e77599.",
        "10.7554/eLife.77599",
    ),
    "glmdenoise": _doi(
        "Kay et al., 2013",
        "Kay K. N., Rokem A., Winawer J., Dougherty R. F. & Wandell B. A. (2013). GLMdenoise: a fast, automated "
        "technique for denoising task-based fMRI data. Frontiers in Neuroscience 7, 247.",
        "10.3389/fnins.2013.00247",
    ),
    "fracridge": _doi(
        "Rokem & Kay, 2020",
        "Rokem A. & Kay K. (2020). Fractional ridge regression: a fast, interpretable reparameterization of ridge "
        "regression. GigaScience 9, giaa133.",
        "10.1093/gigascience/giaa133",
    ),
    "handwerker": _doi(
        "Handwerker et al., 2004",
        "Handwerker D. A., Ollinger J. M. & D'Esposito M. (2004). Variation of BOLD hemodynamic responses across "
        "subjects and brain regions and their effects on statistical analyses. NeuroImage 21, 1639–1651.",
        "10.1016/j.neuroimage.2003.11.029",
    ),
    "derivatives": _doi(
        "Friston et al., 1998",
        "Friston K. J., Fletcher P., Josephs O., Holmes A., Rugg M. D. & Turner R. (1998). Event-related fMRI: "
        "characterizing differential responses. NeuroImage 7, 30–40.",
        "10.1006/nimg.1997.0306",
    ),
    "movies": _doi(
        "Nishimoto et al., 2011",
        "Nishimoto S., Vu A. T., Naselaris T., Benjamini Y., Yu B. & Gallant J. L. (2011). Reconstructing visual "
        "experiences from brain activity evoked by natural movies. Current Biology 21, 1641–1646.",
        "10.1016/j.cub.2011.08.031",
    ),
    "scrubbing": _doi(
        "Power et al., 2012",
        "Power J. D., Barnes K. A., Snyder A. Z., Schlaggar B. L. & Petersen S. E. (2012). Spurious but systematic "
        "correlations in functional connectivity MRI networks arise from subject motion. NeuroImage 59, 2142–2154.",
        "10.1016/j.neuroimage.2011.10.018",
    ),
    "nsd": _doi(
        "Allen et al., 2022",
        "Allen E. J. et al. (2022). A massive 7T fMRI dataset to bridge cognitive neuroscience and artificial "
        "intelligence. Nature Neuroscience 25, 116–126.",
        "10.1038/s41593-021-00962-x",
    ),
    "ceiling": _doi(
        "Lage-Castellanos et al., 2019",
        "Lage-Castellanos A., Valente G., Formisano E. & De Martino F. (2019). Methods for computing the maximum "
        "performance of computational models of fMRI responses. PLoS Computational Biology 15, e1006397.",
        "10.1371/journal.pcbi.1006397",
    ),
    "spearman": _doi(
        "Spearman, 1910",
        "Spearman C. (1910). Correlation calculated from faulty data. British Journal of Psychology 3, 271–295.",
        "10.1111/j.2044-8295.1910.tb00206.x",
    ),
    "brown": _doi(
        "Brown, 1910",
        "Brown W. (1910). Some experimental results in the correlation of mental abilities. British Journal of "
        "Psychology 3, 296–322.",
        "10.1111/j.2044-8295.1910.tb00207.x",
    ),
    "projection": _doi(
        "Li et al., 2006",
        "Li P., Hastie T. J. & Church K. W. (2006). Very sparse random projections. Proceedings of the 12th ACM SIGKDD "
        "International Conference on Knowledge Discovery and Data Mining, 287–296.",
        "10.1145/1150402.1150436",
    ),
    "glover": _doi(
        "Glover, 1999",
        "Glover G. H. (1999). Deconvolution of impulse response in event-related BOLD fMRI. NeuroImage 9, 416–429.",
        "10.1006/nimg.1998.0419",
    ),
    "friston24": _doi(
        "Friston et al., 1996",
        "Friston K. J., Williams S., Howard R., Frackowiak R. S. J. & Turner R. (1996). Movement-related "
        "effects in fMRI time-series. Magnetic Resonance in Medicine 35, 346–355.",
        "10.1002/mrm.1910350312",
    ),
    "compcor": _doi(
        "Behzadi et al., 2007",
        "Behzadi Y., Restom K., Liau J. & Liu T. T. (2007). A component based noise correction method "
        "(CompCor) for BOLD and perfusion based fMRI. NeuroImage 37, 90–101.",
        "10.1016/j.neuroimage.2007.04.042",
    ),
    "gcv": _doi(
        "Golub et al., 1979",
        "Golub G. H., Heath M. & Wahba G. (1979). Generalized cross-validation as a method for choosing a "
        "good ridge parameter. Technometrics 21, 215–223.",
        "10.1080/00401706.1979.10489751",
    ),
    "fdr": _doi(
        "Benjamini & Hochberg, 1995",
        "Benjamini Y. & Hochberg Y. (1995). Controlling the false discovery rate: a practical and powerful "
        "approach to multiple testing. Journal of the Royal Statistical Society B 57, 289–300.",
        "10.1111/j.2517-6161.1995.tb02031.x",
    ),
    "rsa": _doi(
        "Kriegeskorte et al., 2008",
        "Kriegeskorte N., Mur M. & Bandettini P. (2008). Representational similarity analysis: connecting the "
        "branches of systems neuroscience. Frontiers in Systems Neuroscience 2, 4.",
        "10.3389/neuro.06.004.2008",
    ),
    "searchlight": _doi(
        "Kriegeskorte et al., 2006",
        "Kriegeskorte N., Goebel R. & Bandettini P. (2006). Information-based functional brain mapping. Proceedings of "
        "the National Academy of Sciences 103, 3863-3868.",
        "10.1073/pnas.0600244103",
    ),
    "rhoa": _doi(
        "Schütt et al., 2023",
        "Schütt H. H., Kipnis A. D., Diedrichsen J. & Kriegeskorte N. (2023). Statistical inference on "
        "representational geometries. eLife 12, e82566.",
        "10.7554/eLife.82566",
    ),
    "tau": _doi(
        "Nili et al., 2014",
        "Nili H., Wingfield C., Walther A., Su L., Marslen-Wilson W. & Kriegeskorte N. (2014). A toolbox for "
        "representational similarity analysis. PLoS Computational Biology 10, e1003553.",
        "10.1371/journal.pcbi.1003553",
    ),
    "whitened": _doi(
        "Diedrichsen et al., 2021",
        "Diedrichsen J., Berlot E., Mur M., Schütt H. H., Shahbazi M. & Kriegeskorte N. (2021). Comparing "
        "representational geometries using whitened unbiased-distance-matrix similarity. Neurons, Behavior, Data "
        "Analysis, and Theory 5 (3).",
        "10.51628/001c.27664",
    ),
    "cka": _arxiv(
        "Kornblith et al., 2019",
        "Kornblith S., Norouzi M., Lee H. & Hinton G. (2019). Similarity of neural network representations revisited. "
        "Proceedings of the 36th International Conference on Machine Learning.",
        "1905.00414",
    ),
    "debiased": Reference(
        "Song et al., 2012",
        "Song L., Smola A., Gretton A., Bedo J. & Borgwardt K. (2012). Feature selection via dependence maximization. "
        "Journal of Machine Learning Research 13, 1393–1434.",
        "https://jmlr.org/papers/v13/song12a.html",
    ),
    "crossnobis": _doi(
        "Walther et al., 2016",
        "Walther A., Nili H., Ejaz N., Alink A., Kriegeskorte N. & Diedrichsen J. (2016). Reliability of dissimilarity "
        "measures for multi-voxel pattern analysis. NeuroImage 137, 188–200.",
        "10.1016/j.neuroimage.2015.12.012",
    ),
    "shrinkage": _doi(
        "Schäfer & Strimmer, 2005",
        "Schäfer J. & Strimmer K. (2005). A shrinkage approach to large-scale covariance matrix estimation and "
        "implications for functional genomics. Statistical Applications in Genetics and Molecular Biology 4, 32.",
        "10.2202/1544-6115.1175",
    ),
    "maximum": _doi(
        "Nichols & Holmes, 2002",
        "Nichols T. E. & Holmes A. P. (2002). Nonparametric permutation tests for functional neuroimaging: a primer "
        "with examples. Human Brain Mapping 15, 1–25.",
        "10.1002/hbm.1058",
    ),
    "mmp": _doi(
        "Glasser et al., 2016",
        "Glasser M. F. et al. (2016). A multi-modal parcellation of human cerebral cortex. Nature 536, 171–178.",
        "10.1038/nature18933",
    ),
}

# By the beginning of the network's name; the longest that fits counts.
NETWORK_REFERENCES: dict[str, Reference] = {
    "efficientnet": _arxiv(
        "Tan & Le, 2019",
        "Tan M. & Le Q. V. (2019). EfficientNet: rethinking model scaling for convolutional neural networks. "
        "Proceedings of the 36th International Conference on Machine Learning.",
        "1905.11946",
    ),
    "efficientnet_v2": _arxiv(
        "Tan & Le, 2021",
        "Tan M. & Le Q. V. (2021). EfficientNetV2: smaller models and faster training. Proceedings of the "
        "38th International Conference on Machine Learning.",
        "2104.00298",
    ),
    "alexnet": _arxiv(
        "Krizhevsky, 2014",
        "Krizhevsky A. (2014). One weird trick for parallelizing convolutional neural networks.",
        "1404.5997",
    ),
    "vgg": _arxiv(
        "Simonyan & Zisserman, 2015",
        "Simonyan K. & Zisserman A. (2015). Very deep convolutional networks for large-scale image "
        "recognition. International Conference on Learning Representations.",
        "1409.1556",
    ),
    "resnet": _arxiv(
        "He et al., 2016",
        "He K., Zhang X., Ren S. & Sun J. (2016). Deep residual learning for image recognition. IEEE "
        "Conference on Computer Vision and Pattern Recognition.",
        "1512.03385",
    ),
    "resnext": _arxiv(
        "Xie et al., 2017",
        "Xie S., Girshick R., Dollár P., Tu Z. & He K. (2017). Aggregated residual transformations for deep "
        "neural networks. IEEE Conference on Computer Vision and Pattern Recognition.",
        "1611.05431",
    ),
    "googlenet": _arxiv(
        "Szegedy et al., 2015",
        "Szegedy C. et al. (2015). Going deeper with convolutions. IEEE Conference on Computer Vision and "
        "Pattern Recognition.",
        "1409.4842",
    ),
    "inception_v3": _arxiv(
        "Szegedy et al., 2016",
        "Szegedy C., Vanhoucke V., Ioffe S., Shlens J. & Wojna Z. (2016). Rethinking the Inception "
        "architecture for computer vision. IEEE Conference on Computer Vision and Pattern Recognition.",
        "1512.00567",
    ),
    "densenet": _arxiv(
        "Huang et al., 2017",
        "Huang G., Liu Z., van der Maaten L. & Weinberger K. Q. (2017). Densely connected convolutional "
        "networks. IEEE Conference on Computer Vision and Pattern Recognition.",
        "1608.06993",
    ),
    "mobilenet_v2": _arxiv(
        "Sandler et al., 2018",
        "Sandler M., Howard A., Zhu M., Zhmoginov A. & Chen L.-C. (2018). MobileNetV2: inverted residuals and "
        "linear bottlenecks. IEEE Conference on Computer Vision and Pattern Recognition.",
        "1801.04381",
    ),
    "mobilenet_v3": _arxiv(
        "Howard et al., 2019",
        "Howard A. et al. (2019). Searching for MobileNetV3. IEEE International Conference on Computer Vision.",
        "1905.02244",
    ),
    "convnext": _arxiv(
        "Liu et al., 2022",
        "Liu Z., Mao H., Wu C.-Y., Feichtenhofer C., Darrell T. & Xie S. (2022). A ConvNet for the 2020s. "
        "IEEE Conference on Computer Vision and Pattern Recognition.",
        "2201.03545",
    ),
    "vit_": _arxiv(
        "Dosovitskiy et al., 2021",
        "Dosovitskiy A. et al. (2021). An image is worth 16x16 words: transformers for image recognition at "
        "scale. International Conference on Learning Representations.",
        "2010.11929",
    ),
    "squeezenet": _arxiv(
        "Iandola et al., 2016",
        "Iandola F. N. et al. (2016). SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB "
        "model size.",
        "1602.07360",
    ),
}

HCP_ACKNOWLEDGMENT = (
    "Surfaces or parcels of the Human Connectome Project were used: data were provided in part by the Human Connectome "
    "Project, WU-Minn Consortium (Principal Investigators: David Van Essen and Kamil Ugurbil; 1U54MH091657) funded by "
    "the 16 NIH Institutes and Centers that support the NIH Blueprint for Neuroscience Research; and by the McDonnell "
    "Center for Systems Neuroscience at Washington University."
)


def find_network_reference(name: str) -> Reference | None:
    """Find the paper of a network by its name; None where it is not known."""
    architecture = name.lower().removeprefix("timm/")
    fitting = [prefix for prefix in NETWORK_REFERENCES if architecture.startswith(prefix)]
    return NETWORK_REFERENCES[max(fitting, key=len)] if fitting else None
