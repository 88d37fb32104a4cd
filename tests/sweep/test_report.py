"""Reports: what they say of known noise, which pairs they call real, and that the same results give the same bytes."""

import csv
import dataclasses
import io
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from scipy import stats

from lmjax.errors import FlagError
from lmjax.evaluation.documents import DocumentLosses
from lmjax.sweep.arms import RunResult, arms_of, with_shared
from lmjax.sweep.charts import Curve, curves, ticks
from lmjax.sweep.csv_table import table_csv
from lmjax.sweep.render import markdown, page
from lmjax.sweep.report import report_page, sections, write_files
from lmjax.sweep.statistics import analyse, design

RNG = np.random.default_rng(0)
DOCUMENTS = RNG.normal(3, 0.5, 80)
BYTES = RNG.integers(20, 90, 80).astype(float)


def run(name, effect=0.0, status="done", tokenizer="t", deviation=0.02, weight=10.0, **fields):
    """A run whose losses are those of the documents, an effect, and noise of its seed."""
    rng = np.random.default_rng(sum(map(ord, name)))
    losses = DOCUMENTS + effect + rng.normal(0, deviation) + rng.normal(0, 0.02, 80)
    weights = np.full((1, 80), weight)
    documents = DocumentLosses(
        names=("next_token",),
        loss_weights=np.ones(1),
        nats=losses[None] * weights,
        weights=weights,
        correct=np.full((1, 80), 5.0),
        num_bytes=BYTES[None],
        fingerprint="f",
        tokenizer=tokenizer,
        step=40,
    )
    bits = float((losses * weights[0]).sum() / math.log(2) / BYTES.sum())
    metrics = {"eval/heldout/loss": documents.loss, "eval/heldout/next_token/bits_per_byte": bits}
    lines = [{"step": step, **{k: v + (40 - step) / 40 for k, v in metrics.items()}} for step in (0, 20, 40)]
    return RunResult(
        name=name,
        fields=fields,
        status=status,
        metrics=metrics,
        lines=lines,
        documents={"heldout": documents},
        steps=40,
        tokens=1000,
        flops=1e9,
        seconds=2.0,
        environment={"commit": "abc", "lmjax": "0.1.0", "packages": {"jax": "1"}},
        data={"train": "print"},
        command=f"lmjax train --{name}",
    )


