"""What codes say of the classes of images, beside what the raw pixels say; needs labels, and
scikit-learn.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udl_dist.evaluation import flat, plain
from udl_dist.evaluation.metric_group import Family, Figure, Plane, Seen, Subject, Taken

CODES, PIXELS = "codes", "pixels"  # rows that classes are looked for in
NEIGHBOURS = 10
TURNS = 300  # of the linear probe
# neighbours that t-SNE keeps near, and images: their products go into its time
PERPLEXITY, MOST_MAPPED = 30, 5000

Rows = NDArray[np.float32]
Labels = NDArray[np.int64]
Set = tuple[Rows, Labels]


class Representation(Family):
    """Neighbours, a linear probe and clusters, all learned from training images and measured on
    held-out ones.
    """

    name: ClassVar[str] = "representation"
    learns: ClassVar[bool] = True
    least: ClassVar[int] = 50

    @classmethod
    def lacking(cls, subject: Subject) -> str:
        if not subject.method.can("encode"):
            return "it cannot encode"
        if not subject.labelled:
            return "its images have no labels (cls), or there are no training images"
        if importlib.util.find_spec("sklearn") is None:
            return "it needs scikit-learn: pip install 'udl-dist[evaluate]'"
        return ""

    def take(self, which: str, seen: Seen) -> Taken:
        images = seen.batch.images
        rows = {CODES: self.subject.method.encode(images), "labels": seen.labels}
        if not self.known:
            rows[PIXELS] = plain.pixels(images)
        return Taken(len(images), rows={name: value.cpu() for name, value in rows.items()})

    def refers_to(self) -> dict[str, object]:
        return {"seed": self.subject.asked.seed, "seeds": self.subject.asked.seeds}

    def reference(self, held_out: Taken, train: Taken | None) -> dict[str, Tensor]:
        """The same figures of raw pixels."""
        return {
            name: torch.tensor(value, dtype=torch.float64)
            for name, (value, _) in self._measured(held_out, train, PIXELS).items()
        }

    def figures(
        self, held_out: Taken, train: Taken | None, reference: Mapping[str, Tensor]
    ) -> dict[str, Figure]:
        _, labels = _labelled(held_out, CODES)
        commonest = float(np.bincount(labels).max() / len(labels))
        protocol = {"classes": len(np.unique(labels)), "labelled": len(labels)}
        return {
            name: Figure(
                value,
                spread,
                {"raw pixels": float(reference[name])}
                | ({"always the commonest class": commonest} if name.endswith("accuracy") else {}),
                protocol,
            )
            for name, (value, spread) in self._measured(held_out, train, CODES).items()
        }

    def _measured(
        self, held_out: Taken, train: Taken | None, what: str
    ) -> dict[str, tuple[float, float | None]]:
        assert train, "without training images the family is lacking"
        return _measured(
            _labelled(train, what),
            _labelled(held_out, what),
            self.subject.asked.seed,
            self.subject.asked.seeds,
        )

    def maps(self, held_out: Taken, train: Taken | None) -> dict[str, Plane]:
        assert train, "without training images the family is lacking"
        codes, labels = (torch.from_numpy(one) for one in _labelled(held_out, CODES))
        found = {"codes": flat.principal(train.rows[CODES].float(), codes, labels)}
        if self.subject.asked.tsne:
            found["codes_tsne"] = _neighbourhoods(
                codes[:MOST_MAPPED], labels[:MOST_MAPPED], self.subject.asked.seed
            )
        return found


def _neighbourhoods(codes: Tensor, labels: Tensor, seed: int) -> Plane:
    """t-SNE (van der Maaten & Hinton 2008): who is near whom; distances and sizes say nothing."""
    from sklearn.manifold import TSNE

    fitted: Any = TSNE(init="pca", perplexity=min(PERPLEXITY, len(codes) // 3), random_state=seed)
    points = torch.from_numpy(fitted.fit_transform(codes.numpy()))
    return Plane(points, labels, ("t-SNE 1", "t-SNE 2"))


def _labelled(taken: Taken, what: str) -> Set:
    """The rows that have a label."""
    labels = taken.rows["labels"].numpy()
    return taken.rows[what].float().numpy()[labels >= 0], labels[labels >= 0]


def _measured(
    train: Set, held_out: Set, seed: int, seeds: int
) -> dict[str, tuple[float, float | None]]:
    """Every figure of one kind of rows, with its deviation over seeds where it starts by chance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a probe that is stopped early is none the worse for it
        found: dict[str, tuple[float, float | None]] = {
            "knn_accuracy": (_neighbours(train, held_out), None),
            "linear_accuracy": (_linear(train, held_out), None),
        }
        clustered = [_clusters(train, held_out, seed + number) for number in range(seeds)]
    for name in clustered[0]:
        values = [one[name] for one in clustered]
        found[name] = float(np.mean(values)), float(np.std(values, ddof=1)) if seeds > 1 else None
    return found


def _neighbours(train: Set, held_out: Set) -> float:
    from sklearn.neighbors import KNeighborsClassifier

    fitted: Any = KNeighborsClassifier(min(NEIGHBOURS, len(train[0]))).fit(*train)
    return float(fitted.score(*held_out))


def _linear(train: Set, held_out: Set) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(train[1])) == 1:
        return float((held_out[1] == train[1][0]).mean())
    fitted: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=TURNS)).fit(*train)
    return float(fitted.score(*held_out))


def _clusters(train: Set, held_out: Set, seed: int) -> dict[str, float]:
    """As many clusters as there are classes."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    fitted: Any = KMeans(len(np.unique(train[1])), n_init=3, random_state=seed).fit(train[0])
    given, labels = fitted.predict(held_out[0]), held_out[1]
    return {
        "cluster_nmi": float(normalized_mutual_info_score(labels, given)),
        "cluster_ari": float(adjusted_rand_score(labels, given)),
        "cluster_purity": purity(labels, given),
    }


def purity(labels: Labels, given: Labels) -> float:
    """The part of images that have the commonest class of their cluster."""
    counted = sum(int(np.bincount(labels[given == cluster]).max()) for cluster in np.unique(given))
    return counted / len(labels)
