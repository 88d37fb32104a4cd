"""Benchmark of fine-tuning against transformers' Trainer on torch: the same recipe, processes in turns.

    pip install torch==2.13.0 && pip install transformers accelerate
    python experiments/bench/finetune.py --model=MINILM_FOLDER --data=sst2/train.tsv --steps=100 --rounds=3

Both train a classifier of single sentences from the same folder: batches of 16, at most 48 tokens, AdamW with a linear
schedule, float32. The Trainer pads each batch to its longest text, as it does by default; lmjax packs the rows of a
batch for the layers. A round is a process of each; the seconds are those of the last three quarters of the steps, so
that neither start-up nor compilation counts. Prints steps/s, texts/s, the ratio of the medians, and the peak memory of
each process.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

BATCH, LENGTH, RATE = 16, 48, 5e-5
HERE = pathlib.Path(__file__)


def ours(options: argparse.Namespace) -> dict:
    """Returns the steps per second of lmjax, and its peak memory in bytes."""
    import lmjax
    from lmjax.parallel.malloc import keep_freed_memory
    from lmjax.training.metrics import read_lines

    keep_freed_memory()  # as `lmjax train` does

    skipped = options.steps // 4
    with tempfile.TemporaryDirectory() as folder:
        config = lmjax.resolve(
            objective=("classification",),
            init_from=options.model,
            fields={
                "steps": options.steps,
                "epochs": None,
                "batch_size": BATCH,
                "task.length": LENGTH,
                "data.train": options.data,
                "data.column_names": ("text", "label"),
                "optimizer.learning_rate": RATE,
                "evaluation.every": 0,
                "evaluation.batches": 1,
                "checkpoint.every": 0,
                "logging.every": skipped,
                "logging.tensorboard": False,
            },
        )
        lmjax.train(config, pathlib.Path(folder) / "run", progress=False)
        lines = [line for line in read_lines(pathlib.Path(folder) / "run") if "train/steps_per_second" in line]
    seconds = sum(skipped / line["train/steps_per_second"] for line in lines[1:])
    return {"steps_per_second": (options.steps - skipped) / seconds}


def trainer(options: argparse.Namespace) -> dict:
    """Returns the same of transformers' Trainer."""
    import transformers

    rows = [line.split("\t") for line in pathlib.Path(options.data).read_text(encoding="utf-8").splitlines()]
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2)
    data = [
        tokenizer(text, truncation=True, max_length=LENGTH) | {"labels": int(label)}
        for text, label in rows[: options.steps * BATCH]
    ]
    times = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            max_steps=options.steps,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            lr_scheduler_type="linear",
            warmup_steps=options.steps // 10,
            weight_decay=0.01,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        collator = transformers.DataCollatorWithPadding(tokenizer)
        transformers.Trainer(
            model, arguments, train_dataset=data, data_collator=collator, callbacks=[Clock()]
        ).train()  # fmt: skip
    skipped = options.steps // 4
    return {"steps_per_second": (options.steps - skipped) / (times[-1] - times[skipped - 1])}


def main() -> None:
    """Prints the speed and peak memory of both, and the ratio of the speeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("ours", "trainer"))
    options = parser.parse_args()
    if options.only:
        found = (ours if options.only == "ours" else trainer)(options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(found | {"peak_memory_bytes": peak}))
        return
    found: dict[str, list[dict]] = {"ours": [], "trainer": []}
    for _ in range(options.rounds):
        for name, each in found.items():
            command = [sys.executable, str(HERE), *sys.argv[1:], f"--only={name}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            each.append(json.loads(done.stdout.splitlines()[-1]))
    speeds = {name: statistics.median(x["steps_per_second"] for x in each) for name, each in found.items()}
    for name, each in found.items():
        peak = statistics.median(x["peak_memory_bytes"] for x in each)
        print(f"{name}: {speeds[name]:.2f} steps/s, {speeds[name] * BATCH:.1f} texts/s, peak {peak / 2**20:,.0f} MiB")
    ratios = [a["steps_per_second"] / b["steps_per_second"] for a, b in zip(*found.values(), strict=True)]
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"ratio in each round: {each}; of the medians {speeds['ours'] / speeds['trainer']:.2f}")


if __name__ == "__main__":
    main()
