"""Planted ground truth: does PSI tell units that stand for several classes from units that stand for one, or for none?

    python benchmarks/planted.py                       # all of Tiny-ImageNet val

`tiny_imagenet.planted_units` says what the units are. Their top K images are embedded by EfficientNet-Lite2 and scored by
psi_fast.score_embeddings.
"""

import json

from sklearn.metrics import roc_auc_score
from tiny_imagenet import planted_arguments, planted_units

import psi_fast

options = planted_arguments(__doc__.splitlines()[0]).parse_args()
planted = planted_units(options)
scores = psi_fast.score_embeddings(
    planted.embeddings[planted.top],
    labels=planted.labels[planted.top],
    text=planted.text,
    concept_names=planted.names,
    config=psi_fast.PSIConfig(top_k=options.top_k, draws=options.draws, seed=options.seed),
    progress=True,
)
table = scores.table.assign(kind=planted.kind)
figures = {"accuracy": planted.accuracy}
print(f"Lite0 recognises {100 * planted.accuracy:.2f} % of the {len(planted.labels)} images")  # noqa: T201
for positive in ("poly2", "poly3"):
    for negative in ("mono", "random"):
        pair = table[table["kind"].isin([positive, negative])]
        for column in ("S_z", "Q_z", "D_z", "log_psi"):
            figures[f"{positive} vs {negative}: {column}"] = float(
                roc_auc_score(pair["kind"] == positive, pair[column])
            )
            print(f"AUROC {positive} vs {negative}: {column:8s} {figures[f'{positive} vs {negative}: {column}']:.4f}")  # noqa: T201
print(table.groupby("kind")[["psi", "k", "S_z", "Q_z", "D_z"]].mean().round(3).to_string())  # noqa: T201
if options.json:
    options.json.write_text(json.dumps(figures, indent=2))
if options.classes == 200 and min(figures[f"poly2 vs {other}: log_psi"] for other in ("mono", "random")) < 0.99:
    raise SystemExit("PSI's AUROC for poly2 is below .99")
