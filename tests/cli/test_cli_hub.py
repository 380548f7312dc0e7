"""`hf-lam push` and `hf-lam verify`: what they hand on and show, and both against a server."""

import json
from types import SimpleNamespace

import pytest
from transformers import BertForSequenceClassification

import hf_lam
from helpers.command_line import error_line, run_main
from helpers.hosts import make_model
from helpers.hub_server import TOKEN, HubServer, Repo
from helpers.processes import run_code
from hf_lam import LamConfig, cli, hub
from hf_lam.hub import Finding, PushError, PushReport, Verification

OID = "4f2c1d9e" * 5
COMMIT = SimpleNamespace(
    oid=OID, commit_url=f"https://hf.co/me/lam/commit/{OID}", pr_url="https://hf.co/me/lam/discussions/1"
)
REPORT = {
    "repo_id": "me/lam",
    "revision": "main",
    "files": {"config.json": 800, "model.safetensors": 1_250_000},
    "deleted": ("pytorch_model-00001-of-00002.safetensors",),
    "notes": ("no licence was found",),
}


@pytest.fixture
def folder(tmp_path):
    config = {
        "architectures": ["HfLamBertForSequenceClassification"],
        "auto_map": {
            "AutoModel": "modeling_hf_lam.HfLamBertModel",
            "AutoModelForSequenceClassification": "modeling_hf_lam.HfLamBertForSequenceClassification",
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
def pushed(monkeypatch):
    """What `hf_lam.hub.push` was called with, in place of a push."""
    calls = []

    def push(*arguments, **options):
        print("a library's print")
        calls.append((arguments, options))
        return PushReport(**REPORT, commit=None if options["dry_run"] else COMMIT)

    monkeypatch.setattr(hub, "push", push)
    return calls


def test_what_a_push_is_asked_for(folder, pushed):
    assert run_main("push", folder, "me/lam")[0] == 0
    options = ["--private", "--revision", "v2", "--create-pr", "--message", "More", "--dataset", "me/data"]
    options += ["--base-model", "a/b", "--base-model", "c/d", "--license", "mit", "--dry-run"]
    assert run_main("push", folder, "me/lam", *options)[0] == 0
    assert run_main("push", folder, "me/lam", "--public")[0] == 0
    plain, full, public = (options for _, options in pushed)
    assert {arguments for arguments, _ in pushed} == {(folder, "me/lam")}
    none = dict.fromkeys(["private", "revision", "commit_message", "dataset", "base_model", "license"])
    assert plain == {**none, "create_pr": False, "dry_run": False}
    assert full == {
        "private": True,
        "revision": "v2",
        "create_pr": True,
        "commit_message": "More",
        "dataset": "me/data",
        "base_model": ["a/b", "c/d"],
        "license": "mit",
        "dry_run": True,
    }
    assert public["private"] is False


def test_what_people_see_of_a_push(folder, pushed):
    code, out, err = run_main("push", folder, "me/lam")
    assert code == 0
    cells = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in out.splitlines() if "│" in line]
    assert cells == [["config.json", "800 B"], ["model.safetensors", "1.2 MB"], ["2 files", "1.3 MB"]]
    lines = out.splitlines()
    assert "removed by the same commit: pytorch_model-00001-of-00002.safetensors" in lines
    assert "note: no licence was found" in lines
    assert f"commit: {COMMIT.commit_url}" in lines
    assert f"pull request: {COMMIT.pr_url}" in lines
    assert f"check it: hf-lam verify me/lam --revision {OID}" in lines
    pinned = f'"me/lam", trust_remote_code=True, revision="{OID}", code_revision="{OID}"'
    assert f"load it:  AutoModelForSequenceClassification.from_pretrained({pinned})" in lines
    assert err == "Pushing to me/lam …\n"


def test_a_dry_run_says_so(folder, pushed):
    code, out, _ = run_main("push", folder, "me/lam", "--dry-run")
    assert code == 0
    assert out.splitlines()[-1] == "dry run: nothing was uploaded to me/lam (main)"
    assert "model.safetensors" in out and "load it" not in out


def test_json_of_a_push(folder, pushed):
    code, out, err = run_main("push", folder, "me/lam", "--json")
    assert code == 0
    assert json.loads(out) == json.loads(json.dumps(PushReport(**REPORT, commit=COMMIT).to_dict()))
    assert "a library's print" in err


@pytest.mark.parametrize(
    ("error", "code"), [(PushError("403: no commit was made"), cli.NETWORK_FAILED), (ValueError("bad"), cli.WRONG_USE)]
)
def test_a_push_that_fails(folder, monkeypatch, error, code):
    def push(*arguments, **options):
        raise error

    monkeypatch.setattr(hub, "push", push)
    found, out, err = run_main("push", folder, "me/lam", "--json")
    assert (found, out, error_line(err)) == (code, "", f"error: {error}")


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_a_model_is_not_pushed(tmp_path, name):
    (tmp_path / "empty").mkdir()
    code, out, err = run_main("push", tmp_path / name, "me/lam", "--dry-run")
    assert (code, out) == (cli.WRONG_USE, "")
    assert name in error_line(err)


# --- verify ----------------------------------------------------------------------------------------------------------


def verification(**changes):
    values = {
        "source": "me/lam",
        "revision": OID,
        "version": "0.1.0",
        "code": {"modeling_hf_lam.py": "ab" * 32, "views_hf_lam.py": "cd" * 32},
        "imports": ("torch", "transformers"),
        "hosts": ("huggingface.co",),
        "reads": ("config.json", "model.safetensors"),
        "writes": (),
        "findings": (),
    }
    return Verification(**{**values, **changes})


@pytest.fixture
def verified(monkeypatch):
    """Let `hf_lam.hub.verify` find something; returns what it was asked."""
    calls = []

    def find(**changes):
        def verify(*arguments, **options):
            print("a library's print")
            calls.append((arguments, options))
            return verification(**changes)

        monkeypatch.setattr(hub, "verify", verify)
        return calls

    return find


@pytest.mark.parametrize("options", [[], ["--weights"]])
def test_what_passes_is_said_with_the_commit_to_pin(verified, options):
    calls = verified()
    code, out, err = run_main("verify", "me/lam", "--revision", "main", *options)
    assert code == 0
    assert calls == [(("me/lam",), {"revision": "main", "weights": bool(options)})]
    lines = out.splitlines()[1:] if "print" in out.splitlines()[0] else out.splitlines()
    assert lines[0] == "me/lam: passed"
    assert "code: hf_lam 0.1.0, 2 files" in lines
    assert "imports besides its own files: torch, transformers" in lines
    assert "would reach: huggingface.co" in lines
    assert "would read: config.json, model.safetensors" in lines
    assert "would write: nothing" in lines
    pin = f'revision="{OID}", code_revision="{OID}"'
    assert lines[-1] == f'load it:  AutoModel.from_pretrained("me/lam", trust_remote_code=True, {pin})'
    assert err.startswith("Looking at me/lam …")


def test_findings_are_listed_by_kind_and_exit_code_1(verified):
    findings = (
        Finding("code", "views_hf_lam.py", "is not that of hf_lam 0.1.0"),
        Finding("pickle", "pytorch_model.bin", "can run code when it is loaded"),
        Finding("code", "extra.py", "is not of hf_lam"),
    )
    verified(findings=findings, version=None)
    code, out, _ = run_main("verify", "me/lam")
    assert code == cli.CHECK_FAILED
    lines = out.splitlines()
    start = lines.index("me/lam: NOT PASSED: 3 findings")
    assert lines[start + 1 : start + 6] == [
        "code:",
        "  views_hf_lam.py: is not that of hf_lam 0.1.0",
        "  extra.py: is not of hf_lam",
        "pickle:",
        "  pytorch_model.bin: can run code when it is loaded",
    ]
    assert "code: of no released hf_lam, 2 files" in lines
    # Nobody should copy this line from a report of findings.
    assert "from_pretrained" not in out


@pytest.mark.parametrize("findings", [(), (Finding("code", "x.py", "is extra"),)])
def test_json_of_a_verification(verified, findings):
    verified(findings=findings)
    code, out, err = run_main("verify", "me/lam", "--json")
    assert code == len(findings)
    assert json.loads(out) == json.loads(json.dumps(verification(findings=findings).to_dict()))
    assert "a library's print" in err


def test_a_real_folder_passes_until_it_is_changed(tmp_path):
    hf_lam.convert(make_model(BertForSequenceClassification, "bert"), LamConfig()).save_pretrained(tmp_path)
    code, out, _ = run_main("verify", tmp_path, "--json")
    assert (code, json.loads(out)["findings"]) == (0, [])
    (tmp_path / "extra.py").write_text("import os\n")
    code, out, _ = run_main("verify", tmp_path)
    assert code == cli.CHECK_FAILED
    assert "extra.py" in out and "NOT PASSED: 1 finding\n" in out


def test_no_such_folder_is_wrong_use(tmp_path):
    code, out, err = run_main("verify", tmp_path / "missing", "--json")
    assert (code, out) == (cli.WRONG_USE, "")
    assert "missing" in error_line(err)


def test_a_hub_that_cannot_be_reached_is_a_failure_of_the_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    code, out, err = run_main("verify", "user/lam", "--json")
    assert (code, out) == (cli.NETWORK_FAILED, "")
    assert len(error_line(err)) > len("error: ")


# --- against a server ------------------------------------------------------------------------------------------------

COMMANDS = """
import json, sys
from helpers.command_line import run_main

print(json.dumps([run_main(*arguments) for arguments in json.loads(sys.argv[1])]))
"""


@pytest.mark.slow
def test_push_and_verify_against_a_server(tmp_path):
    folder = str(tmp_path / "lam")
    hf_lam.convert(make_model(BertForSequenceClassification, "bert"), LamConfig()).save_pretrained(folder)
    commands = [
        ["push", folder, "user/lam", "--dry-run", "--json"],
        ["verify", "user/lam"],
        ["push", folder, "user/lam", "--json"],
        ["verify", "user/lam", "--json"],
        ["inspect", "user/lam", "--json"],
        ["convert", "user/stock", str(tmp_path / "converted"), "--mechanism", "lam", "--json"],
        ["verify", "user/lam", "--revision", "none"],
    ]
    with HubServer() as server:
        server.repos["user/stock"] = Repo()
        make_model(BertForSequenceClassification, "bert").save_pretrained(tmp_path / "stock")
        files = {path.name: path.read_bytes() for path in (tmp_path / "stock").iterdir()}
        server.repos["user/stock"].commit("main", files)
        environment = server.environment(tmp_path / "cache")
        printed = run_code(COMMANDS, json.dumps(commands), environment=environment)
        commit = server.repos["user/lam"].branches["main"]
    codes, outs, errs = zip(*json.loads(printed.splitlines()[-1]), strict=True)
    # Before the push there is no such repository: the dry run has made none.
    assert codes == (0, cli.WRONG_USE, 0, 0, 0, 0, cli.WRONG_USE), errs
    dry, _, done, verified, inspected, converted, _ = (json.loads(out or "null") for out in outs)
    assert dry["files"].keys() == done["files"].keys()
    assert (dry["commit"], done["commit"]["oid"]) == (None, commit)
    assert (verified["revision"], verified["version"], verified["findings"]) == (commit, hf_lam.__version__, [])
    assert inspected["mechanisms"] == {"lam": LamConfig().to_dict()}
    assert converted["largest_difference"] <= 1e-5
    assert "base_model: user/stock" in (tmp_path / "converted" / "README.md").read_text()
    assert not any(TOKEN in text for text in (*outs, *errs))
