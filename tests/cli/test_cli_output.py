"""What is in the way of the folder that a command writes is said in words, and nothing is left behind."""

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from transformers import BertForSequenceClassification, BertTokenizer, ViTForImageClassification

from helpers.command_line import error_line, run_main
from helpers.hosts import make_model
from hf_lam import cli
from hf_lam.hub import cards
from hf_lam.modeling.saving_hf_lam import list_staged
from hf_lam.output import new_folder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat"]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stock")
    make_model(ViTForImageClassification, "vit").save_pretrained(root / "vit")
    make_model(BertForSequenceClassification, "bert").save_pretrained(root / "bert")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(root / "bert")
    return root


def convert(source: Path, output: Path) -> tuple[int, str]:
    code, _, err = run_main("convert", source, output, "--mechanism", "lam", "--no-check")
    return code, "" if code == 0 else error_line(err)


def test_a_file_on_the_way(stock: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    code, line = convert(stock / "vit", tmp_path / "file" / "deep" / "out")
    assert code == cli.WRONG_USE and f"{str(tmp_path / 'file')!r} is not a folder" in line
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    code, line = convert(stock / "vit", tmp_path / "link" / "out")
    assert code == cli.WRONG_USE and "is not a folder" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_place_where_nothing_can_be_made(stock: Path) -> None:
    code, line = convert(stock / "vit", Path("/proc/out"))
    assert code == cli.WRONG_USE and "'/proc/out' was not written" in line and "Errno" not in line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "there is no space left"),
        (SafetensorError("Error while serializing: I/O error: No space left (os error 28)"), "there is no space left"),
        (PermissionError(errno.EACCES, "Permission denied"), "it is not allowed"),
        (OSError(errno.EROFS, "Read-only file system"), "the file system is read-only"),
        (OSError(errno.EIO, "Input/output error"), os.strerror(errno.EIO)),
    ],
)
def test_a_disk_that_fails(
    stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(cards, "write_card", fail)
    code, line = convert(stock / "vit", tmp_path / "new" / "out")
    assert code == cli.CHECK_FAILED
    assert "was not written" in line and expected in line and "Errno" not in line and "os error" not in line
    assert list(tmp_path.iterdir()) == []


def test_one_at_a_time(stock: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with new_folder(output) as folder:
        (folder / "first").write_text("1")
        code, line = convert(stock / "vit", output)
        assert code == cli.WRONG_USE and "another process is writing" in line
        assert convert(stock / "vit", tmp_path / "out.second")[0] == 0
    assert [path.name for path in output.iterdir()] == ["first"]


def test_what_comes_in_meanwhile_stays(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(ValueError, match="something else was written there meanwhile"), new_folder(output) as folder:
        (folder / "first").write_text("1")
        output.mkdir()
        (output / "other").write_text("2")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["out", "out/other"]


def test_what_a_killed_one_left_goes_with_the_next(stock: Path, tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        with new_folder(tmp_path / "out") as folder:
            (folder / "weights").write_bytes(b"0" * 1000)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len(list_staged(tmp_path, ".out.")) == 1
    with new_folder(tmp_path / "other"):  # of another output: it stays
        assert len(list_staged(tmp_path, ".out.")) == 1
    assert convert(stock / "vit", tmp_path / "out")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


@pytest.mark.parametrize("how", ["truncated", "junk", "empty", "deleted"])
def test_a_damaged_tokenizer_is_named(stock: Path, tmp_path: Path, how: str) -> None:
    source = shutil.copytree(stock / "bert", tmp_path / "source")
    path = source / "tokenizer.json"
    content = {"truncated": path.read_bytes()[:200], "junk": b"\xff\xfe\x00", "empty": b""}
    path.unlink() if how == "deleted" else path.write_bytes(content[how])
    code, line = convert(source, tmp_path / "out")
    assert code == cli.WRONG_USE and ("tokenizer.json" in line or (how == "deleted" and "tokenizer" in line))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_tokenizer_of_another_model(stock: Path, tmp_path: Path) -> None:
    source = shutil.copytree(stock / "bert", tmp_path / "source")
    BertTokenizer(vocab={f"w{i}" if i > 4 else WORDS[i]: i for i in range(120)}).save_pretrained(source)
    code, line = convert(source, tmp_path / "out")
    assert code == cli.WRONG_USE and "rows" in line
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
