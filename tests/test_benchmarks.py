"""How benchmarks report, and that each of them can be asked what it does."""

from __future__ import annotations

import asyncio
import importlib
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import scale
from benchmarks.results import Result, as_dict, draw, machine_facts, middle, ratios, report, table

RATES = Result(
    name="rates",
    title="Two ways to count",
    rows=[
        {"way": "by hand", "tokens/s": [15.0, 16.0, 20.0]},
        {"way": "by machine", "tokens/s": [4000.0, 3000.0, 5000.0], "× by hand": [250.0, 200.0, 250.0]},
    ],
    goal="ten times as fast",
    notes=["3 rounds"],
    machine={"processor": "abacus", "cores": "10"},
    command="python -m benchmarks rates",
)
SIZES = Result(
    name="sizes",
    title="More and more",
    rows=[{"servers": 10, "ms": 0.123456, "KB": 3.0}, {"servers": 10_000, "ms": [200.0, 220.0]}],
    machine={"cores": "2"},
    command="python -m benchmarks sizes",
)


def test_the_table_is_aligned_and_shows_medians() -> None:
    assert table(RATES).splitlines() == [
        "Two ways to count",
        "",
        "way         tokens/s  × by hand",
        "----------  --------  ---------",
        "by hand           16           ",
        "by machine     4,000        250",
        "",
        "goal: ten times as fast",
        "3 rounds",
        "processor abacus, cores 10",
    ]


def test_what_a_row_does_not_know_is_left_empty() -> None:
    assert table(SIZES).splitlines()[4:6] == ["     10  0.123   3", " 10,000    210    "]


def test_the_json_is_one_line_with_every_round(capsys: pytest.CaptureFixture[str]) -> None:
    report(RATES, as_json=True)
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert told["rows"][0] == {"way": "by hand", "tokens/s": {"median": 16.0, "rounds": [15.0, 16.0, 20.0]}}
    assert (told["goal"], told["machine"]["cores"]) == ("ten times as fast", "10")
    assert told["command"] == "python -m benchmarks rates"


@pytest.mark.parametrize("result", [RATES, SIZES], ids=lambda result: result.name)
def test_saved_are_the_numbers_and_a_small_plot_that_is_always_the_same(result: Result, tmp_path: Path) -> None:
    report(result, save=True, folder=tmp_path / "measurements")
    plot = tmp_path / "measurements" / f"{result.name}.svg"
    assert json.loads(plot.with_suffix(".json").read_text("utf-8")) == json.loads(json.dumps(as_dict(result)))
    draw(result, tmp_path / "again.svg")
    assert plot.read_bytes() == (tmp_path / "again.svg").read_bytes()
    assert len(plot.read_bytes()) < 60_000
    words = {"".join(text.itertext()) for text in ElementTree.parse(plot).iter("{http://www.w3.org/2000/svg}text")}
    assert {result.title, *result.columns[1:]} <= words
    assert "date" not in plot.read_text("utf-8").lower()


def test_the_plot_shows_the_columns_that_are_named(tmp_path: Path) -> None:
    draw(Result("one", "One", RATES.rows, plot=["tokens/s"], machine={}), tmp_path / "one.svg")
    text = (tmp_path / "one.svg").read_text("utf-8")
    assert "tokens/s" in text
    assert "× by hand" not in text


def test_ratios_are_taken_within_a_round() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]


def test_the_machine_is_described_without_naming_it() -> None:
    facts = machine_facts()
    assert {"processor", "cores", "python", "torch"} <= set(facts)
    assert all(isinstance(value, str) and value for value in facts.values())


@pytest.mark.parametrize("name", command.NAMES)
def test_every_benchmark_says_what_it_does_and_can_be_saved(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    told = CliRunner().invoke(module.main, ["--help"])
    assert told.exit_code == 0, told.output
    assert {"--json", "--save"} <= set(told.output.split())
    assert module.__doc__ in command.usage()


def test_all_goes_on_after_a_failure_and_then_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[str] = []

    def run(name: str) -> int:
        ran.append(name)
        return int(name == "b")

    assert command.run_all(run, "abc") == 1
    assert ran == ["a", "b", "c"]
    assert capsys.readouterr().out.splitlines()[-1] == "failed: b"
    assert command.run_all(run, "ac") == 0


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["nonsense"], 2)])
def test_without_a_name_they_are_listed(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == code
    assert all(f"  {name} " in capsys.readouterr().out for name in ("decode",))


# ---- scale ----------------------------------------------------------------------------------------------------


def test_a_simulated_swarm_of_any_size_is_whole_and_measured() -> None:
    for servers in (10, 40):
        row = scale.measure(servers, rounds=1)
        assert row["servers"] == servers
        assert all(middle(cell) > 0 for cell in row.values())


def test_peers_end_though_one_of_them_could_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    ended: list[int] = []

    async def join(initial: object) -> SimpleNamespace:
        begun.append(number := len(begun))
        await asyncio.sleep(0)
        if number == 15:
            raise OSError("no more processes")

        async def close() -> None:
            ended.append(number)

        return SimpleNamespace(host=SimpleNamespace(addresses=()), close=close)

    async def start() -> None:
        async with scale.started(30):
            pass

    monkeypatch.setattr(scale, "join", join)
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(start())
    assert caught.group_contains(OSError, match="no more")
    assert len(ended) >= 11
    assert len(set(ended)) == len(ended)
