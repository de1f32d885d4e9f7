"""The outside contract of ``joulegate attribute`` (design 5.2): options, formats, files, and every way to be wrong."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from tests.support.meter import Finished, attribute, check_laws, requests_of, run_command, run_in_process
from tests.support.scenarios import four_class_plant, recorded, worked_case

READINGS = "device,t_s,energy_mj\n" + "".join(f"G0,{1 + i / 10:.1f},{1000 + 30_000 * i}\n" for i in range(60))
SPANS = "request_id,devices,start_s,end_s,class,arrived_s\na,G0,2.0,4.0,x,1.5\nb,G0,3.0,6.0,y,2.5\n"


def run(folder: Path, readings: str | bytes, spans: str | bytes, *options: str, command: bool = False) -> Finished:
    """Write both files and run the command on them."""
    for name, text in (("readings.csv", readings), ("spans.csv", spans)):
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    runner = run_command if command else run_in_process
    paths = ("--readings", str(folder / "readings.csv"), "--spans", str(folder / "spans.csv"))
    return runner("attribute", *paths, *options)


def refused(done: Finished) -> str:
    """A refusal is exit 2, an empty stdout and one line on stderr, which is returned."""
    assert done.code == 2, done
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def readings_with(line: int, text: str) -> str:
    """The readings with one line (1 is the header) replaced."""
    lines = READINGS.splitlines()
    lines[line - 1] = text
    return "\n".join(lines) + "\n"


def spans_with(line: int, text: str) -> str:
    """The spans with one line replaced."""
    lines = SPANS.splitlines()
    lines[line - 1] = text
    return "\n".join(lines) + "\n"


BAD_READINGS = {
    "no device column": (READINGS.replace("device,", "gpu,", 1), 1, "device"),
    "no time column": (READINGS.replace("t_s", "time", 1), 1, "t_s"),
    "no energy and no power": (READINGS.replace("energy_mj", "joules", 1), 1, "energy_mj"),
    "time repeats": (readings_with(5, "G0,1.2,200000"), 5, "t_s"),
    "time goes back": (readings_with(9, "G0,0.5,200000"), 9, "t_s"),
    "time is empty": (readings_with(4, "G0,,61000"), 4, "t_s"),
    "time is text": (readings_with(4, "G0,soon,61000"), 4, "t_s"),
    "time is nan": (readings_with(4, "G0,nan,61000"), 4, "t_s"),
    "time is infinite": (readings_with(4, "G0,inf,61000"), 4, "t_s"),
    "time is negative": (readings_with(2, "G0,-1.0,1000"), 2, "t_s"),
    "energy is text": (readings_with(4, "G0,1.2,many"), 4, "energy_mj"),
    "energy is nan": (readings_with(4, "G0,1.2,nan"), 4, "energy_mj"),
    "energy is NaN": (readings_with(4, "G0,1.2,NaN"), 4, "energy_mj"),
    "energy is infinite": (readings_with(4, "G0,1.2,inf"), 4, "energy_mj"),
    "energy is minus infinity": (readings_with(4, "G0,1.2,-inf"), 4, "energy_mj"),
    "energy is Infinity": (readings_with(4, "G0,1.2,Infinity"), 4, "energy_mj"),
    "energy overflows": (readings_with(4, "G0,1.2,1e999"), 4, "energy_mj"),
    "energy is negative": (readings_with(4, "G0,1.2,-61000"), 4, "energy_mj"),
    "energy has an underscore": (readings_with(4, "G0,1.2,61_000"), 4, "energy_mj"),
    "energy is hexadecimal": (readings_with(4, "G0,1.2,0xff"), 4, "energy_mj"),
    "device is empty": (readings_with(4, ",1.2,61000"), 4, "device"),
    "row is short": (readings_with(4, "G0"), 4, "t_s"),
}

BAD_SPANS = {
    "no id column": (SPANS.replace("request_id", "id", 1), 1, "request_id"),
    "no devices column": (SPANS.replace("devices", "gpus", 1), 1, "devices"),
    "no end column": (SPANS.replace("end_s", "stop", 1), 1, "end_s"),
    "no start column": ("request_id,devices,end_s\na,G0,4.0\n", 1, "start_s"),
    "end before start": (spans_with(3, "b,G0,6.0,3.0,y,2.5"), 3, "end_s"),
    "end is empty": (spans_with(3, "b,G0,3.0,,y,2.5"), 3, "end_s"),
    "end is nan": (spans_with(3, "b,G0,3.0,nan,y,2.5"), 3, "end_s"),
    "end is infinite": (spans_with(3, "b,G0,3.0,inf,y,2.5"), 3, "end_s"),
    "start is text": (spans_with(3, "b,G0,three,6.0,y,2.5"), 3, "start_s"),
    "start is nan": (spans_with(3, "b,G0,nan,6.0,y,2.5"), 3, "start_s"),
    "start is negative": (spans_with(3, "b,G0,-3.0,6.0,y,2.5"), 3, "start_s"),
    "arrival is text": (spans_with(3, "b,G0,3.0,6.0,y,early"), 3, "arrived_s"),
    "arrival is negative": (spans_with(3, "b,G0,3.0,6.0,y,-1"), 3, "arrived_s"),
    "arrival is nan": (spans_with(3, "b,G0,3.0,6.0,y,nan"), 3, "arrived_s"),
    "unknown device": (spans_with(3, "b,G7,3.0,6.0,y,2.5"), 3, "devices"),
    "unknown second device": (spans_with(3, "b,G0|G7,3.0,6.0,y,2.5"), 3, "devices"),
    "no device": (spans_with(3, "b,,3.0,6.0,y,2.5"), 3, "devices"),
    "empty device among others": (spans_with(3, "b,G0|,3.0,6.0,y,2.5"), 3, "devices"),
    "repeated id": (spans_with(3, "a,G0,3.0,6.0,y,2.5"), 3, "request_id"),
    "empty id": (spans_with(3, ",G0,3.0,6.0,y,2.5"), 3, "request_id"),
    "start empty and no slots": (spans_with(3, "b,G0,,6.0,y,2.5"), 3, "start_s"),
    "start and arrival empty": (spans_with(3, "b,G0,,6.0,y,"), 3, "start_s"),
}


@pytest.mark.parametrize("name", BAD_READINGS)
def test_bad_readings(tmp_path: Path, name: str) -> None:
    """Each defect of the readings is one line that names file, line and column."""
    text, line, column = BAD_READINGS[name]
    _names(refused(run(tmp_path, text, SPANS, "--json")), "readings.csv", line, column)


@pytest.mark.parametrize("name", BAD_SPANS)
def test_bad_spans(tmp_path: Path, name: str) -> None:
    """Each defect of the spans is one line that names file, line and column."""
    text, line, column = BAD_SPANS[name]
    _names(refused(run(tmp_path, READINGS, text, "--json")), "spans.csv", line, column)


def _names(message: str, file: str, line: int, column: str) -> None:
    assert file in message
    after = message.split(file, 1)[1]
    assert re.search(rf"(?<!\d){line}(?!\d)", after), message
    assert re.search(rf"\b{column}\b", message), message


@pytest.mark.parametrize("column", ["images", "steps", "width", "height"])
@pytest.mark.parametrize("value", ["-1", "many", "nan", "inf"])
def test_bad_work(tmp_path: Path, column: str, value: str) -> None:
    """Work that is negative, not finite or not a number is refused with its place."""
    spans = f"request_id,devices,start_s,end_s,{column}\na,G0,2.0,4.0,3\nb,G0,2.0,4.0,{value}\n"
    _names(refused(run(tmp_path, READINGS, spans, "--json")), "spans.csv", 3, column)


@pytest.mark.parametrize("value", ["-1", "many", "nan", "inf"])
def test_bad_power(tmp_path: Path, value: str) -> None:
    """Power that is negative, not finite or not a number is refused with its place."""
    readings = f"device,t_s,power_w\nG0,1.0,100\nG0,2.0,{value}\nG0,3.0,100\n"
    _names(refused(run(tmp_path, readings, SPANS, "--json")), "readings.csv", 3, "power_w")


@pytest.mark.parametrize(
    ("column", "row"),
    [
        ("devices", "n,G1,2.0,4.0,x,B"),
        ("start_s", "n,G0,2.5,4.0,x,B"),
        ("end_s", "n,G0,2.0,4.5,x,B"),
        ("class", "n,G0,2.0,4.0,z,B"),
    ],
)
def test_batch_rows_must_agree(tmp_path: Path, column: str, row: str) -> None:
    """Rows of one batch that differ in devices, start, end or class are refused with the place of the second."""
    readings = READINGS + READINGS.split("\n", 1)[1].replace("G0", "G1")
    spans = f"request_id,devices,start_s,end_s,class,batch_id\nm,G0,2.0,4.0,x,B\n{row}\n"
    _names(refused(run(tmp_path, readings, spans, "--json")), "spans.csv", 3, column)


@pytest.mark.parametrize(
    "options",
    [
        ("--idle-policy", "generous"),
        ("--lag-ms", "soon"),
        ("--lag-ms", "nan"),
        ("--lag-ms", "inf"),
        ("--slots", "0"),
        ("--slots", "-1"),
        ("--slots", "two"),
        ("--no-such-option",),
    ],
)
def test_bad_options(tmp_path: Path, options: tuple[str, ...]) -> None:
    """An option that means nothing is refused with exit 2, nothing on stdout and no traceback."""
    done = run(tmp_path, READINGS, SPANS, "--json", *options)
    assert done.code == 2
    assert done.stdout == ""
    assert done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("missing", ["readings.csv", "spans.csv"])
def test_absent_file(tmp_path: Path, missing: str) -> None:
    """A file that is not there is named in one line."""
    (tmp_path / "readings.csv").write_text(READINGS)
    (tmp_path / "spans.csv").write_text(SPANS)
    (tmp_path / missing).unlink()
    paths = ("--readings", str(tmp_path / "readings.csv"), "--spans", str(tmp_path / "spans.csv"))
    assert missing in refused(run_in_process("attribute", *paths, "--json"))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00garbage\xff", b"\x00\x00\x00"])
@pytest.mark.parametrize("which", ["readings.csv", "spans.csv"])
def test_file_that_is_no_csv(tmp_path: Path, content: bytes, which: str) -> None:
    """An empty or binary file is refused in one line that names it."""
    texts: dict[str, str | bytes] = {"readings.csv": READINGS, "spans.csv": SPANS, which: content}
    assert which in refused(run(tmp_path, texts["readings.csv"], texts["spans.csv"], "--json"))


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    """A folder is no file: one line, exit 2."""
    (tmp_path / "spans.csv").write_text(SPANS)
    refused(run_in_process("attribute", "--readings", str(tmp_path), "--spans", str(tmp_path / "spans.csv"), "--json"))


def test_command_refuses_as_a_process(tmp_path: Path) -> None:
    """Started as users start it, a bad file gives one line, exit 2 and an empty stdout."""
    done = run(tmp_path, BAD_READINGS["energy is nan"][0], SPANS, "--json", command=True)
    _names(refused(done), "readings.csv", 4, "energy_mj")


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_output_file_is_what_stdout_would_be(tmp_path: Path, form: str) -> None:
    """``--output`` writes the bytes that stdout would carry, prints nothing there, and leaves no other file."""
    shown = run(tmp_path, READINGS, SPANS, form)
    target = tmp_path / "out" / "result"
    target.parent.mkdir()
    done = run(tmp_path, READINGS, SPANS, form, "--output", str(target))
    assert done.code == 0
    assert done.stdout == ""
    assert target.read_text() == shown.stdout
    assert [path.name for path in target.parent.iterdir()] == ["result"]


def test_output_replaces_an_old_file(tmp_path: Path) -> None:
    """An old result is replaced whole."""
    target = tmp_path / "result.json"
    target.write_text("x" * 100_000)
    assert run(tmp_path, READINGS, SPANS, "--json", "--output", str(target)).code == 0
    check_laws(json.loads(target.read_text()))


@pytest.mark.parametrize("old", [None, "precious"])
def test_error_leaves_no_output(tmp_path: Path, old: str | None) -> None:
    """Bad input writes nothing: no output file, no temporary one, and an old one is untouched."""
    target = tmp_path / "out" / "result.json"
    target.parent.mkdir()
    if old is not None:
        target.write_text(old)
    refused(run(tmp_path, BAD_READINGS["energy is nan"][0], SPANS, "--json", "--output", str(target)))
    assert [path.read_text() for path in target.parent.iterdir()] == ([] if old is None else [old])


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    """A folder that does not exist, or a folder in place of the file, is one line and leaves nothing."""
    missing = tmp_path / "nowhere" / "result.json"
    assert "nowhere" in refused(run(tmp_path, READINGS, SPANS, "--json", "--output", str(missing)))
    assert not missing.parent.exists()
    folder = tmp_path / "folder"
    folder.mkdir()
    refused(run(tmp_path, READINGS, SPANS, "--json", "--output", str(folder)))
    assert list(folder.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "readings.csv", "spans.csv"]


def test_output_on_a_full_disk(tmp_path: Path) -> None:
    """A device without space is one line, exit 2."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    done = run(tmp_path, READINGS, SPANS, "--json", "--output", "/dev/full/x")
    refused(done)


