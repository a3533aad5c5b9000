import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from blora import __version__, cli
from blora.errors import AdapterError

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "ask",
    "bayesianize",
    "calibrate",
    "doctor",
    "evaluate",
    "export",
    "familiarize",
    "key",
    "mcp",
    "predict",
    "pull",
    "push",
    "serve",
    "train",
    "tune",
)
HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate", "safetensors", "zuko", "numpy")


def python(code: str, *, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter in which some packages are not installed."""
    hide = f"import sys\nfor name in {without!r}: sys.modules[name] = None\n"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", hide + code], capture_output=True, text=True, cwd=ROOT, check=False
    )


def command(monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None, code: int = 0) -> list[list[str]]:
    """Replaces every sub-command by one that keeps its arguments, and fails or returns as told."""
    calls: list[list[str]] = []

    def main(argv: list[str]) -> int:
        calls.append(argv)
        if error is not None:
            raise error
        return code

    monkeypatch.setattr(cli.importlib, "import_module", lambda name: SimpleNamespace(main=main, SUMMARY=name))
    return calls


# Calling


def test_no_command_prints_the_usage_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert capsys.readouterr().out.startswith("usage: blora COMMAND")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_command(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([flag]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [name for name, _ in lines] == list(COMMANDS)
    assert not any("not installed" in summary for _, summary in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_describes_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert f"usage: blora {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_wrong_arguments_are_a_wrong_call(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--no-such-flag"])
    assert caught.value.code == 2
    assert f"usage: blora {name}" in capsys.readouterr().err


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"blora: there is no command 'trian': use one of {', '.join(COMMANDS)}\n"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"blora {__version__}\n"


def test_python_runs_it_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "blora", "trian"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        f"blora: there is no command 'trian': use one of {', '.join(COMMANDS)}\n",
    )


def test_arguments_reach_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = command(monkeypatch, code=7)
    assert cli.main(["train", "--data", "x.jsonl"]) == 7
    monkeypatch.setattr(sys, "argv", ["blora", "evaluate", "base"])
    assert cli.main() == 7
    assert calls == [["--data", "x.jsonl"], ["base"]]


# Failing


def test_our_own_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command(monkeypatch, AdapterError("got no adapter, expected one"))
    assert cli.main(["serve"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "blora serve: got no adapter, expected one\n")


def test_any_other_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main(["serve"])


def test_an_interrupt_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command(monkeypatch, KeyboardInterrupt())
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "extra"),
    [("train", "train"), ("evaluate", "train"), ("serve", "serve"), ("push", "model"), ("mcp", "mcp")],
)
def test_a_missing_package_is_named_with_what_installs_it(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"))
    assert cli.main([name]) == 2
    expected = f"`blora {name}` needs the package torch.nn; install it with `pip install '.[{extra}]'` in a checkout of blora\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("name", ["blora.gone", "blora.server.gone", "blora.training.gone", None])
def test_a_missing_module_of_our_own_is_a_bug(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, ImportError("cannot import", name=name))
    with pytest.raises(ImportError, match="cannot import"):
        cli.main(["train"])


# What is imported


def test_the_command_line_imports_no_model_library() -> None:
    code = f"import blora.cli; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code).stdout == "[]\n"


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["trian"]])
def test_help_imports_no_model_library(argv: list[str]) -> None:
    code = f"from blora.cli import main; main({argv}); print([name for name in {HEAVY} if name in sys.modules])"
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_start_is_not_spent_on_looking_for_garbage() -> None:
    code = (
        "import gc\nfrom blora.cli import main\n"
        "main(['evaluate', '/no/where', '--data', 'rows.jsonl'])\n"
        "print('torch' in sys.modules, sum(generation['collections'] for generation in gc.get_stats()) < 200)"
    )
    assert python(code).stdout == "True True\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_imports_no_torch(name: str) -> None:
    code = (
        "from blora.cli import main\n"
        f"try: main([{name!r}, '--help'])\nexcept SystemExit as exc: assert exc.code == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = python(code)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


BARE = (*HEAVY, "gguf", "fastapi", "uvicorn", "pydantic_settings", "prometheus_client")


def test_a_bare_install_imports(tmp_path: Path) -> None:
    code = (
        "import blora, blora.cli, blora.config, blora.errors\n"
        f"print(blora.__version__, [name for name in {BARE} if sys.modules.get(name)])"
    )
    done = python(code, without=BARE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{__version__} []\n"


def test_a_bare_install_still_lists_the_commands() -> None:
    done = python("from blora.cli import main; sys.exit(main(['--help']))", without=BARE)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")] == list(COMMANDS)


@pytest.mark.parametrize(
    ("argv", "extra"),
    [
        (["train", "--data", "x.jsonl", "--output", "x"], "train"),
        (["evaluate", "base", "--data", "x.jsonl"], "train"),
        (["serve"], "serve"),
    ],
)
def test_a_command_on_a_bare_install_says_what_it_needs(argv: list[str], extra: str) -> None:
    done = python(f"from blora.cli import main; sys.exit(main({argv}))", without=BARE)
    assert done.returncode == 2
    assert done.stderr.endswith(f"install it with `pip install '.[{extra}]'` in a checkout of blora\n")
    assert "Traceback" not in done.stderr
