"""Classes predicted from codes, against raw pixels; needs labels and scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udl_dist.evaluation import pca
from udl_dist.evaluation.io import Metric
from udl_dist.evaluation.metric_group import (
    CodeMap,
    MetricBatch,
    MetricGroup,
    PartialSums,
    Subject,
    sklearn_missing,
)

CODES, PIXELS = "codes", "pixels"  # the rows to predict classes from
NEIGHBOURS = 10
MOST_ITERATIONS = 300  # of the linear probe
PERPLEXITY = 30  # of t-SNE: about the number of neighbours of an image
MOST_MAPPED = 5000  # images of t-SNE, whose time grows with images × perplexity

Labels = NDArray[np.int64]
Labelled = tuple[NDArray[np.float32], Labels]


class Representation(MetricGroup):
    """Neighbours, a linear probe and clusters, fitted to training images, tested on held-out."""

    name: ClassVar[str] = "representation"
    higher_is_better: ClassVar = ("knn_accuracy", "linear_accuracy", "cluster")
    learns: ClassVar[bool] = True
    least: ClassVar[int] = 50

    @classmethod
    def lacking(cls, subject: Subject) -> str:
        if not subject.method.can("encode"):
            return "it cannot encode"
        if not subject.labelled:
            return "its images have no labels (cls), or there are no training images"
        return sklearn_missing()

    def collect(self, split: str, seen: MetricBatch) -> PartialSums:
        images = seen.batch.images
        rows = {CODES: self.subject.method.codes(images), "labels": seen.labels}
        if not self.known:
            rows[PIXELS] = pca.pixels(images)
        return PartialSums(len(images), rows={name: value.cpu() for name, value in rows.items()})

    def refers_to(self) -> dict[str, object]:
        return {"seed": self.subject.asked.seed, "seeds": self.subject.asked.seeds}

    def reference(self, held_out: PartialSums, train: PartialSums | None) -> dict[str, Tensor]:
        """The same metrics of raw pixels."""
        measured = self._measured(held_out, train, PIXELS)
        return {name: torch.tensor(np.mean(values)) for name, values in measured.items()}

    def metrics(
        self, held_out: PartialSums, train: PartialSums | None, reference: Mapping[str, Tensor]
    ) -> dict[str, Metric]:
        _, labels = _labelled(held_out, CODES)
        protocol = {"classes": len(np.unique(labels)), "labelled": len(labels)}
        found = {}
        for name, values in self._measured(held_out, train, CODES).items():
            floor = {"raw pixels": float(reference[name])}
            if name.endswith("accuracy"):
                floor["always the commonest class"] = float(np.bincount(labels).max() / len(labels))
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
            found[name] = Metric(float(np.mean(values)), sd, floor, protocol)
        return found

    def _measured(
        self, held_out: PartialSums, train: PartialSums | None, what: str
    ) -> dict[str, list[float]]:
        """Each metric of one kind of rows; clusters, whose start is random, over several seeds."""
        assert train, "without training images the group is lacking"
        fitted_to, tested_on = _labelled(train, what), _labelled(held_out, what)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a probe at its limit of iterations is good enough
            found = {
                "knn_accuracy": [_neighbours(fitted_to, tested_on)],
                "linear_accuracy": [_linear(fitted_to, tested_on)],
            }
            for number in range(self.subject.asked.seeds):
                clusters = _clusters(fitted_to, tested_on, self.subject.asked.seed + number)
                for name, value in clusters.items():
                    found.setdefault(name, []).append(value)
        return found

    def maps(self, held_out: PartialSums, train: PartialSums | None) -> dict[str, CodeMap]:
        assert train, "without training images the group is lacking"
        codes, labels = map(torch.from_numpy, _labelled(held_out, CODES))
        found = {"codes": pca.code_map(train.rows[CODES].float(), codes, labels)}
        if self.subject.asked.tsne:
            some, seed = codes[:MOST_MAPPED], self.subject.asked.seed
            found["codes_tsne"] = _tsne(some, labels[:MOST_MAPPED], seed)
        return found


def _tsne(codes: Tensor, labels: Tensor, seed: int) -> CodeMap:
    """t-SNE (van der Maaten & Hinton 2008): neighbours stay near, distances mean nothing."""
    from sklearn.manifold import TSNE

    # scikit-learn refuses a perplexity that is not below the number of images.
    perplexity = min(PERPLEXITY, len(codes) // 3)
    fitted: Any = TSNE(init="pca", perplexity=perplexity, random_state=seed)
    points = torch.from_numpy(fitted.fit_transform(codes.numpy()))
    return CodeMap(points, labels, ("t-SNE 1", "t-SNE 2"))


def _labelled(collected: PartialSums, what: str) -> Labelled:
    """The rows that have a label."""
    labels = collected.rows["labels"].numpy()
    return collected.rows[what].float().numpy()[labels >= 0], labels[labels >= 0]


def _neighbours(train: Labelled, held_out: Labelled) -> float:
    from sklearn.neighbors import KNeighborsClassifier

    fitted: Any = KNeighborsClassifier(min(NEIGHBOURS, len(train[0]))).fit(*train)
    return float(fitted.score(*held_out))


def _linear(train: Labelled, held_out: Labelled) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # LogisticRegression refuses a single class.
    if len(np.unique(train[1])) == 1:
        return float((held_out[1] == train[1][0]).mean())
    probe = LogisticRegression(max_iter=MOST_ITERATIONS)
    # Scaled, since its regularisation depends on the scale of codes and pixels.
    fitted: Any = make_pipeline(StandardScaler(), probe).fit(*train)
    return float(fitted.score(*held_out))


def _clusters(train: Labelled, held_out: Labelled, seed: int) -> dict[str, float]:
    """Metrics of as many clusters as there are classes."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    # The best of three starts: one start can merge classes by chance.
    fitted: Any = KMeans(len(np.unique(train[1])), n_init=3, random_state=seed).fit(train[0])
    given, labels = fitted.predict(held_out[0]), held_out[1]
    return {
        "cluster_nmi": float(normalized_mutual_info_score(labels, given)),
        "cluster_ari": float(adjusted_rand_score(labels, given)),
        "cluster_purity": purity(labels, given),
    }


def purity(labels: Labels, given: Labels) -> float:
    """The share of images that have the commonest class of their cluster."""
    clusters = (labels[given == cluster] for cluster in np.unique(given))
    return sum(int(np.bincount(cluster).max()) for cluster in clusters) / len(labels)
