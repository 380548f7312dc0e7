"""examples/space: the page of the demo app, by its functions, over HTTP and in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.processes import fresh_environment
from helpers.scripts import EXAMPLES, script_module
from helpers.small_classifiers import save_text, save_with_code
from hf_lam import LamConfig

pytest.importorskip("gradio")


def test_the_page_runs_no_code_before_its_check_was_shown(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = str(save_with_code(tmp_path / "model", marker))
    with script_module("space/app") as module:
        models = module.Shelf(tmp_path)
        own, shared = (module.App(models, is_own_machine) for is_own_machine in (True, False))
        with pytest.raises(ValueError, match="after its check was shown"):
            own.trust(True, module.Choice(""))
        choice, report, box, *_ = own.check(folder)
        assert "NOT PASSED" in report and box["visible"] and not choice.source and not marker.exists()
        with pytest.raises(ValueError, match="There is no model yet"):
            own.draw(choice, "a film", None, None, None)
        with pytest.raises(ValueError, match="only on your own machine"):
            shared.trust(True, choice)
        with pytest.raises(ValueError, match="not for its visitors"):
            shared.check(folder)
        assert not marker.exists()
        trusted, *_ = own.trust(True, choice)
        assert trusted.trust and marker.exists()
        back, *_ = own.trust(False, trusted)
        assert not back.source
        ours, report, box, *_ = own.check(str(save_text(tmp_path / "lam", LamConfig())))
        assert ours.source and "passed" in report and not box["visible"]


def test_a_space_is_nobodys_own_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with script_module("space/app") as module:
        assert module.make_app(module.AppArguments(), tmp_path).is_own_machine
        assert not module.make_app(module.AppArguments(host="0.0.0.0"), tmp_path).is_own_machine
        monkeypatch.setenv("SPACE_ID", "user/space")
        assert not module.make_app(module.AppArguments(), tmp_path).is_own_machine


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app, started as a user starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("app")
    command = [
        sys.executable,
        str(EXAMPLES / "space" / "app.py"),
        "--port",
        str(port),
        "--cache",
        str(folder / "models"),
    ]
    with open(folder / "log", "w") as log:
        environment = fresh_environment({"HF_HUB_OFFLINE": "1", "TMPDIR": str(folder)})
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                assert process.poll() is None, (folder / "log").read_text()
                try:
                    urllib.request.urlopen(url, timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait(30)
    assert "Traceback" not in (folder / "log").read_text()


@pytest.mark.slow
def test_programs_use_the_app(address: str, tmp_path: Path) -> None:
    client = pytest.importorskip("gradio_client").Client(address, verbose=False)
    assert "passed" in client.predict(str(save_text(tmp_path, LamConfig())), api_name="/verify")
    with pytest.raises(Exception, match=r"no such/folder at all.* repository on the Hub"):
        client.predict("no such/folder at all", api_name="/verify")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"there is no browser here: none of {', '.join(names)}")
    # The sandbox does not start for root, as in containers.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=path, args=arguments)
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, which must log no error."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(180_000)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_selector("#draw")
    yield page
    page.close()
    assert not errors


@pytest.mark.slow
def test_a_sentence_gets_its_maps(page: Any) -> None:
    page.fill("#text textarea, #text input", "The script is dull.")
    page.click("#draw")
    page.wait_for_selector("#maps img")
    pictures = page.locator("#maps img")
    assert pictures.count() == 2 and "without the learnable mask" in pictures.first.get_attribute("alt")
    assert "7 tokens" in pictures.first.get_attribute("alt")
    assert pictures.first.evaluate("image => image.complete && image.naturalWidth > 500")


@pytest.mark.slow
def test_the_budget_moves_the_flops(page: Any) -> None:
    page.get_by_role("tab", name="Views and budget").click()
    seen = []
    for percent in ("100", "60"):
        page.fill("#budget input[type=number]", percent)
        page.press("#budget input[type=number]", "Enter")
        page.wait_for_function(
            "seen => { const cell = document.querySelector('#comparison tr:nth-child(2) td:nth-child(3)');"
            " return cell && cell.innerText != seen; }",
            arg=seen[-1] if seen else "",
        )
        seen.append(page.inner_text("#comparison tr:nth-child(2) td:nth-child(3)"))
    assert seen[0] == "100.0%" and 50 < float(seen[1].rstrip("%")) <= 60
    assert page.locator("#patterns img").count() == 2


@pytest.mark.slow
def test_repositories_are_verified_and_mistakes_explained(page: Any, tmp_path: Path) -> None:
    page.get_by_role("tab", name="Verify").click()
    folder = save_text(tmp_path / "good", LamConfig())
    (save_text(tmp_path / "bad", LamConfig()) / "run.sh").write_text("true\n")
    for source, said in ((folder, "passed"), (tmp_path / "bad", "NOT PASSED")):
        page.fill("#checked textarea, #checked input", str(source))
        page.click("#verify button, button#verify")
        page.wait_for_function(
            "said => document.querySelector('#findings').innerText.includes(said)", arg=f"{source}: {said}"
        )
    assert "run.sh" in page.inner_text("#findings table")
    page.fill("#checked textarea, #checked input", "no such/folder at all")
    page.click("#verify button, button#verify")
    page.wait_for_selector(".toast-body")
    assert re.search(r"no such/folder at all.* repository on the Hub", page.inner_text(".toast-body"))
    assert "Traceback" not in page.content()


@pytest.mark.slow
def test_a_folder_is_chosen_and_a_digit_drawn(page: Any, tmp_path: Path) -> None:
    folder = save_text(tmp_path, LamConfig())
    page.click("#model input")
    page.get_by_role("option", name="Another model").click()
    page.fill("#source textarea, #source input", str(folder))
    page.click("#load")
    page.wait_for_selector("text=none of the code in it ran")
    page.click("#draw")
    page.wait_for_selector("#maps img")
    page.click("#model input")
    page.get_by_role("option", name="ViT with learnable masks").click()
    page.wait_for_selector("#drawing canvas")
    page.click("#drawing button[title='Brush']")
    canvas = page.locator("#drawing canvas").first.bounding_box()
    left, top = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 4
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move(left, top + canvas["height"] / 2, steps=20)
    page.mouse.up()
    page.click("#draw")
    page.wait_for_selector("#maps img[alt*='4 × 4 patches']")
    assert page.locator("#maps img").count() == 4
