"""What a terminal of 80 columns shows, as a picture."""

from __future__ import annotations

import io
import re

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, RenderableType
from rich.text import Text
from typer.testing import CliRunner

from baton.cli import app

_OWN_FONTS = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
"""The page that shows it fetches no font from elsewhere."""


def help_picture() -> str:
    """Draw `baton up --help`."""
    text = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["up", "--help"]).stdout
    return picture("baton up --help", Text(text.rstrip().replace("Usage: root ", "Usage: baton ")))


def picture(title: str, shown: RenderableType) -> str:
    """Draw what is printed."""
    console = Console(record=True, width=80, file=io.StringIO(), color_system=None)
    console.print(shown)
    return console.export_svg(title=title, unique_id=title.split()[-1].strip("-"), code_format=_OWN_FONTS)