def test_columns_in_any_order_and_unknown_ones(tmp_path: Path) -> None:
    """Columns are found by name, and a column nobody knows is ignored."""
    plain = json.loads(run(tmp_path, READINGS, SPANS, "--json").stdout)

    def shuffled(text: str) -> str:
        rows = list(csv.reader(io.StringIO(text)))
        return "\n".join(
            ",".join(["?", *row[::-1]]) if i else ",".join(["note", *row[::-1]]) for i, row in enumerate(rows)
        )

    assert json.loads(run(tmp_path, shuffled(READINGS), shuffled(SPANS), "--json").stdout) == plain


@pytest.mark.parametrize(
    "dress",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.rstrip("\n"),
        lambda text: text + "\n\n",
        lambda text: "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in text.splitlines()),
    ],
    ids=["CRLF", "BOM", "no newline at the end", "blank lines at the end", "quotes"],
)
def test_csv_dialects(tmp_path: Path, dress: object) -> None:
    """What spreadsheets do to a CSV changes nothing."""
    plain = json.loads(run(tmp_path, READINGS, SPANS, "--json").stdout)
    done = run(tmp_path, dress(READINGS), dress(SPANS), "--json")  # type: ignore[operator]
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout) == plain


def test_line_numbers_are_those_of_an_editor(tmp_path: Path) -> None:
    """A quoted cell may hold a line break; the line named is still the one an editor shows."""
    spans = 'note,request_id,devices,start_s,end_s\n"two\nlines",a,G0,2.0,4.0\n,b,G0,2.0,nan\n'
    _names(refused(run(tmp_path, READINGS, spans, "--json")), "spans.csv", 4, "end_s")


