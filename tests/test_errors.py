# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The sentence reaches the user whatever wraps it on the way."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import threading
import warnings
from pathlib import Path

import monai.bundle
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import StatsHandler
from monai.transforms import LoadImage

from swinumamba_monai.errors import MAX_QUOTED, InputError, find_input_error, quoted, report_plainly, shown


def refuse(item):
    raise InputError("the sentence")


def test_behind_what_is_raised_from_it():
    with pytest.raises(RuntimeError) as caught:
        try:
            refuse(None)
        except InputError as error:
            raise RuntimeError("wrapped") from error
    assert str(find_input_error(caught.value)) == "the sentence"


def test_from_a_worker_of_a_data_loader():
    with pytest.raises(RuntimeError) as caught:
        list(DataLoader(Dataset([1], transform=refuse), num_workers=1))
    assert caught.value.__cause__ is None, "nothing but text comes out of a worker"
    assert str(find_input_error(caught.value)) == "the sentence"


def test_other_errors_are_not_taken_for_it():
    assert find_input_error(RuntimeError("an InputError: somewhere in a text")) is None


def keep_hooks(monkeypatch):
    """What the command changes in its process is as before after the test."""
    for place, name in ((sys, "excepthook"), (threading, "excepthook"), (logging, "_logRecordFactory")):
        monkeypatch.setattr(place, name, getattr(place, name))


def test_a_bundle_says_nothing_of_a_reader_that_nobody_asked_for(monkeypatch, recwarn, caplog):
    """Of one on a GPU, twice in three lines: for the images and for the labels. Other warnings stay."""
    keep_hooks(monkeypatch)
    monkeypatch.setattr(sys, "argv", [monai.bundle.__file__.replace("__init__", "__main__"), "run"])
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.NOTSET)
    report_plainly()
    LoadImage()
    warnings.warn("something else", stacklevel=1)
    assert [str(warning.message) for warning in recwarn] == ["something else"] and not caplog.messages


def test_hook_of_the_command(monkeypatch, capsys):
    keep_hooks(monkeypatch)
    monkeypatch.setattr(sys, "argv", [monai.bundle.__file__.replace("__init__", "__main__"), "run"])
    report_plainly()
    sys.excepthook(InputError, InputError("the sentence"), None)
    assert capsys.readouterr().err == "error: the sentence\n"
    sys.excepthook(KeyError, KeyError("other"), None)
    assert "KeyError: 'other'" in capsys.readouterr().err
    for error, said in ((OSError(errno.ENOSPC, "full"), ""), (KeyError("other"), "KeyError: 'other'")):
        thread = threading.Thread(target=raise_it, args=[error])
        thread.start()
        thread.join(timeout=300)
        told = capsys.readouterr().err
        assert said in told and bool(told) == bool(said)


def raise_it(error):
    raise error


def test_the_log_of_the_command_has_the_sentence_and_no_traceback(monkeypatch):
    """Of ignite's engine, which logs the text that comes out of a loader's worker, and of MONAI's StatsHandler."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.ERROR)  # how far an engine came is said too, where another test has let it
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    keep_hooks(monkeypatch)
    monkeypatch.setattr(sys, "argv", [monai.bundle.__file__.replace("__init__", "__main__"), "run"])
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)  # put back after the test
    report_plainly()
    logger = logging.getLogger("with_an_output_of_its_own")  # as MONAI gives its handlers, and later than the filter
    logger.addHandler(handler)
    logger.propagate = False
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(Dataset([1], transform=refuse), num_workers=1),
        torch.nn.Identity(),
        val_handlers=[StatsHandler(), StatsHandler(name=logger.name)],
    )
    with pytest.raises(RuntimeError):
        evaluator.run()
    lines = stream.getvalue().splitlines()
    assert lines and set(lines) == {"ended: the sentence"}
    logging.getLogger("a.b").error("other", exc_info=KeyError("more"))
    assert "KeyError: 'more'" in stream.getvalue()


def test_a_program_that_runs_a_bundle_keeps_its_hook(monkeypatch):
    def own(*_):
        raise AssertionError

    monkeypatch.setattr(sys, "excepthook", own)
    config = Path(__file__).parents[1] / "bundles" / "microscopy" / "configs" / "inference.json"
    monai.bundle.ConfigWorkflow(str(config), workflow_type="inference").initialize()
    assert sys.excepthook is own


@pytest.mark.parametrize("text", ["\x1b[31mred\n\n", "x" * 1_000_000, "a\x00b\u202e", "größe 3"])
def test_what_a_stranger_wrote_is_short_and_printable(text):
    for sentence in (shown(text), quoted(ValueError(text))):
        assert sentence.isprintable() and len(sentence) <= MAX_QUOTED + len("ValueError: ")
    assert shown("größe  3\n") == "größe 3"


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EFBIG, errno.ENOENT]
)
def test_an_output_that_cannot_be_written_is_a_sentence(code):
    try:
        try:
            raise OSError(code, os.strerror(code), "out/metrics.csv")
        except OSError as error:
            raise RuntimeError("in a handler") from error
    except RuntimeError as error:
        assert str(find_input_error(error)) == f"out/metrics.csv cannot be written or opened: {os.strerror(code)}."
    copied = OSError(code, os.strerror(code), "in.csv", None, "out/in.csv")
    assert str(find_input_error(copied)).startswith("out/in.csv cannot be written")
    assert find_input_error(OSError(errno.ECONNRESET, "reset")) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_of_tensorboard_is_named(tmp_path):
    import resource

    from torch.utils.tensorboard import SummaryWriter

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = SummaryWriter(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
        with pytest.raises(OSError) as caught:
            for step in range(100):
                writer.add_scalar("loss", 1, step)
                writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = str(find_input_error(caught.value))
    assert said.startswith(f"{tmp_path}/events.out.tfevents.") and os.strerror(errno.EFBIG) in said


def test_no_sentence_does_anything_to_a_terminal():
    assert str(InputError("a\x1b[31m\x00\x7fb\ud800 c\nd é.")) == "a?[31m??b? c\nd é."
