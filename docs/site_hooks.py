"""What `mkdocs build` does beside: pages from outside `docs/`, links as the repository has them, pictures that follow the theme.

Pages are written for the repository, where a link may lead to any file. In the site a link to a page leads to that page, and a
link to another file of the repository is shown as its path. A link to nothing is left alone, so that the build fails.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LOG = logging.getLogger("mkdocs.hooks.site")

FROM_OUTSIDE = {
    "CHANGELOG.md": "releases.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "compose/README.md": "compose.md",
    "kernels/README.md": "kernels.md",
    "services/router/README.md": "services/router.md",
    "services/prefill/README.md": "services/prefill.md",
    "services/decode/README.md": "services/decode.md",
    "services/kvtransfer/README.md": "services/kvtransfer.md",
    "shared/baton/worker/README.md": "services/worker.md",
    "services/router/baton/router/page/icon.svg": "images/icon.svg",
}
"""Path in the repository -> page of the site, or picture."""
_PAGES = FROM_OUTSIDE | {"README.md": "index.md"}
_SOURCES = {page: source for source, page in FROM_OUTSIDE.items()}
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<path>[^)#:]+)(?P<anchor>#[^)]*)?\)")
_SVG = re.compile(r'<img alt="(?P<alt>[^"]*)" src="[^"]*?images/(?P<name>[\w-]+\.svg)" */?>')
_WORD = re.compile(r"<code>(?=[^\s<]{1,36}</code>)")
_LOADED = re.compile(
    r'<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)="(?:https?:)?//[^"]*"|url\(["\']?https?:|@import'
)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside."""
    from mkdocs.structure.files import File

    for source, page in FROM_OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead the links of a page to pages of the site."""
    uri: str = page.file.src_uri
    source = ROOT / _SOURCES[uri] if uri in _SOURCES else ROOT / "docs" / uri
    pieces = _FENCED.split(markdown)
    return "".join(p if p.startswith("```") else _LINK.sub(lambda m: _lead(m, source, uri), p) for p in pieces)


def _lead(link: re.Match[str], source: Path, uri: str) -> str:
    target = (source.parent / link["path"]).resolve()
    if not target.is_relative_to(ROOT) or not target.exists():
        return link[0]
    path = target.relative_to(ROOT).as_posix()
    if path.startswith("docs/") and target.suffix in (".md", ".png", ".svg"):
        to = path.removeprefix("docs/")
    elif path in _PAGES:
        to = _PAGES[path]
    else:
        return f"`{path}`" if link["text"] in (path, link["path"]) else f"{link['text']} (`{path}`)"
    return f"[{link['text']}]({posixpath.relpath(to, posixpath.dirname(uri) or '.')}{link['anchor'] or ''})"


def on_page_content(html: str, **_: Any) -> str:
    """Keep a flag or a name in one line, and put drawings into the page, so that they take the colours chosen there."""
    html = _WORD.sub('<code class="word">', html)
    return _SVG.sub(lambda m: f'<div class="figure">{(ROOT / "docs/images" / m["name"]).read_text()}</div>', html)


def on_post_build(config: Any) -> None:
    """Warn, which ends a strict build, of anything that a page would load from elsewhere."""
    site = Path(config.site_dir)
    for file in (*site.rglob("*.html"), *site.rglob("*.css")):
        for found in _LOADED.findall(file.read_text()):
            LOG.warning("%s loads from elsewhere: %s", file.relative_to(site), found[:120])
