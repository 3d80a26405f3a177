"""What commands print for people, and how they end."""

import pytest

from scaleearth_pl.core.console import command, progress
from scaleearth_pl.core.errors import ConfigError, PeerLostError, ScaleEarthError


@pytest.mark.parametrize(("kind", "status"), [(ConfigError, 2), (PeerLostError, 75)])
def test_an_error_on_purpose_is_one_line_and_its_status(
    kind: type[ScaleEarthError], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    @command
    def main(path: str) -> int:
        raise kind("no such folder", file=path)

    assert main("[/x]" * 60) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"{kind.__name__}: no such folder (file {'[/x]' * 60})\n"


def test_other_statuses_and_errors_pass() -> None:
    assert command(lambda: 3)() == 3
    with pytest.raises(KeyError):
        command(lambda: int({}["bug"]))()


def test_progress_is_drawn_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("images", 5, done=1) as advance:
        advance()
        advance(3)
    printed = capsys.readouterr()
    assert printed.out == "" and "images" in printed.err and "5/5" in printed.err
    with progress("images", 1, transient=True) as advance:
        advance()
    assert "images" not in capsys.readouterr().err
