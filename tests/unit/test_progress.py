"""Progress: what a log shows, and what worker processes send."""

from __future__ import annotations

import io

from phenomhpc.progress import Message, forwarding, lines


def test_lines_show_count_rate_time_left_and_figures() -> None:
    out = io.StringIO()
    with lines(out, every_s=0).stage("convert", 4, "fields") as stage:
        stage.advance(1, mb_per_s=12.34)
        stage.note("field 3 set aside")
    first, note, last = out.getvalue().splitlines()
    assert first.startswith("convert: 1/4 fields") and "left" in first and "mb/s 12.34" in first
    assert note == "convert: field 3 set aside"
    assert "left" in last


def test_lines_are_sparse_and_end_with_one() -> None:
    out = io.StringIO()
    with lines(out, every_s=3600).stage("embed", 100, "wells") as stage:
        for _ in range(100):
            stage.advance()
    assert len(out.getvalue().splitlines()) == 1
    assert "100/100 wells" in out.getvalue()


def test_a_worker_sends_its_stages() -> None:
    sent: list[Message] = []
    progress = forwarding(sent.append)
    with progress.stage("convert", 4, "fields") as stage:
        stage.advance(2, mb_per_s=1.0)
        stage.note("n")
    progress.say("hello")
    assert sent == [
        ("convert", 4, "fields", 2, {"mb_per_s": 1.0}, None),
        ("convert", 4, "fields", 0, {}, "n"),
        ("", None, "", 0, {}, "hello"),
    ]
