"""The plan: its model, where its rates come from, and what it does with runs that were measured."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stetholm.cluster import read_cluster
from stetholm.cluster.__main__ import PUBLISHED, main
from stetholm.cluster.check import Point, fit, read_points, report
from stetholm.cluster.plan import least, make, seconds_of, works
from stetholm.cluster.rates import JOBS, rate_of
from stetholm.errors import UserError
from stetholm.settings import PlanSettings, load_settings
from tests.conftest import ROOT

RATES = [f"plan.rates.{job}=10" for job in JOBS]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def cluster():
    return read_cluster(ROOT / "cluster.yaml", environ={}).cluster


def settings(*overrides):
    return load_settings(PUBLISHED, [*RATES, *overrides], {})


def test_the_published_work():
    work = works(settings(), 1)
    assert work["ingest"] == 16_125
    assert work["sft"] == 48_331 * 30
    assert (work["prefer"], work["dpo"]) == (2_400 * 5, 2_400 * 3)
    assert work["evaluate"] == 23_921 * 3
    assert works(settings(), 1000)["sft"] == 1000 * work["sft"]


def test_the_sizes_are_stethobenchs():
    plan = PlanSettings()
    assert plan.align_pairs == 11_824 + 7_998
    assert plan.train_pairs + 4_775 + plan.test_pairs == 77_027


def test_time_is_fixed_and_work_over_rate_workers_and_efficiency():
    plan = PlanSettings(fixed_seconds=60, node_seconds=40, doubling_efficiency=0.9)
    assert seconds_of(1000, 10, 1, plan) == pytest.approx(100 + 100)
    assert seconds_of(1000, 10, 2, plan) == pytest.approx(100 + 1000 / (10 * 2 * 0.9))
    assert seconds_of(1000, 10, 8, plan) == pytest.approx(100 + 1000 / (10 * 8 * 0.9**3))


@given(st.floats(1, 1e9), st.floats(0.01, 1e4), st.integers(1, 10_000), st.floats(0.6, 1))
def test_more_workers_never_take_longer(work, rate, workers, efficiency):
    plan = PlanSettings(doubling_efficiency=efficiency)
    assert seconds_of(work, rate, workers + 1, plan) <= seconds_of(work, rate, workers, plan) * (1 + 1e-12)


def test_money_is_nodes_hours_and_prices(cluster):
    made = make(cluster, settings("plan.prices.g5.4xlarge=2", "plan.prices.c5.4xlarge=1"), RESULTS)
    sft = next(stage for stage in made.stages if stage.job == "sft")
    assert sft.nodes == cluster.most("trainer") and sft.workers == sft.nodes  # a GPU each
    assert sft.dollars == pytest.approx(2 * sft.nodes * sft.seconds / 3600)
    head = made.head_price * made.seconds / 3600
    assert made.dollars == pytest.approx(math.fsum(stage.dollars for stage in made.stages) + head)


def test_without_a_price_there_is_no_sum(cluster):
    other = cluster.model_copy(update={"available_node_types": dict(cluster.available_node_types)})
    data = other.available_node_types["data"]
    other.available_node_types["data"] = data.model_copy(update={"node_config": {"InstanceType": "x9.huge"}})
    made = make(other, settings(), RESULTS)
    assert made.stages[0].dollars is None and made.dollars is None


def test_within_counts_the_nodes_it_takes_and_no_more(cluster):
    made = make(cluster, settings(), RESULTS, scale=1000, within=200)
    assert made.seconds <= 200 * 3600
    trainers = made.stages[1:]
    fewer = math.fsum(seconds_of(s.work, s.rate.value, s.workers - 1, made.assumptions) for s in trainers)
    assert fewer > 0.9 * 200 * 3600
    with pytest.raises(UserError, match="cannot be kept"):
        make(cluster, settings(), RESULTS, within=0.01)


@given(st.integers(1, 10_000))
def test_least_is_the_first_that_is_enough(wanted):
    assert least(lambda count: count >= wanted) == wanted


# --- rates -----------------------------------------------------------------------------------------------------------


def line(bench, ours, **config):
    return json.dumps({"bench": bench, "ours": ours, "device": "2x test", "config": config}) + "\n"


def test_a_rate_says_where_it_comes_from(tmp_path):
    lines = line("data/published", 1, recordings=600, ingest_seconds_once=50, cpus=2)
    lines += line("data/published", 1, recordings=600, ingest_seconds_once=25, cpus=2)
    lines += line("train/sft", 4.0, side="auto") + line("train/sft", 1.0, side="fp32")
    (tmp_path / "2026-01-01-x.jsonl").write_text(lines)
    plain = load_settings(PUBLISHED, [], {})
    newest = rate_of("ingest", plain, tmp_path)
    assert newest.value == pytest.approx(12) and newest.origin.startswith("measured: data/published, 2x test")
    assert rate_of("sft", plain, tmp_path).origin.startswith("estimated")  # a CPU's line does not hold for a GPU
    laptop = load_settings(ROOT / "cluster.yaml", [], {})
    assert rate_of("sft", laptop, tmp_path).value == pytest.approx(2.0)
    assert rate_of("sft", settings(), tmp_path).origin == "given: plan.rates"
    with pytest.raises(UserError, match=r"plan\.rates\.evaluate"):
        rate_of("evaluate", laptop, tmp_path)


@pytest.mark.parametrize("job", ["sft", "prefer", "dpo", "evaluate"])
def test_an_estimate_grows_with_the_gpu_and_shrinks_with_the_model(job, tmp_path):
    def rate(*overrides):
        return rate_of(job, load_settings(PUBLISHED, overrides, {}), tmp_path).value

    assert rate("plan.gpu=H100") > rate("plan.gpu=L4") > 0
    assert rate("model.language_model=smollm2-135m") > 10 * rate()


@pytest.mark.parametrize("bad", ["plan.rates.trian=3", "plan.rates.sft=0", "plan.gpu=Abacus"])
def test_what_cannot_be_reckoned_with(bad, tmp_path):
    with pytest.raises(UserError, match=r"plan\."):
        rate_of("sft", load_settings(PUBLISHED, [bad], {}), tmp_path)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_shows_both_scales_and_its_sources(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["plan"]) == 0
    out = capsys.readouterr().out
    assert "StethoBench × 1\n" in out and "StethoBench × 1000\n" in out
    assert "measured: data/published" in out and "estimated: 30%" in out and "Assumed:" in out


# --- measured runs ---------------------------------------------------------------------------------------------------


@given(st.floats(1, 1000), st.floats(0.1, 1000), st.sets(st.integers(1, 100_000), min_size=3, max_size=6))
def test_a_line_through_points_of_a_line_is_that_line(fixed, rate, works_done):
    found = fit([Point(work, fixed + work / rate) for work in works_done])
    assert found.rate == pytest.approx(rate, rel=1e-3)
    assert found.fixed == pytest.approx(fixed, rel=1e-2, abs=1e-2 * max(works_done) / rate)


def test_the_model_is_right_within_a_tenth_of_the_runs_that_are_kept():
    """The three runs of docs/planning.md."""
    files = sorted((ROOT / "tests" / "cluster" / "plan_runs").glob("*.out"))
    points = read_points(files)
    assert len(files) == 3
    for index, point in enumerate(points):
        predicted = fit([*points[:index], *points[index + 1 :]]).seconds(point.work)
        assert abs(predicted / point.seconds - 1) < 0.1, point
    assert report(points) in (ROOT / "docs" / "planning.md").read_text()


def test_each_point_is_predicted_from_the_others(tmp_path):
    files = []
    for samples, seconds in ((100, 60.0), (200, 70.0), (400, 99.0)):
        files.append(tmp_path / f"{samples}.out")
        files[-1].write_text(f"a line\nRESULT {json.dumps({'job': 'sft', 'samples': samples, 'seconds': seconds})}\n")
    shown = report(read_points(files))
    assert "| 400 | 99.0 | 90.0 | -9.1% |" in shown
    with pytest.raises(UserError, match="at least 3 sizes"):
        read_points(files[:2])
    (tmp_path / "empty").write_text("nothing\n")
    with pytest.raises(UserError, match="no RESULT line"):
        read_points([tmp_path / "empty"])
