"""The strict reader of recorded readings and spans."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegate.sources.fault import SourceFault
from joulegate.sources.trace_csv import EXTRA_COLUMNS, MAX_COUNT, TraceFault, read_spans, read_trace


def write(path: Path, text: str | bytes) -> Path:
    """Put a file there."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def trace_fault(path: Path, extras: tuple[str, ...] = ()) -> TraceFault:
    """The one-line fault of a readings file."""
    with pytest.raises(TraceFault) as caught:
        read_trace(path, extras)
    assert "\n" not in str(caught.value)
    return caught.value


def span_fault(path: Path, devices: set[str] | None = None, slots: int | None = None) -> TraceFault:
    """The one-line fault of a spans file."""
    with pytest.raises(TraceFault) as caught:
        read_spans(path, devices, slots)
    assert "\n" not in str(caught.value)
    return caught.value


def test_columns_come_per_device(tmp_path: Path) -> None:
    """Rows of several devices, in any column order, become columns of each device."""
    text = "note,energy_mj,t_s,device,power_w\nx,5,1.5,B,10\n,100,1.0,A,\ny,,2.0,A,600.5\n"
    trace = read_trace(write(tmp_path / "r.csv", text))
    assert list(trace.devices) == ["B", "A"]
    a = trace.devices["A"]
    assert (a.t_s, a.energy_mj, a.power_w, a.lines, a.extras) == ([1.0, 2.0], [100, None], [None, 600.5], [3, 4], {})


def test_a_column_the_file_lacks_is_none_as_a_whole(tmp_path: Path) -> None:
    """Power-only readings have no energy column, not a column of zeros or Nones."""
    trace = read_trace(write(tmp_path / "r.csv", "device,t_s,power_w\nA,0,1\nA,1,2\n"))
    assert trace.devices["A"].energy_mj is None
    assert trace.devices["A"].power_w == [1.0, 2.0]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("0", 0),
        ("12.0", 12),
        ("1e6", 1_000_000),
        ("1.5e1", 15),
        (" 7 ", 7),
        ("+7", 7),
        ("007", 7),
        (str(MAX_COUNT), MAX_COUNT),
        ("9007199254740993", 9007199254740993),
        ("9007199254740993.0", 9007199254740993),
        ("", None),
        ("  ", None),
    ],
)
def test_energy_is_read_exactly(tmp_path: Path, cell: str, value: int | None) -> None:
    """Whole numbers are exact up to 2^63 however they are written, and an empty cell is a missing reading."""
    trace = read_trace(write(tmp_path / "r.csv", f"device,t_s,energy_mj\nA,0,{cell}\n"))
    assert trace.devices["A"].energy_mj == [value]


