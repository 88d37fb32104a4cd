"""Methods of attribution, ranked by comprehensiveness over the sentences of a classifier's development set.

    python experiments/bench/attributions.py --model=runs/sst2 --data=sst2/dev.tsv --texts=60

Each of the first sentences is explained by each method; the number is the log-odds of the predicted label, and
comprehensiveness is the mean fall of its probability without the best 1, 5, 10, 20 and 50 % of the tokens, sufficiency
that with these tokens alone. Prints means with 95 % bootstrap intervals over the sentences.
"""

import argparse

import lmjax
from lmjax.analysis.attribution import METHODS
from lmjax.analysis.faithfulness import ranked
from lmjax.analysis.subject import decision


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--texts", type=int, default=60)
    parser.add_argument("--methods", default=",".join(METHODS))
    options = parser.parse_args()
    model = lmjax.load_model(options.model)
    with open(options.data, encoding="utf-8") as file:
        texts = [line.split("\t")[0] for _, line in zip(range(options.texts), file, strict=False)]
    methods = options.methods.split(",")
    found = ranked([decision(model, {"text": text}) for text in texts], methods).measured()
    for method in sorted(methods, key=lambda each: -found[f"{each} comprehensiveness"]):
        both = (found[f"{method} {name}"] for name in ("comprehensiveness", "sufficiency"))
        print(f"| {method} | {' | '.join(f'{x:.3f} ({x.low:.3f} to {x.high:.3f})' for x in both)} |")


if __name__ == "__main__":
    main()