def test_hole_in_the_file(tmp_path: Path) -> None:
    """A blank line between rows is refused with its place: a log with a hole in it is not a whole log."""
    spans = "request_id,devices,start_s,end_s\na,G0,2.0,4.0\n\nb,G0,2.0,4.0\n"
    message = refused(run(tmp_path, READINGS, spans, "--json"))
    assert re.search(r"spans\.csv\D*3\b", message), message


def test_header_only_spans() -> None:
    """Spans with a header and no rows are fine: everything is idle or unattributed."""
    result = attribute(READINGS, "request_id,devices,start_s,end_s\n")
    check_laws(result)
    assert result["requests"] == []
    assert result["devices"]["G0"]["counter_delta_mj"] == 30_000 * 59


def test_empty_cells_are_missing_readings() -> None:
    """Rows with an empty energy cell change no figure."""
    lines = READINGS.splitlines()
    holed = [*lines[:10], "G0,1.85,", *lines[10:30], "G0,3.85,", *lines[30:]]
    result = attribute("\n".join(holed) + "\n", SPANS)
    check_laws(result)
    plain = attribute(READINGS, SPANS)
    assert result["devices"]["G0"]["counter_delta_mj"] == plain["devices"]["G0"]["counter_delta_mj"]
    for name, request in requests_of(plain).items():
        assert requests_of(result)[name]["energy_mj"] == pytest.approx(request["energy_mj"], rel=0.01)