@given(st.lists(st.integers(0, MAX_COUNT), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_any_counter_survives_the_file(tmp_path_factory: pytest.TempPathFactory, counters: list[int]) -> None:
    """Every counter value comes back as it was written."""
    rows = "".join(f"A,{row},{counter}\n" for row, counter in enumerate(counters))
    path = write(tmp_path_factory.mktemp("t") / "r.csv", f"device,t_s,energy_mj\n{rows}")
    assert read_trace(path).devices["A"].energy_mj == counters


def test_the_shapes_that_spreadsheets_write_are_fine(tmp_path: Path) -> None:
    """A byte order mark, CRLF, quotes, padded headers and blank lines at the end change nothing."""
    text = b'\xef\xbb\xbf"device", t_s ,energy_mj\r\n"GPU, a",1,"5"\r\n"GPU, a",2,6\r\n\r\n\r\n'
    trace = read_trace(write(tmp_path / "r.csv", text))
    assert trace.devices["GPU, a"].energy_mj == [5, 6]


def test_ids_are_not_trimmed(tmp_path: Path) -> None:
    """Two ids that differ in a space are two devices."""
    trace = read_trace(write(tmp_path / "r.csv", "device,t_s,energy_mj\nA,1,1\nA ,1,1\n"))
    assert list(trace.devices) == ["A", "A "]


def test_extra_columns_are_read_only_on_request(tmp_path: Path) -> None:
    """A column outside the contract is ignored, whatever is in it, unless a replay asks for it."""
    path = write(tmp_path / "r.csv", "device,t_s,power_w,utilization\nA,1,1,hot\n")
    assert read_trace(path).devices["A"].extras == {}
    assert trace_fault(path, EXTRA_COLUMNS).column == "utilization"


HEADER = "device,t_s,energy_mj,power_w\n"


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("", 1, None, "no header"),
        ("\n", 1, None, "no header"),
        (HEADER, 2, None, "no reading"),
        ("device,energy_mj\nA,1\n", 1, "t_s", "missing"),
        ("t_s,energy_mj\n1,1\n", 1, "device", "missing"),
        ("device,t_s\nA,1\n", 1, "energy_mj", "missing"),
        ("device,t_s,t_s,energy_mj\nA,1,1,1\n", 1, "t_s", "twice"),
        (HEADER + "A,1,1\n", 2, "power_w", "3 cells"),
        (HEADER + "A,1,1,1,1\n", 2, None, "5 cells"),
        (HEADER + "A,1,1,1\n\nA,2,1,1\n", 3, None, "empty"),
        (HEADER + ",1,1,1\n", 2, "device", "empty"),
        (HEADER + "  ,1,1,1\n", 2, "device", "empty"),
        (HEADER + "a|b,1,1,1\n", 2, "device", "|"),
        (HEADER + "A,,1,1\n", 2, "t_s", "empty"),
        (HEADER + "A,1,1,1\nA,1,2,1\n", 3, "t_s", "not after 1 of line 2"),
        (HEADER + "A,2,1,1\nB,1,1,1\nA,1.5,2,1\n", 4, "t_s", "not after 2 of line 2"),
        (HEADER + "A,nan,1,1\n", 2, "t_s", "not finite"),
        (HEADER + "A,inf,1,1\n", 2, "t_s", "not finite"),
        (HEADER + "A,1e999,1,1\n", 2, "t_s", "not finite"),
        (HEADER + "A,-1,1,1\n", 2, "t_s", "negative"),
        (HEADER + "A,soon,1,1\n", 2, "t_s", "'soon' is not a number"),
        (HEADER + "A,1_0,1,1\n", 2, "t_s", "not a number"),
        (HEADER + "A,\u0661,1,1\n", 2, "t_s", "not a number"),
        (HEADER + "A,0x10,1,1\n", 2, "t_s", "not a number"),
        (HEADER + "A,1,1.5,1\n", 2, "energy_mj", "not a whole number"),
        (HEADER + "A,1,-5,1\n", 2, "energy_mj", "negative"),
        (HEADER + "A,1,nan,1\n", 2, "energy_mj", "not finite"),
        (HEADER + "A,1,N/A,1\n", 2, "energy_mj", "not a number"),
        (HEADER + f"A,1,{MAX_COUNT + 1},1\n", 2, "energy_mj", "over 2^63"),
        (HEADER + "A,1,1e300,1\n", 2, "energy_mj", "over 2^63"),
        (HEADER + "A,1,1,-0.5\n", 2, "power_w", "negative"),
        (HEADER + "A,1,1,NaN\n", 2, "power_w", "not finite"),
        (HEADER + "A,1,1,[N/A]\n", 2, "power_w", "not a number"),
        (HEADER + 'A,1,1,"1\n', 2, None, "not CSV"),
        (HEADER + '"A"x,1,1,1\n', 2, None, "not CSV"),
        (HEADER + '"A\nB",0,1,1\n"A\nB",1,x,1\n', 4, "energy_mj", "not a number"),
    ],
)
def test_the_first_defect_is_named_with_its_place(
    tmp_path: Path, text: str, line: int, column: str | None, words: str
) -> None:
    """Whatever is wrong, one line says file, line and column."""
    path = write(tmp_path / "readings.csv", text)
    fault = trace_fault(path)
    assert (fault.file, fault.line, fault.column) == (str(path), line, column)
    assert words in str(fault)
    assert str(fault).startswith(f"{path}:{line}: " + (f"{column}: " if column else ""))


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    """A byte that is no UTF-8 is found on its own line, also far into the file."""
    rows = b"".join(b"A,%d,1,1\n" % row for row in range(20_000))
    assert trace_fault(write(tmp_path / "r.csv", HEADER.encode() + rows + b"\xff,1,1,1\n")).line == 20_002