def arm(rate, effect, count=3, **changes):
    return [
        run(f"{rate}{changes}-{i}", effect, **changes | {"optimizer.learning_rate": rate, "seed": i})
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def runs():
    return [*arm(0.1, 0.0), *arm(0.2, 0.4), *arm(0.3, 0.001)]


@pytest.fixture(scope="module")
def found(runs):
    return analyse(arms_of(with_shared(r) for r in runs))


def test_runs_that_differ_in_seeds_alone_are_one_arm(found):
    assert [(a.label, len(a.runs)) for a in found.arms] == [(f"learning_rate=0.{i}", 3) for i in (1, 2, 3)]
    assert found.metric == "eval/heldout/loss"
    values = [r.metrics[found.metric] for r in found.arms[1].runs]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert found.interval(1) == pytest.approx((np.mean(values), low, high, 3))


def test_a_difference_is_real_where_there_is_one(found):
    real = {(pair.first, pair.second): pair.real for pair in found.pairs}
    assert real == {(0, 1): True, (0, 2): False, (1, 2): True}
    first = found.pairs[0]
    assert first.value == pytest.approx(found.interval(0).value - found.interval(1).value)
    assert [pair.corrected >= pair.p for pair in found.pairs] == [True] * 3
    assert max(pair.corrected / pair.p for pair in found.pairs) == pytest.approx(3, abs=0.1) or first.corrected == 1
    assert found.documents == 80
    assert "alone, and share" not in markdown("x", sections(found))
    assert "<td>real</td>" in page("x", sections(found))
    assert "not shown" in markdown("x", sections(found))


def test_documents_are_what_makes_it_visible(runs):
    """Without pairs of documents, single runs say nothing; with them they do, and a note says what is missing."""
    single = [r for r in runs if r.fields["seed"] == 0]
    with_documents = analyse(arms_of(single))
    assert with_documents.pairs[0].p < 0.01
    assert not with_documents.pairs[0].real
    assert "of these runs" in markdown("x", sections(with_documents))
    assert "with a single run says nothing of the noise" in markdown("x", sections(with_documents))
    without = analyse(arms_of(dataclasses.replace(r, documents={}) for r in single))
    assert [pair.p for pair in without.pairs] == [1.0] * 3
    assert without.documents == 0
    assert "Documents are not paired: the documents of" in markdown("x", sections(without))


@pytest.mark.parametrize("changes", [{"weight": 7.0}, {"tokenizer": "other"}])
def test_other_targets_are_compared_in_bits_per_byte(runs, changes):
    other = [*runs[:3], *arm(0.2, 0.4, **changes)]
    found = analyse(arms_of(with_shared(r) for r in other))
    assert found.metric == "eval/heldout/bits_per_byte"
    assert found.pairs[0].value == pytest.approx(found.interval(0).value - found.interval(1).value)
    assert found.documents == 80


def test_a_difference_that_a_control_shows_too_is_marked(runs):
    control = {"data.control": "shuffled_tokens"}
    plain = [dataclasses.replace(r, fields={**r.fields, "data.control": "none"}) for r in runs]
    controls = [*arm(0.1, 1.0, **control), *arm(0.2, 1.4, **control), *arm(0.3, 1.0, **control)]
    found = analyse(arms_of([*plain, *controls]))
    assert [(p.first, p.second, p.control) for p in found.pairs] == [
        (0, 1, "shuffled_tokens"), (0, 2, ""), (1, 2, "shuffled_tokens"),
    ]  # fmt: skip
    assert not found.pairs[0].real
    assert "also under shuffled_tokens" in markdown("x", sections(found))
    flat = [*arm(0.1, 1.0, **control), *arm(0.2, 1.0, **control), *arm(0.3, 1.0, **control)]
    assert analyse(arms_of([*plain, *flat])).pairs[0].real
    opposite = [*arm(0.1, 1.4, **control), *arm(0.2, 1.0, **control), *arm(0.3, 1.0, **control)]
    assert analyse(arms_of([*plain, *opposite])).pairs[0].real


def test_noise_is_taken_apart_by_source():
    found = []
    for i in range(6):
        for j in range(6):
            made = run("x", seed=0, **{"seeds.init": i, "seeds.order": j})
            value = 3 + 0.5 * math.sin(7 * i) + 0.1 * math.sin(9 * j)
            found.append(dataclasses.replace(made, metrics={"eval/heldout/loss": value}, documents={}))
    noise = {each.source: each.deviation for each in analyse(arms_of(found)).noise}
    assert noise["seeds.init"].value == pytest.approx(np.std([0.5 * math.sin(7 * i) for i in range(6)], ddof=1))
    assert noise["seeds.order"].value == pytest.approx(np.std([0.1 * math.sin(9 * i) for i in range(6)], ddof=1))
    assert noise["seeds.init"].freedom == 30
    assert "seeds.dropout" not in noise
    text = markdown("x", sections(analyse(arms_of(found))))
    assert "differ in seeds.init and seeds.order alone" in text, "runs that share a seed are not independent"


@pytest.mark.parametrize(
    ("changes", "metric", "warned"),
    [
        ([{"objective": "mlm"}, {"objective": "next_token"}], None, "Arms differ in objective"),
        ([{"task.mlm.mask_rate": 0.15}, {"task.mlm.mask_rate": 0.4}], None, "Arms differ in task.mlm.mask_rate"),
        ([{"task.mlm.mask_rate": 0.15}, {"task.mlm.mask_rate": 0.15}], None, ""),
        ([{"task.length": 64}, {"task.length": 128}], None, ""),
        ([{"objective": "mlm"}, {"objective": "next_token"}], "heldout/accuracy", ""),
    ],
)
def test_losses_of_different_tasks_are_not_taken_for_better_and_worse_models(changes, metric, warned):
    arms = [arm(0.1 * (i + 1), 0.0, 2, **change) for i, change in enumerate(changes)]
    given = [dataclasses.replace(r, metrics=r.metrics | {"eval/heldout/accuracy": 0.5}) for a in arms for r in a]
    text = markdown("A sweep", sections(analyse(arms_of(with_shared(r) for r in given), metric)))
    assert (warned in text) if warned else ("Arms differ" not in text)


def test_runs_that_ended_badly_are_counted_and_left_out(runs):
    bad = [run("bad", 9.0, status="diverged", **{"optimizer.learning_rate": 0.1, "seed": 3})]
    alone = [run("lost", 9.0, status="crashed", **{"optimizer.learning_rate": 0.9, "seed": 0})]
    found = analyse(arms_of([*runs, *bad, *alone]))
    assert found.interval(0) == analyse(arms_of(runs)).interval(0)
    text = markdown("x", sections(found))
    assert "| learning_rate=0.1 | 3 (1 diverged) |" in text
    assert "| learning_rate=0.9 | 0 (1 crashed) | - | - |" in text
    with pytest.raises(FlagError, match="no run has ended well"):
        analyse(arms_of(bad))


def test_the_best_evaluation_of_a_run_is_shown_beside_the_last(runs):
    def dipping(each):
        lines = [*each.lines[:-1], {"step": 30, "eval/heldout/loss": 1.0}, each.lines[-1]]
        return dataclasses.replace(each, lines=lines)

    found = analyse(arms_of(map(dipping, runs)))
    assert found.best[0].value == 1.0 < found.interval(0).value


def test_the_wanted_metric_is_compared(runs):
    found = analyse(arms_of(runs), "heldout/next_token/bits_per_byte")
    assert found.pairs[0].value == pytest.approx(found.interval(0).value - found.interval(1).value)
    assert found.documents == 80
    with pytest.raises(FlagError, match="--metric=x: not all runs have it; they share eval/heldout/loss"):
        analyse(arms_of(runs), "x")


def test_the_same_results_give_the_same_bytes_and_the_page_loads_nothing(runs):
    made = [analyse(arms_of(with_shared(r) for r in runs)) for _ in range(2)]
    one, other = (page("A sweep", sections(f)) + markdown("A sweep", sections(f)) + table_csv(f) for f in made)
    assert one == other
    assert not [word for word in ("http:", "https:", "src=", "<script", "@import", "url(") if word in one]
    body = page("A & B", sections(made[0]))
    for chart in body.split("<svg")[1:]:
        ElementTree.fromstring(f"<svg{chart.split('</svg>')[0]}</svg>")
    assert "A &amp; B" in body
    assert "nan" not in one.replace("noNan", "")


def test_each_chart_is_a_file_that_stands_alone(runs, tmp_path):
    """It holds the colours that the page has for all of its charts."""
    parts = sections(found := analyse(arms_of(with_shared(r) for r in runs)))
    write_files(tmp_path, found)
    files = {path.name: path.read_text() for path in tmp_path.glob("*.svg")}
    assert len(files) == len([part for part in parts if part.chart])
    assert {"report-results.svg", "report-learning-curves.svg", "report-along-learning_rate.svg"} <= files.keys()
    for text in files.values():
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        style = root.find("{http://www.w3.org/2000/svg}style").text
        used = {name for each in root.iter() for name in each.get("class", "").split()}
        assert all(f".{name}" in style for name in used)
        assert text.count("http") == 1


def test_the_table_has_every_run_and_every_pair(found, runs):
    rows = list(csv.DictReader(io.StringIO(table_csv(found))))
    assert [row["kind"] for row in rows] == ["run"] * 9 + ["pair"] * 3
    assert rows[0]["optimizer.learning_rate"] == "0.1"
    assert float(rows[4]["eval/heldout/loss"]) == runs[4].metrics["eval/heldout/loss"]
    assert float(rows[9]["p_holm"]) == found.pairs[0].corrected


def test_a_plan_says_what_it_can_detect():
    control = {"data.control": "shuffled_tokens"}
    fields = [{"optimizer.learning_rate": rate, "seed": seed} for rate in (1, 2, 3) for seed in range(3)]
    assert "3 arms, 3 seeds each: differences of at least 5.2 standard" in design(
        [*fields, *(f | control for f in fields)]
    )
    assert "with one seed" in design([each for each in fields if each["seed"] == 0])
    assert design(fields[:3]) == ""


def test_curves_have_bands_and_round_ticks():
    assert ticks(0.13, 1.0) == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(2, 2) == [2]
    chart = curves([Curve("a<b", [0, 1, 2], [3.0, 2.0, 1.0], [2.9, 1.9, 0.9], [3.1, 2.1, 1.1])], "step", "loss")
    assert chart.count("<polygon") == 1
    assert "a&lt;b" in chart
    assert curves([Curve("a", [0], [math.nan], [math.nan], [math.nan])], "step", "loss") == ""


def test_bands_stay_inside_the_chart_and_those_wider_than_it_are_left_out():
    """Two runs give intervals many times as wide as all differences."""
    means, slim, wide = [3.0, 2.0, 1.0], [0.6, 0.6, 0.6], [9.0, 9.0, 9.0]
    given = [
        Curve(name, [0, 1, 2], means, [m - x for m, x in zip(means, half, strict=True)],
              [m + x for m, x in zip(means, half, strict=True)])
        for name, half in (("slim", slim), ("wide", wide))
    ]  # fmt: skip
    root = ElementTree.fromstring(curves(given, "step", "loss"))
    (band,) = root.findall("polygon")
    axis = max(
        float(line.get("y1")) for line in root.findall("line[@class='axis']") if line.get("y1") == line.get("y2")
    )
    assert all(float(point.split(",")[1]) <= axis for point in band.get("points").split())


def test_a_field_with_numbers_has_a_line_for_each_setting_of_the_others():
    """Losses are parabolas over the logarithm of the learning rate, whose lowest points are known."""
    lowest = {64: 2.0**-6, 128: 2.0**-7}
    rates = [2.0**power for power in range(-9, -3)]
    given = [
        each
        for width, at in lowest.items()
        for rate in rates
        for each in arm(rate, math.log2(rate / at) ** 2, width=width, deep=3 * width, act=f"w{width}")
    ]
    found = analyse(arms_of(with_shared(r) for r in given))
    parts = [part for part in sections(found) if part.title.startswith("Along")]
    assert [part.title for part in parts] == ["Along learning_rate"], "widths differ together with other fields"
    rows = {label: (at, value) for label, at, value in parts[0].table[1:]}
    assert {label.split("=")[1].split(",")[0]: float(at) for label, (at, _) in rows.items()} == {
        str(width): at for width, at in lowest.items()
    }
    assert all("±" in value for _, value in rows.values())
    assert "0.0156</text>" in parts[0].chart, "each rate is a mark of the axis"
    marks = ElementTree.fromstring(parts[0].chart).findall("line[@class='axis']")
    places = sorted({float(mark.get("x1")) for mark in marks if mark.get("x1") == mark.get("x2")})
    assert np.allclose(np.diff(places), np.diff(places)[0], atol=0.3), "the axis is logarithmic"
    for line in ElementTree.fromstring(parts[0].chart).findall("polyline"):
        drawn = [float(point.split(",")[0]) for point in line.get("points").split()]
        np.testing.assert_allclose(drawn, places, atol=0.3, err_msg="each point stands above the mark of its rate")


def test_the_best_value_at_the_edge_is_called_so():
    found = analyse(arms_of(with_shared(r) for rate in (1, 2, 3) for r in arm(rate, rate / 10)))
    (part,) = (part for part in sections(found) if part.title.startswith("Along"))
    assert part.table[1][:2] == ("all arms", "1 (at the edge)")
    two = analyse(arms_of(with_shared(r) for rate in (1, 2) for r in arm(rate, rate / 10)))
    assert not [part for part in sections(two) if part.title.startswith("Along")]


def test_a_notebook_shows_the_written_report_in_a_frame_of_its_own(tmp_path):
    with pytest.raises(FlagError, match="there is no such file; lmjax sweep writes it"):
        report_page(tmp_path)
    (tmp_path / "report.html").write_text('<body class="a">&</body>')
    frame = ElementTree.fromstring(report_page(tmp_path)._repr_html_()).find("iframe")
    assert frame.get("srcdoc") == '<body class="a">&</body>'
