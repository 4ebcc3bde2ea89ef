"""Settings of a server: one table, three places."""

import argparse

import pytest

from duologue.cli.command import add_command
from duologue.errors import UsageError
from duologue.server.config import ServerConfig


def read(tmp_path, *, flags=None, environ=None, file=None) -> ServerConfig:
    path = None
    if file is not None:
        path = tmp_path / "duologue.toml"
        path.write_text(file, encoding="utf-8")
    return ServerConfig.read(flags=flags, environ=environ or {}, path=path)


def test_a_flag_goes_before_the_environment_and_that_before_the_file(tmp_path):
    file = 'port = 1\nmax_sessions = 2\ncontext = 512\norigins = ["https://a.example"]\nlog_text = true\n'
    environ = {
        "DUOLOGUE_SERVE_PORT": "3",
        "DUOLOGUE_SERVE_MAX_SESSIONS": "4",
        "DUOLOGUE_SERVE_TOKENS": "one-token, two-token",
    }
    config = read(tmp_path, flags={"port": "5"}, environ=environ, file=file)
    assert (config.port, config.max_sessions, config.context) == (5, 4, 512)
    assert config.tokens == ("one-token", "two-token")
    assert (config.origins, config.log_text) == (("https://a.example",), True)
    assert config.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"file": "prot = 1"}, "no setting 'prot'"),
        ({"file": "port = "}, "cannot read the settings"),
        ({"file": "port = true"}, "whole number"),
        ({"file": "port = 1.5"}, "whole number"),
        ({"file": "host = 5"}, "must be text"),
        ({"environ": {"DUOLOGUE_SERVE_PORT": "eighty"}}, "environment: port.*whole number"),
        ({"environ": {"DUOLOGUE_SERVE_LOG_TEXT": "perhaps"}}, "true or false"),
        ({"flags": {"port": "70000"}}, "at most 65535"),
        ({"flags": {"max_sessions": "0"}}, "at least 1"),
        ({"flags": {"keep": "nan"}}, "at least 0"),
        ({"flags": {"tokens": "short"}}, "eight or more"),
        ({"flags": {"tokens": "with spaces in it"}}, "without spaces"),
        ({"flags": {"host": "0.0.0.0"}}, "there is no token"),
        ({"flags": {"host": "::"}}, "there is no token"),
    ],
)
def test_what_cannot_be_is_said(tmp_path, given, complaint):
    with pytest.raises(UsageError, match=complaint):
        read(tmp_path, **given)


def test_others_may_be_let_in_with_a_token(tmp_path):
    assert read(tmp_path, flags={"host": "0.0.0.0", "tokens": "a-long-secret"}).host == "0.0.0.0"


def test_every_setting_is_a_flag(tmp_path):
    commands = argparse.ArgumentParser().add_subparsers()
    add_command(commands, "serve")
    for model in (["m.gguf"], ["-m", "m.gguf"], ["--model", "m.gguf"]):
        args = commands.choices["serve"].parse_args([*model, "--max-sessions", "3", "--log-text", "--port", "0"])
        given = {name: value for name, value in vars(args).items() if name not in ("config", "run", "parser")}
        assert read(tmp_path, flags=given) == ServerConfig(model="m.gguf", max_sessions=3, log_text=True, port=0)
    text = commands.choices["serve"].format_help()
    for name in ServerConfig.__dataclass_fields__:
        assert name == "model" or f"--{name.replace('_', '-')}" in text


def test_an_unknown_setting_in_the_environment_is_refused_like_one_in_a_file() -> None:
    with pytest.raises(UsageError, match="the environment: there is no setting 'max_session'"):
        ServerConfig.read(environ={"DUOLOGUE_SERVE_MAX_SESSION": "3", "DUOLOGUE_CACHE": "elsewhere"})