def test_a_file_that_is_not_there_is_a_source_fault(tmp_path: Path) -> None:
    """A missing file and a folder are one line, without a line number."""
    for path in (tmp_path / "none.csv", tmp_path):
        fault = trace_fault(path)
        assert isinstance(fault, SourceFault)
        assert fault.line is None
        assert str(fault).startswith(f"{path}: cannot be read: ")


def test_a_million_rows_are_read_in_one_pass(tmp_path: Path) -> None:
    """10^6 rows of eight devices arrive whole, in bounded memory."""
    path = tmp_path / "big.csv"
    with path.open("w") as stream:
        stream.write("device,t_s,energy_mj\n")
        for base in range(0, 1_000_000, 8):
            stream.write("".join(f"GPU-{gpu},{base / 8 * 0.02:.2f},{base * 250}\n" for gpu in range(8)))
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trace = read_trace(path)
    assert sum(len(device.t_s) for device in trace.devices.values()) == 1_000_000
    assert trace.devices["GPU-7"].energy_mj is not None
    assert trace.devices["GPU-7"].energy_mj[-1] == 999_992 * 250
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 300 * 1024


SPANS = "request_id,devices,start_s,end_s\n"


def test_spans_keep_their_columns(tmp_path: Path) -> None:
    """Every column of the contract is there, devices in their order, and empty cells are None."""
    text = (
        "class,request_id,end_s,start_s,devices,images,steps,width,height,batch_id,arrived_s\n"
        "sdxl,r1,4,2,B|A,4,30,1024,768,b7,1.5\n,r2,9,9,A,,,,,,\n"
    )
    first, second = read_spans(write(tmp_path / "s.csv", text), {"A", "B"})
    assert (first.devices, first.start_s, first.end_s, first.arrived_s) == (("B", "A"), 2.0, 4.0, 1.5)
    assert (first.power_class, first.images, first.steps, first.width, first.height) == ("sdxl", 4, 30, 1024, 768)
    assert (first.batch_id, first.line, second.line) == ("b7", 2, 3)
    assert (second.images, second.batch_id, second.arrived_s, second.power_class) == (None, None, None, "")


def test_spans_without_rows_are_fine(tmp_path: Path) -> None:
    """A header alone is an empty log."""
    assert read_spans(write(tmp_path / "s.csv", SPANS)) == []


def test_a_start_may_be_missing_only_where_it_can_be_inferred(tmp_path: Path) -> None:
    """With slots and an arrival the start may be empty, or the whole column absent; otherwise it is a fault."""
    path = write(tmp_path / "s.csv", "request_id,devices,start_s,end_s,arrived_s\nr1,A,,5,2\n")
    assert read_spans(path, slots=1)[0].start_s is None
    assert span_fault(path).column == "start_s"
    bare = write(tmp_path / "bare.csv", "request_id,devices,end_s,arrived_s\nr1,A,5,2\n")
    assert read_spans(bare, slots=1)[0].arrived_s == 2.0
    assert (span_fault(bare).line, span_fault(bare).column) == (1, "start_s")
    neither = write(tmp_path / "n.csv", "request_id,devices,start_s,end_s,arrived_s\nr1,A,,5,\n")
    assert (span_fault(neither, slots=1).line, span_fault(neither, slots=1).column) == (2, "start_s")


