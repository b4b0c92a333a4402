"""Results in the documents are those of their records."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from toys import make_images

import widelimit as wl
from widelimit.doctor import Machine
from widelimit.experiments.environment import Environment
from widelimit.plot import draw_record
from widelimit.report.finite import to_markdown as to_tables

ROOT = Path(__file__).parents[1]


def load_benchmark(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def changed(record: Any) -> Any:
    """Return a record of which no fraction is what it was, but what was tried."""
    if isinstance(record, dict):
        held = cast("dict[str, Any]", record)
        return {key: value if key == "whitening" else changed(value) for key, value in held.items()}
    if isinstance(record, list):
        return [changed(value) for value in cast("list[Any]", record)]
    return record * 1.37 + 0.01 if isinstance(record, float) else record


def test_the_page_of_results_is_that_of_the_records(tmp_path: Path) -> None:
    generator = load_benchmark("results")
    template = (ROOT / "benchmarks" / "results.md").read_text()
    page = generator.render(ROOT / "results", template)
    assert page == (ROOT / "docs" / "results.md").read_text()
    shutil.copytree(ROOT / "results", tmp_path / "results")
    for path in (tmp_path / "results").iterdir():
        assert f"[results/{path.name}](../results/{path.name}): " in page
        text = path.read_text()
        path.write_text(json.dumps(changed(json.loads(text))))
        other = generator.render(tmp_path / "results", template)
        old, new = page.splitlines(), other.splitlines()
        rows = [line for line in new if line.startswith("| ") and line not in old]
        assert len(rows) >= 3, path.name
        path.write_text(text)
    assert generator.render(tmp_path / "results", template) == page


def test_records_of_results_have_a_place(tmp_path: Path) -> None:
    generator = load_benchmark("results")
    record = json.loads((ROOT / "results" / "table1-v-2k.json").read_text())
    record["environment"]["command"] = "widelimit reproduce table1 '/home/me/my images' --out x"

    def put(name: str, content: Any) -> None:
        (tmp_path / name).write_text(json.dumps(content))

    put("a.json", record)
    page = generator.render(tmp_path, "# Results\n\n## A\n\n<!-- records: table1 -->\n\nEnd.\n")
    assert "\n## A\n\ncntk-v-2k: 2,000 training and 1,000 test images\n\n| depth | " in page
    commit = record["environment"]["commit"][:7]
    assert f": `widelimit reproduce table1 'my images' --out x`; commit {commit}; " in page
    template = "# Results\n\n## A\n\n<!-- record: a.json -->\n\n## B\n\n<!-- records: table1 -->\n"
    assert "## B" not in generator.render(tmp_path, template)  # a section without its records
    put("b.json", record)
    assert generator.render(tmp_path, template).index("## B") > 0
    with pytest.raises(ValueError, match=r"results/a\.json is of the kind table1, for which"):
        generator.render(tmp_path, "# Results\n")
    with pytest.raises(ValueError, match=r"results\.md names c\.json, which results/ lacks"):
        generator.render(tmp_path, "<!-- record: c.json -->")
    with pytest.raises(ValueError, match="names the kinds rnak: none is one"):
        generator.render(tmp_path, "<!-- records: rnak -->")
    put("c.json", record | {"format": "widelimit.table3/1"})
    with pytest.raises(ValueError, match=r"results/c\.json must be a record of a known kind"):
        generator.render(tmp_path, template)


def test_tables_of_other_kinds_of_records() -> None:
    generator = load_benchmark("results")
    points = [{"size": 10, "mean": 0.25, "std": 0.031}, {"size": 1280, "mean": 0.5, "std": None}]
    record = {
        "format": "widelimit.learning_curve/1",
        "data": {"name": "cifar10", "n_test": 1000},
        "draws": 20,
        "curves": [{"label": "GAP", "points": points}, {"label": "SVM", "points": points}],
    }
    assert generator.kind_of("x.json", record) == "learning_curve"
    assert generator._TABLES["learning_curve"](record) == (
        "cifar10, 1,000 test images, 20 draws\n\n| training images | GAP | SVM |\n|---|---|---|\n"
        "| 10 | 25.0% ± 3.1 | 25.0% ± 3.1 |\n| 1,280 | 50.0% | 50.0% |"
    )
    for form, kind in (
        ("whitening/1", "whitening"),
        ("readouts/1", "readouts"),
        ("myrtle/1", "myrtle"),
    ):
        assert generator.kind_of("x.json", {"format": f"widelimit.{form}"}) == kind


def test_the_measurements_are_those_that_were_asked_for() -> None:
    records = {p.stem: json.loads(p.read_text()) for p in (ROOT / "results").glob("*.json")}
    assert len(records["rank-16x16"]["architectures"]) >= 12
    assert len(records["small-data"]["draws"]) == load_benchmark("small_data").DRAWS
    assert load_benchmark("tabular").REPEATS == 10


def test_a_card() -> None:
    record = json.loads((ROOT / "docs" / "records" / "gpu-check.json").read_text())
    page = (ROOT / "docs" / "gpu.md").read_text()
    for table in load_benchmark("gpu_check").table(record).split("\n\n"):
        assert table.strip() in page


RECORDS = sorted(
    path for name in ("results", "docs/records") for path in (ROOT / name).glob("*.json")
)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_no_place_of_a_machine_is_in_a_record(path: Path) -> None:
    assert not re.search(r"[\s\"'=]/(home|root|tmp|mnt|work|Users)/", path.read_text())


def test_the_official_kernels_on_a_card() -> None:
    record = json.loads((ROOT / "docs" / "records" / "gpu-peers.json").read_text())
    assert load_benchmark("gpu_peers").table(record) in (ROOT / "docs" / "gpu.md").read_text()


def test_speeds_of_the_readme_are_those_of_the_record() -> None:
    record = json.loads((ROOT / "docs" / "records" / "bench-peers.json").read_text())
    page = (ROOT / "README.md").read_text()
    for kind, unit in (("GAP", 1e-3), ("V", 1e-6)):
        cases = [case for case in record["cases"] if case["kind"] == kind]
        assert [case["depth"] for case in cases] == [3, 11, 21]
        ratios = " | ".join(f"{case['ratio']:.0f}" for case in cases)
        rows = [f"| | ratio | {ratios} |"]
        for name, key in (("| widelimit", "widelimit"), ("neural-tangents", "neural_tangents")):
            times = [np.median(case["seconds_per_pair"][key]) / unit for case in cases]
            cells = [f"{t:,.0f}" if t >= 1000 else f"{t:#.3g}".rstrip(".") for t in times]
            rows.append(f"{name}, {'ms' if kind == 'GAP' else 'µs'} | {' | '.join(cells)} |")
        for row in rows:
            assert row in page


def test_myrtle_networks_next_to_neural_tangents() -> None:
    record = json.loads((ROOT / "docs" / "records" / "bench-peers-myrtle.json").read_text())
    page = (ROOT / "docs" / "performance.md").read_text()
    for case in record["cases"]:
        ms = {key: 1e3 * np.median(times) for key, times in case["seconds_per_pair"].items()}
        assert (
            f"| Myrtle-{case['depth']} | {case['batch']} × {case['batch']} | "
            f"{ms['neural_tangents']:.0f} ms | {ms['widelimit']:.3g} ms | {case['ratio']:.0f} | "
            f"{case['difference']:.1e} |".replace("e-0", "e-")
        ) in page


def test_faults_at_random() -> None:
    record = json.loads((ROOT / "docs" / "records" / "faults.json").read_text())
    benchmark = load_benchmark("faults")
    assert record["faults"] >= 2000
    assert benchmark.is_good(record)
    assert benchmark.table(record) in (ROOT / "docs" / "guarantees.md").read_text()


NAMES = ("theorem31", "theorem32", "weakly-trained", "table2", "cnn-digits")


@pytest.mark.parametrize("name", NAMES)
def test_finite_networks(name: str) -> None:
    record = json.loads((ROOT / "results" / f"{name}.json").read_text())
    page = (ROOT / "docs" / "finite.md").read_text()
    assert to_tables(record) in page
    for decay in record.get("decays", []):
        half = 1.96 * decay["slope_error"]
        assert decay["slope"] - half > -0.6
        assert decay["slope"] + half < -0.4
    for mean in record.get("means", []):
        assert mean["draws"] == 200
        assert mean["largest"] < 3
    if name == "theorem32":
        runs = record["training"]["runs"]
        widths = sorted({run["width"] for run in runs})
        gaps = [np.mean([r["gaps"][-1] for r in runs if r["width"] == w]) for w in widths]
        assert widths == [64, 256, 1024, 4096]
        assert gaps == sorted(gaps, reverse=True)
    if name == "table2":
        cases = [(row["readout"], row["depth"]) for row in record["rows"]]
        assert cases == [(readout, depth) for readout in ("v", "gap") for depth in (3, 4, 6)]
        assert all(row["accuracy"] > row["median"] for row in record["rows"])


@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_finite_networks_are_those_of_the_records(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    record = json.loads((ROOT / "results" / f"{name}.json").read_text())
    draw_record(record, tmp_path / "p.svg")
    drawn, kept = (
        re.findall(">([^<>]*[a-z0-9][^<>]*)<", path.read_text())
        for path in (tmp_path / "p.svg", ROOT / "docs" / "pictures" / f"{name}.svg")
    )
    assert drawn == kept  # all that is written in it; where lines lie depends on the version


def test_calibration() -> None:
    path = ROOT / "results" / "calibration.json"
    benchmark = load_benchmark("calibration")
    assert "| fashion-mnist | 5,000 | " in benchmark.table(json.loads(path.read_text()))
    picture = (ROOT / "docs" / "pictures" / "calibration.svg").read_text()
    assert benchmark.digest(path) in picture


def test_accuracy_says_in_words_where_it_was_measured() -> None:
    packages = {"numpy": "2.4.6", "scipy": "1.17.1", "scikit-learn": "1.9.1", "zarr": "3.1.6"}
    machine = Machine(
        system="Linux 6.18.44-fc-v669 x86_64",
        cpu="AMD EPYC (family 25, model 17, stepping 1)",
        cores_usable=2,
        cores=2,
        memory_free=None,
        gpu_driver=False,
        python="CPython 3.11.7",
        packages=packages | {"torch": None},
    )
    commit = "5e265cb0e0d1010e69817b0a92d82d3691df2bae"
    told = Environment("accuracy.py", "2026-11-28T13:13:00", "0.1.0", commit, False, machine)
    page = (ROOT / "docs" / "accuracy.md").read_text()
    assert page.endswith(f"## Record\n\n{load_benchmark('accuracy').describe(told)}\n")


def test_measures_of_calibration() -> None:
    # Odds 3 to 1, right three times of four: calibrated, and the temperature 1 is the best.
    outputs = np.tile([np.log(3.0), 0.0], (4, 1))
    labels = np.array([0, 0, 0, 1])
    benchmark = load_benchmark("calibration")
    found = benchmark.assess(outputs, labels, 1.0)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert found["nll"] == pytest.approx(entropy)
    assert found["brier"] == pytest.approx((3 * 2 * 0.25**2 + 2 * 0.75**2) / 4)
    assert found["ece"] == pytest.approx(0.0, abs=1e-12)
    assert found["confidence"] == pytest.approx(0.75)
    assert sum(found["bins"]["count"]) == 4
    assert benchmark.best_temperature(outputs, labels) == pytest.approx(1.0, rel=1e-3)
    # Half the temperature: odds 9 to 1, too sure by 0.9 - 0.75.
    assert benchmark.assess(outputs, labels, 0.5)["ece"] == pytest.approx(0.15)


def test_picture_of_calibration_is_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")  # of the extra dev, not of test
    benchmark = load_benchmark("calibration")
    pictures = [tmp_path / "1.svg", tmp_path / "2.svg"]
    for picture in pictures:
        benchmark.plot(ROOT / "results" / "calibration.json", picture)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_costs() -> None:
    record = json.loads((ROOT / "docs" / "records" / "costs.json").read_text())
    page = load_benchmark("costs").render(record)
    assert "| 60,000 | " in page
    assert page == (ROOT / "docs" / "costs.md").read_text()


def test_default_networks_are_compared_on_parts_of_one_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load_benchmark("default_network")
    x, y = make_images(36)
    monkeypatch.setattr(made, "load", lambda name, cifar10: (x, y))
    nets = {made.BASE: made.PASSES[0][made.BASE], "Myrtle-5": made.PASSES[1]["Myrtle-5"]}
    monkeypatch.setattr(made, "PASSES", tuple({name: net} for name, net in nets.items()))
    out = tmp_path / "r.json"
    record = made.measure(out, None, ["toy"], (12, 30))
    pool = made.draw(y, 30, made.SEED)
    assert (y[pool] == np.arange(3)).all()
    assert len(set(pool.ravel().tolist())) == 30
    assert [len(run["rows"]) for run in record["runs"]] == [2 * (2 + 1)] * 2
    # A part by hand: each image is left out, and the rest of the pool labelled.
    run = record["runs"][1]
    train, rest = pool.ravel()[12:24], np.concatenate([pool.ravel()[:12], pool.ravel()[24:]])
    (row,) = (r for r in run["rows"] if (r["n"], r["part"], r["ridge"]) == (12, 1, 0.0))
    k = wl.kernel(nets["Myrtle-5"], x)
    targets = np.eye(3)[y]
    for place, hit in enumerate(row["right"]):
        others = np.delete(train, place)
        left_out = k[train[place], others] @ np.linalg.solve(
            k[np.ix_(others, others)].astype(float), targets[others] - 1 / 3
        )
        assert (left_out.argmax() == y[train[place]]) == (hit == "1")
    found = k[np.ix_(rest, train)] @ np.linalg.solve(
        k[np.ix_(train, train)].astype(float), targets[train] - 1 / 3
    )
    assert row["accuracy"] == np.mean(found.argmax(axis=1) == y[rest])
    assert row["loo_accuracy"] == row["right"].count("1") / 12
    # What is there is not measured again, and the table tells how many more are right.
    monkeypatch.setattr(made.wl, "kernel", lambda *_: pytest.fail("measured again"))
    assert made.measure(out, None, ["toy"], (12, 30))["runs"] == record["runs"]
    rows = [r["rows"] for r in record["runs"]]
    gains = [
        int(a) - int(b)
        for one, other in zip(rows[1], rows[0], strict=True)
        if (one["n"], one["ridge"]) == (12, "loo")
        for a, b in zip(one["right"], other["right"], strict=True)
    ]
    error = np.std(gains, ddof=1) / np.sqrt(24)
    line = next(r for r in made.table(record).splitlines() if r.startswith("| toy | 12 | Myrtle-5"))
    assert f"| {100 * np.mean(gains):+.1f} ± {100 * error:.1f} |" in line


def test_general_networks() -> None:
    record = json.loads((ROOT / "docs" / "records" / "general.json").read_text())
    benchmark = load_benchmark("general")
    assert record["families"]["all"]["trees"] >= 500
    assert benchmark.is_good(record)
    assert benchmark.table(record) in (ROOT / "docs" / "networks.md").read_text()