def test_shape_of_the_json(tmp_path: Path) -> None:
    """The JSON has the names of the design, integers for energies, and is one strict JSON document."""
    done = run(tmp_path, READINGS, SPANS, "--json", command=True)
    assert done.code == 0, done.stderr
    assert done.stdout.endswith("\n")
    result = json.loads(done.stdout)
    device = result["devices"]["G0"]
    accounts = {"counter_delta_mj", "requests_mj", "idle_mj", "unattributed_mj"}
    assert accounts | {"estimated_mj", "lag_ms", "idle_w", "epochs"} <= set(device)
    assert accounts | {"start_s", "end_s"} <= set(device["epochs"][0])
    assert all(isinstance(device[key], int) for key in (*accounts, "estimated_mj"))
    assert device["epochs"][0]["start_s"] == pytest.approx(1.0)
    assert device["epochs"][-1]["end_s"] == pytest.approx(6.9)
    for request in result["requests"]:
        names = {"request_id", "energy_mj", "u_measurement_mj", "u_allocation_mj", "method", "quality", "devices"}
        assert names <= set(request)
        assert all(isinstance(request[key], int) for key in ("energy_mj", "u_measurement_mj", "u_allocation_mj"))


def test_order_of_rows_changes_no_byte(tmp_path: Path) -> None:
    """Requests come in the order of their ids, so that a log in another order gives the same bytes."""
    rows = ["z,G0,4.0,5.0", "a,G0,2.0,3.0", "m,G0,3.0,4.0"]
    header = "request_id,devices,start_s,end_s"
    texts = {
        run(tmp_path, READINGS, "\n".join([header, *order]) + "\n", "--json").stdout
        for order in (rows, rows[::-1], sorted(rows))
    }
    assert len(texts) == 1