BATCH = "request_id,devices,start_s,end_s,class,batch_id,arrived_s\nr1,A|B,1,2,c,b,0\n"


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("", 1, None, "no header"),
        ("request_id,devices,start_s\nr,A,1\n", 1, "end_s", "missing"),
        ("request_id,start_s,end_s\nr,1,2\n", 1, "devices", "missing"),
        ("devices,start_s,end_s\nA,1,2\n", 1, "request_id", "missing"),
        (SPANS + "r1,A,1,2\nr2,A,4.0,3.2\n", 3, "end_s", "3.2 is before start_s 4.0"),
        (SPANS + ",A,1,2\n", 2, "request_id", "empty"),
        (SPANS + "r1,A,1,2\nr2,A,1,2\nr1,A,3,4\n", 4, "request_id", "'r1' is already on line 2"),
        (SPANS + "r1,,1,2\n", 2, "devices", "empty"),
        (SPANS + "r1,A|,1,2\n", 2, "devices", "empty"),
        (SPANS + "r1,A|A,1,2\n", 2, "devices", "twice"),
        (SPANS + "r1,A|C,1,2\n", 2, "devices", "'C' has no readings"),
        (SPANS + "r1,A,1,\n", 2, "end_s", "empty"),
        (SPANS + "r1,A,,2\n", 2, "start_s", "empty"),
        (SPANS + "r1,A,nan,2\n", 2, "start_s", "not finite"),
        (SPANS + "r1,A,1,inf\n", 2, "end_s", "not finite"),
        (SPANS + "r1,A,-1,2\n", 2, "start_s", "negative"),
        (SPANS + "r1,A,x,2\n", 2, "start_s", "not a number"),
        ("request_id,devices,start_s,end_s,images\nr1,A,1,2,1.5\n", 2, "images", "not a whole number"),
        ("request_id,devices,start_s,end_s,steps\nr1,A,1,2,-1\n", 2, "steps", "negative"),
        ("request_id,devices,start_s,end_s,arrived_s\nr1,A,1,2,3\n", 2, "end_s", "2 is before arrived_s 3"),
        (BATCH + "r2,A,1,2,c,b,0\n", 3, "devices", "differs from line 2"),
        (BATCH + "r2,A|B,1.5,2,c,b,0\n", 3, "start_s", "differs from line 2"),
        (BATCH + "r2,A|B,1,3,c,b,0\n", 3, "end_s", "differs from line 2"),
        (BATCH + "r2,A|B,1,2,d,b,0\n", 3, "class", "differs from line 2"),
    ],
)
def test_a_defect_of_a_span_is_named_with_its_place(
    tmp_path: Path, text: str, line: int, column: str | None, words: str
) -> None:
    """Whatever is wrong with a request log, one line says file, line and column."""
    path = write(tmp_path / "spans.csv", text)
    fault = span_fault(path, {"A", "B"})
    assert (fault.file, fault.line, fault.column) == (str(path), line, column)
    assert words in str(fault)


def test_members_of_a_batch_may_differ_in_what_is_theirs(tmp_path: Path) -> None:
    """Arrival, work and the order of the devices' names need not agree."""
    text = BATCH + "r2,B|A,1,2,c,b,0.5\n"
    assert [span.batch_id for span in read_spans(write(tmp_path / "s.csv", text))] == ["b", "b"]


def test_the_message_reads_as_the_design_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File as it was named, line, column, problem."""
    rows = "".join(f"r{row},A,1,2\n" for row in range(15))
    write(tmp_path / "spans.csv", f"{SPANS}{rows}bad,A,4.0,3.2\n")
    monkeypatch.chdir(tmp_path)
    assert str(span_fault(Path("spans.csv"))) == "spans.csv:17: end_s: 3.2 is before start_s 4.0"
