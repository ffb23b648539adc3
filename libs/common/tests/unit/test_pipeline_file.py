"""Pipeline files: a good one loads, a bad one names every problem with line, path and fix."""

from pathlib import Path
from textwrap import dedent

import pytest

from homeostat.common.errors import PipelineFileError
from homeostat.common.pipeline import Snapshot, load, load_policy

GOOD = """\
    apiVersion: homeostat/v1
    name: payments
    owner: risk
    source:
      id: id
      time: at
      key: customer
      label: {field: bad, delay: 1d, maturity: 1d, absent: 0}
    unit: customer
    fields:
      id: string
      customer: string
      amount: {type: decimal, scale: 0.01, minimum: 0}
      channel: {type: category, values: [web, no]}
    features:
      mean_1h: {entity: customer, aggregate: mean(amount), window: sliding 1h, missing: 0}
      ratio: {expression: amount / mean_1h, default: 1}
      is_web: {expression: channel == 'web'}
    rollout:
      steps: [10, 100]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "pipeline.yaml"
    path.write_text(dedent(text))
    return path


def refusal(folder: Path, old: str, new: str) -> list[str]:
    assert old in GOOD
    with pytest.raises(PipelineFileError) as refused:
        load(write(folder, GOOD.replace(old, new)))
    return told(refused.value, folder)


def told(refused: PipelineFileError, folder: Path) -> list[str]:
    return [str(violation).removeprefix(f"{folder}/") for violation in refused.violations]


def test_a_good_file_loads(tmp_path: Path) -> None:
    pipeline = load(write(tmp_path, GOOD))

    assert pipeline.entities == ("customer",)
    assert list(pipeline.aggregates) == ["mean_1h"]
    assert pipeline.rollout.steps == (0.1, 1.0)
    assert pipeline.fields["channel"].values == ("web", "no")


def test_a_snapshot_keeps_its_bytes_and_its_hash(tmp_path: Path) -> None:
    snapshot = Snapshot(load(write(tmp_path, GOOD)), generation=3)

    again = Snapshot.decode(snapshot.encode())

    assert again == snapshot
    assert again.content_hash == snapshot.content_hash


def test_an_altered_snapshot_is_refused(tmp_path: Path) -> None:
    encoded = Snapshot(load(write(tmp_path, GOOD)), generation=3).encode()

    with pytest.raises(ValueError, match="hash"):
        Snapshot.decode(encoded.replace(b'"risk"', b'"mine"'))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "owner: risk",
            "ownr: risk",
            "pipeline.yaml:3 ownr: unknown key 'ownr' (did you mean 'owner'?)",
        ),
        (
            "window: sliding 1h",
            "windw: sliding 1h",
            "pipeline.yaml:16 features.mean_1h.windw: unknown key 'windw' (did you mean 'window'?)",
        ),
        (
            "mean(amount)",
            "mean(amuont)",
            "pipeline.yaml:16 features.mean_1h.aggregate: there is no field 'amuont' "
            "(did you mean 'amount'?)",
        ),
        (
            "amount / mean_1h",
            "amount / maen_1h",
            "pipeline.yaml:17 features.ratio.expression: column 10: there is no 'maen_1h'; "
            "did you mean 'mean_1h'?",
        ),
        (
            "== 'web'",
            "== 'wbe'",
            "pipeline.yaml:18 features.is_web.expression: column 12: 'channel' is never 'wbe'; "
            "did you mean 'web'?",
        ),
        (
            "key: customer\n",
            "key: custmer\n",
            "pipeline.yaml:7 source.key: there is no field 'custmer' (did you mean 'customer'?)",
        ),
        (
            "key: customer\n",
            "key: amount\n",
            "pipeline.yaml:7 source.key: 'amount' is a decimal, but a key is a string "
            "(write amount: string under fields)",
        ),
        (
            "amount / mean_1h",
            "amount - at",
            "pipeline.yaml:17 features.ratio.expression: column 10: there is no 'at' "
            "(the event time is called event_time)",
        ),
        ("[10, 100]", "[10, 5]", "pipeline.yaml:20 rollout.steps: steps grow and"),
        ("[10, 100]", "[0.1, 200]", "pipeline.yaml:20 rollout.steps.1: a step is a percentage"),
        ("maturity: 1d", "maturity: 1", "pipeline.yaml:8 source.label.maturity: a duration needs"),
    ],
)
def test_a_problem_names_its_line_its_path_and_the_fix(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    lines = refusal(tmp_path, old, new)

    assert any(line.startswith(expected) for line in lines), lines


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    lines = refusal(
        tmp_path, "entity: customer, aggregate: mean(amount)", "entity: x, aggregate: mean(y)"
    )

    assert len(lines) == 2


@pytest.mark.parametrize(
    "text",
    [
        "a: &x 1\nb: *x\n",
        "name: a\nname: b\n",
        "name: !!python/object:os.system x\n",
        "a: [1, 2\n",
        "\tname: x\n",
        "",
        "- a list\n",
        "a: " + "[" * 60 + "]" * 60,
    ],
)
def test_surprising_yaml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(PipelineFileError):
        load(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineFileError, match=r"nowhere\.yaml"):
        load(tmp_path / "nowhere.yaml")


def test_a_policy_of_its_own_file_is_inlined(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(
        "apiVersion: homeostat/v1\n"
        "rules:\n"
        "  - {name: fast, measure: latency_p99_seconds, at_most: 0.05}\n"
    )

    pipeline = load(write(tmp_path, GOOD + "    governance: policy.yaml\n"))

    assert [rule.name for rule in pipeline.policy.rules] == ["fast"]


def test_an_unknown_measure_of_a_policy_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("apiVersion: homeostat/v1\nrules:\n  - {name: x, measure: f2, at_least: 1}\n")

    with pytest.raises(PipelineFileError) as refused:
        load_policy(path)

    assert told(refused.value, tmp_path)[0].startswith("policy.yaml:3 rules.0.measure: ")


def test_problems_of_the_policy_are_told_with_those_of_the_pipeline(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("apiVersion: homeostat/v1\nruls: []\n")
    text = GOOD.replace("owner: risk", "ownr: risk") + "    governance: policy.yaml\n"

    with pytest.raises(PipelineFileError) as refused:
        load(write(tmp_path, text))

    lines = told(refused.value, tmp_path)
    assert any(line.startswith("pipeline.yaml:3 ownr: ") for line in lines), lines
    assert any(line.startswith("policy.yaml:2 ruls: ") for line in lines), lines


@pytest.mark.parametrize("aggregate", ["distinct(channel)", "distinct(id)", "count(channel)"])
def test_a_text_can_be_counted(tmp_path: Path, aggregate: str) -> None:
    pipeline = load(write(tmp_path, GOOD.replace("mean(amount)", aggregate)))

    assert pipeline.aggregates["mean_1h"].aggregate == aggregate


def test_an_aggregate_of_numbers_over_a_text_says_what_there_is(tmp_path: Path) -> None:
    (refused,) = refusal(tmp_path, "mean(amount)", "'quantile(channel, 0.5)'")

    assert "'channel' is a category, not a number" in refused
    assert "write count(channel) or distinct(channel)" in refused
