"""Top-1 accuracy on Tiny-ImageNet val, restricted to its 200 classes: are weights and preprocessing right?

python benchmarks/accuracy.py                      # Lite0 reaches 54.5 % from 64 px originals
"""

import json

from tiny_imagenet import arguments, imagenet_rows, open_labelled, responses

parser = arguments(__doc__.splitlines()[0])
parser.add_argument("--network", default="efficientnet-lite:lite0")
parser.add_argument("--layer", default="_fc", help="layer of the logits")
parser.add_argument("--max-images", type=int)
options = parser.parse_args()

images = open_labelled(options.images, options.max_images)
logits = responses(options.network, options.layer, images)[:, imagenet_rows(images)]
accuracy = float((logits.argmax(1) == images.labels).mean())
print(f"{options.network}: {100 * accuracy:.2f} % of {len(images)} images")  # noqa: T201
if options.json:
    options.json.write_text(json.dumps({"network": options.network, "images": len(images), "accuracy": accuracy}))