def test_csv_has_the_figures_of_the_json(tmp_path: Path) -> None:
    """``--csv`` has one row a request with the same energies, and an empty cell where there is no figure."""
    spans = SPANS + "late,G0,900.0,901.0,x,899.0\n"
    rows = {
        row["request_id"]: row for row in csv.DictReader(io.StringIO(run(tmp_path, READINGS, spans, "--csv").stdout))
    }
    requests = requests_of(json.loads(run(tmp_path, READINGS, spans, "--json").stdout))
    assert set(rows) == set(requests)
    for name, request in requests.items():
        for key in ("energy_mj", "u_measurement_mj", "u_allocation_mj", "method", "quality"):
            assert rows[name][key] == ("" if request[key] is None else str(request[key]))
    assert rows["late"]["energy_mj"] == ""


def test_fractional_and_exponent_numbers_are_numbers() -> None:
    """``1.5e0`` is a time like any other, and a power log in watts becomes millijoules."""
    text = "device,t_s,power_w\n" + "".join(f"G0,{i}e-1,250.0\n" for i in range(101))
    result = attribute(text, "request_id,devices,start_s,end_s\na,G0,2.0e0,4.0\n", "--lag-ms", "0")
    check_laws(result)
    assert result["devices"]["G0"]["counter_delta_mj"] == 2_500_000
    assert result["requests"][0]["energy_mj"] == pytest.approx(500_000, rel=0.001)


def test_lag_given_is_lag_used() -> None:
    """A given lag is reported back unchanged, whatever the data say."""
    case = worked_case(0.1)
    for lag_ms in (0, 40, 300):
        result = attribute(case.readings_csv, case.spans_csv, "--lag-ms", str(lag_ms))
        check_laws(result)
        assert result["devices"]["GPU-0"]["lag_ms"] == lag_ms


def test_same_input_same_bytes(tmp_path: Path) -> None:
    """Twice the same files, twice the same bytes, in this process or another with another hash seed."""
    case = recorded(four_class_plant(3, count=30, duration_s=60), 3)
    texts = {
        run(tmp_path, case.readings_csv, case.spans_csv, "--json", command=command).stdout
        for command in (False, False, True)
    }
    assert len(texts) == 1


def test_slots_where_every_start_is_given() -> None:
    """``--slots`` beside declared starts changes no figure."""
    plain, slotted = attribute(READINGS, SPANS), attribute(READINGS, SPANS, "--slots", "1")
    assert requests_of(slotted) == requests_of(plain)


def test_help_has_an_example(tmp_path: Path) -> None:
    """``--help`` shows every option of the contract and an example to copy."""
    done = run_command("attribute", "--help", cwd=tmp_path)
    assert done.code == 0
    for word in ("--readings", "--spans", "--slots", "--idle-policy", "--lag-ms", "--json", "--csv", "--output"):
        assert word in done.stdout
    assert "joulegate attribute --readings" in done.stdout


def test_both_files_are_needed(tmp_path: Path) -> None:
    """Without one of the two files the command says which is missing, exit 2."""
    done = run_command("attribute", "--json", cwd=tmp_path)
    assert done.code == 2
    assert done.stdout == ""
    assert "--readings" in done.stderr or "--spans" in done.stderr
