"""The numpy stages against what a user would otherwise write or import."""

import numpy as np

import entropy
import eval as metrics
import platt
from bench.setting import compared, take_turns


def entropies():
    """20,000 questions x 10 samples x 384 dimensions, against a loop over the questions on scipy."""
    import scipy.linalg
    import scipy.special
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(0)
    shape = (20_000, 10, 384)
    embeddings = rng.normal(size=(shape[0], 1, shape[2])) + 0.5 * rng.normal(size=shape)  # alike within a question
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)).astype(np.float32)
    found = {}

    def definition():
        """-tr(rho log rho) as it is written, with a matrix logarithm."""
        rho = (np.exp(-cdist(e, e, "sqeuclidean")) / len(e) for e in embeddings)
        found["definition"] = np.array([-np.trace(r @ scipy.linalg.logm(r)).real for r in rho])

    def loop():
        """The same by eigenvalues, which is what a user who knows about them writes."""
        rho = (np.exp(-cdist(e, e, "sqeuclidean")) / len(e) for e in embeddings)
        found["loop"] = np.array([scipy.special.entr(np.clip(scipy.linalg.eigvalsh(r), 0, None)).sum() for r in rho])

    def ours():
        batches = np.split(embeddings, 400)  # of 50, which fit a processor's cache
        found["ours"] = np.concatenate([entropy.von_neumann(entropy.gram(batch)) for batch in batches])

    seconds = take_turns({"definition": definition, "loop": loop, "ours": ours})
    rows = []
    for name, function in (("definition", "logm"), ("loop", "eigvalsh")):
        error = np.abs(found[name] - found["ours"]).max()
        pair = {"ours": seconds["ours"], "peer": seconds[name]}
        work = f"20,000 entropies, a loop of scipy's {function}"
        rows.append(compared(work, "≥ 20x", pair, f"largest difference {error:.0e}"))
    return rows


def calibration():
    """Platt scaling of 1,000,000 points, against scikit-learn's sigmoid calibration."""
    from sklearn.calibration import _SigmoidCalibration

    rng = np.random.default_rng(0)
    scores = rng.random(1_000_000) * 2.3
    labels = (rng.random(len(scores)) < platt.sigmoid(-2.95 * scores + 2.54)).astype(int)
    found = {}

    def peer():
        fit = _SigmoidCalibration().fit(scores, labels)  # the bare fit of CalibratedClassifierCV(method="sigmoid")
        found["peer"] = -fit.a_, -fit.b_

    def ours():
        fit = platt.fit(scores, labels)
        found["ours"] = fit.a, fit.b

    seconds = take_turns({"peer": peer, "ours": ours})
    error = max(abs(a - b) for a, b in zip(found["peer"], found["ours"], strict=True))
    return [compared("Platt scaling of 1,000,000 points, scikit-learn", "≥ 3x", seconds, f"a and b within {error:.0e}")]


def evaluation():
    """ECE and AUROC of 20,000 points against torchmetrics, and 1,000 resamples of all metrics."""
    import torch
    from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

    rng = np.random.default_rng(0)
    confidence = np.round(rng.random(20_000), 2)  # in percent, as they are stated
    correct = (rng.random(len(confidence)) < confidence).astype(int)
    family = rng.integers(7, size=len(confidence))
    tensors = torch.tensor(confidence), torch.tensor(correct)
    found = {}

    def peer():
        found["peer"] = float(binary_calibration_error(*tensors, n_bins=10, norm="l1")), float(binary_auroc(*tensors))

    def ours():
        found["ours"] = metrics.ece(confidence, correct), metrics.auroc(confidence, correct)

    seconds = take_turns({"peer": peer, "ours": ours})
    error = max(abs(a - b) for a, b in zip(found["peer"], found["ours"], strict=True))
    resampled = take_turns({"ours": lambda: metrics.bootstrap(confidence, correct, family)})["ours"]
    return [
        dict(work="1,000 bootstrap resamples of all metrics on 20,000 points", target="< 10 s", ours=resampled),
        compared("ECE and AUROC of 20,000 points, torchmetrics", "", seconds, f"within {error:.0e}"),
    ]
