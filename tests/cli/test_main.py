"""What all commands share: how they are called, URIs, sentences, help and completion."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import click
import pytest

import gstalk
from gstalk.cli import cli
from gstalk.testing import Server
from tests.cli.running import COMMAND, UNUSED, run

USAGE = "gstalk: {}; see 'gstalk {}--help'\n"


@pytest.mark.parametrize(
    ("arguments", "err"),
    [
        (["nix"], USAGE.format("no such command 'nix'", "")),
        (["peek", "x"], USAGE.format("invalid value for '[ID]': 'x' is not a valid integer", "peek ")),
        (["bury"], USAGE.format("missing argument 'ID...'", "bury ")),
        (["put", "mail", "a", "b"], USAGE.format("got unexpected extra argument (b)", "put ")),
        (
            ["--uri", "redis://x", "tubes"],
            USAGE.format("invalid server URI 'redis://x': scheme must be beanstalk, beanstalks, tls or unix", ""),
        ),
        (["put", "mail", "x", "--lines"], USAGE.format("BODY goes with neither --file nor --lines", "put ")),
        (
            ["pause", "mail", "x"],
            USAGE.format(
                "invalid value for 'SECONDS': 'x' is no duration: seconds, or such as 90s, 5m, 1h30m, 2d", "pause "
            ),
        ),
        (["--uri", "a", "--uri", "b", "put", "mail", "x"], USAGE.format("this command takes one --uri", "put ")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_sentence(arguments, err):
    code, out, said = run(*arguments)
    assert (code, out) == (2, "")
    assert said == err


def test_option_misspelt_is_one_sentence():
    code, out, err = run("kick", "--tubes", "x")
    assert (code, out) == (2, "")
    assert err.startswith("gstalk: no such option")
    assert err.endswith("; see 'gstalk kick --help'\n")
    assert ". " not in err


def test_no_arguments_shows_the_help():
    code, out, err = run()
    assert code in (0, 2)  # click 8.1 calls it no error
    assert "Usage: gstalk [OPTIONS] COMMAND" in out + err


@pytest.mark.parametrize("command", ["tubes", "info", "stats"])
@pytest.mark.parametrize("uri", [UNUSED, "nowhere.invalid", "unix:///no/such/socket", f"tls://{UNUSED}"])
def test_no_connection_is_one_sentence_and_no_table(uri, command):
    code, out, err = run(command, uri=uri)
    assert (code, out) == (3, "")
    assert err.startswith("gstalk: connect to ")
    assert err.count("\n") == 1


def test_uris_from_the_environment(place, monkeypatch):
    monkeypatch.setenv("BEANSTALKD_URI", f"{place.uri} {UNUSED}")
    code, out, err = run("tubes", "--json")
    assert (code, out.count("\n"), err.count("\n")) == (3, 1, 1)
    monkeypatch.setenv("BEANSTALKD_URI", place.uri)
    assert run("put", "mail", "x") == (0, "1\n", "")


def test_help_explains_every_option():
    for name, command in cli.commands.items():
        code, out, err = run(name, "--help")
        assert (code, err) == (0, "")
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, parameter.name
                assert parameter.opts[0] in out


def test_server_on_a_unix_socket():
    with Server(unix=True) as server:
        assert run("put", "mail", "x", uri=server.uri) == (0, "1\n", "")
        assert run("peek", "1", uri=server.uri).out == "x"


@pytest.mark.parametrize("kind", ["bash", "zsh", "fish"])
def test_completion_script_is_there(monkeypatch, kind):
    monkeypatch.setenv("_GSTALK_COMPLETE", f"{kind}_source")
    code, out, _ = run()
    assert code == 0
    assert "_GSTALK_COMPLETE" in out


def test_completion_knows_commands_and_tubes(monkeypatch, place, clerk):
    def complete(words: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", f"gstalk {words}")
        monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
        code, out, err = run()
        assert (code, err) == (0, "")
        return [line.removeprefix("plain,") for line in out.split()]

    monkeypatch.setenv("_GSTALK_COMPLETE", "bash_complete")
    assert complete("ki") == ["kick"]
    for name in ("mail-1", "mail-2", "fax"):
        clerk.put(name, b"x")
    monkeypatch.setenv("BEANSTALKD_URI", place.uri)
    assert complete("kick --tube mail") == ["mail-1", "mail-2"]
    assert complete(f"--uri {place.uri} purge fa") == ["fax"]
    monkeypatch.setenv("BEANSTALKD_URI", UNUSED)
    assert complete("purge ma") == []


# -- how it is called ---------------------------------------------------------------------------------------------


def test_both_ways_to_call_it():
    script = Path(sysconfig.get_path("scripts")) / "gstalk"
    if not script.exists():
        found = shutil.which("gstalk")
        assert found is not None
        script = Path(found)
    for command in ([str(script)], COMMAND):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, f"gstalk, version {gstalk.__version__}\n")


def test_missing_extra_is_said_in_one_sentence(tmp_path):
    (tmp_path / "click.py").write_text("raise ImportError('no click', name='click')")
    done = subprocess.run(COMMAND, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "gstalk: the command line needs click: pip install 'gstalk[cli]'\n"


@pytest.mark.parametrize("arguments", [["--version"], ["nix"]])
def test_module_that_is_run_is_the_command_line(arguments):
    """And says the same, and exits with the same code."""
    done = subprocess.run([sys.executable, "-m", "gstalk", *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == run(*arguments)


def test_module_that_is_imported_does_nothing(monkeypatch, capfd):
    """As tools do that look at all modules of a package."""
    monkeypatch.setattr(sys, "argv", ["gstalk", "nix"])
    path = Path(gstalk.__file__).with_name("__main__.py")
    assert runpy.run_path(str(path), run_name="gstalk.__main__")["__all__"] == []
    assert capfd.readouterr() == ("", "")
