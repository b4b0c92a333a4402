"""How far work is: plain lines in a file, bars on a terminal, states for a callable."""

import contextlib
import io
import re
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from widelimit.display import Display, duration, share_alone, shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-0.1, "0 s"),
        (0.0, "0 s"),
        (0.04, "0 s"),
        (0.43, "0.4 s"),
        (4.0, "4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (90, "1 min 30 s"),
        (187, "3 min 07 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (3661, "1 h 01 min"),
        (100_000, "27 h 46 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_every_ten_seconds_and_at_the_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Display(["kernel", "curve"]) as display:
        for second, share in ((4, 0.1), (9, 0.3), (11, 0.4), (20, 0.5), (22, 0.6), (40, 1.0)):
            clock[0] = 1000.0 + second
            display.show("kernel", share)
        clock[0] = 1050.0
        display.show("kernel", 1.0)
        display.show("curve", 0.0)
        clock[0] = 1059.0
        display.show("curve", 0.9, "nine of ten")
        clock[0] = 1061.0
        display.show("curve", 0.999, "almost")
        display.show("curve", 1.0, "ten of ten")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "kernel: 40%, 11 s, 16 s left",
        "kernel: 60%, 22 s, 15 s left",
        "kernel: 100%, 40 s",
        "curve: almost",
        "curve: ten of ten",
    ]


def test_a_line_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    with shown(True, "", lambda share: (share, f"at {share}"), pause=0.0) as report:
        report(0.2)
        report(0.999)
    assert capsys.readouterr().err == "at 0.2\nat 0.999\n"


@pytest.mark.parametrize("stages", [["CNTK-GAP, depth 11", "[b]NTK[/b]"], [""]])
@pytest.mark.parametrize(("width", "bar"), [(80, True), (44, False)])
def test_bars_on_a_terminal(width: int, bar: bool, stages: list[str], clock: list[float]) -> None:
    console = Console(file=Terminal(), force_terminal=True, width=width, _environ={})
    with Display(stages, console) as display:
        clock[0] += 61.0
        display.show(stages[0], 0.25)
        clock[0] += 61.0
        middle = str(display._stages[stages[0]])
        display.show(stages[0], 1.0)
    assert middle == "2 min 02 s, 2 min 02 s left"
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", text).replace("\r", "\n").splitlines()
    assert max(map(len, rows)) <= width
    assert "…" not in text
    assert ("━" in text) == (bar and stages != [""])
    for name, row in zip(stages, rows[-len(stages) :], strict=True):
        end = "100% 2 min 02 s" if name == stages[0] else "0%"
        assert re.fullmatch(rf"{re.escape(name)} *━* *{end} *", row)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_what_is_said_has_room(width: int) -> None:
    console = Console(file=Terminal(), force_terminal=True, width=width, _environ={})
    state = "12 of 36 tiles, 3.21 k pairs/s, 5.67 M element-layers/s, 59 min 30 s left"
    with Display([""], console) as display:
        display.show("", 0.3, state)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    text = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", text)
    assert (state if width > 40 else " 30% 12 of 36 tiles, 3.21 k pairs/s, 5.…") in text
    assert ("━" in text) == (width == 120)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_nothing_to_do_leaves_nothing_on_the_screen(error: type[BaseException] | None) -> None:
    console = Console(file=Terminal(), force_terminal=True, width=80, _environ={})
    with contextlib.suppress(KeyboardInterrupt), Display(["kernel"], console):
        if error is not None:
            raise error
    last = console.file.getvalue().rpartition("0%")[2]  # type: ignore[attr-defined]
    assert ("\x1b[1A\x1b[2K" in last) == (error is None)
    assert "\x1b[?25h" in last  # the cursor is there again


def test_a_terminal_that_cannot_move_its_cursor_gets_lines() -> None:
    console = Console(file=Terminal(), force_terminal=True, _environ={"TERM": "dumb"})
    with Display(["kernel"], console) as display:
        display.show("kernel", 1.0, "all of it")
    assert console.file.getvalue() == "kernel: all of it\n"  # type: ignore[attr-defined]


def test_a_callable_gets_the_state_itself(capsys: pytest.CaptureFixture[str]) -> None:
    states: list[Any] = []

    def read(state: object) -> tuple[float, str]:
        raise AssertionError("only the display reads states")

    for progress in (states.append, False):
        with shown(progress, "work", read) as report:
            report("state")
    assert states == ["state"]
    assert capsys.readouterr() == ("", "")
    with shown(True, "work", lambda state: (1.0, f"all of {state}")) as report:
        report("it")
    assert capsys.readouterr() == ("", "work: all of it\n")


@pytest.mark.parametrize("progress", [None, 1, "yes"])
def test_progress_that_is_none(progress: Any) -> None:
    with pytest.raises(TypeError, match="progress must be True, False or a callable, got"):
        shown(progress, "work", share_alone)


def test_a_notebook_has_bars_without_widgets(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[str] = []
    handle = SimpleNamespace(update=lambda data, raw: drawn.append(data["text/html"]))
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    show = SimpleNamespace(display=lambda data, raw, display_id: handle)
    monkeypatch.setitem(sys.modules, "IPython.display", show)
    with Display(["<kernel>"]) as display:
        for time_now, share in ((1001.0, 0.25), (1001.1, 0.3), (1002.0, 0.5)):
            clock[0] = time_now
            display.show("<kernel>", share)
    assert len(drawn) == 3  # the second came too soon; the last is drawn at the end, too
    assert '<progress value="0.2500" max="1"></progress> &lt;kernel&gt; 25%' in drawn[0]
    assert "2 s, 2 s left" in drawn[1]
    with Display(["kernel"]):
        pass
    assert drawn[-1] == ""  # there was nothing to do
    assert capsys.readouterr() == ("", "")

    shell.kernel = None  # IPython in a console
    with Display(["kernel"]) as display:
        display.show("kernel", 1.0)
    assert "kernel: 100%" in capsys.readouterr().err
    assert len(drawn) == 4
